//! A process that saves and says what is durable, to be killed; and the look at what it left.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvist_base::{CHUNK, DomainId, TokenId};

use super::Report;
use crate::config::{Encryption, Fingerprint, StoreConfig};
use crate::load::Priority;
use crate::random::Random;
use crate::save::Saved;
use crate::store::Store;
use crate::vfs::RealVfs;

const SLICES: [usize; 4] = [20_000, 12_000, 20_000, 4_000];
const TENANT: DomainId = DomainId(1);
/// What a victim saves in a millisecond, and at all: five of them stay below the budget, above which what was durable may
/// go, however fast the disk is.
const PACE: u64 = 100_000;
const MOST: u64 = 24 << 20;

fn config(dir: &Path) -> StoreConfig {
    let fingerprint = Fingerprint { digest: [3; 32], text: "to be killed".into() };
    let keys = Encryption::Keys(dir.join("key"));
    let mut config = StoreConfig::new(dir.join("store"), 256 << 20, fingerprint, SLICES.to_vec(), keys);
    config.segment = Some(4 << 20);
    config.io_threads = 2;
    config.sync_every = Duration::from_millis(20);
    config
}

/// Conversation `n` of a round, so many chunks of it.
fn tokens(round: u64, n: u64, chunks: usize) -> Vec<TokenId> {
    let mut rng = Random::new(round << 20 | n);
    (0..chunks * CHUNK).map(|_| rng.word() as TokenId).collect()
}

fn bytes(round: u64, n: u64, chunk: usize) -> Vec<u8> {
    let mut rng = Random::new((round << 20 | n) ^ (chunk as u64) << 48);
    let words = SLICES.iter().sum::<usize>() / 8;
    (0..words).flat_map(|_| rng.word().to_le_bytes()).collect()
}

/// The process that is killed.
pub struct Victim;

impl Victim {
    /// Saves conversations until it is killed. Says `durable N CHUNKS` on `out` for what a crash must leave.
    pub fn run(dir: &Path, round: u64, out: &mut dyn Write) -> Result<(), String> {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let (store, _) = Store::open(Arc::new(RealVfs::new()), config(dir)).map_err(|e| text(&e))?;
        store.register(TENANT, "tenant").map_err(|e| text(&e))?;
        let mut rng = Random::new(round);
        let mut waiting: Vec<(u64, u64, usize)> = Vec::new();
        let mut lengths: BTreeMap<u64, usize> = BTreeMap::new();
        let (begin, mut saved) = (Instant::now(), 0);
        loop {
            while saved > MOST.min(begin.elapsed().as_millis() as u64 * PACE) {
                std::thread::sleep(Duration::from_micros(200));
            }
            let n = rng.below(8 + lengths.len()) as u64;
            let first = lengths.get(&n).copied().unwrap_or(0);
            let count = 1 + rng.below(6);
            let path = tokens(round, n, first + count);
            let chunks = (first..first + count).map(|i| bytes(round, n, i)).collect();
            match store.save(TENANT, &path, first, chunks) {
                Saved::Queued(ticket) => {
                    lengths.insert(n, first + count);
                    saved += (count * SLICES.iter().sum::<usize>()) as u64;
                    waiting.push((ticket, n, first + count));
                }
                Saved::Full => std::thread::sleep(Duration::from_millis(1)),
                other => return Err(format!("{other:?}")),
            }
            let durable = store.durable();
            for (_, n, chunks) in waiting.extract_if(.., |(ticket, ..)| *ticket <= durable) {
                writeln!(out, "durable {n} {chunks}").and_then(|()| out.flush()).map_err(|e| text(&e))?;
            }
            if rng.chance(20) {
                let load = store.load(TENANT, &path, 0..first + count, Priority::Urgent);
                let mut to = vec![0; SLICES[0]];
                for i in 0..first + count {
                    load.wait(0, i, &mut to).map_err(|e| text(&e))?;
                }
            }
        }
    }
}

/// Looks at what a victim left that had said `said` before it died. Fails if anything is wrong, or missing.
pub fn inspect(dir: &Path, round: u64, said: impl BufRead) -> Result<Report, String> {
    let mut durable: BTreeMap<u64, usize> = BTreeMap::new();
    for line in said.lines() {
        let line = line.map_err(|e: io::Error| e.to_string())?;
        let mut words = line.split(' ').skip(1).map(|w| w.parse::<u64>().ok());
        // The last line may have been cut.
        let (Some(Some(n)), Some(Some(chunks))) = (words.next(), words.next()) else { continue };
        durable.insert(n, chunks as usize);
    }
    let (store, _) = Store::open(Arc::new(RealVfs::new()), config(dir)).map_err(|e| e.to_string())?;
    store.check()?;
    store.register(TENANT, "tenant").map_err(|e| e.to_string())?;
    let mut report = Report { states: 1, ..Report::default() };
    for n in 0..durable.keys().max().map_or(8, |n| n + 8) {
        let least = durable.get(&n).copied().unwrap_or(0);
        let path = tokens(round, n, least + 64);
        let found = store.probe(TENANT, &path, 0) / CHUNK;
        if found < least {
            return Err(format!("conversation {n}: {found} chunks are found, {least} were durable"));
        }
        let load = store.load(TENANT, &path, 0..found, Priority::Urgent);
        for i in 0..found {
            let whole = bytes(round, n, i);
            for layer in 0..SLICES.len() {
                let mut to = vec![0; SLICES[layer]];
                load.wait(layer, i, &mut to).map_err(|_| format!("chunk {i} of conversation {n} is lost"))?;
                let from: usize = SLICES[..layer].iter().sum();
                if to != whole[from..from + to.len()] {
                    return Err(format!("layer {layer} of chunk {i} of conversation {n} is wrong"));
                }
            }
        }
        report.served += found as u64;
        report.durable += least as u64;
    }
    Ok(report)
}
