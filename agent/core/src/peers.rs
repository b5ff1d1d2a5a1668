//! What other members say of themselves when a candidate asks them (ha-rules section 5, "Peers asked").

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::{Lsn, Timeline};

/// A member to ask for its status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Question {
    /// Its `api_url`.
    pub url: String,
    /// How long its answer is waited for.
    pub within: Duration,
}

/// One member's reply to `GET /patroni`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerReply {
    /// It answered with a usable document.
    Answer(PeerAnswer),
    /// It did not answer in time, or not usably; the reason, for people. Never blocks in asynchronous mode.
    Unreachable(String),
}

/// The parts of a status document that the race reads (rest-api.md section 20).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerAnswer {
    /// It runs as a primary (`xlog.location` present, or role `primary` or `master`).
    pub is_primary: bool,
    /// Its newest position: flush position of a primary, the larger of received and replayed on a standby.
    pub position: Lsn,
    /// Its timeline, when it knows.
    pub timeline: Option<Timeline>,
    /// It may never be promoted.
    pub nofailover: bool,
    /// Among equal candidates the higher one goes first; 1 unless tagged.
    pub failover_priority: i64,
    /// It needs a watchdog and has none, so it can't lead.
    pub watchdog_failed: bool,
}
