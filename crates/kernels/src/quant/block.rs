//! One block of weights, out of any of the formats: codes in order, and the words beside them.

use super::QuantKind::{self, Q4_0, Q4K, Q5_0, Q5K, Q6K, Q8_0};
use super::half;

/// Weights of the largest block.
pub(crate) const MAX_LEN: usize = 256;

/// Words beside the codes, at most.
pub(crate) const MAX_HEADS: usize = 9;

/// A block as the packed form keeps it.
///
/// Words: the f16 scale `d`; for `has_min` the f16 scale of the minima and six words of [`pair`]s; for Q6_K eight
/// words of two signed 8-bit scales each.
pub(crate) struct Block {
    pub codes: [u8; MAX_LEN],
    pub heads: [u16; MAX_HEADS],
}

/// Scale and minimum (6 bits each) of the 32 weights `j` of eight. Words 0 to 5 have pair `j` in their low 12 bits;
/// pairs 6 and 7 are spread over the high 4 bits of words 0 to 2 and 3 to 5.
#[inline(always)]
pub(crate) fn pair(words: impl Fn(usize) -> u16, j: usize) -> (u16, u16) {
    let both = if j < 6 {
        words(j)
    } else {
        let first = (j - 6) * 3;
        words(first) >> 12 | words(first + 1) >> 12 << 4 | words(first + 2) >> 12 << 8
    };
    (both & 63, both >> 6 & 63)
}

fn set_pairs(words: &mut [u16], scales: [u8; 8], mins: [u8; 8]) {
    let both = |j: usize| scales[j] as u16 | (mins[j] as u16) << 6;
    for (j, word) in words.iter_mut().enumerate() {
        *word = both(j) | (both(6 + j / 3) >> (j % 3 * 4) & 15) << 12;
    }
}

impl Block {
    pub fn new() -> Block {
        Block { codes: [0; MAX_LEN], heads: [0; MAX_HEADS] }
    }

    /// Reads a block of a file: `kind.block_bytes()` bytes.
    pub fn parse(&mut self, kind: QuantKind, bytes: &[u8]) {
        let Block { codes, heads } = self;
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        match kind {
            Q8_0 => {
                heads[0] = word(0);
                codes[..32].copy_from_slice(&bytes[2..34]);
            }
            Q4_0 => {
                heads[0] = word(0);
                nibbles(&bytes[2..18], codes);
            }
            Q5_0 => {
                heads[0] = word(0);
                nibbles(&bytes[6..22], codes);
                let high = word(2) as u32 | (word(4) as u32) << 16;
                codes[..32].iter_mut().enumerate().for_each(|(i, c)| *c |= (high >> i & 1) as u8 * 16);
            }
            Q4K | Q5K => {
                (heads[0], heads[1]) = (word(0), word(2));
                let (scales, mins) = scales_and_mins(&bytes[4..16]);
                set_pairs(&mut heads[2..8], scales, mins);
                let low = &bytes[kind.block_bytes() - 128..];
                low.chunks_exact(32).zip(codes.chunks_exact_mut(64)).for_each(|(low, codes)| nibbles(low, codes));
                if kind == Q5K {
                    for (group, codes) in codes.chunks_exact_mut(32).enumerate() {
                        codes.iter_mut().zip(&bytes[16..48]).for_each(|(c, high)| *c |= (high >> group & 1) * 16);
                    }
                }
            }
            Q6K => {
                let (low, rest) = bytes.split_at(128);
                heads[0] = word(208);
                heads[1..].iter_mut().enumerate().for_each(|(i, head)| *head = word(192 + 2 * i));
                low.chunks_exact(64).zip(codes.chunks_exact_mut(128)).for_each(|(low, codes)| nibbles(low, codes));
                for (i, codes) in codes.chunks_exact_mut(32).enumerate() {
                    let high = &rest[i / 4 * 32..][..32];
                    codes.iter_mut().zip(high).for_each(|(c, high)| *c |= (high >> (i % 4 * 2) & 3) * 16);
                }
            }
        }
    }

    /// The weights, `kind.block_len()` of them, in f32 arithmetic as ggml does it: `(d * scale) * code - dmin * min`.
    /// Scales that are not finite give what IEEE arithmetic gives.
    pub fn weights(&self, kind: QuantKind, out: &mut [f32]) {
        for (i, out) in out.chunks_exact_mut(kind.scale_len()).enumerate() {
            let (scale, min) = scale_and_min(kind, |word| self.heads[word], i);
            for (x, &code) in out.iter_mut().zip(&self.codes[i * kind.scale_len()..]) {
                *x = match kind {
                    Q8_0 => scale * code as i8 as f32,
                    Q4K | Q5K => scale * code as f32 - min,
                    Q4_0 | Q5_0 | Q6K => scale * (code as f32 - kind.centre() as f32),
                };
            }
        }
    }
}

/// Scale and minimum of the weights from `i * kind.scale_len()` on, out of the words of a block. The minimum is 0 where
/// the format has none.
#[inline(always)]
pub(crate) fn scale_and_min(kind: QuantKind, words: impl Fn(usize) -> u16, i: usize) -> (f32, f32) {
    let d = half::to_f32(words(0));
    match kind {
        Q8_0 | Q4_0 | Q5_0 => (d, 0.0),
        Q4K | Q5K => {
            let (scale, min) = pair(|j| words(2 + j), i);
            (d * scale as f32, half::to_f32(words(1)) * min as f32)
        }
        Q6K => (d * (words(1 + i / 2) >> (i % 2 * 8)) as i8 as f32, 0.0),
    }
}

/// Low halves, then high halves.
fn nibbles(bytes: &[u8], codes: &mut [u8]) {
    let (low, high) = codes[..2 * bytes.len()].split_at_mut(bytes.len());
    for ((&b, low), high) in bytes.iter().zip(low).zip(high) {
        (*low, *high) = (b & 15, b >> 4);
    }
}

/// The twelve bytes of eight 6-bit scales and minima.
fn scales_and_mins(b: &[u8]) -> ([u8; 8], [u8; 8]) {
    let pair = |j: usize| match j {
        0..4 => (b[j] & 63, b[j + 4] & 63),
        _ => (b[j + 4] & 15 | b[j - 4] >> 6 << 4, b[j + 4] >> 4 | b[j] >> 6 << 4),
    };
    (std::array::from_fn(|j| pair(j).0), std::array::from_fn(|j| pair(j).1))
}
