//! What the twin's store holds, and how it moves in time.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use regent_core::units::{LeaseId, Revision};
use tokio::time::Instant;

use crate::keys::{self, RawKey};
use crate::txn::{Change, Compare, Txn};
use crate::{DcsError, Lease, Read, Written};

/// etcd grants no less than 1.5 election timeouts, in whole seconds (dcs.md DL3; etcd's default timeout is 1 s).
const MIN_TTL: Duration = Duration::from_secs(2);

/// What a new etcd leader adds to every lease that it restarts.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// One key that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The revision that it made; keys that changed together have the same.
    pub revision: Revision,
    /// When, counted from the making of the store.
    pub at: Duration,
    /// The key, relative to the scope.
    pub key: String,
    /// Its new value; `None`: deleted.
    pub value: Option<Vec<u8>>,
    /// The lease that it hangs on now.
    pub lease: Option<LeaseId>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) value: Vec<u8>,
    pub(super) modified: Revision,
    pub(super) lease: Option<LeaseId>,
}

#[derive(Debug)]
pub(super) struct LeaseState {
    pub(super) ttl: Duration,
    /// End of the TTL: no renewal counts from here on.
    ends: Instant,
    /// When its keys go.
    gone: Instant,
}

/// A request on its way: what it does where it arrives.
type Request = Box<dyn FnOnce(&mut State)>;

/// Where an answer will lie, and from when on it may be told. Stays empty when the request is lost.
pub(super) struct Slot<T>(Rc<RefCell<Option<Answer<T>>>>);

/// What a request came to, told not before the moment given.
pub(super) type Answer<T> = (Instant, Result<T, DcsError>);

impl<T> Slot<T> {
    pub(super) fn take(&self) -> Option<Answer<T>> {
        self.0.borrow_mut().take()
    }
}

pub(super) struct State {
    pub(super) revision: Revision,
    pub(super) keys: BTreeMap<String, Entry>,
    pub(super) leases: BTreeMap<LeaseId, LeaseState>,
    /// The last revision that changed a key which wakes agents.
    pub(super) woke: Revision,
    pub(super) log: Vec<Event>,
    pub(super) expiry_delay: Duration,
    pub(super) outage: bool,
    /// Requests that arrive in an outage wait for its end; otherwise they are lost.
    pub(super) patient: bool,
    held: Vec<Request>,
    /// Leases that ran out: when, and which.
    pub(super) expired: Vec<(Duration, LeaseId)>,
    /// By time of arrival, then by order of sending.
    on_their_way: BTreeMap<(Instant, u64), Request>,
    sent: u64,
    last_lease: LeaseId,
    made: Instant,
    /// The moment up to which all is settled; the time of the event at work.
    now: Instant,
}

/// What happens next by itself.
enum Next {
    Arrival(Instant, u64),
    LeaseEnds(Instant, LeaseId),
}

impl Next {
    fn at(&self) -> Instant {
        match self {
            Next::Arrival(at, _) | Next::LeaseEnds(at, _) => *at,
        }
    }
}

impl State {
    pub(super) fn new(now: Instant) -> State {
        State {
            revision: Revision(1),
            keys: BTreeMap::new(),
            leases: BTreeMap::new(),
            woke: Revision(1),
            log: Vec::new(),
            expiry_delay: Duration::ZERO,
            outage: false,
            patient: false,
            held: Vec::new(),
            expired: Vec::new(),
            on_their_way: BTreeMap::new(),
            sent: 0,
            last_lease: LeaseId(0),
            made: now,
            now,
        }
    }

    /// Lets everything happen that was due until `now`, in the order of its times. Tells whether anything did.
    pub(super) fn settle(&mut self, now: Instant) -> bool {
        let mut moved = false;
        while let Some(next) = self.next().filter(|next| next.at() <= now) {
            self.now = self.now.max(next.at());
            moved = true;
            match next {
                Next::Arrival(at, number) => match self.on_their_way.remove(&(at, number)) {
                    Some(request) if !self.outage => request(self),
                    Some(request) if self.patient => self.held.push(request),
                    Some(_) | None => {}
                },
                Next::LeaseEnds(at, lease) => {
                    self.expired.push((at.saturating_duration_since(self.made), lease));
                    self.end_lease(lease);
                }
            }
        }
        self.now = self.now.max(now);
        moved
    }

    /// With or without a quorum from now on.
    pub(super) fn set_outage(&mut self, outage: bool) {
        if self.outage && !outage {
            self.restart_leases();
            self.outage = false;
            for request in std::mem::take(&mut self.held) {
                request(self);
            }
        }
        self.outage = outage;
    }

    /// When something happens by itself next.
    pub(super) fn next_event(&self) -> Option<Instant> {
        self.next().map(|next| next.at())
    }

    fn next(&self) -> Option<Next> {
        let arrival = self.on_their_way.keys().next().map(|(at, number)| Next::Arrival(*at, *number));
        // Without a quorum etcd can end no lease: that takes a revision.
        let leases = self.leases.iter().filter(|_| !self.outage);
        let end = leases.min_by_key(|(id, lease)| (lease.gone, **id));
        let end = end.map(|(id, lease)| Next::LeaseEnds(lease.gone, *id));
        match (arrival, end) {
            (Some(arrival), Some(end)) => Some(if end.at() <= arrival.at() { end } else { arrival }),
            (one, other) => one.or(other),
        }
    }

    /// Puts a request on its way. It arrives whatever becomes of its sender, but not in an outage.
    pub(super) fn send<T: 'static>(
        &mut self,
        arrives: Instant,
        request: impl FnOnce(&mut State) -> Answer<T> + 'static,
    ) -> Slot<T> {
        let slot = Rc::new(RefCell::new(None));
        let answer = Rc::clone(&slot);
        self.sent = self.sent.saturating_add(1);
        let request = Box::new(move |state: &mut State| *answer.borrow_mut() = Some(request(state)));
        self.on_their_way.insert((arrives, self.sent), request);
        Slot(slot)
    }

    /// An answer that may be told at once.
    fn now<T>(&self, answer: Result<T, DcsError>) -> Answer<T> {
        (self.now, answer)
    }

    pub(super) fn read(&mut self) -> Answer<Read> {
        let raw = self.keys.iter().map(|(name, entry)| RawKey {
            name: name.as_bytes(),
            value: &entry.value,
            lease: entry.lease,
            modified: entry.modified,
        });
        self.now(Ok(keys::parse(self.revision, raw)))
    }

    pub(super) fn grant(&mut self, ttl: Duration) -> Answer<Lease> {
        let whole = Duration::from_secs(ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0)));
        let lease = Lease { id: LeaseId(self.last_lease.0.saturating_add(1)), ttl: whole.max(MIN_TTL) };
        self.last_lease = lease.id;
        self.start_lease(lease.id, lease.ttl, Duration::ZERO);
        self.now(Ok(lease))
    }

    pub(super) fn keep_alive(&mut self, id: LeaseId) -> Answer<Duration> {
        match self.leases.get(&id).map(|lease| (lease.ttl, lease.ends, lease.gone)) {
            Some((ttl, ends, _)) if self.now < ends => {
                self.start_lease(id, ttl, Duration::ZERO);
                self.now(Ok(ttl))
            }
            // etcd answers for a lease that has ended when it is gone.
            Some((_, _, gone)) => (gone, Err(DcsError::LeaseGone)),
            None => self.now(Err(DcsError::LeaseGone)),
        }
    }

    pub(super) fn revoke(&mut self, id: LeaseId) -> Answer<()> {
        self.end_lease(id);
        self.now(Ok(()))
    }

    fn start_lease(&mut self, id: LeaseId, ttl: Duration, extra: Duration) {
        let ends = self.now + ttl + extra;
        self.leases.insert(id, LeaseState { ttl, ends, gone: ends + self.expiry_delay });
    }

    pub(super) fn restart_leases(&mut self) {
        let all: Vec<(LeaseId, Duration)> = self.leases.iter().map(|(id, lease)| (*id, lease.ttl)).collect();
        for (id, ttl) in all {
            self.start_lease(id, ttl, ELECTION_TIMEOUT);
        }
    }

    /// Forgets the lease and deletes its keys, in one revision.
    pub(super) fn end_lease(&mut self, lease: LeaseId) {
        if self.leases.remove(&lease).is_none() {
            return;
        }
        let hanging = self.keys.iter().filter(|(_, entry)| entry.lease == Some(lease));
        let deletes: Vec<_> = hanging.map(|(key, _)| (key.clone(), None)).collect();
        self.change(deletes);
    }

    pub(super) fn write(&mut self, txn: &Txn) -> Answer<Written> {
        let written = self.carry_out(txn);
        self.now(written)
    }

    fn carry_out(&mut self, txn: &Txn) -> Result<Written, DcsError> {
        if !txn.compares.iter().all(|compare| self.holds(compare)) {
            return Ok(Written::Refused);
        }
        let leases = txn.changes.iter().filter_map(|change| match change {
            Change::Put { lease, .. } => *lease,
            Change::Delete(_) | Change::DeleteAll => None,
        });
        for lease in leases {
            if !self.leases.contains_key(&lease) {
                return Err(DcsError::LeaseGone);
            }
        }
        let changes = txn.changes.iter().flat_map(|change| match change {
            Change::Put { key, value, lease } => vec![(key.clone(), Some((value.clone().into_bytes(), *lease)))],
            Change::Delete(key) => vec![((*key).to_owned(), None)],
            Change::DeleteAll => self.keys.keys().map(|key| (key.clone(), None)).collect(),
        });
        self.change(changes.collect::<Vec<_>>());
        Ok(Written::Done(self.revision))
    }

    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::Absent(key) => !self.keys.contains_key(*key),
            Compare::Modified(key, revision) => self.keys.get(*key).is_some_and(|entry| entry.modified == *revision),
            Compare::Value(key, value) => self.keys.get(*key).is_some_and(|entry| entry.value == value.as_bytes()),
            Compare::Lease(key, lease) => self.keys.get(*key).is_some_and(|entry| entry.lease == Some(*lease)),
        }
    }

    /// Puts and deletes, all in one new revision; deletes of what is not there make none.
    pub(super) fn change(&mut self, changes: impl IntoIterator<Item = (String, Option<(Vec<u8>, Option<LeaseId>)>)>) {
        let revision = Revision(self.revision.0.saturating_add(1));
        let at = self.now.saturating_duration_since(self.made);
        for (key, put) in changes {
            match put {
                Some((value, lease)) => {
                    self.log.push(Event { revision, at, key: key.clone(), value: Some(value.clone()), lease });
                    let came = self.keys.insert(key.clone(), Entry { value, modified: revision, lease }).is_none();
                    if keys::wakes(&key, came) {
                        self.woke = revision;
                    }
                }
                None if self.keys.remove(&key).is_some() => {
                    if keys::wakes(&key, true) {
                        self.woke = revision;
                    }
                    self.log.push(Event { revision, at, key, value: None, lease: None });
                }
                None => continue,
            }
            self.revision = revision;
        }
    }
}
