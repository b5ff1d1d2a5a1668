//! What a decision says: side effects as data.
//!
//! A plan is always made of both halves, so no rule can forget the lease. Act carries a plan out in one fixed order: take
//! the lease or its writes, move PostgreSQL, give the lease back. It may die between any two of them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cluster::{FailsafeKey, HistoryLine, Promise, Status, SyncState};
use crate::config::Logical;
use crate::peers::Question;
use crate::postgres::{SlotChanges, StopMode, Upkeep, Upstream};
use crate::units::{MemberName, Revision, SystemId, Timeline};

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// The rule that answered.
    pub rule: &'static str,
    /// What to do.
    pub plan: Plan,
    /// Why, with the numbers, for people. Tests do not read it.
    pub why: String,
    /// Look again after this at the latest.
    pub look_again: Duration,
}

/// A rule's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What to do.
    pub plan: Plan,
    /// Why.
    pub why: String,
    /// Look again after this at the latest; `None`: after `loop_wait`.
    pub look_again: Option<Duration>,
}

impl Verdict {
    /// Do `plan`, because of `why`.
    #[must_use]
    pub fn new(plan: Plan, why: impl Into<String>) -> Verdict {
        Verdict { plan, why: why.into(), look_again: None }
    }

    /// ... and look again after `delay` at the latest.
    #[must_use]
    pub fn again_in(mut self, delay: Duration) -> Verdict {
        self.look_again = Some(delay);
        self
    }
}

/// Side effects, all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// What happens to the lease and the leader key.
    pub lease: Lease,
    /// What happens to PostgreSQL: at most one thing.
    pub postgres: Move,
    /// What is done about the logical slots of a standby, beside all else.
    pub upkeep: Option<Upkeep>,
    /// Keys to write, in this order, before the leader key is given back.
    pub keys: Vec<KeyWrite>,
    /// Ask these members and decide again.
    pub ask: BTreeMap<MemberName, Question>,
    /// Ask these members (by `api_url`) to agree that this primary goes on without etcd; `None`: nobody is asked.
    pub confirm: Option<BTreeMap<MemberName, String>>,
    /// What an operator asked for is not done, in these words.
    pub refuse: Option<String>,
    /// End the process afterwards.
    pub exit: Option<Exit>,
}

impl Plan {
    /// A plan of both halves.
    #[must_use]
    pub fn of(lease: Lease, postgres: Move) -> Plan {
        Plan {
            lease,
            postgres,
            upkeep: None,
            keys: Vec::new(),
            ask: BTreeMap::new(),
            confirm: None,
            refuse: None,
            exit: None,
        }
    }

    /// Keep the lease, leave PostgreSQL alone.
    #[must_use]
    pub fn stay() -> Plan {
        Plan::of(Lease::Keep, Move::Stay)
    }

    /// Keep the lease and ask `whom`.
    #[must_use]
    pub fn ask(whom: BTreeMap<MemberName, Question>) -> Plan {
        Plan { ask: whom, ..Plan::stay() }
    }

    /// ... and write `keys`.
    #[must_use]
    pub fn and_write(mut self, keys: Vec<KeyWrite>) -> Plan {
        self.keys = keys;
        self
    }

    /// ... and exit.
    #[must_use]
    pub fn and_exit(mut self, exit: Exit) -> Plan {
        self.exit = Some(exit);
        self
    }
}

/// The lease half of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Lease {
    /// The claim is fresh: the lease task goes on renewing.
    Keep,
    /// No claim: the lease runs out unless a later decision claims again.
    LetRun,
    /// Take the leader key with this promise (transaction 4.2), if the promise seen has not changed.
    Take {
        /// What is promised.
        promise: Promise,
        /// Revision of the promise that this one follows.
        seen: Option<Revision>,
    },
    /// Holding the key: promise the next timeline before a promotion.
    Promise {
        /// What is promised.
        promise: Promise,
        /// Revision of the promise that this one follows.
        seen: Option<Revision>,
    },
    /// Move my key to my present lease (4.3).
    Adopt {
        /// Revision of the key.
        seen: Revision,
    },
    /// Give the leader key back (4.4), after everything else.
    Release,
    /// Win the right to make the cluster (4.1).
    StartBootstrap,
    /// Give that right back (4.1c).
    AbandonBootstrap,
}

/// The PostgreSQL half of a plan. A move while a job is in flight replaces that job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Move {
    /// Leave it as it is.
    Stay,
    /// End the job in flight, and start none.
    Cancel,
    /// initdb, first start, roles.
    Bootstrap,
    /// Fill the empty data directory from a member.
    Clone {
        /// The source.
        from: MemberName,
        /// Its address.
        conn_url: String,
    },
    /// Make the data directory, whose log has diverged, one that can follow this member (X6).
    Rewind {
        /// The source.
        from: MemberName,
        /// Its address.
        conn_url: String,
    },
    /// Fill the empty data directory by a method that needs no other member (B3).
    Restore,
    /// Move the data directory aside where there is room, else empty it, so that it can be cloned from this member (X8, X9).
    GiveUpData {
        /// The source.
        from: MemberName,
        /// Its address.
        conn_url: String,
    },
    /// Remove what was moved aside.
    DiscardOldCopy,
    /// Start as a primary.
    StartPrimary,
    /// Start as a standby.
    StartStandby(Upstream),
    /// Stop fast and start again, as asked for.
    Restart {
        /// As a standby of this; `None`: as a primary.
        standby_of: Option<Upstream>,
        /// In place of `primary_start_timeout`.
        timeout: Option<Duration>,
    },
    /// Stop.
    Stop(StopMode),
    /// Run the user's `pre_promote`, on whose word the promotion hangs.
    PrePromote,
    /// Promote so that this timeline is written.
    Promote(Timeline),
    /// Follow another upstream.
    Follow(Upstream),
    /// The checkpoint after a promotion.
    Checkpoint,
    /// Create, remove and advance replication slots.
    ChangeSlots(SlotChanges),
    /// Copy logical slots of the leader: its files are read first, then the server is stopped, and started as a standby.
    CopySlots {
        /// What each decodes.
        slots: BTreeMap<String, Logical>,
        /// The leader.
        from: MemberName,
        /// Its address.
        conn_url: String,
        /// Whom to stream from afterwards.
        upstream: Upstream,
    },
    /// Go on replaying.
    ResumeReplay,
    /// Wait for other standbys: `synchronous_standby_names`; `None`: what the user configured.
    SetSyncNames(Option<String>),
    /// Remove what an interrupted clone or initdb of ours left.
    RemoveUnfinished,
    /// Rename the data directory of a failed bootstrap (B5).
    SetAside,
}

/// A key of the contract, written by a decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum KeyWrite {
    /// `initialize`
    Identify {
        /// The identity.
        id: SystemId,
        /// Revision of the key that the decision saw; `None`: there was none.
        seen: Option<Revision>,
    },
    /// `config`: the agent's cached copy, or `bootstrap.dcs` for a new cluster.
    Config {
        /// Revision of the key that the decision saw; `None`: there was none.
        seen: Option<Revision>,
    },
    /// `failover`: the request is done, or will not be.
    ClearFailover {
        /// Revision of the request.
        seen: Revision,
    },
    /// `sync`; `None` removes it.
    Sync {
        /// The new state.
        sync: Option<SyncState>,
        /// Revision of the key that the decision saw; `None`: there was none.
        seen: Option<Revision>,
    },
    /// `status`
    Status(Status),
    /// `history`
    History(Vec<HistoryLine>),
    /// `failsafe`; `modified` is the revision of the key that the decision saw, 0 if there was none.
    Failsafe(FailsafeKey),
}

/// The process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// As ordered: status 0.
    Done,
    /// It can't go on: status 1.
    Failed,
}
