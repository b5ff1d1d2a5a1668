//! Reads the text of a script: its lines, the cluster it begins with, what is shown of the story.

use std::time::Duration;

use regent_core::config::{Config, SyncMode};
use regent_core::rules::{GUARDS, TABLES};

use super::ScriptError;
use crate::world::Shape;

/// A script, as far as it can be understood without playing it.
pub(super) struct Script<'a> {
    file: &'a str,
    /// The cluster is to be made before the story begins.
    pub(super) formed: bool,
    pub(super) shape: Shape,
    /// Changes of members' configurations, in order.
    pub(super) configured: Vec<(&'a str, Setting)>,
    pub(super) show: Vec<&'a str>,
    pub(super) hide: Vec<&'a str>,
    pub(super) why: Vec<&'a str>,
    /// What callbacks are told is shown.
    pub(super) callbacks: bool,
    pub(super) steps: Vec<Line<'a>>,
}

/// A line that says something.
pub(super) struct Line<'a> {
    /// Counted from 1.
    pub(super) number: usize,
    pub(super) text: &'a str,
    pub(super) words: Vec<&'a str>,
}

/// A change of a configuration.
pub(super) type Setting = Box<dyn Fn(&mut Config)>;

impl<'a> Script<'a> {
    pub(super) fn parse(file: &'a str, script: &'a str) -> Result<Script<'a>, ScriptError> {
        let said =
            script.lines().map(str::trim).enumerate().filter(|(_, text)| !text.is_empty() && !text.starts_with('#'));
        let mut lines =
            said.map(|(index, text)| Line { number: index + 1, text, words: text.split_whitespace().collect() });
        let wrong = |line: usize, what: String| ScriptError { file: file.to_owned(), line, what };
        let no_cluster = || "a script must begin with `cluster a b c` or `machines a b c`".to_owned();
        let first = lines.next().ok_or_else(|| wrong(1, no_cluster()))?;
        let formed = match first.words[0] {
            "cluster" => true,
            "machines" => false,
            _ => return Err(wrong(first.number, no_cluster())),
        };
        let (settings, names): (Vec<&str>, Vec<&str>) = first.words[1..].iter().partition(|word| word.contains('='));
        let mut parsed = Script {
            file,
            formed,
            shape: Shape { ttl: secs(30), loop_wait: secs(10), retry_timeout: secs(10), ..Shape::default() },
            configured: Vec::new(),
            show: Vec::new(),
            hide: Vec::new(),
            why: Vec::new(),
            callbacks: false,
            steps: Vec::new(),
        };
        let letters = ["a", "b", "c", "d", "e"];
        if names.is_empty() || !letters.starts_with(&names) {
            return Err(wrong(first.number, format!("members are called {letters:?}, in this order, not {names:?}")));
        }
        parsed.shape.members = u8::try_from(names.len()).unwrap_or(u8::MAX);
        parsed.settings(&names, &settings).map_err(|what| wrong(first.number, what))?;
        for line in lines {
            let done = parsed.directive(&names, &line).map_err(|what| wrong(line.number, what))?;
            if !done {
                parsed.steps.push(line);
            }
        }
        Ok(parsed)
    }

    /// An error in one of its lines.
    pub(super) fn wrong(&self, line: &Line<'_>, what: String) -> ScriptError {
        ScriptError { file: self.file.to_owned(), line: line.number, what }
    }

    fn settings(&mut self, names: &[&'a str], settings: &[&'a str]) -> Result<(), String> {
        for word in settings {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            match key {
                "ttl" => self.shape.ttl = time(value)?,
                "loop_wait" => self.shape.loop_wait = time(value)?,
                "retry_timeout" => self.shape.retry_timeout = time(value)?,
                "synchronous_mode" => {
                    self.shape.synchronous = if value == "quorum" {
                        SyncMode::Quorum
                    } else if on(value)? {
                        SyncMode::On
                    } else {
                        SyncMode::Off
                    };
                }
                "synchronous_mode_strict" => self.shape.strict = on(value)?,
                "stop_budget" => self.shape.stop_budget = time(value)?,
                "failsafe_mode" => self.shape.failsafe = value == "on",
                "standby_cluster" => self.shape.standby = on(value)?,
                "logical_slot" => self.shape.logical = on(value)?,
                _ => {
                    for name in names {
                        self.configured.push((name, setting(word)?));
                    }
                }
            }
        }
        Ok(())
    }

    /// True when the line was one of those before the first step.
    fn directive(&mut self, names: &[&'a str], line: &Line<'a>) -> Result<bool, String> {
        let early = self.steps.is_empty();
        match line.words.as_slice() {
            ["show" | "hide" | "why" | "callbacks", ..] if !early => Err("goes before the first step".to_owned()),
            ["show", members @ ..] => {
                members.iter().try_for_each(|name| known(names, name))?;
                self.show.extend(members);
                Ok(true)
            }
            ["callbacks"] => {
                self.callbacks = true;
                Ok(true)
            }
            ["hide", rules @ ..] => {
                rules.iter().try_for_each(|rule| known_rule(rule))?;
                self.hide.extend(rules);
                Ok(true)
            }
            ["why", rules @ ..] => {
                rules.iter().try_for_each(|rule| known_rule(rule))?;
                self.why.extend(rules);
                Ok(true)
            }
            ["config", name, word] if early => {
                known(names, name)?;
                self.configured.push((name, setting(word)?));
                Ok(true)
            }
            ["tag", name, word] if early => {
                known(names, name)?;
                self.configured.push((name, tag(word)?));
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

fn known(names: &[&str], name: &str) -> Result<(), String> {
    if names.contains(&name) { Ok(()) } else { Err(format!("no member called {name}")) }
}

fn known_rule(name: &str) -> Result<(), String> {
    let mut all = GUARDS.iter().chain(TABLES.iter().flat_map(|table| table.rows)).map(|rule| rule.name);
    let last = TABLES.iter().any(|table| table.otherwise.name == name);
    if last || all.any(|rule| rule == name) { Ok(()) } else { Err(format!("no rule called {name}")) }
}

/// `primary_start_timeout=0`
pub(super) fn setting(word: &str) -> Result<Setting, String> {
    let (key, value) = word.split_once('=').ok_or_else(|| format!("{word}: expected key=value"))?;
    Ok(match key {
        "primary_start_timeout" => {
            let value = time(value)?;
            Box::new(move |config| config.primary_start_timeout = value)
        }
        "primary_stop_timeout" => {
            let value = time(value)?;
            Box::new(move |config| config.primary_stop_timeout = value)
        }
        "primary_race_backoff" => {
            let value = time(value)?;
            Box::new(move |config| config.primary_race_backoff = value)
        }
        "member_slots_ttl" => {
            let value = time(value)?;
            Box::new(move |config| config.member_slots_ttl = value)
        }
        "maximum_lag_on_failover" => {
            let value = number(value)?;
            Box::new(move |config| config.maximum_lag_on_failover = value)
        }
        "synchronous_node_count" => {
            let value = usize::try_from(number(value)?).map_err(|error| error.to_string())?;
            Box::new(move |config| config.synchronous_node_count = value)
        }
        "check_timeline" => {
            let value = on(value)?;
            Box::new(move |config| config.check_timeline = value)
        }
        "use_pg_rewind" => {
            let value = on(value)?;
            Box::new(move |config| config.use_pg_rewind = value)
        }
        "remove_data_directory_on_rewind_failure" => {
            let value = on(value)?;
            Box::new(move |config| config.remove_on_rewind_failure = value)
        }
        "remove_data_directory_on_diverged_timelines" => {
            let value = on(value)?;
            Box::new(move |config| config.remove_on_divergence = value)
        }
        "pre_promote" => {
            let value = on(value)?;
            Box::new(move |config| config.pre_promote = value)
        }
        "no_leader" => {
            let value = on(value)?;
            Box::new(move |config| config.restores_without_leader = value)
        }
        "may_bootstrap" => {
            let value = on(value)?;
            Box::new(move |config| config.may_bootstrap = value)
        }
        _ => return Err(format!("no such setting: {key}")),
    })
}

/// `nofailover`, `clonefrom`, `nostream`, `failover_priority=2`, `replicatefrom=b`
pub(super) fn tag(word: &str) -> Result<Setting, String> {
    let (key, value) = word.split_once('=').unwrap_or((word, ""));
    Ok(match key {
        "nofailover" => Box::new(|config| (config.tags.nofailover, config.tags.failover_priority) = (true, 0)),
        "clonefrom" => Box::new(|config| config.tags.clonefrom = true),
        "nostream" => Box::new(|config| config.tags.nostream = true),
        "failover_priority" => {
            let value = i64::try_from(number(value)?).map_err(|error| error.to_string())?;
            Box::new(move |config| config.tags.failover_priority = value)
        }
        "replicatefrom" => {
            let value = value.to_owned();
            Box::new(move |config| config.tags.replicatefrom = Some(value.as_str().into()))
        }
        _ => return Err(format!("no such tag: {key}")),
    })
}

/// `on` or `off`.
pub(super) fn on(word: &str) -> Result<bool, String> {
    match word {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("expected on or off, not {word}")),
    }
}

/// `40`, `0.5` (seconds) or `400ms`.
pub(super) fn time(word: &str) -> Result<Duration, String> {
    let (digits, unit) = word.strip_suffix("ms").map_or((word, 1.0), |digits| (digits, 0.001));
    let parsed = digits.parse::<f64>().ok().and_then(|value| Duration::try_from_secs_f64(value * unit).ok());
    parsed.ok_or_else(|| format!("{word} is not a time; write 40, 0.5 or 400ms"))
}

pub(super) fn number(word: &str) -> Result<u64, String> {
    word.parse().map_err(|_| format!("{word} is not a number"))
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
