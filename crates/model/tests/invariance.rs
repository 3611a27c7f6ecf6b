//! Cold = warm = any batch, on hand-made step plans.

mod common;

use common::{battery, dir, embedded, load};
use kvist_kernels::Isa;
use kvist_model::testing::logits;
use kvist_model::{ModelSource, OracleExecutor, PoolSize};

#[test]
fn oracle() {
    for name in ["qwen3", "gemma3"] {
        battery::run(&|| Box::new(OracleExecutor::new(&dir(name), 64, None).unwrap()));
    }
}

#[test]
fn cpu() {
    let of_one_class = [("llama-odd", &[1, 3][..]), ("smollm2", &[1, 3]), ("qwen3", &[1, 3])];
    let further = ["mistral", "gemma2", "gemma3", "phi4-mini", "olmo2"];
    for (name, threads) in of_one_class.into_iter().chain(further.map(|name| (name, &[2][..]))) {
        let model = load(&dir(name));
        for isa in Isa::available() {
            for &threads in threads {
                println!("{name}, {isa}, {threads} threads");
                battery::run(&|| Box::new(model.clone().into_executor(64, Some(1024), isa, threads).unwrap()));
            }
        }
    }
}

#[test]
fn kv8() {
    battery::run(&|| Box::new(OracleExecutor::new(&dir("qwen3"), 64, None).unwrap().with_kv8(64)));
    for (name, threads) in [("llama-odd", 3), ("smollm2", 1), ("gemma3", 2)] {
        let model = load(&dir(name));
        for isa in Isa::available() {
            println!("{name}, {isa}, {threads} threads");
            let size = PoolSize::kv8(64, 64);
            battery::run(&|| Box::new(model.clone().with_pool(size, Some(1024), isa, threads).unwrap()));
        }
    }
}

#[test]
fn embedded_model() {
    let model = load(&ModelSource::Dir(embedded()));
    battery::run(&|| Box::new(model.clone().into_executor(64, Some(1024), Isa::detect(), 4).unwrap()));
}

/// More threads than kv-heads too, and several segments for them to share.
#[test]
fn threads_do_not_matter() {
    for name in ["qwen3", "gemma3"] {
        let model = load(&dir(name));
        let ids: Vec<u32> = (0..1600).map(|i| i * i % 319).collect();
        for isa in Isa::available() {
            let run = |threads| {
                let mut executor = model.clone().into_executor(25, None, isa, threads).unwrap();
                logits(&mut executor, &ids, &[500, 1100, 1101, 1102, 1590], 1095)
            };
            let one = run(1);
            assert!((2..=8).all(|threads| run(threads) == one), "{name}, {isa}");
        }
    }
}
