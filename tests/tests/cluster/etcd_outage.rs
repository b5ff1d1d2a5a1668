//! etcd that goes away and returns (contract: dcs.md section 9).

use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use regent_tests::rig::{Journal, Rig, Settings, Trouble, Writer};

use crate::support::{Clients, PATIENCE, account, loudly, nothing_failed, nothing_lost, routed, timeline, turn};

/// An outage shorter than the lease costs nothing at all.
#[test]
fn a_short_outage_costs_nothing() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = Rig::whole(Settings { ttl: 30, loop_wait: 5, retry_timeout: 5, ..Settings::default() })?;
    let primary = rig.leader()?;
    routed(&rig, primary)?;
    let before = timeline(primary)?;
    let clients = Clients::start(&rig)?;
    clients.wait_for(20)?;

    // Dead first, then mute: it takes connections and answers nothing.
    rig.etcd.stop();
    sleep(Duration::from_secs(5));
    rig.etcd.start()?;
    rig.wait_whole(PATIENCE)?;
    rig.etcd.signal(Signal::SIGSTOP);
    sleep(Duration::from_secs(5));
    rig.etcd.signal(Signal::SIGCONT);
    assert_eq!(rig.wait_whole(PATIENCE)?.name(), primary.name());

    assert_eq!(timeline(primary)?, before);
    routed(&rig, primary)?;
    let journals = clients.finish();
    loudly(&format!("etcd stopped and frozen for less than the ttl: {}", account(&journals)));
    nothing_failed(primary, &journals);
    nothing_lost(&rig, &journals)
}

/// An outage longer than the lease: nobody accepts writes once the lease may have ended; when etcd returns, the cluster is
/// whole again by itself.
#[test]
fn a_long_outage_makes_the_primary_read_only_in_time() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = Rig::whole(Settings::default())?;
    let ttl = Duration::from_secs(u64::from(rig.settings().ttl));
    let primary = rig.leader()?;
    routed(&rig, primary)?;
    let clients = Clients::start(&rig)?;
    // And one past HAProxy: no check may hide a primary that goes on.
    let direct = Writer::start(primary.server())?;
    direct.wait_for(20, PATIENCE)?;
    clients.wait_for(20)?;

    rig.etcd.stop();
    let stopped = Instant::now();
    rig.wait(ttl + Duration::from_secs(30), "nobody is primary", |rig| match rig.primaries().as_slice() {
        [] => Ok(()),
        some => Err(format!("{some:?}")),
    })?;
    // Longer than any lease that could still have been renewed as etcd stopped.
    while stopped.elapsed() < ttl + Duration::from_secs(5) {
        assert!(rig.primaries().is_empty(), "{:?} accepts writes without a lease\n{}", rig.primaries(), rig.tails());
        sleep(Duration::from_millis(200));
    }
    for node in rig.nodes() {
        assert!(node.agent().is_some(), "the agent of {} ended\n{}", node.name(), node.tails());
        assert_eq!(node.get("/primary")?.status, 503, "{}", node.name());
        assert_eq!(node.get("/liveness")?.status, 200, "{}", node.name());
    }

    rig.etcd.start()?;
    let next = rig.wait_whole(PATIENCE)?;
    routed(&rig, next)?;
    clients.wait_for(20)?;
    let (direct, journals) = (direct.finish(), clients.finish());
    let all = journals.iter().chain([&direct]).flat_map(Journal::acknowledged);
    let late = all.filter(|(_, at)| *at > stopped).map(|(_, at)| at.duration_since(stopped));
    let last = late.filter(|after| *after < ttl + Duration::from_secs(5)).max().unwrap_or_default();
    assert!(last <= ttl, "a write was acknowledged {last:?} after etcd stopped; the lease was {ttl:?}");
    loudly(&format!(
        "etcd gone: last write {:.1} s after it stopped, ttl {} s; {}; directly {direct}",
        last.as_secs_f64(),
        ttl.as_secs(),
        account(&journals)
    ));
    nothing_lost(&rig, &journals)?;
    nothing_lost(&rig, &[direct])
}

/// One of three etcd members dies: nobody notices.
#[test]
fn the_loss_of_one_etcd_member_costs_nothing() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = Rig::whole(Settings { etcd: 3, ttl: 20, loop_wait: 5, retry_timeout: 5, ..Settings::default() })?;
    let primary = rig.leader()?;
    routed(&rig, primary)?;
    let clients = Clients::start(&rig)?;
    for member in 0..3 {
        rig.etcd.signal_one(member, Signal::SIGSTOP);
        let until = Instant::now() + Duration::from_secs(8);
        while Instant::now() < until {
            clients.wait_for(20)?;
        }
        rig.etcd.signal_one(member, Signal::SIGCONT);
        assert_eq!(rig.wait_whole(PATIENCE)?.name(), primary.name());
    }
    let journals = clients.finish();
    nothing_failed(primary, &journals);
    nothing_lost(&rig, &journals)
}
