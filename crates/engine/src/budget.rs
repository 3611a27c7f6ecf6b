//! The prefill budget of a mixed step, fitted online: `t = a + b * rows + c * attended`, least squares with
//! exponential forgetting over measured steps.

use kvist_base::{CHUNK, Micros};

/// Forgets a sample's weight by half in about 70 steps.
const KEEP: f64 = 0.99;
/// Steps before the fit is believed.
const WARM_UP: u32 = 8;

pub struct Budget {
    /// Normal equations of the three coefficients.
    xx: [[f64; 3]; 3],
    xy: [f64; 3],
    samples: u32,
    coefficients: Option<[f64; 3]>,
}

impl Budget {
    pub fn new() -> Self {
        Budget { xx: [[0.0; 3]; 3], xy: [0.0; 3], samples: 0, coefficients: None }
    }

    /// Takes in a step of `rows` rows that attended to `attended` chunks in all.
    pub fn observe(&mut self, rows: usize, attended: usize, took: Micros) {
        let x = features(rows, attended);
        // Relative errors: a long step must not outvote the short ones that the target is about.
        let w = 1.0 / (took as f64).max(1.0).powi(2);
        for i in 0..3 {
            for j in 0..3 {
                self.xx[i][j] = self.xx[i][j] * KEEP + w * x[i] * x[j];
            }
            self.xy[i] = self.xy[i] * KEEP + w * x[i] * took as f64;
        }
        self.samples = self.samples.saturating_add(1);
        if self.samples >= WARM_UP {
            self.coefficients = solve(self.xx, self.xy);
        }
    }

    /// Rows that fit into `target` beside `rows` decode rows attending to `attended` chunks, each new row attending
    /// to `depth` chunks. `None` until enough steps were seen.
    pub fn rows_within(&self, target: Micros, rows: usize, attended: usize, depth: usize) -> Option<usize> {
        let [a, b, c] = self.coefficients?;
        let x = features(rows, attended);
        let left = target as f64 - (a * x[0] + b * x[1] + c * x[2]);
        let each = b + c * features(0, depth)[2];
        if each <= 0.0 { None } else { Some((left / each).max(0.0) as usize) }
    }

    /// Microseconds that a step of `rows` prompt rows takes behind `depth` chunks. `None` until enough steps were seen.
    pub fn time_of(&self, rows: usize, depth: usize) -> Option<Micros> {
        let chunks = rows.div_ceil(CHUNK);
        let x = features(rows, rows * (depth + chunks / 2));
        self.coefficients.map(|c| (c[0] * x[0] + c[1] * x[1] + c[2] * x[2]) as Micros)
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

/// Least squares with non-negative coefficients: the most negative one is dropped until none is.
fn solve(mut xx: [[f64; 3]; 3], xy: [f64; 3]) -> Option<[f64; 3]> {
    let mut active = [true; 3];
    for (i, row) in xx.iter_mut().enumerate() {
        row[i] *= 1.0 + 1e-6; // a ridge: decode-only phases give collinear samples
        row[i] += 1e-18;
    }
    for _ in 0..3 {
        let solution = eliminate(&xx, &xy, &active)?;
        let worst = (0..3).filter(|&i| active[i]).min_by(|&i, &j| solution[i].total_cmp(&solution[j]))?;
        if solution[worst] >= 0.0 {
            return Some(solution);
        }
        active[worst] = false;
    }
    None
}

fn eliminate(xx: &[[f64; 3]; 3], xy: &[f64; 3], active: &[bool; 3]) -> Option<[f64; 3]> {
    let idx: Vec<usize> = (0..3).filter(|&i| active[i]).collect();
    let n = idx.len();
    let mut m: Vec<Vec<f64>> = idx.iter().map(|&i| idx.iter().map(|&j| xx[i][j]).chain([xy[i]]).collect()).collect();
    for p in 0..n {
        let pivot = (p..n).max_by(|&a, &b| m[a][p].abs().total_cmp(&m[b][p].abs()))?;
        m.swap(p, pivot);
        if m[p][p].abs() < f64::MIN_POSITIVE {
            return None;
        }
        let pivot = m[p].clone();
        for (_, row) in m.iter_mut().enumerate().filter(|(r, _)| *r != p) {
            let f = row[p] / pivot[p];
            row.iter_mut().zip(&pivot).skip(p).for_each(|(x, y)| *x -= f * y);
        }
    }
    let mut out = [0.0; 3];
    for (k, &i) in idx.iter().enumerate() {
        out[i] = m[k][n] / m[k][k];
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovers_a_linear_machine() {
        let mut budget = Budget::new();
        let cost =
            |rows: usize, attended: usize| 2_000.0 + 150.0 * rows as f64 + 40.0 * (attended * 64) as f64 / 1000.0;
        for i in 0..200usize {
            let (rows, attended) = (1 + i * 7 % 100, i * 31 % 900);
            budget.observe(rows, attended, cost(rows, attended) as Micros);
        }
        let n = budget.rows_within(50_000, 8, 400, 20).unwrap();
        let time = cost(8 + n, 400 + 20 * n);
        assert!((time - 50_000.0).abs() < 1_000.0, "{n} rows take {time} us");
        assert_eq!(budget.rows_within(1_000, 8, 400, 20), Some(0));
    }

    #[test]
    fn decode_only_phases_do_not_break_the_fit() {
        let mut budget = Budget::new();
        for _ in 0..100 {
            budget.observe(4, 40, 5_000);
        }
        assert!(budget.rows_within(100_000, 4, 40, 10).unwrap() > 4);
        assert!(Budget::new().rows_within(100_000, 4, 40, 10).is_none());
    }
}
