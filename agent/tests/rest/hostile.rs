//! Clients that mean harm, or know no better: the right code, no effect, no panic, and health checks go on.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use regent::api::Command;
use regent::status::Status;

use super::support::*;

/// Those that read a body, and whether they must have one.
const CALLS: [(&str, &str, bool); 9] = [
    ("PATCH", "/config", true),
    ("PUT", "/config", true),
    ("POST", "/switchover", true),
    ("POST", "/failover", true),
    ("POST", "/failsafe", true),
    ("POST", "/citus", true),
    ("POST", "/mpp", true),
    ("POST", "/restart", false),
    ("POST", "/reinitialize", false),
];

/// A node whose loop refuses all by its silence; how many commands have come to it.
fn silent(status: Status) -> (Node, Arc<AtomicUsize>) {
    let mut node = Node::with(status);
    let (_, empty) = tokio::sync::mpsc::channel(1);
    let mut commands = std::mem::replace(&mut node.commands, empty);
    let count = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&count);
    std::thread::spawn(move || {
        while let Some(command) = commands.blocking_recv() {
            seen.fetch_add(1, Ordering::SeqCst);
            drop(command); // the answer, and so after it was counted
        }
    });
    (node, count)
}

fn failsafe() -> Status {
    Status { failsafe_mode: true, ..replica() }
}

#[test]
fn a_body_that_makes_no_sense_is_refused_and_does_nothing() {
    let (node, commands) = silent(failsafe());
    let deep = "[".repeat(200_000);
    let deep_object = r#"{"a":"#.repeat(50_000);
    let with = |headers: &str, body: &[u8]| {
        [format!("Content-Length: {}\r\n{headers}\r\n", body.len()).as_bytes(), body].concat()
    };
    let utf_16: Vec<u8> = r#"{"leader": "n1"}"#.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let bodies: Vec<(&str, Vec<u8>)> = vec![
        ("brackets", with("", deep.as_bytes())),
        ("objects", with("", deep_object.as_bytes())),
        ("too long", b"Content-Length: 1048577\r\n\r\n{\"leader\": \"n1\"}".to_vec()),
        ("much too long", b"Content-Length: 99999999999\r\n\r\n{\"leader\": \"n1\"}".to_vec()),
        ("UTF-16", with("", &utf_16)),
        ("a byte order mark", with("", "\u{feff}{\"leader\": \"n1\"}".as_bytes())),
        ("no UTF-8", with("", b"{\"leader\": \"\xff\xfe\"}")),
        ("compressed", with("Content-Encoding: gzip\r\n", b"\x1f\x8b\x08\x00\x00\x00\x00\x00")),
        ("two documents", with("", br#"{"leader": "n1"} {"leader": "n2"}"#)),
        ("single quotes", with("", b"{'leader': 'n1'}")),
        ("a form", with("Content-Type: application/x-www-form-urlencoded\r\n", b"leader=n1")),
        ("zeros", with("", &[0; 64])),
        ("a number", with("", b"1e999999")),
        ("half of it", with("", br#"{"leader": "#)),
    ];
    for (method, path, _) in CALLS {
        for (what, body) in &bodies {
            let request = [format!("{method} {path} HTTP/1.0\r\n").as_bytes(), body].concat();
            let asked = Instant::now();
            let answer = Answer::of(&half_closed(&node, &request));
            assert_eq!(answer.code, 400, "{method} {path}, {what}: {}", answer.body);
            assert!(asked.elapsed() < secs(5), "{what} took {:?}", asked.elapsed());
        }
    }
    // Lengths that are none, or several; pieces.
    for (method, path, needed) in CALLS {
        for headers in [
            "Content-Length: -1",
            "Content-Length: 0x10",
            "Content-Length: 5\r\nContent-Length: 6",
            "Content-Length: 18446744073709551616",
        ] {
            let request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n\r\n{{}}");
            assert_eq!(Answer::of(&half_closed(&node, request.as_bytes())).code, 400, "{method} {path} {headers}");
        }
        if needed {
            let pieces = "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
            let request = format!("{method} {path} HTTP/1.1\r\n{pieces}");
            assert_eq!(Answer::of(&half_closed(&node, request.as_bytes())).code, 411, "{method} {path}");
        }
    }
    assert_eq!(commands.load(Ordering::SeqCst), 0);
    assert_eq!(node.failsafe.agreement(NOW), None);
    assert_eq!(node.code("/replica"), 200);
}

/// Sends it all, says that no more comes, and reads to the end. Who is refused early may find the connection closed.
fn half_closed(node: &Node, request: &[u8]) -> String {
    let mut stream = node.connect();
    let mut writer = stream.try_clone().unwrap();
    let request = request.to_vec();
    let sending = std::thread::spawn(move || {
        let _ = writer.write_all(&request).and_then(|()| writer.shutdown(Shutdown::Write));
    });
    let mut answer = Vec::new();
    let ended = stream.read_to_end(&mut answer);
    sending.join().unwrap();
    assert!(ended.is_ok() || !answer.is_empty(), "{ended:?}");
    String::from_utf8(answer).unwrap()
}

/// JSON of any kind, often with the words of the contract in it.
fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let text = prop_oneof!["[a-z0-9.:+-]{0,12}", ".{0,12}", "2040-01-01T[0-9:]{0,8}(Z|\\+0[0-9])?"];
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(|number| serde_json::json!(number)),
        text.prop_map(Into::into),
    ];
    let word = prop_oneof![
        3 => "(leader|candidate|member|scheduled_at|schedule|role|postgres_version|timeout|restart_pending|force|from_leader)",
        1 => "(name|conn_url|api_url|slots|ttl|pause|postgresql|parameters|type)",
        1 => ".{0,6}",
    ];
    leaf.prop_recursive(3, 24, 5, move |inner| {
        prop_oneof![
            1 => prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
            4 => prop::collection::vec((word.clone(), inner), 0..5)
                .prop_map(|pairs| serde_json::Value::Object(pairs.into_iter().collect())),
        ]
    })
}

#[test]
fn no_body_gets_past_its_check() {
    let (node, commands) = silent(failsafe());
    let body = prop_oneof![
        4 => any_json().prop_map(|json| json.to_string().into_bytes()),
        1 => prop::collection::vec(any::<u8>(), 0..64),
    ];
    let call = prop::sample::select(CALLS.to_vec());
    let mut runner = TestRunner::new(ProptestConfig { cases: 400, ..ProptestConfig::default() });
    let outcome = runner.run(&(call, body), |((method, path, _), body)| {
        let before = commands.load(Ordering::SeqCst);
        let request = format!("{method} {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
        // Held against the description of the API as well.
        let answer = Answer::of(&node.raw([request.as_bytes(), &body].concat()));
        if (400..500).contains(&answer.code) {
            prop_assert_eq!(commands.load(Ordering::SeqCst), before, "{}: {}", answer.code, answer.body);
        }
        let object = serde_json::from_slice::<serde_json::Value>(&body).is_ok_and(|value| value.is_object());
        let empty = body.is_empty() && (path == "/restart" || path == "/reinitialize");
        prop_assert!(object || empty || answer.code == 400, "{} {}: {}", method, path, answer.code);
        prop_assert_eq!(node.code("/replica"), 200);
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn no_query_gets_an_answer_that_is_not_described() {
    let node = Node::with(leader());
    let path = prop_oneof![
        "/(explain|decisions|events|operations|cluster|primary|replica|async|readiness|contract|openapi.json)",
        "/(explain|decisions|operations)/.{0,9}"
    ];
    let query = "(\\?((limit|before|after|candidate|lag|tag_[a-z]|mode|replication_state|once)(=([-+0-9]{0,22}|[a-z%&;*]{0,9}|.{0,9}))?&?){0,4})?";
    let mut runner = TestRunner::new(ProptestConfig { cases: 400, ..ProptestConfig::default() });
    let outcome = runner.run(&(path, query), |(path, query)| {
        // A stream of events does not end; what its numbers may be is read like the others.
        let target: String = format!("{path}{query}").chars().filter(|c| c.is_ascii_graphic() && *c != '#').collect();
        let method = if path == "/events" { "HEAD" } else { "GET" };
        let text = node.raw(format!("{method} {target} HTTP/1.0\r\n\r\n"));
        prop_assert!(text.starts_with("HTTP/1."), "{}", text);
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn who_is_slow_with_a_body_makes_room_like_who_is_silent() {
    let node = Node::with_settings(leader(), |settings| settings.max_connections = 3);
    let mut slow: Vec<_> = (0..8).map(|_| node.connect()).collect();
    for stream in &mut slow {
        let _ = stream.write_all(b"POST /citus HTTP/1.1\r\nContent-Length: 50\r\n\r\n{\"a");
    }
    let asked = Instant::now();
    for _ in 0..5 {
        assert_eq!(node.code("/primary"), 200);
    }
    assert!(asked.elapsed() < secs(5), "{:?}", asked.elapsed());
    assert!(matches!(slow[0].read(&mut [0]), Ok(0) | Err(_)), "the oldest was cut");
}

#[test]
fn so_many_calls_at_once_and_no_more() {
    let mut node = Node::with(leader());
    let (_, empty) = tokio::sync::mpsc::channel(1);
    let mut commands = std::mem::replace(&mut node.commands, empty);
    let (keep, kept) = mpsc::channel::<Command>();
    std::thread::spawn(move || {
        while let Some(command) = commands.blocking_recv() {
            let _ = keep.send(command);
        }
    });
    let mut held = Vec::new();
    let mut waiting: Vec<_> = (0..64).map(|_| node.connect()).collect();
    for stream in &mut waiting {
        stream.write_all(b"POST /restart HTTP/1.0\r\n\r\n").unwrap();
        held.push(kept.recv_timeout(Duration::from_secs(20)).unwrap());
    }
    let refused = Answer::of(&node.raw("POST /restart HTTP/1.0\r\n\r\n"));
    assert_eq!((refused.code, refused.body.as_str()), (503, "the agent has too many calls to answer; try again"));
    assert_eq!(node.code("/primary"), 200, "a check is no call");
    assert_eq!(Answer::of(&node.raw("POST /failsafe HTTP/1.0\r\n\r\n")).code, 502, "members are not counted");
    drop(held);
    for mut stream in waiting {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("restart failed"), "{answer}");
    }
    let again = std::thread::spawn({
        let address = node.address();
        move || Answer::of(&send(address, "POST /restart HTTP/1.0\r\n\r\n"))
    });
    drop(kept.recv_timeout(Duration::from_secs(20)).unwrap());
    assert_eq!(again.join().unwrap().body, "restart failed");
}
