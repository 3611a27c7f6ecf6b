//! Processes that save under load, killed at any moment: what was told to be durable is found, and nothing wrong is.

use std::process::Command;

#[test]
fn fifty_processes_are_killed_while_they_save() {
    let campaign = Command::new(env!("CARGO_BIN_EXE_kvist-campaign")).args(["store-kill", "--seeds", "0..10"]).output();
    let out = campaign.expect("the campaign runs");
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{said}{}", String::from_utf8_lossy(&out.stderr));
    let number = |before: &str| {
        let words: Vec<&str> = said.split(before).next().unwrap_or_default().split_whitespace().collect();
        words.last().and_then(|word| word.parse::<u64>().ok())
    };
    assert_eq!(number(" states,"), Some(50), "{said}");
    assert!(number(" durable ones") > Some(1000), "{said}");
}
