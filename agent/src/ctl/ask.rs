//! Questions (cli.md 7): asked on stdout, answered on stdin, terminal or not.

use std::process::Stdio;

use tokio::sync::oneshot;

use super::{CtlError, interruptible, print};

/// `TEXT [DEFAULT]: `. An empty answer takes the default, and is asked again where there is none.
pub(super) async fn ask(text: &str, default: Option<&str>) -> Result<String, CtlError> {
    let question = default.map_or_else(|| format!("{text}: "), |default| format!("{text} [{default}]: "));
    loop {
        print(&question)?;
        let answer = line().await?;
        match (answer.trim(), default) {
            ("", None) => {}
            ("", Some(default)) => return Ok(default.to_owned()),
            (answer, _) => return Ok(answer.to_owned()),
        }
    }
}

/// `TEXT [y/N]: `
pub(super) async fn confirm(text: &str) -> Result<bool, CtlError> {
    loop {
        print(&format!("{text} [y/N]: "))?;
        match line().await?.trim().to_ascii_lowercase().as_str() {
            "y" | "yes" => return Ok(true),
            "n" | "no" | "" => return Ok(false),
            _ => print("Error: invalid input\n")?,
        }
    }
}

/// `TEXT: `, with an answer that a terminal does not show.
///
/// # Errors
/// There is no answer.
pub async fn ask_secretly(text: &str) -> Result<String, CtlError> {
    // Where there is no terminal, there is nothing to hide.
    let echo = |wanted: &str| drop(std::process::Command::new("stty").arg(wanted).stderr(Stdio::null()).status());
    print(&format!("{text}: "))?;
    echo("-echo");
    let answer = line().await;
    echo("echo");
    print("\n")?;
    Ok(answer?.trim_end_matches(['\r', '\n']).to_owned())
}

/// One line; the end of the input is no answer. Read on a thread of its own, which Ctrl-C leaves behind.
async fn line() -> Result<String, CtlError> {
    let (sender, answer) = oneshot::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = std::io::stdin().read_line(&mut line);
        drop(sender.send(read.map(|bytes| (bytes > 0).then_some(line))));
    });
    let nobody = |_| CtlError::Unanswered;
    interruptible(answer).await.map_err(nobody)?.map_err(|_| CtlError::Unanswered)??.ok_or(CtlError::Unanswered)
}
