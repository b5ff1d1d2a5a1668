//! The status document (rest-api.md section 4): `/patroni`, and the body of every health check.
//!
//! Key order is part of the interface. What is not so is left out, never `false` or `null`.

use std::time::Duration;

use regent_core::config::SyncMode;
use regent_core::postgres::{SqlFacts, WalSender};
use regent_core::units::{Lsn, Timeline};
use serde_json::{Map, Value, json};

use super::moment::Moment;
use super::pgtime;
use crate::guardian::{Action, View};

/// The document of this moment.
pub(super) fn document(moment: &Moment<'_>) -> Value {
    let status = moment.status;
    let mut keys = Map::new();
    let mut put = |key: &str, value: Value| keys.insert(key.to_owned(), value);

    put("state", moment.state().0.into());
    if let Some(sql) = moment.sql() {
        put("postmaster_start_time", pgtime::shown(&sql.started_at).into());
    }
    put("role", moment.role().into());
    if let Some(sql) = moment.sql() {
        put("server_version", sql.server_version.into());
        put("xlog", xlog(moment, sql));
        let synchronous = match moment.synchronous() {
            Some(SyncMode::On) => Some("sync_standby"),
            Some(SyncMode::Quorum) => Some("quorum_standby"),
            Some(SyncMode::Off) | None => None,
        };
        if let Some(kind) = synchronous {
            put(kind, true.into());
        }
        put("timeline", sql.timeline.map(|Timeline(number)| number).into());
        if let Some(state) = moment.replication_state() {
            put("replication_state", state.into());
        }
        if !sql.replication.is_empty() {
            put("replication", sql.replication.iter().map(sender).collect());
        }
    }
    if status.pause {
        put("pause", true.into());
    }
    if moment.is_unlocked() {
        put("cluster_unlocked", true.into());
    }
    if moment.is_failsafe() {
        put("failsafe_mode_is_active", true.into());
    }
    put("dcs_last_seen", status.dcs_last_seen.into());
    if !status.tags.is_empty() {
        put("tags", Value::Object(status.tags.clone()));
    }
    if let Some(id) = status.system_id {
        put("database_system_identifier", id.to_string().into());
    }
    if let Some(reason) = moment.sql().and_then(pending_restart) {
        put("pending_restart", true.into());
        put("pending_restart_reason", reason);
    }
    put("patroni", json!({"version": super::CONTRACT_VERSION, "scope": status.scope, "name": status.name}));
    if let Some(scheduled) = &status.scheduled_restart {
        put("scheduled_restart", scheduled.clone());
    }
    if status.watchdog_failed {
        put("watchdog_failed", true.into());
    }
    put("regent", own(moment));
    Value::Object(keys)
}

/// What the peer does not have.
fn own(moment: &Moment<'_>) -> Value {
    let mut own = Map::new();
    let mut put = |key: &str, value: Value| own.insert(key.to_owned(), value);
    put("version", env!("CARGO_PKG_VERSION").into());
    put("rule", moment.status.rule.into());
    if !moment.status.slots_not_ready.is_empty() {
        put("slots_not_ready", moment.status.slots_not_ready.as_slice().into());
    }
    if let Some(guardian) = &moment.status.guardian {
        put("guardian", shown_guardian(moment, guardian));
    }
    let watchdog = &moment.status.watchdog;
    match (watchdog.active, &watchdog.problem) {
        (Some(timeout), _) => drop(put("watchdog", json!({"state": "active", "timeout": timeout.as_secs()}))),
        (None, Some(why)) => drop(put("watchdog", json!({"state": "unusable", "problem": why}))),
        (None, None) => {}
    }
    Value::Object(own)
}

fn shown_guardian(moment: &Moment<'_>, guardian: &View) -> Value {
    let mut keys = Map::new();
    let mut put = |key: &str, value: Value| keys.insert(key.to_owned(), value);
    match (&guardian.problem, moment.guardian_left()) {
        (Some((why, _)), _) => {
            put("state", "absent".into());
            put("problem", why.as_str().into());
        }
        (None, _) if !guardian.met => drop(put("state", "absent".into())),
        (None, Some(left)) => {
            put("state", "armed".into());
            put("deadline_in", seconds(left));
        }
        (None, None) => drop(put("state", "ready".into())),
    }
    if guardian.met {
        put("pid", guardian.pid.into());
    }
    if let Some(Action { at, took, killed }) = guardian.last {
        put(
            "last_kill",
            json!({"seconds_ago": seconds(moment.now.since(at)), "took": seconds(took), "processes": killed}),
        );
    }
    Value::Object(keys)
}

/// To the millisecond.
fn seconds(duration: Duration) -> Value {
    let millis = u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
    (f64::from(millis) / 1000.0).into()
}

fn xlog(moment: &Moment<'_>, sql: &SqlFacts) -> Value {
    match moment.standby_positions() {
        None => json!({"location": sql.flush_lsn.0}),
        Some((Lsn(received), Lsn(replayed))) => json!({
            "received_location": received,
            "replayed_location": replayed,
            "replayed_timestamp": sql.replayed_at.as_deref().map(pgtime::shown),
            "paused": sql.replay_paused,
        }),
    }
}

fn sender(sender: &WalSender) -> Value {
    json!({
        "usename": sender.usename,
        "application_name": sender.application_name,
        "client_addr": sender.client_addr,
        "state": sender.state,
        "sync_state": sender.sync_state,
        "sync_priority": sender.sync_priority,
    })
}

fn pending_restart(sql: &SqlFacts) -> Option<Value> {
    let changed =
        |(name, old, new): &(String, String, String)| (name.clone(), json!({"old_value": old, "new_value": new}));
    (!sql.pending_restart.is_empty()).then(|| sql.pending_restart.iter().map(changed).collect::<Map<_, _>>().into())
}
