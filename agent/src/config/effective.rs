//! Local and dynamic configuration together: what the agent runs with (config.md 1.2, 4).

use std::time::Duration;

use regent_core::config::{Config, PermanentSlot, SyncMode};
use regent_core::units::MemberName;
use regent_pgctl::Settings;
use regent_pgctl::settings::ReplicaMethod;
use serde_json::Map;

use super::local::{LocalConfig, RestConfig};
use super::node::{At, Node};
use super::section::{Report, Section};
use super::{ConfigErrors, Problem, known, postgres, slots, tags, timing, values};
use crate::watchdog;

/// Everything in force.
#[derive(Clone, Debug)]
pub struct Effective {
    /// For the rules.
    pub core: Config,
    /// For the controller of PostgreSQL.
    pub postgres: Settings,
    /// For the kernel's watchdog.
    pub watchdog: watchdog::Settings,
    /// For the REST API.
    pub rest: RestConfig,
    /// Tags as the member key and REST show them (rest-api.md 4.3).
    pub tags: Map<String, serde_json::Value>,
    /// The tag `noloadbalance`.
    pub noloadbalance: bool,
    /// `conn_url` of the member key.
    pub conn_url: String,
    /// `api_url` of the member key.
    pub api_url: String,
    /// `proxy_url` of the member key.
    pub proxy_url: Option<String>,
    /// To be logged when they change.
    pub warnings: Vec<Problem>,
    /// Those of them that are about a value which is not taken as it was written.
    pub invalid: Vec<Problem>,
}

/// Merges the dynamic configuration (`config` key, its copy, or `bootstrap.dcs`) with the local one.
///
/// # Errors
/// The dynamic document cannot be used as a whole (a timing that is no number, a section that is no mapping): the caller
/// keeps what it has. The local side alone never fails here once [`LocalConfig::load`] succeeded.
pub fn effective(local: &LocalConfig, dynamic: Option<&serde_json::Value>) -> Result<Effective, ConfigErrors> {
    let mut report = Report::default();
    let dynamic = dynamic.map(|json| Node::from_json(json, &At::whole("dynamic configuration")));
    let found = of_nodes(local, dynamic.as_ref(), &mut report);
    found.filter(|_| report.problems.is_empty()).map_or_else(
        || Err(ConfigErrors(report.problems)),
        |found| Ok(Effective { warnings: report.warnings, invalid: report.invalid, ..found }),
    )
}

/// The same over a document whose places are known. What is wrong is in the report; `None`: nothing can be made of it.
pub(super) fn of_nodes(local: &LocalConfig, dynamic: Option<&Node>, report: &mut Report) -> Option<Effective> {
    if let Some(wrong) = dynamic.filter(|node| !node.is_map() && !node.is_null()) {
        report.problem(&wrong.at, "", format!("this is {}, but must be a mapping", wrong.kind()));
    }
    let timings = timing::read(dynamic, report);
    let (core_tags, shown_tags) = tags::read(&Section::root(&local.tree).child("tags", report), report);
    let slots = slots::read(dynamic, report);
    let found = postgres::read(local, dynamic, report);
    let known = known::check(&local.tree, dynamic);
    report.invalid.extend(known.invalid);
    for finding in known.warnings {
        let told = |other: &Problem| other.at == finding.at && (other.key == finding.key || other.has_line());
        if !local.warnings.iter().chain(&report.warnings).chain(&report.problems).any(told) {
            report.warnings.push(finding);
        }
    }
    let mut found = found?;
    // Where nobody commits there is nothing to wait for (Z1).
    let follows = found.settings.standby_cluster.is_some();
    let (ignore_slots, member_slots_ttl) = (slots.ignored.clone(), slots.member_ttl);
    let permanent_slots =
        slots.permanent(follows, found.settings.parameters.get("wal_level").map(String::as_str), report);
    let logical = permanent_slots.values().any(|slot| *slot != PermanentSlot::Physical);
    if logical && found.settings.use_slots && !follows {
        // Vacuum would remove catalog rows that a copy of the slot, here or on a member behind this one, needs (P11).
        found.settings.parameters.insert("hot_standby_feedback".to_owned(), "on".to_owned());
    }
    let get = |key: &str| dynamic.and_then(|dynamic| dynamic.get(key));
    let number = |keys: &[&str], default: u64| {
        // A new name beats an old one; a value that cannot be read counts as not set.
        let node = keys.iter().find_map(|key| get(key));
        node.and_then(values::integer).map_or(default, |number| u64::try_from(number).unwrap_or(0))
    };
    let word = |key: &str| get(key).and_then(values::word).unwrap_or(false);
    let ttl = seconds(timings.ttl);
    let core = Config {
        name: MemberName(local.name.clone()),
        ttl,
        loop_wait: seconds(timings.loop_wait),
        retry_timeout: seconds(timings.retry_timeout),
        stop_budget: Duration::from_secs(3).min(ttl / 5),
        maximum_lag_on_failover: number(&["maximum_lag_on_failover"], 1_048_576),
        check_timeline: word("check_timeline") && !follows,
        primary_start_timeout: Duration::from_secs(number(&["primary_start_timeout", "master_start_timeout"], 300)),
        primary_stop_timeout: Duration::from_secs(number(&["primary_stop_timeout", "master_stop_timeout"], 0)),
        max_timelines_history: usize::try_from(number(&["max_timelines_history"], 0)).unwrap_or(usize::MAX),
        failsafe_mode: word("failsafe_mode"),
        pause: word("pause"),
        may_bootstrap: local.may_bootstrap,
        use_slots: found.settings.use_slots,
        member_slots_ttl,
        permanent_slots,
        ignore_slots,
        synchronous_mode: if follows { SyncMode::Off } else { sync_mode(dynamic) },
        synchronous_mode_strict: word("synchronous_mode_strict"),
        synchronous_node_count: usize::try_from(number(&["synchronous_node_count"], 1)).unwrap_or(1),
        maximum_lag_on_syncnode: get("maximum_lag_on_syncnode")
            .and_then(values::integer)
            .and_then(|lag| u64::try_from(lag).ok())
            .filter(|lag| *lag > 0),
        use_pg_rewind: found.repair.use_pg_rewind,
        remove_on_rewind_failure: found.repair.remove_on_failure,
        remove_on_divergence: found.repair.remove_on_divergence,
        pre_promote: found.settings.scripts.pre_promote.is_some(),
        restores_without_leader: found.settings.scripts.replica.iter().any(ReplicaMethod::needs_nobody),
        standby_cluster: found.settings.standby_cluster.clone(),
        primary_race_backoff: Duration::from_secs(number(&["primary_race_backoff"], 0)),
        tags: core_tags,
    };
    Some(Effective {
        core,
        postgres: found.settings,
        watchdog: watchdog::Settings {
            mode: local.watchdog.mode,
            device: local.watchdog.device.clone(),
            timeout: local.watchdog.safety_margin.map_or(ttl / 2, |margin| ttl.saturating_sub(margin)),
            loop_wait: seconds(timings.loop_wait),
        },
        rest: local.restapi.clone(),
        tags: shown_tags,
        noloadbalance: local.tree.path(&["tags", "noloadbalance"]).is_some_and(Node::is_truthy),
        conn_url: found.conn_url,
        api_url: local.restapi.api_url(),
        proxy_url: found.proxy_url,
        warnings: Vec::new(),
        invalid: Vec::new(),
    })
}

/// `synchronous_mode`: a boolean, or the text `quorum`. What cannot be read is off.
pub(super) fn sync_mode(dynamic: Option<&Node>) -> SyncMode {
    let Some(node) = dynamic.and_then(|dynamic| dynamic.get("synchronous_mode")) else { return SyncMode::Off };
    match values::word(node) {
        Some(true) => SyncMode::On,
        None if node.written().is_some_and(|text| text.eq_ignore_ascii_case("quorum")) => SyncMode::Quorum,
        Some(false) | None => SyncMode::Off,
    }
}

fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
