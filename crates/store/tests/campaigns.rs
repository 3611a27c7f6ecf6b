//! Small counts of the campaigns, and the proof that they would notice; the long ones are in the ledger.

use kvist_store::Canary;
use kvist_store::campaign::{self, Flips, Report, STORE_BITS};

/// The error of the first seed that finds one.
fn caught(run: impl Fn(u64) -> Result<Report, String>) -> String {
    (0..20).find_map(|seed| run(seed).err()).expect("a broken store is noticed")
}

#[test]
fn power_may_fail_at_any_moment() {
    let mut total = Report::default();
    let mut seed = 0;
    while total.states < 20_000 {
        total.add(&campaign::crash(seed).unwrap());
        seed += 1;
    }
    println!("{seed} workloads: {total}");
    assert!(total.durable > 20_000 && total.evicted > 50 && total.copied > 10_000 && total.notes > 1_000, "{total}");
}

#[test]
fn crashes_would_tell_of_a_skipped_sync_and_of_chunks_found_by_hash() {
    let what = caught(|seed| campaign::crash_with(seed, Canary::SkipSync, false));
    assert!(what.contains("were durable"), "{what}");
    let what = caught(|seed| campaign::crash_with(seed, Canary::None, true));
    assert!(what.contains("were durable"), "{what}");
    let what = caught(|seed| campaign::crash_with(seed, Canary::CompareHashes, false));
    assert!(what.contains("is wrong"), "{what}");
}

#[test]
fn any_operation_may_fail() {
    let mut total = Report::default();
    for seed in [0, 4, 10, 28] {
        total.add(&campaign::faults(seed).unwrap());
    }
    println!("{total}");
    assert!(total.states > 5_000 && total.unopened > 100 && total.paused > 1_000, "{total}");
}

#[test]
fn faults_would_tell_of_a_sync_that_is_tried_again() {
    let what = caught(|seed| campaign::faults_with(seed, Canary::RetrySync));
    assert!(what.contains("were durable") && what.contains("Eio"), "{what}");
}

fn flips(canary: Canary, count: u64) -> Result<Report, String> {
    let flips = Flips::new(5, canary)?;
    assert!(flips.bits() >= STORE_BITS);
    let mut checker = flips.checker()?;
    let mut total = Report::default();
    // Every part of the files, and not at multiples of anything.
    for i in 0..count {
        total.add(&checker.check(i * (flips.bits() / count) + i % 61)?);
    }
    println!("{total}");
    Ok(total)
}

#[test]
fn a_bit_that_turns_is_a_miss_or_nothing() {
    let total = flips(Canary::None, 1500).unwrap();
    assert!(total.missed > 1000, "{total}");
}

#[test]
fn flips_would_tell_of_tags_that_are_not_looked_at() {
    for canary in [Canary::SkipTags, Canary::PublishBeforeVerify] {
        let what = flips(canary, 1500).unwrap_err();
        assert!(what.contains("is wrong"), "{canary:?}: {what}");
    }
}

#[test]
fn chunks_go_in_the_order_of_a_model_that_sorts_all_of_them() {
    let mut total = Report::default();
    for seed in 0..40 {
        total.add(&campaign::order(seed).unwrap());
    }
    println!("{total}");
    assert!(total.evicted > 4_000 && total.refused > 100, "{total}");
    let what = caught(|seed| campaign::order_with(seed, Canary::IgnoreWants));
    assert!(what.contains("went"), "{what}");
}
