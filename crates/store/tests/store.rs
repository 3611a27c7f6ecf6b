//! The store on the system's own files.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kvist_base::{CHUNK, ChunkId, DomainId, Found, Gone, Load, LoadId, Residency, Tier, TokenId};
use kvist_store::{Encryption, Fingerprint, OpenError, Priority, RealVfs, Saved, Store, StoreConfig, StoreTier};

const A: DomainId = DomainId(1);
const B: DomainId = DomainId(2);
const SLICES: [usize; 3] = [5000, 700, 5000];

/// A directory that is gone after the test.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        Dir(std::env::temp_dir().join(format!("kvist-store-{}-{n}", std::process::id())))
    }

    fn config(&self) -> StoreConfig {
        let fingerprint = Fingerprint { digest: [7; 32], text: "a test".into() };
        let keys = Encryption::Keys(self.0.join("secret/key"));
        let mut config = StoreConfig::new(self.0.join("store"), 64 << 20, fingerprint, SLICES.to_vec(), keys);
        config.segment = Some(1 << 20);
        config
    }

    fn open(&self) -> Store {
        let (store, _) = Store::open(Arc::new(RealVfs::new()), self.config()).expect("a store");
        store.register(A, "a").unwrap();
        store.register(B, "b").unwrap();
        store
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn tokens(seed: u32, chunks: usize) -> Vec<TokenId> {
    (0..(chunks * CHUNK) as u32).map(|i| seed * 1_000_003 + i * 7).collect()
}

/// What a chunk holds, as a function of who it is.
fn chunk(domain: DomainId, path: &[TokenId]) -> Vec<u8> {
    let mut word = u64::from(domain.0) + 1;
    path.iter().for_each(|t| word = (word ^ u64::from(*t)).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let bytes: usize = SLICES.iter().sum();
    (0..bytes).map(|i| (word.rotate_left((i % 64) as u32) >> (i / 64 % 8)) as u8).collect()
}

fn chunks(domain: DomainId, path: &[TokenId], from: usize) -> Vec<Vec<u8>> {
    (from..path.len() / CHUNK).map(|i| chunk(domain, &path[..(i + 1) * CHUNK])).collect()
}

fn save(store: &Store, domain: DomainId, path: &[TokenId], from: usize) -> Saved {
    store.save(domain, path, from, chunks(domain, path, from))
}

fn check(store: &Store, domain: DomainId, path: &[TokenId], range: std::ops::Range<usize>) {
    let load = store.load(domain, path, range.clone(), Priority::Urgent);
    for (layer, slice) in SLICES.into_iter().enumerate() {
        let mut to = vec![0; slice];
        for i in 0..range.len() {
            load.wait(layer, i, &mut to).expect("a slice");
            let whole = chunk(domain, &path[..(range.start + i + 1) * CHUNK]);
            let at: usize = SLICES[..layer].iter().sum();
            assert_eq!(to, whole[at..at + slice], "layer {layer} of chunk {i}");
        }
    }
    assert!(load.done() && load.lost().is_none());
    assert_eq!(load.layers(), SLICES.len());
}

#[test]
fn what_is_saved_comes_back_from_the_queue_from_disk_and_after_a_restart() {
    let dir = Dir::new();
    let path = tokens(1, 40);
    let store = dir.open();
    assert_eq!(store.probe(A, &path, 0), 0);
    assert_eq!(save(&store, A, &path[..20 * CHUNK], 0), Saved::Queued(1));
    assert_eq!(store.probe(A, &path, 0), 20 * CHUNK);
    assert_eq!(store.probe(A, &path[..10 * CHUNK + 5], 3), 7 * CHUNK);
    check(&store, A, &path, 0..20);
    assert!(store.flush(Duration::from_secs(20)));
    assert_eq!(store.durable(), 1);
    assert_eq!(save(&store, A, &path[..20 * CHUNK], 0), Saved::Known);
    assert_eq!(save(&store, A, &path, 30), Saved::Parentless);
    assert_eq!(save(&store, A, &path, 20), Saved::Queued(2));
    // The same tokens in another domain are something else.
    assert_eq!(store.probe(B, &path, 0), 0);
    assert!(matches!(save(&store, B, &path[..CHUNK], 0), Saved::Queued(_)));
    assert!(store.flush(Duration::from_secs(20)));
    assert_eq!(store.probe_durable(A, &path, 0), 40 * CHUNK);
    check(&store, A, &path, 0..40);
    check(&store, A, &path, 13..29);
    check(&store, B, &path, 0..1);
    let stats = store.stats();
    assert_eq!((stats.entries, stats.saved, stats.lost, stats.queued, store.staged()), (41, 41, 0, 0, 0));
    drop(store);

    let (store, restored) = Store::open(Arc::new(RealVfs::new()), dir.config()).unwrap();
    assert_eq!((restored.entries, restored.scanned, restored.dropped, restored.domains), (41, 0, 0, 2));
    // Domains may have other numbers in another process.
    store.register(B, "a").unwrap();
    assert_eq!(store.probe(B, &path, 0), 40 * CHUNK);
    let load = store.load(B, &path, 0..40, Priority::Prefetch);
    load.raise(Priority::Urgent);
    let mut to = vec![0; SLICES[0]];
    load.wait(0, 39, &mut to).unwrap();
    assert_eq!(to, chunk(A, &path)[..SLICES[0]]);
}

#[test]
fn paths_part_where_tokens_do() {
    let dir = Dir::new();
    let store = dir.open();
    let (one, two) = (tokens(1, 6), [&tokens(1, 3)[..], &tokens(2, 3)].concat());
    save(&store, A, &one, 0);
    save(&store, A, &two, 0);
    store.flush(Duration::from_secs(20));
    assert_eq!(store.stats().saved, 9);
    check(&store, A, &one, 0..6);
    check(&store, A, &two, 0..6);
    let third = [&one[..5 * CHUNK], &two[5 * CHUNK..]].concat();
    assert_eq!(store.probe(A, &third, 0), 5 * CHUNK);
    let load = store.load(A, &third, 3..6, Priority::Urgent);
    let mut to = vec![0; SLICES[0]];
    load.wait(0, 1, &mut to).unwrap();
    load.wait(0, 2, &mut to).unwrap_err();
    assert_eq!(load.lost(), Some(2));
}

#[test]
fn a_second_process_is_refused_with_the_pid_and_a_reader_beside_is_not() {
    let dir = Dir::new();
    let store = dir.open();
    let path = tokens(3, 5);
    save(&store, A, &path, 0);
    store.flush(Duration::from_secs(20));
    match Store::open(Arc::new(RealVfs::new()), dir.config()).err() {
        Some(OpenError::Locked(who)) => assert_eq!(who, std::process::id().to_string()),
        other => panic!("{other:?}"),
    }
    let (beside, restored) = Store::read_only(Arc::new(RealVfs::new()), dir.config()).unwrap();
    assert_eq!(restored.entries, 5);
    beside.register(A, "a").unwrap();
    check(&beside, A, &path, 0..5);
    assert_eq!(save(&beside, A, &tokens(4, 1), 0), Saved::Off);
    drop(store);
    dir.open();
}

#[test]
fn notes_survive() {
    let dir = Dir::new();
    let store = dir.open();
    assert!(store.put_note(A, 1, b"key", b"value"));
    assert!(store.put_note(A, 1, b"other", b"1"));
    assert!(store.put_note(A, 1, b"key", b"newer"));
    assert!(store.put_note(B, 1, b"key", b"another's"));
    assert!(!store.put_note(A, 1, b"key", &vec![0; kvist_store::NOTE_MOST]));
    assert!(store.flush(Duration::from_secs(20)));
    drop(store);
    let store = dir.open();
    let expected = [(b"other".to_vec(), b"1".to_vec()), (b"key".to_vec(), b"newer".to_vec())];
    assert_eq!(store.notes(A, 1), expected);
    assert_eq!(store.notes(A, 2), []);
    assert_eq!(store.notes(B, 1).len(), 1);
}

#[test]
fn saves_are_bounded_and_the_budget_holds() {
    let dir = Dir::new();
    let mut config = dir.config();
    config.budget = 4 << 20;
    config.segment = Some(400 << 10);
    config.saves = 40 * SLICES.iter().sum::<usize>() as u64;
    let (store, _) = Store::open(Arc::new(RealVfs::new()), config).unwrap();
    store.register(A, "a").unwrap();
    assert_eq!(save(&store, A, &tokens(0, 41), 0), Saved::Full);
    let mut last = Vec::new();
    for n in 1..60 {
        last = tokens(n, 1 + n as usize % 12);
        assert!(matches!(save(&store, A, &last, 0), Saved::Queued(_)));
        assert!(store.flush(Duration::from_secs(20)));
        let stats = store.stats();
        assert!(stats.bytes <= 4 << 20, "{stats:?}");
        check(&store, A, &last, 0..last.len() / CHUNK);
    }
    let stats = store.stats();
    assert!(stats.evicted.budget > 0 && stats.entries > 150 && stats.returned == 0, "{stats:?}");
    // The first to come was the first to go.
    assert_eq!(store.probe(A, &tokens(1, 2), 0), 0);
    save(&store, A, &tokens(1, 2), 0);
    assert_eq!(store.stats().returned, 2);
    drop(store);
    let store = dir.open();
    check(&store, A, &last, 0..last.len() / CHUNK);
}

#[test]
fn what_an_operator_asks() {
    let dir = Dir::new();
    let store = dir.open();
    let (one, two) = (tokens(1, 6), tokens(2, 9));
    save(&store, A, &one, 0);
    save(&store, B, &two, 0);
    store.put_note(B, 1, b"key", b"value");
    assert_eq!(store.pin(A, &one, true), 6);
    assert!(store.flush(Duration::from_secs(20)));
    let entries = store.entries();
    assert_eq!(
        entries.iter().map(|e| (&e.domain[..], e.chunks, e.pinned)).collect::<Vec<_>>(),
        [("a", 6, true), ("b", 9, false)]
    );
    assert_eq!(entries[1].tokens, two);
    let mut told = 0;
    assert_eq!(store.verify(|checked| told = checked.done), kvist_store::Verified { good: 15, bad: 0 });
    assert_eq!(told, 15);
    assert!(store.forget("b").unwrap() && !store.forget("b").unwrap());
    store.check().unwrap();
    assert_eq!((store.probe(B, &two, 0), store.stats().entries), (0, 6));
    assert_eq!(save(&store, B, &two, 0), Saved::Off);
    assert!(store.gc().unwrap() > 9 * SLICES.iter().sum::<usize>() as u64);
    store.check().unwrap();
    check(&store, A, &one, 0..6);
    drop(store);
    let store = dir.open();
    assert!(store.entries()[0].pinned);
    assert_eq!((store.probe(B, &two, 0), store.notes(B, 1)), (0, vec![]));
    check(&store, A, &one, 0..6);
}

#[test]
fn variants_are_trees_of_their_own() {
    let dir = Dir::new();
    let store = dir.open();
    let path = tokens(1, 6);
    let carried = DomainId(9);
    assert!(store.register_variant(carried, A, [5; 16]) && !store.register_variant(carried, DomainId(77), [5; 16]));
    save(&store, A, &path[..4 * CHUNK], 0);
    assert_eq!(store.probe(carried, &path, 0), 0);
    save(&store, carried, &path, 0);
    store.flush(Duration::from_secs(20));
    check(&store, A, &path, 0..4);
    check(&store, carried, &path, 0..6);
    drop(store);
    let store = dir.open();
    assert_eq!(store.probe(A, &path, 0), 4 * CHUNK);
    store.register_variant(carried, A, [6; 16]);
    assert_eq!(store.probe(carried, &path, 0), 0);
    store.register_variant(carried, A, [5; 16]);
    check(&store, carried, &path, 0..6);
    store.forget("a").unwrap();
    assert_eq!((store.probe(carried, &path, 0), store.stats().entries), (0, 0));
}

#[test]
fn paths_are_looked_up_and_what_is_not_ours_is_told() {
    let dir = Dir::new();
    let path = tokens(1, 4);
    {
        let store = dir.open();
        save(&store, A, &path, 0);
        assert!(store.flush(Duration::from_secs(20)));
        assert_eq!((store.nearest(B, &path), store.domains()), (None, vec!["a".into(), "b".into()]));
        let near = |tokens: &[TokenId]| {
            let found = store.nearest(A, tokens).unwrap();
            assert_eq!(found.tokens, path[..found.tokens.len()]);
            (found.common, found.tokens.len() / CHUNK, found.gone)
        };
        assert_eq!(near(&path), (4 * CHUNK, 4, None));
        assert_eq!(near(&[&path[..], &[1]].concat()), (4 * CHUNK, 4, None));
        assert_eq!(near(&path[..70]), (70, 2, None));
        let mut other = path.clone();
        other[100] += 1;
        assert_eq!(near(&other), (100, 2, None));
        assert_eq!(near(&[5]), (0, 1, None));
        assert_eq!(store.foreign(), []);
    }
    let mut config = dir.config();
    config.fingerprint = Fingerprint { digest: [8; 32], text: "another".into() };
    let (store, _) = Store::open(Arc::new(RealVfs::new()), config).unwrap();
    let foreign = store.foreign();
    assert_eq!(foreign.iter().map(|f| (&f.text[..], f.other_key)).collect::<Vec<_>>(), [("a test", false)]);
    assert_eq!(foreign[0].bytes, store.stats().foreign);
    store.compact().unwrap();
    assert_eq!(store.foreign(), foreign);
    assert!(store.gc().unwrap() >= foreign[0].bytes);
    assert_eq!(store.foreign(), []);
}

/// Nobody reads: as a disk that does not answer.
#[test]
fn a_step_does_not_wait_for_a_disk_from_which_nothing_comes() {
    let dir = Dir::new();
    let path = tokens(1, 4);
    {
        let store = dir.open();
        assert!(matches!(save(&store, A, &path, 0), Saved::Queued(_)));
        assert!(store.flush(Duration::from_secs(20)));
    }
    let (store, _) = Store::open(Arc::new(RealVfs::new()), StoreConfig { io_threads: 0, ..dir.config() }).unwrap();
    store.register(A, "a").unwrap();
    let mut tier = StoreTier::new(store.clone());
    assert_eq!(tier.probe(A, &path, 0), Found { public: 0, own: 4 });
    let slabs = [5, 6, 7, 8].map(ChunkId);
    tier.load(Load { id: LoadId(1), domain: A, tokens: &path, chunks: &slabs, urgent: true });
    let mut slice = vec![0; SLICES[0]];
    assert_eq!(tier.fill(0, slabs[0], &mut slice), Err(Gone(slabs[0])));
    // Nothing is asked of it for a while.
    assert_eq!((tier.sums().stalls, tier.probe(A, &path, 0)), (1, Found::default()));
    tier.end(LoadId(1));
    assert_eq!(tier.fill(0, slabs[0], &mut slice), Ok(false));
    // The same load comes as soon as somebody reads.
    tier.load(Load { id: LoadId(2), domain: A, tokens: &path, chunks: &slabs, urgent: true });
    while store.read_turn() {}
    assert_eq!(tier.state(LoadId(2)).layers, SLICES.len());
    assert_eq!(tier.fill(0, slabs[3], &mut slice), Ok(true));
    assert_eq!(slice, chunk(A, &path)[..SLICES[0]]);
}

/// Pins are notes, and of all notes the oldest went when there were too many bytes of them: a busy server's replies and cuts
/// (16 MiB of them) pushed out what the operator had pinned, which the next process then evicted like anything else.
#[test]
fn pins_outlive_any_number_of_other_notes() {
    let dir = Dir::new();
    let config = StoreConfig { notes: 8 << 10, ..dir.config() };
    let open = || {
        let (store, _) = Store::open(Arc::new(RealVfs::new()), config.clone()).unwrap();
        store.register(A, "a").unwrap();
        store
    };
    let (store, path) = (open(), tokens(3, 2));
    assert!(matches!(save(&store, A, &path, 0), Saved::Queued(_)));
    assert_eq!(store.pin(A, &path, true), 2);
    let put = |store: &Store, n: u32| assert!(store.put_note(A, 1, &n.to_le_bytes(), &[7; 200]));
    (0..100).for_each(|n| put(&store, n));
    assert_eq!(store.pins(A), std::slice::from_ref(&path));
    assert!(store.notes(A, 1).len() < 40, "of the others the oldest went");
    assert!(store.flush(Duration::from_secs(20)));
    drop(store);
    let store = open();
    assert_eq!(store.pins(A), std::slice::from_ref(&path));
    assert!(store.entries()[0].pinned);
    // What cannot be noted is not pinned: it would not be for the next process.
    assert_eq!(store.pin(A, &[&path[..], &vec![1; kvist_store::PIN_MOST]].concat(), true), 0);
    // What was let go of stays so.
    store.pin(A, &path, false);
    (100..200).for_each(|n| put(&store, n));
    assert!(store.flush(Duration::from_secs(20)));
    drop(store);
    assert!(open().pins(A).is_empty());
}

/// Each cut of a conversation that outgrows its context is a domain with a key of its own. No key ever left the table, until
/// it was larger than a table may be (16 MiB: some 120,000 cuts) and the store could not be opened any more, with all that
/// was in it; and opening it took time with the square of their number.
#[test]
fn a_table_of_keys_that_is_full_takes_no_more_and_can_still_be_read() {
    let dir = Dir::new();
    let store = dir.open();
    let path = tokens(4, 1);
    assert!(matches!(save(&store, A, &path, 0), Saved::Queued(_)));
    let name = |n: u32| format!("{n} {}", "x".repeat(4000));
    let made = (0..5000).take_while(|&n| store.register(DomainId(100 + n), &name(n)).is_ok()).count() as u32;
    assert!((4000..4500).contains(&made), "{made}");
    assert!(store.put_note(DomainId(101), 1, b"key", b"value"));
    assert!(matches!(save(&store, DomainId(102), &path, 0), Saved::Queued(_)));
    assert!(store.flush(Duration::from_secs(20)));
    drop(store);
    let store = dir.open();
    assert_eq!(store.probe(A, &path, 0), CHUNK);
    // What no chunk is left of can be let go of, and its notes: not what is used, or is none of those that are meant.
    store.register(DomainId(103), &name(3)).unwrap();
    assert_eq!(store.release_keys(|name| name.ends_with('x')), made as usize - 2);
    assert!(!store.knows(&name(1)) && store.knows(&name(2)) && store.knows(&name(3)) && store.knows("b"));
    assert!(!store.knows(&name(0)) && store.register(DomainId(100), &name(0)).is_ok());
    assert!(matches!(save(&store, DomainId(100), &path, 0), Saved::Queued(_)));
    assert!(store.flush(Duration::from_secs(20)));
    drop(store);
    let store = dir.open();
    assert_eq!((store.domains().len(), store.stats().notes), (5, 0));
    store.register(DomainId(100), &name(0)).unwrap();
    store.register(DomainId(102), &name(2)).unwrap();
    check(&store, DomainId(100), &path, 0..1);
    check(&store, DomainId(102), &path, 0..1);
}
