//! The scheduler: events in ([`Engine::submit`], [`Engine::cancel`]), pure step plans out ([`Engine::plan`]), results
//! in ([`Engine::complete`]), effects out ([`Engine::take_effects`]). It does no I/O, reads no clock, spawns nothing
//! and never sees a tensor, so the simulator drives the very code that serves.
#![forbid(unsafe_code)]

mod adjust;
mod assemble;
mod budget;
mod carry;
mod complete;
mod config;
mod constraint;
mod draws;
mod engine;
mod fairness;
mod plan;
mod prospect;
mod queue;
mod request;
mod sampler;
mod sequence;
mod softmax;
mod tier;
mod want;

pub use adjust::{Edits, Seen, adjust};
pub use assemble::{Assembler, Place};
pub use carry::{Carry, CarrySource};
pub use config::EngineConfig;
pub use draws::Run;
pub use engine::{Engine, EngineStats, TierStats};
pub use prospect::Prospect;
pub use request::{Effect, Finish, Refusal, Request, RequestId, Sampling, Timings, TokenLogprobs, Usage};
pub use sampler::{logprobs, sample};
pub use tier::EXTENT;
