//! Activations as the integer dot products take them.

use crate::buffer::SharedMut;
use crate::simd::isa_entry;
use crate::{Isa, Pool, bf16};

use super::bytes::Encode;
use super::dots::Dots;
use super::packed::GROUP;

/// Rows of activations, every 32 elements of a row as signed bytes under one f32 scale: `x = scale * code`. What a row
/// becomes depends on that row alone, and is the same on every ISA path; what is kept beside it is for one.
///
/// Quantised once, used for every matrix that multiplies the same input, whatever its format.
#[derive(Default)]
pub struct QuantRows {
    rows: usize,
    k: usize,
    isa: Option<Isa>,
    groups: Vec<Group>,
}

/// 32 elements. No power of two of bytes: rows would share the sets of caches.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Group {
    /// -127 to 127, four to a word.
    pub codes: [u32; GROUP / 4],
    /// Largest magnitude over 127; 0 where everything is below 1e-36; NaN where an element is not finite.
    pub scale: f32,
    /// `scale` times the sum of the codes.
    pub sum: f32,
    pub starts: Starts,
}

/// What the sums of products with codes that have a centre begin with.
///
/// With [`Dots::FLIPS`]: minus 8, 16 and 128 times the sum of the codes, and minus 32 times that of the first 16 and of the
/// second. Else the sums of the first 16, the second 16 and all, each as two of 16 bits in a word, the lower for elements 0
/// and 1 of the fours and the upper for 2 and 3.
pub(crate) type Starts = [u32; 5];

/// Which of [`Starts`] is that for codes around this centre, in `half` a group where there is one for each.
pub(crate) const fn start_of<S: Dots>(centre: i16, half: Option<usize>) -> usize {
    match (S::FLIPS, half, centre) {
        (false, Some(half), _) => half,
        (false, None, _) => 2,
        (true, Some(half), _) => 3 + half,
        (true, None, 8) => 0,
        (true, None, 16) => 1,
        (true, None, 0 | 128) => 2,
        (true, None, _) => panic!("no start for codes around this centre"),
    }
}

/// Rows of activations to be written, as a matrix reads them.
pub enum RowsMut<'a> {
    /// For weights in bf16: `[rows][k]`, rounded.
    Bf16(&'a mut [u16]),
    /// For others: rounded to bf16 as well, and then to what the integer products take.
    Quant(&'a mut QuantRows),
}

/// The same with room for them.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    Bf16(SharedMut<u16>),
    Quant(SharedMut<Group>),
}

impl RowsMut<'_> {
    /// For so many rows of `k` elements on the path `isa`.
    ///
    /// # Panics
    /// When the length does not fit, or `k` is not a multiple of 32 where it has to be.
    pub(crate) fn target(self, isa: Isa, rows: usize, k: usize) -> Target {
        match self {
            RowsMut::Bf16(out) => {
                assert_eq!(out.len(), rows * k, "{rows} rows of {k}");
                Target::Bf16(SharedMut::new(out))
            }
            RowsMut::Quant(out) => Target::Quant(out.room(isa, rows, k)),
        }
    }
}

impl QuantRows {
    pub fn new() -> QuantRows {
        QuantRows::default()
    }

    /// Holds the rows `x`, `[rows][k]` in bf16, from now on, for products on the path `isa`. Memory is kept for the next call.
    ///
    /// # Panics
    /// When `k` is not a multiple of 32, when the length does not fit, or when the machine cannot run `isa`.
    pub fn set(&mut self, isa: Isa, pool: &Pool, x: &[u16], k: usize) {
        isa.require();
        assert!(k > 0 && x.len().is_multiple_of(k), "{} elements in rows of {k}", x.len());
        let out = self.room(isa, x.len() / k, k);
        let (groups, some) = (x.len() / GROUP, 256);
        pool.run(groups.div_ceil(some), &|t| {
            let (first, end) = (t * some, groups.min((t + 1) * some));
            // SAFETY: `isa` is available; these groups are this tile's own.
            unsafe { quantise(isa, &x[first * GROUP..end * GROUP], out.slice(first, end - first)) };
        });
    }

    /// Room for so many rows of `k` elements, row by row, which are there from now on.
    fn room(&mut self, isa: Isa, rows: usize, k: usize) -> SharedMut<Group> {
        assert!(k > 0 && k.is_multiple_of(GROUP), "rows of {k} elements");
        (self.rows, self.k, self.isa) = (rows, k, Some(isa));
        let groups = rows * (k / GROUP);
        if self.groups.len() < groups {
            self.groups.resize(groups, Group::default());
        }
        SharedMut::new(&mut self.groups)
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

    /// Whether they are those of `other`, bit for bit, for the same path.
    #[doc(hidden)]
    pub fn same_bits(&self, other: &QuantRows) -> bool {
        let bits = |group: &Group| {
            let Group { codes, scale, sum, starts } = *group;
            (codes, scale.to_bits(), sum.to_bits(), starts)
        };
        let groups = self.groups().iter().map(bits).eq(other.groups().iter().map(bits));
        groups && (self.rows, self.k, self.isa) == (other.rows, other.k, other.isa)
    }

    /// The groups, row by row.
    ///
    /// # Panics
    /// When they are for another path.
    pub(crate) fn groups_for(&self, isa: Isa) -> &[Group] {
        assert_eq!(self.isa, Some(isa), "rows are quantised for the path that they are used on");
        self.groups()
    }

    pub(crate) fn groups(&self) -> &[Group] {
        &self.groups[..self.rows * self.k / GROUP]
    }
}

isa_entry!(fn quantise(x: &[u16], out: &mut [Group]) = quantise_rows, with vnni);

/// # Safety
/// The ISA of `S` is available.
#[inline(always)]
unsafe fn quantise_rows<S: Encode>(x: &[u16], out: &mut [Group]) {
    for (x, out) in x.as_chunks::<GROUP>().0.iter().zip(out) {
        // SAFETY: passed on.
        *out = unsafe { quantise_group::<S>(x) };
    }
}

/// Whoever makes the numbers in vectors stores them first: a closure that gives them would be compiled without the instructions
/// of `S` where it is not inlined.
///
/// # Safety
/// The ISA of `S` is available.
#[inline(always)]
pub(crate) unsafe fn quantise_group<S: Encode>(x: &[u16; GROUP]) -> Group {
    // SAFETY: passed on.
    let largest = bf16::to_f32(unsafe { S::largest(x) });
    if !largest.is_finite() {
        return Group { scale: f32::NAN, sum: f32::NAN, ..Group::default() };
    }
    // The inverse would overflow near there.
    if largest < 1e-36 {
        return Group::default();
    }
    // SAFETY: passed on.
    let (codes, starts, sum) = unsafe { S::encode(x, 127.0 / largest) };
    let scale = largest / 127.0;
    Group { codes, scale, sum: scale * sum as f32, starts }
}
