use std::fmt;
use std::io;
use std::path::PathBuf;

pub type Result<T> = std::result::Result<T, Error>;

/// Why a model could not be made ready. `Display` says what is wrong, [`Error::hint`] what to do about it.
#[derive(Debug)]
pub enum Error {
    /// The operating system refused.
    Io {
        file: PathBuf,
        error: io::Error,
    },
    /// A configuration file is damaged or contradicts itself.
    Config {
        file: &'static str,
        what: String,
    },
    /// The configuration asks for something that this program does not compute.
    Unsupported {
        what: String,
        supported: &'static str,
    },
    Weights(kvist_weights::Error),
    /// No shape of this name.
    Shape {
        name: String,
    },
    /// The KV pool could not be had.
    Pool {
        bytes: u64,
        what: String,
    },
    /// The context asked for is outside what the model was made for.
    Context {
        asked: usize,
        model: usize,
    },
}

impl Error {
    /// What the user can do about it, as an imperative sentence without a full stop.
    pub fn hint(&self) -> String {
        match self {
            Error::Io { .. } => "name a directory with config.json, model.safetensors and tokenizer.json".into(),
            Error::Config { file, .. } => format!("fetch {file} again, from the model's own repository"),
            Error::Unsupported { supported, .. } => format!("supported: {supported}"),
            Error::Weights(error) => error.hint().into(),
            Error::Shape { .. } => format!("known shapes: {}", crate::shapes::NAMES.join(", ")),
            Error::Pool { .. } => "ask for less with --kv-ram".into(),
            Error::Context { model, .. } => format!("choose a context between 1 and {model} tokens"),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io { file, error } => write!(f, "{}: {error}", file.display()),
            Error::Config { file, what } => write!(f, "{file}: {what}"),
            Error::Unsupported { what, .. } => write!(f, "this model cannot be run: {what}"),
            Error::Weights(error) => error.fmt(f),
            Error::Shape { name } => write!(f, "no shape named {name:?}"),
            Error::Pool { bytes, what } => write!(f, "a KV pool of {bytes} bytes: {what}"),
            Error::Context { asked, .. } => write!(f, "a context of {asked} tokens"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { error, .. } => Some(error),
            Error::Weights(error) => Some(error),
            _ => None,
        }
    }
}

impl From<kvist_weights::Error> for Error {
    fn from(error: kvist_weights::Error) -> Self {
        Error::Weights(error)
    }
}
