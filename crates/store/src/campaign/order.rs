//! The order in which chunks go, and which are taken in, against a model that sorts all leaves.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use kvist_base::eviction::{AGES, Class, Order, Valuation, Worths, cost};
use kvist_base::{CHUNK, DomainId};

use super::Report;
use super::world::{bytes, tokens};
use crate::config::{Encryption, Fingerprint, StoreConfig};
use crate::load::Priority;
use crate::random::Random;
use crate::reclaim::full;
use crate::save::{Saved, Turn};
use crate::state::Canary;
use crate::store::Store;
use crate::vfs::SimVfs;

/// The public domain and two others.
const DOMAINS: usize = 3;
const STEPS: usize = 500;
/// New chunks of a save at most: they fit one extent.
const NEW: usize = 4;

/// Domain and numbers of the chunks on a path.
type Name = (usize, Vec<u8>);

#[derive(Clone, Copy)]
struct Chunk {
    class: Class,
    last: i64,
    stored: bool,
    pinned: bool,
}

/// What should be here, and who wants what of it.
#[derive(Clone)]
struct Model {
    chunks: BTreeMap<Name, Chunk>,
    /// By ticket: the ends of the paths that it wants, and its rank.
    wants: BTreeMap<u64, (Vec<Name>, u32)>,
    valuation: Valuation,
}

/// Where a leaf stands: guard, and of wanted ones band, last use and depth; of others the worth alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    guard: u64,
    worth: u128,
    last: i64,
    tie: u32,
}

impl Model {
    fn worth(&self, class: Class, depth: usize, last: i64, now: i64) -> u128 {
        if self.valuation.order != Order::Returns {
            return (i128::from(last) + (1 << 64)) as u128;
        }
        let returns = self.valuation.worths.at(class, (now - last).max(0) as u64);
        u128::from(returns) * u128::from(cost::cost(cost::band(depth as u32, self.valuation.parity)))
    }

    fn guard(&self, name: &Name) -> u64 {
        let ranks = self.wants.values().filter(|want| want.0.contains(name)).map(|want| want.1);
        ranks.min().map_or(0, |rank| (1 << 32) - u64::from(rank))
    }

    fn rank(&self, name: &Name, now: i64) -> Rank {
        let (chunk, depth) = (&self.chunks[name], name.1.len() - 1);
        match self.guard(name) {
            0 => Rank { guard: 0, worth: self.worth(chunk.class, depth, chunk.last, now), last: 0, tie: 0 },
            guard => {
                let worth = self.valuation.band(chunk.class, depth as u32).into();
                Rank { guard, worth, last: chunk.last, tie: u32::MAX - depth as u32 }
            }
        }
    }

    /// All leaves that may go, the next one first.
    fn leaves(&self, now: i64) -> Vec<(Rank, Name)> {
        let leaf = |(name, chunk): &(&Name, &Chunk)| {
            let below = self.chunks.range((name.0, name.1.clone())..).nth(1);
            let below = below.is_some_and(|(next, _)| next.0 == name.0 && next.1.starts_with(&name.1));
            chunk.stored && !chunk.pinned && !below
        };
        let leaves = self.chunks.iter().filter(leaf).map(|(name, _)| (self.rank(name, now), name.clone()));
        let mut leaves: Vec<(Rank, Name)> = leaves.collect();
        leaves.sort();
        leaves
    }

    /// The chunk goes; who wanted it wants what is above it.
    fn drop(&mut self, name: &Name) {
        self.chunks.remove(name);
        for (ends, _) in self.wants.values_mut() {
            ends.iter_mut().filter(|end| *end == name).for_each(|end| end.1.truncate(name.1.len() - 1));
            ends.retain(|end| !end.1.is_empty());
        }
    }

    /// What is left when these have gone, each when none was worth less. Of equals any may go first, and not every choice
    /// explains what went after it: others are tried, at most `tries` times.
    fn after(&self, mut gone: Vec<Name>, now: i64, tries: &mut u32) -> Result<Model, String> {
        let mut model = self.clone();
        while !gone.is_empty() {
            let leaves = model.leaves(now);
            let least = leaves.first().ok_or("something went that may not")?.0;
            let equal = leaves.iter().take_while(|leaf| leaf.0 == least);
            let mut next = equal.filter_map(|leaf| gone.iter().position(|name| *name == leaf.1));
            let Some(at) = next.next() else {
                let stood: Vec<_> = leaves.iter().filter(|leaf| gone.contains(&leaf.1)).collect();
                return Err(format!("{stood:?} went before {:?}", leaves[0]));
            };
            for other in next {
                *tries = tries.checked_sub(1).ok_or("too many ways to explain what went")?;
                let (mut model, mut gone) = (model.clone(), gone.clone());
                model.drop(&gone.swap_remove(other));
                if let Ok(after) = model.after(gone, now, tries) {
                    return Ok(after);
                }
            }
            model.drop(&gone.swap_remove(at));
        }
        Ok(model)
    }

    /// How much of a path is here.
    fn known(&self, (domain, ids): &Name) -> usize {
        (1..=ids.len()).take_while(|&n| self.chunks.contains_key(&(*domain, ids[..n].to_vec()))).count()
    }
}

struct Run {
    vfs: SimVfs,
    store: Store,
    model: Model,
    random: Random,
    report: Report,
}

fn domain(at: usize) -> DomainId {
    DomainId(at as u32)
}

/// What might have been learnt: in each class worths that rise to an age and fall after it.
pub(super) fn valuation(random: &mut Random) -> Valuation {
    let mut row = |_| {
        let peak = random.below(AGES);
        let mut row: [u64; AGES] = std::array::from_fn(|_| random.below(1000) as u64);
        row[..=peak].sort_unstable();
        row[peak..].sort_unstable_by(|a, b| b.cmp(a));
        row[peak] = 1000;
        row
    };
    let worths = Arc::new(Worths::new((0..Class::COUNT).map(&mut row).collect()));
    let order = [Order::Returns, Order::Returns, Order::Lru, Order::Fifo][random.below(4)];
    Valuation { order, parity: [64, 16384][random.below(2)], worths }
}

/// Plays a workload in a store of some hundred chunks and compares each chunk that goes with the one that should.
pub fn order(seed: u64) -> Result<Report, String> {
    order_with(seed, Canary::None)
}

pub fn order_with(seed: u64, canary: Canary) -> Result<Report, String> {
    let vfs = SimVfs::new(seed);
    let slices = super::world::SLICES.to_vec();
    let fingerprint = Fingerprint { digest: [9; 32], text: "simulated".into() };
    let mut config = StoreConfig::new(PathBuf::from("/store"), 200 << 10, fingerprint, slices, Encryption::Off);
    (config.segment, config.io_threads) = (Some(16 << 10), 0);
    let failed = |what: String| format!("seed {seed}: {what}");
    let (store, _) = Store::open_with(Arc::new(vfs.clone()), config, canary).map_err(|e| failed(e.to_string()))?;
    for at in 0..DOMAINS {
        store.register(domain(at), &format!("domain {at}")).map_err(|e| failed(e.to_string()))?;
    }
    let model = Model { chunks: BTreeMap::new(), wants: BTreeMap::new(), valuation: Valuation::default() };
    let report = Report { states: 1, ..Report::default() };
    let mut run = Run { vfs, store, model, random: Random::new(seed), report };
    for step in 0..STEPS {
        let here = |what: String| failed(format!("step {step}: {what}"));
        run.step().map_err(here)?;
        run.store.check().map_err(here)?;
    }
    run.report.evicted = run.store.stats().evicted.budget;
    Ok(run.report)
}

impl Run {
    fn step(&mut self) -> Result<(), String> {
        match self.random.below(100) {
            0..45 => self.save()?,
            45..60 => {
                let name = self.name();
                let known = self.model.known(&name);
                drop(self.store.load(domain(name.0), &tokens(&name.1[..known]), 0..known, Priority::Urgent));
                self.touch(&name, known, &[]);
            }
            60..75 => self.want(),
            75..82 => {
                let ticket = self.random.below(6) as u64;
                self.store.unwant(ticket);
                self.model.wants.remove(&ticket);
            }
            82..92 => {
                let name = self.name();
                let classes = self.classes(name.1.len());
                self.store.expect(domain(name.0), &tokens(&name.1), 0, &classes);
                self.touch(&name, self.model.known(&name), &classes);
            }
            92..95 => {
                self.model.valuation = valuation(&mut self.random);
                self.store.value(&self.model.valuation);
            }
            95..97 => {
                let (mut name, keep) = (self.name(), self.random.chance(30));
                name.1.truncate(self.model.known(&name));
                self.store.pin(domain(name.0), &tokens(&name.1), keep);
                if let Some(chunk) = self.model.chunks.get_mut(&name) {
                    chunk.pinned = keep;
                }
            }
            _ => self.vfs.advance([1, 300_000, 20_000_000, 4_000_000_000][self.random.below(4)]),
        }
        loop {
            let turn = self.store.turn();
            self.compare()?;
            if self.store.stats().queued == 0 {
                // What waited has been written.
                self.model.chunks.values_mut().for_each(|chunk| chunk.stored = true);
            }
            if turn != Turn::Worked {
                return Ok(());
            }
        }
    }

    fn now(&self) -> i64 {
        use crate::vfs::Vfs;
        self.vfs.now() as i64
    }

    fn classes(&mut self, n: usize) -> Vec<Class> {
        (0..n).map(|_| Class::from_index(self.random.below(Class::COUNT))).collect()
    }

    /// A path that shares its beginning with one that is here, mostly, or is one.
    fn name(&mut self) -> Name {
        let at = self.random.below(DOMAINS);
        let all: Vec<&Name> = self.model.chunks.keys().filter(|name| name.0 == at).collect();
        let mut ids = Vec::new();
        if !all.is_empty() && self.random.chance(80) {
            ids.clone_from(&all[self.random.below(all.len())].1);
            ids.truncate(1 + self.random.below(ids.len()).max(self.random.below(ids.len())));
        }
        if ids.is_empty() || self.random.chance(50) {
            (0..1 + self.random.below(NEW)).for_each(|_| ids.push(self.random.below(40) as u8));
        }
        (at, ids)
    }

    fn touch(&mut self, (at, ids): &Name, known: usize, classes: &[Class]) {
        let (now, fifo) = (self.now(), self.model.valuation.order == Order::Fifo);
        for n in 0..known {
            let chunk = self.model.chunks.get_mut(&(*at, ids[..=n].to_vec())).expect("known");
            chunk.last = if fifo { chunk.last } else { now };
            chunk.class = classes.get(n).copied().unwrap_or(chunk.class);
        }
    }

    fn want(&mut self) {
        let (ticket, rank, mut name) = (self.random.below(6) as u64, self.random.below(50) as u32, self.name());
        name.0 = name.0.max(1);
        self.store.want(ticket, domain(name.0), &tokens(&name.1), rank);
        let trees = [(0, name.1.clone()), name].map(|mut name| {
            name.1.truncate(self.model.known(&name));
            name
        });
        self.model.wants.insert(ticket, (trees.into_iter().filter(|name| !name.1.is_empty()).collect(), rank));
    }

    fn save(&mut self) -> Result<(), String> {
        let name = self.name();
        let known = self.model.known(&name);
        let new = (name.1.len() - known).min(NEW);
        let name = (name.0, name.1[..known + new].to_vec());
        if new == 0 {
            return Ok(());
        }
        let (path, classes) = (tokens(&name.1), self.classes(new));
        let admitted = self.admit(&name, known, &classes)?;
        let path = &path[..(known + admitted) * CHUNK];
        if admitted == 0 {
            return Ok(());
        }
        let chunks = (known..known + admitted).map(|n| bytes(name.0, &name.1[..=n])).collect();
        if !matches!(self.store.save(domain(name.0), path, known, chunks), Saved::Queued(_)) {
            return Err("a chunk is not taken".into());
        }
        let classed = self.random.chance(70);
        if classed {
            self.store.expect(domain(name.0), path, known, &classes);
        }
        for n in known..known + admitted {
            let class = if classed { classes[n - known] } else { Class::UNKNOWN };
            let began = match self.model.valuation.order {
                Order::Fifo if n > 0 => Some(self.model.chunks[&(name.0, name.1[..n].to_vec())].last),
                _ => None,
            };
            let chunk = Chunk { class, last: began.unwrap_or(self.now()), stored: false, pinned: false };
            self.model.chunks.insert((name.0, name.1[..=n].to_vec()), chunk);
        }
        Ok(())
    }

    /// How many of new chunks the store takes in, which must be as many as it should.
    fn admit(&mut self, name: &Name, known: usize, classes: &[Class]) -> Result<usize, String> {
        let (path, now) = (tokens(&name.1), self.now());
        let before = self.store.stats();
        let admitted = self.store.admit(domain(name.0), &path, known, 0, classes);
        let shared = self.store.shared();
        let (allowed, need) = (shared.state().allowed, classes.len() as u64 * shared.geometry.weight());
        let room = before.bytes + need <= allowed || before.live + need <= full(allowed);
        let leaves = self.model.leaves(now);
        let guard = if known == 0 { 0 } else { self.model.guard(&(name.0, name.1[..known].to_vec())) };
        let takes = |&(n, &class): &(usize, &Class)| match leaves.first() {
            Some((victim, _)) if !room => {
                let worth = self.model.worth(class, known + n, now, now);
                guard > victim.guard || victim.guard == 0 && worth >= victim.worth
            }
            _ => true,
        };
        let expected = classes.iter().enumerate().take_while(takes).count();
        let refused = self.store.stats().not_admitted - before.not_admitted;
        self.report.refused += refused;
        if (admitted, refused) != (expected, (classes.len() - expected) as u64) {
            return Err(format!("{admitted} chunks of {name:?} are admitted, {refused} are not, {expected} should be"));
        }
        Ok(admitted)
    }

    /// What went is what should have gone, one after the other.
    fn compare(&mut self) -> Result<(), String> {
        let now = self.now();
        let here = |name: &Name| self.store.probe(domain(name.0), &tokens(&name.1), name.1.len() - 1) > 0;
        let gone = self.model.chunks.keys().filter(|name| !here(name)).cloned();
        // What could not be written for want of room is no eviction.
        let (lost, gone): (Vec<Name>, Vec<Name>) = gone.partition(|name| !self.model.chunks[name].stored);
        self.model = self.model.after(gone, now, &mut 1000)?;
        lost.iter().rev().for_each(|name| self.model.drop(name));
        Ok(())
    }
}
