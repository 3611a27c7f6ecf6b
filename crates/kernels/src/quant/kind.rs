use std::fmt;

/// A block format of ggml, by the names of its files. `Kx` formats group eight blocks of 32 under one pair of scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuantKind {
    /// 32 signed bytes under one f16 scale: 8.5 bits per weight.
    Q8_0,
    /// 32 4-bit codes around 8 under one f16 scale: 4.5 bits.
    Q4_0,
    /// 32 5-bit codes around 16 under one f16 scale: 5.5 bits.
    Q5_0,
    /// 8 x 32 4-bit codes, each 32 with a 6-bit scale and a 6-bit minimum, under two f16 scales: 4.5 bits.
    Q4K,
    /// The same with 5-bit codes: 5.5 bits.
    Q5K,
    /// 16 x 16 6-bit codes around 32, each 16 with an 8-bit scale, under one f16 scale: 6.5625 bits.
    Q6K,
}

use QuantKind::{Q4_0, Q4K, Q5_0, Q5K, Q6K, Q8_0};

impl QuantKind {
    pub const ALL: [QuantKind; 6] = [Q8_0, Q4_0, Q5_0, Q4K, Q5K, Q6K];

    /// What to quantise a matrix of rows of `k` weights to, for 4.5 bits per weight at most; `None` where no format's
    /// blocks fit.
    pub fn best_q4(k: usize) -> Option<QuantKind> {
        [Q4K, Q4_0].into_iter().find(|kind| kind.fits(k))
    }

    /// Whether rows of `k` weights are whole blocks.
    pub const fn fits(self, k: usize) -> bool {
        k > 0 && k.is_multiple_of(self.block_len())
    }

    /// Weights in a block.
    pub const fn block_len(self) -> usize {
        match self {
            Q8_0 | Q4_0 | Q5_0 => 32,
            Q4K | Q5K | Q6K => 256,
        }
    }

    /// Bytes of a block, in files and packed.
    pub const fn block_bytes(self) -> usize {
        self.block_len() * self.bits() / 8 + self.heads() * 2
    }

    /// Bits of a code.
    pub(crate) const fn bits(self) -> usize {
        match self {
            Q4_0 | Q4K => 4,
            Q5_0 | Q5K => 5,
            Q6K => 6,
            Q8_0 => 8,
        }
    }

    /// The code that means 0, or the middle of the range where a minimum moves it. Signed codes are kept as they are.
    pub(crate) const fn centre(self) -> u8 {
        match self {
            Q8_0 => 0,
            _ => 1 << (self.bits() - 1),
        }
    }

    /// Words of 16 bits that a block has beside its codes.
    pub(crate) const fn heads(self) -> usize {
        match self {
            Q8_0 | Q4_0 | Q5_0 => 1,
            Q4K | Q5K => 8,
            Q6K => 9,
        }
    }

    /// Weights under one scale.
    pub(crate) const fn scale_len(self) -> usize {
        if matches!(self, Q6K) { 16 } else { 32 }
    }

    /// Whether weights are `scale * code - min`.
    pub(crate) const fn has_min(self) -> bool {
        matches!(self, Q4K | Q5K)
    }

    fn name(self) -> &'static str {
        match self {
            Q8_0 => "Q8_0",
            Q4_0 => "Q4_0",
            Q5_0 => "Q5_0",
            Q4K => "Q4_K",
            Q5K => "Q5_K",
            Q6K => "Q6_K",
        }
    }
}

impl fmt::Display for QuantKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
