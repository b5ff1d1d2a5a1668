//! Maintenance mode: the operator works, the agent keeps the books.

use crate::plan::{Lease, Move, Plan, Verdict};
use crate::snapshot::{Seat, Snapshot};

/// A restarted agent takes its own key over, in pause as ever.
pub(super) fn adopt_leader_key_in_pause(s: &Snapshot) -> Option<Verdict> {
    super::leader::wait_for_own_lease(s)
        .or_else(|| super::leader::adopt_leader_key(s))
        .filter(|_| s.seat() == Seat::Mine)
}

/// The key says "a primary is here", and none is.
pub(super) fn release_key_without_primary(s: &Snapshot) -> Option<Verdict> {
    let none = s.seat() == Seat::Mine && (!s.postgres.is_up() || s.standby().is_some());
    none.then(|| {
        Verdict::new(Plan::of(Lease::Release, Move::Stay), "paused, and PostgreSQL is not a running primary here")
    })
}

/// A running primary of this cluster takes a free key; the first one wins.
pub(super) fn take_key_as_primary(s: &Snapshot) -> Option<Verdict> {
    let view = s.view().filter(|_| s.seat() == Seat::Vacant && s.is_primary() && s.lease.id.is_some())?;
    let ours = view.initialize.system_id().is_none_or(|cluster| s.local_system_id() == Some(cluster));
    ours.then(|| super::election::take_as_primary(s, "paused, and a primary of this cluster runs here")).flatten()
}

/// The holder goes on keeping status, history and identity, and whom its server waits for: commits must not hang on a standby
/// that an operator stopped.
pub(super) fn keep_records_in_pause(s: &Snapshot) -> Option<Verdict> {
    (s.seat() == Seat::Mine && s.is_primary()).then(|| {
        super::leader::repair_identity(s)
            .or_else(|| super::leader::restore_config(s))
            .or_else(|| super::synchronous::publish_sync(s))
            .or_else(|| super::synchronous::wait_for_standbys(s))
            .unwrap_or_else(|| super::leader::lead(s))
    })
}

/// Everything else is the operator's.
pub(super) fn hands_off(s: &Snapshot) -> Verdict {
    let why = match s.seat() {
        Seat::Theirs if s.is_primary() => "paused; two primaries run: this one does not hold the leader key",
        Seat::Mine | Seat::Theirs | Seat::Vacant | Seat::Unknown => "paused",
    };
    Verdict::new(Plan::stay(), why)
}

#[cfg(test)]
mod tests {
    use crate::fixture::{cut_off, primary, standby};
    use crate::plan::{Lease, Move};
    use crate::rules::decide;

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
