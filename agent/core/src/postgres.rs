//! What this machine says of its PostgreSQL: data directory, process, and the answers of one query.

use serde::{Deserialize, Serialize};

use std::collections::BTreeMap;

use crate::cluster::HistoryLine;
use crate::config::Logical;
use crate::units::{Instant, Lsn, SystemId, Timeline};

/// One look at the local PostgreSQL. Never an error: a part that could not be read says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgState {
    /// The data directory on disk.
    pub data_dir: DataDir,
    /// The postmaster.
    pub process: Process,
    /// What a fresh connection found.
    pub probe: Probe,
    /// Facts from SQL, when the server answered in time.
    pub sql: Option<SqlFacts>,
    /// Lines of the newest timeline history file in `pg_wal`, oldest first: how this node's own log came to be.
    /// Only the last line has a time (that of the file). Empty on timeline 1, or when it could not be read.
    pub local_history: Vec<HistoryLine>,
    /// The same of the newest timeline above its own: where its upstream has gone on to, as the WAL receiver found. Of a standby
    /// that receives nothing, or that is down; empty when there is none.
    #[serde(default)]
    pub newer_history: Vec<HistoryLine>,
    /// An earlier data directory of this node lies beside the present one, moved aside for a clone.
    pub old_copy: bool,
}

/// The data directory (ha-rules section 2, "data directory").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DataDir {
    /// Missing or empty: nothing to lose.
    Empty,
    /// Could not be read in time, or at all.
    Unreadable(String),
    /// Half-made by a clone or initdb of ours that was interrupted; a marker beside it says so, and it may be removed.
    Unfinished,
    /// pg_rewind began to change it and did not end; a marker beside it says so. No server may start on it.
    HalfRewound,
    /// Something is there that is not a usable data directory: wrong owner, wrong version, no control file. Untouchable.
    Unusable(String),
    /// A data directory of the installed major version.
    Present(Present),
}

/// A usable data directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Present {
    /// `pg_controldata`, when it could be read.
    pub control: Option<ControlData>,
    /// `standby.signal` or `recovery.signal` is there.
    pub standby_signal: bool,
    /// `backup_label` is there.
    pub backup_label: bool,
}

/// The parts of `pg_controldata` that decisions read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlData {
    /// Identity of the cluster that this directory belongs to.
    pub system_id: SystemId,
    /// "Database cluster state".
    pub state: ClusterState,
    /// Timeline of the latest checkpoint.
    pub timeline: Timeline,
    /// Position of the latest checkpoint record.
    pub checkpoint: Lsn,
    /// Where that record ends, read from the log itself; only for a server that was shut down as a primary.
    pub checkpoint_end: Option<Lsn>,
    /// Minimum recovery ending location and its timeline; `None` for 0/0, as on a former primary.
    pub min_recovery: Option<(Timeline, Lsn)>,
    /// pg_rewind could work: `wal_log_hints` or checksums are on.
    pub rewindable: bool,
}

/// "Database cluster state" of `pg_controldata` (PostgreSQL: `DBState`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClusterState {
    /// `starting up`
    StartingUp,
    /// `shut down`
    ShutDown,
    /// `shut down in recovery`
    ShutDownInRecovery,
    /// `shutting down`
    ShuttingDown,
    /// `in crash recovery`
    InCrashRecovery,
    /// `in archive recovery`
    InArchiveRecovery,
    /// `in production`
    InProduction,
}

impl ClusterState {
    /// The server was a primary when this was written.
    #[must_use]
    pub fn was_primary(self) -> bool {
        matches!(
            self,
            ClusterState::ShutDown
                | ClusterState::ShuttingDown
                | ClusterState::InCrashRecovery
                | ClusterState::InProduction
        )
    }
}

/// The postmaster process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Process {
    /// No postmaster of ours runs on the data directory.
    Down,
    /// It runs (verified as ours).
    Up {
        /// Process id of the postmaster.
        pid: u32,
    },
}

/// What a fresh connection with a deadline found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Probe {
    /// Not asked: no process.
    NotAsked,
    /// It accepts connections.
    Accepting,
    /// It answers that it does not accept connections yet, or no more ("rejecting").
    Rejecting,
    /// No answer in time. Not evidence of anything (O1).
    Silent,
}

/// One query's answers (ha-rules section 2, "SQL facts").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SqlFacts {
    /// `pg_is_in_recovery()`
    pub in_recovery: bool,
    /// Primary: the timeline it writes. Standby: the timeline it receives, else the one it replays.
    pub timeline: Option<Timeline>,
    /// Primary: flush position. Zero on a standby.
    pub flush_lsn: Lsn,
    /// Standby: received and written position, when there is or was a receiver.
    pub receive_lsn: Option<Lsn>,
    /// Standby: replayed position.
    pub replay_lsn: Option<Lsn>,
    /// Standby: replay is paused.
    pub replay_paused: bool,
    /// Standby: commit time of the last replayed transaction, as PostgreSQL prints it.
    pub replayed_at: Option<String>,
    /// Standby: the WAL receiver's state is `streaming`.
    pub streaming: bool,
    /// Standby: latest end position that the WAL receiver was told of (`pg_stat_wal_receiver.latest_end_lsn`).
    pub latest_end_lsn: Option<Lsn>,
    /// Standby: `restore_command` is set.
    pub restores_from_archive: bool,
    /// Standby: `host:port` of `primary_conninfo` in force; `None` when it has no upstream.
    pub upstream: Option<String>,
    /// `pg_postmaster_start_time()`, as PostgreSQL prints it.
    pub started_at: String,
    /// `server_version_num`
    pub server_version: u32,
    /// Replication slots.
    pub slots: Vec<Slot>,
    /// Standby: `catalog_xmin` of the leader's slots, by name, when the leader was last asked ([`Upkeep::ask`]).
    #[serde(default)]
    pub leader_xmins: BTreeMap<String, u32>,
    /// Standby: from this position on the leader has removed its log, as it said when it was last asked ([`Upkeep::needs`]).
    #[serde(default)]
    pub log_gone: Option<Lsn>,
    /// `synchronous_standby_names`
    pub sync_names: String,
    /// WAL senders.
    pub replication: Vec<WalSender>,
    /// Settings that wait for a restart: name, running value, wanted value.
    pub pending_restart: Vec<(String, String, String)>,
}

/// A row of `pg_replication_slots`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// `slot_name`
    pub name: String,
    /// What it decodes; physical: none.
    pub logical: Option<Logical>,
    /// Physical: `restart_lsn`; logical: `confirmed_flush_lsn`. `None` while it keeps nothing, or is still being made.
    pub position: Option<Lsn>,
    /// Somebody is connected to it.
    pub active: bool,
    /// It holds back vacuum (`xmin` or `catalog_xmin`).
    pub holds_xmin: bool,
    /// `catalog_xmin`: vacuum keeps what transactions from this one on can see of the catalogs.
    #[serde(default)]
    pub catalog_xmin: Option<u32>,
    /// What it should keep is gone (`wal_status` is `lost`, or the server said so when it was to be moved on).
    pub lost: bool,
    /// Temporary, or made with `failover` on (PostgreSQL 17): PostgreSQL itself looks after it.
    pub foreign: bool,
}

/// What is to be done about slots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotChanges {
    /// Removed, unless somebody is connected by then.
    pub drop: Vec<String>,
    /// Physical ones, created after that, if they are not there; they keep WAL from now on.
    pub create: Vec<String>,
    /// Logical ones, likewise; of a primary.
    pub create_logical: BTreeMap<String, Logical>,
    /// Physical ones, moved forward to this position, or as far as this server has replayed.
    pub advance: Vec<(String, Lsn)>,
}

/// What a standby does beside all else, on connections of its own, about its logical slots (decoding takes its time) and the log
/// that it waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upkeep {
    /// Moved forward to this position, or as far as this server has replayed; with the database of each.
    pub advance: BTreeMap<String, (String, Lsn)>,
    /// `conn_url` of the leader, to ask what its slots hold back ([`SqlFacts::leader_xmins`]); `None`: it is not asked.
    pub ask: Option<String>,
    /// `conn_url` of the leader, to ask whether it still has its log from this position on ([`SqlFacts::log_gone`]).
    pub needs: Option<(String, Lsn)>,
}

impl SlotChanges {
    /// These are to be there.
    #[must_use]
    pub fn creating<S: Into<String>>(names: impl IntoIterator<Item = S>) -> SlotChanges {
        SlotChanges { create: names.into_iter().map(Into::into).collect(), ..SlotChanges::default() }
    }
}

/// A row of `pg_stat_replication`, in the order of the status document (rest-api.md section 4, `replication`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalSender {
    /// `usename`
    pub usename: String,
    /// `application_name`; members connect with their name.
    pub application_name: String,
    /// `client_addr`; `None` for a local socket.
    pub client_addr: Option<String>,
    /// `state`
    pub state: String,
    /// `sync_state`
    pub sync_state: String,
    /// `sync_priority`
    pub sync_priority: i32,
    /// What a commit waits for: flushed, or as `synchronous_commit` says, written or replayed.
    pub position: Option<Lsn>,
}

impl SqlFacts {
    /// WAL position of this node (ha-rules section 2): a primary's flush position, a standby's newest position.
    #[must_use]
    pub fn position(&self) -> Lsn {
        if self.in_recovery { self.receive_lsn.max(self.replay_lsn).unwrap_or_default() } else { self.flush_lsn }
    }
}

impl PgState {
    /// Control data, when the directory is usable and it could be read.
    #[must_use]
    pub fn control(&self) -> Option<&ControlData> {
        match &self.data_dir {
            DataDir::Present(present) => present.control.as_ref(),
            DataDir::Empty
            | DataDir::Unreadable(_)
            | DataDir::Unfinished
            | DataDir::HalfRewound
            | DataDir::Unusable(_) => None,
        }
    }

    /// The postmaster runs.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(self.process, Process::Up { .. })
    }
}

/// How PostgreSQL is stopped (PostgreSQL documentation, "Shutting Down the Server").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopMode {
    /// Sessions are ended, a shutdown checkpoint is written.
    Fast,
    /// Fast while there is time, then immediate: a fast stop cuts off the clients and lets the WAL senders send what was
    /// acknowledged, which an immediate one takes along.
    FastThenImmediate,
    /// Every process quits at once; the next start needs crash recovery.
    Immediate,
}

impl StopMode {
    /// It ends within the stop budget, if need be by SIGKILL.
    #[must_use]
    pub fn is_forced(self) -> bool {
        match self {
            StopMode::FastThenImmediate | StopMode::Immediate => true,
            StopMode::Fast => false,
        }
    }
}

/// What a standby receives its log from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Upstream {
    /// Nothing: a read-only standby that waits to learn who leads.
    Nobody,
    /// Another member, by its `conn_url`.
    Member {
        /// Its name.
        name: crate::units::MemberName,
        /// `postgres://host:port/dbname`, without credentials.
        conn_url: String,
    },
}

/// The long action in flight; one at a time (ha-rules section 8, "Only one async action at a time").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Job {
    /// initdb, first start, roles (B4, B7).
    Bootstrap,
    /// `pg_basebackup` from a member (B13).
    Clone {
        /// The source.
        from: crate::units::MemberName,
    },
    /// A copy by a method that needs no other member (B3).
    Restore,
    /// `pg_rewind` to the leader (X6).
    Rewind {
        /// The source.
        from: crate::units::MemberName,
    },
    /// Moving aside, or removal, of data that cannot be repaired.
    GiveUpData,
    /// Removal of what was moved aside.
    DiscardOldCopy,
    /// Start as what the plan said.
    Start {
        /// Started as a primary, not as a standby.
        as_primary: bool,
    },
    /// Stop and start, as what the plan said.
    Restart {
        /// Started as a primary, not as a standby.
        as_primary: bool,
    },
    /// Stop.
    Stop(StopMode),
    /// The user's `pre_promote`.
    PrePromote,
    /// Promotion: from the signal to the end of recovery.
    Promote,
    /// New recovery settings for a running standby.
    Follow,
    /// The checkpoint after a promotion (L7).
    Checkpoint,
    /// Creation, removal or advance of replication slots.
    ChangeSlots,
    /// A copy of logical slots of the leader: stop, and start as a standby (P8).
    CopySlots,
    /// The end of a pause of replay.
    ResumeReplay,
    /// Another `synchronous_standby_names`.
    SetSyncNames,
    /// Removal of a directory that an interrupted clone or initdb of ours left behind.
    RemoveUnfinished,
    /// Stop and renaming of the directory of a failed bootstrap (B5).
    SetAside,
}

/// A job in progress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningJob {
    /// What runs.
    pub job: Job,
    /// Since when.
    pub since: Instant,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishedJob {
    /// What ran.
    pub job: Job,
    /// When it ended.
    pub at: Instant,
    /// The failure, for people, if it failed.
    pub error: Option<String>,
}
