//! The tags of this member: what the rules read, and what the member key and REST show (config.md 3.9, rest-api.md 4.3).

use regent_core::config::Tags;
use regent_core::units::MemberName;
use serde_json::{Map, Value};

use super::node::Node;
use super::section::{Report, Section};
use super::values;

/// Tags that are left out when false.
const FALSE_IS_ABSENT: &[&str] = &["clonefrom", "nofailover", "noloadbalance", "nosync", "nostream"];

/// Both readings of the `tags` section.
pub(super) fn read(tags: &Section<'_>, report: &mut Report) -> (Tags, Map<String, Value>) {
    for key in ["clonefrom", "nofailover", "noloadbalance", "nosync"] {
        if let Some(node) = tags.get(key).filter(|node| node.is_truthy() && values::word(node) == Some(false)) {
            report.warn(
                &node.at,
                &tags.path_of(key),
                "a text counts as true whatever it says; write false without quotes",
            );
        }
    }
    let priority = tags.get("failover_priority").and_then(values::integer);
    let nofailover = tags.get("nofailover");
    let (nofailover, failover_priority) = match (nofailover.map(Node::is_truthy), priority) {
        (Some(never), priority) => {
            if let (Some(node), Some(priority)) = (nofailover, priority.filter(|priority| (*priority <= 0) != never)) {
                let what = format!(
                    "Conflicting configuration between nofailover: {never} and failover_priority: {priority}. Defaulting \
                     to nofailover: {never}"
                );
                report.warn(&node.at, &tags.path_of("nofailover"), what);
            }
            (never, if never { 0 } else { priority.filter(|priority| *priority > 0).unwrap_or(1) })
        }
        (None, Some(priority)) => (priority <= 0, priority.max(0)),
        (None, None) => (false, 1),
    };
    let core = Tags {
        nofailover,
        failover_priority,
        clonefrom: tags.truthy("clonefrom"),
        nostream: tags.get("nostream").and_then(values::word) == Some(true),
        replicatefrom: tags.text("replicatefrom", report).map(MemberName),
    };
    (core, shown(tags))
}

fn shown(tags: &Section<'_>) -> Map<String, Value> {
    let entries = tags.node().map(Node::entries).unwrap_or_default();
    let has = |key: &str| entries.iter().any(|entry| entry.key == key);
    entries
        .iter()
        .filter(|entry| {
            let kept = match entry.key.as_str() {
                "nofailover" => has("failover_priority"),
                "nosync" => has("sync_priority"),
                _ => false,
            };
            kept || entry.value.is_truthy() || !FALSE_IS_ABSENT.contains(&entry.key.as_str())
        })
        .map(|entry| (entry.key.clone(), entry.value.to_json()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::yaml::parse;

    fn tags(yaml: &str) -> (Tags, String, usize) {
        let tree = parse("test", yaml.as_bytes()).unwrap();
        let mut report = Report::default();
        let (core, shown) = read(&Section::of(Some(&tree), "tags"), &mut report);
        (core, Value::Object(shown).to_string(), report.warnings.len())
    }

    #[test]
    fn false_tags_are_not_shown() {
        let (core, shown, _) = tags(
            "{nofailover: false, noloadbalance: false, clonefrom: false, nosync: false, zone: null, since: 2024-01-02}",
        );
        assert_eq!((core, shown.as_str()), (Tags::default(), r#"{"zone":null,"since":"2024-01-02"}"#));
        let (_, shown, _) = tags("{nofailover: false, failover_priority: 2, nosync: false, sync_priority: 3}");
        assert_eq!(shown, r#"{"nofailover":false,"failover_priority":2,"nosync":false,"sync_priority":3}"#);
    }

    #[test]
    fn nofailover_beats_the_priority() {
        let cases = [
            ("{}", (false, 1, 0)),
            ("{failover_priority: 3}", (false, 3, 0)),
            ("{failover_priority: 0}", (true, 0, 0)),
            ("{failover_priority: -1}", (true, 0, 0)),
            ("{nofailover: true}", (true, 0, 0)),
            ("{nofailover: true, failover_priority: 2}", (true, 0, 1)),
            ("{nofailover: false, failover_priority: 0}", (false, 1, 1)),
            ("{nofailover: false, failover_priority: 2}", (false, 2, 0)),
            ("{nofailover: 'false'}", (true, 0, 1)),
        ];
        for (yaml, want) in cases {
            let (core, _, warnings) = tags(yaml);
            assert_eq!((core.nofailover, core.failover_priority, warnings), want, "{yaml}");
        }
    }
}
