//! etcd did not answer. The lease decides how long that may go on; the guards stop in time.

use crate::memory::Role;
use crate::plan::{Lease, Move, Plan, Verdict};
use crate::postgres::{DataDir, StopMode, Upstream};
use crate::snapshot::Snapshot;

/// We accept writes and know of no lease that allows it: an agent that was restarted while etcd is away.
pub(super) fn stop_without_lease(s: &Snapshot) -> Option<Verdict> {
    (s.may_write() && s.lock_ends().is_none() && !s.memory.bootstrapping).then(|| {
        Verdict::new(
            Plan::of(Lease::LetRun, Move::Stop(StopMode::Immediate)),
            "PostgreSQL runs as a primary, etcd is silent, and we know of no lease that lets us",
        )
    })
}

/// We stopped it because of the lease; readers may have it back, without an upstream and without writes.
pub(super) fn restart_read_only(s: &Snapshot) -> Option<Verdict> {
    let here = matches!(&s.postgres.data_dir, DataDir::Present(present) if present.control.is_some());
    let stopped_by_us = !s.postgres.is_up() && s.memory.role == Role::Demoted && s.memory.met && !s.memory.recovering;
    (here && stopped_by_us && s.lock_ends().is_none_or(|ends| s.now >= ends.minus(s.config.stop_budget))).then(|| {
        Verdict::new(
            Plan::of(Lease::LetRun, Move::StartStandby(Upstream::Nobody)),
            "etcd is still silent: starting read-only until it is back",
        )
    })
}

/// Nothing is known to have changed: go on.
pub(super) fn hold(s: &Snapshot) -> Verdict {
    let cause = s.dcs.as_ref().err().cloned().unwrap_or_default();
    let why = match s.lock_ends().filter(|_| s.may_write()) {
        Some(ends) => format!("{cause}; our lease lasts {:?} more", s.now.until(ends)),
        None => cause,
    };
    Verdict::new(Plan::stay(), why)
}

#[cfg(test)]
mod tests {
    use crate::fixture::{cut_off, primary, secs, standby};
    use crate::plan::{Lease, Move};
    use crate::postgres::{StopMode, Upstream};
    use crate::rules::decide;

    #[test]
    fn stop_without_lease() {
        let restarted = primary().lease_lost().with(cut_off);
        assert_eq!(decide(&restarted).rule, "stop_without_lease");
        assert_eq!(decide(&restarted).plan.postgres, Move::Stop(StopMode::Immediate));
        assert_eq!(decide(&standby().lease_lost().with(cut_off)).rule, "hold");
    }

    #[test]
    fn restart_read_only() {
        let stopped = primary().demoted().down().lease_ends_in(secs(0)).with(cut_off);
        assert_eq!(decide(&stopped).plan.postgres, Move::StartStandby(Upstream::Nobody));
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
