//! Models in several files.

use std::path::Path;

use super::MetaValue;
use super::parse::{self, Header};
use crate::error::{Error, Result};
use crate::source::Source;

/// Parts at most: each is an open file.
const MAX_PARTS: u64 = 512;

/// Opens the parts that follow the first.
pub(super) fn open_rest(path: &Path, parts: &mut Vec<(Source, Header)>) -> Result<()> {
    let number = |header: &Header, key: &str| header.metadata.get(key).and_then(MetaValue::as_u64);
    let bad = |what: String| Error::Split { file: path.into(), what };
    let count = number(&parts[0].1, "split.count").unwrap_or(1);
    if count <= 1 {
        return Ok(());
    }
    if count > MAX_PARTS {
        return Err(bad(format!("one of {count} parts, at most {MAX_PARTS} can be read")));
    }
    let first = number(&parts[0].1, "split.no");
    if first != Some(0) {
        return Err(bad("not the first part of a model".into()));
    }
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let stem = name
        .strip_suffix(&format!("-00001-of-{count:05}.gguf"))
        .ok_or_else(|| bad(format!("the first of {count} parts, but not named ...-00001-of-{count:05}.gguf")))?;
    for i in 1..count {
        let file = path.with_file_name(format!("{stem}-{:05}-of-{count:05}.gguf", i + 1));
        let source = Source::open(file.clone())?;
        let header = parse::header(&source)?;
        if number(&header, "split.no") != Some(i) || number(&header, "split.count") != Some(count) {
            return Err(Error::Split { file, what: format!("not part {} of {count}", i + 1) });
        }
        parts.push((source, header));
    }
    let found: u64 = parts.iter().map(|(_, header)| header.tensors.len() as u64).sum();
    match number(&parts[0].1, "split.tensors.count") {
        Some(expected) if expected != found => Err(bad(format!("{found} tensors in all parts, not {expected}"))),
        _ => Ok(()),
    }
}
