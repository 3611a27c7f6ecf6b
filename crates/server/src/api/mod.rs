//! The OpenAI-compatible endpoints.

pub mod assembly;
pub mod chat;
pub mod completions;
pub mod error;
pub mod generate;
pub mod json;
pub mod params;
pub mod shapes;
pub mod sse;

pub use error::ApiError;
