//! `/tokenize`, `/detokenize`, `/apply-template`, and what the server says of itself.

use kvist_server::{Keys, ServerConfig};
use serde_json::{Value, json};

use crate::harness::{Harness, Setup, parts, tokenizer};

fn ids(list: &Value) -> Vec<u32> {
    list.as_array().unwrap_or_else(|| panic!("{list}")).iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

#[test]
fn tokens_in_both_dialects() {
    let h = Harness::start();
    let tokenizer = tokenizer();
    for text in ["", "The harbour at dawn", "fn main() {\n\tprintln!(\"hällo 樹\");\n}", "<|im_end|> x"] {
        let answer = h.post("/tokenize", &json!({"prompt": text})).ok();
        let expected = tokenizer.encode(text, true).unwrap();
        assert_eq!(ids(&answer["tokens"]), expected);
        assert_eq!((&answer["count"], &answer["max_model_len"]), (&json!(expected.len()), &json!(4096)));
        assert_eq!(answer["token_strs"], Value::Null);
        let strs = h.post("/tokenize", &json!({"prompt": text, "return_token_strs": true})).ok();
        let spelt: Vec<_> = expected.iter().map(|&id| tokenizer.piece(id).unwrap()).collect();
        assert_eq!(strs["token_strs"], json!(spelt));
        let bare = tokenizer.encode(text, false).unwrap();
        let answer = h.post("/tokenize", &json!({"prompt": text, "add_special_tokens": false})).ok();
        assert_eq!(ids(&answer["tokens"]), bare);
        // llama-server's.
        assert_eq!(h.post("/tokenize", &json!({"content": text})).ok(), json!({"tokens": bare}));
        let pieces = h.post("/tokenize", &json!({"content": text, "with_pieces": true})).ok();
        let mut bytes = Vec::new();
        for (piece, &id) in pieces["tokens"].as_array().unwrap().iter().zip(&bare) {
            assert_eq!(piece["id"], id);
            match &piece["piece"] {
                Value::String(text) => bytes.extend(text.bytes()),
                list => bytes.extend(ids(list).iter().map(|&b| b as u8)),
            }
        }
        assert_eq!(bytes, text.as_bytes());
        let back = h.post("/detokenize", &json!({"tokens": bare})).ok();
        assert_eq!(back, json!({"prompt": text, "content": text}));
    }
}

#[test]
fn messages_are_counted_as_the_chat_endpoint_counts_them() {
    let h = Harness::start();
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]);
    let user = json!({"role": "user", "content": "Tell me of the sea."});
    let begun = json!([user, {"role": "assistant", "content": "The sea is"}]);
    for body in [
        json!({"messages": [user]}),
        json!({"messages": [user], "add_generation_prompt": false}),
        json!({"messages": begun, "continue_final_message": true}),
        json!({"messages": [user], "tools": tools, "chat_template_kwargs": {"enable_thinking": false}}),
    ] {
        let text = h.post("/apply-template", &body).ok()["prompt"].as_str().unwrap().to_owned();
        let tokens = h.post("/tokenize", &body).ok();
        assert_eq!(ids(&tokens["tokens"]), tokenizer().encode(&text, false).unwrap(), "{text}");
        let mut chat = body.clone();
        (chat["max_tokens"], chat["return_token_ids"]) = (json!(1), json!(true));
        let answer = h.chat(chat).ok();
        assert_eq!(answer["prompt_token_ids"], tokens["tokens"]);
        assert_eq!(answer["usage"]["prompt_tokens"], tokens["count"]);
        let open = body.get("add_generation_prompt").is_none() && body.get("continue_final_message").is_none();
        assert_eq!(text.ends_with("assistant\n"), open, "{text}");
        assert_eq!(text.ends_with("The sea is"), body.get("continue_final_message").is_some(), "{text}");
    }
    let both = json!({"messages": begun, "continue_final_message": true, "add_generation_prompt": true});
    let reply = h.post("/apply-template", &both);
    assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("continue_final_message")));
}

#[test]
fn a_tenant_counts_with_its_own_replies_only() {
    let keys = Some(Keys::parse("alice key-a\nbob key-b\n").unwrap());
    let server = ServerConfig { keys, ..ServerConfig::default() };
    let h = Harness::with(Setup { server, ascii: true, ..Setup::default() });
    let ask = |key: &str, path: &str, body: &Value| {
        let reply = h.request("POST", path, &[("x-api-key", key)], body.to_string().as_bytes());
        reply.ok()
    };
    let user = json!({"role": "user", "content": "Begin."});
    let answer = ask(
        "key-a",
        "/v1/chat/completions",
        &json!({"messages": [user], "max_tokens": 30, "return_token_ids": true, "temperature": 1, "seed": 3}),
    );
    let reply = &answer["choices"][0]["message"]["content"];
    let next = json!({"messages": [user, {"role": "assistant", "content": reply}, user]});
    let (alice, bob) = (ask("key-a", "/tokenize", &next), ask("key-b", "/tokenize", &next));
    let known = [ids(&answer["prompt_token_ids"]), ids(&answer["choices"][0]["token_ids"])].concat();
    assert_eq!(ids(&alice["tokens"])[..known.len()], known);
    let text = ask("key-b", "/apply-template", &next)["prompt"].as_str().unwrap().to_owned();
    assert_eq!(ids(&bob["tokens"]), tokenizer().encode(&text, false).unwrap());
    assert_ne!(alice["tokens"], bob["tokens"], "random tokens are not what their text is tokenised to");
}

#[test]
fn what_cannot_be_converted_is_named() {
    let mut setup = Setup { context: 256, chunks: 64, ..Setup::default() };
    setup.server.max_body = 4000;
    setup.server.strict_model = true;
    let h = Harness::with(setup);
    for (path, body, param) in [
        ("/tokenize", json!({}), json!("prompt")),
        ("/tokenize", json!({"prompt": "a", "content": "b"}), json!("prompt")),
        ("/tokenize", json!({"prompt": ["a"]}), json!("prompt")),
        ("/tokenize", json!({"content": 5}), json!("content")),
        ("/tokenize", json!({"content": "a", "parse_special": false}), json!("parse_special")),
        ("/tokenize", json!({"prompt": "a", "add_special_tokens": 1}), json!("add_special_tokens")),
        ("/tokenize", json!({"messages": []}), json!("messages")),
        ("/detokenize", json!({}), json!("tokens")),
        ("/detokenize", json!({"tokens": [-1]}), json!("tokens")),
        ("/detokenize", json!({"tokens": [4096]}), json!("tokens")),
        ("/detokenize", json!({"tokens": "5"}), json!("tokens")),
        ("/apply-template", json!({}), json!("messages")),
        ("/apply-template", json!({"messages": [{"role": 1}]}), json!("messages[0].role")),
        ("/apply-template", json!({"messages": [], "chat_template_kwargs": 3}), json!("chat_template_kwargs")),
    ] {
        let reply = h.post(path, &body);
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &param), "{path} {body}: {}", reply.text());
    }
    let long = json!({"messages": [{"role": "user", "content": "x y ".repeat(100_000)}]});
    let reply = Harness::with(Setup { context: 256, ..Setup::default() }).post("/tokenize", &long);
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (400, &json!("context_length_exceeded")));
    for path in ["/tokenize", "/detokenize", "/apply-template"] {
        let reply = h.post(path, &json!({"prompt": "x".repeat(5000)}));
        assert_eq!(reply.status, 413, "{path}");
        let reply = h.post(path, &json!({"model": "other", "prompt": "x", "tokens": [], "messages": []}));
        assert_eq!((reply.status, &reply.json()["error"]["code"]), (404, &json!("model_not_found")));
        assert_eq!(h.request("POST", path, &[], b"{").status, 400);
        assert_eq!(h.get(path).status, 405);
    }
}

#[test]
fn the_server_says_what_it_is() {
    let h = Harness::start();
    assert_eq!(h.get("/version").ok(), json!({"version": env!("CARGO_PKG_VERSION")}));
    let props = h.get("/props").ok();
    let (text, model) = parts();
    assert_eq!((&props["model_alias"], &props["model_path"]), (&json!(model.id), &json!(model.id)));
    assert_eq!(props["default_generation_settings"]["n_ctx"], 4096);
    assert_eq!(props["default_generation_settings"]["params"]["temperature"], 0.0);
    assert_eq!(props["chat_template"], json!(text.template.unwrap().source()));
    assert!(props["chat_template"].as_str().unwrap().contains("messages"));
    assert_eq!(props["eos_token"], "<|im_end|>");
    assert!(props["build_info"].as_str().unwrap().starts_with("kvist "));
    let info = h.get("/tokenizer_info").ok();
    assert_eq!((&info["eos_token"], &info["chat_template"]), (&props["eos_token"], &props["chat_template"]));
    assert!(!props.to_string().contains(env!("CARGO_MANIFEST_DIR")));
}
