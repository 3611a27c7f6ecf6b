//! Settings from four places: flag, then environment, then configuration file, then default.

pub mod keys;
mod value;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Result};
use crate::nearest;
use keys::{Fallback, Key};
pub use value::{Kind, Value};

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Flag,
    Environment(String),
    File(PathBuf),
    Default,
}

/// The resolved settings of one command.
#[derive(Debug)]
pub struct Settings {
    entries: Vec<(&'static Key, Option<Value>, Origin)>,
}

/// What the layers below the defaults say. Flags come as text, several for a list.
pub struct Layers<'a> {
    pub flags: &'a dyn Fn(&Key) -> Option<Vec<String>>,
    pub environment: &'a dyn Fn(&str) -> Option<String>,
    pub file: Option<&'a Path>,
}

impl Settings {
    /// Resolves the settings of `run` or of `serve`. A value of any layer that cannot be used is an error, also where
    /// another layer would win.
    pub fn resolve(run: bool, layers: &Layers) -> Result<Settings> {
        let mut file = layers.file.map_or(Ok(toml::Table::new()), read_file)?;
        let mut entries = Vec::new();
        for key in keys::of(run) {
            let mut found = None;
            if let (Some(value), Some(path)) = (file.remove(key.name), layers.file) {
                let value = key.kind.take(&value).map_err(|what| {
                    Failure::usage(format!("{}: {}: {what}", path.display(), key.name), "correct the file")
                })?;
                found = Some((value, Origin::File(path.to_path_buf())));
            }
            let variable = key.variable();
            if let Some(text) = (layers.environment)(&variable) {
                let value = key.parse(&text).map_err(|what| wrong_variable(&variable, &text, &what))?;
                found = Some((value, Origin::Environment(variable)));
            }
            if let Some(texts) = (layers.flags)(key) {
                let value = from_flags(key, texts)?;
                found = Some((value, Origin::Flag));
            }
            let (value, origin) = match (found, &key.default) {
                (Some((value, origin)), _) => (Some(value), origin),
                (None, Fallback::Is(text)) => {
                    (Some(key.parse(text).expect("the table's defaults are valid")), Origin::Default)
                }
                (None, Fallback::Found(_)) => (None, Origin::Default),
            };
            entries.push((key, value, origin));
        }
        Ok(Settings { entries })
    }

    fn entry(&self, key: &'static Key) -> &(&'static Key, Option<Value>, Origin) {
        self.entries.iter().find(|(k, ..)| std::ptr::eq(*k, key)).expect("a setting of this command")
    }

    /// Where a value comes from.
    pub fn origin(&self, key: &'static Key) -> &Origin {
        &self.entry(key).2
    }

    /// Puts in what was found out for a setting that nobody gave.
    pub fn fill(&mut self, key: &'static Key, value: Value) {
        let entry = self.entries.iter_mut().find(|(k, ..)| std::ptr::eq(*k, key)).expect("a setting of this command");
        entry.1.get_or_insert(value);
    }

    pub fn text(&self, key: &'static Key) -> Option<&str> {
        match &self.entry(key).1 {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// A number or a size in bytes.
    pub fn number(&self, key: &'static Key) -> Option<u64> {
        match self.entry(key).1 {
            Some(Value::Number(n) | Value::Size(n)) => Some(n),
            _ => None,
        }
    }

    /// A number that is always known.
    pub fn count(&self, key: &'static Key) -> usize {
        self.number(key).expect("a number with a default") as usize
    }

    pub fn flag(&self, key: &'static Key) -> bool {
        self.entry(key).1 == Some(Value::Flag(true))
    }

    pub fn list(&self, key: &'static Key) -> &[String] {
        match &self.entry(key).1 {
            Some(Value::List(items)) => items,
            _ => &[],
        }
    }

    /// A configuration file that gives these settings, each with its origin. What was found out is a comment: another
    /// model or machine has other values.
    pub fn print(&self) -> String {
        let mut out = String::from("# flag > environment > file > default\n");
        for (key, value, origin) in &self.entries {
            let line = match (value, origin, &key.default) {
                (Some(value), Origin::Default, Fallback::Found(_)) => format!("# {} = {value}", key.name),
                (Some(value), ..) => format!("{} = {value}", key.name),
                (None, ..) => format!("# {} =", key.name),
            };
            let origin = match (origin, &key.default) {
                (Origin::Flag, _) if key.name == keys::MODEL.name => "argument".into(),
                (Origin::Flag, _) => format!("flag --{}", key.name),
                (Origin::Environment(name), _) => format!("environment {name}"),
                (Origin::File(path), _) => format!("file {}", path.display().to_string().escape_debug()),
                (Origin::Default, Fallback::Found(words)) => format!("default: {words}"),
                (Origin::Default, Fallback::Is(_)) => "default".into(),
            };
            let _ = writeln!(out, "{line:<36} # {origin}");
        }
        out
    }
}

fn from_flags(key: &Key, texts: Vec<String>) -> Result<Value> {
    let value = match key.kind {
        Kind::List(_) => key.kind.list(texts.into_iter().filter(|t| t != "off").collect()),
        _ => key.parse(texts.last().map_or("", String::as_str)),
    };
    value.map_err(|what| {
        Failure::usage(format!("--{}: {what}", key.name), format!("without it: {}", key.default.words()))
    })
}

fn wrong_variable(variable: &str, text: &str, what: &str) -> Failure {
    let hint = if text.starts_with("tcp://") {
        "Kubernetes sets it for a service of this name: set enableServiceLinks: false on the pod".into()
    } else {
        format!("correct or unset {variable}")
    };
    Failure::usage(format!("{variable}: {what}"), hint)
}

fn read_file(path: &Path) -> Result<toml::Table> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::usage(format!("{}: {e}", path.display()), "name a TOML file after --config"))?;
    let table: toml::Table = toml::from_str(&text).map_err(|e| {
        let what = e.to_string();
        Failure::usage(format!("{}: {}", path.display(), what.trim_end()), "write lines such as `port = 8080`")
    })?;
    // One file may serve all commands, so a key is known if any command has it.
    if let Some(unknown) = table.keys().find(|name| !keys::ALL.iter().any(|key| key.name == *name)) {
        let meant = nearest::of(unknown, keys::ALL.iter().map(|key| key.name), 3);
        let hint =
            meant.map_or("`kvist serve --print-config` lists all".into(), |name| format!("did you mean {name:?}?"));
        return Err(Failure::usage(format!("{}: no setting named {unknown:?}", path.display()), hint));
    }
    Ok(table)
}

#[cfg(test)]
mod tests;
