//! The in-memory twin of etcd, for simulation: one thread, tokio's clock (paused or not), no chance of its own.
//!
//! ```text
//!   MemoryDcs n1 ──trip──┐
//!   MemoryDcs n2 ──trip──┼─> queue of requests on their way ─> keys, leases, revision ─> log of every change
//!   MemoryDcs n3 ──trip──┘        (a request that was sent arrives, even if its sender gave up or died)
//! ```
//!
//! What happens by itself (a request arrives, a lease ends) is computed when somebody looks, in the order of its virtual
//! times; nobody can see the store in between. `tests/contract.rs` holds the twin against a real etcd.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use regent_core::cluster::PromiseKey;
use regent_core::units::{LeaseId, MemberName, Revision};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::keys::{self, FAILSAFE, LEADER, PROMISE, RawKey};
use crate::txn::Txn;
use crate::{Dcs, DcsError, Lease, Read, Write, Written};

mod store;

pub use store::Event;
use store::{Answer, State};

/// A client that is cut off notices that its watch is dead after this long, like the real one's watchdog.
const WATCHDOG: Duration = Duration::from_secs(1);

/// The store that all clients of one cluster share. Cheap to clone; clones are the same store.
#[derive(Clone)]
pub struct MemoryStore(Rc<Shared>);

struct Shared {
    state: RefCell<State>,
    /// Woken by every change, and by everything that moves the next one.
    moved: Notify,
}

impl Default for MemoryStore {
    fn default() -> Self {
        MemoryStore::new()
    }
}

impl MemoryStore {
    /// An empty store at revision 1, as a new etcd has it.
    #[must_use]
    pub fn new() -> MemoryStore {
        MemoryStore(Rc::new(Shared { state: RefCell::new(State::new(Instant::now())), moved: Notify::new() }))
    }

    /// A new client, with faults of its own. A restarted agent may take a new one under the same name.
    #[must_use]
    pub fn client(&self, name: impl Into<MemberName>) -> MemoryDcs {
        let link = Link { name: name.into(), cut: false, trips: Trips::default(), watch_delay: Duration::ZERO };
        MemoryDcs(Rc::new(Client { store: self.clone(), link: RefCell::new(link), cut: Notify::new() }))
    }

    /// The leader key's holder and lease, now.
    #[must_use]
    pub fn leader(&self) -> Option<(MemberName, LeaseId)> {
        self.look(|state| {
            let entry = state.keys.get(LEADER)?;
            Some((MemberName(String::from_utf8_lossy(&entry.value).into_owned()), entry.lease?))
        })
    }

    /// Members in the `failsafe` key, now.
    #[must_use]
    pub fn failsafe(&self) -> Vec<MemberName> {
        self.look(|state| {
            let entry = state.keys.get(FAILSAFE)?;
            let key = RawKey { name: FAILSAFE.as_bytes(), value: &entry.value, lease: None, modified: entry.modified };
            Some(keys::parse(entry.modified, [key]).view.failsafe?.members.into_keys().collect())
        })
        .unwrap_or_default()
    }

    /// The promise, now.
    #[must_use]
    pub fn promise(&self) -> Option<PromiseKey> {
        self.look(|state| {
            let entry = state.keys.get(PROMISE)?;
            let key = RawKey { name: PROMISE.as_bytes(), value: &entry.value, lease: None, modified: entry.modified };
            keys::parse(state.revision, [key]).view.promise
        })
    }

    /// The value of a key (name relative to the scope), now.
    #[must_use]
    pub fn raw(&self, key: &str) -> Option<Vec<u8>> {
        self.look(|state| state.keys.get(key).map(|entry| entry.value.clone()))
    }

    /// Writes a key without a lease and without asking anybody, as an operator would.
    pub fn put_raw(&self, key: &str, value: impl Into<Vec<u8>>) {
        self.act(|state| state.change([(key.to_owned(), Some((value.into(), None)))]));
    }

    /// Deletes a key without asking anybody.
    pub fn delete_raw(&self, key: &str) {
        self.act(|state| state.change([(key.to_owned(), None)]));
    }

    /// Ends a lease without asking anybody, as an operator would with etcdctl.
    pub fn revoke(&self, lease: LeaseId) {
        self.act(|state| state.end_lease(lease));
    }

    /// The store's revision, now.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.look(|state| state.revision)
    }

    /// Leases that are alive, now, with their TTL.
    #[must_use]
    pub fn leases(&self) -> Vec<Lease> {
        self.look(|state| state.leases.iter().map(|(id, lease)| Lease { id: *id, ttl: lease.ttl }).collect())
    }

    /// Everything that changed after `since`, oldest first.
    #[must_use]
    pub fn log_since(&self, since: Revision) -> Vec<Event> {
        self.look(|state| {
            let first = state.log.partition_point(|event| event.revision <= since);
            state.log.get(first..).unwrap_or_default().to_vec()
        })
    }

    /// How long after the end of its TTL a lease is really gone; etcd takes 0 to 0.5 s. For leases granted or renewed
    /// from now on. Starts as 0.
    pub fn set_expiry_delay(&self, delay: Duration) {
        self.act(|state| state.expiry_delay = delay);
    }

    /// Without a quorum nothing is answered and no lease ends; when it is back, every lease starts anew in full, and a
    /// little more (see [`change_leader`](Self::change_leader)). Requests that arrive meanwhile are lost.
    pub fn set_outage(&self, outage: bool) {
        self.act(|state| state.set_outage(outage));
    }

    /// From now on requests that arrive in an outage are carried out when it ends, whoever still waits for them: an etcd
    /// that had taken them down before it lost its leader.
    pub fn hold_requests(&self) {
        self.act(|state| state.patient = true);
    }

    /// Leases that ran out so far: when, counted from the making of the store, and which. Not those that were revoked.
    #[must_use]
    pub fn expired(&self) -> Vec<(Duration, LeaseId)> {
        self.look(|state| state.expired.clone())
    }

    /// A new etcd leader restarts every lease: full TTL and one election timeout (1 s) from now (dcs.md section 6).
    pub fn change_leader(&self) {
        self.act(State::restart_leases);
    }

    /// Lets `f` look at the store as of now.
    fn look<R>(&self, f: impl FnOnce(&State) -> R) -> R {
        let mut state = self.0.state.borrow_mut();
        if state.settle(Instant::now()) {
            self.0.moved.notify_waiters();
        }
        f(&state)
    }

    /// Lets `f` change the store as of now, and wakes whoever waits for changes.
    fn act<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.0.state.borrow_mut();
        state.settle(Instant::now());
        self.0.moved.notify_waiters();
        f(&mut state)
    }
}

/// One agent's connection to a [`MemoryStore`]. Clones share it, and its faults.
#[derive(Clone)]
pub struct MemoryDcs(Rc<Client>);

struct Client {
    store: MemoryStore,
    link: RefCell<Link>,
    /// Woken when the link is cut.
    cut: Notify,
}

struct Link {
    name: MemberName,
    cut: bool,
    trips: Trips,
    watch_delay: Duration,
}

/// What a call is about, for [`MemoryDcs::set_trips`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// [`Dcs::read`].
    Read,
    /// [`Dcs::grant`].
    Grant,
    /// [`Dcs::keep_alive`].
    KeepAlive,
    /// [`Dcs::revoke`].
    Revoke,
    /// [`Dcs::write`].
    Write,
}

/// What befalls one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trip {
    /// Time until the request takes effect. May be longer than the caller's patience: it takes effect all the same.
    pub request: Duration,
    /// Time from then until the caller hears of it.
    pub answer: Duration,
    /// The request takes effect, and nobody ever says so.
    pub answer_lost: bool,
    /// The connection breaks when the request has arrived: it takes effect, and the caller is told at once that nobody knows.
    pub reset: bool,
}

impl Default for Trip {
    /// A quick network: one millisecond each way.
    fn default() -> Self {
        Trip { request: Duration::from_millis(1), answer: Duration::from_millis(1), answer_lost: false, reset: false }
    }
}

/// Draws the trip of every call.
struct Trips(Box<dyn FnMut(Call) -> Trip>);

impl Default for Trips {
    fn default() -> Self {
        Trips(Box::new(|_| Trip::default()))
    }
}

impl MemoryDcs {
    /// Whose client this is.
    #[must_use]
    pub fn name(&self) -> MemberName {
        self.0.link.borrow().name.clone()
    }

    /// The store behind it.
    #[must_use]
    pub fn store(&self) -> MemoryStore {
        self.0.store.clone()
    }

    /// Cut: requests sent now never arrive, answers due now are lost; what is already on its way arrives.
    pub fn set_cut(&self, cut: bool) {
        self.0.link.borrow_mut().cut = cut;
        if cut {
            self.0.cut.notify_waiters();
        }
    }

    /// The same trip for every call from now on.
    pub fn set_trip(&self, trip: Trip) {
        self.set_trips(move |_| trip);
    }

    /// A trip of its own for every call from now on. The closure must not use this client.
    pub fn set_trips(&self, trips: impl FnMut(Call) -> Trip + 'static) {
        self.0.link.borrow_mut().trips = Trips(Box::new(trips));
    }

    /// How much later than it happened [`Dcs::changed`] tells of a change.
    pub fn set_watch_delay(&self, delay: Duration) {
        self.0.link.borrow_mut().watch_delay = delay;
    }

    fn is_cut(&self) -> bool {
        self.0.link.borrow().cut
    }

    /// Sends a request and waits for its answer, at most `within`.
    async fn call<T: 'static>(
        &self,
        call: Call,
        within: Duration,
        request: impl FnOnce(&mut State) -> Answer<T> + 'static,
    ) -> Result<T, DcsError> {
        let answer = timeout(within, self.exchange(call, request)).await;
        answer.unwrap_or_else(|_| Err(DcsError::Unreachable(format!("no answer within {within:?}"))))
    }

    /// The whole exchange; never ends when the request or its answer is lost.
    async fn exchange<T: 'static>(
        &self,
        call: Call,
        request: impl FnOnce(&mut State) -> Answer<T> + 'static,
    ) -> Result<T, DcsError> {
        let store = &self.0.store;
        let trip = (self.0.link.borrow_mut().trips.0)(call);
        if self.is_cut() {
            return std::future::pending().await;
        }
        let arrives = Instant::now() + trip.request;
        let slot = store.act(|state| state.send(arrives, request));
        sleep_until(arrives).await;
        store.look(|_| ());
        if trip.reset {
            return Err(DcsError::Unreachable("the connection was reset".to_owned()));
        }
        let Some((ready, answer)) = slot.take() else {
            return std::future::pending().await;
        };
        sleep_until(ready + trip.answer).await;
        if trip.answer_lost || self.is_cut() {
            return std::future::pending().await;
        }
        answer
    }
}

impl Dcs for MemoryDcs {
    async fn read(&self, within: Duration) -> Result<Read, DcsError> {
        self.call(Call::Read, within, State::read).await
    }

    async fn grant(&self, ttl: Duration, within: Duration) -> Result<Lease, DcsError> {
        self.call(Call::Grant, within, move |state| state.grant(ttl)).await
    }

    async fn keep_alive(&self, lease: LeaseId, within: Duration) -> Result<Duration, DcsError> {
        self.call(Call::KeepAlive, within, move |state| state.keep_alive(lease)).await
    }

    async fn revoke(&self, lease: LeaseId, within: Duration) -> Result<(), DcsError> {
        self.call(Call::Revoke, within, move |state| state.revoke(lease)).await
    }

    async fn write(&self, write: Write, within: Duration) -> Result<Written, DcsError> {
        let txn = Txn::from(&write);
        self.call(Call::Write, within, move |state| state.write(&txn)).await
    }

    async fn changed(&self, since: Revision) {
        loop {
            let cut = self.0.cut.notified();
            let moved = self.0.store.0.moved.notified();
            let (woke, next, outage) = self.0.store.look(|state| (state.woke, state.next_event(), state.outage));
            if self.is_cut() || outage {
                // Like a watch that fell silent: it may have missed anything.
                return sleep(WATCHDOG).await;
            }
            if woke > since {
                let delay = self.0.link.borrow().watch_delay;
                return sleep(delay).await;
            }
            let next = async {
                match next {
                    Some(next) => sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = moved => {}
                () = cut => {}
                () = next => {}
            }
        }
    }
}
