//! Where a model comes from: a directory, a GGUF file, bytes compiled into the program, or a random generator.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use kvist_weights::{Gguf, MetaValue, Tensors};

use crate::config::{Config, MAX_CONFIG};
use crate::error::{Error, Result};
use crate::gguf;
use crate::matrix::Packing;
use crate::model::WeightForm;
use crate::names::{Roots, parameters};
use crate::parameter::Parameter;
use crate::shapes;

/// Names a model.
#[derive(Clone, Debug)]
pub enum ModelSource {
    /// A Hugging Face directory: `config.json`, safetensors weights, perhaps `generation_config.json`.
    Dir(PathBuf),
    /// A GGUF file, or the first of several parts.
    Gguf(PathBuf),
    /// The files of a directory, compiled into the program.
    Embedded { config: &'static [u8], generation_config: Option<&'static [u8]>, weights: &'static [u8] },
    /// Random weights of a shape in [`shapes::NAMES`], the same for the same seed.
    Random { shape: String, seed: u64 },
}

/// A configuration and the weights that fit it, not yet read.
pub struct Checkpoint {
    config: Config,
    store: Store,
}

enum Store {
    Tensors(Tensors, Roots),
    Gguf(Box<Gguf>, gguf::Names),
    Random(u64),
}

impl Checkpoint {
    /// Reads the configuration, and the headers of the weights. The weights must be those of the configuration: all of
    /// them, in their shapes, and no others.
    pub fn open(source: &ModelSource) -> Result<Checkpoint> {
        match source {
            ModelSource::Dir(dir) => {
                let config = read(&dir.join("config.json"))?;
                let generation = dir.join("generation_config.json");
                let generation = if generation.exists() { Some(read(&generation)?) } else { None };
                let config = Config::parse(&config, generation.as_deref())?;
                Checkpoint::of_tensors(config, Tensors::open(dir)?)
            }
            ModelSource::Gguf(path) => Checkpoint::of_gguf(Gguf::open(path)?),
            ModelSource::Embedded { config, generation_config, weights } => {
                Checkpoint::of_tensors(Config::parse(config, *generation_config)?, Tensors::from_bytes(*weights)?)
            }
            ModelSource::Random { shape, seed } => {
                Ok(Checkpoint { config: shapes::by_name(shape)?, store: Store::Random(*seed) })
            }
        }
    }

    /// The model of an open GGUF file.
    pub fn of_gguf(file: Gguf) -> Result<Checkpoint> {
        let (config, names) = gguf::config(&file)?;
        Checkpoint { config, store: Store::Gguf(Box::new(file), names) }.checked()
    }

    fn of_tensors(mut config: Config, tensors: Tensors) -> Result<Checkpoint> {
        let roots = Roots::find(|name| tensors.contains(name));
        let [embedding, head] = ["model.embed_tokens.weight", "lm_head.weight"].map(|name| roots.stored(name));
        if config.tied && tensors.contains(&head) {
            // Often a copy. Where it is not, it was trained by itself, whatever the configuration says.
            let shape = [config.vocab, config.hidden];
            config.tied = tensors.tensor(&embedding, &shape)?.same_as(&tensors.tensor(&head, &shape)?)?;
        }
        Checkpoint { config, store: Store::Tensors(tensors, roots) }.checked()
    }

    fn checked(self) -> Result<Checkpoint> {
        let mut expected = Vec::new();
        for (name, shape) in parameters(&self.config) {
            expected.push(self.parameter(&name, &shape)?.stored_name().to_owned());
        }
        expected.sort();
        let tensors = match &self.store {
            Store::Tensors(tensors, _) => tensors,
            Store::Gguf(file, _) => &file.tensors,
            Store::Random(_) => return Ok(self),
        };
        for name in tensors.names() {
            let known = expected.binary_search_by(|e| e.as_str().cmp(name)).is_ok();
            if !known && !self.does_without(name) {
                return Err(kvist_weights::Error::Unexpected { tensor: name.into() }.into());
            }
        }
        Ok(self)
    }

    /// Whether a stored tensor is no parameter: some exporters store what the configuration already says.
    fn does_without(&self, name: &str) -> bool {
        match &self.store {
            Store::Tensors(_, roots) => {
                name.ends_with(".rotary_emb.inv_freq")
                    || (self.config.tied && name == roots.stored("lm_head.weight"))
                    || roots.is_other_part(name)
            }
            _ => gguf::is_configuration(name),
        }
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What a GGUF file says besides its tensors: tokenizer, chat template, names.
    pub fn metadata(&self) -> Option<&BTreeMap<String, MetaValue>> {
        match &self.store {
            Store::Gguf(file, _) => Some(&file.metadata),
            _ => None,
        }
    }

    /// Bytes of all weights in their files.
    pub fn bytes(&self) -> u64 {
        match &self.store {
            Store::Tensors(tensors, _) => tensors.bytes(),
            Store::Gguf(file, _) => file.tensors.bytes(),
            Store::Random(_) => 2 * self.config.parameters(),
        }
    }

    /// Bytes that the weights take in memory in this form.
    pub fn memory(&self, form: WeightForm) -> Result<u64> {
        let mut total = 0;
        for (name, shape) in parameters(&self.config) {
            let parameter = self.parameter(&name, &shape)?;
            let (rows, columns) = (parameter.rows(), parameter.columns());
            let matrix = shape.len() == 2;
            total += if matrix { Packing::of(&parameter, form).bytes(rows, columns) } else { 4 * columns as u64 };
        }
        Ok(total)
    }

    /// The parameter of this Hugging Face name, which must have this shape.
    pub(crate) fn parameter(&self, name: &str, shape: &[usize]) -> Result<Parameter<'_>> {
        match &self.store {
            Store::Tensors(tensors, roots) => Ok(Parameter::stored(name, tensors.tensor(&roots.stored(name), shape)?)),
            Store::Gguf(file, names) => names.parameter(file, &self.config, name, shape),
            Store::Random(seed) => {
                let one = if self.config.block.norm_less_one { 0.0 } else { 1.0 };
                Ok(Parameter::random(name, shape, *seed, one))
            }
        }
    }
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
