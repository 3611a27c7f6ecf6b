//! Stop strings.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use crate::fake::mix;
use crate::harness::{Harness, text_of};

const TEXT: &str = "/v1/completions";

/// The text of each of the first tokens, by asking for one more each time.
fn prefixes(h: &Harness, prompt: &Value, tokens: usize) -> Vec<String> {
    let ask = |n: usize| h.complete(&json!({"prompt": prompt, "max_tokens": n})).ok();
    (0..=tokens).map(|n| ask(n)["choices"][0]["text"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn nothing_leaves_from_the_stop_string_on() {
    let h = Harness::start();
    let (mut across, mut tried) = (0, 0);
    for case in 0..12u64 {
        let prompt = json!(format!("Prompt {case}"));
        let texts = prefixes(&h, &prompt, 24);
        let text = texts.last().unwrap();
        let places: Vec<usize> = text.char_indices().map(|(i, _)| i).collect();
        for draw in 0..4 {
            let start = mix(case, draw) as usize % (places.len() - 8);
            let length = 1 + mix(draw, case) as usize % 8;
            let stop = &text[places[start]..places[start + length]];
            // U+FFFD stands for bytes that may yet become something else; the reference has them broken differently.
            if stop.contains('\u{fffd}') || text[..places[start]].contains('\u{fffd}') {
                continue;
            }
            let at = text.find(stop).unwrap();
            let needed =
                texts.iter().position(|t| t.len() >= at + stop.len() && t.starts_with(&text[..at + stop.len()]));
            let needed = needed.unwrap();
            tried += 1;
            across += usize::from(texts[needed - 1].len() > at);
            let body = json!({"prompt": prompt, "max_tokens": 24, "stop": ["never \u{1} this", stop]});
            let answer = h.complete(&body).ok();
            let choice = &answer["choices"][0];
            assert_eq!(choice["text"], text[..at], "stop {stop:?} in {text:?}");
            assert_eq!(choice["finish_reason"], "stop");
            assert_eq!(answer["usage"]["completion_tokens"], needed, "up to the token that completes it");
            let mut body = body;
            body["stream"] = json!(true);
            body["stop"] = json!(stop);
            assert_eq!(text_of(&h.stream(TEXT, &body), 0), text[..at]);
        }
    }
    assert!(tried >= 20 && across >= 5, "{across} of {tried} stop strings began before their last token");
    h.until_empty();
}

#[test]
fn a_stop_ends_one_choice_and_not_its_siblings() {
    let h = Harness::start();
    // Slow enough for the stop to be met before the choice is at its length.
    h.knobs.delay.store(300, Ordering::Relaxed);
    let body = json!({"prompt": "Siblings", "n": 4, "temperature": 1.2, "seed": 3, "max_tokens": 500});
    let full = h.complete(&body).ok();
    let text = |answer: &Value, i: usize| answer["choices"][i]["text"].as_str().unwrap().to_owned();
    let first = text(&full, 0);
    let middle: Vec<char> = first.chars().skip(first.chars().count() / 3).take(4).collect();
    let stop: String = middle.into_iter().collect();
    let mut body = body;
    body["stop"] = json!([stop]);
    let cut = h.complete(&body).ok();
    for i in 0..4 {
        let whole = text(&full, i);
        let expected = whole.find(&stop).map_or(whole.as_str(), |at| &whole[..at]);
        assert_eq!(text(&cut, i), expected);
    }
    assert_eq!(cut["choices"][0]["finish_reason"], "stop");
    h.until_empty();
    assert!(h.metric("vllm:request_success_total{finished_reason=\"stop\"}") >= 1.0);
    assert_eq!(h.metric("vllm:request_success_total{finished_reason=\"abort\"}"), 0.0);
}

#[test]
fn a_possible_start_of_a_stop_is_given_out_at_the_end() {
    let h = Harness::start();
    let text = h.complete(&json!({"prompt": "Tail", "max_tokens": 10})).ok()["choices"][0]["text"].clone();
    let text = text.as_str().unwrap();
    let tail = text.chars().last().unwrap();
    let body = json!({"prompt": "Tail", "max_tokens": 10, "stop": format!("{tail}and never this")});
    let answer = h.complete(&body).ok();
    assert_eq!(
        (&answer["choices"][0]["text"], &answer["choices"][0]["finish_reason"]),
        (&json!(text), &json!("length"))
    );
}
