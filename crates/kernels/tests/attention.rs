//! Tree attention against f64, and its independence of sharing, grouping and threads.

mod common;

use std::ops::Range;

use common::{Rng, bits, nmse, paths};
use kvist_base::{CHUNK, ChunkId, ChunkLayout, Codec, LayerKind, Run, RunList, SEGMENT, Seal, Slot, low_mask};
use kvist_kernels::{AttnPlan, AttnShape, Canary, Isa, KvPool, Pool, Queries, attend, bf16, kv_bytes};

const CHUNKS: u32 = 48;
const SHIFTS: [u32; 3] = [0, 64, 1024];
const LAYER: usize = 1;

/// A step's attention: random tree of runs, filled pool, queries.
struct Case {
    shape: AttnShape,
    kv: KvPool,
    runs: RunList,
    rows: usize,
    q: Vec<u16>,
    cap: Option<f32>,
}

fn pool_of(shape: AttnShape, chunks: u32) -> KvPool {
    let kind = LayerKind::Gqa { heads: shape.kv_heads, dk: shape.head_dim, dv: shape.head_dim };
    KvPool::new(ChunkLayout::new(Codec::Kv16, &[kind; 2]), chunks).unwrap()
}

/// `CHUNKS` sealed chunks in kv8 and as many open ones.
fn coded_pool_of(shape: AttnShape) -> KvPool {
    let kind = LayerKind::Gqa { heads: shape.kv_heads, dk: shape.head_dim, dv: shape.head_dim };
    KvPool::with_codec(ChunkLayout::new(Codec::Kv8, &[kind; 2]), CHUNKS, CHUNKS).unwrap()
}

fn fill(kv: &mut KvPool, shape: AttnShape, rng: &mut Rng) {
    let pool = Pool::new(1);
    let width = CHUNK * shape.kv_heads * shape.head_dim;
    for chunk in kv.open() {
        let slots: Vec<_> = (0..CHUNK as u8).map(|slot| Some(Slot { chunk: ChunkId(chunk), slot })).collect();
        kv.write(Isa::detect(), &pool, LAYER, &slots, &rng.normals(width), &rng.normals(width));
    }
    let first = kv.open().start;
    let seals: Vec<Seal> = (0..first).map(|i| Seal { from: ChunkId(first + i), to: ChunkId(i) }).collect();
    kv.seal(&pool, LAYER, &seals);
}

/// Appends runs of `rows` from `place` on and recurses into a random partition of the rows.
fn grow(rng: &mut Rng, runs: &mut RunList, rows: Range<u32>, mut place: u32, depth: usize, shift: u32) {
    let per_segment = (SEGMENT / CHUNK) as u32;
    let mut left = [1, 1, 2, 5, 9, 12, 17][rng.below(7)];
    let shift = if rng.below(4) == 0 { SHIFTS[rng.below(3)] } else { shift };
    while left > 0 {
        let n = (per_segment - place % per_segment).min(left).min(1 + rng.below(8) as u32);
        let first = runs.chunks.len() as u32;
        runs.chunks.extend((0..n).map(|_| ChunkId(rng.below(CHUNKS as usize) as u32)));
        let masks = (rng.below(3) == 0).then_some(runs.masks.len() as u32);
        if masks.is_some() {
            let mask = |rng: &mut Rng| match rng.below(6) {
                0 => 0,
                1 | 2 => u64::MAX,
                3 => rng.next(),
                _ => low_mask(1 + rng.below(64)),
            };
            (0..n * (rows.end - rows.start)).for_each(|_| runs.masks.push(mask(rng)));
        }
        runs.runs.push(Run { rows: rows.clone(), place, chunks: first..first + n, shift, masks });
        place += n;
        left -= n;
    }
    if depth > 0 {
        let mut start = rows.start;
        while start < rows.end {
            let end = (start + 1 + rng.below(rows.len()) as u32).min(rows.end);
            if rng.below(8) > 0 {
                grow(rng, runs, start..end, place, depth - 1, shift);
            }
            start = end;
        }
    }
}

fn case(seed: u64, shape: AttnShape) -> Case {
    case_of(seed, shape, pool_of(shape, CHUNKS))
}

/// The same mixture of runs, most of whose chunks are sealed and encoded, the others open.
fn coded_case(seed: u64, shape: AttnShape) -> Case {
    let mut case = case_of(seed, shape, coded_pool_of(shape));
    let mut rng = Rng(!seed);
    case.runs.chunks.iter_mut().filter(|_| rng.below(4) == 0).for_each(|chunk| chunk.0 += CHUNKS);
    case
}

fn case_of(seed: u64, shape: AttnShape, mut kv: KvPool) -> Case {
    let mut rng = Rng(seed);
    let rng = &mut rng;
    fill(&mut kv, shape, rng);
    let rows = [1, 2, 3, 5, 9, 17, 40, 70][rng.below(8)];
    let mut runs = RunList::default();
    // The last row may see nothing at all.
    let seeing = rows - rng.below(2).min(rows - 1);
    let (depth, place) = (rng.below(4), rng.below(3) as u32);
    grow(rng, &mut runs, 0..seeing as u32, place, depth, 0);
    let scale = [0.02, 0.2, 1.0, 30.0][rng.below(4)];
    let q = rng.bf16s(SHIFTS.len() * rows * shape.heads * shape.head_dim, scale);
    let cap = [None, Some(50.0), Some(2.0)][seed as usize % 3];
    Case { shape, kv, runs, rows, q, cap }
}

fn run(isa: Isa, pool: &Pool, case: &Case, runs: &RunList, rows: usize, q: &[u16], canary: Canary) -> Vec<f32> {
    let mut plan = AttnPlan::with_canary(case.shape, canary).with_soft_cap(case.cap);
    plan.build(runs, rows, pool.threads());
    let mut out = vec![f32::NAN; rows * case.shape.heads * case.shape.head_dim];
    let q = Queries { data: q, shifts: &SHIFTS };
    attend(isa, pool, &mut plan, runs, &case.kv, LAYER, &q, &mut out);
    let first = out.clone();
    out.fill(f32::NAN);
    attend(isa, pool, &mut plan, runs, &case.kv, LAYER, &q, &mut out);
    if canary != Canary::FoldByCompletion {
        assert!(bits(&first) == bits(&out), "a plan serves several layers");
    }
    out
}

/// Dense softmax in f64 over the visible keys.
fn dense(case: &Case) -> Vec<f32> {
    let AttnShape { heads, kv_heads, head_dim } = case.shape;
    let mut out = vec![0.0; case.rows * heads * head_dim];
    let (mut k, mut v) = (vec![0.0; head_dim], vec![0.0; head_dim]);
    for (at, out) in out.chunks_exact_mut(head_dim).enumerate() {
        let (row, head) = (at / heads, at % heads);
        let mut keys: Vec<(f64, Vec<f32>)> = Vec::new();
        for run in case.runs.runs.iter().filter(|r| r.rows.contains(&(row as u32))) {
            let set = SHIFTS.iter().position(|&s| s == run.shift).unwrap();
            let q = &case.q[((set * case.rows + row) * heads + head) * head_dim..][..head_dim];
            for c in 0..run.chunks.len() as u32 {
                let mask = case.runs.mask(run, c, row as u32);
                let chunk = case.runs.chunks[(run.chunks.start + c) as usize];
                for slot in (0..CHUNK).filter(|s| mask >> s & 1 == 1) {
                    case.kv.read(LAYER, head / (heads / kv_heads), Slot { chunk, slot: slot as u8 }, &mut k, &mut v);
                    let mut score: f64 = q.iter().zip(&k).map(|(&q, &k)| bf16::to_f32(q) as f64 * k as f64).sum();
                    if let Some(cap) = case.cap {
                        let cap = cap as f64 * std::f64::consts::LOG2_E;
                        score = cap * (score / cap).tanh();
                    }
                    keys.push((score, v.clone()));
                }
            }
        }
        let top = keys.iter().map(|k| k.0).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = keys.iter().map(|k| (k.0 - top).exp2()).sum();
        for (i, out) in out.iter_mut().enumerate().filter(|_| !keys.is_empty()) {
            *out = (keys.iter().map(|(s, v)| (s - top).exp2() * v[i] as f64).sum::<f64>() / sum) as f32;
        }
    }
    out
}

fn shape(seed: u64) -> AttnShape {
    let shapes = [
        (4, 4, 16),
        (8, 2, 64),
        (14, 2, 64),
        (9, 3, 64),
        (2, 1, 18),
        (6, 2, 96),
        (8, 1, 128),
        (3, 1, 256),
        (5, 1, 6),
        (4, 1, 56),
        (5, 1, 80),
    ];
    let (heads, kv_heads, head_dim) = shapes[seed as usize % shapes.len()];
    AttnShape { heads, kv_heads, head_dim }
}

#[test]
fn agrees_with_f64() {
    let paths = paths(&[1, 4]);
    let mut worst = 0.0_f64;
    for seed in 0..75 {
        let make = if seed < 48 { case } else { coded_case };
        let case = make(seed, shape(seed));
        let want = dense(&case);
        for (isa, pool) in &paths {
            let got = run(*isa, pool, &case, &case.runs, case.rows, &case.q, Canary::None);
            let error = nmse(&got, &want);
            // Scores of thousands, as no model has them, are off by more where queries have 16 bits.
            let large = case.q.iter().any(|&q| bf16::to_f32(q) > 20.0);
            assert!(error <= if large { 5e-5 } else { 1e-6 }, "seed {seed} {isa}: {error:e}");
            worst = worst.max(error);
        }
    }
    // Not better than the rounding of p allows: the comparison compares something.
    assert!(worst > 1e-8, "{worst:e}");
}

/// Every run cut into single chunks.
fn by_chunk(runs: &RunList) -> RunList {
    let mut out = RunList { runs: Vec::new(), ..runs.clone() };
    for run in &runs.runs {
        for c in 0..run.chunks.len() as u32 {
            let first = run.chunks.start + c;
            let masks = run.masks.map(|at| at + c * run.rows.len() as u32);
            out.runs.push(Run { place: run.place + c, chunks: first..first + 1, masks, ..run.clone() });
        }
    }
    out
}

/// The attention of some of the rows, in the given order, each by itself.
fn selected(case: &Case, rows: &[u32]) -> (RunList, Vec<u16>) {
    let all = case.runs.unshared(case.rows as u32);
    let mut out = RunList { runs: Vec::new(), ..all.clone() };
    for (i, &row) in rows.iter().enumerate() {
        let mine = all.runs.iter().filter(|r| r.rows.start == row);
        out.runs.extend(mine.map(|r| Run { rows: i as u32..i as u32 + 1, ..r.clone() }));
    }
    let width = case.shape.heads * case.shape.head_dim;
    let mut q = Vec::new();
    for set in 0..SHIFTS.len() {
        rows.iter().for_each(|&r| q.extend(&case.q[(set * case.rows + r as usize) * width..][..width]));
    }
    (out, q)
}

#[test]
fn sharing_grouping_and_threads_do_not_change_a_bit() {
    let pools: Vec<Pool> = (1..=8).map(Pool::new).collect();
    for seed in 0..38 {
        let make = if seed < 24 { case } else { coded_case };
        let case = make(1000 + seed, shape(seed));
        let width = case.shape.heads * case.shape.head_dim;
        let unshared = case.runs.unshared(case.rows as u32);
        let chunks = by_chunk(&case.runs);
        let mut order: Vec<u32> = (0..case.rows as u32).rev().collect();
        order.rotate_left(case.rows / 3);
        order.truncate(case.rows.div_ceil(2));
        let (some, some_q) = selected(&case, &order);
        for isa in Isa::available() {
            let want = run(isa, &pools[0], &case, &case.runs, case.rows, &case.q, Canary::None);
            // Also of avx512, which differs in products of weights alone.
            let of = if isa == Isa::Portable { isa } else { Isa::Avx2 };
            let same = run(of, &pools[0], &case, &case.runs, case.rows, &case.q, Canary::None);
            assert!(bits(&same) == bits(&want), "seed {seed} {isa} has the bits of {of}");
            for pool in &pools {
                let threads = pool.threads();
                for (name, runs) in [("shared", &case.runs), ("unshared", &unshared), ("by chunk", &chunks)] {
                    let got = run(isa, pool, &case, runs, case.rows, &case.q, Canary::None);
                    assert!(bits(&got) == bits(&want), "seed {seed} {isa} {name}, {threads} threads");
                }
                let got = run(isa, pool, &case, &some, order.len(), &some_q, Canary::None);
                for (i, &row) in order.iter().enumerate() {
                    let (got, want) = (&got[i * width..][..width], &want[row as usize * width..][..width]);
                    assert!(bits(got) == bits(want), "seed {seed} {isa} row {row} among others, {threads} threads");
                }
            }
        }
    }
}

#[test]
fn block_wide_rescale_is_noticed() {
    let mut noticed = 0;
    for seed in 0..20 {
        let case = case(2000 + seed, shape(seed));
        let pool = Pool::new(1);
        let unshared = case.runs.unshared(case.rows as u32);
        for isa in Isa::available() {
            let [a, b] = [&case.runs, &unshared]
                .map(|runs| run(isa, &pool, &case, runs, case.rows, &case.q, Canary::BlockWideRescale));
            noticed += usize::from(bits(&a) != bits(&b));
        }
    }
    assert!(noticed > 0);
}

#[test]
fn folding_by_completion_is_noticed() {
    // Four segments. With the canary the last ones are begun first: otherwise a thread that did all of them by itself
    // would finish them in order each time.
    let shape = AttnShape { heads: 2, kv_heads: 1, head_dim: 64 };
    let mut rng = Rng(7);
    let mut kv = pool_of(shape, CHUNKS);
    fill(&mut kv, shape, &mut rng);
    let mut runs = RunList { chunks: (0..32).map(ChunkId).collect(), ..RunList::default() };
    let segment =
        |(s, n): (u32, u32)| Run { rows: 0..1, place: s * 8, chunks: s * 8..s * 8 + n, shift: 0, masks: None };
    runs.runs.extend([(0, 1), (1, 8), (2, 8), (3, 8)].map(segment));
    let q = rng.bf16s(3 * 2 * 64, 0.3);
    let case = Case { shape, kv, runs, rows: 1, q, cap: None };
    let pool = Pool::new(8);
    for isa in Isa::available() {
        let want = run(isa, &pool, &case, &case.runs, 1, &case.q, Canary::None);
        let differs = |_: &i32| {
            let got = run(isa, &pool, &case, &case.runs, 1, &case.q, Canary::FoldByCompletion);
            assert!(nmse(&got, &want) < 1e-10, "another order, the same attention");
            bits(&got) != bits(&want)
        };
        assert!((0..300).find(differs).is_some(), "{isa}");
    }
}

#[test]
fn flat_scores_over_a_long_context_do_not_drift() {
    let shape = AttnShape { heads: 2, kv_heads: 1, head_dim: 32 };
    let mut rng = Rng(5);
    let mut kv = pool_of(shape, 1);
    fill(&mut kv, shape, &mut rng);
    let mut runs = RunList { chunks: vec![ChunkId(0); 1024], ..RunList::default() };
    let segment = |s: u32| Run { rows: 0..1, place: s * 8, chunks: s * 8..s * 8 + 8, shift: 0, masks: None };
    runs.runs.extend((0..128).map(segment));
    let q = vec![0; 3 * 2 * 32];
    let case = Case { shape, kv, runs, rows: 1, q, cap: None };
    let want = dense(&case);
    for (isa, pool) in paths(&[1, 3]) {
        let got = run(isa, &pool, &case, &case.runs, 1, &case.q, Canary::None);
        // Equal weights times scales of V, in 16 bits, are off by up to 2^-14 of the largest, in each chunk alike.
        let error = nmse(&got, &want);
        assert!(error <= 5e-9, "{isa}: {error:e}");
    }
}

/// Weights are multiplied as integers. Of those that are small beside the largest of a chunk, one in 256 is lost at most.
#[test]
fn a_tail_of_small_weights_counts() {
    let shape = AttnShape { heads: 1, kv_heads: 1, head_dim: 64 };
    for tail in [-9.0_f32, -12.3, -14.01, -15.01] {
        let mut kv = pool_of(shape, 1);
        let slots: Vec<_> = (0..CHUNK as u8).map(|slot| Some(Slot { chunk: ChunkId(0), slot })).collect();
        let k: Vec<f32> = (0..CHUNK * 64).map(|i| if i % 64 == 0 && i > 0 { tail } else { 0.0 }).collect();
        kv.write(Isa::detect(), &Pool::new(1), LAYER, &slots, &k, &vec![1.0; CHUNK * 64]);
        let mut runs = RunList { chunks: vec![ChunkId(0)], ..RunList::default() };
        runs.runs.push(Run { rows: 0..1, place: 0, chunks: 0..1, shift: 0, masks: None });
        let mut q = vec![0; 3 * 64];
        q[0] = bf16::from_f32(1.0);
        let case = Case { shape, kv, runs, rows: 1, q, cap: None };
        for (isa, pool) in paths(&[1]) {
            let got = run(isa, &pool, &case, &case.runs, 1, &case.q, Canary::None);
            assert!(got.iter().all(|x| (x - 1.0).abs() < 1.0 / 256.0), "{isa}: {} with {tail}", got[0]);
        }
    }
}

/// Weights are the exponentials of scores and of V's scales together, and a row's maximum is that of both. So a V of nothing or
/// of next to nothing must still count in the sum of weights, and a chunk of tiny or of huge values must not lose those before it.
#[test]
fn values_of_all_sizes_have_their_weights() {
    let shape = AttnShape { heads: 2, kv_heads: 1, head_dim: 64 };
    for (seed, sizes) in [
        (0, [1.0_f32, 0.0, 1e-3, 1e3]),
        (1, [1e-20, 1e-20, 1e-20, 1e-20]),
        (2, [1e18, 1e18, 0.0, 1e18]),
        (3, [1e-6, 1e-6, 0.0, 0.0]),
        (4, [1e5, 1.0, 1e-5, 1e-10]),
    ] {
        for codec in [Codec::Kv16, Codec::Kv8] {
            let mut rng = Rng(seed);
            let coded = codec == Codec::Kv8;
            let mut kv = if coded { coded_pool_of(shape) } else { pool_of(shape, CHUNKS) };
            let (pool, open) = (Pool::new(1), kv.open().start);
            for chunk in 0..4 {
                let slots: Vec<_> =
                    (0..CHUNK as u8).map(|slot| Some(Slot { chunk: ChunkId(open + chunk), slot })).collect();
                let k: Vec<f32> = rng.normals(CHUNK * 64).iter().map(|k| k * (1.0 + 0.5 * chunk as f32)).collect();
                // Of each token, or of the whole chunk.
                let size = |token: usize| sizes[if seed == 4 { chunk as usize } else { token % 4 }];
                let v: Vec<f32> = rng.normals(CHUNK * 64).iter().enumerate().map(|(i, v)| v * size(i / 64)).collect();
                kv.write(Isa::detect(), &pool, LAYER, &slots, &k, &v);
                if coded {
                    kv.seal(&pool, LAYER, &[Seal { from: ChunkId(open + chunk), to: ChunkId(chunk) }]);
                }
            }
            let mut runs = RunList { chunks: (0..4).map(ChunkId).collect(), ..RunList::default() };
            runs.runs.push(Run { rows: 0..7, place: 0, chunks: 0..4, shift: 0, masks: None });
            let case = Case { shape, kv, runs, rows: 7, q: rng.bf16s(3 * 7 * 2 * 64, 0.3), cap: None };
            let want = dense(&case);
            for (isa, pool) in paths(&[1]) {
                let got = run(isa, &pool, &case, &case.runs, 7, &case.q, Canary::None);
                for (row, (got, want)) in got.chunks(64).zip(want.chunks(64)).enumerate() {
                    let error = nmse(got, want);
                    assert!(error < 1e-5, "{isa} {codec}, sizes {sizes:?}, query row {row}: {error:e}");
                }
            }
        }
    }
}

#[test]
fn extreme_scores_stay_in_their_row() {
    let shape = AttnShape { heads: 2, kv_heads: 1, head_dim: 64 };
    extremes(case(3, shape));
    extremes(coded_case(3, shape));
}

fn extremes(mut case: Case) {
    case.runs = RunList { chunks: vec![ChunkId(0), ChunkId(1)], ..RunList::default() };
    case.runs.runs.push(Run { rows: 0..6, place: 0, chunks: 0..2, shift: 0, masks: None });
    (case.rows, case.q) = (6, Rng(9).bf16s(3 * 6 * 2 * 64, 0.2));
    for (isa, pool) in paths(&[1]) {
        let clean = run(isa, &pool, &case, &case.runs, 6, &case.q, Canary::None);
        let good = case.q.clone();
        for (row, value) in [(1, 0x7fc0), (2, 0x7f80), (3, bf16::from_f32(1e4)), (4, 0x7f7f)] {
            case.q[row * 128..(row + 1) * 128].fill(value);
        }
        let got = run(isa, &pool, &case, &case.runs, 6, &case.q, Canary::None);
        for row in [0, 5] {
            assert_eq!(bits(&got[row * 128..][..128]), bits(&clean[row * 128..][..128]), "{isa} row {row}");
        }
        assert!(got[3 * 128..4 * 128].iter().all(|x| x.is_finite()), "{isa}");
        case.q = good;
    }
}

#[test]
fn a_masked_slot_does_not_count() {
    // The same keys, once followed by garbage that no row sees.
    let shape = AttnShape { heads: 4, kv_heads: 2, head_dim: 64 };
    let mut rng = Rng(11);
    let mut kv = pool_of(shape, 2);
    fill(&mut kv, shape, &mut rng);
    kv.copy_slots(ChunkId(0), ChunkId(1), 10);
    let huge = vec![f32::MAX; 2 * 64];
    let tail: Vec<u8> = (10..64).collect();
    for slot in tail {
        kv.write(Isa::detect(), &Pool::new(1), LAYER, &[Some(Slot { chunk: ChunkId(0), slot })], &huge, &huge);
    }
    let q = rng.bf16s(3 * 4 * 64, 0.3);
    let runs_of = |chunk| RunList {
        runs: vec![Run { rows: 0..1, place: 0, chunks: 0..1, shift: 0, masks: Some(0) }],
        chunks: vec![chunk],
        masks: vec![low_mask(10)],
    };
    let case = Case { shape, kv, runs: runs_of(ChunkId(0)), rows: 1, q, cap: None };
    for (isa, pool) in paths(&[1]) {
        let [a, b] =
            [ChunkId(0), ChunkId(1)].map(|chunk| run(isa, &pool, &case, &runs_of(chunk), 1, &case.q, Canary::None));
        assert!(bits(&a) == bits(&b) && a.iter().all(|x| x.is_finite()), "{isa}");
    }
}

#[test]
fn a_group_that_sees_nothing_of_a_chunk_is_left_out() {
    let shape = AttnShape { heads: 1, kv_heads: 1, head_dim: 64 };
    let mut case = coded_case(5, shape);
    let rows = 60;
    case.runs = RunList { chunks: (0..4).map(ChunkId).collect(), ..RunList::default() };
    case.runs.runs.push(Run { rows: 0..rows, place: 0, chunks: 0..4, shift: 0, masks: Some(0) });
    // The first group of chunk 3, the last one of chunk 0.
    let hidden = |chunk: u32, row: u32| row < 11 * chunk || row % 30 == chunk || (chunk == 0 && row >= 32);
    case.runs.masks = (0..4 * rows).map(|i| if hidden(i / rows, i % rows) { 0 } else { u64::MAX }).collect();
    (case.rows, case.q) = (rows as usize, Rng(13).bf16s(3 * rows as usize * 64, 0.3));
    let alone = case.runs.unshared(rows);
    for (isa, pool) in paths(&[1, 3]) {
        let [all, one] =
            [&case.runs, &alone].map(|runs| run(isa, &pool, &case, runs, case.rows, &case.q, Canary::None));
        assert!(bits(&all) == bits(&one) && all.iter().all(|x| x.is_finite()), "{isa}");
    }
}

/// Own chunks come in between common ones, and segments may end in the middle of either; own ones may be open or of
/// another shift.
#[test]
fn common_and_own_chunks_give_what_each_row_gives_alone() {
    for (seed, common, own) in [(30, 16, 1), (31, 21, 5), (32, 9, 31), (33, 23, 2)] {
        for (rows, group) in [(33, 1), (14, 3)] {
            let shape = AttnShape { heads: 4 * group, kv_heads: 4, head_dim: 64 };
            let coded = seed % 2 == 1;
            let mut case = if coded { coded_case(seed, shape) } else { case(seed, shape) };
            // A single shift or two.
            let shifts = &SHIFTS[..1 + usize::from(seed > 31)];
            let runs = &mut case.runs;
            *runs = RunList::default();
            let mut push = |rows: Range<u32>, from: u32, to: u32, own: bool| {
                for place in from..to {
                    let (first, last) = (runs.chunks.len() as u32, own && place + 1 == to);
                    let open = if coded && last { CHUNKS } else { 0 };
                    runs.chunks.push(ChunkId((place * 5 + rows.start * 3) % CHUNKS + open));
                    let masks = last.then_some(runs.masks.len() as u32);
                    runs.masks.extend(masks.map(|_| low_mask(1 + rows.start as usize)));
                    let shift = if own { shifts[shifts.len() - 1] } else { shifts[0] };
                    runs.runs.push(Run { rows: rows.clone(), place, chunks: first..first + 1, shift, masks });
                }
            };
            push(0..rows, 0, common, false);
            (0..rows).for_each(|row| push(row..row + 1, common, common + 1 + (own + row) % (own + 1), true));
            case.rows = rows as usize;
            case.q = Rng(seed).bf16s(shifts.len() * case.rows * shape.heads * 64, 0.3);
            let alone = case.runs.unshared(rows);
            for (isa, pool) in paths(&[1, 2, 3]) {
                let q = Queries { data: &case.q, shifts };
                let [all, one] = [&case.runs, &alone].map(|runs| {
                    let mut plan = AttnPlan::new(shape);
                    plan.build(runs, case.rows, pool.threads());
                    let mut out = vec![0.0; case.rows * shape.heads * 64];
                    attend(isa, &pool, &mut plan, runs, &case.kv, LAYER, &q, &mut out);
                    out
                });
                assert!(bits(&all) == bits(&one), "{isa} {common} + {own}");
                assert!(all.iter().all(|x| x.is_finite() && *x != 0.0), "{isa} {common} + {own}");
            }
        }
    }
}

#[test]
#[should_panic(expected = "every shift of the runs has queries")]
fn a_shift_without_queries_is_refused() {
    let mut case = case(40, AttnShape { heads: 1, kv_heads: 1, head_dim: 64 });
    case.runs = RunList { chunks: vec![ChunkId(0)], ..RunList::default() };
    case.runs.runs.push(Run { rows: 0..1, place: 0, chunks: 0..1, shift: SHIFTS[1], masks: None });
    let mut plan = AttnPlan::new(case.shape);
    plan.build(&case.runs, 1, 1);
    let q = Queries { data: &case.q[..64], shifts: &SHIFTS[..1] };
    attend(Isa::detect(), &Pool::new(1), &mut plan, &case.runs, &case.kv, LAYER, &q, &mut [0.0; 64]);
}

#[test]
fn any_number_of_rows_meets_codes_alike() {
    // Head sizes that end within a vector, one row to more than a group of rows.
    const ROWS: u32 = 34;
    for (head_dim, seed) in [(2, 19), (6, 20), (18, 21), (66, 23), (96, 22)] {
        let shape = AttnShape { heads: 1, kv_heads: 1, head_dim };
        let mut case = coded_case(seed, shape);
        case.runs = RunList { chunks: (0..2).map(ChunkId).collect(), ..RunList::default() };
        case.runs.runs.push(Run { rows: 0..ROWS, place: 0, chunks: 0..2, shift: 0, masks: None });
        (case.rows, case.q) = (ROWS as usize, Rng(seed).bf16s(3 * ROWS as usize * head_dim, 0.3));
        let alone = case.runs.unshared(ROWS);
        for (isa, pool) in paths(&[1]) {
            let want = run(isa, &pool, &case, &alone, case.rows, &case.q, Canary::None);
            for rows in 1..=ROWS {
                let (some, q) = selected(&case, &(0..rows).collect::<Vec<_>>());
                let shared = RunList {
                    runs: vec![Run { rows: 0..rows, ..case.runs.runs[0].clone() }],
                    chunks: case.runs.chunks.clone(),
                    masks: Vec::new(),
                };
                for runs in [&some, &shared] {
                    let got = run(isa, &pool, &case, runs, rows as usize, &q, Canary::None);
                    assert!(bits(&got) == bits(&want[..got.len()]), "{isa} {rows} rows of {head_dim}");
                }
            }
        }
    }
}

#[test]
fn bytes_read_follow_from_the_runs() {
    let shape = AttnShape { heads: 4, kv_heads: 2, head_dim: 64 };
    let kv = pool_of(shape, 1);
    let chunk = kv.layout().bytes as u64;
    let mut runs = RunList { chunks: vec![ChunkId(0); 5], masks: vec![1, 0, 0, 0], ..RunList::default() };
    runs.runs.push(Run { rows: 0..4, place: 0, chunks: 0..3, shift: 0, masks: None });
    runs.runs.push(Run { rows: 1..3, place: 3, chunks: 3..5, shift: 0, masks: Some(0) });
    let bytes = kv_bytes(&runs, kv.layout(), None, 0);
    assert_eq!((bytes.kv_bytes_read, bytes.kv_bytes_unshared), (4 * chunk, 13 * chunk));
    assert_eq!(kv_bytes(&runs, kv.layout(), None, 1).kv_bytes_read, 0);
}
