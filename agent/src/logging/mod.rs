//! The log: one line an event, in the peer's form, to stderr or to a rotated file (config.md 3.2).
//!
//! An event is only put into a queue here; a thread of its own formats and writes. A pipe that nobody reads, or a disk
//! that hangs, costs lines (their number is reported when it goes on), never the agent's time.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::config::LogConfig;

mod line;

use line::Record;

/// Lines that may wait for a slow writer.
const QUEUE: usize = 4096;
/// Name of the file in `log.dir`; the peer's, because log shippers look for it.
const FILE_NAME: &str = "patroni.log";

/// Why the log cannot be set up as asked.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file cannot be opened.
    #[error("cannot write {path}: {cause}; log.dir must be an existing directory that the agent's user may write to")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// The thread could not be started.
    #[error("cannot start the log thread: {0}")]
    Thread(std::io::Error),
    /// Lines wait for a writer that does not come on.
    #[error("the log cannot take its new configuration: what it writes to does not take what is there already")]
    Stuck,
    /// Somebody else set up a log in this process.
    #[error("the log was set up before")]
    Twice,
}

/// The running log.
#[derive(Clone)]
pub struct Log {
    queue: SyncSender<Message>,
    shared: Arc<Shared>,
}

struct Shared {
    levels: RwLock<Levels>,
    lost: AtomicU64,
}

/// From which level on whose events are logged.
struct Levels {
    all: LevelFilter,
    /// By the beginning of a target; the longest one that fits counts.
    of: Vec<(String, LevelFilter)>,
}

/// The peer's modules and ours that do their work.
const MODULES: &[(&str, &str)] = &[
    ("patroni", "regent"),
    ("patroni.__main__", "regent"),
    ("patroni.api", "regent::api"),
    ("patroni.config", "regent::config"),
    ("patroni.ctl", "regent::ctl"),
    ("patroni.dcs", "regent_dcs"),
    ("patroni.dcs.etcd3", "regent_dcs"),
    ("patroni.ha", "regent::report"),
    ("patroni.postgresql", "regent_pgctl"),
    ("patroni.postgresql.postmaster", "regent_pgctl::postmaster"),
    ("patroni.postgresql.rewind", "regent_pgctl::rewind"),
    ("patroni.postgresql.slots", "regent_pgctl::query"),
    ("patroni.watchdog", "regent::watchdog"),
    ("urllib3", "hyper"),
];

impl Levels {
    fn new(config: &LogConfig) -> Levels {
        let target = |name: &str| {
            let known = MODULES.iter().find(|(peers, _)| *peers == name).map(|(_, ours)| (*ours).to_owned());
            known.unwrap_or_else(|| name.replace('.', "::"))
        };
        Levels { all: config.level, of: config.loggers.iter().map(|(name, level)| (target(name), *level)).collect() }
    }

    fn of(&self, target: &str) -> LevelFilter {
        // `regent` is all our crates: regent_core, regent_dcs, regent_pgctl.
        let fits = |name: &str| {
            target
                .strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with("::") || rest.starts_with('_'))
        };
        let named = self.of.iter().filter(|(name, _)| fits(name)).max_by_key(|(name, _)| name.len());
        if let Some((_, level)) = named {
            return *level;
        }
        // What libraries say in passing is not what an operator asked for: one level less of it, and no small talk.
        if target.starts_with("regent") || self.all == LevelFilter::TRACE {
            self.all
        } else if self.all == LevelFilter::DEBUG {
            LevelFilter::INFO
        } else {
            self.all.min(LevelFilter::WARN)
        }
    }

    fn most(&self) -> LevelFilter {
        self.of.iter().map(|(_, level)| *level).fold(self.all, LevelFilter::max)
    }
}

impl Shared {
    fn levels(&self) -> RwLockReadGuard<'_, Levels> {
        self.levels.read().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Message {
    Record(Record),
    Use(Output),
    Flush(SyncSender<()>),
}

/// How lines look and where they go.
struct Output {
    config: LogConfig,
    file: Option<Rotated>,
    /// The last line of the loop.
    heartbeat: Option<String>,
}

impl Log {
    /// Starts the log of this process.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn start(config: &LogConfig) -> Result<Log, LogError> {
        let (log, layer) = Log::new(config)?;
        tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer))
            .map_err(|_| LogError::Twice)?;
        Ok(log)
    }

    fn new(config: &LogConfig) -> Result<(Log, QueueLayer), LogError> {
        let (queue, messages) = sync_channel(QUEUE);
        let shared = Arc::new(Shared { levels: RwLock::new(Levels::new(config)), lost: AtomicU64::new(0) });
        let output = Output::open(config)?;
        let counts = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_all(&messages, output, &counts))
            .map_err(LogError::Thread)?;
        let log = Log { queue: queue.clone(), shared: Arc::clone(&shared) };
        Ok((log, QueueLayer { queue, shared }))
    }

    /// Takes a new configuration.
    ///
    /// # Errors
    /// [`LogError::File`], and everything stays as it was; [`LogError::Stuck`], and only the level has changed.
    pub fn configure(&self, config: &LogConfig) -> Result<(), LogError> {
        let output = Output::open(config)?;
        *self.shared.levels.write().unwrap_or_else(PoisonError::into_inner) = Levels::new(config);
        tracing::callsite::rebuild_interest_cache();
        self.queue.try_send(Message::Use(output)).map_err(|_| LogError::Stuck)?;
        Ok(())
    }

    /// Waits until everything logged so far is written, no longer than `within`. Before the process ends.
    pub fn flush(&self, within: Duration) {
        let (done, wait) = sync_channel(1);
        if self.queue.try_send(Message::Flush(done)).is_ok() {
            // Either it is written, or the time is up, or the writer is gone: nothing more to do in any case.
            let _ = wait.recv_timeout(within);
        }
    }
}

/// Puts events into the queue.
struct QueueLayer {
    queue: SyncSender<Message>,
    shared: Arc<Shared>,
}

impl<S: Subscriber> Layer<S> for QueueLayer {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        *metadata.level() <= self.shared.levels().of(metadata.target())
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.shared.levels().most())
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        match self.queue.try_send(Message::Record(Record::of(event))) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(_)) => {
                self.shared.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn write_all(messages: &Receiver<Message>, mut output: Output, shared: &Shared) {
    while let Ok(message) = messages.recv() {
        match message {
            Message::Record(record) => {
                let lost = shared.lost.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    let note = format!("{lost} log lines were lost: the log could not be written fast enough");
                    output.write(&Record::new(Level::WARN, module_path!(), note));
                }
                output.write(&record);
            }
            Message::Use(new) => output = new,
            Message::Flush(done) => {
                // Nobody waits any more when the time was up.
                let _ = done.try_send(());
            }
        }
    }
}

impl Output {
    fn open(config: &LogConfig) -> Result<Output, LogError> {
        let file = config.dir.as_deref().map(|dir| Rotated::open(dir, config)).transpose()?;
        Ok(Output { config: config.clone(), file, heartbeat: None })
    }

    /// A file that cannot be written to any more gives way to stderr.
    fn write(&mut self, record: &Record) {
        if self.config.deduplicate
            && let Some(heartbeat) = record.heartbeat()
            && self.heartbeat.replace(heartbeat.clone()).is_some_and(|last| last == heartbeat)
        {
            return;
        }
        let line = record.line(&self.config);
        if let Some(file) = &mut self.file {
            match file.write(&line) {
                Ok(()) => return,
                Err(cause) => {
                    let path = file.path.display();
                    let note = format!("{path} cannot be written ({cause}): the log goes to stderr from here on\n");
                    self.file = None;
                    let _ = std::io::stderr().write_all(note.as_bytes());
                }
            }
        }
        // There is nobody left to tell that stderr is closed.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

/// A file with numbered predecessors: `patroni.log`, `patroni.log.1` (the newest of the old), ...
struct Rotated {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
    keep: u64,
    mode: Option<u32>,
}

impl Rotated {
    fn open(dir: &Path, config: &LogConfig) -> Result<Rotated, LogError> {
        let path = dir.join(FILE_NAME);
        let open = || -> std::io::Result<(File, u64)> {
            let file = append(&path, config.mode)?;
            let size = file.metadata()?.len();
            Ok((file, size))
        };
        match open() {
            Ok((file, size)) => {
                Ok(Rotated { file, size, limit: config.file_size, keep: config.file_num, mode: config.mode, path })
            }
            Err(cause) => Err(LogError::File { path, cause }),
        }
    }

    /// As Python's handler: rotates before a line that would pass the limit; never if either number is 0.
    fn write(&mut self, line: &str) -> std::io::Result<()> {
        let length = u64::try_from(line.len()).unwrap_or(u64::MAX);
        let full = self.size.saturating_add(length) > self.limit;
        if full && self.size > 0 && self.limit > 0 && self.keep > 0 {
            self.rotate()?;
        }
        self.file.write_all(line.as_bytes())?;
        self.size = self.size.saturating_add(length);
        Ok(())
    }

    fn rotate(&mut self) -> std::io::Result<()> {
        let numbered = |number: u64| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        for number in (1..self.keep).rev() {
            let from = numbered(number);
            if from.exists() {
                std::fs::rename(from, numbered(number.saturating_add(1)))?;
            }
        }
        std::fs::rename(&self.path, numbered(1))?;
        self.file = append(&self.path, self.mode)?;
        self.size = 0;
        Ok(())
    }
}

fn append(path: &Path, mode: Option<u32>) -> std::io::Result<File> {
    let file = File::options().append(true).create(true).mode(mode.unwrap_or(0o666)).open(path)?;
    if let Some(mode) = mode {
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

    use super::*;
    use crate::config::LogType;

    const LONG: Duration = Duration::from_secs(30);

    fn to_dir(dir: &Path) -> LogConfig {
        LogConfig { dir: Some(dir.to_owned()), ..LogConfig::default() }
    }

    fn log_in(config: &LogConfig, events: impl FnOnce(&Log)) {
        let (log, layer) = Log::new(config).unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || events(&log));
        log.flush(LONG);
    }

    fn read(dir: &Path, name: &str) -> String {
        std::fs::read_to_string(dir.join(name)).unwrap()
    }

    #[test]
    fn a_plain_line_is_the_peers_with_fields_behind() {
        let dir = tempfile::tempdir().unwrap();
        log_in(&to_dir(dir.path()), |_| {
            tracing::info!(target: "regent::x", rule = "hold", lag = 5, why = "two words", empty = "", "no action. I am (s1)");
            tracing::warn!(target: "regent::x", shown = %"a=b", "careful");
            tracing::debug!(target: "regent::x", "unseen");
            tracing::info!(target: "h2::codec", "unseen");
            tracing::error!(target: "h2::codec", "seen");
        });
        let text = read(dir.path(), "patroni.log");
        let lines: Vec<&str> = text.lines().collect();
        let (time, rest) = lines[0].split_at(23);
        assert_eq!(rest, r#" INFO: no action. I am (s1) rule=hold lag=5 why="two words" empty="""#);
        let pattern: String = time.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
        assert_eq!(pattern, "9999-99-99 99:99:99,999");
        assert!(lines[1].ends_with(r#" WARNING: careful shown="a=b""#), "{text}");
        assert!(lines[2].ends_with(" ERROR: seen"), "{text}");
        assert_eq!(lines.len(), 3, "{text}");
    }

    #[test]
    fn a_json_line_has_the_peers_keys_then_static_fields_then_ours() {
        let dir = tempfile::tempdir().unwrap();
        let static_fields = Map::from_iter([("app".to_owned(), Value::from("pg"))]);
        let config = LogConfig { kind: LogType::Json, static_fields, ..to_dir(dir.path()) };
        log_in(&config, |_| tracing::info!(target: "regent", lag = 5, "two\nlines"));
        let text = read(dir.path(), "patroni.log");
        let object: Map<String, Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(object.keys().collect::<Vec<_>>(), ["asctime", "levelname", "message", "app", "lag"]);
        assert_eq!(object.get("message"), Some(&Value::from("two\nlines")));
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn lines_are_as_format_and_dateformat_say() {
        let said = |yaml: &str| {
            let dir = tempfile::tempdir().unwrap();
            let tree = format!("{yaml}, dir: '{}'", dir.path().display());
            let config = crate::config::log_config(&format!("log: {{{tree}}}"));
            log_in(&config, |_| tracing::warn!(target: "regent::ha", lag = 5, "behind"));
            read(dir.path(), "patroni.log").trim_end().to_owned()
        };
        assert_eq!(
            said("format: '%(levelname)-8s|%(name)12s|%(filename)s %(message)s 100%%'"),
            "WARNING |   regent.ha|mod.rs behind lag=5 100%"
        );
        let year = jiff::Zoned::now().year().to_string();
        assert_eq!(said("format: '%(asctime)s %(message)s', dateformat: '<%Y>'"), format!("<{year}> behind lag=5"));
        let object: Value =
            serde_json::from_str(&said("type: json, format: [message, levelname: severity, process]")).unwrap();
        assert_eq!(
            object,
            serde_json::json!({"message": "behind", "severity": "WARNING", "process": std::process::id(), "lag": 5})
        );
    }

    #[test]
    fn loggers_have_levels_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let loggers =
            [("patroni.ha", LevelFilter::DEBUG), ("patroni", LevelFilter::ERROR), ("h2.codec", LevelFilter::TRACE)];
        let loggers = loggers.map(|(name, level)| (name.to_owned(), level)).to_vec();
        log_in(&LogConfig { loggers, ..to_dir(dir.path()) }, |_| {
            tracing::debug!(target: "regent::report", "seen 1");
            tracing::warn!(target: "regent_dcs::etcd", "unseen");
            tracing::error!(target: "regent::api", "seen 2");
            tracing::trace!(target: "h2::codec::x", "seen 3");
            tracing::info!(target: "h2::codecs", "unseen");
        });
        let text = read(dir.path(), "patroni.log");
        let said: Vec<_> = text.lines().filter_map(|line| line.split(": ").nth(1)).collect();
        assert_eq!(said, ["seen 1", "seen 2", "seen 3"]);
    }

    #[test]
    fn heartbeats_that_repeat_are_dropped_when_asked_for() {
        for (deduplicate, lines) in [(false, 5), (true, 4)] {
            let dir = tempfile::tempdir().unwrap();
            log_in(&LogConfig { deduplicate, ..to_dir(dir.path()) }, |_| {
                for lag in [5, 5, 6] {
                    tracing::info!(target: "regent::report", rule = "lead", lag, "we lead");
                }
                for _ in 0..2 {
                    tracing::info!(target: "regent", "no heartbeat");
                }
            });
            assert_eq!(read(dir.path(), "patroni.log").lines().count(), lines);
        }
    }

    #[test]
    fn files_are_rotated_and_only_so_many_kept() {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig { file_size: 100, file_num: 2, ..to_dir(dir.path()) };
        log_in(&config, |_| {
            for number in 0..6 {
                tracing::info!(target: "regent", number, "a line of more than fifty characters, all told");
            }
        });
        let last = |name| read(dir.path(), name).trim_end().chars().last();
        assert_eq!(
            (last("patroni.log"), last("patroni.log.1"), last("patroni.log.2")),
            (Some('5'), Some('4'), Some('3'))
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn level_and_directory_can_be_changed_while_it_runs() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        log_in(&to_dir(first.path()), |log| {
            let say = |text: &str| tracing::debug!(target: "regent", "{text}");
            say("one");
            log.configure(&LogConfig { level: LevelFilter::DEBUG, ..to_dir(second.path()) }).unwrap();
            say("two");
            let missing = log.configure(&to_dir(Path::new("/nonexistent"))).unwrap_err();
            assert!(missing.to_string().contains("/nonexistent/patroni.log"), "{missing}");
            say("three");
        });
        assert_eq!(read(first.path(), "patroni.log"), "");
        let text = read(second.path(), "patroni.log");
        let said: Vec<_> = text.lines().filter_map(|line| line.split(": ").nth(1)).collect();
        assert_eq!(said, ["two", "three"]);
    }

    #[test]
    fn a_writer_that_hangs_costs_lines_and_no_time() {
        // A queue whose reader never comes.
        let (queue, messages) = sync_channel(2);
        let shared =
            Arc::new(Shared { levels: RwLock::new(Levels::new(&LogConfig::default())), lost: AtomicU64::new(0) });
        let layer = QueueLayer { queue, shared: Arc::clone(&shared) };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            for _ in 0..5 {
                tracing::info!(target: "regent", "x");
            }
        });
        assert_eq!(shared.lost.load(Ordering::Relaxed), 3);
        let dir = tempfile::tempdir().unwrap();
        write_all(&messages, Output::open(&to_dir(dir.path())).unwrap(), &shared);
        let text = read(dir.path(), "patroni.log");
        assert!(text.lines().next().is_some_and(|line| line.contains("WARNING: 3 log lines were lost")), "{text}");
        assert_eq!(text.lines().count(), 3);
    }
}
