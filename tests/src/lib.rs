//! Regent under test: clusters of real processes ([`rig`]).

pub mod rig;
