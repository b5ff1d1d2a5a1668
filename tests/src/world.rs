//! A cluster in one thread: real agents and lease tasks, twins of etcd and PostgreSQL, virtual time, chance from one seed.
//!
//! An agent's process is everything that its `LocalSet` holds. Killing it drops that set, freezing it stops polling it; its
//! server lives on beside it, as a real one would.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use regent::agent::{Agent, Channels, Command, Judge, Network, Seams};
use regent::clock::Clock;
use regent::guardian;
use regent::layers::{Effective, Layers};
use regent::status::Status;
use regent_core::config::{Config, SyncMode, Tags};
use regent_core::fence::Fence;
use regent_core::peers::PeerReply;
use regent_core::plan::Exit;
use regent_core::snapshot::LeaseView;
use regent_core::units::{Instant, MemberName};
use regent_dcs::memory::{MemoryDcs, MemoryStore};
use regent_pgctl::fake::{FakeNetwork, FakePostgres, Timings, Transition};
use regent_pgctl::settings::{Credentials, Settings};
use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;

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
}

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

/// What is a machine's own.
struct Machine {
    drift_ppm: i32,
    uptime: Duration,
    seed: u64,
    timings: Timings,
}

/// A running agent.
struct Process {
    life: Rc<Life>,
    commands: mpsc::Sender<Command>,
    exit: Rc<Cell<Option<Exit>>>,
}

#[derive(Default)]
struct Life {
    /// The process is stopped.
    stopped: Cell<bool>,
    /// Its machine stands still.
    standing: Cell<bool>,
    killed: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Life {
    fn frozen(&self) -> bool {
        self.stopped.get() || self.standing.get()
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// A process that can be stopped and killed from outside.
struct Mortal {
    life: Rc<Life>,
    body: Option<LocalSet>,
}

impl Future for Mortal {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        *self.life.waker.borrow_mut() = Some(context.waker().clone());
        if self.life.killed.get() {
            self.body = None;
            return Poll::Ready(());
        }
        if self.life.frozen() {
            return Poll::Pending;
        }
        match &mut self.body {
            Some(body) => Pin::new(body).poll(context),
            None => Poll::Ready(()),
        }
    }
}

/// One machine's clock: it began at its own time and runs at its own rate.
#[derive(Clone)]
pub struct SimClock {
    epoch: tokio::time::Instant,
    uptime: Duration,
    /// Parts per million that this clock is fast (or slow).
    drift_ppm: i32,
    dice: Rc<RefCell<Rng>>,
}

impl Clock for SimClock {
    fn now(&self) -> Instant {
        let elapsed = self.epoch.elapsed();
        let error = elapsed / 1_000_000 * self.drift_ppm.unsigned_abs();
        let local = if self.drift_ppm < 0 { elapsed.saturating_sub(error) } else { elapsed + error };
        Instant(self.uptime + local)
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + self.epoch.elapsed()
    }

    fn dice(&self) -> u64 {
        self.dice.borrow_mut().draw()
    }
}

type Directory = Rc<RefCell<BTreeMap<String, Door>>>;

/// Where others find an agent's REST API.
struct Door {
    status: watch::Receiver<Arc<Status>>,
    life: Rc<Life>,
    clock: SimClock,
}

/// The network between the agents' REST APIs.
#[derive(Clone)]
pub struct SimNetwork {
    directory: Directory,
}

impl Network for SimNetwork {
    async fn ask(&self, whom: BTreeMap<MemberName, String>, within: Duration) -> BTreeMap<MemberName, PeerReply> {
        let mut silent = false;
        let replies: BTreeMap<_, _> = whom
            .into_keys()
            .map(|name| {
                let reply = self.answer(&name, &mut silent);
                (name, reply)
            })
            .collect();
        // A process that is stopped keeps its connections and answers nothing.
        tokio::time::sleep(if silent { within } else { Duration::from_millis(2) }).await;
        replies
    }

    async fn lives(&self, api_url: String, _within: Duration) -> bool {
        let host = api_url.split(['/', ':']).find(|part| !part.is_empty() && *part != "http").unwrap_or_default();
        self.is_alive(host)
    }
}

impl SimNetwork {
    fn is_alive(&self, name: &str) -> bool {
        self.directory.borrow().get(name).is_some_and(|door| !door.life.killed.get())
    }

    fn answer(&self, name: &MemberName, silent: &mut bool) -> PeerReply {
        let directory = self.directory.borrow();
        let Some(door) = directory.get(name.as_str()).filter(|door| !door.life.killed.get()) else {
            return PeerReply::Unreachable("connection refused".into());
        };
        if door.life.frozen() {
            *silent = true;
            return PeerReply::Unreachable("no answer".into());
        }
        let status = door.status.borrow().clone();
        let stale = door.clock.now() >= status.next_turn_due + status.ttl;
        match status.as_peer().filter(|_| !stale) {
            Some(answer) => PeerReply::Answer(answer),
            None => PeerReply::Unreachable("its PostgreSQL does not answer".into()),
        }
    }
}

/// A configuration that is what it is, but for what the `config` key says of pause.
struct Constant {
    effective: Effective,
    remembered: RefCell<Option<Value>>,
}

impl Layers for Constant {
    fn effective(&self, dynamic: Option<&Value>) -> Result<Effective, String> {
        let mut effective = self.effective.clone();
        effective.core.pause = dynamic.is_some_and(|dynamic| dynamic["pause"] == json!(true));
        Ok(effective)
    }

    fn restorable(&self) -> Value {
        let core = &self.effective.core;
        let first = || json!({"ttl": core.ttl.as_secs(), "loop_wait": core.loop_wait.as_secs()});
        self.remembered.borrow().clone().unwrap_or_else(first)
    }

    fn remember(&self, dynamic: &Value) {
        *self.remembered.borrow_mut() = Some(dynamic.clone());
    }

    fn reload(&mut self) -> Result<(), String> {
        Ok(())
    }
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
                synchronous_mode: shape.synchronous,
                synchronous_mode_strict: shape.strict,
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
        let effective = Effective {
            core: node.config.clone(),
            postgres: settings(name),
            scope: "demo".into(),
            conn_url: conn_url(name),
            api_url: format!("http://{name}:8008/patroni"),
            proxy_url: None,
            tags: published_tags(&node.config.tags),
            noloadbalance: false,
        };
        let (commands, inbox) = mpsc::channel(8);
        let (claims, claimed) = watch::channel(None);
        let (lease_sender, lease) = watch::channel(LeaseView::default());
        let first = regent::report::first_status(&effective, node.clock.now());
        let (status, published) = watch::channel(Arc::new(first));
        let seams = Seams {
            dcs: node.dcs.clone(),
            postgres: node.postgres.clone(),
            clock: node.clock.clone(),
            network: SimNetwork { directory: directory.clone() },
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
        let layers = Constant { effective, remembered: RefCell::default() };
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
        move || Self::answering(&directory)
    }

    fn answering(directory: &Directory) -> Vec<String> {
        let directory = directory.borrow();
        let serves = |door: &Door| !door.life.killed.get() && !door.life.frozen();
        let positive = |door: &Door| {
            let status = door.status.borrow();
            let runs = status.sql.as_ref().is_some_and(|sql| !sql.in_recovery);
            runs && !status.demoting && status.lock_until.is_some_and(|until| door.clock.now() < until)
        };
        directory.iter().filter(|(_, door)| serves(door) && positive(door)).map(|(name, _)| name.clone()).collect()
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

/// No two machines are alike.
fn draw_timings(rng: &mut Rng) -> Timings {
    let millis = Duration::from_millis;
    let slow_replication = rng.one_in(3);
    Timings {
        start: rng.between(millis(50), millis(900)),
        recovery: rng.between(millis(100), millis(4_000)),
        stop: rng.between(millis(20), millis(1_500)),
        immediate_stop: rng.between(millis(5), millis(300)),
        promote: rng.between(millis(30), millis(600)),
        checkpoint: rng.between(millis(10), millis(2_000)),
        clone: rng.between(millis(500), millis(6_000)),
        bootstrap: rng.between(millis(500), millis(4_000)),
        replication_delay: rng.between(millis(1), millis(if slow_replication { 400 } else { 10 })),
        ..Timings::default()
    }
}

/// The tags that say something, as a member key has them.
fn published_tags(tags: &Tags) -> Map<String, Value> {
    let mut published = Map::new();
    for (name, set) in [("nofailover", tags.nofailover), ("clonefrom", tags.clonefrom), ("nostream", tags.nostream)] {
        if set {
            published.insert(name.to_owned(), json!(true));
        }
    }
    if tags.failover_priority != Tags::default().failover_priority && !tags.nofailover {
        published.insert("failover_priority".to_owned(), json!(tags.failover_priority));
    }
    if let Some(upstream) = &tags.replicatefrom {
        published.insert("replicatefrom".to_owned(), json!(upstream.as_str()));
    }
    published
}

fn conn_url(name: &str) -> String {
    format!("postgres://{name}:5432/postgres")
}

fn settings(name: &str) -> Settings {
    Settings {
        scope: "demo".into(),
        name: name.into(),
        data_dir: "/data".into(),
        config_dir: "/data".into(),
        bin_dir: None,
        pgpass: "/pgpass".into(),
        listen_addresses: "*".into(),
        port: 5432,
        local_host: "localhost".into(),
        use_unix_socket: false,
        database: "postgres".into(),
        superuser: Credentials::default(),
        replication: Credentials::default(),
        rewind: None,
        parameters: BTreeMap::new(),
        pg_hba: None,
        pg_ident: None,
        bootstrap_pg_hba: Vec::new(),
        initdb_options: Vec::new(),
        basebackup_options: Vec::new(),
        post_bootstrap: None,
        recovery_conf: BTreeMap::new(),
        use_slots: true,
        synchronous: false,
        sync_names: None,
        custom_conf: None,
        pg_ctl_timeout: 60,
    }
}
