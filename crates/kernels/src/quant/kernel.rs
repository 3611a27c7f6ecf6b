//! Rows of activations against a piece of a panel.

use super::QuantKind::{Q4_0, Q4K, Q5_0, Q5K, Q6K, Q8_0};
use super::dots::Dots;
use super::packed::GROUP;
use super::rows::Group;
use super::unpack::{Bytes, Codes, Piece};
use crate::simd::PANEL;

/// Adds the products of `rows` rows, which are `stride` groups apart in x, to `sums`, `[rows][16]`.
///
/// # Safety
/// The ISA of `S` is available; x holds the rows, as many groups as `piece`, whose codes are [`Bytes`].
#[inline(always)]
pub(crate) unsafe fn add_products<S: Dots>(piece: &Piece, x: *const Group, stride: usize, rows: usize, sums: *mut f32) {
    // SAFETY: passed on.
    unsafe {
        match piece.kind {
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
    // Here and not where it is used: formats share this code, and looking it up would take a jump for every row and group.
    let centre = std::hint::black_box(piece.kind.centre() as i16);
    // SAFETY: the contract above.
    unsafe {
        let mut acc = [[S::splat(0.0); V]; R];
        for (r, acc) in acc.iter_mut().enumerate() {
            for (v, acc) in acc.iter_mut().enumerate() {
                *acc = S::load(sums.add(r * PANEL + v * S::LANES));
            }
        }
        for g in 0..piece.groups {
            let x = x.add(g);
            // The next rows: of more of them than the L1 cache holds, each takes some lines only, far from the others'.
            for r in R..2 * R {
                S::prefetch_near(x.wrapping_add(r * stride).cast());
            }
            for half in 0..scales_of_group {
                let mut dots = start::<S, WIDE, HALVES, R, V>(centre, x, stride, half);
                // Unrolled, the compiler would take the steps apart and run out of registers.
                for s in half * steps..(half + 1) * steps {
                    add_step::<S, Bytes, WIDE, R, V>(&mut dots, piece.codes, g, s, x, stride);
                }
                let scales = (&raw const (*piece.room).scales[g][half]).cast::<f32>();
                let lifts = (&raw const (*piece.room).lifts[g]).cast::<f32>();
                add_scaled::<S, WIDE, LIFT, R, V>(&mut acc, dots, x, stride, scales, lifts);
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

/// What the products of a group or one of its halves are added to.
///
/// # Safety
/// The ISA of `S` is available; x has `R` rows.
#[inline(always)]
pub(crate) unsafe fn start<S: Dots, const WIDE: bool, const HALVES: bool, const R: usize, const V: usize>(
    centre: i16,
    x: *const Group,
    stride: usize,
    half: usize,
) -> [[S::I; V]; R] {
    // SAFETY: the contract above.
    unsafe {
        let mut dots = [[S::four(&0); V]; R];
        for (r, dots) in dots.iter_mut().enumerate() {
            let x = x.add(r * stride);
            let sum = if HALVES { &raw const (*x).halves[half] } else { &raw const (*x).whole };
            *dots = [S::start::<WIDE>(sum, centre); V];
        }
        dots
    }
}

/// Adds the products of four elements.
///
/// # Safety
/// The ISA of `S` is available; the codes are there, and `R` rows of x.
#[inline(always)]
pub(crate) unsafe fn add_step<S: Dots, C: Codes, const WIDE: bool, const R: usize, const V: usize>(
    dots: &mut [[S::I; V]; R],
    codes: *const u32,
    g: usize,
    s: usize,
    x: *const Group,
    stride: usize,
) {
    // SAFETY: passed on.
    unsafe {
        for (r, dots) in dots.iter_mut().enumerate() {
            let x = S::four(&raw const (*x.add(r * stride)).codes[s]);
            for (v, dot) in dots.iter_mut().enumerate() {
                *dot = S::dot::<WIDE>(*dot, C::get::<S>(codes, g, s, v * S::LANES), x);
            }
        }
    }
}

/// Adds the sums of a group, or one of its halves, under their scales.
///
/// # Safety
/// The ISA of `S` is available; x has `R` rows; `scales`, and `lifts` with `LIFT`, are of a panel.
#[inline(always)]
pub(crate) unsafe fn add_scaled<S: Dots, const WIDE: bool, const LIFT: bool, const R: usize, const V: usize>(
    acc: &mut [[S::F; V]; R],
    dots: [[S::I; V]; R],
    x: *const Group,
    stride: usize,
    scales: *const f32,
    lifts: *const f32,
) {
    // SAFETY: the contract above.
    unsafe {
        for (r, (acc, dots)) in acc.iter_mut().zip(dots).enumerate() {
            let x = x.add(r * stride);
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
