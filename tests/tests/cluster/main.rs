//! Clusters of real processes: etcd, PostgreSQL, HAProxy, agents. Few, slow, and nothing in them is a twin.
//!
//! `REGENT_RIGS` says how many run side by side (as many as cores, 4 at the most), `REGENT_RACES` how often the bootstrap race is run.

#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod bad_data;
mod bad_input;
mod bootstrap;
mod callbacks;
mod control;
mod crash;
mod divergence;
mod etcd_outage;
mod failsafe;
mod generate;
mod growth;
mod guardian;
mod logical;
mod methods;
mod missing_log;
mod mixed;
mod parameters;
mod peer_tool;
mod restore;
mod rewind;
mod seeds;
mod standby_cluster;
mod support;
mod switchover;
mod synchronous;
mod ui;
mod watchdog;
mod zero_loss;
