//! Streamed answers: server-sent events made from pieces as they come.

use std::convert::Infallible;
use std::future::Future;
use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use http_body::Frame;
use serde::Serialize;
use tokio::time::{Instant, Sleep};

use crate::api::assembly::{Assembly, Piece};
use crate::api::error::ApiError;
use crate::api::generate::{Kind, broken_off, finish_line};
use crate::api::params::StreamOptions;
use crate::api::reading::{CallIds, delta};
use crate::api::shapes::{
    Answer, ChatChunk, ChatLogprobs, Delta, Head, PromptExtras, TextChoice, TextLogprobs, Timings, Usage,
};
use crate::app::Serving;
use crate::log::RequestLine;
use crate::runner::{Event, Ticket};

/// Events that are ready are sent together, up to about this many bytes.
const BATCH: usize = 16 << 10;

/// Between the two pings to a client that may have left: a round trip.
const PROBE_PAUSE: Duration = Duration::from_millis(200);

/// The body of a streamed answer. Dropping it cancels the request.
pub struct SseBody {
    pub serving: Arc<Serving>,
    pub ticket: Ticket,
    pub assembly: Assembly,
    pub head: Head,
    pub kind: Kind,
    pub logprobs: bool,
    pub options: StreamOptions,
    pub line: Arc<RequestLine>,
    pub ping_interval: Duration,
    pub ping: Pin<Box<Sleep>>,
    /// Completes once when the client has ended its side.
    pub peer_ended: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// Pings still to be sent soon, to find out whether the client has left.
    pub probes: u8,
    pub ended: bool,
}

impl SseBody {
    pub fn into_response(self) -> Response {
        let mut response = Response::new(Body::new(self));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        // Proxies that buffer would hold back the tokens.
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        response
    }

    fn on(&mut self, event: Option<Event>, out: &mut Vec<u8>) {
        let result = match event {
            Some(event) => self.assembly.on(event),
            None => Err(broken_off(&self.serving, &self.ticket)),
        };
        match result {
            Ok(piece) => {
                if let Some(piece) = piece {
                    self.write_piece(piece, out);
                }
                if self.assembly.done() {
                    self.write_end(out);
                }
            }
            Err(error) => self.write_error(&error, out),
        }
    }

    fn write_piece(&mut self, piece: Piece, out: &mut Vec<u8>) {
        let Piece { index, first, text, events, logprobs, tokens, reason, stop } = piece;
        let finish_reason = reason.map(|r| r.word());
        let news = !text.is_empty() || !logprobs.is_empty() || !tokens.is_empty();
        let prompt = if first { self.assembly.prompt_of(index) } else { PromptExtras::default() };
        let names = self.assembly.names();
        match self.kind {
            Kind::Chat => {
                let empty = ChatChunk { index, ..ChatChunk::default() };
                if first {
                    let delta = Delta { role: Some("assistant"), content: Some(""), ..Delta::default() };
                    self.write_chunk(ChatChunk { delta, ..empty.clone() }, prompt, out);
                }
                let events = events.unwrap_or_default();
                let mut deltas: Vec<Delta> = match self.assembly.reader(index) {
                    Some(reader) => {
                        let ids = CallIds { answer: &self.head.id, choice: index, format: reader.format() };
                        events.iter().filter_map(|event| delta(event, ids, reader.show_reasoning())).collect()
                    }
                    None if news => vec![Delta { content: Some(&text), ..Delta::default() }],
                    None => vec![],
                };
                // Tokens that say nothing yet are told all the same where they are told.
                if deltas.is_empty() && !(logprobs.is_empty() && tokens.is_empty()) {
                    deltas.push(Delta { content: Some(""), ..Delta::default() });
                }
                // What is told of the tokens comes with the first part.
                let mut logprobs = self.logprobs.then(|| ChatLogprobs::new(names, logprobs));
                let mut extras = self.assembly.extras(tokens, None);
                for delta in deltas {
                    let (logprobs, extras) = (logprobs.take(), std::mem::take(&mut extras));
                    let chunk = ChatChunk { delta, logprobs, extras, ..empty.clone() };
                    self.write_chunk(chunk, PromptExtras::default(), out);
                }
                if reason.is_some() {
                    let extras = self.assembly.extras(vec![], stop);
                    self.write_chunk(ChatChunk { finish_reason, extras, ..empty }, PromptExtras::default(), out);
                }
            }
            Kind::Text => {
                if first || news || reason.is_some() {
                    let logprobs = self.logprobs.then(|| TextLogprobs::new(names, logprobs));
                    let extras = self.assembly.extras(tokens, stop);
                    let text = text.into();
                    let choice = TextChoice { index, text, logprobs, finish_reason, extras, prompt };
                    self.write_chunk(choice, PromptExtras::default(), out);
                }
            }
        }
    }

    fn write_chunk<C: Serialize>(&self, choice: C, prompt: PromptExtras, out: &mut Vec<u8>) {
        let usage = self.options.continuous_usage.then(|| Usage::so_far(&self.assembly.totals()));
        write_event(out, &Answer { head: &self.head, choices: vec![choice], usage, timings: None, prompt });
    }

    fn write_end(&mut self, out: &mut Vec<u8>) {
        if self.options.include_usage {
            let totals = self.assembly.totals();
            let (usage, timings) = (Some(Usage::new(&totals)), Some(Timings::new(&totals)));
            let prompt = PromptExtras::default();
            write_event(out, &Answer::<()> { head: &self.head, choices: vec![], usage, timings, prompt });
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
        finish_line(&self.line, &self.assembly);
        self.ended = true;
    }

    fn write_error(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        write_event(out, &error.body());
        finish_line(&self.line, &self.assembly);
        self.line.set("error", error.status.as_u16());
        self.line.set("code", error.word().0);
        self.ended = true;
    }
}

impl Drop for SseBody {
    fn drop(&mut self) {
        if !self.ended {
            finish_line(&self.line, &self.assembly);
            self.line.set("left", "early");
        }
    }
}

fn write_event(out: &mut Vec<u8>, value: &impl Serialize) {
    out.extend_from_slice(b"data: ");
    // Writing to a vector does not fail, and no shape has keys that are not strings.
    let _ = serde_json::to_writer(&mut *out, value);
    let _ = out.write_all(b"\n\n");
}

impl http_body::Body for SseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        let mut out = Vec::new();
        while !this.ended && out.len() < BATCH {
            match this.ticket.events.poll_recv(cx) {
                Poll::Ready(event) => this.on(event, &mut out),
                Poll::Pending => break,
            }
        }
        if out.is_empty() {
            if this.ended {
                return Poll::Ready(None);
            }
            if this.peer_ended.as_mut().is_some_and(|ended| ended.as_mut().poll(cx).is_ready()) {
                // The answer to the first write says that nobody is there; then the second fails.
                (this.peer_ended, this.probes) = (None, 2);
                this.ping.as_mut().reset(Instant::now());
            }
            if this.ping.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            out.extend_from_slice(b": ping\n\n");
        }
        let pause = if this.probes > 1 { PROBE_PAUSE } else { this.ping_interval };
        this.probes = this.probes.saturating_sub(1);
        this.ping.as_mut().reset(Instant::now() + pause);
        Poll::Ready(Some(Ok(Frame::data(out.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}
