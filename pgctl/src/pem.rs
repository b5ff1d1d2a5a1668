//! Certificates and keys in PEM files: PostgreSQL's, the REST API's, the control program's.

use std::path::Path;

use pkcs8::der::Decode;
use pkcs8::{EncryptedPrivateKeyInfo, SecretDocument};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// All certificates of a file.
///
/// # Errors
/// What is wrong, for people: behind `what`, the key of the configuration that names the file.
pub fn certificates(what: &str, file: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(Path::new(file)).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let read = read.map_err(|error| format!("{what} {file}: {error}"))?;
    if read.is_empty() { Err(format!("{what} {file}: no certificate is in it")) } else { Ok(read) }
}

/// The private key of a file; one that is encrypted (PKCS #8, `BEGIN ENCRYPTED PRIVATE KEY`) is opened with `password`.
///
/// # Errors
/// As [`certificates`]. The password is in none of them.
pub fn private_key(what: &str, file: &str, password: Option<&str>) -> Result<PrivateKeyDer<'static>, String> {
    let text = std::fs::read(file).map_err(|error| format!("{what} {file}: {error}"))?;
    let Some(der) = encrypted(&text) else {
        return PrivateKeyDer::from_pem_slice(&text).map_err(|error| match String::from_utf8_lossy(&text) {
            old if old.contains("Proc-Type: 4,ENCRYPTED") => format!(
                "{what} {file}: the key is encrypted in OpenSSL's old form; write it anew: openssl pkcs8 -topk8 -in {file}"
            ),
            _ => format!("{what} {file}: {error}"),
        });
    };
    let password =
        password.ok_or_else(|| format!("{what} {file}: the key is encrypted, and there is no password for it"))?;
    let info = EncryptedPrivateKeyInfo::from_der(&der).map_err(|error| format!("{what} {file}: {error}"))?;
    let open =
        info.decrypt(password).map_err(|error| format!("{what} {file}: the password does not open it ({error})"))?;
    Ok(PrivatePkcs8KeyDer::from(open.as_bytes().to_vec()).into())
}

/// The first encrypted key, if there is one. (rustls' reader goes over it.)
fn encrypted(text: &[u8]) -> Option<Vec<u8>> {
    const END: &str = "-----END ENCRYPTED PRIVATE KEY-----";
    let text = std::str::from_utf8(text).ok()?;
    let key = text.get(text.find("-----BEGIN ENCRYPTED PRIVATE KEY-----")?..)?;
    let key = key.get(..key.find(END)?.saturating_add(END.len()))?;
    let (_, document) = SecretDocument::from_pem(key).ok()?;
    Some(document.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn openssl(dir: &Path, arguments: &[&str]) {
        let made = Command::new("openssl").args(arguments).current_dir(dir).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    #[test]
    fn an_encrypted_key_is_opened_with_its_password_only() {
        let dir = tempfile::tempdir().unwrap();
        openssl(dir.path(), &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "plain"]);
        openssl(dir.path(), &["pkcs8", "-topk8", "-in", "plain", "-passout", "pass:geheim", "-out", "closed"]);
        openssl(dir.path(), &["ec", "-in", "plain", "-aes256", "-passout", "pass:geheim", "-out", "old"]);
        let read = |name: &str, password| private_key("k", dir.path().join(name).to_str().unwrap(), password);
        let plain = read("plain", None).unwrap();
        assert_eq!(read("closed", Some("geheim")).unwrap().secret_der(), plain.secret_der());
        for (name, password, says) in [
            ("closed", None, "no password"),
            ("closed", Some("falsch"), "does not open"),
            ("old", Some("geheim"), "openssl pkcs8 -topk8"),
            ("absent", None, "No such file"),
        ] {
            let error = read(name, password).unwrap_err();
            assert!(error.contains(says) && error.starts_with("k "), "{error}");
            assert!(!error.contains("geheim") && !error.contains("falsch"), "{error}");
        }
    }
}
