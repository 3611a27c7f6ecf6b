//! Open chunks, where sealed ones are encoded. A row sees the chunk in which it lies as it was written, and every chunk
//! before it encoded. So a chunk that fills up is sealed when its step ends, and what was written stays beside it as long
//! as the slab is not needed for another chunk. A path that ends or parts inside a sealed chunk finds its slots there, or
//! computes them again: a chunk's rows at most.

use kvist_base::{CHUNK, Prepare};

use crate::claim::Claim;
use crate::node::Arena;
use crate::path::Path;
use crate::policy::Place;
use crate::tree::Cache;

impl Cache {
    /// Begins a plan: slabs for open chunks that were needed until now may be given to others.
    pub fn begin(&mut self) {
        self.turn += 1;
    }

    /// The first row to be run so that the row at `pos` can be: `pos` itself, unless slots before it in its chunk are
    /// there no more. Keeps what is there until the next [`Cache::begin`].
    pub fn resume(&mut self, path: &Path, pos: usize) -> usize {
        let Some(&id) = path.nodes.get(pos / CHUNK) else { return pos };
        let index = self.arena.index(id);
        let node = &mut self.arena[index];
        node.needed = self.turn;
        pos - (pos % CHUNK).saturating_sub(node.dense())
    }

    /// Rows of tokens that the path holds, from `pos` on, at most `max` and within one chunk. [`Claim::Held`] where what
    /// they attend to is there; [`Claim::Slots`] where slots of a sealed chunk are to be computed again, in the step that
    /// [`Cache::commit`] ends, and others of the step may attend to them at once.
    ///
    /// # Panics
    /// If the path does not hold `pos`, if `max` is 0, or if slots before `pos` are missing: see [`Cache::resume`].
    pub fn reopen(&mut self, path: &mut Path, pos: usize, max: usize, prepare: &mut Vec<Prepare>) -> Claim {
        self.sync(path);
        assert!(pos < path.used && max > 0, "nothing to reopen");
        let (index, slot) = (path.nodes[pos / CHUNK].index, pos % CHUNK);
        let most = max.min(path.used - pos).min(CHUNK - slot);
        self.arena[index].needed = self.turn;
        let dense = self.arena[index].dense();
        if dense > slot {
            return Claim::Held { n: most.min(dense - slot) as u8 };
        }
        assert!(dense == slot, "slots before {pos} are missing");
        if self.arena[index].open.is_none() {
            let Some(slab) = self.take_open() else { return Claim::Full };
            self.arena.open(index, slab);
            prepare.push(Prepare::Zero(self.arena.open_chunk(index).expect("it was just opened")));
            self.reopened += 1;
        }
        self.mark(index, self.arena[index].valid);
        self.arena[index].warm += most as u8;
        let chunk = self.arena.open_chunk(index).expect("it is open");
        Claim::Slots { chunk, first_slot: slot as u8, n: most as u8, seals: None }
    }

    /// A slab for an open chunk: a free one, that of the sealed chunk that did not need it for longest, or that of the open
    /// chunk that is worth least.
    pub(crate) fn take_open(&mut self) -> Option<u32> {
        let opens = self.arena.opens.as_ref().expect("slabs for open chunks");
        if opens.free.is_empty() {
            let idle = |&index: &u32| {
                let node = &self.arena[index];
                node.sealed && !node.claimed && node.needed < self.turn
            };
            let sealed = opens.owners.iter().flatten().copied().filter(idle).min_by_key(|&i| (self.arena[i].needed, i));
            if let Some(index) = sealed {
                self.arena.close(index);
            } else {
                let leaves = opens.owners.iter().flatten().filter_map(|&i| Some((self.arena[i].place?, i)));
                let order = |&(place, i): &(Place, u32)| (place.guard, self.worth(place.band, place.last), place, i);
                let (_, index) = leaves.min_by_key(order)?;
                self.evictions += 1;
                self.drop_leaf(index);
            }
        }
        self.arena.opens.as_mut().expect("slabs for open chunks").free.pop()
    }

    /// Whether a slab for an open chunk is given to each chunk that starts.
    pub(crate) fn encodes(&self) -> bool {
        self.arena.opens.is_some()
    }

    /// The chunk that a claim which fills the node up seals.
    pub(crate) fn sealed_by(&self, index: u32) -> Option<kvist_base::ChunkId> {
        (self.encodes() && self.arena[index].len() == CHUNK).then(|| Arena::chunk(index))
    }
}
