//! KV that goes on past a cut: where a conversation has outgrown the context, what stands after the dropped part keeps its
//! KV, and only its place changes (decoupled positions, AttentionStore section 3.4).
//!
//! A carried path has tokens of its own: the whole chunks up to the cut, then those from the cut's other end on; what the
//! cut takes of its two border chunks is masked. Every key is turned by the position that its token had in the whole
//! conversation, so chunks behind the cut are read with a shift, and bytes never change. KV of a carried path depends on
//! what was dropped: it lies in a namespace of its own, and never answers for an exact path.

use std::ops::Range;
use std::sync::Arc;

use kvist_base::{CHUNK, DomainId, For, Micros, Prepare, TokenId, low_mask};
use kvist_cache::Path;

use crate::engine::Engine;
use crate::sequence::Sequence;
use crate::tier::{Room, Whence};

/// A cut, and where KV for what stands behind it may be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carry {
    /// Namespace of the carried path: one for each owner, cut and whole path up to the cut's end.
    pub space: DomainId,
    /// Chunks before the cut.
    pub head: usize,
    /// Tokens by which what is behind the cut moves; a multiple of [`CHUNK`].
    pub shift: usize,
    /// Places of the carried path that are masked, at most one chunk on either side of `head * CHUNK`.
    pub masked: Range<usize>,
    /// Paths of which the carried one is a part, the best first.
    pub sources: Vec<CarrySource>,
}

/// A path whose KV may be carried on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CarrySource {
    pub space: DomainId,
    pub tokens: Arc<[TokenId]>,
    /// Tokens by which places behind the cut move from there; a multiple of [`CHUNK`].
    pub shift: usize,
}

impl Carry {
    /// The cut that drops the tokens `[start, end)` of a path, and the carried path's tokens. `None`: no whole chunk would
    /// be dropped.
    pub fn new(tokens: &[TokenId], start: usize, end: usize, space: DomainId) -> Option<(Carry, Vec<TokenId>)> {
        let (head, tail) = (start.div_ceil(CHUNK), end / CHUNK);
        if tail <= head || end > tokens.len() {
            return None;
        }
        let shift = (tail - head) * CHUNK;
        let kept = [&tokens[..head * CHUNK], &tokens[tail * CHUNK..]].concat();
        Some((Carry { space, head, shift, masked: start..end - shift, sources: Vec::new() }, kept))
    }

    /// Birth minus place of the token at a place.
    pub fn shift_at(&self, place: usize) -> usize {
        if place >= self.head * CHUNK { self.shift } else { 0 }
    }

    /// Slots of the `depth`-th chunk that a row at `place` may see: not the masked ones, unless it is one of them.
    pub fn visible(&self, depth: usize, place: usize) -> u64 {
        let within = |at: usize| at.clamp(depth * CHUNK, (depth + 1) * CHUNK) - depth * CHUNK;
        if self.masked.contains(&place) {
            return u64::MAX;
        }
        !(low_mask(within(self.masked.end)) & !low_mask(within(self.masked.start)))
    }

    /// Where what stands at `place` of the carried path stands in a source.
    fn place_in(&self, source: &CarrySource, place: usize) -> usize {
        if place >= self.head * CHUNK { place + source.shift } else { place }
    }

    /// Whole chunks of the carried path from `place` on, a multiple of [`CHUNK`], that stand in a row in a source.
    fn in_a_row(&self, source: &CarrySource, tokens: &[TokenId], place: usize) -> usize {
        let end = if place >= self.head * CHUNK { tokens.len() } else { self.head * CHUNK };
        let theirs = source.tokens.get(self.place_in(source, place)..).unwrap_or_default();
        let pairs = tokens[place..end].chunks_exact(CHUNK).zip(theirs.chunks_exact(CHUNK));
        pairs.take_while(|(mine, theirs)| mine == theirs).count()
    }

    /// Where else what comes at `place` of the carried path of `tokens`, a multiple of [`CHUNK`], may be: domain, tokens to
    /// the end of what stands in a row there, and the place there; the best first.
    pub fn elsewhere<'a>(
        &'a self,
        tokens: &[TokenId],
        place: usize,
    ) -> impl Iterator<Item = (DomainId, &'a [TokenId], usize)> {
        self.sources.iter().filter_map(move |source| {
            let chunks = self.in_a_row(source, tokens, place);
            let at = self.place_in(source, place);
            (chunks > 0).then(|| (source.space, &source.tokens[..at + chunks * CHUNK], at))
        })
    }
}

impl Engine {
    /// Copies KV for a carried path behind what it holds, chunk by chunk, from the first source that has it in RAM. The
    /// copies are made at the beginning of the next step.
    pub(crate) fn copy_carried(&mut self, s: &mut Sequence, carry: &Carry, now: Micros) {
        if s.path.used / CHUNK == s.tokens.len() / CHUNK {
            return;
        }
        let mut paths: Vec<Path> = Vec::new();
        for source in &carry.sources {
            let mut path = Path::new();
            self.cache.follow(&mut path, source.space, &source.tokens, now);
            paths.push(path);
        }
        while s.path.used / CHUNK < s.tokens.len() / CHUNK {
            let place = s.path.used / CHUNK * CHUNK;
            let from = carry.sources.iter().zip(&paths).find_map(|(source, path)| {
                let at = carry.place_in(source, place);
                let node = *path.nodes.get(at / CHUNK)?;
                // Not what is computed in this step, or on its way.
                let there = path.used >= at + CHUNK && self.cache.filled(node).1 == CHUNK;
                let whole = there && source.tokens[at..at + CHUNK] == s.tokens[place..place + CHUNK];
                (whole && !self.cache.is_arriving(self.cache.slab(node))).then_some(node)
            });
            let Some(from) = from else { break };
            let Some(to) = self.cache.adopt(&mut s.path, s.domain, &s.tokens, false, false) else { break };
            self.cache.arrived(to);
            self.cache.unsaved_again(to);
            self.cache.hold(from);
            let (from, to) = (self.cache.slab(from), self.cache.slab(to));
            self.copies.push(Prepare::Copy { from, to, n: CHUNK as u8 });
            self.stats.carried_tokens += CHUNK as u64;
        }
        paths.into_iter().for_each(|path| self.cache.release(path));
    }

    /// Begins to load for a carried path, behind what it leads over, what the tier has of its sources: from there straight
    /// into the carried path's chunks. False: there was not enough room.
    pub(crate) fn load_carried(&mut self, s: &mut Sequence, carry: &Carry, room: &mut Room) -> bool {
        while let Some((whence, chunks)) = self.carried_from(&s.tokens, carry, s.path.used / CHUNK * CHUNK, room.who) {
            let before = s.path.used / CHUNK * CHUNK;
            let enough = self.load_run(s, whence, chunks, room);
            self.stats.carried_tokens += (s.path.used - before) as u64;
            if !enough {
                return false;
            }
        }
        true
    }

    /// The first source of which the tier has what comes at `place` of a carried path, and how many chunks. For one that
    /// waits: none if that is in RAM, from where it will be copied.
    fn carried_from<'a>(
        &self,
        tokens: &[TokenId],
        carry: &'a Carry,
        place: usize,
        who: For,
    ) -> Option<(Whence<'a>, usize)> {
        if self.tiers.is_none() || who == For::Waiting && self.in_ram(tokens, carry, place) > 0 {
            return None;
        }
        carry.elsewhere(tokens, place).find_map(|(domain, there, at)| {
            let found = self.found(domain, there, at, place).unwrap_or_default();
            let parts = [(DomainId::PUBLIC, found.public), (domain, found.own)];
            let (domain, chunks) = parts.into_iter().find(|part| part.1 > 0)?;
            Some((Whence { domain, elsewhere: Some((there, at - place)) }, chunks))
        })
    }

    /// Whole chunks of a carried path from `place` on that one of its sources has in RAM, the longest run.
    fn in_ram(&self, tokens: &[TokenId], carry: &Carry, place: usize) -> usize {
        let runs = carry
            .elsewhere(tokens, place)
            .map(|(domain, there, at)| (self.cache.probe(domain, there) / CHUNK).saturating_sub(at / CHUNK));
        runs.max().unwrap_or(0)
    }

    /// Tokens of a carried path behind the first `place`, a multiple of [`CHUNK`], that its sources have: those to be copied
    /// in RAM, and those to be loaded.
    pub(crate) fn expect_carried(&self, tokens: &[TokenId], carry: &Carry, mut place: usize) -> (usize, usize) {
        let (mut copied, mut loaded) = (0, 0);
        loop {
            let here = self.in_ram(tokens, carry, place);
            let there = match self.carried_from(tokens, carry, place, For::Running) {
                Some((_, chunks)) if here == 0 => chunks,
                _ => 0,
            };
            (copied, loaded) = (copied + here * CHUNK, loaded + there * CHUNK);
            place += (here + there) * CHUNK;
            if here + there == 0 {
                return (copied, loaded);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_inside_chunks_masks_its_borders() {
        let tokens: Vec<TokenId> = (0..1000).collect();
        // 100 tokens stay in front, 350 go: chunk 1 ends with 28 of them, chunk 7 begins with two.
        let (carry, kept) = Carry::new(&tokens, 100, 450, DomainId::carried(9)).unwrap();
        assert_eq!((carry.head, carry.shift, carry.masked.clone()), (2, 320, 100..130));
        assert_eq!(kept.len(), 1000 - 320);
        assert_eq!((kept[127], kept[128], kept[679]), (127, 448, 999));
        for (place, token) in kept.iter().map(|&token| token as usize).enumerate() {
            assert_eq!(carry.masked.contains(&place), (100..450).contains(&token), "{place}");
            assert_eq!(place + carry.shift_at(place), token);
        }
        // A row behind the cut sees all but the masked places; a masked one sees everything.
        for depth in 0..4 {
            let seen = (0..CHUNK).filter(|slot| carry.visible(depth, 300) >> slot & 1 == 1).map(|s| depth * CHUNK + s);
            assert!(seen.eq((depth * CHUNK..(depth + 1) * CHUNK).filter(|place| !carry.masked.contains(place))));
            assert_eq!(carry.visible(depth, 129), u64::MAX);
        }
    }

    #[test]
    fn cuts_of_less_than_a_chunk_are_none() {
        let tokens: Vec<TokenId> = (0..300).collect();
        assert_eq!(Carry::new(&tokens, 1, 127, DomainId::carried(9)), None);
        assert_eq!(Carry::new(&tokens, 10, 320, DomainId::carried(9)), None);
        let (carry, kept) = Carry::new(&tokens, 0, 64, DomainId::carried(9)).unwrap();
        assert_eq!((carry.head, carry.masked, kept[0]), (0, 0..0, 64));
        let (carry, _) = Carry::new(&tokens, 64, 192, DomainId::carried(9)).unwrap();
        assert_eq!((carry.head, carry.shift, carry.masked), (1, 128, 64..64));
    }
}
