//! What is learnt of who comes back, and how far to look ahead. Shared by the tree and the replay of traces; nothing here
//! reads a clock, and everything is a function of what was told before. The order in which chunks go is
//! [`kvist_base::eviction`], which every tier shares.
//!
//! - [`Returns`] learns which chunks come back, and when, and says what it is worth to hold them.
//! - [`Windows`] says how far into the queue of waiting requests to look.

mod ages;
mod facts;
mod odds;
mod returns;
#[cfg(test)]
mod tests;
mod window;

pub use facts::Facts;
pub use kvist_base::eviction::{Class, Guards, Order, Place, Queue, Valuation, Worths, cost};
pub use returns::{End, Returns, Visit};
pub use window::Windows;
