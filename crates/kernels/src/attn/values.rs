//! Scales of V, as scores and sums take them.
//!
//! A token adds `2^s v code` to O, `v` being the scale of its V: `2^(s + log2 v)` is what codes are multiplied with. So scores
//! get `log2 v` before their maximum is known, and what the exponential gives is largest where a weight times its scale is:
//! it becomes 16 bits as it is. `l` divides `v` out again. That the logarithm is off by a little is as if the score was.

use kvist_base::CHUNK;

use crate::bf16;

/// Smallest scale: what is smaller counts as that. `l` could get too large.
const LEAST: f32 = f32::from_bits((127 - 100) << 23);

/// What stands for zero, of a token whose V is nothing: so little that others' weights keep their bits beside it if their V is
/// above 1e-14, and so much that its own is not lost from `l` if theirs is below 1e18.
const OF_NOTHING: f32 = f32::from_bits((127 - 60) << 23);

/// Minimax polynomial of `log2(1 + t)` on [0, 1], off by 1.3e-5 at most.
const LOG2: [f32; 6] = [1.211_5e-5, 1.441_710_7, -0.708_246_65, 0.414_469_7, -0.193_303_4, 0.045_376_513];

/// Of a chunk's tokens.
pub(super) struct Values {
    /// `log2 v`.
    pub logs: [f32; CHUNK],
    /// One over `v` and over what a weight of one becomes in 16 bits.
    pub inverse: [f32; CHUNK],
}

impl Values {
    pub const NOTHING: Values = Values { logs: [0.0; CHUNK], inverse: [0.0; CHUNK] };

    /// Of these scales in bf16, where a weight of one becomes `most`.
    #[inline(always)]
    pub fn set(&mut self, scales: &[u16; CHUNK], most: f32) {
        for ((log, inverse), &scale) in self.logs.iter_mut().zip(&mut self.inverse).zip(scales) {
            let scale = bf16::to_f32(scale);
            // As integers, which have the same order. In slots that nobody sees there may be anything, which must be some number:
            // times nothing it has to be nothing.
            let bits =
                if scale == 0.0 { OF_NOTHING } else { scale }.to_bits().clamp(LEAST.to_bits(), f32::MAX.to_bits());
            let t = f32::from_bits(bits & 0x7f_ffff | 0x3f80_0000) - 1.0;
            let fraction = LOG2[..5].iter().rev().fold(LOG2[5], |sum, &c| sum * t + c);
            *log = ((bits >> 23) as i32 - 127) as f32 + fraction;
            *inverse = 1.0 / f32::from_bits(bits) * (1.0 / most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_and_inverses_are_those_of_the_scales() {
        let of = |scale: u16| {
            let mut values = Values::NOTHING;
            values.set(&[scale; CHUNK], 8194.0);
            assert!(values.logs.iter().all(|log| *log == values.logs[0]));
            (f64::from(values.logs[63]), f64::from(values.inverse[0]))
        };
        for bits in 1..=bf16::from_f32(3e34) {
            let scale = f64::from(bf16::to_f32(bits)).max(2.0_f64.powi(-100));
            let (log, inverse) = of(bits);
            assert!((log - scale.log2()).abs() < 2.5e-5, "log2 {scale:e} is {log}");
            assert!((inverse * scale * 8194.0 - 1.0).abs() < 2e-7, "1 / {scale:e} is {inverse:e}");
        }
        for anything in bf16::from_f32(3e34)..=u16::MAX {
            let (log, inverse) = of(anything);
            assert!(log.is_finite() && inverse.is_finite(), "{anything:#x}: {log}, {inverse}");
        }
        let (log, inverse) = of(0);
        assert!((log + 60.0).abs() < 2.5e-5 && inverse > 0.0);
    }
}
