//! Regent's view of etcd v3: the key layout, the client, and an in-memory twin.
//!
//! The trait [`Dcs`] is narrow on purpose: one read, a lease, and a closed list of writes ([`Write`]), each of which
//! names what it was decided on. Nothing here judges; nothing here retries what may have been applied.

#![expect(async_fn_in_trait, reason = "one generic agent, one thread per agent: no Send bounds wanted")]

use std::collections::BTreeMap;
use std::time::Duration;

use regent_core::cluster::{ClusterView, FailsafeKey, HistoryLine, Promise, Status, SyncState};
use regent_core::units::{LeaseId, MemberName, Revision, SystemId};

pub mod etcd;
pub mod keys;
pub mod memory;
pub mod trust;
mod txn;

/// The distributed configuration store, as one agent sees it.
///
/// Every method returns within its `within` budget, whatever the store does: an endpoint that is stopped, a dropped
/// packet and a lost quorum are all [`DcsError::Unreachable`]. A handle is cheap to clone; clones share connections.
pub trait Dcs: Clone + 'static {
    /// Reads every key under the scope at one revision, linearizably (never from a stale replica or a watch: S7).
    async fn read(&self, within: Duration) -> Result<Read, DcsError>;

    /// Grants a new lease of `ttl`; the answer's TTL counts, which may be longer (dcs.md DL3).
    async fn grant(&self, ttl: Duration, within: Duration) -> Result<Lease, DcsError>;

    /// Renews a lease once. [`DcsError::LeaseGone`] when the store does not know it any more (DL7).
    ///
    /// The caller notes the time *before* the call: the lease lives at least `ttl` from then on.
    async fn keep_alive(&self, lease: LeaseId, within: Duration) -> Result<Duration, DcsError>;

    /// Gives a lease back, and with it every key that hangs on it. One that is gone already is no error.
    async fn revoke(&self, lease: LeaseId, within: Duration) -> Result<(), DcsError>;

    /// Carries out one write of the contract's list. See [`Written`] for the three possible outcomes of a compare.
    async fn write(&self, write: Write, within: Duration) -> Result<Written, DcsError>;

    /// Waits until a key that [`keys::wakes`] an agent changed after `since`, or until it cannot know (a watch that broke or
    /// fell silent counts as a change). Returns at once if that has already happened. Only a wake-up: read again. May be
    /// dropped and called again at any time.
    async fn changed(&self, since: Revision);
}

/// One consistent read.
#[derive(Clone, Debug, PartialEq)]
pub struct Read {
    /// The parsed keys.
    pub view: ClusterView,
    /// The `config` key as it stands, when it is a JSON object; key order kept.
    pub config: Option<serde_json::Value>,
    /// The `history` key as it stands, when it is a JSON array.
    pub history: Option<serde_json::Value>,
    /// Every readable member key as it stands, by name; key order kept.
    pub members: BTreeMap<MemberName, serde_json::Value>,
}

/// A granted lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its id.
    pub id: LeaseId,
    /// The TTL that was granted.
    pub ttl: Duration,
}

/// What may be written (dcs.md section 4; the numbers are its rows).
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// 4.1: CREATE(`initialize`) = 0 → `initialize` = "" on the own lease (DL11: a dead bootstrapper frees the key).
    StartBootstrap {
        /// The bootstrapper's lease.
        lease: LeaseId,
    },
    /// 4.1b: MOD(`initialize`) = `seen` (CREATE = 0 when `None`) → the identifier, without a lease.
    Identify {
        /// The identifier.
        id: SystemId,
        /// Revision of the key that the decision saw; `None`: it saw no key.
        seen: Option<Revision>,
    },
    /// 4.1c: VALUE(`initialize`) = "" and LEASE(`initialize`) = lease → delete `initialize`. (Compared, unlike the peer:
    /// never forget an identity, nor another member's bootstrap.)
    AbandonBootstrap {
        /// The bootstrapper's lease.
        lease: LeaseId,
    },
    /// 4.2: CREATE(`leader`) = 0 and `promise` unchanged since `promise_seen` (CREATE = 0 when `None`)
    /// → `leader` = name on `lease`, `regent/promise` = promise.
    TakeLeader {
        /// The candidate.
        name: MemberName,
        /// Its lease.
        lease: LeaseId,
        /// What it promises.
        promise: Promise,
        /// Revision of the promise that the decision saw.
        promise_seen: Option<Revision>,
    },
    /// VALUE(`leader`) = name, LEASE(`leader`) = lease and `promise` unchanged since `promise_seen` → `regent/promise`: the holder
    /// promises a new timeline before it promotes.
    Promise {
        /// The holder.
        name: MemberName,
        /// Its lease.
        lease: LeaseId,
        /// What it promises.
        promise: Promise,
        /// Revision of the promise that the decision saw.
        promise_seen: Option<Revision>,
    },
    /// 4.3: VALUE(`leader`) = name and MOD(`leader`) = `seen` → `leader` = name on `lease`: a restarted agent moves its key
    /// to its new lease.
    AdoptLeader {
        /// The holder.
        name: MemberName,
        /// Its new lease.
        lease: LeaseId,
        /// Revision of the key that the decision saw.
        seen: Revision,
    },
    /// 4.4: VALUE(`leader`) = name and LEASE(`leader`) = lease → delete `leader`.
    ReleaseLeader {
        /// The holder.
        name: MemberName,
        /// Its lease.
        lease: LeaseId,
    },
    /// 4.8: the own member key, on the own lease.
    PutMember {
        /// The member.
        name: MemberName,
        /// The JSON object, compact.
        json: String,
        /// Its lease.
        lease: LeaseId,
    },
    /// 4.8: `status`. Only for the holder; never before its lock update succeeded (L2). Compared by LEASE(`leader`) = lease,
    /// so that a former holder's late write changes nothing.
    PutStatus {
        /// The content.
        status: Status,
        /// The holder's lease.
        lease: LeaseId,
    },
    /// 4.8: `history`, likewise only for the holder.
    PutHistory {
        /// The content.
        lines: Vec<HistoryLine>,
        /// The holder's lease.
        lease: LeaseId,
    },
    /// 4.5: `sync`, by the holder (LEASE(`leader`) = lease), when MOD(`sync`) = `seen` (CREATE = 0 when `None`).
    PutSync {
        /// The content; `None` deletes the key.
        sync: Option<SyncState>,
        /// Revision of the key that the decision saw.
        seen: Option<Revision>,
        /// The holder's lease.
        lease: LeaseId,
    },
    /// 3.5: `failover`: somebody asks for a switchover or failover; what was asked before is forgotten.
    RequestFailover {
        /// The leader to be relieved; `None`: a failover.
        leader: Option<MemberName>,
        /// Who is to lead.
        candidate: Option<MemberName>,
        /// When, ISO 8601 with offset.
        scheduled_at: Option<String>,
    },
    /// 4.7: MOD(`failover`) = `seen` → `failover` = {}.
    ClearFailover {
        /// Revision of the request that was seen.
        seen: Revision,
    },
    /// 3.9: `failsafe`, only for the holder. MOD(`failsafe`) = `key.modified` (0: no key) as well, so that no late write puts an older
    /// topology back (the peer compares nothing).
    PutFailsafe {
        /// The content, and the revision that the decision saw.
        key: FailsafeKey,
        /// The holder's lease.
        lease: LeaseId,
    },
    /// 3.4: `config`, when MOD(`config`) = `seen` (CREATE = 0 when `None`): restored by the holder, or changed on request.
    PutConfig {
        /// The JSON object.
        config: serde_json::Value,
        /// Revision of the key that the decision saw.
        seen: Option<Revision>,
    },
    /// Every key of the cluster is deleted: it is forgotten (`remove` of the control program, never an agent).
    RemoveCluster,
}

/// A definite answer to a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Applied, at this revision.
    Done(Revision),
    /// A compare did not hold: nothing was written. A definite *no* (dcs.md section 4, notes).
    Refused,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DcsError {
    /// No answer in time, or none that is definite: a write *may have been applied*.
    #[error("etcd is unreachable: {0}")]
    Unreachable(String),
    /// A definite refusal that is not a compare: permission denied, request too large, ...
    #[error("etcd refused: {0}")]
    Rejected(String),
    /// The lease is gone (dcs.md DL7, DL8); nothing was written.
    #[error("the lease is gone")]
    LeaseGone,
    /// User name or password is wrong.
    #[error("etcd authentication failed: {0}")]
    Authentication(String),
}
