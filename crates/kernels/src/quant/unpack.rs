//! From the packed form to bytes and f32 scales, a piece at a time.

use std::marker::PhantomData;

use super::PackedQuant;
use super::QuantKind::{self, Q4_0, Q4K, Q5_0, Q5K, Q6K, Q8_0};
use super::ahead::Due;
use super::dots::Dots;
use super::kernel::unroll;
use super::packed::GROUP;
use crate::simd::PANEL;

/// Groups that are unpacked at once: a block of the formats that have large ones, and small enough for the L1 cache.
pub(crate) const GROUPS: usize = 8;

/// What the heads of a group give for a panel: its scale, or those of its halves, or its scale and what it is lifted by.
pub(crate) type Heads = [[f32; PANEL]; 2];

/// Words of them.
pub(crate) const HEADS: usize = 2 * PANEL;

/// Room for [`GROUPS`] groups of a panel.
#[repr(C, align(64))]
pub(crate) struct Unpacked {
    codes: [[[u32; PANEL]; GROUP / 4]; GROUPS],
    pub heads: [Heads; GROUPS],
}

/// Panels that are unpacked at once at most, side by side.
pub(crate) const PANELS: usize = 2;

/// Panels that meet a block of rows at once. Of AVX-512, with as many registers twice as wide, two: an activation that
/// is broadcast is used twice, where one panel would leave loads as the bound.
pub(crate) const fn panels_at_once<S: Dots>() -> usize {
    if S::LANES == PANEL { PANELS } else { 1 }
}

/// Words from the heads of a panel to those of the next.
pub(crate) const ROOM: usize = size_of::<Unpacked>() / 4;

/// Groups of some panels. A weight is `scale * (code - centre)`, or `scale * (code - centre) + lift`.
pub(crate) struct Piece {
    pub kind: QuantKind,
    pub centre: i16,
    pub groups: usize,
    /// In the order of the [`Codes`] that they are used with.
    pub codes: *const u32,
    /// Words from the codes of a panel to those of the next.
    pub apart: usize,
    /// One for each panel.
    pub room: *mut Unpacked,
    /// What comes after it.
    pub due: Due,
}

/// How codes lie.
pub(crate) trait Codes {
    /// The codes of step `s` of group `g` for the lanes from `lane` on.
    ///
    /// # Safety
    /// The ISA of `S` is available; they are there.
    unsafe fn get<S: Dots>(codes: *const u32, g: usize, s: usize, lane: usize) -> S::I;
}

/// `[groups][8 steps][16 outputs]` words of four codes, a byte for each.
pub(crate) struct Bytes;

impl Codes for Bytes {
    #[inline(always)]
    unsafe fn get<S: Dots>(codes: *const u32, g: usize, s: usize, lane: usize) -> S::I {
        // SAFETY: passed on.
        unsafe { S::words(codes.add((g * GROUP / 4 + s) * PANEL + lane)) }
    }
}

/// As [`PackedQuant`] keeps them. A step that is known while compiling makes this fast.
pub(crate) struct Packed<F>(PhantomData<F>);

impl<F: Form> Codes for Packed<F> {
    #[inline(always)]
    unsafe fn get<S: Dots>(codes: *const u32, g: usize, s: usize, lane: usize) -> S::I {
        // SAFETY: passed on.
        unsafe {
            let words = codes.add(g * F::CODES + lane);
            let low = S::shift(S::words(words.add(s / 2 * PANEL)), s as i32 % 2 * -4);
            let low = S::and(low, 0x0f0f_0f0f);
            match F::KIND.bits() {
                4 => low,
                5 => S::or(low, S::and(S::shift(S::words(words.add(4 * PANEL)), 4 - s as i32), 0x1010_1010)),
                6 => {
                    let high = S::words(words.add((4 + s / 4) * PANEL));
                    S::or(low, S::and(S::shift(high, 4 - s as i32 % 4 * 2), 0x3030_3030))
                }
                _ => S::words(words.add(s * PANEL)),
            }
        }
    }
}

/// A format, known while compiling.
pub(crate) trait Form {
    const KIND: QuantKind;
    /// Words of the codes of a group.
    const CODES: usize = Self::KIND.bits() * PANEL;
    /// Words of the heads of a block.
    const HEADS: usize = Self::KIND.heads() * PANEL;
    /// Whether codes have a sign, which goes when they are unpacked.
    const FLIPPED: bool = Self::KIND.bits() == 8;
    /// Groups of a block.
    const BLOCK: usize = Self::KIND.block_len() / GROUP;
    /// Groups whose heads are unpacked at once: of a block with minima all, since they share words and two scales. With
    /// the sixteen scales of Q6_K that gains nothing and reads them in bursts.
    const AT_ONCE: usize = if Self::KIND.has_min() { Self::BLOCK } else { 1 };
}

macro_rules! forms {
    ($($name:ident = $kind:ident),*) => {
        $(
            pub(crate) struct $name;
            impl Form for $name {
                const KIND: QuantKind = $kind;
            }
        )*
    };
}
forms!(By8 = Q8_0, By4 = Q4_0, By5 = Q5_0, By4Min = Q4K, By5Min = Q5K, By6 = Q6K);

/// Unpacks the scales of `groups` groups from `group` on of the [`panels_at_once`] `panels`, which are consecutive or
/// all the same one. The codes stay where they are.
///
/// # Safety
/// The ISA of `S` is available; the matrix has the panels and groups; `room` is for as many panels; the piece lives no
/// longer than both.
#[inline(always)]
pub(crate) unsafe fn unpack<S: Dots>(
    w: &PackedQuant,
    panels: (usize, usize),
    group: usize,
    groups: usize,
    room: *mut Unpacked,
) -> Piece {
    // SAFETY: passed on.
    unsafe {
        match w.kind() {
            Q8_0 => unpack_form::<S, By8>(w, panels, group, groups, room),
            Q4_0 => unpack_form::<S, By4>(w, panels, group, groups, room),
            Q5_0 => unpack_form::<S, By5>(w, panels, group, groups, room),
            Q4K => unpack_form::<S, By4Min>(w, panels, group, groups, room),
            Q5K => unpack_form::<S, By5Min>(w, panels, group, groups, room),
            Q6K => unpack_form::<S, By6>(w, panels, group, groups, room),
        }
    }
}

/// # Safety
/// As [`unpack`]; the matrix is of the form `F`.
#[inline(always)]
unsafe fn unpack_form<S: Dots, F: Form>(
    w: &PackedQuant,
    panels: (usize, usize),
    group: usize,
    groups: usize,
    room: *mut Unpacked,
) -> Piece {
    let of_row = w.k() / GROUP;
    // SAFETY: the contract above; fields are written through the pointer, never read.
    unsafe {
        for (panel, room) in [(panels.0, room), (panels.1, room.add(1))].into_iter().take(panels_at_once::<S>()) {
            for g in 0..groups {
                let all = panel * of_row + group + g;
                let (block, of_block) = (all / F::BLOCK, all % F::BLOCK);
                let heads = w.heads().as_ptr().add(block * F::HEADS);
                // Pieces are whole blocks.
                let lanes = if of_block.is_multiple_of(F::AT_ONCE) { PANEL } else { 0 };
                for lane in (0..lanes).step_by(S::LANES) {
                    let out = (&raw mut (*room).heads[g]).cast::<f32>().add(lane);
                    unpack_heads::<S, F>(heads.add(lane), of_block, out, HEADS);
                }
            }
        }
        let codes = w.codes().as_ptr().add((panels.0 * of_row + group) * F::CODES);
        Piece {
            kind: F::KIND,
            centre: F::KIND.centre().into(),
            groups,
            codes,
            apart: (panels.1 - panels.0) * of_row * F::CODES,
            room,
            due: Due::nothing(),
        }
    }
}

/// Unpacks the codes, too, which are [`Bytes`] then, and unsigned where [`Dots::FLIPS`].
///
/// # Safety
/// The ISA of `S` is available; the piece is as [`unpack`] left it.
#[inline(always)]
pub(crate) unsafe fn unpack_codes<S: Dots>(piece: &mut Piece) {
    // SAFETY: passed on.
    unsafe {
        match piece.kind {
            Q8_0 if S::FLIPS => unpack_codes_of::<S, By8>(piece),
            Q8_0 => {} // They are.
            Q4_0 | Q4K => unpack_codes_of::<S, By4>(piece),
            Q5_0 | Q5K => unpack_codes_of::<S, By5>(piece),
            Q6K => unpack_codes_of::<S, By6>(piece),
        }
    }
}

/// # Safety
/// As [`unpack_codes`], for codes of as many bits as those of the form `F`.
#[inline(always)]
unsafe fn unpack_codes_of<S: Dots, F: Form>(piece: &mut Piece) {
    // SAFETY: the contract above.
    unsafe {
        let out = (&raw mut (*piece.room).codes).cast::<u32>();
        for panel in 0..panels_at_once::<S>() {
            let (codes, out) = (piece.codes.add(panel * piece.apart), out.add(panel * ROOM));
            for g in 0..piece.groups {
                for lane in (0..PANEL).step_by(S::LANES) {
                    for s in 0..GROUP / 4 {
                        let mut codes = Packed::<F>::get::<S>(codes, g, s, lane);
                        if F::FLIPPED {
                            codes = S::xor(codes, 0x8080_8080);
                        }
                        S::store_words(out.add((g * GROUP / 4 + s) * PANEL + lane), codes);
                    }
                }
            }
        }
        (piece.codes, piece.apart) = (out, ROOM);
        if F::FLIPPED {
            piece.centre = 128;
        }
    }
}

/// Unpacks the heads of [`Form::AT_ONCE`] groups of a block, from `group` on: [`Heads`] of each, `apart` from each
/// other.
///
/// # Safety
/// As [`unpack`], for the lanes from the pointers on; `group` is a multiple of [`Form::AT_ONCE`], and `out` has room for as
/// many heads.
#[inline(always)]
pub(crate) unsafe fn unpack_heads<S: Dots, F: Form>(heads: *const u16, group: usize, out: *mut f32, apart: usize) {
    // SAFETY: the contract above.
    unsafe {
        let d = S::halves(heads);
        match F::KIND {
            Q8_0 | Q4_0 | Q5_0 => S::store(out, d),
            Q4K | Q5K => {
                // A power of two times the scale is exact: its difference to the minimum is rounded once on every path.
                let centre = S::splat(F::KIND.centre() as f32);
                let d_min = S::mul(S::halves(heads.add(PANEL)), S::splat(-1.0));
                unroll!(g in 0 1 2 3 4 5 6 7 {
                    let both = if g < 6 {
                        head::<S>(heads, 2 + g)
                    } else {
                        let first = 2 + (g - 6) * 3;
                        let low = S::shift(head::<S>(heads, first), -12);
                        let middle = S::and(S::shift(head::<S>(heads, first + 1), -8), 0xf0);
                        S::or(low, S::or(middle, S::and(S::shift(head::<S>(heads, first + 2), -4), 0xf00)))
                    };
                    let scale = S::mul(d, S::float(S::and(both, 63)));
                    let min = S::mul(d_min, S::float(S::and(S::shift(both, -6), 63)));
                    S::store(out.add(g * apart), scale);
                    S::store(out.add(g * apart + PANEL), S::fma(centre, scale, min));
                });
            }
            Q6K => {
                let both = head::<S>(heads, 1 + group);
                S::store(out, S::mul(d, S::float(S::low_byte(both))));
                S::store(out.add(PANEL), S::mul(d, S::float(S::low_byte(S::shift(both, -8)))));
            }
        }
    }
}

/// # Safety
/// As [`unpack_heads`].
#[inline(always)]
unsafe fn head<S: Dots>(heads: *const u16, word: usize) -> S::I {
    // SAFETY: the contract above.
    unsafe { S::half_words(heads.add(word * PANEL)) }
}
