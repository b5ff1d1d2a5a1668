//! Agents that are killed or frozen for longer than the lease, while their PostgreSQL lives: the guardian's business.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use regent_tests::rig::{Node, Rig, Settings, Trouble, Writer, poll, stray};

use crate::support::{PATIENCE, loudly, says, turn};

fn processes(node: &Node) -> usize {
    stray::of(&node.data()).iter().filter(|process| process.program == "postgres").count()
}

/// Watches from outside who writes when.
struct Seen {
    old_gone: Instant,
    new_writes: Instant,
}

/// Waits for the end of the last process of `old`'s server and for the first write that another node accepts, each seen
/// by a thread of its own.
fn overlap(rig: &Rig, old: &Node) -> Result<Seen, Trouble> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let gone = scope.spawn(|| {
            let gone = || if processes(old) == 0 { Ok(Instant::now()) } else { Err("it runs".to_owned()) };
            poll(PATIENCE, gone)
        });
        let writers: Vec<_> = rig
            .others(old)
            .map(|node| {
                let done = &done;
                scope.spawn(move || {
                    let until = Instant::now() + PATIENCE;
                    while Instant::now() < until && !done.load(Ordering::SeqCst) {
                        if node.server().rows("insert into rig_rows (id) values (-1)", Duration::from_secs(1)).is_ok() {
                            done.store(true, Ordering::SeqCst);
                            return Some(Instant::now());
                        }
                        thread::sleep(Duration::from_millis(10));
                    }
                    None
                })
            })
            .collect();
        let new_writes = writers.into_iter().filter_map(|writer| writer.join().ok()?).min();
        let old_gone = gone.join().map_err(|_| Trouble::new("the watching thread panicked"))?;
        let old_gone = old_gone.map_err(|why| Trouble::new(format!("the old server: {why}\n{}", rig.tails())))?;
        let new_writes = new_writes.ok_or_else(|| Trouble::new(format!("nobody else writes\n{}", rig.tails())))?;
        Ok(Seen { old_gone, new_writes })
    })
}

fn fenced(fault: &str, strike: impl Fn(&Node), heal: impl Fn(&Node) -> Result<(), Trouble>) -> Result<(), Trouble> {
    let _turn = turn();
    let rig = Rig::whole(Settings { haproxy: false, ..Settings::default() })?;
    let old = rig.leader()?;
    says(&rig, old, &["the guardian is armed"])?;
    // Straight to the old primary, past every health check: a client that stays connected as long as it can.
    let writer = Writer::start(old.server())?;
    writer.wait_for(50, PATIENCE)?;
    strike(old);
    let struck = Instant::now();
    let seen = overlap(&rig, old)?;
    let new = rig.wait_primary(PATIENCE)?;
    assert_ne!(new.name(), old.name());
    let journal = writer.finish();
    let last = journal.acknowledged().map(|(_, at)| at).max().ok_or_else(|| Trouble::new("nothing was written"))?;
    let missing = journal.missing_on(new.server())?;
    loudly(&format!(
        "agent {fault}: last write on the old primary {:.2} s, its last process gone {:.2} s, first write on the new {:.2} s after; {} of {} rows lost",
        last.duration_since(struck).as_secs_f64(),
        seen.old_gone.duration_since(struck).as_secs_f64(),
        seen.new_writes.duration_since(struck).as_secs_f64(),
        missing.len(),
        journal.acknowledged().count(),
    ));
    assert!(last < seen.new_writes, "two primaries");
    assert!(seen.old_gone < seen.new_writes, "the old server lived when the new one wrote");
    // A fast stop sends the standbys what was acknowledged.
    assert!(missing.is_empty(), "rows lost: {missing:?}");
    heal(old)?;
    says(&rig, old, &["the guardian has stopped PostgreSQL"])?;
    assert!(!rig.primaries().contains(&old.name()), "it must not come back as a primary");
    Ok(())
}

#[test]
fn a_killed_agent_leaves_no_second_primary() -> Result<(), Trouble> {
    fenced("killed", Node::kill_agent, Node::start)
}

#[test]
fn a_frozen_agent_leaves_no_second_primary() -> Result<(), Trouble> {
    let freeze = |node: &Node| node.signal_agent(Signal::SIGSTOP);
    let thaw = |node: &Node| {
        node.signal_agent(Signal::SIGCONT);
        Ok(())
    };
    fenced("frozen", freeze, thaw)
}

/// Ten times killed and started again within the lease: the guardian is handed over, and does nothing.
#[test]
fn a_guardian_is_handed_over() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = Rig::whole(Settings { haproxy: false, ..Settings::default() })?;
    let primary = rig.leader()?;
    let guardian = || -> Vec<i32> {
        stray::of(&primary.data()).iter().filter(|p| p.program == "regent-guardian").map(|p| p.pid).collect()
    };
    let (postmaster, before) = (primary.postmaster(), guardian());
    assert_eq!(before.len(), 1, "one guardian\n{}", rig.tails());
    let writer = Writer::start(primary.server())?;
    for _ in 0..10 {
        primary.kill_agent();
        writer.wait_for(10, PATIENCE)?;
        primary.start()?;
        rig.wait_whole(PATIENCE)?;
    }
    let until = Instant::now() + Duration::from_secs(u64::from(rig.settings().ttl) + 2);
    while Instant::now() < until {
        writer.wait_for(20, PATIENCE)?;
    }
    assert_eq!((primary.postmaster(), guardian()), (postmaster, before), "the same server, the same guardian");
    assert!(
        !primary.agent_log().contains("the guardian has stopped") && !primary.agent_log().contains("has killed"),
        "{}",
        primary.tails()
    );
    let journal = writer.finish();
    assert_eq!(journal.failures().count(), 0, "{:?}", journal.failures().collect::<Vec<_>>());
    loudly(&format!("agent killed and started ten times: {journal}"));
    Ok(())
}
