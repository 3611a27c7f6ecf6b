//! Rows of activations against a piece of a panel.

use super::QuantKind::{Q4_0, Q4K, Q5_0, Q5K, Q6K, Q8_0};
use super::dots::Dots;
use super::packed::GROUP;
use super::rows::Group;
use super::unpack::{By4, By5, By6, By8, Bytes, Codes, Packed, Piece};
use crate::simd::PANEL;

macro_rules! unroll {
    ($name:ident in $($value:literal)* $body:block) => {
        $({
            let $name = $value;
            $body
        })*
    };
}

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
                (4, 2..) => block::<S, Bytes, WIDE, HALVES, LIFT, 2, 4>(piece, x, stride, sums),
                (4, _) => block::<S, Bytes, WIDE, HALVES, LIFT, 1, 4>(piece, x, stride, sums),
                (8, 4..) => block::<S, Bytes, WIDE, HALVES, LIFT, 4, 2>(piece, x, stride, sums),
                (8, 2..) => block::<S, Bytes, WIDE, HALVES, LIFT, 2, 2>(piece, x, stride, sums),
                (8, _) => block::<S, Bytes, WIDE, HALVES, LIFT, 1, 2>(piece, x, stride, sums),
                (16, 8..) => block::<S, Bytes, WIDE, HALVES, LIFT, 8, 1>(piece, x, stride, sums),
                (16, 4..) => block::<S, Bytes, WIDE, HALVES, LIFT, 4, 1>(piece, x, stride, sums),
                (16, 2..) => block::<S, Bytes, WIDE, HALVES, LIFT, 2, 1>(piece, x, stride, sums),
                (16, _) => block::<S, Bytes, WIDE, HALVES, LIFT, 1, 1>(piece, x, stride, sums),
                (lanes, _) => unreachable!("no block of {lanes} lanes"),
            };
        }
    }
}

/// As [`add_products`] for one row and codes that are still packed: what is used once needs no place of its own.
///
/// # Safety
/// As [`add_products`], for a piece as [`super::unpack::unpack`] left it.
#[inline(always)]
pub(crate) unsafe fn add_row<S: Dots>(piece: &Piece, x: *const Group, sums: *mut f32) {
    // SAFETY: passed on.
    unsafe {
        match piece.kind {
            Q8_0 => row::<S, Packed<By8>, true, false, false>(piece, x, sums),
            Q4_0 => row::<S, Packed<By4>, false, false, false>(piece, x, sums),
            Q5_0 => row::<S, Packed<By5>, false, false, false>(piece, x, sums),
            Q4K => row::<S, Packed<By4>, false, false, true>(piece, x, sums),
            Q5K => row::<S, Packed<By5>, false, false, true>(piece, x, sums),
            Q6K => row::<S, Packed<By6>, false, true, false>(piece, x, sums),
        }
    }
}

/// # Safety
/// As [`add_row`].
#[inline(always)]
unsafe fn row<S: Dots, C: Codes, const WIDE: bool, const HALVES: bool, const LIFT: bool>(
    piece: &Piece,
    x: *const Group,
    sums: *mut f32,
) {
    // SAFETY: passed on; V vectors are a panel.
    unsafe {
        match S::LANES {
            4 => block::<S, C, WIDE, HALVES, LIFT, 1, 4>(piece, x, 0, sums),
            8 => block::<S, C, WIDE, HALVES, LIFT, 1, 2>(piece, x, 0, sums),
            _ => block::<S, C, WIDE, HALVES, LIFT, 1, 1>(piece, x, 0, sums),
        };
    }
}

/// As [`all_rows`], for `R` rows; returns `R`.
///
/// # Safety
/// As [`add_products`].
#[inline(always)]
unsafe fn block<
    S: Dots,
    C: Codes,
    const WIDE: bool,
    const HALVES: bool,
    const LIFT: bool,
    const R: usize,
    const V: usize,
>(
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
        let centre = piece.kind.centre() as i16;
        for g in 0..piece.groups {
            for half in 0..scales_of_group {
                let mut dots = [[S::four(&0); V]; R];
                for (r, dots) in dots.iter_mut().enumerate() {
                    let x = x.add(r * stride + g);
                    let sum = if HALVES { &raw const (*x).halves[half] } else { &raw const (*x).whole };
                    *dots = [S::start::<WIDE>(sum, centre); V];
                }
                let x_of_group = x.add(g);
                let first = half * steps;
                if C::UNROLL {
                    unroll!(s in 0 1 2 3 4 5 6 7 {
                        if s < steps {
                            add_step::<S, C, WIDE, R, V>(&mut dots, piece.codes, g, first + s, x_of_group, stride);
                        }
                    });
                } else {
                    // Unrolled, the compiler would take the steps apart and run out of registers.
                    for s in first..first + steps {
                        add_step::<S, C, WIDE, R, V>(&mut dots, piece.codes, g, s, x_of_group, stride);
                    }
                }
                let scales = (&raw const (*piece.room).scales[g][half]).cast::<f32>();
                let lifts = (&raw const (*piece.room).lifts[g]).cast::<f32>();
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

/// Adds the products of four elements.
///
/// # Safety
/// As [`block`].
#[inline(always)]
unsafe fn add_step<S: Dots, C: Codes, const WIDE: bool, const R: usize, const V: usize>(
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
