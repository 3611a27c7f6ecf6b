//! Rows in 16 bits, and their products with codes of 16 bits or of 8.

use kvist_base::CHUNK;

use super::ahead::Pace;
use super::tile::{EXPS, FACTORS, Form};
use super::values::Values;
use crate::codec::{MOST_OF_8, MOST_OF_V};
use crate::quant::dots::Dots;
use crate::simd::{Ask, PANEL, exp2_times};

/// Words from what codes of V meet first in a row of weights to what they meet then (see [`Dots::for_codes`]).
pub(super) const SECOND: usize = CHUNK / 4;

/// Smallest largest element of a row that is told from nothing: of what is smaller the scale would be subnormal, and the
/// inverse overflow.
pub(super) const LEAST: f32 = 4e-34;

/// Largest element that counts; what is more, or no number, becomes some number.
pub(super) const MOST: f32 = 3e38;

/// Largest of 16 bits of which `products` with codes of at most `code` in size still add up to 32.
pub(super) const fn largest_of(products: usize, code: usize) -> f32 {
    let most = i32::MAX as usize / (code * products);
    if most < i16::MAX as usize { most as f32 } else { i16::MAX as f32 }
}

/// What the largest weight of a row becomes in 16 bits, beside codes of V in this form.
pub(super) const fn one<F: Form>() -> f32 {
    largest_of(CHUNK, if F::CODES { MOST_OF_8 } else { MOST_OF_V })
}

/// Replaces `n` rows' scores by their weights in 16 bits, relative to their maxima `tops`. A row's sum of the weights, without
/// the scales of V, is that of its lanes of `spread`. With each row it is asked for what is due.
///
/// # Safety
/// The ISA of `S` is available; `scores` is valid for so many rows, and `spread` for those of a group.
#[inline(always)]
pub(super) unsafe fn weights<S: Dots, F: Form>(
    values: &Values,
    scores: *mut f32,
    tops: &[f32; FACTORS],
    n: usize,
    spread: *mut f32,
    pace: &Pace,
) {
    // Rows side by side, where there are registers for them.
    const TOGETHER: usize = 2;
    let whole = if S::LANES == PANEL { n / TOGETHER * TOGETHER } else { 0 };
    // SAFETY: the caller's contract.
    unsafe {
        for r in (0..whole).step_by(TOGETHER) {
            for _ in 0..TOGETHER {
                pace.with_row::<S>();
            }
            weights_of::<S, F, TOGETHER>(values, scores.add(r * CHUNK), &tops[r..], spread.add(r * PANEL));
        }
        for r in whole..n {
            pace.with_row::<S>();
            weights_of::<S, F, 1>(values, scores.add(r * CHUNK), &tops[r..], spread.add(r * PANEL));
        }
    }
}

/// [`weights`] of `R` rows.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn weights_of<S: Dots, F: Form, const R: usize>(
    values: &Values,
    scores: *mut f32,
    tops: &[f32],
    spread: *mut f32,
) {
    // From one vector to the next: codes meet what lies in quarters of a row.
    let apart = const { if F::CODES { SECOND } else { S::LANES } };
    let (step, end) = const { if F::CODES { (S::LANES, SECOND) } else { (EXPS * S::LANES, CHUNK) } };
    let polynomial = const { &exp2_times(one::<F>()) };
    // As many lanes on every path.
    let lanes = const { PANEL / S::LANES };
    // SAFETY: passed on.
    unsafe {
        let mut sums = [[S::splat(0.0); EXPS]; R];
        for i in (0..end).step_by(step) {
            let mut e = [[S::splat(0.0); EXPS]; R];
            for (r, e) in e.iter_mut().enumerate() {
                for (j, e) in e.iter_mut().enumerate() {
                    *e = S::sub(S::load(scores.add(r * CHUNK + i + j * apart)), S::splat(tops[r]));
                }
            }
            S::coarse_exp2_each(&mut e, polynomial);
            for (r, (e, sums)) in e.iter().zip(&mut sums).enumerate() {
                for (j, &e) in e.iter().enumerate() {
                    let at = i + j * apart;
                    let sum = &mut sums[at / S::LANES % lanes];
                    *sum = S::fma(e, S::load(values.inverse.as_ptr().add(at)), *sum);
                }
                // What is written lies where vectors have been read.
                let row = scores.add(r * CHUNK).cast::<u32>();
                if F::CODES {
                    let [first, second] = S::for_codes::<false>(*e, S::splat(1.0));
                    S::store_words(row.add(i), first);
                    S::store_words(row.add(SECOND + i), second);
                } else {
                    for (j, &pair) in e.as_chunks().0.iter().enumerate() {
                        S::store_words(row.add(i / 2 + j * S::LANES), S::shorts(pair));
                    }
                }
            }
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            let mut of = lanes;
            while of > 1 {
                of /= 2;
                for j in 0..of {
                    sums[j] = S::add(sums[j], sums[j + of]);
                }
            }
            S::store(spread.add(r * PANEL), sums[0]);
        }
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

/// Adds the products of `R` rows of x, `ROW` words apart, with `V` vectors of pairs of 16 bits, of which steps are `stride`
/// pairs apart. In each step it is asked for what is due by `asked` bytes of them.
///
/// # Safety
/// As [`crate::simd::dots`].
#[inline(always)]
pub(super) unsafe fn short_dots<S: Dots, const ROW: usize, const R: usize, const V: usize, A: Ask>(
    sums: &mut [[S::I; V]; R],
    w: *const u8,
    stride: usize,
    x: *const u32,
    pairs: usize,
    (ask, asked): (A, usize),
) {
    let apart = 4 * stride;
    // SAFETY: the caller's contract; any address may be asked for.
    unsafe {
        let within = const { A::ALL && S::ASKS_WITHIN && V == 4 && R >= 4 };
        let (mut lines, step, line) = if within { ask.lines() } else { (w, 0, 0) };
        for i in (0..pairs - pairs % 2).step_by(2) {
            if within {
                let asked = ([lines, lines.wrapping_add(step)], line);
                S::two_steps_asking::<ROW, R, V>(sums, w.add(i * apart), apart, x.add(i), asked);
                lines = lines.wrapping_add(2 * step);
                continue;
            }
            ask.ask_two::<S>(asked, i, pairs);
            S::two_steps_shorts::<ROW, R, V>(sums, w.add(i * apart), apart, x.add(i));
        }
        if !pairs.is_multiple_of(2) {
            let i = pairs - 1;
            ask.ask::<S>(asked, i, pairs);
            S::step_shorts::<ROW, R, V>(sums, w.add(i * apart), x.add(i));
        }
    }
}

/// The same with fours of codes, of which a step has a pair of either half of the rows: what these meet is `SECOND` words apart.
/// Queries without sign are too large, and their sums begin with what makes up for it. `begin` is that, or with `FINDS`, which
/// only [`Dots::DIGITS`] have, becomes that.
///
/// # Safety
/// As [`short_dots`].
#[inline(always)]
pub(super) unsafe fn code_dots<
    S: Dots,
    const FINDS: bool,
    const ROW: usize,
    const SECOND: usize,
    const R: usize,
    const V: usize,
    A: Ask,
>(
    (sums, begin): (&mut [[S::I; V]; R], &mut [S::I; V]),
    w: *const u8,
    stride: usize,
    x: *const u32,
    pairs: usize,
    (ask, asked): (A, usize),
) {
    let fours = pairs.div_ceil(2);
    // SAFETY: as above.
    unsafe {
        let mut more = [S::four(&0); V];
        let whole = fours - fours % 2;
        for i in (0..whole).step_by(2) {
            ask.ask_two::<S>(asked, i, pairs);
            first_step::<S, FINDS, ROW, R, V>(sums, &mut more, w.add(4 * i * stride), x.add(i));
            first_step::<S, FINDS, ROW, R, V>(sums, &mut more, w.add(4 * (i + 1) * stride), x.add(i + 1));
        }
        if whole < fours {
            first_step::<S, FINDS, ROW, R, V>(sums, &mut more, w.add(4 * whole * stride), x.add(whole));
        }
        if FINDS {
            for (v, more) in more.into_iter().enumerate() {
                begin[v] = S::minus(begin[v], more);
                sums.iter_mut().for_each(|sums| sums[v] = S::minus(sums[v], more));
            }
        }
        if S::DIGITS {
            sums.iter_mut().flatten().for_each(|sum| *sum = S::shift(*sum, 8));
        }
        let x = x.add(SECOND);
        for i in (0..whole).step_by(2) {
            ask.ask_two::<S>(asked, fours + i, pairs);
            S::step_codes::<true, ROW, R, V>(sums, w.add(4 * i * stride), x.add(i));
            S::step_codes::<true, ROW, R, V>(sums, w.add(4 * (i + 1) * stride), x.add(i + 1));
        }
        if whole < fours {
            S::step_codes::<true, ROW, R, V>(sums, w.add(4 * whole * stride), x.add(whole));
        }
    }
}

/// A step of [`code_dots`] with the first of what codes meet.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn first_step<S: Dots, const FINDS: bool, const ROW: usize, const R: usize, const V: usize>(
    sums: &mut [[S::I; V]; R],
    more: &mut [S::I; V],
    w: *const u8,
    x: *const u32,
) {
    // SAFETY: passed on.
    unsafe {
        S::step_codes::<false, ROW, R, V>(sums, w, x);
        if FINDS {
            for (v, more) in more.iter_mut().enumerate() {
                *more = S::add_codes(*more, w.add(4 * v * S::LANES));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::simd::{Nothing, isa_entry};

    /// Columns of fours of codes, and rows of them: an odd number.
    const WIDTH: usize = 2 * PANEL;
    const FOURS: usize = 5;
    const ROWS: usize = 3;

    type Sums = [[f32; WIDTH]; ROWS];
    /// With room for a vector behind the last quarter.
    type X = [[f32; 4 * FOURS + PANEL]; ROWS];
    type Codes = [[[i8; 4]; WIDTH]; FOURS];

    isa_entry!(
        fn sums_of(codes: &Codes, x: &X, largest: &mut [f32; FACTORS], sums: &mut Sums) = all_sums,
        with avx512vnni
    );

    /// `largest` becomes what the rows stand for.
    #[inline(always)]
    unsafe fn all_sums<S: Dots>(codes: &Codes, x: &X, largest: &mut [f32; FACTORS], sums: &mut Sums) {
        let mut rows = [[0_u32; 2 * PANEL]; ROWS];
        let codes = codes.as_ptr().cast::<u8>();
        // SAFETY: all of them are as long as that.
        unsafe {
            let (inverse, scales) = units::<S>(*largest, ROWS, largest_of(4 * FOURS, 127));
            *largest = scales;
            for (r, &inverse) in inverse[..ROWS].iter().enumerate() {
                for i in (0..FOURS).step_by(S::LANES) {
                    let mut quarters = [S::splat(0.0); 4];
                    for (quarter, to) in quarters.iter_mut().enumerate() {
                        *to = S::load(x[r].as_ptr().add(quarter * FOURS + i));
                    }
                    let [first, second] = S::for_codes::<true>(quarters, S::splat(inverse));
                    S::store_words(rows[r].as_mut_ptr().add(i), first);
                    S::store_words(rows[r].as_mut_ptr().add(PANEL + i), second);
                }
            }
            let (rows, asks) = (rows.as_ptr().cast(), (Nothing, 0));
            for column in (0..WIDTH).step_by(2 * S::LANES) {
                let codes = codes.add(4 * column);
                let (mut begin, mut finds) = ([S::four(&0); 2], [[S::four(&0); 2]; ROWS]);
                if S::DIGITS {
                    let both = (&mut finds, &mut begin);
                    code_dots::<S, true, WIDTH, PANEL, ROWS, 2, _>(both, codes, WIDTH, rows, 2 * FOURS, asks);
                }
                let mut found = [begin; ROWS];
                let both = (&mut found, &mut begin);
                code_dots::<S, false, WIDTH, PANEL, ROWS, 2, _>(both, codes, WIDTH, rows, 2 * FOURS, asks);
                for (r, sums) in sums.iter_mut().enumerate() {
                    for v in 0..2 {
                        let [sum, finds] = [found, finds].map(|of| S::float(of[r][v]));
                        S::store(sums.as_mut_ptr().add(column + v * S::LANES), sum);
                        assert!(!S::DIGITS || S::lanes(sum) == S::lanes(finds), "{}: what sums begin with", S::ISA);
                    }
                }
            }
        }
    }

    /// All codes, times numbers of all sizes up to a largest one; a row of zeros; one that is too small to count.
    #[test]
    fn sums_are_those_of_the_rounded_rows_on_every_path() {
        let code = |i: usize| ((i * 83) as u8 as i8).max(-127);
        let codes: Codes =
            std::array::from_fn(|f| std::array::from_fn(|c| std::array::from_fn(|b| code((f * WIDTH + c) * 4 + b))));
        let first = std::array::from_fn(|i| (i as f32 * 1.37 - 20.0) * 10_f32.powi(-(i as i32 % 6)));
        let x: X = [first, [0.0; 4 * FOURS + PANEL], [1e-36; 4 * FOURS + PANEL]];
        let mut largest = [0.0; FACTORS];
        for (x, largest) in x.iter().zip(&mut largest) {
            *largest = x[..4 * FOURS].iter().fold(0.0, |a: f32, x| a.max(x.abs()));
        }
        let short = |x: f32, largest: f32| (x * (32_767.0 / largest)).round_ties_even() as i64;
        let sizes = first[..4 * FOURS].iter().map(|x| short(*x, largest[0]).abs());
        assert_eq!(sizes.max(), Some(32_767));
        let want: [f32; WIDTH] = std::array::from_fn(|column| {
            let product = |i: usize| short(first[i], largest[0]) * i64::from(codes[i % FOURS][column][i / FOURS]);
            (0..4 * FOURS).map(product).sum::<i64>() as f32
        });
        for isa in Isa::available() {
            let (mut scales, mut sums) = (largest, Sums::default());
            // SAFETY: `isa` is available.
            unsafe { sums_of(isa, &codes, &x, &mut scales, &mut sums) };
            assert_eq!(sums, [want, [0.0; WIDTH], [0.0; WIDTH]], "{isa}");
            assert!((scales[0] * 32_767.0 / largest[0] - 1.0).abs() < 1e-6, "{isa}");
        }
    }

    /// Keys and queries of any sign, values and weights.
    type Pairs = [[[i16; 2]; WIDTH]; FOURS];

    isa_entry!(
        fn short_sums_of(codes: &Pairs, x: &[[i16; 2]; FOURS], sums: &mut [f32; WIDTH]) = all_short_sums,
        with avx512vnni
    );

    #[inline(always)]
    unsafe fn all_short_sums<S: Dots>(codes: &Pairs, x: &[[i16; 2]; FOURS], sums: &mut [f32; WIDTH]) {
        for column in (0..WIDTH).step_by(2 * S::LANES) {
            // SAFETY: all of them are as long as that.
            unsafe {
                let (mut found, asks) = ([[S::four(&0); 2]], (Nothing, 0));
                let codes = codes.as_ptr().cast::<u8>().add(4 * column);
                short_dots::<S, FOURS, 1, 2, _>(&mut found, codes, WIDTH, x.as_ptr().cast(), FOURS, asks);
                for (v, &sum) in found[0].iter().enumerate() {
                    S::store(sums.as_mut_ptr().add(column + v * S::LANES), S::float(sum));
                }
            }
        }
    }

    #[test]
    fn sums_of_16_bits_are_exact_on_every_path() {
        let codes: Pairs = std::array::from_fn(|f| {
            std::array::from_fn(|c| std::array::from_fn(|half| ((f * WIDTH + c) * 2 + half).wrapping_mul(7919) as i16))
        });
        let x = [[21_000, -9_999], [-1, 3], [17_000, 0], [-32, -32], [5, 12_345]];
        let want: [f32; WIDTH] = std::array::from_fn(|column| {
            let product =
                |(a, b): ([i16; 2], [i16; 2])| i64::from(a[0]) * i64::from(b[0]) + i64::from(a[1]) * i64::from(b[1]);
            let sum = codes.iter().zip(x).map(|(codes, x)| product((codes[column], x))).sum::<i64>();
            i32::try_from(sum).expect("no more than 32 bits") as f32
        });
        for isa in Isa::available() {
            let mut sums = [0.0; WIDTH];
            // SAFETY: `isa` is available.
            unsafe { short_sums_of(isa, &codes, &x, &mut sums) };
            assert_eq!(sums, want, "{isa}");
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
