//! Every [`Write`] as one etcd transaction: what it compares, what it does. The real client and the twin both carry out
//! what stands here, so that the twin can only be wrong about etcd, never about the contract.

use regent_core::units::{LeaseId, Revision};

use crate::Write;
use crate::keys::{self, CONFIG, FAILOVER, FAILSAFE, HISTORY, INITIALIZE, LEADER, PROMISE, STATUS, SYNC};

/// All of `compares` hold: all of `changes` happen, in one revision. Otherwise nothing does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Txn {
    pub(crate) compares: Vec<Compare>,
    pub(crate) changes: Vec<Change>,
}

/// What must hold. Keys are relative to the base path. etcd compares a missing key as if its revisions and its lease were
/// 0, and never finds a value in it, not even the empty one (etcd: `applyCompare`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Compare {
    /// There is no such key.
    Absent(&'static str),
    /// It last changed at this revision.
    Modified(&'static str, Revision),
    /// It holds just this.
    Value(&'static str, String),
    /// It hangs on this lease.
    Lease(&'static str, LeaseId),
}

impl Compare {
    /// The key is as it was when the decision was made.
    fn unchanged(key: &'static str, seen: Option<Revision>) -> Compare {
        seen.map_or(Compare::Absent(key), |revision| Compare::Modified(key, revision))
    }
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Write a key; without a lease it loses the one it had.
    Put { key: String, value: String, lease: Option<LeaseId> },
    /// Delete a key.
    Delete(&'static str),
    /// Delete every key below the base path.
    DeleteAll,
}

impl Txn {
    fn new(compares: impl Into<Vec<Compare>>, changes: impl Into<Vec<Change>>) -> Txn {
        Txn { compares: compares.into(), changes: changes.into() }
    }
}

fn put(key: &str, value: impl Into<String>) -> Change {
    Change::Put { key: key.to_owned(), value: value.into(), lease: None }
}

fn put_leased(key: &str, value: impl Into<String>, lease: LeaseId) -> Change {
    Change::Put { key: key.to_owned(), value: value.into(), lease: Some(lease) }
}

impl From<&Write> for Txn {
    fn from(write: &Write) -> Txn {
        match write {
            Write::StartBootstrap { lease } => {
                Txn::new([Compare::Absent(INITIALIZE)], [put_leased(INITIALIZE, "", *lease)])
            }
            Write::Identify { id, seen } => {
                Txn::new([Compare::unchanged(INITIALIZE, *seen)], [put(INITIALIZE, id.to_string())])
            }
            Write::AbandonBootstrap { lease } => Txn::new(
                [Compare::Value(INITIALIZE, String::new()), Compare::Lease(INITIALIZE, *lease)],
                [Change::Delete(INITIALIZE)],
            ),
            Write::TakeLeader { name, lease, promise, promise_seen } => Txn::new(
                [Compare::Absent(LEADER), Compare::unchanged(PROMISE, *promise_seen)],
                [put_leased(LEADER, name.as_str(), *lease), put(PROMISE, keys::encode_promise(promise))],
            ),
            Write::Promise { name, lease, promise, promise_seen } => Txn::new(
                [
                    Compare::Value(LEADER, name.to_string()),
                    Compare::Lease(LEADER, *lease),
                    Compare::unchanged(PROMISE, *promise_seen),
                ],
                [put(PROMISE, keys::encode_promise(promise))],
            ),
            Write::AdoptLeader { name, lease, seen } => Txn::new(
                [Compare::Value(LEADER, name.to_string()), Compare::Modified(LEADER, *seen)],
                [put_leased(LEADER, name.as_str(), *lease)],
            ),
            Write::ReleaseLeader { name, lease } => Txn::new(
                [Compare::Value(LEADER, name.to_string()), Compare::Lease(LEADER, *lease)],
                [Change::Delete(LEADER)],
            ),
            Write::PutMember { name, json, lease } => {
                Txn::new([], [put_leased(&keys::member(name), json.as_str(), *lease)])
            }
            Write::PutStatus { status, lease } => {
                Txn::new([Compare::Lease(LEADER, *lease)], [put(STATUS, keys::encode_status(status))])
            }
            Write::PutHistory { lines, lease } => {
                Txn::new([Compare::Lease(LEADER, *lease)], [put(HISTORY, keys::encode_history(lines))])
            }
            Write::PutSync { sync, seen, lease } => {
                let change = sync.as_ref().map_or(Change::Delete(SYNC), |sync| put(SYNC, keys::encode_sync(sync)));
                Txn::new([Compare::unchanged(SYNC, *seen), Compare::Lease(LEADER, *lease)], [change])
            }
            Write::RequestFailover { leader, candidate, scheduled_at } => {
                let request = keys::encode_failover(leader.as_ref(), candidate.as_ref(), scheduled_at.as_deref());
                Txn::new([], [put(FAILOVER, request)])
            }
            Write::ClearFailover { seen } => Txn::new([Compare::Modified(FAILOVER, *seen)], [put(FAILOVER, "{}")]),
            Write::PutFailsafe { key, lease } => {
                let seen = (key.modified != Revision::default()).then_some(key.modified);
                Txn::new(
                    [Compare::Lease(LEADER, *lease), Compare::unchanged(FAILSAFE, seen)],
                    [put(FAILSAFE, keys::encode_failsafe(key))],
                )
            }
            Write::PutConfig { config, seen } => {
                Txn::new([Compare::unchanged(CONFIG, *seen)], [put(CONFIG, config.to_string())])
            }
            Write::RemoveCluster => Txn::new([], [Change::DeleteAll]),
        }
    }
}
