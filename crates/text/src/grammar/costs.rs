//! What takes the compiler more than linear time in the size of a schema, bounded here since it has no bound of its own.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::expressions;

/// Properties of one object that may be there or not, beside a bound on their number: a way is compiled for each.
const COUNTED: usize = 256;
/// Properties of one object and of all: how one may follow another takes time with the square of their number.
const PROPERTIES: (usize, usize) = (1000, 2000);
/// Patterns of property names, in one object and in all: each is compared with each other one of its object.
const PATTERNS: (usize, usize) = (16, 64);
/// The digits of a `multipleOf`, as a number without a point: its remainders are states.
const MULTIPLE: u64 = 10_000;
/// The same for the least common multiple of all in the schema.
const ALL_MULTIPLES: u64 = 100_000;

/// Microseconds that all schemas of a source may take together, by estimate.
const WORK: f64 = 600_000.0;

#[derive(Default)]
pub struct Costs {
    properties: usize,
    patterns: usize,
    multiples: BTreeSet<u64>,
    work: f64,
}

impl Costs {
    /// Accounts for what compiling a whole schema takes.
    pub fn spend(&mut self, microseconds: f64) -> Result<(), String> {
        self.work += microseconds;
        match self.work <= WORK {
            true => Ok(()),
            false => Err("it would take too long to compile: use fewer formats, patterns, bounds or alternatives, \
                          or do not combine them by `allOf` or side by side"
                .into()),
        }
    }

    /// Accounts for one schema, without those in it.
    pub fn add(&mut self, schema: &Map<String, Value>) -> Result<(), String> {
        let patterns = schema.get("patternProperties").and_then(Value::as_object).into_iter().flatten();
        for pattern in patterns.map(|(p, _)| p.as_str()).chain(schema.get("pattern").and_then(Value::as_str)) {
            expressions::check(pattern, true)?;
        }
        let size = |key: &str| schema.get(key).and_then(Value::as_object).map_or(0, Map::len);
        let counted = schema.contains_key("minProperties") || schema.contains_key("maxProperties");
        if counted && size("properties") > COUNTED {
            return Err(format!(
                "minProperties and maxProperties: beside them at most {COUNTED} properties are allowed"
            ));
        }
        for (key, sum, (most, in_all)) in
            [("properties", &mut self.properties, PROPERTIES), ("patternProperties", &mut self.patterns, PATTERNS)]
        {
            *sum += size(key);
            if size(key) > most || *sum > in_all {
                return Err(format!("{key}: at most {most} in one object and {in_all} in all are allowed"));
            }
        }
        if let Some(number) = schema.get("multipleOf").and_then(Value::as_f64) {
            let digits = digits(number).filter(|&digits| digits <= MULTIPLE);
            self.multiples.insert(digits.ok_or(format!("multipleOf {number}: it has too many digits"))?);
            let all = self.multiples.iter().try_fold(1, |all: u64, &n| all.checked_mul(n / gcd(all, n)));
            if all.is_none_or(|all| all > ALL_MULTIPLES) {
                return Err("multipleOf: there are too many different ones".into());
            }
        }
        Ok(())
    }
}

/// The decimal digits of a number without the point: of an integer it is the number itself, otherwise all up to the
/// last that is not zero. `None` for 0 and what fits no `u64`.
fn digits(number: f64) -> Option<u64> {
    let text = number.abs().to_string();
    text.replace('.', "").parse().ok().filter(|&digits| digits > 0)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_counted_without_the_point() {
        for (number, expected) in
            [(0.01, 1), (100.0, 100), (2.5, 25), (1e-7, 1), (12345.0, 12345), (-3.0, 3), (1e9, 1_000_000_000)]
        {
            assert_eq!(digits(number), Some(expected), "{number}");
        }
        assert_eq!(digits(0.0), None);
    }
}
