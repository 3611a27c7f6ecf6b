//! Weights to blocks, with the smallest squared error that a search near the obvious scales finds.

use super::QuantKind::{self, Q4_0, Q4K, Q8_0};
use super::half;

/// Writes the block of `kind.block_len()` weights.
pub(crate) type Encoder = fn(&mut [f32], &mut [u8]);

/// The encoder of a format, if there is one. Weights that are not finite become 0.
pub(crate) fn encoder(kind: QuantKind) -> Option<Encoder> {
    match kind {
        Q8_0 => Some(q8_0),
        Q4_0 => Some(q4_0),
        Q4K => Some(q4_k),
        _ => None,
    }
}

/// Weights under one scale.
type Group = [f32; 32];

/// Scales that the search tries: what maps the range onto this many codes more or fewer.
const STRETCHES: [f32; 14] = [-1.2, -1.0, -0.8, -0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4];

/// The nearest integer, ties to even, of what is between -2^22 and 2^22; unlike `f32::round`, vectors can do it.
#[inline(always)]
fn round(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    (x + ROUND) - ROUND
}

#[inline(always)]
fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// The nearest f16 that is finite: its bits and its value.
fn finite_half(x: f32) -> (u16, f32) {
    let bits = half::from_f32(x.clamp(-65504.0, 65504.0));
    (bits, half::to_f32(bits))
}

fn make_finite(weights: &mut [f32]) {
    weights.iter_mut().filter(|w| !w.is_finite()).for_each(|w| *w = 0.0);
}

/// Round to nearest (ties away from 0) under the scale that the largest weight asks for: the bytes that ggml writes.
fn q8_0(weights: &mut [f32], block: &mut [u8]) {
    make_finite(weights);
    let d = weights.iter().fold(0.0_f32, |a, w| a.max(w.abs())) / 127.0;
    block[..2].copy_from_slice(&finite_half(d).0.to_le_bytes());
    let inverse = inverse(d.min(65504.0));
    for (code, w) in block[2..].iter_mut().zip(weights) {
        *code = (*w * inverse).round() as i8 as u8;
    }
}

fn q4_0(weights: &mut [f32], block: &mut [u8]) {
    make_finite(weights);
    let weights: &Group = weights.first_chunk().expect("a block has 32 weights");
    let largest = weights.iter().fold(0.0_f32, |a, &w| if w.abs() > a.abs() { w } else { a });
    // The side that has one code more is for the largest.
    let mut best = (0.0, largest / -8.0);
    for stretch in STRETCHES {
        let inverse = inverse(largest / (-8.0 - stretch));
        let (mut xq, mut qq) = (0.0, 0.0);
        for w in weights {
            let q = round(w * inverse).clamp(-8.0, 7.0);
            xq += w * q;
            qq += q * q;
        }
        // By how much the best scale for these codes lowers the squared error: xq^2 / qq.
        let gain = xq * xq * self::inverse(qq);
        if gain > best.0 {
            best = (gain, xq / qq);
        }
    }
    let (bits, d) = finite_half(best.1);
    let inverse = inverse(d);
    let code = |w: f32| (round((w * inverse).clamp(-8.0, 7.0)) + 8.0) as u8;
    block[..2].copy_from_slice(&bits.to_le_bytes());
    for (i, byte) in block[2..].iter_mut().enumerate() {
        *byte = code(weights[i]) | code(weights[i + 16]) << 4;
    }
}

fn q4_k(weights: &mut [f32], block: &mut [u8]) {
    make_finite(weights);
    let groups: &[Group; 8] = weights.as_chunks().0.first_chunk().expect("a block has 256 weights");
    let wanted = groups.map(|group| scale_and_min(&group));
    let largest = |x: fn(&(f32, f32)) -> f32| wanted.iter().map(x).fold(0.0, f32::max) / 63.0;
    let ((d_bits, d), (min_bits, d_min)) = (finite_half(largest(|w| w.0)), finite_half(largest(|w| w.1)));
    block[..2].copy_from_slice(&d_bits.to_le_bytes());
    block[2..4].copy_from_slice(&min_bits.to_le_bytes());
    let (head, codes) = block.split_at_mut(16);
    let head = &mut head[4..];
    head.fill(0);
    for (j, (group, (scale, min))) in groups.iter().zip(wanted).enumerate() {
        let near = |x: f32, d: f32| round((x * inverse(d)).min(63.0)) as i32;
        let (scale, min) = (near(scale, d), near(min, d_min));
        // What is best alone need not be best where both are rounded.
        let mut best = (f32::INFINITY, 0, 0);
        for scale in (scale - 1).max(0)..=(scale + 1).min(63) {
            for min in (min - 1).max(0)..=(min + 1).min(63) {
                let error = error(group, d * scale as f32, d_min * min as f32);
                if error < best.0 {
                    best = (error, scale, min);
                }
            }
        }
        let (scale, min) = (best.1 as u8, best.2 as u8);
        if j < 4 {
            head[j] |= scale;
            head[j + 4] |= min;
        } else {
            head[j + 4] = scale & 15 | min << 4;
            head[j - 4] |= scale >> 4 << 6;
            head[j] |= min >> 4 << 6;
        }
        let (scale, min) = (d * scale as f32, d_min * min as f32);
        let inverse = inverse(scale);
        for (w, byte) in group.iter().zip(&mut codes[j / 2 * 32..]) {
            let code = code(*w, inverse, min) as u8;
            *byte = if j % 2 == 0 { code } else { *byte | code << 4 };
        }
    }
}

/// The code of 0 to 15 whose `scale * code - min` is nearest.
#[inline(always)]
fn code(w: f32, inverse: f32, min: f32) -> f32 {
    round(((w + min) * inverse).clamp(0.0, 15.0))
}

/// Squared error of a group under a scale and a minimum.
fn error(group: &Group, scale: f32, min: f32) -> f32 {
    let inverse = inverse(scale);
    let mut errors = [0.0; 8];
    for eight in group.as_chunks::<8>().0 {
        for i in 0..8 {
            let error = scale * code(eight[i], inverse, min) - min - eight[i];
            errors[i] += error * error;
        }
    }
    errors.iter().sum()
}

/// Scale and minimum, none of them negative, that are best for a group.
fn scale_and_min(group: &Group) -> (f32, f32) {
    let low = group.iter().fold(0.0_f32, |a, &w| a.min(w));
    let high = group.iter().fold(low, |a, &w| a.max(w));
    let mut best = (f32::INFINITY, 0.0, -low);
    for stretch in STRETCHES {
        let inverse = inverse((high - low) / (15.0 + stretch));
        let (mut sums, mut squares, mut products) = ([0.0; 8], [0.0; 8], [0.0; 8]);
        for eight in group.as_chunks::<8>().0 {
            for i in 0..8 {
                let q = code(eight[i], inverse, -low);
                sums[i] += q;
                squares[i] += q * q;
                products[i] += q * eight[i];
            }
        }
        let [q, qq, qx] = [sums, squares, products].map(|x| x.iter().sum::<f32>());
        let x: f32 = group.iter().sum();
        // The line through the points (code, weight) with the least squares; through 0 where it would be above.
        let spread = 32.0 * qq - q * q;
        let (mut scale, mut min) = (0.0, -low);
        if spread > 0.0 {
            (scale, min) = ((32.0 * qx - q * x) / spread, (q * qx - qq * x) / spread);
        }
        if min < 0.0 || spread == 0.0 && qq > 0.0 {
            (scale, min) = (qx / qq, 0.0);
        }
        let error = error(group, scale, min);
        if scale >= 0.0 && error < best.0 {
            best = (error, scale, min);
        }
    }
    (best.1, best.2)
}
