//! What happens to a world: drawn from a seed, or told by a script.

use std::time::Duration;

use regent_core::units::MemberName;
use regent_dcs::keys::encode_failover;
use regent_dcs::memory::Trip;

use crate::rng::Rng;
use crate::world::{Shape, World};

/// One thing that goes wrong, at one moment, for some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// When it begins.
    pub at: Duration,
    /// How long it lasts.
    pub lasts: Duration,
    /// What it is.
    pub kind: Kind,
}

/// The menu.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SIGKILL of an agent; it is started again at the end.
    KillAgent(String),
    /// SIGKILL of a postmaster.
    KillServer(String),
    /// SIGKILL of both; the agent is started again at the end.
    KillNode(String),
    /// SIGTERM to an agent; it is started again at the end.
    StopAgent(String),
    /// SIGSTOP of an agent.
    FreezeAgent(String),
    /// SIGSTOP of agent and server, as when a virtual machine is paused.
    FreezeNode(String),
    /// One member cannot reach etcd.
    CutEtcd(String),
    /// etcd answers nobody.
    EtcdOutage,
    /// etcd elects a leader: every lease starts anew.
    EtcdElection,
    /// One member's requests to etcd and their answers take this long.
    SlowEtcd(String, Duration),
    /// etcd's answers to one member get lost, its requests do not.
    LoseAnswers(String),
    /// One member learns late of changes.
    SlowWatch(String, Duration),
    /// Replication between two members is cut.
    CutReplication(String, String),
    /// A member's standby is this far behind.
    SlowReplication(String, Duration),
    /// A member's server takes this long to start and to recover.
    SlowStart(String, Duration),
    /// The next start of a member's server fails.
    FailStart(String),
    /// Whoever is promoted next is killed, agent and server, this long after; it is started again at the end.
    KillNextPromoted(Duration),
    /// An operator asks for another leader: away from this one if it leads then, to that one if one is named.
    Switchover(String, Option<String>),
}

/// Stands for whoever holds the leader key when the fault begins.
pub const LEADER: &str = "the leader";

impl Kind {
    /// Members that it touches.
    #[must_use]
    pub fn members(&self) -> Vec<&String> {
        match self {
            Kind::KillAgent(a)
            | Kind::KillServer(a)
            | Kind::KillNode(a)
            | Kind::StopAgent(a)
            | Kind::FreezeAgent(a)
            | Kind::FreezeNode(a)
            | Kind::CutEtcd(a)
            | Kind::SlowEtcd(a, _)
            | Kind::LoseAnswers(a)
            | Kind::SlowWatch(a, _)
            | Kind::SlowReplication(a, _)
            | Kind::SlowStart(a, _)
            | Kind::FailStart(a)
            | Kind::Switchover(a, None) => vec![a],
            Kind::CutReplication(a, b) | Kind::Switchover(a, Some(b)) => vec![a, b],
            Kind::EtcdOutage | Kind::EtcdElection | Kind::KillNextPromoted(_) => Vec::new(),
        }
    }

    /// The same with `leader` in the place of [`LEADER`].
    #[must_use]
    pub fn aimed_at(&self, leader: &str) -> Kind {
        let aim = |name: &String| if name == LEADER { leader.to_owned() } else { name.clone() };
        match self {
            Kind::KillAgent(a) => Kind::KillAgent(aim(a)),
            Kind::KillServer(a) => Kind::KillServer(aim(a)),
            Kind::KillNode(a) => Kind::KillNode(aim(a)),
            Kind::StopAgent(a) => Kind::StopAgent(aim(a)),
            Kind::FreezeAgent(a) => Kind::FreezeAgent(aim(a)),
            Kind::FreezeNode(a) => Kind::FreezeNode(aim(a)),
            Kind::CutEtcd(a) => Kind::CutEtcd(aim(a)),
            Kind::SlowEtcd(a, by) => Kind::SlowEtcd(aim(a), *by),
            Kind::LoseAnswers(a) => Kind::LoseAnswers(aim(a)),
            Kind::SlowWatch(a, by) => Kind::SlowWatch(aim(a), *by),
            Kind::CutReplication(a, b) => Kind::CutReplication(aim(a), aim(b)),
            Kind::SlowReplication(a, by) => Kind::SlowReplication(aim(a), *by),
            Kind::SlowStart(a, by) => Kind::SlowStart(aim(a), *by),
            Kind::FailStart(a) => Kind::FailStart(aim(a)),
            Kind::EtcdOutage => Kind::EtcdOutage,
            Kind::EtcdElection => Kind::EtcdElection,
            Kind::KillNextPromoted(after) => Kind::KillNextPromoted(*after),
            Kind::Switchover(a, to) => Kind::Switchover(aim(a), to.clone()),
        }
    }
}

/// The longest that an agent alone may be dead or frozen without its lease ending under it: what the last renewal left,
/// less the budget of a stop. Beyond that its guardian kills the server.
#[must_use]
pub fn grace(shape: &Shape) -> Duration {
    (shape.ttl * 2 / 3).saturating_sub(shape.stop_budget + shape.ttl / 20 + Duration::from_millis(500))
}

/// A harmless fault may not cause a failover (L3).
#[must_use]
pub fn harmless(fault: &Fault, shape: &Shape, leader: &str) -> bool {
    let on_leader = fault.kind.members().iter().any(|name| *name == leader || *name == LEADER);
    match &fault.kind {
        Kind::KillAgent(_) | Kind::FreezeAgent(_) => !on_leader || fault.lasts <= grace(shape),
        Kind::EtcdOutage => fault.lasts <= grace(shape),
        Kind::CutEtcd(_) | Kind::LoseAnswers(_) => !on_leader || fault.lasts <= grace(shape),
        Kind::SlowEtcd(_, by) => !on_leader || *by <= Duration::from_millis(200),
        Kind::EtcdElection | Kind::SlowWatch(..) | Kind::CutReplication(..) | Kind::SlowReplication(..) => true,
        Kind::KillServer(_) | Kind::KillNode(_) | Kind::StopAgent(_) | Kind::FreezeNode(_) => !on_leader,
        Kind::SlowStart(..) | Kind::FailStart(_) => true,
        Kind::KillNextPromoted(_) | Kind::Switchover(..) => false,
    }
}

/// One to six faults within `span`; in one world of four only harmless ones, far from each other (L3).
#[must_use]
pub fn draw(rng: &mut Rng, shape: &Shape, names: &[String], from: Duration, span: Duration) -> Vec<Fault> {
    if rng.one_in(4) && !from.is_zero() {
        let mut at = from;
        return (0..=rng.below(2))
            .map(|_| {
                let fault = loop {
                    let fault = one(rng, shape, names, Duration::ZERO, Duration::from_secs(5));
                    if harmless(&fault, shape, LEADER) && harmless(&fault, shape, "") {
                        break fault;
                    }
                };
                let placed = Fault { at: at + fault.at, ..fault };
                at = placed.at + placed.lasts + shape.ttl + Duration::from_secs(20);
                placed
            })
            .collect();
    }
    let mut faults: Vec<Fault> = (0..=rng.below(5)).map(|_| one(rng, shape, names, from, span)).collect();
    if from.is_zero() {
        // One of them falls into the making of the cluster and of its first copies.
        faults.push(one(rng, shape, names, Duration::ZERO, Duration::from_secs(8)));
    }
    if rng.one_in(8) {
        // Two misfortunes of one member: it loses etcd, and then nobody is left who would stop its server.
        let (at, lasts) = (rng.between(from, from + span), rng.between(shape.ttl, shape.ttl * 3));
        let name = LEADER.to_owned();
        let second = if rng.one_in(2) { Kind::KillAgent(name.clone()) } else { Kind::FreezeAgent(name.clone()) };
        let later = at + rng.between(Duration::from_millis(500), shape.ttl / 3);
        faults.push(Fault { at, lasts, kind: Kind::CutEtcd(name) });
        faults.push(Fault { at: later, lasts, kind: second });
    }
    if rng.one_in(4) {
        let from_whom = if rng.one_in(8) { rng.pick(names).clone() } else { LEADER.to_owned() };
        let to = rng.one_in(2).then(|| rng.pick(names).clone());
        let at = rng.between(from, from + span);
        faults.push(Fault { at, lasts: Duration::ZERO, kind: Kind::Switchover(from_whom, to) });
    }
    faults.sort_by_key(|fault| fault.at);
    faults
}

fn one(rng: &mut Rng, shape: &Shape, names: &[String], from: Duration, span: Duration) -> Fault {
    let at = rng.between(from, from + span);
    let name = if rng.one_in(3) { LEADER.to_owned() } else { rng.pick(names).clone() };
    let other = rng.pick(names).clone();
    let secs = Duration::from_secs;
    let long = rng.between(Duration::from_millis(100), shape.ttl * 3);
    let short = rng.between(Duration::from_millis(10), grace(shape));
    let away = if rng.one_in(2) { short } else { long };
    let delay = rng.between(Duration::from_millis(5), secs(2));
    let (kind, lasts) = match rng.below(20) {
        0 => (Kind::KillAgent(name), away),
        1 | 2 => (Kind::KillServer(name), Duration::ZERO),
        3..=5 => (Kind::KillNode(name), long),
        6 => (Kind::StopAgent(name), long),
        7 => (Kind::FreezeAgent(name), away),
        8 => (Kind::FreezeNode(name), long),
        9 | 10 => (Kind::CutEtcd(name), long),
        11 if rng.one_in(2) => (Kind::EtcdOutage, short),
        11 => (Kind::EtcdOutage, long),
        12 => (Kind::EtcdElection, Duration::ZERO),
        13 => (Kind::SlowEtcd(name, delay), long),
        14 => (Kind::LoseAnswers(name), short),
        15 if name != other && name != LEADER => (Kind::CutReplication(name, other), long),
        15 => (Kind::SlowWatch(name, delay), long),
        16 => (Kind::SlowReplication(name, delay), long),
        17 => (Kind::KillNextPromoted(rng.between(Duration::ZERO, secs(1))), long + shape.ttl * 2),
        18 => (Kind::FailStart(name), Duration::ZERO),
        _ => (Kind::SlowStart(name, rng.between(secs(1), secs(20))), long),
    };
    Fault { at, lasts, kind }
}

impl World {
    /// Begins a fault.
    pub fn begin(&mut self, kind: &Kind) {
        match kind {
            Kind::KillAgent(name) => self.kill_agent(name),
            Kind::KillServer(name) => self.nodes[name].postgres.kill(),
            Kind::KillNode(name) => {
                self.kill_agent(name);
                self.nodes[name].postgres.kill();
                self.nodes[name].guardian.kill();
            }
            Kind::StopAgent(name) => self.terminate(name),
            Kind::FreezeAgent(name) => self.freeze_agent(name, true),
            Kind::FreezeNode(name) => {
                self.freeze_machine(name, true);
            }
            Kind::CutEtcd(name) => self.nodes[name].dcs.set_cut(true),
            Kind::EtcdOutage => self.store.set_outage(true),
            Kind::EtcdElection => self.store.change_leader(),
            Kind::SlowEtcd(name, by) => self.nodes[name].dcs.set_trip(slow(*by)),
            Kind::LoseAnswers(name) => {
                self.nodes[name].dcs.set_trip(Trip { answer_lost: true, ..Trip::default() });
            }
            Kind::SlowWatch(name, by) => self.nodes[name].dcs.set_watch_delay(*by),
            Kind::CutReplication(a, b) => self.network.cut(a, b),
            Kind::SlowReplication(name, by) => self.nodes[name].postgres.tune(|t| t.replication_delay = *by),
            Kind::SlowStart(name, by) => self.nodes[name].postgres.tune(|t| (t.start, t.recovery) = (*by, *by)),
            Kind::FailStart(name) => self.nodes[name].postgres.fail_starts(1),
            Kind::KillNextPromoted(after) => self.kill_next_promoted(*after),
            Kind::Switchover(leader, to) => {
                let (leader, to) = (MemberName::from(leader.as_str()), to.as_deref().map(MemberName::from));
                self.store.put_raw("failover", encode_failover(Some(&leader), to.as_ref(), None));
            }
        }
    }

    /// Ends a fault.
    pub fn end(&mut self, kind: &Kind) {
        match kind {
            Kind::KillAgent(name) | Kind::KillNode(name) | Kind::StopAgent(name) => self.start(name),
            Kind::FreezeAgent(name) => self.freeze_agent(name, false),
            Kind::FreezeNode(name) => {
                self.freeze_machine(name, false);
            }
            Kind::CutEtcd(name) => self.nodes[name].dcs.set_cut(false),
            Kind::EtcdOutage => self.store.set_outage(false),
            Kind::SlowEtcd(name, _) | Kind::LoseAnswers(name) => self.nodes[name].dcs.set_trip(Trip::default()),
            Kind::SlowWatch(name, _) => self.nodes[name].dcs.set_watch_delay(Duration::from_millis(2)),
            Kind::CutReplication(a, b) => self.network.heal(a, b),
            Kind::SlowReplication(name, _) => {
                let usual = self.nodes[name].timings;
                self.nodes[name].postgres.tune(|t| t.replication_delay = usual.replication_delay);
            }
            Kind::SlowStart(name, _) => {
                let usual = self.nodes[name].timings;
                self.nodes[name].postgres.tune(|t| (t.start, t.recovery) = (usual.start, usual.recovery));
            }
            Kind::KillNextPromoted(_) => {
                self.spare_the_promoted();
                self.start_all();
            }
            Kind::KillServer(_) | Kind::EtcdElection | Kind::FailStart(_) | Kind::Switchover(..) => {}
        }
    }
}

fn slow(by: Duration) -> Trip {
    Trip { request: by / 2, answer: by / 2, ..Trip::default() }
}
