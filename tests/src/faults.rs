//! What happens to a world: drawn from a seed, or told by a script.

use std::time::Duration;

use regent_core::request::{Request, Restart};
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
    /// SIGSTOP of a postmaster and its children.
    FreezeServer(String),
    /// SIGSTOP of a guardian.
    FreezeGuardian(String),
    /// SIGKILL of a guardian.
    KillGuardian(String),
    /// SIGSTOP of everything on a machine, as when a virtual machine is paused.
    FreezeNode(String),
    /// One member cannot reach etcd.
    CutEtcd(String),
    /// etcd answers nobody.
    EtcdOutage,
    /// etcd elects a leader: meanwhile it answers nobody, then every lease starts anew, and lasts a little longer.
    EtcdElection,
    /// One member's requests to etcd and their answers take this long.
    SlowEtcd(String, Duration),
    /// etcd's answers to one member take this long, its requests do not: a lease counts from long before its answer.
    LateAnswers(String, Duration),
    /// etcd's answers to one member get lost, its requests do not.
    LoseAnswers(String),
    /// One member's connections to etcd break as soon as a request has arrived.
    ResetEtcd(String),
    /// Every exchange of one member with etcd takes another time, and some answers get lost: requests overtake each other
    /// and are carried out long after nobody waits for them.
    ErraticEtcd(String, u64),
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
    /// Somebody sets a member's wall clock, by this much: forward, or back.
    StepWall(String, Duration, bool),
    /// The agent of whoever is promoted next is stopped, this long after.
    FreezeNextPromoted(Duration),
    /// Whoever is promoted next is killed, agent and server, this long after; it is started again at the end.
    KillNextPromoted(Duration),
    /// An operator asks for another leader: away from this one if it leads then, to that one if one is named.
    Switchover(String, Option<String>),
    /// An operator pauses the cluster, and resumes it at the end.
    Pause,
    /// An operator has a member's server restarted.
    Restart(String),
    /// An operator has a member copied anew, whatever is under way there if that is said.
    Reinitialize(String, bool),
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
            | Kind::FreezeServer(a)
            | Kind::FreezeGuardian(a)
            | Kind::KillGuardian(a)
            | Kind::FreezeNode(a)
            | Kind::CutEtcd(a)
            | Kind::ResetEtcd(a)
            | Kind::ErraticEtcd(a, _)
            | Kind::StepWall(a, ..)
            | Kind::SlowEtcd(a, _)
            | Kind::LateAnswers(a, _)
            | Kind::LoseAnswers(a)
            | Kind::SlowWatch(a, _)
            | Kind::SlowReplication(a, _)
            | Kind::SlowStart(a, _)
            | Kind::FailStart(a)
            | Kind::Restart(a)
            | Kind::Reinitialize(a, _)
            | Kind::Switchover(a, None) => vec![a],
            Kind::CutReplication(a, b) | Kind::Switchover(a, Some(b)) => vec![a, b],
            Kind::EtcdOutage
            | Kind::EtcdElection
            | Kind::FreezeNextPromoted(_)
            | Kind::KillNextPromoted(_)
            | Kind::Pause => Vec::new(),
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
            Kind::FreezeServer(a) => Kind::FreezeServer(aim(a)),
            Kind::FreezeGuardian(a) => Kind::FreezeGuardian(aim(a)),
            Kind::KillGuardian(a) => Kind::KillGuardian(aim(a)),
            Kind::FreezeNode(a) => Kind::FreezeNode(aim(a)),
            Kind::ResetEtcd(a) => Kind::ResetEtcd(aim(a)),
            Kind::ErraticEtcd(a, seed) => Kind::ErraticEtcd(aim(a), *seed),
            Kind::StepWall(a, by, back) => Kind::StepWall(aim(a), *by, *back),
            Kind::CutEtcd(a) => Kind::CutEtcd(aim(a)),
            Kind::SlowEtcd(a, by) => Kind::SlowEtcd(aim(a), *by),
            Kind::LateAnswers(a, by) => Kind::LateAnswers(aim(a), *by),
            Kind::LoseAnswers(a) => Kind::LoseAnswers(aim(a)),
            Kind::SlowWatch(a, by) => Kind::SlowWatch(aim(a), *by),
            Kind::CutReplication(a, b) => Kind::CutReplication(aim(a), aim(b)),
            Kind::SlowReplication(a, by) => Kind::SlowReplication(aim(a), *by),
            Kind::SlowStart(a, by) => Kind::SlowStart(aim(a), *by),
            Kind::FailStart(a) => Kind::FailStart(aim(a)),
            Kind::EtcdOutage => Kind::EtcdOutage,
            Kind::EtcdElection => Kind::EtcdElection,
            Kind::FreezeNextPromoted(after) => Kind::FreezeNextPromoted(*after),
            Kind::KillNextPromoted(after) => Kind::KillNextPromoted(*after),
            Kind::Switchover(a, to) => Kind::Switchover(aim(a), to.clone()),
            Kind::Pause => Kind::Pause,
            Kind::Restart(a) => Kind::Restart(aim(a)),
            Kind::Reinitialize(a, force) => Kind::Reinitialize(aim(a), *force),
        }
    }
}

/// The longest that an agent may be dead or frozen without its lease ending under it: what the last renewal left (it was
/// sent at most a quarter of the TTL ago, and allows for clocks), less the budget of a stop and some room to go on in. Beyond
/// that its guardian kills the server.
#[must_use]
pub fn grace(shape: &Shape) -> Duration {
    (shape.ttl * 7 / 10).saturating_sub(shape.stop_budget + Duration::from_millis(500))
}

/// A harmless fault may not cause a failover (L3).
#[must_use]
pub fn harmless(fault: &Fault, shape: &Shape, leader: &str) -> bool {
    let on_leader = fault.kind.members().iter().any(|name| *name == leader || *name == LEADER);
    let short = fault.lasts <= grace(shape);
    match &fault.kind {
        Kind::KillAgent(_) | Kind::FreezeAgent(_) | Kind::FreezeServer(_) | Kind::FreezeNode(_) => !on_leader || short,
        Kind::EtcdOutage => shape.failsafe || short,
        Kind::EtcdElection => short,
        Kind::CutEtcd(_) | Kind::LoseAnswers(_) => shape.failsafe || !on_leader || short,
        Kind::ResetEtcd(_) => !on_leader || short,
        Kind::SlowEtcd(_, by) | Kind::LateAnswers(_, by) => !on_leader || *by <= Duration::from_millis(200),
        Kind::SlowWatch(..) | Kind::CutReplication(..) | Kind::SlowReplication(..) | Kind::StepWall(..) => true,
        Kind::FreezeGuardian(_) | Kind::KillGuardian(_) => true,
        Kind::KillServer(_) | Kind::KillNode(_) | Kind::StopAgent(_) | Kind::ErraticEtcd(..) => !on_leader,
        Kind::SlowStart(..) | Kind::FailStart(_) => true,
        Kind::FreezeNextPromoted(_)
        | Kind::KillNextPromoted(_)
        | Kind::Switchover(..)
        | Kind::Pause
        | Kind::Restart(_)
        | Kind::Reinitialize(..) => false,
    }
}

/// Nobody is left who would stop a server whose agent and guardian are both gone (docs/safety.md, case 1): such a pair of
/// faults proves nothing.
fn spare_guardians(faults: &mut Vec<Fault>, shape: &Shape) {
    let guardian = |fault: &Fault| matches!(fault.kind, Kind::FreezeGuardian(_) | Kind::KillGuardian(_));
    let agent = |fault: &Fault| match fault.kind {
        Kind::KillAgent(_) | Kind::FreezeAgent(_) | Kind::FreezeNextPromoted(_) | Kind::KillNextPromoted(_) => true,
        Kind::KillServer(_)
        | Kind::KillNode(_)
        | Kind::StopAgent(_)
        | Kind::FreezeServer(_)
        | Kind::FreezeGuardian(_)
        | Kind::KillGuardian(_)
        | Kind::FreezeNode(_)
        | Kind::CutEtcd(_)
        | Kind::EtcdOutage
        | Kind::EtcdElection
        | Kind::SlowEtcd(..)
        | Kind::LateAnswers(..)
        | Kind::LoseAnswers(_)
        | Kind::ResetEtcd(_)
        | Kind::ErraticEtcd(..)
        | Kind::SlowWatch(..)
        | Kind::CutReplication(..)
        | Kind::SlowReplication(..)
        | Kind::SlowStart(..)
        | Kind::FailStart(_)
        | Kind::StepWall(..)
        | Kind::Switchover(..)
        | Kind::Pause
        | Kind::Restart(_)
        | Kind::Reinitialize(..) => false,
    };
    let away: Vec<_> =
        faults.iter().filter(|fault| agent(fault)).map(|fault| (fault.at, fault.at + fault.lasts)).collect();
    let near = |fault: &Fault| {
        let (from, until) = (fault.at.saturating_sub(shape.ttl), fault.at + fault.lasts + shape.ttl);
        away.iter().any(|(begin, end)| *begin < until && from < *end)
    };
    faults.retain(|fault| !guardian(fault) || !near(fault));
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
    if rng.one_in(3) {
        faults.extend(two_misfortunes(rng, shape, from, span));
    }
    if shape.failsafe && rng.one_in(3) {
        // A primary without etcd goes on; somebody who agreed to that is restarted; then the primary's agent answers no more.
        let (at, other) = (rng.between(from, from + span), rng.pick(names).clone());
        let asked = at + shape.loop_wait + shape.retry_timeout;
        let cut = Kind::CutEtcd(LEADER.to_owned());
        faults.push(Fault { at, lasts: shape.ttl * 3, kind: cut });
        faults.push(Fault { at: asked, lasts: Duration::from_millis(100), kind: Kind::KillAgent(other) });
        let silent = Kind::FreezeAgent(LEADER.to_owned());
        faults.push(Fault { at: asked + shape.ttl / 20, lasts: shape.ttl * 2, kind: silent });
    }
    spare_guardians(&mut faults, shape);
    if faults.is_empty() {
        faults.push(Fault { at: from, lasts: Duration::ZERO, kind: Kind::EtcdElection });
    }
    if rng.one_in(4) {
        let from_whom = if rng.one_in(8) { rng.pick(names).clone() } else { LEADER.to_owned() };
        let to = rng.one_in(2).then(|| rng.pick(names).clone());
        let at = rng.between(from, from + span);
        faults.push(Fault { at, lasts: Duration::ZERO, kind: Kind::Switchover(from_whom, to) });
    }
    faults.extend(requests(&faults, names, from, span));
    maintain(&mut faults, names, from, span);
    faults.sort_by_key(|fault| fault.at);
    faults
}

/// What operators ask of agents meanwhile, in one world of four. Drawn from chance of its own, so that a seed's faults stay what they
/// are.
fn requests(faults: &[Fault], names: &[String], from: Duration, span: Duration) -> Vec<Fault> {
    let seed = faults.iter().map(|fault| fault.at.as_micros() ^ fault.lasts.as_nanos()).fold(0, u128::wrapping_add);
    let mut rng = Rng::new(u64::try_from(seed & u128::from(u64::MAX)).unwrap_or_default());
    if !rng.one_in(4) {
        return Vec::new();
    }
    (0..=rng.below(3))
        .map(|_| {
            let name = if rng.one_in(2) { LEADER.to_owned() } else { rng.pick(names).clone() };
            let kind = if rng.one_in(3) { Kind::Reinitialize(name, rng.one_in(2)) } else { Kind::Restart(name) };
            Fault { at: rng.between(from, from + span), lasts: Duration::ZERO, kind }
        })
        .collect()
}

/// In one world of eight the cluster is paused, and operators choose who leads. Drawn from chance of its own. Nothing fences a primary
/// in pause, on purpose (docs/safety.md, case 9): what would need a fence does not happen meanwhile.
fn maintain(faults: &mut Vec<Fault>, names: &[String], from: Duration, span: Duration) {
    let seed = faults.iter().map(|fault| fault.at.as_nanos().rotate_left(7) ^ fault.lasts.as_micros());
    let seed = seed.fold(0x9A05E, u128::wrapping_add);
    let mut rng = Rng::new(u64::try_from(seed & u128::from(u64::MAX)).unwrap_or_default());
    if from.is_zero() || !rng.one_in(8) {
        return;
    }
    faults.retain(|fault| {
        matches!(fault.kind, Kind::KillServer(_) | Kind::StepWall(..) | Kind::SlowWatch(..) | Kind::SlowReplication(..))
            || matches!(fault.kind, Kind::Restart(_) | Kind::Reinitialize(..) | Kind::Switchover(..))
    });
    for _ in 0..=rng.below(3) {
        let kind = Kind::Switchover(LEADER.to_owned(), Some(rng.pick(names).clone()));
        faults.push(Fault { at: rng.between(from, from + span), lasts: Duration::ZERO, kind });
    }
    faults.push(Fault { at: from, lasts: rng.between(span / 4, span * 5 / 4), kind: Kind::Pause });
}

/// Two of the leader: etcd is away from it, and then nobody is left who would stop its server in time.
fn two_misfortunes(rng: &mut Rng, shape: &Shape, from: Duration, span: Duration) -> [Fault; 2] {
    let (at, lasts) = (rng.between(from, from + span), rng.between(shape.ttl, shape.ttl * 3));
    let later = at + rng.between(Duration::from_millis(500), shape.ttl / 2);
    let name = LEADER.to_owned();
    let first = match rng.below(6) {
        0 | 1 => Kind::LateAnswers(name.clone(), rng.between(Duration::from_secs(1), Duration::from_secs(3))),
        2 => Kind::ErraticEtcd(name.clone(), rng.draw()),
        _ => Kind::CutEtcd(name.clone()),
    };
    let second = match rng.below(3) {
        0 => Kind::KillAgent(name),
        1 => Kind::FreezeAgent(name),
        _ => Kind::FreezeNode(name),
    };
    // When it goes on, etcd is still away.
    let first = Fault { at, lasts: lasts + shape.ttl * 2, kind: first };
    [first, Fault { at: later, lasts, kind: second }]
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
    let (kind, lasts) = match rng.below(28) {
        0 => (Kind::KillAgent(name), away),
        1 | 2 => (Kind::KillServer(name), Duration::ZERO),
        3..=5 => (Kind::KillNode(name), long),
        6 => (Kind::StopAgent(name), long),
        7 => (Kind::FreezeAgent(name), away),
        8 => (Kind::FreezeNode(name), away),
        9 | 10 => (Kind::CutEtcd(name), long),
        11 if rng.one_in(2) => (Kind::EtcdOutage, short),
        11 => (Kind::EtcdOutage, long),
        12 => (Kind::EtcdElection, if rng.one_in(3) { Duration::ZERO } else { rng.between(Duration::ZERO, secs(3)) }),
        13 => (Kind::SlowEtcd(name, delay), long),
        14 => (Kind::LoseAnswers(name), short),
        15 if name != other && name != LEADER => (Kind::CutReplication(name, other), long),
        15 => (Kind::SlowWatch(name, delay), long),
        16 => (Kind::SlowReplication(name, delay), long),
        17 => (Kind::KillNextPromoted(rng.between(Duration::ZERO, secs(1))), long + shape.ttl * 2),
        18 => (Kind::FailStart(name), Duration::ZERO),
        19 | 20 => (Kind::FreezeServer(name), away),
        21 => (Kind::FreezeGuardian(name), long),
        22 => (Kind::KillGuardian(name), Duration::ZERO),
        23 => (Kind::ErraticEtcd(name, rng.draw()), long),
        26 => (Kind::ResetEtcd(name), short),
        24 => (Kind::StepWall(name, rng.between(secs(1), shape.ttl * 2), rng.one_in(2)), Duration::ZERO),
        25 => (Kind::FreezeNextPromoted(delay / 4), long + shape.ttl * 2),
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
            Kind::FreezeServer(name) => self.freeze_server(name, true),
            Kind::FreezeGuardian(name) => self.nodes[name].guardian.freeze(true),
            Kind::KillGuardian(name) => self.nodes[name].guardian.kill(),
            Kind::FreezeNode(name) => self.freeze_machine(name, true),
            Kind::CutEtcd(name) => self.nodes[name].dcs.set_cut(true),
            Kind::EtcdOutage | Kind::EtcdElection => self.store.set_outage(true),
            Kind::SlowEtcd(name, by) => self.nodes[name].dcs.set_trip(slow(*by)),
            Kind::LateAnswers(name, by) => {
                self.nodes[name].dcs.set_trip(Trip { answer: *by, ..Trip::default() });
            }
            Kind::LoseAnswers(name) => {
                self.nodes[name].dcs.set_trip(Trip { answer_lost: true, ..Trip::default() });
            }
            Kind::ResetEtcd(name) => self.nodes[name].dcs.set_trip(Trip { reset: true, ..Trip::default() }),
            Kind::ErraticEtcd(name, seed) => {
                let mut rng = Rng::new(*seed);
                self.nodes[name].dcs.set_trips(move |_| erratic(&mut rng));
            }
            Kind::SlowWatch(name, by) => self.nodes[name].dcs.set_watch_delay(*by),
            Kind::StepWall(name, by, back) => self.nodes[name].clock.step_wall(*by, *back),
            Kind::FreezeNextPromoted(after) => self.freeze_next_promoted(*after),
            Kind::CutReplication(a, b) => self.network.cut(a, b),
            Kind::SlowReplication(name, by) => self.nodes[name].postgres.tune(|t| t.replication_delay = *by),
            Kind::SlowStart(name, by) => self.nodes[name].postgres.tune(|t| (t.start, t.recovery) = (*by, *by)),
            Kind::FailStart(name) => self.nodes[name].postgres.fail_starts(1),
            Kind::KillNextPromoted(after) => self.kill_next_promoted(*after),
            Kind::Pause => self.patch("pause", true.into()),
            Kind::Restart(name) => self.ask(name, Request::Restart(Restart::default())),
            Kind::Reinitialize(name, force) => {
                self.ask(name, Request::Reinitialize { from_leader: false, force: *force });
            }
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
            Kind::FreezeServer(name) => self.freeze_server(name, false),
            Kind::FreezeGuardian(name) => self.nodes[name].guardian.freeze(false),
            Kind::FreezeNode(name) => self.freeze_machine(name, false),
            Kind::CutEtcd(name) => self.nodes[name].dcs.set_cut(false),
            Kind::EtcdOutage | Kind::EtcdElection => self.store.set_outage(false),
            Kind::SlowEtcd(name, _)
            | Kind::LateAnswers(name, _)
            | Kind::LoseAnswers(name)
            | Kind::ResetEtcd(name)
            | Kind::ErraticEtcd(name, _) => self.nodes[name].dcs.set_trip(Trip::default()),
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
            Kind::FreezeNextPromoted(_) => {
                self.spare_the_promoted();
                for name in self.names() {
                    self.freeze_agent(&name, false);
                }
            }
            Kind::KillNextPromoted(_) => {
                self.spare_the_promoted();
                self.start_all();
            }
            Kind::Pause => self.patch("pause", false.into()),
            Kind::KillServer(_)
            | Kind::KillGuardian(_)
            | Kind::StepWall(..)
            | Kind::FailStart(_)
            | Kind::Restart(_)
            | Kind::Reinitialize(..)
            | Kind::Switchover(..) => {}
        }
    }
}

fn slow(by: Duration) -> Trip {
    Trip { request: by / 2, answer: by / 2, ..Trip::default() }
}

/// One exchange in four is quick; of the others each way may take longer than anybody waits, and an answer may never come.
fn erratic(rng: &mut Rng) -> Trip {
    if rng.one_in(4) {
        return Trip::default();
    }
    let longest = Duration::from_millis(*rng.pick(&[50, 400, 1_500, 6_000]));
    let (request, answer) = (rng.between(Duration::ZERO, longest), rng.between(Duration::ZERO, longest));
    Trip { request, answer, answer_lost: rng.one_in(6), reset: rng.one_in(8) }
}
