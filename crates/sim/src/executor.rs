//! An executor whose "KV" is a hash chain of token ids: a row that attends to anything but exactly its own prefix is
//! caught at once, and its "logits" are a function of that prefix. Those of a row behind a cut are a function of the KV
//! that was carried over it, which must have been born where the row is told.

use kvist_base::{
    CHUNK, ChunkId, ChunkLayout, Dtype, Executor, ExecutorInfo, Gone, LayerKind, Micros, OpenPool, Prepare, Residency,
    RowOutcome, StepCounters, StepOutput, StepPlan, TokenId,
};

use crate::random::mix;

/// What a step takes: `a + b * rows + c * attended`, as the engine's budget believes of real machines.
#[derive(Clone, Copy, Debug)]
pub struct CostModel {
    pub step: Micros,
    pub row: Micros,
    /// Per thousand tokens attended to.
    pub kilotoken: Micros,
}

/// The simulated language model: logits as a function of the prefix.
#[derive(Clone, Copy, Debug)]
pub struct SimModel {
    pub vocab: usize,
    pub seed: u64,
}

impl SimModel {
    /// State after `tokens`, from the state before them.
    pub fn state(&self, before: u64, token: TokenId) -> u64 {
        mix(before ^ mix(u64::from(token) + 1)).wrapping_add(self.seed)
    }

    pub fn start(&self) -> u64 {
        mix(self.seed)
    }

    /// Appends one row of logits.
    pub fn logits(&self, state: u64, out: &mut Vec<f32>) {
        out.extend((0..self.vocab as u64).map(|i| (mix(state ^ mix(i)) % 4096) as f32 / 512.0));
    }
}

/// Bytes of a slot.
const CELL: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Cell {
    token: TokenId,
    /// Where its token stood when it was computed, in the whole conversation.
    position: u32,
    state: u64,
}

/// A slot that a row attends to, and where it is told that the slot's token was born.
struct Seen {
    place: u32,
    birth: u32,
    chunk: ChunkId,
    cell: Option<Cell>,
}

#[derive(Clone)]
pub struct SimExecutor {
    pub model: SimModel,
    pub cost: CostModel,
    info: ExecutorInfo,
    cells: Vec<[Option<Cell>; CHUNK]>,
    /// What went wrong, in words; empty = every row saw exactly its prefix.
    pub violations: Vec<String>,
    /// Simulated duration of the last step.
    pub took: Micros,
    /// Chunks that the last step reported as lost.
    lost: Vec<ChunkId>,
}

impl SimExecutor {
    pub fn new(model: SimModel, cost: CostModel, chunks: u32, context: usize) -> Self {
        let layout = ChunkLayout::new(Dtype::Bf16, &[LayerKind::Gqa { heads: 1, dk: 4, dv: 4 }]);
        let info = ExecutorInfo { vocab: model.vocab, context, layout, chunks, open: None, name: "simulated".into() };
        let cells = vec![[None; CHUNK]; chunks as usize];
        SimExecutor { model, cost, info, cells, violations: Vec::new(), took: 0, lost: Vec::new() }
    }

    /// The same with sealed chunks encoded: rows are written to `open` chunks of their own.
    pub fn with_open(mut self, open: u32) -> Self {
        self.info.open = Some(OpenPool { layout: self.info.layout.clone(), chunks: open });
        self.cells.resize((self.info.chunks + open) as usize, [None; CHUNK]);
        self
    }

    /// Whether a row at `position` may attend to `chunk` as the one at `key`: to the open chunk in which it lies and to
    /// sealed ones before it.
    fn in_form(&self, chunk: ChunkId, key: u32, position: u32) -> bool {
        let own = key as usize / CHUNK == position as usize / CHUNK;
        self.info.open.is_none() || own == (chunk.0 >= self.info.chunks)
    }

    /// The engine has been told: what was lost is gone for good, and who reads it again is caught.
    pub fn forget_lost(&mut self) {
        for chunk in self.lost.drain(..) {
            self.cells[chunk.0 as usize] = [None; CHUNK];
        }
    }

    /// Puts what comes from a tier into a chunk: of each slot state, token and position.
    fn fill(&mut self, chunk: ChunkId, residency: &dyn Residency) -> Result<(), Gone> {
        let mut bytes = [0; CHUNK * CELL];
        if residency.fill(0, chunk, &mut bytes)? {
            let number = |at: &[u8]| u32::from_le_bytes(at.try_into().expect("four bytes"));
            for (cell, at) in self.cells[chunk.0 as usize].iter_mut().zip(bytes.chunks_exact(CELL)) {
                let state = u64::from_le_bytes(at[..8].try_into().expect("eight bytes"));
                *cell = Some(Cell { token: number(&at[8..12]), position: number(&at[12..]), state });
            }
        }
        Ok(())
    }

    fn prepare(&mut self, plan: &StepPlan, residency: &dyn Residency, lost: &mut Vec<(ChunkId, ChunkId)>) {
        for prepare in &plan.prepare {
            match *prepare {
                Prepare::Install(chunk) => lost.extend(self.fill(chunk, residency).err().map(|_| (chunk, chunk))),
                Prepare::Zero(chunk) => self.cells[chunk.0 as usize] = [None; CHUNK],
                Prepare::Copy { from, to, .. } if lost.iter().any(|l| l.0 == from) => {
                    let blame = lost.iter().find(|l| l.0 == from).expect("just found").1;
                    lost.push((to, blame));
                }
                Prepare::Copy { from, to, n } => {
                    let source = self.cells[from.0 as usize];
                    self.cells[to.0 as usize][..n as usize].copy_from_slice(&source[..n as usize]);
                    if source[..n as usize].contains(&None) {
                        self.violations.push(format!("{n} slots of {from} copied before they are computed"));
                    }
                }
            }
        }
    }

    /// Everything that a row attends to, in order of place.
    fn visible(&self, plan: &StepPlan, row: u32) -> Vec<Seen> {
        let list = &plan.classes[0];
        let mut seen = Vec::new();
        for run in list.runs.iter().filter(|r| r.rows.contains(&row)) {
            for c in 0..run.chunks.end - run.chunks.start {
                let chunk = list.chunks[(run.chunks.start + c) as usize];
                let mask = list.mask(run, c, row);
                for slot in (0..CHUNK).filter(|s| mask >> s & 1 == 1) {
                    let place = (run.place + c) * CHUNK as u32 + slot as u32;
                    let cell = self.cells[chunk.0 as usize][slot];
                    seen.push(Seen { place, birth: place + run.shift, chunk, cell });
                }
            }
        }
        seen
    }
}

impl Executor for SimExecutor {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    fn step(&mut self, plan: &StepPlan, residency: &dyn Residency, out: &mut StepOutput) {
        plan.check(&self.info).expect("a valid plan");
        // Each lost chunk, each copy of one and what is sealed from it, with the chunk that is to blame.
        let mut lost: Vec<(ChunkId, ChunkId)> = Vec::new();
        lost.extend(plan.arriving.iter().filter(|&&c| self.fill(c, residency).is_err()).map(|&c| (c, c)));
        self.prepare(plan, residency, &mut lost);
        out.gone.clear();
        out.gone.extend(lost.iter().map(|l| l.0));
        for seal in &plan.seals {
            let blame = lost.iter().find(|l| l.0 == seal.from).map(|l| l.1);
            lost.extend(blame.map(|blame| (seal.to, blame)));
        }
        out.outcomes.clear();
        out.outcomes.resize(plan.rows.len(), RowOutcome::Done);
        out.logits.clear();
        let mut states = vec![0; plan.rows.len()];
        // A row may attend to what another row of the same step writes at a lower position.
        let mut order: Vec<usize> = (0..plan.rows.len()).collect();
        order.sort_by_key(|&r| (plan.rows[r].position, plan.rows[r].write.is_none()));
        let mut attended = 0;
        for r in order {
            let row = plan.rows[r];
            if let Some(slot) = row.write {
                let cell = Cell { token: row.token, position: row.position + row.shift, state: 0 };
                self.cells[slot.chunk.0 as usize][slot.slot as usize] = Some(cell);
            }
            let seen = self.visible(plan, r as u32);
            attended += seen.len();
            if let Some(&(_, blame)) = seen.iter().find_map(|s| lost.iter().find(|l| l.0 == s.chunk)) {
                out.outcomes[r] = RowOutcome::Lost(blame);
                continue;
            }
            let mut state = self.model.start();
            let carried = row.shift > 0;
            for (i, &Seen { place, birth, chunk, cell }) in seen.iter().enumerate() {
                let Some(cell) = cell else {
                    self.violations.push(format!("row {r} attends to an empty slot of {chunk} at {place}"));
                    break;
                };
                if !self.in_form(chunk, place, row.position) {
                    self.violations.push(format!("row {r} at {} sees {place} in {chunk}", row.position));
                    break;
                }
                let last = i + 1 == seen.len();
                let before = if carried && !last { state ^ mix(cell.state) } else { state };
                state = self.model.state(before, cell.token);
                let own = last && row.write.is_some();
                let prefix = carried || place as usize == i && (own || cell.state == state);
                if cell.position != birth || !prefix {
                    self.violations.push(format!("row {r}: {cell:?} of {chunk} is not its prefix at {place}"));
                    break;
                }
            }
            if !carried && seen.len() != row.position as usize + 1
                || seen.last().is_none_or(|seen| seen.place != row.position)
            {
                self.violations.push(format!("row {r} at {} attends to {} tokens", row.position, seen.len()));
            }
            states[r] = state;
            if let Some(slot) = row.write {
                let cell = Cell { token: row.token, position: row.position + row.shift, state };
                self.cells[slot.chunk.0 as usize][slot.slot as usize] = Some(cell);
                let seal = plan.seals.iter().find(|seal| seal.from == slot.chunk && slot.slot as usize == CHUNK - 1);
                if let Some(seal) = seal {
                    self.cells[seal.to.0 as usize] = self.cells[seal.from.0 as usize];
                }
            }
        }
        for (r, row) in plan.rows.iter().enumerate() {
            if let (RowOutcome::Lost(_), Some(slot)) = (out.outcomes[r], row.write) {
                self.cells[slot.chunk.0 as usize][slot.slot as usize] = None;
            } else if row.logits && out.outcomes[r] == RowOutcome::Done {
                out.outcomes[r] = RowOutcome::Logits((out.logits.len() / self.model.vocab) as u32);
                self.model.logits(states[r], &mut out.logits);
            }
        }
        lost.retain(|(_, blame)| out.outcomes.contains(&RowOutcome::Lost(*blame)));
        self.lost = lost.into_iter().map(|l| l.0).collect();
        let CostModel { step, row, kilotoken } = self.cost;
        self.took = step + row * plan.rows.len() as Micros + kilotoken * attended as Micros / 1000;
        out.counters = StepCounters::default();
    }

    fn read_chunk(&self, chunk: ChunkId, out: &mut Vec<u8>) {
        for cell in self.cells[chunk.0 as usize] {
            let Cell { token, position, state } = cell.unwrap_or(Cell { token: 0, position: 0, state: 0 });
            out.extend(state.to_le_bytes().into_iter().chain(token.to_le_bytes()).chain(position.to_le_bytes()));
        }
    }
}
