//! `/metrics` (rest-api.md section 10): Prometheus' text format 0.0.4, by hand, so that integers stay exact and names and
//! label order are the peer's. Made of the same [`Moment`] as the status document: the two cannot disagree.

use regent_core::config::SyncMode;
use std::fmt::Write;
use std::time::Duration;

use super::moment::Moment;
use super::pgtime;

/// One metric: its lines are `# HELP`, `# TYPE` and one sample.
struct Metric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    value: fn(&Moment<'_>) -> String,
}

const fn gauge(name: &'static str, help: &'static str, value: fn(&Moment<'_>) -> String) -> Metric {
    Metric { name, kind: "gauge", help, value }
}

const fn counter(name: &'static str, help: &'static str, value: fn(&Moment<'_>) -> String) -> Metric {
    Metric { name, kind: "counter", help, value }
}

/// In the contract's order; ours come last.
const METRICS: [Metric; 36] = [
    gauge("patroni_version", "Level of the contract, two digits a part.", |_| version_digits(super::CONTRACT_VERSION)),
    gauge("patroni_postgres_running", "1 if PostgreSQL runs and answers.", |m| flag(m.is_running())),
    gauge("patroni_postmaster_start_time", "Epoch seconds of the start of PostgreSQL.", |m| {
        m.sql().and_then(|sql| pgtime::epoch(&sql.started_at)).unwrap_or_else(zero)
    }),
    gauge("patroni_primary", "1 if the role is primary.", |m| flag(m.role() == "primary")),
    counter("patroni_xlog_location", "Flush position of a primary, bytes.", |m| {
        m.sql().map_or_else(zero, |sql| if sql.in_recovery { zero() } else { sql.flush_lsn.0.to_string() })
    }),
    gauge("patroni_standby_leader", "1 if the role is standby_leader.", |m| flag(m.role() == "standby_leader")),
    gauge("patroni_replica", "1 if the role is replica.", |m| flag(m.role() == "replica")),
    gauge("patroni_sync_standby", "1 if this is a synchronous standby.", |m| {
        flag(m.synchronous() == Some(SyncMode::On))
    }),
    gauge("patroni_quorum_standby", "1 if this is a quorum standby.", |m| {
        flag(m.synchronous() == Some(SyncMode::Quorum))
    }),
    counter("patroni_xlog_received_location", "Received position of a standby, bytes.", |m| {
        m.standby_positions().map_or_else(zero, |(received, _)| received.0.to_string())
    }),
    counter("patroni_xlog_replayed_location", "Replayed position of a standby, bytes.", |m| {
        m.standby_positions().map_or_else(zero, |(_, replayed)| replayed.0.to_string())
    }),
    gauge("patroni_xlog_replayed_timestamp", "Epoch seconds of the last replayed commit, 0 if none.", |m| {
        let sql = m.sql().filter(|sql| sql.in_recovery);
        sql.and_then(|sql| pgtime::epoch(sql.replayed_at.as_deref()?)).unwrap_or_else(zero)
    }),
    gauge("patroni_xlog_paused", "1 if replay is paused.", |m| {
        flag(m.sql().is_some_and(|sql| sql.in_recovery && sql.replay_paused))
    }),
    gauge("patroni_postgres_streaming", "1 if PostgreSQL is streaming.", |m| {
        flag(m.replication_state() == Some("streaming"))
    }),
    gauge("patroni_postgres_in_archive_recovery", "1 if PostgreSQL replays from the archive.", |m| {
        flag(m.replication_state() == Some("in archive recovery"))
    }),
    gauge("patroni_postgres_server_version", "Version of PostgreSQL, 0 if it does not answer.", |m| {
        m.sql().map_or_else(zero, |sql| sql.server_version.to_string())
    }),
    gauge("patroni_cluster_unlocked", "1 if nobody is known to hold the leader key.", |m| flag(m.is_unlocked())),
    gauge("patroni_failsafe_mode_is_active", "1 if failsafe mode is active.", |m| flag(m.is_failsafe())),
    gauge("patroni_failsafe_mode_enabled", "1 if failsafe mode is on in the configuration.", |m| {
        flag(m.status.failsafe_mode)
    }),
    gauge("patroni_failsafe_member", "1 if this member is in the failsafe key.", |m| {
        flag(m.failsafe().is_some_and(|key| key.members.keys().any(|name| name.as_str() == m.status.name)))
    }),
    gauge("patroni_postgres_timeline", "Timeline, 0 if unknown.", |m| {
        m.sql().and_then(|sql| sql.timeline).map_or_else(zero, |timeline| timeline.to_string())
    }),
    gauge("patroni_dcs_last_seen", "Epoch seconds of the last successful read of etcd.", |m| {
        m.status.dcs_last_seen.to_string()
    }),
    gauge("patroni_pending_restart", "1 if settings wait for a restart.", |m| {
        flag(m.sql().is_some_and(|sql| !sql.pending_restart.is_empty()))
    }),
    gauge("patroni_is_paused", "1 in maintenance mode.", |m| flag(m.status.pause)),
    gauge("patroni_postgres_state", "State of PostgreSQL, see the documentation of the REST API.", |m| {
        m.state().1.to_string()
    }),
    gauge("patroni_failover_priority", "Priority in a leader race, 0 if this member takes no part.", |m| {
        m.status.failover_priority.to_string()
    }),
    gauge("regent_takes_writes", "1 if /primary answers 200.", |m| flag(m.is_primary())),
    gauge("regent_holds_leader_key", "1 until the lease deadline of the leader key.", |m| flag(m.holds_lock())),
    gauge("regent_demoting", "1 while a demotion or stop is under way.", |m| flag(m.status.demoting)),
    gauge("regent_snapshot_age_seconds", "Age of the snapshot that every answer is made of.", |m| {
        format!("{:.3}", m.age().as_secs_f64())
    }),
    gauge("regent_lease_remaining_seconds", "Time to the lease deadline of the leader key, 0 if not held.", |m| {
        format!("{:.3}", m.lease_left().as_secs_f64())
    }),
    gauge("regent_guardian_alive", "1 if the guardian answers.", |m| {
        flag(m.status.guardian.as_ref().is_some_and(|guardian| guardian.met))
    }),
    gauge("regent_guardian_armed", "1 if the guardian holds a deadline.", |m| flag(m.guardian_left().is_some())),
    gauge("regent_guardian_deadline_seconds", "Time until the guardian kills PostgreSQL, 0 if it is not armed.", |m| {
        format!("{:.3}", m.guardian_left().unwrap_or_default().as_secs_f64())
    }),
    gauge(
        "regent_guardian_last_kill_age_seconds",
        "Time since the guardian stopped or killed PostgreSQL, 0 if it did not.",
        |m| {
            let last = m.status.guardian.as_ref().and_then(|guardian| guardian.last);
            format!("{:.3}", last.map_or(Duration::ZERO, |last| m.now.since(last.at)).as_secs_f64())
        },
    ),
    gauge("regent_watchdog_active", "1 while the kernel's watchdog counts.", |m| {
        flag(m.status.watchdog.active.is_some())
    }),
];

/// The whole page.
pub(super) fn metrics(moment: &Moment<'_>) -> String {
    let labels = format!(r#"{{scope="{}",name="{}"}}"#, escaped(&moment.status.scope), escaped(&moment.status.name));
    METRICS.iter().fold(String::with_capacity(8192), |mut page, Metric { name, kind, help, value }| {
        // Writing to a String cannot fail.
        let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{labels} {}", value(moment));
        page
    })
}

fn zero() -> String {
    "0".to_owned()
}

fn flag(holds: bool) -> String {
    u8::from(holds).to_string()
}

/// `4.1.5` → `040105`.
fn version_digits(version: &str) -> String {
    version.split('.').map(|part| format!("{part:0>2}")).collect()
}

/// A label's value, escaped (Prometheus documentation, "Exposition formats").
fn escaped(text: &str) -> String {
    text.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n")
}
