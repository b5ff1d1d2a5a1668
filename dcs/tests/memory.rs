//! The twin's faults, and what only it can show. What it has in common with etcd is in `contract.rs`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use regent_core::cluster::{Initialize, Promise};
use regent_core::units::{LeaseId, Lsn, MemberName, Revision, Timeline, WalPosition};
use regent_dcs::memory::{Call, MemoryDcs, MemoryStore, Trip};
use regent_dcs::{Dcs, DcsError, Write, Written};
use tokio::time::{Instant, sleep, timeout};

const WITHIN: Duration = Duration::from_secs(3);

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn start_bootstrap(lease: LeaseId) -> Write {
    Write::StartBootstrap { lease }
}

fn member(lease: LeaseId) -> Write {
    Write::PutMember { name: MemberName::from("n1"), json: "{}".to_owned(), lease }
}

fn take(lease: LeaseId) -> Write {
    let position = WalPosition { timeline: Timeline(1), lsn: Lsn(1) };
    let promise = Promise { epoch: 1, position, parent: Timeline(1), holder: MemberName::from("n1") };
    Write::TakeLeader { name: MemberName::from("n1"), lease, promise, promise_seen: None }
}

async fn lease(dcs: &MemoryDcs, ttl: u64) -> LeaseId {
    dcs.grant(secs(ttl), WITHIN).await.unwrap().id
}

fn instant() -> Trip {
    Trip { request: Duration::ZERO, answer: Duration::ZERO, answer_lost: false, reset: false }
}

fn unreachable<T>(result: &Result<T, DcsError>) -> bool {
    matches!(result, Err(DcsError::Unreachable(_)))
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_cut_off_reaches_nothing_and_waits_out_its_budget() {
    let store = MemoryStore::new();
    let (cut, other) = (store.client("n1"), store.client("n2"));
    let lease = lease(&cut, 30).await;
    cut.set_cut(true);
    let start = Instant::now();
    assert!(unreachable(&cut.write(start_bootstrap(lease), WITHIN).await));
    assert_eq!(start.elapsed(), WITHIN);
    assert_eq!(other.read(WITHIN).await.unwrap().view.initialize, Initialize::Absent);
    cut.set_cut(false);
    assert!(matches!(cut.write(start_bootstrap(lease), WITHIN).await, Ok(Written::Done(_))));
}

#[tokio::test(start_paused = true)]
async fn a_cut_wakes_a_watch_and_hides_the_answer_that_was_due() {
    let store = MemoryStore::new();
    let dcs = store.client("n1");
    let lease = lease(&dcs, 30).await;
    let since = store.revision();
    dcs.set_trip(Trip { answer: secs(1), ..Trip::default() });
    let cutting = async {
        sleep(Duration::from_millis(500)).await;
        dcs.set_cut(true);
    };
    let watching = async {
        sleep(Duration::from_millis(100)).await;
        let written = store.revision();
        timeout(secs(5), dcs.changed(written)).await.expect("a watch that is cut returns");
    };
    let (written, (), ()) = tokio::join!(dcs.write(start_bootstrap(lease), WITHIN), cutting, watching);
    assert!(unreachable(&written));
    assert_eq!(store.revision(), Revision(since.0 + 1), "it was applied all the same");
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_says_nothing_of_what_happened() {
    let store = MemoryStore::new();
    let dcs = store.client("n1");
    let lease = lease(&dcs, 30).await;
    dcs.set_trips(|call| Trip { answer_lost: call == Call::Write, ..Trip::default() });
    assert!(unreachable(&dcs.write(start_bootstrap(lease), WITHIN).await));
    assert!(matches!(dcs.read(WITHIN).await.unwrap().view.initialize, Initialize::InProgress { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_late_request_arrives_although_its_sender_is_gone() {
    let store = MemoryStore::new();
    let (dcs, watcher) = (store.client("n1"), store.client("n2"));
    let lease = lease(&dcs, 30).await;
    let (since, start) = (store.revision(), Instant::now());
    dcs.set_trip(Trip { request: secs(10), ..Trip::default() });
    assert!(unreachable(&dcs.write(start_bootstrap(lease), WITHIN).await));
    drop(dcs);
    assert_eq!(store.raw("initialize"), None);
    timeout(secs(20), watcher.changed(since)).await.unwrap();
    assert_eq!(start.elapsed(), secs(10));
    assert_eq!(store.raw("initialize").as_deref(), Some(&b""[..]));
}

#[tokio::test(start_paused = true)]
async fn a_renewal_counts_from_its_arrival() {
    let store = MemoryStore::new();
    let (dcs, watcher) = (store.client("n1"), store.client("n2"));
    dcs.set_trip(instant());
    let lease = lease(&dcs, 5).await;
    dcs.write(take(lease), WITHIN).await.unwrap();
    let (since, start) = (store.revision(), Instant::now());
    dcs.set_trip(Trip { request: secs(4), answer_lost: true, ..instant() });
    assert!(unreachable(&dcs.keep_alive(lease, WITHIN).await));
    timeout(secs(20), watcher.changed(since)).await.unwrap();
    assert_eq!(start.elapsed(), secs(4 + 5));

    // One that comes when the lease is gone brings nothing back.
    let lease = {
        dcs.set_trip(instant());
        dcs.grant(secs(5), WITHIN).await.unwrap().id
    };
    dcs.set_trip(Trip { request: secs(6), ..instant() });
    assert_eq!(dcs.keep_alive(lease, secs(10)).await, Err(DcsError::LeaseGone));
    assert!(store.leases().is_empty());
}

#[tokio::test(start_paused = true)]
async fn keys_go_a_little_later_than_their_lease_and_no_renewal_helps_meanwhile() {
    let store = MemoryStore::new();
    store.set_expiry_delay(Duration::from_millis(500));
    let dcs = store.client("n1");
    dcs.set_trip(instant());
    let start = Instant::now();
    let lease = lease(&dcs, 5).await;
    dcs.write(take(lease), WITHIN).await.unwrap();
    dcs.write(member(lease), WITHIN).await.unwrap();
    sleep(Duration::from_millis(5100)).await;
    assert_eq!(store.leader(), Some((MemberName::from("n1"), lease)));
    assert_eq!(dcs.keep_alive(lease, WITHIN).await, Err(DcsError::LeaseGone));
    assert_eq!(start.elapsed(), Duration::from_millis(5500), "etcd says so when the lease is gone");
    assert_eq!((store.leader(), store.raw("members/n1")), (None, None));
    let last = store.log_since(Revision(store.revision().0 - 1));
    let keys: Vec<&str> = last.iter().map(|event| event.key.as_str()).collect();
    assert_eq!(keys, ["leader", "members/n1"], "both in the last revision");
    assert!(last.iter().all(|event| event.value.is_none() && event.at == Duration::from_millis(5500)));
    assert!(store.promise().is_some());
}

#[tokio::test(start_paused = true)]
async fn an_outage_answers_nothing_and_ends_no_lease() {
    let store = MemoryStore::new();
    let dcs = store.client("n1");
    dcs.set_trip(instant());
    let lease = lease(&dcs, 5).await;
    dcs.write(take(lease), WITHIN).await.unwrap();
    store.set_outage(true);
    assert!(unreachable(&dcs.read(WITHIN).await));
    assert!(unreachable(&dcs.keep_alive(lease, WITHIN).await));
    sleep(secs(60)).await;
    assert!(store.leader().is_some(), "without a quorum nobody can delete it");
    store.set_outage(false);
    let (since, start) = (store.revision(), Instant::now());
    timeout(secs(20), dcs.changed(since)).await.unwrap();
    assert_eq!(start.elapsed(), secs(5 + 1), "TTL and election timeout");
    assert_eq!(store.leader(), None);
}

#[tokio::test(start_paused = true)]
async fn a_new_etcd_leader_starts_every_lease_anew() {
    let store = MemoryStore::new();
    let dcs = store.client("n1");
    dcs.set_trip(instant());
    let lease = lease(&dcs, 5).await;
    dcs.write(take(lease), WITHIN).await.unwrap();
    let (since, start) = (store.revision(), Instant::now());
    let (_, ()) = tokio::join!(timeout(secs(20), dcs.changed(since)), async {
        sleep(secs(4)).await;
        store.change_leader();
    });
    assert_eq!(start.elapsed(), secs(4 + 5 + 1));
}

#[tokio::test(start_paused = true)]
async fn a_watch_may_be_late_and_reads_are_not() {
    let store = MemoryStore::new();
    let dcs = store.client("n1");
    dcs.set_watch_delay(secs(2));
    let (since, start) = (store.revision(), Instant::now());
    store.put_raw("config", "{}");
    assert!(dcs.read(WITHIN).await.unwrap().config.is_some());
    dcs.changed(since).await;
    assert!(start.elapsed() >= secs(2));
}

#[tokio::test(start_paused = true)]
async fn every_call_draws_its_own_trip() {
    let store = MemoryStore::new();
    let dcs = store.client("n1");
    let calls = Rc::new(Cell::new(0));
    let count = Rc::clone(&calls);
    dcs.set_trips(move |_| {
        count.set(count.get() + 1);
        Trip { request: secs(count.get()), ..instant() }
    });
    let start = Instant::now();
    dcs.clone().read(secs(9)).await.unwrap();
    dcs.read(secs(9)).await.unwrap();
    assert_eq!((calls.get(), start.elapsed()), (2, secs(1 + 2)));
}

#[tokio::test(start_paused = true)]
async fn requests_take_effect_in_the_order_of_their_arrival() {
    let store = MemoryStore::new();
    let (slow, quick) = (store.client("n1"), store.client("n2"));
    let lease = lease(&quick, 30).await;
    slow.set_trip(Trip { request: secs(2), ..instant() });
    quick.set_trip(Trip { request: secs(1), ..instant() });
    let (late, early) =
        tokio::join!(slow.write(start_bootstrap(lease), WITHIN), quick.write(start_bootstrap(lease), WITHIN));
    assert_eq!(late, Ok(Written::Refused));
    assert!(matches!(early, Ok(Written::Done(_))));
}
