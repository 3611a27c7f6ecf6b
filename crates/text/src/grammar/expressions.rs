//! What regular expressions take that no limit of the library holds back.

/// Bytes that reading one expression may take, by estimate: classes of Unicode characters are lists of hundreds of ranges.
const MEMORY: usize = 50 << 20;
/// What may be left out, in one expression. Where so many stand one after the other, what may come next is the sum of
/// all of them at each, and 5,000 times `\w*` took 4 GB.
const OPTIONAL: usize = 400;
/// Ranges beyond ASCII whose other cases are looked up, character by character.
const FOLDED: usize = 40;

/// Refuses an expression that takes too much. `ascii`: whether `\w` and `\d` are ASCII's.
pub fn check(pattern: &str, ascii: bool) -> Result<(), String> {
    Found::of(pattern, ascii).check()
}

/// Microseconds, about, for reading a pattern and looking whether it matches anything.
pub fn work(pattern: &str) -> f64 {
    let found = Found::of(pattern, true);
    2.0 * pattern.len() as f64 + 0.006 * found.memory as f64 + 5000.0 * found.folded as f64
}

/// In how many ways a text may begin to match, about. The library tries each of one expression with each of the other where
/// both must match, before it looks at its limits.
pub fn ways(pattern: &str) -> f64 {
    let found = Found::of(pattern, true);
    let anywhere = if pattern.starts_with('^') { 0 } else { 1 };
    (1 + anywhere + found.optional + found.choices) as f64
}

/// What is counted of an expression.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Bytes, by estimate.
    pub memory: usize,
    /// `?`, `*`, `{0`.
    pub optional: usize,
    /// `|`.
    pub choices: usize,
    /// Ranges beyond ASCII, if any case matches.
    pub folded: usize,
}

impl Found {
    pub fn of(pattern: &str, ascii: bool) -> Self {
        let mut found = Found::default();
        let folds = any_case(pattern);
        let (mut last, mut last_beyond, mut escape) = (' ', false, false);
        let mut chars = pattern.chars().peekable();
        while let Some(c) = chars.next() {
            let mut beyond = !c.is_ascii();
            // Digits of an escape belong to it.
            escape &= c.is_ascii_hexdigit();
            found.memory += match c {
                '\\' => match chars.next() {
                    Some('p' | 'P') => 44_000,
                    Some('w' | 'W') if !ascii => 30_000,
                    Some('w' | 'W' | 'd' | 'D' | 's' | 'S') => 2700,
                    escaped => {
                        escape = matches!(escaped, Some('x' | 'u' | 'U'));
                        beyond = escape;
                        100
                    }
                },
                '.' => 500,
                '[' if folds => 5000,
                '[' => 1300,
                _ if folds => 400,
                _ => 100,
            };
            match c {
                // `(?` begins a group.
                '?' if last != '(' => found.optional += 1,
                '*' => found.optional += 1,
                '|' => found.choices += 1,
                '{' if matches!(chars.peek(), Some('0' | ',')) => found.optional += 1,
                // An escape may have braces behind it.
                '-' if folds
                    && (last_beyond || last == '}' || chars.peek().is_some_and(|c| !c.is_ascii() || *c == '\\')) =>
                {
                    found.folded += 1;
                }
                _ => {}
            }
            last_beyond = beyond || escape;
            last = c;
        }
        found
    }

    /// Both, one after the other.
    pub fn and(self, o: Found) -> Self {
        Found {
            memory: self.memory.saturating_add(o.memory),
            optional: self.optional.saturating_add(o.optional),
            choices: self.choices.saturating_add(o.choices),
            folded: self.folded.saturating_add(o.folded),
        }
    }

    /// What reading it takes, and what it adds to an expression that it is a part of.
    pub fn split(self) -> (Found, Found) {
        let read = Found { memory: self.memory, folded: self.folded, ..Found::default() };
        (read, Found { memory: 0, folded: 0, ..self })
    }

    pub fn check(self) -> Result<(), String> {
        if self.memory > MEMORY {
            return Err("its expressions have too many classes of characters".into());
        }
        if self.optional > OPTIONAL {
            return Err(format!("an expression has more than {OPTIONAL} parts that may be left out"));
        }
        if self.folded > FOLDED {
            return Err(format!("an expression has more than {FOLDED} ranges of characters of which any case matches"));
        }
        Ok(())
    }
}

/// Whether some `(?flags)` or `(?flags:` has an `i`, or the flags behind a pattern of Lark.
fn any_case(pattern: &str) -> bool {
    let flags = |text: &str| text.split(|c: char| !c.is_ascii_lowercase()).next().is_some_and(|f| f.contains('i'));
    let behind = pattern.starts_with('/') && pattern.rsplit('/').next().is_some_and(flags);
    behind || pattern.split("(?").skip(1).any(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_counted() {
        for (pattern, optional, choices, folded) in [
            (r"(?i)\p{L}+\?\*", 0, 0, 0),
            (r"a?b*?c{0,3}d{,2}e{1,2}", 5, 0, 0),
            (r"(?:a?|b|c\|)", 1, 2, 0),
            (r"[à-ÿ\x80-\xff]", 0, 0, 0),
            (r"(?si)[à-ÿa-z\x80-\xff\u{80}-\u{10ffff}é-]|a-z", 0, 1, 4),
            (r"/(?:a)[à-ÿ]/i", 0, 0, 1),
            (r"/i[à-ÿ]/s", 0, 0, 0),
        ] {
            let found = Found::of(pattern, false);
            assert_eq!(found, Found { memory: found.memory, optional, choices, folded }, "{pattern}");
        }
    }

    #[test]
    fn classes_are_bounded() {
        for (class, least, most) in
            [(r"\p{L}", 500, 2000), (r"\W", 500, 3000), ("a", 100_000, 700_000), ("[a-z]", 10_000, 60_000)]
        {
            assert!(
                check(&class.repeat(least), false).is_ok() && check(&class.repeat(most), false).is_err(),
                "{class}"
            );
        }
        assert!(check(&r"\w".repeat(10_000), true).is_ok() && check(&r"\w".repeat(10_000), false).is_err());
    }
}
