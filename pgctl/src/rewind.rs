//! A log that has diverged: pg_rewind with what must come before it (X5, X6, C3), and the place made free for a clone where
//! it cannot help (X8, X9).
//!
//! ```text
//!   lock ──► crash recovery ──► archive ──► rehearsal ──► marker ──► pg_rewind ──► marker removed
//!            if not shut down,              (--dry-run)   │ from here to the end: half-rewound
//!            and the source lets us in                    │
//!            └───────── may be broken off and done again ─┘
//! ```
//!
//! The rehearsal reads all that pg_rewind will read: what it lacks (log, a connection, rights) shows before anything is
//! changed. So does log that the source lacks and the rewound copy would need. A directory that pg_rewind began to change can
//! neither be started nor rewound again: its own log, from which pg_rewind learns what to undo, may be gone already.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use regent_core::postgres::ClusterState;
use regent_core::units::{Lsn, MemberName};
use rustix::fs::statvfs;
use tokio::process::Command;

use crate::conf::{self, Role};
use crate::conninfo::{self, Address};
use crate::create::{TOOLS, holding};
use crate::datadir::{self, Look};
use crate::disk::{entries, file_error, remove, sync_parent};
use crate::observe::read_control;
use crate::real::{ASK, Server};
use crate::run::refuse_unusable;
use crate::settings::Settings;
use crate::{PgError, postmaster, programs};

/// How long the user's archive_command may take for one segment.
const ARCHIVE: Duration = Duration::from_secs(300);
/// How long the source of a clone may take to say who it is.
const SOURCE: Duration = Duration::from_secs(10);
/// What pg_rewind says, once all is well with the source, of a target that needs crash recovery first.
const NOT_SHUT_DOWN: &str = "target server must be shut down cleanly";

impl Server {
    /// pg_rewind to `source`, a primary.
    pub(crate) async fn rewind_to(&self, source: &MemberName, conn_url: &str) -> Result<(), PgError> {
        self.not_as_root()?;
        let address = Address::of_url(conn_url)?;
        let major = self.installed().await.map_err(PgError::Refused)?;
        let settings = self.settings();
        let lock = self.lock_stopped().await?;
        self.point_at(&address).await?;

        let pg_rewind = |rehearsal: bool| -> Result<Command, PgError> {
            let mut command = settings.programs.program("pg_rewind");
            command.arg("--target-pgdata").arg(&settings.data_dir).args(["--no-ensure-shutdown", "--progress"]);
            command.arg(format!("--source-server={}", conninfo::rewind(&settings, &address)));
            command
                .args(restoring(&settings, major))
                .args(&settings.rewind_options)
                .env("LC_ALL", "C")
                .env_remove("PGPASSFILE");
            if rehearsal {
                command.arg("--dry-run");
            }
            holding(&mut command, &lock, &settings.data_dir)?;
            Ok(command)
        };
        if !was_shut_down(&settings).await? {
            // A source that does not let us in, or that is another cluster's, must show before the log is changed.
            match programs::run(pg_rewind(true)?, |_| ()).await {
                Err(PgError::Program { output, .. }) if output.contains(NOT_SHUT_DOWN) => {}
                other => other.map(|_| ())?,
            }
            self.recover(&settings).await?;
            self.point_at(&address).await?;
        }
        self.archive_the_rest(&settings).await;

        let (mut nothing_to_do, mut fork) = (false, None);
        programs::run(pg_rewind(true)?, |line| {
            tracing::info!("pg_rewind, rehearsal: {line}");
            nothing_to_do |= line.contains("no rewind required");
            fork = fork.or_else(|| forked_at(line));
        })
        .await?;
        if nothing_to_do && conninfo::remote(&settings, &address).is_some() {
            // Who leads in a cluster says when that is done; a remote says nothing.
            let why = "pg_rewind sees nothing to do: its source has not made a checkpoint on its new timeline yet";
            return Err(PgError::Refused(why.to_owned()));
        }
        if nothing_to_do {
            return Ok(());
        }
        if let Some((lsn, timeline)) = fork
            && !fetches_log(&settings)
        {
            still_has_log(&settings, &address, source, lsn, timeline).await?;
        }
        let note =
            format!("Regent runs pg_rewind from {source}. While this file exists, no server may start beside it.\n");
        self.files("marking the data directory", move |settings| {
            let marker = datadir::rewind_marker(&settings.data_dir);
            let write = || {
                fs::write(&marker, &note)?;
                File::open(&marker)?.sync_all()
            };
            write().map_err(|e| file_error(&marker, &e))?;
            sync_parent(&marker)
        })
        .await?;
        programs::run(pg_rewind(false)?, |line| tracing::info!("pg_rewind: {line}")).await?;
        if let Err(error) = have_log_written_out(&settings, &address).await {
            tracing::info!(%error, "the source was not asked to write its log out; a standby may wait for its next commit");
        }
        self.files("finishing", |settings| remove_marker(&settings.data_dir)).await
    }

    /// Writes the configuration of a standby of `address`, where pg_rewind finds `restore_command`, and its password.
    async fn point_at(&self, address: &Address) -> Result<(), PgError> {
        let to = address.clone();
        self.files("writing the configuration", move |settings| {
            conf::write(settings, &Role::Standby { conninfo: Some(conninfo::replication(settings, &to)) })?;
            let who = settings.rewind.as_ref().unwrap_or(&settings.superuser);
            match conninfo::passfile(&to, who) {
                Some(text) => conf::write_passfile_text(settings, &text),
                None => Ok(()),
            }
        })
        .await
    }

    /// Takes the kernel lock on a data directory that is whole and that nobody uses.
    pub(crate) async fn lock_stopped(&self) -> Result<File, PgError> {
        if let Some(postmaster) = self.running().await? {
            return Err(PgError::Refused(format!("a server runs on it, as process {}; stop it first", postmaster.pid)));
        }
        let settings = self.settings();
        postmaster::end_orphans(&self.shared.disk, &settings.data_dir).await?;
        let installed = self.installed().await;
        self.files("locking the data directory", move |settings| {
            postmaster::kill_tools(&TOOLS, &settings.data_dir)?;
            let Look { kind, .. } = datadir::look(&settings.data_dir, &installed, None);
            refuse_unusable(settings, kind)?;
            datadir::lock(&settings.data_dir)
        })
        .await
    }

    /// Crash recovery in single-user mode, so that the log ends with a shutdown checkpoint (C3). It removes no log: pg_rewind
    /// needs it back to the last checkpoint before the fork, and what was not archived yet is in nobody else's.
    async fn recover(&self, settings: &Settings) -> Result<(), PgError> {
        tracing::info!("the server was not shut down: recovering its log in single-user mode first");
        // Without a `.done` file a segment counts as not archived, and is kept.
        let archived = self.files("writing the configuration", |settings| {
            conf::write(settings, &Role::Primary)?;
            let archived = archive_status(&settings.data_dir, "done")?;
            archived.iter().try_for_each(|path| remove(path).map(|_| ()))?;
            Ok(archived)
        });
        let archived = archived.await?;
        let mut command = settings.programs.program("postgres");
        command.arg("--single").args(conf::arguments(settings, &std::collections::BTreeMap::new()));
        command.args(["--archive_mode=on", "--archive_command=false", "template1"]);
        command.stdin(Stdio::null()).env("LC_ALL", "C");
        postmaster::dies_with_us(&mut command);
        programs::run(command, |line| tracing::info!("single-user recovery: {line}")).await?;
        // What was archived already is not archived again: commands refuse to overwrite.
        let restore = move |_: &Settings| {
            archived.iter().try_for_each(|path| {
                remove(&path.with_extension("ready"))?;
                fs::write(path, "").map_err(|e| file_error(path, &e))
            })
        };
        self.files("restoring the marks of archived segments", restore).await?;
        if was_shut_down(settings).await? {
            return Ok(());
        }
        Err(PgError::Refused("single-user recovery ended without a shutdown checkpoint; its log says why".to_owned()))
    }

    /// Archives what the server had not archived when it went down (X6). What fails stays marked, and in pg_wal as long as
    /// pg_rewind leaves it there.
    async fn archive_the_rest(&self, settings: &Settings) {
        let get = |name: &str| settings.parameters.get(name).map(String::as_str).unwrap_or_default();
        let line = get("archive_command");
        if line.is_empty() || !matches!(get("archive_mode"), "on" | "always" | "true" | "yes" | "1") {
            return;
        }
        let ready =
            self.files("looking for segments to archive", |settings| archive_status(&settings.data_dir, "ready"));
        for path in ready.await.unwrap_or_default() {
            let Some(segment) = path.file_stem().and_then(|name| name.to_str()) else { continue };
            let mut command = programs::plain("sh");
            command.arg("-c").arg(filled_in(line, segment)).current_dir(&settings.data_dir);
            let archived = programs::ask(command, ARCHIVE)
                .await
                .and_then(|_| fs::rename(&path, path.with_extension("done")).map_err(|e| file_error(&path, &e)));
            if let Err(error) = archived {
                tracing::error!(%error, segment, "this segment could not be archived; if only this member has it, it may be lost");
                return;
            }
        }
    }

    /// Makes room for a clone from `source`.
    pub(crate) async fn move_aside(&self, source: &MemberName, conn_url: &str) -> Result<(), PgError> {
        if let Some(postmaster) = self.running().await? {
            return Err(PgError::Refused(format!("a server runs on it, as process {}; stop it first", postmaster.pid)));
        }
        let settings = self.settings();
        self.ask_for_a_clone(source, conn_url).await?;
        postmaster::end_orphans(&self.shared.disk, &settings.data_dir).await?;
        let lock = self
            .files("locking the data directory", |settings| {
                let place = &settings.data_dir;
                postmaster::kill_tools(&TOOLS, place)?;
                let links = fs::read_dir(place.join("pg_tblspc")).into_iter().flatten().flatten();
                let mut links = links.filter_map(|entry| fs::read_link(entry.path()).ok());
                if let Some(tablespace) = links.next() {
                    return Err(PgError::Refused(format!(
                        "{} has a tablespace in {}, which Regent does not remove: it may be another server's. Empty the \
                         places of its tablespaces and the data directory by hand, to have all cloned again",
                        place.display(),
                        tablespace.display()
                    )));
                }
                datadir::lock(place)
            })
            .await?;
        let data_dir = settings.data_dir.clone();
        let moved = tokio::task::spawn_blocking(move || rename_if_room(&data_dir)).await.unwrap_or(false);
        if !moved {
            tracing::warn!(data_dir = %settings.data_dir.display(), "no room for two copies: removing the old one now");
            datadir::mark_unfinished(&settings.data_dir, "removing data that has diverged");
            self.empty(lock).await?;
        }
        self.files("finishing", |settings| remove_marker(&settings.data_dir)).await
    }

    /// Logs in to the source as pg_basebackup will, over the replication protocol, and asks who it is.
    async fn ask_for_a_clone(&self, source: &MemberName, conn_url: &str) -> Result<(), PgError> {
        let settings = self.settings();
        let address = Address::of_url(conn_url)?;
        let to = address.clone();
        self.files("writing the passfile", move |settings| conf::write_passfile(settings, &to)).await?;
        let mut command = settings.programs.program("psql");
        command.args(["--no-psqlrc", "--no-password", "--tuples-only", "--command=IDENTIFY_SYSTEM"]);
        command.arg(format!("--dbname={} replication=true", conninfo::replication(&settings, &address)));
        command.env("LC_ALL", "C").env_remove("PGPASSFILE");
        tracing::info!(%source, "does the source of a clone answer?");
        programs::ask(command, SOURCE).await.map(|_| ())
    }

    /// Removes what was moved aside. Takes as long as the disk takes.
    pub(crate) async fn remove_old_copy(&self) -> Result<(), PgError> {
        let old = datadir::old_copy(&self.settings().data_dir);
        let place = old.display().to_string();
        let removed = tokio::task::spawn_blocking(move || fs::remove_dir_all(&old).map_err(|e| file_error(&old, &e)));
        removed.await.unwrap_or_else(|e| Err(PgError::File { path: place, cause: e.to_string() }))
    }
}

async fn was_shut_down(settings: &Settings) -> Result<bool, PgError> {
    let control = match tokio::time::timeout(ASK, read_control(settings)).await {
        Ok(control) => control.map_err(PgError::Refused)?,
        Err(_) => return Err(PgError::Timeout { what: "pg_controldata".to_owned(), limit: ASK }),
    };
    Ok(matches!(control.data.state, ClusterState::ShutDown | ClusterState::ShutDownInRecovery))
}

/// Log that is nowhere else may be in an archive.
fn fetches_log(settings: &Settings) -> bool {
    settings.recovery_conf.get("restore_command").is_some_and(|command| !command.is_empty())
}

/// Where the logs part, and the timeline that the target left there, if `line` of pg_rewind says so.
fn forked_at(line: &str) -> Option<(Lsn, u32)> {
    let (lsn, timeline) = line.split_once("servers diverged at WAL location ")?.1.split_once(" on timeline ")?;
    Some((lsn.parse().ok()?, timeline.trim().parse().ok()?))
}

/// The source still has its log from the fork on. pg_rewind does not ask: it would leave a copy that never becomes consistent.
/// Log is recycled in order, so the segment with the fork, on a timeline that branched off there, stands for all of it.
async fn still_has_log(
    settings: &Settings,
    address: &Address,
    source: &MemberName,
    lsn: Lsn,
    timeline: u32,
) -> Result<(), PgError> {
    // At the edge of two segments pg_walfile_name names the earlier one; what is needed is the later one.
    let next = Lsn(lsn.0.saturating_add(1));
    let sql = format!(
        "select count(*) from pg_ls_dir('pg_wal', true, false) as name \
         where substr(name, 9) = substr(pg_walfile_name('{next}'), 9) and substr(name, 1, 8) > '{timeline:08X}'"
    );
    if ask_source(settings, address, &sql).await?.trim() != "0" {
        return Ok(());
    }
    Err(PgError::Refused(format!(
        "{source} has removed its log from the fork at {lsn} on, so that a rewound copy could not catch up; if an archive has \
         it, set restore_command"
    )))
}

/// Lets the source write out the log that it has in memory. pg_rewind notes its end as what must be replayed before queries are
/// answered; a source that has nothing to commit writes out a page that is not full at its next checkpoint only.
async fn have_log_written_out(settings: &Settings, address: &Address) -> Result<(), PgError> {
    // One commit that waits for no standby; a source that is a standby has nothing of its own.
    let sql = "select case when not pg_is_in_recovery() then \
               (select pg_logical_emit_message(true, 'regent', '')::text from set_config('synchronous_commit', 'local', true)) end";
    ask_source(settings, address, sql).await.map(|_| ())
}

/// What the source of a rewind answers to pg_rewind's role.
async fn ask_source(settings: &Settings, address: &Address, sql: &str) -> Result<String, PgError> {
    let mut command = settings.programs.program("psql");
    command.args(["--no-psqlrc", "--no-password", "--tuples-only", "--no-align", "--command", sql]);
    command.arg(format!("--dbname={}", conninfo::rewind(settings, address)));
    command.env("LC_ALL", "C").env_remove("PGPASSFILE");
    programs::ask(command, SOURCE).await
}

/// pg_rewind fetches log that it lacks through `restore_command`, where it finds that (X6).
fn restoring(settings: &Settings, major: u32) -> Vec<String> {
    let inside = settings.config_dir == settings.data_dir;
    match (fetches_log(settings), inside, major) {
        (true, false, 15..) => {
            vec!["--restore-target-wal".to_owned(), format!("--config-file={}", conf::main_file(settings).display())]
        }
        (true, true, _) => vec!["--restore-target-wal".to_owned()],
        (true, false, _) | (false, _, _) => Vec::new(),
    }
}

fn remove_marker(data_dir: &Path) -> Result<(), PgError> {
    let marker = datadir::rewind_marker(data_dir);
    if remove(&marker)? { sync_parent(&marker) } else { Ok(()) }
}

/// Status files of the archiver with this ending, oldest first.
fn archive_status(data_dir: &Path, ending: &str) -> Result<Vec<PathBuf>, PgError> {
    let dir = data_dir.join("pg_wal/archive_status");
    let mut found = entries(&dir).map_err(|e| file_error(&dir, &e))?;
    found.retain(|path| path.extension().is_some_and(|extension| extension == ending));
    found.sort();
    Ok(found)
}

/// `archive_command` for one segment (PostgreSQL documentation: `%p`, `%f`, `%%`).
fn filled_in(line: &str, segment: &str) -> String {
    let mut filled = String::new();
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (c, chars.as_str().chars().next()) {
            ('%', Some('p')) => filled.push_str(&format!("pg_wal/{segment}")),
            ('%', Some('f')) => filled.push_str(segment),
            ('%', Some('%')) => filled.push('%'),
            (c, _) => {
                filled.push(c);
                continue;
            }
        }
        chars.next();
    }
    filled
}

/// Renames the directory if its disk can hold another one of its size. What is a link, or has its log elsewhere, stays: the
/// clone needs that very place.
fn rename_if_room(data_dir: &Path) -> bool {
    let old = datadir::old_copy(data_dir);
    let is_link = |path: &Path| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink());
    if old.exists() || is_link(data_dir) || is_link(&data_dir.join("pg_wal")) {
        return false;
    }
    let Ok(disk) = statvfs(data_dir) else { return false };
    let room = disk.f_bavail.saturating_mul(disk.f_frsize);
    // A tenth more: the source may be larger than this copy.
    let needed = size(data_dir) / 10 * 11;
    if room < needed {
        return false;
    }
    match fs::rename(data_dir, &old) {
        Ok(()) => {
            tracing::warn!("the data directory is kept as {} until its replacement streams", old.display());
            true
        }
        Err(error) => {
            tracing::info!(%error, "the data directory cannot be renamed");
            false
        }
    }
}

/// Bytes of all files below a directory.
pub(crate) fn size(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let one = |path: PathBuf| match fs::symlink_metadata(&path) {
        Ok(meta) if meta.is_dir() => size(&path),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.map(|entry| one(entry.path())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::tests::settings;

    #[test]
    fn an_archive_command_is_filled_in() {
        assert_eq!(filled_in("cp %p /a/%f 100%% %x %", "0001"), "cp pg_wal/0001 /a/0001 100% %x %");
    }

    #[test]
    fn missing_log_is_fetched_where_pg_rewind_can_find_the_command() {
        let mut s = settings(Path::new("/pg/a"));
        s.recovery_conf.clear();
        assert_eq!(restoring(&s, 15), Vec::<String>::new());
        s.recovery_conf.insert("restore_command".to_owned(), "cp /archive/%f %p".to_owned());
        assert_eq!(restoring(&s, 13), ["--restore-target-wal"]);
        s.config_dir = "/etc/pg".into();
        assert_eq!(restoring(&s, 14), Vec::<String>::new(), "pg_rewind 14 looks in the data directory only");
        assert_eq!(restoring(&s, 15), ["--restore-target-wal", "--config-file=/etc/pg/postgresql.conf"]);
    }

    #[test]
    fn pg_rewind_says_where_the_logs_part() {
        let line = "pg_rewind: servers diverged at WAL location 1/14008908 on timeline 8";
        assert_eq!(forked_at(line), Some((Lsn(0x1_1400_8908), 8)));
        assert_eq!(forked_at("pg_rewind: rewinding from last common checkpoint at 0/14001F78 on timeline 8"), None);
    }

    #[test]
    fn the_connection_of_pg_rewind_shows_no_password() {
        let s = settings(Path::new("/pg/a"));
        let address = Address::of_url("postgres://b:5433/postgres").unwrap();
        let text = conninfo::rewind(&s, &address);
        assert!(text.contains("user=postgres") && text.contains("target_session_attrs=read-write"), "{text}");
        assert!(!text.contains("12345"), "{text}");
    }

    #[test]
    fn what_is_moved_aside_is_whole_and_stays_where_there_is_one_already() {
        let outer = tempfile::tempdir().unwrap();
        let data = outer.path().join("data");
        for text in ["one", "two"] {
            fs::create_dir(&data).unwrap();
            fs::write(data.join("x"), text).unwrap();
            assert_eq!(rename_if_room(&data), text == "one");
        }
        assert_eq!(fs::read_to_string(datadir::old_copy(&data).join("x")).unwrap(), "one");
        assert_eq!(size(outer.path()), 6);
    }
}
