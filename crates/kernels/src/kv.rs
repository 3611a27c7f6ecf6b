//! The KV pool: slabs of one chunk each, dense bf16.

use std::fmt;

use kvist_base::{CHUNK, ChunkId, ChunkLayout, Dtype, LayerKind, Slot};

use crate::Pool;
use crate::bf16;
use crate::buffer::{Buffer, SharedMut};

/// The pool could not be allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    pub bytes: u128,
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot allocate {} bytes", self.bytes)
    }
}

impl std::error::Error for OutOfMemory {}

/// `chunks` slabs of `layout.bytes` each. Every stored value is finite, always: that is what lets the kernels multiply
/// masked slots by zero.
///
/// K of a head is `[dk/2][64][2]`: pair `p` holds elements `p` and `p + dk/2` of a token's key, the two that RoPE turns
/// together. V is `[32][dv][2]`: pair `t` holds tokens `2t` and `2t + 1`.
pub struct KvPool {
    layout: ChunkLayout,
    chunks: u32,
    data: Buffer,
}

/// One chunk of the pool.
#[derive(Clone, Copy)]
pub struct ChunkView<'a> {
    pool: &'a KvPool,
    chunk: ChunkId,
}

impl<'a> ChunkView<'a> {
    /// (K, V) of a head, packed as [`KvPool`] says.
    pub fn tile(&self, layer: usize, head: usize) -> (&'a [u16], &'a [u16]) {
        let base = self.pool.base(self.chunk);
        let (k, v, end) = self.pool.layout.tile(layer, head);
        (&self.pool.data[base + k / 2..base + v / 2], &self.pool.data[base + v / 2..base + end / 2])
    }

    /// The chunk as every tier holds it: little-endian bf16 in the order of the layout.
    pub fn elements(&self) -> &'a [u16] {
        let base = self.pool.base(self.chunk);
        &self.pool.data[base..base + self.pool.slab()]
    }
}

impl KvPool {
    /// A pool of zeros.
    ///
    /// # Errors
    /// When the system refuses the memory.
    ///
    /// # Panics
    /// When the layout is not bf16, has an odd head size, or is not laid out as [`ChunkLayout::new`] does it. The
    /// unsafe reads and writes of this module rely on tiles that lie inside the slab and do not overlap, and the fields
    /// of a layout are public.
    pub fn new(layout: ChunkLayout, chunks: u32) -> Result<KvPool, OutOfMemory> {
        assert_eq!(layout.dtype, Dtype::Bf16, "the pool holds bf16");
        let mut end = 0;
        for (i, layer) in layout.layers.iter().enumerate() {
            let LayerKind::Gqa { heads, dk, dv } = layer.kind;
            assert!(dk % 2 == 0, "head size {dk} is odd");
            let bytes = [heads, dk + dv, CHUNK, 2].into_iter().try_fold(1usize, usize::checked_mul);
            assert_eq!((layer.offset, Some(layer.bytes)), (end, bytes), "layer {i} is not where it belongs");
            end += layer.bytes;
        }
        assert_eq!(layout.bytes, end, "the layers do not fill the chunk");
        let bytes = layout.bytes as u128 * chunks as u128;
        let data = usize::try_from(bytes / 2).ok().and_then(Buffer::zeroed).ok_or(OutOfMemory { bytes })?;
        Ok(KvPool { layout, chunks, data })
    }

    pub fn layout(&self) -> &ChunkLayout {
        &self.layout
    }

    /// Number of slabs.
    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    pub fn chunk(&self, chunk: ChunkId) -> ChunkView<'_> {
        ChunkView { pool: self, chunk }
    }

    /// Every byte of the chunk becomes zero.
    pub fn zero(&mut self, chunk: ChunkId) {
        let (base, slab) = (self.base(chunk), self.slab());
        self.data[base..base + slab].fill(0);
    }

    /// Copies the first `n` slots of `from`, all layers, to the same slots of `to`.
    ///
    /// # Panics
    /// When the chunks are the same.
    pub fn copy_slots(&mut self, from: ChunkId, to: ChunkId, n: usize) {
        assert!(n <= CHUNK);
        let (a, b, slab) = (self.base(from), self.base(to), self.slab());
        let [src, dst] =
            self.data.get_disjoint_mut([a..a + slab, b..b + slab]).expect("a chunk is not copied onto itself");
        for (layer, desc) in self.layout.layers.iter().enumerate() {
            let LayerKind::Gqa { heads, dv, .. } = desc.kind;
            for head in 0..heads {
                let (k, v, end) = self.layout.tile(layer, head);
                let (k, v, end) = (k / 2, v / 2, end / 2);
                for at in (k..v).step_by(2 * CHUNK) {
                    dst[at..at + 2 * n].copy_from_slice(&src[at..at + 2 * n]);
                }
                let whole = v + n / 2 * 2 * dv;
                dst[v..whole].copy_from_slice(&src[v..whole]);
                if n % 2 == 1 {
                    debug_assert!(whole < end);
                    (whole..whole + 2 * dv).step_by(2).for_each(|at| dst[at] = src[at]);
                }
            }
        }
    }

    /// Rounds the rows' keys and values (`[row][kv-head][element]`) to bf16 and stores them in their slots; rows
    /// without a slot are skipped. What would not be finite is stored as the largest finite value, NaN as 0.
    ///
    /// # Panics
    /// When a length does not fit the layout, or a slot lies outside the pool.
    pub fn write(&mut self, pool: &Pool, layer: usize, slots: &[Option<Slot>], k: &[f32], v: &[f32]) {
        let LayerKind::Gqa { heads, dk, dv } = self.layout.layers[layer].kind;
        assert_eq!((k.len(), v.len()), (slots.len() * heads * dk, slots.len() * heads * dv));
        for slot in slots.iter().flatten() {
            assert!(slot.chunk.0 < self.chunks && (slot.slot as usize) < CHUNK, "{slot:?} is outside the pool");
        }
        let (slab, layout) = (self.slab(), &self.layout);
        let data = SharedMut(self.data.as_ptr());
        let head_rows = |head: usize| {
            let (k_at, v_at, end) = layout.tile(layer, head);
            for (row, slot) in slots.iter().enumerate() {
                let Some(Slot { chunk, slot }) = *slot else { continue };
                let (base, slot) = (chunk.0 as usize * slab, slot as usize);
                // SAFETY: the chunk was checked above. A tile of the job touches one head of the layer, so tiles
                // write to disjoint parts, and `self` is borrowed exclusively.
                let (k_out, v_out) = unsafe {
                    (data.slice(base + k_at / 2, (v_at - k_at) / 2), data.slice(base + v_at / 2, (end - v_at) / 2))
                };
                let key = &k[(row * heads + head) * dk..][..dk];
                for (p, (&a, &b)) in key[..dk / 2].iter().zip(&key[dk / 2..]).enumerate() {
                    k_out[(p * CHUNK + slot) * 2] = bf16::from_f32_finite(a);
                    k_out[(p * CHUNK + slot) * 2 + 1] = bf16::from_f32_finite(b);
                }
                let pairs = &mut v_out[slot / 2 * 2 * dv..][..2 * dv];
                for (pair, &x) in pairs.chunks_exact_mut(2).zip(&v[(row * heads + head) * dv..][..dv]) {
                    pair[slot % 2] = bf16::from_f32_finite(x);
                }
            }
        };
        if slots.len() < 16 {
            (0..heads).for_each(head_rows);
        } else {
            pool.run(heads, &head_rows);
        }
    }

    /// The slot becomes zero in every layer.
    pub fn zero_slot(&mut self, slot: Slot) {
        let base = self.base(slot.chunk);
        let slot = slot.slot as usize;
        assert!(slot < CHUNK);
        for (layer, desc) in self.layout.layers.iter().enumerate() {
            let LayerKind::Gqa { heads, dv, .. } = desc.kind;
            for head in 0..heads {
                let (k, v, _) = self.layout.tile(layer, head);
                for at in (base + k / 2..base + v / 2).step_by(2 * CHUNK) {
                    self.data[at + 2 * slot..at + 2 * slot + 2].fill(0);
                }
                let pairs = base + v / 2 + slot / 2 * 2 * dv;
                (0..dv).for_each(|i| self.data[pairs + 2 * i + slot % 2] = 0);
            }
        }
    }

    /// Key and value of one slot and head, for references and tests: `k[..dk]` and `v[..dv]` are filled.
    pub fn read(&self, layer: usize, head: usize, slot: Slot, k: &mut [f32], v: &mut [f32]) {
        let (keys, values) = self.chunk(slot.chunk).tile(layer, head);
        let (dk, dv, slot) = (keys.len() / CHUNK, values.len() / CHUNK, slot.slot as usize);
        for (i, k) in k[..dk].iter_mut().enumerate() {
            *k = bf16::to_f32(keys[(i % (dk / 2) * CHUNK + slot) * 2 + i / (dk / 2)]);
        }
        for (i, v) in v[..dv].iter_mut().enumerate() {
            *v = bf16::to_f32(values[(slot / 2 * dv + i) * 2 + slot % 2]);
        }
    }

    /// Elements of a slab.
    fn slab(&self) -> usize {
        self.layout.bytes / 2
    }

    /// First element of a chunk.
    fn base(&self, chunk: ChunkId) -> usize {
        assert!(chunk.0 < self.chunks, "{chunk} is outside the pool");
        chunk.0 as usize * self.slab()
    }

    /// K and V of a head as packed words. Reading up to one vector behind the end of V is allowed: what lies there is
    /// the next tile or the padding of the allocation.
    pub(crate) fn words(&self, chunk: ChunkId, layer: usize, head: usize) -> (*const u32, *const u32) {
        let (k, v, _) = self.layout.tile(layer, head);
        let base = self.base(chunk);
        // SAFETY: inside the slab; a multiple of 4 bytes, for every tile is a multiple of 64 words.
        unsafe { (self.data.as_ptr().add(base + k / 2).cast(), self.data.as_ptr().add(base + v / 2).cast()) }
    }
}
