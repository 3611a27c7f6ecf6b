//! The disk tier of `serve`: where it is, what it may take, and of which model it is.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kvist_base::{Codec, DomainId};
use kvist_kernels::Isa;
use kvist_model::NUMERICS_VERSION;
use kvist_server::{CARRIED_NAME, Keys, OPERATOR, Tenant};
use kvist_store::vfs::{RealVfs, Vfs};
use kvist_store::{Encryption, Fingerprint, OpenError, Restored, Store, StoreConfig, StoreTier};

use crate::failure::{Failure, Result};
use crate::load::{self, Plan};
use crate::model::Chosen;
use crate::progress::Progress;
use crate::settings::keys::{KV_DIR, KV_DISK, KV_KEY_FILE, KV_TYPE};
use crate::settings::{Origin, Settings, Value};
use crate::size::human;
use crate::{complain, hub};

/// The budget where none is given: this, or a tenth of what is free.
const DEFAULT_BUDGET: u64 = 10 << 30;
/// How often somebody who waits for a digest looks how far it is.
const LOOK: Duration = Duration::from_millis(20);

/// What the settings say of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    pub dir: PathBuf,
    pub budget: u64,
    pub encryption: Encryption,
    /// Whether somebody asked for this very store: then a start without it is a failure.
    asked: bool,
}

/// Fills in where the store is and what it may take; `None`: off, or there is no place for it.
pub fn wish(settings: &mut Settings) -> Option<Wish> {
    let asked = [&KV_DIR, &KV_DISK].iter().any(|key| *settings.origin(key) != Origin::Default);
    if settings.number(&KV_DISK) == Some(0) {
        return None;
    }
    let (caches, configs) = hub::own_directories();
    if let Some(dir) = caches {
        settings.fill(&KV_DIR, Value::Text(dir.join("kvist").join("kv").display().to_string()));
    }
    if let Some(dir) = configs {
        settings.fill(&KV_KEY_FILE, Value::Text(dir.join("kvist").join("kv.key").display().to_string()));
    }
    let dir = PathBuf::from(settings.text(&KV_DIR)?);
    let there = dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
    let free = RealVfs::new().free(there).unwrap_or(DEFAULT_BUDGET);
    settings.fill(&KV_DISK, Value::Size(DEFAULT_BUDGET.min(free / 10)));
    let encryption = match settings.text(&KV_KEY_FILE) {
        Some("off") => Encryption::Off,
        Some(file) => Encryption::Keys(file.into()),
        None => Encryption::Keys(dir.join("kv.key")),
    };
    Some(Wish { dir, budget: settings.number(&KV_DISK)?, encryption, asked })
}

/// Bytes of memory that the store takes: chunks that wait to be written, and those that were read and not yet taken.
pub fn memory(free: Option<u64>) -> u64 {
    2 * free.map_or(64 << 20, |free| (free / 32).clamp(16 << 20, 256 << 20))
}

/// The open store and what was found in it.
pub struct Opened {
    pub tier: StoreTier,
    pub restored: Restored,
    pub wish: Wish,
}

impl Opened {
    /// A line for the start-up page.
    pub fn summary(&self) -> String {
        let Opened { restored, wish, .. } = self;
        let plain = if wish.encryption == Encryption::Off { ", not encrypted" } else { "" };
        format!("{} in {}{plain}; {restored}", human(wish.budget), wish.dir.display())
    }
}

/// A digest of the model's files that is made while the model loads.
pub struct Digest {
    thread: std::thread::JoinHandle<std::io::Result<[u8; 32]>>,
    /// Bytes that were read.
    done: Arc<AtomicU64>,
}

impl Digest {
    /// Begins to read `files`; `seed` stands for what is in no file.
    pub fn begin(files: Vec<PathBuf>, seed: Vec<u8>) -> Digest {
        let done = Arc::new(AtomicU64::new(0));
        let read = Arc::clone(&done);
        let thread = std::thread::spawn(move || {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&seed);
            let mut buffer = vec![0; 1 << 20];
            for path in files {
                let mut file = File::open(path)?;
                hasher.update(&file.metadata()?.len().to_le_bytes());
                loop {
                    let n = file.read(&mut buffer)?;
                    if n == 0 {
                        break;
                    }
                    hasher.update(&buffer[..n]);
                    read.fetch_add(n as u64, Ordering::Relaxed);
                }
            }
            Ok(*hasher.finalize().as_bytes())
        });
        Digest { thread, done }
    }

    /// Waits for its end.
    pub fn take(self) -> Result<[u8; 32]> {
        let read =
            self.thread.join().unwrap_or_else(|_| Err(std::io::Error::other("the thread that reads them panicked")));
        read.map_err(|e| Failure::new(format!("the model's files: {e}"), "check the disk"))
    }

    /// Waits for its end and shows how far it is, of about `total` bytes.
    pub fn take_shown(self, progress: &Progress, total: u64) -> Result<[u8; 32]> {
        while !self.thread.is_finished() {
            progress.bytes(self.done.load(Ordering::Relaxed).min(total), total);
            std::thread::sleep(LOOK);
        }
        self.take()
    }
}

/// Opens the store of a model. Where nobody asked for this very store, what is wrong with it is told, and the server goes
/// without.
pub fn open(
    wish: Wish,
    plan: &Plan,
    settings: &Settings,
    digest: Digest,
    keys: Option<&Keys>,
) -> Result<Option<Opened>> {
    let asked = wish.asked;
    match try_open(wish, plan, settings, digest, keys) {
        Ok(opened) => Ok(Some(opened)),
        Err(failure) if asked => Err(failure),
        Err(failure) => {
            complain(&format!("warning: {}; nothing is kept on disk", failure.what));
            Ok(None)
        }
    }
}

fn try_open(wish: Wish, plan: &Plan, settings: &Settings, digest: Digest, keys: Option<&Keys>) -> Result<Opened> {
    let config = config(&wish, &plan.chosen, settings, plan.budget.context, plan.isa, &digest.take()?);
    let memory = plan.budget.store / 2;
    // One chunk must fit in each.
    let memory = memory.max(config.chunk_bytes() as u64);
    let config = StoreConfig { saves: memory, staging: memory, io_threads: plan.threads.clamp(2, 4), ..config };
    let (store, restored) = Store::open(Arc::new(RealVfs::new()), config).map_err(|e| failure(&wish, e))?;
    let register = |domain, name: &str| {
        store.register(domain, name).map_err(|e| {
            let what = format!("--kv-dir {}: the key of {name} cannot be kept: {e}", wish.dir.display());
            Failure::new(what, "make room on the disk, or set --kv-disk off")
        })
    };
    register(DomainId::PUBLIC, PUBLIC_NAME)?;
    register(OPERATOR, &Tenant::operator().store_name())?;
    for tenant in keys.map(Keys::tenants).into_iter().flatten() {
        register(tenant.domain, &tenant.store_name())?;
    }
    // Each cut has a key of its own, and what was carried over most of them was evicted since.
    store.release_keys(|name| name.contains(CARRIED_NAME));
    Ok(Opened { tier: StoreTier::new(store), restored, wish })
}

/// What the public domain is called in a store.
pub const PUBLIC_NAME: &str = "public";

/// The store of a model: where it is, and what the bytes of its chunks depend on. `weights`: the digest of its files.
pub fn config(
    wish: &Wish,
    chosen: &Chosen,
    settings: &Settings,
    context: usize,
    isa: Isa,
    weights: &[u8; 32],
) -> StoreConfig {
    let codec = codec(settings);
    let mut hasher = blake3::Hasher::new();
    hasher.update(weights);
    // One set of frequencies or another, by the context.
    let rotations = chosen.config.ropes.iter().map(|rope| rope.rotation(context));
    let rest = (rotations.collect::<Vec<_>>(), chosen.form, codec.to_string(), isa.bits(), NUMERICS_VERSION);
    hasher.update(format!("{rest:?}").as_bytes());
    let fingerprint = Fingerprint { digest: *hasher.finalize().as_bytes(), text: text(chosen, settings, isa) };
    let layout = chosen.config.layout_of(codec);
    let slices = layout.layers.iter().map(|layer| layer.bytes).collect();
    StoreConfig::new(wish.dir.clone(), wish.budget, fingerprint, slices, wish.encryption.clone())
}

/// What a fingerprint is of, for people.
pub fn text(chosen: &Chosen, settings: &Settings, isa: Isa) -> String {
    let codec = codec(settings);
    format!("{} {} {codec} {} numerics {NUMERICS_VERSION}", chosen.name, chosen.kind(), isa.bits())
}

/// How chunks are stored.
fn codec(settings: &Settings) -> Codec {
    load::codec(settings.text(&KV_TYPE).unwrap_or_default())
}

/// What is told of a store that cannot be opened.
pub fn failure(wish: &Wish, error: OpenError) -> Failure {
    let dir = wish.dir.display();
    let hint = match &error {
        OpenError::Locked(_) => "stop that process, or set another --kv-dir, or --kv-disk off".into(),
        OpenError::Newer { .. } => "nothing was changed in it; set another --kv-dir, or --kv-disk off".into(),
        OpenError::Key { .. } => "set --kv-key-file to a file that only you can read, or --kv-disk off".into(),
        OpenError::Budget { least } => format!("set --kv-disk {} or more, or off", human(*least).replace(' ', "")),
        OpenError::Layout | OpenError::Io(_) => "check the directory and its rights, or set --kv-disk off".into(),
    };
    Failure::new(format!("--kv-dir {dir}: {error}"), hint)
}
