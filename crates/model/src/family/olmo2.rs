//! OLMo 2: norms on the outputs of attention and MLP instead of their inputs, and on whole rows of q and k.

use super::refuse_windows;
use crate::config::{Config, Fields, NormPlace, QkNorm};
use crate::error::Result;

pub(super) fn configure(fields: &Fields, config: &mut Config) -> Result<()> {
    config.norm_eps = fields.number("rms_norm_eps")?.unwrap_or(1e-5) as f32;
    config.block.norms = NormPlace::After;
    config.block.qk_norm = QkNorm::Row;
    refuse_windows(fields, config)
}
