//! SmolLM3: Llama with every fourth layer free of positions.

use super::{set_windows, sliding_layers, window};
use crate::config::{Config, Fields, bad, rope};
use crate::error::Result;
use crate::rope::Rope;

pub(super) fn configure(fields: &Fields, config: &mut Config) -> Result<()> {
    config.tied = fields.flag("tie_word_embeddings")?.unwrap_or(true);
    config.ropes = vec![rope::read(fields, config.rope_defaults(2_000_000.0))?, Rope::none()];
    let interval = fields.size("no_rope_layer_interval")?.unwrap_or(4).max(1);
    // Despite its name, 1 says that a layer rotates.
    let rotates = match fields.list("no_rope_layers", |v| v.as_u64().or(v.as_bool().map(u64::from)))? {
        Some(list) if list.len() == config.layers => list.into_iter().map(|v| v != 0).collect(),
        Some(list) => return Err(bad(format!("no_rope_layers has {} entries", list.len()))),
        None => (0..config.layers).map(|l| !(l + 1).is_multiple_of(interval)).collect::<Vec<_>>(),
    };
    let used = fields.flag("use_sliding_window")?.unwrap_or(false);
    let window = if used { window(fields)? } else { None };
    let sliding = sliding_layers(fields, config.layers, |layer| window.is_some() && !rotates[layer])?;
    for (attention, rotates) in config.attention.iter_mut().zip(rotates) {
        attention.rope = !rotates as usize;
    }
    set_windows(config, window, &sliding)
}
