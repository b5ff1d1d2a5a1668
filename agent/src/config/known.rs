//! Which keys have a meaning, and which have none. Nothing that a user set stays silently without effect.
//!

use super::Problem;
use super::node::{Entry, Node, Value};
use super::section::Report;
use super::table::{self, KEYS, Key, Kind, State};

/// Dynamic keys that have no effect in the local file outside `bootstrap.dcs`.
const DYNAMIC_ONLY: &str =
    "it counts only in bootstrap.dcs before the first start, and in the dynamic configuration after";

/// Looks through both sides, one finding for each key that has no effect or a value of another kind. `bootstrap.dcs` is left
/// to the time when it has become the dynamic side. Of dynamic keys those that resemble nothing stay unmentioned: the field
/// stores its own there.
pub(super) fn check(local: &Node, dynamic: Option<&Node>) -> Report {
    let mut found = Report::default();
    walk(local, "", "", &mut found);
    if let Some(dynamic) = dynamic {
        walk(dynamic, "bootstrap.dcs", "", &mut found);
    }
    found
}

/// The keys that stand directly in a section.
pub(super) fn keys_of(path: &str) -> impl Iterator<Item = &'static Key> + Clone {
    let path = if path == "bootstrap.dcs.postgresql" { "postgresql" } else { path };
    let section = table::find(path).map_or("", |key| key.path);
    KEYS.iter().filter(move |key| key.section() == section && (path.is_empty() || !section.is_empty()))
}

/// `path` names the section in the table, `shown` in messages.
fn walk(node: &Node, path: &str, shown: &str, found: &mut Report) {
    if keys_of(path).next().is_none() || shown == "bootstrap.dcs" {
        return;
    }
    let free = named_sections(node, path);
    let any = table::find(path).is_some_and(|key| key.kind == Kind::Map);
    for entry in node.entries() {
        let name = entry.key.as_str();
        let below = |parent: &str| if parent.is_empty() { name.to_owned() } else { format!("{parent}.{name}") };
        let (inner, shown) = (below(path), below(shown));
        let stem = name.strip_suffix("_file").map(|_| inner.trim_end_matches("_file"));
        let secret = stem.and_then(table::find).filter(|key| key.kind == Kind::Secret);
        match table::find(&inner).or(secret) {
            Some(key) => {
                if let Some(wrong) = key.wrong(&entry.value).filter(|_| key.state == State::InForce) {
                    found.invalid(&entry.value.at, &shown, wrong);
                }
                walk(&entry.value, &inner, &shown, found);
            }
            None if any || free.iter().any(|free| free == name) => {}
            None => found.warnings.extend(unknown(entry, path, &shown)),
        }
    }
}

fn unknown(entry: &Entry, path: &str, shown: &str) -> Option<Problem> {
    let near = nearest(&entry.key, keys_of(path).map(Key::name));
    let dynamic_only = path.is_empty() && keys_of("bootstrap.dcs").any(|key| key.name() == entry.key);
    let hint = match near {
        _ if dynamic_only => DYNAMIC_ONLY.to_owned(),
        Some(key) => format!("did you mean {key}?"),
        None if path == "bootstrap.dcs" => return None,
        None => "see the documentation for the keys of this section".to_owned(),
    };
    Some(Problem::at(&entry.at, shown, format!("unknown key, which has no effect; {hint}")))
}

/// The name among `names` that somebody may have meant.
pub(super) fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let nearest = names.map(|name| (distance(word, name), name)).min();
    nearest.filter(|(far, name)| *far <= 2.min(name.len() / 3)).map(|(_, name)| name)
}

/// Sections whose name another key gives: a replica method's, a bootstrap method's.
pub(super) fn named_sections(node: &Node, path: &str) -> Vec<String> {
    let names = match path {
        "bootstrap" => node.get("method"),
        "postgresql" | "bootstrap.dcs.postgresql" => {
            node.get("create_replica_methods").or_else(|| node.get("create_replica_method"))
        }
        _ => None,
    };
    names.map(texts).unwrap_or_default()
}

/// A list of texts, or one.
pub(super) fn texts(node: &Node) -> Vec<String> {
    match &node.value {
        Value::List(items) => items.iter().filter_map(Node::written).collect(),
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Text(_) | Value::Map(_) => {
            node.written().into_iter().collect()
        }
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

    fn found(local: &str, dynamic: &str) -> Vec<String> {
        let (local, dynamic) =
            (parse("f.yml", local.as_bytes()).unwrap(), parse("config", dynamic.as_bytes()).unwrap());
        check(&local, Some(&dynamic)).warnings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_known_needs_no_word() {
        let quiet = found(
            "{watchdog: {mode: required}, restapi: {ciphers: x, authentication: {password_file: a}},
             bootstrap: {method: pgbackrest, pgbackrest: {command: x}},
             postgresql: {create_replica_methods: [wal_g, basebackup], wal_g: {command: y}, authentication: {rewind: {username: a}}}}",
            "{synchronous_mode: on, slots: {a: {type: physical}}, failsafe_mode: 'off', pg_version: 15,
             standby_cluster: {host: a, create_replica_methods: [wal_g]}, postgresql: {use_pg_rewind: true, callbacks: {}}}",
        );
        assert_eq!(quiet, Vec::<String>::new());
    }

    #[test]
    fn unknown_keys_come_with_the_nearest_known_one() {
        let found = found("{postgresql: {data_dri: /x, nonsense: 1}, ttl: 30}", "{tll: 20, pg_cluster: x}");
        assert_eq!(found.len(), 4, "{found:?}");
        for (line, part) in found.iter().zip(["data_dir?", "nonsense", "bootstrap.dcs before", "ttl?"]) {
            assert!(line.contains(part), "{line} has no {part}");
        }
        assert_eq!(found.iter().filter(|line| line.starts_with("f.yml:1:")).count(), 3, "{found:?}");
    }

    #[test]
    fn a_value_of_another_kind_is_named_with_what_was_expected() {
        let found = found(
            "{log: {level: LOUD}, postgresql: {pg_hba: x, use_pg_rewind: 'false', pg_ctl_timeout: soon}, tags: {own: 1, clonefrom: 7}}",
            "{failsafe_mode: maybe, synchronous_node_count: 0}",
        );
        let parts =
            ["DEBUG", "a list", "without quotes", "(s, no unit), 0 or more", "true or false", "on or off", "1 or more"];
        assert_eq!(found.len(), parts.len(), "{found:?}");
        for (line, part) in found.iter().zip(parts) {
            assert!(line.contains(part), "{line} has no {part}");
        }
    }

    #[test]
    fn distances_are_right() {
        for (a, b, want) in [("", "", 0), ("a", "", 1), ("kitten", "sitting", 3), ("data_dri", "data_dir", 2)] {
            assert_eq!(distance(a, b), want);
        }
    }
}
