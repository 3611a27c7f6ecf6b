//! What parses hostile input, each with the corpus that its inputs are made from.

use std::fs;
use std::path::Path;

use kvist_model::{Checkpoint, Config, LoadOptions, Model};
use kvist_store::campaign::fuzz as store;
use kvist_text::{
    Bounded, Budget, ChatInput, ChatTemplate, ReasoningTags, ReplyEvent, ReplyParser, Thinking, Tokenizer, ToolFormat,
    ToolSetting,
};
use kvist_weights::testing::GgufBuilder;
use kvist_weights::{Format, Gguf, MetaArray, MetaValue, Tensors};
use serde_json::{Map, Value, json};

use super::mutate::Kind;
use super::requests::{Grammars, Requests};
use crate::subjects::root;

/// A parser under test.
pub trait Target: Sync {
    fn name(&self) -> &'static str;
    fn kind(&self) -> Kind;
    /// Sound inputs.
    fn corpus(&self) -> &[Vec<u8>];
    /// Parses, and uses what was parsed. An error is a refusal, which is as good as an answer.
    fn run(&self, input: &[u8]) -> Result<(), String>;
}

/// A target whose parser is a function.
struct Plain {
    name: &'static str,
    kind: Kind,
    corpus: Vec<Vec<u8>>,
    run: fn(&[u8]) -> Result<(), String>,
}

impl Target for Plain {
    fn name(&self) -> &'static str {
        self.name
    }

    fn kind(&self) -> Kind {
        self.kind
    }

    fn corpus(&self) -> &[Vec<u8>] {
        &self.corpus
    }

    fn run(&self, input: &[u8]) -> Result<(), String> {
        (self.run)(input)
    }
}

/// Every target.
pub fn all() -> Vec<Box<dyn Target>> {
    let plain = |name, kind, corpus, run| Box::new(Plain { name, kind, corpus, run }) as Box<dyn Target>;
    vec![
        plain("safetensors", Kind::Safetensors, safetensors_corpus(), safetensors),
        plain("gguf", Kind::Bytes, gguf_corpus(), gguf),
        plain("config", Kind::Json, config_corpus(), config),
        plain("tokenizer", Kind::Json, tokenizer_corpus(), tokenizer),
        plain("template", Kind::Json, template_corpus(), template),
        Box::new(Requests::new()),
        Box::new(Grammars::new()),
        plain("reply", Kind::Bytes, reply_corpus(), reply),
        plain("segment", Kind::Bytes, store::segments(), store::open_segment),
        plain("record", Kind::Bytes, store::records(), store::decode_record),
    ]
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

/// Directories of the fixture models.
fn models() -> Vec<std::path::PathBuf> {
    let list = fs::read_dir(root().join("crates/model/tests/fixtures")).expect("the fixtures are committed");
    let mut dirs: Vec<_> = list.flatten().map(|e| e.path()).filter(|p| p.join("config.json").exists()).collect();
    dirs.sort();
    dirs
}

fn safetensors_corpus() -> Vec<Vec<u8>> {
    let mut corpus: Vec<_> = models().iter().filter_map(|dir| fs::read(dir.join("model.safetensors")).ok()).collect();
    corpus.retain(|file| file.len() < 1 << 19);
    for (dtype, size) in [("F32", 4), ("BF16", 2), ("F16", 2), ("I64", 8), ("F8_E4M3", 1)] {
        let tensor = |shape: &[usize], from: usize| {
            let end = from + shape.iter().product::<usize>() * size;
            (json!({"dtype": dtype, "shape": shape, "data_offsets": [from, end]}), end)
        };
        let (a, end) = tensor(&[3, 5], 0);
        let (b, end) = tensor(&[7], end);
        let (c, end) = tensor(&[], end);
        let header = json!({"__metadata__": {"format": "pt"}, "a": a, "b": b, "c": c}).to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        bytes.extend((0..end).map(|i| (i % 120) as u8));
        corpus.push(bytes);
    }
    corpus
}

fn safetensors(input: &[u8]) -> Result<(), String> {
    let tensors = Tensors::from_bytes(input.to_vec()).map_err(text)?;
    let names: Vec<String> = tensors.names().map(String::from).collect();
    for name in names {
        // The shape is known beforehand; another one is refused.
        for shape in [&[3, 5][..], &[7], &[], &[64], &[48, 64], &[usize::MAX, 2]] {
            if let Ok(tensor) = tensors.tensor(&name, shape) {
                let _ = tensor.to_f32();
                let mut row = vec![0; tensor.columns()];
                let _ = (0..tensor.rows()).try_for_each(|i| tensor.row_bf16(i, &mut Vec::new(), &mut row));
            }
        }
    }
    Ok(())
}

/// Small models, so that most mutations hit what is parsed.
fn gguf_corpus() -> Vec<Vec<u8>> {
    let mut corpus = vec![read(&root().join("crates/weights/tests/fixtures/values.gguf"))];
    for (architecture, format) in [("llama", Format::Q8_0), ("qwen2", Format::F16), ("gemma3", Format::Q4_0)] {
        let key = |key: &str| format!("{architecture}.{key}");
        let mut file = GgufBuilder::default()
            .value("general.architecture", MetaValue::String(architecture.into()))
            .value(&key("attention.layer_norm_rms_epsilon"), MetaValue::F32(1e-5))
            .value(&key("rope.scaling.type"), MetaValue::String("linear".into()))
            .value(&key("rope.scaling.factor"), MetaValue::F32(2.0))
            .value("tokenizer.ggml.tokens", MetaValue::Array(MetaArray::String(["a", "b", "</s>"].iter().collect())))
            .value("tokenizer.ggml.token_type", MetaValue::Array(MetaArray::I32(vec![1, 1, 3])));
        for (name, value) in [
            ("context_length", 128),
            ("embedding_length", 32),
            ("block_count", 1),
            ("feed_forward_length", 32),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
            ("attention.key_length", 16),
            ("attention.sliding_window", 0),
        ] {
            file = file.value(&key(name), MetaValue::U32(value));
        }
        let matrix = |file: GgufBuilder, name: &str, rows: usize| {
            let data = vec![1; rows * 32 / format.block() * format.block_bytes()];
            file.tensor(&format!("{name}.weight"), &[rows, 32], format, data)
        };
        file = matrix(file, "token_embd", 3).f32("output_norm.weight", &[32], &[1.0; 32]);
        for (name, rows) in [("q", 32), ("k", 16), ("v", 16), ("output", 32)] {
            file = matrix(file, &format!("blk.0.attn_{name}"), rows);
        }
        for name in ["gate", "up", "down"] {
            file = matrix(file, &format!("blk.0.ffn_{name}"), 32);
        }
        for (name, n) in [("attn_norm", 32), ("ffn_norm", 32), ("post_attention_norm", 32), ("post_ffw_norm", 32)] {
            if architecture == "gemma3" || !name.starts_with("post") {
                file = file.f32(&format!("blk.0.{name}.weight"), &[n], &[1.0; 32]);
            }
        }
        for (name, n) in [("q", 32), ("k", 16), ("v", 16)] {
            file = match architecture {
                "qwen2" => file.f32(&format!("blk.0.attn_{name}.bias"), &[n], &vec![0.0; n]),
                "gemma3" if name != "v" => file.f32(&format!("blk.0.attn_{name}_norm.weight"), &[16], &[1.0; 16]),
                _ => file,
            };
        }
        corpus.push(file.build());
    }
    corpus
}

/// Reads every tensor, then takes the file for a model.
fn gguf(input: &[u8]) -> Result<(), String> {
    let file = Gguf::from_bytes(input.to_vec()).map_err(text)?;
    for name in file.tensors.names() {
        if let Ok(tensor) = file.tensors.tensor(name, file.tensors.shape(name).unwrap_or_default()) {
            let _ = tensor.to_f32();
        }
    }
    if file.get("general.architecture").and_then(MetaValue::as_str) == Some("values") {
        return Ok(());
    }
    let checkpoint = Checkpoint::of_gguf(file).map_err(text)?;
    Model::of(&checkpoint, &LoadOptions::default()).map(drop).map_err(text)
}

fn config_corpus() -> Vec<Vec<u8>> {
    let value = |path: &Path| serde_json::from_slice::<Value>(&read(path)).expect("a fixture is JSON");
    let pair = |dir: &Path| {
        let mut both = Map::from_iter([("config".to_string(), value(&dir.join("config.json")))]);
        if dir.join("generation_config.json").exists() {
            both.insert("generation".into(), value(&dir.join("generation_config.json")));
        }
        Value::Object(both).to_string().into_bytes()
    };
    models().iter().map(|dir| pair(dir)).collect()
}

fn config(input: &[u8]) -> Result<(), String> {
    // What takes these two apart must not count as what the parser takes.
    let [config, generation] = if input.len() > 256 << 10 {
        [None, None]
    } else {
        let both = serde_json::from_slice::<Value>(input).unwrap_or(Value::Null);
        ["config", "generation"].map(|name| both.get(name).map(|v| v.to_string().into_bytes()))
    };
    let config = config.unwrap_or_else(|| input.to_vec());
    let config = Config::parse(&config, generation.as_deref()).map_err(text)?;
    assert!(config.parameters() > 0);
    assert_eq!((config.attention.len(), config.kv_layout().layers.len()), (config.layers, config.layers));
    let rotations = config.attention.iter().map(|a| config.ropes[a.rope].rotation(config.context));
    assert!(rotations.take(2).all(|r| r.amplitude.is_finite() && r.frequencies.iter().all(|f| f.is_finite())));
    assert!(config.attention.iter().all(|a| a.window.is_none_or(|w| w > 0 && (w as usize) < config.context)));
    assert!(config.eos.iter().chain(&config.bos).all(|&id| (id as usize) < config.vocab));
    Ok(())
}

fn tokenizer_corpus() -> Vec<Vec<u8>> {
    let dir = root().join("crates/text/tests/fixtures");
    let mut corpus = vec![read(&dir.join("bytes.json")), read(&dir.join("spm.json"))];
    let cases: Value = serde_json::from_slice(&read(&dir.join("tokenizers.json"))).expect("a fixture is JSON");
    for case in cases["cases"].as_array().expect("a list of cases") {
        let Some(base) = case["base"].as_str().filter(|base| !base.contains('/')) else { continue };
        let mut file: Map<String, Value> = serde_json::from_slice(&read(&dir.join(base))).expect("a fixture is JSON");
        file.extend(case["patch"].as_object().cloned().unwrap_or_default());
        corpus.push(Value::Object(file).to_string().into_bytes());
    }
    corpus
}

fn tokenizer(input: &[u8]) -> Result<(), String> {
    let tokenizer = Tokenizer::from_bytes(input).map_err(text)?;
    let mut refused = Ok(());
    for text in
        ["", " a  b\n\n", "fn main() { println!(\"h\u{e9}llo\"); }", "<s>aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\u{1f44d}</s>"]
    {
        for special in [false, true] {
            match tokenizer.encode(text, special) {
                Ok(ids) => drop(tokenizer.decode(&ids, special)),
                Err(e) => refused = Err(e.to_string()),
            }
        }
    }
    for id in [0, 1, 299, 524, u32::MAX] {
        assert!(tokenizer.has(id) || tokenizer.token_bytes(id).is_empty());
    }
    refused
}

fn template_corpus() -> Vec<Vec<u8>> {
    let file = read(&root().join("crates/text/tests/fixtures/chats.json"));
    let file: Value = serde_json::from_slice(&file).expect("a fixture is JSON");
    let mut corpus = Vec::new();
    for template in file["templates"].as_array().expect("a list of templates") {
        for chat in file["chats"].as_array().expect("a list of chats") {
            let input = json!({
                "config": {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": template["template"]},
                "messages": chat,
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
                "kwargs": {"enable_thinking": false},
                "continue": false,
            });
            corpus.push(input.to_string().into_bytes());
        }
    }
    corpus
}

fn template(input: &[u8]) -> Result<(), String> {
    // As the server reads a request.
    let input = Bounded { budget: &Budget::of(20 << 20), unique: false }.read(input).map_err(text)?;
    let mut template = ChatTemplate::from_config(&input["config"], None).map_err(text)?;
    template.learn_dialect(ToolSetting::Auto, true);
    let list = |name: &str| input[name].as_array().map(Vec::as_slice);
    let open = input["continue"] == true;
    let chat = ChatInput {
        messages: list("messages").unwrap_or_default(),
        tools: list("tools"),
        add_generation_prompt: !open,
        continue_final_message: open,
        kwargs: input["kwargs"].as_object(),
        now: 1_700_000_000,
    };
    template.render(&chat).map(drop).map_err(text)
}

const FORMATS: [ToolFormat; 4] = [ToolFormat::Hermes, ToolFormat::Llama3, ToolFormat::Mistral, ToolFormat::Generic];

fn reply_corpus() -> Vec<Vec<u8>> {
    let call =
        |key: &str| json!({"name": "f", key: {"city": "Malm\u{f6}", "list": [1, -2.5e3, {"b": "}\"\\"}], "n": null}});
    let (call, llama) = (call("arguments").to_string(), call("parameters").to_string());
    let replies = [
        format!(
            "<think>\nHm.\n</think>\n\nLet me see.\n<tool_call>\n{call}\n</tool_call>\n<tool_call>\n{call}\n</tool_call>"
        ),
        format!("{llama}; {llama}"),
        format!("<|python_tag|>{llama}"),
        format!("[TOOL_CALLS] [{call}, {call}]"),
        "[TOOL_CALLS]f[ARGS]{\"a\": 1}[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{}".to_owned(),
        format!("Sure:\n```json\n{call}\n{call}\n```\nDone."),
        format!("{call}\n{call}"),
    ];
    replies.map(String::into_bytes).to_vec()
}

/// A reply is never refused; what counts as taken is one in which a call is found.
fn reply(input: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(input);
    let tags = ReasoningTags { open: "<think>", close: "</think>" };
    let mut found = Err("nothing but content".to_owned());
    for format in FORMATS {
        let mut parser = ReplyParser::new(Some(format), Some(tags), vec!["f".to_owned()], Thinking::NotBegun);
        let mut characters = parser.clone();
        let mut whole = parser.push(&text);
        whole.extend(parser.finish());
        let mut pieces: Vec<ReplyEvent> =
            text.char_indices().flat_map(|(at, c)| characters.push(&text[at..at + c.len_utf8()])).collect();
        pieces.extend(characters.finish());
        assert_eq!(said(&whole), said(&pieces), "{format:?}");
        if whole.iter().any(|event| matches!(event, ReplyEvent::CallEnd { .. })) {
            found = Ok(());
        }
        let what = match (whole.first(), whole.last()) {
            (_, Some(ReplyEvent::CallBroken { .. })) => "broken at the end",
            (Some(ReplyEvent::Reasoning(_)), _) => "reasoning",
            _ => continue,
        };
        found = found.map_err(|_| format!("{format:?} {what}"));
    }
    found
}

/// All that is said, with neighbours of a kind put together.
fn said(events: &[ReplyEvent]) -> Vec<(u8, usize, String)> {
    let mut out: Vec<(u8, usize, String)> = Vec::new();
    for event in events {
        let (kind, index, text) = match event {
            ReplyEvent::Content(text) => (0, 0, text.as_str()),
            ReplyEvent::Reasoning(text) => (1, 0, text.as_str()),
            ReplyEvent::CallStart { index, name } => (2, *index, name.as_str()),
            ReplyEvent::CallArguments { index, fragment } => (3, *index, fragment.as_str()),
            ReplyEvent::CallEnd { index } => (4, *index, ""),
            ReplyEvent::CallBroken { index, text } => (5, *index, text.as_str()),
        };
        match out.last_mut() {
            Some(last) if (last.0, last.1) == (kind, index) && [0, 1, 3].contains(&kind) => last.2.push_str(text),
            _ => out.push((kind, index, text.to_owned())),
        }
    }
    out
}
