//! The prefill budget of a mixed step, fitted online: `t = a + b * rows + c * attended`, least squares with
//! exponential forgetting over measured steps. Since machines are not linear, and others use them, what mixed steps
//! really took bounds the next one as well: rows at most double while steps meet the target, and shrink by what a step
//! took too long; and the less the fit predicts, the further below the target it aims.

use kvist_base::{CHUNK, Micros};

/// Forgets a sample's weight by half in about 70 steps.
const KEEP: f64 = 0.99;
/// The same for the errors of predictions: about 14 steps.
const KEEP_ERROR: f64 = 0.95;
/// Steps before the fit is believed.
const WARM_UP: u32 = 8;
/// Prefill rows of the first mixed step.
const FIRST_ROWS: f64 = 64.0;
/// A mixed step may take this much more than its target. Who asks for an ITL of `target` gets `p99 <= 1.5 * target`.
const TOLERATED: f64 = 1.25;
const PROMISED: f64 = 1.5;
/// Standard deviations that the promise leaves room for.
const SPREAD: f64 = 2.5;

/// What a step does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    pub rows: usize,
    /// Rows of sequences that decode.
    pub decoding: usize,
    /// Chunks attended to, summed over rows.
    pub attended: usize,
}

pub struct Budget {
    /// Normal equations of the three coefficients.
    xx: [[f64; 3]; 3],
    xy: [f64; 3],
    samples: u32,
    coefficients: Option<[f64; 3]>,
    /// Prefill rows that a mixed step has at most.
    most: f64,
    /// Mean square of the relative errors with which mixed steps were predicted.
    error: f64,
}

impl Budget {
    pub fn new() -> Self {
        Budget { xx: [[0.0; 3]; 3], xy: [0.0; 3], samples: 0, coefficients: None, most: FIRST_ROWS, error: 0.0 }
    }

    /// Takes in a step. `target`: what it was to take if it was mixed.
    pub fn observe(&mut self, load: Load, took: Micros, target: Micros) {
        let (x, took) = (features(load.rows, load.attended), (took as f64).max(1.0));
        let prefill = load.rows.saturating_sub(load.decoding) as f64;
        if load.decoding > 0 && prefill > 0.0 {
            if let Some(c) = &self.coefficients {
                let error = (took / dot(c, &x).max(1.0) - 1.0).clamp(-1.0, 1.0);
                self.error = self.error * KEEP_ERROR + (1.0 - KEEP_ERROR) * error * error;
            }
            if took <= target as f64 {
                self.most = self.most.max(2.0 * prefill);
            } else if took > TOLERATED * target as f64 {
                self.most = (prefill * target as f64 / took).max(1.0);
            }
        }
        // Relative errors: a long step must not outvote the short ones that the target is about.
        let w = 1.0 / (took * took);
        for i in 0..3 {
            for j in 0..3 {
                self.xx[i][j] = self.xx[i][j] * KEEP + w * x[i] * x[j];
            }
            self.xy[i] = self.xy[i] * KEEP + w * x[i] * took;
        }
        self.samples = self.samples.saturating_add(1);
        if self.samples >= WARM_UP {
            self.coefficients = solve(self.xx, self.xy);
        }
    }

    /// Rows that fit into `target` beside `decoding` rows that attend to `attended` chunks, each new row attending to
    /// `depth` chunks. One at least; `least`, where these take a quarter of the target at most, so that prompts advance
    /// also where the target cannot be met.
    pub fn rows_within(&self, target: Micros, decoding: usize, attended: usize, depth: usize, least: usize) -> usize {
        let Some([a, b, c]) = self.coefficients else { return self.most as usize };
        let x = features(decoding, attended);
        let aim = target as f64 * (PROMISED / (1.0 + SPREAD * self.error.sqrt())).min(1.0);
        let left = aim - (a * x[0] + b * x[1] + c * x[2]);
        let each = b + c * features(0, depth)[2];
        let least = (target as f64 / 4.0 / each).min(least as f64).max(1.0);
        // Nothing by nothing is no number: the smaller of it and another is that other.
        (left / each).min(self.most).max(least) as usize
    }

    /// Microseconds that a step of `rows` prompt rows takes behind `depth` chunks. `None` until enough steps were seen.
    pub fn time_of(&self, rows: usize, depth: usize) -> Option<Micros> {
        let x = features(rows, rows * (depth + rows.div_ceil(CHUNK) / 2));
        self.coefficients.map(|c| dot(&c, &x) as Micros)
    }

    /// Microseconds that one more row costs, as far as known.
    pub fn row_cost(&self) -> f64 {
        self.coefficients.map_or(100.0, |c| c[1].max(0.1))
    }
}

/// Attended chunks count in thousands of tokens, to keep the equations well scaled.
fn features(rows: usize, attended: usize) -> [f64; 3] {
    [1.0, rows as f64, (attended * CHUNK) as f64 / 1000.0]
}

fn dot(a: &[f64; 3], b: &[f64; 3]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Least squares with non-negative coefficients: the most negative one is dropped until none is.
fn solve(mut xx: [[f64; 3]; 3], xy: [f64; 3]) -> Option<[f64; 3]> {
    let mut active = [true; 3];
    for (i, row) in xx.iter_mut().enumerate() {
        row[i] *= 1.0 + 1e-6; // a ridge: decode-only phases give collinear samples
        row[i] += 1e-18;
    }
    for _ in 0..3 {
        let solution = eliminate(&xx, &xy, &active)?;
        let worst = (0..3).min_by(|&i, &j| solution[i].total_cmp(&solution[j]))?;
        if solution[worst] >= 0.0 {
            return Some(solution);
        }
        active[worst] = false;
    }
    None
}

/// Solves for the active unknowns; the others are 0.
fn eliminate(xx: &[[f64; 3]; 3], xy: &[f64; 3], active: &[bool; 3]) -> Option<[f64; 3]> {
    let mut m: [[f64; 4]; 3] = std::array::from_fn(|i| match active[i] {
        true => std::array::from_fn(|j| if j == 3 { xy[i] } else { xx[i][j] * f64::from(u8::from(active[j])) }),
        false => std::array::from_fn(|j| f64::from(u8::from(i == j))),
    });
    for p in 0..3 {
        let pivot = (p..3).max_by(|&a, &b| m[a][p].abs().total_cmp(&m[b][p].abs()))?;
        m.swap(p, pivot);
        if m[p][p].abs() < f64::MIN_POSITIVE {
            return None;
        }
        let pivot = m[p];
        for (_, row) in m.iter_mut().enumerate().filter(|(r, _)| *r != p) {
            let f = row[p] / pivot[p];
            row.iter_mut().zip(&pivot).skip(p).for_each(|(x, y)| *x -= f * y);
        }
    }
    Some(std::array::from_fn(|i| m[i][3] / m[i][i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(rows: usize, attended: usize) -> f64 {
        2_000.0 + 150.0 * rows as f64 + 40.0 * (attended * 64) as f64 / 1000.0
    }

    fn load(rows: usize, decoding: usize, attended: usize) -> Load {
        Load { rows, decoding, attended }
    }

    #[test]
    fn recovers_a_linear_machine() {
        let mut budget = Budget::new();
        for i in 0..200usize {
            let (rows, attended) = (1 + i * 7 % 100, i * 31 % 900);
            budget.observe(load(rows, 0, attended), cost(rows, attended) as Micros, 50_000);
        }
        let mut n = 0;
        for _ in 0..4 {
            n = budget.rows_within(50_000, 8, 400, 20, 16);
            budget.observe(load(8 + n, 8, 400 + 20 * n), cost(8 + n, 400 + 20 * n) as Micros, 50_000);
        }
        let time = cost(8 + n, 400 + 20 * n);
        assert!((time - 50_000.0).abs() < 1_000.0, "{n} rows take {time} us");
        assert_eq!(budget.rows_within(1_000, 8, 400, 20, 16), 1);
    }

    #[test]
    fn decode_only_phases_do_not_break_the_fit() {
        let mut budget = Budget::new();
        assert_eq!(budget.rows_within(100_000, 4, 40, 10, 16), FIRST_ROWS as usize);
        for _ in 0..100 {
            budget.observe(load(4, 4, 40), 5_000, 100_000);
        }
        assert!(budget.rows_within(100_000, 4, 40, 10, 16) > 4);
    }

    /// What was never tried is not believed at once, and what was too slow not tried again.
    #[test]
    fn rows_double_and_shrink_by_what_was_measured() {
        let mut budget = Budget::new();
        for i in 0..20 {
            budget.observe(load(4 + i % 2, 4 + i % 2, 40), 5_000, 100_000);
        }
        let first = budget.rows_within(100_000, 4, 40, 1, 16);
        assert!(first <= FIRST_ROWS as usize);
        budget.observe(load(4 + 64, 4, 40), 6_000, 100_000);
        assert!(budget.rows_within(100_000, 4, 40, 1, 16) <= 128);
        budget.observe(load(4 + 128, 4, 40), 400_000, 100_000);
        assert!(budget.rows_within(100_000, 4, 40, 1, 16) <= 32);
    }
}
