//! The configuration that decisions read: parsed, clamped and effective. If you hold one, it is valid.
//!
//! Files, environment and the `config` key are read and merged by the agent (contract `config.md`); what arrives here
//! has one meaning and one unit. A field that no rule reads does not belong here.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::MemberName;

/// What the rules know of the configuration of this member and its cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// This member's name.
    pub name: MemberName,
    /// TTL asked for the lease (config.md 4.1 `ttl`).
    pub ttl: Duration,
    /// The longest time between two looks at the world (config.md 4.1 `loop_wait`).
    pub loop_wait: Duration,
    /// Deadline of one logical operation on etcd (config.md 4.1 `retry_timeout`).
    pub retry_timeout: Duration,
    /// Time a forced stop of PostgreSQL may take: the loop demotes this long before the lease ends (DESIGN section 4).
    pub stop_budget: Duration,
    /// A standby farther behind than this, in bytes, is never promoted by a race (R13).
    pub maximum_lag_on_failover: u64,
    /// A standby on an older timeline than the cluster's is never promoted by a race (R14).
    pub check_timeline: bool,
    /// Time a crashed primary may take to come back before another member is preferred (C1, C7); zero prefers failover.
    pub primary_start_timeout: Duration,
    /// In a synchronous mode a leader that takes longer to stop is killed (D2); zero: never.
    pub primary_stop_timeout: Duration,
    /// Lines of the `history` key that are kept, the newest ones (`max_timelines_history`); zero: all.
    pub max_timelines_history: usize,
    /// Without etcd a primary goes on while all members agree (section 9).
    pub failsafe_mode: bool,
    /// The cluster is in maintenance mode: nothing starts, stops or is promoted by the agent's own will (section 13).
    pub pause: bool,
    /// This file has a `bootstrap` section, so that this member may create the cluster (B1).
    pub may_bootstrap: bool,
    /// Members stream through replication slots (`postgresql.use_slots`).
    pub use_slots: bool,
    /// How long the slot of a member that is gone is kept (`member_slots_ttl`); zero: not at all.
    pub member_slots_ttl: Duration,
    /// Slots that are kept through failovers (`slots`), by name.
    pub permanent_slots: BTreeMap<String, PermanentSlot>,
    /// Slots that are not ours to remove (`ignore_slots`).
    pub ignore_slots: Vec<IgnoreSlot>,
    /// Who must have a commit before it is acknowledged (section 14, 15).
    pub synchronous_mode: SyncMode,
    /// No commit is acknowledged by this member alone, ever.
    pub synchronous_mode_strict: bool,
    /// How many standbys must have it.
    pub synchronous_node_count: usize,
    /// A standby farther behind than this, in bytes, is not waited for.
    pub maximum_lag_on_syncnode: Option<u64>,
    /// A log that has diverged may be rewound (`postgresql.use_pg_rewind`).
    pub use_pg_rewind: bool,
    /// Where pg_rewind failed, the local data may be replaced by a clone (`remove_data_directory_on_rewind_failure`).
    pub remove_on_rewind_failure: bool,
    /// Where the log has diverged and pg_rewind cannot help, likewise (`remove_data_directory_on_diverged_timelines`).
    pub remove_on_divergence: bool,
    /// A command of the user's must agree to every promotion (`postgresql.pre_promote`).
    #[serde(default)]
    pub pre_promote: bool,
    /// One of `postgresql.create_replica_methods` needs no other member (`no_leader`).
    #[serde(default)]
    pub restores_without_leader: bool,
    /// The cluster is a standby cluster: its leader follows this server, and nobody is promoted (section 19).
    #[serde(default)]
    pub standby_cluster: Option<Remote>,
    /// So long standbys wait for a primary whose lock is gone and that still streams (`primary_race_backoff`, section 23).
    #[serde(default)]
    pub primary_race_backoff: Duration,
    /// Tags of this member.
    pub tags: Tags,
}

/// The server that a standby cluster follows (`standby_cluster`, config.md 4).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remote {
    /// `host`, or several with commas between; `None`: all log comes by `restore_command`.
    pub host: Option<String>,
    /// `port`, for all of them.
    pub port: u16,
    /// `primary_slot_name`: its slot there.
    pub slot: Option<String>,
    /// `recovery_min_apply_delay` of the leader, as it is written.
    pub min_apply_delay: Option<String>,
}

impl Remote {
    /// `host:port`, as a standby of it shows its upstream; an IPv6 address in brackets.
    #[must_use]
    pub fn address(&self) -> Option<String> {
        let (host, port) = (self.host.as_ref()?, self.port);
        Some(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
    }

    /// The same in the form of a member's `conn_url`.
    #[must_use]
    pub fn conn_url(&self) -> Option<String> {
        self.address().map(|address| format!("postgres://{address}/"))
    }
}

/// `synchronous_mode`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncMode {
    /// Asynchronous, or as the user configured PostgreSQL.
    #[default]
    Off,
    /// Named standbys, each of which has every acknowledged commit.
    On,
    /// Any so many of the standbys.
    Quorum,
}

/// What a logical slot decodes, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Logical {
    /// `database`
    pub database: String,
    /// `plugin`
    pub plugin: String,
}

/// A slot of `slots`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PermanentSlot {
    /// `type: physical`
    Physical,
    /// `type: logical`
    Logical(Logical),
}

/// A slot's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlotKind {
    /// `type: physical`
    Physical,
    /// `type: logical`
    Logical,
}

/// A matcher of slots: what it says must all be so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IgnoreSlot {
    /// `name`
    pub name: Option<String>,
    /// `type`
    pub kind: Option<SlotKind>,
    /// `database`
    pub database: Option<String>,
    /// `plugin`
    pub plugin: Option<String>,
}

/// The tags that decisions read (config.md 3.9).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tags {
    /// Never promoted; true also for a `failover_priority` of 0 or less.
    pub nofailover: bool,
    /// Among equal candidates the higher one goes first (R18).
    pub failover_priority: i64,
    /// Preferred as the source of clones (B2).
    pub clonefrom: bool,
    /// Never streams; replays from the archive only.
    pub nostream: bool,
    /// Cascades from this member while it exists (section 7).
    pub replicatefrom: Option<MemberName>,
}

impl Default for Tags {
    fn default() -> Self {
        Tags { nofailover: false, failover_priority: 1, clonefrom: false, nostream: false, replicatefrom: None }
    }
}

impl Config {
    /// The contract's defaults (config.md 1.2 and 4) for a member called `name`.
    #[must_use]
    pub fn of(name: MemberName) -> Config {
        Config {
            name,
            ttl: Duration::from_secs(30),
            loop_wait: Duration::from_secs(10),
            retry_timeout: Duration::from_secs(10),
            stop_budget: Duration::from_secs(3),
            maximum_lag_on_failover: 1_048_576,
            check_timeline: false,
            primary_start_timeout: Duration::from_secs(300),
            primary_stop_timeout: Duration::ZERO,
            max_timelines_history: 0,
            failsafe_mode: false,
            pause: false,
            may_bootstrap: true,
            use_slots: true,
            member_slots_ttl: Duration::from_secs(1800),
            permanent_slots: BTreeMap::new(),
            ignore_slots: Vec::new(),
            synchronous_mode: SyncMode::Off,
            synchronous_mode_strict: false,
            synchronous_node_count: 1,
            maximum_lag_on_syncnode: None,
            use_pg_rewind: false,
            remove_on_rewind_failure: false,
            remove_on_divergence: false,
            pre_promote: false,
            restores_without_leader: false,
            standby_cluster: None,
            primary_race_backoff: Duration::ZERO,
            tags: Tags::default(),
        }
    }
}
