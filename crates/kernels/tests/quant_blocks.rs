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
