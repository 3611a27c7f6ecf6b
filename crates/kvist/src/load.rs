//! From settings to a model in memory with an engine beside it.

use std::str::FromStr;
use std::sync::Arc;

use kvist_base::{Clock, Codec, SystemClock};
use kvist_engine::{EngineConfig, Sampling};
use kvist_kernels::Isa;
use kvist_model::{Config, LoadOptions, Model};

use crate::driver::Driver;
use crate::failure::{Failure, Result};
use crate::memory::{Budget, Load};
use crate::model::Chosen;
use crate::progress::Progress;
use crate::settings::keys::{
    ISA, ITL_TARGET_MS, KV_TYPE, MAX_BATCH, MAX_N, MAX_QUEUE, MAX_STEP_TOKENS, MODEL, THREADS, WEIGHTS,
};
use crate::settings::{Settings, Value};
use crate::store::{self, Wish};
use crate::{complain, machine, memory, model};

/// What settings and machine together say, before anything large is read.
pub struct Plan {
    pub chosen: Chosen,
    pub engine: EngineConfig,
    pub budget: Budget,
    pub isa: Isa,
    pub threads: usize,
    /// What is kept on disk, if anything is.
    pub store: Option<Wish>,
}

/// Resolves what nobody gave, and checks that it fits. `replies` and `connections`: bytes of replies that are kept, and
/// connections that are open, at most.
pub fn plan(
    settings: &mut Settings,
    engine: EngineConfig,
    replies: u64,
    connections: usize,
    store: Option<Wish>,
) -> Result<Plan> {
    let threads = threads(settings);
    let isa = isa(settings.text(&ISA))?;
    settings.fill(&ISA, Value::Text(isa.to_string()));
    let chosen = chosen(settings)?;
    if let Some(note) = &chosen.note {
        complain(&format!("note: {note}"));
    }
    let load = Load {
        engine: &engine,
        codec: codec(settings.text(&KV_TYPE).unwrap_or_default()),
        threads,
        replies,
        store: if store.is_some() { store::memory(machine::free_memory().map(|free| free.bytes)) } else { 0 },
        connections,
    };
    let budget = memory::budget(settings, &chosen.config, chosen.bytes, &load, machine::free_memory())?;
    Ok(Plan { chosen, engine, budget, isa, threads, store })
}

/// The model of MODEL, in the form of `--weights`.
pub fn chosen(settings: &Settings) -> Result<Chosen> {
    model::choose(settings.text(&MODEL), model::form(settings.text(&WEIGHTS).unwrap_or_default()))
}

/// The codec of this name in `--kv-type`. What was bf16 once is kv16.
pub fn codec(name: &str) -> Codec {
    if name == "kv8" { Codec::Kv8 } else { Codec::Kv16 }
}

/// The threads asked for, or the cores allowed.
pub fn threads(settings: &mut Settings) -> usize {
    settings.fill(&THREADS, Value::Number(machine::threads() as u64));
    settings.count(&THREADS)
}

/// The ISA path of this name, or the best one.
pub fn isa(name: Option<&str>) -> Result<Isa> {
    let Some(name) = name else { return Ok(Isa::detect()) };
    let available = Isa::available();
    let names = available.iter().map(Isa::to_string).collect::<Vec<_>>().join(", ");
    match Isa::from_str(name) {
        Ok(isa) if available.contains(&isa) => Ok(isa),
        _ => Err(Failure::usage(format!("--isa {name}: this CPU does not have it"), format!("it has: {names}"))),
    }
}

/// Reads the weights, with progress on a terminal.
pub fn weights(chosen: &Chosen, threads: usize) -> Result<Model> {
    let progress = Progress::new(format!("loading {}", chosen.name));
    let options = LoadOptions { threads, weights: chosen.form, progress: &|done, total| progress.bytes(done, total) };
    Ok(Model::of(&chosen.checkpoint, &options)?)
}

/// Loads the model and sets up the engine.
pub fn driver(plan: &Plan) -> Result<Driver> {
    let model = weights(&plan.chosen, plan.threads)?;
    let executor = model.with_pool(plan.budget.pool, Some(plan.budget.context), plan.isa, plan.threads)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    Ok(Driver::new(plan.engine.clone(), Box::new(executor), clock))
}

/// The engine's bounds for `serve`.
pub fn engine_config(settings: &Settings) -> Result<EngineConfig> {
    let config = EngineConfig {
        max_batch: settings.count(&MAX_BATCH),
        max_queue: settings.count(&MAX_QUEUE),
        max_n: u32::try_from(settings.count(&MAX_N)).unwrap_or(u32::MAX),
        max_step_rows: settings.count(&MAX_STEP_TOKENS),
        itl_target: settings.count(&ITL_TARGET_MS) as u64 * 1000,
        ..EngineConfig::default()
    };
    // The engine would cut the batch to this.
    let (batch, rows) = (config.max_batch, config.max_step_rows);
    let prefill = config.min_prefill_rows.min(rows / 2);
    if batch > rows - prefill {
        return Err(Failure::usage(
            format!("--max-batch {batch} and {prefill} rows for prompts exceed a step of --max-step-tokens {rows}"),
            format!("--max-batch {}, or --max-step-tokens {}", rows - prefill, batch + config.min_prefill_rows),
        ));
    }
    Ok(config)
}

/// The engine's bounds for one conversation.
pub fn single_config(settings: &Settings) -> EngineConfig {
    let max_step_rows = settings.count(&MAX_STEP_TOKENS);
    EngineConfig { max_batch: 1, max_n: 1, max_logit_rows: 1, max_step_rows, ..EngineConfig::default() }
}

/// What a model's generation_config.json asks for. `do_sample: false` means the most likely token always.
pub fn sampling(config: &Config, seed: u64) -> Sampling {
    let asked = &config.sampling;
    let temperature = if asked.do_sample == Some(false) { 0.0 } else { asked.temperature.unwrap_or(1.0) };
    // 0 and negative numbers switch top-k off in one library or another.
    let top_k = asked.top_k.and_then(|k| u32::try_from(k).ok()).unwrap_or(0);
    Sampling {
        temperature,
        top_k,
        top_p: asked.top_p.unwrap_or(1.0),
        repetition_penalty: asked.repetition_penalty.unwrap_or(1.0),
        seed,
        ..Sampling::GREEDY
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Layers;
    use kvist_model::WeightForm;

    #[test]
    fn a_path_that_the_cpu_lacks_is_refused() {
        assert_eq!(isa(Some("portable")).unwrap(), Isa::Portable);
        assert_eq!(isa(None).unwrap(), Isa::detect());
        for name in ["avx512", "avx512vnni", "avxvnni", "avx2"] {
            match isa(Some(name)) {
                Ok(isa) => assert!(isa.is_available()),
                Err(failure) => assert!(failure.hint.contains("portable"), "{failure}"),
            }
        }
    }

    #[test]
    fn a_batch_that_the_engine_would_cut_is_refused() {
        let config = |batch: &str, rows: &str| {
            let flag = |name: &str| match name {
                "max-batch" => Some(vec![batch.to_owned()]),
                "max-step-tokens" => Some(vec![rows.to_owned()]),
                _ => None,
            };
            let layers = Layers { flags: &|key| flag(key.name), environment: &|_| None, file: None };
            engine_config(&Settings::resolve(false, &layers).unwrap())
        };
        assert_eq!(config("48", "64").unwrap().max_batch, 48);
        let failure = config("49", "64").unwrap_err();
        assert!(failure.what.contains("--max-batch 49 and 16 rows") && failure.what.ends_with("64"), "{failure}");
        assert_eq!((failure.hint.as_str(), failure.code), ("--max-batch 48, or --max-step-tokens 65", 2));
    }

    #[test]
    fn sampling_follows_the_model() {
        let embedded = model::choose(None, WeightForm::AsFile).unwrap().config;
        assert_eq!(sampling(&embedded, 3), Sampling { seed: 3, ..Sampling::GREEDY });
        let random = model::random("qwen2.5-0.5b", WeightForm::AsFile).unwrap().config;
        assert_eq!(sampling(&random, 0).temperature, 1.0);
    }
}
