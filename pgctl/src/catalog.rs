//! What the installed server itself says of its parameters: names, types, units, ranges, words.
//!
//! `postgres --describe-config` names types and limits. Units and words stand in the answers to values that no server takes:
//! `postgres -C` reads a file of them and says of each what it would have taken. Neither needs or touches a data directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::disk::file_error;
use crate::settings::Programs;
use crate::{PgError, guc, programs};

/// The parameters of one installed version.
#[derive(Clone, Debug, PartialEq)]
pub struct Catalog {
    known: BTreeMap<String, Parameter>,
    /// Exist, without a description.
    hidden: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq)]
struct Parameter {
    kind: Kind,
    /// Of a bare number: `8kB`, `ms`.
    unit: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Bool,
    Integer(f64, f64),
    Real(f64, f64),
    Text,
    Words(Vec<String>),
}

/// What the server would make of a value.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Nothing speaks against it.
    Good,
    /// There is no such parameter.
    Unknown,
    /// The number is too large or too small.
    Limit {
        /// The nearest one that is taken, in the parameter's own unit.
        nearest: String,
        /// The range, for people.
        range: String,
    },
    /// It is something else.
    Wrong {
        /// The type, in PostgreSQL's words.
        vartype: &'static str,
        /// What would be taken, for people.
        wanted: String,
    },
}

/// Parameters that `--describe-config` leaves out and that a file may set (PostgreSQL documentation, "Developer Options").
const HIDDEN: &[&str] = &[
    "allow_in_place_tablespaces",
    "allow_system_table_mods",
    "application_name",
    "backtrace_functions",
    "config_file",
    "debug_deadlocks",
    "debug_discard_caches",
    "debug_io_direct",
    "debug_logical_replication_streaming",
    "debug_parallel_query",
    "default_with_oids",
    "event_triggers",
    "force_parallel_mode",
    "ignore_checksum_failure",
    "ignore_invalid_pages",
    "ignore_system_indexes",
    "jit_debugging_support",
    "jit_dump_bitcode",
    "jit_expressions",
    "jit_profiling_support",
    "jit_tuple_deforming",
    "log_btree_build_stats",
    "logical_replication_mode",
    "post_auth_delay",
    "pre_auth_delay",
    "remove_temp_files_after_crash",
    "restrict_nonsystem_relation_kind",
    "send_abort_for_crash",
    "send_abort_for_kill",
    "trace_connection_negotiation",
    "trace_lock_oidmin",
    "trace_lock_table",
    "trace_locks",
    "trace_lwlocks",
    "trace_notify",
    "trace_recovery_messages",
    "trace_sort",
    "trace_syncscan",
    "trace_userlocks",
    "wal_consistency_checking",
    "wal_debug",
    "zero_damaged_pages",
];

impl Catalog {
    /// Asks `postgres`.
    ///
    /// # Errors
    /// The program does not run, or does not answer within `limit`.
    pub async fn ask(programs: &Programs, limit: Duration) -> Result<Catalog, PgError> {
        let mut describe = programs.program("postgres");
        describe.arg("--describe-config").env("LC_ALL", "C");
        let printed = programs::ask(describe, limit).await?;
        let mut catalog = Catalog { known: printed.lines().filter_map(described).collect(), hidden: BTreeSet::new() };
        let hidden: Vec<&str> = HIDDEN.iter().copied().filter(|name| !catalog.known.contains_key(*name)).collect();
        let mut unknown = BTreeSet::new();
        answers(programs, limit, hidden.iter().map(|name| (*name, "?".to_owned())), |line| {
            if let Some(rest) = after(line, "unrecognized configuration parameter \"") {
                unknown.extend(rest.split_once('"').map(|(name, _)| name.to_owned()));
            }
        })
        .await?;
        catalog.hidden = hidden.into_iter().filter(|name| !unknown.contains(*name)).map(str::to_owned).collect();
        let impossible: Vec<_> =
            catalog.known.iter().filter_map(|(name, of)| Some((name.clone(), of.kind.impossible()?))).collect();
        let mut last = String::new();
        let known = &mut catalog.known;
        answers(programs, limit, impossible.iter().map(|(name, value)| (name.as_str(), value.clone())), |line| {
            if let Some((name, unit)) = named_unit(line) {
                if let Some(of) = known.get_mut(&name) {
                    of.unit = unit;
                }
            } else if let Some(rest) = after(line, "invalid value for parameter \"") {
                last = rest.split_once('"').map_or_else(String::new, |(name, _)| name.to_ascii_lowercase());
            } else if let Some(words) = after(line, "Available values: ")
                && let Some(Kind::Words(of)) = known.get_mut(&last).map(|of| &mut of.kind)
            {
                *of = words.trim_end_matches('.').split(", ").map(|word| word.trim_matches('"').to_owned()).collect();
            }
        })
        .await?;
        Ok(catalog)
    }

    /// The names that have a description, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.known.keys().map(String::as_str)
    }

    /// What the server would make of `name = 'value'`. A name with a dot belongs to an extension, which alone could tell.
    #[must_use]
    pub fn judge(&self, name: &str, value: &str) -> Verdict {
        let name = name.to_ascii_lowercase();
        let Some(of) = self.known.get(&name) else {
            let exists = name.contains('.') || self.hidden.contains(&name);
            return if exists { Verdict::Good } else { Verdict::Unknown };
        };
        let wrong = |vartype, wanted: String| Verdict::Wrong { vartype, wanted };
        let unit = of.unit.as_deref();
        match &of.kind {
            Kind::Text => Verdict::Good,
            Kind::Bool if is_boolean(value) => Verdict::Good,
            Kind::Bool => wrong("bool", "on or off".to_owned()),
            Kind::Words(words) if words.is_empty() || is_word(&name, value, words) => Verdict::Good,
            Kind::Words(words) => wrong("enum", format!("one of {}", words.join(", "))),
            Kind::Integer(least, most) => match guc::number(value, unit).map(f64::round) {
                Some(number) => within(number, *least, *most, unit),
                None => wrong("integer", numbers("a whole number", *least, *most, unit)),
            },
            Kind::Real(least, most) => match guc::number(value, unit) {
                Some(number) => within(number, *least, *most, unit),
                None => wrong("real", numbers("a number", *least, *most, unit)),
            },
        }
    }

    /// For each name: a value that is taken, where its type says one (tests).
    pub fn good_values(&self) -> impl Iterator<Item = (&str, String)> {
        self.known.iter().filter_map(|(name, of)| {
            let value = match &of.kind {
                Kind::Bool => "off".to_owned(),
                Kind::Integer(least, _) | Kind::Real(least, _) => least.to_string(),
                Kind::Words(words) => words.first()?.clone(),
                Kind::Text => return None,
            };
            Some((name.as_str(), value))
        })
    }
}

/// What the server itself says to a file of settings, with the hooks that no description tells of (the syntax of
/// `synchronous_standby_names`, time zones): a line for each value that it refuses, as it words it. All names must exist.
///
/// # Errors
/// The program does not run, or does not answer within `limit`.
pub async fn refusals(
    programs: &Programs,
    limit: Duration,
    settings: impl IntoIterator<Item = (&str, String)>,
) -> Result<Vec<(String, String)>, PgError> {
    let mut found: Vec<(String, String)> = Vec::new();
    answers(programs, limit, settings, |line| {
        if let Some((name, _)) =
            after(line, "LOG:  ").and_then(|text| text.split_once("parameter \"")?.1.split_once('"'))
        {
            found.push((name.to_ascii_lowercase(), after(line, "LOG:  ").unwrap_or(line).to_owned()));
        } else if let Some((last, detail)) = found.last_mut().zip(after(line, "DETAIL:  ").or(after(line, "HINT:  "))) {
            let _ = write!(last.1, "; {detail}"); // Writing to a String cannot fail.
        }
    })
    .await?;
    Ok(found)
}

/// Has the server read a file of settings, and hands over each line that it says.
async fn answers(
    programs: &Programs,
    limit: Duration,
    settings: impl IntoIterator<Item = (&str, String)>,
    mut on_line: impl FnMut(&str),
) -> Result<(), PgError> {
    let place = Place::new()?;
    let file = place.0.join("postgresql.conf");
    let text: String = settings.into_iter().map(|(name, value)| guc::line(name, &value) + "\n").collect();
    std::fs::write(&file, text).map_err(|e| file_error(&file, &e))?;
    let mut command = programs.program("postgres");
    command.args(["-C", "config_file", "-D"]).arg(&place.0).env("LC_ALL", "C");
    match tokio::time::timeout(limit, programs::run(command, |line| on_line(line))).await {
        // A file that it refuses is what was asked for.
        Ok(Ok(_) | Err(PgError::Program { .. })) => Ok(()),
        Ok(Err(other)) => Err(other),
        Err(_) => Err(PgError::Timeout { what: "postgres -C".to_owned(), limit }),
    }
}

/// A directory for one file, removed when dropped.
struct Place(PathBuf);

impl Place {
    fn new() -> Result<Place, PgError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("regent-{}-{number}.parameters", std::process::id()));
        std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(|e| file_error(&path, &e))?;
        Ok(Place(path))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "cannot remove a temporary directory; remove it by hand");
        }
    }
}

impl Kind {
    /// A value of which the server says what it would take instead.
    fn impossible(&self) -> Option<String> {
        match self {
            Kind::Integer(least, _) | Kind::Real(least, _) => Some((least - 1.0).to_string()),
            Kind::Words(_) => Some("?".to_owned()),
            Kind::Bool | Kind::Text => None,
        }
    }
}

/// A line of `--describe-config`: name, context, group, type, default, least, most, ...
fn described(line: &str) -> Option<(String, Parameter)> {
    let mut fields = line.split('\t');
    let name = fields.next()?;
    let vartype = fields.nth(2)?;
    let mut limit = |skip: usize| fields.nth(skip).and_then(|text| text.parse::<f64>().ok());
    let kind = match vartype {
        "BOOLEAN" => Kind::Bool,
        "INTEGER" => Kind::Integer(limit(1)?, limit(0)?),
        "REAL" => Kind::Real(limit(1)?, limit(0)?),
        "ENUM" => Kind::Words(Vec::new()),
        _ => Kind::Text,
    };
    Some((name.to_ascii_lowercase(), Parameter { kind, unit: None }))
}

fn after<'a>(line: &'a str, mark: &str) -> Option<&'a str> {
    line.split_once(mark).map(|(_, rest)| rest)
}

/// `-1 8kB is outside the valid range for parameter "x" (...)`.
fn named_unit(line: &str) -> Option<(String, Option<String>)> {
    let (value, rest) = after(line, "LOG:  ")?.split_once(" is outside the valid range for parameter \"")?;
    let unit = value.split_once(' ').map(|(_, unit)| unit.to_owned());
    Some((rest.split_once('"')?.0.to_ascii_lowercase(), unit))
}

/// As PostgreSQL reads a boolean: any beginning of a word that means only one.
fn is_boolean(value: &str) -> bool {
    let value = value.trim().to_ascii_lowercase();
    let begins = |word: &str, least: usize| value.len() >= least && word.starts_with(&value);
    matches!(value.as_str(), "1" | "0")
        || ["true", "false", "yes", "no"].iter().any(|word| begins(word, 1))
        || begins("on", 2)
        || begins("off", 2)
}

/// Words that the server takes without naming them.
fn is_word(name: &str, value: &str, words: &[String]) -> bool {
    let named = |word: &str| words.iter().any(|known| known.eq_ignore_ascii_case(word));
    let hidden = match value.to_ascii_lowercase().as_str() {
        "true" | "yes" | "1" => named("on"),
        "false" | "no" | "0" => named("off"),
        "debug" => named("debug2"),
        "fatal" | "panic" => name == "client_min_messages",
        "archive" | "hot_standby" => name == "wal_level",
        "auto" | "on" | "off" => named("on"),
        _ => false,
    };
    named(value) || hidden
}

fn within(number: f64, least: f64, most: f64, unit: Option<&str>) -> Verdict {
    if (least..=most).contains(&number) {
        return Verdict::Good;
    }
    let nearest = if number < least { least } else { most };
    Verdict::Limit { nearest: nearest.to_string(), range: numbers("a number", least, most, unit) }
}

fn numbers(what: &str, least: f64, most: f64, unit: Option<&str>) -> String {
    let range = format!("{what} from {least} to {}", if most > 1e300 { "any".to_owned() } else { most.to_string() });
    match unit {
        None => format!("{range}, without a unit"),
        Some(unit) if unit.ends_with('B') => format!("{range} ({unit}), or with the unit B, kB, MB, GB or TB"),
        Some(unit) => format!("{range} ({unit}), or with the unit us, ms, s, min, h or d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_and_answers_are_read() {
        let (name, of) =
            described("work_mem\tuser\tResource Usage / Memory\tINTEGER\t4096\t64\t2147483647\tSets\t").unwrap();
        assert_eq!((name.as_str(), of.kind), ("work_mem", Kind::Integer(64.0, 2_147_483_647.0)));
        let line =
            "2026-11-21 GMT [1] LOG:  -1 8kB is outside the valid range for parameter \"shared_buffers\" (16 .. 9)";
        assert_eq!(named_unit(line), Some(("shared_buffers".to_owned(), Some("8kB".to_owned()))));
        let line = "LOG:  0 is outside the valid range for parameter \"port\" (1 .. 65535)";
        assert_eq!(named_unit(line), Some(("port".to_owned(), None)));
    }

    #[test]
    fn values_are_judged_as_the_server_would() {
        let words = |words: &[&str]| Kind::Words(words.iter().map(|word| (*word).to_owned()).collect());
        let parameter = |kind, unit: Option<&str>| Parameter { kind, unit: unit.map(str::to_owned) };
        let catalog = Catalog {
            known: BTreeMap::from([
                ("work_mem".to_owned(), parameter(Kind::Integer(64.0, 2_147_483_647.0), Some("kB"))),
                ("port".to_owned(), parameter(Kind::Integer(1.0, 65535.0), None)),
                ("seq_page_cost".to_owned(), parameter(Kind::Real(0.0, f64::MAX), None)),
                ("fsync".to_owned(), parameter(Kind::Bool, None)),
                ("synchronous_commit".to_owned(), parameter(words(&["local", "on", "off"]), None)),
            ]),
            hidden: BTreeSet::from(["trace_sort".to_owned()]),
        };
        let good = |name: &str, value: &str| catalog.judge(name, value) == Verdict::Good;
        for (name, value) in [
            ("work_mem", "4MB"),
            ("Work_Mem", "0x100"),
            ("work_mem", "1.5 GB"),
            ("port", "5432"),
            ("seq_page_cost", "1e-2"),
            ("fsync", "tru"),
            ("fsync", "True"),
            ("synchronous_commit", "TRUE"),
            ("synchronous_commit", "Local"),
            ("my.own", "x"),
            ("trace_sort", "x"),
        ] {
            assert!(good(name, value), "{name} {value}");
        }
        for (name, value) in [
            ("work_mem", "5XB"),
            ("work_mem", "5s"),
            ("port", "1kB"),
            ("port", "x"),
            ("fsync", "o"),
            ("fsync", "maybe"),
            ("synchronous_commit", "remote"),
        ] {
            assert!(matches!(catalog.judge(name, value), Verdict::Wrong { .. }), "{name} {value}");
        }
        assert_eq!(catalog.judge("work_memm", "1"), Verdict::Unknown);
        let Verdict::Limit { nearest, .. } = catalog.judge("port", "70000") else { panic!("no limit") };
        assert_eq!(nearest, "65535");
    }
}
