//! Which chunks are more likely to come back than others: a logistic regression on facts that each fall into one of a
//! few bins, learnt online with a rate of its own for each bin.
//!
//! The odds are those of having come back by an age, and all ages share the weights of the facts: what is learnt at the
//! first ages is there before anything could come back at the later ones.

use kvist_base::eviction::AGES;

use crate::policy::facts::{BINS, Bins, FACTS};

const RATE: f64 = 0.05;
const RATE_OF_AGES: f64 = 0.01;

#[derive(Clone, Debug)]
pub struct Odds {
    weights: [[f64; BINS]; FACTS],
    /// Sums of squared gradients, which slow a weight down (Duchi, Hazan, Singer 2011).
    moved: [[f64; BINS]; FACTS],
    ages: [f64; AGES],
}

impl Odds {
    pub const NEW: Odds = Odds { weights: [[0.0; BINS]; FACTS], moved: [[1.0; BINS]; FACTS], ages: [0.0; AGES] };

    /// Logarithm of the odds, but for what depends on age.
    pub fn of(&self, bins: &Bins) -> f64 {
        self.weights.iter().zip(bins).map(|(weights, &bin)| weights[bin as usize]).sum()
    }

    /// Whether a chunk had come `back` by the beginning of interval `k`.
    pub fn learn(&mut self, bins: &Bins, k: usize, back: bool, weight: f64) {
        let step = (f64::from(back) - logistic(self.ages[k] + self.of(bins))) * weight;
        self.ages[k] += RATE_OF_AGES * step;
        for (fact, &bin) in bins.iter().enumerate() {
            let moved = &mut self.moved[fact][bin as usize];
            *moved += step * step;
            self.weights[fact][bin as usize] += RATE * step / moved.sqrt();
        }
    }

    /// Lets go of the past a little, so that weights can move again.
    pub fn fade(&mut self, factor: f64) {
        self.moved.iter_mut().flatten().for_each(|moved| *moved = (*moved * factor).max(1.0));
    }
}

/// 1 / (1 + e^-x), with e^-x as (1 - x / 1024)^1024: the same bits on every platform.
fn logistic(x: f64) -> f64 {
    let mut power = 1.0 - x.clamp(-16.0, 16.0) / 1024.0;
    (0..10).for_each(|_| power *= power);
    1.0 / (1.0 + power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logistic_is_close() {
        for x in -160..=160 {
            let x = f64::from(x) / 10.0;
            let exact = 1.0 / (1.0 + (-x).exp());
            assert!((logistic(x) - exact).abs() < 1e-3, "{x}: {} instead of {exact}", logistic(x));
        }
    }

    #[test]
    fn learns_which_fact_matters() {
        let mut odds = Odds::NEW;
        for i in 0..4000u32 {
            let mut bins = [0; FACTS];
            bins[2] = (i % 2) as u8;
            bins[5] = (i / 2 % 2) as u8;
            // Seven of ten in the second bin of the third fact, one of ten in the first, whatever the other.
            let back = (i / 4) % 10 < if bins[2] == 1 { 7 } else { 1 };
            odds.learn(&bins, 9, back, 1.0);
        }
        let of = |third, sixth| {
            let mut bins = [0; FACTS];
            (bins[2], bins[5]) = (third, sixth);
            logistic(odds.ages[9] + odds.of(&bins))
        };
        assert!((of(1, 0) - 0.7).abs() < 0.1, "{}", of(1, 0));
        assert!((of(0, 1) - 0.1).abs() < 0.05, "{}", of(0, 1));
    }
}
