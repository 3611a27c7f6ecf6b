//! The order in which chunks go when room is needed: one for every tier, so that what RAM keeps, what the disk keeps and
//! what is simulated cannot drift apart. Nothing here learns, reads a clock or decides when room is needed; what chunks
//! are worth is told ([`Valuation`]), and everything is a function of what was told.

mod class;
pub mod cost;
mod guards;
mod leaves;
mod order;
mod queue;
mod worths;

pub use class::Class;
pub use guards::Guards;
pub use leaves::{Leaf, Leaves};
pub use order::Order;
pub use queue::{Place, Queue};
pub use worths::{AGES, Valuation, Worths, edge, interval};
