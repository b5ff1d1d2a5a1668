//! `regentctl`, the control program.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use regent::config::ControlConfig;
use regent::ctl::{Cli, CtlError, run};
use regent_core::units::{LeaseId, Revision};
use regent_dcs::{Dcs, DcsError, Lease, Read, Write as DcsWrite, Written};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run(&cli, connect)),
        Err(error) => Err(error.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // There is nobody left to tell that stderr is closed.
            let _ = writeln!(std::io::stderr(), "{}", error.line());
            ExitCode::FAILURE
        }
    }
}

/// The way to one cluster. To be completed with `regent_dcs::etcd`: endpoints, credentials and TLS files are in
/// `config.etcd`, the path of the cluster is `ctl::cluster_path(config, scope)`.
async fn connect(_config: &ControlConfig, _scope: &str) -> Result<NoStore, CtlError> {
    Err(CtlError::Connect("this build has no etcd client".to_owned()))
}

/// A store that does not exist; gives way to the real client.
#[derive(Clone)]
enum NoStore {}

impl Dcs for NoStore {
    async fn read(&self, _: Duration) -> Result<Read, DcsError> {
        match *self {}
    }

    async fn grant(&self, _: Duration, _: Duration) -> Result<Lease, DcsError> {
        match *self {}
    }

    async fn keep_alive(&self, _: LeaseId, _: Duration) -> Result<Duration, DcsError> {
        match *self {}
    }

    async fn revoke(&self, _: LeaseId, _: Duration) -> Result<(), DcsError> {
        match *self {}
    }

    async fn write(&self, _: DcsWrite, _: Duration) -> Result<Written, DcsError> {
        match *self {}
    }

    async fn changed(&self, _: Revision) {
        match *self {}
    }
}
