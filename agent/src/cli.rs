//! The agent's own command line (config.md 8, 11.1).

use std::path::PathBuf;

use clap::Parser;

use crate::config::{self, LocalConfig, Secrets, Severity, Sources};

/// The version of this program, and of the peer whose contract it keeps.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (patroni 4.1.5 compatible)");

/// High availability for PostgreSQL: the agent of one node.
#[derive(Clone, Debug, Parser)]
#[command(name = "regent", version = VERSION)]
#[command(
    after_help = "Without FILE, or when it does not exist, the configuration is taken from PATRONI_CONFIGURATION, else \
    from the other PATRONI_* variables.\n\nExit status: 0 stopped as asked, 1 cannot start or cannot go on, 2 wrong usage."
)]
pub struct Cli {
    /// Configuration file, or a directory of *.yml and *.yaml files
    #[arg(value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Read the configuration, report everything that is wrong with it, and exit with 1 if anything is
    #[arg(long)]
    pub validate_config: bool,
    /// With --validate-config: do not mind that the listen ports are in use
    #[arg(short, long)]
    pub ignore_listen_port: bool,
    /// Print the configuration in force, each value with the place it comes from; secrets are masked
    #[arg(short, long, visible_alias = "print")]
    pub print_config: bool,
    /// Write a commented sample to FILE, or to standard output
    #[arg(long, conflicts_with_all = ["validate_config", "print_config"])]
    pub generate_sample_config: bool,
    /// Write a configuration for a server that runs already, read from it as a superuser, to FILE, or to standard output
    #[arg(long, conflicts_with_all = ["validate_config", "print_config", "generate_sample_config"])]
    pub generate_config: bool,
    /// With --generate-config: libpq's connection string or URI of the server; the PG* variables say what it leaves out
    #[arg(long, requires = "generate_config")]
    pub dsn: Option<String>,
}

impl Cli {
    /// Where the configuration comes from.
    #[must_use]
    pub fn sources(&self) -> Sources {
        Sources::of_process(self.config.clone())
    }
}

/// `--validate-config`: a line for each thing that was found, and whether the agent would start.
pub async fn validate(sources: &Sources, mind_ports: bool) -> (String, bool) {
    let (mut found, read) = config::check(sources).await;
    found.extend(read.filter(|_| mind_ports).map(|(local, _)| config::ports_in_use(&local)).unwrap_or_default());
    let usable = found.iter().all(|finding| finding.severity != Severity::Error);
    (found.iter().map(|finding| format!("{finding}\n")).collect(), usable)
}

/// `--print-config`: under the copy of the dynamic configuration beside the data, else under `bootstrap.dcs`.
///
/// # Errors
/// What is wrong with the configuration.
pub fn print(sources: &Sources) -> Result<String, String> {
    let local = LocalConfig::load(sources).map_err(|errors| errors.to_string())?;
    let copy = config::read_dynamic_cache(&local.data_dir).map_err(|error| error.to_string())?;
    let source = local.data_dir.join(config::DYNAMIC_CACHE).display().to_string();
    let first = local.bootstrap_dynamic().map_err(|errors| errors.to_string())?;
    let all = config::effective(&local, copy.as_ref().or(Some(&first))).map_err(|errors| errors.to_string())?;
    Ok(config::print_config(&local, &all, copy.as_ref().map(|copy| (copy, source.as_str())), Secrets::Masked))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[tokio::test]
    async fn a_port_that_is_taken_is_named_unless_nobody_minds() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let text = format!(
            "{{scope: a, name: b, restapi: {{listen: '127.0.0.1:{port}'}}, etcd3: {{host: c}}, postgresql: {{listen: \
             '127.0.0.1:1', data_dir: /nonexistent/d}}}}"
        );
        let sources = Sources::new(None, [("PATRONI_CONFIGURATION".to_owned(), text)]);
        let (said, usable) = validate(&sources, true).await;
        assert!(!usable && said.contains(&format!("restapi.listen: Port {port} is already in use.")), "{said}");
        let (said, usable) = validate(&sources, false).await;
        assert!(usable && !said.contains("in use"), "{said}");
    }

    #[test]
    fn arguments_mix_and_wrong_ones_have_status_2() {
        Cli::command().debug_assert();
        let cli = Cli::try_parse_from(["regent", "--validate-config", "/etc/patroni.yml", "-i"]).unwrap();
        assert_eq!(cli.config, Some(PathBuf::from("/etc/patroni.yml")));
        assert!(cli.validate_config && cli.ignore_listen_port);
        for wrong in [vec!["regent", "--bogus"], vec!["regent", "--validate-config", "--generate-sample-config"]] {
            assert_eq!(Cli::try_parse_from(wrong).unwrap_err().exit_code(), 2);
        }
        let version = Cli::try_parse_from(["regent", "--version"]).unwrap_err();
        assert_eq!(version.exit_code(), 0);
        assert_eq!(
            version.to_string().trim(),
            format!("regent {} (patroni 4.1.5 compatible)", env!("CARGO_PKG_VERSION"))
        );
    }
}
