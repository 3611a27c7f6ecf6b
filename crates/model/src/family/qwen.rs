//! Qwen2 (biases on q, k and v, none on o) and Qwen3 (norms on each head of q and k).

use super::{set_windows, sliding_layers, window};
use crate::config::{Config, Fields, QkNorm};
use crate::error::Result;

pub(super) fn qwen2(fields: &Fields, config: &mut Config) -> Result<()> {
    config.block.qkv_bias = true;
    config.block.o_bias = false;
    windows(fields, config)
}

pub(super) fn qwen3(fields: &Fields, config: &mut Config) -> Result<()> {
    config.block.qk_norm = QkNorm::Head;
    windows(fields, config)
}

/// Most files name a window and do not use it.
fn windows(fields: &Fields, config: &mut Config) -> Result<()> {
    let used = fields.flag("use_sliding_window")?.unwrap_or(false);
    let window = if used { window(fields)? } else { None };
    let first = fields.size("max_window_layers")?.unwrap_or(28);
    let sliding = sliding_layers(fields, config.layers, |layer| window.is_some() && layer >= first)?;
    set_windows(config, window, &sliding)
}
