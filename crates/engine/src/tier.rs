//! Loads from the tier below RAM: what to load for whom, when a step may start on what is still arriving, and what to do
//! about what does not come.
//!
//! A load takes its room in the tree at once, so that whoever comes meanwhile follows onto it. Its sequence waits until
//! the rest will have arrived by the time that the layers get to it (CachedAttention section 3.2.1: a read-ahead of
//! `B * (T_load * L_hist - T_pref * L_new)` bytes), and then runs, each layer waiting for its slices alone.

use std::sync::Arc;

use kvist_base::{
    CHUNK, ChunkId, DomainId, For, Found, Load, LoadId, LoadState, Micros, Prepare, StepOutput, Tier, TokenId,
};
use kvist_cache::policy::{Valuation, Worths};
use kvist_cache::{Cache, NodeId, Unsaved};

use crate::carry::Carry;
use crate::engine::Engine;
use crate::sequence::Sequence;

/// Chunks that are told of at once to be saved: one extent.
pub const EXTENT: usize = 16;

/// A load that takes no longer than this is not waited for by who runs alone, while no step's time is known.
const UNKNOWN: Micros = 1_000_000;
/// How long a load is waited for at least, and at most while no step's time is known.
const SHORTEST: Micros = 20_000;
const LONGEST: Micros = 10_000_000;

/// The tier and what is on its way from it.
pub(crate) struct Tiers {
    pub tier: Box<dyn Tier>,
    active: Vec<Active>,
    next: u64,
    /// Steps start while their later layers are still on their way.
    layer_wise: bool,
    /// What the tier was told that chunks are worth.
    told: Option<Arc<Worths>>,
}

struct Active {
    id: LoadId,
    /// Places in the load and nodes: those that are still in the tree and have not arrived.
    nodes: Vec<(usize, NodeId)>,
    /// What the tier said when the step was planned.
    state: LoadState,
    /// Since when somebody who runs has waited for it.
    since: Option<Micros>,
    /// Somebody who runs needed it before it had arrived.
    awaited: bool,
    /// Tokens before it on its path.
    behind: usize,
    /// The tier has it under another path's name: what arrives of it is to be saved under its own.
    carried: bool,
}

impl Active {
    /// Whether something of it is on a sequence's path.
    fn is_awaited(&self, cache: &Cache, s: &Sequence) -> bool {
        cache.arriving(&s.path).any(|node| self.nodes.iter().any(|n| n.1 == node))
    }

    /// Lets go of nodes that left the tree: their slabs may be others' already.
    fn drop_gone(&mut self, cache: &Cache, tier: &mut dyn Tier) {
        let Active { id, nodes, .. } = self;
        nodes.retain(|&(place, node)| {
            let stands = cache.stands(node);
            if !stands {
                tier.forget(*id, place);
            }
            stands
        });
    }
}

impl Tiers {
    pub fn new(tier: Box<dyn Tier>) -> Tiers {
        Tiers { tier, active: Vec::new(), next: 0, layer_wise: true, told: None }
    }

    /// Tells the tier what chunks are worth, if that has changed.
    pub fn value(&mut self, valuation: &Valuation) {
        if self.told.as_ref().is_none_or(|told| !Arc::ptr_eq(told, &valuation.worths)) {
            self.tier.value(valuation);
            self.told = Some(Arc::clone(&valuation.worths));
        }
    }
}

/// Where a tier has the chunks of a path.
#[derive(Clone, Copy)]
pub(crate) struct Whence<'a> {
    pub domain: DomainId,
    /// Under the name of a path from which it is carried on, and not under its own: that one's tokens, and by how many of
    /// them places there are further on.
    pub elsewhere: Option<(&'a [TokenId], usize)>,
}

/// For whom something is loaded, and how many chunks more he may have on their way.
pub(crate) struct Room {
    pub who: For,
    chunks: usize,
}

impl Engine {
    /// The same engine over a tier. To be called before the first request.
    pub fn with_tier(mut self, tier: Box<dyn Tier>) -> Engine {
        self.tiers.insert(Tiers::new(tier)).value(self.cache.valuation());
        self
    }

    fn room(&self, who: For) -> Room {
        Room { who, chunks: self.tiers.as_ref().map_or(0, |tiers| tiers.tier.room(who)) }
    }

    /// Off: steps start when all that they read has arrived. What layer-wise loading is worth is measured so.
    pub fn set_layer_wise(&mut self, on: bool) {
        if let Some(tiers) = &mut self.tiers {
            tiers.layer_wise = on;
        }
    }

    /// Drops from RAM whatever nobody uses. Between steps only.
    pub fn evict_all(&mut self) {
        assert!(self.in_step.is_none(), "evicting between steps only");
        self.cache.evict_all();
    }

    /// Whether something is on its way, so that `plan` may have work though it had none a moment ago.
    pub fn is_loading(&self) -> bool {
        self.tiers.as_ref().is_some_and(|tiers| !tiers.active.is_empty())
    }

    /// Whole chunks that no tier holds yet, where the engine was told to keep them in mind. Between steps only; their
    /// slabs may change with the next plan.
    pub fn unsaved(&mut self) -> Option<Unsaved> {
        debug_assert!(self.in_step.is_none());
        self.cache.unsaved(EXTENT)
    }

    /// The first `n` of these chunks are saved, or need not be.
    pub fn saved(&mut self, n: usize) {
        self.cache.saved(n);
    }

    /// Tokens of a path that need not be computed: those in the tree, and behind them those that are worth loading or are
    /// carried on.
    pub(crate) fn expect(&self, domain: DomainId, tokens: &[TokenId], carry: Option<&Carry>) -> usize {
        let here = self.cache.probe(domain, tokens);
        let whole = here / CHUNK * CHUNK;
        let found = self.found(domain, tokens, whole, whole).unwrap_or_default();
        let whole = whole + (found.public + found.own) * CHUNK;
        let (copied, loaded) = carry.map_or((0, 0), |carry| self.expect_carried(tokens, carry, whole));
        here.max(whole + copied + loaded).min(tokens.len())
    }

    /// What the tier has of `tokens` behind the first `from`; `None` if computing it behind the first `place` of a path takes
    /// less time than loading it now.
    pub(crate) fn found(&self, domain: DomainId, tokens: &[TokenId], from: usize, place: usize) -> Option<Found> {
        let Some(Tiers { tier, .. }) = &self.tiers else { return Some(Found::default()) };
        if tokens.len() < from + CHUNK {
            return Some(Found::default());
        }
        let found = tier.probe(domain, tokens, from);
        let chunks = found.public + found.own;
        let slow = |computed| tier.estimate(chunks) > computed;
        let slow = chunks > 0 && self.budget.time_of(chunks * CHUNK, place / CHUNK).is_some_and(slow);
        (!slow).then_some(found)
    }

    /// Before a plan: drops what was lost, is wanted no more, or takes longer than computing it.
    pub(crate) fn poll_tier(&mut self, now: Micros) {
        if !self.is_loading() {
            return;
        }
        let Some(mut tiers) = self.tiers.take() else { return };
        tiers.active.iter_mut().for_each(|load| load.state = tiers.tier.state(load.id));
        let mut lost = self.give_up(&mut tiers, now);
        // The last ones first: what they bring lies below what the others bring.
        tiers.active.reverse();
        tiers.active.retain_mut(|load| {
            if let Some(place) = load.state.lost
                && let Some(&(_, node)) = load.nodes.iter().find(|n| n.0 == place)
            {
                lost |= self.cache.stands(node);
                self.cache.missed(node);
                self.stats.tier.lost += 1;
            }
            let cache = &mut self.cache;
            load.drop_gone(cache, &mut *tiers.tier);
            let below = load.nodes.iter().skip(1).map(|n| Some(n.1)).chain([None]);
            let wanted = load.nodes.iter().zip(below).any(|(n, below)| cache.wanted(n.1, below))
                // What rests until a step takes it is in the way of others, if none will.
                && (!load.state.held || self.running.iter().any(|s| load.is_awaited(cache, s)));
            if !wanted {
                self.stats.tier.dropped += u64::from(!load.nodes.is_empty());
                load.nodes.drain(..).rev().for_each(|(_, node)| cache.missed(node));
                tiers.tier.end(load.id);
            }
            wanted
        });
        tiers.active.reverse();
        self.tiers = Some(tiers);
        if lost {
            self.reseat();
        }
    }

    /// Takes loads out of the tree that take longer than computing what they bring; whoever waited for one computes, whatever
    /// the tier says of the next try. Whether there was one.
    fn give_up(&mut self, tiers: &mut Tiers, now: Micros) -> bool {
        let layers = self.info.layout.layers.len();
        let mut some = false;
        for load in tiers.active.iter_mut().filter(|load| load.state.layers < layers) {
            let awaits = |&i: &usize| load.is_awaited(&self.cache, &self.running[i]);
            let waiting: Vec<usize> = (0..self.running.len()).filter(awaits).collect();
            let Active { nodes, state, since, behind, .. } = load;
            if waiting.is_empty() {
                continue;
            }
            let waited = now.saturating_sub(*since.get_or_insert(now));
            let computed = self.budget.time_of(nodes.len() * CHUNK, *behind / CHUNK);
            if too_slow(*state, waited, computed) {
                some = true;
                self.stats.tier.too_slow += 1;
                waiting.into_iter().for_each(|i| self.running[i].computes = true);
                nodes.iter().rev().for_each(|n| self.cache.missed(n.1));
            }
        }
        some
    }

    /// Brings what need not be computed of a running sequence's tokens behind its path: loads what the tier has of it, and
    /// carries on what its sources have. False: there is more than there is room for now, but something on its way will
    /// make room, though `s` does not run.
    pub(crate) fn bring(&mut self, s: &mut Sequence, now: Micros) -> bool {
        if s.tokens.len() - s.path.used / CHUNK * CHUNK < s.least_brought() {
            return true;
        }
        let loads = self.tiers.is_some() && !s.computes && !self.requests[&s.id].scoring();
        let carry = s.carry.clone();
        // Whoever is looked at just now leaves a vacant place.
        let alone = self.running.iter().all(|other| other.tokens.is_empty());
        let mut room = self.room(if alone { For::Alone } else { For::Running });
        loop {
            let before = s.path.used;
            let mut enough = !loads || self.begin_load(s, &mut room);
            if let Some(carry) = carry.as_deref().filter(|_| enough) {
                self.copy_carried(s, carry, now);
                enough = !loads || self.load_carried(s, carry, &mut room);
            }
            if !enough || carry.is_none() || s.path.used == before {
                // Rows behind a part would take the place of what is still to be brought.
                return enough || !self.will_have_room(s.suspect);
            }
        }
    }

    /// Whether something on its way will make room: it goes on by itself, or somebody else takes it, unless no others run.
    fn will_have_room(&self, by_itself: bool) -> bool {
        let taken = |load: &Active| !by_itself && self.running.iter().any(|s| load.is_awaited(&self.cache, s));
        self.tiers.as_ref().is_some_and(|tiers| tiers.active.iter().any(|load| !load.state.held || taken(load)))
    }

    /// Begins to load for those in the queue whose turn is near, in room that nobody wants: AttentionStore's look-ahead
    /// window, which ends where the room does.
    pub(crate) fn read_ahead(&mut self, now: Micros) {
        if !self.config.look_ahead || self.room(For::Waiting).chunks == 0 {
            return;
        }
        // What was read ahead may have had to go again.
        let short = self.cache.take_short();
        if !short.is_empty() {
            self.waiting.iter_mut().filter(|s| short.contains(&s.ticket())).for_each(|s| s.read_ahead = false);
        }
        let mut order: Vec<usize> = (0..self.waiting.len()).filter(|&i| !self.waiting[i].read_ahead).collect();
        order.sort_by_key(|&i| (self.waiting[i].rank, self.waiting[i].number));
        for i in order {
            let mut s = std::mem::replace(&mut self.waiting[i], Sequence::vacant());
            let scoring = self.requests[&s.id].scoring();
            let mut more = true;
            if !scoring {
                self.cache.follow(&mut s.path, s.domain, &s.tokens, now);
                let mut room = self.room(For::Waiting);
                more = self.begin_load(&mut s, &mut room);
                if let Some(carry) = s.carry.clone().filter(|_| more) {
                    more = self.load_carried(&mut s, &carry, &mut room);
                }
                self.cache.protect(s.ticket(), s.domain, &s.tokens, s.rank);
                self.cache.release(std::mem::take(&mut s.path));
            }
            s.read_ahead = more;
            self.waiting[i] = s;
            if !more {
                return;
            }
        }
    }

    /// Takes room for what the tier has behind a path, as far as there is room, and begins to load it. The path then
    /// leads over it. False: there was not enough room, or for somebody who waits too much is on its way.
    fn begin_load(&mut self, s: &mut Sequence, room: &mut Room) -> bool {
        let whole = s.path.used / CHUNK * CHUNK;
        let Some(found) = self.found(s.domain, &s.tokens, whole, whole) else {
            // Who waits asks again when less is on its way.
            return room.who != For::Waiting || !self.is_loading();
        };
        if whole + (found.public + found.own) * CHUNK <= s.path.used {
            return true;
        }
        let parts = [(DomainId::PUBLIC, found.public), (s.domain, found.own)];
        let mut parts = parts.into_iter().filter(|part| part.1 > 0);
        parts.all(|(domain, chunks)| self.load_run(s, Whence { domain, elsewhere: None }, chunks, room))
    }

    /// Takes room for the next `chunks` of a path, as far as there is room, and begins to load them from where the tier has
    /// them. False: there was not enough room.
    pub(crate) fn load_run(&mut self, s: &mut Sequence, whence: Whence, chunks: usize, room: &mut Room) -> bool {
        let public = whence.elsewhere.is_none() && whence.domain == DomainId::PUBLIC;
        let tiers = self.tiers.as_mut().expect("it found something");
        let ahead = room.who == For::Waiting;
        let most = chunks.min(room.chunks);
        let mut nodes = Vec::new();
        while nodes.len() < most {
            let Some(node) = self.cache.adopt(&mut s.path, s.domain, &s.tokens, public, ahead) else {
                break;
            };
            nodes.push(node);
        }
        if nodes.is_empty() {
            return false;
        }
        room.chunks -= nodes.len();
        let slabs: Vec<ChunkId> = nodes.iter().map(|&node| self.cache.slab(node)).collect();
        tiers.next += 1;
        let id = LoadId(tiers.next);
        let used = s.path.used;
        let tokens = whence.elsewhere.map_or(&s.tokens[..used], |(tokens, shift)| &tokens[..used + shift]);
        tiers.tier.load(Load { id, domain: whence.domain, tokens, chunks: &slabs, urgent: !ahead });
        let state = tiers.tier.state(id);
        self.stats.tier.loads += 1;
        self.stats.tier.read_ahead += u64::from(ahead);
        self.stats.tier.tokens += (nodes.len() * CHUNK) as u64;
        let enough = nodes.len() == chunks;
        let behind = used - nodes.len() * CHUNK;
        // What it found or computed before it had to give way, and loads again, is counted already.
        let request = self.requests.get_mut(&s.id).expect("somebody asked for it");
        request.loaded += used.min(request.prompt).saturating_sub(behind.max(request.counted)) as u32;
        let nodes = nodes.into_iter().enumerate().collect();
        let carried = whence.elsewhere.is_some();
        tiers.active.push(Active { id, nodes, state, since: None, awaited: false, behind, carried });
        enough
    }

    /// Whether a running sequence's rows can be planned: everything on its path has arrived, or will have by the time
    /// that the layers get to it.
    pub(crate) fn may_run(&mut self, i: usize) -> bool {
        if !self.is_loading() {
            return true;
        }
        let s = &self.running[i];
        let mut waits: Vec<NodeId> = self.cache.arriving(&s.path).collect();
        if waits.is_empty() {
            return true;
        }
        waits.sort_unstable();
        let layers = self.info.layout.layers.len();
        let rows = s.pending().min(self.config.max_step_rows);
        let step = self.budget.time_of(rows, s.path.used / CHUNK);
        // Nobody else is held up by a step that waits: it may wait as long again as it computes.
        let alone = self.running.len() == 1;
        let Some(tiers) = &mut self.tiers else { return true };
        let awaits = |load: &&mut Active| load.nodes.iter().any(|n| waits.binary_search(&n.1).is_ok());
        tiers.active.iter_mut().filter(awaits).all(|load| {
            tiers.tier.hurry(load.id);
            if load.state.layers < layers && !std::mem::replace(&mut load.awaited, true) {
                self.stats.tier.awaited += (load.nodes.len() * CHUNK) as u64;
            }
            let early = || match step {
                Some(step) => in_time(load.state, layers, step, if alone { step } else { step / 20 }),
                None => alone && load.state.left <= UNKNOWN,
            };
            load.state.layers == layers || load.state.held || tiers.layer_wise && early()
        })
    }

    /// In a plan whose rows are known: takes over what has arrived whole, and names the chunks on their way that rows of
    /// the step attend to or copy from.
    pub(crate) fn plan_arrivals(&mut self) {
        let copies = std::mem::take(&mut self.copies);
        self.plan.prepare.splice(0..0, copies);
        if !self.is_loading() {
            return;
        }
        let layers = self.info.layout.layers.len();
        let Some(tiers) = &mut self.tiers else { return };
        let mut installs = Vec::new();
        tiers.active.iter_mut().for_each(|load| load.drop_gone(&self.cache, &mut *tiers.tier));
        for load in tiers.active.iter_mut().filter(|load| load.state.layers == layers) {
            for (_, node) in load.nodes.drain(..) {
                installs.push(Prepare::Install(self.cache.slab(node)));
                take_over(&mut self.cache, node, load.carried);
            }
        }
        self.plan.prepare.splice(0..0, installs);
        let plan = &mut self.plan;
        let sources = plan.prepare.iter().filter_map(|p| match p {
            Prepare::Copy { from, .. } => Some(from),
            Prepare::Zero(_) | Prepare::Install(_) => None,
        });
        let read = plan.classes[0].chunks.iter().chain(sources);
        plan.arriving.extend(read.filter(|&&chunk| self.cache.is_arriving(chunk)));
        plan.arriving.sort_unstable();
        plan.arriving.dedup();
    }

    /// Whether a plan has something to take over, rows or not.
    pub(crate) fn has_arrivals(&self) -> bool {
        if !self.copies.is_empty() {
            return true;
        }
        let layers = self.info.layout.layers.len();
        self.tiers.as_ref().is_some_and(|tiers| {
            let standing = |load: &Active| load.nodes.iter().any(|n| self.cache.stands(n.1));
            tiers.active.iter().any(|load| load.state.layers == layers && standing(load))
        })
    }

    /// After a step: what rows waited for in every layer has arrived. What did not come is out of the tree already.
    pub(crate) fn note_arrivals(&mut self, output: &StepOutput, all_lost: bool) {
        let Some(tiers) = &mut self.tiers else { return };
        for load in &mut tiers.active {
            load.nodes.retain(|&(_, node)| {
                if !self.cache.stands(node) {
                    return false;
                }
                let chunk = self.cache.slab(node);
                let filled = !all_lost && self.plan.arriving.binary_search(&chunk).is_ok();
                if filled && !output.gone.contains(&chunk) {
                    take_over(&mut self.cache, node, load.carried);
                    return false;
                }
                true
            });
        }
        tiers.active.retain(|load| {
            if load.nodes.is_empty() {
                tiers.tier.end(load.id);
            }
            !load.nodes.is_empty()
        });
    }
}

/// A chunk has come. The tier holds it already, but not under the name of a path to which it is carried.
fn take_over(cache: &mut Cache, node: NodeId, carried: bool) {
    cache.arrived(node);
    if carried {
        cache.unsaved_again(node);
    }
}

/// Whether layers that take `step` microseconds together meet each slice when it has arrived, but for a wait of `slack`.
fn in_time(state: LoadState, layers: usize, step: Micros, slack: Micros) -> bool {
    let missing = layers - state.layers;
    let (load, compute) = (state.left as f64 / missing as f64, step as f64 / layers as f64);
    // Slices arrive at an even pace: if the first and the last one that are missing are in time, all are.
    let first = load - compute * state.layers as f64;
    let last = state.left as f64 - compute * (layers - 1) as f64;
    first.max(last) <= slack as f64
}

/// Whether somebody who has waited so long for a load had better compute what it brings, which takes `computed`. Whatever
/// a tier says, the wait ends, after a time in proportion to what is lost by it.
fn too_slow(state: LoadState, waited: Micros, computed: Option<Micros>) -> bool {
    match computed {
        Some(computed) => state.left > computed || waited > 2 * computed.max(SHORTEST),
        None => waited > LONGEST,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_starts_when_the_rest_arrives_behind_it() {
        let state = |layers, left| LoadState { layers, left, lost: None, held: false };
        // 10 layers of 100 us each. A load as fast as the layers may start with one layer there, a faster one at once.
        assert!(in_time(state(1, 900), 10, 1000, 50));
        assert!(in_time(state(0, 500), 10, 1000, 50));
        assert!(!in_time(state(0, 2000), 10, 1000, 50));
        // Half as fast as the layers: it takes about half of them.
        assert!(!in_time(state(4, 1200), 10, 1000, 50));
        assert!(in_time(state(6, 800), 10, 1000, 50));
        // Who is alone starts sooner.
        assert!(in_time(state(1, 1800), 10, 1000, 1000));
    }

    #[test]
    fn who_waits_for_a_slow_load_computes() {
        let left = |left| LoadState { layers: 0, left, lost: None, held: false };
        assert!(!too_slow(left(90_000), 100_000, Some(100_000)));
        assert!(too_slow(left(110_000), 0, Some(100_000)));
        assert!(too_slow(left(10), 200_001, Some(100_000)));
        assert!(!too_slow(left(u64::MAX), LONGEST, None));
        assert!(too_slow(left(0), LONGEST + 1, None));
    }
}
