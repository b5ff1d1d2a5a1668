//! One run: a whole cluster, clients, a fault, what they saw, and a whole cluster again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::faults::{ETCD_LEADERS, Fault, SHORT_FREEZES};
use super::report::{Checks, Run};
use crate::rig::sql::Target;
use crate::rig::writer::{make_table, rows_on};
use crate::rig::{Journal, Node, Rig, Trouble, Way, Writer, http, poll, stray};

/// The longest that anything takes here.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a cluster is given to become whole by itself.
const HEAL: Duration = Duration::from_secs(45);
/// How long the two clients write on when the fault is over.
const CALM: Duration = Duration::from_secs(3);
/// What a fault lasts beyond the TTL.
const BEYOND: Duration = Duration::from_secs(10);
/// How long a health check is waited for.
const CHECK: Duration = Duration::from_secs(5);
/// How long the server is stopped.
const STOPPED: Duration = Duration::from_secs(15);
const ENDPOINTS: [&str; 9] =
    ["/primary", "/leader", "/replica", "/health", "/liveness", "/readiness", "/patroni", "/cluster", "/metrics"];

/// Who writes.
struct Crew {
    proxy: Writer,
    direct: Writer,
    nodes: Vec<(String, Writer)>,
}

impl Crew {
    fn start(rig: &Rig) -> Result<Self, Trouble> {
        let servers: Vec<Target> = rig.nodes().iter().map(Node::server).collect();
        let proxy = Writer::on(Way::to(rig.haproxy()?.by_http()))?;
        let direct = Writer::on(Way::to_first_primary(&servers))?;
        let nodes = rig.nodes().iter().map(|node| Ok((node.name().to_owned(), Writer::on(Way::at(node))?)));
        let crew = Crew { proxy, direct, nodes: nodes.collect::<Result<_, Trouble>>()? };
        crew.clients(20)?;
        Ok(crew)
    }

    /// Waits until both clients have `count` more acknowledgements.
    fn clients(&self, count: usize) -> Result<(), Trouble> {
        let named = |e: Trouble, who: &str| Trouble::new(format!("{who}: {e}"));
        self.proxy.wait_for(count, PATIENCE).map_err(|e| named(e, "the client behind HAProxy"))?;
        self.direct.wait_for(count, PATIENCE).map_err(|e| named(e, "the client that knows all hosts"))
    }
}

/// What a fault left behind.
#[derive(Default)]
struct Aftermath {
    /// The old primary cannot be expected to come back by itself.
    replace: bool,
    thawed: Option<Instant>,
    failovers: u32,
    checks: Option<Checks>,
}

/// Makes `fault` happen once to a cluster that is whole, and leaves it whole.
///
/// # Errors
/// The cluster was not whole, did not take writes again, or did not heal.
pub fn run(rig: &Rig, fault: Fault, product: &str) -> Result<Run, Trouble> {
    let old = rig.wait_whole(PATIENCE)?;
    make_table(old.server())?;
    old.server().rows("truncate rig_rows", PATIENCE)?;
    routed(rig, old)?;
    let before = timeline(old)?;
    let crew = Crew::start(rig)?;
    sleep(phase());

    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0);
    let struck = Instant::now();
    let done = AtomicBool::new(false);
    let (after, gone) = thread::scope(|scope| {
        let watch = scope.spawn(|| death(old, &done));
        let after = strike(rig, fault, old, &crew, struck).and_then(|after| {
            crew.clients(25)?;
            sleep(CALM);
            Ok(after)
        });
        done.store(true, Ordering::SeqCst);
        (after, watch.join().ok().flatten())
    });
    let after = after.map_err(|e| Trouble::new(format!("{e}\n{}", rig.tails())))?;

    let (proxy, direct) = (crew.proxy.finish(), crew.direct.finish());
    let nodes: Vec<(String, Journal)> = crew.nodes.into_iter().map(|(name, writer)| (name, writer.finish())).collect();
    let new = heal(rig, old, after.replace)?;

    let there = rows_on(new.server())?;
    let lost = |journal: &Journal| journal.acknowledged().filter(|(row, _)| !there.contains(row)).count();
    let acks =
        |journal: &Journal| journal.acknowledged().map(|(_, at)| at).filter(|at| *at > struck).collect::<Vec<_>>();
    let (mine, others): (Vec<_>, Vec<_>) = nodes.iter().partition(|(name, _)| name == old.name());
    let last_old = mine.iter().flat_map(|(_, journal)| acks(journal)).max();
    let first_new = others.iter().flat_map(|(_, journal)| acks(journal)).min();
    // Nobody writes in a frozen node: what counts is what it writes when it wakes.
    let from = first_new.map(|first| after.thawed.map_or(first, |thawed| thawed.max(first)));
    let failures: Vec<_> = [&proxy, &direct]
        .iter()
        .flat_map(|journal| journal.failures().filter(|a| a.sent > struck))
        .filter_map(|attempt| attempt.outcome.as_ref().err())
        .collect();
    let changed = u32::from(new.name() != old.name() || timeline(new)? != before);
    Ok(Run {
        gap_proxy: gap(&proxy, struck),
        gap_direct: gap(&direct, struck),
        both: from.map(|from| last_old.map_or(f64::NEG_INFINITY, |last| minus(last, from)).max(-999.0)),
        old_dead: first_new.zip(gone).map(|(first, gone)| minus(gone, first)),
        acknowledged: proxy.acknowledged().count() + direct.acknowledged().count(),
        lost_clients: lost(&proxy) + lost(&direct),
        lost_nodes: nodes.iter().map(|(_, journal)| lost(journal)).sum(),
        failed: failures.len(),
        words: failures.into_iter().map(|(_, why)| why.clone()).collect(),
        failovers: after.failovers.max(changed),
        recovery: (fault == Fault::Postmaster && changed == 0).then(|| recovery(old)).flatten(),
        checks: after.checks,
        load,
        trouble: None,
        ..Run::failed(product, fault, rig.settings(), "")
    })
}

/// Makes it happen, and returns when it is over or the clients write again.
fn strike(rig: &Rig, fault: Fault, old: &Node, crew: &Crew, struck: Instant) -> Result<Aftermath, Trouble> {
    let ttl = Duration::from_secs(u64::from(rig.settings().ttl));
    let beyond = || sleep((ttl + BEYOND).saturating_sub(struck.elapsed()));
    let replace = Aftermath { replace: true, ..Aftermath::default() };
    Ok(match fault {
        Fault::PowerOff => {
            old.host().cut()?;
            old.kill();
            replace
        }
        Fault::Postmaster => {
            old.kill_postmaster();
            Aftermath::default()
        }
        Fault::AgentKilled => {
            old.kill_agent();
            beyond();
            replace
        }
        Fault::AgentFrozen => {
            old.signal_agent(Signal::SIGSTOP);
            beyond();
            old.signal_agent(Signal::SIGCONT);
            sleep(CALM);
            replace
        }
        Fault::NodeFrozen => {
            old.freeze(true);
            beyond();
            let thawed = Instant::now();
            old.freeze(false);
            sleep(CALM);
            Aftermath { thawed: Some(thawed), ..replace }
        }
        Fault::AgentRestarted => {
            old.kill_agent();
            sleep(Duration::from_millis(500));
            old.start()?;
            // Beyond the end of the lease that the dead agent held.
            sleep(ttl + CALM);
            Aftermath::default()
        }
        Fault::ShortFreezes => {
            let freeze = |i: u32| {
                old.signal_agent(Signal::SIGSTOP);
                sleep(ttl * (i % 5 + 1) / 10);
                old.signal_agent(Signal::SIGCONT);
                sleep(Duration::from_secs(1));
                Ok(())
            };
            Aftermath { failovers: failovers(rig, old, SHORT_FREEZES, freeze)?, ..Aftermath::default() }
        }
        Fault::EtcdCut => {
            let members = rig.etcd.endpoints();
            let them =
                || members.iter().filter_map(|at| if let std::net::IpAddr::V4(ip) = at.ip() { Some(ip) } else { None });
            them().try_for_each(|member| old.host().cut_from(member))?;
            beyond();
            them().try_for_each(|member| old.host().mend_to(member))?;
            sleep(CALM);
            Aftermath::default()
        }
        Fault::EtcdDown => {
            rig.etcd.stop();
            beyond();
            rig.etcd.start()?;
            sleep(CALM);
            Aftermath::default()
        }
        Fault::EtcdLeader => {
            let kill = |_| {
                rig.etcd.stop_one(rig.etcd.leader()?);
                sleep(CALM);
                rig.etcd.start()?;
                // All three answer again, and one of them leads.
                rig.wait(PATIENCE, "etcd is whole", |rig| rig.etcd.leader().map_err(|e| e.to_string()))?;
                sleep(Duration::from_secs(1));
                crew.clients(1)
            };
            Aftermath { failovers: failovers(rig, old, ETCD_LEADERS, kill)?, ..Aftermath::default() }
        }
        Fault::HandOver => {
            old.signal_agent(Signal::SIGTERM);
            old.agent_ended(PATIENCE)?;
            crew.clients(25)?;
            old.start()?;
            Aftermath::default()
        }
        Fault::ServerStopped => {
            old.signal_server(Signal::SIGSTOP);
            let checks = ask_all(old, Instant::now() + STOPPED);
            old.signal_server(Signal::SIGCONT);
            Aftermath { checks, ..Aftermath::default() }
        }
    })
}

/// Does `what` so many times, and counts how many times that changed the primary or its timeline.
fn failovers(rig: &Rig, old: &Node, times: u32, what: impl Fn(u32) -> Result<(), Trouble>) -> Result<u32, Trouble> {
    let mut count = 0;
    let mut was = (old.name().to_owned(), timeline(old)?);
    for i in 0..times {
        what(i)?;
        let primary = rig.wait_primary(PATIENCE)?;
        let now = (primary.name().to_owned(), timeline(primary)?);
        count += u32::from(now != was);
        was = now;
    }
    Ok(count)
}

/// When the last of the processes died that the node's server has now.
fn death(node: &Node, done: &AtomicBool) -> Option<Instant> {
    let them: Vec<stray::Seen> = stray::of(&node.data()).into_iter().filter(|p| p.program == "postgres").collect();
    let lives = |p: &stray::Seen| stray::look(p.pid).is_some_and(|now| now.started == p.started && !now.dead);
    while them.iter().any(lives) {
        if done.load(Ordering::SeqCst) {
            return None;
        }
        sleep(Duration::from_millis(5));
    }
    Some(Instant::now())
}

/// Asks all endpoints, each over new connections one after the other.
fn ask_all(node: &Node, until: Instant) -> Option<Checks> {
    let ask = |path| {
        let mut asked = Vec::new();
        while Instant::now() < until {
            let sent = Instant::now();
            let answered = http::get(node.rest(), path, CHECK).is_ok();
            asked.push((sent.elapsed().as_secs_f64(), answered));
            sleep(Duration::from_millis(20));
        }
        asked
    };
    let asked = thread::scope(|scope| {
        let threads: Vec<_> = ENDPOINTS.iter().map(|path| scope.spawn(move || ask(path))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    });
    Checks::of(asked)
}

/// A whole cluster, by itself or with the old primary replaced.
fn heal<'a>(rig: &'a Rig, old: &Node, replace: bool) -> Result<&'a Node, Trouble> {
    if !replace && let Ok(primary) = rig.wait_whole(HEAL) {
        return Ok(primary);
    }
    // Whether it was cut or not.
    old.host().mend()?;
    old.replace()?;
    rig.wait_whole(PATIENCE)
}

fn routed(rig: &Rig, primary: &Node) -> Result<(), Trouble> {
    let (proxy, wanted) = (rig.haproxy()?.by_http(), primary.host().address().to_string());
    let leads = || {
        let there = proxy.value("select host(inet_server_addr())", CHECK).map_err(|e| e.to_string())?;
        if there == wanted { Ok(()) } else { Err(format!("it leads to {there}")) }
    };
    poll(PATIENCE, leads).map_err(|e| Trouble::new(format!("HAProxy does not lead to {}: {e}", primary.name())))
}

fn timeline(node: &Node) -> Result<String, Trouble> {
    node.server().value("select substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)", PATIENCE)
}

/// From the server's last start to its readiness, by its log.
fn recovery(node: &Node) -> Option<f64> {
    let log = std::fs::read_to_string(node.dir().join("postgresql.log")).ok()?;
    let lines: Vec<&str> = log.lines().collect();
    let start = lines.iter().rposition(|line| line.contains("starting PostgreSQL"))?;
    let ready = lines.iter().skip(start).find(|line| line.contains("ready to accept connections"))?;
    // "2026-11-21 15:20:25.422 UTC ...", no run lasts over midnight.
    let seconds = |line: &str| {
        let mut parts = line.get(11..23)?.split(':').map(str::parse::<f64>);
        Some(parts.next()?.ok()? * 3600.0 + parts.next()?.ok()? * 60.0 + parts.next()?.ok()?)
    };
    Some(seconds(ready)? - seconds(lines.get(start)?)?)
}

/// Somewhere between two turns of any loop, each run elsewhere.
fn phase() -> Duration {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    Duration::from_nanos(u64::from(nanos) % 1_000_000_000)
}

/// The longest time between two acknowledgements of which the later came after `struck`.
fn gap(journal: &Journal, struck: Instant) -> Option<f64> {
    let times: Vec<Instant> = journal.acknowledged().map(|(_, at)| at).collect();
    let gaps = times.windows(2).filter_map(|pair| Some((*pair.first()?, *pair.get(1)?)));
    gaps.filter(|(_, later)| *later > struck).map(|(earlier, later)| minus(later, earlier)).max_by(f64::total_cmp)
}

fn minus(later: Instant, earlier: Instant) -> f64 {
    let forth = later.saturating_duration_since(earlier).as_secs_f64();
    forth - earlier.saturating_duration_since(later).as_secs_f64()
}
