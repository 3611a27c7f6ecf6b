//! `kvist doctor`: what this machine has, what it can do, and what of a model fits into it.

mod hub;
mod machine;
mod model;
mod report;

use clap::ArgMatches;
use kvist_kernels::Isa;
use serde_json::json;

use crate::failure::{Failure, Result};
use crate::limits::{Limits, Probe};
use crate::settings::{Settings, keys};
use crate::{load, say, style};
use report::{Section, Status};

/// Version of the JSON report: a change of what a name means counts, a new name does not.
const SCHEMA: u32 = 1;

pub fn run(matches: &ArgMatches, mut settings: Settings) -> Result<()> {
    let isa = load::isa(settings.text(&keys::ISA))?;
    let threads = load::threads(&mut settings);
    let (mut host, machine) = machine::look(&settings, isa);
    let limits = if matches.get_flag("no-measure") { None } else { measure(&mut host, isa, threads) };
    let (found, facts) = model::look(&mut settings, threads, limits.as_ref());
    let (cache, hub) = hub::look();
    let mut sections = vec![host];
    sections.extend(found);
    sections.push(cache);

    let verdict = report::verdict(&sections);
    if matches.get_flag("json") {
        let all = json!({
            "doctor": SCHEMA,
            "version": env!("CARGO_PKG_VERSION"),
            "verdict": verdict.name(),
            "machine": machine,
            "measured": limits.map(|limits| limits.json()),
            "model": facts.model,
            "fits": facts.fits,
            "hub": hub,
            "checks": report::json(&sections),
        });
        say(&format!("{all:#}\n"))?;
    } else {
        let text = report::render(&sections, style::colours(&std::io::stdout()));
        say(&format!("kvist {}\n\n{text}", env!("CARGO_PKG_VERSION")))?;
    }
    // Everything has been said.
    if verdict == Status::Fail { Err(Failure::said()) } else { Ok(()) }
}

/// A failure as a line of the report.
fn told(section: &mut Section, name: &str, failure: Failure) {
    section.advise(Status::Fail, name, failure.what, failure.hint);
}

/// Bandwidth and arithmetic, unless the measuring itself would take too much memory.
fn measure(host: &mut Section, isa: Isa, threads: usize) -> Option<Limits> {
    let needed = Limits::bytes(threads);
    if crate::machine::free_memory().is_some_and(|free| free.bytes / 2 < needed) {
        host.add(Status::Info, "speed", "not measured: too little memory is free");
        return None;
    }
    let limits = Probe::new(isa, threads).finish();
    let line = limits.line();
    let text = line.lines().next().unwrap_or_default();
    if limits.is_valid() {
        host.add(Status::Ok, "speed", text);
    } else {
        let hint = "the machine was busy while this was measured: run it again when it is idle";
        host.advise(Status::Warn, "speed", text, hint);
    }
    Some(limits)
}
