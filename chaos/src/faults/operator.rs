//! What operators ask for, over the REST API: once, twice at once, or cut off before the answer.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use regent_tests::rig::{Node, Trouble, http, stray};

use super::Manner;
use super::strike::{Undo, over};
use crate::cluster::Cluster;

/// How long an operator waits for an answer; a switchover may take as long as the cluster does.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a tool is waited for that is to be killed.
const TOOL: Duration = Duration::from_secs(10);

pub(super) fn switchover(cluster: &Cluster, node: &Node, manner: Manner) -> Result<Undo, Trouble> {
    let body = format!(r#"{{"leader": "{}"}}"#, cluster.rig.leader()?.name());
    Ok(give(node, "POST", "/switchover", &body, manner))
}

pub(super) fn failover(cluster: &Cluster, node: &Node, manner: Manner) -> Result<Undo, Trouble> {
    let leader = cluster.rig.leader()?;
    let candidate = cluster.rig.others(leader).next().map_or("", Node::name);
    Ok(give(node, "POST", "/failover", &format!(r#"{{"candidate": "{candidate}"}}"#), manner))
}

pub(super) fn restart(node: &Node, manner: Manner) -> Undo {
    give(node, "POST", "/restart", "{}", manner)
}

pub(super) fn reinitialize(node: &Node, manner: Manner) -> Undo {
    give(node, "POST", "/reinitialize", r#"{"force": true}"#, manner)
}

pub(super) fn configure(node: &Node, manner: Manner, megabytes: u64) -> Undo {
    let body = format!(r#"{{"postgresql": {{"parameters": {{"work_mem": "{megabytes}MB"}}}}}}"#);
    give(node, "PATCH", "/config", &body, manner)
}

pub(super) fn pause(node: &Node, manner: Manner) -> Undo {
    let _ = give(node, "PATCH", "/config", r#"{"pause": true}"#, manner);
    Box::new(resume)
}

/// A clone whose tool is killed when it is at work.
pub(super) fn kill_clone(node: &Node) -> Undo {
    let _ = reinitialize(node, Manner::Plain);
    kill_tool(node);
    over()
}

/// An operator sees to it that the cluster is resumed, whomever that takes.
fn resume(cluster: &Cluster) -> Result<(), Trouble> {
    let asked = cluster.rig.nodes().iter().map(|node| {
        let request = request(node.rest(), "PATCH", "/config", r#"{"pause": null}"#);
        http::raw(node.rest(), &request, PATIENCE).is_ok_and(|answer| answer.status == 200)
    });
    if asked.into_iter().any(|done| done) { Ok(()) } else { Err(Trouble::new("nobody resumes the cluster")) }
}

fn request(at: SocketAddr, method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: {at}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
}

/// Sends it from threads that wait for the answers: other faults do not wait for this one.
fn give(node: &Node, method: &str, path: &str, body: &str, manner: Manner) -> Undo {
    let at = node.rest();
    let request = request(at, method, path, body);
    let times = if manner == Manner::Twice { 2 } else { 1 };
    for _ in 0..times {
        let request = request.clone();
        thread::spawn(move || {
            if manner == Manner::CutOff {
                let _ = cut_off(at, &request);
            } else {
                let _ = http::raw(at, &request, PATIENCE);
            }
        });
    }
    over()
}

/// Sends all of it, waits for as long as a network's way is, and goes away.
fn cut_off(at: SocketAddr, request: &str) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(2))?;
    stream.write_all(request.as_bytes())?;
    stream.set_read_timeout(Some(Duration::from_millis(30)))?;
    let _ = stream.read(&mut [0]);
    Ok(())
}

/// Kills the tool that copies, once it is at work.
fn kill_tool(node: &Node) {
    let end = Instant::now() + TOOL;
    while Instant::now() < end {
        let tools: Vec<_> = stray::of(node.dir())
            .into_iter()
            .filter(|p| ["pg_basebackup", "pg_rewind"].contains(&&*p.program))
            .collect();
        if !tools.is_empty() {
            stray::signal(&tools, Signal::SIGKILL);
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
}
