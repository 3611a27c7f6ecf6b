//! Learns which chunks come back, and when, from the requests that come.
//!
//! Each use of a chunk is remembered after the request ends, whether the chunk is still held or not, until it comes back
//! or memory runs out. Facts about the use give odds of a return ([`Odds`]), the odds a class, and each class a life
//! table of what became of its chunks ([`LifeTable`]). The worth of holding a chunk follows from its class and its age.
//! The past fades with the number of uses. No clock is read, nothing is random: equal calls give equal answers.

use std::collections::HashMap;
use std::sync::Arc;

use kvist_base::Micros;
use kvist_base::eviction::{AGES, Class, Worths, edge, interval};

use crate::policy::ages::{self, LifeTable};
use crate::policy::facts::{Bins, Facts};
use crate::policy::odds::Odds;

const CLASSES: usize = Class::COUNT;
/// Width of a class in the logarithm of odds.
const WIDTH: f64 = 0.7;
/// A class also goes by half of what its neighbours say.
const NEIGHBOURS: f64 = 0.5;
/// Parts of the memory after which the past fades and worths are computed anew.
const PARTS: u64 = 64;

fn class_of(odds: f64) -> Class {
    Class::from_index((odds / WIDTH + CLASSES as f64 / 2.0).clamp(0.0, CLASSES as f64 - 1.0) as usize)
}

/// A request under way, as [`Returns::arrive`] saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Visit {
    /// Leading chunks that were remembered.
    pub known: usize,
    /// Requests that it extends, each the one before it.
    pub turn: u32,
    /// Time from the end of the last of them.
    pub pause: Option<Micros>,
}

/// The last use of a chunk.
#[derive(Clone, Debug)]
struct Use {
    key: u64,
    at: Micros,
    /// It has not come back since.
    out: bool,
    class: Class,
    bins: Bins,
    weight: f32,
    uses: u32,
    gap: Option<Micros>,
    turn: u32,
    /// Chunks of the request.
    chunks: u32,
}

#[derive(Clone, Debug)]
pub struct Returns {
    /// By number modulo their count, the oldest overwritten.
    uses: Vec<Use>,
    remember: usize,
    /// Uses so far: the number of the next.
    count: u64,
    /// Chunk to the number of its last use.
    last: HashMap<u64, u64>,
    now: Micros,
    /// For each interval of age, the first use that has not reached it.
    reached: [u64; AGES],
    tables: Vec<LifeTable>,
    odds: Odds,
    /// The facts that are looked at, a bit each.
    facts: u16,
    /// How much each octave's end says of returns: the returns of the octave, next to the octave that has most.
    shares: [f64; AGES],
    worths: Arc<Worths>,
    faded: u64,
    renewed: u64,
}

impl Returns {
    /// `remember`: uses of chunks, four times what the store holds or more; about 150 bytes each.
    pub fn new(remember: usize) -> Returns {
        let mut returns = Returns {
            uses: Vec::new(),
            remember: remember.max(PARTS as usize),
            count: 0,
            last: HashMap::new(),
            now: 0,
            reached: [0; AGES],
            tables: vec![LifeTable::EMPTY; CLASSES],
            odds: Odds::NEW,
            facts: u16::MAX,
            shares: [0.0; AGES],
            worths: Arc::default(),
            faded: 0,
            renewed: 0,
        };
        returns.renew();
        returns
    }

    /// The same, learning from some of the facts only: a bit for each of [`Facts::NAMES`].
    pub fn learning_from(mut self, facts: u16) -> Returns {
        self.facts = facts;
        self
    }

    /// Uses that are worth remembering for a store of so many chunks: a little longer than they would be held at best.
    pub fn memory(chunks: usize) -> usize {
        (4 * chunks).max(1 << 17)
    }

    /// A request that uses the chunks `keys`, from the first on; a key stands for a chunk and all before it. A collision
    /// of keys costs a wrong statistic, nothing else.
    ///
    /// `open`: of the chunk behind so many that are remembered, the key that it would have had while it was open.
    pub fn arrive(
        &mut self,
        now: Micros,
        keys: impl IntoIterator<Item = u64>,
        open: impl FnOnce(usize) -> Option<u64>,
    ) -> Visit {
        self.advance(now);
        let mut visit = Visit::default();
        let mut keys = keys.into_iter();
        while let Some(number) = keys.next().and_then(|key| self.find(key)) {
            self.came(number, &mut visit);
        }
        if let Some(number) = open(visit.known).and_then(|key| self.find(key)) {
            self.came(number, &mut visit);
        }
        visit
    }

    /// The next chunk of a visit is one that was used before.
    fn came(&mut self, number: u64, visit: &mut Visit) {
        let age = self.now - self.get(number).at;
        let slot = self.slot(number);
        let last = &mut self.uses[slot];
        visit.known += 1;
        // What extends less than half of a request is another one that begins alike.
        let extends = 2 * visit.known >= last.chunks as usize;
        (visit.turn, visit.pause) = if extends { (last.turn + 1, Some(age)) } else { (0, None) };
        if last.out {
            last.out = false;
            last.gap = Some(age);
            self.tables[last.class.index()].came[interval(age)] += f64::from(last.weight);
        }
    }

    /// A request ended. `keys` are those of all its chunks, those of the reply included; the last is `open` if it is not
    /// full. `fresh`: tokens of the prompt that were not known when it came. Hands the class of each chunk to `class`.
    pub fn leave(&mut self, now: Micros, visit: &Visit, end: &End, keys: &[u64], mut class: impl FnMut(usize, Class)) {
        self.advance(now);
        let known = visit.known.min(keys.len());
        for (i, &key) in keys.iter().enumerate() {
            let before = self.find(key).map(|number| self.get(number));
            let facts = Facts {
                uses: before.map_or(0, |before| before.uses) + 1,
                turn: visit.turn,
                prompt: end.prompt,
                fresh: end.fresh,
                reply: end.reply,
                pause: visit.pause,
                gap: before.and_then(|before| before.gap),
                open: end.open && i + 1 == keys.len(),
            };
            // Chunks of one request share their fate, so that many of them say less than as many requests.
            let alike = if i < known { known } else { keys.len() - known };
            let mut bins = facts.bins();
            (0..bins.len()).filter(|&i| self.facts >> i & 1 == 0).for_each(|i| bins[i] = 0);
            let of = class_of(self.odds.of(&bins));
            let weight = 1.0 / (alike as f64).sqrt();
            self.tables[of.index()].waited[0] += weight;
            self.note(Use {
                key,
                at: self.now,
                out: true,
                class: of,
                bins,
                weight: weight as f32,
                uses: facts.uses,
                gap: facts.gap,
                turn: visit.turn,
                chunks: keys.len() as u32,
            });
            class(i, of);
        }
        self.turn_over();
    }

    /// What it is worth to hold a chunk of this class that was last used at `last`: returns per 2^40 microseconds.
    pub fn worth(&self, class: Class, last: Micros, now: Micros) -> u64 {
        self.worths.at(class, now.saturating_sub(last))
    }

    /// What chunks are worth as far as is known: another table each time that it was computed anew.
    pub fn worths(&self) -> &Arc<Worths> {
        &self.worths
    }

    /// Share of a class's chunks that came back, of late.
    pub fn share(&self, class: Class) -> f64 {
        let table = &self.tables[class.index()];
        table.came.iter().sum::<f64>() / table.waited[0].max(1.0)
    }

    /// Chunks that would be known if they came back now.
    pub fn remembered(&self) -> usize {
        self.last.len()
    }

    fn slot(&self, number: u64) -> usize {
        (number % self.remember as u64) as usize
    }

    fn get(&self, number: u64) -> &Use {
        &self.uses[self.slot(number)]
    }

    fn find(&self, key: u64) -> Option<u64> {
        self.last.get(&key).copied()
    }

    fn note(&mut self, new: Use) {
        let number = self.count;
        self.count += 1;
        if let Some(before) = self.last.insert(new.key, number) {
            let slot = self.slot(before);
            self.uses[slot].out = false;
        }
        if self.uses.len() < self.remember {
            return self.uses.push(new);
        }
        let slot = self.slot(number);
        let old = std::mem::replace(&mut self.uses[slot], new);
        if self.last.get(&old.key) == Some(&(number - self.remember as u64)) {
            self.last.remove(&old.key);
        }
    }

    /// Lets time pass: uses reach the ages that they reach.
    fn advance(&mut self, now: Micros) {
        self.now = self.now.max(now);
        let oldest = self.count - self.uses.len() as u64;
        for k in 1..AGES {
            let mut number = self.reached[k].max(oldest);
            while number < self.count && self.now - self.get(number).at >= edge(k) {
                let slot = self.slot(number);
                let reached = &self.uses[slot];
                let weight = f64::from(reached.weight);
                if reached.out {
                    self.tables[reached.class.index()].waited[k] += weight;
                }
                if ages::octave(k).is_some() && self.shares[k] > 0.0 {
                    self.odds.learn(&reached.bins, k, !reached.out, weight * self.shares[k]);
                }
                number += 1;
            }
            self.reached[k] = number;
        }
    }

    fn turn_over(&mut self) {
        let part = self.remember as u64 / PARTS;
        if self.count - self.faded >= part {
            self.faded = self.count;
            let factor = 1.0 - 1.0 / PARTS as f64;
            self.tables.iter_mut().for_each(|table| table.fade(factor));
            self.odds.fade(factor);
        }
        // In the beginning each part is a large one.
        if self.count - self.renewed >= (self.count / 16).max(64).min(part) {
            self.renewed = self.count;
            self.renew();
        }
    }

    fn renew(&mut self) {
        let mut all = LifeTable::EMPTY;
        self.tables.iter().for_each(|table| all.add(table, 1.0));
        let hazards = ages::hazards(&all);
        let row = |class: usize| {
            let mut table = self.tables[class].clone();
            for beside in [class.wrapping_sub(1), class + 1] {
                self.tables.get(beside).into_iter().for_each(|beside| table.add(beside, NEIGHBOURS));
            }
            ages::worths(&ages::class_hazards(&table, &hazards))
        };
        self.worths = Arc::new(Worths::new((0..CLASSES).map(row).collect()));
        for k in 0..AGES {
            self.shares[k] = ages::octave(k).map_or(0.0, |octave| all.came[octave].iter().sum());
        }
        let most = self.shares.iter().fold(f64::MIN_POSITIVE, |a, &b| a.max(b));
        self.shares.iter_mut().for_each(|share| *share /= most);
    }
}

/// What a request was, when it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Tokens of the prompt, of these not known when it came, and tokens generated.
    pub prompt: u32,
    pub fresh: u32,
    pub reply: u32,
    /// The last chunk is not full.
    pub open: bool,
}
