//! What answers tell on request besides their text: token ids, logprobs of prompts, what was cut off.

use serde_json::{Value, json};

use crate::harness::{Harness, Setup, text_of, tokenizer, with_messages};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn ids(list: &Value) -> Vec<u32> {
    list.as_array().unwrap_or_else(|| panic!("{list}")).iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

/// The ids that a stream's chunks carry for one choice.
fn streamed_ids(chunks: &[Value], index: u64) -> Vec<u32> {
    let choices = chunks.iter().flat_map(|c| c["choices"].as_array().unwrap()).filter(|c| c["index"] == index);
    choices.filter_map(|c| c.get("token_ids")).flat_map(ids).collect()
}

#[test]
fn token_ids_are_told_whole_and_streamed() {
    let h = Harness::with(Setup { eos_every: 12, ..Setup::default() });
    let tokenizer = tokenizer();
    let chat = with_messages(json!({"max_tokens": 30, "n": 2, "temperature": 1, "seed": 1, "return_token_ids": true}));
    let whole = h.chat(chat.clone()).ok();
    let prompt = ids(&whole["prompt_token_ids"]);
    assert_eq!(prompt.len() as u64, whole["usage"]["prompt_tokens"].as_u64().unwrap());
    let mut streamed = chat;
    streamed["stream"] = json!(true);
    let chunks = h.stream(CHAT, &streamed);
    for i in 0..2 {
        let choice = &whole["choices"][i as usize];
        let drawn = ids(&choice["token_ids"]);
        assert_eq!(choice["message"]["content"], tokenizer.decode(&drawn, true), "special tokens have no text");
        assert_eq!(streamed_ids(&chunks, i), drawn);
        let first = chunks.iter().find(|c| c["choices"][0]["index"] == i).unwrap();
        assert_eq!(ids(&first["prompt_token_ids"]), prompt);
    }
    assert_eq!(chunks.iter().filter(|c| c.get("prompt_token_ids").is_some()).count(), 2, "in first chunks only");

    let body = json!({"prompt": [[5, 6, 7], [8, 9]], "n": 2, "max_tokens": 9, "return_token_ids": true});
    let whole = h.complete(&body).ok();
    let mut streamed = body;
    streamed["stream"] = json!(true);
    let chunks = h.stream(TEXT, &streamed);
    for (i, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
        assert_eq!(choice["prompt_token_ids"], [json!([5, 6, 7]), json!([8, 9])][i / 2], "prompt-major");
        assert_eq!(streamed_ids(&chunks, i as u64), ids(&choice["token_ids"]));
        assert_eq!(text_of(&chunks, i as u64), choice["text"].as_str().unwrap());
        let first = chunks.iter().map(|c| &c["choices"][0]).find(|c| c["index"] == i).unwrap();
        assert_eq!(first["prompt_token_ids"], choice["prompt_token_ids"]);
    }
    let plain = h.chat(json!({"max_tokens": 2})).ok();
    assert!(plain.get("prompt_token_ids").is_none() && plain["choices"][0].get("token_ids").is_none());
}

#[test]
fn a_stop_string_cuts_text_and_not_ids() {
    let h = Harness::with(Setup { ascii: true, ..Setup::default() });
    let body = json!({"prompt": "cut", "max_tokens": 40, "stop": "e", "return_token_ids": true});
    let choice = h.complete(&body).ok()["choices"][0].clone();
    let all = tokenizer().decode(&ids(&choice["token_ids"]), true);
    assert_eq!(all.find('e').map(|at| &all[..at]), choice["text"].as_str());
}

#[test]
fn logprobs_may_name_tokens_by_id() {
    let h = Harness::start();
    let ask = |as_ids: bool| {
        let more = json!({"max_tokens": 4, "return_tokens_as_token_ids": as_ids, "return_token_ids": true});
        let with = |other: Value| {
            let mut body = more.clone();
            body.as_object_mut().unwrap().extend(other.as_object().unwrap().clone());
            body
        };
        let chat = h.chat(with(json!({"logprobs": true, "top_logprobs": 2}))).ok();
        (
            chat["choices"][0].clone(),
            h.complete(&with(json!({"prompt": "x", "logprobs": 2}))).ok()["choices"][0].clone(),
        )
    };
    let ((chat, text), (named_chat, named_text)) = (ask(true), ask(false));
    for (i, &id) in ids(&chat["token_ids"]).iter().enumerate() {
        let (token, named) = (&chat["logprobs"]["content"][i], &named_chat["logprobs"]["content"][i]);
        assert_eq!(token["token"], format!("token_id:{id}"));
        assert_eq!(token["top_logprobs"][0]["token"], token["token"], "greedy");
        assert_eq!((&token["bytes"], &token["logprob"]), (&named["bytes"], &named["logprob"]));
    }
    for (i, &id) in ids(&text["token_ids"]).iter().enumerate() {
        let lists = &text["logprobs"];
        let name = format!("token_id:{id}");
        assert_eq!(lists["tokens"][i], name);
        assert_eq!(lists["top_logprobs"][i][&name], lists["token_logprobs"][i]);
        assert_eq!(lists["token_logprobs"][i], named_text["logprobs"]["token_logprobs"][i]);
        assert_eq!(lists["text_offset"], named_text["logprobs"]["text_offset"]);
    }
}

#[test]
fn logprobs_of_prompts_have_vllms_shape() {
    let h = Harness::start();
    let tokenizer = tokenizer();
    let prompt: Vec<u32> = (300..340).collect();
    let echoed = json!({"prompt": prompt, "echo": true, "logprobs": 3, "max_tokens": 1});
    let echoed = h.complete(&echoed).ok()["choices"][0]["logprobs"].clone();
    let body = json!({"prompt": [prompt, [7]], "prompt_logprobs": 3, "max_tokens": 1});
    let answer = h.complete(&body).ok();
    let list = answer["choices"][0]["prompt_logprobs"].as_array().unwrap();
    assert_eq!((list.len(), &list[0]), (40, &Value::Null));
    for (i, (entry, &id)) in list.iter().zip(&prompt).enumerate().skip(1) {
        let map = entry.as_object().unwrap();
        assert_eq!(map.keys().next(), Some(&id.to_string()), "the prompt's own token first");
        let own = &map[&id.to_string()];
        assert_eq!(own["logprob"], echoed["token_logprobs"][i]);
        assert_eq!(own["decoded_token"], String::from_utf8_lossy(&tokenizer.token_bytes(id)).as_ref());
        let mut ranks: Vec<u64> = map.values().map(|t| t["rank"].as_u64().unwrap()).collect();
        ranks.sort_unstable();
        assert_eq!(ranks[..3], [1, 2, 3]);
        assert_eq!(map.len(), if own["rank"].as_u64().unwrap() <= 3 { 3 } else { 4 });
    }
    assert_eq!(answer["choices"][1]["prompt_logprobs"], json!([null]));
    // Only the prompt's own, and both kinds at once.
    let both = json!({"prompt": prompt, "echo": true, "logprobs": 3, "prompt_logprobs": 0, "max_tokens": 1});
    let both = h.complete(&both).ok()["choices"][0].clone();
    assert_eq!(both["logprobs"], echoed);
    assert!(both["prompt_logprobs"].as_array().unwrap()[1..].iter().all(|e| e.as_object().unwrap().len() == 1));

    let chat = h.chat(json!({"prompt_logprobs": 1, "max_tokens": 1, "return_token_ids": true})).ok();
    let (list, prompt) = (chat["prompt_logprobs"].as_array().unwrap(), ids(&chat["prompt_token_ids"]));
    assert_eq!(list.len(), prompt.len());
    assert!(list[1..].iter().zip(&prompt[1..]).all(|(e, id)| e.get(id.to_string()).is_some()));
    let much = json!({"prompt": vec![vec![7; 4000]; 16], "n": 16, "prompt_logprobs": 20, "max_tokens": 1});
    let refused = h.complete(&much);
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("prompt_logprobs")));
    let refused = h.chat(json!({"prompt_logprobs": 1, "stream": true}));
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("prompt_logprobs")));
}

#[test]
fn a_prompt_is_cut_only_when_asked_and_the_answer_says_so() {
    let h = Harness::with(Setup { context: 256, chunks: 64, ..Setup::default() });
    let prompt: Vec<u32> = (100..400).collect();
    let header = "x-kvist-truncated-prompt-tokens";
    assert_eq!(h.complete(&json!({"prompt": prompt})).status, 400);
    let reply = h.complete(&json!({"prompt": prompt, "truncate_prompt_tokens": 10, "return_token_ids": true}));
    assert_eq!(reply.header(header), Some("290"));
    let cut = reply.ok();
    assert_eq!(cut["usage"]["prompt_tokens"], 10);
    assert_eq!(cut["usage"]["kvist"]["truncated_prompt_tokens"], 290);
    assert_eq!(cut["choices"][0]["prompt_token_ids"], json!(prompt[290..]));
    let whole = h.complete(&json!({"prompt": prompt[290..]}));
    assert_eq!(whole.header(header), None);
    let whole = whole.ok();
    assert_eq!(whole["choices"][0]["text"], cut["choices"][0]["text"]);
    assert!(whole["usage"]["kvist"].get("truncated_prompt_tokens").is_none());
    // As much as there is room for; nothing where all fits.
    let room = json!({"prompt": [prompt, [7]], "truncate_prompt_tokens": -1, "max_tokens": 6});
    let answer = h.complete(&room).ok();
    assert_eq!(answer["usage"]["prompt_tokens"], 250 + 1);
    assert_eq!(answer["usage"]["kvist"]["truncated_prompt_tokens"], 50);
    let text = "many words ".repeat(400);
    let body = json!({"prompt": text, "truncate_prompt_tokens": 20, "max_tokens": 2, "return_token_ids": true});
    let all = tokenizer().encode(&text, true).unwrap();
    assert_eq!(ids(&h.complete(&body).ok()["choices"][0]["prompt_token_ids"]), all[all.len() - 20..]);

    let long = json!([{"role": "user", "content": "A long story. ".repeat(300)}]);
    assert_eq!(h.chat(json!({"messages": long})).status, 400);
    let body = json!({"messages": long, "truncate_prompt_tokens": 30, "max_tokens": 3});
    let answer = h.chat(body.clone()).ok();
    let cut = answer["usage"]["kvist"]["truncated_prompt_tokens"].as_u64().unwrap();
    assert_eq!(answer["usage"]["prompt_tokens"], 30);
    let mut streamed = body;
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let reply = h.post(CHAT, &streamed);
    assert_eq!(reply.header(header), Some(cut.to_string().as_str()));
    assert!(reply.text().contains(&format!("\"truncated_prompt_tokens\":{cut}")));
    h.until_empty();
}

#[test]
fn fields_that_nobody_knows_are_counted() {
    let h = Harness::start();
    h.chat(json!({"max_tokens": 1, "user": "u", "made_up_field": 1, "n": 1, "seed": null})).ok();
    h.until_log(|line| line.contains(" ignored=2"));
    assert_eq!(h.metric("kvist_ignored_fields_total"), 2.0);
    h.complete(&json!({"prompt": "x", "max_tokens": 1})).ok();
    assert_eq!(h.metric("kvist_ignored_fields_total"), 2.0);
    let log = h.log.lock().unwrap().join("\n");
    assert!(!log.contains("made_up_field"), "names are the client's text");
}
