//! The KV pool: slabs of one chunk each, dense bf16, and beside them slabs for sealed chunks where these are encoded.

use std::fmt;
use std::ops::Range;

use kvist_base::{CHUNK, ChunkId, ChunkLayout, Codec, Dtype, LayerKind, Seal, Slot};

use crate::Pool;
use crate::bf16;
use crate::buffer::{Buffer, SharedMut};
use crate::kv8;

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

/// Slabs of one chunk each. Every stored value is finite, always: that is what lets the kernels multiply masked slots by
/// zero.
///
/// A pool of one class holds every chunk in bf16. A pool of two holds sealed chunks in 8 bits, with the ids from 0 on,
/// and open ones in bf16 with the ids after them: rows are written to open chunks, and [`KvPool::seal`] encodes.
///
/// K of a head is `[dk/2][64][2]`: pair `p` holds elements `p` and `p + dk/2` of a token's key, the two that RoPE turns
/// together. V is `[32][dv][2]`: pair `t` holds tokens `2t` and `2t + 1`.
pub struct KvPool {
    layout: ChunkLayout,
    chunks: u32,
    data: Buffer,
    /// Sealed chunks; `data` holds the open ones then.
    sealed: Option<Sealed>,
}

struct Sealed {
    layout: ChunkLayout,
    chunks: u32,
    data: Buffer,
}

/// K and V of a head as the kernels read them. Reading up to one vector behind the end of V is allowed: what lies there
/// is the next tile or the padding of the allocation.
#[derive(Clone, Copy)]
pub(crate) enum Words {
    Dense { k: *const u32, v: *const u32 },
    Codes(kv8::Codes),
}

/// One chunk of the pool.
#[derive(Clone, Copy)]
pub struct ChunkView<'a> {
    pool: &'a KvPool,
    chunk: ChunkId,
}

impl<'a> ChunkView<'a> {
    /// (K, V) of a head, packed as [`KvPool`] says.
    ///
    /// # Panics
    /// For a chunk that is encoded.
    pub fn tile(&self, layer: usize, head: usize) -> (&'a [u16], &'a [u16]) {
        let base = self.pool.base(self.chunk);
        let (k, v, end) = self.pool.layout.tile(layer, head);
        (&self.pool.data[base + k / 2..base + v / 2], &self.pool.data[base + v / 2..base + end / 2])
    }

    /// The chunk as every tier holds it, in the order of its layout.
    pub fn bytes(&self) -> &'a [u8] {
        const { assert!(cfg!(target_endian = "little"), "chunks are little-endian, in every tier") };
        let words = self.elements();
        // SAFETY: the same memory as bytes, which have no alignment and no invalid values.
        unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
    }

    /// The same as words of 16 bits.
    pub fn elements(&self) -> &'a [u16] {
        if let Some(sealed) = &self.pool.sealed
            && self.chunk.0 < sealed.chunks
        {
            let slab = sealed.layout.bytes / 2;
            return &sealed.data[self.chunk.0 as usize * slab..][..slab];
        }
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
        assert_eq!(layout.codec, Codec::Dense(Dtype::Bf16), "the pool holds bf16");
        check(&layout);
        let data = slabs(&layout, chunks)?;
        Ok(KvPool { layout, chunks, data, sealed: None })
    }

    /// A pool of `chunks` sealed chunks as `layout` says and of `open` others in bf16.
    ///
    /// # Errors
    /// When the system refuses the memory.
    ///
    /// # Panics
    /// As [`KvPool::new`], or when `layout` is not of [`Codec::Kv8`].
    pub fn with_codec(layout: ChunkLayout, chunks: u32, open: u32) -> Result<KvPool, OutOfMemory> {
        assert_eq!(layout.codec, Codec::Kv8, "sealed chunks are encoded");
        check(&layout);
        assert!(chunks.checked_add(open).is_some(), "chunk ids have 32 bits");
        let kinds = layout.layers.iter().map(|l| (l.kind, layout.windows[l.class]));
        let dense = ChunkLayout::with_windows(Dtype::Bf16, kinds);
        assert_eq!(dense.windows, layout.windows);
        let data = slabs(&layout, chunks)?;
        let pool = KvPool::new(dense, open)?;
        Ok(KvPool { sealed: Some(Sealed { layout, chunks, data }), ..pool })
    }

    /// Layout of the chunks that rows are written to.
    pub fn layout(&self) -> &ChunkLayout {
        &self.layout
    }

    /// Ids of the chunks that rows are written to.
    pub fn open(&self) -> Range<u32> {
        let first = self.sealed.as_ref().map_or(0, |sealed| sealed.chunks);
        first..first + self.chunks
    }

    /// Number of slabs, of both classes.
    pub fn chunks(&self) -> u32 {
        self.open().end
    }

    /// Whether sealed chunks are encoded.
    pub(crate) fn is_coded(&self) -> bool {
        self.sealed.is_some()
    }

    /// Encodes a layer of the chunks `from` into `to`.
    ///
    /// # Panics
    /// When a chunk is not of the class that a seal wants, or is sealed twice.
    pub fn seal(&mut self, pool: &Pool, layer: usize, seals: &[Seal]) {
        if seals.is_empty() {
            return;
        }
        for (i, seal) in seals.iter().enumerate() {
            assert!(seals[..i].iter().all(|other| other.to != seal.to), "{} is sealed twice", seal.to);
        }
        let LayerKind::Gqa { heads, dk, dv } = self.layout.layers[layer].kind;
        let target = self.sealed.as_ref().expect("chunks are sealed where there is a codec");
        let data = SharedMut(target.data.as_ptr());
        pool.run(seals.len() * heads, &|i| {
            let (Seal { from, to }, head) = (seals[i / heads], i % heads);
            assert!(to.0 < target.chunks, "{to} holds no sealed chunks");
            let (k, v) = self.chunk(from).tile(layer, head);
            let (at, _, end) = target.layout.tile(layer, head);
            // SAFETY: the tile lies in the slab of a chunk of the pool. Each tile is written by one job alone, for no
            // chunk is sealed twice, and `self` is borrowed exclusively.
            let out = unsafe { data.slice((to.0 as usize * target.layout.bytes + at) / 2, (end - at) / 2) };
            kv8::encode(dk, dv, k, v, out);
        });
    }

    pub fn chunk(&self, chunk: ChunkId) -> ChunkView<'_> {
        ChunkView { pool: self, chunk }
    }

    /// Every byte of the chunk becomes zero.
    pub fn zero(&mut self, chunk: ChunkId) {
        if let Some(sealed) = &mut self.sealed
            && chunk.0 < sealed.chunks
        {
            let slab = sealed.layout.bytes / 2;
            return sealed.data[chunk.0 as usize * slab..][..slab].fill(0);
        }
        let (base, slab) = (self.base(chunk), self.slab());
        self.data[base..base + slab].fill(0);
    }

    /// A layer's slices of `chunks`, which ascend, as every tier holds them. Whoever writes them keeps the promise of
    /// the pool: what is decoded from them is finite, scales are not negative, and no code is -128.
    ///
    /// # Panics
    /// When the chunks do not ascend, or lie outside the pool.
    pub fn slices_mut(&mut self, layer: usize, chunks: &[ChunkId]) -> Vec<&mut [u8]> {
        const { assert!(cfg!(target_endian = "little"), "chunks are little-endian, in every tier") };
        let sealed = self.sealed.as_mut().map_or(0, |sealed| sealed.chunks);
        let (encoded, dense) = chunks.split_at(chunks.partition_point(|chunk| chunk.0 < sealed));
        let mut slices = Vec::with_capacity(chunks.len());
        let pools = [
            self.sealed.as_mut().map(|sealed| (&sealed.layout, &mut sealed.data[..], encoded, 0)),
            Some((&self.layout, &mut self.data[..], dense, sealed)),
        ];
        for (layout, mut rest, chunks, first) in pools.into_iter().flatten() {
            let (slab, layer) = (layout.bytes / 2, layout.layers[layer]);
            let mut passed = 0;
            for chunk in chunks {
                let at = (chunk.0 - first) as usize * slab + layer.offset / 2;
                let (_, from) = rest.split_at_mut(at.checked_sub(passed).expect("chunks that ascend"));
                let (words, behind) = from.split_at_mut(layer.bytes / 2);
                (rest, passed) = (behind, at + words.len());
                // SAFETY: the same memory as bytes, which have no alignment and no invalid values.
                slices.push(unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of_val(words)) });
            }
        }
        slices
    }

    /// Copies the first `n` slots of `from`, all layers, to the same slots of `to`.
    ///
    /// # Panics
    /// When the chunks are the same.
    pub fn copy_slots(&mut self, from: ChunkId, to: ChunkId, n: usize) {
        assert!(n <= CHUNK);
        if let Some(sealed) = &mut self.sealed
            && from.0 < sealed.chunks
        {
            assert!(n == CHUNK && to.0 < sealed.chunks, "sealed chunks are copied whole");
            let slab = sealed.layout.bytes / 2;
            let at = from.0 as usize * slab;
            return sealed.data.copy_within(at..at + slab, to.0 as usize * slab);
        }
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
        let open = self.open();
        for slot in slots.iter().flatten() {
            assert!(open.contains(&slot.chunk.0) && (slot.slot as usize) < CHUNK, "{slot:?} is outside the pool");
        }
        let (slab, layout) = (self.slab(), &self.layout);
        let data = SharedMut(self.data.as_ptr());
        let head_rows = |head: usize| {
            let (k_at, v_at, end) = layout.tile(layer, head);
            for (row, slot) in slots.iter().enumerate() {
                let Some(Slot { chunk, slot }) = *slot else { continue };
                let (base, slot) = ((chunk.0 - open.start) as usize * slab, slot as usize);
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

    /// Key and value of one slot and head, decoded, for references and tests: `k[..dk]` and `v[..dv]` are filled.
    pub fn read(&self, layer: usize, head: usize, slot: Slot, k: &mut [f32], v: &mut [f32]) {
        let LayerKind::Gqa { dk, dv, .. } = self.layout.layers[layer].kind;
        let (chunk, slot) = (slot.chunk, slot.slot as usize);
        // Word `row * width + column`, `half` of it: for K row = pair of elements, for V row = pair of tokens.
        let element: &dyn Fn(bool, usize, usize, usize) -> f32 = match self.words(chunk, layer, head) {
            Words::Codes(codes) => &move |of_k, row, column, half| codes.value(of_k, dv, row, column, half),
            Words::Dense { .. } => {
                let (keys, values) = self.chunk(chunk).tile(layer, head);
                &move |of_k, row, column, half| {
                    let (words, width) = if of_k { (keys, CHUNK) } else { (values, dv) };
                    bf16::to_f32(words[(row * width + column) * 2 + half])
                }
            }
        };
        (0..dk).for_each(|i| k[i] = element(true, i % (dk / 2), slot, i / (dk / 2)));
        (0..dv).for_each(|i| v[i] = element(false, slot / 2, i, slot % 2));
    }

    /// Elements of a slab.
    fn slab(&self) -> usize {
        self.layout.bytes / 2
    }

    /// First element of a chunk that is not encoded.
    fn base(&self, chunk: ChunkId) -> usize {
        let open = self.open();
        assert!(open.contains(&chunk.0), "{chunk} is outside the pool");
        (chunk.0 - open.start) as usize * self.slab()
    }

    pub(crate) fn words(&self, chunk: ChunkId, layer: usize, head: usize) -> Words {
        if let Some(sealed) = &self.sealed
            && chunk.0 < sealed.chunks
        {
            let LayerKind::Gqa { dk, dv, .. } = sealed.layout.layers[layer].kind;
            let (k, v, _) = sealed.layout.tile(layer, head);
            let base = chunk.0 as usize * sealed.layout.bytes;
            // SAFETY: inside the slab of a chunk of the pool.
            return Words::Codes(unsafe {
                let at = sealed.data.as_ptr().cast::<i8>().add(base);
                kv8::Codes::new(at.add(k), dk, at.add(v), dv)
            });
        }
        let (k, v, _) = self.layout.tile(layer, head);
        let base = self.base(chunk);
        // SAFETY: inside the slab; a multiple of 4 bytes, for every tile is a multiple of 64 words.
        unsafe {
            let at = self.data.as_ptr().add(base);
            Words::Dense { k: at.add(k / 2).cast(), v: at.add(v / 2).cast() }
        }
    }
}

/// That a layout is what [`ChunkLayout::new`] makes: the unsafe code relies on tiles that lie inside the slab and do not
/// overlap, and the fields of a layout are public.
fn check(layout: &ChunkLayout) {
    let mut end = 0;
    for (i, layer) in layout.layers.iter().enumerate() {
        let LayerKind::Gqa { heads, dk, dv } = layer.kind;
        assert!(dk % 2 == 0, "head size {dk} is odd");
        let head = match layout.codec {
            Codec::Dense(dtype) => [dk + dv, CHUNK, dtype.bytes()].into_iter().try_fold(1, usize::checked_mul),
            Codec::Kv8 => (dk + dv).checked_mul(CHUNK).and_then(|codes| codes.checked_add(2 * (dk + CHUNK))),
        };
        let bytes = head.and_then(|head| head.checked_mul(heads));
        assert_eq!((layer.offset, Some(layer.bytes)), (end, bytes), "layer {i} is not where it belongs");
        end += layer.bytes;
    }
    assert_eq!(layout.bytes, end, "the layers do not fill the chunk");
}

fn slabs(layout: &ChunkLayout, chunks: u32) -> Result<Buffer, OutOfMemory> {
    let bytes = layout.bytes as u128 * chunks as u128;
    usize::try_from(bytes / 2).ok().and_then(Buffer::zeroed).ok_or(OutOfMemory { bytes })
}
