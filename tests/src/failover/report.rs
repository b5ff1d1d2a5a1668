//! What runs came to, one line of JSON each, and the table of many.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::faults::Fault;
use crate::rig::Settings;

/// One run, seconds from the fault where nothing else is said. `None`: does not apply, or did not happen.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// `Regent` or `Patroni`, with its version.
    pub product: String,
    /// What happened.
    pub fault: Fault,
    /// As configured.
    pub ttl: u32,
    /// As configured.
    pub loop_wait: u32,
    /// As configured.
    pub retry_timeout: u32,
    /// `asynchronous` or `synchronous`.
    pub mode: String,
    /// Longest time between two acknowledgements of the client behind HAProxy.
    pub gap_proxy: Option<f64>,
    /// The same for the client that knows all hosts.
    pub gap_direct: Option<f64>,
    /// Last acknowledgement by the old primary minus first by the new one; positive: both wrote. After a thaw: minus the thaw.
    pub both: Option<f64>,
    /// End of the last process of the old server minus first acknowledgement by the new one.
    pub old_dead: Option<f64>,
    /// Rows acknowledged to the two clients.
    pub acknowledged: usize,
    /// Those of them that the final primary lacks.
    pub lost_clients: usize,
    /// Rows acknowledged on the nodes' own sockets that the final primary lacks.
    pub lost_nodes: usize,
    /// Attempts of the two clients that failed.
    pub failed: usize,
    /// What the clients were told then.
    #[serde(default)]
    pub words: BTreeSet<String>,
    /// Primaries that came to be one.
    pub failovers: u32,
    /// How long the server started in place recovered, by its own log.
    pub recovery: Option<f64>,
    /// What health checks said.
    pub checks: Option<Checks>,
    /// The machine's load average over a minute, as the fault came.
    pub load: f64,
    /// Why the run was not completed.
    pub trouble: Option<String>,
}

impl Run {
    /// One that was not completed.
    #[must_use]
    pub fn failed(product: &str, fault: Fault, settings: &Settings, trouble: &str) -> Self {
        Run {
            product: product.to_owned(),
            fault,
            ttl: settings.ttl,
            loop_wait: settings.loop_wait,
            retry_timeout: settings.retry_timeout,
            mode: mode(settings),
            gap_proxy: None,
            gap_direct: None,
            both: None,
            old_dead: None,
            acknowledged: 0,
            lost_clients: 0,
            lost_nodes: 0,
            failed: 0,
            words: BTreeSet::new(),
            failovers: 0,
            recovery: None,
            checks: None,
            load: 0.0,
            trouble: Some(trouble.lines().next().unwrap_or_default().to_owned()),
        }
    }

    /// One line for who watches.
    #[must_use]
    pub fn brief(&self) -> String {
        let seconds = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.2}"));
        let end = match (&self.trouble, self.checks) {
            (Some(trouble), _) => format!("FAILED: {trouble}"),
            (None, Some(checks)) => format!("{checks:?}"),
            (None, None) => format!(
                "gap {} s by HAProxy, {} s direct; old's last write {} s, its end {} s after new's first; lost {} of {} and {} on nodes; {} failed; {} failovers",
                seconds(self.gap_proxy),
                seconds(self.gap_direct),
                seconds(self.both),
                seconds(self.old_dead),
                self.lost_clients,
                self.acknowledged,
                self.lost_nodes,
                self.failed,
                self.failovers
            ),
        };
        format!("{}, ttl {}, {}: {end}", self.product, self.ttl, self.fault.words())
    }

    /// Rows acknowledged by anybody and missing in the end.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.lost_clients + self.lost_nodes
    }
}

/// As [`Run::mode`].
#[must_use]
pub fn mode(settings: &Settings) -> String {
    if settings.synchronous { "synchronous" } else { "asynchronous" }.to_owned()
}

/// Answers of the REST API.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Checks {
    /// How many were asked for.
    pub asked: usize,
    /// How many did not come within five seconds.
    pub unanswered: usize,
    /// The 99th percentile, an absent answer counted as long as it was waited for.
    pub p99_ms: f64,
    /// The slowest.
    pub worst_ms: f64,
}

impl Checks {
    /// From each question's seconds and whether it was answered.
    #[must_use]
    pub fn of(mut asked: Vec<(f64, bool)>) -> Option<Self> {
        asked.sort_by(|a, b| a.0.total_cmp(&b.0));
        let rank = (asked.len() * 99).div_ceil(100).checked_sub(1)?;
        let unanswered = asked.iter().filter(|(_, answered)| !answered).count();
        let (p99, worst) = (asked.get(rank)?.0, asked.last()?.0);
        Some(Checks { asked: asked.len(), unanswered, p99_ms: p99 * 1e3, worst_ms: worst * 1e3 })
    }
}

/// The middle one; of an even number the mean of the two in the middle.
pub fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    let upper = *values.get(half)?;
    if values.len() % 2 == 1 { Some(upper) } else { Some(f64::midpoint(upper, *values.get(half - 1)?)) }
}

/// `median (least – most)`, with `digits` after the point.
fn spread(values: &[f64], digits: usize) -> String {
    let Some(median) = median(values.iter().copied()) else { return "–".to_owned() };
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if format!("{least:.digits$}") == format!("{most:.digits$}") {
        return format!("{median:.digits$}");
    }
    format!("{median:.digits$} ({least:.digits$} – {most:.digits$})")
}

fn counts(runs: &[&Run], count: impl Fn(&Run) -> usize) -> String {
    let values: Vec<f64> = runs.iter().map(|run| u32::try_from(count(run)).map_or(f64::INFINITY, f64::from)).collect();
    let whole = median(values.iter().copied()).is_none_or(|median| median.fract() == 0.0);
    spread(&values, usize::from(!whole))
}

/// The table, in Markdown, of runs in any order.
#[must_use]
pub fn table(runs: &[Run]) -> String {
    let mut groups: BTreeMap<_, Vec<&Run>> = BTreeMap::new();
    for run in runs {
        // Regent first, and the longer lease first.
        let key = (&run.mode, run.fault, u32::MAX - run.ttl, Reverse(&run.product));
        groups.entry(key).or_default().push(run);
    }
    let mut text = String::from(
        "| fault | ttl / loop_wait / retry_timeout | mode | | runs | gap, HAProxy (s) | gap, direct (s) | both writing (s) | rows lost | failed writes | failovers | demanded | met |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for ((mode, fault, _, Reverse(product)), all) in &groups {
        let runs: Vec<&Run> = all.iter().copied().filter(|run| run.trouble.is_none()).collect();
        let Some(first) = all.first() else { continue };
        let seconds =
            |of: fn(&Run) -> Option<f64>| spread(&runs.iter().filter_map(|run| of(run)).collect::<Vec<_>>(), 2);
        let both: Vec<f64> = runs.iter().filter_map(|run| run.both).map(|both| both.max(0.0)).collect();
        let done =
            if runs.len() == all.len() { runs.len().to_string() } else { format!("{} of {}", runs.len(), all.len()) };
        let met = match runs.len() {
            0 => "not run",
            _ if fault.met(first.ttl, &runs) && runs.len() == all.len() => "yes",
            _ => "**no**",
        };
        let gaps = match runs.iter().filter_map(|run| run.checks).collect::<Vec<_>>().as_slice() {
            [] => format!("{} | {}", seconds(|run| run.gap_proxy), seconds(|run| run.gap_direct)),
            checks => answers(checks),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} / {} / {} | {mode} | {product} | {done} | {gaps} | {} | {} | {} | {} | {} | {met} |",
            fault.words(),
            first.ttl,
            first.loop_wait,
            first.retry_timeout,
            spread(&both, 2),
            counts(&runs, Run::lost),
            counts(&runs, |run| run.failed),
            counts(&runs, |run| run.failovers as usize),
            demanded(*fault, first.ttl, &runs),
        );
    }
    let load: Vec<f64> = runs.iter().map(|run| run.load).collect();
    let _ = writeln!(text, "\nLoad average of the machine over a minute, as the faults came: {}.", spread(&load, 1));
    text
}

fn demanded(fault: Fault, ttl: u32, runs: &[&Run]) -> String {
    let recovery: Vec<f64> = runs.iter().filter_map(|run| run.recovery).collect();
    let recovered = if recovery.is_empty() { String::new() } else { format!(" ({})", spread(&recovery, 2)) };
    fault.demand(ttl) + &recovered
}

fn answers(checks: &[Checks]) -> String {
    let of = |what: fn(&Checks) -> f64| checks.iter().map(what).collect::<Vec<_>>();
    let (asked, unanswered) =
        checks.iter().fold((0, 0), |(asked, not), checks| (asked + checks.asked, not + checks.unanswered));
    format!(
        "99 %: {} ms, worst {} ms | {unanswered} of {asked} unanswered",
        spread(&of(|checks| checks.p99_ms), 1),
        spread(&of(|checks| checks.worst_ms), 1)
    )
}

const BEGIN: &str = "<!-- failover-bench: begin -->\n";
const END: &str = "<!-- failover-bench: end -->\n";

/// Puts `table` between the marks of a document; a document without marks is replaced.
#[must_use]
pub fn place(document: &str, table: &str) -> String {
    match (document.split_once(BEGIN), document.split_once(END)) {
        (Some((before, _)), Some((_, after))) => format!("{before}{BEGIN}{table}{END}{after}"),
        _ => format!("{BEGIN}{table}{END}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(fault: Fault, product: &str, gap: f64) -> Run {
        let settings = fault.settings(20, false, false);
        Run {
            gap_proxy: Some(gap),
            gap_direct: Some(gap / 2.0),
            failed: 1,
            trouble: None,
            ..Run::failed(product, fault, &settings, "")
        }
    }

    #[test]
    fn medians() {
        assert_eq!(median([].into_iter()), None);
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.5));
        assert_eq!(spread(&[1.0, 1.0], 2), "1.00");
        assert_eq!(spread(&[1.0, 2.0, 9.0], 1), "2.0 (1.0 – 9.0)");
        assert_eq!(spread(&[], 1), "–");
    }

    #[test]
    fn percentiles_count_what_never_came() {
        let mut asked = vec![(0.001, true); 98];
        asked.extend([(5.0, false), (5.0, false)]);
        let checks = Checks::of(asked).unwrap();
        assert_eq!((checks.asked, checks.unanswered), (100, 2));
        assert!((checks.p99_ms - 5000.0).abs() < 0.1);
        assert!(Checks::of(Vec::new()).is_none());
    }

    #[test]
    fn one_line_for_each_fault_setting_and_product() {
        let mut late = run(Fault::HandOver, "Patroni", 3.0);
        late.trouble = Some("no second primary".to_owned());
        let runs = [
            run(Fault::HandOver, "Patroni", 3.0),
            late,
            run(Fault::HandOver, "Regent", 1.0),
            run(Fault::HandOver, "Regent", 1.4),
        ];
        let text = table(&runs);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        let [regent, patroni] = lines.as_slice() else { panic!("{text}") };
        assert!(regent.contains("| Regent | 2 | 1.20 (1.00 – 1.40) | 0.60 (0.50 – 0.70) |"), "{regent}");
        assert!(regent.ends_with("| yes |"), "{regent}");
        assert!(patroni.contains("| 1 of 2 | 3.00 | 1.50 |") && patroni.ends_with("| **no** |"), "{patroni}");
    }

    #[test]
    fn demands_that_are_missed() {
        let mut killed = run(Fault::AgentKilled, "Regent", 20.0);
        killed.both = Some(-0.1);
        killed.old_dead = Some(-0.1);
        assert!(Fault::AgentKilled.met(20, &[&killed]));
        let spoils: [fn(&mut Run); 3] =
            [|run| run.both = Some(0.1), |run| run.old_dead = None, |run| run.lost_nodes = 1];
        for spoil in spoils {
            let mut spoiled = killed.clone();
            spoil(&mut spoiled);
            assert!(!Fault::AgentKilled.met(20, &[&killed, &spoiled]));
        }
        let mut silent = run(Fault::PowerOff, "Regent", 20.4);
        assert!(Fault::PowerOff.met(20, &[&silent]) && !Fault::PowerOff.met(5, &[&silent]));
        silent.gap_direct = None;
        assert!(!Fault::PowerOff.met(20, &[&silent]));
    }

    #[test]
    fn a_table_finds_its_place() {
        let first = place("", "a\n");
        assert_eq!(place(&format!("before\n{first}after\n"), "b\n"), format!("before\n{BEGIN}b\n{END}after\n"));
    }

    #[test]
    fn runs_survive_their_file() {
        let text = serde_json::to_string(&run(Fault::ServerStopped, "Regent", 1.0)).unwrap();
        let back: Run = serde_json::from_str(&text).unwrap();
        assert_eq!(back.fault, Fault::ServerStopped);
    }
}
