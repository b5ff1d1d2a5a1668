//! Permanent logical slots: copies on standbys, and a consumer that goes on after failovers (ha-rules section 12, P7 to P11).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use regent_tests::rig::sql::{Target, inserted};
use regent_tests::rig::writer::{make_table, rows_on};
use regent_tests::rig::{Node, Rig, Settings, Trouble, Writer, http};
use serde_json::json;
use tokio::time::{sleep, timeout};
use tokio_postgres::NoTls;

use crate::standby_cluster::patch;
use crate::support::{PATIENCE, loudly, reconfigure, turn};

const SLOT: &str = "feed";
/// One question to a server that is well.
const ANSWER: Duration = Duration::from_secs(10);

/// A whole cluster whose servers can have logical slots, with a table and a publication of it; and then the slot.
fn cluster() -> Result<Rig, Trouble> {
    let rig = Rig::new(Settings::default())?;
    for node in rig.nodes() {
        reconfigure(&rig, node, |yml| yml.replace("wal_level: replica", "wal_level: logical"))?;
    }
    rig.start_all()?;
    let primary = rig.wait_whole(PATIENCE)?;
    make_table(primary.server())?;
    primary.server().value("create publication feed for table rig_rows; select 1", ANSWER)?;
    let slot = json!({"type": "logical", "database": "postgres", "plugin": "pgoutput"});
    patch(&rig, &json!({"slots": {SLOT: slot}}))?;
    Ok(rig)
}

fn position(node: &Node) -> Result<String, String> {
    let sql = "select coalesce((select confirmed_flush_lsn::text from pg_replication_slots where slot_name = 'feed'), 'none')";
    node.server().value(sql, Duration::from_secs(3)).map_err(|e| e.to_string())
}

/// Every standby has the slot, and its agent says that it is ready for a failover.
fn ready(rig: &Rig) -> Result<&Node, Trouble> {
    rig.wait(PATIENCE, "every standby is ready for a failover", |rig| {
        let primary = rig.is_whole()?;
        for node in rig.others(primary) {
            let status = node.get("/patroni").map_err(|e| e.to_string())?.json();
            let not_ready = &status["regent"]["slots_not_ready"];
            match position(node)?.as_str() {
                "none" => return Err(format!("{} has no slot", node.name())),
                _ if !not_ready.is_null() => return Err(format!("{}: not ready: {not_ready}", node.name())),
                _ => {}
            }
        }
        Ok(primary)
    })
}

fn started(node: &Node) -> Result<String, Trouble> {
    node.server().value("select pg_postmaster_start_time()", ANSWER)
}

#[test]
fn a_logical_slot_is_made_copied_and_moved_on() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = cluster()?;
    let primary = rig.leader()?;
    let before: Vec<_> = rig.others(primary).map(started).collect::<Result<_, _>>()?;
    let since = Instant::now();
    ready(&rig)?;
    loudly(&format!("the slot is made, and ready on both standbys, {:?} after it was configured", since.elapsed()));
    let restarted: Vec<_> = rig.others(primary).map(started).collect::<Result<_, _>>()?;
    assert!(before.iter().zip(&restarted).all(|(before, after)| before != after), "one restart each");
    for node in rig.nodes() {
        assert_eq!(node.server().value("show hot_standby_feedback", ANSWER)?, "on", "P11");
    }
    // A consumer on the primary moves the slot, and the copies follow.
    for _ in 0..3 {
        let sql = "insert into rig_rows select coalesce(max(id), 0) + 1 from rig_rows returning id";
        primary.server().value(sql, ANSWER)?;
        let moved = "select end_lsn from pg_replication_slot_advance('feed', pg_current_wal_lsn())";
        let at = primary.server().value(moved, ANSWER)?;
        rig.wait(PATIENCE, "the copies follow the slot", |rig| {
            for node in rig.others(primary) {
                let there = position(node)?;
                let reached = format!("select '{there}'::pg_lsn >= '{at}'::pg_lsn");
                match node.server().value(&reached, ANSWER).map_err(|e| e.to_string())?.as_str() {
                    "t" => {}
                    _ => return Err(format!("{} is at {there}, not at {at}", node.name())),
                }
            }
            Ok(())
        })?;
    }
    let after: Vec<_> = rig.others(primary).map(started).collect::<Result<_, _>>()?;
    assert_eq!(restarted, after, "no further restart");
    // Without the slot in the configuration it goes everywhere, and so does the setting (P1, P11).
    patch(&rig, &json!({"slots": null}))?;
    rig.wait(PATIENCE, "the slot is gone", |rig| {
        for node in rig.nodes() {
            let feedback = node.server().value("show hot_standby_feedback", ANSWER).map_err(|e| e.to_string())?;
            match (position(node)?.as_str(), feedback.as_str()) {
                ("none", "off") => {}
                other => return Err(format!("{}: {other:?}", node.name())),
            }
        }
        Ok(())
    })
}

/// What a consumer got: the rows of each conversation with a primary, in their order.
#[derive(Default)]
struct Received {
    conversations: Vec<Vec<i64>>,
    all: BTreeSet<i64>,
}

/// Reads the slot on whoever is the primary, and confirms what it has.
struct Consumer {
    received: Arc<Mutex<Received>>,
    over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Consumer {
    fn start(from: Target) -> Consumer {
        let (received, over) = (Arc::<Mutex<Received>>::default(), Arc::new(AtomicBool::new(false)));
        let (theirs, until) = (received.clone(), over.clone());
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            while !until.load(Ordering::Relaxed) {
                // Whatever went wrong: the next conversation begins where the slot is.
                let _ = runtime.block_on(converse(from, &theirs, &until));
                thread::sleep(Duration::from_millis(100));
            }
        });
        Consumer { received, over, thread }
    }

    fn look<T>(&self, look: impl FnOnce(&Received) -> T) -> T {
        look(&self.received.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn finish(self) -> Received {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        std::mem::take(&mut *self.received.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One connection: peek, keep, confirm; what is not confirmed comes again.
async fn converse(from: Target, received: &Mutex<Received>, until: &AtomicBool) -> Result<(), Trouble> {
    let wrong = |e: tokio_postgres::Error| Trouble::new(e.to_string());
    let silent = |_| Trouble::new("no answer");
    let config = from.config("consumer");
    let (client, connection) = timeout(ANSWER, config.connect(NoTls)).await.map_err(silent)?.map_err(wrong)?;
    tokio::spawn(connection);
    let peek = "select lsn::text, data from pg_logical_slot_peek_binary_changes('feed', null, 500,
                'proto_version', '1', 'publication_names', 'feed') where not pg_is_in_recovery()";
    let mut began = false;
    while !until.load(Ordering::Relaxed) {
        let rows = timeout(ANSWER, client.query(peek, &[])).await.map_err(silent)?.map_err(wrong)?;
        {
            let mut received = received.lock().unwrap_or_else(PoisonError::into_inner);
            if !std::mem::replace(&mut began, true) {
                received.conversations.push(Vec::new());
            }
            let ids = rows.iter().filter_map(|row| inserted(row.get::<_, &[u8]>(1)));
            for id in ids {
                received.all.insert(id);
                received.conversations.last_mut().unwrap().push(id);
            }
        }
        let Some(last) = rows.last() else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let confirm = format!("select pg_replication_slot_advance('feed', '{}')", last.get::<_, &str>(0));
        timeout(ANSWER, client.simple_query(&confirm)).await.map_err(silent)?.map_err(wrong)?;
    }
    Ok(())
}

/// The primary goes, in a different way each time. What was killed is started again once another one leads.
fn fail_over(rig: &Rig, round: usize) -> Result<&'static str, Trouble> {
    let old = rig.leader()?;
    let what = ["switchover", "kill -9 of the agent", "switchover", "kill -9 of agent and server"][round % 4];
    if what == "switchover" {
        let body = format!(r#"{{"leader":"{}"}}"#, old.name());
        let head = format!(
            "POST /switchover HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let answer = http::raw(old.rest(), &(head + &body), PATIENCE)?;
        assert_eq!(answer.status, 200, "{}", answer.body);
        return Ok(what);
    }
    if what == "kill -9 of the agent" {
        old.kill_agent()
    } else {
        old.kill()
    }
    rig.wait(PATIENCE, "another one leads", |rig| match rig.one_primary()? {
        new if new.name() == old.name() => Err(format!("{} still does", old.name())),
        _ => Ok(()),
    })?;
    old.start()?;
    Ok(what)
}

/// A consumer of `pgoutput` misses nothing of what is on the primary, however often another one leads: `REGENT_LOGICAL_FAILOVERS`.
#[test]
fn a_consumer_misses_nothing_through_failovers() -> Result<(), Trouble> {
    let _turn = turn();
    let rounds = std::env::var("REGENT_LOGICAL_FAILOVERS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    let rig = cluster()?;
    ready(&rig)?;
    let proxy = rig.haproxy()?.by_http();
    let (writer, consumer) = (Writer::start(proxy)?, Consumer::start(proxy));
    for round in 0..rounds {
        writer.wait_for(30, PATIENCE)?;
        let old = ready(&rig)?.name().to_owned();
        let what = fail_over(&rig, round)?;
        let new = rig.wait_whole(PATIENCE)?;
        assert_ne!(new.name(), old, "{what}");
        writer.wait_for(30, PATIENCE)?;
        let rows = rows_on(new.server())?;
        rig.wait(PATIENCE, "the consumer has every row of the primary", |_| {
            let missing: Vec<i64> = consumer.look(|received| rows.difference(&received.all).copied().collect());
            if missing.is_empty() { Ok(()) } else { Err(format!("{} rows are missing: {missing:?}", missing.len())) }
        })?;
        loudly(&format!("round {}: {what}, {old} -> {}: {} rows, all received", round + 1, new.name(), rows.len()));
    }
    let journal = writer.finish();
    let primary = rig.wait_whole(PATIENCE)?;
    let rows = rows_on(primary.server())?;
    rig.wait(PATIENCE, "the consumer has every row of the primary", |_| {
        match consumer.look(|received| rows.difference(&received.all).count()) {
            0 => Ok(()),
            missing => Err(format!("{missing} rows are missing")),
        }
    })?;
    let received = consumer.finish();
    // One writer, one row after the other: those that were acknowledged come in their order.
    let acknowledged: BTreeSet<i64> = journal.acknowledged().map(|(row, _)| row).collect();
    for conversation in &received.conversations {
        let known: Vec<i64> = conversation.iter().copied().filter(|row| acknowledged.contains(row)).collect();
        assert!(known.is_sorted_by(|a, b| a < b), "out of order, or twice in one conversation: {known:?}");
    }
    let twice = received.conversations.iter().map(Vec::len).sum::<usize>() - received.all.len();
    loudly(&format!(
        "{rounds} failovers: {} rows on the primary, all received, in {} conversations, {twice} of them again; the writer: {journal}",
        rows.len(),
        received.conversations.len(),
    ));
    Ok(())
}
