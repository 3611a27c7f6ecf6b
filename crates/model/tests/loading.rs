//! A directory whose parts do not belong together, or are damaged, is refused with a typed error and a hint.

mod common;

use std::fs;
use std::path::Path;

use common::Copy;
use kvist_model::{Error, LoadOptions, Model, ModelSource, OracleExecutor};
use kvist_weights::Error as Weights;

trait Damage {
    fn edit(&self, file: &str, from: &str, to: &str);
    fn error(&self) -> Error;
}

impl Damage for Copy {
    fn edit(&self, file: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.path().join(file)).unwrap();
        assert!(text.contains(from), "{from} in {file}");
        fs::write(self.path().join(file), text.replace(from, to)).unwrap();
    }

    fn error(&self) -> Error {
        let error = load(self.path()).err().expect("refused");
        assert!(!error.to_string().is_empty() && !error.hint().is_empty());
        error
    }
}

fn load(dir: &Path) -> Result<OracleExecutor, Error> {
    OracleExecutor::new(&ModelSource::Dir(dir.into()), 1, None)
}

#[test]
fn weights_of_another_model() {
    // The biases would be left out without a word.
    let copy = Copy::of("qwen2");
    copy.edit("config.json", "\"qwen2\"", "\"llama\"");
    assert!(matches!(copy.error(), Error::Weights(Weights::Unexpected { .. })));
    let copy = Copy::of("llama3");
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
    let copy = Copy::of("llama3");
    let weights = copy.path().join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 1]).unwrap();
    assert!(matches!(copy.error(), Error::Weights(Weights::Truncated { .. })));
    fs::remove_file(&weights).unwrap();
    assert!(matches!(copy.error(), Error::Weights(Weights::NoWeights { .. })));
    fs::remove_file(copy.path().join("generation_config.json")).unwrap();
    fs::write(&weights, &bytes).unwrap();
    assert!(load(copy.path()).is_ok());
    fs::write(copy.path().join("config.json"), vec![b' '; 2 << 20]).unwrap();
    assert!(matches!(copy.error(), Error::Io { .. }));
    fs::remove_file(copy.path().join("config.json")).unwrap();
    assert!(matches!(copy.error(), Error::Io { .. }));

    let copy = Copy::of("qwen2-sharded");
    assert!(load(copy.path()).is_ok());
    fs::remove_file(copy.path().join("model-00002-of-00002.safetensors")).unwrap();
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
    let model =
        Model::load(&common::dir("qwen2"), &LoadOptions { threads: 2, progress: &progress, ..LoadOptions::default() })
            .unwrap();
    let heard = heard.into_inner();
    assert!(heard.len() > 8 && heard.is_sorted());
    // The file has two bytes a weight.
    assert!(heard.iter().all(|(_, total)| *total == 2 * model.config().parameters()));
    assert_eq!(heard.last().map(|(done, _)| *done), Some(2 * model.config().parameters()));
}
