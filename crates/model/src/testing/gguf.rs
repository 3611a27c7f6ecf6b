//! Small GGUF models whose blocks are random, of every format.

use kvist_weights::testing::GgufBuilder;
use kvist_weights::{Format, MetaValue};

/// A small generator; the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// -1 to 1.
    fn unit(&mut self) -> f32 {
        (self.next() % 20_001) as f32 / 10_000.0 - 1.0
    }
}

fn f16(value: f32) -> [u8; 2] {
    // Positive, below 2^15; subnormal numbers have the exponent of the smallest normal ones.
    let exponent = (value.log2().floor() as i32).max(-14);
    let units = (value * 2f32.powi(10 - exponent)) as u16;
    let bits = if units < 1024 { units } else { ((exponent + 15) as u16) << 10 | (units - 1024) };
    bits.to_le_bytes()
}

/// Rows of blocks with random codes, centred on 0, with about this standard deviation.
fn blocks(format: Format, elements: usize, deviation: f32, random: &mut Random) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..elements / format.block() {
        let mut block: Vec<u8> = (0..format.block_bytes()).map(|_| random.next() as u8).collect();
        let wobble = 1.0 + 0.3 * random.unit();
        // Codes are uniform over their range; scales of K-types about 48 in size.
        let d = deviation * wobble
            / match format {
                Format::Q8_0 => 74.0,
                Format::Q4_0 => 4.6,
                Format::Q5_0 => 9.2,
                Format::Q4K => 48.0 * 4.6,
                Format::Q5K => 48.0 * 9.2,
                _ => 48.0 * 18.5,
            };
        match format {
            Format::Q4K | Format::Q5K => {
                block[..2].copy_from_slice(&f16(d));
                block[2..4].copy_from_slice(&f16(d * if format == Format::Q4K { 7.5 } else { 15.5 }));
                // Equal scales and mins of 32 to 63: the low six bits of two bytes, or the two nibbles of one with the
                // upper bits above.
                for g in 0..4 {
                    let [low, high] = [0; 2].map(|_| 32 + (random.next() % 32) as u8);
                    block[4 + g] = low | high >> 4 << 6;
                    block[8 + g] = low | high >> 4 << 6;
                    block[12 + g] = (high & 15) | high << 4;
                }
            }
            Format::Q6K => {
                block[208..].copy_from_slice(&f16(d));
                for scale in &mut block[192..208] {
                    *scale = (32 + *scale % 32) | if *scale & 64 == 0 { 0 } else { 0x80 };
                    if *scale & 0x80 != 0 {
                        *scale = (*scale & 0x7f).wrapping_neg();
                    }
                }
            }
            _ => block[..2].copy_from_slice(&f16(d)),
        }
        out.extend(block);
    }
    out
}

/// Formats as tools mix them: attention and MLP have parts of several kinds in one matrix.
pub fn mixed(name: &str) -> Format {
    match name {
        "attn_v" | "token_embd" => Format::Q6K,
        "attn_q" | "ffn_gate" => Format::F32,
        "ffn_down" => Format::Q8_0,
        "attn_output" => Format::Q5K,
        _ => Format::Q4K,
    }
}

/// As files called Q4_K_M are: every matrix of one kind, but some of more bits.
pub fn medium(name: &str) -> Format {
    if ["attn_v", "ffn_down", "token_embd"].contains(&name) { Format::Q6K } else { Format::Q4K }
}

/// Gates that are quantised, before floats.
pub fn float_down(name: &str) -> Format {
    if name == "ffn_down" { Format::F32 } else { Format::Q4K }
}

/// The file of a Llama with matrices of the format that `format` says for a name. Its logits have a standard deviation
/// of about 2.
pub fn model(format: impl Fn(&str) -> Format) -> Vec<u8> {
    const HIDDEN: usize = 256;
    const FFN: usize = 512;
    const VOCAB: usize = 384;
    let u32s = [
        ("context_length", 1024),
        ("embedding_length", HIDDEN),
        ("block_count", 2),
        ("feed_forward_length", FFN),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
    ];
    let mut file = GgufBuilder::default()
        .value("general.architecture", MetaValue::String("llama".into()))
        .value("llama.attention.layer_norm_rms_epsilon", MetaValue::F32(1e-5));
    for (key, value) in u32s {
        file = file.value(&format!("llama.{key}"), MetaValue::U32(value as u32));
    }
    let mut random = Random(format("token_embd") as u64 + 7);
    let mut matrices = vec![("token_embd".to_owned(), VOCAB, HIDDEN, 1.0)];
    for l in 0..2 {
        for (part, rows, columns, gain) in [
            ("attn_q", 256, HIDDEN, 1.0),
            ("attn_k", 128, HIDDEN, 1.0),
            ("attn_v", 128, HIDDEN, 1.0),
            ("attn_output", HIDDEN, 256, 2.0),
            ("ffn_gate", FFN, HIDDEN, 1.0),
            ("ffn_up", FFN, HIDDEN, 1.0),
            ("ffn_down", HIDDEN, FFN, 1.0),
        ] {
            matrices.push((format!("blk.{l}.{part}"), rows, columns, gain / (columns as f32).sqrt()));
        }
        for norm in ["attn_norm", "ffn_norm"] {
            let weights: Vec<f32> = (0..HIDDEN).map(|_| 1.0 + 0.3 * random.unit()).collect();
            file = file.f32(&format!("blk.{l}.{norm}.weight"), &[HIDDEN], &weights);
        }
    }
    for (name, rows, columns, deviation) in matrices {
        let format = format(name.rsplit('.').next().unwrap());
        let data = match format {
            Format::F32 => (0..rows * columns).flat_map(|_| (1.7 * deviation * random.unit()).to_le_bytes()).collect(),
            _ => blocks(format, rows * columns, deviation, &mut random),
        };
        file = file.tensor(&format!("{name}.weight"), &[rows, columns], format, data);
    }
    let weights: Vec<f32> = (0..HIDDEN).map(|i| if i % 3 == 0 { -0.125 } else { 0.125 }).collect();
    file.f32("output_norm.weight", &[HIDDEN], &weights).build()
}
