//! Tool calls and reasoning: how each family of models writes them, found out of its chat template, and parsers that
//! turn the text of a reply into [`ReplyEvent`]s while it is generated.

mod call;
mod detect;
mod generic;
mod parser;
mod scanner;
mod schema;

pub use detect::{Dialect, ReasoningTags, Thinking, ToolSetting};
pub use parser::{ReplyEvent, ReplyParser};
pub use schema::Function;

pub(crate) use generic::in_plain_messages;

/// How a model writes the calls of tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{"name": .., "arguments": {..}}</tool_call>`, one for each call. Hermes, Qwen 2.5 and 3, SmolLM3.
    Hermes,
    /// `{"name": .., "parameters": {..}}`, with or without `<|python_tag|>` before it; several are separated by `;`.
    /// Llama 3.1 and later.
    Llama3,
    /// `[TOOL_CALLS][{"name": .., "arguments": {..}}, ..]` or, for each call, `[TOOL_CALLS]name[ARGS]{..}`, where
    /// `[ARGS]` may be missing and `[CALL_ID]..` may stand before it. Mistral.
    Mistral,
    /// `{"name": .., "arguments": {..}}`, one on a line or in a fenced block. For models whose template knows no tools:
    /// a system prompt of our own tells them of this form.
    Generic,
}

impl ToolFormat {
    /// What stands before a call, wherever it is in a reply.
    pub(crate) fn mark(self) -> &'static str {
        match self {
            ToolFormat::Hermes => "<tool_call>",
            ToolFormat::Llama3 => "<|python_tag|>",
            ToolFormat::Mistral => "[TOOL_CALLS]",
            ToolFormat::Generic => FENCE,
        }
    }

    /// Whether a JSON object at the start of a line may be a call without any mark.
    pub(crate) fn bare(self) -> bool {
        matches!(self, ToolFormat::Llama3 | ToolFormat::Generic)
    }

    /// Texts that may be special tokens, which a reply's text would otherwise leave out.
    pub(crate) fn tokens(self) -> &'static [&'static str] {
        match self {
            ToolFormat::Hermes => &["<tool_call>", "</tool_call>"],
            ToolFormat::Llama3 => &["<|python_tag|>"],
            ToolFormat::Mistral => &["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
            ToolFormat::Generic => &[],
        }
    }
}

pub(crate) const FENCE: &str = "```";
