//! The command line: settings, `serve`, `run`, `bench`, `completions`.
#![forbid(unsafe_code)]

mod bench;
mod chat;
mod cli;
mod driver;
mod failure;
mod load;
mod machine;
mod memory;
mod model;
mod page;
mod progress;
mod public;
mod run;
mod serve;
mod settings;
mod size;

use std::io::{Write, stdout};
use std::process::ExitCode;

use clap::ArgMatches;
use clap_complete::Shell;

use failure::{Failure, Result};

fn main() -> ExitCode {
    let matches = match cli::parse(std::env::args_os()) {
        Ok(matches) => matches,
        Err((text, code)) => {
            if code == 0 {
                say(&text.to_string())
            } else {
                eprint!("{text}")
            }
            return ExitCode::from(code);
        }
    };
    match dispatch(&matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(failure.code)
        }
    }
}

fn dispatch(matches: &ArgMatches) -> Result<()> {
    match matches.subcommand() {
        Some(("serve", matches)) => serve::run(matches, cli::settings(matches, false)?),
        Some(("run", matches)) => run::run(matches, cli::settings(matches, true)?),
        Some(("bench", matches)) => bench::run(matches),
        Some(("completions", matches)) => completions(matches.get_one::<String>("shell").map_or("", String::as_str)),
        _ => unreachable!("clap asks for a subcommand"),
    }
}

fn completions(shell: &str) -> Result<()> {
    let shell: Shell = shell.parse().map_err(|e: String| Failure::usage(e, "bash, zsh or fish"))?;
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut cli::command(), "kvist", &mut script);
    say(&String::from_utf8_lossy(&script));
    Ok(())
}

/// Prints what was asked for. Whoever closed standard output does not want the rest.
fn say(text: &str) {
    let _ = stdout().write_all(text.as_bytes()).and_then(|()| stdout().flush());
}
