//! What is found out of chat templates, and conversations with tools for templates that know none.

mod common;

use common::{fixture, tokenizer};
use kvist_base::DomainId;
use kvist_text::{
    ChatInput, ChatTemplate, Detokenizer, Dialect, ReplyTable, Thinking, ToolFormat, ToolSetting, splice,
};
use serde_json::{Value, json};

fn named(name: &str) -> ChatTemplate {
    let file = fixture("chats.json");
    let entry = file["templates"].as_array().unwrap().iter().find(|t| t["name"] == name).unwrap();
    let mut config = entry["special"].clone();
    config["chat_template"] = entry["template"].clone();
    ChatTemplate::from_config(&config, None).unwrap()
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::from_config(&json!({ "chat_template": source }), None).unwrap()
}

fn found(mut template: ChatTemplate) -> Dialect {
    template.learn_dialect(ToolSetting::Auto, true);
    *template.dialect()
}

/// A template with its own way to write a call, after the tools.
fn writing(call: &str) -> ChatTemplate {
    template(&format!(
        "{{% if tools %}}{{{{ tools | tojson }}}}{{% endif %}}{{% for m in messages %}}<{{{{ m.role }}}}>\n\
         {{{{ m.content }}}}{{% for c in m.tool_calls %}}{{% set f = c.function %}}{call}{{% endfor %}}{{% endfor %}}"
    ))
}

#[test]
fn formats_are_found() {
    for (name, format) in [
        ("qwen25", ToolFormat::Hermes),
        ("qwen3", ToolFormat::Hermes),
        ("llama31", ToolFormat::Llama3),
        ("llama2", ToolFormat::Generic),
        ("zephyr", ToolFormat::Generic),
        ("smollm2", ToolFormat::Generic),
    ] {
        assert_eq!(found(named(name)).tools, Some(format), "{name}");
    }
    let arguments = "{{ f.arguments | tojson }}";
    for (call, format) in [
        // Hermes 2 Pro puts the name last.
        (
            format!("<tool_call>\n{{\"arguments\": {arguments}, \"name\": \"{{{{ f.name }}}}\"}}\n</tool_call>"),
            ToolFormat::Hermes,
        ),
        (
            format!(
                "[TOOL_CALLS] [{{\"name\": \"{{{{ f.name }}}}\", \"arguments\": {arguments}, \"id\": \"{{{{ c.id }}}}\"}}]"
            ),
            ToolFormat::Mistral,
        ),
        (format!("[TOOL_CALLS]{{{{ f.name }}}}[ARGS]{arguments}"), ToolFormat::Mistral),
        (format!("<|python_tag|>{{\"name\": \"{{{{ f.name }}}}\", \"parameters\": {arguments}}}"), ToolFormat::Llama3),
        // Forms that are not read here: XML, Python.
        ("<tool_call><function={{ f.name }}></function></tool_call>".to_owned(), ToolFormat::Generic),
        (format!("[{{{{ f.name }}}}({arguments})]"), ToolFormat::Generic),
    ] {
        assert_eq!(found(writing(&call)).tools, Some(format), "{call}");
    }
    // A template of its own for tools.
    let list = json!([
        {"name": "default", "template": "{{ messages[0].content }}"},
        {"name": "tool_use", "template": "{{ tools }}{% for m in messages %}{% for c in m.tool_calls %}[TOOL_CALLS][\
            {{ c.function | tojson }}]{% endfor %}{% endfor %}"},
    ]);
    let template = ChatTemplate::from_config(&json!({ "chat_template": list }), None).unwrap();
    assert_eq!(found(template).tools, Some(ToolFormat::Mistral));
}

#[test]
fn the_operator_has_the_last_word() {
    for (setting, format) in
        [("none", None), ("mistral", Some(ToolFormat::Mistral)), ("auto", Some(ToolFormat::Hermes))]
    {
        let mut template = named("qwen3");
        template.learn_dialect(setting.parse().unwrap(), false);
        assert_eq!((template.dialect().tools, template.dialect().reasoning), (format, None));
    }
    assert!(ToolSetting::NAMES.iter().all(|name| name.parse::<ToolSetting>().is_ok()));
    assert!("xml".parse::<ToolSetting>().unwrap_err().contains("hermes"));
}

#[test]
fn reasoning_is_found_and_where_it_begins() {
    assert_eq!(found(named("qwen3")).reasoning.map(|tags| tags.open), Some("<think>"));
    assert_eq!(found(named("qwen25")).reasoning, None);
    let magistral = found(template("[SYSTEM_PROMPT][THINK]..[/THINK]{{ messages[0].content }}"));
    assert_eq!(magistral.reasoning.map(|tags| tags.close), Some("[/THINK]"));
    let dialect = found(named("qwen3"));
    assert_eq!(dialect.thinking_after("<|im_start|>assistant\n"), Thinking::NotBegun);
    assert_eq!(dialect.thinking_after("<|im_start|>assistant\n<think>\n"), Thinking::Begun);
    assert_eq!(dialect.thinking_after("<|im_start|>assistant\n<think>\n\n</think>\n\n"), Thinking::Done);
    assert_eq!(found(named("qwen25")).thinking_after("<think>"), Thinking::NotBegun);

    // A message to be continued may end within it.
    let file = fixture("tokenizers.json");
    let tokenizer = tokenizer(&file["cases"][0]);
    let mut template = template("{% for m in messages %}<think>{{ m.content }}{% endfor %}");
    template.learn_dialect(ToolSetting::Auto, true);
    for (content, thinking) in
        [("<think>Hm", Thinking::Begun), ("<think>Hm</think>Yes", Thinking::Done), ("Yes", Thinking::Done)]
    {
        let messages = [json!({"role": "assistant", "content": content})];
        let input = ChatInput { messages: &messages, continue_final_message: true, ..ChatInput::default() };
        let prompt = splice(&tokenizer, &template, &ReplyTable::new(0), DomainId(1), &input).unwrap();
        assert_eq!(prompt.thinking, thinking, "{content}");
    }
}

fn tools() -> Vec<Value> {
    vec![
        json!({"type": "function", "function": {"name": "f", "description": "Does it.", "parameters": {"type": "object"}}}),
    ]
}

fn render(template: &ChatTemplate, messages: &Value, tools: &[Value]) -> String {
    let input = ChatInput {
        messages: messages.as_array().unwrap(),
        tools: Some(tools).filter(|t| !t.is_empty()),
        add_generation_prompt: true,
        ..ChatInput::default()
    };
    template.render(&input).unwrap()
}

#[test]
fn templates_without_tools_are_told_of_them_in_words() {
    let mut template = named("smollm2");
    let calls = json!([
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": \"é\"}"}},
        {"id": "c2", "type": "function", "function": {"name": "g", "arguments": {}}},
    ]);
    let messages = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Do it."},
        {"role": "assistant", "content": "Now.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "tool", "tool_call_id": "c2", "content": "2"},
        {"role": "user", "content": "And?"},
    ]);
    template.learn_dialect(ToolSetting::Auto, true);
    let text = render(&template, &messages, &tools());
    let described = "{\"name\": \"f\", \"description\": \"Does it.\", \"parameters\": {\"type\": \"object\"}}";
    let system = text.split("<|im_end|>").next().unwrap();
    assert!(
        system.contains("Be brief.\n\n") && system.contains(described) && system.contains("{\"name\": "),
        "{system}"
    );
    let rest = "<|im_start|>user\nDo it.<|im_end|>\n\
        <|im_start|>assistant\nNow.\n{\"name\": \"f\", \"arguments\": {\"a\": \"é\"}}\n{\"name\": \"g\", \"arguments\": {}}<|im_end|>\n\
        <|im_start|>user\nResult of f: 1\n\nResult of g: 2\n\nAnd?<|im_end|>\n<|im_start|>assistant\n";
    assert!(text.ends_with(rest), "{text}");
    // Without tools and calls nothing changes.
    let plain = json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, {"role": "user", "content": "z"}]);
    assert_eq!(render(&template, &plain, &[]), render(&named("smollm2"), &plain, &[]));
    // No system message to put it into.
    let text = render(&template, &plain, &tools());
    assert!(text.starts_with("<|im_start|>system\n") && text.split("<|im_end|>").next().unwrap().contains(described));

    // A template that takes no system messages, and wants turns to be taken.
    let mut strict = template_without_system();
    strict.learn_dialect(ToolSetting::Auto, true);
    let text = render(&strict, &messages.as_array().unwrap()[1..].to_vec().into(), &tools());
    assert!(text.starts_with("U:You can call") && text.contains("\n\nDo it.|A:Now."), "{text}");
}

fn template_without_system() -> ChatTemplate {
    template(
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}{% endif %}\
         {{ 'U:' if m.role == 'user' else 'A:' }}{{ m.content }}|{% endfor %}",
    )
}

#[test]
fn special_tokens_of_the_marks_are_seen() {
    let file = fixture("tokenizers.json");
    for case in file["cases"].as_array().unwrap() {
        let tokenizer = tokenizer(case);
        let special = tokenizer.special_ids();
        let Some(&first) = special.first() else { continue };
        let kept = [first].into();
        let mut shown = Detokenizer::after_prompt(&tokenizer, true).keeping(&kept);
        assert_eq!(shown.push(first).as_bytes(), tokenizer.token_bytes(first));
        let other = special.iter().find(|&&id| id != first);
        assert!(other.is_none_or(|&id| shown.push(id).is_empty()));
    }
    let llama = common::tokenizers().into_iter().find(|(name, _)| name == "llama3").unwrap().1;
    let mark = llama.id_of("<|python_tag|>").filter(|&id| llama.is_special(id));
    let dialect = found(named("llama31"));
    assert_eq!(dialect.kept_tokens(&llama), mark.into_iter().collect::<Vec<_>>());
    assert!(Dialect::default().kept_tokens(&llama).is_empty());
}
