//! Nobody holds the leader key: who may run, and who waits for whom.

use std::time::Duration;

use super::follower::just_failed;
use super::synchronous;
use crate::cluster::{ClusterView, ConfigKey, PromiseKey};
use crate::cluster::{Initialize, Promise};
use crate::peers::PeerAnswer;
use crate::plan::{Exit, KeyWrite, Lease, Move, Plan, Verdict};
use crate::postgres::{DataDir, Job, SqlFacts, StopMode, Upstream};
use crate::snapshot::{Guardian, Seat, Snapshot, Watchdog};
use crate::units::{MemberName, Revision, Timeline, WalPosition};

pub(super) use super::follower::{
    clear_unfinished_copy, report_unusable_data, stop_server_without_data, wait_after_failed_start,
};

/// How often a candidate that has to wait looks again, at the latest.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// Why the making of the cluster cannot go on: its job failed, or what it made does not run any more.
fn bootstrap_failure(s: &Snapshot) -> Option<String> {
    let last = s.memory.last_job.as_ref().filter(|last| last.job == Job::Bootstrap);
    let failed = last.and_then(|last| last.error.clone());
    let dead = !s.postgres.is_up() && s.postgres.data_dir != DataDir::Empty && s.job.is_none();
    failed.or_else(|| dead.then(|| "its server does not run".to_owned()))
}

/// initdb or the first start failed: let another node try, and keep the evidence.
pub(super) fn abandon_failed_bootstrap(s: &Snapshot) -> Option<Verdict> {
    let named = s.view().is_some_and(|view| view.initialize.system_id().is_some());
    let cause = bootstrap_failure(s).filter(|_| s.memory.bootstrapping && !named)?;
    let plan = Plan::of(Lease::AbandonBootstrap, Move::SetAside).and_exit(Exit::Failed);
    Some(Verdict::new(plan, format!("the bootstrap failed: {cause}")))
}

/// The race to make the cluster is won.
pub(super) fn make_the_cluster(s: &Snapshot) -> Option<Verdict> {
    let next = s.memory.bootstrapping && s.postgres.data_dir == DataDir::Empty;
    next.then(|| {
        wait_for_guardian(s)
            .or_else(|| wait_for_watchdog(s))
            .unwrap_or_else(|| Verdict::new(Plan::of(Lease::Keep, Move::Bootstrap), "making a new cluster"))
    })
}

/// It runs: now, and not before, the cluster gets its identity and its configuration.
pub(super) fn identify_new_cluster(s: &Snapshot) -> Option<Verdict> {
    let runs = s.is_primary() || s.config.standby_cluster.is_some() && s.standby().is_some();
    let view = s.view().filter(|_| s.memory.bootstrapping && runs)?;
    let Initialize::InProgress { modified, .. } = view.initialize else { return None };
    let id = s.local_system_id()?;
    let seen = Some(modified);
    let mut keys = vec![KeyWrite::Identify { id, seen }];
    if view.config == ConfigKey::Missing {
        keys.push(KeyWrite::Config { seen: None });
    }
    let why = format!("the new cluster runs; its identity is {id}");
    Some(Verdict::new(Plan::stay().and_write(keys), why).again_in(Duration::ZERO))
}

/// A bootstrap that is still in recovery finishes by itself (point-in-time recovery of a custom method).
pub(super) fn wait_to_promote_bootstrap(s: &Snapshot) -> Option<Verdict> {
    let identified = s.view().is_some_and(|view| view.initialize.system_id().is_some());
    (s.memory.bootstrapping && !identified)
        .then(|| Verdict::new(Plan::stay(), "the new cluster is not ready yet").again_in(PATIENCE))
}

/// Empty, and there is no cluster: race for the right to make it.
pub(super) fn race_to_bootstrap(s: &Snapshot) -> Option<Verdict> {
    let view = s.view()?;
    let free = s.postgres.data_dir == DataDir::Empty && view.initialize == Initialize::Absent && view.leader.is_none();
    let allowed = s.config.may_bootstrap && !s.config.tags.nofailover && s.lease.id.is_some();
    (free && allowed).then(|| {
        // Who cannot lead must not keep others from making it.
        if let Some(waits) = wait_for_watchdog(s) {
            return waits;
        }
        Verdict::new(Plan::of(Lease::StartBootstrap, Move::Stay), "no cluster of this name: trying to make it")
            .again_in(Duration::ZERO)
    })
}

/// Empty, nobody leads, and a backup can be restored without anybody's help. Not while somebody makes the cluster anew.
pub(super) fn restore_without_leader(s: &Snapshot) -> Option<Verdict> {
    let settled = match s.view()?.initialize {
        Initialize::Known(_) | Initialize::Absent => true,
        Initialize::InProgress { .. } | Initialize::Garbage { .. } => false,
    };
    if !settled || !s.config.restores_without_leader || s.postgres.data_dir != DataDir::Empty {
        return None;
    }
    Some(match just_failed(s, |job| *job == Job::Restore) {
        Some((wait, cause)) => {
            Verdict::new(Plan::stay(), format!("the last restore failed: {cause}; trying again")).again_in(wait)
        }
        None => Verdict::new(Plan::of(Lease::Keep, Move::Restore), "nobody leads: restoring a backup (no_leader)"),
    })
}

/// Empty, and nothing to copy from.
pub(super) fn wait_empty(s: &Snapshot) -> Option<Verdict> {
    if s.postgres.data_dir != DataDir::Empty {
        return None;
    }
    let why = match s.view().map(|view| &view.initialize) {
        Some(Initialize::InProgress { .. }) => "waiting for another member to make the cluster",
        Some(Initialize::Known(_) | Initialize::Garbage { .. }) => "waiting for a leader to clone from",
        Some(Initialize::Absent) | None => "waiting for leader to bootstrap",
    };
    Some(Verdict::new(Plan::stay(), why).again_in(PATIENCE))
}

/// Another member makes a cluster of this name, as long as its lease lasts: two clusters would write if data from before came up
/// beside it. Whoever is first with an identity is the cluster.
pub(super) fn wait_for_bootstrap(s: &Snapshot) -> Option<Verdict> {
    let Initialize::InProgress { lease: Some(lease), .. } = s.view()?.initialize else { return None };
    (!s.memory.bootstrapping && !s.is_primary()).then(|| {
        let why = format!("a new cluster of this name is being made, under lease {lease}: staying out of its way");
        Verdict::new(Plan::stay(), why).again_in(PATIENCE)
    })
}

/// Down, and nobody leads: come up read-only, so that our position is known.
pub(super) fn start_without_upstream(s: &Snapshot) -> Option<Verdict> {
    let upstream = super::standby_cluster::remote(s).unwrap_or(Upstream::Nobody);
    (!s.postgres.is_up()).then(|| {
        Verdict::new(
            Plan::of(Lease::Keep, Move::StartStandby(upstream)),
            "nobody leads and PostgreSQL is down: starting as a standby",
        )
    })
}

/// A position that is not known is no candidate.
pub(super) fn wait_while_starting(s: &Snapshot) -> Option<Verdict> {
    s.sql().is_none().then(|| {
        Verdict::new(Plan::stay(), "PostgreSQL does not answer queries (yet)").again_in(Duration::from_millis(200))
    })
}

/// The highest timeline that anybody is known to have, or to have been promised.
fn highest_timeline(s: &Snapshot, own: Timeline) -> Timeline {
    let view = s.view();
    let members = view.into_iter().flat_map(|view| view.members.values()).filter_map(|member| member.timeline);
    let last_members =
        s.memory.last_led.iter().flat_map(|led| led.members.values()).filter_map(|member| member.timeline);
    let answers = s.peers.iter().flat_map(|peers| peers.answers()).filter_map(|(_, answer)| answer.timeline);
    let recorded = view.and_then(ClusterView::timeline);
    let promised = view.and_then(|view| view.promise.as_ref()).map(|key| key.promise.position.timeline);
    members.chain(last_members).chain(answers).chain(recorded).chain(promised).fold(own, Timeline::max)
}

fn epoch_and_revision(s: &Snapshot) -> (u64, Option<Revision>) {
    let Some(view) = s.view() else { return (0, None) };
    match &view.promise {
        Some(PromiseKey { promise, modified }) => (promise.epoch, Some(*modified)),
        None => (0, view.unreadable_promise),
    }
}

/// The promise that goes with a promotion of this standby: a timeline that nobody has or was promised (S2).
pub(super) fn next_promise(s: &Snapshot, standby: &SqlFacts) -> Option<(Promise, Option<Revision>)> {
    let (epoch, seen) = epoch_and_revision(s);
    let parent = standby.timeline?;
    let position = WalPosition { timeline: highest_timeline(s, parent).next(), lsn: standby.position() };
    Some((Promise { epoch: epoch.saturating_add(1), position, parent, holder: s.config.name.clone() }, seen))
}

/// Was a later timeline, or this one, given to somebody else?
fn superseded(s: &Snapshot, own: Timeline) -> Option<String> {
    let view = s.view()?;
    if let Some(cluster) = view.timeline().filter(|cluster| *cluster > own) {
        return Some(format!("our timeline is {own}, the cluster's {cluster}"));
    }
    let promise = &view.promise.as_ref()?.promise;
    let theirs =
        promise.position.timeline > own || (promise.position.timeline == own && promise.holder != s.config.name);
    theirs.then(|| format!("timeline {} was promised to {}", promise.position.timeline, promise.holder))
}

/// The leader key is gone, but we agreed that its holder goes on: it lost nothing but etcd. Follow it, and do not race. In pause
/// the upstream stays what it is.
pub(super) fn wait_for_failsafe_leader(s: &Snapshot) -> Option<Verdict> {
    let agreement = s.agreement.as_ref().filter(|_| !s.is_primary())?;
    let left = s.now.until(agreement.until);
    Some(super::follower::follow_leader(s).filter(|_| !s.config.pause).unwrap_or_else(|| {
        let why = format!("nobody leads, but we agreed that {} goes on; {left:?} are left", agreement.to.name);
        Verdict::new(Plan::stay(), why).again_in(PATIENCE.min(left))
    }))
}

/// The `failsafe` key does not name us: a primary without etcd could not have asked us, and may be going on.
pub(super) fn wait_outside_failsafe(s: &Snapshot) -> Option<Verdict> {
    let key = s.view()?.failsafe.as_ref().filter(|key| s.config.failsafe_mode && !key.members.is_empty())?;
    (!key.members.contains_key(&s.config.name))
        .then(|| Verdict::new(Plan::stay(), "the failsafe key does not name us: not a candidate").again_in(PATIENCE))
}

/// How long what this agent agreed to before it was restarted, and has forgotten, may still last.
pub(super) fn may_have_promised(s: &Snapshot) -> Option<Duration> {
    s.view()?.failsafe.as_ref().filter(|_| s.config.failsafe_mode)?;
    let lasts = s.view()?.takes_ttl_for(s.config.ttl);
    let left = lasts.saturating_sub(s.memory.since.map_or(Duration::ZERO, |since| s.now.since(since)));
    Some(left).filter(|left| !left.is_zero())
}

/// What an agent agreed to is forgotten when it is restarted. As long as such a promise may last it runs only if all members
/// of the `failsafe` key answer: a primary that goes on would be among them.
pub(super) fn wait_after_start(s: &Snapshot) -> Option<Verdict> {
    let left = may_have_promised(s)?;
    let answered = |name: &MemberName| s.fresh_peers().is_some_and(|peers| peers.answers().any(|(who, _)| who == name));
    let members = &s.view()?.failsafe.as_ref()?.members;
    let silent = members.keys().find(|name| **name != s.config.name && !answered(name))?;
    let why =
        format!("just started, and {silent}, to whom we may have promised to wait, does not answer; {left:?} are left");
    Some(Verdict::new(Plan::stay(), why).again_in(PATIENCE.min(left)))
}

/// A primary whose timeline has been superseded must not come back as one.
pub(super) fn demote_stale_primary(s: &Snapshot) -> Option<Verdict> {
    let own = s.own_timeline().filter(|_| s.is_primary())?;
    // A lease that vanished under us is granted anew within milliseconds; more than one turn without one is too long.
    let no_lease = s.lease.id.is_none() && s.memory.holds.is_none() && !s.is_failsafe();
    let why = superseded(s, own).or_else(|| no_lease.then(|| "a primary without a lease".to_owned()))?;
    Some(Verdict::new(Plan::of(Lease::Keep, Move::Stop(StopMode::Immediate)), why))
}

/// The promise of a primary that goes on with the timeline it has.
pub(super) fn present_promise(s: &Snapshot) -> Option<(Promise, Option<Revision>)> {
    let sql = s.sql().filter(|sql| !sql.in_recovery)?;
    let parent = sql.timeline?;
    let (epoch, seen) = epoch_and_revision(s);
    let position = WalPosition { timeline: parent, lsn: sql.flush_lsn };
    Some((Promise { epoch: epoch.saturating_add(1), position, parent, holder: s.config.name.clone() }, seen))
}

/// Take the key as the primary that runs already, on a timeline that nobody else was promised.
pub(super) fn take_as_primary(s: &Snapshot, why: &str) -> Option<Verdict> {
    let (promise, seen) = present_promise(s).filter(|(promise, _)| superseded(s, promise.parent).is_none())?;
    Some(Verdict::new(Plan::of(Lease::Take { promise, seen }, Move::Stay), why).again_in(Duration::ZERO))
}

/// Nobody would stop this server at the deadline if its agent froze: not a candidate, not even as the primary it may be.
pub(super) fn wait_for_guardian(s: &Snapshot) -> Option<Verdict> {
    let Guardian::Absent { why, .. } = &s.guardian else { return None };
    let why = format!("no guardian, no leadership: {why}");
    Some(Verdict::new(Plan::stay(), why).again_in(Duration::from_millis(200)))
}

/// `watchdog: required`, and it cannot be used: not a candidate, and no primary either.
pub(super) fn wait_for_watchdog(s: &Snapshot) -> Option<Verdict> {
    let why = match &s.watchdog {
        Watchdog::Ready => return None,
        Watchdog::Awaited => {
            return Some(Verdict::new(Plan::stay(), "waiting for the watchdog").again_in(Duration::from_millis(100)));
        }
        Watchdog::Failed(why) => why,
    };
    let next = if s.is_primary() { Move::Stop(StopMode::Immediate) } else { Move::Stay };
    let why = format!("the watchdog is required and cannot be used: {why}");
    Some(Verdict::new(Plan::of(Lease::Keep, next), why).again_in(PATIENCE))
}

/// A running primary that lost nothing but the key takes it back; tags, lag and peers are not asked.
pub(super) fn keep_leading(s: &Snapshot) -> Option<Verdict> {
    if !s.is_primary() {
        return None;
    }
    if s.lease.id.is_none() {
        return Some(Verdict::new(Plan::stay(), "a primary without a lease").again_in(Duration::from_millis(100)));
    }
    take_as_primary(s, "we run as the primary and the key is free: taking it back")
}

/// How much longer this member leaves the key to others, after its pre_promote said no.
pub(super) fn refused_for(s: &Snapshot) -> Option<Duration> {
    let left = s.config.ttl.saturating_sub(s.now.since(s.memory.promotion_refused?));
    Some(left).filter(|left| !left.is_zero())
}

/// The user's script did not agree to a promotion here: for one `ttl` that is somebody else's.
pub(super) fn wait_after_refused_promotion(s: &Snapshot) -> Option<Verdict> {
    let left = refused_for(s)?;
    let why = format!("pre_promote refused the promotion: leaving the key to others, {left:?} are left");
    Some(Verdict::new(Plan::stay(), why).again_in(PATIENCE.min(left)))
}

/// The operator ruled this member out.
pub(super) fn wait_nofailover(s: &Snapshot) -> Option<Verdict> {
    s.config.tags.nofailover.then(|| Verdict::new(Plan::stay(), "tagged nofailover: not a candidate"))
}

/// A key hangs on a lease.
pub(super) fn wait_for_lease(s: &Snapshot) -> Option<Verdict> {
    s.lease.id.is_none().then(|| Verdict::new(Plan::stay(), "no lease yet").again_in(Duration::from_millis(100)))
}

/// The lock is gone, but its last holder may be well: while the log still comes, there is no need for another primary. One that
/// lost nothing but etcd takes the lock back when etcd does.
pub(super) fn wait_for_streaming_primary(s: &Snapshot) -> Option<Verdict> {
    let limit = s.config.primary_race_backoff;
    let gone = s.memory.vacant_since.map_or(Duration::ZERO, |since| s.now.since(since));
    let left = limit.checked_sub(gone).filter(|left| !left.is_zero())?;
    let standby = s.standby().filter(|_| s.config.standby_cluster.is_none() && !super::switchover::is_asked_for(s))?;
    let moves = s.memory.position_since.is_some_and(|since| s.now.since(since) < s.config.loop_wait);
    (gone < s.config.loop_wait || standby.streaming && moves).then(|| {
        let why =
            format!("nobody holds the leader key, but the last primary may be well: waiting {left:?} more at the most");
        Verdict::new(Plan::stay(), why).again_in(PATIENCE.min(left))
    })
}

/// Too far behind what is known to have been written, or on a branch that the cluster left.
pub(super) fn wait_behind(s: &Snapshot) -> Option<Verdict> {
    let mine = s.standby()?.position();
    let promised = s.view().and_then(|view| view.promise.as_ref()).map(|key| key.promise.position.lsn);
    let known = promised.unwrap_or_default().max(s.cluster_position());
    let lag = known.bytes_ahead_of(mine);
    let limit = s.config.maximum_lag_on_failover;
    if lag > limit {
        let why = format!("lag is {lag} bytes ({mine}, known {known}), maximum_lag_on_failover is {limit}");
        return Some(Verdict::new(Plan::stay(), why).again_in(PATIENCE));
    }
    // The history of a standby cluster ends where it began to follow the remote (Z1).
    let cluster = s.view()?.timeline().filter(|_| s.config.standby_cluster.is_none())?;
    let own = s.standby()?.timeline?;
    // "Ahead" of the recorded timeline is only a history that was not written yet.
    let why = (own < cluster).then(|| super::repair::divergence(s, cluster)).flatten()?;
    Some(Verdict::new(Plan::stay(), why).again_in(PATIENCE))
}

/// `check_timeline`: only members on the cluster's timeline.
pub(super) fn wait_on_old_timeline(s: &Snapshot) -> Option<Verdict> {
    let cluster = s.view()?.timeline().filter(|_| s.config.check_timeline)?;
    let own = s.own_timeline();
    (own.is_none_or(|own| own < cluster)).then(|| {
        let own = own.map_or("unknown".to_owned(), |own| own.to_string());
        Verdict::new(Plan::stay(), format!("check_timeline: our timeline is {own}, the cluster's {cluster}"))
            .again_in(PATIENCE)
    })
}

/// Nobody decides alone, unless alone.
pub(super) fn ask_the_others(s: &Snapshot) -> Option<Verdict> {
    let whom = s.peers_to_ask();
    (!whom.is_empty() && s.fresh_peers().is_none()).then(|| {
        let names: Vec<_> = whom.keys().map(ToString::to_string).collect();
        Verdict::new(Plan::ask(whom), format!("nobody leads: asking {}", names.join(", "))).again_in(Duration::ZERO)
    })
}

/// A peer whose answer counts: it could lead itself.
pub(super) fn could_lead(answer: &PeerAnswer) -> bool {
    !answer.nofailover && !answer.watchdog_failed
}

fn rivals(s: &Snapshot) -> impl Iterator<Item = (&crate::units::MemberName, &PeerAnswer)> {
    s.fresh_peers().into_iter().flat_map(|peers| peers.answers()).filter(|(_, answer)| could_lead(answer))
}

/// A primary is still alive: it lost the key and will be fenced, or takes it back.
pub(super) fn wait_for_living_primary(s: &Snapshot) -> Option<Verdict> {
    let (name, _) = rivals(s).find(|(_, answer)| answer.is_primary)?;
    Some(Verdict::new(Plan::stay(), format!("{name} still runs as a primary")).again_in(PATIENCE))
}

/// Is the peer's log ahead of mine? On a later timeline it is whatever the bytes say: who is on an earlier one has either
/// less of the cluster's log, or a branch of its own.
fn ahead(answer: &PeerAnswer, mine: &SqlFacts) -> bool {
    match answer.timeline.zip(mine.timeline) {
        Some((theirs, own)) if theirs != own => theirs > own,
        Some(_) | None => answer.position > mine.position(),
    }
}

/// Another candidate has more of the log: leave it to that one.
pub(super) fn wait_for_member_ahead(s: &Snapshot) -> Option<Verdict> {
    let mine = s.standby()?;
    // What only an unlisted member has, or the old primary, was acknowledged to nobody.
    let counts = |name| synchronous::has_all_commits(s, name) && !synchronous::wrote_last(s, name);
    let (name, answer) = rivals(s).find(|(name, answer)| counts(name) && ahead(answer, mine))?;
    let why = format!("{name} is ahead: {} against our {}", answer.position, mine.position());
    Some(Verdict::new(Plan::stay(), why).again_in(PATIENCE))
}

/// Equal, but the operator prefers another one. Not if that is the former leader: it was just lost.
pub(super) fn wait_for_priority(s: &Snapshot) -> Option<Verdict> {
    let mine = s.standby()?;
    let former = s.memory.last_led.as_ref().map(|led| &led.leader);
    let (name, answer) =
        rivals(s).filter(|(name, _)| synchronous::has_all_commits(s, name)).find(|(name, answer)| {
            let equal = answer.timeline == mine.timeline && answer.position == mine.position() && answer.position.0 > 0;
            equal
                && answer.failover_priority > s.config.tags.failover_priority
                && Some(*name) != former
                && !synchronous::wrote_last(s, name)
        })?;
    let why = format!("{name} is as far and has failover_priority {}", answer.failover_priority);
    Some(Verdict::new(Plan::stay(), why).again_in(PATIENCE))
}

/// Nothing against it: try the transaction. The first compare wins.
pub(super) fn run_for_leader(s: &Snapshot) -> Verdict {
    debug_assert_eq!(s.seat(), Seat::Vacant);
    match s.standby().and_then(|standby| next_promise(s, standby)) {
        Some((promise, seen)) => {
            let why = format!("nobody leads and nobody is ahead of {}: running for leader", promise.position.lsn);
            Verdict::new(Plan::of(Lease::Take { promise, seen }, Move::Stay), why).again_in(Duration::ZERO)
        }
        None => Verdict::new(Plan::stay(), "our own timeline is not known yet").again_in(PATIENCE),
    }
}

#[cfg(test)]
mod tests {
    use crate::cluster::Initialize;
    use crate::fixture::{primary, secs, standby};
    use crate::plan::{Lease, Move};
    use crate::postgres::{FinishedJob, Job, StopMode, Upstream};
    use crate::rules::decide;
    use crate::snapshot::Watchdog;
    use crate::units::{Lsn, Revision, Timeline};

    #[test]
    fn only_an_empty_member_with_a_bootstrap_section_races_to_make_a_cluster() {
        let new = || standby().vacant().uninitialized().empty().alone();
        assert_eq!(decide(&new().build()).plan.lease, Lease::StartBootstrap);
        assert_eq!(decide(&new().build()).rule, "race_to_bootstrap");
        assert_eq!(decide(&new().nofailover().build()).rule, "wait_empty");
        assert_eq!(decide(&new().with(|s| s.config.may_bootstrap = false)).rule, "wait_empty");
        assert_eq!(decide(&standby().vacant().empty().build()).rule, "wait_empty", "the cluster exists");
        assert_eq!(decide(&new().being_made_by_another().build()).rule, "wait_empty");
    }

    #[test]
    fn a_refused_promotion_is_left_to_others_for_one_ttl() {
        for (ago, rule) in
            [(0, "wait_after_refused_promotion"), (29, "wait_after_refused_promotion"), (30, "run_for_leader")]
        {
            let s = standby().vacant().alone().with(|s| s.memory.promotion_refused = Some(s.now.minus(secs(ago))));
            assert_eq!(decide(&s).rule, rule, "{ago}");
        }
    }

    #[test]
    fn a_backup_is_restored_without_a_leader_where_a_method_can() {
        let empty = || standby().vacant().empty().but_config(|config| config.restores_without_leader = true);
        let restored = decide(&empty().build());
        assert_eq!((restored.rule, restored.plan.postgres), ("restore_without_leader", Move::Restore));
        assert_eq!(decide(&standby().vacant().empty().build()).rule, "wait_empty");
        assert_eq!(decide(&empty().being_made_by_another().build()).rule, "wait_empty");
        assert_eq!(decide(&empty().uninitialized().alone().build()).rule, "race_to_bootstrap", "a new cluster first");
        assert_eq!(decide(&empty().uninitialized().nofailover().build()).plan.postgres, Move::Restore);
        assert_ne!(decide(&empty().paused().build()).plan.postgres, Move::Restore);
        let failed = |ago| {
            empty().with(|s| {
                let error = Some("no".into());
                s.memory.last_job = Some(FinishedJob { job: Job::Restore, at: s.now.minus(secs(ago)), error });
            })
        };
        assert_eq!(decide(&failed(4)).plan.postgres, Move::Stay);
        assert_eq!(decide(&failed(5)).plan.postgres, Move::Restore);
    }

    #[test]
    fn wait_for_bootstrap() {
        for old in [standby().vacant(), standby().vacant().down()] {
            let making = old.being_made_by_another().build();
            assert_eq!((decide(&making).rule, decide(&making).plan.postgres), ("wait_for_bootstrap", Move::Stay));
            // Nobody is left who could take an entry without a lease away: it keeps nobody.
            let mut orphan = making;
            let view = orphan.dcs.as_mut().expect("reachable");
            view.initialize = Initialize::InProgress { modified: Revision(5), lease: None };
            assert_ne!(decide(&orphan).rule, "wait_for_bootstrap");
        }
    }

    #[test]
    fn without_a_required_watchdog_nobody_takes_the_key_or_makes_a_cluster() {
        let failed = Watchdog::Failed("no such device".into());
        for watchdog in [failed.clone(), Watchdog::Awaited] {
            for server in [primary().vacant(), standby().vacant().alone()] {
                let decision = decide(&server.watchdog(watchdog.clone()).build());
                assert_eq!((decision.rule, decision.plan.lease), ("wait_for_watchdog", Lease::Keep));
            }
            let new = standby().vacant().uninitialized().empty().alone().watchdog(watchdog.clone()).build();
            assert_eq!(decide(&new).plan.lease, Lease::Keep, "the right to make a cluster is left to others");
            let won = standby().vacant().empty().bootstrapping().watchdog(watchdog).build();
            assert_eq!(decide(&won).plan.postgres, Move::Stay);
        }
        let stops = decide(&primary().vacant().watchdog(failed).build()).plan.postgres;
        assert_eq!(stops, Move::Stop(StopMode::Immediate), "no primary without key and watchdog");
        let awaits = decide(&primary().vacant().watchdog(Watchdog::Awaited).build()).plan.postgres;
        assert_eq!(awaits, Move::Stay);
    }

    #[test]
    fn without_a_guardian_nobody_takes_the_key() {
        for server in [primary().vacant(), standby().vacant().alone()] {
            assert!(matches!(decide(&server.clone().build()).plan.lease, Lease::Take { .. }));
            let absent = decide(&server.unguarded_for(secs(60)).build());
            assert_eq!((absent.rule, absent.plan.lease), ("wait_for_guardian", Lease::Keep));
        }
        let new = standby().vacant().uninitialized().empty().alone().unguarded_for(secs(60)).build();
        assert_eq!(decide(&new).plan.lease, Lease::StartBootstrap, "the right to make a cluster");
        let won = standby().vacant().empty().bootstrapping().unguarded_for(secs(60)).build();
        assert_eq!(decide(&won).plan.postgres, Move::Stay, "the making of it");
    }

    #[test]
    fn a_won_bootstrap_goes_on_to_an_identified_cluster_and_then_to_the_key() {
        let won = standby().vacant().empty().bootstrapping();
        assert_eq!(
            (decide(&won.build()).rule, decide(&won.build()).plan.postgres),
            ("make_the_cluster", Move::Bootstrap)
        );
        let running = primary().vacant().bootstrapping().build();
        assert_eq!((decide(&running).rule, decide(&running).plan.keys.len()), ("identify_new_cluster", 1));
        let identified = primary().vacant().build();
        assert!(matches!(decide(&identified).plan.lease, Lease::Take { .. }));
        let failed = standby().vacant().empty().bootstrapping().with(|s| {
            s.memory.last_job = Some(FinishedJob { job: Job::Bootstrap, at: s.now, error: Some("no space".into()) });
        });
        assert_eq!(decide(&failed).rule, "abandon_failed_bootstrap");
        assert_eq!(decide(&failed).plan.lease, Lease::AbandonBootstrap);
        assert_eq!(decide(&failed).plan.postgres, Move::SetAside);
        let died = primary().vacant().bootstrapping().down().build();
        assert_eq!(decide(&died).rule, "abandon_failed_bootstrap");
        let died_named = primary().vacant().down().with(|s| s.memory.bootstrapping = true);
        assert_eq!(decide(&died_named).rule, "start_without_upstream", "a cluster that has its name is kept");
        let silent = primary().vacant().bootstrapping().with(|s| {
            (s.postgres.sql, s.postgres.probe) = (None, crate::postgres::Probe::Silent);
            s.memory.role = crate::memory::Role::Uninitialized;
        });
        assert_eq!(decide(&silent).rule, "wait_to_promote_bootstrap", "it runs, and may yet answer (B6)");
    }

    #[test]
    fn a_running_primary_takes_the_key_back_unless_its_timeline_was_superseded() {
        assert_eq!(decide(&primary().vacant().build()).rule, "keep_leading");
        assert_eq!(decide(&primary().vacant().nofailover().build()).rule, "keep_leading", "R5: tags are not asked");
        for superseded in [
            primary().vacant().cluster_on_timeline(2, &[(1, 1_000)]).build(),
            primary().vacant().promised("b", 2).build(),
            primary().vacant().promised("b", 1).build(),
        ] {
            let d = decide(&superseded);
            assert_eq!((d.rule, d.plan.postgres), ("demote_stale_primary", Move::Stop(StopMode::Immediate)));
        }
        assert_eq!(decide(&primary().vacant().promised("a", 1).build()).rule, "keep_leading");
    }

    #[test]
    fn a_primary_without_a_lease_waits_one_turn_and_no_more() {
        let first = primary().vacant().lease_lost().with(|s| s.memory.holds = Some(crate::units::LeaseId(1)));
        assert_eq!((decide(&first).rule, decide(&first).plan.postgres), ("keep_leading", Move::Stay));
        let second = primary().vacant().lease_lost().with(|s| s.memory.holds = None);
        assert_eq!(decide(&second).rule, "demote_stale_primary");
    }

    #[test]
    fn who_waits() {
        assert_eq!(decide(&standby().vacant().nofailover().build()).rule, "wait_nofailover");
        assert_eq!(decide(&standby().vacant().lease_lost().build()).rule, "wait_for_lease");
        assert_eq!(decide(&standby().vacant().starting(secs(1)).build()).rule, "wait_while_starting");
        let down = standby().vacant().down().build();
        assert_eq!(decide(&down).rule, "start_without_upstream");
        assert_eq!(decide(&down).plan.postgres, Move::StartStandby(Upstream::Nobody));
    }

    #[test]
    fn who_agreed_to_another_primary_takes_no_part_until_that_ends() {
        let s = standby().vacant().alone().failsafe().agreed_to_b(secs(5)).build();
        assert_eq!((decide(&s).rule, decide(&s).plan.lease), ("wait_for_failsafe_leader", Lease::Keep));
        let elsewhere = standby().vacant().agreed_to_b(secs(5)).with(|s| {
            s.postgres.sql.as_mut().unwrap().upstream = None;
        });
        assert!(matches!(decide(&elsewhere).plan.postgres, Move::Follow(_)), "it is followed meanwhile");
        let holder = standby().holding_the_key().promised("a", 2).agreed_to_b(secs(5)).build();
        assert_eq!((decide(&holder).rule, decide(&holder).plan.lease), ("yield_to_failsafe_leader", Lease::Release));
    }

    #[test]
    fn who_is_not_in_the_failsafe_key_is_no_candidate() {
        let outside = |s: &mut crate::snapshot::Snapshot| {
            s.dcs.as_mut().unwrap().failsafe.as_mut().unwrap().members.remove(&s.config.name);
        };
        assert_eq!(decide(&standby().vacant().alone().failsafe().with(outside)).rule, "wait_outside_failsafe");
        let off = standby().vacant().alone().failsafe().with(|s| (outside(s), s.config.failsafe_mode = false).1);
        assert_eq!(decide(&off).rule, "run_for_leader");
        let primary = primary().vacant().failsafe().with(outside);
        assert_eq!(decide(&primary).rule, "keep_leading", "it would not lead by a race");
    }

    #[test]
    fn a_restarted_agent_may_have_agreed_to_something() {
        let young = |s: &mut crate::snapshot::Snapshot| s.memory.since = Some(s.now.minus(secs(29)));
        let race = || standby().vacant().at(Lsn(1_000)).failsafe().unreachable("b").answers("c", 1_000);
        assert_eq!(decide(&race().with(young)).rule, "wait_after_start");
        assert_eq!(decide(&race().build()).rule, "run_for_leader", "older than any promise");
        let short = |s: &mut crate::snapshot::Snapshot| {
            s.config.ttl = secs(5);
            s.memory.since = Some(s.now.minus(secs(15)));
        };
        assert_eq!(decide(&race().with(short)).rule, "run_for_leader");
        let patroni = race().member("b", |member| member.regent = false);
        assert_eq!(decide(&patroni.with(short)).rule, "wait_after_start", "b counts on its own floor of 20 s");
        assert_eq!(
            decide(&race().answers("b", 1_000).with(young)).rule,
            "run_for_leader",
            "all answer, none is a primary"
        );
    }

    #[test]
    fn wait_behind() {
        let lagging = |lag: u64| standby().vacant().at(Lsn(1_000)).leader_wrote(Lsn(1_000 + lag)).alone();
        assert_eq!(decide(&lagging(1_048_576).build()).rule, "run_for_leader");
        assert_eq!(decide(&lagging(1_048_577).build()).rule, "wait_behind");
    }

    #[test]
    fn a_branch_that_the_cluster_left_is_no_candidate() {
        let branch = |lsn| standby().vacant().alone().cluster_on_timeline(2, &[(1, 1_000)]).on_timeline(1).at(Lsn(lsn));
        assert_eq!(decide(&branch(1_001).build()).rule, "wait_behind");
        assert_eq!(decide(&branch(1_000).build()).rule, "run_for_leader");
        assert_eq!(decide(&branch(1_000).check_timeline().build()).rule, "wait_on_old_timeline");
    }

    #[test]
    fn the_race() {
        let race = || standby().vacant().at(Lsn(1_000));
        assert_eq!(decide(&race().build()).rule, "ask_the_others", "before it runs");
        assert!(!decide(&race().build()).plan.ask.is_empty());
        assert_eq!(decide(&race().answers("b", 1_000).answers("c", 999).build()).rule, "run_for_leader");
        assert_eq!(decide(&race().answers("b", 1_001).build()).rule, "wait_for_member_ahead");
        assert_eq!(decide(&race().unreachable("b").unreachable("c").build()).rule, "run_for_leader");
        let nofailover = race().answer("b", |a| {
            a.position = Lsn(2_000);
            a.nofailover = true;
        });
        assert_eq!(decide(&nofailover.build()).rule, "run_for_leader", "an answer that cannot lead is no veto");
        let alive = race().answer("b", |a| a.is_primary = true);
        assert_eq!(decide(&alive.build()).rule, "wait_for_living_primary");
        let preferred = race().answer("c", |a| {
            a.position = Lsn(1_000);
            a.failover_priority = 2;
        });
        assert_eq!(decide(&preferred.build()).rule, "wait_for_priority");
        let former = race().answer("b", |a| {
            a.position = Lsn(1_000);
            a.failover_priority = 2;
        });
        assert_eq!(decide(&former.build()).rule, "run_for_leader", "b led last: no preference for what was just lost");
    }

    #[test]
    fn nobody_waits_long_for_the_member_that_was_just_lost() {
        let within = |s: &crate::snapshot::Snapshot| {
            decide(s)
                .plan
                .ask
                .into_iter()
                .map(|(name, question)| (name.to_string(), question.within))
                .collect::<Vec<_>>()
        };
        let (short, long) = (std::time::Duration::from_millis(300), secs(2));
        let race = standby().vacant().build();
        assert_eq!(within(&race), [("b".to_owned(), short), ("c".to_owned(), long)], "b led");
        let gone = standby().vacant().with(|s| {
            let view = s.dcs.as_mut().expect("reachable");
            view.members.remove(&"c".into());
        });
        assert_eq!(within(&gone), [("b".to_owned(), short), ("c".to_owned(), short)], "c's key went with its lease");
    }

    #[test]
    fn a_peer_on_a_later_timeline_is_ahead_whatever_its_bytes_and_on_an_earlier_one_is_not() {
        let race = || standby().vacant().on_timeline(2).at(Lsn(1_000));
        let later = race().answer("c", |a| {
            a.timeline = Some(Timeline(3));
            a.position = Lsn(900);
        });
        assert_eq!(decide(&later.build()).rule, "wait_for_member_ahead");
        let earlier = race().answer("c", |a| {
            a.timeline = Some(Timeline(1));
            a.position = Lsn(1_100);
        });
        assert_eq!(decide(&earlier.build()).rule, "run_for_leader");
    }

    #[test]
    fn a_promise_that_cannot_be_read_is_replaced() {
        let s = standby().vacant().alone().with(|s| {
            let view = s.dcs.as_mut().expect("reachable");
            (view.promise, view.unreadable_promise) = (None, Some(crate::units::Revision(77)));
        });
        let Lease::Take { seen, .. } = decide(&s).plan.lease else { panic!("{:?}", decide(&s)) };
        assert_eq!(seen, Some(crate::units::Revision(77)));
    }

    #[test]
    fn the_promise_names_a_timeline_that_nobody_has() {
        let s = standby().vacant().promised("c", 4).answer("c", |a| a.timeline = Some(Timeline(1))).build();
        let Lease::Take { promise, seen } = decide(&s).plan.lease else { panic!("{:?}", decide(&s)) };
        assert_eq!((promise.position.timeline, promise.epoch), (Timeline(5), 2));
        assert!(seen.is_some(), "the transaction compares the promise that it follows");
    }
}
