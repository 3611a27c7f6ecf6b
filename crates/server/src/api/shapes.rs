//! The JSON of answers.

use std::borrow::Cow;
use std::sync::Arc;

use kvist_base::TokenId;
use kvist_engine::TokenLogprobs;
use kvist_text::Tokenizer;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::api::assembly::{Entry, Totals};
use crate::api::reading::{CallIds, Said, ToolCall, tool_calls};

/// JSON has no infinity; a token that cannot be drawn is told as other servers tell it.
const IMPOSSIBLE: f32 = -9999.0;

/// Fields of every answer and every chunk.
#[derive(Clone, Debug, Serialize)]
pub struct Head {
    pub id: String,
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
}

#[derive(Serialize)]
pub struct Answer<'a, C: Serialize> {
    #[serde(flatten)]
    pub head: &'a Head,
    pub choices: Vec<C>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
    /// Of a chat's only prompt.
    #[serde(flatten)]
    pub prompt: PromptExtras,
}

/// What is told of a prompt on request, under vLLM's names.
#[derive(Clone, Default, Serialize)]
pub struct PromptExtras {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<TokenId>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs>,
}

/// What is told of a choice where it is there or asked for, under vLLM's names.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ChoiceExtras {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<TokenId>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
}

/// Which of the request's own ends a choice met.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum StopReason {
    Token(TokenId),
    Text(String),
}

#[derive(Serialize)]
pub struct ChatChoice<'a> {
    pub index: usize,
    pub message: Message<'a>,
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: Option<&'static str>,
    #[serde(flatten)]
    pub extras: ChoiceExtras,
}

#[derive(Serialize)]
pub struct Message<'a> {
    pub role: &'static str,
    pub content: Option<Cow<'a, str>>,
    pub refusal: Option<()>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall<'a>>,
}

impl<'a> Message<'a> {
    pub fn plain(content: String) -> Self {
        let (content, tool_calls) = (Some(content.into()), Vec::new());
        Message { role: "assistant", content, refusal: None, reasoning_content: None, tool_calls }
    }

    pub fn new(said: &'a Said, ids: CallIds<'a>, show_reasoning: bool) -> Self {
        let something = !said.reasoning.is_empty() || !said.calls.is_empty();
        Message {
            content: (!said.content.is_empty() || !something).then_some(said.content.as_str().into()),
            reasoning_content: Some(said.reasoning.as_str()).filter(|text| show_reasoning && !text.is_empty()),
            tool_calls: tool_calls(said, ids),
            ..Message::plain(String::new())
        }
    }
}

#[derive(Clone, Default, Serialize)]
pub struct ChatChunk<'a> {
    pub index: usize,
    pub delta: Delta<'a>,
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: Option<&'static str>,
    #[serde(flatten)]
    pub extras: ChoiceExtras,
}

#[derive(Clone, Default, Serialize)]
pub struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<[ToolCall<'a>; 1]>,
}

/// A choice of the completions endpoint, whole or in part.
#[derive(Serialize)]
pub struct TextChoice<'a> {
    pub index: usize,
    pub text: Cow<'a, str>,
    pub logprobs: Option<TextLogprobs>,
    pub finish_reason: Option<&'static str>,
    #[serde(flatten)]
    pub extras: ChoiceExtras,
    #[serde(flatten)]
    pub prompt: PromptExtras,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_details: Option<PromptDetails>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kvist: Option<KvistUsage>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PromptDetails {
    pub cached_tokens: usize,
}

/// What only this server can say.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct KvistUsage {
    /// Prompt tokens taken from the ids of earlier replies.
    pub spliced_tokens: usize,
    /// Prompt tokens computed for this request.
    pub computed_tokens: usize,
    /// Of the cached tokens, those that were loaded from disk for this request.
    #[serde(skip_serializing_if = "is_zero")]
    pub loaded_tokens: usize,
    pub preemptions: u32,
    /// Prompt tokens that `truncate_prompt_tokens` left out.
    #[serde(skip_serializing_if = "is_zero")]
    pub truncated_prompt_tokens: usize,
    /// Tokens of the oldest turns that were dropped.
    #[serde(skip_serializing_if = "is_zero")]
    pub dropped_tokens: usize,
    /// What is left was not computed anew, but keeps the KV that it had with the dropped turns before it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub carried: bool,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl Usage {
    pub fn new(t: &Totals) -> Self {
        let cached_tokens = t.cached;
        Usage {
            prompt_tokens_details: Some(PromptDetails { cached_tokens }),
            kvist: Some(KvistUsage {
                spliced_tokens: t.spliced,
                computed_tokens: t.prompt - t.cached,
                loaded_tokens: t.loaded,
                preemptions: t.preemptions,
                truncated_prompt_tokens: t.truncated,
                dropped_tokens: t.dropped,
                carried: t.carried,
            }),
            ..Self::so_far(t)
        }
    }

    /// While an answer is generated: what was cached is known at its end.
    pub fn so_far(t: &Totals) -> Self {
        Usage {
            prompt_tokens: t.prompt,
            completion_tokens: t.generated,
            total_tokens: t.prompt + t.generated,
            prompt_tokens_details: None,
            kvist: None,
        }
    }
}

/// Milliseconds, and tokens per second over them; the names are llama-server's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Timings {
    pub queued_ms: f64,
    pub cache_n: usize,
    pub prompt_n: usize,
    pub prompt_ms: f64,
    pub prompt_per_second: f64,
    pub predicted_n: usize,
    pub predicted_ms: f64,
    pub predicted_per_second: f64,
}

impl Timings {
    pub fn new(t: &Totals) -> Self {
        let ms = |micros: u64| micros as f64 / 1e3;
        let rate = |n: usize, micros: u64| if micros == 0 { 0.0 } else { n as f64 * 1e6 / micros as f64 };
        Timings {
            queued_ms: ms(t.queued),
            cache_n: t.cached,
            prompt_n: t.prompt - t.cached,
            prompt_ms: ms(t.prefill),
            prompt_per_second: rate(t.prompt - t.cached, t.prefill),
            predicted_n: t.generated,
            predicted_ms: ms(t.decode),
            predicted_per_second: rate(t.generated, t.decode),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatLogprobs {
    content: Vec<ChatToken>,
    refusal: Option<()>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct ChatToken {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    top_logprobs: Vec<TopToken>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct TopToken {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// How logprobs name tokens.
#[derive(Clone, Copy)]
pub struct Names<'a> {
    pub tokenizer: &'a Tokenizer,
    /// `token_id:ID` instead of text, which need not be one token's alone.
    pub as_ids: bool,
}

impl Names<'_> {
    fn name(&self, token: TokenId, bytes: &[u8]) -> String {
        if self.as_ids { format!("token_id:{token}") } else { lossy(bytes) }
    }
}

impl ChatLogprobs {
    pub fn new(names: Names, entries: Vec<Entry>) -> Self {
        let content = entries.into_iter().filter_map(|entry| {
            let scores = entry.scores?;
            let top = |&(token, logprob): &(_, f32)| {
                let bytes = names.tokenizer.token_bytes(token);
                TopToken { token: names.name(token, &bytes), logprob: finite(logprob), bytes }
            };
            Some(ChatToken {
                token: names.name(entry.token, &entry.bytes),
                logprob: finite(scores.logprob),
                bytes: entry.bytes,
                top_logprobs: scores.top.iter().map(top).collect(),
            })
        });
        ChatLogprobs { content: content.collect(), refusal: None }
    }
}

/// Parallel lists, one entry per token.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct TextLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    /// The most likely tokens and the drawn one; of tokens with the same text the likelier one is told.
    top_logprobs: Vec<Option<Map<String, Value>>>,
    /// In characters from the start of the choice's text.
    text_offset: Vec<usize>,
}

impl TextLogprobs {
    pub fn new(names: Names, entries: Vec<Entry>) -> Self {
        let mut out = TextLogprobs::default();
        for entry in entries {
            let token = names.name(entry.token, &entry.bytes);
            let top = entry.scores.as_ref().map(|scores| {
                let mut map = Map::new();
                let drawn = (token.clone(), scores.logprob);
                let others = scores.top.iter().map(|&(t, l)| (names.name(t, &names.tokenizer.token_bytes(t)), l));
                for (text, logprob) in others.chain([drawn]) {
                    map.entry(text).or_insert_with(|| number(finite(logprob)));
                }
                map
            });
            out.tokens.push(token);
            out.token_logprobs.push(entry.scores.map(|s| finite(s.logprob)));
            out.top_logprobs.push(top);
            out.text_offset.push(entry.offset);
        }
        out
    }
}

/// vLLM's shape: for each token of the prompt a map from token ids to what is known of them, its own token first;
/// `null` for the first, which nothing predicts. Made as it is written: it can be long.
#[derive(Clone)]
pub struct PromptLogprobs {
    pub tokenizer: Tokenizer,
    pub scores: Arc<[Option<TokenLogprobs>]>,
    /// How many of the most likely tokens are told.
    pub top: usize,
}

#[derive(Serialize)]
struct PromptToken {
    logprob: f32,
    rank: u32,
    decoded_token: String,
}

impl Serialize for PromptLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.scores.iter().map(|scores| scores.as_ref().map(|scores| OneToken(self, scores))))
    }
}

struct OneToken<'a>(&'a PromptLogprobs, &'a TokenLogprobs);

impl Serialize for OneToken<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let OneToken(PromptLogprobs { tokenizer, top, .. }, scores) = *self;
        let told = |token: TokenId, logprob: f32, rank: u32| {
            let decoded_token = lossy(&tokenizer.token_bytes(token));
            (token.to_string(), PromptToken { logprob: finite(logprob), rank, decoded_token })
        };
        let likeliest = (1..).zip(scores.top.iter().take(*top)).filter(|(_, t)| t.0 != scores.token);
        let own = told(scores.token, scores.logprob, scores.rank);
        serializer.collect_map([own].into_iter().chain(likeliest.map(|(rank, &(token, l))| told(token, l, rank))))
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn finite(logprob: f32) -> f32 {
    logprob.max(IMPOSSIBLE)
}

/// The same digits as an `f32` field has: clients compare the two.
pub fn number(f: f32) -> Value {
    f.to_string().parse::<f64>().ok().and_then(serde_json::Number::from_f64).map_or(Value::Null, Value::Number)
}
