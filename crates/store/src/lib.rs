//! The tier below RAM: chunks on disk, in append-only segments, encrypted, found by their tokens, and served right or not at
//! all.
//!
//! A [`Store`] takes sealed chunks and writes them behind ([`Store::save`]), says what of a path it has ([`Store::probe`])
//! and reads it back layer by layer ([`Store::load`]). Whatever happens to the disk, to the files or to the process, a slice
//! that comes out is the one that went in under the same tokens, domain and fingerprint, or does not come; and what was
//! said to be durable is found again. `docs/store-format.md` draws the bytes.
#![forbid(unsafe_code)]
#![deny(clippy::big_endian_bytes, clippy::host_endian_bytes, reason = "files are read on other machines")]

mod admin;
mod append;
pub mod campaign;
mod config;
mod crypto;
mod format;
mod index;
mod keys;
mod load;
mod look;
mod notes;
mod random;
mod reclaim;
mod recover;
mod save;
mod segment;
mod state;
mod stats;
mod store;
mod tier;
mod value;
pub mod vfs;

pub use admin::{Checked, Entry, Verified};
pub use config::{Encryption, Fingerprint, OpenError, StoreConfig};
pub use load::{Load, Lost, Priority};
pub use look::{Foreign, Nearest, fingerprints, is_store};
pub use notes::NOTE_MOST;
pub use save::{Saved, Turn};
#[doc(hidden)]
pub use state::Canary;
pub use stats::{Evictions, Restored, StoreStats};
pub use store::{PIN_MOST, Store};
pub use tier::{StoreTier, TierSums};
pub use vfs::{RealVfs, SimVfs, SlowVfs, Vfs};
