//! The reference executor: f32 scalar code, no kernels, no packing, one thread, a KV store of its own. Slow, and meant
//! to be obviously right.

use kvist_base::{
    CHUNK, ChunkId, ChunkLayout, Dtype, Executor, ExecutorInfo, Gone, OpenPool, Prepare, Residency, Row, Slot,
    StepOutput, StepPlan,
};

use crate::config::{Activation, Config};
use crate::error::Result;
use crate::forward::{Ops, Scratch, counters, forward};
use crate::matrix::Matrix;
use crate::model::{Model, context_of};
use crate::parameter::Parameter;
use crate::rope::Rotation;
use crate::source::{Checkpoint, ModelSource};
use crate::weights::{Part, Weights};

/// Computes every step in f32, from weights exactly as the file holds them.
pub struct OracleExecutor {
    config: Config,
    weights: Weights<Dense>,
    ops: Scalar,
    scratch: Scratch<Vec<f32>>,
    info: ExecutorInfo,
}

impl OracleExecutor {
    /// Reads the weights. `context`: tokens in a sequence at most, `None` for all that the model was made for.
    pub fn new(source: &ModelSource, chunks: u32, context: Option<usize>) -> Result<OracleExecutor> {
        OracleExecutor::read(&Checkpoint::open(source)?, chunks, context)
    }

    /// The same from an open checkpoint.
    pub fn read(checkpoint: &Checkpoint, chunks: u32, context: Option<usize>) -> Result<OracleExecutor> {
        let weights = Weights::load(checkpoint, |parts, _| Dense::read(parts), &|_, _| ())?;
        OracleExecutor::with_weights(checkpoint.config().clone(), weights, chunks, context)
    }

    /// From the weights that a model has in memory, rounded or quantised as they are there.
    pub fn of(model: &Model, chunks: u32, context: Option<usize>) -> Result<OracleExecutor> {
        let dense = |matrix: &Matrix| {
            let inputs = matrix.columns();
            let mut elements = vec![0.0; matrix.rows() * inputs];
            elements.chunks_exact_mut(inputs).enumerate().for_each(|(i, row)| matrix.row(i, row));
            Dense { elements, inputs }
        };
        OracleExecutor::with_weights(model.config.clone(), model.weights.map(dense), chunks, context)
    }

    fn with_weights(
        config: Config,
        weights: Weights<Dense>,
        chunks: u32,
        context: Option<usize>,
    ) -> Result<OracleExecutor> {
        let context = context_of(&config, context)?;
        let info = ExecutorInfo {
            vocab: config.vocab,
            context,
            layout: config.layout_of(Dtype::F32),
            chunks,
            open: None,
            name: "oracle, f32".into(),
        };
        let ops = Scalar {
            rotations: config.ropes.iter().map(|rope| rope.rotation(context)).collect(),
            kv: vec![Vec::new(); chunks as usize],
            layout: info.layout.clone(),
            config: config.clone(),
        };
        Ok(OracleExecutor { config, weights, ops, scratch: Scratch::default(), info })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The same with sealed chunks in 8 bits: K with a scale per channel, V with one per token. `open` more chunks are
    /// those that rows are written to.
    pub fn with_kv8(mut self, open: u32) -> OracleExecutor {
        self.info.open = Some(OpenPool { layout: self.info.layout.clone(), chunks: open });
        self.info.name += ", KV kv8";
        self.ops.kv.resize((self.info.chunks + open) as usize, Vec::new());
        self
    }
}

impl Executor for OracleExecutor {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    fn step(&mut self, plan: &StepPlan, residency: &dyn Residency, out: &mut StepOutput) {
        plan.check(&self.info).expect("a valid plan");
        out.counters = counters(&self.info, plan);
        forward(&self.config, &self.weights, &mut self.ops, &mut self.scratch, plan, residency, out);
    }

    /// f32 in the oracle's own order, `[layer][slot][kv-head][K | V]`.
    fn read_chunk(&self, chunk: ChunkId, out: &mut Vec<u8>) {
        let kv = &self.ops.kv[chunk.0 as usize];
        out.extend(kv.iter().flat_map(|v| v.to_le_bytes()));
        out.resize(out.len() + self.info.layout.bytes - kv.len() * 4, 0);
    }
}

/// `[outputs][inputs]`.
struct Dense {
    elements: Vec<f32>,
    inputs: usize,
}

impl Dense {
    fn read(parts: &[Parameter]) -> Result<Dense> {
        let inputs = parts[0].columns();
        let mut elements = vec![0.0; parts.iter().map(Parameter::rows).sum::<usize>() * inputs];
        let rows = parts.iter().flat_map(|part| (0..part.rows()).map(move |i| (part, i)));
        for ((part, i), out) in rows.zip(elements.chunks_exact_mut(inputs)) {
            part.row_f32(i, out)?;
        }
        Ok(Dense { elements, inputs })
    }

    fn row(&self, i: usize) -> &[f32] {
        &self.elements[i * self.inputs..(i + 1) * self.inputs]
    }
}

struct Scalar {
    config: Config,
    layout: ChunkLayout,
    rotations: Vec<Rotation>,
    /// Per chunk `[layer][slot][kv-head][K | V]`; empty until first zeroed or written.
    kv: Vec<Vec<f32>>,
}

impl Scalar {
    /// Where the K and V of all heads of a slot begin.
    fn at(&self, layer: usize, slot: usize) -> usize {
        (layer * CHUNK + slot) * self.slot_width()
    }

    fn slot_width(&self) -> usize {
        2 * self.config.kv_heads * self.config.head_dim
    }

    fn chunk(&mut self, chunk: ChunkId) -> &mut [f32] {
        let len = self.config.layers * CHUNK * self.slot_width();
        let kv = &mut self.kv[chunk.0 as usize];
        kv.resize(len, 0.0);
        kv
    }

    /// Turns each pair (i, i + rotary/2) of a head by `position` times its frequency.
    fn rotate(&self, layer: usize, head: &mut [f32], position: u64) {
        let Rotation { frequencies, amplitude } = &self.rotations[self.config.attention[layer].rope];
        let half = frequencies.len();
        for (i, frequency) in frequencies.iter().enumerate() {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            let (sin, cos) = ((sin * amplitude) as f32, (cos * amplitude) as f32);
            let (a, b) = (head[i], head[i + half]);
            (head[i], head[i + half]) = (a * cos - b * sin, b * cos + a * sin);
        }
    }

    /// Softmax attention of one unrotated query head over everything that plan row `row` sees.
    fn attend_head(&self, layer: usize, plan: &StepPlan, row: usize, kv_head: usize, query: &[f32], out: &mut [f32]) {
        let d = query.len();
        let position = plan.rows[row].position as u64;
        let list = &plan.classes[self.layout.layers[layer].class];
        let (divisor, cap) = (self.config.block.scales.score_divisor as f32, self.config.block.score_cap);
        let mut scores = Vec::new();
        let mut values = Vec::new();
        for run in list.runs.iter().filter(|run| run.rows.contains(&(row as u32))) {
            let mut query = query.to_vec();
            self.rotate(layer, &mut query, position + run.shift as u64);
            for i in 0..run.chunks.end - run.chunks.start {
                let mask = list.mask(run, i, row as u32);
                let chunk = &self.kv[list.chunks[(run.chunks.start + i) as usize].0 as usize];
                for slot in (0..CHUNK).filter(|slot| mask >> slot & 1 == 1) {
                    let at = self.at(layer, slot) + 2 * kv_head * d;
                    let score = dot(&query, &chunk[at..at + d]) / divisor;
                    scores.push(cap.map_or(score, |cap| cap * (score / cap).tanh()));
                    values.push(&chunk[at + d..at + 2 * d]);
                }
            }
        }
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = scores.iter().map(|s| (s - max).exp()).sum();
        out.fill(0.0);
        for (score, value) in scores.iter().zip(values) {
            let p = (score - max).exp() / sum;
            out.iter_mut().zip(value).for_each(|(o, v)| *o += p * v);
        }
    }
}

impl Ops for Scalar {
    type Matrix = Dense;
    type Input = Vec<f32>;

    fn prepare(&mut self, prepare: Prepare) {
        match prepare {
            Prepare::Zero(chunk) => self.chunk(chunk).fill(0.0),
            Prepare::Copy { from, to, n } => {
                let source = self.chunk(from).to_vec();
                for layer in 0..self.config.layers {
                    let part = self.at(layer, 0)..self.at(layer, n as usize);
                    self.chunk(to)[part.clone()].copy_from_slice(&source[part]);
                }
            }
            Prepare::Install(_) => unreachable!("installed layer by layer"),
        }
    }

    fn fill(&mut self, layer: usize, chunks: &[ChunkId], residency: &dyn Residency, gone: &mut Vec<ChunkId>) {
        let part = self.at(layer, 0)..self.at(layer + 1, 0);
        let mut bytes = vec![0; part.len() * 4];
        for &chunk in chunks {
            match residency.fill(layer, chunk, &mut bytes) {
                Ok(true) => {
                    let words = bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word));
                    self.chunk(chunk)[part.clone()].iter_mut().zip(words).for_each(|(x, word)| *x = word);
                }
                Ok(false) => {}
                Err(Gone(chunk)) => gone.push(chunk),
            }
        }
    }

    fn begin(&mut self, plan: &StepPlan) {
        plan.classes.iter().flat_map(|list| &list.chunks).for_each(|&chunk| {
            self.chunk(chunk);
        });
    }

    fn embed(&self, table: &Dense, rows: &[Row], x: &mut [f32]) {
        for (row, x) in rows.iter().zip(x.chunks_exact_mut(table.inputs)) {
            x.copy_from_slice(table.row(row.token as usize));
        }
    }

    fn round(&self, x: &[f32], _: &Dense, out: &mut Vec<f32>) {
        out.clear();
        out.extend_from_slice(x);
    }

    fn norm(&self, x: &[f32], weight: &[f32], matrix: &Dense, out: &mut Vec<f32>) {
        self.round(x, matrix, out);
        self.norm_in_place(out, weight);
    }

    fn matmul(&self, input: &Vec<f32>, rows: usize, matrix: &Dense, y: &mut [f32]) {
        y.fill(0.0);
        self.matmul_add(input, rows, matrix, y);
    }

    fn matmul_add(&self, input: &Vec<f32>, rows: usize, matrix: &Dense, y: &mut [f32]) {
        let outputs = y.len() / rows;
        for (j, weights) in matrix.elements.chunks_exact(matrix.inputs).enumerate() {
            for (i, x) in input.chunks_exact(matrix.inputs).enumerate() {
                y[i * outputs + j] += dot(x, weights);
            }
        }
    }

    fn add_bias(&self, y: &mut [f32], bias: &[f32]) {
        for row in y.chunks_exact_mut(bias.len()) {
            row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    }

    fn split(&self, qkv: &[f32], q: &mut [f32], k: &mut [f32], v: &mut [f32]) {
        let (rows, kv_width) = (qkv.len() / self.config.qkv_width(), self.config.kv_heads * self.config.head_dim);
        let q_width = q.len() / rows;
        for (i, row) in qkv.chunks_exact(self.config.qkv_width()).enumerate() {
            q[i * q_width..(i + 1) * q_width].copy_from_slice(&row[..q_width]);
            k[i * kv_width..(i + 1) * kv_width].copy_from_slice(&row[q_width..q_width + kv_width]);
            v[i * kv_width..(i + 1) * kv_width].copy_from_slice(&row[q_width + kv_width..]);
        }
    }

    fn norm_in_place(&self, x: &mut [f32], weight: &[f32]) {
        x.chunks_exact_mut(weight.len()).for_each(|part| rms_norm(part, weight, self.config.norm_eps));
    }

    fn scale(&self, x: &mut [f32], factor: f32) {
        x.iter_mut().for_each(|x| *x *= factor);
    }

    fn add_scaled(&self, x: &mut [f32], y: &[f32], factor: f32) {
        x.iter_mut().zip(y).for_each(|(x, y)| *x += y * factor);
    }

    fn soft_cap(&self, x: &mut [f32], cap: f32) {
        x.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
    }

    fn rotate_and_write(&mut self, layer: usize, plan: &StepPlan, k: &mut [f32], v: &[f32]) {
        let Config { kv_heads, head_dim, .. } = self.config;
        let heads = k.chunks_exact_mut(kv_heads * head_dim).zip(v.chunks_exact(kv_heads * head_dim));
        for (row, (k, v)) in plan.rows.iter().zip(heads) {
            k.chunks_exact_mut(head_dim).for_each(|head| self.rotate(layer, head, u64::from(row.position + row.shift)));
            let Some(slot) = row.write else { continue };
            let at = self.at(layer, slot.slot as usize);
            let width = self.slot_width();
            let chunk = &mut self.chunk(slot.chunk)[at..at + width];
            let heads = k.chunks_exact(head_dim).zip(v.chunks_exact(head_dim));
            for (kv, (k, v)) in chunk.chunks_exact_mut(2 * head_dim).zip(heads) {
                kv[..head_dim].copy_from_slice(k);
                kv[head_dim..].copy_from_slice(v);
            }
        }
    }

    fn seal(&mut self, layer: usize, plan: &StepPlan) {
        let (width, head) = (self.slot_width(), 2 * self.config.head_dim);
        for seal in &plan.seals {
            let layer = self.at(layer, 0)..self.at(layer, CHUNK);
            let mut kv = self.chunk(seal.from)[layer.clone()].to_vec();
            for head in (0..width).step_by(head) {
                let key = |i: usize, token: usize| token * width + head + i;
                let value = |i: usize, token: usize| token * width + head + self.config.head_dim + i;
                for i in 0..self.config.head_dim {
                    quantise(&mut kv, (0..CHUNK).map(|token| key(i, token)));
                }
                for token in 0..CHUNK {
                    quantise(&mut kv, (0..self.config.head_dim).map(|i| value(i, token)));
                }
            }
            self.chunk(seal.to)[layer].copy_from_slice(&kv);
        }
    }

    fn attend(&mut self, layer: usize, plan: &StepPlan, q: &[f32], _: &Dense, out: &mut Vec<f32>) {
        let Config { heads, kv_heads, head_dim, .. } = self.config;
        out.resize(q.len(), 0.0);
        for (i, (query, out)) in q.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)).enumerate() {
            let (row, head) = (i / heads, i % heads);
            self.attend_head(layer, plan, row, head * kv_heads / heads, query, out);
        }
    }

    fn gate(&self, input: &mut Vec<f32>, rows: usize, mlp: &Part<Dense>, gate_up: &mut Vec<f32>) {
        let activate: fn(f32) -> f32 = match self.config.block.activation {
            Activation::Silu => |x| x / (1.0 + (-x).exp()),
            Activation::GeluTanh => |x| {
                let slope = (2.0 / std::f32::consts::PI).sqrt();
                0.5 * x * (1.0 + (slope * (x + 0.044715 * x * x * x)).tanh())
            },
        };
        gate_up.resize(rows * 2 * self.config.intermediate, 0.0);
        self.matmul(input, rows, &mlp.input.matrix, gate_up);
        input.clear();
        for row in gate_up.chunks_exact(2 * self.config.intermediate) {
            let (gate, up) = row.split_at(self.config.intermediate);
            input.extend(gate.iter().zip(up).map(|(g, u)| activate(*g) * u));
        }
    }

    fn zero_slot(&mut self, slot: Slot) {
        let width = self.slot_width();
        for layer in 0..self.config.layers {
            let at = self.at(layer, slot.slot as usize);
            self.chunk(slot.chunk)[at..at + width].fill(0.0);
        }
    }
}

/// `x` over its root mean square, times `weight` (Zhang and Sennrich 2019).
fn rms_norm(x: &mut [f32], weight: &[f32], eps: f32) {
    let mean = x.iter().map(|v| (v * v) as f64).sum::<f64>() / x.len() as f64;
    let scale = (1.0 / (mean + eps as f64).sqrt()) as f32;
    x.iter_mut().zip(weight).for_each(|(x, w)| *x = *x * scale * w);
}

/// Elements become the nearest multiples of a 127th of the largest magnitude.
fn quantise(x: &mut [f32], elements: impl Iterator<Item = usize> + Clone) {
    let step = elements.clone().map(|i| x[i].abs()).fold(0.0, f32::max) / 127.0;
    elements.filter(|_| step > 0.0).for_each(|i| x[i] = (x[i] / step).round_ties_even() * step);
}

/// Sixteen running sums, so that the compiler may use vectors; the order is the same for every caller.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    let mut sums = [0.0; 16];
    for (a, b) in a.iter().zip(b) {
        for i in 0..16 {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}
