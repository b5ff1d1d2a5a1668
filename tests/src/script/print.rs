//! Writes a story down.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use regent_core::plan::Exit;
use regent_core::postgres::{DataDir, Process};
use regent_pgctl::Postgres;

use super::Story;
use super::parse::Script;
use crate::checks::Finding;
use crate::trace::Line;
use crate::world::{Node, World};

/// What a story is made of, besides decisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A line of the script was carried out.
    Step(String),
    /// A server began (or ceased) to accept writes.
    Writes(String, bool),
}

/// The events and decisions in order, then how it all ended.
pub(super) async fn story(
    script: &Script<'_>,
    world: &World,
    events: Vec<(Duration, Event)>,
    decisions: &[Line],
    findings: &[Finding],
    began: Duration,
) -> Story {
    let shown = |name: &str| script.show.is_empty() || script.show.contains(&name);
    // At one instant: first what was done, then what was decided, then what became of it.
    let mut lines: Vec<(Duration, u8, String)> = Vec::new();
    for (at, event) in events {
        match event {
            Event::Step(text) => lines.push((at, 0, format!("> {text}"))),
            Event::Writes(name, true) if shown(&name) => lines.push((at, 2, format!("{name} (accepts writes)"))),
            Event::Writes(name, false) if shown(&name) => lines.push((at, 2, format!("{name} (accepts no writes)"))),
            Event::Writes(..) => {}
        }
    }
    let mut last: BTreeMap<&str, (&str, String)> = BTreeMap::new();
    for Line { at, member, table, rule, lease, postgres, why } in decisions {
        if !shown(member) || script.hide.contains(rule) {
            continue;
        }
        let lease = format!("lease:{lease}");
        let line = format!("{member} {rule:<28} {lease:<24} postgres:{postgres}");
        let same = last.get(member.as_str()).is_some_and(|old| *old == (*table, line.clone()));
        last.insert(member, (table, line.clone()));
        if same {
            continue; // What came between the two is hidden.
        }
        lines.push((*at, 1, line));
        if script.why.contains(rule) {
            lines.push((*at, 1, format!("  because {why}")));
        }
    }
    for (name, node) in world.nodes.iter().filter(|(name, _)| script.callbacks && shown(name)) {
        let calls = node.postgres.calls().into_iter().filter(|(at, _)| *at >= began);
        lines.extend(calls.map(|(at, call)| (at - began, 2, format!("{name} calls {call}"))));
    }
    lines.sort_by_key(|(at, order, _)| (*at, *order));
    let mut text = String::new();
    for (at, _, line) in lines {
        text.push_str(&format!("{:8.2} {line}\n", at.as_secs_f64()));
    }
    text.push('\n');
    for (name, node) in &world.nodes {
        text.push_str(&format!("{name}: {}\n", ending(world, name, node).await));
    }
    match findings {
        [] => text.push_str("found: nothing\n"),
        findings => {
            for Finding { id, at, what } in findings {
                let at = at.saturating_sub(began).as_secs_f64();
                text.push_str(&format!("found: {id} at {at:.2}: {what}\n"));
            }
        }
    }
    let reached: BTreeSet<_> = decisions.iter().map(|line| (line.table, line.rule)).collect();
    Story { text, reached }
}

/// What a member is in the end.
async fn ending(world: &World, name: &str, node: &Node) -> String {
    let seen = node.postgres.observe(Duration::from_millis(500)).await;
    let mut parts = Vec::new();
    let mut well = false;
    match (&seen.sql, seen.process, &seen.data_dir) {
        (Some(sql), ..) => {
            let timeline = sql.timeline.map(|timeline| timeline.to_string()).unwrap_or_default();
            let upstream = sql.upstream.as_deref().and_then(|at| at.split(':').next()).unwrap_or("nobody");
            well = sql.streaming || !sql.in_recovery && world.store.raw("leader").as_deref() == Some(name.as_bytes());
            parts.push(match (sql.in_recovery, sql.streaming) {
                (false, _) => format!("primary on timeline {timeline}"),
                (true, true) => format!("standby on timeline {timeline}, streams from {upstream}"),
                (true, false) => format!("standby on timeline {timeline}, does not stream"),
            });
        }
        (None, Process::Up { .. }, _) => parts.push("PostgreSQL does not answer".to_owned()),
        (None, Process::Down, DataDir::Empty) => parts.push("empty".to_owned()),
        (None, Process::Down, DataDir::Unfinished) => parts.push("unfinished copy".to_owned()),
        (None, Process::Down, _) => parts.push("PostgreSQL is down".to_owned()),
    }
    if world.store.raw("leader").as_deref() == Some(name.as_bytes()) {
        parts.push("holds the leader key".to_owned());
    }
    match node.exit() {
        Some(Exit::Done) => parts.push("its agent ended as ordered".to_owned()),
        Some(Exit::Failed) => parts.push("its agent gave up".to_owned()),
        None if !node.runs() => parts.push("no agent".to_owned()),
        None => {}
    }
    if let Some(status) = world.last_words(name).filter(|_| !well) {
        parts.push(status.rule.to_owned());
    }
    parts.join(", ")
}
