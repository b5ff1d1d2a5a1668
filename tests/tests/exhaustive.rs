//! All states of small worlds (`regent_tests::exhaustive`).
//!
//! `REGENT_TICKS`, `REGENT_FAULTS`, `REGENT_WRITES` and `REGENT_STATES` (in thousands) make the worlds larger:
//! `REGENT_FAULTS=2 REGENT_STATES=20000 cargo test --profile soak -p regent-tests --test exhaustive sound -- --nocapture`.

use std::io::Write;

use regent_core::config::SyncMode;
use regent_tests::exhaustive::{Bounds, Make, search};
use regent_tests::planted::BUGS;

fn number<N: std::str::FromStr>(variable: &str, default: N) -> N {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn bounds(mode: SyncMode) -> Bounds {
    let (ticks, faults, writes) = (number("REGENT_TICKS", 5), number("REGENT_FAULTS", 1), number("REGENT_WRITES", 1));
    let mut bounds = Bounds::of(mode, ticks, faults, writes);
    bounds.turns = number("REGENT_TURNS", 1);
    bounds.states = number("REGENT_STATES", 400) * 1_000;
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

/// Planted bugs (`regent_tests::planted`) that such worlds can show, and which invariant finds each.
const FOUND: &[(SyncMode, &str, &str)] = &[
    (SyncMode::Off, "no guardian", "S1"),
    (SyncMode::Off, "the guardian is disarmed before the server is down", "S1"),
    (SyncMode::Off, "a stopped member starts as a primary", "S1"),
    (SyncMode::On, "a standby is listed before the server waits for it", "S5"),
    (SyncMode::On, "a standby is listed as soon as the server is told to wait", "S5"),
    (SyncMode::On, "the server stops waiting for a standby that is still listed", "S5"),
    (SyncMode::On, "whoever is up may lead, listed or not", "S4"),
    (SyncMode::Quorum, "no votes are counted", "S4"),
    (SyncMode::Quorum, "a member votes for two", "S4"),
];

/// A search that finds nothing proves nothing unless it finds these.
#[test]
fn planted_bugs_are_found() {
    let only = std::env::var("REGENT_PLANTED").unwrap_or_default();
    let planted = |name: &str| {
        let bug = BUGS.iter().find(|bug| bug.name == name).unwrap_or_else(|| panic!("no bug is called {name}"));
        Make { judge: (bug.make)().judge, compares: true }
    };
    let blind = ("writes compare nothing", SyncMode::Off, Make { compares: false, ..Make::default() }, "S8");
    let judges = FOUND.iter().map(|(mode, name, id)| (*name, *mode, planted(name), *id));
    let mut missed = Vec::new();
    for (name, mode, make, id) in judges.chain([blind]).filter(|(name, ..)| name.contains(&only)) {
        let report = search(bounds(mode), &make);
        say(format!("{mode:?}, {name}: {report}"));
        let found = report.found.as_ref().map(|(violation, _)| violation.id);
        missed.extend((found != Some(id)).then_some((name, id, found)));
    }
    assert!(missed.is_empty(), "not found, or by another invariant: {missed:#?}");
}
