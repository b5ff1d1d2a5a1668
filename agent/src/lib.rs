//! The shell around the judgement of `regent-core`: the loop, the executor, REST, configuration, `regentctl`.

pub mod api;
pub mod cli;
pub mod config;
pub mod ctl;
pub mod logging;
pub mod status;
