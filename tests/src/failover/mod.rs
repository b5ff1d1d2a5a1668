//! The failover bench: real clusters, each node in a network namespace of its own, a fault, and what clients saw of it.
//!
//! ```text
//!   client 1 ──► HAProxy ──► the primary        a row every 20 ms each, on one clock
//!   client 2 ──► n1, n2, n3: the first that takes writes
//!   at each node: a client on the socket, to see which servers take writes at the same time
//! ```
//!
//! [`faults`]: what happens. [`measure`]: one run. [`report`]: many runs, one table.

pub mod faults;
pub mod measure;
pub mod report;
