//! What is left between the matrix products: SwiGLU, rounding, bias.

use crate::buffer::SharedMut;
use crate::norm::store_bf16_n;
use crate::simd::{Simd, isa_entry};
use crate::{Isa, Pool};

/// Elements of one tile.
const TILE: usize = 8192;

/// `out = gate / (1 + e^-gate) * up`, rounded to bf16.
///
/// # Panics
/// When the lengths differ or the machine cannot run `isa`.
pub fn silu_mul(isa: Isa, pool: &Pool, gate: &[f32], up: &[f32], out: &mut [u16]) {
    isa.require();
    assert_eq!((gate.len(), up.len()), (out.len(), out.len()));
    let (n, out) = (out.len(), SharedMut::new(out));
    pool.run(n.div_ceil(TILE), &|t| {
        let (a, b) = (t * TILE, n.min((t + 1) * TILE));
        // SAFETY: `isa` is available; tiles write disjoint parts of `out`.
        unsafe { silu_part(isa, &gate[a..b], &up[a..b], out.get().add(a)) };
    });
}

/// Rounds to bf16.
///
/// # Panics
/// When the lengths differ or the machine cannot run `isa`.
pub fn round_bf16(isa: Isa, pool: &Pool, x: &[f32], out: &mut [u16]) {
    isa.require();
    assert_eq!(x.len(), out.len());
    let (n, out) = (out.len(), SharedMut::new(out));
    pool.run(n.div_ceil(TILE), &|t| {
        let (a, b) = (t * TILE, n.min((t + 1) * TILE));
        // SAFETY: `isa` is available; tiles write disjoint parts of `out`.
        unsafe { round_part(isa, &x[a..b], out.get().add(a)) };
    });
}

/// `x += bias` for every row of `bias.len()` elements.
pub fn add_bias(x: &mut [f32], bias: &[f32]) {
    assert_eq!(x.len() % bias.len(), 0);
    for row in x.chunks_exact_mut(bias.len()) {
        add(row, bias);
    }
}

/// `x += y`.
pub fn add(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len());
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

isa_entry!(fn silu_part(gate: &[f32], up: &[f32], out: *mut u16) = silu);
isa_entry!(fn round_part(x: &[f32], out: *mut u16) = round);

/// # Safety
/// The ISA of `S` is available, `up` is as long as `gate` and `out` valid for as many elements.
#[inline(always)]
unsafe fn silu<S: Simd>(gate: &[f32], up: &[f32], out: *mut u16) {
    let whole = gate.len() / S::LANES * S::LANES;
    let rest = gate.len() - whole;
    // SAFETY: offsets stay inside the slices.
    unsafe {
        for i in (0..whole).step_by(S::LANES) {
            let y = silu_lanes::<S>(S::load(gate.as_ptr().add(i)), S::load(up.as_ptr().add(i)));
            S::store_bf16(out.add(i), y);
        }
        if rest > 0 {
            // The same arithmetic for the tail: an element's bits must not depend on its place in the batch.
            let (g, u) = (S::load_n(gate.as_ptr().add(whole), rest), S::load_n(up.as_ptr().add(whole), rest));
            store_bf16_n::<S>(out.add(whole), rest, silu_lanes::<S>(g, u));
        }
    }
}

/// # Safety
/// The ISA of `S` is available.
#[inline(always)]
unsafe fn silu_lanes<S: Simd>(gate: S::F, up: S::F) -> S::F {
    // SAFETY: passed on.
    unsafe {
        let e = S::exp2(S::mul(gate, S::splat(-std::f32::consts::LOG2_E)));
        S::mul(S::div(gate, S::add(S::splat(1.0), e)), up)
    }
}

/// # Safety
/// The ISA of `S` is available and `out` valid for as many elements as `x`.
#[inline(always)]
unsafe fn round<S: Simd>(x: &[f32], out: *mut u16) {
    let whole = x.len() / S::LANES * S::LANES;
    // SAFETY: offsets stay inside the slices.
    unsafe {
        for i in (0..whole).step_by(S::LANES) {
            S::store_bf16(out.add(i), S::load(x.as_ptr().add(i)));
        }
        let rest = x.len() - whole;
        if rest > 0 {
            store_bf16_n::<S>(out.add(whole), rest, S::load_n(x.as_ptr().add(whole), rest));
        }
    }
}
