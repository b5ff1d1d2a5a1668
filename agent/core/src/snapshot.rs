//! Everything one decision may look at. Whatever is not in here cannot matter.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cluster::{ClusterView, LeaderKey};
use crate::config::Config;
use crate::failsafe::Agreement;
use crate::memory::{Memory, Role};
use crate::peers::{PeerAnswer, PeerReply, Question};
use crate::postgres::{Job, PgState, Probe, RunningJob, SqlFacts};
use crate::request::Request;
use crate::units::{Instant, LeaseId, Lsn, MemberName, SystemId, Timeline};

/// One look at the world.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// When it was complete.
    pub now: Instant,
    /// The wall clock, since 1970 in UTC. For schedules that people made, and nothing else.
    pub wall: Duration,
    /// Chance, drawn once a turn.
    pub dice: u64,
    /// The configuration in force.
    pub config: Config,
    /// The linearizable read of this turn, or why there is none. A failed read is an observation like any other.
    pub dcs: Result<ClusterView, NoView>,
    /// The own lease, as its task knows it.
    pub lease: LeaseView,
    /// The local server.
    pub postgres: PgState,
    /// The long action in flight.
    pub job: Option<RunningJob>,
    /// What peers answered, if a decision of a moment ago asked them.
    pub peers: Option<Peers>,
    /// What this member agreed to when another one asked it, if that is still in force (F4).
    pub agreement: Option<Agreement>,
    /// Address of a living agent of the same name, if one was found when this one first saw etcd (B12).
    pub namesake: Option<String>,
    /// Whether the guardian stands ready for what this member may do next (22.3 I3).
    pub guardian: Guardian,
    /// The kernel's watchdog, where the operator demands one (section 21).
    pub watchdog: Watchdog,
    /// What the operator or the machine wants of this process.
    pub order: Order,
    /// What an operator asked of its server, until it is begun or refused.
    #[serde(default)]
    pub request: Option<Request>,
    /// The past.
    pub memory: Memory,
}

/// Why there is no view of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum NoView {
    /// etcd did not answer in time, or not definitely: the one case in which failsafe mode may be asked for (F10).
    #[error("{0}")]
    Unreachable(String),
    /// etcd answered, and refused.
    #[error("{0}")]
    Refused(String),
}

/// The own lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseView {
    /// Its id; `None` while there is none.
    pub id: Option<LeaseId>,
    /// The fence deadline D = s + T·(1 − ρ), counted from the *sending* of the last acknowledged renewal (DESIGN section 4).
    pub ends: Option<Instant>,
}

/// The guardian, as this turn found it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Guardian {
    /// It answers, and where a server may write it holds a deadline for it (or it was switched off by the configuration).
    Ready,
    /// It does not.
    Absent {
        /// Why.
        why: String,
        /// Since when.
        since: Instant,
    },
}

/// The kernel's watchdog, as far as leadership hangs on it (ha-rules section 21).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Watchdog {
    /// It is not required; or it can be used and, where a server may write, counts.
    #[default]
    Ready,
    /// It is required, and has not answered the last order yet.
    Awaited,
    /// It is required and cannot be used, and why.
    Failed(String),
}

/// Replies of other members to one round of questions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peers {
    /// When the round was complete.
    pub at: Instant,
    /// By member.
    pub replies: BTreeMap<MemberName, PeerReply>,
}

/// What this process was told to do with itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Go on.
    #[default]
    Run,
    /// Stop PostgreSQL, hand over, exit (SIGTERM, SIGINT).
    Stop,
}

/// Who holds the leader key, as far as this member can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seat {
    /// I do.
    Mine,
    /// Another member does.
    Theirs,
    /// Nobody does.
    Vacant,
    /// etcd did not answer.
    Unknown,
}

impl Snapshot {
    /// The one place that says who leads. By name, as in dcs.md section 4: a restarted agent finds its own key on an old lease.
    #[must_use]
    pub fn seat(&self) -> Seat {
        match &self.dcs {
            Err(_) => Seat::Unknown,
            Ok(view) => match &view.leader {
                None => Seat::Vacant,
                Some(key) if key.name == self.config.name => Seat::Mine,
                Some(_) => Seat::Theirs,
            },
        }
    }

    /// I hold the leader key of a standby cluster: the others stream from me, and I from the remote.
    #[must_use]
    pub fn leads_standbys(&self) -> bool {
        self.seat() == Seat::Mine && self.config.standby_cluster.is_some()
    }

    /// The view, if etcd answered.
    #[must_use]
    pub fn view(&self) -> Option<&ClusterView> {
        self.dcs.as_ref().ok()
    }

    /// My leader key, when it hangs on another lease than mine: after a restart, or a change of `ttl`.
    #[must_use]
    pub fn key_to_adopt(&self) -> Option<&LeaderKey> {
        let key = self.view()?.leader.as_ref()?;
        (key.name == self.config.name && (key.lease.is_none() || key.lease != self.lease.id)).then_some(key)
    }

    /// Until when this member may write, by its own clock; `None` when it cannot claim to: by the lease of the leader key, or
    /// by the word of all others (failsafe mode), whichever lasts longer.
    #[must_use]
    pub fn lock_ends(&self) -> Option<Instant> {
        self.lease_ends().max(self.promised_until())
    }

    /// Until when the leader key is mine by my own clock; `None` when I cannot claim to hold it.
    ///
    /// Only acknowledgements for the lease that the key is *known* to hang on count (ha-rules 22.2).
    #[must_use]
    pub fn lease_ends(&self) -> Option<Instant> {
        let known = match (self.seat(), &self.dcs) {
            (Seat::Mine, Ok(view)) => view.leader.as_ref().and_then(|key| key.lease),
            (Seat::Unknown, _) => self.memory.holds,
            (Seat::Mine | Seat::Theirs | Seat::Vacant, _) => None,
        };
        (known.is_some() && known == self.lease.id).then_some(self.lease.ends).flatten()
    }

    /// The latest moment at which a forced stop must begin, if a lease or a promise bounds us.
    #[must_use]
    pub fn must_stop_at(&self) -> Option<Instant> {
        self.lock_ends().map(|end| end.minus(self.config.stop_budget))
    }

    /// Facts from SQL, if the server answered.
    #[must_use]
    pub fn sql(&self) -> Option<&SqlFacts> {
        self.postgres.sql.as_ref()
    }

    /// The server runs as a primary, as far as we know. A query that failed is no evidence (O1): then the remembered role
    /// and the process decide.
    #[must_use]
    pub fn is_primary(&self) -> bool {
        self.postgres.is_up()
            && match self.sql() {
                Some(sql) => !sql.in_recovery,
                None => matches!(self.memory.role, Role::Primary | Role::Promoted),
            }
    }

    /// The server accepts writes, or will without further leave from us: a promotion or a start as primary is under way.
    #[must_use]
    pub fn may_write(&self) -> bool {
        let soon = match self.job.as_ref().map(|running| &running.job) {
            Some(Job::Promote | Job::Start { as_primary: true } | Job::Restart { as_primary: true }) => true,
            Some(
                Job::Bootstrap
                | Job::Clone { .. }
                | Job::Restore
                | Job::Rewind { .. }
                | Job::GiveUpData
                | Job::DiscardOldCopy
                | Job::Start { as_primary: false }
                | Job::Restart { as_primary: false }
                | Job::Stop(_)
                | Job::PrePromote
                | Job::Follow
                | Job::Checkpoint
                | Job::ChangeSlots
                | Job::CopySlots
                | Job::ResumeReplay
                | Job::SetSyncNames
                | Job::RemoveUnfinished
                | Job::SetAside,
            )
            | None => false,
        };
        soon || self.is_primary()
    }

    /// A standby that answers.
    #[must_use]
    pub fn standby(&self) -> Option<&SqlFacts> {
        self.sql().filter(|sql| self.postgres.is_up() && sql.in_recovery)
    }

    /// The postmaster runs and says that it does not accept connections yet.
    #[must_use]
    pub fn is_starting(&self) -> bool {
        self.postgres.is_up() && self.postgres.probe == Probe::Rejecting
    }

    /// The server has not answered a fresh connection for longer than the agent would wait for etcd (`retry_timeout`), or had
    /// not when it ended. One failed look is evidence of nothing (O1); this many in a row are.
    #[must_use]
    pub fn hangs(&self) -> bool {
        self.memory.silent_since.is_some_and(|since| self.now.since(since) >= self.config.retry_timeout)
    }

    /// The identity of the local data directory, if it has one.
    #[must_use]
    pub fn local_system_id(&self) -> Option<SystemId> {
        self.postgres.control().map(|control| control.system_id)
    }

    /// The own timeline: from the server if it answers, else from the control file.
    #[must_use]
    pub fn own_timeline(&self) -> Option<Timeline> {
        let from_control = || {
            let control = self.postgres.control()?;
            Some(control.min_recovery.map_or(control.timeline, |(timeline, _)| timeline.max(control.timeline)))
        };
        self.sql().and_then(|sql| sql.timeline).or_else(from_control)
    }

    /// The newest position that anybody is known to have written under a lock: the last leader's `status`.
    #[must_use]
    pub fn cluster_position(&self) -> Lsn {
        self.view().and_then(|view| view.status.optime).unwrap_or_default()
    }

    /// Replies of peers that are fresh enough to decide on.
    #[must_use]
    pub fn fresh_peers(&self) -> Option<&Peers> {
        self.peers.as_ref().filter(|peers| self.now.since(peers.at) <= PEERS_STAY_FRESH)
    }

    /// Members to ask before a decision that depends on them.
    ///
    /// Those of the last view that had a leader and those of the current one: when a node dies, its member key goes with
    /// the leader key (DL2). With failsafe mode those of the `failsafe` key as well. Minus me, minus those without an address,
    /// minus `nofailover` ones (ha-rules, "Peers asked").
    ///
    /// A member whose key is gone is most likely dead, and so is a leader whose lease has ended: its answer, or its "I still
    /// am a primary" (R16), is taken if it comes at once, but the cluster does not stand still for it (I8).
    #[must_use]
    pub fn peers_to_ask(&self) -> BTreeMap<MemberName, Question> {
        let last = self.memory.last_led.iter().flat_map(|led| led.members.iter());
        let current = self.view().into_iter().flat_map(|view| view.members.iter());
        let question = |name: &MemberName, url: &String| {
            let within = if self.is_thought_dead(name) { DEAD_PEER_PATIENCE } else { PEER_PATIENCE };
            (name.clone(), Question { url: url.clone(), within })
        };
        let failsafe = self.view().and_then(|view| view.failsafe.as_ref()).filter(|_| self.config.failsafe_mode);
        let named =
            failsafe.into_iter().flat_map(|key| key.members.iter()).filter(|(name, _)| **name != self.config.name);
        let mut questions: BTreeMap<_, _> = named.map(|(name, url)| question(name, url)).collect();
        for (name, member) in last.chain(current) {
            match &member.api_url {
                Some(url) if *name != self.config.name && !member.tags.nofailover => {
                    questions.extend([question(name, url)]);
                }
                Some(_) | None => {
                    questions.remove(name);
                }
            }
        }
        questions
    }

    fn is_thought_dead(&self, name: &MemberName) -> bool {
        let lost_the_key = self.memory.last_led.as_ref().is_some_and(|led| led.leader == *name);
        let has_a_key = self.view().is_some_and(|view| view.members.contains_key(name));
        self.seat() == Seat::Vacant && lost_the_key || !has_a_key
    }

    /// A job is in flight that the rules must wait for; short housekeeping is not.
    #[must_use]
    pub fn busy(&self) -> Option<&RunningJob> {
        self.job.as_ref().filter(|running| match running.job {
            Job::Checkpoint
            | Job::ChangeSlots
            | Job::ResumeReplay
            | Job::SetSyncNames
            | Job::Follow
            | Job::DiscardOldCopy => false,
            Job::Bootstrap
            | Job::Clone { .. }
            | Job::Restore
            | Job::Rewind { .. }
            | Job::GiveUpData
            | Job::Start { .. }
            | Job::Restart { .. }
            | Job::CopySlots
            | Job::Stop(_)
            | Job::PrePromote
            | Job::Promote
            | Job::RemoveUnfinished
            | Job::SetAside => true,
        })
    }
}

/// Peers are asked this long at the most (ha-rules section 5).
const PEER_PATIENCE: Duration = Duration::from_secs(2);
/// ... and those thought dead this long: a connect timeout (ha-rules 22.3, I8).
const DEAD_PEER_PATIENCE: Duration = Duration::from_millis(300);

/// How long answers of peers count. Long enough for the read that follows them, short against any lease.
pub const PEERS_STAY_FRESH: Duration = Duration::from_millis(1500);

impl Peers {
    /// The usable answers, by member.
    pub fn answers(&self) -> impl Iterator<Item = (&MemberName, &PeerAnswer)> {
        self.replies.iter().filter_map(|(name, reply)| match reply {
            PeerReply::Answer(answer) => Some((name, answer)),
            PeerReply::Unreachable(_) => None,
        })
    }
}
