//! Grammars over the embedded model's tokens: JSON-Schema-Test-Suite as the oracle of what a schema means, exact masks
//! where they can be counted out, and sources that mean harm.

#[path = "common/walk.rs"]
mod walk;

use std::collections::BTreeMap;
use std::path::Path;

use kvist_base::{Constraint, TokenId};
use kvist_text::grammar::{Grammar, GrammarFactory, GrammarLimits, GrammarSource};
use kvist_text::{TextError, Tokenizer};
use serde_json::{Value, json};
use walk::{Random, accepts, allowed_tokens, random_walk};

struct Model {
    tokenizer: Tokenizer,
    factory: GrammarFactory,
}

impl Model {
    fn new() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/model/tokenizer.json");
        let tokenizer = Tokenizer::from_file(&path).unwrap();
        let factory = GrammarFactory::new(&tokenizer, GrammarLimits::default());
        Model { tokenizer, factory }
    }

    /// The grammar, or why it is refused: always in words, never as a fault.
    fn compile(&self, source: &GrammarSource) -> Result<Grammar, String> {
        self.factory.compile(source).map_err(|e| {
            let TextError::Grammar(message) = &e else { panic!("{source:?}: {e:?}") };
            assert!(!message.is_empty() && message.len() < 3000 && !message.contains("panic"), "{source:?}: {message}");
            message.clone()
        })
    }

    fn schema(&self, schema: Value) -> Result<Grammar, String> {
        self.compile(&GrammarSource::JsonSchema { schema, strict: true })
    }

    fn accepts(&self, source: &GrammarSource, text: &str) -> bool {
        accepts(&self.tokenizer, &self.compile(source).unwrap(), text)
    }
}

fn grammar(text: &str) -> GrammarSource {
    GrammarSource::Grammar(text.into())
}

/// Nothing that the suite calls invalid is let through. What it calls valid is, but for other spellings of the same
/// value (the order of properties, `1.0` for an integer) and values that a format, which it takes for a note, forbids.
#[test]
fn json_schema_test_suite() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/json_schema_suite.json");
    let suite: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let model = Model::new();
    // Compiled, refused; valid let through and not, invalid let through and not.
    let mut counts: BTreeMap<&str, [usize; 6]> = BTreeMap::new();
    let mut walked = 0;
    for (i, case) in suite["cases"].as_array().unwrap().iter().enumerate() {
        let count = counts.entry(case["keyword"].as_str().unwrap()).or_default();
        let Ok(grammar) = model.schema(case["schema"].clone()) else {
            count[1] += 1;
            continue;
        };
        count[0] += 1;
        for test in case["tests"].as_array().unwrap() {
            let accepted = accepts(&model.tokenizer, &grammar, &test["data"].to_string());
            let (valid, class) = (test["valid"] == true, 2 + usize::from(!accepted));
            count[class + if valid { 0 } else { 2 }] += 1;
            assert!(
                valid || !accepted,
                "{}: {} is let through by {}",
                case["description"],
                test["data"],
                case["schema"]
            );
        }
        // What comes out is JSON, and other spellings of the same text are let through as well.
        if let Some(text) = random_walk(&model.tokenizer, &grammar, 200, &mut Random(i as u64)).unwrap() {
            // JSON sets no bound to numbers, the parser here does.
            let parsed = serde_json::from_str::<Value>(&text).map_err(|e| e.to_string());
            let fine = parsed.as_ref().map_or_else(|e| e.starts_with("number out of range"), |_| true);
            assert!(fine, "{}: {text}: {parsed:?}", case["schema"]);
            assert!(accepts(&model.tokenizer, &grammar, &text), "{}: {text}", case["schema"]);
            walked += 1;
        }
    }
    println!("compiled, refused, valid: let through, not; invalid: let through, not");
    counts.iter().for_each(|(keyword, count)| println!("{keyword:24} {count:?}"));
    let sum = |i: usize| counts.values().map(|count| count[i]).sum::<usize>();
    println!("{:?}, {walked} walks", [sum(0), sum(1), sum(2), sum(3), sum(4), sum(5)]);
    assert!(sum(0) >= 171 && sum(2) >= 411 && sum(3) <= 22 && sum(4) == 0 && sum(5) >= 227 && walked >= 160);
    for keyword in ["not", "if-then-else", "uniqueItems", "propertyNames"] {
        assert!(counts[keyword][1] > 0, "{keyword} cannot be enforced");
    }
}

/// Each mask is exactly the tokens that some choice goes on with.
#[test]
fn masks_are_exact() {
    let model = Model::new();
    let choices = ["yes", "yesterday", "no", "naïve", "{\"a\": 1}", "🀣🀤", "no\nnow", "a", "the rust compiler"];
    let source = GrammarSource::Choice(choices.map(String::from).to_vec());
    let grammar = model.compile(&source).unwrap();
    let mut random = Random(7);
    let mut seen = 0;
    for _ in 0..200 {
        let mut state = grammar.fork();
        let mut text: Vec<u8> = Vec::new();
        while !state.is_complete() {
            let (tokens, end) = allowed_tokens(state.as_mut(), &model.tokenizer).unwrap();
            let fits = |&t: &TokenId| {
                let bytes = model.tokenizer.token_bytes(t);
                let longer = [&text[..], &bytes].concat();
                !bytes.is_empty()
                    && !model.tokenizer.is_special(t)
                    && choices.iter().any(|c| c.as_bytes().starts_with(&longer))
            };
            let expected: Vec<TokenId> = (0..model.tokenizer.vocab_size() as TokenId).filter(fits).collect();
            assert_eq!(tokens, expected, "after {:?}", String::from_utf8_lossy(&text));
            assert_eq!(end, choices.iter().any(|c| c.as_bytes() == text));
            if end && random.below(2) == 0 {
                break;
            }
            let token = tokens[random.below(tokens.len())];
            text.extend(model.tokenizer.token_bytes(token));
            state.accept(token).unwrap();
            seen += 1;
        }
        assert!(choices.iter().any(|c| c.as_bytes() == text), "{:?}", String::from_utf8_lossy(&text));
    }
    assert!(seen > 400);
}

/// A fork goes its own way, and what is prepared is what would be worked out.
#[test]
fn forks_are_independent() {
    let model = Model::new();
    let grammar = model.compile(&GrammarSource::Regex("(ab|ba)+".into())).unwrap();
    let token = |text: &str| model.tokenizer.encode(text, false).unwrap()[0];
    let (a, b) = (token("a"), token("b"));
    let mut first = grammar.fork();
    first.accept(a).unwrap();
    let mut second = first.fork();
    first.prepare();
    let prepared = allowed_tokens(first.as_mut(), &model.tokenizer).unwrap();
    assert_eq!(prepared, allowed_tokens(second.as_mut(), &model.tokenizer).unwrap());
    first.accept(b).unwrap();
    assert!(first.allowed().unwrap().end && first.allowed().unwrap().contains(a));
    assert!(!second.allowed().unwrap().end && !second.allowed().unwrap().contains(a));
    assert!(second.accept(a).is_err() || second.allowed().is_err(), "`aa` leads nowhere");
}

#[test]
fn patterns_match_the_whole_text() {
    let model = Model::new();
    for (pattern, yes, no) in [
        (r"\d{3}-\d{4}", "123-4567", "1234567"),
        ("^ab?c$", "ac", "abbc"),
        ("^a|b$", "b", "ab"),
        (r"a/b\/c", "a/b/c", "a/b\\/c"),
        ("a\nb", "a\nb", "a\\nb"),
        ("", "", "a"),
        (r"[äöü]+|\p{Greek}", "öä", "o"),
    ] {
        let source = GrammarSource::Regex(pattern.into());
        assert!(model.accepts(&source, yes), "{pattern} {yes}");
        assert!(!model.accepts(&source, no), "{pattern} {no}");
    }
    for broken in ["(a", "a\\", "(?=a)b", r"(a)\1", "[z-a]", "a{3,2}", "*"] {
        model.compile(&GrammarSource::Regex(broken.into())).err().unwrap_or_else(|| panic!("{broken} compiles"));
    }
}

/// The grammar that llama.cpp's users know best, a recursive one.
const JSON_GBNF: &str = r#"
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws ( # members
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9]{1,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"#;

#[test]
fn gbnf_and_lark() {
    let model = Model::new();
    for (source, yes, no) in [
        (
            JSON_GBNF,
            &["{}", "{\"a\": [1, -2.5e3, {\"b\": null}], \"c\": \"x\\n\"}"][..],
            &["[1]", "{\"a\"}", "{,}"][..],
        ),
        ("root ::= \"a\" | \"b\" root", &["a", "bba"], &["b", "ab"]),
        ("root ::= [a-z]+ \"a\"", &["za", "aaa"], &["z", "a"]),
        ("root ::= x\nx ::= \"(\" x \")\" | \"\"", &["", "(())"], &["(()", ")"]),
        ("root ::= foo-bar{2,3} .?\nfoo-bar ::= \"ab\"", &["abab", "ababab!"], &["ab", "abab!!"]),
        ("root ::= (\"ja\"\n | \"nein\") [^.-]", &["ja!", "nein "], &["ja.", "ja"]),
        ("start: \"a\" (\"b\" | \"c\")+ \"d\"", &["abcd"], &["ad"]),
        ("start: \"n=\" INT\nINT: /[0-9]+/ // digits", &["n=42"], &["n="]),
        ("start: \"x\" %json {\"type\": \"integer\"}", &["x12"], &["x1.5"]),
    ] {
        let source = grammar(source);
        yes.iter().for_each(|text| assert!(model.accepts(&source, text), "{source:?} {text}"));
        no.iter().for_each(|text| assert!(!model.accepts(&source, text), "{source:?} {text}"));
    }
    for (broken, told) in [
        ("root ::= foo", "`foo`"),
        ("foo ::= \"a\"", "`root`"),
        ("root ::= \"a", "line 1"),
        ("root ::= (\"a\"", "`)`"),
        ("root ::= [z-a]", "order"),
        ("root ::= []", "empty"),
        ("root ::= \"\\q\"", "escape"),
        ("root ::= \"a\"{3,2}", "order"),
        ("root ::= \"a\"{99999999999}", "repetitions"),
        ("root ::= root", "no text"),
        ("start: foo", "foo"),
        ("start: \"a\nb\"", ""),
        ("start: A & B\nA: \"a\"\nB: \"b\"", "`&`"),
        ("start: A\nA: ~\"a\"", "`~`"),
        ("", ""),
    ] {
        let error = model.compile(&grammar(broken)).err().unwrap_or_else(|| panic!("{broken} compiles"));
        assert!(error.contains(told), "{broken}: {error}");
    }
}

#[test]
fn schemas_beyond_the_suite() {
    let model = Model::new();
    let animal = |kind: &str| json!({"type": "object", "properties": {"kind": {"const": kind}}, "required": ["kind"]});
    for (schema, yes, no) in [
        // The branches of a tagged union behind references.
        (
            json!({"oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
                   "$defs": {"cat": animal("cat"), "dog": animal("dog")}}),
            "{\"kind\":\"dog\"}",
            "{\"kind\":\"cow\"}",
        ),
        (json!({"type": "string", "format": "date"}), "\"2024-02-29\"", "\"2023-02-29\""),
        (json!({"type": "string", "format": "date-time"}), "\"2024-02-29T10:00:59.5Z\"", "\"2023-02-29T10:00:59Z\""),
        (json!({"type": "string", "format": "made-up"}), "\"anything\"", "3"),
        // A name that is listed cannot be spelt so that it is taken for another one.
        (
            json!({"properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "integer"}, "type": "object"}),
            "{\"a\":\"x\",\"b\":1}",
            "{\"\\u0061\":1}",
        ),
        (json!({"type": "object", "x-guidance": {"lenient": true, "coerce_one_of": 3}}), "{}", "[]"),
        (json!(true), "[1, {\"a\": null}]", "[1,"),
        // A mutation found by fuzzing: what is listed twice was compiled twice, with all formats and patterns beside it,
        // and the product of both where a format needs one more expression. 150 times took 11 s.
        (
            json!({"type": vec!["string"; 150], "format": "date-time", "enum": vec!["2024-02-29T10:00:59Z"; 150]}),
            "\"2024-02-29T10:00:59Z\"",
            "\"2023-02-29T10:00:59Z\"",
        ),
        (
            json!({"type": vec!["object"; 150], "required": vec!["a"; 150], "properties": {"a": {"type": vec!["null"; 150]}}}),
            "{\"a\":null}",
            "{}",
        ),
    ] {
        let source = GrammarSource::JsonSchema { schema, strict: true };
        assert!(model.accepts(&source, yes), "{source:?} {yes}");
        assert!(!model.accepts(&source, no), "{source:?} {no}");
    }
    for (schema, told) in [
        (json!({"type": "array", "uniqueItems": true}), "`uniqueItems` cannot be enforced"),
        (json!({"oneOf": [{"type": "integer"}, {"minimum": 2}]}), "`oneOf`"),
        (json!({"$ref": "https://example.com/schema"}), "only references within"),
        (json!({"$ref": "#/$defs/nothing"}), "there is no schema"),
        (json!({"$ref": "#"}), "no text can match"),
        (json!({"minProperties": 2}), "minProperties"),
        (json!({"const": "a\u{1}"}), "control characters"),
        (json!({"type": "integer", "minimum": 3, "maximum": 2}), ""),
        (json!({"type": "wrong"}), "wrong"),
        (json!({"multipleOf": 12345677}), "multipleOf"),
        (json!(false), "false"),
        (json!([]), "object"),
    ] {
        let error = model.schema(schema.clone()).err().unwrap_or_else(|| panic!("{schema} compiles"));
        assert!(error.contains(told), "{schema}: {error}");
    }
    let lenient = GrammarSource::JsonSchema { schema: json!({"type": "array", "uniqueItems": true}), strict: false };
    assert!(model.accepts(&lenient, "[1,1]") && !model.accepts(&lenient, "1"));
    assert!(model.accepts(&GrammarSource::JsonObject, "{\n  \"a\": [1]\n}"));
    assert!(!model.accepts(&GrammarSource::JsonObject, "[]"));
}

/// What is large as such, and what combines as schemas of APIs do, is far from all limits.
#[test]
fn large_schemas_compile() {
    let model = Model::new();
    let named = |n: usize, schema: &dyn Fn(usize) -> Value| {
        (0..n).map(|i| (format!("p{i}"), schema(i))).collect::<serde_json::Map<_, _>>()
    };
    let closed = |properties: serde_json::Map<_, _>| {
        let required: Vec<_> = properties.keys().cloned().collect();
        json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
    };
    let kinds = ["string", "integer", "number", "boolean", "null"];
    let plain = |n| closed(named(n, &|i| json!({"type": kinds[i % 5], "description": "what it is"})));
    let countries: Vec<_> = (0..250).map(|i| format!("country {i}")).collect();
    let base = closed(named(200, &|i| json!({"type": [kinds[i % 4], "null"]})));
    let tagged = |i: usize| {
        json!({"type": "object", "properties": {"type": {"const": format!("t{i}")}, "value": {"$ref": "#/$defs/value"}},
               "required": ["type", "value"]})
    };
    let formats = ["date-time", "date", "time", "uuid", "email", "ipv4", "hostname", "duration"];
    let tree =
        json!({"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/node"}}}});
    for schema in [
        closed(named(2, &|_| plain(990))),
        json!({"enum": (0..500).map(|i| format!("value {i}")).collect::<Vec<_>>()}),
        json!({"enum": (0..5000).collect::<Vec<_>>()}),
        json!({"allOf": [{"$ref": "#/$defs/base"}, {"properties": {"p4": {"enum": countries}}}], "$defs": {"base": {
            "type": "object", "properties": base["properties"], "required": base["required"]}}}),
        json!({"anyOf": (0..60).map(tagged).collect::<Vec<_>>(), "$defs": {"value": plain(30)}}),
        json!({"oneOf": (0..60).map(tagged).collect::<Vec<_>>(), "$defs": {"value": plain(30)}}),
        closed(named(120, &|i| json!({"type": "string", "format": formats[i % 8]}))),
        closed(named(100, &|i| json!({"type": "string", "pattern": format!("^[a-z]{{2,}}-{i}$"), "maxLength": 40}))),
        closed(named(300, &|i| json!({"type": "integer", "minimum": 0, "maximum": 10 * i}))),
        closed(named(
            100,
            &|i| json!({"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": i + 1}),
        )),
        json!({"$ref": "#/$defs/node", "$defs": {"base": tree,
               "node": {"allOf": [{"$ref": "#/$defs/base"}, {"properties": {"name": {"type": "string"}}, "required": ["name"]}]}}}),
        json!({"allOf": [{"pattern": "[A-Z]"}, {"pattern": "[a-z]"}, {"pattern": "[0-9]"}], "type": "string", "minLength": 8}),
        json!({"type": "object", "patternProperties": {"^x-": {"type": "string"}, "^[0-9]{3}$": plain(40)},
               "properties": base["properties"], "additionalProperties": false}),
    ] {
        let told = schema.to_string().chars().take(200).collect::<String>();
        let grammar = model.schema(schema).unwrap_or_else(|e| panic!("{told}: {e}"));
        random_walk(&model.tokenizer, &grammar, 50, &mut Random(5)).unwrap_or_else(|e| panic!("{told}: {e}"));
    }
}

/// Large, deep, ambiguous, exponential: refused or compiled, and then walked to an end or an error, without a panic.
#[test]
fn hostile_sources() {
    let model = Model::new();
    let pattern = |pattern: &str| json!({"type": "string", "pattern": pattern});
    let chain = |n: usize, link: &dyn Fn(usize) -> Value| {
        let mut defs: serde_json::Map<_, _> = (0..n).map(|i| (format!("a{i}"), link(i + 1))).collect();
        defs.insert(format!("a{n}"), json!({"type": "integer"}));
        json!({"$ref": "#/$defs/a0", "$defs": defs})
    };
    let nested =
        |n: usize| (0..n).fold(json!({"type": "integer"}), |schema, _| json!({"type": "array", "items": schema}));
    let many =
        |n: usize, schema: Value| (0..n).map(|i| (format!("p{i}"), schema.clone())).collect::<serde_json::Map<_, _>>();
    let schemas = [
        nested(60),
        nested(100),
        chain(1900, &|i| json!({"$ref": format!("#/$defs/a{i}")})),
        chain(600, &|i| json!({"properties": {"x": {"$ref": format!("#/$defs/a{i}")}}, "type": "object"})),
        chain(300, &|i| json!({"allOf": [{"properties": {format!("p{i}"): {}}}, {"$ref": format!("#/$defs/a{i}")}]})),
        json!({"allOf": vec![json!({"anyOf": (0..20).map(|i| json!({"minLength": i})).collect::<Vec<_>>()}); 6]}),
        json!({"oneOf": vec![json!({"$ref": "#/$defs/big"}); 500], "$defs": {"big": {"properties": many(900, json!({}))}}}),
        json!({"type": "object", "properties": many(3000, json!({"type": "string"}))}),
        json!({"type": "object", "properties": many(1000, json!({"type": "string"})), "minProperties": 1}),
        json!({"type": "object", "patternProperties": many(100, json!({"type": "string"}))}),
        json!({"properties": many(300, json!({"$ref": "#"})), "type": "object"}),
        json!({"anyOf": [{"$ref": "#"}, {"type": "array", "items": {"$ref": "#"}}, {"type": "integer"}]}),
        json!({"enum": (0..9000).map(|i| format!("value {i}")).collect::<Vec<_>>()}),
        json!({"type": "array", "minItems": 1_000_000_000_000u64, "items": {"minItems": 1000}}),
        json!({"type": "string", "minLength": 1_000_000, "maxLength": 1_000_000_000_000u64}),
        json!({"type": "number", "minimum": -1.7976931348623157e308, "maximum": 1e-320}),
        json!({"allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}, {"multipleOf": 9949}]}),
        json!({"multipleOf": 1e-300}),
        json!({"enum": vec![vec![vec![1]; 300]; 300]}),
        (0..5000).fold(json!({}), |value, _| Value::Array(vec![value])),
        pattern("^(a{1000}){1000}$"),
        pattern(&format!("^{}$", "a?".repeat(20_000))),
        pattern("^(.*a){300}$"),
        pattern("^(x+x+)+y$"),
        pattern("^.*a.{200}$"),
        pattern("(a|b|ab)*c{500}"),
        json!({"allOf": [pattern("a.{15}$"), pattern("b.{14}$"), pattern("c.{13}$")]}),
        json!({"type": "string", "pattern": "^[a-z]+@[a-z]+$", "minLength": 1000, "maxLength": 1_000_000}),
    ];
    let rules = |n: usize, rule: &dyn Fn(usize) -> String| (0..n).map(rule).collect::<Vec<_>>().join("\n");
    let grammars = [
        "start: start start | \"a\"".into(),
        "start: a*\na: b*\nb: \"x\"?".into(),
        "start: X\nX: Y{10000}\nY: Z{10000}\nZ: \"a\"{10000}".into(),
        format!("start: {}\"a\"{}", "(".repeat(5000), ")".repeat(5000)),
        format!("start: /{}a{}/", "(".repeat(5000), ")".repeat(5000)),
        format!("start: R0\n{}\nR60: \"c\"", rules(60, &|i| format!("R{i}: R{0} R{0}", i + 1))),
        format!("start: r0\n{}\nr2000: \"c\"", rules(2000, &|i| format!("r{i}: r{0} | r{0} \"b\"", i + 1))),
        format!("root ::= {}\"a\"{}", "(".repeat(10_000), ")".repeat(10_000)),
        format!("root ::= a0\n{}\na60 ::= \"x\"", rules(60, &|i| format!("a{i} ::= a{0} a{0}", i + 1))),
        format!("root ::= a0\n{}\na3000 ::= \"x\"", rules(3000, &|i| format!("a{i} ::= a{} | \"y\" a0", i + 1))),
        "root ::= a{10000}\na ::= b{10000}\nb ::= \"x\"{10000}".into(),
        "x".repeat(200_000),
    ];
    let choices = (0..5000).map(|i| format!("{i}")).collect();
    let sources = schemas.map(|schema| GrammarSource::JsonSchema { schema, strict: true }).into_iter();
    let sources = sources.chain(grammars.map(GrammarSource::Grammar)).chain([
        GrammarSource::Regex("(a{1,100}){1,100}(b{1,100}){1,100}".into()),
        GrammarSource::Regex("(a*)*(b*)*(a|b|c*)*".repeat(500)),
        GrammarSource::Choice(choices),
    ]);
    let (mut compiled, mut refused) = (0, 0);
    for source in sources {
        match model.compile(&source) {
            Err(_) => refused += 1,
            Ok(grammar) => {
                compiled += 1;
                let _ = random_walk(&model.tokenizer, &grammar, 30, &mut Random(3));
            }
        }
    }
    println!("{compiled} compiled, {refused} refused");
    assert!(compiled > 15 && refused > 12, "{compiled} compiled, {refused} refused");
}
