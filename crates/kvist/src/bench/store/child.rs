//! A process that saves and is killed: the same program, which is given the chunks on its standard input and never ends by
//! itself while that is open.

use std::io::{BufRead, BufReader, Read, Write, stdin, stdout};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use kvist_base::{CHUNK, TokenId};
use kvist_store::vfs::RealVfs;
use kvist_store::{Saved, Store};
use serde_json::{Value, json};

use super::scene::{DOMAIN, config, register};
use crate::failure::{Failure, Result};

/// Chunks of an extent.
const EXTENT: usize = 16;
/// Extents that it goes on to save when it has said that the chunks are durable.
const MORE: usize = 4;
/// How long it is left alone with that.
const ALONE: Duration = Duration::from_millis(30);
/// What it says.
const DURABLE: &str = "durable";
/// For the disk to take everything.
const PATIENCE: Duration = Duration::from_secs(300);

/// Has another process save `chunks` of the path `tokens`, and kills it (SIGKILL) when they are durable and it saves more.
pub fn save_and_kill(dir: &Path, slices: &[usize], tokens: &[TokenId], chunks: &[Vec<u8>]) -> Result<()> {
    let wrong = |what: String| Failure::new(format!("the process that saves: {what}"), "run it again, with --dir DIR");
    let header = json!({"dir": dir, "slices": slices, "tokens": tokens});
    let run = || {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["bench", "store", "--child"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut to = child.stdin.take().ok_or(std::io::ErrorKind::BrokenPipe)?;
        let sent = writeln!(to, "{header}").and_then(|()| chunks.iter().try_for_each(|chunk| to.write_all(chunk)));
        let mut line = String::new();
        if sent.and_then(|()| to.flush()).is_ok() {
            BufReader::new(child.stdout.take().ok_or(std::io::ErrorKind::BrokenPipe)?).read_line(&mut line)?;
            std::thread::sleep(ALONE);
        }
        child.kill()?;
        child.wait()?;
        std::io::Result::Ok(line)
    };
    match run() {
        Ok(line) if line.trim() == DURABLE => Ok(()),
        Ok(line) => Err(wrong(if line.is_empty() { "it ended".into() } else { line })),
        Err(e) => Err(wrong(e.to_string())),
    }
}

/// That process.
pub fn run() -> Result<()> {
    let wrong = |e: &dyn std::fmt::Display| Failure::new(e.to_string(), "`kvist bench store` starts this by itself");
    let mut from = stdin().lock();
    let mut line = String::new();
    from.read_line(&mut line).map_err(|e| wrong(&e))?;
    let header: Value = serde_json::from_str(&line).map_err(|e| wrong(&e))?;
    let numbers = |key: &str| -> Option<Vec<u64>> { header[key].as_array()?.iter().map(Value::as_u64).collect() };
    let (Some(dir), Some(slices), Some(tokens)) = (header["dir"].as_str(), numbers("slices"), numbers("tokens")) else {
        return Err(wrong(&"the header is incomplete"));
    };
    let slices: Vec<usize> = slices.iter().map(|&n| n as usize).collect();
    let tokens: Vec<TokenId> = tokens.iter().map(|&t| t as TokenId).collect();
    let bytes: usize = slices.iter().sum();

    let opened = Store::open(Arc::new(RealVfs::new()), config(Path::new(dir), slices, 2));
    let (store, _) = opened.map_err(|e| wrong(&e))?;
    register(&store)?;
    for first in (0..tokens.len() / CHUNK).step_by(EXTENT) {
        let end = (first + EXTENT).min(tokens.len() / CHUNK);
        let mut chunks = vec![vec![0; bytes]; end - first];
        for chunk in &mut chunks {
            from.read_exact(chunk).map_err(|e| wrong(&e))?;
        }
        save(&store, &tokens[..end * CHUNK], first, chunks)?;
    }
    if !store.flush(PATIENCE) {
        return Err(wrong(&"the disk does not take the chunks"));
    }
    writeln!(stdout(), "{DURABLE}").and_then(|()| stdout().flush()).map_err(|e| wrong(&e))?;
    // Paths that nobody asks for: the process is killed while it writes.
    for path in 0..MORE {
        let tokens: Vec<TokenId> = (0..EXTENT * CHUNK).map(|i| (i * (path + 2)) as TokenId % 4096).collect();
        save(&store, &tokens, 0, vec![vec![path as u8; bytes]; EXTENT])?;
    }
    let _ = from.read(&mut [0]);
    Ok(())
}

fn save(store: &Store, tokens: &[TokenId], first: usize, chunks: Vec<Vec<u8>>) -> Result<()> {
    loop {
        match store.save(DOMAIN, tokens, first, chunks.clone()) {
            Saved::Full => std::thread::sleep(Duration::from_millis(5)),
            Saved::Queued(_) | Saved::Known => return Ok(()),
            other => return Err(Failure::new(format!("the store refuses: {other:?}"), "run it with --dir DIR")),
        }
    }
}
