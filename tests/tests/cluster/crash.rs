//! Agents and servers that die.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use regent_tests::rig::writer::rows_on;
use regent_tests::rig::{Rig, Settings, Trouble};

use crate::support::{
    Clients, PATIENCE, account, caught_up, loudly, nothing_failed, nothing_lost, routed, timeline, turn,
};

/// kill -9 of the primary's agent and server: another takes over after the lease, with every row that it had been sent;
/// the dead one returns as a standby.
#[test]
fn a_dead_primary_is_replaced_and_returns() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = Rig::whole(Settings::default())?;
    let old = rig.leader()?;
    routed(&rig, old)?;
    let clients = Clients::start(&rig)?;
    clients.wait_for(50)?;
    // With the clients quiet and the standbys caught up, every acknowledged row must survive.
    clients.pause(true);
    caught_up(&rig, old)?;
    old.kill();
    clients.pause(false);
    let new = rig.wait_primary(PATIENCE)?;
    assert_ne!(new.name(), old.name());
    clients.wait_for(50)?;
    routed(&rig, new)?;

    old.start()?;
    let whole = rig.wait_whole(PATIENCE)?;
    assert_eq!(whole.name(), new.name(), "the returning node must not disturb");
    let journals = clients.finish();
    loudly(&format!("primary killed (ttl {} s): {}", rig.settings().ttl, account(&journals)));
    nothing_lost(&rig, &journals)
}

/// The same in the middle of writing. What a standby had been sent is kept; the dead one returns as a standby, rewound if it
/// must be.
#[test]
fn a_primary_that_dies_writing_loses_no_more_than_it_had_not_sent() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = Rig::whole(Settings::default())?;
    let old = rig.leader()?;
    routed(&rig, old)?;
    let clients = Clients::start(&rig)?;
    clients.wait_for(100)?;
    let had: Vec<_> = rig.others(old).map(|node| rows_on(node.server())).collect::<Result<_, _>>()?;
    old.kill();
    let new = rig.wait_primary(PATIENCE)?;
    clients.wait_for(50)?;
    routed(&rig, new)?;
    let has = rows_on(new.server())?;
    for rows in &had {
        assert!(rows.is_subset(&has), "rows that a standby had are lost");
    }

    old.start()?;
    assert_eq!(rig.wait_whole(PATIENCE)?.name(), new.name());
    let journals = clients.finish();
    loudly(&format!("primary killed while writing: {}", account(&journals)));
    for journal in &journals {
        let missing = journal.missing_on(new.server())?;
        loudly(&format!("{} of them were not sent in time", missing.len()));
        // Not sent in time: a client's last ones before the kill, and no other.
        let first_kept_after = journal
            .acknowledged()
            .map(|(row, _)| row)
            .find(|row| missing.iter().any(|lost| row > lost) && !missing.contains(row));
        if let (Some(first_lost), Some(kept)) = (missing.first(), first_kept_after) {
            let unsent = journal.acknowledged().filter(|(row, _)| row >= first_lost && *row < kept).count();
            assert_eq!(unsent, missing.len(), "lost rows in the midst of kept ones: {missing:?}");
        }
    }
    Ok(())
}

/// kill -9 of the agent alone, started again within the TTL: the same postmaster, the same leader, not one failed write.
#[test]
fn a_restarted_agent_disturbs_nobody() -> Result<(), Trouble> {
    let _turn = turn();
    // Room for a busy machine to start the agent again; HAProxy is as patient with the agent as its lease.
    let ttl = 20;
    let settings = Settings { ttl, loop_wait: 5, retry_timeout: 5, haproxy_fall: ttl, ..Settings::default() };
    let rig = Rig::whole(settings)?;
    for node in rig.nodes() {
        let primary = rig.leader()?;
        routed(&rig, primary)?;
        let (postmaster, before) = (node.postmaster(), timeline(primary)?);
        let clients = Clients::start(&rig)?;
        clients.wait_for(20)?;
        node.kill_agent();
        // Long enough to matter, shorter than the ttl.
        clients.wait_for(20)?;
        node.start()?;
        rig.wait_whole(PATIENCE)?;
        // Beyond the end of the lease that the dead agent held.
        let until = Instant::now() + Duration::from_secs(u64::from(ttl) + 2);
        while Instant::now() < until {
            clients.wait_for(20)?;
        }
        assert_eq!(rig.leader()?.name(), primary.name());
        assert_eq!(node.postmaster(), postmaster, "PostgreSQL of {} was restarted", node.name());
        assert_eq!(timeline(primary)?, before);
        let journals = clients.finish();
        loudly(&format!("agent of {} killed and started within the ttl: {}", node.name(), account(&journals)));
        nothing_failed(node, &journals);
        nothing_lost(&rig, &journals)?;
    }
    Ok(())
}

/// kill -9 of the postmaster alone: the agent notices at once and starts it again; the lock stays.
#[test]
fn a_dead_postmaster_is_started_again_in_place() -> Result<(), Trouble> {
    let _turn = turn();
    // A long loop: noticing within seconds cannot be the loop's doing.
    let rig = Rig::whole(Settings { ttl: 60, loop_wait: 30, retry_timeout: 10, ..Settings::default() })?;
    let primary = rig.leader()?;
    routed(&rig, primary)?;
    let before = timeline(primary)?;
    let clients = Clients::start(&rig)?;
    clients.wait_for(50)?;
    let dead = primary.kill_postmaster();
    let killed = Instant::now();
    rig.wait(PATIENCE, "PostgreSQL is back", |_| match primary.in_recovery() {
        Ok(false) if primary.postmaster() != dead => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let took = killed.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}: noticed by the loop and not by the exit\n{}", primary.tails());
    clients.wait_for(50)?;
    let whole = rig.wait_whole(PATIENCE)?;
    assert_eq!(whole.name(), primary.name());
    assert_eq!(timeline(primary)?, before, "a restart in place needs no new timeline");
    routed(&rig, primary)?;
    let journals = clients.finish();
    loudly(&format!("postmaster killed: back after {:.1} s; {}", took.as_secs_f64(), account(&journals)));
    nothing_lost(&rig, &journals)
}

/// A standby's death is nobody else's business, and it returns by itself.
#[test]
fn a_dead_standby_returns_and_disturbs_nobody() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = Rig::whole(Settings::default())?;
    let primary = rig.leader()?;
    routed(&rig, primary)?;
    let clients = Clients::start(&rig)?;
    let standby = rig.others(primary).next().ok_or_else(|| Trouble::new("no standby"))?;
    standby.kill_postmaster();
    rig.wait_whole(PATIENCE)?;
    standby.kill();
    clients.wait_for(50)?;
    standby.start()?;
    assert_eq!(rig.wait_whole(PATIENCE)?.name(), primary.name());
    let journals = clients.finish();
    nothing_failed(primary, &journals);
    nothing_lost(&rig, &journals)
}

/// SIGTERM: the primary hands over, its agent exits with 0, and the next primary does not wait for a lease to end.
#[test]
fn a_stopped_primary_hands_over() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = Rig::whole(Settings { ttl: 60, loop_wait: 10, retry_timeout: 10, ..Settings::default() })?;
    let old = rig.leader()?;
    routed(&rig, old)?;
    let clients = Clients::start(&rig)?;
    clients.wait_for(50)?;
    old.signal_agent(Signal::SIGTERM);
    let status = old.agent_ended(PATIENCE)?;
    assert_eq!(status.code(), Some(0), "{status}\n{}", old.tails());
    assert_eq!(old.postmaster(), None, "PostgreSQL must be stopped with its agent");
    let handed = Instant::now();
    let new = rig.wait_primary(PATIENCE)?;
    let took = handed.elapsed();
    assert_ne!(new.name(), old.name());
    assert!(took < Duration::from_secs(30), "{took:?}: it waited for the lease\n{}", rig.tails());
    clients.wait_for(50)?;
    routed(&rig, new)?;

    old.start()?;
    assert_eq!(rig.wait_whole(PATIENCE)?.name(), new.name());
    let journals = clients.finish();
    loudly(&format!(
        "primary stopped: next primary {:.1} s after the agent's exit; {}",
        took.as_secs_f64(),
        account(&journals)
    ));
    nothing_lost(&rig, &journals)
}
