//! An executor whose logits are a hash of the path: it reads the pool only through the plan, so a wrong run, mask, copy
//! or slot changes what is generated.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use kvist_base::{
    CHUNK, ChunkLayout, Dtype, Executor, ExecutorInfo, LayerKind, Prepare, Residency, Row, RowOutcome, RunList,
    StepOutput, StepPlan, TokenId,
};

pub const VOCAB: usize = 4096;
/// Ids below this are special in the tokenizer of the embedded model.
pub const SPECIAL: TokenId = 3;
pub const EOS: TokenId = 2;

/// What a test can do to the executor while it runs.
#[derive(Default)]
pub struct Knobs {
    closed: Mutex<bool>,
    waiting: AtomicBool,
    opened: Condvar,
    /// Microseconds per step.
    pub delay: AtomicU64,
    /// A step with this token panics; 0 = none.
    pub panic_on: AtomicU64,
    /// How often it still does.
    pub panics: AtomicU64,
    /// Rows run.
    pub rows: AtomicU64,
    /// Replies to be drawn, each by the next prompt that has none.
    pub scripts: Mutex<VecDeque<Vec<TokenId>>>,
}

impl Knobs {
    pub fn close(&self) {
        *self.closed.lock().unwrap() = true;
    }

    pub fn open(&self) {
        *self.closed.lock().unwrap() = false;
        self.opened.notify_all();
    }

    /// Whether a step waits to be let through.
    pub fn waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }

    fn pass(&self) {
        let mut closed = self.closed.lock().unwrap();
        while *closed {
            self.waiting.store(true, Ordering::Relaxed);
            closed = self.opened.wait(closed).unwrap();
        }
        self.waiting.store(false, Ordering::Relaxed);
        drop(closed);
        std::thread::sleep(Duration::from_micros(self.delay.load(Ordering::Relaxed)));
    }
}

pub struct Fake {
    info: ExecutorInfo,
    /// Hash of the path up to each slot; 0 = no KV.
    slots: Vec<[u64; CHUNK]>,
    knobs: Arc<Knobs>,
    /// One path in this many ends with EOS; 0 = none.
    eos_every: u64,
    /// Tokens that are drawn.
    drawn: Vec<TokenId>,
    /// What is left of a script after each path on it.
    scripted: HashMap<u64, VecDeque<TokenId>>,
}

impl Fake {
    pub fn new(chunks: u32, context: usize, eos_every: u64, drawn: Vec<TokenId>, knobs: Arc<Knobs>) -> Fake {
        let layout = ChunkLayout::new(Dtype::Bf16, &[LayerKind::Gqa { heads: 1, dk: 2, dv: 2 }]);
        let info = ExecutorInfo { vocab: VOCAB, context, layout, chunks, open: None, name: "fake".into() };
        Fake { info, slots: vec![[0; CHUNK]; chunks as usize], knobs, eos_every, drawn, scripted: HashMap::new() }
    }

    /// Hash of the path before a row.
    fn before(&self, runs: &RunList, i: u32, row: &Row) -> u64 {
        let Some(last) = row.position.checked_sub(1) else { return 1 };
        let (place, slot) = (last / CHUNK as u32, last as usize % CHUNK);
        for run in runs.runs.iter().filter(|r| r.rows.contains(&i)) {
            let n = run.chunks.end - run.chunks.start;
            if (run.place..run.place + n).contains(&place) {
                let at = place - run.place;
                assert!(runs.mask(run, at, i) >> slot & 1 == 1, "the token before is masked");
                let hash = self.slots[runs.chunks[(run.chunks.start + at) as usize].0 as usize][slot];
                assert_ne!(hash, 0, "the token before has no KV");
                return hash;
            }
        }
        panic!("no run covers the token before");
    }

    /// The token that a script has here.
    fn scripted(&mut self, hash: u64) -> Option<TokenId> {
        if !self.scripted.contains_key(&hash) {
            let script = self.knobs.scripts.lock().unwrap().pop_front()?;
            self.scripted.insert(hash, script.into());
        }
        let mut rest = self.scripted[&hash].clone();
        let token = rest.pop_front().unwrap_or(EOS);
        self.scripted.insert(mix(hash, u64::from(token) + 1).max(1), rest);
        Some(token)
    }

    fn logits(&mut self, hash: u64, out: &mut Vec<f32>) {
        let start = out.len();
        out.resize(start + VOCAB, -20.0);
        for k in 0..32 {
            let token = self.drawn[mix(hash, k) as usize % self.drawn.len()];
            out[start + token as usize] = 5.0 - k as f32 / 8.0;
        }
        if self.eos_every != 0 && hash.is_multiple_of(self.eos_every) {
            out[start + EOS as usize] = 9.0;
        }
        if let Some(token) = self.scripted(hash) {
            out[start + token as usize] = 9.5;
        }
    }
}

pub fn mix(a: u64, b: u64) -> u64 {
    let mut x = (a ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(0x1234_5678_9abc_def1);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

impl Executor for Fake {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    fn step(&mut self, plan: &StepPlan, _: &dyn Residency, out: &mut StepOutput) {
        self.knobs.pass();
        plan.check(&self.info).unwrap();
        out.outcomes.clear();
        out.logits.clear();
        let bad = self.knobs.panic_on.load(Ordering::Relaxed);
        if bad != 0 && plan.rows.iter().any(|r| u64::from(r.token) == bad) {
            let left = self.knobs.panics.load(Ordering::Relaxed);
            if left > 0 {
                self.knobs.panics.store(left - 1, Ordering::Relaxed);
                panic!("a test asked for this panic");
            }
        }
        for prepare in &plan.prepare {
            match *prepare {
                Prepare::Zero(chunk) => self.slots[chunk.0 as usize] = [0; CHUNK],
                Prepare::Install(_) => unreachable!("there is no tier"),
                Prepare::Copy { from, to, n } => {
                    let copied = self.slots[from.0 as usize];
                    self.slots[to.0 as usize][..n as usize].copy_from_slice(&copied[..n as usize]);
                }
            }
        }
        self.knobs.rows.fetch_add(plan.rows.len() as u64, Ordering::Relaxed);
        let mut logits = 0;
        for (i, row) in plan.rows.iter().enumerate() {
            let hash = mix(self.before(&plan.classes[0], i as u32, row), u64::from(row.token) + 1).max(1);
            if let Some(slot) = row.write {
                self.slots[slot.chunk.0 as usize][slot.slot as usize] = hash;
            }
            out.outcomes.push(if row.logits {
                self.logits(hash, &mut out.logits);
                logits += 1;
                RowOutcome::Logits(logits - 1)
            } else {
                RowOutcome::Done
            });
        }
    }

    fn read_chunk(&self, _: kvist_base::ChunkId, _: &mut Vec<u8>) {}
}
