//! The committed record of campaigns: which seeds ran at which commit, and what came out.

use std::fs::OpenOptions;
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

/// One line of the ledger.
pub struct Entry<'a> {
    pub campaign: &'a str,
    pub seeds: Range<u64>,
    /// What ran: subjects, ISA path, profile.
    pub scope: String,
    /// From [`commit`] before the campaign began: the tree may have moved on when it ends.
    pub commit: String,
    pub result: String,
}

impl Entry<'_> {
    pub fn line(&self) -> String {
        let Range { start, end } = self.seeds;
        format!("| {} | {start}..{end} | {} | {} | {} |", self.campaign, self.scope, self.commit, self.result)
    }

    /// Appends the line to the ledger file.
    pub fn append(&self, ledger: &Path) -> std::io::Result<()> {
        writeln!(OpenOptions::new().append(true).open(ledger)?, "{}", self.line())
    }
}

/// Abbreviated commit id; `+` = with changes that are not committed.
pub fn commit() -> String {
    let git = |args: &[&str]| {
        let out = Command::new("git").args(args).output().ok().filter(|o| o.status.success())?;
        Some(String::from_utf8_lossy(&out.stdout).trim().to_string())
    };
    let Some(id) = git(&["rev-parse", "--short", "HEAD"]) else { return "unknown".into() };
    let changed =
        git(&["status", "--porcelain", "--untracked-files=no", "--", "crates"]).is_some_and(|s| !s.is_empty());
    if changed { format!("{id}+") } else { id }
}
