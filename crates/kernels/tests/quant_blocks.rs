//! Blocks against the gguf Python package (`tools/make_quant_fixtures.py`), and what packing keeps of them.

use std::path::Path;

use kvist_kernels::{PackedQuant, Pool, QuantError, QuantKind, reference};

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quant").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn floats(name: &str) -> Vec<f32> {
    fixture(name).as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect()
}

/// Equal bits; any NaN for a NaN.
fn same(got: &[f32], want: &[f32]) -> bool {
    got.len() == want.len() && got.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan())
}

#[test]
fn weights_are_those_of_the_gguf_package() {
    for kind in QuantKind::ALL {
        let (blocks, want) = (fixture(&format!("{kind}.blocks")), floats(&format!("{kind}.f32")));
        let mut got = vec![0.0; want.len()];
        reference::dequantise(kind, &blocks, &mut got);
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!(same(&[*got], &[*want]), "{kind}, weight {i}: {got} {want}");
        }
        assert!(want.iter().any(|w| w.is_nan()) && want.iter().any(|w| w.is_infinite()), "{kind}: no special scales");
    }
}

#[test]
fn packing_keeps_rows_and_grows_by_no_byte() {
    for kind in QuantKind::ALL {
        let (all, want) = (fixture(&format!("{kind}.blocks")), floats(&format!("{kind}.f32")));
        for threads in [1, 3] {
            let pool = Pool::new(threads);
            for per_row in [1, 2, 3] {
                for n in [1, 5, 7, 8, 16, 17, 24].into_iter().filter(|n| n * per_row * kind.block_bytes() <= all.len())
                {
                    let (k, blocks) = (per_row * kind.block_len(), &all[..n * per_row * kind.block_bytes()]);
                    let packed = PackedQuant::from_ggml(kind, n, k, blocks, &pool).unwrap();
                    assert_eq!((packed.kind(), packed.n(), packed.k()), (kind, n, k));
                    assert_eq!(packed.bytes(), n.next_multiple_of(16) * per_row * kind.block_bytes());
                    let mut row = vec![0.0; k];
                    for i in 0..n {
                        packed.row(i, &mut row);
                        assert!(same(&row, &want[i * k..(i + 1) * k]), "{kind} {n}x{k}, row {i}");
                    }
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let pool = Pool::new(1);
    for kind in QuantKind::ALL {
        let pack =
            |n, k, bytes: usize| PackedQuant::from_ggml(kind, n, k, &vec![0; bytes], &pool).map(|_| ()).unwrap_err();
        for k in [0, 1, 31, 33, kind.block_len() + 16] {
            assert_eq!(pack(1, k, kind.block_bytes()), QuantError::Length { kind, k });
        }
        let k = kind.block_len();
        for found in [0, kind.block_bytes() - 1, kind.block_bytes() * 2] {
            assert_eq!(pack(1, k, found), QuantError::Bytes { kind, n: 1, k, found });
        }
        assert_eq!(pack(usize::MAX, k, 0), QuantError::Bytes { kind, n: usize::MAX, k, found: 0 });
        let huge = PackedQuant::pack(kind, usize::MAX, k, &pool, &|_, _| unreachable!()).map(|_| ());
        assert!(matches!(huge, Err(QuantError::OutOfMemory(_))));
        let none = PackedQuant::from_ggml(kind, 0, k, &[], &pool).unwrap();
        assert_eq!((none.n(), none.bytes()), (0, 0));
    }
}

/// Squared error over squared weights.
fn loss(weights: &[f32], got: &[f32]) -> f64 {
    let error: f64 = weights.iter().zip(got).map(|(w, g)| (*w as f64 - *g as f64).powi(2)).sum();
    error / weights.iter().map(|w| (*w as f64).powi(2)).sum::<f64>()
}

fn quantised(kind: QuantKind, weights: &[f32], k: usize) -> Vec<f32> {
    let fill = |i: usize, row: &mut [f32]| row.copy_from_slice(&weights[i * k..(i + 1) * k]);
    let packed = PackedQuant::quantise(kind, weights.len() / k, k, &Pool::new(2), &fill).unwrap();
    let mut got = vec![0.0; weights.len()];
    got.chunks_exact_mut(k).enumerate().for_each(|(i, row)| packed.row(i, row));
    got
}

#[test]
fn encoders_are_as_good_as_those_of_the_gguf_package() {
    let weights = floats("weights.f32");
    let theirs = |kind: QuantKind| {
        let mut out = vec![0.0; weights.len()];
        reference::dequantise(kind, &fixture(&format!("{kind}.encoded")), &mut out);
        out
    };
    assert!(same(&quantised(QuantKind::Q8_0, &weights, 256), &theirs(QuantKind::Q8_0)));
    let plain = loss(&weights, &theirs(QuantKind::Q4_0));
    let [searched, with_min] = [QuantKind::Q4_0, QuantKind::Q4K].map(|kind| {
        let got = quantised(kind, &weights, 256);
        // No block may lose what rounding to the nearest keeps.
        for (i, (w, got)) in weights.chunks_exact(256).zip(got.chunks_exact(256)).enumerate() {
            assert!(loss(w, got) < 0.012, "{kind}, row {i}: {}", loss(w, got));
        }
        loss(&weights, &got)
    });
    println!("Q4_0 {plain:.5}, searched {searched:.5}, Q4_K {with_min:.5}");
    assert!(searched < 0.9 * plain && with_min < 0.75 * plain, "{plain} {searched} {with_min}");
    assert_eq!([256, 96, 33].map(QuantKind::best_q4), [Some(QuantKind::Q4K), Some(QuantKind::Q4_0), None]);
}

#[test]
fn encoders_take_any_weights() {
    let pool = Pool::new(1);
    for kind in QuantKind::ALL {
        let rows: [fn(usize) -> f32; 9] = [
            |_| 0.0,
            |_| 1.0,
            |_| -3.0,
            |i| (i % 2) as f32,
            |i| if i == 7 { f32::NAN } else { i as f32 },
            |i| if i == 7 { f32::INFINITY } else { i as f32 - 128.0 },
            |_| f32::MAX,
            |_| 1e-45,
            |i| if i == 3 { -65504.0 } else { 1e-3 },
        ];
        let fill = |i: usize, row: &mut [f32]| row.iter_mut().enumerate().for_each(|(j, w)| *w = rows[i](j));
        match PackedQuant::quantise(kind, rows.len(), 256, &pool, &fill) {
            Err(error) => assert_eq!(error, QuantError::NoEncoder(kind)),
            Ok(packed) => {
                for (i, row) in rows.iter().enumerate() {
                    let mut got = vec![0.0; 256];
                    packed.row(i, &mut got);
                    assert!(got.iter().all(|w| w.is_finite()), "{kind}, row {i}");
                    let want: Vec<f32> = (0..256).map(row).map(|w| if w.is_finite() { w } else { 0.0 }).collect();
                    if i < 6 {
                        assert!(loss(&want, &got) < 0.005 || got == want, "{kind}, row {i}");
                    }
                }
            }
        }
    }
}
