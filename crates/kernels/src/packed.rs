//! Weights in the order in which the matmul reads them.

use crate::buffer::{Buffer, SharedMut};
use crate::simd::PANEL;
use crate::{OutOfMemory, Pool, bf16};

/// A bf16 matrix `[n][k]`, packed as `[n/16][k/2][16][2]`; n is padded to whole panels and k to pairs, with zeros. The
/// packing is the same on every ISA path.
pub struct PackedBf16 {
    n: usize,
    k: usize,
    data: Buffer,
}

impl PackedBf16 {
    /// Packs `n` rows of `k` elements. `fill(i, row)` writes row `i` as bf16 bits; it runs once per row, on any thread.
    ///
    /// # Errors
    /// When the system refuses the memory.
    pub fn pack(
        n: usize,
        k: usize,
        pool: &Pool,
        fill: &(dyn Fn(usize, &mut [u16]) + Sync),
    ) -> Result<PackedBf16, OutOfMemory> {
        let panel = k.div_ceil(2) * 2 * PANEL;
        let panels = n.div_ceil(PANEL);
        let bytes = panels as u128 * panel as u128 * 2;
        let len = panels.checked_mul(panel).ok_or(OutOfMemory { bytes })?;
        let mut data = Buffer::zeroed(len).ok_or(OutOfMemory { bytes })?;
        let out = SharedMut::new(&mut data);
        pool.run(panels, &|p| {
            // SAFETY: each tile has a panel of its own.
            let out = unsafe { out.slice(p * panel, panel) };
            let mut row = vec![0; k];
            for lane in 0..PANEL.min(n - p * PANEL) {
                fill(p * PANEL + lane, &mut row);
                for (i, &x) in row.iter().enumerate() {
                    out[(i / 2 * PANEL + lane) * 2 + i % 2] = x;
                }
            }
        });
        Ok(PackedBf16 { n, k, data })
    }

    /// Packs a matrix of f32 (`[n][k]`), rounded to bf16.
    ///
    /// # Errors
    /// When the system refuses the memory.
    pub fn from_f32(n: usize, k: usize, w: &[f32], pool: &Pool) -> Result<PackedBf16, OutOfMemory> {
        assert_eq!(w.len(), n * k);
        Self::pack(n, k, pool, &|i, row| bf16::from_f32_slice(&w[i * k..(i + 1) * k], row))
    }

    /// Packs a matrix of bf16 bits (`[n][k]`).
    ///
    /// # Errors
    /// When the system refuses the memory.
    pub fn from_bf16(n: usize, k: usize, w: &[u16], pool: &Pool) -> Result<PackedBf16, OutOfMemory> {
        assert_eq!(w.len(), n * k);
        Self::pack(n, k, pool, &|i, row| row.copy_from_slice(&w[i * k..(i + 1) * k]))
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        self.data.len() * 2
    }

    /// Gathers row `i` (`out.len() == k`): the embedding of a token where it is tied to the output matrix.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        assert!(i < self.n && out.len() == self.k);
        let panel = &self.data[i / PANEL * self.panel()..][..self.panel()];
        let lane = i % PANEL;
        for (j, x) in out.iter_mut().enumerate() {
            *x = bf16::to_f32(panel[(j / 2 * PANEL + lane) * 2 + j % 2]);
        }
    }

    /// Elements of a panel.
    fn panel(&self) -> usize {
        self.k.div_ceil(2) * 2 * PANEL
    }

    pub(crate) fn words(&self) -> *const u32 {
        self.data.as_ptr().cast()
    }
}
