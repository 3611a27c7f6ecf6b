//! Long seeded random runs of the tree against the naive model, with a pool that is always full. The slabs have
//! contents here: each slot holds a digest of the tokens up to it, written as an executor would, so a wrong match, a
//! slab freed too early or a copy of slots not yet computed shows as wrong bytes.

mod ops;
mod step;

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use kvist_base::{CHUNK, ChunkId, DomainId, TokenId};

use crate::model::{Model, Track, common};
use crate::{Cache, CacheConfig, Path};

/// A fault put into the tree on purpose: a campaign that does not fail with it proves nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Canary {
    #[default]
    None,
    /// Nodes match by length, tokens are not compared.
    MatchByLength,
    /// Following pins nothing.
    ForgetPin,
    /// Slots that are only being computed are copied.
    CopyUncomputed,
    /// Any domain's nodes are found first.
    IgnoreDomain,
    /// Paths do not learn of lost KV.
    IgnoreLoss,
    /// What is worth most is evicted.
    EvictTheBest,
}

impl Canary {
    pub const ALL: [Canary; 6] = [
        Canary::MatchByLength,
        Canary::ForgetPin,
        Canary::CopyUncomputed,
        Canary::IgnoreDomain,
        Canary::IgnoreLoss,
        Canary::EvictTheBest,
    ];
}

/// How often each operation and each interesting case happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub steps: u64,
    pub counts: BTreeMap<&'static str, u64>,
}

impl Report {
    pub fn merge(&mut self, other: &Report) {
        self.steps += other.steps;
        for (case, n) in &other.counts {
            *self.counts.entry(case).or_default() += n;
        }
    }

    pub fn count(&self, case: &str) -> u64 {
        self.counts.get(case).copied().unwrap_or(0)
    }

    fn note(&mut self, case: &'static str, n: u64) {
        *self.counts.entry(case).or_default() += n;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} steps", self.steps)?;
        self.counts.iter().try_for_each(|(case, n)| writeln!(f, "{n:>12}  {case}"))
    }
}

/// `steps` random operations from `seed`, each compared with the model.
///
/// # Errors
/// The first difference, with seed and step.
pub fn run(seed: u64, steps: u64) -> Result<Report, String> {
    run_with(seed, steps, Canary::None)
}

/// [`run`] with a fault in the tree.
///
/// # Errors
/// As [`run`]; expected for every canary.
pub fn run_with(seed: u64, steps: u64, canary: Canary) -> Result<Report, String> {
    let mut report = Report::default();
    let mut rng = Rng(seed);
    while report.steps < steps {
        let mut campaign = Campaign::new(&mut rng, canary);
        let until = steps.min(report.steps + ROUND);
        let outcome = catch_unwind(AssertUnwindSafe(|| campaign.run(until - report.steps)));
        let outcome = outcome.unwrap_or_else(|panic| {
            let words = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Err(format!("panic: {}", words.unwrap_or("?")))
        });
        let at = report.steps + campaign.report.steps;
        outcome.map_err(|error| format!("seed {seed}, step {at}: {error}"))?;
        report.merge(&campaign.report);
    }
    Ok(report)
}

/// Operations on one tree before a new one is made.
const ROUND: u64 = 3000;
const POOLS: [u32; 10] = [1, 2, 3, 4, 6, 9, 13, 19, 28, 40];
const DOMAINS: u64 = 3;
const MAX_PATHS: usize = 6;
const MAX_TOKENS: usize = 5 * CHUNK;

/// splitmix64 (Steele, Lea, Flood 2014).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn index(&mut self, n: usize) -> usize {
        self.below(n as u64) as usize
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Digests of all prefixes of a text: what the slots of its tokens hold.
fn digests(text: &[TokenId]) -> impl Iterator<Item = u64> {
    text.iter().scan(1, |state, &token| {
        *state = mix(*state ^ u64::from(token + 1) << 32);
        Some(*state)
    })
}

macro_rules! ensure {
    ($ok:expr, $($words:tt)+) => {
        if !$ok {
            return Err(format!($($words)+));
        }
    };
}
use ensure;

struct Campaign<'a> {
    rng: &'a mut Rng,
    cache: Cache,
    model: Model,
    paths: Vec<Path>,
    tracks: Vec<Track>,
    /// Contents of the slabs.
    kv: Vec<[u64; CHUNK]>,
    tick: u64,
    evictions: u64,
    forks: u64,
    merges: u64,
    unlinked: u64,
    report: Report,
}

impl<'a> Campaign<'a> {
    fn new(rng: &'a mut Rng, canary: Canary) -> Campaign<'a> {
        let slabs = rng.pick(&POOLS);
        let parity = rng.pick(&[1, 64, 16384]);
        let mut cache = Cache::new(CacheConfig { slabs, parity, ..CacheConfig::default() });
        cache.arena.canary = canary;
        let model = Model::new(slabs, parity);
        let kv = vec![[0; CHUNK]; slabs as usize];
        let (paths, tracks) = (Vec::new(), Vec::new());
        let report = Report::default();
        Campaign {
            rng,
            cache,
            model,
            paths,
            tracks,
            kv,
            tick: 0,
            evictions: 0,
            forks: 0,
            merges: 0,
            unlinked: 0,
            report,
        }
    }

    fn run(&mut self, steps: u64) -> Result<(), String> {
        while self.report.steps < steps {
            self.report.steps += 1;
            self.operation()?;
            self.check()?;
        }
        while !self.paths.is_empty() {
            self.release(0);
            self.check()?;
        }
        ensure!(self.cache.available() == self.model.slabs, "pins are left when all paths are gone");
        Ok(())
    }

    fn operation(&mut self) -> Result<(), String> {
        let any = !self.paths.is_empty();
        match self.rng.below(100) {
            0..16 if self.paths.len() < MAX_PATHS => self.start()?,
            16..48 if any => self.step()?,
            48..53 if any && self.paths.len() < MAX_PATHS => self.fork(),
            53..68 if any => {
                let i = self.rng.index(self.paths.len());
                self.release(i);
            }
            68..74 if any => {
                let i = self.rng.index(self.paths.len());
                self.truncate(i)?;
            }
            74..79 => self.invalidate()?,
            79..85 => self.publish()?,
            85..86 => self.unpublish()?,
            86..92 => self.protect()?,
            92..94 => self.unprotect(),
            _ => self.probe()?,
        }
        Ok(())
    }

    /// A text that is likely to agree with others up to a border of chunks, or beside it.
    fn text(&mut self) -> Vec<TokenId> {
        const LENGTHS: [usize; 13] = [0, 1, 2, 62, 63, 64, 65, 127, 128, 129, 191, 192, 193];
        let mut text = Vec::new();
        if self.rng.chance(60) && !self.model.nodes.is_empty() {
            let n = self.rng.index(self.model.nodes.len());
            text = self.model.nodes.values().nth(n).expect("in range").text.clone();
            let keep = if self.rng.chance(50) { self.rng.pick(&LENGTHS) } else { self.rng.index(text.len() + 1) };
            text.truncate(keep);
        }
        let to = if self.rng.chance(60) { self.rng.pick(&LENGTHS) } else { self.rng.index(4 * CHUNK) };
        let mut token = self.rng.below(2) as TokenId;
        while text.len() < to {
            if LENGTHS.contains(&text.len()) && self.rng.chance(15) {
                token = self.rng.below(3) as TokenId;
            }
            text.push(token);
        }
        text
    }

    /// Mostly not at all, at times for long.
    fn pass_time(&mut self) {
        let octaves = self.rng.below(36);
        self.tick += if self.rng.chance(50) { self.rng.below(1 << octaves) } else { 0 };
    }

    fn domain(&mut self) -> u32 {
        1 + self.rng.below(DOMAINS) as u32
    }

    /// Compares all that can be seen from outside.
    fn check(&mut self) -> Result<(), String> {
        self.cache.check_integrity()?;
        let stats = self.cache.stats();
        let nodes = self.model.nodes.values();
        let linked = || self.model.nodes.values().filter(|node| node.linked);
        let free = self.model.slabs - nodes.len() as u32;
        let pinned = nodes.filter(|node| node.pinned).count() as u32;
        let tokens: usize = linked().map(|node| node.text.len() - node.start()).sum();
        ensure!((stats.free, stats.pinned) == (free, pinned), "free, pinned {free} {pinned}, found {stats:?}");
        ensure!(stats.evictable == self.model.slabs - free - pinned, "evictable: {stats:?}");
        ensure!(self.cache.available() == self.model.slabs - pinned, "available: {stats:?}");
        ensure!(stats.nodes as usize == linked().count(), "{} nodes, found {stats:?}", linked().count());
        ensure!(stats.tokens == tokens as u64, "{tokens} tokens, found {stats:?}");
        let counted = (self.evictions, self.forks, self.merges, self.unlinked);
        let found = (stats.evictions, stats.forks, stats.merges, stats.unlinked);
        ensure!(counted == found, "evictions, forks, merges, unlinked {counted:?}, found {found:?}");
        for (uid, node) in self.model.nodes.iter().filter(|(_, node)| node.linked && !node.pinned) {
            let (place, should) = (self.cache.place_of(ChunkId(node.chunk)), self.model.place(*uid));
            ensure!(place == should, "{}: at {place:?} instead of {should:?}", ChunkId(node.chunk));
        }
        self.report.note("pool: full", u64::from(free == 0));
        self.report.note("pool: all of it pinned", u64::from(pinned == self.model.slabs));
        let left = self.model.nodes.values().any(|node| !node.linked);
        self.report.note("tree: a node that left is still pinned", u64::from(left));
        Ok(())
    }

    /// Compares a path that is up to date.
    fn check_path(&self, i: usize) -> Result<(), String> {
        let (path, track) = (&self.paths[i], &self.tracks[i]);
        ensure!(path.used == track.used, "path {i} uses {}, should use {}", path.used, track.used);
        let chunks: Vec<u32> = path.nodes.iter().map(|&node| self.cache.slab(node).0).collect();
        let should: Vec<u32> = track.nodes.iter().map(|uid| self.model.nodes[uid].chunk).collect();
        ensure!(chunks == should, "path {i} over {chunks:?}, should be over {should:?}");
        for (&id, uid) in path.nodes.iter().zip(&track.nodes) {
            let node = &self.model.nodes[uid];
            let filled = (node.text.len() - node.start(), node.valid - node.start());
            ensure!(self.cache.filled(id) == filled, "node {id:?}: {filled:?} tokens, found otherwise");
        }
        Ok(())
    }

    /// Between steps every slot of the tree holds what its tokens say, and every path reads its own tokens' KV.
    fn check_kv(&self) -> Result<(), String> {
        for node in self.model.nodes.values().filter(|node| node.linked) {
            ensure!(node.valid == node.text.len(), "tokens without KV between steps");
            let slots = digests(&node.text).skip(node.start());
            ensure!(
                slots.eq(self.kv[node.chunk as usize][..node.text.len() - node.start()].iter().copied()),
                "wrong KV"
            );
        }
        for track in &self.tracks {
            for (level, (uid, text)) in track.nodes.iter().zip(track.text[..track.used].chunks(CHUNK)).enumerate() {
                let n = common(&self.model.nodes[uid].text, &track.text[..track.used]);
                ensure!(n == level * CHUNK + text.len(), "a path's node holds other tokens");
            }
        }
        Ok(())
    }

    /// Brings the model of a path up to date, as the tree does first in each call that takes the path.
    fn sync(&mut self, i: usize) {
        let track = &mut self.tracks[i];
        self.report.note("path: brought up to date", u64::from(track.pin != track.nodes.last().copied()));
        track.pin = track.nodes.last().copied();
        self.model.settle(self.tracks.iter());
    }
}

fn domain(domain: u32) -> DomainId {
    DomainId(domain)
}
