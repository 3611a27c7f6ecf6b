//! GGUF, versions 2 and 3, little-endian: typed metadata and tensors.
//!
//! ```text
//! "GGUF" | u32 version | u64 tensors | u64 metadata entries
//! entry:  key | u32 type | value           string: u64 bytes | UTF-8      array: u32 type | u64 length | elements
//! tensor: name | u32 dimensions | u64 each, columns first | u32 type | u64 offset from the start of the data
//! padding to general.alignment (32) | data
//! ```
//!
//! Files are hostile until proved otherwise: every count, length and offset is checked against the file's real length
//! before anything is allocated for it, and what parsing allocates is bounded by the file's size and a few megabytes.

mod cursor;
mod parse;
mod split;
mod value;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use crate::error::Result;
use crate::source::Source;
use crate::tensors::Tensors;

pub use value::{MetaArray, MetaValue, Strings};

/// What a GGUF file holds.
pub struct Gguf {
    pub metadata: BTreeMap<String, MetaValue>,
    /// Under the names of the file. Shapes are row-major: the file's dimensions in reverse.
    pub tensors: Tensors,
}

impl Gguf {
    /// Opens a file; all parts of it, if it is the first of several (`...-00001-of-00003.gguf`).
    pub fn open(path: &Path) -> Result<Gguf> {
        let first = Source::open(path.into())?;
        let header = parse::header(&first)?;
        let mut parts = vec![(first, header)];
        split::open_rest(path, &mut parts)?;
        Gguf::from_parts(parts)
    }

    /// The bytes of one file.
    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>) -> Result<Gguf> {
        let source = Source::Memory(bytes.into());
        let header = parse::header(&source)?;
        Gguf::from_parts(vec![(source, header)])
    }

    fn from_parts(mut parts: Vec<(Source, parse::Header)>) -> Result<Gguf> {
        let metadata = std::mem::take(&mut parts[0].1.metadata);
        let tensors =
            Tensors::from_parts(parts.into_iter().map(|(source, header)| (source, header.tensors)).collect())?;
        Ok(Gguf { metadata, tensors })
    }

    pub fn get(&self, key: &str) -> Option<&MetaValue> {
        self.metadata.get(key)
    }
}
