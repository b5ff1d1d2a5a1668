//! Asking other members: a Regent node, a peer's answers, and whatever else may listen there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use regent::peers::{ask, confirm, liveness};
use regent::status::Status;
use regent_core::failsafe::Notice;
use regent_core::fixture::standby;
use regent_core::peers::{PeerAnswer, PeerReply, Question};
use regent_core::units::{Lsn, Timeline};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

use super::support::*;

const WITHIN: Duration = Duration::from_secs(10);

/// Listens once, answers whatever comes with these bytes, and closes.
async fn one_answer(bytes: impl Into<Vec<u8>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/patroni", listener.local_addr().unwrap());
    let bytes = bytes.into();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        reply(stream, &bytes).await;
    });
    url
}

async fn reply<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, bytes: &[u8]) {
    let _ = stream.read(&mut [0; 4096]).await;
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
}

async fn ask_one(url: impl Into<String>) -> PeerReply {
    let mut replies = ask(BTreeMap::from([("x".into(), Question { url: url.into(), within: WITHIN })])).await;
    replies.remove(&"x".into()).expect("everybody asked has a reply")
}

fn document(value: &serde_json::Value) -> String {
    format!("HTTP/1.0 200 OK\r\nServer: x\r\nContent-Type: application/json\r\n\r\n{value}")
}

#[tokio::test]
async fn only_the_whole_word_of_a_member_is_its_agreement() {
    let node = Node::with(Status { failsafe_mode: true, ..replica() });
    node.failsafe.look(&standby().build());
    let own = format!("http://{}/patroni", node.address());
    let answer = |code: &str, body: &str| format!("HTTP/1.0 {code} X\r\n\r\n{body}");
    let urls = [
        ("own", own.clone()),
        ("peer", one_answer(answer("200", "Accepted")).await),
        ("other", one_answer(answer("200", "Accepted!")).await),
        ("leader", one_answer(answer("500", "Running as a leader")).await),
        ("off", one_answer(answer("502", "Accepted")).await),
        ("gone", "http://127.0.0.1:1/patroni".to_owned()),
        ("nonsense", "?".to_owned()),
    ];
    let notice = Notice { name: "b".into(), conn_url: "x".into(), api_url: "y".into(), slots: BTreeMap::new() };
    let asked = confirm(urls.map(|(name, url)| (name.into(), url)).into(), &notice, None, WITHIN).await;
    let yes: Vec<_> = asked.iter().filter(|(_, yes)| **yes).map(|(name, _)| name.as_str()).collect();
    assert_eq!((asked.len(), yes), (7, vec!["own", "peer"]));
    assert_eq!(node.failsafe.agreement(NOW).unwrap().to, notice);

    // A member that asks for credentials gets them.
    let credentials = regent::api::Credentials { username: "u".to_owned(), password: "p".to_owned() };
    node.server.set_policy(regent::api::Policy { credentials: Some(credentials), ..Default::default() });
    for (authorization, agrees) in [(None, false), (Some("Basic dTpw".parse().unwrap()), true)] {
        let asked = confirm([("own".into(), own.clone())].into(), &notice, authorization, WITHIN).await;
        assert_eq!(asked, [("own".into(), agrees)].into());
    }
}

#[tokio::test]
async fn our_own_document_says_what_the_status_means() {
    let tagged = json!({"failover_priority": 0});
    let statuses =
        [leader(), replica(), Status { failover_priority: 0, tags: tagged.as_object().unwrap().clone(), ..replica() }];
    for status in statuses {
        let meant = status.as_peer().unwrap();
        let node = Node::with(status);
        let url = format!("http://{}/patroni", node.address());
        assert_eq!(ask_one(&url).await, PeerReply::Answer(meant));
        assert!(liveness(&url, WITHIN).await);
    }
    let node = Node::with(stopped());
    let silent = ask_one(format!("http://{}/patroni", node.address())).await;
    assert!(matches!(silent, PeerReply::Unreachable(why) if why.contains("WAL position")), "no xlog is not reachable");
}

#[tokio::test]
async fn a_peers_document_is_read_leniently() {
    let standby = PeerAnswer {
        is_primary: false,
        position: Lsn(7),
        timeline: None,
        nofailover: false,
        failover_priority: 1,
        watchdog_failed: false,
    };
    let primary = PeerAnswer { is_primary: true, ..standby.clone() };
    for (body, expected) in [
        (json!({"xlog": {"received_location": 7, "replayed_location": 3}}), Some(standby.clone())),
        (json!({"wal": {"received_location": null, "replayed_location": "7"}}), Some(standby.clone())),
        (json!({"role": "replica", "xlog": {"location": 7}}), Some(primary.clone())),
        (json!({"role": "master", "xlog": {}}), Some(PeerAnswer { position: Lsn(0), ..primary })),
        (
            json!({"xlog": {"replayed_location": 7}, "timeline": "4", "watchdog_failed": true,
                "tags": {"nofailover": true, "failover_priority": 9}}),
            Some(PeerAnswer {
                timeline: Some(Timeline(4)),
                nofailover: true,
                failover_priority: 0,
                watchdog_failed: true,
                ..standby.clone()
            }),
        ),
        (
            json!({"xlog": {"replayed_location": 7}, "timeline": -1, "tags": {"nofailover": false, "failover_priority": 3}}),
            Some(PeerAnswer { failover_priority: 3, ..standby }),
        ),
        (json!({"state": "stopped", "role": "replica"}), None),
        (json!({"xlog": {}}), None),
        (
            json!({"xlog": {"location": 0}, "role": "uninitialized", "tags": 5}),
            Some(PeerAnswer {
                is_primary: false,
                position: Lsn(0),
                timeline: None,
                nofailover: false,
                failover_priority: 1,
                watchdog_failed: false,
            }),
        ),
        (json!({"xlog": [7]}), None),
        (json!([]), None),
        (json!("xlog"), None),
    ] {
        let reply = ask_one(one_answer(document(&body)).await).await;
        match expected {
            Some(expected) => assert_eq!(reply, PeerReply::Answer(expected), "{body}"),
            None => assert!(matches!(reply, PeerReply::Unreachable(_)), "{body}: {reply:?}"),
        }
    }
}

#[tokio::test]
async fn whatever_listens_there_ends_as_a_reason() {
    let huge = format!("HTTP/1.0 200 OK\r\n\r\n{{\"xlog\": \"{}\"}}", "x".repeat(2 << 20));
    let nested = format!("HTTP/1.0 200 OK\r\n\r\n{}", "[".repeat(100_000));
    let truncated = "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"xlog\": ";
    for (answer, sign_of_life) in [
        ("", false),
        ("nonsense", false),
        ("\r\n\r\n", false),
        ("SSH-2.0-OpenSSH_9.2\r\n", false),
        ("HTTP/1.0 200 OK\r\n\r\n", true),
        ("HTTP/1.0 200 OK\r\n\r\n{", true),
        ("HTTP/1.0 200 OK\r\n\r\n\u{0}\u{fffd}", true),
        ("HTTP/1.0 503 Service Unavailable\r\n\r\n{\"xlog\": {\"location\": 5}}", true),
        (truncated, true),
        (&huge, true),
        (&nested, true),
    ] {
        let shown = answer.get(..40).unwrap_or(answer);
        let reply = ask_one(one_answer(answer).await).await;
        assert!(matches!(reply, PeerReply::Unreachable(_)), "{shown:?}: {reply:?}");
        assert_eq!(liveness(&one_answer(answer).await, WITHIN).await, sign_of_life, "{shown:?}");
    }
    for url in ["", "postgres://x", "http://", "http:///patroni", "ftp://h/", "h:8008", "http://no-such.invalid:1/x"] {
        assert!(matches!(ask_one(url).await, PeerReply::Unreachable(_)), "{url}");
        assert!(!liveness(url, WITHIN).await, "{url}");
    }
}

#[tokio::test]
async fn all_are_asked_at_once_and_the_silent_cost_no_more_than_the_time_given() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap(); // its backlog accepts, nobody answers
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let node = Node::with(replica());
    let mut urls: BTreeMap<_, _> = (0..10)
        .map(|n| (format!("s{n}").as_str().into(), format!("http://{}/", silent.local_addr().unwrap())))
        .collect();
    urls.insert("closed".into(), format!("http://{closed}/patroni"));
    urls.insert("good".into(), format!("http://{}/patroni", node.address()));
    let (asked, within) = (Instant::now(), Duration::from_millis(500));
    let whom = urls.into_iter().map(|(name, url)| (name, Question { url, within })).collect();
    let replies = ask(whom).await;
    assert!(asked.elapsed() < within * 4, "{:?}", asked.elapsed());
    assert_eq!(replies.len(), 12);
    assert!(matches!(replies[&"good".into()], PeerReply::Answer(_)));
    let unreachable = replies.values().filter(|reply| matches!(reply, PeerReply::Unreachable(_))).count();
    assert_eq!(unreachable, 11);
    assert!(!liveness(&format!("http://{}/patroni", silent.local_addr().unwrap()), within).await);
}

#[tokio::test]
async fn https_is_asked_without_knowing_the_certificate() {
    let own = rcgen::generate_simple_self_signed(["elsewhere".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key.into())
        .unwrap();
    let tls = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/patroni", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            if let Ok(stream) = tls.accept(stream).await {
                reply(stream, document(&json!({"role": "primary", "xlog": {"location": 9}})).as_bytes()).await;
            }
        }
    });
    let reply = ask_one(&url).await;
    assert!(matches!(&reply, PeerReply::Answer(answer) if answer.is_primary && answer.position == Lsn(9)), "{reply:?}");
    assert!(liveness(&url, WITHIN).await);
    assert!(matches!(ask_one(url.replace("https", "http")).await, PeerReply::Unreachable(_)));
}
