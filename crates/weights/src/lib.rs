//! Tensors from safetensors and GGUF files: one or many, or bytes compiled into the program. Files are read by position
//! (never mapped), every size is checked against the file's real length before anything is allocated for it, and
//! every failure is a typed [`Error`] with a hint.
#![forbid(unsafe_code)]

mod convert;
mod dequant;
mod error;
mod format;
mod gguf;
mod header;
mod source;
mod tensors;
#[doc(hidden)]
pub mod testing;

pub use convert::{bf16_from_f32, bf16_to_f32, f16_to_f32};
pub use error::{Error, Result};
pub use format::Format;
pub use gguf::{Gguf, MetaArray, MetaValue, Strings};
pub use header::MAX_HEADER;
pub use tensors::{Tensor, Tensors};
