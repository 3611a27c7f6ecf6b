//! The prefix tree over the KV pool: which slab holds the KV of which tokens, who may match it, who uses it, and what
//! goes first when room is needed. Pure bookkeeping: no tensors, no I/O, no clock, no threads.
//!
//! A node is one chunk of at most [`kvist_base::CHUNK`] tokens on the absolute grid, so nodes never split. Children are
//! ordered by (domain, tokens) and compared by tokens; no hash is used for them, so there is nothing to collide.
#![forbid(unsafe_code)]

#[doc(hidden)]
pub mod campaign;
mod children;
mod claim;
mod cut;
mod evict;
mod integrity;
mod model;
mod nearest;
mod node;
mod open;
mod path;
pub mod policy;
mod publish;
mod tiers;
mod tree;
mod visit;

pub use claim::Claim;
pub use node::NodeId;
pub use path::Path;
pub use publish::Publish;
pub use tiers::Unsaved;
pub use tree::{Cache, CacheConfig, CacheStats};
