//! What clap is told of `kvist cache`.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgGroup, Command, ValueHint, value_parser};

use super::{config_arg, setting_arg};
use crate::settings::keys::{CTX, ISA, KV_DIR, KV_DISK, KV_KEY_FILE, KV_TYPE, Key, MODEL, ON_OVERFLOW, WEIGHTS};

const EXAMPLES: &str = "\
The settings are those of `kvist serve`, also in the environment and in the file of --config: give the same ones, or \
another store or model is looked at. ls, explain and verify work beside a running server; gc, pin and forget are refused \
while one has the store.

Examples:
  kvist cache ls
  kvist cache explain --messages chat.json
  kvist cache explain --url http://127.0.0.1:8080 --prompt 'Once upon a time'
  kvist cache verify ~/models/Qwen3-0.6B
  kvist cache gc --foreign";

/// What finds a store, and tells what its chunks depend on.
const PLACE: [&Key; 8] = [&MODEL, &KV_DIR, &KV_DISK, &KV_KEY_FILE, &KV_TYPE, &WEIGHTS, &ISA, &CTX];

pub fn command() -> Command {
    let sub = |name: &'static str, about: &'static str| {
        // One has no model: its argument is a tenant.
        let keys = PLACE.into_iter().filter(move |key| name != "forget" || !std::ptr::eq(*key, &MODEL));
        Command::new(name).about(about).arg(config_arg()).args(keys.map(|key| {
            let arg = setting_arg(key);
            if arg.is_positional() { arg } else { arg.help_heading("Store") }
        }))
    };
    let flag = |name: &'static str, help: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    let prompt = [
        Arg::new("prompt").long("prompt").value_name("TEXT").help("The prompt of a completion; - = standard input"),
        Arg::new("messages")
            .long("messages")
            .value_name("FILE")
            .help("Messages, or a body of /v1/chat/completions, as JSON; - = standard input")
            .value_hint(ValueHint::FilePath),
    ];
    let either = ArgGroup::new("what").args(["prompt", "messages"]).required(true);
    let tenant =
        Arg::new("tenant").long("tenant").value_name("NAME").help("Whose it is [default: no key's, the operator's]");
    let json = flag("json", "Print everything as JSON");
    Command::new("cache")
        .about("Look at what is kept on disk, explain a hit or a miss, verify, tidy up")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .after_help(EXAMPLES)
        .subcommand(
            sub("ls", "List what the store holds, by tenant and conversation")
                .arg(json.clone())
                .arg(flag("all", "List every conversation")),
        )
        .subcommand(
            sub("explain", "Say which tokens of a prompt would hit, and where and why the others do not")
                .args(prompt.clone())
                .group(either.clone())
                .arg(tenant.clone())
                .arg(setting_arg(&ON_OVERFLOW).help_heading("Store"))
                .arg(
                    Arg::new("url")
                        .long("url")
                        .value_name("URL")
                        .help("Ask a running server, which knows its RAM and its rates")
                        .value_hint(ValueHint::Url)
                        .conflicts_with("tenant"),
                )
                .arg(
                    Arg::new("key-file")
                        .long("key-file")
                        .value_name("FILE")
                        .help("File with the key for --url, which says whose it is")
                        .requires("url")
                        .value_hint(ValueHint::FilePath)
                        .value_parser(value_parser!(PathBuf)),
                )
                .arg(
                    Arg::new("prefill-rate")
                        .long("prefill-rate")
                        .value_name("N")
                        .help("Tokens computed in a second, for the estimate where no server has measured it")
                        .value_parser(rate),
                )
                .arg(json),
        )
        .subcommand(sub("verify", "Read and verify everything; exit code 1 if anything is bad"))
        .subcommand(
            sub("gc", "Free the space of what is no longer wanted")
                .arg(flag("foreign", "Remove what is of other models, settings or keys, too")),
        )
        .subcommand(
            sub("pin", "Keep a prompt on disk whatever comes")
                .args(prompt)
                .group(either)
                .arg(tenant)
                .arg(flag("unpin", "Let it be evicted again")),
        )
        .subcommand(sub("forget", "Destroy a tenant's key, and with it all that it sealed").arg(
            Arg::new("tenant").required(true).value_name("TENANT").help("Name in the key file; operator = no key's"),
        ))
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("it is not a number above 0".into()),
    }
}
