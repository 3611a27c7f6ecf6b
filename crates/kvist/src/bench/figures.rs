//! Numbers of repeated measurements.

use std::time::{Duration, Instant};

/// The middle value, the mean of the two middle ones of an even number. 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

pub fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// How time is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// What passes for everybody.
    Wall,
    /// What this thread computes: another program's turns do not count.
    Thread,
}

impl Clock {
    /// The thread's, where all the work is its own and the system tells.
    pub fn of_threads(threads: usize) -> Clock {
        if threads == 1 && thread_seconds().is_some() { Clock::Thread } else { Clock::Wall }
    }

    pub fn name(self) -> &'static str {
        match self {
            Clock::Wall => "wall",
            Clock::Thread => "thread",
        }
    }

    fn seconds(self, work: impl FnOnce()) -> f64 {
        let begin = match self {
            Clock::Wall => None,
            Clock::Thread => thread_seconds(),
        };
        let wall = seconds(work);
        begin.and_then(|begin| Some(thread_seconds()? - begin)).unwrap_or(wall)
    }
}

/// Seconds that this thread has computed, on Linux.
fn thread_seconds() -> Option<f64> {
    // The system accounts when a thread gives way.
    std::thread::yield_now();
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    stat.split(' ').next()?.parse().ok().map(|ns: f64| ns / 1e9)
}

/// Times pieces of work `repeat` times each by the wall, in rounds in random order, so that a drift of the machine meets all
/// alike. Work that is short is repeated within a measurement until the longest takes 10 ms. Seconds
/// of each run.
pub fn in_turns(repeat: usize, works: &mut [&mut dyn FnMut()]) -> Vec<Vec<f64>> {
    in_turns_by(Clock::Wall, repeat, false, works)
}

/// [`in_turns`] by another clock. `warm`: an untimed run before each timed one, for where the turns of another process let
/// the cores fall asleep, which costs the next 10 ms here a fifth.
pub fn in_turns_by(clock: Clock, repeat: usize, warm: bool, works: &mut [&mut dyn FnMut()]) -> Vec<Vec<f64>> {
    // The first run of each warms up, and says how often to run.
    let once = works.iter_mut().map(seconds).fold(1e-7, f64::max);
    let inner = (Duration::from_millis(10).as_secs_f64() / once).clamp(1.0, 1e5) as usize;
    let mut times = vec![Vec::new(); works.len()];
    let (mut order, mut random) = ((0..works.len()).collect::<Vec<_>>(), Random(1));
    for _ in 0..repeat {
        // In a fixed order the same one is always behind a program whose threads spin for a while yet, or finds what that one read.
        for i in (1..order.len()).rev() {
            order.swap(i, random.below(i + 1));
        }
        for &at in &order {
            let mut run = || (0..inner).for_each(|_| works[at]());
            if warm {
                run();
            }
            times[at].push(clock.seconds(run) / inner as f64);
        }
    }
    times
}

/// A reproducible stream of numbers (SplitMix64; Steele, Lea, Flood 2014).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// In [-1, 1).
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
    }

    #[test]
    fn all_are_run_alike() {
        let (mut a, mut b) = (0, 0);
        let times = in_turns(5, &mut [&mut || a += 1, &mut || b += 1]);
        assert_eq!((times.len(), times[0].len(), times[1].len(), a), (2, 5, 5, b));
        let (mut c, mut long) = (0, || std::thread::sleep(Duration::from_millis(10)));
        in_turns_by(Clock::Wall, 2, true, &mut [&mut || c += 1, &mut long]);
        assert_eq!(c, 1 + 2 * 2, "once to see how long it takes, and each time once before");
    }

    #[test]
    fn the_thread_s_clock_stands_while_it_sleeps() {
        if Clock::of_threads(1) == Clock::Thread {
            let slept = Clock::Thread.seconds(|| std::thread::sleep(Duration::from_millis(200)));
            assert!((0.0..0.1).contains(&slept), "{slept}");
        }
        assert!(Clock::Wall.seconds(|| std::thread::sleep(Duration::from_millis(5))) >= 5e-3);
        assert_eq!(Clock::of_threads(2), Clock::Wall);
    }

    #[test]
    fn random_units_are_in_range() {
        let mut random = Random(1);
        let values: Vec<f32> = (0..10_000).map(|_| random.unit()).collect();
        assert!(values.iter().all(|v| (-1.0..1.0).contains(v)));
        assert!((values.iter().sum::<f32>() / 1e4).abs() < 0.05);
    }
}
