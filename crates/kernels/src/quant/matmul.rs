//! Batch-invariant product of quantised rows and quantised weights.

use std::cell::RefCell;
use std::mem::MaybeUninit;

use super::ahead::Due;
use super::bytes::Encode;
use super::dots::Dots;
use super::few::{STREAMS, few_of, few_rows};
use super::gated::{Gated, TURN, TURN_PANELS};
use super::kernel::{Outputs, ROWS, Sums, TILE_ROWS, add_products};
use super::packed::GROUP;
use super::rows::{Group, RowsMut};
use super::unpack::{GROUPS, PANELS, Unpacked, panels_at_once, unpack, unpack_codes};
use super::{PackedQuant, QuantRows};
use crate::buffer::{SharedMut, Words};
use crate::simd::{FarRows, PANEL, isa_entry};
use crate::{Activation, Isa, Pool};

/// Panels that one tile handles at most.
const TILE_PANELS: usize = 8;

/// The same with at most so many rows, if few: their streams of memory are the longer.
const FEW_PANELS: usize = 128;
const FEW_ROWS: usize = 8;

/// What may be kept of x from panel to panel: half of an L2 cache of 512 KiB.
const L2_BYTES: usize = 256 << 10;

struct Job<'a> {
    x: &'a [Group],
    /// Groups of a row.
    groups: usize,
    w: &'a PackedQuant,
    end: End,
}

/// What becomes of the products.
enum End {
    Products(Products),
    Gated(Gated),
}

/// They are y, or added to it.
#[derive(Clone, Copy)]
struct Products {
    y: SharedMut<f32>,
    /// Elements from one row to the next.
    stride: usize,
    add: bool,
}

#[derive(Clone, Copy)]
struct Tile {
    rows: (usize, usize),
    panels: (usize, usize),
}

thread_local! {
    /// Sums of the running tile, `[panels][rows][16]`.
    static SUMS: RefCell<Words> = const { RefCell::new(Words::new()) };
}

/// `y = x w^T`, or `y += x w^T` with `add`. w is `[n][k]`; row `r` of the result is `y[r * stride..][..n]`, so that
/// matrices of different formats can fill parts of the same rows.
///
/// Each output is one sum over groups of 32 in ascending order: its bits do not depend on the other rows, on n, or on
/// threads. What a group adds is exact but for the rounding of the last few f32 operations.
///
/// # Panics
/// When a length does not fit or the machine cannot run `isa`.
pub fn matmul_quant(isa: Isa, pool: &Pool, x: &QuantRows, w: &PackedQuant, y: &mut [f32], stride: usize, add: bool) {
    isa.require();
    let (rows, n) = (x.rows(), w.n());
    if rows == 0 || n == 0 {
        return;
    }
    let end = (rows - 1).checked_mul(stride).and_then(|last| last.checked_add(n));
    assert!(stride >= n && end.is_some_and(|end| end <= y.len()), "{rows} rows of {n}, {stride} apart, in {}", y.len());
    let end = End::Products(Products { y: SharedMut::new(y), stride, add });
    // SAFETY: it has room, as was checked.
    unsafe { multiply(isa, pool, x, w, end) };
}

/// `out = activation(x gate^T) * (x up^T)`. w is `[2 n][k]`, 32 rows of the gate and 32 of up in turns; out is `[rows][n]`. The
/// bits are those of [`matmul_quant`] and [`gate_mul`](crate::gate_mul), which would write the products to memory.
///
/// # Panics
/// When a length does not fit or the machine cannot run `isa`.
pub fn gated_quant(isa: Isa, pool: &Pool, x: &QuantRows, w: &PackedQuant, activation: Activation, out: RowsMut<'_>) {
    isa.require();
    let width = w.n() / 2;
    assert!(w.n() > 0 && w.n().is_multiple_of(2 * TURN), "{} outputs, {TURN} of each in turns", w.n());
    // Before `out` says that it has these rows.
    assert_eq!(x.k(), w.k(), "inputs");
    x.groups_for(isa);
    let out = out.target(isa, x.rows(), width);
    if x.rows() > 0 {
        // SAFETY: `out` has room.
        unsafe { multiply(isa, pool, x, w, End::Gated(Gated { activation, out, width })) };
    }
}

/// # Safety
/// There are rows and outputs, and `end` has room for them, which nobody else writes.
unsafe fn multiply(isa: Isa, pool: &Pool, x: &QuantRows, w: &PackedQuant, end: End) {
    let (rows, n, k) = (x.rows(), w.n(), w.k());
    assert_eq!(x.k(), k, "inputs");
    let job = Job { x: x.groups_for(isa), groups: k / GROUP, w, end };
    let panels = n.div_ceil(PANEL);
    // Several tiles per thread where there is enough to do; fewer rows at GROUPS only when panels do not suffice.
    let want = if pool.threads() == 1 { 1 } else { pool.threads() * 4 };
    let (at_once, most) = match (rows <= FEW_ROWS.min(few_of(isa, w.kind())), isa.is_wide()) {
        (true, _) => (STREAMS, FEW_PANELS),
        (false, true) => (PANELS, TILE_PANELS),
        (false, false) => (1, TILE_PANELS),
    };
    let wide = (panels / want).clamp(1, most).next_multiple_of(job.end.together(at_once));
    let columns = panels.div_ceil(wide);
    let tall = (rows * columns / want).clamp(24, TILE_ROWS).next_multiple_of(8);
    let bands = rows.div_ceil(tall);
    pool.run(bands * columns, &|t| {
        let (band, column) = (t / columns, t % columns);
        let tile = Tile {
            rows: (band * tall, rows.min((band + 1) * tall)),
            panels: (column * wide, panels.min((column + 1) * wide)),
        };
        SUMS.with_borrow_mut(|sums| {
            let sums = sums.floats(wide * tall.min(rows) * PANEL);
            // SAFETY: `isa` is available; tiles cover disjoint parts of y; the lengths were checked above.
            unsafe { run_tile(isa, &job, tile, sums) };
        });
    });
}

isa_entry!(fn run_tile(job: &Job<'_>, tile: Tile, sums: &mut [f32]) = tile_rows, with vnni);

/// # Safety
/// The ISA of `S` is available; the tile lies inside the job; `sums` has 16 elements for each of its rows and panels.
#[inline(always)]
unsafe fn tile_rows<S: Encode>(job: &Job<'_>, tile: Tile, sums: &mut [f32]) {
    let rows = tile.rows.1 - tile.rows.0;
    // Where x does not stay in the cache from panel to panel, its part for several at once does.
    let stays = rows * job.groups * size_of::<Group>() <= L2_BYTES;
    let few = rows <= few_of(S::ISA, job.w.kind()) && (stays || rows <= FEW_ROWS);
    let many = job.end.together(match few {
        true => FEW_PANELS,
        false if stays => panels_at_once::<S>(),
        false => TILE_PANELS,
    });
    // SAFETY: passed on.
    unsafe {
        for first in (tile.panels.0..tile.panels.1).step_by(many) {
            let panels = (first, tile.panels.1.min(first + many));
            let x = FarRows::new(job.x.as_ptr().add(tile.rows.0 * job.groups), job.groups);
            let part = &mut sums[..(panels.1 - panels.0) * rows * PANEL];
            if few {
                few_rows::<S>(job.w, panels, x, rows, part.as_mut_ptr());
            } else {
                many_rows::<S>(job, panels, tile.panels.1, x, tile.rows, part);
            }
            match &job.end {
                End::Gated(gated) => gated.put::<S>(part, rows, tile.rows.0, first),
                End::Products(products) if few => {
                    for (panel, part) in part.chunks_exact(rows * PANEL).enumerate() {
                        let outputs = products.outputs(job.w, tile.rows.0, first + panel);
                        for (row, sums) in part.chunks_exact(PANEL).enumerate() {
                            for v in (0..PANEL).step_by(S::LANES) {
                                outputs.put::<S>(row, v, S::load(sums.as_ptr().add(v)));
                            }
                        }
                    }
                }
                End::Products(_) => {}
            }
        }
    }
}

impl End {
    /// How many panels have to be there together, if so many are taken at once.
    fn together(&self, at_once: usize) -> usize {
        match self {
            End::Products(_) => at_once,
            End::Gated(_) => at_once.next_multiple_of(TURN_PANELS),
        }
    }

    fn products(&self) -> Option<&Products> {
        match self {
            End::Products(products) => Some(products),
            End::Gated(_) => None,
        }
    }
}

impl Products {
    /// Those of the rows and panels from these on.
    fn outputs(&self, w: &PackedQuant, row: usize, panel: usize) -> Outputs {
        let Products { y, stride, add } = *self;
        let at = y.get().wrapping_add(row * stride + panel * PANEL);
        Outputs { at, stride, columns: w.n() - panel * PANEL, add }
    }
}

/// Adds up the products of some rows and panels, of a tile that ends with panel `last`; x is from the first of the rows on, and
/// `sums` have `[panels][rows][16]`, which are there at the end where nothing else becomes of them.
///
/// # Safety
/// The ISA of `S` is available; the panels are there, and the rows; nobody else writes their outputs.
#[inline(always)]
unsafe fn many_rows<S: Dots>(
    job: &Job<'_>,
    panels: (usize, usize),
    last: usize,
    x: FarRows<Group>,
    (row, end): (usize, usize),
    sums: &mut [f32],
) {
    let mut room = MaybeUninit::<[Unpacked; PANELS]>::uninit();
    let (rows, at_once) = (end - row, panels_at_once::<S>());
    for group in (0..job.groups).step_by(GROUPS) {
        let groups = GROUPS.min(job.groups - group);
        let parts = sums.chunks_mut(at_once * rows * PANEL);
        for (first, sums) in (panels.0..panels.1).step_by(at_once).zip(parts) {
            // What is left of two is computed twice, which is rare enough.
            let pair = |first: usize, end: usize| (first, (first + at_once).min(end) - 1);
            // The same groups of the next panels, the next groups of the first ones, or what the tile goes on with.
            let (next, of) = match (first + at_once, group + groups) {
                (next, _) if next < panels.1 => (next, group),
                (_, next) if next < job.groups => (panels.0, next),
                _ => (panels.1, 0),
            };
            let due = if next < last {
                let turns = rows.div_ceil(ROWS) * groups;
                Due::new::<S>(job.w, pair(next, last), of, GROUPS.min(job.groups - of), turns)
            } else {
                Due::nothing()
            };
            let panels = pair(first, panels.1);
            let outputs = job.end.products().map(|products| products.outputs(job.w, row, first));
            let outputs = outputs.filter(|_| group + groups == job.groups);
            let columns = (panels.1 + 1 - first) * PANEL;
            let sums = Sums {
                first: group == 0,
                at: sums.as_mut_ptr(),
                apart: (panels.1 - first) * rows * PANEL,
                end: outputs.map(|outputs| Outputs { columns: outputs.columns.min(columns), ..outputs }),
            };
            // SAFETY: passed on; what is unpacked is written before it is read.
            unsafe {
                let mut piece = unpack::<S>(job.w, panels, group, groups, room.as_mut_ptr().cast());
                piece.due = due;
                unpack_codes::<S>(&mut piece);
                add_products::<S>(&piece, x.from(0, group), rows, sums);
            }
        }
    }
}
