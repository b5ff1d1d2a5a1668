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
    /// Say what is wrong with a configuration and its cluster, worst first, each with its cure
    Doctor(super::DoctorArgs),
    /// List the members of a cluster
    List(ListArgs),
    /// Show the version of this program, and of the members of a cluster
    Version(VersionArgs),
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
        self.watch.or(self.repeat.then_some(Duration::from_secs(2))).filter(|period| !period.is_zero())
    }
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
            match cli.command {
                Command::List(list) => list,
                Command::Version(_) | Command::Doctor(_) => unreachable!("list was asked for"),
            }
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
