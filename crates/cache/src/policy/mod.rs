//! Who goes first when room is needed. Shared by the tree, the tiers below it and the replay of traces; nothing here
//! reads a clock, and everything is a function of what was told before.
//!
//! - [`Returns`] learns which chunks come back, and when: the default.
//! - [`Queue`] orders what may be evicted, by class and last use, so that a victim is found among the ends of classes.
//! - [`Windows`] says how far into the queue of waiting requests to look.

mod ages;
pub mod cost;
mod facts;
mod odds;
mod order;
mod queue;
mod returns;
#[cfg(test)]
mod tests;
mod window;

pub use facts::Facts;
pub use order::Order;
pub use queue::{Place, Queue};
pub use returns::{Class, End, Returns, Visit};
pub use window::Windows;
