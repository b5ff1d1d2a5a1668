//! `slots`, `ignore_slots` and `member_slots_ttl` of the dynamic configuration (config.md section 4).

use std::collections::BTreeMap;
use std::time::Duration;

use regent_core::config::{IgnoreSlot, Logical, PermanentSlot, SlotKind};

use super::node::{At, Node, Value};
use super::section::Report;
use super::values;

/// What the operator says about replication slots.
#[derive(Debug)]
pub(super) struct Slots {
    permanent: Vec<Permanent>,
    pub(super) ignored: Vec<IgnoreSlot>,
    pub(super) member_ttl: Duration,
}

#[derive(Debug)]
struct Permanent {
    name: String,
    slot: PermanentSlot,
    /// Of a standby cluster only, or of any other only.
    of_standby: Option<bool>,
    at: At,
}

impl Slots {
    /// Those that are kept in a standby cluster, or in any other; a logical one wants `wal_level` to be logical.
    pub(super) fn permanent(
        self,
        in_standby: bool,
        wal_level: Option<&str>,
        report: &mut Report,
    ) -> BTreeMap<String, PermanentSlot> {
        let here = self.permanent.into_iter().filter(|slot| slot.of_standby.is_none_or(|of| of == in_standby));
        let named = here.map(|Permanent { name, slot, at, .. }| {
            let logical = slot != PermanentSlot::Physical && !in_standby;
            if let Some(level) = wal_level.filter(|level| logical && *level != "logical") {
                let what = format!("a logical slot needs wal_level logical, and it is {level}; the slot is not made");
                report.warn(&at, &format!("slots.{name}"), what);
            }
            (name, slot)
        });
        named.collect()
    }
}

/// A new name beats an old one.
const PERMANENT: &[&str] = &["slots", "permanent_slots", "permanent_replication_slots"];

pub(super) fn read(dynamic: Option<&Node>, report: &mut Report) -> Slots {
    let get = |key: &str| dynamic.and_then(|dynamic| dynamic.get(key));
    let entries = PERMANENT.iter().find_map(|key| get(key)).map(Node::entries).unwrap_or_default();
    let permanent = entries.iter().filter_map(|entry| {
        let (name, at, path) = (&entry.key, &entry.value.at, format!("slots.{}", entry.key));
        let of_standby = match entry.value.get("cluster_type").and_then(Node::written).as_deref() {
            None => None,
            Some("primary") => Some(false),
            Some("standby") => Some(true),
            Some(other) => {
                let what = format!("cluster_type is {other:?}, but must be primary or standby; the slot has no effect");
                report.invalid(at, &path, what);
                return None;
            }
        };
        let slot = permanent(name, &entry.value).map_err(|wrong| report.invalid(at, &path, wrong)).ok()?;
        Some(Permanent { name: name.clone(), slot, of_standby, at: at.clone() })
    });
    let permanent = permanent.collect();
    let matchers = match get("ignore_slots").map(|node| &node.value) {
        Some(Value::List(matchers)) => matchers.as_slice(),
        Some(Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Text(_) | Value::Map(_))
        | None => &[],
    };
    let ignored = matchers.iter().filter_map(|node| ignored(node, report)).collect();
    let ttl = get("member_slots_ttl").filter(|node| !node.is_null()).and_then(|node| {
        let seconds = values::seconds(node);
        if seconds.is_none() {
            report.invalid(
                &node.at,
                "member_slots_ttl",
                "this is no time, like 1800 or 30min; the default, 1800 s, is used",
            );
        }
        seconds
    });
    Slots { permanent, ignored, member_ttl: Duration::from_secs(ttl.unwrap_or(1800)) }
}

fn permanent(name: &str, node: &Node) -> Result<PermanentSlot, String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if name.is_empty() || name.len() > 63 || !name.chars().all(fits) {
        return Err(format!("{name:?} cannot be the name of a slot: use up to 63 of a-z, 0-9 and _; it has no effect"));
    }
    let text = |key: &str| node.get(key).and_then(Node::written);
    let logical = text("database").zip(text("plugin")).map(|(database, plugin)| Logical { database, plugin });
    match (text("type").map(|kind| kind.to_lowercase()).as_deref(), logical) {
        (Some("physical"), _) | (None, None) => Ok(PermanentSlot::Physical),
        (Some("logical") | None, Some(logical)) => Ok(PermanentSlot::Logical(logical)),
        (Some("logical"), None) => Err("a logical slot needs database and plugin; it has no effect".to_owned()),
        (Some(other), _) => Err(format!("type is {other:?}, but must be physical or logical; it has no effect")),
    }
}

fn ignored(node: &Node, report: &mut Report) -> Option<IgnoreSlot> {
    let text = |key: &str| node.get(key).and_then(Node::written);
    let kind = match text("type").as_deref() {
        None => None,
        Some("physical") => Some(SlotKind::Physical),
        Some("logical") => Some(SlotKind::Logical),
        Some(other) => {
            let what = format!("type is {other:?}, but must be physical or logical; the matcher has no effect");
            report.invalid(&node.at, "ignore_slots", what);
            return None;
        }
    };
    let matcher = IgnoreSlot { name: text("name"), kind, database: text("database"), plugin: text("plugin") };
    // One that says nothing would match everything.
    if matcher == IgnoreSlot::default() {
        report.invalid(
            &node.at,
            "ignore_slots",
            "a matcher needs one of name, type, database, plugin; it has no effect",
        );
        return None;
    }
    Some(matcher)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::yaml::parse;

    fn slots(yaml: &str) -> (Slots, Vec<String>) {
        let mut report = Report::default();
        let read = read(Some(&parse("config", yaml.as_bytes()).unwrap()), &mut report);
        (read, report.warnings.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn permanent_slots_are_read_under_each_of_their_names() {
        for key in PERMANENT {
            let (read, warnings) = slots(&format!("{key}: {{a: {{type: physical}}, b: }}"));
            assert_eq!(names(read, false), ["a", "b"], "{key}");
            assert_eq!(warnings, [""; 0]);
        }
        let (read, warnings) =
            slots("slots: {l: {database: d, plugin: pgoutput}, A: , x: {type: odd}, y: {type: logical}}");
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        let mut report = Report::default();
        let logical = PermanentSlot::Logical(Logical { database: "d".to_owned(), plugin: "pgoutput".to_owned() });
        assert_eq!(read.permanent(false, Some("replica"), &mut report), BTreeMap::from([("l".to_owned(), logical)]));
        assert_eq!(report.warnings.len(), 1, "it can never be made");
    }

    #[test]
    fn a_slot_may_be_of_one_type_of_cluster() {
        let yaml = "slots: {a: , p: {cluster_type: primary}, s: {cluster_type: standby}, x: {cluster_type: other}}";
        let (read, warnings) = slots(yaml);
        assert_eq!((names(read, false), warnings.len()), (vec!["a".to_owned(), "p".to_owned()], 1));
        assert_eq!(names(slots(yaml).0, true), ["a", "s"]);
    }

    fn names(read: Slots, in_standby: bool) -> Vec<String> {
        read.permanent(in_standby, None, &mut Report::default()).into_keys().collect()
    }

    #[test]
    fn matchers_of_ignored_slots_say_something() {
        let (read, warnings) = slots("ignore_slots: [{name: a, type: logical}, {}, {type: odd}, {plugin: wal2json}]");
        assert_eq!(read.ignored.len(), 2, "{read:?}");
        assert_eq!(read.ignored[0].kind, Some(SlotKind::Logical));
        assert_eq!(warnings.len(), 2, "{warnings:?}");
    }

    #[test]
    fn the_ttl_of_member_slots_is_a_time() {
        for (yaml, seconds) in [("a: 1", 1800), ("member_slots_ttl: 30min", 1800), ("member_slots_ttl: 0", 0)] {
            assert_eq!(slots(yaml).0.member_ttl, Duration::from_secs(seconds), "{yaml}");
        }
        for (yaml, seconds) in [("'2h'", 7200), ("90", 90), ("'1500ms'", 2), ("1d", 86_400), ("x", 1800)] {
            assert_eq!(
                slots(&format!("member_slots_ttl: {yaml}")).0.member_ttl,
                Duration::from_secs(seconds),
                "{yaml}"
            );
        }
    }
}
