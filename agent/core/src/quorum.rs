//! Quorum mode (ha-rules section 15): in which order `/sync` and `synchronous_standby_names` change, as a pure function.
//!
//! A commit is acknowledged by any `n` of the standbys `S` that the server waits for. A candidate needs `q` votes among the
//! voters `V` and the leader `L` of `/sync`. Both records change one after the other, and the agent may die between any two:
//! so after every single step any acknowledging set and any electing set must have a member in common ([`Q0`]). Therefore
//! raise first, lower last.
//!
//! [`Q0`]: State::overlaps

use std::collections::BTreeSet;

/// Names of members, in lower case: PostgreSQL compares them so.
pub type Names = BTreeSet<String>;

/// Both records, and what is known of the standbys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// This member, the primary.
    pub me: String,
    /// `leader` of `/sync`.
    pub leader: String,
    /// `quorum` of `/sync`: votes that a candidate needs.
    pub quorum: usize,
    /// `sync_standby` of `/sync`.
    pub voters: Names,
    /// How many standbys must acknowledge a commit.
    pub numsync: usize,
    /// Those that the server waits for.
    pub sync: Names,
    /// How many of the active ones are known to acknowledge.
    pub confirmed: usize,
    /// Standbys that stream and may be waited for.
    pub active: Names,
    /// `synchronous_node_count`.
    pub wanted: usize,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write `/sync`, with this member as its leader.
    Publish {
        /// `quorum`
        quorum: usize,
        /// `sync_standby`
        voters: Names,
    },
    /// `ANY numsync (sync)`
    WaitFor {
        /// How many.
        numsync: usize,
        /// Of whom.
        sync: Names,
    },
    /// Look again, when the server has waited for the new ones for a while.
    Restart,
}

/// The round ends here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// It is complete as far as it can be.
    Done,
    /// A step that must not be: a bug, or a state that nobody made. Nothing is done.
    Broken,
}

type Next = Result<(), Stop>;

/// The steps from this state to the one that is wanted, in order. Whoever carries out only some of them, and asks again from
/// what is then seen, gets there too.
#[must_use]
pub fn steps(state: &State) -> Vec<Step> {
    let mut round = Round { at: state.clone(), steps: Vec::new() };
    // Where a round broke off, what came before is sound: each step was checked by itself.
    let _: Next = round.run();
    round.steps
}

impl State {
    /// Any set that acknowledged a commit meets any set that can elect (Q0).
    #[must_use]
    pub fn overlaps(&self) -> bool {
        let elect = with(&self.voters, &self.leader);
        let acknowledge = with(&self.sync, &self.me);
        let nested = elect.is_subset(&acknowledge) || acknowledge.is_subset(&elect);
        let all = elect.union(&acknowledge).count();
        self.voters.is_empty() || (nested && all <= self.quorum + self.numsync + 1)
    }
}

fn with(names: &Names, one: &str) -> Names {
    let mut names = names.clone();
    names.insert(one.to_owned());
    names
}

fn plus(a: &Names, b: &Names) -> Names {
    a | b
}

fn minus(a: &Names, b: &Names) -> Names {
    a - b
}

fn both(a: &Names, b: &Names) -> Names {
    a & b
}

struct Round {
    at: State,
    steps: Vec<Step>,
}

impl Round {
    /// `Q(q, V)` of the contract.
    fn publish(&mut self, quorum: Option<usize>, voters: Names, adjust: bool) -> Next {
        let quorum = quorum.filter(|quorum| *quorum == 0 || *quorum < voters.len()).ok_or(Stop::Broken)?;
        let at = &self.at;
        let (quorum, voters) = if at.confirmed == 0 && at.voters.is_empty() {
            (0, Names::new())
        } else if adjust {
            (quorum + at.numsync.saturating_sub(at.confirmed), voters)
        } else {
            (quorum, voters)
        };
        if (quorum, &voters) == (at.quorum, &at.voters) {
            if voters.is_empty() {
                self.steps.push(Step::Restart);
                return Err(Stop::Done);
            }
            return Ok(());
        }
        self.store_publication(quorum, voters)
    }

    /// `Q(q, V)` with another leader.
    fn publish_as(&mut self, quorum: Option<usize>, voters: Names) -> Next {
        let quorum = quorum.filter(|quorum| *quorum == 0 || *quorum < voters.len()).ok_or(Stop::Broken)?;
        self.at.leader = self.at.me.clone();
        self.store_publication(quorum, voters)
    }

    fn store_publication(&mut self, quorum: usize, voters: Names) -> Next {
        let old = (self.at.quorum, std::mem::replace(&mut self.at.voters, voters.clone()));
        self.at.quorum = quorum;
        if !self.at.overlaps() {
            (self.at.quorum, self.at.voters) = old;
            return Err(Stop::Broken);
        }
        if matches!(self.steps.last(), Some(Step::Publish { .. })) {
            self.steps.pop();
        }
        self.steps.push(Step::Publish { quorum, voters });
        Ok(())
    }

    /// `Y(n, S)` of the contract.
    fn wait_for(&mut self, numsync: Option<usize>, sync: Names) -> Next {
        let numsync = numsync.filter(|numsync| *numsync <= sync.len()).ok_or(Stop::Broken)?;
        let old = (self.at.numsync, std::mem::replace(&mut self.at.sync, sync.clone()));
        self.at.numsync = numsync;
        if !self.at.overlaps() {
            (self.at.numsync, self.at.sync) = old;
            return Err(Stop::Broken);
        }
        if matches!(self.steps.last(), Some(Step::WaitFor { .. })) {
            self.steps.pop();
        }
        self.steps.push(Step::WaitFor { numsync, sync });
        Ok(())
    }

    fn run(&mut self) -> Next {
        if self.at.me != self.at.leader
            && let Err(stop) = self.just_promoted()
        {
            if stop == Stop::Done {
                return Err(stop);
            }
            let (quorum, voters) = (self.at.sync.len().checked_sub(self.at.numsync), self.at.sync.clone());
            self.at.leader = self.at.me.clone();
            self.publish(quorum, voters, true)?;
        }
        let known = both(&self.at.sync, &self.at.active).len();
        if self.at.confirmed == 0 && known > 0 {
            // After a restart: what was published tells what had been confirmed.
            self.at.confirmed = known.min(self.at.voters.len().saturating_sub(self.at.quorum));
        }
        self.make_equal()?;
        self.make_exact()?;
        self.remove_gone()?;
        self.add_new()?;
        self.count()
    }

    /// Step 0.
    fn just_promoted(&mut self) -> Next {
        let mut voters = self.at.voters.clone();
        voters.remove(&self.at.me);
        voters.insert(self.at.leader.clone());
        if self.at.sync.is_empty() {
            self.wait_for(voters.len().checked_sub(self.at.quorum), voters.clone())?;
        }
        self.publish_as(Some(self.at.quorum), voters)?;
        if both(&self.at.sync, &self.at.active).is_empty() {
            return Err(Stop::Done); // They need a moment to connect.
        }
        Ok(())
    }

    /// Step 2: a round was interrupted, and one record is ahead of the other.
    fn make_equal(&mut self) -> Next {
        let State { voters, sync, active, .. } = self.at.clone();
        if sync.is_subset(&voters) && sync != voters {
            let gone = minus(&voters, &plus(&sync, &active));
            if !gone.is_empty() {
                let quorum = voters.len().checked_sub(gone.len() + self.at.numsync);
                self.publish(quorum, minus(&voters, &gone), sync.is_subset(&active))?;
            }
            let add = minus(&both(&voters, &active), &sync);
            if !add.is_empty() {
                self.wait_for(Some(self.at.numsync), plus(&sync, &add))?;
            }
        } else if voters.is_subset(&sync) && sync != voters {
            let dead = minus(&sync, &active);
            let alive = minus(&sync, &dead);
            let shared = voters.is_empty() || !both(&alive, &voters).is_empty();
            if !dead.is_empty() && !alive.is_empty() && shared {
                self.wait_for(Some(self.at.numsync.min(sync.len() - dead.len())), alive)?;
            }
            let add = both(&minus(&self.at.sync, &voters), &active);
            if !add.is_empty() {
                let all = plus(&voters, &add);
                self.publish(all.len().checked_sub(self.at.numsync), all, true)?;
            }
            let rem = minus(&self.at.sync, &self.at.voters);
            if !rem.is_empty() {
                let numsync = self.at.numsync.min(self.at.sync.len() - rem.len());
                self.wait_for(Some(numsync), minus(&self.at.sync, &rem))?;
            }
        }
        Ok(())
    }

    /// Still step 2: both name the same, and demand more than the overlap needs.
    fn make_exact(&mut self) -> Next {
        let State { quorum, numsync, confirmed, wanted, voters, sync, .. } = self.at.clone();
        if quorum + numsync.min(confirmed) > voters.len() {
            if numsync > wanted {
                return self.wait_for(Some(wanted.max(voters.len().saturating_sub(quorum))), sync);
            }
            return self.publish(sync.len().checked_sub(numsync), voters, true);
        }
        if numsync == wanted && quorum + numsync > voters.len() && numsync > confirmed {
            return self.publish(sync.len().checked_sub(numsync), voters, true);
        }
        Ok(())
    }

    /// Step 3.
    fn remove_gone(&mut self) -> Next {
        let mut rem = minus(&self.at.sync, &self.at.active);
        if rem.is_empty() {
            return Ok(());
        }
        if rem == self.at.sync {
            self.publish(Some(0), Names::new(), false)?;
            return self.wait_for(Some(0), Names::new());
        }
        if self.at.quorum > 0 {
            let first: Names = rem.iter().rev().take(self.at.quorum).cloned().collect();
            let left = minus(&self.at.sync, &first);
            let numsync = self.at.wanted.max(self.at.numsync).min(left.len());
            self.wait_for(Some(numsync), left)?;
            let voters = minus(&self.at.voters, &first);
            rem = both(&rem, &self.at.sync);
            self.publish(voters.len().checked_sub(self.at.numsync), voters, rem.is_empty())?;
        }
        if !rem.is_empty() {
            let numsync = self.at.numsync.checked_sub(rem.len()).ok_or(Stop::Broken)?;
            let left = minus(&self.at.sync, &rem);
            let lower = numsync.checked_sub(self.at.wanted.min(left.len())).ok_or(Stop::Broken)?;
            let voters = minus(&self.at.voters, &rem);
            let quorum = if lower == 0 { Some(0) } else { voters.len().checked_sub(1).map(|most| lower.min(most)) };
            self.publish(quorum, voters, false)?;
            self.wait_for(Some(numsync), left)?;
        }
        Ok(())
    }

    /// Step 4.
    fn add_new(&mut self) -> Next {
        let mut add = minus(&self.at.active, &self.at.sync);
        if add.is_empty() {
            return Ok(());
        }
        let wanted = self.at.wanted.min(plus(&self.at.sync, &add).len());
        if let Some(more) = wanted.checked_sub(self.at.numsync).filter(|more| *more > 0) {
            let all = self.at.sync.is_empty();
            let first: Names = if all { add.clone() } else { add.iter().take(more).cloned().collect() };
            let by = if all { more } else { first.len() };
            self.wait_for(Some(self.at.numsync + by), plus(&self.at.sync, &first))?;
            let voters = plus(&self.at.voters, &first);
            self.publish(voters.len().checked_sub(wanted), voters, true)?;
            add = minus(&add, &self.at.sync);
        }
        if !add.is_empty() {
            let voters = plus(&self.at.voters, &add);
            self.publish(voters.len().checked_sub(wanted), voters, wanted > self.at.confirmed)?;
            self.wait_for(Some(wanted), plus(&self.at.sync, &add))?;
        }
        Ok(())
    }

    /// Step 5: another number of them.
    fn count(&mut self) -> Next {
        let State { quorum, numsync, confirmed, wanted, voters, sync, .. } = self.at.clone();
        let target = wanted.min(sync.len());
        if target > numsync {
            self.wait_for(Some(target), sync)?;
            return self.publish(voters.len().checked_sub(target), voters, true);
        }
        let lower = numsync - target;
        if lower > 0 && quorum + lower < voters.len() {
            self.publish(voters.len().checked_sub(target), voters, wanted > confirmed)?;
            self.wait_for(Some(target), sync)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Names {
        text.chars().map(String::from).collect()
    }

    fn state(voters: &str, sync: &str, [quorum, numsync, confirmed, wanted]: [usize; 4], active: &str) -> State {
        let (me, leader) = ("a".to_owned(), "a".to_owned());
        let (voters, sync, active) = (names(voters), names(sync), names(active));
        State { me, leader, quorum, voters, numsync, sync, confirmed, active, wanted }
    }

    fn q(quorum: usize, voters: &str) -> Step {
        Step::Publish { quorum, voters: names(voters) }
    }

    fn y(numsync: usize, sync: &str) -> Step {
        Step::WaitFor { numsync, sync: names(sync) }
    }

    /// The contract's golden vectors: quorum, numsync, confirmed, wanted.
    #[test]
    fn the_golden_vectors() {
        for (state, expected) in [
            (state("", "", [0, 0, 0, 1], "bc"), vec![y(1, "bc"), Step::Restart]),
            (state("", "bc", [0, 1, 1, 1], "bc"), vec![q(1, "bc")]),
            (state("", "bc", [0, 1, 2, 1], "bc"), vec![q(1, "bc")]),
            (state("bc", "bc", [1, 1, 2, 1], "bcd"), vec![q(2, "bcd"), y(1, "bcd")]),
            (state("bc", "bc", [1, 1, 1, 1], "b"), vec![y(1, "b"), q(0, "b")]),
            (state("bc", "bc", [1, 1, 0, 1], ""), vec![q(0, ""), y(0, "")]),
            (state("bc", "bc", [1, 1, 2, 2], "bc"), vec![y(2, "bc"), q(0, "bc")]),
            (state("bc", "bc", [0, 2, 2, 1], "bc"), vec![q(1, "bc"), y(1, "bc")]),
            (state("bc", "bc", [0, 2, 1, 2], "b"), vec![q(0, "b"), y(1, "b")]),
        ] {
            assert_eq!(steps(&state), expected, "{state:?}");
        }
        let promoted = State { me: "b".into(), ..state("bc", "ac", [1, 1, 0, 1], "c") };
        assert_eq!(steps(&promoted), [q(1, "ac"), y(1, "c"), q(0, "c")]);
    }

    /// What is true after a step.
    fn after(state: &State, step: &Step) -> State {
        let mut state = state.clone();
        match step {
            Step::Publish { quorum, voters } => {
                (state.quorum, state.voters, state.leader) = (*quorum, voters.clone(), state.me.clone());
            }
            Step::WaitFor { numsync, sync } => (state.numsync, state.sync) = (*numsync, sync.clone()),
            Step::Restart => {}
        }
        state
    }

    #[test]
    fn a_state_that_is_as_wanted_is_left_alone() {
        assert_eq!(steps(&state("bc", "bc", [1, 1, 2, 1], "bc")), []);
        assert_eq!(steps(&state("", "", [0, 0, 0, 1], "")), []);
    }

    use proptest::prelude::*;

    fn some(of: &'static [&'static str]) -> impl Strategy<Value = Names> {
        prop::sample::subsequence(of, 0..=of.len()).prop_map(|names| names.into_iter().map(str::to_owned).collect())
    }

    /// Worlds that come and go, a round that is cut off after any number of its steps, and rounds again.
    #[derive(Clone, Debug)]
    struct Turn {
        active: Names,
        wanted: usize,
        confirmed: usize,
        carried_out: usize,
    }

    fn turns() -> impl Strategy<Value = Vec<Turn>> {
        let turn = (some(&["b", "c", "d", "e"]), 1..4_usize, 0..5_usize, 0..6_usize)
            .prop_map(|(active, wanted, confirmed, carried_out)| Turn { active, wanted, confirmed, carried_out });
        prop::collection::vec(turn, 1..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn acknowledging_and_electing_sets_overlap_after_every_step(turns in turns()) {
            let mut at = state("", "", [0, 0, 0, 1], "");
            for turn in turns {
                at.confirmed = turn.confirmed.min(both(&at.sync, &turn.active).len());
                (at.active, at.wanted) = (turn.active, turn.wanted);
                for step in steps(&at).iter().take(turn.carried_out) {
                    at = after(&at, step);
                    prop_assert!(at.overlaps(), "{step:?} led to {at:?}");
                    prop_assert!(at.numsync <= at.sync.len());
                }
            }
        }

        #[test]
        fn one_step_at_a_time_gets_there(turns in turns()) {
            let mut at = state("", "", [0, 0, 0, 1], "");
            for turn in turns {
                (at.active, at.wanted) = (turn.active, turn.wanted);
                let mut left = 40;
                loop {
                    at.confirmed = both(&at.sync, &at.active).len();
                    match steps(&at).first() {
                        None => break,
                        // Whoever is waited for has confirmed by the next look.
                        Some(Step::Restart) => {}
                        Some(step) => at = after(&at, step),
                    }
                    left -= 1;
                    prop_assert!(left > 0, "it never ends: {at:?}");
                }
                prop_assert_eq!(&at.sync, &at.active);
                prop_assert_eq!(&at.voters, &at.active);
                prop_assert_eq!(at.numsync, at.wanted.min(at.active.len()));
            }
        }
    }
}
