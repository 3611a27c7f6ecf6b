//! What the store holds, in memory: a tree of chunks for each domain. Chunks are found by their tokens and by nothing else.

use std::collections::HashMap;
use std::sync::Arc;

use kvist_base::eviction::{Class, Leaf, Leaves};
use kvist_base::{CHUNK, Micros, TokenId};

use crate::crypto::{Key, Tag, keyed};
use crate::keys::DomainKeys;

pub(crate) type NodeId = u32;

/// Where a chunk is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub segment: u64,
    /// Index into the segment's extents.
    pub extent: u32,
    /// Index of the chunk in the extent as it was saved.
    pub chunk: u8,
}

#[derive(Clone, Debug)]
pub(crate) enum Data {
    /// Only what lies below it on its path is here, or was.
    Absent,
    /// Waits to be written.
    Queued(Arc<Vec<u8>>),
    Stored(Place),
}

pub(crate) struct Node {
    pub tokens: Box<[TokenId; CHUNK]>,
    pub parent: Option<NodeId>,
    pub children: Vec<NodeId>,
    pub domain: usize,
    /// Index of the chunk on its path.
    pub depth: u32,
    /// What the path up to here is called in records: keyed BLAKE3 over parent and tokens.
    pub chain: Key,
    pub data: Data,
    /// Time of the last use in microseconds; negative: before this process.
    pub used: i64,
    /// What is expected of it since a request that used it ended in this process.
    pub class: Class,
    pub pinned: bool,
}

impl Node {
    pub fn present(&self) -> bool {
        !matches!(self.data, Data::Absent)
    }
}

/// A domain's tree in the store, or that of a variant of it; its number never changes while the process lives.
pub(crate) struct Domain {
    pub keys: DomainKeys,
    pub name: String,
    /// Zeros for exact paths; paths whose KV follows from more than their tokens are in trees of their own.
    pub variant: Tag,
    roots: Vec<NodeId>,
    /// Chain key of the empty path.
    chain: Key,
    /// Its key is gone: nothing is found in it and nothing gets in.
    pub gone: bool,
}

impl Domain {
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }
}

#[derive(Default)]
pub(crate) struct Index {
    pub domains: Vec<Domain>,
    /// By a domain's uid and the variant; the latest.
    trees: HashMap<(Tag, Tag), usize>,
    nodes: Vec<Option<Node>>,
    free: Vec<NodeId>,
    /// The stored chunks that may go, in order.
    pub leaves: Leaves,
    /// A broken comparison, so that tests can show that they would notice.
    pub by_hash_only: bool,
}

impl Index {
    /// The tree of a domain's variant; made if it is not there.
    pub fn tree(&mut self, name: &str, keys: &DomainKeys, variant: Tag, fingerprint: &Key) -> usize {
        let known = self.trees.get(&(keys.uid, variant)).copied();
        if let Some(at) = known.filter(|&at| !self.domains[at].gone) {
            return at;
        }
        let chain = keyed(&keys.chain, &[b"root", fingerprint, &variant]);
        let keys = keys.clone();
        self.trees.insert((keys.uid, variant), self.domains.len());
        self.domains.push(Domain { keys, name: name.into(), variant, roots: Vec::new(), chain, gone: false });
        self.domains.len() - 1
    }

    pub fn node(&self, id: NodeId) -> &Node {
        self.nodes[id as usize].as_ref().expect("ids of removed nodes are not kept")
    }

    /// The node, if there still is one; it may be another than the one that had this id.
    pub fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id as usize)?.as_ref()
    }

    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes[id as usize].as_mut().expect("ids of removed nodes are not kept")
    }

    /// The node if it is still there and still waits to be written with these bytes.
    pub fn queued(&mut self, id: NodeId, bytes: &Arc<Vec<u8>>) -> Option<&mut Node> {
        let node = self.nodes[id as usize].as_mut()?;
        matches!(&node.data, Data::Queued(b) if Arc::ptr_eq(b, bytes)).then_some(node)
    }

    pub fn ids(&self) -> impl Iterator<Item = NodeId> + '_ {
        (0..).zip(&self.nodes).filter(|(_, node)| node.is_some()).map(|(id, _)| id)
    }

    pub fn children(&self, domain: usize, parent: Option<NodeId>) -> &[NodeId] {
        match parent {
            Some(id) => &self.node(id).children,
            None => &self.domains[domain].roots,
        }
    }

    /// Where the child with these tokens is among its siblings, or would be.
    fn place(&self, domain: usize, parent: Option<NodeId>, tokens: &[TokenId]) -> Result<usize, usize> {
        let children = self.children(domain, parent);
        if self.by_hash_only {
            let hash = |t: &[TokenId]| t.iter().fold(0u32, |a, t| a.wrapping_add(*t));
            let at = children.iter().position(|&c| hash(&self.node(c).tokens[..]) == hash(tokens));
            return at.ok_or(children.len());
        }
        children.binary_search_by(|&c| self.node(c).tokens[..].cmp(tokens))
    }

    pub fn child(&self, domain: usize, parent: Option<NodeId>, tokens: &[TokenId]) -> Option<NodeId> {
        self.place(domain, parent, tokens).ok().map(|at| self.children(domain, parent)[at])
    }

    /// The child with these tokens; made if it is not there, with nothing in it.
    pub fn child_or_insert(&mut self, domain: usize, parent: Option<NodeId>, tokens: &[TokenId]) -> NodeId {
        let at = match self.place(domain, parent, tokens) {
            Ok(at) => return self.children(domain, parent)[at],
            Err(at) => at,
        };
        let (depth, above) = match parent {
            Some(id) => (self.node(id).depth + 1, self.node(id).chain),
            None => (0, self.domains[domain].chain),
        };
        let node = Node {
            tokens: Box::new(std::array::from_fn(|i| tokens[i])),
            parent,
            children: Vec::new(),
            domain,
            depth,
            chain: chain(&self.domains[domain].keys.chain, &above, tokens),
            data: Data::Absent,
            used: 0,
            class: Class::UNKNOWN,
            pinned: false,
        };
        let id = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(None);
            self.nodes.len() as NodeId - 1
        });
        self.nodes[id as usize] = Some(node);
        match parent {
            Some(parent) => {
                self.node_mut(parent).children.insert(at, id);
                self.refresh(parent);
            }
            None => self.domains[domain].roots.insert(at, id),
        }
        id
    }

    /// Chain key of a path that ends at `parent`.
    pub fn chain(&self, domain: usize, parent: Option<NodeId>) -> Key {
        parent.map_or(self.domains[domain].chain, |id| self.node(id).chain)
    }

    /// The nodes along `tokens`, as far as they go.
    pub fn walk<'a>(&'a self, domain: usize, tokens: &'a [TokenId]) -> impl Iterator<Item = NodeId> + 'a {
        let mut parent = None;
        tokens.as_chunks::<CHUNK>().0.iter().map_while(move |chunk| {
            parent = Some(self.child(domain, parent, chunk)?);
            parent
        })
    }

    /// Whether a node may go, and what its place among those that may follows from.
    fn leaf(&self, id: NodeId) -> Option<Leaf> {
        let node = self.get(id)?;
        let may_go = node.children.is_empty() && !node.pinned && matches!(node.data, Data::Stored(_));
        may_go.then(|| Leaf { class: node.class, depth: node.depth, last: moment(node.used) })
    }

    /// To be called after a change of what decides whether a node may go, and when.
    pub fn refresh(&mut self, id: NodeId) {
        let leaf = self.leaf(id);
        if self.leaves.standing(id) != leaf {
            self.leaves.stand(id, leaf);
        }
    }

    /// Since when a new node counts as used.
    pub fn arrival(&self, id: NodeId, now: i64) -> i64 {
        let above = self.node(id).parent.map(|above| moment(self.node(above).used));
        self.leaves.valuation().arrival(above, moment(now)) as i64 - START
    }

    /// A node is used.
    pub fn touch(&mut self, id: NodeId, now: i64) {
        if self.leaves.valuation().counts_uses() {
            self.node_mut(id).used = now;
            self.refresh(id);
        }
    }

    /// Removes the node if nothing is in it or below it, and then its ancestors likewise.
    pub fn prune(&mut self, mut id: NodeId) {
        loop {
            let node = self.node(id);
            if node.present() || !node.children.is_empty() || node.pinned {
                return self.refresh(id);
            }
            let (domain, parent) = (node.domain, node.parent);
            let list = match parent {
                Some(parent) => &mut self.node_mut(parent).children,
                None => &mut self.domains[domain].roots,
            };
            list.retain(|&c| c != id);
            self.nodes[id as usize] = None;
            self.free.push(id);
            self.leaves.left(id, parent);
            match parent {
                Some(parent) => id = parent,
                None => return,
            }
        }
    }

    /// The tokens of the path that ends at a node.
    pub fn path(&self, id: NodeId) -> Vec<TokenId> {
        let mut chunks = Vec::new();
        let mut at = Some(id);
        while let Some(id) = at {
            chunks.push(&self.node(id).tokens[..]);
            at = self.node(id).parent;
        }
        chunks.reverse();
        chunks.concat()
    }

    /// What every operation relies on. Returns the first violation.
    pub fn check(&self) -> Result<(), String> {
        for id in self.ids() {
            let node = self.node(id);
            let siblings = self.children(node.domain, node.parent);
            if siblings.iter().filter(|&&c| c == id).count() != 1 {
                return Err(format!("node {id} is not exactly once below its parent"));
            }
            if !siblings.is_sorted_by(|&a, &b| self.node(a).tokens < self.node(b).tokens) {
                return Err(format!("siblings of node {id} are not in order"));
            }
            if !node.present() && node.children.is_empty() && !node.pinned {
                return Err(format!("node {id} holds nothing"));
            }
            if node.parent.is_some_and(|p| self.node(p).depth + 1 != node.depth) {
                return Err(format!("node {id} is at the wrong depth"));
            }
        }
        self.leaves.check(|id| self.leaf(id), |id| self.get(id).is_some())
    }
}

/// When this process began, as the order of eviction counts: there is room for what was before.
const START: i64 = 1 << 62;

/// A time of use as the order of eviction counts.
pub(crate) fn moment(time: i64) -> Micros {
    (time + START) as Micros
}

/// Chain key of a path whose last chunk is `tokens` and whose rest is called `above`.
pub(crate) fn chain(key: &Key, above: &Key, tokens: &[TokenId]) -> Key {
    let mut bytes = [0; CHUNK * 4];
    for (to, token) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(tokens) {
        *to = token.to_le_bytes();
    }
    keyed(key, &[above, &bytes])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(n: u32) -> Vec<TokenId> {
        (0..CHUNK as u32).map(|i| n * 1000 + i).collect()
    }

    #[test]
    fn chunks_are_found_by_their_tokens_below_their_parents() {
        let mut index = Index::default();
        let keys = |n| DomainKeys { uid: [n; 16], key: [n; 32], chain: [n; 32] };
        let domain = index.tree("a", &keys(1), [0; 16], &[0; 32]);
        let other = index.tree("b", &keys(2), [0; 16], &[0; 32]);
        assert_eq!(index.tree("a", &keys(1), [0; 16], &[0; 32]), domain);
        let store = |index: &mut Index, domain, numbers: &[u32]| {
            let parent = numbers.iter().fold(None, |parent, &n| Some(index.child_or_insert(domain, parent, &chunk(n))));
            index.node_mut(parent.unwrap()).data = Data::Queued(Arc::default());
            parent.unwrap()
        };
        let abc = store(&mut index, domain, &[1, 2, 3]);
        let abd = store(&mut index, domain, &[1, 2, 4]);
        let b = store(&mut index, other, &[2]);
        let path = [chunk(1), chunk(2), chunk(3)].concat();
        assert_eq!(index.walk(domain, &path).last(), Some(abc));
        assert_eq!(index.path(abc), path);
        assert_eq!(index.walk(domain, &[chunk(1), chunk(3)].concat()).count(), 1);
        assert_eq!(index.walk(other, &path).count(), 0);
        assert_ne!(index.chain(domain, Some(abc)), index.chain(domain, Some(abd)));
        index.check().unwrap();
        // What is empty goes, as far up as nothing else hangs from it.
        index.node_mut(abd).data = Data::Absent;
        index.prune(abd);
        assert_eq!(index.walk(domain, &path).count(), 3);
        index.node_mut(abc).data = Data::Absent;
        index.prune(abc);
        assert_eq!(index.ids().collect::<Vec<_>>(), [b]);
        index.check().unwrap();
    }
}
