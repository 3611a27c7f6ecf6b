use std::fmt;
use std::io;
use std::path::PathBuf;

pub type Result<T> = std::result::Result<T, Error>;

/// Why weights could not be read. `Display` says what is wrong, [`Error::hint`] what to do about it.
#[derive(Debug)]
pub enum Error {
    /// The operating system refused.
    Io {
        file: PathBuf,
        error: io::Error,
    },
    /// The directory has neither `model.safetensors` nor an index of shards.
    NoWeights {
        dir: PathBuf,
    },
    /// The file ends before what its header promises.
    Truncated {
        file: PathBuf,
        need: u64,
        have: u64,
    },
    /// The file is longer than its tensors.
    Trailing {
        file: PathBuf,
        need: u64,
        have: u64,
    },
    /// The header is not what the format prescribes.
    Header {
        file: PathBuf,
        what: String,
    },
    /// The file is not what the GGUF format prescribes.
    Gguf {
        file: PathBuf,
        what: String,
    },
    /// A GGUF file in another byte order, or of an unknown version.
    GgufVersion {
        file: PathBuf,
        what: String,
    },
    /// The parts of a GGUF model in several files do not belong together.
    Split {
        file: PathBuf,
        what: String,
    },
    /// The shard index is not what it should be.
    Index {
        file: PathBuf,
        what: String,
    },
    /// Two files hold a tensor of the same name.
    Duplicate {
        tensor: String,
        first: PathBuf,
        second: PathBuf,
    },
    /// A tensor that the model needs is not there.
    Missing {
        tensor: String,
    },
    /// A tensor that the model has no use for: the configuration and the weights do not belong together.
    Unexpected {
        tensor: String,
    },
    Shape {
        tensor: String,
        expected: Vec<usize>,
        found: Vec<usize>,
    },
    /// An element type that cannot be read.
    Format {
        tensor: String,
        found: String,
    },
    /// A weight is not a number.
    NotFinite {
        tensor: String,
        index: usize,
    },
    /// No memory for this many bytes.
    Memory {
        bytes: usize,
    },
}

impl Error {
    /// What the user can do about it, as an imperative sentence without a full stop.
    pub fn hint(&self) -> &'static str {
        match self {
            Error::Io { .. } => "check that the file exists and may be read",
            Error::NoWeights { .. } => "name a directory with model.safetensors or model.safetensors.index.json",
            Error::Truncated { .. } => "the download is incomplete: fetch the file again",
            Error::Trailing { .. } | Error::Header { .. } => "the file is damaged or not safetensors: fetch it again",
            Error::Index { .. } => "fetch model.safetensors.index.json again",
            Error::Duplicate { .. } => "remove the files that do not belong to the model",
            Error::Missing { .. } | Error::Unexpected { .. } | Error::Shape { .. } => {
                "check that the configuration and the weights belong to the same model"
            }
            Error::Gguf { .. } => "the file is damaged or not GGUF: fetch it again",
            Error::GgufVersion { .. } => "use a little-endian file of GGUF version 2 or 3",
            Error::Split { .. } => "name the first part, with all others beside it under their own names",
            Error::Format { .. } => {
                "supported are F32, F16 and BF16, and in GGUF files Q8_0, Q4_0, Q5_0, Q4_K, Q5_K and Q6_K"
            }
            Error::NotFinite { .. } => "the weights are damaged: fetch them again",
            Error::Memory { .. } => "use a smaller model or a machine with more memory",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io { file, error } => write!(f, "{}: {error}", file.display()),
            Error::NoWeights { dir } => write!(f, "{}: no safetensors weights here", dir.display()),
            Error::Truncated { file, need, have } => {
                write!(f, "{}: truncated: {need} bytes expected, {have} found", file.display())
            }
            Error::Trailing { file, need, have } => {
                write!(f, "{}: {} bytes after the last tensor", file.display(), have - need)
            }
            Error::Header { file, what }
            | Error::Index { file, what }
            | Error::Gguf { file, what }
            | Error::Split { file, what } => write!(f, "{}: {what}", file.display()),
            Error::GgufVersion { file, what } => write!(f, "{}: a GGUF file {what}", file.display()),
            Error::Duplicate { tensor, first, second } => {
                write!(f, "tensor {tensor} is both in {} and in {}", first.display(), second.display())
            }
            Error::Missing { tensor } => write!(f, "tensor {tensor} is missing"),
            Error::Unexpected { tensor } => write!(f, "tensor {tensor} is not part of a model of this configuration"),
            Error::Shape { tensor, expected, found } => {
                write!(f, "tensor {tensor} has shape {found:?} where {expected:?} is expected")
            }
            Error::Format { tensor, found } => write!(f, "tensor {tensor} has elements of type {found}"),
            Error::NotFinite { tensor, index } => write!(f, "tensor {tensor} is not finite at element {index}"),
            Error::Memory { bytes } => write!(f, "no memory for {bytes} bytes of weights"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { error, .. } => Some(error),
            _ => None,
        }
    }
}
