//! All that an agent remembers between two turns; lost when it restarts, so nothing here may be needed for safety then.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::callbacks::{self, Told};
use crate::cluster::Member;
use crate::failsafe::{Promises, Topology};
use crate::plan::{Decision, KeyWrite, Lease, Move};
use crate::postgres::{DataDir, FinishedJob, Job, Probe, Process, StopMode, Upstream};
use crate::request::Request;
use crate::snapshot::{Order, Seat, Snapshot};
use crate::sync::Since;
use crate::units::{Instant, LeaseId, Lsn, MemberName, Revision, Timeline};

/// What an agent remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// What the server was when last seen; see [`Role`].
    pub role: Role,
    /// The lease on which the leader key is known to hang, if it is mine.
    pub holds: Option<LeaseId>,
    /// The last view that had a leader (DL2).
    pub last_led: Option<LastLed>,
    /// Whom the server was last told to follow, since this agent started.
    #[serde(default)]
    pub upstream: Option<Upstream>,
    /// A start was tried and the server has not been seen accepting connections since (C9).
    pub recovering: bool,
    /// How long the start under way may take, where an operator said so (T3).
    #[serde(default)]
    pub start_timeout: Option<Duration>,
    /// A new copy that an operator asked for is being made, and was not started yet.
    #[serde(default)]
    pub copying: bool,
    /// A primary that this agent stopped in good order to hand over, and that has not been started since: in pause it comes
    /// back all the same (M7).
    #[serde(default)]
    pub comes_back: bool,
    /// The cluster was paused when last seen.
    #[serde(default)]
    pub paused: bool,
    /// Since when the server has been starting.
    pub starting_since: Option<Instant>,
    /// Since when the server has run and not even hung up on a fresh connection. It stays when a server that hung for
    /// longer than anybody waits is gone, so that its end is not taken for a crash.
    pub silent_since: Option<Instant>,
    /// This agent won the right to make the cluster and has not finished (B5-B7).
    pub bootstrapping: bool,
    /// ... and has tried to give it its name: from then on its data may be the only copy of a cluster that exists.
    pub named: bool,
    /// The last job that ended.
    pub last_job: Option<FinishedJob>,
    /// The timeline whose post-promotion checkpoint is done (L7); also true of a timeline that was found running.
    pub checkpointed: Option<Timeline>,
    /// When the last checkpoint that was asked for ended (I10).
    pub checkpoint_at: Option<Instant>,
    /// Since when nobody has held the leader key.
    pub vacant_since: Option<Instant>,
    /// Since when this server has been a primary that answers.
    pub primary_since: Option<Instant>,
    /// Whom it waits for, since when.
    pub sync_names: Option<Since>,
    /// The last `synchronous_standby_names` that the server was told, whether it has taken it or not.
    #[serde(default)]
    pub sync_told: Option<String>,
    /// This agent has set `synchronous_standby_names`.
    pub set_sync_names: bool,
    /// A write of `sync` over this revision was sent. If it was not answered it may still be carried out, as long as the key
    /// stands at that revision.
    pub sync_written_over: Option<Revision>,
    /// Since when this process has been ordered to stop, or its server to go down for a while.
    pub ordered_since: Option<Instant>,
    /// Own position when the server last answered.
    pub last_position: Option<Lsn>,
    /// Since when it has been that.
    #[serde(default)]
    pub position_since: Option<Instant>,
    /// As the leader: when a member last wanted its slot, by slot name (P13).
    pub slots_wanted: BTreeMap<String, Instant>,
    /// Logical slots that were copied from a leader, or were to be (P8).
    #[serde(default)]
    pub slot_copies: BTreeMap<String, SlotCopy>,
    /// As a standby: logical slots that would do for a consumer if this member were promoted (P10).
    #[serde(default)]
    pub proven_slots: BTreeSet<String>,
    /// pg_rewind was tried, and this member has not streamed since.
    pub rewinds: Option<Rewinds>,
    /// When this agent had its first look: what it agreed to before that is forgotten.
    pub since: Option<Instant>,
    /// Who must agree before this member goes on without etcd (failsafe mode).
    pub topology: Topology,
    /// Who has.
    pub promises: Promises,
    /// The user's `pre_promote` has agreed, under the present lock.
    #[serde(default)]
    pub pre_promoted: bool,
    /// When it last did not (R1).
    #[serde(default)]
    pub promotion_refused: Option<Instant>,
    /// What callbacks were told.
    #[serde(default)]
    pub told: Told,
    /// The server has answered, or run, at least once since this agent started (B10, "first contact").
    pub met: bool,
}

/// The remembered role (ha-rules section 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Nothing known, or no data directory.
    #[default]
    Uninitialized,
    /// It ran as a primary.
    Primary,
    /// Promotion was signalled and is not finished.
    Promoted,
    /// It ran as a standby.
    Replica,
    /// A former primary that was stopped, or found stopped.
    Demoted,
}

/// How often a logical slot was copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotCopy {
    /// From which leader.
    pub from: MemberName,
    /// Times.
    pub tries: u32,
    /// When last.
    pub at: Instant,
}

/// How often pg_rewind was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewinds {
    /// Against which leader.
    pub from: MemberName,
    /// Times.
    pub tries: u32,
}

/// A view that had a leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastLed {
    /// Who led.
    pub leader: MemberName,
    /// Who was there.
    pub members: BTreeMap<MemberName, Member>,
}

/// How the lease half of a plan ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaseOutcome {
    /// Nothing was written.
    NotTried,
    /// Applied, with this lease.
    Done(LeaseId),
    /// A compare did not hold.
    Refused,
    /// No definite answer: it may have been applied. The next read tells.
    Unknown,
}

impl Memory {
    /// What is remembered after `decision` was taken on `seen` and its lease half ended as `lease`.
    ///
    /// A job's end arrives separately, by [`Memory::job_ended`], before the snapshot that follows it.
    #[must_use]
    pub fn after(&self, seen: &Snapshot, decision: &Decision, lease: LeaseOutcome) -> Memory {
        let mut next = self.clone();
        next.observe(seen);
        next.decided(seen, decision, lease);
        next.told = callbacks::due(seen, decision, false).told;
        next
    }

    /// Until when all of the topology, this member in it, promised to stay out of the race. Nobody's word counts before the
    /// `failsafe` key was seen: a write of it without an answer may not be there, and then it keeps no newcomer out of the race.
    #[must_use]
    pub fn promised_until(&self) -> Option<Instant> {
        self.topology.modified?;
        let each = self.topology.members.keys().map(|name| self.promises.until.get(name).copied());
        each.collect::<Option<Vec<_>>>()?.into_iter().min()
    }

    fn observe(&mut self, seen: &Snapshot) {
        self.since = self.since.or(Some(seen.now));
        self.topology.observe(seen);
        if seen.seat() == Seat::Theirs || !seen.may_write() {
            self.promises = Promises::default();
        }
        if seen.view().is_some() {
            self.promises.last = None; // The next outage asks at once.
        }
        if let Some(view) = seen.view() {
            self.holds = match seen.seat() {
                Seat::Mine => view.leader.as_ref().and_then(|key| key.lease).filter(|id| Some(*id) == seen.lease.id),
                Seat::Theirs | Seat::Vacant => None,
                Seat::Unknown => self.holds,
            };
            self.vacant_since = view.leader.is_none().then_some(self.vacant_since.unwrap_or(seen.now));
            if let Some(key) = &view.leader {
                self.last_led = Some(LastLed { leader: key.name.clone(), members: view.members.clone() });
            }
        }
        self.pre_promoted &= matches!(seen.seat(), Seat::Mine | Seat::Unknown);
        if self.paused && !seen.config.pause {
            self.rewinds = None; // Whatever failed, an operator may have mended it (M13).
        }
        self.paused = seen.config.pause;
        // It was not stopped after all.
        self.comes_back &= !(seen.job.is_none() && seen.is_primary());
        self.slots_wanted = crate::slots::wanted_since(&self.slots_wanted, seen);
        self.proven_slots = crate::slots::proven(&self.proven_slots, seen);
        self.ordered_since = seen.is_to_go_down().then_some(self.ordered_since.unwrap_or(seen.now));
        if let Some(sql) = seen.sql() {
            self.primary_since = (!sql.in_recovery).then_some(self.primary_since.unwrap_or(seen.now));
            self.sync_names = Some(Since::after(self.sync_names.take(), sql, seen.now));
            // A server that is about to be restarted answers, too.
            self.recovering &=
                matches!(seen.job.as_ref().map(|running| &running.job), Some(Job::Restart { .. } | Job::CopySlots));
            self.start_timeout = self.start_timeout.filter(|_| self.recovering);
            self.starting_since = None;
            self.met = true;
            if self.last_position != Some(sql.position()) {
                self.position_since = Some(seen.now);
            }
            self.last_position = Some(sql.position());
            if sql.streaming {
                self.rewinds = None;
            }
            self.role = match (sql.in_recovery, self.role) {
                (false, _) => Role::Primary,
                (true, Role::Promoted) => Role::Promoted,
                (true, Role::Uninitialized | Role::Primary | Role::Replica | Role::Demoted) => Role::Replica,
            };
        } else if seen.is_starting() {
            self.met = true;
            self.starting_since = self.starting_since.or(Some(seen.now));
        } else if !seen.postgres.is_up() {
            self.starting_since = None;
        }
        if seen.sql().is_none() {
            self.role = self.role_on_disk(seen);
        }
        self.silent_since = match (seen.postgres.process, seen.postgres.probe) {
            (Process::Up { .. }, Probe::Silent) => self.silent_since.or(Some(seen.now)),
            (Process::Up { .. }, Probe::Accepting | Probe::Rejecting | Probe::NotAsked) => None,
            (Process::Down, _) => self.silent_since.filter(|_| seen.hangs()),
        };
        if seen.view().is_some() && seen.seat() != Seat::Mine && !seen.postgres.is_up() {
            self.silent_since = None;
        }
    }

    /// "At start: from signal files in PGDATA; a stopped node with no signal file counts as demoted" (ha-rules section 2).
    /// One that runs and does not answer counts as what its files say, too: it may be a primary that is frozen.
    fn role_on_disk(&self, seen: &Snapshot) -> Role {
        let up = seen.postgres.is_up();
        match &seen.postgres.data_dir {
            DataDir::Empty | DataDir::Unfinished if !up => Role::Uninitialized,
            DataDir::Present(present) if self.role == Role::Uninitialized => match (present.standby_signal, up) {
                (true, _) => Role::Replica,
                (false, true) => Role::Primary,
                (false, false) => Role::Demoted,
            },
            DataDir::Empty
            | DataDir::Unfinished
            | DataDir::HalfRewound
            | DataDir::Present(_)
            | DataDir::Unreadable(_)
            | DataDir::Unusable(_) => self.role,
        }
    }

    fn decided(&mut self, seen: &Snapshot, decision: &Decision, lease: LeaseOutcome) {
        match (&decision.plan.lease, lease) {
            (Lease::Take { .. } | Lease::Adopt { .. }, LeaseOutcome::Done(id)) => self.holds = Some(id),
            (Lease::Release, LeaseOutcome::Done(_) | LeaseOutcome::Unknown) => self.holds = None,
            (Lease::StartBootstrap, LeaseOutcome::Done(_)) => self.bootstrapping = true,
            (Lease::AbandonBootstrap, _) => self.bootstrapping = false,
            (
                Lease::Keep
                | Lease::LetRun
                | Lease::Take { .. }
                | Lease::Promise { .. }
                | Lease::Adopt { .. }
                | Lease::Release
                | Lease::StartBootstrap,
                _,
            ) => {}
        }
        for key in &decision.plan.keys {
            if let KeyWrite::Failsafe(key) = key {
                self.topology.members.extend(key.members.clone());
            }
            if let KeyWrite::Sync { seen, .. } = key {
                self.sync_written_over = *seen;
            }
        }
        self.named |= decision.plan.keys.iter().any(|key| matches!(key, KeyWrite::Identify { .. }));
        if self.bootstrapping && seen.view().is_some_and(|view| view.initialize.system_id().is_some()) {
            self.bootstrapping = false;
        }
        if let Move::SetSyncNames(names) = &decision.plan.postgres {
            self.set_sync_names = names.is_some();
            self.sync_told.clone_from(names);
        }
        match &decision.plan.postgres {
            Move::StartPrimary => {
                self.recovering = true;
                self.role = Role::Primary;
            }
            Move::StartStandby(upstream) => {
                self.upstream = Some(upstream.clone());
                self.recovering = true;
                (self.copying, self.comes_back) = (false, false);
                self.role = Role::Replica;
            }
            Move::Restart { standby_of, timeout } => {
                self.upstream.clone_from(standby_of);
                self.recovering = true;
                self.start_timeout = *timeout;
                self.role = if standby_of.is_none() { Role::Primary } else { Role::Replica };
            }
            Move::CopySlots { slots, from, upstream, .. } => {
                self.upstream = Some(upstream.clone());
                self.recovering = true;
                self.role = Role::Replica;
                for name in slots.keys() {
                    self.proven_slots.remove(name);
                    let tries = crate::slots::tries(self.slot_copies.get(name), from, seen.now);
                    self.slot_copies.insert(name.clone(), SlotCopy { from: from.clone(), tries, at: seen.now });
                }
            }
            Move::Promote(_) => {
                self.role = Role::Promoted;
                self.pre_promoted = false;
                self.checkpointed = None;
            }
            Move::Stop(mode) if seen.may_write() => {
                // An ordered stop of a primary keeps its role until it is down; every other one is a demotion.
                let ordered = seen.order == Order::Stop && *mode == StopMode::Fast;
                self.role = if ordered { self.role } else { Role::Demoted };
                self.comes_back = !ordered && *mode == StopMode::Fast;
                if !ordered {
                    self.promises = Promises::default();
                }
                self.checkpointed = None;
            }
            Move::Rewind { from, .. } => {
                let before = self.rewinds.as_ref().filter(|rewinds| rewinds.from == *from).map_or(0, |r| r.tries);
                self.rewinds = Some(Rewinds { from: from.clone(), tries: before.saturating_add(1) });
            }
            Move::Follow(upstream) => self.upstream = Some(upstream.clone()),
            Move::Clone { .. } => {
                self.copying |= matches!(seen.request, Some(Request::Reinitialize { .. }));
            }
            Move::Stay
            | Move::Cancel
            | Move::Bootstrap
            | Move::Restore
            | Move::PrePromote
            | Move::GiveUpData { .. }
            | Move::DiscardOldCopy
            | Move::Stop(_)
            | Move::Checkpoint
            | Move::ChangeSlots(_)
            | Move::ResumeReplay
            | Move::SetSyncNames(_)
            | Move::RemoveUnfinished
            | Move::SetAside => {}
        }
    }

    /// A job ended.
    pub fn job_ended(&mut self, ended: FinishedJob, timeline: Option<Timeline>) {
        if ended.job == Job::Checkpoint && ended.error.is_none() {
            self.checkpointed = timeline;
            self.checkpoint_at = Some(ended.at);
        }
        if ended.job == Job::Promote && ended.error.is_some() && self.role == Role::Promoted {
            self.role = Role::Replica;
        }
        if ended.job == Job::PrePromote {
            self.pre_promoted = ended.error.is_none();
            self.promotion_refused = ended.error.as_ref().map(|_| ended.at);
        }
        if matches!(ended.job, Job::Rewind { .. }) && ended.error.is_some() {
            self.comes_back = false;
        }
        self.last_job = Some(ended);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn nobodys_word_counts_before_the_failsafe_key_was_seen() {
        let mut memory = super::Memory::default();
        memory.topology.members = [("a".into(), String::new())].into();
        memory.promises.until = [("a".into(), crate::units::Instant::default())].into();
        assert_eq!(memory.promised_until(), None);
        memory.topology.modified = Some(crate::units::Revision(7));
        assert!(memory.promised_until().is_some());
    }

    use super::*;
    use crate::fixture::{primary, standby};
    use crate::postgres::Probe;
    use crate::rules::decide;

    fn after(seen: &Snapshot) -> Memory {
        seen.memory.after(seen, &decide(seen), LeaseOutcome::NotTried)
    }

    #[test]
    fn a_new_agent_takes_the_role_from_the_files() {
        let forgot = |s: &mut Snapshot| s.memory = Memory::default();
        let silent = |s: &mut Snapshot| {
            forgot(s);
            (s.postgres.sql, s.postgres.probe) = (None, Probe::Silent);
        };
        for (seen, role) in [
            (standby().down().with(forgot), Role::Replica),
            (primary().down().with(forgot), Role::Demoted),
            (primary().led_by("b").with(silent), Role::Primary),
            (standby().with(silent), Role::Replica),
            (standby().empty().with(forgot), Role::Uninitialized),
        ] {
            let mut memory = Memory::default();
            memory.observe(&seen);
            assert_eq!(memory.role, role);
        }
    }

    #[test]
    fn a_frozen_former_primary_is_stopped_before_it_wakes() {
        let mut seen = primary().led_by("b").with(|s| {
            s.memory = Memory::default();
            (s.postgres.sql, s.postgres.probe) = (None, Probe::Silent);
        });
        seen.memory = after(&seen);
        assert_eq!(decide(&seen).rule, "demote_when_another_leads");
    }

    #[test]
    fn a_failed_query_changes_no_role() {
        let seen = primary().with(|s| (s.postgres.sql, s.postgres.probe) = (None, Probe::Silent));
        assert_eq!(after(&seen).role, Role::Primary);
    }

    #[test]
    fn recovering_lasts_from_a_start_to_the_first_answer() {
        let crashed = primary().down().build();
        let started = after(&crashed);
        assert!(started.recovering);
        let mut up = primary().build();
        up.memory = started;
        assert!(!after(&up).recovering);
    }
}
