//! The endpoints: OpenAI's, and those of vLLM and llama-server that clients rely on.

pub mod about;
pub mod assembly;
pub mod chat;
pub mod completions;
pub mod error;
pub mod explain;
pub mod generate;
pub mod json;
pub mod overflow;
pub mod params;
pub mod reading;
pub mod refused;
pub mod sampling;
pub mod shapes;
pub mod sse;
pub mod structured;
pub mod tokens;
pub mod tools;

pub use error::ApiError;
