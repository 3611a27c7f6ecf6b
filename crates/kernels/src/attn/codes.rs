//! kv8: what meets the codes of a sealed chunk.
//!
//! A query row times K's scales, and its weights times V's, become 16 bits under one f32 scale for row and chunk: half a
//! unit is 2^-16 of the row's largest, where bf16 would be off by 2^-9 of each. Codes are widened to 16 bits as they are
//! read, a pair to a word, and products are added up as integers, exactly: on every path they are the same.

use super::plan::AttnShape;
use super::tile::{Coded, EXPS, FACTORS, exponentials, reduce};
use crate::quant::dots::Dots;
use crate::simd::{Ask, LINE, PANEL};
use kvist_base::CHUNK;

/// Largest product that is told from nothing: of what is smaller the scale would be subnormal, and the inverse overflow.
const LEAST: f32 = 4e-34;

/// Largest product of a query with a scale that counts; what is more, or no number, becomes some number.
const MOST: f32 = 3e38;

/// Lines that are asked for with each query row.
const LINES: usize = 4;

/// Vectors of a row side by side.
const TOGETHER: usize = 4;

/// Largest of 16 bits of which `products` with codes still add up to 32.
fn largest_of(products: usize) -> f32 {
    (i32::MAX as usize / (127 * products)).min(i16::MAX as usize) as f32
}

/// Query rows `at..at + n` of the band times the scales of K, as the rows of the group in 16 bits, a padded row apart, and
/// what these stand for, over their values. Meanwhile lines from `next` on are asked for.
///
/// # Safety
/// As [`super::tile::group`].
#[inline(always)]
pub(super) unsafe fn queries<S: Dots>(
    coded: &Coded,
    shape: AttnShape,
    at: usize,
    n: usize,
    next: Option<*const u8>,
) -> [f32; FACTORS] {
    let (dim, padded) = (shape.head_dim, shape.padded());
    let mut largest = [0.0; FACTORS];
    // SAFETY: the caller's contract. The last vector of a row may be cut short; there is room for whole ones in `rows`.
    unsafe {
        for r in 0..n {
            let (q, out) = (coded.q.add((at + r) * shape.apart_f32()), coded.rows.add(r * padded));
            if let Some(next) = next {
                for line in r * LINES..(r + 1) * LINES {
                    S::prefetch(next.wrapping_add(line * LINE).cast());
                }
            }
            let (mut most, mut i) = (S::splat(0.0), 0);
            while i + TOGETHER * S::LANES <= dim {
                most = products::<S, TOGETHER>(q.add(i), coded.k_scales.add(i), out.add(i), most);
                i += TOGETHER * S::LANES;
            }
            while i + S::LANES <= dim {
                most = products::<S, 1>(q.add(i), coded.k_scales.add(i), out.add(i), most);
                i += S::LANES;
            }
            if i < dim {
                let x = S::mul(S::load_n(q.add(i), dim - i), S::load_n(coded.k_scales.add(i), dim - i));
                S::store(out.add(i), x);
                most = S::larger(x, most);
            }
            S::store(coded.spread.add(r * PANEL), most);
        }
        reduce::<S, true>(coded.spread, &mut largest, n);
        in_shorts::<S>(coded.rows, padded, dim, n, largest, largest_of(dim))
    }
}

/// Stores the products of `N` vectors; the largest magnitudes of their lanes, and of `most`.
///
/// # Safety
/// The ISA of `S` is available and the pointers are valid for so many.
#[inline(always)]
unsafe fn products<S: Dots, const N: usize>(a: *const f32, b: *const f32, out: *mut f32, mut most: S::F) -> S::F {
    // SAFETY: the caller's contract.
    unsafe {
        let mut x = [S::splat(0.0); N];
        for (i, x) in x.iter_mut().enumerate() {
            *x = S::mul(S::load(a.add(i * S::LANES)), S::load(b.add(i * S::LANES)));
            S::store(out.add(i * S::LANES), *x);
        }
        for x in x {
            most = S::larger(x, most);
        }
        most
    }
}

/// Replaces rows' scores by their weights, relative to their maxima `tops`, times the scales of V, in 16 bits, and returns
/// what these stand for, over their values. A row's sum of the weights is that of its lanes of `spread`.
///
/// # Safety
/// The ISA of `S` is available; `scores` is valid for the rows of the masks, and both `spread`s for those of a group.
#[inline(always)]
pub(super) unsafe fn weights<S: Dots>(
    coded: &Coded,
    scores: *mut f32,
    tops: &[f32; FACTORS],
    masks: &[u64],
    spread: *mut f32,
) -> [f32; FACTORS] {
    let mut largest = [0.0; FACTORS];
    // SAFETY: the caller's contract.
    unsafe {
        for (r, &mask) in masks.iter().enumerate() {
            let scores = scores.add(r * CHUNK);
            let (mut sum, mut most) = (S::splat(0.0), S::splat(0.0));
            let end = if mask == 0 { 0 } else { CHUNK };
            for i in (0..end).step_by(EXPS * S::LANES) {
                for (j, &e) in exponentials::<S>(scores.add(i), tops[r]).iter().enumerate() {
                    let at = i + j * S::LANES;
                    let weight = S::mul(e, S::load(coded.v_scales.add(at)));
                    S::store(scores.add(at), weight);
                    most = S::max(most, weight);
                    sum = S::add_up(sum, e);
                }
            }
            S::store(spread.add(r * PANEL), sum);
            S::store(coded.spread.add(r * PANEL), most);
        }
        reduce::<S, true>(coded.spread, &mut largest, masks.len());
        in_shorts::<S>(scores, CHUNK, CHUNK, masks.len(), largest, largest_of(CHUNK))
    }
}

/// `n` rows of `len` numbers, `row` apart, in 16 bits in the place of the first half of each, so that `largest` becomes
/// `most`, and what they stand for, over their values.
///
/// # Safety
/// The ISA of `S` is available and the rows are valid for whole vectors.
#[inline(always)]
unsafe fn in_shorts<S: Dots>(
    rows: *mut f32,
    row: usize,
    len: usize,
    n: usize,
    largest: [f32; FACTORS],
    most: f32,
) -> [f32; FACTORS] {
    let (mut inverse, mut scales) = ([0.0; FACTORS], [0.0; FACTORS]);
    // SAFETY: the caller's contract. A vector is read before its half is written, and what is written lies before it.
    unsafe {
        for i in (0..n).step_by(S::LANES) {
            let largest = S::min(S::load(largest.as_ptr().add(i)), S::splat(MOST));
            let over = S::keep_ge(largest, S::splat(LEAST), S::div(S::splat(most), largest));
            S::store(inverse.as_mut_ptr().add(i), over);
            let scale = S::keep_ge(largest, S::splat(LEAST), S::mul(largest, S::splat(1.0 / most)));
            S::store(scales.as_mut_ptr().add(i), scale);
        }
        for (r, &inverse) in inverse[..n].iter().enumerate() {
            let row = rows.add(r * row);
            let (inverse, to) = (S::splat(inverse), row.cast::<u32>());
            let mut i = 0;
            while i + S::LANES < len {
                let x = [S::mul(S::load(row.add(i)), inverse), S::mul(S::load(row.add(i + S::LANES)), inverse)];
                S::store_two_shorts(to.add(i / 2), x);
                i += 2 * S::LANES;
            }
            if i < len {
                S::store_shorts(to.add(i / 2), S::mul(S::load(row.add(i)), inverse));
            }
        }
    }
    scales
}

/// Adds the products of `R` rows of x, `row` words apart, with `V` vectors of codes, of which steps are `stride` pairs
/// apart.
///
/// # Safety
/// As [`crate::simd::dots`].
#[inline(always)]
pub(super) unsafe fn code_dots<S: Dots, const R: usize, const V: usize, A: Ask>(
    sums: &mut [[S::I; V]; R],
    codes: *const i8,
    stride: usize,
    x: *const u32,
    row: usize,
    pairs: usize,
    ask: A,
) {
    // SAFETY: the caller's contract; any address may be asked for.
    unsafe {
        for i in 0..pairs {
            ask.ask::<S>(2 * V * S::LANES, i, pairs);
            S::step_shorts(sums, codes.add(2 * i * stride), x.add(i), row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::simd::{Nothing, isa_entry};

    /// Pairs of codes of a step, and steps.
    const WIDTH: usize = 2 * PANEL;
    const STEPS: usize = 9;
    const ROWS: usize = 3;

    type Sums = [[f32; WIDTH]; ROWS];
    type X = [[f32; WIDTH]; ROWS];
    type Codes = [i8; 2 * WIDTH * STEPS];

    isa_entry!(
        fn sums_of(codes: &Codes, x: &mut X, largest: &mut [f32; FACTORS], sums: &mut Sums) = all_sums,
        with avx512vnni
    );

    /// `largest` becomes what the rows stand for.
    #[inline(always)]
    unsafe fn all_sums<S: Dots>(codes: &Codes, x: &mut X, largest: &mut [f32; FACTORS], sums: &mut Sums) {
        let x = x.as_mut_ptr().cast::<f32>();
        // SAFETY: all of them are as long as that.
        unsafe {
            *largest = in_shorts::<S>(x, WIDTH, 2 * STEPS, ROWS, *largest, largest_of(2 * STEPS));
            for column in (0..WIDTH).step_by(2 * S::LANES) {
                let codes = codes.as_ptr().add(2 * column);
                let mut found = [[S::four(&0); 2]; ROWS];
                code_dots::<S, ROWS, 2, _>(&mut found, codes, WIDTH, x.cast(), WIDTH, STEPS, Nothing);
                for (sums, found) in sums.iter_mut().zip(&found) {
                    for (v, &sum) in found.iter().enumerate() {
                        S::store(sums.as_mut_ptr().add(column + v * S::LANES), S::float(sum));
                    }
                }
            }
        }
    }

    /// All codes, times numbers of all sizes up to a largest one; a row of zeros; one that is too small to count.
    #[test]
    fn sums_are_those_of_the_rounded_rows_on_every_path() {
        let codes: Codes = std::array::from_fn(|i| ((i * 83) as u8 as i8).max(-127));
        let first = std::array::from_fn(|i| (i as f32 * 1.37 - 20.0) * 10_f32.powi(-(i as i32 % 6)));
        let x: X = [first, [0.0; WIDTH], [1e-36; WIDTH]];
        let mut largest = [0.0; FACTORS];
        for (x, largest) in x.iter().zip(&mut largest) {
            *largest = x[..2 * STEPS].iter().fold(0.0, |a: f32, x| a.max(x.abs()));
        }
        let short = |x: f32, largest: f32| (x * (32_767.0 / largest)).round_ties_even() as i64;
        assert_eq!(first[..2 * STEPS].iter().map(|x| short(*x, largest[0]).abs()).max(), Some(32_767));
        let want: [f32; WIDTH] = std::array::from_fn(|column| {
            let product =
                |i: usize| short(first[i], largest[0]) * i64::from(codes[(i / 2 * WIDTH + column) * 2 + i % 2]);
            (0..2 * STEPS).map(product).sum::<i64>() as f32
        });
        for isa in Isa::available() {
            let (mut x, mut scales, mut sums) = (x, largest, Sums::default());
            // SAFETY: `isa` is available.
            unsafe { sums_of(isa, &codes, &mut x, &mut scales, &mut sums) };
            assert_eq!(sums, [want, [0.0; WIDTH], [0.0; WIDTH]], "{isa}");
            assert!((scales[0] * 32_767.0 / largest[0] - 1.0).abs() < 1e-6, "{isa}");
        }
    }

    #[test]
    fn sums_fit_32_bits() {
        for products in [2, 64, 128, 512, 516, 600, 4096] {
            assert!(largest_of(products) as usize * 127 * products <= i32::MAX as usize, "{products}");
        }
        assert_eq!(largest_of(512), 32_767.0);
    }
}
