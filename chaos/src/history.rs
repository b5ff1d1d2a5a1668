//! What clients did and what they were told: the only thing that checkers read.
//!
//! All times are of one clock, in microseconds since the campaign began. An operation whose outcome is unknown may have
//! happened or not, then or later; only a definite refusal means that it did not.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Microseconds since the campaign began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moment(pub u64);

impl Moment {
    /// From one moment to a later one; zero if it is not later.
    #[must_use]
    pub fn until(self, later: Moment) -> Duration {
        Duration::from_micros(later.0.saturating_sub(self.0))
    }

    /// In seconds.
    #[must_use]
    pub fn seconds(self) -> f64 {
        Duration::from_micros(self.0).as_secs_f64()
    }

    /// A later one.
    #[must_use]
    pub fn after(self, span: Duration) -> Moment {
        Moment(self.0 + u64::try_from(span.as_micros()).unwrap_or(u64::MAX / 2))
    }
}

/// The one clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// It is zero now.
    #[must_use]
    pub fn start() -> Clock {
        Clock(Instant::now())
    }

    /// What it shows.
    #[must_use]
    pub fn now(self) -> Moment {
        Moment(u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}

/// What became of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<T> {
    /// It was acknowledged, and this is what was answered.
    Done(T),
    /// It did not happen, and never will.
    Refused(String),
    /// Nobody knows.
    Unknown(String),
}

impl<T> Outcome<T> {
    /// What was answered.
    pub fn done(&self) -> Option<&T> {
        match self {
            Outcome::Done(answer) => Some(answer),
            Outcome::Refused(_) | Outcome::Unknown(_) => None,
        }
    }

    /// Whether it may have happened, acknowledged or not.
    pub fn possible(&self) -> bool {
        !matches!(self, Outcome::Refused(_))
    }
}

/// An operation from beginning to end.
#[derive(Clone, Debug)]
pub struct Op<Asked, Answer> {
    /// When it was sent.
    pub sent: Moment,
    /// When its outcome came, or the client gave up.
    pub ended: Moment,
    /// What was asked for.
    pub asked: Asked,
    /// What became of it.
    pub outcome: Outcome<Answer>,
}

/// A row that was to be inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its number: never sent twice.
    pub id: i64,
    /// The way it went.
    pub way: Way,
}

/// How a client reaches a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Way {
    /// Through HAProxy.
    Proxy,
    /// To the first of all nodes that takes writes.
    Direct,
    /// On the socket of one node, counted from 0, whatever that is.
    Node(usize),
}

/// Insertions; the answer is the timeline that the server writes.
pub type Rows = Vec<Op<Row, u32>>;

/// What a transaction does to a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Appends a value, which is never sent twice to the same list.
    Append(i64, i64),
    /// Reads the whole list.
    Read(i64),
}

/// Transactions on lists; the answer has what each [`Step::Read`] saw, in order.
pub type Lists = Vec<Op<Vec<Step>, Vec<Vec<i64>>>>;

/// A look at all accounts: their number and their sum.
pub type Sums = Vec<Op<(), (i64, i64)>>;

/// An increment of a counter; the answer is its new value and the timeline.
pub type Counts = Vec<Op<i64, (i64, u32)>>;

/// Answers to `GET /primary`, by the node that was asked, counted from 0.
pub type Checks = Vec<Op<usize, u16>>;

/// Everything that clients did.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Rows by every way.
    pub rows: Rows,
    /// Transactions on lists.
    pub lists: Lists,
    /// Looks at the bank.
    pub sums: Sums,
    /// Increments, by the counter's key.
    pub counts: Counts,
    /// Health checks.
    pub checks: Checks,
}

impl History {
    /// The longest time between two acknowledgements of one way, of which the later came after `from`, and the earlier before
    /// `to`.
    #[must_use]
    pub fn gap(&self, way: Way, from: Moment, to: Moment) -> Duration {
        let mut acknowledged: Vec<Moment> = self
            .rows
            .iter()
            .filter(|op| op.asked.way == way && op.outcome.done().is_some())
            .map(|op| op.ended)
            .collect();
        acknowledged.sort_unstable();
        let pairs = acknowledged.windows(2).filter_map(|pair| Some((*pair.first()?, *pair.get(1)?)));
        pairs
            .filter(|(earlier, later)| *later > from && *earlier < to)
            .map(|(earlier, later)| earlier.until(later))
            .max()
            .unwrap_or_default()
    }
}
