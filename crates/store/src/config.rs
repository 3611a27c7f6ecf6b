use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::crypto::{Key, Mode, derive};

/// What the bytes of chunks depend on besides their tokens: weights, configuration, RoPE, tokenizer, codec, layout, ISA path,
/// numerics version. What was saved under another fingerprint is not found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    pub digest: [u8; 32],
    /// The same for people; it stands in the clear in the store's files, 256 bytes of it at most.
    pub text: String,
}

/// How the files are protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// AES-256-GCM, a random key for each domain, wrapped by the master key in this file; the file is made if it is missing.
    Keys(PathBuf),
    /// Checksums of 128 bits only.
    Off,
}

/// What a store is opened with.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    pub dir: PathBuf,
    /// Bytes on disk.
    pub budget: u64,
    /// Bytes of chunks that wait to be written.
    pub saves: u64,
    /// Bytes of loads that were read and not yet taken. One piece more is read when somebody waits for it.
    pub staging: u64,
    /// Bytes of notes.
    pub notes: u64,
    /// Threads that read; one more writes. 0: none, the caller gives the store its time ([`crate::Store::turn`]).
    pub io_threads: usize,
    pub fingerprint: Fingerprint,
    /// What stands in the segments that are meant, where it was found there ([`crate::fingerprints`]) and is not made of the
    /// fingerprint: for looking after a store without knowing what its chunks are of.
    pub identity: Option<[u8; 32]>,
    /// Bytes of each layer's slice of a chunk.
    pub slices: Vec<usize>,
    pub encryption: Encryption,
    /// Bytes of a segment file; `None`: by the budget.
    pub segment: Option<u64>,
    /// What was written is made durable this often.
    pub sync_every: Duration,
}

impl StoreConfig {
    /// A store in `dir` with the defaults for everything else.
    pub fn new(
        dir: PathBuf,
        budget: u64,
        fingerprint: Fingerprint,
        slices: Vec<usize>,
        encryption: Encryption,
    ) -> Self {
        StoreConfig {
            dir,
            budget,
            saves: 256 << 20,
            staging: 256 << 20,
            notes: 16 << 20,
            io_threads: 4,
            fingerprint,
            identity: None,
            slices,
            encryption,
            segment: None,
            sync_every: Duration::from_millis(500),
        }
    }

    /// Bytes of a chunk in memory.
    pub fn chunk_bytes(&self) -> usize {
        self.slices.iter().sum()
    }

    /// Bytes of a segment: a sixty-fourth of the budget between 64 and 256 MiB, but never more than an eighth of it.
    pub(crate) fn segment_bytes(&self) -> u64 {
        self.segment.unwrap_or_else(|| (self.budget / 64).clamp(64 << 20, 256 << 20).min(self.budget / 8))
    }

    pub(crate) fn mode(&self) -> Mode {
        match self.encryption {
            Encryption::Keys(_) => Mode::Aead,
            Encryption::Off => Mode::Plain,
        }
    }

    /// The digest that stands in segments: of the fingerprint, and of all else that the meaning of bytes depends on.
    pub(crate) fn identity(&self) -> Key {
        if let Some(identity) = self.identity {
            return identity;
        }
        let mut bytes = self.fingerprint.digest.to_vec();
        bytes.extend((kvist_base::CHUNK as u64).to_le_bytes());
        bytes.push(match self.mode() {
            Mode::Aead => 1,
            Mode::Plain => 0,
        });
        self.slices.iter().for_each(|s| bytes.extend((*s as u64).to_le_bytes()));
        derive("kvist store 1 fingerprint", &bytes)
    }
}

/// Why a store cannot be opened. None of these changes a file.
#[derive(Debug)]
pub enum OpenError {
    /// Another process has it; what its lock file says: a pid.
    Locked(String),
    /// Written by a later version of this program.
    Newer {
        file: String,
        version: u32,
    },
    /// The key file.
    Key {
        file: PathBuf,
        error: std::io::Error,
    },
    /// The budget does not hold a few segments of one chunk each.
    Budget {
        least: u64,
    },
    /// No layers, layers without bytes, or too many of either.
    Layout,
    Io(std::io::Error),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Locked(who) => write!(f, "the store is locked by pid {who}"),
            OpenError::Newer { file, version } => write!(
                f,
                "{file} has format {version}, this version knows {}: use a newer one, or another directory",
                crate::format::VERSION
            ),
            OpenError::Key { file, error } => write!(f, "key file {}: {error}", file.display()),
            OpenError::Budget { least } => write!(f, "a store of this model's chunks needs {least} bytes at least"),
            OpenError::Layout => write!(f, "the layers' slices are empty or too large"),
            OpenError::Io(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for OpenError {}

impl From<std::io::Error> for OpenError {
    fn from(e: std::io::Error) -> Self {
        OpenError::Io(e)
    }
}
