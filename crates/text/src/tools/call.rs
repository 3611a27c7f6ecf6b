//! One call as JSON: its name as soon as it is known, its arguments as they come.

use crate::messages::{arguments_budget, read_arguments};

use super::scanner::{Broken, Scanner, Step};

/// Names of the arguments' field.
const ARGUMENTS: [&str; 2] = ["arguments", "parameters"];
/// Fields that some models write and nobody reads.
const IGNORED: [&str; 2] = ["type", "id"];
/// Bytes of a key or a name, at most.
const MAX_NAME: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Name,
    Arguments,
    Ignored,
}

/// News of a call after a character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    Name(String),
    Arguments(String),
}

/// Reads `{"name": .., "arguments": ..}`, in this order or another, or the arguments alone.
///
/// The arguments are an object, told as it is written, or a string that holds one, told as what it holds; without any
/// they are `{}`. A call is told once its name and the start of its arguments are there.
#[derive(Clone, Debug)]
pub(super) struct Call {
    json: Scanner,
    /// Depth at which the arguments stand: 1 within an object, 0 alone.
    base: usize,
    /// The key or string that is being read, with its quotes.
    text: String,
    field: Option<Field>,
    seen: Vec<Field>,
    name: Option<String>,
    arguments: String,
    /// Bytes of `arguments` told; `None` before the name is.
    told: Option<usize>,
}

impl Call {
    pub fn object() -> Self {
        Call {
            json: Scanner::new(),
            base: 1,
            text: String::new(),
            field: None,
            seen: Vec::new(),
            name: None,
            arguments: String::new(),
            told: None,
        }
    }

    /// The arguments of a call whose name stands elsewhere.
    pub fn arguments_of(name: &str) -> Self {
        Call { base: 0, field: Some(Field::Arguments), name: Some(name.to_owned()), ..Self::object() }
    }

    /// Whether the call was told, in part at least.
    pub fn is_told(&self) -> bool {
        self.told.is_some()
    }

    /// Takes a character; true if it is the call's last. `known` says which names may be called.
    pub fn push(&mut self, c: char, known: &dyn Fn(&str) -> bool, news: &mut Vec<News>) -> Result<bool, Broken> {
        let depth = self.json.depth();
        let step = self.json.push(c)?;
        let mut done = false;
        if depth > self.base {
            self.arguments.push(c);
            if self.json.depth() == self.base {
                self.field = None;
                done = self.base == 0;
            }
        } else if depth < self.base {
            // Only an object will do.
            if self.json.depth() == 0 && (self.json.in_string() || self.json.in_scalar())
                || self.json.depth() == 1 && c != '{'
            {
                return Err(Broken);
            }
        } else if let Some(field) = self.field {
            self.value(field, c, step, known)?;
        } else {
            if self.json.in_key() || step == Step::Key {
                self.text.push(c);
                if self.text.len() > MAX_NAME {
                    return Err(Broken);
                }
            }
            if step == Step::Key {
                self.key()?;
            }
            done = step == Step::Container;
        }
        self.tell(done, news)?;
        Ok(done)
    }

    fn key(&mut self) -> Result<(), Broken> {
        let key: String = self.take_text()?;
        let field = match key.as_str() {
            "name" => Field::Name,
            key if ARGUMENTS.contains(&key) => Field::Arguments,
            key if IGNORED.contains(&key) => Field::Ignored,
            _ => return Err(Broken),
        };
        if field != Field::Ignored && self.seen.contains(&field) {
            return Err(Broken);
        }
        self.seen.push(field);
        self.field = Some(field);
        Ok(())
    }

    /// What stands between a key and the end of its value, as long as that is no container.
    fn value(&mut self, field: Field, c: char, step: Step, known: &dyn Fn(&str) -> bool) -> Result<(), Broken> {
        if self.json.in_scalar() {
            return Err(Broken);
        }
        if self.json.depth() > self.base {
            if field != Field::Arguments || c != '{' {
                return Err(Broken);
            }
            self.arguments.push(c);
        }
        if self.json.in_string() || step == Step::Text {
            self.text.push(c);
            if field != Field::Arguments && self.text.len() > MAX_NAME {
                return Err(Broken);
            }
        }
        if step == Step::Text {
            let text = self.take_text()?;
            match field {
                Field::Name if text.is_empty() || !known(&text) => return Err(Broken),
                Field::Name => self.name = Some(text),
                Field::Ignored => {}
                Field::Arguments => {
                    read_arguments(&text, &arguments_budget()).ok_or(Broken)?;
                    self.arguments = text;
                }
            }
            self.field = None;
        }
        Ok(())
    }

    fn take_text(&mut self) -> Result<String, Broken> {
        serde_json::from_str(&std::mem::take(&mut self.text)).map_err(|_| Broken)
    }

    fn tell(&mut self, done: bool, news: &mut Vec<News>) -> Result<(), Broken> {
        let Some(name) = &self.name else {
            return if done { Err(Broken) } else { Ok(()) };
        };
        if done && self.arguments.is_empty() {
            self.arguments.push_str("{}");
        }
        if self.arguments.is_empty() {
            return Ok(());
        }
        if self.told.is_none() {
            news.push(News::Name(name.clone()));
        }
        let told = self.told.unwrap_or(0);
        if told < self.arguments.len() {
            news.push(News::Arguments(self.arguments[told..].to_owned()));
        }
        self.told = Some(self.arguments.len());
        Ok(())
    }
}
