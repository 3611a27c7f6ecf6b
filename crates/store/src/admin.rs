//! What an operator asks of a store.

use std::collections::HashSet;
use std::io;

use kvist_base::{CHUNK, TokenId};

use crate::index::{Data, NodeId};
use crate::load::Priority;
use crate::reclaim::doom;
use crate::segment::Phase;
use crate::state::lock;
use crate::store::Store;

/// The end of a path in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name of its domain.
    pub domain: String,
    /// Zeros: the tree of exact paths. See [`Store::register_variant`].
    pub variant: [u8; 16],
    /// The whole path.
    pub tokens: Vec<TokenId>,
    /// Chunks of the path that are here.
    pub chunks: usize,
    /// Microseconds since the last use of the last chunk.
    pub idle: u64,
    pub pinned: bool,
}

/// A chunk that was read and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Name of its domain.
    pub domain: String,
    /// Place of its first token on its path.
    pub token: usize,
    pub good: bool,
    /// How many chunks are done, of how many.
    pub done: u64,
    pub total: u64,
}

/// What a check of everything found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Chunks.
    pub good: u64,
    /// Chunks of which a slice could not be read or did not verify; they are offered no more.
    pub bad: u64,
}

impl Store {
    /// Every path that ends in the store, in order of domain, variant and tokens.
    pub fn entries(&self) -> Vec<Entry> {
        let shared = self.shared();
        let now = shared.vfs.now() as i64;
        let state = shared.state();
        let ends = state.index.ids().filter(|&id| state.index.node(id).children.is_empty());
        let mut entries: Vec<Entry> = ends
            .map(|id| {
                let node = state.index.node(id);
                let tokens = state.index.path(id);
                let chunks =
                    state.index.walk(node.domain, &tokens).filter(|&id| state.index.node(id).present()).count();
                let idle = now.saturating_sub(node.used).max(0) as u64;
                let domain = &state.index.domains[node.domain];
                let (domain, variant) = (domain.name.clone(), domain.variant);
                Entry { domain, variant, chunks, idle, pinned: node.pinned, tokens }
            })
            .collect();
        drop(state);
        entries.sort_by(|a, b| (&a.domain, &a.variant, &a.tokens).cmp(&(&b.domain, &b.variant, &b.tokens)));
        entries
    }

    /// Reads and verifies every chunk on disk and tells of each.
    pub fn verify(&self, mut tell: impl FnMut(Checked)) -> Verified {
        let shared = self.shared();
        let ids: Vec<NodeId> = {
            let state = shared.state();
            state.index.ids().filter(|&id| matches!(state.index.node(id).data, Data::Stored(_))).collect()
        };
        let mut found = Verified::default();
        let mut buffer = Vec::new();
        for (i, &id) in ids.iter().enumerate() {
            let path = {
                let state = shared.state();
                let node = state.index.get(id).filter(|n| n.present());
                node.map(|node| {
                    let name = state.index.domains[node.domain].name.clone();
                    (node.domain, name, node.depth as usize, state.index.path(id))
                })
            };
            let Some((domain, name, depth, tokens)) = path else { continue };
            let load = shared.load(Some(domain), &tokens, depth..depth + 1, Priority::Prefetch, false);
            let good = (0..shared.geometry.layers()).all(|layer| {
                buffer.resize(shared.geometry.slices[layer], 0);
                load.wait(layer, 0, &mut buffer).is_ok()
            });
            match good {
                true => found.good += 1,
                false => found.bad += 1,
            }
            let (done, total) = (i as u64 + 1, ids.len() as u64);
            tell(Checked { domain: name, token: depth * CHUNK, good, done, total });
        }
        found
    }

    /// Removes what is not wanted: files of other fingerprints and keys, and dead bytes by copying the rest. The bytes that
    /// the store takes less.
    pub fn gc(&self) -> io::Result<u64> {
        self.clean(true)
    }

    /// As [`Store::gc`], but leaves the files of other fingerprints and keys.
    pub fn compact(&self) -> io::Result<u64> {
        self.clean(false)
    }

    fn clean(&self, foreign: bool) -> io::Result<u64> {
        let shared = self.shared();
        if shared.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let mut w = lock(&shared.writer);
        let before = shared.state().bytes();
        w.reclaiming = true;
        let result = (|| {
            shared.close(&mut w)?;
            let wasteful: Vec<u64> = {
                let mut state = shared.state();
                let unwanted = |s: &crate::segment::Segment| foreign && s.phase == Phase::Foreign;
                let unwanted: Vec<u64> = state.segments.iter().filter(|(_, s)| unwanted(s)).map(|(&n, _)| n).collect();
                unwanted.into_iter().for_each(|n| doom(&mut state, n));
                let waste = |s: &&crate::segment::Segment| s.phase == Phase::Closed && s.dead() > s.bytes / 16;
                state.segments.iter().filter(|(_, s)| waste(s)).map(|(&n, _)| n).collect()
            };
            for segment in wasteful {
                shared.copy_segment(&mut w, segment)?;
            }
            shared.close(&mut w)
        })();
        w.reclaiming = false;
        if let Err(e) = &result {
            shared.failed(&mut w, e);
        }
        shared.remove_doomed();
        result.map(|()| before.saturating_sub(shared.state().bytes()))
    }

    /// Destroys a domain's key, durably, and with it everything that was sealed under it. Whether there was such a domain.
    pub fn forget(&self, name: &str) -> io::Result<bool> {
        let shared = self.shared();
        if shared.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let _writer = lock(&shared.writer);
        let known;
        let (path, bytes) = {
            let mut state = shared.state();
            let state = &mut *state;
            let keys = state.keys.as_mut().expect("a store has keys");
            known = keys.remove(name);
            if !known && !keys.dirty {
                return Ok(false);
            }
            // From here on nothing of it is found, whether or not the key can be destroyed now.
            keys.dirty = true;
            for domain in 0..state.index.domains.len() {
                if state.index.domains[domain].name == name && !state.index.domains[domain].gone {
                    state.index.domains[domain].gone = true;
                    let mut nodes: Vec<NodeId> =
                        state.index.ids().filter(|&id| state.index.node(id).domain == domain).collect();
                    nodes.sort_by_key(|&id| std::cmp::Reverse(state.index.node(id).depth));
                    for id in nodes {
                        if state.index.get(id).is_some() {
                            state.counters.evicted.forgotten += u64::from(state.index.node(id).present());
                            state.index.node_mut(id).pinned = false;
                            state.drop_chunk(id, shared.geometry.weight());
                        }
                    }
                    state.notes.forget_domain(domain);
                    state.bound.retain(|_, bound| *bound != domain);
                }
            }
            let keys = state.keys.as_mut().expect("a store has keys");
            keys.dirty = false;
            (keys.path().to_path_buf(), keys.encode(&*shared.vfs, &shared.master)?)
        };
        crate::keys::KeyTable::write(&*shared.vfs, &path, &bytes).inspect_err(|_| {
            shared.state().keys.as_mut().expect("a store has keys").dirty = true;
        })?;
        Ok(known)
    }

    /// Lets go of the keys of domains of which no chunk is left and that no number stands for, and with them of their notes:
    /// of those domains that are meant. None goes while files are here that cannot be read with this fingerprint, as they may
    /// be sealed under it. How many went.
    pub fn release_keys(&self, which: impl Fn(&str) -> bool) -> usize {
        let mut state = self.shared().state();
        let state = &mut *state;
        if self.shared().read_only || state.segments.values().any(|s| s.phase == Phase::Foreign) {
            return 0;
        }
        let used: HashSet<usize> = state.bound.values().copied().collect();
        let domains = &mut state.index.domains;
        let needed = domains.iter().enumerate().filter(|(at, d)| !d.gone && (used.contains(at) || !d.is_empty()));
        let needed: HashSet<String> = needed.map(|(_, d)| d.name.clone()).collect();
        let keys = state.keys.as_mut().expect("a store has keys");
        let unused = keys.domains.keys().filter(|name| which(name) && !needed.contains(*name));
        let unused: HashSet<String> = unused.cloned().collect();
        for (at, domain) in domains.iter_mut().enumerate().filter(|(_, d)| unused.contains(&d.name)) {
            domain.gone = true;
            state.notes.forget_domain(at);
        }
        unused.iter().filter(|name| keys.remove(name)).count()
    }

    /// Asks the system to forget what it caches of the store's files, so that a measurement reads from the disk.
    pub fn forget_cache(&self) {
        let files: Vec<_> = self.shared().state().segments.values().map(|s| std::sync::Arc::clone(&s.file)).collect();
        files.iter().for_each(|f| f.file.forget_cache());
    }

    /// Whether the index agrees with itself and with the segments.
    #[doc(hidden)]
    pub fn check(&self) -> Result<(), String> {
        let shared = self.shared();
        let state = shared.state();
        state.index.check()?;
        let stored = shared.geometry.weight();
        for (sequence, segment) in &state.segments {
            let mut live = 0;
            for (i, extent) in segment.extents.iter().enumerate() {
                for (chunk, node) in extent.nodes.iter().enumerate() {
                    let Some(id) = node else { continue };
                    live += stored;
                    let there = state.index.get(*id).map(|n| &n.data);
                    if !matches!(there, Some(Data::Stored(p)) if (p.segment, p.extent as usize, usize::from(p.chunk)) == (*sequence, i, chunk))
                    {
                        return Err(format!(
                            "chunk {chunk} of extent {i} of segment {sequence} is not where node {id} says"
                        ));
                    }
                }
            }
            if live != segment.live {
                return Err(format!("segment {sequence} counts {} live bytes, {live} are", segment.live));
            }
        }
        if let Some(key) = state.notes.astray(|segment| state.segments.contains_key(&segment)) {
            return Err(format!("note {key:?} is nowhere and does not wait"));
        }
        let lost = state.index.ids().find(|&id| match state.index.node(id).data {
            Data::Stored(place) => !state.segments.contains_key(&place.segment),
            _ => false,
        });
        lost.map_or(Ok(()), |id| Err(format!("node {id} is in a segment that is not there")))
    }
}
