//! RMSNorm, over whole rows and over heads.

use crate::buffer::SharedMut;
use crate::quant::bytes::Encode;
use crate::quant::packed::GROUP;
use crate::quant::rows::{Group, RowsMut, Target, quantise_group};
use crate::simd::{Simd, isa_entry};
use crate::{Isa, Pool, tiles};

/// `out = x / sqrt(mean(x^2) + eps) * w` per row of `w.len()` elements.
///
/// # Panics
/// When a length does not fit or the machine cannot run `isa`.
pub fn rms_norm(isa: Isa, pool: &Pool, x: &[f32], w: &[f32], eps: f32, out: RowsMut<'_>) {
    isa.require();
    let n = w.len();
    assert!(x.len().is_multiple_of(n), "{} elements in rows of {n}", x.len());
    let out = out.target(isa, x.len() / n, n);
    tiles(pool, x.len() / n, n, &|row| {
        let x = &x[row * n..(row + 1) * n];
        // SAFETY: `isa` is available; each row is written once.
        unsafe {
            match out {
                Target::Bf16(out) => norm_bf16(isa, x, w, eps, out.get().add(row * n)),
                Target::Quant(out) => {
                    let mut scale = 0.0;
                    // Sums over lanes depend on how many there are, which integer products do not look at.
                    norm_scale(isa, x, eps, &mut scale);
                    norm_quant(isa, x, w, scale, out.get().add(row * n / GROUP));
                }
            }
        }
    });
}

/// [`rms_norm`] of every `w.len()` elements in place, in f32: heads of q and k, or whole rows.
///
/// # Panics
/// When a length does not fit or the machine cannot run `isa`.
pub fn rms_norm_heads(isa: Isa, pool: &Pool, x: &mut [f32], w: &[f32], eps: f32) {
    isa.require();
    let n = w.len();
    assert_eq!(x.len() % n, 0);
    let heads = x.len() / n;
    let x = SharedMut::new(x);
    tiles(pool, heads, n, &|head| {
        // SAFETY: `isa` is available; each head is touched once.
        unsafe { norm_in_place(isa, x.slice(head * n, n), w, eps) };
    });
}

isa_entry!(fn norm_bf16(x: &[f32], w: &[f32], eps: f32, out: *mut u16) = row_bf16);
isa_entry!(fn norm_scale(x: &[f32], eps: f32, out: &mut f32) = scale_of);
isa_entry!(fn norm_quant(x: &[f32], w: &[f32], scale: f32, out: *mut Group) = row_quant, with vnni);
isa_entry!(fn norm_in_place(x: &mut [f32], w: &[f32], eps: f32) = row_in_place);

/// `1 / sqrt(mean(x^2) + eps)`: four partial sums per lane, then the lanes; the same for every row of this length.
///
/// # Safety
/// The ISA of `S` is available.
#[inline(always)]
unsafe fn scale<S: Simd>(x: &[f32], eps: f32) -> f32 {
    // SAFETY: offsets stay inside `x`.
    unsafe {
        let mut sums = [S::splat(0.0); 4];
        let whole = x.len() / S::LANES;
        for i in 0..whole {
            let v = S::load(x.as_ptr().add(i * S::LANES));
            sums[i % 4] = S::fma(v, v, sums[i % 4]);
        }
        let v = S::load_n(x.as_ptr().add(whole * S::LANES), x.len() % S::LANES);
        sums[0] = S::fma(v, v, sums[0]);
        let sum = S::sum(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])));
        1.0 / (sum / x.len() as f32 + eps).sqrt()
    }
}

/// # Safety
/// The ISA of `S` is available, `w` is as long as `x` and `out` valid for as many elements.
#[inline(always)]
unsafe fn row_bf16<S: Simd>(x: &[f32], w: &[f32], eps: f32, out: *mut u16) {
    // SAFETY: offsets stay inside the row; the tail goes through an array.
    unsafe {
        let scale = S::splat(scale::<S>(x, eps));
        let (whole, rest) = (x.len() / S::LANES * S::LANES, x.len() % S::LANES);
        for i in (0..whole).step_by(S::LANES) {
            let y = S::mul(S::mul(S::load(x.as_ptr().add(i)), scale), S::load(w.as_ptr().add(i)));
            S::store_bf16(out.add(i), y);
        }
        if rest > 0 {
            let y =
                S::mul(S::mul(S::load_n(x.as_ptr().add(whole), rest), scale), S::load_n(w.as_ptr().add(whole), rest));
            store_bf16_n::<S>(out.add(whole), rest, y);
        }
    }
}

/// # Safety
/// The ISA of `S` is available.
#[inline(always)]
unsafe fn scale_of<S: Simd>(x: &[f32], eps: f32, out: &mut f32) {
    // SAFETY: passed on.
    *out = unsafe { scale::<S>(x, eps) };
}

/// # Safety
/// The ISA of `S` is available, `w` is as long as `x` and `out` valid for as many elements, whole groups.
#[inline(always)]
unsafe fn row_quant<S: Encode>(x: &[f32], w: &[f32], scale: f32, out: *mut Group) {
    // SAFETY: offsets stay inside the row.
    unsafe {
        let scale = S::splat(scale);
        for g in 0..x.len() / GROUP {
            let mut short = [0; GROUP];
            for i in (0..GROUP).step_by(S::LANES) {
                let at = g * GROUP + i;
                let (x, w) = (S::load(x.as_ptr().add(at)), S::load(w.as_ptr().add(at)));
                S::store_bf16(short.as_mut_ptr().add(i), S::mul(S::mul(x, scale), w));
            }
            *out.add(g) = quantise_group::<S>(&short);
        }
    }
}

/// # Safety
/// The ISA of `S` is available and `w` as long as `x`.
#[inline(always)]
unsafe fn row_in_place<S: Simd>(x: &mut [f32], w: &[f32], eps: f32) {
    // SAFETY: offsets stay inside the row.
    unsafe {
        let scale = S::splat(scale::<S>(x, eps));
        let p = x.as_mut_ptr();
        let (whole, rest) = (x.len() / S::LANES * S::LANES, x.len() % S::LANES);
        for i in (0..whole).step_by(S::LANES) {
            S::store(p.add(i), S::mul(S::mul(S::load(p.add(i)), scale), S::load(w.as_ptr().add(i))));
        }
        if rest > 0 {
            let y = S::mul(S::mul(S::load_n(p.add(whole), rest), scale), S::load_n(w.as_ptr().add(whole), rest));
            S::store_n(p.add(whole), rest, y);
        }
    }
}

/// The first `n` lanes, rounded to bf16.
///
/// # Safety
/// The ISA of `S` is available and `out` valid for `n <= LANES` elements.
#[inline(always)]
pub(crate) unsafe fn store_bf16_n<S: Simd>(out: *mut u16, n: usize, x: S::F) {
    // SAFETY: the array holds all lanes of any ISA.
    unsafe {
        let mut all = [0_u16; crate::simd::PANEL];
        S::store_bf16(all.as_mut_ptr(), x);
        std::ptr::copy_nonoverlapping(all.as_ptr(), out, n);
    }
}
