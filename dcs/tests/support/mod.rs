//! Real etcd servers for tests, on free loopback ports, gone when their test is.

#![allow(dead_code, reason = "every test crate uses its own part")]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use regent_core::cluster::Promise;
use regent_core::units::{Lsn, MemberName, Timeline, WalPosition};
use regent_dcs::Dcs;
use regent_dcs::etcd::{EtcdDcs, EtcdSettings, TlsFiles};
use tempfile::TempDir;

pub(crate) const ETCD: &str = "/usr/bin/etcd";

/// More than anything here should take.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// One etcd process. Its data outlive a restart, not the value.
pub(crate) struct Server {
    command: Vec<String>,
    child: Option<Child>,
    pub(crate) url: String,
    dir: TempDir,
}

impl Server {
    fn spawn(&mut self) {
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let mut command = Command::new(ETCD);
        command.args(&self.command).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().expect("/usr/bin/etcd comes with Debian's etcd-server"));
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().expect("it runs").id();
        kill(Pid::from_raw(i32::try_from(id).unwrap()), signal).unwrap();
    }

    /// Kills it as hard as can be; its data stay.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // SIGKILL works on stopped processes too.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(crate) fn start_again(&mut self) {
        self.kill();
        self.spawn();
    }

    /// Files that the test wants to go with the server.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Ports that were free a moment ago.
fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

/// A new cluster of `size` members, as processes; wait for it by reading.
pub(crate) fn cluster(size: usize) -> Vec<Server> {
    cluster_with(size, "http", |_| Vec::new())
}

/// The same with more arguments, and another scheme for clients.
pub(crate) fn cluster_with(size: usize, scheme: &str, arguments: impl Fn(&Path) -> Vec<String>) -> Vec<Server> {
    let ports = free_ports(2 * size);
    let (clients, peers) = ports.split_at(size);
    let members: Vec<String> = (0..size).map(|i| format!("e{i}=http://127.0.0.1:{}", peers[i])).collect();
    let server = |i: usize| {
        let dir = TempDir::with_prefix("regent-etcd-").unwrap();
        let client = format!("{scheme}://127.0.0.1:{}", clients[i]);
        let peer = format!("http://127.0.0.1:{}", peers[i]);
        let mut command: Vec<String> = [
            ("--name", format!("e{i}").as_str()),
            ("--data-dir", dir.path().join("data").to_str().unwrap()),
            ("--listen-client-urls", &client),
            ("--advertise-client-urls", &client),
            ("--listen-peer-urls", &peer),
            ("--initial-advertise-peer-urls", &peer),
            ("--initial-cluster", &members.join(",")),
            ("--logger", "zap"),
        ]
        .iter()
        .flat_map(|(flag, value)| [(*flag).to_owned(), (*value).to_owned()])
        .collect();
        command.extend(arguments(dir.path()));
        let mut server = Server { command, child: None, url: client, dir };
        server.spawn();
        server
    };
    (0..size).map(server).collect()
}

pub(crate) fn settings(servers: &[Server]) -> EtcdSettings {
    EtcdSettings {
        endpoints: servers.iter().map(|server| server.url.clone()).collect(),
        namespace: "service".to_owned(),
        scope: "demo".to_owned(),
        credentials: None,
        tls: TlsFiles::default(),
    }
}

/// A handle on servers that answer.
pub(crate) async fn connected(settings: EtcdSettings) -> EtcdDcs {
    let dcs = EtcdDcs::connect(settings).await.unwrap();
    dcs.read(LONG).await.expect("a new etcd answers soon");
    dcs
}

pub(crate) fn promise(epoch: u64, holder: &str) -> Promise {
    let position = WalPosition { timeline: Timeline(1), lsn: Lsn(0x0300_0000) };
    Promise { epoch, position, parent: Timeline(1), holder: MemberName::from(holder) }
}
