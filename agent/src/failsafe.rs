//! What this member agreed to: the one thing that the REST API and the loop decide between them.
//!
//! A promise to stay out of the race must be given at once, also by an agent that waits for etcd, and must never cross a race
//! that has begun. So both sides meet in one place: either the promise was there when the loop looked, and it does not race; or
//! the loop looked first, and whoever asks afterwards is refused until its next look.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use regent_core::failsafe::{Agreement, Notice};
use regent_core::snapshot::Snapshot;
use regent_core::units::Instant;

/// Where a primary without etcd knocks. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Door(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    agreement: Option<Agreement>,
    /// This member may be promoted next, or writes already.
    closed: bool,
    /// Nothing was looked at yet: what an earlier agent has begun is not known.
    looked: bool,
}

impl Door {
    /// Agrees that the sender goes on, for `ttl` from now, or does not (F4).
    #[must_use]
    pub fn agrees(&self, to: Notice, now: Instant, ttl: Duration) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let open = state.looked && !state.closed;
        if open {
            state.agreement = Some(Agreement { until: now + ttl, to });
        }
        open
    }

    /// The loop's look, before each decision: what is agreed to. Closes the door on others when nothing is and this member may
    /// lead (F7: a primary has agreed to nothing).
    pub fn look(&self, seen: &Snapshot) -> Option<Agreement> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let valid = |agreement: &Agreement| seen.now < agreement.until && !seen.may_write();
        state.agreement = state.agreement.take().filter(valid);
        state.closed = state.agreement.is_none() && seen.may_lead();
        state.looked = true;
        state.agreement.clone()
    }

    /// What is agreed to at this moment.
    #[must_use]
    pub fn agreement(&self, now: Instant) -> Option<Agreement> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.agreement.clone().filter(|agreement| now < agreement.until)
    }
}

#[cfg(test)]
mod tests {
    use regent_core::fixture::{cut_off, primary, secs, standby};

    use super::*;

    fn notice() -> Notice {
        Notice { name: "b".into(), conn_url: String::new(), api_url: String::new(), slots: Default::default() }
    }

    #[test]
    fn an_agreement_and_a_race_exclude_each_other() {
        let (ttl, race) = (secs(30), standby().vacant().build());
        let follows = standby().with(cut_off);
        let door = Door::default();
        assert!(!door.agrees(notice(), race.now, ttl), "not before the first look");
        assert_eq!(door.look(&race), None);
        assert!(!door.agrees(notice(), race.now, ttl), "a race may have begun");
        assert_eq!(door.look(&follows), None);
        assert!(door.agrees(notice(), race.now, ttl));
        let agreed = door.look(&race).expect("it stands");
        assert_eq!((agreed.until, agreed.to.name.as_str()), (race.now + ttl, "b"));
        assert!(door.agrees(notice(), race.now + secs(1), ttl), "and may be renewed");
        let later = standby().vacant().with(|s| s.now = race.now + ttl + secs(1));
        assert_eq!(door.look(&later), None, "until it ends");
        assert!(!door.agrees(notice(), later.now, ttl));
    }

    #[test]
    fn a_primary_agrees_to_nothing() {
        let (door, follows) = (Door::default(), standby().with(cut_off));
        assert_eq!(door.look(&follows), None);
        assert!(door.agrees(notice(), follows.now, secs(30)));
        assert_eq!(door.look(&primary().with(cut_off)), None);
        assert_eq!(door.agreement(follows.now), None, "F7");
        assert!(!door.agrees(notice(), follows.now, secs(30)));
    }
}
