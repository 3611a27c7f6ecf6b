//! kv8: what meets the codes of a sealed chunk.
//!
//! A query row times K's scales, and its weights times V's, become 16 bits under one f32 scale for row and chunk: half a
//! unit is 2^-16 of the row's largest, where bf16 would be off by 2^-9 of each. Where bytes are multiplied as fast as their
//! number allows, codes meet the higher bytes of these and the lower ones; elsewhere they are widened as they are read. Products
//! are added up as integers, exactly: on every path they are the same.

use super::plan::{APART, AttnShape, HEAD_DIM};
use super::shorts::{largest_of, units};
use super::tile::{Coded, FACTORS, reduce};
use crate::codec::MOST_OF_8;
use crate::quant::dots::Dots;
use crate::simd::{LINE, PANEL};

const _: () = assert!(HEAD_DIM.is_multiple_of(4 * PANEL) && HEAD_DIM / 4 <= SECOND, "whole vectors of either half");

/// Lines that are asked for with each query row.
const LINES: usize = 4;

/// Vectors of a row side by side.
const TOGETHER: usize = 4;

/// Words from what codes of K meet first in a query row to what they meet then (see [`Dots::for_codes`]).
pub(super) const SECOND: usize = APART / 2;

/// Query rows `at..at + n` of the band times the scales of K, as the rows of the group in 16 bits, and what these stand for,
/// over their values. Meanwhile lines from `next` on are asked for.
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
    let dim = shape.head_dim;
    let mut largest = [0.0; FACTORS];
    // SAFETY: the caller's contract. There is room for whole vectors of either half in `rows`, and behind queries and scales.
    unsafe {
        for r in 0..n {
            let q = coded.q.add((at + r) * shape.apart_f32());
            if let Some(next) = next {
                for line in r * LINES..(r + 1) * LINES {
                    S::prefetch(next.wrapping_add(line * LINE).cast());
                }
            }
            let (mut most, mut i) = (S::splat(0.0), 0);
            while i + TOGETHER * S::LANES <= dim {
                for x in products::<S, TOGETHER>(q.add(i), k_scales.add(i)) {
                    most = S::larger(x, most);
                }
                i += TOGETHER * S::LANES;
            }
            while i < dim {
                most = S::larger(last_product::<S>(q.add(i), k_scales.add(i), dim - i), most);
                i += S::LANES;
            }
            S::store(sizes.add(r * PANEL), most);
        }
        reduce::<S, true>(sizes, &mut largest, n);
        let (inverse, scales) = units::<S>(largest, n, largest_of(dim, MOST_OF_8));
        let fours = dim.div_ceil(4);
        // Once more, which costs less than to store them meanwhile.
        for (r, &inverse) in inverse[..n].iter().enumerate() {
            let (q, to) = (coded.q.add((at + r) * shape.apart_f32()), coded.rows.add(r * APART));
            let inverse = S::splat(inverse);
            // What is behind the last four is never met.
            for i in (0..fours).step_by(S::LANES) {
                let mut x = [inverse; 4];
                for (quarter, x) in x.iter_mut().enumerate() {
                    let at = quarter * fours + i;
                    *x = S::mul(S::load(q.add(at)), S::load(k_scales.add(at)));
                }
                let [first, second] = S::for_codes::<true>(x, inverse);
                S::store_words(to.add(i), first);
                S::store_words(to.add(SECOND + i), second);
            }
        }
        scales
    }
}

/// The products of `N` vectors.
///
/// # Safety
/// The ISA of `S` is available and the pointers are valid for so many.
#[inline(always)]
unsafe fn products<S: Dots, const N: usize>(a: *const f32, b: *const f32) -> [S::F; N] {
    // SAFETY: the caller's contract.
    unsafe {
        let mut x = [S::splat(0.0); N];
        for (i, x) in x.iter_mut().enumerate() {
            *x = S::mul(S::load(a.add(i * S::LANES)), S::load(b.add(i * S::LANES)));
        }
        x
    }
}

/// The products of the next vector, of which `left` elements are there, or more.
///
/// # Safety
/// As [`products`], of so many elements.
#[inline(always)]
unsafe fn last_product<S: Dots>(a: *const f32, b: *const f32, left: usize) -> S::F {
    let n = left.min(S::LANES);
    // SAFETY: the caller's contract.
    unsafe { S::mul(S::load_n(a, n), S::load_n(b, n)) }
}
