//! Writing: chunks wait in memory, under a budget and readable, until they are appended to the open segment; what was
//! appended becomes durable in groups. One thread, or nobody but the caller, does all of it, with no lock of readers held.

use std::io;
use std::sync::Arc;

use kvist_base::{CHUNK, Micros, TokenId};

use crate::append::{PAUSE, Placed, Record, Writer, overhead};
use crate::crypto::{Key, Part, Tag};
use crate::format::{EXTENT, ExtentMeta, Kind, NoteMeta};
use crate::index::{Data, NodeId, Place};
use crate::keys::KeyTable;
use crate::state::{Canary, Job, Shared, State, lock};

/// Bytes that are encrypted before they are written.
const PIECE: usize = 1 << 20;

/// Until readers are asked again to make room.
const LATER: Micros = 5_000;

/// What became of chunks that were to be saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saved {
    /// They will be durable when [`crate::Store::durable`] has reached this number.
    Queued(u64),
    /// All of them are here already.
    Known,
    /// What comes before them on their path is not here: save that first.
    Parentless,
    /// Too much waits to be written.
    Full,
    /// Saving pauses because it failed, the store is read-only, or the domain is not known.
    Off,
}

/// What a turn did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Worked,
    /// Nothing to do; or not before so many microseconds.
    Idle(Option<Micros>),
}

/// Chunks that become one extent.
struct Batch {
    jobs: Vec<Job>,
    domain: usize,
    uid: Tag,
    key: Key,
    meta: ExtentMeta,
    /// `[chunk]`: node, bytes, chain key.
    chunks: Vec<(NodeId, Arc<Vec<u8>>, Key)>,
}

impl Shared {
    /// Chunks in an extent at most: as many as a segment holds, if these are few.
    pub(crate) fn extent_chunks(&self) -> usize {
        let room = self.config.segment_bytes().saturating_sub(overhead(EXTENT));
        ((room / self.geometry.stored()) as usize).clamp(1, EXTENT)
    }

    /// See [`crate::Store::save`].
    pub(crate) fn save(&self, domain: Option<usize>, path: &[TokenId], first: usize, chunks: Vec<Vec<u8>>) -> Saved {
        assert_eq!(path.len(), (first + chunks.len()) * CHUNK, "tokens of a path of whole chunks");
        assert!(!chunks.is_empty() && chunks.iter().all(|c| c.len() == self.geometry.chunk()), "bytes of a chunk");
        let mut state = self.state();
        let state = &mut *state;
        let Some(domain) = domain.filter(|&d| !self.read_only && !state.stop && !state.index.domains[d].gone) else {
            state.counters.off += chunks.len() as u64;
            return Saved::Off;
        };
        let (above, own) = path.split_at(first * CHUNK);
        let mut parent = state.index.walk(domain, above).last();
        let above_here = match parent {
            Some(id) => state.index.node(id).depth as usize + 1 == first && state.index.node(id).present(),
            None => first == 0,
        };
        if !above_here {
            return Saved::Parentless;
        }
        let tokens = own.as_chunks::<CHUNK>().0;
        let mut new = Vec::with_capacity(chunks.len());
        for (tokens, bytes) in tokens.iter().zip(chunks) {
            let known = new.is_empty() && {
                let child = state.index.child(domain, parent, tokens).filter(|&c| state.index.node(c).present());
                child.inspect(|&child| parent = Some(child)).is_some()
            };
            match known {
                true => state.counters.known += 1,
                false => new.push((tokens, bytes)),
            }
        }
        if new.is_empty() {
            return Saved::Known;
        }
        if state.health.why.is_some() && self.vfs.now() < state.health.retry {
            state.counters.off += new.len() as u64;
            return Saved::Off;
        }
        let bytes = (new.len() * self.geometry.chunk()) as u64;
        if state.queued + bytes > self.config.saves {
            state.counters.full += new.len() as u64;
            return Saved::Full;
        }
        let now = self.vfs.now() as i64;
        state.ticket += 1;
        let most = self.extent_chunks();
        let mut run: Vec<(NodeId, Arc<Vec<u8>>)> = Vec::new();
        for (tokens, bytes) in new {
            let id = state.index.child_or_insert(domain, parent, tokens);
            parent = Some(id);
            if state.index.node(id).present() {
                state.index.touch(id, now);
                // Between new ones, one that was here: it ends an extent.
                state.counters.known += 1;
                push(state, &mut run);
                continue;
            }
            let bytes = Arc::new(bytes);
            let now = state.index.arrival(id, now);
            let node = state.index.node_mut(id);
            node.used = now;
            node.data = Data::Queued(Arc::clone(&bytes));
            state.counters.returned += u64::from(state.ghosts.take(&node.chain));
            state.queued += bytes.len() as u64;
            run.push((id, bytes));
            if run.len() == most {
                push(state, &mut run);
            }
        }
        push(state, &mut run);
        self.work.notify_all();
        Saved::Queued(state.ticket)
    }

    /// One piece of background work.
    pub(crate) fn turn(&self) -> Turn {
        if self.read_only {
            return Turn::Idle(None);
        }
        let mut writer = lock(&self.writer);
        let now = self.vfs.now();
        {
            let state = self.state();
            if state.health.why.is_some() && now < state.health.retry {
                return Turn::Idle(Some(state.health.retry - now));
            }
        }
        self.remove_doomed();
        match self.work(&mut writer, now) {
            Ok(turn) => turn,
            Err(_) if self.canary == Canary::RetrySync => Turn::Idle(None),
            Err(error) => {
                self.failed(&mut writer, &error);
                Turn::Worked
            }
        }
    }

    fn work(&self, w: &mut Writer, now: Micros) -> io::Result<Turn> {
        let (flush, waiting) = {
            let state = self.state();
            (state.flush > 0 || state.stop, state.waiting())
        };
        let since = w.open.as_ref().and_then(|open| open.since);
        let due = since.map(|since| since + self.config.sync_every.as_micros() as Micros);
        if due.is_some_and(|due| due <= now || flush && !waiting) {
            self.sync(w)?;
            return Ok(Turn::Worked);
        }
        if waiting {
            self.settle(w)?;
        }
        let mut turn = self.write_extent(w, now)?;
        if turn == Turn::Idle(None) {
            turn = self.write_note(w, now)?;
        }
        if turn == Turn::Worked {
            self.well();
        } else if turn == Turn::Idle(None) {
            // A budget smaller than what an earlier process left.
            self.make_room(w, 0)?;
            // Nothing waits that could show whether it works again: what comes next may try.
            self.state().health.why = None;
            if since.is_none() {
                // What was given up since the last sync is waited for by nobody.
                let mut state = self.state();
                state.advance_durable();
                state.notes_durable |= state.notes.waiting.is_empty();
            }
            return Ok(Turn::Idle(due.map(|due| due - now)));
        }
        Ok(turn)
    }

    /// Domains' keys are on the medium before anything sealed under them: called when it is known what is sealed next. A domain
    /// may be made, and its chunks queued, at any moment before that.
    fn write_keys(&self) -> io::Result<()> {
        let (path, bytes) = {
            let mut state = self.state();
            let Some(keys) = state.keys.as_mut().filter(|keys| keys.dirty) else { return Ok(()) };
            keys.dirty = false;
            (keys.path().to_path_buf(), keys.encode(&*self.vfs, &self.master)?)
        };
        KeyTable::write(&*self.vfs, &path, &bytes).inspect_err(|_| {
            if let Some(keys) = self.state().keys.as_mut() {
                keys.dirty = true;
            }
        })
    }

    /// Takes chunks from the queue that follow each other on one path.
    fn batch(&self) -> Option<Batch> {
        let mut state = self.state();
        let state = &mut *state;
        loop {
            let job = state.queue.pop_front()?;
            let (first, _) = job.nodes[0];
            let live = job.nodes.iter().all(|(id, bytes)| state.index.queued(*id, bytes).is_some());
            let parent = state.index.get(first).and_then(|n| n.parent);
            if !live || parent.is_some_and(|p| !state.index.node(p).present()) {
                // Forgotten, or what comes before it was lost: after a restart nobody could find it.
                self.discard(state, &job);
                continue;
            }
            let mut jobs = vec![job];
            let mut count = jobs[0].nodes.len();
            while let Some(at) = follower(state, &jobs[jobs.len() - 1], self.extent_chunks() - count) {
                let next = state.queue.remove(at).expect("just found");
                count += next.nodes.len();
                jobs.push(next);
            }
            let node = state.index.node(first);
            let domain = node.domain;
            let keys = &state.index.domains[domain].keys;
            let mut batch = Batch {
                domain,
                uid: keys.uid,
                key: keys.key,
                meta: ExtentMeta {
                    parent: state.index.chain(domain, node.parent),
                    created: self.vfs.unix(),
                    first: node.depth,
                    variant: state.index.domains[domain].variant,
                    tokens: Vec::with_capacity(count * CHUNK),
                },
                chunks: Vec::with_capacity(count),
                jobs: Vec::new(),
            };
            for (id, bytes) in jobs.iter().flat_map(|job| &job.nodes) {
                let node = state.index.node(*id);
                batch.meta.tokens.extend(&node.tokens[..]);
                batch.chunks.push((*id, Arc::clone(bytes), node.chain));
            }
            state.writing = jobs.iter().map(|job| job.ticket).collect();
            batch.jobs = jobs;
            return Some(batch);
        }
    }

    /// Chunks that will not be written.
    fn discard(&self, state: &mut State, job: &Job) {
        for (id, bytes) in job.nodes.iter().rev() {
            state.queued -= bytes.len() as u64;
            if let Some(node) = state.index.queued(*id, bytes) {
                node.data = Data::Absent;
                state.counters.evicted.abandoned += 1;
                state.index.prune(*id);
            }
        }
    }

    fn write_extent(&self, w: &mut Writer, now: Micros) -> io::Result<Turn> {
        let Some(batch) = self.batch() else { return Ok(Turn::Idle(None)) };
        let written = self.write_keys().and_then(|()| self.append_extent(w, &batch, now));
        let mut state = self.state();
        state.writing.clear();
        match written {
            Ok(Ok((segment, extent))) => {
                for (id, bytes) in batch.jobs.iter().flat_map(|job| &job.nodes) {
                    state.queued -= bytes.len() as u64;
                    let chunk = batch.chunks.iter().position(|c| c.0 == *id).expect("batches are made of jobs") as u8;
                    if state.index.queued(*id, bytes).is_some() {
                        state.store_chunk(*id, Place { segment, extent, chunk }, self.geometry.weight());
                        state.counters.saved += 1;
                    }
                }
            }
            Ok(Err(Placed::Later)) => {
                batch.jobs.into_iter().rev().for_each(|job| state.queue.push_front(job));
                return Ok(Turn::Idle(Some(LATER)));
            }
            Ok(Err(_)) => {
                // No room, and nothing that could make any.
                for job in batch.jobs.iter().rev() {
                    self.discard(&mut state, job);
                }
            }
            Err(e) => {
                batch.jobs.into_iter().rev().for_each(|job| state.queue.push_front(job));
                return Err(e);
            }
        }
        drop(state);
        self.progress.notify_all();
        Ok(Turn::Worked)
    }

    fn append_extent(&self, w: &mut Writer, batch: &Batch, now: Micros) -> io::Result<Result<(u64, u32), Placed>> {
        let n = batch.chunks.len();
        let mut id = [0; 24];
        self.vfs.random(&mut id)?;
        let sealer = self.sealer(&batch.key, &id);
        let mut record = Record {
            kind: Kind::Extent,
            chunks: n as u8,
            present: u16::MAX >> (EXTENT - n),
            id,
            hidden: self.master.hide(&batch.uid, &id),
            sealed: batch.meta.encode(),
            data: self.geometry.slice(n, self.geometry.layers(), 0),
        };
        self.seal_meta(&sealer, &mut record);
        let mut buffer = std::mem::take(&mut w.buffer);
        let placed = self.append(w, &record, now, |write| {
            buffer.clear();
            let mut at = 0;
            for layer in 0..self.geometry.layers() {
                let (from, bytes) = (self.geometry.plain(layer), self.geometry.slices[layer]);
                for (chunk, (_, plain, chain)) in batch.chunks.iter().enumerate() {
                    let start = buffer.len();
                    buffer.extend_from_slice(&plain[from..from + bytes]);
                    let part = Part::Slice { layer: layer as u32, chunk: chunk as u32 };
                    let tag = sealer.seal(part, chain, &mut buffer[start..]);
                    buffer.extend(tag);
                    if buffer.len() >= PIECE {
                        write(at, &buffer)?;
                        at += buffer.len() as u64;
                        buffer.clear();
                    }
                }
            }
            write(at, &buffer)
        });
        w.buffer = buffer;
        match placed? {
            Placed::At(header, data) => Ok(Ok((header.segment, self.add_extent(&header, data, batch.domain)))),
            none => Ok(Err(none)),
        }
    }

    pub(crate) fn write_note(&self, w: &mut Writer, now: Micros) -> io::Result<Turn> {
        let next = {
            let state = self.state();
            let next = state.notes.next_waiting();
            next.map(|(domain, meta)| (domain, meta, state.index.domains[domain].keys.clone()))
        };
        let Some((domain, meta, keys)) = next else { return Ok(Turn::Idle(None)) };
        self.write_keys()?;
        let placed = self.append_note(w, &meta, &keys, now)?;
        let mut state = self.state();
        match placed {
            Placed::At(header, _) => state.notes.written(domain, &meta, header.segment),
            Placed::Later => return Ok(Turn::Idle(Some(LATER))),
            Placed::NoRoom => return Ok(Turn::Idle(Some(PAUSE.0))),
        }
        drop(state);
        self.progress.notify_all();
        Ok(Turn::Worked)
    }

    fn append_note(
        &self,
        w: &mut Writer,
        meta: &NoteMeta,
        keys: &crate::keys::DomainKeys,
        now: Micros,
    ) -> io::Result<Placed> {
        let mut id = [0; 24];
        self.vfs.random(&mut id)?;
        let sealer = self.sealer(&keys.key, &id);
        let hidden = self.master.hide(&keys.uid, &id);
        let mut record = Record { kind: Kind::Note, chunks: 0, present: 0, id, hidden, sealed: meta.encode(), data: 0 };
        self.seal_meta(&sealer, &mut record);
        self.append(w, &record, now, |_| Ok(()))
    }

    pub(crate) fn write_loop(&self) {
        loop {
            let turn = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.turn()));
            let Ok(turn) = turn else {
                self.panicked();
                // Whatever it was, it is not tried again at once.
                self.state().health = crate::state::Health {
                    why: Some("a thread panicked".into()),
                    retry: self.vfs.now() + PAUSE.0,
                    failures: 1,
                };
                continue;
            };
            let wait = match turn {
                Turn::Worked => Some(0),
                Turn::Idle(wait) => wait,
            };
            let state = self.state();
            let waiting = state.waiting();
            let pausing = state.health.why.is_some();
            if state.stop && (!waiting || pausing || wait.is_some_and(|w| w > 0) || self.vfs.now() >= state.stop_by) {
                return;
            }
            if turn == Turn::Worked || waiting && !pausing && wait.is_none() {
                continue;
            }
            let wait = std::time::Duration::from_micros(wait.unwrap_or(500_000).clamp(1_000, 500_000));
            drop(self.work.wait_timeout(state, wait));
        }
    }
}

fn push(state: &mut State, run: &mut Vec<(NodeId, Arc<Vec<u8>>)>) {
    if !run.is_empty() {
        state.queue.push_back(Job { nodes: std::mem::take(run), ticket: state.ticket });
    }
}

/// Where in the queue the chunks that come right behind those of a job are, if they are no more than `most`.
fn follower(state: &State, job: &Job, most: usize) -> Option<usize> {
    let &(last, _) = job.nodes.last()?;
    state.queue.iter().take(64).position(|next| {
        let (first, bytes) = &next.nodes[0];
        let waits = |node: &crate::index::Node| matches!(&node.data, Data::Queued(b) if Arc::ptr_eq(b, bytes));
        next.nodes.len() <= most && state.index.get(*first).is_some_and(|node| node.parent == Some(last) && waits(node))
    })
}
