//! `kvist bench store`: how soon a conversation that comes back gets its first token, by where its KV is.

mod child;
mod disk;
mod report;
mod scene;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use self::disk::Sequential;
use self::scene::{Return, Scene, Turn};
use crate::driver::Driver;
use crate::failure::{Failure, Result};
use crate::hub;
use crate::progress::Progress;
use crate::size::thousands;

pub use child::run as run_child;

/// New tokens of the table, and of the curve.
pub const NEW: usize = 64;
pub const CURVE: [usize; 5] = [8, 32, 64, 128, 256];
/// Recomputing is measured again until it took so many seconds of the run.
const RECOMPUTING: f64 = 20.0;

pub struct Options {
    /// Tokens, multiples of a chunk, ascending.
    pub histories: Vec<usize>,
    /// New tokens of the curve, ascending; [`NEW`] among them.
    pub curve: Vec<usize>,
    pub repeat: usize,
    /// Where the store is made for the run.
    pub dir: Option<PathBuf>,
    pub io_threads: usize,
    /// Bytes per second of a slow disk.
    pub throttle: Option<f64>,
}

/// All turns of a kind.
pub struct Case {
    pub how: Return,
    pub history: usize,
    pub new: usize,
    pub turns: Vec<Turn>,
}

pub struct Measured {
    pub cases: Vec<Case>,
    /// Bytes of each history's KV.
    pub bytes: Vec<(usize, u64)>,
    /// Sequential reads in bytes per second: one thread, and several.
    pub rates: [Vec<f64>; 2],
    pub best: f64,
    pub io_threads: usize,
    /// Bytes per second that the disk was held back to, and that the store believed in after each turn.
    pub throttle: Option<(f64, Vec<f64>)>,
}

/// A directory that goes with the run.
struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Place {
    fn new(wish: Option<&Path>) -> Result<Place> {
        let caches = || Some(hub::own_directories().0?.join("kvist"));
        let parent = wish.map(Path::to_path_buf).or_else(caches).ok_or_else(|| {
            Failure::usage("there is no cache directory", "--dir DIR, on the disk that is to be measured")
        })?;
        let dir = parent.join(format!("bench-store-{}", std::process::id()));
        let made = fs::create_dir_all(&dir).and_then(|()| fs::canonicalize(&dir));
        made.map(Place).map_err(|e| Failure::new(format!("{}: {e}", dir.display()), "--dir DIR"))
    }
}

pub fn run(driver: Driver, options: &Options) -> Result<Measured> {
    let place = Place::new(options.dir.as_deref())?;
    let progress = Progress::new("measuring:");
    let longest = options.histories.iter().copied().max().unwrap_or(0);
    let mut scene = Scene::new(driver, &place.0, options.io_threads, options.throttle);
    scene.compute(longest, &|rows| {
        progress.note(&format!("a history of {} tokens, {} computed", thousands(longest as u64), thousands(rows)));
    })?;
    scene.killed()?;
    let bytes = options.histories.iter().map(|&history| (history, scene.bytes(history))).collect();
    let mut sequential = Sequential::new(&place.0, options.io_threads)?;
    let mut cases = cases(options);
    let mut beliefs = Vec::new();
    let mut recomputing = 0.0;
    for round in 0..options.repeat {
        sequential.look();
        for i in 0..cases.len() {
            // Another one first each time, so that a drift of the machine meets all alike.
            let at = (i + round) % cases.len();
            let Case { how, history, new, turns } = &mut cases[at];
            if *how == Return::Recompute && !turns.is_empty() && recomputing > RECOMPUTING {
                continue;
            }
            progress.note(&format!("round {} of {}: {}", round + 1, options.repeat, report::name(*how)));
            let turn = scene.turn(*how, *history, *new)?;
            if *how == Return::Recompute {
                recomputing += turn.first;
            }
            turns.push(turn);
            beliefs.push(scene.belief());
        }
    }
    sequential.look();
    let best = sequential.best();
    Ok(Measured {
        cases,
        bytes,
        rates: sequential.rates,
        best,
        io_threads: options.io_threads,
        throttle: options.throttle.map(|rate| (rate, beliefs)),
    })
}

fn cases(options: &Options) -> Vec<Case> {
    let case = |how, history, new| Case { how, history, new, turns: Vec::new() };
    let mut cases = Vec::new();
    for &history in &options.histories {
        if options.throttle.is_some() {
            cases.extend([Return::Recompute, Return::Disk].map(|how| case(how, history, NEW)));
            continue;
        }
        cases.extend([Return::Recompute, Return::Reopened, Return::Killed].map(|how| case(how, history, NEW)));
        for &new in &options.curve {
            cases.extend([Return::Ram, Return::Disk, Return::DiskAtOnce].map(|how| case(how, history, new)));
        }
    }
    cases
}

pub fn table(measured: &Measured) -> String {
    report::table(measured)
}

pub fn json(measured: &Measured) -> Value {
    report::json(measured)
}
