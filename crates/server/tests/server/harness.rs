//! A server on a port of its own, with the embedded model's tokenizer and the fake executor.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvist_base::Executor;
use kvist_engine::{Engine, EngineConfig, EngineStats};
use kvist_server::{ModelInfo, SamplingDefaults, Server, ServerConfig, TextParts};
use kvist_text::{ChatTemplate, Tokenizer};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::client::{Connection, Events, Reply};
use crate::fake::{EOS, Fake, Knobs, SPECIAL, VOCAB};

pub struct Setup {
    pub server: ServerConfig,
    pub engine: EngineConfig,
    pub chunks: u32,
    pub context: usize,
    pub eos_every: u64,
    /// Draw only tokens of printable ASCII.
    pub ascii: bool,
    /// The model's default.
    pub repetition_penalty: f32,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            server: ServerConfig::default(),
            engine: EngineConfig::default(),
            chunks: 512,
            context: 4096,
            eos_every: 0,
            ascii: false,
            repetition_penalty: 1.0,
        }
    }
}

pub struct Harness {
    pub addr: SocketAddr,
    pub server: Server,
    pub knobs: Arc<Knobs>,
    pub log: Arc<Mutex<Vec<String>>>,
    runtime: Option<tokio::runtime::Runtime>,
    stop: Option<oneshot::Sender<()>>,
    ended: Option<tokio::task::JoinHandle<()>>,
}

pub fn tokenizer() -> Tokenizer {
    Tokenizer::from_file(&model_file("tokenizer.json")).unwrap()
}

fn model_file(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/model").join(name)
}

pub fn parts() -> (TextParts, ModelInfo) {
    let config: Value = serde_json::from_slice(&std::fs::read(model_file("tokenizer_config.json")).unwrap()).unwrap();
    let template = ChatTemplate::from_config(&config, None).unwrap();
    let text = TextParts { tokenizer: tokenizer(), template: Some(template) };
    let defaults = SamplingDefaults { temperature: 0.0, ..SamplingDefaults::default() };
    (text, ModelInfo { id: "kvist-test".into(), eos: vec![0, EOS], defaults })
}

impl Harness {
    pub fn start() -> Harness {
        Harness::with(Setup::default())
    }

    pub fn with(setup: Setup) -> Harness {
        let harness = Harness::loading(setup.server.clone());
        harness.install(setup);
        harness
    }

    pub fn loading(mut config: ServerConfig) -> Harness {
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = log.clone();
        config.log = Arc::new(move |line: &str| lines.lock().unwrap().push(line.to_owned()));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let server = Server::loading(config);
        let listener = runtime.block_on(kvist_server::bind("127.0.0.1", 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let run = server.clone();
        let ended = runtime.spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            run.run(listener, stopped).await;
        });
        let knobs = Arc::new(Knobs::default());
        Harness { addr, server, knobs, log, runtime: Some(runtime), stop: Some(stop), ended: Some(ended) }
    }

    /// Gives the server its model; `setup.server` counts no more.
    pub fn install(&self, setup: Setup) {
        let Setup { engine, chunks, context, eos_every, ascii, repetition_penalty, .. } = setup;
        let (text, mut model) = parts();
        model.defaults.repetition_penalty = repetition_penalty;
        let printable = |&id: &u32| text.tokenizer.token_bytes(id).iter().all(|b| (b' '..=b'~').contains(b));
        let drawn = (SPECIAL..VOCAB as u32).filter(|id| !ascii || printable(id)).collect();
        let executor = Fake::new(chunks, context, eos_every, drawn, self.knobs.clone());
        let engine = Engine::new(engine, executor.info().clone());
        self.server.install(engine, Box::new(executor), None, text, model).unwrap();
    }

    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut connection = Connection::open(self.addr);
        connection.send(method, path, headers, body);
        connection.reply().unwrap()
    }

    pub fn get(&self, path: &str) -> Reply {
        self.request("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.request("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    pub fn chat(&self, body: Value) -> Reply {
        self.post("/v1/chat/completions", &with_messages(body))
    }

    pub fn complete(&self, body: &Value) -> Reply {
        self.post("/v1/completions", body)
    }

    /// Starts a stream and checks its head.
    pub fn open(&self, path: &str, body: &Value) -> Events {
        let mut connection = Connection::open(self.addr);
        connection.send("POST", path, &[], body.to_string().as_bytes());
        let head = connection.head().unwrap();
        assert_eq!(head.status, 200);
        assert_eq!(head.header("content-type"), Some("text/event-stream; charset=utf-8"));
        Events::new(connection)
    }

    /// A whole stream: the chunks before `[DONE]`, which must be there.
    pub fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut events = self.open(path, body).rest();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"));
        events.iter().map(|e| serde_json::from_str(e).unwrap()).collect()
    }

    pub fn stats(&self) -> EngineStats {
        self.server.stats().unwrap()
    }

    /// Waits until something is so.
    pub fn until(&self, what: &str, mut so: impl FnMut(&EngineStats) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !so(&self.stats()) {
            assert!(Instant::now() < deadline, "never came: {what}; {:?}", self.stats());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for a log line.
    pub fn until_log(&self, so: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.log.lock().unwrap().iter().any(|l| so(l)) {
            assert!(Instant::now() < deadline, "no such line: {:?}", self.log.lock().unwrap());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Nothing is known, nothing is pinned.
    pub fn until_empty(&self) {
        self.until("an empty engine", |s| s.known == 0 && s.waiting == 0 && s.running == 0 && s.cache.pinned == 0);
    }

    /// The value of a metric without further labels than the common ones, or with those given.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let (name, labels) = name.split_once('{').unwrap_or((name, ""));
        let line = text.lines().find(|l| l.split('{').next() == Some(name) && l.contains(labels.trim_end_matches('}')));
        let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Asks for the shutdown.
    pub fn stop(&mut self) {
        let _ = self.stop.take().map(|s| s.send(()));
    }

    /// Waits for the end of `run`.
    pub fn wait(&mut self) {
        let ended = self.ended.take().unwrap();
        self.runtime.as_ref().unwrap().block_on(async {
            tokio::time::timeout(Duration::from_secs(60), ended).await.expect("run ends").unwrap();
        });
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.knobs.open();
        self.knobs.delay.store(0, Ordering::Relaxed);
        self.stop();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(10));
        }
    }
}

pub fn with_messages(mut body: Value) -> Value {
    if body.get("messages").is_none() {
        body["messages"] = json!([{"role": "user", "content": "Tell me of the sea."}]);
    }
    body
}

/// The text that a stream's chunks carry for one choice.
pub fn text_of(chunks: &[Value], index: u64) -> String {
    let mut text = String::new();
    for choice in chunks.iter().flat_map(|c| c["choices"].as_array().unwrap()).filter(|c| c["index"] == index) {
        let delta = if choice.get("delta").is_some() { &choice["delta"]["content"] } else { &choice["text"] };
        text.push_str(delta.as_str().unwrap_or(""));
    }
    text
}
