//! The CPU executor on quantised weights against the f32 oracle on the very weights that the blocks stand for: what is
//! left is the rounding of activations to eight bits.

mod common;

use common::{embedded, fixtures, kl_of_logits, prompts};
use kvist_base::Executor;
use kvist_kernels::Isa;
use kvist_model::testing::{gguf, logits};
use kvist_model::{Checkpoint, LoadOptions, Model, ModelSource, OracleExecutor, WeightForm};
use kvist_weights::testing::GgufBuilder;
use kvist_weights::{Format, Gguf, MetaValue};

const QUANTISED: [Format; 6] = [Format::Q8_0, Format::Q4_0, Format::Q5_0, Format::Q4K, Format::Q5K, Format::Q6K];

fn ids(n: u32, vocab: u32) -> Vec<u32> {
    (0..n).map(|i| (i * i * 31 + i * 7) % vocab).collect()
}

#[test]
fn formats_of_files() {
    let mut files: Vec<(String, Vec<u8>)> =
        QUANTISED.iter().map(|&format| (format.to_string(), gguf::model(|_| format))).collect();
    files.push(("mixed".into(), gguf::model(gguf::mixed)));
    files.push(("medium".into(), gguf::model(gguf::medium)));
    files.push(("float down".into(), gguf::model(gguf::float_down)));
    for (name, file) in files {
        let checkpoint = Checkpoint::of_gguf(Gguf::from_bytes(file).unwrap()).unwrap();
        let model = Model::of(&checkpoint, &LoadOptions { threads: 2, ..LoadOptions::default() }).unwrap();
        let vocab = model.config().vocab;
        let ids = ids(200, vocab as u32);
        let mut oracle = OracleExecutor::read(&checkpoint, 4, None).unwrap();
        let exact = logits(&mut oracle, &ids, &[], 0);
        let deviation = (exact.iter().map(|v| v * v).sum::<f32>() / exact.len() as f32).sqrt();
        assert!((1.0..4.0).contains(&deviation), "{name}: logits of {deviation}");

        // Blocks in memory are the blocks of the file, and no larger.
        let kept = logits(&mut OracleExecutor::of(&model, 4, None).unwrap(), &ids, &[], 0);
        let bf16 = |name: &str| ["mixed", "float down"].contains(&name);
        assert!(bf16(&name) || kept == exact, "{name}: other weights in memory");
        let memory = checkpoint.memory(WeightForm::AsFile).unwrap();
        assert!(memory <= checkpoint.bytes() && model.bytes() <= memory, "{name}: {memory} bytes");

        for isa in Isa::available() {
            let mut cpu = model.clone().into_executor(4, None, isa, 2).unwrap();
            let (mean, largest) = kl_of_logits(vocab, &exact, &logits(&mut cpu, &ids, &[100], 0));
            println!("{name}, {isa}: mean KL {mean:.2e}, largest {largest:.2e}");
            assert!(mean <= 6e-4 && largest <= 3e-3, "{name} on {isa}: {mean} {largest}");
        }
        // All of it as bf16, which takes more memory and rounds less.
        let options = LoadOptions { weights: WeightForm::Bf16, ..LoadOptions::default() };
        let mut cpu = Model::of(&checkpoint, &options).unwrap().into_executor(4, None, Isa::detect(), 1).unwrap();
        let (mean, _) = kl_of_logits(vocab, &exact, &logits(&mut cpu, &ids, &[], 0));
        println!("{name} as bf16: mean KL {mean:.2e}");
        assert!(mean <= 2e-4, "{name}: {mean}");
    }
}

/// Floats quantised at load time: the embedded model.
#[test]
fn embedded_model_in_eight_and_four_bits() {
    let source = ModelSource::Dir(embedded());
    let checkpoint = Checkpoint::open(&source).unwrap();
    let prompts = prompts(&fixtures().join("embedded"));
    let ids: Vec<u32> = prompts.iter().flat_map(|p| p.ids.iter().copied()).take(512).collect();
    let vocab = checkpoint.config().vocab;
    let exact = logits(&mut OracleExecutor::new(&source, 8, None).unwrap(), &ids, &[], 0);
    // Mean KL of the executor against the same weights; of these weights against the file's.
    for (form, rounding, quantising, bits) in [(WeightForm::Q8, 8e-4, 5e-4, 8.6), (WeightForm::Q4, 8e-4, 0.045, 5.2)] {
        let options = LoadOptions { threads: 4, weights: form, ..LoadOptions::default() };
        let model = Model::of(&checkpoint, &options).unwrap();
        let per_weight = 8.0 * model.bytes() as f64 / model.config().parameters() as f64;
        assert!(per_weight <= bits, "{form:?}: {per_weight} bits a weight");
        assert!(model.bytes() <= checkpoint.memory(form).unwrap());
        let stored = logits(&mut OracleExecutor::of(&model, 8, None).unwrap(), &ids, &[], 0);
        let (lost, _) = kl_of_logits(vocab, &exact, &stored);
        println!("{form:?}: {per_weight:.2} bits a weight; mean KL of the weights {lost:.2e}");
        assert!(lost <= quantising, "{form:?}: {lost}");
        for isa in Isa::available() {
            let mut cpu = model.clone().into_executor(8, None, isa, 4).unwrap();
            let forms = if form == WeightForm::Q8 { "cpu, Q8_0, " } else { "cpu, Q4_0, Q4_K, Q8_0, " };
            assert!(cpu.info().name.starts_with(forms), "{}", cpu.info().name);
            let found = logits(&mut cpu, &ids, &[200], 0);
            let (mean, largest) = kl_of_logits(vocab, &stored, &found);
            let (total, _) = kl_of_logits(vocab, &exact, &found);
            println!("{form:?}, {isa}: mean KL {mean:.2e}, largest {largest:.2e}; against the file {total:.2e}");
            assert!(mean <= rounding, "{form:?} on {isa}: {mean}");
        }
    }
}

/// Rows that are no whole blocks are refused, with what to do.
#[test]
fn sizes_that_do_not_fit() {
    let options = LoadOptions { weights: WeightForm::Q8, ..LoadOptions::default() };
    let error = Model::load(&common::dir("llama-odd"), &options).err().expect("60 is no multiple of 32");
    assert!(error.to_string().contains("60") && error.hint().contains("bf16"), "{error}: {}", error.hint());
}

/// What a GGUF file can have wrong beyond its format.
#[test]
fn files_that_are_no_models() {
    let base = || GgufBuilder::default().value("general.architecture", MetaValue::String("llama".into()));
    let open = |file: GgufBuilder| Checkpoint::of_gguf(Gguf::from_bytes(file.build()).unwrap()).err().expect("refused");
    let embedded = |file: GgufBuilder| file.f32("token_embd.weight", &[4, 32], &[0.5; 128]);
    let cases = [
        ("no architecture", GgufBuilder::default(), "architecture"),
        ("unknown", GgufBuilder::default().value("general.architecture", MetaValue::String("t5".into())), "t5"),
        ("no tensors", base(), "token_embd"),
        ("no heads", embedded(base()), "head_count"),
        ("a text", embedded(base()).value("llama.attention.head_count", MetaValue::String("4".into())), "head_count"),
        (
            "many layers",
            embedded(base())
                .value("llama.attention.head_count", MetaValue::U32(4))
                .value("llama.block_count", MetaValue::U64(u64::MAX)),
            "block_count",
        ),
        (
            "experts",
            embedded(base())
                .value("llama.attention.head_count", MetaValue::U32(4))
                .value("llama.block_count", MetaValue::U32(2))
                .value("llama.expert_count", MetaValue::U32(8)),
            "experts",
        ),
    ];
    for (what, file, named) in cases {
        let error = open(file);
        assert!(error.to_string().contains(named) && !error.hint().is_empty(), "{what}: {error}");
    }
}
