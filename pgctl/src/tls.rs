//! TLS towards the local server, after libpq's `sslmode` (PostgreSQL documentation, "SSL Support").
//!
//! `prefer` (the default), `allow` and `require` encrypt and verify nothing, as libpq does without a root certificate.
//! `allow` is treated as `prefer`; a server that takes TLS but whose pg_hba.conf then refuses it is not asked again without.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::pem;
use crate::settings::Credentials;

/// What an `sslmode` demands of the server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Demand {
    Nothing,
    Chain,
    ChainAndName,
}

/// The mode and the connector for these credentials.
///
/// # Errors
/// Which option cannot be used, for people.
pub fn connector(credentials: &Credentials) -> Result<(SslMode, MakeRustlsConnect), String> {
    let option = |key: &str| credentials.options.get(key).map(String::as_str).filter(|value| !value.is_empty());
    let roots = option("sslrootcert");
    let (mode, demand) = match (option("sslmode").unwrap_or("prefer"), roots) {
        ("disable", _) => (SslMode::Disable, Demand::Nothing),
        ("allow" | "prefer", _) => (SslMode::Prefer, Demand::Nothing),
        ("require", None) => (SslMode::Require, Demand::Nothing),
        ("require" | "verify-ca", Some(_)) => (SslMode::Require, Demand::Chain),
        ("verify-full", Some(_)) => (SslMode::Require, Demand::ChainAndName),
        ("verify-ca" | "verify-full", None) => {
            return Err("sslmode=verify-ca or verify-full needs sslrootcert".to_owned());
        }
        (other, _) => return Err(format!("sslmode={other:?} is not one that PostgreSQL knows")),
    };
    let provider = Arc::new(ring::default_provider());
    let verifier = Verifier::new(demand, roots, &provider)?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match (option("sslcert"), option("sslkey")) {
        (Some(cert), Some(key)) => {
            let key = pem::private_key("sslkey", key, option("sslpassword"))?;
            config
                .with_client_auth_cert(pem::certificates("sslcert", cert)?, key)
                .map_err(|e| format!("sslcert {cert}: {e}"))?
        }
        (None, None) => config.with_no_client_auth(),
        (Some(_), None) | (None, Some(_)) => return Err("sslcert and sslkey belong together".to_owned()),
    };
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok((mode, MakeRustlsConnect::new(config)))
}

/// Checks what was demanded. Accepts a certificate that lies in the root file itself, which rustls' own verifier refuses
/// when it is a CA's too: the field uses one self-signed file for everything.
#[derive(Debug)]
struct Verifier {
    demand: Demand,
    trusted: Vec<CertificateDer<'static>>,
    chain: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(demand: Demand, roots: Option<&str>, provider: &Arc<CryptoProvider>) -> Result<Verifier, String> {
        let bare = Verifier { demand, trusted: Vec::new(), chain: None, provider: Arc::clone(provider) };
        let (Demand::Chain | Demand::ChainAndName, Some(path)) = (demand, roots) else { return Ok(bare) };
        let trusted = pem::certificates("sslrootcert", path)?;
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(trusted.iter().cloned());
        let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider)).build();
        let chain = chain.map_err(|e| format!("sslrootcert {path}: {e}"))?;
        Ok(Verifier { trusted, chain: Some(chain), ..bare })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        if !self.trusted.iter().any(|trusted| trusted.as_ref() == end_entity.as_ref()) {
            match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp, now) {
                Err(Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                )) if self.demand == Demand::Chain => {}
                other => return other,
            }
        } else if self.demand == Demand::ChainAndName {
            let certificate = ParsedCertificate::try_from(end_entity)?;
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(options: &[(&str, &str)]) -> Result<SslMode, String> {
        let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        connector(&Credentials { options, ..Credentials::default() }).map(|(mode, _)| mode)
    }

    #[test]
    fn modes_are_libpqs() {
        assert_eq!(with(&[]), Ok(SslMode::Prefer));
        assert_eq!(with(&[("sslmode", "disable")]), Ok(SslMode::Disable));
        assert_eq!(with(&[("sslmode", "require")]), Ok(SslMode::Require));
        assert!(with(&[("sslmode", "verify-full")]).unwrap_err().contains("sslrootcert"));
        assert!(with(&[("sslmode", "always")]).unwrap_err().contains("always"));
        assert!(with(&[("sslmode", "verify-ca"), ("sslrootcert", "/nowhere")]).unwrap_err().contains("/nowhere"));
        assert!(with(&[("sslcert", "/c")]).unwrap_err().contains("together"));
    }
}
