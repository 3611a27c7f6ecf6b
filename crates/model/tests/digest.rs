//! The bits of logits and KV of the embedded model and of a quantised file, per ISA path. They change only together with the
//! numerics version: stored KV depends on them.

mod common;

use common::{embedded, load};
use kvist_base::{CHUNK, ChunkId, Executor};
use kvist_kernels::Isa;
use kvist_model::testing::{gguf, logits};
use kvist_model::{Checkpoint, LoadOptions, Model, ModelSource, NUMERICS_VERSION, PoolSize, WeightForm};
use kvist_weights::Gguf;

/// (numerics version, ISA path, digest). Products of bf16 weights have bits of their own on avx512.
const DIGESTS: [(u32, Isa, u64); 3] = [
    (6, Isa::Avx512, 0x6ca8_9ad6_1c06_7728),
    (6, Isa::Avx2, 0x9694_4367_48b8_4398),
    (6, Isa::Portable, 0xb445_05aa_3c15_970c),
];

/// The same with sealed chunks in kv8.
const KV8_DIGESTS: [(u32, Isa, u64); 3] = [
    (6, Isa::Avx512, 0xaf94_6320_506c_f5f8),
    (6, Isa::Avx2, 0x2c1f_81f2_053e_47a5),
    (6, Isa::Portable, 0x37ac_aa1c_113b_ad1c),
];

/// The same with weights in four bits, the outer ones in eight. Integer products are the same on every path, what they are added
/// up in is not where there is no fused multiply-add.
const QUANTISED_DIGESTS: [(u32, Isa, u64); 3] = [
    (6, Isa::Avx512, 0x1db5_dfd4_a937_9a5d),
    (6, Isa::Avx2, 0x1419_e59f_34c1_6d7b),
    (6, Isa::Portable, 0x8aec_70b9_2474_c936),
];

/// A file with matrices of K-quants.
const FILE_DIGESTS: [(u32, Isa, u64); 3] = [
    (6, Isa::Avx512, 0xe833_5df6_becf_b172),
    (6, Isa::Avx2, 0xe833_5df6_becf_b172),
    (6, Isa::Portable, 0xd220_4363_815b_8e53),
];

#[test]
fn bits_of_the_embedded_model() {
    check(&load(&ModelSource::Dir(embedded())), PoolSize::kv16(10), &DIGESTS);
}

#[test]
fn bits_of_the_embedded_model_in_kv8() {
    check(&load(&ModelSource::Dir(embedded())), PoolSize::kv8(10, 10), &KV8_DIGESTS);
}

#[test]
fn bits_of_the_embedded_model_in_four_bits() {
    let options = LoadOptions { weights: WeightForm::Q4, ..LoadOptions::default() };
    let model = Model::load(&ModelSource::Dir(embedded()), &options).unwrap();
    check(&model, PoolSize::kv16(10), &QUANTISED_DIGESTS);
}

#[test]
fn bits_of_a_file_of_k_quants() {
    let checkpoint = Checkpoint::of_gguf(Gguf::from_bytes(gguf::model(gguf::medium)).unwrap()).unwrap();
    let model = Model::of(&checkpoint, &LoadOptions::default()).unwrap();
    check(&model, PoolSize::kv16(10), &FILE_DIGESTS);
}

fn check(model: &Model, size: PoolSize, digests: &[(u32, Isa, u64)]) {
    let vocab = model.config().vocab as u32;
    let ids: Vec<u32> = (0..600).map(|i| i * i % 4093 % vocab).collect();
    let mut wrong = Vec::new();
    for isa in Isa::available() {
        let mut executor = model.clone().with_pool(size, None, isa, 2).unwrap();
        let mut bytes: Vec<u8> = logits(&mut executor, &ids, &[], 590).into_iter().flat_map(f32::to_le_bytes).collect();
        (0..ids.len().div_ceil(CHUNK) as u32).for_each(|chunk| executor.read_chunk(ChunkId(chunk), &mut bytes));
        let digest = fnv(&bytes);
        println!("(NUMERICS_VERSION, Isa::{isa:?}, {digest:#018x})");
        match digests.iter().find(|(version, of, _)| (*version, *of) == (NUMERICS_VERSION, isa.bits())) {
            Some((.., expected)) if *expected == digest => {}
            // Neither another one nor none: a version that is raised has digests of its own.
            _ => wrong.push(isa),
        }
    }
    assert!(wrong.is_empty(), "other bits on {wrong:?}: raise NUMERICS_VERSION and record the digests printed above");
}

/// FNV-1a.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ *b as u64).wrapping_mul(0x100_0000_01b3))
}
