//! The store that the settings mean, as `serve` with the same settings would find it.

use std::path::PathBuf;
use std::sync::Arc;

use kvist_base::DomainId;
use kvist_kernels::Isa;
use kvist_server::{CARRIED_NAME, OPERATOR, Owner, Tenant};
use kvist_store::{OpenError, RealVfs, Restored, Store, StoreConfig, fingerprints, is_store};

use crate::failure::{Failure, Result};
use crate::load;
use crate::model::Chosen;
use crate::progress::Progress;
use crate::settings::keys::{CTX, ISA, KV_DISK};
use crate::settings::{Origin, Settings};
use crate::store::{self, Digest, PUBLIC_NAME, Wish};

/// A context that takes the short set of frequencies where a model has two.
const SHORT: usize = 64;
/// Beyond what is there, where nobody says how large the store may be: looking after it is no reason to evict.
const SLACK: u64 = 1 << 30;

pub struct Place {
    pub chosen: Chosen,
    pub wish: Wish,
    /// What the store may be opened with: `serve` may have cut the context to its memory, and some models have other
    /// frequencies then.
    configs: Vec<StoreConfig>,
    /// Whether somebody said how large it may be.
    bounded: bool,
    /// Tokens of the context that was asked for, or that the model has.
    pub context: usize,
    /// The model's files were not read: they may have changed since.
    pub unread: bool,
}

impl Place {
    /// Resolves the settings. What a store has is of one model mostly: where nothing depends on the very bytes of the
    /// model's files (`weights`), they are not read for their digest as long as the store has one fingerprint alone, and it
    /// is of a model of this name under these settings.
    pub fn find(settings: &mut Settings, weights: bool) -> Result<Place> {
        let bounded = *settings.origin(&KV_DISK) != Origin::Default;
        let Some(wish) = store::wish(settings) else {
            return Err(Failure::usage(
                "--kv-disk off: nothing is kept on disk",
                "give --kv-disk the size that the server has, or leave it out",
            ));
        };
        let isa = load::isa(settings.text(&ISA))?;
        let chosen = load::chosen(settings)?;
        check(&wish)?;
        let known = match weights || chosen.files().0.is_empty() {
            true => None,
            false => only(&wish, &store::text(&chosen, settings, isa)),
        };
        let unread = known.is_some();
        let context = settings.number(&CTX).map_or(chosen.config.context, |asked| asked as usize);
        let configs = match known {
            Some(identity) => {
                let config = store::config(&wish, &chosen, settings, context, isa, &[0; 32]);
                vec![StoreConfig { identity: Some(identity), ..config }]
            }
            None => configs(&wish, &chosen, settings, isa)?,
        };
        Ok(Place { chosen, wish, configs, bounded, context, unread })
    }

    /// Opens it for looking only, beside whoever has it.
    pub fn look(&self) -> Result<(Store, Restored)> {
        let open = |config: &StoreConfig| {
            Store::read_only(Arc::new(RealVfs::new()), config.clone()).map_err(|e| self.failure(e))
        };
        let mut opened = open(&self.configs[0])?;
        for other in &self.configs[1..] {
            if opened.1.entries == 0 {
                opened = open(other)?;
            }
        }
        Ok(opened)
    }

    /// Opens it for changes. Refused while a server has it.
    pub fn take(&self) -> Result<Store> {
        let (seen, restored) = self.look()?;
        let mut config = seen.config().clone();
        drop(seen);
        if !self.bounded {
            config.budget = config.budget.max(restored.bytes.saturating_add(SLACK));
        }
        match Store::open(Arc::new(RealVfs::new()), config) {
            Ok((store, _)) => Ok(store),
            Err(OpenError::Locked(pid)) => Err(Failure::new(
                format!("--kv-dir {}: the server with pid {pid} has the store", self.wish.dir.display()),
                "stop it first; ls, explain and verify work beside it",
            )),
            Err(e) => Err(self.failure(e)),
        }
    }

    /// As for a server, without what only a server can do about it.
    fn failure(&self, error: OpenError) -> Failure {
        let hint = match &error {
            OpenError::Key { error, .. } if error.kind() == std::io::ErrorKind::NotFound => {
                "name the --kv-key-file of the server that keeps it: nothing can be read without that key"
            }
            OpenError::Key { .. } => "name the --kv-key-file of the server that keeps it",
            OpenError::Newer { .. } => "nothing was changed in it; look at it with the kvist that wrote it",
            OpenError::Layout | OpenError::Io(_) => "check the directory and its rights",
            OpenError::Locked(_) | OpenError::Budget { .. } => return store::failure(&self.wish, error),
        };
        Failure::new(store::failure(&self.wish, error).what, hint)
    }
}

/// Whether there is a store that can be looked at.
fn check(wish: &Wish) -> Result<()> {
    let what = match is_store(&RealVfs::new(), &wish.dir) {
        Ok(true) => return Ok(()),
        Ok(false) => "there is no store in it".into(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => "there is no such directory".into(),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => "it is no directory".into(),
        Err(e) => e.to_string(),
    };
    Err(Failure::new(
        format!("--kv-dir {}: {what}", wish.dir.display()),
        "kvist serve makes a store and keeps what it computes; name its --kv-dir",
    ))
}

/// What stands in all segments of the store, if it is of a fingerprint with this text.
fn only(wish: &Wish, text: &str) -> Option<[u8; 32]> {
    let found = fingerprints(&RealVfs::new(), &wish.dir).ok()?;
    let mut found = found.into_iter();
    let (identity, theirs) = found.next()?;
    (theirs == text && found.next().is_none()).then_some(identity)
}

fn configs(wish: &Wish, chosen: &Chosen, settings: &Settings, isa: Isa) -> Result<Vec<StoreConfig>> {
    let (files, seed) = chosen.files();
    let size = |file: &PathBuf| file.metadata().map_or(0, |m| m.len());
    let total = files.iter().map(size).sum();
    let progress = Progress::new(format!("reading {} for its fingerprint", chosen.name));
    let weights = Digest::begin(files, seed).take_shown(&progress, total)?;
    let contexts = match settings.number(&CTX) {
        Some(asked) => vec![asked as usize],
        None => vec![chosen.config.context, SHORT],
    };
    let of = |context| store::config(wish, chosen, settings, context, isa, &weights);
    let mut configs: Vec<StoreConfig> = contexts.into_iter().map(of).collect();
    configs.dedup_by(|a, b| a.fingerprint == b.fingerprint);
    Ok(configs)
}

/// What a store calls the domain of a tenant, or of the operator where none is named.
pub fn domain_name(tenant: Option<&str>) -> String {
    let named = |name: &str| Tenant { name: name.into(), domain: DomainId(OPERATOR.0 + 1) };
    tenant.map_or_else(Tenant::operator, named).store_name()
}

/// Makes a tenant's domain and the public one known, and returns the first.
pub fn bind(store: &Store, tenant: Option<&str>) -> Result<Owner> {
    let (name, known) = (domain_name(tenant), store.domains());
    if !known.contains(&name) {
        return Err(unknown(&name, &known));
    }
    let bind = |domain, name: &str| {
        store.register(domain, name).map_err(|e| Failure::new(format!("{name}: {e}"), "check the directory"))
    };
    if known.iter().any(|name| name == PUBLIC_NAME) {
        bind(DomainId::PUBLIC, PUBLIC_NAME)?;
    }
    // Any number but the public one's: nobody else is told of it.
    bind(OPERATOR, &name)?;
    Ok(Owner { domain: OPERATOR, name })
}

/// What is told of a domain that a store does not know.
pub fn unknown(name: &str, known: &[String]) -> Failure {
    let known: Vec<&str> = known.iter().map(String::as_str).filter(|name| !name.contains(CARRIED_NAME)).collect();
    let hint = match &known[..] {
        [] => "nothing is kept in it yet, or it was written with another --kv-key-file".into(),
        known => format!("it knows {}", known.join(", ")),
    };
    Failure::new(format!("the store has no key of {name}"), hint)
}
