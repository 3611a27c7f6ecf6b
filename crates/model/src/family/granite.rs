//! Granite 3 (dense): Llama with four numbers.

use super::refuse_windows;
use crate::config::{Config, Fields};
use crate::error::Result;

pub(super) fn configure(fields: &Fields, config: &mut Config) -> Result<()> {
    let factor = |name: &str| -> Result<f64> { Ok(fields.positive(name)?.unwrap_or(1.0)) };
    let scales = &mut config.block.scales;
    scales.embedding = factor("embedding_multiplier")? as f32;
    scales.score_divisor = 1.0 / factor("attention_multiplier")?;
    scales.residual = factor("residual_multiplier")? as f32;
    scales.logit_divisor = factor("logits_scaling")? as f32;
    refuse_windows(fields, config)
}
