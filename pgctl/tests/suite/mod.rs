//! What every `Postgres` must do, real or twin: sequences over a [`Harness`], asserting on what `observe` shows.
//!
//! A sequence takes a fresh harness and panics where the contract is broken. It waits by looking again, never by
//! sleeping for an outcome, so that it runs in real and in virtual time alike.

#![allow(async_fn_in_trait, reason = "as the trait under test: one thread, no Send bounds")]

use std::future::Future;
use std::time::Duration;

use regent_core::postgres::{
    ClusterState, DataDir, PgState, Probe, Process, SlotChanges, SqlFacts, StopMode, Upstream,
};
use regent_core::units::{Lsn, MemberName, Timeline};
use regent_pgctl::{PgError, Postgres};

/// How long anything may take before it counts as never.
const NEVER: Duration = Duration::from_secs(30);
/// The budget of one look.
const LOOK: Duration = Duration::from_secs(3);

/// Makes nodes that can reach each other.
pub trait Harness {
    /// One of its nodes.
    type Node: Node;

    /// A node with an empty data directory.
    async fn node(&mut self, name: &str) -> Self::Node;
}

/// One PostgreSQL and the world's view of it.
pub trait Node {
    /// What is tested.
    type Pg: Postgres;

    /// The controller under test.
    fn pg(&self) -> &Self::Pg;

    /// A new controller of the same server, as a restarted agent has it.
    fn new_controller(&self) -> Self::Pg;

    /// The node's name.
    fn name(&self) -> MemberName;

    /// Where others reach it.
    fn conn_url(&self) -> String;

    /// Writes one row, as a client; fails where a client would fail.
    async fn insert(&self) -> Result<(), String>;

    /// Counts the rows, as a client.
    async fn rows(&self) -> Result<u64, String>;

    /// Kills the postmaster with SIGKILL.
    async fn crash(&self);
}

fn upstream(node: &impl Node) -> Upstream {
    Upstream::Member { name: node.name(), conn_url: node.conn_url() }
}

fn names(sql: &SqlFacts) -> Vec<&str> {
    sql.slots.iter().map(|slot| slot.name.as_str()).collect()
}

async fn look(node: &impl Node) -> PgState {
    node.pg().observe(LOOK).await
}

/// Looks until `wanted` is true.
async fn see(node: &impl Node, what: &str, wanted: impl Fn(&PgState) -> bool) -> PgState {
    let mut last = None;
    let seen = within(NEVER, async {
        loop {
            let state = look(node).await;
            if wanted(&state) {
                break state;
            }
            last = Some(state);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    match seen.await {
        Some(state) => state,
        None => panic!("{} never: {what}; last seen {last:#?}", node.name()),
    }
}

async fn within<T>(limit: Duration, what: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(limit, what).await.ok()
}

async fn see_rows(node: &impl Node, wanted: u64) {
    let counted = within(NEVER, async {
        while node.rows().await != Ok(wanted) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(counted.await.is_some(), "{} has {:?} rows, not {wanted}", node.name(), node.rows().await);
}

fn writes(timeline: u32) -> impl Fn(&PgState) -> bool {
    move |s| s.sql.as_ref().is_some_and(|sql| !sql.in_recovery && sql.timeline == Some(Timeline(timeline)))
}

fn streams(timeline: u32) -> impl Fn(&PgState) -> bool {
    move |s| {
        let sql = s.sql.as_ref();
        sql.is_some_and(|sql| sql.in_recovery && sql.streaming && sql.timeline == Some(Timeline(timeline)))
    }
}

fn stands_by(s: &PgState) -> bool {
    s.probe == Probe::Accepting && s.sql.as_ref().is_some_and(|sql| sql.in_recovery)
}

fn is_refused<T>(result: &Result<T, PgError>) -> bool {
    matches!(result, Err(PgError::Refused(_)))
}

/// A primary `a` with one row, and a standby of it for each other name, streaming.
async fn cluster<H: Harness>(harness: &mut H, standbys: &[&str]) -> (H::Node, Vec<H::Node>) {
    let a = harness.node("a").await;
    a.pg().bootstrap().await.unwrap();
    a.insert().await.unwrap();
    let mut others = Vec::new();
    for name in standbys {
        let node = harness.node(name).await;
        a.pg().change_slots(&SlotChanges::creating([node.name().slot_name()])).await.unwrap();
        node.pg().clone_from(&a.name(), &a.conn_url()).await.unwrap();
        node.pg().start_standby(&upstream(&a)).await.unwrap();
        see(&node, "streams", streams(1)).await;
        see_rows(&node, 1).await;
        others.push(node);
    }
    (a, others)
}

/// B4, B7: from nothing to a running primary on timeline 1.
pub async fn bootstrap_makes_a_running_primary<H: Harness>(mut harness: H) {
    let a = harness.node("a").await;
    let state = look(&a).await;
    assert_eq!((state.data_dir, state.process, state.probe), (DataDir::Empty, Process::Down, Probe::NotAsked));
    assert!(a.pg().start_primary().await.is_err(), "there is nothing to start");

    a.pg().bootstrap().await.unwrap();
    let state = see(&a, "writes timeline 1", writes(1)).await;
    assert_eq!(state.probe, Probe::Accepting);
    let DataDir::Present(present) = &state.data_dir else { panic!("{:?}", state.data_dir) };
    assert!(!present.standby_signal && !present.backup_label);
    let control = state.control().unwrap();
    assert_eq!((control.state, control.timeline), (ClusterState::InProduction, Timeline(1)));
    assert_eq!(state.local_history, []);
    let sql = state.sql.as_ref().unwrap();
    assert!(sql.flush_lsn > Lsn(0) && sql.upstream.is_none() && sql.receive_lsn.is_none() && !sql.streaming, "{sql:?}");
    assert_eq!(sql.pending_restart, []);

    a.insert().await.unwrap();
    assert_eq!(a.rows().await, Ok(1));
    let again = a.pg().bootstrap().await;
    assert!(is_refused(&again), "there is data: {again:?}");
    assert_eq!(a.rows().await, Ok(1), "and it stays");
    let again = a.pg().start_primary().await;
    assert!(is_refused(&again), "it runs: {again:?}");
}

/// B13, P4: a clone streams from its source over its slot; both sides show it.
pub async fn a_clone_streams_from_its_source<H: Harness>(mut harness: H) {
    let (a, others) = cluster(&mut harness, &["b"]).await;
    let b = &others[0];
    assert_eq!(b.pg().clone_progress(), None, "no clone runs");
    a.insert().await.unwrap();
    see_rows(b, 2).await;
    assert!(b.insert().await.is_err(), "a standby takes no writes");

    let state = look(b).await;
    let DataDir::Present(present) = &state.data_dir else { panic!("{:?}", state.data_dir) };
    assert!(present.standby_signal);
    assert_eq!(state.control().unwrap().state, ClusterState::InArchiveRecovery);
    let sql = state.sql.as_ref().unwrap();
    let address = a.conn_url().trim_start_matches("postgres://").split('/').next().unwrap().to_owned();
    assert_eq!(sql.upstream, Some(address));
    assert!(sql.receive_lsn.is_some() && sql.replay_lsn.is_some() && sql.latest_end_lsn.is_some(), "{sql:?}");
    assert_eq!(sql.flush_lsn, Lsn(0));
    assert!(sql.position() > Lsn(0));

    let state = see(&a, "sends to b", |s| s.sql.as_ref().is_some_and(|sql| !sql.replication.is_empty())).await;
    let sql = state.sql.unwrap();
    let senders: Vec<_> = sql.replication.iter().map(|s| (s.application_name.as_str(), s.state.as_str())).collect();
    assert_eq!(senders, [("b", "streaming")]);
    assert_eq!(names(&sql), ["b"]);
    a.pg().change_slots(&SlotChanges::creating(["b", "c"])).await.unwrap();
    assert_eq!(names(&look(&a).await.sql.unwrap()), ["b", "c"], "what is there already stays");
    assert!(is_refused(&b.pg().clone_from(&a.name(), &a.conn_url()).await), "never over data");
}

/// A failed clone leaves nothing.
pub async fn a_clone_of_a_dead_source_fails_and_leaves_nothing<H: Harness>(mut harness: H) {
    let (a, b) = (harness.node("a").await, harness.node("b").await);
    assert!(b.pg().clone_from(&a.name(), &a.conn_url()).await.is_err());
    assert_eq!(look(&b).await.data_dir, DataDir::Empty);
    assert_eq!(b.pg().clone_progress(), None);
    assert!(is_refused(&b.pg().remove_unfinished().await), "there is nothing of ours to remove");
}

/// A promotion writes the next timeline; its history says where it began; another standby follows.
pub async fn a_promotion_begins_the_next_timeline<H: Harness>(mut harness: H) {
    let (a, others) = cluster(&mut harness, &["b", "c"]).await;
    let (b, c) = (&others[0], &others[1]);
    assert!(is_refused(&a.pg().promote(Timeline(2), None).await), "a primary is not promoted");
    assert!(is_refused(&b.pg().promote(Timeline(1), None).await), "not to its own timeline");
    a.pg().stop(StopMode::Fast, NEVER).await.unwrap();

    b.pg().promote(Timeline(2), None).await.unwrap();
    b.insert().await.expect("promote returns when it can be written");
    let state = see(b, "writes timeline 2", writes(2)).await;
    let history: Vec<_> = state.local_history.iter().map(|line| line.parent).collect();
    assert_eq!(history, [Timeline(1)]);
    let line = &state.local_history[0];
    assert!(line.switched_at > Lsn(0) && line.at.is_some() && line.promoted.is_none(), "{line:?}");
    let DataDir::Present(present) = &state.data_dir else { panic!("{:?}", state.data_dir) };
    assert!(!present.standby_signal);

    b.pg().checkpoint().await.unwrap();
    b.pg().change_slots(&SlotChanges::creating([c.name().slot_name(), a.name().slot_name()])).await.unwrap();
    c.pg().follow(&upstream(b)).await.unwrap();
    see(c, "streams timeline 2", streams(2)).await;
    see_rows(c, 2).await;
    let history: Vec<_> = look(c).await.local_history.iter().map(|line| line.parent).collect();
    assert_eq!(history, [Timeline(1)]);

    // The former primary stopped in good order, so it can follow without more ado.
    a.pg().start_standby(&upstream(b)).await.unwrap();
    see(&a, "streams timeline 2", streams(2)).await;
    see_rows(&a, 2).await;
    assert!(is_refused(&b.pg().follow(&upstream(&a)).await), "a primary follows nobody");
}

/// P4: over slots that were made on a standby the others stream as soon as it is promoted.
pub async fn slots_of_a_standby_outlive_its_promotion<H: Harness>(mut harness: H) {
    let (a, others) = cluster(&mut harness, &["b", "c"]).await;
    let (b, c) = (&others[0], &others[1]);
    assert_eq!(names(&look(b).await.sql.unwrap()), [""; 0], "a clone brings none");
    for _ in 0..2 {
        b.pg().change_slots(&SlotChanges::creating([c.name().slot_name(), a.name().slot_name()])).await.unwrap();
        assert_eq!(names(&look(b).await.sql.unwrap()), ["a", "c"]);
    }
    assert!(streams(1)(&look(b).await), "and it still streams");
    a.pg().stop(StopMode::Fast, NEVER).await.unwrap();
    assert!(
        a.pg().change_slots(&SlotChanges::creating([b.name().slot_name()])).await.is_err(),
        "nobody is there to ask"
    );
    b.pg().promote(Timeline(2), None).await.unwrap();
    c.pg().follow(&upstream(b)).await.unwrap();
    see(c, "streams timeline 2", streams(2)).await;
    b.pg().change_slots(&SlotChanges::creating([c.name().slot_name(), a.name().slot_name()])).await.unwrap();
    assert_eq!(names(&look(b).await.sql.unwrap()), ["a", "c"]);
    b.pg().stop(StopMode::Immediate, NEVER).await.unwrap();
    b.pg().start_primary().await.unwrap();
    see(b, "writes timeline 2", writes(2)).await;
    see(b, "has both slots after a crash", |state| state.sql.as_ref().is_some_and(|sql| names(sql) == ["a", "c"]))
        .await;
}

/// S2: a promised number is taken as promised, whatever lies between, and the others find their way to it.
pub async fn a_promised_timeline_may_skip_numbers<H: Harness>(mut harness: H) {
    let (a, others) = cluster(&mut harness, &["b", "c"]).await;
    let (b, c) = (&others[0], &others[1]);
    a.pg().stop(StopMode::Fast, NEVER).await.unwrap();
    b.pg().promote(Timeline(5), None).await.unwrap();
    b.insert().await.unwrap();
    let state = see(b, "writes timeline 5", writes(5)).await;
    assert_eq!(state.local_history.iter().map(|line| line.parent).collect::<Vec<_>>(), [Timeline(1)]);

    b.pg().change_slots(&SlotChanges::creating([c.name().slot_name(), a.name().slot_name()])).await.unwrap();
    c.pg().follow(&upstream(b)).await.unwrap();
    see(c, "streams timeline 5", streams(5)).await;
    see_rows(c, 2).await;
    for node in [b, c] {
        node.pg().stop(StopMode::Fast, NEVER).await.unwrap();
    }
    b.pg().start_primary().await.unwrap();
    see(b, "writes timeline 5 again", writes(5)).await;
    b.insert().await.unwrap();
    c.pg().start_standby(&upstream(b)).await.unwrap();
    see(c, "streams timeline 5 again", streams(5)).await;
    see_rows(c, 3).await;
    a.pg().start_standby(&upstream(b)).await.unwrap();
    see(&a, "streams timeline 5", streams(5)).await;
    see_rows(&a, 3).await;

    // And from there on as ever.
    b.pg().stop(StopMode::Fast, NEVER).await.unwrap();
    c.pg().promote(Timeline(6), None).await.unwrap();
    let state = see(c, "writes timeline 6", writes(6)).await;
    assert_eq!(state.local_history.iter().map(|line| line.parent).collect::<Vec<_>>(), [Timeline(1), Timeline(5)]);
}

/// A dead postmaster is noticed at once; crash recovery stays on its timeline and keeps every row.
pub async fn crash_recovery_stays_on_its_timeline<H: Harness>(mut harness: H) {
    let (a, _) = cluster(&mut harness, &[]).await;
    let Process::Up { pid } = look(&a).await.process else { panic!("down") };
    assert!(within(Duration::from_millis(100), a.pg().exited()).await.is_none(), "it runs");
    a.crash().await;
    assert!(within(Duration::from_secs(1), a.pg().exited()).await.is_some(), "seen at once");
    let state = look(&a).await;
    assert_eq!((state.process, state.probe, &state.sql), (Process::Down, Probe::NotAsked, &None));
    assert_eq!(state.control().unwrap().state, ClusterState::InProduction);
    assert!(within(Duration::from_millis(100), a.pg().exited()).await.is_none(), "the last look saw none");

    a.pg().start_primary().await.unwrap();
    let state = see(&a, "writes timeline 1", writes(1)).await;
    assert!(matches!(state.process, Process::Up { pid: now } if now != pid));
    assert_eq!(a.rows().await, Ok(1));
    a.insert().await.unwrap();
}

/// How it was stopped is what the control data says; stopping twice is stopping once.
pub async fn the_control_data_tells_how_it_was_stopped<H: Harness>(mut harness: H) {
    let (a, others) = cluster(&mut harness, &["b"]).await;
    let b = &others[0];
    for (mode, expected) in
        [(StopMode::Immediate, ClusterState::InProduction), (StopMode::Fast, ClusterState::ShutDown)]
    {
        a.pg().stop(mode, NEVER).await.unwrap();
        let state = look(&a).await;
        assert_eq!((state.process, state.control().unwrap().state), (Process::Down, expected), "{mode:?}");
        a.pg().stop(mode, NEVER).await.unwrap();
        a.pg().start_primary().await.unwrap();
        see(&a, "writes timeline 1", writes(1)).await;
    }
    b.pg().stop(StopMode::Fast, NEVER).await.unwrap();
    let state = look(b).await;
    assert_eq!(state.control().unwrap().state, ClusterState::ShutDownInRecovery);
    assert!(state.control().unwrap().min_recovery.is_some());
    assert_eq!(a.rows().await, Ok(1));
}

/// C4: a former primary comes back as a standby of nobody, and can be promoted from there.
pub async fn a_standby_of_nobody_waits_and_can_be_promoted<H: Harness>(mut harness: H) {
    let (a, _) = cluster(&mut harness, &[]).await;
    a.pg().stop(StopMode::Immediate, NEVER).await.unwrap();
    a.pg().start_standby(&Upstream::Nobody).await.unwrap();
    let state = see(&a, "stands by", stands_by).await;
    let sql = state.sql.unwrap();
    assert!(sql.upstream.is_none() && !sql.streaming, "{sql:?}");
    assert_eq!((sql.timeline, a.rows().await), (Some(Timeline(1)), Ok(1)));
    assert!(a.insert().await.is_err());
    a.pg().promote(Timeline(2), None).await.unwrap();
    a.insert().await.unwrap();
}

/// A new agent finds the server that the former one left, sees its end, and drives it.
pub async fn a_new_controller_adopts_the_running_server<H: Harness>(mut harness: H) {
    let (a, others) = cluster(&mut harness, &["b"]).await;
    let b = &others[0];
    let Process::Up { pid } = look(b).await.process else { panic!("down") };
    let adopted = b.new_controller();
    let state = adopted.observe(LOOK).await;
    assert_eq!(state.process, Process::Up { pid });
    assert!(streams(1)(&state), "{state:?}");
    adopted.follow(&Upstream::Nobody).await.unwrap();
    see(b, "streams no more", |s| s.sql.as_ref().is_some_and(|sql| !sql.streaming && sql.upstream.is_none())).await;
    adopted.follow(&upstream(&a)).await.unwrap();
    see(b, "streams again", streams(1)).await;
    adopted.stop(StopMode::Fast, NEVER).await.unwrap();
    assert!(within(NEVER, adopted.exited()).await.is_some());
    assert_eq!(adopted.observe(LOOK).await.process, Process::Down);
    assert_eq!(look(b).await.process, Process::Down);
}

/// `a` wrote what `b` never had, crashed, and `b` was promoted and wrote as well.
async fn diverged<H: Harness>(harness: &mut H) -> (H::Node, H::Node) {
    let (a, mut others) = cluster(harness, &["b"]).await;
    let b = others.remove(0);
    b.pg().follow(&Upstream::Nobody).await.unwrap();
    see(&b, "streams no more", |s| s.sql.as_ref().is_some_and(|sql| !sql.streaming)).await;
    for _ in 0..3 {
        a.insert().await.unwrap();
    }
    a.crash().await;
    see(&a, "is down", |s| s.process == Process::Down).await;
    b.pg().promote(Timeline(2), None).await.unwrap();
    b.insert().await.unwrap();
    (a, b)
}

/// X3: of a primary that was shut down in order, the log ends exactly where its successor's timeline begins.
pub async fn a_clean_hand_over_ends_where_the_next_timeline_begins<H: Harness>(mut harness: H) {
    let (a, others) = cluster(&mut harness, &["b"]).await;
    let b = &others[0];
    a.pg().stop(StopMode::Fast, NEVER).await.unwrap();
    let state = look(&a).await;
    let control = state.control().unwrap();
    let end = control.checkpoint_end.expect("the end of the shutdown checkpoint is known");
    assert!(end > control.checkpoint, "{control:?}");
    b.pg().promote(Timeline(2), None).await.unwrap();
    let history = see(b, "writes timeline 2", writes(2)).await.local_history;
    assert_eq!(history.last().unwrap().switched_at, end);
    b.pg().change_slots(&SlotChanges::creating([a.name().slot_name()])).await.unwrap();
    a.pg().start_standby(&upstream(b)).await.unwrap();
    see(&a, "streams", streams(2)).await;
}

/// X6: a crashed primary that wrote what nobody has is recovered and rewound, and follows.
pub async fn a_crashed_primary_is_rewound<H: Harness>(mut harness: H) {
    let (a, b) = diverged(&mut harness).await;
    b.pg().checkpoint().await.unwrap();
    b.pg().change_slots(&SlotChanges::creating([a.name().slot_name()])).await.unwrap();
    a.pg().rewind(&b.name(), &b.conn_url()).await.unwrap();
    let state = look(&a).await;
    assert_eq!(state.control().unwrap().state, ClusterState::InArchiveRecovery, "{state:?}");
    assert!(matches!(&state.data_dir, DataDir::Present(present) if present.backup_label), "{state:?}");
    a.pg().start_standby(&upstream(&b)).await.unwrap();
    see(&a, "streams", streams(2)).await;
    see_rows(&a, 2).await;
    b.insert().await.unwrap();
    see_rows(&a, 3).await;
}

/// X8: what fails before it began leaves the data as it was.
pub async fn a_rewind_without_a_source_changes_nothing<H: Harness>(mut harness: H) {
    let (a, b) = diverged(&mut harness).await;
    assert!(is_refused(&b.pg().rewind(&a.name(), &a.conn_url()).await) || look(&b).await.sql.is_some());
    b.pg().stop(StopMode::Fast, NEVER).await.unwrap();
    a.pg().rewind(&b.name(), &b.conn_url()).await.unwrap_err();
    assert!(matches!(look(&a).await.data_dir, DataDir::Present(_)));
    a.pg().start_primary().await.unwrap();
    see_rows(&a, 4).await;
}

/// X9: room for a clone is made only where no server runs; the old data goes when its replacement streams.
pub async fn diverged_data_makes_room_for_a_clone<H: Harness>(mut harness: H) {
    let (a, b) = diverged(&mut harness).await;
    assert!(is_refused(&b.pg().give_up_data(&a.name(), &a.conn_url()).await), "a server runs");
    b.pg().stop(StopMode::Fast, NEVER).await.unwrap();
    a.pg().give_up_data(&b.name(), &b.conn_url()).await.unwrap_err();
    assert!(matches!(look(&a).await.data_dir, DataDir::Present(_)), "S10: the only other copy does not answer");
    b.pg().start_primary().await.unwrap();
    see(&b, "writes again", writes(2)).await;
    a.pg().give_up_data(&b.name(), &b.conn_url()).await.unwrap();
    let state = look(&a).await;
    assert_eq!((&state.data_dir, state.old_copy), (&DataDir::Empty, true));
    b.pg().change_slots(&SlotChanges::creating([a.name().slot_name()])).await.unwrap();
    a.pg().clone_from(&b.name(), &b.conn_url()).await.unwrap();
    a.pg().start_standby(&upstream(&b)).await.unwrap();
    see(&a, "streams", streams(2)).await;
    a.pg().discard_old_copy().await.unwrap();
    assert!(!look(&a).await.old_copy);
    see_rows(&a, 2).await;
}
