//! Loads that are larger than the room for what was read and not taken.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvist_base::{CHUNK, ChunkId, DomainId, For, Load, LoadId, Residency, Tier, TokenId};
use kvist_store::vfs::Vfs;
use kvist_store::{Encryption, Fingerprint, Priority, SimVfs, SlowVfs, Store, StoreConfig, StoreTier};

const TENANT: DomainId = DomainId(1);
const CHUNKS: usize = 8;
const LAYERS: usize = 4;
const SLICE: usize = 200_000;

/// The byte of which a slice is full.
fn byte(layer: usize, chunk: usize) -> u8 {
    (chunk * LAYERS + layer) as u8
}

/// A store with one path, and room for half of it.
fn store(io_threads: usize) -> (Store, Vec<TokenId>) {
    store_on(SimVfs::new(1), io_threads)
}

fn store_on(vfs: impl Vfs + 'static, io_threads: usize) -> (Store, Vec<TokenId>) {
    let fingerprint = Fingerprint { digest: [7; 32], text: "a test".into() };
    let keys = Encryption::Keys("/key".into());
    let config = StoreConfig::new("/store".into(), 64 << 20, fingerprint, vec![SLICE; LAYERS], keys);
    let staging = CHUNKS as u64 / 2 * config.chunk_bytes() as u64;
    let (store, _) = Store::open(Arc::new(vfs), StoreConfig { staging, io_threads, ..config }).unwrap();
    store.register(TENANT, "tenant").unwrap();
    let path: Vec<TokenId> = (0..(CHUNKS * CHUNK) as u32).collect();
    let chunk = |chunk| (0..LAYERS).flat_map(|layer| vec![byte(layer, chunk); SLICE]).collect();
    store.save(TENANT, &path, 0, (0..CHUNKS).map(chunk).collect());
    assert!(store.flush(Duration::from_secs(20)));
    (store, path)
}

/// As a step does.
fn take_all(tier: &StoreTier, slabs: &[ChunkId]) {
    let mut slice = vec![0; SLICE];
    for layer in 0..LAYERS {
        for (place, &slab) in slabs.iter().enumerate() {
            assert_eq!(tier.fill(layer, slab, &mut slice), Ok(true));
            assert!(slice.iter().all(|&b| b == byte(layer, place)), "layer {layer} of chunk {place}");
        }
    }
}

/// A load that was longer than the room stopped there, and after two seconds the disk was said to have failed: the load was
/// thrown away, and nothing more was asked for.
#[test]
fn a_load_for_which_there_is_no_room_rests_until_what_came_is_taken() {
    let (store, path) = store(2);
    let chunk = store.config().chunk_bytes() as u64;
    let mut tier = StoreTier::new(store.clone());
    let room = |tier: &StoreTier| [For::Waiting, For::Running, For::Alone].map(|who| tier.room(who));
    assert_eq!(room(&tier), [CHUNKS / 4, CHUNKS / 2, usize::MAX]);
    let slabs: Vec<ChunkId> = (0..CHUNKS as u32).map(ChunkId).collect();
    tier.load(Load { id: LoadId(1), domain: TENANT, tokens: &path, chunks: &slabs, urgent: true });
    assert_eq!(room(&tier), [0; 3]);
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(2200) {
        let state = tier.state(LoadId(1));
        assert_eq!((state.lost, state.layers < LAYERS), (None, true));
        std::thread::sleep(Duration::from_millis(20));
    }
    let ahead = store.staged();
    assert!(ahead > 0 && ahead <= CHUNKS as u64 / 2 * chunk, "{ahead}");
    assert!(tier.state(LoadId(1)).held);
    take_all(&tier, &slabs);
    tier.end(LoadId(1));
    assert_eq!((tier.sums().stalls, store.staged()), (0, 0));
}

/// All the room is taken by what nobody takes: who waits for a layer gets it all the same.
#[test]
fn who_waits_for_a_layer_gets_it_though_there_is_no_room() {
    let (store, path) = store(2);
    let mut tier = StoreTier::new(store.clone());
    let slabs: Vec<ChunkId> = (0..2 * CHUNKS as u32).map(ChunkId).collect();
    let (first, second) = slabs.split_at(CHUNKS);
    for (id, chunks) in [(1, first), (2, second)] {
        tier.load(Load { id: LoadId(id), domain: TENANT, tokens: &path, chunks, urgent: true });
    }
    while !tier.state(LoadId(1)).held && !tier.state(LoadId(2)).held {
        std::thread::sleep(Duration::from_millis(1));
    }
    take_all(&tier, second);
    take_all(&tier, first);
    (1..=2).for_each(|id| tier.end(LoadId(id)));
    assert_eq!((tier.sums().stalls, store.staged()), (0, 0));
}

/// How long a load had taken when somebody looked, at rest since long ago or slowed down by whoever takes its slices, was
/// held against the disk: after a long step it was believed to be a hundred times as slow as it is.
#[test]
fn a_rest_says_nothing_of_the_disk() {
    let (store, path) = store(0);
    let load = store.load(TENANT, &path, 0..CHUNKS, Priority::Urgent);
    while store.read_turn() {}
    let (bytes, took) = load.pace();
    assert!(load.held() && bytes > 0 && bytes == load.bytes());
    let mut slice = vec![0; SLICE];
    for layer in 0..LAYERS {
        (0..CHUNKS).for_each(|chunk| load.wait(layer, chunk, &mut slice).unwrap());
        while store.read_turn() {}
    }
    assert!(load.done() && load.bytes() == load.total_bytes());
    assert_eq!(load.pace(), (bytes, took));
}

/// What is read ahead lets those go first for whom somebody waits. Where that took two seconds, the disk was said to have
/// failed, and for some time nothing was loaded.
#[test]
fn who_lets_others_go_first_has_not_failed() {
    let (store, path) = store_on(SlowVfs::new(Arc::new(SimVfs::new(1)), 6e5, Duration::ZERO), 1);
    let mut tier = StoreTier::new(store.clone());
    let slabs: Vec<ChunkId> = (0..CHUNKS as u32).map(ChunkId).collect();
    let mut load = |id, chunks: std::ops::Range<usize>, urgent| {
        let (tokens, chunks) = (&path[..chunks.end * CHUNK], &slabs[chunks]);
        tier.load(Load { id: LoadId(id), domain: TENANT, tokens, chunks, urgent });
    };
    load(1, 0..2, true);
    load(2, 2..3, false);
    let mut behind = 0;
    loop {
        let states = [1, 2].map(|id| tier.state(LoadId(id)));
        assert!(states.iter().all(|state| state.lost.is_none()), "{states:?}");
        behind += u32::from(states[1].layers == 0 && states[0].layers > 0);
        if states.iter().all(|state| state.layers == LAYERS) {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!((tier.sums().stalls, behind > 0), (0, true));
}

/// All threads hang in reads for a load that was ended. Those that come behind it are not read at all.
#[test]
fn a_disk_that_hangs_has_failed_for_who_comes_behind() {
    let (store, path) = store_on(SlowVfs::new(Arc::new(SimVfs::new(1)), 1e9, Duration::from_secs(4)), 1);
    let mut tier = StoreTier::new(store.clone());
    for id in 1..=2 {
        tier.load(Load { id: LoadId(id), domain: TENANT, tokens: &path[..CHUNK], chunks: &[ChunkId(0)], urgent: true });
        std::thread::sleep(Duration::from_millis(20));
    }
    tier.end(LoadId(1));
    let state = loop {
        let state = tier.state(LoadId(2));
        if state.lost.is_some() || state.layers > 0 {
            break state;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!((state.lost, tier.sums().stalls), (Some(0), 1));
}
