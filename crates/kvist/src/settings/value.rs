use std::fmt;

use crate::size;

/// What a setting's value may be.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Text,
    Number {
        least: u64,
        most: u64,
    },
    Size,
    /// A size; 0 is off.
    SizeOrOff,
    Flag,
    Choice(&'static [&'static str]),
    /// Several texts, each checked; separated by commas in the environment.
    List(fn(&str) -> Result<(), String>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Number(u64),
    Size(u64),
    Flag(bool),
    List(Vec<String>),
}

/// Accepts every text of a list.
pub fn anything(_: &str) -> Result<(), String> {
    Ok(())
}

/// Accepts an origin as browsers send it (RFC 6454, section 6.2), and `*`.
pub fn origin(text: &str) -> Result<(), String> {
    let host = text.split_once("://").filter(|(scheme, _)| !scheme.is_empty()).map(|(_, host)| host);
    let forbidden = |c: char| c.is_whitespace() || c.is_ascii_uppercase() || "/?#@*".contains(c);
    if text == "*" || host.is_some_and(|host| !host.is_empty() && !host.contains(forbidden)) {
        return Ok(());
    }
    Err(format!("{text:?} is no origin such as https://example.org or http://localhost:3000, nor *"))
}

impl Kind {
    /// Parses a value as written in a flag or in the environment.
    pub fn parse(&self, text: &str) -> Result<Value, String> {
        match *self {
            Kind::Text if text.is_empty() => Err("it is empty".into()),
            Kind::Text => Ok(Value::Text(text.to_owned())),
            Kind::Number { least, most } => match text.trim().parse() {
                Ok(n) if (least..=most).contains(&n) => Ok(Value::Number(n)),
                _ if most == i64::MAX as u64 => Err(format!("{text:?} is not a whole number of {least} or more")),
                _ => Err(format!("{text:?} is not a whole number from {least} to {most}")),
            },
            Kind::SizeOrOff if text.trim().eq_ignore_ascii_case("off") => Ok(Value::Size(0)),
            Kind::Size | Kind::SizeOrOff => size::parse(text).map(Value::Size),
            Kind::Flag => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Ok(Value::Flag(true)),
                "false" | "0" | "no" | "off" => Ok(Value::Flag(false)),
                _ => Err(format!("{text:?} is neither true nor false")),
            },
            Kind::Choice(choices) if choices.contains(&text) => Ok(Value::Text(text.to_owned())),
            Kind::Choice([only]) => Err(format!("{text:?} is not supported by this version; {only} is")),
            Kind::Choice(choices) => Err(format!("{text:?} is none of {}", choices.join(", "))),
            Kind::List(_) if matches!(text, "" | "off") => Ok(Value::List(vec![])),
            Kind::List(_) => self.list(text.split(',').map(|item| item.trim().to_owned()).collect()),
        }
    }

    /// Several values of a list.
    pub fn list(&self, items: Vec<String>) -> Result<Value, String> {
        if let Kind::List(check) = self {
            items.iter().try_for_each(|item| check(item))?;
        }
        Ok(Value::List(items))
    }

    /// Takes a value of a configuration file.
    pub fn take(&self, value: &toml::Value) -> Result<Value, String> {
        match (self, value) {
            (Kind::Number { .. } | Kind::Size | Kind::SizeOrOff, toml::Value::Integer(n)) => self.parse(&n.to_string()),
            (Kind::Flag, toml::Value::Boolean(on)) => Ok(Value::Flag(*on)),
            (Kind::Flag | Kind::Number { .. }, toml::Value::String(_)) => {
                Err(format!("{value} stands in quotes, but is no text"))
            }
            (_, toml::Value::String(text)) => self.parse(text),
            (Kind::List(_), toml::Value::Array(items)) => {
                let texts = items.iter().map(|item| item.as_str().map(str::to_owned));
                self.list(texts.collect::<Option<_>>().ok_or("a list of texts is needed")?)
            }
            _ => Err(format!("{value} is not of the right type")),
        }
    }
}

/// As TOML.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Text(text) => toml::Value::from(text.as_str()).fmt(f),
            Value::Number(n) => n.fmt(f),
            Value::Size(bytes) => toml::Value::from(size::exact(*bytes)).fmt(f),
            Value::Flag(on) => on.fmt(f),
            Value::List(items) => toml::Value::from(items.clone()).fmt(f),
        }
    }
}
