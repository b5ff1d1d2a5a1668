//! TLS towards etcd: the client certificate, and whom to believe.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tonic::transport::{ClientTlsConfig, Endpoint, Identity};

use super::SettingsError;
use crate::trust;

/// Files of PEM (config.md: `etcd3.cacert`, `etcd3.cert`, `etcd3.key`). Used for `https` endpoints only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Who may sign etcd's certificate. Without it the certificate is not checked, as with the peer (dcs.md section 6).
    pub ca: Option<PathBuf>,
    /// The client certificate, with its chain.
    pub cert: Option<PathBuf>,
    /// Its key; `None`: it lies in the same file.
    pub key: Option<PathBuf>,
}

/// The files, read.
pub(super) struct Tls {
    verifier: Arc<dyn ServerCertVerifier>,
    identity: Option<Identity>,
}

impl Tls {
    pub(super) fn load(files: &TlsFiles) -> Result<Tls, SettingsError> {
        let provider = CryptoProvider::get_default().cloned();
        let provider = provider.unwrap_or_else(|| Arc::new(rustls::crypto::ring::default_provider()));
        let identity = files.cert.as_ref().map(|cert| {
            let key = files.key.as_ref().unwrap_or(cert);
            Ok(Identity::from_pem(read(cert)?, read(key)?))
        });
        let verifier: Arc<dyn ServerCertVerifier> = match &files.ca {
            Some(path) => believing(path, provider)?,
            None => Arc::new(Unchecked(provider)),
        };
        Ok(Tls { verifier, identity: identity.transpose()? })
    }

    pub(super) fn apply(&self, endpoint: Endpoint) -> Result<Endpoint, tonic::transport::Error> {
        // etcd negotiates HTTP/2, but a terminating proxy before it may not.
        let config = ClientTlsConfig::new().assume_http2(true);
        let config = match &self.identity {
            Some(identity) => config.identity(identity.clone()),
            None => config,
        };
        endpoint.tls_config_with_verifier(config, Arc::clone(&self.verifier))
    }
}

/// Believes those that the CA file vouches for.
fn believing(path: &Path, provider: Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>, SettingsError> {
    let bad = |why: String| SettingsError::Certificates { path: path.to_owned(), why };
    let trusted = CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<_, _>>();
    trust::in_servers(trusted.map_err(|error| bad(error.to_string()))?, provider).map_err(bad)
}

fn read(path: &Path) -> Result<Vec<u8>, SettingsError> {
    std::fs::read(path).map_err(|source| SettingsError::File { path: path.to_owned(), source })
}

/// Without a CA file nobody is checked: encryption only, as with the peer.
#[derive(Debug)]
struct Unchecked(Arc<CryptoProvider>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
