//! Bad input and bad peers: always a well-formed error, never a 5xx, and the server goes on.

use std::io::Read;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::Connection;
use crate::fake::{VOCAB, mix};
use crate::harness::{Harness, Setup, tokenizer, with_messages};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn check_error(reply: &crate::client::Reply, what: &str) -> Value {
    let error = reply.json()["error"].clone();
    assert!(error["message"].is_string() && error["type"].is_string(), "{what}: {error}");
    let object = error.as_object().unwrap();
    assert!(object.contains_key("param") && object.contains_key("code"), "{what}");
    error
}

#[test]
fn fields_of_wrong_type_or_value_are_named() {
    let h = Harness::start();
    let both = [
        ("max_tokens", json!(-2)),
        ("max_tokens", json!("ten")),
        ("max_tokens", json!(9_223_372_036_854_775_808u64)),
        ("n", json!(0)),
        ("n", json!(17)),
        ("n", json!(16384)),
        ("temperature", json!(-1)),
        ("temperature", json!("hot")),
        ("top_p", json!(2)),
        ("top_k", json!(-5)),
        ("seed", json!(1.5)),
        ("stop", json!([1])),
        ("stop", json!(vec!["x"; 17])),
        ("stream", json!("true")),
        ("stream_options", json!(7)),
        ("model", json!(["m"])),
        ("logit_bias", json!({"5": 101})),
        ("logit_bias", json!({"4096": 1})),
        ("logit_bias", json!([1])),
        ("presence_penalty", json!(2.5)),
        ("frequency_penalty", json!("0.1")),
        ("repetition_penalty", json!(0)),
        ("response_format", json!({"type": "yaml"})),
        ("min_p", json!(-0.1)),
        ("stop_token_ids", json!([-3])),
        ("stop_token_ids", json!(["3"])),
        ("min_tokens", json!(-2)),
        ("min_tokens", json!(1_000_000)),
        ("allowed_token_ids", json!([])),
        ("allowed_token_ids", json!([4096])),
    ];
    let chat = [
        ("messages", json!(null)),
        ("messages", json!("hi")),
        ("messages", json!([])),
        ("messages", json!([1])),
        ("messages", json!([{"content": "no role"}])),
        ("messages", json!([{"role": "user", "content": 5}])),
        ("messages", json!([{"role": "user", "content": [{"type": "image_url"}]}])),
        ("top_logprobs", json!(3)),
        ("logprobs", json!(3)),
        ("tools", json!({})),
        ("tool_choice", json!("required")),
        ("tool_choice", json!(1)),
        ("echo", json!(true)),
        ("chat_template", json!("{{ 1 }}")),
        ("chat_template_kwargs", json!([])),
    ];
    let text = [
        ("prompt", json!(null)),
        ("prompt", json!({})),
        ("prompt", json!([])),
        ("prompt", json!([[]])),
        ("prompt", json!([5, "x"])),
        ("prompt", json!([-5])),
        ("prompt", json!([4096])),
        ("prompt", json!([4_294_967_296u64])),
        ("logprobs", json!(21)),
        ("logprobs", json!(true)),
        ("echo", json!("yes")),
        ("suffix", json!("end")),
        ("best_of", json!(2)),
    ];
    let mut connection = Connection::open(h.addr);
    let mut ask = |path: &str, field: &str, body: Value| {
        connection.send("POST", path, &[], body.to_string().as_bytes());
        let reply = connection.reply().expect("the connection goes on");
        assert_eq!(reply.status, 400, "{path} {field}: {}", reply.text());
        let param = check_error(&reply, field)["param"].as_str().unwrap_or("").to_owned();
        assert!(param.starts_with(field), "{path}: {field} is called {param:?}");
    };
    for (field, value) in both.iter().chain(&chat) {
        let mut body = with_messages(json!({}));
        body[field] = value.clone();
        ask(CHAT, field, body);
    }
    for (field, value) in both.iter().chain(&text) {
        let mut body = json!({"prompt": "x"});
        body[field] = value.clone();
        ask(TEXT, field, body);
    }
    assert_eq!(h.chat(json!({"max_tokens": 1})).status, 200);
    h.until_empty();
}

#[test]
fn bodies_that_are_no_requests_get_400() {
    let h = Harness::start();
    let deep = |n: usize| [b"{\"prompt\":".as_slice(), &b"[".repeat(n), &b"]".repeat(n), b"}"].concat();
    let bodies: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"{".to_vec(),
        b"null".to_vec(),
        b"[1]".to_vec(),
        b"{\"prompt\":\"a\",\"prompt\":\"b\"}".to_vec(),
        b"{\"messages\":[{\"role\":\"user\",\"role\":\"system\",\"content\":\"x\"}],\"prompt\":\"x\"}".to_vec(),
        b"{\"prompt\":\"\xff\xfe\"}".to_vec(),
        b"{\"prompt\":\"\\ud800\"}".to_vec(),
        b"{\"prompt\":\"x\",\"temperature\":NaN}".to_vec(),
        b"{\"prompt\":\"x\",\"temperature\":1e999}".to_vec(),
        b"{\"prompt\":\"x\"}{}".to_vec(),
        deep(130),
        deep(200_000),
    ];
    for body in bodies {
        for path in [CHAT, TEXT] {
            let reply = h.request("POST", path, &[], &body);
            let what = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
            assert_eq!(reply.status, 400, "{what}");
            check_error(&reply, &what);
        }
    }
    // Odd but legal.
    assert_eq!(h.complete(&json!({"prompt": "nul \u{0} and \u{fffd} and \u{1f600}", "max_tokens": 1})).status, 200);
    assert_eq!(h.complete(&json!({"prompt": "<|im_end|>", "max_tokens": 1})).status, 200);
}

#[test]
fn paths_and_methods_that_are_not_there_answer_in_json() {
    let h = Harness::start();
    for (method, path, status) in [
        ("GET", "/nothing", 404),
        ("POST", "/v1", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/health", 405),
        ("PUT", "/", 405),
    ] {
        let reply = h.request(method, path, &[], b"");
        assert_eq!(reply.status, status, "{method} {path}");
        check_error(&reply, path);
    }
    let mut connection = Connection::open(h.addr);
    for (path, status) in [("/nothing", 404), ("/health", 200)] {
        connection.send("HEAD", path, &[], b"");
        assert_eq!(connection.head().unwrap().status, status, "no body follows, the connection goes on");
    }
}

#[test]
fn large_bodies_are_refused_before_they_are_held() {
    let mut setup = Setup::default();
    setup.server.max_body = 1000;
    let h = Harness::with(setup);
    let big = json!({"prompt": "x".repeat(1000)}).to_string();
    let reply = h.request("POST", TEXT, &[], big.as_bytes());
    assert_eq!(reply.status, 413);
    let error = check_error(&reply, "content-length");
    assert!(error["message"].as_str().unwrap().contains("--max-body"), "{error}");

    // Announced only: answered without waiting for the body.
    let mut connection = Connection::open(h.addr);
    connection
        .write(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999\r\n\r\n")
        .unwrap();
    assert_eq!(connection.reply().unwrap().status, 413);

    // Chunked, so not announced at all.
    let mut connection = Connection::open(h.addr);
    connection
        .write(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
        .unwrap();
    connection.write(format!("{:x}\r\n{big}\r\n0\r\n\r\n", big.len()).as_bytes()).unwrap();
    assert_eq!(connection.reply().unwrap().status, 413);
    assert_eq!(h.complete(&json!({"prompt": "x"})).status, 200);
}

#[test]
fn text_that_cannot_fit_is_refused_before_it_is_tokenised() {
    let h = Harness::with(Setup { context: 100, ..Setup::default() });
    let tokenizer = tokenizer();
    let longest = (0..VOCAB as u32).map(|id| tokenizer.token_bytes(id).len()).max().unwrap();
    let mut text = "word ".repeat(20 * longest);
    text.push('.');
    for reply in [
        h.complete(&json!({"prompt": text})),
        h.chat(json!({"messages": [{"role": "user", "content": text}]})),
        // Not certain from its bytes; its tokens are too many all the same.
        h.complete(&json!({"prompt": &text[1..]})),
    ] {
        assert_eq!(reply.status, 400);
        let error = check_error(&reply, "too long");
        assert_eq!(error["code"], "context_length_exceeded");
        assert!(error["message"].as_str().unwrap().contains("100 tokens"), "{error}");
    }
    let message = h.complete(&json!({"prompt": text})).text();
    assert!(message.contains("at least 101"), "{message}");
}

#[test]
fn compressed_bodies_are_refused() {
    let h = Harness::start();
    let body = br#"{"prompt": "x", "max_tokens": 1}"#;
    let reply = h.request("POST", TEXT, &[("content-encoding", "gzip")], body);
    assert_eq!(reply.status, 415);
    check_error(&reply, "gzip");
    assert_eq!(h.request("POST", TEXT, &[("content-encoding", "identity")], body).status, 200);
}

#[test]
fn slow_senders_are_cut_off() {
    let mut setup = Setup::default();
    setup.server.idle_timeout = Duration::from_millis(100);
    setup.server.header_timeout = Duration::from_millis(100);
    setup.server.body_idle_timeout = Duration::from_millis(100);
    let h = Harness::with(setup);
    let closed = |start: &[u8]| {
        let mut connection = Connection::open(h.addr);
        connection.write(start).unwrap();
        let mut rest = Vec::new();
        let _ = connection.reader.read_to_end(&mut rest);
        String::from_utf8_lossy(&rest).into_owned()
    };
    assert_eq!(closed(b""), "", "a silent connection");
    let half = closed(b"POST /v1/completions HT");
    assert!(half.is_empty() || half.contains(" 408 "), "half a header: {half}");
    let body = closed(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\n{\"pro");
    assert!(body.starts_with("HTTP/1.1 408"), "half a body: {body}");
    assert_eq!(h.complete(&json!({"prompt": "x"})).status, 200);
}

/// The pause between two requests was cut at the headers' timeout, so clients that keep connections open for a minute lost
/// requests to it; and so was the silence of a new connection.
#[test]
fn an_idle_connection_may_wait_longer_than_headers() {
    let mut setup = Setup::default();
    setup.server.header_timeout = Duration::from_millis(100);
    let h = Harness::with(setup);
    let mut connection = Connection::open(h.addr);
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(400));
        connection.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        assert_eq!(connection.reply().unwrap().status, 200);
    }
    connection.write(b"GET /health HTTP/1.1\r\nho").unwrap();
    let mut rest = Vec::new();
    let _ = connection.reader.read_to_end(&mut rest);
    assert_eq!(rest, b"", "half a header");
}

#[test]
fn garbage_on_the_wire_ends_only_its_connection() {
    let h = Harness::start();
    let headers = format!("GET /health HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(5000));
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(200_000));
    for bytes in [b"\x16\x03\x01\x02garbage\r\n\r\n".as_slice(), b"GET\r\n\r\n", headers.as_bytes(), long.as_bytes()] {
        let mut connection = Connection::open(h.addr);
        let _ = connection.write(bytes);
        if let Ok(reply) = connection.reply() {
            assert!((400..500).contains(&reply.status), "{}", reply.status);
        }
    }
    assert_eq!(h.get("/health").status, 200);
}

#[test]
fn one_connection_too_many_is_told_so() {
    let mut setup = Setup::default();
    setup.server.max_connections = 3;
    let h = Harness::with(setup);
    let mut held: Vec<Connection> = (0..3).map(|_| Connection::open(h.addr)).collect();
    for connection in &mut held {
        connection.send("GET", "/health", &[], b"");
        assert_eq!(connection.reply().unwrap().status, 200);
    }
    let mut extra = Connection::open(h.addr);
    let reply = extra.reply().unwrap();
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")));
    check_error(&reply, "too many");
    // Also where the request came first; and the log has one line for all of them.
    let mut extra = Connection::open(h.addr);
    extra.send("POST", TEXT, &[], &vec![b'x'; 10_000]);
    assert_eq!(extra.reply().unwrap().status, 503);
    let full = h.log.lock().unwrap().iter().filter(|l| l.starts_with("error: all 3 connections")).count();
    assert_eq!(full, 1);
    drop(held);
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let mut connection = Connection::open(h.addr);
        connection.send("GET", "/health", &[], b"");
        if connection.reply().is_ok_and(|r| r.status == 200) {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "room never came back");
    }
}

/// A stream of some 70 MB: more than sockets hold, whatever the machine.
fn torrent() -> Value {
    with_messages(json!({
        "stream": true, "n": 16, "temperature": 1, "max_tokens": 3000, "logprobs": true, "top_logprobs": 20,
    }))
}

#[test]
fn a_reader_that_falls_behind_loses_its_request_alone() {
    let mut setup = Setup::default();
    setup.server.stream_buffer = 64;
    let h = Harness::with(setup);
    let alone = h.chat(json!({"max_tokens": 300})).ok();
    let mut slow = h.open(CHAT, &torrent());
    let mate = h.chat(json!({"max_tokens": 300})).ok();
    assert_eq!(mate["choices"], alone["choices"]);
    h.until_empty();
    assert_eq!(h.metric("kvist_slow_readers_total"), 1.0);
    // Who reads on finds out why.
    let mut last = String::new();
    while let Some(event) = slow.next_raw().unwrap() {
        last = event;
    }
    assert!(last.contains("\"error\"") && last.contains("too slow"), "{last}");
}

#[test]
fn a_reader_that_takes_nothing_is_dropped() {
    let mut setup = Setup::default();
    setup.server.stream_buffer = 1 << 20;
    setup.server.write_timeout = Duration::from_millis(300);
    let h = Harness::with(setup);
    h.knobs.delay.store(1_000, Ordering::Relaxed);
    let slow = h.open(CHAT, &torrent());
    h.until_empty();
    h.until("its connection to be dropped", |_| h.metric("kvist_connections") == 1.0);
    assert_eq!(h.metric("vllm:request_success_total{finished_reason=\"abort\"}"), 16.0);
    drop(slow);
}

#[test]
fn a_panic_in_a_step_costs_nobody_else_anything() {
    let h = Harness::start();
    let expected = h.complete(&json!({"prompt": [9, 8, 7], "max_tokens": 30})).ok()["choices"].clone();
    h.knobs.panic_on.store(4000, Ordering::Relaxed);
    // Once, in a step of several: all of them are run again and answered.
    let prompts = [json!([9, 8, 7]), json!([4000, 8, 7]), json!([9, 8, 7, 6])];
    h.knobs.close();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| h.complete(&json!({"prompt": "first", "max_tokens": 30})));
        h.until("the first to be in a step", |_| h.knobs.waiting());
        let ask = |prompt: &Value| h.complete(&json!({"prompt": prompt, "max_tokens": 30})).ok()["choices"].clone();
        let asked: Vec<_> = prompts.iter().map(|p| scope.spawn(move || ask(p))).collect();
        std::thread::sleep(Duration::from_millis(200));
        h.knobs.panics.store(1, Ordering::Relaxed);
        h.knobs.open();
        assert_eq!(first.join().unwrap().status, 200);
        let answers: Vec<Value> = asked.into_iter().map(|a| a.join().unwrap()).collect();
        assert_eq!(answers[0], expected);
    });
    assert_eq!(h.metric("kvist_step_panics_total"), 1.0);
    // Always: the request that does it gets an error, its batch mates their answers.
    h.knobs.panics.store(u64::MAX, Ordering::Relaxed);
    std::thread::scope(|scope| {
        let bad = scope.spawn(|| h.complete(&json!({"prompt": [3, 4000, 7, 8], "max_tokens": 3})));
        for _ in 0..5 {
            assert_eq!(h.complete(&json!({"prompt": [9, 8, 7], "max_tokens": 30})).ok()["choices"], expected);
        }
        let bad = bad.join().unwrap();
        assert_eq!(bad.status, 500);
        check_error(&bad, "panic");
    });
    h.until_empty();
    assert!(h.metric("kvist_step_panics_total") >= 2.0);
}

#[test]
fn damaged_requests_never_get_a_5xx() {
    let h = Harness::with(Setup { context: 256, chunks: 64, ..Setup::default() });
    let seeds = [
        (
            CHAT,
            with_messages(json!({"max_tokens": 2, "n": 2, "stop": ["a", "b"], "logprobs": true, "top_logprobs": 2,
            "temperature": 0.5, "seed": 3, "tools": [{"type": "function"}], "logit_bias": {}})),
        ),
        (TEXT, json!({"prompt": "text", "max_tokens": 2, "echo": true, "logprobs": 1, "top_p": 0.9})),
        (TEXT, json!({"prompt": [[5, 6], [7]], "max_tokens": 1, "stream_options": {"include_usage": true}})),
        (
            TEXT,
            json!({"prompt": "text", "max_tokens": 3, "min_tokens": 2, "logit_bias": {"5": -100, "7": 3.5}, "min_p": 0.1,
            "repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": -0.5, "bad_words": ["the", "a b"],
            "allowed_token_ids": [5, 6, 7, 8], "stop_token_ids": [8, 9]}),
        ),
        (
            CHAT,
            with_messages(json!({"max_tokens": 2, "truncate_prompt_tokens": 9, "prompt_logprobs": 1, "stop": "x",
            "return_token_ids": true, "return_tokens_as_token_ids": true, "include_stop_str_in_output": true,
            "continue_final_message": false, "add_generation_prompt": true, "chat_template_kwargs": {"k": 1}})),
        ),
        ("/tokenize", json!({"prompt": "some text", "add_special_tokens": true, "return_token_strs": true})),
        ("/tokenize", with_messages(json!({"add_generation_prompt": true}))),
        ("/tokenize", json!({"content": "some text", "with_pieces": true})),
        ("/detokenize", json!({"tokens": [5, 6, 700]})),
        ("/apply-template", with_messages(json!({}))),
    ];
    let pieces: [&[u8]; 14] = [
        b"null",
        b"-1",
        b"1e999",
        b"[",
        b"]",
        b"{",
        b"}",
        b"\"",
        b"\\u0000",
        b"\\udfff",
        b"\xff",
        b"9223372036854775808",
        b",",
        b"[[]]",
    ];
    let mut connection = Connection::open(h.addr);
    let mut statuses = std::collections::BTreeMap::new();
    for case in 0..3000u64 {
        let (path, body) = &seeds[case as usize % seeds.len()];
        let mut bytes = body.to_string().into_bytes();
        for edit in 0..1 + mix(case, 1) % 3 {
            let at = mix(case, 2 + edit) as usize % bytes.len();
            let end = (at + mix(case, 20 + edit) as usize % 6).min(bytes.len());
            match mix(case, 10 + edit) % 3 {
                0 => bytes[at] = mix(case, 30 + edit) as u8,
                1 => drop(bytes.drain(at..end.max(at + 1).min(bytes.len()))),
                _ => drop(bytes.splice(at..end, pieces[mix(case, 40 + edit) as usize % pieces.len()].iter().copied())),
            }
            if bytes.is_empty() {
                bytes.push(b' ');
            }
        }
        connection.send("POST", path, &[], &bytes);
        let reply = connection.reply().expect("the connection goes on");
        assert!(reply.status < 500, "{} for {}", reply.text(), String::from_utf8_lossy(&bytes));
        if reply.status != 200 {
            check_error(&reply, "damaged");
        }
        *statuses.entry(reply.status).or_insert(0) += 1;
    }
    assert!(statuses[&200] > 100 && statuses[&400] > 1000, "{statuses:?}");
    h.until_empty();
}
