//! Streamed answers, chunk by chunk.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Harness, Setup, text_of, with_messages};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

#[test]
fn a_chat_stream_has_the_order_that_clients_rely_on() {
    let h = Harness::start();
    for n in [1, 3] {
        let body = with_messages(json!({
            "stream": true, "max_tokens": 40, "n": n, "seed": 5, "temperature": 1,
            "stream_options": {"include_usage": true},
        }));
        let mut chunks = h.stream(CHAT, &body);
        let last = chunks.pop().unwrap();
        assert_eq!(last["choices"], json!([]));
        assert_eq!(last["usage"]["completion_tokens"], 40 * n);
        assert!(last["usage"]["prompt_tokens_details"]["cached_tokens"].is_u64());
        assert!(last["usage"]["kvist"]["computed_tokens"].is_u64());
        assert!(last["timings"]["predicted_ms"].is_number());
        let mut plain = body.clone();
        plain["stream"] = json!(false);
        let plain = h.post(CHAT, &plain).ok();
        for index in 0..n {
            check_choice(&chunks, index);
            assert_eq!(json!(text_of(&chunks, index)), plain["choices"][index as usize]["message"]["content"]);
        }
        for chunk in chunks.iter().chain([&last]) {
            assert_eq!(chunk["object"], "chat.completion.chunk");
            assert_eq!((&chunk["id"], &chunk["created"]), (&last["id"], &last["created"]));
            assert_eq!(chunk["model"], "kvist-test");
        }
        assert!(chunks.iter().all(|c| c.get("usage").is_none()));
    }
}

fn check_choice(chunks: &[Value], index: u64) {
    let mine: Vec<&Value> = chunks.iter().map(|c| &c["choices"][0]).filter(|c| c["index"] == index).collect();
    assert!(mine.iter().all(|c| c.as_object().unwrap().contains_key("finish_reason")));
    assert_eq!(mine[0]["delta"], json!({"role": "assistant", "content": ""}));
    let (end, before) = mine.split_last().unwrap();
    assert_eq!((&end["delta"], &end["finish_reason"]), (&json!({}), &json!("length")));
    for chunk in before {
        assert_eq!(chunk["finish_reason"], Value::Null);
    }
    for chunk in &before[1..] {
        assert_eq!(chunk["delta"].as_object().unwrap().keys().collect::<Vec<_>>(), ["content"]);
        assert_ne!(chunk["delta"]["content"], "");
    }
}

#[test]
fn a_completion_stream_ends_with_one_reason() {
    let h = Harness::start();
    let body = json!({"prompt": ["One", "Two"], "stream": true, "max_tokens": 9, "logprobs": null,
        "repetition_penalty": 1.0, "stream_options": {"include_usage": true, "continuous_usage_stats": true}});
    let mut chunks = h.stream(TEXT, &body);
    let last = chunks.pop().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(18)));
    let mut plain = body.clone();
    plain["stream"] = json!(false);
    let plain = h.post(TEXT, &plain).ok();
    for index in 0..2 {
        assert_eq!(json!(text_of(&chunks, index)), plain["choices"][index as usize]["text"]);
        let mine = chunks.iter().map(|c| &c["choices"][0]).filter(|c| c["index"] == index);
        let reasons: Vec<&Value> = mine.map(|c| &c["finish_reason"]).collect();
        let (end, before) = reasons.split_last().unwrap();
        assert_eq!(*end, "length");
        assert!(before.iter().all(|r| r.is_null()));
    }
    let so_far: Vec<u64> = chunks.iter().map(|c| c["usage"]["completion_tokens"].as_u64().unwrap()).collect();
    assert!(so_far.is_sorted() && so_far[0] >= 1 && *so_far.last().unwrap() <= 18);
}

#[test]
fn an_echo_comes_first() {
    let h = Harness::start();
    let body = json!({"prompt": "Once upon", "echo": true, "stream": true, "max_tokens": 4});
    let chunks = h.stream(TEXT, &body);
    assert!(chunks[0]["choices"][0]["text"].as_str().unwrap().starts_with("Once upon"));
    assert_eq!(text_of(&chunks, 0).matches("Once upon").count(), 1);
    let none = h.stream(TEXT, &json!({"prompt": "Once upon", "echo": true, "stream": true, "max_tokens": 0}));
    assert_eq!((text_of(&none, 0).as_str(), none.len()), ("Once upon", 1));
}

#[test]
fn a_refusal_is_a_status_and_not_a_stream() {
    let h = Harness::start();
    let reply = h.post(TEXT, &json!({"prompt": "x", "stream": true, "max_tokens": 100_000}));
    assert_eq!((reply.status, reply.header("content-type")), (400, Some("application/json")));
    assert_eq!(h.post(TEXT, &json!({"stream": true})).json()["error"]["param"], "prompt");
}

#[test]
fn silence_is_filled_with_comments() {
    let mut setup = Setup::default();
    setup.server.ping_interval = Duration::from_millis(20);
    let h = Harness::with(setup);
    h.knobs.delay.store(300_000, std::sync::atomic::Ordering::Relaxed);
    let mut events = h.open(CHAT, &with_messages(json!({"stream": true, "max_tokens": 2})));
    for _ in 0..3 {
        assert_eq!(events.next_raw().unwrap().as_deref(), Some(": ping"));
    }
    h.knobs.delay.store(0, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(events.rest().last().unwrap(), "[DONE]");
}

#[test]
fn a_connection_serves_one_stream_after_the_other() {
    let h = Harness::start();
    let body = with_messages(json!({"stream": true, "max_tokens": 3})).to_string();
    let mut connection = crate::client::Connection::open(h.addr);
    let mut ids = Vec::new();
    for _ in 0..3 {
        connection.send("POST", CHAT, &[], body.as_bytes());
        let reply = connection.reply().unwrap();
        let text = reply.text();
        assert!(text.ends_with("data: [DONE]\n\n"));
        let first: Value = serde_json::from_str(text.lines().next().unwrap().strip_prefix("data: ").unwrap()).unwrap();
        ids.push(first["id"].clone());
    }
    assert!(ids[0] != ids[1] && ids[1] != ids[2]);
}
