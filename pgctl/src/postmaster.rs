//! The postmaster process: found by its pid file, verified as ours, watched through a pidfd, signalled, started.
//!
//! ```text
//!            spawn                      status line of postmaster.pid            exit
//!   down ───────────► pid file written ───────► starting ───────► ready ───────────────► down
//!     ▲                        │ a new agent finds the file, verifies the process: adoption
//!     └── SIGSTOP, SIGKILL of postmaster and children, when an immediate stop does not end
//! ```
//!
//! **Invariant:** a pid file is never deleted here. A stale one is PostgreSQL's own to judge (C12).

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::PgError;
use crate::disk::Disk;

/// Clock ticks per second in `/proc/PID/stat`: 100 on every architecture that Linux and PostgreSQL share (`USER_HZ`).
const TICKS: i64 = 100;
/// How far the start time of a process and that in its pid file may differ, in seconds (ha-rules section 2).
const START_TOLERANCE: i64 = 3;
/// How often a process is looked at where the kernel gives no pidfd (before Linux 5.3).
const POLL: Duration = Duration::from_millis(50);

/// What `postmaster.pid` says (PostgreSQL: `pidfile.h`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PidFile {
    pub(crate) pid: u32,
    data_dir: PathBuf,
    started: i64,
    /// The server accepts connections (status line `ready`).
    pub(crate) ready: bool,
}

impl PidFile {
    /// `None` when there is none or it is not yet complete. A negative pid (single-user mode) is no postmaster.
    pub(crate) fn read(data_dir: &Path) -> Option<PidFile> {
        PidFile::parse(&fs::read_to_string(data_dir.join("postmaster.pid")).ok()?)
    }

    fn parse(text: &str) -> Option<PidFile> {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        Some(PidFile {
            pid: lines.first()?.parse().ok().filter(|pid| *pid > 0)?,
            data_dir: PathBuf::from(lines.get(1)?),
            started: lines.get(2)?.parse().ok()?,
            ready: lines.get(7) == Some(&"ready"),
        })
    }
}

/// What `/proc/PID` says.
#[derive(Debug)]
struct Proc {
    dead: bool,
    parent: u32,
    started: i64,
}

impl Proc {
    fn of(pid: u32) -> Option<Proc> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the name in parentheses and may hold anything.
        let fields: Vec<&str> = stat.get(stat.rfind(')')?..)?.split_whitespace().skip(1).collect();
        let ticks: i64 = fields.get(19)?.parse().ok()?;
        Some(Proc {
            dead: matches!(*fields.first()?, "Z" | "X"),
            parent: fields.get(1)?.parse().ok()?,
            started: boot_time()? + ticks / TICKS,
        })
    }
}

fn boot_time() -> Option<i64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// The process exists and is no zombie. Process 1 of a container may take seconds to reap one (or for ever).
pub(crate) fn is_alive(pid: u32) -> bool {
    Proc::of(pid).is_some_and(|proc| !proc.dead)
}

fn command_line(pid: u32) -> String {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&raw).replace('\0', " ").trim_end().to_owned()
}

fn works_in(pid: u32, data_dir: &Path) -> bool {
    fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| same_directory(&cwd, data_dir))
}

fn same_directory(a: &Path, b: &Path) -> bool {
    a == b || matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}

/// A child names itself `postgres: ...`; the postmaster keeps its arguments.
fn is_child_title(command_line: &str) -> bool {
    command_line.starts_with("postgres: ")
}

fn is_postmaster_program(pid: u32) -> bool {
    let named = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // The kernel marks the program of a process whose file was replaced by an upgrade.
        matches!(name.trim_end_matches(" (deleted)"), "postgres" | "postmaster")
    };
    let line = command_line(pid);
    let program = line.split(' ').next().unwrap_or_default();
    let by_file = fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| named(&exe));
    !is_child_title(&line) && (by_file || named(Path::new(program)))
}

/// What lies behind a pid file.
#[derive(Debug)]
pub(crate) enum Found {
    /// No postmaster of this data directory runs.
    Nobody,
    /// The pid of the file belongs to a living process that is not our postmaster (C12).
    Stranger(u32),
    /// The one that was verified before and lives.
    Known,
    /// Our postmaster, with a pidfd if the kernel has them.
    Ours(u32, Option<OwnedFd>),
}

/// Finds the postmaster of `data_dir`. Reads files: call it where blocking is allowed. `known`: one that was verified before and
/// lives, which is not proved again with every look.
pub(crate) fn find(data_dir: &Path, known: Option<&Postmaster>) -> Found {
    let Some(file) = PidFile::read(data_dir) else { return Found::Nobody };
    if known.is_some_and(|known| known.pid == file.pid && known.is_alive()) {
        return Found::Known;
    }
    // First the handle, then the checks: what was verified cannot become another process afterwards.
    let handle = match open(file.pid) {
        Ok(handle) => handle,
        Err(()) => return Found::Nobody,
    };
    match Proc::of(file.pid) {
        Some(proc) if !proc.dead => {
            let on_time = (proc.started - file.started).abs() <= START_TOLERANCE;
            let same_place = same_directory(&file.data_dir, data_dir);
            // A step of the wall clock moves the computed start time; the working directory does not lie.
            let ours = same_place && is_postmaster_program(file.pid) && (on_time || works_in(file.pid, data_dir));
            if ours { Found::Ours(file.pid, handle) } else { Found::Stranger(file.pid) }
        }
        Some(_) | None => Found::Nobody,
    }
}

/// `Err` when there is no such process; `Ok(None)` when the kernel knows no pidfds.
fn open(pid: u32) -> Result<Option<OwnedFd>, ()> {
    match pidfd_open(raw(pid).ok_or(())?, PidfdFlags::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::SRCH) => Err(()),
        Err(_) => Ok(None),
    }
}

fn raw(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// Processes of a postmaster of `data_dir` that has gone: its children that have not noticed yet.
///
/// The place first, then the name: reading the latter may wait for a process that hangs, and most are none of ours.
fn orphans(data_dir: &Path) -> Vec<u32> {
    processes()
        .filter(|pid| works_in(*pid, data_dir) && is_child_title(&command_line(*pid)) && is_alive(*pid))
        .collect()
}

fn children(parent: u32) -> Vec<u32> {
    processes().filter(|pid| Proc::of(*pid).is_some_and(|proc| proc.parent == parent && !proc.dead)).collect()
}

/// The WAL senders of a postmaster, with their titles, which end with the position that was sent last.
pub(crate) fn wal_senders(postmaster: u32) -> Vec<(u32, String)> {
    let titled = children(postmaster).into_iter().map(|pid| (pid, command_line(pid)));
    titled.filter(|(_, title)| title.contains("walsender")).collect()
}

fn processes() -> impl Iterator<Item = u32> {
    let list = fs::read_dir("/proc").into_iter().flatten().flatten();
    list.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Sends a signal to a process; that it has gone is fine.
pub(crate) fn signal_process(pid: u32, signal: Signal) -> Result<(), PgError> {
    let Some(target) = raw(pid) else { return Ok(()) };
    sent(pid, kill_process(target, signal))
}

fn sent(pid: u32, result: rustix::io::Result<()>) -> Result<(), PgError> {
    match result {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(e) => Err(PgError::Refused(format!("cannot signal process {pid}: {e}; does Regent run as its owner?"))),
    }
}

/// A verified postmaster, or one that we have just started.
#[derive(Debug)]
pub(crate) struct Postmaster {
    pub(crate) pid: u32,
    handle: Option<AsyncFd<OwnedFd>>,
}

impl Postmaster {
    /// Takes what [`find`] found.
    pub(crate) fn new(pid: u32, handle: Option<OwnedFd>) -> Postmaster {
        let handle = handle.and_then(|fd| match watched(fd) {
            Ok(handle) => Some(handle),
            Err(error) => {
                tracing::warn!(%error, pid, "cannot watch the postmaster by pidfd; its state is polled instead");
                None
            }
        });
        Postmaster { pid, handle }
    }

    /// A child that we have just started and not waited for: its pid cannot have been given away.
    pub(crate) fn of_child(pid: u32) -> Postmaster {
        Postmaster::new(pid, open(pid).ok().flatten())
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&self) -> bool {
        match &self.handle {
            Some(handle) => {
                let mut fds = [PollFd::from_borrowed_fd(handle.get_ref().as_fd(), PollFlags::IN)];
                matches!(poll(&mut fds, Some(&Timespec::default())), Ok(0) | Err(_))
            }
            None => is_alive(self.pid),
        }
    }

    /// Returns once it has exited, reaped or not.
    pub(crate) async fn exited(&self) {
        if let Some(handle) = &self.handle
            && handle.readable().await.is_ok()
        {
            return;
        }
        while is_alive(self.pid) {
            tokio::time::sleep(POLL).await;
        }
    }

    /// Whether it exits within `within`.
    pub(crate) async fn exits_within(&self, within: Duration) -> bool {
        tokio::time::timeout(within, self.exited()).await.is_ok()
    }

    /// Sends it a signal; that it has gone is fine.
    pub(crate) fn signal(&self, signal: Signal) -> Result<(), PgError> {
        match &self.handle {
            Some(handle) => sent(self.pid, pidfd_send_signal(handle.get_ref(), signal)),
            None => signal_process(self.pid, signal),
        }
    }

    /// Kills it and its children with SIGKILL and returns when all have gone, or an error that names who has not.
    ///
    /// It is stopped first, so that it makes no new children while they are counted.
    pub(crate) async fn kill(&self, within: Duration) -> Result<(), PgError> {
        self.signal(Signal::STOP)?;
        let children = children(self.pid);
        self.signal(Signal::KILL)?;
        for child in &children {
            signal_process(*child, Signal::KILL)?;
        }
        let gone = async {
            self.exited().await;
            while children.iter().any(|child| is_alive(*child)) {
                tokio::time::sleep(POLL / 10).await;
            }
        };
        match tokio::time::timeout(within, gone).await {
            Ok(()) => Ok(()),
            Err(_) => {
                let left = children.iter().copied().chain([self.pid]).filter(|pid| is_alive(*pid));
                let left: Vec<_> = left.map(|pid| pid.to_string()).collect();
                let what = format!("SIGKILL of PostgreSQL (processes {} wait for the disk?)", left.join(", "));
                Err(PgError::Timeout { what, limit: within })
            }
        }
    }
}

#[expect(unsafe_code, reason = "tokio's registration of a descriptor is unsafe, whatever owns it")]
fn watched(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, and the same, for as long as it lives; the AsyncFd owns it and hands out no `&mut`.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(std::io::Error::from)
}

/// Waits until what a dead postmaster left behind has gone: they hold the shared memory, and the next start would fail on
/// them. They quit by themselves when they next look up; those busy with a query are told, and then killed.
pub(crate) async fn end_orphans(disk: &Disk, data_dir: &Path) -> Result<(), PgError> {
    const STEPS: [(Option<Signal>, Duration); 3] = [
        (None, Duration::from_millis(500)),
        (Some(Signal::QUIT), Duration::from_secs(1)),
        (Some(Signal::KILL), Duration::from_secs(2)),
    ];
    const SCAN: Duration = Duration::from_secs(5);
    let left = || {
        let data_dir = data_dir.to_owned();
        disk.attempt("looking for processes of an earlier server", SCAN, move || Ok(orphans(&data_dir)))
    };
    for (signal, patience) in STEPS {
        if let Some(signal) = signal {
            for pid in left().await? {
                tracing::warn!(pid, ?signal, "a process of an earlier server still runs");
                signal_process(pid, signal)?;
            }
        }
        let until = tokio::time::Instant::now() + patience;
        while !left().await?.is_empty() {
            if tokio::time::Instant::now() >= until {
                break;
            }
            tokio::time::sleep(POLL / 5).await;
        }
    }
    match left().await?.as_slice() {
        [] => Ok(()),
        left => Err(PgError::Refused(format!(
            "processes {left:?} of an earlier server still use {} and do not die; the disk may hang",
            data_dir.display()
        ))),
    }
}

/// The options by which PostgreSQL's tools get the data directory that they change.
const PLACE: [&str; 2] = ["--pgdata", "--target-pgdata"];

/// Kills the `tools` that an earlier agent started on `data_dir` (`--pgdata DATA_DIR`, each in a group of its own), and
/// waits until they have gone. Blocks for a second at most: the lock on the directory tells whether it was enough.
pub(crate) fn kill_tools(tools: &[&str], data_dir: &Path) -> Result<(), PgError> {
    let works_on = |pid: &u32| {
        let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = raw.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let program = words.first().and_then(|word| Path::new(&**word).file_name()?.to_str());
        let named = program.is_some_and(|program| tools.contains(&program));
        named
            && words
                .windows(2)
                .any(|pair| matches!(pair, [a, b] if PLACE.contains(&&**a) && Path::new(&**b) == data_dir))
    };
    let mut found: Vec<u32> = processes().filter(works_on).collect();
    for pid in &found {
        tracing::warn!(pid, data_dir = %data_dir.display(), "ending a program that an earlier agent left at work");
        signal_process(*pid, Signal::KILL)?;
    }
    for _ in 0..100 {
        found.retain(|pid| is_alive(*pid));
        if found.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Makes the command start its program in a session of its own: neither the agent's terminal nor a signal to its process
/// group reaches the server, which must survive the agent.
#[expect(unsafe_code, reason = "the one thing to be done between fork and exec that std does not offer on stable")]
pub(crate) fn in_own_session(command: &mut tokio::process::Command) {
    // SAFETY: setsid(2) is async-signal-safe, allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(|| rustix::process::setsid().map(|_| ()).map_err(std::io::Error::from));
    }
}

/// Makes the program of this command die with the thread that starts it, however that ends: a tool that changes a data
/// directory does not outlive its agent. The thread is the agent's loop.
#[expect(unsafe_code, reason = "the one thing to be done between fork and exec that std does not offer on stable")]
pub(crate) fn dies_with_us(command: &mut tokio::process::Command) {
    // SAFETY: prctl(2) is async-signal-safe, allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(std::io::Error::from)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_is_read() {
        let text = "412\n/pg/a\n1763713294\n5432\n/tmp\nlocalhost\n  1234  5\nready   \n";
        let file = PidFile::parse(text).unwrap();
        assert_eq!((file.pid, file.started, file.ready), (412, 1_763_713_294, true));
        assert!(!PidFile::parse(&text.replace("ready", "starting")).unwrap().ready);
        assert_eq!(PidFile::parse(&text.replace("412", "-412")), None, "single-user mode");
        assert_eq!(PidFile::parse("412\n/pg/a\n"), None, "half-written");
    }

    #[test]
    fn a_living_process_that_is_no_postmaster_is_a_stranger() {
        let dir = tempfile::tempdir().unwrap();
        let me = std::process::id();
        let started = Proc::of(me).unwrap().started;
        let write = |pid: u32| {
            fs::write(dir.path().join("postmaster.pid"), format!("{pid}\n{}\n{started}\n", dir.path().display()))
                .unwrap();
        };
        assert!(matches!(find(dir.path(), None), Found::Nobody));
        write(me);
        assert!(matches!(find(dir.path(), None), Found::Stranger(pid) if pid == me));
        write(u32::from(u16::MAX) * 1000);
        assert!(matches!(find(dir.path(), None), Found::Nobody));
    }

    #[tokio::test]
    async fn the_end_of_a_child_is_seen_although_nobody_reaped_it() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Postmaster::of_child(child.id());
        assert!(process.is_alive());
        assert!(!process.exits_within(Duration::from_millis(10)).await);
        process.kill(Duration::from_secs(10)).await.unwrap();
        assert!(!process.is_alive());
        assert!(!is_alive(child.id()), "a zombie is dead");
        child.wait().unwrap();
    }
}
