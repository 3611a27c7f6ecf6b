//! Norms, RoPE and element-wise kernels against their scalar twins; bits do not depend on the place in the batch.

mod common;

use common::{Rng, bits, nmse, paths, widen};
use kvist_kernels::{
    RopeTable, add, add_bias, bf16, probe, reference, rms_norm, rms_norm_heads, rope, rope_queries, round_bf16,
    silu_mul,
};

/// Whether every element is the f32 result rounded to bf16: half a unit in the last of 8 bits.
fn rounded(got: &[u16], want: &[f32]) -> bool {
    widen(got).iter().zip(want).all(|(g, w)| (g - w).abs() <= w.abs() * (0.00390625 + 1e-6) + 1e-30)
}

#[test]
fn norms() {
    let mut rng = Rng(1);
    for (isa, pool) in paths(&[1, 4]) {
        for n in [1, 7, 16, 64, 96, 130, 2048] {
            let rows = 70;
            let (x, w) = (rng.normals(rows * n), rng.normals(n));
            let mut want = vec![0.0; rows * n];
            reference::rms_norm(&x, &w, 1e-5, &mut want);

            let mut out = vec![0; rows * n];
            rms_norm(isa, &pool, &x, &w, 1e-5, &mut out);
            assert!(rounded(&out, &want), "{isa} {n}");
            for row in [0, 33, 69] {
                let mut alone = vec![0; n];
                rms_norm(isa, &pool, &x[row * n..][..n], &w, 1e-5, &mut alone);
                assert_eq!(alone, out[row * n..][..n]);
            }

            let mut heads = x.clone();
            rms_norm_heads(isa, &pool, &mut heads, &w, 1e-5);
            assert!(nmse(&heads, &want) <= 1e-10, "{isa} {n}");
            let mut alone = x[5 * n..6 * n].to_vec();
            rms_norm_heads(isa, &pool, &mut alone, &w, 1e-5);
            assert_eq!(bits(&alone), bits(&heads[5 * n..6 * n]));
        }
        let mut out = vec![1; 16];
        rms_norm(isa, &pool, &[0.0; 16], &[1.0; 16], 1e-6, &mut out);
        assert_eq!(out, [0; 16], "zeros stay zeros");
    }
}

#[test]
fn silu_and_rounding() {
    let mut rng = Rng(2);
    for (isa, pool) in paths(&[1, 4]) {
        for n in [1, 5, 16, 31, 8192, 20_003] {
            let gate: Vec<f32> = rng.normals(n).iter().map(|x| x * 8.0).collect();
            let up = rng.normals(n);
            let mut want = vec![0.0; n];
            reference::silu_mul(&gate, &up, &mut want);
            let mut out = vec![0; n];
            silu_mul(isa, &pool, &gate, &up, &mut out);
            assert!(rounded(&out, &want), "{isa} {n}");
            // The last element of the batch alone: once in a full vector, once in a tail.
            let mut alone = [0];
            silu_mul(isa, &pool, &gate[n - 1..], &up[n - 1..], &mut alone);
            assert_eq!(alone[0], out[n - 1]);

            round_bf16(isa, &pool, &gate, &mut out);
            let scalar: Vec<u16> = gate.iter().map(|&x| bf16::from_f32(x)).collect();
            assert_eq!(out, scalar);
        }
        let gate = [f32::MAX, -f32::MAX, 300.0, -300.0, 0.0, f32::NAN];
        let mut out = [0; 6];
        silu_mul(isa, &pool, &gate, &[1.0; 6], &mut out);
        let out = widen(&out);
        assert!(out[1].abs() < 1e-30 && out[2] == 300.0 && out[3].abs() < 1e-30 && out[4] == 0.0 && out[5].is_nan());
    }
}

#[test]
fn rotation() {
    let mut rng = Rng(3);
    let (_, pool) = paths(&[4]).remove(0);
    for (heads, head_dim, half) in [(3, 64, 32), (2, 128, 64), (4, 18, 9), (1, 64, 16)] {
        let positions = [0, 1, 511, 7, 131_071, 4];
        let frequencies: Vec<f64> = (0..half).map(|i| 10_000_f64.powf(-(i as f64) / half as f64)).collect();
        let x = rng.normals(positions.len() * heads * head_dim);
        let mut want = x.clone();
        for (x, &p) in want.chunks_exact_mut(heads * head_dim).zip(&positions) {
            reference::rope(x, head_dim, &frequencies, p);
        }
        let mut table = RopeTable::default();
        table.fill(&frequencies, positions);
        assert_eq!(table.rows(), positions.len());
        let mut keys = x.clone();
        rope(&pool, &mut keys, heads, head_dim, &table);
        assert!(nmse(&keys, &want) <= 1e-10);
        let mut queries = vec![0; x.len()];
        rope_queries(&pool, &x, heads, head_dim, &table, 0.25, &mut queries);
        let scaled: Vec<f32> = keys.iter().map(|x| x * 0.25).collect();
        assert!(rounded(&queries, &scaled));
    }
}

#[test]
fn bias() {
    let mut x = vec![1.0, 2.0, 3.0, 4.0];
    add_bias(&mut x, &[10.0, 20.0]);
    assert_eq!(x, [11.0, 22.0, 13.0, 24.0]);
    add(&mut x, &[1.0, 1.0, 1.0, 1.0]);
    assert_eq!(x, [12.0, 23.0, 14.0, 25.0]);
}

#[test]
fn limits_are_measured() {
    for (isa, pool) in paths(&[2]) {
        let peak = probe::peak(isa, &pool, 2);
        assert!(peak.gflops > 0.0 && peak.clock_ghz > 0.0 && peak.per_cycle > 0.0 && peak.share > 0.0, "{peak:?}");
        assert!(probe::bandwidth(&pool, 1) > 0.0);
    }
}
