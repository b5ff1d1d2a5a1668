//! No acknowledged row is lost, whatever is killed: primary, standby, agent, guardian, etcd, in an order drawn from a seed.
//! `REGENT_LOSS_MINUTES=20` makes a campaign of it (for each mode), and `REGENT_LOSS_SEED` draws another order.
//!
//! What is killed keeps its disk. A row whose answer did not come may be there or not. Before most faults a standby is listed in
//! `sync`, so that they meet a cluster that has something to lose; one in four comes at once, whatever the state. While nobody
//! is listed commits are acknowledged by the primary alone, and nobody else may be promoted: that loses none either.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use regent_tests::rig::writer::make_table;
use regent_tests::rig::{Node, Rig, Settings, Trouble, Way, Writer, stray};
use regent_tests::rng::Rng;
use serde_json::{Value, json};

use crate::support::{PATIENCE, configure, loudly, number, turn};
use crate::synchronous::listed;

/// What is killed (SIGKILL); all but a server is started again later, after up to one and a half leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// Agent, guardian and server.
    Node(Role),
    /// The postmaster: its agent starts it again.
    Server(Role),
    /// The agent: at the end of its lease its guardian stops the server.
    Agent(Role),
    /// The server of the primary is left alone.
    AgentAndGuardian,
    Etcd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Primary,
    Standby,
}

const FAULTS: [Fault; 8] = [
    Fault::Node(Role::Primary),
    Fault::Server(Role::Primary),
    Fault::Agent(Role::Primary),
    Fault::AgentAndGuardian,
    Fault::Node(Role::Standby),
    Fault::Server(Role::Standby),
    Fault::Agent(Role::Standby),
    Fault::Etcd,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    On,
    Strict,
    Quorum,
}

impl Mode {
    fn config(self) -> [(&'static str, Value); 2] {
        let (mode, strict) = match self {
            Mode::On => (json!(true), false),
            Mode::Strict => (json!(true), true),
            Mode::Quorum => (json!("quorum"), false),
        };
        [("synchronous_mode", mode), ("synchronous_mode_strict", json!(strict))]
    }

    /// How many standbys are listed in a cluster of three.
    fn listed(self) -> usize {
        match self {
            Mode::On | Mode::Strict => 1,
            Mode::Quorum => 2,
        }
    }
}

/// What happened.
#[derive(Default)]
struct Story {
    faults: BTreeMap<Fault, usize>,
    leader: String,
    failovers: usize,
}

impl Story {
    /// Every row that was acknowledged before is on the primary of now.
    fn check(&mut self, rig: &Rig, writer: &Writer) -> Result<(), Trouble> {
        let before = writer.so_far(Clone::clone);
        let (leader, missing) = rig.wait(PATIENCE, "the rows of a primary are read", |rig| {
            let primary = rig.one_primary()?;
            let missing = before.missing_on(primary.server()).map_err(|e| e.to_string())?;
            // It may have been another one when it was asked.
            if rig.one_primary()?.name() == primary.name() {
                Ok((primary.name(), missing))
            } else {
                Err("it changed".to_owned())
            }
        })?;
        assert!(missing.is_empty(), "LOST on {leader} after {:?}: {missing:?}\n{}", self.faults, rig.tails());
        self.failovers += usize::from(self.leader != leader);
        self.leader = leader.to_owned();
        Ok(())
    }
}

/// Kills, waits, and starts again.
fn strike(rig: &Rig, fault: Fault, mode: Mode, rng: &mut Rng) -> Result<(), Trouble> {
    let primary = rig.wait_primary(PATIENCE)?;
    let standbys: Vec<&Node> = rig.others(primary).collect();
    let standby = *rng.pick(&standbys);
    let whose = |role| match role {
        Role::Primary => primary,
        Role::Standby => standby,
    };
    let lease = Duration::from_secs(rig.settings().ttl.into());
    let away = rng.between(Duration::ZERO, lease * 3 / 2);
    match fault {
        Fault::Node(role) => {
            whose(role).kill();
            sleep(away);
            whose(role).start()
        }
        Fault::Server(role) => {
            whose(role).kill_postmaster();
            Ok(())
        }
        Fault::Agent(role) => {
            whose(role).kill_agent();
            sleep(away);
            whose(role).start()
        }
        Fault::AgentAndGuardian => {
            let them: Vec<_> =
                stray::of(primary.dir()).into_iter().filter(|p| p.program.starts_with("regent")).collect();
            // Stopped first: an agent would start another guardian.
            stray::signal(&them, Signal::SIGSTOP);
            stray::signal(&them, Signal::SIGKILL);
            primary.kill_agent();
            // Nobody stops this server at the end of the lease (docs/safety.md, case 1). Of one that was promoted it gets no more
            // acknowledgement; but the others of a quorum give theirs until they follow the new leader.
            sleep(if mode == Mode::Quorum { away.min(lease / 3) } else { away });
            primary.start()
        }
        Fault::Etcd => {
            rig.etcd.stop();
            sleep(away);
            rig.etcd.start()
        }
    }
}

fn kills_lose_nothing(mode: Mode) -> Result<(), Trouble> {
    let _turn = turn();
    let [minutes, seed] =
        [("REGENT_LOSS_MINUTES", 0), ("REGENT_LOSS_SEED", 10)].map(|(name, default)| number(name, default));
    let mut rng = Rng::new(seed as u64);
    let rig = Rig::whole(Settings { ttl: 6, loop_wait: 2, retry_timeout: 2, haproxy: false, ..Settings::default() })?;
    configure(&rig, &mode.config())?;
    // Whose rewind is broken off by the next fault needs a clone, and leave for it.
    configure(&rig, &[("postgresql.remove_data_directory_on_rewind_failure", true.into())])?;
    listed(&rig, mode.listed())?;
    let mut story = Story { leader: rig.leader()?.name().to_owned(), ..Story::default() };
    make_table(rig.leader()?.server())?;
    let servers: Vec<_> = rig.nodes().iter().map(Node::server).collect();
    let writer = Writer::on(Way::to_first_primary(&servers))?;
    writer.wait_for(20, PATIENCE)?;
    let began = Instant::now();
    let until = Duration::from_secs(60 * minutes as u64);
    let mut left = Vec::new();
    let mut struck = 0;
    while struck < 4 || began.elapsed() < until {
        if left.is_empty() {
            left = FAULTS.to_vec();
        }
        let fault = left.swap_remove(usize::try_from(rng.below(left.len() as u64)).unwrap_or(0));
        if !rng.one_in(4) {
            listed(&rig, mode.listed())?;
            writer.wait_for(5, PATIENCE)?;
        }
        sleep(rng.between(Duration::ZERO, Duration::from_secs(1)));
        *story.faults.entry(fault).or_default() += 1;
        struck += 1;
        strike(&rig, fault, mode, &mut rng).map_err(|e| Trouble::new(format!("{fault:?} (seed {seed}): {e}")))?;
        story.check(&rig, &writer)?;
    }
    rig.wait_whole(PATIENCE)?;
    writer.wait_for(20, PATIENCE)?;
    story.check(&rig, &writer)?;
    let journal = writer.finish();
    let missing = journal.missing_on(rig.wait_whole(PATIENCE)?.server())?;
    let Story { faults, failovers, .. } = &story;
    loudly(&format!(
        "zero loss, {mode:?}, seed {seed}: {struck} faults in {:.0} s, {failovers} changes of leader, {journal}, {} lost; {faults:?}",
        began.elapsed().as_secs_f64(),
        missing.len(),
    ));
    assert_eq!(missing, Vec::<i64>::new(), "acknowledged rows are lost");
    Ok(())
}

#[test]
fn synchronous_mode_under_fire() -> Result<(), Trouble> {
    kills_lose_nothing(Mode::On)
}

#[test]
fn strict_synchronous_mode_under_fire() -> Result<(), Trouble> {
    kills_lose_nothing(Mode::Strict)
}

#[test]
fn quorum_mode_under_fire() -> Result<(), Trouble> {
    kills_lose_nothing(Mode::Quorum)
}
