use std::collections::BTreeMap;

/// What a rule consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    Literal(String),
    /// One character, as a class in Rust's regex syntax.
    Class(String),
    Rule(String),
    Sequence(Vec<Node>),
    Choice(Vec<Node>),
    /// At least so often, and at most.
    Repeat(Box<Node>, u32, Option<u32>),
}

/// Parentheses within parentheses at most.
const NESTING: usize = 64;
/// Repetitions at most.
const REPEAT: u32 = 10_000;

/// The rules of a grammar by name. A rule goes on to the next `name ::=`, whatever lines it takes.
pub fn parse(text: &str) -> Result<BTreeMap<String, Node>, String> {
    let mut parser = Parser { text, at: 0 };
    let mut rules = BTreeMap::new();
    parser.space();
    while parser.at < text.len() {
        let Some(name) = parser.name() else { return parser.wrong("the name of a rule is expected") };
        parser.space();
        if !parser.take("::=") {
            return parser.wrong("`::=` is expected");
        }
        parser.space();
        let body = parser.choice(0)?;
        if rules.insert(name.to_owned(), body).is_some() {
            return parser.wrong("the rule above has the name of another one");
        }
    }
    Ok(rules)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn wrong<T>(&self, what: &str) -> Result<T, String> {
        let before = &self.text[..self.at];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Err(format!("line {line}, column {column}: {what}"))
    }

    fn take(&mut self, word: &str) -> bool {
        let there = self.rest().starts_with(word);
        self.at += if there { word.len() } else { 0 };
        there
    }

    /// Skips white space and comments.
    fn space(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with('#') {
                return;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    fn name(&mut self) -> Option<&'a str> {
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_').unwrap_or(rest.len());
        self.at += end;
        (end > 0).then(|| &rest[..end])
    }

    fn choice(&mut self, depth: usize) -> Result<Node, String> {
        if depth > NESTING {
            return self.wrong("too many parentheses within each other");
        }
        let mut options = vec![self.sequence(depth)?];
        while self.take("|") {
            self.space();
            options.push(self.sequence(depth)?);
        }
        Ok(if options.len() == 1 { options.remove(0) } else { Node::Choice(options) })
    }

    fn sequence(&mut self, depth: usize) -> Result<Node, String> {
        let mut items = Vec::new();
        while let Some(item) = self.item(depth)? {
            items.push(self.repeats(item)?);
        }
        Ok(match items.len() {
            0 => Node::Literal(String::new()),
            1 => items.remove(0),
            _ => Node::Sequence(items),
        })
    }

    /// What may be repeated; `None` where a sequence ends.
    fn item(&mut self, depth: usize) -> Result<Option<Node>, String> {
        let node = match self.rest().chars().next() {
            Some('"') => self.literal()?,
            Some('[') => self.class()?,
            Some('.') => {
                self.at += 1;
                Node::Class("(?s:.)".into())
            }
            Some('(') => {
                self.at += 1;
                self.space();
                let inner = self.choice(depth + 1)?;
                if !self.take(")") {
                    return self.wrong("`)` is expected");
                }
                inner
            }
            Some('|' | ')') | None => return Ok(None),
            Some(_) => {
                let before = self.at;
                let Some(name) = self.name() else { return self.wrong("this is not understood") };
                let after = self.at;
                self.space();
                if self.rest().starts_with("::=") {
                    self.at = before;
                    return Ok(None);
                }
                self.at = after;
                Node::Rule(name.to_owned())
            }
        };
        Ok(Some(node))
    }

    fn repeats(&mut self, mut item: Node) -> Result<Node, String> {
        loop {
            self.space();
            let (least, most) = match self.rest().chars().next() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => {
                    let Some(end) = self.rest().find('}') else { return self.wrong("`}` is missing") };
                    let inner = &self.rest()[1..end];
                    let number = |text: &str| text.trim().parse::<u32>().ok().filter(|&n| n <= REPEAT);
                    let (least, most) = inner.split_once(',').unwrap_or((inner, inner));
                    let most = if most.trim().is_empty() { Some(None) } else { number(most).map(Some) };
                    let (Some(least), Some(most)) = (number(least), most) else {
                        return self.wrong("a number of repetitions is expected, 10,000 at most");
                    };
                    if most.is_some_and(|most| most < least) {
                        return self.wrong("the repetitions are in the wrong order");
                    }
                    self.at += end;
                    (least, most)
                }
                _ => return Ok(item),
            };
            self.at += 1;
            item = Node::Repeat(Box::new(item), least, most);
        }
    }

    fn literal(&mut self) -> Result<Node, String> {
        self.at += 1;
        let mut text = String::new();
        while !self.take("\"") {
            text.push(self.character()?);
        }
        Ok(Node::Literal(text))
    }

    fn class(&mut self) -> Result<Node, String> {
        self.at += 1;
        let mut class = String::from(if self.take("^") { "[^" } else { "[" });
        let empty = class.len();
        while !self.take("]") {
            let first = self.character()?;
            let mut last = first;
            if self.rest().starts_with('-') && !self.rest().starts_with("-]") {
                self.at += 1;
                last = self.character()?;
            }
            if first > last {
                return self.wrong("the range is in the wrong order");
            }
            class.push_str(&format!("\\u{{{:x}}}-\\u{{{:x}}}", first as u32, last as u32));
        }
        if class.len() == empty {
            return self.wrong("the class above is empty");
        }
        class.push(']');
        Ok(Node::Class(class))
    }

    /// A character of a literal or a class, escaped or not.
    fn character(&mut self) -> Result<char, String> {
        let mut chars = self.rest().chars();
        let Some(c) = chars.next() else { return self.wrong("the grammar ends within a literal or a class") };
        if c != '\\' {
            self.at += c.len_utf8();
            return Ok(c);
        }
        let Some(escaped) = chars.next() else { return self.wrong("the grammar ends within an escape") };
        let digits = match escaped {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            'n' | 'r' | 't' | '\\' | '"' | '[' | ']' | '-' | '^' | '/' => 0,
            _ => return self.wrong("there is no such escape"),
        };
        let hex = chars.as_str().get(..digits).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        let c = match escaped {
            'n' => Some('\n'),
            'r' => Some('\r'),
            't' => Some('\t'),
            _ if digits > 0 => hex.and_then(char::from_u32),
            other => Some(other),
        };
        let Some(c) = c else { return self.wrong("the escape names no character") };
        self.at += 1 + escaped.len_utf8() + digits;
        Ok(c)
    }
}
