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
    match processes() {
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
    let stopped = load("GET /primary, PostgreSQL stopped by SIGSTOP", port);
    primary.signal_server(Signal::SIGCONT);
    stopped
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
    answers.sort_unstable_by_key(|(latency, _)| *latency);
    let at = |percent: usize| answers.get((answers.len() * percent / 100).min(answers.len().saturating_sub(1)));
    let show = |percent| at(percent).map_or_else(String::new, |(t, _)| format!("{:.2} ms", t.as_secs_f64() * 1e3));
    let mut codes: Vec<u16> = answers.iter().map(|(_, code)| *code).collect();
    codes.sort_unstable();
    codes.dedup();
    figure(&format!("{name}: requests per second"), &format!("{rate:.0}"));
    figure(&format!("{name}: 99th percentile"), &show(99));
    figure(&format!("{name}: slowest"), &show(100));
    figure(&format!("{name}: status codes seen"), &format!("{codes:?}"));
    Ok(())
}

/// One connection's questions until `end`: latency and status code of each.
fn ask(port: u16, end: Instant) -> Result<Vec<(Duration, u16)>, Trouble> {
    let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut answers = Vec::new();
    let mut text = Vec::new();
    let mut chunk = [0; 4096];
    while Instant::now() < end {
        let sent = Instant::now();
        stream.write_all(b"GET /primary HTTP/1.1\r\nHost: bench\r\n\r\n")?;
        text.clear();
        while !whole(&text) {
            let n = stream.read(&mut chunk)?;
            if n == 0 {
                return Err(Trouble::new("the agent closed a kept-alive connection"));
            }
            text.extend_from_slice(chunk.get(..n).unwrap_or_default());
        }
        let code = text.get(9..12).and_then(|code| std::str::from_utf8(code).ok()?.parse().ok()).unwrap_or(0);
        answers.push((sent.elapsed(), code));
    }
    Ok(answers)
}

/// Whether `text` holds a head and as many bytes as it announces.
fn whole(text: &[u8]) -> bool {
    let Some(head) = text.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
    let header = String::from_utf8_lossy(text.get(..head).unwrap_or_default()).to_ascii_lowercase();
    let length = header.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    text.len() >= head + 4 + length.unwrap_or(0)
}
