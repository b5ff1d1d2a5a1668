//! The twin's claims, one test each, in virtual time.

use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use regent_core::postgres::{
    ClusterState, ControlData, DataDir, PgState, Probe, Process, SlotChanges, SqlFacts, StopMode, Upstream,
};
use regent_core::units::{Lsn, Timeline};
use tokio::time::{Instant, sleep, timeout};

use super::{
    CHECKPOINT_BYTES, END_OF_RECOVERY_BYTES, FakeNetwork, FakePostgres, Kind, Rejected, Transition, WRITE_BYTES,
};
use crate::{PgError, Postgres};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn url(name: &str) -> String {
    format!("postgres://{name}:5432/postgres")
}

fn from(name: &str) -> Upstream {
    Upstream::Member { name: name.into(), conn_url: url(name) }
}

fn network(names: &[&str]) -> (FakeNetwork, Vec<FakePostgres>) {
    let network = FakeNetwork::new();
    let nodes = names.iter().map(|name| network.add(name, &url(name))).collect();
    (network, nodes)
}

/// `names[0]` is a primary, each other one streams from the one before or from the first.
async fn cluster(names: &[&str], cascade: bool) -> (FakeNetwork, Vec<FakePostgres>) {
    let (network, nodes) = network(names);
    nodes[0].bootstrap().await.unwrap();
    for index in 1..names.len() {
        let source = names[if cascade { index - 1 } else { 0 }];
        nodes[index].clone_from(&source.into(), &url(source)).await.unwrap();
        nodes[index].start_standby(&from(source)).await.unwrap();
    }
    (network, nodes)
}

async fn look(node: &FakePostgres) -> PgState {
    node.observe(SECOND).await
}

async fn facts(node: &FakePostgres) -> SqlFacts {
    look(node).await.sql.unwrap()
}

async fn control(node: &FakePostgres) -> ControlData {
    look(node).await.control().unwrap().clone()
}

fn is_pending(future: impl Future) -> bool {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    pin!(future).poll(&mut context).is_pending()
}

fn names(sql: &SqlFacts) -> Vec<&str> {
    sql.slots.iter().map(|slot| slot.name.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_bootstrap_leaves_a_running_primary_with_an_identity_of_its_own() {
    let (network, nodes) = network(&["a", "b"]);
    assert_eq!(look(&nodes[0]).await.data_dir, DataDir::Empty);
    let began = Instant::now();
    nodes[0].bootstrap().await.unwrap();
    assert_eq!(began.elapsed(), 2 * SECOND);
    let state = look(&nodes[0]).await;
    assert_eq!(state.probe, Probe::Accepting);
    let control = state.control().unwrap();
    assert_eq!((control.state, control.timeline), (ClusterState::InProduction, Timeline(1)));
    let sql = state.sql.as_ref().unwrap();
    assert!(!sql.in_recovery && sql.position() == sql.flush_lsn && sql.flush_lsn > Lsn(0));
    assert_eq!(network.writable_now(), ["a"]);
    assert!(matches!(nodes[0].bootstrap().await, Err(PgError::Refused(_))));

    nodes[1].bootstrap().await.unwrap();
    assert_ne!(self::control(&nodes[0]).await.system_id, self::control(&nodes[1]).await.system_id);
    nodes[1].stop(StopMode::Fast, SECOND).await.unwrap();
    nodes[1].start_standby(&from("a")).await.unwrap();
    assert!(!facts(&nodes[1]).await.streaming, "another system's log cannot be followed");
}

#[tokio::test(start_paused = true)]
async fn a_clone_or_bootstrap_that_is_dropped_leaves_an_unfinished_directory() {
    let (_network, nodes) = network(&["a", "b", "c"]);
    nodes[0].bootstrap().await.unwrap();
    assert!(timeout(SECOND, nodes[1].clone_from(&"a".into(), &url("a"))).await.is_err());
    assert!(timeout(SECOND, nodes[2].bootstrap()).await.is_err());
    for node in &nodes[1..] {
        assert_eq!(look(node).await.data_dir, DataDir::Unfinished);
        assert!(node.start_primary().await.is_err());
        sleep(10 * SECOND).await;
        assert_eq!(look(node).await.data_dir, DataDir::Unfinished);
        node.remove_unfinished().await.unwrap();
        assert_eq!(look(node).await.data_dir, DataDir::Empty);
    }
    assert!(nodes[0].remove_unfinished().await.is_err());
    assert!(nodes[0].can_write());
}

#[tokio::test(start_paused = true)]
async fn a_clone_copies_the_source_as_it_is_at_the_end_and_shows_progress() {
    let (_network, nodes) = network(&["a", "b"]);
    nodes[0].bootstrap().await.unwrap();
    let clone = nodes[1].clone();
    assert_eq!(nodes[1].clone_progress(), None);
    let (result, ()) = tokio::join!(async { clone.clone_from(&"a".into(), &url("a")).await }, async {
        sleep(1500 * MS).await;
        assert_eq!(nodes[1].clone_progress(), Some((500_000_000, Some(1_000_000_000))));
        nodes[0].insert(7).unwrap();
    });
    result.unwrap();
    assert_eq!((nodes[1].records(), nodes[1].clone_progress()), (vec![7], None));
    let DataDir::Present(present) = look(&nodes[1]).await.data_dir else { panic!("nothing was cloned") };
    assert!(present.backup_label && !present.standby_signal);
    assert_eq!(present.control.unwrap().state, ClusterState::InProduction);
    assert!(nodes[1].clone_from(&"a".into(), &url("a")).await.is_err(), "only into an empty directory");
}

#[tokio::test(start_paused = true)]
async fn a_clone_fails_as_soon_as_its_source_is_lost_and_cleans_up() {
    type Fault = fn(&FakeNetwork, &FakePostgres);
    let faults: [(&str, Fault); 3] =
        [("kill", |_, a| a.kill()), ("cut", |network, _| network.cut("b", "a")), ("freeze", |_, a| a.freeze())];
    for (name, fault) in faults {
        let (network, nodes) = network(&["a", "b"]);
        nodes[0].bootstrap().await.unwrap();
        let began = Instant::now();
        let (result, ()) = tokio::join!(async { nodes[1].clone_from(&"a".into(), &url("a")).await }, async {
            sleep(SECOND).await;
            fault(&network, &nodes[0]);
        });
        assert!(matches!(result, Err(PgError::Program { .. })), "{name}: {result:?}");
        assert_eq!((began.elapsed(), look(&nodes[1]).await.data_dir), (SECOND, DataDir::Empty), "{name}");
        assert!(nodes[1].clone_from(&"a".into(), &url("a")).await.is_err(), "{name}");
    }
    let (_network, nodes) = network(&["a", "b"]);
    nodes[0].bootstrap().await.unwrap();
    nodes[1].fail_clones(1);
    assert!(nodes[1].clone_from(&"a".into(), &url("a")).await.is_err());
    assert!(nodes[1].clone_from(&"a".into(), "postgres://nowhere/").await.is_err());
    nodes[1].clone_from(&"a".into(), &url("a")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_start_returns_after_a_second_while_a_long_recovery_goes_on() {
    let (network, nodes) = cluster(&["a"], false).await;
    nodes[0].tune(|timings| timings.recovery = 5 * SECOND);
    nodes[0].kill();
    assert_eq!(control(&nodes[0]).await.state, ClusterState::InProduction);
    let began = Instant::now();
    nodes[0].start_primary().await.unwrap();
    assert_eq!(began.elapsed(), SECOND);
    let state = look(&nodes[0]).await;
    assert_eq!((state.probe, state.sql.clone()), (Probe::Rejecting, None));
    assert_eq!(state.control().unwrap().state, ClusterState::InCrashRecovery);
    assert_eq!(nodes[0].insert(1), Err(Rejected::NotAccepting));
    sleep(4 * SECOND).await;
    nodes[0].insert(1).unwrap();

    nodes[0].stop(StopMode::Fast, SECOND).await.unwrap();
    let began = Instant::now();
    nodes[0].start_primary().await.unwrap();
    assert_eq!(began.elapsed(), 200 * MS, "after a clean stop");
    assert!(nodes[0].start_primary().await.is_err(), "it runs already");
    assert_eq!(network.split_timelines().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn planned_start_failures_and_a_kill_during_a_start_are_errors() {
    let (_network, nodes) = cluster(&["a"], false).await;
    nodes[0].kill();
    nodes[0].fail_starts(1);
    assert!(matches!(nodes[0].start_primary().await, Err(PgError::Program { .. })));
    assert_eq!(look(&nodes[0]).await.process, Process::Down);
    let (started, ()) = tokio::join!(nodes[0].start_primary(), async {
        sleep(100 * MS).await;
        nodes[0].kill();
    });
    assert!(matches!(started, Err(PgError::Program { .. })), "{started:?}");
    nodes[0].start_primary().await.unwrap();
    assert!(nodes[0].can_write());
}

#[tokio::test(start_paused = true)]
async fn a_record_arrives_after_the_delay_of_each_link() {
    let (_network, nodes) = cluster(&["a", "b", "c"], true).await;
    nodes[1].tune(|timings| timings.replication_delay = 100 * MS);
    nodes[2].tune(|timings| timings.replication_delay = 50 * MS);
    sleep(SECOND).await;
    nodes[0].insert(1).unwrap();
    let seen = || (nodes[1].records().len(), nodes[2].records().len());
    assert_eq!(seen(), (0, 0));
    for (wait, counts) in [(99, (0, 0)), (1, (1, 0)), (49, (1, 0)), (1, (1, 1))] {
        sleep(wait * MS).await;
        assert_eq!(seen(), counts);
    }
    let (b, c) = (facts(&nodes[1]).await, facts(&nodes[2]).await);
    assert!(b.streaming && c.streaming && b.in_recovery && c.receive_lsn == c.replay_lsn);
    assert_eq!(b.position(), facts(&nodes[0]).await.position());
    assert_eq!((b.upstream.as_deref(), c.upstream.as_deref()), (Some("a:5432"), Some("b:5432")));
    assert_eq!(b.replication[0].application_name, "c");
    assert_eq!(nodes[1].insert(2), Err(Rejected::ReadOnly));
}

#[tokio::test(start_paused = true)]
async fn a_standby_ahead_of_its_upstream_streams_from_the_moment_the_upstream_has_caught_up() {
    let (_network, nodes) = cluster(&["a", "b", "c"], false).await;
    nodes[1].tune(|timings| timings.replication_delay = 200 * MS);
    nodes[2].tune(|timings| timings.replication_delay = 10 * MS);
    sleep(SECOND).await;
    nodes[0].insert(1).unwrap();
    sleep(100 * MS).await;
    nodes[2].follow(&from("b")).await.unwrap();
    nodes[0].insert(2).unwrap();
    assert!(nodes[2].records() == [1] && !facts(&nodes[2]).await.streaming);
    // Nobody looks while b gets the first write and then the second.
    sleep(210 * MS).await;
    assert_eq!((nodes[1].records(), nodes[2].records()), (vec![1, 2], vec![1, 2]));
}

#[tokio::test(start_paused = true)]
async fn what_was_delivered_before_a_crash_or_a_cut_stays_and_nothing_else_comes() {
    for cut in [false, true] {
        let (network, nodes) = cluster(&["a", "b"], false).await;
        nodes[1].tune(|timings| timings.replication_delay = 100 * MS);
        sleep(SECOND).await;
        nodes[0].insert(1).unwrap();
        sleep(60 * MS).await;
        nodes[0].insert(2).unwrap();
        sleep(50 * MS).await;
        if cut {
            network.cut("a", "b")
        } else {
            nodes[0].kill()
        }
        sleep(10 * SECOND).await;
        assert_eq!(nodes[1].records(), [1], "cut: {cut}");
        assert_eq!(facts(&nodes[1]).await.streaming, cut, "a receiver does not notice a cut at once, but a crash");
        if cut {
            network.heal("a", "b");
            sleep(99 * MS).await;
            assert_eq!(nodes[1].records(), [1]);
            sleep(MS).await;
        } else {
            nodes[0].start_primary().await.unwrap();
            sleep(100 * MS).await;
        }
        assert_eq!(nodes[1].records(), [1, 2]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_receiver_notices_silence_after_its_timeout() {
    let (network, nodes) = cluster(&["a", "b"], false).await;
    network.cut("a", "b");
    nodes[0].kill();
    sleep(59 * SECOND).await;
    assert!(facts(&nodes[1]).await.streaming);
    sleep(SECOND).await;
    assert!(!facts(&nodes[1]).await.streaming);
    assert!(facts(&nodes[1]).await.receive_lsn.is_some(), "there was a receiver");
}

#[tokio::test(start_paused = true)]
async fn a_fast_stop_hands_the_shutdown_checkpoint_to_its_standbys_first() {
    let (network, nodes) = cluster(&["a", "b", "c"], false).await;
    nodes[1].tune(|timings| timings.replication_delay = 300 * MS);
    sleep(SECOND).await;
    nodes[0].insert(1).unwrap();
    let began = Instant::now();
    let (stopped, ()) = tokio::join!(nodes[0].stop(StopMode::Fast, 5 * SECOND), async {
        sleep(10 * MS).await;
        assert_eq!(nodes[0].insert(2), Err(Rejected::NotAccepting), "clients are gone at once");
        assert_eq!(control(&nodes[0]).await.state, ClusterState::ShuttingDown);
        sleep(200 * MS).await;
        let state = look(&nodes[0]).await;
        assert_eq!(state.control().unwrap().state, ClusterState::ShutDown);
        assert!(state.is_up() && state.probe == Probe::Rejecting, "it waits for its WAL senders");
    });
    stopped.unwrap();
    assert_eq!(began.elapsed(), 400 * MS);
    let (left, end) = (control(&nodes[0]).await, nodes[0].end());
    assert_eq!((end, end), (nodes[1].end(), nodes[2].end()));
    assert_eq!(left.checkpoint.0 + CHECKPOINT_BYTES, end.unwrap().1.0);

    // The old primary is no further than the switch point and follows the new one.
    nodes[1].promote(Timeline(2), None).await.unwrap();
    nodes[2].follow(&from("b")).await.unwrap();
    nodes[0].start_standby(&from("b")).await.unwrap();
    nodes[1].insert(3).unwrap();
    sleep(SECOND).await;
    for node in [&nodes[0], &nodes[2]] {
        assert_eq!((node.records(), facts(node).await.timeline), (vec![1, 3], Some(Timeline(2))));
    }
    let history = look(&nodes[0]).await.local_history;
    assert_eq!((history.len(), history[0].parent, history[0].switched_at), (1, Timeline(1), end.unwrap().1));
    assert!(network.split_timelines().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_fast_stop_waits_for_a_silent_standby_until_the_sender_times_out() {
    let (network, nodes) = cluster(&["a", "b"], false).await;
    network.cut("a", "b");
    let began = Instant::now();
    let stopped = nodes[0].stop(StopMode::Fast, 10 * SECOND).await;
    assert!(matches!(stopped, Err(PgError::Timeout { .. })), "{stopped:?}");
    nodes[0].observe(SECOND).await;
    nodes[0].exited().await;
    assert_eq!(began.elapsed(), 60 * SECOND);
    assert!(nodes[1].end() < nodes[0].end());
}

#[tokio::test(start_paused = true)]
async fn a_promotion_makes_the_timeline_that_was_asked_for() {
    let (_network, nodes) = cluster(&["a", "b"], false).await;
    nodes[0].insert(1).unwrap();
    sleep(SECOND).await;
    nodes[0].kill();
    let switched_at = nodes[1].end().unwrap().1;
    assert!(matches!(nodes[1].promote(Timeline(1), None).await, Err(PgError::Refused(_))));
    let began = Instant::now();
    nodes[1].promote(Timeline(7), None).await.unwrap();
    assert_eq!(began.elapsed(), 100 * MS);
    assert!(nodes[1].can_write());
    let state = look(&nodes[1]).await;
    assert_eq!(state.sql.as_ref().unwrap().timeline, Some(Timeline(7)));
    assert_eq!(state.sql.as_ref().unwrap().flush_lsn.0, switched_at.0 + END_OF_RECOVERY_BYTES);
    assert_eq!((state.local_history[0].parent, state.local_history[0].switched_at), (Timeline(1), switched_at));
    assert!(state.local_history[0].at.as_ref().unwrap().starts_with("2026-01-01T00:00:"));
    let before = state.control().unwrap();
    assert_eq!((before.state, before.timeline), (ClusterState::InProduction, Timeline(1)));
    nodes[1].checkpoint().await.unwrap();
    let after = control(&nodes[1]).await;
    assert_eq!((after.timeline, after.min_recovery), (Timeline(7), None));
    assert!(nodes[1].promote(Timeline(8), None).await.is_err(), "it is a primary");
}

#[tokio::test(start_paused = true)]
async fn a_server_killed_while_it_is_promoted_is_still_a_standby() {
    let (network, nodes) = cluster(&["a", "b"], false).await;
    let (promoted, ()) = tokio::join!(nodes[1].promote(Timeline(2), None), async {
        sleep(50 * MS).await;
        nodes[1].kill();
    });
    assert!(promoted.is_err());
    let DataDir::Present(present) = look(&nodes[1]).await.data_dir else { panic!("it had a data directory") };
    assert!(present.standby_signal);
    assert_eq!(nodes[1].end().unwrap().0, Timeline(1));
    assert_eq!(network.writable_now(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_node_beyond_the_switch_point_does_not_stream() {
    let (network, nodes) = cluster(&["a", "b", "c"], false).await;
    network.cut("a", "b");
    nodes[0].insert(1).unwrap();
    sleep(SECOND).await;
    nodes[1].promote(Timeline(2), None).await.unwrap();
    nodes[0].kill();
    nodes[0].start_standby(&from("b")).await.unwrap();
    nodes[2].follow(&from("b")).await.unwrap();
    network.heal("a", "b");
    sleep(SECOND).await;
    let switch = look(&nodes[1]).await.local_history[0].switched_at;
    for node in [&nodes[0], &nodes[2]] {
        let sql = facts(node).await;
        assert!(!sql.streaming && sql.position() > switch, "{sql:?}");
        assert_eq!((sql.timeline, node.records()), (Some(Timeline(1)), vec![1]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_standby_started_as_a_primary_splits_its_timeline_and_the_checks_see_it() {
    let (network, nodes) = cluster(&["a", "b"], false).await;
    nodes[0].insert(1).unwrap();
    sleep(SECOND).await;
    nodes[1].stop(StopMode::Fast, SECOND).await.unwrap();
    assert!(network.split_timelines().is_empty());
    nodes[1].start_primary().await.unwrap();
    assert_eq!(nodes[1].end().unwrap().0, Timeline(1));
    assert_eq!(network.writable_now(), ["a", "b"]);
    for (node, id) in [(&nodes[0], 2), (&nodes[1], 3)] {
        node.insert(id).unwrap();
    }
    assert_eq!(network.split_timelines().len(), 1);
    let writers = network.timeline_writers();
    assert_eq!(writers.values().map(|nodes| nodes.len()).collect::<Vec<_>>(), [2]);
}

#[tokio::test(start_paused = true)]
async fn two_promotions_to_one_number_split_it() {
    let (network, nodes) = cluster(&["a", "b", "c"], false).await;
    nodes[0].kill();
    nodes[1].promote(Timeline(2), None).await.unwrap();
    assert!(network.split_timelines().is_empty());
    nodes[2].promote(Timeline(2), None).await.unwrap();
    assert_eq!(network.split_timelines().into_iter().map(|(_, timeline)| timeline).collect::<Vec<_>>(), [Timeline(2)]);
}

#[tokio::test(start_paused = true)]
async fn the_control_file_says_how_a_server_ended() {
    use ClusterState::*;
    type End = (&'static str, bool, Option<StopMode>, ClusterState);
    let cases: [End; 6] = [
        ("primary, fast", false, Some(StopMode::Fast), ShutDown),
        ("primary, immediate", false, Some(StopMode::Immediate), InProduction),
        ("primary, killed", false, None, InProduction),
        ("standby, fast", true, Some(StopMode::Fast), ShutDownInRecovery),
        ("standby, immediate", true, Some(StopMode::Immediate), InArchiveRecovery),
        ("standby, killed", true, None, InArchiveRecovery),
    ];
    for (name, standby, mode, expected) in cases {
        let (_network, nodes) = cluster(&["a", "b"], false).await;
        let node = &nodes[usize::from(standby)];
        let early = node.end();
        nodes[0].insert(1).unwrap();
        sleep(SECOND).await;
        let late = node.end();
        match mode {
            Some(mode) => node.stop(mode, SECOND).await.unwrap(),
            None => node.kill(),
        }
        let state = look(node).await;
        let control = state.control().unwrap();
        assert_eq!((control.state, state.process, state.probe), (expected, Process::Down, Probe::NotAsked), "{name}");
        let clean = mode == Some(StopMode::Fast);
        let min_recovery = if clean { late } else { early };
        assert_eq!(control.min_recovery, min_recovery.filter(|_| standby), "{name}");
        let DataDir::Present(present) = &state.data_dir else { panic!("{name}") };
        assert_eq!((present.standby_signal, present.backup_label), (standby, false), "{name}");
        assert_eq!(node.records(), [1], "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_point_moves_the_control_file_of_a_standby() {
    let (_network, nodes) = cluster(&["a", "b"], false).await;
    nodes[0].insert(1).unwrap();
    nodes[0].checkpoint().await.unwrap();
    sleep(SECOND).await;
    assert_eq!(control(&nodes[1]).await.min_recovery, nodes[1].end());
    assert_eq!(control(&nodes[1]).await.checkpoint, control(&nodes[0]).await.checkpoint);
    nodes[0].insert(2).unwrap();
    sleep(SECOND).await;
    assert!(control(&nodes[1]).await.min_recovery < nodes[1].end());
    nodes[1].checkpoint().await.unwrap();
    assert_eq!(control(&nodes[1]).await.min_recovery, nodes[1].end());
}

#[tokio::test(start_paused = true)]
async fn a_frozen_server_is_silent_and_neither_writes_nor_sends_nor_stops() {
    let (network, nodes) = cluster(&["a", "b"], false).await;
    nodes[0].freeze();
    assert_eq!(nodes[0].insert(1), Err(Rejected::NoAnswer));
    assert!(network.writable_now().is_empty());
    let began = Instant::now();
    let state = nodes[0].observe(3 * SECOND).await;
    assert_eq!((began.elapsed(), state.probe, state.sql), (3 * SECOND, Probe::Silent, None));
    assert!(matches!(state.data_dir, DataDir::Present(_)) && matches!(state.process, Process::Up { .. }));
    assert!(nodes[0].checkpoint().await.is_err());
    assert!(nodes[0].stop(StopMode::Fast, SECOND).await.is_err());
    nodes[0].thaw();
    assert!(!nodes[0].can_write(), "the stop came first");
    nodes[0].exited().await;
    assert_eq!(control(&nodes[0]).await.state, ClusterState::ShutDown);

    nodes[1].freeze();
    let began = Instant::now();
    nodes[1].stop(StopMode::Immediate, 2 * SECOND).await.unwrap();
    assert_eq!((began.elapsed(), look(&nodes[1]).await.process), (2 * SECOND, Process::Down), "SIGKILL works");
}

#[tokio::test(start_paused = true)]
async fn a_freeze_in_the_middle_of_a_start_or_promotion_delays_it() {
    let (_network, nodes) = cluster(&["a", "b"], false).await;
    nodes[0].kill();
    let (started, ()) = tokio::join!(nodes[0].start_primary(), async {
        sleep(100 * MS).await;
        nodes[0].freeze();
    });
    started.unwrap();
    sleep(10 * SECOND).await;
    nodes[0].thaw();
    assert!(nodes[0].can_write());

    let (promoted, ()) = tokio::join!(nodes[1].promote(Timeline(2), None), async {
        nodes[1].freeze();
        sleep(5 * SECOND).await;
        assert_eq!(nodes[1].end().unwrap().0, Timeline(1));
        nodes[1].thaw();
    });
    promoted.unwrap();
    assert!(nodes[1].can_write());
}

#[tokio::test(start_paused = true)]
async fn a_hung_disk_is_unreadable_and_stops_everything_but_a_kill() {
    let (_network, nodes) = cluster(&["a", "b"], false).await;
    nodes[0].hang_disk(true);
    let began = Instant::now();
    let state = nodes[0].observe(2 * SECOND).await;
    assert_eq!((began.elapsed(), state.probe), (2 * SECOND, Probe::Silent));
    assert!(matches!(state.data_dir, DataDir::Unreadable(_)) && state.local_history.is_empty());
    assert!(!nodes[0].can_write());
    nodes[0].stop(StopMode::Immediate, 5 * SECOND).await.unwrap();
    nodes[0].hang_disk(false);
    assert_eq!(control(&nodes[0]).await.state, ClusterState::InProduction);
}

#[tokio::test(start_paused = true)]
async fn exited_fires_for_the_postmaster_that_was_seen() {
    let (_network, nodes) = cluster(&["a"], false).await;
    assert!(is_pending(nodes[0].exited()), "nothing was looked at");
    look(&nodes[0]).await;
    let clone = nodes[0].clone();
    let began = Instant::now();
    tokio::join!(clone.exited(), async {
        sleep(SECOND).await;
        nodes[0].kill();
    });
    assert_eq!(began.elapsed(), SECOND);
    nodes[0].start_primary().await.unwrap();
    nodes[0].exited().await;
    look(&nodes[0]).await;
    assert!(is_pending(nodes[0].exited()));
    nodes[0].kill();
    look(&nodes[0]).await;
    assert!(is_pending(nodes[0].exited()), "the last look saw none");
}

#[tokio::test(start_paused = true)]
async fn observation_takes_its_time_but_not_more_than_allowed() {
    let (_network, nodes) = cluster(&["a"], false).await;
    nodes[0].tune(|timings| timings.observe = 2 * SECOND);
    for (within, took, probe) in [(3, 2, Probe::Accepting), (2, 2, Probe::Accepting), (1, 1, Probe::Silent)] {
        let began = Instant::now();
        let state = nodes[0].observe(within * SECOND).await;
        assert_eq!((began.elapsed(), state.probe, state.sql.is_some()), (took * SECOND, probe, probe != Probe::Silent));
    }
}

#[tokio::test(start_paused = true)]
async fn observers_see_every_instant_in_order_however_late_the_world_is_looked_at() {
    let (network, nodes) = cluster(&["a", "b"], false).await;
    let seen = Rc::new(RefCell::new(Vec::new()));
    let (log, world) = (seen.clone(), network.clone());
    let epoch = network.now();
    network.on_transition(Box::new(move |node, transition| {
        let millis = (world.now() - epoch).as_millis();
        log.borrow_mut().push((millis, node.to_owned(), transition, world.writable_now().len()));
    }));
    // Signals only; nobody waits for what follows.
    assert!(is_pending(nodes[1].promote(Timeline(2), None)));
    assert!(is_pending(nodes[0].stop(StopMode::Immediate, SECOND)));
    sleep(10 * SECOND).await;
    assert_eq!(network.writable_now(), ["b"]);
    use Transition::*;
    let expected = [
        (0, "a", Stopping, 0),
        (0, "a", NotWritable, 0),
        (20, "a", Stopped, 0),
        (100, "b", Promoted, 1),
        (100, "b", Writable, 1),
    ];
    assert_eq!(*seen.borrow(), expected.map(|(at, node, what, writable)| (at, node.to_owned(), what, writable)));
    let last = network.history().pop().unwrap();
    assert_eq!((last.kind, last.at - epoch, last.node.as_str()), (Kind::EndOfRecovery, 100 * MS, "b"));
}

#[tokio::test(start_paused = true)]
async fn drive_calls_observers_in_time() {
    let (network, nodes) = cluster(&["a", "b"], false).await;
    let at = Rc::new(RefCell::new(None));
    let seen = at.clone();
    network.on_transition(Box::new(move |_, transition| {
        if transition == Transition::Promoted {
            *seen.borrow_mut() = Some(Instant::now());
        }
    }));
    nodes[0].kill();
    let began = Instant::now();
    assert!(is_pending(nodes[1].promote(Timeline(2), None)));
    assert!(timeout(SECOND, network.drive()).await.is_err());
    assert_eq!(*at.borrow(), Some(began + 100 * MS));
}

#[tokio::test(start_paused = true)]
async fn dropping_a_stop_or_start_does_not_undo_it() {
    let (_network, nodes) = cluster(&["a"], false).await;
    assert!(is_pending(nodes[0].stop(StopMode::Fast, SECOND)));
    sleep(SECOND).await;
    assert_eq!(look(&nodes[0]).await.process, Process::Down);
    assert!(is_pending(nodes[0].start_primary()));
    sleep(SECOND).await;
    assert!(nodes[0].can_write());
}

#[tokio::test(start_paused = true)]
async fn an_immediate_stop_overtakes_a_fast_one_and_a_start() {
    let (network, nodes) = cluster(&["a", "b"], false).await;
    network.cut("a", "b");
    assert!(nodes[0].stop(StopMode::Fast, 2 * SECOND).await.is_err());
    nodes[0].stop(StopMode::Immediate, SECOND).await.unwrap();
    assert_eq!(control(&nodes[0]).await.state, ClusterState::ShutDown, "the checkpoint was written before");
    nodes[0].stop(StopMode::Immediate, SECOND).await.unwrap();

    nodes[1].kill();
    let (started, stopped) = tokio::join!(nodes[1].start_standby(&Upstream::Nobody), async {
        sleep(10 * MS).await;
        nodes[1].stop(StopMode::Fast, SECOND).await
    });
    stopped.unwrap();
    assert!(started.is_err());
    assert_eq!(control(&nodes[1]).await.state, ClusterState::InArchiveRecovery);
}

#[tokio::test(start_paused = true)]
async fn following_nobody_ends_the_stream_and_slots_are_kept() {
    let (_network, nodes) = cluster(&["a", "b"], false).await;
    nodes[1].follow(&Upstream::Nobody).await.unwrap();
    nodes[0].insert(1).unwrap();
    sleep(SECOND).await;
    let sql = facts(&nodes[1]).await;
    assert_eq!((sql.streaming, sql.upstream, nodes[1].records().len()), (false, None, 0));
    assert!(nodes[0].follow(&from("b")).await.is_err(), "a primary follows nobody");

    nodes[0].change_slots(&SlotChanges::creating(["b", "c"])).await.unwrap();
    nodes[0].change_slots(&SlotChanges::creating(["c"])).await.unwrap();
    nodes[0].kill();
    assert!(nodes[0].change_slots(&SlotChanges::default()).await.is_err());
    nodes[0].start_primary().await.unwrap();
    assert_eq!(names(&facts(&nodes[0]).await), ["b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn writes_have_a_size_and_an_id() {
    let (network, nodes) = cluster(&["a"], false).await;
    let first = nodes[0].insert(1).unwrap();
    assert_eq!(nodes[0].insert(2).unwrap().0, first.0 + WRITE_BYTES);
    assert_eq!(nodes[0].insert_bytes(3, 1 << 20).unwrap().0, first.0 + WRITE_BYTES + (1 << 20));
    let kinds: Vec<_> = network.history().into_iter().map(|written| written.kind).collect();
    assert_eq!(kinds, [Kind::Checkpoint, Kind::Write(1), Kind::Write(2), Kind::Write(3)]);
    assert_eq!(network.node("a").unwrap().records(), [1, 2, 3]);
    assert_eq!(nodes[0].select(), Ok(vec![1, 2, 3]));
    nodes[0].freeze();
    assert_eq!((nodes[0].select(), nodes[0].insert(4)), (Err(Rejected::NoAnswer), Err(Rejected::NoAnswer)));
    assert!(network.node("x").is_none());
    nodes[0].kill();
    assert_eq!((nodes[0].select(), nodes[0].insert(4)), (Err(Rejected::Refused), Err(Rejected::Refused)));
}
