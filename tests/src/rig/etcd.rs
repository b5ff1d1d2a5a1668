//! Real etcd: its servers, and a look into them past the agents.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::net::Host;
use super::process::{Process, clean, output};
use super::programs::{Account, Programs};
use super::{Trouble, ports};

/// An `etcdctl` call takes milliseconds; on a busy machine longer.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Member {
    name: String,
    host: Host,
    client: u16,
    peer: u16,
    process: Option<Process>,
}

impl Member {
    fn peer_url(&self) -> String {
        format!("http://{}:{}", self.host.address(), self.peer)
    }
}

/// An etcd cluster of one or several members.
#[derive(Debug)]
pub struct Etcd {
    server: PathBuf,
    ctl: PathBuf,
    account: Account,
    dir: PathBuf,
    members: Mutex<Vec<Member>>,
}

impl Etcd {
    /// Prepares a member on each host with their files below `dir`; [`Etcd::start`] starts them.
    ///
    /// # Errors
    /// No free ports.
    pub fn new(hosts: Vec<Host>, dir: &Path, programs: &Programs, account: Account) -> Result<Self, Trouble> {
        let member = |(i, host)| {
            let (client, peer) = (ports::free()?, ports::free()?);
            Ok(Member { name: format!("etcd{}", i + 1), host, client, peer, process: None })
        };
        let members = hosts.into_iter().enumerate().map(member).collect::<Result<Vec<_>, Trouble>>()?;
        Ok(Etcd {
            server: programs.etcd.clone(),
            ctl: programs.etcdctl.clone(),
            account,
            dir: dir.to_path_buf(),
            members: Mutex::new(members),
        })
    }

    fn with<T>(&self, f: impl FnOnce(&mut Vec<Member>) -> T) -> T {
        f(&mut self.members.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// All members, as etcd's `--initial-cluster` takes them.
    fn peers(&self) -> String {
        self.with(|members| {
            members.iter().map(|m| format!("{}={}", m.name, m.peer_url())).collect::<Vec<_>>().join(",")
        })
    }

    /// The ports for clients.
    #[must_use]
    pub fn ports(&self) -> Vec<u16> {
        self.with(|members| members.iter().map(|m| m.client).collect())
    }

    /// The addresses for clients.
    #[must_use]
    pub fn endpoints(&self) -> Vec<SocketAddr> {
        self.with(|members| members.iter().map(|m| (m.host.address(), m.client).into()).collect())
    }

    /// Starts the members that do not run, with the data they have.
    ///
    /// # Errors
    /// A server cannot be started.
    pub fn start(&self) -> Result<(), Trouble> {
        let peers = self.peers();
        self.with(|members| {
            for member in members.iter_mut().filter(|m| m.process.is_none()) {
                let client = format!("http://{}:{}", member.host.address(), member.client);
                let peer = member.peer_url();
                let mut command = clean(&self.server);
                command.current_dir(&self.dir).arg("--name").arg(&member.name);
                command.arg("--data-dir").arg(self.dir.join(&member.name));
                command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
                command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
                command.args(["--initial-cluster", &peers, "--initial-cluster-token", "rig"]);
                let log = self.dir.join(format!("{}.log", member.name));
                let start = || Process::start(&member.name, self.account, &log, &mut command);
                member.process = Some(member.host.within(start)?);
            }
            Ok(())
        })
    }

    /// Kills every member (SIGKILL); their data stays.
    pub fn stop(&self) {
        self.with(|members| members.iter_mut().for_each(|m| m.process = None));
    }

    /// Kills one member (SIGKILL), counted from 0; its data stays.
    pub fn stop_one(&self, member: usize) {
        self.with(|members| members.get_mut(member).into_iter().for_each(|m| m.process = None));
    }

    /// The leading member, counted from 0.
    ///
    /// # Errors
    /// None answers that it leads.
    pub fn leader(&self) -> Result<usize, Trouble> {
        let status = self.ask(&["endpoint", "status"])?;
        let leads = |line: &&str| line.split(", ").nth(4) == Some("true");
        let line = status.lines().find(leads).ok_or_else(|| Trouble::new("no etcd member leads"))?;
        let endpoint = line.split(',').next().unwrap_or_default();
        let member = self.endpoints().iter().position(|at| at.to_string() == endpoint);
        member.ok_or_else(|| Trouble::new(format!("{endpoint} is no etcd member of ours")))
    }

    /// Sends a signal to every member; SIGSTOP makes an etcd that takes connections and answers nothing.
    pub fn signal(&self, signal: Signal) {
        self.with(|members| members.iter_mut().filter_map(|m| m.process.as_mut()).for_each(|p| p.signal(signal)));
    }

    /// Sends a signal to one member, counted from 0.
    pub fn signal_one(&self, member: usize, signal: Signal) {
        self.with(|members| {
            members.get_mut(member).and_then(|m| m.process.as_mut()).into_iter().for_each(|p| p.signal(signal))
        });
    }

    /// Process ids of the running members.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        self.with(|members| members.iter().filter_map(|m| m.process.as_ref()).map(Process::pid).collect())
    }

    /// Leaves the members running.
    pub(super) fn keep(&self) {
        self.with(|members| members.iter_mut().filter_map(|m| m.process.as_mut()).for_each(Process::keep));
    }

    /// Answers once the cluster serves linearizable reads.
    ///
    /// # Errors
    /// It does not.
    pub fn health(&self) -> Result<(), Trouble> {
        self.ask(&["get", "/health", "--keys-only"]).map(|_| ())
    }

    /// The value of a key; `None` when there is none.
    ///
    /// # Errors
    /// etcd does not answer.
    pub fn get(&self, key: &str) -> Result<Option<String>, Trouble> {
        let text = self.ask(&["get", key])?;
        Ok(text.split_once('\n').map(|(_, value)| value.strip_suffix('\n').unwrap_or(value).to_owned()))
    }

    /// Every key that begins with `prefix`, sorted.
    ///
    /// # Errors
    /// etcd does not answer.
    pub fn keys(&self, prefix: &str) -> Result<Vec<String>, Trouble> {
        let text = self.ask(&["get", prefix, "--prefix", "--keys-only"])?;
        Ok(text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }

    /// Writes a key, without a lease.
    ///
    /// # Errors
    /// etcd does not answer.
    pub fn put(&self, key: &str, value: &str) -> Result<(), Trouble> {
        // A value that begins with a dash would be an option.
        self.ask(&["put", "--", key, value]).map(|_| ())
    }

    /// Deletes a key.
    ///
    /// # Errors
    /// etcd does not answer.
    pub fn delete(&self, key: &str) -> Result<(), Trouble> {
        self.ask(&["del", key]).map(|_| ())
    }

    /// What `etcdctl` says to these arguments, asked of all members.
    ///
    /// # Errors
    /// It fails, with its last line.
    pub fn ask(&self, args: &[&str]) -> Result<String, Trouble> {
        self.ask_of(&self.endpoints(), args)
    }

    fn ask_of(&self, endpoints: &[SocketAddr], args: &[&str]) -> Result<String, Trouble> {
        let endpoints: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
        let mut command = clean(&self.ctl);
        command.env("ETCDCTL_API", "3").arg("--endpoints").arg(endpoints.join(","));
        command.args(["--dial-timeout=1s", "--command-timeout=2s"]).args(args);
        let out = output(&mut command, PATIENCE)?;
        if out.status.success() {
            Ok(String::from_utf8_lossy(&out.stdout).into_owned())
        } else {
            // Its retries come before its error.
            let said = String::from_utf8_lossy(&out.stderr);
            Err(Trouble::new(format!("etcdctl {}: {}", args.join(" "), said.lines().last().unwrap_or_default())))
        }
    }

    /// Gives the leadership to another member.
    ///
    /// # Errors
    /// No member leads, or there is no other.
    pub fn move_leader(&self) -> Result<(), Trouble> {
        let (leader, endpoints) = (self.leader()?, self.endpoints());
        let at = *endpoints.get(leader).ok_or_else(|| Trouble::new("no etcd member leads"))?;
        let status = self.ask(&["endpoint", "status"])?;
        // Endpoint, id, version, ...
        let other = status.lines().find(|line| !line.starts_with(&at.to_string()));
        let id = other.and_then(|line| line.split(", ").nth(1)).ok_or_else(|| Trouble::new("etcd has one member"))?;
        self.ask_of(&[at], &["move-leader", id]).map(|_| ())
    }

    /// Forgets every revision but the present one: watches from before are cancelled.
    ///
    /// # Errors
    /// etcd does not answer.
    pub fn compact(&self) -> Result<(), Trouble> {
        let answer = self.ask(&["get", "/revision", "--write-out=json"])?;
        let answer: serde_json::Value = serde_json::from_str(&answer).map_err(|e| Trouble::new(e.to_string()))?;
        self.ask(&["compact", &answer["header"]["revision"].to_string()]).map(|_| ())
    }

    fn snapshot(&self) -> PathBuf {
        self.dir.join("etcd.snapshot")
    }

    /// Saves a snapshot, for [`Etcd::restore`].
    ///
    /// # Errors
    /// etcd does not answer.
    pub fn save(&self) -> Result<(), Trouble> {
        let first = self.endpoints().first().copied().into_iter().collect::<Vec<_>>();
        let _ = std::fs::remove_file(self.snapshot());
        self.ask_of(&first, &["snapshot", "save", &self.snapshot().display().to_string()]).map(|_| ())
    }

    /// Stops all members and starts them with what was saved.
    ///
    /// # Errors
    /// Nothing was saved, or etcd's tool fails.
    pub fn restore(&self) -> Result<(), Trouble> {
        self.stop();
        let cluster = self.peers();
        self.with(|members| {
            members.iter().try_for_each(|member| {
                let data = self.dir.join(&member.name);
                std::fs::remove_dir_all(&data)?;
                let mut command = clean(&self.ctl);
                self.account.apply(&mut command);
                command.env("ETCDCTL_API", "3").args(["snapshot", "restore"]).arg(self.snapshot());
                command.arg("--name").arg(&member.name).arg("--data-dir").arg(&data);
                command.args(["--initial-cluster", &cluster, "--initial-cluster-token", "rig"]);
                command.args(["--initial-advertise-peer-urls", &member.peer_url()]);
                let out = output(&mut command, PATIENCE)?;
                let said = String::from_utf8_lossy(&out.stderr);
                if out.status.success() { Ok(()) } else { Err(Trouble::new(format!("snapshot restore: {said}"))) }
            })
        })?;
        self.start()
    }

    /// The ends of the members' logs.
    #[must_use]
    pub fn tails(&self) -> String {
        self.with(|members| members.iter().filter_map(|m| m.process.as_ref()).map(|p| p.tail() + "\n").collect())
    }
}
