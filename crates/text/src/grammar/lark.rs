//! Sources that are written down in llguidance's Lark dialect.

use llguidance::regex_to_lark;
use serde_json::Value;

/// A client's grammar. Intersections and complements of terminals are refused: whether one of them matches anything is
/// found out by going through its states, and of those there may be more than any limit of the library holds back.
pub fn checked(text: &str) -> Result<String, String> {
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        rest = match c {
            '/' if after.starts_with('/') => after.find('\n').map_or("", |end| &after[end..]),
            '"' | '/' => past(after, c),
            '&' => return Err("`&` between terminals is not supported".into()),
            // A tilde before a number repeats.
            '~' if !after.trim_start().starts_with(|c: char| c.is_ascii_digit()) => {
                return Err("`~` before a terminal is not supported".into());
            }
            _ => after,
        };
    }
    Ok(text.to_owned())
}

/// What follows a string or a pattern that ends with `quote`.
fn past(text: &str, quote: char) -> &str {
    let mut escaped = false;
    let end = text.char_indices().find(|&(_, c)| {
        let ends = c == quote && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    });
    end.map_or("", |(at, _)| &text[at + 1..])
}

/// A pattern that the text must match as a whole.
pub fn regex(pattern: &str) -> Result<String, String> {
    if pattern.bytes().rev().take_while(|&b| b == b'\\').count() % 2 == 1 {
        return Err("the pattern ends with an escape of nothing".into());
    }
    if pattern.is_empty() {
        return Ok("start: \"\"".into());
    }
    Ok(format!("start: /{}/", regex_to_lark(pattern, "")))
}

pub fn choice(choices: &[String]) -> String {
    let options: Vec<String> = choices.iter().filter(|c| !c.is_empty()).map(|c| literal(c)).collect();
    let empty = if options.len() < choices.len() { "?" } else { "" };
    match options.is_empty() {
        true => "start: \"\"".into(),
        false => format!("start: CHOICE{empty}\nCHOICE: {}", options.join(" | ")),
    }
}

/// A string in quotes, escaped as in JSON.
pub fn literal(text: &str) -> String {
    Value::from(text).to_string()
}
