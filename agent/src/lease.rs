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
