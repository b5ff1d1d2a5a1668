//! One page of HTML with a time line: who led, who took writes, what happened, how long writes took. Drawn as SVG, without scripts.

use std::fmt::Write;

use super::{Report, table::markdown};
use crate::history::Moment;

/// Pixels for a second.
const SECOND: f64 = 8.0;
/// The height of a lane.
const LANE: f64 = 26.0;
/// Where lanes begin.
const LEFT: f64 = 90.0;
const COLOURS: [&str; 5] = ["#2f6fb5", "#c2571a", "#3a8f4d", "#8a4fb0", "#a33b5c"];

fn x(at: Moment) -> f64 {
    LEFT + at.seconds() * SECOND
}

fn colour(node: usize) -> &'static str {
    COLOURS.get(node % COLOURS.len()).copied().unwrap_or("#555")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

/// The page.
#[must_use]
pub fn page(report: &Report) -> String {
    let lanes = lanes(report);
    let title = format!("Chaos, seed {}: {}", report.seed, escape(&report.product));
    let verdict = if report.findings.is_empty() {
        "No violation was found.".to_owned()
    } else {
        format!("{} violations.", report.findings.len())
    };
    format!(
        r"<!doctype html>
<html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 14px/1.45 system-ui, sans-serif; margin: 1.5rem; }}
.line {{ overflow-x: auto; border: 1px solid #8886; border-radius: 6px; }}
svg text {{ font: 11px system-ui, sans-serif; fill: currentColor; }}
pre {{ overflow-x: auto; font: 12px/1.4 ui-monospace, monospace; }}
</style></head><body>
<h1>{title}</h1><p>{verdict} {lost} of {acknowledged} acknowledged rows lost; {both:.2} s with two writers; {changes} failovers,
{needless} of them needless.</p>
<div class='line' tabindex='0' role='img' aria-label='Time line'>{lanes}</div>
<h2>Report</h2><pre>{text}</pre>
</body></html>
",
        lost = report.lost(),
        acknowledged = report.acknowledged,
        both = report.both_writing,
        changes = report.changes(),
        needless = report.needless(),
        text = escape(&markdown(report)),
    )
}

/// All lanes, one below the other.
fn lanes(report: &Report) -> String {
    let nodes = report.wrote.len();
    // Leader, each node, latency, faults: up to four at a time.
    let lane = |number: usize| f64::from(u32::try_from(number).unwrap_or(0)) * LANE + 20.0;
    let height = lane(nodes + 7);
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{:.0}' height='{height:.0}'>\n",
        x(report.ended) + 20.0
    );
    // Writing to a String cannot fail.
    let label = |svg: &mut String, number: usize, text: &str| {
        let _ = writeln!(svg, "<text x='6' y='{:.1}'>{text}</text>", lane(number) + 16.0);
    };
    label(&mut svg, 0, "leader key");
    for node in 0..nodes {
        label(&mut svg, node + 1, &format!("n{} writes", node + 1));
    }
    label(&mut svg, nodes + 1, "write takes");
    label(&mut svg, nodes + 2, "faults");
    for second in (0..=report.ended.0 / 1_000_000).step_by(10) {
        let at = x(Moment(second * 1_000_000));
        let _ = writeln!(
            svg,
            "<line x1='{at:.1}' x2='{at:.1}' y1='14' y2='{height:.0}' stroke='#8884'/><text x='{at:.1}' y='11'>{second}</text>"
        );
    }
    for (i, (from, who)) in report.leaders.iter().enumerate() {
        let to = report.leaders.get(i + 1).map_or(report.ended, |(at, _)| *at);
        if let Some(who) = who {
            let node = who.trim_start_matches('n').parse::<usize>().unwrap_or(1).saturating_sub(1);
            let _ = writeln!(
                svg,
                "<rect x='{:.1}' y='{:.1}' width='{:.1}' height='{}' fill='{}'><title>{} leads</title></rect>",
                x(*from),
                lane(0) + 3.0,
                (x(to) - x(*from)).max(0.5),
                LANE - 6.0,
                colour(node),
                escape(who)
            );
        }
    }
    for (node, slots) in report.wrote.iter().enumerate() {
        for (from, to) in runs(slots) {
            let (from, to) = (Moment(u64::from(from) * 100_000), Moment(u64::from(to + 1) * 100_000));
            let _ = writeln!(
                svg,
                "<rect x='{:.1}' y='{:.1}' width='{:.1}' height='{}' fill='{}' opacity='.75'/>",
                x(from),
                lane(node + 1) + 3.0,
                x(to) - x(from),
                LANE - 6.0,
                colour(node)
            );
        }
    }
    for (slot, millis) in &report.latency {
        // 1 ms to 3 s, as a logarithm.
        let tall = (f64::from((*millis).max(1)).log10() / 3.5 * (LANE - 4.0)).min(LANE - 4.0);
        let _ = writeln!(
            svg,
            "<rect x='{:.1}' y='{:.1}' width='{:.1}' height='{tall:.1}' fill='#888'><title>{millis} ms</title></rect>",
            x(Moment(u64::from(*slot) * 500_000)),
            lane(nodes + 2) - tall,
            SECOND / 2.0 - 0.5
        );
    }
    for told in &report.rounds {
        for (row, hit) in told.hits.iter().enumerate() {
            let _ = writeln!(
                svg,
                "<rect x='{:.1}' y='{:.1}' width='{:.1}' height='{}' fill='#d33' opacity='.8'><title>n{}: {}</title></rect>",
                x(hit.began),
                lane(nodes + 2 + row) + 3.0,
                (x(hit.ended) - x(hit.began)).max(2.0),
                LANE - 6.0,
                hit.node + 1,
                escape(&hit.strike.words())
            );
        }
    }
    for finding in &report.findings {
        let at = x(finding.at);
        let _ = writeln!(
            svg,
            "<line x1='{at:.1}' x2='{at:.1}' y1='14' y2='{height:.0}' stroke='#f0f' stroke-width='2'><title>{}</title></line>",
            escape(finding.to_string().lines().next().unwrap_or_default())
        );
    }
    svg + "</svg>"
}

/// Neighbouring slots put together: a bar each, and a node that writes each few milliseconds gives one long bar.
fn runs(slots: &[u32]) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for slot in slots {
        match runs.last_mut() {
            // A commit may take a little longer than a slot.
            Some((_, to)) if *slot <= *to + 2 => *to = *slot,
            _ => runs.push((*slot, *slot)),
        }
    }
    runs
}
