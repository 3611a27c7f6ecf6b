//! Steps: several paths follow, claim and compute together.

use kvist_base::{CHUNK, Prepare, TokenId};

use super::{Campaign, MAX_TOKENS, digests, domain, ensure};
use crate::Claim;
use crate::model::{Node, PUBLIC, Track, Uid, common};
use crate::policy::Class;

/// Slots that one claim got, and what its rows write.
struct Rows {
    chunk: u32,
    first: usize,
    digests: Vec<u64>,
}

/// What a claim must answer.
enum Expected {
    Extend(Uid),
    /// A new node in a free slab, or in that of the node to be evicted.
    Start {
        /// One of them.
        evict: Vec<Uid>,
        copy: Option<Uid>,
    },
    TakeOver(Uid),
    NotYet,
    Full,
}

impl Campaign<'_> {
    pub(super) fn step(&mut self) -> Result<(), String> {
        self.report.note("step", 1);
        let (mut prepare, mut rows) = (Vec::new(), Vec::new());
        for _ in 0..1 + self.rng.index(2 * self.paths.len()) {
            if self.paths.is_empty() {
                break;
            }
            let i = self.rng.index(self.paths.len());
            self.sequence(i, &mut prepare, &mut rows)?;
            self.check()?;
            match self.rng.below(100) {
                0..4 if !self.paths.is_empty() => {
                    let i = self.rng.index(self.paths.len());
                    self.report.note("step: release within", 1);
                    self.release(i);
                }
                4..8 if self.paths.len() < super::MAX_PATHS => self.fork(),
                8..11 => self.probe()?,
                11..13 => self.protect()?,
                _ => {}
            }
            self.check()?;
        }
        if self.rng.chance(4) {
            return self.abort();
        }
        for work in &prepare {
            match *work {
                Prepare::Zero(chunk) => self.kv[chunk.0 as usize] = [0; CHUNK],
                Prepare::Copy { from, to, n } => {
                    let from = self.kv[from.0 as usize];
                    self.kv[to.0 as usize][..n as usize].copy_from_slice(&from[..n as usize]);
                }
                Prepare::Install(_) => return Err("the tree plans no installs".into()),
            }
        }
        let mut lost = vec![false; rows.len()];
        if self.rng.chance(15) && !rows.is_empty() {
            lost[self.rng.index(rows.len())] = true;
            lost.iter_mut().for_each(|lost| *lost |= self.rng.chance(20));
        }
        for (rows, _) in rows.iter().zip(&lost).filter(|(_, lost)| !**lost) {
            self.kv[rows.chunk as usize][rows.first..][..rows.digests.len()].copy_from_slice(&rows.digests);
        }
        for (rows, _) in rows.iter().zip(&lost).filter(|(_, lost)| **lost) {
            self.report.note("step: lost rows", 1);
            self.lose(rows.chunk, rows.first);
            self.check()?;
        }
        if self.rng.chance(3) {
            self.invalidate()?;
        }
        if self.rng.chance(2) {
            self.unpublish()?;
        }
        self.cache.commit();
        for (uid, _) in std::mem::take(&mut self.model.claimed) {
            let node = self.model.nodes.get_mut(&uid).expect("pinned");
            node.valid = node.text.len();
        }
        self.model.settle(self.tracks.iter());
        self.check_kv()
    }

    fn abort(&mut self) -> Result<(), String> {
        self.report.note("step: aborted", 1);
        self.cache.abort();
        let claimed = std::mem::take(&mut self.model.claimed);
        for (&uid, valid) in &claimed {
            let keep = valid.map_or(0, |valid| valid - self.model.nodes[&uid].start());
            self.unlinked += self.model.cut(uid, keep, &mut self.tracks.iter_mut().collect::<Vec<_>>());
        }
        self.model.settle(self.tracks.iter());
        self.check_kv()
    }

    /// One path's part in a step: follow, then claim room for what is missing, as far as it goes.
    fn sequence(&mut self, i: usize, prepare: &mut Vec<Prepare>, rows: &mut Vec<Rows>) -> Result<(), String> {
        self.follow(i)?;
        let track = &mut self.tracks[i];
        if track.used == track.text.len() && track.used < MAX_TOKENS {
            let n = if self.rng.chance(80) { 1 } else { 1 + self.rng.index(70) };
            for _ in 0..n {
                let same = track.text.last().copied().filter(|_| self.rng.chance(80));
                track.text.push(same.unwrap_or(self.rng.below(3) as TokenId));
            }
            if self.rng.chance(80) {
                self.follow(i)?;
            }
        }
        for _ in 0..1 + self.rng.below(4) {
            let track = &self.tracks[i];
            if track.used == track.text.len() || self.model.held(track.domain, &track.text) > track.used {
                break;
            }
            let max = self.rng.pick(&[1, 2, 3, 62, 63, 64, 65, 200]);
            if !self.claim(i, max, prepare, rows)? {
                break;
            }
        }
        Ok(())
    }

    fn follow(&mut self, i: usize) -> Result<(), String> {
        self.report.note("follow", 1);
        self.sync(i);
        self.pass_time();
        let (from, before) = (self.tracks[i].used, self.tracks[i].nodes.clone());
        let (who, text) = (self.tracks[i].domain, self.tracks[i].text.clone());
        let should = self.model.held(who, &text);
        let used = self.cache.follow(&mut self.paths[i], domain(who), &text, self.tick);
        ensure!(used == should, "followed to {used} instead of {should}");
        ensure!(used == self.paths[i].used, "follow says {used}, the path {}", self.paths[i].used);

        let nodes: Vec<Option<Uid>> =
            self.paths[i].nodes.iter().map(|&node| self.model.of_chunk(self.cache.slab(node).0)).collect();
        ensure!(nodes.len() == used.div_ceil(CHUNK), "{} nodes for {used} tokens", nodes.len());
        let nodes: Vec<Uid> = nodes.into_iter().collect::<Option<_>>().ok_or("followed onto a free slab")?;
        let mut parent = None;
        for (level, &uid) in nodes.iter().enumerate() {
            let node = &self.model.nodes[&uid];
            let n = used.min((level + 1) * CHUNK);
            ensure!(node.sees(who), "followed onto a node that domain {who} does not see");
            ensure!(node.parent == parent && common(&node.text, &text) >= n, "followed onto other tokens");
            parent = Some(uid);
        }
        self.check_choice(i, used, &before, &nodes)?;

        self.model.now = self.model.now.max(self.tick);
        for (level, uid) in nodes.iter().enumerate().skip(from / CHUNK) {
            let node = self.model.nodes.get_mut(uid).expect("matched");
            node.last = self.model.now;
            if before.get(level) != Some(uid) {
                self.report.note("follow: hit", 1);
                self.report.note("follow: onto claims of the step", u64::from(node.valid < used.min(node.text.len())));
                self.report.note("follow: onto a public node", u64::from(node.domain == PUBLIC));
            }
        }
        let moved = before.iter().zip(&nodes).any(|(before, now)| before != now);
        self.report.note("follow: re-seated", u64::from(moved));
        let track = &mut self.tracks[i];
        (track.pin, track.nodes, track.used) = (nodes.last().copied(), nodes, used);
        self.model.settle(self.tracks.iter());
        self.check_path(i)
    }

    /// Among nodes that agree equally: one that can be extended, then the one that the path is on.
    fn check_choice(&self, i: usize, used: usize, before: &[Uid], nodes: &[Uid]) -> Result<(), String> {
        let (who, text) = (self.tracks[i].domain, &self.tracks[i].text[..used]);
        let level = used / CHUNK;
        let Some(&chosen) = nodes.get(level) else { return Ok(()) };
        let ends = |uid: Uid| self.model.nodes[&uid].domain == who && self.model.nodes[&uid].text == *text;
        let could = self.model.nodes.iter().any(|(&uid, node)| node.linked && ends(uid));
        ensure!(ends(chosen) == could, "a node that could be extended was passed over");
        if let Some(&old) = before.get(level)
            && common(&self.model.nodes[&old].text, text) == used
            && ends(old) == could
        {
            ensure!(old == chosen, "moved without need");
        }
        Ok(())
    }

    fn expected(&self, i: usize) -> Expected {
        let track = &self.tracks[i];
        let tip = track.nodes.get(track.used / CHUNK).copied();
        if let Some(tip) = tip {
            let node = &self.model.nodes[&tip];
            if node.text.len() == track.used && node.domain == track.domain {
                return Expected::Extend(tip);
            }
            if node.valid < track.used {
                return Expected::NotYet;
            }
        }
        if self.model.nodes.len() < self.model.slabs as usize {
            return Expected::Start { evict: vec![], copy: tip };
        }
        let evict = self.model.victims();
        if !evict.is_empty() {
            return Expected::Start { evict, copy: tip };
        }
        let others = self.tracks.iter().enumerate().filter(|&(j, _)| j != i).map(|(_, track)| track);
        match tip {
            Some(tip) if !self.model.in_use(others).contains(&tip) => Expected::TakeOver(tip),
            _ => Expected::Full,
        }
    }

    /// Returns whether there was room.
    fn claim(
        &mut self,
        i: usize,
        max: usize,
        prepare: &mut Vec<Prepare>,
        rows: &mut Vec<Rows>,
    ) -> Result<bool, String> {
        self.report.note("claim", 1);
        self.sync(i);
        let (who, text, from) = (self.tracks[i].domain, self.tracks[i].text.clone(), self.tracks[i].used);
        let (level, first) = (from / CHUNK, from % CHUNK);
        let n = max.min(CHUNK - first).min(text.len() - from);
        let expected = self.expected(i);
        let done = prepare.len();
        let claim = self.cache.claim(&mut self.paths[i], domain(who), &text, max, prepare);

        let slots = match claim {
            Claim::Slots { chunk, first_slot, n: got, .. } => {
                ensure!((first_slot as usize, got as usize) == (first, n), "slots {first_slot} + {got}: {first} + {n}");
                Some(chunk)
            }
            _ => None,
        };
        let (uid, wanted) = match expected {
            Expected::NotYet | Expected::Full => {
                let not_yet = matches!(expected, Expected::NotYet);
                ensure!(claim == if not_yet { Claim::NotYet } else { Claim::Full }, "{claim:?}, not_yet {not_yet}");
                ensure!(prepare.len() == done, "work for nothing");
                self.report.note(if not_yet { "claim: not yet" } else { "claim: full" }, 1);
                self.check_path(i)?;
                return Ok(false);
            }
            Expected::Extend(tip) => {
                let chunk = self.model.nodes[&tip].chunk;
                ensure!(slots.is_some_and(|slots| slots.0 == chunk), "{claim:?} instead of chunk {chunk}");
                self.report.note("claim: extended", 1);
                let shared = self.tracks.iter().filter(|track| track.nodes.contains(&tip)).count() > 1;
                self.report.note("claim: extended while others use it", u64::from(shared));
                self.extend(i, tip, &text[..from + n]);
                (tip, vec![])
            }
            Expected::Start { evict, copy } => {
                let chunk = slots.ok_or_else(|| format!("{claim:?}, but there is room"))?;
                let taken = self.model.of_chunk(chunk.0);
                let right = taken.map_or(evict.is_empty(), |taken| evict.contains(&taken));
                ensure!(right, "took {chunk}, a slab of {taken:?}; should have evicted one of {evict:?}");
                if let Some(evict) = taken {
                    self.report.note("claim: evicted, an older one stays", u64::from(self.model.older_stays(evict)));
                    self.report.note("claim: evicted", 1);
                    self.report.note("claim: evicted a protected node", u64::from(self.model.rank(evict).is_some()));
                    let public = self.model.nodes[&evict].domain == PUBLIC;
                    self.report.note("claim: evicted a public node", u64::from(public));
                    self.evictions += 1;
                }
                let mut wanted = vec![Prepare::Zero(chunk)];
                if let Some(copy) = copy {
                    // The source may stand in a slab that another claim of this step turned over, never the victim's.
                    let source = kvist_base::ChunkId(self.model.nodes[&copy].chunk);
                    wanted.push(Prepare::Copy { from: source, to: chunk, n: first as u8 });
                    self.report.note("claim: copied", 1);
                    self.forks += 1;
                }
                if let Some(evict) = taken {
                    self.model.evict(evict);
                }
                (self.place(i, chunk.0, &text[..from + n]), wanted)
            }
            Expected::TakeOver(tip) => {
                let chunk = self.model.nodes[&tip].chunk;
                ensure!(slots.is_some_and(|slots| slots.0 == chunk), "{claim:?} instead of taking over chunk {chunk}");
                self.report.note("claim: took over its own node", 1);
                self.evictions += 1;
                let old = self.model.nodes.remove(&tip).expect("the tip");
                self.model.move_guards(tip, old.parent);
                let uid = self.place(i, chunk, &text[..from + n]);
                self.model.claimed.insert(uid, Some(from));
                (uid, vec![])
            }
        };
        ensure!(prepare[done..] == wanted, "prepares {:?} instead of {wanted:?}", &prepare[done..]);
        let track = &mut self.tracks[i];
        track.nodes.truncate(level);
        track.nodes.push(uid);
        track.used = from + n;
        track.pin = Some(uid);
        self.model.settle(self.tracks.iter());
        let chunk = slots.expect("checked").0;
        rows.push(Rows { chunk, first, digests: digests(&text).skip(from).take(n).collect() });
        self.check_path(i)?;
        Ok(true)
    }

    fn extend(&mut self, i: usize, uid: Uid, text: &[TokenId]) {
        let old = &self.model.nodes[&uid];
        let between = |node: &Node| {
            node.linked
                && node.parent == old.parent
                && node.domain == old.domain
                && node.text > old.text
                && node.text[..] < *text
        };
        let passes = self.model.nodes.values().any(between);
        self.report.note("claim: growth changes the order", u64::from(passes));
        let behind = |j: usize, track: &Track| track.used < self.paths[j].used && track.nodes.last() == Some(&uid);
        let behind = self.tracks.iter().enumerate().any(|(j, track)| j != i && behind(j, track));
        self.report.note("claim: extended under a path that lost it", u64::from(behind));
        let valid = old.valid;
        self.model.claimed.entry(uid).or_insert(Some(valid));
        self.model.nodes.get_mut(&uid).expect("the tip").text = text.to_vec();
    }

    /// A new node of path `i` that ends with `text`.
    fn place(&mut self, i: usize, chunk: u32, text: &[TokenId]) -> Uid {
        let track = &self.tracks[i];
        let level = track.used / CHUNK;
        let uid = self.model.add(Node {
            chunk,
            domain: track.domain,
            text: text.to_vec(),
            valid: track.used,
            linked: true,
            parent: level.checked_sub(1).map(|above| track.nodes[above]),
            class: Class::UNKNOWN,
            last: self.model.now,
            pinned: false,
        });
        self.model.claimed.insert(uid, None);
        uid
    }
}
