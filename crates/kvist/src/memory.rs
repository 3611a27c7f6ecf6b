//! What a model and its KV cache take, and whether this machine has it.

use std::fmt::Write as _;

use kvist_base::{CHUNK, Codec, SEGMENT};
use kvist_engine::EngineConfig;
use kvist_model::{Config, PoolSize};

use crate::failure::{Failure, Result};
use crate::machine::Free;
use crate::settings::keys::{CTX, KV_RAM};
use crate::settings::{Settings, Value};
use crate::size::{exact, human, thousands};

const MIB: u64 = 1 << 20;
/// Bookkeeping of a chunk in the tree, about: its token ids, links and place in the eviction order.
const NODE_BYTES: u64 = 512;
/// Buffers of an HTTP connection in both directions, and its task.
const CONNECTION_BYTES: u64 = 144 << 10;
/// Query rows of a band, bands per thread that attention may cut into segments, and the bytes that the states of all
/// of them take at most: see `attn/plan.rs` of the kernels.
const BAND: u64 = 128;
const CUT_BANDS: u64 = 3;
const MOST_PARTIALS: u64 = 128 << 20;

/// What is there besides model and cache.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    pub engine: &'a EngineConfig,
    /// How sealed chunks are kept.
    pub codec: Codec,
    pub threads: usize,
    /// Bytes of the table of replies.
    pub replies: u64,
    /// Bytes between the cache and the store on disk.
    pub store: u64,
    pub connections: usize,
}

/// Memory, all in bytes, and what fits into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    pub weights: u64,
    pub kv: u64,
    /// Activations, logits, partial states of the attention, and the tree.
    pub buffers: u64,
    pub replies: u64,
    pub store: u64,
    pub connections: u64,
    pub pool: PoolSize,
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

impl Limit {
    pub fn name(self) -> &'static str {
        match self {
            Limit::Asked => "asked",
            Limit::Model => "model",
            Limit::Pool => "kv-ram",
        }
    }
}

impl Budget {
    /// KV of this many tokens can be held.
    pub fn capacity(&self) -> usize {
        self.pool.chunks as usize * CHUNK
    }

    /// Conversations at full context that the pool holds at once; its last chunk is for copies.
    pub fn conversations(&self) -> usize {
        (self.pool.chunks as usize).saturating_sub(1) / self.context.div_ceil(CHUNK)
    }

    pub fn total(&self) -> u64 {
        let parts = [self.kv, self.buffers, self.replies, self.store, self.connections];
        parts.into_iter().fold(self.weights, u64::saturating_add)
    }

    /// The sum, term by term.
    pub fn arithmetic(&self) -> String {
        let mut sum = format!(
            "weights {} + KV cache {} + step buffers {}",
            human(self.weights),
            human(self.kv),
            human(self.buffers)
        );
        for (name, bytes) in
            [("replies", self.replies), ("disk buffers", self.store), ("connections", self.connections)]
        {
            if bytes > 0 {
                let _ = write!(sum, " + {name} {}", human(bytes));
            }
        }
        format!("{sum} = {}", human(self.total()))
    }
}

/// Fills in `--kv-ram` and `--ctx` where they are not given, and checks that everything fits. `free` is unknown on some
/// systems; then nothing is refused.
pub fn budget(
    settings: &mut Settings,
    config: &Config,
    weights: u64,
    load: &Load,
    free: Option<Free>,
) -> Result<Budget> {
    let asked = settings.number(&CTX).map(|n| n as usize);
    settings.fill(&KV_RAM, Value::Size(default_kv(config, weights, asked, load, free)));
    let kv_ram = settings.number(&KV_RAM).expect("just filled in");
    let budget = plan(config, weights, kv_ram, asked, load)?;
    settings.fill(&CTX, Value::Number(budget.context as u64));
    if let Some(free) = free {
        check(config, &budget, asked, load, free)?;
    }
    Ok(budget)
}

/// A quarter of free memory, or what the model leaves of it if that is less; whole MiB.
fn default_kv(config: &Config, weights: u64, asked: Option<usize>, load: &Load, free: Option<Free>) -> u64 {
    let Some(free) = free else { return 1 << 30 };
    let quarter = free.bytes / 4;
    match fitting(config, weights, asked, load, free.bytes) {
        // The check tells what is wrong then.
        0 => quarter,
        left => quarter.min(left),
    }
    .max(MIB)
        / MIB
        * MIB
}

/// The largest `--kv-ram` that leaves room for the rest, 0 if there is none.
pub fn fitting(config: &Config, weights: u64, asked: Option<usize>, load: &Load, free: u64) -> u64 {
    let chunk = config.layout_of(load.codec).bytes as u64;
    let rest = buffers(config, load, asked.unwrap_or(config.context).min(config.context));
    let taken = [rest, load.replies, load.store, connections(load)].into_iter().fold(weights, u64::saturating_add);
    free.saturating_sub(taken) / (chunk + NODE_BYTES) * chunk / MIB * MIB
}

/// The longest context that `--kv-ram` of this size holds: while a sequence's open chunk is copied, both copies are
/// held.
pub fn longest(config: &Config, load: &Load, kv_ram: u64) -> usize {
    pool(config, load, kv_ram).chunks.saturating_sub(1) as usize * CHUNK
}

/// Tokens whose KV `--kv-ram` of this size holds.
pub fn held(config: &Config, load: &Load, kv_ram: u64) -> u64 {
    u64::from(pool(config, load, kv_ram).chunks) * CHUNK as u64
}

/// The pool that takes `--kv-ram` of this size. Chunk ids have 32 bits.
///
/// Where sealed chunks are encoded, open ones have room of their own: enough for a full batch and a step of prompts if
/// that is no more than a quarter of all, and a sixteenth of all for the ends of conversations that nobody continues now.
fn pool(config: &Config, load: &Load, kv_ram: u64) -> PoolSize {
    let most = u64::from(u32::MAX - 1);
    let open = open_chunks(config, load, kv_ram);
    let left = kv_ram.saturating_sub(open * config.kv_layout().bytes as u64);
    let chunks = (left / config.layout_of(load.codec).bytes as u64).min(most - open.min(most));
    PoolSize { codec: load.codec, chunks: chunks as u32, open: open.min(most) as u32 }
}

fn open_chunks(config: &Config, load: &Load, kv_ram: u64) -> u64 {
    if load.codec != Codec::Kv8 {
        return 0;
    }
    let bytes = config.kv_layout().bytes as u64;
    let step = load.engine.max_batch.saturating_add(load.engine.max_step_rows / CHUNK + 2) as u64;
    step.min(kv_ram / 4 / bytes).max(kv_ram / 16 / bytes).max(2)
}

/// Bytes of a pool.
fn pool_bytes(config: &Config, pool: PoolSize) -> u64 {
    u64::from(pool.chunks) * config.layout_of(pool.codec).bytes as u64
        + u64::from(pool.open) * config.kv_layout().bytes as u64
}

/// The smallest `--kv-ram` of which the pool has this many chunks, whole MiB.
fn kv_ram_for(config: &Config, load: &Load, chunks: u64) -> u64 {
    let mut kv_ram = 0;
    loop {
        let (sealed, open) = (config.layout_of(load.codec).bytes as u64, config.kv_layout().bytes as u64);
        let needed = (chunks * sealed + open_chunks(config, load, kv_ram) * open).div_ceil(MIB) * MIB;
        if needed <= kv_ram {
            return kv_ram;
        }
        kv_ram = needed;
    }
}

fn connections(load: &Load) -> u64 {
    load.connections as u64 * CONNECTION_BYTES
}

/// The plan for a `--kv-ram` and perhaps a `--ctx`, whether the memory is there or not.
pub fn plan(config: &Config, weights: u64, kv_ram: u64, asked: Option<usize>, load: &Load) -> Result<Budget> {
    let layout = config.layout_of(load.codec);
    let token_bytes = layout.token_bytes() as u64;
    let pool = pool(config, load, kv_ram);
    let longest = longest(config, load, kv_ram);
    let chunks = |tokens: usize| tokens.div_ceil(CHUNK) as u64 + 1;
    if let Some(asked) = asked.filter(|&asked| asked > config.context) {
        return Err(Failure::usage(
            format!("--ctx {asked}: the model was made for {} tokens", config.context),
            format!("choose {} or less", config.context),
        ));
    }
    if longest == 0 || asked.is_some_and(|asked| asked > longest) {
        let tokens = asked.unwrap_or(CHUNK);
        let least = kv_ram_for(config, load, chunks(tokens));
        let shorter = if longest > 0 { format!(", or --ctx {longest}") } else { String::new() };
        return Err(Failure::usage(
            format!(
                "--kv-ram {} holds no context of {} tokens: at {} a token it takes {}",
                exact(kv_ram),
                thousands(tokens as u64),
                human(token_bytes),
                human(chunks(tokens) * layout.bytes as u64),
            ),
            format!("--kv-ram {}{shorter}", exact(least)),
        ));
    }
    let (context, limit) = match asked {
        Some(asked) => (asked, Limit::Asked),
        None if longest < config.context => (longest, Limit::Pool),
        None => (config.context, Limit::Model),
    };
    Ok(Budget {
        weights,
        kv: pool_bytes(config, pool),
        buffers: buffers(config, load, context).saturating_add(u64::from(pool.chunks) * NODE_BYTES),
        replies: load.replies,
        store: load.store,
        connections: connections(load),
        pool,
        token_bytes,
        context,
        limit,
    })
}

/// What steps take at most. What is too much for 64 bits is too much for any machine.
fn buffers(config: &Config, load: &Load, context: usize) -> u64 {
    let (c, engine) = (config, load.engine);
    // Elements of 4 bytes: the residual stream, and what is to be added to it; q, k and v side by side and apart; rotated
    // queries, attention output and angles; gate and up side by side, one of them apart, and their product in bf16 and
    // in 8 bits.
    let (heads, angles) = (c.heads * c.head_dim, c.ropes.len() * c.head_dim);
    let added = if c.block.adds_directly() { 0 } else { c.hidden };
    let row = c.hidden + added + 2 * (c.heads + 2 * c.kv_heads) * c.head_dim + 2 * heads + angles + 4 * c.intermediate;
    let floats = |rows: usize, width: usize| (rows as u64).saturating_mul(width as u64).saturating_mul(4);
    let logit_rows = engine.max_batch.saturating_add(engine.max_logit_rows);
    let steps = floats(engine.max_step_rows, row).saturating_add(floats(logit_rows, c.vocab + c.hidden));
    steps.saturating_add(partials(config, load.threads, context))
}

/// States of the attention's bands that are cut into segments, all layer classes together.
fn partials(config: &Config, threads: usize, context: usize) -> u64 {
    let segments = context.div_ceil(SEGMENT) as u64;
    if threads < 2 || segments < 2 {
        return 0;
    }
    let classes = config.kv_layout().layers.iter().map(|layer| layer.class + 1).max().unwrap_or(0) as u64;
    let state = BAND * (config.head_dim.next_multiple_of(16) as u64 + 2) * 4;
    classes * (CUT_BANDS * threads as u64).saturating_mul(segments).saturating_mul(state).min(MOST_PARTIALS)
}

fn check(config: &Config, budget: &Budget, asked: Option<usize>, load: &Load, free: Free) -> Result<()> {
    if budget.total() <= free.bytes {
        return Ok(());
    }
    let what =
        format!("not enough memory: {}, but {} are free{}", budget.arithmetic(), human(free.bytes), free.words());
    let smaller = "choose a smaller model";
    let fitting = fitting(config, budget.weights, asked, load, free.bytes);
    let hint = match longest(config, load, fitting).min(config.context) {
        0 => smaller.into(),
        tokens if asked.is_some_and(|asked| asked > tokens) => {
            format!("--ctx {tokens} --kv-ram {} fits, or {smaller}", exact(fitting))
        }
        tokens => {
            format!("--kv-ram {} fits, with a context of {} tokens at most", exact(fitting), thousands(tokens as u64))
        }
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

    fn load(engine: &EngineConfig) -> Load<'_> {
        Load { engine, codec: Codec::Kv16, threads: 4, replies: 64 * MIB, store: 0, connections: 900 }
    }

    fn llama() -> (Config, u64) {
        let config = shapes::by_name("llama-3.2-1b").unwrap();
        let weights = 2 * config.parameters();
        (config, weights)
    }

    fn planned(kv_ram: u64, asked: Option<usize>) -> Result<Budget> {
        let (config, weights) = llama();
        plan(&config, weights, kv_ram, asked, &load(&engine()))
    }

    fn free(bytes: u64) -> Free {
        Free { bytes, cgroup: false }
    }

    #[test]
    fn all_rows_of_logits_count_and_nothing_wraps() {
        let (config, weights) = llama();
        let with = |engine: &EngineConfig| plan(&config, weights, GIB, None, &load(engine)).unwrap();
        let one = EngineConfig { max_batch: 65, ..engine() };
        let two = EngineConfig { max_logit_rows: 65, ..engine() };
        let row = 4 * (config.vocab + config.hidden) as u64;
        assert_eq!(with(&one).buffers - with(&engine()).buffers, row);
        assert_eq!(with(&two).buffers - with(&engine()).buffers, row);
        let huge = EngineConfig { max_step_rows: usize::MAX, ..engine() };
        assert_eq!(with(&huge).total(), u64::MAX);
        assert!(check(&config, &with(&huge), None, &load(&huge), free(8 * GIB)).is_err());
    }

    #[test]
    fn partial_states_count_up_to_their_bound() {
        let (config, _) = llama();
        // 3 bands for each thread, a segment of 512 tokens each: 128 query rows of 64 values, a maximum and a sum.
        assert_eq!(partials(&config, 4, 4096), 3 * 4 * 8 * 128 * 66 * 4);
        assert_eq!(partials(&config, 64, 131_072), 128 * MIB);
        assert_eq!((partials(&config, 1, 131_072), partials(&config, 4, 512)), (0, 0));
    }

    #[test]
    fn the_pool_bounds_the_context() {
        let small = planned(GIB, None).unwrap();
        // 32 KiB of codes and 512 bytes of scales.
        assert_eq!((small.pool.chunks, small.token_bytes), (504, 33_280));
        assert_eq!((small.context, small.limit), (503 * 64, Limit::Pool));
        assert_eq!(small.capacity(), 32_256);
        let large = planned(8 * GIB, None).unwrap();
        assert_eq!((large.context, large.limit), (131_072, Limit::Model));
        let asked = planned(8 * GIB, Some(1000)).unwrap();
        assert_eq!((asked.context, asked.limit), (1000, Limit::Asked));
        assert_eq!(large.weights, 2 * 1_235_814_400);
    }

    #[test]
    fn encoded_chunks_leave_room_for_open_ones() {
        let (config, weights) = llama();
        let engine = engine();
        let load = Load { codec: Codec::Kv8, ..load(&engine) };
        let plan = |kv_ram, asked| super::plan(&config, weights, kv_ram, asked, &load);
        let kv16 = planned(8 * GIB, None).unwrap();
        let kv8 = plan(8 * GIB, None).unwrap();
        assert!(kv8.kv <= 8 * GIB && kv8.kv > 8 * GIB - 4 * MIB, "{kv8:?}");
        assert_eq!(u64::from(kv8.pool.open), 8 * GIB / 16 / (64 * 33_280));
        assert_eq!(kv8.token_bytes, 16896);
        let gain = kv8.capacity() as f64 / kv16.capacity() as f64;
        assert!(gain > 1.8, "{gain}");
        // A small pool: a quarter for a batch of 64 and its prompts.
        assert_eq!(plan(GIB / 2, None).unwrap().pool.open, 63);
        assert_eq!(plan(GIB, None).unwrap().pool.open, 64 + 8 + 2);
        for (kv_ram, tokens) in [(GIB, 100_000), (MIB, 64), (64 * MIB, 9000), (8 * GIB, 131_072)] {
            let tokens = if plan(kv_ram, Some(tokens)).is_ok() { config.context } else { tokens };
            if let Err(failure) = plan(kv_ram, Some(tokens)) {
                let size = crate::size::parse(failure.hint.split([' ', ',']).nth(1).unwrap()).unwrap();
                assert_eq!(plan(size, Some(tokens)).unwrap().context, tokens, "{failure}");
                assert!(plan(size - MIB, Some(tokens)).is_err(), "{failure}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_arithmetic() {
        let text = |r: Result<Budget>| r.unwrap_err().to_string();
        let long = text(planned(GIB, Some(100_000)));
        assert!(long.contains("100,000 tokens: at 32.5 KiB a token it takes 3.1 GiB"), "{long}");
        assert!(long.contains("--kv-ram 3177MiB, or --ctx 32192"), "{long}");
        let none = text(planned(1000, None));
        assert!(none.contains("--kv-ram 1000 holds no context") && none.ends_with("hint: --kv-ram 5MiB"), "{none}");
        let model = text(planned(8 * GIB, Some(200_000)));
        assert!(model.contains("made for 131072 tokens"), "{model}");
    }

    #[test]
    fn free_memory_is_checked_with_the_arithmetic() {
        let (config, weights) = llama();
        let engine = engine();
        let load = load(&engine);
        let check = |budget: &Budget, bytes| super::check(&config, budget, None, &load, free(bytes));
        let budget = planned(4 * GIB, None).unwrap();
        assert_eq!(check(&budget, 8 * GIB), Ok(()));
        let failure = check(&budget, 4 * GIB).unwrap_err();
        for part in
            ["weights 2.3 GiB + KV cache 4.0 GiB + step buffers ", " + replies 64.0 MiB + connections 127 MiB = "]
        {
            assert!(failure.what.contains(part), "{part:?} in {failure}");
        }
        assert!(failure.what.ends_with("but 4.0 GiB are free"), "{failure}");
        let size = failure.hint.split(' ').nth(1).unwrap();
        let fits = planned(crate::size::parse(size).unwrap(), None).unwrap();
        check(&fits, 4 * GIB).unwrap();
        let failure = check(&budget, GIB).unwrap_err();
        assert_eq!(failure.hint, "choose a smaller model");
        let group = super::check(&config, &budget, None, &load, Free { bytes: GIB, cgroup: true }).unwrap_err();
        assert!(group.what.ends_with("1.0 GiB are free under the cgroup's limit"), "{group}");
        let long = Budget { context: 131_072, ..budget };
        let failure = super::check(&config, &long, Some(131_072), &load, free(4 * GIB)).unwrap_err();
        assert!(failure.hint.starts_with("--ctx ") && failure.hint.contains(" --kv-ram "), "{failure}");
        assert_eq!(weights, 2_471_628_800);
    }

    #[test]
    fn the_default_is_a_quarter_or_what_is_left() {
        let (config, weights) = llama();
        let engine = engine();
        let default = |bytes| default_kv(&config, weights, None, &load(&engine), Some(free(bytes)));
        assert_eq!(default(20 * GIB + 4 * MIB + 5), 5 * GIB + MIB);
        assert_eq!(default(0), MIB);
        let tight = default(3 * GIB);
        assert!(tight < 3 * GIB / 4 && tight > 100 * MIB, "{tight}");
        let budget = planned(tight, None).unwrap();
        assert_eq!(check(&config, &budget, None, &load(&engine), free(3 * GIB)), Ok(()));
        assert_eq!(default_kv(&config, weights, None, &load(&engine), None), GIB);
    }
}
