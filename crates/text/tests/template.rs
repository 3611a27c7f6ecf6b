//! Chat templates against Hugging Face `apply_chat_template`, and their limits.

mod common;

use std::path::Path;

use common::{fixture, fnv};
use kvist_text::{ChatInput, ChatTemplate, TextError, ToolSetting};
use serde_json::{Map, Value, json};

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::from_config(&json!({ "chat_template": source, "bos_token": "<s>" }), None).unwrap()
}

fn render(source: &str, messages: Value) -> Result<String, TextError> {
    let messages = messages.as_array().unwrap();
    template(source).render(&ChatInput { messages, ..ChatInput::default() })
}

fn render_with_empty_contents(template: &ChatTemplate, input: &ChatInput) -> Result<String, TextError> {
    let mut messages = input.messages.to_vec();
    messages.iter_mut().filter(|m| m["content"].is_null()).for_each(|m| m["content"] = "".into());
    template.render(&ChatInput { messages: &messages, ..*input })
}

#[test]
fn renders_as_hugging_face() {
    let file = fixture("chats.json");
    let (mut texts, mut refusals) = (0, 0);
    for entry in file["templates"].as_array().unwrap() {
        let mut config = entry["special"].clone();
        config["chat_template"] = entry["template"].clone();
        let template = ChatTemplate::from_config(&config, None).unwrap();
        for case in entry["cases"].as_array().unwrap() {
            let input = ChatInput {
                messages: file["chats"][case["chat"].as_u64().unwrap() as usize].as_array().unwrap(),
                tools: case.get("tools").map(|t| t.as_array().unwrap().as_slice()),
                add_generation_prompt: case["mode"] == "prompt",
                continue_final_message: case["mode"] == "continue",
                kwargs: case.get("kwargs").map(|k| k.as_object().unwrap()),
                now: file["now"].as_u64().unwrap(),
            };
            let got = template.render(&input);
            let place = format!("{} chat {} {}", entry["name"], case["chat"], case["mode"]);
            if let Some(text) = case["text"].as_str() {
                assert_eq!(got.as_deref(), Ok(text), "{place}");
                texts += 1;
            } else if let Some(message) = case["raised"].as_str() {
                assert_eq!(got, Err(TextError::Raised(message.to_owned())), "{place}");
                refusals += 1;
            } else {
                // Of a message without content transformers makes nothing; here it is as good as an empty one.
                let filled = render_with_empty_contents(&template, &input);
                assert!(!matches!(got, Err(TextError::Render(_))) && got == filled, "{place}: {got:?}");
                refusals += 1;
            }
        }
    }
    assert!(texts > 150 && refusals > 20, "{texts} {refusals}");
}

/// Generated conversations by the models' own templates.
#[test]
fn templates_of_models() {
    let file = fixture("templates.json");
    let chats = file["chats"].as_array().unwrap();
    let (mut texts, mut refusals) = (0, 0);
    for entry in file["templates"].as_array().unwrap() {
        let name = entry["name"].as_str().unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/templates/{name}.jinja"));
        let source = std::fs::read_to_string(path).unwrap();
        let special = file["special"].as_object().unwrap().clone();
        let template = ChatTemplate::new(vec![("default".to_owned(), source)], special).unwrap();
        let answers = entry["answers"].as_array().unwrap();
        assert_eq!(answers.len(), chats.len());
        for (i, (case, answer)) in chats.iter().zip(answers).enumerate() {
            let got = template.render(&ChatInput {
                messages: case["messages"].as_array().unwrap(),
                tools: case.get("tools").map(|t| t.as_array().unwrap().as_slice()),
                add_generation_prompt: case["mode"] == "prompt",
                continue_final_message: case["mode"] == "continue",
                kwargs: case.get("kwargs").map(|k| k.as_object().unwrap()),
                now: file["now"].as_u64().unwrap(),
            });
            match answer {
                Value::String(refused) if refused == "refused" => {
                    assert!(matches!(got, Err(TextError::Invalid { .. })), "{name} chat {i}: {got:?}");
                    refusals += 1;
                }
                Value::String(hash) => {
                    let text = got.unwrap_or_else(|e| panic!("{name} chat {i}: {e}"));
                    assert_eq!(&format!("{:016x}", fnv(text.bytes())), hash, "{name} chat {i}: {text:?}");
                    texts += 1;
                }
                Value::Array(raised) => {
                    let message = raised[0].as_str().unwrap().to_owned();
                    assert_eq!(got, Err(TextError::Raised(message)), "{name} chat {i}");
                    refusals += 1;
                }
                // Python code that the template calls met what it does not expect; nothing is promised.
                _ => {}
            }
        }
    }
    assert!(texts > 800 && refusals > 30, "{texts} {refusals}");
}

/// As clients send the calls that they got: without content. Some templates put the content into sums unseen.
#[test]
fn calls_need_no_content_in_any_template() {
    let file = fixture("templates.json");
    let function = json!({"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}});
    let tools = [json!({"type": "function", "function": function})];
    for entry in file["templates"].as_array().unwrap() {
        let name = entry["name"].as_str().unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/templates/{name}.jinja"));
        let source = std::fs::read_to_string(path).unwrap();
        let special = file["special"].as_object().unwrap().clone();
        let mut template = ChatTemplate::new(vec![("default".to_owned(), source)], special).unwrap();
        template.learn_dialect(ToolSetting::Auto, true);
        let call = json!({"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": "{}"}});
        let messages = [
            json!({"role": "user", "content": "q"}),
            json!({"role": "assistant", "content": null, "tool_calls": [call]}),
            json!({"role": "tool", "tool_call_id": "abcdefghi", "content": "3"}),
        ];
        let input = ChatInput { messages: &messages, tools: Some(&tools), ..ChatInput::default() };
        let got = template.render(&input).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(Ok(got), render_with_empty_contents(&template, &input), "{name}");
    }
}

#[test]
fn user_text_is_data() {
    let evil = "{{ 7*7 }}{% for x in messages %}x{% endfor %}{# c #}<b>&amp;\"'</b>\u{0}";
    let got = render("{{ messages[0].content }}", json!([{ "role": "user", "content": evil }]));
    assert_eq!(got.as_deref(), Ok(evil));
}

#[test]
fn content_parts() {
    let source = "{% for m in messages %}[{{ m.content }}]{% endfor %}";
    let parts =
        json!([{ "role": "user", "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }] }]);
    assert_eq!(render(source, parts).as_deref(), Ok("[ab]"));

    let field = |messages| match render(source, messages) {
        Err(TextError::Invalid { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    let image = json!([{ "role": "user", "content": "x" }, { "role": "user", "content": [
        { "type": "text", "text": "a" }, { "type": "image_url", "image_url": { "url": "data:" } }] }]);
    assert_eq!(field(image), "messages[1].content[1].type");
    assert_eq!(field(json!([{ "role": "user", "content": [{ "type": "text" }] }])), "messages[0].content[0].text");
    assert_eq!(field(json!([{ "role": "user", "content": ["a"] }])), "messages[0].content[0].type");
    assert_eq!(field(json!([{ "role": "user", "content": 3 }])), "messages[0].content");
    assert_eq!(field(json!([{ "content": "a" }])), "messages[0].role");
    assert_eq!(field(json!(["a"])), "messages[0]");
    assert_eq!(field(json!([])), "messages");
}

#[test]
fn tool_arguments_arrive_as_objects() {
    let source = "{{ messages[0].tool_calls[0].function.arguments | tojson }}";
    let call = |arguments: Value| {
        let call = json!({ "type": "function", "function": { "name": "f", "arguments": arguments } });
        render(source, json!([{ "role": "assistant", "content": null, "tool_calls": [call] }])).unwrap()
    };
    assert_eq!(call(json!("{\"b\": 1, \"a\": \"<é>\"}")), "{\"b\": 1, \"a\": \"<é>\"}");
    assert_eq!(call(json!({ "b": 1 })), "{\"b\": 1}");
    assert_eq!(call(json!("not json")), "\"not json\"");
}

#[test]
fn limits() {
    let one = json!([{ "role": "user", "content": "x" }]);
    let many = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    assert!(matches!(render(many, one.clone()), Err(TextError::TooMuchWork { .. })));
    let long = "{% set x = 'x' * 100000 %}{% for a in range(99999) %}{{ x }}{% endfor %}";
    assert!(matches!(render(long, one.clone()), Err(TextError::TooLong { .. })));
    let deep = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}";
    assert!(matches!(render(deep, one.clone()), Err(TextError::Render(_) | TextError::TooMuchWork { .. })));
    for grow in ["[ns.x]", "[ns.x, ns.x]", "{'k': ns.x}"] {
        for print in ["ns.x", "ns.x | tojson", "ns.x | string", "[ns.x] | join"] {
            let nested = "{% set ns = namespace(x=[]) %}{% for i in range(1000) %}{% set ns.x = GROW %}{% endfor %}";
            let got = render(&(nested.replace("GROW", grow) + "{{ " + print + " }}"), one.clone());
            assert!(matches!(got, Err(TextError::Render(_))), "{grow} {print}: {got:?}");
        }
    }
    let file = render("{% include '/etc/passwd' %}", one.clone());
    assert!(matches!(file, Err(TextError::Render(_))), "{file:?}");
    assert!(matches!(render("{{ missing.x }}", one.clone()), Err(TextError::Render(_))));
    let nested =
        "{% set ns = namespace() %}{% macro f() %}{{ raise_exception('no ' ~ 1) }}{% endmacro %}{{ f() | trim }}";
    assert_eq!(render(nested, one), Err(TextError::Raised("no 1".to_owned())));
}

#[test]
fn template_sources() {
    let list = |names: &[&str]| {
        let list: Vec<Value> =
            names.iter().map(|n| json!({ "name": n, "template": format!("{n}{{{{ bos_token }}}}") })).collect();
        ChatTemplate::from_config(&json!({ "chat_template": list, "bos_token": { "content": "<B>" } }), None).unwrap()
    };
    let messages = [json!({ "role": "user", "content": "x" })];
    let plain = ChatInput { messages: &messages, ..ChatInput::default() };
    let tools = ChatInput { tools: Some(&messages), ..plain.clone() };
    let both = list(&["default", "tool_use"]);
    assert_eq!(both.render(&plain).as_deref(), Ok("default<B>"));
    assert_eq!(both.render(&tools).as_deref(), Ok("tool_use<B>"));
    assert_eq!(list(&["default", "rag"]).render(&tools).as_deref(), Ok("default<B>"));
    assert_eq!(list(&["rag"]).render(&plain).as_deref(), Ok("rag<B>"));
    assert!(matches!(list(&["rag", "x"]).render(&plain), Err(TextError::NoTemplate(_))));

    let config = json!({ "chat_template": "config" });
    assert_eq!(ChatTemplate::from_config(&config, Some("file")).unwrap().render(&plain).as_deref(), Ok("file"));
    let none = ChatTemplate::from_config(&json!({ "bos_token": "<s>", "chat_template": null }), None);
    assert!(matches!(none, Err(TextError::NoTemplate(_))));
    let broken = ChatTemplate::from_config(&json!({ "chat_template": "a\n{% for %}" }), None).unwrap_err();
    assert!(matches!(&broken, TextError::TemplateSyntax(what) if what.contains("line 2")), "{broken}");
}

#[test]
fn requests_set_variables_but_not_the_conversation() {
    let messages = [json!({ "role": "user", "content": "x" })];
    let kwargs = |name: &str| -> Map<String, Value> { [(name.to_owned(), json!("k"))].into_iter().collect() };
    let template = template("{{ style }}{{ messages | length }}");
    let style = kwargs("style");
    let input = ChatInput { messages: &messages, kwargs: Some(&style), ..ChatInput::default() };
    assert_eq!(template.render(&input).as_deref(), Ok("k1"));
    for name in ["messages", "tools", "documents", "add_generation_prompt"] {
        let kwargs = kwargs(name);
        let got = template.render(&ChatInput { kwargs: Some(&kwargs), ..input.clone() });
        assert!(matches!(got, Err(TextError::Invalid { .. })), "{name}: {got:?}");
    }
}

#[test]
fn generation_blocks_keep_their_whitespace_control() {
    let one = json!([{ "role": "user", "content": "x" }]);
    let source = "a\n  {%- generation -%}\n b \n{%- endgeneration -%}\n c {% generation %}d{%endgeneration%} {%+ generation %}e{% endgeneration %}";
    assert_eq!(render(source, one.clone()).as_deref(), Ok("abc d e"));
    assert_eq!(render("{{ 'generation' }}{% set generation = 3 %}{{ generation }}", one).as_deref(), Ok("generation3"));
}
