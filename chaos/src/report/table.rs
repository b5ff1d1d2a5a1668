//! Reports as Markdown.

use std::fmt::Write;

use super::{Report, Told, percentile};
use crate::cluster::Mode;

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Async => "asynchronous",
        Mode::Sync => "synchronous",
        Mode::Quorum => "quorum",
    }
}

/// Median, 95th, 99th percentile and maximum.
fn spread(sorted: &[f64]) -> String {
    let at = |of_hundred| percentile(sorted, of_hundred).map_or("–".to_owned(), |value| format!("{value:.1}"));
    format!("{} / {} / {} / {}", at(50), at(95), at(99), at(100))
}

/// A row for each campaign.
#[must_use]
pub fn table(reports: &[Report]) -> String {
    let mut text = String::from(
        "| | mode | ttl / loop_wait / retry_timeout | links | seed | faults (kinds) | failovers | gap by HAProxy, s (median / 95 % / 99 % / most) | gap direct, s | whole again after, s | rows acknowledged | rows lost | both writing, s | needless failovers | violations |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for report in reports {
        let [ttl, loop_wait, retry_timeout] = report.timing;
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} | {ttl} / {loop_wait} / {retry_timeout} | {} | {} | {} ({}) | {} | {} | {} | {} | {} | {} | {:.2} | {} | {} |",
            report.product,
            mode(report.mode),
            if report.namespaces { "namespaces" } else { "proxies" },
            report.seed,
            report.hits().count(),
            report.kinds().len(),
            report.changes(),
            spread(&report.gaps(|told: &Told| told.gap_proxy)),
            spread(&report.gaps(|told: &Told| told.gap_direct)),
            spread(&report.healing()),
            report.acknowledged,
            report.lost(),
            report.both_writing,
            report.needless(),
            report.findings.len()
        );
    }
    text
}

/// The whole report.
#[must_use]
pub fn markdown(report: &Report) -> String {
    let mut text = format!("# Chaos, seed {}\n\n{}\n", report.seed, table(std::slice::from_ref(report)));
    let _ = writeln!(
        text,
        "{} nodes, {} etcd; {:.0} s; {} transactions on lists, {} looks and increments.\n",
        report.size[0],
        report.size[1],
        report.ended.seconds(),
        report.transactions,
        report.looks
    );
    let (asked, answered, most) = report.checks;
    let _ = writeln!(
        text,
        "Health checks: {answered} of {asked} answered (an agent that is dead or stands still does not), 99 % within {most:.0} ms.\n"
    );
    if report.breaths > 0 {
        let _ = writeln!(
            text,
            "{} writes were acknowledged in the first {} ms of a node that had stood still: the documented limit of a lease.\n",
            report.breaths, 150
        );
    }
    if report.findings.is_empty() {
        text += "No violation was found.\n";
    } else {
        text += "## Violations\n\n";
        for finding in &report.findings {
            let _ = writeln!(text, "- {}", finding.to_string().lines().next().unwrap_or_default());
        }
    }
    text += "\n## Faults\n\n| fault | times |\n|---|---|\n";
    for (fault, times) in report.kinds() {
        let _ = writeln!(text, "| {} | {times} |", fault.words());
    }
    text += "\n## Rounds\n\n| | at, s | what happened | leader | gap by HAProxy, s | direct, s | lost | whole after, s |\n|---|---|---|---|---|---|---|---|\n";
    for told in &report.rounds {
        let words: Vec<String> = told.strikes.iter().map(crate::faults::Strike::words).collect();
        let leader = if told.changed { format!("{} → {}", told.leader, told.next) } else { told.leader.clone() };
        let _ = writeln!(
            text,
            "| {} | {:.1} | {} | {leader} | {:.1} | {:.1} | {} | {:.1} |",
            told.number,
            told.began.seconds(),
            words.join("; "),
            told.gap_proxy,
            told.gap_direct,
            told.lost,
            told.undone.until(told.ended).as_secs_f64()
        );
    }
    let troubles: Vec<&String> = report.rounds.iter().flat_map(|told| &told.troubles).collect();
    if !troubles.is_empty() {
        text += "\n## What could not be made to happen\n\n";
        for trouble in troubles {
            let _ = writeln!(text, "- {}", trouble.lines().next().unwrap_or_default());
        }
    }
    text
}
