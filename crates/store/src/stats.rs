use std::fmt;

use kvist_base::Micros;

/// Sums since the store was opened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    pub written: u64,
    pub copied: u64,
    pub read: u64,
    pub saved: u64,
    pub known: u64,
    pub full: u64,
    pub off: u64,
    pub not_admitted: u64,
    pub loads: u64,
    pub loaded: u64,
    pub lost: u64,
    pub corrupt: u64,
    pub read_errors: u64,
    pub write_errors: u64,
    pub sync_errors: u64,
    pub evicted: Evictions,
    pub returned: u64,
    pub read_time: Micros,
    pub open_time: Micros,
    pub write_time: Micros,
    pub sync_time: Micros,
    pub syncs: u64,
}

/// Chunks that left, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evictions {
    /// The budget was reached.
    pub budget: u64,
    /// It could not be read, or did not verify.
    pub damaged: u64,
    /// Its segment was given up before it was durable.
    pub abandoned: u64,
    /// Its domain was forgotten.
    pub forgotten: u64,
}

/// What a store is and did. Bytes are on disk unless it says otherwise; times are sums over threads.
#[derive(Clone, Debug, Default)]
pub struct StoreStats {
    /// Chunks that can be loaded.
    pub entries: u64,
    pub budget: u64,
    /// Of all files, in bytes or in blocks, whichever is more.
    pub bytes: u64,
    pub live: u64,
    /// Wait for their segment to be copied or removed.
    pub dead: u64,
    /// Of other fingerprints, other keys, or unreadable: the first to go.
    pub foreign: u64,
    pub segments: u64,
    /// In memory, waiting to be written.
    pub queued: u64,
    pub notes: u64,
    pub written: u64,
    /// Of `written`, to make room.
    pub copied: u64,
    pub read: u64,
    /// Chunks.
    pub saved: u64,
    pub known: u64,
    pub refused_full: u64,
    pub refused_off: u64,
    /// Worth less than what would have had to go for them.
    pub not_admitted: u64,
    pub loads: u64,
    /// Slices.
    pub loaded: u64,
    pub lost: u64,
    pub corrupt: u64,
    pub read_errors: u64,
    pub write_errors: u64,
    pub sync_errors: u64,
    pub evicted: Evictions,
    /// Chunks that were evicted for room and saved again later: computed for a second time.
    pub returned: u64,
    pub read_seconds: f64,
    /// Verifying and decrypting.
    pub open_seconds: f64,
    pub write_seconds: f64,
    pub sync_seconds: f64,
    pub syncs: u64,
    /// Why saving pauses.
    pub degraded: Option<String>,
    /// Threads that panicked and went on.
    pub panics: u64,
}

/// What was found when the store was opened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Restored {
    /// Chunks.
    pub entries: u64,
    pub domains: u64,
    pub notes: u64,
    pub segments: u64,
    /// Segments that were read record by record: their process did not end in good order.
    pub scanned: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// Of them, of other fingerprints or keys, or unreadable.
    pub foreign: u64,
    /// Records that were torn, damaged, of a forgotten domain, or without what comes before them on their path.
    pub dropped: u64,
    /// The table of keys was damaged: what was sealed under it is lost.
    pub keys_lost: bool,
    pub seconds: f64,
}

impl fmt::Display for Restored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tokens = self.entries * kvist_base::CHUNK as u64;
        write!(f, "{tokens} tokens of {} domains restored", self.domains)?;
        write!(
            f,
            " ({:.1} MiB in {} segments, {:.3} s)",
            self.bytes as f64 / (1 << 20) as f64,
            self.segments,
            self.seconds
        )?;
        if self.foreign > 0 {
            write!(f, "; {:.1} MiB of other models or keys", self.foreign as f64 / (1 << 20) as f64)?;
        }
        if self.dropped > 0 {
            write!(f, "; {} records incomplete or damaged", self.dropped)?;
        }
        if self.keys_lost {
            write!(f, "; the key table was damaged, what it protected is lost")?;
        }
        Ok(())
    }
}
