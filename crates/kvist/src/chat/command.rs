/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    Nothing,
    Say(String),
    Stats,
    Clear,
    System(Option<String>),
    Help,
    Exit,
    Unknown(String),
}

pub fn parse(line: &str) -> Command {
    if line.is_empty() {
        return Command::Nothing;
    }
    let Some(rest) = line.strip_prefix('/') else { return Command::Say(line.to_owned()) };
    if rest.starts_with('/') {
        return Command::Say(rest.to_owned());
    }
    let (name, text) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    match name {
        "stats" => Command::Stats,
        "clear" => Command::Clear,
        "system" => Command::System(Some(text.trim().to_owned()).filter(|t| !t.is_empty())),
        "help" | "?" => Command::Help,
        "exit" | "quit" | "bye" => Command::Exit,
        _ => Command::Unknown(format!("/{name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_apart() {
        let say = |text: &str| Command::Say(text.into());
        for (line, expected) in [
            ("", Command::Nothing),
            ("hello /exit", say("hello /exit")),
            ("//usr/bin is a directory", say("/usr/bin is a directory")),
            ("/stats", Command::Stats),
            ("/clear now", Command::Clear),
            ("/system", Command::System(None)),
            ("/system  Be brief. ", Command::System(Some("Be brief.".into()))),
            ("/exit", Command::Exit),
            ("/statistics", Command::Unknown("/statistics".into())),
            ("/", Command::Unknown("/".into())),
        ] {
            assert_eq!(parse(line), expected, "{line}");
        }
    }
}
