//! Segment files as memory knows them.

use std::path::PathBuf;
use std::sync::Arc;

use crate::crypto::{RecordId, TAG};
use crate::format::{ExtentMeta, RECORD_HEADER, RecordHeader};
use crate::index::NodeId;
use crate::vfs::VfsFile;

/// Where the slices of an extent are: `[layer][chunk]`, each with its tag behind it.
#[derive(Clone, Debug)]
pub(crate) struct Geometry {
    /// Bytes of each layer's slice.
    pub slices: Vec<usize>,
    /// Stored bytes of a chunk's slices before each layer, and of all.
    before: Vec<u64>,
}

impl Geometry {
    /// `None`: nothing, or more than a record can hold.
    pub fn new(slices: &[usize]) -> Option<Self> {
        let mut before = vec![0u64];
        for &slice in slices {
            let end = before[before.len() - 1].checked_add(slice as u64)?.checked_add(TAG as u64)?;
            before.push(end);
        }
        let fits = !slices.is_empty() && !slices.contains(&0) && before[slices.len()] <= 1 << 40;
        fits.then(|| Geometry { slices: slices.to_vec(), before })
    }

    pub fn layers(&self) -> usize {
        self.slices.len()
    }

    /// Bytes of a chunk in memory.
    pub fn chunk(&self) -> usize {
        self.slices.iter().sum()
    }

    /// Bytes of a chunk on disk.
    pub fn stored(&self) -> u64 {
        self.before[self.slices.len()]
    }

    /// What a chunk on disk counts for: with what a record of its own would take besides.
    pub fn weight(&self) -> u64 {
        self.stored() + 2 * (RECORD_HEADER + ExtentMeta::sealed(1)) as u64
    }

    /// Offset in the data of an extent of `chunks` chunks of the `rank`-th one's slice in `layer`. `layer` may be the one
    /// after the last with rank 0: the end.
    pub fn slice(&self, chunks: usize, layer: usize, rank: usize) -> u64 {
        let own = self.slices.get(layer).map_or(0, |s| (s + TAG) as u64);
        self.before[layer] * chunks as u64 + own * rank as u64
    }

    /// Offset in a chunk in memory.
    pub fn plain(&self, layer: usize) -> usize {
        (self.before[layer] - (layer * TAG) as u64) as usize
    }
}

/// An open segment. Whoever reads holds it; it is removed when nobody does.
pub(crate) struct SegmentFile {
    pub sequence: u64,
    pub path: PathBuf,
    pub file: Arc<dyn VfsFile>,
}

/// Chunks that were saved together.
pub(crate) struct Extent {
    pub id: RecordId,
    /// Index of the domain.
    pub domain: usize,
    /// Of the record in the segment.
    pub offset: u64,
    /// Of the slices in the segment.
    pub data: u64,
    /// Of the record with everything.
    pub total: u64,
    pub present: u16,
    /// The node of each chunk, as it was saved; `None` where the chunk is not here or no longer wanted.
    pub nodes: Vec<Option<NodeId>>,
}

impl Extent {
    /// What a record's header says; none of its chunks is in the index yet. `data`: offset of its slices in the segment.
    pub fn new(header: &RecordHeader, data: u64, domain: usize) -> Extent {
        Extent {
            id: header.id,
            domain,
            offset: header.offset,
            data,
            total: header.total(),
            present: header.present,
            nodes: vec![None; usize::from(header.chunks)],
        }
    }

    /// How many chunks are here.
    pub fn count(&self) -> usize {
        self.present.count_ones() as usize
    }

    /// Which of those that are here a chunk is.
    pub fn rank(&self, chunk: u8) -> usize {
        (self.present & ((1u16 << chunk) - 1)).count_ones() as usize
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Written to.
    Open,
    /// Of this fingerprint and key; never written to again.
    Closed,
    /// Of another fingerprint or key, or unreadable: nothing of it is known but its size.
    Foreign,
}

pub(crate) struct Segment {
    pub file: Arc<SegmentFile>,
    pub phase: Phase,
    pub extents: Vec<Extent>,
    /// Bytes of the file, or what it takes on the medium if that is more.
    pub bytes: u64,
    /// Of them, bytes of records of which something is wanted.
    pub live: u64,
    /// Everything before this place is on the medium.
    pub durable: u64,
}

impl Segment {
    pub fn new(file: Arc<SegmentFile>, phase: Phase) -> Self {
        Segment { file, phase, extents: Vec::new(), bytes: 0, live: 0, durable: 0 }
    }

    pub fn dead(&self) -> u64 {
        self.bytes.saturating_sub(self.live)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_of_an_extent_follow_each_other() {
        let geometry = Geometry::new(&[100, 7, 64]).unwrap();
        let mut at = 0;
        for (layer, slice) in [100, 7, 64].into_iter().enumerate() {
            for rank in 0..3 {
                assert_eq!(geometry.slice(3, layer, rank), at);
                at += slice + TAG as u64;
            }
        }
        assert_eq!(geometry.slice(3, 3, 0), at);
        assert_eq!(geometry.stored() * 3, at);
        assert_eq!((geometry.plain(0), geometry.plain(2), geometry.chunk()), (0, 107, 171));
        assert!(Geometry::new(&[]).is_none() && Geometry::new(&[1, 0]).is_none());
        assert!(Geometry::new(&[usize::MAX, usize::MAX]).is_none());
    }
}
