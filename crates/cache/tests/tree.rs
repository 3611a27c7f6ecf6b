//! The operations in small, as an engine uses them.

use kvist_base::{CHUNK, ChunkId, DomainId, Prepare, TokenId};
use kvist_cache::{Cache, CacheConfig, Claim, Path};

const A: DomainId = DomainId(1);
const B: DomainId = DomainId(2);

fn cache(slabs: u32) -> Cache {
    Cache::new(CacheConfig { slabs, ..CacheConfig::default() })
}

fn text(len: usize, last: TokenId) -> Vec<TokenId> {
    (0..len).map(|i| if i + 1 == len { last } else { i as TokenId }).collect()
}

/// Follows and claims all of `tokens`, without ending the step.
fn claim(cache: &mut Cache, path: &mut Path, domain: DomainId, tokens: &[TokenId]) -> (usize, Vec<Prepare>) {
    let mut prepare = Vec::new();
    let found = cache.follow(path, domain, tokens, 0);
    while path.used < tokens.len() {
        let claim = cache.claim(path, domain, tokens, CHUNK, &mut prepare);
        assert!(matches!(claim, Claim::Slots { .. }), "{claim:?}");
    }
    (found, prepare)
}

fn compute(cache: &mut Cache, domain: DomainId, tokens: &[TokenId]) -> Path {
    let mut path = Path::new();
    claim(cache, &mut path, domain, tokens);
    cache.commit();
    cache.check_integrity().unwrap();
    path
}

fn chunks(cache: &Cache, path: &Path) -> Vec<ChunkId> {
    path.nodes.iter().map(|&node| cache.slab(node)).collect()
}

#[test]
fn identical_prompts_of_one_step_compute_once() {
    let mut cache = cache(16);
    let tokens = text(200, 7);
    let mut paths: Vec<Path> = (0..10).map(|_| Path::new()).collect();
    let found: Vec<usize> = paths.iter_mut().map(|path| claim(&mut cache, path, A, &tokens).0).collect();
    assert_eq!(found, [0, 200, 200, 200, 200, 200, 200, 200, 200, 200]);
    assert_eq!(cache.probe(A, &tokens), 0, "nothing is computed yet");
    cache.commit();
    assert_eq!(cache.probe(A, &tokens), 200);
    assert_eq!(cache.probe(B, &tokens), 0);
    assert_eq!(cache.stats().pinned, 4);
    paths.into_iter().for_each(|path| cache.release(path));
    assert_eq!((cache.stats().evictable, cache.available()), (4, 16));
}

#[test]
fn a_fork_inside_a_chunk_copies_what_agrees() {
    let mut cache = cache(4);
    let first = compute(&mut cache, A, &text(100, 7));
    let mut second = Path::new();
    let (found, prepare) = claim(&mut cache, &mut second, A, &text(100, 8));
    assert_eq!(found, 99);
    let (from, to) = (chunks(&cache, &first)[1], chunks(&cache, &second)[1]);
    assert_eq!(prepare, [Prepare::Zero(to), Prepare::Copy { from, to, n: 35 }]);
    assert_eq!(chunks(&cache, &first)[0], chunks(&cache, &second)[0]);
}

#[test]
fn slots_of_this_step_are_not_copied() {
    let mut cache = cache(4);
    let (mut first, mut second) = (Path::new(), Path::new());
    claim(&mut cache, &mut first, A, &text(100, 7));
    let other = text(100, 8);
    assert_eq!(cache.follow(&mut second, A, &other, 0), 99);
    let mut prepare = Vec::new();
    assert_eq!(cache.claim(&mut second, A, &other, 1, &mut prepare), Claim::NotYet);
    cache.commit();
    assert!(matches!(cache.claim(&mut second, A, &other, 1, &mut prepare), Claim::Slots { first_slot: 35, n: 1, .. }));
}

#[test]
fn the_only_user_of_a_full_pool_can_diverge() {
    let mut cache = cache(2);
    let old = compute(&mut cache, A, &text(100, 7));
    let slabs = chunks(&cache, &old);
    cache.release(old);
    let mut path = Path::new();
    let (found, prepare) = claim(&mut cache, &mut path, A, &text(100, 8));
    assert_eq!((found, prepare), (99, vec![]));
    assert_eq!(chunks(&cache, &path), slabs);
    cache.commit();
    assert_eq!(cache.probe(A, &text(100, 7)), 99);
    let mut third = cache.fork(&path);
    let more = text(129, 0);
    cache.truncate(&mut third);
    assert_eq!(
        cache.claim(&mut third, A, &[&text(100, 8), &more[..]].concat(), 64, &mut vec![]),
        Claim::Slots { chunk: slabs[1], first_slot: 36, n: 28, seals: None }
    );
    assert_eq!(cache.claim(&mut third, A, &[&text(100, 8), &more[..]].concat(), 64, &mut vec![]), Claim::Full);
}

#[test]
fn a_loss_is_unmatchable_at_once_and_freed_with_the_last_pin() {
    let mut cache = cache(8);
    let tokens = text(300, 7);
    let mut path = compute(&mut cache, A, &tokens);
    let mut other = cache.fork(&path);
    let slabs = chunks(&cache, &path);
    cache.invalidate(slabs[2], 10);
    assert_eq!(cache.probe(A, &tokens), 138);
    assert_eq!((cache.stats().free, cache.stats().pinned), (3, 5), "two chunks are still pinned");
    assert_eq!(cache.truncate(&mut path), 138);
    // The chunk grows again under the path that does not know yet.
    claim(&mut cache, &mut path, A, &[&tokens[..138], &[9; 20]].concat());
    cache.commit();
    assert_eq!(cache.truncate(&mut other), 138);
    assert_eq!(cache.stats().free, 5);
    assert_eq!(chunks(&cache, &other), slabs[..3]);
    cache.invalidate(slabs[0], 0);
    assert_eq!((cache.stats().nodes, cache.stats().pinned), (0, 3));
    cache.release(path);
    cache.release(other);
    assert_eq!(cache.stats().free, 8);
    cache.check_integrity().unwrap();
}

#[test]
fn an_aborted_step_leaves_nothing() {
    let mut cache = cache(8);
    let tokens = text(100, 7);
    let mut path = compute(&mut cache, A, &tokens);
    let longer = text(300, 7);
    let mut second = Path::new();
    claim(&mut cache, &mut second, A, &longer);
    claim(&mut cache, &mut path, A, &[&tokens[..], &[5; 100]].concat());
    cache.abort();
    assert_eq!((cache.truncate(&mut path), cache.truncate(&mut second)), (100, 64));
    assert_eq!((cache.stats().nodes, cache.stats().tokens), (2, 100));
    cache.check_integrity().unwrap();
}

#[test]
fn publishing_merges_what_is_equal() {
    let mut cache = cache(16);
    let tokens = text(150, 7);
    let mut a = compute(&mut cache, A, &tokens);
    let mut b = compute(&mut cache, B, &text(200, 8));
    assert_eq!(cache.stats().nodes, 3 + 4);
    let published = cache.publish(A, &tokens);
    assert_eq!((published.tokens, published.remap.len()), (128, 2));
    assert_eq!(cache.stats().nodes, 2 + 1 + 2);
    for path in [&mut a, &mut b] {
        cache.remap(path);
    }
    assert_eq!(chunks(&cache, &a)[..2], chunks(&cache, &b)[..2]);
    assert_eq!((a.used, b.used), (150, 200));
    assert_eq!(cache.probe(DomainId(77), &tokens), 128);
    cache.check_integrity().unwrap();

    assert_eq!(cache.unpublish(&tokens), 5);
    assert_eq!(cache.probe(A, &tokens), 0);
    assert_eq!((cache.truncate(&mut a), cache.truncate(&mut b)), (0, 0));
    assert_eq!(cache.stats().free, 16);
}

#[test]
fn ending_a_publication_leaves_what_others_share() {
    let mut cache = cache(16);
    let (first, second) = (text(128, 7), text(128, 8));
    for tokens in [&first, &second] {
        let path = compute(&mut cache, A, tokens);
        assert_eq!(cache.publish(A, tokens).tokens, 128);
        cache.release(path);
    }
    assert_eq!(cache.unpublish(&first), 1);
    assert_eq!((cache.probe(B, &first), cache.probe(B, &second)), (127, 128));
    assert_eq!(cache.unpublish(&second), 2);
    assert_eq!(cache.stats().nodes, 0);
}

#[test]
fn what_is_wanted_goes_last_and_what_is_used_stays() {
    let mut cache = cache(4);
    let texts: Vec<_> = (0..4).map(|i| vec![i; CHUNK]).collect();
    for tokens in &texts {
        let path = compute(&mut cache, A, tokens);
        cache.release(path);
    }
    cache.protect(1, A, &texts[0], 5);
    cache.protect(2, A, &texts[1], 4);
    let mut used = Path::new();
    cache.follow(&mut used, A, &texts[2], 1);
    let mut gone = Vec::new();
    let mut held = Vec::new();
    for i in 10..13 {
        held.push(compute(&mut cache, A, &[i; CHUNK]));
        gone.push((0..4).filter(|&i| cache.probe(A, &texts[i]) == 0).collect::<Vec<_>>());
    }
    assert_eq!(gone, [vec![3], vec![0, 3], vec![0, 1, 3]]);
    let mut path = Path::new();
    assert_eq!(cache.claim(&mut path, A, &[99], 1, &mut vec![]), Claim::Full);
}

#[test]
#[should_panic = "follow first"]
fn nothing_is_computed_twice() {
    let mut cache = cache(4);
    let _first = compute(&mut cache, A, &[1, 2, 3]);
    let _ = cache.claim(&mut Path::new(), A, &[1, 2, 4], 3, &mut vec![]);
}
