//! What a block of each quantised type stands for. `d` and `m` are scales in f16, `q` are codes; every product is
//! rounded to f32, in the order in which ggml takes them.
//!
//! ```text
//! Q8_0  32: d | 32 x i8                                           d q
//! Q4_0  32: d | 16 bytes: low nibbles 0..16, high 16..32           d (q - 8)
//! Q5_0  32: d | u32 of fifth bits | as Q4_0                        d (q - 16)
//! Q4_K 256: d | m | 12 bytes: 8 x (6-bit scale, 6-bit min)
//!           | 4 x 32 bytes: low nibbles 32 elements, high the next 32      d scale q - m min
//! Q5_K 256: d | m | 12 bytes | 32 bytes of fifth bits, bit g for group g | as Q4_K
//! Q6_K 256: 2 x 64 bytes of low nibbles | 2 x 32 bytes of bit pairs | 16 x i8 scale | d    d scale (q - 32)
//! ```

use crate::convert::f16_to_f32;

fn f16(block: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([block[at], block[at + 1]]))
}

pub(crate) fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = f16(block, 0);
    out.iter_mut().zip(&block[2..]).for_each(|(o, &q)| *o = d * (q as i8) as f32);
}

pub(crate) fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = f16(block, 0);
    for (i, q) in block[2..].iter().enumerate() {
        out[i] = d * ((q & 15) as i32 - 8) as f32;
        out[i + 16] = d * ((q >> 4) as i32 - 8) as f32;
    }
}

pub(crate) fn q5_0(block: &[u8], out: &mut [f32]) {
    let d = f16(block, 0);
    let fifth = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    let bit = |i: usize| (fifth >> i & 1) << 4;
    for (i, &q) in block[6..].iter().enumerate() {
        out[i] = d * (((q & 15) as u32 | bit(i)) as i32 - 16) as f32;
        out[i + 16] = d * (((q >> 4) as u32 | bit(i + 16)) as i32 - 16) as f32;
    }
}

/// Scale and min of 32-element group `g`: groups 0..4 in the low six bits of bytes 0..4 and 4..8, the others in the
/// nibbles of bytes 8..12 with their upper bits on top of the first eight bytes.
fn scale_min(packed: &[u8], g: usize) -> (f32, f32) {
    let (scale, min) = if g < 4 {
        (packed[g] & 63, packed[g + 4] & 63)
    } else {
        (packed[g + 4] & 15 | packed[g - 4] >> 6 << 4, packed[g + 4] >> 4 | packed[g] >> 6 << 4)
    };
    (scale as f32, min as f32)
}

/// Q4_K and Q5_K: codes are the nibbles of `low` with what `high(group, i)` adds.
fn k_quant(block: &[u8], low: &[u8], high: impl Fn(usize, usize) -> u8, out: &mut [f32]) {
    let (d, m) = (f16(block, 0), f16(block, 2));
    for (g, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(&block[4..16], g);
        let (scale, min) = (d * scale, m * min);
        for (i, o) in out.iter_mut().enumerate() {
            let q = low[g / 2 * 32 + i] >> (g % 2 * 4) & 15 | high(g, i);
            *o = scale * q as f32 - min;
        }
    }
}

pub(crate) fn q4_k(block: &[u8], out: &mut [f32]) {
    k_quant(block, &block[16..], |_, _| 0, out);
}

pub(crate) fn q5_k(block: &[u8], out: &mut [f32]) {
    k_quant(block, &block[48..], |g, i| (block[16 + i] >> g & 1) << 4, out);
}

pub(crate) fn q6_k(block: &[u8], out: &mut [f32]) {
    let d = f16(block, 208);
    for (half, out) in out.chunks_exact_mut(128).enumerate() {
        let (low, high) = (&block[64 * half..][..64], &block[128 + 32 * half..][..32]);
        for (i, o) in out.iter_mut().enumerate() {
            let scale = d * (block[192 + 8 * half + i / 16] as i8) as f32;
            let nibble = low[i % 64] >> (i / 64 * 4) & 15;
            let pair = high[i % 32] >> (i / 32 * 2) & 3;
            *o = scale * ((nibble | pair << 4) as i32 - 32) as f32;
        }
    }
}
