//! Whole answers: shapes, usage, several choices and prompts, splicing, limits.

use serde_json::{Value, json};

use crate::harness::{Harness, Setup, parts, tokenizer};

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn a_chat_answer_has_the_shape_that_clients_read() {
    let h = Harness::start();
    let reply = h.chat(json!({"model": "whatever", "max_tokens": 12, "user": "u", "unknown_field": [1]}));
    assert_eq!(reply.header("content-type"), Some("application/json"));
    let answer = reply.ok();
    assert_eq!(keys(&answer), ["id", "object", "created", "model", "choices", "usage", "timings"]);
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!("kvist-test")));
    assert!(answer["created"].as_u64().unwrap() > 1_600_000_000);
    let choice = &answer["choices"][0];
    assert_eq!(keys(choice), ["index", "message", "logprobs", "finish_reason"]);
    assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(0), &json!("length")));
    assert_eq!(choice["message"]["role"], "assistant");
    assert!(!choice["message"]["content"].as_str().unwrap().is_empty());
    assert_eq!(choice["logprobs"], Value::Null);
    let usage = &answer["usage"];
    let prompt = usage["prompt_tokens"].as_u64().unwrap();
    assert_eq!(usage["completion_tokens"], 12);
    assert_eq!(usage["total_tokens"], prompt + 12);
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
    assert_eq!(usage["kvist"], json!({"spliced_tokens": 0, "computed_tokens": prompt, "preemptions": 0}));

    let again = h.chat(json!({"max_tokens": 12})).ok();
    assert_eq!(again["choices"][0]["message"], choice["message"]);
    assert_eq!(again["usage"]["prompt_tokens_details"]["cached_tokens"], prompt - 1);
    assert_ne!(again["id"], answer["id"]);
    h.until_empty();
}

#[test]
fn a_completion_takes_text_and_ids_alike() {
    let h = Harness::start();
    let text = "The harbour at dawn";
    let ids = tokenizer().encode(text, true).unwrap();
    let by_text = h.complete(&json!({"prompt": text})).ok();
    let by_ids = h.complete(&json!({"prompt": ids})).ok();
    assert_eq!(by_text["object"], "text_completion");
    assert!(by_text["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(keys(&by_text["choices"][0]), ["index", "text", "logprobs", "finish_reason"]);
    assert_eq!(by_text["usage"]["completion_tokens"], 16, "the default");
    assert_eq!(by_text["choices"], by_ids["choices"]);
    assert_eq!(by_ids["usage"]["prompt_tokens_details"]["cached_tokens"], ids.len() as u64 - 1);

    let many = h.complete(&json!({"prompt": [text, "Another"], "n": 2, "max_tokens": 3})).ok();
    let choices = many["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|c| c["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(choices[0]["text"], choices[1]["text"], "greedy choices agree");
    let alone = h.complete(&json!({"prompt": "Another", "max_tokens": 3})).ok();
    assert_eq!(choices[2]["text"], alone["choices"][0]["text"]);
    assert_eq!(many["usage"]["completion_tokens"], 12);
    let id_lists = h.complete(&json!({"prompt": [ids, [5, 6, 7]], "max_tokens": 3})).ok();
    assert_eq!(id_lists["choices"][0]["text"], choices[0]["text"]);
}

#[test]
fn choices_differ_and_a_seed_repeats_them() {
    let h = Harness::start();
    let ask = |seed: i64| h.chat(json!({"n": 3, "max_tokens": 20, "temperature": 1.5, "seed": seed})).ok();
    let texts = |answer: &Value| -> Vec<String> {
        let choices = answer["choices"].as_array().unwrap().iter();
        choices.map(|c| c["message"]["content"].as_str().unwrap().to_owned()).collect()
    };
    let (a, b, c) = (ask(7), ask(7), ask(-8));
    assert_eq!(texts(&a).len(), 3);
    assert!(texts(&a)[0] != texts(&a)[1] && texts(&a)[1] != texts(&a)[2]);
    assert_eq!(texts(&a), texts(&b));
    assert_ne!(texts(&a), texts(&c));
    assert_eq!(a["usage"]["completion_tokens"], 60);
    let once = h.chat(json!({"max_tokens": 1})).ok()["usage"]["prompt_tokens"].clone();
    assert_eq!(a["usage"]["prompt_tokens"], once, "the prompt counts once");
    let unseeded =
        [h.chat(json!({"max_tokens": 20, "temperature": 2})), h.chat(json!({"max_tokens": 20, "temperature": 2}))];
    assert_ne!(texts(&unseeded[0].ok()), texts(&unseeded[1].ok()));
}

#[test]
fn a_reply_ends_at_eos_unless_told_otherwise() {
    let h = Harness::with(Setup { eos_every: 8, ..Setup::default() });
    let answer = h.chat(json!({})).ok();
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(!text.contains("<|im_end|>"));
    let generated = answer["usage"]["completion_tokens"].as_u64().unwrap();
    assert_eq!(reason_one_token_short(&h, generated), "length");
    let on = h.chat(json!({"ignore_eos": true, "max_tokens": generated + 9})).ok();
    assert_eq!(on["usage"]["completion_tokens"], generated + 9);
    assert_eq!(on["choices"][0]["finish_reason"], "length");
    assert!(on["choices"][0]["message"]["content"].as_str().unwrap().starts_with(text));
}

/// Cut one token before EOS the same reply ends by length.
fn reason_one_token_short(h: &Harness, generated: u64) -> String {
    let cut = h.chat(json!({"max_tokens": generated - 1})).ok();
    cut["choices"][0]["finish_reason"].as_str().unwrap().to_owned()
}

#[test]
fn the_next_turn_hits_up_to_the_replys_last_token() {
    let h = Harness::with(Setup { eos_every: 40, ascii: true, ..Setup::default() });
    let mut messages = vec![json!({"role": "user", "content": "Begin a story."})];
    let mut spliced_before = 0;
    for turn in 0..4 {
        let answer = h.chat(json!({"messages": messages, "max_tokens": 200, "temperature": 1, "seed": turn})).ok();
        let usage = &answer["usage"];
        assert_eq!(usage["kvist"]["spliced_tokens"], spliced_before, "turn {turn}");
        let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
        let stopped = answer["choices"][0]["finish_reason"] == "stop";
        let reply = usage["completion_tokens"].as_u64().unwrap() - u64::from(stopped);
        let known = usage["prompt_tokens"].as_u64().unwrap() + reply;
        messages.push(json!({"role": "assistant", "content": content}));
        messages.push(json!({"role": "user", "content": format!("Go on, part {turn}.")}));
        let probe = h.chat(json!({"messages": messages, "max_tokens": 1})).ok();
        spliced_before = probe["usage"]["kvist"]["spliced_tokens"].as_u64().unwrap();
        let cached = probe["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        // The last token that was drawn has no KV; of a stop it is EOS, which the template writes again.
        assert!(cached + 1 >= known, "turn {turn}: {cached} of {known} cached");
    }
    assert!(spliced_before > 40);
    assert!(h.metric("kvist_spliced_tokens_total") > 0.0);

    // Another text in the same place splices nothing.
    messages[1]["content"] = json!("Something else.");
    let answer = h.chat(json!({"messages": messages[..3], "max_tokens": 1})).ok();
    assert_eq!(answer["usage"]["kvist"]["spliced_tokens"], 0);
}

#[test]
fn what_cannot_fit_is_refused_with_both_numbers() {
    let h = Harness::with(Setup { context: 256, chunks: 64, ..Setup::default() });
    let check = |body: Value, numbers: [&str; 2]| {
        let reply = h.complete(&body);
        let error = &reply.json()["error"];
        assert_eq!((reply.status, &error["code"]), (400, &json!("context_length_exceeded")), "{error}");
        assert!(numbers.iter().all(|n| error["message"].as_str().unwrap().contains(n)), "{error}");
    };
    let ids = |n: usize| vec![5; n];
    check(json!({"prompt": ids(300)}), ["256", "300"]);
    check(json!({"prompt": ids(256)}), ["256", "256"]);
    check(json!({"prompt": ids(200), "max_tokens": 57}), ["256", "257"]);
    assert_eq!(h.complete(&json!({"prompt": ids(200), "max_tokens": 56})).ok()["usage"]["completion_tokens"], 56);
    assert_eq!(h.complete(&json!({"prompt": ids(250)})).ok()["usage"]["completion_tokens"], 6, "to the end");
    let unlimited = |mut body: Value| {
        body["prompt"] = json!(ids(200));
        body["n_predict"] = json!(-1);
        h.complete(&body).ok()["usage"]["completion_tokens"].clone()
    };
    assert_eq!(unlimited(json!({})), 56, "no limit in llama-server's words");
    assert_eq!(unlimited(json!({"max_tokens": 3})), 3);
    let chat = h.chat(json!({})).ok();
    assert_eq!(chat["usage"]["total_tokens"], 256, "to the end of the context");
    assert_eq!(h.complete(&json!({"prompt": ids(256), "max_tokens": 0})).ok()["choices"][0]["text"], "");

    // A pool that is smaller than the context.
    let h = Harness::with(Setup { context: 4096, chunks: 5, ..Setup::default() });
    let chat = h.chat(json!({})).ok();
    assert_eq!(chat["usage"]["total_tokens"], 256);
    let reply = h.complete(&json!({"prompt": ids(20), "max_tokens": 1000}));
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (400, &json!("context_length_exceeded")));
    let (_, model) = parts();
    assert_eq!(h.get("/v1/models").ok()["data"][0], h.get(&format!("/v1/models/{}", model.id)).ok());
    assert_eq!(h.get("/v1/models").ok()["data"][0]["max_model_len"], 256);
}

#[test]
fn any_model_name_is_served_unless_strict() {
    let mut setup = Setup::default();
    setup.server.strict_model = true;
    let h = Harness::with(setup);
    let reply = h.chat(json!({"model": "gpt-4o", "max_tokens": 1}));
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (404, &json!("model_not_found")));
    assert_eq!(h.chat(json!({"model": "kvist-test", "max_tokens": 1})).status, 200);
    assert_eq!(h.chat(json!({"max_tokens": 1})).status, 200);
    let other = h.get("/v1/models/other");
    assert_eq!((other.status, &other.json()["error"]["code"]), (404, &json!("model_not_found")));
    assert_eq!(h.get("/v1/models/kvist%2Dtest").ok(), h.get("/v1/models/kvist-test").ok(), "ids come encoded");
}
