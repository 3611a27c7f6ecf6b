//! `kvist run`: from the command line to a conversation.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::ArgMatches;
use kvist_engine::{EngineConfig, Sampling};

use crate::chat::{self, Options, Session};
use crate::failure::{Failure, Result};
use crate::settings::Settings;
use crate::settings::keys::MAX_STEP_TOKENS;
use crate::size::thousands;
use crate::{load, say};

pub fn run(matches: &ArgMatches, mut settings: Settings) -> Result<()> {
    let plan = load::plan(&mut settings)?;
    if matches.get_flag("print-config") {
        say(&settings.print());
        return Ok(());
    }
    let text = plan.chosen.text()?;
    let template = text
        .template
        .map_err(|e| Failure::new(e.to_string(), "choose a chat model, or complete text with `kvist serve`"))?;
    let config = EngineConfig { max_step_rows: settings.count(&MAX_STEP_TOKENS), ..EngineConfig::default() };
    let driver = load::driver(&plan, config)?;
    let clock_seed = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    let defaults = load::sampling(&plan.chosen.config, 0);
    let sampling = Sampling {
        temperature: *matches.get_one::<f32>("temperature").unwrap_or(&defaults.temperature),
        seed: matches.get_one::<u64>("seed").copied().unwrap_or_else(clock_seed),
        ..defaults
    };
    let options = Options {
        sampling,
        eos: plan.chosen.config.eos.clone(),
        max_tokens: matches.get_one::<u32>("max-tokens").copied(),
        system: matches.get_one::<String>("system").cloned(),
    };
    let mut session = Session::new(driver, text.tokenizer, template, options);
    if let Some(prompt) = matches.get_one::<String>("prompt") {
        return chat::once(&mut session, prompt);
    }
    let context = thousands(plan.budget.context as u64);
    eprintln!("{}, {} with {} threads, context of {context} tokens", plan.chosen.name, plan.isa, plan.threads);
    if plan.chosen.is_embedded() {
        eprintln!("This is the small model compiled into the binary; for a real one: kvist run DIRECTORY");
    }
    chat::converse(&mut session)
}
