//! A line on a terminal that shows how far long work is.

use std::cell::Cell;
use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

use crate::size::human;

/// Work shorter than this shows nothing: on a terminal, and elsewhere, where each line stays.
const PATIENCE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];
/// Time between two updates.
const PERIOD: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];
const WIDTH: usize = 30;

/// Tells on standard error: a line that is drawn anew on a terminal, a new line every few seconds elsewhere.
pub struct Progress {
    label: String,
    terminal: bool,
    started: Instant,
    /// When it was last drawn.
    drawn: Cell<Option<Instant>>,
}

impl Progress {
    pub fn new(label: impl Into<String>) -> Self {
        let terminal = stderr().is_terminal();
        Progress { label: label.into(), terminal, started: Instant::now(), drawn: Cell::new(None) }
    }

    /// `done` of `total` bytes are there.
    pub fn bytes(&self, done: u64, total: u64) {
        let elapsed = self.started.elapsed();
        self.draw(
            |label| if self.terminal { bar(label, done, total, elapsed) } else { line(label, done, total, elapsed) },
        );
    }

    /// Says what is going on; on a terminal only.
    pub fn note(&self, what: &str) {
        if self.terminal {
            self.draw(|label| format!("{label} {what}"));
        }
    }

    fn draw(&self, text: impl Fn(&str) -> String) {
        let kind = usize::from(!self.terminal);
        let last = self.drawn.get();
        if self.started.elapsed() < PATIENCE[kind] || last.is_some_and(|at| at.elapsed() < PERIOD[kind]) {
            return;
        }
        self.drawn.set(Some(Instant::now()));
        let text = text(&self.label);
        // Progress that cannot be shown is no reason to stop.
        let _ = if self.terminal { write!(stderr(), "\r\x1b[K{text}") } else { writeln!(stderr(), "{text}") };
        let _ = stderr().flush();
    }
}

/// The line goes away with the work.
impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal && self.drawn.get().is_some() {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}

fn bar(label: &str, done: u64, total: u64, elapsed: Duration) -> String {
    let part = if total == 0 { 1.0 } else { done.min(total) as f64 / total as f64 };
    let full = (part * WIDTH as f64) as usize;
    let bar = format!("{label} [{}{}]", "#".repeat(full), ".".repeat(WIDTH - full));
    line(&bar, done, total, elapsed)
}

fn line(label: &str, done: u64, total: u64, elapsed: Duration) -> String {
    let rate = done as f64 / elapsed.as_secs_f64().max(1e-3);
    let left = if rate > 0.0 { total.saturating_sub(done) as f64 / rate } else { 0.0 };
    format!("{label} {} of {}, {}/s, {left:.0} s left", human(done), human(total), human(rate as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_says_how_far_and_how_long() {
        let drawn = bar("loading", 1 << 30, 4 << 30, Duration::from_secs(2));
        assert_eq!(drawn, "loading [#######.......................] 1.0 GiB of 4.0 GiB, 512 MiB/s, 6 s left");
        assert_eq!(line("x", 1 << 30, 4 << 30, Duration::from_secs(2)), "x 1.0 GiB of 4.0 GiB, 512 MiB/s, 6 s left");
        assert!(bar("x", 0, 0, Duration::ZERO).contains("0 B of 0 B"));
        assert!(bar("x", 9, 3, Duration::from_secs(1)).contains(&"#".repeat(WIDTH)));
    }
}
