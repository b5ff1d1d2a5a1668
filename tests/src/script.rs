//! The scenario language: a story that a reviewer can read, and what the agents decided in it.
//!
//! A scenario is a comment that says what must happen, a script, a line `----`, and the story that came of the script. Virtual
//! time starts at zero with the first step; machines are all alike, so that nothing happens but what the script says.
//!
//! ```text
//! # A primary cut off from etcd stops before its lease ends; only then may another one start.
//! cluster a b c ttl=30 loop_wait=10 stop_budget=5
//! hide prepare_slots
//! cut a etcd
//! run 40
//! ----
//!     0.00 > cut a etcd
//!     3.10 a hold                         lease:keep                     postgres:stay
//! ```
//!
//! | First line | |
//! |---|---|
//! | `cluster a b c ttl=30 ..` | a healthy cluster, led by `a`; the story begins when it is settled |
//! | `machines a b c ttl=30 ..` | machines with empty disks, no agent runs yet |
//!
//! Settings: `ttl`, `loop_wait`, `retry_timeout`, `stop_budget`, `primary_start_timeout`, `primary_stop_timeout`,
//! `maximum_lag_on_failover`, `member_slots_ttl`, `check_timeline`, `logical_slot=on` (there is one, `x`). What follows before the first step counts from the beginning: `config a primary_start_timeout=0`,
//! `tag a nofailover`, and what is printed: `show a b` (these members only), `hide RULE ..`, `why RULE ..` (with its reason).
//! The steps are the arms of `step` in `script/play.rs`, and only there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tokio::task::LocalSet;

mod diff;
mod parse;
mod play;
mod print;

pub use diff::diff;
use parse::Script;

/// What came of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Story {
    /// The text that belongs after `----`.
    pub text: String,
    /// Title of the table and name of every rule that decided, also of those that are hidden.
    pub reached: BTreeSet<(&'static str, &'static str)>,
}

/// A script that cannot be played: which line, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {what}")]
pub struct ScriptError {
    /// The scenario's file.
    pub file: String,
    /// Counted from 1.
    pub line: usize,
    /// For the author.
    pub what: String,
}

/// The line between a script and its story.
const RULER: &str = "----";

/// The scenario files of this crate, in the order of their names.
///
/// # Panics
/// When the directory cannot be read: the crate is not complete.
#[must_use]
pub fn scenarios() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let entries = std::fs::read_dir(&directory).expect("tests/scenarios is part of this crate");
    let mut files: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    files
}

/// The script and the story of a scenario; the story is empty when there is none yet.
#[must_use]
pub fn split(scenario: &str) -> (&str, &str) {
    match scenario.split_once(&format!("\n{RULER}\n")) {
        Some((script, story)) => (script, story),
        None => (scenario.trim_end().trim_end_matches(RULER).trim_end(), ""),
    }
}

/// A scenario of this script and this story.
#[must_use]
pub fn join(script: &str, story: &Story) -> String {
    format!("{script}\n{RULER}\n{}", story.text)
}

/// Plays a script. `file` is for messages.
///
/// # Errors
/// A line that means nothing, or that cannot be done.
///
/// # Panics
/// When no runtime can be made.
pub fn play(file: &str, script: &str) -> Result<Story, ScriptError> {
    let script = Script::parse(file, script)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without IO can always be built");
    LocalSet::new().block_on(&runtime, play::play(&script))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_file_and_line() {
        for (script, line, what) in [
            ("# nothing", 1, "begin with"),
            ("cluster a c", 1, "members are called"),
            ("cluster a b ttl=x", 1, "not a time"),
            ("cluster a b\n\nfly a", 3, "no such step"),
            ("cluster a b\nkill c node", 2, "no member called c"),
            ("cluster a b\nrun soon", 2, "not a time"),
            ("cluster a b\nhide leed", 2, "no rule called leed"),
            ("cluster a b\ntag a pretty", 2, "no such tag"),
            ("cluster a b\nrun 1\nshow a", 3, "before the first step"),
        ] {
            let error = play("some.txt", script).expect_err(script);
            assert_eq!((error.line, error.file.as_str()), (line, "some.txt"), "{error}");
            assert!(error.what.contains(what), "{error}");
        }
    }

    #[test]
    fn a_script_is_deterministic() {
        let script = "cluster a b c\nwriters on\nkill a node\nrun 60";
        let story = play("some.txt", script).expect("a script");
        assert_eq!(story, play("some.txt", script).expect("a script"));
        assert!(story.text.contains("run_for_leader"), "{}", story.text);
    }

    #[test]
    fn a_scenario_is_split_and_joined() {
        let story = Story { text: "told\n".into(), reached: BTreeSet::new() };
        for scenario in ["run 1", "run 1\n", "run 1\n----\n", "run 1\n----\nold\n"] {
            assert_eq!(join(split(scenario).0, &story), "run 1\n----\ntold\n", "{scenario:?}");
        }
    }
}
