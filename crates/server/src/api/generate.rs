//! What both generating endpoints do once their request is parsed.

use std::pin::pin;
use std::sync::Arc;

use axum::Json;
use axum::http::HeaderName;
use axum::response::{IntoResponse, Response};
use kvist_base::{CHUNK, Constraint, TokenId};
use kvist_engine::{Request, RequestId};
use kvist_text::grammar::Grammar;
use tokio::time::{Instant, sleep_until};

use crate::api::assembly::{Assembly, Entry, Prepared, Reason, Totals};
use crate::api::error::ApiError;
use crate::api::json::Fields;
use crate::api::params::{Bounds, KeepLast, Params};
use crate::api::reading::CallIds;
use crate::api::sampling::bad_words;
use crate::api::shapes::{
    Answer, ChatChoice, ChatLogprobs, Head, Message, PromptExtras, StopReason, TextChoice, TextLogprobs, Timings, Usage,
};
use crate::api::sse::SseBody;
use crate::api::structured;
use crate::app::{App, Caller, Serving};
use crate::log::RequestLine;
use crate::runner::{Event, Ticket, Unavailable};

/// Says how many tokens of its prompts a request has lost by `truncate_prompt_tokens`.
const TRUNCATED: HeaderName = HeaderName::from_static("x-kvist-truncated-prompt-tokens");

/// Says how many tokens of its oldest turns a conversation has lost.
const DROPPED: HeaderName = HeaderName::from_static("x-kvist-dropped-tokens");

/// Logprobs of prompt tokens in one answer at most: some 100 MB of JSON.
const MOST_SCORES: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Chat,
    /// The completions endpoint.
    Text,
}

impl Kind {
    fn object(self, stream: bool) -> &'static str {
        match (self, stream) {
            (Kind::Chat, false) => "chat.completion",
            (Kind::Chat, true) => "chat.completion.chunk",
            (Kind::Text, _) => "text_completion",
        }
    }

    fn id_prefix(self) -> &'static str {
        match self {
            Kind::Chat => "chatcmpl-",
            Kind::Text => "cmpl-",
        }
    }

    /// Tokens generated when the request does not say. `None`: to the end of the context.
    fn default_tokens(self) -> Option<usize> {
        match self {
            Kind::Chat => None,
            Kind::Text => Some(16),
        }
    }
}

/// A parsed and tokenised request.
pub struct Job {
    pub kind: Kind,
    pub params: Params,
    pub prompts: Vec<Prepared>,
    /// Logprobs of drawn tokens, with this many of the most likely ones.
    pub logprobs: Option<u32>,
    /// The same for prompts that are repeated.
    pub echo_logprobs: Option<u32>,
    /// Fields of the body that nothing looked at.
    pub ignored: usize,
}

/// The fields that all generating endpoints have in common, checked against the model.
pub fn params(serving: &Serving, fields: Fields, bounds: &Bounds) -> Result<Params, ApiError> {
    let mut params = Params::parse(fields, bounds)?;
    serving.check_model(params.model.as_deref(), bounds)?;
    params.ban(&bad_words(fields)?, &serving.text.tokenizer)?;
    Ok(params)
}

/// Runs a job and answers it, whole or as a stream.
pub async fn answer(app: &App, serving: Arc<Serving>, caller: &Caller, mut job: Job) -> Result<Response, ApiError> {
    let constraint = match &job.params.structured {
        Some(asked) => Some(structured::compile(app, &serving, asked).await?),
        None => None,
    };
    let requests = requests(&serving, caller, &mut job, constraint)?;
    let prompt_tokens = requests.iter().map(|r| r.prompt.len()).sum();
    let Job { kind, params, prompts, logprobs, echo_logprobs, ignored } = job;
    app.ignored(ignored);
    if ignored > 0 {
        caller.line.set("ignored", ignored);
    }
    let stream = params.stream;
    let mut ticket = serving.runner.submit(requests, caller.arrival, stream.is_some()).map_err(|e| match e {
        Unavailable::Busy => ApiError::busy("too many requests arrived at once"),
        Unavailable::Gone => ApiError::unavailable("the engine has stopped"),
    })?;
    match ticket.events.recv().await {
        Some(Event::Refused(refusal)) => return Err(refusal.into()),
        Some(_) => {}
        None => return Err(broken_off(&serving, &ticket)),
    }
    let echo_top = echo_logprobs.map(|top| top as usize);
    let assembly = Assembly::new(serving.clone(), ticket.control.clone(), params, prompts, prompt_tokens, echo_top);
    let Totals { spliced, truncated, dropped, .. } = assembly.totals();
    app.spliced(spliced);
    let head = Head {
        id: format!("{}{}", kind.id_prefix(), app.next_id()),
        object: kind.object(stream.is_some()),
        created: app.unix_time(),
        model: serving.model.id.clone(),
    };
    let logprobs = logprobs.is_some();
    let mut response = match stream {
        Some(options) => {
            let ping_interval = app.config.ping_interval;
            let ping = Box::pin(sleep_until(Instant::now() + ping_interval));
            let line = caller.line.clone();
            let body = SseBody {
                serving,
                ticket,
                assembly,
                head,
                kind,
                logprobs,
                options,
                line,
                ping_interval,
                ping,
                peer_ended: Some(Box::pin(caller.peer.clone().ended())),
                probes: 0,
                ended: false,
            };
            body.into_response()
        }
        None => whole(&serving, ticket, assembly, &head, kind, logprobs, caller).await?,
    };
    if truncated > 0 {
        response.headers_mut().insert(TRUNCATED, truncated.into());
    }
    if dropped > 0 {
        response.headers_mut().insert(DROPPED, dropped.into());
    }
    Ok(response)
}

/// Takes the prompts' ids out of the job, but leaves those that are told.
fn requests(
    serving: &Serving,
    caller: &Caller,
    job: &mut Job,
    constraint: Option<Grammar>,
) -> Result<Vec<Request>, ApiError> {
    let p = &job.params;
    let default_tokens = job.kind.default_tokens().filter(|_| !p.to_the_end);
    let mut requests = Vec::with_capacity(job.prompts.len());
    for prompt in &mut job.prompts {
        let room = serving.room;
        match p.keep_last {
            None => {}
            Some(KeepLast::Tokens(n)) => prompt.keep_last(n),
            Some(KeepLast::Room) => {
                let reply = p.max_tokens.map(|n| n as usize).or(default_tokens).unwrap_or(1);
                prompt.keep_last(room.saturating_sub(reply).max(1));
            }
        }
        let length = prompt.ids.len();
        let left = room.saturating_sub(length);
        if left == 0 && p.max_tokens != Some(0) || length > room {
            return Err(ApiError::context_length(format!(
                "the context is {room} tokens, but the prompt alone has {length}"
            )));
        }
        let unasked = default_tokens.map_or(left, |n| n.min(left)) as u32;
        let max_tokens = p.max_tokens.unwrap_or(unasked);
        if p.edits.min_tokens > max_tokens {
            let message = format!("{} is above the {max_tokens} tokens to generate at most", p.edits.min_tokens);
            return Err(ApiError::field("min_tokens", message));
        }
        requests.push(Request {
            // The engine thread gives the real one.
            id: RequestId(0),
            domain: caller.tenant.domain,
            prompt: if prompt.echo || p.return_ids { prompt.ids.clone() } else { std::mem::take(&mut prompt.ids) },
            n: p.n,
            max_tokens,
            sampling: p.sampling,
            edits: p.edits.clone(),
            stop_tokens: p.ends(&serving.model.eos),
            constraint: constraint.as_ref().map(Constraint::fork),
            logprobs: job.logprobs,
            prompt_logprobs: p.prompt_logprobs.max(job.echo_logprobs),
            priority: p.priority,
            ttft_slo: p.ttft_slo,
            carry: prompt.carry.clone(),
        });
    }
    bound_scores(job, requests.iter().map(|r| r.prompt.len()).sum())?;
    Ok(requests)
}

/// A long prompt has so many logprobs that their JSON must be bounded.
fn bound_scores(job: &Job, prompt_tokens: usize) -> Result<(), ApiError> {
    for (field, top) in [("prompt_logprobs", job.params.prompt_logprobs), ("logprobs", job.echo_logprobs)] {
        let listed = top.map_or(0, |top| prompt_tokens * job.params.n as usize * (top as usize + 1));
        if listed > MOST_SCORES {
            let message = format!("{listed} logprobs of prompt tokens; at most {MOST_SCORES} are told in one answer");
            return Err(ApiError::field(field, message));
        }
    }
    Ok(())
}

/// Tokens that prompt and reply may have together: the context, or what the pool holds (the engine keeps one chunk
/// for the copy of an open one).
pub fn room(context: usize, chunks: u32) -> usize {
    context.min((chunks as usize).saturating_sub(1) * CHUNK)
}

/// A choice being put together.
#[derive(Default)]
struct Whole {
    text: String,
    logprobs: Vec<Entry>,
    tokens: Vec<TokenId>,
    reason: Option<Reason>,
    stop: Option<StopReason>,
}

async fn whole(
    serving: &Serving,
    mut ticket: Ticket,
    mut assembly: Assembly,
    head: &Head,
    kind: Kind,
    logprobs: bool,
    caller: &Caller,
) -> Result<Response, ApiError> {
    let mut choices: Vec<Whole> = Vec::new();
    choices.resize_with(assembly.choices(), Whole::default);
    let mut ended = pin!(caller.peer.clone().ended());
    while !assembly.done() {
        let event = tokio::select! {
            event = ticket.events.recv() => event.ok_or_else(|| broken_off(serving, &ticket))?,
            // A client that left cannot be told from one that only ended its side, as nothing is sent before the end.
            () = &mut ended => {
                finish_line(&caller.line, &assembly);
                caller.line.set("left", "early");
                return Err(ApiError::invalid("the client ended its side before the answer; only a stream goes on then"));
            }
        };
        if let Some(piece) = assembly.on(event)? {
            let choice = &mut choices[piece.index];
            choice.text.push_str(&piece.text);
            choice.logprobs.extend(piece.logprobs);
            choice.tokens.extend(piece.tokens);
            (choice.reason, choice.stop) = (piece.reason, piece.stop);
        }
    }
    finish_line(&caller.line, &assembly);
    let totals = assembly.totals();
    let (usage, timings) = (Some(Usage::new(&totals)), Some(Timings::new(&totals)));
    let names = assembly.names();
    let choices = choices.into_iter().enumerate();
    Ok(match kind {
        Kind::Chat => {
            let message = |index: usize, text: &str| match assembly.reader(index) {
                Some(reader) => {
                    let ids = CallIds { answer: &head.id, choice: index, format: reader.format() };
                    Message::new(reader.said(), ids, reader.show_reasoning())
                }
                None => Message::plain(text.to_owned()),
            };
            let choices = choices.map(|(index, c)| ChatChoice {
                index,
                message: message(index, &c.text),
                logprobs: logprobs.then(|| ChatLogprobs::new(names, c.logprobs)),
                finish_reason: c.reason.map(Reason::word),
                extras: assembly.extras(c.tokens, c.stop),
            });
            let (choices, prompt) = (choices.collect(), assembly.prompt_of(0));
            Json(Answer { head, choices, usage, timings, prompt }).into_response()
        }
        Kind::Text => {
            let choices = choices.map(|(index, c)| TextChoice {
                index,
                text: c.text.into(),
                logprobs: logprobs.then(|| TextLogprobs::new(names, c.logprobs)),
                finish_reason: c.reason.map(Reason::word),
                extras: assembly.extras(c.tokens, c.stop),
                prompt: assembly.prompt_of(index),
            });
            let (choices, prompt) = (choices.collect(), PromptExtras::default());
            Json(Answer { head, choices, usage, timings, prompt }).into_response()
        }
    })
}

/// Why the events of a request ended early.
pub fn broken_off(serving: &Serving, ticket: &Ticket) -> ApiError {
    if ticket.control.overrun() {
        ApiError::new(axum::http::StatusCode::REQUEST_TIMEOUT, "timeout_error", "the reader is too slow")
    } else if serving.runner.shared.gone() {
        ApiError::unavailable("the engine has stopped")
    } else {
        ApiError::internal("the request was lost")
    }
}

/// Fills in the request's log line.
pub fn finish_line(line: &RequestLine, assembly: &Assembly) {
    let t = assembly.totals();
    line.set("prompt", t.prompt);
    line.set("cached", t.cached);
    line.set("loaded", t.loaded);
    line.set("spliced", t.spliced);
    line.set("generated", t.generated);
    line.set("queue_ms", t.queued / 1000);
    line.set("prefill_ms", t.prefill / 1000);
    line.set("decode_ms", t.decode / 1000);
    line.set("finish", assembly.reasons().join(","));
}
