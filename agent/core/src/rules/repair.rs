//! A log that is not the cluster's: how that is found out, and the ladder back.
//!
//! ```text
//!   start ──► pg_rewind (TRIES times against one leader) ──► clone in place of what is here ──► down, with a reason
//!     rank falls with every step; it rises again only when the member streams, or another member leads
//! ```
//!
//! Missing log is fetched by pg_rewind itself, through `restore_command`. Nothing is given up unless the operator allowed it
//! beforehand and another member runs as the primary (S10).

use std::time::Duration;

use super::follower::{just_failed, serves};
use crate::cluster::ClusterView;
use crate::plan::{Lease, Move, Plan, Verdict};
use crate::postgres::{ClusterState, DataDir, Job, StopMode};
use crate::snapshot::{Seat, Snapshot};
use crate::units::{Lsn, MemberName, Timeline};

/// How often pg_rewind is tried against one leader before the ladder goes on.
const TRIES: u32 = 3;
/// How soon to look again at something that changes without an event.
const SOON: Duration = Duration::from_millis(500);
/// What is left for a human.
pub(super) const BY_HAND: &str =
    "Save what it alone has, if you need that; then empty the data directory to have it cloned again";

/// What the cluster's history says of a log that ends at `lsn` on `timeline`.
enum Ancestry {
    /// It is part of the leader's log.
    Shared,
    /// It goes on where the leader's log branched off: these bytes are nobody else's.
    Diverged { forked_at: Option<Lsn> },
    /// Cannot be told from what is known.
    Unclear,
}

/// X3, from the history that the leader published. The comparison is with the line of the own timeline.
fn ancestry(view: &ClusterView, cluster: Timeline, own: Timeline, lsn: Lsn, at_fork_is_too_far: bool) -> Ancestry {
    match own.cmp(&cluster) {
        std::cmp::Ordering::Equal => return Ancestry::Shared,
        std::cmp::Ordering::Greater => return Ancestry::Diverged { forked_at: None },
        std::cmp::Ordering::Less => {}
    }
    let lines = view.history.as_deref().unwrap_or_default();
    match lines.iter().find(|line| line.parent == own) {
        Some(line) if lsn > line.switched_at || (at_fork_is_too_far && lsn == line.switched_at) => {
            Ancestry::Diverged { forked_at: Some(line.switched_at) }
        }
        Some(_) => Ancestry::Shared,
        // The line is missing: either this history is complete without it, or its leader has not written it yet.
        None if tells_all(view, cluster) => Ancestry::Diverged { forked_at: None },
        None => Ancestry::Unclear,
    }
}

/// Does the published history reach up to where `cluster` began? Its last line then names the timeline that `cluster` branched
/// off: the one before by number, as PostgreSQL counts, or the one that the promise of a skipped number names.
fn tells_all(view: &ClusterView, cluster: Timeline) -> bool {
    let Some(last) = view.history.as_deref().and_then(<[_]>::last) else { return false };
    let promised = view.promise.as_ref().map(|key| &key.promise).filter(|promise| promise.position.timeline == cluster);
    last.parent.next() == cluster || promised.is_some_and(|promise| promise.parent == last.parent)
}

/// Where the local log ends for certain, and whether an end exactly at a fork is already beyond it.
///
/// A former primary that shut down ended its log with its checkpoint; where that record ends is read from the log itself.
/// While that cannot be read, only that it lies *behind* `checkpoint` is known. What a crashed one wrote after its last
/// checkpoint is known only once it has been recovered.
pub(super) fn local_end(s: &Snapshot) -> Option<(Timeline, Lsn, bool)> {
    if let Some(sql) = s.standby() {
        return Some((sql.timeline?, sql.position(), false));
    }
    let control = s.postgres.control().filter(|_| !s.postgres.is_up())?;
    Some(match (control.state, control.min_recovery, control.checkpoint_end) {
        (ClusterState::ShutDownInRecovery | ClusterState::InArchiveRecovery, Some((timeline, lsn)), _) => {
            (timeline.max(control.timeline), lsn, false)
        }
        (ClusterState::ShutDown, _, Some(end)) => (control.timeline, end, false),
        (
            ClusterState::ShutDown
            | ClusterState::ShutDownInRecovery
            | ClusterState::ShuttingDown
            | ClusterState::InCrashRecovery
            | ClusterState::InArchiveRecovery
            | ClusterState::InProduction
            | ClusterState::StartingUp,
            _,
            _,
        ) => (control.timeline, control.checkpoint, true),
    })
}

/// The reason why this member's log cannot follow the cluster's, if it is certain.
pub(super) fn divergence(s: &Snapshot, cluster: Timeline) -> Option<String> {
    let (own, lsn, at_fork_is_too_far) = local_end(s)?;
    match ancestry(s.view()?, cluster, own, lsn, at_fork_is_too_far) {
        Ancestry::Shared | Ancestry::Unclear => None,
        Ancestry::Diverged { forked_at } => {
            let fork =
                forked_at.map(|at| format!("forked off at {at}")).unwrap_or_else(|| "does not contain it".into());
            Some(format!("the local log ends at {lsn} on timeline {own}, but the cluster's timeline {cluster} {fork}"))
        }
    }
}

/// The leader, once it is a primary and says so (X1: before that its timeline is still its old one).
struct Source<'a> {
    name: &'a MemberName,
    timeline: Timeline,
    /// Its address, while it runs.
    conn_url: Option<&'a String>,
    /// Its control file is still that of the old timeline (X4).
    checkpoint_pending: bool,
}

fn source(s: &Snapshot) -> Option<Source<'_>> {
    let (name, leader) = s.view().filter(|_| s.seat() == Seat::Theirs)?.leader_member()?;
    let timeline = leader.timeline.filter(|_| matches!(leader.role.as_str(), "primary" | "master"))?;
    Some(Source { name, timeline, conn_url: serves(leader), checkpoint_pending: leader.checkpoint_pending })
}

/// Another member leads, and says that it is a primary (X1).
pub(super) fn leads_as_primary(s: &Snapshot) -> bool {
    source(s).is_some()
}

/// Down, and a start is no way back. For a crashed primary on an older timeline than the cluster's that is so before it is
/// recovered: a start would replay what the cluster may not have, and with a `restore_command` even turn to the new timeline
/// on top of pages that were written beyond the fork (C3).
fn needs_repair(s: &Snapshot, cluster: Timeline) -> Option<String> {
    let control = s.postgres.control().filter(|_| !s.postgres.is_up())?;
    let crashed = control.state.was_primary() && control.state != ClusterState::ShutDown;
    divergence(s, cluster).or_else(|| {
        (crashed && control.timeline < cluster && rewind_impossible(s).is_none()).then(|| {
            let own = control.timeline;
            format!("it crashed as the primary of timeline {own}, and the cluster is on timeline {cluster}")
        })
    })
}

/// Why pg_rewind is out of the question.
pub(super) fn rewind_impossible(s: &Snapshot) -> Option<&'static str> {
    let DataDir::Present(present) = &s.postgres.data_dir else { return Some("there is nothing to rewind") };
    match &present.control {
        _ if !s.config.use_pg_rewind => Some("postgresql.use_pg_rewind is off"),
        _ if present.backup_label => Some("it is a copy that was never started"),
        Some(control) if control.rewindable => None,
        Some(_) => Some("it had neither data checksums nor wal_log_hints when it last ran, so pg_rewind is impossible"),
        None => Some("its control file cannot be read"),
    }
}

/// How often pg_rewind was tried against this leader.
pub(super) fn tries(s: &Snapshot, leader: &MemberName) -> u32 {
    s.memory.rewinds.as_ref().filter(|rewinds| rewinds.from == *leader).map_or(0, |rewinds| rewinds.tries)
}

/// Rewind to the leader, as soon as its control file tells the truth about its timeline.
pub(super) fn rewind_diverged(s: &Snapshot) -> Option<Verdict> {
    let source = source(s)?;
    let why = needs_repair(s, source.timeline)?;
    if rewind_impossible(s).is_some() {
        return None;
    }
    if tries(s, source.name) >= TRIES {
        return wait_for_verdict(s, &why);
    }
    let (from, Some(conn_url)) = (source.name.clone(), source.conn_url.cloned()) else {
        return Some(Verdict::new(Plan::stay(), format!("{why}; {} does not run", source.name)).again_in(SOON));
    };
    if source.checkpoint_pending {
        let why = format!("{why}; waiting for the checkpoint of {from} on its new timeline");
        return Some(Verdict::new(Plan::stay(), why).again_in(SOON));
    }
    if let Some((wait, cause)) = just_failed(s, |job| matches!(job, Job::Rewind { .. })) {
        return Some(Verdict::new(Plan::stay(), format!("pg_rewind failed: {cause}; trying again")).again_in(wait));
    }
    let why = format!("{why}: rewinding to {from}");
    Some(Verdict::new(Plan::of(Lease::Keep, Move::Rewind { from, conn_url }), why))
}

/// The failure of the last pg_rewind, and how long ago it was.
fn last_failure(s: &Snapshot) -> Option<(&str, Duration)> {
    let last = s.memory.last_job.as_ref().filter(|last| matches!(last.job, Job::Rewind { .. }))?;
    Some((last.error.as_deref()?, s.now.since(last.at)))
}

/// Did pg_rewind fail, or its source? A leader that still leads a whole lease later was well (X8).
fn wait_for_verdict(s: &Snapshot, why: &str) -> Option<Verdict> {
    let (cause, ago) = last_failure(s)?;
    let left = s.config.ttl.saturating_sub(ago);
    let why = format!("{why}; pg_rewind failed {TRIES} times: {cause}; waiting to see whether its source was well");
    (!left.is_zero()).then(|| Verdict::new(Plan::stay(), why).again_in(left))
}

/// pg_rewind failed, or is impossible, and the operator allowed a clone in the place of the local data.
pub(super) fn give_up_diverged_data(s: &Snapshot) -> Option<Verdict> {
    let source = source(s).filter(|_| !s.postgres.is_up())?;
    let (from, conn_url) = (source.name.clone(), source.conn_url.cloned()?);
    let half = s.postgres.data_dir == DataDir::HalfRewound;
    let why = if half { "pg_rewind did not end".to_owned() } else { needs_repair(s, source.timeline)? };
    let failed = half || tries(s, source.name) >= TRIES;
    let allowed = s.config.remove_on_divergence || failed && s.config.remove_on_rewind_failure;
    if !allowed || !failed && rewind_impossible(s).is_none() {
        return None;
    }
    if let Some((wait, cause)) = just_failed(s, |job| *job == Job::GiveUpData) {
        return Some(Verdict::new(Plan::stay(), format!("could not make room for a clone: {cause}")).again_in(wait));
    }
    let why = format!("{why}, and pg_rewind cannot help: making room for a clone, as the configuration allows");
    Some(Verdict::new(Plan::of(Lease::Keep, Move::GiveUpData { from, conn_url }), why))
}

/// Down, with a log that the cluster does not have, and no rung left: stay down and say so.
pub(super) fn stay_down_diverged(s: &Snapshot) -> Option<Verdict> {
    let why = needs_repair(s, source(s)?.timeline)?;
    let failure = || {
        let cause = last_failure(s).map_or("the log says why", |(cause, _)| cause);
        format!("pg_rewind was tried {TRIES} times in vain: {cause}")
    };
    let no_rewind = rewind_impossible(s).map_or_else(failure, str::to_owned);
    Some(Verdict::new(Plan::stay(), format!("{why}; {no_rewind}. Nothing was removed. {BY_HAND}")))
}

/// It runs, and its log is not the cluster's: it will never stream. Down with a reason is better than up and stale.
pub(super) fn stop_diverged(s: &Snapshot) -> Option<Verdict> {
    let why = divergence(s, source(s)?.timeline)?;
    Some(Verdict::new(Plan::of(Lease::Keep, Move::Stop(StopMode::Fast)), why))
}

/// The clone streams: what was moved aside for it is needed no more.
pub(super) fn discard_old_copy(s: &Snapshot) -> Option<Verdict> {
    let streams = s.standby().is_some_and(|sql| sql.streaming) && s.job.is_none();
    let refused = just_failed(s, |job| *job == Job::DiscardOldCopy).is_some();
    (streams && s.postgres.old_copy && !refused).then(|| {
        let why = "this copy streams: removing the old one that was moved aside";
        Verdict::new(Plan::of(Lease::Keep, Move::DiscardOldCopy), why)
    })
}

#[cfg(test)]
mod tests {
    use crate::fixture::{Builder, secs, standby};
    use crate::memory::Rewinds;
    use crate::plan::Move;
    use crate::postgres::{ClusterState, DataDir, FinishedJob, Job};
    use crate::rules::decide;
    use crate::snapshot::Snapshot;
    use crate::units::{Lsn, Timeline};

    /// Leader b is primary on timeline 2, which forked off timeline 1 at 1000.
    fn after_failover() -> Builder {
        standby().cluster_on_timeline(2, &[(1, 1_000)])
    }

    #[test]
    fn a_stopped_former_primary_rejoins_only_when_its_checkpoint_lies_before_the_fork() {
        for (state, checkpoint, rule) in [
            (ClusterState::ShutDown, 999, "start_as_standby"),
            (ClusterState::ShutDown, 1_000, "stay_down_diverged"),
            (ClusterState::ShutDown, 1_001, "stay_down_diverged"),
            (ClusterState::InProduction, 900, "start_as_standby"), // replay will tell
            (ClusterState::InProduction, 1_500, "stay_down_diverged"),
        ] {
            let s = after_failover().on_timeline(1).down().control(state, checkpoint).build();
            assert_eq!(decide(&s).rule, rule, "{state:?} at {checkpoint}");
        }
    }

    #[test]
    fn a_running_standby_beyond_the_fork_is_stopped_and_one_before_it_follows() {
        for (lsn, rule) in [(999, "stay_standby"), (1_000, "stay_standby"), (1_001, "stop_diverged")] {
            let s = after_failover().on_timeline(1).at(Lsn(lsn)).build();
            assert_eq!(decide(&s).rule, rule, "at {lsn}");
        }
        let lost_timeline = after_failover().on_timeline(3).at(Lsn(10)).build();
        assert_eq!(decide(&lost_timeline).rule, "stop_diverged", "a timeline that the cluster does not know");
        let not_yet_primary = after_failover().on_timeline(3).member("b", |m| m.role = "replica".into()).build();
        assert_eq!(decide(&not_yet_primary).rule, "stay_standby", "no verdict before the leader is a primary (X1)");
    }

    #[test]
    fn a_timeline_that_history_skips_is_diverged() {
        let s = || standby().cluster_on_timeline(3, &[(1, 1_000)]).on_timeline(2).at(Lsn(1_100));
        assert_eq!(
            decide(&s().build()).rule,
            "stay_standby",
            "unclear: the leader may not have written its history yet"
        );
        let skipped = s().promised("b", 3).with(|s| {
            let key = s.dcs.as_mut().expect("reachable").promise.as_mut().expect("promised");
            key.promise.parent = Timeline(1);
        });
        assert_eq!(decide(&skipped).rule, "stop_diverged", "timeline 3 was promised as a branch of 1");
        let s = standby().cluster_on_timeline(4, &[(1, 1_000), (3, 2_000)]).on_timeline(2).at(Lsn(1_100));
        assert_eq!(decide(&s.build()).rule, "stop_diverged");
    }

    #[test]
    fn unclear_ancestry_is_no_verdict() {
        let s = standby().cluster_on_timeline(2, &[]).on_timeline(1).at(Lsn(5_000)).build();
        assert_eq!(decide(&s).rule, "stay_standby");
        assert_eq!(s.own_timeline(), Some(Timeline(1)));
    }

    /// Down as a former primary whose log goes beyond the fork.
    fn diverged() -> Builder {
        after_failover().on_timeline(1).down().control(ClusterState::ShutDown, 1_500)
    }

    fn rewinding(s: &mut Snapshot) {
        s.config.use_pg_rewind = true;
    }

    fn present(s: &mut Snapshot) -> &mut crate::postgres::Present {
        let DataDir::Present(present) = &mut s.postgres.data_dir else { panic!("no data") };
        present
    }

    fn tried(s: &mut Snapshot, times: u32, ago: u64) {
        s.memory.rewinds = Some(Rewinds { from: "b".into(), tries: times });
        let job = Job::Rewind { from: "b".into() };
        s.memory.last_job = Some(FinishedJob { job, at: s.now.minus(secs(ago)), error: Some("no".into()) });
    }

    #[test]
    fn the_end_of_the_shutdown_checkpoint_decides_when_it_is_known() {
        for (end, rule) in [(1_000, "start_as_standby"), (1_001, "stay_down_diverged")] {
            let s = after_failover().on_timeline(1).down().control(ClusterState::ShutDown, 900).with(|s| {
                present(s).control.as_mut().expect("readable").checkpoint_end = Some(Lsn(end));
            });
            assert_eq!(decide(&s).rule, rule, "a checkpoint that ends at {end}");
        }
    }

    #[test]
    fn rewind_diverged() {
        let d = decide(&diverged().with(rewinding));
        assert!(matches!(d.plan.postgres, Move::Rewind { from, .. } if from.0 == "b"), "{}", d.rule);
        for (what, change) in [
            ("switched off", (|s| s.config.use_pg_rewind = false) as fn(&mut Snapshot)),
            ("no hints", |s| present(s).control.as_mut().expect("readable").rewindable = false),
            ("never started", |s| present(s).backup_label = true),
            ("tried often enough", |s| tried(s, 3, 60)),
        ] {
            let s = diverged().with(|s| {
                rewinding(s);
                change(s);
            });
            assert_eq!((decide(&s).rule, decide(&s).plan.postgres), ("stay_down_diverged", Move::Stay), "{what}");
        }
        let another_leader = diverged().led_by("c").member("c", |m| m.role = "primary".into()).with(|s| {
            rewinding(s);
            tried(s, 3, 60);
        });
        assert!(matches!(decide(&another_leader).plan.postgres, Move::Rewind { from, .. } if from.0 == "c"));
        let paused = diverged().paused().with(rewinding);
        assert_eq!(decide(&paused).rule, "hands_off");
    }

    #[test]
    fn a_rewind_waits_for_a_primary_that_runs_and_has_made_its_checkpoint() {
        let waits = |s: Snapshot| (decide(&s).rule, decide(&s).plan.postgres);
        let pending = diverged().member("b", |m| m.checkpoint_pending = true).with(rewinding);
        assert_eq!(waits(pending), ("rewind_diverged", Move::Stay), "X4");
        let down = diverged().member("b", |m| m.state = "stopped".into()).with(rewinding);
        assert_eq!(waits(down), ("rewind_diverged", Move::Stay));
        let promoted = diverged().member("b", |m| m.role = "promoted".into()).with(rewinding);
        assert_ne!(waits(promoted).0, "rewind_diverged", "X1: no verdict yet");
        let just_failed = diverged().with(|s| {
            rewinding(s);
            tried(s, 1, 1);
        });
        assert_eq!(waits(just_failed), ("rewind_diverged", Move::Stay));
        for (ago, rule) in [(29, "rewind_diverged"), (30, "give_up_diverged_data")] {
            let failed = diverged().with(|s| {
                rewinding(s);
                tried(s, 3, ago);
                s.config.remove_on_rewind_failure = true;
            });
            assert_eq!(decide(&failed).rule, rule, "X8: was its source well? {ago} s after the last failure");
        }
    }

    #[test]
    fn a_crashed_primary_is_recovered_before_it_starts_on_another_timeline() {
        let crashed = || after_failover().on_timeline(1).down().control(ClusterState::InProduction, 900);
        assert_eq!(decide(&crashed().with(rewinding)).rule, "rewind_diverged", "C3");
        assert_eq!(decide(&crashed().build()).rule, "start_as_standby", "no rewind, so replay must tell");
        let same_timeline = standby().cluster_on_timeline(1, &[]).down().control(ClusterState::InProduction, 900);
        assert_eq!(decide(&same_timeline.with(rewinding)).rule, "start_as_standby");
        let fresh_clone = crashed().with(|s| {
            rewinding(s);
            present(s).backup_label = true;
        });
        assert_eq!(decide(&fresh_clone).rule, "start_as_standby", "a copy of a primary is no crashed primary");
        let failed = crashed().with(|s| {
            rewinding(s);
            tried(s, 3, 60);
        });
        assert_eq!(decide(&failed).rule, "stay_down_diverged", "X8: for the operator, not started on a guess");
    }

    #[test]
    fn give_up_diverged_data() {
        type Change = fn(&mut Snapshot);
        let half: Change = |s| s.postgres.data_dir = DataDir::HalfRewound;
        let failed: Change = |s| {
            rewinding(s);
            tried(s, 3, 60);
        };
        let impossible: Change = |_| {};
        let possible: Change = rewinding;
        for (what, state, on_failure, on_divergence, gives_up) in [
            ("half-rewound", half, false, false, false),
            ("half-rewound", half, true, false, true),
            ("half-rewound", half, false, true, true),
            ("failed", failed, false, false, false),
            ("failed", failed, true, false, true),
            ("failed", failed, false, true, true),
            ("impossible", impossible, true, false, false),
            ("impossible", impossible, false, true, true),
        ] {
            let s = diverged().with(|s| {
                state(s);
                (s.config.remove_on_rewind_failure, s.config.remove_on_divergence) = (on_failure, on_divergence);
            });
            let given = matches!(decide(&s).plan.postgres, Move::GiveUpData { from, .. } if from.0 == "b");
            assert_eq!(given, gives_up, "{what}, {on_failure} {on_divergence}: {}", decide(&s).rule);
        }
        let allowed = |s: &mut Snapshot| {
            half(s);
            (s.config.remove_on_rewind_failure, s.config.remove_on_divergence) = (true, true);
        };
        let no_copy = diverged().member("b", |m| m.state = "crashed".into()).with(allowed);
        assert_eq!(decide(&no_copy).plan.postgres, Move::Stay, "S10: no other copy is known to be well");
        let nobody = diverged().vacant().with(allowed);
        assert_eq!((decide(&nobody).rule, decide(&nobody).plan.postgres), ("report_unusable_data", Move::Stay));
        let first_the_rewind = diverged().with(|s| {
            possible(s);
            s.config.remove_on_divergence = true;
        });
        assert_eq!(decide(&first_the_rewind).rule, "rewind_diverged");
    }

    #[test]
    fn discard_old_copy() {
        let kept = |streaming: bool| {
            standby().with(|s| {
                s.postgres.old_copy = true;
                s.postgres.sql.as_mut().expect("answers").streaming = streaming;
            })
        };
        assert_eq!(decide(&kept(true)).plan.postgres, Move::DiscardOldCopy);
        assert_eq!(decide(&kept(false)).plan.postgres, Move::Stay, "until its replacement streams");
    }
}
