//! What operators asked of the loop over REST, until it is begun or refused, and who waits for it.

use regent_core::plan::{Move, Plan};
use regent_core::request::{Request, Restart};
use tokio::sync::oneshot;

/// Tells a client what became of its request.
type Reply = oneshot::Sender<Result<(), String>>;

/// One restart is scheduled at a time (T2).
pub const ALREADY_SCHEDULED: &str = "Another restart is already scheduled";

/// What operators asked for, and who waits for it.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// To be done at once.
    now: Option<(Request, Option<Reply>)>,
    /// To be done later.
    scheduled: Option<Restart>,
    /// Waits for the restart that runs.
    restarting: Option<Reply>,
}

impl Requests {
    /// What the next decision is to know of.
    pub(crate) fn next(&self) -> Option<Request> {
        let scheduled = || self.scheduled.clone().map(Request::Restart);
        self.now.as_ref().map(|(request, _)| request.clone()).or_else(scheduled)
    }

    pub(crate) fn take(&mut self, request: Request, reply: Reply) {
        // Nobody waits any more when the client has gone.
        match request {
            Request::Restart(restart) if restart.schedule.is_some() => {
                let free = self.scheduled.is_none();
                drop(reply.send(if free { Ok(()) } else { Err(ALREADY_SCHEDULED.to_owned()) }));
                self.scheduled = self.scheduled.take().or(Some(restart));
            }
            Request::Reinitialize { force: true, .. } => {
                drop(reply.send(Ok(())));
                self.now = Some((request, None));
            }
            Request::Restart(_) | Request::Reinitialize { .. } => match &self.now {
                Some((Request::Restart(_), _)) => drop(reply.send(Err("restart already in progress".to_owned()))),
                Some((Request::Reinitialize { .. }, _)) => {
                    drop(reply.send(Err("reinitialize already in progress".to_owned())));
                }
                None if matches!(request, Request::Reinitialize { .. }) => {
                    drop(reply.send(Ok(())));
                    self.now = Some((request, None));
                }
                None => self.now = Some((request, Some(reply))),
            },
        }
    }

    /// The request that a decision was made on is begun, or refused.
    pub(crate) fn decided(&mut self, plan: &Plan) {
        let reinitialize = matches!(self.now, Some((Request::Reinitialize { .. }, _)));
        let begun = match &plan.postgres {
            Move::Restart { .. } => true,
            Move::Clone { .. } => reinitialize,
            Move::Stay
            | Move::Cancel
            | Move::Bootstrap
            | Move::Restore
            | Move::PrePromote
            | Move::Rewind { .. }
            | Move::GiveUpData { .. }
            | Move::DiscardOldCopy
            | Move::StartPrimary
            | Move::StartStandby(_)
            | Move::Stop(_)
            | Move::Promote(_)
            | Move::Follow(_)
            | Move::Checkpoint
            | Move::ChangeSlots(_)
            | Move::CopySlots { .. }
            | Move::ResumeReplay
            | Move::SetSyncNames(_)
            | Move::RemoveUnfinished
            | Move::SetAside => false,
        };
        if !begun && plan.refuse.is_none() {
            return;
        }
        let reply = match self.now.take() {
            Some((_, reply)) => reply,
            None => {
                self.scheduled = None;
                None
            }
        };
        match (&plan.refuse, reply) {
            (Some(why), Some(reply)) => drop(reply.send(Err(why.clone()))),
            (None, reply) => self.restarting = reply,
            (Some(_), None) => {}
        }
    }

    /// A restart has ended.
    pub(crate) fn restarted(&mut self, error: Option<String>) {
        if let Some(reply) = self.restarting.take() {
            drop(reply.send(error.map_or(Ok(()), Err)));
        }
    }

    /// It was replaced by something else: who waits for it is told by the silence.
    pub(crate) fn replaced(&mut self) {
        self.restarting = None;
    }

    /// Forgets what is scheduled; tells whether there was something.
    pub(crate) fn unschedule(&mut self) -> bool {
        self.scheduled.take().is_some()
    }
}
