//! TLS, client certificates and allow lists (rest-api.md section 19).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use regent::api::{AllowList, Policy, Tls};
use regent::config::{LocalConfig, Sources};
use regent::status::Status;
use regent_core::cluster::Member;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::support::*;

fn pem(kind: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n")
}

/// A certificate authority and what it signed, as PEM files: `ca`, `server`, `client`, each with `.crt` and `.key`.
fn certificates(dir: &Path) {
    let write = |name: &str, kind: &str, der: &[u8]| std::fs::write(dir.join(name), pem(kind, der)).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    write("ca.crt", "CERTIFICATE", params.self_signed(&key).unwrap().der());
    let ca = rcgen::Issuer::new(params, key);
    for name in ["server", "client"] {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        write(&format!("{name}.crt"), "CERTIFICATE", params.signed_by(&key, &ca).unwrap().der());
        write(&format!("{name}.key"), "PRIVATE KEY", &key.serialize_der());
    }
}

/// What `restapi` with these further keys makes of it.
fn tls(dir: &Path, keys: &str) -> Result<Option<Tls>, String> {
    let (crt, key, ca) = (dir.join("server.crt"), dir.join("server.key"), dir.join("ca.crt"));
    let file = format!(
        "{{scope: demo, name: n1, restapi: {{listen: '127.0.0.1:8008', certfile: '{}', keyfile: '{}', cafile: '{}', {keys}}},
        etcd3: {{hosts: ['127.0.0.1:2379']}}, postgresql: {{listen: '127.0.0.1:5432', data_dir: /nonexistent/d,
        authentication: {{superuser: {{username: p}}, replication: {{username: r}}}}}}}}",
        crt.display(),
        key.display(),
        ca.display()
    );
    let sources = Sources::new(None, [("PATRONI_CONFIGURATION".to_owned(), file)]);
    let local = LocalConfig::load(&sources).unwrap();
    assert!(local.restapi.api_url().starts_with("https://"), "{}", local.restapi.api_url());
    Tls::load(&local.restapi)
}

/// The answer, or why there is none, with the client's certificate or without.
fn ask(node: &Node, dir: &Path, request: &str, certified: bool) -> Result<Answer, std::io::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("ca.crt")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots);
    let config = if certified {
        let chain = vec![CertificateDer::from_pem_file(dir.join("client.crt")).unwrap()];
        config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(dir.join("client.key")).unwrap()).unwrap()
    } else {
        config.with_no_client_auth()
    };
    let connection = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let tcp = TcpStream::connect(node.address()).unwrap();
    tcp.set_read_timeout(Some(secs(20))).unwrap();
    let mut stream = StreamOwned::new(connection, tcp);
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        // Closed without TLS's own goodbye.
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof && !answer.is_empty() => {}
        Err(error) => return Err(error),
    }
    Ok(Answer::of(&String::from_utf8(answer).unwrap()))
}

const CHECK: &str = "GET /replica HTTP/1.0\r\n\r\n";
const RELOAD: &str = "POST /reload HTTP/1.0\r\n\r\n";

#[test]
fn over_tls_all_is_as_without() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let settings = tls(dir.path(), "").unwrap();
    let node = Node::with_policy(replica(), Policy { tls: settings, ..Policy::default() });
    let answer = ask(&node, dir.path(), CHECK, false).unwrap();
    assert_eq!(answer.code, 200);
    assert!(answer.body.contains(r#""role": "replica""#));
    assert_eq!(ask(&node, dir.path(), RELOAD, false).unwrap().code, 202);
    assert_eq!(node.raw(CHECK).split_once(' '), None, "plain HTTP gets no HTTP answer");

    // Other files count for the connections that follow.
    certificates(dir.path());
    assert!(ask(&node, dir.path(), CHECK, false).is_err(), "the old certificate, under the new authority");
    node.server.set_policy(Policy { tls: tls(dir.path(), "").unwrap(), ..Policy::default() });
    assert_eq!(ask(&node, dir.path(), CHECK, false).unwrap().code, 200);
}

#[test]
fn a_key_may_be_encrypted_and_the_ciphers_be_chosen() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let encrypt = ["pkcs8", "-topk8", "-in", "server.key", "-out", "closed", "-passout", "pass:geheim"];
    let made = std::process::Command::new("openssl").args(encrypt).current_dir(dir.path()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::rename(dir.path().join("closed"), dir.path().join("server.key")).unwrap();
    let closed = tls(dir.path(), "").unwrap_err();
    assert!(closed.contains("server.key") && closed.contains("no password"), "{closed}");

    let keys = "keyfile_password: geheim, ciphers: 'ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE+aRSA'";
    let node = Node::with_policy(replica(), Policy { tls: tls(dir.path(), keys).unwrap(), ..Policy::default() });
    assert_eq!(ask(&node, dir.path(), CHECK, false).unwrap().code, 200);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.path().join("ca.crt")).unwrap()).unwrap();
    let old = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS12]);
    let old = old.with_root_certificates(roots).with_no_client_auth();
    let mut connection = ClientConnection::new(Arc::new(old), "localhost".try_into().unwrap()).unwrap();
    let mut tcp = TcpStream::connect(node.address()).unwrap();
    tcp.set_read_timeout(Some(secs(20))).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(&mut tcp).unwrap();
    }
    let suite = connection.negotiated_cipher_suite().map(|suite| suite.suite());
    assert_eq!(suite, Some(rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256));
}

#[test]
fn client_certificates_are_asked_for_as_configured() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let node = |verify: &str| {
        let tls = tls(dir.path(), &format!("verify_client: {verify}")).unwrap();
        Node::with_policy(replica(), Policy { tls, ..Policy::default() })
    };
    let optional = node("Optional");
    assert_eq!(ask(&optional, dir.path(), CHECK, false).unwrap().code, 200);
    let refused = ask(&optional, dir.path(), RELOAD, false).unwrap();
    assert_eq!((refused.code, refused.body.as_str()), (403, "client certificate required"));
    assert_eq!(ask(&optional, dir.path(), RELOAD, true).unwrap().code, 202);
    let required = node("required");
    assert!(ask(&required, dir.path(), CHECK, false).is_err());
    assert_eq!(ask(&required, dir.path(), CHECK, true).unwrap().code, 200);
    assert_eq!(ask(&node("none"), dir.path(), RELOAD, false).unwrap().code, 202);
    let other = tempfile::tempdir().unwrap();
    certificates(other.path());
    std::fs::copy(dir.path().join("ca.crt"), other.path().join("ca.crt")).unwrap();
    assert!(ask(&optional, other.path(), CHECK, true).is_err(), "a certificate of another authority");

    let bogus = tls(dir.path(), "verify_client: bogus").unwrap_err();
    assert!(bogus.contains("none, optional or required"), "{bogus}");
    std::fs::write(dir.path().join("server.key"), "nothing").unwrap();
    let broken = tls(dir.path(), "").unwrap_err();
    assert!(broken.contains("server.key"), "{broken}");
}

/// In the place of the client's certificate one that signed itself and is a CA's, as `openssl req -x509` makes them, known to
/// the server or not, over or not.
fn self_signed_client(dir: &Path, known: bool, over: bool) {
    certificates(dir);
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "all at once");
    if over {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    }
    let own = pem("CERTIFICATE", params.self_signed(&key).unwrap().der());
    std::fs::write(dir.join("client.crt"), &own).unwrap();
    std::fs::write(dir.join("client.key"), pem("PRIVATE KEY", &key.serialize_der())).unwrap();
    if known {
        let trusted = std::fs::read_to_string(dir.join("ca.crt")).unwrap() + &own;
        std::fs::write(dir.join("ca.crt"), trusted).unwrap();
    }
}

#[test]
fn a_client_certificate_that_is_itself_a_ca_is_believed_if_it_is_in_the_ca_file() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    for (known, over, believed) in [(true, false, true), (false, false, false), (true, true, false)] {
        let dir = tempfile::tempdir().unwrap();
        self_signed_client(dir.path(), known, over);
        for verify in ["required", "optional"] {
            let tls = tls(dir.path(), &format!("verify_client: {verify}")).unwrap();
            let node = Node::with_policy(replica(), Policy { tls, ..Policy::default() });
            let answered = ask(&node, dir.path(), RELOAD, true).map(|answer| answer.code).ok();
            assert_eq!(answered, believed.then_some(202), "{verify}, known: {known}, over: {over}");
            assert_eq!(ask(&node, dir.path(), CHECK, false).is_ok(), verify == "optional", "without one, as ever");
        }
    }
}

#[test]
fn only_allowed_addresses_change_something() {
    let with = |entries: &[&str], include_members| {
        let entries = entries.iter().map(|entry| (*entry).to_owned()).collect();
        let allow = AllowList { entries, include_members };
        let mut view = view(Some("n1"));
        let member = |host: &str| Member { api_url: Some(format!("http://{host}:8008/patroni")), ..Member::default() };
        view.members = [("n1".into(), member("10.0.0.1")), ("n2".into(), member("127.0.0.1"))].into();
        let status = Status { last_view: Some(view), ..replica() };
        Node::with_policy(status, Policy { allow, ..Policy::default() })
    };
    for (entries, include_members, code) in [
        (&[][..], false, 202),
        (&["127.0.0.0/8"], false, 202),
        (&["10.0.0.0/8", "localhost"], false, 202),
        (&["10.0.0.0/8"], false, 403),
        (&["no.such.host.invalid"], false, 403),
        (&[], true, 202),
        (&["10.0.0.0/8"], true, 202),
    ] {
        let node = with(entries, include_members);
        let answer = Answer::of(&node.raw(RELOAD));
        assert_eq!(answer.code, code, "{entries:?} {include_members}");
        if code == 403 {
            assert_eq!(answer.body, "Access is denied");
        }
        assert_eq!(node.code("/replica"), 200, "reading is free");
        assert_eq!(node.ask("POST", "/nosuch").code, 501, "what is not there needs no guard");
    }
}
