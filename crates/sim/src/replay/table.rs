//! Hit rates by policy and size.

use std::fmt;

use serde_json::{Value, json};

use crate::replay::policies::{Policy, replay};
use crate::replay::trace::Trace;

pub const SIZES: [usize; 6] = [1_000, 3_000, 10_000, 30_000, 50_000, 100_000];

/// One policy at all sizes, in percent.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    pub policy: Policy,
    pub rates: Vec<f64>,
}

#[derive(Clone, Debug)]
pub struct Table {
    pub name: String,
    pub requests: usize,
    /// Blocks asked for, and different ones.
    pub blocks: usize,
    pub different: usize,
    pub sizes: Vec<usize>,
    pub lines: Vec<Line>,
}

impl Table {
    pub fn new(name: &str, trace: &Trace, sizes: &[usize], policies: &[Policy]) -> Table {
        let rates = |&policy: &Policy| {
            let rates = sizes.iter().map(|&size| replay(trace, size, policy).rate()).collect();
            Line { policy, rates }
        };
        Table {
            name: name.into(),
            requests: trace.rows.len(),
            blocks: trace.blocks.len(),
            different: trace.different,
            sizes: sizes.to_vec(),
            lines: policies.iter().map(rates).collect(),
        }
    }

    pub fn rates(&self, policy: Policy) -> Option<&[f64]> {
        self.lines.iter().find(|line| line.policy == policy).map(|line| &line.rates[..])
    }

    /// How much of the way from LRU to the optimum the learnt policy goes, in percent; `None` where there is no way.
    pub fn gap_closed(&self) -> Option<Vec<Option<f64>>> {
        let of = |policy| self.rates(policy);
        let (lru, returns, optimum) = (of(Policy::Lru)?, of(Policy::Returns)?, of(Policy::Optimum)?);
        let closed = |((lru, returns), optimum): ((&f64, &f64), &f64)| {
            (optimum - lru > 0.1).then(|| 100.0 * (returns - lru) / (optimum - lru))
        };
        Some(lru.iter().zip(returns).zip(optimum).map(closed).collect())
    }

    pub fn json(&self) -> Value {
        let lines: Vec<_> = self
            .lines
            .iter()
            .map(|line| json!({"policy": line.policy.to_string(), "hit_percent": line.rates}))
            .collect();
        json!({
            "trace": self.name, "requests": self.requests, "blocks": self.blocks, "different": self.different,
            "sizes": self.sizes, "policies": lines, "gap_closed_percent": self.gap_closed(),
        })
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} requests, {} blocks, {} different", self.name, self.requests, self.blocks, self.different)?;
        write!(f, "{:<26}", "hits, %")?;
        self.sizes.iter().try_for_each(|size| write!(f, "{size:>9}"))?;
        for line in &self.lines {
            write!(f, "\n{:<26}", line.policy)?;
            line.rates.iter().try_for_each(|rate| write!(f, "{rate:>9.2}"))?;
        }
        if let Some(closed) = self.gap_closed() {
            write!(f, "\n{:<26}", "gap closed, %")?;
            closed.iter().try_for_each(|closed| match closed {
                Some(closed) => write!(f, "{closed:>9.1}"),
                None => write!(f, "{:>9}", "-"),
            })?;
        }
        writeln!(f)
    }
}
