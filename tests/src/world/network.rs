//! Who finds whose REST API where.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use regent::agent::Network;
use regent::clock::Clock;
use regent::failsafe;
use regent::status::Status;
use regent_core::failsafe::Notice;
use regent_core::peers::{PeerReply, Question};
use regent_core::units::MemberName;
use tokio::sync::watch;

use super::clock::SimClock;
use super::life::Life;

/// When which member agreed that another one goes on: `(who asked, who agreed)`.
pub(super) type Agreed = Rc<RefCell<BTreeMap<(String, String), Vec<Duration>>>>;

pub(super) type Directory = Rc<RefCell<BTreeMap<String, Door>>>;

/// Where others find an agent's REST API.
pub(super) struct Door {
    pub(super) failsafe: failsafe::Door,
    pub(super) status: watch::Receiver<Arc<Status>>,
    pub(super) life: Rc<Life>,
    pub(super) clock: SimClock,
}

/// The network between the agents' REST APIs.
#[derive(Clone)]
pub struct SimNetwork {
    directory: Directory,
    agreed: Agreed,
    epoch: tokio::time::Instant,
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

    async fn confirm(
        &self,
        whom: BTreeMap<MemberName, String>,
        notice: Notice,
        within: Duration,
    ) -> BTreeMap<MemberName, bool> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let mut silent = false;
        let agreed = whom.into_keys().map(|name| {
            let agreed = self.agrees(&name, &notice, &mut silent);
            (name, agreed)
        });
        let agreed = agreed.collect();
        tokio::time::sleep(if silent { within } else { Duration::from_millis(1) }).await;
        agreed
    }

    async fn lives(&self, api_url: String, _within: Duration) -> bool {
        let host = api_url.split(['/', ':']).find(|part| !part.is_empty() && *part != "http").unwrap_or_default();
        self.is_alive(host)
    }
}

impl SimNetwork {
    pub(super) fn of(directory: Directory, agreed: Agreed, epoch: tokio::time::Instant) -> SimNetwork {
        SimNetwork { directory, agreed, epoch }
    }

    fn is_alive(&self, name: &str) -> bool {
        self.directory.borrow().get(name).is_some_and(|door| !door.life.killed.get())
    }

    fn agrees(&self, name: &MemberName, notice: &Notice, silent: &mut bool) -> bool {
        let directory = self.directory.borrow();
        let Some(door) = directory.get(name.as_str()).filter(|door| !door.life.killed.get()) else { return false };
        *silent |= door.life.frozen();
        let (ttl, on) = (door.status.borrow().ttl, door.status.borrow().failsafe_mode);
        let agrees = !door.life.frozen() && on && door.failsafe.agrees(notice.clone(), door.clock.now(), ttl);
        if agrees {
            let pair = (notice.name.to_string(), name.to_string());
            self.agreed.borrow_mut().entry(pair).or_default().push(self.epoch.elapsed());
        }
        agrees
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
