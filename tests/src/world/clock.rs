//! The clock of one machine.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use regent::clock::Clock;
use regent_core::units::Instant;

use crate::rng::Rng;

/// One machine's clock: it began at its own time and runs at its own rate.
#[derive(Clone)]
pub struct SimClock {
    pub(super) epoch: tokio::time::Instant,
    pub(super) uptime: Duration,
    /// Parts per million that this clock is fast (or slow).
    pub(super) drift_ppm: i32,
    pub(super) dice: Rc<RefCell<Rng>>,
}

impl Clock for SimClock {
    fn now(&self) -> Instant {
        let elapsed = self.epoch.elapsed();
        let error = elapsed / 1_000_000 * self.drift_ppm.unsigned_abs();
        let local = if self.drift_ppm < 0 { elapsed.saturating_sub(error) } else { elapsed + error };
        Instant(self.uptime + local)
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + self.epoch.elapsed()
    }

    fn dice(&self) -> u64 {
        self.dice.borrow_mut().draw()
    }
}
