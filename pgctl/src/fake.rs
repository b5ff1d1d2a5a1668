//! The twin: PostgreSQL servers in memory, with logs, timelines, streaming, crashes and slow starts, in virtual time.
//!
//! One [`FakeNetwork`] holds all servers; a [`FakePostgres`] is the hand on one of them. Nothing ticks: every access first
//! lets happen what became due since the last one, in order and each at its own instant, and observers are called with the
//! clock held there. So a check sees every state that ever was, however late the world was looked at. Nothing is random.
//!
//! What the twin claims about PostgreSQL:
//!
//! - A log is a row of records; a standby follows an upstream exactly while its log is a prefix of the upstream's, across
//!   any number of timelines. One that is ahead of the switch point stays where it is and does not stream.
//! - A write is acknowledged when the standbys of `synchronous_standby_names` have it. A changed list counts at once,
//!   but for half a second the one before it is enough, too: WAL senders reload one by one.
//! - Replication takes its time: a record is at the standby `replication_delay` after it was at the upstream and the link
//!   was up. What was delivered before a crash or a cut stays, nothing else comes.
//! - A cut link, a frozen peer and a peer with a stuck disk look the same to a WAL receiver: it says `streaming` until
//!   `wal_timeout`. A dead peer on a live link is noticed at once.
//! - A fast stop of a primary writes a shutdown checkpoint and waits until each WAL sender's standby has it, or was silent
//!   for `wal_timeout`. The control file says "shut down" meanwhile.
//! - The control file of a standby moves at restart points and clean stops only; after a crash it is behind the log.
//! - Started without a signal file, a standby's directory becomes a primary on the *same* timeline.
//! - After a promotion the control file has the old timeline until [`crate::Postgres::checkpoint`].
//! - `pg_rewind` reads first and changes nothing; then the directory is half of each until it ends. From a source whose
//!   control file still has the old timeline it believes that nothing is to be done.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use regent_core::units::{Lsn, MemberName, SystemId, Timeline};
use tokio::sync::Notify;
use tokio::time::Instant;

#[cfg(test)]
mod laziness;
mod look;
mod node;
mod streams;
#[cfg(test)]
mod tests;
mod wal;
mod world;

pub use node::{FakePostgres, Rejected};
pub use wal::{CHECKPOINT_BYTES, END_OF_RECOVERY_BYTES, Kind, WRITE_BYTES};
use world::World;

/// Called at every change that matters to a safety check, with the node's name. The network may be asked anything meanwhile
/// and answers as of that instant; it must not be changed.
pub type Observer = Box<dyn Fn(&str, Transition)>;

/// What just became of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// It accepts connections.
    Started,
    /// It left recovery on a new timeline.
    Promoted,
    /// It was told to stop.
    Stopping,
    /// It ended as it was told.
    Stopped,
    /// It was killed.
    Crashed,
    /// It was frozen.
    Frozen,
    /// It goes on.
    Thawed,
    /// From now on a client's write is acknowledged.
    Writable,
    /// No more.
    NotWritable,
}

/// How long things take on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// One look at the server.
    pub observe: Duration,
    /// Start after a clean stop.
    pub start: Duration,
    /// Start after anything else, or from a fresh clone.
    pub recovery: Duration,
    /// Fast stop, up to the shutdown checkpoint.
    pub stop: Duration,
    /// Immediate stop; also a stop in the middle of a start.
    pub immediate_stop: Duration,
    /// From the signal to the first write on the new timeline.
    pub promote: Duration,
    /// A checkpoint or restart point.
    pub checkpoint: Duration,
    /// A clone.
    pub clone: Duration,
    /// `pg_rewind`; the first half of it only reads.
    pub rewind: Duration,
    /// initdb and first start.
    pub bootstrap: Duration,
    /// The user's `pre_promote`.
    pub pre_promote: Duration,
    /// From the upstream's log to this node's.
    pub replication_delay: Duration,
    /// `wal_receiver_timeout`, and `wal_sender_timeout` of senders to this node.
    pub wal_timeout: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Timings {
            observe: Duration::from_millis(1),
            start: Duration::from_millis(200),
            recovery: Duration::from_millis(700),
            stop: Duration::from_millis(100),
            immediate_stop: Duration::from_millis(20),
            promote: Duration::from_millis(100),
            checkpoint: Duration::from_millis(50),
            clone: Duration::from_secs(3),
            rewind: Duration::from_secs(1),
            bootstrap: Duration::from_secs(2),
            pre_promote: Duration::from_millis(500),
            replication_delay: Duration::from_millis(2),
            wal_timeout: Duration::from_secs(60),
        }
    }
}

/// A record of the history that checks compare with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Who wrote it.
    pub node: MemberName,
    /// The cluster.
    pub system_id: SystemId,
    /// The timeline.
    pub timeline: Timeline,
    /// Where it starts.
    pub start: Lsn,
    /// Where it ends.
    pub end: Lsn,
    /// What it says.
    pub kind: Kind,
    /// When it was written, since the network was made.
    pub at: Duration,
}

/// All servers and the links between them. Clones share one network.
#[derive(Clone)]
pub struct FakeNetwork {
    world: Rc<RefCell<World>>,
    observers: Rc<RefCell<Vec<Observer>>>,
    changed: Rc<Notify>,
    epoch: Instant,
}

impl Default for FakeNetwork {
    fn default() -> Self {
        FakeNetwork::new()
    }
}

impl FakeNetwork {
    /// An empty network; its time starts now.
    #[must_use]
    pub fn new() -> Self {
        FakeNetwork {
            world: Rc::default(),
            observers: Rc::default(),
            changed: Rc::new(Notify::new()),
            epoch: Instant::now(),
        }
    }

    /// A new machine with an empty data directory. Others reach its PostgreSQL by `conn_url`.
    #[must_use]
    pub fn add(&self, name: &str, conn_url: &str) -> FakePostgres {
        let index = self.with(|world| world.add(name.into(), conn_url.to_owned()));
        FakePostgres::new(self.clone(), index)
    }

    /// The machine of that name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<FakePostgres> {
        self.index(name).map(|index| FakePostgres::new(self.clone(), index))
    }

    /// Calls `observer` from now on.
    pub fn on_transition(&self, observer: Observer) {
        self.observers.borrow_mut().push(observer);
    }

    /// Ends a world: observers may hold the network that holds them.
    pub fn forget_observers(&self) {
        self.observers.borrow_mut().clear();
    }

    /// Lets everything happen at its instant even while nobody looks; for ever. Not needed for correctness, only for
    /// observers that compare with the time of something else.
    pub async fn drive(&self) {
        let never: Option<()> = self.wait(None, |_| None).await;
        debug_assert!(never.is_none());
    }

    /// The time since the network was made; within an observer, the instant that it was called for.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.with(|world| world.now)
    }

    /// Cuts replication and clones between two nodes.
    pub fn cut(&self, a: &str, b: &str) {
        self.set_cut(a, b, true);
    }

    /// Undoes [`FakeNetwork::cut`].
    pub fn heal(&self, a: &str, b: &str) {
        self.set_cut(a, b, false);
    }

    fn set_cut(&self, a: &str, b: &str, cut: bool) {
        if let (Some(a), Some(b)) = (self.index(a), self.index(b)) {
            self.with(|world| world.cut(a, b, cut));
        }
    }

    /// Who would acknowledge a write at this instant.
    #[must_use]
    pub fn writable_now(&self) -> Vec<String> {
        let names = |world: &mut World| {
            world.nodes.iter().filter(|node| node.can_write()).map(|node| node.name.0.clone()).collect()
        };
        self.with(names)
    }

    /// Every record ever written by anyone, in the order of time, lost ones included.
    #[must_use]
    pub fn history(&self) -> Vec<Written> {
        let written = |world: &mut World| {
            let node =
                |writer: usize| world.nodes.get(writer).map(|node| node.name.clone()).unwrap_or_else(|| "".into());
            let one = |record: &wal::Record| Written {
                node: node(record.writer),
                system_id: record.system_id,
                timeline: record.timeline,
                start: record.start,
                end: record.end,
                kind: record.kind,
                at: record.at,
            };
            world.records.iter().map(one).collect()
        };
        self.with(written)
    }

    /// Who wrote clients' records on which timeline (S2: one each).
    #[must_use]
    pub fn timeline_writers(&self) -> BTreeMap<(SystemId, Timeline), BTreeSet<String>> {
        let mut writers: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for Written { node, system_id, timeline, kind, .. } in self.history() {
            if matches!(kind, Kind::Write(_)) {
                writers.entry((system_id, timeline)).or_default().insert(node.0);
            }
        }
        writers
    }

    /// Timelines that name two histories, whoever wrote them and whatever (S2: none).
    #[must_use]
    pub fn split_timelines(&self) -> BTreeSet<(SystemId, Timeline)> {
        self.with(|world| world.split.clone())
    }

    /// Ids of the writes that were acknowledged because standbys had them (S3: on every later primary).
    #[must_use]
    pub fn acknowledged(&self) -> Vec<u64> {
        self.with(|world| world.acknowledged.clone())
    }

    /// What no agent may ask of PostgreSQL's tools, and one did: the invariant, and what happened.
    #[must_use]
    pub fn misuses(&self) -> Vec<(&'static str, String)> {
        self.with(|world| world.misuses.clone())
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.with(|world| world.nodes.iter().position(|node| node.name.as_str() == name))
    }

    /// Every access goes through here: what is due happens first, what follows from `change` happens after it.
    fn with<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        if self.world.borrow().dispatching {
            return change(&mut self.world.borrow_mut());
        }
        let now = self.epoch.elapsed();
        loop {
            let reached = self.world.borrow_mut().advance(now);
            self.dispatch();
            if reached {
                break;
            }
        }
        let answer = {
            let mut world = self.world.borrow_mut();
            let answer = change(&mut world);
            if world.changed {
                world.settle();
            }
            answer
        };
        self.dispatch();
        if std::mem::take(&mut self.world.borrow_mut().changed) {
            self.changed.notify_waiters();
        }
        answer
    }

    /// Calls the observers with the clock held.
    fn dispatch(&self) {
        loop {
            let Some((name, transition)) = self.world.borrow_mut().outbox.pop_front() else { return };
            self.world.borrow_mut().dispatching = true;
            for observer in self.observers.borrow().iter() {
                observer(name.as_str(), transition);
            }
            self.world.borrow_mut().dispatching = false;
        }
    }

    /// Waits until `check` finds something, at most until `until` (time since the network was made).
    async fn wait<T>(&self, until: Option<Duration>, mut check: impl FnMut(&mut World) -> Option<T>) -> Option<T> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let (found, now, next) = self.with(|world| (check(world), world.now, world.next_due()));
            if found.is_some() || until.is_some_and(|until| now >= until) {
                return found;
            }
            let wake = until.into_iter().chain(next).min().and_then(|at| self.epoch.checked_add(at));
            tokio::select! {
                biased;
                () = &mut changed => {}
                () = sleep_until(wake) => {}
            }
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
