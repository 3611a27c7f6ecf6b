use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Component, Path};

use kvist_base::Dtype;
use serde::Deserialize;

use crate::convert::{bf16_from_f32, bf16_to_f32, f16_to_f32};
use crate::error::{Error, Result};
use crate::header::{Element, Header, MAX_HEADER};
use crate::source::Source;

/// Bytes read at a time.
const BLOCK: usize = 1 << 20;

/// All tensors of a model, by name.
pub struct Tensors {
    shards: Vec<Source>,
    tensors: BTreeMap<String, Place>,
    bytes: u64,
}

struct Place {
    shard: usize,
    element: Element,
    shape: Vec<usize>,
    /// Byte in the shard.
    at: u64,
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

    fn from_sources(shards: Vec<Source>) -> Result<Tensors> {
        let mut tensors = BTreeMap::<String, Place>::new();
        let mut bytes = 0;
        for (shard, source) in shards.iter().enumerate() {
            let (header, data) = read_header(source)?;
            bytes += header.bytes;
            for (name, entry) in header.tensors {
                if let Some(first) = tensors.get(&name) {
                    let [first, second] = [first.shard, shard].map(|s| shards[s].name().to_path_buf());
                    return Err(Error::Duplicate { tensor: name, first, second });
                }
                let at = data + entry.data_offsets.0;
                tensors.insert(name, Place { shard, element: entry.dtype, shape: entry.shape, at });
            }
        }
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

    /// The tensor of this name, which must have this shape and a dtype that can be read.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>> {
        let (name, place) =
            self.tensors.get_key_value(name).ok_or_else(|| Error::Missing { tensor: name.to_string() })?;
        if place.shape != shape {
            return Err(Error::Shape { tensor: name.clone(), expected: shape.into(), found: place.shape.clone() });
        }
        match &place.element {
            &Element::Known(dtype) => {
                let elements = shape.iter().product();
                Ok(Tensor { name, dtype, elements, at: place.at, source: &self.shards[place.shard] })
            }
            Element::Other(found) => Err(Error::Dtype { tensor: name.clone(), found: found.clone() }),
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

/// One tensor: a name and a place; the elements are read on demand and converted.
#[derive(Clone, Copy)]
pub struct Tensor<'a> {
    name: &'a str,
    dtype: Dtype,
    elements: usize,
    at: u64,
    source: &'a Source,
}

impl Tensor<'_> {
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Bytes in the file.
    pub fn bytes(&self) -> u64 {
        (self.elements * self.dtype.bytes()) as u64
    }

    /// All elements as f32, exactly.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let mut out = reserve(self.elements)?;
        self.blocks(|dtype, bytes| match dtype {
            Dtype::F32 => out.extend(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b))),
            Dtype::F16 => out.extend(halves(bytes).map(f16_to_f32)),
            Dtype::Bf16 => out.extend(halves(bytes).map(bf16_to_f32)),
        })?;
        match out.iter().position(|v| !v.is_finite()) {
            Some(index) => Err(Error::NotFinite { tensor: self.name.into(), index }),
            None => Ok(out),
        }
    }

    /// Appends all elements as bf16 bits, rounded to the nearest even.
    pub fn append_bf16(&self, out: &mut Vec<u16>) -> Result<()> {
        let start = out.len();
        out.try_reserve_exact(self.elements).map_err(|_| Error::Memory { bytes: self.elements * 2 })?;
        self.blocks(|dtype, bytes| match dtype {
            Dtype::F32 => {
                out.extend(bytes.as_chunks().0.iter().map(|&b| bf16_from_f32(f32::from_le_bytes(b))));
            }
            Dtype::F16 => out.extend(halves(bytes).map(|b| bf16_from_f32(f16_to_f32(b)))),
            Dtype::Bf16 => out.extend(halves(bytes)),
        })?;
        match out[start..].iter().position(|v| v & 0x7f80 == 0x7f80) {
            Some(index) => Err(Error::NotFinite { tensor: self.name.into(), index }),
            None => Ok(()),
        }
    }

    /// Hands out the tensor's bytes in order, whole elements at a time.
    fn blocks(&self, mut each: impl FnMut(Dtype, &[u8])) -> Result<()> {
        let total = self.bytes() as usize;
        if let Source::Memory(data) = self.source {
            each(self.dtype, &data[self.at as usize..self.at as usize + total]);
            return Ok(());
        }
        let mut block = vec![0; total.min(BLOCK)];
        let mut done = 0;
        while done < total {
            let part = &mut block[..(total - done).min(BLOCK)];
            self.source.read_at(self.at + done as u64, part)?;
            each(self.dtype, part);
            done += part.len();
        }
        Ok(())
    }
}

fn halves(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.as_chunks().0.iter().map(|&b| u16::from_le_bytes(b))
}

fn reserve<T>(n: usize) -> Result<Vec<T>> {
    let mut out = Vec::new();
    out.try_reserve_exact(n).map_err(|_| Error::Memory { bytes: n * size_of::<T>() })?;
    Ok(out)
}
