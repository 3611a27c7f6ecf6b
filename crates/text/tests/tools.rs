//! Replies as models write them, cut into pieces in every way, against what they say.

use kvist_text::{ReasoningTags, ReplyEvent, ReplyParser, Thinking, ToolFormat};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use ToolFormat::{Generic, Hermes, Llama3, Mistral};

const FORMATS: [ToolFormat; 4] = [Hermes, Llama3, Mistral, Generic];
const THINK: ReasoningTags = ReasoningTags { open: "<think>", close: "</think>" };
const NAMES: [&str; 3] = ["f", "get_weather", "a.b-c"];

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Said {
    content: String,
    reasoning: String,
    /// Name and arguments of calls that ended.
    calls: Vec<(String, String)>,
    /// What was told of calls that broke, and their text.
    broken: Vec<(String, String, String)>,
}

/// Puts the events together and checks their order.
fn collect(events: Vec<ReplyEvent>) -> Said {
    let mut said = Said::default();
    let mut open: Option<(usize, String, String)> = None;
    let mut next = 0;
    for event in events {
        match event {
            ReplyEvent::Content(text) => {
                assert!(open.is_none() && !text.is_empty());
                said.content.push_str(&text);
            }
            ReplyEvent::Reasoning(text) => {
                assert!(open.is_none() && !text.is_empty());
                said.reasoning.push_str(&text);
            }
            ReplyEvent::CallStart { index, name } => {
                assert!(open.is_none() && index == next && !name.is_empty());
                next += 1;
                open = Some((index, name, String::new()));
            }
            ReplyEvent::CallArguments { index, fragment } => {
                let open = open.as_mut().expect("the call was started");
                assert!(open.0 == index && !fragment.is_empty());
                open.2.push_str(&fragment);
            }
            ReplyEvent::CallEnd { index } => {
                let (started, name, arguments) = open.take().expect("the call was started");
                assert_eq!(started, index);
                serde_json::from_str::<Map<String, Value>>(&arguments).expect("arguments are an object");
                said.calls.push((name, arguments));
            }
            ReplyEvent::CallBroken { index, text } => {
                let (started, name, arguments) = open.take().expect("the call was started");
                assert_eq!(started, index);
                said.broken.push((name, arguments, text));
            }
        }
    }
    assert!(open.is_none(), "every call ends");
    said
}

fn begun(thinking: bool) -> Thinking {
    if thinking { Thinking::Begun } else { Thinking::NotBegun }
}

fn parser(format: Option<ToolFormat>, thinking: bool) -> ReplyParser {
    ReplyParser::new(format, Some(THINK), NAMES.map(str::to_owned).to_vec(), begun(thinking))
}

fn parse_pieces<'a>(mut parser: ReplyParser, pieces: impl IntoIterator<Item = &'a str>) -> Said {
    let mut events: Vec<ReplyEvent> = pieces.into_iter().flat_map(|piece| parser.push(piece)).collect();
    events.extend(parser.finish());
    collect(events)
}

fn parse(format: ToolFormat, text: &str) -> Said {
    let whole = parse_pieces(parser(Some(format), false), [text]);
    let mut ends = text.char_indices().map(|(at, c)| &text[at..at + c.len_utf8()]);
    assert_eq!(parse_pieces(parser(Some(format), false), &mut ends), whole, "{format:?} {text:?}");
    whole
}

fn content(text: &str) -> Said {
    Said { content: text.to_owned(), ..Said::default() }
}

fn calls(calls: &[(&str, &str)]) -> Said {
    let calls = calls.iter().map(|(name, arguments)| ((*name).to_owned(), (*arguments).to_owned()));
    Said { calls: calls.collect(), ..Said::default() }
}

/// How each format writes calls. The first is as templates have it.
fn written(format: ToolFormat, form: usize, calls: &[(String, String)]) -> String {
    let object = |key: &str, (name, arguments): &(String, String)| {
        let name = Value::from(name.as_str());
        let quoted = Value::from(arguments.as_str());
        match form % 3 {
            0 => format!("{{\"name\": {name}, \"{key}\": {arguments}}}"),
            1 => format!("{{\"type\":\"function\", \"{key}\" :{arguments} ,\n\t\"name\":{name} }}"),
            _ => format!("{{\"id\":\"1\",\"name\":{name},\"{key}\": {quoted}}}"),
        }
    };
    let each = |key: &'static str| calls.iter().map(move |call| object(key, call));
    match (format, form) {
        (Hermes, _) => {
            each("arguments").map(|c| format!("<tool_call>\n{c}\n</tool_call>")).collect::<Vec<_>>().join("\n")
        }
        (Llama3, 0..3) => each("parameters").collect::<Vec<_>>().join("; "),
        (Llama3, _) => each("parameters").map(|c| format!("<|python_tag|>{c}")).collect::<Vec<_>>().join(";"),
        (Mistral, 0..3) => format!("[TOOL_CALLS] [{}]", each("arguments").collect::<Vec<_>>().join(", ")),
        (Mistral, _) => {
            let between = ["[ARGS]", "[CALL_ID]a1B2c3D4e[ARGS]", ""][form % 3];
            calls.iter().map(|(name, arguments)| format!("[TOOL_CALLS]{name}{between}{arguments}")).collect()
        }
        (Generic, 0..3) => each("arguments").collect::<Vec<_>>().join("\n"),
        (Generic, _) => format!("```json\n{}\n```", each("arguments").collect::<Vec<_>>().join("\n")),
    }
}

fn json_text() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        (-1e6..1e6f64).prop_map(Value::from),
        prop::sample::select(vec![
            "",
            "a",
            "{",
            "}",
            "\"",
            "\\",
            "</tool_call>",
            "<tool_call>",
            "[TOOL_CALLS]",
            "```",
            "\n\t",
            "é🙂\u{7f}\u{1}",
            "{\"name\": \"f\", \"arguments\": {}}",
            "<think>",
            "\\u0041",
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::vec(("[a-z\"}{\\\\]{0,3}", inner), 0..3)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// The arguments of a call, as different models may write the same.
fn arguments() -> impl Strategy<Value = String> {
    (prop::collection::vec(("[a-z]{1,3}", json_text()), 0..3), 0..3).prop_map(|(pairs, style)| {
        let object = Value::Object(pairs.into_iter().collect());
        match style {
            0 => object.to_string(),
            1 => serde_json::to_string_pretty(&object).unwrap(),
            _ => {
                let text = object.to_string();
                let ascii = |c: char| match c {
                    ' '..='~' => c.to_string(),
                    c => c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04X}")).collect(),
                };
                text.chars().map(ascii).collect()
            }
        }
    })
}

/// Text without anything that could open a call or reasoning, and with neither space nor separators at its ends.
fn plain() -> impl Strategy<Value = String> {
    "([a-zé<\\[`|_.,:;> /]{0,6}\n?[a-z <\\[\"}|]{0,6}){0,3}".prop_map(|text| {
        let text = text.replace("```", "``");
        text.trim_matches(|c: char| c.is_whitespace() || c == ';').to_owned()
    })
}

fn cut(text: &str, seeds: &[usize]) -> Vec<String> {
    let mut ends: Vec<usize> =
        seeds.iter().map(|s| s % (text.len() + 1)).filter(|&at| text.is_char_boundary(at)).collect();
    ends.extend([0, text.len()]);
    ends.sort_unstable();
    ends.windows(2).map(|w| text[w[0]..w[1]].to_owned()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    /// What was put together comes out again, however it is cut.
    #[test]
    fn what_is_written_is_read(
        reasoning in prop::option::of(plain()),
        before in plain(),
        list in prop::collection::vec((prop::sample::select(&NAMES[..]), arguments()), 0..4),
        after in plain(),
        form in 0..6usize,
        opened in any::<bool>(),
        cuts in prop::collection::vec(any::<usize>(), 0..30),
    ) {
        let list: Vec<(String, String)> = list.into_iter().map(|(name, args)| (name.to_owned(), args)).collect();
        for format in FORMATS {
            let mut text = String::new();
            if let Some(reasoning) = &reasoning {
                text = format!("{}\n{reasoning}\n</think>\n\n", if opened { "" } else { "<think>" });
            }
            let mut expected = Said {
                content: before.clone(),
                reasoning: reasoning.clone().unwrap_or_default(),
                calls: list.clone(),
                broken: vec![],
            };
            text += &before;
            if !list.is_empty() {
                if !before.is_empty() {
                    text += "\n";
                }
                text += &written(format, form, &list);
                if !after.is_empty() {
                    let behind = format!("\n{after}");
                    text += &behind;
                    expected.content += &behind;
                }
            }
            let thinking = opened && reasoning.is_some();
            let pieces = cut(&text, &cuts);
            let said = parse_pieces(parser(Some(format), thinking), pieces.iter().map(String::as_str));
            prop_assert_eq!(&said, &expected, "{:?} {:?}", format, text);
            // A template writes the same space between calls; without tools all that is no reasoning is content.
            let plain = parse_pieces(parser(None, thinking), pieces.iter().map(String::as_str));
            let rest = text.rsplit_once("</think>").map_or(text.as_str(), |(_, rest)| rest.trim_start_matches('\n'));
            if reasoning.is_some() && !list.is_empty() {
                continue; // calls may hold the marks of reasoning
            }
            prop_assert_eq!(&plain.content, rest);
        }
    }

    /// Anything at all: pieces do not matter, and no byte is lost.
    #[test]
    fn soup_is_read_the_same_however_it_is_cut(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "```", "```json\n",
            "<think>", "</think>", "{", "}", "[", "]", "\n", " ", ";", ",", "x", "f", "\"", "\\",
            "{\"name\": \"f\", ", "{\"name\": \"g\", ", "\"arguments\": ", "\"parameters\": {\"a\": ", "{\"arguments\": {\"b\": [1, ",
            "{\"name\": \"f\", \"arguments\": {}}", "{\"name\":\"get_weather\",\"parameters\":{\"c\":\"}\"}}", "1", "\"s\"",
        ]), 0..14),
        cuts in prop::collection::vec(any::<usize>(), 0..20),
        thinking in any::<bool>(),
    ) {
        let text = pieces.concat();
        for format in FORMATS {
            let whole = parse_pieces(parser(Some(format), thinking), [text.as_str()]);
            let cut = cut(&text, &cuts);
            prop_assert_eq!(&parse_pieces(parser(Some(format), thinking), cut.iter().map(String::as_str)), &whole);
            // Told broken calls begin with what was told.
            for (_, arguments, raw) in &whole.broken {
                prop_assert!(raw.contains(arguments.as_str()), "{:?}", whole);
            }
            if whole.calls.is_empty() && whole.broken.is_empty() && whole.reasoning.is_empty() && !thinking && !text.trim_start().starts_with("<think>") {
                prop_assert_eq!(&whole.content, &text, "{:?}", format);
            }
            // All that is not space is found again, or belongs to the frame of a call that ended.
            let told = whole.content.len() + whole.reasoning.len() + whole.broken.iter().map(|b| b.2.len()).sum::<usize>();
            prop_assert!(told <= text.len());
            if whole.calls.is_empty() {
                let solid = |t: &str| t.chars().filter(|c| !c.is_whitespace()).count();
                let marks = [THINK.open, THINK.close].iter().filter(|m| text.contains(**m)).map(|m| m.len()).sum::<usize>();
                let kept = solid(&whole.content) + solid(&whole.reasoning) + whole.broken.iter().map(|b| solid(&b.2)).sum::<usize>();
                prop_assert!(kept + marks >= solid(&text), "{:?} {:?} {:?}", format, text, whole);
            }
        }
    }

    /// The oracle reads the whole text at its end: the objects that serde_json finds behind each mark.
    #[test]
    fn hermes_against_a_naive_reader(pieces in prop::collection::vec(prop_oneof![
        3 => (prop::sample::select(&NAMES[..]), arguments()).prop_map(|(name, arguments)| format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")),
        1 => (prop::sample::select(&NAMES[..]), arguments()).prop_map(|(name, arguments)| format!("<tool_call>{{\"name\": \"{name}\", \"arguments\": {arguments}}}")),
        1 => prop::sample::select(vec!["<tool_call>[1]", "<tool_call>{\"name\": 3}", "<tool_call>\n{\"x\": 1}\n", "<tool_call>{]", "</tool_call>", "<tool_"]).prop_map(str::to_owned),
        2 => "[a-z .]{1,5}",
        1 => Just("\n".to_owned()),
    ], 0..6)) {
        let text = pieces.concat();
        let mut expected = Said::default();
        let mut rest = text.as_str();
        let mut after_call = false;
        while let Some(at) = rest.find("<tool_call>") {
            let body = &rest[at + "<tool_call>".len()..];
            let mut values = serde_json::Deserializer::from_str(body).into_iter::<Value>();
            let value = values.next().and_then(Result::ok).filter(|v| v["name"].is_string() && v["arguments"].is_object());
            let before = if value.is_some() { rest[..at].trim_end() } else { &rest[..at] };
            if !(after_call && before.trim().is_empty() && value.is_some()) {
                expected.content += before;
            }
            let Some(value) = value else {
                expected.content += "<tool_call>";
                (rest, after_call) = (body, false);
                continue;
            };
            let raw = &body[..values.byte_offset()];
            let arguments = raw[raw.find("\"arguments\": ").unwrap() + 13..].strip_suffix('}').unwrap();
            expected.calls.push((value["name"].as_str().unwrap().to_owned(), arguments.to_owned()));
            let behind = &body[values.byte_offset()..];
            rest = behind.trim_start().strip_prefix("</tool_call>").unwrap_or(behind);
            after_call = true;
        }
        if !(after_call && rest.trim().is_empty()) {
            expected.content += rest;
        }
        prop_assert_eq!(parse(Hermes, &text), expected, "{:?}", text);
    }
}

#[test]
fn forms_of_the_real_world() {
    let f = |arguments: &str| calls(&[("f", arguments)]);
    for (format, text, expected) in [
        (Hermes, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>", f("{\"a\": 1}")),
        (Hermes, "<tool_call>{\"name\": \"f\"}</tool_call>", f("{}")),
        (Hermes, "<tool_call>{\"name\": \"f\", \"arguments\": {}}", f("{}")),
        (Hermes, "<tool_call>{\"name\": \"unknown\", \"arguments\": {}}", calls(&[("unknown", "{}")])),
        (Hermes, "{\"name\": \"f\", \"arguments\": {}}", content("{\"name\": \"f\", \"arguments\": {}}")),
        (Llama3, "{\"name\": \"f\", \"parameters\": {\"a\": 1}}", f("{\"a\": 1}")),
        (Llama3, "{\"type\": \"function\", \"name\": \"f\", \"parameters\": {}}", f("{}")),
        (Llama3, "<|python_tag|>{\"name\": \"new\", \"parameters\": {}}", calls(&[("new", "{}")])),
        (Llama3, "<|python_tag|>print(1)", content("<|python_tag|>print(1)")),
        (Llama3, "{\"name\": \"Bob\", \"parameters\": {}}", content("{\"name\": \"Bob\", \"parameters\": {}}")),
        (Llama3, "It is {\"name\": \"f\"}", content("It is {\"name\": \"f\"}")),
        (Mistral, "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {}, \"id\": \"abc123def\"}]", f("{}")),
        (Mistral, "[TOOL_CALLS] {\"name\": \"f\", \"arguments\": {}}", f("{}")),
        (Mistral, "[TOOL_CALLS]f{\"a\": \"}\"}", f("{\"a\": \"}\"}")),
        (Mistral, "[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]a.b-c[ARGS]{}", calls(&[("f", "{}"), ("a.b-c", "{}")])),
        (Mistral, "[TOOL_CALLS] is a mark", content("[TOOL_CALLS] is a mark")),
        (Generic, "```\n{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 2}\"}\n```", f("{\"a\": 2}")),
        (Generic, "```rust\nfn f() {}\n```", content("```rust\nfn f() {}\n```")),
        (Generic, "{\"answer\": 42}", content("{\"answer\": 42}")),
    ] {
        assert_eq!(parse(format, text), expected, "{format:?} {text}");
    }
}

#[test]
fn what_breaks_is_content_as_it_was_written() {
    for text in [
        "<tool_call>\n{'name': 'f'}\n</tool_call>",
        "  <tool_call>{{\"name\": \"f\"}}",
        "<tool_call>{\"name\": \"\", \"arguments\": {}}",
        "<tool_call>{\"name\": \"f\", \"arguments\": [1]}",
        "<tool_call>{\"name\": \"f\", \"arguments\": \"no\"}",
        "<tool_call>{\"name\": \"f\", \"name\": \"f\"}",
        "<tool_call>{\"name\": \"f\", \"other\": 1}",
        "<tool_call>{\"arguments\": {\"a\": 1}}</tool_call>",
        "<tool_call>{\"arguments\": {\"a\": 1}",
        "<tool_call>{\"name\": \"f\", \"argum",
        "<tool_call>",
        "<tool_call",
    ] {
        assert_eq!(parse(Hermes, text), content(text), "{text}");
    }
    // Once told, it cannot be taken back.
    for (text, told) in [
        ("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": nil}}</tool_call>", "{\"a\": n"),
        ("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"cut", "{\"a\": \"cut"),
        ("<tool_call>{\"name\": \"f\", \"arguments\": {}, \"x\": 1}", "{}"),
    ] {
        let said = parse(Hermes, text);
        assert_eq!((said.broken.len(), said.calls.len()), (1, 0), "{said:?}");
        assert_eq!((said.broken[0].0.as_str(), said.broken[0].1.as_str()), ("f", told));
        assert_eq!(said.broken[0].2.clone() + &said.content, text);
    }
}

#[test]
fn no_more_is_held_back_than_must_be() {
    let mut p = parser(Some(Hermes), false);
    let mut told = |text: &str| p.push(text);
    let says = |text: &str| vec![ReplyEvent::Content(text.to_owned())];
    assert_eq!(told("Hello"), says("Hello"));
    assert_eq!(told(" \n"), []);
    assert_eq!(told("<tool"), []);
    assert_eq!(told("s"), says(" \n<tools"));
    assert_eq!(told("<tool_call>{\"name\": \"f\", \"arguments\""), []);
    let arguments = |fragment: &str| ReplyEvent::CallArguments { index: 0, fragment: fragment.to_owned() };
    assert_eq!(told(": {"), [ReplyEvent::CallStart { index: 0, name: "f".into() }, arguments("{")]);
    assert_eq!(told("\"a\": 1"), [arguments("\"a\": 1")]);
    assert_eq!(told("}}"), [arguments("}"), ReplyEvent::CallEnd { index: 0 }]);
    assert_eq!(told("\n</tool_call>\n"), []);
    assert_eq!(p.finish(), []);

    // JSON that is no call is told at the first key that no call has.
    let mut p = parser(Some(Generic), false);
    assert_eq!(p.push("{\"answer"), []);
    assert_eq!(p.push("\": "), says("{\"answer\":"));
    let mut p = parser(None, true);
    assert_eq!(p.push("\nWell"), [ReplyEvent::Reasoning("Well".into())]);
    assert_eq!(p.push(".</thin"), [ReplyEvent::Reasoning(".".into())]);
    assert_eq!(p.push("k>\n\nYes \n"), says("Yes \n"));
}

#[test]
fn reasoning_stands_at_the_start_only() {
    let said = |thinking, text: &str| {
        let said = parse_pieces(parser(None, thinking), [text]);
        (said.reasoning, said.content)
    };
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(said(false, "<think>\nHm.\n\nSo.\n</think>\n\nYes"), pair("Hm.\n\nSo.", "Yes"));
    assert_eq!(said(true, "Hm.</think> Yes"), pair("Hm.", " Yes"));
    assert_eq!(said(true, "Cut\n"), pair("Cut", ""));
    assert_eq!(said(true, "Cut</thin"), pair("Cut</thin", ""));
    assert_eq!(said(false, "I <think> so</think>"), pair("", "I <think> so</think>"));
    assert_eq!(said(false, "<think></think>"), pair("", ""));
    assert_eq!(said(false, " <thi"), pair("", " <thi"));
    let off = parse_pieces(ReplyParser::new(None, None, vec![], Thinking::Begun), ["<think>x</think>"]);
    assert_eq!(off, content("<think>x</think>"));
    // A call that the model thinks of is not made.
    let text = "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
    let said = parse_pieces(parser(Some(Hermes), true), [text, "</think>", text]);
    assert_eq!((said.reasoning.as_str(), said.calls.len()), (text, 1));
}

#[test]
fn long_replies_take_linear_time() {
    let nothing = [" ".repeat(200_000), "\n".repeat(200_000), "<".repeat(200_000), "`".repeat(200_000)];
    for format in FORMATS {
        for text in &nothing {
            assert_eq!(parse(format, text), content(text));
            let marked = format!("[TOOL_CALLS]{text}");
            assert_eq!(parse(format, &marked), content(&marked));
        }
        let list: Vec<(String, String)> = (0..2000).map(|i| ("f".to_owned(), json!({"a": i}).to_string())).collect();
        assert_eq!(parse(format, &written(format, 0, &list)).calls, list);
    }
}
