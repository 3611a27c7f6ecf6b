//! KV in 8 bits: the embedded model stays what it is, also where a few channels of K are many times larger than the rest.
//! All positions: `cargo run --release -p kvist-campaign -- kv-quality`.

use kvist_base::CHUNK;
use kvist_campaign::quality::{EXACT, ROUNDED, logits, mean_divergence, measure, model, prompts};
use kvist_kernels::Isa;
use kvist_model::{OracleExecutor, testing};

const THREADS: usize = 4;

#[test]
fn kv8_is_close_to_kv16() {
    let isa = Isa::detect();
    let (plain, exact, rounded) = (model(None), model(Some(&EXACT)), model(Some(&ROUNDED)));
    let prompts = prompts();
    assert!(prompts.iter().map(Vec::len).sum::<usize>() >= 8192);
    // Where the outliers are such by powers of two, all that changes is how closely other channels are stored: in 16 bits
    // that is lost in what else is rounded.
    let (vocab, prompt) = (plain.config().vocab, &prompts[5]);
    let mut oracle = OracleExecutor::of(&plain, prompt.len().div_ceil(CHUNK) as u32, None).unwrap();
    let unrounded = testing::logits(&mut oracle, prompt, &[], 0);
    let [as_it_is, outliers] =
        [&plain, &exact].map(|model| mean_divergence(vocab, &unrounded, &logits(model, false, isa, THREADS, prompt)));
    println!("mean KL from KV and activations in f32: {as_it_is:.3e}, with outliers in K {outliers:.3e}");
    assert!(as_it_is != outliers, "nothing was scaled");
    assert!(outliers < 1.1 * as_it_is && as_it_is < 3e-4);
    for (name, model) in [("as it is", &plain), ("with outliers in K", &rounded)] {
        let found = measure(model, &prompts, isa, THREADS);
        println!("{name}: {found}");
        assert!(found.positions >= 8192 && found.mean_kl <= 1e-3 && found.top1 >= 0.99, "{name}: {found}");
        // It does change something.
        assert!(found.mean_kl > 1e-9 && found.kv8_bytes * 100 < found.kv16_bytes * 54, "{name}: {found}");
    }
}
