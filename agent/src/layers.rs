//! The layers of configuration, as the loop uses them: what they amount to under a given `config` key.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use regent_core::config::Config;
use regent_pgctl::Settings;
use serde_json::{Map, Value};

use crate::config::{self, LocalConfig, Problem, Sources};
use crate::logging::Log;
use crate::watchdog;

/// What all layers together amount to.
#[derive(Clone, Debug, PartialEq)]
pub struct Effective {
    /// What decisions read.
    pub core: Config,
    /// What the controller of PostgreSQL needs.
    pub postgres: Settings,
    /// Cluster name.
    pub scope: String,
    /// Published in the member key: `postgres://host:port/dbname`.
    pub conn_url: String,
    /// Published in the member key: `http(s)://host:port/patroni`.
    pub api_url: String,
    /// Published in the member key when `postgresql.proxy_address` is set.
    pub proxy_url: Option<String>,
    /// The kernel's watchdog.
    pub watchdog: watchdog::Settings,
    /// Tags as published (rest-api.md 4.3).
    pub tags: Map<String, Value>,
    /// The tag `noloadbalance`.
    pub noloadbalance: bool,
}

/// Where configuration comes from: files and environment for a real agent, a constant in the simulation.
pub trait Layers {
    /// Merges the layers over `dynamic`, the `config` key; without one, over the cached copy or `bootstrap.dcs`.
    ///
    /// # Errors
    /// What is wrong, for people; the caller keeps what it had.
    fn effective(&self, dynamic: Option<&Value>) -> Result<Effective, String>;

    /// What the holder writes when the `config` key is missing: the cached copy, else `bootstrap.dcs`.
    fn restorable(&self) -> Value;

    /// What whoever makes the cluster writes: `bootstrap.dcs`. A copy beside the data may be another cluster's, whose data that is.
    fn first(&self) -> Value;

    /// Keeps a copy of the `config` key beside the data (`patroni.dynamic.json`, config.md 1.3).
    fn remember(&self, dynamic: &Value);

    /// Reads files again (SIGHUP, `POST /reload`).
    ///
    /// # Errors
    /// What is wrong; the old configuration stays in force.
    fn reload(&mut self) -> Result<(), String>;
}

/// Puts what a reload has read into force; says why it could not.
type Apply = Box<dyn Fn(&LocalConfig) -> Result<(), String>>;

/// The layers of a real agent: files and environment, and the copy of the `config` key beside the data.
pub struct Files {
    sources: Sources,
    local: LocalConfig,
    log: Log,
    /// What else of the local configuration takes effect on a reload.
    apply: Apply,
    /// The `config` key that is known to be in the copy.
    copied: Arc<Mutex<Option<Value>>>,
    /// Warnings that were given already.
    told: Mutex<BTreeSet<String>>,
}

impl Files {
    /// Over a local configuration that was read from `sources`.
    #[must_use]
    pub fn new(sources: Sources, local: LocalConfig, log: Log) -> Files {
        let apply = Box::new(|_: &LocalConfig| Ok(()));
        let files = Files { sources, local, log, apply, copied: Arc::default(), told: Mutex::default() };
        files.tell(&files.local.warnings);
        files
    }

    /// ... and calls `apply` with what a reload has read.
    #[must_use]
    pub fn applied_by(mut self, apply: impl Fn(&LocalConfig) -> Result<(), String> + 'static) -> Files {
        self.apply = Box::new(apply);
        self
    }

    fn tell(&self, warnings: &[Problem]) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for warning in warnings {
            let warning = warning.to_string();
            if told.insert(warning.clone()) {
                tracing::warn!("{warning}");
            }
        }
    }

    fn copy(&self) -> Option<Value> {
        if let Some(copied) = self.copied.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Some(copied);
        }
        config::read_dynamic_cache(&self.local.data_dir).unwrap_or_else(|error| {
            tracing::warn!("the copy of the cluster's configuration: {error}");
            None
        })
    }
}

impl Layers for Files {
    fn effective(&self, dynamic: Option<&Value>) -> Result<Effective, String> {
        let fallback = if dynamic.is_none() { Some(self.restorable()) } else { None };
        let found = config::effective(&self.local, dynamic.or(fallback.as_ref())).map_err(|error| error.to_string())?;
        self.tell(&found.warnings);
        Ok(Effective {
            core: found.core,
            postgres: found.postgres,
            scope: self.local.scope.clone(),
            conn_url: found.conn_url,
            api_url: found.api_url,
            proxy_url: found.proxy_url,
            watchdog: found.watchdog,
            tags: found.tags,
            noloadbalance: found.noloadbalance,
        })
    }

    fn restorable(&self) -> Value {
        self.copy().unwrap_or_else(|| self.first())
    }

    fn first(&self) -> Value {
        self.local.bootstrap_dynamic().unwrap_or_else(|error| {
            tracing::error!("bootstrap.dcs: {error}");
            Value::Object(Map::new())
        })
    }

    fn remember(&self, dynamic: &Value) {
        if self.copied.lock().unwrap_or_else(PoisonError::into_inner).as_ref() == Some(dynamic) {
            return;
        }
        let (data_dir, dynamic, copied) = (self.local.data_dir.clone(), dynamic.clone(), Arc::clone(&self.copied));
        // On a thread of its own: a disk that hangs must not hold the loop.
        std::thread::spawn(move || {
            // An empty directory must stay empty: it is to be filled by initdb or a clone.
            if !data_dir.join("PG_VERSION").exists() {
                return;
            }
            match config::write_dynamic_cache(&data_dir, &dynamic) {
                Ok(()) => *copied.lock().unwrap_or_else(PoisonError::into_inner) = Some(dynamic),
                Err(error) => tracing::warn!("the copy of the cluster's configuration: {error}"),
            }
        });
    }

    fn reload(&mut self) -> Result<(), String> {
        let newer = LocalConfig::load(&self.sources).map_err(|error| error.to_string())?.with_catalog_of(&self.local);
        if newer.is_same_as(&self.local) {
            tracing::info!("No local configuration items changed.");
        }
        let waiting = self.local.needs_restart_for(&newer);
        if !waiting.is_empty() {
            tracing::warn!("changed, and without effect until Regent is restarted: {}", waiting.join(", "));
        }
        (self.apply)(&newer)?;
        self.log.configure(&newer.log).map_err(|error| error.to_string())?;
        self.tell(&newer.warnings);
        self.local = newer;
        Ok(())
    }
}
