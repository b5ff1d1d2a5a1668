//! Before all else: the fence, the order to stop, and whether this data belongs here at all.

use std::time::Duration;

use crate::cluster::{Initialize, Status};
use crate::config::SyncMode;
use crate::plan::{Exit, KeyWrite, Lease, Move, Plan, Verdict};
use crate::postgres::{ClusterState, Job, StopMode};
use crate::snapshot::{Order, Seat, Snapshot};
use crate::units::Lsn;

/// The stop job in flight, if one is.
pub(super) fn stopping(s: &Snapshot) -> Option<StopMode> {
    match s.job.as_ref()?.job {
        Job::Stop(mode) => Some(mode),
        Job::Bootstrap
        | Job::Clone { .. }
        | Job::Restore
        | Job::Rewind { .. }
        | Job::GiveUpData
        | Job::DiscardOldCopy
        | Job::Start { .. }
        | Job::Restart { .. }
        | Job::PrePromote
        | Job::Promote
        | Job::Follow
        | Job::Checkpoint
        | Job::ChangeSlots
        | Job::CopySlots
        | Job::ResumeReplay
        | Job::SetSyncNames
        | Job::RemoveUnfinished
        | Job::SetAside => None,
    }
}

/// Another agent lives under our name, at another address: two keepers of one lock.
pub(super) fn leave_living_namesake(s: &Snapshot) -> Option<Verdict> {
    let other = s.namesake.as_ref()?;
    let why = format!(
        "a member called {} already runs, and answers at {other}: give this one another `name`. Nothing was changed",
        s.config.name
    );
    Some(Verdict::new(Plan::of(Lease::LetRun, Move::Stay).and_exit(Exit::Failed), why))
}

/// Stop accepting writes while the lease is still ours.
///
/// etcd gives the lease to another member at `lock_ends`, whether or not we can hear it. We must be down before, so we
/// start `stop_budget` early: the time a forced stop may take. Half of it is for a fast stop, so that standbys within reach get
/// what was acknowledged. The lease is left to run out: a renewal that succeeds now would only keep the others waiting for a
/// server that is going down.
pub(super) fn stop_before_lease_ends(s: &Snapshot) -> Option<Verdict> {
    let must_stop_at = s.must_stop_at().filter(|_| s.may_write() && !s.config.pause)?;
    if s.now < must_stop_at || stopping(s).is_some_and(StopMode::is_forced) {
        return None;
    }
    let left = s.now.until(s.lock_ends()?);
    let in_time = left > s.config.stop_budget / 2 && !s.hangs();
    let mode = if in_time { StopMode::FastThenImmediate } else { StopMode::Immediate };
    Some(Verdict::new(
        Plan::of(Lease::LetRun, Move::Stop(mode)),
        format!("our lease ends in {left:?} and was not renewed; a stop may take {:?}", s.config.stop_budget),
    ))
}

/// The right to make the cluster hangs on our lease (DL11). When somebody else has it, what we made is nobody's. When we
/// cannot know, it is nobody's too, unless we have already tried to give it its name: then it may be the only copy there is,
/// and is stopped but kept.
pub(super) fn stop_bootstrap_without_key(s: &Snapshot) -> Option<Verdict> {
    if !s.memory.bootstrapping || matches!(s.job.as_ref().map(|j| &j.job), Some(Job::SetAside)) {
        return None;
    }
    let why = match s.view().map(|view| &view.initialize) {
        Some(Initialize::InProgress { lease, .. }) if *lease == s.lease.id => return None,
        Some(Initialize::Known(id)) if s.local_system_id().is_none_or(|own| own == *id) => return None,
        Some(Initialize::InProgress { .. } | Initialize::Known(_)) => {
            "another member makes the cluster, or has made it"
        }
        Some(Initialize::Absent | Initialize::Garbage { .. }) => "`initialize` is no longer ours",
        None if s.lease.ends.is_some_and(|ends| s.now < ends.minus(s.config.stop_budget)) => return None,
        None if s.memory.named => {
            let up = s.postgres.is_up() && !stopping(s).is_some_and(StopMode::is_forced);
            let postgres = if up { Move::Stop(StopMode::Immediate) } else { Move::Stay };
            return Some(Verdict::new(
                Plan::of(Lease::Keep, postgres),
                "our lease has run out, and whether the new cluster got its name is not known: it is stopped, and kept",
            ));
        }
        None => "our lease has run out",
    };
    let plan = Plan::of(Lease::AbandonBootstrap, Move::SetAside).and_exit(Exit::Failed);
    Some(Verdict::new(plan, format!("the bootstrap is given up: {why}; the data directory is set aside")))
}

/// Ordered to stop in the middle of making the cluster: somebody else shall make it. Not once the cluster was to be named after
/// this data: what came of that write may not be known yet, and this is the only copy then.
pub(super) fn abandon_bootstrap_when_ordered(s: &Snapshot) -> Option<Verdict> {
    let making = s.memory.bootstrapping && s.view().is_none_or(|view| view.initialize.system_id().is_none());
    let under_way = matches!(s.job.as_ref().map(|j| &j.job), Some(Job::SetAside));
    (s.order == Order::Stop && making && !s.memory.named && !under_way).then(|| {
        let plan = Plan::of(Lease::AbandonBootstrap, Move::SetAside).and_exit(Exit::Done);
        Verdict::new(plan, "ordered to stop while making the cluster: leaving that to another member")
    })
}

/// In maintenance mode an agent comes and goes without touching the server or the key.
pub(super) fn leave_postgres_in_pause(s: &Snapshot) -> Option<Verdict> {
    (s.order == Order::Stop && s.config.pause).then(|| {
        Verdict::new(
            Plan::stay().and_exit(Exit::Done),
            "ordered to stop while the cluster is paused: PostgreSQL and the leader key stay as they are",
        )
    })
}

/// An ordered stop: fast, while the lease is kept. A server that cannot be stopped keeps its lock (D9).
pub(super) fn stop_postgres_when_ordered(s: &Snapshot) -> Option<Verdict> {
    if s.order != Order::Stop || !s.postgres.is_up() || stopping(s).is_some() {
        return None;
    }
    Some(Verdict::new(Plan::of(Lease::Keep, Move::Stop(StopMode::Fast)), "ordered to stop: stopping PostgreSQL first"))
}

/// The last position of a server that wrote its shutdown checkpoint (D4: what `status` says at a release).
pub(super) fn shutdown_position(s: &Snapshot) -> Option<Lsn> {
    let control = s.postgres.control()?;
    (control.state == ClusterState::ShutDown).then_some(control.checkpoint)
}

pub(super) fn final_status(s: &Snapshot) -> Vec<KeyWrite> {
    let Some(view) = s.view() else { return Vec::new() };
    let Some(optime) = shutdown_position(s) else { return Vec::new() };
    vec![KeyWrite::Status(Status { optime: Some(optime), ..view.status.clone() })]
}

/// Clients wait, and the standbys have every commit that was acknowledged: an operator's bound ends a slow stop.
pub(super) fn end_slow_stop(s: &Snapshot) -> Option<Verdict> {
    let limit = s.config.primary_stop_timeout;
    let bounded = !limit.is_zero() && s.config.synchronous_mode != SyncMode::Off && s.seat() == Seat::Mine;
    let since = s.job.as_ref().filter(|_| bounded && stopping(s) == Some(StopMode::Fast))?.since;
    (since.until(s.now) >= limit).then(|| {
        let why = format!("PostgreSQL has been stopping for {}s, which is primary_stop_timeout", limit.as_secs());
        Verdict::new(Plan::of(Lease::Keep, Move::Stop(StopMode::Immediate)), why)
    })
}

/// The server has shut down but for its archiver: as soon as a standby has the shutdown checkpoint, it may lead.
pub(super) fn hand_over_early(s: &Snapshot) -> Option<Verdict> {
    // One that still answered when it was asked is looked at again.
    let archives = s.postgres.is_up() && s.sql().is_none() && stopping(s) == Some(StopMode::Fast);
    let shut_down_at = shutdown_position(s).filter(|_| archives)?;
    // Whoever leaves for another cluster's primary to take over keeps the key (Z6).
    if s.seat() != Seat::Mine || s.key_to_adopt().is_some() || s.leads_standbys() {
        return None;
    }
    let Some(peers) = s.fresh_peers() else {
        let whom = s.peers_to_ask();
        return (!whom.is_empty()).then(|| {
            Verdict::new(Plan::ask(whom), "shut down, the archiver still works: who has the shutdown checkpoint?")
        });
    };
    // A candidate that was named must have it, and no other.
    let named = super::switchover::candidate(s);
    let mut heirs = peers.answers().filter(|(name, _)| named.is_none_or(|named| *name == named));
    let found = heirs.find(|(_, a)| super::election::could_lead(a) && a.position > shut_down_at);
    let Some((name, answer)) = found else {
        let why = format!("shut down at {shut_down_at}, the archiver still works, and nobody has that yet");
        return Some(Verdict::new(Plan::stay(), why).again_in(Duration::from_secs(1)));
    };
    Some(Verdict::new(
        Plan::of(Lease::Release, Move::Stay).and_write(final_status(s)),
        format!(
            "shut down at {shut_down_at}; {name} has it ({}): handing over before the archiver ends",
            answer.position
        ),
    ))
}

/// Ordered to stop, and down: the key goes back, so that nobody waits for the TTL.
pub(super) fn release_when_stopped(s: &Snapshot) -> Option<Verdict> {
    let down = s.order == Order::Stop && !s.postgres.is_up() && stopping(s).is_none();
    (down && s.seat() == Seat::Mine && s.key_to_adopt().is_none()).then(|| {
        Verdict::new(
            Plan::of(Lease::Release, Move::Stay).and_write(final_status(s)),
            "ordered to stop and PostgreSQL is down: giving the leader key back",
        )
        .again_in(Duration::ZERO)
    })
}

/// Ordered to stop, down, and nothing left to give back.
pub(super) fn exit_when_stopped(s: &Snapshot) -> Option<Verdict> {
    // A rewind that is broken off leaves a directory that must be cloned.
    let rewinding = matches!(s.job.as_ref().map(|running| &running.job), Some(Job::Rewind { .. }));
    (s.order == Order::Stop && !s.postgres.is_up() && stopping(s).is_none() && !rewinding)
        .then(|| Verdict::new(Plan::stay().and_exit(Exit::Done), "ordered to stop, and PostgreSQL is down"))
}

/// This data directory belongs to another cluster than the key says.
pub(super) fn leave_foreign_cluster(s: &Snapshot) -> Option<Verdict> {
    let cluster = s.view()?.initialize.system_id()?;
    let own = s.local_system_id().filter(|own| *own != cluster)?;
    if s.busy().is_some() || s.memory.bootstrapping {
        return None;
    }
    let lease = if s.seat() == Seat::Mine && !s.postgres.is_up() { Lease::Release } else { Lease::LetRun };
    if s.config.pause {
        return Some(Verdict::new(
            Plan::of(lease, Move::Stay),
            format!("system identifier {own} is not the cluster's ({cluster}); leaving at resume"),
        ));
    }
    Some(Verdict::new(
        Plan::of(lease, Move::Stay).and_exit(Exit::Failed),
        format!(
            "the data directory has system identifier {own}, the cluster {cluster}: this is another cluster's data. \
             Nothing was changed. Give this member an empty data_dir, or another scope"
        ),
    ))
}

/// No identity in etcd, and a replica runs here: its primary must be taken over first.
pub(super) fn leave_when_primary_unknown(s: &Snapshot) -> Option<Verdict> {
    let view = s.view().filter(|view| view.initialize.system_id().is_none() && view.leader.is_none())?;
    let first = !s.memory.met && !s.config.pause && s.standby().is_some();
    let in_progress = matches!(view.initialize, Initialize::InProgress { .. });
    (first && !in_progress).then(|| {
        Verdict::new(
            Plan::of(Lease::LetRun, Move::Stay).and_exit(Exit::Failed),
            "a standby runs here and etcd knows no cluster of this name: start Regent beside its primary first. \
             PostgreSQL was left running",
        )
    })
}

/// No identity in etcd, and data is here that is a primary's, or stopped: this is the cluster.
pub(super) fn adopt_existing_cluster(s: &Snapshot) -> Option<Verdict> {
    let view = s.view().filter(|view| view.leader.is_none())?;
    if view.initialize != Initialize::Absent || s.memory.bootstrapping || s.config.pause || s.busy().is_some() {
        return None;
    }
    let id = s.local_system_id()?;
    if s.memory.met && s.standby().is_some() {
        return None; // A replica never restores `initialize` later.
    }
    let ours = !s.postgres.is_up() && !s.memory.met || s.is_primary();
    ours.then(|| {
        Verdict::new(
            Plan::stay().and_write(vec![KeyWrite::Identify { id, seen: None }]),
            format!("etcd knows no cluster of this name; adopting the one found here ({id})"),
        )
        .again_in(Duration::ZERO)
    })
}

#[cfg(test)]
mod tests {
    use crate::fixture::{cut_off, primary, secs, standby};
    use crate::plan::{Lease, Move};
    use crate::postgres::{Job, StopMode};
    use crate::rules::decide;

    #[test]
    fn leave_living_namesake() {
        let d = decide(&standby().with(|s| s.namesake = Some("http://10.0.0.9:8008/patroni".into())));
        assert_eq!((d.rule, d.plan.exit), ("leave_living_namesake", Some(crate::plan::Exit::Failed)));
    }

    #[test]
    fn stop_before_lease_ends() {
        for (left, rule) in [(20, "hold"), (6, "hold"), (5, "stop_before_lease_ends"), (0, "stop_before_lease_ends")] {
            let s = primary().stop_budget(secs(5)).lease_ends_in(secs(left)).with(cut_off);
            assert_eq!(decide(&s).rule, rule, "lease ends in {left} s");
        }
        let reachable = primary().stop_budget(secs(5)).lease_ends_in(secs(5)).build();
        assert_eq!(decide(&reachable).rule, "stop_before_lease_ends", "also when reads work and only renewals fail");
        assert_eq!(decide(&reachable).plan.postgres, Move::Stop(StopMode::FastThenImmediate), "standbys get the rest");
        let late = primary().stop_budget(secs(4)).lease_ends_in(secs(2)).build();
        assert_eq!(decide(&late).plan.postgres, Move::Stop(StopMode::Immediate), "no time for politeness");
        let promoting = standby().holding_the_key().lease_ends_in(secs(1)).job(Job::Promote).build();
        assert_eq!(decide(&promoting).plan.postgres, Move::Stop(StopMode::Immediate), "a promotion is a write to come");
        assert_eq!(decide(&promoting).plan.lease, Lease::LetRun, "nobody renews a lease while going down by force");
    }

    #[test]
    fn stop_before_lease_ends_escalates_a_fast_stop_only_once() {
        let fast = primary().lease_ends_in(secs(1)).job(Job::Stop(StopMode::Fast)).build();
        assert_eq!(decide(&fast).plan.postgres, Move::Stop(StopMode::Immediate));
        for forced in [StopMode::FastThenImmediate, StopMode::Immediate] {
            let stopping = primary().lease_ends_in(secs(1)).job(Job::Stop(forced)).build();
            assert_eq!(decide(&stopping).rule, "wait_for_job");
        }
    }

    #[test]
    fn an_ordered_stop_goes_server_first_key_second_exit_last() {
        let running = primary().ordered_to_stop();
        assert_eq!(decide(&running.build()).rule, "stop_postgres_when_ordered");
        assert_eq!(decide(&running.build()).plan.lease, Lease::Keep, "no release while the server runs (D9)");
        let down = primary().ordered_to_stop().shut_down();
        assert_eq!(
            (decide(&down.build()).rule, decide(&down.build()).plan.lease),
            ("release_when_stopped", Lease::Release)
        );
        let released = down.vacant();
        assert_eq!(decide(&released.build()).rule, "exit_when_stopped");
        let paused = primary().ordered_to_stop().paused().build();
        assert_eq!((decide(&paused).rule, decide(&paused).plan.postgres), ("leave_postgres_in_pause", Move::Stay));
    }

    #[test]
    fn an_ordered_stop_lets_a_rewind_end() {
        let rewinding = standby().down().ordered_to_stop().job(Job::Rewind { from: "b".into() }).build();
        assert_eq!(decide(&rewinding).rule, "wait_for_job");
    }

    #[test]
    fn abandon_bootstrap_when_ordered() {
        let making = primary().vacant().bootstrapping().ordered_to_stop().build();
        let d = decide(&making);
        assert_eq!((d.rule, d.plan.postgres), ("abandon_bootstrap_when_ordered", Move::SetAside));
        let mut named = making;
        named.memory.named = true;
        let d = decide(&named);
        assert_eq!((d.rule, d.plan.postgres), ("stop_postgres_when_ordered", Move::Stop(StopMode::Fast)));
    }

    #[test]
    fn hand_over_early() {
        let archiving = || primary().ordered_to_stop().shut_down().still_up().job(Job::Stop(StopMode::Fast));
        assert!(!decide(&archiving().build()).plan.ask.is_empty(), "it asks who has the checkpoint");
        let behind = archiving().answers("b", 0).build();
        assert_eq!((decide(&behind).rule, decide(&behind).look_again), ("hand_over_early", secs(1)));
        let there = archiving().answers("b", 1_000_000).build();
        assert_eq!((decide(&there).rule, &decide(&there).plan.lease), ("hand_over_early", &Lease::Release));
        let mut answered = there.clone();
        answered.postgres.sql = primary().build().postgres.sql;
        assert_eq!(decide(&answered).rule, "wait_for_job", "the control file is younger than its answer");
    }

    #[test]
    fn end_slow_stop() {
        use crate::config::SyncMode;
        let stopping = |mode, limit, for_secs| {
            let s = primary().ordered_to_stop().job(Job::Stop(StopMode::Fast)).with(|s| {
                (s.config.synchronous_mode, s.config.primary_stop_timeout) = (mode, secs(limit));
                let since = s.now;
                s.job.as_mut().expect("a job").since = since;
                s.now = since + secs(for_secs);
            });
            decide(&s)
        };
        let late = stopping(SyncMode::On, 5, 5);
        assert_eq!((late.rule, late.plan.postgres), ("end_slow_stop", Move::Stop(StopMode::Immediate)));
        assert_eq!(stopping(SyncMode::On, 5, 4).rule, "wait_for_job");
        assert_eq!(stopping(SyncMode::On, 0, 5).rule, "wait_for_job", "no bound");
        assert_eq!(stopping(SyncMode::Off, 5, 5).rule, "wait_for_job", "a commit that nobody else has could be lost");
    }

    #[test]
    fn leave_foreign_cluster() {
        let foreign = standby().system_id(9_999_999_999).build();
        let d = decide(&foreign);
        assert_eq!((d.rule, d.plan.postgres), ("leave_foreign_cluster", Move::Stay));
        assert!(d.plan.exit.is_some());
    }

    #[test]
    fn leave_when_primary_unknown_and_adopt_existing_cluster() {
        let replica = standby().vacant().uninitialized().first_contact().build();
        assert_eq!(decide(&replica).rule, "leave_when_primary_unknown");
        let stopped = standby().vacant().uninitialized().first_contact().down().build();
        assert_eq!(decide(&stopped).rule, "adopt_existing_cluster");
        let primary = primary().vacant().uninitialized().first_contact().build();
        assert_eq!(decide(&primary).rule, "adopt_existing_cluster");
        let met_before = standby().vacant().uninitialized().build();
        assert_ne!(decide(&met_before).rule, "adopt_existing_cluster", "a replica never restores `initialize`");
    }

    #[test]
    fn stop_bootstrap_without_key() {
        let ours = primary().vacant().bootstrapping().build();
        assert_ne!(decide(&ours).rule, "stop_bootstrap_without_key");
        let expired = || primary().vacant().bootstrapping().lease_ends_in(secs(0));
        assert_ne!(decide(&expired().build()).rule, "stop_bootstrap_without_key", "etcd says that it is still ours");
        let unknown = expired().with(cut_off);
        assert_eq!(decide(&unknown).plan.postgres, Move::SetAside);
        let mut named = unknown;
        named.memory.named = true;
        assert_eq!(decide(&named).plan.postgres, Move::Stop(StopMode::Immediate), "it may be the only copy");
        assert_eq!(decide(&named).plan.exit, None);
        let lost = primary().vacant().bootstrapping().uninitialized().build();
        assert_eq!(decide(&lost).rule, "stop_bootstrap_without_key");
    }
}
