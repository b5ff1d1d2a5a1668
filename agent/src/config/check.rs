//! Everything that can be said of a configuration, at once (`--validate-config`).

use std::fmt;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::time::Duration;

use regent_pgctl::catalog::{self, Catalog};

use super::effective::Effective;
use super::local::LocalConfig;
use super::node::Node;
use super::section::Report;
use super::sources::Sources;
use super::{ConfigErrors, Problem, address, effective};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The agent does not start with it, or the cluster is not made with it.
    Error,
    /// It does something else than what was written.
    Warning,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is.
    pub problem: Problem,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        match &self.problem.at {
            Some(at) => write!(f, "{at}: {word}: {}", Problem { at: None, ..self.problem.clone() }),
            None => write!(f, "{word}: {}", self.problem),
        }
    }
}

/// How long the installed server may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Reads everything and reports all that is wrong, in the order of the files. With a configuration that could be read, also
/// what it is, under its own `bootstrap.dcs`.
pub async fn check(sources: &Sources) -> (Vec<Finding>, Option<(LocalConfig, Effective)>) {
    let mut report = Report::default();
    let mut read = None;
    match LocalConfig::read(sources, &mut report) {
        Err(ConfigErrors(problems)) => report.problems.extend(problems),
        Ok(mut local) => {
            if let Err(why) = local.ask_server().await {
                report.warnings.push(why);
            }
            let dcs = local.tree.path(&["bootstrap", "dcs"]).filter(|dcs| dcs.is_map());
            unsaid(&local.tree, &mut report);
            if let Some(all) = effective::of_nodes(&local, dcs, &mut report) {
                hooks(&local, dcs, &all, &mut report).await;
                read = Some((local, all));
            }
        }
    }
    let finding = |severity| move |problem| Finding { severity, problem };
    let mut found: Vec<Finding> = report.problems.into_iter().map(finding(Severity::Error)).collect();
    found.extend(report.warnings.into_iter().map(finding(Severity::Warning)));
    found.sort_by(|a, b| a.problem.at.cmp(&b.problem.at));
    found.dedup();
    (found, read)
}

/// What a start can do without, and nobody should: what the peer's validation wants besides.
fn unsaid(tree: &Node, report: &mut Report) {
    let wanted = [
        (&["postgresql"][..], "connect_address", "others are told to connect to this machine itself"),
        (&["restapi"], "connect_address", "others are told to connect to restapi.listen"),
        (
            &["postgresql", "authentication", "superuser"],
            "username",
            "the name of the operating system's user is taken",
        ),
        (
            &["postgresql", "authentication", "replication"],
            "username",
            "the name of the operating system's user is taken",
        ),
    ];
    let old_form = tree.path(&["postgresql", "superuser"]).is_some();
    for (section, name, what) in wanted {
        let above = (1..=section.len()).rev().find_map(|depth| tree.path(section.get(..depth)?));
        let there = tree.path(section).is_some_and(|node| node.get(name).is_some());
        if !(there || name == "username" && old_form) {
            let key = format!("{}.{name}", section.join("."));
            let at = above.map(|node| node.at.clone());
            report.warnings.push(Problem { at, key, what: format!("is not defined; {what}") });
        }
    }
    for (switch, number) in [("nofailover", "failover_priority"), ("nosync", "sync_priority")] {
        if let (Some(_), Some(second)) = (tree.path(&["tags", switch]), tree.path(&["tags", number])) {
            report.warn(
                &second.at,
                &format!("tags.{number}"),
                format!("{switch} is set too, and wins; keep one of them"),
            );
        }
    }
}

/// Ports that somebody listens on already. Not a part of [`check`]: where the agent runs, they are its own.
#[must_use]
pub fn ports_in_use(local: &LocalConfig) -> Vec<Finding> {
    let mut found = Vec::new();
    for (section, default) in [("restapi", None), ("postgresql", Some(5432))] {
        let Some(node) = local.tree.path(&[section, "listen"]) else { continue };
        let Some((hosts, port)) = node.written().and_then(|text| address::split(&text, default).ok()) else { continue };
        let taken = hosts.iter().any(|host| {
            let host = if matches!(host.as_str(), "" | "*") { "0.0.0.0" } else { host };
            TcpListener::bind((host, port)).is_err_and(|error| error.kind() == ErrorKind::AddrInUse)
        });
        if taken {
            let what =
                format!("Port {port} is already in use. If that is the agent or its PostgreSQL, validate with -i");
            found.push(Finding {
                severity: Severity::Error,
                problem: Problem::at(&node.at, &format!("{section}.listen"), what),
            });
        }
    }
    found
}

impl LocalConfig {
    /// Learns the parameters of the installed server: from then on they are checked before they are written anywhere.
    ///
    /// # Errors
    /// Why it could not be asked; parameters are then written unchecked, as they were.
    pub async fn ask_server(&mut self) -> Result<(), Problem> {
        match Catalog::ask(&self.programs(), ANSWER).await {
            Ok(catalog) => {
                self.catalog = Some(catalog.into());
                Ok(())
            }
            Err(error) => {
                let at = self.tree.path(&["postgresql", "bin_dir"]).map(|node| node.at.clone());
                let what = format!("the parameters of PostgreSQL are not checked: {error}");
                Err(Problem { at, key: "postgresql.bin_dir".to_owned(), what })
            }
        }
    }
}

/// What only the server itself can tell of the values that are left.
async fn hooks(local: &LocalConfig, dcs: Option<&Node>, all: &Effective, report: &mut Report) {
    if local.catalog.is_none() {
        return;
    }
    let settings = all.postgres.parameters.iter().filter(|(name, _)| !name.ends_with("_file"));
    let settings = settings.map(|(name, value)| (name.as_str(), value.clone()));
    let Ok(refused) = catalog::refusals(&local.programs(), ANSWER, settings).await else { return };
    for (name, what) in refused {
        let below = |tree: &Node, path: &[&str]| {
            let entries = tree.path(path).map(Node::entries).unwrap_or_default();
            entries.iter().find(|entry| entry.key.eq_ignore_ascii_case(&name)).map(|entry| entry.value.at.clone())
        };
        let at = below(&local.tree, &["postgresql", "parameters"])
            .or_else(|| dcs.and_then(|dcs| below(dcs, &["postgresql", "parameters"])));
        let what = format!("PostgreSQL would not start with it: {what}");
        report.problems.push(Problem { at, key: format!("postgresql.parameters.{name}"), what });
    }
}
