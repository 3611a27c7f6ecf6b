//! Replies that call tools, as a grammar.

use kvist_base::TokenId;
use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use serde_json::Value;

use super::costs::Costs;
use super::lark::literal;
use super::{GrammarLimits, schema, walk};
use crate::Tokenizer;

/// A reply that consists of calls, or may have some.
#[derive(Clone, Debug, PartialEq)]
pub struct Calls {
    /// The marks of reasoning that may stand before everything else.
    pub reasoning: Option<Reasoning>,
    /// What else the reply may be.
    pub free: Free,
    /// The forms of a call.
    pub forms: Vec<CallForm>,
    /// Stands before the first call, between two, after the last.
    pub open: String,
    pub between: String,
    pub close: String,
    /// More than one call may follow.
    pub many: bool,
    /// Words that are special tokens wherever they stand in the texts here.
    pub marks: Vec<(String, TokenId)>,
}

/// A call: `begin`, JSON, `end`.
#[derive(Clone, Debug, PartialEq)]
pub struct CallForm {
    pub begin: String,
    pub schema: Value,
    /// A keyword that cannot be enforced is an error; otherwise it is ignored.
    pub strict: bool,
    pub end: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Reasoning {
    /// Written by the reply itself; `None` where the prompt has it.
    pub open: Option<String>,
    pub close: String,
}

/// Whether a reply may be other than calls.
#[derive(Clone, Debug, PartialEq)]
pub enum Free {
    /// It must make a call.
    No,
    /// Text up to this mark, which begins every call or list of calls; behind it only a call may follow.
    Until(String),
    /// Text that does not begin like a JSON object.
    Instead,
}

/// Space as `json.dumps` has it and nowhere else: templates write the calls of earlier turns so, and only a call that was
/// generated so is found again.
fn spaced(mut schema: Value) -> Value {
    let options = &mut schema["x-guidance"];
    options["whitespace_flexible"] = false.into();
    options["item_separator"] = ", ".into();
    options["key_separator"] = ": ".into();
    if let Some(options) = options.as_object_mut() {
        options.remove("whitespace_pattern");
    }
    schema
}

impl Calls {
    /// Marks of these that the tokenizer has as special tokens.
    pub fn marks(tokenizer: &Tokenizer, words: &[&str]) -> Vec<(String, TokenId)> {
        let special = |word: &&str| tokenizer.id_of(word).filter(|&id| tokenizer.is_special(id));
        words.iter().filter_map(|word| Some(((*word).to_owned(), special(word)?))).collect()
    }

    /// The grammar, and whether some schema may lose keywords.
    pub(super) fn grammar(&self, limits: &GrammarLimits) -> Result<(TopLevelGrammar, bool), String> {
        if self.forms.is_empty() {
            return Err("there is no function to call".into());
        }
        let (mut room, mut costs) = (limits.bytes, Costs::default());
        let schemas = self.forms.iter().map(|form| {
            let schema = spaced(schema::prepared(&form.schema, form.strict, limits, &mut costs)?);
            room = room.checked_sub(walk::bytes(&schema)).ok_or_else(|| {
                format!("the schemas have more than {} bytes together, which are allowed", limits.bytes)
            })?;
            Ok::<_, String>(schema)
        });
        let schemas = schemas.collect::<Result<Vec<_>, _>>()?;
        let named = |(i, schema)| GrammarWithLexer {
            name: Some(format!("schema_{i}")),
            ..GrammarWithLexer::from_json_schema(schema)
        };
        let first = GrammarWithLexer::from_lark(self.lark());
        let grammars = std::iter::once(first).chain(schemas.into_iter().enumerate().map(named)).collect();
        Ok((TopLevelGrammar { grammars, max_tokens: None }, self.forms.iter().any(|form| !form.strict)))
    }

    fn lark(&self) -> String {
        let mark = match &self.free {
            Free::Until(mark) => mark.as_str(),
            Free::No | Free::Instead => "",
        };
        let open = self.open.strip_prefix(mark).unwrap_or(&self.open);
        let mut text = String::from("TEXT: /(?s:.*)/\n");
        let calls: Vec<String> = (0..self.forms.len()).map(|i| format!("call_{i}")).collect();
        text += &format!("call: {}\n", calls.join(" | "));
        for (i, form) in self.forms.iter().enumerate() {
            let begin = if self.open.is_empty() { form.begin.strip_prefix(mark) } else { None };
            let (begin, end) = (self.words(begin.unwrap_or(&form.begin)), self.words(&form.end));
            text += &format!("call_{i}: {begin} @schema_{i} {end}\n");
        }
        // Where every call has the mark, the text before it stands between two.
        let one_each = self.open.is_empty() && !mark.is_empty();
        let more =
            if self.many && !one_each { format!("({} call)*", self.words(&self.between)) } else { String::new() };
        text += &format!("calls: {} call {more} {}\n", self.words(open), self.words(&self.close));
        let body = match &self.free {
            Free::No => "calls".to_owned(),
            Free::Instead => {
                text += "PLAIN: /[ \\t\\r\\n]*[^{ \\t\\r\\n](?s:.*)/\n";
                "(calls | PLAIN)?".to_owned()
            }
            Free::Until(mark) => {
                text += &self.up_to("lead", mark);
                match self.token(mark) {
                    Some(_) => text += "TAIL: /(?s:.+)/\n",
                    None => text += &format!("TAIL: TEXT & ~(TEXT {} TEXT) & /(?s:.+)/\n", literal(mark)),
                }
                let repeat = if self.many { "*" } else { "?" };
                format!("(lead calls){repeat} TAIL?")
            }
        };
        let mut reasoning = "";
        if let Some(Reasoning { open, close }) = &self.reasoning {
            text += &self.up_to("thought", close);
            text += "FEEDS: /\\n+/\n";
            text +=
                &format!("reasoning: {} thought FEEDS?\n", open.as_deref().map_or(String::new(), |o| self.words(o)));
            reasoning = if open.is_some() { "reasoning?" } else { "reasoning" };
        }
        text + &format!("start: {reasoning} {body}\n")
    }

    /// A rule for text that ends with the first `mark`.
    fn up_to(&self, rule: &str, mark: &str) -> String {
        match self.token(mark) {
            Some(id) => format!("{rule}: TEXT <[{id}]>\n"),
            None => format!("{rule}[suffix={}]: TEXT\n", literal(mark)),
        }
    }

    fn token(&self, mark: &str) -> Option<TokenId> {
        self.marks.iter().find(|(word, _)| word == mark).map(|&(_, id)| id)
    }

    /// A text as a sequence of literals and special tokens.
    fn words(&self, text: &str) -> String {
        let mut out = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let next = self.marks.iter().filter_map(|(word, id)| Some((rest.find(word.as_str())?, word.len(), id)));
            let (at, length, id) = match next.min() {
                Some((at, length, id)) => (at, length, Some(id)),
                None => (rest.len(), 0, None),
            };
            if at > 0 {
                out.push(literal(&rest[..at]));
            }
            out.extend(id.map(|id| format!("<[{id}]>")));
            rest = &rest[at + length..];
        }
        out.join(" ")
    }
}
