//! AttentionStore's experiment (arXiv 2403.19708, section 4): conversations in a closed loop against a small memory over a
//! large disk, and policies for both.
//!
//! The scheduler, the tree, look-ahead and loads are the server's own. Modelled are time ([`Costs`]), the disk
//! ([`Shelf`]: a bounded map of chunks whose loads take turns, written in no time), and users ([`Users`]).

mod paced;
mod run;
mod shelf;
mod users;

pub use paced::Costs;
pub use run::{Experiment, Outcome, Policy, run};
pub use shelf::{Counts, Shelf};
pub use users::Users;
