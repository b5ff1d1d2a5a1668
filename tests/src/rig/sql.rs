//! SQL from a test.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use super::Trouble;
use super::settings::{PASSWORD, SUPERUSER};

/// A server, or a proxy before one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its address.
    pub host: Ipv4Addr,
    /// Its port.
    pub port: u16,
}

impl Target {
    /// Runs one query as superuser over a new connection and returns its rows as text (NULL: empty).
    ///
    /// # Errors
    /// No connection, no answer `within`, or PostgreSQL's message.
    pub fn rows(self, sql: &str, within: Duration) -> Result<Vec<Vec<String>>, Trouble> {
        runtime()?.block_on(async {
            let work = async {
                let client = self.connect("rig").await?;
                let messages = client.simple_query(sql).await.map_err(|e| Trouble::new(explain(&e)))?;
                Ok(messages.iter().filter_map(row).collect())
            };
            timeout(within, work).await.unwrap_or_else(|_| Err(Trouble::new(format!("no answer in {within:?}"))))
        })
    }

    /// As [`Target::rows`], for one value.
    ///
    /// # Errors
    /// As [`Target::rows`], or there is no row.
    pub fn value(self, sql: &str, within: Duration) -> Result<String, Trouble> {
        let first = self.rows(sql, within)?.into_iter().next().and_then(|row| row.into_iter().next());
        first.ok_or_else(|| Trouble::new(format!("no row: {sql}")))
    }

    /// A connection. The caller keeps the deadline: `connect_timeout` covers no more than TCP.
    pub(super) async fn connect(self, application: &str) -> Result<Client, Trouble> {
        connect(&self.config(application)).await
    }

    /// How to connect to it as superuser.
    #[must_use]
    pub fn config(self, application: &str) -> Config {
        let mut config = superuser(application);
        config.host(self.host.to_string()).port(self.port);
        config
    }
}

/// How the superuser connects, except where to.
#[must_use]
pub fn superuser(application: &str) -> Config {
    let mut config = Config::new();
    config.user(SUPERUSER).password(PASSWORD).dbname("postgres").application_name(application);
    config
}

/// A connection; [`Target::connect`] says who keeps the deadline.
pub(super) async fn connect(config: &Config) -> Result<Client, Trouble> {
    let (client, connection) = config.connect(NoTls).await.map_err(|e| Trouble::new(explain(&e)))?;
    tokio::spawn(connection);
    Ok(client)
}

/// A runtime for one conversation.
pub(super) fn runtime() -> Result<Runtime, Trouble> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}

fn row(message: &SimpleQueryMessage) -> Option<Vec<String>> {
    let SimpleQueryMessage::Row(row) = message else { return None };
    Some((0..row.len()).map(|i| row.get(i).unwrap_or_default().to_owned()).collect())
}

/// tokio-postgres shows "db error" and no more: the server's words are in its source.
pub(super) fn explain(e: &tokio_postgres::Error) -> String {
    use std::error::Error;
    e.as_db_error().map_or_else(
        || e.source().map_or_else(|| e.to_string(), |source| format!("{e}: {source}")),
        |db| format!("{}: {}", db.severity(), db.message()),
    )
}

/// The first column of a row, where this message of `pgoutput` is its insertion (PostgreSQL documentation, "Logical
/// Replication Message Formats").
#[must_use]
pub fn inserted(message: &[u8]) -> Option<i64> {
    let tuple = message.strip_prefix(b"I")?.get(4..)?.strip_prefix(b"N")?.get(2..)?;
    let (length, text) = tuple.strip_prefix(b"t")?.split_at_checked(4)?;
    let length = u32::from_be_bytes(length.try_into().ok()?);
    std::str::from_utf8(text.get(..usize::try_from(length).ok()?)?).ok()?.parse().ok()
}
