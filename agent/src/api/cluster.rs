//! `/cluster` (rest-api.md section 7): every member as etcd last knew it, with its distance from the leader.

use serde_json::{Map, Value, json};

use regent_core::cluster::ClusterView;
use regent_core::config::SyncMode;
use regent_core::sync::lists;
use regent_core::units::{Lsn, MemberName};

use crate::status::Status;

/// The document, from the last view that could be read.
pub(super) fn cluster(status: &Status, view: &ClusterView) -> Value {
    let members: Vec<Value> = status.members.iter().map(|(name, stored)| member(name, stored, view, status)).collect();
    let mut keys = Map::new();
    keys.insert("members".to_owned(), members.into());
    if status.pause {
        keys.insert("pause".to_owned(), true.into());
    }
    if let Some((asked, schedule)) = view.failover.as_ref().and_then(|f| Some((f, f.schedule.as_ref()?))) {
        let names = [("from", &asked.leader), ("to", &asked.candidate)];
        let at = [("at".to_owned(), schedule.text.as_str().into())];
        let named = names.into_iter().filter_map(|(key, name)| Some((key.to_owned(), name.as_ref()?.as_str().into())));
        keys.insert("scheduled_switchover".to_owned(), Value::Object(at.into_iter().chain(named).collect()));
    }
    keys.insert("scope".to_owned(), status.scope.as_str().into());
    Value::Object(keys)
}

/// One member, from its key as stored.
fn member(name: &str, stored: &Value, view: &ClusterView, status: &Status) -> Value {
    let leads = view.leader.as_ref().is_some_and(|leader| leader.name.as_str() == name);
    let mut keys = Map::new();
    let mut put = |key: &str, value: Value| keys.insert(key.to_owned(), value);

    put("name", name.into());
    let listed = view.sync.as_ref().is_some_and(|sync| lists(&sync.standbys, &MemberName::from(name)));
    let role = match status.synchronous_mode {
        _ if leads && status.standby_cluster => "standby_leader",
        _ if leads => "leader",
        SyncMode::On if listed => "sync_standby",
        SyncMode::Quorum if listed => "quorum_standby",
        SyncMode::Off | SyncMode::On | SyncMode::Quorum => "replica",
    };
    put("role", role.into());
    let flow = stored.get("replication_state").filter(|_| role != "leader");
    put("state", flow.or_else(|| stored.get("state")).cloned().unwrap_or_default());
    put("api_url", stored.get("api_url").cloned().unwrap_or_default());
    let (host, port) = address(stored);
    if let Some(host) = host {
        put("host", host.into());
    }
    if let Some(port) = port {
        put("port", port.into());
    }
    for key in ["timeline", "pending_restart", "pending_restart_reason", "scheduled_restart", "clone", "tags"] {
        if let Some(value) = stored.get(key).filter(|value| says_something(value)) {
            put(key, value.clone());
        }
    }
    if !leads {
        let position = |key: &str| stored.get(key).and_then(Value::as_u64).filter(|lsn| *lsn > 0).map(Lsn);
        let (received, replayed) = (position("receive_lsn"), position("replay_lsn"));
        let newest = received.max(replayed).or_else(|| position("xlog_location"));
        for (lsn_key, lag_key, lsn) in
            [("receive_lsn", "receive_lag", received), ("replay_lsn", "replay_lag", replayed), ("lsn", "lag", newest)]
        {
            match (lsn, view.status.optime) {
                (Some(lsn), Some(leader)) => {
                    put(lag_key, leader.bytes_ahead_of(lsn).into());
                    put(lsn_key, lsn.to_string().into());
                }
                // No leader has written its position yet: the distance cannot be known.
                (Some(lsn), None) => {
                    put(lag_key, "unknown".into());
                    put(lsn_key, lsn.to_string().into());
                }
                // The peer's order of the two turns around here.
                (None, _) => {
                    put(lsn_key, "unknown".into());
                    put(lag_key, "unknown".into());
                }
            }
        }
    }
    Value::Object(keys)
}

/// Neither false-like nor empty: a flag that is not set is left out.
fn says_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Object(map) => !map.is_empty(),
        Value::Bool(true) | Value::Number(_) | Value::String(_) | Value::Array(_) => true,
    }
}

/// Host and port of a member: of its `conn_url`, or of the older `conn_kwargs` (dcs.md 3.3).
fn address(stored: &Value) -> (Option<String>, Option<u16>) {
    if let Some(url) = stored.get("conn_url").and_then(Value::as_str) {
        return host_and_port(url);
    }
    let given = |key: &str| stored.get("conn_kwargs").and_then(|kwargs| kwargs.get(key));
    let port = given("port").and_then(|port| port.as_u64().or_else(|| port.as_str()?.parse().ok()));
    (given("host").and_then(Value::as_str).map(str::to_owned), port.and_then(|port| port.try_into().ok()))
}

/// `postgres://host:port/dbname`, IPv6 in brackets.
fn host_and_port(url: &str) -> (Option<String>, Option<u16>) {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = authority.split(['/', '?']).next().unwrap_or_default();
    let address = authority.rsplit_once('@').map_or(authority, |(_, address)| address);
    let (host, port) = match address.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => address.rsplit_once(':').map_or((address, None), |(host, port)| (host, Some(port))),
    };
    ((!host.is_empty()).then(|| host.to_owned()), port.and_then(|port| port.parse().ok()))
}

/// `/history`: as stored, `[]` if there is none.
pub(super) fn history(status: &Status) -> Value {
    status.history.clone().unwrap_or_else(|| json!([]))
}

#[cfg(test)]
mod tests {
    #[test]
    fn addresses_come_out_of_urls() {
        for (url, host, port) in [
            ("postgres://127.0.0.1:5432/postgres", Some("127.0.0.1"), Some(5432)),
            ("postgres://[fd00::1]:5433/postgres", Some("fd00::1"), Some(5433)),
            ("postgres://db.example", Some("db.example"), None),
            ("postgres://u@h:1?x=/y", Some("h"), Some(1)),
            ("postgres://", None, None),
            ("postgres://h:999999/", Some("h"), None),
        ] {
            assert_eq!(super::host_and_port(url), (host.map(str::to_owned), port), "{url}");
        }
    }
}
