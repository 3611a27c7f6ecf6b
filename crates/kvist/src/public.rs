//! System prompts that the operator shares: computed once at start, then read by every tenant.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use kvist_base::{CHUNK, DomainId, TokenId};
use kvist_engine::{Effect, Finish, Request, RequestId};
use kvist_text::ChatInput;
use serde_json::json;

use crate::complain;
use crate::driver::Driver;
use crate::failure::{Failure, Result};
use crate::model::Text;
use crate::progress::Progress;

/// Where they are computed, before they are published.
const DOMAIN: DomainId = DomainId(1);

pub struct Prompt {
    /// For messages.
    name: String,
    text: String,
}

impl Prompt {
    pub fn read(path: &Path) -> Result<Prompt> {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|e| {
            Failure::usage(format!("--public-prompt {name}: {e}"), "name a text file with a system prompt")
        })?;
        Ok(Prompt { name, text })
    }

    /// The tokens that every conversation with this system prompt begins with: those that two different first messages
    /// have in common. Without a template, the text as it is.
    fn tokens(&self, text: &Text) -> Result<Vec<TokenId>> {
        let fails = |e| Failure::new(format!("--public-prompt {}: {e}", self.name), "leave it out, or change its text");
        let Ok(template) = &text.template else { return text.tokenizer.encode(&self.text, true).map_err(fails) };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let render = |user: &str| {
            let messages = [json!({"role": "system", "content": self.text}), json!({"role": "user", "content": user})];
            let input = ChatInput { messages: &messages, add_generation_prompt: true, now, ..ChatInput::default() };
            text.tokenizer.encode(&template.render(&input)?, false)
        };
        let (a, b) = (render("a").map_err(fails)?, render("7").map_err(fails)?);
        Ok(a.iter().zip(&b).take_while(|(a, b)| a == b).map(|(a, _)| *a).collect())
    }
}

/// Computes and publishes all prompts. Returns the tokens that are public then, prompt by prompt added up.
pub fn publish(driver: &mut Driver, text: &Text, prompts: &[Prompt]) -> Result<usize> {
    let progress = Progress::new("computing");
    let mut public = 0;
    for prompt in prompts {
        let tokens = prompt.tokens(text)?;
        let whole = tokens.len() / CHUNK * CHUNK;
        if whole == 0 {
            complain(&format!(
                "warning: --public-prompt {}: its {} tokens do not fill a chunk of {CHUNK}; nothing to share",
                prompt.name,
                tokens.len()
            ));
            continue;
        }
        compute(driver, &prompt.name, tokens.clone(), &progress)?;
        let shared = driver.engine.publish(DOMAIN, &tokens[..whole]);
        if shared < whole {
            return Err(Failure::new(
                format!("--public-prompt {}: only {shared} of {whole} tokens stayed in the cache", prompt.name),
                "set a larger --kv-ram",
            ));
        }
        public += shared;
    }
    Ok(public)
}

fn compute(driver: &mut Driver, name: &str, prompt: Vec<TokenId>, progress: &Progress) -> Result<()> {
    let fails = |what: String| Failure::new(format!("--public-prompt {name}: {what}"), "shorten it, or set --kv-ram");
    let request = Request::greedy(RequestId(0), DOMAIN, prompt, 0);
    driver.submit(request).map_err(|refusal| fails(refusal.to_string()))?;
    loop {
        progress.note(name);
        if driver.step().is_none() {
            // What the disk has of it is on its way.
            std::thread::sleep(std::time::Duration::from_micros(300));
        }
        for effect in driver.take_effects() {
            match effect {
                Effect::Finished { reason: Finish::Error(what), .. } => return Err(fails(what)),
                Effect::Done { .. } => return Ok(()),
                _ => {}
            }
        }
    }
}
