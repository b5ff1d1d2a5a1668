//! What the agent knows of itself and its cluster at one moment: published by the loop, read by REST, metrics and peers.
//!
//! Nobody who reads it needs anything else: no PostgreSQL, no etcd, no file. Whatever could turn false by mere passing of
//! time carries the moment at which it ends, so that an answer stays true although the loop is stuck (promise P5).

use std::sync::Arc;
use std::time::Duration;

use regent_core::cluster::ClusterView;
use regent_core::config::{Config, SyncMode};
use regent_core::contract::Contract;
use regent_core::peers::PeerAnswer;
use regent_core::postgres::SqlFacts;
use regent_core::units::{Instant, SystemId};
use serde_json::{Map, Value};

use crate::{guardian, watchdog};

/// One published status.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// When it was made, on the boot-time clock.
    pub at: Instant,
    /// `scope` and `name` of the configuration.
    pub scope: String,
    /// See `scope`.
    pub name: String,
    /// State of PostgreSQL as the agent knows it (rest-api.md 4.1).
    pub state: State,
    /// Role that the agent has in mind (rest-api.md 4.2); the role shown follows `sql` when that is there.
    pub role: Role,
    /// The server's answers, when it answered in this turn of the loop.
    pub sql: Option<SqlFacts>,
    /// The leader key is ours until this moment at the latest, by our own clock; `None`: we do not hold it.
    /// It ends by itself: a reader compares it with the clock (DESIGN P5).
    pub lock_until: Option<Instant>,
    /// `failsafe_mode` is on.
    pub failsafe_mode: bool,
    /// This primary goes on without etcd on the word of all members, until this moment.
    pub failsafe_until: Option<Instant>,
    /// A demotion or stop is under way: `/primary` is 503 from here on (rest-api.md W2).
    pub demoting: bool,
    /// The last view of the cluster, if the last attempt to read it succeeded.
    pub view: Option<ClusterView>,
    /// The last view that could be read, however old: reads of `/cluster`, `/history`, `/config` are served from it (W6).
    pub last_view: Option<ClusterView>,
    /// Every readable member key as stored, by name, of `last_view`.
    pub members: std::collections::BTreeMap<String, Value>,
    /// The `config` key as stored, of `last_view`.
    pub config: Option<Value>,
    /// The `history` key as stored, of `last_view`.
    pub history: Option<Value>,
    /// Epoch seconds of the last successful read of etcd; 0 if never.
    pub dcs_last_seen: u64,
    /// Maintenance mode.
    pub pause: bool,
    /// Tags in force, filtered as rest-api.md 4.3 says, values and order as configured.
    pub tags: Map<String, Value>,
    /// The tag `noloadbalance`.
    pub noloadbalance: bool,
    /// The tag-derived priority: 0 if `nofailover`, else the tag, default 1.
    pub failover_priority: i64,
    /// Identity of the local cluster, when known.
    pub system_id: Option<SystemId>,
    /// Dynamic setting `maximum_lag_on_failover`, bytes.
    pub maximum_lag_on_failover: u64,
    /// This is a standby cluster.
    pub standby_cluster: bool,
    /// `synchronous_mode` in force.
    pub synchronous_mode: SyncMode,
    /// What is lost if the primary dies now.
    pub contract: Contract,
    /// What decisions go by.
    pub config_in_force: Arc<Config>,
    /// The longest pause between two turns of the loop.
    pub loop_wait: Duration,
    /// TTL in force, or what Patroni members take it for.
    pub ttl: Duration,
    /// The next turn of the loop is due by this moment.
    pub next_turn_due: Instant,
    /// The guardian, as this agent knows it; `None`: the configuration wants none.
    pub guardian: Option<guardian::View>,
    /// The kernel's watchdog, as of the last turn.
    pub watchdog: watchdog::State,
    /// It is required and cannot be used (rest-api.md 4, `watchdog_failed`).
    pub watchdog_failed: bool,
    /// Bytes that a copy has so far, and those of the whole when known.
    pub copied: Option<(u64, Option<u64>)>,
    /// Logical slots that a consumer may not be able to go on with if this member is promoted.
    pub slots_not_ready: Vec<String>,
    /// An action that another request would disturb, in the contract's words (rest-api.md 14.2).
    pub action: Option<String>,
    /// The restart that waits for its time, as documents show it.
    pub scheduled_restart: Option<Value>,
    /// The last decision: rule and reason.
    pub rule: &'static str,
    /// See `rule`.
    pub why: String,
}

/// PostgreSQL's state in the contract's words (rest-api.md 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the contract's word for itself")]
pub enum State {
    InitializingNewCluster,
    InitdbFailed,
    CreatingReplica,
    Running,
    Starting,
    StartFailed,
    Restarting,
    Stopping,
    Stopped,
    StopFailed,
    Crashed,
}

/// Role in the contract's words (rest-api.md 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the contract's word for itself")]
pub enum Role {
    Primary,
    Replica,
    StandbyLeader,
    Promoted,
    Demoted,
    Uninitialized,
}

impl State {
    /// The word, and its number in the metric `patroni_postgres_state`.
    #[must_use]
    pub fn word(self) -> (&'static str, i32) {
        match self {
            State::InitializingNewCluster => ("initializing new cluster", 0),
            State::InitdbFailed => ("initdb failed", 1),
            State::CreatingReplica => ("creating replica", 4),
            State::Running => ("running", 5),
            State::Starting => ("starting", 6),
            State::StartFailed => ("start failed", 8),
            State::Restarting => ("restarting", 9),
            State::Stopping => ("stopping", 11),
            State::Stopped => ("stopped", 12),
            State::StopFailed => ("stop failed", 13),
            State::Crashed => ("crashed", 14),
        }
    }
}

impl Role {
    /// The word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Role::Primary => "primary",
            Role::Replica => "replica",
            Role::StandbyLeader => "standby_leader",
            Role::Promoted => "promoted",
            Role::Demoted => "demoted",
            Role::Uninitialized => "uninitialized",
        }
    }
}

impl Status {
    /// What this member answers to a candidate that asks it (the race's view of this document); `None` when PostgreSQL does
    /// not answer, which counts as unreachable on purpose (rest-api.md 4.4).
    #[must_use]
    pub fn as_peer(&self) -> Option<PeerAnswer> {
        let sql = self.sql.as_ref()?;
        Some(PeerAnswer {
            is_primary: !sql.in_recovery,
            position: sql.position(),
            timeline: sql.timeline,
            nofailover: self.failover_priority <= 0,
            failover_priority: self.failover_priority,
            watchdog_failed: self.watchdog_failed,
        })
    }
}
