use std::collections::BTreeSet;
use std::sync::Arc;

use kvist_base::Codec;
use kvist_kernels::{Isa, Pool};

use crate::config::Config;
use crate::cpu::CpuExecutor;
use crate::error::{Error, Result};
use crate::matrix::Matrix;
use crate::parameter::Parameter;
use crate::source::{Checkpoint, ModelSource};
use crate::weights::Weights;

/// How matrices of floats are kept in memory. Those that the file has quantised stay as they are, unless bf16 is asked
/// for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightForm {
    /// Floats as bf16, the rest as in the file.
    #[default]
    AsFile,
    /// Everything as bf16.
    Bf16,
    /// Floats in blocks of 8 bits: 8.5 bits a weight.
    Q8,
    /// Floats in blocks of 4 bits, 4.5 bits a weight; embedding and output matrix as [`WeightForm::Q8`].
    Q4,
}

/// How to load.
#[derive(Clone, Copy)]
pub struct LoadOptions<'a> {
    pub threads: usize,
    pub weights: WeightForm,
    /// Hears (done, total) in bytes of the files, after each matrix.
    pub progress: &'a dyn Fn(u64, u64),
}

impl Default for LoadOptions<'_> {
    fn default() -> Self {
        LoadOptions { threads: 1, weights: WeightForm::AsFile, progress: &|_, _| () }
    }
}

/// A model in memory, its matrices packed for the CPU. Clones share the weights.
#[derive(Clone)]
pub struct Model {
    pub(crate) config: Config,
    pub(crate) weights: Arc<Weights<Matrix>>,
}

impl Model {
    /// Reads and packs the weights, row by row: needs memory for the packed model and no more.
    pub fn load(source: &ModelSource, options: &LoadOptions) -> Result<Model> {
        Model::of(&Checkpoint::open(source)?, options)
    }

    /// The same from an open checkpoint.
    pub fn of(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Model> {
        let pool = Pool::new(options.threads);
        let pack = |parts: &[Parameter], gated| Matrix::pack(parts, gated, options.weights, &pool);
        let weights = Weights::load(checkpoint, pack, options.progress)?;
        Ok(Model { config: checkpoint.config().clone(), weights: Arc::new(weights) })
    }

    /// Bytes of the matrices in memory.
    pub fn bytes(&self) -> u64 {
        self.weights.matrices().map(Matrix::bytes).sum()
    }

    /// What the matrices are in memory, e.g. `bf16` or `Q4_K, Q6_K`.
    pub fn forms(&self) -> String {
        let mut forms = BTreeSet::new();
        self.weights.matrices().for_each(|matrix| matrix.name_forms(&mut forms));
        forms.into_iter().collect::<Vec<_>>().join(", ")
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// An executor with a KV pool of `chunks` chunks in 16 bits. `context`: tokens in a sequence at most, `None` for all that
    /// the model was made for.
    pub fn into_executor(self, chunks: u32, context: Option<usize>, isa: Isa, threads: usize) -> Result<CpuExecutor> {
        self.with_pool(PoolSize::kv16(chunks), context, isa, threads)
    }

    /// As [`Model::into_executor`], with a pool of any kind.
    pub fn with_pool(self, size: PoolSize, context: Option<usize>, isa: Isa, threads: usize) -> Result<CpuExecutor> {
        CpuExecutor::new(self, size, context, isa, threads)
    }
}

/// The KV pool of an executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSize {
    pub codec: Codec,
    /// Chunks, encoded if the codec is kv8.
    pub chunks: u32,
    /// Slabs for open chunks beside them, two at least; none where all chunks are kv16.
    pub open: u32,
}

impl PoolSize {
    pub fn kv16(chunks: u32) -> PoolSize {
        PoolSize { codec: Codec::Kv16, chunks, open: 0 }
    }

    pub fn kv8(chunks: u32, open: u32) -> PoolSize {
        PoolSize { codec: Codec::Kv8, chunks, open }
    }
}

/// The context to run with: what is asked for, or all that the model was made for.
pub(crate) fn context_of(config: &Config, asked: Option<usize>) -> Result<usize> {
    match asked {
        None => Ok(config.context),
        Some(asked) if (1..=config.context).contains(&asked) => Ok(asked),
        Some(asked) => Err(Error::Context { asked, model: config.context }),
    }
}
