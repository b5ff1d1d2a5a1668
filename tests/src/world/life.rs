//! A process: what can be stopped, frozen with its machine, and killed from outside.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use regent::agent::Command;
use regent_core::plan::Exit;
use tokio::sync::mpsc;
use tokio::task::LocalSet;

/// A running agent.
pub(super) struct Process {
    pub(super) life: Rc<Life>,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) exit: Rc<Cell<Option<Exit>>>,
}

#[derive(Default)]
pub(super) struct Life {
    /// The process is stopped.
    pub(super) stopped: Cell<bool>,
    /// Its machine stands still.
    pub(super) standing: Cell<bool>,
    pub(super) killed: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Life {
    /// It does not run, and is not dead.
    pub(super) fn frozen(&self) -> bool {
        self.stopped.get() || self.standing.get()
    }

    /// Lets it notice what became of it.
    pub(super) fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// A process that can be stopped and killed from outside.
pub(super) struct Mortal {
    pub(super) life: Rc<Life>,
    pub(super) body: Option<LocalSet>,
}

impl Future for Mortal {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        *self.life.waker.borrow_mut() = Some(context.waker().clone());
        if self.life.killed.get() {
            self.body = None;
            return Poll::Ready(());
        }
        if self.life.frozen() {
            return Poll::Pending;
        }
        match &mut self.body {
            Some(body) => Pin::new(body).poll(context),
            None => Poll::Ready(()),
        }
    }
}
