//! Quantised weights in the order in which the matmul reads them.

use std::fmt;

use super::QuantKind;
use super::block::Block;
use super::encode::{can_encode, encode};
use crate::buffer::{Buffer, SharedMut};
use crate::simd::PANEL;
use crate::{Isa, OutOfMemory, Pool};

/// Weights of a group: eight steps of four, for 16 outputs. Its codes take as many words per output as a code has bits.
pub(crate) const GROUP: usize = 32;

/// A matrix `[n][k]` in blocks of `kind`, packed in panels of 16 outputs, no larger than the blocks were (but for the
/// outputs that fill the last panel, which are zeros). The packing is the same on every ISA path.
///
/// Codes: `[n/16][k/32][bits][16]` words. Word `w < 4` of a group has the codes of steps `2w` and `2w + 1` in the low
/// and high halves of its bytes, byte `i` for element `i` of the step; 5-bit codes have the fifth bit of step `s` in
/// bit `s` of the bytes of word 4, 6-bit codes their upper two bits in bits `2(s % 4)` of word `4 + s / 4`. 8-bit codes
/// are signed and have a word for each step.
///
/// Heads: `[n/16][k/block][heads][16]`, the words of [`Block`].
pub struct PackedQuant {
    kind: QuantKind,
    n: usize,
    k: usize,
    codes: Buffer,
    heads: Buffer,
}

/// Why there is no [`PackedQuant`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QuantError {
    /// Rows of this length are not whole blocks of the format.
    Length {
        kind: QuantKind,
        k: usize,
    },
    /// The bytes are not those of `n` rows of `k` weights.
    Bytes {
        kind: QuantKind,
        n: usize,
        k: usize,
        found: usize,
    },
    /// There is no encoder for the format.
    NoEncoder(QuantKind),
    OutOfMemory(OutOfMemory),
}

impl fmt::Display for QuantError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            QuantError::Length { kind, k } => {
                write!(f, "rows of {k} weights are not whole {kind} blocks of {}", kind.block_len())
            }
            QuantError::Bytes { kind, n, k, found } => {
                write!(f, "{found} bytes are not a {kind} matrix of {n} x {k}: the file may be damaged")
            }
            QuantError::NoEncoder(kind) => write!(f, "cannot quantise to {kind}, only to Q8_0, Q4_0 and Q4_K"),
            QuantError::OutOfMemory(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for QuantError {}

impl From<OutOfMemory> for QuantError {
    fn from(error: OutOfMemory) -> QuantError {
        QuantError::OutOfMemory(error)
    }
}

impl PackedQuant {
    /// Packs `n` rows of `k` weights. `fill(i, row)` writes the blocks of row `i`, `k / block_len * block_bytes` bytes;
    /// it runs once per row, on any thread.
    ///
    /// # Errors
    /// When rows are not whole blocks, or the system refuses the memory.
    pub fn pack(
        kind: QuantKind,
        n: usize,
        k: usize,
        pool: &Pool,
        fill: &(dyn Fn(usize, &mut [u8]) + Sync),
    ) -> Result<PackedQuant, QuantError> {
        if !kind.fits(k) {
            return Err(QuantError::Length { kind, k });
        }
        let (groups, blocks) = (k / GROUP, k / kind.block_len());
        let panels = n.div_ceil(PANEL);
        let (codes, heads) = (groups * kind.bits() * PANEL, blocks * kind.heads() * PANEL);
        let bytes = panels as u128 * (codes as u128 * 4 + heads as u128 * 2);
        let buffer = |panel: usize| panels.checked_mul(panel).and_then(Buffer::zeroed).ok_or(OutOfMemory { bytes });
        let mut packed = PackedQuant { kind, n, k, codes: buffer(codes * 2)?, heads: buffer(heads)? };
        let code_words = SharedMut(packed.codes.as_ptr().cast::<u32>());
        let head_words = SharedMut::new(&mut packed.heads);
        pool.run(panels, &|p| {
            // SAFETY: each tile has a panel of its own.
            let (codes, heads) = unsafe { (code_words.slice(p * codes, codes), head_words.slice(p * heads, heads)) };
            let mut row = vec![0; blocks * kind.block_bytes()];
            let mut block = Block::new();
            for lane in 0..PANEL.min(n - p * PANEL) {
                fill(p * PANEL + lane, &mut row);
                let codes = codes.chunks_exact_mut(kind.block_len() / GROUP * kind.bits() * PANEL);
                let heads = heads.chunks_exact_mut(kind.heads() * PANEL);
                for ((bytes, codes), heads) in row.chunks_exact(kind.block_bytes()).zip(codes).zip(heads) {
                    block.parse(kind, bytes);
                    put(kind, &block, lane, codes, heads);
                }
            }
        });
        Ok(packed)
    }

    /// Packs the blocks of a file: `n` rows of `k / block_len` blocks.
    ///
    /// # Errors
    /// When rows are not whole blocks, when the bytes are not that many, or when the system refuses the memory.
    pub fn from_ggml(
        kind: QuantKind,
        n: usize,
        k: usize,
        blocks: &[u8],
        pool: &Pool,
    ) -> Result<PackedQuant, QuantError> {
        if !kind.fits(k) {
            return Err(QuantError::Length { kind, k });
        }
        let row = k / kind.block_len() * kind.block_bytes();
        if Some(blocks.len()) != n.checked_mul(row) {
            return Err(QuantError::Bytes { kind, n, k, found: blocks.len() });
        }
        PackedQuant::pack(kind, n, k, pool, &|i, out| out.copy_from_slice(&blocks[i * row..(i + 1) * row]))
    }

    /// Quantises `n` rows of `k` weights to Q8_0, Q4_0 or Q4_K. `fill(i, row)` writes row `i`; it runs once per row, on
    /// any thread. Weights that are not finite count as 0.
    ///
    /// # Errors
    /// When rows are not whole blocks, when the format has no encoder, or when the system refuses the memory.
    pub fn quantise(
        kind: QuantKind,
        n: usize,
        k: usize,
        pool: &Pool,
        fill: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) -> Result<PackedQuant, QuantError> {
        if !can_encode(kind) {
            return Err(QuantError::NoEncoder(kind));
        }
        let isa = Isa::detect();
        PackedQuant::pack(kind, n, k, pool, &|i, out| {
            let mut row = vec![0.0; k];
            fill(i, &mut row);
            let blocks = out.chunks_exact_mut(kind.block_bytes());
            row.chunks_exact_mut(kind.block_len()).zip(blocks).for_each(|(weights, block)| {
                encode(isa, kind, weights, block);
            });
        })
    }

    pub fn kind(&self) -> QuantKind {
        self.kind
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
        (self.codes.len() + self.heads.len()) * 2
    }

    /// The weights of row `i` (`out.len() == k`), exactly as the file has them: the embedding of a token.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        assert!(i < self.n && out.len() == self.k);
        let (panel, lane, kind) = (i / PANEL, i % PANEL, self.kind);
        let codes = kind.block_len() / GROUP * kind.bits() * PANEL;
        let heads = kind.heads() * PANEL;
        let first = panel * (self.k / kind.block_len());
        let mut block = Block::new();
        for (b, out) in out.chunks_exact_mut(kind.block_len()).enumerate() {
            let at = first + b;
            take(kind, &mut block, lane, &self.codes()[at * codes..][..codes], &self.heads[at * heads..][..heads]);
            block.weights(kind, out);
        }
    }

    pub(crate) fn codes(&self) -> &[u32] {
        // SAFETY: the buffer holds pairs of words of 16 bits and is aligned to cache lines.
        unsafe { std::slice::from_raw_parts(self.codes.as_ptr().cast(), self.codes.len() / 2) }
    }

    pub(crate) fn heads(&self) -> &[u16] {
        &self.heads
    }
}

/// Writes a block into lane `lane` of its place.
fn put(kind: QuantKind, block: &Block, lane: usize, codes: &mut [u32], heads: &mut [u16]) {
    for (head, out) in block.heads.iter().zip(heads.chunks_exact_mut(PANEL)) {
        out[lane] = *head;
    }
    let groups = codes.chunks_exact_mut(kind.bits() * PANEL);
    for (codes, out) in block.codes.as_chunks::<GROUP>().0.iter().zip(groups) {
        let fours = codes.as_chunks::<4>().0;
        let steps: [u32; GROUP / 4] = std::array::from_fn(|s| u32::from_le_bytes(fours[s]));
        let mut words = out.iter_mut().skip(lane).step_by(PANEL);
        let mut put = |word: u32| *words.next().expect("a word for each bit of the codes") = word;
        if kind.bits() == 8 {
            steps.into_iter().for_each(put);
            continue;
        }
        steps.as_chunks::<2>().0.iter().for_each(|[a, b]| put(a & 0x0f0f_0f0f | (b & 0x0f0f_0f0f) << 4));
        match kind.bits() {
            5 => put((0..8).fold(0, |word, s| word | (steps[s] >> 4 & 0x0101_0101) << s)),
            6 => steps.as_chunks::<4>().0.iter().for_each(|half| {
                put((0..4).fold(0, |word, s| word | (half[s] >> 4 & 0x0303_0303) << (2 * s)));
            }),
            _ => {}
        }
    }
}

/// Reads the block in lane `lane`.
fn take(kind: QuantKind, block: &mut Block, lane: usize, codes: &[u32], heads: &[u16]) {
    for (head, words) in block.heads.iter_mut().zip(heads.chunks_exact(PANEL)) {
        *head = words[lane];
    }
    for (out, group) in block.codes.chunks_exact_mut(GROUP).zip(codes.chunks_exact(kind.bits() * PANEL)) {
        for (s, out) in out.chunks_exact_mut(4).enumerate() {
            let word = step(kind.bits(), s, |w| group[w * PANEL + lane]);
            out.copy_from_slice(&word.to_le_bytes());
        }
    }
}

/// The four codes of step `s` of a group whose words are `words(0..bits)`.
#[inline(always)]
pub(crate) fn step(bits: usize, s: usize, words: impl Fn(usize) -> u32) -> u32 {
    if bits == 8 {
        return words(s);
    }
    let low = words(s / 2) >> (s % 2 * 4) & 0x0f0f_0f0f;
    match bits {
        4 => low,
        5 => low | (words(4) >> s & 0x0101_0101) << 4,
        _ => low | (words(4 + s / 4) >> (s % 4 * 2) & 0x0303_0303) << 4,
    }
}
