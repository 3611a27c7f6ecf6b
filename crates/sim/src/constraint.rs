//! A simulated constraint: what may come next is a hash of what came before.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvist_base::{Allowed, Constraint, TokenId};

use crate::random::mix;

/// Over a vocabulary of at most 32 tokens. Now and then nothing may follow, the text may end, or it fails.
pub struct SimConstraint {
    /// A deliberate bug: forks are the same state.
    shared_by_forks: bool,
    state: Arc<AtomicU64>,
    prepared: Option<Next>,
}

#[derive(Clone, Copy)]
struct Next {
    tokens: [u32; 1],
    end: bool,
    complete: bool,
    fails: bool,
}

impl SimConstraint {
    pub fn new(seed: u64, shared_by_forks: bool) -> Self {
        SimConstraint { shared_by_forks, state: Arc::new(AtomicU64::new(seed)), prepared: None }
    }

    fn next(&self) -> Next {
        let hash = mix(self.state.load(Ordering::Relaxed));
        let complete = hash.is_multiple_of(61);
        // About a third of the tokens; none once in a while.
        let tokens = if complete || hash % 67 == 1 { 0 } else { mix(hash) as u32 & mix(hash ^ 1) as u32 };
        Next { tokens: [tokens], end: complete || hash % 7 == 2, complete, fails: hash % 401 == 3 }
    }
}

impl Constraint for SimConstraint {
    fn prepare(&mut self) {
        self.prepared = Some(self.next());
    }

    fn allowed(&mut self) -> Result<Allowed<'_>, String> {
        self.prepare();
        match &self.prepared {
            Some(next) if !next.fails => Ok(Allowed { tokens: &next.tokens, end: next.end }),
            _ => Err("it fails here".into()),
        }
    }

    fn accept(&mut self, token: TokenId) -> Result<(), String> {
        let next = self.prepared.take().ok_or("a token was drawn that nobody asked about")?;
        if next.fails || next.tokens[0] >> token & 1 == 0 {
            return Err(format!("token {token} was drawn but is not allowed"));
        }
        let state = self.state.load(Ordering::Relaxed);
        self.state.store(mix(state ^ mix(u64::from(token) + 7)), Ordering::Relaxed);
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.next().complete
    }

    fn fork(&self) -> Box<dyn Constraint> {
        let state = match self.shared_by_forks {
            true => self.state.clone(),
            false => Arc::new(AtomicU64::new(self.state.load(Ordering::Relaxed))),
        };
        Box::new(SimConstraint { state, ..*self })
    }
}
