//! A simulated executor, clock and workload around the production scheduler and tree. No second scheduler: what is
//! simulated is what serves.
#![forbid(unsafe_code)]

pub mod campaign;
mod constraint;
mod executor;
mod naive;
mod random;
pub mod replay;
pub mod sessions;
mod tier;
mod workload;

pub use constraint::SimConstraint;
pub use executor::{CostModel, SimExecutor, SimModel};
pub use random::Random;
pub use tier::{Manners, SimTier};
pub use workload::{Arrival, Workload};
