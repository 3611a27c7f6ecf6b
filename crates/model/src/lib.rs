//! Models: configurations, one readable forward pass of the decoder block (`forward.rs`), and two executors of it: the
//! f32 oracle and the bf16 CPU executor.
#![forbid(unsafe_code)]

mod config;
mod cpu;
mod error;
mod forward;
mod lost;
mod model;
mod oracle;
mod rope;
mod rows;
pub mod shapes;
mod source;
#[doc(hidden)]
pub mod testing;
mod weights;

/// Counts the changes of a row's bits for given weights and tokens. Stored KV of another version is useless.
pub const NUMERICS_VERSION: u32 = 1;

pub use config::{Config, Family, SamplingDefaults};
pub use cpu::{Canary, CpuExecutor};
pub use error::{Error, Result};
pub use model::{LoadOptions, Model};
pub use oracle::OracleExecutor;
pub use rope::{Rope, RopeScaling};
pub use source::ModelSource;
