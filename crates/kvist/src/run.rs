//! `kvist run`: from the command line to a conversation.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::ArgMatches;
use kvist_engine::Sampling;

use crate::chat::{self, Options, Session};
use crate::failure::{Failure, Result};
use crate::settings::Settings;
use crate::size::{count, thousands};
use crate::{complain, load, say};

/// The small model does not always find an end.
const EMBEDDED_MAX_TOKENS: u32 = 256;

pub fn run(matches: &ArgMatches, mut settings: Settings) -> Result<()> {
    let engine = load::single_config(&settings);
    let plan = load::plan(&mut settings, engine, chat::REPLY_BYTES as u64, 0, None)?;
    if matches.get_flag("print-config") {
        return say(&settings.print());
    }
    let text = plan.chosen.text()?;
    let template = text
        .template
        .map_err(|e| Failure::new(e.to_string(), "choose a chat model, or complete text with `kvist serve`"))?;
    let driver = load::driver(&plan)?;
    let clock_seed = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    let defaults = load::sampling(&plan.chosen.config, 0);
    let sampling = Sampling {
        temperature: *matches.get_one::<f32>("temperature").unwrap_or(&defaults.temperature),
        seed: matches.get_one::<u64>("seed").copied().unwrap_or_else(clock_seed),
        ..defaults
    };
    let prompt = matches.get_one::<String>("prompt");
    let options = Options {
        sampling,
        eos: plan.chosen.config.eos.clone(),
        max_tokens: matches
            .get_one::<u32>("max-tokens")
            .copied()
            .or(plan.chosen.is_embedded().then_some(EMBEDDED_MAX_TOKENS)),
        system: matches.get_one::<String>("system").cloned(),
        too_long: match prompt {
            Some(_) => "shorten the prompt; --ctx sets a longer context where the model allows it",
            None => "/clear starts a new conversation; --ctx sets a longer context where the model allows it",
        },
    };
    let max_tokens = options.max_tokens;
    let mut session = Session::new(driver, text.tokenizer, template, options);
    if let Some(prompt) = prompt {
        return chat::once(&mut session, prompt);
    }
    let context = thousands(plan.budget.context as u64);
    let threads = count(plan.threads, "thread");
    complain(&format!("{}, {} with {threads}, context of {context} tokens", plan.chosen.name, plan.isa));
    if plan.chosen.is_embedded() {
        complain("This is the small model compiled into the binary; for a real one: kvist run MODEL");
        let most = max_tokens.unwrap_or(EMBEDDED_MAX_TOKENS);
        complain(&format!("Its answers end after {most} tokens at most; --max-tokens changes that."));
    }
    chat::converse(&mut session)
}
