//! HTTP at the edge: OpenAI-compatible endpoints over the engine, streaming, keys, limits, metrics.
//!
//! The life of a request: a connection ([`Server::run`]) -> identity (`auth`) -> a checked request (`api`) -> ids
//! (`kvist-text`, off the async threads) -> the engine thread (`runner`) -> effects -> text pieces (`api::assembly`)
//! -> one JSON body or server-sent events.
#![forbid(unsafe_code)]

mod api;
mod app;
mod auth;
mod config;
mod connection;
mod cors;
pub mod explain;
mod fuzzing;
mod keep;
mod limits;
mod log;
mod masks;
mod metrics;
mod page;
mod routes;
mod runner;
mod server;
mod signals;

pub use api::overflow::{CARRIED_NAME, Carried, OnOverflow, Overflow, Owner};
pub use auth::{KeyFileError, Keys, OPERATOR, Tenant};
pub use kvist_text::ToolSetting;

pub use config::{ModelInfo, SamplingDefaults, ServerConfig, TextParts};
pub use keep::{Keeper, recall};
pub use log::{Log, stderr_log};
pub use routes::{Access, paths};
pub use server::{BindError, Server, bind};
pub use signals::shutdown_signal;
