//! `list`: the members of a cluster as etcd knows them (cli.md 2, 4.1).

use regent_core::cluster::{Initialize, Member};
use regent_core::units::{Lsn, MemberName};
use regent_dcs::Read;
use serde_json::{Map, Value, json};

use super::args::Format;
use super::output::to_json;
use super::table::{Align, draw};
use super::yaml_writer::{to_flow, to_yaml};
use crate::report;

/// What a table is made of. Values of keys are raw JSON, because a tool shows what others wrote.
#[derive(Clone, Debug, Default)]
pub struct ClusterTable {
    /// Cluster name.
    pub scope: String,
    /// Text in brackets of the title: the system identifier, `initializing`, `uninitialized`.
    pub identity: String,
    /// Who holds the leader key.
    pub leader: Option<String>,
    /// The cluster's position in `status`.
    pub optime: Option<u64>,
    /// Member keys by name, in order.
    pub members: Vec<(String, Value)>,
    /// The `config` key.
    pub config: Option<Value>,
    /// The `sync` key.
    pub sync: Option<Value>,
    /// The `failover` key.
    pub failover: Option<Value>,
}

/// One row, before it is text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MemberTable {
    name: String,
    host: String,
    role: &'static str,
    state: String,
    timeline: Option<i64>,
    /// Shown position and lag in MiB.
    receive: Position,
    /// See `receive`.
    replay: Position,
    pending_restart: bool,
    /// Lines `name: old->new`.
    reasons: Vec<String>,
    scheduled_restart: String,
    tags: Option<Map<String, Value>>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Position {
    text: String,
    lag: Option<u64>,
}

const MIB: u64 = 1_048_576;
/// Longer reasons are hidden in tables.
const LONGEST_REASON: usize = 50;
const DEFAULT_PORT: &str = "5432";

impl ClusterTable {
    /// From one read of etcd.
    #[must_use]
    pub fn of_read(scope: &str, read: &Read) -> ClusterTable {
        ClusterTable {
            scope: scope.to_owned(),
            identity: match &read.view.initialize {
                Initialize::Absent => "uninitialized".to_owned(),
                Initialize::InProgress { .. } => "initializing".to_owned(),
                Initialize::Known(id) => id.to_string(),
                Initialize::Garbage { text, .. } => text.clone(),
            },
            leader: read.view.leader.as_ref().map(|leader| leader.name.0.clone()),
            optime: read.view.status.optime.map(|lsn| lsn.0),
            members: read.view.members.iter().map(|(name, member)| (name.0.clone(), key(read, name, member))).collect(),
            config: read.config.clone(),
            sync: read.view.sync.as_ref().map(|sync| {
                let names: Vec<_> = sync.standbys.iter().map(|name| name.as_str()).collect();
                json!({"sync_standby": names.join(",")})
            }),
            failover: read.view.failover.as_ref().map(|asked| {
                let at = asked.schedule.as_ref().map(|schedule| schedule.text.as_str());
                json!({"leader": asked.leader, "member": asked.candidate, "scheduled_at": at})
            }),
        }
    }

    /// The whole answer of `list` for this cluster.
    #[must_use]
    pub fn show(&self, format: Format, extended: bool) -> String {
        let rows = self.rows();
        match format {
            Format::Pretty => {
                let tags = |tags| to_yaml(&Value::Object(tags)).trim_end().to_owned();
                self.pretty(&rows, extended, tags) + &self.notes()
            }
            Format::Tsv => self.tsv(&rows, extended),
            Format::Json => to_json(&self.objects(&rows)) + "\n",
            Format::Yaml | Format::Yml => to_yaml(&self.objects(&rows)) + "\n",
        }
    }

    /// The table of `topology`: the leader first, below each member those that stream from it (cli.md 4.2).
    #[must_use]
    pub fn topology(&self) -> String {
        let rows = self.rows();
        let upstream = |row: &MemberTable| {
            let named = row.tags.as_ref().and_then(|tags| tags.get("replicatefrom")).and_then(Value::as_str);
            let leads = |name: &str| self.leader.as_deref() == Some(name);
            let there = |name: &&str| *name != row.name && !leads(name) && rows.iter().any(|other| other.name == *name);
            named.filter(there).map(str::to_owned)
        };
        let mut shown: Vec<MemberTable> = Vec::new();
        // A stack of who comes next and how deep; whoever is in a ring of replicatefrom comes at the end.
        let leads = |row: &&MemberTable| self.leader.as_deref() == Some(row.name.as_str());
        let direct = rows.iter().filter(|row| !leads(row) && upstream(row).is_none());
        let mut next: Vec<(&MemberTable, usize)> =
            rows.iter().filter(leads).map(|row| (row, 0)).chain(direct.map(|row| (row, 1))).rev().collect();
        let mut left: Vec<&MemberTable> = rows.iter().collect();
        while let Some((row, depth)) = next.pop().or_else(|| left.first().map(|row| (*row, 1))) {
            let before = left.len();
            left.retain(|other| other.name != row.name);
            if left.len() == before {
                continue;
            }
            let below = rows.iter().rev().filter(|other| upstream(other).as_ref() == Some(&row.name));
            next.extend(below.map(|other| (other, depth.saturating_add(1))));
            let indent = depth.checked_sub(1).map_or_else(String::new, |level| "  ".repeat(level) + "+ ");
            shown.push(MemberTable { name: format!("{indent}{}", row.name), ..row.clone() });
        }
        self.pretty(&shown, false, |tags| to_flow(&Value::Object(tags))) + &self.notes()
    }

    fn rows(&self) -> Vec<MemberTable> {
        let addresses: Vec<(String, String)> = self.members.iter().map(|(_, json)| address(json)).collect();
        let known: Vec<_> = addresses.iter().filter(|(host, _)| !host.is_empty()).collect();
        let odd_port = known.iter().any(|(_, port)| port != DEFAULT_PORT);
        let shared = known
            .iter()
            .enumerate()
            .any(|(index, (host, _))| known.iter().skip(index.saturating_add(1)).any(|(other, _)| other == host));
        let mut rows: Vec<_> = self
            .members
            .iter()
            .zip(&addresses)
            .map(|((name, json), (host, port))| {
                let host =
                    if host.is_empty() || !(odd_port || shared) { host.clone() } else { format!("{host}:{port}") };
                self.row(name, json, host)
            })
            .collect();
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        rows
    }

    fn row(&self, name: &str, json: &Value, host: String) -> MemberTable {
        let text = |key: &str| json.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let role = self.role(name);
        let replication = text("replication_state");
        let state = if role == "Leader" || replication.is_empty() { text("state") } else { replication };
        let (receive, replay) = if self.leader.as_deref() == Some(name) {
            (Position::default(), Position::default())
        } else {
            self.positions(json, &state)
        };
        MemberTable {
            name: name.to_owned(),
            role,
            timeline: json.get("timeline").and_then(Value::as_i64).filter(|timeline| *timeline != 0),
            receive,
            replay,
            pending_restart: json.get("pending_restart").is_some_and(truthy),
            reasons: reasons(json.get("pending_restart_reason")),
            scheduled_restart: scheduled_restart(json.get("scheduled_restart")),
            tags: json.get("tags").and_then(Value::as_object).filter(|tags| !tags.is_empty()).cloned(),
            state,
            host,
        }
    }

    fn role(&self, name: &str) -> &'static str {
        if self.leader.as_deref() == Some(name) {
            let in_force = standby_cluster(self.config.as_ref());
            return if in_force { "Standby Leader" } else { "Leader" };
        }
        let names = self.sync.as_ref().and_then(|sync| sync.get("sync_standby")).and_then(Value::as_str).unwrap_or("");
        // PostgreSQL compares these names without regard to case.
        let named = names.split(',').any(|sync| sync.trim().to_lowercase() == name.to_lowercase());
        match synchronous_mode(self.config.as_ref()) {
            "quorum" if named => "Quorum Standby",
            "on" if named => "Sync Standby",
            _ => "Replica",
        }
    }

    fn positions(&self, json: &Value, state: &str) -> (Position, Position) {
        let of = |key: &str| json.get(key).and_then(Value::as_u64).filter(|position| *position != 0);
        let (mut receive, mut replay) = (of("receive_lsn"), of("replay_lsn"));
        if receive.is_none() && replay.is_none() {
            // An agent from before there were two.
            let only = of("xlog_location");
            if state == "streaming" {
                receive = only;
            } else {
                replay = only;
            }
        }
        let shown = |position: Option<u64>| match position {
            None => Position { text: "unknown".to_owned(), lag: None },
            Some(position) => {
                let behind = self.optime.unwrap_or(0).saturating_sub(position);
                Position { text: Lsn(position).to_string(), lag: Some(mebibytes(behind)) }
            }
        };
        (shown(receive), shown(replay))
    }

    fn pretty(&self, rows: &[MemberTable], extended: bool, tags: impl Fn(Map<String, Value>) -> String) -> String {
        let optional = Optional::of(rows, extended);
        let (left, right) = (Align::Left, Align::Right);
        let mut headings = vec![
            ("Member", left),
            ("Host", left),
            ("Role", left),
            ("State", left),
            ("TL", right),
            ("Receive LSN", right),
            ("Lag", right),
            ("Replay LSN", right),
            ("Lag", right),
        ];
        headings.extend(optional.headings().map(|heading| (heading, left)));
        let reason = |reasons: &[String]| reasons.iter().map(|line| short(line)).collect::<Vec<_>>().join("\n");
        let cells: Vec<_> = rows.iter().map(|row| row.cells(&optional, reason, &tags)).collect();
        draw(&format!(" Cluster: {} ({}) ", self.scope, self.identity), &headings, &cells)
    }

    fn tsv(&self, rows: &[MemberTable], extended: bool) -> String {
        let optional = Optional::of(rows, extended);
        let mut headings = vec![
            "Cluster",
            "Member",
            "Host",
            "Role",
            "State",
            "TL",
            "Receive LSN",
            "Receive Lag",
            "Replay LSN",
            "Replay Lag",
        ];
        headings.extend(optional.headings());
        let mut text = headings.join("\t") + "\n";
        for row in rows {
            let cells = row.cells(&optional, |reasons| reasons.join("\n"), |tags| to_flow(&Value::Object(tags)));
            text.push_str(&format!("{}\t{}\n", self.scope, cells.join("\t")));
        }
        text
    }

    /// For json and yaml: what is empty is left out.
    fn objects(&self, rows: &[MemberTable]) -> Value {
        let object = |row: &MemberTable| {
            let fields = [
                ("Cluster", Value::from(self.scope.as_str())),
                ("Member", row.name.as_str().into()),
                ("Host", row.host.as_str().into()),
                ("Role", row.role.into()),
                ("State", row.state.as_str().into()),
                ("TL", row.timeline.into()),
                ("Receive LSN", row.receive.text.as_str().into()),
                ("Receive Lag", row.receive.lag.into()),
                ("Replay LSN", row.replay.text.as_str().into()),
                ("Replay Lag", row.replay.lag.into()),
                ("Pending restart", if row.pending_restart { "*" } else { "" }.into()),
                ("Pending restart reason", row.reasons.join("\n").into()),
                ("Scheduled restart", row.scheduled_restart.as_str().into()),
                ("Tags", row.tags.clone().map_or(Value::Null, Value::Object)),
            ];
            let kept = fields.into_iter().filter(|(_, value)| !value.is_null() && value.as_str() != Some(""));
            Value::Object(kept.map(|(key, value)| (key.to_owned(), value)).collect())
        };
        Value::Array(rows.iter().map(object).collect())
    }

    /// The lines below the table.
    fn notes(&self) -> String {
        let mut notes = String::new();
        if paused(self.config.as_ref()) {
            notes.push_str(" Maintenance mode: on\n");
        }
        let failover = |key: &str| {
            self.failover.as_ref().and_then(|f| f.get(key)).and_then(Value::as_str).filter(|t| !t.is_empty())
        };
        if let Some(at) = failover("scheduled_at") {
            notes.push_str(&format!(" Switchover scheduled at: {at}\n"));
            for (label, key) in [("from", "leader"), ("to", "member")] {
                if let Some(name) = failover(key) {
                    notes.push_str(&format!("{label:>24}: {name}\n"));
                }
            }
        }
        for (name, json) in &self.members {
            let number = |key: &str| json.get("clone").and_then(|clone| clone.get(key)).and_then(Value::as_u64);
            if let Some(bytes) = number("bytes") {
                notes.push_str(&format!(" {name} has copied {}\n", report::progress(bytes, number("total"))));
            }
        }
        notes
    }
}

impl MemberTable {
    /// The cells of a row, optional ones as far as shown.
    fn cells(
        &self,
        optional: &Optional,
        reason: impl Fn(&[String]) -> String,
        tags: impl Fn(Map<String, Value>) -> String,
    ) -> Vec<String> {
        let number = |number: Option<String>| number.unwrap_or_default();
        let mut cells = vec![
            self.name.clone(),
            self.host.clone(),
            self.role.to_owned(),
            self.state.clone(),
            number(self.timeline.map(|timeline| timeline.to_string())),
            self.receive.text.clone(),
            number(self.receive.lag.map(|lag| lag.to_string())),
            self.replay.text.clone(),
            number(self.replay.lag.map(|lag| lag.to_string())),
        ];
        let extra = [
            (optional.pending, if self.pending_restart { "*" } else { "" }.to_owned()),
            (optional.reason, reason(&self.reasons)),
            (optional.scheduled, self.scheduled_restart.clone()),
            (optional.tags, self.tags.clone().map(tags).unwrap_or_default()),
        ];
        cells.extend(extra.into_iter().filter(|(shown, _)| *shown).map(|(_, cell)| cell));
        cells
    }
}

/// Which of the last four columns are shown: all with `-e`, else those in which a member with a host has something.
struct Optional {
    pending: bool,
    reason: bool,
    scheduled: bool,
    tags: bool,
}

impl Optional {
    fn of(rows: &[MemberTable], extended: bool) -> Optional {
        let any = |has: fn(&MemberTable) -> bool| extended || rows.iter().any(|row| !row.host.is_empty() && has(row));
        Optional {
            pending: any(|row| row.pending_restart),
            reason: any(|row| !row.reasons.is_empty()),
            scheduled: any(|row| !row.scheduled_restart.is_empty()),
            tags: any(|row| row.tags.is_some()),
        }
    }

    fn headings(&self) -> impl Iterator<Item = &'static str> {
        let all = [
            (self.pending, "Pending restart"),
            (self.reason, "Pending restart reason"),
            (self.scheduled, "Scheduled restart"),
            (self.tags, "Tags"),
        ];
        all.into_iter().filter(|(shown, _)| *shown).map(|(_, heading)| heading)
    }
}

/// A member key as it stands; of one that is no JSON object, what could be read.
fn key(read: &Read, name: &MemberName, member: &Member) -> Value {
    let known = || json!({"conn_url": member.conn_url, "api_url": member.api_url, "state": member.state});
    read.members.get(name).cloned().unwrap_or_else(known)
}

/// `standby_cluster` is in force in this `config` key.
pub(super) fn standby_cluster(config: Option<&Value>) -> bool {
    let standby = config.and_then(|config| config.get("standby_cluster"));
    let keys = ["host", "port", "restore_command"];
    keys.into_iter().any(|key| standby.and_then(|standby| standby.get(key)).is_some_and(truthy))
}

/// `synchronous_mode` of this `config` key: `on`, `quorum` or `off`.
pub(super) fn synchronous_mode(config: Option<&Value>) -> &'static str {
    let mode = match config.and_then(|config| config.get("synchronous_mode")) {
        Some(Value::Bool(on)) => on.to_string(),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::String(text)) => text.to_ascii_lowercase(),
        Some(Value::Null | Value::Array(_) | Value::Object(_)) | None => String::new(),
    };
    match mode.as_str() {
        "quorum" => "quorum",
        "on" | "true" | "yes" | "1" => "on",
        _ => "off",
    }
}

/// `pause` is on in this `config` key.
pub(super) fn paused(config: Option<&Value>) -> bool {
    match config.and_then(|config| config.get("pause")) {
        Some(Value::String(text)) => matches!(text.to_ascii_lowercase().as_str(), "on" | "true" | "yes" | "1"),
        Some(other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_))) => {
            truthy(other)
        }
        None => false,
    }
}

/// Whole MiB, half to even.
fn mebibytes(bytes: u64) -> u64 {
    let (whole, rest) = (bytes / MIB, bytes % MIB);
    let up = rest > MIB / 2 || (rest == MIB / 2 && whole % 2 == 1);
    whole.saturating_add(u64::from(up))
}

pub(super) fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(entries) => !entries.is_empty(),
    }
}

/// Host and port of `conn_url`, else of `conn_kwargs`; empty when there are none.
pub(super) fn address(json: &Value) -> (String, String) {
    if let Some(url) = json.get("conn_url").and_then(Value::as_str) {
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
        let first = place.split(',').next().unwrap_or_default();
        let (host, port) = match first.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port),
            Some(_) | None => (first, ""),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        return (host.to_owned(), if port.is_empty() { DEFAULT_PORT } else { port }.to_owned());
    }
    let part = |key: &str| match json.get("conn_kwargs").and_then(|parts| parts.get(key)) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_)) | None => String::new(),
    };
    let port = Some(part("port")).filter(|port| !port.is_empty()).unwrap_or_else(|| DEFAULT_PORT.to_owned());
    (part("host"), port)
}

fn reasons(reason: Option<&Value>) -> Vec<String> {
    let Some(Value::Object(entries)) = reason else { return Vec::new() };
    let side = |change: &Value, key: &str| match change.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_))) => other.to_string(),
    };
    entries
        .iter()
        .map(|(name, change)| format!("{name}: {}->{}", side(change, "old_value"), side(change, "new_value")))
        .collect()
}

fn short(line: &str) -> String {
    match line.split_once(": ") {
        Some((name, _)) if line.chars().count() > LONGEST_REASON => format!("{name}: [hidden - too long]"),
        Some(_) | None => line.to_owned(),
    }
}

fn scheduled_restart(json: Option<&Value>) -> String {
    let text = |key: &str| json.and_then(|json| json.get(key)).and_then(Value::as_str).unwrap_or_default();
    match (text("schedule"), text("postgres_version")) {
        ("", _) => String::new(),
        (schedule, "") => schedule.to_owned(),
        (schedule, version) => format!("{schedule} if version < {version}"),
    }
}

#[cfg(test)]
mod tests;
