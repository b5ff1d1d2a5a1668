//! What happened here lately: the last decisions with what they were taken on, and every change that people watch for, in one
//! numbered sequence. Written by the loop, and by REST for what operators ask; read by REST (`/decisions`, `/events`,
//! `/operations`) from memory.
//!
//! Numbers go on rising over restarts of the agent: they begin at the wall clock of its start, in microseconds. So a reader
//! that names the last number it has seen gets what came after it, also from the next process.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use regent_core::plan::Decision;
use regent_core::snapshot::Snapshot;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::status::Status;

/// How many entries are kept: a day of a quiet cluster, some minutes of a very unquiet one.
const KEPT: usize = 256;
/// Of these decisions what they were taken on is kept as well: some kilobytes each.
const OBSERVED: usize = 32;

/// One entry.
#[derive(Debug)]
pub struct Entry {
    /// Its place in the sequence.
    pub number: u64,
    /// Wall-clock time since 1970 in UTC.
    pub at: Duration,
    /// What happened.
    pub event: Event,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A rule answered that had not answered the turn before, or its plan is another one.
    Decision(Box<Decision>),
    /// Something that people watch for is not what it was.
    Change {
        /// What: `etcd`, `leader`, `role`, `state`, `timeline`, `members`, `sync_standbys`, `pause`.
        what: &'static str,
        /// As it was.
        from: Value,
        /// As it is.
        to: Value,
    },
    /// Something that an operator asked for begins or ends.
    Operation {
        /// The number of its beginning; `None`: this is it.
        id: Option<u64>,
        /// What was asked for.
        what: &'static str,
        /// `running`, or how it ended.
        state: &'static str,
        /// What is to be said of it.
        text: String,
    },
}

/// The shared sequence.
#[derive(Clone, Debug)]
pub struct Journal(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kept: Mutex<Kept>,
    /// Written under the lock of `kept`: both the loop and REST add to it.
    last: watch::Sender<u64>,
    /// Before the first number of this agent.
    begun: u64,
}

#[derive(Debug, Default)]
struct Kept {
    /// Oldest first.
    entries: VecDeque<Arc<Entry>>,
    /// What the latest decisions were taken on, by number.
    observed: VecDeque<(u64, Arc<Snapshot>)>,
}

impl Journal {
    /// An empty one, of an agent that starts now.
    #[must_use]
    pub fn begun_at(wall: SystemTime) -> Journal {
        let micros = wall.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let begun = u64::try_from(micros).unwrap_or(0);
        Journal(Arc::new(Inner { kept: Mutex::default(), last: watch::Sender::new(begun), begun }))
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, event: Event, seen: Option<Arc<Snapshot>>, wall: SystemTime) -> u64 {
        let at = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut kept = self.lock();
        let number = *self.0.last.borrow() + 1;
        kept.entries.push_back(Arc::new(Entry { number, at, event }));
        kept.observed.extend(seen.map(|seen| (number, seen)));
        while kept.entries.len() > KEPT {
            kept.entries.pop_front();
        }
        while kept.observed.len() > OBSERVED {
            kept.observed.pop_front();
        }
        self.0.last.send_replace(number);
        number
    }

    /// Something that is neither: the number of its entry.
    pub fn note(&self, event: Event, wall: SystemTime) -> u64 {
        self.add(event, None, wall)
    }

    /// All numbers of this agent are larger; smaller ones are of the processes before it.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.0.begun
    }

    /// A decision that is another one than the last.
    pub fn decided(&self, decision: &Decision, seen: &Snapshot, wall: SystemTime) {
        self.add(Event::Decision(Box::new(decision.clone())), Some(Arc::new(seen.clone())), wall);
    }

    /// What differs between two published statuses.
    pub fn published(&self, before: &Status, after: &Status, wall: SystemTime) {
        let quick = |status: &Status| {
            let timeline = status.sql.as_ref().and_then(|sql| sql.timeline);
            let revision = status.last_view.as_ref().map(|view| view.revision);
            (status.view.is_some(), revision, status.role, status.state, timeline, status.pause)
        };
        if quick(before) == quick(after) {
            return;
        }
        for ((what, from), (_, to)) in watched(before).into_iter().zip(watched(after)) {
            if from != to {
                self.add(Event::Change { what, from, to }, None, wall);
            }
        }
    }

    /// Entries after this number, oldest first, and whether some between it and them are not kept any more.
    #[must_use]
    pub fn after(&self, number: u64) -> (Vec<Arc<Entry>>, bool) {
        let kept = self.lock();
        let newer: Vec<_> = kept.entries.iter().filter(|entry| entry.number > number).cloned().collect();
        let lost = kept.entries.len() >= KEPT && newer.len() == KEPT && number > 0;
        (newer, lost)
    }

    /// The last decisions with a number below this one, latest first, each with what it was taken on as long as that is kept.
    #[must_use]
    pub fn decisions(&self, below: u64, count: usize) -> Vec<(Arc<Entry>, Option<Arc<Snapshot>>)> {
        let kept = self.lock();
        let decision = |entry: &&Arc<Entry>| entry.number < below && matches!(entry.event, Event::Decision(_));
        let decisions = kept.entries.iter().rev().filter(decision);
        let seen = |entry: &Arc<Entry>| {
            kept.observed.iter().find(|(number, _)| *number == entry.number).map(|(_, seen)| Arc::clone(seen))
        };
        decisions.take(count).map(|entry| (Arc::clone(entry), seen(entry))).collect()
    }

    /// Wakes when there is more.
    #[must_use]
    pub fn news(&self) -> watch::Receiver<u64> {
        self.0.last.subscribe()
    }
}

/// What people watch for, in a fixed order. A cluster that could not be read is as it was.
fn watched(status: &Status) -> [(&'static str, Value); 8] {
    let view = status.last_view.as_ref();
    let leader = view.and_then(|view| view.leader.as_ref()).map(|key| key.name.to_string());
    let members: Vec<_> = view.into_iter().flat_map(|view| view.members.keys()).map(ToString::to_string).collect();
    let sync = view.and_then(|view| view.sync.as_ref());
    let sync: Vec<_> = sync.into_iter().flat_map(|sync| &sync.standbys).map(ToString::to_string).collect();
    [
        ("etcd", if status.view.is_some() { "answers" } else { "silent" }.into()),
        ("leader", leader.into()),
        ("role", status.role.word().into()),
        ("state", status.state.word().0.into()),
        ("timeline", status.sql.as_ref().and_then(|sql| sql.timeline).map(|timeline| timeline.0).into()),
        ("members", members.into()),
        ("sync_standbys", sync.into()),
        ("pause", status.pause.into()),
    ]
}

impl Entry {
    /// The kind of it, as the event's name.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.event {
            Event::Decision(_) => "decision",
            Event::Change { what, .. } => what,
            Event::Operation { .. } => "operation",
        }
    }

    /// For readers: `number`, `time`, and what happened.
    #[must_use]
    pub fn shown(&self) -> Map<String, Value> {
        let more = match &self.event {
            Event::Decision(decision) => {
                let Decision { rule, why, plan, look_again: _ } = &**decision;
                let plan = serde_json::to_value(plan).unwrap_or_default();
                json!({"rule": rule, "why": why, "plan": plan})
            }
            Event::Change { what, from, to } => json!({"what": what, "from": from, "to": to}),
            Event::Operation { id, what, state, text } => {
                json!({"operation": what, "id": id.unwrap_or(self.number), "state": state, "text": text})
            }
        };
        let head = [("number".to_owned(), self.number.into()), ("time".to_owned(), time(self.at).into())];
        head.into_iter().chain(more.as_object().cloned().unwrap_or_default()).collect()
    }
}

/// ISO 8601 in UTC, to the millisecond.
pub(crate) fn time(at: Duration) -> String {
    let millis = i64::try_from(at.as_millis()).unwrap_or(0);
    jiff::Timestamp::from_millisecond(millis).unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

#[cfg(test)]
mod tests {
    use regent_core::fixture::primary;
    use regent_core::rules::decide;

    use super::*;

    #[test]
    fn numbers_rise_over_restarts_and_the_oldest_go_first() {
        let start = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let journal = Journal::begun_at(start);
        let seen = primary().build();
        for _ in 0..KEPT + 10 {
            journal.decided(&decide(&seen), &seen, start);
        }
        let (all, lost) = journal.after(0);
        assert_eq!((all.len(), lost), (KEPT, false), "who asks for all misses nothing");
        let first = all[0].number;
        assert_eq!(first, 1_800_000_000_000_000 + 11);
        let number = |entries: &[Arc<Entry>]| entries.iter().map(|entry| entry.number).collect::<Vec<_>>();
        let last = first + KEPT as u64 - 1;
        assert_eq!(number(&journal.after(last - 2).0), [last - 1, last]);
        assert!(journal.after(5).1 && !journal.after(first).1, "a gap is told");
        let next = Journal::begun_at(start + Duration::from_secs(60));
        next.decided(&decide(&seen), &seen, start);
        assert!(next.after(last).0[0].number > last);
    }

    #[test]
    fn a_decision_is_kept_with_what_it_was_taken_on() {
        let journal = Journal::begun_at(UNIX_EPOCH);
        let seen = primary().build();
        for _ in 0..OBSERVED + 1 {
            journal.decided(&decide(&seen), &seen, UNIX_EPOCH + Duration::from_millis(1_500));
        }
        let decisions = journal.decisions(u64::MAX, usize::MAX);
        assert_eq!(decisions.iter().filter(|(_, seen)| seen.is_some()).count(), OBSERVED);
        let (latest, kept) = &decisions[0];
        assert_eq!(kept.as_deref(), Some(&seen), "the latest");
        let shown = Value::Object(latest.shown());
        assert_eq!(shown["number"], OBSERVED + 1);
        assert_eq!(shown["time"], "1970-01-01T00:00:01.500Z");
        assert_eq!((&shown["rule"], &shown["plan"]["postgres"]), (&json!("lead"), &json!("Stay")));
        let again: Snapshot = serde_json::from_value(serde_json::to_value(&seen).unwrap()).unwrap();
        assert_eq!(decide(&again), decide(&seen), "what is shown can be decided on again");
    }
}
