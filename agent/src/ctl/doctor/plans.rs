//! Mistakes in the files around a cluster: compose files, HAProxy's configuration, alerts, runbooks.

use crate::config::{Advice, At, Weight};

/// A line that contains `all` of these and `none` of those, without regard to case.
struct Pattern {
    id: &'static str,
    weight: Weight,
    all: &'static [&'static str],
    none: &'static [&'static str],
    what: &'static str,
    cure: &'static str,
}

const fn pattern(
    id: &'static str,
    weight: Weight,
    all: &'static [&'static str],
    none: &'static [&'static str],
    what: &'static str,
    cure: &'static str,
) -> Pattern {
    Pattern { id, weight, all, none, what, cure }
}

use Weight::{Danger, Note, Warning};

#[rustfmt::skip]
const PATTERNS: &[Pattern] = &[
    pattern("S1", Danger, &["synchronous_standby_names:"], &[], "standbys are named by hand: nobody changes the name after a failover",
        "set synchronous_mode: on (or quorum) and synchronous_mode_strict: on instead"),
    pattern("S2", Warning, &["synchronous_mode_strict", "false"], &[], "without a standby the primary goes on alone, and commits can be lost",
        "set synchronous_mode_strict: on"),
    pattern("S5", Warning, &["password: ${"], &[], "the value comes from a variable, which must be set for the agent",
        "set it, or NAME_FILE, in the agent's environment; regent --validate-config tells when it is not set"),
    pattern("S6", Warning, &["postgres_password_file"], &["patroni_"], "the agent does not read POSTGRES_PASSWORD_FILE by itself",
        "name it PATRONI_SUPERUSER_PASSWORD_FILE, or write password: ${POSTGRES_PASSWORD} in the file"),
    pattern("S6", Warning, &["replication_password_file"], &["patroni_"], "the agent does not read REPLICATION_PASSWORD_FILE by itself",
        "name it PATRONI_REPLICATION_PASSWORD_FILE, or write password: ${REPLICATION_PASSWORD} in the file"),
    pattern("S8", Warning, &["switchover", "--master"], &[], "--master is gone since Patroni 4.0", "write --leader"),
    pattern("S8", Warning, &["--master "], &["switchover"], "--master is gone since Patroni 4.0", "write --leader"),
    pattern("S9", Danger, &["role=\"master\""], &[], "no metric has role=\"master\": the alert never fires, or always",
        "write patroni_primary, which is 1 on the primary"),
    pattern("S10", Warning, &["tcp-check send", "get /"], &[], "a check by raw TCP looks for a text anywhere in the answer",
        "write option httpchk GET /primary and http-check expect status 200"),
    pattern("S11", Danger, &["image:", "postgres:"], &["exporter", "regent", "patroni"], "this image holds PostgreSQL and no agent: a container of it has no failover",
        "add the static regent binary to it and start that"),
    pattern("S11", Note, &["pip", "install", "patroni"], &[], "pip refuses to write into the system's Python (PEP 668)",
        "install the one binary instead"),
    pattern("S12", Danger, &["service scale", "patroni"], &["=0", "=1"], "a scaled service starts members of one name and one configuration",
        "one service for each member, with its own PATRONI_NAME and volume"),
    pattern("S14", Danger, &["reinit", "--force"], &[], "a forced reinit throws away what only that member has",
        "save its log first: after a split it may hold commits that nobody else has"),
    pattern("S15", Note, &["health", "interval", "30"], &["healthcheck:"], "a pool that asks every 30 s sends writes to a dead primary for as long",
        "give the driver all hosts and target_session_attrs=read-write"),
    pattern("S16", Danger, &["recovery_target_time"], &["bootstrap"], "recovery by hand in a data directory that an agent looks after",
        "stop all agents of the cluster first, or make a new cluster by a bootstrap method"),
];

/// Looks through one text. `zero`: the configuration gives what a promise of no loss needs.
pub(super) fn look(name: &str, text: &str, zero: bool) -> Vec<Advice> {
    let mut found = Vec::new();
    let mut advise = |line: usize, weight, id, what: &str, cure: &str| {
        let place = Some(At::new(name, line, 1));
        found.push(Advice { weight, id, place, what: what.to_owned(), cure: cure.to_owned() });
    };
    for (number, line) in (1..).zip(text.lines()) {
        let lower = line.to_lowercase();
        let has = |part: &&str| lower.contains(*part);
        for one in PATTERNS.iter().filter(|one| one.all.iter().all(has) && !one.none.iter().any(has)) {
            advise(number, one.weight, one.id, one.what, one.cure);
        }
        let words: String = lower.chars().filter(|c| !"*|:= ".contains(*c)).collect();
        let promised = words.split_once("rpo").is_some_and(|(_, rest)| {
            let rest = rest.strip_prefix("(sync)").unwrap_or(rest);
            rest.strip_prefix('0').is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit() || c == '.'))
        });
        if promised && !zero {
            let cure = "set synchronous_mode: quorum (or on) and synchronous_mode_strict: on, or promise less";
            advise(
                number,
                Danger,
                "S1",
                "this promises that nothing is lost, and the configuration does not give it",
                cure,
            );
        }
    }
    let line_of = |part: &str| text.lines().position(|line| line.contains(part)).map(|index| index.saturating_add(1));
    if let Some(line) = line_of("tcp-check").filter(|_| !text.contains("on-marked-down shutdown-sessions")) {
        let what = "without on-marked-down sessions go on writing to the old primary";
        advise(line, Danger, "S10", what, "write default-server on-marked-down shutdown-sessions");
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_real_plans_are_named_and_good_ones_are_not() {
        let ids = |text: &str, zero| look("plan", text, zero).into_iter().map(|one| one.id).collect::<Vec<_>>();
        let cases: &[(&str, &[&str])] = &[
            ("- **RPO:** 0 seconds (synchronous replication)", &["S1"]),
            ("| **RPO (Sync)** | 0 seconds (no data loss) |", &["S1"]),
            ("  synchronous_standby_names: \"patroni-2\"", &["S1"]),
            ("    synchronous_mode_strict: false", &["S2"]),
            ("      - POSTGRES_PASSWORD_FILE=/run/secrets/postgres_password", &["S6"]),
            ("patronictl switchover --master pg-node-1 --candidate pg-node-2", &["S8"]),
            ("  --master patroni-1 \\", &["S8"]),
            ("expr: count(patroni_postgres_running{role=\"master\"}) == 0", &["S9"]),
            ("  tcp-check send \"GET /leader HTTP/1.0\\r\\n\\r\\n\"", &["S10", "S10"]),
            ("image: postgres:16-bookworm", &["S11"]),
            ("pip3 install patroni[etcd3]", &["S11"]),
            ("docker service scale patroni-cluster_patroni=4", &["S12"]),
            ("patronictl reinit c patroni-2 --force", &["S14"]),
            ("PATRONI_HEALTH_CHECK_INTERVAL=30", &["S15"]),
            ("recovery_target_time = '$TARGET_TIME'", &["S16"]),
            ("RPO < 5 minutes", &[]),
            ("RPO: 0.5 s, RPO 05", &[]),
            ("docker service scale patroni=0", &[]),
            ("server a 10.0.0.1:5432 check port 8008", &[]),
            ("PATRONI_SUPERUSER_PASSWORD_FILE=/x", &[]),
        ];
        for (text, want) in cases {
            assert_eq!(ids(text, false), *want, "{text}");
        }
        assert_eq!(ids("RPO: 0", true), Vec::<&str>::new());
        assert_eq!(look("plan", "a\nb --master x", false)[0].place, Some(At::new("plan", 2, 1)));
    }
}
