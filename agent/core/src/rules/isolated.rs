//! etcd did not answer. The lease decides how long that may go on; the guards stop in time.

use std::time::Duration;

use crate::memory::Role;
use crate::plan::{Lease, Move, Plan, Verdict};
use crate::postgres::{DataDir, Present, StopMode, Upstream};
use crate::snapshot::{NoView, Snapshot};
use crate::units::Instant;

/// We accept writes and know of no lease that allows it: an agent that was restarted while etcd is away.
pub(super) fn stop_without_lease(s: &Snapshot) -> Option<Verdict> {
    (s.may_write() && s.lock_ends().is_none() && !s.memory.bootstrapping).then(|| {
        Verdict::new(
            Plan::of(Lease::LetRun, Move::Stop(StopMode::Immediate)),
            "PostgreSQL runs as a primary, etcd is silent, and we know of no lease that lets us",
        )
    })
}

/// Failsafe mode: we lost etcd and nothing else. If every member that could be promoted agrees, we need not stop.
///
/// Not a quorum: a partition could elect with any member that was not asked. Only silence opens this way, never a refusal (F10),
/// and only to who may still write: a lock that is lost for certain is not won back by asking.
pub(super) fn ask_to_go_on(s: &Snapshot) -> Option<Verdict> {
    let silent = matches!(s.dcs, Err(NoView::Unreachable(_))) && s.config.failsafe_mode && s.is_primary();
    let topology = &s.memory.topology.members;
    s.lock_ends().filter(|ends| silent && s.now < *ends && topology.contains_key(&s.config.name))?;
    let due = next_round(s).is_none_or(|at| s.now >= at);
    due.then(|| {
        let mut others = topology.clone();
        others.remove(&s.config.name);
        let names: Vec<_> = others.keys().map(ToString::to_string).collect();
        let plan = Plan { confirm: Some(others), ..Plan::stay() };
        let why = format!("etcd is silent: asking for leave to go on: {}", names.join(", "));
        Verdict::new(plan, why).again_in(Duration::ZERO)
    })
}

/// When the others are asked again: each cycle while they agree, sooner while one of them does not.
fn next_round(s: &Snapshot) -> Option<Instant> {
    let (sent, agreed) = s.memory.promises.last?;
    Some(sent + if agreed { s.config.loop_wait.min(s.config.ttl / 4) } else { ASK_AGAIN })
}

/// How soon those who did not agree are asked again.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// All agreed: nobody is promoted before the first of those promises ends, whatever became of our lease.
pub(super) fn go_on_by_agreement(s: &Snapshot) -> Option<Verdict> {
    let at = next_round(s)?;
    let until = s.promised_until().filter(|until| s.is_primary() && s.now < *until)?;
    let why = format!("etcd is silent, and all members let us go on for {:?} more", s.now.until(until));
    Some(Verdict::new(Plan::stay(), why).again_in(s.now.until(at)))
}

/// We stopped it because of the lease; readers may have it back, without an upstream and without writes. Not a copy that has never
/// run, such as one that was just rewound: it needs log of its source before it lets anybody in, and would wait for that for ever.
pub(super) fn restart_read_only(s: &Snapshot) -> Option<Verdict> {
    let complete = |present: &Present| present.control.is_some() && !present.backup_label;
    let here = matches!(&s.postgres.data_dir, DataDir::Present(present) if complete(present));
    let stopped_by_us = !s.postgres.is_up() && s.memory.role == Role::Demoted && s.memory.met && !s.memory.recovering;
    (here && stopped_by_us && s.lock_ends().is_none_or(|ends| s.now >= ends.minus(s.config.stop_budget))).then(|| {
        Verdict::new(
            Plan::of(Lease::LetRun, Move::StartStandby(Upstream::Nobody)),
            "etcd is still silent: starting read-only until it is back",
        )
    })
}

/// How soon etcd is read again after a failure: it may have been a matter of a moment, and a server be down meanwhile.
const RETRY: Duration = Duration::from_secs(1);

/// Nothing is known to have changed: go on.
pub(super) fn hold(s: &Snapshot) -> Verdict {
    let cause = s.dcs.as_ref().err().map(ToString::to_string).unwrap_or_default();
    let why = match s.lock_ends().filter(|_| s.may_write()) {
        Some(ends) => format!("{cause}; our lease lasts {:?} more", s.now.until(ends)),
        None => cause,
    };
    let verdict = Verdict::new(Plan::stay(), why).again_in(RETRY);
    match next_round(s).filter(|_| s.config.failsafe_mode && s.is_primary()) {
        Some(at) => verdict.again_in(s.now.until(at).clamp(Duration::from_millis(50), RETRY)),
        None => verdict,
    }
}

#[cfg(test)]
mod tests {
    use crate::fixture::{cut_off, primary, secs, standby};
    use crate::plan::{Lease, Move};
    use crate::postgres::{DataDir, StopMode, Upstream};
    use crate::rules::decide;
    use crate::snapshot::NoView;

    #[test]
    fn stop_without_lease() {
        let restarted = primary().lease_lost().with(cut_off);
        assert_eq!(decide(&restarted).rule, "stop_without_lease");
        assert_eq!(decide(&restarted).plan.postgres, Move::Stop(StopMode::Immediate));
        assert_eq!(decide(&standby().lease_lost().with(cut_off)).rule, "hold");
    }

    #[test]
    fn only_silence_opens_failsafe_mode_and_only_to_who_may_still_write() {
        let ask = || primary().failsafe();
        let d = decide(&ask().with(cut_off));
        assert_eq!((d.rule, d.plan.lease, d.plan.postgres), ("ask_to_go_on", Lease::Keep, Move::Stay));
        assert_eq!(d.plan.confirm.unwrap().keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["b", "c"]);
        let refused = ask().with(|s| s.dcs = Err(NoView::Refused("permission denied".into())));
        assert_eq!(decide(&refused).rule, "hold", "F10");
        let off = ask().with(|s| (cut_off(s), s.config.failsafe_mode = false).1);
        assert_eq!(decide(&off).rule, "hold", "F2");
        let outside = ask().with(|s| (cut_off(s), drop(s.memory.topology.members.remove(&s.config.name))).1);
        assert_eq!(decide(&outside).rule, "hold", "the key must name me");
        assert_eq!(
            decide(&ask().lease_lost().with(cut_off)).rule,
            "stop_without_lease",
            "the lock is lost for certain"
        );
        assert_eq!(decide(&standby().failsafe().with(cut_off)).rule, "hold");
        let alone = ask().with(|s| (cut_off(s), s.memory.topology.members.retain(|name, _| *name == s.config.name)).1);
        assert_eq!(decide(&alone).plan.confirm.map(|whom| whom.len()), Some(0), "nobody else to ask");
    }

    #[test]
    fn every_member_must_have_agreed_and_the_oldest_promise_counts() {
        let late = || primary().failsafe().lease_ends_in(secs(1));
        let rule = |s| decide(&s).rule;
        assert_eq!(rule(late().agreed(&["b", "c"], secs(1)).with(cut_off)), "go_on_by_agreement");
        assert_eq!(rule(late().agreed(&["b"], secs(0)).with(cut_off)), "stop_before_lease_ends", "one is missing");
        assert_eq!(rule(late().agreed(&["b", "c"], secs(12)).with(cut_off)), "ask_to_go_on", "each cycle");
        let half = || late().agreed(&["b", "c"], secs(20)).agreed(&["b"], secs(0));
        assert_eq!(rule(half().with(cut_off)), "go_on_by_agreement", "c's promise of 20 s ago still binds");
        let over = late().agreed(&["b", "c"], secs(27)).agreed(&["b"], secs(0));
        assert_eq!(rule(over.with(cut_off)), "stop_before_lease_ends", "27 of 29.7 s are over, a stop takes 3");
        let grown = late().agreed(&["b", "c"], secs(1)).with(|s| {
            cut_off(s);
            s.memory.topology.members.insert("d".into(), String::new());
        });
        assert_eq!(rule(grown), "stop_before_lease_ends", "d may be in the key by now, and was not asked");
    }

    #[test]
    fn a_promise_outlives_the_lease_until_etcd_is_back() {
        let back = primary().failsafe().vacant().lease_lost().agreed(&["b", "c"], secs(5));
        let s = back.with(|s| s.memory.holds = None);
        assert_eq!((decide(&s).rule, decide(&s).plan.postgres), ("keep_leading", Move::Stay));
        let theirs = primary().failsafe().agreed(&["b", "c"], secs(0)).led_by("c").build();
        assert_eq!(decide(&theirs).rule, "demote_when_another_leads");
        assert_eq!(theirs.lock_ends(), None);
    }

    #[test]
    fn restart_read_only() {
        let stopped = primary().demoted().down().lease_ends_in(secs(0)).with(cut_off);
        assert_eq!(decide(&stopped).plan.postgres, Move::StartStandby(Upstream::Nobody));
        let rewound = primary().demoted().down().lease_ends_in(secs(0)).but(cut_off).with(|s| {
            let DataDir::Present(present) = &mut s.postgres.data_dir else { unreachable!("it has data") };
            present.backup_label = true;
        });
        assert_eq!(decide(&rewound).rule, "hold", "it would wait for its source's log for ever");
        let crashed = primary().down().lease_ends_in(secs(20)).with(cut_off);
        assert_eq!(decide(&crashed).rule, "hold", "a crashed server stays down until etcd is back");
    }

    #[test]
    fn hold_keeps_a_primary_and_its_claim_through_a_hiccup() {
        let d = decide(&primary().lease_ends_in(secs(20)).with(cut_off));
        assert_eq!((d.rule, d.plan.lease, d.plan.postgres), ("hold", Lease::Keep, Move::Stay));
        assert!(d.look_again <= secs(17), "and wakes in time to stop");
    }
}
