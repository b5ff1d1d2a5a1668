//! One look at everything (ha-rules section 2), within a budget.

use std::time::Duration;

use regent_core::cluster::HistoryLine;
use regent_core::postgres::{DataDir, PgState, Present, Probe, Process, SqlFacts};
use regent_core::units::Timeline;
use tokio::time::{Instant, timeout_at};

use crate::control::Control;
use crate::datadir::{self, Installed, Kind, Look};
use crate::disk::Stamp;
use crate::history;
use crate::postmaster::Found;
use crate::programs;
use crate::real::{Server, locked};
use crate::settings::Settings;

/// While a server serves and nothing else has changed, its control file is read again only after this long. It changes
/// with every checkpoint and, on a standby, all the time; nothing is decided from that.
const CONTROL_AGE: Duration = Duration::from_secs(10);

/// How long the look at one record of the log may take.
const DUMP: Duration = Duration::from_secs(1);

/// Answers that stay true until something on disk changes.
#[derive(Default)]
pub(crate) struct Remembered {
    installed: Option<u32>,
    control: Option<ReadControl>,
    history: Option<(Timeline, Stamp, Vec<HistoryLine>)>,
}

struct ReadControl {
    stamp: Stamp,
    /// Of the server that ran then, if it served: process, role, timeline.
    serving: Option<(u32, bool, Option<Timeline>)>,
    read_at: Instant,
    control: Control,
}

impl Server {
    pub(crate) async fn look(&self, within: Duration) -> PgState {
        let deadline = Instant::now() + within;
        let settings = self.settings();

        // A postmaster that we hold a handle on is asked at the same time: its answers need no disk of ours.
        let known = self.known_postmaster().filter(|known| known.is_alive());
        let (look, early) = tokio::join!(timeout_at(deadline, self.look_at_disk(&settings, within)), async {
            match known {
                Some(_) => Some(self.ask(&settings, deadline).await),
                None => None,
            }
        });
        let (kind, found, stamp, old_copy) = match look.ok().flatten() {
            Some(Look { kind, found, control, old_copy }) => (kind, found, control, old_copy),
            None => {
                let silence = format!("{} did not answer within {within:?}", settings.data_dir.display());
                (Kind::Unreadable(silence), Found::Nobody, None, false)
            }
        };
        let postmaster = self.adopt(found);
        let (probe, sql) = match (&postmaster, early) {
            (None, _) => (Probe::NotAsked, None),
            (Some(_), Some(answer)) => answer,
            (Some(_), None) => self.ask(&settings, deadline).await,
        };
        let sql = match sql {
            Some(sql) => Some(self.with_replayed_timeline(&settings, sql, deadline).await),
            None => None,
        };
        let process = postmaster.as_ref().map_or(Process::Down, |postmaster| Process::Up { pid: postmaster.pid });

        let data_dir = match kind {
            Kind::Empty => DataDir::Empty,
            Kind::Unreadable(reason) => DataDir::Unreadable(reason),
            Kind::Unusable(reason) => DataDir::Unusable(reason),
            Kind::Unfinished => DataDir::Unfinished,
            Kind::HalfRewound => DataDir::HalfRewound,
            Kind::Present(present) => {
                let serving = postmaster.as_ref().zip(sql.as_ref());
                let serving = serving.map(|(postmaster, sql)| (postmaster.pid, sql.in_recovery, sql.timeline));
                let control = self.control_data(&settings, stamp, serving, deadline).await;
                DataDir::Present(Present { control: control.map(|control| control.data), ..present })
            }
        };
        let (local_history, newer_history) = (Vec::new(), Vec::new());
        let mut state = PgState { data_dir, process, probe, sql, local_history, newer_history, old_copy };
        if let Some(timeline) = own_timeline(&state).filter(|timeline| *timeline > Timeline(1)) {
            state.local_history = self.local_history(&settings, timeline, deadline).await;
        }
        let receives_nothing = match &state.sql {
            Some(sql) => sql.in_recovery && !sql.streaming,
            None => !state.is_up(),
        };
        if let Some(timeline) = own_timeline(&state).filter(|_| receives_nothing) {
            let data_dir = settings.data_dir.clone();
            let left = deadline.saturating_duration_since(Instant::now());
            let newer = self.shared.disk.ask(left, move || history::newer_than(&data_dir, timeline)).await;
            state.newer_history = newer.unwrap_or_default();
        }
        state
    }

    /// A standby that receives nothing says the timeline of its control file, which lags behind what it has replayed. Its
    /// position lies in a segment file of the timeline that it was received on, and of no later one: a log that is on
    /// another branch never was sent that file.
    async fn with_replayed_timeline(&self, settings: &Settings, mut sql: SqlFacts, deadline: Instant) -> SqlFacts {
        if sql.in_recovery && !sql.streaming {
            let (data_dir, end) = (settings.data_dir.clone(), sql.position());
            let left = deadline.saturating_duration_since(Instant::now());
            let on_disk = self.shared.disk.ask(left, move || history::newest_segment_of(&data_dir, end)).await;
            sql.timeline = sql.timeline.max(on_disk.flatten());
        }
        sql
    }

    async fn ask(&self, settings: &Settings, deadline: Instant) -> (Probe, Option<SqlFacts>) {
        match timeout_at(deadline, self.shared.session.lock()).await {
            Ok(mut session) => {
                let (probe, sql) = session.look(settings, deadline).await;
                (probe, sql.map(|sql| self.with_upkept(sql)))
            }
            Err(_) => (Probe::Silent, None),
        }
    }

    async fn look_at_disk(&self, settings: &Settings, within: Duration) -> Option<Look> {
        let installed = self.known_version(settings, within).await;
        let (data_dir, known) = (settings.data_dir.clone(), self.known_postmaster());
        self.shared.disk.ask(within, move || datadir::look(&data_dir, &installed, known.as_deref())).await
    }

    /// The version of the programs, asked once; each start asks again.
    async fn known_version(&self, settings: &Settings, within: Duration) -> Installed {
        let known = locked(&self.shared.remembered).installed;
        if let Some(version) = known {
            return Ok(version);
        }
        // Longer than the look lasts: silence of the programs' disk is silence, and no verdict on the programs.
        let installed = programs::installed(&settings.programs, within * 2).await;
        locked(&self.shared.remembered).installed = installed.as_ref().ok().copied();
        installed
    }

    /// Control data: as remembered while the file is as it was, or while a server serves as it did.
    async fn control_data(
        &self,
        settings: &Settings,
        stamp: Option<Stamp>,
        serving: Option<(u32, bool, Option<Timeline>)>,
        deadline: Instant,
    ) -> Option<Control> {
        let stamp = stamp?;
        let now = Instant::now();
        if let Some(read) = &locked(&self.shared.remembered).control {
            let undisturbed = serving.is_some() && read.serving == serving && now - read.read_at < CONTROL_AGE;
            if read.stamp == stamp || undisturbed {
                return Some(read.control.clone());
            }
        }
        let control = match timeout_at(deadline, read_control(settings)).await {
            Ok(Ok(control)) => control,
            Ok(Err(reason)) => {
                tracing::warn!(reason, "control data could not be read");
                return None;
            }
            Err(_) => return None,
        };
        let read = ReadControl { stamp, serving, read_at: now, control: control.clone() };
        locked(&self.shared.remembered).control = Some(read);
        Some(control)
    }

    async fn local_history(&self, settings: &Settings, timeline: Timeline, deadline: Instant) -> Vec<HistoryLine> {
        let known = locked(&self.shared.remembered).history.clone();
        let data_dir = settings.data_dir.clone();
        let read = move || {
            let stamp = Stamp::of(&history::path(&data_dir, timeline))?;
            match known {
                Some((of, at, lines)) if (of, at) == (timeline, stamp) => Some((stamp, lines)),
                Some(_) | None => Some((stamp, history::read(&data_dir, timeline))),
            }
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let Some(Some((stamp, lines))) = self.shared.disk.ask(left, read).await else { return Vec::new() };
        locked(&self.shared.remembered).history = Some((timeline, stamp, lines.clone()));
        lines
    }
}

/// Runs `pg_controldata`; the caller bounds it.
pub(crate) async fn read_control(settings: &Settings) -> Result<Control, String> {
    let mut command = settings.programs.program("pg_controldata");
    command.arg(&settings.data_dir).env("LC_ALL", "C");
    let printed = programs::run(command, |_| ()).await.map_err(|e| e.to_string())?;
    let mut control = Control::parse(&printed)?;
    if control.ends_with_checkpoint() {
        let mut command = settings.programs.program("pg_waldump");
        command.arg("--path").arg(settings.data_dir.join("pg_wal")).arg("--limit=1").env("LC_ALL", "C");
        command
            .arg(format!("--timeline={}", control.data.timeline))
            .arg(format!("--start={}", control.data.checkpoint));
        match programs::ask(command, DUMP).await {
            Ok(printed) => control.learn_checkpoint_end(&printed),
            Err(error) => tracing::info!(%error, "the end of the shutdown checkpoint cannot be read"),
        }
    }
    Ok(control)
}

/// The timeline whose history says how this log came to be: the server's word, else the newest that the files know.
fn own_timeline(state: &PgState) -> Option<Timeline> {
    let by_files = || {
        let control = state.control()?;
        Some(control.min_recovery.map_or(control.timeline, |(timeline, _)| timeline.max(control.timeline)))
    };
    state.sql.as_ref().and_then(|sql| sql.timeline).or_else(by_files)
}
