//! What the tree costs: a decode step, a long prompt, an eviction. Prints nanoseconds, best and median of many rounds.

use std::hint::black_box;
use std::time::Instant;

use kvist_base::{CHUNK, DomainId, TokenId};
use kvist_cache::{Cache, CacheConfig, Claim, Path};

const USER: DomainId = DomainId(1);
const PROMPT: usize = 2000;

fn main() {
    println!("{:44} {:>10} {:>10}", "ns per", "best", "median");
    for (sequences, others) in [(1, 0), (64, 0), (64, 100), (64, 10_000)] {
        decode(sequences, others);
    }
    for others in [0, 100, 10_000] {
        prompt(others);
    }
    evict();
}

fn report(what: &str, per: usize, mut rounds: Vec<u128>) {
    rounds.sort_unstable();
    let of = |ns: u128| ns as f64 / per as f64;
    println!("{what:44} {:10.1} {:10.1}", of(rounds[0]), of(rounds[rounds.len() / 2]));
}

/// A text of its own from `seed` on after `shared` tokens that all texts share.
fn text(shared: usize, len: usize, seed: usize) -> Vec<TokenId> {
    let own = |i: usize| (seed * 7919 + i * 31) as TokenId % 50_000;
    (0..len).map(|i| if i < shared { i as TokenId } else { own(i) }).collect()
}

/// Follows, then computes all that is missing in one step.
fn compute(cache: &mut Cache, path: &mut Path, tokens: &[TokenId]) {
    let mut prepare = Vec::new();
    let mut used = cache.follow(path, USER, tokens, 0);
    while used < tokens.len() {
        assert!(matches!(cache.claim(path, USER, tokens, CHUNK, &mut prepare), Claim::Slots { .. }));
        used = path.used;
    }
    cache.commit();
}

/// A tree with `others` released prompts that branch off after the first `shared` tokens.
fn tree(shared: usize, others: usize) -> Cache {
    let mut cache = Cache::new(CacheConfig { slabs: 4 * others as u32 + 20_000, ..CacheConfig::default() });
    for seed in 0..others {
        let mut path = Path::new();
        compute(&mut cache, &mut path, &text(shared, shared + 70, seed + 1_000_000));
        cache.release(path);
    }
    cache
}

fn decode(sequences: usize, others: usize) {
    let mut cache = tree(PROMPT - PROMPT % CHUNK, others);
    let mut all: Vec<(Path, Vec<TokenId>)> =
        (0..sequences).map(|i| (Path::new(), text(PROMPT, PROMPT + 1, i))).collect();
    for (path, tokens) in &mut all {
        compute(&mut cache, path, tokens);
    }
    let mut prepare = Vec::new();
    let mut rounds = Vec::new();
    for step in 0..1000 {
        all.iter_mut().for_each(|(_, tokens)| tokens.push((tokens.len() * 37) as TokenId % 50_000));
        let start = Instant::now();
        for (path, tokens) in &mut all {
            cache.follow(path, USER, tokens, step);
            black_box(cache.claim(path, USER, tokens, 1, &mut prepare));
        }
        cache.commit();
        rounds.push(start.elapsed().as_nanos());
        prepare.clear();
    }
    report(&format!("decode row, {sequences} running, {others} cached"), sequences, rounds);
}

fn prompt(others: usize) {
    let mut cache = tree(0, others);
    let tokens = text(0, PROMPT, 1);
    let (mut cold, mut warm, mut probe) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..1000 {
        let mut path = Path::new();
        let start = Instant::now();
        compute(&mut cache, &mut path, &text(0, PROMPT, round + 2));
        cold.push(start.elapsed().as_nanos());
        cache.release(path);
    }
    let mut path = Path::new();
    compute(&mut cache, &mut path, &tokens);
    cache.release(path);
    for round in 0..1000 {
        let start = Instant::now();
        black_box(cache.probe(USER, &tokens));
        probe.push(start.elapsed().as_nanos());
        let mut path = Path::new();
        let start = Instant::now();
        cache.follow(&mut path, USER, &tokens, round);
        cache.release(path);
        warm.push(start.elapsed().as_nanos());
    }
    report(&format!("cold prompt of {PROMPT}: follow, claims, commit; {others}"), 1, cold);
    report(&format!("cached prompt of {PROMPT}: follow, release; {others}"), 1, warm);
    report(&format!("cached prompt of {PROMPT}: probe; {others}"), 1, probe);
}

/// Every claim evicts, in a pool of 10,000 chunks.
fn evict() {
    let mut cache = Cache::new(CacheConfig { slabs: 10_000, ..CacheConfig::default() });
    let mut rounds = Vec::new();
    for seed in 0..3000 {
        let tokens = text(0, 640, seed);
        let mut path = Path::new();
        let start = Instant::now();
        compute(&mut cache, &mut path, &tokens);
        rounds.push(start.elapsed().as_nanos());
        cache.release(path);
    }
    assert!(cache.stats().evictions > 10_000);
    report("new chunk with an eviction, pool of 10,000", 10, rounds.split_off(1500));
    told();
}

/// The same, and the tree is told when requests come and end; each second one goes on with an earlier one.
fn told() {
    let mut cache = Cache::new(CacheConfig { slabs: 10_000, ..CacheConfig::default() });
    let mut rounds = Vec::new();
    for seed in 0..6000 {
        let tokens = text(0, 640 + seed % 7 * 64, if seed % 2 == 0 { seed } else { seed / 5 });
        let now = seed as u64 * 300_000;
        let mut path = Path::new();
        let start = Instant::now();
        let visit = cache.enter(USER, &tokens, now);
        compute(&mut cache, &mut path, &tokens);
        cache.leave(&mut path, USER, &tokens, tokens.len(), &visit, now);
        rounds.push(start.elapsed().as_nanos());
        cache.release(path);
    }
    assert!(cache.stats().evictions > 10_000);
    report("the same, told when requests come and end", 13, rounds.split_off(3000));
}
