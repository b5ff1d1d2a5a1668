//! Regent under test.
//!
//! - [`world`]: a cluster in one thread: real agents, twins of etcd and PostgreSQL, virtual time, one seed.
//! - [`faults`]: what happens to it. [`checks`]: what must hold at every instant, and after healing.
//! - [`planted`]: known-wrong judgements that the simulation must find out, or it proves nothing.
//! - [`script`]: the scenario language.
//! - [`rig`]: clusters of real processes. [`failover`]: how fast and how safely they fail over.

pub mod checks;
pub mod exhaustive;
pub mod failover;
pub mod faults;
pub mod guardian;
pub mod planted;
pub mod rig;
pub mod rng;
pub mod script;
pub mod simulation;
pub mod trace;
pub mod world;
