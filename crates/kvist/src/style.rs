use std::io::IsTerminal;

/// Whether a stream wants colours: a terminal that knows them, and nobody who asks for none (no-color.org).
pub fn colours(stream: &impl IsTerminal) -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    stream.is_terminal() && set("NO_COLOR").is_none() && set("TERM").is_none_or(|term| term != "dumb")
}
