//! Logprobs of drawn tokens and of prompts.

use serde_json::{Value, json};

use crate::harness::{Harness, Setup, text_of, tokenizer, with_messages};

const CHAT: &str = "/v1/chat/completions";

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}"))
}

fn bytes(value: &Value) -> Vec<u8> {
    list(value).iter().map(|b| b.as_u64().unwrap() as u8).collect()
}

#[test]
fn chat_tokens_spell_the_text() {
    let h = Harness::start();
    for top in [0, 5, 20] {
        let body = json!({"logprobs": true, "top_logprobs": top, "max_tokens": 30, "temperature": 1, "seed": 2});
        let answer = h.chat(body.clone()).ok();
        let choice = &answer["choices"][0];
        let content = list(&choice["logprobs"]["content"]);
        assert_eq!(content.len(), 30);
        let spelt: Vec<u8> = content.iter().flat_map(|t| bytes(&t["bytes"])).collect();
        assert_eq!(String::from_utf8_lossy(&spelt), choice["message"]["content"].as_str().unwrap());
        for token in content {
            assert_eq!(token["token"], String::from_utf8_lossy(&bytes(&token["bytes"])).into_owned());
            let best = list(&token["top_logprobs"]);
            assert_eq!(best.len(), top);
            let scores: Vec<f64> = best.iter().map(|t| t["logprob"].as_f64().unwrap()).collect();
            assert!(scores.is_sorted_by(|a, b| a >= b));
            let own = token["logprob"].as_f64().unwrap();
            assert!(own <= 0.0 && scores.first().is_none_or(|&s| own <= s));
        }
        let mut stream = with_messages(body);
        stream["stream"] = json!(true);
        let chunks = h.stream(CHAT, &stream);
        let streamed: Vec<&Value> =
            chunks.iter().filter_map(|c| c["choices"][0]["logprobs"]["content"].as_array()).flatten().collect();
        assert_eq!(streamed, content.iter().collect::<Vec<_>>());
        assert_eq!(json!(text_of(&chunks, 0)), choice["message"]["content"]);
    }
}

#[test]
fn completion_lists_are_parallel() {
    let h = Harness::start();
    let body = json!({"prompt": "Parallel", "logprobs": 3, "max_tokens": 20});
    let answer = h.complete(&body).ok();
    let choice = &answer["choices"][0];
    let l = &choice["logprobs"];
    let n = list(&l["tokens"]).len();
    assert_eq!(n, 20);
    for name in ["token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(list(&l[name]).len(), n, "{name}");
    }
    for i in 0..n {
        let top = l["top_logprobs"][i].as_object().unwrap();
        let own = &l["token_logprobs"][i];
        let token = l["tokens"][i].as_str().unwrap();
        assert!((3..=4).contains(&top.len()) || token.contains('\u{fffd}'));
        let best = top.values().map(|v| v.as_f64().unwrap()).fold(f64::MIN, f64::max);
        assert_eq!(own.as_f64().unwrap(), best, "greedy: the drawn token is the best, digit by digit");
    }
    let text: Vec<char> = choice["text"].as_str().unwrap().chars().collect();
    for i in 1..n {
        let (from, to) = (l["text_offset"][i - 1].as_u64().unwrap(), l["text_offset"][i].as_u64().unwrap());
        let token = l["tokens"][i - 1].as_str().unwrap();
        let between: String = text[from as usize..to as usize].iter().collect();
        assert!(between == token || between.contains('\u{fffd}') || token.contains('\u{fffd}'));
    }
    assert_eq!(
        h.complete(&json!({"prompt": "x", "logprobs": 0})).ok()["choices"][0]["logprobs"]["top_logprobs"][0]
            .as_object()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn an_echo_scores_the_prompt() {
    let h = Harness::start();
    let ids = tokenizer().encode("The quick brown fox jumps over the lazy dog.", true).unwrap();
    let score =
        |max: u64| h.complete(&json!({"prompt": [ids], "echo": true, "logprobs": 1, "max_tokens": max, "seed": 1234}));
    let cold = score(1).ok();
    let l = &cold["choices"][0]["logprobs"];
    assert_eq!(list(&l["tokens"]).len(), ids.len() + 1);
    assert_eq!((&l["token_logprobs"][0], &l["top_logprobs"][0]), (&Value::Null, &Value::Null));
    assert!(list(&l["token_logprobs"])[1..].iter().all(|v| v.as_f64().is_some_and(|f| f < 0.0)));
    assert_eq!(cold["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    // Warm: the whole prompt is computed again and the numbers are the same.
    let warm = score(1).ok();
    assert_eq!(warm["choices"], cold["choices"]);
    let only = score(0).ok();
    assert_eq!(list(&only["choices"][0]["logprobs"]["tokens"]), &list(&l["tokens"])[..ids.len()]);
    assert_eq!(only["usage"]["completion_tokens"], 0);
    assert_eq!(only["choices"][0]["text"], "The quick brown fox jumps over the lazy dog.");
    // The score of a token is what it would have been drawn with.
    let half = ids.len() / 2;
    let next = h.complete(&json!({"prompt": ids[..half], "logprobs": 20, "max_tokens": 1})).ok();
    let drawn = next["choices"][0]["logprobs"]["tokens"][0].as_str().unwrap();
    let best = l["top_logprobs"][half].as_object().unwrap();
    assert_eq!(best[drawn], next["choices"][0]["logprobs"]["token_logprobs"][0]);

    let text = h.complete(&json!({"prompt": "Echo me", "echo": true, "max_tokens": 2})).ok();
    assert!(text["choices"][0]["text"].as_str().unwrap().starts_with("Echo me"));
    assert_eq!(text["choices"][0]["logprobs"], Value::Null);
}

#[test]
fn offsets_are_places_in_the_echoed_text() {
    let h = Harness::start();
    let tokenizer = tokenizer();
    let prompt = "One<|im_end|>\u{e9}\u{1f600} two";
    let ids = tokenizer.encode(prompt, true).unwrap();
    assert!(ids.iter().any(|&id| tokenizer.is_special(id)));
    for skip in [true, false] {
        for prompt in [json!(prompt), json!(ids)] {
            let body = json!({"prompt": prompt, "echo": true, "logprobs": 0, "max_tokens": 3, "temperature": 0,
                "skip_special_tokens": skip});
            let choice = h.complete(&body).ok()["choices"][0].clone();
            let text: Vec<char> = choice["text"].as_str().unwrap().chars().collect();
            let echoed = tokenizer.decode(&ids, skip).chars().count();
            let offsets: Vec<usize> =
                list(&choice["logprobs"]["text_offset"]).iter().map(|o| o.as_u64().unwrap() as usize).collect();
            assert_eq!(offsets[ids.len()], echoed, "the answer begins where the prompt ends");
            for (i, &id) in ids.iter().enumerate() {
                let piece: String = text[offsets[i]..offsets[i + 1]].iter().collect();
                let own = String::from_utf8(tokenizer.token_bytes(id)).unwrap_or_default();
                if skip && tokenizer.is_special(id) {
                    assert_eq!(piece, "");
                } else if i > 0 && !own.is_empty() {
                    assert!(piece == own || piece.chars().count() <= 1, "{piece:?} is not {own:?}");
                }
            }
        }
    }
}

#[test]
fn a_stop_string_cuts_the_logprobs_too() {
    let h = Harness::with(Setup { ascii: true, ..Setup::default() });
    let ask = |extra: Value| {
        let mut body = json!({"prompt": "Cut", "max_tokens": 20, "logprobs": 0});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        h.complete(&body).ok()["choices"][0].clone()
    };
    let tokens = |choice: &Value| -> Vec<String> {
        list(&choice["logprobs"]["tokens"]).iter().map(|t| t.as_str().unwrap().to_owned()).collect()
    };
    let plain = ask(json!({}));
    let (text, whole) = (plain["text"].as_str().unwrap(), tokens(&plain));
    let mut inside = 0;
    for at in 0..text.len() - 3 {
        let stop = &text[at..at + 3];
        let at = text.find(stop).unwrap();
        let choice = ask(json!({"stop": stop}));
        assert_eq!(choice["text"], text[..at]);
        let told = tokens(&choice);
        assert_eq!(told.concat(), text[..at], "stop {stop:?}");
        let Some((last, before)) = told.split_last() else { continue };
        assert_eq!(before, &whole[..before.len()]);
        assert!(whole[before.len()].starts_with(last));
        inside += usize::from(*last != whole[before.len()]);

        let body = json!({"prompt": "Cut", "max_tokens": 20, "logprobs": 0, "stop": stop, "stream": true});
        let streamed = h.stream("/v1/completions", &body);
        let streamed: String = streamed.iter().flat_map(|c| tokens(&c["choices"][0])).collect();
        assert_eq!(streamed, text[..at]);
    }
    assert!(inside > 10, "{inside} stop strings began inside a token");
}

#[test]
fn the_token_that_ends_a_reply_is_scored() {
    let h = Harness::with(Setup { eos_every: 8, ..Setup::default() });
    let answer = h.complete(&json!({"prompt": "End", "max_tokens": 200, "logprobs": 1})).ok();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "stop");
    let tokens = list(&choice["logprobs"]["tokens"]);
    assert_eq!(tokens.len() as u64, answer["usage"]["completion_tokens"].as_u64().unwrap());
    assert_eq!(tokens.last().unwrap(), "<|im_end|>");
}
