//! Testing the tester: agents with known bugs, each of which a campaign must find.
//!
//! The bugs are judgements of the simulation's list ([`regent_tests::planted`]), in real agents. A campaign of faults that can bring a
//! bug to light is run with ever new seeds until it is found.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use regent_tests::rig::{Settings, Trouble};

use crate::check::{Breach, Finding};
use crate::cluster::{Mode, Shape};
use crate::faults::Fault;
use crate::run::{Campaign, run};

/// A bug, and what must find it.
#[derive(Clone, Copy, Debug)]
pub struct Planted {
    /// Its name in the simulation's list.
    pub name: &'static str,
    /// Replication.
    pub mode: Mode,
    /// Faults that can bring it to light.
    pub faults: &'static [Fault],
    /// What is found, any of these.
    pub breaches: &'static [Breach],
    /// In so many campaigns of [`STRIKES`] faults it must be found.
    pub campaigns: u64,
}

/// Faults in one campaign.
pub const STRIKES: usize = 6;

/// All that are planted.
pub const PLANTED: &[Planted] = &[
    Planted {
        name: "no guardian",
        mode: Mode::Async,
        faults: &[Fault::AgentFrozen, Fault::AgentKilled],
        breaches: &[Breach::BothWriting, Breach::LostBeyondBound],
        campaigns: 3,
    },
    Planted {
        name: "no stop before the lease ends",
        mode: Mode::Async,
        faults: &[Fault::EtcdCut],
        breaches: &[Breach::BothWriting],
        campaigns: 6,
    },
    Planted {
        name: "a primary beside another leader goes on",
        mode: Mode::Async,
        faults: &[Fault::EtcdCut, Fault::AgentFrozen],
        breaches: &[Breach::BothWriting],
        campaigns: 3,
    },
    Planted {
        name: "the guardian is disarmed before the server is down",
        mode: Mode::Async,
        faults: &[Fault::EtcdCut, Fault::AgentFrozen],
        breaches: &[Breach::BothWriting],
        campaigns: 6,
    },
    Planted {
        name: "any error of etcd is a lost lease",
        mode: Mode::Async,
        faults: &[Fault::EtcdLeaderMoved, Fault::EtcdMemberCut, Fault::EtcdMemberKilled, Fault::EtcdCut],
        breaches: &[Breach::NeedlessFailover],
        campaigns: 6,
    },
    Planted {
        name: "nobody runs for leader",
        mode: Mode::Async,
        faults: &[Fault::PowerCut, Fault::AgentKilled],
        breaches: &[Breach::NotHealed],
        campaigns: 3,
    },
    Planted {
        name: "a standby does not follow the new leader",
        mode: Mode::Async,
        faults: &[Fault::Switchover, Fault::PowerCut],
        breaches: &[Breach::NotHealed],
        campaigns: 3,
    },
    Planted {
        name: "a diverged standby is left running",
        mode: Mode::Async,
        faults: &[Fault::NodeFrozen, Fault::PowerCut, Fault::ReplicationCut],
        breaches: &[Breach::NotHealed],
        campaigns: 10,
    },
    Planted {
        name: "whoever is up may lead, listed or not",
        mode: Mode::Sync,
        faults: &[Fault::PowerCut, Fault::ReplicationCut, Fault::WalSenderFrozen],
        breaches: &[Breach::Lost],
        campaigns: 10,
    },
    Planted {
        name: "no votes are counted",
        mode: Mode::Quorum,
        faults: &[Fault::PowerCut, Fault::ReplicationCut, Fault::WalSenderFrozen],
        breaches: &[Breach::Lost],
        campaigns: 10,
    },
    Planted {
        name: "a standby is listed before the server waits for it",
        mode: Mode::Sync,
        faults: &[Fault::PowerCut, Fault::ReplicationCut, Fault::Reinitialize],
        breaches: &[Breach::Lost],
        campaigns: 20,
    },
];

/// How long it took to find one.
#[derive(Clone, Debug)]
pub struct Found {
    /// Campaigns, the one that found it included.
    pub campaigns: u64,
    /// From the first campaign's start to the finding's end of round.
    pub took: Duration,
    /// What was found; `None`: nothing, in all campaigns.
    pub finding: Option<Finding>,
}

/// Runs campaigns on agents with the bug until it is found.
///
/// # Errors
/// A campaign cannot be run.
pub fn hunt(bug: &Planted, agent: &Path, seed: u64, out: &Path, tell: &dyn Fn(&str)) -> Result<Found, Trouble> {
    let began = Instant::now();
    for number in 1..=bug.campaigns {
        let settings = Settings { etcd: 3, ttl: 5, loop_wait: 1, retry_timeout: 2, ..Settings::default() };
        let campaign = Campaign {
            shape: Shape { settings, mode: bug.mode, agent: Some(agent.to_path_buf()), planted: Some(bug.name) },
            seed: seed + number,
            only: bug.faults.to_vec(),
            faults: STRIKES,
            time: Duration::from_secs(600),
            fail_fast: true,
            out: PathBuf::from(out),
        };
        let report = run(&campaign, tell)?;
        let finding = report.findings.into_iter().find(|finding| bug.breaches.contains(&finding.breach));
        if finding.is_some() {
            return Ok(Found { campaigns: number, took: began.elapsed(), finding });
        }
    }
    Ok(Found { campaigns: bug.campaigns, took: began.elapsed(), finding: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_one_is_in_the_simulations_list() {
        for bug in PLANTED {
            assert!(regent_tests::planted::BUGS.iter().any(|known| known.name == bug.name), "{}", bug.name);
        }
    }
}
