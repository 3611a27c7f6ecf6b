//! Tree attention: one kernel for decode, chunked prefill and several choices of one prompt.
//!
//! A row's result is defined as follows, and every way to compute it gives these bits. Its visible keys are cut into
//! segments at the absolute multiples of [`kvist_base::SEGMENT`]; inside a segment the chunks are met in ascending
//! order by an online softmax; the states of its segments are folded in ascending order, starting from the first one.

mod ahead;
mod block;
mod codes;
mod kernel;
mod plan;
mod queries;
mod shorts;
mod steps;
mod tile;
mod upcoming;
mod values;

use kvist_base::{LayerKind, RunList};

pub use plan::{AttnPlan, AttnShape, Canary, kv_bytes};

use crate::buffer::SharedMut;
use crate::{Isa, KvPool, Pool};

/// Queries of a step: bf16 `[shift][row][head][head_dim]`, rotated by position plus shift, scaled by the softmax scale
/// times log2(e).
#[derive(Clone, Copy)]
pub struct Queries<'a> {
    pub data: &'a [u16],
    /// The distinct [`kvist_base::Run::shift`]s of the step, in the order of `data`.
    pub shifts: &'a [u32],
}

/// Attention of a layer: `out` is `[row][head][head_dim]`, f32. Rows that see no key get zeros.
///
/// # Panics
/// When `plan` was not built for `runs`, when a length or the layer's shape does not fit it, when a run's shift has no
/// queries or a chunk is outside the pool, or when the machine cannot run `isa`.
#[expect(clippy::too_many_arguments, reason = "the operands of one kernel")]
pub fn attend(
    isa: Isa,
    pool: &Pool,
    plan: &mut AttnPlan,
    runs: &RunList,
    kv: &KvPool,
    layer: usize,
    q: &Queries<'_>,
    out: &mut [f32],
) {
    isa.require();
    let shape = plan.shape;
    let LayerKind::Gqa { heads, dk, dv } = kv.layout().layers[layer].kind;
    assert_eq!((heads, dk, dv), (shape.kv_heads, shape.head_dim, shape.head_dim), "the plan is for another layer");
    let width = plan.rows * shape.heads * shape.head_dim;
    assert_eq!((out.len(), q.data.len()), (width, width * q.shifts.len()));
    plan.restart(runs);
    let partials = SharedMut(plan.partials.as_mut_ptr());
    let plan = &*plan;
    let job = kernel::Job { plan, runs, kv, layer, q, out: SharedMut::new(out), partials };
    pool.run_with_claims(plan.tasks.len(), &|t, claims| {
        // SAFETY: `isa` is available; the lengths were checked above; the plan's tasks write disjoint parts.
        kernel::with_scratch(|scratch| unsafe { kernel::run_task(isa, &job, &plan.tasks[t], claims, scratch) });
    });
}
