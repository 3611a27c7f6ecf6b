use std::fmt;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kvist_base::{Executor, TokenId};
use kvist_engine::{Engine, EngineStats};
use kvist_store::Store;
use kvist_text::ReplyTable;
use kvist_text::grammar::{GrammarFactory, GrammarLimits};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::api::generate::room;
use crate::api::overflow::Carried;
use crate::app::{App, Serving};
use crate::auth::{Keys, OPERATOR};
use crate::config::{ModelInfo, ServerConfig, TextParts};
use crate::connection::{serve, turn_away};
use crate::keep::{Keeper, REPLY, recall};
use crate::log::Log;
use crate::routes::router;
use crate::runner::Runner;

/// After a failed accept (out of file descriptors, say) before the next try.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// For telling clients that their requests were cancelled at shutdown.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Clients at once that are told that there are too many.
const MAX_TURNED_AWAY: usize = 32;
/// Between two lines about the same trouble.
const LOG_PAUSE: Duration = Duration::from_secs(60);

/// Says at most one line per [`LOG_PAUSE`].
#[derive(Default)]
struct Rarely {
    last: Option<Instant>,
}

impl Rarely {
    fn say(&mut self, log: &Log, line: impl FnOnce() -> String) {
        let now = Instant::now();
        if self.last.is_none_or(|last| now.duration_since(last) >= LOG_PAUSE) {
            self.last = Some(now);
            log(&line());
        }
    }
}

/// An HTTP server for one model. Cheap to clone; all clones are one server.
#[derive(Clone)]
pub struct Server {
    app: Arc<App>,
}

impl Server {
    /// A server that can answer at once.
    ///
    /// # Errors
    /// If the engine thread cannot be started.
    pub fn new(
        config: ServerConfig,
        engine: Engine,
        executor: Box<dyn Executor>,
        text: TextParts,
        model: ModelInfo,
    ) -> io::Result<Server> {
        let server = Server::loading(config);
        server.install(engine, executor, None, text, model)?;
        Ok(server)
    }

    /// A server without a model: `/health` says 503 until [`Self::install`].
    pub fn loading(config: ServerConfig) -> Server {
        Server { app: Arc::new(App::new(config)) }
    }

    /// Starts serving a model. Also while [`Self::run`] runs.
    ///
    /// # Errors
    /// If the engine thread cannot be started, or there is a model already.
    pub fn install(
        &self,
        engine: Engine,
        executor: Box<dyn Executor>,
        keeper: Option<Keeper>,
        mut text: TextParts,
        model: ModelInfo,
    ) -> io::Result<()> {
        let app = &self.app;
        let mut kept_tokens = Vec::new();
        if let Some(template) = &mut text.template {
            template.learn_dialect(app.config.tool_format, app.config.reasoning);
            kept_tokens = template.dialect().kept_tokens(&text.tokenizer);
        }
        let info = executor.info().clone();
        let tier = keeper.as_ref().map(|keeper| keeper.tier().clone());
        let (clock, buffer, log) = (app.clock.clone(), app.config.stream_buffer, app.config.log.clone());
        let runner = Runner::start(engine, executor, keeper, clock, buffer, log)?;
        let lengths = (0..text.tokenizer.vocab_size()).map(|id| text.tokenizer.token_bytes(id as TokenId).len());
        let longest_token = lengths.max().unwrap_or(0);
        let mut replies = ReplyTable::new(app.config.reply_bytes);
        if let Some(tier) = &tier {
            keep_replies(&mut replies, tier.store(), app.config.keys.as_ref());
        }
        let serving = Serving {
            runner,
            grammars: GrammarFactory::new(&text.tokenizer, GrammarLimits::default()),
            text,
            replies,
            carried: Carried::default(),
            tier,
            model,
            room: room(info.context, info.chunks),
            kept_tokens: kept_tokens.into(),
            longest_token,
            info,
            created: app.unix_time(),
        };
        app.serving.set(Arc::new(serving)).map_err(|_| io::Error::other("the server has a model already"))
    }

    pub(crate) fn app(&self) -> &App {
        &self.app
    }

    /// The engine's state after its last step; `None` without a model.
    pub fn stats(&self) -> Option<EngineStats> {
        self.app.serving.get().map(|s| s.runner.shared.stats())
    }

    /// Serves connections until `shutdown` completes; then takes no more, lets running requests finish for
    /// [`ServerConfig::shutdown_timeout`], cancels the rest, and stops the engine thread.
    pub async fn run(&self, listener: TcpListener, shutdown: impl Future<Output = ()>) {
        let app = &self.app;
        let router = router(app.clone());
        let mut connections = JoinSet::new();
        let mut turned_away = JoinSet::new();
        let (mut full, mut failing) = (Rarely::default(), Rarely::default());
        let mut shutdown = pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => break,
                accepted = listener.accept() => accepted,
            };
            while connections.try_join_next().is_some() {}
            while turned_away.try_join_next().is_some() {}
            match accepted {
                Ok((stream, _)) if connections.len() >= app.config.max_connections => {
                    full.say(&app.config.log, || {
                        format!("error: all {} connections are taken; more are turned away", connections.len())
                    });
                    // Beyond that, closing says enough.
                    if turned_away.len() < MAX_TURNED_AWAY {
                        turned_away.spawn(turn_away(stream));
                    }
                }
                Ok((stream, _)) => {
                    connections.spawn(counted(app.clone(), router.clone(), stream));
                }
                // The listener itself stays sound: it is the connection or a shortage that failed.
                Err(e) => {
                    failing.say(&app.config.log, || format!("error: a connection cannot be accepted: {e}"));
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        let running = self.stats().map_or(0, |s| s.known);
        (app.config.log)(&format!("stopping: {running} requests running; signal again to stop now"));
        app.closing.send_replace(true);
        let all = async |connections: &mut JoinSet<()>| while connections.join_next().await.is_some() {};
        if timeout(app.config.shutdown_timeout, all(&mut connections)).await.is_err() {
            if let Some(serving) = app.serving.get() {
                serving.runner.cancel_all();
            }
            let _ = timeout(LAST_WORDS, all(&mut connections)).await;
        }
        connections.shutdown().await;
        if let Some(serving) = app.serving.get().cloned() {
            // Waits for the step in flight, so not on an async thread.
            let _ = tokio::task::spawn_blocking(move || serving.runner.stop()).await;
        }
    }
}

async fn counted(app: Arc<App>, router: axum::Router, stream: TcpStream) {
    struct Count(Arc<App>);
    impl Drop for Count {
        fn drop(&mut self) {
            self.0.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
    app.connections.fetch_add(1, Ordering::Relaxed);
    let count = Count(app.clone());
    serve(app, router, stream).await;
    drop(count);
}

/// Why a port cannot be listened on, with a hint.
#[derive(Debug)]
pub struct BindError {
    pub address: String,
    pub source: io::Error,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hint = match self.source.kind() {
            io::ErrorKind::AddrInUse => "another program listens there; choose another `--port`, or 0 for a free one",
            io::ErrorKind::PermissionDenied => "ports below 1024 need privileges; choose a higher `--port`",
            io::ErrorKind::AddrNotAvailable => "no interface of this machine has that address; check `--host`",
            _ => "check `--host` and `--port`",
        };
        write!(f, "cannot listen on {}: {}\nhint: {hint}", self.address, self.source)
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Listens on a host (name or address) and port; port 0 takes a free one.
pub async fn bind(host: &str, port: u16) -> Result<TcpListener, BindError> {
    TcpListener::bind((host, port)).await.map_err(|source| BindError { address: format!("{host}:{port}"), source })
}

/// Fills the table with what the store remembers, and has it remember what comes.
fn keep_replies(replies: &mut ReplyTable, store: &Store, keys: Option<&Keys>) {
    let tenants = keys.map(Keys::tenants).into_iter().flatten().map(|tenant| tenant.domain);
    for domain in tenants.chain([OPERATOR]) {
        recall(replies, store, domain);
    }
    let store = store.clone();
    replies.tell(Box::new(move |domain, key, ids| {
        store.put_note(domain, REPLY, key, ids);
    }));
}
