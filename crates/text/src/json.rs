//! JSON as Python's `json.dumps` writes it, because chat templates were written and trained with that.

use serde_json::Value;

/// Keyword arguments of `json.dumps` that templates use.
#[derive(Clone, Debug)]
pub(crate) struct Style {
    pub ensure_ascii: bool,
    /// What one level is indented by; `None` writes everything on one line.
    pub indent: Option<String>,
    pub separators: (String, String),
    pub sort_keys: bool,
}

impl Style {
    /// The defaults of `json.dumps`, but with all characters as they are.
    pub fn one_line() -> Self {
        let separators = (", ".to_owned(), ": ".to_owned());
        Style { ensure_ascii: false, indent: None, separators, sort_keys: false }
    }
}

pub(crate) fn dumps(value: &Value, style: &Style) -> String {
    let mut out = String::new();
    write(value, style, 0, &mut out);
    out
}

fn write(value: &Value, style: &Style, depth: usize, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) if n.is_f64() => out.push_str(&float(n.as_f64().unwrap_or(f64::NAN))),
        Value::Number(n) => out.push_str(&n.to_string()),
        Value::String(s) => string(s, style.ensure_ascii, out),
        Value::Array(list) => {
            out.push('[');
            for (i, item) in list.iter().enumerate() {
                next_item(i, style, depth + 1, out);
                write(item, style, depth + 1, out);
            }
            close(list.is_empty(), style, depth, out);
            out.push(']');
        }
        Value::Object(map) => {
            let mut pairs: Vec<_> = map.iter().collect();
            if style.sort_keys {
                pairs.sort_by_key(|(key, _)| *key);
            }
            out.push('{');
            for (i, (key, item)) in pairs.into_iter().enumerate() {
                next_item(i, style, depth + 1, out);
                string(key, style.ensure_ascii, out);
                out.push_str(&style.separators.1);
                write(item, style, depth + 1, out);
            }
            close(map.is_empty(), style, depth, out);
            out.push('}');
        }
    }
}

fn next_item(index: usize, style: &Style, depth: usize, out: &mut String) {
    if index > 0 {
        out.push_str(&style.separators.0);
    }
    new_line(style, depth, out);
}

fn close(empty: bool, style: &Style, depth: usize, out: &mut String) {
    if !empty {
        new_line(style, depth, out);
    }
}

fn new_line(style: &Style, depth: usize, out: &mut String) {
    if let Some(indent) = &style.indent {
        out.push('\n');
        (0..depth).for_each(|_| out.push_str(indent));
    }
}

fn string(text: &str, ensure_ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (ensure_ascii && c > '~') => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// `repr` of a Python float: shortest digits that read back equal, exponents below -4 or from 16 on.
pub(crate) fn float(x: f64) -> String {
    if !x.is_finite() {
        return if x.is_nan() { "NaN" } else { ["-Infinity", "Infinity"][usize::from(x > 0.0)] }.to_owned();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = x.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_as_python_prints_them() {
        for (x, text) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (-0.0, "-0.0"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (1e-4, "0.0001"),
            (1.25e-5, "1.25e-05"),
            (123456.789, "123456.789"),
        ] {
            assert_eq!(float(x), text);
        }
    }
}
