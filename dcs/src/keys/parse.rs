//! From raw keys to a [`Read`].

use std::collections::BTreeMap;

use regent_core::cluster::{
    ClusterView, ConfigKey, Failover, FailsafeKey, HistoryLine, Initialize, LeaderKey, Member, Promise, PromiseKey,
    Schedule, Status, SyncState,
};
use regent_core::units::{Lsn, MemberName, Revision, Timeline, WalPosition};
use serde_json::Value;

use super::{
    CONFIG, FAILOVER, FAILSAFE, HISTORY, INITIALIZE, LEADER, MEMBERS, OPTIME, PROMISE, RawKey, STATUS, SYNC, lenient,
    member,
};
use crate::Read;

/// Parses every key of one consistent read. Never fails: see the module's head.
pub fn parse<'a>(revision: Revision, keys: impl IntoIterator<Item = RawKey<'a>>) -> Read {
    let mut parser = Parser {
        read: Read {
            view: ClusterView { revision, ..ClusterView::default() },
            config: None,
            history: None,
            members: BTreeMap::new(),
        },
        status: None,
        optime: None,
    };
    for key in keys {
        parser.key(&key);
    }
    parser.finish()
}

struct Parser {
    read: Read,
    /// `status` and `optime/leader` may come in any order; which one counts is known at the end.
    status: Option<Status>,
    optime: Option<Status>,
}

impl Parser {
    fn key(&mut self, key: &RawKey<'_>) {
        let Ok(name) = str::from_utf8(key.name) else {
            let name = String::from_utf8_lossy(key.name).into_owned();
            self.read.view.garbage.insert(name, "its name is not UTF-8".to_owned());
            return;
        };
        let view = &mut self.read.view;
        let parsed = match name {
            INITIALIZE => initialize(key, &mut view.initialize),
            LEADER => {
                // Whatever it says, there is a key: nobody may think the seat vacant.
                let name = MemberName(String::from_utf8_lossy(key.value).into_owned());
                let known = str::from_utf8(key.value).map(drop).map_err(|_| "not UTF-8".to_owned());
                view.leader = Some(LeaderKey { name, lease: key.lease, modified: key.modified });
                known
            }
            CONFIG => self.config(key),
            HISTORY => self.history(key.value),
            SYNC => {
                view.sync_seen = Some(key.modified);
                sync(key.value).map(|state| view.sync = state)
            }
            FAILOVER => failover(key).map(|request| view.failover = request),
            STATUS => {
                view.status_seen = Some(key.modified);
                status(key.value, self.status.get_or_insert_default())
            }
            OPTIME => optime(key.value).map(|optime| self.optime = Some(optime)),
            PROMISE => {
                let read = promise(key.value);
                view.unreadable_promise = read.is_err().then_some(key.modified);
                read.map(|promise| view.promise = Some(PromiseKey { promise, modified: key.modified }))
            }
            FAILSAFE => {
                let read = failsafe(key.value);
                let (members, known) =
                    read.map_or_else(|error| (BTreeMap::new(), Err(error)), |members| (members, Ok(())));
                view.failsafe = Some(FailsafeKey { members, modified: key.modified });
                known
            }
            _ => match name.strip_prefix(MEMBERS) {
                Some(name) if !name.is_empty() && !name.contains('/') => self.member(name, key.value),
                // Keys of the peer that nothing here reads, of a Citus group, or of somebody else.
                Some(_) | None => Ok(()),
            },
        };
        if let Err(reason) = parsed {
            self.read.view.garbage.insert(name.to_owned(), reason);
        }
    }

    fn finish(mut self) -> Read {
        self.read.view.status = self.status.or(self.optime).unwrap_or_default();
        self.read
    }

    fn config(&mut self, key: &RawKey<'_>) -> Result<(), String> {
        if key.value.is_empty() {
            self.read.view.config = ConfigKey::Empty(key.modified);
            return Ok(());
        }
        self.read.view.config = ConfigKey::Garbage(key.modified);
        let value = json(key.value)?;
        if !value.is_object() {
            return Err(format!("want a JSON object, have {}", kind(&value)));
        }
        self.read.view.config = ConfigKey::Valid(key.modified);
        self.read.config = Some(value);
        Ok(())
    }

    fn history(&mut self, value: &[u8]) -> Result<(), String> {
        let value = json(value)?;
        let lines = value.as_array().ok_or_else(|| format!("want a JSON array, have {}", kind(&value)))?;
        let parsed: Option<Vec<HistoryLine>> = lines.iter().map(history_line).collect();
        let good =
            parsed.ok_or_else(|| "want lines of 3 to 5 fields: timeline, position, reason, time, name".to_owned());
        self.read.history = Some(value);
        self.read.view.history = Some(good?);
        Ok(())
    }

    /// A member whose key cannot be understood is there, with empty data: it has no REST address, so it is never asked
    /// and never a candidate (dcs.md 3.3).
    fn member(&mut self, name: &str, value: &[u8]) -> Result<(), String> {
        let name = MemberName::from(name);
        if value.starts_with(b"postgres") {
            let url = str::from_utf8(value).map_err(|_| "not UTF-8".to_owned());
            let member = url.as_ref().map(|url| member::from_url(url)).unwrap_or_default();
            self.read.view.members.insert(name, member);
            return url.map(drop);
        }
        let object = json(value).and_then(|value| match value {
            Value::Object(_) => Ok(value),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                Err(format!("want a JSON object, have {}", kind(&value)))
            }
        });
        let fields = object.as_ref().ok().and_then(Value::as_object);
        self.read.view.members.insert(name.clone(), fields.map_or_else(Member::default, member::from_object));
        self.read.members.insert(name, object?);
        Ok(())
    }
}

fn json(value: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(value).map_err(|error| format!("not JSON: {error}"))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn initialize(key: &RawKey<'_>, into: &mut Initialize) -> Result<(), String> {
    let text = String::from_utf8_lossy(key.value);
    if text.is_empty() {
        *into = Initialize::InProgress { modified: key.modified, lease: key.lease };
        return Ok(());
    }
    match text.parse() {
        Ok(id) => {
            *into = Initialize::Known(id);
            Ok(())
        }
        Err(error) => {
            *into = Initialize::Garbage { text: text.chars().take(64).collect(), modified: key.modified };
            Err(error.to_string())
        }
    }
}

fn history_line(line: &Value) -> Option<HistoryLine> {
    let fields = line.as_array().filter(|fields| (3..=5).contains(&fields.len()))?;
    let parent = fields.first().and_then(lenient::unsigned).and_then(|number| u32::try_from(number).ok());
    Some(HistoryLine {
        parent: parent.map(Timeline)?,
        switched_at: fields.get(1).and_then(lenient::lsn)?,
        reason: fields.get(2)?.as_str()?.to_owned(),
        at: fields.get(3).and_then(lenient::text),
        promoted: fields.get(4).and_then(lenient::text).map(MemberName),
    })
}

/// What can be read of a half-good `status` is read: a missing slot position costs less than all of them.
fn status(value: &[u8], into: &mut Status) -> Result<(), String> {
    let value = json(value)?;
    let object = match &value {
        Value::Object(object) => object,
        Value::Number(_) | Value::String(_) => {
            into.optime = Some(lenient::lsn(&value).ok_or("want a JSON object or a position")?);
            return Ok(());
        }
        Value::Null | Value::Bool(_) | Value::Array(_) => {
            return Err(format!("want a JSON object, have {}", kind(&value)));
        }
    };
    let mut bad = Vec::new();
    if let Some(optime) = object.get("optime").filter(|optime| !optime.is_null()) {
        into.optime = lenient::lsn(optime);
        bad.extend(into.optime.is_none().then(|| "optime".to_owned()));
    }
    match object.get("slots").map(lenient::unwrapped) {
        None | Some(Value::Null) => {}
        Some(Value::Object(slots)) => {
            for (slot, position) in slots {
                match lenient::lsn(&position) {
                    Some(lsn) => drop(into.slots.insert(slot, lsn)),
                    None => bad.push(format!("slots.{slot}")),
                }
            }
        }
        Some(Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => bad.push("slots".to_owned()),
    }
    match object.get("retain_slots").map(lenient::unwrapped) {
        None | Some(Value::Null) => {}
        Some(Value::Array(slots)) => into.retain_slots = slots.iter().filter_map(lenient::text).collect(),
        Some(Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_)) => {
            bad.push("retain_slots".to_owned());
        }
    }
    if bad.is_empty() { Ok(()) } else { Err(format!("cannot read {}", bad.join(", "))) }
}

fn optime(value: &[u8]) -> Result<Status, String> {
    let number = str::from_utf8(value).ok().and_then(|text| text.trim().parse().ok());
    let lsn = number.map(Lsn).ok_or("want a decimal position")?;
    Ok(Status { optime: Some(lsn), ..Status::default() })
}

/// Without a leader it is not active, and nothing else in it counts.
fn sync(value: &[u8]) -> Result<Option<SyncState>, String> {
    let value = json(value)?;
    let object = value.as_object().ok_or_else(|| format!("want a JSON object, have {}", kind(&value)))?;
    let Some(leader) = object.get("leader").and_then(lenient::text).map(MemberName) else { return Ok(None) };
    let names = object.get("sync_standby").and_then(lenient::text).unwrap_or_default();
    let standbys = names.split(',').map(str::trim).filter(|name| !name.is_empty()).map(MemberName::from).collect();
    let quorum = object.get("quorum").and_then(lenient::unsigned).and_then(|number| usize::try_from(number).ok());
    Ok(Some(SyncState { leader, standbys, quorum: quorum.unwrap_or(0) }))
}

/// `{}` asks for nothing, and so does whatever cannot be understood. `leader:candidate` is the form of old agents.
fn failover(key: &RawKey<'_>) -> Result<Option<Failover>, String> {
    let name = |text: &str| (!text.is_empty()).then(|| MemberName::from(text));
    let request = match json(key.value) {
        Ok(Value::Object(object)) => {
            let text = |field: &str| object.get(field).and_then(lenient::text);
            let schedule =
                text("scheduled_at").map(|text| super::schedule(&text).unwrap_or(Schedule { at: None, text }));
            let (leader, candidate) = (text("leader").map(MemberName), text("member").map(MemberName));
            Failover { leader, candidate, schedule, modified: key.modified }
        }
        Ok(other) => return Err(format!("want a JSON object, have {}", kind(&other))),
        Err(error) => {
            let text = str::from_utf8(key.value).map_err(|_| "not UTF-8".to_owned())?;
            let (leader, candidate) = text.trim().split_once(':').ok_or(error)?;
            Failover { leader: name(leader), candidate: name(candidate), schedule: None, modified: key.modified }
        }
    };
    Ok((request.leader.is_some() || request.candidate.is_some()).then_some(request))
}

/// All or nothing: half a topology would leave out somebody who must be asked.
fn failsafe(value: &[u8]) -> Result<BTreeMap<MemberName, String>, String> {
    let value = json(value)?;
    let object = value.as_object().ok_or_else(|| format!("want a JSON object, have {}", kind(&value)))?;
    let member = |(name, url): (&String, &Value)| {
        let url = url.as_str().ok_or_else(|| format!("the address of {name} is not text"))?;
        Ok((MemberName(name.clone()), url.to_owned()))
    };
    object.iter().map(member).collect()
}

/// Ours alone, and what safety rests on: nothing lenient here. A promise that cannot be read cannot be replaced either,
/// as the next one would have to name its revision.
fn promise(value: &[u8]) -> Result<Promise, String> {
    let value = json(value)?;
    let field = |name: &str| value.get(name).ok_or_else(|| format!("{name} is missing"));
    let number = |name: &str| field(name)?.as_u64().ok_or_else(|| format!("{name} is not a number"));
    let timeline =
        |name| Ok::<_, String>(Timeline(u32::try_from(number(name)?).map_err(|_| format!("{name} is too large"))?));
    let holder = field("holder")?.as_str().filter(|name| !name.is_empty()).ok_or("holder is not a name")?;
    let position = WalPosition { timeline: timeline("timeline")?, lsn: Lsn(number("lsn")?) };
    Ok(Promise { epoch: number("epoch")?, position, parent: timeline("parent")?, holder: MemberName::from(holder) })
}

#[cfg(test)]
mod tests;
