use std::fmt;
use std::sync::Arc;

use kvist_base::{Constraint, DomainId, Micros, TokenId};

use crate::adjust::Edits;
use crate::carry::Carry;

/// Unique among the requests that an engine knows; chosen by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// How a token is drawn. The draw depends on (seed, choice, position), the logits and the choice's tokens alone, so it
/// survives preemption. What is done in which order: [`crate::adjust`], then [`crate::sample`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 = the most likely token.
    pub temperature: f32,
    /// Keep the k most likely tokens; 0 = all.
    pub top_k: u32,
    /// Keep the most likely tokens whose probabilities first reach this sum; 1 = all.
    pub top_p: f32,
    /// Keep the tokens that are at least this many times as likely as the most likely one; 0 = all.
    pub min_p: f32,
    /// Divides the logits of tokens of the prompt and the output, or multiplies those that are not positive; 1 = off.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens of the output.
    pub presence_penalty: f32,
    /// Subtracted for each time that a token is in the output.
    pub frequency_penalty: f32,
    pub seed: u64,
}

impl Sampling {
    /// Whether what was drawn changes what is drawn.
    pub(crate) fn penalises(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// The most likely token of the model's own logits.
    pub const GREEDY: Sampling = Sampling {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seed: 0,
    };
}

#[derive(Clone, Debug)]
pub struct Request {
    pub id: RequestId,
    pub domain: DomainId,
    pub prompt: Vec<TokenId>,
    /// The prompt is a carried path.
    pub carry: Option<Arc<Carry>>,
    /// Choices, as forks of one prompt.
    pub n: u32,
    /// Tokens to generate for each choice; 0 = compute the prompt only.
    pub max_tokens: u32,
    pub sampling: Sampling,
    pub edits: Arc<Edits>,
    /// A choice ends when it draws one of these.
    pub stop_tokens: Vec<TokenId>,
    /// Restricts what is generated; each choice moves its own copy. Stop tokens may then come only where the text may end.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Report the logprob of each generated token and of this many of the most likely ones.
    pub logprobs: Option<u32>,
    /// The same for the prompt's tokens; the whole prompt is then computed.
    pub prompt_logprobs: Option<u32>,
    /// Lower is earlier.
    pub priority: i32,
    /// Time to first token that the client asks for.
    pub ttft_slo: Option<Micros>,
}

impl Request {
    /// One choice of the most likely tokens, with nothing asked beyond them.
    pub fn greedy(id: RequestId, domain: DomainId, prompt: Vec<TokenId>, max_tokens: u32) -> Self {
        Request {
            id,
            domain,
            prompt,
            carry: None,
            n: 1,
            max_tokens,
            sampling: Sampling::GREEDY,
            edits: Arc::default(),
            stop_tokens: Vec::new(),
            constraint: None,
            logprobs: None,
            prompt_logprobs: None,
            priority: 0,
            ttft_slo: None,
        }
    }
}

/// Logprobs of one token: the model's own, before temperature, natural logarithm.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    pub token: TokenId,
    pub logprob: f32,
    /// 1 = most likely.
    pub rank: u32,
    /// The most likely tokens, best first.
    pub top: Vec<(TokenId, f32)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// Drew this stop token.
    Stop(TokenId),
    /// `max_tokens` are drawn.
    Length,
    /// The constraint lets nothing follow: the text is whole.
    Complete,
    Cancelled,
    /// The constraint cannot be followed: it forbids every token, or working it out took too much.
    Constraint(String),
    Error(String),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Submitted to first admitted.
    pub queued: Micros,
    /// Admitted to first token.
    pub prefill: Micros,
    /// First token to end.
    pub decode: Micros,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt: u32,
    /// Prompt tokens that were not computed for this request.
    pub cached: u32,
    /// Of these, those that came from the tier below RAM, unless another request had them loaded.
    pub loaded: u32,
    /// Tokens drawn over all choices.
    pub generated: u32,
    pub preemptions: u32,
    pub timings: Timings,
}

/// What the engine tells about a request. Per choice: tokens, then one `Finished`; then one `Done` for the request,
/// after which the engine knows nothing of it and holds nothing for it.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    Token {
        id: RequestId,
        choice: u32,
        token: TokenId,
        logprobs: Option<TokenLogprobs>,
    },
    /// One entry per prompt token; `None` for the first, which nothing predicts.
    PromptLogprobs {
        id: RequestId,
        logprobs: Vec<Option<TokenLogprobs>>,
    },
    Finished {
        id: RequestId,
        choice: u32,
        reason: Finish,
    },
    Done {
        id: RequestId,
        usage: Usage,
    },
}

/// Why a request was not taken. Nothing is held for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Prompt and `max_tokens` exceed the context.
    TooLong {
        prompt: usize,
        max_tokens: usize,
        context: usize,
    },
    /// More KV than the whole pool, even alone. In tokens.
    NeverFits {
        needed: usize,
        pool: usize,
    },
    QueueFull {
        waiting: usize,
        limit: usize,
    },
    Invalid {
        field: &'static str,
        message: String,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::TooLong { prompt, max_tokens, context } => write!(
                f,
                "the context is {context} tokens, but the request needs {} ({prompt} of prompt and {max_tokens} to \
                 generate)",
                prompt + max_tokens
            ),
            Refusal::NeverFits { needed, pool } => {
                write!(f, "the request needs KV for {needed} tokens, but the whole pool holds {pool}")
            }
            Refusal::QueueFull { waiting, limit } => write!(f, "{waiting} requests are waiting, the limit is {limit}"),
            Refusal::Invalid { field, message } => write!(f, "{field}: {message}"),
        }
    }
}

impl std::error::Error for Refusal {}
