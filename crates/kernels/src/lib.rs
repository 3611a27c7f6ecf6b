//! Compute kernels: bf16 matrix products, tree attention over KV chunks, norms, RoPE, and the thread pool under them.
//!
//! Numerics contract: on one ISA path, what a kernel computes for a row depends on that row's inputs alone, bit for
//! bit: not on the other rows, their number or order, the threads, or what is shared. Paths may differ in bits.
//!
//! The only crate with `unsafe`: inside are raw tiles and intrinsics, outside every function is safe.

// Packed pairs of bf16 are read as words, element 2i in the low half.
const _: () = assert!(cfg!(target_endian = "little"), "the kernels read packed pairs as little-endian words");

mod attn;
pub mod bf16;
mod buffer;
mod codec;
mod elementwise;
mod isa;
mod kv;
mod matmul;
mod norm;
mod packed;
mod pool;
pub mod probe;
mod quant;
pub mod reference;
mod rope;
mod simd;

pub use attn::{AttnPlan, AttnShape, Canary, Queries, attend, kv_bytes};
pub use elementwise::{Activation, add_bias, add_scaled, gate_mul, round, soft_cap};
pub use isa::Isa;
pub use kv::{ChunkView, KvPool, OutOfMemory};
pub use matmul::matmul;
pub use norm::{rms_norm, rms_norm_heads};
pub use packed::PackedBf16;
pub use pool::Pool;
pub use quant::{PackedQuant, QuantError, QuantKind, QuantRows, RowsMut, TURN, gated_quant, matmul_quant};
pub use rope::{RopeTable, rope, rope_queries};

/// Runs `row(i)` for all rows of `width` elements, several rows to a tile, in the caller when there is little to do.
fn tiles(pool: &Pool, rows: usize, width: usize, row: &(dyn Fn(usize) + Sync)) {
    let some = 8192_usize.div_ceil(width.max(1));
    pool.run(rows.div_ceil(some), &|t| (t * some..rows.min((t + 1) * some)).for_each(row));
}
