//! Calls one kernel on one thread a few times, for tools that follow its instructions, and prints the shortest time:
//! `once ISA attention|kv8 HEADS KV-HEADS HEAD-SIZE ROWS TOKENS [OWN]`, all rows on the same tokens and then on so many of
//! their own (from memory: layers take turns), or `once ISA bf16|Q8_0|Q4_0|.. INPUTS OUTPUTS ROWS` (from memory as well: copies
//! of the weights do).

use std::time::Instant;

use kvist_base::{CHUNK, ChunkId, ChunkLayout, Codec, LayerKind, Run, RunList, SEGMENT, Seal, Slot};
use kvist_kernels::{
    AttnPlan, AttnShape, Isa, KvPool, PackedBf16, PackedQuant, Pool, QuantKind, QuantRows, Queries, attend, matmul,
    matmul_quant,
};

/// Values that repeat, but are neither equal nor special.
fn values(n: usize) -> Vec<u16> {
    (0..n).map(|i| 0x3d00 | (i * 37 % 251) as u16 | ((i * 11 % 2) << 15) as u16).collect()
}

fn repeat(mut call: impl FnMut()) {
    let mut seconds = f64::INFINITY;
    for _ in 0..100 {
        let start = Instant::now();
        call();
        seconds = seconds.min(start.elapsed().as_secs_f64());
    }
    println!("{:.1} us", seconds * 1e6);
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let sizes: Vec<usize> = args.iter().skip(2).map(|size| size.parse().expect("a number")).collect();
    let isa = args.first().expect("an instruction set").parse().expect("an instruction set");
    match (args[1].as_str(), sizes.as_slice()) {
        (kind @ ("attention" | "kv8"), &[heads, kv_heads, head_dim, rows, tokens, ref own @ ..]) => {
            let shape = AttnShape { heads, kv_heads, head_dim };
            attention(isa, kind == "kv8", shape, rows, tokens, own.first().map_or(0, |own| *own));
        }
        (kind, &[k, n, rows]) => products(isa, kind, k, n, rows),
        _ => panic!("five or six sizes for attention, three for products"),
    }
}

/// Bytes of KV, or of weights, that no cache holds.
const MEMORY: usize = 256 << 20;

fn attention(isa: Isa, coded: bool, shape: AttnShape, rows: usize, tokens: usize, own: usize) {
    let pool = Pool::new(1);
    let (common, own) = ((tokens / CHUNK) as u32, (own / CHUNK) as u32);
    let chunks = common + own * rows as u32;
    let kind = LayerKind::Gqa { heads: shape.kv_heads, dk: shape.head_dim, dv: shape.head_dim };
    let codec = if coded { Codec::Kv8 } else { Codec::Kv16 };
    let bytes = ChunkLayout::new(codec, &[kind]).bytes * chunks as usize;
    let layers = if own > 0 { MEMORY.div_ceil(bytes) } else { 1 };
    let layout = ChunkLayout::new(codec, &vec![kind; layers]);
    let mut kv =
        if coded { KvPool::with_codec(layout, chunks, 1) } else { KvPool::new(layout, chunks) }.expect("memory");
    let width = shape.kv_heads * shape.head_dim;
    let numbers: Vec<f32> = (0..width * CHUNK).map(|i| (i * 7 % 101) as f32 / 50.0 - 1.0).collect();
    for (layer, chunk) in (0..layers).flat_map(|layer| (0..chunks).map(move |chunk| (layer, chunk))) {
        let written = ChunkId(if coded { chunks } else { chunk });
        let slots: Vec<_> = (0..CHUNK as u8).map(|slot| Some(Slot { chunk: written, slot })).collect();
        kv.write(isa, &pool, layer, &slots, &numbers, &numbers);
        if coded {
            kv.seal(&pool, layer, &[Seal { from: written, to: ChunkId(chunk) }]);
        }
    }
    let mut runs = RunList { chunks: (0..chunks).map(ChunkId).collect(), ..RunList::default() };
    let most = (SEGMENT / CHUNK) as u32;
    // Chunks from `first` on, at these places of the rows' paths.
    let mut push = |rows: std::ops::Range<u32>, first: u32, places: std::ops::Range<u32>| {
        let mut place = places.start;
        while place < places.end {
            let end = places.end.min((place / most + 1) * most);
            let at = first + place - places.start;
            runs.runs.push(Run { rows: rows.clone(), place, chunks: at..at + end - place, shift: 0, masks: None });
            place = end;
        }
    };
    push(0..rows as u32, 0, 0..common);
    (0..rows as u32).for_each(|row| push(row..row + 1, common + own * row, common..common + own));
    let q = values(rows * shape.heads * shape.head_dim);
    let mut out = vec![0.0; q.len()];
    let mut plan = AttnPlan::new(shape);
    plan.build(&runs, rows, 1);
    let q = Queries { data: &q, shifts: &[0] };
    let mut layer = 0;
    repeat(|| {
        attend(isa, &pool, &mut plan, &runs, &kv, layer, &q, &mut out);
        layer = (layer + 1) % layers;
    });
}

fn products(isa: Isa, kind: &str, k: usize, n: usize, rows: usize) {
    let pool = Pool::new(1);
    let (x, mut y) = (values(rows * k), vec![0.0; rows * n]);
    let Some(kind) = QuantKind::ALL.into_iter().find(|of| of.to_string() == kind) else {
        assert_eq!(kind, "bf16", "a format");
        let w = values(k);
        let pack = || PackedBf16::pack(n, k, &pool, &|_, row| row.copy_from_slice(&w)).expect("memory");
        let copies = MEMORY.div_ceil(2 * n * k);
        let (w, mut copy): (Vec<_>, _) = ((0..copies).map(|_| pack()).collect(), 0);
        return repeat(|| {
            matmul(isa, &pool, &x, rows, &w[copy], &mut y, false);
            copy = (copy + 1) % copies;
        });
    };
    // Codes of every value under small scales.
    let block: Vec<u8> = (0..kind.block_bytes()).map(|i| if i % 2 == 0 { (i * 37) as u8 } else { 0x11 }).collect();
    let fill = |_: usize, row: &mut [u8]| row.chunks_exact_mut(block.len()).for_each(|to| to.copy_from_slice(&block));
    let pack = || PackedQuant::pack(kind, n, k, &pool, &fill).expect("memory");
    let mut w = vec![pack()];
    let copies = MEMORY.div_ceil(w[0].bytes());
    w.resize_with(copies, pack);
    let mut q = QuantRows::new();
    q.set(isa, &pool, &x, k);
    let mut copy = 0;
    repeat(|| {
        matmul_quant(isa, &pool, &q, &w[copy], &mut y, n, false);
        copy = (copy + 1) % copies;
    });
}
