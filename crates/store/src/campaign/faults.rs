use super::Report;
use super::world::World;
use crate::state::Canary;
use crate::vfs::{Fault, FaultKind, Loss};

const STEPS: usize = 40;

/// Plays a workload once to count its operations, and then again with each of them failing, in each way, once and from then
/// on. Whatever happens, what is served is right; when the fault is over, saving works again; and a crash after it finds
/// what was durable.
pub fn faults(seed: u64) -> Result<Report, String> {
    faults_with(seed, Canary::None)
}

/// As [`faults`], with a store that is broken on purpose.
pub fn faults_with(seed: u64, canary: Canary) -> Result<Report, String> {
    let mut report = Report::default();
    let operations = play(seed, canary, None, &mut report)?;
    for at in 0..operations {
        for kind in [FaultKind::Eio, FaultKind::Enospc, FaultKind::Short, FaultKind::Eintr] {
            for sticky in [false, true] {
                let fault = Fault { at, kind, sticky };
                play(seed, canary, Some(fault), &mut report).map_err(|e| format!("seed {seed}, {fault:?}: {e}"))?;
            }
        }
    }
    Ok(report)
}

/// Operations that there were before everything was well again.
fn play(seed: u64, canary: Canary, fault: Option<Fault>, report: &mut Report) -> Result<u64, String> {
    let mut world = World::new(seed, canary);
    world.vfs.inject(fault);
    for _ in 0..STEPS {
        if world.store.is_none() && world.open().is_err() {
            world.report.unopened += 1;
            world.vfs.advance(1_000_000);
            continue;
        }
        world.step()?;
    }
    let operations = world.vfs.operations();
    world.vfs.inject(None);
    world.vfs.advance(60_000_000);
    if world.store.is_none() {
        world.open().map_err(|e| format!("still closed: {e}"))?;
    }
    // What waits is written now, and more is taken.
    for _ in 0..20 {
        world.step()?;
        world.flush();
        world.vfs.advance(60_000_000);
    }
    let store = world.store.clone().ok_or("closed")?;
    let stats = store.stats();
    if stats.degraded.is_some() || stats.queued > 0 || stats.panics > 0 {
        return Err(format!("does not recover: {stats:?}"));
    }
    drop(store);
    world.count();
    let durable = world.durable();
    let vfs = world.vfs.clone();
    // What a sync that failed left out may be damaged inside: it need not come, but what does is right.
    for loss in [Loss::All, Loss::Subset] {
        drop(world.check_after(vfs.crash(vfs.changes(), loss, seed), &durable, false)?);
    }
    report.add(&world.report);
    Ok(operations)
}
