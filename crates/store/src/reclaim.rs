//! Room: the least valuable chunks leave the index, segments with the most dead bytes are copied and removed. What is copied
//! stays as it was encrypted, and is durable before its source goes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::append::{Placed, Record, Writer};
use crate::crypto::TAG;
use crate::format::{Kind, META_MOST, RECORD_HEADER, RecordHeader};
use crate::index::{NodeId, Place, moment};
use crate::segment::{Phase, Segment, SegmentFile};
use crate::state::{Shared, State};
use crate::vfs::read_exact;

/// Bytes that are copied at a time.
const PIECE: usize = 1 << 20;

/// Chunks that are evicted with the lock held once, and how long it is left to others then.
const ROUND: u64 = 64;
const BREATH: Duration = Duration::from_micros(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    There,
    /// When readers let go of files that are to be removed.
    Later,
    None,
}

/// Part of an extent that is copied.
struct Copied {
    segment: u64,
    extent: u32,
    /// The extent's new place.
    to: (u64, u32),
}

impl Shared {
    /// Bytes that files may take, but for the segment into which others are copied: by the budget, and by what the disk
    /// leaves.
    fn allowed(&self, state: &State, free: u64) -> u64 {
        let segment = self.config.segment_bytes();
        let disk = state.bytes().saturating_add(free).saturating_sub(segment / 4);
        self.config.budget.min(disk).saturating_sub(segment)
    }

    /// Makes room for `need` more bytes.
    pub(crate) fn make_room(&self, w: &mut Writer, need: u64) -> io::Result<Room> {
        if w.reclaiming {
            return Ok(Room::There);
        }
        w.reclaiming = true;
        let room = self.reclaim(w, need);
        w.reclaiming = false;
        room
    }

    fn reclaim(&self, w: &mut Writer, need: u64) -> io::Result<Room> {
        let segment = self.config.segment_bytes();
        let mut least = u64::MAX;
        loop {
            self.remove_doomed();
            // A disk that is slow to answer is not waited for with the lock held that the engine needs.
            let free = self.vfs.free(&self.config.dir).unwrap_or(u64::MAX);
            let limit = {
                let mut state = self.state();
                let allowed = self.allowed(&state, free);
                state.allowed = allowed;
                if state.bytes() + need <= allowed {
                    return Ok(Room::There);
                }
                if let Some(sequence) = first_useless(&state) {
                    let settled = state.notes_durable && state.notes.waiting.is_empty();
                    if settled || state.segments[&sequence].phase == Phase::Foreign {
                        doom(&mut state, sequence);
                        continue;
                    }
                    // It may hold what a note said before it says what is not durable yet.
                    drop(state);
                    self.settle_notes(w)?;
                    continue;
                }
                full(allowed).saturating_sub(need)
            };
            if self.state().live() > limit {
                self.evict(limit.saturating_sub(segment / 4));
            }
            let victim = {
                let state = self.state();
                let bytes = state.bytes();
                let dead = |s: &Segment| s.dead();
                let closed = state.segments.iter().filter(|(_, s)| s.phase == Phase::Closed && s.live > 0);
                // Copying what is nearly all alive gives nearly nothing; and if the last copy gave nothing, no other will.
                let gains = std::mem::replace(&mut least, bytes) > bytes;
                match closed.max_by_key(|(_, s)| dead(s)) {
                    _ if first_useless(&state).is_some() => continue,
                    Some((&sequence, s)) if gains && s.dead() >= s.bytes / 16 => Some(sequence),
                    _ if !state.doomed.is_empty() => return Ok(Room::Later),
                    _ => None,
                }
            };
            if let Some(victim) = victim {
                self.copy_segment(w, victim)?;
                continue;
            }
            let live = self.state().live();
            if self.evict(live.saturating_sub(segment / 2)) == 0 {
                return Ok(Room::None);
            }
            least = u64::MAX;
        }
    }

    /// Takes the least valuable chunks out of the index until no more than `live` bytes are left; how many went. The engine
    /// needs the lock: it is let go of again and again.
    fn evict(&self, live: u64) -> u64 {
        let mut gone = 0;
        loop {
            let round = self.evict_some(&mut self.state(), live);
            gone += round;
            if round < ROUND {
                return gone;
            }
            // Whoever waits for the lock would not get it from a thread that takes it again at once.
            std::thread::sleep(BREATH);
        }
    }

    fn evict_some(&self, state: &mut State, live: u64) -> u64 {
        let (now, stored) = (moment(self.vfs.now() as i64), self.geometry.weight());
        let over = state.live().saturating_sub(live).div_ceil(stored).min(ROUND);
        for gone in 0..over {
            let Some(id) = state.index.leaves.victim(now) else { return gone };
            let chain = state.index.node(id).chain;
            state.ghosts.add(&chain);
            state.drop_chunk(id, stored);
            state.counters.evicted.budget += 1;
        }
        over
    }

    /// Writes what is wanted of a segment to the open one, and removes it.
    pub(crate) fn copy_segment(&self, w: &mut Writer, sequence: u64) -> io::Result<()> {
        let copies = self.copy_extents(w, sequence, |_| true)?;
        self.state().notes.rewrite(sequence);
        self.settle_notes(w)?;
        let mut state = self.state();
        for copy in copies {
            self.move_extent(&mut state, &copy);
        }
        doom(&mut state, sequence);
        drop(state);
        self.remove_doomed();
        Ok(())
    }

    /// Makes all notes durable, and whatever else was written.
    fn settle_notes(&self, w: &mut Writer) -> io::Result<()> {
        let now = self.vfs.now();
        while !self.state().notes.waiting.is_empty() {
            self.write_note(w, now)?;
        }
        self.sync(w)
    }

    /// Writes again what the process before this one may not have made durable. Nobody can know whether its last sync
    /// failed, and a sync does not write what an earlier one failed to.
    pub(crate) fn settle(&self, w: &mut Writer) -> io::Result<()> {
        let Some(&(sequence, _)) = self.state().unsettled.first() else { return Ok(()) };
        let theirs: Vec<u32> =
            self.state().unsettled.iter().filter(|(s, _)| *s == sequence).map(|(_, extent)| *extent).collect();
        let copies = self.copy_extents(w, sequence, |extent| theirs.contains(&extent))?;
        self.sync(w)?;
        let mut state = self.state();
        for copy in copies {
            self.move_extent(&mut state, &copy);
        }
        state.unsettled.retain(|(s, _)| *s != sequence);
        Ok(())
    }

    /// Appends copies of a segment's extents to the open one; the index still has the old ones.
    fn copy_extents(&self, w: &mut Writer, sequence: u64, which: impl Fn(u32) -> bool) -> io::Result<Vec<Copied>> {
        let (file, extents) = {
            let state = self.state();
            let Some(segment) = state.segments.get(&sequence) else { return Ok(Vec::new()) };
            let wanted = |(i, e): (usize, &crate::segment::Extent)| {
                let live = (0..16u8).filter(|&c| matches!(e.nodes.get(usize::from(c)), Some(Some(_))));
                let live = live.fold(0u16, |mask, c| mask | 1 << c);
                (live != 0 && which(i as u32)).then_some((i as u32, e.offset, e.data, e.present, live, e.domain, e.id))
            };
            (Arc::clone(&segment.file), segment.extents.iter().enumerate().filter_map(wanted).collect::<Vec<_>>())
        };
        let now = self.vfs.now();
        let mut copies = Vec::new();
        for (extent, offset, data, present, live, domain, id) in extents {
            let record = self.read_record(&file, offset).filter(|r| r.id == id && r.present == present);
            let copied = match record {
                Some(mut record) => {
                    record.present = live;
                    record.data = self.geometry.slice(live.count_ones() as usize, self.geometry.layers(), 0);
                    self.copy_extent(w, &file, &record, data, present, now)?
                }
                None => None,
            };
            match copied {
                Some((header, data)) => {
                    let to = (header.segment, self.add_extent(&header, data, domain));
                    self.state().counters.copied += header.total();
                    copies.push(Copied { segment: sequence, extent, to });
                }
                None => self.drop_extent(sequence, extent),
            }
        }
        Ok(copies)
    }

    /// A record's header and sealed part, as far as they can be read.
    fn read_record(&self, file: &SegmentFile, offset: u64) -> Option<Record> {
        let mut head = [0; RECORD_HEADER];
        read_exact(&*file.file, &mut head, offset).ok()?;
        let header = RecordHeader::decode(&head).ok()?;
        if header.kind != Kind::Extent || header.meta as usize > META_MOST {
            return None;
        }
        let mut sealed = vec![0; header.meta as usize];
        read_exact(&*file.file, &mut sealed, offset + RECORD_HEADER as u64).ok()?;
        Some(Record {
            kind: header.kind,
            chunks: header.chunks,
            present: header.present,
            id: header.id,
            hidden: header.domain,
            sealed,
            data: header.data,
        })
    }

    /// Copies the chunks in `record.present` of an extent whose `present` ones begin at `data`. `None`: they cannot be read.
    fn copy_extent(
        &self,
        w: &mut Writer,
        file: &SegmentFile,
        record: &Record,
        data: u64,
        present: u16,
        now: u64,
    ) -> io::Result<Option<(RecordHeader, u64)>> {
        let g = &self.geometry;
        let chunks: Vec<u8> = (0..16).filter(|c| record.present >> c & 1 == 1).collect();
        let rank = |chunk: u8| (present & ((1u16 << chunk) - 1)).count_ones() as usize;
        let mut unreadable = false;
        let placed = self.append(w, record, now, |write| {
            let mut buffer = Vec::new();
            let mut at = 0;
            for layer in 0..g.layers() {
                for &chunk in &chunks {
                    let from = data + g.slice(present.count_ones() as usize, layer, rank(chunk));
                    let start = buffer.len();
                    buffer.resize(start + g.slices[layer] + TAG, 0);
                    if let Err(e) = read_exact(&*file.file, &mut buffer[start..], from) {
                        unreadable = true;
                        return Err(e);
                    }
                    if buffer.len() >= PIECE {
                        write(at, &buffer)?;
                        at += buffer.len() as u64;
                        buffer.clear();
                    }
                }
            }
            write(at, &buffer)
        });
        match placed {
            Ok(Placed::At(header, data)) => Ok(Some((header, data))),
            Ok(Placed::NoRoom | Placed::Later) => Ok(None),
            Err(_) if unreadable => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn drop_extent(&self, segment: u64, extent: u32) {
        let mut state = self.state();
        state.counters.read_errors += 1;
        let Some(there) = state.segments.get(&segment) else { return };
        let mut nodes: Vec<NodeId> = there.extents[extent as usize].nodes.iter().flatten().copied().collect();
        nodes.reverse();
        for id in nodes {
            state.counters.evicted.damaged += 1;
            state.drop_chunk(id, self.geometry.weight());
        }
    }

    fn move_extent(&self, state: &mut State, copy: &Copied) {
        let Some(segment) = state.segments.get(&copy.segment) else { return };
        let nodes = segment.extents[copy.extent as usize].nodes.clone();
        for (chunk, id) in (0u8..).zip(nodes) {
            let Some(id) = id else { continue };
            let place = Place { segment: copy.to.0, extent: copy.to.1, chunk };
            let there = state.segments.get(&place.segment).map(|s| s.extents[place.extent as usize].present);
            if there.is_some_and(|present| present >> chunk & 1 == 1) {
                state.store_chunk(id, place, self.geometry.weight());
            }
        }
    }
}

/// Of the bytes that files may take, those that chunks may: what is dead needs some, too, until it is copied away.
pub(crate) fn full(allowed: u64) -> u64 {
    allowed / 8 * 7
}

/// A segment that can go at once: of something else, the oldest first, or with nothing in it that is wanted.
fn first_useless(state: &State) -> Option<u64> {
    let foreign = state.segments.iter().find(|(_, s)| s.phase == Phase::Foreign);
    let empty = || {
        state
            .segments
            .iter()
            .find(|(sequence, s)| s.phase == Phase::Closed && s.live == 0 && !state.notes.any_in(**sequence))
    };
    foreign.or_else(empty).map(|(&sequence, _)| sequence)
}

/// The segment leaves the index; its file goes when nobody reads it.
pub(crate) fn doom(state: &mut State, sequence: u64) {
    if let Some(segment) = state.segments.remove(&sequence) {
        state.doomed.push((segment.file, segment.bytes));
    }
}
