//! Tests of the whole program, run as a child process.
#![cfg(unix)]

mod child;
mod cli;
mod readme;
mod serve;
