use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Where the bytes of one safetensors file are.
pub(crate) enum Source {
    File { file: File, path: PathBuf, bytes: u64 },
    Memory(Cow<'static, [u8]>),
}

impl Source {
    pub fn open(path: PathBuf) -> Result<Source> {
        let opened = File::open(&path).and_then(|file| {
            let meta = file.metadata()?;
            if meta.is_file() { Ok((file, meta.len())) } else { Err(io::Error::other("not a regular file")) }
        });
        match opened {
            Ok((file, bytes)) => Ok(Source::File { file, path, bytes }),
            Err(error) => Err(Error::Io { file: path, error }),
        }
    }

    pub fn bytes(&self) -> u64 {
        match self {
            Source::File { bytes, .. } => *bytes,
            Source::Memory(data) => data.len() as u64,
        }
    }

    /// For messages.
    pub fn name(&self) -> &Path {
        match self {
            Source::File { path, .. } => path,
            Source::Memory(_) => Path::new("weights in memory"),
        }
    }

    /// Fills `out` from byte `at` on.
    pub fn read_at(&self, at: u64, out: &mut [u8]) -> Result<()> {
        let end = at.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > self.bytes()) {
            return Err(Error::Truncated { file: self.name().into(), need: end.unwrap_or(at), have: self.bytes() });
        }
        match self {
            Source::Memory(data) => out.copy_from_slice(&data[at as usize..at as usize + out.len()]),
            Source::File { file, path, .. } => {
                read_exact_at(file, at, out).map_err(|error| Error::Io { file: path.clone(), error })?;
            }
        }
        Ok(())
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, at: u64, out: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, at)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut at: u64, mut out: &mut [u8]) -> io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                at += n as u64;
                out = &mut out[n..];
            }
        }
    }
    Ok(())
}
