//! Clusters of real processes: etcd, agents with their PostgreSQL, HAProxy, a client that writes.
//!
//! ```text
//!   Writer ──► HAProxy ──┬──► n1: regent + postgres ──┐
//!              (checks   ├──► n2: regent + postgres ──┼──► etcd
//!               8008)    └──► n3: regent + postgres ──┘
//! ```
//!
//! Everything of a [`Rig`] lives in one temporary directory with ports of its own, runs as an ordinary user (PostgreSQL
//! refuses root), and ends with the value: by process id, in `Drop`, also after a panic. What a killed test left behind
//! is ended by the next one ([`stray`]). Nothing here waits by sleeping a guessed time: see [`Rig::wait`].

use std::fmt;

pub mod canary;
mod cluster;
pub mod costs;
pub mod etcd;
pub mod haproxy;
pub mod http;
pub mod net;
pub mod node;
pub mod ports;
pub mod process;
pub mod programs;
pub mod settings;
pub mod sql;
pub mod stray;
mod wait;
pub mod writer;

pub use cluster::Rig;
pub use node::Node;
pub use settings::Settings;
pub use wait::poll;
pub use writer::{Journal, Way, Writer};

/// What went wrong, where, and the ends of the logs that tell more.
///
/// `Debug` shows the text as it is, so that a test may return it.
pub struct Trouble(String);

impl Trouble {
    /// Trouble with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Trouble(text.into())
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Trouble {}

impl From<std::io::Error> for Trouble {
    fn from(e: std::io::Error) -> Self {
        Trouble(e.to_string())
    }
}
