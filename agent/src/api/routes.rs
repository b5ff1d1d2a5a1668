//! Which request goes where (rest-api.md section 3), and the order of the checks on the way.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::response::Response;
use http::header::{CONTENT_LENGTH, HeaderValue, WARNING, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode, Uri};
use regent_core::failsafe::Notice;
use serde_json::Value;
use tokio::time::timeout;

use super::config::Change;
use super::moment::Moment;
use super::operations::{follow, operations};
use super::params::Params;
use super::requests::{self, Action};
use super::tls::Client;
use super::{App, cluster, config, document, events, health, json, metrics, openapi, operate, wire};

/// A question that is answered from the Status.
pub(super) struct Ask<'a> {
    pub(super) app: &'a App,
    pub(super) moment: Moment<'a>,
    pub(super) params: Params,
    pub(super) headers: &'a HeaderMap,
    /// What follows the first segment of the path.
    pub(super) rest: &'a str,
}

/// Reads: GET, and HEAD and OPTIONS with the same code and no body. Everything else is a health check of the whole path.
pub(super) const READS: [(&str, Reader); 15] = [
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
    ("openapi.json", |_| wire::json(StatusCode::OK, openapi::text().to_owned())),
    ("operations", operations),
    ("ui", |_| wire::page(include_str!("ui.html"))),
    ("contract", |ask| wire::json(StatusCode::OK, json::text(&ask.moment.status.contract))),
];

pub(super) type Reader = fn(&Ask<'_>) -> Response;

/// Calls that change something, or will.
pub(super) const CALLS: [(Method, &str, Call); 13] = [
    (Method::POST, "reload", Call::Reload),
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
pub(super) enum Call {
    /// Has the configuration file read again; its body is ignored.
    Reload,
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
/// So many calls are carried out at a time: health checks always find a connection that can be cut in their favour. Members'
/// own calls (`/failsafe`) are not counted.
pub(super) const CALLS_AT_ONCE: usize = 64;

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
    let (segment, rest) = segments(uri);
    let ask = Ask { app, moment, params: Params::of(uri), headers, rest };
    match READS.iter().find(|(name, _)| *name == segment) {
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

/// The first segment of the path, leading slashes stripped, and what follows it.
fn segments(uri: &Uri) -> (&str, &str) {
    let path = path(uri).trim_start_matches('/');
    path.split_once('/').unwrap_or((path, ""))
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
async fn agree(app: &App, parts: &Parts, body: Body) -> Response {
    if !app.status.borrow().failsafe_mode {
        return wire::error_page(StatusCode::BAD_GATEWAY, "failsafe mode is off");
    }
    let notice = match json_object(parts, body).await {
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

async fn call(app: &Arc<App>, policy: &super::Policy, parts: &Parts, body: Body) -> Response {
    let (segment, _) = segments(&parts.uri);
    let known = CALLS.iter().find(|(method, name, _)| *method == parts.method && *name == segment);
    let Some((_, name, call)) = known else {
        return wire::error_page(StatusCode::NOT_IMPLEMENTED, "unsupported method for this path");
    };
    let counted = !matches!(call, Call::Agree);
    let permit = if counted { Some(app.calls.try_acquire()) } else { None };
    if let Some(Err(_)) = permit {
        return wire::message(StatusCode::SERVICE_UNAVAILABLE, "the agent has too many calls to answer; try again");
    }
    if let Some(refusal) = stranger(app, policy, parts).await {
        return wire::message(StatusCode::FORBIDDEN, refusal);
    }
    if let Some(Err(refusal)) = policy.credentials.as_ref().map(|credentials| credentials.check(&parts.headers)) {
        let mut answer = wire::message(StatusCode::UNAUTHORIZED, refusal);
        answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"Patroni\""));
        return answer;
    }
    let by = parts.extensions.get::<Client>().map(|client| client.address);
    let (asked, none) = (Arc::clone(app), serde_json::Map::new());
    let bad = |(status, why)| wire::error_page(status, why);
    match *call {
        Call::Nothing(status, text) => wire::message(status, text),
        Call::NothingWithBody(status, text) => match json_object(parts, body).await {
            Ok(_) => wire::message(status, text),
            Err(refused) => bad(refused),
        },
        Call::Configure(change) => match json_object(parts, body).await {
            Ok(body) => config::change(app, change, &body).await,
            Err(refused) => bad(refused),
        },
        Call::Agree => agree(app, parts, body).await,
        Call::Reload => follow(app, name, by, &none, operate::reload(asked)).await,
        Call::Request(action) => match json_object(parts, body).await {
            Ok(body) => follow(app, name, by, &body.clone(), requests::request(asked, action, body)).await,
            Err(refused) => bad(refused),
        },
        Call::Cancel => follow(app, "cancel switchover", by, &none, requests::cancel(asked)).await,
        Call::Restart => match optional_object(parts, body).await {
            Ok(body) => follow(app, name, by, &body.clone(), operate::restart(asked, body)).await,
            Err(refused) => bad(refused),
        },
        Call::Unschedule => follow(app, "cancel restart", by, &none, operate::unschedule(asked)).await,
        Call::Reinitialize => match optional_object(parts, body).await {
            Ok(body) => follow(app, name, by, &body.clone(), operate::reinitialize(asked, body)).await,
            Err(refused) => bad(refused),
        },
    }
}

/// Why a client may change nothing, by where it comes from and what it showed.
async fn stranger(app: &App, policy: &super::Policy, parts: &Parts) -> Option<&'static str> {
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

type Object = serde_json::Map<String, Value>;

/// The body of a call that needs none (rest-api.md section 11): nothing at all is `{}`.
async fn optional_object(parts: &Parts, body: Body) -> Result<Object, (StatusCode, &'static str)> {
    let bad = (StatusCode::BAD_REQUEST, "the body must be a JSON object");
    if !parts.headers.contains_key(CONTENT_LENGTH) {
        return Ok(Object::new());
    }
    let bytes = bytes(parts, body).await.ok_or(bad)?;
    match serde_json::from_slice(&bytes) {
        _ if bytes.is_empty() => Ok(Object::new()),
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) | Err(_) => Err(bad),
    }
}

/// The body of a call that needs one (rest-api.md section 11): a JSON object with something in it.
async fn json_object(parts: &Parts, body: Body) -> Result<Object, (StatusCode, &'static str)> {
    if !parts.headers.contains_key(CONTENT_LENGTH) {
        return Err((StatusCode::LENGTH_REQUIRED, "the request has no Content-Length"));
    }
    let bad = (StatusCode::BAD_REQUEST, "the body must be a JSON object that is not empty");
    match serde_json::from_slice(&bytes(parts, body).await.ok_or(bad)?) {
        Ok(Value::Object(object)) if !object.is_empty() => Ok(object),
        Ok(_) | Err(_) => Err(bad),
    }
}

/// A body, unless it is too long or too slow. A client that is still to send it waits like one that is still to ask.
async fn bytes(parts: &Parts, body: Body) -> Option<Bytes> {
    if body.size_hint().lower() > MAX_BODY as u64 {
        return None;
    }
    let busy = parts.extensions.get::<Client>().map(|client| &client.busy);
    let set = |on| busy.inspect(|busy| busy.store(on, Ordering::Relaxed));
    set(false);
    let bytes = timeout(BODY_TIME, axum::body::to_bytes(body, MAX_BODY)).await;
    set(true);
    bytes.ok()?.ok()
}
