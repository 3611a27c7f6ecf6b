//! The model that was asked for, and what of it fits.

use kvist_base::Codec;
use serde_json::{Value, json};

use super::report::{Section, Status};
use super::told;
use crate::failure::Result;
use crate::limits::Limits;
use crate::machine::{self, Cores, Free};
use crate::memory::{self, Budget, Limit, Load};
use crate::model::Chosen;
use crate::settings::keys::{CTX, KV_RAM, KV_TYPE, MAX_CONNECTIONS, REPLY_RAM};
use crate::settings::{Origin, Settings};
use crate::size::{count, exact, human, thousands};
use crate::{load, serve};

/// For the JSON report.
#[derive(Default)]
pub struct Facts {
    pub model: Value,
    pub fits: Value,
}

pub fn look(settings: &mut Settings, threads: usize, limits: Option<&Limits>) -> (Vec<Section>, Facts) {
    let mut section = Section::new("model");
    let mut facts = Facts::default();
    let chosen = match load::chosen(settings) {
        Ok(chosen) => chosen,
        Err(failure) => {
            told(&mut section, "not usable", failure);
            return (vec![section], facts);
        }
    };
    facts.model = describe(&mut section, &chosen, load::codec(settings.text(&KV_TYPE).unwrap_or_default()));
    let mut fits = Section::new("what fits");
    match fit(&mut fits, settings, &chosen, threads, limits) {
        Ok(found) => facts.fits = found,
        Err(failure) => told(&mut fits, "settings", failure),
    }
    (vec![section, fits], facts)
}

fn describe(section: &mut Section, chosen: &Chosen, codec: Codec) -> Value {
    let (config, weights) = (&chosen.config, chosen.bytes);
    if let Some(note) = &chosen.note {
        section.add(Status::Warn, "name", note.clone());
    }
    let place = chosen.place();
    let at = place.as_ref().map_or("compiled into the binary".into(), |place| format!("in {place}"));
    section.add(Status::Ok, "found", format!("{}, {at}", chosen.name));
    let family = format!("{:?}", config.family).to_lowercase();
    section.add(
        Status::Ok,
        "family",
        format!(
            "{family}, {:.1} M parameters in {}, context of {} tokens",
            config.parameters() as f64 / 1e6,
            count(config.layers, "layer"),
            thousands(config.context as u64)
        ),
    );
    section.add(Status::Info, "weights", format!("{} in memory, {}", human(weights), chosen.kind()));
    let token = config.layout_of(codec).token_bytes() as u64;
    section.add(Status::Info, "KV", format!("{} a token in {codec}", human(token)));
    let (vocabulary, chat) = text(section, chosen);
    json!({
        "name": chosen.name,
        "path": place,
        "family": family,
        "parameters": config.parameters(),
        "layers": config.layers,
        "context": config.context,
        "vocabulary": config.vocab,
        "tokenizer_vocabulary": vocabulary,
        "chat": chat,
        "weights": chosen.kind(),
        "weight_bytes": weights,
        "kv_type": codec.to_string(),
        "kv_bytes_per_token": token,
    })
}

/// Tokens that the tokenizer knows, and whether there is a chat template.
fn text(section: &mut Section, chosen: &Chosen) -> (Option<usize>, bool) {
    let text = match chosen.text() {
        Ok(text) => text,
        Err(failure) => {
            told(section, "tokenizer", failure);
            return (None, false);
        }
    };
    let (tokens, known) = (text.tokenizer.vocab_size(), chosen.config.vocab);
    if tokens > known {
        section.advise(
            Status::Warn,
            "tokenizer",
            format!("{}, but the model knows {} only", count(tokens, "token"), thousands(known as u64)),
            "if they do not belong together, fetch both from one repository",
        );
    } else {
        section.add(Status::Ok, "tokenizer", count(tokens, "token"));
    }
    match &text.template {
        Ok(_) => section.add(Status::Ok, "chat", "the model brings its template"),
        Err(e) => section.add(Status::Warn, "chat", format!("{e}; chat requests will be refused")),
    }
    (Some(tokens), text.template.is_ok())
}

/// What `kvist serve` with these settings would do.
fn fit(
    section: &mut Section,
    settings: &mut Settings,
    chosen: &Chosen,
    threads: usize,
    limits: Option<&Limits>,
) -> Result<Value> {
    let engine = load::engine_config(settings)?;
    let connections = machine::open_files().map_or(u64::MAX, serve::connections_of);
    let connections = connections.min(settings.count(&MAX_CONNECTIONS) as u64) as usize;
    let codec = load::codec(settings.text(&KV_TYPE).unwrap_or_default());
    let load =
        Load { engine: &engine, codec, threads, replies: settings.count(&REPLY_RAM) as u64, store: 0, connections };
    let (config, weights, free) = (&chosen.config, chosen.bytes, machine::free_memory());
    let asked = settings.number(&CTX).map(|n| n as usize);
    let default = *settings.origin(&KV_RAM) == Origin::Default;

    let largest = free.map(|free| memory::fitting(config, weights, None, &load, free.bytes));
    let longest = largest.map(|kv_ram| memory::longest(config, &load, kv_ram).min(config.context));
    let planned = memory::budget(settings, config, weights, &load, free);
    let shown = match &planned {
        Ok(budget) => Some(budget.clone()),
        Err(_) => settings.number(&KV_RAM).and_then(|kv| memory::plan(config, weights, kv, asked, &load).ok()),
    };
    match planned {
        Ok(budget) => verdicts(section, &budget, free, default),
        Err(failure) => told(section, "memory", failure),
    }
    addresses(section, shown.as_ref());
    if let (Some(kv_ram), Some(tokens @ 1..)) = (largest, longest) {
        let all = if tokens == config.context { ", the model's" } else { "" };
        let held = memory::held(config, &load, kv_ram);
        let text = format!("--ctx {tokens}{all}; --kv-ram {}: {} tokens", exact(kv_ram), thousands(held));
        section.add(Status::Info, "at most", text);
    }
    let speed = limits.map(|limits| bounds(chosen, limits));
    if let Some((decode, prefill)) = speed {
        let text = format!("{} tokens/s of one reply, {} tokens/s of a prompt", rounded(decode), rounded(prefill));
        let busy = if limits.is_some_and(Limits::is_valid) { "" } else { " (by a measurement that was disturbed)" };
        section.add(Status::Info, "speed", format!("{text}, at most: attention comes on top{busy}"));
    }
    Ok(json!({
        "free": free.map(|free| free.bytes),
        "total": shown.as_ref().map(Budget::total),
        "weights": weights,
        "kv": shown.as_ref().map(|b| b.kv),
        "buffers": shown.as_ref().map(|b| b.buffers),
        "replies": load.replies,
        "connections": shown.as_ref().map(|b| b.connections),
        "context": shown.as_ref().map(|b| b.context),
        "context_limit": shown.as_ref().map(|b| b.limit.name()),
        "kv_tokens": shown.as_ref().map(Budget::capacity),
        "largest_context": longest,
        "largest_kv_ram": largest,
        "decode_tokens_per_second_bound": speed.map(|(decode, _)| decode),
        "prefill_tokens_per_second_bound": speed.map(|(_, prefill)| prefill),
    }))
}

fn verdicts(section: &mut Section, budget: &Budget, free: Option<Free>, default: bool) {
    let free = free.map_or(String::new(), |free| format!(" of {} free", human(free.bytes)));
    section.add(Status::Ok, "memory", format!("{}{free}", budget.arithmetic()));
    let by = if default { ", the default here" } else { "" };
    let tokens = thousands(budget.capacity() as u64);
    section.add(Status::Ok, "KV cache", format!("--kv-ram {}{by}: {tokens} tokens", exact(budget.kv)));
    let context = thousands(budget.context as u64);
    match budget.limit {
        Limit::Model => section.add(Status::Ok, "context", format!("{context} tokens, the model's")),
        Limit::Asked => section.add(Status::Ok, "context", format!("{context} tokens, by --ctx")),
        Limit::Pool => section.advise(
            Status::Warn,
            "context",
            format!("{context} tokens: --kv-ram holds no more"),
            "a larger --kv-ram holds longer conversations",
        ),
    }
}

/// A limit of the address space would end the program in the middle of loading.
fn addresses(section: &mut Section, budget: Option<&Budget>) {
    /// The program, its threads' stacks and the allocator's arenas.
    const OWN: u64 = 1 << 30;
    let (Some(space), Some(budget)) = (machine::address_space(), budget) else { return };
    let needed = budget.total().saturating_add(OWN);
    if space < needed {
        let text = format!("limited to {}, and about {} are needed", human(space), human(needed));
        section.advise(Status::Fail, "addresses", text, "ulimit -v unlimited");
    }
}

/// Tokens per second of one reply and of a prompt, at most: what reading the weights once for each token takes, and
/// what their arithmetic takes.
fn bounds(chosen: &Chosen, limits: &Limits) -> (f64, f64) {
    let c = &chosen.config;
    let (all, table) = (c.parameters() as f64, (c.vocab * c.hidden) as f64);
    // Of the embedding a token reads one row; where it is the output matrix as well, all of it.
    let active = if c.tied { all } else { all - table };
    let bytes = chosen.bytes as f64 * active / all;
    let cached = Cores::of_machine().cache.is_some_and(|cache| bytes < cache as f64);
    let floor = |bytes: f64, weights: f64| limits.floor(bytes, (2.0 * weights, chosen.bytes as f64 / all), 0.0);
    // Only the prompt's last token needs logits.
    (1.0 / floor(if cached { 0.0 } else { bytes }, active), 1.0 / floor(0.0, active - table))
}

/// Two digits that mean something.
fn rounded(rate: f64) -> String {
    if rate < 10.0 { format!("{rate:.1}") } else { thousands(rate.round() as u64) }
}
