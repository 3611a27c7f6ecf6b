//! Weights to blocks, with the smallest squared error that a search near the obvious scales finds.
//!
//! Sums have 16 parts on every ISA path and no multiplication is fused, so that blocks do not depend on the machine.

use super::QuantKind::{self, Q4_0, Q4K, Q8_0};
use super::half;
use crate::Isa;
use crate::simd::{PANEL, ROUND, Simd, isa_entry};

/// Writes the block of `kind.block_len()` weights, for which there must be an encoder. Weights that are not finite
/// become 0.
///
/// # Panics
/// When the machine cannot run `isa`, or the lengths do not fit.
pub(crate) fn encode(isa: Isa, kind: QuantKind, weights: &mut [f32], block: &mut [u8]) {
    isa.require();
    assert_eq!((weights.len(), block.len()), (kind.block_len(), kind.block_bytes()));
    weights.iter_mut().filter(|w| !w.is_finite()).for_each(|w| *w = 0.0);
    // SAFETY: the machine can run `isa`.
    unsafe {
        match kind {
            Q8_0 => q8_0(weights, block),
            Q4_0 => q4_0_on(isa, weights, block),
            Q4K => q4_k_on(isa, weights, block),
            _ => unreachable!("{kind} has no encoder"),
        }
    }
}

/// Whether there is an encoder for the format.
pub(crate) fn can_encode(kind: QuantKind) -> bool {
    matches!(kind, Q8_0 | Q4_0 | Q4K)
}

isa_entry!(fn q4_0_on(weights: &[f32], block: &mut [u8]) = q4_0);
isa_entry!(fn q4_k_on(weights: &[f32], block: &mut [u8]) = q4_k);

/// Weights under one scale.
type Group = [f32; 32];

/// Scales that the search tries: what maps the range onto this many codes more or fewer.
const STRETCHES: [f32; 14] = [-1.2, -1.0, -0.8, -0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4];

#[inline(always)]
fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// The nearest f16 that is finite: its bits and its value.
fn finite_half(x: f32) -> (u16, f32) {
    let bits = half::from_f32(x.clamp(-65504.0, 65504.0));
    (bits, half::to_f32(bits))
}

/// Round to nearest (ties away from 0) under the scale that the largest weight asks for: the bytes that ggml writes.
fn q8_0(weights: &[f32], block: &mut [u8]) {
    let d = weights.iter().fold(0.0_f32, |a, w| a.max(w.abs())) / 127.0;
    block[..2].copy_from_slice(&finite_half(d).0.to_le_bytes());
    let inverse = inverse(d.min(65504.0));
    for (code, w) in block[2..].iter_mut().zip(weights) {
        *code = (w * inverse).round() as i8 as u8;
    }
}

/// # Safety
/// The ISA of `S` is available.
#[inline(always)]
unsafe fn q4_0<S: Simd>(weights: &[f32], block: &mut [u8]) {
    let group: &Group = weights.first_chunk().expect("a block has 32 weights");
    let codes = Codes { low: -8.0, high: 7.0 };
    let largest = group.iter().fold(0.0_f32, |a, &w| if w.abs() > a.abs() { w } else { a });
    // The side that has one code more is for the largest.
    let mut best = (0.0, largest / -8.0);
    for stretch in STRETCHES {
        // SAFETY: passed on.
        let Sums { qq, qx, .. } = unsafe { codes.sums::<S>(group, inverse(largest / (-8.0 - stretch)), 0.0) };
        // By how much the best scale for these codes lowers the squared error.
        let gain = qx * qx * inverse(qq);
        if gain > best.0 {
            best = (gain, qx / qq);
        }
    }
    let (bits, d) = finite_half(best.1);
    block[..2].copy_from_slice(&bits.to_le_bytes());
    // SAFETY: passed on.
    let codes = unsafe { codes.all::<S>(group, inverse(d), 0.0) }.map(|code| (code + 8.0) as u8);
    for (i, byte) in block[2..].iter_mut().enumerate() {
        *byte = codes[i] | codes[i + 16] << 4;
    }
}

/// # Safety
/// The ISA of `S` is available.
#[inline(always)]
unsafe fn q4_k<S: Simd>(weights: &[f32], block: &mut [u8]) {
    let groups: &[Group; 8] = weights.as_chunks().0.first_chunk().expect("a block has 256 weights");
    let codes = Codes { low: 0.0, high: 15.0 };
    let mut wanted = [(0.0, 0.0); 8];
    let mut largest = (0.0_f32, 0.0_f32);
    for (wanted, group) in wanted.iter_mut().zip(groups) {
        // SAFETY: passed on.
        *wanted = unsafe { scale_and_min::<S>(codes, group) };
        largest = (largest.0.max(wanted.0), largest.1.max(wanted.1));
    }
    let ((d_bits, d), (min_bits, d_min)) = (finite_half(largest.0 / 63.0), finite_half(largest.1 / 63.0));
    block[..2].copy_from_slice(&d_bits.to_le_bytes());
    block[2..4].copy_from_slice(&min_bits.to_le_bytes());
    let (head, bytes) = block.split_at_mut(16);
    let head = &mut head[4..];
    head.fill(0);
    for (j, (group, (scale, min))) in groups.iter().zip(wanted).enumerate() {
        let near = |x: f32, d: f32| (x * inverse(d)).min(63.0).round_ties_even() as i32;
        let (scale, min) = (near(scale, d), near(min, d_min));
        // What is best alone need not be best where both are rounded.
        let mut best = (f32::INFINITY, 0, 0);
        for scale in (scale - 1).max(0)..=(scale + 1).min(63) {
            for min in (min - 1).max(0)..=(min + 1).min(63) {
                // SAFETY: passed on.
                let error = unsafe { codes.error::<S>(group, d * scale as f32, d_min * min as f32) };
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
        // SAFETY: passed on.
        let found = unsafe { codes.all::<S>(group, inverse(d * scale as f32), d_min * min as f32) };
        for (code, byte) in found.into_iter().zip(&mut bytes[j / 2 * 32..]) {
            *byte = if j % 2 == 0 { code as u8 } else { *byte | (code as u8) << 4 };
        }
    }
}

/// Scale and minimum, none of them negative, that are best for a group.
///
/// # Safety
/// The ISA of `S` is available.
#[inline(always)]
unsafe fn scale_and_min<S: Simd>(codes: Codes, group: &Group) -> (f32, f32) {
    let low = group.iter().fold(0.0_f32, |a, &w| a.min(w));
    let high = group.iter().fold(low, |a, &w| a.max(w));
    let x: f32 = group.iter().sum();
    let mut best = (f32::INFINITY, 0.0, -low);
    for stretch in STRETCHES {
        // SAFETY: passed on.
        let Sums { q, qq, qx } = unsafe { codes.sums::<S>(group, inverse((high - low) / (15.0 + stretch)), -low) };
        // The line through the points (code, weight) with the least squares; through 0 where it would be above.
        let spread = 32.0 * qq - q * q;
        let (mut scale, mut min) = (0.0, -low);
        if spread > 0.0 {
            (scale, min) = ((32.0 * qx - q * x) / spread, (q * qx - qq * x) / spread);
        }
        if min < 0.0 || spread == 0.0 && qq > 0.0 {
            (scale, min) = (qx / qq, 0.0);
        }
        // SAFETY: passed on.
        let error = unsafe { codes.error::<S>(group, scale, min) };
        if scale >= 0.0 && error < best.0 {
            best = (error, scale, min);
        }
    }
    (best.1, best.2)
}

/// The range of codes. A weight `scale * code - min` has the code that is nearest to `(weight + min) / scale`.
#[derive(Clone, Copy)]
struct Codes {
    low: f32,
    high: f32,
}

/// Of the codes, of their squares, and of their products with the weights.
struct Sums {
    q: f32,
    qq: f32,
    qx: f32,
}

/// # Safety
/// Contract of every method: the ISA of `S` is available.
impl Codes {
    #[inline(always)]
    unsafe fn nearest<S: Simd>(self, x: S::F, inverse: f32, min: f32) -> S::F {
        // SAFETY: passed on.
        unsafe {
            let code = S::mul(S::add(x, S::splat(min)), S::splat(inverse));
            let code = S::min(S::max(code, S::splat(self.low)), S::splat(self.high));
            S::sub(S::add(code, S::splat(ROUND)), S::splat(ROUND))
        }
    }

    #[inline(always)]
    unsafe fn all<S: Simd>(self, group: &Group, inverse: f32, min: f32) -> Group {
        let mut out = [0.0; 32];
        for at in (0..32).step_by(S::LANES) {
            // SAFETY: passed on; vectors divide a group.
            unsafe {
                S::store(out.as_mut_ptr().add(at), self.nearest::<S>(S::load(group.as_ptr().add(at)), inverse, min))
            };
        }
        out
    }

    #[inline(always)]
    unsafe fn sums<S: Simd>(self, group: &Group, inverse: f32, min: f32) -> Sums {
        let mut parts = [[0.0; PANEL]; 3];
        for at in (0..PANEL).step_by(S::LANES) {
            // SAFETY: passed on; vectors divide a panel.
            unsafe {
                let [x, y] = [S::load(group.as_ptr().add(at)), S::load(group.as_ptr().add(at + PANEL))];
                let [p, q] = [self.nearest::<S>(x, inverse, min), self.nearest::<S>(y, inverse, min)];
                S::store(parts[0].as_mut_ptr().add(at), S::add(p, q));
                S::store(parts[1].as_mut_ptr().add(at), S::add(S::mul(p, p), S::mul(q, q)));
                S::store(parts[2].as_mut_ptr().add(at), S::add(S::mul(p, x), S::mul(q, y)));
            }
        }
        let [q, qq, qx] = parts.map(sum);
        Sums { q, qq, qx }
    }

    /// The squared error under a scale and a minimum.
    #[inline(always)]
    unsafe fn error<S: Simd>(self, group: &Group, scale: f32, min: f32) -> f32 {
        let inverse = inverse(scale);
        let mut parts = [0.0; PANEL];
        for at in (0..PANEL).step_by(S::LANES) {
            // SAFETY: passed on; vectors divide a panel.
            unsafe {
                let mut squares = S::splat(0.0);
                for at in [at, at + PANEL] {
                    let x = S::load(group.as_ptr().add(at));
                    let code = self.nearest::<S>(x, inverse, min);
                    let error = S::sub(S::sub(S::mul(S::splat(scale), code), S::splat(min)), x);
                    squares = S::add(squares, S::mul(error, error));
                }
                S::store(parts.as_mut_ptr().add(at), squares);
            }
        }
        sum(parts)
    }
}

#[inline(always)]
fn sum(mut parts: [f32; PANEL]) -> f32 {
    for n in [8, 4, 2, 1] {
        for i in 0..n {
            parts[i] += parts[i + n];
        }
    }
    parts[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_do_not_depend_on_the_path() {
        let mut seed = 1_u32;
        for round in 0..200 {
            let weights: [f32; 256] = std::array::from_fn(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (seed >> 8) as f32 / (1 << (round % 30)) as f32 - (round % 7) as f32
            });
            for kind in QuantKind::ALL.into_iter().filter(|kind| can_encode(*kind)) {
                let blocks = |isa| {
                    let mut block = vec![0xaa; kind.block_bytes()];
                    encode(isa, kind, &mut { weights }[..kind.block_len()], &mut block);
                    block
                };
                for isa in Isa::available() {
                    assert_eq!(blocks(isa), blocks(Isa::Portable), "{isa} {kind}");
                }
            }
        }
    }
}
