//! PostgreSQL's parameters, as the installed server knows them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regent_pgctl::catalog::{Catalog, Verdict, refusals};
use regent_pgctl::settings::Programs;

use crate::{MINIMAL, findings};

const LIMIT: Duration = Duration::from_secs(30);

/// The newest installed server. The tests of this file need one, as the others of real processes do.
fn in_dir(dir: &Path) -> Programs {
    Programs { dir: Some(dir.to_owned()), ..Programs::default() }
}

pub(crate) fn bin_dir() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed (make packages)");
    let mut found: Vec<PathBuf> = versions.map(|entry| entry.unwrap().path().join("bin")).collect();
    found.retain(|bin| bin.join("postgres").exists());
    found.sort();
    found.pop().expect("PostgreSQL is installed (make packages)")
}

/// What each parameter is given that the server itself would not take, and what it would.
async fn judged_alike(bin: &Path, catalog: &Catalog, kind: &str, values: Vec<(String, String)>, good: bool) {
    let settings = values.iter().map(|(name, value)| (name.as_str(), value.clone()));
    let refused: BTreeSet<String> =
        refusals(&in_dir(bin), LIMIT, settings).await.unwrap().into_iter().map(|(name, _)| name).collect();
    for (name, value) in &values {
        let taken = catalog.judge(name, value) == Verdict::Good;
        assert_eq!(
            taken,
            !refused.contains(name),
            "{kind}: {name} = {value:?}, the server's word against the catalog's"
        );
        assert_eq!(taken, good, "{kind}: {name} = {value:?}");
    }
}

#[tokio::test]
async fn every_parameter_of_the_installed_server_is_judged_as_it_does() {
    let bin = bin_dir();
    let catalog = Catalog::ask(&in_dir(&bin), LIMIT).await.unwrap();
    let good: Vec<(String, String)> = catalog.good_values().map(|(name, value)| (name.to_owned(), value)).collect();
    assert!(good.len() > 200, "{}", good.len());
    let with = |value: &dyn Fn(&str) -> String| good.iter().map(|(n, v)| (n.clone(), value(v))).collect::<Vec<_>>();
    judged_alike(&bin, &catalog, "good value", good.clone(), true).await;
    judged_alike(&bin, &catalog, "wrong unit", with(&|value| format!("{value} XB")), false).await;
    judged_alike(&bin, &catalog, "text for a number", with(&|_| "nonsense".to_owned()), false).await;
    let numbers = |value: &str| value.parse::<f64>().is_ok();
    let empty = good.iter().filter(|(_, value)| numbers(value)).map(|(name, _)| (name.clone(), String::new()));
    judged_alike(&bin, &catalog, "empty", empty.collect(), false).await;
    let beyond = good.iter().filter(|(_, value)| numbers(value));
    let beyond = beyond.map(|(name, value)| (name.clone(), (value.parse::<f64>().unwrap() - 1.0).to_string()));
    judged_alike(&bin, &catalog, "out of range", beyond.collect(), false).await;
    let names: Vec<&str> = catalog.names().collect();
    assert!(names.len() > 280, "{}", names.len());
    for name in names {
        let misspelt = format!("{name}x");
        assert_eq!(catalog.judge(&misspelt, "1"), Verdict::Unknown, "{misspelt}");
    }
}

#[test]
fn what_the_server_would_not_take_is_found_in_the_file() {
    let bin = bin_dir();
    let parameters = "
  parameters:
    work_mem: 5XB
    work_memm: 4MB
    Effective_IO_Concurrency: 2000
    fsync: maybe
    wal_compression: sometimes
    max_connections: 500
    synchronous_standby_names: FIRST (a-b)
    shared_buffers: 128MB
    my.own: anything
    timezone: Middle/Earth
";
    let head = MINIMAL.split_once("postgresql:").unwrap().0;
    let text = format!(
        "{head}postgresql:\n  listen: 127.0.0.1:5432\n  connect_address: 127.0.0.1:5432\n  data_dir: /pg/data\n  bin_dir: {}\n  \
         authentication: {{superuser: {{username: a}}, replication: {{username: b}}}}{parameters}",
        bin.display()
    );
    let found = findings(&text);
    let wanted = [
        "patroni.yml:14:15: warning: postgresql.parameters.work_mem: Removing integer parameter=work_mem from the config due to \
         the invalid value=5XB; write a whole number from 64 to 2147483647 (kB), or with the unit B, kB, MB, GB or TB",
        "patroni.yml:15:5: warning: postgresql.parameters.work_memm: Removing unexpected parameter=work_memm from the config; \
         did you mean work_mem?",
        "Value=2000 of parameter=effective_io_concurrency is out of range, taking 1000",
        "Removing bool parameter=fsync",
        "Removing enum parameter=wal_compression from the config due to the invalid value=sometimes; write one of pglz",
        "patroni.yml:20:32: error: postgresql.parameters.synchronous_standby_names: PostgreSQL would not start with it",
        "patroni.yml:23:15: error: postgresql.parameters.timezone: PostgreSQL would not start with it",
    ];
    assert_eq!(found.len(), wanted.len(), "{found:#?}");
    for (line, part) in found.iter().zip(wanted) {
        assert!(line.contains(part), "{line}\nhas no\n{part}");
    }
}

/// The REST API refuses what this list has (`PATCH /config`).
#[tokio::test]
async fn what_the_server_would_not_take_is_invalid_in_the_dynamic_configuration() {
    let text = crate::with("postgresql.bin_dir", &format!("'{}'", bin_dir().display()));
    let mut local = crate::load(&text).unwrap().0;
    local.ask_server().await.unwrap();
    let invalid = |name: &str, value: &str| {
        let dynamic = serde_json::json!({"postgresql": {"parameters": {name: value}}});
        regent::config::effective(&local, Some(&dynamic)).unwrap().invalid
    };
    for (name, value) in [
        ("work_mem", "5XB"),
        ("work_memm", "5MB"),
        ("effective_io_concurrency", "2000"),
        ("fsync", "2"),
        ("max_connections", "x"),
    ] {
        assert_eq!(invalid(name, value).len(), 1, "{name}={value}");
    }
    for (name, value) in [("work_mem", "5MB"), ("fsync", "off"), ("max_connections", "50"), ("my.own", "x")] {
        assert_eq!(invalid(name, value), [], "{name}={value}");
    }
}
