//! A directory whose parts do not belong together, or are damaged, is refused with a typed error and a hint.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::fixtures;
use kvist_model::{Error, LoadOptions, Model, ModelSource, OracleExecutor};
use kvist_weights::Error as Weights;

/// A copy of a reference model, removed at the end.
struct Copy(PathBuf);

impl Copy {
    fn of(model: &str, test: &str) -> Copy {
        let dir = std::env::temp_dir().join(format!("kvist-model-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        for entry in fs::read_dir(fixtures().join(model)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
        }
        Copy(dir)
    }

    fn edit(&self, file: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.0.join(file)).unwrap();
        assert!(text.contains(from), "{from} in {file}");
        fs::write(self.0.join(file), text.replace(from, to)).unwrap();
    }

    fn error(&self) -> Error {
        let error = load(&self.0).err().expect("refused");
        assert!(!error.to_string().is_empty() && !error.hint().is_empty());
        error
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn load(dir: &Path) -> Result<OracleExecutor, Error> {
    OracleExecutor::new(&ModelSource::Dir(dir.into()), 1, None)
}

#[test]
fn weights_of_another_model() {
    // The biases would be left out without a word.
    let copy = Copy::of("qwen2", "biases");
    copy.edit("config.json", "\"qwen2\"", "\"llama\"");
    assert!(matches!(copy.error(), Error::Weights(Weights::Unexpected { .. })));
    let copy = Copy::of("llama3", "layers");
    copy.edit("config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    assert!(matches!(copy.error(), Error::Weights(Weights::Missing { .. })));
    copy.edit("config.json", "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 1");
    assert!(matches!(copy.error(), Error::Weights(Weights::Unexpected { .. })));
    // A promise of a huge vocabulary allocates nothing: the file has to keep it.
    copy.edit("config.json", "\"vocab_size\": 512", "\"vocab_size\": 4194304");
    assert!(matches!(copy.error(), Error::Weights(Weights::Shape { .. })));
}

#[test]
fn files_missing_or_cut() {
    let copy = Copy::of("llama3", "files");
    let weights = copy.0.join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 1]).unwrap();
    assert!(matches!(copy.error(), Error::Weights(Weights::Truncated { .. })));
    fs::remove_file(&weights).unwrap();
    assert!(matches!(copy.error(), Error::Weights(Weights::NoWeights { .. })));
    fs::remove_file(copy.0.join("generation_config.json")).unwrap();
    fs::write(&weights, &bytes).unwrap();
    assert!(load(&copy.0).is_ok());
    fs::write(copy.0.join("config.json"), vec![b' '; 2 << 20]).unwrap();
    assert!(matches!(copy.error(), Error::Io { .. }));
    fs::remove_file(copy.0.join("config.json")).unwrap();
    assert!(matches!(copy.error(), Error::Io { .. }));

    let copy = Copy::of("qwen2-sharded", "shard");
    assert!(load(&copy.0).is_ok());
    fs::remove_file(copy.0.join("model-00002-of-00002.safetensors")).unwrap();
    assert!(matches!(copy.error(), Error::Weights(Weights::Io { .. })));
}

#[test]
fn contexts_and_shapes() {
    let source = common::dir("llama3");
    for context in [0, 1 << 20] {
        let error = OracleExecutor::new(&source, 1, Some(context)).err().unwrap();
        assert!(matches!(error, Error::Context { .. }) && error.hint().contains("tokens"));
    }
    let random = ModelSource::Random { shape: "llama-9".into(), seed: 0 };
    let error = OracleExecutor::new(&random, 1, None).err().unwrap();
    assert!(error.hint().contains("llama-3.2-1b"));
}

#[test]
fn progress_rises_to_the_whole() {
    let heard = std::cell::RefCell::new(Vec::new());
    let progress = |done, total| heard.borrow_mut().push((done, total));
    let model = Model::load(&common::dir("qwen2"), &LoadOptions { threads: 2, progress: &progress }).unwrap();
    let heard = heard.into_inner();
    assert!(heard.len() > 8 && heard.is_sorted());
    assert!(heard.iter().all(|(_, total)| *total == model.config().parameters()));
    assert_eq!(heard.last().map(|(done, _)| *done), Some(model.config().parameters()));
}
