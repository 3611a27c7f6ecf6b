//! `kvist serve`: from the command line to a server that answers, and back.

use std::future::Future;
use std::net::ToSocketAddrs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::ArgMatches;
use kvist_server::{
    Keys, Log, ModelInfo, OnOverflow, SamplingDefaults, Server, ServerConfig, TextParts, shutdown_signal, stderr_log,
};
use tokio::net::TcpListener;

use crate::driver::Driver;
use crate::failure::{Failure, Result};
use crate::load::{self, Plan};
use crate::page::Page;
use crate::public;
use crate::settings::keys::{
    ALLOW_UNAUTHENTICATED, API_KEY_FILE, BODY_IDLE_TIMEOUT, BODY_TIMEOUT, CORS, HEADER_TIMEOUT, HOST, IDLE_TIMEOUT,
    LOG_LEVEL, MAX_BODY, MAX_CONNECTIONS, MAX_N, METRICS_KEY, ON_OVERFLOW, PORT, PUBLIC_PROMPT, REASONING, REPLY_RAM,
    SERVED_MODEL_NAME, SHUTDOWN_TIMEOUT, STRICT_MODEL, TOOL_FORMAT, WRITE_TIMEOUT,
};
use crate::settings::{Settings, Value};
use crate::{complain, machine, say, store};

/// Requests of a short context may still carry long tool descriptions and parameters.
const LEAST_BODY: u64 = 64 << 10;
const BODY_BYTES_PER_TOKEN: u64 = 16;

pub fn run(matches: &ArgMatches, mut settings: Settings) -> Result<()> {
    let started = Instant::now();
    let engine = load::engine_config(&settings)?;
    let connections = connections(settings.count(&MAX_CONNECTIONS), machine::open_files());
    let replies = settings.count(&REPLY_RAM) as u64;
    let wish = store::wish(&mut settings);
    let plan = load::plan(&mut settings, engine, replies, connections, wish)?;
    // What is dropped is sent all the same.
    let longest = if settings.text(&ON_OVERFLOW) == Some("truncate") { 8 } else { 1 };
    let body = LEAST_BODY.max(BODY_BYTES_PER_TOKEN * plan.budget.context as u64 * longest);
    settings.fill(&MAX_BODY, Value::Size(body));
    settings.fill(&SERVED_MODEL_NAME, Value::Text(plan.chosen.name.clone()));
    if matches.get_flag("print-config") {
        return say(&settings.print());
    }
    let config = server_config(&settings, connections)?;
    refuse_strangers(&settings, config.keys.is_some())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Failure::new(format!("threads cannot be started: {e}"), "raise the limit of processes"))?;
    let done = runtime.block_on(serve(settings, plan, config, started));
    // After a signal while the model loads, nobody waits for the loading.
    runtime.shutdown_background();
    done
}

/// Binds first, so that a taken port is told at once and `/health` answers while the model loads.
async fn serve(settings: Settings, plan: Plan, config: ServerConfig, started: Instant) -> Result<()> {
    // Before the port is open: who sees it open may send a signal.
    let signal = shutdown_signal();
    let host = settings.text(&HOST).unwrap_or_default();
    let listener = kvist_server::bind(host, settings.count(&PORT) as u16).await.map_err(told)?;
    let address = listener.local_addr().map_err(|e| Failure::new(e.to_string(), "check --host and --port"))?;
    let tenants = config.keys.clone();
    let keys = tenants.is_some();
    let server = Server::loading(config);
    let mut running = tokio::spawn(answer(server.clone(), listener, signal));
    let loading = tokio::task::spawn_blocking(move || load(&settings, plan, tenants.as_ref()));
    let loaded = tokio::select! {
        _ = &mut running => return Ok(()),
        loaded = loading => loaded.map_err(|e| Failure::new(format!("loading failed: {e}"), "report this"))??,
    };
    let Loaded { driver, text, info, plan, public, disk } = loaded;
    let (name, chat) = (info.id.clone(), text.template.is_some());
    server.install(driver.engine, driver.executor, driver.keeper, text, info).map_err(|e| {
        Failure::new(format!("the engine thread cannot be started: {e}"), "raise the limit of processes")
    })?;
    let page = Page {
        model: &name,
        embedded: plan.chosen.is_embedded(),
        parameters: plan.chosen.config.parameters(),
        kind: plan.chosen.kind(),
        model_context: plan.chosen.config.context,
        budget: &plan.budget,
        isa: plan.isa.to_string(),
        threads: plan.threads,
        address,
        keys,
        chat,
        disk,
        public,
        ready: started.elapsed(),
    };
    // A server without a page is a server too.
    if let Err(failure) = say(&page.render()) {
        complain(&failure.to_string());
    }
    running.await.map_err(|e| Failure::new(format!("the server failed: {e}"), "report this"))
}

async fn answer(server: Server, listener: TcpListener, shutdown: impl Future<Output = ()>) {
    server.run(listener, shutdown).await;
}

/// All that the server needs besides its configuration.
struct Loaded {
    driver: Driver,
    text: TextParts,
    info: ModelInfo,
    plan: Plan,
    public: Option<usize>,
    disk: String,
}

fn load(settings: &Settings, mut plan: Plan, keys: Option<&Keys>) -> Result<Loaded> {
    let wish = plan.store.take();
    let digest = wish.as_ref().map(|_| {
        let (files, seed) = plan.chosen.files();
        store::Digest::begin(files, seed)
    });
    let text = plan.chosen.text()?;
    if let Err(missing) = &text.template {
        complain(&format!("warning: {missing}; chat requests will be refused"));
    }
    let prompts = settings.list(&PUBLIC_PROMPT).iter().map(|file| public::Prompt::read(Path::new(file)));
    let prompts = prompts.collect::<Result<Vec<_>>>()?;
    let mut driver = load::driver(&plan)?;
    let opened = match (wish, digest) {
        (Some(wish), Some(digest)) => store::open(wish, &plan, settings, digest, keys)?,
        _ => None,
    };
    let disk = opened.as_ref().map_or("nothing is kept".into(), store::Opened::summary);
    if let Some(opened) = opened {
        driver = driver.over(opened.tier);
    }
    let public = public::publish(&mut driver, &text, &prompts)?;
    let sampling = load::sampling(&plan.chosen.config, 0);
    let info = ModelInfo {
        id: settings.text(&SERVED_MODEL_NAME).unwrap_or(&plan.chosen.name).to_owned(),
        eos: plan.chosen.config.eos.clone(),
        defaults: SamplingDefaults {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
        },
    };
    let text = TextParts { tokenizer: text.tokenizer, template: text.template.ok() };
    Ok(Loaded { driver, text, info, plan, public: (!prompts.is_empty()).then_some(public), disk })
}

/// What becomes of conversations that do not fit, where a request does not say.
pub fn on_overflow(settings: &Settings) -> OnOverflow {
    match settings.text(&ON_OVERFLOW) {
        Some("truncate") => OnOverflow::Truncate { exact: false },
        _ => OnOverflow::Error,
    }
}

fn server_config(settings: &Settings, max_connections: usize) -> Result<ServerConfig> {
    let keys = settings.text(&API_KEY_FILE).map(|file| Keys::from_file(Path::new(file)));
    let seconds = |key| Duration::from_secs(settings.count(key) as u64);
    Ok(ServerConfig {
        keys: keys.transpose().map_err(told)?,
        metrics_key: metrics_key(settings)?,
        host: settings.text(&HOST).map(str::to_owned),
        cors: settings.list(&CORS).to_vec(),
        on_overflow: on_overflow(settings),
        strict_model: settings.flag(&STRICT_MODEL),
        max_body: settings.count(&MAX_BODY),
        max_n: u32::try_from(settings.count(&MAX_N)).unwrap_or(u32::MAX),
        max_connections,
        reply_bytes: settings.count(&REPLY_RAM),
        idle_timeout: seconds(&IDLE_TIMEOUT),
        header_timeout: seconds(&HEADER_TIMEOUT),
        body_timeout: seconds(&BODY_TIMEOUT),
        body_idle_timeout: seconds(&BODY_IDLE_TIMEOUT),
        write_timeout: seconds(&WRITE_TIMEOUT),
        shutdown_timeout: seconds(&SHUTDOWN_TIMEOUT),
        tool_format: settings.text(&TOOL_FORMAT).unwrap_or_default().parse().unwrap_or_default(),
        reasoning: settings.text(&REASONING) != Some("off"),
        log: log(settings.text(&LOG_LEVEL).unwrap_or_default()),
        ..ServerConfig::default()
    })
}

/// The name whose key reads `/metrics`, if the key file has it.
fn metrics_key(settings: &Settings) -> Result<Option<String>> {
    let Some(name) = settings.text(&METRICS_KEY) else { return Ok(None) };
    let Some(file) = settings.text(&API_KEY_FILE) else {
        return Err(Failure::usage(
            format!("--metrics-key {name}: there are no keys"),
            "set --api-key-file FILE; without it /metrics is open",
        ));
    };
    let text = std::fs::read_to_string(file).map_err(|e| Failure::new(format!("{file}: {e}"), ""))?;
    if !text.lines().any(|line| line.split_whitespace().next() == Some(name)) {
        return Err(Failure::usage(
            format!("--metrics-key {name}: {file} has no such name"),
            format!("add a line `{name} key` to it"),
        ));
    }
    Ok(Some(name.to_owned()))
}

/// Files of the program's own: model, terminal, listener, event queues.
pub const OWN_FILES: u64 = 64;

/// Connections that a limit of open files leaves room for.
pub fn connections_of(files: u64) -> u64 {
    files.saturating_sub(OWN_FILES).max(1)
}

/// Connections that may be open, of those asked for: each takes a file.
fn connections(asked: usize, files: Option<u64>) -> usize {
    let most = files.map_or(usize::MAX, |files| connections_of(files) as usize);
    if most < asked {
        complain(&format!(
            "warning: --max-connections {asked} is cut to {most}: the limit of open files less {OWN_FILES}; raise it \
             with `ulimit -n`"
        ));
    }
    asked.min(most)
}

fn log(level: &str) -> Log {
    let all = stderr_log();
    match level {
        "off" => Arc::new(|_| {}),
        "error" => Arc::new(move |line| {
            if is_error(line) {
                all(line);
            }
        }),
        _ => all,
    }
}

fn is_error(line: &str) -> bool {
    line.starts_with("error: ")
}

/// An address that others reach needs keys, or the word of the operator that it does not.
fn refuse_strangers(settings: &Settings, keys: bool) -> Result<()> {
    let host = settings.text(&HOST).unwrap_or_default();
    if keys || settings.flag(&ALLOW_UNAUTHENTICATED) || !is_public(host) {
        return Ok(());
    }
    Err(Failure::usage(
        format!("--host {host} lets others in, and there are no keys"),
        "set --api-key-file FILE with lines `name key`, or let everybody in with --allow-unauthenticated",
    ))
}

/// Whether anybody but this machine could connect. A name that cannot be resolved is left for binding to refuse.
fn is_public(host: &str) -> bool {
    (host, 0).to_socket_addrs().is_ok_and(|mut addresses| addresses.any(|address| !address.ip().is_loopback()))
}

/// An error whose text carries its own hint.
fn told(error: impl std::fmt::Display) -> Failure {
    let text = error.to_string();
    let (what, hint) = text.split_once("\nhint: ").unwrap_or((&text, ""));
    Failure::new(what, hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Layers;

    fn settings(flags: &'static [(&str, &str)]) -> Settings {
        let flag = |name: &str| flags.iter().find(|(n, _)| *n == name).map(|(_, v)| vec![(*v).to_owned()]);
        let layers = Layers { flags: &|key| flag(key.name), environment: &|_| None, file: None };
        Settings::resolve(false, &layers).unwrap()
    }

    #[test]
    fn public_addresses_need_keys() {
        for host in ["127.0.0.1", "127.0.0.5", "::1", "localhost"] {
            assert!(!is_public(host), "{host}");
        }
        for host in ["0.0.0.0", "::", "192.0.2.7"] {
            assert!(is_public(host), "{host}");
        }
        let open = settings(&[("host", "0.0.0.0")]);
        let failure = refuse_strangers(&open, false).unwrap_err();
        assert!(
            failure.hint.contains("--api-key-file") && failure.hint.contains("--allow-unauthenticated"),
            "{failure}"
        );
        assert_eq!(failure.code, 2);
        assert_eq!(refuse_strangers(&open, true), Ok(()));
        assert_eq!(
            refuse_strangers(&settings(&[("host", "0.0.0.0"), ("allow-unauthenticated", "true")]), false),
            Ok(())
        );
        assert_eq!(refuse_strangers(&settings(&[]), false), Ok(()));
    }

    #[test]
    fn connections_fit_the_limit_of_open_files() {
        assert_eq!(connections(4096, Some(1024)), 960);
        assert_eq!(connections(960, Some(1024)), 960);
        assert_eq!(connections(4096, None), 4096);
        assert_eq!(connections(4096, Some(3)), 1);
    }

    #[test]
    fn the_metrics_key_is_one_of_the_key_file() {
        const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/keys.txt");
        let named = |name| {
            let mut settings = settings(&[("api-key-file", PATH)]);
            settings.fill(&METRICS_KEY, Value::Text(name));
            metrics_key(&settings)
        };
        assert_eq!(named("alice".into()), Ok(Some("alice".into())));
        let failure = named("bob".into()).unwrap_err();
        assert!(failure.what.contains("no such name") && failure.hint.contains("`bob key`"), "{failure}");
        let failure = metrics_key(&settings(&[("metrics-key", "alice")])).unwrap_err();
        assert!(failure.hint.contains("--api-key-file"), "{failure}");
        assert_eq!(metrics_key(&settings(&[])), Ok(None));
    }

    #[test]
    fn the_error_level_lets_errors_through() {
        // The format of the lines is the server's: those of status 5xx begin so.
        assert!(is_error("error: GET /v1/models status=500") && is_error("error: a step panicked"));
        assert!(!is_error("GET /errors status=404"));
    }

    #[test]
    fn a_missing_key_file_is_told_with_its_hint() {
        let mut settings = settings(&[("api-key-file", "/nowhere/keys")]);
        settings.fill(&MAX_BODY, Value::Size(1));
        let Err(failure) = server_config(&settings, 1) else { panic!("there are no keys") };
        assert!(failure.what.contains("/nowhere/keys") && failure.hint.contains("`name key`"), "{failure}");
        assert!(!failure.what.contains("hint"), "{failure}");
    }
}
