//! Another member holds the leader key: be its standby, or say why not.

use std::time::Duration;

use crate::cluster::{ClusterView, Member};
use crate::plan::{Lease, Move, Plan, Verdict};
use crate::postgres::{ClusterState, DataDir, Job, StopMode, Upstream};
use crate::snapshot::Snapshot;
use crate::units::{Lsn, MemberName, Timeline};

/// How soon to look again at something that changes without an event.
const SOON: Duration = Duration::from_millis(500);
/// The pause between two attempts at the same thing.
const RETRY: Duration = Duration::from_secs(5);

/// Another member leads and we write: stop at once. The key is not ours to release.
pub(super) fn demote_when_another_leads(s: &Snapshot) -> Option<Verdict> {
    s.may_write().then(|| {
        Verdict::new(Plan::of(Lease::Keep, Move::Stop(StopMode::Immediate)), "another member holds the leader key")
    })
}

/// A server runs whose data directory is gone: it serves what nobody can restart. Stopped, then copied anew.
pub(super) fn stop_server_without_data(s: &Snapshot) -> Option<Verdict> {
    let gone = matches!(s.postgres.data_dir, DataDir::Empty | DataDir::Unfinished) && s.postgres.is_up();
    gone.then(|| {
        Verdict::new(
            Plan::of(Lease::Keep, Move::Stop(StopMode::Immediate)),
            "PostgreSQL runs, but its data directory is gone",
        )
    })
}

/// A copy of ours that was interrupted: it never was anybody's data.
pub(super) fn clear_unfinished_copy(s: &Snapshot) -> Option<Verdict> {
    (s.postgres.data_dir == DataDir::Unfinished && !s.postgres.is_up()).then(|| {
        Verdict::new(
            Plan::of(Lease::Keep, Move::RemoveUnfinished),
            "the data directory is what an interrupted clone or initdb of ours left: removing it",
        )
    })
}

/// A failure of the last job, if it is too fresh to try again: how long to wait, and the cause.
pub(super) fn just_failed(s: &Snapshot, which: fn(&Job) -> bool) -> Option<(Duration, String)> {
    let last = s.memory.last_job.as_ref().filter(|last| which(&last.job))?;
    let cause = last.error.clone()?;
    let wait = RETRY.min(s.config.loop_wait).saturating_sub(s.now.since(last.at));
    (!wait.is_zero()).then_some((wait, cause))
}

/// A member that can be copied or followed: it runs, and its address is known.
fn serves(member: &Member) -> Option<&String> {
    member.conn_url.as_ref().filter(|_| member.state == "running")
}

/// Fill the empty data directory from a member tagged `clonefrom`, else from the leader.
pub(super) fn clone(s: &Snapshot) -> Option<Verdict> {
    if s.postgres.data_dir != DataDir::Empty {
        return None;
    }
    if let Some((wait, cause)) = just_failed(s, |job| matches!(job, Job::Clone { .. })) {
        return Some(
            Verdict::new(Plan::stay(), format!("the last clone failed: {cause}; trying again")).again_in(wait),
        );
    }
    let view = s.view()?;
    let (leader, leader_member) = view.leader_member().unzip();
    let tagged: Vec<_> = view
        .members
        .iter()
        .filter(|(name, member)| member.tags.clonefrom && **name != s.config.name && Some(*name) != leader)
        .filter_map(|(name, member)| Some((name, serves(member)?)))
        .collect();
    let drawn = usize::try_from(s.dice).unwrap_or(0).checked_rem(tagged.len()).and_then(|i| tagged.get(i).copied());
    let Some((from, conn_url)) = drawn.or_else(|| leader.zip(leader_member.and_then(serves))) else {
        return Some(Verdict::new(Plan::stay(), "empty, and no member to clone from runs yet").again_in(SOON));
    };
    let (from, conn_url) = (from.clone(), conn_url.clone());
    let why = format!("the data directory is empty: cloning from {from}");
    Some(Verdict::new(Plan::of(Lease::Keep, Move::Clone { from, conn_url }), why))
}

/// Something is in the data directory that is no database of ours. Never ours to wipe.
pub(super) fn report_unusable_data(s: &Snapshot) -> Option<Verdict> {
    let why = match &s.postgres.data_dir {
        DataDir::Unusable(why) => why.clone(),
        DataDir::Unreadable(why) if s.sql().is_none() => why.clone(),
        DataDir::Present(present) if present.control.is_none() && !s.postgres.is_up() => {
            "its control file cannot be read; restore it, or empty the directory to have it cloned".to_owned()
        }
        DataDir::Unreadable(_) | DataDir::Present(_) | DataDir::Empty | DataDir::Unfinished => return None,
    };
    Some(Verdict::new(Plan::stay(), format!("the data directory cannot be used, and was left as it is: {why}")))
}

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
/// A former primary that shut down wrote its checkpoint *at* `checkpoint`, so that record must lie before the fork. What a
/// crashed one wrote after its last checkpoint is known only once it has been replayed.
fn local_end(s: &Snapshot) -> Option<(Timeline, Lsn, bool)> {
    if let Some(sql) = s.standby() {
        return Some((sql.timeline?, sql.position(), false));
    }
    let control = s.postgres.control().filter(|_| !s.postgres.is_up())?;
    Some(match (control.state, control.min_recovery) {
        (
            ClusterState::ShutDown
            | ClusterState::ShuttingDown
            | ClusterState::InCrashRecovery
            | ClusterState::InProduction
            | ClusterState::StartingUp,
            _,
        )
        | (ClusterState::ShutDownInRecovery | ClusterState::InArchiveRecovery, None) => {
            (control.timeline, control.checkpoint, true)
        }
        (ClusterState::ShutDownInRecovery | ClusterState::InArchiveRecovery, Some((timeline, lsn))) => {
            (timeline.max(control.timeline), lsn, false)
        }
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
            Some(format!(
                "the local log ends at {lsn} on timeline {own}, but the cluster's timeline {cluster} {fork}: this member \
                 needs pg_rewind against the leader, or an empty data_dir to be cloned again. Nothing was changed"
            ))
        }
    }
}

/// The leader's timeline, once it is a primary and says so (X1: before that its timeline is still its old one).
fn leader_timeline(s: &Snapshot) -> Option<Timeline> {
    let (_, leader) = s.view()?.leader_member()?;
    leader.timeline.filter(|_| matches!(leader.role.as_str(), "primary" | "master"))
}

/// Down, with a log that the cluster does not have: stay down and say so.
pub(super) fn stay_down_diverged(s: &Snapshot) -> Option<Verdict> {
    if s.postgres.is_up() {
        return None;
    }
    let why = divergence(s, leader_timeline(s)?)?;
    Some(Verdict::new(Plan::stay(), why))
}

/// A start failed a moment ago.
pub(super) fn wait_after_failed_start(s: &Snapshot) -> Option<Verdict> {
    let (wait, cause) = just_failed(s, |job| matches!(job, Job::Start { .. })).filter(|_| !s.postgres.is_up())?;
    Some(Verdict::new(Plan::stay(), format!("PostgreSQL did not start: {cause}; trying again")).again_in(wait))
}

/// Whom to stream from: nobody (`nostream`), the member named by `replicatefrom` while it is there, else the leader.
fn upstream(s: &Snapshot) -> Upstream {
    let Some(view) = s.view().filter(|_| !s.config.tags.nostream) else { return Upstream::Nobody };
    let of = |name: &MemberName| {
        let conn_url = view.members.get(name).filter(|_| *name != s.config.name)?.conn_url.clone()?;
        Some(Upstream::Member { name: name.clone(), conn_url })
    };
    let wished = s.config.tags.replicatefrom.as_ref().and_then(of);
    let without_key = || {
        let to = &s.agreement.as_ref().filter(|_| view.leader.is_none())?.to;
        Some(Upstream::Member { name: to.name.clone(), conn_url: to.conn_url.clone() })
    };
    wished.or_else(|| of(&view.leader.as_ref()?.name)).or_else(without_key).unwrap_or(Upstream::Nobody)
}

/// Down, and nothing against it: come up as a standby.
pub(super) fn start_as_standby(s: &Snapshot) -> Option<Verdict> {
    (!s.postgres.is_up()).then(|| {
        let upstream = upstream(s);
        let why = match &upstream {
            Upstream::Member { name, .. } => format!("starting as a standby of {name}"),
            Upstream::Nobody => "starting as a standby without an upstream".to_owned(),
        };
        Verdict::new(Plan::of(Lease::Keep, Move::StartStandby(upstream)), why)
    })
}

/// No verdict on a server that is still starting, or did not answer.
pub(super) fn wait_while_starting(s: &Snapshot) -> Option<Verdict> {
    (s.standby().is_none())
        .then(|| Verdict::new(Plan::stay(), "PostgreSQL does not answer queries (yet)").again_in(SOON))
}

/// It runs, and its log is not the cluster's: it will never stream. Down with a reason is better than up and stale.
pub(super) fn stop_diverged(s: &Snapshot) -> Option<Verdict> {
    let why = divergence(s, leader_timeline(s)?)?;
    Some(Verdict::new(Plan::of(Lease::Keep, Move::Stop(StopMode::Fast)), why))
}

/// `host:port` of a `postgres://host:port/dbname`.
fn host_and_port(conn_url: &str) -> Option<&str> {
    let rest = conn_url.split_once("://").map_or(conn_url, |(_, rest)| rest);
    rest.split(['/', '?']).next()
}

/// The upstream in force is not the one wanted.
pub(super) fn follow_leader(s: &Snapshot) -> Option<Verdict> {
    let standby = s.standby().filter(|_| s.job.is_none())?;
    if let Some((wait, cause)) = just_failed(s, |job| *job == Job::Follow) {
        return Some(Verdict::new(Plan::stay(), format!("could not change the upstream: {cause}")).again_in(wait));
    }
    let wanted = upstream(s);
    let (same, whom) = match &wanted {
        Upstream::Nobody => (standby.upstream.is_none() || !s.config.tags.nostream, "nobody".to_owned()),
        Upstream::Member { name, conn_url } => {
            (standby.upstream.as_deref() == host_and_port(conn_url), name.to_string())
        }
    };
    (!same).then(|| {
        let why = format!("following {whom} instead of {}", standby.upstream.as_deref().unwrap_or("nobody"));
        Verdict::new(Plan::of(Lease::Keep, Move::Follow(wanted)), why)
    })
}

/// A higher setting on the primary pauses the replay of a standby without a word (PostgreSQL 14 and later): without this it
/// falls behind for ever. An operator who wants replay paused pauses the cluster.
pub(super) fn resume_replay(s: &Snapshot) -> Option<Verdict> {
    let paused = s.standby().is_some_and(|sql| sql.replay_paused && sql.server_version >= 140_000);
    let refused = just_failed(s, |job| *job == Job::ResumeReplay).is_some();
    (paused && !refused && s.job.is_none()).then(|| {
        Verdict::new(Plan::of(Lease::Keep, Move::ResumeReplay), "replay is paused, and the cluster is not: resuming it")
    })
}

/// Slots of the other members, before we lead: they exist, and reserve nothing until they are used.
pub(super) fn prepare_slots(s: &Snapshot) -> Option<Verdict> {
    let standby = s.standby().filter(|_| s.job.is_none() && !s.config.tags.nofailover)?;
    if just_failed(s, |job| *job == Job::CreateSlots).is_some() {
        return None;
    }
    let missing = super::leader::missing_slots(s, standby);
    (!missing.is_empty()).then(|| {
        let why = format!("preparing replication slots: {}", missing.join(", "));
        Verdict::new(Plan::of(Lease::Keep, Move::CreateSlots(missing)), why)
    })
}

/// A standby, following.
pub(super) fn stay_standby(s: &Snapshot) -> Verdict {
    let leader = s.view().and_then(|view| view.leader.as_ref()).map(|key| key.name.to_string()).unwrap_or_default();
    let streams = s.standby().is_some_and(|sql| sql.streaming);
    Verdict::new(Plan::stay(), format!("a standby, {} {leader}", if streams { "streaming from" } else { "following" }))
}

#[cfg(test)]
mod tests {
    use crate::fixture::{primary, secs, standby};
    use crate::plan::{Lease, Move};
    use crate::postgres::{ClusterState, DataDir, FinishedJob, Job, StopMode, Upstream};
    use crate::rules::decide;
    use crate::units::{Lsn, Timeline};

    #[test]
    fn demote_when_another_leads() {
        let d = decide(&primary().led_by("b").build());
        assert_eq!((d.rule, d.plan.postgres), ("demote_when_another_leads", Move::Stop(StopMode::Immediate)));
        assert_eq!(d.plan.lease, Lease::Keep, "the key is not ours to release");
    }

    #[test]
    fn stop_server_without_data() {
        let s = standby().with(|s| s.postgres.data_dir = DataDir::Empty);
        assert_eq!(decide(&s).plan.postgres, Move::Stop(StopMode::Immediate));
    }

    #[test]
    fn clone_prefers_a_tagged_member_and_waits_for_one_that_runs() {
        let from = |s| {
            let plan = decide(&s).plan.postgres;
            if let Move::Clone { from, .. } = plan { from.0 } else { format!("{plan:?}") }
        };
        assert_eq!(from(standby().empty().build()), "b");
        assert_eq!(from(standby().empty().member("c", |m| m.tags.clonefrom = true).build()), "c");
        assert_eq!(from(standby().empty().member("b", |m| m.state = "starting".into()).build()), "Stay");
    }

    #[test]
    fn a_failed_clone_is_tried_again_after_a_pause() {
        let failed = |ago| {
            standby().empty().with(|s| {
                let job = Job::Clone { from: "b".into() };
                s.memory.last_job = Some(FinishedJob { job, at: s.now.minus(secs(ago)), error: Some("no".into()) });
            })
        };
        assert_eq!(decide(&failed(4)).plan.postgres, Move::Stay);
        assert_ne!(decide(&failed(5)).plan.postgres, Move::Stay);
    }

    #[test]
    fn wait_after_failed_start() {
        for (ago, rule) in [(0, "wait_after_failed_start"), (4, "wait_after_failed_start"), (5, "start_as_standby")] {
            let failed = standby().down().with(|s| {
                let job = Job::Start { as_primary: false };
                s.memory.last_job = Some(FinishedJob { job, at: s.now.minus(secs(ago)), error: Some("no".into()) });
            });
            assert_eq!(decide(&failed).rule, rule, "{ago} s after it");
        }
    }

    #[test]
    fn foreign_data_is_never_touched() {
        let s = standby().down().with(|s| s.postgres.data_dir = DataDir::Unusable("PG_VERSION is 12".into()));
        assert_eq!((decide(&s).rule, decide(&s).plan.postgres), ("report_unusable_data", Move::Stay));
        let ours = standby().down().with(|s| s.postgres.data_dir = DataDir::Unfinished);
        assert_eq!(
            (decide(&ours).rule, decide(&ours).plan.postgres),
            ("clear_unfinished_copy", Move::RemoveUnfinished)
        );
    }

    /// Leader b is primary on timeline 2, which forked off timeline 1 at 1000.
    fn after_failover() -> crate::fixture::Builder {
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
    fn follow_leader() {
        let new_leader = standby().led_by("c").build();
        assert!(
            matches!(decide(&new_leader).plan.postgres, Move::Follow(Upstream::Member { name, .. }) if name.0 == "c")
        );
        let cascade = standby().with(|s| s.config.tags.replicatefrom = Some("c".into()));
        assert!(matches!(decide(&cascade).plan.postgres, Move::Follow(Upstream::Member { name, .. }) if name.0 == "c"));
        let myself = standby().with(|s| s.config.tags.replicatefrom = Some("a".into()));
        assert_eq!(decide(&myself).rule, "stay_standby", "never myself");
        let archive_only = standby().with(|s| s.config.tags.nostream = true);
        assert_eq!(decide(&archive_only).plan.postgres, Move::Follow(Upstream::Nobody));
    }

    #[test]
    fn a_stopped_member_starts_as_a_standby_of_the_leader() {
        let d = decide(&standby().down().build());
        assert!(matches!(d.plan.postgres, Move::StartStandby(Upstream::Member { name, .. }) if name.0 == "b"));
        let leader_unknown = standby().down().without_member("b").build();
        assert_eq!(decide(&leader_unknown).plan.postgres, Move::StartStandby(Upstream::Nobody));
    }

    #[test]
    fn prepare_slots() {
        let s = standby().without_slots().build();
        assert_eq!(decide(&s).plan.postgres, Move::CreateSlots(vec!["b".into(), "c".into()]));
        let never_leads = standby().without_slots().nofailover().build();
        assert_eq!(decide(&never_leads).rule, "stay_standby");
    }

    #[test]
    fn resume_replay() {
        let paused = || standby().with(|s| s.postgres.sql.as_mut().expect("answers").replay_paused = true);
        assert_eq!(decide(&paused()).plan.postgres, Move::ResumeReplay);
        let mut old = paused();
        old.postgres.sql.as_mut().expect("answers").server_version = 130_000;
        assert_eq!(decide(&old).rule, "stay_standby");
        let mut cluster_paused = paused();
        cluster_paused.config.pause = true;
        assert_eq!(decide(&cluster_paused).rule, "hands_off");
    }

    #[test]
    fn unclear_ancestry_is_no_verdict() {
        let s = standby().cluster_on_timeline(2, &[]).on_timeline(1).at(Lsn(5_000)).build();
        assert_eq!(decide(&s).rule, "stay_standby");
        assert_eq!(s.own_timeline(), Some(Timeline(1)));
    }
}
