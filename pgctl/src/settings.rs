//! Everything the controller must know of the configuration: where things are, who connects how, what the server gets.

use std::collections::BTreeMap;
use std::path::PathBuf;

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
    /// `postgresql.bin_dir`; `None` searches `PATH`.
    pub bin_dir: Option<PathBuf>,
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
