//! `doctor`: what is wrong with a configuration, its cluster and the files around them, worst first, each with its cure.

mod plans;

use std::path::PathBuf;

use clap::Args;
use regent_core::contract::{Contract, contract};
use regent_dcs::{Dcs, Read};
use serde_json::Value;

use super::{Cli, CtlError, READ, configuration, default_file};
use crate::config::{self, Advice, ControlConfig, Effective, LocalConfig, Sources, Weight};

/// Arguments of `doctor`.
#[derive(Debug, Default, Args)]
#[command(
    after_help = "Reads the agent's configuration (-c), etcd, and nothing else; changes nothing. Exit status: 0, or 1 with dangers.\n\n\
    Example:\n  regentctl -c /etc/patroni/patroni.yml doctor docker-compose.yml haproxy.cfg alerts.yml RUNBOOK.md"
)]
pub struct DoctorArgs {
    /// Other files to look through: compose files, HAProxy's configuration, alerts, runbooks
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// Looks at everything; what is to be said, and how many dangers are in it.
pub(super) async fn examine<D: Dcs>(
    cli: &Cli,
    asked: &DoctorArgs,
    connect: impl AsyncFn(&ControlConfig, &str) -> Result<D, CtlError>,
) -> Result<(String, usize), CtlError> {
    let given = cli.config_file.clone().filter(|path| !path.as_os_str().is_empty());
    if let Some(missing) = given.as_ref().filter(|path| !path.exists()) {
        return Err(CtlError::ConfigFile(missing.clone()));
    }
    let sources = Sources::of_process(given.or_else(default_file));
    let (findings, read) = config::check(&sources).await;
    let mut advice: Vec<Advice> = findings.iter().map(Advice::of_finding).collect();
    let mut promise = Contract::default();
    if let Some((local, first)) = &read {
        let cluster = match configuration(cli) {
            Ok(control) => {
                async { connect(&control, &local.scope).await?.read(READ).await.map_err(CtlError::from) }.await
            }
            Err(error) => Err(error),
        };
        promise = match &cluster {
            Ok(read) => of_cluster(local, first, read, &mut advice),
            Err(error) => {
                advice.push(bare(
                    Weight::Danger,
                    format!("the cluster was not looked at: {}", error.line().trim_start_matches("Error: ")),
                    "make etcd answer; what follows is said of the configuration alone",
                ));
                let promise = contract(&first.core, None);
                advice.extend(config::advise(local, first, &promise));
                promise
            }
        };
    }
    for file in &asked.files {
        match std::fs::read(file) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                advice.extend(plans::look(&file.display().to_string(), &text, promise.rpo_zero));
            }
            Err(error) => {
                advice.push(bare(
                    Weight::Warning,
                    format!("{}: {error}", file.display()),
                    "name a file that can be read",
                ));
            }
        }
    }
    Ok(shown(advice, &promise))
}

fn bare(weight: Weight, what: String, cure: &str) -> Advice {
    Advice { weight, id: "", place: None, what, cure: cure.to_owned() }
}

/// What etcd says, and the configuration that is really in force.
fn of_cluster(local: &LocalConfig, first: &Effective, read: &Read, advice: &mut Vec<Advice>) -> Contract {
    let live = read.config.as_ref().map(|dynamic| config::effective(local, Some(dynamic)));
    let all = match &live {
        Some(Ok(all)) => all,
        Some(Err(errors)) => {
            let what = format!("the dynamic configuration in etcd cannot be used: {errors}");
            advice.push(bare(Weight::Danger, what, "correct it with edit-config"));
            first
        }
        None => first,
    };
    let promise = contract(&all.core, Some(&read.view));
    advice.extend(config::advise(local, all, &promise));
    let members = &read.view.members;
    if read.view.leader.is_none() && !members.is_empty() {
        advice.push(bare(
            Weight::Danger,
            "the cluster has no leader".to_owned(),
            "see the log of each agent for its reason",
        ));
    }
    if let Some(other) = members.get(&all.core.name).filter(|member| member.conn_url.as_ref() != Some(&all.conn_url)) {
        let what = format!(
            "the name {} is held by a member at {}, and this configuration is of one at {}",
            local.name,
            other.conn_url.as_deref().unwrap_or("an unknown address"),
            all.conn_url
        );
        let cure = "give each member its own name (PATRONI_NAME)";
        advice.push(Advice { id: "S12", ..bare(Weight::Danger, what, cure) });
    }
    let written = local.bootstrap_dynamic().ok();
    if let (Some(Value::Object(written)), Some(Value::Object(live))) = (&written, &read.config) {
        let differs: Vec<_> =
            written.iter().filter(|(key, value)| live.get(*key) != Some(*value)).map(|(key, _)| key.as_str()).collect();
        if !differs.is_empty() {
            let what = format!(
                "bootstrap.dcs differs from the dynamic configuration, and has no effect any more: {}",
                differs.join(", ")
            );
            advice.push(bare(Weight::Note, what, "change the dynamic configuration (edit-config), not the file"));
        }
    }
    promise
}

/// Worst first.
fn shown(mut advice: Vec<Advice>, promise: &Contract) -> (String, usize) {
    advice.sort();
    advice.dedup();
    let mut out = String::new();
    if !promise.sentence.is_empty() {
        out.push_str(&format!("If the primary dies now: {}.\n\n", promise.sentence));
    }
    for Advice { weight, id, place, what, cure } in &advice {
        let word = match weight {
            Weight::Danger => "DANGER",
            Weight::Warning => "WARNING",
            Weight::Note => "NOTE",
        };
        let place = place.as_ref().map(|at| format!("{at}: ")).unwrap_or_default();
        out.push_str(&format!("{word:<8}{id:<4}{place}{what}\n            cure: {cure}\n"));
    }
    let count = |weight| advice.iter().filter(|one| one.weight == weight).count();
    let (dangers, warnings) = (count(Weight::Danger), count(Weight::Warning));
    out.push_str(&format!("{dangers} dangers, {warnings} warnings, {} notes\n", count(Weight::Note)));
    (out, dangers)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;

    use clap::Parser;
    use regent_core::cluster::{ClusterView, LeaderKey, Member};
    use regent_core::units::Revision;
    use regent_dcs::etcd::EtcdDcs;

    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/seeds").join(name)
    }

    /// What is said while etcd cannot be reached.
    async fn said(config: &Path, files: &[PathBuf]) -> String {
        let files = files.iter().map(|file| file.display().to_string());
        let words = ["regentctl", "-c", &config.display().to_string(), "doctor"].map(str::to_owned);
        let cli = Cli::parse_from(words.into_iter().chain(files));
        let crate::ctl::Command::Doctor(asked) = &cli.command else { panic!("doctor was asked for") };
        let connect =
            async |_: &ControlConfig, _: &str| Err::<EtcdDcs, _>(CtlError::Connect("nobody there".to_owned()));
        let (found, dangers) = examine(&cli, asked, connect).await.unwrap();
        assert_eq!(dangers, found.lines().filter(|line| line.starts_with("DANGER")).count(), "{found}");
        found
    }

    fn ids(said: &str) -> BTreeSet<&str> {
        let ids = said.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()));
        ids.filter_map(|line| line.split_whitespace().nth(1)).filter(|word| word.starts_with('S')).collect()
    }

    #[tokio::test]
    async fn every_mistake_of_the_plans_is_named_with_its_place_and_cure() {
        let as_it_stands = said(&fixture("compose.yml"), &[]).await;
        assert!(ids(&as_it_stands).contains("S5"), "{as_it_stands}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("patroni.yml");
        let text = std::fs::read_to_string(fixture("compose.yml")).unwrap();
        std::fs::write(&path, text.replace("_PASSWORD}", "_PASSWORD:-CANARY}")).unwrap();
        let said = said(&path, &[fixture("plan.md")]).await;
        let want = ["S1", "S2", "S4", "S5", "S6", "S7", "S8", "S9", "S10", "S11", "S12", "S13", "S14", "S15", "S16"];
        assert_eq!(ids(&said), BTreeSet::from(want), "{said}");
        assert!(said.starts_with("If the primary dies now: nothing that was acknowledged is lost while"), "{said}");
        assert!(
            said.contains("WARNING S2  ") && said.contains("patroni.yml:24:30: nothing that was acknowledged"),
            "{said}"
        );
        assert!(!said.contains("CANARY"), "{said}");
        let weights: Vec<&str> = said.lines().filter_map(|line| line.split_whitespace().next()).collect();
        let first = |word| weights.iter().position(|one| *one == word).unwrap();
        assert!(first("DANGER") < first("WARNING") && first("WARNING") < first("NOTE"), "{said}");
    }

    #[tokio::test]
    async fn the_other_seeds_have_their_findings() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(fixture("swarm.yml"), dir.path().join("a.yml")).unwrap();
        std::fs::copy(fixture("parameters.yml"), dir.path().join("b.yml")).unwrap();
        let both = said(dir.path(), &[]).await;
        assert!(ids(&both).is_superset(&BTreeSet::from(["S1", "S3", "S4"])), "{both}");
        let ansible = said(&fixture("ansible.yml"), &[]).await;
        assert!(ids(&ansible).contains("S4"), "{ansible}");
    }

    #[tokio::test]
    async fn a_cluster_that_is_not_what_the_file_says_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("patroni.yml");
        let text = "{scope: demo, name: pg1, restapi: {listen: '127.0.0.1:8008'}, etcd3: {host: '127.0.0.1:2379'},
            bootstrap: {dcs: {ttl: 20, pause: false}}, postgresql: {listen: '127.0.0.1:5432', data_dir: /pg}}";
        std::fs::write(&path, text).unwrap();
        let (_, read) = config::check(&Sources::new(Some(path), [])).await;
        let (local, first) = read.unwrap();
        let member = |host: &str| Member { conn_url: Some(format!("postgres://{host}/postgres")), ..Member::default() };
        let members = BTreeMap::from([("pg1".into(), member("10.0.0.9:5432"))]);
        let look = |view: ClusterView| {
            let config = Some(serde_json::json!({"ttl": 30, "pause": false, "synchronous_mode": true}));
            let read = Read { view, config, history: None, members: BTreeMap::new() };
            let mut advice = Vec::new();
            let promise = of_cluster(&local, &first, &read, &mut advice);
            (shown(advice, &promise).0, promise)
        };
        let (said, promise) = look(ClusterView { members: members.clone(), ..ClusterView::default() });
        for part in
            ["no leader", "S12 the name pg1 is held by a member at postgres://10.0.0.9", "any more: ttl\n", "S2"]
        {
            assert!(said.contains(part), "{said} has no {part}");
        }
        assert!(!promise.rpo_zero && promise.sentence.contains("no synchronous standby now"), "{promise:?}");
        let leader = Some(LeaderKey { name: "pg1".into(), lease: None, modified: Revision(1) });
        let members = BTreeMap::from([("pg1".into(), member("localhost:5432"))]);
        let (said, _) = look(ClusterView { leader, members, ..ClusterView::default() });
        assert!(!said.contains("S12") && !said.contains("no leader"), "{said}");
    }
}
