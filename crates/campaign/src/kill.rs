//! Processes that save to a store, killed at any moment.

use std::io::{BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use kvist_sim::Random;
use kvist_store::campaign::{Report, inspect};

/// Kills on one directory.
const ROUNDS: u64 = 5;

/// A directory that is gone afterwards.
struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Starts a process that saves, kills it, and looks at what it and those before it left.
pub fn run(seed: u64) -> Result<Report, String> {
    let failed = |e: &dyn std::fmt::Display| format!("seed {seed}: {e}");
    let mut rng = Random::new(seed);
    let dir = Dir(std::env::temp_dir().join(format!("kvist-store-kill-{}-{seed}", std::process::id())));
    let _ = std::fs::remove_dir_all(&dir.0);
    let program = std::env::current_exe().map_err(|e| failed(&e))?;
    let mut said: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut report = Report::default();
    for round in seed * ROUNDS..(seed + 1) * ROUNDS {
        let mut victim = Command::new(&program)
            .arg("store-victim")
            .arg(&dir.0)
            .arg(round.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| failed(&e))?;
        let mut out = victim.stdout.take().ok_or("no output")?;
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            // What came before the end counts, however it ends.
            let _ = out.read_to_end(&mut bytes);
            bytes
        });
        std::thread::sleep(Duration::from_micros(2_000 + rng.below(300_000) as u64));
        let early = victim.try_wait().map_err(|e| failed(&e))?;
        victim.kill().map_err(|e| failed(&e))?;
        let output = victim.wait_with_output().map_err(|e| failed(&e))?;
        let words = reader.join().map_err(|_| failed(&"the reader panicked"))?;
        if let Some(status) = early {
            let what = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(failed(&format!("round {round} ended by itself, {status}: {what}")));
        }
        said.push((round, words));
        for (round, words) in &said {
            let found = inspect(&dir.0, *round, BufReader::new(&words[..]));
            report.add(&found.map_err(|e| failed(&format!("round {round}: {e}")))?);
        }
    }
    // A look is a look; kills are what counts.
    report.states = ROUNDS;
    Ok(report)
}
