//! Tensors from safetensors files: one or many shards, or bytes compiled into the program. Files are read by position
//! (never mapped), every size is checked against the file's real length before anything is allocated for it, and
//! every failure is a typed [`Error`] with a hint.
#![forbid(unsafe_code)]

mod convert;
mod error;
mod header;
mod source;
mod tensors;

pub use convert::{bf16_from_f32, bf16_to_f32, f16_to_f32};
pub use error::{Error, Result};
pub use header::MAX_HEADER;
pub use tensors::{Tensor, Tensors};
