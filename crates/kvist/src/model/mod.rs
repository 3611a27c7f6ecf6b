//! Which model, and its text side.

mod files;
mod find;
mod gguf;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use kvist_model::{Checkpoint, Config, ModelSource, WeightForm};
use kvist_text::{ChatTemplate, TextError, Tokenizer};

use crate::failure::{Failure, Result};
use crate::hub::Cache;
pub use find::state;
use find::{Found, Place};

const EMBEDDED_CONFIG: &[u8] = include_bytes!("../../../../assets/model/config.json");
const EMBEDDED_GENERATION: &[u8] = include_bytes!("../../../../assets/model/generation_config.json");
const EMBEDDED_WEIGHTS: &[u8] = include_bytes!("../../../../assets/model/model.safetensors");
const EMBEDDED_TOKENIZER: &[u8] = include_bytes!("../../../../assets/model/tokenizer.json");
const EMBEDDED_TOKENIZER_CONFIG: &[u8] = include_bytes!("../../../../assets/model/tokenizer_config.json");

/// Name of the model compiled into the binary.
pub const EMBEDDED_NAME: &str = "kvist-small";

/// A model that was asked for: its files are known and agree with each other, its weights are not read yet.
pub struct Chosen {
    pub checkpoint: Checkpoint,
    pub config: Config,
    /// Id that clients see unless another is set.
    pub name: String,
    /// What the user should know about the choice.
    pub note: Option<String>,
    pub form: WeightForm,
    /// Bytes that the weights take in memory in this form.
    pub bytes: u64,
    source: ModelSource,
}

/// Tokenizer and chat template.
pub struct Text {
    pub tokenizer: Tokenizer,
    /// Why there is none, if there is none.
    pub template: std::result::Result<ChatTemplate, TextError>,
}

/// Resolves MODEL; nothing is the embedded model. Reads configuration and headers.
pub fn choose(model: Option<&str>, form: WeightForm) -> Result<Chosen> {
    let Some(model) = model else {
        let source = ModelSource::Embedded {
            config: EMBEDDED_CONFIG,
            generation_config: Some(EMBEDDED_GENERATION),
            weights: EMBEDDED_WEIGHTS,
        };
        return Chosen::open(source, EMBEDDED_NAME.into(), form);
    };
    let Found { place, name, note } = find::find(model, Cache::of_process().as_ref())?;
    let source = match place {
        Place::Directory(dir) => ModelSource::Dir(dir),
        Place::Gguf(file) => ModelSource::Gguf(file),
    };
    Ok(Chosen { note, ..Chosen::open(source, name, form)? })
}

/// A model of a known shape with random weights.
pub fn random(shape: &str, form: WeightForm) -> Result<Chosen> {
    Chosen::open(ModelSource::Random { shape: shape.into(), seed: 1 }, shape.into(), form)
}

/// The form of this name in `--weights`.
pub fn form(name: &str) -> WeightForm {
    match name {
        "bf16" => WeightForm::Bf16,
        "q8" => WeightForm::Q8,
        "q4" => WeightForm::Q4,
        _ => WeightForm::AsFile,
    }
}

/// The configuration of a directory.
fn config(dir: &Path) -> Result<Config> {
    let generation = dir.join("generation_config.json");
    let generation = if generation.exists() { Some(read(&generation)?) } else { None };
    Ok(Config::parse(&read(&dir.join("config.json"))?, generation.as_deref())?)
}

impl Chosen {
    fn open(source: ModelSource, name: String, form: WeightForm) -> Result<Chosen> {
        let checkpoint = Checkpoint::open(&source)?;
        let mut config = checkpoint.config().clone();
        if let Some(metadata) = checkpoint.metadata() {
            let ends = gguf::ends(metadata).into_iter().filter(|id| (*id as usize) < config.vocab);
            config.eos.extend(ends);
            config.eos.sort_unstable();
            config.eos.dedup();
        }
        let bytes = checkpoint.memory(form)?;
        Ok(Chosen { checkpoint, config, name, note: None, form, bytes, source })
    }

    pub fn is_embedded(&self) -> bool {
        matches!(self.source, ModelSource::Embedded { .. })
    }

    /// Where it lies, unless it is in the program.
    pub fn place(&self) -> Option<String> {
        match &self.source {
            ModelSource::Dir(path) | ModelSource::Gguf(path) => Some(path.display().to_string()),
            ModelSource::Embedded { .. } | ModelSource::Random { .. } => None,
        }
    }

    /// The files that weights and configuration are in, in order; and what stands for them where there are none.
    pub fn files(&self) -> (Vec<PathBuf>, Vec<u8>) {
        let beside = |dir: &Path, wanted: &dyn Fn(&str) -> bool| {
            let names = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
            let mut names: Vec<PathBuf> =
                names.filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(wanted)).collect();
            names.sort();
            names
        };
        match &self.source {
            ModelSource::Dir(dir) => {
                (beside(dir, &|name| name.ends_with(".safetensors") || name == "config.json"), Vec::new())
            }
            ModelSource::Gguf(file) => {
                // `name-00001-of-00003.gguf`: the first of several.
                let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let parts =
                    name.split_once("-00001-of-").map(|(stem, rest)| (format!("{stem}-"), format!("-of-{rest}")));
                match (parts, file.parent()) {
                    (Some((stem, rest)), Some(dir)) => {
                        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
                        (beside(dir, &|name| name.starts_with(&stem) && name.ends_with(&rest)), Vec::new())
                    }
                    _ => (vec![file.clone()], Vec::new()),
                }
            }
            ModelSource::Embedded { config, weights, .. } => (Vec::new(), [*config, *weights].concat()),
            ModelSource::Random { shape, seed } => (Vec::new(), format!("random {shape} {seed}").into_bytes()),
        }
    }

    /// How its weights are kept in memory, for people.
    pub fn kind(&self) -> String {
        let file = match &self.source {
            ModelSource::Gguf(path) => Some(files::quant_of(path)),
            _ => None,
        };
        match (self.form, file) {
            (WeightForm::AsFile, Some(quant)) if !quant.is_empty() => quant,
            (WeightForm::AsFile, Some(_)) => "the file's types".into(),
            (WeightForm::AsFile | WeightForm::Bf16, _) => "bf16".into(),
            (WeightForm::Q8, None) => "q8".into(),
            (WeightForm::Q4, None) => "q4".into(),
            (WeightForm::Q8, Some(_)) => "the file's types, floats in q8".into(),
            (WeightForm::Q4, Some(_)) => "the file's types, floats in q4".into(),
        }
    }

    /// Reads tokenizer and template. A model without a template can still complete text.
    pub fn text(&self) -> Result<Text> {
        let (tokenizer, config, jinja) = match &self.source {
            ModelSource::Gguf(path) => {
                let empty = Default::default();
                return gguf::text(path, self.checkpoint.metadata().unwrap_or(&empty));
            }
            ModelSource::Dir(dir) => {
                let jinja = optional(dir, "chat_template.jinja")?;
                (read(&dir.join("tokenizer.json"))?, optional(dir, "tokenizer_config.json")?, jinja)
            }
            _ => (EMBEDDED_TOKENIZER.to_vec(), Some(EMBEDDED_TOKENIZER_CONFIG.to_vec()), None),
        };
        let tokenizer = Tokenizer::from_bytes(&tokenizer).map_err(|e| damaged(e.to_string()))?;
        Ok(Text { tokenizer, template: template(&config, &jinja)? })
    }
}

/// The chat template of `tokenizer_config.json` and `chat_template.jinja`.
fn template(config: &Option<Vec<u8>>, jinja: &Option<Vec<u8>>) -> Result<std::result::Result<ChatTemplate, TextError>> {
    let config = match config {
        Some(json) => kvist_text::read_file(json).map_err(|e| damaged(format!("tokenizer_config.json: {e}")))?,
        None => serde_json::Value::Null,
    };
    let jinja = jinja.as_deref().map(str::from_utf8).transpose();
    let jinja = jinja.map_err(|e| damaged(format!("chat_template.jinja: {e}")))?;
    Ok(ChatTemplate::from_config(&config, jinja))
}

fn damaged(what: String) -> Failure {
    Failure::new(what, "fetch the file again, from the model's own repository")
}

/// A file that not every model has.
fn optional(dir: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    let path = dir.join(name);
    if path.exists() { read(&path).map(Some) } else { Ok(None) }
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
        let chosen = choose(None, WeightForm::AsFile).unwrap();
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
        let failure = choose(dir.to_str(), WeightForm::AsFile).err().unwrap();
        std::fs::remove_dir(&dir).unwrap();
        assert!(failure.what.contains("no files") && failure.hint.contains("tokenizer.json"), "{failure}");
    }
}
