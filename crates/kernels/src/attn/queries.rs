//! kv16: queries in 16 bits.
//!
//! A query row becomes 16 bits under one f32 scale, so that its products with K [add up](super::shorts) as integers, exactly
//! and on every path alike. Sums are bounded by the lengths of both as vectors (Cauchy-Schwarz). Half a unit is 2^-16 of
//! the row's length, where rounding to bf16 is off by up to 2^-9 of each element.

use super::shorts::{LEAST, MOST};
use crate::bf16;
use crate::codec::LONGEST;
use crate::simd::{PANEL, ROUND};

/// A query row as pairs of element `i` and element `i + len / 2`, in 16 bits, and what these stand for, over their values.
///
/// # Safety
/// The row has an even length, and `to` room for half as many words.
#[inline(always)]
pub(super) unsafe fn query(q: &[u16], to: *mut u32) -> f32 {
    // In lanes, so that the sum is the same on every path.
    let mut tops = [0; PANEL];
    let (whole, rest) = q.as_chunks::<PANEL>();
    for some in whole {
        for (top, &x) in tops.iter_mut().zip(some) {
            *top = (x & 0x7fff).max(*top);
        }
    }
    let top = rest.iter().map(|x| x & 0x7fff).chain(tops).fold(0, u16::max);
    let top = bf16::to_f32(top).min(MOST);
    if top < LEAST {
        // SAFETY: the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(to, q.len() / 2).fill(0) };
        return 0.0;
    }
    let over = 1.0 / top;
    let mut squares = [0.0; PANEL];
    let square = |x: u16| (bf16::to_f32(x) * over) * (bf16::to_f32(x) * over);
    for some in whole {
        for (sum, &x) in squares.iter_mut().zip(some) {
            *sum += square(x);
        }
    }
    let squares = squares.iter().sum::<f32>() + rest.iter().map(|&x| square(x)).sum::<f32>();
    // Rounding makes each element longer by half at most, and the sum is off by a little.
    let most = (((1_usize << 31) / LONGEST - 1) as f32) * (1.0 - 1e-5) - (q.len() as f32).sqrt();
    let over = over * (most / squares.sqrt().min(MOST));
    let (a, b) = q.split_at(q.len() / 2);
    for (i, (&a, &b)) in a.iter().zip(b).enumerate() {
        let [a, b] = [a, b].map(|x| (bf16::to_f32(x) * over + ROUND).to_bits());
        // SAFETY: the caller's contract.
        unsafe { *to.add(i) = a & 0xffff | b << 16 };
    }
    1.0 / over
}
