//! How a group of query rows asks for the next chunks while it meets one.

use std::cell::Cell;

use kvist_base::CHUNK;

use super::tile::{Form, Tile};
use super::upcoming::{Asks, NOWHERE, PLACES, Place, ask_evenly, blocks_of, bytes, share_in_asking};
use crate::simd::{Ask, LINE, Simd};

/// What is asked for in the course of a loop.
#[derive(Clone, Copy)]
pub(super) enum Ahead {
    Nothing,
    /// From here on, so many bytes with two steps: those of [so many](most) lines, at most.
    Paced(*const u8, usize),
    /// As many bytes as are read, from here on.
    All(*const u8),
}

/// Asks for so many lines with two steps of a loop, from there on, of which so many bytes are new each time.
#[derive(Clone, Copy)]
pub(super) struct Paced<const LINES: usize>(pub *const u8, pub usize);

impl<const LINES: usize> Ask for Paced<LINES> {
    #[inline(always)]
    unsafe fn ask<S: Simd>(self, _: usize, _: usize, _: usize) {}

    #[inline(always)]
    unsafe fn ask_two<S: Simd>(self, _: usize, i: usize, _: usize) {
        for line in 0..LINES {
            // SAFETY: any address may be asked for.
            unsafe { S::prefetch(self.0.wrapping_add(i / 2 * self.1 + line * LINE).cast()) };
        }
    }
}

/// Lines that loops ask for with two steps of `width` pairs, at most: one in six cycles. Memory does not bring more, a core's
/// own operands wait behind them, wherever they come from, and what there is no room for is dropped.
pub(super) const fn most(width: usize) -> usize {
    (4 * width).div_ceil(WIDTH)
}

/// How what is asked for is spread over all that a group does.
#[derive(Default)]
pub(super) struct Pace {
    places: [Place; PLACES],
    /// Which place is next, and what is left of the one before it.
    place: Cell<usize>,
    left: Cell<Place>,
    /// New bytes with two steps for each pair of a step's vectors, in 1/2^16.
    rate: usize,
    /// Lines for each row between scores and outputs.
    between: usize,
    /// Lines between loops, of a single row block.
    burst: usize,
}

/// Parts in which a single row block asks between its loops.
const PARTS: usize = 4;

/// Pairs of a step's vectors in the widest loops.
const WIDTH: usize = 64;

/// Of so many row blocks, what all loops multiply: K has `dim / 2` steps of 64 pairs, V 32 of `dim`.
fn pairs(blocks: usize, dim: usize) -> usize {
    2 * blocks * CHUNK * (dim / 2)
}

impl Pace {
    /// Bytes that so many row blocks of this head size can ask for: three lines with two steps, which is nearly as fast as memory
    /// brings them, and in between. Of few, which memory keeps waiting anyway, one more.
    pub fn room(blocks: usize, dim: usize) -> usize {
        let lines = if share_in_asking(blocks) { 3 } else { most(WIDTH) };
        lines * (pairs(blocks, dim) / 2 / WIDTH) * LINE * 8 / 7
    }

    /// For `rows` rows in so many blocks, of this head size, which ask evenly or in bursts.
    fn new(places: [Place; PLACES], rows: usize, blocks: usize, dim: usize, even: bool) -> Pace {
        let lines: usize = places.iter().map(|&place| bytes(place).div_ceil(LINE)).sum();
        let mut pace = Pace { places, ..Pace::default() };
        if !even {
            pace.burst = lines.div_ceil(PARTS);
            return pace;
        }
        // Scores become weights in an eighth of the time.
        pace.between = lines.div_ceil(8 * rows);
        let left = lines.saturating_sub(pace.between * rows);
        // The loop in which a place ends asks for no other.
        let ends = places.iter().filter(|&&place| bytes(place) > 0).count().saturating_sub(1);
        pace.rate = ((left * LINE * 2) << 16) / (pairs(blocks, dim) - ends * CHUNK * (dim / 2));
        pace
    }

    /// What is left of the next place.
    #[inline(always)]
    fn next(&self) -> Place {
        let left = self.left.get();
        if left[0] < left[1] {
            return left;
        }
        let next = (self.place.get()..PLACES).find(|&i| bytes(self.places[i]) > 0);
        self.place.set(next.map_or(PLACES, |i| i + 1));
        self.left.set(next.map_or(NOWHERE, |i| self.places[i]));
        self.left.get()
    }

    /// What a loop asks for in so many steps of `width` pairs.
    #[inline(always)]
    fn of_loop(&self, width: usize, steps: usize) -> Ahead {
        let ([from, to], turns) = (self.next(), steps / 2);
        if from >= to || turns == 0 {
            return Ahead::Nothing;
        }
        // Up, so that nothing is left.
        let bytes = (((self.rate * width) >> 16) + 1).min(most(width) * LINE).min((to - from).div_ceil(turns));
        self.left.set([from + turns * bytes, to]);
        Ahead::Paced(std::ptr::without_provenance(from), bytes)
    }

    /// Asks for so many lines, of two places at most.
    ///
    /// # Safety
    /// The ISA of `S` is available.
    #[inline(always)]
    unsafe fn ask<S: Simd>(&self, lines: usize) {
        // SAFETY: passed on.
        unsafe {
            let some = self.ask_of_one::<S>(lines);
            if some < lines {
                self.ask_of_one::<S>(lines - some);
            }
        }
    }

    /// The same of one place, and how many it were.
    ///
    /// # Safety
    /// As [`Pace::ask`].
    #[inline(always)]
    unsafe fn ask_of_one<S: Simd>(&self, lines: usize) -> usize {
        let [from, to] = self.next();
        let lines = lines.min((to - from).div_ceil(LINE));
        if lines > 0 {
            // SAFETY: any address may be asked for; some lines.
            unsafe { S::prefetch_lines(std::ptr::without_provenance(from), lines) };
            self.left.set([from + lines * LINE, to]);
        }
        lines
    }

    /// Asks for what is due with each row between scores and outputs.
    ///
    /// # Safety
    /// The ISA of `S` is available.
    #[inline(always)]
    pub unsafe fn with_row<S: Simd>(&self) {
        // SAFETY: passed on.
        unsafe {
            if self.between > 0 {
                self.ask::<S>(self.between);
            }
        }
    }
}

/// Whether row blocks of so many rows may be those of a group that shares: these are of almost equal size.
pub(super) const fn may_share<S: Simd>(rows: usize) -> bool {
    rows > S::ROWS / 2
}

impl<F: Form> Tile<'_, F> {
    /// Begins with a group of `n` rows, which asks for this.
    pub fn ask<S: Simd>(&mut self, n: usize, asks: Asks) {
        self.even = ask_evenly::<S>(n) && asks.follow.k.is_none();
        self.follow = asks.follow;
        self.pace = Pace::new(asks.places, n, blocks_of::<S>(n), self.job.plan.shape.head_dim, self.even);
    }

    /// What the rows from `from` of the group ask for while they read `pairs` steps of K, of `width` pairs from `column` on.
    #[inline(always)]
    pub fn ahead_of_k(&self, column: usize, width: usize, pairs: usize, from: usize) -> Ahead {
        self.ahead((self.k, self.follow.k), (column, width), pairs, from)
    }

    /// The same of V.
    #[inline(always)]
    pub fn ahead_of_v(&self, column: usize, width: usize, pairs: usize, from: usize) -> Ahead {
        self.ahead((self.v, self.follow.v), (column, width), pairs, from)
    }

    #[inline(always)]
    fn ahead(
        &self,
        (here, next): (*const u8, Option<isize>),
        (column, width): (usize, usize),
        pairs: usize,
        from: usize,
    ) -> Ahead {
        if self.even {
            return self.pace.of_loop(width, pairs);
        }
        let bytes = if F::CODES { 2 } else { 4 };
        match next {
            Some(next) if from == 0 => Ahead::All(here.wrapping_offset(next).wrapping_add(bytes * column * pairs)),
            _ => Ahead::Nothing,
        }
    }

    /// The first lines of the next K, for few rows that follow.
    #[inline(always)]
    pub fn first_of_k(&self) -> Option<*const u8> {
        self.follow.k.map(|next| self.k.wrapping_offset(next))
    }

    /// A single row block asks for some lines between its loops: what is left to it, in [`PARTS`]; or, if it follows, for the next
    /// scales first, and then for some of the next V, since that is a tenth of its time, in which memory would have
    /// nothing to do.
    ///
    /// # Safety
    /// The ISA of `S` is available.
    #[inline(always)]
    pub unsafe fn ask_between<S: Simd>(&self, part: usize) {
        const LINES: usize = 8;
        // SAFETY: any address may be asked for.
        unsafe {
            if part == 0 && self.follow.k.is_some() {
                for [from, to] in self.follow.scales {
                    for line in from / LINE..to.div_ceil(LINE) {
                        S::prefetch_near(std::ptr::without_provenance(line * LINE));
                    }
                }
                return;
            }
            match self.follow.v {
                Some(next) if part > 0 => {
                    let next = self.v.wrapping_offset(next).wrapping_add((part - 1) * LINES * LINE);
                    S::prefetch_lines(next.cast(), LINES);
                }
                None if self.pace.burst > 0 => self.pace.ask::<S>(self.pace.burst),
                _ => {}
            }
        }
    }
}

/// Calls `$f::<.., _>($args, (ask, $bytes))` for `$r` rows and steps of `$width` pairs, which asks for what `$ahead` says; `$bytes`
/// are read in each of `$steps` steps. Forms that cannot occur are not compiled.
macro_rules! asking {
    ($s:ident, $r:ident, $width:expr, $ahead:expr, $bytes:expr, $steps:expr, $f:ident::<$($of:tt),*>($($arg:expr),*)) => {
        match $ahead {
            Ahead::All(next) if const { $bytes > $crate::simd::LINE } => {
                $f::<$($of),*, _>($($arg),*, ($crate::simd::All::new(next, $bytes, $steps), $bytes))
            }
            Ahead::All(next) => $f::<$($of),*, _>($($arg),*, ($crate::simd::Line(next), $bytes)),
            Ahead::Paced(next, apart) if const { super::ahead::may_share::<$s>($r) } => {
                match apart.div_ceil($crate::simd::LINE) {
                    4 if const { super::ahead::most($width) >= 4 } => {
                        $f::<$($of),*, _>($($arg),*, (super::ahead::Paced::<4>(next, apart), $bytes))
                    }
                    3 if const { super::ahead::most($width) >= 3 } => {
                        $f::<$($of),*, _>($($arg),*, (super::ahead::Paced::<3>(next, apart), $bytes))
                    }
                    2 if const { super::ahead::most($width) >= 2 } => {
                        $f::<$($of),*, _>($($arg),*, (super::ahead::Paced::<2>(next, apart), $bytes))
                    }
                    _ => $f::<$($of),*, _>($($arg),*, (super::ahead::Paced::<1>(next, apart), $bytes)),
                }
            }
            _ => $f::<$($of),*, _>($($arg),*, ($crate::simd::Nothing, $bytes)),
        }
    };
}
pub(super) use asking;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Portable;

    /// Lines that a loop asks for.
    fn lines(ahead: Ahead, steps: usize) -> Vec<usize> {
        let Ahead::Paced(next, bytes) = ahead else { return Vec::new() };
        let lines = bytes.div_ceil(LINE);
        assert!(lines <= most(WIDTH));
        (0..steps / 2).flat_map(|i| (0..lines).map(move |line| (next as usize + i * bytes) / LINE + line)).collect()
    }

    /// As loops of all widths do, between which rows ask as well: for each line, and for little else.
    #[test]
    fn what_is_shared_is_asked_for_in_the_course_of_all_loops() {
        for (dim, width, rows) in [
            (64_usize, 64, 8_usize),
            (128, 64, 12),
            (128, 64, 13),
            (64, 16, 24),
            (64, 64, 19),
            (96, 32, 25),
            (128, 16, 32),
            (128, 64, 32),
            (256, 64, 32),
        ] {
            let blocks = rows.div_ceil(6);
            let [narrow, wide] = [2 * (CHUNK * dim + dim + CHUNK), 2 * (2 * CHUNK * dim + 2 * CHUNK)];
            let part = wide / 3 / LINE * LINE;
            for sizes in [vec![wide], vec![narrow], vec![wide, wide], vec![wide, narrow], vec![0, wide, part], vec![]] {
                let mut places = [NOWHERE; PLACES];
                for (i, (place, bytes)) in places.iter_mut().zip(&sizes).enumerate() {
                    *place = [1 << (20 + i), (1 << (20 + i)) + bytes];
                }
                let wanted: usize = sizes.iter().map(|bytes| bytes.div_ceil(LINE)).sum();
                if wanted * LINE > Pace::room(blocks, dim) {
                    continue;
                }
                let pace = Pace::new(places, rows, blocks, dim, true);
                let mut asked = Vec::new();
                for _ in 0..blocks * CHUNK / width {
                    asked.extend(lines(pace.of_loop(width, dim / 2), dim / 2));
                }
                for _ in 0..rows {
                    let before = pace.next();
                    // SAFETY: any address may be asked for.
                    unsafe { pace.with_row::<Portable>() };
                    let ends = if before == NOWHERE { before } else { [before[0], pace.left.get()[0]] };
                    if (before[0]..before[1] + LINE).contains(&ends[1]) {
                        asked.extend(ends[0] / LINE..ends[1].div_ceil(LINE));
                    } else if before != NOWHERE {
                        let then = places[pace.place.get() - 1][0];
                        asked.extend(before[0] / LINE..before[1].div_ceil(LINE));
                        asked.extend(then / LINE..ends[1] / LINE);
                    }
                }
                for _ in 0..blocks * dim / width {
                    asked.extend(lines(pace.of_loop(width, CHUNK / 2), CHUNK / 2));
                }
                asked.sort_unstable();
                asked.dedup();
                let case = format!("{dim} elements, {width} pairs, {rows} rows, {sizes:?} bytes");
                for line in places.iter().flat_map(|[from, to]| from / LINE..to.div_ceil(LINE)) {
                    assert!(asked.binary_search(&line).is_ok(), "{case}: line {line}");
                }
                assert!(asked.len() <= wanted + wanted / 8 + 16 * sizes.len(), "{case}: {} of {wanted}", asked.len());
            }
        }
    }
}
