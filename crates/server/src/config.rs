use std::time::Duration;

use kvist_base::TokenId;
use kvist_text::{ChatTemplate, Tokenizer, ToolSetting};

use crate::api::overflow::OnOverflow;
use crate::auth::Keys;
use crate::log::{Log, stderr_log};

/// Every bound of the edge; the operator sees and sets them.
#[derive(Clone)]
pub struct ServerConfig {
    /// Who may ask. `None`: everybody, all in the operator's domain.
    pub keys: Option<Keys>,
    /// The name of the only key that `/metrics` answers: what it shows is everybody's traffic. `None`: no key's. Without
    /// `keys` it is open.
    pub metrics_key: Option<String>,
    /// The name by which clients reach the server. Without `keys` requests for other names are refused, unless they are
    /// addresses or `localhost`: else any web page could reach a server on a private address by a name of its own.
    pub host: Option<String>,
    /// Origins that browsers may call from (`https://host`, or `*`). Empty: none.
    pub cors: Vec<String>,
    /// A request that names another model than the served one gets 404.
    pub strict_model: bool,
    /// What becomes of conversations that do not fit, unless they say so themselves.
    pub on_overflow: OnOverflow,
    /// Bytes of a request body at most.
    pub max_body: usize,
    /// Connections open at once at most; one more is answered 503 and closed.
    pub max_connections: usize,
    /// Choices of one request at most.
    pub max_n: u32,
    /// Prompts of one completions request at most.
    pub max_prompts: usize,
    /// A connection that sends nothing is closed after this, be it new or between two requests.
    pub idle_timeout: Duration,
    /// From the first byte of a request to the end of its headers.
    pub header_timeout: Duration,
    /// Between two pieces of a body.
    pub body_idle_timeout: Duration,
    /// For a whole body.
    pub body_timeout: Duration,
    /// A client that takes nothing for this long is dropped.
    pub write_timeout: Duration,
    /// Silence in a stream after which a comment line keeps it alive.
    pub ping_interval: Duration,
    /// How long running requests may go on after a shutdown was asked for.
    pub shutdown_timeout: Duration,
    /// Tokens of one choice that wait for a stream's reader at most; a reader further behind loses its request.
    pub stream_buffer: usize,
    /// Bytes of generated ids remembered for later turns.
    pub reply_bytes: usize,
    /// How calls of tools are written in replies.
    pub tool_format: ToolSetting,
    /// Whether reasoning is told apart from content.
    pub reasoning: bool,
    /// Where log lines go. They never contain prompts or replies.
    pub log: Log,
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            keys: None,
            metrics_key: None,
            host: None,
            cors: Vec::new(),
            strict_model: false,
            on_overflow: OnOverflow::Error,
            max_body: 2 << 20,
            max_connections: 4096,
            max_n: 16,
            max_prompts: 64,
            idle_timeout: Duration::from_secs(75),
            header_timeout: Duration::from_secs(10),
            body_idle_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(300),
            write_timeout: Duration::from_secs(30),
            ping_interval: Duration::from_secs(15),
            shutdown_timeout: Duration::from_secs(30),
            stream_buffer: 8192,
            reply_bytes: 64 << 20,
            tool_format: ToolSetting::Auto,
            reasoning: true,
            log: stderr_log(),
        }
    }
}

/// What a request that names no sampling parameters gets (a model's `generation_config.json`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingDefaults {
    pub temperature: f32,
    /// 0 = off.
    pub top_k: u32,
    pub top_p: f32,
    pub min_p: f32,
    /// 1 = off.
    pub repetition_penalty: f32,
}

impl Default for SamplingDefaults {
    fn default() -> Self {
        SamplingDefaults { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0 }
    }
}

/// What the served model is, as far as clients see it.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// The id that `/v1/models` and every answer name.
    pub id: String,
    /// Tokens that end a reply.
    pub eos: Vec<TokenId>,
    pub defaults: SamplingDefaults,
}

/// The model's text side.
pub struct TextParts {
    pub tokenizer: Tokenizer,
    /// Without one only the completions endpoint works.
    pub template: Option<ChatTemplate>,
}
