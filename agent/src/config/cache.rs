//! `patroni.dynamic.json`: the copy of the dynamic configuration in the data directory (config.md 1.3).

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Name of the copy in the data directory; the peer's, so that a node can change sides.
pub const DYNAMIC_CACHE: &str = "patroni.dynamic.json";

/// Why the copy could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The file system said no.
    #[error("{path}: {cause}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// It is no JSON object.
    #[error(
        "{path} is not a JSON object ({cause}); it is ignored, and rewritten when the configuration is known again"
    )]
    Garbage {
        /// Which file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
}

/// Reads the copy; `None` when there is none.
///
/// # Errors
/// [`CacheError`]; the caller logs it and goes on without.
pub fn read_dynamic_cache(data_dir: &Path) -> Result<Option<serde_json::Value>, CacheError> {
    let path = data_dir.join(DYNAMIC_CACHE);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(CacheError::File { path, cause }),
    };
    match serde_json::from_slice::<serde_json::Value>(&bytes) {
        Ok(json) if json.is_object() => Ok(Some(json)),
        Ok(_) => Err(CacheError::Garbage { path, cause: "another JSON value".to_owned() }),
        Err(cause) => Err(CacheError::Garbage { path, cause: cause.to_string() }),
    }
}

/// Replaces the copy by way of a temporary file; its mode follows the data directory's (0600, 0640 with group access).
///
/// # Errors
/// [`CacheError::File`]; the old copy is then still there.
pub fn write_dynamic_cache(data_dir: &Path, config: &serde_json::Value) -> Result<(), CacheError> {
    let path = data_dir.join(DYNAMIC_CACHE);
    let temporary = data_dir.join(format!("{DYNAMIC_CACHE}.{}.tmp", std::process::id()));
    let write = || -> std::io::Result<()> {
        let group_reads = std::fs::metadata(data_dir)?.permissions().mode() & 0o040 != 0;
        let mode = if group_reads { 0o640 } else { 0o600 };
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        // The umask has no say here: the directory's mode has.
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(config.to_string().as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)
    };
    write().map_err(|cause| {
        // The cause is what counts; a leftover is overwritten next time.
        let _ = std::fs::remove_file(&temporary);
        CacheError::File { path: path.clone(), cause }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_back_in_order_and_with_the_right_mode() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_dynamic_cache(dir.path()).unwrap().is_none());
        for (mode, want) in [(0o700, 0o600), (0o750, 0o640)] {
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            let config = serde_json::json!({"ttl": 30, "a": {"z": 1, "b": null}});
            write_dynamic_cache(dir.path(), &config).unwrap();
            let read = read_dynamic_cache(dir.path()).unwrap().unwrap();
            assert_eq!(read.to_string(), config.to_string());
            let file = std::fs::metadata(dir.path().join(DYNAMIC_CACHE)).unwrap();
            assert_eq!(file.permissions().mode() & 0o777, want);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
        }
    }

    #[test]
    fn garbage_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "[]", "{"] {
            std::fs::write(dir.path().join(DYNAMIC_CACHE), text).unwrap();
            let error = read_dynamic_cache(dir.path()).unwrap_err().to_string();
            assert!(error.contains(DYNAMIC_CACHE), "{error}");
        }
    }
}
