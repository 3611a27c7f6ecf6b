//! What encoding sealed chunks costs: the next-token distributions of the embedded model with KV in kv8 beside those with
//! kv16, over the teacher-forced prompts of its reference. Also with outlier channels put into K: the model stays the
//! same function (but for the rounding of its weights to bf16), and its keys become those of models that are known to be
//! hard to quantise.

use std::fmt;
use std::ops::Range;

use kvist_kernels::{Isa, bf16};
use kvist_model::{LoadOptions, Model, ModelSource, PoolSize, testing};
use serde_json::Value;

use crate::subjects::root;

/// Pairs of K's elements, slowly turning ones, that are made outliers in every kv-head, and by how much.
pub type Outliers = [(usize, f32); 4];

/// By powers of two the model stays the same function to the bit, but for what K is stored in.
pub const EXACT: Outliers = [(31, 16.0), (30, 8.0), (27, 16.0), (22, 4.0)];

/// By other factors both round otherwise.
pub const ROUNDED: Outliers = [(31, 15.0), (30, 7.0), (27, 13.0), (22, 3.0)];

/// Tokens that run in a step.
const STEP: usize = 256;

#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    pub positions: usize,
    /// Of the distribution with kv8 from that with kv16, in nats.
    pub mean_kl: f64,
    /// 99.9 % of the positions are below it.
    pub high_kl: f64,
    pub max_kl: f64,
    /// Share of the positions where the same token is best.
    pub top1: f64,
    /// Bytes of a token.
    pub kv16_bytes: usize,
    pub kv8_bytes: usize,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} positions: mean KL {:.2e}, 99.9 % below {:.2e}, largest {:.2e}; the same best token at {:.2} %; {} bytes a \
             token instead of {}",
            self.positions,
            self.mean_kl,
            self.high_kl,
            self.max_kl,
            100.0 * self.top1,
            self.kv8_bytes,
            self.kv16_bytes
        )
    }
}

/// The token ids of the reference prompts.
pub fn prompts() -> Vec<Vec<u32>> {
    let file = root().join("crates/model/tests/fixtures/embedded/expected.safetensors");
    let (bytes, header) = open(&std::fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display())));
    let ids = |i: usize| data(&header, &format!("{i}.ids"));
    let words =
        |at: Range<usize>| bytes[at].chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    (0..).map_while(ids).map(words).collect()
}

/// The embedded model with weights as in its file, or with outliers in K.
pub fn model(outliers: Option<&Outliers>) -> Model {
    let dir = root().join("assets/model");
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let (config, mut weights) = (read("config.json"), read("model.safetensors"));
    if let Some(outliers) = outliers {
        inject(outliers, &serde_json::from_slice(&config).expect("JSON"), &mut weights);
    }
    let source = ModelSource::Embedded { config: config.leak(), generation_config: None, weights: weights.leak() };
    Model::load(&source, &LoadOptions { threads: 2, ..LoadOptions::default() }).expect("the embedded model")
}

/// Keys of a pair times a factor, the queries that meet them divided by it. The rotation turns both elements of a
/// pair into each other, so scaling both commutes with it.
fn inject(outliers: &Outliers, config: &Value, file: &mut [u8]) {
    let number = |name: &str| config[name].as_u64().expect("a number") as usize;
    let (layers, dim, hidden) = (number("num_hidden_layers"), number("head_dim"), number("hidden_size"));
    let (data_at, header) = {
        let (bytes, header) = open(file);
        (file.len() - bytes.len(), header)
    };
    for layer in 0..layers {
        for (part, heads) in [("k_proj", number("num_key_value_heads")), ("q_proj", number("num_attention_heads"))] {
            let name = format!("model.layers.{layer}.self_attn.{part}.weight");
            let at = data_at + data(&header, &name).expect("a tensor of the model").start;
            for (head, (pair, factor)) in (0..heads).flat_map(|head| outliers.map(|outlier| (head, outlier))) {
                for row in [pair, pair + dim / 2] {
                    let row = at + (head * dim + row) * hidden * 2;
                    for weight in file[row..row + hidden * 2].chunks_exact_mut(2) {
                        let x = bf16::to_f32(u16::from_le_bytes([weight[0], weight[1]]));
                        let x = if part == "k_proj" { x * factor } else { x / factor };
                        weight.copy_from_slice(&bf16::from_f32(x).to_le_bytes());
                    }
                }
            }
        }
    }
}

/// A safetensors file: its data, and its header.
fn open(file: &[u8]) -> (Vec<u8>, Value) {
    let n = u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
    (file[8 + n..].to_vec(), serde_json::from_slice(&file[8..8 + n]).expect("a header"))
}

fn data(header: &Value, name: &str) -> Option<Range<usize>> {
    let at = header.get(name)?.get("data_offsets")?;
    Some(at[0].as_u64()? as usize..at[1].as_u64()? as usize)
}

/// The logits of a prompt at every position.
pub fn logits(model: &Model, kv8: bool, isa: Isa, threads: usize, prompt: &[u32]) -> Vec<f32> {
    let chunks = prompt.len().div_ceil(kvist_base::CHUNK) as u32;
    let size = if kv8 { PoolSize::kv8(chunks, chunks.max(2)) } else { PoolSize::kv16(chunks) };
    let mut executor = model.clone().with_pool(size, None, isa, threads).expect("room for a prompt");
    let cuts: Vec<usize> = (STEP..prompt.len()).step_by(STEP).collect();
    testing::logits(&mut executor, prompt, &cuts, 0)
}

pub fn measure(model: &Model, prompts: &[Vec<u32>], isa: Isa, threads: usize) -> Figures {
    let vocab = model.config().vocab;
    let (mut kls, mut same) = (Vec::new(), 0);
    for prompt in prompts {
        let [kv16, kv8] = [false, true].map(|kv8| logits(model, kv8, isa, threads, prompt));
        for (a, b) in kv16.chunks_exact(vocab).zip(kv8.chunks_exact(vocab)) {
            kls.push(divergence(a, b));
            same += usize::from(best(a) == best(b));
        }
    }
    kls.sort_by(f64::total_cmp);
    let config = model.config();
    Figures {
        positions: kls.len(),
        mean_kl: kls.iter().sum::<f64>() / kls.len() as f64,
        high_kl: kls[kls.len() * 999 / 1000],
        max_kl: kls[kls.len() - 1],
        top1: same as f64 / kls.len() as f64,
        kv16_bytes: config.kv_layout().token_bytes(),
        kv8_bytes: config.layout_of(kvist_base::Codec::Kv8).token_bytes(),
    }
}

/// Mean KL of the second distributions from the first, in nats.
pub fn mean_divergence(vocab: usize, from: &[f32], to: &[f32]) -> f64 {
    let kls = from.chunks_exact(vocab).zip(to.chunks_exact(vocab)).map(|(a, b)| divergence(a, b));
    kls.sum::<f64>() / (from.len() / vocab) as f64
}

fn best(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
}

fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let (p, q) = (log_softmax(p), log_softmax(q));
    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let sum: f64 = logits.iter().map(|l| (*l as f64 - max).exp()).sum();
    logits.iter().map(|l| *l as f64 - max - sum.ln()).collect()
}
