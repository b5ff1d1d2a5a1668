//! `ttl`, `loop_wait`, `retry_timeout`: floors, and the rule that binds them (config.md 4.1).

use super::node::Node;
use super::section::Report;
use super::{Problem, values};

/// The three timings in force, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timings {
    pub(super) ttl: i64,
    pub(super) loop_wait: i64,
    pub(super) retry_timeout: i64,
}

const DEFAULTS: Timings = Timings { ttl: 30, loop_wait: 10, retry_timeout: 10 };

/// The smallest TTL. The peer's is 20 s; ours is what etcd's leases and this agent's deadlines bear (DESIGN section 7).
const TTL_FLOOR: i64 = 3;

/// Reads and adjusts the timings of a dynamic configuration. One that is no number is a problem: the whole document is then
/// rejected, as the peer does.
pub(super) fn read(dynamic: Option<&Node>, report: &mut Report) -> Timings {
    let mut number = |key: &str, default: i64| {
        let Some(node) = dynamic.and_then(|dynamic| dynamic.get(key)) else { return default };
        values::strict_integer(node).unwrap_or_else(|| {
            report.problem(&node.at, key, "this is not a whole number of seconds (write 30, not 30s)");
            default
        })
    };
    let asked = Timings {
        ttl: number("ttl", DEFAULTS.ttl),
        loop_wait: number("loop_wait", DEFAULTS.loop_wait),
        retry_timeout: number("retry_timeout", DEFAULTS.retry_timeout),
    };
    let mut adjustments = Vec::new();
    let timings = asked.adjusted(&mut adjustments);
    let place = ["ttl", "loop_wait", "retry_timeout"].iter().find_map(|key| dynamic?.get(key)).or(dynamic);
    let warning = |what| Problem { at: place.map(|node| node.at.clone()), key: String::new(), what };
    report.warnings.extend(adjustments.into_iter().map(warning));
    timings
}

impl Timings {
    fn adjusted(self, warnings: &mut Vec<String>) -> Timings {
        let mut floor = |key: &str, value: i64, least: i64| {
            if value < least {
                warnings.push(format!("{key}={value} can't be smaller than {least}, adjusting..."));
            }
            // Seconds that no clock counts would overflow the sums below.
            value.clamp(least, 1_000_000_000)
        };
        let ttl = floor("ttl", self.ttl, TTL_FLOOR);
        let loop_wait = floor("loop_wait", self.loop_wait, 1);
        // With the peer's floor of 3 s no ttl below 7 s could keep the rule.
        let retry_timeout = floor("retry_timeout", self.retry_timeout, if ttl < 7 { 1 } else { 3 });
        let rule = format!("Violated the rule \"loop_wait + 2*retry_timeout <= ttl\", where ttl={ttl}");
        if 1 + 2 * retry_timeout > ttl {
            let shorter = (ttl - 1) / 2;
            warnings.push(format!(
                "{rule}. Adjusting loop_wait from {loop_wait} to 1 and retry_timeout from {retry_timeout} to {shorter}"
            ));
            return Timings { ttl, loop_wait: 1, retry_timeout: shorter };
        }
        let most = ttl - 2 * retry_timeout;
        if loop_wait > most {
            warnings.push(format!(
                "{rule} and retry_timeout={retry_timeout}. Adjusting loop_wait from {loop_wait} to {most}"
            ));
            return Timings { ttl, loop_wait: most, retry_timeout };
        }
        Timings { ttl, loop_wait, retry_timeout }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::yaml::parse;

    fn timings(yaml: &str) -> (i64, i64, i64, usize) {
        let tree = parse("config", yaml.as_bytes()).unwrap();
        let mut report = Report::default();
        let found = read(Some(&tree), &mut report);
        assert_eq!(report.problems, vec![]);
        (found.ttl, found.loop_wait, found.retry_timeout, report.warnings.len())
    }

    #[test]
    fn timings_are_raised_and_fitted() {
        let cases = [
            ("{}", (30, 10, 10, 0)),
            ("{ttl: 20, loop_wait: 2, retry_timeout: 5}", (20, 2, 5, 0)),
            ("{ttl: 20, loop_wait: 0, retry_timeout: 30}", (20, 1, 9, 2)),
            ("{ttl: 20}", (20, 1, 9, 1)),
            ("{ttl: 22}", (22, 2, 10, 1)),
            ("{ttl: 30, loop_wait: 15}", (30, 10, 10, 1)),
            ("{ttl: '30', loop_wait: 5.9, retry_timeout: 2}", (30, 5, 3, 1)),
            // Below the peer's floor.
            ("{ttl: 3, loop_wait: 1, retry_timeout: 1}", (3, 1, 1, 0)),
            ("{ttl: 1, loop_wait: 1, retry_timeout: 1}", (3, 1, 1, 1)),
            ("{ttl: 6, loop_wait: 2, retry_timeout: 2}", (6, 2, 2, 0)),
            ("{ttl: 7, loop_wait: 1, retry_timeout: 2}", (7, 1, 3, 1)),
            ("{ttl: 5, loop_wait: 1, retry_timeout: 3}", (5, 1, 2, 1)),
            ("{ttl: 9223372036854775807, retry_timeout: 9223372036854775807}", (1_000_000_000, 1, 499_999_999, 1)),
        ];
        for (yaml, want) in cases {
            assert_eq!(timings(yaml), want, "{yaml}");
            let (ttl, loop_wait, retry_timeout, _) = want;
            assert!(loop_wait + 2 * retry_timeout <= ttl);
        }
    }

    #[test]
    fn a_timing_that_is_no_number_is_a_problem() {
        let mut report = Report::default();
        read(Some(&parse("config", b"ttl: 30s").unwrap()), &mut report);
        assert_eq!(report.problems.first().map(|problem| problem.key.as_str()), Some("ttl"));
    }
}
