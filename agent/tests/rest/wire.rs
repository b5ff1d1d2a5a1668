//! The wire: odd requests, many connections, hostile bytes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use regent::api::{self, ListenError, Settings};
use tokio::sync::{mpsc, watch};

use super::support::*;

#[test]
fn health_checks_in_every_form_of_the_field_are_answered() {
    let node = Node::with(leader());
    for request in [
        "GET /leader HTTP/1.0\r\n\r\n",         // HAProxy tcp-check
        "GET /leader HTTP/1.0\n\n",             // bare line feeds
        "\r\n\r\nGET /leader HTTP/1.0\r\n\r\n", // blank lines before
        "OPTIONS / HTTP/1.0\r\n\r\n",           // HAProxy httpchk
        "OPTIONS /primary HTTP/1.0\r\n\r\n",
        "HEAD /primary HTTP/1.0\r\n\r\n",
        "GET //leader HTTP/1.0\r\n\r\n",
        "GET leader HTTP/1.0\r\n\r\n",
        "GET /leader#replica HTTP/1.0\r\n\r\n",
        "GET http://10.0.0.1:8008/leader HTTP/1.0\r\n\r\n", // absolute target
        "GET http://10.0.0.1:8008 HTTP/1.0\r\n\r\n",
        "GET /leader HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", // closes all the same
        "GET /leader HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc",   // a body is ignored
        "GET /liveness HTTP/1.0\r\n\r\n",
    ] {
        let asked = Instant::now();
        let answer = node.raw(request);
        assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{request:?}: {answer}");
        assert!(asked.elapsed() < secs(3), "closed by a timeout, not right after the answer: {request:?}");
    }
    for request in [
        "GET /leader HTTP/1.1\r\nConnection: close\r\n\r\n", // 1.1 without Host
        "OPTIONS /leader HTTP/1.1\r\nHost: www\r\nConnection: close\r\n\r\n",
        "GET http://x/leader HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "GET /leader HTTP/1.5\r\nConnection: close\r\n\r\n",
        "GET /leader HTTP/1.1\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n",
    ] {
        let answer = node.raw(request);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{request:?}: {answer}");
    }
    let node = Node::with(replica());
    assert!(node.raw("GET /leader HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 503 Service Unavailable\r\n"));
}

#[test]
fn head_and_options_have_the_code_and_no_body() {
    let node = Node::with(leader());
    for path in ["/", "/replica", "/patroni", "/metrics", "/cluster", "/liveness", "/readiness", "/config", "/nosuch"] {
        let code = node.get(path).code;
        for method in ["HEAD", "OPTIONS"] {
            let answer = node.ask(method, path);
            assert_eq!((answer.code, answer.body.as_str()), (code, ""), "{method} {path}");
        }
    }
}

#[test]
fn nonsense_gets_the_code_it_deserves() {
    let node = Node::with(leader());
    let long = format!("GET /{} HTTP/1.0\r\n\r\n", "x".repeat(70_000));
    let many_headers = format!("GET / HTTP/1.0\r\n{}\r\n", "a: b\r\n".repeat(101));
    let big_header = format!("GET / HTTP/1.0\r\na: {}\r\n\r\n", "x".repeat(140_000));
    for (request, code) in [
        ("garbage\r\n\r\n", 400),
        ("GET /leader\r\n\r\n", 400),
        ("GET / HTTP/x\r\n\r\n", 400),
        ("GET / HTTP/1.\r\n\r\n", 400),
        ("GET / HTTP/0.9\r\n\r\n", 400),
        ("GET / HTTPS/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.0\r\nno colon\r\n\r\n", 400),
        ("GET / HTTP/2.0\r\n\r\n", 505),
        ("GET / HTTP/99999999999.0\r\n\r\n", 400),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (&long, 414),
        (&many_headers, 431),
        (&big_header, 431),
    ] {
        let answer = node.raw(request);
        assert_eq!(Answer::of(&answer).code, code, "{:?}: {answer}", request.get(..60).unwrap_or(request));
    }
}

/// Reads one answer with a Content-Length from a connection that stays open.
fn read_one(stream: &mut TcpStream) -> Answer {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    let mut answer = Answer::of(std::str::from_utf8(&head).unwrap());
    let mut body = vec![0; answer.header("Content-Length").expect("a framed answer").parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    answer.body = String::from_utf8(body).unwrap();
    answer
}

#[test]
fn connections_of_1_1_are_kept_and_pipelined() {
    let node = Node::with(leader());
    let mut stream = node.connect();
    for _ in 0..3 {
        stream.write_all(b"GET /patroni HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert!(read_one(&mut stream).body.starts_with(r#"{"state": "running""#));
    }
    stream
        .write_all(b"GET /replica HTTP/1.1\r\n\r\nGET /primary HTTP/1.1\r\n\r\nHEAD /cluster HTTP/1.1\r\n\r\n")
        .unwrap();
    assert_eq!(read_one(&mut stream).code, 503);
    assert_eq!(read_one(&mut stream).code, 200);
    stream.write_all(b"GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
    assert_eq!(read_one(&mut stream).body, "", "the answer to HEAD");
    assert!(read_one(&mut stream).body.starts_with("# HELP patroni_version"));
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "closed as asked");
}

#[test]
fn a_client_that_closes_its_half_still_gets_its_answer() {
    let node = Node::with(leader());
    let mut stream = node.connect();
    stream.write_all(b"GET /primary HTTP/1.0\r\n\r\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200 OK"));
}

#[test]
fn thousands_of_silent_connections_do_not_keep_a_check_waiting() {
    let node = Node::with_settings(leader(), |settings| settings.max_connections = 4096);
    // Both ends of each are in this process.
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(20_000);
    let count = usize::try_from(files.saturating_sub(200) / 2).unwrap().min(2000);
    let mut idle: Vec<_> = (0..count).map(|_| node.connect()).collect();
    for (n, stream) in idle.iter_mut().enumerate() {
        // A third says nothing, a third stops in the first line, a third within the headers.
        stream.write_all([&b""[..], b"GET /pri", b"GET /primary HTTP/1.1\r\nHost:"][n % 3]).unwrap();
    }
    for path in ["/primary", "/patroni", "/liveness"] {
        let asked = Instant::now();
        assert_eq!(node.code(path), 200);
        assert!(asked.elapsed() < secs(1), "{path} took {:?} beside {count} connections", asked.elapsed());
    }
}

#[test]
fn a_silent_connection_ends_by_itself() {
    let node = Node::with_settings(leader(), |settings| settings.head_time = Duration::from_millis(200));
    for said in ["", "GET /prim", "GET /primary HTTP/1.1\r\nHost:"] {
        let mut stream = node.connect();
        let connected = Instant::now();
        stream.write_all(said.as_bytes()).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "{said:?}");
        assert!(connected.elapsed() < secs(5), "{said:?}: {:?}", connected.elapsed());
    }
    let mut stream = node.connect();
    stream.write_all(b"GET /primary HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(read_one(&mut stream).code, 200);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "also after an answer");
}

#[test]
fn beyond_the_limit_the_oldest_silent_connection_makes_room() {
    let node = Node::with_settings(leader(), |settings| settings.max_connections = 3);
    let mut silent: Vec<_> = (0..10).map(|_| node.connect()).collect();
    assert_eq!(node.code("/primary"), 200);
    let mut cut = |n: usize| silent[n].read(&mut [0]);
    assert!(matches!(cut(0), Ok(0) | Err(_)), "the oldest was cut");
    // The newest is still served.
    let newest = silent.last_mut().unwrap();
    newest.write_all(b"GET /primary HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    newest.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200 OK"));
}

#[test]
fn it_listens_where_it_is_told_and_says_why_it_cannot() {
    let start = |listen: &str| {
        let (_, status) = watch::channel(std::sync::Arc::new(leader()));
        let (commands, _) = mpsc::channel(1);
        let journal = regent::journal::Journal::begun_at(std::time::UNIX_EPOCH);
        let sources = api::Sources { status, failsafe: regent::failsafe::Door::default(), journal };
        api::spawn(Settings::at(listen.parse().unwrap()), sources, std::sync::Arc::new(|| NOW), commands)
    };
    let first = start("127.0.0.1:0").unwrap();
    let address = first.address();
    let refused = start(&address.to_string()).unwrap_err();
    assert!(matches!(&refused, ListenError::Bind { address: tried, .. } if *tried == address));
    let text = refused.to_string();
    assert!(text.contains(&address.to_string()) && text.contains("stop it, or set another port"), "{text}");
    first.shutdown();
    start(&address.to_string()).unwrap().shutdown(); // free again

    assert!(matches!(start("203.0.113.1:0"), Err(ListenError::Bind { .. })));
    assert!(matches!(start("no-such-host.invalid:0"), Err(ListenError::Resolve { .. })));

    for all in ["*:0", ":0"] {
        let server = start(all).unwrap();
        assert!(server.address().ip().is_unspecified());
        let mut stream = TcpStream::connect(("127.0.0.1", server.address().port())).unwrap();
        stream.write_all(b"GET /primary HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.0 200 OK"), "IPv4 through {all}");
        if server.address().is_ipv6() {
            TcpStream::connect(("::1", server.address().port())).expect("IPv6 through the same socket");
        }
    }
}

/// Requests that are nearly right, so that they get far.
fn nearly_a_request() -> impl Strategy<Value = Vec<u8>> {
    let method = prop_oneof!["GET|HEAD|OPTIONS|POST|PATCH|PUT|DELETE", "[A-Za-z!]{0,9}"];
    let target = prop_oneof![
        "/(primary|replica|leader|health|async|readiness|cluster|config|metrics|citus|reload|failsafe)?",
        "(/[a-z%#;:@*.-]{0,9}){0,3}",
        "https?://[a-z:0-9@\\[\\]]{0,9}/.{0,9}"
    ];
    let query = "(\\?((lag|tag_[a-z]?|mode|replication_state)=[-+0-9a-zA-Z.%x ]{0,12}&?){0,4})?";
    let version = prop_oneof![Just("HTTP/1.0".to_owned()), Just("HTTP/1.1".to_owned()), "HTTP/[0-9]{0,3}\\.[0-9]{0,3}"];
    let headers = "((Content-Length|Transfer-Encoding|Expect|Authorization|Connection|Upgrade|.{0,5}): ?\
                   ([0-9]{1,20}|chunked|Basic [a-zA-Z=]{0,9}|close|.{0,9})\r?\n){0,4}";
    let body = prop::collection::vec(any::<u8>(), 0..40);
    (method, target, query, version, headers, body, prop::bool::ANY).prop_map(
        |(method, target, query, version, headers, body, lf_only)| {
            let end = if lf_only { "\n" } else { "\r\n" };
            let head = format!("{method} {target}{query} {version}{end}{headers}{end}");
            [head.as_bytes(), &body].concat()
        },
    )
}

static PANICS: AtomicUsize = AtomicUsize::new(0);

#[test]
fn no_bytes_make_the_server_panic_or_fall_silent() {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name() == Some("rest-api") {
            PANICS.fetch_add(1, Ordering::SeqCst);
        }
        previous(panic);
    }));
    let node = Node::with(replica());
    let bytes = prop_oneof![2 => nearly_a_request(), 1 => prop::collection::vec(any::<u8>(), 0..200)];
    let mut runner =
        proptest::test_runner::TestRunner::new(ProptestConfig { cases: 1000, ..ProptestConfig::default() });
    let outcome = runner.run(&bytes, |bytes| {
        let mut stream = node.connect();
        // The server may have closed before we are through: that is an answer too.
        let _ = stream.write_all(&bytes).and_then(|()| stream.shutdown(Shutdown::Write));
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        prop_assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{}", answer.escape_ascii());
        prop_assert_eq!(PANICS.load(Ordering::SeqCst), 0);
        prop_assert_eq!(node.code("/replica"), 200);
        Ok(())
    });
    outcome.unwrap();
}
