//! Long seeded campaigns against the store's promise: what is served is what was saved under the same tokens, or it is a
//! miss; what was said to be durable is found. The oracle is a function: the bytes of a chunk follow from domain and path.

mod crash;
mod faults;
mod flips;
pub mod fuzz;
mod kill;
mod order;
mod world;

use std::fmt;

pub use crash::{crash, crash_with};
pub use faults::{faults, faults_with};
pub use flips::{Flips, STORE_BITS};
pub use kill::{Victim, inspect};
pub use order::{order, order_with};

/// What a campaign did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// States of the disk, or runs, that were looked at.
    pub states: u64,
    /// Chunks served, each compared.
    pub served: u64,
    /// Chunks that had to be found because they were said to be durable.
    pub durable: u64,
    /// Chunks that were evicted while the workloads ran.
    pub evicted: u64,
    /// Chunks that were not worth the room that they would have taken.
    pub refused: u64,
    /// Bytes copied to make room.
    pub copied: u64,
    /// Notes that had to be found.
    pub notes: u64,
    /// Chunks that were there before damage and not after it.
    pub missed: u64,
    /// Stores that could not be opened, as long as the fault lasted.
    pub unopened: u64,
    /// Times that saving paused.
    pub paused: u64,
}

impl Report {
    pub fn add(&mut self, o: &Report) {
        self.states += o.states;
        self.served += o.served;
        self.durable += o.durable;
        self.evicted += o.evicted;
        self.refused += o.refused;
        self.copied += o.copied;
        self.notes += o.notes;
        self.missed += o.missed;
        self.unopened += o.unopened;
        self.paused += o.paused;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} states, {} chunks served and compared, {} durable ones and ",
            self.states, self.served, self.durable
        )?;
        write!(
            f,
            "{} notes found; {} evicted, {} not admitted, {} bytes copied, ",
            self.notes, self.evicted, self.refused, self.copied
        )?;
        write!(f, "{} missed, {} not opened, {} pauses", self.missed, self.unopened, self.paused)
    }
}
