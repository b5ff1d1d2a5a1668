//! All states of small worlds (`regent_tests::exhaustive`).
//!
//! `REGENT_TICKS`, `REGENT_FAULTS`, `REGENT_WRITES` and `REGENT_STATES` (in thousands) make the worlds larger:
//! `REGENT_FAULTS=2 REGENT_STATES=20000 cargo test --profile soak -p regent-tests --test exhaustive sound -- --nocapture`.

use std::io::Write;

use regent_core::config::SyncMode;
use regent_core::plan::{Decision, KeyWrite};
use regent_core::rules::{decide, decide_without};
use regent_core::snapshot::Snapshot;
use regent_tests::exhaustive::{Bounds, Make, search};

fn number<N: std::str::FromStr>(variable: &str, default: N) -> N {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn bounds(mode: SyncMode) -> Bounds {
    let (ticks, faults, writes) = (number("REGENT_TICKS", 5), number("REGENT_FAULTS", 1), number("REGENT_WRITES", 1));
    let mut bounds = Bounds::of(mode, ticks, faults, writes);
    bounds.states = number("REGENT_STATES", 40) * 1_000;
    bounds
}

/// Not by `println!`, which only failing tests show.
fn say(text: String) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[test]
fn small_worlds_are_sound() {
    for mode in [SyncMode::Off, SyncMode::On, SyncMode::Quorum] {
        let report = search(bounds(mode), &Make::default());
        say(format!("{mode:?}: {report}"));
        if let Some((violation, story)) = &report.found {
            panic!("{mode:?}: {violation:?}\n{story}");
        }
        assert!(report.promotions > 0 && report.acknowledged > 0, "nothing happened that could have gone wrong");
    }
}

/// In the synchronous modes everybody is listed, whoever is waited for.
fn everybody_is_listed(s: &Snapshot) -> Decision {
    let mut decision = decide(s);
    for key in &mut decision.plan.keys {
        if let KeyWrite::Sync { sync: Some(sync), .. } = key {
            sync.standbys = ["a", "b", "c"].map(Into::into).into();
        }
    }
    decision
}

/// A search that finds nothing proves nothing unless it finds these.
#[test]
fn planted_bugs_are_found() {
    let wrong = |decide: fn(&Snapshot) -> Decision| Make { decide, inspects: false, ..Make::default() };
    let bugs = [
        ("no guardian", SyncMode::Off, Make { guardian: false, ..Make::default() }, &["S1"][..]),
        ("writes compare nothing", SyncMode::Off, Make { compares: false, ..Make::default() }, &["S1", "S2", "S8"]),
        ("who is not listed runs for leader", SyncMode::On, wrong(|s| decide_without(s, &["wait_unlisted"])), &["S4"]),
        ("everybody is listed", SyncMode::On, wrong(everybody_is_listed), &["S4", "S5"]),
    ];
    for (bug, mode, make, ids) in bugs {
        let report = search(bounds(mode), &make);
        say(format!("{bug}: {report}"));
        let found = report.found.as_ref().map(|(violation, _)| violation.id);
        assert!(found.is_some_and(|id| ids.contains(&id)), "{bug}: {found:?} and not {ids:?}");
    }
}
