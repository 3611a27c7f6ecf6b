//! When chunks of a class come back: a life table, and what follows from it for one that has waited a while.
//!
//! All arithmetic is addition, multiplication and division, which give the same bits on every platform.

use kvist_base::eviction::{AGES, edge};

/// Of an octave's end, the octave's intervals.
pub fn octave(end: usize) -> Option<std::ops::Range<usize>> {
    (end % 4 == 1).then(|| end.saturating_sub(4)..end)
}

/// How many reached each interval without having come back, and how many came back in it. Weights, not counts.
#[derive(Clone, Debug)]
pub struct LifeTable {
    pub waited: [f64; AGES],
    pub came: [f64; AGES],
}

impl LifeTable {
    pub const EMPTY: LifeTable = LifeTable { waited: [0.0; AGES], came: [0.0; AGES] };

    pub fn fade(&mut self, factor: f64) {
        self.waited.iter_mut().chain(&mut self.came).for_each(|x| *x *= factor);
    }

    pub fn add(&mut self, other: &LifeTable, weight: f64) {
        self.waited.iter_mut().zip(&other.waited).for_each(|(a, b)| *a += weight * b);
        self.came.iter_mut().zip(&other.came).for_each(|(a, b)| *a += weight * b);
    }
}

/// Weight of what the ages before an interval say of it.
const FROM_AGES: f64 = 100.0;
/// Returns by which a class must differ from all to be believed by half.
const FROM_ALL: f64 = 2.0;

/// Share of those that reach an interval that come back in it. Where few were seen, what was seen just before goes on: a
/// share that stays the same over equal parts of octaves is a chance that falls as one over the age, which makes LRU.
pub fn hazards(all: &LifeTable) -> [f64; AGES] {
    let sum = |x: &[f64]| x.iter().sum::<f64>();
    let mean = (sum(&all.came) + 0.1) / (sum(&all.waited) + 20.0);
    let (mut came, mut waited) = (mean, 1.0);
    std::array::from_fn(|k| {
        let before: f64 = came / waited;
        came = (came + all.came[k]) / 2.0 + mean / 1000.0;
        waited = (waited + all.waited[k]) / 2.0 + 1.0 / 1000.0;
        (all.came[k] + FROM_AGES * before) / (all.waited[k] + FROM_AGES)
    })
}

/// Those of a class: of all, times a factor that moves with age as far as there is evidence.
pub fn class_hazards(table: &LifeTable, all: &[f64; AGES]) -> [f64; AGES] {
    let mut factor: f64 = 1.0;
    std::array::from_fn(|k| {
        factor = (table.came[k] + FROM_ALL * factor) / (table.waited[k] * all[k] + FROM_ALL);
        (all[k] * factor).min(0.99)
    })
}

/// What it is worth to hold a chunk that has waited until the beginning of each interval: the best ratio, over all times
/// at which one may give up, of the chance that it has come back to the time for which it is held until then (a Gittins
/// index). In returns per 2^40 microseconds. Rises up to one age and falls after it, so that of many chunks the one
/// that is worth least is the oldest or the youngest.
pub fn worths(hazards: &[f64; AGES]) -> [u64; AGES] {
    let mut worths: [u64; AGES] = std::array::from_fn(|from| {
        let (mut left, mut chance, mut time, mut best) = (1.0, 0.0, 0.0, 0.0f64);
        for (k, hazard) in hazards.iter().enumerate().take(AGES - 1).skip(from) {
            chance += left * hazard;
            time += left * (edge(k + 1) - edge(k)) as f64 * (1.0 - hazard / 2.0);
            left *= 1.0 - hazard;
            best = best.max(chance / time);
        }
        (best * (1u64 << 40) as f64) as u64
    });
    // Nothing is told apart within the first interval.
    worths[0] = worths[0].max(worths[1]);
    let peak = (0..AGES).rev().max_by_key(|&k| worths[k]).expect("not empty");
    (0..peak).rev().for_each(|k| worths[k] = worths[k].min(worths[k + 1]));
    (peak + 1..AGES).for_each(|k| worths[k] = worths[k].min(worths[k - 1]));
    worths
}

#[cfg(test)]
mod tests {
    use kvist_base::eviction::interval;

    use super::*;

    #[test]
    fn octaves() {
        assert_eq!((octave(1), octave(5), octave(6)), (Some(0..1), Some(1..5), None));
    }

    #[test]
    fn without_evidence_the_oldest_is_worth_least() {
        let all = hazards(&LifeTable::EMPTY);
        let worths = worths(&class_hazards(&LifeTable::EMPTY, &all));
        assert!((1..AGES).all(|k| worths[k] <= worths[k - 1]), "{worths:?}");
        assert!(worths[1] > worths[20]);
    }

    #[test]
    fn worth_rises_towards_the_return_and_falls_after_it() {
        let mut table = LifeTable::EMPTY;
        let back = interval(60_000_000);
        (0..=back).for_each(|k| table.waited[k] = 1000.0);
        (back + 1..AGES).for_each(|k| table.waited[k] = 500.0);
        table.came[back] = 500.0;
        let all = hazards(&table);
        let worths = worths(&class_hazards(&table, &all));
        let at = |age| worths[interval(age)];
        assert!(at(1_000_000) < at(50_000_000));
        assert!(at(50_000_000) > 10 * at(300_000_000), "{worths:?}");
        let peak = (0..AGES).max_by_key(|&k| worths[k]).unwrap();
        assert!(worths[..=peak].is_sorted() && worths[peak..].is_sorted_by(|a, b| a >= b), "one peak");
    }
}
