//! What is asked for of the next chunks while one is read.

use super::kernel::Job;
use super::plan::Task;
use super::steps::Step;
use super::tile::{Form, Tile};
use crate::simd::{LINE, Simd};

/// With so many row blocks each of the first ones asks for its part of the next chunks. The first one alone would ask for
/// more than memory brings meanwhile, and its own operands would wait behind that.
pub(super) const SHARERS: usize = 4;

/// Steps of a task ahead of which row blocks that share may ask: what they ask for stays in the L2 cache until then.
const WINDOW: usize = 5;

/// The steps of a task that are still to come.
pub(super) struct Upcoming<'a> {
    job: &'a Job<'a>,
    head: usize,
    steps: &'a [Step],
    /// How many of them were asked for.
    asked: usize,
}

impl<'a> Upcoming<'a> {
    pub fn new(job: &'a Job<'a>, task: &Task) -> Upcoming<'a> {
        Upcoming { job, head: task.head, steps: &job.plan.steps[task.steps.clone()], asked: 0 }
    }

    /// The next step.
    pub fn begin(&mut self) -> Option<Step> {
        let (&step, rest) = self.steps.split_first()?;
        self.steps = rest;
        self.asked = self.asked.saturating_sub(1);
        Some(step)
    }

    /// What a group of `n` rows asks for, while it meets the K at `k` and V. Few rows take a chunk faster than memory
    /// brings another one, so that they ask only for what is needed next; who shares may go ahead, and ask for two
    /// chunks if it is the `only` group. Not to be asked for again if the group [did so](Self::have_asked).
    pub fn asks<S: Simd>(&self, n: usize, only: bool, k: *const u32) -> Asks {
        let mut asks = Asks { chunks: [None; 2], blocks: n.div_ceil(S::ROWS), asked: self.asked };
        let (window, most) = if asks.are_shared() {
            (WINDOW, if only { 2 } else { 1 })
        } else {
            let next = self.steps.iter().position(|step| matches!(step, Step::Visit { .. }));
            (next.map_or(0, |next| next + 1), 1)
        };
        for to in &mut asks.chunks[..most] {
            let steps = self.steps[..window.min(self.steps.len())].iter().enumerate().skip(asks.asked);
            for (i, step) in steps {
                if let Step::Visit { run, chunk, .. } = *step {
                    let runs = self.job.runs;
                    let id = runs.chunks[(runs.runs[run as usize].chunks.start + chunk) as usize];
                    let next = self.job.kv.words(id, self.job.layer, self.head).start();
                    *to = Some(next as isize - k as isize);
                    asks.asked = i + 1;
                    break;
                }
            }
        }
        asks
    }

    pub fn have_asked(&mut self, asks: &Asks) {
        self.asked = asks.asked;
    }
}

/// What a group asks for.
#[derive(Clone, Copy)]
pub(super) struct Asks {
    /// Bytes from K and V of the chunk that it meets to those of the ones that it asks for.
    chunks: [Option<isize>; 2],
    /// Row blocks of the group.
    blocks: usize,
    /// What [`Upcoming::asked`] will be.
    asked: usize,
}

impl Asks {
    pub const NOTHING: Asks = Asks { chunks: [None; 2], blocks: 0, asked: 0 };

    /// Whether row blocks share in asking.
    pub fn are_shared(&self) -> bool {
        self.blocks >= SHARERS
    }
}

/// What is asked for in the course of a loop.
#[derive(Clone, Copy)]
pub(super) enum Ahead {
    Nothing,
    /// As many bytes as are read, but at most a line a step, from here on.
    Line(*const u8),
    /// The same from two places.
    Lines([*const u8; 2]),
    /// As many bytes as are read, from here on.
    All(*const u8),
}

impl Ahead {
    /// The same of a loop whose first step is `steps` after that of the operand.
    #[inline(always)]
    pub fn after(self, steps: usize) -> Ahead {
        let lines = steps * LINE;
        match self {
            Ahead::Line(next) => Ahead::Line(next.wrapping_add(lines)),
            Ahead::Lines([a, b]) => Ahead::Lines([a.wrapping_add(lines), b.wrapping_add(lines)]),
            // Whoever asks for all does so in one loop.
            other => other,
        }
    }
}

/// Whether groups that share have blocks of so many rows: all of theirs are of almost equal size.
pub(super) const fn is_sharer<S: Simd>(rows: usize) -> bool {
    rows > S::ROWS / 2
}

/// Which line of a step of `width` bytes, `column` bytes from the first of its operand, row block `block` of so many asks
/// for where they share, of either chunk. Line `i` of the operand's steps is for sharer `i % SHARERS`, however they are
/// cut into loops; sharers of the first chunk are the first blocks, those of the second one the last, so that few have both.
fn share(column: usize, width: usize, block: usize, blocks: usize) -> [Option<usize>; 2] {
    let line = |sharer: usize| (sharer + SHARERS - column / LINE % SHARERS) % SHARERS;
    let sharers = [Some(block), (block + SHARERS).checked_sub(blocks).map(|sharer| (sharer + SHARERS / 2) % SHARERS)];
    sharers.map(|sharer| sharer.filter(|&sharer| sharer < SHARERS).map(line).filter(|line| line * LINE < width))
}

impl<F: Form> Tile<'_, F> {
    /// What the rows from `from` of the group ask for while they read `pairs` steps of `part` (K or V), of `width` pairs
    /// from `column` on.
    #[inline(always)]
    pub fn ahead<S: Simd>(&self, part: *const u32, column: usize, width: usize, pairs: usize, from: usize) -> Ahead {
        let bytes = if F::CODES { 2 } else { 4 };
        let place = |next: isize| part.cast::<u8>().wrapping_offset(next).wrapping_add(bytes * column * pairs);
        match self.asks.chunks {
            [None, _] => Ahead::Nothing,
            [Some(first), second] if self.asks.are_shared() => {
                // Row blocks of a group are of almost equal size, larger ones first.
                let lines = share(bytes * column, bytes * width, from.div_ceil(S::ROWS), self.asks.blocks);
                let first = lines[0].map(|line| place(first).wrapping_add(line * LINE * pairs));
                let second = second.zip(lines[1]).map(|(next, line)| place(next).wrapping_add(line * LINE * pairs));
                match (first, second) {
                    (Some(first), Some(second)) => Ahead::Lines([first, second]),
                    (Some(next), None) | (None, Some(next)) => Ahead::Line(next),
                    (None, None) => Ahead::Nothing,
                }
            }
            [Some(next), _] if from == 0 => Ahead::All(place(next)),
            _ => Ahead::Nothing,
        }
    }

    /// The first lines of the next part (K or V), if row blocks do not share in asking for it.
    #[inline(always)]
    pub fn first_lines(&self, part: *const u32) -> Option<*const u8> {
        if self.asks.are_shared() {
            return None;
        }
        self.asks.chunks[0].map(|next| part.cast::<u8>().wrapping_offset(next))
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

/// Calls `$f::<.., _>($args, ask)`, which asks for what `$ahead` says; `$bytes` are read in a step.
macro_rules! asking {
    ($ahead:expr, $bytes:expr, $f:ident::<$s:ident, $r:ident, $v:ident $(, $more:literal)?>($($arg:expr),*)) => {
        match $ahead {
            Ahead::Nothing => $f::<$s, $r, $v $(, $more)?, _>($($arg),*, $crate::simd::Nothing),
            Ahead::All(next) if const { $bytes > LINE } => {
                $f::<$s, $r, $v $(, $more)?, _>($($arg),*, $crate::simd::All(next))
            }
            Ahead::Lines(next) if const { super::ahead::is_sharer::<$s>($r) } => {
                $f::<$s, $r, $v $(, $more)?, _>($($arg),*, $crate::simd::Lines(next))
            }
            Ahead::Line(next) | Ahead::Lines([next, _]) | Ahead::All(next) => {
                $f::<$s, $r, $v $(, $more)?, _>($($arg),*, $crate::simd::Lines([next]))
            }
        }
    };
}
pub(super) use asking;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sharers_ask_for_each_line_once() {
        for (blocks, bytes) in (SHARERS..=8).flat_map(|n| [128, 160, 256, 320, 384, 512, 768, 1024].map(|b| (n, b))) {
            for most in [32, 64, 128, 256] {
                // As the loops of each row block cut the operand's steps.
                let mut asked = [vec![0; bytes], vec![0; bytes]];
                for block in 0..blocks {
                    let mut column = 0;
                    while column < bytes {
                        let width = most.min(bytes - column);
                        for (line, asked) in share(column, width, block, blocks).iter().zip(&mut asked) {
                            if let Some(line) = line {
                                let from = column + line * LINE;
                                asked[from..(from + LINE).min(column + width)].iter_mut().for_each(|n| *n += 1);
                            }
                        }
                        column += width;
                    }
                }
                assert!(
                    asked.iter().flatten().all(|n| *n == 1),
                    "{bytes} in loops of {most}, {blocks} blocks: {asked:?}"
                );
            }
        }
    }
}
