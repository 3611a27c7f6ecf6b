//! The KV pool: slabs of one chunk each in 16 bits, and beside them slabs for sealed chunks where these are encoded in 8.

use std::fmt;
use std::ops::Range;

use kvist_base::{CHUNK, ChunkId, ChunkLayout, Codec, LayerKind, Seal, Slot};

use crate::buffer::{Buffer, SharedMut};
use crate::codec::{self, Head};
use crate::simd::{Simd, isa_entry};
use crate::{Isa, Pool};

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
/// A pool of one class holds every chunk in 16 bits. A pool of two holds sealed chunks in 8 bits, with the ids from 0 on,
/// and open ones in 16 bits with the ids after them: rows are written to open chunks, and [`KvPool::seal`] encodes.
///
/// In 16 bits K of a head is `[dk/2][64][2]`: pair `p` holds elements `p` and `p + dk/2` of a token's key, the two that RoPE
/// turns together. V is `[32][dv][2]`: pair `t` holds tokens `2t` and `2t + 1`. Each is followed by a scale for each token. In
/// 8 bits they are as [`ChunkLayout`] says.
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
    /// When the layout is not [`Codec::Kv16`], has an odd head size, or is not laid out as [`ChunkLayout::new`] does it. The
    /// unsafe reads and writes of this module rely on tiles that lie inside the slab and do not overlap, and the fields
    /// of a layout are public.
    pub fn new(layout: ChunkLayout, chunks: u32) -> Result<KvPool, OutOfMemory> {
        assert_eq!(layout.codec, Codec::Kv16, "tokens are written in 16 bits");
        check(&layout);
        let data = slabs(&layout, chunks)?;
        Ok(KvPool { layout, chunks, data, sealed: None })
    }

    /// A pool of `chunks` sealed chunks as `layout` says and of `open` others in 16 bits.
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
        let dense = ChunkLayout::with_windows(Codec::Kv16, kinds);
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
            assert!(self.open().contains(&from.0), "{from} is sealed already");
            let open = self.head(from, layer, head);
            let (at, _, end) = target.layout.tile(layer, head);
            // SAFETY: the tile lies in the slab of a chunk of the pool. Each tile is written by one job alone, for no
            // chunk is sealed twice, and `self` is borrowed exclusively.
            let out = unsafe { data.slice((to.0 as usize * target.layout.bytes + at) / 2, (end - at) / 2) };
            // SAFETY: it is a head of the layer, in the pool.
            unsafe { open.encode(dk, dv, out) };
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
    /// the pool: what is decoded from them is finite, scales are not negative, and codes are within the bounds of
    /// their codec: past those sums would be wrong, though nothing else.
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
                for at in (k..v - CHUNK).step_by(2 * CHUNK) {
                    dst[at..at + 2 * n].copy_from_slice(&src[at..at + 2 * n]);
                }
                let whole = v + n / 2 * 2 * dv;
                dst[v..whole].copy_from_slice(&src[v..whole]);
                if n % 2 == 1 {
                    (whole..whole + 2 * dv).step_by(2).for_each(|at| dst[at] = src[at]);
                }
                for scales in [v - CHUNK, end - CHUNK] {
                    dst[scales..scales + n].copy_from_slice(&src[scales..scales + n]);
                }
            }
        }
    }

    /// Rounds the rows' keys and values (`[row][kv-head][element]`) to 16 bits and stores them in their slots; rows without a
    /// slot are skipped. What is infinite is stored as the largest value that there is, NaN as 0. The bits are those of every
    /// ISA path.
    ///
    /// # Panics
    /// When a length does not fit the layout, a slot lies outside the pool, or the machine cannot run `isa`.
    pub fn write(&mut self, isa: Isa, pool: &Pool, layer: usize, slots: &[Option<Slot>], k: &[f32], v: &[f32]) {
        isa.require();
        let LayerKind::Gqa { heads, dk, dv } = self.layout.layers[layer].kind;
        assert_eq!((k.len(), v.len()), (slots.len() * heads * dk, slots.len() * heads * dv));
        let open = self.open();
        for slot in slots.iter().flatten() {
            assert!(open.contains(&slot.chunk.0) && (slot.slot as usize) < CHUNK, "{slot:?} is outside the pool");
        }
        let writing = Writing { pool: self, data: SharedMut(self.data.as_ptr()), layer, slots, k, v };
        // SAFETY: `isa` is available, slots and lengths were checked. A job touches one head of the layer, so that jobs write
        // to disjoint parts, and `self` is borrowed exclusively.
        let head = |head: usize| unsafe { write_head(isa, &writing, head) };
        if slots.len() < 16 {
            (0..heads).for_each(head);
        } else {
            pool.run(heads, &head);
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
                let (k, v, end) = self.layout.tile(layer, head);
                let [k, v, end] = [k, v, end].map(|at| base + at / 2);
                for at in (k..v - CHUNK).step_by(2 * CHUNK) {
                    self.data[at + 2 * slot..at + 2 * slot + 2].fill(0);
                }
                let pairs = v + slot / 2 * 2 * dv;
                (0..dv).for_each(|i| self.data[pairs + 2 * i + slot % 2] = 0);
                [v, end].into_iter().for_each(|behind| self.data[behind - CHUNK + slot] = 0);
            }
        }
    }

    /// Key and value of one slot and head, decoded, for references and tests: `k[..dk]` and `v[..dv]` are filled.
    pub fn read(&self, layer: usize, head: usize, slot: Slot, k: &mut [f32], v: &mut [f32]) {
        let LayerKind::Gqa { dk, dv, .. } = self.layout.layers[layer].kind;
        let (tile, slot) = (self.head(slot.chunk, layer, head), slot.slot as usize);
        assert!(slot < CHUNK);
        // SAFETY: the slot lies in the tile, which is part of the pool.
        (0..dk).for_each(|i| k[i] = unsafe { tile.k(dk, i, slot) });
        // SAFETY: likewise.
        (0..dv).for_each(|i| v[i] = unsafe { tile.v(dv, slot, i) });
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

    /// K and V of a head as the kernels read them.
    pub(crate) fn head(&self, chunk: ChunkId, layer: usize, head: usize) -> Head {
        let sealed = self.sealed.as_ref().filter(|sealed| chunk.0 < sealed.chunks);
        let (layout, data, base) = match sealed {
            Some(sealed) => (&sealed.layout, &sealed.data, chunk.0 as usize * sealed.layout.bytes / 2),
            None => (&self.layout, &self.data, self.base(chunk)),
        };
        let LayerKind::Gqa { dk, dv, .. } = layout.layers[layer].kind;
        let (k, v, _) = layout.tile(layer, head);
        // SAFETY: inside the slab of a chunk of the pool.
        unsafe {
            let at = data.as_ptr().add(base);
            Head::new(sealed.is_some(), at.add(k / 2).cast(), dk, at.add(v / 2).cast(), dv)
        }
    }
}

/// Tokens of a layer that are being written.
struct Writing<'a> {
    pool: &'a KvPool,
    /// All that is not encoded.
    data: SharedMut<u16>,
    layer: usize,
    slots: &'a [Option<Slot>],
    k: &'a [f32],
    v: &'a [f32],
}

isa_entry!(fn write_head(writing: &Writing<'_>, head: usize) = write_rows);

/// # Safety
/// The ISA of `S` is available, slots lie in the pool, there is a key and a value for each, and nobody else writes this head.
#[inline(always)]
unsafe fn write_rows<S: Simd>(writing: &Writing<'_>, head: usize) {
    let Writing { pool, data, layer, slots, k, v } = *writing;
    let LayerKind::Gqa { heads, dk, dv } = pool.layout.layers[layer].kind;
    let (k_at, v_at, end) = pool.layout.tile(layer, head);
    let (first, slab) = (pool.open().start, pool.slab());
    for (row, slot) in slots.iter().enumerate() {
        let Some(Slot { chunk, slot }) = *slot else { continue };
        let (base, slot) = ((chunk.0 - first) as usize * slab, slot as usize);
        // SAFETY: the contract above.
        let (k_out, v_out) =
            unsafe { (data.slice(base + k_at / 2, (v_at - k_at) / 2), data.slice(base + v_at / 2, (end - v_at) / 2)) };
        let (codes, scales) = k_out.split_at_mut(dk * CHUNK);
        scales[slot] = codec::encode_key(&k[(row * heads + head) * dk..][..dk], |i, code| {
            let (pair, half) = if i < dk / 2 { (i, 0) } else { (i - dk / 2, 1) };
            codes[(pair * CHUNK + slot) * 2 + half] = code as u16;
        });
        let (codes, scales) = v_out.split_at_mut(dv * CHUNK);
        let pairs = &mut codes[slot / 2 * 2 * dv..][..2 * dv];
        scales[slot] = codec::encode_value(&v[(row * heads + head) * dv..][..dv], |i, code| {
            pairs[2 * i + slot % 2] = code as u16;
        });
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
            Codec::Dense(_) => None,
            Codec::Kv16 => [dk + dv + 2, CHUNK, 2].into_iter().try_fold(1, usize::checked_mul),
            Codec::Kv8 => {
                let codes = dk.checked_next_multiple_of(4).and_then(|dk| (dk + dv).checked_mul(CHUNK));
                codes.and_then(|codes| codes.checked_add(2 * (dk + CHUNK)))
            }
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
