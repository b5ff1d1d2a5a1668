//! Everything the controller must know of the configuration: where things are, who connects how, what the server gets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use regent_core::callbacks::Event;

use regent_core::config::Remote;

/// Effective settings of one node's PostgreSQL, merged and checked by the agent (contract config.md, sections 3.7, 5, 7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Cluster name (`scope`); becomes `cluster_name`.
    pub scope: String,
    /// Member name; becomes `application_name` of the WAL receiver and, mangled, the slot name.
    pub name: String,
    /// `postgresql.data_dir`, absolute.
    pub data_dir: PathBuf,
    /// `postgresql.config_dir`, absolute; the data directory unless configured.
    pub config_dir: PathBuf,
    /// Where PostgreSQL's programs are, and what they are called.
    pub programs: Programs,
    /// `postgresql.config_base_name`: postgresql.conf without `.conf`.
    pub config_base_name: String,
    /// `postgresql.pgpass`: passfile written for replication (config.md 7.5).
    pub pgpass: PathBuf,
    /// Hosts of `postgresql.listen`, as `listen_addresses` wants them.
    pub listen_addresses: String,
    /// Port of `postgresql.listen`.
    pub port: u16,
    /// Host that the agent itself connects to over TCP (config.md 2.3, "Local connections").
    pub local_host: String,
    /// `postgresql.use_unix_socket`: connect over the first absolute directory of `unix_socket_directories` instead.
    pub use_unix_socket: bool,
    /// `postgresql.database`.
    pub database: String,
    /// `postgresql.authentication.superuser`.
    pub superuser: Credentials,
    /// `postgresql.authentication.replication`.
    pub replication: Credentials,
    /// `postgresql.authentication.rewind`; the superuser unless configured.
    pub rewind: Option<Credentials>,
    /// What is written to `postgresql.conf`: effective parameters, controlled ones included, by lower-case name, without
    /// `listen_addresses`, `port`, `cluster_name`, `hba_file`, `ident_file` unless the user set the last two.
    pub parameters: BTreeMap<String, String>,
    /// `postgresql.pg_hba`: replaces the whole file when set.
    pub pg_hba: Option<Vec<String>>,
    /// `postgresql.pg_ident`: likewise.
    pub pg_ident: Option<Vec<String>>,
    /// `bootstrap.pg_hba`: appended once after initdb, unless `pg_hba` is set.
    pub bootstrap_pg_hba: Vec<String>,
    /// `bootstrap.initdb`, as command line options (`--encoding=UTF8`).
    pub initdb_options: Vec<String>,
    /// `postgresql.basebackup`, as command line options (`--max-rate=100M`).
    pub basebackup_options: Vec<String>,
    /// `postgresql.rewind`, as command line options of pg_rewind.
    pub rewind_options: Vec<String>,
    /// `postgresql.krbsrvname`.
    pub krbsrvname: Option<String>,
    /// `bootstrap.post_bootstrap` or `post_init`.
    pub post_bootstrap: Option<String>,
    /// `postgresql.recovery_conf`, filtered (config.md 7.3).
    pub recovery_conf: BTreeMap<String, String>,
    /// `postgresql.use_slots`.
    pub use_slots: bool,
    /// A synchronous mode is on: the agent says whom the server waits for, and what it said last stays in force.
    pub synchronous: bool,
    /// What the agent said: `synchronous_standby_names`.
    pub sync_names: Option<String>,
    /// The server that a standby cluster follows.
    pub standby_cluster: Option<Remote>,
    /// `postgresql.custom_conf`.
    pub custom_conf: Option<PathBuf>,
    /// `postgresql.pg_ctl_timeout`, seconds.
    pub pg_ctl_timeout: u64,
    /// The user's commands.
    pub scripts: Scripts,
}

/// Command lines of the user's, split like a shell's and run without one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scripts {
    /// `postgresql.callbacks`.
    pub callbacks: BTreeMap<Event, String>,
    /// `postgresql.pre_promote`.
    pub pre_promote: Option<String>,
    /// `postgresql.before_stop`.
    pub before_stop: Option<String>,
    /// `postgresql.create_replica_methods`; pg_basebackup where there are none.
    pub replica: Vec<ReplicaMethod>,
    /// `standby_cluster.create_replica_methods`, for the copy of the remote; likewise.
    pub of_remote: Vec<ReplicaMethod>,
    /// `bootstrap.method`, where that is a command.
    pub bootstrap: Option<BootstrapMethod>,
}

/// A way to fill an empty data directory with a copy of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaMethod {
    /// pg_basebackup.
    Basebackup,
    /// A command of the user's.
    Command(Command),
}

impl ReplicaMethod {
    /// It works without another member (`no_leader`).
    #[must_use]
    pub fn needs_nobody(&self) -> bool {
        match self {
            ReplicaMethod::Basebackup => false,
            ReplicaMethod::Command(command) => command.no_leader,
        }
    }

    /// It wants what the method before it left (`keep_data`).
    pub(crate) fn keeps_data(&self) -> bool {
        match self {
            ReplicaMethod::Basebackup => false,
            ReplicaMethod::Command(command) => command.keep_data,
        }
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            ReplicaMethod::Basebackup => "basebackup",
            ReplicaMethod::Command(command) => &command.name,
        }
    }
}

/// A command of the user's that fills a data directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// Name of its section.
    pub name: String,
    /// `command`.
    pub line: String,
    /// It gets nothing of what it is told otherwise.
    pub no_params: bool,
    /// The directory is not emptied before it.
    pub keep_data: bool,
    /// It needs no other member.
    pub no_leader: bool,
    /// The other keys of its section, as `--key=value`.
    pub arguments: Vec<String>,
}

/// Another way than initdb to make the first data directory of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootstrapMethod {
    /// What makes it.
    pub command: Command,
    /// Recovery settings that it left count.
    pub keep_existing_recovery_conf: bool,
    /// Recovery settings for its first start, by lower-case name.
    pub recovery_conf: Option<BTreeMap<String, String>>,
}

/// Where PostgreSQL's programs are, and what they are called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Programs {
    /// `postgresql.bin_dir`; `None` searches `PATH`.
    pub dir: Option<PathBuf>,
    /// `postgresql.bin_name`: what a program is called, by its usual name.
    pub names: BTreeMap<String, String>,
}

impl Programs {
    /// The path, or the name to be looked for, of what is usually called `name`.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        let name = self.names.get(name).map_or(name, String::as_str);
        self.dir.as_deref().map_or_else(|| PathBuf::from(name), |dir: &Path| dir.join(name))
    }
}

/// How one role connects (config.md 1.2, keys of `authentication.*`). Its `Debug` shows no secret.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Role name; libpq's default when `None`.
    pub username: Option<String>,
    /// Password.
    pub password: Option<String>,
    /// The other libpq keys (`sslmode`, `sslcert`, `sslkey`, ...), by name.
    pub options: BTreeMap<String, String>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let password = self.password.as_ref().map(|_| "***");
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .field("password", &password)
            .finish_non_exhaustive()
    }
}
