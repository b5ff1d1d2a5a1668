//! Maintenance mode: the operator works, the agent keeps the books, and standbys keep following whoever leads.

use std::time::Duration;

use super::{election, follower, leader, repair, standby_cluster, switchover, synchronous};
use crate::plan::{Lease, Move, Plan, Verdict};
use crate::postgres::DataDir;
use crate::snapshot::{Seat, Snapshot};

/// How soon to look again at something that changes without an event.
const SOON: Duration = Duration::from_millis(500);

/// A restarted agent takes its own key over, in pause as ever.
pub(super) fn adopt_leader_key_in_pause(s: &Snapshot) -> Option<Verdict> {
    leader::wait_for_own_lease(s).or_else(|| leader::adopt_leader_key(s)).filter(|_| s.seat() == Seat::Mine)
}

/// It was named by an operator and holds the key: the one promotion that there is in pause. The request stays on the table
/// until the server is a primary: without it the next turn would give the key back (L1).
pub(super) fn promote_candidate_in_pause(s: &Snapshot) -> Option<Verdict> {
    let named = s.seat() == Seat::Mine && switchover::names_me(s) && !s.leads_standbys();
    if !named || s.is_primary() || !s.postgres.is_up() {
        return None;
    }
    let steps = [
        leader::give_up_without_guardian,
        leader::yield_to_failsafe_leader,
        leader::promise_next_timeline,
        synchronous::prepare_promotion,
        leader::promote,
    ];
    let waits = || Verdict::new(Plan::stay(), "we were named and hold the key; waiting for PostgreSQL").again_in(SOON);
    Some(steps.iter().find_map(|step| step(s)).unwrap_or_else(waits))
}

/// The key says "a primary is here", and none is. In a standby cluster it says nothing of the kind.
pub(super) fn release_key_without_primary(s: &Snapshot) -> Option<Verdict> {
    let mine = s.seat() == Seat::Mine && !s.leads_standbys();
    let none = mine && (!s.postgres.is_up() || s.standby().is_some());
    none.then(|| {
        switchover::release_to_successor(s).unwrap_or_else(|| {
            Verdict::new(Plan::of(Lease::Release, Move::Stay), "paused, and PostgreSQL is not a running primary here")
        })
    })
}

/// A running primary of this cluster takes a free key; the first one wins. Whom an operator named gets it from there, by a
/// hand-over, and not beside a primary that nobody would stop.
pub(super) fn take_key_as_primary(s: &Snapshot) -> Option<Verdict> {
    let view = s.view().filter(|_| s.seat() == Seat::Vacant && s.is_primary() && s.lease.id.is_some())?;
    let ours = view.initialize.system_id().is_none_or(|cluster| s.local_system_id() == Some(cluster));
    ours.then(|| election::take_as_primary(s, "paused, and a primary of this cluster runs here")).flatten()
}

/// Nobody runs for leader in pause but the member that an operator named; and it neither while a primary lives, since in pause
/// that one is not stopped.
pub(super) fn run_as_candidate_in_pause(s: &Snapshot) -> Option<Verdict> {
    let named = s.seat() == Seat::Vacant && switchover::names_me(s) && !s.config.tags.nofailover;
    if !named || s.is_primary() || !s.postgres.is_up() {
        return None;
    }
    let against = [
        election::wait_while_starting,
        election::wait_for_failsafe_leader,
        election::wait_for_guardian,
        election::wait_for_lease,
        synchronous::wait_unlisted,
        election::ask_the_others,
        election::wait_for_living_primary,
        election::wait_after_start,
        synchronous::wait_for_votes,
    ];
    Some(against.iter().find_map(|rule| rule(s)).unwrap_or_else(|| election::run_for_leader(s)))
}

/// Stopped by this agent to hand over: that was asked for, and so is its return. As a standby of the new primary, by way of
/// pg_rewind if need be; once. Where the successor does not come, it comes back without one.
pub(super) fn come_back_after_hand_over(s: &Snapshot) -> Option<Verdict> {
    let waits = s.memory.comes_back && !s.postgres.is_up() && matches!(s.postgres.data_dir, DataDir::Present(_));
    match s.seat() {
        Seat::Theirs if waits && repair::leads_as_primary(s) => repair::rewind_diverged(s)
            .or_else(|| repair::stay_down_diverged(s))
            .or_else(|| follower::start_as_standby(s)),
        Seat::Vacant if waits && switchover::vacant_for(s) >= s.config.loop_wait => election::start_without_upstream(s),
        Seat::Theirs | Seat::Vacant if waits => {
            Some(Verdict::new(Plan::stay(), "handed over: waiting for the next primary").again_in(SOON))
        }
        Seat::Mine | Seat::Theirs | Seat::Vacant | Seat::Unknown => None,
    }
}

/// A standby follows whoever leads, and keeps the others' log; nothing is removed.
pub(super) fn follow_in_pause(s: &Snapshot) -> Option<Verdict> {
    s.standby().filter(|_| s.seat() == Seat::Theirs || s.leads_standbys())?;
    follower::follow_leader(s).or_else(|| follower::prepare_slots(s))
}

/// The holder goes on keeping status, history and identity, and whom its server waits for: commits must not hang on a standby
/// that an operator stopped. To a candidate that was named it hands over as ever.
pub(super) fn keep_records_in_pause(s: &Snapshot) -> Option<Verdict> {
    let steps = [
        leader::record_own_timeline,
        leader::repair_identity,
        leader::restore_config,
        synchronous::publish_sync,
        synchronous::wait_for_standbys,
        switchover::drop_request,
        switchover::checkpoint_ahead,
        switchover::ask_candidates,
        switchover::refuse_request,
        switchover::hand_over,
        leader::look_after_slots,
        leader::checkpoint_after_promotion,
    ];
    let standbys = [
        leader::repair_identity,
        leader::restore_config,
        switchover::drop_request,
        switchover::ask_candidates,
        switchover::refuse_request,
        standby_cluster::hand_over_standbys,
    ];
    if s.leads_standbys() && !s.is_primary() {
        return Some(standbys.iter().find_map(|step| step(s)).unwrap_or_else(|| standby_cluster::lead_standbys(s)));
    }
    (s.seat() == Seat::Mine && s.is_primary())
        .then(|| steps.iter().find_map(|step| step(s)).unwrap_or_else(|| leader::lead(s)))
}

/// Everything else is the operator's.
pub(super) fn hands_off(s: &Snapshot) -> Verdict {
    let why = match s.seat() {
        Seat::Theirs if s.is_primary() => "paused; two primaries run: this one does not hold the leader key",
        Seat::Mine | Seat::Theirs | Seat::Vacant | Seat::Unknown => "paused",
    };
    let plan = Plan { upkeep: crate::slots::upkeep(s), ..Plan::stay() };
    Verdict::new(plan, why)
}

#[cfg(test)]
mod tests {
    use crate::cluster::{Failover, Schedule};
    use crate::fixture::{Builder, cut_off, primary, secs, slot, standby};
    use crate::plan::{KeyWrite, Lease, Move};
    use crate::postgres::{FinishedJob, Job, SlotChanges, StopMode, Upstream};
    use crate::rules::decide;
    use crate::snapshot::Snapshot;
    use crate::units::Revision;

    /// Somebody asks: from this leader, to this candidate.
    fn asked(builder: Builder, leader: Option<&str>, candidate: Option<&str>) -> Builder {
        let (leader, candidate) = (leader.map(Into::into), candidate.map(Into::into));
        let asked = Failover { leader, candidate, schedule: None, modified: Revision(77) };
        builder.paused().but(|s| s.dcs.as_mut().expect("reachable").failover = Some(asked))
    }

    fn handed_over(builder: Builder) -> Builder {
        builder.paused().demoted().shut_down().but(|s| s.memory.comes_back = true)
    }

    #[test]
    fn a_primary_hands_over_to_the_candidate_that_was_named_and_to_no_other() {
        let ready = |leader, to| asked(primary(), leader, to).but(|s| s.memory.checkpoint_at = Some(s.now));
        for leader in [Some("a"), None] {
            let d = decide(&ready(leader, Some("b")).answers("b", 1_000).build());
            assert_eq!((d.rule, d.plan.postgres), ("keep_records_in_pause", Move::Stop(StopMode::Fast)));
        }
        let nobody = decide(&ready(Some("a"), None).answers("b", 1_000).build());
        assert_eq!(nobody.plan.keys, [KeyWrite::ClearFailover { seen: Revision(77) }], "S5");
        let unfit = decide(&ready(Some("a"), Some("b")).unreachable("b").build());
        assert_eq!(unfit.plan.keys, [KeyWrite::ClearFailover { seen: Revision(77) }], "S6");
        let scheduled = |at: u64| {
            let schedule = Schedule { at: Some(secs(at)), text: String::new() };
            ready(Some("a"), Some("b")).answers("b", 1_000).with(|s| {
                s.dcs.as_mut().expect("reachable").failover.as_mut().expect("asked").schedule = Some(schedule);
            })
        };
        for at in [1, 1_800_000_000] {
            let d = decide(&scheduled(at));
            assert_eq!(d.plan.postgres, Move::Stay, "S2");
            assert!(!d.plan.keys.iter().any(|key| matches!(key, KeyWrite::ClearFailover { .. })), "S2");
        }
        let down = asked(primary().shut_down(), Some("a"), Some("b")).build();
        let d = decide(&down);
        assert_eq!((d.rule, d.plan.lease), ("release_key_without_primary", Lease::Release));
        assert!(matches!(d.plan.keys[..], [KeyWrite::Status(_)]), "D4");
    }

    #[test]
    fn only_who_was_named_runs_for_leader_and_is_promoted_and_not_beside_a_primary() {
        let vacant = |to| asked(standby().vacant(), Some("b"), Some(to)).answers("c", 1_000);
        let d = decide(&vacant("a").build());
        assert_eq!(d.rule, "run_as_candidate_in_pause");
        assert!(matches!(d.plan.lease, Lease::Take { .. }));
        assert_eq!(decide(&vacant("c").build()).rule, "hands_off", "R6");
        assert_eq!(decide(&vacant("a").nofailover().build()).rule, "hands_off", "R2");
        let alive = vacant("a").answer("b", |answer| answer.is_primary = true).build();
        assert_eq!(decide(&alive).plan.lease, Lease::Keep, "R16");
        let first = decide(&asked(standby().vacant(), None, Some("a")).build());
        assert!(!first.plan.ask.is_empty(), "a primary that lives would not be stopped");

        let won = || asked(standby().holding_the_key(), Some("b"), Some("a"));
        assert!(matches!(decide(&won().build()).plan.lease, Lease::Promise { .. }));
        let d = decide(&won().promised("a", 2).build());
        assert_eq!(
            (d.rule, &d.plan.postgres),
            ("promote_candidate_in_pause", &Move::Promote(crate::units::Timeline(2)))
        );
        assert_eq!(d.plan.keys, [], "without the request the next turn would give the key back (L1)");
        let starting = won().starting(secs(3)).build();
        assert_eq!((decide(&starting).rule, decide(&starting).plan.lease), ("promote_candidate_in_pause", Lease::Keep));
        let other = asked(standby().holding_the_key(), Some("b"), Some("c")).build();
        assert_eq!(decide(&other).plan.lease, Lease::Release, "L1");
        let done = decide(&asked(primary(), Some("b"), Some("a")).build());
        assert_eq!(done.plan.keys, [KeyWrite::ClearFailover { seen: Revision(77) }], "S4");
    }

    #[test]
    fn who_handed_over_comes_back_once_and_who_was_stopped_by_hand_does_not() {
        let leads = |m: &mut crate::cluster::Member| (m.state, m.role) = ("running".into(), "primary".into());
        let elsewhere = || handed_over(primary().led_by("b").member("b", leads));
        let d = decide(&elsewhere().build());
        assert_eq!(d.rule, "come_back_after_hand_over");
        assert!(matches!(d.plan.postgres, Move::StartStandby(Upstream::Member { .. })));
        let by_hand = elsewhere().with(|s| s.memory.comes_back = false);
        assert_eq!(decide(&by_hand).rule, "hands_off");
        let not_yet = elsewhere().member("b", |m| m.role = "replica".into()).build();
        assert_eq!(decide(&not_yet).plan.postgres, Move::Stay, "X1");
        let diverged = || elsewhere().cluster_on_timeline(2, &[(1, 10)]).member("b", leads);
        assert!(matches!(
            decide(&diverged().but_config(|config| config.use_pg_rewind = true).build()).plan.postgres,
            Move::Rewind { .. }
        ));
        assert_eq!(decide(&diverged().build()).plan.postgres, Move::Stay, "down, with a reason");

        let nobody = |since: u64| {
            handed_over(primary().vacant()).with(|s| s.memory.vacant_since = Some(s.now.minus(secs(since))))
        };
        assert_eq!(decide(&nobody(9)).plan.postgres, Move::Stay);
        assert_eq!(decide(&nobody(10)).plan.postgres, Move::StartStandby(Upstream::Nobody));
    }

    #[test]
    fn a_hand_over_is_remembered_until_the_server_is_started_or_cannot_be_rewound() {
        let stops =
            asked(primary(), Some("a"), Some("b")).but(|s| s.memory.checkpoint_at = Some(s.now)).answers("b", 1_000);
        let after = |s: &Snapshot| {
            let d = decide(s);
            s.memory.after(s, &d, crate::memory::LeaseOutcome::NotTried)
        };
        let mut memory = after(&stops.build());
        assert!(memory.comes_back);
        assert!(after(&stops.job(Job::Stop(StopMode::Fast)).with(|s| s.memory.comes_back = true)).comes_back);
        assert!(
            !after(&primary().paused().with(|s| s.memory.comes_back = true)).comes_back,
            "it was not stopped after all"
        );
        let job = Job::Rewind { from: "b".into() };
        memory.job_ended(FinishedJob { job, at: crate::units::Instant::default(), error: Some("no".into()) }, None);
        assert!(!memory.comes_back, "M7");
        let resumed = standby().with(|s| {
            s.memory.paused = true;
            s.memory.rewinds = Some(crate::memory::Rewinds { from: "b".into(), tries: 3 });
        });
        assert_eq!(after(&resumed).rewinds, None, "M13");
    }

    #[test]
    fn standbys_follow_in_pause_and_slots_are_made_and_none_is_removed() {
        let d = decide(&standby().paused().led_by("c").build());
        assert_eq!(d.rule, "follow_in_pause");
        assert!(matches!(d.plan.postgres, Move::Follow(Upstream::Member { name, .. }) if name.0 == "c"));
        for s in [standby(), primary()] {
            let s = s.paused().without_slots().but(|s| {
                s.dcs.as_mut().expect("reachable").config = crate::cluster::ConfigKey::Valid(Revision(1));
                let lost = crate::postgres::Slot { lost: true, ..slot("c") };
                s.postgres.sql.as_mut().expect("answers").slots = vec![slot("gone"), lost];
            });
            assert_eq!(decide(&s.build()).plan.postgres, Move::ChangeSlots(SlotChanges::creating(["b"])));
        }
        assert_eq!(decide(&standby().paused().vacant().build()).rule, "hands_off", "it keeps what it has");
        let to_c = asked(standby().vacant(), None, Some("a")).agreed_to_b(secs(9)).with(|s| {
            s.postgres.sql.as_mut().expect("answers").upstream = Some("c:5432".into());
        });
        let d = decide(&to_c);
        assert_eq!((d.rule, d.plan.postgres), ("run_as_candidate_in_pause", Move::Stay), "also by its own word");
    }

    #[test]
    fn a_promotion_under_way_is_not_broken_off_in_pause() {
        let lost = standby().paused().vacant().job(Job::Promote);
        assert_eq!((decide(&lost.build()).rule, decide(&lost.build()).plan.postgres), ("wait_for_job", Move::Stay));
    }

    #[test]
    fn nothing_moves_in_pause() {
        for s in [
            primary().paused().build(),
            primary().paused().down().build(),
            primary().paused().with(cut_off),
            standby().paused().build(),
            standby().paused().vacant().build(),
            standby().paused().down().build(),
            standby().paused().empty().build(),
            primary().paused().led_by("b").build(),
        ] {
            assert_eq!(decide(&s).plan.postgres, Move::Stay, "{}", decide(&s).rule);
        }
    }

    #[test]
    fn commits_do_not_hang_on_a_standby_that_was_stopped_in_pause() {
        let listed = |s: &mut crate::snapshot::Snapshot| {
            s.config.synchronous_mode = crate::config::SyncMode::On;
            s.postgres.sql.as_mut().expect("answers").sync_names = "b".into();
            let sync = crate::cluster::SyncState { leader: "a".into(), standbys: ["b".into()].into(), quorum: 0 };
            s.dcs.as_mut().expect("reachable").sync = Some(sync);
        };
        let d = decide(&primary().paused().with(listed));
        assert!(matches!(d.plan.keys[..], [crate::plan::KeyWrite::Sync { .. }, ..]), "unlisted first: {}", d.rule);
        let unlisted = primary().paused().but(listed).with(|s| {
            s.dcs.as_mut().expect("reachable").sync.as_mut().expect("active").standbys.clear();
        });
        assert_eq!(decide(&unlisted).plan.postgres, Move::SetSyncNames(Some(String::new())));
    }

    #[test]
    fn the_key_stays_true_in_pause() {
        let (kept, released) = (decide(&primary().paused().build()), decide(&primary().paused().down().build()));
        assert_eq!((kept.rule, kept.plan.lease), ("keep_records_in_pause", Lease::Keep));
        assert_eq!((released.rule, released.plan.lease), ("release_key_without_primary", Lease::Release));
        let taken = decide(&primary().paused().vacant().build());
        assert_eq!(taken.rule, "take_key_as_primary");
        assert!(matches!(taken.plan.lease, Lease::Take { .. }));
        let adopted = decide(&primary().paused().key_on_lease(77).build());
        assert_eq!(adopted.rule, "adopt_leader_key_in_pause");
        assert!(matches!(adopted.plan.lease, Lease::Adopt { .. }));
        assert_eq!(decide(&standby().paused().vacant().build()).rule, "hands_off");
    }
}
