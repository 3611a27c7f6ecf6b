//! Text in, token ids out, and back: tokenizer, detokenizer, stop strings, chat templates, tool calls, and the table
//! that lets a conversation's next turn re-use the ids that its replies were generated with.
//!
//! Everything here is a pure function of its arguments: no I/O but [`Tokenizer::from_file`], no clock (the time that a
//! template may ask for is an argument).
#![forbid(unsafe_code)]

mod bounded;
mod decoder;
mod detokenizer;
mod error;
mod file;
mod gguf;
pub mod grammar;
mod growth;
mod json;
mod messages;
mod python;
mod reply;
mod stop;
mod strftime;
mod template;
mod tokenizer;
mod tools;

pub use bounded::{Bounded, Budget, read_file, twice};
pub use detokenizer::Detokenizer;
pub use error::TextError;
pub use gguf::GgufVocab;
pub use reply::{Prompt, PromptKey, Reply, ReplyStats, ReplyTable, splice};
pub use stop::{StopMatcher, Stopped};
pub use template::{ChatInput, ChatTemplate};
pub use tokenizer::Tokenizer;
pub use tools::{Dialect, Function, ReasoningTags, ReplyEvent, ReplyParser, Thinking, ToolFormat, ToolSetting};
