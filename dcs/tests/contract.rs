//! One contract, two stores: every script here runs on the twin (in virtual time) and on a real etcd.
//!
//! What the twin claims of etcd is claimed here. A difference that a simulation could notice belongs into this file.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod support;

use std::time::Duration;

use regent_core::cluster::{ConfigKey, FailsafeKey, HistoryLine, Initialize, Status, SyncState};
use regent_core::units::{LeaseId, Lsn, MemberName, Revision, SystemId, Timeline};
use regent_dcs::etcd::EtcdDcs;
use regent_dcs::memory::{MemoryDcs, MemoryStore};
use regent_dcs::{Dcs, DcsError, Lease, Read, Write, Written};
use tokio::time::{Instant, sleep, timeout};

use support::{LONG, Server, promise};

/// A store of its own for one script.
trait Bench {
    type Dcs: Dcs;

    /// A client.
    fn dcs(&self) -> Self::Dcs;

    /// Writes a key past the trait, as an operator would; `None` deletes it.
    async fn meddle(&self, key: &str, value: Option<&str>);
}

struct Twin(MemoryStore);

impl Bench for Twin {
    type Dcs = MemoryDcs;

    fn dcs(&self) -> MemoryDcs {
        self.0.client("n1")
    }

    async fn meddle(&self, key: &str, value: Option<&str>) {
        match value {
            Some(value) => self.0.put_raw(key, value),
            None => self.0.delete_raw(key),
        }
    }
}

struct Etcd {
    dcs: EtcdDcs,
    raw: etcd_client::Client,
    _server: Vec<Server>,
}

impl Etcd {
    async fn new() -> Etcd {
        let server = support::cluster(1);
        let dcs = support::connected(support::settings(&server)).await;
        let raw = etcd_client::Client::connect([&server[0].url], None).await.unwrap();
        Etcd { dcs, raw, _server: server }
    }
}

impl Bench for Etcd {
    type Dcs = EtcdDcs;

    fn dcs(&self) -> EtcdDcs {
        self.dcs.clone()
    }

    async fn meddle(&self, key: &str, value: Option<&str>) {
        let (mut raw, key) = (self.raw.clone(), format!("/service/demo/{key}"));
        match value {
            Some(value) => drop(raw.put(key, value, None).await.unwrap()),
            None => drop(raw.delete(key, None).await.unwrap()),
        }
    }
}

/// Runs every script on both.
macro_rules! on_both {
    ($($script:ident)*) => {
        mod twin {
            use super::*;
            $(#[tokio::test(start_paused = true)]
            async fn $script() {
                super::$script(Twin(MemoryStore::new())).await;
            })*
        }
        mod etcd {
            use super::*;
            $(#[tokio::test]
            async fn $script() {
                super::$script(Etcd::new().await).await;
            })*
        }
    };
}

on_both! {
    a_new_scope_is_empty
    bootstrap_is_won_once_and_never_forgotten
    a_dead_bootstrapper_frees_the_key
    the_leader_key_is_taken_once
    a_stale_promise_takes_nothing
    only_the_holder_releases
    a_restarted_holder_adopts_its_key
    only_the_holder_writes_status_and_history
    only_the_holder_writes_the_failsafe_key_and_only_over_what_it_saw
    only_the_holder_writes_sync_and_only_over_what_it_saw
    a_request_is_cleared_only_if_it_is_the_one_that_was_seen
    config_is_restored_only_over_what_was_seen
    a_removed_cluster_leaves_no_key
    a_lease_that_is_gone_is_said_to_be_gone
    renewals_keep_a_lease_and_its_end_takes_all_keys_at_once
    a_revoked_lease_takes_its_keys_along
    a_key_that_moved_to_another_lease_stays
    a_change_wakes
    garbage_in_one_key_hides_no_other
}

fn name(text: &str) -> MemberName {
    MemberName::from(text)
}

async fn read(dcs: &impl Dcs) -> Read {
    dcs.read(LONG).await.unwrap()
}

async fn lease(dcs: &impl Dcs) -> LeaseId {
    dcs.grant(Duration::from_secs(30), LONG).await.unwrap().id
}

async fn done(dcs: &impl Dcs, write: Write) -> Revision {
    match dcs.write(write.clone(), LONG).await {
        Ok(Written::Done(revision)) => revision,
        other => panic!("{write:?}: {other:?}"),
    }
}

async fn refused(dcs: &impl Dcs, write: Write) {
    let before = read(dcs).await;
    assert_eq!(dcs.write(write.clone(), LONG).await, Ok(Written::Refused), "{write:?}");
    assert_eq!(read(dcs).await, before, "a refused write leaves everything as it was: {write:?}");
}

fn take(holder: &str, lease: LeaseId, epoch: u64, promise_seen: Option<Revision>) -> Write {
    Write::TakeLeader { name: name(holder), lease, promise: promise(epoch, holder), promise_seen }
}

fn member(of: &str, lease: LeaseId) -> Write {
    Write::PutMember { name: name(of), json: r#"{"state":"running","b":1,"a":2}"#.to_owned(), lease }
}

async fn a_new_scope_is_empty(bench: impl Bench) {
    let read = read(&bench.dcs()).await;
    assert_eq!(read.view.revision, Revision(1), "as a new etcd has it");
    assert_eq!(read.view.initialize, Initialize::Absent);
    assert_eq!(read.view.config, ConfigKey::Missing);
    assert!(read.view.leader.is_none() && read.view.members.is_empty());
}

async fn bootstrap_is_won_once_and_never_forgotten(bench: impl Bench) {
    let dcs = bench.dcs();
    let id = SystemId(7_710_414_511_323_698_082);
    let lease = lease(&dcs).await;

    let (mine, theirs) = (Write::AbandonBootstrap { lease }, Write::AbandonBootstrap { lease: LeaseId(987_654_321) });
    refused(&dcs, mine.clone()).await;
    let seen = done(&dcs, Write::StartBootstrap { lease }).await;
    let view = read(&dcs).await;
    assert_eq!(view.view.initialize, Initialize::InProgress { modified: seen, lease: Some(lease) });
    refused(&dcs, Write::StartBootstrap { lease }).await;
    refused(&dcs, theirs).await;
    done(&dcs, mine.clone()).await;
    assert_eq!(read(&dcs).await.view.initialize, Initialize::Absent);

    let seen = done(&dcs, Write::StartBootstrap { lease }).await;
    refused(&dcs, Write::Identify { id, seen: None }).await;
    refused(&dcs, Write::Identify { id, seen: Some(Revision(1)) }).await;
    done(&dcs, Write::Identify { id, seen: Some(seen) }).await;
    refused(&dcs, mine).await;
    refused(&dcs, Write::StartBootstrap { lease }).await;
    refused(&dcs, Write::Identify { id: SystemId(1_000_000_000), seen: Some(seen) }).await;

    dcs.revoke(lease, LONG).await.unwrap();
    assert_eq!(read(&dcs).await.view.initialize, Initialize::Known(id), "it hangs on no lease any more");

    bench.meddle("initialize", None).await;
    refused(&dcs, Write::Identify { id, seen: Some(seen) }).await;
    done(&dcs, Write::Identify { id, seen: None }).await;
    assert_eq!(read(&dcs).await.view.initialize, Initialize::Known(id));
}

async fn a_dead_bootstrapper_frees_the_key(bench: impl Bench) {
    let dcs = bench.dcs();
    let lease = dcs.grant(Duration::from_secs(1), LONG).await.unwrap();
    let seen = done(&dcs, Write::StartBootstrap { lease: lease.id }).await;
    timeout(LONG, dcs.changed(seen)).await.expect("the end of the lease wakes");
    assert_eq!(read(&dcs).await.view.initialize, Initialize::Absent);
}

async fn the_leader_key_is_taken_once(bench: impl Bench) {
    let dcs = bench.dcs();
    let (one, two) = (lease(&dcs).await, lease(&dcs).await);
    let taken = done(&dcs, take("n1", one, 1, None)).await;
    let view = read(&dcs).await.view;
    let leader = view.leader.unwrap();
    assert_eq!((leader.name, leader.lease, leader.modified), (name("n1"), Some(one), taken));
    let promised = view.promise.unwrap();
    assert_eq!((promised.promise, promised.modified), (promise(1, "n1"), taken));
    refused(&dcs, take("n2", two, 2, Some(taken))).await;
    refused(&dcs, take("n1", one, 2, Some(taken))).await;
}

async fn a_stale_promise_takes_nothing(bench: impl Bench) {
    let dcs = bench.dcs();
    let lease = lease(&dcs).await;
    let first = done(&dcs, take("n1", lease, 1, None)).await;
    done(&dcs, Write::ReleaseLeader { name: name("n1"), lease }).await;
    refused(&dcs, take("n1", lease, 2, None)).await;
    let second = done(&dcs, take("n1", lease, 2, Some(first))).await;
    done(&dcs, Write::ReleaseLeader { name: name("n1"), lease }).await;
    refused(&dcs, take("n1", lease, 3, Some(first))).await;
    // Not even over a promise that cannot be read.
    bench.meddle("regent/promise", Some("?")).await;
    refused(&dcs, take("n1", lease, 3, Some(second))).await;
    refused(&dcs, take("n1", lease, 3, None)).await;
    bench.meddle("regent/promise", None).await;
    refused(&dcs, take("n1", lease, 3, Some(second))).await;
}

async fn only_the_holder_releases(bench: impl Bench) {
    let dcs = bench.dcs();
    let (mine, other) = (lease(&dcs).await, lease(&dcs).await);
    refused(&dcs, Write::ReleaseLeader { name: name("n1"), lease: mine }).await;
    done(&dcs, take("n1", mine, 1, None)).await;
    refused(&dcs, Write::ReleaseLeader { name: name("n2"), lease: mine }).await;
    refused(&dcs, Write::ReleaseLeader { name: name("n1"), lease: other }).await;
    done(&dcs, Write::ReleaseLeader { name: name("n1"), lease: mine }).await;
    let view = read(&dcs).await.view;
    assert!(view.leader.is_none() && view.promise.is_some(), "the promise outlives its holder");
}

async fn a_restarted_holder_adopts_its_key(bench: impl Bench) {
    let dcs = bench.dcs();
    let (old, new) = (lease(&dcs).await, lease(&dcs).await);
    let adopt = |of: &str, seen| Write::AdoptLeader { name: name(of), lease: new, seen };
    refused(&dcs, adopt("n1", Revision(1))).await;
    let seen = done(&dcs, take("n1", old, 1, None)).await;
    refused(&dcs, adopt("n2", seen)).await;
    refused(&dcs, adopt("n1", Revision(seen.0 - 1))).await;
    let adopted = done(&dcs, adopt("n1", seen)).await;
    refused(&dcs, adopt("n1", seen)).await;
    let leader = read(&dcs).await.view.leader.unwrap();
    assert_eq!((leader.lease, leader.modified), (Some(new), adopted));
}

async fn only_the_holder_writes_status_and_history(bench: impl Bench) {
    let dcs = bench.dcs();
    let (old, new) = (lease(&dcs).await, lease(&dcs).await);
    let status = |lease| Write::PutStatus { status: Status { optime: Some(Lsn(42)), ..Status::default() }, lease };
    let lines = vec![HistoryLine {
        parent: Timeline(1),
        switched_at: Lsn(67_109_256),
        reason: "no recovery target specified".to_owned(),
        at: Some("2026-11-21T00:27:34.385348+00:00".to_owned()),
        promoted: Some(name("n2")),
    }];
    let history = |lease| Write::PutHistory { lines: lines.clone(), lease };
    refused(&dcs, status(old)).await;
    refused(&dcs, history(old)).await;
    let seen = done(&dcs, take("n1", old, 1, None)).await;
    done(&dcs, status(old)).await;
    done(&dcs, history(old)).await;
    let both = read(&dcs).await;
    assert_eq!((both.view.status.optime, both.view.history), (Some(Lsn(42)), Some(lines.clone())));
    done(&dcs, Write::AdoptLeader { name: name("n1"), lease: new, seen }).await;
    refused(&dcs, status(old)).await;
    refused(&dcs, history(old)).await;
    dcs.revoke(new, LONG).await.unwrap();
    refused(&dcs, status(new)).await;
    assert_eq!(read(&dcs).await.view.status.optime, Some(Lsn(42)), "it hangs on no lease");
}

async fn only_the_holder_writes_the_failsafe_key_and_only_over_what_it_saw(bench: impl Bench) {
    let dcs = bench.dcs();
    let lease = lease(&dcs).await;
    let put = |names: &[&str], modified| {
        let members = names.iter().map(|n| (name(n), format!("http://{n}:8008/patroni"))).collect();
        Write::PutFailsafe { key: FailsafeKey { members, modified }, lease }
    };
    refused(&dcs, put(&["n1"], Revision(0))).await;
    done(&dcs, take("n1", lease, 1, None)).await;
    refused(&dcs, put(&["n1"], Revision(1))).await;
    let first = done(&dcs, put(&["n1"], Revision(0))).await;
    refused(&dcs, put(&["n1", "n2"], Revision(0))).await;
    let second = done(&dcs, put(&["n1", "n2"], first)).await;
    refused(&dcs, put(&["n1"], first)).await;
    dcs.revoke(lease, LONG).await.unwrap();
    let key = read(&dcs).await.view.failsafe.unwrap();
    assert_eq!((key.members.len(), key.modified), (2, second), "it hangs on no lease");
    bench.meddle("failsafe", Some("?")).await;
    let garbage = read(&dcs).await.view.failsafe.unwrap();
    assert!(garbage.members.is_empty() && garbage.modified > second);
}

async fn only_the_holder_writes_sync_and_only_over_what_it_saw(bench: impl Bench) {
    let dcs = bench.dcs();
    let lease = lease(&dcs).await;
    let put = |standbys: &[&str], seen| {
        let standbys = standbys.iter().map(|n| name(n)).collect();
        Write::PutSync { sync: Some(SyncState { leader: name("n1"), standbys, quorum: 0 }), seen, lease }
    };
    refused(&dcs, put(&[], None)).await;
    done(&dcs, take("n1", lease, 1, None)).await;
    refused(&dcs, put(&[], Some(Revision(1)))).await;
    let first = done(&dcs, put(&[], None)).await;
    refused(&dcs, put(&["n2"], None)).await;
    let second = done(&dcs, put(&["n2"], Some(first))).await;
    refused(&dcs, put(&[], Some(first))).await;
    let view = read(&dcs).await.view;
    assert_eq!((view.sync.map(|sync| sync.standbys.len()), view.sync_seen), (Some(1), Some(second)));
    refused(&dcs, Write::PutSync { sync: None, seen: Some(first), lease }).await;
    done(&dcs, Write::PutSync { sync: None, seen: Some(second), lease }).await;
    assert_eq!(read(&dcs).await.view.sync_seen, None);
    dcs.revoke(lease, LONG).await.unwrap();
    refused(&dcs, put(&["n2"], None)).await;
}

async fn a_request_is_cleared_only_if_it_is_the_one_that_was_seen(bench: impl Bench) {
    let dcs = bench.dcs();
    let ask = |candidate: &str| Write::RequestFailover {
        leader: Some(name("n1")),
        candidate: Some(name(candidate)),
        scheduled_at: None,
    };
    let first = done(&dcs, ask("n2")).await;
    let second = done(&dcs, ask("n3")).await;
    refused(&dcs, Write::ClearFailover { seen: first }).await;
    let asked = read(&dcs).await.view.failover.unwrap();
    assert_eq!((asked.candidate, asked.modified), (Some(name("n3")), second));
    done(&dcs, Write::ClearFailover { seen: second }).await;
    assert_eq!(read(&dcs).await.view.failover, None);
}

async fn config_is_restored_only_over_what_was_seen(bench: impl Bench) {
    let dcs = bench.dcs();
    let text = r#"{"ttl":20,"loop_wait":5,"a":{"z":1,"b":null},"retry_timeout":5}"#;
    let put = |seen| Write::PutConfig { config: serde_json::from_str(text).unwrap(), seen };
    refused(&dcs, put(Some(Revision(1)))).await;
    let first = done(&dcs, put(None)).await;
    let now = read(&dcs).await;
    assert_eq!(now.view.config, ConfigKey::Valid(first));
    assert_eq!(now.config.unwrap().to_string(), text, "byte for byte, order of keys included");
    refused(&dcs, put(None)).await;

    bench.meddle("config", Some("")).await;
    let empty = read(&dcs).await;
    let ConfigKey::Empty(seen) = empty.view.config else { panic!("{:?}", empty.view.config) };
    refused(&dcs, put(Some(first))).await;
    refused(&dcs, put(None)).await;
    done(&dcs, put(Some(seen))).await;
}

async fn a_removed_cluster_leaves_no_key(bench: impl Bench) {
    let dcs = bench.dcs();
    bench.meddle("config", Some("{}")).await;
    bench.meddle("members/n1", Some("{}")).await;
    bench.meddle("unknown/key", Some("x")).await;
    let before = read(&dcs).await;
    assert!(before.config.is_some() && before.view.members.len() == 1);
    done(&dcs, Write::RemoveCluster).await;
    let after = read(&dcs).await;
    assert!(after.view.revision > before.view.revision);
    assert_eq!((after.view.config, after.view.members.len()), (ConfigKey::Missing, 0));
    done(&dcs, Write::RemoveCluster).await;
}

async fn a_lease_that_is_gone_is_said_to_be_gone(bench: impl Bench) {
    let dcs = bench.dcs();
    let (alive, gone) = (lease(&dcs).await, lease(&dcs).await);
    dcs.revoke(gone, LONG).await.unwrap();
    assert_eq!(dcs.revoke(gone, LONG).await, Ok(()), "it is gone, as was wished");
    assert_eq!(dcs.keep_alive(gone, LONG).await, Err(DcsError::LeaseGone));
    assert_eq!(dcs.write(member("n1", gone), LONG).await, Err(DcsError::LeaseGone));
    assert_eq!(dcs.write(take("n1", gone, 1, None), LONG).await, Err(DcsError::LeaseGone));
    assert!(read(&dcs).await.view.promise.is_none(), "all of a write, or nothing");
    // The compare comes first: a lost race is a lost race, with or without a lease.
    done(&dcs, take("n2", alive, 1, None)).await;
    refused(&dcs, take("n1", gone, 1, None)).await;
}

async fn renewals_keep_a_lease_and_its_end_takes_all_keys_at_once(bench: impl Bench) {
    let dcs = bench.dcs();
    let Lease { id, ttl } = dcs.grant(Duration::from_secs(1), LONG).await.unwrap();
    assert_eq!(ttl, Duration::from_secs(2), "etcd's floor with its default election timeout");
    let part = dcs.grant(Duration::from_millis(2500), LONG).await.unwrap();
    assert_eq!(part.ttl, Duration::from_secs(3), "whole seconds, never less than asked");
    dcs.revoke(part.id, LONG).await.unwrap();

    done(&dcs, member("n1", id)).await;
    let seen = done(&dcs, take("n1", id, 1, None)).await;
    let mut renewed = Instant::now();
    for _ in 0..3 {
        sleep(Duration::from_secs(1)).await;
        renewed = Instant::now();
        assert_eq!(dcs.keep_alive(id, LONG).await, Ok(ttl));
    }
    assert!(read(&dcs).await.view.leader.is_some(), "older than its TTL, and alive");

    timeout(LONG, dcs.changed(seen)).await.expect("the end of the lease wakes");
    let lived = renewed.elapsed();
    assert!(lived >= ttl, "never earlier than promised: {lived:?}");
    assert!(lived < ttl + Duration::from_secs(3), "and soon after: {lived:?}");
    let view = read(&dcs).await.view;
    assert_eq!(view.revision, Revision(seen.0 + 1), "all in one revision");
    assert!(view.leader.is_none() && view.members.is_empty());
    assert_eq!(dcs.keep_alive(id, LONG).await, Err(DcsError::LeaseGone));
    assert_eq!(dcs.write(member("n1", id), LONG).await, Err(DcsError::LeaseGone));
}

async fn a_revoked_lease_takes_its_keys_along(bench: impl Bench) {
    let dcs = bench.dcs();
    let lease = lease(&dcs).await;
    done(&dcs, member("n1", lease)).await;
    let seen = done(&dcs, take("n1", lease, 1, None)).await;
    assert_eq!(read(&dcs).await.members[&name("n1")].to_string(), r#"{"state":"running","b":1,"a":2}"#);
    dcs.revoke(lease, LONG).await.unwrap();
    let view = read(&dcs).await.view;
    assert_eq!(view.revision, Revision(seen.0 + 1));
    assert!(view.leader.is_none() && view.members.is_empty());
}

async fn a_key_that_moved_to_another_lease_stays(bench: impl Bench) {
    let dcs = bench.dcs();
    let (old, new) = (lease(&dcs).await, lease(&dcs).await);
    done(&dcs, member("n1", old)).await;
    let moved = done(&dcs, member("n1", new)).await;
    dcs.revoke(old, LONG).await.unwrap();
    let now = read(&dcs).await;
    assert_eq!(now.view.revision, moved, "a lease without keys ends without a revision");
    assert!(now.members.contains_key(&name("n1")));
}

async fn a_change_wakes(bench: impl Bench) {
    let dcs = bench.dcs();
    let since = read(&dcs).await.view.revision;
    timeout(Duration::from_millis(500), dcs.changed(since)).await.expect_err("nothing has changed");

    let ((), ()) = tokio::join!(async { timeout(LONG, dcs.changed(since)).await.expect("a put wakes") }, async {
        sleep(Duration::from_millis(100)).await;
        bench.meddle("config", Some("{}")).await;
    },);
    let put = read(&dcs).await.view.revision;
    assert_eq!(put, Revision(since.0 + 1));
    timeout(LONG, dcs.changed(since)).await.expect("what has already changed wakes at once");

    let ((), ()) = tokio::join!(async { timeout(LONG, dcs.changed(put)).await.expect("a delete wakes") }, async {
        sleep(Duration::from_millis(100)).await;
        bench.meddle("config", None).await;
    },);
    assert_eq!(read(&dcs).await.view.revision, Revision(put.0 + 1));
}

async fn garbage_in_one_key_hides_no_other(bench: impl Bench) {
    let dcs = bench.dcs();
    let lease = lease(&dcs).await;
    done(&dcs, take("n1", lease, 1, None)).await;
    done(&dcs, member("n1", lease)).await;
    for key in ["config", "history", "status", "initialize", "members/n2"] {
        bench.meddle(key, Some("{")).await;
    }
    bench.meddle("members/a/b", Some("{}")).await;
    bench.meddle("unknown", Some("{")).await;
    let view = read(&dcs).await.view;
    assert_eq!(view.garbage.keys().collect::<Vec<_>>(), ["config", "history", "initialize", "members/n2", "status"]);
    assert_eq!(view.leader_member().map(|(name, _)| name.as_str()), Some("n1"));
    assert_eq!(view.members.len(), 2);
}
