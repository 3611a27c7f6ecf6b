//! The corpora as they are, what once broke a parser, and a small count of mutations; the long campaigns are in the
//! ledger.

use std::fs;

use kvist_campaign::fuzz::{self, Report, Target};
use kvist_campaign::subjects::root;
use peak_alloc::PeakAlloc;
use serde_json::{Value, json};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// One test for all targets: memory is counted for the whole process.
#[test]
fn hostile_input_is_refused_in_bounds() {
    let targets = fuzz::all();
    large_vocabulary(&**targets.iter().find(|t| t.name() == "tokenizer").expect("a target"));
    for target in targets {
        let name = target.name();
        let mut sound = Report::default();
        for (i, input) in target.corpus().iter().enumerate() {
            sound.add(&fuzz::execute(&*target, &MEMORY, input).unwrap_or_else(|e| panic!("{name}, input {i}: {e}")));
        }
        // Some chats are such that a template refuses them by itself. Each of a store's files is read as every kind of them.
        let kinds = if ["segment", "record"].contains(&name) { 3 } else { 2 };
        assert!(kinds * sound.taken > sound.executions, "{name}: of the corpus itself: {sound}");
        let broken = root().join("crates/campaign/fuzz").join(name);
        for file in fs::read_dir(broken).into_iter().flatten().flatten() {
            let input = fs::read(file.path()).expect("a committed file");
            fuzz::execute(&*target, &MEMORY, &input).unwrap_or_else(|e| panic!("{}: {e}", file.path().display()));
        }
        let mut total = Report::default();
        for seed in 0..500 {
            total.add(&fuzz::run(&*target, &MEMORY, seed).unwrap_or_else(|e| panic!("{name}: {e}")));
        }
        println!("{name}: {total}");
        assert!(total.taken > 5, "{name}: mutations are refused at the first check, none gets far");
        assert!(total.refusals.len() > 4, "{name}: {total}");
    }
}

/// Corpora are small, models' files are not: a vocabulary of 128,000 tokens was read by way of a tree of JSON values, which
/// took eleven times the file's size.
fn large_vocabulary(target: &dyn Target) {
    let file = fs::read(root().join("crates/text/tests/fixtures/bytes.json")).expect("a fixture is committed");
    let mut file: Value = serde_json::from_slice(&file).expect("the fixture is JSON");
    let letters: Vec<String> = ('a'..='z').chain('A'..='Z').map(String::from).collect();
    let count = letters.len();
    let three =
        (0..count.pow(3)).map(|i| [i / count / count, i / count % count, i % count].map(|l| letters[l].as_str()));
    let model = &mut file["model"];
    let known = model["vocab"].as_object().expect("a vocabulary").clone();
    let mut next = known.values().filter_map(Value::as_u64).max().unwrap_or(0) + 100;
    for [a, b, c] in three.filter(|parts| !known.contains_key(&parts.concat())) {
        let (head, whole) = (format!("{a}{b}"), format!("{a}{b}{c}"));
        if model["vocab"].get(&head).is_none() {
            model["vocab"][&head] = next.into();
            model["merges"].as_array_mut().expect("merges").push(json!([a, b]));
            next += 1;
        }
        model["vocab"][&whole] = next.into();
        model["merges"].as_array_mut().expect("merges").push(json!([head, c]));
        next += 1;
    }
    let report = fuzz::execute(target, &MEMORY, file.to_string().as_bytes()).unwrap();
    assert_eq!(report.taken, 1, "{:?}", report.refusals);
    println!("a vocabulary of {next} tokens: {report}");
}
