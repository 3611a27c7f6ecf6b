//! A small store with a workload, on a simulated system, and the oracle beside it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kvist_base::eviction::Class;
use kvist_base::{CHUNK, DomainId, TokenId};

use super::Report;
use crate::config::{Encryption, Fingerprint, OpenError, StoreConfig};
use crate::load::Priority;
use crate::random::Random;
use crate::save::{Saved, Turn};
use crate::state::Canary;
use crate::stats::Restored;
use crate::store::Store;
use crate::vfs::SimVfs;

pub(super) const DIR: &str = "/store";
const DOMAINS: usize = 3;
pub(super) const SLICES: [usize; 3] = [260, 36, 190];
const NOTE: u8 = 3;

/// Chunks of a path, by number.
type Ids = Vec<u8>;

/// What must be found after a crash at a moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Durable {
    /// Chunks of each path, from its beginning.
    pub chunks: Vec<usize>,
    /// Version of each note.
    pub notes: BTreeMap<(usize, u8), u64>,
    pub forgotten: [bool; DOMAINS],
}

pub(super) struct World {
    pub vfs: SimVfs,
    config: StoreConfig,
    canary: Canary,
    pub store: Option<Store>,
    rng: Random,
    /// Of what changes nothing but the order in which chunks go.
    mind: Random,
    pub paths: Vec<(usize, Ids)>,
    /// Of each path, its tokens and what its chunks hold: worked out once.
    oracle: Vec<(Vec<TokenId>, Vec<Vec<u8>>)>,
    /// Newest version of each note.
    notes: BTreeMap<(usize, u8), u64>,
    /// As `notes`, forgotten ones included: what a moment before that may have held.
    ever: BTreeMap<(usize, u8), u64>,
    durable_notes: BTreeMap<(usize, u8), u64>,
    forgotten: [bool; DOMAINS],
    pub report: Report,
    /// Of the last store that was opened after a crash.
    pub restored: Restored,
}

fn domain(at: usize) -> DomainId {
    DomainId(at as u32 + 1)
}

fn name(at: usize) -> String {
    format!("tenant {at}")
}

/// Chunks are the same tokens in another order: only who compares them all tells them apart.
pub(super) fn tokens(ids: &[u8]) -> Vec<TokenId> {
    ids.iter().flat_map(|&id| (0..CHUNK).map(move |i| 1000 + ((i + usize::from(id)) % CHUNK) as TokenId)).collect()
}

/// What the chunk at the end of a path holds.
pub(super) fn bytes(domain: usize, ids: &[u8]) -> Vec<u8> {
    let seed = ids.iter().fold(domain as u64 + 1, |a, &id| (a ^ u64::from(id)).wrapping_mul(0x2545_f491_4f6c_dd1d));
    let mut rng = Random::new(seed);
    let words = SLICES.iter().sum::<usize>().div_ceil(8);
    let mut out: Vec<u8> = (0..words).flat_map(|_| rng.word().to_le_bytes()).collect();
    out.truncate(SLICES.iter().sum());
    out
}

fn note_value(key: (usize, u8), version: u64) -> Vec<u8> {
    format!("note {key:?} version {version}").into_bytes()
}

fn config(rng: &mut Random, tight: bool) -> StoreConfig {
    let fingerprint = Fingerprint { digest: [9; 32], text: "simulated".into() };
    let encryption = match rng.chance(80) {
        true => Encryption::Keys(PathBuf::from("/key")),
        false => Encryption::Off,
    };
    let segment = [12 << 10, 20 << 10, 64 << 10][rng.below(3)];
    let budget = if tight { segment * 6 } else { 64 << 20 };
    let segment = if tight { 12 << 10 } else { segment };
    let mut config = StoreConfig::new(DIR.into(), budget.max(90 << 10), fingerprint, SLICES.to_vec(), encryption);
    config.segment = Some(segment.max(12 << 10));
    config.io_threads = 0;
    config.saves = 64 << 10;
    config
}

impl World {
    pub fn new(seed: u64, canary: Canary) -> World {
        let mut rng = Random::new(seed);
        let tight = rng.chance(40);
        World {
            vfs: SimVfs::new(seed),
            config: config(&mut rng, tight),
            canary,
            store: None,
            rng,
            mind: Random::new(seed ^ 0x6d69_6e64),
            paths: Vec::new(),
            oracle: Vec::new(),
            notes: BTreeMap::new(),
            ever: BTreeMap::new(),
            durable_notes: BTreeMap::new(),
            forgotten: [false; DOMAINS],
            report: Report::default(),
            restored: Restored::default(),
        }
    }

    pub fn mode(&self) -> crate::crypto::Mode {
        self.config.mode()
    }

    pub fn open(&mut self) -> Result<(), OpenError> {
        self.store = None;
        let (store, _) = Store::open_with(Arc::new(self.vfs.clone()), self.config.clone(), self.canary)?;
        for at in (0..DOMAINS).filter(|&at| !self.forgotten[at]) {
            store.register(domain(at), &name(at))?;
        }
        // What could not be written before the store was closed is gone, and is not asked for again.
        self.notes.retain(|key, version| {
            let found = store.notes(domain(key.0), NOTE).into_iter().find(|(k, _)| *k == [key.1]);
            let found = found.and_then(|(_, value)| (1..=*version).find(|v| value == note_value(*key, *v)));
            *version = found.unwrap_or(0);
            found.is_some()
        });
        self.store = Some(store);
        Ok(())
    }

    /// A path that shares its beginning with an earlier one, mostly.
    fn path(&mut self) -> (usize, Ids) {
        let at = self.rng.below(DOMAINS);
        let earlier: Vec<&(usize, Ids)> = self.paths.iter().filter(|p| p.0 == at).collect();
        let mut ids = Ids::new();
        if !earlier.is_empty() && self.rng.chance(75) {
            let base = &earlier[self.rng.below(earlier.len())].1;
            ids.extend(&base[..self.rng.below(base.len() + 1)]);
        }
        for _ in 0..1 + self.rng.below(5) {
            ids.push(self.rng.below(12) as u8);
        }
        (at, ids)
    }

    fn save(&mut self) {
        let (at, ids) = self.path();
        let Some(store) = &self.store else { return };
        let path = tokens(&ids);
        // From where the store says that it has it, or from somewhere before.
        let known = store.probe(domain(at), &path, 0) / CHUNK;
        let first = self.rng.below(known.min(ids.len() - 1) + 1);
        let chunks = (first..ids.len()).map(|i| bytes(at, &ids[..i + 1])).collect();
        match store.save(domain(at), &path, first, chunks) {
            Saved::Queued(_) | Saved::Known => self.paths.push((at, ids)),
            Saved::Parentless | Saved::Full | Saved::Off => {}
        }
    }

    /// One thing that a server does to a store.
    pub fn step(&mut self) -> Result<(), String> {
        let Some(store) = self.store.clone() else { return Ok(()) };
        match self.rng.below(100) {
            0..40 => self.save(),
            40..65 => drop(store.turn()),
            65..75 => self.vfs.advance(200_000),
            75..80 => self.flush(),
            80..86 => {
                let key = (self.rng.below(DOMAINS), self.rng.below(4) as u8);
                let version = self.notes.get(&key).map_or(1, |v| v + 1);
                if store.put_note(domain(key.0), NOTE, &[key.1], &note_value(key, version)) {
                    self.notes.insert(key, version);
                    self.ever.insert(key, version);
                }
            }
            86..94 => {
                if !self.paths.is_empty() {
                    let at = self.rng.below(self.paths.len());
                    self.check_path(&store, at, 0, false)?;
                }
            }
            94 => {
                drop(store);
                self.count();
                // Closing wrote everything that could be written; if it could not be opened again, that is for later.
                let _ = self.open();
            }
            95 => {
                let at = self.rng.below(DOMAINS);
                if self.rng.chance(20) {
                    // Where the key could not be destroyed, it is used no more by this process and may be there for the next.
                    self.forgotten[at] = store.forget(&name(at)).is_ok();
                    self.notes.retain(|key, _| key.0 != at);
                    self.durable_notes.retain(|key, _| key.0 != at);
                }
            }
            96 => drop(store.gc()),
            97 => {
                let (at, ids) = self.path();
                store.pin(domain(at), &tokens(&ids), self.rng.chance(50));
            }
            _ => {
                for _ in 0..4 {
                    if store.turn() != Turn::Worked {
                        break;
                    }
                }
            }
        }
        self.change_mind();
        if let Some(store) = &self.store {
            store.check()?;
            // The simulated file system counts in pages.
            let (used, segments) = (store.stats().bytes, store.stats().segments + 1);
            if used > self.config.budget + segments * 4096 {
                return Err(format!("{used} bytes of files with a budget of {}", self.config.budget));
            }
        }
        Ok(())
    }

    /// Other chunks are wanted, or worth something.
    fn change_mind(&mut self) {
        let Some(store) = self.store.as_ref().filter(|_| !self.paths.is_empty()) else { return };
        let (at, ids) = &self.paths[self.mind.below(self.paths.len())];
        let ticket = self.mind.below(4) as u64;
        match self.mind.below(10) {
            0 | 1 => store.want(ticket, domain(*at), &tokens(ids), self.mind.below(9) as u32),
            2 => store.unwant(ticket),
            3 | 4 => {
                let classes = ids.iter().map(|_| Class::from_index(self.mind.below(Class::COUNT)));
                store.expect(domain(*at), &tokens(ids), 0, &classes.collect::<Vec<_>>());
            }
            5 => store.value(&super::order::valuation(&mut self.mind)),
            _ => {}
        }
    }

    pub fn flush(&mut self) {
        let Some(store) = &self.store else { return };
        if store.flush(Duration::ZERO) {
            self.durable_notes = self.notes.clone();
        }
    }

    /// Adds what the store counted to the report.
    pub fn count(&mut self) {
        let Some(stats) = self.store.as_ref().map(Store::stats) else { return };
        self.report.evicted += stats.evicted.budget;
        self.report.copied += stats.copied;
        self.report.paused += stats.write_errors;
    }

    pub fn durable(&self) -> Durable {
        let chunks = self.paths.iter().map(|(at, ids)| {
            let store = self.store.as_ref();
            store.map_or(0, |store| store.probe_durable(domain(*at), &tokens(ids), 0) / CHUNK)
        });
        Durable { chunks: chunks.collect(), notes: self.durable_notes.clone(), forgotten: self.forgotten }
    }

    /// Takes everything of a path that is said to be there, and compares; `least` chunks must be there. With `strict`, what
    /// is said to be there must come.
    pub fn check_path(&mut self, store: &Store, path: usize, least: usize, strict: bool) -> Result<(), String> {
        for (at, ids) in &self.paths[self.oracle.len()..] {
            let chunks = (0..ids.len()).map(|i| bytes(*at, &ids[..i + 1]));
            self.oracle.push((tokens(ids), chunks.collect()));
        }
        let (at, ids) = &self.paths[path];
        let (all, chunks) = &self.oracle[path];
        let found = store.probe(domain(*at), all, 0) / CHUNK;
        if found < least {
            return Err(format!("{found} chunks of path {ids:?} of tenant {at} are found, {least} were durable"));
        }
        let load = store.load(domain(*at), all, 0..ids.len(), Priority::Urgent);
        let ahead = self.rng.below(4);
        for _ in 0..ahead {
            store.read_turn();
        }
        let mut whole = true;
        for layer in 0..SLICES.len() {
            let from: usize = SLICES[..layer].iter().sum();
            let mut to = vec![0; SLICES[layer]];
            for (i, chunk) in chunks.iter().enumerate() {
                match load.wait(layer, i, &mut to) {
                    Ok(()) if to != chunk[from..from + to.len()] => {
                        return Err(format!("layer {layer} of chunk {i} of path {ids:?} of tenant {at} is wrong"));
                    }
                    Ok(()) => {}
                    Err(_) if i < least || strict && i < found => {
                        return Err(format!("layer {layer} of chunk {i} of path {ids:?} of tenant {at} is lost"));
                    }
                    Err(_) => whole &= i >= found,
                }
            }
        }
        drop(load);
        if store.staged() != 0 {
            return Err(format!("{} bytes stay staged", store.staged()));
        }
        self.report.served += if whole { found as u64 } else { 0 };
        self.report.durable += least as u64;
        Ok(())
    }

    /// Opens what a crash left and holds it to what was promised. With `strict`, what is found must come.
    pub fn check_after(&mut self, vfs: SimVfs, expected: &Durable, strict: bool) -> Result<Store, String> {
        let vfs: Arc<SimVfs> = Arc::new(vfs);
        let (store, restored) =
            Store::open_with(vfs, self.config.clone(), self.canary).map_err(|e| format!("cannot be opened: {e}"))?;
        self.restored = restored;
        store.check()?;
        for at in 0..DOMAINS {
            store.register(domain(at), &name(at)).map_err(|e| e.to_string())?;
        }
        for path in 0..self.paths.len() {
            let at = self.paths[path].0;
            let least = expected.chunks.get(path).copied().unwrap_or(0);
            if expected.forgotten[at] {
                if store.probe(domain(at), &tokens(&self.paths[path].1), 0) > 0 {
                    return Err(format!("tenant {at} was forgotten, and is found"));
                }
                continue;
            }
            self.check_path(&store, path, least, strict)?;
        }
        for at in 0..DOMAINS {
            let found: BTreeMap<Vec<u8>, Vec<u8>> = store.notes(domain(at), NOTE).into_iter().collect();
            for (&key, &version) in expected.notes.range((at, 0)..(at + 1, 0)) {
                let newest = self.ever.get(&key).copied().unwrap_or(0);
                let value = found.get(&vec![key.1]);
                if !(version..=newest).any(|v| value == Some(&note_value(key, v))) {
                    return Err(format!("note {key:?} is {value:?} and not version {version} to {newest}"));
                }
                self.report.notes += 1;
            }
        }
        self.report.states += 1;
        Ok(store)
    }
}
