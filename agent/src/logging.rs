//! The log: one line an event, in the peer's form, to stderr or to a rotated file (config.md 3.2).
//!
//! An event is only put into a queue here; a thread of its own formats and writes. A pipe that nobody reads, or a disk
//! that hangs, costs lines (their number is reported when it goes on), never the agent's time.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use jiff::Zoned;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::config::{LogConfig, LogType};

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
    /// Index into [`LEVELS`].
    level: AtomicUsize,
    lost: AtomicU64,
}

const LEVELS: [LevelFilter; 6] = [
    LevelFilter::OFF,
    LevelFilter::ERROR,
    LevelFilter::WARN,
    LevelFilter::INFO,
    LevelFilter::DEBUG,
    LevelFilter::TRACE,
];

enum Message {
    Record(Record),
    Use(Output),
    Flush(SyncSender<()>),
}

/// One event.
struct Record {
    time: Zoned,
    level: Level,
    message: String,
    fields: Vec<(&'static str, Value)>,
}

/// How lines look and where they go.
struct Output {
    kind: LogType,
    static_fields: Map<String, Value>,
    file: Option<Rotated>,
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
        let shared = Arc::new(Shared { level: AtomicUsize::new(0), lost: AtomicU64::new(0) });
        let output = Output::open(config)?;
        let counts = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_all(&messages, output, &counts))
            .map_err(LogError::Thread)?;
        let log = Log { queue: queue.clone(), shared: Arc::clone(&shared) };
        log.set_level(config.level);
        Ok((log, QueueLayer { queue, shared }))
    }

    /// Takes a new configuration.
    ///
    /// # Errors
    /// [`LogError::File`], and everything stays as it was; [`LogError::Stuck`], and only the level has changed.
    pub fn configure(&self, config: &LogConfig) -> Result<(), LogError> {
        let output = Output::open(config)?;
        self.set_level(config.level);
        self.queue.try_send(Message::Use(output)).map_err(|_| LogError::Stuck)?;
        Ok(())
    }

    fn set_level(&self, level: LevelFilter) {
        let index = LEVELS.iter().position(|known| *known == level).unwrap_or(3);
        self.shared.level.store(index, Ordering::Relaxed);
        tracing::callsite::rebuild_interest_cache();
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

impl QueueLayer {
    fn level(&self) -> LevelFilter {
        LEVELS.get(self.shared.level.load(Ordering::Relaxed)).copied().unwrap_or(LevelFilter::INFO)
    }
}

impl<S: Subscriber> Layer<S> for QueueLayer {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        // What libraries say in passing is not what an operator asked for: one level less of it, and no small talk.
        let level = self.level();
        let own = metadata.target().starts_with("regent");
        let limit = if own || level == LevelFilter::TRACE {
            level
        } else if level == LevelFilter::DEBUG {
            LevelFilter::INFO
        } else {
            level.min(LevelFilter::WARN)
        };
        *metadata.level() <= limit
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level())
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut record =
            Record { time: Zoned::now(), level: *event.metadata().level(), message: String::new(), fields: Vec::new() };
        event.record(&mut record);
        match self.queue.try_send(Message::Record(record)) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(_)) => {
                self.shared.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Visit for Record {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            self.fields.push((field.name(), Value::String(format!("{value:?}"))));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.fields.push((field.name(), Value::String(value.to_owned())));
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.fields.push((field.name(), value.into()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.fields.push((field.name(), value.into()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.fields.push((field.name(), value.into()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.fields.push((field.name(), value.into()));
    }
}

impl Record {
    fn line(&self, output: &Output) -> String {
        let time = self.time.strftime("%Y-%m-%d %H:%M:%S,%3f").to_string();
        let mut line = match output.kind {
            LogType::Plain => {
                let mut line = format!("{time} {}: {}", level_name(self.level), self.message);
                for (name, value) in &self.fields {
                    let bare = value.as_str().filter(|text| is_plain(text)).map(str::to_owned);
                    line.push_str(&format!(" {name}={}", bare.unwrap_or_else(|| value.to_string())));
                }
                line
            }
            LogType::Json => {
                let mut object = Map::new();
                object.insert("asctime".to_owned(), time.into());
                object.insert("levelname".to_owned(), level_name(self.level).into());
                object.insert("message".to_owned(), self.message.clone().into());
                object.extend(output.static_fields.clone());
                object.extend(self.fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
                Value::Object(object).to_string()
            }
        };
        line.push('\n');
        line
    }
}

/// Python's names.
fn level_name(level: Level) -> &'static str {
    if level == Level::ERROR {
        "ERROR"
    } else if level == Level::WARN {
        "WARNING"
    } else if level == Level::INFO {
        "INFO"
    } else {
        "DEBUG"
    }
}

/// Whether a value can stand behind `key=` without quotes.
fn is_plain(text: &str) -> bool {
    !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"' || c == '=')
}

fn write_all(messages: &Receiver<Message>, mut output: Output, shared: &Shared) {
    while let Ok(message) = messages.recv() {
        match message {
            Message::Record(record) => {
                let lost = shared.lost.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    let note = Record {
                        time: record.time.clone(),
                        level: Level::WARN,
                        message: format!("{lost} log lines were lost: the log could not be written fast enough"),
                        fields: Vec::new(),
                    };
                    output.write(&note);
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
        Ok(Output { kind: config.kind, static_fields: config.static_fields.clone(), file })
    }

    /// A file that cannot be written to any more gives way to stderr.
    fn write(&mut self, record: &Record) {
        let line = record.line(self);
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
    use super::*;

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
        let shared = Arc::new(Shared { level: AtomicUsize::new(3), lost: AtomicU64::new(0) });
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
