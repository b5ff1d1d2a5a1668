//! TLS towards etcd: the client certificate, and whom to believe.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tonic::transport::{ClientTlsConfig, Endpoint, Identity};

use super::SettingsError;

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
            Some(path) => Arc::new(Trusting::from_file(path, provider)?),
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

fn read(path: &Path) -> Result<Vec<u8>, SettingsError> {
    std::fs::read(path).map_err(|source| SettingsError::File { path: path.to_owned(), source })
}

/// The usual checks, but for one thing: a certificate that is itself in the CA file may be etcd's own even when it is a CA
/// certificate, as `openssl req -x509` makes them and the field uses them. Its name and its dates count all the same.
#[derive(Debug)]
struct Trusting {
    usual: Arc<WebPkiServerVerifier>,
    trusted: Vec<CertificateDer<'static>>,
}

impl Trusting {
    fn from_file(path: &Path, provider: Arc<CryptoProvider>) -> Result<Trusting, SettingsError> {
        let bad = |why: String| SettingsError::Certificates { path: path.to_owned(), why };
        let trusted: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&read(path)?)
            .collect::<Result<_, _>>()
            .map_err(|error| bad(error.to_string()))?;
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(trusted.iter().cloned());
        let usual = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        Ok(Trusting { usual: usual.map_err(|error| bad(error.to_string()))?, trusted })
    }
}

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let usual = self.usual.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match usual {
            // webpki looks at the dates first: whoever comes here has good ones. It has no name of its own for this
            // error in rustls, hence the text.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(other)))
                if format!("{other:?}").contains("CaUsedAsEndEntity")
                    && self.trusted.iter().any(|trusted| trusted.as_ref() == end_entity.as_ref()) =>
            {
                rustls::client::verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
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
