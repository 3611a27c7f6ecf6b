//! The matrix product against f64, and its independence of the batch.

mod common;

use common::{Rng, bits, nmse, paths, widen};
use kvist_kernels::{Isa, PackedBf16, Pool, bf16, matmul, reference};

const SHAPES: [(usize, usize); 9] =
    [(1, 64), (17, 96), (257, 130), (16, 1), (33, 2), (64, 3), (100, 577), (576, 192), (1000, 64)];

#[test]
fn agrees_with_f64() {
    let mut rng = Rng(1);
    for (isa, pool) in paths(&[1, 3]) {
        for (n, k) in SHAPES {
            let w = rng.bf16s(n * k, 0.3);
            let packed = PackedBf16::from_bf16(n, k, &w, &pool).unwrap();
            for rows in [1, 2, 5, 6, 7, 40] {
                let x = rng.bf16s(rows * k, 1.0);
                let mut y = rng.normals(rows * n);
                let mut want = y.clone();
                for add in [true, false] {
                    matmul(isa, &pool, &x, rows, &packed, &mut y, add);
                    reference::matmul(&widen(&x), &widen(&w), k, &mut want, add);
                    let error = nmse(&y, &want);
                    assert!(error <= 1e-10, "{isa} {rows}x{k}x{n}: {error:e}");
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_see_its_batch() {
    let mut rng = Rng(2);
    for (n, k) in SHAPES {
        let w = rng.bf16s(n * k, 0.3);
        let x = rng.bf16s(70 * k, 1.0);
        let start = rng.normals(70 * n);
        for isa in Isa::available() {
            let one = Pool::new(1);
            let packed = PackedBf16::from_bf16(n, k, &w, &one).unwrap();
            let mut alone = start.clone();
            for (x, y) in x.chunks_exact(k).zip(alone.chunks_exact_mut(n)) {
                matmul(isa, &one, x, 1, &packed, y, true);
            }
            let mut same = start.clone();
            matmul(isa.bits(), &one, &x, 70, &packed, &mut same, true);
            assert!(bits(&same) == bits(&alone), "{isa} has the bits of {}", isa.bits());
            for threads in [1, 2, 3, 8] {
                let pool = Pool::new(threads);
                for rows in 1..=70 {
                    let from = (70 - rows) / 2;
                    let mut y = start[from * n..(from + rows) * n].to_vec();
                    matmul(isa, &pool, &x[from * k..(from + rows) * k], rows, &packed, &mut y, true);
                    assert!(bits(&y) == bits(&alone[from * n..(from + rows) * n]), "{isa} {rows}x{k}x{n} {threads}");
                }
            }
        }
    }
}

#[test]
fn many_rows_wide_panels_and_long_rows() {
    let mut rng = Rng(3);
    // Rows too long for the weights of a row block to stay in the cache, which are taken in parts.
    for (n, k, rows) in [(272, 64, 500), (81, 8400, 14)] {
        let w = rng.bf16s(n * k, 0.3);
        let x = rng.bf16s(rows * k, 1.0);
        let start = rng.normals(rows * n);
        for (isa, pool) in paths(&[1, 4]) {
            let packed = PackedBf16::from_bf16(n, k, &w, &pool).unwrap();
            for add in [true, false] {
                let mut alone = start.clone();
                for (x, y) in x.chunks_exact(k).zip(alone.chunks_exact_mut(n)) {
                    matmul(isa, &pool, x, 1, &packed, y, add);
                }
                let mut y = start.clone();
                matmul(isa, &pool, &x, rows, &packed, &mut y, add);
                assert!(bits(&y) == bits(&alone), "{isa} {rows}x{k}x{n} {add}");
            }
        }
    }
}

#[test]
fn packing_keeps_rows() {
    let pool = Pool::new(2);
    let mut rng = Rng(4);
    for (n, k) in SHAPES {
        let w = rng.bf16s(n * k, 1.0);
        let packed = PackedBf16::from_bf16(n, k, &w, &pool).unwrap();
        assert!(packed.bytes() >= n * k * 2 && packed.n() == n && packed.k() == k);
        let mut row = vec![0.0; k];
        for i in 0..n {
            packed.row(i, &mut row);
            assert_eq!(row, widen(&w[i * k..(i + 1) * k]));
        }
        let floats = rng.normals(n * k);
        let packed = PackedBf16::from_f32(n, k, &floats, &pool).unwrap();
        packed.row(n - 1, &mut row);
        assert!(row.iter().zip(&floats[(n - 1) * k..]).all(|(r, f)| *r == bf16::to_f32(bf16::from_f32(*f))));
    }
}

#[test]
fn special_values_stay_in_their_row() {
    let (n, k) = (20, 32);
    let mut rng = Rng(5);
    let w = rng.bf16s(n * k, 1.0);
    for (isa, pool) in paths(&[1]) {
        let packed = PackedBf16::from_bf16(n, k, &w, &pool).unwrap();
        let mut x = rng.bf16s(7 * k, 1.0);
        let mut clean = vec![0.0; 7 * n];
        matmul(isa, &pool, &x, 7, &packed, &mut clean, false);
        x[3 * k + 5] = 0x7fc0; // NaN
        x[4 * k] = 0x7f80; // infinity
        x[5 * k..6 * k].fill(1); // denormals
        let mut y = vec![0.0; 7 * n];
        matmul(isa, &pool, &x, 7, &packed, &mut y, false);
        assert!(y[3 * n..4 * n].iter().all(|y| y.is_nan()));
        assert!(y[4 * n..5 * n].iter().all(|y| !y.is_finite()));
        assert!(y[5 * n..6 * n].iter().all(|y| y.abs() < 1e-30));
        for row in [0, 1, 2, 6] {
            assert_eq!(bits(&y[row * n..(row + 1) * n]), bits(&clean[row * n..(row + 1) * n]));
        }
    }
}
