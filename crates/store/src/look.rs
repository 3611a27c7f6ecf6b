//! What can be looked up in a store without reading a chunk.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use kvist_base::{CHUNK, DomainId, TokenId};

use crate::format::{FILE_HEADER, SegmentHeader, segment_sequence};
use crate::segment::Phase;
use crate::store::{PIN, Store, tokens_of};
use crate::vfs::{Vfs, read_exact};

/// Files of the store that are none of ours to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// What their fingerprint is of; empty: they are damaged.
    pub text: String,
    /// Sealed under another master key.
    pub other_key: bool,
    pub segments: u64,
    pub bytes: u64,
}

/// The path of a domain that agrees longest with a sequence of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nearest {
    /// How many tokens agree.
    pub common: usize,
    /// The path, to the end of the chunk in which the two part; no more than `common` where it ends there.
    pub tokens: Vec<TokenId>,
    /// Place of the first chunk on it that is known and not here any more, in tokens.
    pub gone: Option<usize>,
}

/// Whether a directory has files of a store.
///
/// # Errors
/// If it cannot be listed.
pub fn is_store(vfs: &dyn Vfs, dir: &Path) -> io::Result<bool> {
    Ok(vfs
        .list(dir)?
        .iter()
        .any(|name| name == "lock" || name.starts_with("keys-") || segment_sequence(name).is_some()))
}

/// What the segments in a directory say that they are of: their identities ([`crate::StoreConfig::identity`]), with the
/// texts of the fingerprints.
///
/// # Errors
/// If the directory cannot be listed. Files that cannot be read, or are damaged, are of nothing.
pub fn fingerprints(vfs: &dyn Vfs, dir: &Path) -> io::Result<BTreeMap<[u8; 32], String>> {
    let mut found = BTreeMap::new();
    for name in vfs.list(dir)?.iter().filter(|name| segment_sequence(name).is_some()) {
        let mut head = [0; FILE_HEADER];
        let read = vfs.open(&dir.join(name)).and_then(|file| read_exact(&*file, &mut head, 0));
        if let Ok(header) = read.map_err(|_| ()).and_then(|()| SegmentHeader::decode(&head).map_err(|_| ())) {
            found.insert(header.fingerprint, header.text);
        }
    }
    Ok(found)
}

impl Store {
    /// Names of the domains that have a key, in order.
    pub fn domains(&self) -> Vec<String> {
        let state = self.shared().state();
        let mut names: Vec<String> =
            state.index.domains.iter().filter(|domain| !domain.gone).map(|domain| domain.name.clone()).collect();
        names.sort();
        names.dedup();
        names
    }

    /// The files of other fingerprints and keys, by what they are of.
    pub fn foreign(&self) -> Vec<Foreign> {
        let shared = self.shared();
        let files: Vec<_> = {
            let state = shared.state();
            let foreign = state.segments.values().filter(|s| s.phase == Phase::Foreign);
            foreign.map(|s| (std::sync::Arc::clone(&s.file), s.bytes)).collect()
        };
        let mut sums: BTreeMap<(String, bool), (u64, u64)> = BTreeMap::new();
        for (file, bytes) in files {
            let mut head = [0; FILE_HEADER];
            let header = read_exact(&*file.file, &mut head, 0).ok().and_then(|()| SegmentHeader::decode(&head).ok());
            let what = header.map_or_else(Default::default, |h| (h.text, h.key != shared.master.id));
            let sum = sums.entry(what).or_default();
            *sum = (sum.0 + 1, sum.1 + bytes);
        }
        let tell = |((text, other_key), (segments, bytes))| Foreign { text, other_key, segments, bytes };
        sums.into_iter().map(tell).collect()
    }

    /// The paths of a domain that are pinned.
    pub fn pins(&self, domain: DomainId) -> Vec<Vec<TokenId>> {
        self.notes(domain, PIN).iter().map(|(path, _)| tokens_of(path)).collect()
    }

    /// The path of a domain that agrees longest with `tokens`; `None`: there is no path at all.
    pub fn nearest(&self, domain: DomainId, tokens: &[TokenId]) -> Option<Nearest> {
        let state = self.shared().state();
        let &domain = state.bound.get(&domain)?;
        let index = &state.index;
        let mut found = Nearest { common: 0, tokens: Vec::new(), gone: None };
        let mut at = None;
        for id in index.walk(domain, tokens) {
            let node = index.node(id);
            if !node.present() {
                found.gone.get_or_insert(found.common);
            }
            found.tokens.extend(&node.tokens[..]);
            found.common += CHUNK;
            at = Some(id);
        }
        let rest = &tokens[found.common..];
        let common = |id: &u32| index.node(*id).tokens.iter().zip(rest).take_while(|(a, b)| a == b).count();
        if let Some(next) = index.children(domain, at).iter().max_by_key(|id| common(id)) {
            found.common += common(next);
            found.tokens.extend(&index.node(*next).tokens[..]);
        }
        (!found.tokens.is_empty()).then_some(found)
    }
}
