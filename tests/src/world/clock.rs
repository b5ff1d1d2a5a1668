//! The clocks of one machine. True time is virtual time; etcd's twin keeps it.
//!
//! ```text
//!   local ──┐      ╱‾  fast                 A clock's rate differs from true time by at most the bound, and may wander
//!           │   _╱                          within it. Deadlines are read off this clock; how long a process sleeps is
//!           │ ╱     slow                    true time, so it wakes a little early or late by its own clock.
//!           └────────────── true
//! ```

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use regent::clock::Clock;
use regent_core::units::Instant;

use super::flaw::Time;
use crate::rng::Rng;

/// The largest rate error, in parts per million. Agents allow for 1 % (docs/safety.md): what is left between the two, a
/// thousandth of the TTL, is the time that a kill may take.
pub const RATE_ERROR_PPM: i32 = 9_000;

/// How a clock goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gait {
    /// Always at this rate error, in parts per million.
    Steady(i32),
    /// At another one within the bound every few seconds.
    Wandering,
}

impl Gait {
    /// Most often at the edge of what is allowed for.
    pub(super) fn draw(rng: &mut Rng) -> Gait {
        match rng.below(4) {
            0 => Gait::Steady(-RATE_ERROR_PPM),
            1 => Gait::Steady(any_rate(rng)),
            2 => Gait::Steady(RATE_ERROR_PPM),
            _ => Gait::Wandering,
        }
    }
}

fn any_rate(rng: &mut Rng) -> i32 {
    let span = u64::from(RATE_ERROR_PPM.unsigned_abs()) * 2;
    i32::try_from(rng.below(span + 1)).unwrap_or_default() - RATE_ERROR_PPM
}

/// One machine's clock: it began at its own time and runs at its own rate. Clones are the same clock.
#[derive(Clone)]
pub struct SimClock {
    epoch: tokio::time::Instant,
    dial: Rc<RefCell<Dial>>,
}

struct Dial {
    gait: Gait,
    rng: Rng,
    dice: Rng,
    time: Time,
    /// From `since` to `until`, in true time, the rate error is `ppm`; at `since` the clock showed `shown`.
    ppm: i32,
    since: Duration,
    until: Duration,
    shown: Duration,
    /// How far the wall clock was set forward, and back.
    forward: Duration,
    back: Duration,
    /// Since when the machine stands still, and for how long it did so before.
    standing: Option<Duration>,
    stood: Duration,
}

impl SimClock {
    pub(super) fn new(epoch: tokio::time::Instant, uptime: Duration, gait: Gait, time: Time, seed: u64) -> SimClock {
        let zero = Duration::ZERO;
        let (rng, dice) = (Rng::new(!seed), Rng::new(seed));
        let (forward, back, stood) = (zero, zero, zero);
        let mut dial = Dial {
            gait,
            rng,
            dice,
            time,
            ppm: 0,
            since: zero,
            until: zero,
            shown: uptime,
            forward,
            back,
            standing: None,
            stood,
        };
        dial.next_rate();
        SimClock { epoch, dial: Rc::new(RefCell::new(dial)) }
    }

    /// Somebody sets the wall clock.
    pub fn step_wall(&self, by: Duration, back: bool) {
        let mut dial = self.dial.borrow_mut();
        let way = if back { &mut dial.back } else { &mut dial.forward };
        *way += by;
    }

    /// The machine stands still, or goes on; boot time runs on all the same.
    pub(super) fn stand(&self, still: bool) {
        let now = self.epoch.elapsed();
        let mut dial = self.dial.borrow_mut();
        match (dial.standing, still) {
            (None, true) => dial.standing = Some(now),
            (Some(since), false) => {
                dial.stood += now.saturating_sub(since);
                dial.standing = None;
            }
            (None, false) | (Some(_), true) => {}
        }
    }
}

impl Dial {
    /// Draws the rate of the next stretch of time.
    fn next_rate(&mut self) {
        let error = match self.gait {
            Gait::Steady(ppm) => {
                self.until = Duration::MAX;
                ppm
            }
            Gait::Wandering => {
                self.until = self.since + self.rng.between(Duration::from_millis(100), Duration::from_secs(10));
                any_rate(&mut self.rng)
            }
        };
        self.ppm = match self.time {
            Time::Slow(by) => error - by,
            Time::Boot | Time::Wall | Time::Awake => error,
        };
    }

    /// Boot time at `now` of true time.
    fn boot(&mut self, now: Duration) -> Duration {
        while now >= self.until {
            self.shown += scaled(self.until - self.since, self.ppm);
            self.since = self.until;
            self.next_rate();
        }
        self.shown + scaled(now.saturating_sub(self.since), self.ppm)
    }
}

/// What a clock with this rate error shows of `elapsed`.
fn scaled(elapsed: Duration, ppm: i32) -> Duration {
    let error = elapsed / 1_000_000 * ppm.unsigned_abs();
    if ppm < 0 { elapsed.saturating_sub(error) } else { elapsed + error }
}

impl Clock for SimClock {
    fn now(&self) -> Instant {
        let now = self.epoch.elapsed();
        let mut dial = self.dial.borrow_mut();
        let boot = dial.boot(now);
        Instant(match dial.time {
            Time::Boot | Time::Slow(_) => boot,
            Time::Wall => (boot + dial.forward).saturating_sub(dial.back),
            Time::Awake => boot.saturating_sub(dial.stood),
        })
    }

    fn wall(&self) -> SystemTime {
        let dial = self.dial.borrow();
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + self.epoch.elapsed() + dial.forward - dial.back
    }

    fn dice(&self) -> u64 {
        self.dial.borrow_mut().dice.draw()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_clock_leaves_its_bound_and_none_goes_back() {
        for (seed, gait) in
            [(1, Gait::Steady(-RATE_ERROR_PPM)), (2, Gait::Wandering), (3, Gait::Steady(RATE_ERROR_PPM))]
        {
            let clock = SimClock::new(tokio::time::Instant::now(), Duration::from_secs(5), gait, Time::Boot, seed);
            for _ in 0..400 {
                let (before, slept) = (clock.now(), Duration::from_millis(777));
                tokio::time::sleep(slept).await;
                let error = slept * RATE_ERROR_PPM.unsigned_abs() / 1_000_000 + Duration::from_micros(1);
                let shown = clock.now().since(before);
                assert!(shown >= slept - error && shown <= slept + error, "{gait:?}: {shown:?}");
            }
        }
    }
}
