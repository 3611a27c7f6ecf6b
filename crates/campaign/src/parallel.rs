//! Seeds over threads.

use std::io::{IsTerminal, Write};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// Runs `case` for every seed on `jobs` threads and folds the results in no particular order. Stops at the first
/// error and returns it. Progress goes to standard error when it is a terminal.
pub fn seeds<R: Send + Default>(
    range: Range<u64>,
    jobs: usize,
    case: impl Fn(u64) -> Result<R, String> + Sync,
    fold: impl Fn(&mut R, R) + Sync,
) -> Result<R, String> {
    let next = AtomicU64::new(range.start);
    let failed = AtomicBool::new(false);
    let total = Mutex::new((R::default(), None::<String>));
    let start = Instant::now();
    let show = std::io::stderr().is_terminal();
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= range.end || failed.load(Ordering::Relaxed) {
                        return;
                    }
                    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(seed)))
                        .unwrap_or_else(|_| Err(format!("seed {seed}: panicked")));
                    let mut total = total.lock().expect("no case panics while it is held");
                    match result {
                        Ok(r) => fold(&mut total.0, r),
                        Err(e) => {
                            total.1.get_or_insert(e);
                            failed.store(true, Ordering::Relaxed);
                        }
                    }
                    let done = seed - range.start + 1;
                    if show && done.is_multiple_of(64) {
                        let rate = done as f64 / start.elapsed().as_secs_f64();
                        eprint!("\r{done} of {} ({rate:.0} a second)  ", range.end - range.start);
                        let _ = std::io::stderr().flush();
                    }
                }
            });
        }
    });
    if show {
        eprintln!();
    }
    let (sum, error) = total.into_inner().expect("no case panics while it is held");
    error.map_or(Ok(sum), Err)
}
