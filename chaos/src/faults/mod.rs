//! What can happen, in words, and what may follow from it. How it is made to happen is in the files beside this one.

mod links;
mod machine;
mod operator;
mod store;
mod strike;

use serde::{Deserialize, Serialize};

pub use strike::{Undo, mend_all, strike};

/// One thing that happens to a cluster, and ends when it is undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the table below describes each")]
pub enum Fault {
    PostmasterKilled,
    PostmasterFrozen,
    BackendKilled,
    BackendFrozen,
    WalSenderKilled,
    WalSenderFrozen,
    CheckpointerFrozen,
    AgentKilled,
    AgentRestarted,
    AgentFrozen,
    AgentFrozenBriefly,
    AgentTerminated,
    AgentStarved,
    AgentOutOfDescriptors,
    AgentOutOfMemory,
    GuardianKilled,
    GuardianFrozen,
    AgentAndGuardianRestarted,
    PowerCut,
    NodeFrozen,
    MachineBusy,
    EtcdCut,
    EtcdMemberCut,
    RestCut,
    ReplicationCut,
    PeersCut,
    ClientsCut,
    Isolated,
    PairCut,
    OneWayCut,
    RingCut,
    BridgeCut,
    HalvesCut,
    EtcdMemberKilled,
    EtcdMajorityKilled,
    EtcdAllKilled,
    EtcdLeaderFrozen,
    EtcdLeaderMoved,
    EtcdOutOfSpace,
    EtcdCompacted,
    EtcdRestored,
    DiskFull,
    DiskReadOnly,
    DiskSlow,
    DiskHangs,
    ArchiveHangs,
    CallbackHangs,
    PrePromoteHangs,
    CloneKilled,
    Switchover,
    Failover,
    Restart,
    Reinitialize,
    Configure,
    Pause,
}

/// May leadership change because of it?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// Yes: it takes the primary away, or asks for another one.
    Failover,
    /// Only if it hits the primary.
    FailoverOfPrimary,
    /// Never (L3).
    Nothing,
}

/// What it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing that every cluster has not.
    Nothing,
    /// Links through proxies.
    Proxies,
    /// A network namespace for each node.
    Namespaces,
    /// Three members of etcd.
    ThreeEtcd,
    /// A single member of etcd.
    OneEtcd,
    /// Regent: Patroni has no such part.
    Guardian,
    /// Asynchronous replication: who names a candidate in a synchronous mode takes it with what it has (ha-rules section 11).
    Asynchronous,
}

/// With what else it may happen at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Company {
    /// Anything that is not excluded here.
    Any,
    /// No agent or node that stands still or dies at the same time: the documented limit of the guardian (docs/safety.md, case 1).
    NotBesideStillness,
    /// The other half of that.
    Stillness,
    /// Nothing: documented limits (docs/safety.md, cases 8 and 9).
    Alone,
}

impl Fault {
    /// Every one.
    #[must_use]
    pub fn all() -> &'static [Fault] {
        clap::ValueEnum::value_variants()
    }

    /// The row of the table: words, cost, needs, company.
    fn row(self) -> (&'static str, Cost, Needs, Company) {
        use Company::{Alone, Any, NotBesideStillness, Stillness};
        use Cost::{Failover, FailoverOfPrimary, Nothing as Free};
        use Needs::{Asynchronous, Guardian, Namespaces, Nothing, OneEtcd, Proxies, ThreeEtcd};
        match self {
            Fault::PostmasterKilled => ("postmaster killed", FailoverOfPrimary, Nothing, Any),
            Fault::PostmasterFrozen => ("postmaster stopped, then continued", FailoverOfPrimary, Nothing, Any),
            Fault::BackendKilled => ("a client's backend killed", FailoverOfPrimary, Nothing, Any),
            Fault::BackendFrozen => ("a client's backend stopped, then continued", Free, Nothing, Any),
            Fault::WalSenderKilled => ("a WAL sender killed", FailoverOfPrimary, Nothing, Any),
            Fault::WalSenderFrozen => ("a WAL sender stopped, then continued", Free, Nothing, Any),
            Fault::CheckpointerFrozen => ("checkpointer stopped, then continued", Free, Nothing, Any),
            Fault::AgentKilled => ("agent killed, started again later", FailoverOfPrimary, Nothing, Stillness),
            Fault::AgentRestarted => ("agent killed, started again at once", Free, Nothing, Stillness),
            Fault::AgentFrozen => ("agent stopped, then continued", FailoverOfPrimary, Nothing, Stillness),
            Fault::AgentFrozenBriefly => ("agent stopped for a fifth of the lease", Free, Nothing, Stillness),
            Fault::AgentTerminated => ("agent ordered to end, started again", FailoverOfPrimary, Nothing, Stillness),
            Fault::AgentStarved => ("agent runs a tenth of the time", FailoverOfPrimary, Nothing, Stillness),
            Fault::AgentOutOfDescriptors => ("agent may open no more files", FailoverOfPrimary, Nothing, Stillness),
            Fault::AgentOutOfMemory => ("agent gets no more memory", FailoverOfPrimary, Nothing, Stillness),
            Fault::GuardianKilled => ("guardian killed", Free, Guardian, NotBesideStillness),
            Fault::GuardianFrozen => ("guardian stopped, then continued", Free, Guardian, NotBesideStillness),
            Fault::AgentAndGuardianRestarted => {
                ("agent and guardian killed, agent started at once", Free, Guardian, NotBesideStillness)
            }
            Fault::PowerCut => ("node lost its power, came back", FailoverOfPrimary, Nothing, Stillness),
            Fault::NodeFrozen => ("whole node stopped, then continued", FailoverOfPrimary, Nothing, Stillness),
            Fault::MachineBusy => ("all cores taken", Failover, Nothing, NotBesideStillness),
            Fault::EtcdCut => ("node's links to etcd", FailoverOfPrimary, Nothing, Any),
            Fault::EtcdMemberCut => ("node's link to one etcd member", Free, ThreeEtcd, Any),
            Fault::RestCut => ("other members' links to its REST API", Free, Proxies, Any),
            Fault::ReplicationCut => ("other members' links to its server", Free, Proxies, Any),
            Fault::PeersCut => ("all links of other members to it", Free, Proxies, Any),
            Fault::ClientsCut => ("links of clients and health checks to it", Free, Proxies, Any),
            Fault::Isolated => ("all its links", FailoverOfPrimary, Nothing, Any),
            Fault::PairCut => ("two nodes do not hear each other", Free, Namespaces, Any),
            Fault::OneWayCut => ("a node does not reach another one, which reaches it", Free, Namespaces, Any),
            Fault::RingCut => ("each node reaches the next one only", FailoverOfPrimary, Namespaces, Any),
            Fault::BridgeCut => ("one node reaches all, the others only it", FailoverOfPrimary, Namespaces, Any),
            Fault::HalvesCut => ("primary with a minority, the others with etcd", Failover, Namespaces, Any),
            Fault::EtcdMemberKilled => ("one etcd member killed", Free, ThreeEtcd, Any),
            Fault::EtcdMajorityKilled => ("a majority of etcd killed", Failover, ThreeEtcd, Any),
            Fault::EtcdAllKilled => ("all of etcd killed", Failover, Nothing, Any),
            Fault::EtcdLeaderFrozen => ("etcd's leader stopped, then continued", Failover, Nothing, Any),
            Fault::EtcdLeaderMoved => ("etcd's leader changed, again and again", Free, ThreeEtcd, Any),
            Fault::EtcdOutOfSpace => ("etcd's space alarm", Failover, Nothing, Any),
            Fault::EtcdCompacted => ("etcd's history compacted", Free, Nothing, Any),
            Fault::EtcdRestored => ("etcd restored from an older snapshot", Failover, OneEtcd, Alone),
            Fault::DiskFull => ("data directory's disk full", FailoverOfPrimary, Nothing, Any),
            Fault::DiskReadOnly => ("data directory read-only", FailoverOfPrimary, Nothing, Any),
            Fault::DiskSlow => ("each fsync takes half a second", FailoverOfPrimary, Nothing, Any),
            Fault::DiskHangs => ("data directory's disk hangs", FailoverOfPrimary, Nothing, Any),
            Fault::ArchiveHangs => ("archive_command hangs", Free, Nothing, Any),
            Fault::CallbackHangs => ("callbacks hang", Free, Nothing, Any),
            Fault::PrePromoteHangs => ("pre_promote hangs", Free, Nothing, Any),
            Fault::CloneKilled => ("standby reinitialised, its tool killed", FailoverOfPrimary, Nothing, Any),
            Fault::Switchover => ("operator: switchover", Failover, Nothing, Any),
            Fault::Failover => ("operator: failover to a standby", Failover, Asynchronous, Any),
            Fault::Restart => ("operator: restart", FailoverOfPrimary, Nothing, Any),
            Fault::Reinitialize => ("operator: reinitialize a standby", FailoverOfPrimary, Nothing, Any),
            Fault::Configure => ("operator: another configuration", Free, Nothing, Any),
            Fault::Pause => ("operator: pause and resume", Free, Nothing, Alone),
        }
    }

    /// In words.
    #[must_use]
    pub fn words(self) -> &'static str {
        self.row().0
    }

    /// What may follow.
    #[must_use]
    pub fn cost(self) -> Cost {
        self.row().1
    }

    /// What it takes.
    #[must_use]
    pub fn needs(self) -> Needs {
        self.row().2
    }

    /// With what else it may happen.
    #[must_use]
    pub fn company(self) -> Company {
        self.row().3
    }

    /// Whether it is a matter of links, which fail in several manners.
    #[must_use]
    pub fn is_of_links(self) -> bool {
        matches!(
            self,
            Fault::EtcdCut
                | Fault::EtcdMemberCut
                | Fault::RestCut
                | Fault::ReplicationCut
                | Fault::PeersCut
                | Fault::ClientsCut
                | Fault::Isolated
        )
    }

    /// Whether there is nothing to be undone.
    #[must_use]
    pub fn is_over_at_once(self) -> bool {
        matches!(
            self,
            Fault::PostmasterKilled
                | Fault::BackendKilled
                | Fault::WalSenderKilled
                | Fault::GuardianKilled
                | Fault::EtcdLeaderMoved
                | Fault::EtcdCompacted
                | Fault::CloneKilled
        ) || self.is_an_order() && self != Fault::Pause
    }

    /// Whether an operator asks for it, which may go wrong too.
    #[must_use]
    pub fn is_an_order(self) -> bool {
        matches!(
            self,
            Fault::Switchover
                | Fault::Failover
                | Fault::Restart
                | Fault::Reinitialize
                | Fault::Configure
                | Fault::Pause
        )
    }
}

/// How a link fails, or how an order is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Manner {
    /// There is only one.
    Plain,
    /// Connections are refused.
    Refused,
    /// Packets vanish, both ways.
    Silent,
    /// Questions arrive, answers vanish.
    OneWay,
    /// Delay and jitter.
    Slow,
    /// Connections are reset.
    Reset,
    /// A few bytes at a time.
    Trickle,
    /// Each connection ends after some bytes.
    CutShort,
    /// An order is given twice at once.
    Twice,
    /// The connection of who gives the order is cut before the answer.
    CutOff,
}

impl Manner {
    /// How links fail.
    pub const OF_LINKS: [Manner; 7] = [
        Manner::Refused,
        Manner::Silent,
        Manner::OneWay,
        Manner::Slow,
        Manner::Reset,
        Manner::Trickle,
        Manner::CutShort,
    ];
    /// How orders are given.
    pub const OF_ORDERS: [Manner; 3] = [Manner::Plain, Manner::Twice, Manner::CutOff];

    /// In words, after those of a fault.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Manner::Plain => "",
            Manner::Refused => " refuse connections",
            Manner::Silent => " swallow everything",
            Manner::OneWay => " swallow answers",
            Manner::Slow => " are slow",
            Manner::Reset => " reset connections",
            Manner::Trickle => " let a few bytes a second through",
            Manner::CutShort => " end connections after some bytes",
            Manner::Twice => ", twice at once",
            Manner::CutOff => ", cut off before the answer",
        }
    }
}

/// Whom it hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Whom {
    /// Who leads when it happens.
    Primary,
    /// The standby with this number, counted round.
    Standby(usize),
}

/// A fault with all that chance has to say about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Strike {
    /// What happens.
    pub fault: Fault,
    /// In which manner.
    pub manner: Manner,
    /// Whom it hits.
    pub whom: Whom,
    /// Milliseconds after the round began.
    pub begins_ms: u64,
    /// Milliseconds until it is undone.
    pub lasts_ms: u64,
}

impl Strike {
    /// In words.
    #[must_use]
    pub fn words(&self) -> String {
        let whom = match self.whom {
            Whom::Primary => "primary",
            Whom::Standby(_) => "standby",
        };
        format!("{}{} ({whom}, {:.1} s)", self.fault.words(), self.manner.words(), Self::seconds(self.lasts_ms))
    }

    #[expect(clippy::cast_precision_loss, reason = "for people")]
    fn seconds(ms: u64) -> f64 {
        ms as f64 / 1000.0
    }

    /// Whether leadership may change because of it.
    #[must_use]
    pub fn may_cost_leadership(&self) -> bool {
        match self.fault.cost() {
            Cost::Failover => true,
            Cost::FailoverOfPrimary => self.whom == Whom::Primary,
            Cost::Nothing => false,
        }
    }
}
