//! PostgreSQL's parameters: the controlled ones, checked, and the others, merged (config.md 1.2, 5).

use std::collections::BTreeMap;

use regent_pgctl::catalog::{Catalog, Verdict};

use super::node::{Entry, Node};
use super::section::Report;
use super::{known, values};

/// How a controlled parameter is checked.
#[derive(Clone, Copy)]
enum Check {
    AtLeast(i64),
    /// A size, in MB.
    Megabytes(i64),
    WalLevel,
    Word,
    TrueWord,
}

/// Controlled parameters of PostgreSQL 13 and later, with their defaults.
const CONTROLLED: &[(&str, &str, Check)] = &[
    ("hot_standby", "on", Check::TrueWord),
    ("max_connections", "100", Check::AtLeast(25)),
    ("max_locks_per_transaction", "64", Check::AtLeast(32)),
    ("max_prepared_transactions", "0", Check::AtLeast(0)),
    ("max_replication_slots", "10", Check::AtLeast(4)),
    ("max_wal_senders", "10", Check::AtLeast(3)),
    ("max_worker_processes", "8", Check::AtLeast(2)),
    ("track_commit_timestamp", "off", Check::Word),
    ("wal_keep_size", "128MB", Check::Megabytes(16)),
    ("wal_level", "replica", Check::WalLevel),
    ("wal_log_hints", "on", Check::Word),
];

/// Set by the agent from other keys, never from parameters.
const OURS: &[&str] = &["listen_addresses", "port", "cluster_name"];

/// Recovery settings: they go to `recovery_conf`, wherever they were written.
const RECOVERY: &[&str] = &[
    "archive_cleanup_command",
    "pause_at_recovery_target",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restore_command",
    "standby_mode",
    "trigger_file",
];

/// Parameters, split by where they are written.
pub(super) struct Parameters {
    /// What `postgresql.conf` gets, controlled ones included, by lower-case name.
    pub(super) settings: BTreeMap<String, String>,
    /// Recovery settings that stood among the parameters.
    pub(super) recovery: BTreeMap<String, String>,
}

/// Merges both sides: local over dynamic without regard to case; controlled ones from the dynamic side only.
/// What the installed server would not take is left out, or limited, if there is a catalog of its parameters.
pub(super) fn merge(
    dynamic: Option<&Node>,
    local: Option<&Node>,
    catalog: Option<&Catalog>,
    report: &mut Report,
) -> Parameters {
    let mut found = Parameters { settings: BTreeMap::new(), recovery: BTreeMap::new() };
    for entry in entries(dynamic).chain(entries(local)) {
        let name = entry.key.to_ascii_lowercase();
        if is_controlled(&name) || OURS.contains(&name.as_str()) {
            continue;
        }
        let target = if RECOVERY.contains(&name.as_str()) { &mut found.recovery } else { &mut found.settings };
        let written = setting(entry, report).map(|value| quoted(&name, value, entry, report));
        match written.and_then(|value| accepted(&name, value, entry, catalog, report)) {
            Some(value) => target.insert(name, value),
            None => target.remove(&name),
        };
    }
    for (name, default, check) in CONTROLLED {
        let asked = entries(dynamic).filter(|entry| entry.key.eq_ignore_ascii_case(name)).last();
        let asked = asked.map(|entry| &entry.value).filter(|node| !node.is_null());
        let taken = |value: &String| catalog.is_none_or(|catalog| catalog.judge(name, value) == Verdict::Good);
        let value = match asked.map(|node| (node, check.accept(node).filter(taken))) {
            None => (*name == "wal_keep_size").then(|| from_segments(dynamic, report)).flatten(),
            Some((_, Some(value))) => Some(value),
            Some((node, None)) => {
                refuse(name, node, default, report);
                None
            }
        };
        found.settings.insert((*name).to_owned(), value.unwrap_or_else(|| (*default).to_owned()));
    }
    found
}

pub(crate) fn is_controlled(name: &str) -> bool {
    name == "wal_keep_segments" || CONTROLLED.iter().any(|(controlled, ..)| *controlled == name)
}

/// The controlled parameters and their defaults.
pub(super) fn controlled() -> impl Iterator<Item = (&'static str, &'static str)> {
    CONTROLLED.iter().map(|(name, default, _)| (*name, *default))
}

fn entries(node: Option<&Node>) -> impl Iterator<Item = &Entry> {
    node.map(Node::entries).unwrap_or_default().iter()
}

/// `wal_keep_segments`, as PostgreSQL 13 and later want it: 16 MB each.
fn from_segments(dynamic: Option<&Node>, report: &mut Report) -> Option<String> {
    let asked = entries(dynamic).filter(|entry| entry.key.eq_ignore_ascii_case("wal_keep_segments")).last()?;
    let segments = values::integer(&asked.value).filter(|segments| *segments >= 1);
    if segments.is_none() && !asked.value.is_null() {
        refuse("wal_keep_segments", &asked.value, "8", report);
    }
    Some(format!("{}MB", segments?.checked_mul(16)?))
}

fn refuse(name: &str, node: &Node, default: &str, report: &mut Report) {
    let value = node.rendered().unwrap_or_else(|| node.kind().to_owned());
    report.invalid(
        &node.at,
        "",
        format!("postgresql parameter {name}={value} failed validation, defaulting to {default}"),
    );
}

/// Names that PostgreSQL would not read without quotes (`patroni-2`) get them: the server would not start otherwise.
fn quoted(name: &str, value: String, entry: &Entry, report: &mut Report) -> String {
    let plain = |word: &str| {
        let first = word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        word == "*" || first && word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$'))
    };
    let is_name =
        |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.$*".contains(&b));
    let words: Vec<&str> = value.split(',').map(str::trim).collect();
    if name != "synchronous_standby_names"
        || words.iter().all(|word| plain(word))
        || !words.iter().all(|word| is_name(word))
    {
        return value;
    }
    let parts: Vec<String> =
        words.iter().map(|word| if *word == "*" { "*".to_owned() } else { format!("\"{word}\"") }).collect();
    let written = parts.join(",");
    let what = format!("{value} is no name without quotes, and is written as {written}; write '{written}'");
    report.warn(&entry.value.at, "postgresql.parameters.synchronous_standby_names", what);
    written
}

/// The value that the server gets, if it would take any (config.md 5).
fn accepted(
    name: &str,
    value: String,
    entry: &Entry,
    catalog: Option<&Catalog>,
    report: &mut Report,
) -> Option<String> {
    let Some(catalog) = catalog else { return Some(value) };
    let (at, key) = (&entry.value.at, format!("postgresql.parameters.{name}"));
    match catalog.judge(name, &value) {
        Verdict::Good => Some(value),
        Verdict::Unknown => {
            let near = known::nearest(name, catalog.names()).map_or_else(
                || "this version of PostgreSQL has none of this name".to_owned(),
                |near| format!("did you mean {near}?"),
            );
            report.invalid(&entry.at, &key, format!("Removing unexpected parameter={name} from the config; {near}"));
            None
        }
        Verdict::Limit { nearest, range } => {
            let what = format!("Value={value} of parameter={name} is out of range, taking {nearest}; write {range}");
            report.invalid(at, &key, what);
            Some(nearest)
        }
        Verdict::Wrong { vartype, wanted } => {
            let what = format!(
                "Removing {vartype} parameter={name} from the config due to the invalid value={value}; write {wanted}"
            );
            report.invalid(at, &key, what);
            None
        }
    }
}

/// The text of one setting; `None` when there is none to write.
fn setting(entry: &Entry, report: &mut Report) -> Option<String> {
    let node = &entry.value;
    if let super::node::Value::List(items) = &node.value {
        let parts: Option<Vec<_>> = items.iter().map(Node::rendered).collect();
        if let Some(parts) = parts {
            let what = "a list is written as one text with commas; write it so in the file";
            report.warn(&node.at, &format!("postgresql.parameters.{}", entry.key), what);
            return Some(parts.join(", "));
        }
    }
    if node.rendered().is_none() && !node.is_null() {
        let what = format!("this is {}, but a setting is one value; it has no effect", node.kind());
        report.invalid(&node.at, &format!("postgresql.parameters.{}", entry.key), what);
    }
    node.rendered()
}

impl Check {
    /// The value as it is written, if it is accepted.
    fn accept(self, node: &Node) -> Option<String> {
        match self {
            Check::AtLeast(least) => {
                values::integer(node).filter(|number| *number >= least).map(|number| number.to_string())
            }
            Check::Megabytes(least) => {
                values::megabytes(node).filter(|size| *size >= least).and_then(|_| node.rendered())
            }
            Check::WalLevel => match node.rendered()?.to_ascii_lowercase().as_str() {
                "hot_standby" | "replica" => Some("replica".to_owned()),
                "logical" => Some("logical".to_owned()),
                _ => None,
            },
            Check::Word => values::word(node).map(|on| if on { "on" } else { "off" }.to_owned()),
            Check::TrueWord => values::word(node).filter(|on| *on).map(|_| "on".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::yaml::parse;

    fn merged(dynamic: &str, local: &str) -> (Parameters, Vec<String>) {
        let (dynamic, local) = (parse("d", dynamic.as_bytes()).unwrap(), parse("l", local.as_bytes()).unwrap());
        let mut report = Report::default();
        let found = merge(Some(&dynamic), Some(&local), None, &mut report);
        (found, report.warnings.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn controlled_parameters_fall_back_to_the_default_not_to_the_floor() {
        let cases = [
            ("max_connections: 20", "max_connections", "100", true),
            ("max_connections: 25", "max_connections", "25", false),
            ("max_connections: '5x'", "max_connections", "100", true),
            ("Max_Connections: '200'", "max_connections", "200", false),
            ("max_locks_per_transaction: 64.4", "max_locks_per_transaction", "64", false),
            ("wal_level: Hot_Standby", "wal_level", "replica", false),
            ("wal_level: minimal", "wal_level", "replica", true),
            ("wal_level: logical", "wal_level", "logical", false),
            ("wal_log_hints: off", "wal_log_hints", "off", false),
            ("hot_standby: off", "hot_standby", "on", true),
            ("hot_standby: 'on'", "hot_standby", "on", false),
            ("track_commit_timestamp: 'yes'", "track_commit_timestamp", "on", false),
            ("wal_keep_size: 1GB", "wal_keep_size", "1GB", false),
            ("wal_keep_size: 8MB", "wal_keep_size", "128MB", true),
            ("wal_keep_size: 64", "wal_keep_size", "64", false),
            ("wal_keep_segments: 10", "wal_keep_size", "160MB", false),
            ("wal_keep_segments: 0", "wal_keep_size", "128MB", true),
            ("{wal_keep_segments: 10, wal_keep_size: 1GB}", "wal_keep_size", "1GB", false),
            ("max_wal_senders: ~", "max_wal_senders", "10", false),
        ];
        for (dynamic, name, value, warned) in cases {
            let (found, warnings) = merged(dynamic, "{}");
            assert_eq!(found.settings.get(name).map(String::as_str), Some(value), "{dynamic}");
            assert_eq!(!warnings.is_empty(), warned, "{dynamic}: {warnings:?}");
            assert!(!found.settings.contains_key("wal_keep_segments"));
        }
    }

    #[test]
    fn standbys_that_are_no_names_are_quoted() {
        for (value, want) in [
            ("patroni-2", "\"patroni-2\""),
            ("pg1, pg-2", "\"pg1\",\"pg-2\""),
            ("pg1,pg2", "pg1,pg2"),
            ("'*'", "*"),
            ("FIRST 1 (a)", "FIRST 1 (a)"),
            ("'\"pg-2\"'", "\"pg-2\""),
            ("ANY 1 (pg-2)", "ANY 1 (pg-2)"),
        ] {
            let (found, warnings) = merged("{}", &format!("synchronous_standby_names: {value}"));
            assert_eq!(found.settings.get("synchronous_standby_names").map(String::as_str), Some(want));
            assert_eq!(warnings.is_empty(), value.trim_matches('\'') == want, "{warnings:?}");
        }
    }

    #[test]
    fn local_beats_dynamic_except_where_controlled() {
        let (found, warnings) = merged(
            "{work_mem: 4MB, max_connections: 50, restore_command: cp, log_file_mode: 0640, synchronous_commit: off, port: 1}",
            "{Work_Mem: 8MB, max_connections: 500, random_page_cost: 1.1, cluster_name: x, archive_mode: on}",
        );
        let get = |name: &str| found.settings.get(name).map(String::as_str);
        assert_eq!(get("work_mem"), Some("8MB"));
        assert_eq!(get("max_connections"), Some("50"));
        assert_eq!(get("log_file_mode"), Some("416"));
        assert_eq!(get("synchronous_commit"), Some("off"));
        assert_eq!(get("archive_mode"), Some("on"));
        assert_eq!(get("random_page_cost"), Some("1.1"));
        assert_eq!((get("port"), get("cluster_name"), get("restore_command")), (None, None, None));
        assert_eq!(found.recovery.get("restore_command").map(String::as_str), Some("cp"));
        assert_eq!(warnings, Vec::<String>::new());
    }
}
