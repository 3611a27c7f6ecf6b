//! Typed metadata.

use super::cursor::{Cursor, reserve};
use crate::error::Result;

/// Arrays inside arrays at most, in a whole file. No known file has any; each takes more memory than file.
const MAX_INNER_ARRAYS: u64 = 1 << 16;

/// How deep arrays may lie inside arrays.
const MAX_DEPTH: usize = 4;

/// A metadata value, in the type of the file.
#[derive(Clone, Debug, PartialEq)]
pub enum MetaValue {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    Array(MetaArray),
}

/// An array of values of one type.
#[derive(Clone, Debug, PartialEq)]
pub enum MetaArray {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    String(Strings),
    Array(Vec<MetaArray>),
}

/// Many strings, end to end: as small in memory as in the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Strings {
    text: String,
    /// Byte after each string.
    ends: Vec<usize>,
}

impl Strings {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.ends.push(self.text.len());
    }

    pub fn get(&self, i: usize) -> Option<&str> {
        let end = *self.ends.get(i)?;
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        Some(&self.text[start..end])
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(|i| self.get(i).expect("inside"))
    }
}

/// The value as an i128, if it is an integer of any width: every integer type fits.
macro_rules! integer {
    ($value:expr) => {
        match $value {
            MetaValue::U8(v) => Some(*v as i128),
            MetaValue::I8(v) => Some(*v as i128),
            MetaValue::U16(v) => Some(*v as i128),
            MetaValue::I16(v) => Some(*v as i128),
            MetaValue::U32(v) => Some(*v as i128),
            MetaValue::I32(v) => Some(*v as i128),
            MetaValue::U64(v) => Some(*v as i128),
            MetaValue::I64(v) => Some(*v as i128),
            _ => None,
        }
    };
}

impl MetaValue {
    /// An integer of any type that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        integer!(self).and_then(|v| v.try_into().ok())
    }

    /// An integer of any type.
    pub fn as_i64(&self) -> Option<i64> {
        integer!(self).and_then(|v| v.try_into().ok())
    }

    /// A number of any type.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            MetaValue::F32(v) => Some(*v as f64),
            MetaValue::F64(v) => Some(*v),
            other => integer!(other).map(|v| v as f64),
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self {
            MetaValue::Bool(v) => Some(*v),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            MetaValue::String(v) => Some(v),
            _ => None,
        }
    }

    pub fn as_array(&self) -> Option<&MetaArray> {
        match self {
            MetaValue::Array(v) => Some(v),
            _ => None,
        }
    }

    pub fn as_strings(&self) -> Option<&Strings> {
        match self {
            MetaValue::Array(MetaArray::String(v)) => Some(v),
            _ => None,
        }
    }
}

impl MetaArray {
    pub fn len(&self) -> usize {
        match self {
            MetaArray::U8(v) => v.len(),
            MetaArray::I8(v) => v.len(),
            MetaArray::U16(v) => v.len(),
            MetaArray::I16(v) => v.len(),
            MetaArray::U32(v) => v.len(),
            MetaArray::I32(v) => v.len(),
            MetaArray::U64(v) => v.len(),
            MetaArray::I64(v) => v.len(),
            MetaArray::F32(v) => v.len(),
            MetaArray::F64(v) => v.len(),
            MetaArray::Bool(v) => v.len(),
            MetaArray::String(v) => v.len(),
            MetaArray::Array(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element in its own type; a copy.
    pub fn get(&self, i: usize) -> Option<MetaValue> {
        Some(match self {
            MetaArray::U8(v) => MetaValue::U8(*v.get(i)?),
            MetaArray::I8(v) => MetaValue::I8(*v.get(i)?),
            MetaArray::U16(v) => MetaValue::U16(*v.get(i)?),
            MetaArray::I16(v) => MetaValue::I16(*v.get(i)?),
            MetaArray::U32(v) => MetaValue::U32(*v.get(i)?),
            MetaArray::I32(v) => MetaValue::I32(*v.get(i)?),
            MetaArray::U64(v) => MetaValue::U64(*v.get(i)?),
            MetaArray::I64(v) => MetaValue::I64(*v.get(i)?),
            MetaArray::F32(v) => MetaValue::F32(*v.get(i)?),
            MetaArray::F64(v) => MetaValue::F64(*v.get(i)?),
            MetaArray::Bool(v) => MetaValue::Bool(*v.get(i)?),
            MetaArray::String(v) => MetaValue::String(v.get(i)?.into()),
            MetaArray::Array(v) => MetaValue::Array(v.get(i)?.clone()),
        })
    }

    pub fn iter(&self) -> impl Iterator<Item = MetaValue> {
        (0..self.len()).filter_map(|i| self.get(i))
    }
}

/// Reads values; counts what the whole file may have only so many of.
#[derive(Default)]
pub(super) struct Values {
    inner_arrays: u64,
}

impl Values {
    /// A value of the type that comes first.
    pub fn read(&mut self, file: &mut Cursor) -> Result<MetaValue> {
        Ok(match file.u32()? {
            0 => MetaValue::U8(u8::from_le_bytes(file.bytes()?)),
            1 => MetaValue::I8(i8::from_le_bytes(file.bytes()?)),
            2 => MetaValue::U16(u16::from_le_bytes(file.bytes()?)),
            3 => MetaValue::I16(i16::from_le_bytes(file.bytes()?)),
            4 => MetaValue::U32(file.u32()?),
            5 => MetaValue::I32(i32::from_le_bytes(file.bytes()?)),
            6 => MetaValue::F32(f32::from_le_bytes(file.bytes()?)),
            7 => MetaValue::Bool(boolean(file)?),
            8 => MetaValue::String(file.string(u64::MAX)?),
            9 => MetaValue::Array(self.array(file, 0)?),
            10 => MetaValue::U64(file.u64()?),
            11 => MetaValue::I64(i64::from_le_bytes(file.bytes()?)),
            12 => MetaValue::F64(f64::from_le_bytes(file.bytes()?)),
            other => return Err(unknown(file, other)),
        })
    }

    fn array(&mut self, file: &mut Cursor, depth: usize) -> Result<MetaArray> {
        let (kind, n) = (file.u32()?, file.u64()?);
        Ok(match kind {
            0 => MetaArray::U8(numbers(file, n, u8::from_le_bytes)?),
            1 => MetaArray::I8(numbers(file, n, i8::from_le_bytes)?),
            2 => MetaArray::U16(numbers(file, n, u16::from_le_bytes)?),
            3 => MetaArray::I16(numbers(file, n, i16::from_le_bytes)?),
            4 => MetaArray::U32(numbers(file, n, u32::from_le_bytes)?),
            5 => MetaArray::I32(numbers(file, n, i32::from_le_bytes)?),
            6 => MetaArray::F32(numbers(file, n, f32::from_le_bytes)?),
            7 => {
                file.expect(n, 1)?;
                let mut out = reserve(n as usize)?;
                for _ in 0..n {
                    out.push(boolean(file)?);
                }
                MetaArray::Bool(out)
            }
            8 => MetaArray::String(strings(file, n)?),
            9 => {
                file.expect(n, 12)?;
                self.inner_arrays += n;
                if self.inner_arrays > MAX_INNER_ARRAYS || depth == MAX_DEPTH {
                    return Err(file.bad("too many arrays inside arrays"));
                }
                let mut out = reserve(n as usize)?;
                for _ in 0..n {
                    out.push(self.array(file, depth + 1)?);
                }
                MetaArray::Array(out)
            }
            10 => MetaArray::U64(numbers(file, n, u64::from_le_bytes)?),
            11 => MetaArray::I64(numbers(file, n, i64::from_le_bytes)?),
            12 => MetaArray::F64(numbers(file, n, f64::from_le_bytes)?),
            other => return Err(unknown(file, other)),
        })
    }
}

fn unknown(file: &Cursor, kind: u32) -> crate::Error {
    file.bad(format!("a value of the unknown type {kind} before byte {}", file.at()))
}

fn boolean(file: &mut Cursor) -> Result<bool> {
    match file.bytes()? {
        [0] => Ok(false),
        [1] => Ok(true),
        [other] => Err(file.bad(format!("a truth value of {other} before byte {}", file.at()))),
    }
}

fn numbers<T, const N: usize>(file: &mut Cursor, n: u64, from: fn([u8; N]) -> T) -> Result<Vec<T>> {
    file.expect(n, N as u64)?;
    let mut out = reserve(n as usize)?;
    for _ in 0..n {
        out.push(from(file.bytes()?));
    }
    Ok(out)
}

/// Walks the lengths first, so that the text is reserved once and exactly.
fn strings(file: &mut Cursor, n: u64) -> Result<Strings> {
    file.expect(n, 8)?;
    let start = file.at();
    let mut ends = reserve(n as usize)?;
    let mut total = 0;
    for _ in 0..n {
        let length = file.u64()?;
        file.skip(length)?;
        // A sum of lengths that all lie inside the file.
        total += length as usize;
        ends.push(total);
    }
    file.seek(start);
    let mut text = reserve(total)?;
    text.resize(total, 0);
    let mut from = 0;
    for &end in &ends {
        file.skip(8)?;
        let at = file.at();
        file.fill(&mut text[from..end])?;
        if std::str::from_utf8(&text[from..end]).is_err() {
            return Err(file.bad(format!("the string at byte {at} is not UTF-8")));
        }
        from = end;
    }
    let text = String::from_utf8(text).map_err(|_| file.bad("strings that are not UTF-8"))?;
    Ok(Strings { text, ends })
}
