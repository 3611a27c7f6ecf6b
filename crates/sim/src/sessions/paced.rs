//! An executor that computes nothing but how long it takes.

use kvist_base::{
    ChunkId, ChunkLayout, Dtype, Executor, ExecutorInfo, LayerKind, Micros, Prepare, Residency, RowOutcome,
    StepCounters, StepOutput, StepPlan,
};

use crate::sessions::users::VOCAB;

/// Times in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Costs {
    /// Of a step, of each of its rows, and of a thousand tokens attended to.
    pub step: Micros,
    pub row: Micros,
    pub kilotoken: Micros,
    /// Of the first chunk of a load, and of each chunk.
    pub seek: Micros,
    pub chunk: Micros,
}

impl Default for Costs {
    /// Llama-3.2-1B in Q8_0 on one thread (docs/performance.md), chunks of 2 MiB at 0.6 GB/s.
    fn default() -> Costs {
        Costs { step: 65_000, row: 11_000, kilotoken: 1_300, seek: 300, chunk: 3_500 }
    }
}

pub(super) struct Paced {
    info: ExecutorInfo,
    costs: Costs,
    pub took: Micros,
}

impl Paced {
    /// `layers`: loads may overlap with so many parts of a step.
    pub fn new(chunks: u32, context: usize, layers: usize, costs: Costs) -> Paced {
        let layout = ChunkLayout::new(Dtype::Bf16, &vec![LayerKind::Gqa { heads: 1, dk: 4, dv: 4 }; layers]);
        let info = ExecutorInfo { vocab: VOCAB, context, layout, chunks, open: None, name: "paced".into() };
        Paced { info, costs, took: 0 }
    }
}

impl Executor for Paced {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    fn step(&mut self, plan: &StepPlan, residency: &dyn Residency, out: &mut StepOutput) {
        let installs = plan.prepare.iter().filter_map(|prepare| match prepare {
            Prepare::Install(chunk) => Some(chunk),
            _ => None,
        });
        for &chunk in installs.chain(&plan.arriving) {
            residency.fill(0, chunk, &mut []).expect("the shelf loses nothing");
        }
        out.outcomes.clear();
        out.logits.clear();
        out.gone.clear();
        out.counters = StepCounters::default();
        let mut attended = 0;
        for row in &plan.rows {
            attended += u64::from(row.position) + 1;
            if !row.logits {
                out.outcomes.push(RowOutcome::Done);
                continue;
            }
            out.outcomes.push(RowOutcome::Logits((out.logits.len() / VOCAB) as u32));
            let start = out.logits.len();
            out.logits.resize(start + VOCAB, 0.0);
            out.logits[start + (row.position as usize * 31 + row.token as usize * 17) % VOCAB] = 1.0;
        }
        let Costs { step, row, kilotoken, .. } = self.costs;
        self.took = step + row * plan.rows.len() as Micros + kilotoken * attended / 1000;
    }

    fn read_chunk(&self, _: ChunkId, _: &mut Vec<u8>) {}
}
