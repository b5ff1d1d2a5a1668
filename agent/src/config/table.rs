//! Every key that has a meaning, in one table: what it takes, what it is without being set, when a change takes effect
//! (contract `config.md` 3 and 4). Checks, the sample file, `--print-config` and `docs/configuration.md` are made from it.

use super::node::{Node, Value};
use super::values;

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Dotted path; `*` stands for any one name. Dynamic keys stand below `bootstrap.dcs`, where they are first written.
    pub path: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// The unit of a bare number; empty if it has none.
    pub unit: &'static str,
    /// The value in force without it, as YAML; empty if there is none, or none that is always the same.
    pub default: &'static str,
    /// When a change takes effect.
    pub change: Change,
    /// Whether it has an effect.
    pub state: State,
    /// What it means.
    pub meaning: &'static str,
}

/// What a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One text.
    Text,
    /// A text that is never shown. Each can be given as a file too, by the same key with `_file`.
    Secret,
    /// A command line, whose `${...}` are the shell's.
    Command,
    /// `on true yes 1` or `off false no 0`.
    Word,
    /// A YAML boolean; any text that is not empty counts as true.
    Truth,
    /// A whole number from ... to.
    Integer(i64, i64),
    /// One of these words, in any case.
    Choice(&'static [&'static str]),
    /// A list.
    List,
    /// A list, or one text with commas.
    Listed,
    /// A list or a mapping of options.
    Options,
    /// A mapping with the keys of this table and no others.
    Section,
    /// A mapping that may have any key.
    Map,
}

/// When a change takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// On a reload, or as soon as the dynamic configuration changes.
    Reload,
    /// When PostgreSQL is restarted.
    Postgres,
    /// When the agent is restarted.
    Agent,
    /// It is read only while the cluster does not exist.
    Bootstrap,
}

/// Whether a key has an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It has.
    InForce,
    /// It is known, and means nothing here.
    Meaningless,
    /// It is refused.
    Refused,
}

use Change::{Agent, Bootstrap, Postgres, Reload};
use Kind::{Choice, Command, Integer, List, Listed, Map, Options, Secret, Section, Text, Truth, Word};
use State::{InForce, Meaningless, Refused};

const fn key(
    path: &'static str,
    kind: Kind,
    unit: &'static str,
    default: &'static str,
    change: Change,
    state: State,
    meaning: &'static str,
) -> Key {
    Key { path, kind, unit, default, change, state, meaning }
}

const MOST: i64 = i64::MAX;
const LEVELS: &[&str] = &["DEBUG", "INFO", "WARN", "WARNING", "ERROR", "CRITICAL", "FATAL"];
const FORMAT: &str = "'%(asctime)s %(levelname)s: %(message)s'";

/// The table, in the order of the sample file.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    key("scope", Text, "", "", Agent, InForce, "name of the cluster, and PostgreSQL's `cluster_name`; required"),
    key("name", Text, "", "", Agent, InForce, "name of this member; required, `postgresql.name` is its old place"),
    key("namespace", Text, "", "service", Agent, InForce, "directory of the cluster in etcd"),
    key("thread_pool_size", Integer(5, MOST), "", "", Agent, Meaningless, "the peer's threads"),
    key("thread_stack_size", Text, "", "", Agent, Meaningless, "the peer's threads"),
    key("regent", Section, "", "", Agent, InForce, "keys that only this agent has"),
    key("regent.guardian", Word, "", "on", Agent, InForce, "a process that stops PostgreSQL at the lease's end when the agent cannot"),

    key("log", Section, "", "", Reload, InForce, "the agent's log"),
    key("log.type", Choice(&["plain", "json"]), "", "plain", Reload, InForce, "lines for people, or one JSON object a line"),
    key("log.level", Choice(LEVELS), "", "INFO", Reload, InForce, "the least level that is logged"),
    key("log.traceback_level", Choice(&["DEBUG", "ERROR"]), "", "", Reload, Meaningless, "there are no tracebacks"),
    key("log.format", Options, "", FORMAT, Reload, InForce, "form of a line"),
    key("log.dateformat", Text, "", "", Reload, InForce, "form of the time"),
    key("log.static_fields", Map, "", "", Reload, InForce, "added to every JSON line"),
    key("log.max_queue_size", Integer(0, MOST), "", "", Reload, Meaningless, "the peer's queue"),
    key("log.dir", Text, "", "", Reload, InForce, "directory of `patroni.log`; without it stderr"),
    key("log.file_num", Integer(0, MOST), "", "4", Reload, InForce, "rotated files that are kept"),
    key("log.file_size", Integer(0, MOST), "bytes", "25000000", Reload, InForce, "size at which the file is rotated"),
    key("log.mode", Integer(0, 0o777), "", "", Reload, InForce, "mode of the file; without it as the umask says"),
    key("log.loggers", Map, "", "", Reload, InForce, "levels by module"),
    key("log.deduplicate_heartbeat_logs", Word, "", "off", Reload, InForce, "drop a heartbeat line equal to the last one"),

    key("restapi", Section, "", "", Reload, InForce, "the REST API"),
    key("restapi.listen", Text, "", "", Agent, InForce, "host and port to listen on; required"),
    key("restapi.connect_address", Text, "", "", Reload, InForce, "host and port for others; without it `restapi.listen`"),
    key("restapi.authentication", Section, "", "", Reload, InForce, "Basic authentication of what changes something"),
    key("restapi.authentication.username", Text, "", "", Reload, InForce, "user name"),
    key("restapi.authentication.password", Secret, "", "", Reload, InForce, "password"),
    key("restapi.auth", Secret, "", "", Reload, InForce, "old form of the two, `user:password`"),
    key("restapi.certfile", Text, "", "", Reload, InForce, "certificate chain; TLS when set"),
    key("restapi.keyfile", Text, "", "", Reload, InForce, "its key; without it inside `certfile`"),
    key("restapi.keyfile_password", Secret, "", "", Reload, InForce, "password of the key"),
    key("restapi.cafile", Text, "", "", Reload, InForce, "verifies client certificates; `ctl.cacert` unless set"),
    key("restapi.ciphers", Text, "", "", Reload, InForce, "OpenSSL cipher list"),
    key("restapi.verify_client", Choice(&["none", "optional", "required"]), "", "none", Reload, InForce, "who must show a certificate"),
    key("restapi.allowlist", List, "", "", Reload, InForce, "who may change something; without it everyone"),
    key("restapi.allowlist_include_members", Truth, "", "false", Reload, InForce, "the members may too"),
    key("restapi.http_extra_headers", Map, "", "", Reload, InForce, "extra headers of answers"),
    key("restapi.https_extra_headers", Map, "", "", Reload, InForce, "the same with TLS"),
    key("restapi.request_queue_size", Integer(0, 4096), "", "", Agent, Meaningless, "the peer's listen backlog"),
    key("restapi.thread_pool_size", Integer(1, MOST), "", "", Agent, Meaningless, "the peer's threads"),
    key("restapi.server_tokens", Choice(&["original", "minimal", "productonly"]), "", "original", Reload, InForce, "the `Server` header"),
    key("restapi.cacert", Text, "", "", Reload, Meaningless, "a common mistake for `ctl.cacert`"),

    key("ctl", Section, "", "", Reload, InForce, "how the control program calls the REST API"),
    key("ctl.insecure", Truth, "", "false", Reload, InForce, "do not verify certificates"),
    key("ctl.cacert", Text, "", "", Reload, InForce, "verifies the servers; without it `restapi.cafile`"),
    key("ctl.certfile", Text, "", "", Reload, InForce, "client certificate"),
    key("ctl.keyfile", Text, "", "", Reload, InForce, "its key"),
    key("ctl.keyfile_password", Secret, "", "", Reload, InForce, "password of the key"),
    key("ctl.authentication", Section, "", "", Reload, InForce, "without it `restapi.authentication`"),
    key("ctl.authentication.username", Text, "", "", Reload, InForce, "user name"),
    key("ctl.authentication.password", Secret, "", "", Reload, InForce, "password"),
    key("ctl.cafile", Text, "", "", Reload, Meaningless, "a common mistake for `ctl.cacert`"),

    key("citus", Section, "", "", Agent, Refused, "Citus clusters are not supported"),
    key("etcd", Section, "", "", Agent, Refused, "etcd's v2 protocol; write `etcd3`"),
    key("consul", Section, "", "", Agent, Refused, "write `etcd3`"),
    key("zookeeper", Section, "", "", Agent, Refused, "write `etcd3`"),
    key("exhibitor", Section, "", "", Agent, Refused, "write `etcd3`"),
    key("kubernetes", Section, "", "", Agent, Refused, "write `etcd3`"),
    key("raft", Section, "", "", Agent, Refused, "write `etcd3`"),

    key("etcd3", Section, "", "", Agent, InForce, "the way to etcd; required"),
    key("etcd3.hosts", Listed, "", "", Agent, InForce, "members, `host:port` each"),
    key("etcd3.host", Text, "", "", Agent, InForce, "one member"),
    key("etcd3.port", Integer(1, 65535), "", "2379", Agent, InForce, "port of members without one"),
    key("etcd3.url", Text, "", "", Agent, InForce, "one member as a URL, which may hold user and password"),
    key("etcd3.proxy", Text, "", "", Agent, InForce, "the same of a proxy"),
    key("etcd3.use_proxies", Truth, "", "false", Agent, InForce, "use the members as they are"),
    key("etcd3.srv", Text, "", "", Agent, InForce, "DNS name with SRV records of the members"),
    key("etcd3.srv_suffix", Text, "", "", Agent, InForce, "suffix of the SRV names"),
    key("etcd3.discovery_srv", Text, "", "", Agent, InForce, "old name of `srv`"),
    key("etcd3.srv_domain", Text, "", "", Agent, InForce, "old name of `srv`"),
    key("etcd3.protocol", Choice(&["http", "https"]), "", "http", Agent, InForce, "with or without TLS"),
    key("etcd3.cacert", Text, "", "", Agent, InForce, "verifies the servers; without it the system's store"),
    key("etcd3.cert", Text, "", "", Agent, InForce, "client certificate"),
    key("etcd3.key", Text, "", "", Agent, InForce, "its key; without it inside `cert`"),
    key("etcd3.username", Text, "", "", Reload, InForce, "user name"),
    key("etcd3.password", Secret, "", "", Reload, InForce, "password"),
    key("etcd3.insecure", Truth, "", "", Agent, Meaningless, "of other tools"),
    key("etcd3.name", Text, "", "", Agent, Meaningless, "of other tools"),
    key("etcd3.version_prefix", Text, "", "", Agent, Meaningless, "of other tools"),

    key("bootstrap", Section, "", "", Bootstrap, InForce, "how a new cluster is made; without it this member makes none"),
    key("bootstrap.dcs", Section, "", "", Bootstrap, InForce, "the first dynamic configuration; later it lives in etcd only"),
    key("bootstrap.dcs.ttl", Integer(3, MOST), "s", "30", Reload, InForce, "life of the leader's lease"),
    key("bootstrap.dcs.loop_wait", Integer(1, MOST), "s", "10", Reload, InForce, "longest time between two looks at the world"),
    key("bootstrap.dcs.retry_timeout", Integer(1, MOST), "s", "10", Reload, InForce, "deadline of an operation on etcd; `loop_wait + 2 * retry_timeout <= ttl`"),
    key("bootstrap.dcs.maximum_lag_on_failover", Integer(0, MOST), "bytes", "1048576", Reload, InForce, "a standby farther behind is not promoted"),
    key("bootstrap.dcs.maximum_lag_on_syncnode", Integer(-1, MOST), "bytes", "-1", Reload, InForce, "a synchronous standby farther behind is replaced; -1: never"),
    key("bootstrap.dcs.primary_start_timeout", Integer(0, MOST), "s", "300", Reload, InForce, "time for a crashed primary to come back; 0: fail over at once"),
    key("bootstrap.dcs.master_start_timeout", Integer(0, MOST), "s", "", Reload, InForce, "old name of `primary_start_timeout`"),
    key("bootstrap.dcs.primary_stop_timeout", Integer(0, MOST), "s", "0", Reload, InForce, "in synchronous mode, kill a primary that does not stop"),
    key("bootstrap.dcs.master_stop_timeout", Integer(0, MOST), "s", "", Reload, InForce, "old name of `primary_stop_timeout`"),
    key("bootstrap.dcs.synchronous_mode", Choice(&["on", "off", "true", "false", "yes", "no", "1", "0", "quorum"]), "", "off", Reload, InForce, "who must have a commit before it is acknowledged"),
    key("bootstrap.dcs.synchronous_mode_strict", Word, "", "off", Reload, InForce, "never acknowledge a commit that only the primary has"),
    key("bootstrap.dcs.synchronous_node_count", Integer(1, MOST), "", "1", Reload, InForce, "how many standbys must have it"),
    key("bootstrap.dcs.failsafe_mode", Word, "", "off", Reload, InForce, "without etcd the primary goes on while all members agree"),
    key("bootstrap.dcs.pause", Word, "", "off", Reload, InForce, "maintenance: nothing is started, stopped or promoted"),
    key("bootstrap.dcs.check_timeline", Word, "", "off", Reload, InForce, "a standby on an older timeline is not promoted"),
    key("bootstrap.dcs.max_timelines_history", Integer(0, MOST), "", "0", Reload, InForce, "lines kept in the history; 0: all"),
    key("bootstrap.dcs.member_slots_ttl", Text, "s", "1800", Reload, InForce, "how long the slot of an absent member is kept"),
    key("bootstrap.dcs.slots", Map, "", "", Reload, InForce, "slots that outlive a failover"),
    key("bootstrap.dcs.permanent_slots", Map, "", "", Reload, InForce, "old name of `slots`"),
    key("bootstrap.dcs.permanent_replication_slots", Map, "", "", Reload, InForce, "old name of `slots`"),
    key("bootstrap.dcs.ignore_slots", List, "", "", Reload, InForce, "slots to leave alone"),
    key("bootstrap.dcs.primary_race_backoff", Integer(0, MOST), "s", "0", Reload, InForce, "so long standbys do not race while log still comes from a primary whose lock is gone"),
    key("bootstrap.dcs.standby_cluster", Section, "", "", Reload, InForce, "the leader follows a remote server and nobody is promoted; in force with one of `host`, `port`, `restore_command`"),
    key("bootstrap.dcs.standby_cluster.host", Text, "", "", Reload, InForce, "host of the remote, or several with commas between"),
    key("bootstrap.dcs.standby_cluster.port", Integer(1, 65535), "", "", Reload, InForce, "its port; 5432 unless set"),
    key("bootstrap.dcs.standby_cluster.primary_slot_name", Text, "", "", Reload, InForce, "slot of this cluster there; without it none is used"),
    key("bootstrap.dcs.standby_cluster.restore_command", Command, "", "", Reload, InForce, "in place of `postgresql.recovery_conf.restore_command`"),
    key("bootstrap.dcs.standby_cluster.archive_cleanup_command", Command, "", "", Reload, InForce, "in place of the one in `postgresql.recovery_conf`"),
    key("bootstrap.dcs.standby_cluster.recovery_min_apply_delay", Text, "", "", Reload, InForce, "of the leader"),
    key("bootstrap.dcs.standby_cluster.create_replica_methods", Listed, "", "basebackup", Reload, InForce, "ways to make the first copy, of the remote"),
    key("bootstrap.dcs.postgresql", Section, "", "", Reload, InForce, "keys of `postgresql` for all members; a local one wins, addresses and credentials do not count here"),
    key("bootstrap.method", Text, "", "initdb", Bootstrap, InForce, "name of a section with another way to make the cluster: `command`, `no_params`, `keep_existing_recovery_conf`, `recovery_conf`; its other keys become `--key=value`"),
    key("bootstrap.initdb", Options, "", "", Bootstrap, InForce, "options of initdb"),
    key("bootstrap.pg_hba", List, "", "", Bootstrap, InForce, "lines for pg_hba.conf, unless `postgresql.pg_hba` is set"),
    key("bootstrap.post_bootstrap", Command, "", "", Bootstrap, InForce, "command run once in the new cluster"),
    key("bootstrap.post_init", Command, "", "", Bootstrap, InForce, "old name of `post_bootstrap`"),
    key("bootstrap.users", Map, "", "", Bootstrap, Meaningless, "nothing since Patroni 4.0; use `post_bootstrap`"),

    key("postgresql", Section, "", "", Reload, InForce, "this member's PostgreSQL"),
    key("postgresql.listen", Text, "", "", Postgres, InForce, "hosts and port to listen on; required"),
    key("postgresql.connect_address", Text, "", "", Reload, InForce, "host and port for others"),
    key("postgresql.proxy_address", Text, "", "", Reload, InForce, "host and port of a proxy in front of it, published"),
    key("postgresql.data_dir", Text, "", "", Agent, InForce, "the data directory; required"),
    key("postgresql.config_dir", Text, "", "", Agent, InForce, "directory of the configuration files; without it the data directory"),
    key("postgresql.config_base_name", Text, "", "postgresql", Agent, InForce, "name of postgresql.conf without `.conf`"),
    key("postgresql.custom_conf", Text, "", "", Reload, InForce, "included instead of the base file"),
    key("postgresql.bin_dir", Text, "", "", Agent, InForce, "directory of the programs; without it the PATH"),
    key("postgresql.bin_name", Map, "", "", Reload, InForce, "other names of the programs, by their usual ones"),
    key("postgresql.pgpass", Text, "", "", Agent, InForce, "file for the replication password; without it `~/pgpass`"),
    key("postgresql.database", Text, "", "postgres", Agent, InForce, "database of the agent's own connections"),
    key("postgresql.authentication", Section, "", "", Reload, InForce, "the agent's roles"),
    key("postgresql.authentication.*", Section, "", "", Reload, InForce, "`superuser`, `replication`, and `rewind` (the superuser unless set)"),
    key("postgresql.authentication.*.username", Text, "", "", Reload, InForce, "role"),
    key("postgresql.authentication.*.password", Secret, "", "", Reload, InForce, "password"),
    key("postgresql.authentication.*.sslmode", Text, "", "", Reload, InForce, "libpq's key"),
    key("postgresql.authentication.*.sslcert", Text, "", "", Reload, InForce, "libpq's key"),
    key("postgresql.authentication.*.sslkey", Text, "", "", Reload, InForce, "libpq's key"),
    key("postgresql.authentication.*.sslpassword", Secret, "", "", Reload, InForce, "libpq's key"),
    key("postgresql.authentication.*.sslrootcert", Text, "", "", Reload, InForce, "libpq's key"),
    key("postgresql.authentication.*.sslcrl", Text, "", "", Reload, InForce, "libpq's key"),
    key("postgresql.authentication.*.sslcrldir", Text, "", "", Reload, InForce, "libpq's key"),
    key("postgresql.authentication.*.gssencmode", Text, "", "", Reload, InForce, "libpq's key"),
    key("postgresql.authentication.*.channel_binding", Text, "", "", Reload, InForce, "libpq's key"),
    key("postgresql.authentication.*.sslnegotiation", Text, "", "", Reload, InForce, "libpq's key"),
    key("postgresql.parameters", Map, "", "", Postgres, InForce, "PostgreSQL's parameters; the controlled ones count in `bootstrap.dcs` only"),
    key("postgresql.pg_hba", List, "", "", Reload, InForce, "all lines of pg_hba.conf"),
    key("postgresql.pg_ident", List, "", "", Reload, InForce, "all lines of pg_ident.conf"),
    key("postgresql.use_unix_socket", Truth, "", "false", Reload, InForce, "connect over a socket of `unix_socket_directories`"),
    key("postgresql.use_unix_socket_repl", Truth, "", "", Reload, Meaningless, "no replication connection is made to the own server"),
    key("postgresql.use_slots", Word, "", "on", Reload, InForce, "members stream through replication slots; counts in `bootstrap.dcs` only"),
    key("postgresql.use_pg_rewind", Truth, "", "false", Reload, InForce, "a log that has diverged may be rewound"),
    key("postgresql.rewind", Options, "", "", Reload, InForce, "more options of pg_rewind"),
    key("postgresql.remove_data_directory_on_rewind_failure", Truth, "", "false", Reload, InForce, "make a clone where pg_rewind failed"),
    key("postgresql.remove_data_directory_on_diverged_timelines", Truth, "", "false", Reload, InForce, "make a clone where pg_rewind cannot help"),
    key("postgresql.create_replica_methods", List, "", "", Reload, InForce, "ways to make a clone, in order; without it `[basebackup]`. Another one is the name of a section with `command`, `no_params`, `keep_data`, `no_leader`; its other keys become `--key=value`"),
    key("postgresql.create_replica_method", List, "", "", Reload, InForce, "old name of `create_replica_methods`"),
    key("postgresql.basebackup", Options, "", "", Reload, InForce, "options of pg_basebackup"),
    key("postgresql.callbacks", Section, "", "", Reload, InForce, "commands run when something happened, with event, role and `scope`; one at a time, 5 minutes at the most"),
    key("postgresql.callbacks.on_start", Command, "", "", Reload, InForce, "PostgreSQL started"),
    key("postgresql.callbacks.on_stop", Command, "", "", Reload, InForce, "PostgreSQL stopped"),
    key("postgresql.callbacks.on_restart", Command, "", "", Reload, InForce, "PostgreSQL restarted"),
    key("postgresql.callbacks.on_reload", Command, "", "", Reload, InForce, "PostgreSQL's configuration was reloaded"),
    key("postgresql.callbacks.on_role_change", Command, "", "", Reload, InForce, "the role changed"),
    key("postgresql.recovery_conf", Map, "", "", Reload, InForce, "recovery settings of standbys"),
    key("postgresql.pre_promote", Command, "", "", Reload, InForce, "run under the leader key before a promotion, which it forbids by another status than 0, or by taking a minute"),
    key("postgresql.before_stop", Command, "", "", Reload, InForce, "run before PostgreSQL is stopped, 30 seconds at the most; where the lease is about to end, a fraction of a second"),
    key("postgresql.pg_ctl_timeout", Integer(0, MOST), "s", "60", Reload, InForce, "time PostgreSQL may take to start or stop"),
    key("postgresql.krbsrvname", Text, "", "", Reload, InForce, "Kerberos service name"),
    key("postgresql.name", Text, "", "", Agent, InForce, "old place of `name`"),
    key("postgresql.superuser", Map, "", "", Reload, InForce, "old place of `authentication.superuser`"),
    key("postgresql.replication", Map, "", "", Reload, InForce, "old place of `authentication.replication`"),
    key("postgresql.pg_rewind", Map, "", "", Reload, InForce, "old place of `authentication.rewind`, and of `use_pg_rewind`"),
    key("postgresql.scope", Text, "", "", Agent, Meaningless, "`scope` counts"),
    key("postgresql.cluster_name", Text, "", "", Agent, Meaningless, "`scope` counts"),

    key("watchdog", Section, "", "", Reload, InForce, "the kernel's watchdog"),
    key("watchdog.mode", Choice(&["off", "automatic", "required", "auto", "require", "disable", "disabled", "false"]), "", "automatic", Reload, InForce, "whether it is used; `required`: no leadership without"),
    key("watchdog.device", Text, "", "/dev/watchdog", Reload, InForce, "its device"),
    key("watchdog.safety_margin", Integer(-1, MOST), "s", "5", Reload, InForce, "it fires this long before the lease ends; -1: after half of `ttl`"),
    key("watchdog.driver", Text, "", "", Reload, Meaningless, "there is one kind"),

    key("tags", Map, "", "", Reload, InForce, "published; these have a meaning, others are free"),
    key("tags.nofailover", Truth, "", "false", Reload, InForce, "this member never becomes leader"),
    key("tags.failover_priority", Integer(0, MOST), "", "1", Reload, InForce, "among equals the higher one goes first; 0: never"),
    key("tags.noloadbalance", Truth, "", "false", Reload, InForce, "`GET /replica` answers 503"),
    key("tags.clonefrom", Truth, "", "false", Reload, InForce, "others prefer to clone from this member"),
    key("tags.nosync", Truth, "", "false", Reload, InForce, "never a synchronous standby"),
    key("tags.sync_priority", Integer(0, MOST), "", "", Reload, InForce, "published"),
    key("tags.nostream", Word, "", "off", Reload, InForce, "replays from the archive only"),
    key("tags.replicatefrom", Text, "", "", Reload, InForce, "streams from that member"),
];

/// Dotted path of a dynamic `postgresql` key in the table.
const DYNAMIC_POSTGRESQL: &str = "bootstrap.dcs.postgresql.";

/// The row of a path.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    // The same keys may stand in both places (config.md 4.2, `postgresql.*`).
    let moved = path.strip_prefix(DYNAMIC_POSTGRESQL).map(|rest| format!("postgresql.{rest}"));
    let path = moved.as_deref().unwrap_or(path);
    KEYS.iter().find(|key| key.path == path).or_else(|| KEYS.iter().find(|key| key.covers(path)))
}

impl Key {
    /// Whether a path fits one with a `*`.
    fn covers(&self, path: &str) -> bool {
        let mut names = path.split('.');
        let fits = |ours: &str| names.next().is_some_and(|name| ours == "*" || ours == name);
        self.path.contains('*') && self.path.split('.').all(fits) && names.next().is_none()
    }

    /// The path of the section that it stands in; empty at the top.
    #[must_use]
    pub fn section(&self) -> &'static str {
        self.path.rsplit_once('.').map_or("", |(section, _)| section)
    }

    /// Its own name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.path.rsplit_once('.').map_or(self.path, |(_, name)| name)
    }

    /// What is wrong with a value, and what applies then.
    pub(super) fn wrong(&self, node: &Node) -> Option<String> {
        let one_value = node.written().is_some();
        match self.kind {
            _ if node.is_null() => None,
            Kind::Text | Kind::Secret | Kind::Command if one_value => None,
            Kind::Text | Kind::Secret | Kind::Command => Some(format!("this is {}, but must be text", node.kind())),
            Kind::Word if values::word(node).is_some() => None,
            Kind::Word => Some("must be on or off; the default applies".to_owned()),
            Kind::Truth => match (&node.value, values::word(node)) {
                (Value::Bool(_) | Value::Int(0 | 1), _) => None,
                (_, Some(_)) => Some("write true or false without quotes: any text counts as true".to_owned()),
                (_, None) => Some(format!("this is {}, but must be true or false", node.kind())),
            },
            Kind::Integer(least, most) => {
                let fits = values::integer(node).is_some_and(|number| (least..=most).contains(&number));
                let range = if most == MOST { format!("{least} or more") } else { format!("{least} to {most}") };
                let unit = if self.unit.is_empty() { String::new() } else { format!(" ({}, no unit)", self.unit) };
                (!fits).then(|| format!("must be a whole number{unit}, {range}; the default or the limit applies"))
            }
            Kind::Choice(words) => {
                let fits = |text: &str| words.iter().any(|word| word.eq_ignore_ascii_case(text));
                let known = node.written().is_some_and(|text| fits(&text));
                (!known).then(|| format!("must be one of {}; the default applies", words.join(", ")))
            }
            Kind::List if matches!(node.value, Value::List(_)) => None,
            Kind::List => Some(format!("this is {}, but must be a list", node.kind())),
            Kind::Listed | Kind::Options => {
                let items = if let Value::List(items) = &node.value { items.as_slice() } else { &[] };
                let fits = |item: &&Node| item.written().is_some() || self.kind == Kind::Options && item.is_map();
                let odd = items.iter().find(|item| !fits(item));
                odd.map(|item| format!("an item is {}, but must be text; it has no effect", item.kind()))
            }
            Kind::Section | Kind::Map if node.is_map() => None,
            Kind::Section | Kind::Map => Some(format!("this is {}, but must be a mapping", node.kind())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_key_stands_once_and_below_a_section() {
        let paths: BTreeSet<_> = KEYS.iter().map(|key| key.path).collect();
        assert_eq!(paths.len(), KEYS.len());
        for key in KEYS.iter().filter(|key| !key.section().is_empty()) {
            let above = KEYS.iter().find(|above| above.path == key.section());
            assert!(above.is_some_and(|above| matches!(above.kind, Section | Map)), "{}", key.path);
            assert!(!key.meaning.is_empty());
        }
    }

    #[test]
    fn paths_are_found_in_both_places() {
        let found = |path: &str| find(path).map(|key| key.path);
        assert_eq!(found("bootstrap.dcs.postgresql.pg_hba"), Some("postgresql.pg_hba"));
        assert_eq!(found("postgresql.authentication.rewind.password"), Some("postgresql.authentication.*.password"));
        assert_eq!(found("postgresql.nonsense"), None);
    }
}
