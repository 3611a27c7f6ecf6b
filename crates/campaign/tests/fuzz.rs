//! The corpora as they are, what once broke a parser, and a small count of mutations; the long campaigns are in the
//! ledger.

use std::fs;

use kvist_campaign::fuzz::{self, Report};
use kvist_campaign::subjects::root;
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// One test for all targets: memory is counted for the whole process.
#[test]
fn hostile_input_is_refused_in_bounds() {
    for target in fuzz::all() {
        let name = target.name();
        let mut sound = Report::default();
        for (i, input) in target.corpus().iter().enumerate() {
            sound.add(&fuzz::execute(&*target, &MEMORY, input).unwrap_or_else(|e| panic!("{name}, input {i}: {e}")));
        }
        // Some chats are such that a template refuses them by itself.
        assert!(2 * sound.taken > sound.executions, "{name}: of the corpus itself: {sound}");
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
