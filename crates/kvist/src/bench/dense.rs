//! `kvist bench dense`: products with the matrices of well-known models, in every form, beside the machine's floor.

use std::fmt::Write;

use kvist_kernels::{Isa, PackedBf16, PackedQuant, Pool, QuantKind, QuantRows, bf16, matmul, matmul_quant};
use kvist_model::shapes;
use serde_json::{Value, json};

use super::figures::{Random, in_turns, median};
use crate::failure::{Failure, Result};
use crate::limits::{Limits, Probe};
use crate::progress::Progress;
use crate::size::count;

pub const ROWS: [usize; 8] = [1, 2, 4, 8, 16, 32, 64, 512];
/// Rows that are multiplied one by one for the figure beside ours, at most: each takes as long as the first.
const ALONE: usize = 4;
/// Copies of a matrix take this much, so that it comes from memory and not from a cache, as in a model.
const FOOTPRINT: usize = 128 << 20;
/// Where arithmetic takes the time, it does not matter where the bytes come from, and fewer copies do.
const MOST_FLOPS: f64 = 1e10;

/// How weights are kept: bf16, or in blocks.
pub type Form = Option<QuantKind>;

fn forms() -> impl Iterator<Item = Form> {
    std::iter::once(None).chain(QuantKind::ALL.map(Some))
}

fn name(form: Form) -> String {
    form.map_or("bf16".into(), |kind| kind.to_string())
}

/// A matrix of `n` outputs and `k` inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub model: &'static str,
    pub matrix: &'static str,
    pub n: usize,
    pub k: usize,
}

impl Shape {
    fn fits(&self, form: Form) -> bool {
        form.is_none_or(|kind| kind.fits(self.k))
    }
}

/// The matrices of a layer, fused as the executor has them, and the one that gives the logits.
pub fn shapes_of(model: &'static str) -> Result<Vec<Shape>> {
    let config = shapes::by_name(model)?;
    let (hidden, inner) = (config.hidden, config.intermediate);
    let shape = |matrix, n, k| Shape { model, matrix, n, k };
    Ok(vec![
        shape("q k v", (config.heads + 2 * config.kv_heads) * config.head_dim, hidden),
        shape("attention out", hidden, config.heads * config.head_dim),
        shape("gate up", 2 * inner, hidden),
        shape("down", hidden, inner),
        shape("logits", config.vocab, hidden),
    ])
}

pub struct Measured {
    pub shape: Shape,
    pub form: Form,
    pub rows: usize,
    /// Of one product, activations quantised where the form wants it.
    pub seconds: Vec<f64>,
    /// The same with each row by itself, so that the weights are read for every one of them.
    pub alone: Vec<f64>,
    /// Bytes to be read and written, operations to be done, at least.
    pub bytes: f64,
    pub ops: f64,
}

impl Measured {
    fn median(&self) -> f64 {
        median(&self.seconds)
    }

    fn floor(&self, limits: &Limits) -> f64 {
        let peak = match self.form {
            None => limits.peak,
            Some(kind) => limits.integer_peaks[usize::from(kind == QuantKind::Q8_0)],
        };
        (self.bytes / (limits.bandwidth * 1e9)).max(self.ops / (peak * 1e9))
    }
}

enum Packed {
    Bf16(PackedBf16),
    Quant(PackedQuant),
}

impl Packed {
    /// Weights of usual size, the same for every row.
    fn new(shape: &Shape, form: Form, pool: &Pool, random: &mut Random) -> Result<Packed> {
        let memory = |what: String| Failure::new(format!("{}: {what}", shape.matrix), "free some memory");
        let Shape { n, k, .. } = *shape;
        let row: Vec<f32> = (0..k).map(|_| random.unit() / 16.0).collect();
        let row: Vec<u16> = row.into_iter().map(bf16::from_f32).collect();
        let Some(kind) = form else {
            let packed = PackedBf16::pack(n, k, pool, &|_, out| out.copy_from_slice(&row));
            return Ok(Packed::Bf16(packed.map_err(|e| memory(e.to_string()))?));
        };
        // Any codes; 0x11 in all bytes of scales makes them small.
        let block: Vec<u8> =
            (0..kind.block_bytes()).map(|i| if i % 2 == 0 { random.next() as u8 } else { 0x11 }).collect();
        let fill = |_: usize, out: &mut [u8]| {
            out.chunks_exact_mut(block.len()).for_each(|out| out.copy_from_slice(&block));
        };
        let packed = PackedQuant::pack(kind, n, k, pool, &fill);
        Ok(Packed::Quant(packed.map_err(|e| memory(e.to_string()))?))
    }

    fn bytes(&self) -> usize {
        match self {
            Packed::Bf16(w) => w.bytes(),
            Packed::Quant(w) => w.bytes(),
        }
    }
}

/// Measures every form and number of rows, `repeat` times each; forms take turns.
pub fn run(
    models: &[&'static str],
    repeat: usize,
    isa: Isa,
    threads: usize,
    probe: &mut Probe,
) -> Result<Vec<Measured>> {
    let pool = Pool::new(threads);
    let progress = Progress::new("measuring:");
    let mut all = Vec::new();
    for model in models {
        for shape in shapes_of(model)? {
            progress.note(&format!("{model}: {}, {} x {}", shape.matrix, shape.n, shape.k));
            probe.look();
            all.extend(measure(&shape, repeat, FOOTPRINT, isa, &pool)?);
        }
    }
    Ok(all)
}

fn measure(shape: &Shape, repeat: usize, footprint: usize, isa: Isa, pool: &Pool) -> Result<Vec<Measured>> {
    let mut random = Random(3);
    let mut weights = Vec::new();
    for form in forms().filter(|&form| shape.fits(form)) {
        let first = Packed::new(shape, form, pool, &mut random)?;
        let more = footprint / first.bytes().max(1);
        let mut copies = vec![first];
        for _ in 0..more {
            copies.push(Packed::new(shape, form, pool, &mut random)?);
        }
        weights.push((form, copies));
    }
    let mut all = Vec::new();
    for rows in ROWS {
        // Logits are wanted of a few rows only.
        if shape.matrix == "logits" && rows > 64 {
            continue;
        }
        let x: Vec<u16> = (0..rows * shape.k).map(|_| bf16::from_f32(random.unit())).collect();
        let flops = 2.0 * (rows * shape.n * shape.k) as f64;
        let used = |copies: &[Packed]| copies.len().min((MOST_FLOPS / flops) as usize).max(1);
        let alone = rows.min(ALONE);
        // `calls` products of `rows` rows each.
        let product = |copies: &[Packed], rows: usize, calls: usize, quant: &mut QuantRows, y: &mut [f32]| {
            for w in &copies[..used(copies)] {
                for call in 0..calls {
                    let x = &x[call * rows * shape.k..(call + 1) * rows * shape.k];
                    let y = &mut y[call * rows * shape.n..(call + 1) * rows * shape.n];
                    match w {
                        Packed::Bf16(w) => matmul(isa, pool, x, rows, w, y, false),
                        Packed::Quant(w) => {
                            quant.set(isa, pool, x, shape.k);
                            matmul_quant(isa, pool, quant, w, y, shape.n, false);
                        }
                    }
                }
            }
        };
        let mut works: Vec<Box<dyn FnMut()>> = Vec::new();
        for (_, copies) in &weights {
            for (rows, calls) in [(rows, 1), (1, alone)] {
                let (mut quant, mut y) = (QuantRows::new(), vec![0.0; rows * calls * shape.n]);
                let product = &product;
                works.push(Box::new(move || product(copies, rows, calls, &mut quant, &mut y)));
            }
        }
        let mut works: Vec<&mut dyn FnMut()> = works.iter_mut().map(|work| &mut **work as &mut dyn FnMut()).collect();
        let times = in_turns(repeat, &mut works);
        for ((form, copies), times) in weights.iter().zip(times.as_chunks::<2>().0) {
            let each = |times: &[f64], by: f64| times.iter().map(|t| t * by / used(copies) as f64).collect();
            let (seconds, alone) = (each(&times[0], 1.0), each(&times[1], rows as f64 / alone as f64));
            let bytes = (copies[0].bytes() + rows * (2 * shape.k + 4 * shape.n)) as f64;
            all.push(Measured { shape: *shape, form: *form, rows, seconds, alone, bytes, ops: flops });
        }
    }
    Ok(all)
}

/// For people: a layer's matrices together, and the logits: time for each number of rows, how much longer it takes row
/// by row, and the share of the floor.
pub fn table(measured: &[Measured], limits: &Limits) -> String {
    let mut out = format!("{:<38}{:>12}{:>12}{:>8}{:>8}\n", "", "time", "row by row", "gain", "floor");
    let mut models: Vec<&str> = measured.iter().map(|m| m.shape.model).collect();
    models.dedup();
    for model in models {
        for (part, logits) in [("layer", false), ("logits", true)] {
            let here: Vec<&Measured> =
                measured.iter().filter(|m| m.shape.model == model && (m.shape.matrix == "logits") == logits).collect();
            let matrices = |form: Form| here.iter().filter(|m| m.form == form && m.rows == 1).count();
            // Of a layer whose rows are not whole blocks there is no whole.
            for form in forms().filter(|&form| matrices(form) > 0 && matrices(form) == matrices(None)) {
                for rows in ROWS {
                    let of = |value: &dyn Fn(&Measured) -> f64| {
                        here.iter().filter(|m| m.form == form && m.rows == rows).map(|m| value(m)).sum::<f64>()
                    };
                    let (time, alone) = (of(&Measured::median), of(&|m| median(&m.alone)));
                    if time > 0.0 {
                        let name = format!("{model}, {part}, {}, {}", name(form), count(rows, "row"));
                        let (gain, share) = (alone / time, 100.0 * of(&|m| m.floor(limits)) / time);
                        let (time, alone) = (time * 1e6, alone * 1e6);
                        let _ = writeln!(out, "{name:<38}{time:>9.0} us{alone:>9.0} us{gain:>7.2}x{share:>6.0} %");
                    }
                }
            }
        }
    }
    let [narrow, wide] = limits.integer_peaks;
    out + &format!(
        "Of the floor: bytes / {:.1} GB/s or operations / peak, whichever takes longer; peaks: {:.0} GFLOP/s for bf16, \
         {narrow:.0} GOP/s for codes of up to 6 bits, {wide:.0} for 8.\n",
        limits.bandwidth, limits.peak
    )
}

pub fn json(measured: &[Measured], limits: &Limits) -> Value {
    let entry = |m: &Measured| {
        json!({
            "model": m.shape.model,
            "matrix": m.shape.matrix,
            "n": m.shape.n,
            "k": m.shape.k,
            "rows": m.rows,
            "form": name(m.form),
            "seconds": m.seconds,
            "median_seconds": m.median(),
            "row_by_row_seconds": m.alone,
            "bytes": m.bytes,
            "operations": m.ops,
            "floor_seconds": m.floor(limits),
            "share_of_floor": m.floor(limits) / m.median(),
        })
    };
    json!({"cases": measured.iter().map(entry).collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_matrix_is_measured_in_every_form_that_fits() {
        let shape = Shape { model: "small", matrix: "down", n: 48, k: 96 };
        let pool = Pool::new(2);
        let all = measure(&shape, 1, 10_000, Isa::Portable, &pool).unwrap();
        // bf16, Q8_0, Q4_0 and Q5_0: 96 is no multiple of 256.
        assert_eq!(all.len(), 4 * ROWS.len());
        let q4 = all.iter().find(|m| m.form == Some(QuantKind::Q4_0) && m.rows == 8).unwrap();
        assert_eq!(q4.bytes, (48 * 96 / 32 * 18 + 8 * (2 * 96 + 4 * 48)) as f64);
        assert_eq!(q4.ops, 2.0 * 8.0 * 48.0 * 96.0);
        let limits =
            Limits { bandwidth: 2.0, peak: 5.0, integer_peaks: [3.0, 1.0], ..Limits::unknown(Isa::Portable, 2) };
        assert_eq!(q4.floor(&limits), q4.ops / 3e9);
        assert!(all.iter().all(|m| m.median() > 0.0 && m.seconds.len() == 1));
        let table = table(&all, &limits);
        assert!(all.iter().all(|m| m.alone.len() == 1 && m.alone[0] > 0.0));
        assert!(
            table.contains("small, layer, Q4_0, 64 rows") && !table.contains("Q4_K") && !table.contains("logits,"),
            "{table}"
        );
        assert_eq!(json(&all, &limits)["cases"][0]["form"], "bf16");
    }

    #[test]
    fn shapes_are_those_of_the_models() {
        let all = shapes_of("llama-3.2-1b").unwrap();
        assert_eq!(all.iter().map(|s| (s.n, s.k)).collect::<Vec<_>>()[..2], [(3072, 2048), (2048, 2048)]);
        assert!(!shapes_of("qwen2.5-0.5b").unwrap()[0].fits(Some(QuantKind::Q4K)));
    }
}
