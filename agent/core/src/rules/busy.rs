//! A long action runs: wait for it, unless going on would be worse than stopping it.

use std::time::Duration;

use crate::plan::{Lease, Move, Plan, Verdict};
use crate::postgres::{Job, StopMode};
use crate::request::Request;
use crate::snapshot::{Seat, Snapshot};

fn job(s: &Snapshot) -> Option<&Job> {
    s.busy().map(|running| &running.job)
}

/// Whatever the job was to achieve: a server that writes while another member leads is stopped.
pub(super) fn stop_writer_beside_leader(s: &Snapshot) -> Option<Verdict> {
    let stopping = matches!(job(s), Some(Job::Stop(_)));
    (s.seat() == Seat::Theirs && s.may_write() && !stopping && !s.config.pause).then(|| {
        Verdict::new(
            Plan::of(Lease::Keep, Move::Stop(StopMode::Immediate)),
            "another member took the leader key while we were busy",
        )
    })
}

/// Promotion goes on only under the lock. Without an answer from etcd the lease decides, in the guards. In pause nothing is
/// stopped, as no primary is that loses its lock then (M8): it takes the key back.
pub(super) fn cancel_promotion_without_lock(s: &Snapshot) -> Option<Verdict> {
    (job(s) == Some(&Job::Promote) && s.seat() == Seat::Vacant && !s.config.pause).then(|| {
        Verdict::new(
            Plan::of(Lease::Keep, Move::Stop(StopMode::Immediate)),
            "the leader key was lost during the promotion",
        )
    })
}

/// A script that may fence somebody off runs only for who is to lead. Without an answer from etcd the lease decides.
pub(super) fn cancel_pre_promote_without_lock(s: &Snapshot) -> Option<Verdict> {
    let held = match s.seat() {
        Seat::Mine => true,
        Seat::Unknown => s.must_stop_at().is_some_and(|at| s.now < at),
        Seat::Theirs | Seat::Vacant => false,
    };
    (job(s) == Some(&Job::PrePromote) && !held).then(|| {
        Verdict::new(Plan::of(Lease::Keep, Move::Cancel), "the leader key was lost while pre_promote ran: ending it")
    })
}

/// A primary that starts without the lock must not come up, unless the cluster is paused.
pub(super) fn cancel_start_without_lock(s: &Snapshot) -> Option<Verdict> {
    let starting = matches!(job(s), Some(Job::Start { as_primary: true } | Job::Restart { as_primary: true }));
    let lost = s.seat() == Seat::Vacant || s.seat() == Seat::Unknown && s.lock_ends().is_none();
    (starting && lost && !s.config.pause).then(|| {
        Verdict::new(
            Plan::of(Lease::Keep, Move::Stop(StopMode::Immediate)),
            "the leader key was lost while PostgreSQL was starting as a primary",
        )
    })
}

/// The source of a clone is gone: its copy can't end. The next turn finds another source, or waits.
pub(super) fn cancel_clone_without_source(s: &Snapshot) -> Option<Verdict> {
    let Some(Job::Clone { from }) = job(s) else { return None };
    let view = s.view()?;
    // Without a leader the copy goes on: its source may still be well.
    (view.leader.is_some() && !view.members.contains_key(from) && !s.postgres.is_up()).then(|| {
        Verdict::new(Plan::of(Lease::Keep, Move::RemoveUnfinished), format!("{from}, the source of the clone, is gone"))
    })
}

/// An operator wants a new copy at once, whatever is under way here. Nothing that makes a primary is cancelled.
pub(super) fn cancel_for_reinitialize(s: &Snapshot) -> Option<Verdict> {
    let wanted = matches!(s.request, Some(Request::Reinitialize { force: true, .. })) && s.seat() == Seat::Theirs;
    let postgres = match job(s)? {
        Job::Clone { .. } if !s.postgres.is_up() => Move::RemoveUnfinished,
        Job::Rewind { .. } | Job::Start { as_primary: false } | Job::Restart { as_primary: false } | Job::CopySlots => {
            Move::Stop(StopMode::Immediate)
        }
        Job::Clone { .. }
        | Job::Restore
        | Job::Bootstrap
        | Job::GiveUpData
        | Job::DiscardOldCopy
        | Job::Start { as_primary: true }
        | Job::Restart { as_primary: true }
        | Job::Stop(_)
        | Job::PrePromote
        | Job::Promote
        | Job::Follow
        | Job::Checkpoint
        | Job::ChangeSlots
        | Job::ResumeReplay
        | Job::SetSyncNames
        | Job::RemoveUnfinished
        | Job::SetAside => return None,
    };
    wanted.then(|| Verdict::new(Plan::of(Lease::Keep, postgres), "asked for a new copy, whatever is under way"))
}

/// Another member leads now, and the source of a rewind is gone, so that its pg_rewind may wait for ever. Whether it had begun
/// to change anything shows on the next turn. A source that is still there may let it end.
pub(super) fn cancel_rewind_without_source(s: &Snapshot) -> Option<Verdict> {
    let Some(Job::Rewind { from }) = job(s) else { return None };
    let view = s.view()?;
    // The remote of a standby cluster has no key here.
    if s.config.standby_cluster.is_some() {
        return None;
    }
    let elsewhere = view.leader.as_ref().is_some_and(|leader| leader.name != *from);
    (elsewhere && !view.members.contains_key(from)).then(|| {
        let why = format!("{from}, the source of the rewind, is gone, and another member leads");
        Verdict::new(Plan::of(Lease::Keep, Move::Stop(StopMode::Immediate)), why)
    })
}

/// One action at a time.
pub(super) fn wait_for_job(s: &Snapshot) -> Verdict {
    // A forced stop under way is a demotion: renewing the lease now would only keep the others waiting.
    let forced = matches!(job(s), Some(Job::Stop(mode)) if mode.is_forced())
        && s.seat() != Seat::Theirs
        && s.lock_ends().is_some();
    let lease = if forced { Lease::LetRun } else { Lease::Keep };
    let what = job(s).map(|job| format!("{job:?}")).unwrap_or_default();
    let verdict = Verdict::new(Plan::of(lease, Move::Stay), format!("{what} is under way"));
    // The shutdown checkpoint comes without an event, and somebody may lead from then on (D3).
    let may_hand_over = job(s) == Some(&Job::Stop(StopMode::Fast)) && s.seat() == Seat::Mine;
    if may_hand_over { verdict.again_in(Duration::from_millis(300)) } else { verdict }
}

#[cfg(test)]
mod tests {
    use crate::fixture::{cut_off, primary, secs, standby};
    use crate::plan::{Lease, Move};
    use crate::postgres::{Job, StopMode};
    use crate::request::Request;
    use crate::rules::decide;

    #[test]
    fn cancel_promotion_without_lock() {
        for (s, cancels) in [
            (standby().holding_the_key().job(Job::Promote).build(), false),
            (standby().job(Job::Promote).build(), true),
            (standby().vacant().job(Job::Promote).build(), true),
            (standby().holding_the_key().job(Job::Promote).with(cut_off), false),
        ] {
            assert_eq!(decide(&s).plan.postgres == Move::Stop(StopMode::Immediate), cancels, "{:?}", s.seat());
        }
    }

    #[test]
    fn cancel_pre_promote_without_lock() {
        let running = |s: crate::fixture::Builder| s.job(Job::PrePromote);
        let holder = || running(standby().holding_the_key());
        for (s, rule) in [
            (holder().build(), "wait_for_job"),
            (holder().with(cut_off), "wait_for_job"),
            (holder().lease_ends_in(secs(1)).with(cut_off), "cancel_pre_promote_without_lock"),
            (running(standby()).build(), "cancel_pre_promote_without_lock"),
            (running(standby().vacant()).build(), "cancel_pre_promote_without_lock"),
        ] {
            assert_eq!(decide(&s).rule, rule, "{:?}", s.seat());
        }
    }

    #[test]
    fn cancel_start_without_lock() {
        let start = Job::Start { as_primary: true };
        let mine = primary().down().job(start.clone()).build();
        assert_eq!(decide(&mine).rule, "wait_for_job");
        let theirs = standby().down().job(start.clone()).build();
        assert_eq!(
            (decide(&theirs).rule, decide(&theirs).plan.postgres),
            ("stop_writer_beside_leader", Move::Stop(StopMode::Immediate))
        );
        let vacant = primary().down().vacant().job(start).build();
        assert_eq!(decide(&vacant).rule, "cancel_start_without_lock");
        let standby_start = standby().down().job(Job::Start { as_primary: false }).build();
        assert_eq!(decide(&standby_start).rule, "wait_for_job");
    }

    #[test]
    fn cancel_clone_without_source() {
        let from = |name: &str| Job::Clone { from: name.into() };
        assert_eq!(decide(&standby().empty().job(from("a")).build()).rule, "wait_for_job");
        assert_eq!(decide(&standby().empty().job(from("gone")).build()).rule, "cancel_clone_without_source");
    }

    #[test]
    fn cancel_for_reinitialize() {
        let forced = |s: crate::fixture::Builder, force| {
            decide(&s.with(|s| s.request = Some(Request::Reinitialize { from_leader: false, force }))).rule
        };
        let cloning = || standby().empty().job(Job::Clone { from: "b".into() });
        assert_eq!(forced(cloning(), true), "cancel_for_reinitialize");
        assert_eq!(forced(cloning(), false), "wait_for_job");
        assert_eq!(forced(standby().job(Job::Promote), true), "stop_writer_beside_leader");
        assert_eq!(forced(standby().down().job(Job::GiveUpData), true), "wait_for_job");
    }

    #[test]
    fn cancel_rewind_without_source() {
        let from = |name: &str| Job::Rewind { from: name.into() };
        for (s, rule) in [
            (standby().down().job(from("b")).build(), "wait_for_job"),
            (standby().down().led_by("c").job(from("b")).build(), "wait_for_job"),
            (standby().down().led_by("c").without_member("b").job(from("b")).build(), "cancel_rewind_without_source"),
            (standby().down().vacant().without_member("b").job(from("b")).build(), "wait_for_job"),
        ] {
            assert_eq!(decide(&s).rule, rule);
        }
    }

    #[test]
    fn wait_for_job_claims_nothing_while_a_forced_stop_runs() {
        let forced = primary().lease_ends_in(secs(20)).job(Job::Stop(StopMode::Immediate)).build();
        assert_eq!(decide(&forced).plan.lease, Lease::LetRun);
        let ordered = primary().lease_ends_in(secs(20)).job(Job::Stop(StopMode::Fast)).build();
        assert_eq!(decide(&ordered).plan.lease, Lease::Keep, "a clean stop keeps the key until it is down (D9)");
    }
}
