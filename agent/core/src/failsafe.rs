//! Failsafe mode: without etcd a primary goes on only while every member that could be promoted has just agreed (S13,
//! ha-rules section 9).
//!
//! ```text
//!   primary                 sent s ──────── all agreed: may write until s + ttl·(1 − ρ) ────┤
//!   every other member             r ─────── agreed at r: stays out of the race until r + ttl ───┤
//! ```
//!
//! Only members named in the `failsafe` key may run for leader (R11), and only the holder of the leader key writes it. So
//! whoever could be promoted was asked, and as each of them counts from a later moment than the primary does, the primary has
//! stopped before the first of them is free. That holds whatever becomes of the lease.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cluster::FailsafeKey;
use crate::snapshot::{Seat, Snapshot};
use crate::units::{Instant, Lsn, MemberName, Revision};

/// What a primary without etcd says to the others: the body of `POST /failsafe` (F9).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// Who it is.
    pub name: MemberName,
    /// Its server.
    pub conn_url: String,
    /// Its REST API.
    pub api_url: String,
    /// Positions of slots, by name.
    #[serde(default)]
    pub slots: BTreeMap<String, Lsn>,
}

/// What this member agreed to: it takes no part in a race until `until` (F4, F5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreement {
    /// The end of the promise: `ttl` after it was given.
    pub until: Instant,
    /// To whom it was given.
    pub to: Notice,
}

/// The members that may be promoted, as the holder of the leader key knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// Revision of the `failsafe` key that was seen last.
    pub modified: Option<Revision>,
    /// What stands in it, and whatever was written since: a write without an answer may have been applied.
    pub members: BTreeMap<MemberName, String>,
    /// Members in the key that have no member key, since when.
    pub missing: BTreeMap<MemberName, Instant>,
}

impl Topology {
    /// Takes in what was read. Writes compare the revision, so that a late one cannot follow a revision that has passed.
    pub(crate) fn observe(&mut self, s: &Snapshot) {
        let Some(view) = s.view() else { return };
        let key = view.failsafe.as_ref();
        if key.map(|key| key.modified) != self.modified {
            self.members.clear();
        }
        self.modified = key.map(|key| key.modified);
        self.members.extend(key.into_iter().flat_map(|key| key.members.clone()));
        self.missing.retain(|name, _| !view.members.contains_key(name));
        for name in self.members.keys().filter(|name| !view.members.contains_key(*name)) {
            self.missing.entry(name.clone()).or_insert(s.now);
        }
    }
}

/// Clock-rate error that the deadline allows for: the local clock may run slow against another member's by this share.
const CLOCK_RATE_ERROR_PERCENT: u32 = 1;

/// What was promised to this primary, and when it asked last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promises {
    /// By member, this one included: until when it stays out of the race, by the own clock.
    pub until: BTreeMap<MemberName, Instant>,
    /// When the last round of asking was sent, and whether all agreed.
    pub last: Option<(Instant, bool)>,
}

impl Promises {
    /// Takes in a round that was sent at `sent`, by which `agreed` agreed.
    ///
    /// Counted from the *sending*: nobody who agreed can have begun to count earlier.
    pub fn answered(&mut self, sent: Instant, ttl: Duration, agreed: &BTreeMap<MemberName, bool>, own: &MemberName) {
        let end = sent + ttl * (100 - CLOCK_RATE_ERROR_PERCENT) / 100;
        for (name, _) in agreed.iter().filter(|(_, agreed)| **agreed) {
            self.until.insert(name.clone(), end);
        }
        self.until.insert(own.clone(), end);
        self.last = Some((sent, agreed.values().all(|agreed| *agreed)));
    }
}

impl Snapshot {
    /// Until when every member that could be promoted has promised not to be: the earliest promise counts. `None` when one
    /// of them has promised nothing, or another member leads.
    #[must_use]
    pub fn promised_until(&self) -> Option<Instant> {
        let open = match self.seat() {
            Seat::Unknown | Seat::Vacant | Seat::Mine => true,
            Seat::Theirs => false,
        };
        if open { self.memory.promised_until() } else { None }
    }

    /// This primary writes on the word of the others, and on nothing else.
    #[must_use]
    pub fn is_failsafe(&self) -> bool {
        matches!(self.seat(), Seat::Unknown | Seat::Vacant)
            && self.is_primary()
            && self.promised_until().is_some_and(|until| self.now < until)
    }

    /// This member may be promoted next, or writes already: it cannot agree to anybody else's going on.
    #[must_use]
    pub fn may_lead(&self) -> bool {
        self.may_write() || self.memory.bootstrapping || matches!(self.seat(), Seat::Mine | Seat::Vacant)
    }

    /// What `failsafe` should hold: all members with an address, and those whose member key has just gone, as after an outage
    /// of etcd: who is not in the key may not run for leader. `None` if it holds that already, or if this is not the moment.
    #[must_use]
    pub fn failsafe_to_write(&self) -> Option<FailsafeKey> {
        let view = self.view().filter(|_| self.config.failsafe_mode && self.seat() == Seat::Mine)?;
        // Who is added here has promised nothing: the lease alone must carry us.
        self.lease_ends().filter(|ends| self.now < ends.minus(self.config.stop_budget))?;
        let old = view.failsafe.as_ref().map(|key| &key.members);
        let gone = |name: &MemberName| {
            let since = self.memory.topology.missing.get(name);
            since.is_some_and(|since| self.now.since(*since) >= self.config.ttl)
        };
        let kept = old.into_iter().flatten().filter(|(name, _)| !view.members.contains_key(*name) && !gone(name));
        let mut members: BTreeMap<_, _> = kept.map(|(name, url)| (name.clone(), url.clone())).collect();
        let named = view.members.iter().filter_map(|(name, member)| Some((name.clone(), member.api_url.clone()?)));
        members.extend(named);
        let new = old != Some(&members) && members.contains_key(&self.config.name);
        new.then_some(FailsafeKey {
            members,
            modified: view.failsafe.as_ref().map(|key| key.modified).unwrap_or_default(),
        })
    }
}
