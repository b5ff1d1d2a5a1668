//! What a configuration that works would still surprise its owner with. The ids are those of the mistakes that were found in
//! real deployment plans (S1 to S16).

use regent_core::config::SyncMode;
use regent_core::contract::Contract;

use super::check::{Finding, Severity};
use super::effective::Effective;
use super::local::LocalConfig;
use super::node::{At, Node, Value};
use super::table::{self, Kind};
use crate::watchdog::Mode;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Data, passwords or the whole service are at stake.
    Danger,
    /// It does something else than most people think.
    Warning,
    /// It could be better.
    Note,
}

/// One piece of advice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Advice {
    /// How much it matters.
    pub weight: Weight,
    /// Which of the known mistakes it is; empty for others.
    pub id: &'static str,
    /// Where it stands, if it stands anywhere.
    pub place: Option<At>,
    /// What is so.
    pub what: String,
    /// What to do about it.
    pub cure: String,
}

impl Advice {
    /// A finding of [`super::check()`], whose text says what to do.
    #[must_use]
    pub fn of_finding(finding: &Finding) -> Advice {
        let (what, key) = (&finding.problem.what, &finding.problem.key);
        let id = match key.as_str() {
            "bootstrap.users" => "S7",
            _ if key.ends_with("synchronous_standby_names") => "S1",
            _ if what.contains("is not set; set it or") => "S5",
            _ => "",
        };
        let weight = match finding.severity {
            Severity::Error => Weight::Danger,
            Severity::Warning => Weight::Warning,
        };
        let users = "make the roles in a script that bootstrap.post_bootstrap names";
        let other = if id == "S7" { users } else { "see docs/configuration.md" };
        let (what, cure) = what.split_once("; ").unwrap_or((what, other));
        let what = if key.is_empty() { what.to_owned() } else { format!("{key}: {what}") };
        Advice { weight, id, place: finding.problem.at.clone(), what, cure: cure.to_owned() }
    }
}

/// Everything that can be advised on a configuration that works.
#[must_use]
pub fn advise(local: &LocalConfig, all: &Effective, contract: &Contract) -> Vec<Advice> {
    let mut found = Vec::new();
    let place = |path: &[&str]| local.tree.path(path).map(|node| node.at.clone());
    let dynamic = |key: &str| place(&["bootstrap", "dcs", key]);
    let mut add = |weight, id, place: Option<At>, what: &str, cure: &str| {
        found.push(Advice { weight, id, place, what: what.to_owned(), cure: cure.to_owned() });
    };
    let core = &all.core;
    let asynchronous = core.synchronous_mode == SyncMode::Off;
    if all.postgres.parameters.contains_key("synchronous_standby_names") {
        let at = place(&["postgresql", "parameters", "synchronous_standby_names"])
            .or_else(|| place(&["bootstrap", "dcs", "postgresql", "parameters", "synchronous_standby_names"]));
        let what = if asynchronous {
            "synchronous_standby_names names standbys by hand while synchronous_mode is off: after a failover nobody changes it, \
             and a standby that lacks commits may be promoted"
        } else {
            "synchronous_standby_names has no effect: synchronous_mode decides"
        };
        add(
            Weight::Danger,
            "S1",
            at,
            what,
            "remove it; set synchronous_mode: on (or quorum) and synchronous_mode_strict: on",
        );
    }
    if asynchronous {
        let cure = "set synchronous_mode: quorum and synchronous_mode_strict: on where no commit may be lost; else lower \
                    maximum_lag_on_failover";
        add(Weight::Warning, "S3", dynamic("maximum_lag_on_failover"), &contract.sentence, cure);
    } else if !core.synchronous_mode_strict {
        let at = dynamic("synchronous_mode_strict").or_else(|| dynamic("synchronous_mode"));
        add(
            Weight::Warning,
            "S2",
            at,
            &contract.sentence,
            "set synchronous_mode_strict: on, and have two standbys or more",
        );
    }
    if !core.failsafe_mode {
        let what =
            "failsafe_mode is off: while etcd cannot be reached the primary is stopped, although all members see it";
        add(
            Weight::Warning,
            "S4",
            dynamic("failsafe_mode"),
            what,
            "set failsafe_mode: on in the dynamic configuration",
        );
    }
    match (local.guardian, local.watchdog.mode) {
        (false, Mode::Off) => {
            let what = "neither guardian nor watchdog: a primary whose agent hangs goes on writing beside the next one";
            add(Weight::Danger, "S4", place(&["regent", "guardian"]), what, "remove regent.guardian: off");
        }
        (true, Mode::Off) => {
            let what =
                "the watchdog is off: a frozen machine that wakes up late is stopped by nothing but its guardian";
            add(
                Weight::Note,
                "S4",
                place(&["watchdog", "mode"]),
                what,
                "load softdog and set watchdog.mode: automatic",
            );
        }
        (_, Mode::Automatic | Mode::Required) => {}
    }
    if local
        .etcd
        .endpoints
        .iter()
        .any(|url| url.starts_with("http://") && !is_loopback(url.trim_start_matches("http://")))
    {
        let what = "etcd is reached without TLS: who can listen reads every key, and who can write decides who leads";
        add(Weight::Warning, "S13", place(&["etcd3"]), what, "set etcd3.protocol: https with cacert, cert and key");
    }
    if local.restapi.authentication.is_none() && !is_loopback(&local.restapi.listen.host) {
        let what = "anybody who reaches the REST API may restart or fail over: it has no authentication";
        let cure = "set restapi.authentication.username and .password, the same on all members";
        add(Weight::Danger, "S13", place(&["restapi", "listen"]), what, cure);
    }
    let lines =
        [&["postgresql", "pg_hba"][..], &["bootstrap", "pg_hba"], &["bootstrap", "dcs", "postgresql", "pg_hba"]];
    for node in lines.iter().filter_map(|path| local.tree.path(path)).flat_map(items) {
        let line = node.written().unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        let (from, method) = (
            words.get(3).copied().unwrap_or(""),
            words.iter().skip(3).find(|w| matches!(**w, "trust" | "md5" | "password")),
        );
        let from_here = words.first() == Some(&"local") || is_loopback(from);
        let Some(method) = method.copied().filter(|method| *method != "md5" || !from_here) else { continue };
        let (weight, what) = match (method, from_here) {
            ("trust", false) => (Weight::Danger, format!("pg_hba lets anybody in from {from} without a password")),
            ("trust", true) => {
                (Weight::Warning, "pg_hba lets every user of this machine in without a password".to_owned())
            }
            _ => (Weight::Warning, format!("pg_hba: the method {method} can be broken by who listens")),
        };
        add(weight, "S13", Some(node.at.clone()), &what, "write scram-sha-256, and hostssl for others");
    }
    literal_secrets(&local.tree, "", &mut found);
    found
}

fn items(node: &Node) -> &[Node] {
    if let Value::List(items) = &node.value { items } else { &[] }
}

fn is_loopback(host: &str) -> bool {
    host.starts_with("127.") || host.starts_with("localhost") || host.starts_with("::1") || host.starts_with("[::1]")
}

/// Passwords that are the very text `${...}`.
fn literal_secrets(node: &Node, path: &str, found: &mut Vec<Advice>) {
    for entry in node.entries() {
        let below = if path.is_empty() { entry.key.clone() } else { format!("{path}.{}", entry.key) };
        let secret = table::find(&below).is_some_and(|key| key.kind == Kind::Secret);
        if secret && entry.value.written().is_some_and(|text| text.contains("${")) {
            found.push(Advice {
                weight: Weight::Danger,
                id: "S5",
                place: Some(entry.value.at.clone()),
                what: format!("{below}: the secret is the very text of a variable, not its value"),
                cure: "write ${NAME} with one $".to_owned(),
            });
        }
        literal_secrets(&entry.value, &below, found);
    }
}
