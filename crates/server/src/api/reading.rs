//! Replies that are more than plain text: what of them was said so far, and its place in answers.

use std::hash::{DefaultHasher, Hash, Hasher};

use kvist_text::{ReplyEvent, ReplyParser, ToolFormat};
use serde::Serialize;

use crate::api::shapes::Delta;

/// How the replies to a prompt are read.
#[derive(Clone, Debug)]
pub struct Reading {
    /// At the start of a reply.
    pub parser: ReplyParser,
    /// How calls are written, if they are looked for.
    pub format: Option<ToolFormat>,
    /// A reply may make several calls; otherwise it ends with the first.
    pub parallel: bool,
    pub show_reasoning: bool,
}

/// A reply while it is read.
#[derive(Clone, Debug)]
pub struct Reader {
    reading: Reading,
    said: Said,
    call: Option<Call>,
    /// Made its only call.
    ended: bool,
}

/// What a reply says. Of a call that broke nothing is left but its text, in the content.
#[derive(Clone, Debug, Default)]
pub struct Said {
    pub content: String,
    pub reasoning: String,
    pub calls: Vec<Call>,
}

#[derive(Clone, Debug)]
pub struct Call {
    /// Its place among all that were begun: what a stream calls it by.
    pub index: usize,
    pub name: String,
    pub arguments: String,
}

impl Reader {
    pub fn new(reading: Reading) -> Self {
        Reader { reading, said: Said::default(), call: None, ended: false }
    }

    pub fn said(&self) -> &Said {
        &self.said
    }

    pub fn show_reasoning(&self) -> bool {
        self.reading.show_reasoning
    }

    pub fn format(&self) -> Option<ToolFormat> {
        self.reading.format
    }

    /// Takes text; what it says, and whether the reply is to end here.
    pub fn push(&mut self, text: &str) -> (Vec<ReplyEvent>, bool) {
        let events = self.reading.parser.push(text);
        (self.note(events), self.ended)
    }

    pub fn finish(&mut self) -> Vec<ReplyEvent> {
        let events = self.reading.parser.finish();
        self.note(events)
    }

    fn note(&mut self, mut events: Vec<ReplyEvent>) -> Vec<ReplyEvent> {
        if self.ended {
            return Vec::new();
        }
        let ends = |event: &ReplyEvent| matches!(event, ReplyEvent::CallEnd { .. });
        let last = events.iter().position(ends).filter(|_| !self.reading.parallel);
        events.truncate(last.map_or(events.len(), |last| last + 1));
        self.ended = last.is_some();
        for event in &events {
            match event {
                ReplyEvent::Content(text) => self.said.content.push_str(text),
                ReplyEvent::Reasoning(text) => self.said.reasoning.push_str(text),
                ReplyEvent::CallStart { index, name } => {
                    self.call = Some(Call { index: *index, name: name.clone(), arguments: String::new() });
                }
                ReplyEvent::CallArguments { fragment, .. } => {
                    self.call.iter_mut().for_each(|call| call.arguments.push_str(fragment));
                }
                ReplyEvent::CallEnd { .. } => self.said.calls.extend(self.call.take()),
                ReplyEvent::CallBroken { text, .. } => {
                    self.call = None;
                    self.said.content.push_str(text);
                }
            }
        }
        events
    }
}

/// Names the calls of an answer.
#[derive(Clone, Copy, Debug)]
pub struct CallIds<'a> {
    /// The answer's id.
    pub answer: &'a str,
    /// Place of the choice.
    pub choice: usize,
    pub format: Option<ToolFormat>,
}

impl CallIds<'_> {
    /// Different for every call of every answer. Mistral's templates take nine letters or digits and nothing else.
    pub fn id(&self, index: usize) -> String {
        let CallIds { answer, choice, format } = *self;
        if format == Some(ToolFormat::Mistral) {
            let mut hasher = DefaultHasher::new();
            (answer, choice, index).hash(&mut hasher);
            let digits = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
            let mut rest = hasher.finish();
            let mut digit = || {
                let digit = digits[(rest % 62) as usize];
                rest /= 62;
                char::from(digit)
            };
            return (0..9).map(|_| digit()).collect();
        }
        let unique = answer.rsplit('-').next().unwrap_or(answer);
        format!("call_{unique}_{choice}_{index}")
    }
}

/// A call in an answer or, in part, in a chunk of a stream.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ToolCall<'a> {
    /// In streams only: which call the part belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    pub function: Function<'a>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Function<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    pub arguments: &'a str,
}

/// The calls of a whole answer.
pub fn tool_calls<'a>(said: &'a Said, ids: CallIds<'a>) -> Vec<ToolCall<'a>> {
    let whole = |call: &'a Call| ToolCall {
        index: None,
        id: Some(ids.id(call.index)),
        kind: Some("function"),
        function: Function { name: Some(&call.name), arguments: &call.arguments },
    };
    said.calls.iter().map(whole).collect()
}

/// An event as a chunk tells it; `None` for what is not told.
pub fn delta<'a>(event: &'a ReplyEvent, ids: CallIds<'a>, show_reasoning: bool) -> Option<Delta<'a>> {
    let call = |index, id: Option<String>, name: Option<&'a str>, arguments: &'a str| {
        let kind = id.is_some().then_some("function");
        let function = Function { name, arguments };
        Some(Delta { tool_calls: Some([ToolCall { index: Some(index), id, kind, function }]), ..Delta::default() })
    };
    match event {
        ReplyEvent::Content(text) | ReplyEvent::CallBroken { text, .. } => {
            Some(Delta { content: Some(text), ..Delta::default() })
        }
        ReplyEvent::Reasoning(text) => {
            show_reasoning.then(|| Delta { reasoning_content: Some(text), ..Delta::default() })
        }
        ReplyEvent::CallStart { index, name } => call(*index, Some(ids.id(*index)), Some(name), ""),
        ReplyEvent::CallArguments { index, fragment } => call(*index, None, None, fragment),
        ReplyEvent::CallEnd { .. } => None,
    }
}
