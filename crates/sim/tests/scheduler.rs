//! The scheduler campaign, small. The large one: `cargo run --release -p kvist-campaign -- scheduler`.

use kvist_base::{AllResident, DomainId, Executor, StepOutput};
use kvist_engine::{Effect, Engine, EngineConfig, Finish, Request, RequestId};
use kvist_sim::campaign::{Canary, Report, run};
use kvist_sim::{CostModel, SimExecutor, SimModel};

#[test]
fn every_request_ends_once_with_the_tokens_it_would_get_alone() {
    let mut total = Report::default();
    for seed in 0..1000 {
        total.add(&run(seed, Canary::None).unwrap_or_else(|e| panic!("{e}")));
    }
    println!("{total:?}");
    assert!(total.preemptions > 200 && total.evictions > 1000 && total.cancelled > 100, "{total:?}");
    assert!(total.lost_rows > 1000 && total.aborted_steps > 100 && total.overdue > 100, "{total:?}");
    assert!(total.loads > 800 && total.read_ahead > 100 && total.dropped > 0 && total.missed > 40, "{total:?}");
    assert!(total.reopened > 1000, "{total:?}");
    assert!(total.behind_cuts > 500 && total.carried > 50_000, "{total:?}");
    assert!(total.constrained > 1000 && total.complete > 500, "{total:?}");
    assert!(total.cached_tokens * 10 > total.prompt_tokens, "{total:?}");
}

/// A campaign that cannot fail proves nothing.
#[test]
fn canaries_are_caught() {
    let canaries = [
        Canary::TwiceTold,
        Canary::HiddenLoss,
        Canary::DeafCancel,
        Canary::SharedConstraint,
        Canary::NoWaiting,
        Canary::StaleWant,
    ];
    for canary in canaries {
        assert!(
            (0..200).any(|seed| !matches!(std::panic::catch_unwind(|| run(seed, canary)), Ok(Ok(_)))),
            "{canary:?} went unnoticed"
        );
    }
}

/// A request that breaks every step that it is part of takes nobody down with it.
#[test]
fn a_poisoned_request_ends_alone() {
    const POISON: u32 = 23;
    let model = SimModel { vocab: 24, seed: 5 };
    let mut executor = SimExecutor::new(model, CostModel { step: 500, row: 20, kilotoken: 10 }, 60, 640);
    let mut engine = Engine::new(EngineConfig::default(), executor.info().clone());
    for id in 0..6u64 {
        let mut prompt: Vec<u32> = (0..150).map(|i| i % 7 + id as u32 / 2).collect();
        if id == 3 {
            prompt.push(POISON);
        }
        let request = Request::greedy(RequestId(id), DomainId(2), prompt, 20);
        engine.submit(0, request).unwrap();
    }
    let mut output = StepOutput::default();
    let mut ends = Vec::new();
    let mut aborted = 0;
    while let Some(plan) = engine.plan(0) {
        if plan.rows.iter().any(|r| r.token == POISON && r.position == 150) {
            aborted += 1;
            engine.abort_step(0);
        } else {
            executor.step(plan, &AllResident, &mut output);
            assert_eq!(executor.violations, Vec::<String>::new());
            engine.complete(1, &output);
        }
        for effect in engine.take_effects() {
            if let Effect::Finished { id, reason, .. } = effect {
                ends.push((id.0, reason));
            }
        }
    }
    ends.sort_by_key(|e| e.0);
    assert_eq!(aborted, 2, "once with the others, once alone");
    assert!(matches!(ends[3].1, Finish::Error(_)), "{ends:?}");
    assert!(ends.iter().enumerate().all(|(i, e)| i == 3 || e.1 == Finish::Length), "{ends:?}");
    engine.check_integrity().unwrap();
}

/// Two long prompts are being computed; a short one gets its first token within a few steps.
#[test]
fn a_short_prompt_is_not_stuck_behind_long_ones() {
    let model = SimModel { vocab: 24, seed: 5 };
    let mut executor = SimExecutor::new(model, CostModel { step: 500, row: 100, kilotoken: 0 }, 400, 16_384);
    let mut engine =
        Engine::new(EngineConfig { max_step_rows: 128, ..EngineConfig::default() }, executor.info().clone());
    let request = |id: u64, n: usize| {
        Request::greedy(RequestId(id), DomainId(2), (0..n as u32).map(|i| (i * 7 + id as u32) % 24).collect(), 2)
    };
    (0..3).for_each(|id| engine.submit(0, request(id, 6000)).unwrap());
    let mut output = StepOutput::default();
    let mut now = 0;
    for step in 0..20 {
        if step == 10 {
            engine.submit(now, request(9, 50)).unwrap();
        }
        let plan = engine.plan(now).expect("there is work");
        executor.step(plan, &AllResident, &mut output);
        now += executor.took;
        engine.complete(now, &output);
        if engine.take_effects().iter().any(|e| matches!(e, Effect::Token { id: RequestId(9), .. })) {
            assert!(step <= 12, "first token after {step} steps");
            return;
        }
    }
    panic!("the short prompt is stuck");
}
