//! The decoder block, once, for every family and every executor.

use kvist_base::{
    ChunkId, ExecutorInfo, Prepare, Residency, Row, RowOutcome, Slot, StepCounters, StepOutput, StepPlan,
};

use crate::config::Config;
use crate::lost::Lost;
use crate::weights::{Linear, Part, Weights};

/// What an executor provides. Buffers are row-major with one row per row of the plan, unless said otherwise.
pub(crate) trait Ops {
    type Matrix;
    /// Activations as a matrix reads them.
    type Input: Default;

    /// Zeroes or copies.
    fn prepare(&mut self, prepare: Prepare);
    /// Has a layer's slices of chunks, which ascend, filled, and adds those that will not come to `gone`.
    fn fill(&mut self, layer: usize, chunks: &[ChunkId], residency: &dyn Residency, gone: &mut Vec<ChunkId>);
    /// Called once per step, before the first layer: rotation angles, tasks of the attention.
    fn begin(&mut self, plan: &StepPlan);

    /// `x` = the rows' entries in the table.
    fn embed(&self, table: &Self::Matrix, rows: &[Row], x: &mut [f32]);
    /// `out` = `x` as `matrix` reads it.
    fn round(&self, x: &[f32], matrix: &Self::Matrix, out: &mut Self::Input);
    /// `out` = RMSNorm of each row of `x`, as `matrix` reads it.
    fn norm(&self, x: &[f32], weight: &[f32], matrix: &Self::Matrix, out: &mut Self::Input);
    /// `y` = `input` times the transposed matrix.
    fn matmul(&self, input: &Self::Input, rows: usize, matrix: &Self::Matrix, y: &mut [f32]);
    /// As [`Ops::matmul`], added to `y`.
    fn matmul_add(&self, input: &Self::Input, rows: usize, matrix: &Self::Matrix, y: &mut [f32]);
    /// Adds `bias` to each row of `y`.
    fn add_bias(&self, y: &mut [f32], bias: &[f32]);
    /// Takes `qkv`, `[row][q | k | v]`, apart.
    fn split(&self, qkv: &[f32], q: &mut [f32], k: &mut [f32], v: &mut [f32]);
    /// RMSNorm of every `weight.len()` elements, in place: heads or rows.
    fn norm_in_place(&self, x: &mut [f32], weight: &[f32]);
    /// `x *= factor`.
    fn scale(&self, x: &mut [f32], factor: f32);
    /// `x += y * factor`.
    fn add_scaled(&self, x: &mut [f32], y: &[f32], factor: f32);
    /// `x = cap * tanh(x / cap)`.
    fn soft_cap(&self, x: &mut [f32], cap: f32);
    /// Rotates the keys by their positions, in place, and stores k and v of every row that has a slot.
    fn rotate_and_write(&mut self, layer: usize, plan: &StepPlan, k: &mut [f32], v: &[f32]);
    /// Encodes what the layer holds of the chunks that the step fills.
    fn seal(&mut self, layer: usize, plan: &StepPlan);
    /// `out` = attention of the queries, rotated by their positions, over the plan's runs: `[row][head][head_dim]`, as `matrix`
    /// reads it.
    fn attend(&mut self, layer: usize, plan: &StepPlan, q: &[f32], matrix: &Self::Matrix, out: &mut Self::Input);
    /// What a canary does to a layer after its attention; nothing in earnest.
    fn after_attention(&mut self, _layer: usize, _plan: &StepPlan, _k: &[f32], _v: &[f32]) {}
    /// `input` = activation(gate) * up, the two halves of `input` times the transposed first matrix of `mlp`, as the last one
    /// reads it. `gate_up` is room.
    fn gate(&self, input: &mut Self::Input, rows: usize, mlp: &Part<Self::Matrix>, gate_up: &mut Vec<f32>);

    /// Makes a slot zero in all layers.
    fn zero_slot(&mut self, slot: Slot);
}

/// Buffers of a step, kept from step to step.
#[derive(Default)]
pub(crate) struct Scratch<I> {
    /// The residual stream.
    x: Vec<f32>,
    qkv: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// `[row][gate | up]`, where they are needed one by one.
    gate_up: Vec<f32>,
    /// What attention or MLP gives, where it cannot be added to `x` as it is.
    branch: Vec<f32>,
    input: I,
    /// The rows of `x` whose logits are wanted.
    last: Vec<f32>,
    lost: Lost,
    /// Chunks that are still arriving.
    arriving: Vec<ChunkId>,
}

/// Runs one step.
pub(crate) fn forward<O: Ops>(
    config: &Config,
    weights: &Weights<O::Matrix>,
    ops: &mut O,
    scratch: &mut Scratch<O::Input>,
    plan: &StepPlan,
    residency: &dyn Residency,
    out: &mut StepOutput,
) {
    let Scratch { x, qkv, q, k, v, gate_up, branch, input, last, lost, arriving } = scratch;
    let rows = plan.rows.len();
    x.resize(rows * config.hidden, 0.0);
    qkv.resize(rows * config.qkv_width(), 0.0);
    q.resize(rows * config.heads * config.head_dim, 0.0);
    k.resize(rows * config.kv_heads * config.head_dim, 0.0);
    v.resize(k.len(), 0.0);
    lost.reset(rows);

    prepare(config.layers, ops, plan, residency, lost);
    arriving.clear();
    arriving.extend(plan.arriving.iter().filter(|&&chunk| !lost.is_lost(chunk)));
    ops.begin(plan);
    ops.embed(&weights.embedding, &plan.rows, x);
    let scales = &config.block.scales;
    if scales.embedding != 1.0 {
        ops.scale(x, scales.embedding);
    }
    for (l, layer) in weights.layers.iter().enumerate() {
        if lost.all() {
            break;
        }
        read(ops, &layer.attention, x, input);
        ops.matmul(input, rows, &layer.attention.input.matrix, qkv);
        if let Some(bias) = &layer.attention.input.bias {
            ops.add_bias(qkv, bias);
        }
        ops.split(qkv, q, k, v);
        if let Some([q_norm, k_norm]) = &layer.qk_norm {
            ops.norm_in_place(q, q_norm);
            ops.norm_in_place(k, k_norm);
        }
        ops.rotate_and_write(l, plan, k, v);
        ops.seal(l, plan);
        fill(l, ops, plan, residency, arriving, lost);
        ops.attend(l, plan, q, &layer.attention.output.matrix, input);
        ops.after_attention(l, plan, k, v);
        leave(ops, &layer.attention, rows, input, scales.residual, branch, x);

        read(ops, &layer.mlp, x, input);
        assert!(layer.mlp.input.bias.is_none(), "no family has one there");
        ops.gate(input, rows, &layer.mlp, gate_up);
        leave(ops, &layer.mlp, rows, input, scales.residual, branch, x);
    }

    out.gone.clear();
    out.gone.extend_from_slice(lost.chunks());

    // The last norm and the widest matrix only for rows whose logits are wanted.
    out.outcomes.clear();
    last.clear();
    let mut wanted = 0;
    for (i, row) in plan.rows.iter().enumerate() {
        out.outcomes.push(match lost.row(i) {
            Some(chunk) => RowOutcome::Lost(chunk),
            None if row.logits => {
                last.extend_from_slice(&x[i * config.hidden..(i + 1) * config.hidden]);
                wanted += 1;
                RowOutcome::Logits(wanted - 1)
            }
            None => RowOutcome::Done,
        });
    }
    let wanted = wanted as usize;
    out.logits.resize(wanted * config.vocab, 0.0);
    if wanted > 0 {
        ops.norm(last, &weights.final_norm, weights.output(), input);
        ops.matmul(input, wanted, weights.output(), &mut out.logits);
        if scales.logit_divisor != 1.0 {
            ops.scale(&mut out.logits, 1.0 / scales.logit_divisor);
        }
        if let Some(cap) = config.block.logit_cap {
            ops.soft_cap(&mut out.logits, cap);
        }
    }
    if lost.any() {
        for (i, row) in plan.rows.iter().enumerate().filter(|(i, _)| lost.row(*i).is_some()) {
            debug_assert!(matches!(out.outcomes[i], RowOutcome::Lost(_)));
            row.write.into_iter().for_each(|slot| ops.zero_slot(slot));
        }
        let lost_in =
            |chunk| (0..rows).any(|i| lost.row(i).is_some() && plan.rows[i].write.is_some_and(|s| s.chunk == chunk));
        for seal in plan.seals.iter().filter(|seal| lost_in(seal.from)) {
            ops.prepare(Prepare::Zero(seal.to));
        }
    }
}

/// `input` = what a part's first matrix reads of the residual stream.
fn read<O: Ops>(ops: &O, part: &Part<O::Matrix>, x: &[f32], input: &mut O::Input) {
    let matrix = &part.input.matrix;
    match &part.norm {
        Some(weight) => ops.norm(x, weight, matrix, input),
        None => ops.round(x, matrix, input),
    }
}

/// Out of a part: its last matrix times `input`, normed and scaled as the family wants, is added to `x`.
fn leave<O: Ops>(
    ops: &O,
    part: &Part<O::Matrix>,
    rows: usize,
    input: &O::Input,
    factor: f32,
    branch: &mut Vec<f32>,
    x: &mut [f32],
) {
    let Linear { matrix, bias } = &part.output;
    let direct = part.post_norm.is_none() && factor == 1.0;
    if direct {
        ops.matmul_add(input, rows, matrix, x);
    } else {
        branch.resize(x.len(), 0.0);
        ops.matmul(input, rows, matrix, branch);
    }
    let y = if direct { &mut *x } else { branch.as_mut_slice() };
    if let Some(bias) = bias {
        ops.add_bias(y, bias);
    }
    if let Some(weight) = &part.post_norm {
        ops.norm_in_place(y, weight);
    }
    if !direct {
        ops.add_scaled(x, branch, factor);
    }
}

/// Has slices filled; what does not come is lost, and leaves `chunks`.
fn fill<O: Ops>(
    layer: usize,
    ops: &mut O,
    plan: &StepPlan,
    residency: &dyn Residency,
    chunks: &mut Vec<ChunkId>,
    lost: &mut Lost,
) {
    if chunks.is_empty() {
        return;
    }
    let mut gone = Vec::new();
    ops.fill(layer, chunks, residency, &mut gone);
    if !gone.is_empty() {
        gone.sort_unstable();
        chunks.retain(|chunk| !gone.contains(chunk));
        gone.into_iter().for_each(|chunk| lost.chunk(plan, chunk));
    }
}

/// Zeroes, copies and installs chunks. A copy needs its source whole, so one that is still arriving is waited for in all
/// layers; if it is lost, the copy is lost with it and stays zero.
fn prepare<O: Ops>(layers: usize, ops: &mut O, plan: &StepPlan, residency: &dyn Residency, lost: &mut Lost) {
    let arrives = |ops: &mut O, mut chunks: Vec<ChunkId>, lost: &mut Lost| {
        chunks.sort_unstable();
        (0..layers).for_each(|layer| fill(layer, ops, plan, residency, &mut chunks, lost));
    };
    let installed = plan.prepare.iter().filter_map(|prepare| match prepare {
        Prepare::Install(chunk) => Some(*chunk),
        Prepare::Zero(_) | Prepare::Copy { .. } => None,
    });
    arrives(ops, installed.collect(), lost);
    for &prepare in &plan.prepare {
        if let Prepare::Copy { from, to, n } = prepare {
            if !lost.is_lost(from) && plan.arriving.contains(&from) {
                arrives(ops, vec![from], lost);
            }
            if lost.is_lost(from) {
                lost.copy(plan, from, to, n as usize);
                continue;
            }
        }
        if !matches!(prepare, Prepare::Install(_)) {
            ops.prepare(prepare);
        }
    }
}

/// Bytes of KV that the plan's attention reads, all layers together.
pub(crate) fn counters(info: &ExecutorInfo, plan: &StepPlan) -> StepCounters {
    let open = info.open.as_ref().map(|open| (info.chunks, &open.layout));
    let mut total = StepCounters::default();
    for (class, runs) in plan.classes.iter().enumerate() {
        let StepCounters { kv_bytes_read, kv_bytes_unshared } =
            kvist_kernels::kv_bytes(runs, &info.layout, open, class);
        total.kv_bytes_read += kv_bytes_read;
        total.kv_bytes_unshared += kv_bytes_unshared;
    }
    total
}
