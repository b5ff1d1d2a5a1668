//! Whom to believe in TLS: the usual checks, but for one thing. A certificate that is itself in the CA file may be the other side's
//! own although it is a CA certificate, as `openssl req -x509` makes them: the field uses one such file as server, client and CA
//! certificate at once, and rustls' own verifiers refuse it (`CaUsedAsEndEntity`). Its dates and its name count all the same.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};

/// What a CA file holds.
#[derive(Debug)]
struct Trusted(Vec<CertificateDer<'static>>);

impl Trusted {
    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(self.0.iter().cloned());
        Arc::new(roots)
    }

    /// The usual check failed for nothing but that this certificate is a CA's, and it is one of ours.
    fn holds(&self, end_entity: &CertificateDer<'_>, error: &Error) -> bool {
        // webpki looks at the dates first: whoever comes here has good ones. rustls has no name of its own for this error, hence
        // the text.
        matches!(error, Error::InvalidCertificate(CertificateError::Other(other)) if format!("{other:?}").contains("CaUsedAsEndEntity"))
            && self.0.iter().any(|trusted| trusted.as_ref() == end_entity.as_ref())
    }
}

/// Checks servers' certificates against these.
///
/// # Errors
/// None of them can be believed, for people.
pub fn in_servers(
    trusted: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, String> {
    let trusted = Trusted(trusted);
    let usual = WebPkiServerVerifier::builder_with_provider(trusted.roots(), provider).build();
    Ok(Arc::new(Servers { usual: usual.map_err(|error| error.to_string())?, trusted }))
}

/// Checks clients' certificates against these; a client without one is served if that is `optional`.
///
/// # Errors
/// None of them can be believed, for people.
pub fn in_clients(
    trusted: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
    optional: bool,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let trusted = Trusted(trusted);
    let usual = WebPkiClientVerifier::builder_with_provider(trusted.roots(), provider);
    let usual = if optional { usual.allow_unauthenticated() } else { usual };
    Ok(Arc::new(Clients { usual: usual.build().map_err(|error| error.to_string())?, trusted }))
}

#[derive(Debug)]
struct Servers {
    usual: Arc<WebPkiServerVerifier>,
    trusted: Trusted,
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.usual.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(error) if self.trusted.holds(end_entity, &error) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            usual => usual,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

#[derive(Debug)]
struct Clients {
    usual: Arc<dyn ClientCertVerifier>,
    trusted: Trusted,
}

impl ClientCertVerifier for Clients {
    fn offer_client_auth(&self) -> bool {
        self.usual.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.usual.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.usual.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.usual.verify_client_cert(end_entity, intermediates, now) {
            Err(error) if self.trusted.holds(end_entity, &error) => Ok(ClientCertVerified::assertion()),
            usual => usual,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}
