//! An executor around an executor that notes, for every row of logits and every chunk that fills up, which token ids
//! stand behind it and a digest of its bits.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use kvist_base::{
    CHUNK, ChunkId, Executor, ExecutorInfo, Prepare, Residency, RowOutcome, StepOutput, StepPlan, TokenId,
};
use kvist_sim::SimTier;

/// Bits by the token ids that they must be a function of.
#[derive(Default)]
pub struct Bits {
    logits: HashMap<Vec<TokenId>, u64>,
    kv: HashMap<Vec<TokenId>, u64>,
    /// Of what is encoded from it.
    sealed: HashMap<Vec<TokenId>, u64>,
}

impl Bits {
    /// Every entry of `other` must be here, with the same bits. Returns the number of entries compared.
    pub fn covers(&self, other: &Bits) -> Result<usize, String> {
        let maps = [
            ("logits", &self.logits, &other.logits),
            ("KV", &self.kv, &other.kv),
            ("sealed KV", &self.sealed, &other.sealed),
        ];
        for (what, mine, theirs) in maps {
            for (path, bits) in theirs {
                match mine.get(path) {
                    Some(b) if b == bits => {}
                    Some(_) => return Err(format!("{what} after {} tokens differ from a lone cold run", path.len())),
                    None => return Err(format!("a lone cold run never has {what} after these {} tokens", path.len())),
                }
            }
        }
        Ok(other.logits.len() + other.kv.len() + other.sealed.len())
    }

    fn note(map: &mut HashMap<Vec<TokenId>, u64>, path: Vec<TokenId>, bits: u64, clash: &mut Option<String>) {
        let n = path.len();
        if map.insert(path, bits).is_some_and(|old| old != bits) {
            clash.get_or_insert(format!("the bits after the same {n} tokens differ within one run"));
        }
    }
}

pub struct Recorder {
    inner: Box<dyn Executor>,
    /// Token of every slot that holds KV.
    cells: Vec<[Option<TokenId>; CHUNK]>,
    pub bits: Bits,
    /// Where chunks come from that were computed elsewhere.
    tier: Option<SimTier>,
    /// The first contradiction.
    pub clash: Option<String>,
    bytes: Vec<u8>,
}

impl Recorder {
    pub fn new(inner: Box<dyn Executor>) -> Recorder {
        let cells = vec![[None; CHUNK]; inner.info().open_slabs().end as usize];
        Recorder { inner, cells, bits: Bits::default(), tier: None, clash: None, bytes: Vec::new() }
    }

    pub fn with_tier(mut self, tier: Option<SimTier>) -> Recorder {
        self.tier = tier;
        self
    }

    fn mirror(&mut self, plan: &StepPlan, outcomes: &[RowOutcome]) {
        for prepare in &plan.prepare {
            match *prepare {
                Prepare::Zero(chunk) => self.cells[chunk.0 as usize] = [None; CHUNK],
                Prepare::Install(_) => {}
                Prepare::Copy { from, to, n } => {
                    let source = self.cells[from.0 as usize];
                    self.cells[to.0 as usize][..n as usize].copy_from_slice(&source[..n as usize]);
                }
            }
        }
        for (row, outcome) in plan.rows.iter().zip(outcomes) {
            if let Some(slot) = row.write {
                let lost = matches!(outcome, RowOutcome::Lost(_));
                self.cells[slot.chunk.0 as usize][slot.slot as usize] = (!lost).then_some(row.token);
            }
        }
        for seal in &plan.seals {
            self.cells[seal.to.0 as usize] = self.cells[seal.from.0 as usize];
        }
    }

    /// Token ids that a row attends to, and the chunks that they are in.
    fn path(&self, plan: &StepPlan, row: u32) -> Option<(Vec<TokenId>, Vec<ChunkId>)> {
        let list = &plan.classes[0];
        let (mut tokens, mut chunks) = (Vec::new(), Vec::new());
        for run in list.runs.iter().filter(|r| r.rows.contains(&row)) {
            for c in 0..run.chunks.end - run.chunks.start {
                let chunk = list.chunks[(run.chunks.start + c) as usize];
                let mask = list.mask(run, c, row);
                for slot in (0..CHUNK).filter(|s| mask >> s & 1 == 1) {
                    tokens.push(self.cells[chunk.0 as usize][slot]?);
                }
                chunks.push(chunk);
            }
        }
        Some((tokens, chunks))
    }
}

impl Executor for Recorder {
    fn info(&self) -> &ExecutorInfo {
        self.inner.info()
    }

    fn step(&mut self, plan: &StepPlan, residency: &dyn Residency, out: &mut StepOutput) {
        if let Some(tier) = &self.tier {
            let installs = plan.prepare.iter().filter_map(|prepare| match prepare {
                Prepare::Install(chunk) => Some(chunk),
                Prepare::Zero(_) | Prepare::Copy { .. } => None,
            });
            for chunk in installs.chain(&plan.arriving) {
                for (i, token) in tier.tokens(*chunk).into_iter().flatten().enumerate() {
                    self.cells[chunk.0 as usize][i] = Some(token);
                }
            }
        }
        self.inner.step(plan, residency, out);
        self.mirror(plan, &out.outcomes);
        let vocab = self.inner.info().vocab;
        for (r, row) in plan.rows.iter().enumerate() {
            let sealed = row.write.filter(|s| s.slot as usize == CHUNK - 1).map(|s| s.chunk);
            if matches!(out.outcomes[r], RowOutcome::Lost(_)) || (!row.logits && sealed.is_none()) {
                continue;
            }
            let Some((tokens, _)) = self.path(plan, r as u32) else {
                self.clash.get_or_insert("a row attends to a slot without KV".into());
                continue;
            };
            if let Some(chunk) = sealed {
                self.bytes.clear();
                self.inner.read_chunk(chunk, &mut self.bytes);
                Bits::note(&mut self.bits.kv, tokens.clone(), digest(&self.bytes), &mut self.clash);
                if let Some(seal) = plan.seals.iter().find(|seal| seal.from == chunk) {
                    self.bytes.clear();
                    self.inner.read_chunk(seal.to, &mut self.bytes);
                    Bits::note(&mut self.bits.sealed, tokens.clone(), digest(&self.bytes), &mut self.clash);
                }
            }
            if let RowOutcome::Logits(at) = out.outcomes[r] {
                let row = &out.logits[at as usize * vocab..(at as usize + 1) * vocab];
                let bits = digest(&row.iter().flat_map(|x| x.to_bits().to_le_bytes()).collect::<Vec<u8>>());
                Bits::note(&mut self.bits.logits, tokens, bits, &mut self.clash);
            }
        }
    }

    fn read_chunk(&self, chunk: ChunkId, out: &mut Vec<u8>) {
        self.inner.read_chunk(chunk, out);
    }
}

/// 64 bits suffice: a campaign compares pairs, it does not search for collisions.
pub fn digest(bytes: &[u8]) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(bytes)
}
