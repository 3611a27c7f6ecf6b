//! Tool calls and reasoning: scripted replies through the whole server.

use kvist_base::{Executor, TokenId};
use kvist_engine::{Engine, EngineConfig};
use kvist_server::{ServerConfig, ToolSetting};
use kvist_text::{ChatTemplate, ToolFormat};
use serde_json::{Value, json};

use crate::fake::{Fake, SPECIAL};
use crate::harness::{Harness, parts, tokenizer};

const CHAT: &str = "/v1/chat/completions";
const CALL: &str =
    "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Malmö\", \"days\": 2}}\n</tool_call>";
const ARGUMENTS: &str = "{\"city\": \"Malmö\", \"days\": 2}";
const SECOND: &str = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";

/// A server whose model has one of the templates of the text crate's fixtures, or the embedded model's own.
fn serve(template: Option<&str>, config: ServerConfig) -> Harness {
    let h = Harness::loading(config);
    let (mut text, model) = parts();
    if let Some(name) = template {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../text/tests/fixtures/chats.json");
        let file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let entry = file["templates"].as_array().unwrap().iter().find(|t| t["name"] == name).unwrap();
        let mut tokenizer_config = entry["special"].clone();
        tokenizer_config["chat_template"] = entry["template"].clone();
        text.template = Some(ChatTemplate::from_config(&tokenizer_config, None).unwrap());
    }
    let executor = Fake::new(512, 4096, 0, vec![SPECIAL], h.knobs.clone());
    let engine = Engine::new(EngineConfig::default(), executor.info().clone());
    h.server.install(engine, Box::new(executor), None, text, model).unwrap();
    h
}

fn qwen() -> Harness {
    serve(Some("qwen25"), ServerConfig::default())
}

/// Ids that spell a text character by character, as no tokenizer would.
fn spelt(text: &str) -> Vec<TokenId> {
    let tokenizer = tokenizer();
    text.chars().flat_map(|c| tokenizer.encode(c.encode_utf8(&mut [0; 4]), false).unwrap()).collect()
}

/// The next new prompt is answered so.
fn script(h: &Harness, reply: &str) {
    h.knobs.scripts.lock().unwrap().push_back(spelt(reply));
}

fn tools() -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}});
    json!([
        {"type": "function", "function": {"name": "get_weather", "description": "The weather.", "parameters": parameters}},
        {"type": "function", "function": {"name": "now"}},
    ])
}

fn ask(question: &str) -> Value {
    json!({"messages": [{"role": "user", "content": question}], "tools": tools(), "temperature": 0})
}

/// The same request whole and streamed; the stream is put together as SDKs do it.
fn both(h: &Harness, mut body: Value) -> (Value, Value) {
    let whole = h.post(CHAT, &body).ok()["choices"][0].clone();
    body["stream"] = json!(true);
    let chunks = h.stream(CHAT, &body);
    let mut message = json!({"role": "assistant", "content": ""});
    let mut reason = Value::Null;
    let mut calls: Vec<Value> = Vec::new();
    for choice in chunks.iter().map(|c| &c["choices"][0]) {
        assert_eq!(reason, Value::Null, "nothing follows the reason");
        reason = choice["finish_reason"].clone();
        for (key, value) in choice["delta"].as_object().unwrap() {
            match key.as_str() {
                "tool_calls" => {
                    let [part] = value.as_array().unwrap().as_slice() else { panic!("one part a chunk") };
                    let index = part["index"].as_u64().unwrap() as usize;
                    if index == calls.len() {
                        assert_eq!((&part["type"], &part["function"]["arguments"]), (&json!("function"), &json!("")));
                        assert!(part["id"].is_string() && part["function"]["name"].is_string());
                        calls.push(part.clone());
                        calls[index].as_object_mut().unwrap().remove("index");
                    } else {
                        assert_eq!(index, calls.len() - 1, "calls follow each other");
                        assert_eq!(part.as_object().unwrap().len(), 2, "{part}");
                        let more = part["function"]["arguments"].as_str().unwrap();
                        assert!(!more.is_empty() && part["function"].as_object().unwrap().len() == 1);
                        let arguments = &mut calls[index]["function"]["arguments"];
                        *arguments = format!("{}{more}", arguments.as_str().unwrap()).into();
                    }
                }
                "role" => assert_eq!(value, "assistant"),
                key => {
                    let before = message[key].as_str().unwrap_or_default().to_owned();
                    message[key] = (before + value.as_str().unwrap()).into();
                }
            }
        }
    }
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    message["finish_reason"] = reason;
    (whole, message)
}

/// Compares the two, but for what cannot be the same: ids, and an empty content.
fn same(whole: &Value, streamed: &Value) {
    assert_eq!(whole["finish_reason"], streamed["finish_reason"]);
    let message = &whole["message"];
    assert_eq!(message["content"].as_str().unwrap_or(""), streamed["content"].as_str().unwrap());
    assert_eq!(message.get("reasoning_content"), streamed.get("reasoning_content"));
    let calls = |m: &Value| -> Vec<Value> {
        m["tool_calls"].as_array().into_iter().flatten().map(|c| c["function"].clone()).collect()
    };
    assert_eq!(calls(message), calls(streamed));
}

#[test]
fn calls_are_told_apart_from_content() {
    let h = qwen();
    script(&h, &format!("Let me see.\n{CALL}\n{SECOND}"));
    let (whole, streamed) = both(&h, ask("Weather?"));
    same(&whole, &streamed);
    assert_eq!(whole["finish_reason"], "tool_calls");
    let message = &whole["message"];
    assert_eq!(message["content"], "Let me see.");
    let calls = message["tool_calls"].as_array().unwrap();
    assert_eq!(calls[0]["type"], "function");
    assert_eq!(calls[0]["function"], json!({"name": "get_weather", "arguments": ARGUMENTS}));
    assert_eq!(calls[1]["function"], json!({"name": "now", "arguments": "{}"}));
    let mut ids: Vec<&Value> =
        calls.iter().chain(streamed["tool_calls"].as_array().unwrap()).map(|c| &c["id"]).collect();
    assert!(ids.iter().all(|id| id.as_str().unwrap().starts_with("call_")), "{ids:?}");
    ids.sort_by_key(|id| id.to_string());
    ids.dedup();
    assert_eq!(ids.len(), 4, "each call has its own id");

    script(&h, CALL);
    let whole = both(&h, ask("And now?")).0;
    assert_eq!(whole["message"]["content"], Value::Null);
    script(&h, "It is fine.");
    let whole = both(&h, ask("Thanks.")).0;
    assert_eq!((&whole["finish_reason"], &whole["message"]["content"]), (&json!("stop"), &json!("It is fine.")));
    assert_eq!(whole["message"].get("tool_calls"), None);
}

#[test]
fn fragments_are_streamed_as_they_are_generated() {
    let h = qwen();
    script(&h, CALL);
    let mut body = ask("Weather?");
    body["stream"] = json!(true);
    let chunks = h.stream(CHAT, &body);
    let parts = chunks.iter().filter(|c| c["choices"][0]["delta"].get("tool_calls").is_some()).count();
    assert!(parts > ARGUMENTS.len() / 2, "{parts}");
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
}

#[test]
fn what_is_no_call_is_content() {
    let h = qwen();
    for (reply, broken) in [
        ("<tool_call>\n{'name': 'f'}\n</tool_call>", 0),
        ("<tool_call>", 0),
        ("<tool_call>\n{\"name\": \"now\", \"arguments\": {\"a\": oops}}\n</tool_call>", 1),
    ] {
        script(&h, reply);
        let (whole, streamed) = both(&h, ask(reply));
        assert_eq!(whole["finish_reason"], "stop");
        assert_eq!(whole["message"]["content"], reply);
        assert_eq!(whole["message"].get("tool_calls"), None);
        // A stream has told the pieces of the call already; it tells its text as content, too.
        assert_eq!(streamed["content"], reply);
        assert_eq!(streamed["tool_calls"].as_array().map_or(0, Vec::len), broken);
    }
    // Cut in the middle of the arguments.
    script(&h, CALL);
    let mut body = ask("Short, please.");
    body["max_tokens"] = json!(70);
    let (whole, _) = both(&h, body);
    assert_eq!(whole["finish_reason"], "length");
    assert!(CALL.starts_with(whole["message"]["content"].as_str().unwrap()));
    assert_eq!(whole["message"].get("tool_calls"), None);
}

#[test]
fn without_tools_or_with_none_a_call_is_content() {
    let h = qwen();
    for (choice, tools) in [(json!("none"), tools()), (Value::Null, Value::Null), (json!("auto"), json!([]))] {
        script(&h, CALL);
        let mut body = ask(&format!("{choice}{}", tools.is_null()));
        (body["tool_choice"], body["tools"]) = (choice, tools);
        let (whole, streamed) = both(&h, body);
        same(&whole, &streamed);
        assert_eq!((&whole["finish_reason"], &whole["message"]["content"]), (&json!("stop"), &json!(CALL)));
    }
    // The prompt is the same with `none` and with `auto`.
    script(&h, "One.");
    let mut body = ask("Which?");
    let auto = h.post(CHAT, &body).ok();
    body["tool_choice"] = json!("none");
    let none = h.post(CHAT, &body).ok();
    assert_eq!(auto["usage"]["prompt_tokens"], none["usage"]["prompt_tokens"]);
    // And by the operator's word.
    let h = serve(Some("qwen25"), ServerConfig { tool_format: ToolSetting::None, ..ServerConfig::default() });
    script(&h, CALL);
    assert_eq!(both(&h, ask("?")).0["message"]["content"], CALL);
}

#[test]
fn one_call_at_most_ends_the_reply() {
    let h = qwen();
    script(&h, &format!("{CALL}\n{SECOND}"));
    let mut body = ask("Both.");
    body["parallel_tool_calls"] = json!(false);
    let (whole, streamed) = both(&h, body);
    same(&whole, &streamed);
    assert_eq!(whole["finish_reason"], "tool_calls");
    assert_eq!(whole["message"]["tool_calls"].as_array().unwrap().len(), 1);
}

#[test]
fn the_next_turn_hits_a_reply_with_calls() {
    for (template, replies) in [
        ("qwen25", vec![format!("Let me see.\n{CALL}\n{SECOND}"), CALL.to_owned(), "It rains.".to_owned()]),
        ("qwen3", vec![format!("<think>\nWhat do I know?\n</think>\n\n{CALL}"), format!("<think>\nMore.\n</think>\n\nSo:\n{SECOND}")]),
        ("llama31", vec!["{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Malmö\"}}".to_owned(), "It rains.".to_owned()]),
        ("smollm2", vec!["{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Lund\"}}\n{\"name\": \"now\", \"arguments\": {}}".to_owned(), "It rains.".to_owned()]),
    ] {
        let h = serve(Some(template), ServerConfig::default());
        let mut body = ask("Weather?");
        for (turn, reply) in replies.iter().enumerate() {
            script(&h, reply);
            let answer = h.post(CHAT, &body).ok();
            let message = answer["choices"][0]["message"].clone();
            let calls = message["tool_calls"].as_array().cloned().unwrap_or_default();
            assert_eq!(calls.is_empty(), reply == "It rains.", "{template} {message}");
            let known = answer["usage"]["prompt_tokens"].as_u64().unwrap() + spelt(reply).len() as u64;
            let messages = body["messages"].as_array_mut().unwrap();
            messages.push(message);
            for call in &calls {
                messages.push(json!({"role": "tool", "tool_call_id": call["id"], "content": "{\"t\": 3}"}));
            }
            if calls.is_empty() {
                messages.push(json!({"role": "user", "content": "And?"}));
            }
            let mut probe = body.clone();
            probe["max_tokens"] = json!(1);
            let usage = h.post(CHAT, &probe).ok()["usage"].clone();
            let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
            // All of the reply, in the very tokens that it was generated with, but its last one.
            assert!(cached + 1 >= known, "{template} turn {turn}: {cached} of {known} cached");
        }
    }
}

#[test]
fn other_formats_through_the_server() {
    let with = |format| ServerConfig { tool_format: ToolSetting::Format(format), ..ServerConfig::default() };
    for (format, reply) in [
        (ToolFormat::Mistral, "[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Lund\"}"),
        (ToolFormat::Llama3, "<|python_tag|>{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Lund\"}}"),
        (ToolFormat::Generic, "```json\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Lund\"}}\n```"),
    ] {
        let h = serve(None, with(format));
        script(&h, reply);
        let (whole, streamed) = both(&h, ask("Weather?"));
        same(&whole, &streamed);
        let call = &whole["message"]["tool_calls"][0];
        assert_eq!(call["function"], json!({"name": "get_weather", "arguments": "{\"city\": \"Lund\"}"}), "{format:?}");
        let id = call["id"].as_str().unwrap();
        if format == ToolFormat::Mistral {
            assert!(id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric()), "{id}");
        }
    }
}

#[test]
fn reasoning_is_told_apart() {
    let h = serve(Some("qwen3"), ServerConfig::default());
    let reply = format!("<think>\nHm, rain.\n\nOr not.\n</think>\n\nIt rains.\n{SECOND}");
    script(&h, &reply);
    let (whole, streamed) = both(&h, ask("Weather?"));
    same(&whole, &streamed);
    let message = &whole["message"];
    assert_eq!(message["reasoning_content"], "Hm, rain.\n\nOr not.");
    assert_eq!((&message["content"], &whole["finish_reason"]), (&json!("It rains."), &json!("tool_calls")));

    let mut body = ask("Weather?");
    body["include_reasoning"] = json!(false);
    let (whole, streamed) = both(&h, body);
    same(&whole, &streamed);
    assert_eq!((&whole["message"]["content"], whole["message"].get("reasoning_content")), (&json!("It rains."), None));

    // Switched off in the prompt, the reply begins with its content.
    script(&h, "</think> is a tag.");
    let body =
        json!({"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"enable_thinking": false}});
    let (whole, streamed) = both(&h, body);
    same(&whole, &streamed);
    assert_eq!(whole["message"]["content"], "</think> is a tag.");
    // Cut while it thinks.
    script(&h, "<think>\nOn and on");
    let (whole, streamed) = both(&h, json!({"messages": [{"role": "user", "content": "y"}], "max_tokens": 12}));
    same(&whole, &streamed);
    assert_eq!((&whole["message"]["content"], &whole["finish_reason"]), (&Value::Null, &json!("length")));
    assert!("On and on".starts_with(whole["message"]["reasoning_content"].as_str().unwrap()));

    let h = serve(Some("qwen3"), ServerConfig { reasoning: false, ..ServerConfig::default() });
    script(&h, &reply);
    assert!(both(&h, ask("Weather?")).0["message"]["content"].as_str().unwrap().starts_with("<think>\nHm"));
}

#[test]
fn a_prompt_that_opens_the_reasoning() {
    let h = Harness::loading(ServerConfig::default());
    let (mut text, model) = parts();
    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>') | last }}{% endfor %}\
        {% if add_generation_prompt %}<assistant><think>\n{% endif %}";
    text.template = Some(ChatTemplate::from_config(&json!({ "chat_template": template }), None).unwrap());
    let executor = Fake::new(512, 4096, 0, vec![SPECIAL], h.knobs.clone());
    let engine = Engine::new(EngineConfig::default(), executor.info().clone());
    h.server.install(engine, Box::new(executor), None, text, model).unwrap();
    script(&h, "So be it.\n</think>\n\nYes.");
    let (whole, streamed) = both(&h, json!({"messages": [{"role": "user", "content": "x"}]}));
    same(&whole, &streamed);
    assert_eq!(whole["message"]["reasoning_content"], "So be it.");
    assert_eq!(whole["message"]["content"], "Yes.");
}

#[test]
fn logprobs_cover_every_token_of_a_call() {
    let h = qwen();
    script(&h, CALL);
    let mut body = ask("Weather?");
    body["logprobs"] = json!(true);
    let answer = h.post(CHAT, &body).ok();
    let n = answer["usage"]["completion_tokens"].as_u64().unwrap() as usize;
    assert_eq!(answer["choices"][0]["logprobs"]["content"].as_array().unwrap().len(), n);
    body["stream"] = json!(true);
    let chunks = h.stream(CHAT, &body);
    let told = chunks.iter().map(|c| c["choices"][0]["logprobs"]["content"].as_array().map_or(0, Vec::len));
    assert_eq!(told.sum::<usize>(), n);
}

#[test]
fn what_is_wrong_with_tools_is_named() {
    let h = qwen();
    let refused = |patch: Value| {
        let mut body = ask("x");
        body["max_tokens"] = json!(1);
        body.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
        let reply = h.post(CHAT, &body);
        assert_eq!(reply.status, 400, "{patch}");
        reply.json()["error"]["param"].as_str().unwrap().to_owned()
    };
    let tool = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
    for (patch, param) in [
        (json!({"tools": {}}), "tools"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function.name"),
        (json!({"tools": [{"function": {"name": "f"}}]}), "tools[0].type"),
        (json!({"tools": [{"type": "custom", "custom": {"name": "f"}}]}), "tools[0].type"),
        (tool(json!({"name": ""})), "tools[0].function.name"),
        (tool(json!({"name": 5})), "tools[0].function.name"),
        (tool(json!({"name": "f", "parameters": []})), "tools[0].function.parameters"),
        (json!({"tools": [tools()[1], tools()[1]]}), "tools[1].function.name"),
        (json!({"tool_choice": "always"}), "tool_choice"),
        (json!({"tool_choice": 1}), "tool_choice"),
        (json!({"tool_choice": {"type": "function"}}), "tool_choice"),
        (json!({"tool_choice": {"type": "function", "function": {"name": "other"}}}), "tool_choice"),
        (json!({"tool_choice": "required", "tools": []}), "tool_choice"),
        (json!({"functions": [{"name": "f"}]}), "functions"),
        (json!({"function_call": "auto"}), "function_call"),
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
        (tool(json!({"name": "f", "strict": 1})), "tools[0].function.strict"),
        (
            json!({"tool_choice": "required", "tools": [{"type": "function", "function": {"name": "f", "parameters":
                {"type": "object", "properties": {"a": {"$ref": "http://x"}}}}}]}),
            "tools",
        ),
        (json!({"parallel_tool_calls": "no"}), "parallel_tool_calls"),
        (json!({"include_reasoning": 1}), "include_reasoning"),
        (json!({"messages": [{"role": "assistant", "tool_calls": {}}]}), "messages[0].tool_calls"),
        (
            json!({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}),
            "messages[0].tool_calls[0].function.name",
        ),
        (
            json!({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}]}),
            "messages[0].tool_calls[0].function.arguments",
        ),
    ] {
        assert_eq!(refused(patch.clone()), param, "{patch}");
    }
}

/// The calls of an answer, each with its arguments as JSON.
fn made(choice: &Value) -> Vec<(String, Value)> {
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    let call = |c: &Value| {
        let arguments = serde_json::from_str(c["function"]["arguments"].as_str().unwrap()).unwrap();
        (c["function"]["name"].as_str().unwrap().to_owned(), arguments)
    };
    calls.iter().map(call).collect()
}

#[test]
fn calls_can_be_demanded() {
    for template in ["qwen25", "qwen3", "llama31", "smollm2"] {
        // The model draws anything that it may.
        let h = serve(Some(template), ServerConfig::default());
        let parameters = json!({
            "type": "object",
            "properties": {"unit": {"enum": ["C", "F"]}, "days": {"type": "integer", "minimum": 0, "maximum": 20}},
            "required": ["unit", "days"],
            "additionalProperties": false,
        });
        let tools = json!([
            {"type": "function", "function": {"name": "get_weather", "parameters": parameters}},
            {"type": "function", "function": {"name": "now"}},
        ]);
        let kwargs = json!({"enable_thinking": false});
        for (n, choice) in [
            json!("required"),
            json!({"type": "function", "function": {"name": "get_weather"}}),
            json!({"type": "function", "function": {"name": "now"}}),
        ]
        .into_iter()
        .enumerate()
        {
            let content = format!("{n} {template}");
            let body = json!({
                "messages": [{"role": "user", "content": content}], "tools": tools, "tool_choice": choice,
                "parallel_tool_calls": false, "max_tokens": 400, "temperature": 1, "seed": 3,
                "chat_template_kwargs": kwargs,
            });
            let (whole, streamed) = both(&h, body);
            same(&whole, &streamed);
            assert_eq!(whole["finish_reason"], "tool_calls", "{template} {choice} {whole}");
            let made = made(&whole);
            assert_eq!(made.len(), 1);
            let (name, arguments) = &made[0];
            assert!(choice == "required" || choice["function"]["name"] == **name);
            match name.as_str() {
                "get_weather" => {
                    assert!(["C", "F"].contains(&arguments["unit"].as_str().unwrap()));
                    assert!((0..=20).contains(&arguments["days"].as_i64().unwrap()));
                }
                _ => assert_eq!(*arguments, json!({})),
            }
        }
    }
}

#[test]
fn strict_functions_are_called_as_their_schema_has_it() {
    let h = qwen();
    let mut tools = tools();
    tools[0]["function"]["strict"] = json!(true);
    tools[0]["function"]["parameters"] = json!({"type": "object", "properties": {"days": {"enum": [1, 2]}}, "required": ["days"], "additionalProperties": false});
    // The model would say something else than it may, and goes on as near as it can.
    script(&h, "Hm.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"days\": 2}}\n</tool_call>");
    let mut body = ask("Weather?");
    body["tools"] = tools.clone();
    let whole = both(&h, body).0;
    assert_eq!(
        (&whole["message"]["content"], made(&whole)),
        (&json!("Hm."), vec![("get_weather".into(), json!({"days": 2}))])
    );
    script(&h, "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"days\": 7}}\n</tool_call>");
    let mut body = ask("And then?");
    (body["tools"], body["max_tokens"]) = (tools, json!(300));
    let whole = h.post(CHAT, &body).ok()["choices"][0].clone();
    if whole["finish_reason"] == "tool_calls" {
        assert!(made(&whole)[0].1["days"].as_i64().is_some_and(|days| days == 1 || days == 2), "{whole}");
    } else {
        assert_eq!(whole["finish_reason"], "length", "{whole}");
        assert!(!whole["message"]["content"].as_str().unwrap().contains("7}}"), "{whole}");
    }
}
