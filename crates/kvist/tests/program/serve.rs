//! `kvist serve` as a child process, on the embedded model.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;

use crate::child::{Served, output};
use serde_json::Value;

const HELLO: &str = r#"{"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8}"#;

fn json(answer: &str) -> Value {
    let body = answer.split_once("\r\n\r\n").expect("a head and a body").1;
    serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {answer}"))
}

struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str, text: &str) -> TempFile {
        let path = std::env::temp_dir().join(format!("kvist-serve-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        TempFile(path)
    }

    fn name(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn it_starts_answers_and_ends_on_a_signal() {
    for signal in ["TERM", "INT"] {
        let mut served = Served::start(&["--served-model-name", "small"]);
        for part in
            ["small, ", "compiled into the binary", "2 threads", "KV cache  64.0 MiB in kv16: 16,128 tokens", "no key"]
        {
            assert!(served.page.contains(part), "{part:?} in\n{}", served.page);
        }
        assert!(served.ask("GET", "/health", "").starts_with("HTTP/1.1 200"));
        let answer = json(&served.ask("POST", "/v1/chat/completions", HELLO));
        assert_eq!(answer["model"], "small");
        assert!(!answer["choices"][0]["message"]["content"].as_str().unwrap().is_empty(), "{answer}");
        served.signal(signal);
        let (code, _, errors) = served.end();
        assert_eq!(code, Some(0), "{errors}");
        assert!(!errors.contains("error") && !errors.contains("panic"), "{errors}");
    }
}

/// A reply of some thousand tokens, sent as it is generated.
const LONG: &str =
    r#"{"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 2000, "ignore_eos": true, "stream": true}"#;

#[test]
fn a_signal_lets_running_requests_finish() {
    let mut served = Served::start(&[]);
    let mut stream = served.send("POST", "/v1/chat/completions", LONG);
    // It has begun.
    let mut head = [0; 300];
    stream.read_exact(&mut head).unwrap();
    served.signal("TERM");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("\"finish_reason\":\"length\"") && rest.contains("[DONE]"), "{rest}");
    assert_eq!(served.end().0, Some(0));
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut served = Served::start(&[]);
    let mut stream = served.send("POST", "/v1/chat/completions", LONG);
    let mut head = [0; 300];
    stream.read_exact(&mut head).unwrap();
    served.signal("TERM");
    std::thread::sleep(std::time::Duration::from_millis(50));
    served.signal("TERM");
    assert_eq!(served.end().0, Some(130));
}

#[test]
fn a_public_host_needs_keys() {
    let (_, errors, code) = output(&["serve", "--host", "0.0.0.0", "--port", "0"]);
    assert_eq!(code, Some(2));
    assert!(errors.starts_with("error: --host 0.0.0.0 lets others in"), "{errors}");
    assert!(errors.contains("--api-key-file") && errors.contains("--allow-unauthenticated"), "{errors}");

    let served = Served::start(&["--host", "0.0.0.0", "--allow-unauthenticated"]);
    assert!(served.page.contains("open to everybody who reaches it"), "{}", served.page);

    let keys = TempFile::new("keys", "alice wonderland\n");
    let served = Served::start(&["--host", "0.0.0.0", "--api-key-file", keys.name()]);
    assert!(served.page.contains("with a key only") && served.page.contains("Bearer $KEY"), "{}", served.page);
    assert!(served.ask("POST", "/v1/chat/completions", HELLO).starts_with("HTTP/1.1 401"));
    assert!(served.ask("GET", "/health", "").starts_with("HTTP/1.1 200"));
}

/// The status line's code of a GET with these header lines.
fn status(served: &Served, path: &str, headers: &str) -> String {
    let mut stream = std::net::TcpStream::connect(served.address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap_or_default().to_owned()
}

#[test]
fn metrics_are_for_the_named_key() {
    let keys = TempFile::new("metrics", "alice wonderland\nbob builder\n");
    let served = Served::start(&["--api-key-file", keys.name(), "--metrics-key", "bob"]);
    let with = |key| status(&served, "/metrics", &format!("Host: localhost\r\nAuthorization: Bearer {key}\r\n"));
    assert_eq!(with("builder"), "200");
    assert!(with("wonderland").starts_with('4') && with("nobody").starts_with('4'));
}

#[test]
fn without_keys_the_host_counts() {
    let served = Served::start(&[]);
    assert_eq!(status(&served, "/v1/models", "Host: evil.example\r\n"), "403");
    for host in ["localhost", "127.0.0.1:8080"] {
        assert_eq!(status(&served, "/v1/models", &format!("Host: {host}\r\n")), "200", "{host}");
    }
}

#[test]
fn a_port_in_use_is_explained() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (_, errors, code) = output(&["serve", "--port", &port]);
    assert_eq!(code, Some(1));
    assert!(errors.starts_with(&format!("error: cannot listen on 127.0.0.1:{port}")), "{errors}");
    assert!(errors.contains("hint: another program listens there"), "{errors}");
}

#[test]
fn memory_that_is_not_there_is_refused_with_the_arithmetic() {
    let (_, errors, code) = output(&["serve", "--kv-ram", "1000TiB"]);
    assert_eq!(code, Some(1));
    for part in [
        "error: not enough memory: weights ",
        " + KV cache ",
        " + step buffers ",
        " + replies ",
        " + connections ",
        " are free",
        "hint: --kv-ram ",
    ] {
        assert!(errors.contains(part), "{part:?} in {errors}");
    }
}

#[test]
fn a_public_prompt_is_shared_by_all_tenants() {
    let keys = TempFile::new("tenants", "alice wonderland\nbob builder\n");
    let text = "You are a patient assistant who answers every question in one short sentence. ".repeat(12);
    let prompt = TempFile::new("prompt", &text);
    let served = Served::start(&["--api-key-file", keys.name(), "--public-prompt", prompt.name()]);
    assert!(served.page.contains("tokens of prompts are shared by all tenants"), "{}", served.page);
    for key in ["wonderland", "builder"] {
        let body = serde_json::json!({
            "messages": [{"role": "system", "content": text}, {"role": "user", "content": key}],
            "max_tokens": 2,
        })
        .to_string();
        let mut stream = std::net::TcpStream::connect(served.address).unwrap();
        write!(
            stream,
            "POST /v1/chat/completions HTTP/1.1\r\nHost: kvist\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let usage = &json(&answer)["usage"];
        let (all, cached) = (usage["prompt_tokens"].as_u64(), usage["prompt_tokens_details"]["cached_tokens"].as_u64());
        assert!(cached.unwrap() >= 128 && all.unwrap() - cached.unwrap() < 100, "{usage}");
    }
}
