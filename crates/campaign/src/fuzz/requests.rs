//! Requests as the server's parsers meet them: the embedded model's tokenizer and template, and no model behind.

use std::fs;

use kvist_base::Constraint;
use kvist_engine::{Engine, EngineConfig};
use kvist_server::{ModelInfo, Server, ServerConfig, TextParts};
use kvist_sim::{CostModel, SimExecutor, SimModel};
use kvist_text::grammar::{CallForm, Calls, Free, GrammarFactory, GrammarLimits, GrammarSource, Reasoning};
use kvist_text::{ChatTemplate, Tokenizer};
use serde_json::{Value, json};

use super::mutate::Kind;
use super::targets::Target;
use crate::subjects::root;

const TEMPLATE: &str = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}\
    <tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{% endfor %}\
    {% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}<|assistant|>{% endif %}";

fn tokenizer() -> Tokenizer {
    let file = fs::read(root().join("crates/text/tests/fixtures/bytes.json")).expect("a fixture is committed");
    Tokenizer::from_bytes(&file).expect("the fixture is sound")
}

/// Bodies of requests, each with the path that it goes to.
pub struct Requests {
    server: Server,
    corpus: Vec<Vec<u8>>,
}

impl Requests {
    pub fn new() -> Requests {
        let tokenizer = tokenizer();
        let model = SimModel { vocab: tokenizer.vocab_size(), seed: 1 };
        let executor = SimExecutor::new(model, CostModel { step: 1, row: 1, kilotoken: 1 }, 8, 256);
        let engine = Engine::new(EngineConfig::default(), kvist_base::Executor::info(&executor).clone());
        let config = json!({"chat_template": TEMPLATE, "bos_token": "<s>"});
        let text = TextParts { tokenizer, template: ChatTemplate::from_config(&config, None).ok() };
        let info = ModelInfo { id: "fuzzed".into(), eos: vec![0], defaults: Default::default() };
        let config = ServerConfig { log: std::sync::Arc::new(|_| ()), ..ServerConfig::default() };
        let server = Server::new(config, engine, Box::new(executor), text, info).expect("a thread");
        Requests { server, corpus: bodies() }
    }
}

fn bodies() -> Vec<Vec<u8>> {
    let messages =
        json!([{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "u"}]}]);
    let tool = json!({"type": "function", "function": {"name": "f", "description": "d", "parameters": {
        "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}});
    let called = json!([
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]);
    let (chat, text) = ("/v1/chat/completions", "/v1/completions");
    [
        (chat, json!({"messages": messages, "model": "m", "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 3,
            "min_p": 0.1, "seed": 1, "n": 2, "stop": ["x", "y"], "logprobs": true, "top_logprobs": 2, "stream": true,
            "stream_options": {"include_usage": true, "continuous_usage_stats": true}, "user": "u"})),
        (chat, json!({"messages": called, "tools": [tool], "tool_choice": "auto", "parallel_tool_calls": true})),
        (chat, json!({"messages": called, "tools": [tool], "tool_choice": {"type": "function", "function": {"name": "f"}}})),
        (chat, json!({"messages": messages, "response_format": {"type": "json_schema", "json_schema": {"name": "n",
            "schema": tool["function"]["parameters"], "strict": true}}})),
        (chat, json!({"messages": messages, "chat_template_kwargs": {"enable_thinking": false},
            "add_generation_prompt": false, "continue_final_message": true, "truncate_prompt_tokens": 9})),
        (text, json!({"prompt": "p", "max_tokens": 3, "echo": true, "logprobs": 2, "suffix": "", "best_of": 1,
            "logit_bias": {"5": -100, "6": 1.5}, "presence_penalty": 0.1, "frequency_penalty": -0.1,
            "repetition_penalty": 1.1, "stop_token_ids": [3], "min_tokens": 1, "bad_words": ["a b"],
            "allowed_token_ids": [1, 2, 3], "include_stop_str_in_output": true, "return_token_ids": true})),
        (text, json!({"prompt": [[1, 2, 3], [4]], "prompt_logprobs": 1, "ignore_eos": true, "priority": 3})),
        (text, json!({"prompt": ["a", "b"], "structured_outputs": {"regex": "[a-z]+"}, "skip_special_tokens": false})),
        (text, json!({"prompt": "a", "guided_choice": ["yes", "no"], "truncate_prompt_tokens": -1})),
        ("/tokenize", json!({"prompt": "a b", "add_special_tokens": true, "return_token_strs": true})),
        ("/tokenize", json!({"messages": messages, "tools": [tool]})),
        ("/detokenize", json!({"tokens": [1, 2, 3]})),
        ("/apply-template", json!({"messages": messages})),
    ]
    .map(|(path, body)| format!("{path}\n{body}").into_bytes())
    .to_vec()
}

impl Target for Requests {
    fn name(&self) -> &'static str {
        "request"
    }

    fn kind(&self) -> Kind {
        Kind::Request
    }

    fn corpus(&self) -> &[Vec<u8>] {
        &self.corpus
    }

    fn run(&self, input: &[u8]) -> Result<(), String> {
        let line = input.iter().position(|&b| b == b'\n').ok_or("no path")?;
        self.server.parse(&String::from_utf8_lossy(&input[..line]), &input[line + 1..])
    }
}

/// Bytes of an input, as a server bounds what it reads before it reads it: a tree of JSON values takes 64 times what it is
/// written in where lists are within lists. A multiple of what a source may have, which compiling has to bound itself.
const LONGEST: usize = 512 << 10;

/// Schemas, patterns and grammars; of those that are taken, some tokens are walked.
pub struct Grammars {
    factory: GrammarFactory,
    corpus: Vec<Vec<u8>>,
}

impl Grammars {
    pub fn new() -> Grammars {
        Grammars { factory: GrammarFactory::new(&tokenizer(), GrammarLimits::default()), corpus: sources() }
    }
}

fn sources() -> Vec<Vec<u8>> {
    let mut all = vec![
        json!({"regex": "[a-z]{2,5}(-\\d+)?"}),
        json!({"choice": ["yes", "no", "\u{e9}"]}),
        json!({"grammar": "root ::= \"a\" (\"b\" | [c-f]+)* x\nx ::= \"y\"?"}),
        json!({"grammar": "start: \"a\" b+\nb: /[0-9]+/ | \"(\" start \")\""}),
        json!({"grammar": "start: W (\",\" v)*\nv: %json {\"type\": \"object\", \"properties\": {\"n\": {\"multipleOf\": 5}}}\n\
                    W: L{1,3} D? // a word\nL: /\\p{L}/\nD: %regex {\"substring_words\": \"a b c\"}\n%ignore / +/"}),
        json!({"regex": "(?i)\\w+([.-]?\\w+)*@(a|b|c?d*){0,3}[^\\s@]{2,}"}),
        json!({"json": true}),
        json!({"calls": [{"begin": "<call>{\"name\": \"f\", \"arguments\": ", "end": "}</call>", "strict": true,
            "schema": {"type": "object", "properties": {"a": {"type": "string", "minLength": 1}}, "required": ["a"]}}],
            "until": "<call>", "many": true, "thought": "</think>"}),
        json!({"calls": [{"begin": "{\"name\": ", "end": "}", "schema": {"enum": ["f", "g"]}},
            {"begin": "[", "end": "]", "schema": {"items": {"type": "integer"}}}], "instead": true}),
    ];
    let schemas = [
        json!({"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9},
            "b": {"type": "array", "items": {"$ref": "#/$defs/n"}, "minItems": 1, "maxItems": 3}},
            "required": ["a"], "additionalProperties": false,
            "$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}}}),
        json!({"anyOf": [{"type": "string", "pattern": "^[a-c]*$", "maxLength": 5}, {"enum": [1, "x", null, [1]]},
            {"const": {"k": 1.5}}]}),
        json!({"allOf": [{"type": "object", "properties": {"p": {"type": "number", "exclusiveMinimum": -1.5}}},
            {"properties": {"q": {"type": "string", "format": "date-time"}}}], "patternProperties": {"^x": {}}}),
        json!({"type": ["string", "null"], "minLength": 2}),
        json!({"allOf": [{"$ref": "#/$defs/base"}, {"properties": {"a": {"pattern": "^[A-Z]", "maxLength": 8},
            "c": {"multipleOf": 0.25, "maximum": 1000}}}], "$defs": {"base": {"type": "object",
            "properties": {"a": {"type": "string", "pattern": "[0-9]$"}, "b": {"$ref": "#/$defs/base"}},
            "patternProperties": {"^x-": {"format": "uuid"}}, "additionalProperties": {"anyOf": [{"type": "null"},
            {"type": "array", "items": {"format": "email"}, "maxItems": 9}]}}}}),
        json!({"oneOf": [{"type": "boolean"}, {"type": "array", "prefixItems": [{"type": "integer"}], "items": false}]}),
    ];
    all.extend(schemas.map(|schema| json!({"schema": schema, "strict": true})));
    all.iter().map(|v| v.to_string().into_bytes()).collect()
}

fn calls(input: &Value, forms: &[Value]) -> Calls {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let form = |form: &Value| CallForm {
        begin: text(&form["begin"]),
        schema: form["schema"].clone(),
        strict: form["strict"] == true,
        end: text(&form["end"]),
    };
    Calls {
        reasoning: input["thought"].as_str().map(|close| Reasoning { open: None, close: close.into() }),
        free: match input["until"].as_str() {
            Some(mark) => Free::Until(mark.into()),
            None if input["instead"] == true => Free::Instead,
            None => Free::No,
        },
        forms: forms.iter().map(form).collect(),
        open: text(&input["open"]),
        between: text(&input["between"]),
        close: text(&input["close"]),
        many: input["many"] == true,
        marks: Vec::new(),
    }
}

impl Target for Grammars {
    fn name(&self) -> &'static str {
        "grammar"
    }

    fn kind(&self) -> Kind {
        Kind::Json
    }

    fn corpus(&self) -> &[Vec<u8>] {
        &self.corpus
    }

    fn run(&self, input: &[u8]) -> Result<(), String> {
        if input.len() > LONGEST {
            return Err("too long for a source".into());
        }
        let mut input: Value = serde_json::from_slice(input).map_err(|e| e.to_string())?;
        let strict = input["strict"] == true;
        let schema = input.get_mut("schema").map(Value::take);
        let text = |name: &str| input[name].as_str().map(str::to_owned);
        let source = if let Some(schema) = schema {
            GrammarSource::JsonSchema { schema, strict }
        } else if let Some(forms) = input["calls"].as_array() {
            GrammarSource::Calls(calls(&input, forms))
        } else if let Some(pattern) = text("regex") {
            GrammarSource::Regex(pattern)
        } else if let Some(grammar) = text("grammar") {
            GrammarSource::Grammar(grammar)
        } else if let Some(list) = input["choice"].as_array() {
            GrammarSource::Choice(list.iter().filter_map(|c| c.as_str().map(str::to_owned)).collect())
        } else {
            GrammarSource::JsonObject
        };
        let mut grammar = self.factory.compile(&source).map_err(|e| e.to_string())?;
        for step in 0..12 {
            let allowed = grammar.allowed()?;
            let tokens: Vec<u32> = (0..allowed.tokens.len() as u32 * 32).filter(|&t| allowed.contains(t)).collect();
            let Some(&token) = tokens.get(step * 7919 % tokens.len().max(1)) else { break };
            grammar.accept(token)?;
        }
        Ok(())
    }
}
