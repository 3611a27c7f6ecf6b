//! Grammars of replies that call tools: what they let through is read as calls, and calls as templates write them are
//! let through.

mod common;

use common::{fixture, tokenizer};
use kvist_base::Constraint;
use kvist_text::grammar::{CallForm, Calls, Free, Grammar, GrammarFactory, GrammarLimits, GrammarSource};
use kvist_text::{ChatInput, ChatTemplate, Function, ReplyEvent, ReplyParser, Thinking, Tokenizer, ToolSetting};
use serde_json::{Map, Value, json};

fn embedded() -> Tokenizer {
    tokenizer(&json!({"base": "assets/model/tokenizer.json", "patch": {}}))
}

/// A template of the fixtures, its calls read in the given format.
fn template(name: &str, format: &str) -> ChatTemplate {
    let file = fixture("chats.json");
    let entry = file["templates"].as_array().unwrap().iter().find(|t| t["name"] == name).unwrap();
    let mut template = ChatTemplate::from_config(&json!({"chat_template": entry["template"]}), None).unwrap();
    template.learn_dialect(format.parse::<ToolSetting>().unwrap(), true);
    template
}

fn functions() -> Vec<Function> {
    let parameters = json!({
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"enum": ["C", "F"]}},
        "required": ["city"],
        "additionalProperties": false,
    });
    vec![
        Function { name: "get_weather".into(), parameters: Some(parameters), strict: true },
        Function { name: "now".into(), parameters: None, strict: false },
    ]
}

/// What `tojson` makes of it.
fn as_templates_write(arguments: &Map<String, Value>) -> String {
    let config = json!({"chat_template": "{{ messages[0].x | tojson }}"});
    let messages = [json!({"role": "user", "x": arguments})];
    let template = ChatTemplate::from_config(&config, None).unwrap();
    template.render(&ChatInput { messages: &messages, ..ChatInput::default() }).unwrap()
}

struct Case<'a> {
    template: &'a ChatTemplate,
    demanded: bool,
    many: bool,
    thinking: Thinking,
}

impl Case<'_> {
    fn compile(&self, factory: &GrammarFactory, tokenizer: &Tokenizer) -> Grammar {
        let source = self.template.dialect().calls(tokenizer, &functions(), self.demanded, self.many, self.thinking);
        factory.compile(&source.unwrap()).unwrap()
    }

    /// Name and arguments of each call, and the content.
    fn read(&self, text: &str) -> (Vec<(String, String)>, String) {
        let dialect = self.template.dialect();
        let names = functions().into_iter().map(|f| f.name).collect();
        let mut parser = ReplyParser::new(dialect.tools, dialect.reasoning, names, self.thinking);
        let mut events = parser.push(text);
        events.extend(parser.finish());
        let (mut calls, mut content) = (Vec::new(), String::new());
        for event in events {
            match event {
                ReplyEvent::CallStart { name, .. } => calls.push((name, String::new())),
                ReplyEvent::CallArguments { fragment, .. } => calls.last_mut().unwrap().1.push_str(&fragment),
                ReplyEvent::Content(text) => content += &text,
                ReplyEvent::CallBroken { text, .. } => panic!("broken: {text}"),
                ReplyEvent::Reasoning(_) | ReplyEvent::CallEnd { .. } => {}
            }
        }
        (calls, content)
    }
}

/// Whether the text, in some spelling by tokens, may be a whole reply.
fn accepts(grammar: &Grammar, tokenizer: &Tokenizer, text: &str) -> bool {
    let mut grammar = grammar.fork();
    for token in tokenizer.encode(text, false).unwrap() {
        if !grammar.allowed().unwrap().contains(token) {
            return false;
        }
        grammar.accept(token).unwrap();
    }
    grammar.is_complete() || grammar.allowed().unwrap().end
}

/// A reply drawn from what the grammar allows, that ends as soon as it may once it is `long` enough.
fn draw(grammar: &Grammar, tokenizer: &Tokenizer, seed: u64, long: usize) -> Option<String> {
    let mut grammar = grammar.fork();
    let mut ids: Vec<u32> = Vec::new();
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for step in 0..400 {
        if grammar.is_complete() {
            return Some(tokenizer.decode(&ids, false));
        }
        let allowed = grammar.allowed().unwrap();
        if allowed.end && step >= long {
            return Some(tokenizer.decode(&ids, false));
        }
        let choices: Vec<u32> = (0..tokenizer.vocab_size() as u32).filter(|&id| allowed.contains(id)).collect();
        if choices.is_empty() {
            return allowed.end.then(|| tokenizer.decode(&ids, false));
        }
        // Nor would a random text ever come to the end of its reasoning.
        let close = tokenizer.encode("</think>", false).unwrap();
        let mut ahead = grammar.fork();
        if step == 12 && close.iter().all(|&id| ahead.allowed().unwrap().contains(id) && ahead.accept(id).is_ok()) {
            ids.extend(close);
            grammar = ahead;
            continue;
        }
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // Quotes and braces come often enough for texts to end.
        let ending = choices.iter().copied().find(|&id| matches!(tokenizer.token_bytes(id).as_slice(), b"\"" | b"}"));
        let token = match ending {
            Some(token) if random.is_multiple_of(3) => token,
            _ => choices[(random >> 20) as usize % choices.len()],
        };
        ids.push(token);
        grammar.accept(token).unwrap();
    }
    None
}

#[test]
fn what_is_let_through_is_read_as_calls() {
    let tokenizer = embedded();
    let factory = GrammarFactory::new(&tokenizer, GrammarLimits::default());
    for (name, format) in
        [("qwen25", "auto"), ("qwen3", "auto"), ("llama31", "auto"), ("smollm2", "auto"), ("smollm2", "mistral")]
    {
        let template = template(name, format);
        for (demanded, many, thinking) in
            [(true, true, false), (true, false, false), (false, true, false), (true, false, true)]
        {
            let case = Case {
                template: &template,
                demanded,
                many,
                thinking: if thinking && name == "qwen3" { Thinking::Begun } else { Thinking::NotBegun },
            };
            let grammar = case.compile(&factory, &tokenizer);
            let mut ended = 0;
            for seed in 1..=4 {
                let Some(text) = draw(&grammar, &tokenizer, seed, if many { 60 } else { 0 }) else { continue };
                ended += 1;
                let (calls, content) = case.read(&text);
                assert!(!demanded || !calls.is_empty() && content.is_empty(), "{name} {format}: {text:?} {content:?}");
                assert!(many || calls.len() <= 1, "{text}");
                for (name, arguments) in calls {
                    let written = arguments;
                    let arguments: Map<String, Value> = serde_json::from_str(&written).unwrap();
                    assert_eq!(written, as_templates_write(&arguments), "{text}");
                    match name.as_str() {
                        "get_weather" => assert!(arguments["city"].is_string(), "{text}"),
                        "now" => assert!(arguments.is_empty(), "{text}"),
                        other => panic!("{other} is no function: {text}"),
                    }
                }
            }
            assert!(ended > 0 || !demanded, "{name} {format} {demanded} {many}");
        }
    }
}

#[test]
fn calls_as_templates_write_them_are_let_through() {
    let tokenizer = embedded();
    let factory = GrammarFactory::new(&tokenizer, GrammarLimits::default());
    let weather = "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Lund\", \"unit\": \"C\"}}";
    let now = "{\"name\": \"now\", \"arguments\": {}}";
    let tag = |call: &str| format!("<tool_call>\n{call}\n</tool_call>");
    let both = format!("{}\n{}", tag(weather), tag(now));
    let llama = weather.replace("arguments", "parameters");
    let thought = format!("<think>\nHm.\n</think>\n\n{}", tag(now));
    for (name, format, single, double) in [
        ("qwen25", "auto", tag(weather), both.clone()),
        ("qwen3", "auto", thought.clone(), both),
        ("llama31", "auto", llama.clone(), format!("{llama}; {}", now.replace("arguments", "parameters"))),
        ("smollm2", "generic", weather.to_owned(), format!("{weather}\n{now}")),
        ("smollm2", "mistral", format!("[TOOL_CALLS] [{weather}]"), format!("[TOOL_CALLS] [{weather}, {now}]")),
    ] {
        let template = template(name, format);
        let compile = |demanded, many| {
            Case { template: &template, demanded, many, thinking: Thinking::NotBegun }.compile(&factory, &tokenizer)
        };
        let text = "The weather is fine; {1, 2}.";
        for (demanded, many) in [(true, true), (true, false), (false, true), (false, false)] {
            let grammar = compile(demanded, many);
            let place = format!("{name} {format} {demanded} {many}");
            assert!(accepts(&grammar, &tokenizer, &single), "{place}: {single}");
            assert_eq!(accepts(&grammar, &tokenizer, &double), many, "{place}: {double}");
            assert_eq!(accepts(&grammar, &tokenizer, text), !demanded, "{place}");
            assert_eq!(accepts(&grammar, &tokenizer, ""), !demanded, "{place}");
            for wrong in [("Lund", "Lund and a lot more"), ("\"C\"", "\"K\""), ("\"city\"", "\"town\"")] {
                let broken = single.replace(wrong.0, wrong.1);
                assert_eq!(accepts(&grammar, &tokenizer, &broken), broken == single, "{place}: {broken}");
            }
        }
    }
    // The prompt has opened the reasoning.
    let template = template("qwen3", "auto");
    let grammar = Case { template: &template, demanded: true, many: false, thinking: Thinking::Begun }
        .compile(&factory, &tokenizer);
    assert!(accepts(&grammar, &tokenizer, thought.strip_prefix("<think>").unwrap()));
    assert!(!accepts(&grammar, &tokenizer, &tag(now)));
    // It has closed it.
    let grammar = Case { template: &template, demanded: true, many: false, thinking: Thinking::Done }
        .compile(&factory, &tokenizer);
    assert!(accepts(&grammar, &tokenizer, &tag(now)) && !accepts(&grammar, &tokenizer, &thought));
    // Text before a call, where calls are free.
    let grammar = Case { template: &template, demanded: false, many: true, thinking: Thinking::NotBegun }
        .compile(&factory, &tokenizer);
    assert!(accepts(&grammar, &tokenizer, &format!("Let me see.\n{}\nDone.", tag(now))));
    assert!(!accepts(&grammar, &tokenizer, &format!("Let me see.\n{}", tag("{}"))));
}

#[test]
fn marks_that_are_special_tokens_are_those_tokens() {
    let file = fixture("tokenizers.json");
    let case = file["cases"].as_array().unwrap().iter().find(|c| c["name"] == "llama3").unwrap();
    let base = tokenizer(case);
    // A special token that stands in for the mark: any will do, as its text is what counts.
    let special = base.special_ids().into_iter().find(|&id| !base.token_bytes(id).is_empty()).unwrap();
    let factory = GrammarFactory::new(&base, GrammarLimits::default());
    let mark = String::from_utf8(base.token_bytes(special)).unwrap();
    let calls = Calls {
        reasoning: None,
        free: Free::Until(mark.clone()),
        forms: vec![CallForm {
            begin: format!("{mark}f"),
            schema: json!({"type": "object"}),
            strict: false,
            end: String::new(),
        }],
        open: String::new(),
        between: String::new(),
        close: String::new(),
        many: true,
        marks: Calls::marks(&base, &[&mark]),
    };
    assert_eq!(calls.marks.len(), 1);
    let grammar = factory.compile(&GrammarSource::Calls(calls)).unwrap();
    for (text, good) in [
        ("a".to_owned(), true),
        (format!("a{mark}f{{}}"), true),
        (format!("{mark}f{{}} b{mark}f{{}}"), true),
        (format!("a{mark}"), false),
        (format!("{mark}g{{}}"), false),
    ] {
        assert_eq!(accepts(&grammar, &base, &text), good, "{text}");
    }
}
