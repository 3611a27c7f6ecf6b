//! `kvist cache explain`: which tokens of a prompt would hit, where and why it parts from what is kept.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::ArgMatches;
use kvist_base::{CHUNK, DomainId, Tier};
use kvist_engine::Prospect;
use kvist_server::explain::{Around, Asked, Explained, Why, nearest};
use kvist_store::StoreTier;
use serde_json::{Value, json};

use super::place::{Place, bind};
use super::{ask, client};
use crate::failure::{Failure, Result};
use crate::say;
use crate::serve::on_overflow;
use crate::settings::Settings;
use crate::size::{human, thousands};

pub fn run(matches: &ArgMatches, settings: Settings) -> Result<()> {
    let body = ask::body(matches)?;
    let mut rate = matches.get_one::<f64>("prefill-rate").copied();
    let told = match matches.get_one::<String>("url") {
        Some(url) => {
            let key = matches.get_one::<PathBuf>("key-file");
            let mut told = client::post(url, "/v1/kvist/explain", key.map(PathBuf::as_path), &body)?;
            // What the server measured is better than what anybody says.
            rate = rate.filter(|_| told["compute_ms"].is_null());
            if let Some(rate) = rate {
                let computed = told["computed"].as_f64().unwrap_or_default();
                let compute = computed / rate * 1000.0;
                told["compute_ms"] = json!(compute);
                told["ttft_ms"] = json!(compute + told["load_ms"].as_f64().unwrap_or_default());
            }
            told
        }
        None => offline(matches, settings, &body, rate)?,
    };
    if matches.get_flag("json") {
        return say(&format!("{told:#}\n"));
    }
    let explained: Explained = serde_json::from_value(told.clone())
        .map_err(|e| Failure::new(format!("the server's answer: {e}"), "is it a kvist of this version?"))?;
    let disk_rate = told["disk_bytes_per_second"].as_f64();
    say(&render(&explained, disk_rate, rate))
}

/// From the store alone.
fn offline(matches: &ArgMatches, mut settings: Settings, body: &Value, rate: Option<f64>) -> Result<Value> {
    let place = Place::find(&mut settings, true)?;
    let (store, _) = place.look()?;
    let owner = bind(&store, matches.get_one::<String>("tenant").map(String::as_str))?;
    let domain = owner.domain;
    let (text, asked) = ask::tokens(&place, &settings, &store, owner, on_overflow(&settings), body)?;
    let foreign = store.foreign();
    let stored = nearest(&store, domain, &asked);
    let tier = StoreTier::new(store);
    let prospect = prospect(&tier, domain, &asked, rate);
    let mut explained = Explained::new(&text.tokenizer, &asked, &prospect, false, stored.as_ref());
    if explained.why == Why::Nothing && !foreign.is_empty() {
        explained.why = Why::OtherFingerprint { stored: foreign.into_iter().map(|f| f.text).collect() };
    }
    let mut told = serde_json::to_value(explained).map_err(|e| Failure::new(e.to_string(), "report this"))?;
    told["object"] = json!("kvist.explanation");
    told["model"] = json!(place.chosen.name);
    told["disk_bytes_per_second"] = json!(tier.sums().rate);
    Ok(told)
}

/// What a server without anything in RAM would find.
fn prospect(tier: &StoreTier, domain: DomainId, asked: &Asked, rate: Option<f64>) -> Prospect {
    let (ids, carry) = (&asked.ids[..], asked.carry.as_deref());
    let chunks = |domain, tokens: &[u32], from| {
        let found = tier.probe(domain, tokens, from);
        found.public + found.own
    };
    // As the engine has it: for the last chunk of an exact path nothing is loaded.
    let own = match carry {
        None if ids.len() <= CHUNK => 0,
        None => chunks(domain, ids, 0),
        Some(carry) => chunks(carry.space, ids, 0),
    };
    let mut place = own * CHUNK;
    while let Some(more) = carry.and_then(|carry| {
        let found = carry.elsewhere(ids, place).map(|(domain, tokens, at)| chunks(domain, tokens, at));
        found.into_iter().find(|&more| more > 0)
    }) {
        place += more * CHUNK;
    }
    let load = if place > 0 { tier.estimate(place / CHUNK) } else { 0 };
    let carried = place - own * CHUNK;
    let prospect = Prospect { tier: place, carried, loads: place > 0, load, ..Prospect::default() };
    let computed = ids.len() - prospect.cached(ids.len());
    Prospect { compute: rate.map(|rate| (computed as f64 / rate * 1e6) as u64), ..prospect }
}

fn render(e: &Explained, disk_rate: Option<f64>, rate: Option<f64>) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| {
        let _ = writeln!(out, "{name:<9} {text}");
    };
    let tokens = |n: usize| format!("{} tokens", thousands(n as u64));
    let spliced = match e.spliced {
        0 => String::new(),
        n => format!(", {} of them of earlier replies as they were generated", thousands(n as u64)),
    };
    line("prompt", tokens(e.tokens) + &spliced);
    if e.dropped > 0 {
        let rest = match e.carried {
            None => "the rest is computed anew".into(),
            Some(0) => "the rest keeps its KV".into(),
            Some(n) => format!("the rest keeps its KV, {} of it carried on from before", thousands(n as u64)),
        };
        line("dropped", format!("{} of the oldest turns; {rest}", tokens(e.dropped)));
    }
    line("RAM", e.ram.map_or("not known: a running server knows, ask it with --url".into(), tokens));
    let disk = match e.on_disk {
        n if n > e.disk => format!("{}, of {} that it has", tokens(e.disk), thousands(n as u64)),
        _ => tokens(e.disk),
    };
    line("disk", disk);
    line("computed", tokens(e.computed));
    let load = match disk_rate {
        Some(disk) if e.disk > 0 => {
            let known = if e.ram.is_some() { "as the server believes" } else { "assumed" };
            format!("load {:.1} ms at {}/s, {known}", e.load_ms, human(disk as u64))
        }
        _ => "nothing to load".into(),
    };
    let by = match rate {
        Some(rate) => format!("at {} tokens/s, as given", thousands(rate as u64)),
        None => "by the steps that the server measured".into(),
    };
    line(
        "TTFT",
        match (e.ttft_ms, e.compute_ms) {
            (Some(ttft), Some(compute)) => {
                format!("about {ttft:.1} ms without a queue: {load}; compute {compute:.1} ms {by}")
            }
            _ if e.ram.is_some() => {
                format!("{load}; the server has not measured enough steps: --prefill-rate N says more")
            }
            _ => format!("{load}; --prefill-rate N adds what computing takes"),
        },
    );
    line("why", why(&e.why));
    out
}

fn why(why: &Why) -> String {
    match why {
        Why::Complete => "all of it is kept; the last token is computed always".into(),
        Why::LastChunk { at } => format!(
            "only the last chunk, from token {at} on, is not kept: it is partial, or runs again for its last token"
        ),
        Why::Differs { at, in_system_prompt, prompt, stored } => {
            let what = if *in_system_prompt { "the system prompt" } else { "it" };
            let side =
                |name: &str, Around { before, after }: &Around| format!("\n          {name} {before:?} -> {after:?}");
            format!(
                "{what} differs from the nearest path kept at token {at}{}{}",
                side("prompt", prompt),
                side("kept  ", stored)
            )
        }
        Why::Ends { at } => format!("the nearest path kept ends at token {at}: what follows is new"),
        Why::Evicted { at } => format!("what was kept from token {at} on was evicted or could not be read"),
        Why::Nothing => "nothing that is kept of this tenant, or public, begins like it".into(),
        Why::OtherFingerprint { stored } => {
            let stored: Vec<&str> = stored.iter().map(|s| if s.is_empty() { "damaged files" } else { s }).collect();
            format!(
                "nothing that is kept of this model begins like it; the store has other fingerprints: {}",
                stored.join("; ")
            )
        }
        Why::ComputedFaster { at } => {
            format!("from token {at} on computing takes less time than loading, at the measured rates")
        }
    }
}
