//! Which model, and its text side.

mod files;
mod find;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use kvist_model::{Config, ModelSource, shapes};
use kvist_text::{ChatTemplate, TextError, Tokenizer};

use crate::failure::{Failure, Result};
use crate::hub::Cache;
use crate::memory::Weights;
pub use find::state;
use find::{Found, Place};

const EMBEDDED_CONFIG: &[u8] = include_bytes!("../../../../assets/model/config.json");
const EMBEDDED_GENERATION: &[u8] = include_bytes!("../../../../assets/model/generation_config.json");
const EMBEDDED_WEIGHTS: &[u8] = include_bytes!("../../../../assets/model/model.safetensors");
const EMBEDDED_TOKENIZER: &[u8] = include_bytes!("../../../../assets/model/tokenizer.json");
const EMBEDDED_TOKENIZER_CONFIG: &[u8] = include_bytes!("../../../../assets/model/tokenizer_config.json");

/// Name of the model compiled into the binary.
pub const EMBEDDED_NAME: &str = "kvist-small";

/// A model that was asked for; its weights are not read yet.
#[derive(Debug)]
pub struct Chosen {
    pub source: ModelSource,
    /// Id that clients see unless another is set.
    pub name: String,
    pub config: Config,
    /// What the user should know about the choice.
    pub note: Option<String>,
}

/// Tokenizer and chat template.
pub struct Text {
    pub tokenizer: Tokenizer,
    /// Why there is none, if there is none.
    pub template: std::result::Result<ChatTemplate, TextError>,
}

/// Resolves MODEL; nothing is the embedded model.
pub fn choose(model: Option<&str>) -> Result<Chosen> {
    let Some(model) = model else {
        let config = Config::parse(EMBEDDED_CONFIG, Some(EMBEDDED_GENERATION))?;
        let source = ModelSource::Embedded {
            config: EMBEDDED_CONFIG,
            generation_config: Some(EMBEDDED_GENERATION),
            weights: EMBEDDED_WEIGHTS,
        };
        return Ok(Chosen { source, name: EMBEDDED_NAME.into(), config, note: None });
    };
    let Found { place, name, note } = find::find(model, Cache::of_process().as_ref())?;
    match place {
        Place::Directory(dir) => {
            let config = config(&dir)?;
            Ok(Chosen { source: ModelSource::Dir(dir), name, config, note })
        }
        Place::Gguf(_) => {
            Err(Failure::usage(format!("{model}: GGUF files are not supported by this version"), find::NEEDED))
        }
    }
}

/// The configuration of a directory.
fn config(dir: &Path) -> Result<Config> {
    let generation = dir.join("generation_config.json");
    let generation = if generation.exists() { Some(read(&generation)?) } else { None };
    Ok(Config::parse(&read(&dir.join("config.json"))?, generation.as_deref())?)
}

/// A model of a known shape with random weights.
pub fn random(shape: &str) -> Result<Chosen> {
    let config = shapes::by_name(shape)?;
    Ok(Chosen { source: ModelSource::Random { shape: shape.into(), seed: 1 }, name: shape.into(), config, note: None })
}

impl Chosen {
    pub fn is_embedded(&self) -> bool {
        matches!(self.source, ModelSource::Embedded { .. })
    }

    /// Where it lies, unless it is in the program.
    pub fn place(&self) -> Option<String> {
        match &self.source {
            ModelSource::Dir(dir) => Some(dir.display().to_string()),
            _ => None,
        }
    }

    /// How its weights are kept in memory.
    pub fn form(&self) -> &'static str {
        "bf16"
    }

    /// What its weights take in memory.
    pub fn weights(&self) -> Weights {
        let c = &self.config;
        let largest = c.vocab.max(2 * c.intermediate) as u64 * c.hidden as u64;
        Weights { bytes: 2 * c.parameters(), loading: 2 * largest }
    }

    /// Reads tokenizer and template. A model without a template can still complete text.
    pub fn text(&self) -> Result<Text> {
        let (tokenizer, config, jinja) = match &self.source {
            ModelSource::Dir(dir) => {
                let jinja = dir.join("chat_template.jinja");
                let jinja = if jinja.exists() { Some(read(&jinja)?) } else { None };
                let config = dir.join("tokenizer_config.json");
                let config = if config.exists() { read(&config)? } else { b"{}".to_vec() };
                (read(&dir.join("tokenizer.json"))?, config, jinja)
            }
            _ => (EMBEDDED_TOKENIZER.to_vec(), EMBEDDED_TOKENIZER_CONFIG.to_vec(), None),
        };
        let damaged = |what: String| Failure::new(what, "fetch the file again, from the model's own repository");
        let tokenizer = Tokenizer::from_bytes(&tokenizer).map_err(|e| damaged(e.to_string()))?;
        let config = serde_json::from_slice(&config).map_err(|e| damaged(format!("tokenizer_config.json: {e}")))?;
        let jinja =
            jinja.map(String::from_utf8).transpose().map_err(|e| damaged(format!("chat_template.jinja: {e}")))?;
        Ok(Text { tokenizer, template: ChatTemplate::from_config(&config, jinja.as_deref()) })
    }
}

/// Bytes of a text file beside the weights at most; the largest tokenizers have some 30 MB.
const MOST_TEXT: u64 = 256 << 20;

fn read(path: &Path) -> Result<Vec<u8>> {
    let fails = |what: String| Failure::new(format!("{}: {what}", path.display()), find::NEEDED);
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MOST_TEXT + 1).read_to_end(&mut bytes));
    match read.map_err(|e| fails(files::plain(&e)))? as u64 {
        0..=MOST_TEXT => Ok(bytes),
        _ => Err(fails(format!("larger than {MOST_TEXT} bytes"))),
    }
}

impl From<kvist_model::Error> for Failure {
    fn from(error: kvist_model::Error) -> Self {
        Failure::new(error.to_string(), error.hint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_the_embedded_model() {
        let chosen = choose(None).unwrap();
        assert!(chosen.is_embedded());
        assert_eq!((chosen.config.vocab, chosen.config.context), (4096, 4096));
        let text = chosen.text().unwrap();
        assert_eq!(text.tokenizer.vocab_size(), 4096);
        assert!(text.template.is_ok());
    }

    #[test]
    fn an_empty_directory_says_what_belongs_there() {
        let dir = std::env::temp_dir().join(format!("kvist-empty-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let failure = choose(dir.to_str()).unwrap_err();
        std::fs::remove_dir(&dir).unwrap();
        assert!(failure.what.contains("no files") && failure.hint.contains("tokenizer.json"), "{failure}");
    }
}
