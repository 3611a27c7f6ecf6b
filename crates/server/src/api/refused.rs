//! Fields that change the answer and are not implemented: anything but the value that changes nothing is an error,
//! since an answer that silently ignores them is a wrong answer.

use serde_json::Value;

use crate::api::error::ApiError;
use crate::api::json::Fields;

/// A field that is not implemented, the value that changes nothing in words, and how it is told.
type Refused = (&'static str, &'static str, fn(&Value) -> bool);

/// One line each: who implements a field deletes its line.
const REFUSED: &[Refused] = &[
    ("audio", ABSENT, never),
    ("cache_salt", ABSENT, never),
    ("chat_template", ABSENT, never),
    ("documents", EMPTY, empty),
    ("dry_multiplier", "0", zero),
    ("dynatemp_range", "0", zero),
    ("function_call", "left out; its successor is `tool_choice`", never),
    ("functions", "empty; their successors are `tools`", empty),
    ("length_penalty", "1", one),
    ("lora", EMPTY, empty),
    ("mirostat", "0", zero),
    ("modalities", "[\"text\"]", |v| v.as_array().is_some_and(|l| l.iter().all(|m| m == "text"))),
    ("n_probs", "0", zero),
    ("post_sampling_probs", "false", off),
    ("prompt_embeds", ABSENT, never),
    ("tfs_z", "1", one),
    ("top_n_sigma", "-1", |v| v.as_f64().is_some_and(|n| n <= 0.0)),
    ("typical_p", "1", one),
    ("use_beam_search", "false", off),
    ("xtc_probability", "0", zero),
];

const ABSENT: &str = "left out";
const EMPTY: &str = "empty";

fn never(_: &Value) -> bool {
    false
}

fn one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}

fn zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

fn off(value: &Value) -> bool {
    *value == false
}

fn empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// Refuses a request that asks for what is not implemented, by name.
pub fn refuse_unsupported(fields: Fields) -> Result<(), ApiError> {
    for (name, neutral, is_neutral) in REFUSED {
        if fields.get(name).is_some_and(|value| !is_neutral(value)) {
            let message = format!("this version of kvist supports it only when {neutral}");
            return Err(ApiError::unsupported(*name, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::json::parse_object;

    fn check(field: &str, value: &str) -> Result<(), ApiError> {
        refuse_unsupported(Fields(&parse_object(format!("{{\"{field}\":{value}}}").as_bytes()).unwrap()))
    }

    #[test]
    fn what_is_not_implemented_is_refused_by_name() {
        assert!(REFUSED.is_sorted_by_key(|r| r.0));
        for (field, ..) in REFUSED {
            for value in ["3", "{\"a\":1}", "[7]", "\"x\"", "true"] {
                let error = check(field, value).unwrap_err();
                assert_eq!((error.param.as_deref(), error.code), (Some(*field), Some("unsupported_parameter")));
            }
            check(field, "null").unwrap();
        }
    }

    #[test]
    fn what_changes_nothing_is_taken() {
        for (field, value) in [
            ("documents", "[]"),
            ("functions", "[]"),
            ("length_penalty", "1.0"),
            ("lora", "[]"),
            ("mirostat", "0"),
            ("modalities", "[\"text\"]"),
            ("n_probs", "0"),
            ("post_sampling_probs", "false"),
            ("response_format", "{\"type\":\"text\"}"),
            ("top_n_sigma", "-1.0"),
            ("typical_p", "1"),
            ("xtc_probability", "0.0"),
            ("use_beam_search", "false"),
        ] {
            check(field, value).unwrap();
        }
    }
}
