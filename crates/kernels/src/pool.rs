//! A small thread pool: one job at a time, its tiles claimed from a counter.

use std::any::Any;
use std::cell::Cell;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long an idle thread watches for the next job before it sleeps. Jobs of one step follow each other within a few
/// microseconds; a wake-up costs tens of them.
const SPIN: Duration = Duration::from_micros(40);

/// A ticket counts unclaimed tiles in its low bits and jobs in the rest.
const TILE_BITS: u32 = 24;
const TILE_MASK: u64 = (1 << TILE_BITS) - 1;

/// Threads that run the tiles of one job at a time. The caller of [`Pool::run`] is one of them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a job runs.
    turn: Mutex<()>,
}

type Task<'a> = &'a (dyn Fn(usize, &Claims<'_>) + Sync + 'a);

/// What a running tile may know of those to come.
pub(crate) struct Claims<'a> {
    /// Where others claim tiles as well.
    shared: Option<&'a Shared>,
    next: Cell<Option<usize>>,
}

impl Claims<'static> {
    /// Of a tile that is followed by `next` in the same thread.
    pub(crate) fn followed_by(next: Option<usize>) -> Claims<'static> {
        Claims { shared: None, next: Cell::new(next) }
    }
}

impl<'a> Claims<'a> {
    fn of(shared: &'a Shared) -> Claims<'a> {
        Claims { shared: Some(shared), next: Cell::new(None) }
    }

    /// The tile that this thread runs after this one, which is claimed now, so that its operands may be asked for. Of the last
    /// tiles nobody knows: another thread may be ready for them first.
    pub(crate) fn next(&self) -> Option<usize> {
        if let (Some(shared), None) = (self.shared, self.next.get()) {
            self.next.set(shared.claim(shared.threads));
        }
        self.next.get()
    }
}

struct Shared {
    threads: usize,
    /// Job number and unclaimed tiles. Whoever takes the last tile off leaves the job number in place.
    ticket: AtomicU64,
    tiles: AtomicUsize,
    /// The caller's `Task`, on its stack. Valid while a claimed tile of the job is unfinished.
    task: AtomicPtr<Task<'static>>,
    /// Finished tiles of the job.
    done: AtomicUsize,
    caller: Mutex<Option<Thread>>,
    caller_sleeps: AtomicBool,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    stop: AtomicBool,
    /// The first panic of the job.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    spin: Duration,
}

impl Pool {
    /// Starts `threads - 1` workers (at least none). With more threads than the machine has cores nothing spins.
    ///
    /// # Panics
    /// When the system refuses a thread.
    pub fn new(threads: usize) -> Pool {
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let shared = Arc::new(Shared {
            threads: threads.max(1),
            ticket: AtomicU64::new(0),
            tiles: AtomicUsize::new(0),
            task: AtomicPtr::new(std::ptr::null_mut()),
            done: AtomicUsize::new(0),
            caller: Mutex::new(None),
            caller_sleeps: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
            spin: if threads > cores { Duration::ZERO } else { SPIN },
        });
        // Grown in place: if the system refuses a thread, dropping the pool ends those that it gave.
        let mut pool = Pool { shared, workers: Vec::new(), turn: Mutex::new(()) };
        for i in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = thread::Builder::new().name(format!("kvist-{i}")).spawn(move || shared.work());
            pool.workers.push(worker.expect("the system refuses another thread"));
        }
        pool
    }

    /// Threads that work on a job, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(0)`, `task(1)`, ... `task(tiles - 1)`, in any order and on any of the threads, and returns when all
    /// have finished. A call from inside a task, or while another thread's job runs, runs its tiles in the caller.
    ///
    /// # Panics
    /// With the payload of the first task that panicked, after all the others have finished.
    pub fn run(&self, tiles: usize, task: &(dyn Fn(usize) + Sync)) {
        self.run_with_claims(tiles, &|tile, _| task(tile));
    }

    /// The same with tiles that may ask which one comes next.
    pub(crate) fn run_with_claims(&self, tiles: usize, task: Task<'_>) {
        let turn = match self.turn.try_lock() {
            Ok(turn) => Some(turn),
            Err(TryLockError::Poisoned(turn)) => Some(turn.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if tiles <= 1 || self.workers.is_empty() || turn.is_none() {
            let next = |tile| Some(tile + 1).filter(|&next| next < tiles);
            return (0..tiles).for_each(|tile| task(tile, &Claims::followed_by(next(tile))));
        }
        self.shared.run(tiles, task);
        let panic = lock(&self.shared.panic).take();
        drop(turn);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.shared.wake(usize::MAX);
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tiles and has none of its own.
            let _ = worker.join();
        }
    }
}

/// No code panics while it holds one of the pool's locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn run(&self, tiles: usize, task: Task<'_>) {
        assert!(tiles as u64 <= TILE_MASK, "{tiles} tiles in one job");
        self.tiles.store(tiles, SeqCst);
        self.task.store((&raw const task).cast::<Task<'static>>().cast_mut(), SeqCst);
        self.done.store(0, SeqCst);
        let job = (self.ticket.load(SeqCst) >> TILE_BITS).wrapping_add(1);
        self.ticket.store((job << TILE_BITS) | tiles as u64, SeqCst);
        self.wake(tiles - 1);
        while self.claim_and_run() {}
        self.wait_until(tiles);
    }

    /// Takes a tile of the current job if at least so many are left.
    fn claim(&self, least: usize) -> Option<usize> {
        let mut ticket = self.ticket.load(SeqCst);
        while ticket & TILE_MASK >= least as u64 {
            match self.ticket.compare_exchange_weak(ticket, ticket - 1, SeqCst, SeqCst) {
                // Until this tile is counted in `done` its job cannot end, so `tiles` is that job's own.
                Ok(_) => return Some(self.tiles.load(SeqCst) - (ticket & TILE_MASK) as usize),
                Err(now) => ticket = now,
            }
        }
        None
    }

    /// Runs a tile of the current job, if one is left, then the one that it claimed, and so on.
    fn claim_and_run(&self) -> bool {
        let mut next = self.claim(1);
        let claimed = next.is_some();
        while let Some(tile) = next {
            let claims = Claims::of(self);
            self.run_tile(tile, &claims);
            next = claims.next.get();
        }
        claimed
    }

    /// Runs a tile that was claimed. One that it claims itself is of the same job, which does not end before that.
    fn run_tile(&self, tile: usize, claims: &Claims<'_>) {
        let tiles = self.tiles.load(SeqCst);
        // SAFETY: `task` points to a live reference on the stack of `run`, which returns only after `done == tiles`,
        // and the tile is not counted in `done` yet.
        let task = unsafe { *self.task.load(SeqCst) };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| task(tile, claims))) {
            let mut first = lock(&self.panic);
            if first.is_some() {
                // Dropping a payload runs its code, which may panic: on a worker, nothing would catch that.
                std::mem::forget(payload);
            } else {
                *first = Some(payload);
            }
        }
        if self.done.fetch_add(1, SeqCst) + 1 == tiles
            && self.caller_sleeps.load(SeqCst)
            && let Some(caller) = &*lock(&self.caller)
        {
            caller.unpark();
        }
    }

    fn wait_until(&self, tiles: usize) {
        let finished = || self.done.load(SeqCst) == tiles;
        if spin_until(self.spin, finished) {
            return;
        }
        *lock(&self.caller) = Some(thread::current());
        self.caller_sleeps.store(true, SeqCst);
        while !finished() {
            thread::park();
        }
        self.caller_sleeps.store(false, SeqCst);
    }

    /// Wakes up to `n` sleeping workers.
    fn wake(&self, n: usize) {
        let sleepers = self.sleepers.load(SeqCst);
        if sleepers > 0 {
            let _guard = lock(&self.sleep);
            if n < sleepers {
                (0..n).for_each(|_| self.wake.notify_one());
            } else {
                self.wake.notify_all();
            }
        }
    }

    /// Life of a worker.
    fn work(&self) {
        let has_work = || self.ticket.load(SeqCst) & TILE_MASK != 0 || self.stop.load(SeqCst);
        loop {
            while self.claim_and_run() {}
            if !spin_until(self.spin, has_work) {
                // A job is published before `sleepers` is read, and `sleepers` is raised before the job is looked
                // for: one of the two sides sees the other.
                let mut guard = lock(&self.sleep);
                self.sleepers.fetch_add(1, SeqCst);
                while !has_work() {
                    guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
                }
                self.sleepers.fetch_sub(1, SeqCst);
            }
            if self.stop.load(SeqCst) {
                return;
            }
        }
    }
}

/// Polls `ready` for at most `limit`.
fn spin_until(limit: Duration, ready: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..32 {
            if ready() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() >= limit {
            return ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each tile ran.
    struct Hits(Vec<AtomicUsize>);

    impl Hits {
        fn of(tiles: usize) -> Hits {
            Hits((0..tiles).map(|_| AtomicUsize::new(0)).collect())
        }

        fn add(&self, tile: usize) {
            self.0[tile].fetch_add(1, SeqCst);
        }

        fn are_one_each(&self) -> bool {
            self.0.iter().all(|hits| hits.load(SeqCst) == 1)
        }
    }

    #[test]
    fn each_tile_runs_once() {
        for threads in 1..=9 {
            let pool = Pool::new(threads);
            for tiles in (0..50).chain([1000]) {
                let hits = Hits::of(tiles);
                pool.run(tiles, &|i| hits.add(i));
                assert!(hits.are_one_each(), "threads {threads}, tiles {tiles}");
            }
        }
    }

    /// Some tiles ask what comes next, some do not, some panic once they have asked: what was claimed runs next in that thread.
    #[test]
    fn what_a_tile_claims_runs_next_in_its_thread() {
        for threads in 1..=5 {
            let pool = Pool::new(threads);
            for tiles in (0..40).chain([500]) {
                let hits = Hits::of(tiles);
                let asked: Mutex<Vec<(thread::ThreadId, usize)>> = Mutex::new(Vec::new());
                // Assertions in a tile may come after a panic on purpose, and only the first one is passed on.
                let (claimed, wrong) = (AtomicUsize::new(0), AtomicUsize::new(0));
                let result = catch_unwind(AssertUnwindSafe(|| {
                    pool.run_with_claims(tiles, &|i, claims| {
                        hits.add(i);
                        let me = thread::current().id();
                        let mut all = lock(&asked);
                        if let Some(at) = all.iter().position(|&(who, _)| who == me) {
                            wrong.fetch_add(usize::from(all.swap_remove(at).1 != i), SeqCst);
                        }
                        if i % 3 > 0
                            && let Some(next) = claims.next()
                        {
                            let right = claims.next() == Some(next) && next > i && next < tiles;
                            wrong.fetch_add(usize::from(!right), SeqCst);
                            claimed.fetch_add(1, SeqCst);
                            all.push((me, next));
                        }
                        drop(all);
                        assert!(threads == 1 || i % 7 != 5, "on purpose");
                    });
                }));
                assert_eq!(result.is_err(), threads > 1 && tiles > 5);
                if let Err(payload) = result {
                    assert!(payload.downcast_ref::<&str>().is_some_and(|text| *text == "on purpose"), "{tiles} tiles");
                }
                assert!(hits.are_one_each(), "{threads} threads, {tiles} tiles");
                assert_eq!((lock(&asked).len(), wrong.into_inner()), (0, 0), "{threads} threads, {tiles} tiles");
                if threads == 1 {
                    let all = (0..tiles.saturating_sub(1)).filter(|i| i % 3 > 0).count();
                    assert_eq!(claimed.load(SeqCst), all, "{tiles} tiles");
                }
            }
        }
    }

    #[test]
    fn many_short_jobs_with_sleeps_between() {
        let pool = Pool::new(4);
        let sum = AtomicUsize::new(0);
        for job in 0..3000 {
            pool.run(7, &|i| {
                sum.fetch_add(i, SeqCst);
            });
            if job % 500 == 0 {
                thread::sleep(Duration::from_millis(2));
            }
        }
        assert_eq!(sum.load(SeqCst), 3000 * 21);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3);
        for round in 0..20 {
            let ran = AtomicUsize::new(0);
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(16, &|i| {
                    ran.fetch_add(1, SeqCst);
                    assert!(i != round % 16, "tile {i}");
                });
            }));
            let payload = result.expect_err("the tile's panic is passed on");
            assert_eq!(payload.downcast_ref::<String>(), Some(&format!("tile {}", round % 16)));
            assert_eq!(ran.load(SeqCst), 16);
        }
    }

    /// The payload of a second panic was dropped on the worker that caught it; if its destructor panicked, the worker
    /// died without counting its tile, and the caller waited for ever.
    #[test]
    fn a_payload_that_panics_when_dropped_stops_nobody() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                if !thread::panicking() {
                    panic!("dropped");
                }
            }
        }
        let pool = Pool::new(3);
        for _ in 0..20 {
            let result = catch_unwind(AssertUnwindSafe(|| pool.run(16, &|_| std::panic::panic_any(Bomb))));
            std::mem::forget(result.expect_err("the first panic is passed on"));
        }
        pool.run(16, &|_| {});
    }

    #[test]
    fn nested_and_concurrent_runs_finish() {
        let pool = Pool::new(4);
        let sum = AtomicUsize::new(0);
        thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..50 {
                        pool.run(8, &|_| {
                            pool.run(3, &|i| {
                                sum.fetch_add(i, SeqCst);
                            })
                        });
                    }
                });
            }
        });
        assert_eq!(sum.load(SeqCst), 4 * 50 * 8 * 3);
    }
}
