use std::fmt;
use std::ops::AddAssign;

use kvist_base::Micros;

use crate::size::{human, thousands};

/// What a turn, or all of them, took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Turn {
    pub prompt: u64,
    /// Prompt tokens whose KV was there.
    pub cached: u64,
    /// Prompt tokens taken over from earlier replies as they were generated.
    pub spliced: u64,
    pub generated: u64,
    /// Start of the turn to the first token.
    pub first: Micros,
    /// First token to the last.
    pub rest: Micros,
}

impl AddAssign for Turn {
    fn add_assign(&mut self, other: Turn) {
        self.prompt += other.prompt;
        self.cached += other.cached;
        self.spliced += other.spliced;
        self.generated += other.generated;
        self.first += other.first;
        self.rest += other.rest;
    }
}

/// The last turn beside all turns, and the KV that is held now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    pub last: Turn,
    pub total: Turn,
    pub turns: u64,
    pub kv_tokens: u64,
    pub token_bytes: u64,
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (last, total) = (&self.last, &self.total);
        let turns = format!("{} turn{}", self.turns, if self.turns == 1 { "" } else { "s" });
        writeln!(f, "{:<18}{:>12}{:>14}", "", "last turn", turns)?;
        for (name, a, b) in [
            ("prompt tokens", last.prompt, total.prompt),
            ("  cached", last.cached, total.cached),
            ("  spliced", last.spliced, total.spliced),
            ("  computed", last.prompt - last.cached, total.prompt - total.cached),
            ("generated tokens", last.generated, total.generated),
        ] {
            writeln!(f, "{name:<18}{:>12}{:>14}", thousands(a), thousands(b))?;
        }
        let mean = total.first.checked_div(self.turns).unwrap_or(0);
        writeln!(f, "{:<18}{:>12}{:>14}", "first token after", millis(last.first), format!("{} mean", millis(mean)))?;
        writeln!(f, "{:<18}{:>12}{:>14}", "tokens a second", rate(last, 1), rate(total, self.turns))?;
        let bytes = self.kv_tokens * self.token_bytes;
        write!(f, "{:<18}{} tokens, {}", "KV held", thousands(self.kv_tokens), human(bytes))
    }
}

fn millis(time: Micros) -> String {
    format!("{:.1} ms", time as f64 / 1e3)
}

/// Tokens a second after each turn's first token.
fn rate(turn: &Turn, turns: u64) -> String {
    match turn.generated.saturating_sub(turns) {
        0 => "-".into(),
        _ if turn.rest == 0 => "-".into(),
        tokens => format!("{:.1}", tokens as f64 / (turn.rest as f64 / 1e6)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_adds_up() {
        let first = Turn { prompt: 20, cached: 0, spliced: 0, generated: 11, first: 30_000, rest: 100_000 };
        let second = Turn { prompt: 1050, cached: 31, spliced: 11, generated: 1, first: 10_000, rest: 0 };
        let mut stats = Stats { turns: 2, last: second, kv_tokens: 1051, token_bytes: 4096, ..Stats::default() };
        stats.total += first;
        stats.total += second;
        let text = stats.to_string();
        let rows: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["last", "turn", "2", "turns"]);
        assert_eq!(rows[1], ["prompt", "tokens", "1,050", "1,070"]);
        assert_eq!(rows[2], ["cached", "31", "31"]);
        assert_eq!(rows[4], ["computed", "1,019", "1,039"]);
        assert_eq!(rows[6], ["first", "token", "after", "10.0", "ms", "20.0", "ms", "mean"]);
        assert_eq!(rows[7], ["tokens", "a", "second", "-", "100.0"]);
        assert_eq!(rows[8], ["KV", "held", "1,051", "tokens,", "4.1", "MiB"]);
    }
}
