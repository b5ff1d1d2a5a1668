//! The key layout and the JSON in each key (contract `dcs.md` sections 1 and 3): parsing, and encoding of what we write.
//!
//! Parsing never fails and never panics. What cannot be understood is named in [`ClusterView::garbage`] and hides
//! nothing else: an agent that one bad key can blind is an agent that one typo can kill.
//!
//! [`ClusterView::garbage`]: regent_core::cluster::ClusterView::garbage

use regent_core::cluster::{FailsafeKey, HistoryLine, Promise, Status, SyncState};
use regent_core::units::{LeaseId, MemberName, Revision};
use serde_json::{Map, Value, json};

mod lenient;
mod member;
mod parse;
mod schedule;

pub use parse::parse;
pub use schedule::{ScheduleError, schedule};

/// Cluster identity.
pub const INITIALIZE: &str = "initialize";
/// The leader lock.
pub const LEADER: &str = "leader";
/// Dynamic configuration.
pub const CONFIG: &str = "config";
/// Who has every acknowledged commit.
pub const SYNC: &str = "sync";
/// A switchover or failover that was asked for.
pub const FAILOVER: &str = "failover";
/// Timeline history.
pub const HISTORY: &str = "history";
/// What the leader says of its log.
pub const STATUS: &str = "status";
/// Legacy twin of `status.optime`, read when `status` is missing.
pub const OPTIME: &str = "optime/leader";
/// Regent's own key: who was allowed to write where. The peer ignores unknown keys (dcs.md 1).
pub const PROMISE: &str = "regent/promise";
/// Failsafe topology.
pub const FAILSAFE: &str = "failsafe";
/// What the key of every member begins with.
pub const MEMBERS: &str = "members/";

/// The key of a member, relative to the base path.
#[must_use]
pub fn member(name: &MemberName) -> String {
    format!("{MEMBERS}{name}")
}

/// Does a change of this key wake an agent? Leadership, identity, configuration and requests do, and so does a member that
/// comes or goes. Not what members and the leader say of themselves every turn (dcs.md 5): agents that wake each other with
/// their own reports never sleep.
#[must_use]
pub fn wakes(name: &str, came_or_went: bool) -> bool {
    match name {
        STATUS | HISTORY | OPTIME | PROMISE | FAILSAFE => false,
        _ if name.starts_with(MEMBERS) => came_or_went,
        _ => true,
    }
}

/// Where the keys of one cluster live: `/` + namespace + `/` + scope, every run of slashes made one (dcs.md 1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BasePath(String);

impl BasePath {
    /// Joins namespace (default of the field: `service`) and scope.
    #[must_use]
    pub fn new(namespace: &str, scope: &str) -> BasePath {
        let parts = namespace.split('/').chain(scope.split('/')).filter(|part| !part.is_empty());
        BasePath(parts.flat_map(|part| ["/", part]).collect())
    }

    /// The whole key for a name relative to the base path.
    #[must_use]
    pub fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.0)
    }

    /// What every key of the cluster begins with; never a prefix of another cluster's keys, as it ends in a slash.
    #[must_use]
    pub fn prefix(&self) -> String {
        self.key("")
    }

    /// The part of `key` below the base path; `None` if it is not below it.
    #[must_use]
    pub fn relative<'a>(&self, key: &'a [u8]) -> Option<&'a [u8]> {
        key.strip_prefix(self.0.as_bytes())?.strip_prefix(b"/")
    }
}

/// One key as the store gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawKey<'a> {
    /// Its name, relative to the base path.
    pub name: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
    /// The lease it hangs on.
    pub lease: Option<LeaseId>,
    /// Revision of its last change.
    pub modified: Revision,
}

/// The value of `status`: compact, in the peer's order of fields, unknown parts left out (dcs.md 3.8).
#[must_use]
pub fn encode_status(status: &Status) -> String {
    let mut object = Map::new();
    if let Some(optime) = status.optime {
        object.insert("optime".to_owned(), json!(optime.0));
    }
    if !status.slots.is_empty() {
        let slots: Map<String, Value> = status.slots.iter().map(|(slot, lsn)| (slot.clone(), json!(lsn.0))).collect();
        object.insert("slots".to_owned(), Value::Object(slots));
    }
    if !status.retain_slots.is_empty() {
        object.insert("retain_slots".to_owned(), json!(status.retain_slots));
    }
    Value::Object(object).to_string()
}

/// The value of `history`: one array per line, its unknown tail left out (dcs.md 3.7).
#[must_use]
pub fn encode_history(lines: &[HistoryLine]) -> String {
    let line = |line: &HistoryLine| {
        let mut fields = vec![json!(line.parent.0), json!(line.switched_at.0), json!(line.reason)];
        match (&line.at, &line.promoted) {
            (None, None) => {}
            (Some(at), None) => fields.push(json!(at)),
            (at, Some(promoted)) => fields.extend([json!(at), json!(promoted.as_str())]),
        }
        Value::Array(fields)
    };
    Value::Array(lines.iter().map(line).collect()).to_string()
}

/// The value of `sync` (dcs.md 3.6).
#[must_use]
pub fn encode_sync(sync: &SyncState) -> String {
    let names: Vec<&str> = sync.standbys.iter().map(MemberName::as_str).collect();
    let standbys = if names.is_empty() { Value::Null } else { json!(names.join(",")) };
    json!({ "leader": sync.leader.as_str(), "quorum": sync.quorum, "sync_standby": standbys }).to_string()
}

/// The value of `failover` (dcs.md 3.5).
#[must_use]
pub fn encode_failover(leader: Option<&MemberName>, candidate: Option<&MemberName>, at: Option<&str>) -> String {
    let mut object = Map::new();
    let fields = [("leader", leader.map(MemberName::as_str)), ("member", candidate.map(MemberName::as_str))];
    for (field, value) in fields.into_iter().chain([("scheduled_at", at)]) {
        if let Some(value) = value {
            object.insert(field.to_owned(), json!(value));
        }
    }
    Value::Object(object).to_string()
}

/// The value of `failsafe`: `api_url` by member (dcs.md 3.9).
#[must_use]
pub fn encode_failsafe(key: &FailsafeKey) -> String {
    let members: Map<String, Value> = key.members.iter().map(|(name, url)| (name.to_string(), json!(url))).collect();
    Value::Object(members).to_string()
}

/// The value of `regent/promise`.
#[must_use]
pub fn encode_promise(promise: &Promise) -> String {
    let Promise { epoch, position, parent, holder } = promise;
    let (timeline, lsn) = (position.timeline.0, position.lsn.0);
    json!({ "epoch": epoch, "timeline": timeline, "lsn": lsn, "parent": parent.0, "holder": holder.as_str() })
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_path_has_single_slashes() {
        for (namespace, scope, base) in [
            ("service", "demo", "/service/demo"),
            ("/service/", "demo", "/service/demo"),
            ("//service", "demo", "/service/demo"),
            ("/", "demo", "/demo"),
            ("/a//b/", "/demo/", "/a/b/demo"),
        ] {
            let path = BasePath::new(namespace, scope);
            assert_eq!(path, BasePath(base.to_owned()), "{namespace:?}");
            assert_eq!(path.prefix(), format!("{base}/"));
            assert_eq!(path.key(LEADER), format!("{base}/leader"));
        }
    }

    #[test]
    fn only_keys_below_the_base_path_are_ours() {
        let path = BasePath::new("service", "demo");
        for (key, relative) in [
            ("/service/demo/leader", Some("leader")),
            ("/service/demo/members/n1", Some("members/n1")),
            ("/service/demo", None),
            ("/service/demo2/leader", None),
            ("/service", None),
        ] {
            assert_eq!(path.relative(key.as_bytes()), relative.map(str::as_bytes), "{key}");
        }
    }
}
