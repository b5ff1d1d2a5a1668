//! One look at the data directory on disk: what it is, whether we may touch it, and who serves it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use regent_core::postgres::Present;
use rustix::fs::{FlockOperation, flock};

use crate::PgError;
use crate::disk::{Stamp, entries, file_error, remove, sync_parent};
use crate::postmaster::{self, Found, Postmaster};

/// The major versions that Regent drives.
pub(crate) const SUPPORTED: std::ops::RangeInclusive<u32> = 13..=18;

/// What the programs say of their version, or why they do not.
pub(crate) type Installed = Result<u32, String>;

/// What lies at the configured place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Empty,
    Unreadable(String),
    Unusable(String),
    Unfinished,
    HalfRewound,
    /// Usable; control data to be added.
    Present(Present),
}

/// All that one visit to the disk brings back.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) kind: Kind,
    pub(crate) found: Found,
    /// Changes whenever the control file does.
    pub(crate) control: Option<Stamp>,
    /// Something was moved aside.
    pub(crate) old_copy: bool,
}

/// Looks. Blocks as long as the disk does.
pub(crate) fn look(data_dir: &Path, installed: &Installed, known: Option<&Postmaster>) -> Look {
    Look {
        kind: kind(data_dir, installed),
        found: postmaster::find(data_dir, known),
        control: Stamp::of(&control_file(data_dir)),
        old_copy: old_copy(data_dir).exists(),
    }
}

fn control_file(data_dir: &Path) -> PathBuf {
    data_dir.join("global/pg_control")
}

fn kind(data_dir: &Path, installed: &Installed) -> Kind {
    let place = data_dir.display();
    let unreadable = |e: io::Error| Kind::Unreadable(format!("{place}: {e}"));
    let meta = match fs::metadata(data_dir) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Kind::Empty,
        Err(e) => return unreadable(e),
    };
    if !meta.is_dir() {
        return Kind::Unusable(format!("{place} is not a directory; move it away, or configure another data_dir"));
    }
    let me = rustix::process::geteuid().as_raw();
    if meta.uid() != me {
        return Kind::Unusable(format!(
            "{place} belongs to {}, but Regent runs as {}; chown it, or run Regent as its owner",
            user(meta.uid()),
            user(me)
        ));
    }
    match entries(data_dir) {
        Ok(entries) if entries.is_empty() => return Kind::Empty,
        Ok(_) => {}
        Err(e) => return unreadable(e),
    }
    if marker(data_dir).exists() {
        return Kind::Unfinished;
    }
    if rewind_marker(data_dir).exists() {
        return Kind::HalfRewound;
    }
    let version = match fs::read_to_string(data_dir.join("PG_VERSION")) {
        Ok(text) => text.trim().to_owned(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return foreign(data_dir, "PG_VERSION"),
        Err(e) => return unreadable(e),
    };
    if let Err(reason) = check_version(data_dir, &version, installed) {
        return Kind::Unusable(reason);
    }
    if Stamp::of(&control_file(data_dir)).is_none() {
        return foreign(data_dir, "global/pg_control");
    }
    let has = |name: &str| data_dir.join(name).exists();
    Kind::Present(Present {
        control: None,
        standby_signal: has("standby.signal") || has("recovery.signal"),
        backup_label: has("backup_label"),
    })
}

fn foreign(data_dir: &Path, missing: &str) -> Kind {
    Kind::Unusable(format!(
        "{} has files but no {missing}: it is half-written or foreign; move it away if it is not needed, and Regent makes a \
         new one",
        data_dir.display()
    ))
}

fn check_version(data_dir: &Path, version: &str, installed: &Installed) -> Result<(), String> {
    let (from, to) = (SUPPORTED.start(), SUPPORTED.end());
    let place = data_dir.display();
    let made = version.parse::<u32>().ok().filter(|made| SUPPORTED.contains(made));
    let made = made.ok_or_else(|| {
        format!("{place} was made by PostgreSQL {version}; Regent supports {from} to {to}, upgrade it by pg_upgrade")
    })?;
    let programs = installed.as_ref().map_err(Clone::clone)?;
    if made == *programs {
        return Ok(());
    }
    Err(format!(
        "{place} was made by PostgreSQL {made}, but the programs are of PostgreSQL {programs}; set postgresql.bin_dir to the \
         programs of {made}, or upgrade it by pg_upgrade"
    ))
}

fn user(uid: u32) -> String {
    let name = nix::unistd::User::from_uid(uid.into()).ok().flatten().map(|user| user.name);
    name.map_or_else(|| format!("uid {uid}"), |name| format!("{name} (uid {uid})"))
}

/// The file beside the data directory that says: what is inside is half-made, by us.
pub(crate) fn marker(data_dir: &Path) -> PathBuf {
    beside(data_dir, ".regent-unfinished")
}

/// The file beside the data directory that says: pg_rewind changes what is inside. It must be there before pg_rewind runs,
/// and durable: without it a half-rewound directory looks like a whole one.
pub(crate) fn rewind_marker(data_dir: &Path) -> PathBuf {
    beside(data_dir, ".regent-rewinding")
}

/// Where an earlier data directory lies while its replacement is made.
pub(crate) fn old_copy(data_dir: &Path) -> PathBuf {
    beside(data_dir, ".regent-old")
}

fn beside(data_dir: &Path, suffix: &str) -> PathBuf {
    let mut name = data_dir.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Writes the marker. Where the parent directory is not ours to write, as with some volumes, there is none: what an
/// interruption leaves behind then needs a human.
pub(crate) fn mark_unfinished(data_dir: &Path, doing: &str) {
    let marker = marker(data_dir);
    let text = format!("Regent was here: {doing}. While this file exists, the directory beside it may be removed.\n");
    if let Err(error) = fs::write(&marker, text) {
        tracing::warn!(%error, marker = %marker.display(), "cannot mark the data directory as unfinished; \
            if Regent is interrupted now, it must be emptied by hand");
    }
}

/// Removes the marker: what is inside is whole, or nothing.
pub(crate) fn mark_finished(data_dir: &Path) -> Result<(), PgError> {
    let marker = marker(data_dir);
    if remove(&marker)? { sync_parent(&marker) } else { Ok(()) }
}

/// Takes the kernel lock on the data directory, made if missing: one destructive tool at a time, dying with its holder.
///
/// The lock lives as long as any copy of the file, so that a tool that got one as its standard input keeps it even when
/// the agent that started it has died.
pub(crate) fn lock(data_dir: &Path) -> Result<File, PgError> {
    make(data_dir)?;
    let directory = File::open(data_dir).map_err(|e| file_error(data_dir, &e))?;
    match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => Err(PgError::Refused(format!(
            "another program still fills or empties {}; wait for it, or end it",
            data_dir.display()
        ))),
        Err(error) => {
            tracing::warn!(%error, data_dir = %data_dir.display(), "this file system has no locks, going on without");
            Ok(directory)
        }
        Ok(()) => Ok(directory),
    }
}

fn make(data_dir: &Path) -> Result<(), PgError> {
    use std::os::unix::fs::DirBuilderExt;
    let parent = data_dir.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent).map_err(|e| file_error(parent, &e))?;
    match fs::DirBuilder::new().mode(0o700).create(data_dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(file_error(data_dir, &e)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes everything in the data directory, and in the place that `pg_wal` links to (`--waldir`): pg_basebackup makes
/// that link only after it has found the place empty.
///
/// **Invariant:** links to tablespaces are removed, never followed. On a machine that runs two members the other end may
/// be the other member's data.
///
/// `lock` is held until the last file is gone, also when nobody waits for that any more.
pub(crate) fn empty(data_dir: &Path, lock: &File) -> Result<(), PgError> {
    let wal = data_dir.join("pg_wal");
    if fs::symlink_metadata(&wal).is_ok_and(|meta| meta.is_symlink()) {
        remove_entries(&wal)?;
    }
    remove_entries(data_dir)?;
    lock.sync_all().map_err(|e| file_error(data_dir, &e))
}

fn remove_entries(dir: &Path) -> Result<(), PgError> {
    for path in entries(dir).map_err(|e| file_error(dir, &e))? {
        let is_dir = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir());
        let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(file_error(&path, &e)),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const V15: Installed = Ok(15);

    fn with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn missing_empty_and_lost_and_found_are_empty() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(kind(dir.path(), &V15), Kind::Empty);
        fs::create_dir(dir.path().join("lost+found")).unwrap();
        assert_eq!(kind(dir.path(), &V15), Kind::Empty);
        assert_eq!(kind(&dir.path().join("none"), &V15), Kind::Empty);
    }

    #[test]
    fn what_is_unusable_says_why_and_what_to_do() {
        let control = ("global/pg_control", "x");
        for (files, installed, words) in [
            (vec![("notes.txt", "")], V15, ["half-written or foreign", "move it away"]),
            (vec![("PG_VERSION", "15\n")], V15, ["no global/pg_control", "move it away"]),
            (vec![("PG_VERSION", "9.6\n"), control], V15, ["PostgreSQL 9.6", "supports 13 to 18"]),
            (vec![("PG_VERSION", "99\n"), control], V15, ["PostgreSQL 99", "supports 13 to 18"]),
            (
                vec![("PG_VERSION", "14\n"), control],
                V15,
                ["by PostgreSQL 14", "of PostgreSQL 15; set postgresql.bin_dir"],
            ),
            (vec![("PG_VERSION", "15\n"), control], Err("no programs".to_owned()), ["no programs", ""]),
        ] {
            let dir = with(&files);
            let Kind::Unusable(reason) = kind(dir.path(), &installed) else { panic!("{files:?}") };
            assert!(words.iter().all(|word| reason.contains(word)), "{reason}");
        }
        let file = with(&[("f", "")]).keep().join("f");
        assert!(matches!(kind(&file, &V15), Kind::Unusable(reason) if reason.contains("not a directory")));
        fs::remove_dir_all(file.parent().unwrap()).unwrap();
    }

    #[test]
    fn a_marker_makes_it_unfinished_until_it_is_finished() {
        let outer = with(&[("data/x", "")]);
        let data = outer.path().join("data");
        mark_unfinished(&data, "clone from n1");
        assert_eq!(kind(&data, &V15), Kind::Unfinished);
        let guard = lock(&data).unwrap();
        assert!(matches!(lock(&data), Err(PgError::Refused(_))), "the lock is exclusive");
        empty(&data, &guard).unwrap();
        assert_eq!(kind(&data, &V15), Kind::Empty);
        mark_finished(&data).unwrap();
        drop(guard);
        lock(&data).unwrap();
        assert!(!marker(&data).exists());
    }

    #[test]
    fn a_whole_directory_is_present_with_its_signals() {
        let dir = with(&[("PG_VERSION", "15\n"), ("global/pg_control", "x"), ("standby.signal", "")]);
        let present = Present { control: None, standby_signal: true, backup_label: false };
        assert_eq!(kind(dir.path(), &V15), Kind::Present(present));
    }
}
