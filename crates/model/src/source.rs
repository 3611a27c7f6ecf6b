//! Where a model comes from: a directory, bytes compiled into the program, or a random generator.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::thread;

use kvist_weights::{Tensors, bf16_from_f32, bf16_to_f32};

use crate::config::{Config, MAX_CONFIG};
use crate::error::{Error, Result};
use crate::names::{Roots, parameters};
use crate::shapes;

/// Names a model.
#[derive(Clone, Debug)]
pub enum ModelSource {
    /// A Hugging Face directory: `config.json`, safetensors weights, perhaps `generation_config.json`.
    Dir(PathBuf),
    /// The same files compiled into the program.
    Embedded { config: &'static [u8], generation_config: Option<&'static [u8]>, weights: &'static [u8] },
    /// Random weights of a shape in [`shapes::NAMES`], the same for the same seed.
    Random { shape: String, seed: u64 },
}

/// A configuration and the weights that fit it, not yet read.
pub(crate) struct Checkpoint {
    pub config: Config,
    params: Params,
}

enum Params {
    Stored(Tensors, Roots),
    Random(u64),
}

impl Checkpoint {
    pub fn open(source: &ModelSource) -> Result<Checkpoint> {
        match source {
            ModelSource::Dir(dir) => {
                let config = read(&dir.join("config.json"))?;
                let generation = dir.join("generation_config.json");
                let generation = if generation.exists() { Some(read(&generation)?) } else { None };
                let config = Config::parse(&config, generation.as_deref())?;
                Checkpoint::stored(config, Tensors::open(dir)?)
            }
            ModelSource::Embedded { config, generation_config, weights } => {
                Checkpoint::stored(Config::parse(config, *generation_config)?, Tensors::from_bytes(*weights)?)
            }
            ModelSource::Random { shape, seed } => {
                Ok(Checkpoint { config: shapes::by_name(shape)?, params: Params::Random(*seed) })
            }
        }
    }

    /// The weights must be those of the configuration: all of them, in their shapes, and no others.
    fn stored(config: Config, tensors: Tensors) -> Result<Checkpoint> {
        let roots = Roots::find(|name| tensors.names().any(|n| n == name));
        let mut expected = Vec::new();
        for (name, shape) in parameters(&config) {
            let name = roots.stored(&name);
            tensors.tensor(&name, &shape)?;
            expected.push(name);
        }
        expected.sort();
        let head = roots.stored("lm_head.weight");
        for name in tensors.names() {
            // Some exporters store what the configuration already says.
            let redundant = name.ends_with(".rotary_emb.inv_freq") || (config.tied && name == head);
            if !redundant && !roots.is_other_part(name) && expected.binary_search_by(|e| e.as_str().cmp(name)).is_err()
            {
                return Err(kvist_weights::Error::Unexpected { tensor: name.into() }.into());
            }
        }
        Ok(Checkpoint { config, params: Params::Stored(tensors, roots) })
    }

    /// Appends a parameter's elements in row-major order.
    pub fn append<E: Element>(&self, name: &str, shape: &[usize], threads: usize, out: &mut Vec<E>) -> Result<()> {
        match &self.params {
            Params::Stored(tensors, roots) => E::append(&tensors.tensor(&roots.stored(name), shape)?, out),
            Params::Random(seed) => {
                let start = out.len();
                let elements: usize = shape.iter().product();
                out.try_reserve_exact(elements)
                    .map_err(|_| kvist_weights::Error::Memory { bytes: elements * size_of::<E>() })?;
                out.resize(start + elements, E::from_bf16(0));
                if name.ends_with("norm.weight") {
                    let one = if self.config.block.norm_less_one { 0.0 } else { 1.0 };
                    out[start..].fill(E::from_bf16(bf16_from_f32(one)));
                } else {
                    // Uniform, with the variance that keeps a unit input at unit size through a matrix.
                    let scale = (3.0 / shape.last().copied().unwrap_or(1) as f32).sqrt();
                    fill_random(&mut out[start..], scramble(*seed ^ hash(name)), scale, threads);
                }
                Ok(())
            }
        }
    }
}

/// An element as an executor wants it: f32, or the bits of a bf16.
pub(crate) trait Element: Copy + Send {
    fn append(tensor: &kvist_weights::Tensor, out: &mut Vec<Self>) -> Result<()>;
    fn from_bf16(bits: u16) -> Self;
}

impl Element for f32 {
    fn append(tensor: &kvist_weights::Tensor, out: &mut Vec<Self>) -> Result<()> {
        if out.is_empty() {
            *out = tensor.to_f32()?;
        } else {
            out.extend(tensor.to_f32()?);
        }
        Ok(())
    }

    fn from_bf16(bits: u16) -> Self {
        bf16_to_f32(bits)
    }
}

impl Element for u16 {
    fn append(tensor: &kvist_weights::Tensor, out: &mut Vec<Self>) -> Result<()> {
        Ok(tensor.append_bf16(out)?)
    }

    fn from_bf16(bits: u16) -> Self {
        bits
    }
}

/// Elements that one task fills. The values depend on it, not on the number of threads.
const BLOCK: usize = 1 << 16;

fn fill_random<E: Element>(out: &mut [E], seed: u64, scale: f32, threads: usize) {
    let share = out.len().div_ceil(BLOCK).div_ceil(threads.max(1)).max(1) * BLOCK;
    thread::scope(|scope| {
        for (i, part) in out.chunks_mut(share).enumerate() {
            scope.spawn(move || {
                let mut word = seed.wrapping_add((i * share / 4) as u64);
                for four in part.chunks_mut(4) {
                    word = word.wrapping_add(1);
                    let bits = scramble(word);
                    for (j, e) in four.iter_mut().enumerate() {
                        let uniform = (bits >> (16 * j)) as u16 as i16 as f32 / 32768.0;
                        *e = E::from_bf16(bf16_from_f32(uniform * scale));
                    }
                }
            });
        }
    });
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
fn scramble(word: u64) -> u64 {
    let z = word.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// FNV-1a.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ b as u64).wrapping_mul(0x100_0000_01b3))
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let done = File::open(file).and_then(|f| f.take(MAX_CONFIG + 1).read_to_end(&mut bytes));
    match done {
        Err(error) => Err(Error::Io { file: file.into(), error }),
        Ok(n) if n as u64 > MAX_CONFIG => {
            let error = std::io::Error::other(format!("larger than {MAX_CONFIG} bytes"));
            Err(Error::Io { file: file.into(), error })
        }
        Ok(_) => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_weights_do_not_depend_on_threads() {
        let fill = |threads| {
            let mut out = vec![0f32; 3 * BLOCK + 17];
            fill_random(&mut out, 7, 0.5, threads);
            out
        };
        let one = fill(1);
        assert!((2..=5).all(|threads| fill(threads) == one));
        let mean = one.iter().sum::<f32>() / one.len() as f32;
        let variance = one.iter().map(|v| v * v).sum::<f32>() / one.len() as f32;
        assert!(mean.abs() < 0.005 && (variance - 0.25 / 3.0).abs() < 0.002, "{mean} {variance}");
        assert!(one.iter().all(|v| v.abs() <= 0.5));
    }
}
