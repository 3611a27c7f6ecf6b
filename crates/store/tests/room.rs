//! Loads that are larger than the room for what was read and not taken.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvist_base::{CHUNK, ChunkId, DomainId, Load, LoadId, Residency, Tier, TokenId};
use kvist_store::{Encryption, Fingerprint, SimVfs, Store, StoreConfig, StoreTier};

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
    let fingerprint = Fingerprint { digest: [7; 32], text: "a test".into() };
    let keys = Encryption::Keys("/key".into());
    let config = StoreConfig::new("/store".into(), 64 << 20, fingerprint, vec![SLICE; LAYERS], keys);
    let staging = CHUNKS as u64 / 2 * config.chunk_bytes() as u64;
    let (store, _) = Store::open(Arc::new(SimVfs::new(1)), StoreConfig { staging, io_threads, ..config }).unwrap();
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

/// What is read ahead gets half of the room. A longer load stopped there, and after two seconds the disk was said to have
/// failed: the load was thrown away, and nothing more was asked for. An urgent one that filled the room but for its tags
/// met the same end.
#[test]
fn a_load_for_which_there_is_no_room_rests_until_what_came_is_taken() {
    let (store, path) = store(2);
    let chunk = store.config().chunk_bytes() as u64;
    let mut tier = StoreTier::new(store.clone());
    assert_eq!((tier.room(false), tier.room(true)), (CHUNKS / 2, usize::MAX));
    let slabs: Vec<ChunkId> = (0..CHUNKS as u32).map(ChunkId).collect();
    tier.load(Load { id: LoadId(1), domain: TENANT, tokens: &path, chunks: &slabs, urgent: false });
    assert_eq!((tier.room(false), tier.room(true)), (0, 0));
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(2200) {
        let state = tier.state(LoadId(1));
        assert_eq!((state.lost, state.held, state.layers < LAYERS), (None, false, true));
        std::thread::sleep(Duration::from_millis(20));
    }
    let ahead = store.staged();
    assert!(ahead > 0 && ahead <= CHUNKS as u64 / 4 * chunk, "{ahead}");
    tier.hurry(LoadId(1));
    while !tier.state(LoadId(1)).held {
        std::thread::sleep(Duration::from_millis(1));
    }
    let urgent = store.staged();
    assert!(urgent > ahead && urgent <= (CHUNKS as u64 / 2 + 1) * chunk, "{urgent}");
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
