//! `kvist bench engine`: what engine and executor reach, beside what the machine's bandwidth and arithmetic allow, and
//! beside llama.cpp.

use kvist_base::Codec;
use kvist_model::Config;
use serde_json::{Value, json};

use super::cases::{Case, Kind};
use super::figures::median;
use super::peer::Peers;
use super::workload::{Arrival, Single, Workload};
use crate::failure::Result;
use crate::limits::{Limits, Probe};
use crate::progress::Progress;

/// What is measured, and beside what.
pub struct Subject<'a> {
    pub config: &'a Config,
    pub codec: Codec,
    /// Of the weights in memory.
    pub bytes: u64,
    pub peers: Option<Peers>,
}

/// One case's figures.
pub struct Figure {
    case: Case,
    /// Tokens of a prompt or a step.
    tokens: usize,
    /// Seconds that they took in each turn; of [`Kind::Arrival`] those of the prompt.
    ours: Vec<f64>,
    theirs: Vec<f64>,
    work: Work,
    arrivals: Vec<Arrival>,
    details: Value,
}

impl Figure {
    fn rate(&self) -> f64 {
        self.tokens as f64 / median(&self.ours)
    }

    /// The rate if only bandwidth or arithmetic took time.
    fn limit(&self, limits: &Limits) -> f64 {
        self.tokens as f64 / self.work.floor(limits)
    }

    fn peer(&self) -> Option<f64> {
        (!self.theirs.is_empty()).then(|| self.tokens as f64 / median(&self.theirs))
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
    /// Bytes of a parameter.
    weights: f64,
}

impl Work {
    /// `rows` tokens, `logits` of them with logits, attending to `attended` tokens in all and reading `kv` bytes.
    fn new(subject: &Subject, rows: usize, logits: usize, attended: f64, kv: u64) -> Work {
        let (config, weights) = (subject.config, subject.bytes as f64 / subject.config.parameters() as f64);
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

    /// Tokens `[from, to)` of one prompt, logits for the last.
    fn of_prompt(subject: &Subject, from: usize, to: usize) -> Work {
        let attended: usize = (from..to).map(|position| position + 1).sum();
        let kv = from * subject.config.layout_of(subject.codec).token_bytes();
        Work::new(subject, to - from, 1, attended as f64, kv as u64)
    }

    /// Seconds if only bandwidth or arithmetic took time. Weights of less than 16 bits are multiplied as integers.
    fn floor(&self, limits: &Limits) -> f64 {
        limits.floor(self.bytes, (self.dense, self.weights), self.attention)
    }
}

/// Measures every case `turns` times, in turns with those beside it.
pub fn run(
    work: &mut Workload,
    cases: &[Case],
    turns: usize,
    subject: &Subject,
    probe: &mut Probe,
) -> Result<Vec<Figure>> {
    let progress = Progress::new("measuring:");
    let mut figures: Vec<Figure> = Vec::new();
    for case in cases {
        let mut all: Option<Figure> = None;
        for turn in 1..=turns {
            probe.look();
            progress.note(&format!("{}, {turn} of {turns}", case.name));
            let mut now = measure(work, *case, subject)?;
            progress.note(&format!("{}, {turn} of {turns}, llama.cpp", case.name));
            let rate = subject.peers.as_ref().map_or(Ok(None), |peers| peers.measure(case.kind))?;
            now.theirs.extend(rate.map(|rate| now.tokens as f64 / rate));
            match &mut all {
                None => all = Some(now),
                Some(all) => {
                    all.ours.append(&mut now.ours);
                    all.theirs.append(&mut now.theirs);
                    all.arrivals.append(&mut now.arrivals);
                }
            }
        }
        figures.extend(all);
    }
    Ok(figures)
}

fn measure(work: &mut Workload, case: Case, subject: &Subject) -> Result<Figure> {
    let figure = |tokens: usize, seconds: f64, work: Work, details: Value| Figure {
        case,
        tokens,
        ours: vec![seconds],
        theirs: Vec::new(),
        work,
        arrivals: Vec::new(),
        details,
    };
    let single = |one: Single| {
        let details = json!({"prompt_tokens": one.prompt, "cached_tokens": one.cached});
        let work = Work::of_prompt(subject, one.cached, one.prompt);
        figure(one.prompt - one.cached, one.first as f64 / 1e6, work, details)
    };
    Ok(match case.kind {
        Kind::Prefill(tokens) => single(work.prefill(tokens)?),
        Kind::Turn { history, new } => single(work.turn(history, new)?),
        Kind::Decode { sequences, prompt, shared } => {
            let decoded = work.decode(sequences, prompt, shared)?;
            let attended = decoded.depth * sequences as f64;
            let details = json!({
                "sequences": sequences,
                "steps": decoded.steps,
                "kv_bytes_per_step": decoded.kv_bytes,
                "kv_bytes_per_step_unshared": decoded.kv_bytes_unshared,
                "attended_tokens_per_sequence": decoded.depth,
            });
            let work = Work::new(subject, sequences, sequences, attended, decoded.kv_bytes);
            figure(sequences, decoded.step / 1e6, work, details)
        }
        Kind::Arrival { streams, prompt } => {
            let arrival = work.arrival(streams, prompt)?;
            let details = json!({"streams": streams, "prompt_tokens": prompt});
            let seconds = arrival.first as f64 / 1e6;
            let figure = figure(prompt, seconds, Work::of_prompt(subject, 0, prompt), details);
            Figure { arrivals: vec![arrival], ..figure }
        }
    })
}

/// For people: every figure with its limit, the share of it, and llama.cpp's.
pub fn table(figures: &[Figure], limits: &Limits) -> String {
    let beside = figures.iter().any(|figure| figure.peer().is_some());
    let mut out = format!("{:<24}{:>10}{:>12}{:>12}{:>8}", "", "tok/s", "ms", "limit", "share");
    out += if beside { "   llama.cpp   ratio\n" } else { "\n" };
    for figure in figures {
        let (rate, limit) = (figure.rate(), figure.limit(limits));
        let (millis, share) = (1e3 * median(&figure.ours), 100.0 * rate / limit);
        out += &format!("{:<24}{rate:>10.1}{millis:>12.1}{limit:>12.1}{share:>6.0} %", figure.case.name);
        if let Some(peer) = figure.peer() {
            out += &format!("{peer:>12.1}{:>7.2}x", rate / peer);
        }
        out.push('\n');
    }
    for figure in figures {
        for arrival in &figure.arrivals {
            let millis = |micros: u64| micros as f64 / 1e3;
            out += &format!(
                "{}: {:.0} ms between tokens wanted; {:.0} at the median, {:.0} at p99 ({:.2} of what is wanted), {:.0} \
                 at most, of {}\n",
                figure.case.name,
                millis(arrival.target),
                millis(arrival.percentile(0.5)),
                millis(arrival.percentile(0.99)),
                arrival.percentile(0.99) as f64 / arrival.target as f64,
                millis(arrival.percentile(1.0)),
                arrival.latencies.len()
            );
        }
    }
    if limits.is_valid() && figures.iter().any(|figure| figure.rate() > figure.limit(limits)) {
        out += "Above 100 %: weights fit into a cache, or memory was faster than at most looks at it.\n";
    }
    out
}

pub fn json(figures: &[Figure], limits: &Limits) -> Value {
    let arrival = |arrival: &Arrival| {
        json!({
            "itl_target_us": arrival.target,
            "itl_p50_us": arrival.percentile(0.5),
            "itl_p99_us": arrival.percentile(0.99),
            "itl_max_us": arrival.percentile(1.0),
            "steps": arrival.latencies.len(),
            "prompt_us": arrival.first,
        })
    };
    let entry = |figure: &Figure| {
        let floor = figure.work.floor(limits);
        let peer = figure
            .peer()
            .map(|peer| json!({"seconds": figure.theirs, "tokens_per_second": peer, "ratio": figure.rate() / peer}));
        json!({
            "case": figure.case.name,
            "tokens": figure.tokens,
            "seconds": figure.ours,
            "median_seconds": median(&figure.ours),
            "tokens_per_second": figure.rate(),
            "floor_seconds": floor,
            "share_of_floor": floor / median(&figure.ours),
            "bytes": figure.work.bytes,
            "dense_operations": figure.work.dense,
            "attention_operations": figure.work.attention,
            "llama_cpp": peer,
            "arrivals": figure.arrivals.iter().map(arrival).collect::<Vec<_>>(),
            "details": figure.details,
        })
    };
    figures.iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::super::cases::CASES;
    use super::*;
    use kvist_kernels::Isa;
    use kvist_model::shapes;

    const CODEC: Codec = Codec::Kv16;

    #[test]
    fn floors_follow_from_bytes_and_arithmetic() {
        let config = &shapes::by_name("llama-3.2-1b").unwrap();
        let subject = Subject { config, codec: CODEC, bytes: 2 * config.parameters(), peers: None };
        let decode = Work::new(&subject, 1, 1, 0.0, 0);
        let weights = 1_235_814_400.0;
        assert_eq!((decode.bytes, decode.dense), (2.0 * weights, 2.0 * weights));
        let kv = Work::new(&subject, 1, 1, 100.0, 100 * (32 << 10));
        assert_eq!(kv.bytes - decode.bytes, 100.0 * 32768.0);
        assert_eq!(kv.attention, 4.0 * 16.0 * 2048.0 * 100.0);
        let prompt = Work::of_prompt(&subject, 0, 1024);
        let inner = weights - 128_256.0 * 2048.0;
        let attention = 4.0 * 16.0 * 2048.0 * (1024.0 * 1025.0 / 2.0);
        assert_eq!(prompt.dense, 2.0 * (inner * 1024.0 + 128_256.0 * 2048.0));
        assert_eq!(prompt.attention, attention);
        let limits = Limits { integer_peaks: [4.0, 1.0], ..Limits::unknown(Isa::Portable, 1) };
        let q4 = Work { weights: 0.6, ..prompt };
        assert_eq!(q4.floor(&limits), (prompt.dense / 4.0 + attention) / 1e9);
        let turn = Work::of_prompt(&subject, 4096, 4160);
        // 32 KiB of codes and 512 bytes of scales.
        assert_eq!(turn.bytes - decode.bytes, 4096.0 * 33280.0);
    }

    #[test]
    fn tables_have_the_medians_and_their_ratio() {
        let config = &shapes::by_name("llama-3.2-1b").unwrap();
        let subject = Subject { config, codec: CODEC, bytes: 2 * config.parameters(), peers: None };
        let arrival = Arrival { target: 100_000, latencies: (1..=200).map(|i| i * 1000).collect(), first: 1 };
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|share| arrival.percentile(share)), [1000, 101_000, 199_000, 200_000]);
        let figure = Figure {
            case: CASES[0],
            tokens: 10,
            ours: vec![9.0, 4.0, 1.0],
            theirs: vec![8.0, 8.0, 50.0],
            work: Work::of_prompt(&subject, 0, 10),
            arrivals: vec![arrival],
            details: Value::Null,
        };
        let limits = Limits::unknown(Isa::Portable, 1);
        let table = table(std::slice::from_ref(&figure), &limits);
        assert!(table.contains("2.00x") && table.contains("(1.99 of what is wanted)"), "{table}");
        let json = json(&[figure], &limits);
        assert_eq!((&json[0]["llama_cpp"]["ratio"], &json[0]["median_seconds"]), (&2.0.into(), &4.0.into()));
    }
}
