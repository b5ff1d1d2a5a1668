//! A campaign, drawn from one seed: pure, so that a seed names a campaign.

use std::collections::BTreeSet;
use std::time::Duration;

use regent_tests::rng::Rng;
use serde::{Deserialize, Serialize};

use crate::faults::{Company, Fault, Manner, Needs, Strike, Whom};

/// What the cluster of a campaign has.
#[derive(Clone, Copy, Debug)]
pub struct Means {
    /// Nodes have namespaces, and no proxies.
    pub namespaces: bool,
    /// Members of etcd.
    pub etcd: usize,
    /// Nodes.
    pub nodes: usize,
    /// Regent's agents, which have a guardian.
    pub guardian: bool,
    /// Commits wait for standbys.
    pub synchronous: bool,
    /// The lease.
    pub ttl: Duration,
}

impl Means {
    fn has(self, needs: Needs) -> bool {
        match needs {
            Needs::Nothing => true,
            Needs::Proxies => !self.namespaces,
            Needs::Namespaces => self.namespaces,
            Needs::ThreeEtcd => self.etcd >= 3,
            Needs::OneEtcd => self.etcd == 1,
            Needs::Guardian => self.guardian,
            Needs::Asynchronous => !self.synchronous,
        }
    }
}

/// Faults that come together, after which the cluster must heal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// In the order of their beginnings.
    pub strikes: Vec<Strike>,
}

impl Round {
    /// Whether leadership may change.
    #[must_use]
    pub fn may_cost_leadership(&self) -> bool {
        self.strikes.iter().any(Strike::may_cost_leadership)
    }

    /// In words.
    #[must_use]
    pub fn words(&self) -> String {
        self.strikes.iter().map(Strike::words).collect::<Vec<_>>().join("; ")
    }
}

/// Draws rounds for ever; every kind comes once before one comes again.
#[derive(Clone, Debug)]
pub struct Plan {
    rng: Rng,
    means: Means,
    kinds: Vec<Fault>,
    deck: Vec<Fault>,
}

impl Plan {
    /// From a seed; `only`: these kinds, or all that the cluster has the means for.
    #[must_use]
    pub fn new(seed: u64, means: Means, only: &[Fault]) -> Plan {
        let wanted = |fault: &Fault| (only.is_empty() || only.contains(fault)) && means.has(fault.needs());
        let kinds = Fault::all().iter().copied().filter(wanted).collect();
        Plan { rng: Rng::new(seed), means, kinds, deck: Vec::new() }
    }

    /// How many kinds there are.
    #[must_use]
    pub fn kinds(&self) -> usize {
        self.kinds.len()
    }

    fn draw(&mut self) -> Option<Fault> {
        if self.deck.is_empty() {
            self.deck.clone_from(&self.kinds);
        }
        let index = usize::try_from(self.rng.below(self.deck.len() as u64)).unwrap_or(0);
        (index < self.deck.len()).then(|| self.deck.swap_remove(index))
    }

    fn strike(&mut self, fault: Fault) -> Strike {
        let ttl = self.means.ttl;
        let (least, most) = if fault == Fault::AgentFrozenBriefly {
            (ttl / 10, ttl / 5)
        } else if matches!(fault, Fault::AgentRestarted | Fault::AgentAndGuardianRestarted) {
            (Duration::ZERO, Duration::from_millis(300))
        } else if fault.is_over_at_once() {
            // The time until the round ends.
            (Duration::from_millis(500), ttl / 2)
        } else {
            // Some end before the lease does, some after it.
            (Duration::from_millis(500), ttl * 2)
        };
        let manner = if fault.is_of_links() && !self.means.namespaces {
            *self.rng.pick(&Manner::OF_LINKS)
        } else if fault.is_an_order() {
            *self.rng.pick(&Manner::OF_ORDERS)
        } else {
            Manner::Plain
        };
        let standby = usize::try_from(self.rng.below(self.means.nodes.saturating_sub(1).max(1) as u64)).unwrap_or(0);
        // Who is cloned is a standby.
        let on_standby = matches!(fault, Fault::CloneKilled | Fault::Reinitialize);
        let whom = if on_standby || self.rng.one_in(3) { Whom::Standby(standby) } else { Whom::Primary };
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(0);
        let begins_ms = millis(self.rng.between(Duration::ZERO, Duration::from_millis(1500)));
        Strike { fault, manner, whom, begins_ms, lasts_ms: millis(self.rng.between(least, most)) }
    }
}

impl Iterator for Plan {
    type Item = Round;

    fn next(&mut self) -> Option<Round> {
        // One fault in half of the rounds, two to four in the others.
        let size = match self.rng.below(20) {
            0..=8 => 1,
            9..=14 => 2,
            15..=17 => 3,
            _ => 4,
        };
        let mut faults = vec![self.draw()?];
        while faults.len() < size && !self.deck.is_empty() {
            let next = self.draw()?;
            if fits(&faults, next) {
                faults.push(next);
            } else {
                // Its turn comes in the next round.
                self.deck.push(next);
                break;
            }
        }
        let mut strikes: Vec<Strike> = faults.into_iter().map(|fault| self.strike(fault)).collect();
        strikes.sort_by_key(|strike| strike.begins_ms);
        Some(Round { strikes })
    }
}

/// Whether a fault may come together with these.
fn fits(faults: &[Fault], next: Fault) -> bool {
    let company: BTreeSet<u8> = faults.iter().chain([&next]).map(|fault| number(fault.company())).collect();
    let together = |a, b| company.contains(&number(a)) && company.contains(&number(b));
    !company.contains(&number(Company::Alone)) && !together(Company::Stillness, Company::NotBesideStillness)
}

fn number(company: Company) -> u8 {
    match company {
        Company::Any => 0,
        Company::NotBesideStillness => 1,
        Company::Stillness => 2,
        Company::Alone => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEANS: Means =
        Means { namespaces: false, etcd: 3, nodes: 3, guardian: true, synchronous: true, ttl: Duration::from_secs(5) };

    #[test]
    fn a_seed_names_a_campaign() {
        let rounds = |seed| Plan::new(seed, MEANS, &[]).take(50).collect::<Vec<_>>();
        assert_eq!(rounds(7), rounds(7));
        assert_ne!(rounds(7), rounds(8));
    }

    #[test]
    fn every_kind_comes_before_one_comes_again() {
        for seed in 0..50 {
            let mut plan = Plan::new(seed, MEANS, &[]);
            let kinds = plan.kinds();
            assert!(kinds >= 40, "{kinds}");
            let mut seen = Vec::new();
            while seen.len() < kinds {
                seen.extend(plan.next().into_iter().flat_map(|round| round.strikes).map(|strike| strike.fault));
            }
            let first: BTreeSet<Fault> = seen.iter().take(kinds).copied().collect();
            assert_eq!(first.len(), kinds, "seed {seed}");
        }
    }

    #[test]
    fn what_is_documented_as_a_limit_is_not_demanded() {
        for round in (0..50).flat_map(|seed| Plan::new(seed, MEANS, &[]).take(60)) {
            let has = |company| round.strikes.iter().filter(|s| s.fault.company() == company).count();
            assert!(has(Company::Alone) == 0 || round.strikes.len() == 1, "{}", round.words());
            assert!(has(Company::Stillness) == 0 || has(Company::NotBesideStillness) == 0, "{}", round.words());
        }
    }

    #[test]
    fn only_what_there_are_means_for() {
        let alone = Means { etcd: 1, guardian: false, namespaces: true, ..MEANS };
        for strike in (0..20).flat_map(|seed| Plan::new(seed, alone, &[]).take(60)).flat_map(|round| round.strikes) {
            let needs = strike.fault.needs();
            assert!(!matches!(needs, Needs::Guardian | Needs::ThreeEtcd | Needs::Proxies), "{:?}", strike.fault);
        }
        let only: BTreeSet<Fault> =
            Plan::new(1, MEANS, &[Fault::Pause]).take(5).flat_map(|r| r.strikes).map(|s| s.fault).collect();
        assert_eq!(only, BTreeSet::from([Fault::Pause]));
    }
}
