//! Carries a script out, one step after the other, and listens.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use regent::clock::Clock;
use regent_core::cluster::Schedule;
use regent_core::postgres::{StopMode, Upstream};
use regent_core::request::{Request, Restart};
use regent_core::units::Timeline;
use regent_dcs::memory::Trip;
use regent_pgctl::Postgres;
use regent_pgctl::fake::{FakePostgres, Rejected, Transition};
use serde_json::{Value, json};

use super::parse::{Script, number, on, setting, tag, time};
use super::print::{Event, story};
use super::{ScriptError, Story};
use crate::checks::{Consumer, Watch, look_back, not_converged};
use crate::simulation::honest;
use crate::trace;
use crate::world::{REMOTES, World};

/// The longest that `until` and the making of a cluster wait.
const PATIENCE: Duration = Duration::from_secs(600);
/// How closely they look.
const LOOK: Duration = Duration::from_millis(10);

/// Plays a script on a paused clock, within a `LocalSet`.
pub(super) async fn play(script: &Script<'_>) -> Result<Story, ScriptError> {
    trace::begin();
    let mut world = World::plain(script.shape, honest());
    for (name, change) in &script.configured {
        world.configure(name, change);
    }
    let watch = Watch::over(&world);
    let events = listen(&world);
    if script.shape.standby
        && let Some(remote) = world.network.node(REMOTES[0])
    {
        done(remote.bootstrap().await).map_err(|what| ScriptError { file: String::new(), line: 1, what })?;
    }
    if script.formed {
        form(&mut world).await;
    }
    trace::begin_again();
    events.borrow_mut().clear();
    let began = world.now();
    for (name, node) in &world.nodes {
        if node.config().tags.nofailover {
            watch.disturb(name, Duration::MAX);
        }
    }
    let mut stage =
        Stage { world, watch, writing: Rc::default(), written: Rc::default(), consumer: RefCell::default() };
    for line in &script.steps {
        if line.words.first() != Some(&"run") {
            events.borrow_mut().push((stage.world.now(), Event::Step(line.text.to_owned())));
        }
        stage.step(line.words.as_slice(), line.text).await.map_err(|what| script.wrong(line, what))?;
    }
    stage.writing.set(false);
    look_back(&stage.world, &stage.watch);
    for (at, objection) in trace::objections() {
        stage.watch.found("inspector", began + at, objection);
    }
    let events: Vec<_> = events.borrow().iter().map(|(at, event)| (at.saturating_sub(began), event.clone())).collect();
    Ok(story(script, &stage.world, events, &trace::lines(), &stage.watch.findings(), began).await)
}

/// Notes when servers begin and cease to accept writes.
fn listen(world: &World) -> Rc<RefCell<Vec<(Duration, Event)>>> {
    let events = Rc::new(RefCell::new(Vec::new()));
    let (notes, network) = (events.clone(), world.network.clone());
    world.network.on_transition(Box::new(move |node, transition| {
        if let Transition::Writable | Transition::NotWritable = transition {
            let writes = transition == Transition::Writable;
            notes.borrow_mut().push((network.now(), Event::Writes(node.to_owned(), writes)));
        }
    }));
    let network = world.network.clone();
    tokio::task::spawn_local(async move { network.drive().await });
    events
}

/// Makes a healthy cluster, led by its first member, and lets it settle.
async fn form(world: &mut World) {
    let deadline = world.now() + PATIENCE;
    for name in world.names() {
        world.start(&name);
        while world.leader().is_none() && world.now() < deadline {
            tokio::time::sleep(LOOK).await;
        }
    }
    while not_converged(world).is_some() && world.now() < deadline {
        tokio::time::sleep(LOOK).await;
    }
    tokio::time::sleep(world.shape.loop_wait * 2).await;
}

/// The world with its audience.
struct Stage {
    world: World,
    watch: Watch,
    /// Clients write all the time.
    writing: Rc<Cell<bool>>,
    /// Writes so far.
    written: Rc<Cell<u64>>,
    /// Reads a logical slot.
    consumer: RefCell<Consumer>,
}

impl Stage {
    /// One step: these arms are the language.
    async fn step(&mut self, words: &[&str], text: &str) -> Result<(), String> {
        if let ["stop" | "kill" | "freeze", name, ..] | ["cut", name, "etcd"] = *words {
            // Who is away is no candidate that anybody could have asked.
            self.watch.disturb(self.named(name)?, Duration::MAX);
        }
        match *words {
            // Time passes; or until a member decides by a rule, if it does.
            ["run", long] => tokio::time::sleep(time(long)?).await,
            ["until", name, rule] => self.until(self.named(name)?, rule).await?,

            // Agents: started, SIGKILL, SIGTERM, SIGSTOP, SIGCONT. A node is agent and server.
            ["start", name] => self.world.start(self.named(name)?),
            ["stop", name] => self.world.terminate(self.named(name)?),
            ["kill", name, "agent"] => self.world.kill_agent(self.named(name)?),
            ["kill", name, "server"] => self.server(name)?.kill(),
            ["kill", name, "node"] => {
                self.world.kill_agent(self.named(name)?);
                self.server(name)?.kill();
            }
            ["freeze", name, "agent"] => self.world.freeze_agent(self.named(name)?, true),
            ["freeze", name, "server"] => self.server(name)?.freeze(),
            ["freeze", name, "node"] => {
                self.world.freeze_agent(self.named(name)?, true);
                self.server(name)?.freeze();
            }
            // The same with its guardian, as when a virtual machine is paused.
            ["freeze", name, "machine"] => self.world.freeze_machine(name, true),
            ["thaw", name] => {
                self.watch.wakes(self.named(name)?, self.world.now());
                self.world.freeze_agent(name, false);
                self.server(name)?.thaw();
            }

            // etcd: the way to it, all of it, its keys.
            ["cut", name, "etcd"] => self.dcs(name)?.set_cut(true),
            ["heal", name, "etcd"] => {
                self.dcs(name)?.set_cut(false);
                self.dcs(name)?.set_trip(Trip::default());
            }
            ["lose", name, "answers"] => self.dcs(name)?.set_trip(Trip { answer_lost: true, ..Trip::default() }),
            ["slow", name, "etcd", by] => {
                let half = time(by)? / 2;
                self.dcs(name)?.set_trip(Trip { request: half, answer: half, ..Trip::default() });
            }
            ["slow", name, "watch", by] => self.dcs(name)?.set_watch_delay(time(by)?),
            ["etcd", "down"] => self.world.store.set_outage(true),
            ["etcd", "up"] => self.world.store.set_outage(false),
            ["etcd", "election"] => self.world.store.change_leader(),
            ["put", key, ..] => {
                let value = text.splitn(3, char::is_whitespace).nth(2).unwrap_or_default();
                self.world.store.put_raw(key, value);
            }
            ["delete", key] => self.world.store.delete_raw(key),
            ["revoke", name] => self.revoke(self.named(name)?)?,
            ["pause", word] => self.world.patch("pause", json!(on(word)?)),
            ["standby_cluster", "off"] => self.world.patch("standby_cluster", Value::Null),
            ["standby_cluster", host] => self.world.patch("standby_cluster", json!({"host": host})),

            // Replication, clients, servers, disks.
            ["cut", one, other] => self.world.network.cut(self.named(one)?, self.named(other)?),
            ["heal", one, other] => self.world.network.heal(self.named(one)?, self.named(other)?),
            ["lag", name, by] => {
                let by = time(by)?;
                self.server(name)?.tune(|timings| timings.replication_delay = by);
            }
            ["slow", name, what, by] => self.slow(self.named(name)?, what, time(by)?)?,
            ["fail", name, "start"] => self.server(name)?.fail_starts(1),
            ["fail", name, "pre_promote"] => self.server(name)?.refuse_promotions(1),
            ["recycle", name] => self.server(name)?.recycle_log(),
            ["back", "up", name] => self.server(name)?.back_up(),
            ["fail", name, "clone"] => self.server(name)?.fail_clones(1),
            ["fail", name, "rewind", times] => {
                self.server(name)?.fail_rewinds(u32::try_from(number(times)?).map_err(|error| error.to_string())?);
            }
            ["no", "hints", name] => self.server(name)?.forget_hints(),
            ["disk", name, "hangs"] => self.server(name)?.hang_disk(true),
            ["disk", name, "answers"] => self.server(name)?.hang_disk(false),
            ["empty", name] => self.server(name)?.lose_data(),
            ["write", count, "on", name] => {
                for _ in 0..number(count)? {
                    self.insert(name, None)?;
                }
            }
            ["write", bytes, "bytes", "on", name] => self.insert(name, Some(number(bytes)?))?,
            // A consumer of a logical slot reads all there is; and must have read what is there.
            ["consume", slot, "on", name] => self.consume(slot, name)?,
            ["lose", "slot", slot, "of", name] => self.server(name)?.lose_slot(slot),
            ["writers", word] => self.writers(on(word)?),

            // What counts from the next start of an agent.
            ["config", name, word] => self.world.configure(self.named(name)?, setting(word)?),
            ["tag", name, word] => self.world.configure(self.named(name)?, tag(word)?),

            ["guardian", name, "gone"] => self.guardian(name)?.refuse(true),
            ["guardian", name, "back"] => self.guardian(name)?.refuse(false),
            ["watchdog", name, "gone"] => self.world.break_watchdog(self.named(name)?, Some("no such device")),
            ["watchdog", name, "back"] => self.world.break_watchdog(self.named(name)?, None),

            // What an operator asks of an agent: a restart of its server, now or in a while, or a new copy.
            ["restart", name] => self.world.ask(self.named(name)?, Request::Restart(Restart::default())),
            ["restart", name, "pending"] => {
                self.world.ask(self.named(name)?, Request::Restart(Restart { pending: true, ..Restart::default() }));
            }
            ["restart", name, "in", long] => {
                let now = self.world.nodes.get(self.named(name)?).map(|node| node.clock.wall());
                let now = now.and_then(|now| now.duration_since(std::time::UNIX_EPOCH).ok()).unwrap_or_default();
                let at = now.saturating_add(time(long)?);
                let schedule = Some(Schedule { at: Some(at), text: String::new() });
                self.world.ask(self.named(name)?, Request::Restart(Restart { schedule, ..Restart::default() }));
            }
            ["reinitialize", name] => {
                self.world.ask(self.named(name)?, Request::Reinitialize { from_leader: false, force: false });
            }
            ["reinitialize", name, "force"] => {
                self.world.ask(self.named(name)?, Request::Reinitialize { from_leader: false, force: true });
            }

            // What PostgreSQL does by itself.
            ["replay", name, "pauses"] => self.server(name)?.pause_replay(),

            // What an operator does by hand, past the agent.
            ["operator", "initdb", name] => done(self.server(name)?.bootstrap().await)?,
            ["operator", "stop", name] => done(self.server(name)?.stop(StopMode::Fast, PATIENCE).await)?,
            ["operator", "start", name] => done(self.server(name)?.start_primary().await)?,
            ["operator", "start", name, "under", other] => {
                done(self.server(name)?.start_standby(&self.upstream(other)?).await)?;
            }
            ["operator", "clone", name, "from", other] => {
                let Upstream::Member { name: source, conn_url } = self.upstream(other)? else { return Ok(()) };
                done(self.server(name)?.clone_from(&source, &conn_url).await)?;
            }
            ["operator", "checkpoint", name] => done(self.server(name)?.checkpoint().await)?,
            ["operator", "promote", name, timeline] => {
                let timeline = Timeline(u32::try_from(number(timeline)?).map_err(|error| error.to_string())?);
                done(self.server(name)?.promote(timeline, None).await)?;
            }
            _ => return Err(format!("no such step: {text}")),
        }
        Ok(())
    }

    fn named<'n>(&self, name: &'n str) -> Result<&'n str, String> {
        let known = self.world.nodes.contains_key(name) || REMOTES.contains(&name);
        known.then_some(name).ok_or_else(|| format!("no member called {name}"))
    }

    fn server(&self, name: &str) -> Result<FakePostgres, String> {
        self.world.network.node(name).ok_or_else(|| format!("no server called {name}"))
    }

    fn guardian(&self, name: &str) -> Result<&crate::guardian::SimGuardian, String> {
        let node = self.world.nodes.get(name).ok_or_else(|| format!("no member called {name}"))?;
        Ok(&node.guardian)
    }

    fn dcs(&self, name: &str) -> Result<&regent_dcs::memory::MemoryDcs, String> {
        let node = self.world.nodes.get(name).ok_or_else(|| format!("no member called {name}"))?;
        Ok(&node.dcs)
    }

    fn upstream(&self, name: &str) -> Result<Upstream, String> {
        let name = self.named(name)?;
        let database = if REMOTES.contains(&name) { "" } else { "postgres" };
        Ok(Upstream::Member { name: name.into(), conn_url: format!("postgres://{name}:5432/{database}") })
    }

    async fn until(&self, name: &str, rule: &str) -> Result<(), String> {
        let (told, deadline) = (trace::lines().len(), self.world.now() + PATIENCE);
        while self.world.now() < deadline {
            let decided = |line: &trace::Line| line.member == name && line.rule == rule;
            if trace::lines().iter().skip(told).any(decided) {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(format!("{name} did not decide by {rule} within {PATIENCE:?}"))
    }

    /// Ends the lease that a member's own key hangs on, as `etcdctl lease revoke` does.
    fn revoke(&self, name: &str) -> Result<(), String> {
        let holder = self.world.store.leader().filter(|(holder, _)| holder.as_str() == name);
        let (_, lease) = holder.ok_or_else(|| format!("{name} does not hold the leader key"))?;
        self.world.store.revoke(lease);
        Ok(())
    }

    fn slow(&self, name: &str, what: &str, by: Duration) -> Result<(), String> {
        let server = self.server(name)?;
        let mut known = true;
        server.tune(|timings| match what {
            "start" => (timings.start, timings.recovery) = (by, by),
            "stop" => timings.stop = by,
            "promotion" => timings.promote = by,
            "checkpoint" => timings.checkpoint = by,
            "clone" => timings.clone = by,
            "rewind" => timings.rewind = by,
            "pre_promote" => timings.pre_promote = by,
            "initdb" => timings.bootstrap = by,
            _ => known = false,
        });
        if known { Ok(()) } else { Err(format!("{what} cannot be slow")) }
    }

    fn insert(&self, name: &str, bytes: Option<u64>) -> Result<(), String> {
        let (id, server) = (self.written.get() + 1, self.server(name)?);
        self.written.set(id);
        let answer = match bytes {
            None => server.insert(id),
            Some(bytes) => server.insert_bytes(id, bytes),
        };
        match answer {
            // It is done where it was written, and waits for its acknowledgement.
            Ok(_) | Err(Rejected::Waits) => Ok(()),
            Err(rejected) => Err(format!("{name}: {rejected}")),
        }
    }

    /// Reads on, and misses nothing that is in the log: the slot must be one that an earlier primary made.
    fn consume(&self, slot: &str, name: &str) -> Result<(), String> {
        let (server, mut consumer) = (self.server(name)?, self.consumer.borrow_mut());
        consumer.read(&server, slot).map_err(|rejected| format!("{name}: {rejected}"))?;
        let missed = consumer.missed(&server);
        if missed.is_empty() { Ok(()) } else { Err(format!("the consumer of {slot} missed {missed:?}")) }
    }

    /// Clients that write to every member all the time, also to the wrong ones, and ask who calls itself primary.
    fn writers(&self, wanted: bool) {
        let running = self.writing.replace(wanted);
        if running || !wanted {
            return;
        }
        let nodes: Vec<_> = self.world.nodes.values().map(|node| node.postgres.clone()).collect();
        let (network, watch, check) = (self.world.network.clone(), self.watch.clone(), self.world.primary_check());
        let store = self.world.store.clone();
        let (writing, written) = (self.writing.clone(), self.written.clone());
        tokio::task::spawn_local(async move {
            while writing.get() {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let primaries = check();
                if primaries.len() > 1 {
                    watch.found("P5", network.now(), format!("{primaries:?} all answer 200 to /primary"));
                }
                for node in &nodes {
                    written.set(written.get() + 1);
                    watch.wrote(&network, &store, node, written.get());
                }
                watch.sync_is_sound(&network, &store);
            }
        });
    }
}

fn done(outcome: Result<(), regent_pgctl::PgError>) -> Result<(), String> {
    outcome.map_err(|error| error.to_string())
}
