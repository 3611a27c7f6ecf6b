//! Rotary position embedding, pairs `(i, i + rot/2)` of the first `rot` elements of a head.

use crate::buffer::SharedMut;
use crate::simd::{Simd, isa_entry};
use crate::{Isa, Pool, bf16, tiles};

/// Cosine and sine of every row's angles, filled once per step and used by all layers.
#[derive(Clone, Debug, Default)]
pub struct RopeTable {
    rows: usize,
    half: usize,
    /// `[row][cos | sin][rot/2]`.
    angles: Vec<f32>,
}

impl RopeTable {
    /// One row per position; pair `i` turns by `position * frequencies[i]` radians, computed in f64, and is multiplied
    /// by
    /// `amplitude`. Without frequencies nothing turns.
    pub fn fill(&mut self, frequencies: &[f64], amplitude: f64, positions: impl IntoIterator<Item = u32>) {
        self.half = frequencies.len();
        self.rows = 0;
        self.angles.clear();
        for position in positions {
            let at = self.angles.len();
            self.rows += 1;
            self.angles.resize(at + 2 * self.half, 0.0);
            for (i, f) in frequencies.iter().enumerate() {
                let (sin, cos) = (position as f64 * f).sin_cos();
                self.angles[at + i] = (cos * amplitude) as f32;
                self.angles[at + self.half + i] = (sin * amplitude) as f32;
            }
        }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    fn row(&self, row: usize) -> (&[f32], &[f32]) {
        self.angles[row * 2 * self.half..(row + 1) * 2 * self.half].split_at(self.half)
    }
}

/// Rotates keys in place: `x` is `[row][head][head_dim]`. The bits are those of every ISA path.
///
/// # Panics
/// When a length does not fit or the machine cannot run `isa`.
pub fn rope(isa: Isa, pool: &Pool, x: &mut [f32], heads: usize, head_dim: usize, table: &RopeTable) {
    isa.require();
    let (rows, width) = (table.rows(), heads * head_dim);
    assert_eq!(x.len(), rows * width);
    assert!(2 * table.half <= head_dim);
    let x = SharedMut::new(x);
    tiles(pool, rows, width, &|row| {
        // SAFETY: `isa` is available; each row is touched once.
        unsafe { rotate_keys(isa, x.slice(row * width, width), head_dim, table.row(row)) };
    });
}

/// Rotates queries, scales them and rounds to bf16: `q` and `out` are `[row][head][head_dim]`. The attention kernel
/// wants `scale` = softmax scale times log2(e). Called once per distinct shift, with a table of shifted positions. The bits are
/// those of every ISA path.
///
/// # Panics
/// When a length does not fit or the machine cannot run `isa`.
#[expect(clippy::too_many_arguments, reason = "each is a plain size or buffer")]
pub fn rope_queries(
    isa: Isa,
    pool: &Pool,
    q: &[f32],
    heads: usize,
    head_dim: usize,
    table: &RopeTable,
    scale: f32,
    out: &mut [u16],
) {
    isa.require();
    let (rows, width) = (table.rows(), heads * head_dim);
    assert_eq!((q.len(), out.len()), (rows * width, rows * width));
    assert!(2 * table.half <= head_dim);
    let out = SharedMut::new(out);
    tiles(pool, rows, width, &|row| {
        let q = &q[row * width..][..width];
        // SAFETY: `isa` is available; each row is written once.
        unsafe { rotate_queries(isa, q, head_dim, table.row(row), scale, out.slice(row * width, width)) };
    });
}

isa_entry!(fn rotate_keys(x: &mut [f32], head_dim: usize, angles: (&[f32], &[f32])) = keys);
isa_entry!(
    fn rotate_queries(q: &[f32], head_dim: usize, angles: (&[f32], &[f32]), scale: f32, out: &mut [u16]) = queries
);

/// # Safety
/// The ISA of `S` is available.
#[inline(always)]
unsafe fn keys<S: Simd>(x: &mut [f32], head_dim: usize, (cos, sin): (&[f32], &[f32])) {
    let half = cos.len();
    for head in x.chunks_exact_mut(head_dim) {
        let (a, b) = head[..2 * half].split_at_mut(half);
        for i in 0..half {
            (a[i], b[i]) = (a[i] * cos[i] - b[i] * sin[i], b[i] * cos[i] + a[i] * sin[i]);
        }
    }
}

/// # Safety
/// The ISA of `S` is available.
#[inline(always)]
unsafe fn queries<S: Simd>(q: &[f32], head_dim: usize, (cos, sin): (&[f32], &[f32]), scale: f32, out: &mut [u16]) {
    let half = cos.len();
    for (q, out) in q.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)) {
        let (a, b) = q[..2 * half].split_at(half);
        let (out_a, rest) = out.split_at_mut(half);
        let (out_b, rest) = rest.split_at_mut(half);
        for i in 0..half {
            out_a[i] = bf16::from_f32((a[i] * cos[i] - b[i] * sin[i]) * scale);
            out_b[i] = bf16::from_f32((b[i] * cos[i] + a[i] * sin[i]) * scale);
        }
        rest.iter_mut().zip(&q[2 * half..]).for_each(|(out, &q)| *out = bf16::from_f32(q * scale));
    }
}
