//! Start, follow, promote, stop: everything that moves a data directory's server.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use postgres_protocol::escape::escape_literal;
use regent_core::callbacks::Callback;
use regent_core::postgres::{ClusterState, ControlData, StopMode};
use regent_core::units::Timeline;
use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::conf::{self, Role};
use crate::control::Control;
use crate::datadir::{self, Kind, Look};
use crate::disk::{file_error, file_mode, replace};
use crate::observe::read_control;
use crate::postmaster::{self, Found, PidFile, Postmaster, in_own_session};
use crate::real::{ASK, Server};
use crate::settings::Settings;
use crate::{PgError, history, programs, query};

/// How long a start waits for the first connection before it says "it runs".
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a starting, promoting or reloading server is looked at.
const TICK: Duration = Duration::from_millis(10);
/// How often a restored backup that recovers is looked at.
const RECOVERY_TICK: Duration = Duration::from_millis(500);
/// How often a server that is shutting down is looked at.
const GLANCE: Duration = Duration::from_millis(500);
/// How long a standby may take to receive anything of what a server that has shut down still sends.
const SENDER_PATIENCE: Duration = Duration::from_secs(3);
/// How long SIGKILL may take to show.
const KILL: Duration = Duration::from_secs(5);
/// One question on a connection that is there already.
const QUESTION: Duration = Duration::from_secs(2);
/// A checkpoint of a large cache on a slow disk takes this long at most.
const CHECKPOINT: Duration = Duration::from_secs(3600);

/// In recovery, and the newest timeline the server knows of its own log.
const STANDING: &str = "
SELECT r AS in_recovery,
       CASE WHEN r THEN greatest((SELECT received_tli FROM pg_stat_wal_receiver),
                                 (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
                                 (SELECT timeline_id FROM pg_control_checkpoint()))
            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8))::bit(32)::int END AS timeline
  FROM (SELECT pg_is_in_recovery() AS r OFFSET 0) AS x";

impl Server {
    /// Starts the server as `role`.
    pub(crate) async fn start(&self, role: Role) -> Result<(), PgError> {
        self.not_as_root()?;
        if let Some(postmaster) = self.running().await? {
            return Err(PgError::Refused(format!("the server runs already, as process {}", postmaster.pid)));
        }
        let installed = self.installed().await;
        let look = self.files("reading the data directory", move |settings| {
            Ok(datadir::look(&settings.data_dir, &installed, None))
        });
        let Look { kind, found, .. } = look.await?;
        let settings = self.settings();
        refuse_unusable(&settings, kind)?;
        self.start_unchecked(role, found).await
    }

    /// Starts what is known to be a data directory, whole or (in a bootstrap of ours) not yet declared so.
    pub(crate) async fn start_unchecked(&self, role: Role, found: Found) -> Result<(), PgError> {
        let settings = self.settings();
        postmaster::end_orphans(&self.shared.disk, &settings.data_dir).await?;

        let floors = match &role {
            Role::Primary => BTreeMap::new(),
            Role::Recovery { .. } if role.is_closed() => BTreeMap::new(),
            Role::Standby { .. } | Role::Recovery { .. } => floors(&settings).await?,
        };
        let (closed, whole) = (role.is_closed(), !matches!(role, Role::Recovery { .. }));
        self.files("writing the configuration", move |settings| {
            let forgotten = history::forget_unused_reservations(&settings.data_dir)?;
            if forgotten > 0 {
                tracing::info!(forgotten, "removed reserved timeline numbers of a promotion that did not happen");
            }
            conf::write(settings, &role)
        })
        .await?;

        let mut command = settings.programs.program("postgres");
        command.args(conf::arguments(&settings, &floors)).stdout(Stdio::null()).stderr(Stdio::inherit());
        if closed {
            command.arg("--hot_standby=off");
        }
        if let Found::Stranger(pid) = found {
            // C12: PostgreSQL takes a living process with the pid of the stale file for its former self, unless told.
            command.env("PG_GRANDPARENT_PID", pid.to_string());
        }
        in_own_session(&mut command);
        self.launch(command, &settings).await?;
        if !whole {
            return Ok(());
        }
        self.files("keeping copies of the configuration", conf::keep_copies).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "a clone of this member may have to do without its configuration files");
        });
        Ok(())
    }

    async fn launch(&self, mut command: Command, settings: &Settings) -> Result<(), PgError> {
        let mut child = command.spawn().map_err(|e| programs::not_started(&command, &e))?;
        let Some(pid) = child.id() else { return Err(ended(&mut child, settings).await) };
        let postmaster = Arc::new(Postmaster::of_child(pid));
        self.remember_postmaster(Some(Arc::clone(&postmaster)));
        let patience = Instant::now() + PATIENCE;
        loop {
            if postmaster.exits_within(TICK).await {
                self.remember_postmaster(None);
                return Err(ended(&mut child, settings).await);
            }
            let data_dir = settings.data_dir.clone();
            let ready = move || PidFile::read(&data_dir).is_some_and(|file| file.pid == pid && file.ready);
            let ready = self.shared.disk.ask(PATIENCE, ready).await.unwrap_or(false);
            if ready || Instant::now() >= patience {
                break;
            }
        }
        // Somebody must reap it; nobody stops it.
        tokio::spawn(async move {
            match child.wait().await {
                Ok(status) => tracing::info!(pid, %status, "the server ended"),
                Err(error) => tracing::debug!(pid, %error, "the server's end was seen by somebody else"),
            }
        });
        Ok(())
    }

    /// Waits until the server accepts connections.
    pub(crate) async fn accepts_connections(&self, limit: Duration) -> Result<(), PgError> {
        let deadline = Instant::now() + limit;
        let settings = self.settings();
        loop {
            let Some(postmaster) = self.running().await? else {
                return Err(PgError::Refused("the server ended while it was starting; its log says why".to_owned()));
            };
            let data_dir = settings.data_dir.clone();
            let ready = move || PidFile::read(&data_dir).is_some_and(|file| file.ready);
            if self.shared.disk.ask(limit, ready).await.unwrap_or(false) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(PgError::Timeout { what: "starting PostgreSQL".to_owned(), limit });
            }
            postmaster.exits_within(TICK).await;
        }
    }

    /// Waits until a restored backup has become a primary.
    pub(crate) async fn has_recovered(&self) -> Result<(), PgError> {
        let settings = self.settings();
        loop {
            let Some(postmaster) = self.running().await? else {
                let reason = "the server ended before it had recovered as far as it was to; its log says why";
                return Err(PgError::Refused(reason.to_owned()));
            };
            if let Ok(client) = query::command(&settings, &settings.database, "recovery").await
                && let Ok((false, _)) = standing(&client).await
            {
                return Ok(());
            }
            postmaster.exits_within(RECOVERY_TICK).await;
        }
    }

    /// Points a running standby elsewhere, and waits until it has taken that.
    pub(crate) async fn turn_to(&self, role: Role) -> Result<(), PgError> {
        let Some(postmaster) = self.running().await? else {
            return Err(PgError::Refused("the server does not run; start it as a standby".to_owned()));
        };
        let wanted = match &role {
            Role::Standby { conninfo } => conninfo.clone().unwrap_or_default(),
            Role::Primary | Role::Recovery { .. } => String::new(),
        };
        self.files("writing the configuration", move |settings| {
            if conf::role_on_disk(settings) == Role::Primary {
                let reason = "the server has no standby.signal: it is a primary, or must be restarted to follow";
                return Err(PgError::Refused(reason.to_owned()));
            }
            conf::write(settings, &role)
        })
        .await?;
        postmaster.signal(Signal::HUP)?;

        // Where it does not accept connections yet, there is nobody to ask; the files are right for when it does.
        let settings = self.settings();
        let Ok(client) = query::command(&settings, &settings.database, "following").await else { return Ok(()) };
        let applied = format!("SELECT current_setting('primary_conninfo') = {} AS applied", escape_literal(&wanted));
        let deadline = Instant::now() + QUESTION;
        loop {
            let rows = query::execute(&client, &applied, "following", QUESTION).await?;
            if rows.first().and_then(|row| row.get("applied")) == Some("t") {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(PgError::Refused(format!(
                    "the server was reloaded but keeps another primary_conninfo; see its log, and what ALTER SYSTEM left in {}",
                    settings.data_dir.join("postgresql.auto.conf").display()
                )));
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Another `synchronous_standby_names`, and waits until the server has taken that.
    pub(crate) async fn wait_for(&self, names: Option<&str>) -> Result<(), PgError> {
        let Some(postmaster) = self.running().await? else {
            return Err(PgError::Refused("the server does not run: it waits for nobody".to_owned()));
        };
        self.remember_sync_names(names);
        let role = self.present_role().await?;
        self.files("writing the configuration", move |settings| conf::write(settings, &role)).await?;
        postmaster.signal(Signal::HUP)?;
        let Some(names) = names else { return Ok(()) };
        let what = "synchronous_standby_names";
        let settings = self.settings();
        let client = query::command(&settings, &settings.database, what).await?;
        let applied =
            format!("SELECT current_setting('synchronous_standby_names') = {} AS applied", escape_literal(names));
        let deadline = Instant::now() + QUESTION;
        loop {
            let rows = query::execute(&client, &applied, what, QUESTION).await?;
            if rows.first().and_then(|row| row.get("applied")) == Some("t") {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(PgError::Refused(format!(
                    "the server was reloaded but keeps another {what}; see its log, and what ALTER SYSTEM left in {}",
                    settings.data_dir.join("postgresql.auto.conf").display()
                )));
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Stops the server.
    pub(crate) async fn end(&self, mode: StopMode, within: Duration) -> Result<(), PgError> {
        // A hung disk must not keep a server alive: a handle is enough.
        let postmaster = match self.known_postmaster().filter(|known| known.is_alive()) {
            Some(known) => known,
            None => match self.running().await? {
                Some(found) => found,
                None => return Ok(()),
            },
        };
        let begun = Instant::now();
        self.run_before_stop(mode.is_forced().then_some(within)).await;
        let within = within.saturating_sub(begun.elapsed());
        let (fast, immediate) = match mode {
            StopMode::Fast => (within, None),
            StopMode::FastThenImmediate => (within * 2 / 3, Some(within / 3)),
            StopMode::Immediate => (Duration::ZERO, Some(within)),
        };
        if mode != StopMode::Immediate {
            postmaster.signal(Signal::INT)?;
            if self.shuts_down_within(&postmaster, fast).await {
                return Ok(());
            }
        }
        let Some(immediate) = immediate else {
            return Err(PgError::Timeout { what: "a fast stop, which goes on,".to_owned(), limit: within });
        };
        postmaster.signal(Signal::QUIT)?;
        if postmaster.exits_within(immediate).await {
            return Ok(());
        }
        tracing::warn!(pid = postmaster.pid, ?within, "a forced stop did not end; killing every process");
        postmaster.kill(KILL).await
    }

    /// Waits for the end of a fast stop.
    ///
    /// A server that has shut down still waits for its standbys to confirm the last record; for one that is out of reach
    /// that takes `wal_sender_timeout`, which may be for ever. Such a sender is sent away: the others go on.
    async fn shuts_down_within(&self, postmaster: &Postmaster, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let mut stuck: (Vec<_>, Instant) = (Vec::new(), Instant::now());
        while !postmaster.exits_within(GLANCE.min(deadline.saturating_duration_since(Instant::now()))).await {
            if Instant::now() >= deadline {
                return false;
            }
            let pid = postmaster.pid;
            let senders = self.shared.disk.ask(GLANCE, move || postmaster::wal_senders(pid)).await.unwrap_or_default();
            if senders != stuck.0 {
                stuck = (senders, Instant::now());
            }
            if stuck.0.is_empty() || stuck.1.elapsed() < SENDER_PATIENCE {
                continue;
            }
            stuck.1 = Instant::now();
            let control = tokio::time::timeout(QUESTION, read_control(&self.settings())).await;
            if matches!(control, Ok(Ok(Control { data: ControlData { state: ClusterState::ShutDown, .. }, .. }))) {
                for (pid, title) in &stuck.0 {
                    tracing::warn!(
                        pid,
                        title,
                        "its standby does not take the last record: not waiting for it any longer"
                    );
                    if let Err(error) = postmaster::signal_process(*pid, Signal::TERM) {
                        tracing::warn!(pid, %error, "a WAL sender could not be ended");
                    }
                }
            }
        }
        true
    }

    /// Promotes to exactly `timeline`.
    pub(crate) async fn leave_recovery(&self, timeline: Timeline, told: Option<Callback>) -> Result<(), PgError> {
        let Some(postmaster) = self.running().await? else {
            return Err(PgError::Refused("the server does not run; start it as a standby first".to_owned()));
        };
        let settings = self.settings();
        let client = query::command(&settings, &settings.database, "promotion").await?;
        let (in_recovery, current) = standing(&client).await?;
        if !in_recovery {
            return Err(PgError::Refused(format!("the server is a primary already, on timeline {current}")));
        }
        if timeline <= current {
            return Err(PgError::Refused(format!("cannot promote to timeline {timeline}: the server is on {current}")));
        }
        self.files("asking for the promotion", move |settings| {
            history::reserve(&settings.data_dir, current, timeline)?;
            // The server looks for this file when it gets the signal (PostgreSQL: `PROMOTE_SIGNAL_FILE`).
            replace(&settings.data_dir.join("promote"), "", file_mode(&settings.data_dir)).map(|_| ())
        })
        .await?;
        postmaster.signal(Signal::USR1)?;
        if let Some(callback) = told {
            self.start_callback(callback);
        }
        let written = self.out_of_recovery(client, &postmaster, &settings).await?;
        if written != timeline {
            return Err(PgError::Refused(format!(
                "the server was promoted to timeline {written}, but {timeline} was promised; stop it, it may write a timeline \
                 that belongs to another member"
            )));
        }
        self.remember_upstream(None);
        // It is a primary whatever the files say; they are right again at the latest before the next start. No reload: the
        // server would complain that `recovery_target` and its kin cannot be taken back without a restart.
        let files = self.files("writing the configuration", |settings| conf::write(settings, &Role::Primary)).await;
        if let Err(error) = files {
            tracing::warn!(%error, "promoted, but the configuration still speaks of a standby");
        }
        Ok(())
    }

    /// Waits for the end of recovery; the timeline that is written then.
    async fn out_of_recovery(
        &self,
        mut client: tokio_postgres::Client,
        postmaster: &Postmaster,
        settings: &Settings,
    ) -> Result<Timeline, PgError> {
        let limit = Duration::from_secs(settings.pg_ctl_timeout);
        let deadline = Instant::now() + limit;
        loop {
            // An error also comes when recovery ends between two functions of the question.
            if let Ok((false, timeline)) = standing(&client).await {
                return Ok(timeline);
            }
            if postmaster.exits_within(TICK).await {
                return Err(PgError::Refused("the server ended during its promotion; its log says why".to_owned()));
            }
            if Instant::now() >= deadline {
                return Err(PgError::Timeout { what: "the promotion, which goes on,".to_owned(), limit });
            }
            if client.is_closed()
                && let Ok(fresh) = query::command(settings, &settings.database, "promotion").await
            {
                client = fresh;
            }
        }
    }

    pub(crate) async fn write_checkpoint(&self) -> Result<(), PgError> {
        let settings = self.settings();
        let client = query::command(&settings, &settings.database, "CHECKPOINT").await?;
        query::execute(&client, "CHECKPOINT", "CHECKPOINT", CHECKPOINT).await.map(|_| ())
    }

    pub(crate) async fn go_on_replaying(&self) -> Result<(), PgError> {
        let settings = self.settings();
        let client = query::command(&settings, &settings.database, "resuming replay").await?;
        query::execute(&client, "SELECT pg_wal_replay_resume()", "pg_wal_replay_resume", ASK).await.map(|_| ())
    }
}

pub(crate) fn refuse_unusable(settings: &Settings, kind: Kind) -> Result<(), PgError> {
    let place = settings.data_dir.display();
    let reason = match kind {
        Kind::Present(_) => return refuse_open_directory(settings),
        Kind::Unfinished => format!("{place} is half-made; remove it and make it again"),
        Kind::HalfRewound => format!("{place} is half-rewound: no server may start on it; empty it to have it cloned"),
        Kind::Empty => format!("{place} is empty: there is nothing to start"),
        Kind::Unreadable(reason) | Kind::Unusable(reason) => reason,
    };
    Err(PgError::Refused(reason))
}

/// PostgreSQL refuses a directory that others may read.
fn refuse_open_directory(settings: &Settings) -> Result<(), PgError> {
    let meta = std::fs::metadata(&settings.data_dir).map_err(|e| file_error(&settings.data_dir, &e))?;
    let mode = meta.mode() & 0o777;
    if mode & 0o027 == 0 {
        return Ok(());
    }
    let place = settings.data_dir.display();
    Err(PgError::Refused(format!("{place} has mode {mode:04o}, PostgreSQL wants 0700 or 0750; chmod it")))
}

async fn floors(settings: &Settings) -> Result<BTreeMap<&'static str, u64>, PgError> {
    match tokio::time::timeout(ASK, read_control(settings)).await {
        Ok(control) => Ok(control.map_err(PgError::Refused)?.floors),
        Err(_) => Err(PgError::Timeout { what: "pg_controldata".to_owned(), limit: ASK }),
    }
}

async fn standing(client: &tokio_postgres::Client) -> Result<(bool, Timeline), PgError> {
    let what = "asking for role and timeline";
    let rows = query::execute(client, STANDING, what, QUESTION).await?;
    let get = |name: &str| rows.first().and_then(|row| row.get(name));
    let timeline = get("timeline").and_then(|text| text.parse().ok()).map(Timeline);
    let unclear = || PgError::Sql { what: what.to_owned(), cause: "the server knows no timeline".to_owned() };
    Ok((get("in_recovery") == Some("t"), timeline.ok_or_else(unclear)?))
}

/// Why a server that was started is gone. Its own words went to its log (our standard error, unless configured
/// otherwise), so the usual reasons are looked for here.
async fn ended(child: &mut Child, settings: &Settings) -> PgError {
    let status = match tokio::time::timeout(ASK, child.wait()).await {
        Ok(Ok(status)) => status.to_string(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "ended".to_owned(),
    };
    let wanted = settings.clone();
    // Resolving a name may block.
    let taken = tokio::task::spawn_blocking(move || taken_address(&wanted));
    let taken = tokio::time::timeout(ASK, taken).await.ok().and_then(Result::ok).flatten();
    let output = match (configuration_error(settings).await, taken) {
        (Some(complaint), _) => complaint,
        (None, Some(address)) => format!("{address} is in use by another process; end it, or configure another port"),
        (None, None) => "its log says why".to_owned(),
    };
    PgError::Program { program: "postgres".to_owned(), status, output }
}

/// What PostgreSQL says of its configuration when only asked to read it.
async fn configuration_error(settings: &Settings) -> Option<String> {
    let mut command = settings.programs.program("postgres");
    command.args(conf::arguments(settings, &BTreeMap::new())).args(["-C", "port"]);
    match programs::ask(command, ASK).await {
        Err(PgError::Program { output, .. }) => Some(output),
        Ok(_) | Err(_) => None,
    }
}

fn taken_address(settings: &Settings) -> Option<String> {
    let hosts = settings.listen_addresses.split(',').map(str::trim).filter(|host| !host.is_empty());
    let taken = |host: &&str| {
        let host = if *host == "*" { "0.0.0.0" } else { host };
        TcpListener::bind((host, settings.port)).is_err_and(|e| e.kind() == std::io::ErrorKind::AddrInUse)
    };
    hosts.into_iter().find(taken).map(|host| format!("port {} on {host}", settings.port))
}
