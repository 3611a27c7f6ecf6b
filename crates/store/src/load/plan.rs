//! What a load reads, in which pieces.

use std::ops::Range;
use std::sync::Arc;

use kvist_base::TokenId;

use crate::crypto::{Key, Sealer, TAG};
use crate::index::{Data, NodeId, Place};
use crate::segment::SegmentFile;
use crate::state::{Shared, State};

/// Bytes of a piece at least, where an extent has so many: the first layer's, and, twice as many from one to the next, the
/// others'.
const LEAST: usize = 128 << 10;
pub(super) const PIECE: usize = 1 << 20;
/// The first layer is read in so many pieces, if they are not too small or too large: all threads work on it.
const SHARES: usize = 16;

/// A chunk of a stretch.
pub(super) struct Wanted {
    /// Index in its extent as it was saved.
    pub chunk: u8,
    pub chain: Key,
    pub node: NodeId,
    pub place: Place,
}

/// Consecutive chunks of a load that have one source.
pub(super) enum Source {
    Missing,
    Memory(Arc<Vec<u8>>),
    Disk(Box<Stretch>),
}

/// Neighbours in one extent.
pub(super) struct Stretch {
    pub file: Arc<SegmentFile>,
    pub sealer: Sealer,
    /// Offset of the extent's slices.
    pub data: u64,
    /// Chunks in the extent that are there.
    pub count: usize,
    /// Which of those is the first.
    pub rank: usize,
    pub chunks: Vec<Wanted>,
    /// The first piece of each layer, and how many chunks it has; all but the last of the layer have as many.
    pub pieces: Vec<(usize, usize)>,
}

impl Stretch {
    /// The piece that a slice is in.
    pub fn piece(&self, layer: usize, chunk: usize) -> usize {
        let (first, each) = self.pieces[layer];
        first + chunk / each
    }
}

/// What is read at once: some layers of a stretch, or some of its chunks in one layer.
pub(super) struct Piece {
    pub source: usize,
    pub layers: Range<usize>,
    pub chunks: Range<usize>,
    pub offset: u64,
    pub length: usize,
}

impl Piece {
    /// Slices that it has.
    pub fn slices(&self) -> usize {
        self.layers.len() * self.chunks.len()
    }

    /// Which of them is that of a layer and a chunk of the stretch.
    pub fn slice(&self, layer: usize, chunk: usize) -> usize {
        (layer - self.layers.start) * self.chunks.len() + chunk - self.chunks.start
    }

    /// The chunks of which a slice is bad.
    pub fn bad_chunks<'a>(&'a self, bad: &'a [bool]) -> impl Iterator<Item = usize> + 'a {
        self.chunks.clone().filter(move |&chunk| self.layers.clone().any(|layer| bad[self.slice(layer, chunk)]))
    }
}

impl Shared {
    pub(super) fn sources(
        &self,
        state: &mut State,
        domain: Option<usize>,
        tokens: &[TokenId],
        range: Range<usize>,
    ) -> (Vec<Source>, Vec<(usize, usize)>) {
        let now = self.vfs.now() as i64;
        let nodes: Vec<NodeId> = domain.map_or(Vec::new(), |d| state.index.walk(d, tokens).collect());
        let mut sources = Vec::new();
        let mut chunks = Vec::with_capacity(range.len());
        for i in range {
            let Some(&id) = nodes.get(i) else {
                sources.push(Source::Missing);
                chunks.push((sources.len() - 1, 0));
                continue;
            };
            state.index.touch(id, now);
            let node = state.index.node(id);
            let place = match &node.data {
                Data::Absent => {
                    sources.push(Source::Missing);
                    chunks.push((sources.len() - 1, 0));
                    continue;
                }
                Data::Queued(bytes) => {
                    sources.push(Source::Memory(Arc::clone(bytes)));
                    chunks.push((sources.len() - 1, 0));
                    continue;
                }
                Data::Stored(place) => *place,
            };
            let Some(segment) = state.segments.get(&place.segment) else {
                sources.push(Source::Missing);
                chunks.push((sources.len() - 1, 0));
                continue;
            };
            let extent = &segment.extents[place.extent as usize];
            let rank = extent.rank(place.chunk);
            let wanted = Wanted { chunk: place.chunk, chain: node.chain, node: id, place };
            if let Some(Source::Disk(stretch)) = sources.last_mut() {
                let last = stretch.chunks.last().expect("a stretch has chunks").place;
                if (last.segment, last.extent) == (place.segment, place.extent)
                    && stretch.rank + stretch.chunks.len() == rank
                {
                    stretch.chunks.push(wanted);
                    chunks.push((sources.len() - 1, rank));
                    continue;
                }
            }
            let key = state.index.domains[extent.domain].keys.key;
            sources.push(Source::Disk(Box::new(Stretch {
                file: Arc::clone(&segment.file),
                sealer: self.sealer(&key, &extent.id),
                data: extent.data,
                count: extent.count(),
                rank,
                chunks: vec![wanted],
                pieces: Vec::new(),
            })));
            chunks.push((sources.len() - 1, rank));
        }
        // Ranks become indices into stretches.
        for (source, at) in &mut chunks {
            if let Source::Disk(stretch) = &sources[*source] {
                *at -= stretch.rank;
            }
        }
        (sources, chunks)
    }

    pub(super) fn pieces(&self, sources: &mut [Source]) -> Vec<Piece> {
        let g = &self.geometry;
        let stretches = sources.iter().filter_map(|source| match source {
            Source::Disk(stretch) => Some(stretch.chunks.len()),
            Source::Missing | Source::Memory(_) => None,
        });
        let first = stretches.sum::<usize>() * (g.slices[0] + TAG) / SHARES;
        let first = first.clamp(LEAST, PIECE);
        let mut pieces = Vec::new();
        for (source, stretch) in sources.iter().enumerate() {
            let Source::Disk(stretch) = stretch else { continue };
            let n = stretch.chunks.len();
            let start = |layer: usize, chunk: usize| g.slice(stretch.count, layer, stretch.rank + chunk);
            let end = |layer: usize, chunk: usize| start(layer, chunk) + (g.slices[layer] + TAG) as u64;
            let (mut from, mut least) = (0, first);
            while from < g.layers() {
                let mut to = from + 1;
                // What lies between the layers' stretches is read for nothing: at most as much as is wanted.
                while to < g.layers()
                    && ((end(to - 1, n - 1) - start(from, 0)) as usize) < least
                    && 2 * n >= stretch.count
                {
                    to += 1;
                }
                let parts = if to == from + 1 { (n * (g.slices[from] + TAG) / least).clamp(1, n) } else { 1 };
                let each = n.div_ceil(parts);
                for chunk in (0..n).step_by(each) {
                    let chunks = chunk..(chunk + each).min(n);
                    let begin = start(from, chunk);
                    let length = (end(to - 1, chunks.end - 1) - begin) as usize;
                    pieces.push(Piece { source, layers: from..to, chunks, offset: stretch.data + begin, length });
                }
                (from, least) = (to, (2 * least).min(PIECE));
            }
        }
        pieces.sort_by_key(|p| (p.layers.start, p.source, p.chunks.start));
        for (at, piece) in pieces.iter().enumerate().filter(|(_, p)| p.chunks.start == 0) {
            if let Source::Disk(stretch) = &mut sources[piece.source] {
                stretch.pieces.resize(g.layers(), (0, 1));
                stretch.pieces[piece.layers.clone()].fill((at, piece.chunks.len()));
            }
        }
        pieces
    }
}
