//! What an operator asked of this member over REST: a restart of its server, or a new copy of its data.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cluster::Schedule;
use crate::snapshot::{Order, Seat, Snapshot};

/// One request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Restart PostgreSQL (ha-rules section 20).
    Restart(Restart),
    /// Give the data directory up and copy it anew (rest-api.md section 16).
    Reinitialize {
        /// From the leader, whoever is tagged `clonefrom`.
        from_leader: bool,
        /// What is under way is cancelled.
        force: bool,
    },
}

/// A restart, now or later, if what is asked of the member holds at that time (T1, T2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// When; `None`: now.
    pub schedule: Option<Schedule>,
    /// `pg_postmaster_start_time()` when it was scheduled: a restart that came before is as good.
    pub started_at: Option<String>,
    /// Only a member of this role (`primary` or `replica`).
    pub role: Option<String>,
    /// Only a server of an older version than this: as written, and as `server_version_num`.
    pub older_than: Option<(String, u32)>,
    /// Only with settings that wait for a restart.
    pub pending: bool,
    /// In place of `primary_start_timeout`.
    pub timeout: Option<Duration>,
}

impl Snapshot {
    /// The restart that was asked for, once its time has come.
    #[must_use]
    pub fn restart_due(&self) -> Option<&Restart> {
        let Some(Request::Restart(restart)) = &self.request else { return None };
        let due = match &restart.schedule {
            None => true,
            Some(schedule) => schedule.at.is_none_or(|at| at <= self.wall),
        };
        due.then_some(restart)
    }

    /// This standby is about to go down on purpose, so nobody should wait for it (D8, T4).
    #[must_use]
    pub fn is_to_go_down(&self) -> bool {
        let copied = matches!(self.request, Some(Request::Reinitialize { .. })) && self.seat() == Seat::Theirs;
        self.order == Order::Stop || self.restart_due().is_some() || copied || crate::slots::to_copy(self).is_some()
    }
}
