//! What is asked for of weights before they are read.

use std::cell::Cell;

use super::PackedQuant;
use super::dots::Dots;
use super::packed::GROUP;
use super::unpack::{Form, panels_at_once};
use crate::simd::{LINE, PANEL};

/// Bytes between the codes that are read and those that are asked for, where few rows meet them.
const AHEAD: usize = 4096;

/// The same for the words beside them.
const AHEAD_HEADS: usize = 512;

/// Asks for what comes later of codes and heads, as much as a group has.
///
/// # Safety
/// The ISA of `S` is available.
#[inline(always)]
pub(crate) unsafe fn ask_for_group<S: Dots, F: Form>(codes: *const u32, heads: *const u16, of_block: usize) {
    // SAFETY: any address is allowed.
    unsafe {
        for line in (0..F::CODES).step_by(PANEL) {
            S::prefetch(codes.wrapping_add(line).wrapping_byte_add(AHEAD));
        }
        S::prefetch(heads.wrapping_add(of_block * PANEL).wrapping_byte_add(AHEAD_HEADS).cast());
    }
}

/// The same where two panels are read side by side. Four streams the hardware follows by itself: asking for them takes up to an
/// eighth longer. Of two of four bits it does not see enough: three rows of Q4_0 are 1.25 times as fast with this, four 1.55 times,
/// of Q4_K 1.5 and 1.7 times (Zen 5, one thread, weights from memory; with 3 KiB up to a tenth less, with 6 KiB the same). Three
/// rows of Q8_0 took a tenth longer (3 KiB); other forms are not read in pairs.
const PAIR_AHEAD: usize = 4608;

/// Asks for what comes later of panels that are read side by side: of group `g`, and of the heads of the next block.
///
/// # Safety
/// The ISA of `S` is available.
#[inline(always)]
pub(crate) unsafe fn ask_for_panels<S: Dots, F: Form>(
    (codes, codes_apart): (*const u32, usize),
    (heads, heads_apart): (*const u16, usize),
    g: usize,
    panels: usize,
) {
    for p in 0..panels {
        // SAFETY: any address is allowed.
        unsafe {
            if S::LANES == PANEL && panels == 2 && F::KIND.bits() == 4 {
                let codes = codes.wrapping_add(p * codes_apart).wrapping_byte_add(PAIR_AHEAD);
                for line in (0..F::CODES).step_by(PANEL) {
                    S::prefetch_near(codes.wrapping_add(line).cast());
                }
            }
            // Too few lines for the hardware to see that they go on.
            if F::AT_ONCE > 1 && g.is_multiple_of(2) {
                S::prefetch_near(heads.wrapping_add(p * heads_apart + F::HEADS + g * PANEL).cast());
            }
        }
    }
}

/// Addresses from and to which something lies.
type Place = [usize; 2];

/// The next piece, which is asked for in the course of the products of another one: a little at a time. Requests that come
/// faster than memory answers are dropped by some CPUs, and hold up what others read meanwhile.
pub(crate) struct Due {
    now: Cell<Place>,
    then: Cell<[Place; 3]>,
    /// Lines of a turn.
    each: usize,
}

impl Due {
    pub fn nothing() -> Due {
        Due { now: Cell::new([0; 2]), then: Cell::new([[0; 2]; 3]), each: 0 }
    }

    /// Codes and heads of `groups` groups from `group` on of [`panels_at_once`] of these panels, in so many turns.
    pub fn new<S: Dots>(w: &PackedQuant, panels: (usize, usize), group: usize, groups: usize, turns: usize) -> Due {
        let (kind, of_row) = (w.kind(), w.k() / GROUP);
        let block = kind.block_len() / GROUP;
        let (codes, heads) = (kind.bits() * PANEL * size_of::<u32>(), kind.heads() * PANEL * size_of::<u16>());
        let mut places = [[0; 2]; 4];
        for (i, panel) in [panels.0, panels.1].into_iter().take(panels_at_once::<S>()).enumerate() {
            let first = panel * of_row + group;
            let place = |from: usize, bytes: usize| [from, from + bytes];
            places[2 * i] = place(w.codes().as_ptr() as usize + first * codes, groups * codes);
            let first = first / block * heads;
            places[2 * i + 1] = place(w.heads().as_ptr() as usize + first, groups.div_ceil(block) * heads);
        }
        let lines = places.map(|[from, to]| (to - from).div_ceil(LINE));
        let all: usize = lines.iter().sum();
        // A turn ends with a place: `each - 1` lines of each place's last one may lie behind it.
        let (each, places_of) = (all.div_ceil(turns), lines.len());
        let each = if each > 1 && turns > places_of { (all - places_of).div_ceil(turns - places_of) } else { each };
        let [now, then @ ..] = places;
        Due { now: Cell::new(now), then: Cell::new(then), each }
    }

    /// Asks for what is due in a turn: lines of one place, of which some may lie behind its end.
    ///
    /// # Safety
    /// The ISA of `S` is available.
    #[inline(always)]
    pub unsafe fn ask<S: Dots>(&self) {
        let [mut at, end] = self.now.get();
        if at >= end {
            return;
        }
        // SAFETY: any address is allowed.
        unsafe { S::prefetch_lines(std::ptr::without_provenance(at), self.each) };
        at += self.each * LINE;
        if at < end {
            self.now.set([at, end]);
        } else {
            let [next, a, b] = self.then.get();
            self.now.set(next);
            self.then.set([a, b, [0; 2]]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::QuantKind;
    use super::*;
    use crate::Pool;
    use crate::simd::Portable;

    /// All lines of a piece are asked for, whatever the format, in so many turns if there is one for each place, and little
    /// else. Turns end with places: lines over turns, rounded up, once left the last places of two panels out.
    #[test]
    fn a_piece_is_asked_for_in_its_turns() {
        for kind in QuantKind::ALL {
            let pool = Pool::new(1);
            let k = 3 * 256;
            let w = PackedQuant::pack(kind, 40, k, &pool, &|_, row| row.fill(1)).expect("weights");
            for turns in [1, 5, 7, 16, 24, 128] {
                let mut pieces = vec![(1, Due::new::<Portable>(&w, (1, 1), 8, 8, turns))];
                #[cfg(target_arch = "x86_64")]
                pieces.push((2, Due::new::<crate::simd::Avx512>(&w, (0, 1), 8, 8, turns)));
                for (panels, due) in pieces {
                    let [a, b, c] = due.then.get();
                    let places = [due.now.get(), a, b, c];
                    assert!(places[2 * panels..].iter().all(|place| *place == [0; 2]), "{panels} panels");
                    let mut asked = 0;
                    for _ in 0..turns.max(2 * panels) {
                        let before = due.now.get();
                        // SAFETY: there is nothing that it needs.
                        unsafe { due.ask::<Portable>() };
                        asked += if before[0] < before[1] { due.each } else { 0 };
                    }
                    assert_eq!(due.now.get(), [0; 2], "{kind}, {panels} panels in {turns} turns: all of it");
                    let lines = places.map(|[from, to]| (to - from).div_ceil(LINE));
                    assert_eq!((places[0][0] % LINE, lines[0]), (0, 8 * kind.bits()), "{kind}");
                    let all: usize = lines.iter().sum();
                    assert!(asked >= all && asked <= all + 2 * panels * due.each, "{kind}");
                }
            }
        }
    }
}
