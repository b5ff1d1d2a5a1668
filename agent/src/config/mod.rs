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
mod effective;
mod environment;
mod etcd;
mod fill;
mod known;
mod local;
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
pub use check::{Finding, Severity, check};
pub use effective::{Effective, effective};
pub use etcd::EtcdConfig;
pub use local::{Basic, ControlConfig, CtlConfig, LocalConfig, LogConfig, LogType, RestConfig, WatchdogConfig};
pub use node::{At, Entry, Node, Value};
pub use problem::{ConfigErrors, Problem};
pub use secret::Secret;
pub use show::{Secrets, print_config, sample};
pub use sources::Sources;
pub use table::{Change, KEYS, Key, Kind, State};
pub use yaml::{YamlError, parse as parse_yaml};

pub(crate) use local::{log_level, store_path};
pub(crate) use node::python_float;
pub(crate) use resolve::is_plain_text;
