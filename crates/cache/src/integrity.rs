//! The invariants of the tree, checked by brute force.

use kvist_base::CHUNK;

use crate::node::{Arena, Node, ROOT, State};
use crate::tree::Cache;

macro_rules! ensure {
    ($ok:expr, $($words:tt)+) => {
        if !$ok {
            return Err(format!($($words)+));
        }
    };
}

impl Cache {
    /// Checks every invariant. Takes time in proportion to the pool; for tests and for the operator.
    ///
    /// # Errors
    /// The first violation, in words.
    pub fn check_integrity(&self) -> Result<(), String> {
        let mut linked = vec![false; self.arena.indices().end as usize];
        linked[ROOT as usize] = true;
        let mut stack = vec![ROOT];
        while let Some(parent) = stack.pop() {
            self.check_children(parent)?;
            for &child in &self.arena[parent].children {
                ensure!(!linked[child as usize], "node {child} hangs in two places");
                linked[child as usize] = true;
                stack.push(child);
            }
        }

        let mut held = vec![0; linked.len()];
        held[ROOT as usize] = 1;
        for index in self.arena.indices() {
            let node = &self.arena[index];
            if node.refs > 0 && node.state != State::Free {
                held[node.parent as usize] += 1;
            }
            held[index as usize] += u32::from(node.claimed);
        }
        let (mut pinned, mut nodes, mut tokens, mut queued) = (0, 0, 0, 0);
        for index in self.arena.indices() {
            let node = &self.arena[index];
            ensure!(node.refs >= held[index as usize], "node {index}: {} pins, more hold it", node.refs);
            ensure!(linked[index as usize] == node.is_linked(), "node {index}: {:?}, the tree differs", node.state);
            match node.state {
                State::Free => ensure!(node.refs == 0 && !node.claimed, "node {index}: free and in use"),
                State::Linked => {
                    self.check_linked(node).map_err(|error| format!("node {index}: {error}"))?;
                    nodes += 1;
                    tokens += node.len() as u64;
                }
                State::Unlinked | State::Merged => {
                    ensure!(node.refs > 0, "node {index}: left the tree and is not freed");
                    ensure!(node.children.is_empty(), "node {index}: left the tree, its children did not");
                }
            }
            if node.state == State::Merged {
                ensure!(self.arena[node.parent].is_public(), "node {index}: merged into a private node");
            }
            pinned += u32::from(node.refs > 0);
            let evictable = node.is_linked() && node.refs == 0 && node.children.is_empty();
            let place = evictable.then(|| self.place(index));
            ensure!(node.place == place, "node {index}: its place in the eviction queue is wrong");
            if let Some(place) = place {
                ensure!(self.queue.contains(place, index), "node {index}: missing in the eviction queue");
                queued += 1;
            }
        }
        ensure!(self.arena[ROOT].refs == held[ROOT as usize], "the root's pins are wrong");
        ensure!(queued == self.queue.len(), "the eviction queue has entries of its own");
        ensure!(
            (pinned, nodes, tokens) == (self.pinned, self.linked, self.tokens),
            "counted {pinned} pinned, {nodes} nodes, {tokens} tokens; noted {} {} {}",
            self.pinned,
            self.linked,
            self.tokens
        );
        let arriving = self.arena.indices().filter(|&index| self.arena[index].arriving).count();
        ensure!(arriving == self.arena.arriving as usize, "{arriving} nodes arriving, noted {}", self.arena.arriving);
        self.check_free()?;
        self.check_open()?;
        for &(index, _) in &self.claimed {
            ensure!(self.arena[index].claimed, "node {index}: in the list of claims, not marked");
        }
        let marked = self.arena.indices().filter(|&index| self.arena[index].claimed).count();
        ensure!(marked == self.claimed.len(), "{marked} nodes marked as claimed, {} in the list", self.claimed.len());
        self.guards.check(|index| linked[index as usize])
    }

    fn check_free(&self) -> Result<(), String> {
        let mut free = self.arena.free_list().to_vec();
        free.sort_unstable();
        let states = self.arena.indices().filter(|&index| self.arena[index].state == State::Free);
        ensure!(states.eq(free), "the free list differs from the states");
        Ok(())
    }

    /// Slabs for open chunks, and who has them.
    fn check_open(&self) -> Result<(), String> {
        for index in self.arena.indices() {
            let node = &self.arena[index];
            let Some(opens) = &self.arena.opens else {
                ensure!(!node.sealed && node.open.is_none(), "node {index}: sealed where nothing is");
                continue;
            };
            let in_use = matches!(node.state, State::Linked | State::Unlinked);
            ensure!(in_use || node.open.is_none(), "node {index}: {:?} and open", node.state);
            ensure!(!in_use || node.sealed || node.open.is_some(), "node {index}: neither sealed nor open");
            ensure!(
                !node.is_linked() || node.claimed || node.sealed == (node.len() == CHUNK),
                "node {index}: sealed too soon"
            );
            ensure!(
                node.warm_valid <= node.warm && node.warm <= CHUNK as u8,
                "node {index}: more computed than claimed"
            );
            ensure!(node.warm == 0 || node.sealed && node.open.is_some(), "node {index}: slots in no slab");
            if let Some(slab) = node.open {
                ensure!(opens.owners[slab as usize] == Some(index), "node {index}: its open slab is another's");
            }
        }
        if let Some(opens) = &self.arena.opens {
            let mut free = opens.free.clone();
            free.sort_unstable();
            let nobody: Vec<u32> =
                (0..).zip(&opens.owners).filter(|(_, o)| o.is_none()).map(|(slab, _)| slab).collect();
            ensure!(free == nobody, "the free open slabs differ from those that nobody has");
            for (slab, owner) in (0..).zip(&opens.owners) {
                let has = owner.is_none_or(|index| self.arena[index].open == Some(slab));
                ensure!(has, "open slab {slab}: its node has another");
            }
        }
        Ok(())
    }

    fn check_linked(&self, node: &Node) -> Result<(), String> {
        ensure!(!node.tokens().is_empty(), "empty");
        ensure!(node.valid == node.len || node.claimed, "tokens that nobody computes");
        ensure!(node.valid <= node.len, "more computed than recorded");
        ensure!(!node.is_public() || node.valid() == CHUNK, "public and not whole");
        ensure!(!node.arriving || node.valid() == CHUNK, "arriving and not whole");
        ensure!(node.children.is_empty() || node.len() == CHUNK, "children below an open chunk");
        Ok(())
    }

    fn check_children(&self, parent: u32) -> Result<(), String> {
        let above = &self.arena[parent];
        for pair in above.children.windows(2) {
            let (a, b) = (&self.arena[pair[0]], &self.arena[pair[1]]);
            let order = (a.domain, a.tokens(), pair[0]) < (b.domain, b.tokens(), pair[1]);
            ensure!(order, "children {} and {} of {parent} out of order", pair[0], pair[1]);
            let twins = a.domain == b.domain && a.len() == CHUNK && a.tokens() == b.tokens();
            ensure!(!twins, "nodes {} and {} are the same whole chunk", pair[0], pair[1]);
        }
        for &child in &above.children {
            let node = &self.arena[child];
            ensure!(node.parent == parent, "node {child} does not know its parent {parent}");
            let depth = if parent == ROOT { 0 } else { above.depth + 1 };
            ensure!(node.depth == depth, "node {child}: depth {} instead of {depth}", node.depth);
            let domain = parent == ROOT || above.is_public() || above.domain == node.domain;
            ensure!(domain, "node {child} hangs below a node of another domain");
            let may_merge = !node.is_public() && !node.domain.is_carried();
            let twin = node.len() == CHUNK && may_merge && self.twin(parent, node);
            ensure!(!twin, "node {child} is the same whole chunk as a public one");
        }
        Ok(())
    }

    fn twin(&self, parent: u32, node: &Node) -> bool {
        self.arena.whole(parent, kvist_base::DomainId::PUBLIC, node.tokens()).is_some()
    }

    /// Where the node of a slab stands in the eviction queue, once it gets there.
    pub(crate) fn place_of(&self, chunk: kvist_base::ChunkId) -> crate::policy::Place {
        self.place(self.arena.of_chunk(chunk).expect("a slab of the pool"))
    }

    /// The slab of the node that a ticket protects.
    pub(crate) fn guarded(&self, ticket: u64) -> Option<kvist_base::ChunkId> {
        self.guards.node(ticket).filter(|&node| node != ROOT).map(Arena::chunk)
    }
}
