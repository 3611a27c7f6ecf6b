use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use kvist_base::{DomainId, TokenId};
use kvist_engine::{Effect, Finish, Refusal, Request, RequestId, Sampling};
use kvist_text::{ChatInput, ChatTemplate, Detokenizer, ReplyTable, Tokenizer, splice};
use serde_json::{Value, json};

use super::stats::{Stats, Turn};
use super::{Interrupt, written};
use crate::driver::Driver;
use crate::failure::{Failure, Result};

const DOMAIN: DomainId = DomainId(1);
/// Bytes of replies that are kept as they were generated.
pub const REPLY_BYTES: usize = 16 << 20;

pub struct Options {
    pub sampling: Sampling,
    /// Tokens that end a reply.
    pub eos: Vec<TokenId>,
    pub max_tokens: Option<u32>,
    pub system: Option<String>,
    /// What to do about a conversation that has grown too long.
    pub too_long: &'static str,
}

/// A conversation, and the engine that answers it.
pub struct Session {
    driver: Driver,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    replies: ReplyTable,
    options: Options,
    messages: Vec<Value>,
    last: Turn,
    total: Turn,
    turns: u64,
}

impl Session {
    pub fn new(driver: Driver, tokenizer: Tokenizer, template: ChatTemplate, options: Options) -> Self {
        let mut session = Session {
            driver,
            tokenizer,
            template,
            replies: ReplyTable::new(REPLY_BYTES),
            options,
            messages: Vec::new(),
            last: Turn::default(),
            total: Turn::default(),
            turns: 0,
        };
        session.clear();
        session
    }

    /// Starts a new conversation. What was computed stays in the cache.
    pub fn clear(&mut self) {
        self.messages.clear();
        self.messages.extend(self.options.system.iter().map(|text| json!({"role": "system", "content": text})));
    }

    pub fn set_system(&mut self, text: Option<&str>) {
        self.options.system = text.map(str::to_owned);
        self.clear();
    }

    pub fn stats(&self) -> Stats {
        Stats {
            last: self.last,
            total: self.total,
            turns: self.turns,
            kv_tokens: self.driver.engine.stats().cache.tokens,
            token_bytes: self.driver.executor.info().layout.token_bytes() as u64,
        }
    }

    /// Answers `text`, writing the reply as it is generated. A turn that fails leaves the conversation as it was.
    pub fn turn(&mut self, text: &str, out: &mut dyn Write, interrupt: &Interrupt) -> Result<()> {
        self.messages.push(json!({"role": "user", "content": text}));
        match self.answer(out, interrupt) {
            Ok(reply) => {
                self.messages.push(json!({"role": "assistant", "content": reply}));
                Ok(())
            }
            Err(failure) => {
                self.messages.pop();
                Err(failure)
            }
        }
    }

    fn answer(&mut self, out: &mut dyn Write, interrupt: &Interrupt) -> Result<String> {
        let start = self.driver.now();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let input = ChatInput { messages: &self.messages, add_generation_prompt: true, now, ..ChatInput::default() };
        let prompt = splice(&self.tokenizer, &self.template, &self.replies, DOMAIN, &input)
            .map_err(|e| Failure::usage(e.to_string(), "the model's chat template does not take these messages"))?;
        let id = self.submit(prompt.ids.clone())?;

        let mut detokenizer = Detokenizer::after_prompt(&self.tokenizer, true);
        let (mut reply, mut ids) = (String::new(), Vec::new());
        let mut first = None;
        let mut ended = None;
        let usage = 'turn: loop {
            if interrupt.asked() {
                self.driver.cancel(id);
            }
            self.driver.step();
            let mut piece = String::new();
            let mut done = None;
            for effect in self.driver.take_effects() {
                match effect {
                    Effect::Token { token, .. } => {
                        first.get_or_insert_with(|| self.driver.now());
                        ids.push(token);
                        // The token that ends the reply is no text, special or not.
                        if !self.options.eos.contains(&token) {
                            piece.push_str(&detokenizer.push(token));
                        }
                    }
                    Effect::Finished { reason, .. } => {
                        piece.push_str(&detokenizer.finish());
                        ended = Some(reason);
                    }
                    Effect::Done { usage, .. } => done = Some(usage),
                    Effect::PromptLogprobs { .. } => {}
                }
            }
            reply.push_str(&piece);
            if let Err(failure) = written(out.write_all(piece.as_bytes()).and_then(|()| out.flush())) {
                self.driver.cancel(id);
                self.driver.take_effects();
                return Err(failure);
            }
            if let Some(usage) = done {
                break 'turn usage;
            }
        };
        if let Some(Finish::Error(what)) = ended {
            return Err(Failure::new(what, ""));
        }
        self.replies.remember(&self.tokenizer, prompt.key, &reply, &ids);
        let end = self.driver.now();
        let first = first.unwrap_or(end);
        self.last = Turn {
            prompt: u64::from(usage.prompt),
            cached: u64::from(usage.cached),
            spliced: prompt.spliced as u64,
            generated: u64::from(usage.generated),
            first: first - start,
            rest: end - first,
        };
        self.total += self.last;
        self.turns += 1;
        Ok(reply)
    }

    fn submit(&mut self, prompt: Vec<TokenId>) -> Result<RequestId> {
        let (tokens, context) = (prompt.len(), self.driver.executor.info().context);
        let room = context.saturating_sub(tokens) as u32;
        if room == 0 {
            return Err(Failure::usage(
                format!("the conversation has {tokens} tokens, the context {context}: no room for an answer"),
                self.options.too_long,
            ));
        }
        let max_tokens = self.options.max_tokens.map_or(room, |most| most.min(room));
        let request = Request {
            sampling: self.options.sampling,
            stop_tokens: self.options.eos.clone(),
            ..Request::greedy(RequestId(0), DOMAIN, prompt, max_tokens)
        };
        self.driver.submit(request).map_err(|refusal| {
            let hint = match refusal {
                Refusal::TooLong { .. } | Refusal::NeverFits { .. } => self.options.too_long,
                Refusal::QueueFull { .. } | Refusal::Invalid { .. } => "",
            };
            Failure::usage(refusal.to_string(), hint)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Layers, Settings};
    use crate::{load, model};

    #[test]
    fn the_token_that_ends_a_reply_is_not_shown() {
        let flag = |name: &str| (name == "kv-ram").then(|| vec!["32MiB".to_owned()]);
        let layers = Layers { flags: &|key| flag(key.name), environment: &|_| None, file: None };
        let mut settings = Settings::resolve(true, &layers).unwrap();
        let engine = load::single_config(&settings);
        let plan = load::plan(&mut settings, engine, 0, 0, None).unwrap();
        let shown = |eos: Vec<TokenId>| {
            let text = model::choose(None, kvist_model::WeightForm::AsFile).unwrap().text().unwrap();
            let sampling = Sampling::GREEDY;
            let options = Options { sampling, eos, max_tokens: Some(1), system: None, too_long: "" };
            let driver = load::driver(&plan).unwrap();
            let mut session = Session::new(driver, text.tokenizer, text.template.unwrap(), options);
            let mut out = Vec::new();
            session.turn("Hello!", &mut out, &Interrupt::default()).unwrap();
            assert_eq!(session.last.generated, 1);
            String::from_utf8(out).unwrap()
        };
        assert!(!shown(vec![]).is_empty());
        // Whatever comes first ends it, special or not.
        let all = (0..plan.chosen.config.vocab as TokenId).collect();
        assert_eq!(shown(all), "");
    }
}
