//! The scheduler campaign, small. The large one: `cargo run --release -p kvist-campaign -- scheduler`.

use kvist_sim::campaign::{Canary, Report, run};

#[test]
fn every_request_ends_once_with_the_tokens_it_would_get_alone() {
    let mut total = Report::default();
    for seed in 0..1000 {
        total.add(&run(seed, Canary::None).unwrap_or_else(|e| panic!("{e}")));
    }
    println!("{total:?}");
    assert!(total.preemptions > 200 && total.evictions > 1000 && total.cancelled > 100, "{total:?}");
    assert!(total.lost_rows > 1000 && total.aborted_steps > 100 && total.overdue > 100, "{total:?}");
    assert!(total.cached_tokens * 10 > total.prompt_tokens, "{total:?}");
}

/// A campaign that cannot fail proves nothing.
#[test]
fn canaries_are_caught() {
    for canary in [Canary::TwiceTold, Canary::HiddenLoss, Canary::DeafCancel] {
        assert!(
            (0..200).any(|seed| !matches!(std::panic::catch_unwind(|| run(seed, canary)), Ok(Ok(_)))),
            "{canary:?} went unnoticed"
        );
    }
}
