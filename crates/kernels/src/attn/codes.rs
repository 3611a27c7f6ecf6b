//! kv8: what meets the codes of a sealed chunk.
//!
//! A query row times K's scales, and its weights times V's, become 16 bits under one f32 scale for row and chunk: half a
//! unit is 2^-16 of the row's largest, where bf16 would be off by 2^-9 of each. Codes are widened to 16 bits as they are
//! read, a pair to a word, and products are added up as integers, exactly: on every path they are the same.

use super::plan::AttnShape;
use super::shorts::{in_shorts, largest_of};
use super::tile::{Coded, FACTORS, reduce};
use crate::codec::MOST_OF_8;
use crate::quant::dots::Dots;
use crate::simd::{LINE, PANEL};

/// Lines that are asked for with each query row.
const LINES: usize = 4;

/// Vectors of a row side by side.
const TOGETHER: usize = 4;

/// Query rows `at..at + n` of the band times the scales of K, as the rows of the group in 16 bits, a padded row apart, and
/// what these stand for, over their values. Meanwhile lines from `next` on are asked for.
///
/// # Safety
/// As [`super::tile::group`].
#[inline(always)]
pub(super) unsafe fn queries<S: Dots>(
    coded: &Coded,
    (k_scales, sizes): (*const f32, *mut f32),
    shape: AttnShape,
    at: usize,
    n: usize,
    next: Option<*const u8>,
) -> [f32; FACTORS] {
    let (dim, padded) = (shape.head_dim, shape.padded());
    let mut largest = [0.0; FACTORS];
    // SAFETY: the caller's contract. The last vector of a row may be cut short; there is room for whole ones in `rows`.
    unsafe {
        for r in 0..n {
            let (q, out) = (coded.q.add((at + r) * shape.apart_f32()), coded.rows.add(r * padded));
            if let Some(next) = next {
                for line in r * LINES..(r + 1) * LINES {
                    S::prefetch(next.wrapping_add(line * LINE).cast());
                }
            }
            let (mut most, mut i) = (S::splat(0.0), 0);
            while i + TOGETHER * S::LANES <= dim {
                most = products::<S, TOGETHER>(q.add(i), k_scales.add(i), out.add(i), most);
                i += TOGETHER * S::LANES;
            }
            while i + S::LANES <= dim {
                most = products::<S, 1>(q.add(i), k_scales.add(i), out.add(i), most);
                i += S::LANES;
            }
            if i < dim {
                let x = S::mul(S::load_n(q.add(i), dim - i), S::load_n(k_scales.add(i), dim - i));
                S::store(out.add(i), x);
                most = S::larger(x, most);
            }
            S::store(sizes.add(r * PANEL), most);
        }
        reduce::<S, true>(sizes, &mut largest, n);
        in_shorts::<S>(coded.rows, padded, dim, n, largest, largest_of(dim, MOST_OF_8))
    }
}

/// Stores the products of `N` vectors; the largest magnitudes of their lanes, and of `most`.
///
/// # Safety
/// The ISA of `S` is available and the pointers are valid for so many.
#[inline(always)]
unsafe fn products<S: Dots, const N: usize>(a: *const f32, b: *const f32, out: *mut f32, mut most: S::F) -> S::F {
    // SAFETY: the caller's contract.
    unsafe {
        let mut x = [S::splat(0.0); N];
        for (i, x) in x.iter_mut().enumerate() {
            *x = S::mul(S::load(a.add(i * S::LANES)), S::load(b.add(i * S::LANES)));
            S::store(out.add(i * S::LANES), *x);
        }
        for x in x {
            most = S::larger(x, most);
        }
        most
    }
}
