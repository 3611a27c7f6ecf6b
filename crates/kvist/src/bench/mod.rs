//! `kvist bench`: figures beside the limits of the machine, measured in the same run.

mod attention;
mod attention_peers;
mod cases;
mod dense;
mod engine;
mod figures;
mod peer;
mod plot;
mod store;
mod tree_cases;
mod trees;
mod workload;

use std::path::PathBuf;
use std::sync::Arc;

use clap::ArgMatches;
use kvist_base::{CHUNK, Codec, SystemClock};
use kvist_engine::EngineConfig;
use kvist_model::{PoolSize, shapes};
use serde_json::{Value, json};

use crate::driver::Driver;
use crate::failure::{Failure, Result};
use crate::limits::{Limits, Probe};
use crate::{load, machine, model, say};
pub use cases::names as engine_cases;
use figures::Clock;
pub use figures::median;

pub fn run(matches: &ArgMatches) -> Result<()> {
    match matches.subcommand() {
        Some(("attention", matches)) => bench_attention(matches),
        Some(("dense", matches)) => bench_dense(matches),
        Some(("engine", matches)) => bench_engine(matches),
        Some(("store", matches)) if matches.get_flag("child") => store::run_child(),
        Some(("store", matches)) => bench_store(matches),
        _ => unreachable!("clap asks for a subcommand"),
    }
}

/// What both have: ISA path and threads.
fn path(matches: &ArgMatches) -> Result<(kvist_kernels::Isa, usize)> {
    let isa = load::isa(matches.get_one::<String>("isa").map(String::as_str))?;
    Ok((isa, matches.get_one::<u32>("threads").map_or_else(machine::threads, |&n| n as usize)))
}

fn bench_attention(matches: &ArgMatches) -> Result<()> {
    let (isa, threads) = path(matches)?;
    let repeat = matches.get_one::<u32>("repeat").map_or(7, |&n| n as usize);
    let plots = matches.get_one::<PathBuf>("plots");
    let mut cases = match plots {
        Some(_) => tree_cases::sweeps().iter().flat_map(tree_cases::Sweep::all).collect(),
        None if matches.get_flag("full") => tree_cases::all(),
        None => tree_cases::some(),
    };
    if let Some(only) = matches.get_one::<String>("only") {
        cases.retain(|case| case.name().contains(only.as_str()));
        if cases.is_empty() {
            return Err(Failure::usage(format!("--only: no case has `{only}` in its name"), "--full has more"));
        }
    }
    let ggml = matches.get_one::<PathBuf>("ggml").map(PathBuf::as_path);
    let mut peers = match matches.get_one::<PathBuf>("python") {
        Some(python) => Some(attention_peers::Peers::start(python, threads, ggml)?),
        None => None,
    };
    // The peers' time is the wall's.
    let clock = if peers.is_some() { Clock::Wall } else { Clock::of_threads(threads) };
    let options = attention::Options { repeat, isa, threads, clock };
    let mut probe = Probe::new(isa, threads);
    let (measured, skipped) = attention::run(&cases, &options, &mut probe, peers.as_mut())?;
    let limits = probe.finish();
    if let Some(folder) = plots {
        attention::plot(&measured, &limits, folder)?;
    }
    if matches.get_flag("json") {
        let mut figures = attention::json(&measured, &skipped, &limits);
        figures["clock"] = clock.name().into();
        figures["peers"] = peers.iter().flat_map(|peers| peers.versions.clone()).collect();
        return print_json("attention", &limits, figures);
    }
    let table = attention::table(&measured, &limits);
    let beside = peers.map_or(String::new(), |peers| {
        let versions: Vec<String> = peers.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        let names: Vec<&str> = peers.versions.iter().map(|(name, _)| name.as_str()).collect();
        let table = attention::peers_table(&measured, &names);
        format!("\nbeside {}, {threads} threads each\n{table}", versions.join(", "))
    });
    let skipped: String = skipped.iter().map(|case| format!("not enough memory: {case}\n")).collect();
    let (line, clock, verdict) = (limits.line(), clock.name(), attention::verdict(&measured));
    say(&format!("{line}\ntimes by the {clock}'s clock\n\n{table}{skipped}{beside}\n{verdict}"))
}

fn bench_dense(matches: &ArgMatches) -> Result<()> {
    let (isa, threads) = path(matches)?;
    let repeat = matches.get_one::<u32>("repeat").map_or(5, |&n| n as usize);
    let only = matches.get_one::<String>("shape");
    let models: Vec<&str> = shapes::NAMES.into_iter().filter(|name| only.is_none_or(|only| only == name)).collect();
    let mut probe = Probe::new(isa, threads);
    let measured = dense::run(&models, repeat, isa, threads, &mut probe)?;
    let limits = probe.finish();
    if matches.get_flag("json") {
        print_json("dense", &limits, dense::json(&measured, &limits))
    } else {
        say(&format!("{}\n\n{}", limits.line(), dense::table(&measured, &limits)))
    }
}

fn bench_engine(matches: &ArgMatches) -> Result<()> {
    let (isa, threads) = path(matches)?;
    let shape = matches.get_one::<String>("shape").map_or("embedded", String::as_str);
    let file = matches.get_one::<String>("model").map(String::as_str);
    let default = if file.is_some() { "file" } else { "bf16" };
    let form = model::form(matches.get_one::<String>("weights").map_or(default, String::as_str));
    let chosen = match shape {
        "embedded" => model::choose(file, form)?,
        shape => model::random(shape, form)?,
    };
    let cases = chosen_cases(matches, chosen.config.context)?;
    let codec = load::codec(matches.get_one::<String>("kv-type").map_or("kv16", String::as_str));
    let subject = engine::Subject {
        config: &chosen.config,
        codec,
        bytes: chosen.bytes,
        peers: peers(matches, chosen.place(), threads)?,
    };
    let config = EngineConfig::default();
    let most = |of: usize| cases.iter().map(|case| case.kind.chunks()[of]).max().unwrap_or(1);
    let open = if codec == Codec::Kv8 { most(1) + (config.max_step_rows / CHUNK + 2) as u32 } else { 0 };
    let pool = PoolSize { codec, chunks: most(0), open };
    let kv = u64::from(pool.chunks) * chosen.config.layout_of(codec).bytes as u64
        + u64::from(pool.open) * chosen.config.kv_layout().bytes as u64;
    room_for(chosen.bytes + kv)?;

    let mut probe = Probe::new(isa, threads);
    let loaded = load::weights(&chosen, threads)?;
    let longest = cases.iter().map(|case| case.kind.longest()).max();
    let executor = loaded.with_pool(pool, longest, isa, threads)?;
    let driver = Driver::new(config.clone(), Box::new(executor), Arc::new(SystemClock::new()));
    let mut work = workload::Workload::new(driver, config);
    let turns = matches.get_one::<u32>("turns").map_or(3, |&n| n as usize);
    let figures = engine::run(&mut work, &cases, turns, &subject, &mut probe)?;
    let limits = probe.finish();
    if matches.get_flag("json") {
        let figures = json!({
            "shape": chosen.name,
            "weights": chosen.kind(),
            "weight_bytes": chosen.bytes,
            "kv_type": codec.to_string(),
            "parameters": chosen.config.parameters(),
            "cases": engine::json(&figures, &limits),
        });
        print_json("engine", &limits, figures)
    } else {
        let (line, table) = (limits.line(), engine::table(&figures, &limits));
        say(&format!("{line}\nmodel {} in {}, KV in {codec}\n\n{table}", chosen.name, chosen.kind()))
    }
}

/// The cases that were asked for, as far as the model's context holds them.
fn chosen_cases(matches: &ArgMatches, context: usize) -> Result<Vec<cases::Case>> {
    let named: Vec<&String> = matches.get_many("case").into_iter().flatten().collect();
    let wanted = |case: &cases::Case| match named.as_slice() {
        [] => !case.long || matches.get_flag("full"),
        named => named.iter().any(|name| *name == case.name),
    };
    let (fitting, too_long): (Vec<_>, Vec<_>) =
        cases::CASES.into_iter().filter(wanted).partition(|case| case.kind.longest() <= context);
    match too_long.first() {
        Some(case) if !named.is_empty() => {
            let what = format!("--case {}: the model's context has {context} tokens", case.name);
            Err(Failure::usage(what, "choose shorter cases"))
        }
        _ => Ok(fitting),
    }
}

fn peers(matches: &ArgMatches, place: Option<String>, threads: usize) -> Result<Option<peer::Peers>> {
    let [llama_bench, llama_batched_bench] =
        ["llama-bench", "llama-batched-bench"].map(|name| matches.get_one::<PathBuf>(name).cloned());
    if llama_bench.is_none() && llama_batched_bench.is_none() {
        return Ok(None);
    }
    match place.filter(|place| place.ends_with(".gguf")) {
        Some(place) => Ok(Some(peer::Peers { llama_bench, llama_batched_bench, model: place.into(), threads })),
        None => Err(Failure::usage("--llama-bench: the model is no GGUF file", "--model FILE.gguf")),
    }
}

fn bench_store(matches: &ArgMatches) -> Result<()> {
    let (isa, threads) = path(matches)?;
    let shape = matches.get_one::<String>("shape").map_or("embedded", String::as_str);
    let form = model::form(matches.get_one::<String>("weights").map_or("q4", String::as_str));
    let chosen = match shape {
        "embedded" => model::choose(None, form)?,
        shape => model::random(shape, form)?,
    };
    let list = |name: &str, default: &[usize]| -> Vec<usize> {
        let given = matches.get_many::<u32>(name).map(|n| n.map(|&n| n as usize).collect());
        let mut list: Vec<usize> = given.unwrap_or_else(|| default.to_vec());
        list.sort_unstable();
        list.dedup();
        list
    };
    let mut curve = list("new-tokens", &store::CURVE);
    if !curve.contains(&store::NEW) {
        curve.push(store::NEW);
        curve.sort_unstable();
    }
    let most = curve.iter().copied().max().unwrap_or(store::NEW) + 1;
    let room = chosen.config.context.saturating_sub(most) / CHUNK * CHUNK;
    let histories: Vec<usize> = list("history", &[2048.min(room)]);
    if let Some(odd) = histories.iter().find(|n| !n.is_multiple_of(CHUNK) || **n == 0) {
        let what = format!("--history {odd} is not a multiple of {CHUNK}");
        return Err(Failure::usage(what, format!("--history {}", odd.next_multiple_of(CHUNK).max(CHUNK))));
    }
    let longest = histories.iter().copied().max().unwrap_or(0);
    if longest > room {
        let what = format!("{longest} tokens and {most} new ones do not fit the model's context");
        return Err(Failure::usage(what, format!("--history {room}")));
    }
    let codec = load::codec(matches.get_one::<String>("kv-type").map_or("kv16", String::as_str));
    let options = store::Options {
        histories,
        curve,
        repeat: matches.get_one::<u32>("repeat").map_or(5, |&n| n as usize),
        dir: matches.get_one::<PathBuf>("dir").cloned(),
        io_threads: threads.clamp(2, 4),
        throttle: matches.get_one::<u64>("throttle").map(|&n| n as f64),
    };
    let config = EngineConfig { itl_target: 60_000_000, ..EngineConfig::default() };
    let open = if codec == Codec::Kv8 { 2 * config.max_step_rows / CHUNK + 4 } else { 0 };
    // The history, what is new, and as much of another turn.
    let chunks = ((longest + most) / CHUNK + 4) * 2;
    let pool = PoolSize { codec, chunks: chunks as u32, open: open as u32 };
    let layout = chosen.config.layout_of(codec).bytes as u64;
    // Pool, the chunks for the process that saves, what was read and waits, and what waits to be written.
    let kv = 2 * chunks as u64 * layout + u64::from(pool.open) * chosen.config.kv_layout().bytes as u64 + (512 << 20);
    room_for(chosen.bytes + kv)?;
    let mut probe = Probe::new(isa, threads);
    let loaded = load::weights(&chosen, threads)?;
    let executor = loaded.with_pool(pool, Some(longest + most), isa, threads)?;
    let driver = Driver::new(config, Box::new(executor), Arc::new(SystemClock::new()));
    probe.look();
    let measured = store::run(driver, &options)?;
    probe.look();
    let limits = probe.finish();
    if matches.get_flag("json") {
        let figures = json!({
            "shape": chosen.name,
            "weights": chosen.kind(),
            "kv_type": codec.to_string(),
            "store": store::json(&measured),
        });
        return print_json("store", &limits, figures);
    }
    let (name, kind) = (&chosen.name, chosen.kind());
    say(&format!("{}\nmodel {name} in {kind}, KV in {codec}\n\n{}", limits.line(), store::table(&measured)))
}

fn room_for(needed: u64) -> Result<()> {
    if machine::free_memory().is_some_and(|free| needed > free.bytes) {
        let what = format!("not enough memory: {} are needed", crate::size::human(needed));
        return Err(Failure::new(what, "choose a smaller --shape or shorter prompts"));
    }
    Ok(())
}

fn print_json(bench: &str, limits: &Limits, figures: Value) -> Result<()> {
    let all = json!({
        "bench": bench,
        "version": env!("CARGO_PKG_VERSION"),
        "machine": limits.json(),
        "figures": figures,
    });
    say(&format!("{all:#}\n"))
}
