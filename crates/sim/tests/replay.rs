//! Eviction policies on traces: the published figures, and what the learnt policy must reach.

use kvist_sim::replay::{Conversations, Policy, SIZES, Table, Trace, generate, replay};

const ALL: [Policy; 4] = [Policy::Fifo, Policy::Lru, Policy::Returns, Policy::Optimum];

/// A trace of `shared/traces` beside the repository, or of KVIST_TRACES.
fn trace(name: &str) -> Option<Trace> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/traces");
    let folder = std::env::var("KVIST_TRACES").unwrap_or(beside.into());
    let file = format!("{folder}/mooncake-{name}.jsonl");
    match std::fs::read_to_string(&file) {
        Ok(text) => Some(Trace::parse(&text).unwrap()),
        Err(error) => {
            eprintln!("SKIPPED: {file}: {error}; KVIST_TRACES names a folder with Mooncake's traces");
            None
        }
    }
}

fn close(rates: &[f64], reference: &[f64]) {
    assert!(rates.iter().zip(reference).all(|(a, b)| (a - b).abs() < 0.051), "{rates:?}, published: {reference:?}");
}

#[test]
fn conversation_trace() {
    let Some(trace) = trace("conversation") else { return };
    let table = Table::new("conversation", &trace, &SIZES, &ALL);
    println!("{table}");
    assert_eq!((table.requests, table.blocks, table.different), (12_031, 288_500, 182_790));
    close(table.rates(Policy::Lru).unwrap(), &[4.4, 6.5, 21.1, 32.6, 35.5, 36.4]);
    close(table.rates(Policy::Fifo).unwrap(), &[4.3, 6.3, 18.1, 29.4, 33.4, 35.6]);
    close(table.rates(Policy::Optimum).unwrap(), &[19.1, 29.4, 36.6, 36.6, 36.6, 36.6]);
    assert_never_below_lru(&table);
    let closed = table.gap_closed().unwrap();
    assert!(closed[1] >= Some(15.0) && closed[2] >= Some(8.0), "{closed:?}");
}

#[test]
fn synthetic_trace() {
    let Some(trace) = trace("synthetic") else { return };
    let table = Table::new("synthetic", &trace, &SIZES, &ALL);
    println!("{table}");
    close(&table.rates(Policy::Lru).unwrap()[..4], &[8.2, 18.8, 42.3, 62.4]);
    close(&table.rates(Policy::Optimum).unwrap()[..4], &[27.7, 44.7, 61.8, 64.0]);
    assert_never_below_lru(&table);
}

fn assert_never_below_lru(table: &Table) {
    let (lru, returns) = (table.rates(Policy::Lru).unwrap(), table.rates(Policy::Returns).unwrap());
    assert!(lru.iter().zip(returns).all(|(lru, returns)| returns >= lru), "{returns:?}, LRU {lru:?}");
}

/// Runs everywhere: made up conversations, at sizes where memory is short and where it is not.
#[test]
fn conversations_of_other_seeds() {
    let conversations = Conversations { count: 1500, gap: 500_000, think: 120_000_000 };
    for seed in 0..3 {
        let trace = generate(conversations, seed);
        let table = Table::new(&format!("seed {seed}"), &trace, &[500, 1000, 3000, 100_000], &ALL);
        println!("{table}");
        let of = |policy| table.rates(policy).unwrap();
        let (fifo, lru, returns, optimum) = (of(ALL[0]), of(ALL[1]), of(ALL[2]), of(ALL[3]));
        for i in 0..4 {
            assert!(optimum[i] >= returns[i].max(lru[i]) && lru[i] >= fifo[i] - 0.5, "size {i}: {table}");
        }
        assert!(returns[0] > lru[0] && returns[1] > lru[1] + 1.0, "{table}");
        assert!((optimum[3] - lru[3]).abs() < 1e-9 && returns[3] == lru[3], "with room for all there is no policy");
    }
}

/// The optimum against all ways to evict, on traces small enough for that.
#[test]
fn no_way_to_evict_has_more_hits_than_the_optimum() {
    fn best(trace: &Trace, row: usize, held: u64, capacity: u32) -> u64 {
        let Some(asked) = trace.rows.get(row) else { return 0 };
        let blocks = trace.blocks(asked);
        let hits = blocks.iter().take_while(|&&block| held >> block & 1 == 1).count() as u64;
        let all = blocks.iter().fold(held, |all, block| all | 1 << block);
        let mut most = 0;
        // Every subset of what is there after the request.
        let mut kept = all;
        loop {
            if kept.count_ones() == capacity.min(all.count_ones()) {
                most = most.max(best(trace, row + 1, kept, capacity));
            }
            if kept == 0 {
                break;
            }
            kept = (kept - 1) & all;
        }
        hits + most
    }
    // Two trees: 0-1-2 and 0-1-3, 4-5 and 4-6.
    let paths: [&[u32]; 6] = [&[0, 1, 2], &[0, 1, 3], &[0, 1], &[4, 5], &[4, 6], &[7]];
    for seed in 0..40u64 {
        let mut random = kvist_sim::Random::new(seed);
        let line = |i: usize, path: &[u32]| format!("{{\"timestamp\": {i}, \"hash_ids\": {path:?}}}\n");
        let text: String = (0..6).map(|i| line(i, random.pick(&paths))).collect();
        let trace = Trace::parse(&text).unwrap();
        for capacity in [1, 2, 3, 4] {
            let (ours, most) = (replay(&trace, capacity, Policy::Optimum).hits, best(&trace, 0, 0, capacity as u32));
            assert_eq!(ours, most, "seed {seed}, {capacity} blocks: {text}");
            assert!(replay(&trace, capacity, Policy::Returns).hits <= most);
        }
    }
}
