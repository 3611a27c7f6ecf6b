//! Random texts from the masks of grammars, for an oracle to judge: `tools/check_grammar.py` runs this.
//!
//!     grammar_walk TOKENIZER < groups.jsonl > results.jsonl
//!
//! A line in is a source (`{"schema": {...}, "strict": true}`, `{"regex": "..."}`, `{"choice": [...]}`,
//! `{"grammar": "..."}`) with `"walks"`, `"tokens"`, `"seed"` and `"texts"`. The line out for it is
//! `{"refused": "why"}`, or `{"walks": ["..."], "cut": 1, "failed": [], "accepted": [true]}`: finished texts, how many
//! came to no end within `tokens`, errors, and which of `texts` the grammar lets through.

#[path = "../tests/common/walk.rs"]
mod walk;

use std::io::{BufRead, Write};
use std::time::Instant;

use kvist_text::Tokenizer;
use kvist_text::grammar::{GrammarFactory, GrammarLimits, GrammarSource};
use serde_json::{Value, json};
use walk::{Random, accepts, random_walk};

fn main() {
    let path = std::env::args().nth(1).expect("the path of a tokenizer.json");
    let tokenizer = Tokenizer::from_file(path.as_ref()).expect("a tokenizer");
    let factory = GrammarFactory::new(&tokenizer, GrammarLimits::default());
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let group: Value = serde_json::from_str(&line.expect("a line")).expect("JSON");
        let number = |name: &str| group[name].as_u64().unwrap_or(0);
        let began = Instant::now();
        let compiled = factory.compile(&source(&group));
        let compile_us = began.elapsed().as_micros() as u64;
        let mut result = match compiled {
            Err(e) => json!({"refused": e.to_string()}),
            Ok(grammar) => {
                let (mut walks, mut failed, mut cut) = (Vec::new(), Vec::new(), 0);
                for i in 0..number("walks") {
                    let mut random = Random(number("seed") << 32 | i);
                    match random_walk(&tokenizer, &grammar, number("tokens") as usize, &mut random) {
                        Ok(Some(text)) => walks.push(text),
                        Ok(None) => cut += 1,
                        Err(e) => failed.push(e),
                    }
                }
                let texts = group["texts"].as_array().into_iter().flatten().filter_map(Value::as_str);
                let accepted: Vec<bool> = texts.map(|text| accepts(&tokenizer, &grammar, text)).collect();
                json!({"walks": walks, "cut": cut, "failed": failed, "accepted": accepted})
            }
        };
        result["compile_us"] = compile_us.into();
        result["walk_us"] = (began.elapsed().as_micros() as u64 - compile_us).into();
        writeln!(out, "{result}").expect("a reader");
    }
}

fn source(group: &Value) -> GrammarSource {
    let text = |name: &str| group[name].as_str().map(str::to_owned);
    if let Some(pattern) = text("regex") {
        GrammarSource::Regex(pattern)
    } else if let Some(grammar) = text("grammar") {
        GrammarSource::Grammar(grammar)
    } else if let Some(list) = group["choice"].as_array() {
        GrammarSource::Choice(list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    } else {
        GrammarSource::JsonSchema { schema: group["schema"].clone(), strict: group["strict"] != false }
    }
}
