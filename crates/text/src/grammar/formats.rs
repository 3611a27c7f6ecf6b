//! `format`, which is an annotation by the specification: what the compiler knows is enforced, other names are not.

use serde_json::{Map, Value, json};

const KNOWN: [&str; 10] = ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];
/// A date with a 29th of February only in leap years.
const LEAP: &str = concat!(
    r"[0-9]{4}-(?:0[13-9]|1[0-2])-|[0-9]{4}-02-(?:[01][0-9]|2[0-8])|",
    r"(?:[0-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29"
);

/// Drops an unknown format; adds what the compiler's expression for a known one leaves open.
pub fn enforce(schema: &mut Map<String, Value>) {
    let Some(name) = schema.get("format").and_then(Value::as_str) else { return };
    let pattern = |pattern: String| ("pattern", Value::from(pattern));
    let more = match name {
        "date" => pattern(format!("^(?:{LEAP})")),
        // No leap seconds: whether there was one on that day cannot be told here.
        "date-time" => pattern(format!("^(?:{LEAP}).*:[0-5][0-9](?:\\.|[zZ]|[+-])")),
        "time" => pattern("^[0-9:]*:[0-5][0-9](?:\\.|[zZ]|[+-])".into()),
        "hostname" => ("maxLength", 253.into()),
        name if KNOWN.contains(&name) => return,
        _ => {
            schema.remove("format");
            return;
        }
    };
    let mut more = Map::from_iter([(more.0.to_owned(), more.1)]);
    if let Some(of) = schema.get("type") {
        more.insert("type".into(), of.clone());
    }
    if let Value::Array(list) = schema.entry("allOf").or_insert_with(|| json!([])) {
        list.push(Value::Object(more));
    }
}

/// Whether a pattern has an escape that may stand for a control character without a short form in JSON.
pub fn escapes_control(pattern: &str) -> bool {
    let mut rest = pattern.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            continue;
        }
        let digits = match rest.next() {
            Some('c' | '0' | 'v' | 'a') => return true,
            Some('x') => 2,
            Some('u') => 4,
            _ => continue,
        };
        let text = rest.as_str();
        let number = match text.strip_prefix('{') {
            Some(braced) => braced.split('}').next().unwrap_or_default(),
            None => text.get(..digits).unwrap_or_default(),
        };
        let control = |n: u32| (n < 0x20 && ![8, 9, 10, 12, 13].contains(&n)) || n == 0x7f;
        if u32::from_str_radix(number, 16).is_ok_and(control) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_of_control_characters_are_found() {
        for pattern in [r"a\u0001", r"\x1f", r"\x{7f}", r"\u{1}", r"\cA", r"\0", r"\\\x00"] {
            assert!(escapes_control(pattern), "{pattern}");
        }
        for pattern in [r"\x41", r"\u0041", r"\u1234", r"\n\t", r"\\x00", r"\x0a", r"\d+\s", "", "\\"] {
            assert!(!escapes_control(pattern), "{pattern}");
        }
    }
}
