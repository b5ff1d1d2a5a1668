//! `PATCH` and `PUT /config` (rest-api.md section 12): read, changed, checked, and written only over what was read.

use axum::response::Response;
use http::StatusCode;
use regent_core::units::Revision;
use regent_dcs::{Read, Write, Written};
use serde_json::{Map, Value};

use super::requests::{look, order};
use super::{App, json, wire};
use crate::config::{self, ConfigErrors, LocalConfig};

/// How often a change is made again over what somebody else wrote meanwhile (W17).
const TRIES: usize = 5;

/// What to do with the document that stands there.
#[derive(Clone, Copy)]
pub(super) enum Change {
    /// Merge the body into it.
    Patch,
    /// Put the body in its place.
    Replace,
}

/// The answer to a call with this body.
pub(super) async fn change(app: &App, change: Change, body: &Map<String, Value>) -> Response {
    let no = |status, why: &str| wire::error_page(status, why);
    for _ in 0..TRIES {
        let Some(read) = look(app).await else {
            return no(StatusCode::SERVICE_UNAVAILABLE, "etcd does not answer; nothing was changed");
        };
        let Some((seen, wanted)) = wanted(&read, change, body) else {
            return no(StatusCode::SERVICE_UNAVAILABLE, "there is no config key in etcd that could be changed");
        };
        let wanted = Value::Object(wanted);
        if read.config.as_ref() == Some(&wanted) {
            return wire::json(StatusCode::OK, json::text(&wanted));
        }
        let local = app.policy.borrow().config.clone();
        if let Some(Err(problems)) = local.map(|local| judge(&local, read.config.as_ref(), &wanted)) {
            return no(StatusCode::BAD_REQUEST, &format!("nothing was changed: {problems}"));
        }
        match order(app, Write::PutConfig { config: wanted.clone(), seen }).await {
            Some(Written::Done(_)) => return wire::json(StatusCode::OK, json::text(&wanted)),
            Some(Written::Refused) => {}
            None => return no(StatusCode::BAD_GATEWAY, "etcd did not say whether the change was written; look again"),
        }
    }
    no(StatusCode::CONFLICT, "somebody else keeps changing the configuration; nothing was changed")
}

/// What is wrong with a document. What was wrong before is left to whoever put it there: another key can be changed all the same.
fn judge(local: &LocalConfig, before: Option<&Value>, wanted: &Value) -> Result<(), ConfigErrors> {
    let old = before.and_then(|before| config::effective(local, Some(before)).ok()).map(|all| all.invalid);
    let old = old.unwrap_or_default();
    let new = config::effective(local, Some(wanted))?.invalid;
    let new: Vec<_> = new.into_iter().filter(|problem| !old.contains(problem)).collect();
    if new.is_empty() { Ok(()) } else { Err(ConfigErrors(new)) }
}

/// The document to write, and the revision of what it replaces; `None`: there is nothing to merge into.
fn wanted(read: &Read, change: Change, body: &Map<String, Value>) -> Option<(Option<Revision>, Map<String, Value>)> {
    let seen = read.view.config.modified();
    match change {
        Change::Replace => Some((seen, body.clone())),
        Change::Patch => {
            let mut document = read.config.as_ref()?.as_object()?.clone();
            merge(&mut document, body);
            Some((seen, document))
        }
    }
}

/// `null` removes, an object merges into an object, anything else replaces; new keys go to the end.
fn merge(document: &mut Map<String, Value>, changes: &Map<String, Value>) {
    for (key, change) in changes {
        match (document.get_mut(key), change) {
            (_, Value::Null) => drop(document.shift_remove(key)),
            (Some(Value::Object(old)), Value::Object(changes)) => merge(old, changes),
            (old, Value::Object(changes)) => {
                let mut fresh = Map::new();
                merge(&mut fresh, changes);
                match old {
                    Some(old) => *old = Value::Object(fresh),
                    None => drop(document.insert(key.clone(), Value::Object(fresh))),
                }
            }
            (Some(old), Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
                *old = change.clone();
            }
            (None, Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
                document.insert(key.clone(), change.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_patch_merges_removes_and_keeps_the_order() {
        let old = json!({"ttl": 30, "postgresql": {"parameters": {"a": 1, "b": 2}, "use_slots": true}, "pause": true});
        for (patch, new) in [
            (
                json!({"ttl": 20}),
                r#"{"ttl":20,"postgresql":{"parameters":{"a":1,"b":2},"use_slots":true},"pause":true}"#,
            ),
            (
                json!({"pause": null, "no": null}),
                r#"{"ttl":30,"postgresql":{"parameters":{"a":1,"b":2},"use_slots":true}}"#,
            ),
            (
                json!({"ttl": null, "postgresql": {"parameters": {"a": null, "c": {"d": null}}}}),
                r#"{"postgresql":{"parameters":{"b":2,"c":{}},"use_slots":true},"pause":true}"#,
            ),
            (json!({"ttl": {"x": 1}, "postgresql": 1}), r#"{"ttl":{"x":1},"postgresql":1,"pause":true}"#),
            (
                json!({"postgresql": {"parameters": {"a": null, "b": null}}, "pause": null, "new": [null]}),
                r#"{"ttl":30,"postgresql":{"parameters":{},"use_slots":true},"new":[null]}"#,
            ),
        ] {
            let mut document = old.as_object().unwrap().clone();
            merge(&mut document, patch.as_object().unwrap());
            assert_eq!(Value::Object(document).to_string(), new, "{patch}");
        }
    }
}
