//! Which request goes where (rest-api.md section 3), and the order of the checks on the way.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use http::header::{CONTENT_LENGTH, HeaderValue, WARNING, WWW_AUTHENTICATE};
use http::{HeaderMap, Method, StatusCode, Uri};
use regent_core::failsafe::Notice;
use serde_json::Value;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::timeout;

use super::config::Change;
use super::moment::Moment;
use super::params::Params;
use super::requests::{self, Action};
use super::tls::Client;
use super::{App, Command, cluster, config, document, events, health, json, metrics, operate, wire};

/// A question that is answered from the Status.
pub(super) struct Ask<'a> {
    pub(super) app: &'a App,
    pub(super) moment: Moment<'a>,
    pub(super) params: Params,
    pub(super) headers: &'a HeaderMap,
}

/// Reads: GET, and HEAD and OPTIONS with the same code and no body. Everything else is a health check of the whole path.
const READS: [(&str, Reader); 13] = [
    ("liveness", |ask| wire::bare(health::liveness(ask))),
    ("readiness", |ask| wire::bare(health::readiness(ask))),
    ("patroni", |ask| wire::json(StatusCode::OK, json::text(&document::document(&ask.moment)))),
    ("cluster", cluster_document),
    ("history", |ask| stored(ask, StatusCode::OK, &cluster::history(ask.moment.status))),
    ("config", config_document),
    ("metrics", |ask| wire::metrics(metrics::metrics(&ask.moment))),
    ("failsafe", failsafe_document),
    ("decisions", events::decisions),
    ("events", events::events),
    ("explain", events::explain),
    ("ui", |_| wire::page(include_str!("ui.html"))),
    ("contract", |ask| wire::json(StatusCode::OK, json::text(&ask.moment.status.contract))),
];

type Reader = fn(&Ask<'_>) -> Response;

/// Calls that change something, or will.
const CALLS: [(Method, &str, Call); 13] = [
    (Method::POST, "reload", Call::Send(|| Command::Reload, "reload scheduled")),
    (Method::POST, "sigterm", Call::Nothing(StatusCode::ACCEPTED, "shutdown scheduled")),
    (Method::POST, "citus", Call::NothingWithBody(StatusCode::OK, "OK")),
    (Method::POST, "mpp", Call::NothingWithBody(StatusCode::OK, "OK")),
    (Method::POST, "failsafe", Call::Agree),
    (Method::PATCH, "config", Call::Configure(Change::Patch)),
    (Method::PUT, "config", Call::Configure(Change::Replace)),
    (Method::POST, "restart", Call::Restart),
    (Method::DELETE, "restart", Call::Unschedule),
    (Method::POST, "switchover", Call::Request(Action::Switchover)),
    (Method::DELETE, "switchover", Call::Cancel),
    (Method::POST, "failover", Call::Request(Action::Failover)),
    (Method::POST, "reinitialize", Call::Reinitialize),
];

/// What a call does.
#[derive(Clone, Copy)]
enum Call {
    /// Sends this to the loop and answers 202 with the text.
    Send(fn() -> Command, &'static str),
    /// Has no effect by its contract (rest-api.md section 18).
    Nothing(StatusCode, &'static str),
    /// The same, and needs a body that is a JSON object.
    NothingWithBody(StatusCode, &'static str),
    /// Asks for another leader, and needs a body.
    Request(Action),
    /// Changes the cluster's configuration, and needs a body.
    Configure(Change),
    /// Takes back what was scheduled.
    Cancel,
    /// A primary without etcd asks us to agree that it goes on (rest-api.md section 17).
    Agree,
    /// Restarts PostgreSQL, now or later; its body may be missing.
    Restart,
    /// Forgets a restart that is scheduled.
    Unschedule,
    /// Copies the data anew; its body may be missing.
    Reinitialize,
}

/// A client has this long to send a body; the bodies of the contract are a few kilobytes.
const BODY_TIME: Duration = Duration::from_secs(10);
const MAX_BODY: usize = 1 << 20;

/// The service of every connection. All paths go to one handler: the contract's rules (leading slashes, first segment,
/// substrings) are not a path router's.
pub(super) fn router(app: Arc<App>) -> Router {
    Router::new().fallback(answer).with_state(app)
}

async fn answer(State(app): State<Arc<App>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let policy = app.policy.borrow().clone();
    let answer = match parts.method {
        Method::GET | Method::HEAD | Method::OPTIONS => read(&app, &parts.uri, &parts.headers),
        _ => call(&app, &policy, &parts, body).await,
    };
    wire::finish(answer, &parts.method, parts.version, &policy)
}

fn read(app: &App, uri: &Uri, headers: &HeaderMap) -> Response {
    let status = app.status.borrow().clone();
    let now = (app.clock)();
    let moment = Moment::new(&status, app.failsafe.agreement(now), now);
    let ask = Ask { app, moment, params: Params::of(uri), headers };
    match READS.iter().find(|(name, _)| *name == segment(uri)) {
        Some((_, reader)) => reader(&ask),
        None => wire::json(health::check(path(uri), &ask), json::text(&document::document(&ask.moment))),
    }
}

/// The path as received. A target without a leading slash (`GET leader HTTP/1.0`) is read as an authority by the parser.
fn path(uri: &Uri) -> &str {
    match (uri.scheme(), uri.authority()) {
        (None, Some(authority)) => authority.as_str(),
        _ => uri.path(),
    }
}

/// The first segment of the path, leading slashes stripped.
fn segment(uri: &Uri) -> &str {
    path(uri).trim_start_matches('/').split('/').next().unwrap_or_default()
}

fn cluster_document(ask: &Ask<'_>) -> Response {
    let status = ask.moment.status;
    match &status.last_view {
        Some(view) => stored(ask, StatusCode::OK, &cluster::cluster(status, view)),
        None => wire::message(StatusCode::SERVICE_UNAVAILABLE, "etcd has not been read since this agent started"),
    }
}

fn config_document(ask: &Ask<'_>) -> Response {
    match &ask.moment.status.config {
        Some(config) => stored(ask, StatusCode::OK, config),
        None => wire::error_page(StatusCode::BAD_GATEWAY, "there is no config key in etcd, or it was never read"),
    }
}

fn failsafe_document(ask: &Ask<'_>) -> Response {
    match ask.moment.failsafe() {
        Some(key) => {
            let members = key.members.iter().map(|(name, url)| (name.to_string(), url.clone().into()));
            stored(ask, StatusCode::OK, &Value::Object(members.collect()))
        }
        None => wire::error_page(StatusCode::BAD_GATEWAY, "there is no failsafe key"),
    }
}

/// Failsafe mode is on, the body is good, and this member neither writes nor may be promoted next: it agrees.
async fn agree(app: &App, parts: &http::request::Parts, body: Body) -> Response {
    if !app.status.borrow().failsafe_mode {
        return wire::error_page(StatusCode::BAD_GATEWAY, "failsafe mode is off");
    }
    let notice = match json_object(&parts.headers, body).await {
        Ok(object) => serde_json::from_value::<Notice>(Value::Object(object)),
        Err((status, why)) => return wire::error_page(status, why),
    };
    let Ok(notice) = notice else {
        return wire::error_page(StatusCode::BAD_REQUEST, "want name, conn_url, api_url and slots");
    };
    let (status, now) = (app.status.borrow().clone(), (app.clock)());
    if !app.failsafe.agrees(notice, now, status.ttl) {
        return wire::message(StatusCode::INTERNAL_SERVER_ERROR, "Running as a leader");
    }
    let mut answer = wire::message(StatusCode::OK, "Accepted");
    if let Some((received, replayed)) = Moment::new(&status, None, now).standby_positions() {
        answer.headers_mut().insert("lsn", HeaderValue::from(received.max(replayed).0));
    }
    answer
}

/// JSON that came from etcd, marked when it may be out of date (rest-api.md W6: served rather than not).
fn stored(ask: &Ask<'_>, status: StatusCode, value: &Value) -> Response {
    let mut answer = wire::json(status, json::text(value));
    if ask.moment.view().is_none() {
        let stale = HeaderValue::from_static("110 regent \"etcd does not answer; this is what it last held\"");
        answer.headers_mut().insert(WARNING, stale);
    }
    answer
}

async fn call(app: &App, policy: &super::Policy, parts: &http::request::Parts, body: Body) -> Response {
    let segment = segment(&parts.uri);
    let known = CALLS.iter().find(|(method, name, _)| *method == parts.method && *name == segment);
    let Some((_, _, call)) = known else {
        return wire::error_page(StatusCode::NOT_IMPLEMENTED, "unsupported method for this path");
    };
    if let Some(refusal) = stranger(app, policy, parts).await {
        return wire::message(StatusCode::FORBIDDEN, refusal);
    }
    if let Some(Err(refusal)) = policy.credentials.as_ref().map(|credentials| credentials.check(&parts.headers)) {
        let mut answer = wire::message(StatusCode::UNAUTHORIZED, refusal);
        answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"Patroni\""));
        return answer;
    }
    match *call {
        Call::Send(command, text) => send(app, command(), text),
        Call::Nothing(status, text) => wire::message(status, text),
        Call::NothingWithBody(status, text) => match json_object(&parts.headers, body).await {
            Ok(_) => wire::message(status, text),
            Err((status, why)) => wire::error_page(status, why),
        },
        Call::Request(action) => match json_object(&parts.headers, body).await {
            Ok(body) => requests::request(app, action, &body).await,
            Err((status, why)) => wire::error_page(status, why),
        },
        Call::Configure(change) => match json_object(&parts.headers, body).await {
            Ok(body) => config::change(app, change, &body).await,
            Err((status, why)) => wire::error_page(status, why),
        },
        Call::Cancel => requests::cancel(app).await,
        Call::Agree => agree(app, parts, body).await,
        Call::Restart => match optional_object(&parts.headers, body).await {
            Ok(body) => operate::restart(app, &body).await,
            Err((status, why)) => wire::error_page(status, why),
        },
        Call::Unschedule => operate::unschedule(app).await,
        Call::Reinitialize => match optional_object(&parts.headers, body).await {
            Ok(body) => operate::reinitialize(app, &body).await,
            Err((status, why)) => wire::error_page(status, why),
        },
    }
}

/// Why a client may change nothing, by where it comes from and what it showed.
async fn stranger(app: &App, policy: &super::Policy, parts: &http::request::Parts) -> Option<&'static str> {
    let client = parts.extensions.get::<Client>();
    let status = app.status.borrow().clone();
    let allowed = match client {
        Some(client) => policy.allow.allows(client.address, &status).await,
        None => false,
    };
    let wants = policy.tls.as_ref().is_some_and(|tls| tls.wants_certificate);
    let certified = client.is_some_and(|client| client.certified);
    (!allowed).then_some("Access is denied").or((wants && !certified).then_some("client certificate required"))
}

/// Hands a command to the loop without waiting for it.
fn send(app: &App, command: Command, accepted: &str) -> Response {
    let busy = StatusCode::SERVICE_UNAVAILABLE;
    match app.commands.try_send(command) {
        Ok(()) => wire::message(StatusCode::ACCEPTED, accepted),
        Err(TrySendError::Full(_)) => wire::message(busy, "the agent has too many commands to carry out; try again"),
        Err(TrySendError::Closed(_)) => wire::message(busy, "the agent is shutting down"),
    }
}

/// The body of a call that needs none (rest-api.md section 11): nothing at all is `{}`.
async fn optional_object(
    headers: &HeaderMap,
    body: Body,
) -> Result<serde_json::Map<String, Value>, (StatusCode, &'static str)> {
    let bad = (StatusCode::BAD_REQUEST, "the body must be a JSON object");
    if !headers.contains_key(CONTENT_LENGTH) {
        return Ok(serde_json::Map::new());
    }
    let bytes = timeout(BODY_TIME, axum::body::to_bytes(body, MAX_BODY)).await.map_err(|_| bad)?.map_err(|_| bad)?;
    match serde_json::from_slice(&bytes) {
        _ if bytes.is_empty() => Ok(serde_json::Map::new()),
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) | Err(_) => Err(bad),
    }
}

/// The body of a call that needs one (rest-api.md section 11): a JSON object with something in it.
async fn json_object(
    headers: &HeaderMap,
    body: Body,
) -> Result<serde_json::Map<String, Value>, (StatusCode, &'static str)> {
    if !headers.contains_key(CONTENT_LENGTH) {
        return Err((StatusCode::LENGTH_REQUIRED, "the request has no Content-Length"));
    }
    let bad = (StatusCode::BAD_REQUEST, "the body must be a JSON object that is not empty");
    let bytes = timeout(BODY_TIME, axum::body::to_bytes(body, MAX_BODY)).await.map_err(|_| bad)?.map_err(|_| bad)?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(object)) if !object.is_empty() => Ok(object),
        Ok(_) | Err(_) => Err(bad),
    }
}
