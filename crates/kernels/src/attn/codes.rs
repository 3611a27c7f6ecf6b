//! kv8: what meets the codes of a sealed chunk.
//!
//! A query row times K's scales becomes 16 bits under one f32 scale for row and chunk, as its weights are: half a unit is 2^-16
//! of the row's largest, where bf16 would be off by 2^-9 of each. Where bytes are multiplied as fast as their
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
    let (dim, half) = (shape.head_dim, half(shape.head_dim));
    let (q, apart) = (coded.q, shape.apart_coded());
    let mut largest = [0.0; FACTORS];
    // SAFETY: the caller's contract. There is room for whole vectors of either half in `rows`, and behind scales.
    unsafe {
        let q = q.add(at * apart);
        for i in (0..half).step_by(S::LANES) {
            // All rows with the same scales, which stay in registers.
            let by = [S::load(k_scales.add(i)), S::load(k_scales.add(half + i))];
            for r in 0..n {
                if let Some(next) = next.filter(|_| i == 0) {
                    for line in r * LINES..(r + 1) * LINES {
                        S::prefetch(next.wrapping_add(line * LINE).cast());
                    }
                }
                let size = sizes.add(r * PANEL);
                let most = if i == 0 { S::splat(0.0) } else { S::load(size) };
                let [a, b] = S::load_halves(q.add(r * apart + i));
                // What is no number, times zero, is not larger.
                S::store(size, S::larger(S::mul(a, by[0]), S::larger(S::mul(b, by[1]), most)));
            }
        }
        reduce::<S, true>(sizes, &mut largest, n);
        let (inverse, scales) = units::<S>(largest, n, largest_of(dim, MOST_OF_8));
        // Once more, which costs less than to store them meanwhile. What is behind the last four is never met.
        for i in (0..half / 2).step_by(S::LANES) {
            let mut by = [S::splat(0.0); 4];
            for (quarter, by) in by.iter_mut().enumerate() {
                *by = S::load(k_scales.add(quarter * (half / 2) + i));
            }
            for (r, &inverse) in inverse[..n].iter().enumerate() {
                let (q, to) = (q.add(r * apart + i), coded.rows.add(r * APART + i));
                let ([a, c], [b, d]) = (S::load_halves(q), S::load_halves(q.add(half / 2)));
                let x = [S::mul(a, by[0]), S::mul(b, by[1]), S::mul(c, by[2]), S::mul(d, by[3])];
                let [first, second] = S::for_codes::<true>(x, S::splat(inverse));
                S::store_words(to, first);
                S::store_words(to.add(SECOND), second);
            }
        }
        scales
    }
}

/// Words of a query row that is to meet scales of K: element `i` and element `i + half`, zeros behind the last one.
pub(super) fn half(head_dim: usize) -> usize {
    head_dim.div_ceil(4) * 2
}

/// Such words of a row, with room for whole vectors.
///
/// # Safety
/// `to` has room for [`AttnShape::apart_coded`] words.
#[inline(always)]
pub(super) unsafe fn words(q: &[u16], to: *mut u32) {
    let half = half(q.len());
    // SAFETY: the caller's contract.
    let to = unsafe { std::slice::from_raw_parts_mut(to, half.next_multiple_of(PANEL)) };
    to.fill(0);
    let (low, high) = q.split_at(half.min(q.len()));
    to.iter_mut().zip(low).for_each(|(to, &q)| *to = u32::from(q));
    to.iter_mut().zip(high).for_each(|(to, &q)| *to |= u32::from(q) << 16);
}
