//! Calls of members' REST API (cli.md 1.3, 6).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use regent_pgctl::pem;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::CtlConfig;
use crate::peers;

/// A member's time to take a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// No answer is larger.
const LARGEST: usize = 1024 * 1024;
/// Where systems keep the certificates that they trust.
const SYSTEM_STORES: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

/// How members are called.
#[derive(Clone)]
pub(super) struct Rest {
    authorization: Option<HeaderValue>,
    ctl: CtlConfig,
}

/// What a member said.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: String,
}

impl Answer {
    /// `status code=503, (text)`
    pub(super) fn refusal(&self) -> String {
        format!("status code={}, ({})", self.status.as_u16(), self.body)
    }
}

impl Rest {
    pub(super) fn new(ctl: &CtlConfig) -> Rest {
        let basic = ctl.authentication.as_ref();
        let text = basic.map(|basic| STANDARD.encode(format!("{}:{}", basic.username, basic.password.expose())));
        let authorization = text.and_then(|text| HeaderValue::try_from(format!("Basic {text}")).ok());
        Rest { authorization, ctl: ctl.clone() }
    }

    /// One call: `path` takes the place of the path in the member's `api_url`.
    ///
    /// # Errors
    /// Why there is no answer, for people.
    pub(super) async fn call(
        &self,
        method: Method,
        api_url: &str,
        path: &str,
        body: Option<&Value>,
        within: Duration,
    ) -> Result<Answer, String> {
        let called = self.exchange(method, api_url, path, body);
        let late = |_| format!("no answer within {} s", within.as_secs());
        timeout(within, called).await.map_err(late)?
    }

    async fn exchange(&self, method: Method, url: &str, path: &str, body: Option<&Value>) -> Result<Answer, String> {
        let text = |error: &dyn std::error::Error| error.to_string();
        let uri: Uri = url.parse().map_err(|_| "its address is no URL".to_owned())?;
        let tls = uri.scheme_str() == Some("https");
        let Some(host) = uri.host() else { return Err("its address has no host".to_owned()) };
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let mut request = http::Request::new(Full::new(Bytes::from(body.map(Value::to_string).unwrap_or_default())));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(|_| "this is no path".to_owned())?;
        let headers = request.headers_mut();
        let authority = HeaderValue::try_from(format!("{host}:{port}")).map_err(|error| text(&error))?;
        headers.insert(header::HOST, authority);
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        if body.is_some() {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(authorization) = &self.authorization {
            headers.insert(header::AUTHORIZATION, authorization.clone());
        }
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let stream = timeout(CONNECT, TcpStream::connect((bare.as_str(), port))).await;
        let stream = stream.map_err(|_| "it takes no connection".to_owned())?.map_err(|error| text(&error))?;
        if !tls {
            return send(stream, request).await;
        }
        let name = ServerName::try_from(bare).map_err(|error| text(&error))?;
        let config = if self.ctl.insecure { peers::unchecked(&self.ctl)? } else { Arc::new(verifying(&self.ctl)?) };
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await;
        send(stream.map_err(|error| format!("TLS: {error}"))?, request).await
    }
}

async fn send<S>(stream: S, request: http::Request<Full<Bytes>>) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    // Ends with the answer, or with the task that waits for it.
    let mut driver = tokio::task::JoinSet::new();
    driver.spawn(connection);
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = response.status();
    let body = Limited::new(response.into_body(), LARGEST).collect().await.map_err(|error| error.to_string())?;
    Ok(Answer { status, body: String::from_utf8_lossy(&body.to_bytes()).into_owned() })
}

/// Believes `ctl.cacert`, else the system's store; shows `ctl.certfile` where a server asks for one.
fn verifying(ctl: &CtlConfig) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    let system = || SYSTEM_STORES.iter().find(|path| Path::new(path).exists()).map(ToString::to_string);
    if let Some(store) = ctl.cacert.clone().or_else(system) {
        roots.add_parsable_certificates(pem::certificates("ctl.cacert", &store)?);
    }
    let config = ClientConfig::builder().with_root_certificates(roots);
    match peers::identity(ctl)? {
        None => Ok(config.with_no_client_auth()),
        Some((chain, key)) => {
            config.with_client_auth_cert(chain, key).map_err(|error| format!("ctl.certfile: {error}"))
        }
    }
}
