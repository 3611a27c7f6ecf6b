use super::block::{Block, scale_and_min};
use super::packed::GROUP;
use super::{QuantKind, QuantRows};

/// The weights of `blocks`, whole blocks of a format, in ggml's f32 arithmetic.
///
/// # Panics
/// When the lengths do not fit.
pub fn dequantise(kind: QuantKind, blocks: &[u8], out: &mut [f32]) {
    assert!(blocks.len().is_multiple_of(kind.block_bytes()), "{} bytes of {kind}", blocks.len());
    assert_eq!(out.len(), blocks.len() / kind.block_bytes() * kind.block_len());
    let mut block = Block::new();
    for (bytes, out) in blocks.chunks_exact(kind.block_bytes()).zip(out.chunks_exact_mut(kind.block_len())) {
        block.parse(kind, bytes);
        block.weights(kind, out);
    }
}

/// One output of [`crate::matmul_quant`], bit for bit: row `row` of x times the row of weights in `blocks`. `fused`
/// where the path has a fused multiply-add.
///
/// # Panics
/// When the lengths do not fit.
pub fn dot_quant(x: &QuantRows, row: usize, kind: QuantKind, blocks: &[u8], fused: bool) -> f32 {
    assert_eq!(blocks.len() / kind.block_bytes() * kind.block_len(), x.k());
    let fma = |a: f32, b: f32, c: f32| if fused { a.mul_add(b, c) } else { a * b + c };
    let groups = &x.groups()[row * x.k() / GROUP..][..x.k() / GROUP];
    let per_block = kind.block_len() / GROUP;
    let (mut acc, mut block) = (0.0, Block::new());
    for (bytes, groups) in blocks.chunks_exact(kind.block_bytes()).zip(groups.chunks_exact(per_block)) {
        block.parse(kind, bytes);
        for (i, codes) in block.codes[..kind.block_len()].chunks_exact(kind.scale_len()).enumerate() {
            let first = i * kind.scale_len();
            let group = &groups[first / GROUP];
            let x = group.codes.iter().flat_map(|four| four.to_le_bytes()).skip(first % GROUP);
            let centred =
                codes.iter().map(|&w| if kind.bits() == 8 { w as i8 as i32 } else { w as i32 - kind.centre() as i32 });
            let sum: i32 = centred.zip(x).map(|(w, x)| w * x as i8 as i32).sum();
            let (scale, min) = scale_and_min(kind, |word| block.heads[word], i);
            acc = fma(sum as f32, scale * group.scale, acc);
            if kind.has_min() {
                acc = fma(kind.centre() as f32 * scale - min, group.sum, acc);
            }
        }
    }
    acc
}
