//! Real PostgreSQL for tests, never as root, and nothing left behind.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use regent_core::units::MemberName;
use regent_pgctl::settings::{Credentials, Programs, Scripts};
use regent_pgctl::{Server, Settings};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio_postgres::NoTls;

use crate::suite::{Harness, Node};

/// Runs a test on a runtime of its own; as root, in a process of its own that runs as user `postgres`.
///
/// Call it from a `#[test]` function with a closure written there: its type knows the test's name, by which the test
/// binary runs just that test in the other process.
pub fn run<F, T>(test: F)
where
    F: FnOnce() -> T,
    T: Future<Output = ()>,
{
    if rustix::process::geteuid().is_root() {
        return run_as_postgres(std::any::type_name::<F>());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(120), test()).await.expect("the test ends in time")
    });
}

fn run_as_postgres(closure: &str) {
    let path = closure.trim_end_matches("::{{closure}}");
    let test = path.split_once("::").unwrap().1;
    let postgres = nix::unistd::User::from_name("postgres").unwrap().expect("a user `postgres` to run the server as");
    let place = TempDir::new().unwrap();
    open_to_all(place.path());
    let mut binary = std::env::current_exe().unwrap();
    if !reachable(&binary) {
        let copy = place.path().join("tests");
        // By another process: a file that is open for writing here is so in what other tests are just starting, and not executable.
        assert!(Command::new("cp").arg(&binary).arg(&copy).status().unwrap().success());
        binary = copy;
    }
    let mut command = Command::new(binary);
    command.args(["--exact", test, "--nocapture"]).current_dir("/").env("HOME", place.path());
    // A file, not a pipe: a server that a broken test leaves behind must not keep us waiting for its end.
    let log = place.path().join("output");
    let output = fs::File::create(&log).unwrap();
    command.stdout(output.try_clone().unwrap()).stderr(output);
    let status = command.uid(postgres.uid.as_raw()).gid(postgres.gid.as_raw()).status().unwrap();
    let printed = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
    assert!(status.success(), "{test} as user postgres: {status}\n{printed}");
    assert!(printed.contains("1 passed"), "{test} did not run:\n{printed}");
}

fn open_to_all(path: &Path) {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

fn reachable(path: &Path) -> bool {
    path.ancestors().all(|part| fs::metadata(part).is_ok_and(|meta| meta.mode() & 0o001 != 0))
}

/// The programs of `REGENT_TEST_PG_BIN`, else the newest of Debian's, else those of `PATH`.
fn bin_dir() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os("REGENT_TEST_PG_BIN") {
        return Some(PathBuf::from(dir));
    }
    let debian = (13..=18).rev().map(|major| PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")));
    debian.into_iter().find(|dir| dir.join("postgres").exists())
}

/// A port that is free now, and stays ours as far as tests of this process go.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Real servers, each in a temporary directory.
pub struct Real {
    place: Rc<TempDir>,
}

impl Real {
    pub fn new() -> Real {
        let place = tempfile::Builder::new().prefix("regent-pgctl-").tempdir().unwrap();
        open_to_all(place.path());
        Real { place: Rc::new(place) }
    }

    /// Settings of a node of this name, with an own port.
    pub fn settings(&self, name: &str) -> Settings {
        let base = self.place.path().join(name);
        fs::create_dir_all(&base).unwrap();
        let who = |name: &str, password: &str| Credentials {
            username: Some(name.to_owned()),
            password: Some(password.to_owned()),
            options: BTreeMap::new(),
        };
        let parameters = [
            ("fsync", "off"),
            ("shared_buffers", "16MB"),
            ("unix_socket_directories", base.to_str().unwrap()),
            ("wal_level", "replica"),
            ("hot_standby", "on"),
            ("max_connections", "30"),
            ("max_wal_senders", "10"),
            ("max_prepared_transactions", "0"),
            ("max_locks_per_transaction", "64"),
            ("track_commit_timestamp", "off"),
            ("max_replication_slots", "10"),
            ("max_worker_processes", "8"),
            ("wal_log_hints", "on"),
            ("password_encryption", "scram-sha-256"),
            ("wal_keep_size", "128MB"),
        ];
        let port = free_port();
        Settings {
            scope: "demo".to_owned(),
            name: name.to_owned(),
            data_dir: base.join("data"),
            config_dir: base.join("data"),
            programs: Programs { dir: bin_dir(), ..Programs::default() },
            pgpass: base.join("pgpass"),
            listen_addresses: "127.0.0.1".to_owned(),
            port,
            local_host: "127.0.0.1".to_owned(),
            use_unix_socket: false,
            database: "postgres".to_owned(),
            superuser: who("boss", "it's \\ 12345"),
            replication: who("replicator", "67890"),
            rewind: Some(who("rewinder", "p:w")),
            parameters: parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            pg_hba: Some(vec![
                "local all all scram-sha-256".to_owned(),
                "host all all 127.0.0.1/32 scram-sha-256".to_owned(),
                "host replication replicator 127.0.0.1/32 scram-sha-256".to_owned(),
            ]),
            pg_ident: None,
            bootstrap_pg_hba: Vec::new(),
            // Before 14 only --auth makes initdb store a password that scram-sha-256 accepts.
            initdb_options: ["--no-sync", "--encoding=UTF8", "--data-checksums", "--auth=scram-sha-256"]
                .map(str::to_owned)
                .to_vec(),
            basebackup_options: vec!["--no-sync".to_owned()],
            rewind_options: Vec::new(),
            krbsrvname: None,
            config_base_name: "postgresql".to_owned(),
            post_bootstrap: None,
            recovery_conf: BTreeMap::new(),
            use_slots: true,
            synchronous: false,
            sync_names: None,
            custom_conf: None,
            standby_cluster: None,
            pg_ctl_timeout: 60,
            scripts: Scripts::default(),
        }
    }

    pub fn node_with(&self, settings: Settings) -> RealNode {
        RealNode { server: Server::new(settings.clone()), settings, _place: Rc::clone(&self.place) }
    }
}

impl Harness for Real {
    type Node = RealNode;

    async fn node(&mut self, name: &str) -> RealNode {
        self.node_with(self.settings(name))
    }
}

/// One real server; killed when dropped.
pub struct RealNode {
    pub server: Server,
    pub settings: Settings,
    /// The directory goes after the last of its servers.
    _place: Rc<TempDir>,
}

impl RealNode {
    /// The pid that `postmaster.pid` names.
    pub fn postmaster(&self) -> Option<i32> {
        let text = fs::read_to_string(self.settings.data_dir.join("postmaster.pid")).ok()?;
        text.lines().next()?.parse().ok()
    }

    pub fn file(&self, name: &str) -> String {
        fs::read_to_string(self.settings.data_dir.join(name)).unwrap()
    }

    /// Asks as `who`; the first column of the first row, or nothing.
    pub async fn sql(&self, who: &Credentials, sql: &str) -> Result<Option<String>, String> {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.settings.port).dbname("postgres");
        config.user(who.username.as_deref().unwrap()).password(who.password.as_deref().unwrap());
        let (client, connection) = config.connect(NoTls).await.map_err(|e| format!("{e:?}"))?;
        tokio::spawn(connection);
        let messages = client.simple_query(sql).await.map_err(|e| format!("{e:?}"))?;
        let row = messages.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
            _ => None,
        });
        Ok(row)
    }
}

impl Node for RealNode {
    type Pg = Server;

    fn pg(&self) -> &Server {
        &self.server
    }

    fn new_controller(&self) -> Server {
        Server::new(self.settings.clone())
    }

    fn name(&self) -> MemberName {
        MemberName(self.settings.name.clone())
    }

    fn conn_url(&self) -> String {
        format!("postgres://127.0.0.1:{}/postgres", self.settings.port)
    }

    async fn insert(&self) -> Result<(), String> {
        let sql = "CREATE TABLE IF NOT EXISTS rows (); INSERT INTO rows DEFAULT VALUES";
        self.sql(&self.settings.superuser, sql).await.map(|_| ())
    }

    async fn rows(&self) -> Result<u64, String> {
        let count = self.sql(&self.settings.superuser, "SELECT count(*) FROM rows").await?;
        Ok(count.unwrap().parse().unwrap())
    }

    async fn crash(&self) {
        kill_process(Pid::from_raw(self.postmaster().unwrap()).unwrap(), Signal::KILL).unwrap();
    }
}

impl Drop for RealNode {
    fn drop(&mut self) {
        let Some(pid) = self.postmaster().and_then(Pid::from_raw) else { return };
        let proc = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
        if !fs::read_link(proc.join("cwd")).is_ok_and(|cwd| cwd == self.settings.data_dir) {
            return;
        }
        let _ = kill_process(pid, Signal::QUIT);
        let _ = kill_process(pid, Signal::CONT);
        let deadline = Instant::now() + Duration::from_secs(10);
        // A zombie has no working directory any more.
        while fs::read_link(proc.join("cwd")).is_ok() {
            if Instant::now() > deadline {
                let _ = kill_process(pid, Signal::KILL);
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
