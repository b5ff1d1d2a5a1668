//! The server as its clients see it, and what it does to real connections.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use regent_tests::rig::{Trouble, http, poll};

use super::{Stream, Toxic, ToxicKind, Toxiproxy};

const SOON: Duration = Duration::from_secs(20);

fn anywhere() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// A server that sends back all it gets; it ends with the process.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind(anywhere()).unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..read]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    at
}

fn connect(at: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&at, SOON).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

/// Sends `text` and reads as much back: how long that took.
fn ask(stream: &mut TcpStream, text: &str) -> Result<Duration, std::io::Error> {
    let start = Instant::now();
    stream.write_all(text.as_bytes())?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer)?;
    assert_eq!(answer, text.as_bytes());
    Ok(start.elapsed())
}

fn toxic(kind: ToxicKind, stream: Stream) -> Toxic {
    Toxic { name: "t".to_owned(), kind, stream, toxicity: 1.0 }
}

/// How the connection ended: what came before, and whether it was a reset.
fn end(mut stream: TcpStream) -> (usize, bool) {
    let (mut buffer, mut bytes) = ([0; 4096], 0);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (bytes, false),
            Ok(read) => bytes += read,
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return (bytes, true),
            Err(e) => panic!("after {bytes} bytes: {e}"),
        }
    }
}

#[test]
fn every_call_is_answered_as_by_toxiproxy() -> Result<(), Trouble> {
    let server = Toxiproxy::embedded()?;
    let call = |line: &str, body: &str| {
        let request =
            format!("{line} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        let answer = http::raw(server.address(), &request, SOON).unwrap();
        let kind =
            answer.head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-type: ").map(str::to_owned));
        (answer.status, kind.unwrap_or_default(), answer.body)
    };
    const JSON: &str = "application/json";
    const TEXT: &str = "text/plain; charset=utf-8";
    let made = call("POST /proxies", r#"{"name":"a","listen":"127.0.0.1:0","upstream":"127.0.0.1:1"}"#);
    let port = made.2.split(['"', ':']).find_map(|part| part.parse::<u16>().ok()).unwrap();
    assert_ne!(port, 0);
    let proxy = |enabled: bool, toxics: &str| {
        format!(
            r#"{{"name":"a","listen":"127.0.0.1:{port}","upstream":"127.0.0.1:1","enabled":{enabled},"toxics":[{toxics}]}}"#
        )
    };
    assert_eq!(made, (201, JSON.to_owned(), proxy(true, "")));
    let latency = r#"{"attributes":{"latency":100,"jitter":0},"name":"latency_downstream","type":"latency","stream":"downstream","toxicity":1}"#;
    let slower = r#"{"attributes":{"latency":100,"jitter":7},"name":"latency_downstream","type":"latency","stream":"downstream","toxicity":0.5}"#;
    let table: &[(&str, &str, u16, &str, &str)] = &[
        ("GET /version", "", 200, TEXT, "2.4.0"),
        (
            "POST /proxies",
            r#"{"name":"a","upstream":"127.0.0.1:1"}"#,
            409,
            TEXT,
            "{\"error\":\"proxy already exists\",\"status\":409}\n",
        ),
        ("GET /proxies/b", "", 404, TEXT, "{\"error\":\"proxy not found\",\"status\":404}\n"),
        (
            "POST /proxies",
            r#"{"name":"b"}"#,
            400,
            TEXT,
            "{\"error\":\"missing required field: upstream\",\"status\":400}\n",
        ),
        (
            "POST /proxies",
            r#"{"upstream":"x:1"}"#,
            400,
            TEXT,
            "{\"error\":\"missing required field: name\",\"status\":400}\n",
        ),
        ("POST /proxies", "{", 400, TEXT, "{\"error\":\"bad request body: "),
        ("GET /proxies", "", 200, JSON, &format!("{{\"a\":{}}}", proxy(true, ""))),
        ("GET /proxies/a", "", 200, JSON, &proxy(true, "")),
        ("POST /proxies/a", r#"{"enabled":false}"#, 200, JSON, &proxy(false, "")),
        ("POST /proxies/a/toxics", r#"{"type":"latency","attributes":{"latency":100}}"#, 200, JSON, latency),
        (
            "POST /proxies/a/toxics",
            r#"{"type":"latency"}"#,
            409,
            TEXT,
            "{\"error\":\"toxic already exists\",\"status\":409}\n",
        ),
        (
            "POST /proxies/a/toxics",
            r#"{"type":"bad"}"#,
            400,
            TEXT,
            "{\"error\":\"invalid toxic type\",\"status\":400}\n",
        ),
        (
            "POST /proxies/a/toxics",
            r#"{"type":"latency","stream":"sideways"}"#,
            400,
            TEXT,
            "{\"error\":\"stream was invalid, can be either upstream or downstream\",\"status\":400}\n",
        ),
        (
            "POST /proxies/a/toxics",
            r#"{"type":"latency","attributes":{"latency":"much"}}"#,
            400,
            TEXT,
            "{\"error\":\"bad request body: ",
        ),
        ("GET /proxies/a/toxics", "", 200, JSON, &format!("[{latency}]")),
        ("GET /proxies/a/toxics/latency_downstream", "", 200, JSON, latency),
        ("GET /proxies/a/toxics/other", "", 404, TEXT, "{\"error\":\"toxic not found\",\"status\":404}\n"),
        (
            "POST /proxies/a/toxics/latency_downstream",
            r#"{"attributes":{"jitter":7},"toxicity":0.5}"#,
            200,
            JSON,
            slower,
        ),
        ("PATCH /proxies/a/toxics/latency_downstream", "{}", 405, "", ""),
        ("GET /proxies/a", "", 200, JSON, &proxy(false, slower)),
        ("POST /reset", "", 204, "", ""),
        ("GET /proxies/a", "", 200, JSON, &proxy(true, "")),
        (
            "POST /proxies/a/toxics",
            r#"{"type":"slicer","name":"s","stream":"upstream"}"#,
            200,
            JSON,
            r#"{"attributes":{"average_size":0,"size_variation":0,"delay":0},"name":"s","type":"slicer","stream":"upstream","toxicity":1}"#,
        ),
        ("DELETE /proxies/a/toxics/s", "", 204, "", ""),
        ("DELETE /proxies/a/toxics/s", "", 404, TEXT, "{\"error\":\"toxic not found\",\"status\":404}\n"),
        ("POST /proxies/a/toxics", r#"{"type":"latency","attributes":{"latency":100}}"#, 200, JSON, latency),
        (
            "POST /populate",
            r#"[{"name":"a"}]"#,
            400,
            TEXT,
            "{\"error\":\"missing required field: upstream at proxy 1\",\"status\":400}\n",
        ),
        // The same proxy goes on as it is, though the answer looks otherwise.
        (
            "POST /populate",
            &format!(r#"[{{"name":"a","listen":"127.0.0.1:{port}","upstream":"127.0.0.1:1"}}]"#),
            201,
            JSON,
            &format!("{{\"proxies\":[{}]}}", proxy(false, "")),
        ),
        ("GET /proxies/a", "", 200, JSON, &proxy(true, latency)),
        // Another one replaces it.
        (
            "POST /populate",
            &format!(r#"[{{"name":"a","listen":"localhost:{port}","upstream":"127.0.0.1:1"}}]"#),
            201,
            JSON,
            &format!("{{\"proxies\":[{}]}}", proxy(true, "")),
        ),
        ("GET /proxies/a", "", 200, JSON, &proxy(true, "")),
        ("DELETE /proxies/a", "", 204, "", ""),
        ("DELETE /proxies/a", "", 404, TEXT, "{\"error\":\"proxy not found\",\"status\":404}\n"),
        ("GET /proxies", "", 200, JSON, "{}"),
        ("GET /version HTTP/1.1\r\nUser-Agent: Mozilla/5.0\r\nX: ", "", 403, TEXT, "User agent not allowed\n"),
    ];
    for (line, body, status, kind, expected) in table {
        let answer = call(line, body);
        // Of a text that our parser words there is only the beginning.
        let same = if expected.ends_with(": ") { answer.2.starts_with(expected) } else { answer.2 == *expected };
        assert!(
            answer.0 == *status && answer.1 == *kind && same,
            "{line} {body}: {answer:?}, not {status} {kind} {expected}"
        );
    }
    Ok(())
}

#[test]
fn toxics_act_on_open_connections_and_let_go() -> Result<(), Trouble> {
    let server = Toxiproxy::embedded()?;
    let at = server.create("p", anywhere(), echo())?;
    let mut stream = connect(at);
    ask(&mut stream, "before")?;

    server.add("p", &toxic(ToxicKind::Latency { latency_ms: 200, jitter_ms: 0 }, Stream::Downstream))?;
    assert!(ask(&mut stream, "slow")? >= Duration::from_millis(200));
    server.remove("p", "t")?;

    server.add("p", &toxic(ToxicKind::Bandwidth { rate_kb: 10 }, Stream::Upstream))?;
    assert!(ask(&mut stream, &"x".repeat(3000))? >= Duration::from_millis(290));
    server.remove("p", "t")?;

    server.add(
        "p",
        &toxic(ToxicKind::Slicer { average_size: 10, size_variation: 5, delay_us: 10_000 }, Stream::Upstream),
    )?;
    assert!(ask(&mut stream, &"x".repeat(300))? >= Duration::from_millis(180));
    server.remove("p", "t")?;

    // A link that carries nothing: nothing is lost.
    server.add("p", &toxic(ToxicKind::Bandwidth { rate_kb: 0 }, Stream::Upstream))?;
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    stream.write_all(b"held")?;
    assert_eq!(stream.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::WouldBlock);
    server.reset()?;
    stream.set_read_timeout(Some(SOON))?;
    let mut held = [0; 4];
    stream.read_exact(&mut held)?;
    assert_eq!(&held, b"held");
    Ok(())
}

#[test]
fn toxics_end_connections() -> Result<(), Trouble> {
    let server = Toxiproxy::embedded()?;
    let at = server.create("p", anywhere(), echo())?;
    // (what, what is sent, what comes back, whether by a reset, how long at least)
    let cases = [
        (ToxicKind::Timeout { timeout_ms: 150 }, 0, false, 150),
        (ToxicKind::ResetPeer { timeout_ms: 100 }, 0, true, 100),
        (ToxicKind::LimitData { bytes: 3 }, 3, false, 0),
    ];
    for (kind, back, reset, least) in cases {
        let mut stream = connect(at);
        ask(&mut stream, "x")?;
        server.add("p", &toxic(kind.clone(), Stream::Downstream))?;
        let start = Instant::now();
        stream.write_all(b"hello")?;
        assert_eq!(end(stream), (back, reset), "{kind:?}");
        assert!(start.elapsed() >= Duration::from_millis(least), "{kind:?}");
        server.remove("p", "t")?;
    }

    // Swallowed until it is removed; then the connection is cut.
    let mut stream = connect(at);
    server.add("p", &toxic(ToxicKind::Timeout { timeout_ms: 0 }, Stream::Downstream))?;
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    stream.write_all(b"lost")?;
    assert_eq!(stream.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::WouldBlock);
    stream.set_read_timeout(Some(SOON))?;
    server.remove("p", "t")?;
    assert_eq!(end(stream).0, 0);

    // The end comes late.
    let listener = TcpListener::bind(anywhere())?;
    let at = server.create("q", anywhere(), listener.local_addr()?)?;
    server.add("q", &toxic(ToxicKind::SlowClose { delay_ms: 200 }, Stream::Downstream))?;
    let stream = connect(at);
    let start = Instant::now();
    listener.accept()?.0.write_all(b"bye")?;
    assert_eq!(end(stream), (3, false));
    assert!(start.elapsed() >= Duration::from_millis(200));
    Ok(())
}

#[test]
fn a_disabled_proxy_cuts_and_refuses() -> Result<(), Trouble> {
    let server = Toxiproxy::embedded()?;
    let at = server.create("p", anywhere(), echo())?;
    for _ in 0..3 {
        let mut stream = connect(at);
        ask(&mut stream, "x")?;
        server.enable("p", false)?;
        let refused = TcpStream::connect_timeout(&at, SOON).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(end(stream).0, 0);
        server.enable("p", true)?;
        ask(&mut connect(at), "again")?;
    }
    Ok(())
}

#[test]
fn a_dead_server_behind_closes_the_client_at_once() -> Result<(), Trouble> {
    let dead = TcpListener::bind(anywhere())?.local_addr()?;
    let server = Toxiproxy::embedded()?;
    let at = server.create("p", anywhere(), dead)?;
    assert_eq!(end(connect(at)).0, 0);
    Ok(())
}

/// Sockets with `port` at their own end that a process holds (the kernel's own have inode 0), but for the listening one.
fn sockets(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let own = format!("0100007F:{port:04X}");
    let live = |line: &&str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields[1] == own && fields[3] != "0A" && fields[9] != "0"
    };
    table.lines().skip(1).filter(live).count()
}

#[test]
fn hundreds_of_connections_leave_nothing_behind() -> Result<(), Trouble> {
    let server = Toxiproxy::embedded()?;
    let behind = echo();
    let at = server.create("p", anywhere(), behind)?;
    let mut streams: Vec<_> = (0..500).map(|_| connect(at)).collect();
    for stream in &mut streams {
        ask(stream, "hello")?;
    }
    assert_eq!((sockets(at.port()), sockets(behind.port())), (500, 500));
    // Half of them go on their own, the others are cut.
    streams.truncate(250);
    let left = |expected| {
        poll(SOON, || match (sockets(at.port()), sockets(behind.port())) {
            both if both == (expected, expected) => Ok(()),
            both => Err(format!("{both:?} are open, not {expected}")),
        })
    };
    left(250).map_err(Trouble::new)?;
    server.enable("p", false)?;
    drop(streams);
    left(0).map_err(Trouble::new)?;
    // The server ends with the value, and its port with it.
    let place = server.address();
    drop(server);
    assert!(TcpStream::connect_timeout(&place, SOON).is_err());
    Ok(())
}
