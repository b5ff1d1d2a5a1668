//! The configuration: from files, variables and etcd's `config` key to what the agent runs with (contract `config.md`).
//!
//! ```text
//! file or directory ─┐ patch                                        ┌─► core::Config       what the rules read
//! PATRONI_* ─────────┴──────► LocalConfig ─┐ effective()             ├─► pgctl::Settings    what PostgreSQL gets
//! etcd `config` ───────────────────────────┴─────────► Effective ────┼─► RestConfig, LogConfig, tags
//!  (or patroni.dynamic.json, or bootstrap.dcs)                       └─► warnings
//! ```
//!
//! A start refuses only what cannot work: everything else that looks wrong is a warning, because files that the peer runs
//! with must run here (config.md 8). Every message names file, line, column and key.

mod address;
mod advice;
mod cache;
mod check;
mod ciphers;
mod effective;
mod environment;
mod etcd;
mod fill;
mod known;
mod local;
mod log;
mod node;
mod parameters;
mod postgres;
mod problem;
mod resolve;
mod scripts;
mod secret;
mod section;
mod show;
mod slots;
mod sources;
mod table;
mod tags;
mod timing;
mod values;
mod yaml;

pub use address::Address;
pub use advice::{Advice, Weight, advise};
pub use cache::{CacheError, DYNAMIC_CACHE, read_dynamic_cache, write_dynamic_cache};
pub use check::{Finding, Severity, check, ports_in_use};
pub use effective::{Effective, effective};
pub use etcd::{EtcdConfig, SrvName};
pub use local::{Basic, ControlConfig, CtlConfig, LocalConfig, RestConfig, WatchdogConfig};
pub use log::{Attribute, LogConfig, LogType, Piece};
pub use node::{At, Entry, Node, Value};
pub use problem::{ConfigErrors, Problem};
pub use secret::Secret;
pub use show::{Secrets, print_config, sample};
pub use sources::Sources;
pub use table::{Change, KEYS, Key, Kind, State};
pub use yaml::{YamlError, parse as parse_yaml};

pub(crate) use local::store_path;
pub(crate) use log::log_level;
#[cfg(test)]
pub(crate) use log::tests::log_config;
pub(crate) use node::python_float;
pub(crate) use parameters::is_controlled;
pub(crate) use resolve::is_plain_text;
