//! One node: an agent, its PostgreSQL, their files.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::http::{self, Answer};
use super::net::Host;
use super::process::{Process, clean, tail};
use super::programs::Account;
use super::settings::{NodeAddress, NodePorts};
use super::sql::Target;
use super::wait::poll;
use super::{Trouble, stray};

/// The longest that one question to a node may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// A node of a rig.
#[derive(Debug)]
pub struct Node {
    name: String,
    dir: PathBuf,
    program: Mutex<PathBuf>,
    account: Account,
    host: Host,
    ports: NodePorts,
    agent: Mutex<Option<Process>>,
}

impl Node {
    /// A node whose directory and `patroni.yml` exist.
    pub(super) fn new(
        name: &str,
        dir: PathBuf,
        program: PathBuf,
        account: Account,
        host: Host,
        ports: NodePorts,
    ) -> Self {
        let program = Mutex::new(program);
        Node { name: name.to_owned(), dir, program, account, host, ports, agent: Mutex::new(None) }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Option<Process>) -> T) -> T {
        f(&mut self.agent.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory: `patroni.yml`, `data`, logs, the socket.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.join("patroni.yml")
    }

    /// The data directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Its ports.
    #[must_use]
    pub fn ports(&self) -> NodePorts {
        self.ports
    }

    /// Its name and where it is.
    #[must_use]
    pub fn address(&self) -> NodeAddress {
        NodeAddress { name: self.name.clone(), host: self.host.address(), ports: self.ports }
    }

    /// Where it runs.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its REST API.
    #[must_use]
    pub fn rest(&self) -> SocketAddr {
        (self.host.address(), self.ports.rest).into()
    }

    /// Its PostgreSQL, without a proxy.
    #[must_use]
    pub fn server(&self) -> Target {
        Target { host: self.host.address(), port: self.ports.postgres }
    }

    /// The agent's log so far.
    #[must_use]
    pub fn agent_log(&self) -> String {
        fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default()
    }

    /// From its next start on the agent is this program.
    pub fn run_by(&self, program: &Path) {
        program.clone_into(&mut self.program.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Whether this program is the agent.
    #[must_use]
    pub fn is_run_by(&self, program: &Path) -> bool {
        *self.program.lock().unwrap_or_else(PoisonError::into_inner) == program
    }

    /// Starts the agent, its output appended to `agent.log`.
    ///
    /// # Errors
    /// It runs already, or cannot be started.
    pub fn start(&self) -> Result<(), Trouble> {
        self.start_with(&[])
    }

    /// Starts the agent with these environment variables.
    ///
    /// # Errors
    /// It runs already, or cannot be started.
    pub fn start_with(&self, environment: &[(&str, &str)]) -> Result<(), Trouble> {
        self.with(|agent| {
            if agent.as_mut().is_some_and(|process| process.ended().is_none()) {
                return Err(Trouble::new(format!("the agent of {} runs already", self.name)));
            }
            let program = self.program.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut command = clean(program);
            command.current_dir(&self.dir).arg(self.config()).envs(environment.iter().copied());
            let log = self.dir.join("agent.log");
            *agent = Some(self.host.within(|| Process::start(&self.name, self.account, &log, &mut command))?);
            Ok(())
        })
    }

    /// The agent's process id, while it runs.
    #[must_use]
    pub fn agent(&self) -> Option<i32> {
        self.with(|agent| agent.as_mut().and_then(|p| p.ended().is_none().then(|| p.pid())))
    }

    /// Sends a signal to the agent alone.
    pub fn signal_agent(&self, signal: Signal) {
        self.with(|agent| agent.iter_mut().for_each(|p| p.signal(signal)));
    }

    /// How the agent ended, once it has.
    ///
    /// # Errors
    /// It still runs after `within`, or was never started.
    pub fn agent_ended(&self, within: Duration) -> Result<ExitStatus, Trouble> {
        let ended = || {
            self.with(|agent| match agent {
                Some(process) => process.ended().ok_or("still runs"),
                None => Err("was not started"),
            })
        };
        let status = poll(within, || ended().map_err(str::to_owned));
        status.map_err(|e| Trouble::new(format!("the agent of {} {e} after {within:?}\n{}", self.name, self.tails())))
    }

    /// Kills the agent (SIGKILL) and leaves PostgreSQL running.
    pub fn kill_agent(&self) {
        self.with(|agent| {
            if let Some(process) = agent {
                process.kill();
            }
        });
    }

    /// The postmaster's process id, while it lives.
    #[must_use]
    pub fn postmaster(&self) -> Option<i32> {
        let file = fs::read_to_string(self.data().join("postmaster.pid")).ok()?;
        let pid: i32 = file.lines().next()?.trim().parse().ok()?;
        // The id may have gone to another process since: postmasters are called so, and it is none of another directory's.
        stray::look(pid).filter(|seen| !seen.dead && seen.program == "postgres").map(|_| pid)
    }

    /// Kills the postmaster alone (SIGKILL); its children notice and leave.
    pub fn kill_postmaster(&self) -> Option<i32> {
        let pid = self.postmaster()?;
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
        Some(pid)
    }

    /// Sends a signal to the postmaster and all its children.
    pub fn signal_server(&self, signal: Signal) {
        let them: Vec<_> = stray::of(&self.dir).into_iter().filter(|p| p.program == "postgres").collect();
        stray::signal(&them, signal);
    }

    /// Kills agent and server at once (SIGKILL), as a host does that loses its power.
    pub fn kill(&self) {
        // Stopped first, so that none sees another's end; an agent that did would act.
        let them = stray::of(&self.dir);
        stray::signal(&them, Signal::SIGSTOP);
        stray::signal(&them, Signal::SIGKILL);
        self.kill_agent();
    }

    /// Whether the whole node is stopped (SIGSTOP) or goes on: agent, server, guardian.
    pub fn freeze(&self, freeze: bool) {
        let them = stray::of(&self.dir);
        stray::signal(&them, if freeze { Signal::SIGSTOP } else { Signal::SIGCONT });
    }

    /// Kills all of it and starts the agent again on an empty disk: it clones the primary.
    ///
    /// # Errors
    /// The files cannot be removed, or the agent not started.
    pub fn replace(&self) -> Result<(), Trouble> {
        self.kill();
        // What was stopped dies when it goes on.
        stray::end(&self.dir);
        if self.data().exists() {
            fs::remove_dir_all(self.data())?;
        }
        self.start()
    }

    /// `GET path` from the agent's REST API.
    ///
    /// # Errors
    /// As [`http::get`].
    pub fn get(&self, path: &str) -> Result<Answer, Trouble> {
        http::get(self.rest(), path, PATIENCE)
    }

    /// Whether PostgreSQL is a standby.
    ///
    /// # Errors
    /// It does not answer.
    pub fn in_recovery(&self) -> Result<bool, Trouble> {
        self.server().value("select pg_is_in_recovery()", PATIENCE).map(|value| value == "t")
    }

    /// Leaves the agent running.
    pub(super) fn keep(&self) {
        self.with(|agent| agent.iter_mut().for_each(Process::keep));
    }

    /// The ends of the agent's and the server's log.
    #[must_use]
    pub fn tails(&self) -> String {
        let state = self.agent().map_or_else(|| "not running".to_owned(), |pid| format!("pid {pid}"));
        let agent = tail(&self.dir.join("agent.log"), 25);
        let server = tail(&self.dir.join("postgresql.log"), 12);
        format!("--- {}: agent ({state})\n{agent}\n--- {}: PostgreSQL\n{server}\n", self.name, self.name)
    }
}
