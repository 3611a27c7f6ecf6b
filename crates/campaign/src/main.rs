//! `kvist-campaign NAME --seeds A..B [--ledger LEDGER.md]`
#![forbid(unsafe_code)]

mod replay;
mod sessions;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kvist_base::Codec;
use kvist_campaign::kill::{self, End};
use kvist_campaign::ledger::{self, Entry};
use kvist_campaign::{bitwise, fuzz, overflow, parallel, quality, subjects};
use kvist_kernels::Isa;
use kvist_store::campaign as store;
use kvist_store::campaign::Report as StoreReport;
use peak_alloc::PeakAlloc;

/// Counts, so that `fuzz` can say what an input made a parser allocate.
#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Long seeded campaigns against kvist's own invariants (for development).
///
/// Every case is a function of its seed: a failure names the seed, and `--seeds N..N+1` repeats it.
#[derive(Parser)]
#[command(name = "kvist-campaign", version)]
struct Args {
    #[command(subcommand)]
    campaign: Campaign,
}

#[derive(Clone, clap::Args)]
struct Common {
    /// Seeds to run.
    #[arg(long, value_name = "A..B", value_parser = range, default_value = "0..1000")]
    seeds: Range<u64>,
    /// Cases at a time.
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, |n| n.get()))]
    jobs: usize,
    /// Append the result to this file.
    #[arg(long)]
    ledger: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Campaign {
    /// Cold = warm = any batch, bit for bit, on the small fixtures and the embedded model.
    Bitwise {
        #[command(flatten)]
        common: Common,
        /// ISA path: avx512, avx512vnni, avxvnni, avx2, portable; default: all that the machine has, in turn.
        #[arg(long)]
        isa: Option<Isa>,
        /// How sealed chunks are kept: kv16 or kv8.
        #[arg(long, value_parser = codec, default_value = "kv16")]
        kv_type: Codec,
    },
    /// What KV in 8 bits costs on the embedded model, as it is and with outlier channels in K.
    KvQuality {
        /// ISA path; default: the best of this machine.
        #[arg(long)]
        isa: Option<Isa>,
        #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, |n| n.get()))]
        threads: usize,
    },
    /// What the embedded model makes of a text whose middle was dropped: with carried KV, computed anew, at wrong places.
    Overflow {
        /// Documents.
        #[arg(long, default_value_t = 32)]
        count: usize,
        #[arg(long)]
        isa: Option<Isa>,
        #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, |n| n.get()))]
        threads: usize,
    },
    /// The scheduler in simulation, with faults.
    Scheduler {
        #[command(flatten)]
        common: Common,
    },
    /// The prefix tree against a naive model; each seed is a run of `--steps` operations.
    Tree {
        #[command(flatten)]
        common: Common,
        #[arg(long, default_value_t = 1_000_000)]
        steps: u64,
    },
    /// Eviction policies on traces of requests: hit rates by size of the cache.
    Replay(replay::Args),
    /// AttentionStore's experiment: conversations in a closed loop, policies for memory and disk, in simulation.
    AttentionStore(sessions::Args),
    /// The store on a disk whose power fails at every moment of a workload, in every way; each seed is a workload.
    StoreCrash {
        #[command(flatten)]
        common: Common,
    },
    /// The store on a disk of which every operation fails once and for good, in every way; each seed is a workload.
    StoreFaults {
        #[command(flatten)]
        common: Common,
    },
    /// The order in which the store's chunks go, against a model that sorts all leaves; each seed is a workload.
    StoreOrder {
        #[command(flatten)]
        common: Common,
    },
    /// The store with every bit of its files turned around, one at a time; each seed is a KiB of them.
    StoreFlips {
        #[command(flatten)]
        common: Common,
    },
    /// A process that saves as fast as it can, killed; each seed is five kills on one directory.
    StoreKill {
        #[command(flatten)]
        common: Common,
    },
    /// The same, and what is killed is the file system under it: ext4 on a loop device (needs root, mkfs.ext4, python3).
    StorePower {
        #[command(flatten)]
        common: Common,
    },
    /// The process that `store-kill` kills.
    #[command(hide = true)]
    StoreVictim { dir: PathBuf, round: u64 },
    /// Mutated files and requests against a parser; each seed is one execution, one at a time (memory is measured).
    Fuzz {
        /// Run this file instead of mutations.
        #[arg(long, requires = "target")]
        input: Option<PathBuf>,
        #[command(flatten)]
        common: Common,
        /// Parser; default: all of them, one after the other.
        #[arg(long)]
        target: Option<String>,
        /// Say each seed before it runs: finds the one that ends the program.
        #[arg(long)]
        trace: bool,
    },
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let parse = |s: &str| s.replace('_', "").parse::<u64>().map_err(|e| format!("{s:?}: {e}"));
    let (a, b) = text.split_once("..").ok_or("write A..B, for example 0..1000")?;
    let range = parse(a)?..parse(b)?;
    if range.is_empty() { Err("the range is empty".into()) } else { Ok(range) }
}

fn codec(text: &str) -> Result<Codec, String> {
    match text {
        // As `kvist serve` understands it.
        "kv16" | "bf16" => Ok(Codec::Kv16),
        "kv8" => Ok(Codec::Kv8),
        _ => Err("kv16 or kv8".into()),
    }
}

fn main() -> ExitCode {
    let commit = ledger::commit();
    let outcome = match Args::parse().campaign {
        Campaign::Bitwise { common, isa, kv_type } => {
            let subjects = subjects::all(isa, kv_type);
            let scope = subjects::scope(&subjects);
            let case = |seed: u64| bitwise::run(seed, subjects::pick(&subjects, seed));
            let result =
                parallel::seeds(common.seeds.clone(), common.jobs, case, |a: &mut bitwise::Report, b| a.add(&b));
            report("bitwise", commit, common, scope, result.map(|r| r.to_string()))
        }
        Campaign::KvQuality { isa, threads } => {
            for (name, outliers) in [("as it is", None), ("with outlier channels in K", Some(&quality::ROUNDED))] {
                let isa = isa.unwrap_or_else(Isa::detect);
                println!(
                    "embedded, {name}: {}",
                    quality::measure(&quality::model(outliers), &quality::prompts(), isa, threads)
                );
            }
            Ok(())
        }
        Campaign::Overflow { count, isa, threads } => {
            let isa = isa.unwrap_or_else(Isa::detect);
            for (way, texts, repeats) in overflow::measure(&quality::model(None), isa, threads, count) {
                println!("{way:?}: how texts go on: {texts}\n{way:?}: what comes again: {repeats}");
            }
            Ok(())
        }
        Campaign::Scheduler { common } => {
            use kvist_sim::campaign::{Canary, Report, run};
            let case = |seed| run(seed, Canary::None);
            let result = parallel::seeds(common.seeds.clone(), common.jobs, case, |a: &mut Report, b| a.add(&b));
            report("scheduler", commit, common, "simulated".into(), result.map(|r| format!("{r:?}")))
        }
        Campaign::Tree { common, steps } => {
            let case = |seed| kvist_cache::campaign::run(seed, steps);
            let result =
                parallel::seeds(common.seeds.clone(), common.jobs, case, |a: &mut kvist_cache::campaign::Report, b| {
                    a.merge(&b)
                });
            report("tree", commit, common, format!("{steps} steps a seed"), result.map(|r| r.to_string()))
        }
        Campaign::Replay(args) => replay::run(args),
        Campaign::AttentionStore(args) => sessions::all(args),
        Campaign::StoreCrash { common } => {
            let result =
                parallel::seeds(common.seeds.clone(), common.jobs, store::crash, |a: &mut StoreReport, b| a.add(&b));
            report("store-crash", commit, common, "simulated".into(), result.map(|r| r.to_string()))
        }
        Campaign::StoreFaults { common } => {
            let result =
                parallel::seeds(common.seeds.clone(), common.jobs, store::faults, |a: &mut StoreReport, b| a.add(&b));
            report("store-faults", commit, common, "simulated".into(), result.map(|r| r.to_string()))
        }
        Campaign::StoreOrder { common } => {
            let result =
                parallel::seeds(common.seeds.clone(), common.jobs, store::order, |a: &mut StoreReport, b| a.add(&b));
            report("store-order", commit, common, "simulated".into(), result.map(|r| r.to_string()))
        }
        Campaign::StoreFlips { common } => {
            let result = store::Flips::new(5, kvist_store::Canary::None).and_then(|flips| {
                parallel::seeds(
                    common.seeds.clone(),
                    common.jobs,
                    |kib| flips.kib(kib),
                    |a: &mut StoreReport, b| a.add(&b),
                )
            });
            report("store-flips", commit, common, "a store of 256 KiB".into(), result.map(|r| r.to_string()))
        }
        Campaign::StoreKill { common } => {
            let result = parallel::seeds(
                common.seeds.clone(),
                common.jobs,
                |seed| kill::run(seed, End::Kill),
                |a: &mut StoreReport, b| a.add(&b),
            );
            report("store-kill", commit, common, "five kills a seed".into(), result.map(|r| r.to_string()))
        }
        Campaign::StorePower { common } => {
            let case = |seed| kill::run(seed, End::Power);
            let result = parallel::seeds(common.seeds.clone(), common.jobs, case, |a: &mut StoreReport, b| a.add(&b));
            report("store-power", commit, common, "ext4, five cuts a seed".into(), result.map(|r| r.to_string()))
        }
        Campaign::StoreVictim { dir, round } => store::Victim::run(&dir, round, &mut std::io::stdout()),
        Campaign::Fuzz { input: Some(file), target, .. } => fuzz_file(&file, target.as_deref()),
        Campaign::Fuzz { common, target, trace, .. } => fuzz_targets(commit, common, target, trace),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn fuzz_file(file: &Path, target: Option<&str>) -> Result<(), String> {
    let input = std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let targets = fuzz::all();
    let target = targets.iter().find(|t| Some(t.name()) == target).ok_or("no such target")?;
    let report = fuzz::execute(&**target, &MEMORY, &input)?;
    println!("{report} {:?}", report.refusals);
    Ok(())
}

fn fuzz_targets(commit: String, common: Common, target: Option<String>, trace: bool) -> Result<(), String> {
    let mut targets = fuzz::all();
    let known = targets.iter().map(|t| t.name()).collect::<Vec<_>>().join(", ");
    targets.retain(|t| target.as_deref().is_none_or(|name| name == t.name()));
    if targets.is_empty() {
        return Err(format!("no such target; there are {known}"));
    }
    // What panics is reported with its seed.
    std::panic::set_hook(Box::new(|panic| eprintln!("\n{panic}")));
    for target in targets {
        let case = |seed| {
            if trace {
                eprintln!("{} {seed}", target.name());
            }
            fuzz::run(&*target, &MEMORY, seed)
        };
        let result = parallel::seeds(common.seeds.clone(), 1, case, |a: &mut fuzz::Report, b| a.add(&b));
        report("fuzz", commit.clone(), common.clone(), target.name().into(), result.map(|r| r.to_string()))?;
    }
    Ok(())
}

fn report(
    name: &str,
    commit: String,
    common: Common,
    scope: String,
    result: Result<String, String>,
) -> Result<(), String> {
    let failed = result.as_ref().err().cloned();
    let result = match result {
        // A ledger entry is one line of a table.
        Ok(report) => format!("passed: {}", report.split_whitespace().collect::<Vec<_>>().join(" ")),
        Err(e) => format!("FAILED: {e}"),
    };
    let entry = Entry { campaign: name, seeds: common.seeds, scope, commit, result };
    println!("{}", entry.line());
    if let Some(file) = common.ledger {
        entry.append(&file).map_err(|e| format!("{}: {e}", file.display()))?;
    }
    failed.map_or(Ok(()), Err)
}
