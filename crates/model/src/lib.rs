//! Models: configurations, one readable forward pass of the decoder block (`forward.rs`), and two executors of it: the
//! f32 oracle and the bf16 CPU executor.
#![forbid(unsafe_code)]

mod config;
mod cpu;
mod error;
mod family;
mod forward;
mod gguf;
mod input;
mod lost;
mod matrix;
mod model;
mod names;
mod oracle;
mod parameter;
mod rope;
mod rows;
pub mod shapes;
mod source;
#[doc(hidden)]
pub mod testing;
mod weights;

/// Counts the changes of a row's bits for given weights and tokens. Stored KV of another version is useless.
pub const NUMERICS_VERSION: u32 = 6;

pub use config::{Activation, Attention, Block, Config, NormPlace, QkNorm, SamplingDefaults, Scales};
pub use cpu::{Canary, CpuExecutor};
pub use error::{Error, Result};
pub use family::Family;
pub use model::{LoadOptions, Model, PoolSize, WeightForm};
pub use oracle::OracleExecutor;
pub use rope::{Rope, RopeScaling, Rotation};
pub use source::{Checkpoint, ModelSource};
