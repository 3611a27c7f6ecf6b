//! What the bitwise campaign runs on: the committed fixture models and the embedded model, on every ISA path.

use std::path::{Path, PathBuf};

use kvist_base::{Codec, Executor};
use kvist_kernels::Isa;
use kvist_model::{Canary, Checkpoint, LoadOptions, Model, ModelSource, PoolSize, WeightForm, testing};
use kvist_weights::Gguf;

use crate::bitwise::Subject;

/// What the model that the program carries is called here.
const EMBEDDED: &str = "embedded";

/// The embedded model runs once in this many cases; the fixtures share the rest.
const EMBEDDED_EVERY: u64 = 40;

pub struct CpuSubject {
    name: String,
    model: Model,
    isa: Isa,
    codec: Codec,
    heavy: bool,
    canary: Option<Canary>,
}

impl Subject for CpuSubject {
    fn name(&self) -> String {
        format!("{} in {} on {}", self.name, self.codec, self.isa)
    }

    fn vocab(&self) -> usize {
        self.model.config().vocab
    }

    fn context(&self) -> usize {
        self.model.config().context
    }

    fn heavy(&self) -> bool {
        self.heavy
    }

    fn encodes(&self) -> bool {
        self.codec != Codec::Kv16
    }

    fn executor(&self, chunks: u32, open: u32, threads: usize) -> Box<dyn Executor> {
        let size = PoolSize { codec: self.codec, chunks, open };
        let executor = self.model.clone().with_pool(size, None, self.isa, threads).expect("room for a small pool");
        match self.canary {
            None => Box::new(executor),
            Some(canary) => Box::new(executor.with_canary(canary)),
        }
    }
}

/// Root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The model that the program carries.
pub fn embedded() -> Model {
    load(&root().join("assets/model"))
}

fn load(dir: &Path) -> Model {
    load_as(dir, WeightForm::AsFile)
}

fn load_as(dir: &Path, weights: WeightForm) -> Model {
    let options = LoadOptions { threads: 2, weights, ..LoadOptions::default() };
    Model::load(&ModelSource::Dir(dir.to_path_buf()), &options).unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
}

/// Models in blocks: of several formats side by side as in a file, and made of floats at load time.
fn quantised(fixtures: &Path) -> Vec<(String, Model)> {
    let file = Gguf::from_bytes(testing::gguf::model(testing::gguf::mixed)).expect("a file of our own");
    let mixed = Checkpoint::of_gguf(file).and_then(|file| Model::of(&file, &LoadOptions::default()));
    let mut models = vec![("mixed blocks".to_string(), mixed.expect("a model of our own"))];
    for (name, form) in [("llama3", WeightForm::Q8), ("smollm2", WeightForm::Q4)] {
        models.push((format!("{name} as {form:?}"), load_as(&fixtures.join(name), form)));
    }
    for form in [WeightForm::Q8, WeightForm::Q4] {
        models.push((format!("{EMBEDDED} as {form:?}"), load_as(&root().join("assets/model"), form)));
    }
    models
}

/// Every fixture, the embedded model, and some of them quantised, with KV in `codec`; on `isa`, or on every path that the
/// machine has.
pub fn all(isa: Option<Isa>, codec: Codec) -> Vec<CpuSubject> {
    build(isa, codec, None)
}

/// The same with a deliberate bug.
pub fn with_canary(isa: Option<Isa>, codec: Codec, canary: Canary) -> Vec<CpuSubject> {
    build(isa, codec, Some(canary))
}

fn build(isa: Option<Isa>, codec: Codec, canary: Option<Canary>) -> Vec<CpuSubject> {
    let fixtures = root().join("crates/model/tests/fixtures");
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(&fixtures)
        .expect("the fixtures are committed")
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.join("config.json").exists())
        .collect();
    dirs.sort();
    assert!(dirs.len() >= 3, "at least three fixtures: {dirs:?}");
    dirs.push(root().join("assets/model"));
    let mut models: Vec<(String, Model)> = dirs
        .iter()
        .map(|d| (d.file_name().expect("a directory").to_string_lossy().replace("model", EMBEDDED), load(d)))
        .collect();
    models.extend(quantised(&fixtures));
    let paths = isa.map_or_else(Isa::available, |isa| vec![isa]);
    let subject = |(name, model): &(String, Model), isa| {
        let heavy = name.starts_with(EMBEDDED);
        CpuSubject { name: name.clone(), model: model.clone(), isa, codec, heavy, canary }
    };
    paths.iter().flat_map(|&isa| models.iter().map(move |m| subject(m, isa))).collect()
}

/// The subject of a seed: paths and fixtures in turn, the embedded model now and then.
pub fn pick(subjects: &[CpuSubject], seed: u64) -> &CpuSubject {
    let heavy = seed % EMBEDDED_EVERY == EMBEDDED_EVERY - 1;
    let of_weight: Vec<&CpuSubject> = subjects.iter().filter(|s| s.heavy == heavy).collect();
    let turn = if heavy { seed / EMBEDDED_EVERY } else { seed };
    of_weight[turn as usize % of_weight.len()]
}

/// What a campaign over these subjects covers, in a few words.
pub fn scope(subjects: &[CpuSubject]) -> String {
    let mut paths: Vec<String> = subjects.iter().map(|s| s.isa.to_string()).collect();
    paths.dedup();
    let codec = subjects.first().map_or(String::new(), |s| format!(", KV in {}", s.codec));
    format!("{} models on {}{codec}", subjects.len() / paths.len(), paths.join(" and "))
}
