//! Rotary position embedding, pairs `(i, i + rot/2)` of the first `rot` elements of a head.

use crate::buffer::SharedMut;
use crate::{Pool, bf16, tiles};

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

/// Rotates keys in place: `x` is `[row][head][head_dim]`.
///
/// # Panics
/// When a length does not fit.
pub fn rope(pool: &Pool, x: &mut [f32], heads: usize, head_dim: usize, table: &RopeTable) {
    let (rows, width, half) = (table.rows(), heads * head_dim, table.half);
    assert_eq!(x.len(), rows * width);
    assert!(2 * half <= head_dim);
    let x = SharedMut::new(x);
    tiles(pool, rows, width, &|row| {
        let (cos, sin) = table.row(row);
        // SAFETY: each row is touched once.
        for head in unsafe { x.slice(row * width, width) }.chunks_exact_mut(head_dim) {
            let (a, b) = head[..2 * half].split_at_mut(half);
            for i in 0..half {
                (a[i], b[i]) = (a[i] * cos[i] - b[i] * sin[i], b[i] * cos[i] + a[i] * sin[i]);
            }
        }
    });
}

/// Rotates queries, scales them and rounds to bf16: `q` and `out` are `[row][head][head_dim]`. The attention kernel
/// wants `scale` = softmax scale times log2(e). Called once per distinct shift, with a table of shifted positions.
///
/// # Panics
/// When a length does not fit.
pub fn rope_queries(
    pool: &Pool,
    q: &[f32],
    heads: usize,
    head_dim: usize,
    table: &RopeTable,
    scale: f32,
    out: &mut [u16],
) {
    let (rows, width, half) = (table.rows(), heads * head_dim, table.half);
    assert_eq!((q.len(), out.len()), (rows * width, rows * width));
    assert!(2 * half <= head_dim);
    let out = SharedMut::new(out);
    tiles(pool, rows, width, &|row| {
        let (cos, sin) = table.row(row);
        // SAFETY: each row is written once.
        let out = unsafe { out.slice(row * width, width) };
        for (q, out) in q[row * width..][..width].chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)) {
            let (a, b) = q[..2 * half].split_at(half);
            let (out_a, out_b) = out.split_at_mut(half);
            for i in 0..half {
                out_a[i] = bf16::from_f32((a[i] * cos[i] - b[i] * sin[i]) * scale);
                out_b[i] = bf16::from_f32((b[i] * cos[i] + a[i] * sin[i]) * scale);
            }
            for i in 2 * half..head_dim {
                out[i] = bf16::from_f32(q[i] * scale);
            }
        }
    });
}
