//! What a model and its KV cache take, and whether this machine has it.

use kvist_base::CHUNK;
use kvist_engine::EngineConfig;
use kvist_model::Config;

use crate::failure::{Failure, Result};
use crate::settings::keys::{CTX, KV_RAM};
use crate::settings::{Settings, Value};
use crate::size::{exact, human, thousands};

const MIB: u64 = 1 << 20;
/// Bookkeeping of a chunk in the tree, about: its token ids, links and place in the eviction order.
const NODE_BYTES: u64 = 512;

/// Memory, all in bytes, and what fits into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    pub weights: u64,
    pub kv: u64,
    pub buffers: u64,
    /// Chunks of the KV pool.
    pub chunks: u32,
    pub token_bytes: u64,
    pub context: usize,
    pub limit: Limit,
}

/// Why the context is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Asked,
    Model,
    /// The pool holds no more of a sequence.
    Pool,
}

impl Budget {
    /// KV of this many tokens can be held.
    pub fn capacity(&self) -> usize {
        self.chunks as usize * CHUNK
    }

    /// Conversations at full context that the pool holds at once; its last chunk is for copies.
    pub fn conversations(&self) -> usize {
        (self.chunks as usize).saturating_sub(1) / self.context.div_ceil(CHUNK)
    }

    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.kv).saturating_add(self.buffers)
    }
}

/// Fills in `--kv-ram` and `--ctx` where they are not given, and checks that everything fits. `free` is unknown on some
/// systems; then nothing is refused.
pub fn budget(settings: &mut Settings, config: &Config, engine: &EngineConfig, free: Option<u64>) -> Result<Budget> {
    settings.fill(&KV_RAM, Value::Size(default_kv(free)));
    let kv_ram = settings.number(&KV_RAM).expect("just filled in");
    let asked = settings.number(&CTX).map(|n| n as usize);
    let budget = plan(config, kv_ram, asked, engine)?;
    settings.fill(&CTX, Value::Number(budget.context as u64));
    if let Some(free) = free {
        check(&budget, free)?;
    }
    Ok(budget)
}

/// A quarter of free memory in whole MiB.
pub fn default_kv(free: Option<u64>) -> u64 {
    (free.unwrap_or(4 << 30) / 4 / MIB).max(1) * MIB
}

fn plan(config: &Config, kv_ram: u64, asked: Option<usize>, engine: &EngineConfig) -> Result<Budget> {
    let layout = config.kv_layout();
    let (chunk_bytes, token_bytes) = (layout.bytes as u64, layout.token_bytes() as u64);
    // Chunk ids have 32 bits.
    let chunks = (kv_ram / chunk_bytes).min(u64::from(u32::MAX - 1));
    // One chunk more than a sequence's own: while its open chunk is copied, both copies are held.
    let longest = chunks.saturating_sub(1) as usize * CHUNK;
    let needed = |tokens: usize| (tokens.div_ceil(CHUNK) as u64 + 1) * chunk_bytes;
    if let Some(asked) = asked.filter(|&asked| asked > config.context) {
        return Err(Failure::usage(
            format!("--ctx {asked}: the model was made for {} tokens", config.context),
            format!("choose {} or less", config.context),
        ));
    }
    if longest == 0 || asked.is_some_and(|asked| asked > longest) {
        let tokens = asked.unwrap_or(CHUNK);
        let least = needed(tokens).div_ceil(MIB) * MIB;
        let shorter = if longest > 0 { format!(", or --ctx {longest}") } else { String::new() };
        return Err(Failure::usage(
            format!(
                "--kv-ram {} holds no context of {} tokens: at {} a token it takes {}",
                exact(kv_ram),
                thousands(tokens as u64),
                human(token_bytes),
                human(needed(tokens)),
            ),
            format!("--kv-ram {}{shorter}", exact(least)),
        ));
    }
    let (context, limit) = match asked {
        Some(asked) => (asked, Limit::Asked),
        None if longest < config.context => (longest, Limit::Pool),
        None => (config.context, Limit::Model),
    };
    let c = config;
    // Residual stream, its bf16 copy, q k v, attention output, gate and up; a row of each.
    let row = 6 * c.hidden + 2 * (c.heads + 2 * c.kv_heads) * c.head_dim + 3 * c.intermediate;
    // What is too much for 64 bits is too much for any machine.
    let floats = |rows: usize, width: usize| (rows as u64).saturating_mul(width as u64).saturating_mul(4);
    let logit_rows = engine.max_batch.saturating_add(engine.max_logit_rows);
    let steps = floats(engine.max_step_rows, row).saturating_add(floats(logit_rows, c.vocab));
    // While weights are packed, one matrix is there twice.
    let largest = (c.vocab.max(2 * c.intermediate) * c.hidden * 2) as u64;
    Ok(Budget {
        weights: c.parameters() * 2,
        kv: chunks * chunk_bytes,
        buffers: steps.saturating_add(largest + chunks * NODE_BYTES),
        chunks: chunks as u32,
        token_bytes,
        context,
        limit,
    })
}

fn check(budget: &Budget, free: u64) -> Result<()> {
    if budget.total() <= free {
        return Ok(());
    }
    let what = format!(
        "not enough memory: weights {} + KV cache {} + buffers {} = {}, but {} are free",
        human(budget.weights),
        human(budget.kv),
        human(budget.buffers),
        human(budget.total()),
        human(free),
    );
    let chunk = budget.token_bytes * CHUNK as u64;
    let fixed = budget.weights.saturating_add(budget.buffers - u64::from(budget.chunks) * NODE_BYTES);
    let fitting = free.saturating_sub(fixed) / (chunk + NODE_BYTES) * chunk / MIB * MIB;
    // The pool's last chunk is for copies.
    let hint = match (fitting / chunk).saturating_sub(1) * CHUNK as u64 {
        0 => "choose a smaller model".into(),
        tokens => format!("--kv-ram {} fits, with a context of {} tokens at most", exact(fitting), thousands(tokens)),
    };
    Err(Failure::new(what, hint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvist_model::shapes;

    const GIB: u64 = 1 << 30;

    fn engine() -> EngineConfig {
        EngineConfig { max_step_rows: 512, ..EngineConfig::default() }
    }

    #[test]
    fn all_rows_of_logits_count_and_nothing_wraps() {
        let config = shapes::by_name("llama-3.2-1b").unwrap();
        let with = |engine: &EngineConfig| plan(&config, GIB, None, engine).unwrap();
        let one = EngineConfig { max_batch: 65, ..engine() };
        let two = EngineConfig { max_logit_rows: 65, ..engine() };
        let row = 4 * config.vocab as u64;
        assert_eq!(with(&one).buffers - with(&engine()).buffers, row);
        assert_eq!(with(&two).buffers - with(&engine()).buffers, row);
        let huge = with(&EngineConfig { max_step_rows: usize::MAX, ..engine() });
        assert_eq!(huge.total(), u64::MAX);
        assert!(check(&huge, 8 * GIB).is_err());
    }

    #[test]
    fn the_pool_bounds_the_context() {
        let config = shapes::by_name("llama-3.2-1b").unwrap();
        let small = plan(&config, GIB, None, &engine()).unwrap();
        assert_eq!((small.chunks, small.token_bytes), (512, 32 << 10));
        assert_eq!((small.context, small.limit), (511 * 64, Limit::Pool));
        assert_eq!(small.capacity(), 32_768);
        let large = plan(&config, 8 * GIB, None, &engine()).unwrap();
        assert_eq!((large.context, large.limit), (131_072, Limit::Model));
        let asked = plan(&config, 8 * GIB, Some(1000), &engine()).unwrap();
        assert_eq!((asked.context, asked.limit), (1000, Limit::Asked));
        assert_eq!(large.weights, 2 * 1_235_814_400);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_arithmetic() {
        let config = shapes::by_name("llama-3.2-1b").unwrap();
        let text = |r: Result<Budget>| r.unwrap_err().to_string();
        let long = text(plan(&config, GIB, Some(100_000), &engine()));
        assert!(long.contains("100,000 tokens: at 32.0 KiB a token it takes 3.1 GiB"), "{long}");
        assert!(long.contains("--kv-ram 3128MiB, or --ctx 32704"), "{long}");
        let none = text(plan(&config, 1000, None, &engine()));
        assert!(none.contains("--kv-ram 1000 holds no context") && none.ends_with("hint: --kv-ram 4MiB"), "{none}");
        let model = text(plan(&config, 8 * GIB, Some(200_000), &engine()));
        assert!(model.contains("made for 131072 tokens"), "{model}");
    }

    #[test]
    fn free_memory_is_checked_with_the_arithmetic() {
        let config = shapes::by_name("llama-3.2-1b").unwrap();
        let budget = plan(&config, 4 * GIB, None, &engine()).unwrap();
        assert_eq!(check(&budget, 8 * GIB), Ok(()));
        let failure = check(&budget, 4 * GIB).unwrap_err();
        assert!(failure.what.contains("weights 2.3 GiB + KV cache 4.0 GiB + buffers "), "{failure}");
        assert!(failure.what.ends_with("but 4.0 GiB are free"), "{failure}");
        let size = failure.hint.split(' ').nth(1).unwrap();
        let fits = plan(&config, crate::size::parse(size).unwrap(), None, &engine()).unwrap();
        check(&fits, 4 * GIB).unwrap();
        let failure = check(&budget, GIB).unwrap_err();
        assert_eq!(failure.hint, "choose a smaller model");
    }

    #[test]
    fn the_default_is_a_quarter() {
        assert_eq!(default_kv(Some(20 * GIB + 4 * MIB + 5)), 5 * GIB + MIB);
        assert_eq!(default_kv(Some(0)), MIB);
    }
}
