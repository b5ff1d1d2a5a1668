//! A standby cluster: its leader follows a remote server, the others follow the leader, and nobody is ever promoted
//! (ha-rules section 19). When `standby_cluster` is removed the leader is an ordinary one that has yet to be promoted.

use std::time::Duration;

use super::follower::just_failed;
use super::guard::stopping;
use super::{repair, switchover};
use crate::cluster::Status;
use crate::plan::{KeyWrite, Lease, Move, Plan, Verdict};
use crate::postgres::{DataDir, Job, StopMode, Upstream};
use crate::slots;
use crate::snapshot::{Seat, Snapshot};
use crate::units::MemberName;

/// How soon to look again at something that changes without an event.
const SOON: Duration = Duration::from_millis(500);

/// How often pg_rewind is tried against the remote, with a pause after each: it may be about to make its checkpoint (X4), and
/// nobody here can tell.
const TRIES: u32 = 24;

/// The remote, as an upstream. It has no member key; its name is its address.
pub(super) fn remote(s: &Snapshot) -> Option<Upstream> {
    let remote = s.config.standby_cluster.as_ref()?;
    let (Some(address), Some(conn_url)) = (remote.address(), remote.conn_url()) else {
        return Some(Upstream::Nobody); // All log comes from the archive.
    };
    Some(Upstream::Member { name: MemberName(address), conn_url })
}

/// A primary where none may be: `standby_cluster` was added. A clean stop while the key is ours: whoever streams from here has
/// the last record then, and may become the primary that we follow without a rewind (D4, Z6).
pub(super) fn demote_cluster(s: &Snapshot) -> Option<Verdict> {
    (s.may_write() && stopping(s).is_none()).then(|| {
        let plan = Plan::of(Lease::Keep, Move::Stop(StopMode::Fast));
        Verdict::new(plan, "this is a standby cluster now: stopping the primary, to follow the remote")
    })
}

/// Down, and nothing against it: a standby of the remote.
pub(super) fn start_under_remote(s: &Snapshot) -> Option<Verdict> {
    super::follower::start_as_standby(s)
}

/// Asked to hand over: the candidate takes the key, and this server goes on as its standby.
pub(super) fn hand_over_standbys(s: &Snapshot) -> Option<Verdict> {
    let heir = switchover::heir(s)?;
    let plan = Plan::of(Lease::Release, Move::Stay).and_write(records(s));
    Some(Verdict::new(plan, format!("asked to hand over, and {heir} is fit: giving the leader key back")))
}

/// `status`, as far as it is not true yet; and no trace of synchronous replication, which ends where nobody commits.
fn records(s: &Snapshot) -> Vec<KeyWrite> {
    let Some((view, sql)) = s.view().zip(s.standby()) else { return Vec::new() };
    let (slots, retain_slots) = slots::published(s, sql);
    let status = Status { optime: Some(sql.position()), slots, retain_slots };
    let mut keys = Vec::new();
    if status != view.status {
        keys.push(KeyWrite::Status(status));
    }
    if view.sync.is_some() {
        keys.push(KeyWrite::Sync { sync: None, seen: view.sync_seen });
    }
    keys
}

/// All is well: renew, and keep the books.
pub(super) fn lead_standbys(s: &Snapshot) -> Verdict {
    let from = s.standby().and_then(|sql| sql.upstream.as_deref()).unwrap_or("the archive");
    let streams = s.standby().is_some_and(|sql| sql.streaming);
    let how = if streams { "streaming from" } else { "waiting for log from" };
    let verdict = Verdict::new(Plan::stay().and_write(records(s)), format!("we lead a standby cluster, {how} {from}"));
    match switchover::due_in(s) {
        Some(wait) => verdict.again_in(wait),
        None => verdict,
    }
}

// --- the remote went on where our log does not ---

/// The remote was promoted from less than we have, so that it sends us nothing (Z4). The history file of its timeline, which the
/// WAL receiver fetched, says where it branched off.
fn divergence(s: &Snapshot) -> Option<String> {
    s.config.standby_cluster.as_ref().filter(|_| s.standby().is_none_or(|sql| !sql.streaming))?;
    let (own, lsn, at_fork_is_too_far) = repair::local_end(s)?;
    let line = s.postgres.newer_history.iter().find(|line| line.parent == own)?;
    let diverged = lsn > line.switched_at || at_fork_is_too_far && lsn == line.switched_at;
    diverged.then(|| {
        let fork = line.switched_at;
        format!("the local log ends at {lsn} on timeline {own}, and the remote went on to another one from {fork}")
    })
}

/// It runs, and will never stream: down, to be rewound.
pub(super) fn stop_beyond_remote(s: &Snapshot) -> Option<Verdict> {
    let why = divergence(s).filter(|_| s.standby().is_some() && s.job.is_none())?;
    Some(Verdict::new(Plan::of(Lease::Keep, Move::Stop(StopMode::Fast)), why))
}

/// Down, with what the remote does not have: rewound to the remote, whoever leads here. What is beyond the fork was lost there.
pub(super) fn rewind_to_remote(s: &Snapshot) -> Option<Verdict> {
    let why = divergence(s).filter(|_| !s.postgres.is_up())?;
    let Some(Upstream::Member { name: from, conn_url }) = remote(s) else { return None };
    if repair::rewind_impossible(s).is_some() || repair::tries(s, &from) >= TRIES {
        return None;
    }
    if let Some((wait, cause)) = just_failed(s, |job| matches!(job, Job::Rewind { .. })) {
        return Some(Verdict::new(Plan::stay(), format!("pg_rewind failed: {cause}; trying again")).again_in(wait));
    }
    let why = format!("{why}: rewinding to {from}");
    Some(Verdict::new(Plan::of(Lease::Keep, Move::Rewind { from, conn_url }), why))
}

/// No rung is left: down, with a reason, and without the key.
pub(super) fn stay_down_beyond_remote(s: &Snapshot) -> Option<Verdict> {
    let why = divergence(s).filter(|_| !s.postgres.is_up())?;
    let lease = if s.seat() == Seat::Mine { Lease::Release } else { Lease::Keep };
    let rewind = repair::rewind_impossible(s).unwrap_or("pg_rewind was tried in vain; the log says why");
    Some(Verdict::new(
        Plan::of(lease, Move::Stay),
        format!("{why}; {rewind}. Nothing was removed. {}", repair::BY_HAND),
    ))
}

// --- while the cluster is made ---

/// The race is won: the first member is a copy of the remote.
pub(super) fn copy_remote(s: &Snapshot) -> Option<Verdict> {
    let remote = remote(s).filter(|_| s.memory.bootstrapping && s.postgres.data_dir == DataDir::Empty)?;
    if let Some((wait, cause)) = just_failed(s, |job| matches!(job, Job::Clone { .. })) {
        let why = format!("the remote could not be cloned: {cause}; trying again");
        return Some(Verdict::new(Plan::stay(), why).again_in(wait));
    }
    Some(match remote {
        Upstream::Member { name: from, conn_url } => {
            let why = format!("making a standby cluster: cloning from the remote {from}");
            Verdict::new(Plan::of(Lease::Keep, Move::Clone { from, conn_url }), why)
        }
        Upstream::Nobody => {
            let why = "standby_cluster names no host, and there is nothing else to clone from";
            Verdict::new(Plan::stay(), why).again_in(SOON)
        }
    })
}

/// The copy is there: it starts as a standby of the remote, and then the cluster gets its name.
pub(super) fn start_first_copy(s: &Snapshot) -> Option<Verdict> {
    let upstream = remote(s).filter(|_| s.memory.bootstrapping && s.seat() == Seat::Vacant)?;
    let copied = !s.postgres.is_up() && s.postgres.control().is_some();
    let failed = just_failed(s, |job| matches!(job, Job::Start { .. })).is_some();
    (copied && !failed).then(|| {
        let plan = Plan::of(Lease::Keep, Move::StartStandby(upstream));
        Verdict::new(plan, "the copy of the remote is there: starting it as a standby")
    })
}

#[cfg(test)]
mod tests {
    use crate::cluster::{ConfigKey, Failover, HistoryLine, Initialize, SyncState};
    use crate::fence::Fence;
    use crate::fixture::{Builder, primary, secs, standby};
    use crate::plan::{KeyWrite, Lease, Move};
    use crate::postgres::{ClusterState, FinishedJob, Job, StopMode, Upstream};
    use crate::rules::decide;
    use crate::units::{Lsn, Revision, Timeline};

    /// It leads, and streams from the remote.
    fn leading() -> Builder {
        standby().holding_the_key().standby_cluster().but(|s| {
            s.postgres.sql.as_mut().expect("answers").upstream = Some("r:5432".into());
        })
    }

    fn from(postgres: &Move) -> Option<&str> {
        if let Move::StartStandby(Upstream::Member { name, .. }) | Move::Follow(Upstream::Member { name, .. }) =
            postgres
        {
            return Some(name.as_str());
        }
        None
    }

    #[test]
    fn lead_standbys() {
        let d = decide(&leading().build());
        assert_eq!((d.rule, d.plan.lease, d.plan.postgres), ("lead_standbys", Lease::Keep, Move::Stay));
        assert!(matches!(d.plan.keys[..], [KeyWrite::Status(_)]), "{:?}", d.plan.keys);
        let listed = leading().with(|s| {
            s.dcs.as_mut().expect("reachable").sync =
                Some(SyncState { leader: "b".into(), standbys: ["c".into()].into(), quorum: 0 });
        });
        assert!(decide(&listed).plan.keys.iter().any(|key| matches!(key, KeyWrite::Sync { sync: None, .. })));
        assert_eq!(leading().build().fence(), Fence::Off, "nobody is killed at the end of a lease for following");
    }

    #[test]
    fn the_leader_follows_the_remote_and_the_others_the_leader() {
        let elsewhere = standby().holding_the_key().standby_cluster().build();
        assert_eq!(
            (decide(&elsewhere).rule, from(&decide(&elsewhere).plan.postgres)),
            ("follow_leader", Some("r:5432"))
        );
        let other = standby().standby_cluster().led_by("c").build();
        assert_eq!(from(&decide(&other).plan.postgres), Some("c"));
        let nameless = standby().standby_cluster().led_by("c").member("c", |m| m.conn_url = None).build();
        assert_eq!(from(&decide(&nameless).plan.postgres), None, "W7: it keeps the upstream that it has");
        let headless = standby().standby_cluster().vacant().down();
        assert_eq!(from(&decide(&headless.build()).plan.postgres), Some("r:5432"), "C5");
        let archive = leading().down().but_config(|config| config.standby_cluster.as_mut().expect("set").host = None);
        assert_eq!(decide(&archive.build()).plan.postgres, Move::StartStandby(Upstream::Nobody));
    }

    #[test]
    fn demote_cluster() {
        let added = primary().standby_cluster();
        let d = decide(&added.build());
        assert_eq!(
            (d.rule, d.plan.lease, d.plan.postgres),
            ("demote_cluster", Lease::Keep, Move::Stop(StopMode::Fast))
        );
        let archiving =
            primary().standby_cluster().shut_down().still_up().job(Job::Stop(StopMode::Fast)).answers("b", 2_000);
        assert_eq!(
            (decide(&archiving.build()).rule, decide(&archiving.build()).plan.lease),
            ("wait_for_job", Lease::Keep)
        );
        let beside = primary().standby_cluster().led_by("b").build();
        assert_eq!(decide(&beside).plan.postgres, Move::Stop(StopMode::Fast), "W1: the last record is not lost");
    }

    #[test]
    fn start_under_remote() {
        let d = decide(&primary().standby_cluster().demoted().shut_down().build());
        assert_eq!((d.rule, d.plan.lease, from(&d.plan.postgres)), ("start_under_remote", Lease::Keep, Some("r:5432")));
        let failed = leading().down().with(|s| s.memory.recovering = true);
        assert_eq!(decide(&failed).plan.lease, Lease::Release, "C9");
    }

    #[test]
    fn when_the_remote_is_removed_the_leader_is_promoted() {
        let removed = standby().holding_the_key().promised("a", 2).build();
        assert!(matches!(decide(&removed).plan.postgres, Move::Promote(_)), "L13");
        let kept = standby().holding_the_key().promised("a", 2).standby_cluster().build();
        assert!(!matches!(decide(&kept).plan.postgres, Move::Promote(_)), "Z2");
    }

    #[test]
    fn hand_over_standbys() {
        let asked = |builder: Builder, leader: &str, to: &str| {
            let failover = Failover {
                leader: Some(leader.into()),
                candidate: Some(to.into()),
                schedule: None,
                modified: Revision(7),
            };
            builder.but(|s| s.dcs.as_mut().expect("reachable").failover = Some(failover))
        };
        let d = decide(&asked(leading(), "a", "b").answers("b", 1_000).build());
        assert_eq!((d.rule, d.plan.lease, d.plan.postgres), ("hand_over_standbys", Lease::Release, Move::Stay));
        let paused = decide(&asked(leading().paused(), "a", "b").answers("b", 1_000).build());
        assert_eq!(paused.plan.lease, Lease::Release, "M10");
        let won = decide(&asked(leading(), "b", "a").build());
        assert_eq!((won.rule, won.plan.keys), ("drop_request", vec![KeyWrite::ClearFailover { seen: Revision(7) }]));
        let unfit = decide(&asked(leading(), "a", "b").unreachable("b").build());
        assert_eq!(unfit.rule, "refuse_request");
    }

    #[test]
    fn in_pause_the_key_stays_and_the_remote_is_followed() {
        for s in [leading(), leading().down()] {
            assert_eq!(decide(&s.paused().build()).plan.lease, Lease::Keep, "M3");
        }
        let s = standby().holding_the_key().standby_cluster().paused().build();
        assert_eq!(from(&decide(&s).plan.postgres), Some("r:5432"));
        let lost = standby().standby_cluster().vacant().paused().build();
        assert_eq!(decide(&lost).plan.postgres, Move::Stay, "Z5");
    }

    /// The remote branched off timeline 1 at 1000, and sends nothing.
    fn beyond(builder: Builder) -> Builder {
        let line = HistoryLine {
            parent: Timeline(1),
            switched_at: Lsn(1_000),
            reason: String::new(),
            at: None,
            promoted: None,
        };
        builder.on_timeline(1).but_config(|config| config.use_pg_rewind = true).but(|s| {
            s.postgres.newer_history = vec![line];
            s.postgres.sql.iter_mut().for_each(|sql| sql.streaming = false);
        })
    }

    #[test]
    fn stop_beyond_remote() {
        for led in [leading(), standby().standby_cluster()] {
            for (lsn, stops) in [(999, false), (1_000, false), (1_001, true)] {
                let d = decide(&beyond(led.clone()).at(Lsn(lsn)).build());
                assert_eq!(d.rule == "stop_beyond_remote", stops, "at {lsn}: {}", d.rule);
            }
        }
        let streams =
            beyond(leading()).at(Lsn(2_000)).with(|s| s.postgres.sql.as_mut().expect("answers").streaming = true);
        assert_eq!(decide(&streams).rule, "lead_standbys");
        let ordinary = beyond(standby()).at(Lsn(2_000)).with(|s| s.config.standby_cluster = None);
        assert_eq!(decide(&ordinary).rule, "stay_standby");
    }

    #[test]
    fn rewind_to_remote() {
        let down = |led: Builder| beyond(led.down()).control(ClusterState::ShutDown, 1_500);
        for led in [leading(), standby().standby_cluster()] {
            let d = decide(&down(led.clone()).build());
            assert_eq!((d.rule, d.plan.lease), ("rewind_to_remote", Lease::Keep));
            assert!(matches!(d.plan.postgres, Move::Rewind { from, .. } if from.as_str() == "r:5432"));
            let under_way = down(led).job(Job::Rewind { from: "r:5432".into() }).build();
            assert_eq!(decide(&under_way).rule, "wait_for_job", "the remote has no member key, and is not gone");
        }
        let behind = beyond(leading().down()).control(ClusterState::ShutDown, 900).build();
        assert_eq!(decide(&behind).rule, "start_under_remote");
    }

    #[test]
    fn stay_down_beyond_remote() {
        let off = |led: Builder| {
            beyond(led.down()).control(ClusterState::ShutDown, 1_500).but_config(|c| c.use_pg_rewind = false)
        };
        let d = decide(&off(leading()).build());
        assert_eq!((d.rule, d.plan.lease, d.plan.postgres), ("stay_down_beyond_remote", Lease::Release, Move::Stay));
        let d = decide(&off(standby().standby_cluster()).build());
        assert_eq!((d.rule, d.plan.postgres), ("stay_down_beyond_remote", Move::Stay));
        let tried = off(leading()).but_config(|config| config.use_pg_rewind = true).with(|s| {
            s.memory.rewinds = Some(crate::memory::Rewinds { from: "r:5432".into(), tries: 24 });
        });
        assert_eq!(decide(&tried).rule, "stay_down_beyond_remote");
    }

    fn making() -> Builder {
        standby().vacant().standby_cluster().but(|s| {
            s.memory.bootstrapping = true;
            let view = s.dcs.as_mut().expect("reachable");
            view.initialize = Initialize::InProgress { modified: Revision(3), lease: s.lease.id };
            view.config = ConfigKey::Missing;
        })
    }

    #[test]
    fn copy_remote() {
        let d = decide(&making().empty().build());
        assert_eq!(d.rule, "copy_remote");
        assert!(matches!(d.plan.postgres, Move::Clone { from, .. } if from.as_str() == "r:5432"));
        let failed = making().empty().with(|s| {
            let job = Job::Clone { from: "r:5432".into() };
            s.memory.last_job = Some(FinishedJob { job, at: s.now.minus(secs(1)), error: Some("no".into()) });
        });
        assert_eq!(decide(&failed).plan.postgres, Move::Stay);
    }

    #[test]
    fn start_first_copy() {
        let d = decide(&making().down().build());
        assert_eq!((d.rule, from(&d.plan.postgres)), ("start_first_copy", Some("r:5432")));
        let d = decide(&making().build());
        assert!(matches!(d.plan.keys[..], [KeyWrite::Identify { .. }, KeyWrite::Config { .. }]), "{}", d.rule);
        let failed = making().down().with(|s| {
            let job = Job::Start { as_primary: false };
            s.memory.last_job = Some(FinishedJob { job, at: s.now, error: Some("no".into()) });
        });
        assert_eq!(decide(&failed).rule, "abandon_failed_bootstrap");
    }

    #[test]
    fn wait_for_streaming_primary() {
        let gone = |since: u64, moved: u64| {
            standby().vacant().alone().at(Lsn(1_000)).with(|s| {
                s.config.primary_race_backoff = secs(60);
                s.memory.vacant_since = Some(s.now.minus(secs(since)));
                s.memory.position_since = Some(s.now.minus(secs(moved)));
                s.postgres.sql.as_mut().expect("answers").streaming = true;
            })
        };
        for (since, moved, rule) in [
            (0, 500, "wait_for_streaming_primary"),
            (9, 500, "wait_for_streaming_primary"),
            (10, 500, "run_for_leader"),
            (10, 9, "wait_for_streaming_primary"),
            (59, 9, "wait_for_streaming_primary"),
            (60, 9, "run_for_leader"),
        ] {
            assert_eq!(decide(&gone(since, moved)).rule, rule, "gone for {since} s, log came {moved} s ago");
        }
        let mut silent = gone(10, 9);
        silent.postgres.sql.as_mut().expect("answers").streaming = false;
        assert_eq!(decide(&silent).rule, "run_for_leader");
        let mut asked = gone(0, 0);
        asked.dcs.as_mut().expect("reachable").failover =
            Some(Failover { leader: None, candidate: Some("a".into()), schedule: None, modified: Revision(7) });
        assert_eq!(decide(&asked).rule, "run_as_candidate");
        asked.config.primary_race_backoff = secs(0);
        assert_eq!(decide(&asked).rule, "run_as_candidate");
    }
}
