//! Batch-invariant matrix product.

use std::cell::RefCell;
use std::mem::MaybeUninit;

use crate::buffer::{Aligned, SharedMut};
use crate::simd::{
    Line, Nothing, PANEL, Simd, WIDE, WIDE_STEPS, WIDE_VECTORS, dots, dots_widened, isa_entry, meets_widened, prepare,
    row_block,
};
use crate::{Isa, PackedBf16, Pool};

/// Rows that one tile handles at most: what it reads of x then stays in the L2 cache.
const TILE_ROWS: usize = 96;

/// Panels that one tile handles at most.
const TILE_PANELS: usize = 8;

/// Words of weights that are worked on together: half of an L2 cache of 512 KiB.
const L2_WORDS: usize = 1 << 16;

/// Panels that are worked on together at most.
const L2_PANELS: usize = 4;

/// With so many row blocks it pays to keep what the first one widens.
const WIDENED_BLOCKS: usize = 4;

/// Bytes between the weights that are read and those that are asked for, where one panel at a time is read: a single
/// stream does not make the hardware look far enough ahead.
const AHEAD: usize = 4096;

struct Job {
    x: *const u32,
    /// Words from one prepared row to the next.
    stride: usize,
    pairs: usize,
    w: *const u32,
    /// Words from one panel to the next.
    panel: usize,
    y: SharedMut<f32>,
    n: usize,
    add: bool,
}

// SAFETY: tiles only read through the pointers, except `y`, of which each writes a part of its own.
unsafe impl Sync for Job {}

#[derive(Clone, Copy)]
struct Tile {
    rows: (usize, usize),
    panels: (usize, usize),
}

/// Some of the pairs of all rows of a tile and of at most [`L2_PANELS`] panels.
#[derive(Clone, Copy)]
struct Slice {
    /// First row and panel.
    row: usize,
    panel: usize,
    pairs: (usize, usize),
    /// Sums over the pairs before these, `[rows][L2_PANELS][16]`.
    sums: *mut f32,
    /// [`WIDE`] elements, if operands are widened once.
    wide: Option<*mut f32>,
    /// Whether blocks of several panels ask for what comes next.
    asks: bool,
}

thread_local! {
    /// Prepared x of the running call; kept, so that a steady step allocates nothing.
    static PREPARED: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// `y = x w^T`, or `y += x w^T` with `add`. x is bf16 `[rows][k]`, w `[n][k]`, y f32 `[rows][n]`.
///
/// Each output is one sum over k in ascending order: its bits do not depend on the other rows, on n, or on threads.
///
/// # Panics
/// When a length does not fit or the machine cannot run `isa`.
pub fn matmul(isa: Isa, pool: &Pool, x: &[u16], rows: usize, w: &PackedBf16, y: &mut [f32], add: bool) {
    isa.require();
    let (n, k) = (w.n(), w.k());
    assert_eq!((x.len(), y.len()), (rows * k, rows * n));
    if rows == 0 || n == 0 {
        return;
    }
    let pairs = k.div_ceil(2);
    // An odd number of cache lines, so that the rows of a block do not meet in one set of the L1 cache.
    let stride = (pairs * 2).next_multiple_of(PANEL) | PANEL;
    PREPARED.with_borrow_mut(|prepared| {
        if prepared.len() < rows * stride {
            prepared.resize(rows * stride, 0);
        }
        let out = SharedMut::new(prepared);
        let some = 16384_usize.div_ceil(k.max(1)).max(8);
        pool.run(rows.div_ceil(some), &|t| {
            for r in t * some..rows.min((t + 1) * some) {
                // SAFETY: `isa` is available; row `r` of the buffer is written by this tile alone, and `stride` words
                // hold a prepared row.
                unsafe { prepare_row(isa, &x[r * k..(r + 1) * k], out.get().add(r * stride)) };
            }
        });
        let panels = n.div_ceil(PANEL);
        let job = Job {
            x: prepared.as_ptr(),
            stride,
            pairs,
            w: w.words(),
            panel: pairs * PANEL,
            y: SharedMut::new(y),
            n,
            add,
        };
        // Several tiles per thread where there is enough to do; fewer rows at once only when panels do not suffice.
        let want = if pool.threads() == 1 { 1 } else { pool.threads() * 4 };
        // Whole blocks of AVX-512, which multiply what is left at half the rate or less.
        let at_once = if isa.is_wide() && rows > 1 { L2_PANELS } else { 1 };
        let wide = (panels / want).clamp(1, TILE_PANELS).next_multiple_of(at_once);
        let columns = panels.div_ceil(wide);
        let tall = (rows * columns / want).clamp(24, TILE_ROWS).next_multiple_of(6);
        let bands = rows.div_ceil(tall);
        pool.run(bands * columns, &|t| {
            let (band, column) = (t / columns, t % columns);
            let tile = Tile {
                rows: (band * tall, rows.min((band + 1) * tall)),
                panels: (column * wide, panels.min((column + 1) * wide)),
            };
            // SAFETY: `isa` is available; tiles cover disjoint parts of y; the lengths were checked above.
            unsafe { run_tile(isa, &job, tile) };
        });
    });
}

isa_entry!(fn prepare_row(src: &[u16], dst: *mut u32) = prepare);
isa_entry!(fn run_tile(job: &Job, tile: Tile) = tile_rows, with avx512vnni);

/// # Safety
/// The ISA of `S` is available; the tile lies inside the job.
#[inline(always)]
unsafe fn tile_rows<S: Simd>(job: &Job, tile: Tile) {
    let Tile { rows: (first, end), panels } = tile;
    let whole = first + (end - first) / S::ROWS * S::ROWS;
    // The only block reads weights once. Else as much of them as stays in the L2 cache is there for all row blocks: of
    // few panels all pairs, of long rows some, of as many panels as a row block takes at once.
    let (mut many, mut depth) = (panels.1, job.pairs.max(1));
    if whole != first {
        many = (L2_WORDS / job.panel.max(1)).clamp(1, L2_PANELS);
        let at_once = row_block!(S, S::ROWS, panels_of());
        if many < at_once {
            many = at_once;
            depth = L2_WORDS / (at_once * PANEL);
        }
    }
    let widens = S::WIDENS && end - first >= WIDENED_BLOCKS * S::ROWS;
    if widens {
        many = WIDE_VECTORS;
    }
    let mut wide = MaybeUninit::<Aligned<[f32; WIDE]>>::uninit();
    let mut sums = MaybeUninit::<Aligned<[f32; TILE_ROWS * L2_PANELS * PANEL]>>::uninit();
    // SAFETY: passed on.
    unsafe {
        for panel in (panels.0..panels.1).step_by(many) {
            let end_panel = panels.1.min(panel + many);
            // What is left of these many is multiplied panel by panel.
            let wide = (widens && end_panel - panel == WIDE_VECTORS).then_some(wide.as_mut_ptr().cast());
            let depth = if wide.is_some() { WIDE_STEPS } else { depth };
            for from in (0..job.pairs.max(1)).step_by(depth) {
                let pairs = (from, job.pairs.min(from + depth));
                let asks = S::LANES == PANEL && whole != first;
                let slice = Slice { row: first, panel, pairs, sums: sums.as_mut_ptr().cast(), wide, asks };
                for row in (first..whole).step_by(S::ROWS) {
                    row_block!(S, S::ROWS, sweep(job, slice, row, end_panel));
                }
                if whole < end {
                    row_block!(S, end - whole, sweep(job, slice, whole, end_panel));
                }
            }
        }
    }
}

/// Panels of a block of `V` vectors.
#[inline(always)]
const fn panels_of<S: Simd, const R: usize, const V: usize>() -> usize {
    V * S::LANES / PANEL
}

/// `R` rows against the slice's panels before `end`, as many at a time as the block has vectors.
///
/// # Safety
/// As [`tile_rows`].
#[inline(always)]
unsafe fn sweep<S: Simd, const R: usize, const V: usize>(job: &Job, slice: Slice, row: usize, end: usize) {
    let many = panels_of::<S, R, V>();
    let mut p = slice.panel;
    // SAFETY: passed on.
    unsafe {
        while p + many <= end {
            block::<S, R, V>(job, slice, row, p);
            p += many;
        }
        while p < end {
            match S::LANES {
                4 => block::<S, R, 4>(job, slice, row, p),
                8 => block::<S, R, 2>(job, slice, row, p),
                _ => block::<S, R, 1>(job, slice, row, p),
            }
            p += 1;
        }
    }
}

/// # Safety
/// As [`tile_rows`], for rows `row..row + R` and the panels of `V` vectors from `panel`.
#[inline(always)]
unsafe fn block<S: Simd, const R: usize, const V: usize>(job: &Job, slice: Slice, row: usize, panel: usize) {
    let (from, to) = slice.pairs;
    // SAFETY: rows and panels lie inside x, w and y; the last panel is stored in part where n ends inside it. A tile of
    // several slices has room for the sums of its rows and panels.
    unsafe {
        let mut acc = [[S::splat(0.0); V]; R];
        let sums = slice.sums.wrapping_add(((row - slice.row) * L2_PANELS + panel - slice.panel) * PANEL);
        if from > 0 {
            for (r, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = S::load(sums.add(r * L2_PANELS * PANEL + v * S::LANES));
                }
            }
        }
        let w = job.w.add(panel * job.panel + from * PANEL);
        let x = job.x.add(row * job.stride + from * S::PAIR);
        if V * S::LANES == PANEL {
            let next = w.cast::<u8>().wrapping_add(AHEAD);
            dots::<S, R, V, _>(&mut acc, w, PANEL, job.panel, x, job.stride, to - from, Line(next));
        } else {
            // Each of the first row blocks asks for the lines of one panel: of the next pairs, or of the next panels.
            let nth = if slice.asks { (row - slice.row) / S::ROWS } else { V };
            let (panel, pair) = if to < job.pairs { (panel, to) } else { (panel + panels_of::<S, R, V>(), 0) };
            let next = Line(job.w.wrapping_add((panel + nth) * job.panel + pair * PANEL).cast());
            let (stride, row, steps) = (job.panel, job.stride, to - from);
            match slice.wide {
                Some(wide) if const { meets_widened::<S>(R, V) } => match nth {
                    0 => dots_widened::<S, R, V, true, _>(&mut acc, w, PANEL, stride, x, row, steps, wide, next),
                    1..WIDE_VECTORS => {
                        dots_widened::<S, R, V, false, _>(&mut acc, w, PANEL, stride, x, row, steps, wide, next)
                    }
                    _ => dots_widened::<S, R, V, false, _>(&mut acc, w, PANEL, stride, x, row, steps, wide, Nothing),
                },
                _ if nth < V => dots::<S, R, V, _>(&mut acc, w, PANEL, stride, x, row, steps, next),
                _ => dots::<S, R, V, _>(&mut acc, w, PANEL, stride, x, row, steps, Nothing),
            }
        }
        // Each case by itself: where a sum is stored must not depend on more than constants.
        if to < job.pairs {
            for (r, acc) in acc.into_iter().enumerate() {
                for (v, sum) in acc.into_iter().enumerate() {
                    S::store(sums.add(r * L2_PANELS * PANEL + v * S::LANES), sum);
                }
            }
            return;
        }
        let (y, columns) = (job.y.get().add(row * job.n + panel * PANEL), job.n - panel * PANEL);
        if columns >= V * S::LANES {
            for (r, acc) in acc.into_iter().enumerate() {
                for (v, sum) in acc.into_iter().enumerate() {
                    let y = y.add(r * job.n + v * S::LANES);
                    S::store(y, if job.add { S::add(S::load(y), sum) } else { sum });
                }
            }
            return;
        }
        for (r, acc) in acc.into_iter().enumerate() {
            for (v, sum) in acc.into_iter().enumerate() {
                let n = S::LANES.min(columns.saturating_sub(v * S::LANES));
                let y = y.wrapping_add(r * job.n + v * S::LANES);
                S::store_n(y, n, if job.add { S::add(S::load_n(y, n), sum) } else { sum });
            }
        }
    }
}
