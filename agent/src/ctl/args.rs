//! The command line (cli.md 1, 4).

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Command-line interface for clusters of Regent and Patroni agents on etcd.
#[derive(Debug, Parser)]
#[command(
    name = "regentctl",
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
#[command(
    after_help = "Without -c and PATRONICTL_CONFIG_FILE the file ~/.config/patroni/patronictl.yaml is read if it \
    exists. PATRONI_* variables count as for the agent.\n\nExit status: 0 done, 1 failed (\"Error: ...\" on stderr), \
    2 wrong usage."
)]
pub struct Cli {
    /// Configuration file or directory: usually the agent's own patroni.yml
    #[arg(short = 'c', long, value_name = "FILE", env = "PATRONICTL_CONFIG_FILE", hide_env_values = true)]
    pub config_file: Option<PathBuf>,
    /// The store to connect to, instead of the file's: etcd3://HOST:PORT/NAMESPACE (only HOST is needed)
    #[arg(short = 'd', long, alias = "dcs", value_name = "URL", env = "DCS_URL", hide_env_values = true)]
    pub dcs_url: Option<String>,
    /// Do not verify the certificates of the REST API
    #[arg(short = 'k', long)]
    pub insecure: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Demote cluster to a standby cluster
    DemoteCluster(DemoteClusterArgs),
    /// Generate a dsn for the provided member, defaults to a dsn of the leader
    Dsn(DsnArgs),
    /// Print completions for a shell, or write manual pages
    Docs(DocsArgs),
    /// Say what is wrong with a configuration and its cluster, worst first, each with its cure
    Doctor(super::DoctorArgs),
    /// Edit cluster configuration
    EditConfig(EditConfigArgs),
    /// Say why this one leads, who would come next, and why not the others
    Explain(ExplainArgs),
    /// Failover to a replica
    Failover(FailoverArgs),
    /// Discard scheduled events
    Flush(FlushArgs),
    /// Show the history of failovers/switchovers
    History(HistoryArgs),
    /// List the members of a cluster
    List(ListArgs),
    /// Say what was asked of the agents, and what became of it
    Operations(OperationsArgs),
    /// Disable auto failover
    Pause(PauseArgs),
    /// Promote cluster, make it run standalone
    PromoteCluster(PromoteClusterArgs),
    /// Query a PostgreSQL member
    Query(QueryArgs),
    /// Reinitialize cluster member
    Reinit(ReinitArgs),
    /// Reload cluster member configuration
    Reload(ReloadArgs),
    /// Remove cluster from DCS
    Remove(RemoveArgs),
    /// Restart cluster member
    Restart(RestartArgs),
    /// Resume auto failover
    Resume(PauseArgs),
    /// Show cluster configuration
    ShowConfig(ClusterArgs),
    /// Switchover to a replica
    Switchover(SwitchoverArgs),
    /// Prints ASCII topology for given cluster
    Topology(TopologyArgs),
    /// Show the version of this program, and of the members of a cluster
    Version(VersionArgs),
    /// Watch the members, the lease and the last decisions of each
    Watch(WatchArgs),
}

/// A cluster, by name or by the configuration's scope.
#[derive(Debug, Default, Args)]
pub struct ClusterArgs {
    /// Cluster; the scope of the configuration unless given
    pub cluster_name: Option<String>,
    /// Citus group (not supported)
    #[arg(long, value_name = "N", hide = true)]
    pub group: Option<i64>,
}

/// Members of a cluster that must be named.
#[derive(Debug, Default, Args)]
pub struct MembersArgs {
    /// Cluster
    pub cluster_name: String,
    /// Members; all unless given
    pub member_names: Vec<String>,
    /// Citus group (not supported)
    #[arg(long, value_name = "N", hide = true)]
    pub group: Option<i64>,
    /// Do not ask for confirmation at any point
    #[arg(long)]
    pub force: bool,
}

/// Which members are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Holder of the leader key
    Leader,
    /// The leader, unless it is a standby leader
    #[value(alias = "master")]
    Primary,
    /// The leader of a standby cluster
    StandbyLeader,
    /// Everybody but the leader
    Replica,
    /// Everybody but the leader
    Standby,
    /// Everybody
    Any,
}

/// Arguments of `dsn`.
#[derive(Debug, Default, Args)]
pub struct DsnArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Give a dsn of any member with this role
    #[arg(short, long, value_enum)]
    pub role: Option<Role>,
    /// Generate a dsn for this member
    #[arg(short, long)]
    pub member: Option<String>,
}

/// Arguments of `edit-config`.
#[derive(Debug, Default, Args)]
#[command(
    after_help = "Examples:\n  regentctl edit-config -s ttl=20 -s synchronous_mode=on\n  regentctl edit-config -p \
    max_connections=200 --force\n  regentctl edit-config --apply changes.yml"
)]
pub struct EditConfigArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Do not show changes
    #[arg(short, long)]
    pub quiet: bool,
    /// Set specific configuration value; dotted path, empty value removes
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Set specific PostgreSQL parameter value
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub pg: Vec<String>,
    /// Apply configuration from file (- is stdin)
    #[arg(long, value_name = "FILENAME")]
    pub apply: Option<String>,
    /// Apply configuration from file, replacing existing configuration (- is stdin)
    #[arg(long, value_name = "FILENAME")]
    pub replace: Option<String>,
    /// Do not ask for confirmation at any point
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `docs`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  regentctl docs --completions bash > /etc/bash_completion.d/regentctl\n  regentctl docs --man \
    /usr/local/share/man/man1"
)]
pub struct DocsArgs {
    /// Print what makes this shell complete regentctl's commands and options
    #[arg(long, value_name = "SHELL", required_unless_present = "man")]
    pub completions: Option<clap_complete::Shell>,
    /// Write the manual pages of regentctl and each of its commands into this directory
    #[arg(long, value_name = "DIRECTORY")]
    pub man: Option<std::path::PathBuf>,
}

/// Arguments of `explain`.
#[derive(Debug, Default, Args)]
#[command(
    after_help = "Examples:\n  regentctl explain demo\n  regentctl explain demo pg2\n  curl -s pg1:8008/decisions | \
    regentctl explain --snapshot /dev/stdin"
)]
pub struct ExplainArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Only this member, by its own word
    pub member: Option<String>,
    /// Instead: what the rules of this program decide on an observation that GET /decisions showed
    #[arg(long, value_name = "FILENAME")]
    pub snapshot: Option<std::path::PathBuf>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

/// Arguments of `watch`.
#[derive(Debug, Args)]
pub struct WatchArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Time between two looks (fractions allowed)
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds, default_value = "1")]
    pub every: Duration,
    /// Look so many times, and end
    #[arg(short = 'n', long, value_name = "NUMBER")]
    pub rounds: Option<u32>,
}

/// Arguments of `operations`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  regentctl operations demo\n  regentctl operations demo 1795220293004217 --wait")]
pub struct OperationsArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Only this one, with its phases
    pub id: Option<u64>,
    /// Wait for its end; status 1 unless it is done
    #[arg(short, long, requires = "id")]
    pub wait: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

/// Arguments of `history`.
#[derive(Debug, Default, Args)]
pub struct HistoryArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Output format
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

/// Arguments of `pause` and `resume`.
#[derive(Debug, Default, Args)]
pub struct PauseArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Wait until pause is applied on all nodes
    #[arg(long)]
    pub wait: bool,
}

/// Arguments of `demote-cluster`.
#[derive(Debug, Default, Args)]
pub struct DemoteClusterArgs {
    /// Cluster; the scope of the configuration unless given
    pub cluster_name: Option<String>,
    /// Do not ask for confirmation at any point
    #[arg(long)]
    pub force: bool,
    /// Address of the remote server to follow, or several with commas between
    #[arg(long)]
    pub host: Option<String>,
    /// Port of the remote server
    #[arg(long)]
    pub port: Option<u16>,
    /// Command to restore log from the archive of the remote
    #[arg(long, value_name = "COMMAND")]
    pub restore_command: Option<String>,
    /// Slot on the remote server
    #[arg(long, value_name = "NAME")]
    pub primary_slot_name: Option<String>,
}

/// Arguments of `promote-cluster`.
#[derive(Debug, Default, Args)]
pub struct PromoteClusterArgs {
    /// Cluster; the scope of the configuration unless given
    pub cluster_name: Option<String>,
    /// Do not ask for confirmation at any point
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `query`.
#[derive(Debug, Args)]
pub struct QueryArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Output format
    #[arg(long, value_enum, default_value = "tsv", value_name = "FORMAT")]
    pub format: Format,
    /// Execute the SQL commands from this file (- is stdin)
    #[arg(short, long, value_name = "FILENAME")]
    pub file: Option<String>,
    /// Ask for the password
    #[arg(long)]
    pub password: bool,
    /// Database user name
    #[arg(short = 'U', long)]
    pub username: Option<String>,
    /// Query a member with this role
    #[arg(short, long, value_enum)]
    pub role: Option<Role>,
    /// Query a specific member
    #[arg(short, long)]
    pub member: Option<String>,
    /// The column delimiter
    #[arg(long, default_value = "\t", hide_default_value = true)]
    pub delimiter: String,
    /// The SQL commands to execute
    #[arg(short, long, value_name = "SQL")]
    pub command: Option<String>,
    /// Database name to connect to
    #[arg(short, long)]
    pub dbname: Option<String>,
    /// Repeat every 2 seconds
    #[arg(short = 'W')]
    pub repeat: bool,
    /// Repeat every SECONDS (fractions allowed)
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds)]
    pub watch: Option<Duration>,
}

impl QueryArgs {
    /// As in [`ListArgs::period`].
    #[must_use]
    pub fn period(&self) -> Option<Duration> {
        period(self.watch, self.repeat)
    }
}

/// Arguments of `reinit`.
#[derive(Debug, Default, Args)]
pub struct ReinitArgs {
    #[command(flatten)]
    pub members: MembersArgs,
    /// Take a copy from the leader, from no replica
    #[arg(long)]
    pub from_leader: bool,
    /// Wait until reinitialization completes
    #[arg(long)]
    pub wait: bool,
}

/// Arguments of `reload`.
#[derive(Debug, Default, Args)]
pub struct ReloadArgs {
    #[command(flatten)]
    pub members: MembersArgs,
    /// Reload only members with this role
    #[arg(short, long, value_enum)]
    pub role: Option<Role>,
}

/// Arguments of `restart`.
#[derive(Debug, Default, Args)]
pub struct RestartArgs {
    #[command(flatten)]
    pub members: MembersArgs,
    /// Restart only members with this role
    #[arg(short, long, value_enum)]
    pub role: Option<Role>,
    /// Restart a single random member
    #[arg(long)]
    pub any: bool,
    /// Restart only if a restart is pending
    #[arg(long)]
    pub pending: bool,
    /// Timestamp of a scheduled restart in unambiguous format (e.g. ISO 8601)
    #[arg(long, value_name = "TIMESTAMP")]
    pub scheduled: Option<String>,
    /// Restart if the PostgreSQL version is less than provided (e.g. 9.5.2)
    #[arg(long, value_name = "VERSION")]
    pub pg_version: Option<String>,
    /// Return error and fail over if necessary when restarting takes longer than this
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<String>,
}

/// Arguments of `flush`: the last word is what is discarded.
#[derive(Debug, Default, Args)]
pub struct FlushArgs {
    /// Cluster
    pub cluster_name: String,
    /// Members, and at the end what to discard: restart or switchover
    #[arg(required = true, value_name = "[MEMBER_NAMES]... {restart|switchover}")]
    pub words: Vec<String>,
    /// Flush only members with this role
    #[arg(short, long, value_enum)]
    pub role: Option<Role>,
    /// Citus group (not supported)
    #[arg(long, value_name = "N", hide = true)]
    pub group: Option<i64>,
    /// Do not ask for confirmation at any point
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `remove`.
#[derive(Debug, Default, Args)]
pub struct RemoveArgs {
    /// Cluster
    pub cluster_name: String,
    /// Citus group (not supported)
    #[arg(long, value_name = "N", hide = true)]
    pub group: Option<i64>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

/// Arguments of `switchover`.
#[derive(Debug, Default, Args)]
pub struct SwitchoverArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// The name of the current leader
    #[arg(long, visible_alias = "primary", alias = "master")]
    pub leader: Option<String>,
    /// The name of the candidate
    #[arg(long)]
    pub candidate: Option<String>,
    /// Timestamp of a scheduled switchover in unambiguous format (e.g. ISO 8601)
    #[arg(long, value_name = "TIMESTAMP")]
    pub scheduled: Option<String>,
    /// Say who would take over and what it would cost, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask for confirmation at any point
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `failover`.
#[derive(Debug, Default, Args)]
pub struct FailoverArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// The name of the candidate
    #[arg(long)]
    pub candidate: Option<String>,
    /// Do not ask for confirmation at any point
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `topology`.
#[derive(Debug, Default, Args)]
pub struct TopologyArgs {
    /// Clusters to show; the scope of the configuration unless given
    #[arg(value_name = "CLUSTER_NAMES")]
    pub cluster_names: Vec<String>,
    /// Citus group (not supported)
    #[arg(long, value_name = "N", hide = true)]
    pub group: Option<i64>,
    /// Repeat every 2 seconds
    #[arg(short = 'W')]
    pub repeat: bool,
    /// Repeat every SECONDS (fractions allowed)
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds)]
    pub watch: Option<Duration>,
}

/// Arguments of `list`.
#[derive(Debug, Default, Args)]
#[command(
    after_help = "Reads etcd only: works with every agent down. A dead agent's row stays until its lease ends.\n\n\
    Examples:\n  regentctl -c /etc/patroni/patroni.yml list\n  regentctl -d etcd3://10.0.0.21:2379 list demo -f json"
)]
pub struct ListArgs {
    /// Clusters to list; the scope of the configuration unless given
    #[arg(value_name = "CLUSTER_NAMES")]
    pub cluster_names: Vec<String>,
    /// Citus group (not supported)
    #[arg(long, value_name = "N", hide = true)]
    pub group: Option<i64>,
    /// Show pending restart, scheduled restart and tags even when nobody has any
    #[arg(short, long)]
    pub extended: bool,
    /// Print the time first
    #[arg(short, long)]
    pub timestamp: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
    /// Repeat every 2 seconds
    #[arg(short = 'W')]
    pub repeat: bool,
    /// Repeat every SECONDS (fractions allowed)
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds)]
    pub watch: Option<Duration>,
}

impl ListArgs {
    /// Time between the beginnings of two rounds; `None`: one round. `-w` beats `-W`, and 0 is no watch.
    #[must_use]
    pub fn period(&self) -> Option<Duration> {
        period(self.watch, self.repeat)
    }
}

impl TopologyArgs {
    /// As in [`ListArgs::period`].
    #[must_use]
    pub fn period(&self) -> Option<Duration> {
        period(self.watch, self.repeat)
    }
}

fn period(watch: Option<Duration>, repeat: bool) -> Option<Duration> {
    watch.or(repeat.then_some(Duration::from_secs(2))).filter(|period| !period.is_zero())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    // More than a day between two rounds is a mistake, and fits every clock.
    if !(0.0..=86_400.0).contains(&number) {
        return Err("must be between 0 and 86400 seconds".to_owned());
    }
    Ok(Duration::from_secs_f64(number))
}

/// Output formats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Table
    #[default]
    Pretty,
    /// Fields joined by tabs
    Tsv,
    /// One line of JSON
    Json,
    /// YAML
    Yaml,
    /// YAML
    Yml,
}

/// Arguments of `version`.
#[derive(Debug, Default, Args)]
pub struct VersionArgs {
    /// Cluster whose members are asked
    pub cluster_name: Option<String>,
    /// Members to ask; all unless given
    pub member_names: Vec<String>,
    /// Citus group (not supported)
    #[arg(long, value_name = "N", hide = true)]
    pub group: Option<i64>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn list(words: &str) -> Result<ListArgs, clap::Error> {
        Cli::try_parse_from(["regentctl", "list"].into_iter().chain(words.split_whitespace())).map(|cli| {
            let Command::List(list) = cli.command else { unreachable!("list was asked for") };
            list
        })
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_and_names_mix() {
        let asked = list("demo -e --format=yml other -w 0.5").unwrap();
        assert_eq!(asked.cluster_names, ["demo", "other"]);
        assert_eq!((asked.extended, asked.format), (true, Format::Yml));
        assert_eq!(asked.period(), Some(Duration::from_millis(500)));
        assert_eq!(list("-W").unwrap().period(), Some(Duration::from_secs(2)));
        assert_eq!(list("-W -w 0").unwrap().period(), None);
    }

    #[test]
    fn wrong_usage_has_status_2_and_names_the_word() {
        for (words, named) in
            [("--bogus", "--bogus"), ("-f xml", "xml"), ("-w soon", "soon"), ("-w inf", "inf"), ("-w -1", "-1")]
        {
            let error = list(words).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{words}");
            assert!(error.to_string().contains(named), "{error}");
        }
        assert_eq!(Cli::try_parse_from(["regentctl", "list", "--help"]).unwrap_err().exit_code(), 0);
    }
}
