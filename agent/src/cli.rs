//! The agent's own command line (config.md 8, 11.1).

use std::path::PathBuf;

use clap::Parser;

use crate::config::{ConfigErrors, LocalConfig, Sources, effective};

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
}

impl Cli {
    /// Where the configuration comes from.
    #[must_use]
    pub fn sources(&self) -> Sources {
        Sources::of_process(self.config.clone())
    }
}

/// `--validate-config`: warnings when the agent could start, all that is wrong when it could not.
///
/// # Errors
/// Everything that would prevent a start, or the use of `bootstrap.dcs`.
pub fn validate(sources: &Sources) -> Result<Vec<String>, ConfigErrors> {
    let local = LocalConfig::load(sources)?;
    let dynamic = local.bootstrap_dynamic()?;
    let all = effective(&local, Some(&dynamic))?;
    Ok(local.warnings.into_iter().chain(all.warnings).collect())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn arguments_mix_and_wrong_ones_have_status_2() {
        Cli::command().debug_assert();
        let cli = Cli::try_parse_from(["regent", "--validate-config", "/etc/patroni.yml", "-i"]).unwrap();
        assert_eq!(cli.config, Some(PathBuf::from("/etc/patroni.yml")));
        assert!(cli.validate_config && cli.ignore_listen_port);
        assert_eq!(Cli::try_parse_from(["regent", "--bogus"]).unwrap_err().exit_code(), 2);
        let version = Cli::try_parse_from(["regent", "--version"]).unwrap_err();
        assert_eq!(version.exit_code(), 0);
        assert_eq!(
            version.to_string().trim(),
            format!("regent {} (patroni 4.1.5 compatible)", env!("CARGO_PKG_VERSION"))
        );
    }

    #[test]
    fn validation_tells_what_is_wrong_and_what_only_looks_so() {
        let text = "
scope: demo
name: pg1
restapi: {listen: '127.0.0.1:8008'}
etcd3: {host: '127.0.0.1:2379'}
bootstrap: {dcs: {ttl: 30, max_timelines_history: 3}}
postgresql: {listen: '127.0.0.1:5432', data_dir: /pg/data}
";
        let of = |text: &str| Sources::new(None, [("PATRONI_CONFIGURATION".to_owned(), text.to_owned())]);
        assert_eq!(
            validate(&of(text)),
            Ok(vec!["not supported yet: max_timelines_history; they have no effect".to_owned()])
        );
        let errors = validate(&of(&text.replace("ttl: 30", "ttl: 30s"))).unwrap_err().to_string();
        assert!(errors.contains("bootstrap.dcs.ttl"), "{errors}");
    }
}
