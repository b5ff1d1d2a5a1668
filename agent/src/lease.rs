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

use std::time::Duration;

use regent_core::snapshot::LeaseView;
use regent_core::units::Instant;
use regent_dcs::{Dcs, DcsError};
use tokio::sync::watch;

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
    /// The longest that one call to the store may take.
    pub patience: Duration,
}

/// Clock-rate error that the deadline allows for: local boot time may run slow against etcd's clock by this share.
const CLOCK_RATE_ERROR_PERCENT: u32 = 1;

/// The moment until which a lease of `ttl`, renewed by a call sent at `sent`, cannot have ended.
#[must_use]
pub fn ends(sent: Instant, ttl: Duration) -> Instant {
    sent + ttl * (100 - CLOCK_RATE_ERROR_PERCENT) / 100
}

/// Keeps the lease until `claims` is dropped.
pub async fn keep<D: Dcs, C: Clock>(
    dcs: D,
    clock: C,
    mut claims: watch::Receiver<Option<Claim>>,
    state: watch::Sender<LeaseView>,
) {
    let mut ttl_asked = Duration::ZERO;
    let mut ttl_granted = Duration::ZERO;
    loop {
        let claim = *claims.borrow_and_update();
        let fresh = claim.filter(|claim| clock.now().since(claim.as_of) <= claim.good_for);
        let pause = match fresh {
            None => None,
            Some(claim) => {
                let held = *state.borrow();
                let sent = clock.now();
                match held.id.filter(|_| ttl_asked == claim.ttl) {
                    None => match dcs.grant(claim.ttl, claim.patience).await {
                        Ok(lease) => {
                            (ttl_asked, ttl_granted) = (claim.ttl, lease.ttl);
                            tracing::debug!(lease = %lease.id, ttl = ?lease.ttl, "lease granted");
                            state.send_replace(LeaseView { id: Some(lease.id), ends: Some(ends(sent, lease.ttl)) });
                            Some(ttl_granted / 4)
                        }
                        Err(error) => {
                            tracing::warn!("no lease: {error}");
                            Some(Duration::from_millis(500).min(claim.ttl / 6))
                        }
                    },
                    Some(id) => match dcs.keep_alive(id, claim.patience).await {
                        Ok(ttl) => {
                            ttl_granted = ttl;
                            let until = ends(sent, ttl).max(held.ends.unwrap_or_default());
                            state.send_replace(LeaseView { id: Some(id), ends: Some(until) });
                            Some(ttl / 4)
                        }
                        Err(DcsError::LeaseGone) => {
                            tracing::warn!(lease = %id, "the lease is gone");
                            state.send_replace(LeaseView::default());
                            Some(Duration::ZERO)
                        }
                        // Unknown is not lost: etcd may have renewed it, or may still hold it.
                        Err(error) => {
                            tracing::debug!("renewal: {error}");
                            Some(Duration::from_millis(100).min(ttl_granted / 10))
                        }
                    },
                }
            }
        };
        let changed = match pause {
            // A claim of the same TTL is no reason to renew sooner; the end of claims, or another TTL, is.
            Some(pause) => {
                let wake = tokio::time::sleep(pause);
                tokio::pin!(wake);
                loop {
                    tokio::select! {
                        () = &mut wake => break Ok(()),
                        changed = claims.changed() => {
                            let other = changed.is_err()
                                || claims.borrow().is_some_and(|claim| claim.ttl != ttl_asked && state.borrow().id.is_some());
                            if other {
                                break changed;
                            }
                        }
                    }
                }
            }
            None => claims.changed().await,
        };
        if changed.is_err() {
            return;
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
            self.claims.send_replace(Some(Claim { as_of, good_for: SECOND * 6, ttl: TTL, patience: SECOND }));
        }

        fn left(&self) -> Duration {
            self.clock.now().until(self.state.borrow().ends.unwrap_or_default())
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
            bench.claims.send_replace(Some(Claim { as_of, good_for: SECOND * 6, ttl: TTL * 2, patience: SECOND }));
            sleep(SECOND).await;
            assert_ne!(bench.state.borrow().id, old);
            assert!(bench.left() > TTL);
        })
        .await;
    }
}
