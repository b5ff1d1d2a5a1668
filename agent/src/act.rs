//! Carries a plan out, in one fixed order: a stop of PostgreSQL before all else, the lease, every other move of PostgreSQL,
//! the keys, the release, the member key. No decisions, no retries: what depends on an outcome is decided from what is seen
//! next.

use std::future::Future;
use std::task::Poll;
use std::time::Duration;

use regent_core::callbacks::Callback;
use regent_core::memory::LeaseOutcome;
use regent_core::plan::{KeyWrite, Lease, Move, Plan};
use regent_core::postgres::{Job, StopMode};
use regent_core::snapshot::{LeaseView, Snapshot};
use regent_core::units::{Instant, LeaseId, MemberName, Revision};
use regent_dcs::{Dcs, DcsError, Write, Written};
use regent_pgctl::{PgError, Postgres};
use tokio::sync::watch;

use crate::clock::Clock;
use crate::job::Jobs;
use crate::layers::Layers;

/// What a plan is carried out with.
pub(crate) struct Hands<'a, D, P, C> {
    pub(crate) dcs: &'a D,
    pub(crate) postgres: &'a P,
    pub(crate) clock: &'a C,
    pub(crate) jobs: &'a mut Jobs,
    pub(crate) layers: &'a dyn Layers,
    /// The lease, as its task knows it.
    pub(crate) leases: &'a watch::Receiver<LeaseView>,
    /// The longest that one write may take.
    pub(crate) patience: Duration,
    /// When a stop must begin, if this member may write: no write to etcd is waited for beyond that.
    pub(crate) must_stop_at: Option<Instant>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    /// The newest revision that we made ourselves: no reason to wake up.
    pub(crate) revision: Revision,
    /// A write was told that our lease is gone.
    pub(crate) lease_gone: bool,
}

impl<D: Dcs, P: Postgres, C: Clock> Hands<'_, D, P, C> {
    /// The lease half, unless it is a release.
    pub(crate) async fn lease(&self, seen: &Snapshot, plan: &Plan, done: &mut Done) -> LeaseOutcome {
        let name = seen.config.name.clone();
        let Some(lease) = seen.lease.id else { return LeaseOutcome::NotTried };
        let write = match &plan.lease {
            Lease::Keep | Lease::LetRun | Lease::Release => return LeaseOutcome::NotTried,
            Lease::Take { promise, seen } => {
                Write::TakeLeader { name, lease, promise: promise.clone(), promise_seen: *seen }
            }
            Lease::Promise { promise, seen } => {
                Write::Promise { name, lease, promise: promise.clone(), promise_seen: *seen }
            }
            Lease::Adopt { seen } => Write::AdoptLeader { name, lease, seen: *seen },
            Lease::StartBootstrap => Write::StartBootstrap { lease },
            Lease::AbandonBootstrap => Write::AbandonBootstrap { lease },
        };
        self.write(lease, write, done).await
    }

    /// Gives the leader key back, after everything else.
    pub(crate) async fn release(&self, seen: &Snapshot, done: &mut Done) -> LeaseOutcome {
        let key = seen.view().and_then(|view| view.leader.as_ref()).and_then(|key| key.lease);
        let Some(lease) = key.or(seen.lease.id) else { return LeaseOutcome::NotTried };
        self.write(lease, Write::ReleaseLeader { name: seen.config.name.clone(), lease }, done).await
    }

    async fn write(&self, lease: LeaseId, write: Write, done: &mut Done) -> LeaseOutcome {
        let what = format!("{write:?}");
        let left = self.must_stop_at.map_or(self.patience, |at| self.clock.now().until(at));
        if left.is_zero() {
            return LeaseOutcome::NotTried;
        }
        match self.dcs.write(write, self.patience.min(left)).await {
            Ok(Written::Done(revision)) => {
                done.revision = done.revision.max(revision);
                LeaseOutcome::Done(lease)
            }
            Ok(Written::Refused) => {
                tracing::info!("refused, somebody was faster: {what}");
                LeaseOutcome::Refused
            }
            Err(DcsError::LeaseGone) => {
                tracing::warn!("our lease is gone: {what}");
                done.lease_gone = true;
                LeaseOutcome::Refused
            }
            Err(DcsError::Rejected(cause)) => {
                tracing::error!("etcd refused ({cause}): {what}");
                LeaseOutcome::Refused
            }
            Err(error @ (DcsError::Unreachable(_) | DcsError::Authentication(_))) => {
                tracing::warn!("{error}: {what}");
                LeaseOutcome::Unknown
            }
        }
    }

    /// The keys. A failure is logged and changes nothing else (dcs.md 6, "errors on status, member, sync ... writes").
    pub(crate) async fn keys(&self, seen: &Snapshot, keys: &[KeyWrite], done: &mut Done) {
        for key in keys {
            let Some(lease) = seen.lease.id else { return };
            let write = match key.clone() {
                KeyWrite::Identify { id, seen } => Write::Identify { id, seen },
                KeyWrite::Config { seen: key } => {
                    let made = seen.memory.bootstrapping;
                    let config = if made { self.layers.first() } else { self.layers.restorable() };
                    Write::PutConfig { config, seen: key }
                }
                KeyWrite::ClearFailover { seen } => Write::ClearFailover { seen },
                KeyWrite::Sync { sync, seen } => Write::PutSync { sync, seen, lease },
                KeyWrite::Status(status) => Write::PutStatus { status, lease },
                KeyWrite::History(lines) => Write::PutHistory { lines, lease },
                KeyWrite::Failsafe(key) => Write::PutFailsafe { key, lease },
            };
            self.write(lease, write, done).await;
        }
    }

    /// The own member key; tells whether it stands.
    pub(crate) async fn member(&self, name: MemberName, json: String, lease: LeaseId, done: &mut Done) -> bool {
        let outcome = self.write(lease, Write::PutMember { name, json, lease }, done).await;
        matches!(outcome, LeaseOutcome::Done(_))
    }

    /// Does not take another step once the lease has ended: an agent that was frozen in the midst of a start must not go on
    /// with it before its loop has looked at the clock.
    fn under_lease(
        &self,
        work: impl Future<Output = Result<(), PgError>> + 'static,
    ) -> impl Future<Output = Result<(), PgError>> + 'static {
        let (clock, leases) = (self.clock.clone(), self.leases.clone());
        let mut work = Box::pin(work);
        std::future::poll_fn(move |context| {
            if leases.borrow().ends.is_some_and(|ends| clock.now() >= ends) {
                return Poll::Ready(Err(PgError::Refused("the lease ended before it was done".to_owned())));
            }
            work.as_mut().poll(context)
        })
    }

    /// The PostgreSQL half: starts the job, does not wait for it.
    /// `told`: what to call once a promotion is signalled.
    pub(crate) async fn postgres(&mut self, seen: &Snapshot, wanted: &Move, told: Option<Callback>, now: Instant) {
        let postgres = self.postgres.clone();
        let stop_budget = seen.config.stop_budget;
        match wanted.clone() {
            Move::Stay => {}
            Move::Cancel => self.jobs.cancel().await,
            Move::Bootstrap => {
                let work = self.under_lease(async move { postgres.bootstrap().await });
                self.jobs.start(Job::Bootstrap, now, work).await;
            }
            Move::Clone { from, conn_url } => {
                let job = Job::Clone { from: from.clone() };
                self.jobs.start(job, now, async move { postgres.clone_from(&from, &conn_url).await }).await;
            }
            Move::Restore => self.jobs.start(Job::Restore, now, async move { postgres.restore().await }).await,
            Move::Rewind { from, conn_url } => {
                let job = Job::Rewind { from: from.clone() };
                self.jobs.start(job, now, async move { postgres.rewind(&from, &conn_url).await }).await;
            }
            Move::GiveUpData { from, conn_url } => {
                let work = async move { postgres.give_up_data(&from, &conn_url).await };
                self.jobs.start(Job::GiveUpData, now, work).await;
            }
            Move::DiscardOldCopy => {
                self.jobs.start(Job::DiscardOldCopy, now, async move { postgres.discard_old_copy().await }).await;
            }
            Move::StartPrimary => {
                let job = Job::Start { as_primary: true };
                let work = self.under_lease(async move { postgres.start_primary().await });
                self.jobs.start(job, now, work).await;
            }
            Move::StartStandby(upstream) => {
                let job = Job::Start { as_primary: false };
                self.jobs.start(job, now, async move { postgres.start_standby(&upstream).await }).await;
            }
            Move::Restart { standby_of, .. } => {
                let job = Job::Restart { as_primary: standby_of.is_none() };
                match standby_of {
                    None => {
                        let work = self.under_lease(async move {
                            // What it has to write at the stop is little then; without it, it takes longer.
                            drop(postgres.checkpoint().await);
                            postgres.stop(StopMode::Fast, UNBOUNDED).await?;
                            postgres.start_primary().await
                        });
                        self.jobs.start(job, now, work).await;
                    }
                    Some(upstream) => {
                        let work = async move {
                            postgres.stop(StopMode::Fast, UNBOUNDED).await?;
                            postgres.start_standby(&upstream).await
                        };
                        self.jobs.start(job, now, work).await;
                    }
                }
            }
            Move::Stop(mode) => {
                // A clean stop takes as long as it takes: the lease, not taste, ends it. A forced one becomes SIGKILL before its
                // budget is used up, so that the kill itself still lies before the lease's end.
                let within = match mode {
                    StopMode::FastThenImmediate => stop_budget * 3 / 4,
                    StopMode::Immediate => stop_budget / 4,
                    StopMode::Fast => UNBOUNDED,
                };
                self.jobs.start(Job::Stop(mode), now, async move { postgres.stop(mode, within).await }).await;
            }
            Move::PrePromote => {
                self.jobs.start(Job::PrePromote, now, async move { postgres.pre_promote().await }).await;
            }
            Move::Promote(timeline) => {
                self.jobs.start(Job::Promote, now, async move { postgres.promote(timeline, told).await }).await;
            }
            Move::Follow(upstream) => {
                self.jobs.start(Job::Follow, now, async move { postgres.follow(&upstream).await }).await;
            }
            Move::Checkpoint => self.jobs.start(Job::Checkpoint, now, async move { postgres.checkpoint().await }).await,
            Move::ChangeSlots(changes) => {
                self.jobs.start(Job::ChangeSlots, now, async move { postgres.change_slots(&changes).await }).await;
            }
            Move::CopySlots { slots, conn_url, upstream, .. } => {
                let work = async move { postgres.copy_slots(&slots, &conn_url, &upstream).await };
                self.jobs.start(Job::CopySlots, now, work).await;
            }
            Move::ResumeReplay => {
                self.jobs.start(Job::ResumeReplay, now, async move { postgres.resume_replay().await }).await;
            }
            Move::SetSyncNames(names) => {
                let work = async move { postgres.set_sync_names(names.as_deref()).await };
                self.jobs.start(Job::SetSyncNames, now, work).await;
            }
            Move::RemoveUnfinished => {
                self.jobs.start(Job::RemoveUnfinished, now, async move { postgres.remove_unfinished().await }).await;
            }
            Move::SetAside => self.jobs.start(Job::SetAside, now, async move { postgres.set_aside().await }).await,
        }
    }
}

/// A deadline for what only an operator, or the lease, may cut short.
const UNBOUNDED: Duration = Duration::from_secs(7 * 24 * 3600);
