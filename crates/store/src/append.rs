//! The open segment: records go to its end, become durable in groups, and are listed when it is full. Whatever fails, it is
//! given up and not mended.

use std::io;
use std::sync::Arc;

use kvist_base::Micros;

use crate::crypto::{Part, RecordId, Sealer, Tag};
use crate::format::{
    ExtentMeta, FILE_HEADER, Kind, RECORD_HEADER, RecordHeader, SegmentHeader, TRAILER, Trailer, segment_name,
};
use crate::reclaim::Room;
use crate::segment::{Extent, Phase, Segment, SegmentFile};
use crate::state::{Canary, Shared};
use crate::vfs::write_all;

/// The first and the longest pause after something failed.
pub(crate) const PAUSE: (Micros, Micros) = (250_000, 30_000_000);

/// The segment that is written to.
pub(crate) struct Open {
    file: Arc<SegmentFile>,
    end: u64,
    /// Everything before it is on the medium.
    synced: u64,
    /// Its name is, too.
    named: bool,
    /// When the first byte behind `synced` was written.
    pub since: Option<Micros>,
    /// Copies of the records' headers.
    footer: Vec<u8>,
    records: u32,
}

#[derive(Default)]
pub(crate) struct Writer {
    pub open: Option<Open>,
    /// Number of the next segment.
    pub next: u64,
    /// Room is being made: what is written now is not to make any.
    pub reclaiming: bool,
    pub buffer: Vec<u8>,
}

/// Where a record came to be.
pub(crate) enum Placed {
    /// With its place, and the offset of its slices.
    At(RecordHeader, u64),
    /// The budget leaves no room.
    NoRoom,
    /// There will be room when readers are done.
    Later,
}

/// A record that is complete but for its place.
pub(crate) struct Record {
    pub kind: Kind,
    pub chunks: u8,
    pub present: u16,
    pub id: RecordId,
    pub hidden: Tag,
    pub sealed: Vec<u8>,
    pub data: u64,
}

impl Shared {
    /// The extent is on disk, none of its chunks is in the index yet.
    pub(crate) fn add_extent(&self, header: &RecordHeader, data: u64, domain: usize) -> u32 {
        let mut state = self.state();
        let segment = state.segments.get_mut(&header.segment).expect("the open segment is there");
        segment.extents.push(Extent::new(header, data, domain));
        segment.extents.len() as u32 - 1
    }

    pub(crate) fn seal_meta(&self, sealer: &Sealer, record: &mut Record) {
        let identity = record.header(0, 0, 0).identity();
        let tag = sealer.seal(Part::Meta, &identity, &mut record.sealed);
        record.sealed.extend(tag);
    }

    /// Appends a record to the open segment, in a new one if there is no room in it: slices by `fill`, which is given
    /// a function that writes at an offset, then the header.
    pub(crate) fn append(
        &self,
        w: &mut Writer,
        record: &Record,
        now: Micros,
        fill: impl FnOnce(&mut dyn FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()>,
    ) -> io::Result<Placed> {
        let mut header = record.header(0, 0, 0);
        let footer = |open: &Open| (open.footer.len() + TRAILER) as u64 + header.head();
        let fits = |open: &Open| open.end + header.total() + footer(open) <= self.config.segment_bytes();
        if w.open.as_ref().is_some_and(|open| !fits(open)) {
            self.close(w)?;
        }
        // With a footer for it, and a header if the segment is new.
        let need = header.total() + header.head() + (FILE_HEADER + TRAILER) as u64;
        match self.make_room(w, need)? {
            Room::There => {}
            Room::None => return Ok(Placed::NoRoom),
            Room::Later => return Ok(Placed::Later),
        }
        // Making room may have opened, filled and closed segments.
        if w.open.as_ref().is_some_and(|open| !fits(open)) {
            self.close(w)?;
        }
        if w.open.is_none() {
            self.create(w)?;
        }
        let open = w.open.as_mut().expect("just made");
        header.segment = open.file.sequence;
        header.offset = open.end;
        header.durable = open.synced;
        let data = header.offset + header.head();
        let file = &*open.file.file;
        let start = self.vfs.now();
        // From here on there may be bytes behind the end.
        open.since.get_or_insert(now);
        fill(&mut |at, bytes| write_all(file, bytes, data + at))?;
        let mut head = header.encode();
        head.extend(&record.sealed);
        write_all(file, &head, header.offset)?;
        open.footer.extend(&head);
        open.records += 1;
        open.end += header.total();
        let took = self.vfs.now() - start;
        let mut state = self.state();
        state.counters.written += header.total();
        state.counters.write_time += took;
        let segment = state.segments.get_mut(&header.segment).expect("the open segment is there");
        segment.bytes = segment.bytes.max(open.end);
        if self.canary == Canary::SkipSync {
            segment.durable = open.end;
            state.advance_durable();
        }
        Ok(Placed::At(header, data))
    }

    fn create(&self, w: &mut Writer) -> io::Result<()> {
        let sequence = w.next;
        w.next += 1;
        let path = self.path(&segment_name(sequence));
        let file = self.vfs.create(&path)?;
        let header = SegmentHeader {
            sequence,
            created: self.vfs.unix(),
            fingerprint: self.identity,
            key: self.master.id,
            text: self.config.fingerprint.text.clone(),
        };
        if let Err(e) = write_all(&*file, &header.encode(), 0) {
            let _ = self.vfs.remove(&path);
            return Err(e);
        }
        let file = Arc::new(SegmentFile { sequence, path, file });
        let mut segment = Segment::new(Arc::clone(&file), Phase::Open);
        segment.bytes = FILE_HEADER as u64;
        self.state().segments.insert(sequence, segment);
        w.open = Some(Open {
            file,
            end: FILE_HEADER as u64,
            synced: 0,
            named: false,
            since: None,
            footer: Vec::new(),
            records: 0,
        });
        Ok(())
    }

    /// What was written becomes durable. After an error, [`Shared::failed`] gives the segment up.
    pub(crate) fn sync(&self, w: &mut Writer) -> io::Result<()> {
        let Some(open) = w.open.as_mut().filter(|open| open.since.is_some()) else { return Ok(()) };
        let start = self.vfs.now();
        open.file.file.sync_data()?;
        if !open.named {
            self.vfs.sync_dir(&self.config.dir)?;
            open.named = true;
        }
        open.synced = open.end;
        open.since = None;
        let bytes = open.end.max(open.file.file.allocated()?);
        let took = self.vfs.now() - start;
        let mut state = self.state();
        state.counters.syncs += 1;
        state.counters.sync_time += took;
        if let Some(segment) = state.segments.get_mut(&open.file.sequence) {
            segment.durable = open.synced;
            segment.bytes = bytes;
        }
        state.advance_durable();
        state.notes_durable = state.notes.waiting.is_empty();
        drop(state);
        self.well();
        self.progress.notify_all();
        Ok(())
    }

    /// Ends the open segment with copies of its records' headers. Its data is durable before they are written, so that
    /// whoever finds them need not look at it.
    pub(crate) fn close(&self, w: &mut Writer) -> io::Result<()> {
        self.sync(w)?;
        let Some(open) = w.open.take() else { return Ok(()) };
        let trailer = Trailer {
            sequence: open.file.sequence,
            footer: open.end,
            length: open.footer.len() as u64,
            records: open.records,
        };
        let mut bytes = open.footer;
        let end = trailer.encode(&bytes);
        bytes.extend(end);
        let written = write_all(&*open.file.file, &bytes, open.end).and_then(|()| open.file.file.sync_data());
        let allocated = open.file.file.allocated().unwrap_or(0);
        let mut state = self.state();
        if let Some(segment) = state.segments.get_mut(&open.file.sequence) {
            segment.phase = Phase::Closed;
            segment.bytes = (open.end + bytes.len() as u64).max(allocated);
        }
        written
    }

    /// Something could not be written or synced: the open segment is given up, with what is not durable in it, and saving
    /// pauses.
    pub(crate) fn failed(&self, w: &mut Writer, error: &io::Error) {
        if let Some(open) = w.open.take() {
            // A sync that failed is not tried again: nobody knows what it left out.
            let allocated = open.file.file.allocated().unwrap_or(0);
            let mut state = self.state();
            let mut lost = Vec::new();
            if let Some(segment) = state.segments.get_mut(&open.file.sequence) {
                segment.phase = Phase::Closed;
                segment.bytes = segment.bytes.max(allocated);
                for extent in segment.extents.iter().filter(|e| e.offset + e.total > open.synced) {
                    lost.extend(extent.nodes.iter().flatten());
                }
            }
            lost.sort_by_key(|&id| std::cmp::Reverse(state.index.node(id).depth));
            for id in lost {
                state.counters.evicted.abandoned += 1;
                state.drop_chunk(id, self.geometry.weight());
            }
            state.notes.rewrite(open.file.sequence);
            if open.synced == 0
                && let Some(segment) = state.segments.remove(&open.file.sequence)
            {
                state.doomed.push((segment.file, segment.bytes));
            }
        }
        let mut state = self.state();
        state.advance_durable();
        let now = self.vfs.now();
        let health = &mut state.health;
        health.why = Some(error.to_string());
        health.retry = now + (PAUSE.0 << health.failures.min(10)).min(PAUSE.1);
        health.failures += 1;
        state.counters.write_errors += 1;
        drop(state);
        self.progress.notify_all();
    }

    /// Something was written: if saving paused, it goes on.
    pub(crate) fn well(&self) {
        let mut state = self.state();
        state.health.why = None;
        state.health.failures = 0;
    }

    /// Files that nobody reads any more are removed.
    pub(crate) fn remove_doomed(&self) {
        let mut gone = Vec::new();
        {
            let mut state = self.state();
            state.doomed.retain(|(file, _)| {
                let free = Arc::strong_count(file) == 1;
                if free {
                    gone.push(Arc::clone(file));
                }
                !free
            });
        }
        for file in gone {
            // One that cannot be removed is found again, and counted, when the store is opened next.
            let _ = self.vfs.remove(&file.path);
        }
    }
}

/// Bytes of a segment that are not slices, for a record of so many chunks.
pub(crate) fn overhead(chunks: usize) -> u64 {
    let head = (RECORD_HEADER + ExtentMeta::sealed(chunks)) as u64;
    FILE_HEADER as u64 + 2 * head + crate::format::ALIGN + TRAILER as u64
}

impl Record {
    pub fn header(&self, segment: u64, offset: u64, durable: u64) -> RecordHeader {
        RecordHeader {
            kind: self.kind,
            chunks: self.chunks,
            present: self.present,
            segment,
            offset,
            durable,
            // A sealed part that has no tag yet gets one.
            meta: self.sealed.len() as u32,
            data: self.data,
            id: self.id,
            domain: self.hidden,
        }
    }
}
