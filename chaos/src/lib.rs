//! Regent under real faults.
//!
//! The simulation shows the rules right under its models; this shows the product right under the kernel's. A run is drawn from one
//! seed: what happens to which part, when, and for how long. Clients record what they did and what they were told; checkers
//! read these histories afterwards and know nothing of Regent.

pub mod check;
pub mod clients;
pub mod cluster;
pub mod faults;
pub mod history;
pub mod plan;
pub mod planted;
pub mod report;
pub mod run;
pub mod toxiproxy;
pub mod watch;
