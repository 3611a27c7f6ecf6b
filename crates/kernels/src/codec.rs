//! How K and V of a head are stored: integers, and what they are multiplied with.
//!
//! K has a row for each element and a column for each token, V a row for each token and a column for each element; two rows of
//! either, or four, lie side by side as instructions multiply them. A value is `code * scale`, `scale` the bf16 number at or
//! above `largest / most` of what shares it, the code the nearest integer, ties to even.
//!
//! kv16, what tokens are written in: codes of 16 bits, a scale for each token's K and one for its V, so that a token does not
//! depend on the others of its chunk. Half a unit is 2^-17 of K's length as a vector, or 2^-16 of its largest element if that is
//! more, and 2^-13 of V's largest element, where bf16 is off by up to 2^-9 of each.
//!
//! kv8, for sealed chunks: codes of 8 bits, a scale for each row, so that K is scaled per channel (a few channels are much larger
//! than the rest, in every token) and V per token. Four rows that are a quarter of all apart lie side by side.
//!
//! The kernels multiply codes as integers, and scale what they are multiplied with or the sums instead, once for many products.

use kvist_base::CHUNK;

use crate::bf16;
use crate::simd::ROUND;

/// Largest codes of 8 bits, of either sign: with -128 sums of products would not fit 32 bits as they do.
pub(crate) const MOST_OF_8: usize = i8::MAX as usize;

/// The same of V in kv16. The larger they are, the smaller the weights must be that they are multiplied with, 64 at a time, and
/// what of those is less than a half is lost: of a chunk's at most one in 260, beside a single one that is 16,388 times as large
/// as each other. Rounding weights to bf16 changes each by up to one in 512.
pub(crate) const MOST_OF_V: usize = (1 << 12) - 1;

/// Length of a key's codes as a vector. With queries of a `LONGEST`th of 2^31 products add up in 32 bits, whatever their signs
/// are.
pub(crate) const LONGEST: usize = 1 << 16;

/// Largest size that is stored. A scale above what it stands for by a unit is finite then.
const LARGEST: f32 = 3e38;

/// Codes and scales of K and V of a head. Reading up to one vector behind the codes of V is allowed: there are scales.
#[derive(Clone, Copy)]
pub(crate) struct Head {
    /// kv8, else kv16.
    pub eight: bool,
    /// kv8: `[dk/4][64][4]`, of which what is not there is 0. kv16: `[dk/2][64][2]`.
    pub k: *const u8,
    /// kv8: `[dk]`. kv16: `[64]`.
    pub k_scales: *const u16,
    /// kv8: `[16][dv][4]`. kv16: `[32][dv][2]`.
    pub v: *const u8,
    /// `[64]`.
    pub v_scales: *const u16,
}

impl Head {
    /// # Safety
    /// `k` and `v` point to the tiles of a head, sizes `dk` and `dv`, aligned to 2 bytes.
    pub unsafe fn new(eight: bool, k: *const u8, dk: usize, v: *const u8, dv: usize) -> Head {
        let (k_bytes, v_bytes) =
            if eight { (fours(dk) * 4 * CHUNK, dv * CHUNK) } else { (dk * 2 * CHUNK, dv * 2 * CHUNK) };
        // SAFETY: the scales lie behind the codes.
        unsafe { Head { eight, k, k_scales: k.add(k_bytes).cast(), v, v_scales: v.add(v_bytes).cast() } }
    }

    /// An element of a token's K.
    ///
    /// # Safety
    /// The tile is still there, of this size, and the indices lie in it.
    #[inline(always)]
    pub unsafe fn k(&self, dk: usize, element: usize, token: usize) -> f32 {
        let pair = [element % (dk / 2), element / (dk / 2)];
        // SAFETY: the caller's contract.
        unsafe { value(self.eight, self.k, (dk, CHUNK), [element, token], pair, (self.k_scales, token)) }
    }

    /// An element of a token's V.
    ///
    /// # Safety
    /// As [`Head::k`].
    #[inline(always)]
    pub unsafe fn v(&self, dv: usize, token: usize, element: usize) -> f32 {
        let pair = [token / 2, token % 2];
        // SAFETY: the caller's contract.
        unsafe { value(self.eight, self.v, (CHUNK, dv), [token, element], pair, (self.v_scales, token)) }
    }

    /// Encodes a head of kv16 into a tile of kv8.
    ///
    /// # Safety
    /// The tile is still there, of sizes `dk` and `dv`.
    pub unsafe fn encode(&self, dk: usize, dv: usize, out: &mut [u16]) {
        debug_assert!(!self.eight);
        let (k, v) = out.split_at_mut(fours(dk) * 2 * CHUNK + dk);
        // SAFETY: as many rows and columns as there are.
        encode_rows((dk, CHUNK), k, |row, column| unsafe { self.k(dk, row, column) });
        // SAFETY: likewise.
        encode_rows((CHUNK, dv), v, |row, column| unsafe { self.v(dv, row, column) });
    }
}

/// The value in a row and column: in 8 bits with the scale of the row, in 16 that of a half of a pair of rows with the scale of
/// the token.
///
/// # Safety
/// `codes` has so many rows and columns.
#[inline(always)]
unsafe fn value(
    eight: bool,
    codes: *const u8,
    (rows, width): (usize, usize),
    [row, column]: [usize; 2],
    [pair, half]: [usize; 2],
    (scales, token): (*const u16, usize),
) -> f32 {
    // SAFETY: the caller's contract.
    unsafe {
        if eight {
            let at = (row % fours(rows) * width + column) * 4 + row / fours(rows);
            f32::from(*codes.cast::<i8>().add(at)) * bf16::to_f32(*scales.add(row))
        } else {
            let at = (pair * width + column) * 2 + half;
            f32::from(*codes.cast::<i16>().add(at)) * bf16::to_f32(*scales.add(token))
        }
    }
}

/// A token's K in kv16: gives the code of each element to `put`, and returns the scale. The length of the codes as a vector is
/// less than [`LONGEST`]. What is no number becomes 0, what is infinite the largest value that there is.
#[inline(always)]
pub(crate) fn encode_key(x: &[f32], put: impl FnMut(usize, i16)) -> u16 {
    let largest = largest(x);
    // Of what is smaller the inverse may be infinite. Its codes are small as well, for scales are at least 2^-133.
    let over = if largest >= f32::MIN_POSITIVE { 1.0 / largest } else { 0.0 };
    let mut squares = [0.0; 8];
    for some in x.chunks(8) {
        for (sum, &x) in squares.iter_mut().zip(some) {
            let x = f32::from_bits(size(x)) * over;
            *sum += x * x;
        }
    }
    // Rounding makes each element longer by half at most.
    let most = (LONGEST as f32 - 1.0) * (1.0 - 1e-5) - (x.len() as f32).sqrt();
    let most = (most / squares.iter().sum::<f32>().sqrt()).min(i16::MAX as f32).floor();
    encode_token(x, largest, most, put)
}

/// The same of V, of any length.
#[inline(always)]
pub(crate) fn encode_value(x: &[f32], put: impl FnMut(usize, i16)) -> u16 {
    encode_token(x, largest(x), MOST_OF_V as f32, put)
}

/// The largest size becomes `most`.
#[inline(always)]
fn encode_token(x: &[f32], largest: f32, most: f32, mut put: impl FnMut(usize, i16)) -> u16 {
    let scale = scale(largest, most);
    let unit = unit(scale);
    // Side by side first: where `put` goes to places of its own, divisions would be one at a time.
    let mut codes = [0; 32];
    for (i, x) in x.chunks(codes.len()).enumerate() {
        codes.iter_mut().zip(x).for_each(|(to, &x)| *to = code(x, unit, most) as i16);
        codes.iter().take(x.len()).enumerate().for_each(|(j, &code)| put(i * codes.len() + j, code));
    }
    scale
}

/// The largest size.
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    let mut largest = [0; 8];
    for some in x.chunks(8) {
        largest.iter_mut().zip(some).for_each(|(largest, &x)| *largest = size(x).max(*largest));
    }
    f32::from_bits(largest.into_iter().fold(0, u32::max))
}

/// The bits of `|x|`, or of what it is stored as.
#[inline(always)]
fn size(x: f32) -> u32 {
    // Sizes are ordered as their bits are.
    let size = x.to_bits() & 0x7fff_ffff;
    if size > f32::INFINITY.to_bits() { 0 } else { size.min(LARGEST.to_bits()) }
}

/// Fours of rows. Of the last ones some may be missing: these are zeros.
fn fours(rows: usize) -> usize {
    rows.div_ceil(4)
}

/// Encodes rows of `width` values, of which `value` knows `(row, column)`: fours of codes to the front of `out`, two to a word,
/// then a scale for each row.
#[inline(always)]
fn encode_rows((rows, width): (usize, usize), out: &mut [u16], value: impl Fn(usize, usize) -> f32) {
    let fours = fours(rows);
    let (codes, scales) = out.split_at_mut(fours * width * 2);
    codes.fill(0);
    for (row, to) in scales.iter_mut().enumerate() {
        let largest = (0..width).fold(0, |largest, column| size(value(row, column)).max(largest));
        *to = scale(f32::from_bits(largest), MOST_OF_8 as f32);
        let (unit, byte) = (unit(*to), row / fours);
        let of_row = &mut codes[row % fours * width * 2..][..width * 2];
        for (column, four) in of_row.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let code = code(value(row, column), unit, MOST_OF_8 as f32) as i8 as u8;
            four[byte / 2] |= u16::from(code) << (byte % 2 * 8);
        }
    }
}

/// The smallest bf16 number of which `most` reach the largest size.
fn scale(largest: f32, most: f32) -> u16 {
    let down = ((largest / most).to_bits() >> 16) as u16;
    if bf16::to_f32(down) * most < largest { down + 1 } else { down }
}

/// What values are divided by.
#[inline(always)]
fn unit(scale: u16) -> f32 {
    if scale == 0 { 1.0 } else { bf16::to_f32(scale) }
}

#[inline(always)]
fn code(x: f32, unit: f32, most: f32) -> f32 {
    ((x / unit + ROUND) - ROUND).clamp(-most, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of as many rows as there are in `src`.
    fn encoded(src: &[u16], width: usize) -> Vec<u16> {
        let rows = src.len() / width;
        let mut out = vec![1; 2 * width * fours(rows) + rows];
        encode_rows((rows, width), &mut out, |row, column| bf16::to_f32(src[row * width + column]));
        out
    }

    /// (value, decoded, scale) of each element.
    fn decoded(src: &[u16], width: usize) -> Vec<(f64, f64, f64)> {
        let out = encoded(src, width);
        let rows = src.len() / width;
        let (codes, scales) = out.split_at(2 * width * fours(rows));
        let each = |(i, &x): (usize, &u16)| {
            let (row, column) = (i / width, i % width);
            let scale = (scales.as_ptr(), usize::MAX);
            // SAFETY: a row and a column that there are.
            let got = unsafe { super::value(true, codes.as_ptr().cast(), (rows, width), [row, column], [0; 2], scale) };
            (bf16::to_f32(x) as f64, got as f64, bf16::to_f32(scales[row]) as f64)
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
        let x = bf16::to_f32(bits as u16);
        if x.abs() <= LARGEST { bits as u16 } else { 0x3f80 }
    }

    /// Rows of all magnitudes, of one magnitude each, of denormal numbers alone.
    #[test]
    fn no_value_is_off_by_more_than_half_a_step() {
        let sources: [fn(u64) -> u16; 4] = [
            finite,
            |bits| bf16::from_f32((bits % 20_001) as f32 / 10_000.0 - 1.0),
            |bits| (bits & 0x807f) as u16,
            |bits| [0x0001, 0x8001, 0x0080, 0x7f61, 0xff61, 0x0000, 0x8000, 0x3f80][bits as usize % 8],
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
        for largest in (1..=0x7f61_u16).step_by(7) {
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
        for row in src.chunks_exact(64) {
            let values: Vec<f64> = row.iter().map(|&x| bf16::to_f32(x) as f64).collect();
            let step = values.iter().fold(0.0, |a: f64, x| a.max(x.abs())) / 127.0;
            exact += values.iter().map(|x| (x - (x / step).round_ties_even() * step).powi(2)).sum::<f64>();
            squares += decoded(row, 64).iter().map(|(x, got, _)| (x - got).powi(2)).sum::<f64>();
        }
        let ratio = (squares / exact).sqrt();
        println!("RMS error with bf16 scales over that with exact ones: {ratio:.4}");
        assert!((1.0..1.01).contains(&ratio), "{ratio}");
    }

    /// Keys with and without outliers, and values, beside bf16.
    #[test]
    fn sixteen_bits_are_closer_than_bf16() {
        for (outlier, of_k) in [(1.0, true), (8.0, true), (64.0, true), (1.0, false)] {
            let (mut squares, mut of_bf16) = (0.0, 0.0);
            for token in 0..200 {
                let numbers = random(token, 128, |bits| (bits >> 3) as u16);
                let mut x: Vec<f32> = numbers.iter().map(|&x| f32::from(x) / 32_768.0 - 1.0).collect();
                x[token as usize % 128] *= outlier;
                let mut codes = vec![0_i16; x.len()];
                let put = |i, code| codes[i] = code;
                let scale = f64::from(bf16::to_f32(if of_k { encode_key(&x, put) } else { encode_value(&x, put) }));
                for (&x, code) in x.iter().zip(codes) {
                    let off = f64::from(x) - f64::from(code) * scale;
                    assert!(off.abs() <= scale * (0.5 + 1e-3), "{x} as {code}");
                    squares += off.powi(2);
                    of_bf16 += f64::from(x - bf16::to_f32(bf16::from_f32(x))).powi(2);
                }
            }
            let ratio = (of_bf16 / squares).sqrt();
            println!("K: {of_k}, largest element {outlier} times the others: bf16 is off {ratio:.1} times as far");
            assert!(ratio > 2.0, "{ratio}");
        }
    }

    #[test]
    fn sixteen_bits_hold_what_is_no_number_and_what_is_too_large() {
        let x = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 1.0];
        let mut codes = [1; 5];
        let scale = bf16::to_f32(encode_value(&x, |i, code| codes[i] = code));
        assert_eq!(codes, [0, 4095, -4095, 4095, 0]);
        assert!((4095.0 * scale).is_finite() && 4095.0 * scale >= LARGEST);
        let mut codes = [1; 3];
        assert_eq!(encode_value(&[0.0, -0.0, f32::NAN], |i, code| codes[i] = code), 0);
        assert_eq!(codes, [0; 3]);
        // The largest one is as large as scales of 8 bits allow.
        for x in (0..2000).map(|i| 1.001_f32.powi(i - 1000)) {
            let mut codes = [0; 1];
            let scale = bf16::to_f32(encode_value(&[x], |i, code| codes[i] = code));
            assert!(codes[0] > 4060 && scale * 4095.0 >= x, "{x} as {codes:?}");
        }
    }

    #[test]
    fn keys_are_no_longer_than_products_allow() {
        for dim in [2, 18, 64, 128, 256, 576] {
            // All alike, of random sizes, a single one.
            let alike = vec![-1.7; dim];
            let uneven: Vec<f32> = (0..dim).map(|i| (i * 37 % 101) as f32 - 50.0).collect();
            let mut single = vec![0.0; dim];
            single[1] = 3e38;
            for x in [alike, uneven, single] {
                let mut codes = vec![0_i64; dim];
                let scale = bf16::to_f32(encode_key(&x, |i, code| codes[i] = i64::from(code)));
                let squares: i64 = codes.iter().map(|code| code * code).sum();
                assert!(squares < (LONGEST * LONGEST) as i64, "{dim}: {squares}");
                let largest = *codes.iter().max_by_key(|code| code.abs()).unwrap();
                assert!(largest.abs() > 30_000 || squares > (LONGEST * LONGEST) as i64 / 100 * 96, "{dim}: {squares}");
                for (x, code) in x.iter().zip(&codes) {
                    assert!((x - *code as f32 * scale).abs() <= scale * 0.51, "{dim}: {x} as {code}");
                }
            }
        }
    }

    /// The inverse of a key's largest element was infinite where that is subnormal, and so became its scale: the token was lost
    /// in 16 bits, and 0 once sealed.
    #[test]
    fn keys_of_tiny_elements_have_finite_scales() {
        for tiny in [1e-45, 1e-40, 2e-39, 1e-38] {
            for dim in [2, 64, 256] {
                let mut codes = vec![0; dim];
                let scale = bf16::to_f32(encode_key(&vec![tiny; dim], |i, code| codes[i] = code));
                assert!(
                    codes.iter().all(|&code| (f32::from(code) * scale - tiny).abs() <= scale * 0.51),
                    "{tiny:e}: {scale}"
                );
            }
        }
    }
}
