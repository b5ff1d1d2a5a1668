//! Reading files under the data directory without ever waiting for them longer than we want to.
//!
//! A hung disk blocks the thread that reads it, for ever. So every read runs on a helper thread, its silence is an
//! answer of its own, and while one helper hangs no second one is sent after it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::PgError;

/// The one helper.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    gate: Arc<Semaphore>,
}

impl Disk {
    pub(crate) fn new() -> Disk {
        Disk { gate: Arc::new(Semaphore::new(1)) }
    }

    /// Runs `work` on the helper thread; `None` when it (or the one before it) did not answer within `within`.
    pub(crate) async fn ask<T, F>(&self, within: Duration, work: F) -> Option<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let gate = Arc::clone(&self.gate);
        let answer = async move {
            let permit = gate.acquire_owned().await.ok()?;
            let job = tokio::task::spawn_blocking(move || {
                let answer = work();
                drop(permit);
                answer
            });
            job.await.ok()
        };
        timeout(within, answer).await.ok().flatten()
    }

    /// As [`Disk::ask`] for work that can fail; silence becomes [`PgError::Timeout`] on `what`.
    pub(crate) async fn attempt<T, F>(&self, what: &str, limit: Duration, work: F) -> Result<T, PgError>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, PgError> + Send + 'static,
    {
        match self.ask(limit, work).await {
            Some(answer) => answer,
            None => Err(PgError::Timeout { what: what.to_owned(), limit }),
        }
    }
}

/// When two of these are equal, the file has not changed in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    /// `None` when there is no such file, or it cannot be looked at.
    pub(crate) fn of(path: &Path) -> Option<Stamp> {
        let meta = fs::metadata(path).ok()?;
        Some(Stamp { inode: meta.ino(), size: meta.len(), changed: (meta.ctime(), meta.ctime_nsec()) })
    }
}

/// An error of the file system at `path`.
pub(crate) fn file_error(path: &Path, cause: &io::Error) -> PgError {
    PgError::File { path: path.display().to_string(), cause: cause.to_string() }
}

/// Mode for files inside `data_dir`: 0640 if its group may read it, else 0600 (config.md 7.4; PostgreSQL: `initdb -g`).
pub(crate) fn file_mode(data_dir: &Path) -> u32 {
    match fs::metadata(data_dir) {
        Ok(meta) if meta.mode() & 0o040 != 0 => 0o640,
        Ok(_) | Err(_) => 0o600,
    }
}

/// Makes `path` hold `content` with `mode`, through a temporary file beside it, so that a crash leaves the old or the new
/// content, and nothing half. Does nothing, and says `false`, when it holds just that already.
pub(crate) fn replace(path: &Path, content: &str, mode: u32) -> Result<bool, PgError> {
    if holds(path, content, mode) {
        return Ok(false);
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".regent-new");
    let temporary = path.with_file_name(name);
    write_new(&temporary, content, mode).map_err(|e| file_error(&temporary, &e))?;
    fs::rename(&temporary, path).map_err(|e| file_error(path, &e))?;
    sync_parent(path)?;
    Ok(true)
}

fn holds(path: &Path, content: &str, mode: u32) -> bool {
    let right_mode = fs::metadata(path).is_ok_and(|meta| meta.mode() & 0o777 == mode);
    right_mode && fs::read(path).is_ok_and(|old| old == content.as_bytes())
}

fn write_new(path: &Path, content: &str, mode: u32) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    // The umask may have taken bits that the directory grants.
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    file.write_all(content.as_bytes())?;
    file.sync_all()
}

/// Makes a rename or removal in the directory of `path` durable.
pub(crate) fn sync_parent(path: &Path) -> Result<(), PgError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(|e| file_error(parent, &e))
}

/// Removes a file; that it is not there is fine. Says whether it was.
pub(crate) fn remove(path: &Path) -> Result<bool, PgError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(file_error(path, &e)),
    }
}

/// Entries of a directory, without `lost+found`; that it is not there counts as no entries.
pub(crate) fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let list = match fs::read_dir(dir) {
        Ok(list) => list,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut found = Vec::new();
    for entry in list {
        let entry = entry?;
        if entry.file_name() != "lost+found" {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hung_disk_is_silence_and_costs_one_thread() {
        let disk = Disk::new();
        let (release, hold) = std::sync::mpsc::channel::<()>();
        let short = Duration::from_millis(20);
        assert_eq!(disk.ask(short, move || hold.recv().is_ok()).await, None);
        assert_eq!(disk.ask(short, || 1).await, None, "the first one still hangs, no second one is sent");
        release.send(()).unwrap();
        assert_eq!(disk.ask(Duration::from_secs(10), || 1).await, Some(1));
    }

    #[test]
    fn a_file_is_written_only_when_it_differs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.conf");
        assert_eq!(replace(&path, "one", 0o600), Ok(true));
        let before = Stamp::of(&path);
        assert_eq!(replace(&path, "one", 0o600), Ok(false));
        assert_eq!(Stamp::of(&path), before);
        assert_eq!(replace(&path, "one", 0o640), Ok(true));
        assert_eq!(replace(&path, "two", 0o640), Ok(true));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        assert_eq!(entries(dir.path()).unwrap(), [path], "no temporary file stays");
    }
}
