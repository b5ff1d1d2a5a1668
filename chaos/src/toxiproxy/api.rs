//! The server: Toxiproxy 2.4's calls and its answers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::header::{CONTENT_TYPE, USER_AGENT};
use axum::http::{Response, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::routing::{delete, get, post};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::sync::Mutex;

use regent_tests::rig::Trouble;

use super::lane::Active;
use super::proxy::Proxy;
use super::toxics::{Misread, Toxic};

/// What `GET /version` says: whose calls these are.
const VERSION: &str = "2.4.0";

type Answer = Response<Body>;
type Proxies = Arc<Mutex<BTreeMap<String, Proxy>>>;

/// Serves the API on `listen`, until the process ends. For a rig that is a process of its own.
///
/// # Errors
/// The address cannot be listened on.
pub fn serve(listen: SocketAddr) -> Result<(), Trouble> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async { run(TcpListener::bind(listen).await?).await })
}

/// Serves the API until it is dropped. Proxies and connections are tasks of the runtime, and end with that.
pub(super) async fn run(listener: TcpListener) -> Result<(), Trouble> {
    Ok(axum::serve(listener, router()).await?)
}

fn router() -> Router {
    Router::new()
        .route("/version", get(|| async { text(StatusCode::OK, VERSION.to_owned()) }))
        .route("/proxies", get(list).post(create))
        .route("/proxies/{proxy}", get(show).post(update).delete(remove))
        .route("/proxies/{proxy}/toxics", get(list_toxics).post(add_toxic))
        .route("/proxies/{proxy}/toxics/{toxic}", get(show_toxic).post(update_toxic).merge(delete(remove_toxic)))
        .route("/populate", post(populate))
        .route("/reset", post(reset))
        .layer(from_fn(stop_browsers))
        .with_state(Proxies::default())
}

/// A refusal, as Toxiproxy words it.
struct Refusal(StatusCode, String);

impl Refusal {
    fn new(status: StatusCode, error: &str) -> Self {
        Refusal(status, error.to_owned())
    }

    fn body(why: impl std::fmt::Display) -> Self {
        Refusal(StatusCode::BAD_REQUEST, format!("bad request body: {why}"))
    }

    fn missing(field: &str) -> Self {
        Refusal(StatusCode::BAD_REQUEST, format!("missing required field: {field}"))
    }

    fn no_proxy() -> Self {
        Refusal::new(StatusCode::NOT_FOUND, "proxy not found")
    }

    fn no_toxic() -> Self {
        Refusal::new(StatusCode::NOT_FOUND, "toxic not found")
    }

    fn json(&self) -> Map<String, Value> {
        Map::from_iter([("error".to_owned(), json!(self.1)), ("status".to_owned(), json!(self.0.as_u16()))])
    }
}

impl axum::response::IntoResponse for Refusal {
    fn into_response(self) -> Answer {
        text(self.0, format!("{}\n", Value::Object(self.json())))
    }
}

impl From<std::io::Error> for Refusal {
    fn from(e: std::io::Error) -> Self {
        Refusal(StatusCode::INTERNAL_SERVER_ERROR, e.to_string())
    }
}

impl From<Misread> for Refusal {
    fn from(misread: Misread) -> Self {
        match misread {
            Misread::Body(why) => Refusal::body(why),
            Misread::Type => Refusal::new(StatusCode::BAD_REQUEST, "invalid toxic type"),
            Misread::Stream => {
                Refusal::new(StatusCode::BAD_REQUEST, "stream was invalid, can be either upstream or downstream")
            }
        }
    }
}

fn answer(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Body::from(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, axum::http::HeaderValue::from_static(kind));
    answer
}

fn text(status: StatusCode, body: String) -> Answer {
    answer(status, "text/plain; charset=utf-8", body)
}

fn value(status: StatusCode, body: &Value) -> Answer {
    answer(status, "application/json", body.to_string())
}

/// The API is for programs on this machine, not for pages in a browser on it.
async fn stop_browsers(request: Request, next: Next) -> Answer {
    let agent = request.headers().get(USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    match agent.starts_with("Mozilla/") {
        true => text(StatusCode::FORBIDDEN, "User agent not allowed\n".to_owned()),
        false => next.run(request).await,
    }
}

/// A proxy in a request.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Wanted {
    name: String,
    listen: Option<String>,
    upstream: String,
    enabled: Option<bool>,
}

impl Wanted {
    /// The field that is not there.
    fn lacks(&self) -> Option<&'static str> {
        match (self.name.is_empty(), self.upstream.is_empty()) {
            (true, _) => Some("name"),
            (false, true) => Some("upstream"),
            (false, false) => None,
        }
    }

    fn listen(&self) -> &str {
        self.listen.as_deref().unwrap_or("127.0.0.1:0")
    }

    async fn make(&self) -> Result<Proxy, Refusal> {
        let mut proxy = Proxy::bind(self.listen(), &self.upstream).await?;
        if self.enabled.unwrap_or(true) {
            proxy.open()?;
        }
        Ok(proxy)
    }
}

fn shown(name: &str, proxy: &Proxy) -> Value {
    let toxics: Vec<Value> = proxy.toxics.borrow().iter().map(|active| active.toxic.json()).collect();
    json!({
        "name": name,
        "listen": proxy.listen.to_string(),
        "upstream": proxy.upstream,
        "enabled": proxy.enabled(),
        "toxics": toxics,
    })
}

async fn list(State(proxies): State<Proxies>) -> Answer {
    let proxies = proxies.lock().await;
    let all: Map<String, Value> = proxies.iter().map(|(name, proxy)| (name.clone(), shown(name, proxy))).collect();
    value(StatusCode::OK, &Value::Object(all))
}

async fn create(State(proxies): State<Proxies>, body: Bytes) -> Result<Answer, Refusal> {
    let wanted: Wanted = serde_json::from_slice(&body).map_err(Refusal::body)?;
    if let Some(field) = wanted.lacks() {
        return Err(Refusal::missing(field));
    }
    let mut proxies = proxies.lock().await;
    if proxies.contains_key(&wanted.name) {
        return Err(Refusal::new(StatusCode::CONFLICT, "proxy already exists"));
    }
    let proxy = wanted.make().await?;
    let made = shown(&wanted.name, &proxy);
    proxies.insert(wanted.name, proxy);
    Ok(value(StatusCode::CREATED, &made))
}

async fn populate(State(proxies): State<Proxies>, body: Bytes) -> Result<Answer, Refusal> {
    let wanted: Vec<Wanted> = serde_json::from_slice(&body).map_err(Refusal::body)?;
    let lacking = wanted.iter().enumerate().find_map(|(i, wanted)| Some((i + 1, wanted.lacks()?)));
    if let Some((number, field)) = lacking {
        return Err(Refusal::missing(&format!("{field} at proxy {number}")));
    }
    let mut proxies = proxies.lock().await;
    let (mut made, mut failed) = (Vec::new(), None);
    for wanted in wanted {
        let old = proxies.get(&wanted.name);
        let same = |old: &Proxy| old.listen.to_string() == wanted.listen() && old.upstream == wanted.upstream;
        if old.is_some_and(same) {
            // It goes on as it is; the answer shows what was asked for, not yet started.
            made.push(json!({"name": wanted.name, "listen": wanted.listen(), "upstream": wanted.upstream,
                "enabled": false, "toxics": []}));
            continue;
        }
        if let Some(mut old) = proxies.remove(&wanted.name) {
            old.close().await;
        }
        match wanted.make().await {
            Ok(proxy) => {
                made.push(shown(&wanted.name, &proxy));
                proxies.insert(wanted.name, proxy);
            }
            Err(refusal) => {
                failed = Some(refusal);
                break;
            }
        }
    }
    let mut body = failed.as_ref().map(Refusal::json).unwrap_or_default();
    body.insert("proxies".to_owned(), Value::Array(made));
    Ok(value(failed.map_or(StatusCode::CREATED, |refusal| refusal.0), &Value::Object(body)))
}

async fn show(State(proxies): State<Proxies>, Path(name): Path<String>) -> Result<Answer, Refusal> {
    let proxies = proxies.lock().await;
    let proxy = proxies.get(&name).ok_or_else(Refusal::no_proxy)?;
    Ok(value(StatusCode::OK, &shown(&name, proxy)))
}

async fn update(State(proxies): State<Proxies>, Path(name): Path<String>, body: Bytes) -> Result<Answer, Refusal> {
    let mut proxies = proxies.lock().await;
    let proxy = proxies.get_mut(&name).ok_or_else(Refusal::no_proxy)?;
    let wanted: Wanted = serde_json::from_slice(&body).map_err(Refusal::body)?;
    let enabled = wanted.enabled.unwrap_or(proxy.enabled());
    let listen = wanted.listen.unwrap_or_else(|| proxy.listen.to_string());
    let upstream = if wanted.upstream.is_empty() { proxy.upstream.clone() } else { wanted.upstream };
    if listen != proxy.listen.to_string() || upstream != proxy.upstream {
        proxy.close().await;
        if listen == proxy.listen.to_string() {
            proxy.upstream = upstream;
        } else {
            let toxics = proxy.toxics.borrow().clone();
            *proxy = Proxy::bind(&listen, &upstream).await?;
            proxy.toxics.send_replace(toxics);
        }
    }
    match enabled {
        true => proxy.open()?,
        false => proxy.close().await,
    }
    Ok(value(StatusCode::OK, &shown(&name, proxy)))
}

async fn remove(State(proxies): State<Proxies>, Path(name): Path<String>) -> Result<StatusCode, Refusal> {
    let mut proxy = proxies.lock().await.remove(&name).ok_or_else(Refusal::no_proxy)?;
    proxy.close().await;
    Ok(StatusCode::NO_CONTENT)
}

async fn reset(State(proxies): State<Proxies>) -> Result<StatusCode, Refusal> {
    for proxy in proxies.lock().await.values_mut() {
        proxy.open()?;
        proxy.toxics.send_replace([].into());
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn list_toxics(State(proxies): State<Proxies>, Path(name): Path<String>) -> Result<Answer, Refusal> {
    let proxies = proxies.lock().await;
    let proxy = proxies.get(&name).ok_or_else(Refusal::no_proxy)?;
    Ok(value(StatusCode::OK, &shown(&name, proxy)["toxics"]))
}

async fn add_toxic(State(proxies): State<Proxies>, Path(name): Path<String>, body: Bytes) -> Result<Answer, Refusal> {
    static TOXICS: AtomicU64 = AtomicU64::new(0);
    let proxies = proxies.lock().await;
    let proxy = proxies.get(&name).ok_or_else(Refusal::no_proxy)?;
    let toxic = Toxic::parse(&body)?;
    let mut toxics = proxy.toxics.borrow().to_vec();
    if toxics.iter().any(|active| active.toxic.name == toxic.name) {
        return Err(Refusal::new(StatusCode::CONFLICT, "toxic already exists"));
    }
    let made = toxic.json();
    toxics.push(Arc::new(Active { id: TOXICS.fetch_add(1, Ordering::Relaxed), toxic }));
    // As Toxiproxy orders them: by direction, then by age.
    toxics.sort_by_key(|active| active.toxic.stream.name() == "downstream");
    proxy.toxics.send_replace(toxics.into());
    Ok(value(StatusCode::OK, &made))
}

async fn show_toxic(
    State(proxies): State<Proxies>,
    Path((name, toxic)): Path<(String, String)>,
) -> Result<Answer, Refusal> {
    let proxies = proxies.lock().await;
    let toxics = proxies.get(&name).ok_or_else(Refusal::no_proxy)?.toxics.borrow();
    let found = toxics.iter().find(|active| active.toxic.name == toxic).ok_or_else(Refusal::no_toxic)?;
    Ok(value(StatusCode::OK, &found.toxic.json()))
}

async fn update_toxic(
    State(proxies): State<Proxies>,
    Path((name, toxic)): Path<(String, String)>,
    body: Bytes,
) -> Result<Answer, Refusal> {
    let proxies = proxies.lock().await;
    let proxy = proxies.get(&name).ok_or_else(Refusal::no_proxy)?;
    let mut toxics = proxy.toxics.borrow().to_vec();
    let found = toxics.iter_mut().find(|active| active.toxic.name == toxic).ok_or_else(Refusal::no_toxic)?;
    let updated = found.toxic.updated(&body)?;
    let shown = updated.json();
    *found = Arc::new(Active { id: found.id, toxic: updated });
    proxy.toxics.send_replace(toxics.into());
    Ok(value(StatusCode::OK, &shown))
}

async fn remove_toxic(
    State(proxies): State<Proxies>,
    Path((name, toxic)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let proxies = proxies.lock().await;
    let proxy = proxies.get(&name).ok_or_else(Refusal::no_proxy)?;
    let mut toxics = proxy.toxics.borrow().to_vec();
    let place = toxics.iter().position(|active| active.toxic.name == toxic).ok_or_else(Refusal::no_toxic)?;
    toxics.remove(place);
    proxy.toxics.send_replace(toxics.into());
    Ok(StatusCode::NO_CONTENT)
}
