//! kv8: a sealed chunk in 8 bits.
//!
//! K and V of a head are matrices of pairs, as in bf16: K has a row for each pair of elements and a column for each
//! token, V a row for each pair of tokens and a column for each element. Either half of a row has one scale, so K is
//! scaled per channel (a few channels are much larger than the rest, in every token) and V per token.
//!
//! A value is `code * scale`, `scale` the bf16 number at or above `largest / 127`, the code the nearest integer, ties to
//! even. The kernels multiply codes as integers, and scale what they are multiplied with instead (`q` by K's scales, `p`
//! by V's), once for 64 products.

use kvist_base::CHUNK;

use crate::bf16;

/// Largest code, of either sign: with -128 sums of products would not fit 32 bits as they do.
const MOST: f32 = 127.0;

/// Adding it to a number below 2^22 rounds that to an integer, ties to even.
const ROUND: f32 = 12_582_912.0;

/// Codes and scales of K and V of a head.
#[derive(Clone, Copy)]
pub(crate) struct Codes {
    /// `[dk/2][64][2]`.
    pub k: *const i8,
    /// `[dk/2][2]`, bf16.
    pub k_scales: *const u16,
    /// `[32][dv][2]`.
    pub v: *const i8,
    /// `[64]`, bf16.
    pub v_scales: *const u16,
}

impl Codes {
    /// # Safety
    /// `k` and `v` point to the tiles of a head, sizes `dk` and `dv`.
    pub unsafe fn new(k: *const i8, dk: usize, v: *const i8, dv: usize) -> Codes {
        // SAFETY: the scales lie behind the codes.
        unsafe { Codes { k, k_scales: k.add(dk * CHUNK).cast(), v, v_scales: v.add(dv * CHUNK).cast() } }
    }

    /// The value at `half` of the pair in a row and column of K or V.
    pub fn value(&self, of_k: bool, dv: usize, row: usize, column: usize, half: usize) -> f32 {
        let (codes, scales, width) = if of_k { (self.k, self.k_scales, CHUNK) } else { (self.v, self.v_scales, dv) };
        // SAFETY: the tile outlives the view of it, and the caller's indices lie inside, as they do in bf16.
        unsafe {
            let scale = bf16::to_f32(scales.add(2 * row + half).read_unaligned());
            f32::from(*codes.add((row * width + column) * 2 + half)) * scale
        }
    }
}

/// Encodes a head, packed as [`crate::KvPool`] says, into its tile.
pub(crate) fn encode(dk: usize, dv: usize, k: &[u16], v: &[u16], out: &mut [u16]) {
    let (k_out, v_out) = out.split_at_mut(dk * (CHUNK / 2 + 1));
    encode_rows(k, CHUNK, k_out);
    encode_rows(v, dv, v_out);
}

/// Encodes rows of `width` pairs: codes to the front of `out`, two to a word, then two scales for each row.
fn encode_rows(src: &[u16], width: usize, out: &mut [u16]) {
    let (codes, scales) = out.split_at_mut(src.len() / 2);
    for (row, (src, codes)) in src.chunks_exact(2 * width).zip(codes.chunks_exact_mut(width)).enumerate() {
        let mut largest = [0_u16; 2];
        for pair in src.chunks_exact(2) {
            // Magnitudes are ordered as their bits are.
            (0..2).for_each(|half| largest[half] = largest[half].max(pair[half] & 0x7fff));
        }
        let scale = largest.map(scale);
        (0..2).for_each(|half| scales[2 * row + half] = scale[half]);
        let scale = scale.map(bf16::to_f32);
        for (pair, out) in src.chunks_exact(2).zip(codes) {
            let [a, b] = [0, 1].map(|half| code(bf16::to_f32(pair[half]), scale[half]));
            *out = u16::from_le_bytes([a as u8, b as u8]);
        }
    }
}

/// The smallest bf16 number of which 127 reach the largest magnitude.
fn scale(largest: u16) -> u16 {
    let exact = bf16::to_f32(largest) / MOST;
    let down = (exact.to_bits() >> 16) as u16;
    if bf16::to_f32(down) * MOST < bf16::to_f32(largest) { down + 1 } else { down }
}

#[inline(always)]
fn code(x: f32, scale: f32) -> i8 {
    let scale = if scale == 0.0 { 1.0 } else { scale };
    ((x / scale + ROUND) - ROUND).clamp(-MOST, MOST) as i8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(src: &[u16], width: usize) -> Vec<u16> {
        let mut out = vec![0; src.len() / 2 + src.len() / width];
        encode_rows(src, width, &mut out);
        out
    }

    /// (value, decoded, scale) of each element.
    fn decoded(src: &[u16], width: usize) -> Vec<(f64, f64, f64)> {
        let out = encoded(src, width);
        let (codes, scales) = out.split_at(src.len() / 2);
        let each = |(i, &x): (usize, &u16)| {
            let code = codes[i / 2].to_le_bytes()[i % 2] as i8;
            let scale = bf16::to_f32(scales[i / (2 * width) * 2 + i % 2]) as f64;
            (bf16::to_f32(x) as f64, code as f64 * scale, scale)
        };
        src.iter().enumerate().map(each).collect()
    }

    fn random(seed: u64, n: usize, value: impl Fn(u64) -> u16) -> Vec<u16> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 20
        };
        (0..n).map(|_| value(next())).collect()
    }

    fn finite(bits: u64) -> u16 {
        bf16::from_f32_finite(bf16::to_f32(bits as u16))
    }

    /// Rows of all magnitudes, of one magnitude each, of denormal numbers alone.
    #[test]
    fn no_value_is_off_by_more_than_half_a_step() {
        let sources: [fn(u64) -> u16; 4] = [
            finite,
            |bits| bf16::from_f32((bits % 20_001) as f32 / 10_000.0 - 1.0),
            |bits| (bits & 0x807f) as u16,
            |bits| [0x0001, 0x8001, 0x0080, 0x7f7f, 0xff7f, 0x0000, 0x8000, 0x3f80][bits as usize % 8],
        ];
        for (i, source) in sources.into_iter().enumerate() {
            for width in [1, 3, 64, 128] {
                for (x, got, scale) in decoded(&random(i as u64 + 7, 2 * width * 40, source), width) {
                    // The quotient is rounded, too, which can turn a tie: 1e-6 of a step.
                    assert!((x - got).abs() <= scale * (0.5 + 1e-5), "source {i}, width {width}: {x:e} as {got:e}");
                    assert!(got.is_finite());
                }
            }
        }
    }

    #[test]
    fn the_largest_value_of_a_row_gets_the_largest_code() {
        for largest in (1..=0x7f7f_u16).step_by(7) {
            let x = bf16::to_f32(largest) as f64;
            for (_, got, scale) in decoded(&[largest, largest | 0x8000], 1) {
                let code = (got / scale).abs();
                assert!(code <= 127.0, "{x:e}: {code}");
                // Of denormal numbers the scale has fewer bits, so the codes are coarser.
                assert!(largest < 0x0780 || code >= 126.0, "{x:e}: {code}");
            }
        }
    }

    #[test]
    fn zeros_stay_zeros_and_a_constant_is_kept() {
        assert!(encoded(&[0; 128], 64).iter().all(|&word| word == 0));
        assert!(decoded(&[0x8000; 128], 64).iter().all(|&(_, got, scale)| got == 0.0 && scale == 0.0));
        for (x, got, _) in decoded(&[bf16::from_f32(-3.25); 128], 64) {
            assert!((got / x - 1.0).abs() < 1.0 / 128.0, "{x} as {got}");
        }
    }

    /// What scales in bf16 cost beside exact ones: they are at or above them by less than 2^-7, and so are the steps.
    #[test]
    fn a_rounded_scale_costs_little() {
        let (mut squares, mut exact) = (0.0, 0.0);
        let src = random(3, 2 * 64 * 500, |bits| bf16::from_f32((bits % 2_000_001) as f32 / 1e6 - 1.0));
        for row in src.chunks_exact(128) {
            for half in 0..2 {
                let values: Vec<f64> = row.iter().skip(half).step_by(2).map(|&x| bf16::to_f32(x) as f64).collect();
                let step = values.iter().fold(0.0, |a: f64, x| a.max(x.abs())) / 127.0;
                exact += values.iter().map(|x| (x - (x / step).round_ties_even() * step).powi(2)).sum::<f64>();
            }
            squares += decoded(row, 64).iter().map(|(x, got, _)| (x - got).powi(2)).sum::<f64>();
        }
        let ratio = (squares / exact).sqrt();
        println!("RMS error with bf16 scales over that with exact ones: {ratio:.4}");
        assert!((1.0..1.01).contains(&ratio), "{ratio}");
    }
}
