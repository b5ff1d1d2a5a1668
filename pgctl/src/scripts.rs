//! The user's commands (ha-rules section 18): callbacks, which run beside everything else and hold up nothing, and the two
//! hooks that something waits for. Each has a deadline, and what it prints goes to the log.
//!
//! ```text
//!   call ──► lane ──► [the one before is killed with its children] ──► runs ──► ended, or killed at CALLBACK
//! ```

use std::time::Duration;

use regent_core::callbacks::{Callback, Event};
use tokio::task::JoinHandle;

use crate::PgError;
use crate::programs;
use crate::real::{Server, locked};
use crate::settings::{Credentials, Settings};

/// How long a callback may run.
pub(crate) const CALLBACK: Duration = Duration::from_secs(300);
/// How long `pre_promote` may take to agree.
const PRE_PROMOTE: Duration = Duration::from_secs(60);
/// How long a stop that nobody hurries waits for `before_stop`.
const BEFORE_STOP: Duration = Duration::from_secs(30);
/// How much of what a command prints is logged.
const LOGGED_LINES: usize = 100;
/// ... and of each line, in characters.
const LOGGED_LENGTH: usize = 500;

/// The callbacks that run. `on_reload` has a lane of its own, so that it ends no other (K1).
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    reload: Option<JoinHandle<()>>,
    others: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts the command for this event, if there is one. It ends the one before it.
    pub(crate) fn start_callback(&self, callback: Callback) {
        let settings = self.settings();
        let Some(line) = settings.scripts.callbacks.get(&callback.event).cloned() else { return };
        let mut lanes = locked(&self.shared.callbacks);
        let lane = match callback.event {
            Event::OnReload => &mut lanes.reload,
            Event::OnStart | Event::OnStop | Event::OnRestart | Event::OnRoleChange => &mut lanes.others,
        };
        let before = lane.take().filter(|before| !before.is_finished());
        if let Some(before) = &before {
            tracing::warn!("the callback before {callback} still runs: ending it");
            before.abort();
        }
        *lane = Some(tokio::spawn(async move {
            if let Some(before) = before {
                drop(before.await); // It has let go of its processes then.
            }
            tracing::info!("callback {callback}");
            let word = |text: &str| text.to_owned();
            let arguments = [word(callback.event.word()), word(callback.role.word()), settings.scope.clone()];
            let ended = run(&settings, callback.event.word(), &line, &arguments, &[], CALLBACK).await;
            if let Err(error) = ended {
                tracing::warn!("callback {callback}: {error}");
            }
        }));
    }

    /// Returns when no callback runs.
    pub(crate) async fn callbacks_ended(&self) {
        let Lanes { reload, others } = std::mem::take(&mut *locked(&self.shared.callbacks));
        for lane in [reload, others].into_iter().flatten() {
            drop(lane.await); // One that was ended by another is no news.
        }
    }

    /// Asks `pre_promote`; an error: it does not agree, or does not say.
    pub(crate) async fn ask_pre_promote(&self) -> Result<(), PgError> {
        let settings = self.settings();
        let Some(line) = &settings.scripts.pre_promote else { return Ok(()) };
        run(&settings, "pre_promote", line, &[], &[], PRE_PROMOTE).await
    }

    /// Runs `before_stop`, and goes on whatever became of it. A stop that is to end within a time of its own gives it a
    /// quarter of that, and a second at the most: the end of the lease does not wait for a script.
    pub(crate) async fn run_before_stop(&self, hurry: Option<Duration>) {
        let settings = self.settings();
        let Some(line) = &settings.scripts.before_stop else { return };
        let limit = hurry.map_or(BEFORE_STOP, |within| (within / 4).min(Duration::from_secs(1)));
        if let Err(error) = run(&settings, "before_stop", line, &[], &[], limit).await {
            tracing::warn!("before_stop: {error}; stopping all the same");
        }
    }
}

/// Runs a command of the user's to its end, its output to the log.
pub(crate) async fn run(
    settings: &Settings,
    what: &str,
    line: &str,
    arguments: &[String],
    environment: &[(&str, String)],
    limit: Duration,
) -> Result<(), PgError> {
    let mut command = programs::users(what, line)?;
    command.args(arguments).envs(environment.iter().map(|(name, value)| (*name, value)));
    let mut log = Output::of(settings, what);
    let ended = tokio::time::timeout(limit, programs::run_script(command, |line| log.note(line))).await;
    log.end();
    ended.unwrap_or_else(|_| Err(PgError::Timeout { what: what.to_owned(), limit }))
}

/// What a command prints, on its way to the log: so many lines of such a length, without the passwords that we know.
pub(crate) struct Output {
    what: String,
    secrets: Vec<String>,
    lines: usize,
}

impl Output {
    pub(crate) fn of(settings: &Settings, what: &str) -> Output {
        let roles = [Some(&settings.superuser), Some(&settings.replication), settings.rewind.as_ref()];
        let secret = |role: &Credentials| role.password.clone().filter(|password| !password.is_empty());
        let secrets = roles.into_iter().flatten().filter_map(secret).collect();
        Output { what: what.to_owned(), secrets, lines: 0 }
    }

    /// The line as it may be shown.
    fn shown(&self, line: &str) -> String {
        let clean = self.secrets.iter().fold(line.to_owned(), |line, secret| line.replace(secret.as_str(), "***"));
        match clean.char_indices().nth(LOGGED_LENGTH) {
            Some((end, _)) => clean.get(..end).unwrap_or_default().to_owned() + " ...",
            None => clean,
        }
    }

    pub(crate) fn note(&mut self, line: &str) {
        self.lines = self.lines.saturating_add(1);
        if self.lines <= LOGGED_LINES {
            tracing::info!("{}: {}", self.what, self.shown(line));
        }
    }

    pub(crate) fn end(self) {
        let more = self.lines.saturating_sub(LOGGED_LINES);
        if more > 0 {
            tracing::info!("{}: {more} more lines were not logged", self.what);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use regent_core::callbacks::Being;

    use super::*;

    fn server(dir: &Path, scripts: &[(Event, String)]) -> Server {
        let mut settings = crate::conf::tests::settings(dir);
        settings.scripts.callbacks = scripts.iter().cloned().collect();
        Server::new(settings)
    }

    fn call(event: Event) -> Callback {
        Callback { event, role: Being::Replica }
    }

    async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
        for _ in 0..2000 {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{what} did not come");
    }

    #[tokio::test]
    async fn a_callback_gets_event_role_and_scope_after_its_own_words() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let line = format!("sh -c 'echo \"$0 $@\" > {}' one 'two words'", out.display());
        let server = server(dir.path(), &[(Event::OnStart, line)]);
        server.start_callback(call(Event::OnStart));
        server.start_callback(call(Event::OnStop));
        server.callbacks_ended().await;
        assert_eq!(std::fs::read_to_string(out).unwrap(), "one two words on_start replica demo\n");
    }

    #[tokio::test]
    async fn a_new_callback_ends_the_one_before_with_its_children_and_leaves_a_reload_alone() {
        let dir = tempfile::tempdir().unwrap();
        let pid = |name: &str| {
            let text = std::fs::read_to_string(dir.path().join(name)).unwrap_or_default();
            text.trim().parse::<u32>().ok()
        };
        let sleeps = |name: &str| {
            let file = dir.path().join(name);
            format!("sh -c 'sleep 1000 & echo $! > {}; wait'", file.display())
        };
        let scripts = [
            (Event::OnStart, sleeps("start")),
            (Event::OnReload, sleeps("reload")),
            (Event::OnRoleChange, format!("touch {}", dir.path().join("done").display())),
        ];
        let server = server(dir.path(), &scripts);
        server.start_callback(call(Event::OnStart));
        server.start_callback(call(Event::OnReload));
        eventually("both run", || pid("start").is_some() && pid("reload").is_some()).await;
        server.start_callback(call(Event::OnRoleChange));
        eventually("the next one", || dir.path().join("done").exists()).await;
        let (start, reload) = (pid("start").unwrap(), pid("reload").unwrap());
        eventually("the end of the child", || !crate::postmaster::is_alive(start)).await;
        assert!(crate::postmaster::is_alive(reload));
        server.start_callback(call(Event::OnReload));
        eventually("the end of the other child", || !crate::postmaster::is_alive(reload)).await;
    }

    #[tokio::test]
    async fn a_hook_that_fails_says_how_and_one_that_hangs_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let settings = crate::conf::tests::settings(dir.path());
        let short = Duration::from_millis(200);
        let refused = run(&settings, "pre_promote", "sh -c 'echo no >&2; exit 3'", &[], &[], CALLBACK).await;
        assert!(matches!(refused, Err(PgError::Program { output, .. }) if output == "no"));
        let hangs = run(&settings, "pre_promote", "sleep 1000", &[], &[], short).await;
        assert_eq!(hangs, Err(PgError::Timeout { what: "pre_promote".to_owned(), limit: short }));
        let missing = run(&settings, "pre_promote", "/nowhere/script", &[], &[], CALLBACK).await;
        assert!(matches!(missing, Err(PgError::Refused(text)) if text.contains("/nowhere/script")));
        let quote = run(&settings, "pre_promote", "'open", &[], &[], CALLBACK).await;
        assert!(matches!(quote, Err(PgError::Refused(text)) if text.contains("open quote")));
        // What goes on in the background, and holds the pipe, is not waited for.
        run(&settings, "on_start", "sh -c 'sleep 7 & exit 0'", &[], &[], Duration::from_secs(5)).await.unwrap();
    }

    #[test]
    fn output_is_bounded_and_shows_no_password_of_ours() {
        let settings = crate::conf::tests::settings(Path::new("/pg"));
        let output = Output::of(&settings, "x");
        assert_eq!(output.shown("PGPASSWORD=12345 psql"), "PGPASSWORD=*** psql");
        assert_eq!(output.shown(&"ä".repeat(600)).chars().count(), LOGGED_LENGTH + 4);
    }
}
