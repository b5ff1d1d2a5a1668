//! What the guardian has to know: whether the server of this member may write, and under which lease.
//!
//! The guardian stops the server before the lease's deadline, and kills it there, unless the deadline moves. It is armed **before** a server may
//! write and disarmed only where it can write no more (ha-rules 22.3 I3, D1). In every doubt what stands is kept.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cluster::Initialize;
use crate::memory::Role;
use crate::postgres::{DataDir, Job, Process};
use crate::snapshot::{Seat, Snapshot};
use crate::units::{Instant, LeaseId};

/// The loop's word to the guardian.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fence {
    /// Nothing is known that would change anything.
    #[default]
    Keep,
    /// The server writes, or may soon: kill it when the lease's deadline comes.
    Guard {
        /// The postmaster; `None`: the one that is about to be started.
        pid: Option<u32>,
        /// The lease that the leader key is known to hang on. Only its deadline counts; while it is another than the present
        /// one, or unknown, an older deadline stays in force (ha-rules 22.2, "which s counts").
        lease: Option<LeaseId>,
        /// All other members let it write until then, whatever becomes of the lease (failsafe mode).
        promised: Option<Instant>,
        /// So long before the deadline it is to be stopped fast, so that standbys within reach get what was acknowledged. An
        /// agent that lives stops it a whole stop budget before the deadline: three quarters of it leave that the first word,
        /// and leave the stop as much time as the agent gives it before SIGKILL.
        early: Duration,
    },
    /// The server is down, the guardian may see for itself.
    Down,
    /// The server runs and does not write by itself, or an operator has paused all of this (V5).
    Off,
}

impl Snapshot {
    /// What the guardian must do in the state that was seen, before anything of the next plan is carried out.
    #[must_use]
    pub fn fence(&self) -> Fence {
        if self.memory.bootstrapping {
            return self.bootstrap_fence();
        }
        if self.config.pause {
            return Fence::Off;
        }
        let seat = self.seat();
        let lease = match seat {
            Seat::Mine => self.view().and_then(|view| view.leader.as_ref()).and_then(|key| key.lease),
            Seat::Unknown => self.memory.holds,
            Seat::Theirs | Seat::Vacant => None,
        };
        match self.postgres.process {
            Process::Down => {
                let starts = self.job.as_ref().is_some_and(|job| {
                    matches!(job.job, Job::Start { as_primary: true } | Job::Restart { as_primary: true })
                });
                // A primary that crashed under its lock is started in place: armed before, as it has no pid yet.
                let crashed = lease.is_some() && self.memory.role == Role::Primary && self.job.is_none();
                if starts || crashed { self.armed(None, lease, None) } else { Fence::Down }
            }
            Process::Up { pid } => {
                let writes = self.may_write() || self.memory.role == Role::Promoted;
                if writes || seat == Seat::Mine && self.standby().is_some() && !self.leads_standbys() {
                    return self.armed(Some(pid), lease, self.promised_until());
                }
                let signal = matches!(&self.postgres.data_dir, DataDir::Present(present) if present.standby_signal);
                let starting_standby = signal && self.memory.role == Role::Replica;
                let elsewhere = matches!(seat, Seat::Theirs | Seat::Vacant) || self.leads_standbys();
                if elsewhere && (self.standby().is_some() || starting_standby) { Fence::Off } else { Fence::Keep }
            }
        }
    }

    fn armed(&self, pid: Option<u32>, lease: Option<LeaseId>, promised: Option<Instant>) -> Fence {
        Fence::Guard { pid, lease, promised, early: self.config.stop_budget * 3 / 4 }
    }

    /// The right to make a cluster hangs on the lease as well (DL11): who freezes in the middle of it is killed, too.
    fn bootstrap_fence(&self) -> Fence {
        let lease = self.view().and_then(|view| match view.initialize {
            Initialize::InProgress { lease, .. } => lease,
            Initialize::Known(_) => self.lease.id,
            Initialize::Absent | Initialize::Garbage { .. } => None,
        });
        match self.postgres.process {
            Process::Up { pid } => self.armed(Some(pid), lease, None),
            // The next thing to happen is its first start.
            Process::Down => self.armed(None, lease, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{cut_off, primary, standby};
    use crate::postgres::StopMode;

    fn guard(pid: Option<u32>, lease: Option<i64>) -> Fence {
        Fence::Guard { pid, lease: lease.map(LeaseId), promised: None, early: Duration::from_millis(2_250) }
    }

    #[test]
    fn it_guards_whoever_may_write_under_the_lease_of_the_key_and_no_other() {
        for (seen, fence) in [
            (primary().build(), guard(Some(42), Some(1))),
            (primary().with(cut_off), guard(Some(42), Some(1))),
            (primary().key_on_lease(77).build(), guard(Some(42), Some(77))),
            (primary().vacant().build(), guard(Some(42), None)),
            (primary().led_by("b").build(), guard(Some(42), None)),
            (standby().holding_the_key().build(), guard(Some(42), Some(1))),
            (standby().job(Job::Promote).build(), guard(Some(42), None)),
            (primary().job(Job::Stop(StopMode::Fast)).build(), guard(Some(42), Some(1))),
            (primary().down().build(), guard(None, Some(1))),
            (primary().down().job(Job::Restart { as_primary: true }).build(), guard(None, Some(1))),
            (primary().vacant().bootstrapping().build(), guard(Some(42), Some(1))),
            (standby().vacant().empty().bootstrapping().job(Job::Bootstrap).build(), guard(None, Some(1))),
        ] {
            assert_eq!(seen.fence(), fence, "{seen:#?}");
        }
    }

    #[test]
    fn it_is_disarmed_only_where_nothing_can_be_written() {
        for (seen, fence) in [
            (standby().build(), Fence::Off),
            (primary().paused().build(), Fence::Off),
            (standby().down().build(), Fence::Down),
            (primary().down().with(|s| s.memory.role = Role::Demoted), Fence::Down),
            (standby().with(cut_off), Fence::Keep),
        ] {
            assert_eq!(seen.fence(), fence, "{seen:#?}");
        }
    }
}
