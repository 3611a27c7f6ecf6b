//! The contract's second line, on every ISA path that this machine has. The large campaign:
//! `cargo run --release -p kvist-campaign -- bitwise --seeds A..B`.

use kvist_base::Codec;
use kvist_campaign::bitwise::{Report, run};
use kvist_campaign::{parallel, subjects};
use kvist_model::Canary;

#[test]
fn cold_is_warm_is_any_batch() {
    hold(2000, Codec::Kv16);
}

#[test]
fn cold_is_warm_is_any_batch_where_sealed_chunks_are_encoded() {
    let total = hold(300, Codec::Kv8);
    assert!(total.with_reopens * 100 >= total.cases * 20, "{total}");
}

fn hold(cases: u64, codec: Codec) -> Report {
    let subjects = subjects::all(None, codec);
    let jobs = std::thread::available_parallelism().map_or(1, |n| n.get());
    let case = |seed| run(seed, subjects::pick(&subjects, seed));
    let total = parallel::seeds(0..cases, jobs, case, |a: &mut Report, b| a.add(&b)).unwrap_or_else(|e| panic!("{e}"));
    println!("bitwise: {total}");
    let at_least = |n: u64, percent: u64| assert!(n * 100 >= total.cases * percent, "{n}: {total}");
    at_least(total.with_hits, 50);
    at_least(total.with_evictions, 10);
    at_least(total.with_cancels, 5);
    at_least(total.with_preemptions, 2);
    at_least(total.with_losses, 5);
    at_least(total.with_cuts, 10);
    total
}

/// Each deliberate numeric bug must be noticed, or the campaign's zeros mean nothing. The order in which threads finish is
/// the rarest to show: it takes three segments, and two threads that overtake each other. On a busy machine 600 cases
/// once had none; all others show within so many.
#[test]
fn canaries_are_caught() {
    let jobs = std::thread::available_parallelism().map_or(1, |n| n.get());
    for (codec, canary, cases) in [
        (Codec::Kv16, Canary::FoldByCompletion, 20_000),
        (Codec::Kv16, Canary::BlockRescale, 600),
        (Codec::Kv16, Canary::RoundAfterUse, 600),
        (Codec::Kv8, Canary::CodesTooSoon, 600),
    ] {
        let subjects = subjects::with_canary(None, codec, canary);
        let case = |seed| run(seed, subjects::pick(&subjects, seed));
        let caught = parallel::seeds(0..cases, jobs, case, |a: &mut Report, b| a.add(&b));
        assert!(caught.is_err(), "{canary:?} went unnoticed: {caught:?}");
    }
}
