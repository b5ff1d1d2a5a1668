//! A cluster in one thread: real agents and lease tasks, twins of etcd and PostgreSQL, virtual time, chance from one seed.
//!
//! An agent's process is everything that its `LocalSet` holds. Killing it drops that set, freezing it stops polling it; its
//! server lives on beside it, as a real one would.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use regent::agent::{Agent, Channels, Command, Judge, Seams};
use regent::clock::Clock;
use regent::guardian;
use regent::status::Status;
use regent_core::config::Config;
use regent_core::fence::Fence;
use regent_core::plan::Exit;
use regent_core::snapshot::LeaseView;
use regent_core::units::MemberName;
use regent_dcs::memory::{MemoryDcs, MemoryStore};
use regent_pgctl::fake::{FakeNetwork, FakePostgres, Timings, Transition};
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;

mod clock;
mod life;
mod machine;
mod network;

pub use clock::SimClock;
use life::{Life, Mortal, Process};
use machine::{Constant, Machine, conn_url, draw_timings, effective};
pub use network::SimNetwork;
use network::{Directory, Door};

use crate::guardian::SimGuardian;
use crate::rng::Rng;

/// What kind of cluster it is.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// How many members.
    pub members: u8,
    /// `ttl`
    pub ttl: Duration,
    /// `loop_wait`
    pub loop_wait: Duration,
    /// `retry_timeout`
    pub retry_timeout: Duration,
    /// Time for a forced stop.
    pub stop_budget: Duration,
}

impl Default for Shape {
    fn default() -> Self {
        let secs = Duration::from_secs;
        Shape { members: 3, ttl: secs(10), loop_wait: secs(3), retry_timeout: secs(3), stop_budget: secs(2) }
    }
}

/// The cluster.
pub struct World {
    /// Its shape.
    pub shape: Shape,
    /// etcd.
    pub store: MemoryStore,
    /// The servers, and the links between them.
    pub network: FakeNetwork,
    /// By name.
    pub nodes: BTreeMap<String, Node>,
    judge: Judge,
    directory: Directory,
    /// Those that wait for the next promotion; false: no more.
    assassins: Vec<Rc<Cell<bool>>>,
    epoch: tokio::time::Instant,
}

/// One machine.
pub struct Node {
    /// How fast its server is when nothing is wrong.
    pub timings: Timings,
    /// Its server.
    pub postgres: FakePostgres,
    /// Its way to etcd.
    pub dcs: MemoryDcs,
    /// Its guardian.
    pub guardian: SimGuardian,
    frozen: bool,
    /// Its agent is to be started when the machine goes on.
    start_later: bool,
    clock: SimClock,
    config: Config,
    process: Option<Process>,
}

impl World {
    /// Machines with empty disks; no agent runs yet. Call within a `LocalSet` on a paused clock.
    #[must_use]
    pub fn new(shape: Shape, rng: &mut Rng, judge: Judge) -> World {
        World::of(shape, judge, || {
            let drift_ppm = i32::try_from(rng.below(18_000)).unwrap_or(0) - 9_000; // within the 1 % that is allowed for
            let uptime = rng.between(Duration::from_secs(60), Duration::from_secs(100_000));
            Machine { drift_ppm, uptime, seed: rng.draw(), timings: draw_timings(rng) }
        })
    }

    /// The same with machines that are all alike and keep true time: for stories in which only what is told happens.
    #[must_use]
    pub fn plain(shape: Shape, judge: Judge) -> World {
        let mut seed = 0;
        World::of(shape, judge, || {
            seed += 1;
            Machine { drift_ppm: 0, uptime: Duration::from_secs(1_000), seed, timings: Timings::default() }
        })
    }

    fn of(shape: Shape, judge: Judge, mut machine: impl FnMut() -> Machine) -> World {
        let store = MemoryStore::new();
        let network = FakeNetwork::new();
        let epoch = tokio::time::Instant::now();
        let mut nodes = BTreeMap::new();
        for index in 0..shape.members {
            let name = char::from(b'a' + index).to_string();
            let Machine { drift_ppm, uptime, seed, timings } = machine();
            let clock = SimClock { epoch, uptime, drift_ppm, dice: Rc::new(RefCell::new(Rng::new(seed))) };
            let config = Config {
                ttl: shape.ttl,
                loop_wait: shape.loop_wait,
                retry_timeout: shape.retry_timeout,
                stop_budget: shape.stop_budget,
                primary_start_timeout: Duration::from_secs(30),
                ..Config::of(MemberName::from(name.as_str()))
            };
            let postgres = network.add(&name, &conn_url(&name));
            postgres.tune(|in_force| *in_force = timings);
            let dcs = store.client(name.as_str());
            let guardian = SimGuardian::start(clock.clone(), postgres.clone());
            let (frozen, start_later) = (false, false);
            let node = Node { timings, postgres, dcs, guardian, frozen, start_later, clock, config, process: None };
            nodes.insert(name, node);
        }
        World { shape, store, network, nodes, judge, directory: Directory::default(), assassins: Vec::new(), epoch }
    }

    /// Virtual time since the world began.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Changes the configuration of a member; it counts from the next start of its agent.
    pub fn configure(&mut self, name: &str, change: impl FnOnce(&mut Config)) {
        if let Some(node) = self.nodes.get_mut(name) {
            change(&mut node.config);
        }
    }

    /// Starts the agent of a member, unless it runs.
    pub fn start(&mut self, name: &str) {
        let (judge, directory) = (self.judge, self.directory.clone());
        let Some(node) = self.nodes.get_mut(name).filter(|node| !node.runs()) else { return };
        if node.frozen {
            node.start_later = true;
            return;
        }
        let effective = effective(&node.config, name);
        let (commands, inbox) = mpsc::channel(8);
        let (claims, claimed) = watch::channel(None);
        let (lease_sender, lease) = watch::channel(LeaseView::default());
        let first = regent::report::first_status(&effective, node.clock.now());
        let (status, published) = watch::channel(Arc::new(first));
        let seams = Seams {
            dcs: node.dcs.clone(),
            postgres: node.postgres.clone(),
            clock: node.clock.clone(),
            network: SimNetwork::of(directory.clone()),
        };
        let (fences, orders) = watch::channel(Fence::Keep);
        let (guarded, view) = watch::channel(guardian::View::default());
        let feed = guardian::feed(node.guardian.clone(), node.clock.clone(), orders, lease.clone(), guarded);
        let guardian = Some(guardian::Channels { fences, view });
        let channels = Channels { commands: inbox, claims, lease, guardian, status };
        let life = Rc::new(Life::default());
        let exit = Rc::new(Cell::new(None));
        let body = LocalSet::new();
        body.spawn_local(feed);
        body.spawn_local(regent::lease::keep(node.dcs.clone(), node.clock.clone(), claimed, lease_sender));
        let layers = Constant::of(effective);
        let (ended, own_life) = (exit.clone(), life.clone());
        let agent = Agent::new(seams, channels, Box::new(layers), judge);
        body.spawn_local(async move {
            let Ok(agent) = agent else { return };
            ended.set(Some(agent.run().await));
            own_life.killed.set(true); // The process ends, and its lease task with it.
            own_life.wake();
        });
        directory
            .borrow_mut()
            .insert(name.to_owned(), Door { status: published, life: life.clone(), clock: node.clock.clone() });
        tokio::task::spawn_local(Mortal { life: life.clone(), body: Some(body) });
        node.process = Some(Process { life, commands, exit });
    }

    /// Kills the agent of a member, as SIGKILL does: its server goes on.
    pub fn kill_agent(&mut self, name: &str) {
        if let Some(process) = self.nodes.get_mut(name).and_then(|node| node.process.take()) {
            process.life.killed.set(true);
            process.life.wake();
        }
    }

    /// Freezes the agent of a member, as SIGSTOP does, or lets it go on.
    pub fn freeze_agent(&self, name: &str, frozen: bool) {
        if let Some(process) = self.nodes.get(name).and_then(|node| node.process.as_ref()) {
            process.life.stopped.set(frozen);
            process.life.wake();
        }
    }

    /// Freezes everything on a machine, as when it is paused, or lets it go on.
    pub fn freeze_machine(&mut self, name: &str, frozen: bool) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        node.frozen = frozen;
        if frozen {
            node.postgres.freeze();
        } else {
            node.postgres.thaw();
        }
        node.guardian.freeze(frozen);
        if let Some(process) = &node.process {
            process.life.standing.set(frozen);
            process.life.wake();
        }
        if !frozen && std::mem::take(&mut node.start_later) {
            self.start(name);
        }
    }

    /// Nobody is killed for being promoted any more.
    pub fn spare_the_promoted(&mut self) {
        for armed in self.assassins.drain(..) {
            armed.set(false);
        }
    }

    /// Kills whoever is promoted next, agent and server, so long after.
    pub fn kill_next_promoted(&mut self, after: Duration) {
        let (directory, network) = (self.directory.clone(), self.network.clone());
        let armed = Rc::new(Cell::new(true));
        self.assassins.push(armed.clone());
        self.network.on_transition(Box::new(move |node, transition| {
            if transition != Transition::Promoted || !armed.replace(false) {
                return;
            }
            let (directory, network, node) = (directory.clone(), network.clone(), node.to_owned());
            tokio::task::spawn_local(async move {
                tokio::time::sleep(after).await;
                if let Some(door) = directory.borrow().get(&node) {
                    door.life.killed.set(true);
                    door.life.wake();
                }
                if let Some(postgres) = network.node(&node) {
                    postgres.kill();
                }
            });
        }));
    }

    /// Sends SIGTERM to the agent of a member.
    pub fn terminate(&self, name: &str) {
        if let Some(process) = self.nodes.get(name).and_then(|node| node.process.as_ref()) {
            // A full queue holds a stop already.
            let _ = process.commands.try_send(Command::Stop);
        }
    }

    /// What a member publishes, if its agent runs.
    #[must_use]
    pub fn status(&self, name: &str) -> Option<Arc<Status>> {
        let directory = self.directory.borrow();
        let door = directory.get(name).filter(|door| !door.life.killed.get())?;
        Some(door.status.borrow().clone())
    }

    /// Asks, whenever it is called, which members answer 200 to `GET /primary` (rest-api.md 5.1, W2).
    pub fn primary_check(&self) -> impl Fn() -> Vec<String> + 'static {
        let directory = self.directory.clone();
        move || network::answering(&directory)
    }

    /// What a member published last, whether its agent runs or not.
    #[must_use]
    pub fn last_words(&self, name: &str) -> Option<Arc<Status>> {
        self.directory.borrow().get(name).map(|door| door.status.borrow().clone())
    }

    /// What systemd and operators do: an agent that does not run is started.
    pub fn start_all(&mut self) {
        for name in self.names() {
            // Nobody starts again what says that it has another cluster's data.
            let foreign = self.last_words(&name).is_some_and(|words| words.rule == "leave_foreign_cluster");
            if !foreign {
                self.start(&name);
            }
        }
    }

    /// The holder of the leader key.
    #[must_use]
    pub fn leader(&self) -> Option<String> {
        self.store.leader().map(|(name, _)| name.0)
    }

    /// Names of all members.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }
}

impl Node {
    /// The configuration that its agent starts with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its agent runs.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.process.as_ref().is_some_and(|process| !process.life.killed.get())
    }

    /// How its agent ended, if it ended by itself.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        self.process.as_ref().and_then(|process| process.exit.get())
    }
}
