//! The layers of configuration, as the loop uses them: what they amount to under a given `config` key.

use regent_core::config::Config;
use regent_pgctl::Settings;
use serde_json::{Map, Value};

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

    /// Keeps a copy of the `config` key beside the data (`patroni.dynamic.json`, config.md 1.3).
    fn remember(&self, dynamic: &Value);

    /// Reads files again (SIGHUP, `POST /reload`).
    ///
    /// # Errors
    /// What is wrong; the old configuration stays in force.
    fn reload(&mut self) -> Result<(), String>;
}
