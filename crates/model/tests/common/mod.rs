//! Reads the reference logits described in `fixtures/README.md` and compares an executor with them.

#![allow(dead_code)] // each test program uses a part

pub mod battery;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use kvist_base::{Executor, TokenId};
use kvist_model::{LoadOptions, Model, ModelSource, testing};
use safetensors::SafeTensors;

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The tiny models.
pub fn models() -> Vec<PathBuf> {
    let found = testing::fixtures(&fixtures());
    assert!(found.len() >= 3, "no reference models below {}", fixtures().display());
    found
}

pub fn name(dir: &Path) -> String {
    dir.file_name().unwrap().to_string_lossy().into()
}

pub fn dir(name: &str) -> ModelSource {
    ModelSource::Dir(fixtures().join(name))
}

pub fn load(source: &ModelSource) -> Model {
    Model::load(source, &LoadOptions { threads: 2, ..LoadOptions::default() }).unwrap()
}

/// The model that the program carries.
pub fn embedded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/model")
}

/// A copy of a reference model, removed at the end.
pub struct Copy(PathBuf);

impl Copy {
    pub fn of(model: &str) -> Copy {
        static COPIES: AtomicU32 = AtomicU32::new(0);
        let name = format!("kvist-model-{}-{}", std::process::id(), COPIES.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        for entry in fs::read_dir(fixtures().join(model)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
        }
        Copy(dir)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What the reference says about one prompt.
pub struct Prompt {
    pub ids: Vec<TokenId>,
    pub argmax: Vec<u32>,
    pub margin: Vec<f32>,
    /// Ascending positions whose logits are kept.
    pub positions: Vec<usize>,
    /// `[positions][vocab]`.
    pub logits: Vec<f32>,
    /// `[ids][32]`, empty for the tiny models.
    pub top_ids: Vec<u32>,
    pub top_logprobs: Vec<f32>,
    pub rest_logprob: Vec<f32>,
}

pub fn prompts(dir: &Path) -> Vec<Prompt> {
    let bytes = std::fs::read(dir.join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |p: usize, name: &str| match file.tensor(&format!("{p}.{name}")) {
        Ok(tensor) => match tensor.dtype() {
            safetensors::Dtype::U16 => {
                tensor.data().chunks(2).map(|b| u16::from_le_bytes([b[0], b[1]]) as u32).collect()
            }
            _ => tensor.data().chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect(),
        },
        Err(_) => Vec::new(),
    };
    let floats = |p, name| words(p, name).into_iter().map(f32::from_bits).collect();
    (0..)
        .take_while(|p| file.tensor(&format!("{p}.ids")).is_ok())
        .map(|p| Prompt {
            ids: words(p, "ids"),
            argmax: words(p, "argmax"),
            margin: floats(p, "margin"),
            positions: words(p, "positions").into_iter().map(|v| v as usize).collect(),
            logits: floats(p, "logits"),
            top_ids: words(p, "top_ids"),
            top_logprobs: floats(p, "top_logprobs"),
            rest_logprob: floats(p, "rest_logprob"),
        })
        .collect()
}

/// How far an executor is from the reference.
#[derive(Debug, Default)]
pub struct Distance {
    /// Over the positions with kept logits.
    pub max_abs: f64,
    /// Over the positions with kept logits.
    pub mean_kl: f64,
    /// Over all positions, over the best 32 tokens and the rest; 0 where the reference has none.
    pub mean_top_kl: f64,
    /// All positions.
    pub positions: usize,
    /// Positions where the reference's margin exceeds twice the error of its two best tokens: the order of these two
    /// cannot have changed.
    pub in_scope: usize,
    /// Positions in scope where another token is best.
    pub wrong: usize,
    /// Positions where the margin exceeds twice the largest error over the whole vocabulary.
    pub in_strict_scope: usize,
    /// Those of them where another token is best.
    pub strictly_wrong: usize,
    /// Positions where the same token is best, in scope or not.
    pub agree: usize,
}

/// The logits of every position of every prompt.
pub fn run(prompts: &[Prompt], executor: &mut dyn Executor) -> Vec<Vec<f32>> {
    let cuts = |n: usize| (256..n).step_by(256).collect::<Vec<_>>();
    prompts.iter().map(|p| testing::logits(executor, &p.ids, &cuts(p.ids.len()), 0)).collect()
}

/// Compares logits with the reference. The error of a position whose reference logits are not kept is taken against
/// `exact`, logits that agree with the reference much better than those tested.
pub fn distance(prompts: &[Prompt], vocab: usize, logits: &[Vec<f32>], exact: &[Vec<f32>]) -> Distance {
    let mut out = Distance::default();
    let (mut kls, mut top_kls) = (Vec::new(), Vec::new());
    for ((prompt, logits), exact) in prompts.iter().zip(logits).zip(exact) {
        assert_eq!(logits.len(), prompt.ids.len() * vocab);
        assert!(logits.iter().all(|v| v.is_finite()));
        for (i, found) in logits.chunks_exact(vocab).enumerate() {
            let kept =
                prompt.positions.iter().position(|p| *p == i).map(|at| &prompt.logits[at * vocab..(at + 1) * vocab]);
            let expected = kept.unwrap_or(&exact[i * vocab..(i + 1) * vocab]);
            let error = expected.iter().zip(found).map(|(e, f)| (e - f).abs() as f64).fold(0.0, f64::max);
            if kept.is_some() {
                out.max_abs = out.max_abs.max(error);
                kls.push(kl(&log_softmax(expected), &log_softmax(found)));
            }
            if !prompt.top_ids.is_empty() {
                top_kls.push(kl_of_the_best(prompt, i, &log_softmax(found)));
            }
            out.positions += 1;
            let best = (0..vocab).max_by(|&a, &b| found[a].total_cmp(&found[b]).then(b.cmp(&a))).unwrap();
            let same = best == prompt.argmax[i] as usize;
            out.agree += same as usize;
            let margin = prompt.margin[i] as f64;
            if margin > 2.0 * error_of_the_best(expected, found) {
                out.in_scope += 1;
                out.wrong += !same as usize;
            }
            if margin > 2.0 * error {
                out.in_strict_scope += 1;
                out.strictly_wrong += !same as usize;
            }
        }
    }
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len().max(1) as f64;
    (out.mean_kl, out.mean_top_kl) = (mean(&kls), mean(&top_kls));
    out
}

/// The larger error of the two tokens that `expected` holds best.
fn error_of_the_best(expected: &[f32], found: &[f32]) -> f64 {
    let mut best = [0, 1];
    for (i, x) in expected.iter().enumerate() {
        if *x > expected[best[0]] {
            best = [i, best[0]];
        } else if i != best[0] && (best[0] == best[1] || *x > expected[best[1]] || best[1] == i) {
            best[1] = i;
        }
    }
    best.iter().map(|&i| (expected[i] - found[i]).abs() as f64).fold(0.0, f64::max)
}

/// Divergence over 33 bins: the reference's 32 best tokens, and all others together.
fn kl_of_the_best(prompt: &Prompt, i: usize, found: &[f64]) -> f64 {
    let top = i * 32..(i + 1) * 32;
    let mut expected: Vec<f64> = prompt.top_logprobs[top.clone()].iter().map(|v| *v as f64).collect();
    let mut mine: Vec<f64> = prompt.top_ids[top].iter().map(|id| found[*id as usize]).collect();
    expected.push(prompt.rest_logprob[i] as f64);
    mine.push((1.0 - mine.iter().map(|l| l.exp()).sum::<f64>()).max(1e-30).ln());
    kl(&expected, &mine)
}

fn kl(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let sum: f64 = logits.iter().map(|l| (*l as f64 - max).exp()).sum();
    logits.iter().map(|l| *l as f64 - max - sum.ln()).collect()
}

/// Mean and largest divergence over the rows of logits.
pub fn kl_of_logits(vocab: usize, expected: &[f32], found: &[f32]) -> (f64, f64) {
    assert_eq!(expected.len(), found.len());
    let rows = expected.chunks_exact(vocab).zip(found.chunks_exact(vocab));
    let kls: Vec<f64> = rows.map(|(e, f)| kl(&log_softmax(e), &log_softmax(f))).collect();
    (kls.iter().sum::<f64>() / kls.len() as f64, kls.iter().copied().fold(0.0, f64::max))
}
