//! Seeded numbers and comparisons for the tests.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use kvist_kernels::{Isa, Pool, bf16};

/// splitmix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Uniform in `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Roughly normal, standard deviation 1.
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| (self.next() >> 40) as f32 / (1 << 24) as f32).sum::<f32>() - 6.0
    }

    pub fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }

    pub fn bf16s(&mut self, n: usize, scale: f32) -> Vec<u16> {
        (0..n).map(|_| bf16::from_f32(self.normal() * scale)).collect()
    }
}

pub fn widen(x: &[u16]) -> Vec<f32> {
    x.iter().map(|&x| bf16::to_f32(x)).collect()
}

pub fn narrow(x: &[f32]) -> Vec<u16> {
    x.iter().map(|&x| bf16::from_f32(x)).collect()
}

pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Normalised mean squared error.
pub fn nmse(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let error: f64 = got.iter().zip(want).map(|(&a, &b)| (a as f64 - b as f64).powi(2)).sum();
    let power: f64 = want.iter().map(|&b| (b as f64).powi(2)).sum();
    error / power.max(f64::MIN_POSITIVE)
}

/// Every ISA path of this machine with pools of the given sizes.
pub fn paths(threads: &[usize]) -> Vec<(Isa, Pool)> {
    let all = Isa::available().into_iter();
    all.flat_map(|isa| threads.iter().map(move |&t| (isa, Pool::new(t)))).collect()
}
