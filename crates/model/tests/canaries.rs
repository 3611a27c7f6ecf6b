//! The checks of this crate can fail: each deliberate breach of the numerics contract is noticed.

mod common;

use common::{battery, dir, embedded, load};
use kvist_kernels::Isa;
use kvist_model::testing::{Part, logits, path, plan, step};
use kvist_model::{Canary, CpuExecutor, Model, ModelSource};

use kvist_base::AllResident;

fn executor(model: &Model, chunks: u32, threads: usize) -> CpuExecutor {
    model.clone().into_executor(chunks, None, Isa::detect(), threads).unwrap()
}

#[test]
fn the_battery_notices_what_depends_on_the_batch() {
    let model = load(&dir("qwen3"));
    for canary in [Canary::BlockRescale, Canary::RoundAfterUse] {
        let make = || Box::new(executor(&model, 64, 1).with_canary(canary)) as _;
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| battery::run(&make)));
        assert!(caught.is_err(), "{canary:?} passes");
    }
}

/// Two segments fold to the same bits in either order; three do not.
#[test]
fn folding_by_completion_is_noticed() {
    let model = load(&ModelSource::Dir(embedded()));
    let ids: Vec<u32> = (0..2500).map(|i| i * i % 4093).collect();
    let chunks = path(0, ids.len());
    let last = ids.len() - 1;
    let decode =
        plan(&[Part { tokens: &ids, path: &chunks, rows: last..last + 1, write_from: last, logits_from: 0 }], true);
    let cuts = [512, 1024, 1536, 2048, last];

    let mut sound = executor(&model, 40, 8);
    let expected = logits(&mut sound, &ids, &cuts, last);
    let same = (0..200).filter(|_| step(&mut sound, &decode, &AllResident).logits == expected).count();
    assert_eq!(same, 200);

    let mut canary = executor(&model, 40, 8).with_canary(Canary::FoldByCompletion);
    logits(&mut canary, &ids, &cuts, last);
    assert!((0..1000).any(|_| step(&mut canary, &decode, &AllResident).logits != expected));
}
