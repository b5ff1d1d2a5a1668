//! The whole network as one value: nodes, links, what is due when. Time moves only in [`World::advance`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use regent_core::postgres::{ClusterState, ControlData, Upstream};
use regent_core::units::{Lsn, MemberName, SystemId, Timeline};

use super::Timings;
use super::Transition;
use super::wal::{CHECKPOINT_BYTES, END_OF_RECOVERY_BYTES, Entry, Kind, Log, Record};
use crate::settings::Settings;

/// Everything.
#[derive(Debug, Default)]
pub(super) struct World {
    /// Time since the network was made.
    pub(super) now: Duration,
    pub(super) nodes: Vec<Node>,
    /// Pairs of nodes that cannot talk, the smaller index first.
    cuts: BTreeSet<(usize, usize)>,
    /// What happens when; the number keeps the order of things due at one instant.
    queue: BTreeMap<(Duration, u64), Due>,
    sequence: u64,
    /// Every record ever written, by id.
    pub(super) records: Vec<Record>,
    /// Continuations of a record on its own timeline: a second one is a split history.
    continued: BTreeSet<usize>,
    /// Timelines that were begun.
    begun: BTreeSet<(SystemId, Timeline)>,
    /// Timelines that name two histories.
    pub(super) split: BTreeSet<(SystemId, Timeline)>,
    last_system_id: u64,
    last_pid: u32,
    /// Transitions that observers have not seen yet.
    pub(super) outbox: VecDeque<(MemberName, Transition)>,
    /// Observers are being called: time stands still.
    pub(super) dispatching: bool,
    /// Something happened that a waiting future may care for.
    pub(super) changed: bool,
}

/// One machine.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: MemberName,
    pub(super) conn_url: String,
    pub(super) timings: Timings,
    pub(super) data: Data,
    pub(super) server: Option<Server>,
    pub(super) disk_hung: bool,
    /// The postmaster that the last observation saw.
    pub(super) watched: Option<u32>,
    pub(super) failing_starts: u32,
    pub(super) failing_clones: u32,
    pub(super) settings: Option<Settings>,
    /// The clone or initdb that runs.
    pub(super) build: Option<Build>,
    /// Events that came due while the server could not handle them.
    deferred: Vec<Due>,
    was_writable: bool,
}

/// The data directory.
#[derive(Debug)]
pub(super) enum Data {
    Empty,
    Unfinished,
    Present(Box<Cluster>),
}

/// What a usable data directory holds.
#[derive(Clone, Debug)]
pub(super) struct Cluster {
    pub(super) log: Log,
    pub(super) control: ControlData,
    pub(super) standby_signal: bool,
    pub(super) backup_label: bool,
    pub(super) slots: BTreeSet<String>,
    pub(super) upstream: Upstream,
}

/// A postmaster and its children.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) pid: u32,
    pub(super) started_at: Duration,
    pub(super) in_recovery: bool,
    pub(super) phase: Phase,
    /// Stopped by SIGSTOP.
    pub(super) frozen: bool,
    /// The timeline that a promotion is about to write.
    pub(super) promoting: Option<Timeline>,
    /// The WAL receiver's connection.
    pub(super) link: Option<Link>,
    /// There was a WAL receiver since the start.
    pub(super) received: bool,
}

/// How far a server is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Starting,
    Accepting,
    /// Fast stop; once the shutdown checkpoint is written, it waits for its WAL senders.
    Stopping {
        written: bool,
    },
    /// Every process was told to quit.
    Quitting,
}

/// A replication connection, as the standby has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) upstream: usize,
    /// The upstream's postmaster when it was made.
    pub(super) pid: u32,
    /// Nothing flowed through it before.
    since: Duration,
    /// Nothing gets through since then, and nobody noticed yet.
    silent: Option<Duration>,
}

/// A clone or initdb in progress.
#[derive(Debug)]
pub(super) struct Build {
    pub(super) since: Duration,
    pub(super) until: Duration,
    /// A clone's source and its postmaster.
    pub(super) source: Option<(usize, u32)>,
    /// Why it failed.
    pub(super) failed: Option<String>,
}

/// An event of one server's life.
#[derive(Clone, Copy, Debug)]
struct Due {
    node: usize,
    pid: u32,
    event: Event,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Started,
    ShutdownCheckpoint,
    /// A WAL sender may be done; only the look at the world matters.
    SenderDone,
    Quit,
    Promoted,
}

impl World {
    pub(super) fn add(&mut self, name: MemberName, conn_url: String) -> usize {
        self.nodes.push(Node {
            name,
            conn_url,
            timings: Timings::default(),
            data: Data::Empty,
            server: None,
            disk_hung: false,
            watched: None,
            failing_starts: 0,
            failing_clones: 0,
            settings: None,
            build: None,
            deferred: Vec::new(),
            was_writable: false,
        });
        self.nodes.len() - 1
    }

    pub(super) fn find(&self, conn_url: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.conn_url == conn_url)
    }

    pub(super) fn pid(&self, node: usize) -> Option<u32> {
        self.nodes[node].server.as_ref().map(|server| server.pid)
    }

    /// When the next event is due.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.queue.keys().next().map(|(at, _)| *at)
    }

    /// Moves to the next event or to `now`, whichever is earlier; true when `now` is reached.
    pub(super) fn advance(&mut self, now: Duration) -> bool {
        let Some(((at, _), due)) = self.queue.first_key_value().map(|(key, due)| (*key, *due)).filter(|e| e.0.0 <= now)
        else {
            if now > self.now {
                self.now = now;
                self.settle();
            }
            return true;
        };
        self.queue.pop_first();
        self.now = self.now.max(at);
        // What was delivered by this instant is delivered, even if the event is the end of its source.
        self.deliver();
        self.happen(due);
        self.changed = true;
        self.settle();
        false
    }

    fn schedule(&mut self, after: Duration, node: usize, event: Event) {
        let Some(pid) = self.pid(node) else { return };
        self.sequence += 1;
        self.queue.insert((self.now.saturating_add(after), self.sequence), Due { node, pid, event });
        self.changed = true;
    }

    pub(super) fn report(&mut self, node: usize, transition: Transition) {
        self.outbox.push_back((self.nodes[node].name.clone(), transition));
        self.changed = true;
    }

    // ---- the log

    /// Appends a record to a node's own log.
    pub(super) fn write(&mut self, node: usize, kind: Kind, bytes: u64, timeline: Timeline) -> Lsn {
        let now = self.now;
        let Data::Present(cluster) = &mut self.nodes[node].data else { return Lsn::default() };
        let system_id = cluster.control.system_id;
        let (id, start) = (self.records.len(), cluster.log.end());
        let split = match cluster.log.last() {
            Some(last) if last.timeline == timeline => !self.continued.insert(last.id),
            Some(_) | None => !self.begun.insert((system_id, timeline)),
        };
        if split {
            self.split.insert((system_id, timeline));
        }
        let end = Lsn(start.0.saturating_add(bytes));
        let record = Record { id, writer: node, system_id, timeline, start, end, kind, at: now };
        self.records.push(record);
        cluster.log.push(Entry { record, arrived: now });
        if kind.is_checkpoint() {
            cluster.checkpointed(&record);
            cluster.control.min_recovery = None;
        }
        self.changed = true;
        end
    }

    /// Sets up a new cluster and runs its primary.
    pub(super) fn initialise(&mut self, node: usize) {
        self.last_system_id += 1;
        let control = ControlData {
            system_id: SystemId(7_000_000_000_000_000_000 + self.last_system_id),
            state: ClusterState::InProduction,
            timeline: Timeline(1),
            checkpoint: Lsn::default(),
            min_recovery: None,
            rewindable: true,
        };
        self.nodes[node].data = Data::Present(Box::new(Cluster {
            log: Log::default(),
            control,
            standby_signal: false,
            backup_label: false,
            slots: BTreeSet::new(),
            upstream: Upstream::Nobody,
        }));
        self.write(node, Kind::Checkpoint, CHECKPOINT_BYTES, Timeline(1));
        self.spawn(node, false, Phase::Accepting);
        self.report(node, Transition::Started);
    }

    /// A base backup: the source's directory as it is now, with a label and without signal file and slots.
    pub(super) fn copy(&mut self, source: usize, node: usize) {
        let Data::Present(theirs) = &self.nodes[source].data else { return };
        let slots = BTreeSet::new();
        let mine = Cluster { standby_signal: false, backup_label: true, slots, ..Cluster::clone(theirs) };
        self.nodes[node].data = Data::Present(Box::new(mine));
    }

    // ---- a server's life

    fn spawn(&mut self, node: usize, in_recovery: bool, phase: Phase) {
        self.last_pid += 1;
        self.nodes[node].server = Some(Server {
            pid: self.last_pid,
            started_at: self.now,
            in_recovery,
            phase,
            frozen: false,
            promoting: None,
            link: None,
            received: false,
        });
    }

    /// Begins a start; the directory is there and nothing runs.
    pub(super) fn begin_start(&mut self, node: usize, in_recovery: bool) {
        let timings = self.nodes[node].timings;
        let Data::Present(cluster) = &mut self.nodes[node].data else { return };
        let state = cluster.control.state;
        let clean = matches!(state, ClusterState::ShutDown | ClusterState::ShutDownInRecovery) && !cluster.backup_label;
        cluster.standby_signal = in_recovery;
        cluster.control.state = match (in_recovery, state) {
            (true, _) => ClusterState::InArchiveRecovery,
            (false, ClusterState::ShutDown) if clean => ClusterState::StartingUp,
            (false, _) => ClusterState::InCrashRecovery,
        };
        self.spawn(node, in_recovery, Phase::Starting);
        self.schedule(if clean { timings.start } else { timings.recovery }, node, Event::Started);
    }

    /// Sends the signal of a stop.
    pub(super) fn begin_stop(&mut self, node: usize, fast: bool) {
        let timings = self.nodes[node].timings;
        let Node { server: Some(server), data: Data::Present(cluster), .. } = &mut self.nodes[node] else { return };
        match (server.phase, fast) {
            (Phase::Accepting, true) => {
                server.phase = Phase::Stopping { written: false };
                if !server.in_recovery {
                    cluster.control.state = ClusterState::ShuttingDown;
                }
                self.schedule(timings.stop, node, Event::ShutdownCheckpoint);
            }
            (Phase::Starting, _) | (Phase::Accepting | Phase::Stopping { .. }, false) => {
                server.phase = Phase::Quitting;
                self.schedule(timings.immediate_stop, node, Event::Quit);
            }
            (Phase::Stopping { .. } | Phase::Quitting, _) => return,
        }
        self.report(node, Transition::Stopping);
    }

    pub(super) fn begin_promotion(&mut self, node: usize, timeline: Timeline) {
        let after = self.nodes[node].timings.promote;
        if let Some(server) = &mut self.nodes[node].server {
            server.promoting = Some(timeline);
            self.schedule(after, node, Event::Promoted);
        }
    }

    /// The server is gone, however that came.
    pub(super) fn end(&mut self, node: usize, how: Transition) {
        if self.nodes[node].server.take().is_some() {
            self.nodes[node].deferred.clear();
            self.report(node, how);
        }
    }

    fn happen(&mut self, due: Due) {
        let node = &mut self.nodes[due.node];
        let Some(server) = node.server.as_mut().filter(|server| server.pid == due.pid) else { return };
        if server.frozen || (node.disk_hung && due.event != Event::Quit) {
            node.deferred.push(due);
            return;
        }
        let (phase, in_recovery) = (server.phase, server.in_recovery);
        let Data::Present(cluster) = &mut node.data else { return };
        match (due.event, phase) {
            (Event::Started, Phase::Starting) => {
                server.phase = Phase::Accepting;
                cluster.backup_label = false;
                let (timeline, end) = (cluster.log.timeline(), cluster.log.end());
                if in_recovery {
                    cluster.control.min_recovery.get_or_insert((timeline, end));
                } else {
                    let recovered = cluster.control.state == ClusterState::InCrashRecovery;
                    cluster.control.state = ClusterState::InProduction;
                    if recovered {
                        self.write(due.node, Kind::Checkpoint, CHECKPOINT_BYTES, timeline);
                    }
                }
                self.report(due.node, Transition::Started);
            }
            (Event::ShutdownCheckpoint, Phase::Stopping { written: false }) => {
                server.phase = Phase::Stopping { written: true };
                let (timeline, end) = (cluster.log.timeline(), cluster.log.end());
                if in_recovery {
                    cluster.control.state = ClusterState::ShutDownInRecovery;
                    cluster.control.min_recovery = Some((timeline, end));
                } else {
                    cluster.control.state = ClusterState::ShutDown;
                    self.write(due.node, Kind::ShutdownCheckpoint, CHECKPOINT_BYTES, timeline);
                }
            }
            (Event::Quit, Phase::Quitting) => self.end(due.node, Transition::Stopped),
            (Event::Promoted, Phase::Accepting) => {
                let Some(timeline) = server.promoting.take() else { return };
                server.in_recovery = false;
                cluster.standby_signal = false;
                cluster.control.state = ClusterState::InProduction;
                let end = self.write(due.node, Kind::EndOfRecovery, END_OF_RECOVERY_BYTES, timeline);
                // Crash recovery must follow the timeline although no checkpoint is on it yet (xlog.c,
                // CreateEndOfRecoveryRecord).
                if let Data::Present(cluster) = &mut self.nodes[due.node].data {
                    cluster.control.min_recovery = Some((timeline, end));
                }
                self.report(due.node, Transition::Promoted);
            }
            (
                Event::Started | Event::ShutdownCheckpoint | Event::SenderDone | Event::Quit | Event::Promoted,
                Phase::Starting | Phase::Accepting | Phase::Stopping { .. } | Phase::Quitting,
            ) => {}
        }
    }

    /// Events that waited for a thawed server or a disk that answers again happen now.
    pub(super) fn resume(&mut self, node: usize) {
        for due in std::mem::take(&mut self.nodes[node].deferred) {
            self.sequence += 1;
            self.queue.insert((self.now, self.sequence), due);
        }
        self.changed = true;
    }

    // ---- links

    pub(super) fn cut(&mut self, a: usize, b: usize, cut: bool) {
        let pair = (a.min(b), a.max(b));
        if cut {
            self.cuts.insert(pair);
        } else {
            self.cuts.remove(&pair);
        }
        self.changed = true;
    }

    pub(super) fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cuts.contains(&(a.min(b), a.max(b)))
    }

    /// Brings everything that follows from a change up to date.
    pub(super) fn settle(&mut self) {
        self.deliver();
        loop {
            for standby in 0..self.nodes.len() {
                let link = self.link_of(standby);
                if let Some(server) = &mut self.nodes[standby].server {
                    server.received |= link.is_some();
                    server.link = link;
                }
            }
            if !self.finish_stops() {
                break;
            }
        }
        self.fail_builds();
        for index in 0..self.nodes.len() {
            let writable = self.nodes[index].can_write();
            if writable != self.nodes[index].was_writable {
                self.nodes[index].was_writable = writable;
                self.report(index, if writable { Transition::Writable } else { Transition::NotWritable });
            }
        }
    }

    /// Moves records along the links, through cascades.
    fn deliver(&mut self) {
        let mut moved = true;
        while moved {
            moved = false;
            for standby in 0..self.nodes.len() {
                let arrived = self.arrived(standby);
                let Data::Present(cluster) = &mut self.nodes[standby].data else { continue };
                for entry in arrived {
                    moved = true;
                    cluster.log.push(entry);
                    if entry.record.kind.is_checkpoint() {
                        // A restart point: the only moment when a crashed standby's control file learns where it was.
                        cluster.checkpointed(&entry.record);
                        cluster.control.min_recovery = Some((entry.record.timeline, entry.record.end));
                    }
                }
            }
        }
    }

    /// What has come through the link and is not in the log yet.
    fn arrived(&self, standby: usize) -> Vec<Entry> {
        let node = &self.nodes[standby];
        let link = node.server.as_ref().and_then(|server| server.link).filter(|link| link.silent.is_none());
        let (Some(link), Data::Present(mine)) = (link, &node.data) else { return Vec::new() };
        let Data::Present(theirs) = &self.nodes[link.upstream].data else { return Vec::new() };
        (mine.log.len()..)
            .map_while(|index| theirs.log.get(index))
            .map(|entry| Entry { arrived: link.arrival(entry, node), ..*entry })
            .take_while(|entry| entry.arrived <= self.now)
            .collect()
    }

    /// The link that a node has from now on.
    fn link_of(&self, standby: usize) -> Option<Link> {
        let Node { server: Some(server), data: Data::Present(cluster), .. } = &self.nodes[standby] else { return None };
        let receives = server.in_recovery && server.phase == Phase::Accepting && server.promoting.is_none();
        let Upstream::Member { conn_url, .. } = &cluster.upstream else { return None };
        let upstream = self.find(conn_url).filter(|upstream| receives && *upstream != standby)?;
        let source = &self.nodes[upstream];
        let old = server.link.filter(|link| link.upstream == upstream);

        if self.is_cut(standby, upstream) || self.nodes[standby].stalled() || source.stalled() {
            // Nothing comes, and nothing says so: TCP keeps it until the receiver's own timeout.
            let link = old?;
            let silent = link.silent.unwrap_or(self.now);
            let noticed = self.now.saturating_sub(silent) >= self.nodes[standby].timings.wal_timeout;
            return (!noticed).then_some(Link { silent: Some(silent), ..link });
        }
        let (Data::Present(theirs), Some(sender)) = (&source.data, &source.server) else { return None };
        let same = theirs.control.system_id == cluster.control.system_id;
        if !same || !cluster.log.is_prefix_of(&theirs.log) {
            return None;
        }
        match (old.filter(|link| link.pid == sender.pid), sender.phase) {
            (Some(link), Phase::Accepting | Phase::Stopping { .. }) => Some(match link.silent {
                Some(_) => Link { silent: None, since: self.now, ..link },
                None => link,
            }),
            (None, Phase::Accepting) => Some(Link { upstream, pid: sender.pid, since: self.now, silent: None }),
            (_, Phase::Starting | Phase::Stopping { .. } | Phase::Quitting) => None,
        }
    }

    /// Ends servers whose fast stop has nobody left to wait for; true if one ended.
    fn finish_stops(&mut self) -> bool {
        for index in 0..self.nodes.len() {
            let node = &self.nodes[index];
            let Some(server) = &node.server else { continue };
            if server.phase != (Phase::Stopping { written: true }) || node.stalled() {
                continue;
            }
            match self.senders_done(index, server.pid) {
                None => {
                    self.end(index, Transition::Stopped);
                    return true;
                }
                Some(at) => {
                    let waits = self.queue.range((at, 0)..=(at, u64::MAX)).any(|(_, due)| due.node == index);
                    if !waits {
                        self.schedule(at.saturating_sub(self.now), index, Event::SenderDone);
                    }
                }
            }
        }
        false
    }

    /// The next moment when a WAL sender of this server may be done, `None` when all are: a sender ends when its standby
    /// has the whole log, or was silent for too long (`wal_sender_timeout`).
    fn senders_done(&self, index: usize, pid: u32) -> Option<Duration> {
        let Data::Present(cluster) = &self.nodes[index].data else { return None };
        let last = cluster.log.len().checked_sub(1).and_then(|last| cluster.log.get(last))?;
        let waits = |node: &Node| {
            let link = node.server.as_ref()?.link.filter(|link| link.upstream == index && link.pid == pid)?;
            let Data::Present(theirs) = &node.data else { return None };
            (theirs.log.len() < cluster.log.len()).then(|| match link.silent {
                Some(silent) => silent.saturating_add(node.timings.wal_timeout),
                None => link.arrival(last, node),
            })
        };
        self.nodes.iter().filter_map(waits).min()
    }

    /// A clone fails when its source goes, or the way to it.
    fn fail_builds(&mut self) {
        for index in 0..self.nodes.len() {
            let Some((source, pid)) = self.nodes[index].build.as_ref().and_then(|build| build.source) else { continue };
            if let Some(cause) = self.unusable_source(index, source, Some(pid))
                && let Some(build) = &mut self.nodes[index].build
                && build.failed.is_none()
            {
                build.failed = Some(cause);
                self.changed = true;
            }
        }
    }

    /// Why `node` cannot copy from `source`.
    pub(super) fn unusable_source(&self, node: usize, source: usize, pid: Option<u32>) -> Option<String> {
        let Node { name, server, .. } = &self.nodes[source];
        match server {
            Some(_) if self.is_cut(node, source) || self.nodes[source].stalled() => Some(format!("{name}: no answer")),
            Some(server) if server.phase != Phase::Accepting => Some(format!("{name} does not accept connections")),
            Some(server) if pid.is_some_and(|pid| pid != server.pid) => Some(format!("{name} was restarted")),
            Some(_) => None,
            None => Some(format!("{name}: connection refused")),
        }
    }
}

impl Link {
    fn arrival(&self, entry: &Entry, standby: &Node) -> Duration {
        entry.arrived.max(self.since).saturating_add(standby.timings.replication_delay)
    }
}

impl Cluster {
    fn checkpointed(&mut self, record: &Record) {
        self.control.checkpoint = record.start;
        self.control.timeline = record.timeline;
    }

    /// A restart point at the end of the log.
    pub(super) fn restart_point(&mut self) {
        self.control.min_recovery = Some((self.log.timeline(), self.log.end()));
    }
}

impl Node {
    /// It answers nobody: frozen, or stuck on its disk.
    pub(super) fn stalled(&self) -> bool {
        self.server.as_ref().is_some_and(|server| server.frozen || self.disk_hung)
    }

    /// A write sent now would be acknowledged now.
    pub(super) fn can_write(&self) -> bool {
        let writes = |server: &Server| !server.in_recovery && server.phase == Phase::Accepting;
        !self.stalled() && self.server.as_ref().is_some_and(writes)
    }
}
