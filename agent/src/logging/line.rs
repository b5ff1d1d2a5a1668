//! One event as a line, in Python's terms: the peer's users have parsers for them.

use jiff::Zoned;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level};

use crate::config::{Attribute, LogConfig, LogType, Piece};

/// One event.
pub(super) struct Record {
    time: Zoned,
    level: Level,
    target: &'static str,
    file: &'static str,
    line: u32,
    thread: (i64, String),
    message: String,
    fields: Vec<(&'static str, Value)>,
}

impl Record {
    /// What an event says, here and now.
    pub(super) fn of(event: &Event<'_>) -> Record {
        let metadata = event.metadata();
        let mut record = Record {
            file: metadata.file().unwrap_or(""),
            line: metadata.line().unwrap_or(0),
            ..Record::new(*metadata.level(), metadata.target(), String::new())
        };
        event.record(&mut record);
        record
    }

    /// A line of the log itself.
    pub(super) fn new(level: Level, target: &'static str, message: String) -> Record {
        let thread = std::thread::current();
        let id = i64::from(rustix::thread::gettid().as_raw_nonzero().get());
        Record {
            time: Zoned::now(),
            level,
            target,
            file: "",
            line: 0,
            thread: (id, thread.name().unwrap_or("").to_owned()),
            message,
            fields: Vec::new(),
        }
    }

    /// The line of a turn of the loop (its decision), if it is one: without its time.
    pub(super) fn heartbeat(&self) -> Option<String> {
        self.fields.iter().any(|(name, _)| *name == "rule").then(|| self.text())
    }

    /// As `config` wants it, with its end.
    pub(super) fn line(&self, config: &LogConfig) -> String {
        let mut line = match config.kind {
            LogType::Plain => self.plain(config),
            LogType::Json => self.json(config),
        };
        line.push('\n');
        line
    }

    fn plain(&self, config: &LogConfig) -> String {
        let mut line = String::new();
        for piece in &config.format {
            match piece {
                Piece::Text(text) => line.push_str(text),
                Piece::Field { attribute: Attribute::Message, .. } => line.push_str(&self.text()),
                Piece::Field { attribute, width, left, .. } => {
                    let value = self.attribute(*attribute, config);
                    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    line.push_str(&if *left { format!("{text:<width$}") } else { format!("{text:>width$}") });
                }
            }
        }
        line
    }

    fn json(&self, config: &LogConfig) -> String {
        let mut object = Map::new();
        for piece in &config.format {
            match piece {
                Piece::Text(_) => {}
                Piece::Field { attribute, key, .. } => {
                    object.insert(key.clone(), self.attribute(*attribute, config));
                }
            }
        }
        object.extend(config.static_fields.clone());
        object.extend(self.fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        Value::Object(object).to_string()
    }

    /// The message, and the fields behind it.
    fn text(&self) -> String {
        let mut text = self.message.clone();
        for (name, value) in &self.fields {
            let bare = value.as_str().filter(|text| is_plain(text)).map(str::to_owned);
            text.push_str(&format!(" {name}={}", bare.unwrap_or_else(|| value.to_string())));
        }
        text
    }

    fn attribute(&self, attribute: Attribute, config: &LogConfig) -> Value {
        let base = || self.file.rsplit('/').next().unwrap_or("");
        match attribute {
            Attribute::Asctime => match &config.date_format {
                // It was tried when the configuration was read.
                Some(format) => jiff::fmt::strtime::format(format, &self.time).unwrap_or_default().into(),
                None => self.time.strftime("%Y-%m-%d %H:%M:%S,%3f").to_string().into(),
            },
            Attribute::Created => self.time.timestamp().as_duration().as_secs_f64().into(),
            Attribute::Filename => base().into(),
            Attribute::FuncName => "".into(),
            Attribute::Levelname => level_name(self.level).into(),
            Attribute::Levelno => level_number(self.level).into(),
            Attribute::Lineno => self.line.into(),
            Attribute::Message => self.message.clone().into(),
            Attribute::Module => base().trim_end_matches(".rs").into(),
            Attribute::Msecs => self.time.millisecond().into(),
            Attribute::Name => self.target.replace("::", ".").into(),
            Attribute::Pathname => self.file.into(),
            Attribute::Process => std::process::id().into(),
            Attribute::ProcessName => "MainProcess".into(),
            Attribute::RelativeCreated => started().elapsed().as_millis().try_into().unwrap_or(u64::MAX).into(),
            Attribute::Thread => self.thread.0.into(),
            Attribute::ThreadName => self.thread.1.clone().into(),
        }
    }
}

/// When the first line was written that asks for it.
fn started() -> std::time::Instant {
    static STARTED: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    *STARTED.get_or_init(std::time::Instant::now)
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

/// Python's numbers.
fn level_number(level: Level) -> u8 {
    if level == Level::ERROR {
        40
    } else if level == Level::WARN {
        30
    } else if level == Level::INFO {
        20
    } else {
        10
    }
}

/// Whether a value can stand behind `key=` without quotes.
fn is_plain(text: &str) -> bool {
    !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"' || c == '=')
}
