//! A few rows of activations against a panel: codes go from the packed form into registers, since what is used that
//! little needs no place of its own.

use super::PackedQuant;
use super::QuantKind::{self, Q4_0, Q4K, Q5_0, Q5K, Q6K, Q8_0};
use super::dots::Dots;
use super::kernel::{add_scaled, add_step, start, unroll};
use super::packed::GROUP;
use super::rows::Group;
use super::unpack::{By4, By4Min, By5, By5Min, By6, By8, Form, Packed, prefetch, unpack_heads};
use crate::simd::PANEL;

/// Rows of a tile that are multiplied this way; more of them are worth unpacking. Measured.
pub(crate) fn few_of(kind: QuantKind) -> usize {
    if matches!(kind, Q8_0 | Q6K) { 8 } else { 4 }
}

/// Writes the sums of `rows` rows, which are `stride` groups apart in x, `[rows][16]`.
///
/// # Safety
/// The ISA of `S` is available; w has the panel, x the rows, `sums` room.
#[inline(always)]
pub(crate) unsafe fn few_rows<S: Dots>(
    w: &PackedQuant,
    panel: usize,
    x: *const Group,
    stride: usize,
    rows: usize,
    sums: *mut f32,
) {
    // In bytes from here on, as in `add_products`.
    let stride = std::hint::black_box(stride * size_of::<Group>());
    // SAFETY: passed on.
    unsafe {
        match w.kind() {
            Q8_0 => all_rows::<S, By8, true>(w, panel, x, stride, rows, sums),
            Q4_0 => all_rows::<S, By4, false>(w, panel, x, stride, rows, sums),
            Q5_0 => all_rows::<S, By5, false>(w, panel, x, stride, rows, sums),
            Q4K => all_rows::<S, By4Min, false>(w, panel, x, stride, rows, sums),
            Q5K => all_rows::<S, By5Min, false>(w, panel, x, stride, rows, sums),
            Q6K => all_rows::<S, By6, false>(w, panel, x, stride, rows, sums),
        }
    }
}

/// # Safety
/// As [`few_rows`]; the matrix is of the form `F`.
#[inline(always)]
unsafe fn all_rows<S: Dots, F: Form, const WIDE: bool>(
    w: &PackedQuant,
    panel: usize,
    x: *const Group,
    stride: usize,
    rows: usize,
    sums: *mut f32,
) {
    let mut r = 0;
    while r < rows {
        // SAFETY: `r` rows are done, and a block takes no more than are left. V vectors are a panel.
        unsafe {
            let (x, sums) = (x.byte_add(r * stride), sums.add(r * PANEL));
            r += match (S::LANES, rows - r) {
                (4, _) => block::<S, F, WIDE, 1, 4>(w, panel, x, stride, sums),
                (8, 1) => block::<S, F, WIDE, 1, 2>(w, panel, x, stride, sums),
                (8, 2) => block::<S, F, WIDE, 2, 2>(w, panel, x, stride, sums),
                (8, 3) => block::<S, F, WIDE, 3, 2>(w, panel, x, stride, sums),
                (8, _) => block::<S, F, WIDE, 4, 2>(w, panel, x, stride, sums),
                (_, 1) => block::<S, F, WIDE, 1, 1>(w, panel, x, stride, sums),
                (_, 2) => block::<S, F, WIDE, 2, 1>(w, panel, x, stride, sums),
                (_, 3) => block::<S, F, WIDE, 3, 1>(w, panel, x, stride, sums),
                (..) => block::<S, F, WIDE, 4, 1>(w, panel, x, stride, sums),
            };
        }
    }
}

/// As [`all_rows`], for `R` rows; returns `R`.
///
/// # Safety
/// As [`all_rows`].
#[inline(always)]
unsafe fn block<S: Dots, F: Form, const WIDE: bool, const R: usize, const V: usize>(
    w: &PackedQuant,
    panel: usize,
    x: *const Group,
    stride: usize,
    sums: *mut f32,
) -> usize {
    let halves = GROUP / F::KIND.scale_len();
    let steps = GROUP / 4 / halves;
    let groups = w.k() / GROUP;
    // SAFETY: the contract above.
    unsafe {
        let codes = w.codes().as_ptr().add(panel * groups * F::CODES);
        let heads = w.heads().as_ptr().add(panel * (groups / F::BLOCK) * F::HEADS);
        let mut acc = [[S::splat(0.0); V]; R];
        for g in 0..groups {
            let (codes, x) = (codes.add(g * F::CODES), x.add(g));
            let (heads, of_block) = (heads.add(g / F::BLOCK * F::HEADS), g % F::BLOCK);
            prefetch::<S, F>(codes, heads, of_block);
            let (mut scales, mut lifts) = ([[0.0; PANEL]; 2], [0.0; PANEL]);
            for lane in (0..PANEL).step_by(S::LANES) {
                let (scales, lifts) = (scales.as_mut_ptr().cast::<f32>().add(lane), lifts.as_mut_ptr().add(lane));
                unpack_heads::<S, F>(heads.add(lane), of_block, scales, lifts);
            }
            for half in 0..halves {
                let mut dots = if halves == 2 {
                    start::<S, WIDE, true, R, V>(F::KIND.centre() as i16, x, stride, half)
                } else {
                    start::<S, WIDE, false, R, V>(F::KIND.centre() as i16, x, stride, half)
                };
                unroll!(s in 0 1 2 3 4 5 6 7 {
                    if s < steps {
                        add_step::<S, Packed<F>, WIDE, R, V>(&mut dots, codes, 0, 0, half * steps + s, x, stride);
                    }
                });
                let scales = scales[half].as_ptr();
                if F::KIND.has_min() {
                    add_scaled::<S, WIDE, true, R, V>(&mut acc, dots, x, stride, scales, lifts.as_ptr());
                } else {
                    add_scaled::<S, WIDE, false, R, V>(&mut acc, dots, x, stride, scales, lifts.as_ptr());
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            for (v, acc) in acc.into_iter().enumerate() {
                S::store(sums.add(r * PANEL + v * S::LANES), acc);
            }
        }
    }
    R
}
