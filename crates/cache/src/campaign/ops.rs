//! Operations outside of steps.

use kvist_base::{CHUNK, ChunkId};

use super::{Campaign, MAX_TOKENS, domain, ensure};
use crate::Path;
use crate::model::{PUBLIC, Track, Uid, common};

impl Campaign<'_> {
    pub(super) fn start(&mut self) -> Result<(), String> {
        self.report.note("start", 1);
        let mut text = self.text();
        text.truncate(MAX_TOKENS);
        let who = self.domain();
        self.pass_time();
        let visit = self.cache.enter(domain(who), &text, self.tick);
        self.model.now = self.model.now.max(self.tick);
        let should = self.model.enter(who, &text);
        ensure!(visit == should, "{visit:?} instead of {should:?}");
        self.report.note("start: comes back", u64::from(visit.turn > 0));
        self.paths.push(Path::new());
        self.tracks.push(Track { domain: who, text, visit, ..Track::default() });
        Ok(())
    }

    pub(super) fn fork(&mut self) {
        self.report.note("fork", 1);
        let i = self.rng.index(self.paths.len());
        let path = self.cache.fork(&self.paths[i]);
        self.paths.push(path);
        self.tracks.push(self.tracks[i].clone());
        self.model.settle(self.tracks.iter());
    }

    pub(super) fn release(&mut self, i: usize) {
        self.report.note("release", 1);
        let behind = self.tracks[i].pin != self.tracks[i].nodes.last().copied();
        self.report.note("release: with nodes that left the tree", u64::from(behind));
        if self.rng.chance(80) {
            self.sync(i);
            self.pass_time();
            let prompt = self.rng.index(self.tracks[i].text.len() + 1);
            let (path, track) = (&mut self.paths[i], &self.tracks[i]);
            self.cache.leave(path, domain(track.domain), &track.text, prompt, &track.visit, self.tick);
            self.model.now = self.model.now.max(self.tick);
            self.model.leave(&self.tracks[i], prompt);
            self.report.note("release: told before", 1);
        }
        self.cache.release(self.paths.swap_remove(i));
        self.tracks.swap_remove(i);
        self.model.settle(self.tracks.iter());
    }

    pub(super) fn truncate(&mut self, i: usize) -> Result<(), String> {
        self.report.note("truncate", 1);
        let before = self.paths[i].used;
        self.sync(i);
        let used = if self.rng.chance(50) {
            self.cache.truncate(&mut self.paths[i])
        } else {
            self.cache.remap(&mut self.paths[i]);
            self.paths[i].used
        };
        self.report.note("truncate: something was lost", u64::from(used < before));
        self.report.note("truncate: inside a chunk", u64::from(used < before && !used.is_multiple_of(CHUNK)));
        ensure!(used == self.tracks[i].used, "truncated to {used} instead of {}", self.tracks[i].used);
        self.check_path(i)
    }

    pub(super) fn invalidate(&mut self) -> Result<(), String> {
        self.report.note("invalidate", 1);
        let mut chunk = self.rng.below(u64::from(self.model.slabs)) as u32;
        let mut keep = match self.rng.below(3) {
            0 => self.rng.pick(&[1, 2, 62, 63, 64]),
            1 => self.rng.index(CHUNK + 1),
            _ => 0,
        };
        if self.rng.chance(30) {
            let chunks = self.model.nodes.values().map(|node| node.chunk);
            let agree: Vec<_> = chunks.filter_map(|chunk| Some((chunk, self.sibling(chunk)?))).collect();
            if !agree.is_empty() {
                (chunk, keep) = self.rng.pick(&agree);
            }
        }
        self.lose(chunk, keep);
        Ok(())
    }

    /// How far a slab's node agrees with a sibling.
    fn sibling(&self, chunk: u32) -> Option<usize> {
        let uid = self.model.of_chunk(chunk)?;
        let node = &self.model.nodes[&uid];
        let siblings =
            self.model.visible(node.domain).filter(|&(&other, twin)| other != uid && twin.parent == node.parent);
        let agrees = siblings.map(|(_, twin)| common(&twin.text, &node.text).saturating_sub(node.start()));
        agrees.max().filter(|&n| n > 0)
    }

    /// Invalidates a slab from `keep` on, in the tree and in the model.
    pub(super) fn lose(&mut self, chunk: u32, keep: usize) {
        self.cache.invalidate(ChunkId(chunk), keep);
        let Some(uid) = self.model.of_chunk(chunk) else { return };
        let node = &self.model.nodes[&uid];
        let inner = self.tracks.iter().any(|track| track.nodes.iter().rev().skip(1).any(|&on| on == uid));
        if node.linked && inner && keep < node.text.len() - node.start() {
            self.report.note("invalidate: in the middle of a path", 1);
            let others = self.tracks.iter().filter(|track| track.nodes.contains(&uid)).count();
            self.report.note("invalidate: of several paths", u64::from(others > 1));
        }
        let gone = self.model.cut(uid, keep, &mut self.tracks.iter_mut().collect::<Vec<_>>());
        self.unlinked += gone;
        self.report.note("invalidate: nodes gone", gone);
        let twins = self.model.nodes.iter().any(|(other, twin)| {
            let node = &self.model.nodes[&uid];
            *other != uid && node.linked && twin.sees(node.domain) && twin.text == node.text
        });
        self.report
            .note("invalidate: makes an equal of a sibling", u64::from(self.model.nodes.contains_key(&uid) && twins));
        self.model.settle(self.tracks.iter());
    }

    pub(super) fn publish(&mut self) -> Result<(), String> {
        self.report.note("publish", 1);
        let (mut text, mut who) = (self.text(), self.domain());
        if self.rng.chance(70) && !self.model.nodes.is_empty() {
            let n = self.rng.index(self.model.nodes.len());
            let node = self.model.nodes.values().nth(n).expect("in range");
            (text, who) = (node.text.clone(), node.domain);
        }
        let found = self.cache.publish(domain(who), &text);
        let (mut tokens, mut merged) = (0, 0);
        while tokens + CHUNK <= text.len() {
            let end = tokens + CHUNK;
            let holds = |of: u32| {
                let mut equal = self.model.nodes.iter().filter(|(_, node)| node.linked && node.text == text[..end]);
                equal.find(|(_, node)| node.domain == of).map(|(&uid, _)| uid)
            };
            if holds(PUBLIC).is_none() {
                let Some(own) = holds(who) else { break };
                self.model.nodes.get_mut(&own).expect("held").domain = PUBLIC;
                let equal = self.model.nodes.iter().filter(|(_, node)| node.linked && node.text == text[..end]);
                let others: Vec<Uid> = equal.map(|(&uid, _)| uid).filter(|&uid| uid != own).collect();
                for &other in &others {
                    self.merge(other, own);
                }
                merged += others.len();
                self.report.note("publish: nodes made public", 1);
            }
            tokens = end;
        }
        ensure!(found.tokens == tokens, "published {} tokens instead of {tokens}", found.tokens);
        ensure!(found.remap.len() == merged, "merged {} nodes instead of {merged}", found.remap.len());
        self.merges += merged as u64;
        self.model.settle(self.tracks.iter());
        self.check_kv()
    }

    fn merge(&mut self, from: Uid, into: Uid) {
        self.report.note("publish: nodes merged", 1);
        for node in self.model.nodes.values_mut() {
            if node.linked && node.parent == Some(from) {
                node.parent = Some(into);
            }
        }
        let node = self.model.nodes.get_mut(&from).expect("to be merged");
        (node.linked, node.parent) = (false, Some(into));
        let (last, pinned) = (node.last, node.pinned);
        let public = self.model.nodes.get_mut(&into).expect("public");
        public.last = public.last.max(last);
        self.model.move_guards(from, Some(into));
        self.report.note("publish: pinned nodes merged", u64::from(pinned));
        for track in &mut self.tracks {
            self.report.note("publish: the last node of a path merged", u64::from(track.nodes.last() == Some(&from)));
            track.nodes.iter_mut().filter(|uid| **uid == from).for_each(|uid| *uid = into);
        }
    }

    pub(super) fn unpublish(&mut self) -> Result<(), String> {
        self.report.note("unpublish", 1);
        let mut text = self.text();
        let public: Vec<_> = self.model.visible(PUBLIC).map(|(_, node)| &node.text).collect();
        if self.rng.chance(60) && !public.is_empty() {
            text = public[self.rng.index(public.len())].clone();
        }
        let mut top = None;
        for end in (CHUNK..=text.len()).step_by(CHUNK) {
            let mut public = self.model.visible(PUBLIC);
            let Some((&uid, node)) = public.find(|(_, node)| node.text == text[..end]) else { break };
            let siblings = self.model.visible(PUBLIC).filter(|(_, other)| other.parent == node.parent).count();
            if top.is_none() || siblings > 1 {
                top = Some(uid);
            }
        }
        let found = self.cache.unpublish(&text);
        let Some(top) = top else {
            ensure!(found == 0, "unpublished {found} nodes of nothing");
            return Ok(());
        };
        let shared = self.model.nodes[&top].start() > 0;
        let pinned = self.model.below(top).iter().any(|uid| self.model.nodes[uid].pinned);
        let gone = self.model.detach(top, self.tracks.iter_mut());
        ensure!(found == gone, "unpublished {found} nodes instead of {gone}");
        self.report.note("unpublish: of something", 1);
        self.report.note("unpublish: beside another publication", u64::from(shared));
        self.report.note("unpublish: while pinned", u64::from(pinned));
        self.unlinked += gone;
        self.model.settle(self.tracks.iter());
        Ok(())
    }

    pub(super) fn protect(&mut self) -> Result<(), String> {
        self.report.note("protect", 1);
        let (text, who) = (self.text(), self.domain());
        let ticket = self.rng.below(4);
        let rank = self.rng.below(3) as u32;
        self.cache.protect(ticket, domain(who), &text, rank);
        let node = self.cache.guarded(ticket).map(|chunk| self.model.of_chunk(chunk.0).expect("a node"));
        let held = self.model.held(who, &text);
        let found = node.map_or(0, |uid| {
            let node = &self.model.nodes[&uid];
            if node.sees(who) { common(&node.text, &text) } else { 0 }
        });
        ensure!(found == held, "protects {found} of {held} tokens");
        self.model.guards.insert(ticket, (node, rank));
        Ok(())
    }

    pub(super) fn unprotect(&mut self) {
        self.report.note("unprotect", 1);
        let ticket = self.rng.below(4);
        self.cache.unprotect(ticket);
        self.model.guards.remove(&ticket);
    }

    pub(super) fn probe(&mut self) -> Result<(), String> {
        let text = self.text();
        let who = self.rng.below(super::DOMAINS + 1) as u32;
        let (found, should) = (self.cache.probe(domain(who), &text), self.model.computed(who, &text));
        self.report.note("probe", 1);
        self.report.note("probe: hit", u64::from(found > 0));
        ensure!(found == should, "domain {who}: probed {found} instead of {should} of {text:?}");
        Ok(())
    }
}
