//! TLS of the REST API, and who a client is (rest-api.md 19.2, 19.4).

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use regent_dcs::trust;
use regent_pgctl::pem;
use rustls::ServerConfig;

use crate::config::{RestConfig, Secret};

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(super) struct Client {
    /// Its address; an IPv4 address is one, also on a listener for both.
    pub(super) address: IpAddr,
    /// It showed a certificate that `restapi.cafile` vouches for.
    pub(super) certified: bool,
    /// Its request is being answered; while it is only waited for, the connection may be cut in favour of another.
    pub(super) busy: Arc<AtomicBool>,
}

/// Certificate, key and whom to believe, as read from their files.
#[derive(Clone)]
pub struct Tls {
    pub(super) config: Arc<ServerConfig>,
    /// `verify_client: optional`: guarded calls want a certificate.
    pub(super) wants_certificate: bool,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("wants_certificate", &self.wants_certificate).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads what `restapi` names; `None` where there is no `certfile`.
    ///
    /// # Errors
    /// Which file cannot be used and why, for people.
    pub fn load(rest: &RestConfig) -> Result<Option<Tls>, String> {
        let verify = rest.verify_client.as_str();
        if !matches!(verify, "none" | "optional" | "required") {
            return Err(format!("restapi.verify_client is {verify:?}; it may be none, optional or required"));
        }
        let Some(certfile) = &rest.certfile else { return Ok(None) };
        let keyfile = rest.keyfile.as_ref().unwrap_or(certfile);
        let chain = pem::certificates("restapi.certfile", certfile)?;
        let password = rest.keyfile_password.as_ref().map(Secret::expose);
        let key = pem::private_key("restapi.keyfile", keyfile, password)?;
        let mut provider = rustls::crypto::ring::default_provider();
        if let Some(suites) = &rest.ciphers {
            provider.cipher_suites.clone_from(suites);
        }
        let provider = Arc::new(provider);
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| format!("restapi.ciphers: {error}"))?;
        let builder = match (verify, &rest.cafile) {
            ("none", _) => builder.with_no_client_auth(),
            (_, None) => return Err(format!("restapi.verify_client is {verify}, and there is no restapi.cafile")),
            (_, Some(cafile)) => {
                let trusted = pem::certificates("restapi.cafile", cafile)?;
                let verifier = trust::in_clients(trusted, provider, verify == "optional");
                builder
                    .with_client_cert_verifier(verifier.map_err(|error| format!("restapi.cafile {cafile}: {error}"))?)
            }
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| format!("restapi.certfile {certfile} and its key: {error}"))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Some(Tls { config: Arc::new(config), wants_certificate: verify == "optional" }))
    }
}
