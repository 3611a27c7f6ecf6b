//! RoPE in both dialects. Old: `rope_theta` beside `rope_scaling`. New: both inside `rope_parameters`, perhaps one
//! object per type of layer.

use serde_json::Value;

use super::bad;
use super::fields::Fields;
use crate::error::{Error, Result};
use crate::rope::{Rope, RopeScaling};

/// Fields that mean nothing without a type.
const SCALING: [&str; 12] = [
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "short_factor",
    "long_factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "alpha",
];

/// What a family knows about its rotation beyond the fields.
#[derive(Clone, Copy)]
pub(crate) struct Defaults<'a> {
    pub theta: f64,
    /// Which object counts where there is one per type of layer; `None`: the family has but one.
    pub layer_type: Option<&'a str>,
    /// Whether a part of each head may be left as it is.
    pub partial: bool,
    pub head_dim: usize,
    pub context: usize,
}

pub(crate) fn read(config: &Fields, defaults: Defaults) -> Result<Rope> {
    let fields = parameters(config, defaults.layer_type)?;
    let partial = match fields.positive("partial_rotary_factor")? {
        Some(partial) => partial,
        None => config.positive("partial_rotary_factor")?.unwrap_or(1.0),
    };
    if partial > 1.0 || (partial != 1.0 && !defaults.partial) {
        return Err(refuse(&format!("on {partial} of each head")));
    }
    let rotary = (defaults.head_dim as f64 * partial) as usize;
    if rotary == 0 || !rotary.is_multiple_of(2) {
        return Err(refuse(&format!("on {rotary} elements of each head")));
    }
    let theta = fields.number("rope_theta")?.or(config.number("rope_theta")?).unwrap_or(defaults.theta);
    if !(theta.is_finite() && theta >= 1.0) {
        return Err(bad(format!("RoPE theta is {theta}")));
    }
    let original_context = original_context(config, &fields)?.unwrap_or(defaults.context as f64);
    let needed = |name: &str| fields.positive(name)?.ok_or_else(|| bad(format!("RoPE {name} is missing")));
    let kind = fields.get("rope_type").or(fields.get("type"));
    let scaling = match kind.map(|kind| kind.as_str().ok_or(kind)) {
        None => match SCALING.iter().find(|name| fields.get(name).is_some()) {
            Some(name) => return Err(bad(format!("RoPE has a {name} but no rope_type"))),
            None => RopeScaling::None,
        },
        Some(Ok("default")) => RopeScaling::None,
        Some(Ok("linear")) => RopeScaling::Linear { factor: needed("factor")? },
        Some(Ok("llama3")) => {
            let (low_freq_factor, high_freq_factor) = (needed("low_freq_factor")?, needed("high_freq_factor")?);
            if low_freq_factor >= high_freq_factor {
                return Err(bad("RoPE low_freq_factor is not below high_freq_factor"));
            }
            RopeScaling::Llama3 { factor: needed("factor")?, low_freq_factor, high_freq_factor, original_context }
        }
        Some(Ok("yarn")) if fields.get("long_factor").is_none() => yarn(&fields, original_context)?,
        // The first Phi-3 files call it "su", later ones "yarn".
        Some(Ok("longrope" | "su" | "yarn")) => longrope(&fields, original_context, rotary, defaults.context)?,
        Some(Ok(kind)) => return Err(refuse(&format!("of type {kind:?}"))),
        Some(Err(kind)) => return Err(refuse(&format!("of type {kind}"))),
    };
    Ok(Rope { theta, rotary, scaling })
}

/// Tokens before the context was stretched, where the file says so.
fn original_context(config: &Fields, rope: &Fields) -> Result<Option<f64>> {
    const NAME: &str = "original_max_position_embeddings";
    Ok(config.positive(NAME)?.or(rope.positive(NAME)?))
}

/// The context that YaRN makes of the original one. Who adds YaRN to a file as the pages of Qwen say leaves
/// `max_position_embeddings` as it is.
pub(super) fn stretched_context(config: &Fields) -> Result<usize> {
    let rope = parameters(config, Some("full_attention"))?;
    let kind = rope.get("rope_type").or(rope.get("type")).and_then(Value::as_str);
    if kind != Some("yarn") || rope.get("long_factor").is_some() {
        return Ok(0);
    }
    let sizes = original_context(config, &rope)?.zip(rope.positive("factor")?);
    Ok(sizes.map_or(0, |(original, factor)| (original * factor) as usize))
}

/// Peng et al. 2023.
fn yarn(fields: &Fields, original_context: f64) -> Result<RopeScaling> {
    let factor = fields.positive("factor")?.ok_or_else(|| bad("RoPE factor is missing"))?;
    let scaled = |by: f64| if factor <= 1.0 { 1.0 } else { 0.1 * by * factor.ln() + 1.0 };
    let attention_factor = match (fields.positive("attention_factor")?, fields.number("mscale")?) {
        (Some(given), _) => given,
        (None, Some(mscale)) if mscale != 0.0 => match fields.number("mscale_all_dim")? {
            Some(all) if all != 0.0 => scaled(mscale) / scaled(all),
            _ => scaled(1.0),
        },
        _ => scaled(1.0),
    };
    Ok(RopeScaling::Yarn {
        factor,
        original_context,
        beta_fast: fields.positive("beta_fast")?.unwrap_or(32.0),
        beta_slow: fields.positive("beta_slow")?.unwrap_or(1.0),
        truncate: fields.flag("truncate")?.unwrap_or(true),
        attention_factor,
    })
}

/// Ding et al. 2024, as in Phi-3.
fn longrope(fields: &Fields, original_context: f64, rotary: usize, context: usize) -> Result<RopeScaling> {
    let factors = |name: &str| match fields.list(name, |v| v.as_f64().filter(|v| v.is_finite() && *v > 0.0))? {
        Some(list) if list.len() == rotary / 2 => Ok(list),
        Some(list) => Err(bad(format!("RoPE {name} has {} numbers, must have {}", list.len(), rotary / 2))),
        None => Err(bad(format!("RoPE {name} is missing"))),
    };
    let factor = fields.positive("factor")?.unwrap_or(context as f64 / original_context);
    let attention_factor = match fields.positive("attention_factor")? {
        Some(given) => given,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / original_context.ln()).sqrt(),
    };
    let (short, long) = (factors("short_factor")?, factors("long_factor")?);
    Ok(RopeScaling::LongRope { short, long, original_context, attention_factor })
}

/// What `rope_parameters` and `rope_scaling` say together; they may not contradict each other.
fn parameters(config: &Fields, layer_type: Option<&str>) -> Result<Fields> {
    let new = config.object("rope_parameters")?.unwrap_or_default();
    let old = config.object("rope_scaling")?.unwrap_or_default();
    let new = match layer_type {
        _ if !new.iter().any(|(_, value)| value.is_object()) => new,
        Some(layer_type) => new.object(layer_type)?.unwrap_or_default(),
        None => return Err(refuse("a configuration per layer type")),
    };
    if old.iter().any(|(_, value)| value.is_object()) {
        return Err(refuse("a configuration per layer type"));
    }
    let name = |name: &str| if name == "type" { "rope_type" } else { name }.to_owned();
    for (field, value) in old.iter() {
        if let Some((_, other)) = new.iter().find(|(other, _)| name(other) == name(field))
            && !same(other, value)
        {
            return Err(bad(format!("rope_scaling and rope_parameters contradict each other about {field}")));
        }
    }
    Ok(new.or(old))
}

/// 8 and 8.0 are the same factor.
fn same(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().is_some_and(|a| Some(a) == b.as_f64())
}

fn refuse(what: &str) -> Error {
    Error::Unsupported {
        what: format!("it uses RoPE {what}"),
        supported: "RoPE of type default, linear, llama3, yarn and longrope",
    }
}
