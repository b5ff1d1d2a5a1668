//! I hold the leader key: keep it only while it means something, promote under it, keep the cluster's books.

use std::time::Duration;

use super::election::{could_lead, next_promise, present_promise};
use super::follower::just_failed;
use crate::cluster::{ConfigKey, HistoryLine, Initialize, Status};
use crate::memory::Role;
use crate::plan::{KeyWrite, Lease, Move, Plan, Verdict};
use crate::postgres::{ClusterState, DataDir, Job, Process, SlotChanges, SqlFacts, StopMode, Upstream};
use crate::slots;
use crate::snapshot::{Guardian, Seat, Snapshot, Watchdog};
use crate::units::Timeline;

/// How soon to look again at something that changes without an event.
const SOON: Duration = Duration::from_millis(200);

/// The key is mine, and I have no lease yet to move it to: just started.
pub(super) fn wait_for_own_lease(s: &Snapshot) -> Option<Verdict> {
    (s.key_to_adopt().is_some() && s.lease.id.is_none()).then(|| {
        Verdict::new(Plan::stay(), "the leader key is ours, on an old lease; waiting for a new one").again_in(SOON)
    })
}

/// My key hangs on another lease: I was restarted, or `ttl` changed.
pub(super) fn adopt_leader_key(s: &Snapshot) -> Option<Verdict> {
    let key = s.key_to_adopt()?;
    Some(
        Verdict::new(
            Plan::of(Lease::Adopt { seen: key.modified }, Move::Stay),
            "the leader key is ours, on another lease: moving it to the present one",
        )
        .again_in(Duration::ZERO),
    )
}

/// Lost storage. What still runs is stopped before the key goes.
pub(super) fn give_up_lost_data(s: &Snapshot) -> Option<Verdict> {
    let lost = match &s.postgres.data_dir {
        DataDir::Empty => "the data directory is empty".to_owned(),
        DataDir::Unfinished => "the data directory is unfinished".to_owned(),
        DataDir::HalfRewound => "the data directory is half-rewound".to_owned(),
        DataDir::Unusable(why) => format!("the data directory is unusable: {why}"),
        DataDir::Unreadable(why) if s.sql().is_none() => format!("the data directory cannot be read: {why}"),
        DataDir::Unreadable(_) | DataDir::Present(_) => return None,
    };
    Some(if s.postgres.is_up() {
        Verdict::new(Plan::of(Lease::LetRun, Move::Stop(StopMode::Immediate)), lost)
    } else {
        Verdict::new(Plan::of(Lease::Release, Move::Stay), lost).again_in(Duration::ZERO)
    })
}

/// One attempt to come back was made, and the server is down again: somebody else, please.
pub(super) fn give_up_after_failed_start(s: &Snapshot) -> Option<Verdict> {
    (!s.postgres.is_up() && s.memory.recovering).then(|| {
        let cause = s.memory.last_job.as_ref().and_then(|job| job.error.clone()).unwrap_or_default();
        Verdict::new(
            Plan::of(Lease::Release, Move::Stay),
            format!("PostgreSQL did not come up; giving the leader key back. {cause}"),
        )
    })
}

/// A stopped postmaster, a dead disk: it keeps its clients waiting, and would for ever while its lease is renewed. The
/// claim ends, so the lease follows; it has until then to come back.
pub(super) fn let_lease_of_hung_server_run(s: &Snapshot) -> Option<Verdict> {
    let since = s.memory.silent_since.filter(|_| s.hangs() && s.postgres.is_up())?;
    let why = format!("PostgreSQL has answered no connection for {:?}: not renewing the lease", s.now.since(since));
    Some(Verdict::new(Plan::of(Lease::LetRun, Move::Stay), why).again_in(SOON))
}

/// It hung until it was stopped at the end of its lease: what made it hang may well be here still.
pub(super) fn give_up_hung_server(s: &Snapshot) -> Option<Verdict> {
    (s.hangs() && !s.postgres.is_up()).then(|| {
        let why = "PostgreSQL hung and was stopped: giving the leader key back";
        Verdict::new(Plan::of(Lease::Release, Move::Stay), why)
    })
}

/// Could another member be promoted now?
enum Successor {
    /// The others must be asked first.
    Ask(Box<Plan>),
    Ready,
    Nobody,
}

fn successor(s: &Snapshot) -> Successor {
    let whom = s.peers_to_ask();
    if whom.is_empty() {
        return Successor::Nobody;
    }
    let Some(peers) = s.fresh_peers() else { return Successor::Ask(Box::new(Plan::ask(whom))) };
    let mine = s.memory.last_position.unwrap_or_default().max(s.cluster_position());
    let cluster_timeline = s.view().and_then(crate::cluster::ClusterView::timeline);
    let listed = |name| super::synchronous::is_listed(s, name);
    let ready = peers.answers().filter(|(name, _)| listed(name)).any(|(_, answer)| {
        let near = mine.bytes_ahead_of(answer.position) <= s.config.maximum_lag_on_failover;
        let same_line = !s.config.check_timeline || answer.timeline >= cluster_timeline;
        could_lead(answer) && !answer.is_primary && near && same_line
    });
    if ready { Successor::Ready } else { Successor::Nobody }
}

/// How long a guardian may take to come back before the key goes to a member that has one.
const GUARDIAN_PATIENCE: Duration = Duration::from_secs(3);

/// Nobody would stop this server at the deadline if its agent froze: it does not become a primary. One that runs as a
/// primary goes on: a guardian that cannot be started is no reason for an outage.
pub(super) fn give_up_without_guardian(s: &Snapshot) -> Option<Verdict> {
    let Guardian::Absent { why, since } = &s.guardian else { return None };
    if s.is_primary() {
        return None;
    }
    let took = s.now.since(*since);
    let may_release = !s.postgres.is_up() || s.standby().is_some();
    Some(if took >= GUARDIAN_PATIENCE && may_release {
        let why = format!("no guardian for {took:?} ({why}), so no leadership: giving the leader key back");
        Verdict::new(Plan::of(Lease::Release, Move::Stay), why)
    } else {
        Verdict::new(Plan::stay(), format!("waiting for the guardian: {why}")).again_in(SOON)
    })
}

/// `watchdog: required`, and it cannot be used: a primary stops, and the key goes to a member that has one.
pub(super) fn give_up_without_watchdog(s: &Snapshot) -> Option<Verdict> {
    let why = match &s.watchdog {
        Watchdog::Ready => return None,
        // What runs goes on for the moment that the answer takes.
        Watchdog::Awaited if s.is_primary() => return None,
        Watchdog::Awaited => return Some(Verdict::new(Plan::stay(), "waiting for the watchdog").again_in(SOON)),
        Watchdog::Failed(why) => why,
    };
    let plan = if s.is_primary() {
        Plan::of(Lease::Keep, Move::Stop(StopMode::Immediate))
    } else if !s.postgres.is_up() || s.standby().is_some() {
        Plan::of(Lease::Release, Move::Stay)
    } else {
        Plan::stay()
    };
    Some(Verdict::new(plan, format!("the watchdog is required and cannot be used: {why}")).again_in(SOON))
}

/// `primary_start_timeout: 0`: the operator prefers failover to crash recovery, if there is somebody to fail over to.
pub(super) fn prefer_failover_to_start(s: &Snapshot) -> Option<Verdict> {
    let asked_for = s.config.primary_start_timeout.is_zero() && !s.postgres.is_up() && s.memory.role == Role::Primary;
    if !asked_for {
        return None;
    }
    match successor(s) {
        Successor::Ask(ask) => {
            Some(Verdict::new(*ask, "PostgreSQL is down and primary_start_timeout is 0: who could take over?"))
        }
        Successor::Ready => Some(Verdict::new(
            Plan::of(Lease::Release, Move::Stay),
            "PostgreSQL is down, primary_start_timeout is 0 and a standby is ready: handing over",
        )),
        Successor::Nobody => None,
    }
}

/// It crashed while I watched, as a primary, and I still hold the lock: crash recovery in place makes no new timeline and
/// is the fastest way back.
pub(super) fn restart_crashed_primary(s: &Snapshot) -> Option<Verdict> {
    let DataDir::Present(present) = &s.postgres.data_dir else { return None };
    let control = present.control.as_ref().filter(|control| control.state.was_primary())?;
    let crashed = !s.postgres.is_up() && s.memory.role == Role::Primary && !present.standby_signal;
    let in_time = s.must_stop_at().is_some_and(|at| s.now < at);
    (crashed && in_time).then(|| {
        let cause = match control.state {
            ClusterState::ShutDown => "was shut down",
            ClusterState::StartingUp
            | ClusterState::ShutDownInRecovery
            | ClusterState::ShuttingDown
            | ClusterState::InCrashRecovery
            | ClusterState::InArchiveRecovery
            | ClusterState::InProduction => "crashed",
        };
        Verdict::new(Plan::of(Lease::Keep, Move::StartPrimary), format!("PostgreSQL {cause}: starting it in place"))
    })
}

/// Down for a reason I did not see: never start writable from an uncertain state. Promotion follows from the next look.
pub(super) fn start_uncertain_as_standby(s: &Snapshot) -> Option<Verdict> {
    (!s.postgres.is_up()).then(|| {
        Verdict::new(
            Plan::of(Lease::Keep, Move::StartStandby(Upstream::Nobody)),
            "PostgreSQL is down and we hold the leader key: starting as a standby first",
        )
    })
}

/// Time spent starting, when the server is starting.
fn starting_for(s: &Snapshot) -> Option<Duration> {
    let starting = matches!(s.postgres.process, Process::Up { .. }) && s.sql().is_none();
    let since = s.memory.starting_since.or(s.is_starting().then_some(s.now))?;
    starting.then(|| s.now.since(since))
}

/// Crash recovery takes longer than the operator allows, and another member could lead.
pub(super) fn give_up_slow_start(s: &Snapshot) -> Option<Verdict> {
    let limit = s.memory.start_timeout.unwrap_or(s.config.primary_start_timeout);
    let took = starting_for(s).filter(|took| *took > limit)?;
    match successor(s) {
        Successor::Ask(ask) => Some(Verdict::new(*ask, format!("starting for {took:?}: who could take over?"))),
        Successor::Ready => Some(Verdict::new(
            Plan::of(Lease::Keep, Move::Stop(StopMode::Immediate)),
            format!("starting for {took:?}, it may take {limit:?}: handing over"),
        )),
        Successor::Nobody => None,
    }
}

/// Still starting.
pub(super) fn wait_for_start(s: &Snapshot) -> Option<Verdict> {
    let took = starting_for(s)?;
    Some(Verdict::new(Plan::stay(), format!("PostgreSQL has been starting for {took:?}")).again_in(SOON))
}

/// The key came to us although we agreed that another primary goes on: it goes back, unused.
pub(super) fn yield_to_failsafe_leader(s: &Snapshot) -> Option<Verdict> {
    let agreement = s.agreement.as_ref().filter(|_| s.standby().is_some() && !s.may_write())?;
    let why = format!("we agreed that {} goes on without etcd: giving the leader key back", agreement.to.name);
    Some(Verdict::new(Plan::of(Lease::Release, Move::Stay), why))
}

/// The key is mine, but a later timeline was promised to somebody else: this server must not go on writing on its own.
pub(super) fn demote_behind_the_promise(s: &Snapshot) -> Option<Verdict> {
    let promise = &s.view()?.promise.as_ref()?.promise;
    let own = s.own_timeline().filter(|_| s.is_primary())?;
    (promise.holder != s.config.name && promise.position.timeline > own).then(|| {
        Verdict::new(
            Plan::of(Lease::Keep, Move::Stop(StopMode::Immediate)),
            format!("timeline {} was promised to {}, ours is {own}", promise.position.timeline, promise.holder),
        )
    })
}

/// A primary on a later timeline than any promise: promoted by hand, or by the peer. It is recorded before anybody is given
/// the same number.
pub(super) fn record_own_timeline(s: &Snapshot) -> Option<Verdict> {
    let recorded = s.view()?.promise.as_ref().map(|key| key.promise.position.timeline);
    let (promise, seen) =
        present_promise(s).filter(|(promise, _)| recorded.is_none_or(|last| promise.parent > last))?;
    let why = format!("recording timeline {}, which we found running", promise.parent);
    Some(Verdict::new(Plan::of(Lease::Promise { promise, seen }, Move::Stay), why).again_in(Duration::ZERO))
}

/// The timeline that a promotion may write, when it has been promised to us.
fn promised(s: &Snapshot) -> Option<Timeline> {
    let promise = &s.view()?.promise.as_ref()?.promise;
    let timeline = promise.position.timeline;
    (promise.holder == s.config.name && s.own_timeline().is_some_and(|own| timeline > own)).then_some(timeline)
}

/// A standby that holds the key without the promise of a timeline of its own: one that was started after a crash, or one
/// whose name an operator wrote into the key.
pub(super) fn promise_next_timeline(s: &Snapshot) -> Option<Verdict> {
    let standby = s.standby()?;
    if promised(s).is_some() {
        return None;
    }
    let (promise, seen) = next_promise(s, standby)?;
    let why = format!("promising timeline {} before the promotion", promise.position.timeline);
    Some(Verdict::new(Plan::of(Lease::Promise { promise, seen }, Move::Stay), why).again_in(Duration::ZERO))
}

/// The user's script said no, or did not end: somebody else, please.
pub(super) fn give_up_refused_promotion(s: &Snapshot) -> Option<Verdict> {
    super::election::refused_for(s).filter(|_| s.standby().is_some())?;
    let cause = s.memory.last_job.as_ref().and_then(|job| job.error.clone()).unwrap_or_default();
    let why = format!("pre_promote does not agree to the promotion: giving the leader key back. {cause}");
    Some(Verdict::new(Plan::of(Lease::Release, Move::Stay), why))
}

/// The lock is mine: the user's script is asked before the promotion, under the lock, and once for each holding of it.
pub(super) fn run_pre_promote(s: &Snapshot) -> Option<Verdict> {
    let asks = s.config.pre_promote && !s.memory.pre_promoted;
    let in_time = s.must_stop_at().is_some_and(|at| s.now < at);
    s.standby().and_then(|_| promised(s)).filter(|_| asks && in_time)?;
    Some(Verdict::new(Plan::of(Lease::Keep, Move::PrePromote), "asking pre_promote before the promotion"))
}

/// The lock is mine, freshly read; the server is a standby: make it the primary.
pub(super) fn promote(s: &Snapshot) -> Option<Verdict> {
    let timeline = s.standby().and_then(|_| promised(s))?;
    if let Some((wait, cause)) = just_failed(s, |job| *job == Job::Promote) {
        return Some(Verdict::new(Plan::stay(), format!("the promotion failed: {cause}; trying again")).again_in(wait));
    }
    let must_stop_at = s.must_stop_at()?;
    if s.now >= must_stop_at {
        return Some(Verdict::new(Plan::stay(), "the lease ends too soon to promote under it").again_in(SOON));
    }
    Some(Verdict::new(
        Plan::of(Lease::Keep, Move::Promote(timeline)).and_write(super::switchover::fulfilled(s)),
        format!("we hold the leader key: promoting to timeline {timeline}"),
    ))
}

/// `initialize` is missing or garbage; the holder knows better.
pub(super) fn repair_identity(s: &Snapshot) -> Option<Verdict> {
    let seen = match &s.view()?.initialize {
        Initialize::Known(_) => return None,
        Initialize::Absent => None,
        Initialize::InProgress { modified, .. } | Initialize::Garbage { modified, .. } => Some(*modified),
    };
    let id = s.local_system_id().filter(|_| s.is_primary() || s.leads_standbys())?;
    let plan = Plan::stay().and_write(vec![KeyWrite::Identify { id, seen }]);
    Some(Verdict::new(plan, format!("writing the cluster's identity {id}")).again_in(Duration::ZERO))
}

/// `config` is missing or empty; the holder writes its copy. Garbage is left for a human to see; the last valid one holds.
pub(super) fn restore_config(s: &Snapshot) -> Option<Verdict> {
    let seen = match s.view()?.config {
        ConfigKey::Missing => None,
        ConfigKey::Empty(modified) => Some(modified),
        ConfigKey::Garbage(_) | ConfigKey::Valid(_) => return None,
    };
    let plan = Plan::stay().and_write(vec![KeyWrite::Config { seen }]);
    Some(Verdict::new(plan, "writing the cluster's configuration").again_in(Duration::ZERO))
}

/// A member's slot keeps its log while it is away; without one it cannot even stream. One that nobody will ever use again
/// keeps it until the disk is full.
pub(super) fn look_after_slots(s: &Snapshot) -> Option<Verdict> {
    let sql = s.sql().filter(|sql| !sql.in_recovery)?;
    change_slots(s, sql, records(s))
}

/// Slots made, removed and moved on, in one go.
pub(super) fn change_slots(s: &Snapshot, sql: &SqlFacts, keys: Vec<KeyWrite>) -> Option<Verdict> {
    let changes = slots::changes(s, sql);
    let refused = just_failed(s, |job| *job == Job::ChangeSlots).is_some();
    if s.job.is_some() || refused || changes == SlotChanges::default() {
        return None;
    }
    let advanced: Vec<_> = changes.advance.iter().map(|(name, _)| name.clone()).collect();
    let created: Vec<_> = changes.create.iter().chain(changes.create_logical.keys()).cloned().collect();
    let each = [("removing", &changes.drop), ("creating", &created), ("advancing", &advanced)];
    let done = each.into_iter().filter(|(_, names)| !names.is_empty());
    let done: Vec<_> = done.map(|(what, names)| format!("{what} {}", names.join(", "))).collect();
    let why = format!("replication slots: {}", done.join("; "));
    Some(Verdict::new(Plan::of(Lease::Keep, Move::ChangeSlots(changes)).and_write(keys), why))
}

/// pg_rewind reads the control file of its source: it is right only after a checkpoint on the new timeline.
pub(super) fn checkpoint_after_promotion(s: &Snapshot) -> Option<Verdict> {
    let sql = s.sql().filter(|sql| !sql.in_recovery && s.job.is_none())?;
    let done = s.memory.checkpointed == sql.timeline
        || s.postgres.control().is_none_or(|control| Some(control.timeline) == sql.timeline);
    let refused = just_failed(s, |job| *job == Job::Checkpoint).is_some();
    (!done && !refused).then(|| {
        Verdict::new(
            Plan::of(Lease::Keep, Move::Checkpoint).and_write(records(s)),
            "promoted: checkpoint on the new timeline",
        )
    })
}

/// `status`, `history` and `failsafe`, as far as they are not true yet.
pub(super) fn records(s: &Snapshot) -> Vec<KeyWrite> {
    let Some((view, sql)) = s.view().zip(s.sql()).filter(|(_, sql)| !sql.in_recovery && s.seat() == Seat::Mine) else {
        return Vec::new();
    };
    let mut keys = Vec::new();
    let (slots, retain_slots) = slots::published(s, sql);
    let status = Status { optime: Some(sql.flush_lsn), slots, retain_slots };
    if status != view.status {
        keys.push(KeyWrite::Status(status));
    }
    if let Some(lines) = history(s, sql).filter(|lines| Some(lines) != view.history.as_ref()) {
        keys.push(KeyWrite::History(lines));
    }
    keys.extend(s.failsafe_to_write().map(KeyWrite::Failsafe));
    keys
}

/// The cluster's history as this primary's own log tells it; what is stored of the same switch (when, who) is kept.
fn history(s: &Snapshot, sql: &SqlFacts) -> Option<Vec<HistoryLine>> {
    let stored = s.view()?.history.as_deref().unwrap_or_default();
    if sql.timeline? == Timeline(1) {
        return (!stored.is_empty()).then(Vec::new);
    }
    let newest = s.postgres.local_history.len().checked_sub(1)?;
    let kept = match s.config.max_timelines_history {
        0 => usize::MAX,
        lines => lines,
    };
    let dropped = s.postgres.local_history.len().saturating_sub(kept);
    let lines = s.postgres.local_history.iter().enumerate().skip(dropped).map(|(i, local)| {
        let known = stored.iter().find(|old| old.parent == local.parent && old.switched_at == local.switched_at);
        let promoted_me = (i == newest).then(|| s.config.name.clone());
        HistoryLine {
            at: known.and_then(|old| old.at.clone()).or_else(|| local.at.clone()),
            promoted: known.and_then(|old| old.promoted.clone()).or(promoted_me),
            ..local.clone()
        }
    });
    Some(lines.collect())
}

/// All is well: renew, and keep the books.
pub(super) fn lead(s: &Snapshot) -> Verdict {
    let verdict = Verdict::new(Plan::stay().and_write(records(s)), "we lead");
    match super::switchover::due_in(s).into_iter().chain(super::synchronous::settles_in(s)).min() {
        Some(wait) => verdict.again_in(wait),
        None => verdict,
    }
}

#[cfg(test)]
mod tests {
    use crate::cluster::HistoryLine;
    use crate::fixture::{Builder, primary, secs, standby};
    use crate::memory::{LeaseOutcome, Role};
    use crate::plan::{KeyWrite, Lease, Move};
    use crate::postgres::{DataDir, FinishedJob, Job, Probe, SlotChanges, StopMode, Upstream};
    use crate::rules::decide;
    use crate::snapshot::Watchdog;
    use crate::units::{Lsn, Timeline};

    #[test]
    fn a_promotion_hangs_on_the_word_of_pre_promote() {
        let holder = || standby().holding_the_key().promised("a", 2).but_config(|config| config.pre_promote = true);
        let asked = decide(&holder().build());
        assert_eq!((asked.rule, asked.plan.postgres), ("run_pre_promote", Move::PrePromote));
        assert_ne!(decide(&holder().lease_ends_in(secs(1)).build()).plan.postgres, Move::PrePromote, "too late");
        let ended = |error: Option<&str>, ago| {
            let at = |s: &crate::snapshot::Snapshot| s.now.minus(secs(ago));
            let mut s = holder().build();
            let ended = FinishedJob { job: Job::PrePromote, at: at(&s), error: error.map(str::to_owned) };
            s.memory.job_ended(ended, None);
            s
        };
        assert_eq!(decide(&ended(None, 0)).plan.postgres, Move::Promote(Timeline(2)));
        let refused = decide(&ended(Some("exit status: 1"), 0));
        assert_eq!((refused.rule, refused.plan.lease), ("give_up_refused_promotion", Lease::Release));
        assert_eq!(decide(&ended(Some("exit status: 1"), 31)).plan.postgres, Move::PrePromote, "asked again after ttl");
        let mut lost = ended(None, 0);
        lost.memory = lost.memory.after(&standby().build(), &decide(&standby().build()), LeaseOutcome::NotTried);
        assert_eq!(decide(&lost).plan.postgres, Move::PrePromote, "once for each holding of the key");
    }

    #[test]
    fn a_restarted_agent_adopts_its_key() {
        let no_lease = primary().key_on_lease(77).lease_lost().build();
        assert_eq!(decide(&no_lease).rule, "wait_for_own_lease");
        let adopting = primary().key_on_lease(77).build();
        assert!(matches!(decide(&adopting).plan.lease, Lease::Adopt { .. }));
        assert_eq!(decide(&adopting).rule, "adopt_leader_key");
        assert_eq!(decide(&primary().build()).rule, "lead");
    }

    #[test]
    fn the_holder_keeps_the_failsafe_key_and_only_while_its_lease_alone_carries_it() {
        let wanted = |s: &crate::snapshot::Snapshot| {
            s.failsafe_to_write().map(|key| key.members.into_keys().collect::<Vec<_>>())
        };
        let leading = || primary().failsafe();
        assert_eq!(wanted(&leading().build()), None, "it says so already");
        let new = leading().with(|s| s.dcs.as_mut().unwrap().failsafe = None);
        assert_eq!(wanted(&new), Some(["a", "b", "c"].map(Into::into).into()));
        assert!(decide(&new).plan.keys.iter().any(|key| matches!(key, KeyWrite::Failsafe(_))));
        let missing = |since: u64| {
            leading().with(|s| {
                s.dcs.as_mut().unwrap().members.remove(&"c".into());
                s.memory.topology.missing.insert("c".into(), s.now.minus(secs(since)));
            })
        };
        assert_eq!(wanted(&missing(29)), None, "its member key may come back");
        assert_eq!(wanted(&missing(30)), Some(["a", "b"].map(Into::into).into()));
        let late = leading().lease_ends_in(secs(3)).with(|s| s.dcs.as_mut().unwrap().failsafe = None);
        assert_eq!(wanted(&late), None, "who is added has promised nothing");
        let off = leading().with(|s| (s.config.failsafe_mode, s.dcs.as_mut().unwrap().failsafe) = (false, None));
        assert_eq!(wanted(&off), None);
    }

    #[test]
    fn give_up_lost_data() {
        assert_eq!(decide(&primary().empty().build()).plan.lease, Lease::Release);
        let running = primary().with(|s| s.postgres.data_dir = DataDir::Empty);
        assert_eq!(decide(&running).plan.postgres, Move::Stop(StopMode::Immediate), "stopped before the key goes");
        let slow_disk = primary().with(|s| s.postgres.data_dir = DataDir::Unreadable("no answer in 1 s".into()));
        assert_eq!(decide(&slow_disk).rule, "lead", "a slow disk under a server that answers is no loss");
    }

    #[test]
    fn a_crashed_primary_is_restarted_once_in_place() {
        let crashed = primary().down();
        assert_eq!(decide(&crashed.clone().build()).plan.postgres, Move::StartPrimary);
        let failed = crashed.with(|s| s.memory.recovering = true);
        assert_eq!((decide(&failed).rule, decide(&failed).plan.lease), ("give_up_after_failed_start", Lease::Release));
    }

    #[test]
    fn let_lease_of_hung_server_run() {
        let silent = |long| {
            primary().with(|s| {
                (s.postgres.sql, s.postgres.probe) = (None, Probe::Silent);
                s.memory.silent_since = Some(s.now.minus(long));
            })
        };
        let patience = primary().build().config.retry_timeout;
        assert_eq!(
            decide(&silent(patience - secs(1))).plan.lease,
            Lease::Keep,
            "one silence is evidence of nothing (O1)"
        );
        assert!(decide(&silent(secs(0))).look_again < secs(1), "but is looked into");
        let hung = silent(patience);
        assert_eq!((decide(&hung).rule, decide(&hung).plan.lease), ("let_lease_of_hung_server_run", Lease::LetRun));
        assert_eq!(decide(&hung).plan.postgres, Move::Stay, "until the lease ends it may come back");
        let answers = primary().with(|s| s.memory = hung.memory.clone());
        let memory = answers.memory.after(&answers, &decide(&answers), LeaseOutcome::NotTried);
        assert_eq!(memory.silent_since, None);
    }

    #[test]
    fn give_up_hung_server() {
        let stopped = |silent_for| primary().down().with(|s| s.memory.silent_since = Some(s.now.minus(silent_for)));
        let patience = primary().build().config.retry_timeout;
        let hung = stopped(patience);
        assert_eq!((decide(&hung).rule, decide(&hung).plan.lease), ("give_up_hung_server", Lease::Release));
        let crashed = stopped(patience - secs(1));
        assert_eq!(decide(&crashed).rule, "restart_crashed_primary", "a crash is often preceded by a failed look");
    }

    #[test]
    fn without_a_guardian_nobody_becomes_a_primary_and_a_primary_goes_on() {
        let promoting = || standby().holding_the_key().promised("a", 2);
        for server in [promoting(), primary().down()] {
            let absent = |long| decide(&server.clone().unguarded_for(secs(long)).build());
            assert_eq!((absent(0).rule, absent(0).plan.lease), ("give_up_without_guardian", Lease::Keep));
            assert_eq!((absent(3).plan.postgres, absent(3).plan.lease), (Move::Stay, Lease::Release));
            assert_ne!(decide(&server.build()).plan.postgres, Move::Stay, "with a guardian it goes on");
        }
        assert_eq!(decide(&primary().unguarded_for(secs(60)).build()).rule, "lead");
        let restarted = primary().key_on_lease(77).unguarded_for(secs(60)).build();
        assert_eq!(decide(&restarted).rule, "adopt_leader_key", "its guardian follows; an outage would not help");
    }

    #[test]
    fn without_a_required_watchdog_a_primary_stops_and_then_gives_the_key_back() {
        let with = |server: &Builder, watchdog: Watchdog| decide(&server.clone().watchdog(watchdog).build());
        let failed = || Watchdog::Failed("no such device".into());
        let promoting = standby().holding_the_key().promised("a", 2);
        for (server, lease, postgres) in [
            (primary(), Lease::Keep, Move::Stop(StopMode::Immediate)),
            (promoting.clone(), Lease::Release, Move::Stay),
            (primary().down(), Lease::Release, Move::Stay),
        ] {
            let decision = with(&server, failed());
            assert_eq!(decision.rule, "give_up_without_watchdog");
            assert_eq!((decision.plan.lease, decision.plan.postgres), (lease, postgres));
            assert_ne!(with(&server, Watchdog::Ready).rule, "give_up_without_watchdog");
        }
        assert_eq!(with(&primary(), Watchdog::Awaited).rule, "lead", "a slow answer is no outage");
        assert_eq!(with(&promoting, Watchdog::Awaited).plan.postgres, Move::Stay);
    }

    #[test]
    fn start_uncertain_as_standby() {
        let restarted_agent = primary().down().with(|s| s.memory.role = Role::Demoted);
        assert_eq!(decide(&restarted_agent).plan.postgres, Move::StartStandby(Upstream::Nobody));
        let was_standby = standby().holding_the_key().down().build();
        assert_eq!(decide(&was_standby).plan.postgres, Move::StartStandby(Upstream::Nobody));
    }

    #[test]
    fn prefer_failover_to_start() {
        let crashed = || primary().down().start_timeout(secs(0));
        assert!(!decide(&crashed().build()).plan.ask.is_empty());
        assert_eq!(decide(&crashed().answers("b", 1_000).build()).plan.lease, Lease::Release);
        let too_far = crashed().at(Lsn(9_000_000)).answers("b", 1_000).build();
        assert_eq!(decide(&too_far).rule, "restart_crashed_primary", "the standby lacks more than is allowed");
        assert_eq!(decide(&crashed().unreachable("b").build()).rule, "restart_crashed_primary");
    }

    #[test]
    fn give_up_slow_start() {
        let starting = |took: u64| primary().starting(secs(took)).start_timeout(secs(300));
        assert_eq!(decide(&starting(300).build()).rule, "wait_for_start");
        assert!(!decide(&starting(301).build()).plan.ask.is_empty());
        let somebody = starting(301).answers("b", 1_000).build();
        assert_eq!(decide(&somebody).plan.postgres, Move::Stop(StopMode::Immediate));
        assert_eq!(decide(&starting(301).unreachable("b").build()).rule, "wait_for_start");
    }

    #[test]
    fn promotion_takes_the_promised_timeline_and_no_other() {
        let promised = standby().holding_the_key().promised("a", 2);
        assert_eq!(decide(&promised.build()).plan.postgres, Move::Promote(Timeline(2)));
        let skipped = standby().holding_the_key().promised("a", 5);
        assert_eq!(decide(&skipped.build()).plan.postgres, Move::Promote(Timeline(5)));
        for (holder, timeline) in [("b", 2), ("a", 1)] {
            let s = standby().holding_the_key().promised(holder, timeline).build();
            let Lease::Promise { promise, .. } = decide(&s).plan.lease else { panic!("{:?}", decide(&s)) };
            assert_eq!(decide(&s).rule, "promise_next_timeline");
            assert!(promise.position.timeline > Timeline(timeline));
            assert_eq!(promise.holder, s.config.name);
        }
    }

    #[test]
    fn nothing_is_promoted_under_a_lease_that_is_about_to_end() {
        let s = standby().holding_the_key().promised("a", 2).stop_budget(secs(3)).lease_ends_in(secs(3)).build();
        assert_eq!((decide(&s).rule, decide(&s).plan.postgres), ("promote", Move::Stay));
    }

    #[test]
    fn what_failed_a_moment_ago_is_not_tried_a_hundred_times_a_second() {
        let failed = |builder: crate::fixture::Builder, job: Job| {
            builder.with(|s| {
                let (at, error) = (s.now.minus(secs(1)), Some("no".to_owned()));
                s.memory.last_job = Some(crate::postgres::FinishedJob { job, at, error });
            })
        };
        let promoting = standby().holding_the_key().promised("a", 2);
        assert_eq!(decide(&failed(promoting, Job::Promote)).plan.postgres, Move::Stay);
        assert_eq!(decide(&failed(primary().without_slots(), Job::ChangeSlots)).rule, "lead");
    }

    #[test]
    fn demote_behind_the_promise() {
        assert_eq!(decide(&primary().promised("b", 2).build()).rule, "demote_behind_the_promise");
        assert_eq!(decide(&primary().promised("b", 1).build()).rule, "lead");
    }

    #[test]
    fn record_own_timeline() {
        let by_hand = primary().on_timeline(3).promised("a", 1).build();
        let Lease::Promise { promise, .. } = decide(&by_hand).plan.lease else { panic!("{:?}", decide(&by_hand)) };
        assert_eq!((promise.position.timeline, promise.parent), (Timeline(3), Timeline(3)));
        assert_eq!(decide(&primary().on_timeline(3).promised("a", 3).build()).rule, "lead");
    }

    #[test]
    fn the_holder_repairs_what_an_operator_removed() {
        let identity = decide(&primary().uninitialized().build());
        assert_eq!(identity.rule, "repair_identity");
        assert!(matches!(identity.plan.keys[..], [KeyWrite::Identify { seen: None, .. }]));
        let config = decide(&primary().without_config().build());
        assert_eq!(config.rule, "restore_config");
        assert!(matches!(config.plan.keys[..], [KeyWrite::Config { seen: None }]));
    }

    #[test]
    fn look_after_slots_then_checkpoint_then_lead() {
        let fresh = primary().without_slots();
        assert_eq!(decide(&fresh.build()).plan.postgres, Move::ChangeSlots(SlotChanges::creating(["b", "c"])));
        let promoted = primary().on_timeline(2).promised("a", 2).with(|s| {
            if let DataDir::Present(p) = &mut s.postgres.data_dir {
                p.control.as_mut().expect("has one").timeline = Timeline(1);
            }
        });
        assert_eq!(
            (decide(&promoted).rule, decide(&promoted).plan.postgres),
            ("checkpoint_after_promotion", Move::Checkpoint)
        );
        let mut busy = promoted.clone();
        busy.job = Some(crate::postgres::RunningJob { job: Job::Checkpoint, since: busy.now });
        assert_eq!(decide(&busy).rule, "lead", "a checkpoint does not keep the leader from leading");
        let mut done = promoted;
        done.memory.checkpointed = Some(Timeline(2));
        assert_eq!(decide(&done).rule, "lead");
    }

    #[test]
    fn history_is_told_by_the_own_log_and_keeps_what_is_known() {
        let line = |parent, lsn| HistoryLine {
            parent: Timeline(parent),
            switched_at: Lsn(lsn),
            reason: "no recovery target specified".into(),
            at: Some(format!("file {parent}")),
            promoted: None,
        };
        let s = primary().on_timeline(3).promised("a", 3).with(|s| {
            s.postgres.local_history = vec![line(1, 100), line(2, 200)];
            let old = HistoryLine { at: Some("stored".into()), promoted: Some("c".into()), ..line(1, 100) };
            s.dcs.as_mut().expect("reachable").history = Some(vec![old]);
        });
        let keys = decide(&s).plan.keys;
        let Some(KeyWrite::History(lines)) = keys.last() else { panic!("{keys:?}") };
        assert_eq!(lines[0].promoted, Some("c".into()));
        assert_eq!(lines[0].at.as_deref(), Some("stored"));
        assert_eq!((lines[1].promoted.clone(), lines[1].at.as_deref()), (Some("a".into()), Some("file 2")));
        let mut written = s;
        written.dcs.as_mut().expect("reachable").history = Some(lines.clone());
        assert!(!decide(&written).plan.keys.iter().any(|key| matches!(key, KeyWrite::History(_))), "written once");
        let newest = lines[1..].to_vec();
        written.config.max_timelines_history = 1;
        assert_eq!(decide(&written).plan.keys.last(), Some(&KeyWrite::History(newest)), "max_timelines_history");
    }

    #[test]
    fn status_is_written_when_the_log_moved() {
        let moved = primary().at(Lsn(5_000)).build();
        assert!(matches!(decide(&moved).plan.keys[..], [KeyWrite::Status(_)]));
        let still = primary().at(Lsn(5_000)).with(|s| {
            let view = s.dcs.as_mut().expect("reachable");
            view.status.optime = Some(Lsn(5_000));
            view.status.slots =
                [("a", 5_000), ("b", 1_000), ("c", 1_000)].map(|(slot, at)| (slot.into(), Lsn(at))).into();
            view.status.retain_slots = ["a", "b", "c"].map(str::to_owned).into();
        });
        assert!(decide(&still).plan.keys.is_empty());
    }
}
