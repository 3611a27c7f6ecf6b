//! Activations as the integer dot products take them.

use crate::buffer::SharedMut;
use crate::simd::isa_entry;
use crate::{Isa, Pool, bf16};

use super::dots::Dots;
use super::packed::GROUP;

/// Rows of activations, every 32 elements of a row as signed bytes under one f32 scale: `x = scale * code`. What a row
/// becomes depends on that row alone, and is the same on every ISA path.
///
/// Quantised once, used for every matrix that multiplies the same input, whatever its format.
#[derive(Default)]
pub struct QuantRows {
    rows: usize,
    k: usize,
    groups: Vec<Group>,
}

/// 32 elements.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Group {
    /// -127 to 127, four to a word.
    pub codes: [u32; GROUP / 4],
    /// Largest magnitude over 127; 0 where everything is below 1e-36; NaN where an element is not finite.
    pub scale: f32,
    /// `scale` times the sum of the codes.
    pub sum: f32,
    /// Sums of the codes of the first and the second 16, and of all: two of 16 bits in each word, the lower for
    /// elements 0 and 1 of the fours and the upper for 2 and 3.
    pub halves: [u32; 2],
    pub whole: u32,
    /// Minus 8 and minus 128 times the sum of the codes.
    pub starts: [i32; 2],
}

impl QuantRows {
    pub fn new() -> QuantRows {
        QuantRows::default()
    }

    /// Holds the f32 rows `x`, `[rows][k]`, from now on. Memory is kept for the next call.
    ///
    /// # Panics
    /// When `k` is not a multiple of 32, when the length does not fit, or when the machine cannot run `isa`.
    pub fn set(&mut self, isa: Isa, pool: &Pool, x: &[f32], k: usize) {
        // SAFETY: the machine can run `isa`: checked by `fill`.
        self.fill(isa, pool, x, k, |x, out| unsafe { quantise(isa, x, out) });
    }

    /// As [`QuantRows::set`], for rows of bf16 bits.
    pub fn set_bf16(&mut self, isa: Isa, pool: &Pool, x: &[u16], k: usize) {
        // SAFETY: as above.
        self.fill(isa, pool, x, k, |x, out| unsafe { quantise_bf16(isa, x, out) });
    }

    fn fill<T: Sync>(
        &mut self,
        isa: Isa,
        pool: &Pool,
        x: &[T],
        k: usize,
        quantise: impl Fn(&[T], &mut [Group]) + Sync,
    ) {
        isa.require();
        assert!(k > 0 && k.is_multiple_of(GROUP) && x.len().is_multiple_of(k), "{} elements in rows of {k}", x.len());
        (self.rows, self.k) = (x.len() / k, k);
        let groups = x.len() / GROUP;
        if self.groups.len() < groups {
            self.groups.resize(groups, Group::default());
        }
        let out = SharedMut::new(&mut self.groups);
        let some = 256;
        pool.run(groups.div_ceil(some), &|t| {
            let (first, end) = (t * some, groups.min((t + 1) * some));
            // SAFETY: these groups are this tile's own.
            quantise(&x[first * GROUP..end * GROUP], unsafe { out.slice(first, end - first) });
        });
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// What row `i` stands for (`out.len() == k`): its codes times their scales.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        assert!(i < self.rows && out.len() == self.k);
        let groups = &self.groups[i * self.k / GROUP..];
        for (group, out) in groups.iter().zip(out.chunks_exact_mut(GROUP)) {
            let codes = group.codes.iter().flat_map(|four| four.to_le_bytes());
            out.iter_mut().zip(codes).for_each(|(x, code)| *x = group.scale * code as i8 as f32);
        }
    }

    pub(crate) fn groups(&self) -> &[Group] {
        &self.groups[..self.rows * self.k / GROUP]
    }
}

isa_entry!(fn quantise(x: &[f32], out: &mut [Group]) = quantise_f32);
isa_entry!(fn quantise_bf16(x: &[u16], out: &mut [Group]) = quantise_u16);

/// # Safety
/// The ISA of `S` is available.
#[inline(always)]
unsafe fn quantise_f32<S: Dots>(x: &[f32], out: &mut [Group]) {
    for (x, out) in x.as_chunks::<GROUP>().0.iter().zip(out) {
        // SAFETY: passed on.
        *out = unsafe { quantise_group::<S>(x) };
    }
}

/// # Safety
/// As [`quantise_f32`].
#[inline(always)]
unsafe fn quantise_u16<S: Dots>(x: &[u16], out: &mut [Group]) {
    for (x, out) in x.as_chunks::<GROUP>().0.iter().zip(out) {
        let mut wide = [0.0; GROUP];
        for i in 0..GROUP {
            wide[i] = bf16::to_f32(x[i]);
        }
        // SAFETY: passed on.
        *out = unsafe { quantise_group::<S>(&wide) };
    }
}

/// # Safety
/// The ISA of `S` is available.
#[inline(always)]
unsafe fn quantise_group<S: Dots>(x: &[f32; GROUP]) -> Group {
    // Of bit patterns, since what is not finite is larger than everything else there.
    let mut largest = [0; 8];
    for x in x.as_chunks::<8>().0 {
        for i in 0..8 {
            largest[i] = largest[i].max(x[i].to_bits() & 0x7fff_ffff);
        }
    }
    let largest = f32::from_bits(largest.into_iter().fold(0, u32::max));
    if !largest.is_finite() {
        return Group { scale: f32::NAN, sum: f32::NAN, ..Group::default() };
    }
    // The inverse would overflow near there.
    if largest < 1e-36 {
        return Group::default();
    }
    // SAFETY: passed on.
    let (codes, halves) = unsafe { S::encode(x, 127.0 / largest) };
    // Neither half of a word overflows, but the lower carries into the upper where it is negative.
    let whole = (halves[0] & 0xffff).wrapping_add(halves[1]) & 0xffff
        | (halves[0] & 0xffff_0000).wrapping_add(halves[1] & 0xffff_0000);
    let scale = largest / 127.0;
    let sum = (whole as i16 as i32) + (whole as i32 >> 16);
    Group { codes, scale, sum: scale * sum as f32, halves, whole, starts: [-8 * sum, -128 * sum] }
}
