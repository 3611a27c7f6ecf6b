//! The contract's second line, on every ISA path that this machine has. The large campaign:
//! `cargo run --release -p kvist-campaign -- bitwise --seeds A..B`.

use kvist_campaign::bitwise::{Report, run};
use kvist_campaign::{parallel, subjects};
use kvist_model::Canary;

const CASES: u64 = 2000;

#[test]
fn cold_is_warm_is_any_batch() {
    let subjects = subjects::all(None);
    let jobs = std::thread::available_parallelism().map_or(1, |n| n.get());
    let case = |seed| run(seed, subjects::pick(&subjects, seed));
    let total = parallel::seeds(0..CASES, jobs, case, |a: &mut Report, b| a.add(&b)).unwrap_or_else(|e| panic!("{e}"));
    println!("bitwise: {total}");
    let at_least = |n: u64, percent: u64| assert!(n * 100 >= total.cases * percent, "{n}: {total}");
    at_least(total.with_hits, 50);
    at_least(total.with_evictions, 10);
    at_least(total.with_cancels, 5);
    at_least(total.with_preemptions, 2);
    at_least(total.with_losses, 5);
}

/// Each deliberate numeric bug must be noticed within 600 cases, or the campaign's zeros mean nothing. The order in which
/// threads finish is the rarest to show: it takes three segments, and two threads that overtake each other.
#[test]
fn canaries_are_caught() {
    let jobs = std::thread::available_parallelism().map_or(1, |n| n.get());
    for canary in [Canary::FoldByCompletion, Canary::BlockRescale, Canary::RoundAfterUse] {
        let subjects = subjects::with_canary(None, canary);
        let case = |seed| run(seed, subjects::pick(&subjects, seed));
        let caught = parallel::seeds(0..600, jobs, case, |a: &mut Report, b| a.add(&b));
        assert!(caught.is_err(), "{canary:?} went unnoticed: {caught:?}");
    }
}
