//! A few rows of activations against a panel: codes go from the packed form into registers, since what is used that
//! little needs no place of its own.

use std::mem::MaybeUninit;

use super::PackedQuant;
use super::QuantKind::{self, Q4_0, Q4K, Q5_0, Q5K, Q6K, Q8_0};
use super::ahead::{ask_for_group, ask_for_panels};
use super::block::MAX_LEN;
use super::dots::Dots;
use super::kernel::{add_scaled, add_step, start, unroll};
use super::packed::GROUP;
use super::rows::{Group, start_of};
use super::unpack::{By4, By4Min, By5, By5Min, By6, By8, Form, HEADS, Heads, Packed, unpack_heads};
use crate::Isa;
use crate::simd::{FarRows, PANEL, at};

/// Rows of a tile that are multiplied this way; more of them are worth unpacking. Measured on AVX2 and on AVX-512 with
/// weights that come from memory: with some dozens of rows of AVX2 bytes are not worth a copy, but five bits are costly to
/// bring together (on AVX-512 they were tried with 8 rows alone, and are taken to be as four). Elsewhere by a model, or
/// because as few rows have no better way.
pub(crate) fn few_of(isa: Isa, kind: QuantKind) -> usize {
    match (isa, kind) {
        (Isa::Avx2, Q8_0) => usize::MAX,
        (Isa::Avx2, Q6K) => 16,
        (Isa::Avx2, Q4_0 | Q4K) => 12,
        (Isa::Avx2, Q5_0 | Q5K) => 8,
        (Isa::Avx512 | Isa::Avx512Vnni, Q4_0) => 16,
        (Isa::Avx512 | Isa::Avx512Vnni, Q8_0 | Q5_0 | Q4K | Q5K) => 12,
        (Isa::Avx512 | Isa::Avx512Vnni, Q6K) => 10,
        (_, Q8_0 | Q6K) => 8,
        _ => 4,
    }
}

/// Panels of which as many rows are multiplied at once, each read from a place of its own. Reads of several places that
/// take turns line by line keep more of memory busy than one place with all its lines asked for ahead, by a quarter
/// where nothing else bounds it: the hardware looks ahead by itself in each, within a page. The sums of all have to fit
/// the registers.
const fn streams<S: Dots>(kind: QuantKind, rows: usize) -> usize {
    match (S::LANES, rows, kind) {
        (8, 1, _) | (16, 1 | 2, _) => STREAMS,
        // Of 5 and 6 bits more is kept in registers until codes are whole.
        (16, 3 | 4, Q5_0 | Q5K | Q6K) => 1,
        (8, 2, _) | (16, 3 | 4, _) => STREAMS / 2,
        _ => 1,
    }
}

/// The most [`streams`].
pub(crate) const STREAMS: usize = 4;

/// Groups of the largest block.
const MAX_BLOCK: usize = MAX_LEN / GROUP;

/// Writes the sums of `rows` rows, `[panels][rows][16]`.
///
/// # Safety
/// The ISA of `S` is available; w has the panels, x the rows, `sums` room.
#[inline(always)]
pub(crate) unsafe fn few_rows<S: Dots>(
    w: &PackedQuant,
    panels: (usize, usize),
    x: FarRows<Group>,
    rows: usize,
    sums: *mut f32,
) {
    // SAFETY: passed on.
    unsafe {
        match w.kind() {
            Q8_0 => all_panels::<S, By8, true>(w, panels, x, rows, sums),
            Q4_0 => all_panels::<S, By4, false>(w, panels, x, rows, sums),
            Q5_0 => all_panels::<S, By5, false>(w, panels, x, rows, sums),
            Q4K => all_panels::<S, By4Min, false>(w, panels, x, rows, sums),
            Q5K => all_panels::<S, By5Min, false>(w, panels, x, rows, sums),
            Q6K => all_panels::<S, By6, false>(w, panels, x, rows, sums),
        }
    }
}

/// # Safety
/// As [`few_rows`]; the matrix is of the form `F`.
#[inline(always)]
unsafe fn all_panels<S: Dots, F: Form, const WIDE: bool>(
    w: &PackedQuant,
    (first, end): (usize, usize),
    x: FarRows<Group>,
    rows: usize,
    sums: *mut f32,
) {
    // Each stream goes through consecutive panels: what the hardware reads ahead at the end of one is the next one's.
    let streams = streams::<S>(F::KIND, rows);
    let each = (end - first) / streams;
    let whole = each * streams;
    // SAFETY: the panels and their sums are there.
    unsafe {
        for i in 0..if streams > 1 { each } else { 0 } {
            let (panel, sums) = (first + i, sums.add(i * rows * PANEL));
            match rows {
                1 if const { S::LANES == 8 } => block::<S, F, WIDE, 1, 8>(w, panel, each, x, rows, sums),
                2 if const { S::LANES >= 8 } => block::<S, F, WIDE, 2, 4>(w, panel, each, x, rows, sums),
                1 if const { S::LANES == 16 } => block::<S, F, WIDE, 1, 4>(w, panel, each, x, rows, sums),
                3 if const { S::LANES == 16 } => block::<S, F, WIDE, 3, 2>(w, panel, each, x, rows, sums),
                4 if const { S::LANES == 16 } => block::<S, F, WIDE, 4, 2>(w, panel, each, x, rows, sums),
                rows => unreachable!("{streams} streams for {rows} rows"),
            };
        }
        for panel in if streams > 1 { first + whole } else { first }..end {
            all_rows::<S, F, WIDE>(w, panel, x, rows, sums.add((panel - first) * rows * PANEL));
        }
    }
}

/// # Safety
/// As [`all_panels`], for one panel.
#[inline(always)]
unsafe fn all_rows<S: Dots, F: Form, const WIDE: bool>(
    w: &PackedQuant,
    panel: usize,
    x: FarRows<Group>,
    rows: usize,
    sums: *mut f32,
) {
    let mut r = 0;
    while r < rows {
        // SAFETY: `r` rows are done, and a block takes no more than are left. V vectors are a panel.
        unsafe {
            let (x, sums) = (x.from(r, 0), sums.add(r * PANEL));
            r += if const { S::LANES == 4 } {
                block::<S, F, WIDE, 1, 4>(w, panel, 0, x, rows, sums)
            } else if const { S::LANES == 8 } {
                match rows - r {
                    1 => block::<S, F, WIDE, 1, 2>(w, panel, 0, x, rows, sums),
                    2 => block::<S, F, WIDE, 2, 2>(w, panel, 0, x, rows, sums),
                    3 => block::<S, F, WIDE, 3, 2>(w, panel, 0, x, rows, sums),
                    _ => block::<S, F, WIDE, 4, 2>(w, panel, 0, x, rows, sums),
                }
            } else {
                match rows - r {
                    1 => block::<S, F, WIDE, 1, 1>(w, panel, 0, x, rows, sums),
                    2 => block::<S, F, WIDE, 2, 1>(w, panel, 0, x, rows, sums),
                    3 => block::<S, F, WIDE, 3, 1>(w, panel, 0, x, rows, sums),
                    _ => block::<S, F, WIDE, 4, 1>(w, panel, 0, x, rows, sums),
                }
            };
        }
    }
}

/// `R` rows against the panels of `V` vectors, each `apart` panels from the one before; returns `R`. `rows` is as many as
/// `sums` has of each panel.
///
/// # Safety
/// As [`all_panels`].
#[inline(always)]
unsafe fn block<S: Dots, F: Form, const WIDE: bool, const R: usize, const V: usize>(
    w: &PackedQuant,
    panel: usize,
    apart: usize,
    x: FarRows<Group>,
    rows: usize,
    sums: *mut f32,
) -> usize {
    let halves = GROUP / F::KIND.scale_len();
    let steps = GROUP / 4 / halves;
    let groups = w.k() / GROUP;
    // From a panel's codes and heads to those of the next.
    let (codes_apart, heads_apart) = (apart * groups * F::CODES, apart * (groups / F::BLOCK) * F::HEADS);
    let panels = V * S::LANES / PANEL;
    let centre = F::KIND.centre() as i16;
    let centre = (centre, start_of::<S>(centre, if halves == 2 { Some(0) } else { None }));
    // SAFETY: the contract above.
    unsafe {
        let codes = w.codes().as_ptr().add(panel * groups * F::CODES);
        let heads = w.heads().as_ptr().add(panel * (groups / F::BLOCK) * F::HEADS);
        let mut acc = [[S::splat(0.0); V]; R];
        let mut room = MaybeUninit::<[[Heads; STREAMS]; MAX_BLOCK]>::uninit();
        let room = room.as_mut_ptr().cast::<f32>();
        for first in (0..groups).step_by(F::AT_ONCE) {
            let (heads, of_block) = (heads.add(first / F::BLOCK * F::HEADS), first % F::BLOCK);
            for v in 0..V {
                let out = room.add(at::<S>(v, HEADS));
                unpack_heads::<S, F>(heads.add(at::<S>(v, heads_apart)), of_block, out, STREAMS * HEADS);
            }
            for g in 0..F::AT_ONCE {
                let (codes, x) = (codes.add((first + g) * F::CODES), x.after(first + g));
                if panels == 1 {
                    ask_for_group::<S, F>(codes, heads, of_block + g);
                } else {
                    ask_for_panels::<S, F>((codes, codes_apart), (heads, heads_apart), g, panels);
                }
                for half in 0..halves {
                    let mut dots = start::<S, WIDE, R, V>(centre, x, half);
                    unroll!(s in 0 1 2 3 4 5 6 7 {
                        if s < steps {
                            let s = half * steps + s;
                            add_step::<S, Packed<F>, WIDE, R, V>(&mut dots, codes, codes_apart, 0, s, x);
                        }
                    });
                    let scales = room.add(g * STREAMS * HEADS + half * PANEL);
                    if F::KIND.has_min() {
                        add_scaled::<S, WIDE, true, R, V>(&mut acc, dots, x, scales, HEADS);
                    } else {
                        add_scaled::<S, WIDE, false, R, V>(&mut acc, dots, x, scales, HEADS);
                    }
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            for (v, acc) in acc.into_iter().enumerate() {
                S::store(sums.add(r * PANEL + at::<S>(v, apart * rows * PANEL)), acc);
            }
        }
    }
    R
}
