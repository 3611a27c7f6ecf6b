//! The executor in earnest: weights, queries and matrix inputs in bf16, KV in 16 bits or 8, everything else in f32, on the kernels.

use std::sync::{Arc, Mutex};

use kvist_base::{
    ChunkId, Codec, Executor, ExecutorInfo, Gone, OpenPool, Prepare, Residency, Row, RunList, Slot, StepOutput,
    StepPlan,
};
use kvist_kernels::{self as kernels, AttnPlan, AttnShape, Isa, KvPool, Pool, Queries, RopeTable};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::forward::{Ops, Scratch, counters, forward};
use crate::input::Input;
use crate::matrix::Matrix;
use crate::model::{Model, PoolSize, context_of};
use crate::rope::Rotation;
use crate::rows::for_parts;
use crate::weights::{Part, Weights};

/// Runs steps on the CPU.
pub struct CpuExecutor {
    weights: Arc<Weights<Matrix>>,
    config: Config,
    ops: Cpu,
    scratch: Scratch<Input>,
    info: ExecutorInfo,
    /// For [`StepPlan::check_with`].
    seen: Vec<u32>,
}

/// A deliberate breach of the numerics contract. Only tests use it: a harness that cannot tell a canary from the real
/// executor proves nothing.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Canary {
    /// Segments of the softmax are folded in the order in which threads finish them.
    FoldByCompletion,
    /// The running maximum is taken over a block of rows.
    BlockRescale,
    /// The step that computes K and V attends to other bits than those that it leaves behind.
    RoundAfterUse,
    /// Rows of a chunk that the step seals attend to its codes, so that the result depends on where steps end.
    CodesTooSoon,
}

impl CpuExecutor {
    pub(crate) fn new(
        model: Model,
        size: PoolSize,
        context: Option<usize>,
        isa: Isa,
        threads: usize,
    ) -> Result<CpuExecutor> {
        let forms = model.forms();
        let Model { config, weights } = model;
        let context = context_of(&config, context)?;
        let PoolSize { codec, chunks, open } = size;
        let layout = config.layout_of(codec);
        let open = match codec {
            Codec::Dense(_) | Codec::Kv16 => None,
            Codec::Kv8 => Some(OpenPool { layout: config.kv_layout(), chunks: open }),
        };
        let forms = format!("{forms}, KV {codec}");
        let info = ExecutorInfo {
            vocab: config.vocab,
            context,
            layout,
            chunks,
            open,
            name: format!("cpu, {forms}, {isa}, {threads} threads"),
        };
        let kv = match &info.open {
            None => KvPool::new(info.layout.clone(), chunks),
            Some(open) => KvPool::with_codec(info.layout.clone(), chunks, open.chunks),
        }
        .map_err(|e| Error::Pool { bytes: info.kv_bytes(), what: e.to_string() })?;
        let ops = Cpu {
            isa,
            pool: Pool::new(threads),
            kv,
            rotations: config.ropes.iter().map(|rope| rope.rotation(context)).collect(),
            tables: Vec::new(),
            births: None,
            shifts: Vec::new(),
            attention: plans(&config, kernels::Canary::None),
            slots: Vec::new(),
            queries: Vec::new(),
            attended: Vec::new(),
            canary: None,
            config: config.clone(),
        };
        Ok(CpuExecutor { weights, config, ops, scratch: Scratch::default(), info, seen: Vec::new() })
    }

    /// The same executor with a fault.
    #[doc(hidden)]
    pub fn with_canary(mut self, canary: Canary) -> CpuExecutor {
        self.ops.canary = Some(canary);
        self.ops.attention = match canary {
            Canary::FoldByCompletion => plans(&self.config, kernels::Canary::FoldByCompletion),
            Canary::BlockRescale => plans(&self.config, kernels::Canary::BlockWideRescale),
            Canary::RoundAfterUse | Canary::CodesTooSoon => plans(&self.config, kernels::Canary::None),
        };
        self
    }

    pub fn config(&self) -> &Config {
        &self.config
    }
}

impl Executor for CpuExecutor {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    fn step(&mut self, plan: &StepPlan, residency: &dyn Residency, out: &mut StepOutput) {
        plan.check_with(&self.info, &mut self.seen).expect("a valid plan");
        out.counters = counters(&self.info, plan);
        forward(&self.config, &self.weights, &mut self.ops, &mut self.scratch, plan, residency, out);
    }

    fn run(&self, pieces: usize, piece: &(dyn Fn(usize) + Sync)) {
        self.ops.pool.run(pieces, piece);
    }

    fn read_chunk(&self, chunk: ChunkId, out: &mut Vec<u8>) {
        out.extend_from_slice(self.ops.kv.chunk(chunk).bytes());
    }
}

/// One attention plan per layer class.
fn plans(config: &Config, canary: kernels::Canary) -> Vec<AttnPlan> {
    let Config { heads, kv_heads, head_dim, .. } = *config;
    let shape = AttnShape { heads, kv_heads, head_dim };
    let plan = |_: &Option<u32>| AttnPlan::with_canary(shape, canary).with_soft_cap(config.block.score_cap);
    config.kv_layout().windows.iter().map(plan).collect()
}

/// What rows would see if a chunk were sealed as soon as the step fills it.
fn codes_too_soon(plan: &StepPlan, class: usize) -> RunList {
    let mut runs = plan.classes[class].clone();
    for chunk in &mut runs.chunks {
        *chunk = plan.seals.iter().find(|seal| seal.from == *chunk).map_or(*chunk, |seal| seal.to);
    }
    runs
}

struct Cpu {
    config: Config,
    isa: Isa,
    pool: Pool,
    kv: KvPool,
    rotations: Vec<Rotation>,
    /// The distinct shifts of the step's runs, 0 first, and for each rotation the angles of every row for each of them.
    shifts: Vec<u32>,
    tables: Vec<Vec<RopeTable>>,
    /// For each rotation the angles of every row's key, where keys are not turned by their places alone.
    births: Option<Vec<RopeTable>>,
    /// Per layer class.
    attention: Vec<AttnPlan>,
    /// Where the rows' KV goes.
    slots: Vec<Option<Slot>>,
    /// `[shift][row][head][head_dim]`.
    queries: Vec<u16>,
    /// `[row][head][head_dim]`.
    attended: Vec<f32>,
    canary: Option<Canary>,
}

impl Ops for Cpu {
    type Matrix = Matrix;
    type Input = Input;

    fn prepare(&mut self, prepare: Prepare) {
        match prepare {
            Prepare::Zero(chunk) => self.kv.zero(chunk),
            Prepare::Copy { from, to, n } => self.kv.copy_slots(from, to, n as usize),
            Prepare::Install(_) => unreachable!("installed layer by layer"),
        }
    }

    fn fill(&mut self, layer: usize, chunks: &[ChunkId], residency: &dyn Residency, gone: &mut Vec<ChunkId>) {
        let slices = self.kv.slices_mut(layer, chunks).into_iter().map(Mutex::new).collect::<Vec<_>>();
        let lost = Mutex::new(gone);
        self.pool.run(slices.len(), &|i| {
            let filled = slices[i].lock().map(|mut slice| residency.fill(layer, chunks[i], &mut slice));
            if let Ok(Err(Gone(chunk))) = filled
                && let Ok(mut lost) = lost.lock()
            {
                lost.push(chunk);
            }
        });
    }

    fn begin(&mut self, plan: &StepPlan) {
        self.slots.clear();
        self.slots.extend(plan.rows.iter().map(|row| row.write));

        self.shifts.clear();
        self.shifts.push(0);
        for run in plan.classes.iter().flat_map(|list| &list.runs) {
            if !self.shifts.contains(&run.shift) {
                self.shifts.push(run.shift);
            }
        }
        self.tables.resize_with(self.rotations.len(), Vec::new);
        for (rotation, tables) in self.rotations.iter().zip(&mut self.tables) {
            if tables.len() < self.shifts.len() {
                tables.resize_with(self.shifts.len(), RopeTable::default);
            }
            for (table, shift) in tables.iter_mut().zip(&self.shifts) {
                let positions = plan.rows.iter().map(|row| row.position + shift);
                table.fill(&rotation.frequencies, rotation.amplitude, positions);
            }
        }

        self.births = plan.rows.iter().any(|row| row.shift > 0).then(|| {
            let table = |rotation: &Rotation| {
                let mut table = RopeTable::default();
                let births = plan.rows.iter().map(|row| row.position + row.shift);
                table.fill(&rotation.frequencies, rotation.amplitude, births);
                table
            };
            self.rotations.iter().map(table).collect()
        });

        for (class, (attention, runs)) in self.attention.iter_mut().zip(&plan.classes).enumerate() {
            if self.kv.layout().layers.iter().any(|layer| layer.class == class) {
                attention.build(runs, plan.rows.len(), self.pool.threads());
            }
        }
    }

    fn embed(&self, table: &Matrix, rows: &[Row], x: &mut [f32]) {
        for_parts(&self.pool, x, self.config.hidden, |first, part| {
            for (row, x) in rows[first..].iter().zip(part.chunks_exact_mut(self.config.hidden)) {
                table.row(row.token as usize, x);
            }
        });
    }

    fn round(&self, x: &[f32], matrix: &Matrix, out: &mut Input) {
        kernels::round(self.isa, &self.pool, x, matrix.columns(), out.room_for(matrix, x.len()));
    }

    fn norm(&self, x: &[f32], weight: &[f32], matrix: &Matrix, out: &mut Input) {
        kernels::rms_norm(self.isa, &self.pool, x, weight, self.config.norm_eps, out.room_for(matrix, x.len()));
    }

    fn matmul(&self, input: &Input, rows: usize, matrix: &Matrix, y: &mut [f32]) {
        matrix.matmul(self.isa, &self.pool, input, rows, y, false);
    }

    fn matmul_add(&self, input: &Input, rows: usize, matrix: &Matrix, y: &mut [f32]) {
        matrix.matmul(self.isa, &self.pool, input, rows, y, true);
    }

    fn add_bias(&self, y: &mut [f32], bias: &[f32]) {
        for_parts(&self.pool, y, bias.len(), |_, part| kernels::add_bias(part, bias));
    }

    fn split(&self, qkv: &[f32], q: &mut [f32], k: &mut [f32], v: &mut [f32]) {
        let Config { heads, kv_heads, head_dim, .. } = self.config;
        self.columns(qkv, 0, heads * head_dim, q);
        self.columns(qkv, heads * head_dim, kv_heads * head_dim, k);
        self.columns(qkv, (heads + kv_heads) * head_dim, kv_heads * head_dim, v);
    }

    fn norm_in_place(&self, x: &mut [f32], weight: &[f32]) {
        kernels::rms_norm_heads(self.isa, &self.pool, x, weight, self.config.norm_eps);
    }

    fn scale(&self, x: &mut [f32], factor: f32) {
        for_parts(&self.pool, x, 1, |_, part| part.iter_mut().for_each(|x| *x *= factor));
    }

    fn add_scaled(&self, x: &mut [f32], y: &[f32], factor: f32) {
        for_parts(&self.pool, x, 1, |first, part| kernels::add_scaled(part, &y[first..][..part.len()], factor));
    }

    fn soft_cap(&self, x: &mut [f32], cap: f32) {
        kernels::soft_cap(self.isa, &self.pool, x, cap);
    }

    fn rotate_and_write(&mut self, layer: usize, _: &StepPlan, k: &mut [f32], v: &[f32]) {
        let rope = self.config.attention[layer].rope;
        let table = self.births.as_ref().map_or(&self.tables[rope][0], |births| &births[rope]);
        kernels::rope(self.isa, &self.pool, k, self.config.kv_heads, self.config.head_dim, table);
        if self.canary == Some(Canary::RoundAfterUse) {
            let off: Vec<f32> = k.iter().map(|k| k * (1.0 + 1.0 / 256.0)).collect();
            return self.kv.write(self.isa, &self.pool, layer, &self.slots, &off, v);
        }
        self.kv.write(self.isa, &self.pool, layer, &self.slots, k, v);
    }

    fn seal(&mut self, layer: usize, plan: &StepPlan) {
        self.kv.seal(&self.pool, layer, &plan.seals);
    }

    fn attend(&mut self, layer: usize, plan: &StepPlan, q: &[f32], matrix: &Matrix, out: &mut Input) {
        let Config { heads, head_dim, .. } = self.config;
        let scale = std::f64::consts::LOG2_E / self.config.block.scales.score_divisor;
        let tables = &self.tables[self.config.attention[layer].rope];
        self.queries.resize(self.shifts.len() * q.len(), 0);
        for (table, queries) in tables.iter().zip(self.queries.chunks_exact_mut(q.len())) {
            kernels::rope_queries(self.isa, &self.pool, q, heads, head_dim, table, scale as f32, queries);
        }
        let class = self.kv.layout().layers[layer].class;
        let queries = Queries { data: &self.queries, shifts: &self.shifts };
        self.attended.resize(q.len(), 0.0);
        let too_soon = (self.canary == Some(Canary::CodesTooSoon)).then(|| codes_too_soon(plan, class));
        kernels::attend(
            self.isa,
            &self.pool,
            &mut self.attention[class],
            too_soon.as_ref().unwrap_or(&plan.classes[class]),
            &self.kv,
            layer,
            &queries,
            &mut self.attended,
        );
        let (width, out) = (heads * head_dim, out.room_for(matrix, q.len()));
        kernels::round(self.isa, &self.pool, &self.attended, width, out);
    }

    fn after_attention(&mut self, layer: usize, _: &StepPlan, k: &[f32], v: &[f32]) {
        if self.canary == Some(Canary::RoundAfterUse) {
            self.kv.write(self.isa, &self.pool, layer, &self.slots, k, v);
        }
    }

    fn gate(&self, input: &mut Input, rows: usize, mlp: &Part<Matrix>, gate_up: &mut Vec<f32>) {
        let (width, activation) = (self.config.intermediate, self.config.block.activation);
        let (matrix, next) = (&mlp.input.matrix, &mlp.output.matrix);
        if matrix.gate(self.isa, &self.pool, input, rows, activation, next) {
            return;
        }
        gate_up.resize(rows * 2 * width, 0.0);
        self.matmul(input, rows, matrix, gate_up);
        let halves = |row: usize| gate_up[row * 2 * width..][..2 * width].split_at(width);
        let gated = |out: &mut [u16]| {
            for_parts(&self.pool, out, width, |first, part| {
                for (row, out) in part.chunks_exact_mut(width).enumerate() {
                    let (gate, up) = halves(first + row);
                    kernels::gate_mul(self.isa, &self.pool, activation, gate, up, out);
                }
            });
        };
        input.fill_bf16(self.isa, &self.pool, next, (rows, width), gated);
    }

    fn zero_slot(&mut self, slot: Slot) {
        self.kv.zero_slot(slot);
    }
}

impl Cpu {
    /// Copies the columns `from..from + width` of `qkv`.
    fn columns(&self, qkv: &[f32], from: usize, width: usize, out: &mut [f32]) {
        for_parts(&self.pool, out, width, |first, part| {
            for (row, out) in qkv.chunks_exact(self.config.qkv_width()).skip(first).zip(part.chunks_exact_mut(width)) {
                out.copy_from_slice(&row[from..from + width]);
            }
        });
    }
}
