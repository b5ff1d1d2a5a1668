//! Regent's judgement: the pure function from a snapshot of the world to a decision, and the types it speaks.
//!
//! No IO, no clock, no chance, no lock: time enters as `snapshot.now`, the past as `snapshot.memory`. Start reading at
//! [`rules`]: the tables there are the whole behaviour, in order.

pub mod callbacks;
pub mod cluster;
pub mod config;
pub mod contract;
pub mod failsafe;
pub mod fence;
pub mod fixture;
pub mod inspector;
pub mod memory;
pub mod peers;
pub mod plan;
pub mod postgres;
pub mod quorum;
pub mod request;
pub mod rules;
pub mod slots;
pub mod snapshot;
pub mod sync;
pub mod units;
pub mod whatif;
