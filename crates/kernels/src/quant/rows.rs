//! Activations as the integer dot products take them.

use crate::buffer::SharedMut;
use crate::simd::{Simd, isa_entry};
use crate::{Isa, Pool, bf16};

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
        self.fill(isa, pool, x.len(), k, &|at, out| out.copy_from_slice(&x[at..at + GROUP]));
    }

    /// As [`QuantRows::set`], for rows of bf16 bits.
    pub fn set_bf16(&mut self, isa: Isa, pool: &Pool, x: &[u16], k: usize) {
        self.fill(isa, pool, x.len(), k, &|at, out| {
            out.iter_mut().zip(&x[at..at + GROUP]).for_each(|(out, &x)| *out = bf16::to_f32(x));
        });
    }

    fn fill(&mut self, isa: Isa, pool: &Pool, len: usize, k: usize, get: &(dyn Fn(usize, &mut [f32; GROUP]) + Sync)) {
        isa.require();
        assert!(k > 0 && k.is_multiple_of(GROUP) && len.is_multiple_of(k), "{len} elements in rows of {k}");
        (self.rows, self.k) = (len / k, k);
        let groups = len / GROUP;
        if self.groups.len() < groups {
            self.groups.resize(groups, Group::default());
        }
        let out = SharedMut::new(&mut self.groups);
        let some = 256;
        pool.run(groups.div_ceil(some), &|t| {
            let mut x = [0.0; GROUP];
            for i in t * some..groups.min((t + 1) * some) {
                get(i * GROUP, &mut x);
                // SAFETY: `isa` is available; this tile alone writes group `i`.
                unsafe { quantise(isa, &x, &mut *out.get().add(i)) };
            }
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

isa_entry!(fn quantise(x: &[f32; GROUP], out: &mut Group) = quantise_group);

/// # Safety
/// None: loops that the compiler turns into vectors of `S`'s instruction set.
#[inline(always)]
unsafe fn quantise_group<S: Simd>(x: &[f32; GROUP], out: &mut Group) {
    // 1.5 * 2^23: adding it rounds to an integer (ties to even), which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // Of bit patterns, since what is not finite is larger than everything else there.
    let largest = x.iter().fold(0, |largest, x| largest.max(x.to_bits() & 0x7fff_ffff));
    let largest = f32::from_bits(largest);
    let (scale, inverse) = match largest {
        // The inverse would overflow near here.
        ..1e-36 => (0.0, 0.0),
        ..=f32::MAX => (largest / 127.0, 127.0 / largest),
        _ => (f32::NAN, 0.0),
    };
    let mut codes = [0_i8; GROUP];
    for (code, x) in codes.iter_mut().zip(x) {
        *code = (x * inverse + ROUND).to_bits() as i8;
    }
    if scale.is_nan() {
        codes = [0; GROUP];
    }
    let mut sums = [[0_i16; 4]; 2];
    for (i, &code) in codes.iter().enumerate() {
        sums[i / 16][i % 4] += code as i16;
    }
    let word = |low: i16, high: i16| low as u16 as u32 | (high as u16 as u32) << 16;
    let [a, b] = sums.map(|s| [s[0] + s[1], s[2] + s[3]]);
    let all = (a[0] + a[1] + b[0] + b[1]) as f32;
    for (word, four) in out.codes.iter_mut().zip(codes.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(four.map(|code| code as u8));
    }
    out.scale = scale;
    out.sum = scale * all;
    out.halves = [word(a[0], a[1]), word(b[0], b[1])];
    out.whole = word(a[0] + b[0], a[1] + b[1]);
}
