//! The whole network as one value: nodes, links, what is due when. Time moves only in [`World::advance`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use regent_core::callbacks::Callback;
use regent_core::config::Logical;
use regent_core::postgres::{ClusterState, ControlData, Upstream};
use regent_core::sync::Waits;
use regent_core::units::{Lsn, MemberName, SystemId, Timeline};

use super::Timings;
use super::Transition;
use super::streams::Link;
use super::wal::{CHECKPOINT_BYTES, END_OF_RECOVERY_BYTES, Entry, Kind, Log, Record};
use crate::settings::Settings;

/// Everything.
#[derive(Debug, Default)]
pub(super) struct World {
    /// Time since the network was made.
    pub(super) now: Duration,
    /// When everything that follows was last brought up to date.
    pub(super) settled: Duration,
    pub(super) nodes: Vec<Node>,
    /// Pairs of nodes that cannot talk, the smaller index first.
    pub(super) cuts: BTreeSet<(usize, usize)>,
    /// What happens when; the number keeps the order of things due at one instant.
    pub(super) queue: BTreeMap<(Duration, u64), Due>,
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
    /// Logical slots that were made.
    pub(super) last_slot: u64,
    last_pid: u32,
    /// What no agent may ask of the tools, and one did.
    pub(super) misuses: Vec<(&'static str, String)>,
    /// Transitions that observers have not seen yet.
    pub(super) outbox: VecDeque<(MemberName, Transition)>,
    /// Observers are being called: time stands still.
    pub(super) dispatching: bool,
    /// Writes that wait for a standby.
    pub(super) waiting: Vec<Waiting>,
    /// Ids of the writes that were acknowledged because a standby had them.
    pub(super) acknowledged: Vec<u64>,
    /// What is in the archive.
    pub(super) backup: Option<Box<Cluster>>,
    /// Something happened that a waiting future may care for.
    pub(super) changed: bool,
}

/// A write whose client waits for its acknowledgement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) node: usize,
    pub(super) pid: u32,
    pub(super) record: usize,
    pub(super) write: u64,
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
    /// Replay is paused, as PostgreSQL pauses it when a setting of the primary was raised. Positions move on all the same.
    pub(super) replay_paused: bool,
    /// The postmaster that the last observation saw.
    pub(super) watched: Option<u32>,
    pub(super) failing_starts: u32,
    pub(super) failing_clones: u32,
    pub(super) failing_rewinds: u32,
    pub(super) breaking_rewinds: u32,
    pub(super) failing_pre_promotes: u32,
    /// Callbacks of the agent's, and when.
    pub(super) called: Vec<(Duration, Callback)>,
    /// What the leader's slots hold back, as it said last.
    pub(super) leader_xmins: BTreeMap<String, u32>,
    /// It has removed its log up to here.
    pub(super) log_from: Lsn,
    /// From here on the leader has none, as it said last.
    pub(super) log_gone: Option<Lsn>,
    /// A directory was moved aside.
    pub(super) old_copy: bool,
    pub(super) settings: Option<Settings>,
    /// The clone or initdb that runs.
    pub(super) build: Option<Build>,
    /// Events that came due while the server could not handle them.
    deferred: Vec<Due>,
    pub(super) was_writable: bool,
}

/// The data directory.
#[derive(Debug)]
pub(super) enum Data {
    Empty,
    Unfinished,
    HalfRewound,
    Present(Box<Cluster>),
}

/// What a usable data directory holds.
#[derive(Clone, Debug)]
pub(super) struct Cluster {
    pub(super) log: Log,
    pub(super) control: ControlData,
    pub(super) standby_signal: bool,
    pub(super) backup_label: bool,
    /// Replication slots.
    pub(super) slots: BTreeMap<String, Slot>,
    pub(super) upstream: Upstream,
    /// `synchronous_standby_names`
    pub(super) sync_names: String,
    /// What it was before, until when WAL senders may still go by it.
    pub(super) sync_before: Option<(String, Duration)>,
}

/// A replication slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Slot {
    /// How far it is; a logical one holds back vacuum from here, too.
    pub(super) at: Lsn,
    /// What a logical one decodes.
    pub(super) logical: Option<Logical>,
    /// A logical one and its copies have one number, and no other has it.
    pub(super) made: u64,
    /// The log that it needs is gone.
    pub(super) lost: bool,
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

/// A clone, rewind or initdb in progress.
#[derive(Debug)]
pub(super) struct Build {
    pub(super) since: Duration,
    pub(super) until: Duration,
    /// The source and its postmaster.
    pub(super) source: Option<(usize, u32)>,
    /// A source that keeps silent is waited for (TCP lives on); one that is gone is not.
    pub(super) patient: bool,
    /// Why it failed.
    pub(super) failed: Option<String>,
}

/// An event of one server's life.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    pub(super) node: usize,
    pid: u32,
    event: Event,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
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
            replay_paused: false,
            watched: None,
            failing_starts: 0,
            failing_clones: 0,
            failing_rewinds: 0,
            breaking_rewinds: 0,
            failing_pre_promotes: 0,
            called: Vec::new(),
            leader_xmins: BTreeMap::new(),
            log_from: Lsn::default(),
            log_gone: None,
            old_copy: false,
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
        self.settle();
        self.happen(due);
        self.changed = true;
        self.settle();
        false
    }

    pub(super) fn schedule(&mut self, after: Duration, node: usize, event: Event) {
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
            checkpoint_end: None,
            min_recovery: None,
            rewindable: true,
        };
        self.nodes[node].data = Data::Present(Box::new(Cluster {
            log: Log::default(),
            control,
            standby_signal: false,
            backup_label: false,
            slots: BTreeMap::new(),
            upstream: Upstream::Nobody,
            sync_names: String::new(),
            sync_before: None,
        }));
        self.write(node, Kind::Checkpoint, CHECKPOINT_BYTES, Timeline(1));
        self.spawn(node, false, Phase::Accepting);
        self.report(node, Transition::Started);
    }

    /// A base backup: the source's directory as it is now, with a label and without signal file and slots.
    pub(super) fn copy(&mut self, source: usize, node: usize) {
        let Data::Present(theirs) = &self.nodes[source].data else { return };
        self.nodes[node].data = Data::Present(Box::new(theirs.backed_up()));
    }

    /// A backup that outlives its source.
    pub(super) fn back_up(&mut self, source: usize) {
        let Data::Present(theirs) = &self.nodes[source].data else { return };
        self.backup = Some(Box::new(theirs.backed_up()));
    }

    pub(super) fn restore(&mut self, node: usize) {
        if let Some(backup) = &self.backup {
            self.nodes[node].data = Data::Present(backup.clone());
        }
    }

    /// What pg_rewind leaves: the source's log, to be replayed from the fork up to where it ends now.
    pub(super) fn rewound(&mut self, source: usize, node: usize) {
        self.copy(source, node);
        if let Data::Present(cluster) = &mut self.nodes[node].data {
            cluster.restart_point();
            cluster.control.state = ClusterState::InArchiveRecovery;
        }
    }

    /// pg_rewind finds nothing to do: its source's control file has no later timeline than this node's.
    pub(super) fn believes_nothing_diverged(&mut self, source: usize, node: usize) -> bool {
        let (Data::Present(theirs), Data::Present(mine)) = (&self.nodes[source].data, &self.nodes[node].data) else {
            return false;
        };
        let stale = theirs.control.timeline != theirs.log.timeline();
        if stale {
            let what =
                format!("{} was rewound to {} before its checkpoint", self.nodes[node].name, self.nodes[source].name);
            self.misuses.push(("X4", what));
        }
        stale || mine.log.is_prefix_of(&theirs.log)
    }

    /// Crash recovery of a former primary, as pg_rewind needs it: the log ends with a shutdown checkpoint.
    pub(super) fn recover(&mut self, node: usize) {
        let Data::Present(cluster) = &mut self.nodes[node].data else { return };
        let crashed = cluster.control.state.was_primary() && cluster.control.state != ClusterState::ShutDown;
        if crashed && !cluster.backup_label {
            cluster.control.state = ClusterState::ShutDown;
            let timeline = cluster.log.timeline();
            self.write(node, Kind::ShutdownCheckpoint, CHECKPOINT_BYTES, timeline);
        }
    }

    /// From now on this node has no copy of the cluster: somebody else must have one.
    pub(super) fn give_up_copy(&mut self, node: usize, data: Data) {
        let whole = |other: &Node| matches!(other.data, Data::Present(_)) && other.server.is_some();
        let others = self.nodes.iter().enumerate().any(|(index, other)| index != node && whole(other));
        if !others && matches!(self.nodes[node].data, Data::Present(_)) {
            self.misuses.push(("S10", format!("{} gave up the last copy that runs", self.nodes[node].name)));
        }
        self.nodes[node].data = data;
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
}

impl Slot {
    /// The log stands for the transactions in it.
    pub(super) fn xmin(&self) -> u32 {
        u32::try_from(self.at.0).unwrap_or(u32::MAX)
    }
}

impl Cluster {
    /// As a base backup has it.
    fn backed_up(&self) -> Cluster {
        Cluster { standby_signal: false, backup_label: true, slots: BTreeMap::new(), ..self.clone() }
    }

    /// What a commit may be acknowledged by at this instant: each of them is enough.
    pub(super) fn waits(&self, now: Duration) -> Vec<Waits> {
        let before = self.sync_before.as_ref().filter(|(_, until)| now < *until).map(|(names, _)| names);
        [Some(&self.sync_names), before].into_iter().flatten().map(|names| Waits::parse(names)).collect()
    }

    pub(super) fn checkpointed(&mut self, record: &Record) {
        self.control.checkpoint = record.start;
        self.control.checkpoint_end = (record.kind == Kind::ShutdownCheckpoint).then_some(record.end);
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
