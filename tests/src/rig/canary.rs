//! Every password of a rig has one word in it, and that word must never come to light: not in a log, an answer, the output of a
//! program, a command line, an environment or a core file.

use std::fs;
use std::path::{Path, PathBuf};

use super::stray;

/// The word. Passwords begin or end with it.
pub const CANARY: &str = "canary-3fe9";

/// Ends the test if `text`, which comes from `place`, has a secret in it.
///
/// # Panics
/// It has.
pub fn watch(place: &str, text: &str) {
    assert!(!text.contains(CANARY), "a secret is in {place}:\n{text}");
}

/// The same for the logs and core files below `dir`, and for the processes that work there.
///
/// # Panics
/// As [`watch`].
pub fn watch_all(dir: &Path) {
    for file in logs(dir) {
        watch(&file.display().to_string(), &String::from_utf8_lossy(&fs::read(&file).unwrap_or_default()));
    }
    for process in stray::of(dir) {
        for what in ["cmdline", "environ"] {
            // What an operator gave the agent in variables stays there, for root to see.
            if what == "environ" && process.program == "regent" {
                continue;
            }
            let text = fs::read(format!("/proc/{}/{what}", process.pid)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).replace('\0', " ");
            watch(&format!("{what} of {} ({})", process.program, process.pid), &text);
        }
    }
}

fn logs(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                // Rows and log records are PostgreSQL's: nothing of ours is in them.
                if !["base", "pg_wal", "pg_xact", "global"].contains(&name.as_str()) {
                    todo.push(path);
                }
            } else if name.contains(".log") || name == "core" || name.starts_with("core.") {
                found.push(path);
            }
        }
    }
    found
}
