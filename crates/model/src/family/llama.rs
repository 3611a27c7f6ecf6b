//! Llama 2 and 3.x, TinyLlama, SmolLM2: the block as it is.

use super::refuse_windows;
use crate::config::{Config, Fields};
use crate::error::Result;

pub(super) fn configure(fields: &Fields, config: &mut Config) -> Result<()> {
    refuse_windows(fields, config)
}
