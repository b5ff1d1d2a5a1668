//! A configuration as YAML: what is in force and where each value comes from (`--print-config`), and a sample.

use serde_json::Value as Json;

use super::effective::Effective;
use super::local::LocalConfig;
use super::node::{At, Entry, Node, Value};
use super::sources::Sources;
use super::table::{self, Key, Kind, State};
use super::{environment, known, parameters, postgres, yaml};
use crate::ctl::to_flow;

/// Whether secrets are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrets {
    /// As `***`.
    Masked,
    /// As they are: only for a file that is to be read again.
    Shown,
}

/// The configuration in force as a file that means the same, each value with the place it comes from. `dynamic` is the
/// dynamic configuration and its source; without it `bootstrap.dcs` counts, as for a cluster that does not exist.
#[must_use]
pub fn print_config(local: &LocalConfig, all: &Effective, dynamic: Option<(&Json, &str)>, secrets: Secrets) -> String {
    let copy = dynamic.map(|(json, source)| Node::from_json(json, &At::whole(source)));
    let dynamic = copy.as_ref().or_else(|| local.tree.path(&["bootstrap", "dcs"]));
    let shown = Shown { local, all, dynamic, secrets };
    let mut out = String::new();
    shown.section("", Some(&local.tree), 0, &mut out);
    if !local.may_bootstrap && local.tree.get("bootstrap").is_none() {
        let mut text = String::new();
        shown.section("bootstrap.dcs", dynamic, 0, &mut text);
        out.push_str("\n# The dynamic configuration (this member has no bootstrap section):\n");
        out.extend(text.lines().map(|line| format!("#   {line}\n")));
    }
    out
}

struct Shown<'a> {
    local: &'a LocalConfig,
    all: &'a Effective,
    dynamic: Option<&'a Node>,
    secrets: Secrets,
}

impl Shown<'_> {
    /// The keys of a section, those that are set and those that have a default.
    fn section(&self, path: &str, node: Option<&Node>, depth: usize, out: &mut String) {
        let merged = (path == "postgresql").then(|| self.postgresql());
        let node = merged.as_ref().or(node);
        for key in known::keys_of(path).filter(|key| key.name() != "*") {
            let child = below(path, key.name());
            match child.as_str() {
                "postgresql.use_slots" => continue,
                "postgresql.parameters" => {
                    let others = |name: &str| !parameters::is_controlled(name);
                    self.parameters(depth, others, out);
                }
                "bootstrap.dcs.postgresql" => {
                    header("postgresql", depth, out);
                    let slots = self.dynamic.and_then(|dynamic| dynamic.path(&["postgresql", "use_slots"]));
                    let at = slots.map_or_else(|| "default".to_owned(), |node| node.at.to_string());
                    leaf("use_slots", &self.all.core.use_slots.to_string(), &at, depth + 1, out);
                    self.parameters(depth + 1, parameters::is_controlled, out);
                }
                "bootstrap.dcs" => self.child(key, &child, self.dynamic, depth, out),
                _ => self.child(key, &child, node.and_then(|node| node.get(key.name())), depth, out),
            }
        }
        // Roles, tags, methods: names that the file gives.
        let free = node.map(|node| known::named_sections(node, path)).unwrap_or_default();
        let open = table::find(path).is_some_and(|key| key.kind == Kind::Map);
        for entry in node.map(Node::entries).unwrap_or_default() {
            let child = below(path, &entry.key);
            let star = table::find(&child).filter(|key| key.name() == "*");
            let tabled = known::keys_of(path).any(|key| key.name() == entry.key);
            if let Some(key) = star {
                self.child(key, &child, Some(&entry.value), depth, out);
            } else if !tabled && (open || free.contains(&entry.key)) {
                self.value(&entry.key, &child, &entry.value, depth, out);
            }
        }
    }

    fn child(&self, key: &Key, path: &str, node: Option<&Node>, depth: usize, out: &mut String) {
        let name = path.rsplit('.').next().unwrap_or(path);
        if matches!(key.state, State::Meaningless | State::Refused) {
            return;
        }
        if known::keys_of(path).next().is_some() {
            let mut inner = String::new();
            self.section(path, node, depth + 1, &mut inner);
            // An empty bootstrap section means something: this member may make the cluster.
            if !inner.is_empty() && (path != "bootstrap" || node.is_some()) {
                header(name, depth, out);
                out.push_str(&inner);
            }
            return;
        }
        let in_map = table::find(key.section()).is_some_and(|section| section.kind == Kind::Map);
        match node {
            Some(node) => self.value(name, path, &self.adjusted(path, node), depth, out),
            None if key.default.is_empty() || in_map => {}
            None => match yaml::parse("default", key.default.as_bytes()) {
                Ok(node) => self.value(name, path, &self.adjusted(path, &at_default(node)), depth, out),
                Err(error) => tracing::error!("the default of {path}: {error}"),
            },
        }
    }

    /// Timings as they are in force.
    fn adjusted(&self, path: &str, node: &Node) -> Node {
        let core = &self.all.core;
        let in_force = match path {
            "bootstrap.dcs.ttl" => core.ttl,
            "bootstrap.dcs.loop_wait" => core.loop_wait,
            "bootstrap.dcs.retry_timeout" => core.retry_timeout,
            _ => return node.clone(),
        };
        let seconds = in_force.as_secs().to_string();
        match node.written() {
            Some(written) if written == seconds => node.clone(),
            Some(written) => {
                let at = At::whole(&format!("{}, adjusted from {written}", node.at));
                Node { value: Value::Int(i64::try_from(in_force.as_secs()).unwrap_or(i64::MAX)), raw: None, at }
            }
            None => node.clone(),
        }
    }

    /// Local over dynamic, key by key.
    fn postgresql(&self) -> Node {
        let dynamic = self.dynamic.and_then(|dynamic| dynamic.get("postgresql"));
        postgres::merge(self.local.tree.get("postgresql"), dynamic, &mut super::section::Report::default())
    }

    fn parameters(&self, depth: usize, which: impl Fn(&str) -> bool, out: &mut String) {
        let sides = [self.local.tree.get("postgresql"), self.dynamic.and_then(|dynamic| dynamic.get("postgresql"))];
        let place = |name: &str| {
            let sides = sides.iter().enumerate().filter(|(side, _)| *side == 1 || !parameters::is_controlled(name));
            let mut entries = sides.filter_map(|(_, side)| side.and_then(|side| side.get("parameters")));
            entries.find_map(|node| node.entries().iter().rev().find(|entry| entry.key.eq_ignore_ascii_case(name)))
        };
        let mut first = true;
        for (name, value) in self.all.postgres.parameters.iter().filter(|(name, _)| which(name)) {
            if std::mem::take(&mut first) {
                header("parameters", depth, out);
            }
            let at = place(name).map_or_else(|| "default".to_owned(), |entry| entry.value.at.to_string());
            let text = self.text(name, value);
            leaf(&scalar(name), &scalar(&text), &at, depth + 1, out);
        }
    }

    fn value(&self, name: &str, path: &str, node: &Node, depth: usize, out: &mut String) {
        let secret = table::find(path).is_some_and(|key| key.kind == Kind::Secret) || sounds_secret(name);
        let text = if secret && self.secrets == Secrets::Masked { "'***'".to_owned() } else { self.flow(node) };
        leaf(&scalar(name), &text, &node.at.to_string(), depth, out);
    }

    /// A value on one line.
    fn flow(&self, node: &Node) -> String {
        match (&node.value, &node.raw) {
            (Value::Text(text), _) => scalar(&self.text("", text)),
            (Value::Bool(_) | Value::Int(_) | Value::Float(_), Some(raw)) if node.at.has_line() => raw.clone(),
            (Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_), _) => to_flow(&node.to_json()),
            (Value::List(items), _) => {
                format!("[{}]", items.iter().map(|i| self.flow(i)).collect::<Vec<_>>().join(", "))
            }
            (Value::Map(entries), _) => {
                let masked = |entry: &Entry| {
                    if sounds_secret(&entry.key) && self.secrets == Secrets::Masked {
                        "'***'".to_owned()
                    } else {
                        self.flow(&entry.value)
                    }
                };
                let parts = entries.iter().map(|entry| format!("{}: {}", scalar(&entry.key), masked(entry)));
                format!("{{{}}}", parts.collect::<Vec<_>>().join(", "))
            }
        }
    }

    /// A text, without the passwords in it.
    fn text(&self, name: &str, text: &str) -> String {
        if self.secrets == Secrets::Shown {
            return text.to_owned();
        }
        let lower = text.to_ascii_lowercase();
        if sounds_secret(name) || ["password=", "password =", "passwd=", "pwd="].iter().any(|mark| lower.contains(mark))
        {
            return "***".to_owned();
        }
        match text.split_once("://").map(|(scheme, rest)| (scheme, rest.rsplit_once('@'))) {
            Some((scheme, Some((_, place)))) => format!("{scheme}://***@{place}"),
            Some((_, None)) | None => text.to_owned(),
        }
    }
}

/// Names under which people keep secrets of their own.
fn sounds_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    // `password_encryption` is none.
    ["password", "passwd", "secret", "token", "passphrase"].iter().any(|word| name.ends_with(word))
}

fn below(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn at_default(node: Node) -> Node {
    Node { at: At::whole("default"), ..node }
}

fn header(name: &str, depth: usize, out: &mut String) {
    out.push_str(&format!("{}{}:\n", "  ".repeat(depth), scalar(name)));
}

fn leaf(name: &str, value: &str, source: &str, depth: usize, out: &mut String) {
    let text = format!("{}{name}: {value}", "  ".repeat(depth));
    let source = source.replace(|c: char| c.is_control(), "?");
    out.push_str(&format!("{text:<48}  # {source}\n"));
}

/// On one line, whatever is in it.
fn scalar(text: &str) -> String {
    let breaks = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}');
    if !text.contains(breaks) {
        return to_flow(&Json::String(text.to_owned()));
    }
    let escaped = text.chars().map(|c| match c {
        '"' | '\\' => format!("\\{c}"),
        c if breaks(c) => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    });
    format!("\"{}\"", escaped.collect::<String>())
}

/// What the sample sets; everything else in it is a comment.
const SAMPLE: &[(&str, &str)] = &[
    ("scope", "'#FIXME'"),
    ("name", "'#FIXME'"),
    ("restapi.listen", "127.0.0.1:8008"),
    ("restapi.connect_address", "127.0.0.1:8008"),
    ("etcd3.hosts", "127.0.0.1:2379"),
    ("bootstrap.dcs.ttl", "30"),
    ("bootstrap.dcs.loop_wait", "10"),
    ("bootstrap.dcs.retry_timeout", "10"),
    ("bootstrap.initdb", "[encoding: UTF8, data-checksums]"),
    ("postgresql.listen", "127.0.0.1:5432"),
    ("postgresql.connect_address", "127.0.0.1:5432"),
    ("postgresql.data_dir", "'#FIXME'"),
    ("postgresql.authentication.superuser.username", "postgres"),
    ("postgresql.authentication.superuser.password", "'#FIXME'"),
    ("postgresql.authentication.replication.username", "replicator"),
    ("postgresql.authentication.replication.password", "'#FIXME'"),
    ("postgresql.authentication.rewind.username", "rewind_user"),
    ("postgresql.authentication.rewind.password", "'#FIXME'"),
    ("postgresql.parameters", "{password_encryption: scram-sha-256}"),
    ("postgresql.pg_hba", "[host all all all scram-sha-256, host replication replicator all scram-sha-256]"),
    ("postgresql.use_pg_rewind", "true"),
];

/// A commented file with every key that has an effect, the variables merged in. What must be decided is `#FIXME`.
#[must_use]
pub fn sample(sources: &Sources) -> String {
    let set = environment::read(sources.variables()).tree;
    let mut out =
        String::from("# Every key: docs/configuration.md. Write '#FIXME' anew; then: regent --validate-config FILE\n");
    sample_section("", &set, 0, &mut out);
    out.truncate(out.trim_end().len());
    out
}

/// Whether anything in it is no comment.
fn sample_section(path: &str, set: &Node, depth: usize, out: &mut String) -> bool {
    let roles = ["superuser", "replication", "rewind"];
    let mut live = false;
    for key in known::keys_of(path).filter(|key| key.state == State::InForce && !key.meaning.starts_with("old ")) {
        let names: &[&str] = if key.name() == "*" { &roles } else { &[key.name()] };
        for name in names {
            let child = below(path, name);
            let indent = "  ".repeat(depth);
            if depth == 0 && key.kind == Kind::Section {
                out.push('\n');
            }
            if child == "bootstrap.dcs.postgresql" {
                let controlled = parameters::controlled().map(|(name, default)| format!("{}: {default}", scalar(name)));
                let lines: Vec<_> = controlled.map(|line| format!("{indent}    {line}\n")).collect();
                out.push_str(&format!(
                    "{indent}postgresql:  # {}\n{indent}  parameters:\n{}",
                    key.meaning,
                    lines.concat()
                ));
            } else if known::keys_of(&child).next().is_some() {
                let mut inner = String::new();
                let any = sample_section(&child, set, depth + 1, &mut inner);
                let mark = if any { "" } else { "# " };
                out.push_str(&format!("{indent}{mark}{name}:  # {}\n{inner}", key.meaning));
                live |= any;
            } else {
                let keys: Vec<&str> = child.split('.').collect();
                let given = set.path(&keys).map(|node| to_flow(&node.to_json()));
                let sample = SAMPLE.iter().find(|(path, _)| *path == child).map(|(_, value)| (*value).to_owned());
                let value = given.or(sample);
                let mark = if value.is_some() { "" } else { "# " };
                live |= value.is_some();
                let value = value.unwrap_or_else(|| key.default.to_owned());
                out.push_str(&format!("{:<48}  # {}\n", format!("{indent}{mark}{name}: {value}"), key.meaning));
            }
        }
    }
    live
}
