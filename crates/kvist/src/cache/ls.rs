//! `kvist cache ls`: what a store holds.

use std::fmt::Write as _;

use clap::ArgMatches;
use kvist_server::CARRIED_NAME;
use kvist_store::{Encryption, Entry, Foreign, Store};
use serde_json::{Value, json};

use super::place::Place;
use crate::failure::Result;
use crate::say;
use crate::settings::Settings;
use crate::size::{count, human, thousands};

/// Conversations of a tenant that are listed where nobody asks for all.
const SHOWN: usize = 20;

pub fn run(matches: &ArgMatches, mut settings: Settings) -> Result<()> {
    let place = Place::find(&mut settings, false)?;
    let (store, restored) = place.look()?;
    let listing = Listing {
        dir: place.wish.dir.display().to_string(),
        plain: place.wish.encryption == Encryption::Off,
        budget: place.wish.budget,
        domains: domains(&store),
        foreign: store.foreign(),
        store: &store,
    };
    if matches.get_flag("json") {
        return say(&format!("{:#}\n", listing.json()));
    }
    let mut text = listing.render(if matches.get_flag("all") { usize::MAX } else { SHOWN });
    if place.unread {
        text.push_str(
            "\nthe model's files were not read: explain tells whether they are still those that this is of\n",
        );
    }
    if restored.keys_lost {
        text.push_str("\nthe table of keys is damaged: what was sealed under it is lost\n");
    }
    say(&text)
}

struct Listing<'a> {
    dir: String,
    plain: bool,
    budget: u64,
    domains: Vec<Domain>,
    foreign: Vec<Foreign>,
    store: &'a Store,
}

/// What one tenant has.
struct Domain {
    name: String,
    /// Chunks, each once, however many conversations begin with it.
    chunks: usize,
    conversations: Vec<Entry>,
}

fn domains(store: &Store) -> Vec<Domain> {
    let mut domains: Vec<Domain> =
        store.domains().into_iter().map(|name| Domain { name, chunks: 0, conversations: Vec::new() }).collect();
    for entry in store.entries() {
        let Some(domain) = domains.iter_mut().find(|domain| domain.name == entry.domain) else { continue };
        // They come in order of their tokens, so what one shares with any before it, it shares with the last.
        let same_tree = |last: &&Entry| last.variant == entry.variant;
        let shared = domain.conversations.last().filter(same_tree).map_or(0, |last| {
            let same = last.tokens.iter().zip(&entry.tokens).take_while(|(a, b)| a == b).count();
            same / kvist_base::CHUNK
        });
        domain.chunks += entry.chunks.saturating_sub(shared);
        domain.conversations.push(entry);
    }
    // Cuts of which everything was evicted have keys until the next start: nobody asks for them.
    domains.retain(|domain| !domain.conversations.is_empty() || !domain.name.contains(CARRIED_NAME));
    domains.iter_mut().for_each(|domain| domain.conversations.sort_by_key(|entry| entry.idle));
    domains
}

impl Listing<'_> {
    fn chunk(&self) -> u64 {
        self.store.config().chunk_bytes() as u64
    }

    fn bytes(&self, chunks: usize) -> u64 {
        chunks as u64 * self.chunk()
    }

    fn json(&self) -> Value {
        let stats = self.store.stats();
        let conversation = |entry: &Entry| {
            json!({
                "tokens": entry.tokens.len(),
                "tokens_here": entry.chunks * kvist_base::CHUNK,
                "bytes": self.bytes(entry.chunks),
                "idle_seconds": entry.idle / 1_000_000,
                "pinned": entry.pinned,
            })
        };
        let domain = |domain: &Domain| {
            json!({
                "name": domain.name,
                "tokens": domain.chunks * kvist_base::CHUNK,
                "bytes": self.bytes(domain.chunks),
                "conversations": domain.conversations.iter().map(conversation).collect::<Vec<_>>(),
            })
        };
        let foreign =
            |f: &Foreign| json!({"text": f.text, "other_key": f.other_key, "segments": f.segments, "bytes": f.bytes});
        json!({
            "object": "kvist.store",
            "dir": self.dir,
            "encrypted": !self.plain,
            "model": self.store.config().fingerprint.text,
            "budget": self.budget,
            "bytes": stats.bytes,
            "live": stats.live,
            "dead": stats.dead,
            "tokens": stats.entries * kvist_base::CHUNK as u64,
            "replies_and_pins": stats.notes,
            "domains": self.domains.iter().map(domain).collect::<Vec<_>>(),
            "foreign": self.foreign.iter().map(foreign).collect::<Vec<_>>(),
        })
    }

    fn render(&self, most: usize) -> String {
        let stats = self.store.stats();
        let plain = if self.plain { ", not encrypted" } else { "" };
        let mut out = format!("{} of {} in {}{plain}\n\n", human(stats.bytes), human(self.budget), self.dir);
        let text = &self.store.config().fingerprint.text;
        let _ = writeln!(
            out,
            "{text}: {} tokens in {}, {} to be compacted",
            thousands(stats.entries * kvist_base::CHUNK as u64),
            human(stats.live),
            human(stats.dead)
        );
        for domain in &self.domains {
            let tokens = (domain.chunks * kvist_base::CHUNK) as u64;
            let conversations = count(domain.conversations.len(), "conversation");
            let (tokens, bytes) = (thousands(tokens), human(self.bytes(domain.chunks)));
            let _ = writeln!(out, "  {}: {conversations}, {tokens} tokens, {bytes}", label(&domain.name));
            for entry in domain.conversations.iter().take(most) {
                out.push_str(&self.line(entry));
            }
            let more = domain.conversations.len().saturating_sub(most);
            if more > 0 {
                let _ = writeln!(out, "    {} more: --all", thousands(more as u64));
            }
        }
        if !self.foreign.is_empty() {
            let _ = writeln!(
                out,
                "\nnot of this model, these settings or this key; kvist cache gc --foreign removes them:"
            );
        }
        for f in &self.foreign {
            let what = if f.text.is_empty() { "damaged files" } else { &f.text };
            let key = if f.other_key { ", under another key" } else { "" };
            let same =
                if f.text == *text && !f.other_key { ", with other weights or another configuration" } else { "" };
            let _ =
                writeln!(out, "  {what}{key}{same}: {} in {}", human(f.bytes), count(f.segments as usize, "segment"));
        }
        out
    }

    fn line(&self, entry: &Entry) -> String {
        let tokens = entry.chunks * kvist_base::CHUNK;
        let mut line = format!(
            "    {:>9} tokens {:>10}  {:>12}",
            thousands(tokens as u64),
            human(self.bytes(entry.chunks)),
            ago(entry.idle / 1_000_000)
        );
        if tokens < entry.tokens.len() {
            let _ = write!(line, ", {} evicted or unreadable", thousands((entry.tokens.len() - tokens) as u64));
        }
        if entry.variant != [0; 16] {
            line.push_str(", carried over a cut");
        }
        if entry.pinned {
            line.push_str(", pinned");
        }
        line + "\n"
    }
}

/// A domain's name, short where it is what a conversation kept over a cut.
fn label(name: &str) -> String {
    match name.split_once(CARRIED_NAME) {
        Some((owner, digest)) => format!("{owner}, carried over a cut ({:.8})", digest),
        None => name.to_owned(),
    }
}

/// How long ago something was, in the largest unit that fits.
fn ago(seconds: u64) -> String {
    let units = [(86_400, "d"), (3600, "h"), (60, "min")];
    let unit = units.iter().find(|(unit, _)| seconds >= *unit);
    unit.map_or(format!("{seconds} s ago"), |(unit, name)| format!("{} {name} ago", seconds / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_one_unit() {
        assert_eq!([0, 59, 60, 7300, 200_000].map(ago), ["0 s ago", "59 s ago", "1 min ago", "2 h ago", "2 d ago"]);
    }
}
