//! Long seeded campaigns, for development only: every case is a function of its seed, counts add up over seed ranges
//! in the committed ledger (`LEDGER.md`), and CI runs a small range of the same code as tests.
#![forbid(unsafe_code)]

pub mod bitwise;
mod carried;
pub mod fuzz;
pub mod kill;
pub mod ledger;
pub mod overflow;
pub mod parallel;
pub mod quality;
mod recorder;
pub mod subjects;
