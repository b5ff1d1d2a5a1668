//! `docs`: completions and manual pages, made of the same definitions as the command line itself.

use clap::CommandFactory;

use super::args::{Cli, DocsArgs};
use super::{CtlError, print};

/// Prints or writes what is asked for.
pub(super) fn make(asked: &DocsArgs) -> Result<(), CtlError> {
    let mut command = Cli::command();
    if let Some(shell) = asked.completions {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command, "regentctl", &mut text);
        print(&String::from_utf8_lossy(&text))?;
    }
    if let Some(directory) = &asked.man {
        std::fs::create_dir_all(directory)?;
        clap_mangen::generate_to(command, directory)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_its_manual_page() {
        let dir = tempfile::tempdir().unwrap();
        let man = Some(dir.path().join("man1"));
        make(&DocsArgs { completions: None, man: man.clone() }).unwrap();
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let page = man.as_ref().unwrap().join(format!("regentctl-{}.1", command.get_name()));
            let text = std::fs::read_to_string(&page).unwrap();
            assert!(text.contains(".SH NAME") && text.contains(".SH OPTIONS"), "{}", page.display());
        }
        assert!(make(&DocsArgs { completions: None, man: Some("/proc/nowhere".into()) }).is_err());
    }
}
