//! One state of a small world, and what a member sees of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Debug, Write as _};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use regent_core::cluster::{
    ClusterView, ConfigKey, HistoryLine, Initialize, LeaderKey, Member, PromiseKey, Status, SyncState,
};
use regent_core::config::{Config, SyncMode};
use regent_core::fence::Fence;
use regent_core::fixture;
use regent_core::memory::{LeaseOutcome, Memory};
use regent_core::peers::{PeerAnswer, PeerReply};
use regent_core::plan::Decision;
use regent_core::postgres::{
    ClusterState, ControlData, DataDir, FinishedJob, Job, PgState, Present, Probe, Process, RunningJob, SqlFacts,
    WalSender,
};
use regent_core::snapshot::{Guardian, LeaseView, NoView, Order, Peers, Snapshot, Watchdog};
use regent_core::sync::Waits;
use regent_core::units::{Instant, LeaseId, Lsn, MemberName, Revision, Timeline};
use regent_dcs::Write;

use super::Bounds;

/// The members, by index.
pub(super) const NAMES: [&str; 3] = ["a", "b", "c"];
/// All times are whole numbers of this. Answers of peers are stale, and `synchronous_standby_names` has settled, after one.
const TICK: Duration = Duration::from_secs(2);
/// Ticks that a lease lasts.
pub(super) const TTL: u8 = 3;

/// A value that is compared by its digest, and shared by the states that have it.
pub(super) struct Sum<T> {
    value: Arc<T>,
    digest: u64,
}

impl<T: Debug> Sum<T> {
    pub(super) fn new(value: T) -> Sum<T> {
        let digest = digest_of(&value);
        Sum { value: Arc::new(value), digest }
    }
}

impl<T> Clone for Sum<T> {
    fn clone(&self) -> Self {
        Sum { value: self.value.clone(), digest: self.digest }
    }
}

impl<T> Hash for Sum<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.digest);
    }
}

impl<T> PartialEq for Sum<T> {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl<T> std::ops::Deref for Sum<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// Mixes by a wide multiplication, many times faster than the hasher of the standard library; nobody chooses its input.
#[derive(Clone, Copy)]
pub(super) struct Mixer(u64);

impl Default for Mixer {
    fn default() -> Self {
        Mixer(0x9E37_79B9_7F4A_7C15)
    }
}

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(8);
        for word in words.by_ref() {
            self.write_u64(word.iter().fold(0, |whole, byte| whole << 8 | u64::from(*byte)));
        }
        let rest =
            words.remainder().iter().fold(words.remainder().len() as u64, |whole, byte| whole << 8 | u64::from(*byte));
        self.write_u64(rest);
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(number.into());
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        const FACTOR: u64 = 0xA076_1D64_78BD_642F;
        let mixed = self.0 ^ number;
        let high = ((u128::from(mixed) * u128::from(FACTOR)) >> 64) as u64;
        self.0 = (high ^ mixed.wrapping_mul(FACTOR)).wrapping_add(number.rotate_left(23));
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }
}

/// A digest of all that `Debug` shows.
pub(super) fn digest_of(value: &impl Debug) -> u64 {
    struct Digest(Mixer);
    impl fmt::Write for Digest {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.write(text.as_bytes());
            Ok(())
        }
    }
    let mut digest = Digest(Mixer::default());
    // A digest takes all that is written.
    let _ = write!(digest, "{value:?}");
    digest.0.finish()
}

/// A record of a server's log; each is 100 bytes.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(super) enum Record {
    /// A client's write.
    Write(u8),
    /// From here on it is this timeline.
    Switch(u32),
}

/// What a server is about to do, whatever becomes of its agent.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub(super) enum Op {
    StartPrimary,
    /// As a standby of this member.
    StartStandby(Option<usize>),
    Stop {
        clean: bool,
    },
    Promote(u32),
    Wait(String),
}

/// PostgreSQL on one machine.
#[derive(Clone, Hash)]
pub(super) struct Server {
    pub(super) up: bool,
    pub(super) primary: bool,
    /// It was shut down in good order.
    pub(super) clean: bool,
    pub(super) upstream: Option<usize>,
    pub(super) log: Vec<Record>,
    pub(super) sync_names: String,
    pub(super) op: Option<Op>,
}

impl Server {
    pub(super) fn writable(&self) -> bool {
        self.up && self.primary
    }

    pub(super) fn answers(&self) -> bool {
        self.up && !matches!(self.op, Some(Op::StartPrimary | Op::StartStandby(_)))
    }

    pub(super) fn lsn(&self) -> Lsn {
        lsn(self.log.len())
    }

    pub(super) fn timeline(&self) -> u32 {
        let switch = |record: &Record| if let Record::Switch(timeline) = record { Some(*timeline) } else { None };
        self.log.iter().rev().find_map(switch).unwrap_or(1)
    }

    fn history(&self) -> Vec<HistoryLine> {
        let mut parent = 1;
        let mut lines = Vec::new();
        for (place, record) in self.log.iter().enumerate() {
            if let Record::Switch(timeline) = record {
                let (ended, switched_at) = (Timeline(parent), lsn(place));
                let reason = "no recovery target specified".into();
                lines.push(HistoryLine { parent: ended, switched_at, reason, at: None, promoted: None });
                parent = *timeline;
            }
        }
        lines
    }
}

fn lsn(records: usize) -> Lsn {
    Lsn(1_000 + 100 * records as u64)
}

/// What the guardian holds.
#[derive(Clone, Copy, Hash, PartialEq, Eq)]
pub(super) struct Guard {
    pub(super) lease: Option<i64>,
    /// The tick at which it kills.
    pub(super) deadline: Option<u8>,
}

/// One machine with its agent.
#[derive(Clone, Hash)]
pub(super) struct Node {
    pub(super) agent: bool,
    /// Agent and lease task stand still.
    pub(super) frozen: bool,
    /// It reaches neither etcd nor the other agents.
    pub(super) cut: bool,
    pub(super) memory: Sum<Memory>,
    /// Its lease and the tick at which that ends, as its task knows.
    pub(super) lease: Option<(i64, u8)>,
    pub(super) leases_had: u8,
    pub(super) claims: bool,
    /// What was seen and decided, and not carried out yet.
    pub(super) pending: Option<Sum<Pending>>,
    pub(super) peers: Option<Sum<(u8, BTreeMap<MemberName, PeerReply>)>>,
    /// What its REST API says.
    pub(super) published: Option<Sum<PeerAnswer>>,
    pub(super) job: Option<Sum<RunningJob>>,
    pub(super) finished: Option<Sum<FinishedJob>>,
    pub(super) guard: Option<Guard>,
    pub(super) server: Server,
}

/// A decision, what it was taken on, and what comes of it.
pub(super) struct Pending {
    pub(super) seen: Snapshot,
    pub(super) decision: Decision,
    pub(super) published: Option<Sum<PeerAnswer>>,
    pub(super) member: Sum<Member>,
    /// What is remembered of it, by `LeaseOutcome`.
    memories: [Sum<Memory>; 4],
}

impl Pending {
    pub(super) fn new(seen: Snapshot, decision: Decision) -> Pending {
        let primary = seen.sql().is_some_and(|sql| !sql.in_recovery);
        let published = seen.sql().map(|sql| PeerAnswer {
            is_primary: primary,
            position: sql.position(),
            timeline: sql.timeline,
            nofailover: false,
            failover_priority: 1,
            watchdog_failed: false,
        });
        let own = index(&seen.config.name);
        let member = Member {
            conn_url: Some(conn_url(own)),
            api_url: Some(format!("http://{}:8008/patroni", NAMES[own])),
            state: if seen.sql().is_some() { "running" } else { "stopped" }.into(),
            role: if primary { "primary" } else { "replica" }.into(),
            version: "4.1.5".into(),
            regent: true,
            timeline: seen.own_timeline(),
            ..Member::default()
        };
        let lease = seen.lease.id.unwrap_or(LeaseId(0));
        let outcomes =
            [LeaseOutcome::NotTried, LeaseOutcome::Refused, LeaseOutcome::Unknown, LeaseOutcome::Done(lease)];
        let memories = outcomes.map(|outcome| Sum::new(normal(seen.memory.after(&seen, &decision, outcome))));
        Pending { published: published.map(Sum::new), member: Sum::new(member), memories, seen, decision }
    }

    pub(super) fn memory_after(&self, outcome: LeaseOutcome) -> Sum<Memory> {
        let place = match outcome {
            LeaseOutcome::NotTried => 0,
            LeaseOutcome::Refused => 1,
            LeaseOutcome::Unknown => 2,
            LeaseOutcome::Done(_) => 3,
        };
        self.memories[place].clone()
    }

    /// The lease that the leader key was seen to hang on.
    pub(super) fn held(&self) -> Option<LeaseId> {
        let key = self.seen.view().and_then(|view| view.leader.as_ref());
        key.and_then(|key| key.lease).or(self.seen.lease.id)
    }
}

/// What matters of it from now on: what it does, and what is remembered of it.
impl Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (memories, published) = (self.memories.each_ref().map(|sum| sum.digest), self.published.as_ref());
        let (lease, stop) = (self.seen.lease.id, self.seen.must_stop_at().filter(|_| self.seen.may_write()));
        write!(f, "{:?}{memories:?}{:?}", self.decision.plan, (published.map(|sum| sum.digest), self.member.digest))?;
        write!(f, "{:?}", (lease, self.held(), stop, self.seen.dcs.is_ok()))
    }
}

/// etcd.
#[derive(Clone, Hash)]
pub(super) struct Etcd {
    /// Who, on which lease, the key's revision.
    pub(super) leader: Option<(usize, i64, i64)>,
    pub(super) leaders: i64,
    pub(super) promise: Sum<Option<PromiseKey>>,
    pub(super) sync: Sum<Option<SyncState>>,
    /// Revision of `sync`; 0: there is none.
    pub(super) sync_seen: i64,
    pub(super) status: Sum<Status>,
    /// `status` was written by the present leader.
    pub(super) status_is_new: bool,
    pub(super) history: Sum<Option<Vec<HistoryLine>>>,
    /// When each ends.
    pub(super) leases: BTreeMap<i64, u8>,
    pub(super) members: [Option<(i64, Sum<Member>)>; 3],
}

/// One state of the world.
#[derive(Clone, Hash)]
pub(super) struct State {
    pub(super) tick: u8,
    /// Turns that each agent had in this tick.
    pub(super) turns: [u8; 3],
    pub(super) nodes: [Node; 3],
    pub(super) etcd: Etcd,
    /// Writes on the way to etcd that nobody waits for any more.
    pub(super) late: Vec<Sum<Write>>,
    pub(super) faults: u8,
    /// Writes of clients so far, and which were acknowledged.
    pub(super) writes: u8,
    pub(super) acknowledged: BTreeSet<u8>,
    /// Which timeline was begun by whom, with which log.
    pub(super) lines: BTreeMap<u32, usize>,
}

pub(super) fn at(tick: u8) -> Instant {
    Instant(Duration::from_secs(1_000) + TICK * u32::from(tick))
}

pub(super) fn name(node: usize) -> MemberName {
    NAMES[node].into()
}

pub(super) fn index(name: &MemberName) -> usize {
    NAMES.iter().position(|known| *known == name.as_str()).unwrap_or_default()
}

pub(super) fn conn_url(node: usize) -> String {
    format!("postgres://{}:5432/postgres", NAMES[node])
}

/// Without what serves slots, callbacks and messages only, and times that no rule of these worlds reads.
pub(super) fn normal(mut memory: Memory) -> Memory {
    memory.slots_wanted.clear();
    memory.told = Memory::default().told;
    (memory.since, memory.position_since, memory.vacant_since, memory.starting_since) = (None, None, None, None);
    if let Some(last) = memory.last_job.as_mut().filter(|last| last.error.is_none()) {
        last.at = at(0);
    }
    memory
}

impl State {
    /// a runs as a primary, b and c as its standbys, and no agent has looked yet.
    pub(super) fn first() -> State {
        let node = |index: usize| Node {
            agent: true,
            frozen: false,
            cut: false,
            memory: Sum::new(Memory::default()),
            lease: None,
            leases_had: 0,
            claims: true,
            pending: None,
            peers: None,
            published: None,
            job: None,
            finished: None,
            guard: None,
            server: Server {
                up: true,
                primary: index == 0,
                clean: false,
                upstream: (index != 0).then_some(0),
                log: Vec::new(),
                sync_names: String::new(),
                op: None,
            },
        };
        let etcd = Etcd {
            leader: None,
            leaders: 0,
            promise: Sum::new(None),
            sync: Sum::new(None),
            sync_seen: 0,
            status: Sum::new(Status::default()),
            status_is_new: false,
            history: Sum::new(None),
            leases: BTreeMap::new(),
            members: [None, None, None],
        };
        State {
            tick: 0,
            turns: [0; 3],
            nodes: [node(0), node(1), node(2)],
            etcd,
            late: Vec::new(),
            faults: 0,
            writes: 0,
            acknowledged: BTreeSet::new(),
            lines: BTreeMap::from([(1, 0)]),
        }
    }

    pub(super) fn digest(&self) -> u64 {
        let mut hasher = Mixer::default();
        self.hash(&mut hasher);
        hasher.finish()
    }

    fn view(&self) -> ClusterView {
        let etcd = &self.etcd;
        let leader = etcd.leader.map(|(node, lease, modified)| LeaderKey {
            name: name(node),
            lease: Some(LeaseId(lease)),
            modified: Revision(modified),
        });
        let modified = etcd.leader.map_or(0, |(.., modified)| modified);
        let member = |node: usize| Some((name(node), Member::clone(&etcd.members[node].as_ref()?.1)));
        ClusterView {
            revision: Revision(1),
            initialize: Initialize::Known(fixture::SYSTEM_ID),
            leader,
            members: (0..3).filter_map(member).collect(),
            config: ConfigKey::Valid(Revision(1)),
            history: etcd.history.value.as_ref().clone(),
            status: etcd.status.value.as_ref().clone(),
            status_seen: Some(Revision(if etcd.status_is_new { modified + 1 } else { modified - 1 })),
            sync: etcd.sync.value.as_ref().clone(),
            sync_seen: (etcd.sync_seen > 0).then_some(Revision(etcd.sync_seen)),
            promise: etcd.promise.value.as_ref().clone(),
            ..ClusterView::default()
        }
    }

    /// `other` streams from `node`.
    pub(super) fn streams(&self, other: usize, node: usize) -> bool {
        let (from, to) = (&self.nodes[node].server, &self.nodes[other].server);
        let both = other != node && from.answers() && to.answers() && !to.primary;
        both && to.upstream == Some(node) && from.log.starts_with(&to.log)
    }

    fn sql(&self, node: usize) -> Option<SqlFacts> {
        let server = Some(&self.nodes[node].server).filter(|server| server.answers())?;
        let standby = !server.primary;
        let waits = Waits::parse(&server.sync_names);
        let sender = |other: usize| WalSender {
            usename: "replicator".into(),
            application_name: NAMES[other].into(),
            client_addr: None,
            state: "streaming".into(),
            sync_state: waits.state_of(NAMES[other]).into(),
            sync_priority: 1,
            position: Some(self.nodes[other].server.lsn()),
        };
        let streaming = server.upstream.is_some_and(|upstream| standby && self.streams(node, upstream));
        Some(SqlFacts {
            in_recovery: standby,
            timeline: Some(Timeline(server.timeline())),
            flush_lsn: if standby { Lsn::default() } else { server.lsn() },
            receive_lsn: standby.then(|| server.lsn()),
            replay_lsn: standby.then(|| server.lsn()),
            replay_paused: false,
            replayed_at: None,
            streaming,
            latest_end_lsn: None,
            log_gone: None,
            restores_from_archive: false,
            upstream: server.upstream.filter(|_| standby).map(|upstream| format!("{}:5432", NAMES[upstream])),
            started_at: String::new(),
            server_version: 150_000,
            slots: Vec::new(),
            leader_xmins: BTreeMap::new(),
            sync_names: server.sync_names.clone(),
            replication: (0..3).filter(|other| self.streams(*other, node)).map(sender).collect(),
            pending_restart: Vec::new(),
        })
    }

    fn postgres(&self, node: usize) -> PgState {
        let server = &self.nodes[node].server;
        let state = match (server.up, server.primary, server.clean) {
            (true, true, _) | (false, true, false) => ClusterState::InProduction,
            (false, true, true) => ClusterState::ShutDown,
            (true, false, _) | (false, false, false) => ClusterState::InArchiveRecovery,
            (false, false, true) => ClusterState::ShutDownInRecovery,
        };
        let control = ControlData {
            system_id: fixture::SYSTEM_ID,
            state,
            timeline: Timeline(server.timeline()),
            checkpoint: server.lsn(),
            checkpoint_end: (state == ClusterState::ShutDown).then(|| server.lsn()),
            min_recovery: (!server.primary).then(|| (Timeline(server.timeline()), server.lsn())),
            rewindable: false,
        };
        let probe = match (server.up, server.answers()) {
            (false, _) => Probe::NotAsked,
            (true, true) => Probe::Accepting,
            (true, false) => Probe::Rejecting,
        };
        PgState {
            data_dir: DataDir::Present(Present {
                control: Some(control),
                standby_signal: !server.primary,
                backup_label: false,
            }),
            process: if server.up { Process::Up { pid: 42 } } else { Process::Down },
            probe,
            sql: self.sql(node),
            local_history: server.history(),
            newer_history: Vec::new(),
            old_copy: false,
        }
    }

    fn config(node: usize, mode: SyncMode) -> Config {
        Config {
            ttl: TICK * u32::from(TTL),
            loop_wait: TICK,
            retry_timeout: TICK,
            stop_budget: TICK,
            use_slots: false,
            synchronous_mode: mode,
            ..Config::of(name(node))
        }
    }

    /// Of all that `look` reads.
    pub(super) fn digest_seen_by(&self, node: usize) -> u64 {
        let mut hasher = Mixer::default();
        (node, self.tick, &self.nodes[node], &self.etcd).hash(&mut hasher);
        for other in 0..3 {
            let (to, from) = (self.streams(other, node), self.streams(node, other));
            (to.then(|| self.nodes[other].server.log.len()), from).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// What the agent of `node` sees now. The end of its job is told to its memory first, as the loop does.
    pub(super) fn look(&self, node: usize, bounds: &Bounds) -> Snapshot {
        let own = &self.nodes[node];
        let postgres = self.postgres(node);
        let mut memory = own.memory.value.as_ref().clone();
        if let Some(finished) = &own.finished {
            memory.job_ended(FinishedJob::clone(finished), postgres.sql.as_ref().and_then(|sql| sql.timeline));
        }
        Snapshot {
            now: at(self.tick),
            wall: Duration::from_secs(1_800_000_000),
            dice: 4,
            config: State::config(node, bounds.mode),
            dcs: if own.cut { Err(NoView::Unreachable("no answer".into())) } else { Ok(self.view()) },
            lease: LeaseView { id: own.lease.map(|(id, _)| LeaseId(id)), ends: own.lease.map(|(_, ends)| at(ends)) },
            postgres,
            job: own.job.as_deref().cloned(),
            peers: own.peers.as_deref().map(|(tick, replies)| Peers { at: at(*tick), replies: replies.clone() }),
            agreement: None,
            namesake: None,
            guardian: Guardian::Ready,
            watchdog: Watchdog::Ready,
            order: Order::Run,
            request: None,
            memory,
        }
    }

    /// What the guardian of `node` holds once its agent has said this, and what it answers.
    pub(super) fn guard(&self, node: usize, fence: Fence) -> (Option<Guard>, Guardian) {
        let own = &self.nodes[node];
        match fence {
            Fence::Keep => (own.guard, Guardian::Ready),
            Fence::Off => (None, Guardian::Ready),
            Fence::Down => (own.guard.filter(|_| own.server.up), Guardian::Ready),
            Fence::Guard { lease, .. } => {
                let lease = lease.map(|lease| lease.0);
                let kept = own.guard.and_then(|guard| guard.deadline);
                let deadline = own.lease.filter(|(id, _)| Some(*id) == lease).map(|(_, ends)| ends).or(kept);
                let why = "it holds no deadline for this server yet".into();
                let absent = Guardian::Absent { why, since: at(self.tick) };
                (Some(Guard { lease, deadline }), if deadline.is_none() { absent } else { Guardian::Ready })
            }
        }
    }
}

impl Node {
    pub(super) fn awake(&self) -> bool {
        self.agent && !self.frozen
    }

    pub(super) fn start_job(&mut self, job: Job, op: Op, tick: u8) {
        self.job = Some(Sum::new(RunningJob { job, since: at(tick) }));
        (self.finished, self.server.op) = (None, Some(op));
    }

    /// The server is dead, at once.
    pub(super) fn kill_server(&mut self, tick: u8) {
        (self.server.up, self.server.clean, self.server.op) = (false, false, None);
        self.end_job(tick, Some("PostgreSQL was killed".into()));
    }

    pub(super) fn end_job(&mut self, tick: u8, error: Option<String>) {
        if let Some(running) = self.job.take().filter(|_| self.agent) {
            self.finished = Some(Sum::new(FinishedJob { job: running.job.clone(), at: at(tick), error }));
        }
    }

    /// The agent is dead, and all that it knew.
    pub(super) fn kill_agent(&mut self) {
        self.memory = Sum::new(Memory::default());
        (self.agent, self.frozen, self.lease, self.claims) = (false, false, None, true);
        (self.pending, self.peers, self.published, self.job, self.finished) = (None, None, None, None, None);
    }
}
