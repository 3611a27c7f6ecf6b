//! What is asked for of the next chunk while one is read.

use super::tile::{Form, PAIRS, Tile};
use crate::simd::{LINE, PANEL, Simd, dots};

/// With so many row blocks each of the first ones asks for its part of the next chunk. The first one alone asks for more
/// than memory brings meanwhile, and its own operands wait behind that.
const SHARERS: usize = 4;

/// What is asked for in the course of a loop.
#[derive(Clone, Copy)]
pub(super) enum Ahead {
    Nothing,
    /// A line a step, from here on.
    Line(*const u8),
    /// As many bytes as are read, from here on.
    All(*const u8),
}

/// Whether `rows` are enough for [`SHARERS`] row blocks.
pub(super) const fn shared<S: Simd>(rows: usize) -> bool {
    rows > (SHARERS - 1) * S::ROWS
}

impl<F: Form> Tile<'_, F> {
    /// What row block `block` of the chunk asks for while it reads `pairs` steps of `part` (K or V), of `width` pairs from
    /// `column` on.
    #[inline(always)]
    pub fn ahead(&self, part: *const u32, column: usize, width: usize, pairs: usize, block: usize) -> Ahead {
        let bytes = if F::CODES { 2 } else { 4 };
        let next = part.cast::<u8>().wrapping_offset(self.ahead).wrapping_add(bytes * column * pairs);
        if self.ahead == 0 || block >= SHARERS {
            return Ahead::Nothing;
        }
        if !self.shared {
            return if block == 0 { Ahead::All(next) } else { Ahead::Nothing };
        }
        // Of the lines of a step the first one is for the first block.
        let line = (block + SHARERS - bytes * column / LINE % SHARERS) % SHARERS;
        if line * LINE < bytes * width { Ahead::Line(next.wrapping_add(line * LINE * pairs)) } else { Ahead::Nothing }
    }

    /// Asks for some lines of the next V between scores and outputs: with few rows that is a tenth of the time, in
    /// which memory would have nothing to do. Part `part` of three.
    ///
    /// # Safety
    /// The ISA of `S` is available.
    #[inline(always)]
    pub unsafe fn ask_between<S: Simd>(&self, part: usize) {
        const LINES: usize = 8;
        if let Ahead::All(next) = self.ahead(self.v, 0, 0, PAIRS, self.blocks) {
            for line in part * LINES..(part + 1) * LINES {
                // SAFETY: any address may be asked for.
                unsafe { S::prefetch(next.wrapping_add(line * LINE).cast()) };
            }
        }
    }
}

/// [`dots`] of neighbouring vectors that asks for what comes next.
///
/// # Safety
/// As [`dots`].
#[inline(always)]
pub(super) unsafe fn dots_ahead<S: Simd, const R: usize, const V: usize>(
    acc: &mut [[S::F; V]; R],
    w: *const u32,
    stride: usize,
    x: *const u32,
    row: usize,
    pairs: usize,
    ahead: Ahead,
) {
    // SAFETY: passed on.
    unsafe {
        match ahead {
            Ahead::Nothing => dots::<S, R, V, 0>(acc, w, stride, PANEL, x, row, pairs, std::ptr::null()),
            Ahead::All(next) if const { V * S::LANES > PANEL } => {
                dots::<S, R, V, { usize::MAX }>(acc, w, stride, PANEL, x, row, pairs, next);
            }
            Ahead::Line(next) | Ahead::All(next) => dots::<S, R, V, LINE>(acc, w, stride, PANEL, x, row, pairs, next),
        }
    }
}
