//! The part of a file before its data.

use std::collections::BTreeMap;

use super::MetaValue;
use super::cursor::Cursor;
use super::value::Values;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::header::Element;
use crate::source::Source;
use crate::tensors::Place;

const MAGIC: [u8; 4] = *b"GGUF";

/// Entries and tensors at most: far above every known model, and few enough that their bookkeeping, which is larger
/// than what they take in the file, stays small.
const MAX_ENTRIES: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 16;

/// Bytes of a key and of a tensor's name at most, by the format.
const MAX_KEY: u64 = (1 << 16) - 1;
const MAX_NAME: u64 = 64;

const MAX_DIMENSIONS: u32 = 4;

/// Where no `general.alignment` says otherwise.
const ALIGNMENT: u64 = 32;

pub(super) struct Header {
    pub metadata: BTreeMap<String, MetaValue>,
    pub tensors: BTreeMap<String, Place>,
}

/// Reads the header and checks that the tensors lie apart and inside the file.
pub(super) fn header(source: &Source) -> Result<Header> {
    let mut file = Cursor::new(source);
    if file.bytes()? != MAGIC {
        return Err(file.bad("not a GGUF file: it does not begin with \"GGUF\""));
    }
    let version = file.u32()?;
    match version {
        2 | 3 => {}
        _ if version != 0 && version.swap_bytes() <= 0xffff => {
            return Err(Error::GgufVersion { file: source.name().into(), what: "big-endian".into() });
        }
        _ => return Err(Error::GgufVersion { file: source.name().into(), what: format!("of version {version}") }),
    }
    let (tensors, entries) = (file.u64()?, file.u64()?);
    // The least that an entry and a tensor take.
    file.expect(entries, 8 + 4 + 1)?;
    file.expect(tensors, 8 + 4 + 8 + 4 + 8)?;
    if entries > MAX_ENTRIES || tensors > MAX_TENSORS {
        return Err(file.bad(format!("{entries} metadata entries and {tensors} tensors")));
    }
    let metadata = metadata(&mut file, entries)?;
    let alignment = match metadata.get("general.alignment") {
        None => ALIGNMENT,
        Some(MetaValue::U32(n)) if n.is_power_of_two() => *n as u64,
        Some(_) => return Err(file.bad("general.alignment is no power of two of type U32")),
    };
    let tensors = tensor_table(&mut file, tensors, alignment)?;
    Ok(Header { metadata, tensors })
}

fn metadata(file: &mut Cursor, n: u64) -> Result<BTreeMap<String, MetaValue>> {
    let mut out = BTreeMap::new();
    let mut values = Values::default();
    for _ in 0..n {
        let key = file.string(MAX_KEY)?;
        let value = values.read(file)?;
        if out.contains_key(&key) {
            return Err(file.bad(format!("metadata entry {key:?} comes twice")));
        }
        out.insert(key, value);
    }
    Ok(out)
}

fn tensor_table(file: &mut Cursor, n: u64, alignment: u64) -> Result<BTreeMap<String, Place>> {
    let mut out = BTreeMap::new();
    for _ in 0..n {
        let name = file.string(MAX_NAME)?;
        let entry = tensor(file, &name, alignment)?;
        if out.contains_key(&name) {
            return Err(file.bad(format!("tensor {name:?} comes twice")));
        }
        out.insert(name, entry);
    }
    let data = file.at().next_multiple_of(alignment);
    let have = file.source.bytes();
    let mut order: Vec<(&String, &mut Place)> = out.iter_mut().collect();
    order.sort_by_key(|(_, entry)| entry.at);
    let mut end = 0;
    for (name, entry) in order {
        if entry.at < end {
            return Err(file.bad(format!("tensor {name:?} at byte {} of the data overlaps another", entry.at)));
        }
        end = entry.at.checked_add(entry.bytes).ok_or_else(|| file.bad(format!("tensor {name:?} is too large")))?;
        let need = data.saturating_add(end);
        if need > have {
            return Err(Error::Truncated { file: file.source.name().into(), need, have });
        }
        entry.at += data;
    }
    Ok(out)
}

/// One line of the table; `at` still counts from the start of the data.
fn tensor(file: &mut Cursor, name: &str, alignment: u64) -> Result<Place> {
    let dimensions = file.u32()?;
    if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
        return Err(file.bad(format!("tensor {name:?} has {dimensions} dimensions")));
    }
    let mut shape = Vec::new();
    let mut elements = 1u64;
    for _ in 0..dimensions {
        let size = file.u64()?;
        let product = elements.checked_mul(size).filter(|&n| n > 0 && n <= i64::MAX as u64);
        elements = product.ok_or_else(|| file.bad(format!("tensor {name:?} has a dimension of {size}")))?;
        shape.insert(0, size as usize);
    }
    let element = element(file.u32()?);
    let bytes = match &element {
        Element::Known(format) => {
            let columns = shape.last().copied().unwrap_or_default();
            if !columns.is_multiple_of(format.block()) {
                return Err(file.bad(format!("tensor {name:?} of type {format} has rows of {columns} elements")));
            }
            format.bytes(elements).ok_or_else(|| file.bad(format!("tensor {name:?} is too large")))?
        }
        // Its size is not known; reading it will be refused.
        Element::Other(_) => 0,
    };
    let at = file.u64()?;
    if !at.is_multiple_of(alignment) {
        return Err(file.bad(format!("tensor {name:?} at byte {at} of the data is not aligned to {alignment}")));
    }
    Ok(Place { shard: 0, element, shape, at, bytes })
}

/// Type numbers and names of ggml.
fn element(number: u32) -> Element {
    Element::Known(match number {
        0 => Format::F32,
        1 => Format::F16,
        2 => Format::Q4_0,
        6 => Format::Q5_0,
        8 => Format::Q8_0,
        12 => Format::Q4K,
        13 => Format::Q5K,
        14 => Format::Q6K,
        30 => Format::Bf16,
        _ => {
            let name = OTHERS.iter().find(|(n, _)| *n == number).map(|(_, name)| name.to_string());
            return Element::Other(name.unwrap_or_else(|| format!("number {number}")));
        }
    })
}

const OTHERS: [(u32, &str); 25] = [
    (3, "Q4_1"),
    (7, "Q5_1"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];
