//! Sources that are written down in llguidance's Lark dialect.

use std::collections::BTreeMap;

use llguidance::regex_to_lark;
use serde_json::Value;

use super::costs::Costs;
use super::expressions::Found;
use super::{GrammarLimits, schema};

/// Bytes of what a `%regex` takes the pieces of.
const PIECES: usize = 32 << 10;

/// A client's grammar, with the schemas in it as [`schema::prepared`] makes them. Intersections and complements of
/// terminals are refused: whether one of them matches anything is found out by going through its states, and of those
/// there may be more than any limit of the library holds back.
pub fn read(text: &str, limits: &GrammarLimits, costs: &mut Costs) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut terminals = Terminals::default();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        let mut next = match c {
            '#' => line(after),
            '/' if after.starts_with('/') => line(after),
            '"' => past(after, c),
            '/' => past(after, c).trim_start_matches(['i', 'm', 's', 'l', 'u', 'x']),
            '<' => after.find('>').map_or("", |end| &after[end + 1..]),
            '&' => return Err("`&` between terminals is not supported".into()),
            // A tilde before a number repeats.
            '~' if !after.trim_start().starts_with(|c: char| c.is_ascii_digit()) => {
                return Err("`~` before a terminal is not supported".into());
            }
            '%' => after.trim_start_matches(|c: char| c.is_ascii_lowercase()),
            c if c.is_ascii_alphabetic() => {
                after.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || "_-".contains(c))
            }
            _ => after,
        };
        let piece = &rest[..rest.len() - next.len()];
        out.push_str(piece);
        match piece {
            "%json" | "%regex" | "%llguidance" => {
                let (value, length) = json(next).ok_or(format!("`{piece}`: JSON is expected"))?;
                match piece {
                    "%json" => out.push_str(&schema::prepared(&value, true, limits, costs)?.to_string()),
                    "%regex" if length > PIECES => {
                        return Err(format!("`%regex` has {length} bytes; {PIECES} are allowed"));
                    }
                    _ => out.push_str(&next[..length]),
                }
                next = &next[length..];
            }
            piece => terminals.add(piece)?,
        }
        rest = next;
    }
    terminals.check()?;
    Ok(out)
}

/// What follows a line.
fn line(text: &str) -> &str {
    text.find('\n').map_or("", |end| &text[end..])
}

/// The JSON that a text begins with, and its length.
fn json(text: &str) -> Option<(Value, usize)> {
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let value = stream.next()?.ok()?;
    Some((value, stream.byte_offset()))
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

/// The definitions of terminals: each becomes one expression, with those that it names in their places.
#[derive(Default)]
struct Terminals<'a> {
    /// The one that is being read, if it is no rule.
    current: Option<&'a str>,
    /// Something stands before this on the line, so that no definition begins here.
    within: bool,
    /// What is read once, wherever it is named; of all.
    read: Found,
    /// What each adds by itself, and what it names.
    known: BTreeMap<&'a str, (Found, Vec<&'a str>)>,
}

impl<'a> Terminals<'a> {
    fn add(&mut self, piece: &'a str) -> Result<(), String> {
        let first = piece.chars().next().unwrap_or(' ');
        let begins = !self.within && first.is_ascii_alphabetic();
        if begins {
            self.current = first.is_ascii_uppercase().then_some(piece);
        }
        // Names may begin with these.
        self.within = first != '\n' && (self.within || !" \t\r_?!".contains(first));
        // A rule's expressions are expressions each by itself.
        let found = match first {
            '"' | '#' | '<' => Found::default(),
            '/' if piece.starts_with("//") => Found::default(),
            // Repetitions may be none at all.
            '[' | '{' | '~' => Found { optional: 1, ..Found::default() },
            _ => Found::of(piece, false),
        };
        let (read, found) = found.split();
        self.read = self.read.and(read);
        self.read.and(found).check()?;
        if let Some(name) = self.current {
            let known = self.known.entry(name).or_default();
            known.0 = known.0.and(found);
            if first.is_ascii_uppercase() && !begins {
                known.1.push(piece);
            }
        }
        Ok(())
    }

    /// Adds up what they take with all that they name.
    fn check(&self) -> Result<(), String> {
        let mut totals = BTreeMap::new();
        // The library refuses terminals that name themselves: their sum does not matter.
        let mut open: Vec<(&str, bool)> = self.known.keys().map(|name| (*name, false)).collect();
        while let Some((name, named_are_done)) = open.pop() {
            let Some((own, named)) = self.known.get(name) else { continue };
            if named_are_done {
                let total = named.iter().filter_map(|n| totals.get(n)).fold(*own, |sum, n: &Found| sum.and(*n));
                total.check()?;
                totals.insert(name, total);
            } else if !totals.contains_key(name) {
                totals.insert(name, Found::default());
                open.push((name, true));
                open.extend(named.iter().map(|n| (*n, false)));
            }
        }
        Ok(())
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<String, String> {
        read(text, &GrammarLimits::default(), &mut Costs::default())
    }

    #[test]
    fn what_is_no_expression_is_passed_over() {
        for text in [
            "start: \"&~\" /[&~]\\/&/ <&\"> // & ~\n# ~ \" & /\n| \"a\"~2..3 %ignore / /",
            "?start: a [b]\n!a[lazy]: T\n_T: /x/ \nb: T\n",
            "%llguidance {\"no_forcing\": true}\nstart: %regex {\"substring_chars\": \"a & ~b\"}",
        ] {
            assert_eq!(checked(text).as_deref(), Ok(text));
        }
        for text in
            ["start: A & B", "start: ~A", "# \"\nstart: A & B\n# \"", "start: <\"> A & B <\">", "start: %json {"]
        {
            assert!(checked(text).is_err(), "{text}");
        }
    }

    /// A schema in a grammar was compiled as it came: one of 88 bytes took more than 100 s and all memory.
    #[test]
    fn schemas_in_grammars_are_prepared() {
        let out = checked("start: %json{\"type\": \"integer\", \"x-guidance\": {\"lenient\": true}} \"x\"").unwrap();
        assert!(
            out.starts_with("start: %json{\"type\":\"integer\",\"x-guidance\":{") && out.ends_with("} \"x\""),
            "{out}"
        );
        assert!(out.contains("\"lenient\":false"), "{out}");
        let multiples = "{\"allOf\": [{\"multipleOf\": 9973}, {\"multipleOf\": 9967}, {\"multipleOf\": 99490001}]}";
        assert!(checked(&format!("start: %json {multiples}")).unwrap_err().contains("multipleOf"));
        // Costs are those of the whole source.
        let half = "%json {\"anyOf\": [{\"multipleOf\": 313}, {\"multipleOf\": 317}]} ";
        assert!(checked(&format!("start: {half}")).is_ok());
        assert!(checked(&format!("start: {half} %json {{\"multipleOf\": 311}}")).is_err());
    }

    #[test]
    fn terminals_count_with_those_that_they_name() {
        let grammar =
            |a: usize, b: usize| format!("start: T\nT: {}\nA: {}\nB: /[a-z]?/", "A ".repeat(a), "B ".repeat(b));
        assert!(checked(&grammar(20, 20)).is_ok());
        assert!(checked(&grammar(20, 21)).is_err());
        assert!(checked(&format!("start: T\nT: {}", "\"a\"? ".repeat(401))).is_err());
        // Ranges beyond ASCII are read once.
        assert!(checked(&format!("start: T\nT: {}\nA: /[à-ÿ]/i", "A ".repeat(100))).is_ok());
        assert!(checked(&format!("start: {}", "/[à-ÿ]/i ".repeat(41))).is_err());
        // In a rule they are expressions each by itself.
        assert!(checked(&format!("start: {}", "\"a\"? ".repeat(401))).is_ok());
    }
}
