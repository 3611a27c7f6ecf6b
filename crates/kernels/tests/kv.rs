//! The KV pool against a plain array of tokens.

mod common;

use common::Rng;
use kvist_base::{CHUNK, ChunkId, ChunkLayout, Codec, LayerKind, Slot};
use kvist_kernels::{Isa, KvPool, Pool, bf16};

/// A token's K or V as it is stored: codes and their scale.
fn stored(x: &[f32], of_k: bool) -> (Vec<f32>, f32) {
    let largest = x.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
    let length = x.iter().map(|x| (x / largest).powi(2)).sum::<f32>().sqrt();
    let most = ((65_535.0 * (1.0 - 1e-5) - (x.len() as f32).sqrt()) / length).min(32_767.0).floor();
    let most = if of_k { most } else { 4095.0 };
    // The least bf16 number of which so many reach the largest one.
    let scale = (0..0x7f80).map(bf16::to_f32).find(|scale| scale * most >= largest).unwrap();
    (x.iter().map(|x| (x / scale).round_ties_even()).collect(), scale)
}

fn pool(chunks: u32) -> KvPool {
    let kinds = [LayerKind::Gqa { heads: 2, dk: 18, dv: 18 }, LayerKind::Gqa { heads: 3, dk: 64, dv: 32 }];
    KvPool::new(ChunkLayout::new(Codec::Kv16, &kinds), chunks).unwrap()
}

/// K and V of a slot, all layers and heads.
fn token(kv: &KvPool, slot: Slot) -> Vec<f32> {
    let mut out = Vec::new();
    for (layer, desc) in kv.layout().layers.iter().enumerate() {
        let LayerKind::Gqa { heads, dk, dv } = desc.kind;
        for head in 0..heads {
            let (mut k, mut v) = (vec![0.0; dk], vec![0.0; dv]);
            kv.read(layer, head, slot, &mut k, &mut v);
            out.extend(k.into_iter().chain(v));
        }
    }
    out
}

#[test]
fn random_operations() {
    const CHUNKS: u32 = 5;
    let mut rng = Rng(1);
    let (threads, mut kv, paths) = (Pool::new(3), pool(CHUNKS), Isa::available());
    let width = 2 * (18 + 18) + 3 * (64 + 32);
    let mut model = vec![vec![vec![0.0; width]; CHUNK]; CHUNKS as usize];
    for _ in 0..400 {
        let chunk = ChunkId(rng.below(CHUNKS as usize) as u32);
        match rng.below(8) {
            0 => {
                kv.zero(chunk);
                model[chunk.0 as usize].fill(vec![0.0; width]);
            }
            1 => {
                let slot = Slot { chunk, slot: rng.below(CHUNK) as u8 };
                kv.zero_slot(slot);
                model[chunk.0 as usize][slot.slot as usize].fill(0.0);
            }
            2 => {
                let to = ChunkId((chunk.0 + 1 + rng.below(CHUNKS as usize - 1) as u32) % CHUNKS);
                let n = rng.below(CHUNK + 1);
                kv.copy_slots(chunk, to, n);
                let copied = model[chunk.0 as usize][..n].to_vec();
                model[to.0 as usize][..n].clone_from_slice(&copied);
            }
            _ => {
                let rows = 1 + rng.below(40);
                let slots: Vec<Option<Slot>> = (0..rows)
                    .map(|_| {
                        let chunk = ChunkId(rng.below(CHUNKS as usize) as u32);
                        (rng.below(4) > 0).then(|| Slot { chunk, slot: rng.below(CHUNK) as u8 })
                    })
                    .collect();
                let mut at = 0;
                for (layer, desc) in kv.layout().clone().layers.iter().enumerate() {
                    let LayerKind::Gqa { heads, dk, dv } = desc.kind;
                    let (k, v) = (rng.normals(rows * heads * dk), rng.normals(rows * heads * dv));
                    let isa = paths[rng.below(paths.len())];
                    kv.write(isa, &threads, layer, &slots, &k, &v);
                    for (row, slot) in slots.iter().enumerate() {
                        let Some(slot) = slot else { continue };
                        let token = &mut model[slot.chunk.0 as usize][slot.slot as usize];
                        for head in 0..heads {
                            let k = &k[(row * heads + head) * dk..][..dk];
                            let v = &v[(row * heads + head) * dv..][..dv];
                            let values = [stored(k, true), stored(v, false)]
                                .into_iter()
                                .flat_map(|(codes, scale)| codes.into_iter().map(move |code| code * scale));
                            token[at + head * (dk + dv)..].iter_mut().zip(values).for_each(|(to, x)| *to = x);
                        }
                    }
                    at += heads * (dk + dv);
                }
            }
        }
        for (chunk, tokens) in model.iter().enumerate() {
            let slot = rng.below(CHUNK);
            assert_eq!(token(&kv, Slot { chunk: ChunkId(chunk as u32), slot: slot as u8 }), tokens[slot]);
        }
    }
    for (chunk, tokens) in model.iter().enumerate() {
        for (slot, want) in tokens.iter().enumerate() {
            assert_eq!(&token(&kv, Slot { chunk: ChunkId(chunk as u32), slot: slot as u8 }), want);
        }
    }
}

#[test]
fn stored_values_are_finite() {
    let (threads, mut kv) = (Pool::new(1), pool(1));
    let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -f32::MAX];
    let k: Vec<f32> = (0..2 * 18).map(|i| bad[i % 5]).collect();
    kv.write(Isa::detect(), &threads, 0, &[Some(Slot { chunk: ChunkId(0), slot: 63 })], &k, &k);
    let got = token(&kv, Slot { chunk: ChunkId(0), slot: 63 });
    for got in [&got[..18], &got[18..36]] {
        let largest = got[1];
        assert!(largest.is_finite() && largest > 2.99e38);
        let want = [0.0, largest, -largest, largest, -largest];
        assert!((0..18).all(|i| got[i] == want[i % 5]));
    }
}

#[test]
fn a_layout_as_the_design_says() {
    let (threads, mut kv) = (Pool::new(1), pool(1));
    let k: Vec<f32> = (0..2 * 18).map(|i| i as f32).collect();
    let v: Vec<f32> = (0..2 * 18).map(|i| 100.0 + i as f32).collect();
    kv.write(Isa::detect(), &threads, 0, &[Some(Slot { chunk: ChunkId(0), slot: 5 })], &k, &v);
    let (keys, values) = kv.chunk(ChunkId(0)).tile(0, 1);
    // Head 1, pair 2: elements 2 and 2 + 9. Token 5 is the second of value pair 2. Scales come last.
    let (k_codes, k_scale) = stored(&k[18..], true);
    let (v_codes, v_scale) = stored(&v[18..], false);
    assert_eq!(keys[(2 * CHUNK + 5) * 2..][..2], [k_codes[2] as u16, k_codes[11] as u16]);
    assert_eq!(values[(2 * 18 + 7) * 2..][..2], [0, v_codes[7] as u16]);
    assert_eq!((keys.len(), values.len()), (19 * CHUNK, 19 * CHUNK));
    assert_eq!((keys[18 * CHUNK + 5], values[18 * CHUNK + 5]), (bf16::from_f32(k_scale), bf16::from_f32(v_scale)));
    assert_eq!(kv.chunk(ChunkId(0)).elements().len() * 2, kv.layout().bytes);
}

#[test]
fn a_pool_beyond_memory_is_an_error() {
    let layout = ChunkLayout::new(Codec::Kv16, &[LayerKind::Gqa { heads: 1 << 20, dk: 256, dv: 256 }; 64]);
    let error = KvPool::new(layout.clone(), u32::MAX).err().expect("that much memory does not exist");
    assert_eq!(error.bytes, layout.bytes as u128 * u32::MAX as u128);
    assert!(error.to_string().contains(&error.bytes.to_string()));
}

/// A layout's fields are public. One whose offsets did not match its sizes made the pool hand out tiles behind the end
/// of its memory, from safe code.
#[test]
fn a_layout_that_does_not_add_up_is_refused() {
    let sound = ChunkLayout::new(Codec::Kv16, &[LayerKind::Gqa { heads: 2, dk: 16, dv: 16 }; 2]);
    let broken: [fn(&mut ChunkLayout); 4] = [
        |l| l.bytes -= 64,
        |l| l.layers[1].offset += 128,
        |l| l.layers[0].bytes *= 2,
        |l| l.layers[1].kind = LayerKind::Gqa { heads: 3, dk: 16, dv: 16 },
    ];
    for (i, make) in broken.iter().enumerate() {
        let mut layout = sound.clone();
        make(&mut layout);
        assert!(std::panic::catch_unwind(|| KvPool::new(layout, 4).map(drop)).is_err(), "layout {i} was taken");
    }
    assert!(KvPool::new(sound, 4).is_ok());
}
