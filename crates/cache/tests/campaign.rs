//! The tree against the naive model.

use kvist_cache::campaign::{self, Canary, Report};

const SEEDS: u64 = 100;
const STEPS: u64 = 10_000;

#[test]
fn the_tree_is_the_model() {
    let mut report = Report::default();
    for seed in 0..SEEDS {
        report.merge(&campaign::run(seed, STEPS).unwrap());
    }
    println!("{report}");
    assert_eq!(report.steps, SEEDS * STEPS);
    let rare: Vec<_> = report.counts.iter().filter(|(_, n)| **n < 100).collect();
    // One in ten thousand steps: often enough that a fault in it is found here.
    assert!(rare.is_empty(), "cases that hardly happen: {rare:?}");
}

#[test]
fn canaries_fail() {
    for canary in Canary::ALL {
        let failed = (0..20).filter(|&seed| campaign::run_with(seed, 2_000, canary).is_err()).count();
        println!("{canary:?}: {failed} of 20 runs fail");
        assert!(failed >= 10, "{canary:?}: only {failed} of 20 runs fail");
    }
}
