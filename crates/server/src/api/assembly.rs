//! From the engine's effects to pieces of text: detokenising, stop strings, logprobs, usage. Pure; both the plain and
//! the streamed answer are made of its pieces.

use std::collections::VecDeque;
use std::sync::Arc;

use kvist_base::TokenId;
use kvist_engine::{Carry, Effect, Finish, TokenLogprobs, Usage};
use kvist_text::{Detokenizer, PromptKey, Reply, ReplyEvent, StopMatcher, Tokenizer};

use crate::api::error::ApiError;
use crate::api::params::Params;
use crate::api::reading::{Reader, Reading};
use crate::api::shapes::{ChoiceExtras, Names, PromptExtras, PromptLogprobs, StopReason};
use crate::api::structured;
use crate::app::Serving;
use crate::runner::{Control, Event};

/// A prompt as the engine gets it, and what its answer needs to know of it.
#[derive(Clone, Debug, Default)]
pub struct Prepared {
    pub ids: Vec<TokenId>,
    /// Whether the prompt's text is put before the answer.
    pub echo: bool,
    /// How many of `ids` were taken from remembered replies.
    pub spliced: usize,
    /// Under which the reply is remembered.
    pub key: Option<PromptKey>,
    /// Tokens that were cut off at the start, as the request asked.
    pub truncated: usize,
    /// Tokens of the oldest turns that were dropped.
    pub dropped: usize,
    /// What is left keeps its KV.
    pub carry: Option<Arc<Carry>>,
    /// How the reply is read, if it may be more than content.
    pub reading: Option<Reading>,
}

impl Prepared {
    /// Leaves the last `most` tokens at most.
    pub fn keep_last(&mut self, most: usize) {
        self.truncated = self.ids.len().saturating_sub(most);
        if self.truncated > 0 {
            self.ids.drain(..self.truncated);
            // The reply does not stand after the whole conversation.
            self.key = None;
            self.spliced = self.spliced.min(most);
        }
    }
}

/// Why a choice ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Stop,
    Length,
    ToolCalls,
}

impl Reason {
    pub fn word(self) -> &'static str {
        match self {
            Reason::Stop => "stop",
            Reason::Length => "length",
            Reason::ToolCalls => "tool_calls",
        }
    }
}

/// One token's logprobs, as told to the client.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub token: TokenId,
    /// Its bytes; less than the token's where a stop string cut it.
    pub bytes: Vec<u8>,
    /// `None` for a prompt's first token, which nothing predicts.
    pub scores: Option<TokenLogprobs>,
    /// Characters of the choice's text before it.
    pub offset: usize,
}

/// News of one choice.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Place of the choice in the answer.
    pub index: usize,
    /// Whether it is the choice's first.
    pub first: bool,
    /// The text as it was generated.
    pub text: String,
    /// What it says, for a reply that is read.
    pub events: Option<Vec<ReplyEvent>>,
    pub logprobs: Vec<Entry>,
    /// Every token drawn since the last piece, if they are told.
    pub tokens: Vec<TokenId>,
    pub reason: Option<Reason>,
    pub stop: Option<StopReason>,
}

/// Sums over the prompts of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub prompt: usize,
    pub cached: usize,
    pub loaded: usize,
    pub spliced: usize,
    pub truncated: usize,
    pub dropped: usize,
    pub carried: bool,
    pub generated: usize,
    pub preemptions: u32,
    /// Microseconds; of several prompts the longest.
    pub queued: u64,
    pub prefill: u64,
    pub decode: u64,
}

pub struct Assembly {
    serving: Arc<Serving>,
    control: Arc<Control>,
    prompts: Vec<PromptState>,
    /// Prompt-major.
    choices: Vec<Choice>,
    n: usize,
    params: Params,
    /// Tokens that end a choice.
    ends: Vec<TokenId>,
    /// Most likely tokens of each prompt token that come with an echo, if it has logprobs.
    echo_top: Option<usize>,
    open: usize,
    totals: Totals,
}

struct PromptState {
    echo: Option<Echo>,
    entries: Vec<Entry>,
    key: Option<PromptKey>,
    /// Kept where they are told.
    ids: Vec<TokenId>,
    scores: Arc<[Option<TokenLogprobs>]>,
}

/// A prompt that is repeated: its text as an answer's would be told, and where in it its tokens begin.
struct Echo {
    text: String,
    chars: usize,
    /// Each token, and the characters before it.
    tokens: Vec<(TokenId, usize)>,
}

impl Echo {
    fn new(tokenizer: &Tokenizer, ids: &[TokenId], skip_special: bool) -> Self {
        let mut detokenizer = Detokenizer::new(tokenizer, skip_special);
        let mut echo = Echo { text: String::new(), chars: 0, tokens: Vec::with_capacity(ids.len()) };
        for &id in ids {
            echo.tokens.push((id, echo.chars));
            echo.push(&detokenizer.push(id));
        }
        echo.push(&detokenizer.finish());
        echo
    }

    fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.chars += text.chars().count();
    }
}

struct Choice {
    detokenizer: Detokenizer,
    matcher: StopMatcher,
    reader: Option<Reader>,
    ids: Vec<TokenId>,
    /// How many of `ids` were told.
    told: usize,
    /// Everything that was given out, without the echo.
    text: String,
    /// Bytes and characters of text that the tokens made, given out or not.
    made: usize,
    made_chars: usize,
    /// Entries whose text is not given out whole, with the range of `made` that is theirs.
    held: VecDeque<(Entry, usize, usize)>,
    started: bool,
    ended: Option<Reason>,
}

impl Assembly {
    /// `prompt_tokens` counts all prompts; the ids of `prompts` are needed only where they are told.
    pub fn new(
        serving: Arc<Serving>,
        control: Arc<Control>,
        params: Params,
        prompts: Vec<Prepared>,
        prompt_tokens: usize,
        echo_top: Option<usize>,
    ) -> Self {
        let n = params.n as usize;
        let tokenizer = &serving.text.tokenizer;
        let mut choices = Vec::new();
        let mut states = Vec::new();
        let mut totals = Totals { prompt: prompt_tokens, ..Totals::default() };
        for prompt in prompts {
            let echo = prompt.echo.then(|| Echo::new(tokenizer, &prompt.ids, params.skip_special));
            totals.spliced += prompt.spliced;
            totals.truncated += prompt.truncated;
            totals.dropped += prompt.dropped;
            totals.carried |= prompt.carry.is_some();
            for _ in 0..n {
                let detokenizer = Detokenizer::after_prompt(tokenizer, params.skip_special);
                let reader = prompt.reading.clone().map(Reader::new);
                choices.push(Choice {
                    detokenizer: if reader.is_some() { detokenizer.keeping(&serving.kept_tokens) } else { detokenizer },
                    matcher: StopMatcher::new(&params.stops).including(params.include_stop),
                    reader,
                    ids: Vec::new(),
                    told: 0,
                    text: String::new(),
                    made: 0,
                    made_chars: echo.as_ref().map_or(0, |e| e.chars),
                    held: VecDeque::new(),
                    started: false,
                    ended: None,
                });
            }
            let state = PromptState { echo, entries: vec![], key: prompt.key, ids: prompt.ids, scores: [].into() };
            states.push(state);
        }
        let open = states.len();
        let ends = params.ends(&serving.model.eos);
        Assembly { control, prompts: states, choices, n, params, ends, echo_top, open, totals, serving }
    }

    /// Whether every request is done: nothing follows.
    pub fn done(&self) -> bool {
        self.open == 0
    }

    /// The sums so far; whole once [`Self::done`].
    pub fn totals(&self) -> Totals {
        Totals { generated: self.choices.iter().map(|c| c.ids.len()).sum(), ..self.totals }
    }

    /// What the answer tells of a choice's prompt besides its text.
    pub fn prompt_of(&self, index: usize) -> PromptExtras {
        let state = &self.prompts[index / self.n];
        PromptExtras {
            prompt_token_ids: self.params.return_ids.then(|| state.ids.clone()),
            prompt_logprobs: self.params.prompt_logprobs.map(|top| PromptLogprobs {
                tokenizer: self.serving.text.tokenizer.clone(),
                scores: state.scores.clone(),
                top: top as usize,
            }),
        }
    }

    pub fn extras(&self, tokens: Vec<TokenId>, stop_reason: Option<StopReason>) -> ChoiceExtras {
        ChoiceExtras { token_ids: self.params.return_ids.then_some(tokens), stop_reason }
    }

    pub fn names(&self) -> Names<'_> {
        Names { tokenizer: &self.serving.text.tokenizer, as_ids: self.params.tokens_as_ids }
    }

    pub fn choices(&self) -> usize {
        self.choices.len()
    }

    /// The reader of a choice, if it has one.
    pub fn reader(&self, index: usize) -> Option<&Reader> {
        self.choices[index].reader.as_ref()
    }

    /// The reasons of the choices that ended, for the log.
    pub fn reasons(&self) -> Vec<&'static str> {
        self.choices.iter().map(|c| c.ended.map_or("none", Reason::word)).collect()
    }

    /// Takes an event. An error ends the whole answer.
    pub fn on(&mut self, event: Event) -> Result<Option<Piece>, ApiError> {
        let (prompt, effect) = match event {
            Event::Accepted => return Ok(None),
            Event::Refused(refusal) => return Err(refusal.into()),
            Event::Effect { prompt, effect } => (prompt, effect),
        };
        match effect {
            Effect::Token { choice, token, logprobs, .. } => Ok(self.token(prompt, choice, token, logprobs)),
            Effect::PromptLogprobs { logprobs, .. } => {
                self.prompt_logprobs(prompt, logprobs);
                Ok(None)
            }
            Effect::Finished { choice, reason, .. } => self.finished(prompt, choice, reason),
            Effect::Done { usage, .. } => {
                self.account(&usage);
                self.open -= 1;
                Ok(None)
            }
        }
    }

    fn account(&mut self, usage: &Usage) {
        let t = &mut self.totals;
        t.cached += usage.cached as usize;
        t.loaded += usage.loaded as usize;
        t.preemptions += usage.preemptions;
        t.queued = t.queued.max(usage.timings.queued);
        t.prefill = t.prefill.max(usage.timings.prefill);
        t.decode = t.decode.max(usage.timings.decode);
    }

    fn token(&mut self, prompt: usize, choice: u32, token: TokenId, scores: Option<TokenLogprobs>) -> Option<Piece> {
        let index = prompt * self.n + choice as usize;
        let ends = self.ends.contains(&token);
        let c = &mut self.choices[index];
        if c.ended.is_some() {
            return None;
        }
        c.ids.push(token);
        let delta = if ends && !self.params.include_stop { String::new() } else { c.detokenizer.push(token) };
        if scores.is_some() {
            let bytes = self.serving.text.tokenizer.token_bytes(token);
            let entry = Entry { token, bytes, scores, offset: c.made_chars };
            c.held.push_back((entry, c.made, c.made + delta.len()));
        }
        let (text, stop) = c.push(&delta, &self.params);
        let (events, whole) = c.read(&text);
        let ended = stop.is_some() || whole;
        if ended {
            self.control.cancel_choice(prompt, choice);
        }
        Some(self.piece(index, prompt, text, events, ended.then_some((Reason::Stop, stop))))
    }

    fn finished(&mut self, prompt: usize, choice: u32, reason: Finish) -> Result<Option<Piece>, ApiError> {
        let index = prompt * self.n + choice as usize;
        let c = &mut self.choices[index];
        if c.ended.is_some() {
            return Ok(None);
        }
        let (reason, token) = match reason {
            Finish::Stop(token) => (Reason::Stop, Some(token)),
            Finish::Complete => (Reason::Stop, None),
            Finish::Length => (Reason::Length, None),
            Finish::Cancelled => return Err(ApiError::unavailable("the request was cancelled by the server")),
            Finish::Constraint(message) => return Err(structured::cannot_follow(&message)),
            Finish::Error(message) => return Err(ApiError::internal(message)),
        };
        let rest = c.detokenizer.finish();
        let (mut text, stop) = c.push(&rest, &self.params);
        if stop.is_none() {
            text.push_str(&c.matcher.finish());
        }
        let (events, whole) = c.read(&text);
        let reason = if stop.is_some() || whole { Reason::Stop } else { reason };
        // The model's own end is no reason to name.
        let own = |t: &TokenId| !self.params.ignore_eos && self.serving.model.eos.contains(t);
        let stop = stop.or(token.filter(|t| !own(t)).map(StopReason::Token));
        Ok(Some(self.piece(index, prompt, text, events, Some((reason, stop)))))
    }

    /// Makes the piece, gives it the logprobs that it covers and ends the choice if there is a reason.
    fn piece(
        &mut self,
        index: usize,
        prompt: usize,
        text: String,
        events: Option<Vec<ReplyEvent>>,
        end: Option<(Reason, Option<StopReason>)>,
    ) -> Piece {
        let state = &self.prompts[prompt];
        let c = &mut self.choices[index];
        c.text.push_str(&text);
        let shown = c.text.len();
        let tokens = if self.params.return_ids { c.ids[c.told..].to_vec() } else { vec![] };
        c.told = c.ids.len();
        let (reason, stop) = end.map_or((None, None), |(reason, stop)| (Some(reason), stop));
        let mut piece = Piece { index, first: !c.started, text, events, logprobs: vec![], tokens, reason, stop };
        if !c.started {
            c.started = true;
            piece.logprobs.clone_from(&state.entries);
            if let Some(echo) = &state.echo {
                piece.text.insert_str(0, &echo.text);
            }
        }
        while c.held.front().is_some_and(|&(_, _, end)| end <= shown) {
            piece.logprobs.extend(c.held.pop_front().map(|(entry, ..)| entry));
        }
        if reason.is_none() {
            return piece;
        }
        // What a stop string cut: the token where it begins is told up to the cut, later ones not at all.
        for (mut entry, start, end) in c.held.drain(..) {
            if start < shown {
                entry.bytes.truncate(entry.bytes.len().saturating_sub(end - shown));
                piece.logprobs.push(entry);
            }
        }
        if let Some(reader) = &mut c.reader {
            piece.events.get_or_insert_default().extend(reader.finish());
            if reason == Some(Reason::Stop) && !reader.said().calls.is_empty() {
                piece.reason = Some(Reason::ToolCalls);
            }
        }
        c.ended = piece.reason;
        if let Some(key) = state.key {
            c.remember(&self.serving, key);
        }
        piece
    }

    /// Entries of the prompt's tokens, to be told with each choice's first piece.
    fn prompt_logprobs(&mut self, prompt: usize, scores: Vec<Option<TokenLogprobs>>) {
        let state = &mut self.prompts[prompt];
        let tokenizer = &self.serving.text.tokenizer;
        if self.params.prompt_logprobs.is_some() {
            state.scores = scores.as_slice().into();
        }
        let tokens = state.echo.iter().filter(|_| self.echo_top.is_some()).flat_map(|echo| &echo.tokens);
        for (&(token, offset), mut scores) in tokens.zip(scores) {
            // More may have been computed for `prompt_logprobs`.
            scores.iter_mut().for_each(|s| s.top.truncate(self.echo_top.unwrap_or(0)));
            state.entries.push(Entry { token, bytes: tokenizer.token_bytes(token), scores, offset });
        }
    }
}

impl Choice {
    /// What the text says, if the reply is read, and whether the reply is to end with it.
    fn read(&mut self, text: &str) -> (Option<Vec<ReplyEvent>>, bool) {
        match &mut self.reader {
            Some(reader) => {
                let (events, whole) = reader.push(text);
                (Some(events), whole)
            }
            None => (None, false),
        }
    }

    fn remember(&self, serving: &Serving, key: PromptKey) {
        let calls: Vec<(String, String)>;
        let mut reply = Reply { text: &self.text, content: &self.text, calls: &[] };
        if let Some(reader) = &self.reader {
            let said = reader.said();
            calls = said.calls.iter().map(|c| (c.name.clone(), c.arguments.clone())).collect();
            reply = Reply { content: &said.content, calls: &calls, ..reply };
        }
        serving.replies.remember_reply(&serving.text.tokenizer, key, reply, &self.ids);
    }

    /// Takes the text of a token: what of it can be given out, and the stop string that is complete.
    fn push(&mut self, delta: &str, params: &Params) -> (String, Option<StopReason>) {
        self.made += delta.len();
        self.made_chars += delta.chars().count();
        // As many tokens must stand before the end as where a token makes it.
        if self.ids.len() <= params.edits.min_tokens as usize && params.edits.min_tokens > 0 {
            return (self.matcher.skip(delta), None);
        }
        let stopped = self.matcher.push(delta);
        (stopped.text, stopped.stop.map(|i| StopReason::Text(params.stops[i].clone())))
    }
}
