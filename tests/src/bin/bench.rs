//! `make bench`: the figures of `docs/benchmarks.md`.

#![expect(clippy::print_stdout, reason = "a program that shows something")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use regent_core::fixture::{cut_off, primary, secs, standby};
use regent_core::rules::decide;
use regent_core::snapshot::Snapshot;
use regent_tests::rig::{Node, Rig, Settings, Trouble, http, stray};
use regent_tests::simulation;

/// How long each load lasts.
const LOAD: Duration = Duration::from_secs(10);
/// Connections that ask at once, each the next question when the last is answered.
const CONNECTIONS: usize = 8;
/// Connections that are of no use: a third silent, a third that trickle a request line, a third that trickle headers.
const CROWD: usize = 2_000;
/// Health checks a second beside them, each over a connection of its own, as HAProxy's are, from so many threads.
const CHECKS: u32 = 500;
const CHECKERS: u32 = 10;

fn main() -> ExitCode {
    let built = if cfg!(debug_assertions) { "UNOPTIMISED: not for the record" } else { "optimised" };
    println!(
        "Regent {}, {built}, {} cores\n",
        env!("CARGO_PKG_VERSION"),
        thread::available_parallelism().map_or(1, usize::from)
    );
    println!("{:<58} {:>16}", "figure", "value");
    decisions();
    simulated();
    match processes().and_then(|()| peer()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            println!("{trouble}");
            ExitCode::FAILURE
        }
    }
}

fn figure(name: &str, value: &str) {
    println!("{name:<58} {value:>16}");
}

/// Nanoseconds per judgement of a snapshot.
fn decisions() {
    let cases: [(&str, Snapshot); 4] = [
        ("primary with its lease", primary().build()),
        ("standby that streams", standby().build()),
        ("primary cut off from etcd", primary().with(cut_off)),
        ("primary whose lease ends in 3 s, cut off from etcd", primary().lease_ends_in(secs(3)).with(cut_off)),
    ];
    for (name, snapshot) in cases {
        let mut rounds: u32 = 1_000;
        let nanoseconds = loop {
            let start = Instant::now();
            for _ in 0..rounds {
                black_box(decide(black_box(&snapshot)));
            }
            let took = start.elapsed();
            if took > Duration::from_millis(300) {
                break took.as_nanos() / u128::from(rounds);
            }
            rounds = rounds.saturating_mul(4);
        };
        figure(&format!("decide(): {name}"), &format!("{nanoseconds} ns"));
    }
}

/// How fast a whole cluster runs in virtual time, on one core.
fn simulated() {
    let (mut lasted, mut failovers) = (Duration::ZERO, 0);
    let began = Instant::now();
    simulation::run_for(LOAD, |seed| {
        let outcome = simulation::run(seed, simulation::honest());
        lasted += outcome.lasted;
        failovers += outcome.failovers;
    });
    let took = began.elapsed().as_secs_f64();
    figure("simulation: cluster-seconds per second, one core", &format!("{:.0}", lasted.as_secs_f64() / took));
    figure("simulation: failovers per minute, one core", &format!("{:.0}", f64::from(failovers) / took * 60.0));
}

/// What takes a real cluster.
fn processes() -> Result<(), Trouble> {
    let rig = Rig::whole(Settings { haproxy: false, ..Settings::default() })?;
    let primary = rig.leader()?;

    let idle =
        std::env::var("BENCH_IDLE_SECONDS").ok().and_then(|s| s.parse().ok()).map_or(Duration::from_secs(60), secs);
    idle_cost(&rig, primary.name(), idle)?;

    let port = primary.ports().rest;
    load("GET /primary, PostgreSQL running", port)?;
    primary.signal_server(Signal::SIGSTOP);
    let stopped = load("GET /primary, PostgreSQL stopped by SIGSTOP", port)
        .and_then(|()| crowded("GET /primary in a crowd, PostgreSQL stopped", port));
    primary.signal_server(Signal::SIGCONT);
    stopped?;
    rig.wait_whole(Duration::from_secs(120))?;
    crowded("GET /primary in a crowd", rig.leader()?.ports().rest)?;
    rig.etcd.signal(Signal::SIGSTOP);
    let silent = crowded("GET /primary in a crowd, etcd stopped", rig.nodes().first().map_or(port, |n| n.ports().rest));
    rig.etcd.signal(Signal::SIGCONT);
    silent
}

/// The same of the peer, where `PEER_PATRONI` says where it is.
fn peer() -> Result<(), Trouble> {
    if std::env::var_os("PEER_PATRONI").is_none() {
        println!("PEER_PATRONI=/path/to/bin/patroni adds the same figures of Patroni");
        return Ok(());
    }
    let rig = Rig::new(Settings { nodes: 1, haproxy: false, peer: true, ttl: 20, ..Settings::default() })?;
    rig.start_all()?;
    let port = rig.wait_primary(Duration::from_secs(120))?.ports().rest;
    load("Patroni, GET /primary", port)?;
    crowded("Patroni, GET /primary in a crowd", port)
}

/// What agent and guardian cost together while nothing happens, and what they ask of etcd.
fn idle_cost(rig: &Rig, primary: &str, idle: Duration) -> Result<(), Trouble> {
    let pair = |node: &Node| {
        let guardian = stray::of(&node.data()).into_iter().find(|p| p.program == "regent-guardian").map(|p| p.pid);
        let none = || Trouble::new(format!("agent or guardian is not there\n{}", node.tails()));
        node.agent().zip(guardian).ok_or_else(none)
    };
    let cpu = |(agent, guardian)| cpu_time(agent) + cpu_time(guardian);
    let before = rig.nodes().iter().map(pair).collect::<Result<Vec<_>, _>>()?;
    let (spent, calls) = (before.iter().map(|pids| cpu(*pids)).collect::<Vec<_>>(), etcd_calls(rig)?);
    thread::sleep(idle);
    let minutes = idle.as_secs_f64() / 60.0;
    let asked = etcd_calls(rig)?;
    for ((node, pids), spent) in rig.nodes().iter().zip(before).zip(spent) {
        if pair(node)? != pids {
            return Err(Trouble::new(format!("agent or guardian was replaced\n{}", node.tails())));
        }
        let role = if node.name() == primary { "primary" } else { "standby" };
        let seconds = cpu(pids).saturating_sub(spent).as_secs_f64() / minutes;
        figure(&format!("idle {role}, agent and guardian: CPU a minute"), &format!("{seconds:.2} s"));
        // The guardian is the same program: its pages of the file are the agent's.
        let (agent, own) = (memory_mb(pids.0, "VmRSS:"), memory_mb(pids.1, "RssAnon:"));
        figure(&format!("idle {role}, agent: resident memory"), &format!("{agent:.1} MB"));
        figure(&format!("idle {role}, guardian: what it adds"), &format!("{own:.1} MB"));
    }
    for (method, count) in asked {
        let rate = (count - calls.get(&method).copied().unwrap_or(0.0)) / minutes;
        if rate > 0.0 {
            figure(
                &format!("idle, {} members: etcd {method} messages a minute", rig.nodes().len()),
                &format!("{rate:.0}"),
            );
        }
    }
    Ok(())
}

/// Messages that etcd's members have received so far, by method.
fn etcd_calls(rig: &Rig) -> Result<BTreeMap<String, f64>, Trouble> {
    let mut calls = BTreeMap::new();
    for member in rig.etcd.endpoints() {
        let page = http::get(member, "/metrics", Duration::from_secs(3))?.body;
        for line in page.lines().filter_map(|line| line.strip_prefix("grpc_server_msg_received_total{grpc_method=\"")) {
            let Some((method, rest)) = line.split_once('"') else { continue };
            let count = rest.rsplit_once(' ').and_then(|(_, count)| count.parse::<f64>().ok()).unwrap_or(0.0);
            *calls.entry(method.to_owned()).or_default() += count;
        }
    }
    Ok(calls)
}

/// Time on a processor so far, of all threads (nanoseconds, `/proc/PID/task/TID/schedstat`: the ticks of stat are too coarse).
fn cpu_time(pid: i32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let spent = threads.filter_map(|thread| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(spent.sum())
}

/// A line of `/proc/PID/status` that tells kilobytes.
fn memory_mb(pid: i32, what: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap_or_default();
    let kilobytes: u32 = line.trim().trim_end_matches(" kB").parse().unwrap_or(0);
    f64::from(kilobytes) / 1024.0
}

/// Asks `GET /primary` over kept-alive connections for [`LOAD`], and prints rate and latencies.
fn load(name: &str, port: u16) -> Result<(), Trouble> {
    let start = Instant::now();
    let askers: Vec<_> = (0..CONNECTIONS).map(|_| thread::spawn(move || ask(port, start + LOAD))).collect();
    let mut answers = Vec::new();
    for asker in askers {
        answers.extend(asker.join().map_err(|_| Trouble::new("an asker panicked"))??);
    }
    let rate = answers.len() as f64 / start.elapsed().as_secs_f64();
    figure(&format!("{name}: requests per second"), &format!("{rate:.0}"));
    latencies(name, answers);
    Ok(())
}

fn latencies(name: &str, mut answers: Vec<(Duration, u16)>) {
    answers.sort_unstable_by_key(|(latency, _)| *latency);
    let at = |percent: usize| answers.get((answers.len() * percent / 100).min(answers.len().saturating_sub(1)));
    let show = |percent| at(percent).map_or_else(String::new, |(t, _)| format!("{:.2} ms", t.as_secs_f64() * 1e3));
    let mut codes: Vec<u16> = answers.iter().map(|(_, code)| *code).collect();
    codes.sort_unstable();
    codes.dedup();
    figure(&format!("{name}: 99th percentile"), &show(99));
    figure(&format!("{name}: slowest"), &show(100));
    figure(&format!("{name}: status codes seen"), &format!("{codes:?}"));
}

/// [`CHECKS`] health checks a second among a [`CROWD`], for [`LOAD`]: latencies, each from the moment it was due, and how many
/// got no answer.
fn crowded(name: &str, port: u16) -> Result<(), Trouble> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).map_err(std::io::Error::from)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).map_err(std::io::Error::from)?;
    let begin = Instant::now() + Duration::from_secs(2);
    let crowd = thread::spawn(move || crowd(port, begin + LOAD));
    let check_all = move || {
        let (mut due, mut answers, mut lost) = (begin, Vec::new(), 0);
        while due < begin + LOAD {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            match check(port) {
                Ok(code) => answers.push((due.elapsed(), code)),
                Err(_) => lost += 1,
            }
            due += Duration::from_secs(1) * CHECKERS / CHECKS;
        }
        (answers, lost)
    };
    let checkers: Vec<_> = (0..CHECKERS).map(|_| thread::spawn(check_all)).collect();
    let (mut answers, mut lost) = (Vec::new(), 0);
    for checker in checkers {
        let (some, gone) = checker.join().map_err(|_| Trouble::new("a checker panicked"))?;
        answers.extend(some);
        lost += gone;
    }
    let stood = crowd.join().map_err(|_| Trouble::new("the crowd panicked"))?;
    figure(&format!("{name}: connections in the crowd, at the least"), &format!("{stood}"));
    figure(&format!("{name}: checks without an answer"), &format!("{lost}"));
    latencies(name, answers);
    Ok(())
}

/// One check over a connection of its own: its code.
fn check(port: u16) -> Result<u16, Trouble> {
    let within = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), within)?;
    stream.set_read_timeout(Some(within))?;
    stream.write_all(b"GET /primary HTTP/1.0\r\n\r\n")?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    Ok(code(&text))
}

/// Keeps a [`CROWD`] of connections until `end`, new ones in the place of those that are cut; the least that stood at a time.
fn crowd(port: u16, end: Instant) -> usize {
    let connect = || {
        let stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), secs(1)).ok()?;
        stream.set_nonblocking(true).ok()?;
        Some(stream)
    };
    let request = b"GET /primary?lag=10MB&tag_datacenter=west HTTP/1.1\r\nHost: crowd\r\nX-Long: long\r\n".as_slice();
    let mut all: Vec<(Option<TcpStream>, usize)> = (0..CROWD).map(|_| (connect(), 0)).collect();
    let mut least = CROWD;
    while Instant::now() < end {
        for (n, (stream, sent)) in all.iter_mut().enumerate() {
            let cut = |stream: &mut TcpStream| match stream.read(&mut [0; 512]) {
                Ok(count) => count == 0,
                Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
            };
            if stream.as_mut().is_none_or(cut) {
                (*stream, *sent) = (connect(), 0);
            }
            // The last third is past its request line from the beginning.
            let from = if n % 3 == 2 { (*sent).max(60) } else { *sent };
            let more = if *sent == 0 { request.get(..from + 1) } else { request.get(from..from + 1) };
            if let (true, Some(stream), Some(more)) = (n % 3 > 0, stream, more) {
                *sent = from + stream.write(more).map_or(0, |_| 1);
            }
        }
        least = least.min(all.iter().filter(|(stream, _)| stream.is_some()).count());
        thread::sleep(Duration::from_millis(500));
    }
    least
}

/// One connection's questions until `end`: latency and status code of each.
fn ask(port: u16, end: Instant) -> Result<Vec<(Duration, u16)>, Trouble> {
    let connect = || {
        let stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok::<_, std::io::Error>(stream)
    };
    let mut stream = connect()?;
    let mut answers = Vec::new();
    let mut text = Vec::new();
    let mut chunk = [0; 4096];
    while Instant::now() < end {
        let sent = Instant::now();
        stream.write_all(b"GET /primary HTTP/1.1\r\nHost: bench\r\n\r\n")?;
        text.clear();
        let mut closed = false;
        while !closed && !whole(&text) {
            let n = stream.read(&mut chunk)?;
            closed = n == 0;
            text.extend_from_slice(chunk.get(..n).unwrap_or_default());
        }
        if closed && text.is_empty() {
            return Err(Trouble::new("a connection was closed without an answer"));
        }
        answers.push((sent.elapsed(), code(&text)));
        // The peer keeps none.
        if closed {
            stream = connect()?;
        }
    }
    Ok(answers)
}

/// The status code of an answer; 0: it is none.
fn code(text: &[u8]) -> u16 {
    text.get(9..12).and_then(|code| std::str::from_utf8(code).ok()?.parse().ok()).unwrap_or(0)
}

/// Whether `text` holds a head and as many bytes as it announces; an answer of HTTP/1.0 ends with its connection.
fn whole(text: &[u8]) -> bool {
    if text.starts_with(b"HTTP/1.0") {
        return false;
    }
    let Some(head) = text.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
    let header = String::from_utf8_lossy(text.get(..head).unwrap_or_default()).to_ascii_lowercase();
    let length = header.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    text.len() >= head + 4 + length.unwrap_or(0)
}
