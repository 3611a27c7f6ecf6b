//! GGUF files made by hand, for tests.

use crate::gguf::{MetaArray, MetaValue};
use crate::{Format, Strings};

/// Writes what it is told, damaged or not.
#[derive(Clone)]
pub struct GgufBuilder {
    pub version: u32,
    /// What the header claims; `None`: the truth.
    pub tensor_count: Option<u64>,
    pub entry_count: Option<u64>,
    pub alignment: u64,
    pub entries: Vec<Vec<u8>>,
    pub tensors: Vec<TensorLine>,
}

/// A line of the tensor table, and data.
#[derive(Clone)]
pub struct TensorLine {
    pub name: String,
    /// As in the file: columns first.
    pub dimensions: Vec<u64>,
    pub kind: u32,
    /// `None`: behind the tensor before.
    pub offset: Option<u64>,
    pub data: Vec<u8>,
}

impl Default for GgufBuilder {
    fn default() -> Self {
        let (entries, tensors) = (Vec::new(), Vec::new());
        GgufBuilder { version: 3, tensor_count: None, entry_count: None, alignment: 32, entries, tensors }
    }
}

impl GgufBuilder {
    pub fn value(mut self, key: &str, value: MetaValue) -> Self {
        let mut entry = string(key);
        entry.extend(encode(&value));
        self.entries.push(entry);
        self
    }

    /// An entry as bytes: key, type and value.
    pub fn raw_entry(mut self, bytes: Vec<u8>) -> Self {
        self.entries.push(bytes);
        self
    }

    /// A tensor of row-major shape.
    pub fn tensor(self, name: &str, shape: &[usize], format: Format, data: Vec<u8>) -> Self {
        let dimensions = shape.iter().rev().map(|&n| n as u64).collect();
        self.line(TensorLine { name: name.into(), dimensions, kind: number(format), offset: None, data })
    }

    pub fn f32(self, name: &str, shape: &[usize], values: &[f32]) -> Self {
        self.tensor(name, shape, Format::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    pub fn line(mut self, line: TensorLine) -> Self {
        self.tensors.push(line);
        self
    }

    pub fn build(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.entry_count.unwrap_or(self.entries.len() as u64).to_le_bytes());
        self.entries.iter().for_each(|entry| out.extend(entry));
        let mut data = Vec::new();
        for line in &self.tensors {
            data.resize(data.len().next_multiple_of(self.alignment as usize), 0);
            out.extend(string(&line.name));
            out.extend((line.dimensions.len() as u32).to_le_bytes());
            line.dimensions.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(line.kind.to_le_bytes());
            out.extend(line.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&line.data);
        }
        out.resize(out.len().next_multiple_of(self.alignment as usize), 0);
        out.extend(data);
        out
    }
}

pub fn number(format: Format) -> u32 {
    match format {
        Format::F32 => 0,
        Format::F16 => 1,
        Format::Q4_0 => 2,
        Format::Q5_0 => 6,
        Format::Q8_0 => 8,
        Format::Q4K => 12,
        Format::Q5K => 13,
        Format::Q6K => 14,
        Format::Bf16 => 30,
    }
}

pub fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// Type and value.
fn encode(value: &MetaValue) -> Vec<u8> {
    let (kind, bytes): (u32, Vec<u8>) = match value {
        MetaValue::U8(v) => (0, v.to_le_bytes().into()),
        MetaValue::I8(v) => (1, v.to_le_bytes().into()),
        MetaValue::U16(v) => (2, v.to_le_bytes().into()),
        MetaValue::I16(v) => (3, v.to_le_bytes().into()),
        MetaValue::U32(v) => (4, v.to_le_bytes().into()),
        MetaValue::I32(v) => (5, v.to_le_bytes().into()),
        MetaValue::F32(v) => (6, v.to_le_bytes().into()),
        MetaValue::Bool(v) => (7, vec![*v as u8]),
        MetaValue::String(v) => (8, string(v)),
        MetaValue::Array(v) => (9, array(v)),
        MetaValue::U64(v) => (10, v.to_le_bytes().into()),
        MetaValue::I64(v) => (11, v.to_le_bytes().into()),
        MetaValue::F64(v) => (12, v.to_le_bytes().into()),
    };
    [kind.to_le_bytes().to_vec(), bytes].concat()
}

fn array(array: &MetaArray) -> Vec<u8> {
    let kind: u32 = match array {
        MetaArray::U8(_) => 0,
        MetaArray::I8(_) => 1,
        MetaArray::U16(_) => 2,
        MetaArray::I16(_) => 3,
        MetaArray::U32(_) => 4,
        MetaArray::I32(_) => 5,
        MetaArray::F32(_) => 6,
        MetaArray::Bool(_) => 7,
        MetaArray::String(_) => 8,
        MetaArray::Array(_) => 9,
        MetaArray::U64(_) => 10,
        MetaArray::I64(_) => 11,
        MetaArray::F64(_) => 12,
    };
    let mut out = kind.to_le_bytes().to_vec();
    out.extend((array.len() as u64).to_le_bytes());
    array.iter().for_each(|value| out.extend(&encode(&value)[4..]));
    out
}

impl<S: AsRef<str>> FromIterator<S> for Strings {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Strings {
        let mut out = Strings::default();
        strings.into_iter().for_each(|s| out.push(s.as_ref()));
        out
    }
}
