//! What may come next, worked out beside the step that computes the logits.

use std::thread::{Builder, scope};

use kvist_base::Constraint;

/// Constraints that one thread takes on before another one is started.
const SHARE: usize = 8;
/// Threads at most: they take cores from the step.
const THREADS: usize = 4;
/// Stack of a thread that works on a constraint, since that recurses over what a client wrote. Only what is used of it
/// takes memory.
pub const STACK: usize = 64 << 20;

/// Runs `work`, and prepares the constraints on other threads meanwhile. Where no thread can be had, `work` alone is
/// done: what is not prepared is worked out when it is asked for.
pub fn beside<R>(mut constraints: Vec<&mut Box<dyn Constraint>>, work: impl FnOnce() -> R) -> R {
    if constraints.is_empty() {
        return work();
    }
    let share = SHARE.max(constraints.len().div_ceil(THREADS));
    scope(|scope| {
        for part in constraints.chunks_mut(share) {
            let prepare = || part.iter_mut().for_each(|constraint| constraint.prepare());
            let _ = Builder::new().name("kvist-masks".into()).stack_size(STACK).spawn_scoped(scope, prepare);
        }
        work()
    })
}
