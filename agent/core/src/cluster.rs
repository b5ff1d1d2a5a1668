//! What etcd says of the cluster, parsed: one consistent read of every key under the scope (contract `dcs.md`).
//!
//! Garbage in a key is a value of its own, never an error: one bad key must not blind the agent to the others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::{LeaseId, Lsn, MemberName, Revision, SystemId, Timeline, WalPosition};

/// One linearizable read of the whole prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// The store's revision at which everything below was true at once.
    pub revision: Revision,
    /// The cluster's identity.
    pub initialize: Initialize,
    /// The leader key, if there is one.
    pub leader: Option<LeaderKey>,
    /// Every readable member key.
    pub members: BTreeMap<MemberName, Member>,
    /// State of the `config` key; its content reaches the rules through [`crate::config::Config`].
    pub config: ConfigKey,
    /// Timelines that ended, oldest first; `None` when the key is missing or garbage.
    pub history: Option<Vec<HistoryLine>>,
    /// What the last leader said of its log.
    pub status: Status,
    /// Revision of the `status` key; `None`: there is none.
    #[serde(default)]
    pub status_seen: Option<Revision>,
    /// Who has every acknowledged commit; `None`: synchronous replication is not active.
    pub sync: Option<SyncState>,
    /// Revision of the `sync` key, active or not; `None`: there is none.
    pub sync_seen: Option<Revision>,
    /// A switchover or failover that somebody asked for.
    pub failover: Option<Failover>,
    /// Regent's own record of who was allowed to write where.
    pub promise: Option<PromiseKey>,
    /// Revision of a promise that cannot be read: the next one replaces it, and must name it.
    pub unreadable_promise: Option<Revision>,
    /// The failsafe topology, if there is such a key.
    pub failsafe: Option<FailsafeKey>,
    /// Keys that could not be understood, by name, with the reason: shown, never acted upon.
    pub garbage: BTreeMap<String, String>,
}

/// The lowest `ttl` that Patroni takes.
pub const PEER_TTL_FLOOR: Duration = Duration::from_secs(20);

impl ClusterView {
    /// The member that holds the leader key, if its own key is there too.
    #[must_use]
    pub fn leader_member(&self) -> Option<(&MemberName, &Member)> {
        self.members.get_key_value(&self.leader.as_ref()?.name)
    }

    /// `status` was written since the leader key was taken: its positions are of the log of who leads now.
    #[must_use]
    pub fn status_is_the_leaders(&self) -> bool {
        self.leader.as_ref().zip(self.status_seen).is_some_and(|(leader, seen)| seen > leader.modified)
    }

    /// Whom a member with this tag `replicatefrom` streams from; `None`: from the leader. The name of an absent member counts for
    /// nothing, nor does a chain that comes back to a name: those in it would stream from each other (Z7).
    #[must_use]
    pub fn cascades_from<'a>(&'a self, name: &'a MemberName, tag: Option<&'a MemberName>) -> Option<&'a MemberName> {
        let there = |name: &&MemberName| self.members.contains_key(*name);
        let leader = self.leader.as_ref().map(|key| &key.name);
        let first = tag.filter(there)?;
        let (mut seen, mut next) = (BTreeSet::from([name]), Some(first));
        while let Some(at) = next.filter(|at| Some(*at) != leader) {
            if !seen.insert(at) {
                return None;
            }
            next = self.members.get(at).and_then(|member| member.tags.replicatefrom.as_ref()).filter(there);
        }
        Some(first)
    }

    /// What the cluster's members take a configured `ttl` for: a Patroni member raises a lower one to its floor, for itself, and
    /// counts on as much from the others (dcs.md section 2).
    #[must_use]
    pub fn takes_ttl_for(&self, ttl: Duration) -> Duration {
        if self.members.values().all(|member| member.regent) { ttl } else { ttl.max(PEER_TTL_FLOOR) }
    }

    /// The cluster's timeline: the last history line's parent plus one, 1 for an empty history, unknown if missing.
    #[must_use]
    pub fn timeline(&self) -> Option<Timeline> {
        let lines = self.history.as_ref()?;
        Some(lines.last().map_or(Timeline(1), |line| line.parent.next()))
    }
}

/// The `initialize` key (dcs.md 3.1).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Initialize {
    /// No key: nobody has made this cluster yet.
    #[default]
    Absent,
    /// Empty: somebody is making it.
    InProgress {
        /// Revision of the key.
        modified: Revision,
        /// The maker's lease (DL11); `None` when a Patroni member makes it.
        lease: Option<LeaseId>,
    },
    /// Made: this is its identity.
    Known(SystemId),
    /// Neither; "not valid", which the lock holder repairs.
    Garbage {
        /// What stands there, shortened.
        text: String,
        /// Revision of the key.
        modified: Revision,
    },
}

impl Initialize {
    /// The identity, if the key holds a valid one.
    #[must_use]
    pub fn system_id(&self) -> Option<SystemId> {
        match self {
            Initialize::Known(id) => Some(*id),
            Initialize::Absent | Initialize::InProgress { .. } | Initialize::Garbage { .. } => None,
        }
    }
}

/// The `leader` key (dcs.md 3.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderKey {
    /// Who holds it.
    pub name: MemberName,
    /// The lease it hangs on; `None` when somebody wrote it without one.
    pub lease: Option<LeaseId>,
    /// Revision of its last change: what a compare names.
    pub modified: Revision,
}

/// A member key (dcs.md 3.3), the fields that decisions and status read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// `postgres://host:port/dbname`, without credentials.
    pub conn_url: Option<String>,
    /// `http(s)://host:port/patroni`.
    pub api_url: Option<String>,
    /// State as published (`running`, `stopped`, ...).
    pub state: String,
    /// Role as published (`primary`, `replica`, ...).
    pub role: String,
    /// Version of the contract it speaks.
    pub version: String,
    /// It is Regent's, not Patroni's: it publishes a version of its own as well (dcs.md 7.1).
    pub regent: bool,
    /// `streaming` or `in archive recovery`.
    pub replication_state: Option<String>,
    /// Timeline, when known.
    pub timeline: Option<Timeline>,
    /// Flush position of a primary, newest position of a standby.
    pub xlog_location: Option<Lsn>,
    /// Received position of a standby.
    pub receive_lsn: Option<Lsn>,
    /// Replayed position of a standby.
    pub replay_lsn: Option<Lsn>,
    /// Its primary has not finished the checkpoint after its promotion: no rewind from it yet.
    pub checkpoint_pending: bool,
    /// Tags that decisions read.
    pub tags: MemberTags,
}

impl Member {
    /// It says that it is the primary, or what leads a standby cluster; not that it is about to become one.
    #[must_use]
    pub fn leads(&self) -> bool {
        matches!(self.role.as_str(), "primary" | "master" | "standby_leader")
    }
}

/// Tags of another member, as it published them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberTags {
    /// Never promoted (true also for a `failover_priority` of 0 or less).
    pub nofailover: bool,
    /// Among equal candidates the higher one goes first; absent means 1, or 0 if `nofailover`.
    pub failover_priority: Option<i64>,
    /// Never waited for (true also for a `sync_priority` of 0 or less).
    pub nosync: bool,
    /// The higher one is waited for first; absent means 1.
    pub sync_priority: Option<i64>,
    /// Preferred as the source of clones.
    pub clonefrom: bool,
    /// Never streams.
    pub nostream: bool,
    /// Cascades from this member.
    pub replicatefrom: Option<MemberName>,
}

/// State of the `config` key (dcs.md 3.4).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConfigKey {
    /// No key: the holder writes it from its cached copy (CF2).
    #[default]
    Missing,
    /// An empty one: likewise.
    Empty(Revision),
    /// Not a JSON object: the last valid one stays in force (CF1).
    Garbage(Revision),
    /// A JSON object.
    Valid(Revision),
}

impl ConfigKey {
    /// Revision of the key, whatever it holds; `None`: there is none.
    #[must_use]
    pub fn modified(&self) -> Option<Revision> {
        match self {
            ConfigKey::Missing => None,
            ConfigKey::Empty(modified) | ConfigKey::Garbage(modified) | ConfigKey::Valid(modified) => Some(*modified),
        }
    }
}

/// The `failsafe` key (dcs.md 3.9): who must agree before a primary goes on without etcd, and who may run for leader.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailsafeKey {
    /// `api_url` by member; empty when the key cannot be read.
    pub members: BTreeMap<MemberName, String>,
    /// Revision of its last change.
    pub modified: Revision,
}

/// One line of the `history` key (dcs.md 3.7).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryLine {
    /// The timeline that ended.
    pub parent: Timeline,
    /// Where it ended.
    pub switched_at: Lsn,
    /// PostgreSQL's reason.
    pub reason: String,
    /// When, as the peer writes it (ISO 8601).
    pub at: Option<String>,
    /// Who was promoted.
    pub promoted: Option<MemberName>,
}

/// The `status` key (dcs.md 3.8).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The leader's last flush position.
    pub optime: Option<Lsn>,
    /// Slot positions by slot name.
    pub slots: BTreeMap<String, Lsn>,
    /// Slots of members that must be kept although absent.
    pub retain_slots: Vec<String>,
}

/// The `sync` key, when it names a leader (dcs.md 3.6). Names compare without case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncState {
    /// The primary that wrote it.
    pub leader: MemberName,
    /// Standbys that may be promoted.
    pub standbys: BTreeSet<MemberName>,
    /// Votes that one of them needs (mode `quorum`).
    pub quorum: usize,
}

/// The `failover` key, when it asks for something (dcs.md 3.5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failover {
    /// A switchover, from this leader; `None`: a failover, which asks for a candidate.
    pub leader: Option<MemberName>,
    /// Who is to lead; `None`: whoever is fit.
    pub candidate: Option<MemberName>,
    /// When; `None`: now.
    pub schedule: Option<Schedule>,
    /// Revision of the key: what clears it compares with.
    pub modified: Revision,
}

/// When a request is due.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// On the wall clock, since 1970 in UTC; `None`: the text is no time with a zone.
    pub at: Option<Duration>,
    /// As it stands in the key, or in the form of rest-api.md 15.5 when it could be read.
    pub text: String,
}

/// What the holder of the leader key promised when it took it: who may write which timeline, from where.
///
/// Written in the same transaction as the leader key, and compared by revision (S7, S8): a timeline is given to one
/// member once, so that its number never names two histories (S2). It lives below the scope in `regent/promise`, where
/// the peer ignores it (dcs.md 1, "unknown keys").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    /// Counts every change of leadership; never falls.
    pub epoch: u64,
    /// The timeline that the holder may write, and where its log ended when it was promised; never falls.
    pub position: WalPosition,
    /// The timeline that ends there: `position.lsn` lies on it. The same as `position.timeline` for a primary that goes on.
    pub parent: Timeline,
    /// Who holds it.
    pub holder: MemberName,
}

/// A [`Promise`] as read, with the revision that the next one must name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromiseKey {
    /// The content.
    pub promise: Promise,
    /// Revision of its last change.
    pub modified: Revision,
}
