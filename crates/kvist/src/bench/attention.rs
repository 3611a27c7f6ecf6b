//! `kvist bench attention`: the tree kernel beside itself with the tree off and beside the machine's floor.

use std::cell::RefCell;

use kvist_base::{CHUNK, ChunkId, ChunkLayout, Codec, Dtype, LayerKind, RunList, Seal, Slot};
use kvist_kernels::{AttnPlan, AttnShape, Isa, KvPool, Pool, Queries, attend, bf16};
use serde_json::{Value, json};

use super::figures::{Random, interleaved, median};
use super::trees::{Case, Planned};
use crate::failure::{Failure, Result};
use crate::limits::{Limits, Probe};
use crate::progress::Progress;

/// Keys and values of all layers together take this much at least, so that they come from memory and not from a
/// cache, as in a model.
const FOOTPRINT: usize = 256 << 20;
const MOST_LAYERS: usize = 2048;
/// Open chunks beside encoded ones, at most: as many as rows lie in at a time, about.
const OPEN: u32 = 256;
/// Where arithmetic takes the time, it does not matter where the bytes come from, and fewer layers do.
const MOST_FLOPS: f64 = 2e10;

/// One case measured. Times are seconds for one layer.
pub struct Measured {
    pub case: Case,
    pub tree: Vec<f64>,
    pub unshared: Vec<f64>,
    /// With sealed chunks in kv8, and the tree with bf16 measured in turn with it.
    pub kv8: Vec<f64>,
    pub beside_kv8: Vec<f64>,
    /// Bytes to be read and written, operations to be done, at least.
    pub bytes: f64,
    pub flops: f64,
}

impl Measured {
    pub fn seconds(&self) -> f64 {
        median(&self.tree)
    }

    /// How much faster the tree is: the ratio of the medians.
    pub fn gain(&self) -> f64 {
        median(&self.unshared) / self.seconds()
    }

    /// How much faster kv8 is than bf16: the median over pairs of neighbouring measurements.
    pub fn kv8_gain(&self) -> f64 {
        median(&self.beside_kv8.iter().zip(&self.kv8).map(|(bf16, kv8)| bf16 / kv8).collect::<Vec<_>>())
    }

    /// The tree's time in units of the time without: the median over pairs of neighbouring measurements, which a drift
    /// of the machine meets alike.
    pub fn cost(&self) -> f64 {
        median(&self.tree.iter().zip(&self.unshared).map(|(tree, unshared)| tree / unshared).collect::<Vec<_>>())
    }

    pub fn floor(&self, limits: &Limits) -> f64 {
        limits.floor(self.bytes, self.flops)
    }
}

/// Measures all cases, `repeat` times each.
pub fn run(cases: &[Case], repeat: usize, isa: Isa, threads: usize, probe: &mut Probe) -> Result<Vec<Measured>> {
    let pool = Pool::new(threads);
    let progress = Progress::new("measuring:");
    let measured = |(i, case): (usize, &Case)| {
        progress.note(&format!("{} of {}: {}", i + 1, cases.len(), case.name()));
        probe.look();
        measure(case, repeat, isa, &pool)
    };
    cases.iter().enumerate().map(measured).collect()
}

fn measure(case: &Case, repeat: usize, isa: Isa, pool: &Pool) -> Result<Measured> {
    let Planned { runs, rows, chunks, tokens, row_tokens } = case.plan(None);
    let heads = case.heads;
    let kind = LayerKind::Gqa { heads: heads.kv, dk: heads.dim, dv: heads.dim };
    let layer_bytes = chunks * ChunkLayout::new(Dtype::Bf16, &[kind]).bytes;
    let flops = 4.0 * (heads.q * heads.dim) as f64 * row_tokens as f64;
    let layers = FOOTPRINT.div_ceil(layer_bytes).min((MOST_FLOPS / flops) as usize).clamp(1, MOST_LAYERS);
    let kinds = vec![kind; layers];
    let open = (chunks as u32).min(OPEN);
    let refused = |e| Failure::new(format!("{}: {e}", case.name()), "free some memory, or leave out --full");
    let mut kv = KvPool::new(ChunkLayout::new(Dtype::Bf16, &kinds), chunks as u32).map_err(refused)?;
    let mut kv8 = KvPool::with_codec(ChunkLayout::new(Codec::Kv8, &kinds), chunks as u32, open).map_err(refused)?;
    let mut random = Random(3);
    fill(&mut kv, pool, heads.kv * heads.dim, &mut random);
    fill(&mut kv8, pool, heads.kv * heads.dim, &mut random);

    let width = heads.q * heads.dim;
    // Scores of a few units, as in a model.
    let scale = 3.0 / (heads.dim as f32).sqrt();
    let queries: Vec<u16> = (0..rows * width).map(|_| bf16::from_f32(random.unit() * scale)).collect();
    let queries = Queries { data: &queries, shifts: &[0] };
    let out = RefCell::new(vec![0.0; rows * width]);
    let shape = AttnShape { heads: heads.q, kv_heads: heads.kv, head_dim: heads.dim };
    let all_layers = |kv: &KvPool, plan: &mut AttnPlan, runs: &RunList| {
        for layer in 0..layers {
            attend(isa, pool, plan, runs, kv, layer, &queries, &mut out.borrow_mut());
        }
    };
    let unshared_runs = runs.unshared(rows as u32);
    let (mut tree_plan, mut unshared_plan) = (AttnPlan::new(shape), AttnPlan::new(shape));
    tree_plan.build(&runs, rows, pool.threads());
    unshared_plan.build(&unshared_runs, rows, pool.threads());
    let (tree, unshared) = interleaved(
        repeat,
        || all_layers(&kv, &mut tree_plan, &runs),
        || {
            all_layers(&kv, &mut unshared_plan, &unshared_runs);
        },
    );
    let encoded_runs = case.plan(Some(open)).runs;
    let mut encoded_plan = AttnPlan::new(shape);
    encoded_plan.build(&encoded_runs, rows, pool.threads());
    let (beside_kv8, kv8) = interleaved(
        repeat,
        || all_layers(&kv, &mut tree_plan, &runs),
        || {
            all_layers(&kv8, &mut encoded_plan, &encoded_runs);
        },
    );
    let each = |times: Vec<f64>| times.into_iter().map(|t| t / layers as f64).collect();

    let token_bytes = heads.kv * 2 * heads.dim * 2;
    let bytes = (tokens * token_bytes + rows * width * (2 + 4)) as f64;
    Ok(Measured {
        case: *case,
        tree: each(tree),
        unshared: each(unshared),
        kv8: each(kv8),
        beside_kv8: each(beside_kv8),
        bytes,
        flops,
    })
}

/// Random keys and values everywhere; sealed chunks are encoded from the open ones in turn.
fn fill(kv: &mut KvPool, pool: &Pool, width: usize, random: &mut Random) {
    let values: Vec<f32> = (0..CHUNK * width).map(|_| random.unit()).collect();
    let open = kv.open();
    for chunk in open.clone() {
        let slots: Vec<Option<Slot>> =
            (0..CHUNK).map(|slot| Some(Slot { chunk: ChunkId(chunk), slot: slot as u8 })).collect();
        for layer in 0..kv.layout().layers.len() {
            kv.write(pool, layer, &slots, &values, &values);
        }
    }
    let sealed = 0..open.start;
    let seals: Vec<Seal> =
        sealed.map(|to| Seal { from: ChunkId(open.start + to % open.len() as u32), to: ChunkId(to) }).collect();
    (0..kv.layout().layers.len()).for_each(|layer| kv.seal(pool, layer, &seals));
}

/// For people.
pub fn table(measured: &[Measured], limits: &Limits) -> String {
    let width = measured.iter().map(|m| m.case.name().len()).max().unwrap_or(0);
    let mut out = format!(
        "{:<width$}{:>11}{:>11}{:>8}{:>9}{:>10}{:>9}{:>12}\n",
        "one layer", "tree", "tree off", "gain", "GB/s", "GFLOP/s", "of floor", "kv8 faster"
    );
    for m in measured {
        out += &format!(
            "{:<width$}{:>8.1} us{:>8.1} us{:>7.2}x{:>9.1}{:>10.1}{:>7.0} %{:>11.2}x\n",
            m.case.name(),
            m.seconds() * 1e6,
            median(&m.unshared) * 1e6,
            m.gain(),
            m.bytes / m.seconds() / 1e9,
            m.flops / m.seconds() / 1e9,
            100.0 * m.floor(limits) / m.seconds(),
            m.kv8_gain(),
        );
    }
    out
}

/// The case where the tree costs most among those where it cannot help: its name and the tree's time in units of the
/// time without.
pub fn worst(measured: &[Measured], of: impl Fn(&Case) -> bool) -> Option<(String, f64)> {
    let costs = measured.iter().filter(|m| of(&m.case)).map(|m| (m.case.name(), m.cost()));
    costs.max_by(|a, b| a.1.total_cmp(&b.1))
}

/// Shared is never slower than unshared, where there is nothing to gain.
pub const TOLERANCE: f64 = 1.03;

/// The two lines that matter most.
pub fn verdict(measured: &[Measured]) -> String {
    let line = |what: &str, worst: Option<(String, f64)>| match worst {
        Some((name, cost)) => {
            let verdict = if cost <= TOLERANCE { "within 3 %" } else { "NOT within 3 %" };
            format!(
                "{what} the tree takes {cost:.3} of the time without (median of pairs), at worst: {verdict} ({name})\n"
            )
        }
        None => format!("{what} nothing was measured\n"),
    };
    line("at one sequence", worst(measured, Case::is_one_sequence))
        + &line("at nothing shared", worst(measured, Case::shares_nothing))
}

pub fn json(measured: &[Measured], limits: &Limits) -> Value {
    let entry = |m: &Measured| {
        json!({
            "name": m.case.name(),
            "heads": m.case.heads.q,
            "kv_heads": m.case.heads.kv,
            "head_dim": m.case.heads.dim,
            "seconds": m.tree,
            "unshared_seconds": m.unshared,
            "kv8_seconds": m.kv8,
            "kv8_gain": m.kv8_gain(),
            "median_seconds": m.seconds(),
            "gain": m.gain(),
            "paired_cost": m.cost(),
            "bytes": m.bytes,
            "flops": m.flops,
            "floor_seconds": m.floor(limits),
            "share_of_floor": m.floor(limits) / m.seconds(),
        })
    };
    let worst = |of: fn(&Case) -> bool| worst(measured, of).map(|(_, cost)| cost);
    json!({
        "cases": measured.iter().map(entry).collect::<Vec<_>>(),
        "worst_cost_at_one_sequence": worst(Case::is_one_sequence),
        "worst_cost_at_nothing_shared": worst(Case::shares_nothing),
    })
}

#[cfg(test)]
mod tests {
    use super::super::trees::{Heads, Tree};
    use super::*;

    fn measured(batch: usize, shared: usize, tree: f64, unshared: f64) -> Measured {
        let case = Case { tree: Tree::Flat { batch, shared, own: 64 }, heads: Heads { q: 4, kv: 2, dim: 64 } };
        let times = |t: f64| vec![t, 1.1 * t, 0.9 * t];
        let (kv8, beside_kv8) = (times(tree / 2.0), times(tree));
        Measured { case, tree: times(tree), unshared: times(unshared), kv8, beside_kv8, bytes: 1e6, flops: 1e6 }
    }

    #[test]
    fn verdicts_name_the_worst_case() {
        let all = [measured(1, 0, 1e-3, 1e-3), measured(4, 0, 1.1e-3, 1e-3), measured(4, 1024, 1e-3, 3e-3)];
        let text = verdict(&all);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("at one sequence the tree takes 1.000 of") && lines[0].contains(": within 3 %"));
        assert!(lines[1].contains("1.100") && lines[1].contains("NOT within") && lines[1].contains("decode 4 x"));
        assert!((all[2].gain() - 3.0).abs() < 1e-9 && (all[2].cost() - 1.0 / 3.0).abs() < 1e-9);
        assert!(verdict(&[]).contains("nothing was measured"));
        let limits = Limits { bandwidth: 2.0, ..Limits::unknown(Isa::Portable, 1) };
        assert_eq!(all[2].floor(&limits), 1e-3);
        let table = table(&all, &limits);
        assert!(table.contains("3.00x") && table.contains("2.00x"), "{table}");
    }

    #[test]
    fn a_small_case_is_measured() {
        let case = Case { tree: Tree::Flat { batch: 4, shared: 128, own: 64 }, heads: Heads { q: 2, kv: 1, dim: 32 } };
        let m = &run(&[case], 1, Isa::Portable, 2, &mut Probe::new(Isa::Portable, 2)).unwrap()[0];
        assert!(m.seconds() > 0.0 && m.gain() > 0.0 && m.tree.len() == 1);
        assert_eq!(m.bytes, (384 * 128 + 4 * 64 * 6) as f64);
        assert_eq!(m.flops, 4.0 * 64.0 * (4.0 * 192.0));
        let json = json(std::slice::from_ref(m), &Limits::unknown(Isa::Portable, 2));
        assert_eq!(json["cases"][0]["kv_heads"], 1);
    }
}
