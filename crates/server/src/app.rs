//! What the handlers share.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use kvist_base::{Clock, ExecutorInfo, Micros, SystemClock, TokenId};
use kvist_store::StoreTier;
use kvist_text::grammar::GrammarFactory;
use kvist_text::{Dialect, ReplyTable};
use tokio::sync::{Semaphore, watch};

use crate::api::error::ApiError;
use crate::api::overflow::{Carried, OnOverflow, Overflow};
use crate::api::params::Bounds;
use crate::auth::Tenant;
use crate::config::{ModelInfo, ServerConfig, TextParts};
use crate::connection::Peer;
use crate::log::RequestLine;
use crate::runner::Runner;

/// The model, once it is loaded.
pub struct Serving {
    pub runner: Runner,
    pub text: TextParts,
    pub replies: ReplyTable,
    pub carried: Carried,
    /// The tier below RAM.
    pub tier: Option<StoreTier>,
    pub grammars: GrammarFactory,
    pub model: ModelInfo,
    pub info: ExecutorInfo,
    /// Tokens that prompt and reply may have together.
    pub room: usize,
    /// Special tokens that are seen in a reply that is read.
    pub kept_tokens: Arc<[TokenId]>,
    /// Bytes of the longest token.
    pub longest_token: usize,
    /// Seconds since 1970 at which the model was ready.
    pub created: u64,
}

impl Serving {
    /// How the model writes calls and reasoning.
    pub fn dialect(&self) -> Dialect {
        self.text.template.as_ref().map(|t| *t.dialect()).unwrap_or_default()
    }

    /// Whether a request may name this model.
    pub fn check_model(&self, name: Option<&str>, bounds: &Bounds) -> Result<(), ApiError> {
        match name {
            Some(name) if bounds.strict_model && name != self.model.id => Err(self.other_model()),
            _ => Ok(()),
        }
    }

    /// The answer to who asks for another model.
    pub fn other_model(&self) -> ApiError {
        ApiError {
            param: Some("model".into()),
            code: Some("model_not_found"),
            ..ApiError::not_found(format!("the model served here is `{}`", self.model.id))
        }
    }

    /// What becomes of a tenant's conversation that does not fit. `make`: it is about to be computed.
    pub fn overflow(&self, tenant: &Tenant, on: OnOverflow, make: bool) -> Overflow<'_> {
        let store = self.tier.as_ref().map(StoreTier::store);
        Overflow { on, room: self.room, owner: tenant.into(), carried: &self.carried, store, make }
    }

    /// Text of more bytes cannot fit into the context, whatever its tokens are.
    pub fn most_bytes(&self) -> usize {
        self.room.saturating_mul(self.longest_token)
    }

    /// Refuses a text that is too long for sure, before any work is spent on its tokens.
    pub fn check_length(&self, bytes: usize) -> Result<(), ApiError> {
        if bytes <= self.most_bytes() {
            return Ok(());
        }
        let least = bytes.div_ceil(self.longest_token.max(1));
        let room = self.room;
        Err(ApiError::context_length(format!(
            "the context is {room} tokens, but the prompt alone has at least {least}"
        )))
    }
}

/// Who sent a request, and when.
#[derive(Clone)]
pub struct Caller {
    pub tenant: Tenant,
    pub arrival: Micros,
    pub line: Arc<RequestLine>,
    pub peer: Peer,
}

pub struct App {
    pub config: ServerConfig,
    pub clock: Arc<dyn Clock>,
    pub serving: OnceLock<Arc<Serving>>,
    pub connections: AtomicUsize,
    pub spliced: AtomicU64,
    /// Fields of requests that nothing looked at.
    pub ignored: AtomicU64,
    /// Conversations that are parsed and tokenised at once.
    pub text_slots: Arc<Semaphore>,
    /// Grammars that are compiled at once.
    pub grammar_slots: Arc<Semaphore>,
    /// Set once the server takes no more requests.
    pub closing: watch::Sender<bool>,
    ids: AtomicU64,
    random: RandomState,
}

impl App {
    pub fn new(config: ServerConfig) -> Self {
        let cores = std::thread::available_parallelism().map_or(4, usize::from);
        App {
            config,
            clock: Arc::new(SystemClock::new()),
            serving: OnceLock::new(),
            connections: AtomicUsize::new(0),
            spliced: AtomicU64::new(0),
            ignored: AtomicU64::new(0),
            text_slots: Arc::new(Semaphore::new(cores)),
            grammar_slots: Arc::new(Semaphore::new(cores.div_ceil(4))),
            closing: watch::Sender::new(false),
            ids: AtomicU64::new(0),
            random: RandomState::new(),
        }
    }

    /// The model, or the error that answers a request until it is there.
    pub fn serving(&self) -> Result<Arc<Serving>, ApiError> {
        let serving = self.serving.get().ok_or_else(|| ApiError::unavailable("the model is being loaded"))?;
        if serving.runner.shared.gone() {
            return Err(ApiError::unavailable("the engine has stopped"));
        }
        Ok(serving.clone())
    }

    /// Different for each call and each process; not a secret.
    pub fn next_id(&self) -> String {
        let n = self.ids.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}{n:08x}", self.random.hash_one(n))
    }

    /// For requests that name no seed.
    pub fn next_seed(&self) -> u64 {
        self.random.hash_one(("seed", self.ids.fetch_add(1, Ordering::Relaxed)))
    }

    pub fn spliced(&self, tokens: usize) {
        self.spliced.fetch_add(tokens as u64, Ordering::Relaxed);
    }

    pub fn ignored(&self, fields: usize) {
        self.ignored.fetch_add(fields as u64, Ordering::Relaxed);
    }

    /// Seconds since 1970.
    pub fn unix_time(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
    }
}
