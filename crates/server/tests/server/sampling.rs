//! The fields that say what is drawn and where a choice ends, each with what it must do to tokens that are known.

use serde_json::{Value, json};

use crate::fake::EOS;
use crate::harness::{Harness, Setup, text_of, tokenizer};

const TEXT: &str = "/v1/completions";

/// Two tokens that the fake model does not draw by itself when it draws printable ones only.
fn two() -> (u64, u64) {
    let tokenizer = tokenizer();
    let breaks = |&id: &u64| tokenizer.token_bytes(id as u32).contains(&b'\n');
    let mut ids = (u64::from(EOS) + 1..).filter(breaks);
    (ids.next().unwrap(), ids.next().unwrap())
}

/// Eight tokens, drawn from the two alone: biased, their logits are 10 and 9.
fn of_two(h: &Harness, mut body: Value) -> Vec<u64> {
    let (a, b) = two();
    body["prompt"] = json!([50, a, 51]);
    body["max_tokens"] = json!(8);
    body["allowed_token_ids"] = json!([b, a, b]);
    body["logit_bias"] = json!({a.to_string(): 30, b.to_string(): 29});
    ids(&told(h, body)["choices"][0])
}

/// An answer that tells its token ids.
fn told(h: &Harness, mut body: Value) -> Value {
    body["return_token_ids"] = json!(true);
    h.complete(&body).ok()
}

fn ids(choice: &Value) -> Vec<u64> {
    choice["token_ids"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect()
}

#[test]
fn biases_and_penalties_choose_the_tokens() {
    let h = Harness::with(Setup { ascii: true, ..Setup::default() });
    let (a, b) = two();
    assert_eq!(of_two(&h, json!({})), [a; 8]);
    assert_eq!(of_two(&h, json!({"frequency_penalty": 2})), [a, b, a, b, a, b, a, b]);
    assert_eq!(of_two(&h, json!({"frequency_penalty": -2})), [a; 8]);
    // Once each has lost 2 it is as before.
    assert_eq!(of_two(&h, json!({"presence_penalty": 2})), [a, b, a, a, a, a, a, a]);
    // The prompt has the first: 10 / 1.5 is below 9, until the other has been drawn, too.
    assert_eq!(of_two(&h, json!({"repetition_penalty": 1.5})), [b, a, a, a, a, a, a, a]);
    assert_eq!(of_two(&h, json!({"repetition_penalty": 1.5, "presence_penalty": 2})), [b, a, a, a, a, a, a, a]);
    assert_eq!(of_two(&h, json!({"repetition_penalty": 1.05})), [a; 8], "10 / 1.05 is above 9");
    for neutral in [json!({"presence_penalty": 0, "min_p": 0, "repetition_penalty": 1.0}), json!({"min_tokens": 0})] {
        assert_eq!(of_two(&h, neutral), [a; 8]);
    }
    let answer = told(&h, json!({"prompt": "x", "logit_bias": {"77": 100}, "max_tokens": 3, "temperature": 1}));
    assert_eq!(ids(&answer["choices"][0]), [77; 3]);
    h.until_empty();
}

#[test]
fn choices_count_their_own_tokens() {
    let h = Harness::start();
    let body = json!({"prompt": "n", "n": 4, "temperature": 1.3, "seed": 5, "max_tokens": 40, "frequency_penalty": 2,
        "presence_penalty": 2, "allowed_token_ids": (100..120).collect::<Vec<u32>>()});
    let many = told(&h, body.clone());
    let evenly = |choice: &Value| {
        let ids = ids(choice);
        (100..120).map(|t| ids.iter().filter(|&&i| i == t).count()).max().unwrap()
    };
    // Without the penalties some token comes many times more often.
    assert!(many["choices"].as_array().unwrap().iter().all(|c| evenly(c) <= 6), "{many}");
    assert_eq!(told(&h, body)["choices"], many["choices"], "warm as cold");
}

#[test]
fn min_p_of_one_is_greedy() {
    let h = Harness::start();
    let ask = |more: Value| {
        let mut body = json!({"prompt": "min_p", "temperature": 3, "seed": 4, "max_tokens": 30});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ids(&told(&h, body)["choices"][0])
    };
    let greedy = ask(json!({"temperature": 0}));
    assert_eq!(ask(json!({"min_p": 1})), greedy);
    assert_ne!(ask(json!({"min_p": 0.01})), greedy);
}

#[test]
fn the_models_defaults_hold_until_the_request_says_otherwise() {
    let h = Harness::with(Setup { ascii: true, ..Setup::default() });
    let free = ids(&told(&h, json!({"prompt": "default", "max_tokens": 20}))["choices"][0]);
    let h = Harness::with(Setup { ascii: true, repetition_penalty: 1.5, ..Setup::default() });
    let (a, b) = two();
    assert_eq!(of_two(&h, json!({}))[..2], [b, a]);
    assert_eq!(of_two(&h, json!({"repetition_penalty": 1})), [a; 8]);
    let body = json!({"prompt": "default", "max_tokens": 20, "repetition_penalty": 1});
    assert_eq!(ids(&told(&h, body)["choices"][0]), free);
    assert_eq!(h.get("/props").ok()["default_generation_settings"]["params"]["repeat_penalty"], 1.5);
}

#[test]
fn stop_tokens_end_a_choice_and_are_named() {
    let h = Harness::start();
    let body = json!({"prompt": "stop tokens", "max_tokens": 20, "logprobs": 0});
    let free = told(&h, body.clone());
    let drawn = ids(&free["choices"][0]);
    let stop = drawn[6];
    let n = drawn.iter().position(|&t| t == stop).unwrap() + 1;
    let with = |more: Value| {
        let mut body = body.clone();
        body["stop_token_ids"] = json!([4000, stop]);
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let text = |n: usize| told(&h, json!({"prompt": "stop tokens", "max_tokens": n}))["choices"][0]["text"].clone();
    for ignore_eos in [false, true] {
        let answer = told(&h, with(json!({"ignore_eos": ignore_eos})));
        let choice = &answer["choices"][0];
        assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &json!(stop)));
        assert_eq!(ids(choice), drawn[..n]);
        assert_eq!(choice["text"], text(n - 1));
        assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().len(), n);
        assert_eq!(answer["usage"]["completion_tokens"], n);
    }
    assert_eq!(told(&h, with(json!({"include_stop_str_in_output": true})))["choices"][0]["text"], text(n));
    // Masked, another token takes its place, and the reply is another one from there.
    let later = told(&h, with(json!({"min_tokens": 20})));
    let later = &later["choices"][0];
    assert_eq!((&later["finish_reason"], ids(later).len()), (&json!("length"), 20));
    assert!(later.get("stop_reason").is_none());
    assert_eq!(ids(later)[..n - 1], drawn[..n - 1]);
    assert!(!ids(later).contains(&stop));
    let mut streamed = with(json!({"stream": true, "return_token_ids": true}));
    streamed["include_stop_str_in_output"] = json!(true);
    let chunks = h.stream(TEXT, &streamed);
    assert_eq!(json!(text_of(&chunks, 0)), text(n));
    assert_eq!(chunks.last().unwrap()["choices"][0]["stop_reason"], stop);
}

#[test]
fn min_tokens_holds_off_eos() {
    let h = Harness::with(Setup { eos_every: 6, ..Setup::default() });
    let body = |least: usize| json!({"prompt": "min", "max_tokens": 60, "min_tokens": least});
    let short = told(&h, body(0));
    let n = ids(&short["choices"][0]).len();
    assert!(n < 50 && ids(&short["choices"][0])[n - 1] == u64::from(EOS));
    assert!(short["choices"][0].get("stop_reason").is_none(), "the model's own end is not the request's");
    for least in [n - 1, n, n + 1, 60] {
        let answer = told(&h, body(least));
        let drawn = ids(&answer["choices"][0]);
        assert!(drawn[..least].iter().all(|&t| t > u64::from(EOS)), "{least}: {drawn:?}");
        assert!(drawn.len() > least || least == 60);
    }
    assert_eq!(told(&h, body(n - 1))["choices"], short["choices"], "EOS may be the token after");
    let reply = h.complete(&json!({"prompt": "x", "min_tokens": 17}));
    assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("min_tokens")), "16 is the default");
}

#[test]
fn stop_strings_count_from_min_tokens_on_and_may_be_included() {
    let h = Harness::with(Setup { ascii: true, ..Setup::default() });
    let text = |n: usize| -> String {
        let answer = h.complete(&json!({"prompt": "letters", "max_tokens": n})).ok();
        answer["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    let full = text(60);
    let mut later = 0;
    for stop in ["e", "t", "in", "er", "o"] {
        for least in [0, 1, 7, 20, 45] {
            let skipped = if least == 0 { 0 } else { text(least).len() };
            // Where it ends, it must end behind the first tokens; it may have begun in them.
            let end = (skipped + 1..=full.len()).find(|&end| full[..end].ends_with(stop));
            let Some(end) = end else { continue };
            later += usize::from(full.find(stop).unwrap() + stop.len() != end);
            let mut body = json!({"prompt": "letters", "max_tokens": 60, "stop": stop, "min_tokens": least});
            let answer = h.complete(&body).ok();
            let choice = &answer["choices"][0];
            assert_eq!(choice["text"], full[..end - stop.len()], "{stop} from {least} on");
            assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &json!(stop)));
            body["include_stop_str_in_output"] = json!(true);
            assert_eq!(h.complete(&body).ok()["choices"][0]["text"], full[..end]);
            body["stream"] = json!(true);
            assert_eq!(text_of(&h.stream(TEXT, &body), 0), full[..end]);
        }
    }
    assert!(later > 5, "{later} stops were put off");
    h.until_empty();
}

#[test]
fn bad_words_are_not_said() {
    let h = Harness::with(Setup { ascii: true, ..Setup::default() });
    let tokenizer = tokenizer();
    let ask = |words: &[String]| {
        ids(&told(&h, json!({"prompt": "words", "max_tokens": 40, "bad_words": words}))["choices"][0])
    };
    let free = ask(&[]);
    // Words of one token, which the reply has somewhere.
    let alone = |&id: &u64| {
        let text = tokenizer.decode(&[id as u32], false);
        let word = text.trim().to_owned();
        let same = tokenizer.encode(&text, false).unwrap() == [id as u32];
        (same && !word.is_empty()).then_some((id, word))
    };
    let words: Vec<(u64, String)> = free.iter().filter_map(alone).step_by(5).collect();
    assert!(words.len() > 3);
    for (id, word) in &words {
        assert!(!ask(std::slice::from_ref(word)).contains(id), "{id} {word:?}");
    }
    let all: Vec<String> = words.iter().map(|w| w.1.clone()).collect();
    let drawn = ask(&all);
    assert!(words.iter().all(|(id, _)| !drawn.contains(id)));
    for wrong in [json!("word"), json!([3]), json!([""]), json!(["x".repeat(300)]), json!(vec!["x"; 300])] {
        let reply = h.complete(&json!({"prompt": "x", "bad_words": wrong}));
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("bad_words")));
    }
}
