//! What must hold of a history, whatever happened. Pure: a checker knows no clock, no cluster and nothing of Regent, so that it
//! judges Patroni's histories too, and can itself be tested with histories that are wrong.

pub mod answers;
pub mod lists;
pub mod money;
pub mod rows;
pub mod writers;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::history::Moment;

/// What must not happen. The letter and number are the invariant of the design that it breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Breach {
    /// A write was acknowledged by an older timeline after the next one had begun to acknowledge (S1).
    BothWriting,
    /// Two nodes wrote one timeline (S2).
    SharedTimeline,
    /// An acknowledged row is on no later primary (S3).
    Lost,
    /// More was lost than the bound that asynchronous replication has (S9).
    LostBeyondBound,
    /// Something is there that nobody wrote, or that was refused, or that is there twice.
    Phantom,
    /// Transactions that no order explains.
    Cycle,
    /// A read that no state of the data explains.
    IncompatibleRead,
    /// Money was made or destroyed.
    Money,
    /// A counter went back.
    WentBack,
    /// A health check said "primary" while another node wrote (P5).
    CheckLied,
    /// Leadership changed although nothing happened that may cost it (L3).
    NeedlessFailover,
    /// The cluster did not heal by itself (L1, L2).
    NotHealed,
    /// Epoch or promise fell (S8).
    PromiseFell,
}

impl Breach {
    /// The invariant's id in the design; a dash: PostgreSQL's own promise, that an agent can break.
    #[must_use]
    pub fn invariant(self) -> &'static str {
        match self {
            Breach::BothWriting => "S1",
            Breach::SharedTimeline => "S2",
            Breach::Lost => "S3",
            Breach::LostBeyondBound => "S9",
            Breach::Phantom | Breach::Cycle | Breach::IncompatibleRead | Breach::Money | Breach::WentBack => "–",
            Breach::CheckLied => "P5",
            Breach::NeedlessFailover => "L3",
            Breach::NotHealed => "L1, L2",
            Breach::PromiseFell => "S8",
        }
    }
}

/// One breach, where, and how it is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What.
    pub breach: Breach,
    /// When it began, as far as a history tells.
    pub at: Moment,
    /// In words, with the numbers that prove it.
    pub proof: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { breach, at, proof } = self;
        write!(f, "{breach:?} ({}) at {:.2} s: {proof}", breach.invariant(), at.seconds())
    }
}
