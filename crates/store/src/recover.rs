//! What an earlier process left: footers where segments were ended, record by record where they were not. What may not have
//! been durable is verified in full; nothing is written.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use kvist_base::CHUNK;

use crate::config::OpenError;
use crate::crypto::{Key, Part, Sealer, TAG, Tag};
use crate::format::{
    ALIGN, Bad, ExtentMeta, FILE_HEADER, Kind, META_MOST, NoteMeta, RECORD_HEADER, RecordHeader, SegmentHeader,
    TRAILER, Trailer, segment_sequence,
};
use crate::index::{NodeId, Place, chain};
use crate::keys::{KeyTable, Master};
use crate::segment::{Extent, Geometry, Phase, Segment, SegmentFile};
use crate::state::State;
use crate::stats::Restored;
use crate::store::PIN;
use crate::vfs::{Vfs, VfsFile, read_exact};

/// Bytes that are looked at a time for the next record behind a damaged one.
const BLOCK: u64 = 1 << 20;

/// What a store is read with.
pub(crate) struct Recovery<'a> {
    pub vfs: &'a dyn Vfs,
    pub dir: &'a std::path::Path,
    pub identity: &'a Key,
    pub master: &'a Master,
    pub geometry: &'a Geometry,
}

/// A record's header and its sealed part.
type Found = (RecordHeader, Vec<u8>);

/// An extent whose place in the tree is not known yet.
struct Unplaced {
    domain: usize,
    segment: u64,
    extent: u32,
    meta: ExtentMeta,
    present: u16,
}

/// Refuses what a later version wrote, before anything is touched.
pub(crate) fn check_versions(vfs: &dyn Vfs, dir: &std::path::Path) -> Result<(), OpenError> {
    let names = match vfs.list(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        names => names?,
    };
    for name in names {
        let keys = name.starts_with("keys-");
        if !keys && segment_sequence(&name).is_none() {
            continue;
        }
        let mut head = [0; FILE_HEADER];
        // What cannot be read is no newer version, and will not be used either.
        let Ok(()) = vfs.open(&dir.join(&name)).and_then(|file| read_exact(&*file, &mut head, 0)) else { continue };
        let version = match keys {
            true => crate::format::KeysHeader::decode(&head).err(),
            false => SegmentHeader::decode(&head).err(),
        };
        if let Some(Bad::Newer(version)) = version {
            return Err(OpenError::Newer { file: name, version });
        }
    }
    Ok(())
}

impl Recovery<'_> {
    /// Builds the index from the files; the number of the next segment comes with it.
    pub fn run(&self) -> Result<(State, Restored, u64), OpenError> {
        let mut state = State::default();
        let mut restored = Restored::default();
        state.notes.set_limit(u64::MAX);
        let (keys, lost) = KeyTable::load(self.vfs, self.dir, self.master)?
            .map_err(|_| OpenError::Io(io::ErrorKind::InvalidData.into()))?;
        restored.keys_lost = lost;
        let mut uids: HashMap<Tag, usize> = HashMap::new();
        for (name, keys) in &keys.domains {
            uids.insert(keys.uid, state.index.tree(name, keys, [0; TAG], self.identity));
        }
        state.keys = Some(keys);
        let mut unplaced = Vec::new();
        let mut next = 1;
        for name in self.vfs.list(self.dir)? {
            let Some(sequence) = segment_sequence(&name) else { continue };
            next = next.max(sequence.saturating_add(1));
            let path = self.dir.join(&name);
            // A file that cannot be opened is not there; it is tried again with the next process.
            let Ok(file) = self.vfs.open(&path) else { continue };
            let segment = Segment::new(Arc::new(SegmentFile { sequence, path, file }), Phase::Foreign);
            self.segment(&mut state, &mut restored, &uids, segment, &mut unplaced);
        }
        self.place(&mut state, &mut restored, unplaced);
        for domain in 0..state.index.domains.len() {
            for (path, _) in state.notes.list(domain, PIN) {
                crate::store::pin(&mut state, domain, &crate::store::tokens_of(&path), true);
            }
        }
        restored.domains = uids.len() as u64;
        restored.entries = state.index.ids().filter(|&id| state.index.node(id).present()).count() as u64;
        restored.segments = state.segments.len() as u64;
        restored.bytes = state.bytes();
        let foreign = state.segments.values().filter(|s| s.phase == Phase::Foreign);
        restored.foreign = foreign.map(|s| s.bytes).sum();
        Ok((state, restored, next))
    }

    fn segment(
        &self,
        state: &mut State,
        restored: &mut Restored,
        uids: &HashMap<Tag, usize>,
        mut segment: Segment,
        unplaced: &mut Vec<Unplaced>,
    ) {
        let file = Arc::clone(&segment.file.file);
        let sequence = segment.file.sequence;
        let len = file.len().unwrap_or(0);
        segment.bytes = len.max(file.allocated().unwrap_or(0));
        let mut head = [0; FILE_HEADER];
        let header = read_exact(&*file, &mut head, 0).ok().and_then(|()| SegmentHeader::decode(&head).ok());
        let ours = header
            .is_some_and(|h| h.fingerprint == *self.identity && h.key == self.master.id && h.sequence == sequence);
        if ours {
            segment.phase = Phase::Closed;
            let (records, end, whole) = match footer(&*file, sequence, len) {
                Some((records, end)) => (records, end, true),
                None => {
                    restored.scanned += 1;
                    (scan(&*file, sequence, len), len, false)
                }
            };
            segment.durable = if whole { end } else { records.iter().map(|(h, _)| h.durable).max().unwrap_or(0) };
            for found in records {
                if self.record(state, uids, &mut segment, end, found, unplaced).is_none() {
                    restored.dropped += 1;
                }
            }
        }
        state.segments.insert(sequence, segment);
    }

    fn record(
        &self,
        state: &mut State,
        uids: &HashMap<Tag, usize>,
        segment: &mut Segment,
        end: u64,
        (header, mut sealed): Found,
        unplaced: &mut Vec<Unplaced>,
    ) -> Option<()> {
        let last = header.offset.checked_add(header.head())?.checked_add(header.data)?;
        let domain = *uids.get(&self.master.hide(&header.domain, &header.id))?;
        let keys = state.index.domains[domain].keys.clone();
        let sealer = Sealer::new(self.master.mode, &keys.key, &header.id);
        let tag = sealed.split_off(sealed.len() - TAG);
        let tag = tag.first_chunk().copied()?;
        if last > end || !sealer.open(Part::Meta, &header.identity(), &mut sealed, &tag) {
            return None;
        }
        if header.kind == Kind::Note {
            let durable = last <= segment.durable;
            state.notes.restore(domain, NoteMeta::decode(&sealed).ok()?, segment.file.sequence, durable);
            return Some(());
        }
        let meta = ExtentMeta::decode(&sealed).ok()?;
        let count = header.present.count_ones() as usize;
        let durable = last <= segment.durable;
        let shape = meta.tokens.len() == usize::from(header.chunks) * CHUNK
            && header.data == self.geometry.slice(count, self.geometry.layers(), 0);
        let data = header.offset + header.head();
        if !shape || !durable && !self.verify(segment, &sealer, &keys.chain, &meta, header.present, data) {
            return None;
        }
        if !durable {
            state.unsettled.push((segment.file.sequence, segment.extents.len() as u32));
        }
        let domain = match meta.variant == [0; TAG] {
            true => domain,
            false => {
                let name = state.index.domains[domain].name.clone();
                state.index.tree(&name, &keys, meta.variant, self.identity)
            }
        };
        unplaced.push(Unplaced {
            domain,
            segment: segment.file.sequence,
            extent: segment.extents.len() as u32,
            meta,
            present: header.present,
        });
        segment.extents.push(Extent::new(&header, data, domain));
        Some(())
    }

    /// Whether every slice of an extent is there.
    fn verify(
        &self,
        segment: &Segment,
        sealer: &Sealer,
        chain_key: &Key,
        meta: &ExtentMeta,
        present: u16,
        data: u64,
    ) -> bool {
        let chunks = meta.tokens.as_chunks::<CHUNK>().0.iter().scan(meta.parent, |above, tokens| {
            *above = chain(chain_key, above, tokens);
            Some(*above)
        });
        let chunks: Vec<(u32, Key)> = (0..).zip(chunks).filter(|(i, _)| present >> i & 1 == 1).collect();
        let mut buffer = Vec::new();
        for layer in 0..self.geometry.layers() {
            let slice = self.geometry.slices[layer];
            for (rank, (chunk, chain)) in chunks.iter().enumerate() {
                buffer.resize(slice + TAG, 0);
                let at = data + self.geometry.slice(chunks.len(), layer, rank);
                if read_exact(&*segment.file.file, &mut buffer, at).is_err() {
                    return false;
                }
                let (bytes, tag) = buffer.split_at_mut(slice);
                let tag = tag.first_chunk().copied().unwrap_or_default();
                if !sealer.open(Part::Slice { layer: layer as u32, chunk: *chunk }, chain, bytes, &tag) {
                    return false;
                }
            }
        }
        true
    }

    /// Puts extents into the tree, parents before children; of two that hold the same chunk, the newer counts.
    fn place(&self, state: &mut State, restored: &mut Restored, unplaced: Vec<Unplaced>) {
        let (now, stored) = (self.vfs.unix(), self.geometry.weight());
        let mut below: HashMap<(usize, Key), Vec<usize>> = HashMap::new();
        for (i, extent) in unplaced.iter().enumerate() {
            below.entry((extent.domain, extent.meta.parent)).or_default().push(i);
        }
        let roots = 0..state.index.domains.len();
        let mut reached: Vec<(usize, Option<NodeId>)> = roots.map(|domain| (domain, None)).collect();
        while let Some((domain, parent)) = reached.pop() {
            let name = state.index.chain(domain, parent);
            let depth = parent.map_or(0, |id| state.index.node(id).depth + 1);
            for i in below.remove(&(domain, name)).unwrap_or_default() {
                let extent = &unplaced[i];
                let last = 15 - extent.present.leading_zeros() as usize;
                if extent.meta.first != depth {
                    restored.dropped += 1;
                    continue;
                }
                let mut at = parent;
                for (chunk, tokens) in extent.meta.tokens.as_chunks::<CHUNK>().0.iter().enumerate().take(last + 1) {
                    let id = state.index.child_or_insert(domain, at, tokens);
                    at = Some(id);
                    if extent.present >> chunk & 1 == 1 {
                        let place = Place { segment: extent.segment, extent: extent.extent, chunk: chunk as u8 };
                        let node = state.index.node_mut(id);
                        let newer = match node.data {
                            crate::index::Data::Stored(old) => {
                                (place.segment, place.extent) > (old.segment, old.extent)
                            }
                            _ => true,
                        };
                        if newer {
                            node.used = -(now.saturating_sub(extent.meta.created).min(1 << 40) as i64) * 1_000_000;
                            state.store_chunk(id, place, stored);
                        }
                    }
                    reached.push((domain, at));
                }
            }
        }
        restored.dropped += below.values().map(|list| list.len() as u64).sum::<u64>();
    }
}

/// The headers that stand at the end of a segment that was ended, and where they begin.
fn footer(file: &dyn VfsFile, sequence: u64, len: u64) -> Option<(Vec<Found>, u64)> {
    let mut end = [0; TRAILER];
    read_exact(file, &mut end, len.checked_sub(TRAILER as u64)?).ok()?;
    let trailer = Trailer::decode(&end, len).ok().filter(|t| t.sequence == sequence)?;
    let mut bytes = vec![0; trailer.length as usize];
    read_exact(file, &mut bytes, trailer.footer).ok()?;
    if !Trailer::holds(&end, &bytes) {
        return None;
    }
    let mut rest = &bytes[..];
    let mut records = Vec::new();
    for _ in 0..trailer.records {
        let header = RecordHeader::decode(rest).ok().filter(|h| h.segment == sequence)?;
        let sealed = rest.get(RECORD_HEADER..header.head() as usize)?;
        records.push((header.clone(), sealed.to_vec()));
        rest = &rest[header.head() as usize..];
    }
    Some((records, trailer.footer))
}

/// The records that can be found in a segment that was not.
fn scan(file: &dyn VfsFile, sequence: u64, len: u64) -> Vec<Found> {
    let mut records = Vec::new();
    let mut at = FILE_HEADER as u64;
    while at + RECORD_HEADER as u64 <= len {
        match record_at(file, sequence, at, len) {
            Some(found) => {
                at += found.0.total();
                records.push(found);
            }
            None => match next_magic(file, at + ALIGN, len) {
                Some(next) => at = next,
                None => break,
            },
        }
    }
    records
}

fn record_at(file: &dyn VfsFile, sequence: u64, at: u64, len: u64) -> Option<Found> {
    let mut head = [0; RECORD_HEADER];
    read_exact(file, &mut head, at).ok()?;
    let header = RecordHeader::decode(&head).ok()?;
    let fits = header.segment == sequence
        && header.offset == at
        && header.meta as usize <= META_MOST
        && header.head() + header.data <= len - at;
    if !fits {
        return None;
    }
    let mut sealed = vec![0; header.meta as usize];
    read_exact(file, &mut sealed, at + RECORD_HEADER as u64).ok()?;
    Some((header, sealed))
}

/// The next place at or behind `from` where a record may begin.
fn next_magic(file: &dyn VfsFile, from: u64, len: u64) -> Option<u64> {
    let mut block = Vec::new();
    let mut at = from;
    while at < len {
        block.resize(BLOCK.min(len - at) as usize, 0);
        read_exact(file, &mut block, at).ok()?;
        let found = block.chunks(ALIGN as usize).position(|sector| sector.starts_with(b"KVISTREC"));
        if let Some(sector) = found {
            return Some(at + sector as u64 * ALIGN);
        }
        at += BLOCK;
    }
    None
}
