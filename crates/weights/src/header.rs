//! The header of a safetensors file (format 1.0): `u64` length, little endian, then that many bytes of JSON that map
//! each name to `{dtype, shape, data_offsets}`. The tensors cover the rest of the file without gaps or overlaps.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};

use crate::format::Format;

/// Bytes of a header, or of an index of shards, at most. Those of dense models have a few hundred thousand; a hostile one
/// takes up to ten times its size in memory.
pub const MAX_HEADER: u64 = 4 << 20;

/// What the header says about one tensor.
#[derive(Debug, Deserialize)]
pub(crate) struct Entry {
    pub dtype: Element,
    pub shape: Vec<usize>,
    /// First byte and end, counted from the end of the header.
    pub data_offsets: (u64, u64),
}

/// An element type as the file names it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub(crate) enum Element {
    Known(Format),
    Other(String),
}

impl From<String> for Element {
    fn from(name: String) -> Self {
        match name.as_str() {
            "F32" => Element::Known(Format::F32),
            "F16" => Element::Known(Format::F16),
            "BF16" => Element::Known(Format::Bf16),
            _ => Element::Other(name),
        }
    }
}

pub(crate) struct Header {
    pub tensors: BTreeMap<String, Entry>,
    /// Bytes of tensor data that follow the header.
    pub bytes: u64,
}

impl Header {
    /// Parses the JSON of a header and checks that the tensors tile the data.
    pub fn parse(json: &[u8]) -> Result<Header, String> {
        let Table(tensors) = serde_json::from_slice(json).map_err(|e| format!("bad header: {e}"))?;
        let mut order: Vec<(&String, &Entry)> = tensors.iter().collect();
        order.sort_by_key(|(_, entry)| entry.data_offsets);
        let mut end = 0;
        for (name, entry) in order {
            let (from, to) = entry.data_offsets;
            if from != end || to < from {
                return Err(format!("tensor {name} at bytes {from}..{to} overlaps another or leaves a gap at {end}"));
            }
            if let Element::Known(format) = entry.dtype {
                let elements = entry.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
                if elements.and_then(|n| format.bytes(n)) != Some(to - from) {
                    return Err(format!("tensor {name} of shape {:?} has {} bytes", entry.shape, to - from));
                }
            }
            end = to;
        }
        Ok(Header { tensors, bytes: end })
    }
}

/// The header's object. Read by hand because a name that comes twice must be an error.
struct Table(BTreeMap<String, Entry>);

impl<'de> Deserialize<'de> for Table {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Table;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Table, A::Error> {
                let mut tensors = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let entry = map.next_value::<Entry>()?;
                    if tensors.contains_key(&name) {
                        return Err(A::Error::custom(format!("tensor {name} comes twice")));
                    }
                    tensors.insert(name, entry);
                }
                Ok(Table(tensors))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
