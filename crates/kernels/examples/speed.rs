//! Prints how fast the kernels are on this machine beside its measured limits: `speed [threads] [isa]
//! [matmul|quant|attention] [Q4_K|..]`.

use std::time::Instant;

use kvist_base::{CHUNK, ChunkId, ChunkLayout, Codec, LayerKind, Run, RunList, SEGMENT, Seal, Slot};
use kvist_kernels::{
    AttnPlan, AttnShape, Isa, KvPool, PackedBf16, PackedQuant, Pool, QuantKind, QuantRows, Queries, attend, kv_bytes,
    matmul, matmul_quant, probe,
};

/// Seconds of one call: of the thread's CPU time where it works alone on Linux, so that a busy machine disturbs little,
/// else the shortest wall time of several.
fn time(pool: &Pool, mut f: impl FnMut()) -> f64 {
    f();
    if pool.threads() == 1 && cpu_time().is_some() {
        let (start, begin) = (Instant::now(), cpu_time());
        let mut calls = 0;
        // The system accounts in ticks of a few milliseconds.
        while start.elapsed().as_millis() < 80 || calls < 3 {
            f();
            calls += 1;
        }
        return cpu_time().zip(begin).map_or(f64::NAN, |(end, begin)| (end - begin) / calls as f64);
    }
    let wall = |_| {
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64()
    };
    (0..10).map(wall).fold(f64::INFINITY, f64::min)
}

/// CPU time of this thread in seconds.
fn cpu_time() -> Option<f64> {
    std::thread::yield_now();
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    stat.split(' ').next()?.parse().ok().map(|ns: f64| ns / 1e9)
}

/// Values that repeat, but are neither equal nor special.
fn values(n: usize) -> Vec<u16> {
    (0..n).map(|i| 0x3d00 | (i * 37 % 251) as u16 | ((i * 11 % 2) << 15) as u16).collect()
}

fn main() {
    let mut args = std::env::args().skip(1);
    let threads = args.next().map_or(1, |s| s.parse().expect("a number of threads"));
    let isa = args.next().map_or(Isa::detect(), |s| s.parse().expect("an instruction set"));
    let only = args.next().unwrap_or_default();
    let pool = Pool::new(threads);
    let limit = probe::peak(isa, &pool, 20);
    let memory = probe::bandwidth(&pool, 5);
    println!("{isa}, {threads} threads: {limit:.2?}, memory {memory:.1} GB/s");

    let wanted = |part: &str| only.is_empty() || only == part;
    if wanted("matmul") {
        dense(isa, &pool, limit.gflops, memory);
    }
    if wanted("quant") {
        quant(isa, &pool, limit.gflops, memory);
    }
    if wanted("attention") {
        println!(
            "\nattention heads    d  rows  tokens       us  GFLOP/s  % peak     GB/s  % memory  unshared/shared  kv16/kv8"
        );
        for (heads, kv_heads, head_dim) in [(32, 8, 64), (32, 8, 128), (14, 2, 64), (8, 8, 128)] {
            let shape = AttnShape { heads, kv_heads, head_dim };
            for (rows, tokens) in [(1, 8192), (8, 4096), (64, 2048), (512, 2048)] {
                attention(isa, &pool, shape, rows, tokens, limit.gflops, memory);
            }
        }
    }
}

fn dense(isa: Isa, pool: &Pool, peak: f64, memory: f64) {
    println!("\nmatmul        k      n   rows    GFLOP/s  % peak     GB/s  % memory");
    for (k, n) in [(576, 576), (2048, 2048), (2048, 8192), (8192, 2048)] {
        let w = values(k);
        let weights = PackedBf16::pack(n, k, pool, &|_, row| row.copy_from_slice(&w)).expect("memory");
        // Enough copies of the weights that one row has to fetch them from memory.
        let copies: Vec<PackedBf16> = (0..(96 << 20) / weights.bytes())
            .map(|_| PackedBf16::pack(n, k, pool, &|_, row| row.copy_from_slice(&w)).expect("memory"))
            .collect();
        for rows in [1, 2, 4, 6, 16, 256] {
            let (x, mut y) = (values(rows * k), vec![0.0; rows * n]);
            let used = if rows <= 6 { &copies[..] } else { &copies[..1] };
            let seconds = time(pool, || {
                used.iter().for_each(|w| matmul(isa, pool, &x, rows, w, &mut y, false));
            }) / used.len() as f64;
            let gflops = 2.0 * (rows * k * n) as f64 / seconds / 1e9;
            let gbs = weights.bytes() as f64 / seconds / 1e9;
            let (share, part) = (gflops / peak * 100.0, gbs / memory * 100.0);
            println!("       {k:>8} {n:>6} {rows:>6} {gflops:>10.1} {share:>7.0} {gbs:>8.1} {part:>9.0}");
        }
    }
}

fn quant(isa: Isa, pool: &Pool, peak: f64, memory: f64) {
    println!("\nquant         k      n   rows      GOP/s  % float     GB/s  % memory  us to quantise x");
    let only = std::env::args().nth(4);
    for kind in QuantKind::ALL.into_iter().filter(|kind| only.as_ref().is_none_or(|only| *only == kind.to_string())) {
        for (k, n) in [(2048, 2048), (2048, 8192), (8192, 2048)] {
            // Codes of every value under small scales.
            let blocks: Vec<u8> =
                (0..kind.block_bytes()).map(|i| if i % 2 == 0 { (i * 37) as u8 } else { 0x11 }).collect();
            let fill = |_: usize, row: &mut [u8]| {
                row.chunks_exact_mut(blocks.len()).for_each(|block| block.copy_from_slice(&blocks));
            };
            let pack = || PackedQuant::pack(kind, n, k, pool, &fill).expect("memory");
            let bytes = pack().bytes();
            let copies: Vec<PackedQuant> = (0..(96 << 20) / bytes).map(|_| pack()).collect();
            for rows in [1, 2, 4, 8, 16, 256] {
                let (x, mut y) = (values(rows * k), vec![0.0; rows * n]);
                let mut q = QuantRows::new();
                let quantise = time(pool, || q.set(isa, pool, &x, k));
                let used = if rows <= 8 { &copies[..] } else { &copies[..1] };
                let seconds = time(pool, || {
                    used.iter().for_each(|w| matmul_quant(isa, pool, &q, w, &mut y, n, false));
                }) / used.len() as f64;
                let gops = 2.0 * (rows * k * n) as f64 / seconds / 1e9;
                let gbs = bytes as f64 / seconds / 1e9;
                let (share, part, us) = (gops / peak * 100.0, gbs / memory * 100.0, quantise * 1e6);
                println!(
                    "{kind:<6} {k:>8} {n:>6} {rows:>6} {gops:>10.1} {share:>8.0} {gbs:>8.1} {part:>9.0} {us:>8.1}"
                );
            }
        }
    }
}

/// All rows share one prefix of `tokens`.
fn attention(isa: Isa, pool: &Pool, shape: AttnShape, rows: usize, tokens: usize, peak: f64, memory: f64) {
    let AttnShape { heads, kv_heads, head_dim } = shape;
    let chunks = tokens / CHUNK;
    let kind = LayerKind::Gqa { heads: kv_heads, dk: head_dim, dv: head_dim };
    let layers = ((96 << 20) / (chunks * CHUNK * kv_heads * head_dim * 4)).clamp(1, 16);
    let kinds = vec![kind; layers];
    let mut kv = KvPool::new(ChunkLayout::new(Codec::Kv16, &kinds), chunks as u32).expect("memory");
    let mut kv8 = KvPool::with_codec(ChunkLayout::new(Codec::Kv8, &kinds), chunks as u32, 1).expect("memory");
    let width = kv_heads * head_dim;
    let numbers: Vec<f32> = (0..width * CHUNK).map(|i| (i * 7 % 101) as f32 / 50.0 - 1.0).collect();
    for layer in 0..layers {
        for chunk in 0..chunks as u32 {
            let slots: Vec<_> = (0..CHUNK as u8).map(|slot| Some(Slot { chunk: ChunkId(chunk), slot })).collect();
            kv.write(isa, pool, layer, &slots, &numbers, &numbers);
        }
        let from = ChunkId(chunks as u32);
        let slots: Vec<_> = (0..CHUNK as u8).map(|slot| Some(Slot { chunk: from, slot })).collect();
        kv8.write(isa, pool, layer, &slots, &numbers, &numbers);
        let seals: Vec<Seal> = (0..chunks as u32).map(|to| Seal { from, to: ChunkId(to) }).collect();
        kv8.seal(pool, layer, &seals);
    }
    let per_segment = (SEGMENT / CHUNK) as u32;
    let runs = (0..chunks as u32).step_by(per_segment as usize).map(|place| Run {
        rows: 0..rows as u32,
        place,
        chunks: place..(place + per_segment).min(chunks as u32),
        shift: 0,
        masks: None,
    });
    let runs = RunList { runs: runs.collect(), chunks: (0..chunks as u32).map(ChunkId).collect(), masks: Vec::new() };
    let q = values(rows * heads * head_dim);
    let mut out = vec![0.0; q.len()];
    let mut layer_time = |kv: &KvPool, runs: &RunList| {
        let mut plan = AttnPlan::new(shape);
        plan.build(runs, rows, pool.threads());
        let queries = Queries { data: &q, shifts: &[0] };
        time(pool, || {
            (0..layers).for_each(|layer| attend(isa, pool, &mut plan, runs, kv, layer, &queries, &mut out));
        }) / layers as f64
    };
    let (shared, unshared) =
        (layer_time(&kv, &runs), if rows <= 64 { layer_time(&kv, &runs.unshared(rows as u32)) } else { f64::NAN });
    let encoded = layer_time(&kv8, &runs);
    let gflops = 4.0 * (rows * heads * head_dim * tokens) as f64 / shared / 1e9;
    let gbs = (kv_bytes(&runs, kv.layout(), None, 0).kv_bytes_read as usize / layers) as f64 / shared / 1e9;
    println!(
        "    {heads:>5}/{kv_heads:<2} {head_dim:>5} {rows:>5} {tokens:>7} {:>8.0} {gflops:>8.1} {:>7.0} {gbs:>8.1} {:>9.0} {:>16.2} {:>12.2}",
        shared * 1e6,
        gflops / peak * 100.0,
        gbs / memory * 100.0,
        unshared / shared,
        shared / encoded,
    );
}
