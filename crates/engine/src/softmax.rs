//! Passes over a whole row of logits. A vocabulary has 150,000 tokens or more, and each drawn token costs such passes,
//! so they are written in lanes that compilers turn into vectors; results do not depend on how wide those are.

use kvist_base::TokenId;

const LANES: usize = 16;
/// Tokens whose weights are summed by themselves, so that a draw looks into one block only.
pub const BLOCK: usize = 1024;

/// The largest value, NaN left out; negative infinity if there is none.
pub fn max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = row.as_chunks::<LANES>();
    for block in blocks {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m })
}

/// `e^y` for `y` of 0 or less, to about 2e-7 of the result; 0 from -87 down and for NaN.
#[inline(always)]
fn exp(y: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // Added and taken away, it rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if y > -87.0 { y } else { -87.0 };
    let rounded = clamped * LOG2_E + ROUND;
    let n = rounded - ROUND;
    // ln 2 in two parts: n times the first is exact.
    let r = (clamped - n * 0.693_359_4) + n * 2.121_944_4e-4;
    // Taylor's series: |r| is at most ln 2 / 2, so the terms left out are below 1e-8.
    let p = 1.0 / 5040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r + 1.0;
    let p = p * r + 1.0;
    // The integer is in the low bits; a conversion would cost more than all the rest.
    let scale = f32::from_bits(rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    if y > -87.0 { p * scale } else { 0.0 }
}

/// `e^((x - max) * scale)` of each value: 1 for the most likely token.
pub fn weights(row: &[f32], max: f32, scale: f32, out: &mut Vec<f32>) {
    out.clear();
    out.extend(row.iter().map(|&x| exp((x - max) * scale)));
}

/// Sums of each [`BLOCK`] values.
pub fn block_sums(values: &[f32], out: &mut Vec<f64>) {
    out.clear();
    out.extend(values.chunks(BLOCK).map(sum));
}

pub fn sum(values: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (blocks, rest) = values.as_chunks::<LANES>();
    for block in blocks {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane += f64::from(x);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(x)).sum::<f64>()
}

/// `ln(sum(e^x))`, given the largest value.
pub fn log_sum_exp(row: &[f32], max: f32) -> f64 {
    let mut sums = 0.0;
    let mut buffer = [0.0; BLOCK];
    for block in row.chunks(BLOCK) {
        let weights = &mut buffer[..block.len()];
        weights.iter_mut().zip(block).for_each(|(w, &x)| *w = exp(x - max));
        sums += sum(weights);
    }
    f64::from(max) + sums.ln()
}

/// The `k` largest values with their places, best first; of equal ones the first.
pub fn likeliest(values: &[f32], k: usize, kept: &mut Vec<(TokenId, f32)>) {
    let k = k.min(values.len());
    kept.clear();
    if k == 0 {
        return;
    }
    kept.reserve(2 * k);
    let better = |a: &(TokenId, f32), b: &(TokenId, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    // What is not above it is behind `k` others.
    let mut floor = f32::NEG_INFINITY;
    for (i, &x) in values.iter().enumerate() {
        if x > floor || (kept.len() < k && !x.is_nan()) {
            kept.push((i as TokenId, x));
            if kept.len() == 2 * k {
                kept.select_nth_unstable_by(k - 1, better);
                kept.truncate(k);
                floor = kept[k - 1].1;
            }
        }
    }
    kept.sort_unstable_by(better);
    kept.truncate(k);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut x = seed;
        let mut next = || {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (x >> 40) as f32 / (1u64 << 24) as f32
        };
        (0..n).map(|_| next() * 30.0 - 20.0).collect()
    }

    #[test]
    fn exp_is_exact_to_seven_digits() {
        let mut worst = 0.0f64;
        for i in 0..2_000_000 {
            let y = -86.99 * i as f32 / 2_000_000.0;
            let exact = f64::from(y).exp();
            worst = worst.max((f64::from(exp(y)) - exact).abs() / exact);
        }
        assert!(worst < 2.5e-7, "{worst}");
        assert_eq!((exp(0.0), exp(-0.0)), (1.0, 1.0));
        assert_eq!((exp(-87.0), exp(-1e30), exp(f32::NEG_INFINITY), exp(f32::NAN)), (0.0, 0.0, 0.0, 0.0));
    }

    #[test]
    fn passes_equal_their_plain_forms() {
        for n in [1, 15, 16, 17, 1023, 1024, 1025, 5000] {
            let row = random(n, n as u64);
            let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(max(&row), most);
            let plain: f64 = row.iter().map(|&x| f64::from(x - most).exp()).sum();
            assert!((log_sum_exp(&row, most) - (f64::from(most) + plain.ln())).abs() < 3e-7);
            let (mut w, mut sums) = (Vec::new(), Vec::new());
            weights(&row, most, 0.5, &mut w);
            block_sums(&w, &mut sums);
            assert!((sums.iter().sum::<f64>() - w.iter().map(|&x| f64::from(x)).sum::<f64>()).abs() < 1e-9);
        }
        assert_eq!(max(&[f32::NAN, -3.0, f32::NEG_INFINITY]), -3.0);
        assert_eq!(max(&[f32::NAN; 40]), f32::NEG_INFINITY);
    }

    fn likeliest(values: &[f32], k: usize) -> Vec<(TokenId, f32)> {
        let mut kept = vec![(7, 7.0)];
        super::likeliest(values, k, &mut kept);
        kept
    }

    #[test]
    fn the_likeliest_are_those_of_a_full_sort() {
        for n in [1, 2, 7, 300, 4000] {
            // With ties, and with values that are masked.
            let mut row: Vec<f32> = random(n, 3).iter().map(|x| (x * 2.0).round()).collect();
            row.iter_mut().step_by(5).for_each(|x| *x = f32::NEG_INFINITY);
            let mut all: Vec<(TokenId, f32)> = row.iter().enumerate().map(|(i, &x)| (i as TokenId, x)).collect();
            all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            for k in [0, 1, 2, 20, 299, 300, 5000] {
                assert_eq!(likeliest(&row, k), all[..k.min(n)], "{k} of {n}");
            }
            row.reverse();
            assert_eq!(likeliest(&row, 3).len(), n.min(3));
        }
        assert_eq!(likeliest(&[f32::NAN, 1.0, f32::NAN, 2.0], 2), [(3, 2.0), (1, 1.0)]);
    }
}
