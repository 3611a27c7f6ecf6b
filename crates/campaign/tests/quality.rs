//! KV in 8 bits: the embedded model stays what it is, also where a few channels of K are many times larger than the rest.
//! All positions: `cargo run --release -p kvist-campaign -- kv-quality`.

use kvist_campaign::quality::{EXACT, ROUNDED, logits, measure, model, prompts};
use kvist_kernels::Isa;

const THREADS: usize = 4;

#[test]
fn kv8_is_close_to_bf16() {
    let isa = Isa::detect();
    let (plain, exact, rounded) = (model(None), model(Some(&EXACT)), model(Some(&ROUNDED)));
    let prompts = prompts();
    assert!(prompts.iter().map(Vec::len).sum::<usize>() >= 8192);
    // K is scaled per channel: where the outliers are such by powers of two, its codes are the same, and all that follows.
    let prompt = &prompts[5];
    let bits =
        |model, kv8| -> Vec<u32> { logits(model, kv8, isa, THREADS, prompt).into_iter().map(f32::to_bits).collect() };
    assert!(bits(&plain, false) == bits(&exact, false) && bits(&plain, true) == bits(&exact, true));
    assert!(bits(&plain, false) != bits(&rounded, false), "nothing was scaled");
    for (name, model) in [("as it is", &plain), ("with outliers in K", &rounded)] {
        let found = measure(model, &prompts, isa, THREADS);
        println!("{name}: {found}");
        assert!(found.positions >= 8192 && found.mean_kl <= 1e-3 && found.top1 >= 0.99, "{name}: {found}");
        // It does change something.
        assert!(found.mean_kl > 1e-9 && found.kv8_bytes * 100 < found.bf16_bytes * 54, "{name}: {found}");
    }
}
