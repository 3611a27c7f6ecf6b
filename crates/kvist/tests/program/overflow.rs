//! Conversations that outgrow the context.

use serde_json::{Value, json};

use crate::child::Served;
use crate::temp::TempDir;

/// Goes on with a conversation, and returns its usage.
fn turn(served: &Served, messages: &mut Vec<Value>, more: Value) -> Value {
    let n = messages.len() / 2;
    let told = format!("Tell me part {n}. What did Lily and her dog do in the park with the big red ball that day?");
    messages.push(json!({"role": "user", "content": told}));
    let mut body = json!({"messages": messages, "max_tokens": 24, "temperature": 0});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let answer = served.ask("POST", "/v1/chat/completions", &body.to_string());
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    let answer: Value = serde_json::from_str(body).unwrap();
    messages.push(answer["choices"][0]["message"].clone());
    let usage = &answer["usage"];
    let dropped = &usage["kvist"]["dropped_tokens"];
    assert_eq!(head.contains("x-kvist-dropped-tokens: "), !dropped.is_null(), "{answer}");
    json!({
        "prompt": usage["prompt_tokens"], "cached": usage["prompt_tokens_details"]["cached_tokens"],
        "dropped": dropped.as_u64().unwrap_or(0), "carried": usage["kvist"]["carried"] == json!(true),
    })
}

#[test]
fn the_oldest_turns_go_and_the_rest_keeps_its_kv_also_over_a_restart() {
    let dir = TempDir::new();
    let (kv, key) = (dir.0.join("kv").display().to_string(), dir.0.join("key").display().to_string());
    let args =
        ["--ctx", "1024", "--on-overflow", "truncate", "--kv-disk", "64MiB", "--kv-dir", &kv, "--kv-key-file", &key];
    let mut served = Served::start(&args);
    let mut messages =
        vec![json!({"role": "system", "content": "You tell stories about a girl named Lily and her dog."})];
    let number = |usage: &Value, name: &str| usage[name].as_u64().unwrap();
    let (mut cuts, mut last) = (Vec::new(), 0);
    while cuts.len() < 3 || last != 2 {
        let usage = turn(&served, &mut messages, json!({}));
        let dropped = number(&usage, "dropped");
        assert!(number(&usage, "prompt") + 24 <= 1024, "{usage}");
        if dropped == 0 {
            assert_eq!(usage["carried"], json!(false));
            continue;
        }
        assert_eq!(usage["carried"], json!(true), "{usage}");
        // At most the rest of a chunk besides what is new, when the cut moves; nothing but what is new otherwise.
        let computed = number(&usage, "prompt") - number(&usage, "cached");
        let moved = cuts.last() != Some(&dropped);
        assert!(computed < if moved { 128 } else { 64 }, "{usage}");
        if moved {
            cuts.push(dropped);
            last = 0;
        }
        last += 1;
    }
    assert!(cuts.is_sorted());

    // What was saved a second ago is durable. The next turn does not move the cut: what it is moved from would be on disk.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    served.signal("KILL");
    served.end();
    let served = Served::start(&args);
    let usage = turn(&served, &mut messages, json!({}));
    let computed = number(&usage, "prompt") - number(&usage, "cached");
    assert!(usage["carried"] == json!(true) && computed < 192, "{usage}");

    // Computed anew where that is asked for, refused where that is.
    let usage = turn(&served, &mut messages, json!({"exact": true}));
    assert!(usage["carried"] == json!(false) && number(&usage, "dropped") > 0, "{usage}");
    let body = json!({"messages": messages, "max_tokens": 24, "truncation": "disabled"});
    let answer = served.ask("POST", "/v1/chat/completions", &body.to_string());
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("context_length_exceeded"), "{answer}");
}
