use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Monotonic time in microseconds from an arbitrary origin.
pub type Micros = u64;

/// The only source of time below the server, so that the production scheduler also runs on simulated time.
pub trait Clock: Send + Sync {
    fn now(&self) -> Micros;
}

/// Monotonic time of the operating system.
pub struct SystemClock(Instant);

impl SystemClock {
    pub fn new() -> Self {
        SystemClock(Instant::now())
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Micros {
        self.0.elapsed().as_micros() as Micros
    }
}

/// Time that moves only when told to.
#[derive(Default)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn advance(&self, by: Micros) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Micros {
        self.0.load(Ordering::Relaxed)
    }
}
