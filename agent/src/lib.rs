//! The shell around the judgement of `regent-core`: the loop, the executor, REST, configuration, `regentctl`.

#![expect(async_fn_in_trait, reason = "one generic agent, one thread per agent: no Send bounds wanted")]

mod act;
pub mod agent;
pub mod api;
pub mod cli;
pub mod clock;
pub mod config;
pub mod ctl;
pub mod failsafe;
pub mod generate;
pub mod guardian;
pub mod init;
pub mod job;
pub mod journal;
pub mod layers;
pub mod lease;
pub mod logging;
pub mod peers;
pub mod program;
pub mod report;
mod requests;
mod srv;
pub mod status;
pub mod watchdog;
