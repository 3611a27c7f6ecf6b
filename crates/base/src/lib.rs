//! Words that every other crate shares: ids, dtypes, the chunk layout table, the step plan and the traits
//! at the engine's borders ([`Executor`], [`Residency`], [`Tier`], [`Constraint`], [`Clock`]), and the
//! order of [`eviction`] that all tiers share. Standard library only, no I/O, nothing that learns.
#![forbid(unsafe_code)]

mod clock;
mod constraint;
pub mod eviction;
mod ids;
mod layout;
mod plan;
mod tier;
mod window;

pub use clock::{Clock, ManualClock, Micros, SystemClock};
pub use constraint::{Allowed, Constraint};
pub use ids::{CHUNK, ChunkId, DomainId, SEGMENT, TokenId, low_mask};
pub use layout::{ChunkLayout, Codec, Dtype, LayerKind, LayerLayout};
pub use plan::{
    AllResident, Executor, ExecutorInfo, Gone, OpenPool, Prepare, Residency, Row, RowOutcome, Run, RunList, Seal, Slot,
    StepCounters, StepOutput, StepPlan,
};
pub use tier::{For, Found, Load, LoadId, LoadState, Tier};
