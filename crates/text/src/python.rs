//! Values as Python prints them, because templates print lists, objects and numbers, too.

use std::sync::OnceLock;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};
use regex::Regex;

use crate::json::float;

/// Depth of lists and objects that are printed; JSON that was parsed has at most 128 levels.
const DEPTH: usize = 200;
/// Characters and elements of one value that is printed. A template can make a list that holds itself twice, again and
/// again.
const SIZE: usize = 16 << 20;

/// `str(value)`; nothing for an undefined one.
pub(crate) fn str(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::String => Ok(value.as_str().unwrap_or_default().to_owned()),
        ValueKind::Undefined => Ok(String::new()),
        _ => {
            bounded(value)?;
            let mut out = String::new();
            repr(value, &mut out);
            Ok(out)
        }
    }
}

/// An error for values too deep or too large to be walked through.
pub(crate) fn bounded(value: &Value) -> Result<(), Error> {
    fn walk(value: &Value, depth: usize, left: &mut usize) -> bool {
        let size = 1 + value.as_str().map_or(0, str::len);
        if depth == 0 || size > *left {
            return false;
        }
        *left -= size;
        let inner = |item: Value, left: &mut usize| walk(&item, depth - 1, left);
        match value.kind() {
            ValueKind::Seq => value.try_iter().into_iter().flatten().all(|item| inner(item, left)),
            ValueKind::Map => value.try_iter().into_iter().flatten().all(|key| {
                let item = value.get_item(&key).unwrap_or_default();
                inner(key, left) && inner(item, left)
            }),
            _ => true,
        }
    }
    match walk(value, DEPTH, &mut SIZE.clone()) {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::InvalidOperation, "the value is too deep or too large to be printed")),
    }
}

fn repr(value: &Value, out: &mut String) {
    match value.kind() {
        ValueKind::String => quote(value.as_str().unwrap_or_default(), out),
        ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
            Ok(x) if x.is_finite() => out.push_str(&float(x)),
            Ok(x) => out.push_str(if x.is_nan() { "nan" } else { ["-inf", "inf"][usize::from(x > 0.0)] }),
            Err(_) => out.push_str(&value.to_string()),
        },
        ValueKind::Seq => {
            out.push('[');
            for (i, item) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(&item, out);
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(&key, out);
                out.push_str(": ");
                repr(&value.get_item(&key).unwrap_or_default(), out);
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
}

/// In single quotes, or in double ones if only single ones occur within; what cannot be printed is escaped.
fn quote(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if c == ' ' || c.is_ascii_graphic() || (!c.is_ascii() && printable(c)) => out.push(c),
            c => out.push_str(&match u32::from(c) {
                code @ ..=0xFF => format!("\\x{code:02x}"),
                code @ ..=0xFFFF => format!("\\u{code:04x}"),
                code => format!("\\U{code:08x}"),
            }),
        }
    }
    out.push(quote);
}

/// `str.isprintable`: not control, format, unassigned, private use, or a separator.
fn printable(c: char) -> bool {
    static OTHER: OnceLock<Option<Regex>> = OnceLock::new();
    let other = OTHER.get_or_init(|| Regex::new(r"[\p{C}\p{Z}]").ok());
    other.as_ref().is_none_or(|other| !other.is_match(c.encode_utf8(&mut [0; 4])))
}

/// White space of `str.strip`: Unicode's and the four separators of ASCII.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Methods of Python's types. Stripping white space is done here, the rest by the library.
pub(crate) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match (value.as_str(), name, args) {
        (Some(text), "strip", []) => Ok(text.trim_matches(is_space).into()),
        (Some(text), "lstrip", []) => Ok(text.trim_start_matches(is_space).into()),
        (Some(text), "rstrip", []) => Ok(text.trim_end_matches(is_space).into()),
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// The filter `trim`.
pub(crate) fn trim(value: &Value, characters: Option<&str>) -> Result<String, Error> {
    let text = str(value)?;
    Ok(match characters {
        Some(characters) => text.trim_matches(|c| characters.contains(c)).to_owned(),
        None => text.trim_matches(is_space).to_owned(),
    })
}

/// The filter `string`.
pub(crate) fn string(value: Value) -> Result<Value, Error> {
    if value.as_str().is_some() { Ok(value) } else { str(&value).map(Value::from) }
}

/// The filter `join`; `attribute` may be a path of names and indices separated by dots.
pub(crate) fn join(
    value: &Value,
    joiner: Option<String>,
    attribute: Option<String>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let joiner = joiner.or(kwargs.get("d")?).unwrap_or_default();
    let attribute = attribute.or(kwargs.get("attribute")?);
    kwargs.assert_all_used()?;
    let mut out = String::new();
    for (i, item) in value.try_iter()?.enumerate() {
        out.push_str(if i > 0 { &joiner } else { "" });
        let mut item = item;
        for name in attribute.iter().flat_map(|path| path.split('.')) {
            item = match name.parse::<usize>() {
                Ok(index) => item.get_item(&Value::from(index))?,
                Err(_) => item.get_attr(name)?,
            };
        }
        out.push_str(&str(&item)?);
    }
    Ok(out)
}

/// The filter `indent`: the width is a number or a text; lines end where Python's `splitlines` ends them.
pub(crate) fn indent(
    text: &str,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let width = width.or(kwargs.get("width")?);
    let first = first.or(kwargs.get("first")?).unwrap_or(false);
    let blank = blank.or(kwargs.get("blank")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    let by = match width {
        None => " ".repeat(4),
        Some(width) => match width.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(width)?.min(256)),
        },
    };
    let mut out = if first { by.clone() } else { String::new() };
    let text = text.replace("\r\n", "\n");
    for (i, line) in text.split(ends_line).enumerate() {
        if i > 0 {
            out.push('\n');
            out.push_str(if blank || !line.is_empty() { &by } else { "" });
        }
        out.push_str(line);
    }
    Ok(out)
}

fn ends_line(c: char) -> bool {
    matches!(c, '\n'..='\r' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// The filters `length` and `count`: an undefined value has none.
pub(crate) fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() { Ok(0) } else { minijinja::filters::length(value) }
}

/// The test `iterable`.
pub(crate) fn is_iterable(value: &Value) -> bool {
    !value.is_none() && (value.is_undefined() || value.try_iter().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_python_prints_them() {
        let value: serde_json::Value = serde_json::from_str(
            r#"{"a": [1, 2.0, 1e16, -1e-7, true, null, {}, []], "it's": "\"q\"", "b": "it's\n\\", "c": "both '\"", "d": "\u200d\u00a0é\u0001"}"#,
        )
        .unwrap();
        // Python 3.11, print(json.loads(...))
        let printed = r#"{'a': [1, 2.0, 1e+16, -1e-07, True, None, {}, []], "it's": '"q"', 'b': "it's\n\\", 'c': 'both \'"', 'd': '\u200d\xa0é\x01'}"#;
        assert_eq!(str(&Value::from(minijinja::value::Serde(&value))).unwrap(), printed);
        assert_eq!(str(&Value::from("it's\n")).unwrap(), "it's\n");
        assert_eq!(str(&Value::UNDEFINED).unwrap(), "");
    }

    #[test]
    fn indented_as_jinja2_does() {
        let indented = |text, width, first, blank| {
            indent(
                text,
                Some(Value::from(width)),
                Some(first),
                Some(blank),
                std::iter::empty::<(&str, Value)>().collect(),
            )
            .unwrap()
        };
        assert_eq!(indented("{\n", 4, true, false), "    {\n");
        assert_eq!(indented("a\r\n\nb\u{2028}c", 2, false, false), "a\n\n  b\n  c");
        assert_eq!(indented("a\n\nb", 1, false, true), "a\n \n b");
        assert_eq!(indented("", 3, true, false), "   ");
    }
}
