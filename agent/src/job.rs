//! The one long action in flight: started, watched, replaced.
//!
//! ```text
//!   idle ──start──► running ──ends──► finished (taken by the loop, becomes memory)
//!                     │ replaced: dropped, which ends the programs that it started
//!                     ▼
//!                   idle
//! ```

use std::future::Future;

use regent_core::postgres::{FinishedJob, Job, RunningJob};
use regent_core::units::Instant;
use regent_pgctl::PgError;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

type Outcome = Result<(), PgError>;

/// At most one job.
#[derive(Debug, Default)]
pub struct Jobs {
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    job: RunningJob,
    task: JoinHandle<()>,
    outcome: oneshot::Receiver<Outcome>,
    ended: Option<Result<Outcome, oneshot::error::RecvError>>,
}

impl Jobs {
    /// What runs.
    #[must_use]
    pub fn running(&self) -> Option<&RunningJob> {
        self.running.as_ref().map(|running| &running.job)
    }

    /// Drops what runs; it has let go of everything when this returns.
    pub async fn cancel(&mut self) {
        if let Some(old) = self.running.take() {
            tracing::info!("{:?} is cancelled", old.job.job);
            old.task.abort();
            drop(old.task.await);
        }
    }

    /// Starts `work` as `job`; what ran before is dropped first, and has let go of everything when this returns.
    pub async fn start(&mut self, job: Job, since: Instant, work: impl Future<Output = Outcome> + 'static) {
        if let Some(old) = self.running.take() {
            tracing::info!("{:?} is replaced by {job:?}", old.job.job);
            old.task.abort();
            drop(old.task.await);
        }
        let (sender, outcome) = oneshot::channel();
        let task = tokio::task::spawn_local(async move {
            // Nobody waits any more only when the job was replaced.
            drop(sender.send(work.await));
        });
        self.running = Some(Running { job: RunningJob { job, since }, task, outcome, ended: None });
    }

    /// Waits for the end of what runs; for ever when nothing does. May be dropped and called again.
    pub async fn ended(&mut self) {
        match &mut self.running {
            Some(running) if running.ended.is_none() => running.ended = Some((&mut running.outcome).await),
            Some(_) => {}
            None => std::future::pending().await,
        }
    }

    /// What ended since the last call.
    pub fn take(&mut self, now: Instant) -> Option<FinishedJob> {
        let running = self.running.as_mut()?;
        let ended = match running.ended.take() {
            Some(ended) => ended,
            None => match running.outcome.try_recv() {
                Ok(outcome) => Ok(outcome),
                Err(oneshot::error::TryRecvError::Empty) => return None,
                Err(oneshot::error::TryRecvError::Closed) => {
                    return self.finish(now, Some("it broke off: a bug".into()));
                }
            },
        };
        let error = match ended {
            Ok(outcome) => outcome.err().map(|error| error.to_string()),
            Err(_) => Some("it broke off: a bug".to_owned()),
        };
        self.finish(now, error)
    }

    fn finish(&mut self, now: Instant, error: Option<String>) -> Option<FinishedJob> {
        let job = self.running.take()?.job.job;
        match &error {
            None => tracing::info!("{job:?} is done"),
            Some(error) => tracing::warn!("{job:?} failed: {error}"),
        }
        Some(FinishedJob { job, at: now, error })
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn locally<F: Future>(test: F) -> F::Output {
        tokio::task::LocalSet::new().run_until(test).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_ends_once_and_wakes_who_waits() {
        locally(async {
            let mut jobs = Jobs::default();
            let work = async {
                tokio::time::sleep(Duration::from_secs(3)).await;
                Err(PgError::Refused("no".into()))
            };
            jobs.start(Job::Promote, Instant::default(), work).await;
            assert_eq!(jobs.take(Instant::default()), None);
            tokio::time::timeout(Duration::from_secs(1), jobs.ended()).await.expect_err("still running");
            jobs.ended().await;
            assert_eq!(jobs.take(Instant::default()).and_then(|ended| ended.error).as_deref(), Some("no"));
            assert_eq!(jobs.take(Instant::default()), None);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_replaced_job_is_gone_before_the_next_one_starts() {
        struct Flag(std::rc::Rc<std::cell::Cell<bool>>);
        impl Drop for Flag {
            fn drop(&mut self) {
                self.0.set(true);
            }
        }
        locally(async {
            let gone = std::rc::Rc::new(std::cell::Cell::new(false));
            let flag = Flag(gone.clone());
            let mut jobs = Jobs::default();
            let forever = async move {
                let _flag = flag;
                std::future::pending().await
            };
            jobs.start(Job::Checkpoint, Instant::default(), forever).await;
            tokio::task::yield_now().await;
            let seen = gone.clone();
            let next = async move {
                assert!(seen.get(), "the old job still runs");
                Ok(())
            };
            jobs.start(Job::Promote, Instant::default(), next).await;
            jobs.ended().await;
            assert_eq!(jobs.take(Instant::default()).map(|ended| (ended.job, ended.error)), Some((Job::Promote, None)));
        })
        .await;
    }
}
