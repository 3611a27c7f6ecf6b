//! Calls one kernel on one thread a few times, for tools that follow its instructions, and prints the shortest time:
//! `once ISA attention|kv8 HEADS KV-HEADS HEAD-SIZE ROWS TOKENS`, all rows on the same tokens, or
//! `once ISA bf16|Q8_0|Q4_0|.. INPUTS OUTPUTS ROWS`.

use std::time::Instant;

use kvist_base::{CHUNK, ChunkId, ChunkLayout, Codec, Dtype, LayerKind, Run, RunList, SEGMENT, Seal, Slot};
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
        (kind @ ("attention" | "kv8"), &[heads, kv_heads, head_dim, rows, tokens]) => {
            attention(isa, kind == "kv8", AttnShape { heads, kv_heads, head_dim }, rows, tokens);
        }
        (kind, &[k, n, rows]) => products(isa, kind, k, n, rows),
        _ => panic!("five sizes for attention, three for products"),
    }
}

fn attention(isa: Isa, coded: bool, shape: AttnShape, rows: usize, tokens: usize) {
    let pool = Pool::new(1);
    let chunks = (tokens / CHUNK) as u32;
    let kinds = [LayerKind::Gqa { heads: shape.kv_heads, dk: shape.head_dim, dv: shape.head_dim }];
    let mut kv = match coded {
        false => KvPool::new(ChunkLayout::new(Dtype::Bf16, &kinds), chunks),
        true => KvPool::with_codec(ChunkLayout::new(Codec::Kv8, &kinds), chunks, 1),
    }
    .expect("memory");
    let width = shape.kv_heads * shape.head_dim;
    let numbers: Vec<f32> = (0..width * CHUNK).map(|i| (i * 7 % 101) as f32 / 50.0 - 1.0).collect();
    for chunk in 0..chunks {
        let written = ChunkId(if coded { chunks } else { chunk });
        let slots: Vec<_> = (0..CHUNK as u8).map(|slot| Some(Slot { chunk: written, slot })).collect();
        kv.write(&pool, 0, &slots, &numbers, &numbers);
        if coded {
            kv.seal(&pool, 0, &[Seal { from: written, to: ChunkId(chunk) }]);
        }
    }
    let most = (SEGMENT / CHUNK) as u32;
    let run = |place: u32| {
        let chunks = place..(place + most).min(chunks);
        Run { rows: 0..rows as u32, place, chunks, shift: 0, masks: None }
    };
    let runs = (0..chunks).step_by(most as usize).map(run).collect();
    let runs = RunList { runs, chunks: (0..chunks).map(ChunkId).collect(), masks: Vec::new() };
    let q = values(rows * shape.heads * shape.head_dim);
    let mut out = vec![0.0; q.len()];
    let mut plan = AttnPlan::new(shape);
    plan.build(&runs, rows, 1);
    let q = Queries { data: &q, shifts: &[0] };
    repeat(|| attend(isa, &pool, &mut plan, &runs, &kv, 0, &q, &mut out));
}

fn products(isa: Isa, kind: &str, k: usize, n: usize, rows: usize) {
    let pool = Pool::new(1);
    let (x, mut y) = (values(rows * k), vec![0.0; rows * n]);
    let Some(kind) = QuantKind::ALL.into_iter().find(|of| of.to_string() == kind) else {
        assert_eq!(kind, "bf16", "a format");
        let w = values(k);
        let w = PackedBf16::pack(n, k, &pool, &|_, row| row.copy_from_slice(&w)).expect("memory");
        return repeat(|| matmul(isa, &pool, &x, rows, &w, &mut y, false));
    };
    // Codes of every value under small scales.
    let block: Vec<u8> = (0..kind.block_bytes()).map(|i| if i % 2 == 0 { (i * 37) as u8 } else { 0x11 }).collect();
    let fill = |_: usize, row: &mut [u8]| row.chunks_exact_mut(block.len()).for_each(|to| to.copy_from_slice(&block));
    let w = PackedQuant::pack(kind, n, k, &pool, &fill).expect("memory");
    let mut q = QuantRows::new();
    q.set_bf16(isa, &pool, &x, k);
    repeat(|| matmul_quant(isa, &pool, &q, &w, &mut y, n, false));
}
