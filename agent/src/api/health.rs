//! Health checks (rest-api.md sections 5 and 6): which path asks what, and what the Moment answers.

use std::sync::atomic::Ordering;

use http::StatusCode;
use regent_core::config::SyncMode;
use serde_json::Value;

use super::json;
use super::routes::Ask;

/// One row of the contract's table 5.1.
pub(super) struct Check {
    path: Match,
    /// 200 iff this holds, and the tag filter lets it pass.
    holds: fn(&Ask<'_>) -> bool,
    /// `tag_*` parameters count.
    tags: bool,
}

/// How a row looks at the whole path.
enum Match {
    /// One of these is in it.
    Contains(&'static [&'static str]),
    /// The first is in it, and none of the second.
    ContainsWithout(&'static str, &'static [&'static str]),
    /// It is one of these.
    Is(&'static [&'static str]),
}

use Match::{Contains, ContainsWithout, Is};

/// The first row that fits the path decides; `/` counts as `/primary`; none: 503.
///
/// The leader's side of the `read-only-*` family follows `/primary` (W9).
pub(super) const CHECKS: [Check; 11] = [
    Check { path: Contains(&["standby_leader", "standby-leader"]), holds: standby_leader, tags: false },
    Check { path: Contains(&["leader"]), holds: leader, tags: false },
    Check { path: Contains(&["master", "primary", "read-write"]), holds: primary, tags: false },
    Check { path: Contains(&["replica"]), holds: replica, tags: true },
    Check { path: ContainsWithout("read-only", &["sync", "quorum"]), holds: readable, tags: true },
    Check { path: Contains(&["health"]), holds: running, tags: true },
    Check { path: Is(&["/sync", "/synchronous"]), holds: sync, tags: true },
    Check { path: Is(&["/quorum"]), holds: quorum, tags: true },
    Check { path: Is(&["/async", "/asynchronous"]), holds: asynchronous, tags: true },
    Check { path: Is(&["/read-only-quorum"]), holds: |ask| leader(ask) || quorum(ask), tags: true },
    Check {
        path: Is(&["/read-only-sync", "/read-only-synchronous"]),
        holds: |ask| leader(ask) || sync(ask),
        tags: true,
    },
];

impl Match {
    fn fits(&self, path: &str) -> bool {
        match self {
            Contains(words) => words.iter().any(|word| path.contains(word)),
            ContainsWithout(word, others) => path.contains(word) && !others.iter().any(|other| path.contains(other)),
            Is(paths) => paths.contains(&path),
        }
    }
}

/// The health check of this path.
pub(super) fn check(path: &str, ask: &Ask<'_>) -> StatusCode {
    let row = row(path).and_then(|row| CHECKS.get(row));
    code(row.is_some_and(|row| (row.holds)(ask) && (!row.tags || tags_match(ask))))
}

/// Which row of the table is for this path.
pub(super) fn row(path: &str) -> Option<usize> {
    let path = if path == "/" { "/primary" } else { path };
    CHECKS.iter().position(|row| row.path.fits(path))
}

/// `/liveness`: the agent's loop runs.
pub(super) fn liveness(ask: &Ask<'_>) -> StatusCode {
    code(ask.moment.is_alive())
}

/// `/readiness`: the leader, or a replica that streams and keeps up.
///
/// A holder of the key whose server is down or going down is not ready (the peer says it is: W2).
pub(super) fn readiness(ask: &Ask<'_>) -> StatusCode {
    let moment = &ask.moment;
    let leads = moment.holds_lock() && moment.is_running() && !moment.status.demoting;
    code(leads || moment.is_primary() || follows_closely(ask))
}

fn follows_closely(ask: &Ask<'_>) -> bool {
    let moment = &ask.moment;
    let Some((received, replayed)) = moment.standby_positions() else { return false };
    let told_by_receiver = moment.sql().is_some_and(|sql| sql.latest_end_lsn.is_some());
    if !moment.is_running()
        || moment.replication_state() != Some("streaming")
        || (moment.view().is_none() && !told_by_receiver)
    {
        return false;
    }
    let position = if ask.params.get("mode") == Some("write") { received } else { replayed };
    let limit = lag_limit(ask).unwrap_or(i128::from(moment.status.maximum_lag_on_failover));
    i128::from(moment.leader_position().0) - i128::from(position.0) <= limit
}

fn code(holds: bool) -> StatusCode {
    if holds { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

fn standby_leader(ask: &Ask<'_>) -> bool {
    ask.moment.is_standby_leader()
}

fn leader(ask: &Ask<'_>) -> bool {
    primary(ask) || standby_leader(ask)
}

fn primary(ask: &Ask<'_>) -> bool {
    ask.moment.is_primary()
}

fn running(ask: &Ask<'_>) -> bool {
    ask.moment.is_running()
}

fn sync(ask: &Ask<'_>) -> bool {
    ask.moment.synchronous() == Some(SyncMode::On) && replica(ask)
}

fn quorum(ask: &Ask<'_>) -> bool {
    ask.moment.synchronous() == Some(SyncMode::Quorum) && replica(ask)
}

fn asynchronous(ask: &Ask<'_>) -> bool {
    ask.moment.synchronous().is_none() && replica(ask)
}

fn readable(ask: &Ask<'_>) -> bool {
    leader(ask) || replica(ask)
}

fn replica(ask: &Ask<'_>) -> bool {
    let moment = &ask.moment;
    let follows = moment.is_running() && moment.role() != "standby_leader";
    let Some((_, replayed)) = moment.standby_positions().filter(|_| follows) else { return false };
    let leader = i128::from(moment.leader_position().0);
    let lags = lag_limit(ask).is_some_and(|limit| leader > 0 && leader > limit.saturating_add(i128::from(replayed.0)));
    let as_asked = ask.params.get("replication_state").is_none_or(|asked| moment.replication_state() == Some(asked));
    !moment.status.noloadbalance && !lags && as_asked
}

/// `lag=`, if it can be read. What cannot is no limit, since tools rely on an answer (rest-api.md 5.4), but is told.
fn lag_limit(ask: &Ask<'_>) -> Option<i128> {
    let text = ask.params.get("lag")?;
    let limit = super::params::size(text);
    if limit.is_none() && !ask.app.told_of_bad_lag.swap(true, Ordering::Relaxed) {
        let lag: String = text.chars().take(40).collect();
        tracing::warn!(
            ?lag,
            "a health check asks for a lag that cannot be read, so it checks none; write it like 10MB"
        );
    }
    limit
}

/// Every `tag_<name>=<value>` of the query is a tag of this member (rest-api.md 5.3).
fn tags_match(ask: &Ask<'_>) -> bool {
    ask.params.with_prefix("tag_").all(|(name, wanted)| match ask.moment.status.tags.get(name) {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => text == wanted,
        Some(other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_))) => {
            json::text(other).to_lowercase() == wanted
        }
    })
}
