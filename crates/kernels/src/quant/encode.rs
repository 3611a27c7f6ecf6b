//! Weights to blocks.

use super::QuantKind::{self, Q4_0, Q8_0};
use super::half;

/// Writes the block of `kind.block_len()` weights.
pub(crate) type Encoder = fn(&[f32], &mut [u8]);

/// The encoder of a format, if there is one.
pub(crate) fn encode(kind: QuantKind) -> Option<Encoder> {
    match kind {
        Q8_0 => Some(q8_0),
        Q4_0 => Some(q4_0),
        _ => None,
    }
}

/// Round to nearest under the scale that the largest weight asks for.
fn q8_0(weights: &[f32], block: &mut [u8]) {
    let largest = weights.iter().fold(0.0_f32, |a, w| a.max(w.abs()));
    let d = largest / 127.0;
    let inverse = if d > 0.0 { 1.0 / d } else { 0.0 };
    block[..2].copy_from_slice(&half::from_f32(d).to_le_bytes());
    for (code, w) in block[2..].iter_mut().zip(weights) {
        *code = (w * inverse).round() as i8 as u8;
    }
}

fn q4_0(weights: &[f32], block: &mut [u8]) {
    let d = weights.iter().fold(0.0_f32, |a, &w| if w.abs() > a.abs() { w } else { a }) / -8.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    block[..2].copy_from_slice(&half::from_f32(d).to_le_bytes());
    let code = |w: f32| (w * inverse + 8.5).clamp(0.0, 15.0) as u8;
    for (i, byte) in block[2..].iter_mut().enumerate() {
        *byte = code(weights[i]) | code(weights[i + 16]) << 4;
    }
}
