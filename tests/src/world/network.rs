//! Who finds whose REST API where.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use regent::agent::Network;
use regent::clock::Clock;
use regent::status::Status;
use regent_core::peers::{PeerReply, Question};
use regent_core::units::MemberName;
use tokio::sync::watch;

use super::clock::SimClock;
use super::life::Life;

pub(super) type Directory = Rc<RefCell<BTreeMap<String, Door>>>;

/// Where others find an agent's REST API.
pub(super) struct Door {
    pub(super) status: watch::Receiver<Arc<Status>>,
    pub(super) life: Rc<Life>,
    pub(super) clock: SimClock,
}

/// The network between the agents' REST APIs.
#[derive(Clone)]
pub struct SimNetwork {
    directory: Directory,
}

impl Network for SimNetwork {
    async fn ask(&self, whom: BTreeMap<MemberName, Question>) -> BTreeMap<MemberName, PeerReply> {
        let mut took = Duration::from_millis(2);
        let replies: BTreeMap<_, _> = whom
            .into_iter()
            .map(|(name, question)| {
                let mut silent = false;
                let reply = self.answer(&name, &mut silent);
                if silent {
                    took = took.max(question.within);
                }
                (name, reply)
            })
            .collect();
        // A process that is stopped keeps its connections and answers nothing.
        tokio::time::sleep(took).await;
        replies
    }

    async fn lives(&self, api_url: String, _within: Duration) -> bool {
        let host = api_url.split(['/', ':']).find(|part| !part.is_empty() && *part != "http").unwrap_or_default();
        self.is_alive(host)
    }
}

impl SimNetwork {
    pub(super) fn of(directory: Directory) -> SimNetwork {
        SimNetwork { directory }
    }

    fn is_alive(&self, name: &str) -> bool {
        self.directory.borrow().get(name).is_some_and(|door| !door.life.killed.get())
    }

    fn answer(&self, name: &MemberName, silent: &mut bool) -> PeerReply {
        let directory = self.directory.borrow();
        let Some(door) = directory.get(name.as_str()).filter(|door| !door.life.killed.get()) else {
            return PeerReply::Unreachable("connection refused".into());
        };
        if door.life.frozen() {
            *silent = true;
            return PeerReply::Unreachable("no answer".into());
        }
        let status = door.status.borrow().clone();
        let stale = door.clock.now() >= status.next_turn_due + status.ttl;
        match status.as_peer().filter(|_| !stale) {
            Some(answer) => PeerReply::Answer(answer),
            None => PeerReply::Unreachable("its PostgreSQL does not answer".into()),
        }
    }
}

/// Who answers 200 to `GET /primary` at this moment.
pub(super) fn answering(directory: &Directory) -> Vec<String> {
    let directory = directory.borrow();
    let serves = |door: &Door| !door.life.killed.get() && !door.life.frozen();
    let positive = |door: &Door| {
        let status = door.status.borrow();
        let runs = status.sql.as_ref().is_some_and(|sql| !sql.in_recovery);
        runs && !status.demoting && status.lock_until.is_some_and(|until| door.clock.now() < until)
    };
    directory.iter().filter(|(_, door)| serves(door) && positive(door)).map(|(name, _)| name.clone()).collect()
}
