//! What must hold at every instant, and what must hold after healing. Ids are those of DESIGN section 8.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use regent_core::config::SyncMode;
use regent_core::quorum;
use regent_core::units::Timeline;
use regent_dcs::memory::MemoryStore;
use regent_pgctl::fake::{FakeNetwork, FakePostgres, Rejected, Transition};

use crate::world::World;

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The invariant.
    pub id: &'static str,
    /// When.
    pub at: Duration,
    /// What was seen.
    pub what: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {:.3}s: {}", self.id, self.at.as_secs_f64(), self.what)
    }
}

/// A frozen machine that wakes may complete a write before its agent's first instruction (DESIGN section 4, "what a lease
/// cannot do"); its agent has this long to look at the clock and kill.
pub const WAKING: Duration = Duration::from_millis(150);

/// Collects findings while a world runs.
#[derive(Clone, Default)]
pub struct Watch(Rc<RefCell<Seen>>);

#[derive(Default)]
struct Seen {
    findings: Vec<Finding>,
    /// Machines that were frozen, and when they went on.
    woke: Vec<(String, Duration)>,
    /// Who began to accept writes (true) or ceased to (false), and when.
    writable: Vec<(Duration, String, bool)>,
    /// Members that a fault touched, until when nobody may expect them to have voted.
    disturbed: BTreeMap<String, Duration>,
    frozen: BTreeSet<String>,
    /// Acknowledged writes are not lost, and who has most of the log is not the question.
    synchronous: bool,
    /// Writes that a primary acknowledged alone while `/sync` named it: nobody who lacks them may follow it.
    alone: BTreeSet<u64>,
    demotions: u64,
    promotions: Vec<(Duration, String)>,
}

impl Seen {
    /// This machine has just gone on.
    fn wakes(&self, name: &str, now: Duration) -> bool {
        self.woke.iter().any(|(woken, at)| woken == name && *at <= now && now < *at + WAKING)
    }

    /// If this member accepted writes at that moment: until when it went on to.
    fn wrote_at(&self, name: &str, at: Duration) -> Option<Duration> {
        let mut own = self.writable.iter().filter(|(_, node, _)| node == name);
        let before = own.clone().take_while(|(when, ..)| *when <= at).last()?;
        let next = own.find(|(when, ..)| *when > at).map_or(Duration::MAX, |(when, ..)| *when);
        before.2.then_some(next)
    }
}

fn sync_key(store: &MemoryStore) -> Option<serde_json::Value> {
    store.raw("sync").and_then(|raw| serde_json::from_slice(&raw).ok())
}

impl Watch {
    /// Watches every transition of every server, from now on.
    pub fn over(world: &World) -> Watch {
        let watch = Watch::default();
        watch.0.borrow_mut().synchronous = world.shape.synchronous != SyncMode::Off;
        let (seen, network) = (watch.clone(), world.network.clone());
        world.network.on_transition(Box::new(move |node, transition| seen.transition(&network, node, transition)));
        watch
    }

    /// What was found.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        self.0.borrow().findings.clone()
    }

    /// Reports a finding.
    pub fn found(&self, id: &'static str, at: Duration, what: impl Into<String>) {
        self.0.borrow_mut().findings.push(Finding { id, at, what: what.into() });
    }

    /// A fault touches this member until then (and a while after, for its server to come back).
    pub fn disturb(&self, name: &str, until: Duration) {
        let mut seen = self.0.borrow_mut();
        let entry = seen.disturbed.entry(name.to_owned()).or_default();
        *entry = (*entry).max(until);
    }

    /// This machine goes on now, after it was frozen as a whole.
    pub fn wakes(&self, name: &str, now: Duration) {
        self.0.borrow_mut().woke.push((name.to_owned(), now));
    }

    /// Promotions so far, with their times.
    #[must_use]
    pub fn promotions(&self) -> Vec<(Duration, String)> {
        self.0.borrow().promotions.clone()
    }

    /// How often a server stopped accepting writes so far.
    #[must_use]
    pub fn demotions(&self) -> u64 {
        self.0.borrow().demotions
    }

    fn transition(&self, network: &FakeNetwork, node: &str, transition: Transition) {
        let now = network.now();
        match transition {
            Transition::Frozen => drop(self.0.borrow_mut().frozen.insert(node.to_owned())),
            Transition::Thawed => drop(self.0.borrow_mut().frozen.remove(node)),
            Transition::Writable => self.0.borrow_mut().writable.push((now, node.to_owned(), true)),
            Transition::NotWritable => {
                let mut seen = self.0.borrow_mut();
                seen.writable.push((now, node.to_owned(), false));
                // A frozen server writes nothing, and is no less a primary.
                seen.demotions += u64::from(!seen.frozen.contains(node));
            }
            Transition::Promoted => {
                self.0.borrow_mut().promotions.push((now, node.to_owned()));
                self.nothing_acknowledged_is_lost(network, node, now);
                if !self.0.borrow().synchronous {
                    self.best_candidate_won(network, node, now);
                }
            }
            Transition::Started | Transition::Stopping | Transition::Stopped | Transition::Crashed => {}
        }
        self.one_writer(network, now);
    }

    /// S1: at most one node completes a write at any instant of true time.
    pub fn one_writer(&self, network: &FakeNetwork, now: Duration) {
        let mut seen = self.0.borrow_mut();
        let writers = network.writable_now();
        let counted: Vec<_> = writers.iter().filter(|name| !seen.wakes(name, now)).collect();
        if counted.len() > 1 {
            let what = format!("{counted:?} accept writes at once");
            seen.findings.push(Finding { id: "S1", at: now, what });
        }
    }

    /// S3, S4: a new primary has every write that was acknowledged because standbys had it.
    fn nothing_acknowledged_is_lost(&self, network: &FakeNetwork, winner: &str, now: Duration) {
        let Some(node) = network.node(winner) else { return };
        let has: BTreeSet<u64> = node.records().into_iter().collect();
        let alone = self.0.borrow().alone.clone();
        let lost: Vec<u64> = network.acknowledged().into_iter().chain(alone).filter(|id| !has.contains(id)).collect();
        if !lost.is_empty() {
            self.found(
                "S3",
                now,
                format!("{winner} was promoted without {} acknowledged writes: {lost:?}", lost.len()),
            );
        }
    }

    /// A client wrote, and was told so at once, or waits for standbys.
    pub fn wrote(&self, network: &FakeNetwork, store: &MemoryStore, node: &FakePostgres, id: u64) {
        let answer = node.insert(id);
        if matches!(answer, Ok(_) | Err(Rejected::Waits)) {
            self.one_writer(network, network.now());
        }
        let named = || sync_key(store).is_some_and(|sync| sync["leader"] == node.name().as_str());
        if answer.is_ok() && self.0.borrow().synchronous && named() {
            self.0.borrow_mut().alone.insert(id);
        }
    }

    /// S5: at this instant, whatever set of standbys acknowledges a commit meets whatever set could elect a primary (Q0); in
    /// the mode `on` that is: nobody is listed that the server does not wait for.
    pub fn sync_is_sound(&self, network: &FakeNetwork, store: &MemoryStore) {
        let Some(sync) = sync_key(store).filter(|_| self.0.borrow().synchronous) else { return };
        let holder = store.leader().map(|(name, _)| name.0);
        let writable = network.writable_now().into_iter().filter(|name| Some(name) == holder.as_ref());
        let waits = |name: String| {
            let waits = network.node(&name).map(|node| node.waits()).unwrap_or_default();
            waits.into_iter().map(move |waits| (name.clone(), waits))
        };
        for (name, waits) in writable.flat_map(waits) {
            let voters = sync["sync_standby"].as_str().unwrap_or_default();
            let state = quorum::State {
                me: name.clone(),
                leader: sync["leader"].as_str().unwrap_or_default().to_owned(),
                quorum: sync["quorum"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or_default(),
                voters: voters.split(',').filter(|voter| !voter.is_empty()).map(str::to_owned).collect(),
                numsync: waits.numsync,
                sync: waits.names,
                confirmed: 0,
                active: quorum::Names::new(),
                wanted: 0,
            };
            if !state.overlaps() {
                self.found(
                    "S5",
                    network.now(),
                    format!("{name} waits for {} of {:?}, /sync is {sync}", state.numsync, state.sync),
                );
            }
        }
    }

    /// Nobody is promoted while a healthy standby that could have been asked had writes that the winner lacks (R17); but for a
    /// candidate that the operator named, whose lag is not looked at again (S10).
    fn best_candidate_won(&self, network: &FakeNetwork, winner: &str, now: Duration) {
        let lines = crate::trace::lines();
        let ran = lines.iter().rfind(|line| line.member == winner && line.rule.starts_with("run_"));
        if ran.is_some_and(|line| line.rule == "run_as_candidate") {
            return;
        }
        let Some(node) = network.node(winner) else { return };
        let mine: BTreeSet<u64> = node.records().into_iter().collect();
        let settled: BTreeSet<u64> = network
            .history()
            .into_iter()
            .filter(|written| written.at + Duration::from_secs(5) < now)
            .filter_map(|written| if let regent_pgctl::fake::Kind::Write(id) = written.kind { Some(id) } else { None })
            .collect();
        for other in ["a", "b", "c", "d", "e"] {
            let disturbed = {
                let seen = self.0.borrow();
                seen.frozen.contains(other) || seen.disturbed.get(other).is_some_and(|until| now < *until)
            };
            let Some(peer) = network.node(other).filter(|_| other != winner && !disturbed) else { continue };
            if !peer.is_standby() || peer.end().map(|(timeline, _)| timeline) > node.end().map(|(t, _)| t) {
                continue;
            }
            // What belongs to another cluster is nobody's loss here.
            if peer.system_id() != node.system_id() {
                continue;
            }
            let lost: Vec<u64> =
                peer.records().into_iter().filter(|id| settled.contains(id) && !mine.contains(id)).collect();
            if !lost.is_empty() && !self.is_a_lost_branch(&peer.end(), &node.end()) {
                self.found("R17", now, format!("{winner} was promoted without {} writes that {other} has", lost.len()));
            }
        }
    }

    /// A standby that stayed on a branch which an earlier failover left is no better candidate.
    fn is_a_lost_branch(
        &self,
        peer: &Option<(Timeline, regent_core::units::Lsn)>,
        winner: &Option<(Timeline, regent_core::units::Lsn)>,
    ) -> bool {
        // The winner has just begun a new timeline; a peer that was level with it is exactly one promotion behind or less
        // than that with skipped numbers. Anything older had the chance to follow and could not.
        let age = winner.map_or(0, |(t, _)| t.0).saturating_sub(peer.map_or(0, |(t, _)| t.0));
        age > 1
    }
}

/// Reads a logical slot on whoever is a primary, and must miss nothing, whoever becomes one (P8).
#[derive(Default)]
pub struct Consumer {
    /// Which slot it was last. One that was made anew, because nobody had a copy, begins where it was made.
    made: u64,
    read: BTreeSet<u64>,
}

impl Consumer {
    /// Reads what there is, and confirms it.
    ///
    /// # Errors
    /// It is no primary that answers, or has no such slot.
    pub fn read(&mut self, server: &FakePostgres, slot: &str) -> Result<(), Rejected> {
        let (made, new) = server.consume(slot)?;
        if self.made != made {
            let older = server.records().into_iter().filter(|id| new.first().is_none_or(|first| id < first));
            (self.made, self.read) = (made, older.collect());
        }
        self.read.extend(new);
        Ok(())
    }

    /// Writes in the log of the primary that it has just read from, and that it never got.
    #[must_use]
    pub fn missed(&self, server: &FakePostgres) -> Vec<u64> {
        server.records().into_iter().filter(|id| !self.read.contains(id)).collect()
    }
}

/// What must hold of the whole run, looking back at it.
pub fn look_back(world: &World, watch: &Watch) {
    let now = world.now();
    // S2: a timeline number never names two histories.
    for (id, timeline) in world.network.split_timelines() {
        watch.found("S2", now, format!("timeline {timeline} of {id} names two histories"));
    }
    for ((id, timeline), writers) in world.network.timeline_writers() {
        if writers.len() > 1 {
            watch.found("S2", now, format!("{writers:?} both wrote timeline {timeline} of {id}"));
        }
    }
    // S10, X4: never without a copy, and no rewind from a stale control file.
    for (id, what) in world.network.misuses() {
        watch.found(id, now, what);
    }
    identities(world, watch);
    leadership(world, watch);
    fences(world, watch);
}

/// S6: when etcd ends the lease of the leader key, its holder has ceased to accept writes, by whatever clock. In failsafe mode
/// it may go on while every other member of the `failsafe` key is bound by its word (S13), or until it has the key again.
fn fences(world: &World, watch: &Watch) {
    let log = world.store.log_since(regent_core::units::Revision(0));
    for (at, lease) in world.store.expired() {
        let key = log.iter().take_while(|event| event.at < at).filter(|event| event.key == "leader").last();
        let Some(key) = key.filter(|key| key.lease == Some(lease)) else { continue };
        let Some(holder) = key.value.as_deref() else { continue };
        let holder = String::from_utf8_lossy(holder).into_owned();
        let late = {
            let seen = watch.0.borrow();
            seen.wrote_at(&holder, at).filter(|_| !seen.wakes(&holder, at))
        };
        let Some(until) = late else { continue };
        let again = log.iter().find(|event| event.at > at && event.key == "leader" && event.value == key.value);
        let until = until.min(again.map_or(Duration::MAX, |event| event.at));
        let named = log.iter().take_while(|event| event.at < at).filter(|event| event.key == "failsafe").last();
        let named = named.and_then(|event| event.value.as_deref()).map(|value| members_besides(&holder, value));
        if until > named.map_or(at, |others| world.sworn(&holder, &others, at)) {
            let over = until.saturating_sub(at).min(world.now());
            watch.found("S6", at, format!("the lease of {holder} ended, and it accepted writes {over:?} longer"));
        }
    }
}

fn members_besides(holder: &str, failsafe: &[u8]) -> Vec<String> {
    let named: std::collections::BTreeMap<String, String> = serde_json::from_slice(failsafe).unwrap_or_default();
    named.into_keys().filter(|name| name != holder).collect()
}

/// S2: a cluster that was given its name keeps it. (One whose making was given up before that was nobody's.)
fn identities(world: &World, watch: &Watch) {
    let mut known: Option<Vec<u8>> = None;
    for event in world.store.log_since(regent_core::units::Revision(0)) {
        // Garbage names nothing.
        let number = |value: &Vec<u8>| str::from_utf8(value).is_ok_and(|text| text.parse::<u64>().is_ok());
        let named = event.value.filter(|value| event.key == "initialize" && number(value));
        if let (Some(old), Some(new)) = (&known, &named)
            && old != new
        {
            watch.found("S2", event.at, "the cluster's identity changed");
        }
        known = named.or(known);
    }
}

/// S7: leadership changes only by a transaction on a free key. S8: epoch and promised timeline never fall.
fn leadership(world: &World, watch: &Watch) {
    let mut holder: Option<Vec<u8>> = None;
    let mut promised = (0, 0);
    for event in world.store.log_since(regent_core::units::Revision(0)) {
        match event.key.as_str() {
            "leader" => {
                if let (Some(old), Some(new)) = (&holder, &event.value)
                    && old != new
                {
                    let name = String::from_utf8_lossy(new).into_owned();
                    watch.found("S7", event.at, format!("{name} took a key that was held"));
                }
                holder = event.value.clone();
            }
            "regent/promise" => {
                let json: serde_json::Value =
                    event.value.as_deref().and_then(|v| serde_json::from_slice(v).ok()).unwrap_or_default();
                let number = |field: &str| json[field].as_u64().unwrap_or_default();
                let now = (number("epoch"), number("timeline"));
                if now.0 <= promised.0 || now.1 < promised.1 {
                    watch.found("S8", event.at, format!("the promise fell from {promised:?} to {now:?}"));
                }
                promised = now;
            }
            _ => {}
        }
    }
}

/// L1 and L2, some time after the last fault ended: writable in one place, and everyone follows or says why not.
#[must_use]
pub fn not_converged(world: &World) -> Option<String> {
    let writers = world.network.writable_now();
    let leader = world.leader();
    if world.shape.standby {
        let streams =
            |name: &String| world.status(name).is_some_and(|s| s.sql.as_ref().is_some_and(|sql| sql.streaming));
        let missing = world.nodes.keys().find(|name| !streams(name));
        let missing = missing.map(|name| format!("L2: {name} does not stream"));
        return missing.or_else(|| leader.is_none().then(|| "L1: nobody leads".to_owned()));
    }
    let [writer] = writers.as_slice() else { return Some(format!("L1: writable: {writers:?}, leader: {leader:?}")) };
    if leader.as_ref() != Some(writer) {
        return Some(format!("L1: {writer} is writable, the leader key says {leader:?}"));
    }
    for (name, node) in &world.nodes {
        if name == writer {
            continue;
        }
        let Some(status) = world.last_words(name) else {
            return Some(format!("L2: the agent of {name} never ran: {:?}", node.exit()));
        };
        let streams = node.runs() && status.sql.as_ref().is_some_and(|sql| sql.in_recovery && sql.streaming);
        // Where the operator allowed a clone, no log of its own keeps a member out.
        let helpless = matches!(status.rule, "stay_down_diverged" | "report_unusable_data");
        let explained = helpless && !node.config().remove_on_divergence || status.rule == "leave_foreign_cluster";
        if !streams && !explained {
            return Some(format!("L2: {name} does not stream and does not say why: {} ({})", status.rule, status.why));
        }
    }
    None
}
