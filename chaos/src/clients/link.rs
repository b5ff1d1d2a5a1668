//! A client's connection: made again when it is lost, and never waited for longer than patience lasts.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use regent_tests::rig::sql::superuser;
use tokio::time::{sleep, timeout};
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use super::{PACE, Shared};
use crate::history::{Moment, Outcome};

/// How to connect, except where to.
pub(super) fn config(application: &str) -> Config {
    superuser(application)
}

/// How long a client waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    connect: Duration,
    answer: Duration,
    /// An error of the server does not end the connection.
    stays: bool,
}

impl Patience {
    pub(super) const CLIENT: Patience =
        Patience { connect: Duration::from_secs(2), answer: Duration::from_secs(3), stays: false };
    /// As libpq's `connect_timeout` has it for each host.
    pub(super) const SEVERAL_HOSTS: Patience =
        Patience { connect: Duration::from_millis(500), answer: Duration::from_secs(3), stays: false };
    /// To see when a server takes writes.
    pub(super) const ENDLESS: Patience = Patience { connect: Duration::MAX, answer: Duration::MAX, stays: true };
}

/// A connection that is made when it is needed.
pub(super) struct Link {
    pub(super) shared: Arc<Shared>,
    hosts: Vec<Config>,
    patience: Patience,
    client: Option<Client>,
}

/// Rows as text.
pub(super) type Answer = Vec<Vec<String>>;

impl Link {
    pub(super) fn new(shared: Arc<Shared>, hosts: Vec<Config>, patience: Patience) -> Self {
        Link { shared, hosts, patience, client: None }
    }

    pub(super) fn now(&self) -> Moment {
        self.shared.clock.now()
    }

    /// Waits a moment, and until there is a connection; `false`: it is time to end.
    pub(super) async fn ready(&mut self) -> bool {
        loop {
            sleep(PACE).await;
            if self.shared.stopped() {
                return false;
            }
            if self.client.as_ref().is_some_and(|client| !client.is_closed()) {
                return true;
            }
            self.client = self.reach().await;
        }
    }

    async fn reach(&self) -> Option<Client> {
        for host in &self.hosts {
            let connect = async {
                let (client, connection) = host.connect(NoTls).await.ok()?;
                tokio::task::spawn_local(connection);
                Some(client)
            };
            if let Some(Some(client)) = self.patiently(self.patience.connect, connect).await {
                return Some(client);
            }
        }
        None
    }

    /// Sends one statement. `Unknown`: it may yet be carried out; the connection is given up.
    pub(super) async fn ask(&mut self, sql: &str) -> Outcome<Answer> {
        let Some(client) = &self.client else { return Outcome::Refused("there is no connection".to_owned()) };
        let (outcome, keep) = match self.patiently(self.patience.answer, client.simple_query(sql)).await {
            None => (Outcome::Unknown("no answer in time".to_owned()), false),
            Some(Ok(messages)) => (Outcome::Done(messages.iter().filter_map(row).collect()), true),
            Some(Err(error)) => match error.as_db_error() {
                // PostgreSQL, "Error Message Fields": ERROR ends the transaction, FATAL the session, whatever that was doing.
                Some(said) if said.severity() == "ERROR" => (Outcome::Refused(words(said)), self.stays(said)),
                Some(said) => (Outcome::Unknown(words(said)), false),
                None => (Outcome::Unknown(error.to_string()), false),
            },
        };
        if !keep {
            self.client = None;
        }
        outcome
    }

    /// After "read-only" a client behind a proxy looks for the primary elsewhere.
    fn stays(&self, said: &DbError) -> bool {
        self.patience.stays || *said.code() == SqlState::T_R_SERIALIZATION_FAILURE
    }

    /// As [`Link::ask`] for each in turn; ends at the first that is not done.
    pub(super) async fn ask_all(&mut self, statements: &[String]) -> Result<Vec<Answer>, Outcome<Answer>> {
        let mut answers = Vec::new();
        for sql in statements {
            match self.ask(sql).await {
                Outcome::Done(answer) => answers.push(answer),
                not_done @ (Outcome::Refused(_) | Outcome::Unknown(_)) => return Err(not_done),
            }
        }
        Ok(answers)
    }

    /// What `work` comes to, unless it takes too long. Endless patience ends with the campaign.
    async fn patiently<T>(&self, within: Duration, work: impl Future<Output = T>) -> Option<T> {
        let began = Instant::now();
        let mut work = pin!(work);
        while began.elapsed() < within && !(within == Duration::MAX && self.shared.stopped()) {
            let step = Duration::from_millis(100).min(within.saturating_sub(began.elapsed()));
            if let Ok(done) = timeout(step, &mut work).await {
                return Some(done);
            }
        }
        None
    }
}

fn words(said: &DbError) -> String {
    format!("{}: {}", said.severity(), said.message())
}

fn row(message: &SimpleQueryMessage) -> Option<Vec<String>> {
    let SimpleQueryMessage::Row(row) = message else { return None };
    Some((0..row.len()).map(|i| row.get(i).unwrap_or_default().to_owned()).collect())
}
