use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde::Deserialize;

use crate::convert::bf16_from_f32;
use crate::error::{Error, Result};
use crate::format::{Format, halves};
use crate::header::{self, Element, Header, MAX_HEADER};
use crate::source::Source;

/// All tensors of a model, by name.
pub struct Tensors {
    shards: Vec<Source>,
    tensors: BTreeMap<String, Place>,
    bytes: u64,
}

pub(crate) struct Place {
    pub shard: usize,
    pub element: Element,
    pub shape: Vec<usize>,
    /// Byte in the shard.
    pub at: u64,
    /// 0 where the size of an element is not known.
    pub bytes: u64,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Tensors {
    /// The weights of a Hugging Face directory: `model.safetensors`, else the shards that
    /// `model.safetensors.index.json` names.
    pub fn open(dir: &Path) -> Result<Tensors> {
        let single = dir.join("model.safetensors");
        if single.exists() {
            return Tensors::from_sources(vec![Source::open(single)?]);
        }
        let file = dir.join("model.safetensors.index.json");
        if !file.exists() {
            return Err(Error::NoWeights { dir: dir.into() });
        }
        let source = Source::open(file.clone())?;
        let bad = |what: String| Error::Index { file: file.clone(), what };
        if source.bytes() > MAX_HEADER {
            return Err(bad(format!("larger than {MAX_HEADER} bytes")));
        }
        let mut json = vec![0; source.bytes() as usize];
        source.read_at(0, &mut json)?;
        let index: Index = serde_json::from_slice(&json).map_err(|e| bad(e.to_string()))?;

        let mut names: Vec<&String> = index.weight_map.values().collect();
        names.sort();
        names.dedup();
        let mut shards = Vec::new();
        for name in &names {
            let mut parts = Path::new(name).components();
            if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
                return Err(bad(format!("shard {name:?} is not the name of a file beside it")));
            }
            shards.push(Source::open(dir.join(name))?);
        }
        let tensors = Tensors::from_sources(shards)?;
        for (tensor, shard) in &index.weight_map {
            let place = tensors.tensors.get(tensor).ok_or_else(|| Error::Missing { tensor: tensor.clone() })?;
            if names[place.shard] != shard {
                return Err(bad(format!("tensor {tensor} is not in {shard}")));
            }
        }
        Ok(tensors)
    }

    /// The bytes of one safetensors file, compiled into the program or read from elsewhere.
    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>) -> Result<Tensors> {
        Tensors::from_sources(vec![Source::Memory(bytes.into())])
    }

    fn from_sources(sources: Vec<Source>) -> Result<Tensors> {
        let read = |source: Source| {
            let (header, data) = read_header(&source)?;
            let place = |(name, entry): (String, header::Entry)| {
                let (from, to) = entry.data_offsets;
                let place =
                    Place { shard: 0, element: entry.dtype, shape: entry.shape, at: data + from, bytes: to - from };
                (name, place)
            };
            Ok((source, header.tensors.into_iter().map(place).collect()))
        };
        Tensors::from_parts(sources.into_iter().map(read).collect::<Result<_>>()?)
    }

    /// Files and what is in each.
    pub(crate) fn from_parts(parts: Vec<(Source, BTreeMap<String, Place>)>) -> Result<Tensors> {
        let mut tensors = BTreeMap::<String, Place>::new();
        let mut shards: Vec<Source> = Vec::new();
        for (shard, (source, places)) in parts.into_iter().enumerate() {
            shards.push(source);
            for (name, place) in places {
                if let Some(first) = tensors.get(&name) {
                    let [first, second] = [first.shard, shard].map(|s| shards[s].name().to_path_buf());
                    return Err(Error::Duplicate { tensor: name, first, second });
                }
                tensors.insert(name, Place { shard, ..place });
            }
        }
        let bytes = tensors.values().map(|place| place.bytes).sum();
        Ok(Tensors { shards, tensors, bytes })
    }

    /// Names in ascending order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Bytes of all tensors together.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Row-major.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|place| place.shape.as_slice())
    }

    /// The tensor of this name, which must have this shape and a type that can be read.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>> {
        let (name, place) =
            self.tensors.get_key_value(name).ok_or_else(|| Error::Missing { tensor: name.to_string() })?;
        if place.shape != shape {
            return Err(Error::Shape { tensor: name.clone(), expected: shape.into(), found: place.shape.clone() });
        }
        match &place.element {
            &Element::Known(format) => {
                let columns = shape.last().copied().unwrap_or(1);
                let rows = shape.iter().rev().skip(1).product();
                Ok(Tensor { name, format, rows, columns, at: place.at, source: &self.shards[place.shard] })
            }
            Element::Other(found) => Err(Error::Format { tensor: name.clone(), found: found.clone() }),
        }
    }
}

/// Checks the header against the file's real length. Returns it and where the data begin.
fn read_header(source: &Source) -> Result<(Header, u64)> {
    let bad = |what: String| Error::Header { file: source.name().into(), what };
    let mut length = [0; 8];
    source.read_at(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return Err(bad(format!("a header of {length} bytes, at most {MAX_HEADER} are allowed")));
    }
    let (have, data) = (source.bytes(), 8 + length);
    if data > have {
        return Err(Error::Truncated { file: source.name().into(), need: data, have });
    }
    let mut json = vec![0; length as usize];
    source.read_at(8, &mut json)?;
    let header = Header::parse(&json).map_err(bad)?;
    let need = data.checked_add(header.bytes).ok_or_else(|| bad("sizes overflow".into()))?;
    match need.cmp(&have) {
        std::cmp::Ordering::Greater => Err(Error::Truncated { file: source.name().into(), need, have }),
        std::cmp::Ordering::Less => Err(Error::Trailing { file: source.name().into(), need, have }),
        std::cmp::Ordering::Equal => Ok((header, data)),
    }
}

/// One tensor: a name and a place; rows are read on demand, from any thread.
#[derive(Clone, Copy)]
pub struct Tensor<'a> {
    name: &'a str,
    format: Format,
    rows: usize,
    columns: usize,
    at: u64,
    source: &'a Source,
}

impl Tensor<'_> {
    /// In the file.
    pub fn name(&self) -> &str {
        self.name
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// All dimensions but the last; 1 for a vector.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes in the file.
    pub fn bytes(&self) -> u64 {
        (self.rows * self.row_bytes()) as u64
    }

    /// Bytes of a row in the file.
    pub fn row_bytes(&self) -> usize {
        self.columns / self.format.block() * self.format.block_bytes()
    }

    /// Reads row `i` as it is in the file: `out.len() == row_bytes()`.
    ///
    /// # Errors
    /// When the file cannot be read, or an element is not a finite number.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn read_row(&self, i: usize, out: &mut [u8]) -> Result<()> {
        assert!(i < self.rows && out.len() == self.row_bytes());
        self.source.read_at(self.at + (i * out.len()) as u64, out)?;
        match self.format.not_finite(out) {
            None => Ok(()),
            Some(block) => {
                let index = i * self.columns + block * self.format.block();
                Err(Error::NotFinite { tensor: self.name.into(), index })
            }
        }
    }

    /// Row `i` as f32, exactly. `scratch` is for the bytes of the file.
    ///
    /// # Errors
    /// As [`Tensor::read_row`].
    pub fn row_f32(&self, i: usize, scratch: &mut Vec<u8>, out: &mut [f32]) -> Result<()> {
        scratch.resize(self.row_bytes(), 0);
        self.read_row(i, scratch)?;
        self.format.decode(scratch, out);
        Ok(())
    }

    /// Row `i` as bf16 bits, rounded to the nearest even. `scratch` is for the bytes of the file.
    ///
    /// # Errors
    /// As [`Tensor::read_row`]; also when an element is too large for bf16.
    pub fn row_bf16(&self, i: usize, scratch: &mut Vec<u8>, out: &mut [u16]) -> Result<()> {
        scratch.resize(self.row_bytes(), 0);
        self.read_row(i, scratch)?;
        if self.format == Format::Bf16 {
            out.iter_mut().zip(halves(scratch)).for_each(|(o, bits)| *o = bits);
            return Ok(());
        }
        // In pieces that stay in the L1 cache, whole blocks of every format.
        const PIECE: usize = 256;
        let bytes = self.format.block_bytes() * PIECE / self.format.block();
        let mut values = [0f32; PIECE];
        for (piece, (part, out)) in scratch.chunks(bytes).zip(out.chunks_mut(PIECE)).enumerate() {
            let values = &mut values[..out.len()];
            self.format.decode(part, values);
            for (j, (o, &value)) in out.iter_mut().zip(&*values).enumerate() {
                *o = bf16_from_f32(value);
                if *o & 0x7f80 == 0x7f80 {
                    let index = i * self.columns + piece * PIECE + j;
                    return Err(Error::NotFinite { tensor: self.name.into(), index });
                }
            }
        }
        Ok(())
    }

    /// Whether `other`, of the same shape, has the same elements.
    ///
    /// # Errors
    /// As [`Tensor::read_row`].
    pub fn same_as(&self, other: &Tensor) -> Result<bool> {
        assert!((self.rows, self.columns) == (other.rows, other.columns));
        let (mut mine, mut theirs, mut scratch) = (vec![0.0; self.columns], vec![0.0; self.columns], Vec::new());
        for i in 0..self.rows {
            self.row_f32(i, &mut scratch, &mut mine)?;
            other.row_f32(i, &mut scratch, &mut theirs)?;
            if mine != theirs {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// All elements as f32, exactly.
    ///
    /// # Errors
    /// As [`Tensor::read_row`]; also when there is no memory for them.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let elements = self.rows * self.columns;
        let mut out = Vec::new();
        out.try_reserve_exact(elements).map_err(|_| Error::Memory { bytes: elements.saturating_mul(4) })?;
        out.resize(elements, 0.0);
        let mut scratch = Vec::new();
        for (i, row) in out.chunks_exact_mut(self.columns.max(1)).enumerate() {
            self.row_f32(i, &mut scratch, row)?;
        }
        Ok(out)
    }
}
