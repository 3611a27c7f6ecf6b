//! `/v1/kvist/explain`: what it says is what then happens.

use kvist_base::DomainId;
use kvist_engine::Prospect;
use kvist_server::explain::{Asked, Explained, Why};
use kvist_server::{Carried, Keys, OnOverflow, Overflow, Owner, ServerConfig};
use kvist_store::Nearest;
use kvist_text::ReplyTable;
use serde_json::{Value, json};

use crate::harness::{Harness, Setup, parts};

const STORY: &str =
    "The lighthouse stands at the end of the long pier, and every evening its keeper climbs the stairs. ";

fn chat(system: &str, user: &str) -> Value {
    json!({"messages": [{"role": "system", "content": system}, {"role": "user", "content": user}], "max_tokens": 3})
}

fn explain(h: &Harness, body: &Value) -> Value {
    let told = h.post("/v1/kvist/explain", body).ok();
    assert_eq!((&told["object"], &told["model"]), (&json!("kvist.explanation"), &json!("kvist-test")));
    told
}

#[test]
fn what_is_foretold_happens() {
    let h = Harness::start();
    let system = STORY.repeat(12);
    let first = chat(&system, "Who keeps it?");
    let told = explain(&h, &first);
    assert_eq!((&told["ram"], &told["disk"], &told["why"]["reason"]), (&json!(0), &json!(0), &json!("nothing")));
    assert_eq!(told["computed"], told["tokens"]);
    h.chat(first.clone()).ok();
    let told = explain(&h, &first);
    assert_eq!((&told["computed"], &told["why"]["reason"]), (&json!(1), &json!("complete")));

    let other = chat(&system, "Has it a bell?");
    let told = explain(&h, &other);
    assert_eq!(
        (&told["why"]["reason"], &told["why"]["in_system_prompt"]),
        (&json!("differs"), &json!(false)),
        "{told}"
    );
    assert!(told["why"]["prompt"]["after"].as_str().unwrap().starts_with("Has"), "{told}");
    assert!(told["why"]["stored"]["after"].as_str().unwrap().starts_with("Who"), "{told}");
    assert_eq!(told["why"]["prompt"]["before"], told["why"]["stored"]["before"]);
    assert_eq!(told["why"]["at"], told["ram"]);
    // Asking changes nothing.
    assert_eq!(explain(&h, &other), told);
    let usage = &h.chat(other).ok()["usage"];
    assert_eq!(usage["prompt_tokens"], told["tokens"]);
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], told["ram"]);

    let changed = chat(&system.replacen("pier", "wall", 1), "Who keeps it?");
    let told = explain(&h, &changed);
    assert_eq!((&told["why"]["reason"], &told["why"]["in_system_prompt"]), (&json!("differs"), &json!(true)), "{told}");
    assert!(told["why"]["stored"]["after"].as_str().unwrap().contains("pier"), "{told}");
}

#[test]
fn a_completion_is_explained_like_a_chat() {
    let h = Harness::start();
    let prompt = STORY.repeat(8);
    let ids = h.post("/tokenize", &json!({"prompt": prompt})).ok()["tokens"].clone();
    h.complete(&json!({"prompt": prompt, "max_tokens": 1})).ok();
    let longer = json!({"prompt": format!("{prompt}Then the storm came, and nobody had seen one like it.")});
    let told = explain(&h, &longer);
    assert!(["ends", "differs"].contains(&told["why"]["reason"].as_str().unwrap()), "{told}");
    assert!(told["ram"].as_u64().unwrap() + 2 >= ids.as_array().unwrap().len() as u64, "{told}");
    assert_eq!(explain(&h, &json!({"prompt": ids}))["why"]["reason"], "complete");
    for (body, status, part) in [
        (json!({}), 400, "prompt"),
        (json!({"prompt": ""}), 400, "prompt"),
        (json!({"prompt": ["a", "b"]}), 400, "prompt"),
        (json!({"prompt": [4_000_000]}), 400, "vocabulary"),
        (json!({"messages": "x"}), 400, "messages"),
        (json!({"prompt": STORY.repeat(1000)}), 400, "context"),
        (json!({"prompt": vec![7; 4097]}), 400, "4097"),
    ] {
        let reply = h.post("/v1/kvist/explain", &body);
        let error = reply.json()["error"].clone();
        assert_eq!(reply.status, status, "{error}");
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
}

#[test]
fn a_tenant_is_told_of_its_own() {
    let keys = Some(Keys::parse("alice key-a\nbob key-b\n").unwrap());
    let server = ServerConfig { keys, ..ServerConfig::default() };
    let h = Harness::with(Setup { server, ..Setup::default() });
    let ask = |key: &str, path: &str, body: &Value| {
        h.request("POST", path, &[("x-api-key", key)], body.to_string().as_bytes()).ok()
    };
    let body = chat(&STORY.repeat(6), "Who keeps it?");
    ask("key-a", "/v1/chat/completions", &body);
    assert_eq!(ask("key-a", "/v1/kvist/explain", &body)["why"]["reason"], "complete");
    let told = ask("key-b", "/v1/kvist/explain", &body);
    assert_eq!((&told["ram"], &told["why"]), (&json!(0), &json!({"reason": "nothing"})));
}

#[test]
fn what_the_disk_has_is_told_with_its_reason() {
    let (text, _) = parts();
    let body = json!({"prompt": STORY.repeat(12)}).to_string();
    let overflow = Overflow {
        on: OnOverflow::Error,
        room: 4096,
        owner: Owner { domain: DomainId(1), name: "operator".into() },
        carried: &Carried::default(),
        store: None,
        make: false,
    };
    let asked = Asked::read(&text, &ReplyTable::new(0), overflow, 0, body.as_bytes()).unwrap();
    let (ids, all) = (&asked.ids, asked.ids.len());
    let whole = all / 64 * 64;
    assert!(all > 192 && whole < all);
    let told = |tier: usize, loads: bool, common: usize, gone: Option<usize>| {
        let prospect = Prospect { tier, loads, load: 2000, compute: Some(1000), ..Prospect::default() };
        let stored = Nearest { common, tokens: ids[..common].to_vec(), gone };
        Explained::new(&text.tokenizer, &asked, &prospect, true, Some(&stored))
    };
    let e = told(128, false, 128, None);
    assert_eq!(e.why, Why::ComputedFaster { at: 0 });
    assert_eq!((e.ram, e.disk, e.on_disk, e.computed, e.ttft_ms), (Some(0), 0, 128, all, Some(1.0)));
    let e = told(64, true, 192, Some(64));
    assert_eq!((e.why, e.disk, e.computed, e.ttft_ms), (Why::Evicted { at: 64 }, 64, all - 64, Some(3.0)));
    assert_eq!(told(64, true, 64, None).why, Why::Ends { at: 64 });
    assert_eq!(told(whole, true, whole, None).why, Why::LastChunk { at: whole });
    assert_eq!(told(0, false, 0, None).why, Why::Nothing);
    // What is told can be read again.
    let e = told(64, true, 64, None);
    assert_eq!(serde_json::from_value::<Explained>(serde_json::to_value(&e).unwrap()).unwrap(), e);
}
