//! Regent's hands on PostgreSQL 13 to 18: the controller behind a narrow trait, and an in-memory twin.
//!
//! Nothing here judges. Each method does one thing and says how it ended; what comes next is decided from the next
//! observation. A future that is dropped stops what it started (a clone, an initdb); a server that runs is never stopped
//! by dropping something.

#![expect(async_fn_in_trait, reason = "one generic agent, one thread per agent: no Send bounds wanted")]

use std::collections::BTreeMap;
use std::time::Duration;

use regent_core::callbacks::Callback;
use regent_core::config::Logical;
use regent_core::postgres::{PgState, SlotChanges, StopMode, Upkeep, Upstream};
use regent_core::units::{MemberName, Timeline};

pub mod catalog;
mod conf;
mod conninfo;
mod control;
mod create;
mod datadir;
mod disk;
pub mod fake;
mod guc;
mod history;
mod methods;
mod observe;
pub mod pem;
mod postmaster;
mod programs;
mod query;
pub mod real;
mod rewind;
mod run;
mod scripts;
pub mod settings;
mod slots;
pub mod tls;

pub use programs::keep_back;
pub use real::Server;
pub use settings::Settings;

/// The PostgreSQL of this node. A handle is cheap to clone; clones drive the same server.
pub trait Postgres: Clone + 'static {
    /// Looks at data directory, process and server. Takes no longer than `within`; what did not answer by then is reported
    /// as such. Never fails, never changes anything.
    async fn observe(&self, within: Duration) -> PgState;

    /// Returns as soon as the postmaster that the last [`Postgres::observe`] saw has exited (pidfd); pending for ever when it
    /// saw none.
    async fn exited(&self);

    /// Makes a new cluster: initdb, configuration, first start as a primary, roles (B4, B7). Leaves a running primary.
    async fn bootstrap(&self) -> Result<(), PgError>;

    /// Fills the empty data directory from a member by `pg_basebackup` (B13); does not start it.
    /// On failure the half-made directory is removed again (it was empty before).
    async fn clone_from(&self, source: &MemberName, conn_url: &str) -> Result<(), PgError>;

    /// Fills the empty data directory by the first of the user's methods that needs no other member (B3); does not start it.
    /// On failure as [`Postgres::clone_from`].
    async fn restore(&self) -> Result<(), PgError>;

    /// Bytes copied so far by a running clone, and the estimated whole when known.
    fn clone_progress(&self) -> Option<(u64, Option<u64>)>;

    /// Makes the data directory of a stopped server, whose log has diverged, one that can follow this member, a primary:
    /// crash recovery where it was not shut down (C3), then `pg_rewind` (X6). An error leaves it as it was, or
    /// [`regent_core::postgres::DataDir::HalfRewound`]; so does a dropped future.
    async fn rewind(&self, source: &MemberName, conn_url: &str) -> Result<(), PgError>;

    /// Empties the place of the data directory of a stopped server: moves the directory aside, to `<data_dir>.regent-old`,
    /// where the disk has room for a second copy and none lies there yet; else removes what is in it. Refused unless `source`
    /// answers in this very moment as it must for a clone: what the cluster knows of it may be as old as a lease (S10).
    async fn give_up_data(&self, source: &MemberName, conn_url: &str) -> Result<(), PgError>;

    /// Removes what [`Postgres::give_up_data`] moved aside.
    async fn discard_old_copy(&self) -> Result<(), PgError>;

    /// Starts as a primary: no signal file. Returns once the server accepts connections, or runs and does not accept them
    /// yet after a second (crash recovery); an error when the process ended.
    async fn start_primary(&self) -> Result<(), PgError>;

    /// Starts as a standby of `upstream` (`standby.signal`, section 17). Returns as [`Postgres::start_primary`].
    async fn start_standby(&self, upstream: &Upstream) -> Result<(), PgError>;

    /// Points a running standby to `upstream`: configuration rewritten, reload (PostgreSQL 13 and later need no restart).
    async fn follow(&self, upstream: &Upstream) -> Result<(), PgError>;

    /// Stops the server, after the user's `before_stop`, and returns when the postmaster is gone. An immediate stop that does not end within `within`
    /// becomes SIGKILL of the postmaster and its children; a fast stop then returns an error and goes on.
    async fn stop(&self, mode: StopMode, within: Duration) -> Result<(), PgError>;

    /// Promotes a standby so that it writes `timeline`, and returns when it is out of recovery.
    ///
    /// As soon as the signal is sent, `told` is called ([`Postgres::call`]).
    ///
    /// `timeline` is above the server's own. Numbers between the two are kept free of other histories by reserving them
    /// first (a history file that names no history), as PostgreSQL takes the next number that has no history file.
    async fn promote(&self, timeline: Timeline, told: Option<Callback>) -> Result<(), PgError>;

    /// Asks the user's `pre_promote`; an error means that it does not agree to a promotion, or did not answer in time. Dropping
    /// the future ends it.
    async fn pre_promote(&self) -> Result<(), PgError>;

    /// Starts the user's command for this event, if there is one, and returns at once. One that still runs is ended, with its
    /// children, unless just one of the two is `on_reload` (K1).
    fn call(&self, callback: Callback);

    /// Returns when no command that [`Postgres::call`] started runs any more.
    async fn called(&self);

    /// `CHECKPOINT`.
    async fn checkpoint(&self) -> Result<(), PgError>;

    /// `pg_wal_replay_resume()` on a standby (W4).
    async fn resume_replay(&self) -> Result<(), PgError>;

    /// Sets `synchronous_standby_names` and returns when the server goes by it; `None`: what the settings say. It stays in force
    /// over restarts of the server, and of the agent while the settings say that a synchronous mode is on.
    async fn set_sync_names(&self, names: Option<&str>) -> Result<(), PgError>;

    /// Removes, creates and advances replication slots of a running server, in this order. Physical ones keep WAL at once (P4).
    /// One that somebody is connected to stays as it is. A logical one, which waits for the transactions that run, may appear
    /// later than this returns.
    async fn change_slots(&self, changes: &SlotChanges) -> Result<(), PgError>;

    /// Copies logical slots of a primary, the leader at `conn_url`, to this standby (P8): reads its files, stops the server,
    /// writes them, and starts it as a standby of `upstream`. Where nothing can be copied, or the server would not start with
    /// what was copied, that is an error and the server was not touched.
    async fn copy_slots(
        &self,
        slots: &BTreeMap<String, Logical>,
        conn_url: &str,
        upstream: &Upstream,
    ) -> Result<(), PgError>;

    /// Begins to move logical slots of a standby on and to ask the leader about its own, on connections of their own, and
    /// returns at once. What comes of it is in later observations; while it goes on, another call does nothing.
    fn look_after_slots(&self, upkeep: &Upkeep);

    /// Removes what an interrupted clone or initdb *of ours* left ([`regent_core::postgres::DataDir::Unfinished`]), nothing else.
    async fn remove_unfinished(&self) -> Result<(), PgError>;

    /// Stops at once whatever runs on the directory of a failed bootstrap and renames it to `<data_dir>.failed` (B5): the
    /// evidence is kept, the place is free.
    async fn set_aside(&self) -> Result<(), PgError>;

    /// Takes new settings. Files are rewritten and the server reloaded at once if it runs.
    async fn configure(&self, settings: Settings) -> Result<(), PgError>;
}

/// Why something could not be done; says what is, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PgError {
    /// A program of PostgreSQL ended with an error; with the end of what it printed.
    #[error("{program} failed ({status}): {output}")]
    Program {
        /// `initdb`, `pg_basebackup`, `postgres`, ...
        program: String,
        /// How it ended.
        status: String,
        /// The last lines it printed.
        output: String,
    },
    /// The server did not do it in time.
    #[error("{what} did not end within {limit:?}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
    },
    /// The server answered with an error.
    #[error("{what}: {cause}")]
    Sql {
        /// What was asked.
        what: String,
        /// Its answer.
        cause: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {cause}")]
    File {
        /// Which file.
        path: String,
        /// Why.
        cause: String,
    },
    /// Not possible in the present state, with the reason and the cure.
    #[error("{0}")]
    Refused(String),
}
