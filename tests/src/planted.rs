//! Known-wrong judgements (DESIGN section 9). The simulation must find each of them, or it proves nothing.
//!
//! A planted bug lives in here, not in the product: it is the real judgement without a row, on an altered snapshot, or with
//! an altered plan; or a clock, a reading of answers, an order to the guardian that is wrong. The inspector is switched off
//! but for one, as a bug in a rule may be one that the inspector's author shared.
//!
//! A seed has found a bug only if the same world without it is well: where the guardian is switched off, as it would hide
//! what the agent itself does wrong, an agent that is merely frozen proves nothing.

use std::time::Duration;

use regent::agent::Judge;
use regent_core::cluster::{Initialize, SyncState};
use regent_core::config::SyncMode;
use regent_core::fence::Fence;
use regent_core::plan::{Decision, KeyWrite, Lease, Move, Plan, Verdict};
use regent_core::postgres::{DataDir, Job, StopMode, Upstream};
use regent_core::rules::{decide, decide_without};
use regent_core::snapshot::{Order, Seat, Snapshot};
use regent_core::sync::{Since, Waits};
use regent_core::units::{Lsn, MemberName};

use crate::simulation::{Outcome, honest, run};
use crate::trace::record;
use crate::world::{Make, Renewals, Time};

/// A bug, and how it is planted.
pub struct Bug {
    /// What is wrong, in a few words.
    pub name: &'static str,
    /// Agents with the bug in them.
    pub make: fn() -> Make,
    /// The same without it.
    pub control: fn() -> Make,
}

impl Bug {
    /// The outcome of this seed if it finds the bug.
    #[must_use]
    pub fn found_by(&self, seed: u64) -> Option<Outcome> {
        let well = || run(seed, (self.control)()).findings.is_empty();
        Some(run(seed, (self.make)())).filter(|outcome| !outcome.findings.is_empty() && well())
    }
}

/// A wrong judgement.
const fn judges(name: &'static str, make: fn() -> Make) -> Bug {
    Bug { name, make, control: honest }
}

/// A wrong judgement of agents that have no guardian to hide it.
const fn alone(name: &'static str, make: fn() -> Make) -> Bug {
    Bug { name, make, control: || unguarded(|s| record(s, decide(s))) }
}

/// All of them.
pub const BUGS: &[Bug] = &[
    // The agent's own fence.
    alone("no stop before the lease ends", || unguarded(|s| without(s, &["stop_before_lease_ends"]))),
    alone("the stop begins half a lease late", || unguarded(deadline_too_late)),
    alone("a primary beside another leader goes on", || {
        unguarded(|s| without(s, &["demote_when_another_leads", "stop_writer_beside_leader", "stop_before_lease_ends"]))
    }),
    alone("the key is released before the server is stopped", || unguarded(release_before_stop)),
    judges("renewed while it goes down: the inspector sees it", || inspected(renew_while_demoting)),
    // Clocks, leases, answers.
    Bug {
        // The fast stop before the deadline would hide it.
        name: "the deadline counts from the answer",
        make: || Make { renewals: Renewals::FromTheAnswer, ..fencing(killed_only) },
        control: || fencing(killed_only),
    },
    judges("a renewal without an answer counts as one", || renewing(Renewals::UnknownIsHeld)),
    judges("a renewal without an answer is a lost lease", || renewing(Renewals::UnknownIsLost)),
    judges("any error of etcd is a lost lease", || judging(error_is_loss)),
    judges("deadlines by the wall clock", || timed(Time::Wall)),
    judges("time stands still while the machine sleeps", || timed(Time::Awake)),
    Bug {
        // And this.
        name: "a clock that is 2 % slower than allowed for",
        make: || Make { time: Time::Slow(20_000), ..fencing(killed_only) },
        control: || fencing(killed_only),
    },
    // The guardian.
    judges("no guardian", || unguarded(|s| record(s, decide(s)))),
    judges("the guardian is disarmed before the server is down", || fencing(disarmed_early)),
    judges("the guardian is armed when the server is seen to write", || fencing(armed_late)),
    // Elections, timelines, repair.
    judges("a member ahead is not waited for", || judging(|s| without(s, &["wait_for_member_ahead"]))),
    judges("nobody is asked before the race", || judging(nobody_is_asked)),
    judges("a promotion takes the next number, promised or not", || judging(any_timeline)),
    judges("a stopped member starts as a primary", || judging(start_as_primary)),
    judges("every empty member makes a cluster", || judging(everybody_bootstraps)),
    judges("an interrupted clone is left lying", || judging(|s| without_then_stay(s, &["clear_unfinished_copy"]))),
    judges("a standby does not follow the new leader", || judging(|s| without(s, &["follow_leader"]))),
    judges("nobody runs for leader", || judging(nobody_runs)),
    judges("a diverged standby is left running", || judging(|s| without(s, &["stop_diverged"]))),
    judges("a rewind does not wait for the checkpoint", || judging(stale_source)),
    judges("a half-rewound directory is started", || judging(start_half_rewound)),
    judges("data is given up although nobody leads", || judging(give_up_alone)),
    // Going on without etcd.
    judges("failsafe mode goes on with one member missing", || {
        judging_and_fencing(|s| record(s, decide(&one_missing(s))), |s| one_missing(s).fence())
    }),
    judges("a promise of the others lasts longer than they meant", || {
        judging_and_fencing(|s| record(s, decide(&promises_too_long(s))), |s| promises_too_long(s).fence())
    }),
    judges("who agreed that another one goes on races all the same", || judging(word_broken)),
    judges("who was restarted forgets what it agreed to", || judging(|s| without(s, &["wait_after_start"]))),
    // Synchronous replication.
    judges("a standby is listed before the server waits for it", || judging(publish_first)),
    judges("a standby is listed as soon as the server is told to wait", || judging(no_settling)),
    judges("the server stops waiting for a standby that is still listed", || judging(unlist_last)),
    judges("whoever is up may lead, listed or not", || {
        judging(|s| without(s, &["wait_unlisted", "wait_for_member_ahead"]))
    }),
    judges("no votes are counted", || judging(no_votes)),
    judges("a member votes for two", || judging(vote_twice)),
];

fn judging(decide: fn(&Snapshot) -> Decision) -> Make {
    Make { judge: Judge { decide, inspect: |_, _| Ok(()), fence: Snapshot::fence }, ..Make::default() }
}

fn inspected(decide: fn(&Snapshot) -> Decision) -> Make {
    Make { judge: Judge { decide, ..honest().judge }, ..Make::default() }
}

/// A guardian that is there and guards nothing: it would hide what the agent itself does wrong.
fn unguarded(decide: fn(&Snapshot) -> Decision) -> Make {
    Make { judge: Judge { decide, inspect: |_, _| Ok(()), fence: |_| Fence::Keep }, ..Make::default() }
}

fn fencing(fence: fn(&Snapshot) -> Fence) -> Make {
    Make { judge: Judge { fence, ..honest().judge }, ..Make::default() }
}

fn judging_and_fencing(decide: fn(&Snapshot) -> Decision, fence: fn(&Snapshot) -> Fence) -> Make {
    Make { judge: Judge { decide, inspect: |_, _| Ok(()), fence }, ..Make::default() }
}

fn renewing(renewals: Renewals) -> Make {
    Make { renewals, ..honest() }
}

fn timed(time: Time) -> Make {
    Make { time, ..honest() }
}

fn without(s: &Snapshot, rows: &[&str]) -> Decision {
    record(s, decide_without(s, rows))
}

fn instead(s: &Snapshot, verdict: Verdict) -> Decision {
    let decision = Decision { rule: "planted", plan: verdict.plan, why: verdict.why, look_again: s.config.loop_wait };
    record(s, decision)
}

fn without_then_stay(s: &Snapshot, rows: &[&str]) -> Decision {
    let real = decide(s);
    if rows.contains(&real.rule) { instead(s, Verdict::new(Plan::stay(), "planted")) } else { record(s, real) }
}

fn deadline_too_late(s: &Snapshot) -> Decision {
    let mut late = s.clone();
    late.lease.ends = s.lease.ends.map(|ends| ends + s.config.ttl / 2);
    record(s, decide(&late))
}

/// "It is still ours while it goes down": the claim on the lease stands although a stop is under way.
fn renew_while_demoting(s: &Snapshot) -> Decision {
    let mut decision = decide(s);
    if decision.plan.lease == Lease::LetRun {
        decision.plan.lease = Lease::Keep;
    }
    record(s, decision)
}

fn one_missing(s: &Snapshot) -> Snapshot {
    let mut fewer = s.clone();
    let agreed = &s.memory.promises.until;
    if agreed.len() > 1 {
        fewer.memory.topology.members.retain(|name, _| agreed.contains_key(name));
    }
    fewer
}

fn promises_too_long(s: &Snapshot) -> Snapshot {
    let mut late = s.clone();
    late.memory.promises.until.values_mut().for_each(|until| *until = *until + s.config.ttl / 2);
    late
}

fn word_broken(s: &Snapshot) -> Decision {
    let mut free = s.clone();
    free.agreement = None;
    record(s, decide(&free))
}

fn release_before_stop(s: &Snapshot) -> Decision {
    if s.order == Order::Stop && s.seat() == Seat::Mine && s.postgres.is_up() && s.key_to_adopt().is_none() {
        return instead(s, Verdict::new(Plan::of(Lease::Release, Move::Stay), "planted"));
    }
    if s.order == Order::Stop && s.seat() == Seat::Vacant && s.is_primary() {
        return instead(s, Verdict::new(Plan::stay(), "planted"));
    }
    record(s, decide(s))
}

fn nobody_is_asked(s: &Snapshot) -> Decision {
    without(
        s,
        &["ask_the_others", "wait_for_member_ahead", "wait_for_living_primary", "wait_for_priority", "wait_behind"],
    )
}

fn any_timeline(s: &Snapshot) -> Decision {
    let mut decision = decide(s);
    if let (Move::Promote(timeline), Some(own)) = (&mut decision.plan.postgres, s.own_timeline()) {
        *timeline = own.next();
    }
    record(s, decision)
}

fn start_as_primary(s: &Snapshot) -> Decision {
    let mut decision = decide(s);
    if decision.rule == "start_as_standby" {
        decision.plan.postgres = Move::StartPrimary;
    }
    record(s, decision)
}

fn error_is_loss(s: &Snapshot) -> Decision {
    if s.seat() == Seat::Unknown && s.is_primary() && s.job.is_none() {
        let plan = Plan::of(Lease::LetRun, Move::Stop(StopMode::Immediate));
        return instead(s, Verdict::new(plan, "planted"));
    }
    record(s, decide(s))
}

fn everybody_bootstraps(s: &Snapshot) -> Decision {
    let mut blind = s.clone();
    if let Ok(view) = &mut blind.dcs
        && matches!(view.initialize, Initialize::InProgress { .. })
        && !s.memory.bootstrapping
        && decide(s).rule == "wait_empty"
    {
        return instead(s, Verdict::new(Plan::of(Lease::Keep, Move::Bootstrap), "planted"));
    }
    record(s, decide(s))
}

fn stale_source(s: &Snapshot) -> Decision {
    let mut blind = s.clone();
    if let Ok(view) = &mut blind.dcs {
        view.members.values_mut().for_each(|member| member.checkpoint_pending = false);
    }
    record(s, decide(&blind))
}

fn start_half_rewound(s: &Snapshot) -> Decision {
    if s.postgres.data_dir == DataDir::HalfRewound && s.job.is_none() {
        return instead(s, Verdict::new(Plan::of(Lease::Keep, Move::StartStandby(Upstream::Nobody)), "planted"));
    }
    record(s, decide(s))
}

fn give_up_alone(s: &Snapshot) -> Decision {
    let down = s.postgres.control().is_some() && !s.postgres.is_up();
    let others = s.view().into_iter().flat_map(|view| &view.members).filter(|(name, _)| **name != s.config.name);
    let source = others.filter_map(|(name, member)| Some((name.clone(), member.conn_url.clone()?))).next();
    if let Some((from, conn_url)) = source
        && s.seat() == Seat::Vacant
        && down
        && s.job.is_none()
        && !s.memory.bootstrapping
    {
        return instead(s, Verdict::new(Plan::of(Lease::Keep, Move::GiveUpData { from, conn_url }), "planted"));
    }
    record(s, decide(s))
}

fn nobody_runs(s: &Snapshot) -> Decision {
    let real = decide(s);
    if real.rule == "run_for_leader" { instead(s, Verdict::new(Plan::stay(), "planted")) } else { record(s, real) }
}

/// What the server is about to wait for is published at once.
fn publish_first(s: &Snapshot) -> Decision {
    let real = decide(s);
    let Move::SetSyncNames(Some(names)) = &real.plan.postgres else { return record(s, real) };
    let (waits, view) = (Waits::parse(names), s.view());
    let standbys: std::collections::BTreeSet<_> = waits.names.iter().map(|name| MemberName(name.clone())).collect();
    let listed = view.and_then(|view| view.sync.as_ref()).is_some_and(|sync| sync.standbys == standbys);
    if standbys.is_empty() || listed {
        return record(s, real);
    }
    let quorum = waits.names.len().saturating_sub(waits.numsync);
    let sync = Some(SyncState { leader: s.config.name.clone(), standbys, quorum });
    let keys = vec![KeyWrite::Sync { sync, seen: view.and_then(|view| view.sync_seen) }];
    instead(s, Verdict::new(Plan::stay().and_write(keys), "planted"))
}

/// A standby that went away: first the server, and then the list.
fn unlist_last(s: &Snapshot) -> Decision {
    let real = decide(s);
    let [KeyWrite::Sync { sync: Some(next), .. }, ..] = &real.plan.keys[..] else { return record(s, real) };
    let fewer =
        s.view().and_then(|view| view.sync.as_ref()).is_some_and(|sync| next.standbys.len() < sync.standbys.len());
    let names = Waits::all_of(&next.standbys.iter().map(|name| name.as_str().to_ascii_lowercase()).collect());
    let long_since = |since: &Since| since.names == names && s.now.since(since.at) >= Duration::from_secs(2);
    let told = s.memory.sync_names.as_ref().is_none_or(long_since);
    if !fewer || told || s.job.is_some() || !s.is_primary() || s.config.synchronous_mode != SyncMode::On {
        return record(s, real);
    }
    instead(s, Verdict::new(Plan::of(Lease::Keep, Move::SetSyncNames(Some(names))), "planted").again_in(Duration::ZERO))
}

/// What was told to the server is taken for done.
fn no_settling(s: &Snapshot) -> Decision {
    let mut hasty = s.clone();
    if let Some(sql) = s.sql() {
        let (names, mark) = (sql.sync_names.clone(), Some(Lsn(0)));
        hasty.memory.sync_names = Some(Since { names, at: s.now, mark });
    }
    record(s, decide(&hasty))
}

/// In quorum mode whoever asks first wins: elsewhere a member that is ahead is waited for as ever.
fn no_votes(s: &Snapshot) -> Decision {
    let quorum = s.config.synchronous_mode == SyncMode::Quorum;
    without(s, if quorum { &["wait_for_votes", "wait_for_member_ahead"] } else { &[] })
}

/// Each member that answers counts as two.
fn vote_twice(s: &Snapshot) -> Decision {
    let mut twice = s.clone();
    if let Ok(view) = &mut twice.dcs
        && let Some(sync) = &mut view.sync
    {
        sync.quorum /= 2;
    }
    let quorum = s.config.synchronous_mode == SyncMode::Quorum;
    without(&twice, if quorum { &["wait_for_member_ahead"] } else { &[] })
}

/// As soon as a stop is due or under way, or etcd is silent: "we are going down anyway".
fn disarmed_early(s: &Snapshot) -> Fence {
    let stops = s.job.as_ref().is_some_and(|running| matches!(running.job, Job::Stop(_)));
    if stops || s.seat() == Seat::Unknown { Fence::Off } else { s.fence() }
}

/// No fast stop before the kill.
fn killed_only(s: &Snapshot) -> Fence {
    match s.fence() {
        Fence::Guard { pid, lease, promised, .. } => Fence::Guard { pid, lease, promised, early: Duration::ZERO },
        fence @ (Fence::Keep | Fence::Down | Fence::Off) => fence,
    }
}

/// Only when a query said that it writes: too late for who freezes before.
fn armed_late(s: &Snapshot) -> Fence {
    let writes = s.sql().is_some_and(|sql| !sql.in_recovery);
    match s.fence() {
        Fence::Guard { .. } if !writes => Fence::Keep,
        fence @ (Fence::Keep | Fence::Guard { .. } | Fence::Down | Fence::Off) => fence,
    }
}
