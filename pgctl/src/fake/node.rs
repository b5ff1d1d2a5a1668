//! The hand on one twin: the [`Postgres`] of an agent, what a client does, and what goes wrong.

use std::collections::BTreeMap;
use std::time::Duration;

use regent_core::callbacks::Callback;
use regent_core::config::Logical;
use regent_core::postgres::{PgState, SlotChanges, StopMode, Upkeep, Upstream};
use regent_core::sync::Waits;
use regent_core::units::{Lsn, MemberName, SystemId, Timeline};

use super::look::look;
use super::wal::{CHECKPOINT_BYTES, Kind, WRITE_BYTES};
use super::world::{Build, Cluster, Data, Node, Phase, Server, Slot, Waiting, World};
use super::{FakeNetwork, Timings, Transition};
use crate::settings::Settings;
use crate::{PgError, Postgres};

/// How long a start waits for the server to accept connections, as the real one.
const START_GRACE: Duration = Duration::from_secs(1);
/// The longest wait for a promotion.
const PROMOTE_LIMIT: Duration = Duration::from_secs(60);
/// Until every WAL sender has read its configuration again.
const RELOAD: Duration = Duration::from_millis(500);
/// What every clone copies, for its progress.
const CLONE_BYTES: u64 = 1_000_000_000;

/// One machine's PostgreSQL.
#[derive(Clone)]
pub struct FakePostgres {
    network: FakeNetwork,
    index: usize,
}

/// Why a client got nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// Nothing listens.
    #[error("connection refused")]
    Refused,
    /// It starts or stops.
    #[error("the database system is not accepting connections")]
    NotAccepting,
    /// A standby.
    #[error("cannot execute INSERT in a read-only transaction")]
    ReadOnly,
    /// The write was done, and its acknowledgement waits for a standby.
    #[error("waiting for synchronous replication")]
    Waits,
    /// There is no such slot.
    #[error("replication slot does not exist")]
    NoSlot,
    /// No answer came; the write did not happen either.
    #[error("no answer")]
    NoAnswer,
}

impl FakePostgres {
    pub(super) fn new(network: FakeNetwork, index: usize) -> Self {
        FakePostgres { network, index }
    }

    fn with<T>(&self, change: impl FnOnce(&mut World, usize) -> T) -> T {
        self.network.with(|world| change(world, self.index))
    }

    fn node<T>(&self, change: impl FnOnce(&mut Node) -> T) -> T {
        self.with(|world, index| change(&mut world.nodes[index]))
    }

    /// Changes how long things take from now on.
    pub fn tune(&self, change: impl FnOnce(&mut Timings)) {
        self.with(|world, index| {
            change(&mut world.nodes[index].timings);
            world.changed = true;
        });
    }

    /// The member whose server this is.
    #[must_use]
    pub fn name(&self) -> MemberName {
        self.node(|node| node.name.clone())
    }

    // ---- a client

    /// Writes; an acknowledged write is in this node's log, and nowhere else yet.
    pub fn insert(&self, id: u64) -> Result<Lsn, Rejected> {
        self.insert_bytes(id, WRITE_BYTES)
    }

    /// Writes a record of `bytes`.
    pub fn insert_bytes(&self, id: u64, bytes: u64) -> Result<Lsn, Rejected> {
        self.with(|world, index| {
            let (server, cluster) = connect(&world.nodes[index])?;
            if server.in_recovery {
                return Err(Rejected::ReadOnly);
            }
            let (timeline, pid) = (cluster.log.timeline(), server.pid);
            let alone = cluster.waits(world.now).iter().any(|waits| waits.numsync == 0 && !waits.blocked);
            let end = world.write(index, Kind::Write(id), bytes, timeline);
            if alone {
                return Ok(end);
            }
            let record = world.records.len().saturating_sub(1);
            world.waiting.push(Waiting { node: index, pid, record, write: id });
            Err(Rejected::Waits)
        })
    }

    /// Reads: ids of the writes that a query on this server sees now, oldest first.
    pub fn select(&self) -> Result<Vec<u64>, Rejected> {
        self.node(|node| connect(node).map(|(_, cluster)| cluster.log.writes()))
    }

    /// A consumer of a logical slot reads what there is, and confirms it. Tells which slot it was (copies of one are that one), and
    /// the ids of the writes, oldest first.
    pub fn consume(&self, slot: &str) -> Result<(u64, Vec<u64>), Rejected> {
        self.with(|world, index| {
            let (server, _) = connect(&world.nodes[index])?;
            if server.in_recovery {
                return Err(Rejected::ReadOnly);
            }
            let Data::Present(cluster) = &mut world.nodes[index].data else { return Err(Rejected::Refused) };
            let Cluster { slots, log, .. } = &mut **cluster;
            let slot = slots.get_mut(slot).filter(|slot| slot.logical.is_some()).ok_or(Rejected::NoSlot)?;
            let new = log.writes_since(slot.at);
            slot.at = log.end();
            world.changed = true;
            Ok((slot.made, new))
        })
    }

    /// What a slot needs is gone.
    pub fn lose_slot(&self, name: &str) {
        self.node(|node| {
            if let Data::Present(cluster) = &mut node.data {
                cluster.slots.entry(name.to_owned()).and_modify(|slot| slot.lost = true);
            }
        });
    }

    /// A write sent now would be acknowledged now.
    #[must_use]
    pub fn can_write(&self) -> bool {
        self.node(|node| node.can_write())
    }

    /// Ids of the writes in this node's log, oldest first, running or not.
    #[must_use]
    pub fn records(&self) -> Vec<u64> {
        self.node(|node| match &node.data {
            Data::Present(cluster) => cluster.log.writes(),
            Data::Empty | Data::Unfinished | Data::HalfRewound => Vec::new(),
        })
    }

    /// Which cluster this node's data belongs to, if it has any.
    #[must_use]
    pub fn system_id(&self) -> Option<SystemId> {
        self.node(|node| match &node.data {
            Data::Present(cluster) => Some(cluster.control.system_id),
            Data::Empty | Data::Unfinished | Data::HalfRewound => None,
        })
    }

    /// It runs, accepts connections and is in recovery.
    #[must_use]
    pub fn is_standby(&self) -> bool {
        self.node(|node| {
            let server = node.server.as_ref();
            server.is_some_and(|server| server.phase == Phase::Accepting && server.in_recovery)
        })
    }

    /// Timeline and end of this node's log, running or not.
    #[must_use]
    pub fn end(&self) -> Option<(Timeline, Lsn)> {
        self.node(|node| match &node.data {
            Data::Present(cluster) => Some((cluster.log.timeline(), cluster.log.end())),
            Data::Empty | Data::Unfinished | Data::HalfRewound => None,
        })
    }

    /// What a commit may be acknowledged by at this instant; each of them is enough, as WAL senders reload one by one.
    #[must_use]
    pub fn waits(&self) -> Vec<Waits> {
        self.with(|world, index| match &world.nodes[index].data {
            Data::Present(cluster) => cluster.waits(world.now),
            Data::Empty | Data::Unfinished | Data::HalfRewound => Vec::new(),
        })
    }

    /// The settings that [`Postgres::configure`] gave last.
    #[must_use]
    pub fn settings(&self) -> Option<Settings> {
        self.node(|node| node.settings.clone())
    }

    // ---- what goes wrong

    /// SIGKILL of the postmaster and its children.
    pub fn kill(&self) {
        self.with(|world, index| world.end(index, Transition::Crashed));
    }

    /// SIGINT to the postmaster: a fast stop.
    pub fn interrupt(&self) {
        self.with(|world, index| world.begin_stop(index, true));
    }

    /// The postmaster that runs, in whatever state.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.with(|world, index| world.pid(index))
    }

    /// SIGSTOP of the postmaster and its children: no answer, no progress, no write.
    pub fn freeze(&self) {
        self.set_frozen(true);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.set_frozen(false);
    }

    fn set_frozen(&self, frozen: bool) {
        self.with(|world, index| {
            let Some(server) = world.nodes[index].server.as_mut().filter(|server| server.frozen != frozen) else {
                return;
            };
            server.frozen = frozen;
            world.report(index, if frozen { Transition::Frozen } else { Transition::Thawed });
            world.resume(index);
        });
    }

    /// The data directory's disk answers no more, or again. A server on it hangs.
    pub fn hang_disk(&self, hung: bool) {
        self.with(|world, index| {
            world.nodes[index].disk_hung = hung;
            world.resume(index);
        });
    }

    /// The data directory is gone, and whatever runs on it does not know yet: an unmounted disk, a wrong `rm`.
    pub fn lose_data(&self) {
        self.node(|node| node.data = Data::Empty);
    }

    /// Pauses replay, as PostgreSQL does when the primary's settings outgrow a standby's.
    pub fn pause_replay(&self) {
        self.node(|node| node.replay_paused = true);
    }

    /// Removes all log that is written, whoever may need it.
    pub fn recycle_log(&self) {
        self.node(|node| {
            if let Data::Present(cluster) = &node.data {
                node.log_from = cluster.log.end();
            }
        });
    }

    /// The next `count` starts fail.
    pub fn fail_starts(&self, count: u32) {
        self.node(|node| node.failing_starts = count);
    }

    /// The next `count` clones fail, at their end.
    pub fn fail_clones(&self, count: u32) {
        self.node(|node| node.failing_clones = count);
    }

    /// The user's `pre_promote` refuses the next `count` promotions.
    pub fn refuse_promotions(&self, count: u32) {
        self.node(|node| node.failing_pre_promotes = count);
    }

    /// Takes a backup of this node's data, from which [`Postgres::restore`] restores on every node.
    pub fn back_up(&self) {
        self.with(|world, index| world.back_up(index));
    }

    /// The callbacks that were called, and when.
    #[must_use]
    pub fn calls(&self) -> Vec<(Duration, Callback)> {
        self.node(|node| node.called.clone())
    }

    /// The next `count` rewinds fail, before they change anything.
    pub fn fail_rewinds(&self, count: u32) {
        self.node(|node| node.failing_rewinds = count);
    }

    /// The next `count` rewinds fail when they have begun to change the data directory.
    pub fn break_rewinds(&self, count: u32) {
        self.node(|node| node.breaking_rewinds = count);
    }

    /// Neither checksums nor `wal_log_hints`: pg_rewind is impossible.
    pub fn forget_hints(&self) {
        self.node(|node| {
            if let Data::Present(cluster) = &mut node.data {
                cluster.control.rewindable = false;
            }
        });
    }

    // ---- parts of the trait

    async fn pause(&self, time: Duration) {
        let until = self.network.now().saturating_add(time);
        let nothing: Option<()> = self.network.wait(Some(until), |_| None).await;
        debug_assert!(nothing.is_none());
    }

    async fn start(&self, in_recovery: bool, upstream: Upstream) -> Result<(), PgError> {
        let (pid, until) = self.with(|world, index| {
            let node = &mut world.nodes[index];
            if node.server.is_some() {
                return Err(PgError::Refused("PostgreSQL runs already; stop it first".to_owned()));
            }
            if matches!(node.data, Data::HalfRewound) {
                world.misuses.push(("X8", format!("{} was started half-rewound", world.nodes[index].name)));
                return Err(PgError::Refused("the data directory is half-rewound".to_owned()));
            }
            let Data::Present(cluster) = &mut node.data else {
                return Err(PgError::Refused("the data directory is not usable; clone it first".to_owned()));
            };
            if let Some(left) = node.failing_starts.checked_sub(1) {
                node.failing_starts = left;
                return Err(ended("could not start: planned fault"));
            }
            cluster.upstream = upstream;
            world.begin_start(index, in_recovery);
            Ok((world.pid(index), world.now.saturating_add(START_GRACE)))
        })?;
        let index = self.index;
        let outcome = self.network.wait(Some(until), |world| match &world.nodes[index].server {
            Some(server) if Some(server.pid) == pid => (server.phase == Phase::Accepting).then_some(Ok(())),
            Some(_) | None => Some(Err(ended("ended before it accepted connections"))),
        });
        outcome.await.unwrap_or(Ok(()))
    }

    /// Runs a clone or initdb; the directory stays unfinished if this future is dropped.
    async fn build(&self, source: Source) -> Result<(), PgError> {
        let until = self.with(|world, index| {
            let Node { data, server, build, timings, .. } = &world.nodes[index];
            if !matches!(data, Data::Empty) || server.is_some() || build.is_some() {
                return Err(PgError::Refused("the data directory is not empty; nothing was changed".to_owned()));
            }
            let time = if source == Source::Nothing { timings.bootstrap } else { timings.clone };
            let until = world.now.saturating_add(time);
            let source = source.member().and_then(|source| Some((source, world.pid(source)?)));
            world.nodes[index].build = Some(Build { since: world.now, until, source, patient: false, failed: None });
            world.nodes[index].data = Data::Unfinished;
            Ok(until)
        })?;
        let _guard = BuildGuard(self);
        let index = self.index;
        let failed = self.network.wait(Some(until), |world| {
            let build = world.nodes[index].build.as_ref();
            build.and_then(|build| build.failed.clone())
        });
        let failed = failed.await;
        self.with(|world, index| {
            let node = &mut world.nodes[index];
            let fault = source != Source::Nothing && node.failing_clones > 0;
            let cause = match failed {
                Some(cause) => Some(cause),
                None if fault => Some("planned fault".to_owned()),
                None => node.disk_hung.then(|| "input/output error".to_owned()),
            };
            node.data = Data::Empty;
            if fault {
                node.failing_clones -= 1;
            }
            if let Some(output) = cause {
                let program = source.program().to_owned();
                return Err(PgError::Program { program, status: "exit status: 1".to_owned(), output });
            }
            match source {
                Source::Member(source) => world.copy(source, index),
                Source::Backup => world.restore(index),
                Source::Nothing => world.initialise(index),
            }
            Ok(())
        })
    }

    /// The member at `conn_url`, if `program` can read from it.
    fn source(&self, program: &str, source: &MemberName, conn_url: &str) -> Result<usize, PgError> {
        self.with(|world, index| {
            let found = world.find(conn_url).filter(|found| *found != index);
            let found = found.ok_or_else(|| failed(program, format!("{source} at {conn_url}: connection refused")))?;
            world.unusable_source(index, found, None).map_or(Ok(found), |cause| Err(failed(program, cause)))
        })
    }

    /// Waits for `until`, and for a `source` that keeps silent, or for the failure of that.
    async fn rewound_until(&self, until: Duration, source: usize) -> Result<(), PgError> {
        let index = self.index;
        let failure = |world: &mut World| world.nodes[index].build.as_ref().and_then(|build| build.failed.clone());
        let mut cause = self.network.wait(Some(until), failure).await;
        if cause.is_none() {
            let ended = |world: &mut World| match failure(world) {
                Some(cause) => Some(Some(cause)),
                None => (!world.nodes[source].stalled()).then_some(None),
            };
            cause = self.network.wait(None, ended).await.flatten();
        }
        cause.map_or(Ok(()), |cause| Err(failed("pg_rewind", cause)))
    }

    fn accepting<T>(&self, what: &str, change: impl FnOnce(&mut World, usize) -> T) -> Result<T, PgError> {
        self.with(|world, index| {
            let cause = match &world.nodes[index].server {
                None => "connection refused",
                Some(_) if world.nodes[index].stalled() => "no answer",
                Some(server) if server.phase != Phase::Accepting => "the database system is not accepting connections",
                Some(_) => return Ok(change(world, index)),
            };
            Err(PgError::Sql { what: what.to_owned(), cause: cause.to_owned() })
        })
    }
}

/// What a data directory is made of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// initdb.
    Nothing,
    /// A member's.
    Member(usize),
    /// A backup in an archive.
    Backup,
}

impl Source {
    fn member(self) -> Option<usize> {
        match self {
            Source::Member(index) => Some(index),
            Source::Nothing | Source::Backup => None,
        }
    }

    fn program(self) -> &'static str {
        match self {
            Source::Nothing => "initdb",
            Source::Member(_) => "pg_basebackup",
            Source::Backup => "restore",
        }
    }
}

/// Ends a build that was not waited for.
struct BuildGuard<'a>(&'a FakePostgres);

impl Drop for BuildGuard<'_> {
    fn drop(&mut self) {
        // Not through the network: nothing follows from this, and the clock may be gone already.
        if let Ok(mut world) = self.0.network.world.try_borrow_mut() {
            world.nodes[self.0.index].build = None;
        }
    }
}

/// What a client gets to talk to.
fn connect(node: &Node) -> Result<(&Server, &Cluster), Rejected> {
    let (Some(server), Data::Present(cluster)) = (&node.server, &node.data) else { return Err(Rejected::Refused) };
    match server.phase {
        _ if node.stalled() => Err(Rejected::NoAnswer),
        Phase::Starting | Phase::Stopping { .. } | Phase::Quitting => Err(Rejected::NotAccepting),
        Phase::Accepting => Ok((server, cluster)),
    }
}

fn ended(output: &str) -> PgError {
    failed("postgres", output.to_owned())
}

fn failed(program: &str, output: String) -> PgError {
    PgError::Program { program: program.to_owned(), status: "exit status: 1".to_owned(), output }
}

impl Postgres for FakePostgres {
    async fn observe(&self, within: Duration) -> PgState {
        let (silent, time) = self.node(|node| (node.stalled() || node.disk_hung, node.timings.observe));
        self.pause(if silent { within } else { time.min(within) }).await;
        self.with(|world, index| look(world, index, within, time <= within))
    }

    async fn exited(&self) {
        let index = self.index;
        let Some(watched) = self.node(|node| node.watched) else { return std::future::pending().await };
        let gone = |world: &mut World| (world.pid(index) != Some(watched)).then_some(());
        self.network.wait(None, gone).await;
    }

    async fn bootstrap(&self) -> Result<(), PgError> {
        self.build(Source::Nothing).await
    }

    async fn clone_from(&self, source: &MemberName, conn_url: &str) -> Result<(), PgError> {
        let found = self.source("pg_basebackup", source, conn_url)?;
        self.build(Source::Member(found)).await
    }

    async fn restore(&self) -> Result<(), PgError> {
        if self.with(|world, _| world.backup.is_none()) {
            return Err(failed("restore", "there is no backup".to_owned()));
        }
        self.build(Source::Backup).await
    }

    fn clone_progress(&self) -> Option<(u64, Option<u64>)> {
        self.with(|world, index| {
            let build = world.nodes[index].build.as_ref().filter(|build| build.source.is_some())?;
            let (passed, whole) = (world.now.saturating_sub(build.since), build.until.saturating_sub(build.since));
            let permille = passed.as_millis().saturating_mul(1000).checked_div(whole.as_millis()).unwrap_or(1000);
            let permille = u64::try_from(permille).unwrap_or(1000).min(1000);
            Some((CLONE_BYTES / 1000 * permille, Some(CLONE_BYTES)))
        })
    }

    async fn rewind(&self, source: &MemberName, conn_url: &str) -> Result<(), PgError> {
        let found = self.source("pg_rewind", source, conn_url)?;
        let (half, whole) = self.with(|world, index| {
            if !matches!(world.nodes[index].data, Data::Present(_)) || world.pid(index).is_some() {
                return Err(PgError::Refused("only a data directory without a server can be rewound".to_owned()));
            }
            let standby = world.nodes[found].server.as_ref().is_some_and(|server| server.in_recovery);
            let source = world.pid(found).filter(|_| !standby).map(|pid| (found, pid));
            let source = source.ok_or_else(|| failed("pg_rewind", "session is read-only".to_owned()))?;
            let (since, time) = (world.now, world.nodes[index].timings.rewind);
            let until = since.saturating_add(time);
            world.nodes[index].build = Some(Build { since, until, source: Some(source), patient: true, failed: None });
            world.recover(index);
            Ok((since.saturating_add(time / 2), until))
        })?;
        let _guard = BuildGuard(self);
        self.rewound_until(half, found).await?;
        let nothing_to_do = self.with(|world, index| {
            let node = &mut world.nodes[index];
            if let Some(left) = node.failing_rewinds.checked_sub(1) {
                node.failing_rewinds = left;
                return Err(failed("pg_rewind", "planned fault".to_owned()));
            }
            if world.believes_nothing_diverged(found, index) {
                return Ok(true);
            }
            world.give_up_copy(index, Data::HalfRewound);
            let node = &mut world.nodes[index];
            if let Some(left) = node.breaking_rewinds.checked_sub(1) {
                node.breaking_rewinds = left;
                return Err(failed("pg_rewind", "planned fault, halfway".to_owned()));
            }
            Ok(false)
        })?;
        if !nothing_to_do {
            self.rewound_until(whole, found).await?;
            self.with(|world, index| world.rewound(found, index));
        }
        Ok(())
    }

    async fn give_up_data(&self, source: &MemberName, conn_url: &str) -> Result<(), PgError> {
        if self.with(|world, index| world.pid(index).is_some()) {
            return Err(PgError::Refused("a server runs on it; stop it first".to_owned()));
        }
        self.source("psql", source, conn_url)?;
        self.with(|world, index| {
            world.give_up_copy(index, Data::Empty);
            world.nodes[index].old_copy = true;
        });
        Ok(())
    }

    async fn discard_old_copy(&self) -> Result<(), PgError> {
        self.node(|node| node.old_copy = false);
        Ok(())
    }

    async fn start_primary(&self) -> Result<(), PgError> {
        self.start(false, Upstream::Nobody).await
    }

    async fn start_standby(&self, upstream: &Upstream) -> Result<(), PgError> {
        self.start(true, upstream.clone()).await
    }

    async fn follow(&self, upstream: &Upstream) -> Result<(), PgError> {
        self.with(|world, index| match &mut world.nodes[index] {
            Node { server: Some(server), data: Data::Present(cluster), .. } if server.in_recovery => {
                cluster.upstream = upstream.clone();
                world.changed = true;
                Ok(())
            }
            Node { .. } => Err(PgError::Refused("no standby runs here; start one instead".to_owned())),
        })
    }

    async fn stop(&self, mode: StopMode, within: Duration) -> Result<(), PgError> {
        let index = self.index;
        let steps = match mode {
            StopMode::Fast => vec![(true, within)],
            StopMode::FastThenImmediate => vec![(true, within * 2 / 3), (false, within / 3)],
            StopMode::Immediate => vec![(false, within)],
        };
        for (fast, within) in steps {
            let (pid, until) = self.with(|world, index| {
                world.begin_stop(index, fast);
                (world.pid(index), world.now.saturating_add(within))
            });
            let gone = |world: &mut World| (world.pid(index).is_none() || world.pid(index) != pid).then_some(());
            if self.network.wait(Some(until), gone).await.is_some() {
                return Ok(());
            }
        }
        if mode == StopMode::Fast {
            return Err(PgError::Timeout { what: "fast stop".to_owned(), limit: within });
        }
        self.with(|world, index| world.end(index, Transition::Stopped));
        Ok(())
    }

    async fn promote(&self, timeline: Timeline, told: Option<Callback>) -> Result<(), PgError> {
        let (pid, until) = self.accepting("promote", |world, index| {
            let (Some(server), Data::Present(cluster)) = (&world.nodes[index].server, &world.nodes[index].data) else {
                return Err(PgError::Refused("no server runs here".to_owned()));
            };
            let own = cluster.log.timeline();
            if !server.in_recovery || server.promoting.is_some() {
                return Err(PgError::Refused("only a standby can be promoted, and only once".to_owned()));
            }
            if timeline <= own {
                return Err(PgError::Refused(format!("timeline {timeline} is not above the server's own, {own}")));
            }
            let pid = server.pid;
            world.begin_promotion(index, timeline);
            Ok((pid, world.now.saturating_add(PROMOTE_LIMIT)))
        })??;
        if let Some(callback) = told {
            self.call(callback);
        }
        let index = self.index;
        let outcome = self.network.wait(Some(until), |world| match &world.nodes[index].server {
            Some(server) if server.pid == pid && server.phase == Phase::Accepting => {
                (!server.in_recovery).then_some(Ok(()))
            }
            Some(_) | None => Some(Err(ended("stopped before it was promoted"))),
        });
        let what = || "promotion".to_owned();
        outcome.await.unwrap_or_else(|| Err(PgError::Timeout { what: what(), limit: PROMOTE_LIMIT }))
    }

    async fn pre_promote(&self) -> Result<(), PgError> {
        self.pause(self.node(|node| node.timings.pre_promote)).await;
        self.node(|node| match node.failing_pre_promotes.checked_sub(1) {
            None => Ok(()),
            Some(left) => {
                node.failing_pre_promotes = left;
                Err(failed("pre_promote", "planned fault".to_owned()))
            }
        })
    }

    fn call(&self, callback: Callback) {
        self.with(|world, index| {
            let now = world.now;
            world.nodes[index].called.push((now, callback));
        });
    }

    async fn called(&self) {}

    async fn checkpoint(&self) -> Result<(), PgError> {
        let time = self.accepting("CHECKPOINT", |world, index| world.nodes[index].timings.checkpoint)?;
        self.pause(time).await;
        self.accepting("CHECKPOINT", |world, index| {
            let node = &mut world.nodes[index];
            let (Some(server), Data::Present(cluster)) = (&node.server, &mut node.data) else { return };
            if server.in_recovery {
                cluster.restart_point();
            } else {
                let timeline = cluster.log.timeline();
                world.write(index, Kind::Checkpoint, CHECKPOINT_BYTES, timeline);
            }
        })
    }

    async fn resume_replay(&self) -> Result<(), PgError> {
        self.accepting("pg_wal_replay_resume", |world, index| world.nodes[index].replay_paused = false)
    }

    async fn set_sync_names(&self, names: Option<&str>) -> Result<(), PgError> {
        self.accepting("synchronous_standby_names", |world, index| {
            if let Data::Present(cluster) = &mut world.nodes[index].data {
                let before = std::mem::replace(&mut cluster.sync_names, names.unwrap_or_default().to_owned());
                cluster.sync_before = Some((before, world.now.saturating_add(RELOAD)));
                world.changed = true;
            }
        })
    }

    async fn change_slots(&self, changes: &SlotChanges) -> Result<(), PgError> {
        self.accepting("replication slots", |world, index| {
            let active = world.slots_in_use(index);
            let standby = world.nodes[index].server.as_ref().is_some_and(|server| server.in_recovery);
            if let Data::Present(cluster) = &mut world.nodes[index].data {
                let end = cluster.log.end();
                cluster.slots.retain(|name, _| active.contains_key(name) || !changes.drop.contains(name));
                for name in &changes.create {
                    cluster.slots.entry(name.clone()).or_insert(Slot { at: end, ..Slot::default() });
                }
                for (name, to) in changes.advance.iter().filter(|(name, _)| !active.contains_key(name)) {
                    cluster.slots.entry(name.clone()).and_modify(|slot| slot.at = slot.at.max((*to).min(end)));
                }
                if !changes.create_logical.is_empty() && standby {
                    let cause = "a logical slot cannot be made on a standby".to_owned();
                    return Err(PgError::Sql { what: "replication slots".to_owned(), cause });
                }
                for (name, logical) in &changes.create_logical {
                    world.last_slot += 1;
                    let slot = Slot { at: end, logical: Some(logical.clone()), made: world.last_slot, lost: false };
                    cluster.slots.entry(name.clone()).or_insert(slot);
                }
            }
            Ok(())
        })?
    }

    async fn copy_slots(
        &self,
        slots: &BTreeMap<String, Logical>,
        conn_url: &str,
        upstream: &Upstream,
    ) -> Result<(), PgError> {
        let what = "reading logical slots";
        let source = self.source(what, &"the leader".into(), conn_url)?;
        let copies = self.with(|world, index| {
            let (Data::Present(theirs), Data::Present(mine)) = (&world.nodes[source].data, &world.nodes[index].data)
            else {
                return Err(failed(what, "no data".to_owned()));
            };
            if world.nodes[source].server.as_ref().is_none_or(|server| server.in_recovery) {
                return Err(failed(what, "it is a standby".to_owned()));
            }
            let fits = |name: &String, slot: &Slot| slot.logical.as_ref() == slots.get(name) && slot.logical.is_some();
            let all = theirs.slots.iter().filter(|(name, slot)| fits(name, slot) && !slot.lost);
            let copies: Vec<_> = all.map(|(name, slot)| (name.clone(), slot.clone())).collect();
            match copies.iter().find(|(_, slot)| slot.at > mine.log.end()) {
                Some((name, _)) => Err(failed(what, format!("this server has not replayed as far as {name}"))),
                None if copies.is_empty() => Err(failed(what, "the leader has none of them".to_owned())),
                None => Ok(copies),
            }
        })?;
        self.stop(StopMode::Fast, Duration::from_secs(60)).await?;
        self.node(|node| {
            node.leader_xmins.clear();
            if let Data::Present(cluster) = &mut node.data {
                cluster.slots.extend(copies);
            }
        });
        self.start(true, upstream.clone()).await
    }

    fn look_after_slots(&self, upkeep: &Upkeep) {
        let Ok(source) = self.accepting("logical slots", |world, index| {
            if let Data::Present(cluster) = &mut world.nodes[index].data {
                let end = cluster.log.end();
                for (name, (_, to)) in &upkeep.advance {
                    cluster.slots.entry(name.clone()).and_modify(|slot| slot.at = slot.at.max((*to).min(end)));
                }
            }
            let leader = upkeep.ask.as_ref().or(upkeep.needs.as_ref().map(|(conn_url, _)| conn_url));
            leader.and_then(|conn_url| world.find(conn_url))
        }) else {
            return;
        };
        self.with(|world, index| {
            if let Some(source) = source.filter(|source| world.unusable_source(index, *source, None).is_none()) {
                world.nodes[index].leader_xmins = world.xmins(source);
                let removed = world.nodes[source].log_from;
                world.nodes[index].log_gone =
                    upkeep.needs.as_ref().map(|(_, from)| *from).filter(|from| *from < removed);
            }
        });
    }

    async fn remove_unfinished(&self) -> Result<(), PgError> {
        self.node(|node| match node.data {
            Data::Unfinished if node.build.is_none() => {
                node.data = Data::Empty;
                Ok(())
            }
            Data::Unfinished => Err(PgError::Refused("a clone or initdb still runs; end it first".to_owned())),
            Data::Empty | Data::HalfRewound | Data::Present(_) => {
                Err(PgError::Refused("the data directory is not ours to remove".to_owned()))
            }
        })
    }

    async fn set_aside(&self) -> Result<(), PgError> {
        self.stop(StopMode::Immediate, Duration::ZERO).await?;
        self.node(|node| node.data = Data::Empty);
        Ok(())
    }

    async fn configure(&self, settings: Settings) -> Result<(), PgError> {
        self.node(|node| node.settings = Some(settings));
        Ok(())
    }
}
