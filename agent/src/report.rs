//! What the agent says of itself: the one log line per decision, the published status, the member key.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use regent_core::contract::contract;
use regent_core::memory::{Memory, Role};
use regent_core::plan::{Decision, Move};
use regent_core::postgres::{ClusterState, DataDir, Job, Probe};
use regent_core::request::{Request, Restart};
use regent_core::snapshot::{Seat, Snapshot, Watchdog};
use regent_core::sync::lists;
use regent_core::units::Instant;
use serde_json::{Map, Value, json};

use crate::guardian;
use crate::layers::Effective;
use crate::status::{self, State, Status};
use crate::watchdog;

/// The contract level that this agent speaks (dcs.md 7.1, rest-api.md 1): at least 4.1.0, three integers.
pub const CONTRACT_VERSION: &str = "4.1.5";

/// One line per decision: `info` when the rule or the plan changed, `debug` when it repeats.
pub fn decision(seen: &Snapshot, decision: &Decision, repeats: bool) {
    let (rule, why) = (decision.rule, &decision.why);
    let (lease, postgres) = (format!("{:?}", decision.plan.lease), format!("{:?}", decision.plan.postgres));
    let seat = seen.seat();
    if let Move::Promote(_) = decision.plan.postgres {
        for slot in regent_core::slots::not_ready(seen) {
            let why = "the logical slot is not ready here: its consumer may have to start anew";
            tracing::warn!(slot, "{why}");
        }
    }
    if repeats {
        tracing::debug!(rule, ?seat, lease, postgres, "{why}");
    } else {
        tracing::info!(rule, ?seat, lease, postgres, "{why}");
    }
}

/// The rest of what a status needs, besides the snapshot and the decision.
pub struct Context<'a> {
    /// Configuration in force.
    pub effective: &'a Effective,
    /// Memory after the decision.
    pub memory: &'a Memory,
    /// The last published status.
    pub last: &'a Status,
    /// Until when the lock is ours, as known after the lease half of the plan.
    pub lock_until: Option<Instant>,
    /// The last read of etcd, if this turn's succeeded: members, config and history as stored.
    pub read: Option<&'a regent_dcs::Read>,
    /// Wall-clock time of this turn.
    pub wall: SystemTime,
    /// The guardian, if there is to be one.
    pub guardian: Option<guardian::View>,
    /// The watchdog.
    pub watchdog: watchdog::State,
    /// How far a copy is.
    pub copied: Option<(u64, Option<u64>)>,
}

/// The status to publish after `decision` on `seen`.
#[must_use]
pub fn status(seen: &Snapshot, decision: &Decision, context: &Context<'_>) -> Status {
    let Context { effective, memory, last, lock_until, read, wall, guardian, watchdog, copied } = context;
    let stopping = matches!(
        decision.plan.postgres,
        Move::Stop(_) | Move::Restart { .. } | Move::CopySlots { .. } | Move::SetAside
    ) || matches!(
        seen.job.as_ref().map(|running| &running.job),
        Some(Job::Stop(_) | Job::Restart { .. } | Job::CopySlots | Job::SetAside)
    );
    let fresh = read.is_some();
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let view = seen.view().or(last.last_view.as_ref());
    Status {
        at: seen.now,
        scope: effective.scope.clone(),
        name: effective.core.name.to_string(),
        state: state(seen, &decision.plan.postgres, memory),
        role: role(memory, effective.core.standby_cluster.is_some() && lock_until.is_some()),
        sql: seen.sql().cloned(),
        lock_until: *lock_until,
        failsafe_mode: effective.core.failsafe_mode,
        failsafe_until: seen.promised_until().filter(|_| seen.is_failsafe()),
        demoting: stopping,
        view: seen.view().cloned(),
        last_view: view.cloned(),
        members: read.map_or_else(|| last.members.clone(), |read| by_text(&read.members)),
        config: if fresh { read.and_then(|read| read.config.clone()) } else { last.config.clone() },
        history: if fresh { read.and_then(|read| read.history.clone()) } else { last.history.clone() },
        dcs_last_seen: if fresh { seconds(*wall) } else { last.dcs_last_seen },
        pause: effective.core.pause,
        tags: effective.tags.clone(),
        noloadbalance: effective.noloadbalance,
        failover_priority: if effective.core.tags.nofailover { 0 } else { effective.core.tags.failover_priority },
        system_id: seen.local_system_id().or_else(|| seen.view().and_then(|view| view.initialize.system_id())),
        maximum_lag_on_failover: effective.core.maximum_lag_on_failover,
        standby_cluster: effective.core.standby_cluster.is_some(),
        synchronous_mode: effective.core.synchronous_mode,
        contract: contract(&effective.core, view),
        config_in_force: if *last.config_in_force == effective.core {
            Arc::clone(&last.config_in_force)
        } else {
            Arc::new(effective.core.clone())
        },
        loop_wait: effective.core.loop_wait,
        ttl: view.map_or(effective.core.ttl, |view| view.takes_ttl_for(effective.core.ttl)),
        next_turn_due: seen.now + effective.core.loop_wait,
        guardian: guardian.clone(),
        watchdog: watchdog.clone(),
        watchdog_failed: matches!(seen.watchdog, Watchdog::Failed(_)),
        copied: *copied,
        slots_not_ready: regent_core::slots::not_ready(seen),
        action: action(seen, &decision.plan.postgres),
        scheduled_restart: match &seen.request {
            Some(Request::Restart(restart)) => scheduled(restart),
            Some(Request::Reinitialize { .. }) => last.scheduled_restart.clone(),
            None => None,
        },
        rule: decision.rule,
        why: decision.why.clone(),
    }
}

/// What a further request would disturb, in the words of rest-api.md 14.2.
fn action(seen: &Snapshot, next: &Move) -> Option<String> {
    let asked = match &seen.request {
        Some(Request::Reinitialize { .. }) => Some("reinitialize".to_owned()),
        Some(Request::Restart(_)) | None => None,
    };
    let job = seen.job.as_ref().map(|running| &running.job);
    asked.or_else(|| match (next, job) {
        (Move::Restart { .. }, _) | (_, Some(Job::Restart { .. })) => Some("restart".to_owned()),
        (Move::Clone { from, .. }, _) | (_, Some(Job::Clone { from })) => {
            Some(format!("bootstrap from leader '{from}'"))
        }
        (_, Some(Job::Rewind { .. })) => Some("running pg_rewind".to_owned()),
        (Move::CopySlots { .. }, _) | (_, Some(Job::CopySlots)) => Some("copying logical slots".to_owned()),
        (Move::Restore, _) | (_, Some(Job::Restore)) => Some("bootstrap without leader".to_owned()),
        (_, Some(Job::GiveUpData)) => Some("reinitialize".to_owned()),
        (_, Some(Job::PrePromote | Job::Promote)) => Some("promote".to_owned()),
        (_, Some(Job::Bootstrap)) => Some("bootstrap".to_owned()),
        (
            _,
            Some(
                Job::DiscardOldCopy
                | Job::Start { .. }
                | Job::Stop(_)
                | Job::Follow
                | Job::Checkpoint
                | Job::ChangeSlots
                | Job::ResumeReplay
                | Job::SetSyncNames
                | Job::RemoveUnfinished
                | Job::SetAside,
            )
            | None,
        ) => None,
    })
}

/// A restart that waits for its time, as status documents and member keys show it (rest-api.md section 4).
fn scheduled(restart: &Restart) -> Option<Value> {
    let mut shown = Map::new();
    shown.insert("schedule".to_owned(), json!(restart.schedule.as_ref()?.text));
    let mut put = |name: &str, value: Option<Value>| shown.extend(value.map(|value| (name.to_owned(), value)));
    put("role", restart.role.as_ref().map(|role| json!(role)));
    put("restart_pending", restart.pending.then_some(json!(true)));
    put("postgres_version", restart.older_than.as_ref().map(|(text, _)| json!(text)));
    put("timeout", restart.timeout.map(|timeout| json!(timeout.as_secs())));
    Some(Value::Object(shown))
}

/// Nothing is known yet: what is published before the first turn.
#[must_use]
pub fn first_status(effective: &Effective, now: Instant) -> Status {
    Status {
        at: now,
        scope: effective.scope.clone(),
        name: effective.core.name.to_string(),
        state: State::Stopped,
        role: status::Role::Uninitialized,
        sql: None,
        lock_until: None,
        failsafe_mode: effective.core.failsafe_mode,
        failsafe_until: None,
        demoting: false,
        view: None,
        last_view: None,
        members: std::collections::BTreeMap::new(),
        config: None,
        history: None,
        dcs_last_seen: 0,
        pause: effective.core.pause,
        tags: effective.tags.clone(),
        noloadbalance: effective.noloadbalance,
        failover_priority: if effective.core.tags.nofailover { 0 } else { effective.core.tags.failover_priority },
        system_id: None,
        maximum_lag_on_failover: effective.core.maximum_lag_on_failover,
        standby_cluster: effective.core.standby_cluster.is_some(),
        synchronous_mode: effective.core.synchronous_mode,
        contract: contract(&effective.core, None),
        config_in_force: Arc::new(effective.core.clone()),
        loop_wait: effective.core.loop_wait,
        ttl: effective.core.ttl,
        next_turn_due: now + effective.core.loop_wait + Duration::from_secs(5),
        guardian: None,
        watchdog: watchdog::State::default(),
        watchdog_failed: false,
        copied: None,
        slots_not_ready: Vec::new(),
        action: None,
        scheduled_restart: None,
        rule: "start",
        why: "just started".to_owned(),
    }
}

fn state(seen: &Snapshot, next: &Move, memory: &Memory) -> State {
    let job = seen.job.as_ref().map(|running| &running.job);
    // From the word that accepts it to the start of the new copy: who waits for the end asks for this state.
    let copied = matches!(seen.request, Some(Request::Reinitialize { .. }));
    if (copied || memory.copying) && seen.seat() != Seat::Mine {
        return State::CreatingReplica;
    }
    match (next, job) {
        (Move::Restart { .. } | Move::CopySlots { .. }, _)
        | (Move::Stay, Some(Job::Restart { .. } | Job::CopySlots)) => return State::Restarting,
        (Move::Bootstrap, _) | (Move::Stay, Some(Job::Bootstrap)) => return State::InitializingNewCluster,
        (Move::Clone { .. } | Move::Restore, _) | (Move::Stay, Some(Job::Clone { .. } | Job::Restore)) => {
            return State::CreatingReplica;
        }
        (Move::Stop(_) | Move::SetAside, _) | (Move::Stay, Some(Job::Stop(_) | Job::SetAside)) => {
            return State::Stopping;
        }
        (Move::StartPrimary | Move::StartStandby(_), _) | (Move::Stay, Some(Job::Start { .. })) => {
            return State::Starting;
        }
        (
            Move::Stay
            | Move::Cancel
            | Move::PrePromote
            | Move::Rewind { .. }
            | Move::GiveUpData { .. }
            | Move::DiscardOldCopy
            | Move::Promote(_)
            | Move::Follow(_)
            | Move::Checkpoint
            | Move::ChangeSlots(_)
            | Move::ResumeReplay
            | Move::SetSyncNames(_)
            | Move::RemoveUnfinished,
            _,
        ) => {}
    }
    if seen.postgres.is_up() {
        return match seen.postgres.probe {
            Probe::Rejecting => State::Starting,
            Probe::Accepting | Probe::Silent | Probe::NotAsked => State::Running,
        };
    }
    // What ended with a shutdown checkpoint did not crash, whoever was to restart it.
    if seen.postgres.control().is_some_and(|control| control.state == ClusterState::ShutDown) {
        return State::Stopped;
    }
    let failed = memory.last_job.as_ref().filter(|last| last.error.is_some()).map(|last| &last.job);
    match (failed, memory.role) {
        (Some(Job::Start { .. } | Job::Restart { .. } | Job::CopySlots), _) => State::StartFailed,
        (Some(Job::Bootstrap), _) => State::InitdbFailed,
        (_, Role::Primary | Role::Promoted) if matches!(seen.postgres.data_dir, DataDir::Present(_)) => State::Crashed,
        (_, Role::Uninitialized | Role::Primary | Role::Promoted | Role::Replica | Role::Demoted) => State::Stopped,
    }
}

/// Is a copy so much farther that the log says so? By a tenth, or, where the whole is not known, by a quarter of a gigabyte.
pub(crate) fn is_news(before: Option<(u64, Option<u64>)>, now: (u64, Option<u64>)) -> bool {
    let step = |(bytes, total): (u64, Option<u64>)| match total.filter(|total| *total > 0) {
        Some(total) => u128::from(bytes) * 10 / u128::from(total),
        None => u128::from(bytes) >> 28,
    };
    now.0 > 0 && before.is_none_or(|before| step(before) != step(now) || before.0 == 0)
}

/// How far a copy is, for people: `1.2 GB of 3.4 GB (35 %)`.
#[must_use]
pub fn progress(bytes: u64, total: Option<u64>) -> String {
    let shown = |bytes: u64| {
        let units = [(1 << 40, "TB"), (1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB")];
        let fits = units.into_iter().find(|(unit, _)| bytes >= *unit);
        fits.map_or_else(
            || format!("{bytes} B"),
            |(unit, name)| {
                let tenths = u128::from(bytes) * 10 / u128::from(unit);
                format!("{}.{} {name}", tenths / 10, tenths % 10)
            },
        )
    };
    match total.filter(|total| *total > 0) {
        // A source that grew meanwhile makes it no more than all.
        Some(total) => {
            let percent = (u128::from(bytes) * 100 / u128::from(total)).min(100);
            format!("{} of {} ({percent} %)", shown(bytes), shown(total))
        }
        None => shown(bytes),
    }
}

fn role(memory: &Memory, leads_standbys: bool) -> status::Role {
    match memory.role {
        Role::Replica if leads_standbys => status::Role::StandbyLeader,
        Role::Uninitialized => status::Role::Uninitialized,
        Role::Primary => status::Role::Primary,
        Role::Promoted => status::Role::Promoted,
        Role::Replica => status::Role::Replica,
        Role::Demoted => status::Role::Demoted,
    }
}

/// The member key (dcs.md 3.3), compact.
#[must_use]
pub fn member(seen: &Snapshot, status: &Status, effective: &Effective, checkpointed: bool) -> String {
    let mut key = Map::new();
    let mut put = |name: &str, value: Value| drop(key.insert(name.to_owned(), value));
    put("conn_url", json!(effective.conn_url));
    put("api_url", json!(effective.api_url));
    put("state", json!(status.state.word().0));
    put("role", json!(status.role.word()));
    put("version", json!(CONTRACT_VERSION));
    if let Some(url) = &effective.proxy_url {
        put("proxy_url", json!(url));
    }
    let writes = matches!(status.role, status::Role::Primary | status::Role::Promoted);
    if writes && !checkpointed && seen.seat() == Seat::Mine {
        put("checkpoint_after_promote", json!(false));
    }
    let mut tags = effective.tags.clone();
    let listed = seen.view().and_then(|view| view.sync.as_ref());
    if seen.is_to_go_down() && listed.is_some_and(|sync| lists(&sync.standbys, &seen.config.name)) {
        // "Stop waiting for me": the primary drops it from `sync` (dcs.md 3.3).
        tags.insert("nosync".to_owned(), json!(true));
        tags.insert("sync_priority".to_owned(), json!(0));
    }
    if !tags.is_empty() {
        put("tags", Value::Object(tags));
    }
    let sql = status.sql.as_ref();
    if let Some(pending) = sql.map(|sql| &sql.pending_restart).filter(|pending| !pending.is_empty()) {
        let reasons =
            pending.iter().map(|(name, old, new)| (name.clone(), json!({"old_value": old, "new_value": new})));
        put("pending_restart", json!(true));
        put("pending_restart_reason", Value::Object(reasons.collect()));
    }
    if let Some(sql) = sql {
        put("xlog_location", json!(sql.position().0));
        if sql.in_recovery {
            for (name, lsn) in [("replay_lsn", sql.replay_lsn), ("receive_lsn", sql.receive_lsn)] {
                if let Some(lsn) = lsn.filter(|lsn| lsn.0 > 0) {
                    put(name, json!(lsn.0));
                }
            }
            if sql.streaming {
                put("replication_state", json!("streaming"));
            } else if sql.restores_from_archive {
                put("replication_state", json!("in archive recovery"));
            }
        }
        if let Some(timeline) = sql.timeline {
            put("timeline", json!(timeline.0));
        }
    }
    if status.pause {
        put("pause", json!(true));
    }
    if let Some((bytes, total)) = status.copied {
        put("clone", json!({"bytes": bytes, "total": total}));
    }
    if let Some(scheduled) = &status.scheduled_restart {
        put("scheduled_restart", scheduled.clone());
    }
    put("regent", json!(env!("CARGO_PKG_VERSION")));
    Value::Object(key).to_string()
}

fn by_text(
    members: &std::collections::BTreeMap<regent_core::units::MemberName, Value>,
) -> std::collections::BTreeMap<String, Value> {
    members.iter().map(|(name, value)| (name.to_string(), value.clone())).collect()
}
