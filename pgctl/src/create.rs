//! Making a data directory: a new cluster, a copy of a member, and the removal of what an interruption of either left. What
//! fills it is in `methods.rs`.

use std::fs::File;
use std::process::Stdio;
use std::time::Duration;

use regent_core::postgres::StopMode;
use regent_core::units::MemberName;
use rustix::process::Signal;
use tokio::process::Command;

use crate::conf::{self, Role};
use crate::conninfo::{self, Address};
use crate::datadir;
use crate::disk::entries;
use crate::methods::bootstrap_arguments;
use crate::postmaster::{self, Found};
use crate::programs::{self, Secret};
use crate::query::{self, Local};
use crate::real::{FILES, Server, locked};
use crate::scripts;
use crate::settings::{BootstrapMethod, Credentials, ReplicaMethod, Settings};
use crate::{PgError, disk};

/// The database that initdb makes and in which the first roles are made.
const FIRST_DATABASE: &str = "postgres";
/// The programs that fill or change a data directory.
pub(crate) const TOOLS: [&str; 3] = ["initdb", "pg_basebackup", "pg_rewind"];
/// A restore may run for hours, and so may what fills a new cluster. The caller may drop it.
const FOR_EVER: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long a server that failed to become a cluster may take to stop.
const STOP: Duration = Duration::from_secs(10);

impl Server {
    /// initdb or the user's method, first start, roles (B4, B7). Until all is done the directory counts as unfinished.
    pub(crate) async fn make_cluster(&self) -> Result<(), PgError> {
        self.not_as_root()?;
        self.installed().await.map_err(PgError::Refused)?;
        let settings = self.settings();
        let made = match &settings.scripts.bootstrap {
            None => {
                let lock = self.claim("initdb").await?;
                if let Err(error) = run_initdb(&settings, &lock).await {
                    self.give_up(lock).await;
                    return Err(error);
                }
                // The lock guards programs that fill the directory. A server guards it by its own pid file.
                drop(lock);
                self.first_start(&settings).await
            }
            Some(method) => {
                let lock = self.claim(&format!("bootstrap by {}", method.command.name)).await?;
                let _progress = Progress::of(self);
                // What a restore of hours left is evidence, too.
                self.run_method(&settings, &method.command, bootstrap_arguments(&settings, &method.command), &lock)
                    .await?;
                drop(lock);
                self.first_recovery(&settings, method).await
            }
        };
        if made.is_err() {
            // What was made stays as evidence; the marker says that it is nobody's data.
            if let Err(error) = self.end(StopMode::Immediate, STOP).await {
                tracing::error!(%error, "the server of a failed bootstrap still runs; stop it by hand");
            }
            return made;
        }
        self.files("finishing", |settings| datadir::mark_finished(&settings.data_dir)).await
    }

    async fn first_start(&self, settings: &Settings) -> Result<(), PgError> {
        self.files("access rules", conf::append_bootstrap_hba).await?;
        self.start_unchecked(Role::Primary, Found::Nobody).await?;
        self.remember_upstream(None);
        self.accepts_connections(Duration::from_secs(settings.pg_ctl_timeout)).await?;
        self.make_roles(settings).await
    }

    /// The first start of a restored backup: it recovers, which takes as long as it takes (B6), becomes a primary, gets the
    /// roles of this configuration, and only then the access rules that let others in.
    async fn first_recovery(&self, settings: &Settings, method: &BootstrapMethod) -> Result<(), PgError> {
        let rules = self.files("access rules", conf::access_rules).await?;
        let role = Role::Recovery { settings: method.recovery_conf.clone(), keep: method.keep_existing_recovery_conf };
        let closed = role.is_closed();
        self.start_unchecked(role, Found::Nobody).await?;
        self.remember_upstream(None);
        self.has_recovered().await?;
        self.make_roles(settings).await?;
        self.files("writing the configuration", move |settings| {
            conf::write(settings, &Role::Primary)?;
            rules.map_or(Ok(()), |text| conf::put_access_rules(settings, &text))?;
            conf::keep_copies(settings)
        })
        .await?;
        if closed {
            self.end(StopMode::Fast, Duration::from_secs(settings.pg_ctl_timeout)).await?;
            self.start_unchecked(Role::Primary, Found::Nobody).await?;
            return self.accepts_connections(Duration::from_secs(settings.pg_ctl_timeout)).await;
        }
        let postmaster = self.running().await?;
        postmaster.map_or(Ok(()), |postmaster| postmaster.signal(Signal::HUP))
    }

    async fn make_roles(&self, settings: &Settings) -> Result<(), PgError> {
        let client = query::command(settings, FIRST_DATABASE, "first connection").await?;
        query::ensure_role(&client, &settings.superuser, "SUPERUSER LOGIN").await?;
        self.run_post_bootstrap(settings).await?;
        let superuser = query::user_of(&settings.superuser);
        let other = |who: &&Credentials| query::user_of(who) != superuser;
        if other(&&settings.replication) {
            query::ensure_role(&client, &settings.replication, "LOGIN REPLICATION").await?;
        }
        if let Some(rewind) = settings.rewind.as_ref().filter(other) {
            if query::user_of(rewind) != query::user_of(&settings.replication) {
                query::ensure_role(&client, rewind, "LOGIN").await?;
            }
            query::grant_rewind(&client, rewind).await?;
        }
        Ok(())
    }

    /// Runs the user's command with a connection string (config.md 3.5). It takes as long as it takes: a restore may run
    /// for hours, and the caller may drop it.
    async fn run_post_bootstrap(&self, settings: &Settings) -> Result<(), PgError> {
        let Some(line) = &settings.post_bootstrap else { return Ok(()) };
        let address = Local::of(settings).address(settings.port);
        let user = query::user_of(&settings.superuser);
        let who = Credentials { username: Some(user.clone()), ..settings.superuser.clone() };
        if let Some(text) = conninfo::passfile(&address, &who) {
            self.files("writing the passfile", move |settings| conf::write_passfile_text(settings, &text)).await?;
        }
        let [host, user, database] = [&address.host, &user, &settings.database].map(|value| conninfo::quote(value));
        let connection = format!("host={host} port={} user={user} dbname={database}", address.port);
        let environment = [
            ("PGPASSFILE", settings.pgpass.display().to_string()),
            ("PGOPTIONS", "-c synchronous_commit=local -c statement_timeout=0".to_owned()),
        ];
        scripts::run(settings, "post_bootstrap", line, &[connection], &environment, FOR_EVER).await
    }

    /// A copy of `source` by the first method that works (B13).
    pub(crate) async fn copy_member(&self, source: &MemberName, conn_url: &str) -> Result<(), PgError> {
        self.not_as_root()?;
        let address = Address::of_url(conn_url)?;
        self.installed().await.map_err(PgError::Refused)?;
        let settings = self.settings();
        self.write_passfile_for(&address).await?;
        let basebackup = [ReplicaMethod::Basebackup];
        let of_remote = conninfo::remote(&settings, &address).is_some();
        let configured = if of_remote { &settings.scripts.of_remote } else { &settings.scripts.replica }.as_slice();
        let methods = if configured.is_empty() { &basebackup } else { configured };
        self.copy(&format!("clone from {source}"), methods, Some(&address)).await
    }

    /// A copy without another member (B3).
    pub(crate) async fn restore_backup(&self) -> Result<(), PgError> {
        self.not_as_root()?;
        self.installed().await.map_err(PgError::Refused)?;
        let mut methods = self.settings().scripts.replica;
        methods.retain(ReplicaMethod::needs_nobody);
        self.copy("a copy without a leader", &methods, None).await
    }

    async fn copy(&self, doing: &str, methods: &[ReplicaMethod], from: Option<&Address>) -> Result<(), PgError> {
        let lock = self.claim(doing).await?;
        let _progress = Progress::of(self);
        let copied = self.fill(methods, from, &lock).await;
        if copied.is_err() {
            self.give_up(lock).await;
            return copied;
        }
        self.files("finishing", |settings| datadir::mark_finished(&settings.data_dir)).await
    }

    /// Locks the empty data directory and marks it.
    async fn claim(&self, doing: &str) -> Result<File, PgError> {
        let doing = doing.to_owned();
        if let Some(postmaster) = self.running().await? {
            return Err(PgError::Refused(format!(
                "a server runs on the data directory, as process {}",
                postmaster.pid
            )));
        }
        self.files("claiming the data directory", move |settings| {
            let place = &settings.data_dir;
            let lock = datadir::lock(place)?;
            if !entries(place).map_err(|e| disk::file_error(place, &e))?.is_empty() {
                let place = place.display();
                return Err(PgError::Refused(format!(
                    "{place} is not empty; Regent makes data only where there is none"
                )));
            }
            datadir::mark_unfinished(place, &doing);
            // What a rewind broke is gone.
            disk::remove(&datadir::rewind_marker(place))?;
            Ok(lock)
        })
        .await
    }

    /// Empties what was empty before. What cannot be emptied stays marked.
    async fn give_up(&self, lock: File) {
        if let Err(error) = self.empty(lock).await {
            tracing::warn!(%error, "a half-made data directory stays; it is marked, and removed before the next attempt");
        }
    }

    /// Empties the data directory and removes the marker. Takes as long as the disk takes, and holds the lock to the end
    /// even if nobody waits: the next tool is refused until then.
    pub(crate) async fn empty(&self, lock: File) -> Result<(), PgError> {
        let data_dir = self.settings().data_dir;
        let place = data_dir.display().to_string();
        let emptied = tokio::task::spawn_blocking(move || {
            datadir::empty(&data_dir, &lock)?;
            datadir::mark_finished(&data_dir)
        });
        emptied.await.unwrap_or_else(|e| Err(PgError::File { path: place, cause: e.to_string() }))
    }

    /// Stops what runs and renames the directory to `<data_dir>.failed`, with a number when that is taken.
    pub(crate) async fn set_failed_aside(&self) -> Result<(), PgError> {
        self.end(StopMode::Immediate, FILES).await?;
        let lock = self
            .files("locking the data directory", |settings| {
                let place = &settings.data_dir;
                postmaster::kill_tools(&TOOLS, place)?;
                if place.exists() { datadir::lock(place).map(Some) } else { Ok(None) }
            })
            .await?;
        let Some(lock) = lock else { return Ok(()) };
        self.files("renaming the data directory", move |settings| {
            let place = &settings.data_dir;
            let mut free = (0..1000).map(|n| failed_name(place, n)).filter(|name| !name.exists());
            let aside = free.next().ok_or_else(|| {
                PgError::Refused(format!("{}.failed exists a thousand times; remove some", place.display()))
            })?;
            std::fs::rename(place, &aside).map_err(|e| disk::file_error(place, &e))?;
            tracing::warn!("the data directory of the failed bootstrap is kept as {}", aside.display());
            let marker = datadir::marker(place);
            if marker.exists() {
                std::fs::remove_file(&marker).map_err(|e| disk::file_error(&marker, &e))?;
            }
            drop(lock);
            Ok(())
        })
        .await
    }

    pub(crate) async fn remove_half_made(&self) -> Result<(), PgError> {
        if let Some(postmaster) = self.running().await? {
            let pid = postmaster.pid;
            return Err(PgError::Refused(format!(
                "a server runs on the unfinished data directory, as process {pid}; stop it"
            )));
        }
        let lock = self.files("locking the data directory", |settings| {
            let place = &settings.data_dir;
            let marker = datadir::marker(place);
            if !marker.exists() {
                let (place, marker) = (place.display(), marker.display());
                let reason = format!("{place} is not marked by {marker} as made by Regent; it is not removed");
                return Err(PgError::Refused(reason));
            }
            // A tool of an agent that was killed may still be at work.
            postmaster::kill_tools(&TOOLS, place)?;
            datadir::lock(place)
        });
        let lock = lock.await?;
        self.empty(lock).await
    }
}

/// `<data_dir>.failed`, `<data_dir>.failed.1`, ...
fn failed_name(place: &std::path::Path, n: u32) -> std::path::PathBuf {
    let mut name = place.as_os_str().to_owned();
    name.push(if n == 0 { ".failed".to_owned() } else { format!(".failed.{n}") });
    name.into()
}

/// Shows the progress of the clone while it lives.
struct Progress<'a>(&'a Server);

impl Progress<'_> {
    fn of(server: &Server) -> Progress<'_> {
        *locked(&server.shared.progress) = Some((0, None));
        Progress(server)
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        *locked(&self.0.shared.progress) = None;
    }
}

/// Gives the program the lock as its standard input: it holds it as long as it lives. It dies with us.
pub(crate) fn holding(command: &mut Command, lock: &File, place: &std::path::Path) -> Result<(), PgError> {
    let copy = lock.try_clone().map_err(|e| disk::file_error(place, &e))?;
    command.stdin(Stdio::from(copy));
    postmaster::dies_with_us(command);
    Ok(())
}

/// Before PostgreSQL 14 passwords are stored as md5 unless something asks for more, and access rules that want SCRAM then lock
/// everybody out, this agent first. initdb stores them as its own access rules ask.
fn password_option(installed: u32, rules: &[String], options: &[String]) -> Option<&'static str> {
    let asks = rules.iter().any(|rule| rule.split_whitespace().any(|word| word == "scram-sha-256"));
    let said = options.iter().any(|option| option.starts_with("--auth") || option.starts_with("-A"));
    (installed < 14 && asks && !said).then_some("--auth-host=scram-sha-256")
}

async fn run_initdb(settings: &Settings, lock: &File) -> Result<(), PgError> {
    let mut command = settings.programs.program("initdb");
    command.arg("--pgdata").arg(&settings.data_dir).args(&settings.initdb_options);
    let installed = programs::installed(&settings.programs, FILES).await.map_err(PgError::Refused)?;
    let rules = settings.pg_hba.as_ref().unwrap_or(&settings.bootstrap_pg_hba);
    command.args(password_option(installed, rules, &settings.initdb_options));
    command.arg(format!("--username={}", query::user_of(&settings.superuser)));
    holding(&mut command, lock, &settings.data_dir)?;
    let secret =
        settings.superuser.password.as_ref().map(|password| Secret::new(&format!("{password}\n"))).transpose()?;
    if let Some(secret) = &secret {
        command.arg("--pwfile").arg(secret.path());
    }
    programs::run(command, |line| tracing::debug!("initdb: {line}")).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_stored_as_the_access_rules_want_them() {
        let [scram, md5] = ["host all all all scram-sha-256", "host all scram all md5"].map(|rule| [rule.to_owned()]);
        let told = ["--auth-host=md5".to_owned()];
        for (installed, rules, options, wanted) in [
            (13, &scram, &[][..], Some("--auth-host=scram-sha-256")),
            (14, &scram, &[], None),
            (13, &md5, &[], None),
            (13, &scram, &told, None),
        ] {
            assert_eq!(password_option(installed, rules, options), wanted, "{installed} {rules:?} {options:?}");
        }
    }
}
