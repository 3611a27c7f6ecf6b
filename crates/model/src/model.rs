use std::sync::Arc;

use kvist_kernels::{Isa, PackedBf16, Pool};

use crate::config::Config;
use crate::cpu::CpuExecutor;
use crate::error::{Error, Result};
use crate::source::{Checkpoint, ModelSource};
use crate::weights::Weights;

/// How to load.
#[derive(Clone, Copy)]
pub struct LoadOptions<'a> {
    pub threads: usize,
    /// Hears (done, total) in weights, after each matrix.
    pub progress: &'a dyn Fn(u64, u64),
}

/// A model in memory, its matrices packed in bf16 for the CPU. Clones share the weights.
#[derive(Clone)]
pub struct Model {
    pub(crate) config: Config,
    pub(crate) weights: Arc<Weights<PackedBf16>>,
}

impl Model {
    /// Reads and packs the weights. Needs memory for the model in bf16 and for its largest matrix once more.
    pub fn load(source: &ModelSource, options: &LoadOptions) -> Result<Model> {
        let checkpoint = Checkpoint::open(source)?;
        let pool = Pool::new(options.threads);
        let pack = |rows: &[u16], inputs: usize| {
            let packed = PackedBf16::from_bf16(rows.len() / inputs, inputs, rows, &pool);
            packed.map_err(|e| kvist_weights::Error::Memory { bytes: e.bytes as usize }.into())
        };
        let weights = Weights::load(&checkpoint, options.threads, pack, options.progress)?;
        Ok(Model { config: checkpoint.config, weights: Arc::new(weights) })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// An executor with a KV pool of `chunks` chunks. `context`: tokens in a sequence at most, `None` for all that the
    /// model was made for.
    pub fn into_executor(self, chunks: u32, context: Option<usize>, isa: Isa, threads: usize) -> Result<CpuExecutor> {
        CpuExecutor::new(self, chunks, context, isa, threads)
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
