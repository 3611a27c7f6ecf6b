//! Random texts from the masks of JSON schemas, for an oracle to judge: `tools/check_grammar.py` runs this.
//!
//!     grammar_walk TOKENIZER < groups.jsonl > results.jsonl
//!
//! A line in is `{"schema": ..., "strict": true, "walks": 5, "tokens": 400, "seed": 1, "texts": ["..."]}`; the line out
//! for it is `{"refused": "why"}`, or `{"walks": ["..."], "cut": 1, "accepted": [true]}`: finished texts, how many came
//! to no end within `tokens`, and which of `texts` the grammar lets through.

use std::io::{BufRead, Write};

use kvist_base::{Constraint, TokenId};
use kvist_text::Tokenizer;
use kvist_text::grammar::{Grammar, GrammarFactory, GrammarLimits, GrammarSource};
use serde_json::{Value, json};

fn main() {
    let path = std::env::args().nth(1).expect("the path of a tokenizer.json");
    let tokenizer = Tokenizer::from_file(path.as_ref()).expect("a tokenizer");
    let factory = GrammarFactory::new(&tokenizer, GrammarLimits::default());
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let group: Value = serde_json::from_str(&line.expect("a line")).expect("JSON");
        let source = GrammarSource::JsonSchema {
            schema: group["schema"].clone(),
            strict: group["strict"].as_bool().unwrap_or(true),
        };
        let began = std::time::Instant::now();
        let result = match factory.compile(&source) {
            Err(e) => json!({"refused": e.to_string()}),
            Ok(grammar) => {
                let number = |name: &str| group[name].as_u64().unwrap_or(0);
                let mut walks = Vec::new();
                let mut failed = Vec::new();
                let mut cut = 0;
                for walk in 0..number("walks") {
                    let mut random = Random(number("seed").wrapping_mul(1 << 20) + walk);
                    match random_walk(&tokenizer, &grammar, number("tokens"), &mut random) {
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
        let mut result = result;
        result["micros"] = json!(began.elapsed().as_micros() as u64);
        writeln!(out, "{result}").expect("a reader");
    }
}

/// A text of tokens drawn evenly from what may come; `None` if it has no end in sight.
fn random_walk(
    tokenizer: &Tokenizer,
    grammar: &Grammar,
    most: u64,
    random: &mut Random,
) -> Result<Option<String>, String> {
    let mut state = grammar.fork();
    let mut bytes = Vec::new();
    for drawn in 0..most {
        let allowed = state.allowed()?;
        let ends = allowed.end;
        let tokens: Vec<TokenId> = (0..tokenizer.vocab_size() as TokenId).filter(|&t| allowed.contains(t)).collect();
        if ends && (tokens.is_empty() || random.below(4) == 0) {
            return Ok(Some(String::from_utf8(bytes).map_err(|e| e.to_string())?));
        }
        // Late in a walk, tokens that close something.
        let closes = |&&t: &&TokenId| tokenizer.token_bytes(t).iter().all(|b| b"\"}]0123456789".contains(b));
        let closing: Vec<TokenId> = tokens.iter().filter(closes).copied().collect();
        let from = if drawn * 2 > most && !closing.is_empty() && random.below(2) == 0 { &closing } else { &tokens };
        let token = *from.get(random.below(from.len().max(1))).ok_or("nothing may follow")?;
        bytes.extend(tokenizer.token_bytes(token));
        state.accept(token)?;
        if state.is_complete() {
            return Ok(Some(String::from_utf8(bytes).map_err(|e| e.to_string())?));
        }
    }
    Ok(None)
}

/// Whether the text, in the tokenizer's own spelling, may be generated and end there.
fn accepts(tokenizer: &Tokenizer, grammar: &Grammar, text: &str) -> bool {
    let mut state = grammar.fork();
    let ids = tokenizer.encode(text, false).expect("it encodes");
    ids.iter().all(|&id| state.allowed().is_ok_and(|a| a.contains(id)) && state.accept(id).is_ok())
        && state.allowed().is_ok_and(|a| a.end)
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}
