//! A cluster in one thread: real agents and lease tasks, twins of etcd and PostgreSQL, virtual time, chance from one seed.
//!
//! An agent's process is everything that its `LocalSet` holds. Killing it drops that set, freezing it stops polling it; its
//! server lives on beside it, as a real one would.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use regent::agent::{Agent, Channels, Command, Seams};
use regent::clock::Clock;
use regent::failsafe;
use regent::guardian;
use regent::journal::Journal;
use regent::status::Status;
use regent::watchdog;
use regent_core::config::{Config, Logical, PermanentSlot, SyncMode};
use regent_core::fence::Fence;
use regent_core::plan::Exit;
use regent_core::request::Request;
use regent_core::snapshot::LeaseView;
use regent_core::units::MemberName;
use regent_dcs::memory::{MemoryDcs, MemoryStore};
use regent_pgctl::fake::{FakeNetwork, FakePostgres, Timings, Transition};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;

mod clock;
mod flaw;
mod life;
mod machine;
mod network;

pub use clock::{Gait, RATE_ERROR_PPM, SimClock};
use flaw::Renewer;
pub use flaw::{Make, Renewals, Time};
use life::{Life, Mortal, Process};
use machine::{Constant, Machine, conn_url, draw_timings, effective, remote};
pub use network::SimNetwork;
use network::{Agreed, Directory, Door};

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
    /// `synchronous_mode`
    pub synchronous: SyncMode,
    /// `synchronous_mode_strict`
    pub strict: bool,
    /// `failsafe_mode`
    pub failsafe: bool,
    /// It has a permanent logical slot, [`SLOT`].
    pub logical: bool,
    /// It is a standby cluster, and follows the server of another site.
    pub standby: bool,
}

/// The permanent logical slot of worlds that have one.
pub const SLOT: &str = "x";

/// What it decodes.
#[must_use]
pub fn logical_slot() -> PermanentSlot {
    PermanentSlot::Logical(Logical { database: "postgres".into(), plugin: "pgoutput".into() })
}

/// Servers that no agent looks after. A standby cluster follows the first one.
pub const REMOTES: [&str; 2] = ["r", "q"];

impl Default for Shape {
    fn default() -> Self {
        let secs = Duration::from_secs;
        Shape {
            members: 3,
            ttl: secs(10),
            loop_wait: secs(3),
            retry_timeout: secs(3),
            stop_budget: secs(2),
            synchronous: SyncMode::Off,
            strict: false,
            failsafe: false,
            logical: false,
            standby: false,
        }
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
    make: Make,
    directory: Directory,
    agreed: Agreed,
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
    /// Why its watchdog, which is required everywhere, cannot be used.
    watchdog: watch::Sender<Option<String>>,
    /// The machine stands still.
    frozen: bool,
    /// Its server is stopped.
    server_stopped: bool,
    /// Its agent is to be started when the machine goes on.
    start_later: bool,
    /// Its clock.
    pub clock: SimClock,
    config: Config,
    process: Option<Process>,
}

impl World {
    /// Machines with empty disks; no agent runs yet. Call within a `LocalSet` on a paused clock.
    #[must_use]
    pub fn new(shape: Shape, rng: &mut Rng, make: Make) -> World {
        let world = World::of(shape, make, || {
            let gait = Gait::draw(rng);
            let uptime = rng.between(Duration::from_secs(60), Duration::from_secs(100_000));
            Machine { gait, uptime, seed: rng.draw(), timings: draw_timings(rng) }
        });
        // etcd ends a lease up to half a second late.
        world.store.set_expiry_delay(Duration::from_millis(*rng.pick(&[0, 0, 200, 500])));
        if rng.one_in(2) {
            world.store.hold_requests();
        }
        world
    }

    /// The same with machines that are all alike and keep true time: for stories in which only what is told happens.
    #[must_use]
    pub fn plain(shape: Shape, make: Make) -> World {
        let mut seed = 0;
        World::of(shape, make, || {
            seed += 1;
            Machine { gait: Gait::Steady(0), uptime: Duration::from_secs(1_000), seed, timings: Timings::default() }
        })
    }

    fn of(shape: Shape, make: Make, mut machine: impl FnMut() -> Machine) -> World {
        let store = MemoryStore::new();
        let network = FakeNetwork::new();
        let epoch = tokio::time::Instant::now();
        let mut nodes = BTreeMap::new();
        for index in 0..shape.members {
            let name = char::from(b'a' + index).to_string();
            let Machine { gait, uptime, seed, timings } = machine();
            let clock = SimClock::new(epoch, uptime, gait, make.time, seed);
            let config = Config {
                ttl: shape.ttl,
                loop_wait: shape.loop_wait,
                retry_timeout: shape.retry_timeout,
                stop_budget: shape.stop_budget,
                synchronous_mode: shape.synchronous,
                synchronous_mode_strict: shape.strict,
                failsafe_mode: shape.failsafe,
                primary_start_timeout: Duration::from_secs(30),
                permanent_slots: shape.logical.then(|| (SLOT.to_owned(), logical_slot())).into_iter().collect(),
                standby_cluster: shape.standby.then(|| remote(REMOTES[0])),
                ..Config::of(MemberName::from(name.as_str()))
            };
            let postgres = network.add(&name, &conn_url(&name));
            postgres.tune(|in_force| *in_force = timings);
            let dcs = store.client(name.as_str());
            let guardian = SimGuardian::start(clock.clone(), postgres.clone());
            let node = Node {
                timings,
                postgres,
                dcs,
                guardian,
                frozen: false,
                server_stopped: false,
                start_later: false,
                clock,
                config,
                process: None,
                watchdog: watch::Sender::new(None),
            };
            nodes.insert(name, node);
        }
        for name in REMOTES {
            let _unmanaged = network.add(name, &remote(name).conn_url().unwrap_or_default());
        }
        World {
            shape,
            store,
            network,
            nodes,
            make,
            directory: Directory::default(),
            agreed: Agreed::default(),
            assassins: Vec::new(),
            epoch,
        }
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
        let (make, directory) = (self.make, self.directory.clone());
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
            network: SimNetwork::of(directory.clone(), self.agreed.clone(), self.epoch),
        };
        let (fences, orders) = watch::channel(Fence::Keep);
        let (guarded, view) = watch::channel(guardian::View::default());
        let feed = guardian::feed(node.guardian.clone(), node.clock.clone(), orders, lease.clone(), guarded);
        let guardian = Some(guardian::Channels { fences, view });
        let (wanted, heard) =
            watch::channel(watchdog::Order { fence: Fence::Keep, settings: machine::watchdog_of(&node.config) });
        let (told, state) = watch::channel(watchdog::State::default());
        let watchdog = watchdog::Channels { orders: wanted, state };
        let failsafe = failsafe::Door::default();
        let journal = Journal::begun_at(node.clock.wall());
        let channels = Channels {
            commands: inbox,
            claims,
            lease,
            guardian,
            watchdog,
            failsafe: failsafe.clone(),
            status,
            journal,
        };
        let life = Rc::new(Life::default());
        let exit = Rc::new(Cell::new(None));
        let body = LocalSet::new();
        body.spawn_local(feed);
        body.spawn_local(machine::watchdog_answers(heard, told, node.watchdog.subscribe()));
        let renewer = Renewer { dcs: node.dcs.clone(), clock: node.clock.clone(), renewals: make.renewals };
        body.spawn_local(regent::lease::keep(renewer, node.clock.clone(), claimed, lease_sender));
        let layers = Constant::of(effective);
        let (ended, own_life) = (exit.clone(), life.clone());
        let agent = Agent::new(seams, channels, Box::new(layers), make.judge);
        body.spawn_local(async move {
            let Ok(agent) = agent else { return };
            ended.set(Some(agent.run().await));
            own_life.killed.set(true); // The process ends, and its lease task with it.
            own_life.wake();
        });
        directory.borrow_mut().insert(
            name.to_owned(),
            Door { failsafe, status: published, life: life.clone(), clock: node.clock.clone() },
        );
        tokio::task::spawn_local(Mortal { life: life.clone(), body: Some(body) });
        node.process = Some(Process { life, commands, exit });
    }

    /// The watchdog of a member cannot be used any more, or can again
    pub fn break_watchdog(&self, name: &str, why: Option<&str>) {
        if let Some(node) = self.nodes.get(name) {
            node.watchdog.send_replace(why.map(str::to_owned));
        }
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
        node.freeze_server();
        node.guardian.stand(frozen);
        node.clock.stand(frozen);
        if let Some(process) = &node.process {
            process.life.standing.set(frozen);
            process.life.wake();
        }
        if !frozen && std::mem::take(&mut node.start_later) {
            self.start(name);
        }
    }

    /// Freezes a postmaster and its children, as SIGSTOP does, or lets them go on.
    pub fn freeze_server(&mut self, name: &str, stopped: bool) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.server_stopped = stopped;
            node.freeze_server();
        }
    }

    /// Nobody is killed for being promoted any more.
    pub fn spare_the_promoted(&mut self) {
        for spared in self.assassins.drain(..) {
            spared.set(true);
        }
    }

    /// Kills whoever is promoted next, agent and server, so long after.
    pub fn kill_next_promoted(&mut self, after: Duration) {
        let network = self.network.clone();
        self.strike_next_promoted(after, move |name, life| {
            life.killed.set(true);
            if let Some(postgres) = network.node(name) {
                postgres.kill();
            }
        });
    }

    /// Stops the agent of whoever is promoted next, so long after; its guardian is all that is left.
    pub fn freeze_next_promoted(&mut self, after: Duration) {
        self.strike_next_promoted(after, |_, life| life.stopped.set(true));
    }

    fn strike_next_promoted(&mut self, after: Duration, strike: impl Fn(&str, &Life) + 'static) {
        let (directory, strike) = (self.directory.clone(), Rc::new(strike));
        let (armed, spared) = (Rc::new(Cell::new(true)), Rc::new(Cell::new(false)));
        self.assassins.push(spared.clone());
        self.network.on_transition(Box::new(move |node, transition| {
            if transition != Transition::Promoted || spared.get() || !armed.replace(false) {
                return;
            }
            let (directory, strike, node) = (directory.clone(), strike.clone(), node.to_owned());
            let spared = spared.clone();
            tokio::task::spawn_local(async move {
                tokio::time::sleep(after).await;
                let life = directory.borrow().get(&node).map(|door| door.life.clone());
                // The fault may have ended meanwhile.
                if let Some(life) = life.filter(|_| !spared.get()) {
                    strike(&node, &life);
                    life.wake();
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

    /// Asks something of the agent of a member, as its REST API does; nobody waits for the answer.
    pub fn ask(&self, name: &str, request: Request) {
        if let Some(process) = self.nodes.get(name).and_then(|node| node.process.as_ref()) {
            let (reply, _) = tokio::sync::oneshot::channel();
            // A full queue answers 503.
            let _ = process.commands.try_send(Command::Request { request, reply });
        }
    }

    /// Changes the cluster's configuration, as `PATCH /config` does.
    pub fn patch(&self, key: &str, value: Value) {
        let stored = self.store.raw("config").and_then(|raw| serde_json::from_slice(&raw).ok());
        let mut config: Value = stored.unwrap_or_else(|| json!({}));
        config[key] = value;
        self.store.put_raw("config", config.to_string());
    }

    /// What a member publishes, if its agent runs.
    #[must_use]
    pub fn status(&self, name: &str) -> Option<Arc<Status>> {
        let directory = self.directory.borrow();
        let door = directory.get(name).filter(|door| !door.life.killed.get())?;
        Some(door.status.borrow().clone())
    }

    /// S13: tells, whenever it is called, which primary goes on in failsafe mode without the word of which member, or on a word
    /// that is older than its promise.
    pub fn unasked(&self) -> impl Fn() -> Vec<(String, String)> + 'static {
        let (directory, agreed, network) = (self.directory.clone(), self.agreed.clone(), self.network.clone());
        let (store, epoch, ttl) = (self.store.clone(), self.epoch, self.shape.ttl);
        move || {
            let (directory, agreed, now) = (directory.borrow(), agreed.borrow(), epoch.elapsed());
            let goes_on = |door: &Door| {
                let active = door.status.borrow().failsafe_until.is_some_and(|until| door.clock.now() < until);
                active && !door.life.killed.get() && !door.life.frozen()
            };
            let mut missing = Vec::new();
            for name in network.writable_now().into_iter().filter(|name| directory.get(name).is_some_and(goes_on)) {
                for other in store.failsafe().into_iter().map(|other| other.0).filter(|other| *other != name) {
                    let pair = (name.clone(), other);
                    if agreed.get(&pair).and_then(|times| times.last()).is_none_or(|at| now > *at + ttl) {
                        missing.push(pair);
                    }
                }
            }
            missing
        }
    }

    /// Until when, from `at` on and without a gap, all of `others` were bound by the word that they gave to `name`.
    pub fn sworn(&self, name: &str, others: &[String], at: Duration) -> Duration {
        let agreed = self.agreed.borrow();
        let bound = |other: &String| {
            let times = agreed.get(&(name.to_owned(), other.clone())).into_iter().flatten();
            times.fold(at, |end, given| if *given <= end { end.max(*given + self.shape.ttl) } else { end })
        };
        others.iter().map(bound).min().unwrap_or(Duration::MAX)
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
    fn freeze_server(&self) {
        if self.frozen || self.server_stopped {
            self.postgres.freeze();
        } else {
            self.postgres.thaw();
        }
    }

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
