//! The bits of the embedded model's logits and KV, per ISA path. They change only together with the numerics version:
//! stored KV depends on them.

mod common;

use common::{embedded, load};
use kvist_base::{CHUNK, ChunkId, Executor};
use kvist_kernels::Isa;
use kvist_model::testing::logits;
use kvist_model::{ModelSource, NUMERICS_VERSION, PoolSize};

/// (numerics version, ISA path, digest). Products of bf16 weights have bits of their own on avx512.
const DIGESTS: [(u32, Isa, u64); 3] = [
    (5, Isa::Avx512, 0xf664_c69f_1323_5e27),
    (5, Isa::Avx2, 0x5b8c_a1c1_24d9_d992),
    (5, Isa::Portable, 0x6366_1844_6826_7add),
];

/// The same with sealed chunks in kv8.
const KV8_DIGESTS: [(u32, Isa, u64); 3] = [
    (5, Isa::Avx512, 0xe0bb_1270_48b7_b8c7),
    (5, Isa::Avx2, 0xba8e_d3ea_4b54_0187),
    (5, Isa::Portable, 0x4d2d_7d84_ac84_fe93),
];

#[test]
fn bits_of_the_embedded_model() {
    check(PoolSize::kv16(10), &DIGESTS);
}

#[test]
fn bits_of_the_embedded_model_in_kv8() {
    check(PoolSize::kv8(10, 10), &KV8_DIGESTS);
}

fn check(size: PoolSize, digests: &[(u32, Isa, u64)]) {
    let model = load(&ModelSource::Dir(embedded()));
    let ids: Vec<u32> = (0..600).map(|i| i * i % 4093).collect();
    let mut wrong = Vec::new();
    for isa in Isa::available() {
        let mut executor = model.clone().with_pool(size, None, isa, 2).unwrap();
        let mut bytes: Vec<u8> = logits(&mut executor, &ids, &[], 590).into_iter().flat_map(f32::to_le_bytes).collect();
        (0..ids.len().div_ceil(CHUNK) as u32).for_each(|chunk| executor.read_chunk(ChunkId(chunk), &mut bytes));
        let digest = fnv(&bytes);
        println!("(NUMERICS_VERSION, Isa::{isa:?}, {digest:#018x})");
        match digests.iter().find(|(version, of, _)| (*version, *of) == (NUMERICS_VERSION, isa.bits())) {
            Some((.., expected)) if *expected == digest => {}
            Some(_) => wrong.push(isa),
            None => println!("no digest is recorded for the {isa} path"),
        }
    }
    assert!(wrong.is_empty(), "other bits on {wrong:?}: raise NUMERICS_VERSION and record the digests printed above");
}

/// FNV-1a.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ *b as u64).wrapping_mul(0x100_0000_01b3))
}
