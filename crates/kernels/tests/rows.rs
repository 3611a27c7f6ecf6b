//! Norms, RoPE and element-wise kernels against their scalar twins; bits do not depend on the place in the batch.

mod common;

use common::{Rng, bits, nmse, paths, widen};
use kvist_kernels::{
    Activation, QuantRows, RopeTable, RowsMut, add_bias, add_scaled, bf16, gate_mul, probe, reference, rms_norm,
    rms_norm_heads, rope, rope_queries, round, soft_cap,
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
            rms_norm(isa, &pool, &x, &w, 1e-5, RowsMut::Bf16(&mut out));
            assert!(rounded(&out, &want), "{isa} {n}");
            for row in [0, 33, 69] {
                let mut alone = vec![0; n];
                rms_norm(isa, &pool, &x[row * n..][..n], &w, 1e-5, RowsMut::Bf16(&mut alone));
                assert_eq!(alone, out[row * n..][..n]);
            }
            if n % 32 == 0 {
                let [mut want, mut got] = [(); 2].map(|_| QuantRows::new());
                want.set(isa, &pool, &out, n);
                rms_norm(isa, &pool, &x, &w, 1e-5, RowsMut::Quant(&mut got));
                assert!(got.same_bits(&want), "{isa} {n}, quantised");
            }

            let mut heads = x.clone();
            rms_norm_heads(isa, &pool, &mut heads, &w, 1e-5);
            assert!(nmse(&heads, &want) <= 1e-10, "{isa} {n}");
            let mut alone = x[5 * n..6 * n].to_vec();
            rms_norm_heads(isa, &pool, &mut alone, &w, 1e-5);
            assert_eq!(bits(&alone), bits(&heads[5 * n..6 * n]));
        }
        let mut out = vec![1; 16];
        rms_norm(isa, &pool, &[0.0; 16], &[1.0; 16], 1e-6, RowsMut::Bf16(&mut out));
        assert_eq!(out, [0; 16], "zeros stay zeros");
    }
}

#[test]
fn gates_and_rounding() {
    let mut rng = Rng(2);
    for (isa, pool) in paths(&[1, 4]) {
        for n in [1, 5, 16, 31, 8192, 20_003] {
            let gate: Vec<f32> = rng.normals(n).iter().map(|x| x * 8.0).collect();
            let up = rng.normals(n);
            let (mut want, mut out) = (vec![0.0; n], vec![0; n]);
            for activation in [Activation::Silu, Activation::GeluTanh] {
                reference::gate_mul(activation, &gate, &up, &mut want);
                gate_mul(isa, &pool, activation, &gate, &up, &mut out);
                // Far left both are smaller than an f32 can tell from nothing.
                for (i, (got, want)) in widen(&out).into_iter().zip(&want).enumerate() {
                    let close = (got - want).abs() <= want.abs() * (0.00390625 + 1e-5) + 1e-28;
                    assert!(close, "{isa} {activation:?} of {}: {got} {want}", gate[i]);
                }
                // The last element of the batch alone: once in a full vector, once in a tail.
                let mut alone = [0];
                gate_mul(isa, &pool, activation, &gate[n - 1..], &up[n - 1..], &mut alone);
                assert_eq!(alone[0], out[n - 1]);
            }

            round(isa, &pool, &gate, n, RowsMut::Bf16(&mut out));
            let scalar: Vec<u16> = gate.iter().map(|&x| bf16::from_f32(x)).collect();
            assert_eq!(out, scalar);
            for k in [32, 96, 1024] {
                let (rows, [mut want, mut got]) = (n / k, [(); 2].map(|_| QuantRows::new()));
                want.set(isa, &pool, &out[..rows * k], k);
                round(isa, &pool, &gate[..rows * k], k, RowsMut::Quant(&mut got));
                assert!(got.same_bits(&want), "{isa} {rows} rows of {k}, quantised");
            }
        }
        let gate = [f32::MAX, -f32::MAX, 300.0, -300.0, 0.0, f32::NAN];
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let mut out = [0; 6];
            gate_mul(isa, &pool, activation, &gate, &[1.0; 6], &mut out);
            let out = widen(&out);
            assert!(out[1].abs() < 1e-30 && out[2] == 300.0 && out[3].abs() < 1e-30 && out[4] == 0.0);
            assert!(out[0] > 1e38 && out[5].is_nan());
        }
    }
}

#[test]
fn soft_caps() {
    let mut rng = Rng(4);
    for (isa, pool) in paths(&[1, 4]) {
        for cap in [30.0_f32, 50.0, 1.0] {
            for n in [1, 5, 16, 8192, 10_007] {
                let x: Vec<f32> = rng.normals(n).iter().map(|x| x * 40.0).collect();
                let mut got = x.clone();
                soft_cap(isa, &pool, &mut got, cap);
                for (got, x) in got.iter().zip(&x) {
                    let want = cap as f64 * (*x as f64 / cap as f64).tanh();
                    assert!((*got as f64 - want).abs() <= cap as f64 * 4e-7, "{isa} {cap} {x}: {got} {want}");
                }
                let mut alone = [x[n - 1]];
                soft_cap(isa, &pool, &mut alone, cap);
                assert_eq!(alone[0].to_bits(), got[n - 1].to_bits());
            }
            let mut ends = [f32::MAX, -f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
            soft_cap(isa, &pool, &mut ends, cap);
            assert!(ends[..4] == [cap, -cap, cap, -cap] && ends[4].is_nan(), "{isa} {ends:?}");
        }
    }
}

#[test]
fn rotation() {
    let mut rng = Rng(3);
    for (heads, head_dim, half, amplitude) in
        [(3, 64, 32, 1.0), (2, 128, 64, 1.5), (4, 18, 9, 1.0), (1, 64, 16, 1.2), (2, 32, 0, 1.0)]
    {
        let positions = [0, 1, 511, 7, 131_071, 4];
        let frequencies: Vec<f64> = (0..half).map(|i| 10_000_f64.powf(-(i as f64) / half as f64)).collect();
        let x = rng.normals(positions.len() * heads * head_dim);
        let mut want = x.clone();
        for (x, &p) in want.chunks_exact_mut(heads * head_dim).zip(&positions) {
            reference::rope(x, head_dim, &frequencies, amplitude, p);
        }
        let mut table = RopeTable::default();
        table.fill(&frequencies, amplitude, positions);
        assert_eq!(table.rows(), positions.len());
        let mut all: Vec<Vec<f32>> = Vec::new();
        for (isa, pool) in paths(&[4]) {
            let mut keys = x.clone();
            rope(isa, &pool, &mut keys, heads, head_dim, &table);
            assert!(nmse(&keys, &want) <= 1e-10, "{isa}");
            let mut queries = vec![0; x.len()];
            rope_queries(isa, &pool, &x, heads, head_dim, &table, 0.25, &mut queries);
            let scaled: Vec<f32> = keys.iter().map(|x| x * 0.25).collect();
            assert!(rounded(&queries, &scaled), "{isa}");
            all.push(keys);
        }
        assert!(all.iter().all(|keys| bits(keys) == bits(&all[0])), "on every path the same");
    }
}

#[test]
fn bias() {
    let mut x = vec![1.0, 2.0, 3.0, 4.0];
    add_bias(&mut x, &[10.0, 20.0]);
    assert_eq!(x, [11.0, 22.0, 13.0, 24.0]);
    add_scaled(&mut x, &[1.0, 1.0, 1.0, 1.0], 1.0);
    assert_eq!(x, [12.0, 23.0, 14.0, 25.0]);
    add_scaled(&mut x, &[2.0, 4.0, 6.0, 8.0], 0.5);
    assert_eq!(x, [13.0, 25.0, 17.0, 29.0]);
}

#[test]
fn limits_are_measured() {
    for (isa, pool) in paths(&[2]) {
        let peak = probe::peak(isa, &pool, 2);
        assert!(peak.gflops > 0.0 && peak.clock_ghz > 0.0 && peak.per_cycle > 0.0 && peak.share > 0.0, "{peak:?}");
        assert!(probe::bandwidth(&pool, 1) > 0.0);
        assert!([false, true].into_iter().all(|wide| probe::integer_peak(isa, &pool, wide, 1) > 0.0));
        assert!(probe::short_peak(isa, &pool, 1) > 0.0);
    }
}
