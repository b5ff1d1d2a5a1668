//! Which processes belong to a directory, judged by `/proc`; for ending what outlived its parent.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{self, SignalKind};

use super::Trouble;
use super::sql::runtime;
use super::wait::poll;

/// The programs that a rig runs. A pager that shows one of its logs is none of them.
const OURS: [&str; 13] = [
    "patroni",
    "regent",
    "regent-guardian",
    "regentctl",
    "postgres",
    "etcd",
    "haproxy",
    "initdb",
    "pg_basebackup",
    "pg_rewind",
    "pg_ctl",
    "pg_controldata",
    "pg_isready",
];

/// A process.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its id.
    pub pid: i32,
    /// Its parent's id.
    pub parent: i32,
    /// Its program's name, 15 characters at the most.
    pub program: String,
    /// It has ended and waits to be reaped.
    pub dead: bool,
    /// When it started, in clock ticks since boot: with the id, this names one process for ever.
    pub started: u64,
}

/// Every process of the machine, as far as visible.
pub fn all() -> impl Iterator<Item = Seen> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok())).filter_map(look)
}

/// One process, if it exists.
#[must_use]
pub fn look(pid: i32) -> Option<Seen> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc(5): pid (comm) state ppid ...; the name may hold anything, so the last parenthesis ends it.
    let (before, after) = stat.rsplit_once(')')?;
    let program = before.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = after.split_whitespace().collect();
    let parent = fields.get(1)?.parse().ok()?;
    let started = fields.get(19)?.parse().ok()?;
    Some(Seen { pid, parent, program, dead: matches!(fields.first(), Some(&"Z" | &"X")), started })
}

/// The living processes of the directory `dir`: those of our programs that work in it or were told its name, and their
/// descendants.
#[must_use]
pub fn of(dir: &Path) -> Vec<Seen> {
    let everyone: Vec<Seen> = all().filter(|p| !p.dead).collect();
    let mut found: Vec<Seen> =
        everyone.iter().filter(|p| OURS.contains(&p.program.as_str()) && belongs(p.pid, dir)).cloned().collect();
    let mut next = 0;
    while let Some(parent) = found.get(next).map(|p| p.pid) {
        let known: Vec<i32> = found.iter().map(|p| p.pid).collect();
        found.extend(everyone.iter().filter(|p| p.parent == parent && !known.contains(&p.pid)).cloned());
        next += 1;
    }
    found
}

/// Told by the command line, which everyone may read, or by the working directory, which in containers even root may not.
fn belongs(pid: i32, dir: &Path) -> bool {
    let cwd = fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
    let told = || {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).split(['\0', '=']).any(|word| Path::new(word).starts_with(dir))
    };
    cwd || told()
}

/// Sends `signal` to every one of them.
pub fn signal(them: &[Seen], signal: Signal) {
    for process in them {
        let _ = kill(Pid::from_raw(process.pid), signal);
    }
}

/// Ends all processes of `dir`: PostgreSQL first by SIGQUIT, which lets it give its shared memory back, then all by SIGKILL.
pub fn end(dir: &Path) {
    let them = of(dir);
    let (servers, others): (Vec<Seen>, Vec<Seen>) = them.into_iter().partition(|p| p.program == "postgres");
    signal(&others, Signal::SIGKILL);
    signal(&servers, Signal::SIGQUIT);
    signal(&servers, Signal::SIGCONT);
    let gone = || if of(dir).is_empty() { Ok(()) } else { Err(String::new()) };
    if poll(Duration::from_secs(3), gone).is_err() {
        let _ = poll(Duration::from_secs(5), || {
            signal(&of(dir), Signal::SIGKILL);
            gone()
        });
    }
}

/// From now on Ctrl-C and SIGTERM end and remove the rig in `dir`, as leaving `main` would: no destructor runs when a signal
/// ends us.
///
/// # Errors
/// The system gives no runtime.
pub fn end_on_interrupt(dir: &Path) -> Result<(), Trouble> {
    static DIRS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
    let mut dirs = DIRS.lock().unwrap_or_else(PoisonError::into_inner);
    dirs.push(dir.to_path_buf());
    if dirs.len() > 1 {
        return Ok(());
    }
    let runtime = runtime()?;
    thread::spawn(move || {
        runtime.block_on(async {
            let (Ok(mut interrupt), Ok(mut term)) =
                (unix::signal(SignalKind::interrupt()), unix::signal(SignalKind::terminate()))
            else {
                return;
            };
            tokio::select! { biased; _ = interrupt.recv() => {} _ = term.recv() => {} }
            for dir in DIRS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                end(dir);
                let _ = fs::remove_dir_all(dir);
            }
            std::process::exit(130);
        });
    });
    Ok(())
}

/// The name of the file in a rig's directory that says who runs it.
const OWNER: &str = "owner";
/// The name of the file that says that the rig is to stay when its owner has gone.
const KEEP: &str = "keep";

/// Writes down that this process runs the rig in `dir`.
pub(super) fn claim(dir: &Path) -> std::io::Result<()> {
    let me = std::process::id().cast_signed();
    let started = look(me).map_or(0, |seen| seen.started);
    fs::write(dir.join(OWNER), format!("{me} {started}"))
}

/// Writes down that the rig in `dir` stays.
pub(super) fn keep(dir: &Path) -> std::io::Result<()> {
    fs::write(dir.join(KEEP), "")
}

/// Ends and removes the rigs beside `dir` whose owner was killed.
pub(super) fn sweep(parent: &Path, prefix: &str) {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let rigs =
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)).map(|entry| entry.path());
    for dir in rigs.filter(|dir| abandoned(dir)) {
        end(&dir);
        let _ = fs::remove_dir_all(&dir);
    }
}

fn abandoned(dir: &Path) -> bool {
    let Ok(owner) = fs::read_to_string(dir.join(OWNER)) else { return false };
    let mut words = owner.split_whitespace();
    let pid = words.next().and_then(|word| word.parse().ok());
    let started: Option<u64> = words.next().and_then(|word| word.parse().ok());
    let alive = pid.and_then(look).is_some_and(|seen| Some(seen.started) == started);
    // Only what we could end: root's rigs are not an ordinary user's to sweep.
    let us = nix::unistd::Uid::effective();
    let ours = us.is_root() || fs::metadata(dir).is_ok_and(|meta| meta.uid() == us.as_raw());
    ours && !alive && !dir.join(KEEP).exists()
}
