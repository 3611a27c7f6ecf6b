//! Element types of weight files: three kinds of floats, and the block-quantised types of ggml.

use std::fmt;

use crate::convert::{bf16_to_f32, f16_to_f32};
use crate::dequant;

/// How the elements of a tensor are stored. The quantised types store blocks of consecutive elements of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    Q5_0,
    Q4K,
    Q5K,
    Q6K,
}

impl Format {
    pub const ALL: [Format; 9] = [
        Format::F32,
        Format::F16,
        Format::Bf16,
        Format::Q8_0,
        Format::Q4_0,
        Format::Q5_0,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
    ];

    /// The name that GGUF tools use.
    pub const fn name(self) -> &'static str {
        match self {
            Format::F32 => "F32",
            Format::F16 => "F16",
            Format::Bf16 => "BF16",
            Format::Q8_0 => "Q8_0",
            Format::Q4_0 => "Q4_0",
            Format::Q5_0 => "Q5_0",
            Format::Q4K => "Q4_K",
            Format::Q5K => "Q5_K",
            Format::Q6K => "Q6_K",
        }
    }

    /// Elements of a block; 1 for floats.
    pub const fn block(self) -> usize {
        match self {
            Format::F32 | Format::F16 | Format::Bf16 => 1,
            Format::Q8_0 | Format::Q4_0 | Format::Q5_0 => 32,
            Format::Q4K | Format::Q5K | Format::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::F16 | Format::Bf16 => 2,
            Format::Q8_0 => 2 + 32,
            Format::Q4_0 => 2 + 16,
            Format::Q5_0 => 2 + 4 + 16,
            Format::Q4K => 2 + 2 + 12 + 128,
            Format::Q5K => 2 + 2 + 12 + 32 + 128,
            Format::Q6K => 128 + 64 + 16 + 2,
        }
    }

    /// Bytes of `elements` elements. `None`: not whole blocks, or more than 64 bits.
    pub fn bytes(self, elements: u64) -> Option<u64> {
        let block = self.block() as u64;
        if !elements.is_multiple_of(block) {
            return None;
        }
        (elements / block).checked_mul(self.block_bytes() as u64)
    }

    /// The values of whole blocks, exactly as ggml defines them: in f32, scale by scale.
    ///
    /// # Panics
    /// When `bytes` and `out` do not hold the same whole blocks.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        assert!(self.bytes(out.len() as u64) == Some(bytes.len() as u64), "whole blocks of {self}");
        match self {
            Format::F32 => out.iter_mut().zip(bytes.as_chunks().0).for_each(|(o, &b)| *o = f32::from_le_bytes(b)),
            Format::F16 => out.iter_mut().zip(halves(bytes)).for_each(|(o, b)| *o = f16_to_f32(b)),
            Format::Bf16 => out.iter_mut().zip(halves(bytes)).for_each(|(o, b)| *o = bf16_to_f32(b)),
            _ => {
                let blocks = bytes.chunks_exact(self.block_bytes()).zip(out.chunks_exact_mut(self.block()));
                blocks.for_each(|(block, out)| match self {
                    Format::Q8_0 => dequant::q8_0(block, out),
                    Format::Q4_0 => dequant::q4_0(block, out),
                    Format::Q5_0 => dequant::q5_0(block, out),
                    Format::Q4K => dequant::q4_k(block, out),
                    Format::Q5K => dequant::q5_k(block, out),
                    _ => dequant::q6_k(block, out),
                });
            }
        }
    }

    /// The first block of `bytes` with an element that is not a number, or with a scale that is not one.
    pub fn not_finite(self, bytes: &[u8]) -> Option<usize> {
        let bad = |at: usize| move |block: &[u8]| block[at + 1] & 0x7c == 0x7c;
        let mut blocks = bytes.chunks_exact(self.block_bytes());
        match self {
            Format::F32 => blocks.position(|b| u16::from_le_bytes([b[2], b[3]]) & 0x7f80 == 0x7f80),
            Format::Bf16 => blocks.position(|b| u16::from_le_bytes([b[0], b[1]]) & 0x7f80 == 0x7f80),
            Format::F16 | Format::Q8_0 | Format::Q4_0 | Format::Q5_0 => blocks.position(bad(0)),
            Format::Q4K | Format::Q5K => blocks.position(|b| bad(0)(b) || bad(2)(b)),
            Format::Q6K => blocks.position(bad(208)),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

pub(crate) fn halves(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.as_chunks().0.iter().map(|&b| u16::from_le_bytes(b))
}
