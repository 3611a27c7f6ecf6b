//! `kvist bench attention`: the tree kernel beside itself with the tree off and beside the machine's floor.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use kvist_base::{CHUNK, ChunkId, ChunkLayout, Codec, LayerKind, RunList, Seal, Slot};
use kvist_kernels::{AttnPlan, AttnShape, Isa, KvPool, Pool, Queries, attend, bf16, probe};
use serde_json::{Value, json};

use super::attention_peers::{Beside, Form, Peers};
use super::figures::{Clock, Random, in_turns_by, median};
use super::plot::{self, Line, Panel};
use super::tree_cases;
use super::trees::{Case, Heads, Planned, Tree};
use crate::failure::{Failure, Result};
use crate::limits::{Limits, Probe};
use crate::machine;
use crate::progress::Progress;
use crate::size::human;

/// Keys and values of all layers together take this much at least, so that they come from memory and not from a
/// cache, as in a model.
const FOOTPRINT: usize = 256 << 20;
const MOST_LAYERS: usize = 2048;
/// Open chunks beside encoded ones, at most: as many as rows lie in at a time, about.
const OPEN: u32 = 256;
/// Where arithmetic takes the time, it does not matter where the bytes come from, and fewer layers do.
const MOST_FLOPS: f64 = 2e10;

/// Operations with weights, and bytes of each of these: none.
const NO_WEIGHTS: (f64, f64) = (0.0, 2.0);

/// One case measured. Times are seconds for one layer.
pub struct Measured {
    pub case: Case,
    pub tree: Vec<f64>,
    pub unshared: Vec<f64>,
    /// With sealed chunks in kv8.
    pub kv8: Vec<f64>,
    /// Ordering the rows, listing the runs and dividing the work among threads: once for all layers of a step.
    pub plan: f64,
    /// Reading memory, for each byte. In turns with the others: how fast that is may change by a third within seconds.
    pub reads: Vec<f64>,
    /// Other programs on the same shape, where they have a form for it.
    pub peers: Vec<Beside>,
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

    /// How much faster kv8 is than kv16.
    pub fn kv8_gain(&self) -> f64 {
        of_pairs(&self.tree, &self.kv8)
    }

    /// How much faster the tree is than a peer.
    pub fn peer_gain(&self, peer: &Beside) -> f64 {
        of_pairs(&peer.seconds, &self.tree)
    }

    /// The tree's time in units of the time without.
    pub fn cost(&self) -> f64 {
        of_pairs(&self.tree, &self.unshared)
    }

    /// Seconds to read its bytes, or for its arithmetic.
    pub fn floor(&self, limits: &Limits) -> f64 {
        self.floor_of_memory().max(limits.floor(0.0, NO_WEIGHTS, self.flops))
    }

    fn floor_of_memory(&self) -> f64 {
        self.bytes * median(&self.reads)
    }

    fn is_bound_by_memory(&self, limits: &Limits) -> bool {
        self.floor_of_memory() > limits.floor(0.0, NO_WEIGHTS, self.flops)
    }
}

/// The median over pairs of neighbouring measurements, which a drift of the machine meets alike, of `a` in units of `b`.
fn of_pairs(a: &[f64], b: &[f64]) -> f64 {
    median(&a.iter().zip(b).map(|(a, b)| a / b).collect::<Vec<_>>())
}

/// How to measure.
pub struct Options {
    pub repeat: usize,
    pub isa: Isa,
    pub threads: usize,
    pub clock: Clock,
}

/// Measures all cases, `repeat` times each, and names those for which there is not enough memory.
pub fn run(
    cases: &[Case],
    options: &Options,
    probe: &mut Probe,
    mut peers: Option<&mut Peers>,
) -> Result<(Vec<Measured>, Vec<String>)> {
    let pool = Pool::new(options.threads);
    let progress = Progress::new("measuring:");
    let (mut measured, mut skipped) = (Vec::new(), Vec::new());
    for (i, case) in cases.iter().enumerate() {
        progress.note(&format!("{} of {}: {}", i + 1, cases.len(), case.name()));
        let input = Input::new(case);
        let needed = input.bytes(peers.is_some()) + Limits::bytes(options.threads);
        if machine::free_memory().is_some_and(|free| needed > free.bytes) {
            skipped.push(format!("{}: needs {}", case.name(), human(needed)));
            continue;
        }
        probe.look();
        measured.push(measure(case, &input, options, &pool, peers.as_deref_mut())?);
    }
    Ok((measured, skipped))
}

/// A case with as many layers as it takes.
struct Input {
    planned: Planned,
    kind: LayerKind,
    layers: usize,
    flops: f64,
}

impl Input {
    fn new(case: &Case) -> Input {
        let (planned, heads) = (case.plan(None), case.heads);
        let kind = LayerKind::Gqa { heads: heads.kv, dk: heads.dim, dv: heads.dim };
        let layer = planned.chunks * ChunkLayout::new(Codec::Kv16, &[kind]).bytes;
        let flops = 4.0 * (heads.q * heads.dim) as f64 * planned.row_tokens as f64;
        let layers = FOOTPRINT.div_ceil(layer).min((MOST_FLOPS / flops) as usize).clamp(1, MOST_LAYERS);
        Input { planned, kind, layers, flops }
    }

    fn layout(&self, codec: Codec) -> ChunkLayout {
        ChunkLayout::new(codec, &vec![self.kind; self.layers])
    }

    fn open(&self) -> u32 {
        (self.planned.chunks as u32).min(OPEN)
    }

    /// Of both pools, and of what three peers have, two of them perhaps in f32.
    fn bytes(&self, peers: bool) -> u64 {
        let [kv16, kv8] = [Codec::Kv16, Codec::Kv8].map(|codec| self.layout(codec).bytes as u64);
        let chunks = self.planned.chunks as u64;
        (chunks + u64::from(self.open())) * kv16 + chunks * (kv8 + if peers { 5 * kv16 } else { 0 })
    }
}

fn measure(
    case: &Case,
    input: &Input,
    options: &Options,
    pool: &Pool,
    mut peers: Option<&mut Peers>,
) -> Result<Measured> {
    let Input { planned: Planned { runs, rows, chunks, tokens, .. }, layers, flops, .. } = input;
    let (rows, layers, heads) = (*rows, *layers, case.heads);
    let refused = |e| Failure::new(format!("{}: {e}", case.name()), "free some memory, or leave it out with --only");
    let mut kv = KvPool::new(input.layout(Codec::Kv16), *chunks as u32).map_err(refused)?;
    let mut kv8 = KvPool::with_codec(input.layout(Codec::Kv8), *chunks as u32, input.open()).map_err(refused)?;
    let mut random = Random(3);
    fill(options.isa, &mut kv, pool, heads.kv * heads.dim, &mut random);
    fill(options.isa, &mut kv8, pool, heads.kv * heads.dim, &mut random);

    let width = heads.q * heads.dim;
    // Scores of a few units, as in a model.
    let scale = 3.0 / (heads.dim as f32).sqrt();
    let queries: Vec<u16> = (0..rows * width).map(|_| bf16::from_f32(random.unit() * scale)).collect();
    let queries = Queries { data: &queries, shifts: &[0] };
    let out = RefCell::new(vec![0.0; rows * width]);
    let shape = AttnShape { heads: heads.q, kv_heads: heads.kv, head_dim: heads.dim };
    let all_layers = |kv: &KvPool, plan: &mut AttnPlan, runs: &RunList| {
        for layer in 0..layers {
            attend(options.isa, pool, plan, runs, kv, layer, &queries, &mut out.borrow_mut());
        }
    };
    let built = |runs: &RunList| {
        let mut plan = AttnPlan::new(shape);
        plan.build(runs, rows, pool.threads());
        plan
    };
    let (unshared_runs, encoded_runs) = (runs.unshared(rows as u32), case.plan(Some(input.open())).runs);
    let (mut tree_plan, mut unshared_plan, mut encoded_plan) =
        (built(runs), built(&unshared_runs), built(&encoded_runs));
    let mut tree = || all_layers(&kv, &mut tree_plan, runs);
    let mut unshared = || all_layers(&kv, &mut unshared_plan, &unshared_runs);
    let mut encoded = || all_layers(&kv8, &mut encoded_plan, &encoded_runs);
    let memory = probe::Memory::new(pool.threads());
    let mut read = || memory.read(pool);
    let mut works: Vec<&mut dyn FnMut()> = vec![&mut tree, &mut unshared, &mut encoded, &mut read];
    let forms = match &mut peers {
        Some(peers) => peers.load(case, layers)?,
        None => BTreeMap::new(),
    };
    let asked = RefCell::new((peers, Ok(())));
    let ask = |peer: &str| {
        let (peers, outcome) = &mut *asked.borrow_mut();
        if let (Some(peers), Ok(())) = (peers, &outcome) {
            *outcome = peers.run(peer);
        }
    };
    let mut others: Vec<_> = forms.keys().map(|peer| || ask(peer)).collect();
    works.extend(others.iter_mut().map(|other| other as &mut dyn FnMut()));
    let times = in_turns_by(options.clock, options.repeat, !forms.is_empty(), &mut works);
    asked.into_inner().1?;
    let plan = {
        let (mut runs, mut plan) = (RunList::default(), AttnPlan::new(shape));
        let mut prepare = || {
            input.planned.assemble(&mut runs);
            plan.build(&runs, rows, pool.threads());
        };
        median(&in_turns_by(options.clock, options.repeat, false, &mut [&mut prepare])[0])
    };
    let mut each = times.into_iter();
    let mut next = |parts: usize| -> Vec<f64> {
        each.next().unwrap_or_default().into_iter().map(|seconds| seconds / parts as f64).collect()
    };
    let (tree, unshared, kv8, reads) = (next(layers), next(layers), next(layers), next(memory.bytes()));
    let token_bytes = heads.kv * 2 * heads.dim * 2;
    Ok(Measured {
        case: *case,
        tree,
        unshared,
        kv8,
        plan,
        reads,
        peers: forms.into_iter().map(|(peer, form)| Beside { peer, form, seconds: next(layers) }).collect(),
        bytes: (tokens * token_bytes + rows * width * (2 + 4)) as f64,
        flops: *flops,
    })
}

/// Random keys and values everywhere; sealed chunks are encoded from the open ones in turn.
fn fill(isa: Isa, kv: &mut KvPool, pool: &Pool, width: usize, random: &mut Random) {
    let values: Vec<f32> = (0..CHUNK * width).map(|_| random.unit()).collect();
    let open = kv.open();
    for chunk in open.clone() {
        let slots: Vec<Option<Slot>> =
            (0..CHUNK).map(|slot| Some(Slot { chunk: ChunkId(chunk), slot: slot as u8 })).collect();
        for layer in 0..kv.layout().layers.len() {
            kv.write(isa, pool, layer, &slots, &values, &values);
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
        "{:<width$}{:>12}{:>12}{:>8}{:>8}{:>9}{:>10}{:>12}\n",
        "one layer", "tree", "tree off", "gain", "GB/s", "GFLOP/s", "of floor", "kv8 faster",
    );
    for m in measured {
        out += &format!(
            "{:<width$}{:>9.1} us{:>9.1} us{:>7.2}x{:>8.1}{:>9.1}{:>8.0} %{:>11.2}x\n",
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

/// For people: other programs on the same shapes, each in its fastest form, and how many times as fast the tree is.
pub fn peers_table(measured: &[Measured], names: &[&str]) -> String {
    let width = measured.iter().map(|m| m.case.name().len()).max().unwrap_or(0);
    let mut out = format!("{:<width$}{:>12}", "one layer", "tree");
    out.extend(names.iter().map(|name| format!("{name:>15}{:>9}{:>6}", "ratio", "")));
    for m in measured {
        out = format!("{}\n{:<width$}{:>9.1} us", out.trim_end(), m.case.name(), m.seconds() * 1e6);
        out.extend(names.iter().map(|&name| match m.peers.iter().find(|beside| beside.peer == name) {
            Some(beside) => {
                let (time, gain) = (median(&beside.seconds) * 1e6, m.peer_gain(beside));
                format!("{time:>12.1} us{gain:>8.2}x {:<5}", beside.form.form)
            }
            None => format!("{:>15}{:>15}", "-", ""),
        }));
    }
    out.trim_end().to_owned() + "\n"
}

/// The case where the tree costs most among those where it cannot help: its name and the tree's time in units of the
/// time without.
pub fn worst(measured: &[Measured], of: impl Fn(&Case) -> bool) -> Option<(String, f64)> {
    let costs = measured.iter().filter(|m| of(&m.case)).map(|m| (m.case.name(), m.cost()));
    costs.max_by(|a, b| a.1.total_cmp(&b.1))
}

/// Shared is never slower than unshared, where there is nothing to gain.
pub const TOLERANCE: f64 = 1.03;

/// The lines that matter most.
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
    let plan = measured.iter().map(|m| (m.plan / m.seconds(), m)).max_by(|a, b| a.0.total_cmp(&b.0));
    let plan = plan.map_or(String::new(), |(share, m)| {
        let (us, percent) = (1e6 * m.plan, 100.0 * share);
        format!(
            "a step's plan takes {percent:.1} % of one layer's attention ({us:.1} us) at most ({})\n",
            m.case.name()
        )
    });
    line("at one sequence", worst(measured, Case::is_one_sequence))
        + &line("at nothing shared", worst(measured, Case::shares_nothing))
        + &plan
}

/// Writes a picture of each sweep: time of a layer's attention with the tree and without, and the floor.
pub fn plot(measured: &[Measured], limits: &Limits, folder: &Path) -> Result<()> {
    for sweep in tree_cases::sweeps() {
        let panel = |&heads: &Heads| {
            let points = |of: &dyn Fn(&Measured) -> f64| {
                let point = |&(x, tree): &(f64, Tree)| {
                    let found = measured.iter().find(|m| m.case == Case { tree, heads });
                    found.map(|m| (x, 1e3 * of(m)))
                };
                sweep.cases.iter().filter_map(point).collect::<Vec<_>>()
            };
            let lines = vec![
                Line { name: "tree", points: points(&Measured::seconds) },
                Line { name: "tree off", points: points(&|m| median(&m.unshared)) },
                Line { name: "floor", points: points(&|m| m.floor(limits)) },
            ];
            Panel { title: format!("heads {}/{}", heads.q, heads.kv), lines }
        };
        let mut panels: Vec<Panel> = sweep.heads.iter().map(panel).collect();
        panels.retain(|panel| !panel.lines[0].points.is_empty());
        if panels.is_empty() {
            continue;
        }
        let path = folder.join(format!("attention-{}.svg", sweep.name));
        let picture = plot::svg(&panels, sweep.axis, "ms, one layer");
        std::fs::write(&path, picture)
            .map_err(|e| Failure::new(format!("{}: {e}", path.display()), "--plots wants a folder"))?;
    }
    Ok(())
}

pub fn json(measured: &[Measured], skipped: &[String], limits: &Limits) -> Value {
    let entry = |m: &Measured| {
        let peer = |beside: &Beside| {
            let Beside { peer, form, seconds } = beside;
            let (median, ratio) = (median(seconds), m.peer_gain(beside));
            let Form { form, tried } = form;
            json!({"peer": peer, "form": form, "tried": tried, "seconds": seconds, "median_seconds": median, "ratio": ratio})
        };
        json!({
            "name": m.case.name(),
            "heads": m.case.heads.q,
            "kv_heads": m.case.heads.kv,
            "head_dim": m.case.heads.dim,
            "seconds": m.tree,
            "unshared_seconds": m.unshared,
            "kv8_seconds": m.kv8,
            "kv8_gain": m.kv8_gain(),
            "plan_seconds": m.plan,
            "peers": m.peers.iter().map(peer).collect::<Vec<_>>(),
            "median_seconds": m.seconds(),
            "gain": m.gain(),
            "paired_cost": m.cost(),
            "read_gb_per_second": 1e-9 / median(&m.reads),
            "bytes": m.bytes,
            "flops": m.flops,
            "floor_seconds": m.floor(limits),
            "bound": if m.is_bound_by_memory(limits) { "memory" } else { "arithmetic" },
            "share_of_floor": m.floor(limits) / m.seconds(),
        })
    };
    let worst = |of: fn(&Case) -> bool| worst(measured, of).map(|(_, cost)| cost);
    json!({
        "cases": measured.iter().map(entry).collect::<Vec<_>>(),
        "skipped": skipped,
        "worst_cost_at_one_sequence": worst(Case::is_one_sequence),
        "worst_cost_at_nothing_shared": worst(Case::shares_nothing),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(batch: usize, shared: usize, tree: f64, unshared: f64) -> Measured {
        let case = Case { tree: Tree::Flat { batch, shared, own: 64 }, heads: Heads { q: 4, kv: 2, dim: 64 } };
        let times = |t: f64| vec![t, 1.1 * t, 0.9 * t];
        let form = Form { form: "bf16".into(), tried: Value::Null };
        let beside = (batch > 1).then(|| Beside { peer: "torch".into(), form, seconds: times(5.0 * tree) });
        let peers = beside.into_iter().collect();
        let (tree, unshared, kv8) = (times(tree), times(unshared), times(tree / 2.0));
        Measured { case, tree, unshared, kv8, plan: 1e-5, reads: vec![5e-10; 3], peers, bytes: 1e6, flops: 1e6 }
    }

    #[test]
    fn verdicts_name_the_worst_case() {
        let all = [measured(1, 0, 1e-3, 1e-3), measured(4, 0, 1.1e-3, 1e-3), measured(4, 1024, 1e-3, 3e-3)];
        let text = verdict(&all);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("at one sequence the tree takes 1.000 of") && lines[0].contains(": within 3 %"));
        assert!(lines[1].contains("1.100") && lines[1].contains("NOT within") && lines[1].contains("decode 4 on"));
        assert!((all[2].gain() - 3.0).abs() < 1e-9 && (all[2].cost() - 1.0 / 3.0).abs() < 1e-9);
        assert!(lines[2].starts_with("a step's plan takes 1.0 % of one layer's attention (10.0 us)"), "{text}");
        assert!(verdict(&[]).contains("nothing was measured"));
        // The bandwidth of a case is that of its own turns.
        let limits = Limits { bandwidth: 2.0, ..Limits::unknown(Isa::Portable, 1) };
        assert_eq!((all[2].floor(&limits), all[2].is_bound_by_memory(&limits)), (1e-3, false));
        let slower = Measured { reads: vec![1e-9, 5e-9, 9e-9], ..measured(4, 1024, 1e-3, 3e-3) };
        assert_eq!((slower.floor(&limits), slower.is_bound_by_memory(&limits)), (5e-3, true));
        let table = table(&all, &limits);
        assert!(["3.00x", "2.00x\n", "tree off"].iter().all(|part| table.contains(part)), "{table}");
    }

    #[test]
    fn peers_have_columns() {
        let table = peers_table(&[measured(1, 0, 1e-3, 1e-3), measured(4, 0, 1e-3, 1e-3)], &["torch"]);
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[0].contains("torch    ratio") && lines[1].ends_with(" -"), "{table}");
        assert!(lines[2].ends_with("1000.0 us      5000.0 us    5.00x bf16"), "{table}");
        let json = json(&[measured(4, 0, 1e-3, 1e-3)], &[], &Limits::unknown(Isa::Portable, 1));
        let peer = &json["cases"][0]["peers"][0];
        assert_eq!((&peer["peer"], &peer["form"], &peer["ratio"]), (&"torch".into(), &"bf16".into(), &5.0.into()));
    }

    #[test]
    fn a_small_case_is_measured() {
        let case = Case { tree: Tree::Flat { batch: 4, shared: 128, own: 64 }, heads: Heads { q: 2, kv: 1, dim: 32 } };
        let options = Options { repeat: 1, isa: Isa::Portable, threads: 2, clock: Clock::Wall };
        let (all, skipped) = run(&[case], &options, &mut Probe::new(Isa::Portable, 2), None).unwrap();
        let m = &all[0];
        assert!(m.seconds() > 0.0 && m.gain() > 0.0 && m.tree.len() == 1 && skipped.is_empty());
        assert_eq!(m.bytes, (384 * 128 + 4 * 64 * 6) as f64);
        assert_eq!(m.flops, 4.0 * 64.0 * (4.0 * 192.0));
        let json = json(&all, &skipped, &Limits::unknown(Isa::Portable, 2));
        assert_eq!(json["cases"][0]["kv_heads"], 1);
        assert_eq!((&json["cases"][0]["peers"], &json["cases"][0]["bound"]), (&json!([]), &"arithmetic".into()));
    }

    #[test]
    fn what_does_not_fit_is_skipped_by_name() {
        let heads = Heads { q: 64, kv: 64, dim: 128 };
        let case = Case { tree: Tree::Flat { batch: 1024, shared: 0, own: 32768 }, heads };
        let options = Options { repeat: 1, isa: Isa::Portable, threads: 1, clock: Clock::of_threads(1) };
        let (all, skipped) = run(&[case], &options, &mut Probe::new(Isa::Portable, 1), None).unwrap();
        assert!(all.is_empty() && skipped[0].starts_with(&format!("{}: needs ", case.name())), "{skipped:?}");
    }
}
