//! `POST` and `DELETE /restart`, `POST /reinitialize`, `POST /reload` (rest-api.md sections 13, 14, 16): checked, handed to the
//! loop, waited for.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use regent_core::cluster::Schedule;
use regent_core::request::{Request, Restart};
use regent_core::units::Instant;
use serde_json::{Map, Value};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::operations::{Came, End, Ended};
use super::requests::{Refusal, moment, next};
use super::{App, Command};
use crate::agent::{self, ALREADY_SCHEDULED};
use crate::journal::{Event, Journal};
use crate::status::Status;

/// The loop takes a command within this time.
const TAKEN: Duration = Duration::from_secs(10);
/// ... and shows what it took within this.
const SHOWN: Duration = Duration::from_secs(2);
/// A start may take this long where nobody says otherwise (`primary_start_timeout`).
const START: Duration = Duration::from_secs(300);

fn refusal<T>(status: StatusCode, text: impl Into<String>) -> Result<T, Refusal> {
    Err((status, text.into()))
}

fn came(outcome: Result<Came, Refusal>) -> Came {
    outcome.unwrap_or_else(|(status, text)| Came::to(Ended::Refused, status, text))
}

/// Hands a request to the loop; what comes back is its outcome, as far as the loop tells it.
fn ask(app: &App, request: Request) -> Result<oneshot::Receiver<Result<(), String>>, Refusal> {
    let (reply, outcome) = oneshot::channel();
    let command = Command::Loop(agent::Command::Request { request, reply });
    let busy = (StatusCode::SERVICE_UNAVAILABLE, "the agent has too many commands to carry out; try again".to_owned());
    app.commands.try_send(command).map_err(|_| busy)?;
    Ok(outcome)
}

/// `POST /restart` with this body.
pub(super) async fn restart(app: Arc<App>, body: Map<String, Value>) -> Came {
    came(restarted(&app, &body).await)
}

async fn restarted(app: &Arc<App>, body: &Map<String, Value>) -> Result<Came, Refusal> {
    let busy = StatusCode::SERVICE_UNAVAILABLE;
    let status = app.status.borrow().clone();
    if body.contains_key("schedule") && status.pause {
        return refusal(StatusCode::INTERNAL_SERVER_ERROR, "Can't schedule restart in the paused state");
    }
    let mut restart = read(body)?;
    let timeout_given = restart.timeout;
    if restart.schedule.is_some() {
        restart.started_at = started_at(&status);
        return match timeout(TAKEN, ask(app, Request::Restart(restart))?).await {
            Ok(Ok(Ok(()))) => {
                let taken = (app.clock)();
                shown(app, |status| status.scheduled_restart.is_some()).await;
                let fires = settles(Arc::clone(app), taken, started_at(&status), "restarted");
                Ok(Came::later(StatusCode::ACCEPTED, "Restart scheduled", Box::pin(fires)))
            }
            Ok(Ok(Err(text))) if text == ALREADY_SCHEDULED => refusal(StatusCode::CONFLICT, text),
            Ok(Ok(Err(text))) => refusal(busy, text),
            Ok(Err(_)) | Err(_) => refusal(busy, "the agent does not take commands"),
        };
    }
    if let Some(action) = &status.action {
        return refusal(busy, format!("{action} already in progress"));
    }
    match ask(app, Request::Restart(restart))?.await {
        Ok(Ok(())) => {
            let mut up = Box::pin(comes_up(Arc::clone(app), status.at));
            Ok(match timeout(timeout_given.unwrap_or(START), &mut up).await {
                Ok((ended, text)) => Came::to(ended, StatusCode::OK, text),
                Err(_) => Came::later(busy, "postgres is still starting", up),
            })
        }
        Ok(Err(text)) if is_ours(&text) => refusal(busy, text),
        Ok(Err(text)) => {
            tracing::warn!("the restart that was asked for failed: {text}");
            Ok(Came { end: Ok((Ended::Failed, text)), ..Came::to(Ended::Failed, busy, "restart failed") })
        }
        Err(_) => Ok(Came::to(Ended::Failed, busy, "restart failed")),
    }
}

fn started_at(status: &Status) -> Option<String> {
    status.sql.as_ref().map(|sql| sql.started_at.clone())
}

/// Words of the contract that clients look for.
fn is_ours(text: &str) -> bool {
    text.ends_with(" already in progress")
        || matches!(text, "restart conditions are not satisfied" | "postgres is still starting")
}

/// It was started; does it accept connections?
async fn comes_up(app: Arc<App>, asked: Instant) -> End {
    let mut published = app.status.clone();
    loop {
        let status = published.borrow_and_update().clone();
        if status.at > asked && status.sql.is_some() && status.action.is_none() {
            return (Ended::Done, "restarted successfully".to_owned());
        }
        next(&mut published).await;
    }
}

/// What the loop took at this moment is neither planned nor under way any more, and the server answers: `done` if it is not
/// the server that it was.
async fn settles(app: Arc<App>, taken: Instant, before: Option<String>, done: &str) -> End {
    let begun = *app.journal.news().borrow();
    let mut published = app.status.clone();
    loop {
        let status = published.borrow_and_update().clone();
        let planned = status.scheduled_restart.is_some() || status.action.is_some();
        if status.at > taken && !planned && status.sql.is_some() {
            return if started_at(&status) == before {
                (Ended::Failed, refused_since(&app.journal, begun))
            } else {
                (Ended::Done, done.to_owned())
            };
        }
        next(&mut published).await;
    }
}

/// Why the loop refused what it had taken.
fn refused_since(journal: &Journal, begun: u64) -> String {
    let (since, _) = journal.after(begun);
    let refusal = since.iter().rev().find_map(|entry| match &entry.event {
        Event::Decision(decision) => decision.plan.refuse.clone(),
        Event::Change { .. } | Event::Operation { .. } => None,
    });
    refusal.unwrap_or_else(|| "it was taken back".to_owned())
}

/// The filters, in the order of the request; the first error is reported (14.1).
fn read(body: &Map<String, Value>) -> Result<Restart, Refusal> {
    let mut restart = Restart::default();
    let bad = |text: String| (StatusCode::BAD_REQUEST, text);
    for (key, value) in body {
        match key.as_str() {
            "schedule" => {
                let (text, at) = moment(value, "restart")?;
                restart.schedule = Some(Schedule { at: Some(at), text });
            }
            "role" => {
                let known = value.as_str().filter(|role| matches!(*role, "primary" | "standby_leader" | "replica"));
                let wrong = "PostgreSQL role should be either primary, standby_leader, or replica";
                restart.role = Some(known.ok_or_else(|| bad(wrong.to_owned()))?.to_owned());
            }
            "postgres_version" => restart.older_than = Some(version(value).map_err(bad)?),
            "timeout" => {
                let wrong = || bad("Timeout should be a positive number of seconds".to_owned());
                let seconds = match value {
                    Value::String(text) => seconds_text(text),
                    Value::Number(number) => number.as_i64(),
                    Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
                };
                let seconds = seconds.and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0);
                restart.timeout = Some(Duration::from_secs(seconds.ok_or_else(wrong)?));
            }
            // A false is no wish (W20).
            "restart_pending" => restart.pending = *value != Value::Bool(false),
            other => return Err(bad(format!("Unknown filter for the scheduled restart: {other}"))),
        }
    }
    Ok(restart)
}

/// `60`, `60s`, `1min`.
fn seconds_text(text: &str) -> Option<i64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let factor = match unit.trim() {
        "" | "s" => 1,
        "min" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    number.parse::<i64>().ok()?.checked_mul(factor)
}

/// `X.Y` with X of 10 or more, or `X.Y.Z`.
fn version(value: &Value) -> Result<(String, u32), String> {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let shape = || format!("Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted: {text}");
    let parts: Option<Vec<u32>> = text.split('.').map(|part| part.parse().ok().filter(|n| *n < 1000)).collect();
    let number = match parts.ok_or_else(|| format!("Invalid PostgreSQL version: {text}"))?.as_slice() {
        [major, minor] if *major >= 10 => major * 10_000 + minor,
        [major, minor, patch] => major * 10_000 + minor * 100 + patch,
        _ => return Err(shape()),
    };
    Ok((text, number))
}

/// Who asks for the status next shall not see the one of before. A late turn of the loop is told by those that follow.
async fn shown(app: &App, accepted: impl Fn(&Status) -> bool) {
    let mut published = app.status.clone();
    drop(timeout(SHOWN, published.wait_for(|status| accepted(status))).await);
}

/// `DELETE /restart`
pub(super) async fn unschedule(app: Arc<App>) -> Came {
    let (reply, outcome) = oneshot::channel();
    let sent = app.commands.try_send(Command::Loop(agent::Command::Unschedule { reply })).is_ok();
    match timeout(TAKEN, outcome).await {
        Ok(Ok(true)) if sent => {
            shown(&app, |status| status.scheduled_restart.is_none()).await;
            Came::to(Ended::Done, StatusCode::OK, "scheduled restart deleted")
        }
        Ok(Ok(false)) if sent => Came::to(Ended::Refused, StatusCode::NOT_FOUND, "no restarts are scheduled"),
        Ok(_) | Err(_) => Came::to(Ended::Failed, StatusCode::SERVICE_UNAVAILABLE, "the agent does not take commands"),
    }
}

/// `POST /reload`: answered at once.
pub(super) async fn reload(app: Arc<App>) -> Came {
    let (reply, outcome) = oneshot::channel();
    let refused = |text: &str| Came::to(Ended::Refused, StatusCode::SERVICE_UNAVAILABLE, text);
    match app.commands.try_send(Command::Loop(agent::Command::Reload { reply: Some(reply) })) {
        Ok(()) => {
            let end = async {
                match outcome.await {
                    Ok(Ok(())) => (Ended::Done, "configuration reloaded".to_owned()),
                    Ok(Err(problem)) => (Ended::Failed, format!("the old configuration stays in force: {problem}")),
                    Err(_) => (Ended::Failed, "the agent is shutting down".to_owned()),
                }
            };
            Came::later(StatusCode::ACCEPTED, "reload scheduled", Box::pin(end))
        }
        Err(TrySendError::Full(_)) => refused("the agent has too many commands to carry out; try again"),
        Err(TrySendError::Closed(_)) => refused("the agent is shutting down"),
    }
}

/// `POST /reinitialize` with this body.
pub(super) async fn reinitialize(app: Arc<App>, body: Map<String, Value>) -> Came {
    came(reinitialized(&app, &body).await)
}

async fn reinitialized(app: &Arc<App>, body: &Map<String, Value>) -> Result<Came, Refusal> {
    let wish = |key: &str| body.get(key).is_some_and(on);
    let (force, from_leader) = (wish("force"), wish("from_leader") || wish("from-leader"));
    let status = app.status.borrow().clone();
    let no = |text: &str| refusal(StatusCode::SERVICE_UNAVAILABLE, text);
    let Some(view) = &status.view else { return no("etcd does not answer; nothing was done") };
    match &view.leader {
        None => return no("Cluster has no leader, can not reinitialize"),
        Some(leader) if leader.name.as_str() == status.name => return no("I am the leader, can not reinitialize"),
        Some(_) => {}
    }
    if let Some(action) = status.action.as_ref().filter(|_| !force) {
        return no(&format!("{action} already in progress"));
    }
    match timeout(TAKEN, ask(app, Request::Reinitialize { from_leader, force })?).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(text))) => return no(&text),
        Ok(Err(_)) | Err(_) => return no("the agent does not take commands"),
    }
    let taken = (app.clock)();
    shown(app, |status| status.action.is_some()).await;
    let copied = settles(Arc::clone(app), taken, started_at(&status), "copied anew, and the server answers");
    Ok(Came::later(StatusCode::OK, "reinitialize started", Box::pin(copied)))
}

/// As Python's readers of flags take it.
fn on(value: &Value) -> bool {
    match value {
        Value::Bool(on) => *on,
        Value::Number(number) => number.as_i64() == Some(1),
        Value::String(text) => matches!(text.to_ascii_lowercase().as_str(), "true" | "on" | "yes" | "1"),
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}
