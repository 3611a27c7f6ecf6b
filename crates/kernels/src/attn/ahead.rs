//! What is asked for of the next chunk while one is read.

use super::tile::{Form, Tile};
use crate::simd::{LINE, Simd};

/// With so many row blocks each of the first ones asks for its part of the next chunk. The first one alone would ask for
/// more than memory brings meanwhile, and its own operands would wait behind that.
pub(super) const SHARERS: usize = 4;

/// What is asked for in the course of a loop.
#[derive(Clone, Copy)]
pub(super) enum Ahead {
    Nothing,
    /// As many bytes as are read, but at most a line a step, from here on.
    Line(*const u8),
    /// As many bytes as are read, from here on.
    All(*const u8),
}

impl Ahead {
    /// The same of a loop whose first step is `steps` after that of the operand.
    #[inline(always)]
    pub fn after(self, steps: usize) -> Ahead {
        match self {
            Ahead::Line(next) => Ahead::Line(next.wrapping_add(steps * LINE)),
            // Whoever asks for all does so in one loop.
            other => other,
        }
    }

    /// A line a step, if any.
    #[inline(always)]
    pub fn line(self) -> Option<*const u8> {
        match self {
            Ahead::Nothing => None,
            Ahead::Line(next) | Ahead::All(next) => Some(next),
        }
    }
}

/// Whether `n` rows of a group are enough for [`SHARERS`] row blocks.
pub(super) const fn shared<S: Simd>(n: usize) -> bool {
    n > (SHARERS - 1) * S::ROWS
}

/// Which line of a step of `width` bytes, `column` bytes from the first of its operand, row block `block` asks for where
/// they share: line `i` of the operand's steps is for block `i % SHARERS`, however they are cut into loops.
fn share(column: usize, width: usize, block: usize) -> Option<usize> {
    let line = (block + SHARERS - column / LINE % SHARERS) % SHARERS;
    (block < SHARERS && line * LINE < width).then_some(line)
}

impl<F: Form> Tile<'_, F> {
    /// What the rows from `from` of the group ask for while they read `pairs` steps of `part` (K or V), of `width` pairs
    /// from `column` on.
    #[inline(always)]
    pub fn ahead<S: Simd>(&self, part: *const u32, column: usize, width: usize, pairs: usize, from: usize) -> Ahead {
        let bytes = if F::CODES { 2 } else { 4 };
        let next = part.cast::<u8>().wrapping_offset(self.ahead).wrapping_add(bytes * column * pairs);
        if self.ahead == 0 {
            Ahead::Nothing
        } else if self.shared {
            // Row blocks of a group are of almost equal size, larger ones first.
            let line = share(bytes * column, bytes * width, from.div_ceil(S::ROWS));
            line.map_or(Ahead::Nothing, |line| Ahead::Line(next.wrapping_add(line * LINE * pairs)))
        } else if from == 0 {
            Ahead::All(next)
        } else {
            Ahead::Nothing
        }
    }

    /// The first lines of the next part (K or V), if row blocks do not share in asking for it.
    #[inline(always)]
    pub fn first_lines(&self, part: *const u32) -> Option<*const u8> {
        (self.ahead != 0 && !self.shared).then(|| part.cast::<u8>().wrapping_offset(self.ahead))
    }

    /// Asks for some lines of the next V between scores and outputs: with few rows that is a tenth of the time, in which
    /// memory would have nothing to do. Part `part` of three.
    ///
    /// # Safety
    /// The ISA of `S` is available.
    #[inline(always)]
    pub unsafe fn ask_between<S: Simd>(&self, part: usize) {
        const LINES: usize = 8;
        if let Some(next) = self.first_lines(self.v) {
            for line in part * LINES..(part + 1) * LINES {
                // SAFETY: any address may be asked for.
                unsafe { S::prefetch(next.wrapping_add(line * LINE).cast()) };
            }
        }
    }
}

/// Calls `$f::<S, R, V, ASKED>($args, next)`, which asks for as many bytes as it reads from `next` on, but at most `ASKED`
/// of the `$bytes` of a step.
macro_rules! asking {
    ($ahead:expr, $bytes:expr, $f:ident::<$s:ident, $r:ident, $v:ident>($($arg:expr),*)) => {
        match $ahead {
            Ahead::Nothing => $f::<$s, $r, $v, 0>($($arg),*, std::ptr::null()),
            Ahead::All(next) if const { $bytes > $crate::simd::LINE } => {
                $f::<$s, $r, $v, { usize::MAX }>($($arg),*, next)
            }
            Ahead::Line(next) | Ahead::All(next) => $f::<$s, $r, $v, { $crate::simd::LINE }>($($arg),*, next),
        }
    };
}
pub(super) use asking;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sharers_ask_for_each_line_once() {
        for bytes in [128, 160, 256, 320, 384, 512, 768, 1024] {
            for most in [32, 64, 128, 256] {
                // As the loops of each row block cut the operand's steps.
                let mut asked = vec![0; bytes];
                for block in 0..2 * SHARERS {
                    let mut column = 0;
                    while column < bytes {
                        let width = most.min(bytes - column);
                        if let Some(line) = share(column, width, block) {
                            let from = column + line * LINE;
                            asked[from..(from + LINE).min(column + width)].iter_mut().for_each(|n| *n += 1);
                        }
                        column += width;
                    }
                }
                assert!(asked.iter().all(|n| *n == 1), "{bytes} in loops of {most}: {asked:?}");
            }
        }
    }
}
