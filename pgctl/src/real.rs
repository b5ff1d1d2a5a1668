//! The controller of a real server: what its parts share, and which part does what.
//!
//! ```text
//!   observe.rs   looks: disk, process, control data, SQL          reads datadir, control, history, query
//!   create.rs    makes a data directory: initdb, clone            runs programs, writes conf
//!   rewind.rs    repairs or gives up one that has diverged        runs programs, writes conf
//!   run.rs       start, follow, promote, stop                     drives postmaster, writes conf
//!   slots.rs     replication slots, copies of logical ones        asks the leader, drives run
//!   scripts.rs   the user's commands                              runs programs
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use regent_core::callbacks::Callback;
use regent_core::config::Logical;
use regent_core::postgres::{PgState, SlotChanges, StopMode, Upkeep, Upstream};
use regent_core::units::{MemberName, Timeline};

use crate::conf::{self, Role};
use crate::conninfo::{self, Address};
use crate::datadir::Installed;
use crate::disk::Disk;
use crate::observe::Remembered;
use crate::postmaster::{self, Found, Postmaster};
use crate::query::Session;
use crate::scripts::Lanes;
use crate::slots::Upkept;
use crate::{PgError, Postgres, Settings, programs};

/// How long writing our small files may take before the disk counts as hung.
pub(crate) const FILES: Duration = Duration::from_secs(10);
/// How long a program that only prints something may take.
pub(crate) const ASK: Duration = Duration::from_secs(5);

/// The PostgreSQL of this node. Clones drive the same server; a new one adopts what it finds running.
///
/// Needs a tokio runtime with IO and time. The server is started as a child in a session of its own, and outlives the
/// agent: an agent that is process 1 or a subreaper must reap orphans, as everywhere.
#[derive(Clone)]
pub struct Server {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    settings: Mutex<Settings>,
    /// The postmaster that the last look saw, or that we started since.
    postmaster: Mutex<Option<Arc<Postmaster>>>,
    /// What the running standby was last pointed to, to build its connection string anew.
    upstream: Mutex<Option<Upstream>>,
    /// Bytes done and bytes in all of a running clone.
    pub(crate) progress: Mutex<Option<(u64, Option<u64>)>>,
    pub(crate) remembered: Mutex<Remembered>,
    pub(crate) session: tokio::sync::Mutex<Session>,
    pub(crate) disk: Disk,
    /// What was last learnt about logical slots.
    pub(crate) upkept: Mutex<Upkept>,
    /// The user's callbacks that run.
    pub(crate) callbacks: Mutex<Lanes>,
}

/// No critical section here can be left half-way, so what a panicking holder leaves behind is whole.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    /// A controller with these settings; touches nothing yet.
    #[must_use]
    pub fn new(settings: Settings) -> Server {
        Server {
            shared: Arc::new(Shared {
                settings: Mutex::new(settings),
                postmaster: Mutex::new(None),
                upstream: Mutex::new(None),
                progress: Mutex::new(None),
                remembered: Mutex::new(Remembered::default()),
                session: tokio::sync::Mutex::new(Session::default()),
                disk: Disk::new(),
                upkept: Mutex::new(Upkept::default()),
                callbacks: Mutex::new(Lanes::default()),
            }),
        }
    }

    pub(crate) fn settings(&self) -> Settings {
        locked(&self.shared.settings).clone()
    }

    pub(crate) fn known_postmaster(&self) -> Option<Arc<Postmaster>> {
        locked(&self.shared.postmaster).clone()
    }

    pub(crate) fn remember_postmaster(&self, postmaster: Option<Arc<Postmaster>>) {
        *locked(&self.shared.postmaster) = postmaster;
    }

    pub(crate) fn remember_sync_names(&self, names: Option<&str>) {
        locked(&self.shared.settings).sync_names = names.map(str::to_owned);
    }

    pub(crate) fn remember_upstream(&self, upstream: Option<Upstream>) {
        *locked(&self.shared.upstream) = upstream;
    }

    /// What the disk says of the process, joined with what we know: a handle on a process that once was verified beats a
    /// pid file that somebody removed.
    pub(crate) fn adopt(&self, found: Found) -> Option<Arc<Postmaster>> {
        let known = self.known_postmaster().filter(|known| known.is_alive());
        let now = match (known, found) {
            (Some(known), Found::Ours(pid, _)) if known.pid == pid => Some(known),
            (_, Found::Ours(pid, handle)) => Some(Arc::new(Postmaster::new(pid, handle))),
            (known, Found::Known | Found::Nobody | Found::Stranger(_)) => known,
        };
        self.remember_postmaster(now.clone());
        now
    }

    /// The running postmaster, looked for on disk.
    pub(crate) async fn running(&self) -> Result<Option<Arc<Postmaster>>, PgError> {
        let data_dir = self.settings().data_dir;
        let found = self
            .shared
            .disk
            .attempt("reading postmaster.pid", FILES, move || Ok(postmaster::find(&data_dir, None)))
            .await?;
        Ok(self.adopt(found))
    }

    /// Runs file work with the present settings on the helper thread.
    pub(crate) async fn files<T, F>(&self, what: &str, work: F) -> Result<T, PgError>
    where
        T: Send + 'static,
        F: FnOnce(&Settings) -> Result<T, PgError> + Send + 'static,
    {
        let settings = self.settings();
        self.shared.disk.attempt(what, FILES, move || work(&settings)).await
    }

    /// Asks the programs for their version, anew.
    pub(crate) async fn installed(&self) -> Installed {
        programs::installed(&self.settings().programs, ASK).await
    }

    /// PostgreSQL refuses to run as root; so do we, before anything is written that its owner could not read.
    pub(crate) fn not_as_root(&self) -> Result<(), PgError> {
        if rustix::process::geteuid().is_root() {
            return Err(PgError::Refused(
                "PostgreSQL does not run as root; run Regent as the user that owns the data directory (User=postgres)"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    /// `primary_conninfo` for `upstream`; its passfile is written too.
    pub(crate) async fn standby_of(&self, upstream: &Upstream) -> Result<Role, PgError> {
        let conninfo = match upstream {
            Upstream::Nobody => None,
            Upstream::Member { conn_url, .. } => {
                let source = Address::of_url(conn_url)?;
                Some(
                    self.files("writing the passfile", move |settings| {
                        conf::write_passfile(settings, &source)?;
                        Ok(conninfo::replication(settings, &source))
                    })
                    .await?,
                )
            }
        };
        Ok(Role::Standby { conninfo })
    }

    /// What the running server is, for new settings: from what we told it, else from its files (B15).
    pub(crate) async fn present_role(&self) -> Result<Role, PgError> {
        let on_disk = self.files("reading the configuration", |settings| Ok(conf::role_on_disk(settings))).await?;
        let upstream = locked(&self.shared.upstream).clone();
        match (on_disk, upstream) {
            (Role::Standby { .. }, Some(upstream)) => self.standby_of(&upstream).await,
            (on_disk, _) => Ok(on_disk),
        }
    }
}

impl Postgres for Server {
    async fn observe(&self, within: Duration) -> PgState {
        self.look(within).await
    }

    async fn exited(&self) {
        match self.known_postmaster() {
            Some(postmaster) => postmaster.exited().await,
            None => std::future::pending().await,
        }
    }

    async fn bootstrap(&self) -> Result<(), PgError> {
        self.make_cluster().await
    }

    async fn clone_from(&self, source: &MemberName, conn_url: &str) -> Result<(), PgError> {
        self.copy_member(source, conn_url).await
    }

    async fn restore(&self) -> Result<(), PgError> {
        self.restore_backup().await
    }

    fn clone_progress(&self) -> Option<(u64, Option<u64>)> {
        *locked(&self.shared.progress)
    }

    async fn rewind(&self, source: &MemberName, conn_url: &str) -> Result<(), PgError> {
        self.rewind_to(source, conn_url).await
    }

    async fn give_up_data(&self, source: &MemberName, conn_url: &str) -> Result<(), PgError> {
        self.move_aside(source, conn_url).await
    }

    async fn discard_old_copy(&self) -> Result<(), PgError> {
        self.remove_old_copy().await
    }

    async fn start_primary(&self) -> Result<(), PgError> {
        self.start(Role::Primary).await?;
        self.remember_upstream(None);
        Ok(())
    }

    async fn start_standby(&self, upstream: &Upstream) -> Result<(), PgError> {
        let role = self.standby_of(upstream).await?;
        self.start(role).await?;
        self.remember_upstream(Some(upstream.clone()));
        Ok(())
    }

    async fn follow(&self, upstream: &Upstream) -> Result<(), PgError> {
        let role = self.standby_of(upstream).await?;
        self.turn_to(role).await?;
        self.remember_upstream(Some(upstream.clone()));
        Ok(())
    }

    async fn stop(&self, mode: StopMode, within: Duration) -> Result<(), PgError> {
        self.end(mode, within).await
    }

    async fn promote(&self, timeline: Timeline, told: Option<Callback>) -> Result<(), PgError> {
        self.leave_recovery(timeline, told).await
    }

    async fn pre_promote(&self) -> Result<(), PgError> {
        self.ask_pre_promote().await
    }

    fn call(&self, callback: Callback) {
        self.start_callback(callback);
    }

    async fn called(&self) {
        self.callbacks_ended().await;
    }

    async fn checkpoint(&self) -> Result<(), PgError> {
        self.write_checkpoint().await
    }

    async fn resume_replay(&self) -> Result<(), PgError> {
        self.go_on_replaying().await
    }

    async fn change_slots(&self, changes: &SlotChanges) -> Result<(), PgError> {
        self.carry_out(changes).await
    }

    async fn copy_slots(
        &self,
        slots: &BTreeMap<String, Logical>,
        conn_url: &str,
        upstream: &Upstream,
    ) -> Result<(), PgError> {
        self.copy_from_leader(slots, conn_url, upstream).await
    }

    fn look_after_slots(&self, upkeep: &Upkeep) {
        self.begin_upkeep(upkeep);
    }

    async fn remove_unfinished(&self) -> Result<(), PgError> {
        self.remove_half_made().await
    }

    async fn set_aside(&self) -> Result<(), PgError> {
        self.set_failed_aside().await
    }

    async fn set_sync_names(&self, names: Option<&str>) -> Result<(), PgError> {
        self.wait_for(names).await
    }

    async fn configure(&self, mut settings: Settings) -> Result<(), PgError> {
        settings.sync_names = self.settings().sync_names;
        *locked(&self.shared.settings) = settings;
        *locked(&self.shared.remembered) = Remembered::default();
        self.shared.session.lock().await.reset();
        let Some(postmaster) = self.running().await? else { return Ok(()) };
        let role = self.present_role().await?;
        self.files("writing the configuration", move |settings| conf::write(settings, &role)).await?;
        postmaster.signal(rustix::process::Signal::HUP)
    }
}
