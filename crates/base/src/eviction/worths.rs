//! What chunks are worth, by class and age: a snapshot of what was learnt.
//!
//! Ages are cut at quarters of octaves: a return is as likely to be told apart from another after a second as after an
//! hour.

use std::sync::Arc;

use crate::Micros;
use crate::eviction::{Class, Order, cost};

/// Ages: 0, a quarter of a second, and on in quarters of octaves to nine hours.
pub const AGES: usize = 62;
/// Quarters of octaves in 2^-16.
const STEPS: [Micros; 4] = [65536, 77936, 92682, 110218];
const FIRST: Micros = 250_000;

const EDGES: [Micros; AGES] = {
    let mut edges = [0; AGES];
    let mut k = 1;
    while k < AGES {
        edges[k] = ((FIRST << ((k - 1) / 4)) * STEPS[(k - 1) % 4]) >> 16;
        k += 1;
    }
    edges
};

/// The age at which interval `k` begins.
pub fn edge(k: usize) -> Micros {
    EDGES[k]
}

/// The interval in which an age lies.
pub fn interval(age: Micros) -> usize {
    EDGES.partition_point(|&edge| edge <= age) - 1
}

/// `[class][age]`: returns per 2^40 microseconds for which a chunk is held that has waited until the beginning of an interval.
/// In each class they rise up to one age and fall after it: of its chunks the oldest or the youngest is worth least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worths(Vec<[u64; AGES]>);

impl Worths {
    /// # Panics
    /// If there is not one row for each class, or one has two peaks.
    pub fn new(rows: Vec<[u64; AGES]>) -> Worths {
        assert_eq!(rows.len(), Class::COUNT, "a row for each class");
        let one_peak = |row: &[u64; AGES]| {
            let peak = (0..AGES).max_by_key(|&k| row[k]).expect("not empty");
            row[..=peak].is_sorted() && row[peak..].is_sorted_by(|a, b| a >= b)
        };
        assert!(rows.iter().all(one_peak), "one peak in each class");
        Worths(rows)
    }

    /// The worth at an age, between those at the ends of its interval.
    pub fn at(&self, class: Class, age: Micros) -> u64 {
        let (worths, k) = (&self.0[class.index()], interval(age));
        if k + 1 == AGES {
            return worths[k];
        }
        let (a, b) = (i128::from(worths[k]), i128::from(worths[k + 1]));
        let (since, width) = (i128::from(age - EDGES[k]), i128::from(EDGES[k + 1] - EDGES[k]));
        (a + (b - a) * since / width) as u64
    }
}

/// Nothing is worth anything.
impl Default for Worths {
    fn default() -> Worths {
        Worths(vec![[0; AGES]; Class::COUNT])
    }
}

/// How chunks that nobody wants are ordered. Clones share the table.
#[derive(Clone, Debug)]
pub struct Valuation {
    pub order: Order,
    /// Position in tokens at which attention costs as much as the dense layers: how fast chunks get dearer with depth.
    pub parity: u32,
    pub worths: Arc<Worths>,
}

/// What was used longest ago goes first, until somebody has learnt better.
impl Default for Valuation {
    fn default() -> Valuation {
        Valuation { order: Order::Lru, parity: 16384, worths: Arc::default() }
    }
}

impl Valuation {
    /// The band of a chunk with `depth` chunks above it: chunks of a band are worth the same at the same age.
    pub fn band(&self, class: Class, depth: u32) -> u32 {
        match self.order {
            Order::Returns => class.index() as u32 * cost::BANDS + cost::band(depth, self.parity),
            Order::Fifo | Order::Lru => 0,
        }
    }

    /// What is saved by holding a chunk of a band: returns per time, times the cost to compute it again; or just its order.
    pub fn worth(&self, band: u32, last: Micros, now: Micros) -> u128 {
        match self.order {
            Order::Returns => {
                let class = Class::from_index((band / cost::BANDS) as usize);
                let returns = self.worths.at(class, now.saturating_sub(last));
                u128::from(returns) * u128::from(cost::cost(band % cost::BANDS))
            }
            Order::Fifo | Order::Lru => u128::from(last),
        }
    }

    /// Since when a new chunk counts as used, where the one above it does since `above`.
    pub fn arrival(&self, above: Option<Micros>, now: Micros) -> Micros {
        match self.order {
            Order::Fifo => above.unwrap_or(now),
            Order::Lru | Order::Returns => now,
        }
    }

    /// Whether a chunk's place depends on when it was used, and not only on when it came.
    pub fn counts_uses(&self) -> bool {
        self.order != Order::Fifo
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals() {
        assert_eq!((interval(0), interval(FIRST - 1), interval(FIRST), interval(Micros::MAX)), (0, 0, 1, AGES - 1));
        for k in 0..AGES {
            assert_eq!(interval(edge(k)), k);
        }
        assert_eq!((edge(5), edge(9)), (2 * FIRST, 4 * FIRST));
        assert_eq!(edge(AGES - 1), FIRST << 15, "nine hours in quarters of a second");
    }

    #[test]
    fn worth_lies_between_the_ends_of_an_interval() {
        let mut rows = vec![[0; AGES]; Class::COUNT];
        rows[3] = std::array::from_fn(|k| 1000 - k as u64);
        let worths = Worths::new(rows);
        let at = |age| worths.at(Class::from_index(3), age);
        assert_eq!((at(0), at(edge(7)), at(Micros::MAX)), (1000, 993, 1000 - 61));
        assert!((992..=993).contains(&at((edge(7) + edge(8)) / 2)));
        assert_eq!(worths.at(Class::UNKNOWN, 5), 0);
    }
}
