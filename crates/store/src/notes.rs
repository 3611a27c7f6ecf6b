//! Small records beside the chunks, all of them in memory: the newest of a key counts, the oldest go first.

use std::collections::{BTreeMap, BTreeSet};

use crate::format::{META_MOST, NoteMeta, RECORD_HEADER};
use crate::store::PIN;

type NoteKey = (usize, u8, Vec<u8>);

/// Bytes of key and value together at most.
pub const NOTE_MOST: usize = META_MOST / 2;

pub(crate) struct Note {
    pub value: Option<Vec<u8>>,
    pub number: u64,
    /// Where it was written last; `None`: it waits.
    pub segment: Option<u64>,
}

#[derive(Default)]
pub(crate) struct Notes {
    map: BTreeMap<NoteKey, Note>,
    /// Numbers are unique, but for those of a segment that could not be read when the next ones were given out.
    by_age: BTreeSet<(u64, NoteKey)>,
    /// Notes that wait to be written.
    pub waiting: BTreeSet<(u64, NoteKey)>,
    next: u64,
    bytes: u64,
    limit: u64,
}

/// What a note counts for.
fn weight(key: &NoteKey, note: &Note) -> u64 {
    (RECORD_HEADER + key.2.len() + note.value.as_ref().map_or(0, Vec::len)) as u64
}

impl Notes {
    pub fn count(&self) -> usize {
        self.map.values().filter(|n| n.value.is_some()).count()
    }

    /// Bytes of all notes at most; the oldest go, but for pins.
    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
        self.shrink();
    }

    pub fn get(&self, domain: usize, kind: u8, key: &[u8]) -> Option<&[u8]> {
        self.map.get(&(domain, kind, key.to_vec()))?.value.as_deref()
    }

    /// Takes a note in, to be written; whether anything changes by it. `least`: its number is no lower.
    pub fn put(&mut self, domain: usize, kind: u8, key: &[u8], value: Option<&[u8]>, least: u64) -> bool {
        if self.get(domain, kind, key) == value {
            return false;
        }
        let number = self.next.max(least);
        let key = (domain, kind, key.to_vec());
        self.waiting.insert((number, key.clone()));
        self.insert(key, Note { value: value.map(<[u8]>::to_vec), number, segment: None });
        true
    }

    /// Takes in what was found on disk, in the order in which it was written.
    /// `durable`: it need not be written again.
    pub fn restore(&mut self, domain: usize, meta: NoteMeta, segment: u64, durable: bool) {
        let key = (domain, meta.kind, meta.key);
        if let Some(known) = self.map.get(&key) {
            // A copy of what is durable elsewhere adds nothing.
            let copy = known.number == meta.number && known.value == meta.value && !durable;
            if known.number > meta.number || copy {
                return;
            }
        }
        self.remove(&key);
        if !durable {
            self.waiting.insert((meta.number, key.clone()));
        }
        self.insert(key, Note { value: meta.value, number: meta.number, segment: durable.then_some(segment) });
    }

    fn insert(&mut self, key: NoteKey, note: Note) {
        self.next = self.next.max(note.number.saturating_add(1));
        self.remove(&key);
        self.bytes += weight(&key, &note);
        self.by_age.insert((note.number, key.clone()));
        self.map.insert(key, note);
        self.shrink();
    }

    fn shrink(&mut self) {
        // Pins stay, and that something is pinned no more: if that went, an older note would be found again.
        let mut others = self.by_age.iter().filter(|(_, key)| key.1 != PIN);
        let mut over = self.bytes.saturating_sub(self.limit);
        let mut oldest = Vec::new();
        while over > 0
            && let Some((_, key)) = others.next()
        {
            over = over.saturating_sub(weight(key, &self.map[key]));
            oldest.push(key.clone());
        }
        for key in oldest {
            let old = self.map.remove(&key).expect("both maps hold the same notes");
            self.forget(&key, &old);
        }
    }

    fn remove(&mut self, key: &NoteKey) {
        if let Some(old) = self.map.remove(key) {
            self.forget(key, &old);
        }
    }

    fn forget(&mut self, key: &NoteKey, note: &Note) {
        let known = (note.number, key.clone());
        self.by_age.remove(&known);
        self.waiting.remove(&known);
        self.bytes -= weight(key, note);
    }

    pub fn forget_domain(&mut self, domain: usize) {
        let keys: Vec<_> = self.map.keys().filter(|k| k.0 == domain).cloned().collect();
        keys.iter().for_each(|key| self.remove(key));
    }

    /// All of a kind, the oldest first.
    pub fn list(&self, domain: usize, kind: u8) -> Vec<(Vec<u8>, Vec<u8>)> {
        let theirs = self.by_age.iter().map(|(_, k)| k).filter(|k| k.0 == domain && k.1 == kind);
        theirs.filter_map(|k| Some((k.2.clone(), self.map[k].value.clone()?))).collect()
    }

    /// Domain and record of the note that waits longest.
    pub fn next_waiting(&self) -> Option<(usize, NoteMeta)> {
        let (number, key) = self.waiting.first()?;
        let value = self.map[key].value.clone();
        Some((key.0, NoteMeta { kind: key.1, number: *number, key: key.2.clone(), value }))
    }

    /// The note is in a segment now.
    pub fn written(&mut self, domain: usize, meta: &NoteMeta, segment: u64) {
        let key = (domain, meta.kind, meta.key.clone());
        if let Some(note) = self.map.get_mut(&key).filter(|n| n.number == meta.number) {
            note.segment = Some(segment);
            self.waiting.remove(&(meta.number, key));
        }
    }

    /// What was in a segment has to be written again: it is lost, or about to be removed. How many notes these are.
    pub fn rewrite(&mut self, segment: u64) -> usize {
        let before = self.waiting.len();
        for (key, note) in self.map.iter_mut().filter(|(_, n)| n.segment == Some(segment)) {
            note.segment = None;
            self.waiting.insert((note.number, key.clone()));
        }
        self.waiting.len() - before
    }

    /// A note that is neither in a segment that there is nor waits to be: nothing would keep it.
    pub fn astray(&self, there: impl Fn(u64) -> bool) -> Option<&NoteKey> {
        let waits = |key: &NoteKey, note: &Note| self.waiting.contains(&(note.number, key.clone()));
        let kept = |key: &NoteKey, note: &Note| note.segment.map_or_else(|| waits(key, note), &there);
        self.map.iter().find(|(key, note)| !kept(key, note)).map(|(key, _)| key)
    }

    /// Whether the newest copy of any note is in a segment.
    pub fn any_in(&self, segment: u64) -> bool {
        self.map.values().any(|n| n.segment == Some(segment))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_counts_and_the_oldest_goes() {
        let mut notes = Notes::default();
        notes.set_limit(3 * (RECORD_HEADER as u64 + 2));
        assert!(notes.put(0, 1, b"a", Some(b"1"), 0));
        assert!(!notes.put(0, 1, b"a", Some(b"1"), 0));
        assert!(notes.put(0, 1, b"b", Some(b"2"), 0));
        assert!(notes.put(0, 1, b"a", Some(b"3"), 0));
        assert_eq!(notes.list(0, 1), [(b"b".to_vec(), b"2".to_vec()), (b"a".to_vec(), b"3".to_vec())]);
        // What is older than what is known is not taken.
        notes.restore(0, NoteMeta { kind: 1, number: 0, key: b"a".to_vec(), value: Some(b"9".to_vec()) }, 7, true);
        assert_eq!(notes.get(0, 1, b"a"), Some(&b"3"[..]));
        notes.put(1, 1, b"c", Some(b"4"), 0);
        notes.put(1, 1, b"d", Some(b"5"), 0);
        assert_eq!(notes.get(0, 1, b"b"), None);
        assert_eq!((notes.list(0, 1).len(), notes.list(1, 1).len()), (1, 2));
        while let Some((domain, meta)) = notes.next_waiting() {
            notes.written(domain, &meta, 7);
        }
        assert!(notes.waiting.is_empty());
        assert_eq!(notes.rewrite(7), 3);
        notes.forget_domain(1);
        notes.forget_domain(0);
        assert_eq!((notes.bytes, notes.waiting.len()), (0, 0));
    }

    /// A note was copied out of a segment that was to go, and power failed before the copy was durable. What was found of it
    /// then, durable in the old segment and not in the new one, neither counted as written nor waited to be: the old
    /// segment held nothing that anybody wanted, was removed, and the note was lost with the next restart.
    #[test]
    fn a_copy_that_is_not_durable_yet_does_not_hide_the_one_that_is() {
        let meta = || NoteMeta { kind: 1, number: 4, key: b"a".to_vec(), value: Some(b"1".to_vec()) };
        for found in
            [[(1, true), (2, false)], [(1, false), (2, false)], [(1, false), (2, true)], [(1, true), (2, true)]]
        {
            let mut notes = Notes::default();
            notes.set_limit(1 << 10);
            found.iter().for_each(|&(segment, durable)| notes.restore(0, meta(), segment, durable));
            assert_eq!(notes.astray(|_| true), None, "{found:?}");
            let kept = found.iter().any(|&(segment, durable)| durable && notes.any_in(segment));
            assert_eq!(kept, notes.waiting.is_empty(), "{found:?}");
        }
    }
}
