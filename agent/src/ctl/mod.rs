//! `regentctl`: what an operator sees and asks of a cluster (contract `cli.md`).
//!
//! Output for stdout is made as text and tested byte by byte; only [`run`] writes it.

mod args;
mod ask;
mod cluster;
mod config;
mod diff;
mod docs;
mod doctor;
mod explain;
mod list;
mod members;
mod moment;
mod operations;
mod output;
mod query;
mod rest;
mod standby;
mod store;
mod switchover;
mod table;
mod version;
mod yaml_writer;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use regent_dcs::{Dcs, DcsError};

pub use args::{Cli, Command, Format, ListArgs, VersionArgs};
use args::{ClusterArgs, MembersArgs};
pub use ask::ask_secretly;
use cluster::Cluster;
pub use doctor::DoctorArgs;
pub use list::{ClusterTable, MemberTable};
pub(crate) use query::one_line;
use rest::Rest;
pub(crate) use yaml_writer::to_flow;
pub use yaml_writer::to_yaml;

use crate::config::{ConfigErrors, ControlConfig, Sources, store_path};

/// How long a read of etcd may take; the peer would wait for ever (cli.md 10).
const READ: Duration = Duration::from_secs(10);

/// Why a command ended early. Shown as `Error: ...`, exit status 1.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// A file was named and is not there.
    #[error("Provided config file {0} not existing or no read rights. Check the -c/--config-file parameter")]
    ConfigFile(PathBuf),
    /// The configuration cannot be used.
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    /// `-d` is no URL of a store.
    #[error("{0}")]
    StoreUrl(String),
    /// etcd did not answer.
    #[error("{0}")]
    Dcs(#[from] DcsError),
    /// The connection could not be set up.
    #[error("cannot connect to etcd: {0}")]
    Connect(String),
    /// An option that means nothing without Citus.
    #[error("Citus clusters are not supported: --group cannot be used")]
    Group,
    /// stdout is closed.
    #[error("cannot write the output: {0}")]
    Output(#[from] std::io::Error),
    /// It cannot be done, in the contract's words.
    #[error("{0}")]
    Failed(String),
    /// The words of the command line do not fit together: status 2.
    #[error("{0}")]
    Usage(String),
    /// `doctor` found something that must not stay so; it is printed.
    #[error("{0} dangers")]
    Dangers(usize),
    /// No answer to a question: the end of the input, or Ctrl-C.
    #[error("Aborted!")]
    Unanswered,
    /// Ctrl-C anywhere else.
    #[error("Aborted!")]
    Interrupted,
}

impl CtlError {
    /// The line for stderr.
    #[must_use]
    pub fn line(&self) -> String {
        match self {
            CtlError::Unanswered => self.to_string(),
            CtlError::Interrupted => format!("\n{self}"),
            CtlError::ConfigFile(_)
            | CtlError::Config(_)
            | CtlError::StoreUrl(_)
            | CtlError::Dcs(_)
            | CtlError::Connect(_)
            | CtlError::Group
            | CtlError::Failed(_)
            | CtlError::Dangers(_)
            | CtlError::Usage(_)
            | CtlError::Output(_) => format!("Error: {self}"),
        }
    }

    /// The exit status.
    #[must_use]
    pub fn status(&self) -> u8 {
        if matches!(self, CtlError::Usage(_)) { 2 } else { 1 }
    }
}

/// Carries out one command. `connect` makes the way to one cluster in etcd, whose path is `namespace/scope`.
///
/// # Errors
/// [`CtlError`]; the caller prints [`CtlError::line`] to stderr and exits with status 1.
pub async fn run<D: Dcs>(
    cli: &Cli,
    connect: impl AsyncFn(&ControlConfig, &str) -> Result<D, CtlError>,
) -> Result<(), CtlError> {
    let way = async |scope: Option<&String>, group: Option<i64>| {
        refuse_group(group)?;
        let config = configuration(cli)?;
        let scope = scope.or(config.scope.as_ref()).cloned();
        let missing = || CtlError::Failed("cluster name is missing: give one, or set scope".to_owned());
        let scope = scope.ok_or_else(missing)?;
        Ok::<_, CtlError>(Cluster { dcs: connect(&config, &scope).await?, rest: Rest::new(&config.ctl), scope })
    };
    let of = async |cluster: &ClusterArgs| way(cluster.cluster_name.as_ref(), cluster.group).await;
    let of_members = async |members: &MembersArgs| way(Some(&members.cluster_name), members.group).await;
    match &cli.command {
        Command::DemoteCluster(asked) => way(asked.cluster_name.as_ref(), None).await?.demote_cluster(asked).await,
        Command::PromoteCluster(asked) => way(asked.cluster_name.as_ref(), None).await?.promote_cluster(asked).await,
        Command::Dsn(asked) => of(&asked.cluster).await?.dsn(asked).await,
        Command::EditConfig(asked) => of(&asked.cluster).await?.edit_config(asked).await,
        Command::Docs(asked) => docs::make(asked),
        Command::Explain(asked) => match &asked.snapshot {
            Some(path) => print(&explain::of_snapshot(path)?),
            None => of(&asked.cluster).await?.explain(asked).await,
        },
        Command::Watch(asked) => of(&asked.cluster).await?.look_on(asked).await,
        Command::Failover(asked) => of(&asked.cluster).await?.failover(asked).await,
        Command::Flush(asked) => way(Some(&asked.cluster_name), asked.group).await?.flush(asked).await,
        Command::Operations(asked) => of(&asked.cluster).await?.operations(asked).await,
        Command::History(asked) => of(&asked.cluster).await?.history(asked.format).await,
        Command::Pause(asked) => of(&asked.cluster).await?.pause(true, asked.wait).await,
        Command::Resume(asked) => of(&asked.cluster).await?.pause(false, asked.wait).await,
        Command::Query(asked) => of(&asked.cluster).await?.query(asked).await,
        Command::Reinit(asked) => of_members(&asked.members).await?.reinit(asked).await,
        Command::Reload(asked) => of_members(&asked.members).await?.reload(asked).await,
        Command::Remove(asked) => way(Some(&asked.cluster_name), asked.group).await?.remove(asked.format).await,
        Command::Restart(asked) => of_members(&asked.members).await?.restart(asked).await,
        Command::ShowConfig(asked) => of(asked).await?.show_config().await,
        Command::Switchover(asked) => of(&asked.cluster).await?.switchover(asked).await,
        Command::List(list) => {
            let show = |table: &ClusterTable| table.show(list.format, list.extended);
            let clusters = clusters(cli, &list.cluster_names, list.group, &connect).await?;
            rounds(list.period(), list.timestamp, &clusters, show).await
        }
        Command::Topology(asked) => {
            let clusters = clusters(cli, &asked.cluster_names, asked.group, &connect).await?;
            rounds(asked.period(), false, &clusters, ClusterTable::topology).await
        }
        Command::Doctor(asked) => {
            let (found, dangers) = doctor::examine(cli, asked, connect).await?;
            print(&found)?;
            if dangers == 0 { Ok(()) } else { Err(CtlError::Dangers(dangers)) }
        }
        Command::Version(asked) => {
            print(&version::own(std::env::args_os().next().as_deref()))?;
            if asked.cluster_name.is_none() {
                return refuse_group(asked.group);
            }
            let cluster = way(asked.cluster_name.as_ref(), asked.group).await?;
            let read = cluster.read().await?;
            print(&version::of_members(&cluster.rest, &read.members, &asked.member_names).await)
        }
    }
}

/// The named clusters, else the one of the configuration; none is worth a warning.
async fn clusters<D: Dcs>(
    cli: &Cli,
    names: &[String],
    group: Option<i64>,
    connect: impl AsyncFn(&ControlConfig, &str) -> Result<D, CtlError>,
) -> Result<Vec<(D, String)>, CtlError> {
    let config = configuration(cli)?;
    refuse_group(group)?;
    let scopes = if names.is_empty() { config.scope.iter().cloned().collect() } else { names.to_vec() };
    if scopes.is_empty() {
        warn("Listing members: No cluster names were provided");
    }
    let mut clusters = Vec::new();
    for scope in scopes {
        clusters.push((connect(&config, &scope).await?, scope));
    }
    Ok(clusters)
}

/// Repeats the tables as long as `-W` or `-w` asks for it.
async fn rounds<D: Dcs>(
    period: Option<Duration>,
    timestamp: bool,
    clusters: &[(D, String)],
    show: impl Fn(&ClusterTable) -> String,
) -> Result<(), CtlError> {
    if clusters.is_empty() {
        return Ok(());
    }
    loop {
        let started = tokio::time::Instant::now();
        let mut text = String::new();
        if timestamp {
            text.push_str(&format!("{}\n", jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S")));
        }
        for (dcs, scope) in clusters {
            let read = interruptible(dcs.read(READ)).await??;
            text.push_str(&show(&ClusterTable::of_read(scope, &read)));
        }
        if period.is_some() && std::io::stdout().is_terminal() {
            text.insert_str(0, "\u{1b}[2J\u{1b}[1;1H");
        }
        print(&text)?;
        let Some(period) = period else { return Ok(()) };
        interruptible(tokio::time::sleep_until(started + period)).await?;
    }
}

/// Ctrl-C ends with a word and status 1; SIGTERM ends the process as it is.
async fn interruptible<T>(work: impl Future<Output = T>) -> Result<T, CtlError> {
    tokio::select! {
        biased;
        _ = tokio::signal::ctrl_c() => Err(CtlError::Interrupted),
        done = work => Ok(done),
    }
}

/// An error in the contract's words.
fn fail<T>(why: &str) -> Result<T, CtlError> {
    Err(CtlError::Failed(why.to_owned()))
}

fn print(text: &str) -> Result<(), CtlError> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

/// A line of the program's own log, in the peer's form, unless `LOGLEVEL` and the like ask for errors only.
fn warn(text: &str) {
    let level =
        ["PATRONI_LOG_LEVEL", "PATRONI_LOGLEVEL", "LOGLEVEL"].into_iter().find_map(|name| std::env::var(name).ok());
    let level = level.and_then(|level| crate::config::log_level(&level.to_ascii_uppercase()));
    if level.is_none_or(|level| level >= tracing::level_filters::LevelFilter::WARN) {
        let time = jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S,%3f").to_string();
        // There is nobody left to tell that stderr is closed.
        let _ = writeln!(std::io::stderr(), "{time} - WARNING - {text}");
    }
}

fn refuse_group(group: Option<i64>) -> Result<(), CtlError> {
    if group.is_some() { Err(CtlError::Group) } else { Ok(()) }
}

/// `-c`, `PATRONICTL_CONFIG_FILE`, the default file, and `PATRONI_*` over them (cli.md 1.1).
fn configuration(cli: &Cli) -> Result<ControlConfig, CtlError> {
    let given = cli.config_file.clone().filter(|path| !path.as_os_str().is_empty());
    if let Some(path) = &given {
        let readable = if path.is_dir() { std::fs::read_dir(path).is_ok() } else { std::fs::File::open(path).is_ok() };
        if !readable {
            return Err(CtlError::ConfigFile(path.clone()));
        }
    }
    let file = given.or_else(default_file);
    let url = cli.dcs_url.as_deref().filter(|url| !url.is_empty());
    let store = url.map(store::parse).transpose().map_err(CtlError::StoreUrl)?;
    let mut config = ControlConfig::load(&Sources::of_process(file), store)?;
    config.ctl.insecure |= cli.insecure;
    Ok(config)
}

fn default_file() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty())?;
    Some(PathBuf::from(home).join(".config/patroni/patronictl.yaml")).filter(|path| path.exists())
}

/// Where a cluster lives in etcd, for the function that connects.
#[must_use]
pub fn cluster_path(config: &ControlConfig, scope: &str) -> String {
    store_path(&config.namespace, scope)
}
