//! The product of quantised matrices: bit for bit a scalar twin, close to f64, independent of the batch.

mod common;

use common::{Rng, bits, narrow, nmse, paths, widen};
use kvist_kernels::{
    Activation, Isa, PackedQuant, Pool, QuantKind, QuantRows, RowsMut, bf16, gate_mul, gated_quant, matmul_quant,
    reference, rms_norm, round,
};

/// Outputs and inputs in units of the format's blocks.
const SHAPES: [(usize, usize); 6] = [(1, 1), (15, 3), (16, 9), (17, 2), (33, 1), (257, 1)];

/// Random codes under scales of usual size.
fn blocks(rng: &mut Rng, kind: QuantKind, count: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..count * kind.block_bytes()).map(|_| rng.next() as u8).collect();
    for block in bytes.chunks_exact_mut(kind.block_bytes()) {
        for &at in scales(kind) {
            // f16 of either sign from 2^-8 to 2^-5.
            let half = 0x1c00 | (rng.next() as u16 & 0x8bff);
            block[at..at + 2].copy_from_slice(&half.to_le_bytes());
        }
    }
    bytes
}

/// Where a block has f16 scales.
fn scales(kind: QuantKind) -> &'static [usize] {
    match kind {
        QuantKind::Q8_0 | QuantKind::Q4_0 | QuantKind::Q5_0 => &[0],
        QuantKind::Q4K | QuantKind::Q5K => &[0, 2],
        QuantKind::Q6K => &[208],
    }
}

/// Activations whose groups differ in size.
fn activations(rng: &mut Rng, rows: usize, k: usize) -> Vec<u16> {
    let mut x = rng.normals(rows * k);
    x.chunks_exact_mut(32).for_each(|x| {
        let size = (rng.below(9) as f32 - 4.0).exp2();
        x.iter_mut().for_each(|x| *x *= size);
    });
    narrow(&x)
}

struct Case {
    kind: QuantKind,
    n: usize,
    k: usize,
    blocks: Vec<u8>,
}

fn cases(rng: &mut Rng) -> Vec<Case> {
    let all = QuantKind::ALL.into_iter().flat_map(|kind| SHAPES.map(|shape| (kind, shape)));
    all.map(|(kind, (n, count))| Case { kind, n, k: count * kind.block_len(), blocks: blocks(rng, kind, n * count) })
        .collect()
}

#[test]
fn equals_the_scalar_twin_bit_for_bit() {
    let mut rng = Rng(1);
    for Case { kind, n, k, blocks } in cases(&mut rng) {
        let rows = 11;
        let x = activations(&mut rng, rows, k);
        let start = rng.normals(rows * n);
        for (isa, pool) in paths(&[1, 3]) {
            let w = PackedQuant::from_ggml(kind, n, k, &blocks, &pool).unwrap();
            let mut quant = QuantRows::new();
            quant.set(isa, &pool, &x, k);
            for add in [true, false] {
                let mut y = start.clone();
                matmul_quant(isa, &pool, &quant, &w, &mut y, n, add);
                for (i, (y, start)) in y.iter().zip(&start).enumerate() {
                    let row = &blocks[i % n * (blocks.len() / n)..][..blocks.len() / n];
                    let dot = reference::dot_quant(&quant, i / n, kind, row, isa != Isa::Portable);
                    let want = if add { start + dot } else { dot };
                    assert_eq!(y.to_bits(), want.to_bits(), "{isa} {kind} {n}x{k} {i}: {y} {want}");
                }
            }
        }
    }
}

/// All codes at an end of their range under scales at an end of theirs, against activations that are all at an end: the
/// largest sums, which 16 bits just hold.
#[test]
fn extremes_equal_the_scalar_twin() {
    let (n, k) = (17, 256);
    // Zero, the smallest denormal and normal, the largest.
    let halves: [u16; 6] = [0, 1, 0x8001, 0x0400, 0x7bff, 0xfbff];
    let signs: [fn(usize) -> f32; 4] = [|_| 1.0, |_| -1.0, |i| [1.0, -1.0][i % 2], |i| [1.0, 1.0, -1.0, -1.0][i % 4]];
    let sizes = [1.0, 1.01e-36, 3e38, 1e-3];
    let rows = signs.len() * sizes.len();
    let x: Vec<f32> =
        sizes.iter().flat_map(|size| signs.iter().flat_map(move |sign| (0..k).map(move |i| size * sign(i)))).collect();
    let x = narrow(&x);
    for kind in QuantKind::ALL {
        for fill in [0x00, 0xff, 0x80, 0x0f, 0xf0, 0x7f] {
            let mut blocks = vec![fill; n * k / kind.block_len() * kind.block_bytes()];
            for (i, block) in blocks.chunks_exact_mut(kind.block_bytes()).enumerate() {
                for (j, &at) in scales(kind).iter().enumerate() {
                    block[at..at + 2].copy_from_slice(&halves[(i + 5 * j) % 6].to_le_bytes());
                }
            }
            for (isa, pool) in paths(&[1]) {
                let w = PackedQuant::from_ggml(kind, n, k, &blocks, &pool).unwrap();
                let (mut quant, mut y) = (QuantRows::new(), vec![0.0; rows * n]);
                quant.set(isa, &pool, &x, k);
                matmul_quant(isa, &pool, &quant, &w, &mut y, n, false);
                for (i, y) in y.iter().enumerate() {
                    let row = &blocks[i % n * (blocks.len() / n)..][..blocks.len() / n];
                    let want = reference::dot_quant(&quant, i / n, kind, row, isa != Isa::Portable);
                    let same = y.to_bits() == want.to_bits() || y.is_nan() && want.is_nan();
                    assert!(same, "{isa} {kind} {fill:#04x} {i}: {y} {want}");
                }
            }
        }
    }
}

#[test]
fn agrees_with_f64() {
    let mut rng = Rng(2);
    for kind in QuantKind::ALL {
        let (n, k, rows) = (48, 1024, 9);
        let blocks = blocks(&mut rng, kind, n * k / kind.block_len());
        let x = activations(&mut rng, rows, k);
        let mut weights = vec![0.0; n * k];
        reference::dequantise(kind, &blocks, &mut weights);
        let mut exact = vec![0.0; rows * n];
        reference::matmul(&widen(&x), &weights, k, &mut exact, false);
        for (isa, pool) in paths(&[2]) {
            let w = PackedQuant::from_ggml(kind, n, k, &blocks, &pool).unwrap();
            let mut quant = QuantRows::new();
            quant.set(isa, &pool, &x, k);
            let mut y = vec![0.0; rows * n];
            matmul_quant(isa, &pool, &quant, &w, &mut y, n, false);
            let mut rounded = vec![0.0; rows * k];
            rounded.chunks_exact_mut(k).enumerate().for_each(|(i, row)| quant.row(i, row));
            let mut want = vec![0.0; rows * n];
            reference::matmul(&rounded, &weights, k, &mut want, false);
            let (error, whole) = (nmse(&y, &want), nmse(&y, &exact));
            println!("{isa} {kind}: {error:.1e} of f64 on the same numbers, {whole:.1e} with rounding of activations");
            assert!(error < 1e-12 && whole < 1e-4, "{isa} {kind}: {error:e} {whole:e}");
        }
    }
}

#[test]
fn a_row_does_not_see_its_batch() {
    let mut rng = Rng(3);
    for Case { kind, n, k, blocks } in cases(&mut rng) {
        let x = activations(&mut rng, 70, k);
        let start = rng.normals(70 * n);
        for isa in Isa::available() {
            let one = Pool::new(1);
            let w = PackedQuant::from_ggml(kind, n, k, &blocks, &one).unwrap();
            let mut quant = QuantRows::new();
            let mut alone = start.clone();
            for (x, y) in x.chunks_exact(k).zip(alone.chunks_exact_mut(n)) {
                quant.set(isa, &one, x, k);
                matmul_quant(isa, &one, &quant, &w, y, n, true);
            }
            for threads in [1, 2, 3, 8] {
                let pool = Pool::new(threads);
                for rows in (1..=70).filter(|rows| n < 100 || rows % 9 < 2) {
                    let from = (70 - rows) / 2;
                    let mut y = start[from * n..(from + rows) * n].to_vec();
                    quant.set(isa, &pool, &x[from * k..(from + rows) * k], k);
                    matmul_quant(isa, &pool, &quant, &w, &mut y, n, true);
                    let same = bits(&y) == bits(&alone[from * n..(from + rows) * n]);
                    assert!(same, "{isa} {kind} {rows}x{k}x{n} {threads}");
                }
            }
        }
    }
}

#[test]
fn many_rows_and_wide_panels() {
    let mut rng = Rng(4);
    for kind in QuantKind::ALL {
        // More of x than stays in the cache, so that several panels are worked on at once.
        let (n, k, rows) = (272, 3 * 1024, 97);
        let blocks = blocks(&mut rng, kind, n * k / kind.block_len());
        let x = activations(&mut rng, rows, k);
        for (isa, pool) in paths(&[1, 4]) {
            let w = PackedQuant::from_ggml(kind, n, k, &blocks, &pool).unwrap();
            let mut quant = QuantRows::new();
            let mut alone = vec![0.0; rows * n];
            for (x, y) in x.chunks_exact(k).zip(alone.chunks_exact_mut(n)) {
                quant.set(isa, &pool, x, k);
                matmul_quant(isa, &pool, &quant, &w, y, n, false);
            }
            quant.set(isa, &pool, &x, k);
            let mut y = vec![f32::NAN; rows * n];
            matmul_quant(isa, &pool, &quant, &w, &mut y, n, false);
            assert!(bits(&y) == bits(&alone), "{isa} {kind}");
        }
    }
}

/// Queries, keys and values in formats of their own, side by side in the rows of one result.
#[test]
fn parts_of_a_row_come_from_matrices_of_different_formats() {
    let (k, rows) = (512, 9);
    let parts = [(QuantKind::Q4K, 40), (QuantKind::Q8_0, 16), (QuantKind::Q6K, 23)];
    let width = 80; // One column is nobody's.
    let mut rng = Rng(5);
    let x = activations(&mut rng, rows, k);
    let blocks = parts.map(|(kind, n)| blocks(&mut rng, kind, n * k / kind.block_len()));
    for (isa, pool) in paths(&[1, 3]) {
        let mut quant = QuantRows::new();
        quant.set(isa, &pool, &x, k);
        let (mut y, mut column) = (vec![7.0; rows * width], 0);
        for ((kind, n), blocks) in parts.into_iter().zip(&blocks) {
            let w = PackedQuant::from_ggml(kind, n, k, blocks, &pool).unwrap();
            let mut alone = vec![0.0; rows * n];
            matmul_quant(isa, &pool, &quant, &w, &mut alone, n, false);
            // The slice ends where the last row does.
            let end = (rows - 1) * width + column + n;
            matmul_quant(isa, &pool, &quant, &w, &mut y[column..end], width, false);
            for (y, alone) in y.chunks_exact(width).zip(alone.chunks_exact(n)) {
                assert_eq!(bits(&y[column..column + n]), bits(alone), "{isa} {kind}");
            }
            column += n;
        }
        assert!(y.chunks_exact(width).all(|y| y[column..] == [7.0]), "{isa}");
    }
}

/// Gates that multiply while both are in the cache, in tiles of all kinds, give the bits of the steps one by one.
#[test]
fn gated_products_are_those_of_the_steps() {
    let mut rng = Rng(7);
    for kind in QuantKind::ALL {
        // More of x than stays in the cache with the longer rows.
        for (width, k, all) in [(32, 256, 70), (96, 512, 70), (544, 256, 20), (160, 3072, 97)] {
            let w = blocks(&mut rng, kind, 2 * width * k / kind.block_len());
            let row = w.len() / (2 * width);
            let [gate, up] = [0, 32].map(|from| {
                let turn = |i: usize| w[(64 * i + from) * row..][..32 * row].to_vec();
                (0..width / 32).flat_map(turn).collect::<Vec<u8>>()
            });
            let x = activations(&mut rng, all, k);
            for (isa, pool) in paths(&[1, 3]) {
                let pack = |n, blocks: &[u8]| PackedQuant::from_ggml(kind, n, k, blocks, &pool).unwrap();
                let (w, gate, up) = (pack(2 * width, &w), pack(width, &gate), pack(width, &up));
                for rows in [1, 2, 3, 5, 17, all] {
                    let mut quant = QuantRows::new();
                    quant.set(isa, &pool, &x[..rows * k], k);
                    let [gate, up] = [&gate, &up].map(|w| {
                        let mut y = vec![0.0; rows * width];
                        matmul_quant(isa, &pool, &quant, w, &mut y, width, false);
                        y
                    });
                    for activation in [Activation::Silu, Activation::GeluTanh] {
                        let (mut want, mut got) = (vec![0; rows * width], vec![1; rows * width]);
                        gate_mul(isa, &pool, activation, &gate, &up, &mut want);
                        gated_quant(isa, &pool, &quant, &w, activation, RowsMut::Bf16(&mut got));
                        assert!(got == want, "{isa} {kind} {rows}x{k}x{width} {activation:?}");
                        // And as the next matrix reads them.
                        let bits = want;
                        let [mut want, mut got] = [(); 2].map(|_| QuantRows::new());
                        want.set(isa, &pool, &bits, width);
                        gated_quant(isa, &pool, &quant, &w, activation, RowsMut::Quant(&mut got));
                        assert!(got.same_bits(&want), "{isa} {kind} {rows}x{k}x{width} {activation:?}, quantised");
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_not_finite_stays_in_its_row_and_column() {
    let mut rng = Rng(6);
    for kind in QuantKind::ALL {
        let (n, k, rows) = (20, 512, 7);
        let mut blocks = blocks(&mut rng, kind, n * k / kind.block_len());
        let x = activations(&mut rng, rows, k);
        let mut bad = x.clone();
        bad[3 * k + 5] = bf16::from_f32(f32::NAN);
        bad[4 * k + 200] = bf16::from_f32(f32::INFINITY);
        bad[5 * k..6 * k].fill(bf16::from_f32(1e-40));
        let row = blocks.len() / n;
        for (isa, pool) in paths(&[1]) {
            let multiply = |blocks: &[u8], x: &[u16]| {
                let w = PackedQuant::from_ggml(kind, n, k, blocks, &pool).unwrap();
                let (mut quant, mut y) = (QuantRows::new(), vec![0.0; rows * n]);
                quant.set(isa, &pool, x, k);
                matmul_quant(isa, &pool, &quant, &w, &mut y, n, false);
                y
            };
            let clean = multiply(&blocks, &x);
            let y = multiply(&blocks, &bad);
            assert!(y[3 * n..5 * n].iter().all(|y| y.is_nan()), "{isa} {kind}");
            assert!(y[5 * n..6 * n].iter().all(|y| *y == 0.0), "{isa} {kind}");
            for r in [0, 1, 2, 6] {
                assert_eq!(bits(&y[r * n..(r + 1) * n]), bits(&clean[r * n..(r + 1) * n]), "{isa} {kind}");
            }
            // An infinite scale, and one that is not a number.
            let sane = blocks.clone();
            for (column, half) in [(2, 0x7c00_u16), (17, 0x7e00)] {
                let at = column * row + scales(kind)[0];
                blocks[at..at + 2].copy_from_slice(&half.to_le_bytes());
            }
            let y = multiply(&blocks, &x);
            for (i, (y, clean)) in y.iter().zip(&clean).enumerate() {
                let same = if [2, 17].contains(&(i % n)) { !y.is_finite() } else { y.to_bits() == clean.to_bits() };
                assert!(same, "{isa} {kind}: output {i} is {y}");
            }
            blocks = sane;
        }
    }
}

/// Each producer of quantised rows, and gates, with what is not finite, beside the steps one by one.
#[test]
fn producers_quantise_what_is_not_finite_as_the_steps_do() {
    let (k, width, rows) = (256, 64, 5);
    let mut rng = Rng(8);
    let w = blocks(&mut rng, QuantKind::Q4K, 2 * width);
    let mut x = widen(&activations(&mut rng, rows, k));
    x[7] = f32::NAN;
    x[k + 40] = f32::INFINITY;
    x[2 * k..2 * k + 64].fill(1e-40);
    let ones = vec![1.0; k];
    for (isa, pool) in paths(&[1, 2]) {
        let [mut want, mut got] = [(); 2].map(|_| QuantRows::new());
        let mut bits = vec![0; rows * k];
        rms_norm(isa, &pool, &x, &ones, 1e-5, RowsMut::Bf16(&mut bits));
        want.set(isa, &pool, &bits, k);
        rms_norm(isa, &pool, &x, &ones, 1e-5, RowsMut::Quant(&mut got));
        assert!(got.same_bits(&want), "{isa}: norms");
        want.set(isa, &pool, &narrow(&x), k);
        round(isa, &pool, &x, k, RowsMut::Quant(&mut got));
        assert!(got.same_bits(&want), "{isa}: rounding");
        let w = PackedQuant::from_ggml(QuantKind::Q4K, 2 * width, k, &w, &pool).unwrap();
        let mut gated = vec![0; rows * width];
        gated_quant(isa, &pool, &got, &w, Activation::Silu, RowsMut::Bf16(&mut gated));
        let is_number = |row: usize| !bf16::to_f32(gated[row * width]).is_nan();
        assert_eq!([0, 1, 2, 3, 4].map(is_number), [false, false, true, true, true], "{isa}");
        let [mut want, mut next] = [(); 2].map(|_| QuantRows::new());
        want.set(isa, &pool, &gated, width);
        gated_quant(isa, &pool, &got, &w, Activation::Silu, RowsMut::Quant(&mut next));
        assert!(next.same_bits(&want), "{isa}: gates");
    }
}

#[test]
fn gates_that_do_not_fit_are_refused() {
    let pool = Pool::new(1);
    let isa = Isa::Portable;
    let run = |n: usize, k: usize, out: usize, of: Isa| {
        let call = std::panic::AssertUnwindSafe(|| {
            let w = PackedQuant::from_ggml(QuantKind::Q8_0, n, 64, &vec![0; n * 2 * 34], &pool).unwrap();
            let (mut quant, mut out) = (QuantRows::new(), vec![0; out]);
            quant.set(of, &pool, &vec![0; 2 * k], k);
            gated_quant(isa, &pool, &quant, &w, Activation::Silu, RowsMut::Bf16(&mut out));
        });
        std::panic::catch_unwind(call).is_ok()
    };
    assert!(run(64, 64, 64, isa) && run(128, 64, 128, isa));
    for (n, k, out) in [(96, 64, 96), (32, 64, 32), (64, 32, 64), (64, 64, 63), (64, 64, 65)] {
        assert!(!run(n, k, out, isa), "{n} {k} {out}");
    }
    // Rows for another path.
    for other in Isa::available().into_iter().filter(|other| *other != isa) {
        assert!(!run(64, 64, 64, other), "{other}");
    }
    let odd = std::panic::AssertUnwindSafe(|| round(isa, &pool, &[0.0; 80], 40, RowsMut::Quant(&mut QuantRows::new())));
    assert!(std::panic::catch_unwind(odd).is_err(), "rows that are no whole groups");
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let pool = Pool::new(1);
    let w = PackedQuant::from_ggml(QuantKind::Q8_0, 3, 64, &[0; 6 * 34], &pool).unwrap();
    let run = |k: usize, y: usize, stride: usize| {
        let call = std::panic::AssertUnwindSafe(|| {
            let mut quant = QuantRows::new();
            quant.set(Isa::Portable, &pool, &vec![0; 2 * k], k);
            matmul_quant(Isa::Portable, &pool, &quant, &w, &mut vec![0.0; y], stride, false);
        });
        std::panic::catch_unwind(call).is_ok()
    };
    assert!(run(64, 6, 3) && run(64, 8, 5));
    for (k, y, stride) in [(32, 6, 3), (96, 6, 3), (48, 6, 3), (64, 5, 3), (64, 7, 5), (64, 6, 2), (64, 6, usize::MAX)]
    {
        assert!(!run(k, y, stride), "{k} {y} {stride}");
    }
}
