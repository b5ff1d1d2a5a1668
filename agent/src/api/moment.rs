//! The Status as it is true at this instant: what time has ended is no more.

use std::time::Duration;

use regent_core::cluster::{ClusterView, FailsafeKey};
use regent_core::config::SyncMode;
use regent_core::failsafe::Agreement;
use regent_core::postgres::SqlFacts;
use regent_core::sync::lists;
use regent_core::units::{Instant, Lsn, MemberName};

use crate::status::{Role, State, Status};

/// One Status seen at one instant. Every answer is made of exactly one, so its parts agree.
pub(super) struct Moment<'a> {
    pub(super) status: &'a Status,
    pub(super) now: Instant,
    /// The loop is not known to be stuck. What a stuck loop last saw of PostgreSQL says nothing of PostgreSQL now.
    fresh: bool,
    /// What this member agreed to.
    agreement: Option<Agreement>,
}

impl<'a> Moment<'a> {
    pub(super) fn new(status: &'a Status, agreement: Option<Agreement>, now: Instant) -> Moment<'a> {
        let fresh = now < status.next_turn_due + status.ttl;
        Moment { status, now, fresh, agreement }
    }

    /// PostgreSQL's answers, if "postgres answers" (rest-api.md section 4).
    pub(super) fn sql(&self) -> Option<&'a SqlFacts> {
        let may_answer = match self.status.state {
            State::Running | State::Restarting | State::Starting => self.fresh,
            State::InitializingNewCluster
            | State::InitdbFailed
            | State::CreatingReplica
            | State::StartFailed
            | State::Stopping
            | State::Stopped
            | State::StopFailed
            | State::Crashed => false,
        };
        self.status.sql.as_ref().filter(|_| may_answer)
    }

    /// The state's word and its number: `unknown` when a server that should run does not answer.
    pub(super) fn state(&self) -> (&'static str, i32) {
        if self.status.state == State::Running && self.sql().is_none() {
            return ("unknown", -1);
        }
        self.status.state.word()
    }

    /// The server runs and answers.
    pub(super) fn is_running(&self) -> bool {
        self.status.state == State::Running && self.sql().is_some()
    }

    /// The role's word: by the server's answer, else by what the agent has in mind (rest-api.md 4.2).
    pub(super) fn role(&self) -> &'static str {
        let standby =
            if self.status.standby_cluster && self.holds_lock() { Role::StandbyLeader } else { Role::Replica };
        let by_sql = self.sql().map(|sql| if sql.in_recovery { standby } else { Role::Primary });
        by_sql.unwrap_or(self.status.role).word()
    }

    /// The view, unless the last read failed or the loop has not read for too long.
    pub(super) fn view(&self) -> Option<&'a ClusterView> {
        self.status.view.as_ref().filter(|_| self.fresh)
    }

    /// There is no view, or nobody holds the leader key in it.
    pub(super) fn is_unlocked(&self) -> bool {
        self.view().is_none_or(|view| view.leader.is_none())
    }

    /// Failsafe mode is active: this primary runs on the word of all members, or this member gave its word.
    pub(super) fn is_failsafe(&self) -> bool {
        self.agreement.is_some() || self.status.failsafe_until.is_some_and(|until| self.now < until)
    }

    /// The `failsafe` key as last seen, if there is one that can be read.
    pub(super) fn failsafe(&self) -> Option<&'a FailsafeKey> {
        let key = self.status.last_view.as_ref()?.failsafe.as_ref();
        key.filter(|key| !key.members.is_empty())
    }

    /// The leader key is ours, by our own clock.
    pub(super) fn holds_lock(&self) -> bool {
        self.status.lock_until.is_some_and(|until| self.now < until)
    }

    /// Time until the leader key is ours no longer.
    pub(super) fn lease_left(&self) -> Duration {
        self.status.lock_until.map_or(Duration::ZERO, |until| self.now.until(until))
    }

    /// Time since the Status was made.
    pub(super) fn age(&self) -> Duration {
        self.now.since(self.status.at)
    }

    /// This member takes writes, and may: the answer of `/primary`.
    ///
    /// The key alone is not enough, as it is for the peer (rest-api.md W2): the server must run, be out of recovery, and
    /// not be on its way down. Without etcd in a paused cluster the server's own role decides (rest-api.md 5.1).
    pub(super) fn is_primary(&self) -> bool {
        let may_lead = self.holds_lock() || (self.view().is_none() && self.status.pause);
        let takes_writes = self.is_running() && self.sql().is_some_and(|sql| !sql.in_recovery);
        may_lead && takes_writes && !self.status.demoting && !self.status.standby_cluster
    }

    /// This member leads a standby cluster: the answer of `/standby-leader`. As with a primary the server must run (W2).
    pub(super) fn is_standby_leader(&self) -> bool {
        let may_lead = self.holds_lock() || (self.view().is_none() && self.status.pause);
        let leads = self.role() == "standby_leader" || self.status.role == Role::StandbyLeader;
        may_lead && leads && self.is_running() && self.sql().is_some_and(|sql| sql.in_recovery) && !self.status.demoting
    }

    /// This standby has every acknowledged commit (`On`), or is one of those of whom any so many have (`Quorum`).
    pub(super) fn synchronous(&self) -> Option<SyncMode> {
        let mode = self.status.synchronous_mode;
        let sync = self.view().and_then(|view| view.sync.as_ref()).filter(|_| mode != SyncMode::Off)?;
        let standby = self.sql().is_some_and(|sql| sql.in_recovery);
        (standby && lists(&sync.standbys, &MemberName::from(self.status.name.as_str()))).then_some(mode)
    }

    /// How the log arrives: `streaming`, `in archive recovery`, or nothing of both.
    pub(super) fn replication_state(&self) -> Option<&'static str> {
        let sql = self.sql().filter(|sql| sql.in_recovery)?;
        match (sql.streaming, sql.restores_from_archive) {
            (true, _) => Some("streaming"),
            (false, true) => Some("in archive recovery"),
            (false, false) => None,
        }
    }

    /// Received and replayed position of a standby (rest-api.md 4.4).
    pub(super) fn standby_positions(&self) -> Option<(Lsn, Lsn)> {
        let sql = self.sql().filter(|sql| sql.in_recovery)?;
        let replayed = sql.replay_lsn.unwrap_or_default();
        Some((sql.receive_lsn.unwrap_or(replayed), replayed))
    }

    /// Until the guardian kills the server, as far as its last word counts; `None`: it is not armed.
    pub(super) fn guardian_left(&self) -> Option<Duration> {
        let until = self.status.guardian.as_ref()?.armed_until?;
        (self.now < until).then(|| self.now.until(until))
    }

    /// The newest position of the leader that we know of: from etcd, or from our WAL receiver (`optime`, rest-api.md 5.1).
    pub(super) fn leader_position(&self) -> Lsn {
        let stored = self.status.last_view.as_ref().and_then(|view| view.status.optime);
        let received = self.sql().and_then(|sql| sql.latest_end_lsn);
        stored.max(received).unwrap_or_default()
    }

    /// The loop runs: its next turn came, or is not overdue by more than the contract allows (rest-api.md section 6).
    pub(super) fn is_alive(&self) -> bool {
        let primary = self.status.state == State::Running
            && self.status.sql.as_ref().map_or(self.status.role == Role::Primary, |sql| !sql.in_recovery);
        let threshold = if primary { self.status.ttl } else { self.status.ttl.saturating_mul(2) };
        self.status.pause || self.now < self.status.next_turn_due + threshold
    }
}
