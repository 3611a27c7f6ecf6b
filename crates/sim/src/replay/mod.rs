//! Requests of a trace against a cache of so many blocks: which share of the blocks that are asked for is there?
//!
//! A request is served in an instant. Its leading blocks that are held are hits, in order up to the first that is not;
//! then all of its blocks are held, and what is too much is evicted. Blocks stand for all before them, as in the traces.

mod generate;
mod policies;
mod table;
mod trace;

pub use generate::{Conversations, generate};
pub use policies::{Hits, Policy, hits, replay};
pub use table::{Line, SIZES, Table};
pub use trace::{Row, Trace};
