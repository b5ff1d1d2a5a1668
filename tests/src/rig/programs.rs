//! The programs a rig is made of, and the user they run as.

use std::env;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use nix::unistd::{Gid, Uid, User};

use super::Trouble;

/// What to do when a program is missing.
const REMEDY: &str = "deploy/install-packages.sh installs it";

/// The same of a client that only tests use.
const CLIENTS_REMEDY: &str = "tests/install-clients.sh installs it";

/// The oldest and the newest PostgreSQL that Regent serves.
const MAJORS: std::ops::RangeInclusive<u32> = 13..=18;

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The etcd server.
    pub etcd: PathBuf,
    /// Its command line tool.
    pub etcdctl: PathBuf,
    /// HAProxy.
    pub haproxy: PathBuf,
    /// The directory of `postgres`, `pg_ctl` and the others.
    pub pg_bin: PathBuf,
    /// The agent.
    pub regent: PathBuf,
    /// The control tool.
    pub regentctl: PathBuf,
}

impl Programs {
    /// Finds everything: servers on `PATH` and in the system directories, PostgreSQL in `PG_BIN` or the newest that is installed,
    /// the agent in `REGENT_BIN_DIR` or beside the running program.
    ///
    /// # Errors
    /// Names the first program that is missing, and the remedy.
    pub fn find() -> Result<Self, Trouble> {
        let agents = agents()?;
        let ours = |name: &str| {
            let path = agents.join(name);
            if path.is_file() {
                Ok(path)
            } else {
                Err(Trouble::new(format!("{} is missing: cargo build --workspace makes it", path.display())))
            }
        };
        Ok(Programs {
            etcd: on_path("etcd", REMEDY)?,
            etcdctl: on_path("etcdctl", REMEDY)?,
            haproxy: on_path("haproxy", REMEDY)?,
            pg_bin: pg_bin()?,
            regent: ours("regent")?,
            regentctl: ours("regentctl")?,
        })
    }

    /// The major version of PostgreSQL, as `initdb --version` says it.
    #[must_use]
    pub fn pg_version(&self) -> String {
        let said = Command::new(self.pg_bin.join("initdb")).arg("--version").output();
        let said = said.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default();
        said.split_whitespace().nth(2).unwrap_or("of unknown version").to_owned()
    }
}

/// A program of the field that is tested against a cluster: `promtool`, `pgbouncer`, ...
///
/// # Errors
/// It is not installed; how it can be.
pub fn client(name: &str) -> Result<PathBuf, Trouble> {
    on_path(name, CLIENTS_REMEDY)
}

/// Patroni, to be measured beside; Regent never needs it.
///
/// # Errors
/// `PEER_PATRONI` does not say where it is.
pub fn peer() -> Result<PathBuf, Trouble> {
    let path = env::var_os("PEER_PATRONI").map(PathBuf::from).filter(|path| is_program(path));
    path.ok_or_else(|| Trouble::new("PEER_PATRONI must name the program `patroni` of a Python environment"))
}

/// A program on `PATH` or in a directory of system programs, which an ordinary user's `PATH` often leaves out.
fn on_path(name: &str, remedy: &str) -> Result<PathBuf, Trouble> {
    let path = env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin"].map(PathBuf::from);
    let found = env::split_paths(&path).chain(more).map(|dir| dir.join(name)).find(|path| is_program(path));
    found.ok_or_else(|| Trouble::new(format!("{name} is not installed; {remedy}")))
}

fn pg_bin() -> Result<PathBuf, Trouble> {
    if let Some(dir) = env::var_os("PG_BIN") {
        return Ok(dir.into());
    }
    let places = |major| [format!("/usr/lib/postgresql/{major}/bin"), format!("/usr/pgsql-{major}/bin")];
    let mut dirs = MAJORS.rev().flat_map(places).map(PathBuf::from);
    if let Some(dir) = dirs.find(|dir| is_program(&dir.join("initdb"))) {
        return Ok(dir);
    }
    let initdb =
        on_path("initdb", REMEDY).map_err(|_| Trouble::new(format!("no PostgreSQL is installed; {REMEDY}")))?;
    Ok(initdb.parent().map(Path::to_path_buf).unwrap_or_default())
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The directory of the agent's binaries, brought up to date once when cargo runs us: `cargo test -p regent-tests` alone
/// would not build them, and would test yesterday's agent.
fn agents() -> Result<PathBuf, Trouble> {
    static UP_TO_DATE: OnceLock<Result<(), String>> = OnceLock::new();
    if let Some(dir) = env::var_os("REGENT_BIN_DIR") {
        return Ok(dir.into());
    }
    let exe = env::current_exe()?;
    let mut dir = exe.parent().unwrap_or(Path::new("."));
    if dir.ends_with("deps") {
        dir = dir.parent().unwrap_or(dir);
        let release = dir.ends_with("release");
        UP_TO_DATE.get_or_init(|| build(release)).clone().map_err(Trouble::new)?;
    }
    Ok(dir.to_path_buf())
}

fn build(release: bool) -> Result<(), String> {
    let Some(cargo) = env::var_os("CARGO") else { return Ok(()) };
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--workspace", "--bins", "--manifest-path"]);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"));
    if release {
        command.arg("--release");
    }
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("cargo build --workspace --bins: {status}")),
        Err(e) => Err(format!("cargo build --workspace --bins: {e}")),
    }
}

/// The user that servers run as: this one, or `postgres` when this one is root.
#[derive(Clone, Copy, Debug)]
pub struct Account(Option<(Uid, Gid)>);

impl Account {
    /// An account that PostgreSQL accepts.
    ///
    /// # Errors
    /// We are root and there is no user `postgres`.
    pub fn for_servers() -> Result<Self, Trouble> {
        if !Uid::effective().is_root() {
            return Ok(Account(None));
        }
        let user = User::from_name("postgres").map_err(|e| Trouble::new(format!("user postgres: {e}")))?;
        let user = user
            .ok_or_else(|| Trouble::new(format!("PostgreSQL refuses root and there is no user postgres; {REMEDY}")))?;
        Ok(Account(Some((user.uid, user.gid))))
    }

    /// The account of this process, whatever it is.
    #[must_use]
    pub fn own_user() -> Self {
        Account(None)
    }

    /// Makes `command` run as this user.
    pub fn apply(self, command: &mut Command) {
        if let Some((uid, gid)) = self.0 {
            command.gid(gid.as_raw()).uid(uid.as_raw());
        }
    }

    /// Gives `path` to this user.
    ///
    /// # Errors
    /// As `chown(2)`.
    pub fn own(self, path: &Path) -> Result<(), Trouble> {
        if let Some((uid, gid)) = self.0 {
            chown(path, Some(uid.as_raw()), Some(gid.as_raw()))?;
        }
        Ok(())
    }
}
