//! What regular expressions take that no limit of the library holds back.

/// Classes of Unicode characters in one expression: each takes up to 44 KB while it is read.
const CLASSES: usize = 1000;
/// What may be left out, in one expression. Where so many stand one after the other, what may come next is the sum of
/// all of them at each, and 5,000 times `\w*` took 4 GB.
const OPTIONAL: usize = 400;

/// Refuses an expression that takes too much. `ascii`: whether `\w` is ASCII's.
pub fn check(pattern: &str, ascii: bool) -> Result<(), String> {
    Found::of(pattern).check(ascii)
}

/// Microseconds, about, for reading a pattern and looking whether it matches anything.
pub fn work(pattern: &str) -> f64 {
    2.0 * pattern.len() as f64 + 250.0 * Found::of(pattern).classes as f64
}

/// In how many ways a text may begin to match, about. The library tries each of one expression with each of the other where
/// both must match, before it looks at its limits.
pub fn ways(pattern: &str) -> f64 {
    let found = Found::of(pattern);
    let anywhere = if pattern.starts_with('^') { 0 } else { 1 };
    (1 + anywhere + found.optional + found.choices) as f64
}

/// What is counted of an expression.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// `\p`, `\P`.
    pub classes: usize,
    /// `\w`, `\W`.
    pub words: usize,
    /// `?`, `*`, `{0`.
    pub optional: usize,
    /// `|`.
    pub choices: usize,
}

impl Found {
    pub fn of(pattern: &str) -> Self {
        let mut found = Found::default();
        let mut last = ' ';
        let mut chars = pattern.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '\\' => match chars.next() {
                    Some('p' | 'P') => found.classes += 1,
                    Some('w' | 'W') => found.words += 1,
                    _ => {}
                },
                // `(?` begins a group.
                '?' if last != '(' => found.optional += 1,
                '*' => found.optional += 1,
                '|' => found.choices += 1,
                '{' if matches!(chars.peek(), Some('0' | ',')) => found.optional += 1,
                _ => {}
            }
            last = c;
        }
        found
    }

    /// Both, one after the other.
    pub fn and(self, o: Found) -> Self {
        Found {
            classes: self.classes.saturating_add(o.classes),
            words: self.words.saturating_add(o.words),
            optional: self.optional.saturating_add(o.optional),
            choices: self.choices.saturating_add(o.choices),
        }
    }

    pub fn check(self, ascii: bool) -> Result<(), String> {
        let classes = self.classes.saturating_add(if ascii { 0 } else { self.words });
        if classes > CLASSES {
            return Err(format!("an expression has more than {CLASSES} classes of Unicode characters"));
        }
        if self.optional > OPTIONAL {
            return Err(format!("an expression has more than {OPTIONAL} parts that may be left out"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_counted() {
        for (pattern, classes, words, optional, choices) in [
            (r"(?i)\p{L}+\?\*", 1, 0, 0, 0),
            (r"a?b*?c{0,3}d{,2}e{1,2}", 0, 0, 5, 0),
            (r"\\w\w\W", 0, 2, 0, 0),
            (r"(?:a?|b|c\|)", 0, 0, 1, 2),
        ] {
            assert_eq!(Found::of(pattern), Found { classes, words, optional, choices }, "{pattern}");
        }
    }
}
