//! Quantised activations.

mod common;

use common::{Rng, narrow, paths, widen};
use kvist_kernels::QuantRows;

/// By the definition, a row of groups at a time.
fn expected(x: &[f32]) -> Vec<f32> {
    let group = |x: &[f32]| -> Vec<f32> {
        let largest = x.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
        if x.iter().any(|x| !x.is_finite()) {
            return vec![f32::NAN; 32];
        }
        if largest < 1e-36 {
            return vec![0.0; 32];
        }
        let (scale, inverse) = (largest / 127.0, 127.0 / largest);
        x.iter().map(|x| scale * ((x * inverse).round_ties_even() as i8 as f32)).collect()
    };
    x.chunks_exact(32).flat_map(group).collect()
}

fn same(got: &[f32], want: &[f32]) -> bool {
    got.iter().zip(want).all(|(a, b)| a == b || a.is_nan() && b.is_nan())
}

#[test]
fn rows_are_rounded_by_groups_on_every_path_alike() {
    let mut rng = Rng(1);
    for k in [32, 64, 96, 1024] {
        for rows in [1, 2, 7, 40] {
            let mut x = rng.normals(rows * k);
            x.chunks_exact_mut(32).for_each(|x| {
                let size = (rng.below(240) as f32 - 120.0).exp2();
                x.iter_mut().for_each(|x| *x *= size);
            });
            // Ties, the ends, and what is not a number of ours.
            x[..8].copy_from_slice(&[127.0, 0.5, 1.5, 2.5, -0.5, -126.5, -127.0, 126.5]);
            x[8..32].fill(-0.0);
            if rows > 4 {
                x[k..k + 32].fill(1e-38);
                x[2 * k..2 * k + 32].fill(3.3e38);
                x[3 * k] = f32::NAN;
                x[4 * k + 31] = f32::NEG_INFINITY;
            }
            let x = narrow(&x);
            let want = expected(&widen(&x));
            let mut quant = QuantRows::new();
            for (isa, pool) in paths(&[1, 3]) {
                quant.set(isa, &pool, &x, k);
                assert_eq!((quant.rows(), quant.k()), (rows, k));
                for (i, want) in want.chunks_exact(k).enumerate() {
                    let mut got = vec![1.0; k];
                    quant.row(i, &mut got);
                    assert!(same(&got, want), "{isa} {rows}x{k}, row {i}");
                }
            }
        }
    }
}

#[test]
fn the_error_of_a_group_is_half_a_step() {
    let mut rng = Rng(2);
    let x = rng.bf16s(4096, 1.0);
    for (isa, pool) in paths(&[1]) {
        let mut quant = QuantRows::new();
        quant.set(isa, &pool, &x, 4096);
        let mut got = vec![0.0; 4096];
        quant.row(0, &mut got);
        for (x, got) in widen(&x).chunks_exact(32).zip(got.chunks_exact(32)) {
            let largest = x.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
            assert!(x.iter().zip(got).all(|(x, got)| (x - got).abs() <= largest / 253.9), "{isa}");
        }
    }
}
