//! What is left between the matrix products: gated activations, rounding, soft-caps, bias.

use crate::buffer::SharedMut;
use crate::norm::store_bf16_n;
use crate::quant::bytes::Encode;
use crate::quant::packed::GROUP;
use crate::quant::rows::{Group, RowsMut, Target, quantise_group};
use crate::simd::{Simd, isa_entry};
use crate::{Isa, Pool};

/// Elements of one tile.
const TILE: usize = 8192;

const _: () = assert!(TILE.is_multiple_of(GROUP));

/// What a gate goes through before it multiplies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^-x)`.
    #[default]
    Silu,
    /// The tanh form of GELU, `x / 2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))`.
    GeluTanh,
}

/// `out = activation(gate) * up`, rounded to bf16.
///
/// # Panics
/// When the lengths differ or the machine cannot run `isa`.
pub fn gate_mul(isa: Isa, pool: &Pool, activation: Activation, gate: &[f32], up: &[f32], out: &mut [u16]) {
    isa.require();
    assert_eq!((gate.len(), up.len()), (out.len(), out.len()));
    let (n, out) = (out.len(), SharedMut::new(out));
    pool.run(n.div_ceil(TILE), &|t| {
        let (a, b) = (t * TILE, n.min((t + 1) * TILE));
        // SAFETY: `isa` is available; tiles write disjoint parts of `out`.
        unsafe { gate_part(isa, activation, &gate[a..b], &up[a..b], out.get().add(a)) };
    });
}

/// `x = cap * tanh(x / cap)`, with an absolute error below `cap * 4e-7`.
///
/// # Panics
/// When the machine cannot run `isa`.
pub fn soft_cap(isa: Isa, pool: &Pool, x: &mut [f32], cap: f32) {
    isa.require();
    let (n, x) = (x.len(), SharedMut::new(x));
    pool.run(n.div_ceil(TILE), &|t| {
        let (a, b) = (t * TILE, n.min((t + 1) * TILE));
        // SAFETY: `isa` is available; tiles are disjoint parts of `x`.
        unsafe { cap_part(isa, x.slice(a, b - a), cap) };
    });
}

/// Writes rows of `k` elements as a matrix reads them.
///
/// # Panics
/// When a length does not fit or the machine cannot run `isa`.
pub fn round(isa: Isa, pool: &Pool, x: &[f32], k: usize, out: RowsMut<'_>) {
    isa.require();
    assert!(k > 0 && x.len().is_multiple_of(k), "{} elements in rows of {k}", x.len());
    let (n, out) = (x.len(), out.target(isa, x.len() / k, k));
    pool.run(n.div_ceil(TILE), &|t| {
        let (a, b) = (t * TILE, n.min((t + 1) * TILE));
        // SAFETY: `isa` is available; tiles write disjoint parts of `out`, and end with groups.
        unsafe {
            match out {
                Target::Bf16(out) => round_part(isa, &x[a..b], out.get().add(a)),
                Target::Quant(out) => quantise_part(isa, &x[a..b], out.get().add(a / GROUP)),
            }
        }
    });
}

/// `x += bias` for every row of `bias.len()` elements.
pub fn add_bias(x: &mut [f32], bias: &[f32]) {
    assert_eq!(x.len() % bias.len(), 0);
    for row in x.chunks_exact_mut(bias.len()) {
        row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
    }
}

/// `x += y * factor`.
pub fn add_scaled(x: &mut [f32], y: &[f32], factor: f32) {
    assert_eq!(x.len(), y.len());
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y * factor);
}

isa_entry!(fn gate_part(activation: Activation, gate: &[f32], up: &[f32], out: *mut u16) = gated);
isa_entry!(fn cap_part(x: &mut [f32], cap: f32) = capped);
isa_entry!(fn round_part(x: &[f32], out: *mut u16) = rounded);
isa_entry!(fn quantise_part(x: &[f32], out: *mut Group) = quantised, with vnni);

/// # Safety
/// The ISA of `S` is available, `up` is as long as `gate` and `out` valid for as many elements.
#[inline(always)]
unsafe fn gated<S: Simd>(activation: Activation, gate: &[f32], up: &[f32], out: *mut u16) {
    let whole = gate.len() / S::LANES * S::LANES;
    let rest = gate.len() - whole;
    // SAFETY: offsets stay inside the slices.
    unsafe {
        for i in (0..whole).step_by(S::LANES) {
            let y = gated_lanes::<S>(activation, S::load(gate.as_ptr().add(i)), S::load(up.as_ptr().add(i)));
            S::store_bf16(out.add(i), y);
        }
        if rest > 0 {
            // The same arithmetic for the tail: an element's bits must not depend on its place in the batch.
            let (g, u) = (S::load_n(gate.as_ptr().add(whole), rest), S::load_n(up.as_ptr().add(whole), rest));
            store_bf16_n::<S>(out.add(whole), rest, gated_lanes::<S>(activation, g, u));
        }
    }
}

/// Both activations are `x / (1 + 2^e)`.
///
/// # Safety
/// The ISA of `S` is available.
#[inline(always)]
pub(crate) unsafe fn gated_lanes<S: Simd>(activation: Activation, gate: S::F, up: S::F) -> S::F {
    use std::f32::consts::{FRAC_2_SQRT_PI, LOG2_E, SQRT_2};
    // SAFETY: passed on.
    unsafe {
        let exponent = match activation {
            Activation::Silu => S::mul(gate, S::splat(-LOG2_E)),
            Activation::GeluTanh => {
                // -2 sqrt(2/pi) log2(e) (x + 0.044715 x^3)
                const SLOPE: f32 = -FRAC_2_SQRT_PI * SQRT_2 * LOG2_E;
                let cubic = S::fma(S::mul(gate, gate), S::splat(0.044_715), S::splat(1.0));
                S::mul(S::mul(gate, cubic), S::splat(SLOPE))
            }
        };
        S::mul(S::div(gate, S::add(S::splat(1.0), S::exp2(exponent))), up)
    }
}

/// # Safety
/// The ISA of `S` is available.
#[inline(always)]
unsafe fn capped<S: Simd>(x: &mut [f32], cap: f32) {
    let whole = x.len() / S::LANES * S::LANES;
    let (p, rest) = (x.as_mut_ptr(), x.len() - whole);
    // SAFETY: offsets stay inside the slice.
    unsafe {
        let slope = std::f32::consts::LOG2_E / cap;
        for i in (0..whole).step_by(S::LANES) {
            S::store(p.add(i), cap_or_nan::<S>(S::load(p.add(i)), slope, cap));
        }
        if rest > 0 {
            S::store_n(p.add(whole), rest, cap_or_nan::<S>(S::load_n(p.add(whole), rest), slope, cap));
        }
    }
}

/// [`cap_lanes`], but NaN stays NaN: it must not become an ordinary logit.
///
/// # Safety
/// The ISA of `S` is available.
#[inline(always)]
unsafe fn cap_or_nan<S: Simd>(x: S::F, slope: f32, cap: f32) -> S::F {
    // SAFETY: passed on.
    unsafe {
        let number = S::keep_ge(x, x, S::splat(1.0));
        S::mul(S::div(number, number), cap_lanes::<S>(x, slope, cap))
    }
}

/// `cap * tanh(x * slope / log2(e))`: `1 - 2 / (1 + e^2y)`, which is exact enough where tanh is used to bound.
///
/// # Safety
/// The ISA of `S` is available.
#[inline(always)]
pub(crate) unsafe fn cap_lanes<S: Simd>(x: S::F, slope: f32, cap: f32) -> S::F {
    // SAFETY: passed on.
    unsafe {
        let e = S::exp2(S::mul(x, S::splat(2.0 * slope)));
        S::sub(S::splat(cap), S::div(S::splat(2.0 * cap), S::add(S::splat(1.0), e)))
    }
}

/// # Safety
/// The ISA of `S` is available and `out` valid for as many elements as `x`.
#[inline(always)]
unsafe fn rounded<S: Simd>(x: &[f32], out: *mut u16) {
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

/// # Safety
/// The ISA of `S` is available and `out` valid for as many elements as `x`, whole groups.
#[inline(always)]
unsafe fn quantised<S: Encode>(x: &[f32], out: *mut Group) {
    for (g, x) in x.as_chunks::<GROUP>().0.iter().enumerate() {
        let mut short = [0; GROUP];
        // SAFETY: offsets stay inside the arrays.
        unsafe {
            for i in (0..GROUP).step_by(S::LANES) {
                S::store_bf16(short.as_mut_ptr().add(i), S::load(x.as_ptr().add(i)));
            }
            *out.add(g) = quantise_group::<S>(&short);
        }
    }
}
