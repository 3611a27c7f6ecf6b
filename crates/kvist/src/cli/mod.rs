//! The command line: what clap is told, and what it gives back.

mod cache;
mod hints;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint, value_parser};
use kvist_kernels::Isa;

use crate::complain;
use crate::failure::{Failure, Result};
use crate::settings::keys::{self, Key, MODEL};
use crate::settings::{Kind, Layers, Settings};

const ROOT_EXAMPLES: &str = "\
Examples:
  kvist serve                        serve the small model compiled into the binary
  kvist doctor                       what this machine can do, and which models are there
  kvist serve Qwen/Qwen3-0.6B        serve a model from the local Hugging Face cache
  kvist run ~/models/Qwen3-0.6B      chat with a model in a directory
  kvist cache ls                     what is kept on disk";

const SERVE_EXAMPLES: &str = "\
Every setting can also be given in the environment (KVIST_MAX_BATCH=32) and in the file of --config (max-batch = 32). \
A flag wins over the environment, the environment over the file. KVIST_CONFIG names the file where --config does not.

MODEL is a directory in Hugging Face form, a .gguf file, or an id in the local Hugging Face cache: org/name, \
org/name@revision, org/name:Q4_K_M for one of several GGUF files. Nothing is downloaded.

Examples:
  kvist serve
  kvist serve Qwen/Qwen3-0.6B
  kvist serve ~/models/Qwen3-0.6B --port 9000 --kv-ram 8GiB
  kvist serve ~/models/Qwen3-0.6B --host 0.0.0.0 --api-key-file keys.txt
  kvist serve --port 9000 --print-config > kvist.toml";

const RUN_EXAMPLES: &str = "\
In the chat: /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.

Examples:
  kvist run
  kvist run ~/models/Qwen3-0.6B --system 'Answer in one sentence.'
  kvist run --prompt 'Tell me a story.'
  printf 'Hello!\\nHow are you?\\n' | kvist run";

const DOCTOR_EXAMPLES: &str = "\
It reads the settings of `kvist serve` from the environment and from --config, and says what serve would do. The exit \
code is 1 if something fails.

Examples:
  kvist doctor
  kvist doctor Qwen/Qwen3-0.6B --ctx 32768
  kvist doctor --json --no-measure";

const BENCH_EXAMPLES: &str = "\
Both measure the machine's limits in the same run and mark the run void if the machine was busy.

Examples:
  kvist bench attention
  kvist bench attention --full --json > attention.json
  kvist bench attention --only 'heads 32/32' --python ~/venv/bin/python --ggml llama.cpp/build/bin
  kvist bench dense
  kvist bench engine --shape qwen2.5-0.5b
  kvist bench store --shape qwen2.5-0.5b --history 2048,4096
  kvist bench engine --model model-Q4_0.gguf --llama-bench llama.cpp/build/bin/llama-bench";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  kvist completions bash > ~/.local/share/bash-completion/completions/kvist
  kvist completions zsh > ~/.zfunc/_kvist
  kvist completions fish > ~/.config/fish/completions/kvist.fish";

/// The whole command line.
pub fn command() -> Command {
    Command::new("kvist")
        .version(env!("CARGO_PKG_VERSION"))
        .about("An LLM inference server that computes every shared prefix once")
        .after_help(ROOT_EXAMPLES)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .max_term_width(110)
        .subcommand(
            Command::new("serve")
                .about("Serve a model over HTTP, with the API of OpenAI")
                .args(settings_args(false))
                .after_help(SERVE_EXAMPLES),
        )
        .subcommand(
            Command::new("run")
                .about("Chat with a model in the terminal")
                .args(run_args())
                .args(settings_args(true))
                .after_help(RUN_EXAMPLES),
        )
        .subcommand(
            Command::new("doctor")
                .about("Say what this machine can do, which models are there, and what fits")
                .args(doctor_args())
                .after_help(DOCTOR_EXAMPLES),
        )
        .subcommand(cache::command())
        .subcommand(bench())
        .subcommand(
            Command::new("completions")
                .about("Print a completion script for a shell")
                .arg(Arg::new("shell").required(true).value_name("SHELL").value_parser(["bash", "zsh", "fish"]))
                .after_help(COMPLETIONS_EXAMPLES),
        )
}

/// Parses the command line; help, version and errors of clap end here, as what to print and the exit code.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> std::result::Result<ArgMatches, (String, u8)> {
    let args: Vec<OsString> = args.into_iter().collect();
    command().try_get_matches_from(&args).map_err(|error| {
        let text = error.render().to_string();
        if !error.use_stderr() {
            return (text, 0);
        }
        let args: Vec<String> = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
        (hints::restyle(&text, &args), 2)
    })
}

fn config_arg() -> Arg {
    Arg::new("config")
        .long("config")
        .value_name("FILE")
        .help("TOML file with any of these settings [env: KVIST_CONFIG]")
        .value_hint(ValueHint::FilePath)
        .value_parser(value_parser!(PathBuf))
}

fn doctor_args() -> Vec<Arg> {
    let flag = |name: &'static str, help: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    let mut args = vec![
        flag("json", "Print everything as JSON"),
        flag("no-measure", "Do not measure bandwidth and arithmetic"),
        config_arg(),
    ];
    args.extend(keys::of(true).map(setting_arg));
    args
}

fn settings_args(run: bool) -> Vec<Arg> {
    let print = Arg::new("print-config")
        .long("print-config")
        .action(ArgAction::SetTrue)
        .help("Print every setting with its origin, as a file for --config, and stop");
    let mut args: Vec<Arg> = keys::of(run).map(setting_arg).collect();
    let common = args.iter().take_while(|arg| arg.get_help_heading().is_none()).count();
    args.splice(common..common, [config_arg(), print]);
    args
}

fn setting_arg(key: &'static Key) -> Arg {
    let default = match key.kind {
        Kind::Flag => String::new(),
        _ => format!(" [default: {}]", key.default.words()),
    };
    let arg = Arg::new(key.name).help(format!("{}{default}", key.help));
    let arg = if key.heading.is_empty() { arg } else { arg.help_heading(key.heading) };
    if key.name == MODEL.name {
        return arg.value_name(key.placeholder).value_hint(ValueHint::AnyPath);
    }
    let arg = arg.long(key.name);
    match key.kind {
        // `--strict-model=false` overrides the environment and the file.
        Kind::Flag => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_name("BOOL")
            .hide_possible_values(true),
        Kind::List(_) => arg.value_name(key.placeholder).action(ArgAction::Append),
        Kind::Choice(choices) => arg.value_name(key.placeholder).value_parser(PossibleValuesParser::new(choices)),
        _ => arg.value_name(key.placeholder),
    }
}

fn run_args() -> Vec<Arg> {
    vec![
        Arg::new("prompt").long("prompt").short('p').value_name("TEXT").help("Answer this, print the answer and leave"),
        Arg::new("system").long("system").value_name("TEXT").help("System prompt"),
        Arg::new("temperature")
            .long("temperature")
            .value_name("T")
            .help("0 = always the most likely token [default: the model's]")
            .allow_negative_numbers(true)
            .value_parser(temperature),
        Arg::new("seed")
            .long("seed")
            .value_name("N")
            .help("Draw the same tokens again [default: a new one each time]")
            .value_parser(value_parser!(u64).range(..=i64::MAX as u64)),
        Arg::new("max-tokens")
            .long("max-tokens")
            .value_name("N")
            .help("Tokens of an answer at most [default: to the end of the context; 256 of the small model]")
            .value_parser(value_parser!(u32).range(1..)),
    ]
}

/// The range of the HTTP API.
fn temperature(text: &str) -> std::result::Result<f32, String> {
    let value: f32 = text.parse().map_err(|_| "it is not a number")?;
    if (0.0..=100.0).contains(&value) { Ok(value) } else { Err("it is not a number from 0 to 100".into()) }
}

fn bench() -> Command {
    let number = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("N").help(help).value_parser(value_parser!(u32).range(1..=1024))
    };
    let peer = |name: &'static str, help: &'static str| {
        let path = Arg::new(name).long(name).value_name("PATH").requires("model").help(help);
        path.value_hint(ValueHint::FilePath).value_parser(value_parser!(PathBuf))
    };
    let isa = Arg::new("isa")
        .long("isa")
        .value_name("PATH")
        .help("Instruction set of the kernels [default: the best of this CPU]")
        .value_parser(PossibleValuesParser::new(Isa::NAMES));
    let json = Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print every figure as JSON");
    let common = [number("threads", "Threads that compute [default: the cores allowed]"), isa, json];
    Command::new("bench")
        .about("Measure kernels and engine beside the limits of this machine")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .after_help(BENCH_EXAMPLES)
        .subcommand(
            Command::new("attention")
                .about("The tree kernel beside itself with the tree off and beside the machine's floor")
                .args([
                    Arg::new("full")
                        .long("full")
                        .action(ArgAction::SetTrue)
                        .help("The standing set of trees with the heads of MHA, GQA and MQA, and other sizes; long"),
                    Arg::new("only").long("only").value_name("TEXT").help("Cases with this in their names"),
                    Arg::new("python")
                        .long("python")
                        .value_name("PATH")
                        .help(
                            "A python whose torch, ggml (of llama_cpp) and chunk_attn, those of them that it has, run in \
                             turns with ours",
                        )
                        .value_hint(ValueHint::FilePath)
                        .value_parser(value_parser!(PathBuf)),
                    Arg::new("ggml")
                        .long("ggml")
                        .value_name("DIR")
                        .requires("python")
                        .help("The libraries of a build of llama.cpp (libggml*.so), instead of those of llama_cpp")
                        .value_hint(ValueHint::DirPath)
                        .value_parser(value_parser!(PathBuf)),
                    Arg::new("plots")
                        .long("plots")
                        .value_name("DIR")
                        .conflicts_with("full")
                        .help("Measure over batch, shared length and depth instead, and write plots there (SVG)")
                        .value_hint(ValueHint::DirPath)
                        .value_parser(value_parser!(PathBuf)),
                    number("repeat", "Timed repetitions of each case [default: 7]"),
                ])
                .args(common.clone()),
        )
        .subcommand(
            Command::new("dense")
                .about("Products with the matrices of well-known models in every form, beside the machine's floor")
                .args([
                    Arg::new("shape")
                        .long("shape")
                        .value_name("SHAPE")
                        .help("One model's shapes [default: all]")
                        .value_parser(PossibleValuesParser::new(kvist_model::shapes::NAMES)),
                    number("repeat", "Timed repetitions of each case [default: 5]"),
                ])
                .args(common.clone()),
        )
        .subcommand(bench_store().args(common.clone()))
        .subcommand(
            Command::new("engine")
                .about("Prefill, decode and batched decode through engine and executor")
                .args([
                    Arg::new("shape")
                        .long("shape")
                        .value_name("SHAPE")
                        .default_value("embedded")
                        .help("Model shape; all but `embedded` have random weights")
                        .value_parser(PossibleValuesParser::new(["embedded", "llama-3.2-1b", "qwen2.5-0.5b"])),
                    Arg::new("model")
                        .long("model")
                        .value_name("MODEL")
                        .conflicts_with("shape")
                        .help("A model of your own: path, or name in the local cache"),
                    peer("llama-bench", "llama.cpp's llama-bench, to run on the same GGUF file in turns"),
                    peer("llama-batched-bench", "The same for what it does not measure: many sequences"),
                    Arg::new("weights")
                        .long("weights")
                        .value_name("FORM")
                        .help("How weights are kept [default: bf16; a --model's as its file says]")
                        .value_parser(PossibleValuesParser::new(["bf16", "q8", "q4"])),
                    Arg::new("kv-type")
                        .long("kv-type")
                        .value_name("TYPE")
                        .default_value("kv16")
                        .help("How whole chunks of KV are kept; bf16 means kv16")
                        .value_parser(PossibleValuesParser::new(["kv16", "kv8", "bf16"])),
                    Arg::new("case")
                        .long("case")
                        .value_name("CASE")
                        .action(ArgAction::Append)
                        .conflicts_with("full")
                        .help("Only this case; may be given several times")
                        .value_parser(PossibleValuesParser::new(crate::bench::engine_cases())),
                    Arg::new("full").long("full").action(ArgAction::SetTrue).help("The long cases, too"),
                    number("turns", "Measurements of each case [default: 3]"),
                ])
                .args(common),
        )
}

fn bench_store() -> Command {
    let list = |name: &'static str, help: &'static str, least: i64| {
        Arg::new(name)
            .long(name)
            .value_name("N,...")
            .help(help)
            .value_delimiter(',')
            .value_parser(value_parser!(u32).range(least..=131_072))
    };
    let choice = |name: &'static str, default: &'static str, of: &'static [&'static str], help: &'static str| {
        let arg = Arg::new(name).long(name).default_value(default).help(help);
        arg.value_parser(PossibleValuesParser::new(of))
    };
    Command::new("store")
        .about("First token of a conversation that comes back: computed again, from RAM, from disk, after a kill -9")
        .args([
            choice(
                "shape",
                "embedded",
                &["embedded", "llama-3.2-1b", "qwen2.5-0.5b"],
                "Model shape; all but `embedded` have random weights",
            )
            .value_name("SHAPE"),
            choice("weights", "q4", &["bf16", "q8", "q4"], "How weights are kept").value_name("FORM"),
            choice("kv-type", "kv16", &["kv16", "kv8", "bf16"], "How whole chunks of KV are kept; bf16 means kv16")
                .value_name("TYPE"),
            list("history", "Tokens of the conversation [default: 2048, or what fits the context]", 64),
            list("new-tokens", "New tokens of the turns beside the 64 of the table [default: 8,32,64,128,256]", 1),
            Arg::new("repeat")
                .long("repeat")
                .value_name("N")
                .help("Turns of each kind [default: 5]")
                .value_parser(value_parser!(u32).range(1..=1024)),
            Arg::new("dir")
                .long("dir")
                .value_name("DIR")
                .help("Where the store is made, and removed [default: the user's cache directory]")
                .value_hint(ValueHint::DirPath)
                .value_parser(value_parser!(PathBuf)),
            Arg::new("throttle")
                .long("throttle")
                .value_name("BYTES/s")
                .help("Hold reads back to this rate and see what is done, turn by turn (2MB)")
                .value_parser(throttle),
            Arg::new("child").long("child").action(ArgAction::SetTrue).hide(true),
        ])
}

fn throttle(text: &str) -> std::result::Result<u64, String> {
    match crate::size::parse(text.trim_end_matches("/s"))? {
        0 => Err("nothing would ever be read".into()),
        rate => Ok(rate),
    }
}

/// Resolves the settings of `serve` or `run` from what was parsed, the process's environment and the file.
pub fn settings(matches: &ArgMatches, run: bool) -> Result<Settings> {
    let mut broken = None;
    let environment = |name: &str| -> Option<std::result::Result<String, OsString>> {
        std::env::var_os(name).map(OsString::into_string)
    };
    for key in keys::of(run) {
        if let Some(Err(value)) = environment(&key.variable()) {
            broken.get_or_insert(Failure::usage(format!("{}: {value:?} is not UTF-8", key.variable()), "correct it"));
        }
    }
    if let Some(failure) = broken {
        return Err(failure);
    }
    for name in std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()) {
        if let Some(warning) = keys::unknown_variable(&name) {
            complain(&warning);
        }
    }
    let file =
        matches.get_one::<PathBuf>("config").cloned().or_else(|| std::env::var_os("KVIST_CONFIG").map(PathBuf::from));
    Settings::resolve(
        run,
        &Layers {
            // `doctor` has not all as flags.
            flags: &|key| Some(matches.try_get_many::<String>(key.name).ok()??.cloned().collect()),
            environment: &|name| environment(name).and_then(std::result::Result::ok),
            file: file.as_deref(),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(args: &[&str]) -> (String, u8) {
        let args = std::iter::once("kvist").chain(args.iter().copied()).map(OsString::from);
        parse(args).expect_err("it must not parse")
    }

    #[test]
    fn the_command_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn misspelt_flags_get_a_suggestion() {
        for (args, expected) in [
            (&["serve", "--prot", "80"][..], "--port"),
            (&["serve", "--kv-rm", "1GiB"], "--kv-ram"),
            (&["serv"], "serve"),
            (&["bench", "engine", "--shape", "llama"], "llama-3.2-1b"),
            (&["serve", "--isa", "sse"], "[possible values: avx512, avx512vnni, avxvnni, avx2, portable]"),
            (&["run", "--temperature", "-1"], "it is not a number from 0 to 100"),
            (&["run", "--temperature", "nan"], "it is not a number from 0 to 100"),
            (&["run", "--seed", "9223372036854775808"], "9223372036854775807"),
            (&["serve", "--model", "x"], "hint: the model is an argument without a flag: kvist serve MODEL"),
            (&["serve", "-c", "4096"], "hint: here it is --ctx"),
            (&["serve", "--api-key", "x"], "hint: keys come from a file"),
            (&["serve", "a", "b"], "hint: `kvist serve --help` lists what there is"),
            (&["bench", "engine", "--turns"], "hint: `kvist bench engine --help` lists"),
            (&["cache", "list"], "hint: a similar subcommand exists: 'ls'"),
            (&["cache", "explain"], "--prompt <TEXT>"),
            (&["doktor"], "hint: a similar subcommand exists: 'doctor'"),
            (&["version"], "hint: `kvist --help` lists"),
        ] {
            let (text, code) = error(args);
            assert_eq!(code, 2);
            assert!(text.starts_with("error: ") && text.contains(expected), "{text}");
            assert!(text.contains("\nhint: ") && !text.contains("tip:"), "{text}");
        }
    }

    #[test]
    fn help_shows_common_flags_first_and_examples_last() {
        let (text, code) = error(&["serve", "--help"]);
        assert_eq!(code, 0);
        let place = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part:?} is missing in\n{text}"));
        assert!(text.starts_with("Serve a model over HTTP"));
        let order = ["[MODEL]", "--host", "--port", "--kv-ram", "--config", "Memory and speed", "Limits:", "Examples:"];
        assert!(order.map(place).is_sorted(), "{text}");
        assert!(text.contains("or what the model leaves of it]"));
        assert_eq!(error(&["--version"]), (format!("kvist {}\n", env!("CARGO_PKG_VERSION")), 0));
    }

    #[test]
    fn settings_are_read_from_flags() {
        let args =
            ["kvist", "serve", "dir", "--port", "9", "--strict-model", "--cors", "http://a", "--cors", "http://b:1"];
        let matches = parse(args.map(OsString::from)).unwrap();
        let settings = settings(matches.subcommand_matches("serve").unwrap(), false).unwrap();
        assert_eq!(settings.text(&MODEL), Some("dir"));
        assert_eq!(settings.number(&keys::PORT), Some(9));
        assert!(settings.flag(&keys::STRICT_MODEL));
        assert_eq!(settings.list(&keys::CORS), ["http://a", "http://b:1"]);
        let args = ["kvist", "serve", "--strict-model=false", "--cors", "off"];
        let matches = parse(args.map(OsString::from)).unwrap();
        let settings = super::settings(matches.subcommand_matches("serve").unwrap(), false).unwrap();
        assert!(!settings.flag(&keys::STRICT_MODEL) && settings.list(&keys::CORS).is_empty());
    }
}
