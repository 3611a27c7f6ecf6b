//! The command line: settings, `serve`, `run`, `doctor`, `cache`, `bench`, `completions`.
#![forbid(unsafe_code)]

mod bench;
mod cache;
mod chat;
mod cli;
mod doctor;
mod driver;
mod failure;
mod hub;
mod limits;
mod load;
mod machine;
mod memory;
mod model;
mod nearest;
mod page;
mod progress;
mod public;
mod run;
mod serve;
mod settings;
mod size;
mod store;
mod style;

use std::io::{ErrorKind, Write, stderr, stdout};
use std::process::ExitCode;

use clap::ArgMatches;
use clap_complete::Shell;

use failure::{Failure, Result};

fn main() -> ExitCode {
    let matches = match cli::parse(std::env::args_os()) {
        Ok(matches) => matches,
        Err((text, code)) => {
            if code == 0 {
                return finish(say(&text));
            }
            complain(text.trim_end());
            return ExitCode::from(code);
        }
    };
    finish(dispatch(&matches))
}

fn finish(done: Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if failure != Failure::said() {
                complain(&failure.to_string());
            }
            ExitCode::from(failure.code)
        }
    }
}

fn dispatch(matches: &ArgMatches) -> Result<()> {
    match matches.subcommand() {
        Some(("serve", matches)) => serve::run(matches, cli::settings(matches, false)?),
        Some(("run", matches)) => run::run(matches, cli::settings(matches, true)?),
        Some(("cache", matches)) => cache::run(matches),
        Some(("bench", matches)) => bench::run(matches),
        Some(("doctor", matches)) => doctor::run(matches, cli::settings(matches, false)?),
        Some(("completions", matches)) => completions(matches.get_one::<String>("shell").map_or("", String::as_str)),
        _ => unreachable!("clap asks for a subcommand"),
    }
}

fn completions(shell: &str) -> Result<()> {
    let shell: Shell = shell.parse().map_err(|e: String| Failure::usage(e, "bash, zsh or fish"))?;
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut cli::command(), "kvist", &mut script);
    say(&String::from_utf8_lossy(&script))
}

/// Prints what was asked for. Whoever closed standard output does not want the rest.
fn say(text: &str) -> Result<()> {
    match stdout().write_all(text.as_bytes()).and_then(|()| stdout().flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Failure::new(format!("standard output: {e}"), "")),
        _ => Ok(()),
    }
}

/// Writes a line to standard error. Where that is closed, nobody can be told.
fn complain(text: &str) {
    let _ = writeln!(stderr(), "{text}");
}
