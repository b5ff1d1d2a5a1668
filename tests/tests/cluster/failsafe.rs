//! Failsafe mode on real processes (contract: ha-rules section 9).

use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use regent_tests::rig::{Rig, Settings, Trouble, Writer};

use crate::support::{Clients, PATIENCE, account, loudly, nothing_failed, nothing_lost, routed, timeline, turn};

fn settings() -> Settings {
    Settings { failsafe: true, ..Settings::default() }
}

/// The `failsafe` key names all three members.
fn named(rig: &Rig) -> Result<(), Trouble> {
    rig.wait(PATIENCE, "all members are in the failsafe key", |rig| {
        let answer = rig.nodes()[0].get("/failsafe").map_err(|error| error.to_string())?;
        let all = answer.status == 200 && rig.nodes().iter().all(|node| answer.body.contains(node.name()));
        if all { Ok(()) } else { Err(answer.body) }
    })
}

/// etcd is mute, then dead, each time for more than two leases, and every member agrees: no write fails.
#[test]
fn a_long_outage_costs_nothing_in_failsafe_mode() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = Rig::whole(settings())?;
    let long = Duration::from_secs(u64::from(rig.settings().ttl) * 2 + 3);
    let primary = rig.leader()?;
    named(&rig)?;
    routed(&rig, primary)?;
    let before = timeline(primary)?;
    let clients = Clients::start(&rig)?;
    clients.wait_for(20)?;

    rig.etcd.signal(Signal::SIGSTOP);
    sleep(long);
    for node in rig.nodes() {
        assert!(node.get("/patroni")?.body.contains("\"failsafe_mode_is_active\": true"), "{}", node.tails());
    }
    rig.etcd.signal(Signal::SIGCONT);
    assert_eq!(rig.wait_whole(PATIENCE)?.name(), primary.name());
    rig.etcd.stop();
    sleep(long);
    rig.etcd.start()?;
    assert_eq!(rig.wait_whole(PATIENCE)?.name(), primary.name());

    assert_eq!(timeline(primary)?, before);
    let journals = clients.finish();
    nothing_failed(primary, &journals);
    loudly(&format!("failsafe mode, etcd away twice for {long:?}: {}", account(&journals)));
    nothing_lost(&rig, &journals)
}

/// One member cannot agree: the primary stops before its lease ends, as without failsafe mode.
#[test]
fn one_silent_member_ends_failsafe_mode() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = Rig::whole(settings())?;
    let ttl = Duration::from_secs(u64::from(rig.settings().ttl));
    let primary = rig.leader()?;
    named(&rig)?;
    let standby = rig.nodes().iter().find(|node| node.name() != primary.name()).unwrap();
    let writer = Writer::start(primary.server())?;
    writer.wait_for(20, PATIENCE)?;

    standby.kill_agent();
    rig.etcd.stop();
    let stopped = Instant::now();
    rig.wait(ttl + Duration::from_secs(30), "nobody is primary", |rig| match rig.primaries().as_slice() {
        [] => Ok(()),
        some => Err(format!("{some:?}")),
    })?;
    standby.start()?;
    rig.etcd.start()?;
    let next = rig.wait_whole(PATIENCE)?;
    assert_eq!(next.name(), primary.name());
    let journal = writer.finish();
    let before_it_returned = |after: &Duration| *after < ttl + Duration::from_secs(2);
    let acknowledged = journal.acknowledged().filter(|(_, at)| *at > stopped).map(|(_, at)| at.duration_since(stopped));
    let failed = journal.failures().count();
    assert!(
        failed > 0 && acknowledged.filter(before_it_returned).count() > 0,
        "it wrote, and then it stopped: {journal}"
    );
    nothing_lost(&rig, &[journal])
}
