//! `kvist cache verify|gc|pin|forget`.

use std::time::Duration;

use clap::ArgMatches;
use kvist_base::CHUNK;
use kvist_server::{CARRIED_NAME, OnOverflow, Owner};
use kvist_store::PIN_MOST;

use super::ask;
use super::place::{Place, bind, domain_name, unknown};
use crate::failure::{Failure, Result};
use crate::progress::Progress;
use crate::settings::Settings;
use crate::size::{count, human, thousands};
use crate::store::PUBLIC_NAME;
use crate::{complain, say};

/// For what was changed to be on the disk.
const FLUSH: Duration = Duration::from_secs(30);
/// Bad chunks that are told one by one.
const TOLD: u64 = 20;

/// Reads everything beside whoever writes it, and changes nothing, so it can be stopped at any time.
pub fn verify(mut settings: Settings) -> Result<()> {
    let place = Place::find(&mut settings, false)?;
    let (store, restored) = place.look()?;
    let chunk = store.config().chunk_bytes() as u64;
    let mut bad = Vec::new();
    let found = {
        let progress = Progress::new("verifying");
        store.verify(|checked| {
            progress.bytes(checked.done * chunk, checked.total * chunk);
            if !checked.good && (bad.len() as u64) < TOLD {
                bad.push((checked.domain, checked.token));
            }
        })
    };
    for (domain, token) in &bad {
        complain(&format!("bad: {domain}, tokens {token} to {} of a path", token + CHUNK));
    }
    if found.bad > TOLD {
        complain(&format!("bad: {} more", found.bad - TOLD));
    }
    let tokens = thousands(found.good * CHUNK as u64);
    let mut text = format!(
        "{tokens} tokens in {} verified in {}\n",
        count(found.good as usize, "chunk"),
        place.wish.dir.display()
    );
    if restored.foreign > 0 {
        text.push_str(&format!("not read: {} of other models, settings or keys\n", human(restored.foreign)));
    }
    if restored.dropped > 0 {
        let records = count(restored.dropped as usize, "record");
        text.push_str(&format!(
            "left out: {records} damaged, incomplete or forgotten; a process that was killed leaves some\n"
        ));
    }
    say(&text)?;
    if restored.keys_lost {
        return Err(Failure::new(
            "the table of keys is damaged: what was sealed under it is lost",
            "kvist cache gc removes it",
        ));
    }
    match found.bad {
        0 => Ok(()),
        n => Err(Failure::new(
            format!("{} cannot be read or does not verify", count(n as usize, "chunk")),
            "nothing wrong is served: they are computed again when they are needed; check the disk",
        )),
    }
}

pub fn gc(matches: &ArgMatches, mut settings: Settings) -> Result<()> {
    let place = Place::find(&mut settings, matches.get_flag("foreign"))?;
    let store = place.take()?;
    let foreign = matches.get_flag("foreign");
    let removed = if foreign { store.gc() } else { store.compact() };
    let removed =
        removed.map_err(|e| Failure::new(format!("--kv-dir {}: {e}", place.wish.dir.display()), "check the disk"))?;
    let stats = store.stats();
    let mut text = format!("{} removed, {} kept in {}\n", human(removed), human(stats.bytes), place.wish.dir.display());
    if stats.foreign > 0 {
        let rest = human(stats.foreign);
        text.push_str(&format!("{rest} of other models, settings or keys stay: --foreign removes them\n"));
    }
    say(&text)
}

pub fn pin(matches: &ArgMatches, mut settings: Settings) -> Result<()> {
    let body = ask::body(matches)?;
    let place = Place::find(&mut settings, true)?;
    let store = place.take()?;
    let tenant = matches.get_one::<String>("tenant").map(String::as_str);
    let Owner { domain, name } = bind(&store, tenant)?;
    let owner = Owner { domain, name: name.clone() };
    let (_, asked) = ask::tokens(&place, &settings, &store, owner, OnOverflow::Error, &body)?;
    let ids = &asked.ids[..];
    if matches.get_flag("unpin") {
        let pinned: Vec<_> = store.pins(domain).into_iter().filter(|path| ids.starts_with(path)).collect();
        if pinned.is_empty() {
            return Err(Failure::new(
                format!("no part of these {} tokens is pinned for {name}", ids.len()),
                "kvist cache ls shows what is",
            ));
        }
        for path in &pinned {
            store.pin(domain, path, false);
        }
        flush(&store)?;
        return say(&format!("{} of {name} unpinned\n", count(pinned.len(), "path")));
    }
    let here = store.probe(domain, ids, 0);
    if here == 0 {
        return Err(Failure::new(
            format!("nothing of these {} tokens is kept for {name}", ids.len()),
            "send the prompt to the server first; kvist cache explain says where it parts from what is kept",
        ));
    }
    if store.pin(domain, &ids[..here], true) == 0 {
        return Err(Failure::new(
            format!(
                "{} tokens are too many to be pinned: {} at most",
                thousands(here as u64),
                thousands(PIN_MOST as u64)
            ),
            "pin the beginning that prompts share",
        ));
    }
    flush(&store)?;
    say(&format!(
        "{} of {} tokens pinned for {name}: the disk keeps them until --unpin, and keeps them across restarts\n\
         RAM does not: a server evicts them there as any others, and loads them again\n",
        thousands(here as u64),
        thousands(ids.len() as u64)
    ))
}

fn flush(store: &kvist_store::Store) -> Result<()> {
    if store.flush(FLUSH) {
        return Ok(());
    }
    let why = store.stats().degraded.unwrap_or_else(|| "the disk takes too long".into());
    Err(Failure::new(format!("it could not be written: {why}"), "make room on the disk, and check its rights"))
}

/// Destroys a tenant's key. Of whichever model, what was sealed under it can never be read again.
pub fn forget(matches: &ArgMatches, mut settings: Settings) -> Result<()> {
    let tenant = matches.get_one::<String>("tenant").map_or("", String::as_str);
    let place = Place::find(&mut settings, false)?;
    let store = place.take()?;
    let known = store.domains();
    let of_tenant = domain_name(Some(tenant));
    let special = [domain_name(None), PUBLIC_NAME.to_owned()].iter().any(|name| name == tenant);
    let name = if special && !known.contains(&of_tenant) { tenant.to_owned() } else { of_tenant };
    let fails =
        |e: std::io::Error| Failure::new(format!("the key of {name} could not be destroyed: {e}"), "check the disk");
    if !known.contains(&name) {
        return Err(unknown(&name, &known));
    }
    // What was carried over a cut has a key of its own.
    let carried = format!("{name}{CARRIED_NAME}");
    for name in known.iter().filter(|known| known.starts_with(&carried)).chain([&name]) {
        store.forget(name).map_err(fails)?;
    }
    say(&format!(
        "the key of {name} is destroyed: what it sealed, of any model, can never be read again\n\
         kvist cache gc frees the space\n"
    ))
}
