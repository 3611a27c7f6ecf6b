//! Rows of activations against a piece of some panels.

use super::QuantKind::{Q4_0, Q4K, Q5_0, Q5K, Q6K, Q8_0};
use super::dots::Dots;
use super::packed::GROUP;
use super::rows::Group;
use super::unpack::{Bytes, Codes, Piece, ROOM};
use crate::Isa;
use crate::simd::{PANEL, at, block_sizes};

/// Rows of the largest block with VNNI. On AVX-512 its sums, as integers and as f32, are 24 of 32 registers. On
/// AVX-VNNI the integers alone are 12 of 16, and the f32 go to memory: fewer than ten would wait for their products.
const ROWS: usize = 6;

/// Rows that one tile handles at most.
pub(crate) const TILE_ROWS: usize = 96;

/// No division for each block.
const SIZES: [u8; TILE_ROWS + 1] = block_sizes(ROWS);

macro_rules! unroll {
    ($name:ident in $($value:literal)* $body:block) => {
        $({
            let $name = $value;
            $body
        })*
    };
}
pub(crate) use unroll;

/// Adds the products of `rows` rows, which are `stride` groups apart in x, to `sums`, `[rows][16]` of each panel and
/// `apart` from those of the next.
///
/// # Safety
/// The ISA of `S` is available; x holds the rows, with VNNI three at least, and as many groups as `piece`, whose
/// codes are [`Bytes`].
#[inline(always)]
pub(crate) unsafe fn add_products<S: Dots>(
    piece: &Piece,
    x: *const Group,
    stride: usize,
    rows: usize,
    sums: *mut f32,
    apart: usize,
) {
    // In bytes from here on. Opaque, or the compiler would multiply again wherever a row is addressed.
    let stride = std::hint::black_box(stride * size_of::<Group>());
    // SAFETY: passed on.
    unsafe {
        match piece.kind {
            Q8_0 => all_rows::<S, true, false, false>(piece, x, stride, rows, sums, apart),
            Q4_0 | Q5_0 => all_rows::<S, false, false, false>(piece, x, stride, rows, sums, apart),
            Q4K | Q5K => all_rows::<S, false, false, true>(piece, x, stride, rows, sums, apart),
            Q6K => all_rows::<S, false, true, false>(piece, x, stride, rows, sums, apart),
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
    apart: usize,
) {
    let mut r = 0;
    while r < rows {
        let left = rows - r;
        // SAFETY: `r` rows are done, and a block takes no more than are left. V vectors are the panels.
        unsafe {
            let (x, sums) = (x.byte_add(r * stride), sums.add(r * PANEL));
            // With VNNI, blocks of almost equal size: with few sums they wait for their additions.
            r += if const { matches!(S::ISA, Isa::Portable) } {
                match left {
                    1 => block::<S, WIDE, HALVES, LIFT, 1, 4>(piece, x, stride, sums, apart),
                    _ => block::<S, WIDE, HALVES, LIFT, 2, 4>(piece, x, stride, sums, apart),
                }
            } else if const { matches!(S::ISA, Isa::Avx2) } {
                match left {
                    1 => block::<S, WIDE, HALVES, LIFT, 1, 2>(piece, x, stride, sums, apart),
                    2 | 3 => block::<S, WIDE, HALVES, LIFT, 2, 2>(piece, x, stride, sums, apart),
                    _ => block::<S, WIDE, HALVES, LIFT, 4, 2>(piece, x, stride, sums, apart),
                }
            } else {
                match SIZES[left] {
                    6 => block::<S, WIDE, HALVES, LIFT, 6, 2>(piece, x, stride, sums, apart),
                    5 => block::<S, WIDE, HALVES, LIFT, 5, 2>(piece, x, stride, sums, apart),
                    4 => block::<S, WIDE, HALVES, LIFT, 4, 2>(piece, x, stride, sums, apart),
                    3 => block::<S, WIDE, HALVES, LIFT, 3, 2>(piece, x, stride, sums, apart),
                    rows => unreachable!("no block of {rows} rows"),
                }
            };
        }
    }
}

/// As [`all_rows`], for `R` rows, of whose sums those of a panel are `apart` from those of the next; returns `R`.
///
/// # Safety
/// As [`add_products`].
#[inline(always)]
unsafe fn block<S: Dots, const WIDE: bool, const HALVES: bool, const LIFT: bool, const R: usize, const V: usize>(
    piece: &Piece,
    x: *const Group,
    stride: usize,
    sums: *mut f32,
    apart: usize,
) -> usize {
    // Here and not where it is used: formats share this code, and looking it up would take a jump for every row and
    // group.
    let centre = std::hint::black_box(piece.kind.centre() as i16);
    // SAFETY: the contract above.
    unsafe {
        let mut acc = [[S::splat(0.0); V]; R];
        for (r, acc) in acc.iter_mut().enumerate() {
            for (v, acc) in acc.iter_mut().enumerate() {
                *acc = S::load(sums.add(r * PANEL + at::<S>(v, apart)));
            }
        }
        for g in 0..piece.groups {
            let x = x.add(g);
            // The next rows: of more of them than the L1 cache holds, each takes some lines only, far from the others'.
            for r in R..2 * R {
                S::prefetch_near(x.wrapping_byte_add(r * stride).cast());
            }
            if const { HALVES && S::LANES == PANEL } {
                add_sums::<S, WIDE, HALVES, LIFT, R, V>(&mut acc, piece, centre, g, 0, x, stride);
                add_sums::<S, WIDE, HALVES, LIFT, R, V>(&mut acc, piece, centre, g, 1, x, stride);
            } else {
                for half in 0..(if HALVES { 2 } else { 1 }) {
                    add_sums::<S, WIDE, HALVES, LIFT, R, V>(&mut acc, piece, centre, g, half, x, stride);
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            for (v, acc) in acc.into_iter().enumerate() {
                S::store(sums.add(r * PANEL + at::<S>(v, apart)), acc);
            }
        }
    }
    R
}

/// Adds what group `g`, or with `HALVES` a half of it, gives.
///
/// # Safety
/// As [`block`].
#[inline(always)]
unsafe fn add_sums<S: Dots, const WIDE: bool, const HALVES: bool, const LIFT: bool, const R: usize, const V: usize>(
    acc: &mut [[S::F; V]; R],
    piece: &Piece,
    centre: i16,
    g: usize,
    half: usize,
    x: *const Group,
    stride: usize,
) {
    let steps = GROUP / 4 / if HALVES { 2 } else { 1 };
    // SAFETY: the contract above.
    unsafe {
        let codes = piece.codes.add(g * GROUP / 4 * PANEL);
        let mut dots = start::<S, WIDE, HALVES, R, V>(centre, x, stride, half);
        if const { S::LANES == PANEL } {
            unroll!(s in 0 1 2 3 4 5 6 7 {
                if s < steps {
                    add_step::<S, Bytes, WIDE, R, V>(&mut dots, codes, piece.apart, 0, half * steps + s, x, stride);
                }
            });
        } else {
            // Unrolled, the compiler would take the steps apart and run out of registers.
            for s in half * steps..(half + 1) * steps {
                add_step::<S, Bytes, WIDE, R, V>(&mut dots, codes, piece.apart, 0, s, x, stride);
            }
        }
        let scales = (&raw const (*piece.room).heads[g][half]).cast::<f32>();
        add_scaled::<S, WIDE, LIFT, R, V>(acc, dots, x, stride, scales, ROOM);
    }
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
            let x = x.byte_add(r * stride);
            let sum = if HALVES { &raw const (*x).halves[half] } else { &raw const (*x).whole };
            *dots = [S::start::<WIDE>(sum, centre); V];
        }
        dots
    }
}

/// Adds the products of four elements; the codes of panels are `apart`.
///
/// # Safety
/// The ISA of `S` is available; the codes are there, and `R` rows of x.
#[inline(always)]
pub(crate) unsafe fn add_step<S: Dots, C: Codes, const WIDE: bool, const R: usize, const V: usize>(
    dots: &mut [[S::I; V]; R],
    codes: *const u32,
    apart: usize,
    g: usize,
    s: usize,
    x: *const Group,
    stride: usize,
) {
    // SAFETY: passed on.
    unsafe {
        for (r, dots) in dots.iter_mut().enumerate() {
            let x = S::four(&raw const (*x.byte_add(r * stride)).codes[s]);
            for (v, dot) in dots.iter_mut().enumerate() {
                *dot = S::dot::<WIDE>(*dot, C::get::<S>(codes, g, s, at::<S>(v, apart)), x);
            }
        }
    }
}

/// Adds the sums of a group, or one of its halves, under their scales; those of panels are `room` apart.
///
/// # Safety
/// The ISA of `S` is available; x has `R` rows; `scales` are of the panels, with `LIFT` followed by what they are lifted by.
#[inline(always)]
pub(crate) unsafe fn add_scaled<S: Dots, const WIDE: bool, const LIFT: bool, const R: usize, const V: usize>(
    acc: &mut [[S::F; V]; R],
    dots: [[S::I; V]; R],
    x: *const Group,
    stride: usize,
    scales: *const f32,
    room: usize,
) {
    // SAFETY: the contract above.
    unsafe {
        for (r, (acc, dots)) in acc.iter_mut().zip(dots).enumerate() {
            let x = x.byte_add(r * stride);
            for (v, (acc, dot)) in acc.iter_mut().zip(dots).enumerate() {
                let scale = S::mul(S::load(scales.add(at::<S>(v, room))), S::splat((*x).scale));
                *acc = S::fma(S::total::<WIDE>(dot), scale, *acc);
                if LIFT {
                    *acc = S::fma(S::load(scales.add(PANEL + at::<S>(v, room))), S::splat((*x).sum), *acc);
                }
            }
        }
    }
}
