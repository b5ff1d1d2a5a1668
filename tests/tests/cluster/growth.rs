//! What runs for long does not grow: memory, descriptors and threads of agents and guardians, slots, log.
//! `REGENT_GROWTH_MINUTES=60` makes an hour of it. A minute shows no more than that what events took is given back.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::thread::sleep;
use std::time::{Duration, Instant};

use regent_tests::rig::{Node, Rig, Settings, Trouble, Way, Writer, stray, writer};
use serde_json::json;

use crate::support::{PATIENCE, configure, loudly, number, turn};
use crate::switchover::post;

/// The pause between two samples.
const STEP: Duration = Duration::from_secs(5);
/// The longest time between two switchovers.
const SWITCHOVER: Duration = Duration::from_secs(180);
/// How much more memory an agent or a guardian may hold in the last quarter than in the second.
const MEMORY_KB: u64 = 4096;
/// How much more log may lie in `pg_wal`: three segments. In an hour some 800 MB are written.
const LOG_KB: u64 = 3 * 16 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Measure {
    Descriptors,
    Threads,
    MemoryKb,
    Slots,
    LogKb,
}

/// What is measured, and whose it is.
type Sample = BTreeMap<(Measure, String), u64>;

fn status(pid: i32, field: &str) -> Result<u64, Trouble> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| Trouble::new(format!("/proc/{pid}/status has no {field}")))
}

fn sample(rig: &Rig) -> Result<Sample, Trouble> {
    let mut sample = Sample::new();
    for node in rig.nodes() {
        let processes: Vec<_> = stray::of(node.dir()).into_iter().filter(|p| p.program.starts_with("regent")).collect();
        assert_eq!(processes.len(), 2, "an agent and a guardian: {processes:?}");
        for process in processes {
            let whose = format!("{} {}", node.name(), process.program);
            // An agent has secrets in its memory, so that only root may look into it.
            match fs::read_dir(format!("/proc/{}/fd", process.pid)) {
                Ok(open) => drop(sample.insert((Measure::Descriptors, whose.clone()), open.count() as u64)),
                Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
                Err(error) => return Err(error.into()),
            }
            sample.insert((Measure::Threads, whose.clone()), status(process.pid, "Threads")?);
            sample.insert((Measure::MemoryKb, whose), status(process.pid, "VmRSS")?);
        }
        let slots = node.server().value("select count(*) from pg_replication_slots", PATIENCE)?;
        let slots = slots.parse().map_err(|_| Trouble::new("a count is no number"))?;
        sample.insert((Measure::Slots, node.name().to_owned()), slots);
        let log = fs::read_dir(node.data().join("pg_wal"))?.flatten().filter_map(|file| file.metadata().ok());
        sample.insert((Measure::LogKb, node.name().to_owned()), log.map(|file| file.len() / 1024).sum());
    }
    Ok(sample)
}

/// The one consumer of the permanent slot takes all that there is.
fn consume(primary: &Node) -> Result<(), Trouble> {
    let sql = "select pg_replication_slot_advance(slot_name, pg_current_wal_flush_lsn()) from pg_replication_slots \
               where slot_name = 'keep' and restart_lsn < pg_current_wal_flush_lsn()";
    primary.server().rows(sql, PATIENCE).map(|_| ())
}

/// What clients, monitoring and operators do all day.
fn ordinary_events(rig: &Rig, step: u64) -> Result<(), Trouble> {
    let primary = rig.wait_primary(PATIENCE)?;
    for node in rig.nodes() {
        for path in
            ["/", "/patroni", "/cluster", "/config", "/history", "/metrics", "/liveness", "/readiness", "/no-such"]
        {
            node.get(path)?;
        }
    }
    consume(primary)?;
    let sql = match step % 12 {
        0 => "truncate load",
        _ => "insert into load select repeat('x', 500) from generate_series(1, 2000)",
    };
    primary.server().rows(sql, PATIENCE)?;
    match step % 4 {
        0 => drop(rig.regentctl(&["reload", "demo", "--force"])?),
        2 => configure(rig, &[("postgresql.parameters.work_mem", json!(format!("{}MB", 4 + step % 8)))])?,
        _ => {}
    }
    Ok(())
}

fn switch_over(rig: &Rig) -> Result<(), Trouble> {
    let old = rig.wait_whole(PATIENCE)?;
    let new = rig.others(old).last().ok_or_else(|| Trouble::new("no other member"))?;
    let answer = post(old, "/switchover", &format!(r#"{{"leader":"{}","candidate":"{}"}}"#, old.name(), new.name()))?;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(rig.wait_whole(PATIENCE)?.name(), new.name());
    Ok(())
}

/// Descriptors and slots of a whole cluster: a guardian has one more while its node is the primary.
fn held(sample: &Sample) -> BTreeMap<(Measure, &str), u64> {
    let mut sums = BTreeMap::new();
    for ((measure, whose), value) in sample {
        match measure {
            Measure::Descriptors | Measure::Slots => {
                let program = whose.split_once(' ').map_or("", |(_, program)| program);
                *sums.entry((*measure, program)).or_default() += value;
            }
            // Idle threads end later; the rest goes up and down.
            Measure::Threads | Measure::MemoryKb | Measure::LogKb => {}
        }
    }
    sums
}

/// The last quarter of the samples beside the second one: both numbers, and whether that is growth.
fn compare(measure: Measure, values: &[u64]) -> (u64, u64, bool) {
    let quarter = values.len() / 4;
    let [second, last] = [quarter, values.len() - quarter].map(|from| {
        let mut part = values.get(from..from + quarter).unwrap_or_default().to_vec();
        part.sort_unstable();
        part
    });
    let least = |part: &[u64]| part.first().copied().unwrap_or_default();
    let most = |part: &[u64]| part.last().copied().unwrap_or_default();
    let middle = |part: &[u64]| part.get(part.len() / 2).copied().unwrap_or_default();
    let (before, after, room) = match measure {
        // What is open for a moment, for a request, says nothing.
        Measure::Descriptors => (least(&second), least(&last), 0),
        // A thread of a pool stays for some seconds after its work: never fewer than there ever were would be growth.
        Measure::Threads => (most(&second), least(&last), 0),
        Measure::Slots => (most(&second), most(&last), 0),
        Measure::MemoryKb => (middle(&second), middle(&last), MEMORY_KB),
        Measure::LogKb => (most(&second), most(&last), LOG_KB),
    };
    (before, after, after > before + room)
}

#[test]
fn a_cluster_at_work_does_not_grow() -> Result<(), Trouble> {
    let _turn = turn();
    let minutes = number("REGENT_GROWTH_MINUTES", 1);
    let rig = Rig::whole(Settings { haproxy: false, ..Settings::default() })?;
    let primary = rig.leader()?;
    configure(&rig, &[("slots", json!({"keep": {"type": "physical"}}))])?;
    let small =
        json!({"max_wal_size": "64MB", "min_wal_size": "32MB", "wal_keep_size": "16MB", "checkpoint_timeout": "30s"});
    for (parameter, value) in small.as_object().into_iter().flatten() {
        configure(&rig, &[(&format!("postgresql.parameters.{parameter}"), value.clone())])?;
    }
    rig.wait(PATIENCE, "the permanent slot is on every node", |rig| {
        let there = |node: &Node| {
            let sql = "select count(*) from pg_replication_slots where slot_name = 'keep' and restart_lsn is not null";
            node.server().value(sql, PATIENCE).is_ok_and(|count| count == "1")
        };
        if rig.nodes().iter().all(there) { Ok(()) } else { Err("not yet".to_owned()) }
    })?;
    writer::make_table(primary.server())?;
    primary.server().rows("create table load (text text)", PATIENCE)?;
    let servers: Vec<_> = rig.nodes().iter().map(Node::server).collect();
    let writer = Writer::on(Way::to_first_primary(&servers))?;
    // Everything has happened once before the first look.
    writer.wait_for(20, PATIENCE)?;
    (0..4).try_for_each(|step| ordinary_events(&rig, step))?;
    switch_over(&rig)?;
    let quiet = sample(&rig)?;
    if !quiet.keys().any(|(measure, whose)| *measure == Measure::Descriptors && whose.ends_with("regent")) {
        loudly("SKIPPED the descriptors of agents: only root can count them");
    }
    let (began, mut switched, mut samples) = (Instant::now(), 0, Vec::new());
    let length = Duration::from_secs(60 * minutes as u64);
    while began.elapsed() < length {
        ordinary_events(&rig, samples.len() as u64)?;
        if began.elapsed() > SWITCHOVER.min(length / 2) * (switched + 1) {
            switch_over(&rig)?;
            switched += 1;
        }
        samples.push(sample(&rig)?);
        sleep(STEP);
    }
    let mut grown = Vec::new();
    let mut table = String::new();
    for key @ (measure, whose) in samples[0].keys() {
        let values: Vec<u64> = samples.iter().filter_map(|sample| sample.get(key).copied()).collect();
        let (second, last, grows) = compare(*measure, &values);
        let line = format!("{measure:?} of {whose}: {second}, then {last}");
        table += &format!("\n    {line}");
        // Quarters of a minute show nothing.
        if grows && minutes >= 10 {
            grown.push(line);
        }
    }
    let journal = writer.finish();
    loudly(&format!(
        "{minutes} minutes, {} samples, {switched} switchovers, {journal}; second quarter, then last:{table}",
        samples.len()
    ));
    assert_eq!(grown, Vec::<String>::new(), "this grew");
    rig.wait(PATIENCE, "what events took is given back", |rig| {
        let now = sample(rig).map_err(|e| e.to_string())?;
        let (before, now) = (held(&quiet), held(&now));
        let more = now.iter().any(|(what, value)| before.get(what).is_none_or(|before| before < value));
        if more { Err(format!("{before:?}, then {now:?}")) } else { Ok(()) }
    })
}
