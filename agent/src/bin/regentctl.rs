//! `regentctl`, the control program.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use regent::config::ControlConfig;
use regent::ctl::{Cli, CtlError, cluster_path, run};
use regent_dcs::etcd::EtcdDcs;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let _ = rustls::crypto::ring::default_provider().install_default(); // Only the first of a process counts.
    let done = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run(&cli, connect)),
        Err(error) => Err(error.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // There is nobody left to tell that stderr is closed.
            let _ = writeln!(std::io::stderr(), "{}", error.line());
            ExitCode::from(error.status())
        }
    }
}

/// The way to one cluster.
async fn connect(config: &ControlConfig, scope: &str) -> Result<EtcdDcs, CtlError> {
    let mut etcd = config.etcd.clone();
    etcd.find().await.map_err(CtlError::Connect)?;
    let settings = etcd.settings(&cluster_path(config, scope));
    EtcdDcs::connect(settings).await.map_err(|error| CtlError::Connect(error.to_string()))
}
