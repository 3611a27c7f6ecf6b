//! Mistral: Llama, with a sliding window in every layer of the first version.

use super::{set_windows, sliding_layers, window};
use crate::config::{Config, Fields};
use crate::error::Result;

pub(super) fn configure(fields: &Fields, config: &mut Config) -> Result<()> {
    let window = window(fields)?;
    let sliding = sliding_layers(fields, config.layers, |_| window.is_some())?;
    set_windows(config, window, &sliding)
}
