//! What a chat template tells of the way its model writes calls and reasoning. It is not read but tried: a conversation
//! with a call in it is rendered as the model was trained to write it, and the format is the one whose parser finds the
//! call.

use std::str::FromStr;

use kvist_base::TokenId;
use serde_json::{Value, json};

use super::generic::Instructions;
use super::{ReplyEvent, ReplyParser, ToolFormat};
use crate::{ChatInput, ChatTemplate, Tokenizer};

const PROBE: &str = "kvist_probe";
const PROBE_KEY: &str = "kvist_value";
/// Bytes of a rendered probe, at most: no sound template has so many.
const MAX_PROBE: usize = 1 << 20;

/// What stands around a reply's reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasoningTags {
    pub open: &'static str,
    pub close: &'static str,
}

/// Where a reply begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Thinking {
    /// Before the reasoning, if there will be any.
    #[default]
    NotBegun,
    /// Within the reasoning: the prompt has opened it.
    Begun,
    /// After the reasoning: the prompt has closed it.
    Done,
}

const REASONING: [ReasoningTags; 2] = [
    // Qwen 3, DeepSeek R1 and what was distilled from it, SmolLM3.
    ReasoningTags { open: "<think>", close: "</think>" },
    // Magistral.
    ReasoningTags { open: "[THINK]", close: "[/THINK]" },
];

/// The operator's word on tools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ToolSetting {
    /// As the template has it.
    #[default]
    Auto,
    Format(ToolFormat),
    /// The template sees tools, but replies are not searched for calls.
    None,
}

impl ToolSetting {
    pub const NAMES: [&'static str; 6] = ["auto", "hermes", "llama3", "mistral", "generic", "none"];
}

impl FromStr for ToolSetting {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Ok(match name {
            "auto" => ToolSetting::Auto,
            "hermes" => ToolSetting::Format(ToolFormat::Hermes),
            "llama3" => ToolSetting::Format(ToolFormat::Llama3),
            "mistral" => ToolSetting::Format(ToolFormat::Mistral),
            "generic" => ToolSetting::Format(ToolFormat::Generic),
            "none" => ToolSetting::None,
            _ => return Err(format!("`{name}` is not one of {}", Self::NAMES.join(", "))),
        })
    }
}

/// How a model writes what is not plain text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dialect {
    /// `None`: replies are not searched for calls.
    pub tools: Option<ToolFormat>,
    /// `None`: replies are not searched for reasoning.
    pub reasoning: Option<ReasoningTags>,
    /// Mistral's calls are written `name[ARGS]{..}`.
    pub(crate) named_calls: bool,
    /// Where tools are told of when the template does not.
    pub(crate) instructions: Option<Instructions>,
}

impl Dialect {
    /// The dialect of a template. A template that shows no tools, or writes calls in a form that is not known here, gets
    /// the generic form.
    pub fn of(template: &ChatTemplate, tools: ToolSetting, reasoning: bool) -> Dialect {
        let tools = match tools {
            ToolSetting::None => None,
            ToolSetting::Format(format) => Some(format),
            ToolSetting::Auto => Some(tool_format(template).unwrap_or(ToolFormat::Generic)),
        };
        let sources = template.sources();
        let written = |tags: &ReasoningTags| sources.iter().any(|s| s.contains(tags.open) || s.contains(tags.close));
        Dialect {
            tools,
            named_calls: sources.iter().any(|s| s.contains("[ARGS]")),
            reasoning: REASONING.into_iter().find(written).filter(|_| reasoning),
            instructions: (tools == Some(ToolFormat::Generic)).then(|| instructions(template)),
        }
    }

    /// Special tokens that must be seen in a reply's text to understand it.
    pub fn kept_tokens(&self, tokenizer: &Tokenizer) -> Vec<TokenId> {
        let calls = self.tools.map_or(&[][..], ToolFormat::tokens).iter().copied();
        let ids = calls.chain(self.reasoning_marks()).filter_map(|token| tokenizer.id_of(token));
        ids.filter(|&id| tokenizer.is_special(id)).collect()
    }

    pub(crate) fn reasoning_marks(&self) -> impl Iterator<Item = &'static str> {
        self.reasoning.into_iter().flat_map(|tags| [tags.open, tags.close])
    }

    /// Where a reply to this prompt begins.
    pub fn thinking_after(&self, prompt: &str) -> Thinking {
        let ends = |mark| prompt.trim_end().ends_with(mark);
        match self.reasoning {
            Some(tags) if ends(tags.open) => Thinking::Begun,
            Some(tags) if ends(tags.close) => Thinking::Done,
            _ => Thinking::NotBegun,
        }
    }

    /// Where the rest of a message that is to be continued begins.
    pub(crate) fn thinking_within(&self, content: &str) -> Thinking {
        let marks = self.reasoning.map(|tags| (content.rfind(tags.open), content.rfind(tags.close)));
        match marks {
            None => Thinking::NotBegun,
            Some((open, close)) if open > close => Thinking::Begun,
            Some(_) => Thinking::Done,
        }
    }
}

fn probe_tool() -> Value {
    let parameters = json!({"type": "object", "properties": {PROBE_KEY: {"type": "integer"}}});
    let function = json!({"name": PROBE, "description": "A test.", "parameters": parameters});
    json!({"type": "function", "function": function})
}

fn render(template: &ChatTemplate, messages: &Value, tools: bool) -> Option<String> {
    let tool = [probe_tool()];
    let input = ChatInput {
        messages: messages.as_array()?,
        tools: tools.then_some(&tool[..]),
        add_generation_prompt: false,
        ..ChatInput::default()
    };
    template.render_plainly(&input).ok().filter(|text| text.len() <= MAX_PROBE)
}

fn tool_format(template: &ChatTemplate) -> Option<ToolFormat> {
    let question = json!({"role": "user", "content": "?"});
    if !render(template, &json!([question]), true)?.contains(PROBE) {
        return None;
    }
    // Mistral's templates want ids of nine letters or digits.
    let function = json!({"name": PROBE, "arguments": {PROBE_KEY: 1}});
    let call = json!({"id": "probe0001", "type": "function", "function": function});
    let messages = json!([
        question,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": PROBE, "tool_call_id": "probe0001", "content": "1"},
    ]);
    let text = render(template, &messages, true)?;
    [ToolFormat::Hermes, ToolFormat::Mistral, ToolFormat::Llama3].into_iter().find(|format| has_probe(*format, &text))
}

fn has_probe(format: ToolFormat, text: &str) -> bool {
    let mut parser = ReplyParser::new(Some(format), None, vec![PROBE.to_owned()], Thinking::Done);
    let mut events = parser.push(text);
    events.extend(parser.finish());
    let made = json!({PROBE_KEY: 1});
    events.windows(3).any(|three| match three {
        [
            ReplyEvent::CallStart { name, .. },
            ReplyEvent::CallArguments { fragment, .. },
            ReplyEvent::CallEnd { .. },
        ] => name == PROBE && serde_json::from_str::<Value>(fragment).is_ok_and(|arguments| arguments == made),
        _ => false,
    })
}

fn instructions(template: &ChatTemplate) -> Instructions {
    let messages = json!([{"role": "system", "content": PROBE}, {"role": "user", "content": "?"}]);
    match render(template, &messages, false) {
        Some(text) if text.contains(PROBE) => Instructions::System,
        _ => Instructions::User,
    }
}
