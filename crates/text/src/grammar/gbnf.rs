//! GBNF, llama.cpp's grammar notation, read into Lark.
//!
//! llguidance splits a text into lexemes, each as long as it can be, and parses those. So that as little as possible
//! depends on where lexemes end, all that needs no recursion becomes one lexeme. What is left is the border between a
//! lexeme and what follows it: where a text could be split in two ways, only the longer one is tried. Such a grammar
//! lets through less than it says, never more.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::expressions::Found;
use super::gbnf_parser::{Node, parse};
use super::lark::literal;

/// Whether a grammar is written in GBNF: Lark defines with a colon.
pub fn is_gbnf(text: &str) -> bool {
    text.contains("::=")
}

/// The same grammar in Lark. `root` is where it begins.
pub fn to_lark(text: &str) -> Result<String, String> {
    let rules = parse(text)?;
    if !rules.contains_key("root") {
        return Err("there is no rule `root`".into());
    }
    for body in rules.values() {
        if let Some(name) = names(body).into_iter().find(|name| !rules.contains_key(*name)) {
            return Err(format!("there is no rule `{name}`"));
        }
    }
    let regular = regular(&rules);
    let mut runs = Runs { rules: &rules, regular: &regular, known: BTreeMap::new() };
    for (name, body) in &rules {
        let found = Found { optional: runs.of(body).longest, ..Found::default() };
        found.check().map_err(|e| format!("rule `{name}`: {e}"))?;
    }
    let numbers = rules.keys().zip(0..).map(|(name, number)| (name.as_str(), number)).collect();
    let mut writer = Writer { regular, numbers, lexemes: 0, out: String::new() };
    let start = writer.part(&Node::Rule("root".into()));
    let _ = writeln!(writer.out, "start: {start}");
    for (name, body) in &rules {
        let number = writer.numbers[name.as_str()];
        if writer.regular[name.as_str()].is_some() {
            let body = writer.terminal(body);
            let _ = writeln!(writer.out, "T{number}: {body}");
        } else {
            let body = writer.part(body);
            let _ = writeln!(writer.out, "r{number}: {body}");
        }
    }
    Ok(writer.out)
}

/// For each rule whether it does without recursion, and then whether it matches the empty text.
fn regular(rules: &BTreeMap<String, Node>) -> BTreeMap<&str, Option<bool>> {
    let mut known: BTreeMap<&str, Option<bool>> = BTreeMap::new();
    // A rule is settled once all that it names are; what is never settled is recursive or names what is.
    let mut open: BTreeMap<&str, usize> = BTreeMap::new();
    let mut named_by: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut settled = Vec::new();
    for (name, body) in rules {
        let mut named = names(body);
        named.sort_unstable();
        named.dedup();
        open.insert(name, named.len());
        if named.is_empty() {
            settled.push(name.as_str());
        }
        named.into_iter().for_each(|other| named_by.entry(other).or_default().push(name));
    }
    while let Some(name) = settled.pop() {
        known.insert(name, Some(nullable(&rules[name], &known)));
        for other in named_by.get(name).into_iter().flatten().copied() {
            let left = open.entry(other).or_default();
            *left -= 1;
            if *left == 0 {
                settled.push(other);
            }
        }
    }
    for name in rules.keys() {
        known.entry(name).or_insert(None);
    }
    known
}

fn names(node: &Node) -> Vec<&str> {
    match node {
        Node::Rule(name) => vec![name],
        Node::Sequence(list) | Node::Choice(list) => list.iter().flat_map(names).collect(),
        Node::Repeat(inner, ..) => names(inner),
        Node::Literal(_) | Node::Class(_) => vec![],
    }
}

/// Whether a node matches the empty text; of recursive rules that is not known here.
fn nullable(node: &Node, rules: &BTreeMap<&str, Option<bool>>) -> bool {
    match node {
        Node::Literal(text) => text.is_empty(),
        Node::Class(_) => false,
        Node::Rule(name) => rules.get(name.as_str()).copied().flatten() == Some(true),
        Node::Sequence(list) => list.iter().all(|node| nullable(node, rules)),
        Node::Choice(list) => list.iter().any(|node| nullable(node, rules)),
        Node::Repeat(inner, least, _) => *least == 0 || nullable(inner, rules),
    }
}

/// How many parts that may be left out stand one after the other.
struct Runs<'a> {
    rules: &'a BTreeMap<String, Node>,
    regular: &'a BTreeMap<&'a str, Option<bool>>,
    known: BTreeMap<&'a str, Run>,
}

/// Of a node: at its begin, at its end, and anywhere.
#[derive(Clone, Copy, Default)]
struct Run {
    nullable: bool,
    first: usize,
    last: usize,
    longest: usize,
}

impl Run {
    const NONE: Run = Run { nullable: true, first: 0, last: 0, longest: 0 };

    fn then(self, o: Run) -> Run {
        Run {
            nullable: self.nullable && o.nullable,
            first: self.first.saturating_add(if self.nullable { o.first } else { 0 }),
            last: o.last.saturating_add(if o.nullable { self.last } else { 0 }),
            longest: self.longest.max(o.longest).max(self.last.saturating_add(o.first)),
        }
    }

    fn or(self, o: Run) -> Run {
        let (first, last) = (self.first.saturating_add(o.first), self.last.saturating_add(o.last));
        let longest = self.longest.max(o.longest).max(first).max(last);
        Run { nullable: self.nullable || o.nullable, first, last, longest }
    }
}

impl<'a> Runs<'a> {
    fn of(&mut self, node: &'a Node) -> Run {
        match node {
            Node::Literal(text) => Run { nullable: text.is_empty(), ..Run::default() },
            Node::Class(_) => Run::default(),
            // A recursive rule is no part of an expression.
            Node::Rule(name) if self.regular[name.as_str()].is_none() => Run::default(),
            Node::Rule(name) => match self.known.get(name.as_str()) {
                Some(run) => *run,
                None => {
                    let run = self.of(&self.rules[name]);
                    self.known.insert(name, run);
                    run
                }
            },
            Node::Sequence(list) => list.iter().fold(Run::NONE, |run, node| run.then(self.of(node))),
            Node::Choice(list) => list.iter().fold(Run::default(), |run, node| run.or(self.of(node))),
            Node::Repeat(inner, least, _) => {
                let once = self.of(inner);
                let longest = once.then(once).longest;
                let more = |parts: usize| parts.saturating_add(1);
                match *least == 0 || once.nullable {
                    true => {
                        Run { nullable: true, first: more(once.first), last: more(once.last), longest: more(longest) }
                    }
                    false => Run { longest, ..once },
                }
            }
        }
    }
}

struct Writer<'a> {
    regular: BTreeMap<&'a str, Option<bool>>,
    numbers: BTreeMap<&'a str, usize>,
    lexemes: usize,
    out: String,
}

impl Writer<'_> {
    fn is_regular(&self, node: &Node) -> bool {
        names(node).iter().all(|name| self.regular[name].is_some())
    }

    /// A node as a part of a rule.
    fn part(&mut self, node: &Node) -> String {
        if self.is_regular(node) {
            return self.lexeme(node);
        }
        match node {
            Node::Rule(name) => format!("r{}", self.numbers[name.as_str()]),
            Node::Choice(list) => {
                let options: Vec<String> = list.iter().map(|node| self.part(node)).collect();
                format!("({})", options.join(" | "))
            }
            Node::Sequence(list) => {
                let mut parts = Vec::new();
                let runs: Vec<&[Node]> = list.chunk_by(|a, b| self.is_regular(a) && self.is_regular(b)).collect();
                for run in runs {
                    parts.push(match run {
                        [one] => self.part(one),
                        many => self.part(&Node::Sequence(many.to_vec())),
                    });
                }
                parts.join(" ")
            }
            Node::Repeat(inner, least, most) => format!("({}){}", self.part(inner), times(*least, *most)),
            Node::Literal(_) | Node::Class(_) => unreachable!("they name no rule"),
        }
    }

    /// A regular node as a lexeme of its own. Lexemes are never empty, so one that may be is optional.
    fn lexeme(&mut self, node: &Node) -> String {
        let body = self.terminal(node);
        let name = format!("L{}", self.lexemes);
        self.lexemes += 1;
        if nullable(node, &self.regular) {
            let _ = writeln!(self.out, "{name}: ({body}) & /(?s:.+)/");
            format!("{name}?")
        } else {
            let _ = writeln!(self.out, "{name}: {body}");
            name
        }
    }

    /// A regular node as the body of a terminal.
    fn terminal(&self, node: &Node) -> String {
        match node {
            Node::Literal(text) if text.is_empty() => "/()/".into(),
            Node::Literal(text) => literal(text),
            Node::Class(class) => format!("/{class}/"),
            Node::Rule(name) => format!("T{}", self.numbers[name.as_str()]),
            Node::Sequence(list) => list.iter().map(|node| self.terminal(node)).collect::<Vec<_>>().join(" "),
            Node::Choice(list) => {
                let options: Vec<String> = list.iter().map(|node| self.terminal(node)).collect();
                format!("({})", options.join(" | "))
            }
            Node::Repeat(inner, least, most) => format!("({}){}", self.terminal(inner), times(*least, *most)),
        }
    }
}

fn times(least: u32, most: Option<u32>) -> String {
    match (least, most) {
        (0, None) => "*".into(),
        (1, None) => "+".into(),
        (0, Some(1)) => "?".into(),
        (least, None) => format!("{{{least},}}"),
        (least, Some(most)) => format!("{{{least},{most}}}"),
    }
}
