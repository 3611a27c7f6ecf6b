//! What was looked at, with a verdict on each, for people and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// No verdict: a fact.
    Info,
    Ok,
    Warn,
    Fail,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Status::Info => "info",
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "fail",
        }
    }

    /// The word at the beginning of a line, coloured by SGR codes.
    fn tag(self, colours: bool) -> String {
        let (word, colour) = match self {
            Status::Info => return " ".repeat(4),
            Status::Ok => ("ok  ", 32),
            Status::Warn => ("warn", 33),
            Status::Fail => ("fail", 31),
        };
        if colours { format!("\x1b[{colour}m{word}\x1b[0m") } else { word.into() }
    }
}

#[derive(Clone, Debug)]
pub struct Check {
    pub status: Status,
    pub name: String,
    pub text: String,
    /// What to do about it; "" where there is nothing to do.
    pub hint: String,
}

/// Checks of one subject.
#[derive(Debug)]
pub struct Section {
    pub title: &'static str,
    pub checks: Vec<Check>,
}

impl Section {
    pub fn new(title: &'static str) -> Section {
        Section { title, checks: Vec::new() }
    }

    pub fn add(&mut self, status: Status, name: &str, text: impl Into<String>) {
        self.advise(status, name, text, "");
    }

    pub fn advise(&mut self, status: Status, name: &str, text: impl Into<String>, hint: impl Into<String>) {
        self.checks.push(Check { status, name: name.into(), text: text.into(), hint: hint.into() });
    }
}

fn count(sections: &[Section], status: Status) -> usize {
    sections.iter().flat_map(|section| &section.checks).filter(|check| check.status == status).count()
}

/// The worst of all.
pub fn verdict(sections: &[Section]) -> Status {
    let all = sections.iter().flat_map(|section| &section.checks);
    all.map(|check| check.status).max().unwrap_or(Status::Ok).max(Status::Ok)
}

/// For people; with colours on a terminal that wants them.
pub fn render(sections: &[Section], colours: bool) -> String {
    let names = sections.iter().flat_map(|section| &section.checks).map(|check| check.name.chars().count());
    // Names of models may be long; they push their own line only.
    let width = names.filter(|n| *n <= 16).max().unwrap_or(0);
    let mut out = String::new();
    for section in sections {
        let _ = writeln!(out, "{}", section.title);
        for Check { status, name, text, hint } in &section.checks {
            let _ = writeln!(out, "  {}  {name:<width$}  {}", status.tag(colours), text.replace('\n', "\n        "));
            if !hint.is_empty() {
                let _ = writeln!(out, "        hint: {}", hint.replace('\n', "\n        "));
            }
        }
        out.push('\n');
    }
    let (warnings, failures) = (count(sections, Status::Warn), count(sections, Status::Fail));
    let plural = |n: usize| if n == 1 { "" } else { "s" };
    let words = match verdict(sections) {
        Status::Fail => format!("{failures} problem{} to solve first", plural(failures)),
        Status::Warn => format!("it will run; {warnings} warning{}", plural(warnings)),
        _ => "nothing is in the way".into(),
    };
    let _ = writeln!(out, "{}  {words}", verdict(sections).tag(colours));
    out
}

pub fn json(sections: &[Section]) -> Value {
    let checks = sections.iter().flat_map(|section| {
        section.checks.iter().map(|check| {
            json!({
                "section": section.title,
                "name": check.name,
                "status": check.status.name(),
                "text": check.text,
                "hint": (!check.hint.is_empty()).then_some(&check.hint),
            })
        })
    });
    checks.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sections(worst: Status) -> [Section; 2] {
        let mut first = Section::new("machine");
        first.add(Status::Info, "cpu", "a fast one");
        first.add(Status::Ok, "memory", "enough");
        let mut second = Section::new("model");
        second.advise(worst, "a/very-long-name-of-a-model", "two\nlines", "do\nthis");
        [first, second]
    }

    #[test]
    fn people_see_lines_with_verdicts_and_hints() {
        let text = render(&sections(Status::Warn), false);
        assert_eq!(
            text,
            "machine\n        cpu     a fast one\n  ok    memory  enough\n\nmodel\n  warn  a/very-long-name-of-a-model  \
             two\n        lines\n        hint: do\n        this\n\nwarn  it will run; 1 warning\n"
        );
        assert!(render(&sections(Status::Fail), false).ends_with("fail  1 problem to solve first\n"));
        assert!(render(&sections(Status::Ok), false).ends_with("ok    nothing is in the way\n"));
        assert!(render(&sections(Status::Ok), true).contains("\x1b[32mok  \x1b[0m"));
        assert_eq!(verdict(&[]), Status::Ok);
    }
}
