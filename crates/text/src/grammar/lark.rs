//! Sources that are written down in llguidance's Lark dialect.

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::regex_to_lark;
use serde_json::Value;

use super::Tag;

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

/// Free text with tagged parts. Text runs up to the first place where a tag's `begin` is complete.
pub fn tagged(tags: &[Tag], schemas: Vec<Value>, required: bool) -> Result<TopLevelGrammar, String> {
    if tags.is_empty() || tags.iter().any(|tag| tag.begin.is_empty()) {
        return Err("a tag needs a beginning".into());
    }
    let begins: Vec<String> = tags.iter().map(|tag| literal(&tag.begin)).collect();
    let parts: Vec<String> = (0..tags.len()).map(|i| format!("part_{i}")).collect();
    let repeat = if required { "+" } else { "*" };
    let mut text = format!(
        "start: ({}){repeat} TAIL?\nTEXT: /(?s:.*)/\nBEGIN: {}\nTAIL: TEXT & ~(TEXT BEGIN TEXT) & /(?s:.+)/\n",
        parts.join(" | "),
        begins.join(" | ")
    );
    for (i, tag) in tags.iter().enumerate() {
        let end = if tag.end.is_empty() { String::new() } else { literal(&tag.end) };
        text += &format!("lead_{i}[suffix={}]: TEXT\npart_{i}: lead_{i} @schema_{i} {end}\n", literal(&tag.begin));
    }
    let named = |(i, schema)| GrammarWithLexer {
        name: Some(format!("schema_{i}")),
        ..GrammarWithLexer::from_json_schema(schema)
    };
    let grammars = std::iter::once(GrammarWithLexer::from_lark(text)).chain(schemas.into_iter().enumerate().map(named));
    Ok(TopLevelGrammar { grammars: grammars.collect(), max_tokens: None })
}

/// A string in quotes, escaped as in JSON.
pub fn literal(text: &str) -> String {
    Value::from(text).to_string()
}
