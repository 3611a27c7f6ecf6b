//! kv16: queries in 16 bits.
//!
//! A query row becomes 16 bits under one f32 scale, so that its products with K [add up](super::shorts) as integers, exactly
//! and on every path alike. Sums are bounded by the lengths of both as vectors (Cauchy-Schwarz). Half a unit is 2^-16 of
//! the row's length, where rounding to bf16 is off by up to 2^-9 of each element.

use super::shorts::{LEAST, MOST};
use crate::bf16;
use crate::codec::LONGEST;
use crate::quant::dots::Dots;
use crate::simd::{AT_ONCE, PANEL, ROUND};

/// Rows that are prepared side by side: one after the other each would wait for its sums, its root and its divisions.
pub(super) const TOGETHER: usize = AT_ONCE;

/// Query rows as pairs of element `i` and element `i + len / 2`, in 16 bits, and what these stand for, over their values.
///
/// # Safety
/// The ISA of `S` is available; these are at most [`TOGETHER`] rows of one even length, and `to` has room for half as many
/// words of each.
#[inline(always)]
pub(super) unsafe fn prepare<S: Dots>(rows: &[&[u16]], to: &[*mut u32; TOGETHER]) -> [f32; TOGETHER] {
    let len = rows.first().map_or(0, |row| row.len());
    let (whole, half) = (len / PANEL * PANEL, len / 2);
    let mut tops = [0.0; TOGETHER];
    let (mut over, mut squares, mut by) = ([0.0; TOGETHER], [0.0; TOGETHER], [0.0; TOGETHER]);
    // SAFETY: whole vectors of the rows and of what there is room for.
    unsafe {
        let mut sizes = [S::splat(0.0); TOGETHER];
        for (size, row) in sizes.iter_mut().zip(rows) {
            for i in (0..whole).step_by(S::LANES) {
                *size = S::larger(S::load_bf16(row.as_ptr().add(i)), *size);
            }
        }
        S::reduce_each::<true>(sizes, tops.as_mut_ptr());
        for (r, row) in rows.iter().enumerate() {
            for &x in &row[whole..] {
                tops[r] = if bf16::to_f32(x).abs() > tops[r] { bf16::to_f32(x).abs() } else { tops[r] };
            }
        }
        for (over, top) in over.iter_mut().zip(&mut tops) {
            *top = top.min(MOST);
            *over = 1.0 / *top;
        }
        for (r, row) in rows.iter().enumerate() {
            // In lanes, so that the sum is the same on every path.
            let mut lanes = [0.0; PANEL];
            for first in (0..PANEL).step_by(S::LANES) {
                let mut sum = S::splat(0.0);
                for i in (first..whole).step_by(PANEL) {
                    let x = S::mul(S::load_bf16(row.as_ptr().add(i)), S::splat(over[r]));
                    sum = S::add(sum, S::mul(x, x));
                }
                S::store(lanes.as_mut_ptr().add(first), sum);
            }
            let square = |&x: &u16| (bf16::to_f32(x) * over[r]) * (bf16::to_f32(x) * over[r]);
            squares[r] = lanes.iter().sum::<f32>() + row[whole..].iter().map(square).sum::<f32>();
        }
        // Rounding makes each element longer by half at most, and the sum is off by a little.
        let most = (((1_usize << 31) / LONGEST - 1) as f32) * (1.0 - 1e-5) - (len as f32).sqrt();
        for r in 0..TOGETHER {
            let by_length = over[r] * (most / squares[r].sqrt().min(MOST));
            by[r] = if tops[r] < LEAST { 0.0 } else { by_length };
        }
        for (r, row) in rows.iter().enumerate() {
            let (a, b) = (row.as_ptr(), row.as_ptr().add(half));
            for i in (0..half / S::LANES * S::LANES).step_by(S::LANES) {
                let (a, b, by) = (S::load_bf16(a.add(i)), S::load_bf16(b.add(i)), S::splat(by[r]));
                let (a, b) = (S::add(S::mul(a, by), S::splat(ROUND)), S::add(S::mul(b, by), S::splat(ROUND)));
                S::store_words(to[r].add(i), S::or(S::and(S::bits(a), 0xffff), S::shift(S::bits(b), 16)));
            }
            for i in half / S::LANES * S::LANES..half {
                let [a, b] = [*a.add(i), *b.add(i)].map(|x| (bf16::to_f32(x) * by[r] + ROUND).to_bits());
                *to[r].add(i) = a & 0xffff | b << 16;
            }
        }
    }
    // Of what is no number or not finite nothing is left.
    by.map(|by| if by >= f32::MIN_POSITIVE { 1.0 / by } else { 0.0 })
}
