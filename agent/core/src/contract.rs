//! What is lost if the primary dies now: one sentence, from what is in force and what is seen, and from no wish.

use serde::{Deserialize, Serialize};

use crate::cluster::ClusterView;
use crate::config::{Config, SyncMode};

/// What the cluster can promise at this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contract {
    /// No acknowledged commit is lost by the death of the primary.
    pub rpo_zero: bool,
    /// The same for people, with the reason and the bound.
    pub sentence: String,
}

/// Sessions may give their own commits away.
const SESSIONS: &str = "commits of sessions with synchronous_commit off or local excepted";

/// The contract under `config`; without a view, what the configuration alone can promise.
#[must_use]
pub fn contract(config: &Config, view: Option<&ClusterView>) -> Contract {
    let standbys = view.map(|view| {
        let leader = view.leader.as_ref().map(|leader| &leader.name);
        let fit = |name| leader != Some(name);
        view.members
            .iter()
            .filter(|(name, of)| {
                fit(*name) && !of.tags.nofailover && matches!(of.state.as_str(), "running" | "streaming")
            })
            .count()
    });
    if config.synchronous_mode == SyncMode::Off {
        return Contract { rpo_zero: false, sentence: asynchronous(config, standbys) };
    }
    let named = view.map(|view| {
        let sync =
            view.sync.iter().filter(|sync| view.leader.as_ref().is_some_and(|leader| leader.name == sync.leader));
        let names = sync.flat_map(|sync| sync.standbys.iter().filter(|name| **name != sync.leader));
        names.map(|name| name.0.clone()).collect::<Vec<_>>()
    });
    let alone = if config.synchronous_mode_strict {
        "when none is left, commits wait (synchronous_mode_strict)"
    } else {
        "when none is left, the primary goes on alone and commits from then on can be lost (synchronous_mode_strict is off)"
    };
    match named {
        None => Contract {
            rpo_zero: config.synchronous_mode_strict,
            sentence: format!(
                "nothing that was acknowledged is lost while a synchronous standby is there; {alone}; {SESSIONS}"
            ),
        },
        Some(names) if !names.is_empty() => Contract {
            rpo_zero: true,
            sentence: format!(
                "nothing that was acknowledged is lost: {} {}; {alone}; {SESSIONS}",
                names.join(", "),
                match config.synchronous_mode {
                    SyncMode::Quorum => "are the standbys of which enough have every commit",
                    SyncMode::On | SyncMode::Off => "has every commit",
                }
            ),
        },
        Some(_) if config.synchronous_mode_strict => Contract {
            rpo_zero: true,
            sentence: format!(
                "nothing that was acknowledged is lost: there is no synchronous standby, and {alone}; {SESSIONS}"
            ),
        },
        Some(_) => Contract {
            rpo_zero: false,
            sentence: format!("there is no synchronous standby now, and {alone}; {}", asynchronous(config, standbys)),
        },
    }
}

fn asynchronous(config: &Config, standbys: Option<usize>) -> String {
    match standbys {
        Some(0) => "every commit since the last backup is lost if the primary's disk dies: no standby could take over"
            .to_owned(),
        Some(_) | None => format!(
            "commits that no standby has received are lost: a standby may be promoted that lacks {} bytes of log \
             (maximum_lag_on_failover) and whatever was written in the last {} s, when the position was last published",
            config.maximum_lag_on_failover,
            config.loop_wait.as_secs()
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::cluster::SyncState;
    use crate::fixture::primary;

    fn of(mode: SyncMode, strict: bool, synced: &[&str], members: &[&str]) -> Contract {
        let snapshot = primary().build();
        let mut view = snapshot.view().cloned().unwrap();
        let config = Config { synchronous_mode: mode, synchronous_mode_strict: strict, ..Config::of("a".into()) };
        let standbys: BTreeSet<_> = synced.iter().map(|name| (*name).into()).collect();
        view.sync = (!standbys.is_empty()).then(|| SyncState { leader: "a".into(), standbys, quorum: 0 });
        view.members.retain(|name, _| members.contains(&name.as_str()));
        contract(&config, Some(&view))
    }

    #[test]
    fn it_promises_what_the_cluster_can_keep() {
        use SyncMode::{Off, On, Quorum};
        let all = ["a", "b", "c"];
        for (mode, strict, synced, members, zero, part) in [
            (Off, false, &[][..], &all[..], false, "1048576 bytes"),
            (Off, false, &["b"], &all, false, "1048576 bytes"),
            (Off, false, &[], &["a"], false, "since the last backup"),
            (On, false, &["b"], &all, true, "b has every commit; when none is left, the primary goes on alone"),
            (On, true, &["b"], &all, true, "commits wait"),
            (On, false, &[], &all, false, "no synchronous standby now"),
            (On, false, &["a"], &all, false, "no synchronous standby now"),
            (On, false, &[], &["a"], false, "since the last backup"),
            (On, true, &[], &["a"], true, "commits wait"),
            (Quorum, false, &["b", "c"], &all, true, "b, c are the standbys of which enough"),
        ] {
            let found = of(mode, strict, synced, members);
            assert_eq!(found.rpo_zero, zero, "{found:?}");
            assert!(found.sentence.contains(part), "{found:?}");
        }
    }

    #[test]
    fn what_somebody_else_wrote_of_his_standbys_counts_for_nothing() {
        let mut view = primary().build().view().cloned().unwrap();
        view.sync = Some(SyncState { leader: "c".into(), standbys: BTreeSet::from(["b".into()]), quorum: 0 });
        let config = Config { synchronous_mode: SyncMode::On, ..Config::of("a".into()) };
        assert!(!contract(&config, Some(&view)).rpo_zero);
    }

    #[test]
    fn a_configuration_alone_promises_only_when_it_is_strict() {
        let with =
            |mode, strict| Config { synchronous_mode: mode, synchronous_mode_strict: strict, ..Config::of("a".into()) };
        assert!(contract(&with(SyncMode::On, true), None).rpo_zero);
        assert!(!contract(&with(SyncMode::On, false), None).rpo_zero);
        assert!(!contract(&with(SyncMode::Off, true), None).rpo_zero);
    }
}
