//! Asking other members what they know of themselves (rest-api.md section 20, ha-rules section 5 "Peers asked").
//!
//! Whatever a member sends, or does not, ends within the time given, as an answer or as a reason why there is none.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use regent_core::failsafe::Notice;
use regent_core::peers::{PeerAnswer, PeerReply, Question};
use regent_core::units::{Lsn, MemberName, Timeline};
use regent_pgctl::pem;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::config::{CtlConfig, Secret};

/// The longest status document we read.
const MAX_BODY: usize = 1 << 20;
/// Where a name has several addresses, each gets at least this long to connect.
const MIN_CONNECT: Duration = Duration::from_millis(300);

/// Why there is no usable answer. Prose for people.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("no answer within {0:?}")]
    TooLate(Duration),
    #[error("its address {0:?} is not an http or https URL; correct restapi.connect_address there")]
    BadUrl(String),
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    #[error("TLS: {0}")]
    Tls(std::io::Error),
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("the body cannot be read: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("it answered {0}: {1}")]
    Refused(StatusCode, String),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("its answer is not JSON: {0}")]
    NotJson(#[from] serde_json::Error),
    #[error("its answer has no WAL position: PostgreSQL does not run there, or does not answer")]
    NoPosition,
}

/// Asks every member for its status document, all at once, and returns when the last has answered or had its time.
///
/// Every member asked is in the result. No retry: who needs one asks again.
pub async fn ask(whom: BTreeMap<MemberName, Question>) -> BTreeMap<MemberName, PeerReply> {
    let mut replies: BTreeMap<_, _> =
        whom.keys().map(|name| (name.clone(), PeerReply::Unreachable("it was not asked".to_owned()))).collect();
    let mut asking = JoinSet::new();
    for (name, Question { url, within }) in whom {
        asking.spawn(async move { (name, status_of(&url, within).await) });
    }
    while let Some(asked) = asking.join_next().await {
        if let Ok((name, answer)) = asked {
            let reply = answer.map_or_else(|error| PeerReply::Unreachable(error.to_string()), PeerReply::Answer);
            replies.insert(name, reply);
        }
    }
    replies
}

/// Asks every member to agree that the sender goes on without etcd (`POST /failsafe`), all at once; who does not agree is asked
/// once more. Returns who agreed: with 200 and exactly `Accepted`, nothing else counts (rest-api.md section 17).
///
/// `authorization` is the value of that header, for members that ask for one.
pub async fn confirm(
    urls: BTreeMap<MemberName, String>,
    notice: &Notice,
    authorization: Option<HeaderValue>,
    within: Duration,
) -> BTreeMap<MemberName, bool> {
    let mut agreed: BTreeMap<_, _> = urls.keys().map(|name| (name.clone(), false)).collect();
    let Ok(body) = serde_json::to_vec(notice).map(Bytes::from) else { return agreed };
    let once = within / 2;
    let mut asking = JoinSet::new();
    for (name, url) in urls {
        let want = Want::Agreement { body: body.clone(), authorization: authorization.clone() };
        asking.spawn(async move {
            for _ in 0..2 {
                match timeout(once, agrees(&url, want.clone(), once)).await {
                    Ok(Ok(true)) => return (name, true),
                    Ok(Ok(false)) => {}
                    Ok(Err(error)) => tracing::debug!("{name} was asked to agree: {error}"),
                    Err(_) => tracing::debug!("{name} was asked to agree: no answer within {once:?}"),
                }
            }
            (name, false)
        });
    }
    while let Some(asked) = asking.join_next().await {
        if let Ok((name, yes)) = asked {
            agreed.insert(name, yes);
        }
    }
    agreed
}

async fn agrees(url: &str, want: Want, within: Duration) -> Result<bool, AskError> {
    let (status, body) = get(&target(url, want)?, within).await?;
    let body = body.map_err(AskError::Body)?;
    if status != StatusCode::OK {
        return Err(AskError::Refused(status, String::from_utf8_lossy(&body).chars().take(200).collect()));
    }
    Ok(body == "Accepted")
}

/// Something answers HTTP at this `api_url`: whatever it says, the name is taken (ha-rules B12).
pub async fn liveness(url: &str, within: Duration) -> bool {
    let asked = async { get(&target(url, Want::AnyAnswer)?, within).await };
    timeout(within, asked).await.is_ok_and(|answer| answer.is_ok())
}

async fn status_of(url: &str, within: Duration) -> Result<PeerAnswer, AskError> {
    let asked = async { get(&target(url, Want::Document)?, within).await };
    let (status, body) = timeout(within, asked).await.map_err(|_| AskError::TooLate(within))??;
    if !status.is_success() {
        return Err(AskError::Status(status));
    }
    read(&serde_json::from_slice(&body.map_err(AskError::Body)?)?).ok_or(AskError::NoPosition)
}

/// Reads a status document leniently: numbers may be text, unknown keys are ignored, nonsense is as good as absent.
/// `None` without a position, "not reachable" in the contract's words.
fn read(document: &Value) -> Option<PeerAnswer> {
    let xlog = document.get("xlog").or_else(|| document.get("wal"))?.as_object()?;
    let position = |key: &str| xlog.get(key).and_then(number::<u64>).map(Lsn);
    let written = position("location").filter(|lsn| lsn.0 > 0);
    let role = document.get("role").and_then(Value::as_str).unwrap_or_default();
    let is_primary = written.is_some() || matches!(role, "primary" | "master");
    let newest = position("received_location").max(position("replayed_location")).max(position("location"));
    let tag = |name: &str| document.get("tags").and_then(|tags| tags.get(name));
    let priority = tag("failover_priority").and_then(number::<i64>);
    // A `nofailover` that is set beats the priority (config.md 3.9).
    let nofailover = tag("nofailover").map(truthy).unwrap_or(priority.is_some_and(|priority| priority <= 0));
    Some(PeerAnswer {
        is_primary,
        position: if is_primary { newest.unwrap_or_default() } else { newest? },
        timeline: document.get("timeline").and_then(number::<u32>).filter(|n| *n > 0).map(Timeline),
        nofailover,
        failover_priority: if nofailover { 0 } else { priority.unwrap_or(1) },
        watchdog_failed: document.get("watchdog_failed").is_some_and(truthy),
    })
}

fn number<T: TryFrom<u64> + TryFrom<i64> + std::str::FromStr>(value: &Value) -> Option<T> {
    let whole = || value.as_u64().and_then(|n| n.try_into().ok()).or_else(|| value.as_i64()?.try_into().ok());
    whole().or_else(|| value.as_str()?.trim().parse().ok())
}

fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(yes) => *yes,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => matches!(text.to_ascii_lowercase().as_str(), "true" | "on" | "yes" | "1"),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// What a request is for.
#[derive(Clone, PartialEq, Eq)]
enum Want {
    /// The status document at the URL itself.
    Document,
    /// A sign of life from `/liveness`; its status line is enough.
    AnyAnswer,
    /// `POST /failsafe`.
    Agreement { body: Bytes, authorization: Option<HeaderValue> },
}

/// Where a request goes.
struct Target {
    want: Want,
    tls: bool,
    host: String,
    port: u16,
    path: String,
    /// Host and port as in the URL.
    authority: HeaderValue,
}

fn target(url: &str, want: Want) -> Result<Target, AskError> {
    let bad = || AskError::BadUrl(url.chars().take(100).collect());
    let uri: Uri = url.parse().map_err(|_| bad())?;
    let tls = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(bad()),
    };
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(bad)?;
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let path = match &want {
        Want::Document => uri.path_and_query().map_or("/", |path| path.as_str()),
        Want::AnyAnswer => "/liveness",
        Want::Agreement { .. } => "/failsafe",
    };
    Ok(Target {
        want,
        tls,
        host: host.trim_matches(['[', ']']).to_owned(),
        port,
        path: path.to_owned(),
        authority: HeaderValue::try_from(format!("{host}:{port}")).map_err(|_| bad())?,
    })
}

/// The status code, and the body or why it could not be read.
type Answer = (StatusCode, Result<Bytes, Box<dyn std::error::Error + Send + Sync>>);

/// One request on a connection of its own. The caller bounds it by `within`, which here only shares out the connect time.
async fn get(target: &Target, within: Duration) -> Result<Answer, AskError> {
    let stream = connect(target, within).await?;
    if !target.tls {
        return exchange(stream, target).await;
    }
    let name = ServerName::try_from(target.host.clone())
        .map_err(|error| AskError::Tls(std::io::Error::new(std::io::ErrorKind::InvalidInput, error)))?;
    let config = unchecked_tls().map_err(|error| AskError::Tls(std::io::Error::other(error)))?;
    let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.map_err(AskError::Tls)?;
    exchange(stream, target).await
}

async fn connect(target: &Target, within: Duration) -> Result<TcpStream, AskError> {
    let addresses: Vec<SocketAddr> = match target.host.parse::<IpAddr>() {
        Ok(address) => vec![(address, target.port).into()], // the resolver's thread pool is not needed, nor waited for
        Err(_) => {
            tokio::net::lookup_host((target.host.as_str(), target.port)).await.map_err(AskError::Connect)?.collect()
        }
    };
    let share = within.checked_div(addresses.len().try_into().unwrap_or(u32::MAX)).unwrap_or(within).max(MIN_CONNECT);
    let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "its name has no address");
    for address in addresses {
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = std::io::Error::new(std::io::ErrorKind::TimedOut, format!("{address} is silent")),
        }
    }
    Err(AskError::Connect(last))
}

async fn exchange<S>(stream: S, target: &Target) -> Result<Answer, AskError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut request = Request::new(Full::<Bytes>::default());
    if let Want::Agreement { body, authorization } = &target.want {
        *request.method_mut() = Method::POST;
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        request.headers_mut().insert(header::CONTENT_LENGTH, body.len().into());
        if let Some(authorization) = authorization {
            request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
        }
        *request.body_mut() = Full::new(body.clone());
    }
    *request.uri_mut() = target.path.parse().map_err(|_| AskError::BadUrl(target.path.clone()))?;
    let headers = request.headers_mut();
    headers.insert(header::HOST, target.authority.clone());
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("Regent/", env!("CARGO_PKG_VERSION"))));
    let exchange = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        if target.want == Want::AnyAnswer {
            return Ok((status, Ok(Bytes::new())));
        }
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
        Ok((status, body.map(http_body_util::Collected::to_bytes)))
    };
    let (mut exchange, mut connection) = (pin!(exchange), pin!(connection));
    tokio::select! {
        answer = &mut exchange => answer,
        // The connection's task is done before its last bytes were taken; they wait in the exchange.
        _ = &mut connection => exchange.await,
    }
}

/// TLS that believes every certificate, and shows the one of [`introduce`].
///
/// # Errors
/// TLS cannot be had at all, for people.
fn unchecked_tls() -> Result<Arc<ClientConfig>, String> {
    let mut config = TLS.lock().unwrap_or_else(PoisonError::into_inner);
    match &*config {
        Some(config) => Ok(Arc::clone(config)),
        None => Ok(Arc::clone(config.insert(unchecked(&CtlConfig::default())?))),
    }
}

/// Members show this certificate, `ctl.certfile`, to members that ask for one.
///
/// # Errors
/// Which file cannot be used and why, for people.
pub fn introduce(ctl: &CtlConfig) -> Result<(), String> {
    *TLS.lock().unwrap_or_else(PoisonError::into_inner) = Some(unchecked(ctl)?);
    Ok(())
}

/// Certificate chain and key of `ctl.certfile`, `ctl.keyfile`.
pub(crate) type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// What `ctl` says that this side shows, if anything.
///
/// # Errors
/// Which file cannot be used and why, for people.
pub(crate) fn identity(ctl: &CtlConfig) -> Result<Option<Identity>, String> {
    let Some(certfile) = &ctl.certfile else { return Ok(None) };
    let keyfile = ctl.keyfile.as_ref().unwrap_or(certfile);
    let key = pem::private_key("ctl.keyfile", keyfile, ctl.keyfile_password.as_ref().map(Secret::expose))?;
    Ok(Some((pem::certificates("ctl.certfile", certfile)?, key)))
}

/// Members' certificates are not checked here: this is how the peer asks its members, and their names rarely match.
static TLS: Mutex<Option<Arc<ClientConfig>>> = Mutex::new(None);

/// TLS that believes every certificate.
///
/// # Errors
/// Which file cannot be used and why, for people.
pub(crate) fn unchecked(ctl: &CtlConfig) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(AnyCertificate(provider.signature_verification_algorithms.supported_schemes()));
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| error.to_string())?.dangerous().with_custom_certificate_verifier(verifier);
    let config = match identity(ctl)? {
        None => config.with_no_client_auth(),
        Some((chain, key)) => {
            config.with_client_auth_cert(chain, key).map_err(|error| format!("ctl.certfile: {error}"))?
        }
    };
    Ok(Arc::new(config))
}

/// Accepts any certificate: TLS for secrecy from listeners, not for knowing whom we ask.
#[derive(Debug)]
struct AnyCertificate(Vec<SignatureScheme>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}
