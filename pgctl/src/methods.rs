//! Filling an empty data directory: by pg_basebackup, or by a command of the user's (B4, B13).
//!
//! Methods for copies are tried in the order in which they are configured; between two of them the directory is emptied again,
//! unless the next one wants what is there. A command gets the kernel lock as its standard input, as pg_basebackup does: while
//! it or one of its children lives, no other tool is let in.

use std::fs::File;
use std::time::Duration;

use crate::conninfo::{self, Address};
use crate::create::holding;
use crate::disk::{file_error, remove};
use crate::programs;
use crate::real::{Server, locked};
use crate::rewind::size;
use crate::scripts::Output;
use crate::settings::{Command, ReplicaMethod, Settings};
use crate::{PgError, conf, datadir};

/// How often the size of a copy that a command makes is looked at.
const GLANCE: Duration = Duration::from_secs(2);

impl Server {
    /// Fills the locked, empty data directory by the first of `methods` that works.
    pub(crate) async fn fill(
        &self,
        methods: &[ReplicaMethod],
        from: Option<&Address>,
        lock: &File,
    ) -> Result<(), PgError> {
        let settings = self.settings();
        let mut failed: Option<PgError> = None;
        for method in methods {
            if failed.is_some() && !method.keeps_data() {
                let (place, lock) = (settings.data_dir.clone(), again(lock, &settings)?);
                let emptied = tokio::task::spawn_blocking(move || datadir::empty(&place, &lock)).await;
                emptied.unwrap_or_else(|e| Err(broken(&settings, &e)))?;
            }
            let filled = match (method, from) {
                (ReplicaMethod::Basebackup, Some(from)) => self.run_basebackup(&settings, from, lock).await,
                (ReplicaMethod::Basebackup, None) => Err(PgError::Refused("pg_basebackup needs a member".to_owned())),
                (ReplicaMethod::Command(command), from) => {
                    self.run_method(&settings, command, replica_arguments(&settings, command, from), lock).await
                }
            };
            match filled {
                Ok(()) => return Ok(()),
                Err(error) if methods.len() > 1 => {
                    tracing::warn!("{}: {error}", method.name());
                    failed = Some(error);
                }
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| PgError::Refused("no method makes a copy without another member".to_owned())))
    }

    /// Runs a command that leaves a data directory behind.
    pub(crate) async fn run_method(
        &self,
        settings: &Settings,
        method: &Command,
        arguments: Vec<String>,
        lock: &File,
    ) -> Result<(), PgError> {
        let mut command = programs::users(&method.name, &method.line)?;
        command.args(arguments).env("PGPASSFILE", &settings.pgpass);
        holding(&mut command, lock, &settings.data_dir)?;
        tracing::info!("filling the data directory by {}", method.name);
        let mut log = Output::of(settings, &method.name);
        let ended = tokio::select! {
            biased;
            ended = programs::run_script(command, |line| log.note(line)) => ended,
            () = self.watch_size(settings) => Ok(()),
        };
        log.end();
        ended?;
        let name = method.name.clone();
        self.files("looking at the new data directory", move |settings| {
            let place = &settings.data_dir;
            for needed in ["PG_VERSION", "global/pg_control"] {
                if !place.join(needed).exists() {
                    let place = place.display();
                    let reason = format!("{name} ended without an error, but {place} has no {needed}");
                    return Err(PgError::Refused(reason));
                }
            }
            // What would promote a standby at once (B14).
            remove(&place.join("promote")).map(|_| ())
        })
        .await
    }

    /// Publishes how much a command has written; for ever.
    async fn watch_size(&self, settings: &Settings) {
        loop {
            tokio::time::sleep(GLANCE).await;
            let place = settings.data_dir.clone();
            let bytes = tokio::task::spawn_blocking(move || size(&place)).await;
            if let Ok(bytes) = bytes {
                *locked(&self.shared.progress) = Some((bytes, None));
            }
        }
    }

    async fn run_basebackup(&self, settings: &Settings, from: &Address, lock: &File) -> Result<(), PgError> {
        let mut command = settings.programs.program("pg_basebackup");
        command.arg("--pgdata").arg(&settings.data_dir).args(["--wal-method=stream", "--progress", "--no-password"]);
        command.arg(format!("--dbname={}", conninfo::replication(settings, from)));
        let options = &settings.basebackup_options;
        let chosen = |option: &String| option == "-c" || option.starts_with("--checkpoint");
        if !options.iter().any(chosen) {
            command.arg("--checkpoint=fast");
        }
        command.args(options).env("LC_ALL", "C");
        holding(&mut command, lock, &settings.data_dir)?;
        let note = |line: &str| match programs::progress(line) {
            Some(progress) => *locked(&self.shared.progress) = Some(progress),
            None => tracing::info!("pg_basebackup: {line}"),
        };
        programs::run(command, note).await.map(|_| ())
    }

    /// Writes the passfile that a method connects with.
    pub(crate) async fn write_passfile_for(&self, to: &Address) -> Result<(), PgError> {
        let to = to.clone();
        self.files("writing the passfile", move |settings| conf::write_passfile(settings, &to)).await
    }
}

fn again(lock: &File, settings: &Settings) -> Result<File, PgError> {
    lock.try_clone().map_err(|e| file_error(&settings.data_dir, &e))
}

fn broken(settings: &Settings, cause: &tokio::task::JoinError) -> PgError {
    PgError::File { path: settings.data_dir.display().to_string(), cause: cause.to_string() }
}

/// What a method for copies gets, in the peer's order: the other keys of its section first (B13).
fn replica_arguments(settings: &Settings, method: &Command, from: Option<&Address>) -> Vec<String> {
    let connection = from.map(|from| conninfo::plain(settings, from));
    let told = [
        format!("--scope={}", settings.scope),
        "--role=replica".to_owned(),
        format!("--datadir={}", settings.data_dir.display()),
        format!("--connstring={}", connection.unwrap_or_default()),
    ];
    let told = told.into_iter().filter(|_| !method.no_params);
    method.arguments.iter().cloned().chain(told).collect()
}

/// What a method for a new cluster gets, in the peer's order: the other keys of its section last (B4).
pub(crate) fn bootstrap_arguments(settings: &Settings, method: &Command) -> Vec<String> {
    let told = [format!("--scope={}", settings.scope), format!("--datadir={}", settings.data_dir.display())];
    told.into_iter().filter(|_| !method.no_params).chain(method.arguments.iter().cloned()).collect()
}
