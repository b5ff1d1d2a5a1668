//! Known-wrong judgements (DESIGN section 9). The simulation must find each of them, or it proves nothing.
//!
//! A planted bug lives in here, not in the product: it is the real judgement without a row, on an altered snapshot, or with
//! an altered plan; the inspector is switched off, as a bug in a rule may be one that the inspector's author shared.

use regent::agent::Judge;
use regent_core::cluster::{Initialize, SyncState};
use regent_core::fence::Fence;
use regent_core::plan::{Decision, KeyWrite, Lease, Move, Plan, Verdict};
use regent_core::postgres::{Job, StopMode};
use regent_core::rules::{decide, decide_without};
use regent_core::snapshot::{Order, Seat, Snapshot};
use regent_core::sync::{Since, Waits};
use regent_core::units::{Lsn, MemberName};

use crate::trace::record;

/// A bug, and how it is planted.
pub struct Bug {
    /// What is wrong, in a few words.
    pub name: &'static str,
    /// The judgement with the bug in it.
    pub decide: fn(&Snapshot) -> Decision,
    /// What its guardian is told.
    pub fence: fn(&Snapshot) -> Fence,
}

impl Bug {
    /// The judge of an agent with this bug.
    #[must_use]
    pub fn judge(&self) -> Judge {
        Judge { decide: self.decide, inspect: |_, _| Ok(()), fence: self.fence }
    }
}

/// All of them.
pub const BUGS: &[Bug] = &[
    Bug {
        name: "no stop before the lease ends",
        fence: unguarded,
        decide: |s| without(s, &["stop_before_lease_ends"]),
    },
    Bug {
        name: "the deadline counts from the answer, and an answer takes long",
        fence: unguarded,
        decide: deadline_too_late,
    },
    Bug { name: "time stands still while the machine sleeps", fence: unguarded, decide: clock_without_suspend },
    Bug {
        name: "a primary beside another leader goes on",
        fence: unguarded,
        decide: |s| without(s, &["demote_when_another_leads", "stop_writer_beside_leader", "stop_before_lease_ends"]),
    },
    Bug { name: "the key is released before the server is stopped", fence: unguarded, decide: release_before_stop },
    Bug {
        name: "a member ahead is not waited for",
        fence: Snapshot::fence,
        decide: |s| without(s, &["wait_for_member_ahead"]),
    },
    Bug { name: "nobody is asked before the race", fence: Snapshot::fence, decide: nobody_is_asked },
    Bug { name: "a promotion takes the next number, promised or not", fence: Snapshot::fence, decide: any_timeline },
    Bug { name: "a stopped member starts as a primary", fence: Snapshot::fence, decide: start_as_primary },
    Bug { name: "any error of etcd is a lost lease", fence: Snapshot::fence, decide: error_is_loss },
    Bug { name: "every empty member makes a cluster", fence: Snapshot::fence, decide: everybody_bootstraps },
    Bug {
        name: "an interrupted clone is left lying",
        fence: Snapshot::fence,
        decide: |s| without_then_stay(s, &["clear_unfinished_copy"]),
    },
    Bug {
        name: "a standby does not follow the new leader",
        fence: Snapshot::fence,
        decide: |s| without(s, &["follow_leader"]),
    },
    Bug { name: "nobody runs for leader", fence: Snapshot::fence, decide: nobody_runs },
    Bug {
        name: "a diverged standby is left running",
        fence: Snapshot::fence,
        decide: |s| without(s, &["stop_diverged"]),
    },
    Bug { name: "no guardian", fence: unguarded, decide: |s| record(s, decide(s)) },
    Bug {
        name: "the guardian is disarmed before the server is down",
        fence: disarmed_early,
        decide: |s| record(s, decide(s)),
    },
    Bug { name: "a standby is listed before the server waits for it", fence: Snapshot::fence, decide: publish_first },
    Bug {
        name: "a standby is listed as soon as the server is told to wait",
        fence: Snapshot::fence,
        decide: no_settling,
    },
    Bug {
        name: "the server stops waiting for a standby that is still listed",
        fence: Snapshot::fence,
        decide: |s| without(s, &["publish_sync"]),
    },
    Bug {
        name: "whoever is up may lead, listed or not",
        fence: Snapshot::fence,
        decide: |s| without(s, &["wait_unlisted", "wait_for_member_ahead"]),
    },
    Bug {
        name: "no votes are counted",
        fence: Snapshot::fence,
        decide: |s| without(s, &["wait_for_votes", "wait_for_member_ahead"]),
    },
    Bug { name: "a member votes for two", fence: Snapshot::fence, decide: vote_twice },
];

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

fn clock_without_suspend(s: &Snapshot) -> Decision {
    // The same as a deadline that moves along with a machine that sleeps: it is always as far away as it was.
    let mut asleep = s.clone();
    asleep.lease.ends = s.lease.ends.map(|ends| ends.max(s.now + s.config.ttl / 2));
    record(s, decide(&asleep))
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

/// What was told to the server is taken for done.
fn no_settling(s: &Snapshot) -> Decision {
    let mut hasty = s.clone();
    if let Some(sql) = s.sql() {
        let (names, mark) = (sql.sync_names.clone(), Some(Lsn(0)));
        hasty.memory.sync_names = Some(Since { names, at: s.now, mark });
    }
    record(s, decide(&hasty))
}

/// Each member that answers counts as two.
fn vote_twice(s: &Snapshot) -> Decision {
    let mut twice = s.clone();
    if let Ok(view) = &mut twice.dcs
        && let Some(sync) = &mut view.sync
    {
        sync.quorum /= 2;
    }
    without(&twice, &["wait_for_member_ahead"])
}

/// A guardian that is there and guards nothing: it would hide what the agent itself does wrong.
fn unguarded(_: &Snapshot) -> Fence {
    Fence::Keep
}

/// As soon as a stop is due or under way, or etcd is silent: "we are going down anyway".
fn disarmed_early(s: &Snapshot) -> Fence {
    let stops = s.job.as_ref().is_some_and(|running| matches!(running.job, Job::Stop(_)));
    if stops || s.seat() == Seat::Unknown { Fence::Off } else { s.fence() }
}
