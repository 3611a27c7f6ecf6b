//! Loading, leaving, queueing, shutting down.

use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kvist_engine::EngineConfig;
use kvist_server::ServerConfig;
use serde_json::{Value, json};

use crate::client::{Connection, Events};
use crate::harness::{Harness, Setup, with_messages};

const CHAT: &str = "/v1/chat/completions";

#[test]
fn health_says_when_the_model_is_there() {
    let h = Harness::loading(ServerConfig::default());
    let reply = h.get("/health");
    assert_eq!((reply.status, reply.json()), (503, json!({"status": "loading"})));
    let early = h.chat(json!({}));
    assert_eq!((early.status, early.header("retry-after")), (503, Some("1")));
    assert_eq!(h.get("/").status, 200);
    h.install(Setup { chunks: 64, ..Setup::default() });
    let reply = h.get("/health");
    assert_eq!((reply.status, reply.json()), (200, json!({"status": "ok"})));
    assert_eq!(h.chat(json!({"max_tokens": 1})).status, 200);
}

#[test]
fn who_leaves_is_cancelled_and_holds_nothing() {
    let h = Harness::start();
    h.knobs.delay.store(2_000, Ordering::Relaxed);
    // In a stream, before its first token, while waiting for a whole answer, several choices at once.
    for n in [1, 4] {
        let mut events = h.open(CHAT, &with_messages(json!({"stream": true, "n": n})));
        for _ in 0..10 {
            events.next_raw().unwrap();
        }
        drop(events);
        h.until_empty();
    }
    for stream in [true, false] {
        let mut connection = Connection::open(h.addr);
        connection.send("POST", CHAT, &[], with_messages(json!({"stream": stream})).to_string().as_bytes());
        h.until("the request to run", |s| s.running > 0);
        drop(connection);
        h.until_empty();
    }
    assert!(h.metric("vllm:request_success_total{finished_reason=\"abort\"}") >= 7.0);
    let generated = h.metric("vllm:generation_tokens_total");
    assert!(generated < 4000.0, "{generated} tokens were generated for nobody");
    // What was computed stays in the tree.
    assert!(h.stats().cache.tokens > 0);
    let answer = h.chat(json!({"max_tokens": 1})).ok();
    assert!(answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() > 0);
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let engine = EngineConfig { max_batch: 1, max_queue: 1, ..EngineConfig::default() };
    let h = Harness::with(Setup { engine, ..Setup::default() });
    h.knobs.delay.store(3_000, Ordering::Relaxed);
    let running = h.open(CHAT, &with_messages(json!({"stream": true})));
    h.until("one to run", |s| s.running == 1);
    let mut waiting = Connection::open(h.addr);
    waiting.send("POST", CHAT, &[], with_messages(json!({"max_tokens": 1})).to_string().as_bytes());
    h.until("one to wait", |s| s.waiting == 1);
    let refused = h.chat(json!({"max_tokens": 1}));
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
    // Of several prompts none is left behind when one does not fit.
    let refused = h.complete(&json!({"prompt": ["a", "b"]}));
    assert_eq!(refused.status, 429);
    assert_eq!((h.stats().waiting, h.stats().running), (1, 1));
    drop(running);
    assert_eq!(waiting.reply().unwrap().status, 200);
    h.until_empty();
    assert_eq!(h.metric("vllm:admission_rejections_total{reason=\"queue_full\"}"), 2.0);
}

#[test]
fn shutdown_lets_running_requests_finish() {
    let mut h = Harness::start();
    h.knobs.delay.store(5_000, Ordering::Relaxed);
    let idle = Connection::open(h.addr);
    let mut events = h.open(CHAT, &with_messages(json!({"stream": true, "max_tokens": 60})));
    events.next_raw().unwrap();
    h.stop();
    let addr = h.addr;
    h.until("the port to be closed", |_| TcpStream::connect(addr).is_err());
    let rest = events.rest();
    assert_eq!(rest.last().unwrap(), "[DONE]");
    h.wait();
    drop(idle);
}

#[test]
fn shutdown_waits_for_no_sender() {
    let mut setup = Setup::default();
    // Nothing but the end of the reads may end the test in time.
    setup.server.shutdown_timeout = Duration::from_secs(3600);
    setup.server.body_idle_timeout = Duration::from_secs(3600);
    setup.server.header_timeout = Duration::from_secs(3600);
    let mut h = Harness::with(setup);
    h.knobs.close();
    let mut running = h.open(CHAT, &with_messages(json!({"stream": true, "max_tokens": 5})));
    h.until("one to run", |_| h.knobs.waiting());
    let mut head = Connection::open(h.addr);
    head.write(b"POST /v1/completions HT").unwrap();
    let mut body = Connection::open(h.addr);
    body.write(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\n{\"pro").unwrap();
    h.until("both to be there", |_| h.metric("kvist_connections") == 4.0);
    // The body's request has to be on its way.
    std::thread::sleep(Duration::from_millis(100));
    h.stop();
    assert_eq!(body.reply().unwrap().status, 503);
    h.until_log(|l| l == "stopping: 1 requests running; signal again to stop now");
    h.knobs.open();
    let mut last = None;
    while let Some(event) = running.next_raw().unwrap() {
        last = Some(event);
    }
    assert_eq!(last.unwrap(), "data: [DONE]");
    h.wait();
}

#[test]
fn who_ends_its_side_still_gets_its_stream() {
    let h = Harness::start();
    h.knobs.close();
    let mut connection = Connection::open(h.addr);
    connection.send("POST", CHAT, &[], with_messages(json!({"stream": true, "max_tokens": 5})).to_string().as_bytes());
    connection.reader.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    h.until("it to run", |_| h.knobs.waiting());
    std::thread::sleep(Duration::from_millis(500));
    h.knobs.open();
    assert_eq!(connection.head().unwrap().status, 200);
    assert_eq!(Events::new(connection).rest().last().unwrap(), "[DONE]");
}

#[test]
fn who_leaves_a_stream_that_says_nothing_yet_is_noticed() {
    let engine = EngineConfig { max_batch: 1, ..EngineConfig::default() };
    let mut setup = Setup { engine, ..Setup::default() };
    setup.server.ping_interval = Duration::from_secs(3600);
    let h = Harness::with(setup);
    h.knobs.delay.store(3_000, Ordering::Relaxed);
    let mut running = h.open(CHAT, &with_messages(json!({"stream": true, "max_tokens": 4000})));
    running.next_raw().unwrap();
    let waiting = h.open(CHAT, &with_messages(json!({"stream": true})));
    h.until("one to wait", |s| s.waiting == 1);
    drop(waiting);
    h.until("nobody to wait", |s| s.waiting == 0);
    assert_eq!(h.stats().running, 1, "it never ran");
}

#[test]
fn shutdown_cancels_what_takes_too_long_and_says_so() {
    let mut setup = Setup::default();
    setup.server.shutdown_timeout = Duration::from_millis(200);
    let mut h = Harness::with(setup);
    h.knobs.delay.store(3_000, Ordering::Relaxed);
    let mut events = h.open(CHAT, &with_messages(json!({"stream": true})));
    let mut whole = Connection::open(h.addr);
    whole.send("POST", CHAT, &[], with_messages(json!({"n": 2})).to_string().as_bytes());
    h.until("both to run", |s| s.running == 3);
    events.next_raw().unwrap();
    h.stop();
    let rest = events.rest();
    let last: Value = serde_json::from_str(rest.last().unwrap()).unwrap();
    assert!(last["error"]["message"].is_string(), "{last}");
    assert_eq!(last.as_object().unwrap().len(), 1);
    assert!(!rest.iter().any(|e| e == "[DONE]"));
    let reply = whole.reply().unwrap();
    assert_eq!(reply.status, 503);
    h.wait();
    assert_eq!((h.stats().known, h.stats().cache.pinned), (0, 0));
}

#[test]
fn a_taken_port_is_explained() {
    let h = Harness::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let error = runtime.block_on(kvist_server::bind("127.0.0.1", h.addr.port())).unwrap_err().to_string();
    assert!(error.contains(&h.addr.to_string()) && error.contains("hint: ") && error.contains("--port"), "{error}");
}
