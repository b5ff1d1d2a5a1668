//! What the PostgreSQL controller gets (config.md 3.5, 3.7, 7).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use regent_core::config::{Remote, SyncMode};
use regent_pgctl::Settings;
use regent_pgctl::settings::Credentials;

use super::address::{self, Address};
use super::local::{LocalConfig, absolute};
use super::node::{Node, Value};
use super::parameters;
use super::scripts;
use super::section::{Report, Section};
use super::{Problem, values};

/// Keys of the dynamic `postgresql` section that are dropped (config.md 1.2).
const LOCAL_ONLY: &[&str] =
    &["connect_address", "proxy_address", "listen", "config_dir", "data_dir", "pgpass", "authentication"];

/// Options of pg_rewind that are the agent's own.
const REWIND_REFUSES: [&str; 10] = [
    "target-pgdata",
    "source-pgdata",
    "source-server",
    "write-recovery-conf",
    "dry-run",
    "restore-target-wal",
    "config-file",
    "no-ensure-shutdown",
    "version",
    "help",
];

/// Keys of `authentication.*` beside user name and password.
const CREDENTIAL_OPTIONS: &[&str] = &[
    "sslmode",
    "sslcert",
    "sslkey",
    "sslpassword",
    "sslrootcert",
    "sslcrl",
    "sslcrldir",
    "gssencmode",
    "channel_binding",
    "sslnegotiation",
];

const DEFAULT_PORT: u16 = 5432;

/// The controller's settings and what the member key says of connections.
pub(super) struct Postgres {
    pub(super) settings: Settings,
    pub(super) repair: Repair,
    /// `conn_url` of the member key.
    pub(super) conn_url: String,
    /// `proxy_url` of the member key.
    pub(super) proxy_url: Option<String>,
}

/// What may be done about a log that has diverged (config.md 3.7).
#[derive(Clone, Copy)]
pub(super) struct Repair {
    pub(super) use_pg_rewind: bool,
    pub(super) remove_on_failure: bool,
    pub(super) remove_on_divergence: bool,
}

fn repair(pg: &Section<'_>) -> Repair {
    // A quoted "false" is meant as one.
    let on = |key: &str| pg.get(key).is_some_and(|node| node.is_truthy() && values::word(node) != Some(false));
    // In the old form, without `authentication`, the credentials are the switch (config.md 1.2).
    let by_credentials = pg.get("authentication").is_none() && pg.get("pg_rewind").is_some();
    Repair {
        use_pg_rewind: on("use_pg_rewind") || by_credentials,
        remove_on_failure: on("remove_data_directory_on_rewind_failure"),
        remove_on_divergence: on("remove_data_directory_on_diverged_timelines"),
    }
}

/// Merges both sides. `None` when the report has problems that leave nothing to build on.
pub(super) fn read(local: &LocalConfig, dynamic: Option<&Node>, report: &mut Report) -> Option<Postgres> {
    let merged = merge(local.tree.get("postgresql"), dynamic.and_then(|dynamic| dynamic.get("postgresql")), report);
    let pg = Section::of(Some(&merged), "postgresql");
    let listen = listen(&pg, report);
    let usable = listen.is_some();
    let (hosts, port) = listen.unwrap_or_default();
    let local_host = local_host(&hosts);
    let database = pg.text("database", report).unwrap_or_else(|| "postgres".to_owned());
    let connect = |key: &str, report: &mut Report| {
        let text = pg.text(key, report)?;
        let parsed = address::parse(&text, Some(DEFAULT_PORT));
        parsed.map_err(|what| report.problems.push(problem(&pg, key, what))).ok()
    };
    let local_address = Address { host: local_host.clone(), port };
    let conn = connect("connect_address", report).unwrap_or(local_address);
    let proxy = connect("proxy_address", report);
    let config_dir = pg.text("config_dir", report).map_or_else(|| local.data_dir.clone(), |path| absolute(&path));
    let parameters = parameters::merge(
        dynamic.and_then(|dynamic| dynamic.path(&["postgresql", "parameters"])),
        local.tree.path(&["postgresql", "parameters"]),
        local.catalog.as_deref(),
        report,
    );
    let standby = Section::of(dynamic.and_then(|dynamic| dynamic.get("standby_cluster")), "standby_cluster");
    let remote = remote(&standby, report);
    let bootstrap = Section::of(local.tree.get("bootstrap"), "bootstrap");
    let settings = Settings {
        scope: local.scope.clone(),
        name: local.name.clone(),
        data_dir: local.data_dir.clone(),
        parameters: placed(parameters.settings, &config_dir),
        config_dir,
        programs: local.programs(),
        config_base_name: pg.text("config_base_name", report).unwrap_or_else(|| "postgresql".to_owned()),
        pgpass: pg.text("pgpass", report).map_or_else(default_pgpass, |path| absolute(&path)),
        listen_addresses: hosts.join(","),
        port,
        local_host,
        use_unix_socket: pg.truthy("use_unix_socket"),
        database: database.clone(),
        superuser: credentials(&pg, "superuser", report).unwrap_or_default(),
        replication: credentials(&pg, "replication", report).unwrap_or_default(),
        rewind: credentials(&pg, "rewind", report),
        pg_hba: lines(&pg, "pg_hba", report),
        pg_ident: lines(&pg, "pg_ident", report),
        bootstrap_pg_hba: lines(&bootstrap, "pg_hba", report).unwrap_or_default(),
        initdb_options: options(&bootstrap, "initdb", &["pgdata", "nosync", "pwfile", "sync-only", "version"], report),
        basebackup_options: basebackup_options(&pg, report),
        rewind_options: options(&pg, "rewind", &REWIND_REFUSES, report),
        krbsrvname: pg.text("krbsrvname", report),
        scripts: scripts::read(&pg, &standby, &bootstrap, report),
        post_bootstrap: bootstrap.text("post_bootstrap", report).or_else(|| bootstrap.text("post_init", report)),
        recovery_conf: recovery_conf(&pg, parameters.recovery, &standby, report),
        use_slots: use_slots(dynamic),
        synchronous: super::effective::sync_mode(dynamic) != SyncMode::Off && remote.is_none(),
        standby_cluster: remote,
        sync_names: None,
        custom_conf: pg.text("custom_conf", report).map(|path| absolute(&path)),
        pg_ctl_timeout: pg.number("pg_ctl_timeout", 0, report).unwrap_or(60),
    };
    usable.then(|| Postgres {
        settings,
        repair: repair(&pg),
        conn_url: format!("postgres://{conn}/{database}"),
        proxy_url: proxy.map(|proxy| format!("postgres://{proxy}/{database}")),
    })
}

/// Every key of the local section replaces the dynamic one whole, a null too; parameters are merged elsewhere.
pub(super) fn merge(local: Option<&Node>, dynamic: Option<&Node>, report: &mut Report) -> Node {
    for (node, key) in
        [(dynamic, "postgresql"), (dynamic.and_then(|node| node.get("parameters")), "postgresql.parameters")]
    {
        if let Some(wrong) = node.filter(|node| !node.is_map()) {
            report.problem(&wrong.at, key, format!("this is {}, but must be a mapping", wrong.kind()));
        }
    }
    if let Some(wrong) =
        local.and_then(|local| local.get("parameters")).filter(|node| !node.is_map() && node.is_truthy())
    {
        report.problem(&wrong.at, "postgresql.parameters", format!("this is {}, but must be a mapping", wrong.kind()));
    }
    let place = local.or(dynamic).map(|node| node.at.clone());
    let mut merged = Node::empty(place.unwrap_or_else(|| super::At::whole("configuration")));
    let Value::Map(entries) = &mut merged.value else { return merged };
    let dynamic = dynamic.map(Node::entries).unwrap_or_default().iter();
    entries.extend(dynamic.filter(|entry| !LOCAL_ONLY.contains(&entry.key.as_str())).cloned());
    for entry in local.map(Node::entries).unwrap_or_default() {
        entries.retain(|old| old.key != entry.key);
        entries.push(entry.clone());
    }
    merged
}

fn problem(section: &Section<'_>, key: &str, what: impl Into<String>) -> Problem {
    Problem { at: section.get(key).map(|node| node.at.clone()), key: section.path_of(key), what: what.into() }
}

fn listen(pg: &Section<'_>, report: &mut Report) -> Option<(Vec<String>, u16)> {
    let text = pg.required("listen", report)?;
    let parsed = address::split(&text, Some(DEFAULT_PORT));
    parsed.map_err(|what| report.problems.push(problem(pg, "listen", what))).ok()
}

/// What the agent itself connects to over TCP (config.md 2.3).
fn local_host(hosts: &[String]) -> String {
    let everywhere = |host: &String| matches!(host.as_str(), "*" | "localhost" | "0.0.0.0" | "127.0.0.1" | "");
    match hosts.first() {
        Some(first) if !hosts.iter().any(everywhere) => first.clone(),
        Some(_) | None => "localhost".to_owned(),
    }
}

/// `~/pgpass`; without a home, beside nothing that could be somebody else's.
fn default_pgpass() -> PathBuf {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    let of_user = || nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.dir);
    home.or_else(of_user).unwrap_or_else(|| PathBuf::from("/")).join("pgpass")
}

/// `hba_file` and `ident_file` count from the configuration directory.
fn placed(mut settings: BTreeMap<String, String>, config_dir: &Path) -> BTreeMap<String, String> {
    for name in ["hba_file", "ident_file"] {
        if let Some(path) = settings.get_mut(name).filter(|path| Path::new(path.as_str()).is_relative()) {
            *path = config_dir.join(path.as_str()).display().to_string();
        }
    }
    settings
}

/// `authentication.ROLE`, or the old place of it.
fn credentials(pg: &Section<'_>, role: &str, report: &mut Report) -> Option<Credentials> {
    let section = if pg.get("authentication").is_some() {
        pg.child("authentication", report).child(role, report)
    } else {
        pg.child(if role == "rewind" { "pg_rewind" } else { role }, report)
    };
    if !section.is_present() {
        return None;
    }
    let options = CREDENTIAL_OPTIONS.iter().filter_map(|key| Some(((*key).to_owned(), section.text(key, report)?)));
    let options = options.collect();
    Some(Credentials {
        username: section.text("username", report),
        password: section.text("password", report),
        options,
    })
}

/// A list of lines; an empty one is as good as none.
fn lines(section: &Section<'_>, key: &str, report: &mut Report) -> Option<Vec<String>> {
    let node = section.get(key)?;
    let lines: Vec<String> = match &node.value {
        Value::List(items) => items.iter().filter_map(Node::written).collect(),
        Value::Text(text) => {
            report.warn(&node.at, &section.path_of(key), "this is text, taken line by line; write a list");
            text.lines().map(str::to_owned).filter(|line| !line.trim().is_empty()).collect()
        }
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Map(_) => {
            report.problem(&node.at, &section.path_of(key), format!("this is {}, but must be a list", node.kind()));
            Vec::new()
        }
    };
    Some(lines).filter(|lines| !lines.is_empty())
}

/// Options of a program, as a list of texts and one-entry mappings, or as a mapping.
fn options(section: &Section<'_>, key: &str, refused: &[&str], report: &mut Report) -> Vec<String> {
    named_options(section, key, report)
        .into_iter()
        .filter(|(name, _, node)| {
            let allowed = !refused.contains(&name.as_str());
            if !allowed {
                report.warn(&node.at, &section.path_of(key), format!("the option {name} is not allowed and left out"));
            }
            allowed
        })
        .map(|(name, value, _)| match value {
            Some(value) => format!("--{name}={value}"),
            None => format!("--{name}"),
        })
        .collect()
}

fn named_options<'a>(section: &Section<'a>, key: &str, report: &mut Report) -> Vec<(String, Option<String>, &'a Node)> {
    let Some(node) = section.get(key) else { return Vec::new() };
    let mut found = Vec::new();
    let items = match &node.value {
        Value::List(items) => items.as_slice(),
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Text(_) | Value::Map(_) => {
            std::slice::from_ref(node)
        }
    };
    for item in items {
        if let Some(name) = item.written() {
            match name.split_once('=') {
                Some((name, value)) => found.push((name.to_owned(), Some(value.to_owned()), item)),
                None => found.push((name, None, item)),
            }
        }
        for entry in item.entries() {
            let value = match &entry.value.value {
                Value::Bool(false) => continue,
                Value::Bool(true) | Value::Null => None,
                Value::Int(_) | Value::Float(_) | Value::Text(_) => entry.value.written().map(|text| unquoted(&text)),
                Value::List(_) | Value::Map(_) => {
                    let what = format!("the value of {} is {}, but must be text", entry.key, entry.value.kind());
                    report.problem(&entry.value.at, &section.path_of(key), what);
                    continue;
                }
            };
            found.push((entry.key.clone(), value, &entry.value));
        }
    }
    for (name, ..) in &mut found {
        *name = name.trim_start_matches('-').to_owned();
    }
    found
}

/// A value that is quoted once more loses one level.
fn unquoted(text: &str) -> String {
    let inner = |quote| text.strip_prefix(quote).and_then(|text| text.strip_suffix(quote));
    inner('\'').or_else(|| inner('"')).unwrap_or(text).to_owned()
}

fn basebackup_options(pg: &Section<'_>, report: &mut Report) -> Vec<String> {
    let refused = [
        "pgdata",
        "format",
        "wal-method",
        "xlog-method",
        "gzip",
        "version",
        "dbname",
        "host",
        "port",
        "username",
        "password",
    ];
    let all = options(pg, "basebackup", &refused, report);
    // The clone is a plain directory: only the server may compress (PostgreSQL 15).
    let (kept, dropped): (Vec<_>, Vec<_>) = all.into_iter().partition(|option| {
        let compress = option.strip_prefix("--compress");
        compress.is_none_or(|value| value.starts_with("=server-"))
    });
    if let (false, Some(node)) = (dropped.is_empty(), pg.get("basebackup")) {
        report.warn(&node.at, "postgresql.basebackup", "the option compress is left out: only server-... is allowed");
    }
    kept
}

/// Recovery settings for standbys, without those that the agent itself sets (config.md 7.3).
fn recovery_conf(
    pg: &Section<'_>,
    from_parameters: BTreeMap<String, String>,
    standby: &Section<'_>,
    report: &mut Report,
) -> BTreeMap<String, String> {
    let section = pg.child("recovery_conf", report);
    let written = section.node().map(Node::entries).unwrap_or_default().iter();
    let written = written.filter_map(|entry| Some((entry.key.to_ascii_lowercase(), entry.value.rendered()?)));
    let ours = |name: &str| {
        name.starts_with("recovery_target")
            || matches!(
                name,
                "primary_conninfo" | "primary_slot_name" | "standby_mode" | "trigger_file" | "promote_trigger_file"
            )
    };
    let of_cluster = ["restore_command", "archive_cleanup_command"];
    let of_cluster = of_cluster.iter().filter_map(|key| Some(((*key).to_owned(), said(standby, key, report)?)));
    let of_cluster: Vec<_> = of_cluster.collect();
    written.chain(from_parameters).filter(|(name, _)| !ours(name)).chain(of_cluster).collect()
}

/// A text that is not empty.
fn said(section: &Section<'_>, key: &str, report: &mut Report) -> Option<String> {
    section.text(key, report).filter(|text| !text.is_empty())
}

/// `standby_cluster`, if it is in force: one of `host`, `port` and `restore_command` is set (config.md 4).
fn remote(standby: &Section<'_>, report: &mut Report) -> Option<Remote> {
    let in_force = ["host", "port", "restore_command"].iter().any(|key| standby.truthy(key));
    let host = said(standby, "host", report).map(|host| host.replace(' ', ""));
    let (slot, min_apply_delay) =
        (said(standby, "primary_slot_name", report), said(standby, "recovery_min_apply_delay", report));
    let port = standby.number("port", 0, report).and_then(|port| u16::try_from(port).ok());
    // A port alone is a server on this machine, as libpq has it.
    let host = host.or_else(|| port.filter(|port| *port > 0).map(|_| "localhost".to_owned()));
    let port = port.filter(|port| *port > 0).unwrap_or(DEFAULT_PORT);
    in_force.then_some(Remote { host, port, slot, min_apply_delay })
}

/// Counts in the dynamic configuration only.
fn use_slots(dynamic: Option<&Node>) -> bool {
    dynamic.and_then(|dynamic| dynamic.path(&["postgresql", "use_slots"])).and_then(values::word).unwrap_or(true)
}
