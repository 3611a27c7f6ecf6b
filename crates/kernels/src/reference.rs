//! Scalar twins of the kernels: plain loops in the order of the formulas, sums in f64. Used as oracle in tests and by
//! the f32 executor.

pub use crate::quant::reference::{dequantise, dot_quant};
use crate::{Activation, bf16};

/// `sum(a[i] * b[i])`.
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    // Eight sums, so that the compiler may use vectors.
    let mut sums = [0.0_f64; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f64 = a8.remainder().iter().zip(b8.remainder()).map(|(&x, &y)| x as f64 * y as f64).sum();
    for (a, b) in a8.zip(b8) {
        for i in 0..8 {
            sums[i] += a[i] as f64 * b[i] as f64;
        }
    }
    sums.iter().sum::<f64>() + tail
}

/// `y = x w^T` or `y += x w^T`: x `[rows][k]`, w `[n][k]`, y `[rows][n]`.
pub fn matmul(x: &[f32], w: &[f32], k: usize, y: &mut [f32], add: bool) {
    let n = w.len() / k;
    for (x, y) in x.chunks_exact(k).zip(y.chunks_exact_mut(n)) {
        for (w, y) in w.chunks_exact(k).zip(y) {
            let sum = dot(x, w);
            *y = if add { (*y as f64 + sum) as f32 } else { sum as f32 };
        }
    }
}

/// `x / sqrt(mean(x^2) + eps) * w` per row of `w.len()` elements.
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
    for (x, out) in x.chunks_exact(w.len()).zip(out.chunks_exact_mut(w.len())) {
        let scale = 1.0 / (dot(x, x) / x.len() as f64 + eps as f64).sqrt();
        for ((x, w), out) in x.iter().zip(w).zip(out) {
            *out = (*x as f64 * scale * *w as f64) as f32;
        }
    }
}

/// Rotates pairs `(i, i + rot/2)` of each head (`head_dim` elements) of one row at `position`, and multiplies them by
/// `amplitude`; `rot/2` frequencies.
pub fn rope(x: &mut [f32], head_dim: usize, frequencies: &[f64], amplitude: f64, position: u32) {
    let half = frequencies.len();
    for head in x.chunks_exact_mut(head_dim) {
        for (i, f) in frequencies.iter().enumerate() {
            let (sin, cos) = (position as f64 * f).sin_cos();
            let (a, b) = (head[i] as f64, head[i + half] as f64);
            head[i] = ((a * cos - b * sin) * amplitude) as f32;
            head[i + half] = ((b * cos + a * sin) * amplitude) as f32;
        }
    }
}

/// `activation(gate) * up`.
pub fn gate_mul(activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((&g, &u), out) in gate.iter().zip(up).zip(out) {
        let g = g as f64;
        let slope = (2.0 / std::f64::consts::PI).sqrt();
        let activated = match activation {
            Activation::Silu => g / (1.0 + (-g).exp()),
            // tanh would cancel far left; this is the same function.
            Activation::GeluTanh => g / (1.0 + (-2.0 * slope * (g + 0.044715 * g.powi(3))).exp()),
        };
        *out = (activated * u as f64) as f32;
    }
}

/// `softmax(scale * q . k) v` of one query over the given (key, value) pairs; zeros when there are none.
pub fn attention<'a>(q: &[f32], scale: f64, kv: impl Iterator<Item = (&'a [f32], &'a [f32])> + Clone, out: &mut [f32]) {
    let largest = kv.clone().map(|(k, _)| dot(q, k) * scale).fold(f64::NEG_INFINITY, f64::max);
    let (mut sum, mut acc) = (0.0, vec![0.0_f64; out.len()]);
    for (k, v) in kv {
        let p = (dot(q, k) * scale - largest).exp();
        sum += p;
        acc.iter_mut().zip(v).for_each(|(a, &v)| *a += p * v as f64);
    }
    for (out, a) in out.iter_mut().zip(acc) {
        *out = if sum > 0.0 { (a / sum) as f32 } else { 0.0 };
    }
}

/// Rounds every element to bf16 and back.
pub fn through_bf16(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = bf16::to_f32(bf16::from_f32(*x)));
}
