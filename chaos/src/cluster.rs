//! The cluster under fire: a rig whose every link goes through a proxy, or whose nodes have a network namespace each.
//!
//! ```text
//!   n1 ──►[n1-etcd1]──► etcd1      each node's own way to each etcd member
//!   others ──►[n1-rest]──► n1:8008           what it calls connect_address
//!   others ──►[n1-postgres]──► n1:5432       replication, pg_rewind, pg_basebackup
//!   HAProxy, clients ──►[n1-checks], [n1-clients]──► n1
//! ```

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use regent_tests::rig::haproxy::Haproxy;
use regent_tests::rig::process::output;
use regent_tests::rig::settings::{NodeAddress, NodePorts};
use regent_tests::rig::sql::Target;
use regent_tests::rig::{Node, Rig, Settings, Trouble};

use crate::clients::{Doors, TABLES};
use crate::toxiproxy::Toxiproxy;

/// Whether and how commits wait for standbys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// `synchronous_mode: off`
    Async,
    /// `synchronous_mode: on`
    Sync,
    /// `synchronous_mode: quorum`
    Quorum,
}

/// What a campaign is run on.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Nodes, etcd members, timing, whose agents.
    pub settings: Settings,
    /// Replication.
    pub mode: Mode,
    /// An agent to run instead of the real one: to test the tester.
    pub agent: Option<PathBuf>,
    /// Which bug that agent has.
    pub planted: Option<&'static str>,
}

/// A cluster under fire.
pub struct Cluster {
    /// Its proxies; none where nodes have namespaces.
    pub proxies: Option<Toxiproxy>,
    haproxy: Haproxy,
    addresses: Vec<NodeAddress>,
    preload: PathBuf,
    planted: &'static str,
    /// The rig. The last field: clients end before servers.
    pub rig: Rig,
}

/// How long a cluster is given to come up.
const PATIENCE: Duration = Duration::from_secs(120);

impl Cluster {
    /// Starts it, and waits until it is whole and has the clients' tables.
    ///
    /// # Errors
    /// Something is missing or does not start.
    pub fn start(shape: &Shape) -> Result<Self, Trouble> {
        let settings = Settings { haproxy: false, synchronous: shape.mode != Mode::Async, ..shape.settings };
        let rig = Rig::new(settings)?;
        let proxies = if settings.namespaces { None } else { Some(Toxiproxy::from_environment()?) };
        let preload = preload(&rig)?;
        let agent = shape.agent.as_deref().map(|program| brought(&rig, program)).transpose()?;
        let mut addresses = Vec::new();
        for node in rig.nodes() {
            let (config, address) = configured(&rig, node, proxies.as_ref(), shape.mode)?;
            rig.write(&node.config(), &config)?;
            for (name, script) in scripts(node.dir()) {
                rig.write(&node.dir().join(name), &script)?;
                make_program(&node.dir().join(name))?;
            }
            if let Some(agent) = &agent {
                node.run_by(agent);
            }
            addresses.push(address);
        }
        let haproxy = Haproxy::start(rig.dir(), rig.programs(), rig.account(), settings.haproxy_fall, &addresses)?;
        let cluster = Cluster { proxies, haproxy, addresses, preload, planted: shape.planted.unwrap_or_default(), rig };
        cluster.rig.nodes().iter().try_for_each(|node| cluster.start_agent(node))?;
        let primary = cluster.rig.wait_whole(PATIENCE)?;
        primary.server().rows(TABLES, PATIENCE)?;
        Ok(cluster)
    }

    /// Starts a node's agent.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_agent(&self, node: &Node) -> Result<(), Trouble> {
        let (preload, dir) = (self.preload.display().to_string(), node.dir().display().to_string());
        node.start_with(&[("LD_PRELOAD", &preload), ("CHAOS_DISK", &dir), ("REGENT_PLANTED", self.planted)])
    }

    /// Where clients connect to.
    #[must_use]
    pub fn doors(&self) -> Doors {
        let target = |address: &NodeAddress| Target { host: address.host, port: address.ports.postgres };
        Doors {
            primary: self.haproxy.by_http(),
            primary_by_tcp: self.haproxy.by_tcp(),
            standbys: self.haproxy.standbys(),
            nodes: self.addresses.iter().map(target).collect(),
            sockets: Doors::sockets(&self.rig),
            rest: self.rig.nodes().iter().map(Node::rest).collect(),
        }
    }

    /// A node's index.
    #[must_use]
    pub fn index(&self, node: &Node) -> usize {
        self.rig.nodes().iter().position(|other| other.name() == node.name()).unwrap_or(0)
    }
}

/// A copy of an agent, where the servers' user reaches it, under the name by which a rig knows its processes.
fn brought(rig: &Rig, program: &Path) -> Result<PathBuf, Trouble> {
    let dir = rig.dir().join("agent");
    fs::create_dir(&dir)?;
    let here = dir.join("regent");
    let mut copy = Command::new("cp");
    let out = output(copy.arg(program).arg(&here), Duration::from_secs(60))?;
    if !out.status.success() {
        return Err(Trouble::new(format!("cp: {}", String::from_utf8_lossy(&out.stderr))));
    }
    make_program(&here)?;
    Ok(here)
}

/// The names of a node's proxies, by what stands behind them.
pub mod links {
    /// To one member of etcd, counted from 0.
    #[must_use]
    pub fn etcd(node: &str, member: usize) -> String {
        format!("{node}-etcd{}", member + 1)
    }

    /// What other members call it by.
    #[must_use]
    pub fn rest(node: &str) -> String {
        format!("{node}-rest")
    }

    /// What other servers call it by.
    #[must_use]
    pub fn postgres(node: &str) -> String {
        format!("{node}-postgres")
    }

    /// HAProxy's checks.
    #[must_use]
    pub fn checks(node: &str) -> String {
        format!("{node}-checks")
    }

    /// Clients.
    #[must_use]
    pub fn clients(node: &str) -> String {
        format!("{node}-clients")
    }
}

/// A node's configuration with its links through proxies, and where HAProxy and clients find it.
fn configured(
    rig: &Rig,
    node: &Node,
    proxies: Option<&Toxiproxy>,
    mode: Mode,
) -> Result<(String, NodeAddress), Trouble> {
    let mut text = fs::read_to_string(node.config())?;
    let mut address = node.address();
    if let Some(proxies) = proxies {
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let proxy = |name: &str, upstream| proxies.create(name, local, upstream);
        let name = node.name();
        for (i, member) in rig.etcd.endpoints().into_iter().enumerate() {
            let at = proxy(&links::etcd(name, i), member)?;
            text = text.replace(&format!("    - {member}\n"), &format!("    - {at}\n"));
        }
        let server = SocketAddr::from((node.server().host, node.server().port));
        for (link, upstream) in [(links::rest(name), node.rest()), (links::postgres(name), server)] {
            let at = proxy(&link, upstream)?;
            text = text.replace(&format!("connect_address: {upstream}"), &format!("connect_address: {at}"));
        }
        let (rest, postgres) = (proxy(&links::checks(name), node.rest())?, proxy(&links::clients(name), server)?);
        address.ports = NodePorts { rest: rest.port(), postgres: postgres.port() };
    }
    if mode == Mode::Quorum {
        text = text.replace("synchronous_mode: true", "synchronous_mode: quorum");
    }
    let dir = node.dir().display();
    // A member that lost log, or whose rewind was broken off, needs a clone, and leave for it.
    text = text.replace(
        "postgresql:\n  listen:",
        &format!(
            "postgresql:\n  remove_data_directory_on_rewind_failure: true\n  \
             remove_data_directory_on_diverged_timelines: true\n  pre_promote: {dir}/pre_promote\n  callbacks:\n    \
             on_role_change: {dir}/callback\n    on_start: {dir}/callback\n  listen:"
        ),
    );
    text = text.replace(
        "    logging_collector: 'on'\n",
        &format!("    logging_collector: 'on'\n    archive_mode: 'on'\n    archive_command: '{dir}/archive %p'\n"),
    );
    Ok((text, address))
}

/// A node's scripts: each hangs while a file beside it says so.
fn scripts(dir: &Path) -> [(&'static str, String); 3] {
    let hangs = |name: &str| {
        let file = dir.join(format!("{name}-hangs"));
        format!("#!/bin/sh\nwhile [ -e '{}' ]; do sleep 0.2; done\nexit 0\n", file.display())
    };
    [("archive", hangs("archive")), ("callback", hangs("callback")), ("pre_promote", hangs("pre_promote"))]
}

fn make_program(path: &Path) -> Result<(), Trouble> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

/// Compiles what lets a node's disk fail.
fn preload(rig: &Rig) -> Result<PathBuf, Trouble> {
    let (source, library) = (rig.dir().join("disk.c"), rig.dir().join("disk.so"));
    fs::write(&source, include_str!("disk.c"))?;
    let mut compile = Command::new("cc");
    compile.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).arg("-ldl");
    let out = output(&mut compile, Duration::from_secs(60))?;
    if !out.status.success() {
        return Err(Trouble::new(format!("cc cannot compile disk.c: {}", String::from_utf8_lossy(&out.stderr))));
    }
    Ok(library)
}
