//! A JSON value, character by character: whether it can still become one, and where it ends.

/// Objects and lists within each other, at most; readers of the arguments have such limits too.
const MAX_DEPTH: usize = 96;

/// The text can no longer become JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// What a character completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Nothing,
    Key,
    Text,
    Container,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Value,
    /// A value or the end of the list.
    FirstValue,
    /// A key or the end of the object.
    FirstKey,
    Key,
    Colon,
    /// A comma or the end of the container.
    Next,
    String(Part),
    Number(Digit),
    /// The rest of `true`, `false` or `null`.
    Word(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Plain,
    Escape,
    /// Hex digits of `\u` to come, and the value of those before.
    Hex {
        left: u8,
        value: u16,
        low: bool,
    },
    /// The second half of a surrogate pair must follow: its `\`, its `u`.
    LowEscape,
    LowU,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Digit {
    Minus,
    Zero,
    Whole,
    Point,
    Fraction,
    Exponent,
    PowerSign,
    Power,
}

/// Reads one object, list or string as RFC 8259 has it. Duplicate keys are let through.
#[derive(Clone, Debug)]
pub(super) struct Scanner {
    /// Whether each open container is an object.
    open: Vec<bool>,
    state: State,
    key: bool,
}

impl Scanner {
    pub fn new() -> Self {
        Scanner { open: Vec::new(), state: State::Value, key: false }
    }

    /// Containers that are open.
    pub fn depth(&self) -> usize {
        self.open.len()
    }

    pub fn in_key(&self) -> bool {
        self.key && self.in_string()
    }

    pub fn in_string(&self) -> bool {
        matches!(self.state, State::String(_))
    }

    /// Whether a number, `true`, `false` or `null` is being read.
    pub fn in_scalar(&self) -> bool {
        matches!(self.state, State::Number(_) | State::Word(_))
    }

    pub fn push(&mut self, c: char) -> Result<Step, Broken> {
        match self.state {
            State::String(part) => return self.string(part, c),
            State::Word(rest) => {
                let rest = rest.strip_prefix(c).ok_or(Broken)?;
                self.state = if rest.is_empty() { State::Next } else { State::Word(rest) };
                return Ok(Step::Nothing);
            }
            State::Number(digit) => match number(digit, c) {
                Some(next) => {
                    self.state = State::Number(next);
                    return Ok(Step::Nothing);
                }
                None if matches!(digit, Digit::Zero | Digit::Whole | Digit::Fraction | Digit::Power) => {
                    self.state = State::Next;
                }
                None => return Err(Broken),
            },
            _ => {}
        }
        match (self.state, c) {
            (_, ' ' | '\n' | '\r' | '\t') => Ok(Step::Nothing),
            (State::FirstValue, ']') | (State::FirstKey, '}') => self.close(c),
            (State::Value | State::FirstValue, _) => self.value(c),
            (State::FirstKey | State::Key, '"') => {
                (self.state, self.key) = (State::String(Part::Plain), true);
                Ok(Step::Nothing)
            }
            (State::Colon, ':') => self.then(State::Value),
            (State::Next, ',') => match self.open.last() {
                Some(true) => self.then(State::Key),
                Some(false) => self.then(State::Value),
                None => Err(Broken),
            },
            (State::Next, _) => self.close(c),
            _ => Err(Broken),
        }
    }

    fn then(&mut self, state: State) -> Result<Step, Broken> {
        self.state = state;
        Ok(Step::Nothing)
    }

    fn value(&mut self, c: char) -> Result<Step, Broken> {
        let state = match c {
            '{' | '[' if self.open.len() < MAX_DEPTH => {
                self.open.push(c == '{');
                if c == '{' { State::FirstKey } else { State::FirstValue }
            }
            '"' => State::String(Part::Plain),
            '-' => State::Number(Digit::Minus),
            '0' => State::Number(Digit::Zero),
            '1'..='9' => State::Number(Digit::Whole),
            't' => State::Word("rue"),
            'f' => State::Word("alse"),
            'n' => State::Word("ull"),
            _ => return Err(Broken),
        };
        self.key = false;
        self.then(state)
    }

    fn close(&mut self, c: char) -> Result<Step, Broken> {
        let object = self.open.pop().ok_or(Broken)?;
        self.state = State::Next;
        if (c == '}') == object && matches!(c, '}' | ']') { Ok(Step::Container) } else { Err(Broken) }
    }

    fn string(&mut self, part: Part, c: char) -> Result<Step, Broken> {
        let next = match (part, c) {
            (Part::Plain, '"') => {
                let key = std::mem::take(&mut self.key);
                self.state = if key { State::Colon } else { State::Next };
                return Ok(if key { Step::Key } else { Step::Text });
            }
            (Part::Plain, '\\') => Part::Escape,
            (Part::Plain, c) if c >= ' ' => Part::Plain,
            (Part::Escape, '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't') => Part::Plain,
            (Part::Escape, 'u') => Part::Hex { left: 4, value: 0, low: false },
            (Part::LowEscape, '\\') => Part::LowU,
            (Part::LowU, 'u') => Part::Hex { left: 4, value: 0, low: true },
            (Part::Hex { left, value, low }, c) => {
                let value = value << 4 | c.to_digit(16).ok_or(Broken)? as u16;
                match (left, value, low) {
                    (2.., ..) => Part::Hex { left: left - 1, value, low },
                    (_, 0xD800..=0xDBFF, false) => Part::LowEscape,
                    (_, 0xDC00..=0xDFFF, true) => Part::Plain,
                    // One half of a pair alone is no character.
                    (_, 0xD800..=0xDFFF, _) | (_, _, true) => return Err(Broken),
                    _ => Part::Plain,
                }
            }
            _ => return Err(Broken),
        };
        self.state = State::String(next);
        Ok(Step::Nothing)
    }
}

/// The state after one more character of a number, if it belongs to it.
fn number(digit: Digit, c: char) -> Option<Digit> {
    use Digit::{Exponent, Fraction, Minus, Point, Power, PowerSign, Whole, Zero};
    match (digit, c) {
        (Minus, '0') => Some(Zero),
        (Minus, '1'..='9') | (Whole, '0'..='9') => Some(Whole),
        (Zero | Whole, '.') => Some(Point),
        (Point | Fraction, '0'..='9') => Some(Fraction),
        (Zero | Whole | Fraction, 'e' | 'E') => Some(Exponent),
        (Exponent, '+' | '-') => Some(PowerSign),
        (Exponent | PowerSign | Power, '0'..='9') => Some(Power),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// Whether the whole text is one container, no more and no less.
    fn accepts(text: &str) -> bool {
        let mut scanner = Scanner::new();
        let mut ended = false;
        for c in text.chars() {
            match ended {
                true if !c.is_ascii_whitespace() => return false,
                true => {}
                false => match scanner.push(c) {
                    Ok(step) => ended = step == Step::Container && scanner.depth() == 0,
                    Err(Broken) => return false,
                },
            }
        }
        ended
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

        /// The oracle is serde_json. (It refuses numbers beyond a float's range, which this alphabet cannot write.)
        #[test]
        fn the_same_texts_as_serde_json(pieces in prop::collection::vec(prop::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"a\"", "\"", "\\", "\\u00e9", "\\ud83d\\ude00", "\\ud83d", "\\ude00", "\"\\ude00\"", "\\n", "0", "1",
            "-", ".", "5", "e", "+", "true", "null", "false", "t", " ", "\n", "é", "\u{1}",
            "\"k\":", "1,", "{\"a\":", "\"x\"}",
        ]), 0..10)) {
            let text = format!("{{\"k\":{}}}", pieces.concat());
            let json = serde_json::from_str::<Value>(&text).is_ok();
            prop_assert_eq!(accepts(&text), json, "{}", text);
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(accepts(&nested(MAX_DEPTH)));
        assert!(!accepts(&nested(MAX_DEPTH + 1)));
        assert!(!accepts("{]") && !accepts("[}") && !accepts("{}}"));
    }
}
