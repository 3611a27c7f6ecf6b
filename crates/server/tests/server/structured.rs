//! Structured output through both endpoints: what comes is of the asked form, and what cannot be had is a 400 by name.

use serde_json::{Value, json};

use crate::harness::{Harness, Setup, text_of, with_messages};

fn schema() -> Value {
    json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "ok": {"type": "boolean"}},
        "required": ["n", "ok"], "additionalProperties": false})
}

fn check(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    assert!(value["n"].as_u64().is_some_and(|n| n < 100) && value["ok"].is_boolean(), "{text}");
    assert_eq!(value.as_object().unwrap().len(), 2, "{text}");
}

#[test]
fn every_spelling_gives_what_it_asks_for() {
    let h = Harness::start();
    let text = |answer: &Value| answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let named = json!({"name": "x", "strict": true, "schema": schema()});
    for ask in [
        json!({"response_format": {"type": "json_schema", "json_schema": named}}),
        json!({"response_format": {"type": "json_object", "schema": schema()}}),
        json!({"structured_outputs": {"json": schema(), "regex": null}}),
        json!({"guided_json": schema()}),
        json!({"guided_json": schema().to_string()}),
        json!({"json_schema": schema()}),
    ] {
        let answer = h.chat(ask.clone()).ok();
        check(&text(&answer));
        assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{ask}");
    }
    for (ask, fits) in [
        (json!({"guided_choice": ["one", "two"]}), (|t: &str| t == "one" || t == "two") as fn(&str) -> bool),
        (json!({"structured_outputs": {"choice": ["one", "two"]}}), |t| t == "one" || t == "two"),
        (json!({"guided_regex": "[a-c]{7}"}), |t| t.len() == 7 && t.bytes().all(|b| (b'a'..=b'c').contains(&b))),
        (json!({"guided_grammar": "start: \"<\" /[0-9]{3}/ \">\""}), |t| t.len() == 5 && t.ends_with('>')),
        (json!({"grammar": "root ::= \"<\" [0-9]{3} \">\""}), |t| t.len() == 5 && t.ends_with('>')),
        (json!({"response_format": {"type": "text"}, "max_tokens": 3, "grammar": ""}), |t| !t.is_empty()),
    ] {
        let answer = h.chat(ask.clone()).ok();
        assert!(fits(&text(&answer)), "{ask}: {answer}");
    }
    let answer = h.complete(&json!({"prompt": ["a", "b"], "n": 2, "guided_json": schema(), "max_tokens": 200})).ok();
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    choices.iter().for_each(|c| check(c["text"].as_str().unwrap()));
    h.until_empty();
}

#[test]
fn choices_go_their_own_ways_and_a_stream_says_the_same() {
    let h = Harness::start();
    let body = json!({"guided_json": schema(), "n": 3, "temperature": 1.5, "seed": 5, "logprobs": true});
    let answer = h.chat(body.clone()).ok();
    let whole: Vec<&str> =
        answer["choices"].as_array().unwrap().iter().map(|c| c["message"]["content"].as_str().unwrap()).collect();
    whole.iter().for_each(|text| check(text));
    assert!(whole.iter().any(|text| *text != whole[0]), "{whole:?}");
    let mut body = body;
    body["stream"] = true.into();
    let chunks = h.stream("/v1/chat/completions", &with_messages(body));
    let told: Vec<String> = (0..3).map(|index| text_of(&chunks, index)).collect();
    assert_eq!(told, whole);
    h.until_empty();
}

#[test]
fn an_end_comes_where_the_text_may_end() {
    // The model would end every choice at once.
    let h = Harness::with(Setup { eos_every: 1, ..Setup::default() });
    let answer = h.chat(json!({"guided_json": schema()})).ok();
    check(answer["choices"][0]["message"]["content"].as_str().unwrap());
    let cut = h.chat(json!({"guided_regex": "[ab]{50}", "max_tokens": 4})).ok();
    assert_eq!(cut["choices"][0]["finish_reason"], "length");
    let open = h.chat(json!({"guided_regex": "a+"})).ok();
    assert_eq!(open["choices"][0]["finish_reason"], "stop");
    // Without the model's own ends it goes on as long as something may follow.
    let long = h.chat(json!({"guided_regex": "(ab){20,30}", "ignore_eos": true})).ok();
    let choice = &long["choices"][0];
    assert_eq!((choice["message"]["content"].as_str().unwrap().len(), &choice["finish_reason"]), (60, &json!("stop")));
}

#[test]
fn what_cannot_be_had_is_refused_by_name() {
    let h = Harness::start();
    let strict = |schema: Value| json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    for (body, param) in [
        (json!({"response_format": "json"}), "response_format"),
        (json!({"response_format": {"type": "yaml"}}), "response_format.type"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
        (json!({"response_format": strict(json!(3))}), "response_format.json_schema.schema"),
        (json!({"response_format": strict(json!({"uniqueItems": true}))}), "response_format.json_schema.schema"),
        (json!({"structured_outputs": {"structural_tag": {}}}), "structured_outputs.structural_tag"),
        (json!({"structured_outputs": {"json": 3}}), "structured_outputs.json"),
        (json!({"guided_json": "{"}), "guided_json"),
        (json!({"guided_regex": "(a"}), "guided_regex"),
        (json!({"guided_regex": 3}), "guided_regex"),
        (json!({"guided_choice": []}), "guided_choice"),
        (json!({"guided_choice": [1]}), "guided_choice"),
        (json!({"guided_grammar": "start: foo"}), "guided_grammar"),
        (json!({"grammar": "root ::= root"}), "grammar"),
        (json!({"guided_regex": "a", "guided_choice": ["a"]}), "guided_choice"),
        (json!({"guided_regex": "a", "response_format": {"type": "json_object"}}), "guided_regex"),
    ] {
        let reply = h.chat(body.clone());
        assert_eq!(reply.status, 400, "{body}");
        assert_eq!(reply.json()["error"]["param"], param, "{body}");
    }
    let lenient = json!({"type": "json_schema", "json_schema": {"strict": false,
        "schema": {"type": "array", "items": {"type": "null"}, "maxItems": 2, "uniqueItems": true}}});
    h.chat(json!({"response_format": lenient})).ok();
    h.until_empty();
}
