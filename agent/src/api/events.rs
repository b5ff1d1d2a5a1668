//! `/decisions`, `/events` and `/explain`: what this agent decided lately, what happens as it happens, and what each member
//! would do if the leader were gone. The peer has none of them.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use http::header::LINK;
use http::{HeaderValue, StatusCode};
use regent_core::whatif::{Loss, runs, without_leader};
use serde_json::{Map, Value, json};

use super::routes::Ask;
use super::{json, wire};
use crate::journal::{Entry, Journal};

/// So many decisions unless `limit` says otherwise.
const DECISIONS: u64 = 20;
/// ... and so many at the most.
const MOST: u64 = 256;
/// An answer with decisions is no longer than this, unless the first of them is.
const LONGEST: usize = 256 << 10;
/// A silent stream says so often that it lives, so that what is between does not cut it.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// The last decisions, latest first, the younger ones with the observation that they were taken on. `limit=N` says how many, `before=N`
/// asks for those with a smaller number. This thread answers health checks too, so an answer ends at [`LONGEST`]; where more
/// are kept, the header `Link` says how to go on.
pub(super) fn decisions(ask: &Ask<'_>) -> Response {
    let number = |name, otherwise| ask.params.get(name).map_or(Ok(otherwise), str::parse::<u64>);
    let limit = number("limit", DECISIONS).ok().filter(|limit| (1..=MOST).contains(limit));
    let Some((limit, before)) = limit.zip(number("before", u64::MAX).ok()) else {
        let wrong = format!("limit must be a number from 1 to {MOST}, before the number of a decision");
        return wire::error_page(StatusCode::BAD_REQUEST, &wrong);
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut kept = ask.app.journal.decisions(before, limit + 1).into_iter().peekable();
    let (mut text, mut shown, mut last) = ("[".to_owned(), 0, before);
    while shown < limit
        && let Some((entry, seen)) = kept.peek()
    {
        let mut one = entry.shown();
        if let Some(seen) = seen.as_ref().and_then(|seen| serde_json::to_value(&**seen).ok()) {
            one.insert("observation".to_owned(), seen);
        }
        let one = json::text(&one);
        // The first is shown however long it is.
        if shown > 0 && text.len() + one.len() > LONGEST {
            break;
        }
        text += if shown > 0 { ", " } else { "" };
        text += &one;
        (shown, last) = (shown + 1, entry.number);
        kept.next();
    }
    let mut answer = wire::json(StatusCode::OK, text + "]");
    let next = format!("</decisions?before={last}&limit={limit}>; rel=\"next\"");
    if let Some(next) = kept.peek().and_then(|_| HeaderValue::try_from(next).ok()) {
        answer.headers_mut().insert(LINK, next);
    }
    answer
}

/// A stream of server-sent events: those after the number in the header `Last-Event-ID` (or `after=N`), then each as it happens.
/// Where some of them are not kept any more, an event `gap` comes first. Without a number it begins now; `after=0`: with all
/// that is kept.
pub(super) fn events(ask: &Ask<'_>) -> Response {
    let header = ask.headers.get("last-event-id").map(|value| value.to_str().unwrap_or("not text"));
    let begin = match header.or_else(|| ask.params.get("after")).map(str::parse) {
        Some(Ok(number)) => number,
        None => *ask.app.journal.news().borrow(),
        Some(Err(_)) => {
            return wire::error_page(StatusCode::BAD_REQUEST, "the number of the last event is not a number");
        }
    };
    let stream = futures_util::stream::unfold(Follow::from(&ask.app.journal, begin), |mut follow| async move {
        let event = follow.next().await?;
        Some((Ok::<_, Infallible>(event), follow))
    });
    Sse::new(stream).keep_alive(KeepAlive::new().interval(HEARTBEAT)).into_response()
}

/// One reader of the sequence.
struct Follow {
    journal: Journal,
    news: tokio::sync::watch::Receiver<u64>,
    seen: u64,
    /// Some between `seen` and `ready` are not kept any more.
    lost: bool,
    /// Shared with the journal: thousands of readers that are slow cost little.
    ready: VecDeque<Arc<Entry>>,
}

impl Follow {
    fn from(journal: &Journal, seen: u64) -> Follow {
        Follow { journal: journal.clone(), news: journal.news(), seen, lost: false, ready: VecDeque::new() }
    }

    /// `None` when the agent is gone.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if std::mem::take(&mut self.lost) {
                return Some(Event::default().event("gap").data("some events are not kept any more"));
            }
            if let Some(entry) = self.ready.pop_front() {
                return Some(shown(&entry));
            }
            self.news.borrow_and_update();
            let (newer, lost) = self.journal.after(self.seen);
            self.seen = newer.last().map_or(self.seen, |last| last.number);
            self.lost = lost;
            self.ready = newer.into();
            if self.ready.is_empty() {
                self.news.changed().await.ok()?;
            }
        }
    }
}

fn shown(entry: &Entry) -> Event {
    let data = json::text(&Value::Object(entry.shown()));
    Event::default().id(entry.number.to_string()).event(entry.kind()).data(data)
}

/// Why this node does what it does, and what each other member would do if the leader died now (or, with `candidate=NAME` or
/// `candidate=*`, handed over to that member, or to whoever is fit).
pub(super) fn explain(ask: &Ask<'_>) -> Response {
    let status = ask.moment.status;
    let Some(view) = &status.last_view else {
        return wire::message(StatusCode::SERVICE_UNAVAILABLE, "etcd has not been read since this agent started");
    };
    let loss = match ask.params.get("candidate") {
        None => Loss::Death,
        Some("*") => Loss::Switchover(None),
        Some(name) => Loss::Switchover(Some(name.into())),
    };
    let leader = view.leader.as_ref().map(|key| key.name.as_str());
    // A primary knows better than the member keys how far those are that stream from it.
    let sql = ask.moment.sql().filter(|sql| !sql.in_recovery);
    let streamed = |name: &str| {
        let sender = sql?.replication.iter().find(|sender| sender.application_name == name)?;
        Some(sql?.flush_lsn.bytes_ahead_of(sender.position?))
    };
    let member = |name: &str, candidate: bool, rule: &str, why: &str| {
        let told = view.members.get(&name.into());
        let told = || told.and_then(|member| Some(view.status.optime?.bytes_ahead_of(member.xlog_location?)));
        let lag = streamed(name).or_else(told);
        json!({"name": name, "candidate": candidate, "rule": rule, "why": why, "lag": lag})
    };
    let others: Vec<Value> = without_leader(view, &status.config_in_force, &loss)
        .iter()
        .map(|(name, decision)| member(name.as_str(), runs(decision), decision.rule, &decision.why))
        .collect();
    let mut shown = Map::new();
    let mut put = |key: &str, value: Value| shown.insert(key.to_owned(), value);
    put("scope", status.scope.as_str().into());
    put("name", status.name.as_str().into());
    put("rule", status.rule.into());
    put("why", status.why.as_str().into());
    put("leader", leader.into());
    put("contract", status.contract.sentence.as_str().into());
    put("without_leader", others.into());
    wire::json(StatusCode::OK, json::text(&shown))
}
