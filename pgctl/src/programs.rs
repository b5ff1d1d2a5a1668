//! PostgreSQL's programs as children that can be cancelled: dropping the future that runs one kills it and its own
//! children.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use crate::PgError;
use crate::datadir::{Installed, SUPPORTED};
use crate::disk::file_error;
use crate::settings::Programs;

/// How long what a command printed before it ended may take to arrive.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// The same for one whose whole group has ended: only a slow machine keeps us from all of it.
const LAST_BYTES: Duration = Duration::from_secs(5);
/// A line that is longer counts as several.
const LONGEST_LINE: usize = 64 * 1024;
/// How many of a program's last lines an error shows.
const LAST_LINES: usize = 12;

/// Environment that no child gets: our own and the orchestrator's, which may hold secrets.
const OURS: [&str; 3] = ["PATRONI_", "REGENT_", "KUBERNETES_"];
/// And what would silently win over the connection strings we make (PostgreSQL documentation, "Environment Variables").
const OVERRIDES: [&str; 6] = ["NOTIFY_SOCKET", "PGPASSWORD", "PGHOSTADDR", "PGSERVICE", "PGSERVICEFILE", "PGOPTIONS"];

/// Further variables that no child gets, by name: as much of the whole process as the environment is.
static KEPT_BACK: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// From now on no child gets these variables: the configuration was made of them, and they may hold secrets (config.md 6).
pub fn keep_back(variables: impl IntoIterator<Item = String>) {
    KEPT_BACK.lock().unwrap_or_else(PoisonError::into_inner).extend(variables);
}

impl Programs {
    /// What is usually called `name`, with nothing of ours in its environment and nothing to read.
    pub(crate) fn program(&self, name: &str) -> Command {
        plain(self.path(name))
    }
}

/// Any program, likewise.
pub(crate) fn plain(path: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(path);
    for (name, _) in std::env::vars_os() {
        if is_kept_back(&name.to_string_lossy()) {
            command.env_remove(&name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// A command line of the user's, with all of our environment but our own variables and those that the configuration was made
/// of, which may hold secrets (config.md 6).
pub(crate) fn users(what: &str, line: &str) -> Result<Command, PgError> {
    let words = split(line).ok_or_else(|| PgError::Refused(format!("{what} {line:?} is no command: open quote?")))?;
    let (program, arguments) =
        words.split_first().ok_or_else(|| PgError::Refused(format!("{what} is empty; name a command")))?;
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["PATRONI_", "REGENT_"].iter().any(|prefix| text.starts_with(prefix)) || was_used(&text) {
            command.env_remove(&name);
        }
    }
    command.args(arguments).stdin(Stdio::null());
    Ok(command)
}

fn is_kept_back(variable: &str) -> bool {
    OURS.iter().any(|prefix| variable.starts_with(prefix)) || OVERRIDES.contains(&variable) || was_used(variable)
}

fn was_used(variable: &str) -> bool {
    KEPT_BACK.lock().unwrap_or_else(PoisonError::into_inner).contains(variable)
}

fn name_of(command: &Command) -> String {
    Path::new(command.as_std().get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// What becomes of processes that a program leaves behind when it ends.
#[derive(Clone, Copy)]
enum Behind {
    /// They die: a pg_basebackup that was killed leaves one that writes on, and holds what we read from.
    Dies,
    /// They are the user's.
    Stays,
}

/// Runs a program to its end and returns what it printed on standard output; `on_line` sees each line of its standard
/// error. Takes as long as it takes: the caller bounds it. If the future is dropped, the program dies; with it, as when it
/// ends, its children do.
pub(crate) async fn run(mut command: Command, mut on_line: impl FnMut(&str)) -> Result<String, PgError> {
    let program = name_of(&command);
    let mut child = in_own_group(&mut command).spawn().map_err(|e| not_started(&command, &e))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let mut last = LastLines::default();
    let errors = lines(stderr, |line| {
        on_line(line);
        last.push(line);
    });
    let mut printed = String::new();
    let output = lines(stdout, |line| {
        printed.push_str(line);
        printed.push('\n');
    });
    let status = end_of(
        child,
        async {
            let ((), ()) = tokio::join!(errors, output);
        },
        Behind::Dies,
    )
    .await;
    succeeded(program, status, &last).map(|()| printed)
}

/// As [`run`] for a user's command: `on_line` sees all that it prints, and what it leaves running in the background is neither
/// waited for nor ended.
pub(crate) async fn run_script(mut command: Command, on_line: impl FnMut(&str) + Send) -> Result<(), PgError> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let mut child = in_own_group(&mut command).spawn().map_err(|e| {
        PgError::Refused(format!("cannot run {program}: {e}; it must be there and executable for the agent's user"))
    })?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let printed = Mutex::new((on_line, LastLines::default()));
    let note = |line: &str| {
        let (on_line, last) = &mut *printed.lock().unwrap_or_else(PoisonError::into_inner);
        on_line(line);
        last.push(line);
    };
    let output = async {
        let ((), ()) = tokio::join!(lines(stdout, &note), lines(stderr, &note));
    };
    let status = end_of(child, output, Behind::Stays).await;
    let (_, last) = &*printed.lock().unwrap_or_else(PoisonError::into_inner);
    succeeded(program, status, last)
}

fn in_own_group(command: &mut Command) -> &mut Command {
    command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped())
}

/// Waits until a program has ended and `output`, all that it printed, has been read.
async fn end_of(mut child: Child, output: impl Future<Output = ()>, behind: Behind) -> io::Result<ExitStatus> {
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
    tokio::pin!(output);
    let status = tokio::select! {
        biased;
        () = &mut output => child.wait().await,
        status = child.wait() => {
            let patience = match behind {
                Behind::Dies => {
                    group.kill();
                    LAST_BYTES
                }
                Behind::Stays => LAST_WORDS,
            };
            // Whoever left the group may hold the other end.
            let _ = tokio::time::timeout(patience, &mut output).await;
            status
        }
    };
    match behind {
        Behind::Dies => group.kill(),
        Behind::Stays => group.0 = None,
    }
    status
}

fn succeeded(program: String, status: io::Result<ExitStatus>, last: &LastLines) -> Result<(), PgError> {
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(PgError::Program { program, status: status.to_string(), output: last.joined() }),
        Err(e) => Err(PgError::Program { program, status: e.to_string(), output: String::new() }),
    }
}

/// A program's last lines.
#[derive(Default)]
struct LastLines(VecDeque<String>);

impl LastLines {
    fn push(&mut self, line: &str) {
        if self.0.len() == LAST_LINES {
            self.0.pop_front();
        }
        self.0.push_back(line.to_owned());
    }

    fn joined(&self) -> String {
        Vec::from(self.0.clone()).join("; ")
    }
}

/// As [`run`] for programs that answer at once.
pub(crate) async fn ask(command: Command, limit: Duration) -> Result<String, PgError> {
    let what = name_of(&command);
    match tokio::time::timeout(limit, run(command, |_| ())).await {
        Ok(answer) => answer,
        Err(_) => Err(PgError::Timeout { what, limit }),
    }
}

pub(crate) fn not_started(command: &Command, cause: &std::io::Error) -> PgError {
    let path = Path::new(command.as_std().get_program()).display();
    PgError::Refused(format!("cannot run {path}: {cause}; set postgresql.bin_dir to where PostgreSQL's programs are"))
}

/// Kills a process group when dropped while it may still run.
struct Group(Option<Pid>);

impl Group {
    fn kill(&mut self) {
        if let Some(leader) = self.0.take() {
            // All may have ended: then there is nobody to signal, and nothing to be done.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Hands over lines as they end, in `\n` or `\r`: progress is redrawn by the latter.
async fn lines(from: Option<impl AsyncRead + Unpin>, mut each: impl FnMut(&str)) {
    let Some(mut from) = from else { return };
    let mut pending = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(read) => read,
        };
        for byte in buffer.iter().take(read) {
            match byte {
                b'\n' | b'\r' => hand_over(&mut pending, &mut each),
                byte => {
                    pending.push(*byte);
                    if pending.len() >= LONGEST_LINE {
                        hand_over(&mut pending, &mut each);
                    }
                }
            }
        }
    }
    hand_over(&mut pending, &mut each);
}

fn hand_over(pending: &mut Vec<u8>, each: &mut impl FnMut(&str)) {
    if !pending.is_empty() {
        each(&String::from_utf8_lossy(pending));
        pending.clear();
    }
}

/// The major version of the installed programs.
pub(crate) async fn installed(programs: &Programs, limit: Duration) -> Installed {
    let mut command = programs.program("postgres");
    command.arg("--version").env("LC_ALL", "C");
    let printed = ask(command, limit).await.map_err(|e| e.to_string())?;
    let major = major(&printed).ok_or_else(|| format!("`postgres --version` printed {:?}", printed.trim()))?;
    let (from, to) = (SUPPORTED.start(), SUPPORTED.end());
    if SUPPORTED.contains(&major) {
        return Ok(major);
    }
    Err(format!(
        "the programs are of PostgreSQL {major}; Regent supports {from} to {to}, set postgresql.bin_dir to one of them"
    ))
}

/// The `15` of `postgres (PostgreSQL) 15.20 (Debian ...)`, `16beta1`, `9.6.24` (there: 9).
fn major(printed: &str) -> Option<u32> {
    let version = printed.split_once("(PostgreSQL) ")?.1;
    let digits = version.find(|c: char| !c.is_ascii_digit()).map_or(version, |end| &version[..end]);
    digits.parse().ok()
}

/// `pg_basebackup --progress`: `22896/30000 kB (76%), 0/1 tablespace (...)`, in bytes; the whole may be missing.
pub(crate) fn progress(line: &str) -> Option<(u64, Option<u64>)> {
    let amounts = line.trim_start().split_once(" kB")?.0;
    let bytes = |text: &str| text.trim().parse::<u64>().ok()?.checked_mul(1024);
    match amounts.split_once('/') {
        Some((done, whole)) => Some((bytes(done)?, bytes(whole))),
        None => Some((bytes(amounts)?, None)),
    }
}

/// A file that only we can read, for a password; removed when dropped.
pub(crate) struct Secret {
    path: PathBuf,
}

impl Secret {
    pub(crate) fn new(content: &str) -> Result<Secret, PgError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("regent-{}-{number}.secret", std::process::id()));
        let write = |mut file: File| file.write_all(content.as_bytes());
        let secret = Secret { path };
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&secret.path);
        file.and_then(write).map_err(|e| file_error(&secret.path, &e))?;
        Ok(secret)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove a password file; remove it by hand");
        }
    }
}

/// Splits a command as a shell would, without running one: words, quotes, backslashes. `None` for an open quote.
pub(crate) fn split(command: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = command.chars();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => words.extend(word.take()),
            '\\' => word.get_or_insert_default().push(chars.next()?),
            '\'' => loop {
                let word = word.get_or_insert_default();
                match chars.next()? {
                    '\'' => break,
                    c => word.push(c),
                }
            },
            '"' => loop {
                let word = word.get_or_insert_default();
                match chars.next()? {
                    '"' => break,
                    '\\' => match chars.next()? {
                        c @ ('"' | '\\') => word.push(c),
                        c => word.extend(['\\', c]),
                    },
                    c => word.push(c),
                }
            },
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = plain("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn children_get_no_variable_of_ours() {
        for kept_back in ["PATRONI_SUPERUSER_PASSWORD", "REGENT_NAME", "KUBERNETES_PORT", "NOTIFY_SOCKET", "PGPASSWORD"]
        {
            assert!(is_kept_back(kept_back), "{kept_back}");
        }
        for passed_on in ["PATH", "LANG", "PGTZ", "MALLOC_ARENA_MAX", "XPATRONI_"] {
            assert!(!is_kept_back(passed_on), "{passed_on}");
        }
    }

    #[test]
    fn versions_are_read() {
        for (text, version) in [
            ("postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)\n", Some(15)),
            ("postgres (PostgreSQL) 18beta1\n", Some(18)),
            ("postgres (PostgreSQL) 9.6.24\n", Some(9)),
            ("postgres (EnterpriseDB) x\n", None),
        ] {
            assert_eq!(major(text), version, "{text}");
        }
    }

    #[test]
    fn progress_is_read() {
        assert_eq!(progress("22896/30000 kB (76%), 0/1 tablespace (/x)"), Some((22896 * 1024, Some(30000 * 1024))));
        assert_eq!(progress("  512 kB (100%), 1/1 tablespace"), Some((512 * 1024, None)));
        assert_eq!(progress("waiting for checkpoint"), None);
    }

    #[test]
    fn commands_are_split_as_a_shell_does() {
        let words = |text| split(text).unwrap();
        assert_eq!(words(" /a/b.sh  -x 'two words' "), ["/a/b.sh", "-x", "two words"]);
        assert_eq!(words(r#"a"b \"c\" \d"'e\f' g\ h"#), [r#"ab "c" \de\f"#, "g h"]);
        assert_eq!(words("a '' \"\""), ["a", "", ""]);
        assert_eq!(split("a 'b"), None);
    }

    #[tokio::test]
    async fn a_failure_shows_status_and_last_lines() {
        let mut seen = Vec::new();
        let error = run(shell("echo one >&2; printf 'a\\rb\\n' >&2; exit 3"), |line| seen.push(line.to_owned())).await;
        let output = "one; a; b".to_owned();
        let expected = PgError::Program { program: "sh".to_owned(), status: "exit status: 3".to_owned(), output };
        assert_eq!(error, Err(expected));
        assert_eq!(seen, ["one", "a", "b"]);
        let missing = run(plain("/nowhere/initdb"), |_| ()).await;
        assert!(matches!(missing, Err(PgError::Refused(text)) if text.contains("bin_dir")));
    }

    #[tokio::test]
    async fn a_dropped_program_dies_with_its_children() {
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let script = shell("sleep 1000 & echo $! >&2; wait");
        let job = run(script, move |line| tell.send(line.parse::<u32>().unwrap()).unwrap());
        let grandchild = tokio::select! {
            _ = job => panic!("ended by itself"),
            pid = told.recv() => pid.unwrap(),
        };
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while crate::postmaster::is_alive(grandchild) {
            assert!(std::time::Instant::now() < deadline, "{grandchild} lives on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A pg_basebackup that is killed leaves its second process at work, which has our pipe as well.
    #[tokio::test]
    async fn what_a_killed_program_leaves_at_work_dies_with_it() {
        let mut pid = None;
        let job = run(shell("sleep 1000 & echo $! >&2; kill -9 $$"), |line| pid = line.parse::<u32>().ok());
        let ended = tokio::time::timeout(Duration::from_secs(60), job).await.expect("it waits for what was left");
        assert!(matches!(ended, Err(PgError::Program { status, .. }) if status.contains("signal: 9")));
        let left = pid.expect("it said whom it leaves");
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while crate::postmaster::is_alive(left) {
            assert!(std::time::Instant::now() < deadline, "{left} lives on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[test]
    fn a_secret_is_ours_alone_and_does_not_stay() {
        use std::os::unix::fs::MetadataExt;
        let secret = Secret::new("12345").unwrap();
        let path = secret.path().to_owned();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        drop(secret);
        assert!(!path.exists());
    }
}
