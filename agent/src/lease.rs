//! The lease task: keeps the lease of this agent alive while, and only while, the loop claims it.
//!
//! It has its own connections and runs beside the loop, so that nothing the loop waits for delays a renewal. But it is not
//! blind: a claim says "as of that moment the decision was to keep the lease", and a claim that grows old ends the renewals.
//!
//! ```text
//!            claim fresh                      acknowledged: ends = max(ends, sent + T·(1 − ρ))
//!   none ────────────────► granted ──────────► renewed every T/4 ──┐
//!    ▲                        ▲                    │   ▲            │ no answer: unknown, try again soon,
//!    │   store: lease is gone │                    │   └────────────┘ `ends` stays as it was
//!    └────────────────────────┴────────────────────┘
//! ```
//!
//! `ends` is the fence deadline D of DESIGN section 4: it counts from the moment a renewal was *sent*, as etcd starts its own
//! count no earlier than that.

use std::collections::VecDeque;
use std::time::Duration;

use regent_core::snapshot::LeaseView;
use regent_core::units::{Instant, LeaseId};
use regent_dcs::{Dcs, DcsError, Lease};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use crate::clock::Clock;

/// The loop's word that the lease should live on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The moment of the observation on which it was decided.
    pub as_of: Instant,
    /// How long after that moment renewals may go on without a new claim.
    pub good_for: Duration,
    /// TTL to ask for.
    pub ttl: Duration,
    /// How often a write was told that the lease is gone: a new doubt is looked into at once.
    pub doubts: u64,
    /// After so long without an answer another call is sent; the first one may still be answered.
    pub patience: Duration,
}

/// Clock-rate error that the deadline allows for: local boot time may run slow against etcd's clock by this share.
const CLOCK_RATE_ERROR_PERCENT: u32 = 1;

/// The moment until which a lease of `ttl`, renewed by a call sent at `sent`, cannot have ended.
#[must_use]
pub fn ends(sent: Instant, ttl: Duration) -> Instant {
    sent + ttl * (100 - CLOCK_RATE_ERROR_PERCENT) / 100
}

/// Keeps the lease until `claims` is dropped. Runs in a `LocalSet`.
pub async fn keep<D: Dcs, C: Clock>(
    dcs: D,
    clock: C,
    mut claims: watch::Receiver<Option<Claim>>,
    state: watch::Sender<LeaseView>,
) {
    let mut calls: JoinSet<(Instant, Answer)> = JoinSet::new();
    // Oldest first.
    let mut under_way: VecDeque<AbortHandle> = VecDeque::new();
    let mut ttl_asked = Duration::ZERO;
    let mut doubts = 0;
    // When the next call is due; a call that is not answered within the claim's patience does not hold up the next one.
    let mut due = tokio::time::Instant::now();
    loop {
        let claim = *claims.borrow_and_update();
        let fresh = claim.filter(|claim| clock.now().since(claim.as_of) <= claim.good_for);
        if let Some(claim) = fresh.filter(|_| tokio::time::Instant::now() >= due) {
            let lease = state.borrow().id.filter(|_| ttl_asked == claim.ttl);
            let (dcs, sent) = (dcs.clone(), clock.now());
            // A renewal may be answered late; a grant that is not answered soon is asked for again.
            let within = if lease.is_some() { claim.ttl / 2 } else { GRANT_PATIENCE.min(claim.ttl / 2) };
            // Two grants would be two leases: one at a time, and only its own answer counts.
            let room = if lease.is_some() { CALLS - 1 } else { 0 };
            under_way.retain(|call| !call.is_finished());
            under_way.drain(..under_way.len().saturating_sub(room)).for_each(|call| call.abort());
            under_way.push_back(match lease {
                Some(id) => {
                    calls.spawn_local(async move { (sent, Answer::Renewed(id, dcs.keep_alive(id, within).await)) })
                }
                None => {
                    ttl_asked = claim.ttl;
                    calls.spawn_local(async move { (sent, Answer::Granted(dcs.grant(claim.ttl, within).await)) })
                }
            });
            due = tokio::time::Instant::now() + if lease.is_some() { claim.patience } else { within };
        }
        tokio::select! {
            biased;
            Some(answered) = calls.join_next() => {
                // An aborted call has no answer.
                if let Ok((sent, answer)) = answered {
                    let next = take(sent, answer, &state);
                    due = match next {
                        // T/4 after the sending that was acknowledged, not after the answer.
                        Next::Renew(ttl) => tokio::time::Instant::now() + (ttl / 4).saturating_sub(clock.now().since(sent)),
                        Next::Grant(after) => {
                            ttl_asked = Duration::ZERO;
                            tokio::time::Instant::now() + after
                        }
                        // Unknown is not lost: etcd may have renewed it, or may still hold it.
                        Next::TryAgain => due.min(tokio::time::Instant::now() + AFTER_ERROR),
                        Next::TooLate => due,
                    };
                }
            }
            () = tokio::time::sleep_until(due), if fresh.is_some() => {}
            changed = claims.changed() => {
                if changed.is_err() {
                    return;
                }
                let other_ttl = claims.borrow().is_some_and(|claim| claim.ttl != ttl_asked && !ttl_asked.is_zero());
                let doubted = claims.borrow().is_some_and(|claim| std::mem::replace(&mut doubts, claim.doubts) != claim.doubts);
                if other_ttl || doubted || fresh.is_none() {
                    due = tokio::time::Instant::now();
                }
            }
        }
    }
}

/// How many renewals may be under way at once: an etcd that answers late answers all the same. The oldest makes room for
/// the next one, so that the first second after an outage has a renewal in it.
const CALLS: usize = 8;
/// How long an answer to a grant is waited for.
const GRANT_PATIENCE: Duration = Duration::from_secs(2);
/// The pause after a call that failed at once.
const AFTER_ERROR: Duration = Duration::from_millis(200);

enum Answer {
    Granted(Result<Lease, DcsError>),
    Renewed(LeaseId, Result<Duration, DcsError>),
}

enum Next {
    Renew(Duration),
    Grant(Duration),
    TryAgain,
    /// An answer about a lease that is ours no more.
    TooLate,
}

/// Takes an answer to a call that was sent at `sent`.
fn take(sent: Instant, answer: Answer, state: &watch::Sender<LeaseView>) -> Next {
    let held = *state.borrow();
    match answer {
        Answer::Granted(Ok(lease)) => {
            tracing::debug!(lease = %lease.id, ttl = ?lease.ttl, "lease granted");
            state.send_replace(LeaseView { id: Some(lease.id), ends: Some(ends(sent, lease.ttl)) });
            Next::Renew(lease.ttl)
        }
        Answer::Granted(Err(error)) => {
            tracing::warn!("no lease: {error}");
            Next::Grant(AFTER_ERROR)
        }
        Answer::Renewed(id, _) if held.id != Some(id) => Next::TooLate,
        Answer::Renewed(id, Ok(ttl)) => {
            // Answers may overtake each other; the newest sending counts.
            let until = ends(sent, ttl).max(held.ends.unwrap_or_default());
            state.send_replace(LeaseView { id: Some(id), ends: Some(until) });
            Next::Renew(ttl)
        }
        Answer::Renewed(id, Err(DcsError::LeaseGone)) => {
            tracing::warn!(lease = %id, "the lease is gone");
            state.send_replace(LeaseView::default());
            Next::Grant(Duration::ZERO)
        }
        Answer::Renewed(_, Err(error)) => {
            tracing::debug!("renewal: {error}");
            Next::TryAgain
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use regent_dcs::memory::{MemoryDcs, MemoryStore, Trip};
    use tokio::time::sleep;

    use super::*;

    #[derive(Clone)]
    struct Virtual(tokio::time::Instant);

    impl Clock for Virtual {
        fn now(&self) -> Instant {
            Instant(self.0.elapsed())
        }

        fn wall(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH
        }

        fn dice(&self) -> u64 {
            0
        }
    }

    const TTL: Duration = Duration::from_secs(10);
    const SECOND: Duration = Duration::from_secs(1);

    struct Bench {
        store: MemoryStore,
        dcs: MemoryDcs,
        clock: Virtual,
        claims: watch::Sender<Option<Claim>>,
        state: watch::Receiver<LeaseView>,
    }

    impl Bench {
        fn claim(&self) {
            let as_of = self.clock.now();
            self.claims.send_replace(Some(Claim {
                as_of,
                good_for: SECOND * 6,
                ttl: TTL,
                doubts: 0,
                patience: SECOND,
            }));
        }

        fn left(&self) -> Duration {
            self.clock.now().until(self.state.borrow().ends.unwrap_or_default())
        }

        /// One claim, with renewals as often as this.
        async fn claim_every(&self, patience: Duration) {
            let as_of = self.clock.now();
            self.claims.send_replace(Some(Claim { as_of, good_for: SECOND * 6, ttl: TTL, doubts: 0, patience }));
            sleep(patience).await;
        }

        /// Claims every second for so long, as a loop that turns does.
        async fn claim_for(&self, seconds: u32) {
            for _ in 0..seconds {
                self.claim();
                sleep(SECOND).await;
            }
        }
    }

    async fn keeping<T>(test: impl AsyncFn(Bench) -> T) -> T {
        let store = MemoryStore::new();
        let dcs = store.client("a");
        let clock = Virtual(tokio::time::Instant::now());
        let (claims, claimed) = watch::channel(None);
        let (sender, state) = watch::channel(LeaseView::default());
        let bench = Bench { store, dcs: dcs.clone(), clock: clock.clone(), claims, state };
        let local = tokio::task::LocalSet::new();
        local.spawn_local(keep(dcs, clock, claimed, sender));
        local.run_until(test(bench)).await
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_counts_from_the_sending_and_allows_for_clock_drift() {
        keeping(async |bench: Bench| {
            bench.dcs.set_trip(Trip { request: SECOND / 4, answer: SECOND / 2, ..Trip::default() });
            let sent = bench.clock.now();
            bench.claim();
            sleep(SECOND).await;
            let deadline = bench.state.borrow().ends;
            assert_eq!(deadline, Some(sent + TTL * 99 / 100), "not from the arrival, and not from the answer");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn renewals_go_on_while_claims_are_fresh_and_end_with_them() {
        keeping(async |bench: Bench| {
            bench.claim_for(40).await;
            assert!(bench.left() > TTL / 2);
            assert_eq!(bench.store.leases().len(), 1);
            sleep(SECOND * 6 + TTL + SECOND * 3).await;
            assert!(bench.left().is_zero());
            assert_eq!(bench.store.leases().len(), 0, "a loop that does not turn loses its lease");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_withdrawn_claim_ends_renewals_at_once() {
        keeping(async |bench: Bench| {
            bench.claim_for(5).await;
            bench.claims.send_replace(None);
            let ends = bench.state.borrow().ends;
            sleep(SECOND * 5).await;
            assert_eq!(bench.state.borrow().ends, ends, "a demotion does not renew");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_not_loss_and_one_lost_answer_costs_nothing() {
        keeping(async |bench: Bench| {
            bench.claim_for(3).await;
            let id = bench.state.borrow().id;
            bench.dcs.set_cut(true);
            bench.claim_for(6).await;
            assert_eq!(bench.state.borrow().id, id, "unknown is not lost");
            bench.dcs.set_cut(false);
            bench.claim_for(3).await;
            assert_eq!(bench.state.borrow().id, id);
            assert!(bench.left() > TTL / 2, "{:?}", bench.left());
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_second_after_an_outage_has_a_renewal_in_it() {
        keeping(async |bench: Bench| {
            bench.claim_for(3).await;
            bench.dcs.set_cut(true);
            // Long enough for more calls than may be under way at once, which are all still waited for.
            let began = bench.left();
            while bench.left() > began.saturating_sub(SECOND * 5) {
                bench.claim_every(SECOND / 4).await;
            }
            bench.dcs.set_cut(false);
            bench.claim_every(SECOND / 4).await;
            bench.claim_every(SECOND / 4).await;
            assert!(bench.left() > TTL * 9 / 10, "{:?}", bench.left());
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_gone_is_replaced_and_its_deadline_forgotten() {
        keeping(async |bench: Bench| {
            bench.claim_for(2).await;
            let old = bench.state.borrow().id;
            bench.store.revoke(old.unwrap());
            bench.claim_for(4).await;
            let new = *bench.state.borrow();
            assert!(new.id.is_some() && new.id != old);
            assert!(bench.left() > TTL / 2);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn another_ttl_needs_another_lease() {
        keeping(async |bench: Bench| {
            bench.claim_for(2).await;
            let old = bench.state.borrow().id;
            let as_of = bench.clock.now();
            bench.claims.send_replace(Some(Claim {
                as_of,
                good_for: SECOND * 6,
                ttl: TTL * 2,
                doubts: 0,
                patience: SECOND,
            }));
            sleep(SECOND).await;
            assert_ne!(bench.state.borrow().id, old);
            assert!(bench.left() > TTL);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_etcd_that_answers_late_answers_all_the_same() {
        keeping(async |bench: Bench| {
            bench.claim_for(3).await;
            let id = bench.state.borrow().id;
            // Later than the patience of one call, and later than the pause between two.
            bench.dcs.set_trip(Trip { request: SECOND * 3 / 2, answer: SECOND * 3 / 2, ..Trip::default() });
            bench.claim_for(30).await;
            assert_eq!(bench.state.borrow().id, id);
            assert!(bench.left() > TTL / 4, "{:?}", bench.left());
        })
        .await;
    }
}
