//! `log` (config.md 3.2): how lines look, where they go, and from which level on.

use std::path::PathBuf;

use serde_json::Map;
use tracing::level_filters::LevelFilter;

use super::node::{Node, Value};
use super::section::{Report, Section};
use super::values;

/// `log`.
#[derive(Clone, Debug, PartialEq)]
pub struct LogConfig {
    /// `log.type`.
    pub kind: LogType,
    /// `log.level`; the peer's CRITICAL is our ERROR.
    pub level: LevelFilter,
    /// `log.loggers`: levels by the name of a module, ours or the peer's, or of a library.
    pub loggers: Vec<(String, LevelFilter)>,
    /// `log.format`: what a line is made of.
    pub format: Vec<Piece>,
    /// `log.dateformat`, for strftime; without it `2026-11-21 00:40:10,123`.
    pub date_format: Option<String>,
    /// `log.deduplicate_heartbeat_logs`.
    pub deduplicate: bool,
    /// `log.dir`: write to `patroni.log` there instead of stderr.
    pub dir: Option<PathBuf>,
    /// Rotated files to keep.
    pub file_num: u64,
    /// Bytes before rotation.
    pub file_size: u64,
    /// Mode of the log file; from the umask when `None`.
    pub mode: Option<u32>,
    /// Added to every JSON line.
    pub static_fields: Map<String, serde_json::Value>,
}

/// `log.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogType {
    /// Lines for people.
    Plain,
    /// One JSON object a line.
    Json,
}

/// A piece of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// As it is; JSON lines leave it out.
    Text(String),
    /// An attribute of the record.
    Field {
        /// Which.
        attribute: Attribute,
        /// Its key in JSON lines.
        key: String,
        /// Least number of characters, filled up with blanks.
        width: usize,
        /// Filled up on the right.
        left: bool,
    },
}

/// The attributes of a record in Python's logging (Python documentation, "LogRecord attributes").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as there")]
pub enum Attribute {
    Asctime,
    Created,
    Filename,
    FuncName,
    Levelname,
    Levelno,
    Lineno,
    Message,
    Module,
    Msecs,
    Name,
    Pathname,
    Process,
    ProcessName,
    RelativeCreated,
    Thread,
    ThreadName,
}

const ATTRIBUTES: &[(&str, Attribute)] = &[
    ("asctime", Attribute::Asctime),
    ("created", Attribute::Created),
    ("filename", Attribute::Filename),
    ("funcName", Attribute::FuncName),
    ("levelname", Attribute::Levelname),
    ("levelno", Attribute::Levelno),
    ("lineno", Attribute::Lineno),
    ("message", Attribute::Message),
    ("module", Attribute::Module),
    ("msecs", Attribute::Msecs),
    ("name", Attribute::Name),
    ("pathname", Attribute::Pathname),
    ("process", Attribute::Process),
    ("processName", Attribute::ProcessName),
    ("relativeCreated", Attribute::RelativeCreated),
    ("thread", Attribute::Thread),
    ("threadName", Attribute::ThreadName),
];

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig {
            kind: LogType::Plain,
            level: LevelFilter::INFO,
            loggers: Vec::new(),
            format: vec![
                field(Attribute::Asctime, "asctime"),
                Piece::Text(" ".to_owned()),
                field(Attribute::Levelname, "levelname"),
                Piece::Text(": ".to_owned()),
                field(Attribute::Message, "message"),
            ],
            date_format: None,
            deduplicate: false,
            dir: None,
            file_num: 4,
            file_size: 25_000_000,
            mode: None,
            static_fields: Map::new(),
        }
    }
}

fn field(attribute: Attribute, key: &str) -> Piece {
    Piece::Field { attribute, key: key.to_owned(), width: 0, left: false }
}

fn attribute(name: &str) -> Result<Attribute, String> {
    let found = ATTRIBUTES.iter().find(|(known, _)| *known == name).map(|(_, attribute)| *attribute);
    found.ok_or_else(|| format!("a record has no attribute {name:?}"))
}

/// Python's `%`-style: `%(levelname)-8s`. Of a conversion the width and the side count; `%%` is a percent sign.
fn template(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        plain.push_str(before);
        if let Some(after) = after.strip_prefix('%') {
            plain.push('%');
            rest = after;
            continue;
        }
        let named = after.strip_prefix('(').and_then(|after| after.split_once(')'));
        let Some((name, after)) = named else { return Err("a % that is meant as one is written %%".to_owned()) };
        let end = after.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(|| format!("%({name}) lacks its s"))?;
        let (flags, after) = after.split_at(end);
        let conversion = after.chars().next().unwrap_or('s');
        let shape = flags.trim_start_matches(['-', '0', '+', ' ', '#']);
        let width = shape.split('.').next().unwrap_or("");
        let width = if width.is_empty() { Ok(0) } else { width.parse::<u8>().map(usize::from) };
        if !"sdirf".contains(conversion) || width.is_err() {
            return Err(format!("%({name}){flags}{conversion} is no conversion"));
        }
        if !plain.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut plain)));
        }
        pieces.push(Piece::Field {
            attribute: attribute(name)?,
            key: name.to_owned(),
            width: width.unwrap_or(0),
            left: flags.contains('-'),
        });
        rest = after.get(1..).unwrap_or("");
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        pieces.push(Piece::Text(plain));
    }
    Ok(pieces)
}

/// `log.format` of JSON lines as a list: names of attributes, or `attribute: key`.
fn listed(items: &[Node]) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    for item in items {
        let entries = item.entries();
        if let Some(name) = item.written() {
            pieces.push(field(attribute(&name)?, &name));
        } else if entries.is_empty() {
            return Err(format!("an item is {}, but must be an attribute of a record, or attribute: key", item.kind()));
        }
        for entry in entries {
            let key = entry.value.written().ok_or_else(|| format!("the key for {} must be text", entry.key))?;
            pieces.push(field(attribute(&entry.key)?, &key));
        }
    }
    Ok(pieces)
}

/// Reads the section. What cannot be used is a warning, and the default applies.
pub(super) fn read(root: &Section<'_>, report: &mut Report) -> LogConfig {
    let log = root.child("log", report);
    let defaults = LogConfig::default();
    let wrong = |key: &str, what: &str, report: &mut Report| {
        if let Some(node) = log.get(key) {
            report.warn(&node.at, &log.path_of(key), what);
        }
    };
    let kind = match log.text("type", report).map(|kind| kind.to_ascii_lowercase()).as_deref() {
        None | Some("plain") => LogType::Plain,
        Some("json") => LogType::Json,
        Some(_) => {
            wrong("type", "must be plain or json; plain applies", report);
            LogType::Plain
        }
    };
    let level = log.text("level", report).map(|level| level.to_ascii_uppercase());
    let level = level.as_deref().and_then(log_level).or_else(|| {
        wrong("level", "must be DEBUG, INFO, WARNING, ERROR or CRITICAL; INFO applies", report);
        Some(defaults.level)
    });
    let mode = log.get("mode").and_then(values::integer).filter(|mode| (0..=0o777).contains(mode));
    if mode.is_none() {
        wrong("mode", "must be an octal number up to 0777; the umask applies", report);
    }
    let format = match log.get("format").map(|node| (node, &node.value)) {
        None => Ok(defaults.format.clone()),
        Some((_, Value::List(items))) if kind == LogType::Json => listed(items),
        Some((_, Value::List(_))) => Err("a list is for type: json".to_owned()),
        Some((node, _)) => node.written().ok_or_else(|| format!("this is {}", node.kind())).and_then(|t| template(&t)),
    };
    let format = format.unwrap_or_else(|why| {
        wrong("format", &format!("{why}; the default applies"), report);
        defaults.format.clone()
    });
    let date_format = log.text("dateformat", report).filter(|text| {
        let tried = jiff::fmt::strtime::format(text, &jiff::Zoned::now());
        if let Err(error) = &tried {
            wrong("dateformat", &format!("is no format for strftime ({error}); the default applies"), report);
        }
        tried.is_ok()
    });
    let fields = log.child("static_fields", report).node().map(Node::to_json);
    LogConfig {
        kind,
        level: level.unwrap_or(defaults.level),
        loggers: loggers(&log.child("loggers", report), report),
        format,
        date_format,
        deduplicate: log.get("deduplicate_heartbeat_logs").and_then(values::word).unwrap_or(false),
        dir: log.text("dir", report).map(PathBuf::from),
        file_num: log.number("file_num", 0, report).unwrap_or(defaults.file_num),
        file_size: log.number("file_size", 0, report).unwrap_or(defaults.file_size),
        mode: mode.and_then(|mode| u32::try_from(mode).ok()),
        static_fields: match fields {
            Some(serde_json::Value::Object(fields)) => fields,
            Some(_) | None => Map::new(),
        },
    }
}

fn loggers(section: &Section<'_>, report: &mut Report) -> Vec<(String, LevelFilter)> {
    let mut levels = Vec::new();
    for entry in section.node().map(Node::entries).unwrap_or_default() {
        let level = entry.value.written().and_then(|level| log_level(&level.to_ascii_uppercase()));
        match level {
            Some(level) => levels.push((entry.key.clone(), level)),
            None => report.warn(
                &entry.value.at,
                &section.path_of(&entry.key),
                "must be DEBUG, INFO, WARNING, ERROR or CRITICAL; it is left out",
            ),
        }
    }
    levels
}

/// A level of Python's logging in tracing's words.
#[must_use]
pub(crate) fn log_level(name: &str) -> Option<LevelFilter> {
    match name {
        "NOTSET" => Some(LevelFilter::TRACE),
        "DEBUG" => Some(LevelFilter::DEBUG),
        "INFO" => Some(LevelFilter::INFO),
        "WARN" | "WARNING" => Some(LevelFilter::WARN),
        "ERROR" | "CRITICAL" | "FATAL" => Some(LevelFilter::ERROR),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::parse_yaml;

    /// The section of a file that gives no warning.
    pub(crate) fn log_config(text: &str) -> LogConfig {
        let (config, warnings) = read_from(text);
        assert_eq!(warnings, [""; 0], "{text}");
        config
    }

    fn read_from(text: &str) -> (LogConfig, Vec<String>) {
        let tree = parse_yaml("f", text.as_bytes()).unwrap();
        let mut report = Report::default();
        let config = read(&Section::root(&tree), &mut report);
        assert!(report.problems.is_empty(), "a log is never a reason not to start");
        (config, report.warnings.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_default_is_the_template_of_the_contract() {
        assert_eq!(template("%(asctime)s %(levelname)s: %(message)s").unwrap(), LogConfig::default().format);
    }

    #[test]
    fn templates_are_pythons() {
        let found = template("100%% %(levelname)-8s[%(lineno)05d]%(name)s").unwrap();
        let field = |attribute, key: &str, width, left| Piece::Field { attribute, key: key.to_owned(), width, left };
        let text = |text: &str| Piece::Text(text.to_owned());
        let want = [
            text("100% "),
            field(Attribute::Levelname, "levelname", 8, true),
            text("["),
            field(Attribute::Lineno, "lineno", 5, false),
            text("]"),
            field(Attribute::Name, "name", 0, false),
        ];
        assert_eq!(found, want);
        for (text, what) in [
            ("%(colour)s", "no attribute"),
            ("50%", "%%"),
            ("%(message)", "lacks"),
            ("%(message)q", "no conversion"),
            ("%(message)99999s", "no conversion"),
        ] {
            assert!(template(text).unwrap_err().contains(what), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_named_and_left_out() {
        let (config, warnings) = read_from(
            "log: {format: '%(x)s', dateformat: '%J', loggers: {patroni.ha: DEBUG, urllib3: LOUD}, level: warn}",
        );
        assert_eq!(config.format, LogConfig::default().format);
        assert_eq!((config.date_format, config.level), (None, LevelFilter::WARN));
        assert_eq!(config.loggers, [("patroni.ha".to_owned(), LevelFilter::DEBUG)]);
        for (line, key) in warnings.iter().zip(["log.format", "log.dateformat", "log.loggers.urllib3"]) {
            assert!(line.contains(key), "{line}");
        }
        assert_eq!(warnings.len(), 3, "{warnings:?}");
    }

    #[test]
    fn json_lines_have_the_keys_of_the_list() {
        let (config, warnings) = read_from("log: {type: json, format: [message, levelname: level]}");
        assert_eq!(config.format, [field(Attribute::Message, "message"), field(Attribute::Levelname, "level")]);
        assert_eq!(warnings, [""; 0]);
        let (config, warnings) = read_from("log: {format: [message]}");
        assert_eq!((config.format, warnings.len()), (LogConfig::default().format, 1));
    }
}
