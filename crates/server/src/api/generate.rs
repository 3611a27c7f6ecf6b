//! What both generating endpoints do once their request is parsed.

use std::pin::pin;
use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use kvist_base::CHUNK;
use kvist_engine::{Request, RequestId};
use tokio::time::{Instant, sleep_until};

use crate::api::assembly::{Assembly, Entry, Prepared, Reason};
use crate::api::error::ApiError;
use crate::api::params::Params;
use crate::api::shapes::{Answer, ChatChoice, ChatLogprobs, Head, Message, TextChoice, TextLogprobs, Timings, Usage};
use crate::api::sse::SseBody;
use crate::app::{App, Caller, Serving};
use crate::log::RequestLine;
use crate::runner::{Event, Ticket, Unavailable};

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
    /// The same for the prompts.
    pub prompt_logprobs: Option<u32>,
}

/// Runs a job and answers it, whole or as a stream.
pub async fn answer(app: &App, serving: Arc<Serving>, caller: &Caller, mut job: Job) -> Result<Response, ApiError> {
    let prompt_tokens = job.prompts.iter().map(|p| p.ids.len()).sum();
    let requests = requests(&serving, caller, &mut job)?;
    let Job { kind, params, prompts, logprobs, .. } = job;
    let mut ticket = serving.runner.submit(requests, caller.arrival, params.stream.is_some()).map_err(|e| match e {
        Unavailable::Busy => ApiError::busy("too many requests arrived at once"),
        Unavailable::Gone => ApiError::unavailable("the engine has stopped"),
    })?;
    match ticket.events.recv().await {
        Some(Event::Refused(refusal)) => return Err(refusal.into()),
        Some(_) => {}
        None => return Err(broken_off(&serving, &ticket)),
    }
    let assembly = Assembly::new(serving.clone(), ticket.control.clone(), &params, prompts, prompt_tokens);
    app.spliced(assembly.totals().spliced);
    let head = Head {
        id: format!("{}{}", kind.id_prefix(), app.next_id()),
        object: kind.object(params.stream.is_some()),
        created: app.unix_time(),
        model: serving.model.id.clone(),
    };
    let logprobs = logprobs.is_some();
    match params.stream {
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
            Ok(body.into_response())
        }
        None => whole(&serving, ticket, assembly, &head, kind, logprobs, caller).await,
    }
}

/// Takes the prompts' ids out of the job, but leaves those that an echo needs.
fn requests(serving: &Serving, caller: &Caller, job: &mut Job) -> Result<Vec<Request>, ApiError> {
    let p = &job.params;
    let mut requests = Vec::with_capacity(job.prompts.len());
    for prompt in &mut job.prompts {
        let (length, room) = (prompt.ids.len(), serving.room);
        let left = room.saturating_sub(length);
        if left == 0 && p.max_tokens != Some(0) || length > room {
            return Err(ApiError::context_length(format!(
                "the context is {room} tokens, but the prompt alone has {length}"
            )));
        }
        let unasked = job.kind.default_tokens().map_or(left, |n| n.min(left)) as u32;
        let max_tokens = p.max_tokens.unwrap_or(unasked);
        if p.edits.min_tokens > max_tokens {
            let message = format!("{} is above the {max_tokens} tokens to generate at most", p.edits.min_tokens);
            return Err(ApiError::field("min_tokens", message));
        }
        requests.push(Request {
            // The engine thread gives the real one.
            id: RequestId(0),
            domain: caller.tenant.domain,
            prompt: if prompt.echo { prompt.ids.clone() } else { std::mem::take(&mut prompt.ids) },
            n: p.n,
            max_tokens,
            sampling: p.sampling,
            edits: p.edits.clone(),
            stop_tokens: p.ends(&serving.model.eos),
            logprobs: job.logprobs,
            prompt_logprobs: job.prompt_logprobs,
            priority: p.priority,
            ttft_slo: p.ttft_slo,
        });
    }
    Ok(requests)
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
    reason: Option<Reason>,
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
            choice.reason = piece.reason;
        }
    }
    finish_line(&caller.line, &assembly);
    let totals = assembly.totals();
    let (usage, timings) = (Some(Usage::new(&totals)), Some(Timings::new(&totals)));
    let tokenizer = &serving.text.tokenizer;
    let reason = |c: &Whole| c.reason.map(Reason::word);
    let scores = |c: &mut Whole| logprobs.then(|| std::mem::take(&mut c.logprobs));
    Ok(match kind {
        Kind::Chat => {
            let entries: Vec<_> = choices.iter_mut().map(scores).collect();
            let choices = choices.iter().zip(entries).enumerate().map(|(index, (c, entries))| ChatChoice {
                index,
                message: Message { role: "assistant", content: &c.text, refusal: None },
                logprobs: entries.map(|e| ChatLogprobs::new(tokenizer, e)),
                finish_reason: reason(c),
            });
            Json(Answer { head, choices: choices.collect(), usage, timings }).into_response()
        }
        Kind::Text => {
            let entries: Vec<_> = choices.iter_mut().map(scores).collect();
            let choices = choices.iter().zip(entries).enumerate().map(|(index, (c, entries))| TextChoice {
                index,
                text: &c.text,
                logprobs: entries.map(|e| TextLogprobs::new(tokenizer, e)),
                finish_reason: reason(c),
            });
            Json(Answer { head, choices: choices.collect(), usage, timings }).into_response()
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
    line.set("spliced", t.spliced);
    line.set("generated", t.generated);
    line.set("queue_ms", t.queued / 1000);
    line.set("prefill_ms", t.prefill / 1000);
    line.set("decode_ms", t.decode / 1000);
    line.set("finish", assembly.reasons().join(","));
}
