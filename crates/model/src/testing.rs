//! Step plans made by hand, for tests and benchmarks that drive an executor without an engine.

pub mod gguf;

use std::ops::Range;

use kvist_base::{
    AllResident, CHUNK, ChunkId, Executor, Gone, Prepare, Residency, Row, RowOutcome, Run, RunList, SEGMENT, Seal,
    Slot, StepOutput, StepPlan, TokenId, low_mask,
};

/// One sequence's rows in a step.
#[derive(Clone, Debug)]
pub struct Part<'a> {
    /// The sequence from its first token on.
    pub tokens: &'a [TokenId],
    /// The chunk of every 64 tokens.
    pub path: &'a [ChunkId],
    /// Positions to compute.
    pub rows: Range<usize>,
    /// Rows below this position have no write slot: their KV is there already.
    pub write_from: usize,
    /// Rows from this position on want logits.
    pub logits_from: usize,
}

/// The plan of these parts, which share every chunk that neighbours have in common. `loose` lets a run cover rows of a
/// sequence that see nothing of its last chunks (their masks are zero there); otherwise each chunk has its own rows.
pub fn plan(parts: &[Part], loose: bool) -> StepPlan {
    let mut out = StepPlan { classes: vec![RunList::default()], ..StepPlan::default() };
    let mut views = Vec::new();
    for part in parts {
        for position in part.rows.clone() {
            let slot = Slot { chunk: part.path[position / CHUNK], slot: (position % CHUNK) as u8 };
            out.rows.push(Row {
                token: part.tokens[position],
                position: position as u32,
                shift: 0,
                write: (position >= part.write_from).then_some(slot),
                logits: position >= part.logits_from,
            });
            let reach = if loose { part.rows.end } else { position + 1 };
            views.push(View { path: &part.path[..reach.div_ceil(CHUNK)], visible: position + 1 });
        }
    }
    runs(&mut out.classes[0], &views, 0..views.len(), 0);
    out
}

/// What a row attends to: the first `visible` tokens of a path.
struct View<'a> {
    path: &'a [ChunkId],
    visible: usize,
}

fn runs(list: &mut RunList, views: &[View], rows: Range<usize>, place: usize) {
    let mut first = rows.start;
    while first < rows.end {
        let chunk_at = |row: usize, place: usize| views[row].path.get(place).copied();
        let same = |end: usize, place: usize| (first..end).all(|row| chunk_at(row, place) == chunk_at(first, place));
        let mut end = first + 1;
        while end < rows.end && same(end + 1, place) {
            end += 1;
        }
        if chunk_at(first, place).is_some() {
            let mut stop = place + 1;
            while !(stop * CHUNK).is_multiple_of(SEGMENT) && chunk_at(first, stop).is_some() && same(end, stop) {
                stop += 1;
            }
            let masks: Vec<u64> = (place..stop)
                .flat_map(|c| {
                    views[first..end].iter().map(move |v| low_mask(v.visible.saturating_sub(c * CHUNK).min(CHUNK)))
                })
                .collect();
            let (chunks, at) = (list.chunks.len() as u32, list.masks.len() as u32);
            list.chunks.extend_from_slice(&views[first].path[place..stop]);
            let full = masks.iter().all(|m| *m == u64::MAX);
            if !full {
                list.masks.extend(masks);
            }
            list.runs.push(Run {
                rows: first as u32..end as u32,
                place: place as u32,
                chunks: chunks..chunks + (stop - place) as u32,
                shift: 0,
                masks: (!full).then_some(at),
            });
            runs(list, views, first..end, stop);
        }
        first = end;
    }
}

/// The chunks `first`, `first + 1`, ... that hold `tokens` tokens.
pub fn path(first: u32, tokens: usize) -> Vec<ChunkId> {
    (first..).take(tokens.div_ceil(CHUNK)).map(ChunkId).collect()
}

/// `plan` where sealed chunks are encoded, with the open form of chunk `i` as chunk `chunks + i`: there must be as many.
fn encoded(plan: &StepPlan, chunks: u32) -> StepPlan {
    let open = |chunk: ChunkId| ChunkId(chunks + chunk.0);
    let mut out = plan.clone();
    for prepare in &mut out.prepare {
        *prepare = match *prepare {
            Prepare::Zero(chunk) => Prepare::Zero(open(chunk)),
            Prepare::Copy { from, to, n } => Prepare::Copy { from: open(from), to: open(to), n },
            install @ Prepare::Install(_) => install,
        };
    }
    for slot in out.rows.iter_mut().filter_map(|row| row.write.as_mut()) {
        let to = slot.chunk;
        slot.chunk = open(to);
        if slot.slot as usize == CHUNK - 1 {
            out.seals.push(Seal { from: open(to), to });
        }
    }
    out.arriving.extend(plan.arriving.iter().copied().map(open));
    let list = &plan.classes[0];
    out.classes[0] = RunList::default();
    for run in &list.runs {
        for c in 0..run.chunks.end - run.chunks.start {
            let (chunk, place) = (list.chunks[(run.chunks.start + c) as usize], run.place + c);
            for (chunk, own) in [(chunk, false), (open(chunk), true)] {
                let out = &mut out.classes[0];
                let sees = |row: u32| (plan.rows[row as usize].position as usize / CHUNK == place as usize) == own;
                let masks: Vec<u64> =
                    run.rows.clone().map(|row| if sees(row) { list.mask(run, c, row) } else { 0 }).collect();
                if masks.iter().any(|mask| *mask != 0) {
                    let (at, first) = (out.masks.len() as u32, out.chunks.len() as u32);
                    out.chunks.push(chunk);
                    out.masks.extend(masks);
                    out.runs.push(Run { place, chunks: first..first + 1, masks: Some(at), ..run.clone() });
                }
            }
        }
    }
    out
}

/// Knows chunks by the ids of plans made by hand.
struct ByHand<'a>(&'a dyn Residency, u32);

impl Residency for ByHand<'_> {
    fn fill(&self, layer: usize, chunk: ChunkId, to: &mut [u8]) -> Result<bool, Gone> {
        self.0.fill(layer, ChunkId(chunk.0 % self.1), to).map_err(|_| Gone(chunk))
    }
}

/// Runs `plan`, whose lists of window classes are made here, and checks that each row became what it should. Where the
/// executor encodes sealed chunks, the plan names them, and there are as many open ones.
pub fn step(executor: &mut dyn Executor, plan: &StepPlan, residency: &dyn Residency) -> StepOutput {
    let (chunks, encodes) = (executor.info().chunks, executor.info().open.is_some());
    let mut plan = if encodes { encoded(plan, chunks) } else { plan.clone() };
    plan.fill_windows(&executor.info().layout.windows);
    let mut out = StepOutput::default();
    executor.step(&plan, &ByHand(residency, chunks), &mut out);
    for outcome in &mut out.outcomes {
        if let RowOutcome::Lost(chunk) = outcome {
            chunk.0 %= chunks;
        }
    }
    assert_eq!(out.outcomes.len(), plan.rows.len());
    let wanted = out.outcomes.iter().filter(|o| matches!(o, RowOutcome::Logits(_))).count();
    assert_eq!(out.logits.len(), wanted * executor.info().vocab);
    out
}

/// Computes a lone sequence on chunks 0, 1, ..., cut into steps at `cuts` (ascending positions). Returns the logits of
/// the positions from `logits_from` on, `[position][vocab]`.
pub fn logits(executor: &mut dyn Executor, tokens: &[TokenId], cuts: &[usize], logits_from: usize) -> Vec<f32> {
    let path = path(0, tokens.len());
    let mut out = Vec::new();
    let mut from = 0;
    for &to in cuts.iter().chain([&tokens.len()]) {
        if to == from {
            continue;
        }
        let mut plan = plan(&[Part { tokens, path: &path, rows: from..to, write_from: 0, logits_from }], false);
        plan.prepare = path
            .iter()
            .enumerate()
            .filter(|(i, _)| (from..to).contains(&(i * CHUNK)))
            .map(|(_, &c)| Prepare::Zero(c))
            .collect();
        out.extend(step(executor, &plan, &AllResident).logits);
        from = to;
    }
    out
}

/// The directories of reference models below `dir` that have a `config.json`, in order.
pub fn fixtures(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries.map(|e| e.path()).filter(|p| p.join("config.json").exists()).collect();
    found.sort();
    found
}
