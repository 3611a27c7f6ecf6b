//! Rows of activations against a piece of some panels.

use super::QuantKind::{Q4_0, Q4K, Q5_0, Q5K, Q6K, Q8_0};
use super::dots::Dots;
use super::packed::GROUP;
use super::rows::{Group, start_of};
use super::unpack::{Bytes, Codes, Piece, ROOM};
use crate::Isa;
use crate::simd::{FarRows, PANEL, at, block_sizes};

/// Rows of the largest block with VNNI. On AVX-512 its sums, as integers and as f32, are 24 of 32 registers. On
/// AVX-VNNI the integers alone are 12 of 16, and the f32 go to memory: fewer than ten would wait for their products.
pub(crate) const ROWS: usize = 6;

/// Rows that one tile handles at most.
pub(crate) const TILE_ROWS: usize = 256;

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

/// Where the sums of some rows and panels are before a piece and after it.
#[derive(Clone, Copy)]
pub(crate) struct Sums {
    /// Nothing was added yet.
    pub first: bool,
    /// `[rows][16]` of each panel; in between.
    pub at: *mut f32,
    /// f32 elements from those of a panel to those of the next.
    pub apart: usize,
    /// After the last piece.
    pub end: Option<Outputs>,
}

impl Sums {
    /// Those of the rows from `r` on.
    #[inline(always)]
    fn from(self, r: usize) -> Sums {
        let end = self.end.map(|end| Outputs { at: end.at.wrapping_add(r * end.stride), ..end });
        Sums { at: self.at.wrapping_add(r * PANEL), end, ..self }
    }
}

/// Outputs of some rows and panels.
#[derive(Clone, Copy)]
pub(crate) struct Outputs {
    pub at: *mut f32,
    /// Elements from row to row.
    pub stride: usize,
    /// How many there are in a row.
    pub columns: usize,
    /// To be added to what is there.
    pub add: bool,
}

impl Outputs {
    /// Writes, or adds, a vector of row `r` from `column` on, as far as there are columns.
    ///
    /// # Safety
    /// The ISA of `S` is available; there is such a row, and nobody else writes it.
    #[inline(always)]
    pub unsafe fn put<S: Dots>(&self, r: usize, column: usize, x: S::F) {
        let n = S::LANES.min(self.columns.saturating_sub(column));
        // SAFETY: `n` outputs are left in this row.
        unsafe {
            let y = self.at.wrapping_add(r * self.stride + column);
            if n == S::LANES {
                S::store(y, if self.add { S::add(S::load(y), x) } else { x });
            } else if n > 0 {
                S::store_n(y, n, if self.add { S::add(S::load_n(y, n), x) } else { x });
            }
        }
    }
}

/// Adds the products of `rows` rows to `sums`.
///
/// # Safety
/// The ISA of `S` is available; x holds the rows, with VNNI three at least, and as many groups as `piece`, which is as
/// `unpack_codes` left it; the outputs are there, and nobody else writes them.
#[inline(always)]
pub(crate) unsafe fn add_products<S: Dots>(piece: &Piece, x: FarRows<Group>, rows: usize, sums: Sums) {
    // SAFETY: passed on.
    unsafe {
        match piece.kind {
            Q8_0 if const { !S::FLIPS } => all_rows::<S, true, false, false>(piece, x, rows, sums),
            Q8_0 | Q4_0 | Q5_0 => all_rows::<S, false, false, false>(piece, x, rows, sums),
            Q4K | Q5K => all_rows::<S, false, false, true>(piece, x, rows, sums),
            Q6K => all_rows::<S, false, true, false>(piece, x, rows, sums),
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
    x: FarRows<Group>,
    rows: usize,
    sums: Sums,
) {
    let mut r = 0;
    while r < rows {
        let left = rows - r;
        // SAFETY: `r` rows are done, and a block takes no more than are left. V vectors are the panels.
        unsafe {
            let (x, sums) = (x.from(r, 0), sums.from(r));
            // With VNNI, blocks of almost equal size: with few sums they wait for their additions.
            r += if const { matches!(S::ISA, Isa::Portable) } {
                match left {
                    1 => block::<S, WIDE, HALVES, LIFT, 1, 4>(piece, x, sums),
                    _ => block::<S, WIDE, HALVES, LIFT, 2, 4>(piece, x, sums),
                }
            } else if const { matches!(S::ISA, Isa::Avx2) } {
                match left {
                    1 => block::<S, WIDE, HALVES, LIFT, 1, 2>(piece, x, sums),
                    2 | 3 => block::<S, WIDE, HALVES, LIFT, 2, 2>(piece, x, sums),
                    _ => block::<S, WIDE, HALVES, LIFT, 4, 2>(piece, x, sums),
                }
            } else {
                match SIZES[left] {
                    6 => block::<S, WIDE, HALVES, LIFT, 6, 2>(piece, x, sums),
                    5 => block::<S, WIDE, HALVES, LIFT, 5, 2>(piece, x, sums),
                    4 => block::<S, WIDE, HALVES, LIFT, 4, 2>(piece, x, sums),
                    3 => block::<S, WIDE, HALVES, LIFT, 3, 2>(piece, x, sums),
                    rows => unreachable!("no block of {rows} rows"),
                }
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
    x: FarRows<Group>,
    sums: Sums,
) -> usize {
    // Here and not where they are used: formats share this code, and looking it up would take a jump for every row and
    // group.
    let centre = std::hint::black_box(piece.centre);
    let starts = std::hint::black_box(start_of::<S>(piece.centre, if HALVES { Some(0) } else { None }));
    let centre = (centre, starts);
    // SAFETY: the contract above.
    unsafe {
        let mut acc = [[S::splat(0.0); V]; R];
        if !sums.first {
            for (r, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = S::load(sums.at.add(r * PANEL + at::<S>(v, sums.apart)));
                }
            }
        }
        for g in 0..piece.groups {
            let next = x.from(R, g);
            let x = x.from(0, g);
            piece.due.ask::<S>();
            // The next rows: of more of them than the L1 cache holds, each takes some lines only, far from the others'.
            for r in 0..R {
                S::prefetch_near(next.row(r).cast());
            }
            if const { HALVES && S::LANES == PANEL } {
                add_sums::<S, WIDE, HALVES, LIFT, R, V>(&mut acc, piece, centre, g, 0, x);
                add_sums::<S, WIDE, HALVES, LIFT, R, V>(&mut acc, piece, centre, g, 1, x);
            } else {
                for half in 0..(if HALVES { 2 } else { 1 }) {
                    add_sums::<S, WIDE, HALVES, LIFT, R, V>(&mut acc, piece, centre, g, half, x);
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            for (v, acc) in acc.into_iter().enumerate() {
                match &sums.end {
                    None => S::store(sums.at.add(r * PANEL + at::<S>(v, sums.apart)), acc),
                    Some(end) => end.put::<S>(r, v * S::LANES, acc),
                }
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
    centre: (i16, usize),
    g: usize,
    half: usize,
    x: FarRows<Group>,
) {
    let steps = GROUP / 4 / if HALVES { 2 } else { 1 };
    // SAFETY: the contract above.
    unsafe {
        let codes = piece.codes.add(g * GROUP / 4 * PANEL);
        let mut dots = start::<S, WIDE, R, V>(centre, x, half);
        if const { S::LANES == PANEL } {
            unroll!(s in 0 1 2 3 4 5 6 7 {
                if s < steps {
                    add_step::<S, Bytes, WIDE, R, V>(&mut dots, codes, piece.apart, 0, half * steps + s, x);
                }
            });
        } else {
            // Unrolled, the compiler would take the steps apart and run out of registers.
            for s in half * steps..(half + 1) * steps {
                add_step::<S, Bytes, WIDE, R, V>(&mut dots, codes, piece.apart, 0, s, x);
            }
        }
        let scales = (&raw const (*piece.room).heads[g][half]).cast::<f32>();
        add_scaled::<S, WIDE, LIFT, R, V>(acc, dots, x, scales, ROOM);
    }
}

/// What the products of a group or one of its halves are added to: `centre` and which of the [`super::rows::Starts`].
///
/// # Safety
/// The ISA of `S` is available; x has `R` rows.
#[inline(always)]
pub(crate) unsafe fn start<S: Dots, const WIDE: bool, const R: usize, const V: usize>(
    (centre, which): (i16, usize),
    x: FarRows<Group>,
    half: usize,
) -> [[S::I; V]; R] {
    // SAFETY: the contract above.
    unsafe {
        let mut dots = [[S::four(&0); V]; R];
        for (r, dots) in dots.iter_mut().enumerate() {
            let starts = (&raw const (*x.row(r)).starts).cast::<u32>();
            *dots = [S::start::<WIDE>(starts.add(which + half), centre); V];
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
    x: FarRows<Group>,
) {
    // SAFETY: passed on.
    unsafe {
        for (r, dots) in dots.iter_mut().enumerate() {
            let x = S::four(&raw const (*x.row(r)).codes[s]);
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
    x: FarRows<Group>,
    scales: *const f32,
    room: usize,
) {
    // SAFETY: the contract above.
    unsafe {
        for (r, (acc, dots)) in acc.iter_mut().zip(dots).enumerate() {
            let x = x.row(r);
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
