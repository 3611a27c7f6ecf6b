//! The machine, its limits and the instruction sets.

use kvist_kernels::Isa;
use serde_json::{Value, json};

use super::report::{Section, Status};
use crate::machine::{self, Cores};
use crate::serve;
use crate::settings::keys::{MAX_CONNECTIONS, THREADS};
use crate::settings::{Origin, Settings};
use crate::size::{count, human, thousands};

pub fn look(settings: &Settings, isa: Isa) -> (Section, Value) {
    let mut section = Section::new("machine");
    let cores = cpu(&mut section, settings);
    let isas = paths(&mut section, isa);
    let memory = memory(&mut section);
    let huge = huge_pages(&mut section);
    let limits = limits(&mut section, settings);
    let facts = json!({
        "cpu": machine::cpu(),
        "cores": cores,
        "isa": isas,
        "memory": memory,
        "transparent_huge_pages": huge,
        "limits": limits,
    });
    (section, facts)
}

fn cpu(section: &mut Section, settings: &Settings) -> Value {
    let cores = Cores::of_machine();
    let allowed = machine::threads();
    let online = cores.online.unwrap_or(allowed);
    let why = match cores.affinity {
        Some(affinity) if allowed < affinity => ", by the cgroup's quota",
        Some(_) if allowed < online => ", by the affinity mask",
        _ => "",
    };
    let nodes = cores.numa_nodes.filter(|n| *n > 1).map_or(String::new(), |n| format!(", {n} NUMA nodes"));
    let name = machine::cpu().unwrap_or("unknown".into());
    section.add(Status::Info, "CPU", format!("{name}: {allowed} of {}{why}{nodes}", count(online, "core")));
    let asked = settings.number(&THREADS).filter(|_| *settings.origin(&THREADS) != Origin::Default);
    if let Some(threads) = asked.filter(|n| *n > allowed as u64) {
        section.advise(
            Status::Warn,
            "threads",
            format!("--threads {threads}, but {} may be used: they will wait for each other", count(allowed, "core")),
            format!("--threads {allowed}, or leave it out"),
        );
    }
    if cores.numa_nodes.is_some_and(|n| n > 1) {
        section.advise(
            Status::Warn,
            "NUMA",
            "memory of other nodes is read more slowly",
            "bind each server to one node: numactl --cpunodebind=0 --membind=0 kvist serve",
        );
    }
    json!({
        "online": cores.online,
        "affinity": cores.affinity,
        "allowed": allowed,
        "numa_nodes": cores.numa_nodes,
        "last_level_cache_bytes": cores.cache,
    })
}

fn paths(section: &mut Section, chosen: Isa) -> Value {
    let best = Isa::detect();
    let mut all = Vec::new();
    for isa in Isa::ALL {
        let (name, missing) = (isa.to_string(), isa.missing());
        if !missing.is_empty() {
            section.add(Status::Info, &name, format!("not on this CPU: it lacks {}", missing.join(", ")));
        } else if isa != chosen {
            let why = if isa == best { "faster, but --isa says otherwise" } else { "slower" };
            section.add(Status::Info, &name, format!("runs here, too; {why}"));
        } else if isa == Isa::Portable && best == isa && cfg!(target_arch = "x86_64") {
            section.advise(
                Status::Warn,
                &name,
                "used: this CPU, or what a virtual machine shows of it, has no AVX2",
                "in a virtual machine, let it see the host's CPU (QEMU: -cpu host)",
            );
        } else {
            section.add(Status::Ok, &name, "used");
        }
        all.push(json!({"name": name, "available": missing.is_empty(), "chosen": isa == chosen, "missing": missing}));
    }
    all.into()
}

fn memory(section: &mut Section) -> Value {
    let (total, free) = (machine::total_memory(), machine::free_memory());
    let limit = machine::cgroup_limit().filter(|limit| total.is_none_or(|total| *limit < total));
    let of = limit.map_or(String::new(), |limit| format!(", {} by the cgroup's limit", human(limit)));
    match (free, total) {
        (Some(free), Some(total)) => {
            section.add(Status::Ok, "memory", format!("{} free of {}{of}", human(free.bytes), human(total)));
        }
        _ => section.add(Status::Warn, "memory", "the system does not tell; what fits is not checked"),
    }
    json!({"total": total, "free": free.map(|free| free.bytes), "cgroup_limit": limit})
}

fn huge_pages(section: &mut Section) -> Value {
    let mode = machine::huge_pages();
    match mode.as_deref() {
        Some("never") => section.advise(
            Status::Warn,
            "huge pages",
            "switched off: reading weights and cache takes more page walks",
            "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        Some(mode) => section.add(Status::Ok, "huge pages", format!("transparent, {mode}")),
        None => {}
    }
    json!(mode)
}

fn limits(section: &mut Section, settings: &Settings) -> Value {
    let (files, space) = (machine::open_files(), machine::address_space());
    let asked = settings.count(&MAX_CONNECTIONS) as u64;
    match files {
        Some(files) if serve::connections_of(files) < asked => section.advise(
            Status::Warn,
            "open files",
            format!(
                "{} at once: {} connections instead of {}",
                thousands(files),
                thousands(serve::connections_of(files)),
                thousands(asked)
            ),
            format!("ulimit -n {}", asked + serve::OWN_FILES),
        ),
        _ => {
            let words = files.map_or("no limit".into(), |files| format!("{} at once", thousands(files)));
            section.add(Status::Ok, "open files", format!("{words}: enough for {} connections", thousands(asked)));
        }
    }
    json!({"open_files": files, "address_space": space})
}
