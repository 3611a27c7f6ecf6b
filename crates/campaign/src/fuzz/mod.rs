//! Hostile input: mutated files and requests against everything that parses them.
//!
//! Each execution is a function of its seed. Whatever comes in, a parser answers or refuses: it does not panic, does not
//! allocate more than twice its input and [`SLACK`] bytes, and does not take longer than [`LIMIT`].

mod mutate;
mod requests;
mod targets;

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use kvist_sim::Random;
use peak_alloc::PeakAlloc;
use rustix::time::{ClockId, clock_gettime};

pub use mutate::Kind;
pub use targets::{Target, all};

/// Bytes that an execution may allocate beyond twice its input.
pub const SLACK: usize = 64 << 20;
/// Processor time that an execution may take for each MiB of its input that is begun.
pub const LIMIT: Duration = Duration::from_secs(1);

/// What became of the executions.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub executions: u64,
    /// Of them, inputs that were taken.
    pub taken: u64,
    pub slowest: Duration,
    /// Most bytes that one execution held at a time.
    pub peak: usize,
    /// How often each error began with these words.
    pub refusals: BTreeMap<String, u64>,
}

impl Report {
    pub fn add(&mut self, o: &Report) {
        self.executions += o.executions;
        self.taken += o.taken;
        self.slowest = self.slowest.max(o.slowest);
        self.peak = self.peak.max(o.peak);
        for (what, n) in &o.refusals {
            *self.refusals.entry(what.clone()).or_default() += n;
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} executions, {} taken, {} kinds of refusal; slowest {:.1} ms, most memory {:.1} MiB",
            self.executions,
            self.taken,
            self.refusals.len(),
            self.slowest.as_secs_f64() * 1e3,
            self.peak as f64 / (1 << 20) as f64,
        )
    }
}

/// One execution. `memory` is the program's allocator: nothing else may run beside it.
pub fn run(target: &dyn Target, memory: &PeakAlloc, seed: u64) -> Result<Report, String> {
    let mut rng = Random::new(seed ^ 0x6675_7a7a);
    let input = mutate::input(target.corpus(), target.kind(), &mut rng);
    execute(target, memory, &input).map_err(|e| format!("seed {seed}: {e}\n{}", excerpt(&input)))
}

/// Runs one input and holds it to the bounds.
pub fn execute(target: &dyn Target, memory: &PeakAlloc, input: &[u8]) -> Result<Report, String> {
    let limit = LIMIT * (input.len() as u32 / (1 << 20) + 1);
    let before = memory.current_usage();
    memory.reset_peak_usage();
    let start = cpu_time();
    let outcome = catch_unwind(AssertUnwindSafe(|| target.run(input)));
    let mut took = cpu_time() - start;
    let peak = memory.peak_usage().saturating_sub(before);
    let outcome = outcome.map_err(|_| "panicked".to_string())?;
    if peak > 2 * input.len() + SLACK {
        return Err(format!("{peak} bytes were allocated for an input of {}", input.len()));
    }
    // Caches and cores are shared with other programs: what is slow is slow three times.
    for _ in 0..2 {
        if took > limit {
            let start = cpu_time();
            let _ = catch_unwind(AssertUnwindSafe(|| target.run(input)));
            took = took.min(cpu_time() - start);
        }
    }
    if took > limit {
        return Err(format!("took {took:?}"));
    }
    let mut report = Report { executions: 1, slowest: took, peak, ..Report::default() };
    match outcome {
        Ok(()) => report.taken = 1,
        Err(what) => {
            let words = what.split(|c: char| !c.is_alphabetic()).filter(|w| !w.is_empty()).take(4);
            report.refusals.insert(words.collect::<Vec<_>>().join(" "), 1);
        }
    }
    Ok(report)
}

/// What all threads of the program have computed so far: nothing else runs beside an execution, and what other programs do
/// does not count.
fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// The input as far as a terminal can show it.
fn excerpt(input: &[u8]) -> String {
    let text: String = input.escape_ascii().take(2000).map(char::from).collect();
    format!("{} bytes: {text}", input.len())
}
