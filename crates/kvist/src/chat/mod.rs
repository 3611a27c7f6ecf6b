//! `kvist run`: a conversation in the terminal.

mod command;
mod session;
mod stats;

use std::io::{self, BufRead, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::complain;
use crate::failure::{Failure, Result};
use command::Command;
pub use session::{Options, REPLY_BYTES, Session};

const HELP: &str = "\
/stats         what the last turn and the conversation took
/clear         start a new conversation
/system TEXT   set the system prompt and start a new conversation; without TEXT: none
/exit          leave (so does Ctrl-D)
/help          this list
Ctrl-C stops an answer. A line that starts with // is sent with one slash less.";

/// Set by the first Ctrl-C; at the prompt a second one in a row ends the program.
#[derive(Clone, Default)]
pub struct Interrupt {
    asked: Arc<AtomicBool>,
    answering: Arc<AtomicBool>,
}

impl Interrupt {
    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Takes over Ctrl-C for the rest of the program.
    fn listen(&self) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let interrupt = self.clone();
        std::thread::Builder::new().name("kvist-signals".into()).spawn(move || {
            runtime.block_on(async {
                while tokio::signal::ctrl_c().await.is_ok() {
                    let again = interrupt.asked.swap(true, Ordering::Relaxed);
                    if !interrupt.answering.load(Ordering::Relaxed) {
                        if again {
                            complain("");
                            std::process::exit(130);
                        }
                        ask("\n(Ctrl-D or /exit leaves, Ctrl-C again too)\n>>> ");
                    }
                }
            });
        })?;
        Ok(())
    }
}

/// Answers one prompt and leaves.
pub fn once(session: &mut Session, prompt: &str) -> Result<()> {
    let mut out = io::stdout();
    session.turn(prompt, &mut out, &Interrupt::default())?;
    written(writeln!(out))
}

/// Takes lines from standard input until it ends, each a turn or a command.
pub fn converse(session: &mut Session) -> Result<()> {
    let interactive = io::stdin().is_terminal();
    let interrupt = Interrupt::default();
    if interactive {
        let listens = interrupt.listen();
        listens.map_err(|e| Failure::new(format!("signals cannot be handled: {e}"), "report this"))?;
        complain("/help lists the commands, Ctrl-D leaves.");
    }
    let mut out = io::stdout();
    let mut input = io::stdin().lock();
    let mut line = Vec::new();
    loop {
        if interactive {
            ask(">>> ");
        }
        line.clear();
        let read = input.read_until(b'\n', &mut line);
        if read.map_err(|e| Failure::new(format!("standard input: {e}"), "send UTF-8 text, a turn a line"))? == 0 {
            if interactive {
                complain("");
            }
            return Ok(());
        }
        interrupt.asked.store(false, Ordering::Relaxed);
        let text = String::from_utf8_lossy(&line);
        match command::parse(text.trim()) {
            Command::Nothing => {}
            Command::Exit => return Ok(()),
            Command::Help => written(writeln!(out, "{HELP}"))?,
            Command::Stats => written(writeln!(out, "{}", session.stats()))?,
            Command::Clear => session.clear(),
            Command::System(text) => session.set_system(text.as_deref()),
            Command::Unknown(name) => complain(&format!("error: no command {name}\nhint: /help lists them")),
            Command::Say(text) => {
                interrupt.answering.store(true, Ordering::Relaxed);
                let turn = session.turn(&text, &mut out, &interrupt);
                interrupt.answering.store(false, Ordering::Relaxed);
                interrupt.asked.store(false, Ordering::Relaxed);
                match turn {
                    Ok(()) => written(writeln!(out))?,
                    // In a terminal the conversation goes on.
                    Err(failure) if interactive && failure.code == 2 => complain(&failure.to_string()),
                    Err(failure) => return Err(failure),
                }
            }
        }
    }
}

fn ask(prompt: &str) {
    let _ = write!(io::stderr(), "{prompt}");
}

/// Nobody reads on: that ends the conversation.
fn written(result: io::Result<()>) -> Result<()> {
    result.map_err(|e| Failure::new(format!("standard output: {e}"), ""))
}
