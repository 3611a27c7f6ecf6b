//! Phi-3, Phi-3.5, Phi-4-mini and Phi-4: fused projections, perhaps a rotation of a part of each head, with a list of
//! factors for long contexts.

use super::{set_windows, sliding_layers, window};
use crate::config::{Config, Fields, rope};
use crate::error::Result;

pub(super) fn configure(fields: &Fields, config: &mut Config) -> Result<()> {
    config.norm_eps = fields.number("rms_norm_eps")?.unwrap_or(1e-5) as f32;
    config.block.fused = true;
    config.block.qkv_bias = false;
    config.block.o_bias = false;
    config.ropes = vec![rope::read(fields, rope::Defaults { partial: true, ..config.rope_defaults(10_000.0) })?];
    let window = window(fields)?;
    let sliding = sliding_layers(fields, config.layers, |_| window.is_some())?;
    set_windows(config, window, &sliding)
}
