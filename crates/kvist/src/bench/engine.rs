//! `kvist bench engine`: what engine and executor reach, beside what the machine's bandwidth and arithmetic allow.

use kvist_base::TokenId;
use kvist_model::Config;
use serde_json::{Value, json};

use super::workload::{Decoded, Single, Workload};
use crate::failure::Result;
use crate::limits::{Limits, Probe};
use crate::progress::Progress;

pub struct Options {
    pub seconds: f64,
    /// Tokens of the prompt that is computed alone.
    pub prefill: usize,
    /// Tokens of the prompts in a batch.
    pub batch_prompt: usize,
}

pub const BATCHES: [usize; 2] = [8, 32];
/// What every prompt of a batch has of its own below the shared one.
const OWN: usize = 16;
/// Tokens of the reply and of the user's next message in the second turn.
const REPLY: usize = 32;
const MESSAGE: usize = 32;
const PREFILL_RUNS: usize = 3;

/// A figure that is to be set beside its limit.
pub struct Line {
    pub name: String,
    pub unit: &'static str,
    /// Units that were done in `seconds`.
    pub count: f64,
    pub seconds: f64,
    work: Work,
    details: Value,
}

impl Line {
    pub fn value(&self) -> f64 {
        self.count / self.seconds
    }

    /// The value if only bandwidth or arithmetic took time.
    pub fn limit(&self, limits: &Limits) -> f64 {
        self.count / self.work.floor(limits)
    }
}

/// Work of a step or several: what any implementation has to read and to multiply.
#[derive(Clone, Copy)]
struct Work {
    bytes: f64,
    /// Operations with weights.
    dense: f64,
    /// Operations of attention.
    attention: f64,
    /// Bytes of a weight.
    weights: f64,
}

impl Work {
    /// `rows` tokens, `logits` of them with logits, attending to `attended` tokens in all and reading `kv` bytes.
    ///
    /// `weights`: bytes of a parameter.
    fn new(config: &Config, weights: f64, rows: usize, logits: usize, attended: f64, kv: u64) -> Work {
        let table = config.vocab * config.hidden;
        // The embedding table is looked up, not multiplied; where it is also the output, it is.
        let inner = config.parameters() as f64 - table as f64 * if config.tied { 1.0 } else { 2.0 };
        let attention = 4.0 * (config.layers * config.heads * config.head_dim) as f64 * attended;
        let output = if logits > 0 { table as f64 } else { 0.0 };
        Work {
            bytes: weights * (inner + output) + kv as f64,
            dense: 2.0 * (inner * rows as f64 + table as f64 * logits as f64),
            attention,
            weights,
        }
    }

    /// Seconds if only bandwidth or arithmetic took time. Weights of less than 16 bits are multiplied as integers.
    fn floor(&self, limits: &Limits) -> f64 {
        let peak = match self.weights {
            2.0.. => limits.peak,
            1.0.. => limits.integer_peaks[1],
            _ => limits.integer_peaks[0],
        };
        limits.floor(self.bytes, self.dense * (limits.peak / peak) + self.attention)
    }
}

/// `bytes`: of the weights in memory.
pub fn run(
    work: &mut Workload,
    config: &Config,
    bytes: u64,
    probe: &mut Probe,
    options: &Options,
) -> Result<Vec<Line>> {
    let weights = bytes as f64 / config.parameters() as f64;
    let progress = Progress::new("measuring:");
    let note = |what: &str| progress.note(what);
    probe.look();
    let mut lines = vec![prefill(work, config, weights, options.prefill, &note)?];
    probe.look();
    lines.extend(second_turn(work, config, weights, options.prefill, &note)?);
    probe.look();
    let alone = vec![work.tokens(options.batch_prompt)];
    let decoded = work.decode(&alone, options.seconds, &note)?;
    lines.push(decode_line("decode, 1 sequence", 1, decoded, config, weights));
    for batch in BATCHES {
        probe.look();
        let root = work.tokens(options.batch_prompt - OWN);
        let shared: Vec<Vec<TokenId>> = (0..batch).map(|_| [root.clone(), work.tokens(OWN)].concat()).collect();
        let decoded = work.decode(&shared, options.seconds, &note)?;
        lines.push(decode_line(&format!("decode, {batch} sequences, shared prompt"), batch, decoded, config, weights));
        probe.look();
        let private: Vec<Vec<TokenId>> = (0..batch).map(|_| work.tokens(options.batch_prompt)).collect();
        let decoded = work.decode(&private, options.seconds, &note)?;
        lines.push(decode_line(
            &format!("decode, {batch} sequences, private prompts"),
            batch,
            decoded,
            config,
            weights,
        ));
    }
    Ok(lines)
}

fn prefill(work: &mut Workload, config: &Config, weights: f64, tokens: usize, note: &dyn Fn(&str)) -> Result<Line> {
    let mut times = Vec::new();
    for _ in 0..PREFILL_RUNS {
        note(&format!("prefill of {tokens} tokens"));
        let mut prompt = work.tokens(tokens);
        times.push(work.single(&mut prompt, 1)?.first as f64 / 1e6);
    }
    Ok(Line {
        name: format!("prefill, {tokens} tokens"),
        unit: "tok/s",
        count: tokens as f64,
        seconds: super::figures::median(&times),
        work: prompt_work(config, weights, 0, tokens),
        details: json!({"tokens": tokens, "runs_seconds": times}),
    })
}

/// Tokens `[from, to)` of one prompt, logits for the last.
fn prompt_work(config: &Config, weights: f64, from: usize, to: usize) -> Work {
    let attended: usize = (from..to).map(|position| position + 1).sum();
    Work::new(config, weights, to - from, 1, attended as f64, 0)
}

/// Time to the first token of a conversation's first turn, cold, and of its second, warm.
fn second_turn(
    work: &mut Workload,
    config: &Config,
    weights: f64,
    tokens: usize,
    note: &dyn Fn(&str),
) -> Result<[Line; 2]> {
    note("two turns of a conversation");
    let mut conversation = work.tokens(tokens);
    let first = work.single(&mut conversation, REPLY as u32)?;
    conversation.extend(work.tokens(MESSAGE));
    let second = work.single(&mut conversation, 1)?;
    let line = |name: String, turn: Single| Line {
        name,
        // A rate, so that more is better in every line.
        unit: "1/s",
        count: 1.0,
        seconds: turn.first as f64 / 1e6,
        work: prompt_work(config, weights, turn.cached, turn.prompt),
        details: json!({"prompt_tokens": turn.prompt, "cached_tokens": turn.cached}),
    };
    let millis = |turn: Single| format!("{:.1} ms", turn.first as f64 / 1e3);
    let cached = format!("{} of {} cached", second.cached, second.prompt);
    Ok([
        line(format!("first token, cold: {}", millis(first)), first),
        line(format!("first token of turn 2, {cached}: {}", millis(second)), second),
    ])
}

fn decode_line(name: &str, batch: usize, decoded: Decoded, config: &Config, weights: f64) -> Line {
    let attended = decoded.depth * batch as f64;
    Line {
        name: name.to_owned(),
        unit: "tok/s",
        count: batch as f64,
        seconds: decoded.step / 1e6,
        work: Work::new(config, weights, batch, batch, attended, decoded.kv_bytes),
        details: json!({
            "sequences": batch,
            "steps": decoded.steps,
            "kv_bytes_per_step": decoded.kv_bytes,
            "kv_bytes_per_step_unshared": decoded.kv_bytes_unshared,
            "attended_tokens_per_sequence": decoded.depth,
        }),
    }
}

/// For people: every figure with its limit and the share of it.
pub fn table(lines: &[Line], limits: &Limits) -> String {
    let width = lines.iter().map(|line| line.name.len()).max().unwrap_or(0);
    let mut out = format!("{:<width$}{:>14}{:>14}{:>9}\n", "", "reached", "limit", "share");
    for line in lines {
        let with_unit = |value: f64| format!("{value:.1} {}", line.unit);
        out += &format!(
            "{:<width$}{:>14}{:>14}{:>7.0} %\n",
            line.name,
            with_unit(line.value()),
            with_unit(line.limit(limits)),
            100.0 * line.value() / line.limit(limits)
        );
    }
    if limits.is_valid() && lines.iter().any(|line| line.value() > line.limit(limits)) {
        out += "Above 100 %: the weights fit into a cache, which is faster than memory.\n";
    }
    out
}

pub fn json(lines: &[Line], limits: &Limits) -> Value {
    let entry = |line: &Line| {
        json!({
            "name": line.name,
            "unit": line.unit,
            "value": line.value(),
            "limit": line.limit(limits),
            "share_of_limit": line.value() / line.limit(limits),
            "count": line.count,
            "seconds": line.seconds,
            "bytes": line.work.bytes,
            "flops": line.work.dense + line.work.attention,
            "details": line.details,
        })
    };
    lines.iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvist_kernels::Isa;
    use kvist_model::shapes;

    #[test]
    fn floors_follow_from_bytes_and_arithmetic() {
        let config = shapes::by_name("llama-3.2-1b").unwrap();
        let decode = Work::new(&config, 2.0, 1, 1, 0.0, 0);
        let weights = 1_235_814_400.0;
        assert_eq!((decode.bytes, decode.dense), (2.0 * weights, 2.0 * weights));
        let kv = Work::new(&config, 2.0, 1, 1, 100.0, 100 * (32 << 10));
        assert_eq!(kv.bytes - decode.bytes, 100.0 * 32768.0);
        assert_eq!(kv.attention, 4.0 * 16.0 * 2048.0 * 100.0);
        let prompt = prompt_work(&config, 2.0, 0, 1024);
        let inner = weights - 128_256.0 * 2048.0;
        let attention = 4.0 * 16.0 * 2048.0 * (1024.0 * 1025.0 / 2.0);
        assert_eq!(prompt.dense, 2.0 * (inner * 1024.0 + 128_256.0 * 2048.0));
        assert_eq!(prompt.attention, attention);
        let limits = Limits { integer_peaks: [4.0, 1.0], ..Limits::unknown(Isa::Portable, 1) };
        let q4 = Work { weights: 0.6, ..prompt };
        assert_eq!(q4.floor(&limits), (prompt.dense / 4.0 + attention) / 1e9);
    }
}
