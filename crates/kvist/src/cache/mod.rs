//! `kvist cache`: what is kept on disk, seen and tidied from outside of the server.

mod ask;
mod client;
mod explain;
mod ls;
mod place;
mod tidy;

use clap::ArgMatches;

use crate::cli;
use crate::failure::Result;

pub fn run(matches: &ArgMatches) -> Result<()> {
    let (name, matches) = matches.subcommand().expect("clap asks for a subcommand");
    let settings = cli::settings(matches, false)?;
    match name {
        "ls" => ls::run(matches, settings),
        "explain" => explain::run(matches, settings),
        "pin" => tidy::pin(matches, settings),
        "verify" => tidy::verify(settings),
        "gc" => tidy::gc(matches, settings),
        "forget" => tidy::forget(matches, settings),
        _ => unreachable!("clap knows the subcommands"),
    }
}
