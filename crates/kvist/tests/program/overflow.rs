//! Conversations that outgrow the context.

use serde_json::{Value, json};

use crate::child::{Served, piped};
use crate::temp::TempDir;

fn value(answer: &str) -> Value {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    serde_json::from_str(body).unwrap()
}

/// Goes on with a conversation, and returns its usage, which must be what was foretold of it.
fn turn(served: &Served, messages: &mut Vec<Value>, more: Value) -> Value {
    let n = messages.len() / 2;
    let told = format!("Tell me part {n}. What did Lily and her dog do in the park with the big red ball that day?");
    messages.push(json!({"role": "user", "content": told}));
    let mut body = json!({"messages": messages, "max_tokens": 24, "temperature": 0});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let foretold = value(&served.ask("POST", "/v1/kvist/explain", &body.to_string()));
    let answer = served.ask("POST", "/v1/chat/completions", &body.to_string());
    let head = answer.split_once("\r\n\r\n").unwrap().0;
    let answer = value(&answer);
    messages.push(answer["choices"][0]["message"].clone());
    let usage = &answer["usage"];
    let dropped = &usage["kvist"]["dropped_tokens"];
    assert_eq!(head.contains("x-kvist-dropped-tokens: "), !dropped.is_null(), "{answer}");
    let usage = json!({
        "prompt": usage["prompt_tokens"], "cached": usage["prompt_tokens_details"]["cached_tokens"],
        "dropped": dropped.as_u64().unwrap_or(0), "carried": usage["kvist"]["carried"] == json!(true),
    });
    let same = (&foretold["tokens"], &foretold["dropped"]) == (&usage["prompt"], &usage["dropped"]);
    assert!(same && usage["carried"] == json!(!foretold["carried"].is_null()), "{foretold} {usage}");
    // In 8 bits rows of a sealed chunk may have to run again.
    let found = number(&foretold, "ram").max(number(&foretold, "ram") / 64 * 64 + number(&foretold, "disk"));
    assert_eq!(found + number(&foretold, "computed"), number(&usage, "prompt"), "{foretold}");
    assert!(number(&usage, "cached") <= found && found < number(&usage, "cached") + 64, "{foretold} {usage}");
    usage
}

fn number(usage: &Value, name: &str) -> u64 {
    usage[name].as_u64().unwrap()
}

fn computed(usage: &Value) -> u64 {
    number(usage, "prompt") - number(usage, "cached")
}

/// A server that truncates, over a store of its own.
struct Truncating {
    args: Vec<String>,
    served: Served,
    messages: Vec<Value>,
    _dir: TempDir,
}

impl Truncating {
    fn start(kv_type: &str) -> Truncating {
        let dir = TempDir::new();
        let (kv, key) = (dir.0.join("kv").display().to_string(), dir.0.join("key").display().to_string());
        let args = ["--ctx", "1024", "--on-overflow", "truncate", "--kv-disk", "64MiB", "--kv-type", kv_type];
        let args: Vec<String> =
            args.into_iter().chain(["--kv-dir", &kv, "--kv-key-file", &key]).map(String::from).collect();
        let system = json!({"role": "system", "content": "You tell stories about a girl named Lily and her dog."});
        Truncating { served: Self::run(&args), args, messages: vec![system], _dir: dir }
    }

    fn run(args: &[String]) -> Served {
        Served::start(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn turn(&mut self, more: Value) -> Value {
        turn(&self.served, &mut self.messages, more)
    }

    /// Ends the server without warning, and starts another one over what is durable: all that is a second old.
    fn restart(&mut self) {
        std::thread::sleep(std::time::Duration::from_millis(1500));
        self.served.signal("KILL");
        self.served.end();
        self.served = Self::run(&self.args);
    }
}

#[test]
fn the_oldest_turns_go_and_the_rest_keeps_its_kv_also_over_a_restart() {
    for kv_type in ["kv16", "kv8"] {
        let mut whole = Truncating::start(kv_type);
        let (mut usages, mut moves) = (Vec::new(), Vec::new());
        let mut dropped = 0;
        while moves.len() < 3 {
            let usage = whole.turn(json!({}));
            assert!(number(&usage, "prompt") + 24 <= 1024, "{usage}");
            let cut = number(&usage, "dropped");
            assert!(cut >= dropped && usage["carried"] == json!(cut > 0), "{usage}");
            if cut > dropped {
                moves.push(usages.len());
            }
            // At most the rest of a chunk besides what is new, when the cut moves; nothing but what is new otherwise.
            assert!(usages.is_empty() || computed(&usage) < if cut > dropped { 128 } else { 64 }, "{usage}");
            dropped = cut;
            usages.push(usage);
        }

        // The same, but that the server is killed right before each turn in which the cut moves, and before the last one.
        let mut killed = Truncating::start(kv_type);
        for (i, usage) in usages.iter().enumerate() {
            if moves.contains(&i) {
                killed.restart();
            }
            let again = killed.turn(json!({}));
            assert_eq!(again, *usage, "{kv_type}: turn {i}, cuts {moves:?}");
        }
        assert_eq!(killed.messages, whole.messages);
        // What is on disk can be told without a server, too.
        let metrics = killed.served.ask("GET", "/metrics", "");
        assert!(metrics.contains("\nkvist_kv_carried_tokens_total{"), "{metrics}");
        killed.restart();
        let mut args = vec!["cache", "explain", "--messages", "-", "--json"];
        args.extend(killed.args.iter().map(String::as_str));
        let (told, errors, code) = piped(&args, &json!(killed.messages).to_string());
        assert_eq!(code, Some(0), "{errors}");
        let told: Value = serde_json::from_str(&told).unwrap();
        assert!(number(&told, "dropped") > 0 && told["carried"].is_u64(), "{told}");
        assert!(number(&told, "disk") > 0 && number(&told, "computed") < 128, "{told}");
        let usage = killed.turn(json!({}));
        assert!(usage["carried"] == json!(true) && computed(&usage) < 128, "{usage}");

        refuses_or_computes_where_asked(whole);
    }
}

fn refuses_or_computes_where_asked(mut machine: Truncating) {
    // Computed anew where that is asked for, refused where that is.
    let usage = machine.turn(json!({"exact": true}));
    assert!(usage["carried"] == json!(false) && number(&usage, "dropped") > 0, "{usage}");
    let body = json!({"messages": machine.messages, "max_tokens": 24, "truncation": "disabled"});
    let answer = machine.served.ask("POST", "/v1/chat/completions", &body.to_string());
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("context_length_exceeded"), "{answer}");
}
