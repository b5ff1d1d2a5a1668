//! `POST /switchover`, `POST /failover` and `DELETE /switchover` (rest-api.md section 15): a request is checked, written into
//! etcd's `failover` key, and its outcome is read off the Status. What comes of it is the loops' business.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use regent_core::cluster::ClusterView;
use regent_core::config::SyncMode;
use regent_core::peers::{PeerReply, Question};
use regent_core::sync::lists;
use regent_core::units::{MemberName, Revision};
use regent_dcs::keys::{ScheduleError, schedule};
use regent_dcs::{Read, Write, Written};
use serde_json::{Map, Value};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::operations::{Came, End, Ended};
use super::{App, Command, wire};
use crate::peers;
use crate::status::Status;

/// How long possible targets are asked (rest-api.md 15.3).
const ASK: Duration = Duration::from_secs(2);
/// How long a write to etcd may take.
const WRITE: Duration = Duration::from_secs(10);
/// How far the clocks of two members may be apart.
const SKEW: Duration = Duration::from_secs(5);

/// Which of the two calls.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Switchover,
    Failover,
}

impl Action {
    fn word(self) -> &'static str {
        match self {
            Action::Switchover => "switchover",
            Action::Failover => "failover",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Action::Switchover => "Switchover",
            Action::Failover => "Failover",
        }
    }
}

pub(super) type Refusal = (StatusCode, String);

struct Asked {
    action: Action,
    leader: Option<MemberName>,
    candidate: Option<MemberName>,
    /// In the form of the contract, and on the wall clock.
    scheduled_at: Option<(String, Duration)>,
}

/// What a request with this body comes to.
pub(super) async fn request(app: Arc<App>, action: Action, body: Map<String, Value>) -> Came {
    match carry_out(&app, action, &body).await {
        Ok(came) => came,
        Err((status, text)) => Came::to(Ended::Refused, status, text),
    }
}

async fn carry_out(app: &Arc<App>, action: Action, body: &Map<String, Value>) -> Result<Came, Refusal> {
    let status = app.status.borrow().clone();
    let asked = read(action, body, status.pause)?;
    let Some(view) = &status.view else { return Err(unreachable()) };
    if asked.scheduled_at.is_none() {
        feasible(&asked, view, status.synchronous_mode).await?;
    }
    let (leader, candidate) = (asked.leader.clone(), asked.candidate.clone());
    let scheduled_at = asked.scheduled_at.as_ref().map(|(text, _)| text.clone());
    let Some(Written::Done(written)) = order(app, Write::RequestFailover { leader, candidate, scheduled_at }).await
    else {
        return Err((StatusCode::SERVICE_UNAVAILABLE, "failed to write failover key into DCS".to_owned()));
    };
    let before = view.leader.as_ref().map(|key| key.name.clone());
    if let Some((_, at)) = asked.scheduled_at {
        let fires = fires(Arc::clone(app), asked, before, written, at);
        return Ok(Came::later(StatusCode::ACCEPTED, "Switchover scheduled", Box::pin(fires)));
    }
    let patience = 2 * status.loop_wait.max(Duration::from_secs(10));
    let unknown = format!("{} status unknown", asked.action.title());
    let mut outcome = Box::pin(outcome(Arc::clone(app), asked, before, written));
    Ok(match timeout(patience, &mut outcome).await {
        Ok((Ended::Done, text)) => Came::to(Ended::Done, StatusCode::OK, text),
        Ok((ended, text)) => Came::to(ended, StatusCode::SERVICE_UNAVAILABLE, text),
        Err(_) => Came::later(StatusCode::SERVICE_UNAVAILABLE, &unknown, outcome),
    })
}

fn unreachable() -> Refusal {
    (StatusCode::SERVICE_UNAVAILABLE, "etcd does not answer; nothing was done".to_owned())
}

/// The decisions of 15.2 that need nothing but the request.
fn read(action: Action, body: &Map<String, Value>, paused: bool) -> Result<Asked, Refusal> {
    let name = |key: &str| body.get(key).and_then(Value::as_str).filter(|name| !name.is_empty()).map(MemberName::from);
    let (leader, candidate) = (name("leader"), name("candidate").or_else(|| name("member")));
    let when = body.get("scheduled_at").filter(|when| !when.is_null() && when.as_str() != Some(""));
    let bad = |text: &str| Err((StatusCode::BAD_REQUEST, text.to_owned()));
    match action {
        Action::Failover if candidate.is_none() => {
            return bad("Failover could be performed only to a specific candidate");
        }
        Action::Switchover if leader.is_none() => {
            return bad("Switchover could be performed only from a specific leader");
        }
        Action::Failover if when.is_some() => return bad("Failover can't be scheduled"),
        Action::Failover | Action::Switchover => {}
    }
    if when.is_some() && paused {
        return bad("Can't schedule switchover in the paused state");
    }
    let scheduled_at = when.map(|when| moment(when, "switchover")).transpose()?;
    if paused && candidate.is_none() {
        return bad("Switchover is possible only to a specific candidate in a paused state");
    }
    if leader.is_some() && leader == candidate {
        return bad("Switchover target and source are the same");
    }
    let action = if leader.is_some() { Action::Switchover } else { action };
    Ok(Asked { action, leader, candidate, scheduled_at })
}

/// 15.5: a time with a zone, and not over yet: its text in the form of the contract, and what it is on the wall clock.
pub(super) fn moment(when: &Value, action: &str) -> Result<(String, Duration), Refusal> {
    let unreadable = "Unable to parse scheduled timestamp. It should be in an unambiguous format, e.g. ISO 8601";
    let unprocessable = |text: &str| (StatusCode::UNPROCESSABLE_ENTITY, text.to_owned());
    let read = when.as_str().ok_or(ScheduleError::Unreadable).and_then(schedule).map_err(|error| match error {
        ScheduleError::Unreadable => unprocessable(unreadable),
        ScheduleError::NoZone => {
            (StatusCode::BAD_REQUEST, format!("Timezone information is mandatory for the scheduled {action}"))
        }
    })?;
    let at = read.at.filter(|at| *at >= wall());
    Ok((read.text, at.ok_or_else(|| unprocessable(&format!("Cannot schedule {action} in the past")))?))
}

/// 15.3: could it come true?
async fn feasible(asked: &Asked, view: &ClusterView, mode: SyncMode) -> Result<(), Refusal> {
    let no = |text: String| Err((StatusCode::PRECONDITION_FAILED, text));
    let holder = view.leader.as_ref().map(|key| &key.name);
    if asked.leader.is_some() && asked.leader.as_ref() != holder {
        return no("leader name does not match".to_owned());
    }
    let word = asked.action.word();
    let sync = view.sync.as_ref().filter(|_| mode != SyncMode::Off);
    let listed = |name: &MemberName| sync.is_none_or(|sync| lists(&sync.standbys, name));
    if let Some(candidate) = &asked.candidate {
        if asked.action == Action::Switchover && mode == SyncMode::On && !listed(candidate) {
            return no("candidate name does not match with sync_standby".to_owned());
        }
        if !view.members.contains_key(candidate) {
            return no("candidate does not exists".to_owned());
        }
    } else if sync.is_some_and(|sync| !view.members.keys().any(|name| lists(&sync.standbys, name))) {
        return no(format!("{word} is not possible: can not find sync_standby"));
    } else if view.members.keys().all(|name| Some(name) == holder) {
        return no(format!("{word} is not possible: cluster does not have members except leader"));
    }
    let targets = view.members.iter().filter(|(name, member)| {
        let meant = asked.candidate.as_ref().map_or(Some(*name) != holder, |candidate| candidate == *name);
        let complete = asked.candidate.is_some() || listed(name);
        meant && complete && !member.tags.nofailover
    });
    let question = |url: &String| Question { url: url.clone(), within: ASK };
    let whom: BTreeMap<_, _> =
        targets.filter_map(|(name, m)| Some((name.clone(), m.api_url.as_ref().map(question)?))).collect();
    let replies = peers::ask(whom).await;
    let good = |reply: &PeerReply| match reply {
        PeerReply::Answer(answer) => !answer.nofailover && !answer.watchdog_failed,
        PeerReply::Unreachable(_) => false,
    };
    if !replies.values().any(good) {
        return no(format!("{word} is not possible: no good candidates have been found"));
    }
    Ok(())
}

/// Reads etcd now, where the loop has its connection; `None`: no answer.
pub(super) async fn look(app: &App) -> Option<Read> {
    let (reply, answer) = oneshot::channel();
    app.commands.try_send(Command::Read { reply }).ok()?;
    timeout(WRITE, answer).await.ok()?.ok()?.ok()
}

/// Has this written where the loop has its connection to etcd; `None`: not known, or not done.
pub(super) async fn order(app: &App, write: Write) -> Option<Written> {
    let (reply, answer) = oneshot::channel();
    app.commands.try_send(Command::Write { write, reply }).ok()?;
    timeout(WRITE, answer).await.ok()?.ok()?.ok()
}

/// 15.6: what became of it, as soon as a Status tells.
async fn outcome(app: Arc<App>, asked: Asked, before: Option<MemberName>, written: Revision) -> End {
    let mut published = app.status.clone();
    loop {
        let status = published.borrow_and_update().clone();
        if let Some(view) = status.view.as_ref().filter(|view| view.revision >= written) {
            let holder = view.leader.as_ref().map(|key| &key.name);
            match holder.filter(|holder| Some(*holder) != before.as_ref()) {
                Some(now) => return (Ended::Done, told(&asked, now)),
                // The winner takes the key before it takes the request off the table: so this one was dropped.
                None if view.failover.is_none() && holder.is_some() => {
                    return (Ended::Failed, format!("{} failed", asked.action.title()));
                }
                None => {}
            }
        }
        next(&mut published).await;
    }
}

/// In the words of the contract.
fn told(asked: &Asked, now: &MemberName) -> String {
    let done = match asked.action {
        Action::Switchover => "Switched over",
        Action::Failover => "Failed over",
    };
    match &asked.candidate {
        Some(wanted) if now != wanted => format!("{done} to \"{now}\" instead of \"{wanted}\""),
        Some(_) | None => format!("Successfully {} to \"{now}\"", done.to_lowercase()),
    }
}

/// A later Status. When the loop is gone, none comes: this process is about to end, and what waits with it.
pub(super) async fn next(published: &mut watch::Receiver<Arc<Status>>) {
    if published.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What becomes of a scheduled switchover: its request is on the table until it is carried out, refused, replaced or taken back.
async fn fires(app: Arc<App>, asked: Asked, mut before: Option<MemberName>, written: Revision, at: Duration) -> End {
    let due = || wall() + SKEW >= at;
    let mut published = app.status.clone();
    loop {
        let status = published.borrow_and_update().clone();
        if let Some(view) = status.view.as_ref().filter(|view| view.revision >= written) {
            let holder = view.leader.as_ref().map(|key| &key.name);
            let stands = view.failover.as_ref().is_some_and(|request| request.modified == written);
            match holder.filter(|holder| Some(*holder) != before.as_ref()) {
                Some(now) if !stands && due() => return (Ended::Done, told(&asked, now)),
                // Another one leads before its time has come; whether that is the end of it the holder decides.
                Some(now) if stands && !due() => before = Some(now.clone()),
                Some(_) | None if stands => {}
                Some(_) | None => {
                    let gone = "taken back, replaced, or refused by the leader, whose /decisions tell why";
                    return (Ended::Failed, gone.to_owned());
                }
            }
        }
        next(&mut published).await;
    }
}

fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// `DELETE /switchover` (15.7).
pub(super) async fn cancel(app: Arc<App>) -> Came {
    let no = |(code, text)| Came::to(Ended::Refused, code, text);
    let status = app.status.borrow().clone();
    let Some(view) = &status.view else { return no(unreachable()) };
    let scheduled = view.failover.as_ref().filter(|asked| asked.schedule.is_some());
    let Some(asked) = scheduled else {
        return no((StatusCode::NOT_FOUND, "no switchover is scheduled".to_owned()));
    };
    match order(&app, Write::ClearFailover { seen: asked.modified }).await {
        Some(Written::Done(_)) => Came::to(Ended::Done, StatusCode::OK, "scheduled switchover deleted"),
        Some(Written::Refused) => {
            let why = "somebody changed it meanwhile; look again";
            let answer = wire::error_page(StatusCode::CONFLICT, why);
            Came { answer, end: Ok((Ended::Refused, why.to_owned())) }
        }
        None => Came::to(Ended::Failed, StatusCode::SERVICE_UNAVAILABLE, "failed to write failover key into DCS"),
    }
}
