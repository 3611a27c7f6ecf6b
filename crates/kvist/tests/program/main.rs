//! Tests of the whole program, run as a child process.
#![cfg(unix)]

mod cache;
mod child;
mod cli;
mod doctor;
mod gguf;
mod hub;
mod memory;
mod overflow;
mod readme;
mod serve;
mod temp;
