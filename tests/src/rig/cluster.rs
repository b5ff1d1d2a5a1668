//! A whole cluster.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::etcd::Etcd;
use super::haproxy::Haproxy;
use super::net::Host;
use super::node::Node;
use super::process::{adopt_orphans, clean, output};
use super::programs::{Account, Programs, peer};
use super::settings::{BASE, NodePorts, Settings, patroni_yml};
use super::wait::poll;
use super::{Trouble, canary, ports, stray};

/// How the directories of rigs begin.
const PREFIX: &str = "regent-rig-";
/// The longest that one SQL question may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// A cluster of real processes in one temporary directory.
///
/// Fields are dropped in this order: clients before servers.
#[derive(Debug)]
pub struct Rig {
    haproxy: Option<Haproxy>,
    nodes: Vec<Node>,
    /// The cluster's etcd.
    pub etcd: Etcd,
    programs: Programs,
    account: Account,
    settings: Settings,
    dir: Option<TempDir>,
}

impl Rig {
    /// A running etcd and HAProxy; nodes that are configured and not started.
    ///
    /// # Errors
    /// A program is missing or does not start.
    pub fn new(settings: Settings) -> Result<Self, Trouble> {
        adopt_orphans();
        let mut programs = Programs::find()?;
        let account = Account::for_servers()?;
        let parent = std::env::var_os("REGENT_RIG_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        stray::sweep(&parent, PREFIX);
        let temp = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&parent)?;
        let dir = temp.path().to_path_buf();
        let outer = |e: Trouble| Trouble::new(format!("{}: {e}", dir.display()));
        stray::claim(&dir)?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
        account.own(&dir).map_err(outer)?;
        bring(&mut programs, &dir)?;

        let etcd = Etcd::new(settings.hosts(settings.etcd)?, &dir, &programs, account)?;
        etcd.start()?;
        let mut rig = Rig { haproxy: None, nodes: Vec::new(), etcd, programs, account, settings, dir: Some(temp) };
        for (i, host) in settings.hosts(settings.nodes)?.into_iter().enumerate() {
            let node = rig.make_node(&format!("n{}", i + 1), host)?;
            rig.nodes.push(node);
        }
        if settings.haproxy {
            let servers: Vec<_> = rig.nodes.iter().map(Node::address).collect();
            rig.haproxy = Some(Haproxy::start(&dir, &rig.programs, account, settings.haproxy_fall, &servers)?);
        }
        rig.wait(Duration::from_secs(60), "etcd serves", |rig| rig.etcd.health().map_err(|e| e.to_string()))?;
        Ok(rig)
    }

    /// As [`Rig::new`], with every node started and the cluster whole.
    ///
    /// # Errors
    /// As [`Rig::new`]; or the cluster does not become whole.
    pub fn whole(settings: Settings) -> Result<Self, Trouble> {
        let rig = Rig::new(settings)?;
        rig.start_all()?;
        rig.wait_whole(Duration::from_secs(120))?;
        Ok(rig)
    }

    fn make_node(&self, name: &str, host: Host) -> Result<Node, Trouble> {
        let dir = self.dir().join(name);
        fs::create_dir(&dir)?;
        self.account.own(&dir)?;
        let ports = NodePorts { rest: ports::free()?, postgres: ports::free()? };
        let program = if self.settings.peer { peer()? } else { self.programs.regent.clone() };
        let node = Node::new(name, dir, program, self.account, host, ports);
        let etcd = self.etcd.endpoints();
        let yml = patroni_yml(&node.address(), node.dir(), &etcd, &self.programs.pg_bin, &self.settings);
        self.write(&node.config(), &yml)?;
        Ok(node)
    }

    /// Writes a file that the servers' user owns.
    ///
    /// # Errors
    /// As `write(2)`.
    pub fn write(&self, path: &Path, text: &str) -> Result<(), Trouble> {
        fs::write(path, text).map_err(|e| Trouble::new(format!("{}: {e}", path.display())))?;
        self.account.own(path)
    }

    /// The directory of everything.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.as_ref().map_or(Path::new("."), TempDir::path)
    }

    /// The programs, as the rig runs them.
    #[must_use]
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// The user that servers run as.
    #[must_use]
    pub fn account(&self) -> Account {
        self.account
    }

    /// The timing and shape it was made with.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The nodes: n1, n2, ...
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// HAProxy.
    ///
    /// # Errors
    /// The rig was made without.
    pub fn haproxy(&self) -> Result<&Haproxy, Trouble> {
        self.haproxy.as_ref().ok_or_else(|| Trouble::new("this rig has no HAProxy"))
    }

    /// Starts all agents at once.
    ///
    /// # Errors
    /// One cannot be started.
    pub fn start_all(&self) -> Result<(), Trouble> {
        self.nodes.iter().try_for_each(Node::start)
    }

    /// The holder of the leader key.
    ///
    /// # Errors
    /// etcd does not answer, there is no leader, or it is no node of ours.
    pub fn leader(&self) -> Result<&Node, Trouble> {
        let key = self.etcd.get(&format!("{BASE}/leader"))?.ok_or_else(|| Trouble::new("there is no leader key"))?;
        let node = self.nodes.iter().find(|node| node.name() == key);
        node.ok_or_else(|| Trouble::new(format!("the leader key says {key:?}, which is no node of ours")))
    }

    /// The nodes other than `this`.
    pub fn others<'a>(&'a self, this: &'a Node) -> impl Iterator<Item = &'a Node> {
        self.nodes.iter().filter(move |node| node.name() != this.name())
    }

    /// The node named `name`.
    ///
    /// # Errors
    /// There is none.
    pub fn node(&self, name: &str) -> Result<&Node, Trouble> {
        self.nodes.iter().find(|n| n.name() == name).ok_or_else(|| Trouble::new(format!("there is no node {name}")))
    }

    /// The names of the nodes whose PostgreSQL answers and is no standby, asked past all agents.
    #[must_use]
    pub fn primaries(&self) -> Vec<&str> {
        self.nodes.iter().filter(|node| node.in_recovery().is_ok_and(|standby| !standby)).map(Node::name).collect()
    }

    /// Waits until `look` is `Ok`, `within` at the most, and says what was waited for, what is missing, and what the logs end
    /// with.
    ///
    /// # Errors
    /// It did not become true.
    pub fn wait<'a, T>(
        &'a self,
        within: Duration,
        what: &str,
        mut look: impl FnMut(&'a Rig) -> Result<T, String>,
    ) -> Result<T, Trouble> {
        poll(within, || look(self)).map_err(|missing| {
            Trouble::new(format!("waited {within:?} until {what}; still: {missing}\n{}", self.tails()))
        })
    }

    /// Waits for a primary that holds the leader key and is the only one.
    ///
    /// # Errors
    /// There is none.
    pub fn wait_primary(&self, within: Duration) -> Result<&Node, Trouble> {
        self.wait(within, "there is one primary", Rig::one_primary)
    }

    /// One look at what [`Rig::wait_primary`] waits for.
    ///
    /// # Errors
    /// What is missing.
    pub fn one_primary(&self) -> Result<&Node, String> {
        let leader = self.leader().map_err(|e| e.to_string())?;
        match leader.in_recovery() {
            Ok(false) => {}
            Ok(true) => return Err(format!("the leader {} is still a standby", leader.name())),
            Err(e) => return Err(format!("the leader {}: {e}", leader.name())),
        }
        match self.primaries().as_slice() {
            [one] if *one == leader.name() => Ok(leader),
            several => Err(format!("primaries: {several:?}, leader key: {}", leader.name())),
        }
    }

    /// Waits until the cluster is whole: one primary, which holds the leader key, every other node streaming from it on its
    /// timeline, and every agent saying so.
    ///
    /// # Errors
    /// What is missing.
    pub fn wait_whole(&self, within: Duration) -> Result<&Node, Trouble> {
        self.wait(within, "the cluster is whole", Rig::is_whole)
    }

    /// One look at what [`Rig::wait_whole`] waits for.
    ///
    /// # Errors
    /// What is missing.
    pub fn is_whole(&self) -> Result<&Node, String> {
        let primary = self.one_primary()?;
        let text = |e: Trouble| e.to_string();
        let streaming = primary
            .server()
            .rows("select application_name from pg_stat_replication where state = 'streaming' order by 1", PATIENCE)
            .map_err(text)?;
        let streaming: Vec<String> = streaming.into_iter().flatten().collect();
        let timeline = primary
            .server()
            .value("select ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int", PATIENCE)
            .map_err(text)?;
        let says = |node: &Node| {
            let status = node.get("/patroni").map_err(text)?.json();
            let word = |key: &str| status.get(key).map(|v| v.to_string().replace('"', "")).unwrap_or_default();
            Ok::<_, String>((word("state"), word("role"), word("timeline")))
        };
        for node in self.others(primary) {
            if !streaming.iter().any(|name| name == node.name()) {
                return Err(format!(
                    "{} does not stream from {} (streaming: {streaming:?})",
                    node.name(),
                    primary.name()
                ));
            }
            match says(node)? {
                (state, role, tl) if state == "running" && role == "replica" && tl == timeline => {}
                other => return Err(format!("the agent of {} says {other:?}, on timeline {timeline}", node.name())),
            }
        }
        if self.settings.synchronous {
            // Until a standby is listed nobody but the primary may lead.
            let key = self.etcd.get(&format!("{BASE}/sync")).map_err(text)?.unwrap_or_default();
            let sync: serde_json::Value = serde_json::from_str(&key).unwrap_or_default();
            if sync["leader"] != primary.name() || sync["sync_standby"].as_str().is_none_or(str::is_empty) {
                return Err(format!("no synchronous standby of {} is listed: {key}", primary.name()));
            }
        }
        match says(primary)? {
            (state, role, tl) if state == "running" && role == "primary" && tl == timeline => Ok(primary),
            other => Err(format!("the agent of {} says {other:?}, on timeline {timeline}", primary.name())),
        }
    }

    /// Runs `regentctl` with a node's configuration and returns what it prints.
    ///
    /// # Errors
    /// It fails, with its words.
    pub fn regentctl(&self, args: &[&str]) -> Result<String, Trouble> {
        let node = self.nodes.first().ok_or_else(|| Trouble::new("this rig has no nodes"))?;
        let mut command = clean(&self.programs.regentctl);
        command.arg("-c").arg(node.config()).args(args);
        let out = output(&mut command, Duration::from_secs(30))?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        if out.status.success() && !text.is_empty() {
            return Ok(text);
        }
        let why = String::from_utf8_lossy(&out.stderr);
        Err(Trouble::new(format!("regentctl {}: {}\n{text}{why}", args.join(" "), out.status)))
    }

    /// The ends of all logs.
    #[must_use]
    pub fn tails(&self) -> String {
        let nodes: String = self.nodes.iter().map(Node::tails).collect();
        let proxy = self.haproxy.as_ref().map(Haproxy::tail).unwrap_or_default();
        format!("{nodes}{}{proxy}", self.etcd.tails())
    }

    /// Leaves all running, and returns the directory, which holds a program `stop` that ends and removes it.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn keep(mut self) -> Result<PathBuf, Trouble> {
        let dir = self.dir().to_path_buf();
        stray::keep(&dir)?;
        let agents: Vec<String> = self.nodes.iter().filter_map(Node::agent).map(|pid| pid.to_string()).collect();
        let mut rest: Vec<String> = self.etcd.pids().iter().map(ToString::to_string).collect();
        rest.extend(self.haproxy.as_ref().map(|proxy| proxy.pid().to_string()));
        let stop = dir.join("stop");
        fs::write(&stop, stop_script(&dir, &agents.join(" "), &rest.join(" ")))?;
        fs::set_permissions(&stop, fs::Permissions::from_mode(0o755))?;
        self.nodes.iter().for_each(Node::keep);
        self.etcd.keep();
        self.haproxy.iter().for_each(Haproxy::keep);
        if let Some(temp) = self.dir.take() {
            let _ = temp.keep();
        }
        Ok(dir)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // `keep` took the directory.
        let Some(temp) = self.dir.take() else { return };
        if !std::thread::panicking() {
            canary::watch_all(temp.path());
        }
        stray::end(temp.path());
        if std::env::var_os("REGENT_RIG_KEEP_FILES").is_some() {
            let _ = temp.keep();
        }
    }
}

/// Brings our own programs into the rig's directory: the servers' user may not reach the place they were built in, such as a
/// root's home.
fn bring(programs: &mut Programs, dir: &Path) -> Result<(), Trouble> {
    let bin = dir.join("bin");
    fs::create_dir(&bin)?;
    fs::set_permissions(&bin, fs::Permissions::from_mode(0o755))?;
    for (program, name) in [(&mut programs.regent, "regent"), (&mut programs.regentctl, "regentctl")] {
        let here = bin.join(name);
        let readable = fs::metadata(&*program)?.permissions().mode() & 0o005 == 0o005;
        if !readable || fs::hard_link(&*program, &here).is_err() {
            // By another process: a file that is open for writing here is so in what other rigs are just starting, and not
            // executable.
            let copied = Command::new("cp").arg(&*program).arg(&here).status()?;
            if !copied.success() {
                return Err(Trouble::new(format!("cp {} {}: {copied}", program.display(), here.display())));
            }
            fs::set_permissions(&here, fs::Permissions::from_mode(0o755))?;
        }
        *program = here;
    }
    Ok(())
}

fn stop_script(dir: &Path, agents: &str, rest: &str) -> String {
    let dir = dir.display();
    format!(
        r#"#!/bin/sh
# Stops this cluster and removes its files. Agents first: each stops its PostgreSQL.
ours() {{ tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null | grep -qF '{dir}'; }}
for pid in {agents}; do ours "$pid" && kill "$pid"; done
for pid in {agents}; do
    n=0
    while ours "$pid" && [ $n -lt 60 ]; do sleep 1; n=$((n + 1)); done
    ours "$pid" && kill -9 "$pid"
done
for pid in {rest}; do ours "$pid" && kill "$pid"; done
rm -rf '{dir}'
echo 'stopped; {dir} is removed'
"#
    )
}
