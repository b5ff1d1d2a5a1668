//! What operators asked for, until its definite end: `/operations`, `/operations/<id>` (the peer has neither).
//!
//! ```text
//! POST ──► running ──► answered ──► done | refused | failed
//!                          └── running on: scheduled, or not through when its client was answered
//! ```
//!
//! An operation is the REST thread's own note, in memory: it judges nothing and holds up nobody. Its id is the number of its
//! first entry in the journal, its phases are the entries from there to its end. It goes on when its client hangs up.
//! An id that is older than this process is answered as lost: nobody knows any more.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::response::Response;
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use super::routes::Ask;
use super::{App, json, wire};
use crate::journal::{Entry, Event, Journal, time};

/// So many are kept; those that have ended go first.
const KEPT: usize = 64;
/// So many phases of one, the latest.
const PHASES: usize = 32;
/// What is kept of a text, in characters, and of a request, in bytes.
const LONGEST: usize = 1024;
/// What is kept of a request: the words of the contract (rest-api.md 14 to 16), and nothing else that came with it.
const WORDS: [&str; 12] = [
    "leader",
    "candidate",
    "member",
    "scheduled_at",
    "schedule",
    "role",
    "postgres_version",
    "timeout",
    "restart_pending",
    "force",
    "from_leader",
    "from-leader",
];
/// Tells a client the id of what it has asked for.
const HEADER: HeaderName = HeaderName::from_static("regent-operation");

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// What was asked for is so.
    Done,
    /// Nothing was begun.
    Refused,
    /// It was begun, and did not come to what was asked for.
    Failed,
}

impl Ended {
    fn word(self) -> &'static str {
        match self {
            Ended::Done => "done",
            Ended::Refused => "refused",
            Ended::Failed => "failed",
        }
    }
}

/// An end, with what is to be said of it.
pub(super) type End = (Ended, String);
/// An end that comes later.
pub(super) type Later = Pin<Box<dyn Future<Output = End> + Send>>;

/// What a call came to: the client's answer, and the end, or what will tell it.
pub(super) struct Came {
    pub(super) answer: Response,
    pub(super) end: Result<End, Later>,
}

impl Came {
    /// It ended, with this sentence.
    pub(super) fn to(ended: Ended, code: StatusCode, text: impl Into<String>) -> Came {
        let text = text.into();
        Came { answer: wire::message(code, text.clone()), end: Ok((ended, text)) }
    }

    /// The client is answered, and it goes on.
    pub(super) fn later(code: StatusCode, text: &str, end: Later) -> Came {
        Came { answer: wire::message(code, text), end: Err(end) }
    }
}

/// What the agent was asked since it started.
#[derive(Default)]
pub(super) struct Operations(Mutex<VecDeque<Operation>>);

struct Operation {
    id: u64,
    at: Duration,
    what: &'static str,
    by: Option<IpAddr>,
    request: Map<String, Value>,
    end: Option<(u64, Duration, End, Phases)>,
}

/// What happened meanwhile, and whether there was more that is not kept.
type Phases = (Vec<Arc<Entry>>, bool);

impl Operations {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Operation>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, journal: &Journal, what: &'static str, by: Option<IpAddr>, body: &Map<String, Value>) -> u64 {
        let known = WORDS.iter().filter_map(|word| Some(((*word).to_owned(), body.get(*word)?.clone())));
        let request: Map<String, Value> = known.collect();
        let text = Value::Object(request.clone()).to_string();
        let request = if text.len() <= LONGEST { request } else { Map::new() };
        let wall = SystemTime::now();
        let text = by.map_or_else(|| what.to_owned(), |by| format!("{what}, asked for by {by}"));
        let id = journal.note(Event::Operation { id: None, what, state: "running", text }, wall);
        let at = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut kept = self.lock();
        kept.push_back(Operation { id, at, what, by, request, end: None });
        if kept.len() > KEPT {
            let oldest = kept.iter().position(|one| one.end.is_some()).unwrap_or(0);
            kept.remove(oldest);
        }
        id
    }

    fn end(&self, journal: &Journal, id: u64, (ended, text): End) {
        let text: String = text.chars().take(LONGEST).collect();
        let wall = SystemTime::now();
        let at = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut kept = self.lock();
        let Some(one) = kept.iter_mut().find(|one| one.id == id) else { return };
        let phases = one.phases(journal);
        let event = Event::Operation { id: Some(id), what: one.what, state: ended.word(), text: text.clone() };
        one.end = Some((journal.note(event, wall), at, (ended, text), phases));
    }
}

impl Operation {
    fn phases(&self, journal: &Journal) -> Phases {
        if let Some((.., phases)) = &self.end {
            return phases.clone();
        }
        let (mut entries, lost) = journal.after(self.id);
        entries.retain(|entry| !matches!(entry.event, Event::Operation { .. }));
        let more = entries.len().saturating_sub(PHASES);
        entries.drain(..more);
        (entries, lost || more > 0)
    }

    /// One line of it.
    fn shown(&self) -> Map<String, Value> {
        let mut keys = Map::new();
        let mut put = |key: &str, value: Value| keys.insert(key.to_owned(), value);
        put("id", self.id.into());
        put("operation", self.what.into());
        put("request", self.request.clone().into());
        put("by", self.by.map(|by| by.to_string()).into());
        put("asked", time(self.at).into());
        put("state", self.end.as_ref().map_or("running", |(_, _, (ended, _), _)| ended.word()).into());
        if let Some((_, at, (_, text), _)) = &self.end {
            put("ended", time(*at).into());
            put("result", text.as_str().into());
        }
        keys
    }
}

/// Gives what was asked for an id, and follows it to its end, which the client may not wait for.
pub(super) async fn follow(
    app: &Arc<App>,
    what: &'static str,
    by: Option<IpAddr>,
    body: &Map<String, Value>,
    work: impl Future<Output = Came> + Send + 'static,
) -> Response {
    let id = app.operations.begin(&app.journal, what, by, body);
    let (tell, answer) = oneshot::channel();
    let following = Arc::clone(app);
    tokio::spawn(async move {
        let Came { answer, end } = work.await;
        // Known before the answer is: who asks next finds it ended.
        let end = match end {
            Ok(end) => {
                following.operations.end(&following.journal, id, end);
                None
            }
            Err(later) => Some(later),
        };
        // The client may be gone.
        drop(tell.send(answer));
        if let Some(later) = end {
            following.operations.end(&following.journal, id, later.await);
        }
    });
    let ending = || wire::message(StatusCode::SERVICE_UNAVAILABLE, "the agent is shutting down");
    let mut answer = answer.await.unwrap_or_else(|_| ending());
    answer.headers_mut().insert(HEADER, HeaderValue::from(id));
    answer
}

/// `/operations`: what was asked, latest first, a line each. `/operations/<id>`: one of them, with its phases.
pub(super) fn operations(ask: &Ask<'_>) -> Response {
    let (kept, journal) = (ask.app.operations.lock(), &ask.app.journal);
    if ask.rest.is_empty() {
        let all: Vec<_> = kept.iter().rev().map(|one| Value::Object(one.shown())).collect();
        return wire::json(StatusCode::OK, json::text(&all));
    }
    let Ok(id) = ask.rest.parse::<u64>() else {
        return wire::error_page(StatusCode::BAD_REQUEST, "the id of an operation is a number");
    };
    if let Some(one) = kept.iter().find(|one| one.id == id) {
        let (phases, gap) = one.phases(journal);
        let mut shown = one.shown();
        shown.insert("phases".to_owned(), phases.iter().map(|entry| Value::Object(entry.shown())).collect());
        shown.insert("gap".to_owned(), gap.into());
        return wire::json(StatusCode::OK, json::text(&shown));
    }
    let (state, why) = if id <= journal.begun() {
        (
            "lost",
            "asked of another member, or before this agent was restarted: not known here. See /cluster and /history",
        )
    } else {
        ("unknown", "no such operation, or one of long ago; the last are in /operations")
    };
    wire::json(StatusCode::NOT_FOUND, json::text(&json!({"id": id, "state": state, "result": why})))
}
