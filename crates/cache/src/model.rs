//! The naive model of the tree: every node with all its tokens from the root on, every answer by looking at all nodes.
//! Where the tree may choose (which of several equal nodes, which slab), the model checks the choice and adopts it.

use std::collections::{BTreeMap, BTreeSet};

use kvist_base::{CHUNK, DomainId, Micros, TokenId};

use crate::policy::{Class, End, Place, Returns, Visit, cost};
use crate::visit::Keys;

pub(crate) type Uid = u64;
pub(crate) const PUBLIC: u32 = 0;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub chunk: u32,
    pub domain: u32,
    /// From the root to the end of this node.
    pub text: Vec<TokenId>,
    /// Tokens from the root whose KV is computed.
    pub valid: usize,
    pub linked: bool,
    pub parent: Option<Uid>,
    pub class: Class,
    pub last: Micros,
    pub pinned: bool,
}

impl Node {
    pub fn start(&self) -> usize {
        (self.text.len() - 1) / CHUNK * CHUNK
    }

    pub fn sees(&self, domain: u32) -> bool {
        self.linked && (self.domain == PUBLIC || self.domain == domain)
    }
}

/// What a path must be. `pin` is the node that it pins, which lags behind `nodes` until the path is brought up to date.
#[derive(Clone, Debug, Default)]
pub(crate) struct Track {
    pub visit: Visit,
    pub domain: u32,
    pub text: Vec<TokenId>,
    pub nodes: Vec<Uid>,
    pub used: usize,
    pub pin: Option<Uid>,
}

#[derive(Debug)]
pub(crate) struct Model {
    pub slabs: u32,
    pub parity: u32,
    pub nodes: BTreeMap<Uid, Node>,
    pub next: Uid,
    /// Told the same as the tree's.
    pub returns: Returns,
    pub now: Micros,
    /// Ticket -> node (`None`: the root), rank.
    pub guards: BTreeMap<u64, (Option<Uid>, u32)>,
    /// Claimed in this step, with the tokens that were valid before; `None` for nodes that the step started.
    pub claimed: BTreeMap<Uid, Option<usize>>,
}

pub(crate) fn common(a: &[TokenId], b: &[TokenId]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Model {
    pub fn new(slabs: u32, parity: u32) -> Model {
        let returns = Returns::new(Returns::memory(slabs as usize));
        let (nodes, guards, claimed) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Model { slabs, parity, nodes, next: 0, returns, now: 0, guards, claimed }
    }

    pub fn enter(&mut self, domain: u32, text: &[TokenId]) -> Visit {
        let domain = DomainId(domain);
        let open = |known: usize| Some(Keys::open(domain, &text[..known * CHUNK], text.get(known * CHUNK)?));
        self.returns.arrive(self.now, Keys::new(domain, text), open)
    }

    pub fn leave(&mut self, track: &Track, prompt: usize) {
        let text = &track.text[..track.used];
        let (domain, at) = (DomainId(track.domain), text.len() / CHUNK * CHUNK);
        let mut keys: Vec<u64> = Keys::new(domain, text).collect();
        keys.extend(text.get(at).map(|first| Keys::open(domain, &text[..at], first)));
        let (known, reply) = (track.visit.known * CHUNK, text.len().saturating_sub(prompt) as u32);
        let fresh = prompt.saturating_sub(known) as u32;
        let end = End { prompt: prompt as u32, fresh, reply, open: at < text.len() };
        let (nodes, last) = (&mut self.nodes, self.now);
        self.returns.leave(last, &track.visit, &end, &keys, |level, class| {
            let node = nodes.get_mut(&track.nodes[level]).expect("pinned");
            (node.class, node.last) = (class, last);
        });
    }

    /// Longest prefix recorded and visible.
    pub fn held(&self, domain: u32, text: &[TokenId]) -> usize {
        self.visible(domain).map(|(_, node)| common(&node.text, text)).max().unwrap_or(0)
    }

    /// Longest prefix computed and visible.
    pub fn computed(&self, domain: u32, text: &[TokenId]) -> usize {
        let valid = |node: &Node| {
            let above = self.above(node).filter(|above| above.valid < above.text.len()).map(|above| above.valid);
            above.min().unwrap_or(node.valid)
        };
        self.visible(domain).map(|(_, node)| common(&node.text, text).min(valid(node))).max().unwrap_or(0)
    }

    pub fn visible(&self, domain: u32) -> impl Iterator<Item = (&Uid, &Node)> {
        self.nodes.iter().filter(move |(_, node)| node.sees(domain))
    }

    fn above<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = &'a Node> {
        std::iter::successors(Some(node), |node| node.parent.map(|parent| &self.nodes[&parent])).skip(1)
    }

    pub fn of_chunk(&self, chunk: u32) -> Option<Uid> {
        self.nodes.iter().find(|(_, node)| node.chunk == chunk).map(|(&uid, _)| uid)
    }

    pub fn is_leaf(&self, uid: Uid) -> bool {
        !self.nodes.values().any(|node| node.linked && node.parent == Some(uid))
    }

    pub fn rank(&self, uid: Uid) -> Option<u32> {
        self.guards.values().filter(|guard| guard.0 == Some(uid)).map(|guard| guard.1).min()
    }

    /// Nodes in use: those that a path or the step pins, and all above them.
    pub fn in_use<'a>(&self, tracks: impl Iterator<Item = &'a Track>) -> BTreeSet<Uid> {
        let mut used = BTreeSet::new();
        for pin in tracks.filter_map(|track| track.pin).chain(self.claimed.keys().copied()) {
            let mut next = Some(pin);
            while let Some(uid) = next
                && used.insert(uid)
            {
                next = self.nodes[&uid].parent;
            }
        }
        used
    }

    /// After each change of pins: frees what left the tree and is not in use, notes what is in use.
    pub fn settle<'a>(&mut self, tracks: impl Iterator<Item = &'a Track>) {
        let used = self.in_use(tracks);
        self.nodes.retain(|uid, node| node.linked || used.contains(uid));
        for (uid, node) in &mut self.nodes {
            node.pinned = used.contains(uid);
        }
    }

    pub fn place(&self, uid: Uid) -> Place {
        let node = &self.nodes[&uid];
        let guard = self.rank(uid).map_or(0, |rank| (1 << 32) - u64::from(rank));
        let cost = cost::band((node.start() / CHUNK) as u32, self.parity);
        Place { guard, band: node.class.index() as u32 * cost::BANDS + cost, last: node.last, tie: 0 }
    }

    fn worth(&self, place: Place) -> u128 {
        let class = Class::from_index((place.band / cost::BANDS) as usize);
        let returns = self.returns.worth(class, place.last, self.now);
        u128::from(returns) * u128::from(cost::cost(place.band % cost::BANDS))
    }

    /// The nodes of which one must be evicted next: those that nobody wants and that are worth least.
    pub fn victims(&self) -> Vec<Uid> {
        let leaf = |&(&uid, node): &(&Uid, &Node)| node.linked && !node.pinned && self.is_leaf(uid);
        let leaves: Vec<(Place, Uid)> =
            self.nodes.iter().filter(leaf).map(|(&uid, _)| (self.place(uid), uid)).collect();
        let free = || leaves.iter().filter(|leaf| leaf.0.guard == 0);
        if let Some(least) = free().map(|leaf| self.worth(leaf.0)).min() {
            return free().filter(|leaf| self.worth(leaf.0) == least).map(|leaf| leaf.1).collect();
        }
        leaves.iter().min_by_key(|leaf| (leaf.0, self.nodes[&leaf.1].chunk)).map(|leaf| leaf.1).into_iter().collect()
    }

    /// Whether LRU would evict another node.
    pub fn older_stays(&self, uid: Uid) -> bool {
        let free =
            |other: Uid, node: &Node| node.linked && !node.pinned && self.is_leaf(other) && self.rank(other).is_none();
        self.rank(uid).is_none()
            && self.nodes.iter().any(|(&other, node)| node.last < self.nodes[&uid].last && free(other, node))
    }

    pub fn evict(&mut self, uid: Uid) {
        let node = self.nodes.remove(&uid).expect("a victim");
        self.move_guards(uid, node.parent);
    }

    pub fn move_guards(&mut self, from: Uid, to: Option<Uid>) {
        for guard in self.guards.values_mut().filter(|guard| guard.0 == Some(from)) {
            guard.0 = to;
        }
    }

    pub fn add(&mut self, node: Node) -> Uid {
        self.next += 1;
        self.nodes.insert(self.next, node);
        self.next
    }

    /// All linked nodes below and including `top`.
    pub fn below(&self, top: Uid) -> Vec<Uid> {
        let under = |node: &Node, uid: Uid| {
            uid == top || std::iter::successors(node.parent, |uid| self.nodes[uid].parent).any(|above| above == top)
        };
        self.nodes.iter().filter(|&(&uid, node)| node.linked && under(node, uid)).map(|(&uid, _)| uid).collect()
    }

    /// Takes a node and all below it out of the tree, and off all paths.
    pub fn detach<'a>(&mut self, top: Uid, tracks: impl Iterator<Item = &'a mut Track>) -> u64 {
        let parent = self.nodes[&top].parent;
        let gone = self.below(top);
        for &uid in &gone {
            self.nodes.get_mut(&uid).expect("linked").linked = false;
            self.move_guards(uid, parent);
        }
        for track in tracks {
            if let Some(level) = track.nodes.iter().position(|uid| gone.contains(uid)) {
                track.nodes.truncate(level);
                track.used = level * CHUNK;
            }
        }
        gone.len() as u64
    }

    /// Takes what lies behind the first `keep` slots of a node out of the tree, and off all paths.
    pub fn cut(&mut self, uid: Uid, keep: usize, tracks: &mut [&mut Track]) -> u64 {
        let node = &self.nodes[&uid];
        let end = node.start() + keep;
        if !node.linked || end >= node.text.len() {
            return 0;
        }
        if keep == 0 || node.domain == PUBLIC {
            return self.detach(uid, tracks.iter_mut().map(|track| &mut **track));
        }
        let children: Vec<Uid> =
            self.nodes.iter().filter(|(_, n)| n.linked && n.parent == Some(uid)).map(|(&uid, _)| uid).collect();
        let mut gone = 0;
        for child in children {
            gone += self.detach(child, tracks.iter_mut().map(|track| &mut **track));
        }
        let node = self.nodes.get_mut(&uid).expect("linked");
        node.text.truncate(end);
        node.valid = node.valid.min(end);
        for track in tracks {
            if let Some(level) = track.nodes.iter().position(|&on| on == uid) {
                track.used = track.used.min(end);
                track.nodes.truncate(level + 1);
            }
        }
        gone
    }
}
