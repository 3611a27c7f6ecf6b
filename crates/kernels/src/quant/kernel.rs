//! Rows of activations against a piece of a panel.

use super::QuantKind::{self, Q4_0, Q4K, Q5_0, Q5K, Q6K, Q8_0};
use super::dots::Dots;
use super::packed::GROUP;
use super::rows::Group;
use super::unpack::Piece;
use crate::simd::PANEL;

/// Adds the products of `rows` rows, which are `stride` groups apart in x, to `sums`, `[rows][16]`.
///
/// # Safety
/// The ISA of `S` is available; x holds the rows, as many groups as `piece`; `piece` is of the kind.
#[inline(always)]
pub(crate) unsafe fn add_products<S: Dots>(
    kind: QuantKind,
    piece: &Piece,
    x: *const Group,
    stride: usize,
    rows: usize,
    sums: *mut f32,
) {
    // SAFETY: passed on.
    unsafe {
        match kind {
            Q8_0 => all_rows::<S, true, false, false>(piece, x, stride, rows, sums),
            Q4_0 | Q5_0 => all_rows::<S, false, false, false>(piece, x, stride, rows, sums),
            Q4K | Q5K => all_rows::<S, false, false, true>(piece, x, stride, rows, sums),
            Q6K => all_rows::<S, false, true, false>(piece, x, stride, rows, sums),
        }
    }
}

/// `WIDE`: as in [`Dots`]. `HALVES`: two scales for a group. `LIFT`: the weights are lifted.
///
/// # Safety
/// As [`add_products`].
#[inline(always)]
unsafe fn all_rows<S: Dots, const WIDE: bool, const HALVES: bool, const LIFT: bool>(
    piece: &Piece,
    x: *const Group,
    stride: usize,
    rows: usize,
    sums: *mut f32,
) {
    let mut r = 0;
    while r < rows {
        // SAFETY: `r` rows are done, and a block takes no more than are left. V vectors are a panel.
        unsafe {
            let (x, sums) = (x.add(r * stride), sums.add(r * PANEL));
            r += match (S::LANES, rows - r) {
                (4, 2..) => block::<S, WIDE, HALVES, LIFT, 2, 4>(piece, x, stride, sums),
                (4, _) => block::<S, WIDE, HALVES, LIFT, 1, 4>(piece, x, stride, sums),
                (8, 4..) => block::<S, WIDE, HALVES, LIFT, 4, 2>(piece, x, stride, sums),
                (8, 2..) => block::<S, WIDE, HALVES, LIFT, 2, 2>(piece, x, stride, sums),
                (8, _) => block::<S, WIDE, HALVES, LIFT, 1, 2>(piece, x, stride, sums),
                (16, 8..) => block::<S, WIDE, HALVES, LIFT, 8, 1>(piece, x, stride, sums),
                (16, 4..) => block::<S, WIDE, HALVES, LIFT, 4, 1>(piece, x, stride, sums),
                (16, 2..) => block::<S, WIDE, HALVES, LIFT, 2, 1>(piece, x, stride, sums),
                (16, _) => block::<S, WIDE, HALVES, LIFT, 1, 1>(piece, x, stride, sums),
                (lanes, _) => unreachable!("no block of {lanes} lanes"),
            };
        }
    }
}

/// As [`all_rows`], for `R` rows; returns `R`.
///
/// # Safety
/// As [`add_products`].
#[inline(always)]
unsafe fn block<S: Dots, const WIDE: bool, const HALVES: bool, const LIFT: bool, const R: usize, const V: usize>(
    piece: &Piece,
    x: *const Group,
    stride: usize,
    sums: *mut f32,
) -> usize {
    let scales_of_group = if HALVES { 2 } else { 1 };
    let steps = GROUP / 4 / scales_of_group;
    // SAFETY: the contract above.
    unsafe {
        let mut acc = [[S::splat(0.0); V]; R];
        for (r, acc) in acc.iter_mut().enumerate() {
            for (v, acc) in acc.iter_mut().enumerate() {
                *acc = S::load(sums.add(r * PANEL + v * S::LANES));
            }
        }
        for g in 0..piece.groups {
            for half in 0..scales_of_group {
                let mut dots = [[S::four(&0); V]; R];
                for (r, dots) in dots.iter_mut().enumerate() {
                    let x = x.add(r * stride + g);
                    let sum = if HALVES { &raw const (*x).halves[half] } else { &raw const (*x).whole };
                    *dots = [S::start::<WIDE>(sum, piece.centre); V];
                }
                for s in half * steps..(half + 1) * steps {
                    let w = piece.codes.add((g * GROUP / 4 + s) * PANEL);
                    for (r, dots) in dots.iter_mut().enumerate() {
                        let x = S::four(&raw const (*x.add(r * stride + g)).codes[s]);
                        for (v, dot) in dots.iter_mut().enumerate() {
                            *dot = S::dot::<WIDE>(*dot, S::words(w.add(v * S::LANES)), x);
                        }
                    }
                }
                let scales = (&raw const (*piece.unpacked).scales[g][half]).cast::<f32>();
                let lifts = (&raw const (*piece.unpacked).lifts[g]).cast::<f32>();
                for (r, (acc, dots)) in acc.iter_mut().zip(dots).enumerate() {
                    let x = x.add(r * stride + g);
                    for (v, (acc, dot)) in acc.iter_mut().zip(dots).enumerate() {
                        let scale = S::mul(S::load(scales.add(v * S::LANES)), S::splat((*x).scale));
                        *acc = S::fma(S::total::<WIDE>(dot), scale, *acc);
                        if LIFT {
                            *acc = S::fma(S::load(lifts.add(v * S::LANES)), S::splat((*x).sum), *acc);
                        }
                    }
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            for (v, acc) in acc.into_iter().enumerate() {
                S::store(sums.add(r * PANEL + v * S::LANES), acc);
            }
        }
    }
    R
}
