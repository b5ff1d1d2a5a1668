//! Which keys have a meaning: now, later, or none. Nothing that a user set stays silently without effect.
//!
//! When something becomes supported, its name moves from `later` to `now` here.

use std::collections::BTreeSet;

use super::node::{Entry, Node, Value};
use super::values;

/// The keys of one section.
struct Keys {
    path: &'static str,
    /// In force.
    now: &'static [&'static str],
    /// Part of the contract, without effect yet.
    later: &'static [&'static str],
    /// Known, without meaning for this agent, or dealt with elsewhere.
    ignored: &'static [&'static str],
}

const SECTIONS: &[Keys] = &[
    Keys {
        path: "",
        now: &[
            "scope",
            "name",
            "namespace",
            "log",
            "restapi",
            "ctl",
            "etcd3",
            "bootstrap",
            "postgresql",
            "watchdog",
            "tags",
            "regent",
        ],
        later: &[],
        ignored: &[
            "thread_pool_size",
            "thread_stack_size",
            "citus",
            "etcd",
            "consul",
            "zookeeper",
            "exhibitor",
            "kubernetes",
            "raft",
        ],
    },
    Keys {
        path: "log",
        now: &["type", "level", "dir", "file_num", "file_size", "mode", "static_fields"],
        later: &["format", "dateformat", "loggers", "deduplicate_heartbeat_logs"],
        ignored: &["traceback_level", "max_queue_size"],
    },
    Keys {
        path: "restapi",
        now: &[
            "listen",
            "connect_address",
            "authentication",
            "auth",
            "certfile",
            "keyfile",
            "cafile",
            "verify_client",
            "allowlist",
            "allowlist_include_members",
            "http_extra_headers",
            "https_extra_headers",
            "server_tokens",
        ],
        later: &["keyfile_password", "ciphers"],
        ignored: &["request_queue_size", "thread_pool_size", "cacert"],
    },
    Keys {
        path: "ctl",
        now: &["insecure", "cacert", "certfile", "keyfile", "keyfile_password", "authentication"],
        later: &[],
        ignored: &["cafile"],
    },
    Keys {
        path: "etcd3",
        now: &[
            "hosts",
            "host",
            "port",
            "url",
            "proxy",
            "use_proxies",
            "protocol",
            "username",
            "password",
            "cacert",
            "cert",
            "key",
        ],
        later: &["srv", "srv_suffix", "discovery_srv", "srv_domain"],
        ignored: &["insecure", "name", "version_prefix"],
    },
    Keys { path: "watchdog", now: &["mode", "device", "safety_margin"], later: &[], ignored: &["driver"] },
    Keys { path: "regent", now: &["guardian"], later: &[], ignored: &[] },
    Keys {
        path: "bootstrap",
        now: &["dcs", "initdb", "pg_hba", "post_bootstrap", "post_init"],
        later: &["method"],
        ignored: &["users"],
    },
    Keys {
        path: "bootstrap.dcs",
        now: &[
            "ttl",
            "loop_wait",
            "retry_timeout",
            "maximum_lag_on_failover",
            "primary_start_timeout",
            "master_start_timeout",
            "check_timeline",
            "synchronous_mode",
            "synchronous_mode_strict",
            "synchronous_node_count",
            "maximum_lag_on_syncnode",
            "failsafe_mode",
            "pause",
            "member_slots_ttl",
            "slots",
            "permanent_slots",
            "permanent_replication_slots",
            "ignore_slots",
            "postgresql",
        ],
        later: &["primary_stop_timeout", "master_stop_timeout", "max_timelines_history", "standby_cluster"],
        ignored: &[],
    },
    Keys {
        path: "postgresql",
        now: &[
            "listen",
            "connect_address",
            "proxy_address",
            "data_dir",
            "config_dir",
            "custom_conf",
            "bin_dir",
            "pgpass",
            "database",
            "authentication",
            "parameters",
            "pg_hba",
            "pg_ident",
            "use_unix_socket",
            "basebackup",
            "recovery_conf",
            "pg_ctl_timeout",
            "name",
            "superuser",
            "replication",
            "use_slots",
            "use_pg_rewind",
            "pg_rewind",
            "remove_data_directory_on_rewind_failure",
            "remove_data_directory_on_diverged_timelines",
        ],
        later: &[
            "rewind",
            "create_replica_methods",
            "create_replica_method",
            "callbacks",
            "pre_promote",
            "before_stop",
            "krbsrvname",
            "bin_name",
            "config_base_name",
            "use_unix_socket_repl",
        ],
        ignored: &["scope", "cluster_name"],
    },
];

/// Dynamic keys that have no effect in the local file outside `bootstrap.dcs`.
const DYNAMIC_ONLY: &str =
    "it counts only in bootstrap.dcs before the first start, and in the dynamic configuration after";

/// What was found in a tree.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Paths of keys that ask for something that is not there yet.
    pub(super) later: Vec<String>,
    /// Unknown keys with their place and the nearest known one.
    pub(super) unknown: Vec<String>,
}

impl Found {
    /// At most one warning of each kind.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.later.is_empty() {
            warnings.push(format!("not supported yet: {}; they have no effect", self.later.join(", ")));
        }
        if !self.unknown.is_empty() {
            warnings.push(format!("unknown keys, which have no effect: {}", self.unknown.join("; ")));
        }
        warnings
    }
}

/// Whether a key is in force.
pub(super) fn is_supported(section: &str, key: &str) -> bool {
    keys_of(section).is_some_and(|keys| keys.now.contains(&key))
}

/// Looks through both sides. `bootstrap.dcs` is left to the time when it has become the dynamic side. Of dynamic keys those
/// that resemble nothing stay unmentioned: the field stores its own there.
pub(super) fn check(local: &Node, dynamic: Option<&Node>) -> Found {
    let mut found = Found::default();
    walk(local, "", "", &mut found);
    if let Some(dynamic) = dynamic {
        walk(dynamic, "bootstrap.dcs", "", &mut found);
    }
    let mut seen = BTreeSet::new();
    found.later.retain(|path| seen.insert(path.clone()));
    found
}

fn keys_of(path: &str) -> Option<&'static Keys> {
    // The same keys may stand in both places (config.md 4.2, `postgresql.*`).
    let path = if path == "bootstrap.dcs.postgresql" { "postgresql" } else { path };
    SECTIONS.iter().find(|keys| keys.path == path)
}

/// `path` names the section in the table, `shown` in messages.
fn walk(node: &Node, path: &str, shown: &str, found: &mut Found) {
    let Some(keys) = keys_of(path).filter(|_| shown != "bootstrap.dcs") else { return };
    let free = named_sections(node, path);
    for entry in node.entries() {
        let key = entry.key.as_str();
        let below = |parent: &str| if parent.is_empty() { key.to_owned() } else { format!("{parent}.{key}") };
        if keys.later.contains(&key) {
            if asks_for_something(key, &entry.value) {
                found.later.push(below(shown));
            }
        } else if keys.now.contains(&key) || keys.ignored.contains(&key) {
            walk(&entry.value, &below(path), &below(shown), found);
        } else if !free.iter().any(|name| name == key) {
            unknown(entry, keys, path, &below(shown), found);
        }
    }
}

fn unknown(entry: &Entry, keys: &Keys, path: &str, shown: &str, found: &mut Found) {
    let known = || keys.now.iter().chain(keys.later).chain(keys.ignored).copied();
    let nearest = known().map(|key| (distance(&entry.key, key), key)).min();
    let near = nearest.filter(|(far, key)| *far <= 2.min(key.len() / 3)).map(|(_, key)| key);
    let dynamic = keys_of("bootstrap.dcs").map(|keys| keys.now.iter().chain(keys.later)).into_iter().flatten();
    let dynamic_only = path.is_empty() && dynamic.copied().any(|key| key == entry.key);
    let hint = match near {
        _ if dynamic_only => DYNAMIC_ONLY.to_owned(),
        Some(key) => format!("did you mean {key}?"),
        None if path == "bootstrap.dcs" => return,
        None => "see the documentation for the keys of this section".to_owned(),
    };
    found.unknown.push(format!("{} ({}; {hint})", shown, entry.at));
}

/// Sections whose name another key gives: a replica method's, a bootstrap method's.
fn named_sections(node: &Node, path: &str) -> Vec<String> {
    let names = match path {
        "bootstrap" => node.get("method"),
        "postgresql" | "bootstrap.dcs.postgresql" => {
            node.get("create_replica_methods").or_else(|| node.get("create_replica_method"))
        }
        _ => None,
    };
    names.map(texts).unwrap_or_default()
}

fn texts(node: &Node) -> Vec<String> {
    match &node.value {
        Value::List(items) => items.iter().filter_map(Node::written).collect(),
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Text(_) | Value::Map(_) => {
            node.written().into_iter().collect()
        }
    }
}

/// Whether a value differs from what the agent does without the key.
fn asks_for_something(key: &str, node: &Node) -> bool {
    match key {
        "method" => node.written().is_some_and(|method| method != "initdb"),
        "create_replica_methods" | "create_replica_method" => node.is_truthy() && texts(node) != ["basebackup"],
        "format" => node.written().is_none_or(|format| format != "%(asctime)s %(levelname)s: %(message)s"),
        "verify_client" => node.written().is_some_and(|mode| !mode.eq_ignore_ascii_case("none")),
        "server_tokens" => node.written().is_some_and(|tokens| !tokens.eq_ignore_ascii_case("original")),
        "config_base_name" => node.written().is_some_and(|name| name != "postgresql"),
        _ => node.is_truthy() && values::word(node) != Some(false),
    }
}

/// Edit distance of two keys (Levenshtein), for the nearest match.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(64).enumerate() {
        let mut next = vec![i.saturating_add(1)];
        for (y, pair) in b.iter().zip(row.windows(2)) {
            let (diagonal, above) = (pair.first().copied().unwrap_or(0), pair.last().copied().unwrap_or(0));
            let left = next.last().copied().unwrap_or(0);
            let replaced = diagonal.saturating_add(usize::from(x != *y));
            next.push(replaced.min(above.saturating_add(1)).min(left.saturating_add(1)));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::yaml::parse;

    fn found(local: &str, dynamic: &str) -> Found {
        check(&parse("f.yml", local.as_bytes()).unwrap(), Some(&parse("config", dynamic.as_bytes()).unwrap()))
    }

    #[test]
    fn what_has_no_effect_yet_is_named_and_defaults_are_not() {
        let loud = found(
            "{watchdog: {mode: required, driver: x}, bootstrap: {method: pgbackrest, pgbackrest: {command: x}, dcs: {slots: {a: b}}},
             postgresql: {use_pg_rewind: true, create_replica_methods: [wal_g, basebackup], wal_g: {command: y}}}",
            "{synchronous_mode: on, slots: {a: {type: physical}}, failsafe_mode: 'off',
             pg_version: 15, postgresql: {use_pg_rewind: true, callbacks: {}}}",
        );
        let want = ["bootstrap.method", "postgresql.create_replica_methods"];
        assert_eq!(loud.later, want);
        assert_eq!(loud.unknown, Vec::<String>::new());
        let quiet = found(
            "{watchdog: {mode: off}, bootstrap: {method: initdb}, restapi: {verify_client: none},
             postgresql: {create_replica_methods: [basebackup], use_pg_rewind: true}}",
            "{synchronous_node_count: 1, member_slots_ttl: 1800}",
        );
        assert_eq!(quiet, Found::default());
    }

    #[test]
    fn unknown_keys_come_with_the_nearest_known_one() {
        let found = found("{postgresql: {data_dri: /x, nonsense: 1}, ttl: 30}", "{tll: 20, pg_cluster: x}");
        assert_eq!(found.unknown.len(), 4, "{found:?}");
        for (line, part) in found.unknown.iter().zip(["data_dir?", "nonsense", "bootstrap.dcs before", "ttl?"]) {
            assert!(line.contains(part), "{line} has no {part}");
        }
        assert_eq!(found.unknown.iter().filter(|line| line.contains("f.yml:1:")).count(), 3, "{found:?}");
    }

    #[test]
    fn distances_are_right() {
        for (a, b, want) in [("", "", 0), ("a", "", 1), ("kitten", "sitting", 3), ("data_dri", "data_dir", 2)] {
            assert_eq!(distance(a, b), want);
        }
    }
}
