//! Where the agents of a world can be made wrong, below their judgement: in the clock that they read, and in what their
//! calls to etcd are taken to mean. Real agents have [`Make::default`].

use std::time::Duration;

use regent::agent::Judge;
use regent::clock::Clock;
use regent_core::units::{LeaseId, Revision};
use regent_dcs::memory::MemoryDcs;
use regent_dcs::{Dcs, DcsError, Lease, Read, Write, Written};

use super::clock::SimClock;

/// How agents and guardians are made.
#[derive(Clone, Copy, Default)]
pub struct Make {
    /// What judges.
    pub judge: Judge,
    /// What deadlines are read off.
    pub time: Time,
    /// How the lease task reads the answers to its renewals.
    pub renewals: Renewals,
}

/// What deadlines are read off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Time {
    /// Boot time, suspend included: what is right.
    #[default]
    Boot,
    /// The wall clock, that people set.
    Wall,
    /// A clock that stands still with the machine.
    Awake,
    /// A clock that is slower than allowed for, by so many parts per million more.
    Slow(i32),
}

/// What an answer to a renewal is taken to mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Renewals {
    /// What it says; the deadline counts from the sending.
    #[default]
    Sound,
    /// The deadline counts from the arrival of the answer.
    FromTheAnswer,
    /// No answer: the lease is held as before, and anew.
    UnknownIsHeld,
    /// No answer: the lease is lost.
    UnknownIsLost,
}

/// The lease task's way to etcd, with what it makes of the answers.
#[derive(Clone)]
pub(super) struct Renewer {
    pub(super) dcs: MemoryDcs,
    pub(super) clock: SimClock,
    pub(super) renewals: Renewals,
}

impl Dcs for Renewer {
    async fn read(&self, within: Duration) -> Result<Read, DcsError> {
        self.dcs.read(within).await
    }

    async fn grant(&self, ttl: Duration, within: Duration) -> Result<Lease, DcsError> {
        self.dcs.grant(ttl, within).await
    }

    async fn keep_alive(&self, lease: LeaseId, within: Duration) -> Result<Duration, DcsError> {
        let sent = self.clock.now();
        let answer = self.dcs.keep_alive(lease, within).await;
        let silent = matches!(answer, Err(DcsError::Unreachable(_)));
        match self.renewals {
            Renewals::Sound => answer,
            // The task adds the TTL to the time of the sending.
            Renewals::FromTheAnswer => answer.map(|ttl| ttl + self.clock.now().since(sent)),
            Renewals::UnknownIsHeld if silent => {
                let held = self.dcs.store().leases().into_iter().find(|held| held.id == lease);
                Ok(held.map_or(within * 2, |held| held.ttl))
            }
            Renewals::UnknownIsLost if silent => Err(DcsError::LeaseGone),
            Renewals::UnknownIsHeld | Renewals::UnknownIsLost => answer,
        }
    }

    async fn revoke(&self, lease: LeaseId, within: Duration) -> Result<(), DcsError> {
        self.dcs.revoke(lease, within).await
    }

    async fn write(&self, write: Write, within: Duration) -> Result<Written, DcsError> {
        self.dcs.write(write, within).await
    }

    async fn changed(&self, since: Revision) {
        self.dcs.changed(since).await;
    }
}
