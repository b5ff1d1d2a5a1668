//! HAProxy before the nodes, with the check forms of the field.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::process::{Process, clean};
use super::programs::{Account, Programs};
use super::settings::{NodeAddress, ProxyPorts, haproxy_cfg};
use super::sql::Target;
use super::{Trouble, ports};

/// A running HAProxy.
#[derive(Debug)]
pub struct Haproxy {
    ports: ProxyPorts,
    config: PathBuf,
    process: Mutex<Process>,
}

impl Haproxy {
    /// Starts it before `nodes`; `fall` as [`Settings::haproxy_fall`](super::Settings::haproxy_fall).
    ///
    /// # Errors
    /// No free ports, or it cannot be started.
    pub fn start(
        dir: &Path,
        programs: &Programs,
        account: Account,
        fall: u32,
        nodes: &[NodeAddress],
    ) -> Result<Self, Trouble> {
        let ports = ProxyPorts { http_check: ports::free()?, tcp_check: ports::free()?, standbys: ports::free()? };
        let config = dir.join("haproxy.cfg");
        std::fs::write(&config, haproxy_cfg(ports, fall, nodes))?;
        let mut command = clean(&programs.haproxy);
        command.current_dir(dir).arg("-db").arg("-f").arg(&config);
        let process = Process::start("haproxy", account, &dir.join("haproxy.log"), &mut command)?;
        Ok(Haproxy { ports, config, process: Mutex::new(process) })
    }

    fn with<T>(&self, f: impl FnOnce(&mut Process) -> T) -> T {
        f(&mut self.process.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The way to the primary that `option httpchk GET /primary` finds.
    #[must_use]
    pub fn by_http(&self) -> Target {
        Target { host: Ipv4Addr::LOCALHOST, port: self.ports.http_check }
    }

    /// The way to the primary that a raw `GET /leader HTTP/1.0` finds.
    #[must_use]
    pub fn by_tcp(&self) -> Target {
        Target { host: Ipv4Addr::LOCALHOST, port: self.ports.tcp_check }
    }

    /// The way to the standbys.
    #[must_use]
    pub fn standbys(&self) -> Target {
        Target { host: Ipv4Addr::LOCALHOST, port: self.ports.standbys }
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.with(|p| p.pid())
    }

    /// Leaves it running.
    pub(super) fn keep(&self) {
        self.with(Process::keep);
    }

    /// The end of its log.
    #[must_use]
    pub fn tail(&self) -> String {
        self.with(|p| p.tail())
    }
}
