//! Which model, and its text side.

use std::fs;
use std::path::{Path, PathBuf};

use kvist_model::{Config, ModelSource, shapes};
use kvist_text::{ChatTemplate, TextError, Tokenizer};

use crate::failure::{Failure, Result};

const EMBEDDED_CONFIG: &[u8] = include_bytes!("../../../assets/model/config.json");
const EMBEDDED_GENERATION: &[u8] = include_bytes!("../../../assets/model/generation_config.json");
const EMBEDDED_WEIGHTS: &[u8] = include_bytes!("../../../assets/model/model.safetensors");
const EMBEDDED_TOKENIZER: &[u8] = include_bytes!("../../../assets/model/tokenizer.json");
const EMBEDDED_TOKENIZER_CONFIG: &[u8] = include_bytes!("../../../assets/model/tokenizer_config.json");

/// Name of the model compiled into the binary.
pub const EMBEDDED_NAME: &str = "kvist-small";

const NEEDED: &str = "name a directory with config.json, safetensors weights and tokenizer.json";

/// A model that was asked for; its weights are not read yet.
#[derive(Debug)]
pub struct Chosen {
    pub source: ModelSource,
    /// Id that clients see unless another is set.
    pub name: String,
    pub config: Config,
}

/// Tokenizer and chat template.
pub struct Text {
    pub tokenizer: Tokenizer,
    /// Why there is none, if there is none.
    pub template: std::result::Result<ChatTemplate, TextError>,
}

/// Resolves MODEL: a directory, or nothing for the embedded model.
pub fn choose(model: Option<&str>) -> Result<Chosen> {
    let Some(name) = model else {
        let config = Config::parse(EMBEDDED_CONFIG, Some(EMBEDDED_GENERATION))?;
        let source = ModelSource::Embedded {
            config: EMBEDDED_CONFIG,
            generation_config: Some(EMBEDDED_GENERATION),
            weights: EMBEDDED_WEIGHTS,
        };
        return Ok(Chosen { source, name: EMBEDDED_NAME.into(), config });
    };
    let path = Path::new(name);
    if path.is_dir() {
        return in_directory(path);
    }
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
        return Err(Failure::usage(format!("{name}: GGUF files are not supported by this version"), NEEDED));
    }
    if path.exists() {
        return Err(Failure::usage(format!("{name} is a file"), NEEDED));
    }
    if let Some((owner, repository)) = hub_id(name) {
        return Err(Failure::usage(
            format!("{name}: there is no such directory, and this version does not look up Hugging Face ids"),
            format!(
                "`hf download {owner}/{repository} --local-dir {repository}`, then name the directory {repository}"
            ),
        ));
    }
    Err(Failure::usage(format!("{name}: there is no such directory"), NEEDED))
}

/// A model of a known shape with random weights.
pub fn random(shape: &str) -> Result<Chosen> {
    let config = shapes::by_name(shape)?;
    Ok(Chosen { source: ModelSource::Random { shape: shape.into(), seed: 1 }, name: shape.into(), config })
}

/// `owner/name` in the characters that the hub allows.
fn hub_id(name: &str) -> Option<(&str, &str)> {
    let (owner, repository) = name.split_once('/')?;
    let allowed = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-', '~'])
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    (allowed(owner) && allowed(repository)).then_some((owner, repository))
}

fn in_directory(dir: &Path) -> Result<Chosen> {
    let generation = dir.join("generation_config.json");
    let generation = if generation.exists() { Some(read(&generation)?) } else { None };
    let config = Config::parse(&read(&dir.join("config.json"))?, generation.as_deref())?;
    // `.` and `..` have no name of their own.
    let full = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    let name = full.file_name().map_or("model".into(), |n| n.to_string_lossy().into_owned());
    Ok(Chosen { source: ModelSource::Dir(PathBuf::from(dir)), name, config })
}

impl Chosen {
    pub fn is_embedded(&self) -> bool {
        matches!(self.source, ModelSource::Embedded { .. })
    }

    /// Reads tokenizer and template. A model without a template can still complete text.
    pub fn text(&self) -> Result<Text> {
        let (tokenizer, config, jinja) = match &self.source {
            ModelSource::Dir(dir) => {
                let jinja = dir.join("chat_template.jinja");
                let jinja = if jinja.exists() { Some(read(&jinja)?) } else { None };
                (read(&dir.join("tokenizer.json"))?, read(&dir.join("tokenizer_config.json"))?, jinja)
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

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| Failure::new(format!("{}: {e}", path.display()), NEEDED))
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
    fn what_is_not_supported_is_named() {
        let file = std::env::temp_dir().join(format!("kvist-model-{}.bin", std::process::id()));
        fs::write(&file, "x").unwrap();
        for (model, what, hint) in [
            ("some/where.gguf", "GGUF", "safetensors"),
            ("model.GGUF", "GGUF", "config.json"),
            ("Qwen/Qwen3-0.6B", "Hugging Face ids", "hf download Qwen/Qwen3-0.6B"),
            ("./nowhere", "no such directory", "name a directory"),
            ("nowhere", "no such directory", "name a directory"),
            ("a/b/c", "no such directory", "name a directory"),
            (file.to_str().unwrap(), "is a file", "name a directory"),
        ] {
            let failure = choose(Some(model)).unwrap_err();
            assert!(failure.what.contains(what) && failure.hint.contains(hint), "{failure}");
            assert_eq!(failure.code, 2);
        }
        fs::remove_file(&file).unwrap();
    }

    #[test]
    fn an_empty_directory_says_what_belongs_there() {
        let dir = std::env::temp_dir().join(format!("kvist-empty-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let failure = choose(dir.to_str()).unwrap_err();
        fs::remove_dir(&dir).unwrap();
        assert!(failure.what.contains("config.json") && failure.hint.contains("tokenizer.json"), "{failure}");
    }
}
