//! Rows in 16 bits, and their products with codes of 16 bits or of 8.

use kvist_base::CHUNK;

use super::ahead::Pace;
use super::tile::{EXPS, FACTORS, exponentials, reduce};
use crate::quant::dots::Dots;
use crate::simd::{Ask, PANEL};

/// Smallest largest element of a row that is told from nothing: of what is smaller the scale would be subnormal, and the
/// inverse overflow.
pub(super) const LEAST: f32 = 4e-34;

/// Largest element that counts; what is more, or no number, becomes some number.
pub(super) const MOST: f32 = 3e38;

/// Largest of 16 bits of which `products` with codes of at most `code` in size still add up to 32.
pub(super) fn largest_of(products: usize, code: usize) -> f32 {
    (i32::MAX as usize / (code * products)).min(i16::MAX as usize) as f32
}

/// Replaces rows' scores by their weights, relative to their maxima `tops`, times the scales of V, in 16 bits, and returns
/// what these stand for, over their values, if none of V's codes is larger than `code`. A row's sum of the weights is that of
/// its lanes of `spread`. With each row it is asked for what is due.
///
/// # Safety
/// The ISA of `S` is available; `scores` is valid for the rows of the masks, `spread` and `sizes` for those of a group, and
/// `v_scales` for a chunk.
#[inline(always)]
pub(super) unsafe fn weights<S: Dots>(
    (v_scales, code): (*const f32, usize),
    scores: *mut f32,
    tops: &[f32; FACTORS],
    masks: &[u64],
    (spread, sizes): (*mut f32, *mut f32),
    pace: &Pace,
) -> [f32; FACTORS] {
    let mut largest = [0.0; FACTORS];
    // SAFETY: the caller's contract.
    unsafe {
        for (r, &mask) in masks.iter().enumerate() {
            let scores = scores.add(r * CHUNK);
            // As many lanes on every path.
            let (mut sums, mut most) = ([S::splat(0.0); EXPS], S::splat(0.0));
            let mut of = const { PANEL / S::LANES };
            let end = if mask == 0 { 0 } else { CHUNK };
            pace.with_row::<S>();
            for i in (0..end).step_by(EXPS * S::LANES) {
                for (j, &e) in exponentials::<S>(scores.add(i), tops[r]).iter().enumerate() {
                    let at = i + j * S::LANES;
                    let weight = S::mul(e, S::load(v_scales.add(at)));
                    S::store(scores.add(at), weight);
                    most = S::max(most, weight);
                    sums[j % of] = S::add(sums[j % of], e);
                }
            }
            while of > 1 {
                of /= 2;
                for j in 0..of {
                    sums[j] = S::add(sums[j], sums[j + of]);
                }
            }
            S::store(spread.add(r * PANEL), sums[0]);
            S::store(sizes.add(r * PANEL), most);
        }
        reduce::<S, true>(sizes, &mut largest, masks.len());
        let (inverse, scales) = units::<S>(largest, masks.len(), largest_of(CHUNK, code));
        for (r, &inverse) in inverse[..masks.len()].iter().enumerate() {
            // Vectors are read before their halves are written, and what is written lies before them.
            let row = scores.add(r * CHUNK);
            let inverse = S::splat(inverse);
            for i in (0..CHUNK).step_by(2 * S::LANES) {
                let x = [S::mul(S::load(row.add(i)), inverse), S::mul(S::load(row.add(i + S::LANES)), inverse)];
                S::store_two_shorts(row.cast::<u32>().add(i / 2), x);
            }
        }
        scales
    }
}

/// What each of `n` rows is multiplied by so that its `largest` becomes `most`, and what ones of the product stand for.
///
/// # Safety
/// The ISA of `S` is available.
#[inline(always)]
pub(super) unsafe fn units<S: Dots>(largest: [f32; FACTORS], n: usize, most: f32) -> ([f32; FACTORS], [f32; FACTORS]) {
    let (mut inverse, mut scales) = ([0.0; FACTORS], [0.0; FACTORS]);
    // SAFETY: whole vectors of the arrays.
    unsafe {
        for i in (0..n).step_by(S::LANES) {
            let largest = S::min(S::load(largest.as_ptr().add(i)), S::splat(MOST));
            let over = S::keep_ge(largest, S::splat(LEAST), S::div(S::splat(most), largest));
            S::store(inverse.as_mut_ptr().add(i), over);
            let scale = S::keep_ge(largest, S::splat(LEAST), S::mul(largest, S::splat(1.0 / most)));
            S::store(scales.as_mut_ptr().add(i), scale);
        }
    }
    (inverse, scales)
}

/// Adds the products of `R` rows of x, `ROW` words apart, with `V` vectors of codes or of 16 bits, of which steps are `stride`
/// pairs apart. In each step it is asked for what is due by `asked` bytes of them.
///
/// # Safety
/// As [`crate::simd::dots`].
#[inline(always)]
pub(super) unsafe fn short_dots<
    S: Dots,
    const CODES: bool,
    const ROW: usize,
    const R: usize,
    const V: usize,
    A: Ask,
>(
    sums: &mut [[S::I; V]; R],
    w: *const u8,
    stride: usize,
    x: *const u32,
    pairs: usize,
    (ask, asked): (A, usize),
) {
    let apart = stride * if CODES { 2 } else { 4 };
    // SAFETY: the caller's contract; any address may be asked for.
    unsafe {
        for i in (0..pairs - pairs % 2).step_by(2) {
            ask.ask_two::<S>(asked, i, pairs);
            S::two_steps_shorts::<CODES, ROW, R, V>(sums, w.add(i * apart), apart, x.add(i));
        }
        if !pairs.is_multiple_of(2) {
            let i = pairs - 1;
            ask.ask::<S>(asked, i, pairs);
            S::step_shorts::<CODES, ROW, R, V>(sums, w.add(i * apart), x.add(i));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::codec::{MOST_OF_8, MOST_OF_V};
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
            let (inverse, scales) = units::<S>(*largest, ROWS, largest_of(2 * STEPS, 127));
            *largest = scales;
            for (r, &inverse) in inverse[..ROWS].iter().enumerate() {
                for i in (0..WIDTH).step_by(S::LANES) {
                    let row = x.add(r * WIDTH);
                    S::store_shorts(row.cast::<u32>().add(i / 2), S::mul(S::load(row.add(i)), S::splat(inverse)));
                }
            }
            let mut wide = [0; WIDTH * STEPS];
            for i in (0..WIDTH * STEPS).step_by(S::LANES) {
                S::store_words(wide.as_mut_ptr().add(i), S::widened(codes.as_ptr().add(2 * i).cast()));
            }
            for column in (0..WIDTH).step_by(2 * S::LANES) {
                let (codes, wide) = (codes.as_ptr().add(2 * column), wide.as_ptr().add(column));
                let (mut found, mut of_wide) = ([[S::four(&0); 2]; ROWS], [[S::four(&0); 2]; ROWS]);
                let asks = (Nothing, 0);
                short_dots::<S, true, WIDTH, ROWS, 2, _>(&mut found, codes.cast(), WIDTH, x.cast(), STEPS, asks);
                short_dots::<S, false, WIDTH, ROWS, 2, _>(&mut of_wide, wide.cast(), WIDTH, x.cast(), STEPS, asks);
                for ((sums, found), of_wide) in sums.iter_mut().zip(&found).zip(&of_wide) {
                    for (v, (&sum, &wide)) in found.iter().zip(of_wide).enumerate() {
                        S::store(sums.as_mut_ptr().add(column + v * S::LANES), S::float(sum));
                        assert_eq!(S::lanes(S::float(sum)), S::lanes(S::float(wide)), "{}", S::ISA);
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
        for code in [MOST_OF_8, MOST_OF_V] {
            for products in [2, 64, 128, 512, 516, 600, 4096] {
                assert!(largest_of(products, code) as usize * code * products <= i32::MAX as usize, "{products}");
            }
        }
        assert_eq!((largest_of(512, MOST_OF_8), largest_of(CHUNK, MOST_OF_V)), (32_767.0, 8_194.0));
    }
}
