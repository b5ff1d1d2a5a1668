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
use regent_dcs::trust;
use regent_pgctl::pem;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
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
    /// By which the member knows what it was asked for.
    pub(super) operation: Option<u64>,
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
    let operation = response.headers().get("regent-operation").and_then(|id| id.to_str().ok()?.parse().ok());
    let body = Limited::new(response.into_body(), LARGEST).collect().await.map_err(|error| error.to_string())?;
    Ok(Answer { status, body: String::from_utf8_lossy(&body.to_bytes()).into_owned(), operation })
}

/// Believes `ctl.cacert`, else the system's store; shows `ctl.certfile` where a server asks for one.
fn verifying(ctl: &CtlConfig) -> Result<ClientConfig, String> {
    let system = || SYSTEM_STORES.iter().find(|path| Path::new(path).exists()).map(ToString::to_string);
    let none = "https needs ctl.cacert, as there is no system store of certificates; or set ctl.insecure";
    let store = ctl.cacert.clone().or_else(system).ok_or(none)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = trust::in_servers(pem::certificates("ctl.cacert", &store)?, Arc::clone(&provider));
    let verifier = verifier.map_err(|error| format!("ctl.cacert {store}: {error}"))?;
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| error.to_string())?.dangerous().with_custom_certificate_verifier(verifier);
    match peers::identity(ctl)? {
        None => Ok(config.with_no_client_auth()),
        Some((chain, key)) => {
            config.with_client_auth_cert(chain, key).map_err(|error| format!("ctl.certfile: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rustls::ServerConfig;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A self-signed certificate that is a CA's too, for this name: PEM files in `dir`, and what is in them.
    fn all_at_once(dir: &Path, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, CtlConfig) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let der = params.self_signed(&key).unwrap().der().clone();
        let file = |end: &str, kind: &str, der: &[u8]| {
            let text = STANDARD.encode(der);
            let path: PathBuf = dir.join(format!("{name}.{end}"));
            std::fs::write(&path, format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n")).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (crt, keyfile) = (file("crt", "CERTIFICATE", &der), file("key", "PRIVATE KEY", &key.serialize_der()));
        let ctl = CtlConfig {
            cacert: Some(crt.clone()),
            certfile: Some(crt),
            keyfile: Some(keyfile),
            ..CtlConfig::default()
        };
        (vec![der], PrivateKeyDer::try_from(key.serialize_der()).unwrap(), ctl)
    }

    #[tokio::test]
    async fn one_self_signed_certificate_may_be_all_at_once() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let (chain, key, ctl) = all_at_once(dir.path(), "localhost");
        let (_, _, stranger) = all_at_once(dir.path(), "elsewhere");
        let nameless = CtlConfig { cacert: ctl.cacert.clone(), ..CtlConfig::default() };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = trust::in_clients(chain.clone(), provider, false).unwrap();
        let server = ServerConfig::builder().with_client_cert_verifier(clients).with_single_cert(chain, key).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes").await;
                let _ = stream.shutdown().await;
            }
        });
        let call = async |ctl: &CtlConfig, host: &str| {
            let url = format!("https://{host}:{port}/patroni");
            Rest::new(ctl).call(Method::GET, &url, "/", None, CONNECT).await.map(|answer| answer.body)
        };
        assert_eq!(call(&ctl, "localhost").await.as_deref(), Ok("yes"));
        let refused = [call(&stranger, "localhost").await, call(&ctl, "127.0.0.1").await];
        assert!(refused.iter().all(Result::is_err), "another certificate, another name: {refused:?}");
        assert!(call(&nameless, "localhost").await.is_err(), "a client without a certificate");
    }
}
