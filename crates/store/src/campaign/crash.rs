use super::Report;
use super::world::{Durable, World};
use crate::random::Random;
use crate::state::Canary;
use crate::vfs::Loss;

/// Steps of a workload.
const STEPS: usize = 70;

/// Plays a workload, and then every moment of it as the one when power fails, in each of the ways in which a disk may lose
/// what was not synced.
pub fn crash(seed: u64) -> Result<Report, String> {
    crash_with(seed, Canary::None, false)
}

/// As [`crash`], with a store that is broken on purpose, or a disk whose syncs do nothing.
pub fn crash_with(seed: u64, canary: Canary, lying: bool) -> Result<Report, String> {
    let failed = |what: String| format!("seed {seed}: {what}");
    let mut world = World::new(seed, canary);
    if lying {
        world.vfs.skip_syncs();
    }
    world.open().map_err(|e| failed(e.to_string()))?;
    // What is durable whenever a step has ended, and how many changes there were by then.
    let mut moments: Vec<(usize, Durable)> = vec![(world.vfs.changes(), world.durable())];
    for step in 0..STEPS {
        world.step().map_err(|e| failed(format!("step {step}: {e}")))?;
        if step + 1 == STEPS {
            world.flush();
        }
        moments.push((world.vfs.changes(), world.durable()));
    }
    world.count();
    // Closing is a step like others.
    world.store = None;
    let last = moments.last().expect("a step").1.clone();
    moments.push((world.vfs.changes(), last));
    let mut rng = Random::new(seed ^ 0x6372_6173);
    let vfs = world.vfs.clone();
    for changes in 0..=vfs.changes() {
        let expected = expected(&moments, changes);
        for loss in Loss::EVERY {
            let state = rng.word();
            let here = |e: String| failed(format!("crash after change {changes} of {}, {loss:?}: {e}", vfs.changes()));
            let store = world.check_after(vfs.crash(changes, loss, state), &expected, true).map_err(here)?;
            drop(store);
        }
    }
    Ok(world.report)
}

/// What must be found if power fails behind a change: what is durable before and after the step that it belongs to.
fn expected(moments: &[(usize, Durable)], changes: usize) -> Durable {
    let after = moments.partition_point(|(n, _)| *n < changes).min(moments.len() - 1);
    let (n, end) = &moments[after];
    if *n == changes || after == 0 {
        // Several steps may end here without a change between them; the last of them promised the most.
        let last = moments.partition_point(|(n, _)| *n <= changes).max(1) - 1;
        return if *n == changes { moments[last].1.clone() } else { Durable::default() };
    }
    let start = &moments[after - 1].1;
    let mut both = end.clone();
    for (i, chunks) in both.chunks.iter_mut().enumerate() {
        *chunks = (*chunks).min(start.chunks.get(i).copied().unwrap_or(0));
    }
    both.notes.retain(|key, version| match start.notes.get(key) {
        Some(before) => {
            *version = (*version).min(*before);
            true
        }
        None => false,
    });
    for (now, before) in both.forgotten.iter_mut().zip(start.forgotten) {
        // While a domain is being forgotten, both are right.
        if *now != before {
            *now = false;
        }
    }
    both
}
