//! Every setting: its name as a flag (`--max-batch`), in the environment (`KVIST_MAX_BATCH`) and in a configuration file
//! (`max-batch`), its default and its help are one entry.

use Fallback::{Found, Is};
use kvist_kernels::Isa;
use kvist_server::ToolSetting;

use super::value::{Kind, Value, anything, origin};
use crate::nearest::distance;

#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    /// What stands for the value in the help.
    pub placeholder: &'static str,
    pub help: &'static str,
    /// Heading in the help; "" = among the first.
    pub heading: &'static str,
    pub kind: Kind,
    pub default: Fallback,
    /// Whether `run` has it too; `serve` has all.
    pub run: bool,
}

#[derive(Debug)]
pub enum Fallback {
    Is(&'static str),
    /// Found out at start; the words describe how.
    Found(&'static str),
}

impl Fallback {
    /// As the help shows it.
    pub fn words(&self) -> &'static str {
        match self {
            Fallback::Is(text) | Fallback::Found(text) => text,
        }
    }
}

impl Key {
    /// Name of its environment variable.
    pub fn variable(&self) -> String {
        format!("KVIST_{}", self.name.to_ascii_uppercase().replace('-', "_"))
    }

    pub fn parse(&self, text: &str) -> Result<Value, String> {
        self.kind.parse(text)
    }
}

const SOME: Kind = Kind::Number { least: 1, most: i64::MAX as u64 };

const SECONDS: Kind = Kind::Number { least: 1, most: 86_400 };

const fn key(name: &'static str, placeholder: &'static str, kind: Kind, default: Fallback, help: &'static str) -> Key {
    Key { name, placeholder, help, heading: "", kind, default, run: false }
}

impl Key {
    const fn under(self, heading: &'static str) -> Key {
        Key { heading, ..self }
    }

    const fn also_in_run(self) -> Key {
        Key { run: true, ..self }
    }
}

const MEMORY: &str = "Memory and speed";
const LIMITS: &str = "Limits";
const ACCESS: &str = "Access and naming";

pub static MODEL: Key = key(
    "model",
    "MODEL",
    Kind::Text,
    Found("the small model compiled into the binary"),
    "Directory, .gguf file, or id in the local Hugging Face cache (org/name)",
)
.also_in_run();
pub static HOST: Key =
    key("host", "ADDRESS", Kind::Text, Is("127.0.0.1"), "Address to listen on; one that others reach needs keys");
pub static PORT: Key =
    key("port", "PORT", Kind::Number { least: 0, most: 65535 }, Is("8080"), "Port to listen on; 0 = any free one");
pub static CTX: Key = key(
    "ctx",
    "TOKENS",
    Kind::Number { least: 64, most: i64::MAX as u64 },
    Found("the model's, or what --kv-ram holds"),
    "Context: tokens of a prompt and its reply at most",
)
.also_in_run();
pub static KV_RAM: Key = key(
    "kv-ram",
    "SIZE",
    Kind::Size,
    Found("a quarter of free memory, or what the model leaves of it"),
    "Memory for the KV cache, e.g. 4GiB",
)
.also_in_run();
pub static KV_DISK: Key = key(
    "kv-disk",
    "SIZE",
    Kind::SizeOrOff,
    Found("10GiB, or a tenth of the free disk"),
    "Disk for the KV cache, which lets conversations survive restarts; off: nothing is kept on disk",
);
pub static KV_DIR: Key = key(
    "kv-dir",
    "DIR",
    Kind::Text,
    Found("kvist/kv in the user's cache directory"),
    "Where the KV cache is kept on disk, encrypted",
);
pub static KV_KEY_FILE: Key = key(
    "kv-key-file",
    "FILE",
    Kind::Text,
    Found("kvist/kv.key in the user's configuration directory"),
    "Key under which the tenants' keys are kept; made if it is missing; off: no encryption, only checksums",
)
.under(MEMORY);
pub static THREADS: Key =
    key("threads", "N", Kind::Number { least: 1, most: 1024 }, Found("the cores allowed"), "Threads that compute")
        .also_in_run();
pub static API_KEY_FILE: Key = key(
    "api-key-file",
    "FILE",
    Kind::Text,
    Found("none: open to whoever reaches it"),
    "Keys, one `name key` or `name sha256:HEX` a line; each name is a tenant",
);

pub static ISA: Key =
    key("isa", "PATH", Kind::Choice(&Isa::NAMES), Found("the best of this CPU"), "Instruction set of the kernels")
        .under(MEMORY)
        .also_in_run();
pub static WEIGHTS: Key = key(
    "weights",
    "FORM",
    Kind::Choice(&["file", "bf16", "q8", "q4"]),
    Is("file"),
    "How weights are kept: as the file says, or floats as bf16, in 8 bits or in 4",
)
.under(MEMORY)
.also_in_run();
pub static KV_TYPE: Key = key(
    "kv-type",
    "TYPE",
    Kind::Choice(&["kv16", "kv8", "bf16"]),
    Is("kv16"),
    "How the cache keeps whole chunks: in 16 bits or in 8; bf16 means kv16",
)
.under(MEMORY)
.also_in_run();
pub static MAX_STEP_TOKENS: Key = key(
    "max-step-tokens",
    "N",
    Kind::Number { least: 32, most: 65536 },
    Is("512"),
    "Tokens computed in one step at most",
)
.under(MEMORY)
.also_in_run();
pub static MAX_BATCH: Key = key(
    "max-batch",
    "N",
    Kind::Number { least: 1, most: 65536 },
    Is("64"),
    "Sequences that are generated at once at most",
)
.under(MEMORY);
pub static ITL_TARGET_MS: Key = key(
    "itl-target-ms",
    "MS",
    Kind::Number { least: 1, most: 3_600_000 },
    Is("100"),
    "Time between two tokens of a reply that is aimed at while prompts are computed beside it",
)
.under(MEMORY);

pub static MAX_QUEUE: Key = key("max-queue", "N", SOME, Is("512"), "Requests that wait at most").under(LIMITS);
pub static MAX_BODY: Key = key(
    "max-body",
    "SIZE",
    Kind::Size,
    Found("16 bytes per context token, 64KiB at least"),
    "Size of a request at most",
)
.under(LIMITS);
pub static MAX_N: Key = key("max-n", "N", SOME, Is("16"), "Choices of one request at most").under(LIMITS);
pub static ON_OVERFLOW: Key = key(
    "on-overflow",
    "WHAT",
    Kind::Choice(&["error", "truncate"]),
    Is("error"),
    "A conversation longer than the context: refuse it, or drop its oldest turns after the system prompt and keep the KV \
     of the rest; requests may say `truncation` themselves",
)
.under(LIMITS);
pub static REPLY_RAM: Key = key(
    "reply-ram",
    "SIZE",
    Kind::Size,
    Is("64MiB"),
    "Memory for the tokens of replies, so that later turns hit them as generated",
)
.under(LIMITS);
pub static MAX_CONNECTIONS: Key = key(
    "max-connections",
    "N",
    Kind::Number { least: 1, most: 1 << 20 },
    Is("900"),
    "Connections open at once at most; the limit of open files less 64 bounds it too",
)
.under(LIMITS);
pub static IDLE_TIMEOUT: Key =
    key("idle-timeout", "SECONDS", SECONDS, Is("75"), "Until a connection that sends nothing is closed").under(LIMITS);
pub static HEADER_TIMEOUT: Key =
    key("header-timeout", "SECONDS", SECONDS, Is("10"), "For the headers of a request to arrive").under(LIMITS);
pub static BODY_TIMEOUT: Key =
    key("body-timeout", "SECONDS", SECONDS, Is("300"), "For the body of a request to arrive").under(LIMITS);
pub static BODY_IDLE_TIMEOUT: Key =
    key("body-idle-timeout", "SECONDS", SECONDS, Is("30"), "Between two pieces of a body").under(LIMITS);
pub static WRITE_TIMEOUT: Key =
    key("write-timeout", "SECONDS", SECONDS, Is("30"), "Until a client that takes nothing is dropped").under(LIMITS);
pub static SHUTDOWN_TIMEOUT: Key = key(
    "shutdown-timeout",
    "SECONDS",
    Kind::Number { least: 0, most: 86_400 },
    Is("30"),
    "For running requests to end after SIGTERM or Ctrl-C",
)
.under(LIMITS);

pub static ALLOW_UNAUTHENTICATED: Key =
    key("allow-unauthenticated", "", Kind::Flag, Is("false"), "Listen on a public address without keys").under(ACCESS);
pub static CORS: Key = key(
    "cors",
    "ORIGIN",
    Kind::List(origin),
    Is("off"),
    "Origin whose web pages may call the server (repeatable; * = any)",
)
.under(ACCESS);
pub static METRICS_KEY: Key = key(
    "metrics-key",
    "NAME",
    Kind::Text,
    Found("none: with keys, nobody reads it"),
    "Name in the key file whose key reads /metrics, which shows the traffic of all",
)
.under(ACCESS);
pub static STRICT_MODEL: Key =
    key("strict-model", "", Kind::Flag, Is("false"), "Answer 404 to requests that name another model").under(ACCESS);
pub static SERVED_MODEL_NAME: Key = key(
    "served-model-name",
    "NAME",
    Kind::Text,
    Found("the model's id, directory or file"),
    "Model id that clients see",
)
.under(ACCESS);
pub static PUBLIC_PROMPT: Key = key(
    "public-prompt",
    "FILE",
    Kind::List(anything),
    Found("none"),
    "System prompt that is computed at start and shared by all tenants (repeatable); while nobody uses it, it may be \
     evicted like any other",
)
.under(ACCESS);
pub static TOOL_FORMAT: Key = key(
    "tool-format",
    "FORMAT",
    Kind::Choice(&ToolSetting::NAMES),
    Is("auto"),
    "How the model writes calls of tools; auto = as its chat template has it, none = replies are not searched for calls",
)
.under(ACCESS);
pub static REASONING: Key = key(
    "reasoning",
    "WHEN",
    Kind::Choice(&["auto", "off"]),
    Is("auto"),
    "Tell reasoning apart from content where the chat template has marks for it",
)
.under(ACCESS);
pub static LOG_LEVEL: Key = key(
    "log-level",
    "LEVEL",
    Kind::Choice(&["off", "error", "info"]),
    Is("info"),
    "What is logged to standard error; never prompts or replies",
)
.under(ACCESS);

/// All of them, in the order of the help.
pub static ALL: [&Key; 37] = [
    &MODEL,
    &HOST,
    &PORT,
    &CTX,
    &KV_RAM,
    &KV_DISK,
    &KV_DIR,
    &THREADS,
    &API_KEY_FILE,
    &ISA,
    &WEIGHTS,
    &KV_TYPE,
    &KV_KEY_FILE,
    &MAX_BATCH,
    &MAX_STEP_TOKENS,
    &ITL_TARGET_MS,
    &MAX_QUEUE,
    &MAX_BODY,
    &MAX_N,
    &ON_OVERFLOW,
    &REPLY_RAM,
    &MAX_CONNECTIONS,
    &IDLE_TIMEOUT,
    &HEADER_TIMEOUT,
    &BODY_TIMEOUT,
    &BODY_IDLE_TIMEOUT,
    &WRITE_TIMEOUT,
    &SHUTDOWN_TIMEOUT,
    &ALLOW_UNAUTHENTICATED,
    &METRICS_KEY,
    &STRICT_MODEL,
    &SERVED_MODEL_NAME,
    &PUBLIC_PROMPT,
    &TOOL_FORMAT,
    &REASONING,
    &CORS,
    &LOG_LEVEL,
];

/// The settings of a command.
pub fn of(run: bool) -> impl Iterator<Item = &'static Key> {
    ALL.into_iter().filter(move |key| key.run || !run)
}

/// What to tell of a variable that looks like a setting's and is none.
pub fn unknown_variable(name: &str) -> Option<String> {
    const CONFIG: &str = "KVIST_CONFIG";
    if !name.starts_with("KVIST_") {
        return None;
    }
    let known = || ALL.into_iter().map(Key::variable).chain([CONFIG.into()]);
    if known().any(|variable| variable == name) {
        return None;
    }
    let nearest = known().min_by_key(|variable| distance(variable, name)).unwrap_or_default();
    Some(format!("warning: there is no setting {name}; the nearest is {nearest}"))
}
