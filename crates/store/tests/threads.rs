//! Many threads at one store; a disk that is full, slow or gone for a while.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kvist_base::{CHUNK, DomainId, TokenId};
use kvist_store::vfs::{Fault, FaultKind};
use kvist_store::{Encryption, Fingerprint, Priority, Saved, SimVfs, SlowVfs, Store, StoreConfig};

const TENANT: DomainId = DomainId(1);
const SLICES: [usize; 4] = [3000, 900, 3000, 100];

fn config(io_threads: usize) -> StoreConfig {
    let fingerprint = Fingerprint { digest: [7; 32], text: "a test".into() };
    let keys = Encryption::Keys(PathBuf::from("/key"));
    let mut config = StoreConfig::new("/store".into(), 3 << 20, fingerprint, SLICES.to_vec(), keys);
    config.segment = Some(128 << 10);
    config.io_threads = io_threads;
    config.sync_every = Duration::from_millis(5);
    config
}

fn open(vfs: impl kvist_store::Vfs + 'static, config: StoreConfig) -> Store {
    let (store, _) = Store::open(Arc::new(vfs), config).expect("a store");
    store.register(TENANT, "tenant").expect("a key");
    store
}

/// Conversation `n`: all begin alike.
fn tokens(n: u64, chunks: usize) -> Vec<TokenId> {
    (0..chunks * CHUNK).map(|i| if i < 2 * CHUNK { i as u32 } else { i as u32 * 31 + n as u32 }).collect()
}

fn chunk(path: &[TokenId]) -> Vec<u8> {
    let mut word = 1u64;
    path.iter().for_each(|t| word = (word ^ u64::from(*t)).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let bytes: usize = SLICES.iter().sum();
    (0..bytes).map(|i| (word.rotate_left((i % 64) as u32) >> (i / 64 % 8)) as u8).collect()
}

fn save(store: &Store, path: &[TokenId], first: usize) -> Saved {
    let chunks = (first..path.len() / CHUNK).map(|i| chunk(&path[..(i + 1) * CHUNK])).collect();
    store.save(TENANT, path, first, chunks)
}

/// Takes what comes of some chunks of a path; how many whole chunks came, each compared.
fn take(store: &Store, path: &[TokenId], priority: Priority, give_up: bool) -> u64 {
    let n = path.len() / CHUNK;
    let load = store.load(TENANT, path, 0..n, priority);
    let mut whole = vec![true; n];
    for (layer, slice) in SLICES.into_iter().enumerate() {
        let mut to = vec![0; slice];
        for i in 0..n {
            if give_up && layer == 2 {
                return 0;
            }
            if store.config().io_threads > 0 {
                assert!(load.await_slice(layer, i, Duration::from_secs(20)), "nothing came");
            }
            match load.wait(layer, i, &mut to) {
                Ok(()) => {
                    let from: usize = SLICES[..layer].iter().sum();
                    assert_eq!(to, chunk(&path[..(i + 1) * CHUNK])[from..from + slice], "layer {layer} of chunk {i}");
                }
                Err(_) => whole[i] = false,
            }
        }
    }
    whole.iter().filter(|w| **w).count() as u64
}

#[test]
fn threads_save_load_and_give_up_at_once() {
    let vfs = SimVfs::new(1);
    let mut config = config(3);
    config.budget = 3 << 19;
    let store = open(vfs.clone(), config);
    let (taken, saved) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (store, taken, saved) = (&store, &taken, &saved);
            scope.spawn(move || {
                for round in 0..60 {
                    let n = (round * 7 + thread * 3) % 23;
                    let path = tokens(n, 3 + (n as usize + round as usize) % 15);
                    let known = store.probe(TENANT, &path, 0) / CHUNK;
                    if let Saved::Queued(_) = save(store, &path, known.min(path.len() / CHUNK - 1)) {
                        saved.fetch_add(1, Ordering::Relaxed);
                    }
                    let priority = if round % 2 == 0 { Priority::Urgent } else { Priority::Prefetch };
                    taken.fetch_add(take(store, &path, priority, round % 5 == 0), Ordering::Relaxed);
                }
            });
        }
    });
    assert!(store.flush(Duration::from_secs(60)));
    store.check().unwrap();
    let stats = store.stats();
    assert!(taken.into_inner() > 1000 && saved.into_inner() > 50, "{stats:?}");
    assert_eq!((store.staged(), stats.queued, stats.panics, stats.corrupt), (0, 0, 0, 0));
    assert!(stats.evicted.budget > 0 && stats.bytes <= 3 << 19, "{stats:?}");
}

#[test]
fn a_full_disk_makes_the_store_smaller_and_a_broken_one_pauses_it() {
    let vfs = SimVfs::new(2);
    let store = open(vfs.clone(), config(0));
    let fill = |range: std::ops::Range<u64>| {
        for n in range {
            save(&store, &tokens(n, 10), 0);
            store.flush(Duration::ZERO);
        }
    };
    // Others fill the disk: there is room for a part of the budget only.
    vfs.set_capacity(Some(1 << 20));
    fill(0..60);
    let stats = store.stats();
    assert!(stats.degraded.is_none() && stats.bytes <= 1 << 20 && stats.entries > 30, "{stats:?}");
    assert_eq!(take(&store, &tokens(59, 10), Priority::Urgent, false), 10);
    // There is room for nothing, and then the disk is gone.
    vfs.set_capacity(Some(0));
    fill(60..64);
    vfs.set_capacity(Some(1 << 20));
    vfs.inject(Some(Fault { at: 0, kind: FaultKind::Eio, sticky: true }));
    fill(64..66);
    assert!(store.stats().degraded.is_some());
    assert_eq!(save(&store, &tokens(70, 3), 0), Saved::Off);
    vfs.inject(None);
    vfs.set_capacity(None);
    vfs.advance(60_000_000);
    fill(66..120);
    let stats = store.stats();
    assert!(stats.degraded.is_none() && stats.bytes > 2 << 20 && stats.bytes <= 3 << 20, "{stats:?}");
    assert_eq!(take(&store, &tokens(119, 10), Priority::Urgent, false), 10);
    store.check().unwrap();
}

#[test]
fn what_is_late_is_not_lost() {
    let slow = SlowVfs::new(Arc::new(SimVfs::new(3)), 1e6, Duration::from_millis(300));
    let store = open(slow, config(1));
    let path = tokens(1, 4);
    save(&store, &path, 0);
    assert!(store.flush(Duration::from_secs(60)));
    let load = store.load(TENANT, &path, 0..4, Priority::Urgent);
    let mut to = vec![0; SLICES[0]];
    assert!(!load.has(0, 0) && !load.await_slice(0, 0, Duration::ZERO));
    assert!(!load.done() && load.lost().is_none());
    assert!(load.await_slice(SLICES.len() - 1, 3, Duration::from_secs(60)) && load.has(0, 0));
    load.wait(0, 0, &mut to).unwrap();
    assert_eq!((load.layers(), store.stats().entries), (SLICES.len(), 4));
}
