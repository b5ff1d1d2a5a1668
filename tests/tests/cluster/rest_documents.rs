//! The bodies of what `rest_table` asks: names, order and values that the contract fixes (rest-api.md sections 4, 7 to 10).

use regent_tests::rig::{Node, Rig};
use serde_json::Value;

use crate::rest_table::{Agents, ask};

/// All metrics of the contract, in its order; Regent's additions from the development line of the peer are in brackets.
const METRICS: &str = "
gauge   patroni_version  patroni_postgres_running  patroni_postmaster_start_time  patroni_primary
counter patroni_xlog_location
gauge   patroni_standby_leader  patroni_replica  patroni_sync_standby  patroni_quorum_standby
counter patroni_xlog_received_location  patroni_xlog_replayed_location
gauge   patroni_xlog_replayed_timestamp  patroni_xlog_paused
gauge   (patroni_postgres_streaming)  (patroni_postgres_in_archive_recovery)
gauge   patroni_postgres_server_version  patroni_cluster_unlocked  patroni_failsafe_mode_is_active
gauge   [patroni_failsafe_mode_enabled]  [patroni_failsafe_member]
gauge   patroni_postgres_timeline  patroni_dcs_last_seen  patroni_pending_restart  patroni_is_paused
gauge   patroni_postgres_state  [patroni_failover_priority]
";

/// The names of an object are these, in this order, and where a word has `=` its value is that. A name with `?` may be missing.
fn named(object: &Value, words: &str) -> Result<(), String> {
    let mut found: Vec<&str> = object.as_object().ok_or("no object")?.keys().map(String::as_str).collect();
    // A key of our own may come last.
    found.retain(|name| *name != "regent");
    let here = |word: &&str| word.strip_suffix('?').is_none_or(|name| found.contains(&name));
    let words = words.split_whitespace().filter(here).map(|word| word.trim_end_matches('?'));
    let pairs: Vec<(&str, Option<&str>)> =
        words.map(|word| word.split_once('=').map_or((word, None), |(k, v)| (k, Some(v)))).collect();
    let wanted: Vec<&str> = pairs.iter().map(|(name, _)| *name).collect();
    if found != wanted {
        return Err(format!("{found:?}, not {wanted:?}, in {object}"));
    }
    for (name, value) in pairs {
        let here = object[name].as_str().map_or_else(|| object[name].to_string(), |text| text.replace(' ', "_"));
        if value.is_some_and(|value| value != here) {
            return Err(format!("{name} is {here:?}, not {value:?}, in {object}"));
        }
    }
    Ok(())
}

/// `YYYY-MM-DD HH:MM:SS[.ffffff]+HH:MM`, where there is one.
fn dated(time: &Value) -> Result<(), String> {
    let Some(text) = time.as_str() else { return Ok(()) };
    let form: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    let (seconds, rest) = form.split_at_checked(19).ok_or("too short a time")?;
    let zone = rest.trim_start_matches('.').trim_start_matches('0');
    let fine = seconds == "0000-00-00 00:00:00" && ["+00:00", "-00:00"].contains(&zone);
    if fine { Ok(()) } else { Err(format!("{text} is no time of the contract")) }
}

/// What a condition shows: in the status document, and in `/cluster`.
#[derive(Clone, Copy)]
pub(crate) struct Shown<'a> {
    pub(crate) document: &'a str,
    /// Nothing where the peer does not answer, for want of etcd.
    pub(crate) member: &'a str,
}

/// All documents of a node show this.
pub(crate) fn show(rig: &Rig, agents: Agents, node: &Node, shown: Shown<'_>) -> Result<(), String> {
    let get = |path: &str| ask(node, "GET", path).map_err(|e| e.to_string());
    let document = get("/patroni")?.json();
    named(&document, shown.document)?;
    for path in ["/primary", "/replica", "/nosuch"] {
        named(&get(path)?.json(), shown.document).map_err(|e| format!("{path}: {e}"))?;
    }
    named(&document["patroni"], &format!("version=4.1.5 scope=demo name={}", node.name()))?;
    if let Some(position) = document.get("xlog") {
        let standby = "received_location replayed_location replayed_timestamp paused";
        named(position, if document["role"] == "primary" { "location" } else { standby })?;
    }
    dated(&document["postmaster_start_time"])?;
    metrics(agents, node, &document)?;
    if shown.member.is_empty() {
        return Ok(());
    }
    let cluster = get("/cluster")?.json();
    named(
        &cluster,
        if document.get("pause").is_some() { "members pause=true scope=demo" } else { "members scope=demo" },
    )?;
    let members = cluster["members"].as_array().ok_or("no members")?;
    let names: Vec<&str> = members.iter().filter_map(|member| member["name"].as_str()).collect();
    if !names.is_sorted() {
        return Err(format!("{names:?} is not sorted"));
    }
    let member = members.iter().find(|member| member["name"] == node.name()).ok_or("it is no member")?;
    named(member, shown.member)?;
    // As etcd has them, in the order of its keys.
    let stored = |key: &str| rig.etcd.get(&format!("/service/demo/{key}")).map_err(|e| e.to_string());
    for (path, key) in [("/config", "config"), ("/history", "history")] {
        let (here, there) = (get(path)?, stored(key)?.unwrap_or_else(|| "[]".to_owned()));
        let there: Value = serde_json::from_str(&there).map_err(|e| e.to_string())?;
        // As texts: the order of the keys counts.
        let [ours, theirs] = [&here.json(), &there].map(Value::to_string);
        if here.status == 200 && ours != theirs {
            return Err(format!("{path} is {}, stored is {there}", here.body));
        }
    }
    Ok(())
}

/// Names, types, labels, order; values that agree with the status document.
fn metrics(agents: Agents, node: &Node, document: &Value) -> Result<(), String> {
    let text = ask(node, "GET", "/metrics").map_err(|e| e.to_string())?.body;
    let labels = format!("{{scope=\"demo\",name=\"{}\"}}", node.name());
    let sample = |name: &str| text.lines().find_map(|line| line.strip_prefix(&format!("{name}{labels} ")));
    let mut last = 0;
    for line in METRICS.lines() {
        let mut words = line.split_whitespace();
        let kind = words.next().unwrap_or_default();
        for word in words {
            let name = word.trim_matches(['[', ']', '(', ')']);
            if sample(name).is_none() && (agents == Agents::Peer && name != word) {
                continue;
            }
            sample(name).ok_or_else(|| format!("no {name}{labels} in {text}"))?;
            let head = text.find(&format!("# TYPE {name} {kind}\n")).ok_or_else(|| format!("{name} is no {kind}"))?;
            if head < last || !text.contains(&format!("# HELP {name} ")) {
                return Err(format!("{name} is at the wrong place, or has no HELP"));
            }
            last = head;
        }
    }
    let flag = |is: bool| if is { "1" } else { "0" }.to_owned();
    let number = |value: &Value| value.as_i64().unwrap_or(0).to_string();
    let role = |name: &str| flag(document["role"] == name);
    for (name, value) in [
        ("version", "040105".to_owned()),
        ("postgres_running", flag(document["state"] == "running")),
        ("primary", role("primary")),
        ("replica", role("replica")),
        ("standby_leader", role("standby_leader")),
        ("sync_standby", flag(document["sync_standby"] == true)),
        ("quorum_standby", flag(document["quorum_standby"] == true)),
        ("xlog_paused", flag(document["xlog"]["paused"] == true)),
        ("postgres_server_version", number(&document["server_version"])),
        ("cluster_unlocked", flag(document["cluster_unlocked"] == true)),
        ("failsafe_mode_is_active", flag(document["failsafe_mode_is_active"] == true)),
        ("postgres_timeline", number(&document["timeline"])),
        ("pending_restart", flag(document["pending_restart"] == true)),
        ("is_paused", flag(document["pause"] == true)),
    ] {
        let name = format!("patroni_{name}");
        if sample(&name) != Some(&value) {
            return Err(format!("{name} is {:?}, not {value}; {document}", sample(&name)));
        }
    }
    Ok(())
}
