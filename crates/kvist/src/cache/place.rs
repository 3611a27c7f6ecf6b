//! The store that the settings mean, as `serve` with the same settings would find it.

use std::sync::Arc;

use kvist_base::DomainId;
use kvist_kernels::Isa;
use kvist_server::{OPERATOR, Owner, Tenant};
use kvist_store::{OpenError, RealVfs, Restored, Store, StoreConfig};

use crate::failure::{Failure, Result};
use crate::load;
use crate::model::Chosen;
use crate::settings::keys::{CTX, ISA, KV_DISK};
use crate::settings::{Origin, Settings};
use crate::store::{self, Digest, PUBLIC_NAME, Wish};

/// Stands between a domain's name and the digest of a cut, in the name of what is carried over it.
pub const CARRIED: &str = " / carried ";
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
}

impl Place {
    /// Resolves the settings and reads the model's files for their digest.
    pub fn find(settings: &mut Settings) -> Result<Place> {
        let bounded = *settings.origin(&KV_DISK) != Origin::Default;
        let Some(wish) = store::wish(settings) else {
            return Err(Failure::usage(
                "--kv-disk off: nothing is kept on disk",
                "give --kv-disk the size that the server has, or leave it out",
            ));
        };
        let isa = load::isa(settings.text(&ISA))?;
        let chosen = load::chosen(settings)?;
        if !wish.dir.is_dir() {
            return Err(Failure::new(
                format!("--kv-dir {}: nothing is kept there", wish.dir.display()),
                "kvist serve makes it and keeps what it computes; name its --kv-dir",
            ));
        }
        let configs = configs(&wish, &chosen, settings, isa)?;
        let context = settings.number(&CTX).map_or(chosen.config.context, |asked| asked as usize);
        Ok(Place { chosen, wish, configs, bounded, context })
    }

    /// Opens it for looking only, beside whoever has it.
    pub fn look(&self) -> Result<(Store, Restored)> {
        let open = |config: &StoreConfig| {
            Store::read_only(Arc::new(RealVfs::new()), config.clone()).map_err(|e| store::failure(&self.wish, e))
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
            Err(e) => Err(store::failure(&self.wish, e)),
        }
    }
}

fn configs(wish: &Wish, chosen: &Chosen, settings: &Settings, isa: Isa) -> Result<Vec<StoreConfig>> {
    let (files, seed) = chosen.files();
    let weights = Digest::begin(files, seed).take()?;
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
    let known: Vec<&str> = known.iter().map(String::as_str).filter(|name| !name.contains(CARRIED)).collect();
    let hint = match &known[..] {
        [] => "it knows nobody: was it written with another --kv-key-file?".into(),
        known => format!("it knows {}", known.join(", ")),
    };
    Failure::new(format!("the store has no key of {name}"), hint)
}
