//! What this machine can do at most, measured with the instructions of the kernels.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use crate::buffer::Buffer;
use crate::quant::dots::Dots;
use crate::simd::{PANEL, Rows, Simd, isa_entry, row_block};
use crate::{Isa, Pool, bf16};

/// Arithmetic limit of one ISA path.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// GFLOP/s of all threads together, in bf16 dot products out of registers and L1.
    pub gflops: f64,
    /// The clock right behind as many multiply-adds, in GHz: CPUs lower it for wide vectors.
    pub clock_ghz: f64,
    /// Vector multiply-adds that one thread finished per cycle.
    pub per_cycle: f64,
    /// `per_cycle` over what one thread alone reached in its best moment, rounded to what hardware offers (1/4, 1/2, 1
    /// or 2). Below 0.9 the machine was busy, and figures from this run mean nothing.
    pub share: f64,
}

/// Bytes for each thread: more than its caches hold.
const STREAM: usize = 64 << 20;
/// And at least so many: few threads may have as large a shared cache.
const LEAST: usize = 256 << 20;

/// Bytes of memory that [`bandwidth`] takes and reads.
pub fn bytes(threads: usize) -> usize {
    LEAST.max(STREAM * threads)
}

/// Highest read bandwidth of `rounds` passes over memory by all threads of the pool, in GB/s.
pub fn bandwidth(pool: &Pool, rounds: usize) -> f64 {
    let memory = Memory::new(pool.threads());
    memory.bytes() as f64 / best(rounds, || memory.read(pool)) / 1e9
}

/// Memory to be read, [`bytes`] of it, of the kind that weights and KV are in: on huge pages where the system gives them,
/// which is a quarter faster than on small ones.
pub struct Memory(Buffer);

impl Memory {
    /// # Panics
    /// When there is not so much.
    pub fn new(threads: usize) -> Memory {
        let mut data = Buffer::zeroed(bytes(threads) / 2).expect("memory for the probe");
        data.fill(bf16::from_f32(1.0));
        Memory(data)
    }

    fn tiles(&self) -> usize {
        self.0.len() / (STREAMS * PIECE)
    }

    /// How many are read.
    pub fn bytes(&self) -> usize {
        self.tiles() * STREAMS * PIECE * 2
    }

    /// Reads all of it once, with all threads of the pool.
    pub fn read(&self, pool: &Pool) {
        let isa = Isa::detect();
        pool.run(self.tiles(), &|t| {
            let tile = &self.0[t * STREAMS * PIECE..(t + 1) * STREAMS * PIECE];
            let mut sum = 0.0;
            // SAFETY: `isa` is available.
            unsafe { read(isa, tile, &mut sum) };
            black_box(sum);
        });
    }
}

/// Places that a tile of [`Memory`] is read from in turns, a line of each, as products of one row are.
const STREAMS: usize = 4;

/// Elements that are read from each.
const PIECE: usize = 1 << 14;

isa_entry!(fn read(tile: &[u16], sum: &mut f32) = read_lines);

/// # Safety
/// The ISA of `S` is available; the tile has [`STREAMS`] pieces.
#[inline(always)]
unsafe fn read_lines<S: Simd>(tile: &[u16], sum: &mut f32) {
    assert_eq!(tile.len(), STREAMS * PIECE);
    let words = tile.as_ptr().cast::<f32>();
    // SAFETY: any bits are an f32, and pieces are whole lines of as many words as a panel has outputs.
    unsafe {
        let mut sums = [[S::splat(0.0); PANEL / 4]; STREAMS];
        for line in (0..PIECE / 2).step_by(PANEL) {
            for (stream, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().take(PANEL / S::LANES).enumerate() {
                    *sum = S::add(*sum, S::load(words.add(stream * PIECE / 2 + line + v * S::LANES)));
                }
            }
        }
        for x in sums.into_iter().flatten() {
            *sum += S::sum(x);
        }
    }
}

/// Highest rate of multiply-adds of `rounds` short runs on all threads of the pool, with the clock check.
///
/// # Panics
/// When the machine cannot run `isa`.
pub fn peak(isa: Isa, pool: &Pool, rounds: usize) -> Peak {
    isa.require();
    let clock_ghz = clock(isa, rounds);
    let highest = |(rates, flops): (Vec<f64>, f64)| (rates.into_iter().fold(0.0, f64::max), flops);
    let (alone, _) = highest(multiply_adds(isa, &Pool::new(1), rounds.max(10)));
    let (rate, flops) = highest(multiply_adds(isa, pool, rounds));
    let cycles = clock_ghz * 1e9;
    let offered = [0.25, 0.5, 1.0].into_iter().find(|o| alone / cycles < o * 1.05).unwrap_or(2.0);
    let per_cycle = rate / pool.threads() as f64 / cycles;
    Peak { gflops: rate * flops / 1e9, clock_ghz, per_cycle, share: per_cycle / offered }
}

/// GFLOP/s as in [`Peak`] of each of `rounds` short runs.
///
/// # Panics
/// When the machine cannot run `isa`.
pub fn rates(isa: Isa, pool: &Pool, rounds: usize) -> Vec<f64> {
    isa.require();
    let (rates, flops) = multiply_adds(isa, pool, rounds);
    rates.into_iter().map(|rate| rate * flops / 1e9).collect()
}

/// GOP/s of all threads together in dot products of the codes of quantised weights with those of activations, out of
/// registers and L1: of codes of at most 6 bits, and of 8 bits with `wide`.
///
/// # Panics
/// When the machine cannot run `isa`.
pub fn integer_peak(isa: Isa, pool: &Pool, wide: bool, rounds: usize) -> f64 {
    isa.require();
    // SAFETY: `isa` is available.
    operations(pool, rounds, |steps, count| unsafe { integer_steps(isa, steps, wide, count) })
}

/// Vector multiply-adds per second of all threads together in each of `rounds` runs, and floating point operations in one
/// of them.
fn multiply_adds(isa: Isa, pool: &Pool, rounds: usize) -> (Vec<f64>, f64) {
    const STEPS: usize = 50_000;
    let (ops, flops) = (AtomicU64::new(0), AtomicU64::new(0));
    let rate = |_| {
        ops.store(0, Relaxed);
        let seconds = time(|| {
            pool.run(pool.threads(), &|_| {
                let mut count = (0, 0);
                // SAFETY: `isa` is available.
                unsafe { steps(isa, STEPS, &mut count) };
                ops.fetch_add(count.0, Relaxed);
                flops.store(count.1, Relaxed);
            });
        });
        ops.load(Relaxed) as f64 / seconds
    };
    let rates = (0..rounds.max(1)).map(rate).collect();
    (rates, flops.load(Relaxed) as f64)
}

/// Clock of this core in GHz, the median of `rounds`: a chain of xor and rotate takes two cycles a link on every machine we
/// know. It takes less time than a CPU takes to raise its clock again.
fn clock(isa: Isa, rounds: usize) -> f64 {
    const LINKS: u64 = 50_000;
    const STEPS: usize = 50_000;
    let chain = |_| {
        // SAFETY: `isa` is available, says `peak`.
        unsafe { steps(isa, STEPS, &mut (0, 0)) };
        let seconds = best(1, || {
            let (mut x, y) = (black_box(1_u64), black_box(0x9e37_79b9_7f4a_7c15));
            for _ in 0..LINKS {
                x = (x ^ y).rotate_left(7);
            }
            black_box(x);
        });
        (2 * LINKS) as f64 / seconds / 1e9
    };
    let mut all: Vec<f64> = (0..rounds.max(5)).map(chain).collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// Shortest of `rounds` runs, in seconds.
fn best(rounds: usize, mut run: impl FnMut()) -> f64 {
    (0..rounds.max(1)).map(|_| time(&mut run)).fold(f64::INFINITY, f64::min)
}

/// Seconds of a run.
fn time(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

isa_entry!(fn steps(n: usize, count: &mut (u64, u64)) = steps_of, with avx512vnni);

/// Runs `n` steps of the largest block on the same operands; reports vector multiply-adds and floating point
/// operations in each.
///
/// # Safety
/// The ISA of `S` is available.
#[inline(always)]
unsafe fn steps_of<S: Simd>(n: usize, count: &mut (u64, u64)) {
    let w = [0x3f80_3f80_u32; 64];
    let x = [0x3f80_3f80_u32; 16];
    // SAFETY: the arrays hold a step of the largest block.
    unsafe { row_block!(S, S::ROWS, steps_in_registers(n, black_box(&w), black_box(&x), count)) };
}

/// # Safety
/// As [`steps_of`].
#[inline(always)]
unsafe fn steps_in_registers<S: Simd, const R: usize, const V: usize>(
    n: usize,
    w: &[u32; 64],
    x: &[u32; 16],
    count: &mut (u64, u64),
) {
    // SAFETY: V vectors lie in `w`, R prepared pairs in `x`.
    unsafe {
        let mut acc = [[S::splat(0.0); V]; R];
        let (pairs, x0) = (black_box([S::load(w.as_ptr().cast()); V]), black_box(S::load(x.as_ptr().cast())));
        let rows = Rows::new(x.as_ptr(), S::PAIR);
        for _ in 0..n {
            if const { S::PAIR == 1 } {
                S::step(&mut acc, w.as_ptr(), PANEL, &rows, 0);
                continue;
            }
            // What a step does besides is not the limit.
            for row in &mut acc {
                for (sum, w) in row.iter_mut().zip(pairs) {
                    *sum = S::fma(w, x0, S::fma(w, x0, *sum));
                }
            }
        }
        for row in acc {
            for sum in row {
                black_box(S::lanes(sum));
            }
        }
    }
    // A fused step multiplies both elements of a pair in one instruction.
    let (per_step, flops) = if S::PAIR == 1 { (1, 4 * S::LANES) } else { (2, 2 * S::LANES) };
    *count = ((n * R * V * per_step) as u64, flops as u64);
}

/// GOP/s of all threads together in products of pairs of 16 bits, as attention has them, out of registers and L1.
///
/// # Panics
/// When the machine cannot run `isa`.
pub fn short_peak(isa: Isa, pool: &Pool, rounds: usize) -> f64 {
    isa.require();
    // SAFETY: `isa` is available.
    operations(pool, rounds, |steps, count| unsafe { short_steps(isa, steps, count) })
}

/// Operations (1e9) per second of all threads together, in the best of `rounds` runs of so many steps.
fn operations(pool: &Pool, rounds: usize, steps: impl Fn(usize, &mut u64) + Sync) -> f64 {
    const STEPS: usize = 50_000;
    let ops = AtomicU64::new(0);
    let seconds = best(rounds, || {
        ops.store(0, Relaxed);
        pool.run(pool.threads(), &|_| {
            let mut count = 0;
            steps(STEPS, &mut count);
            ops.fetch_add(count, Relaxed);
        });
    });
    ops.into_inner() as f64 / seconds / 1e9
}

isa_entry!(fn short_steps(n: usize, count: &mut u64) = short_steps_of, with avx512vnni);

/// Runs `n` steps of a block on the same operands; reports the operations.
///
/// # Safety
/// The ISA of `S` is available.
#[inline(always)]
unsafe fn short_steps_of<S: Dots>(n: usize, count: &mut u64) {
    // SAFETY: passed on. The largest blocks of attention.
    *count = unsafe {
        match S::LANES {
            4 => short_block::<S, 2, 4>(n),
            8 => short_block::<S, 6, 2>(n),
            _ => short_block::<S, 6, 4>(n),
        }
    };
}

/// # Safety
/// As [`short_steps_of`].
#[inline(always)]
unsafe fn short_block<S: Dots, const R: usize, const V: usize>(n: usize) -> u64 {
    let (w, x) = black_box(([0x0102_0301_u32; 4 * PANEL], [0x0201_ff03_u32; R]));
    // SAFETY: V vectors are four panels at most.
    unsafe {
        let mut acc = [[S::four(&0); V]; R];
        for _ in 0..n {
            // Read again for every step, or else the products would be computed once.
            S::step_shorts::<1, R, V>(&mut acc, black_box(w.as_ptr()).cast(), x.as_ptr());
        }
        for sum in acc.into_iter().flatten() {
            black_box(S::lanes(S::float(sum)));
        }
    }
    (n * R * V * S::LANES * 2 * 2) as u64
}

isa_entry!(fn integer_steps(n: usize, wide: bool, count: &mut u64) = integer_steps_of, with vnni);

/// Runs `n` steps of a block on the same operands; reports the operations.
///
/// # Safety
/// The ISA of `S` is available.
#[inline(always)]
unsafe fn integer_steps_of<S: Dots>(n: usize, wide: bool, count: &mut u64) {
    // SAFETY: passed on.
    *count = unsafe {
        match (S::LANES, wide) {
            (4, false) => integer_block::<S, false, 1, 4>(n),
            (4, true) => integer_block::<S, true, 1, 4>(n),
            (8, false) if S::ISA == Isa::Avx2 => integer_block::<S, false, 4, 2>(n),
            (8, true) if S::ISA == Isa::Avx2 => integer_block::<S, true, 4, 2>(n),
            // As many sums as cover five cycles of latency at two products a cycle.
            (8, false) => integer_block::<S, false, 6, 2>(n),
            (8, true) => integer_block::<S, true, 6, 2>(n),
            (_, false) => integer_block::<S, false, 12, 1>(n),
            (_, true) => integer_block::<S, true, 12, 1>(n),
        }
    };
}

/// # Safety
/// As [`integer_steps_of`].
#[inline(always)]
unsafe fn integer_block<S: Dots, const WIDE: bool, const R: usize, const V: usize>(n: usize) -> u64 {
    let (w, x) = black_box(([0x0102_0301_u32; PANEL], [0x0201_ff03_u32; R]));
    // SAFETY: V vectors are a panel.
    unsafe {
        let mut acc = [[S::start::<WIDE>(&0, 0); V]; R];
        for _ in 0..n {
            // Read again for every step, or else the products would be computed once.
            let w = black_box(w.as_ptr());
            for (acc, x) in acc.iter_mut().zip(&x) {
                let x = S::four(x);
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = S::dot::<WIDE>(*acc, S::words(w.add(v * S::LANES)), x);
                }
            }
        }
        for sum in acc.into_iter().flatten() {
            black_box(S::lanes(S::total::<WIDE>(sum)));
        }
    }
    (n * R * PANEL * 4 * 2) as u64
}
