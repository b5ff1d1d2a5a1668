//! All states of small worlds (`regent_tests::exhaustive`).
//!
//! `REGENT_DEPTH=n` lets everything begin `n` ticks later at the latest, and go on for as much longer; `REGENT_TICKS`, `REGENT_FAULTS`,
//! `REGENT_WRITES` and `REGENT_TURNS` set one bound each, and `REGENT_STATES` (in thousands) ends a search that is too large:
//! `REGENT_DEPTH=1 cargo test --profile soak -p regent-tests --test exhaustive sound -- --nocapture`.

use std::io::Write;

use regent_core::config::SyncMode;
use regent_tests::exhaustive::{Bounds, Make, search};
use regent_tests::planted::BUGS;

fn number<N: std::str::FromStr>(variable: &str, default: N) -> N {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn bounds(mode: SyncMode, ticks: u8, writes: u8) -> Bounds {
    let depth = number("REGENT_DEPTH", 0);
    let (ticks, writes) = (number("REGENT_TICKS", ticks + depth), number("REGENT_WRITES", writes));
    let mut bounds = Bounds::of(mode, ticks, number("REGENT_FAULTS", 1), writes);
    (bounds.begins, bounds.turns) = (1 + depth, number("REGENT_TURNS", 1));
    bounds.states = number("REGENT_STATES", usize::MAX / 1_000) * 1_000;
    bounds
}

/// Not by `println!`, which only failing tests show.
fn say(text: String) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Mode, ticks, writes of clients; one fault each. A lease lasts three ticks: whoever dies in the first is followed by another in the
/// last of three.
const WORLDS: &[(SyncMode, u8, u8)] = &[
    (SyncMode::Off, 4, 0),
    (SyncMode::Off, 3, 1),
    (SyncMode::On, 4, 1),
    (SyncMode::Quorum, 4, 0),
    (SyncMode::Quorum, 3, 1),
];

#[test]
fn small_worlds_are_sound() {
    let (mut promotions, mut acknowledged) = (0, 0);
    for (mode, ticks, writes) in WORLDS {
        let bounds = bounds(*mode, *ticks, *writes);
        let report = search(bounds, &Make::default());
        say(format!("{mode:?}, {} ticks, {} writes: {report}", bounds.ticks, bounds.writes));
        if let Some((violation, story)) = &report.found {
            panic!("{mode:?}: {violation:?}\n{story}");
        }
        assert!(report.complete || bounds.states < usize::MAX / 1_000, "it ended early, and nobody wanted that");
        (promotions, acknowledged) = (promotions + report.promotions, acknowledged + report.acknowledged);
    }
    assert!(promotions > 0 && acknowledged > 0, "nothing happened that could have gone wrong");
}

/// Planted bugs (`regent_tests::planted`) that such worlds can show, and which invariant finds each.
const FOUND: &[(SyncMode, &str, &str)] = &[
    (SyncMode::Off, "no guardian", "S1"),
    (SyncMode::Off, "the guardian is disarmed before the server is down", "S1"),
    (SyncMode::Off, "a stopped member starts as a primary", "S1"),
    (SyncMode::On, "a standby is listed before the server waits for it", "S5"),
    (SyncMode::On, "the server stops waiting for a standby that is still listed", "S5"),
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
        let report = search(bounds(mode, 4, 1), &make);
        say(format!("{mode:?}, {name}: {report}"));
        let found = report.found.as_ref().map(|(violation, _)| violation.id);
        missed.extend((found != Some(id)).then_some((name, id, found)));
    }
    assert!(missed.is_empty(), "not found, or by another invariant: {missed:#?}");
}
