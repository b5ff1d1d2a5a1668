//! SQL on the local server: one persistent connection for the facts of each look, fresh ones for everything else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postgres_protocol::escape::{escape_identifier, escape_literal};
use regent_core::config::Logical;
use regent_core::postgres::{Probe, Slot, SqlFacts, WalSender};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};
use tokio_postgres::config::{ChannelBinding, SslMode, SslNegotiation};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, SimpleQueryMessage, SimpleQueryRow};

use crate::conf::wanted;
use crate::conninfo::Address;
use crate::settings::{Credentials, Settings};
use crate::{PgError, guc, tls};

/// Session settings for looks: nothing of ours waits longer than this on a server that hangs (ha-rules section 2).
const LOOK_OPTIONS: &str = "-c statement_timeout=2s -c lock_timeout=2s -c datestyle=iso -c search_path=pg_catalog";
/// Session settings for commands: they may take their time, and wait for no standby (B7).
const COMMAND_OPTIONS: &str = "-c statement_timeout=0 -c synchronous_commit=local -c search_path=pg_catalog";
/// How long a command waits for its connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// All facts in one message. The control file is asked for a standby's timeline only while it receives nothing.
const FACTS: &str = "
SELECT r AS in_recovery,
       CASE WHEN r THEN coalesce(w.received_tli, greatest(
                   (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
                   (SELECT timeline_id FROM pg_control_checkpoint())))
            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8))::bit(32)::int END AS timeline,
       CASE WHEN NOT r THEN pg_current_wal_flush_lsn() END AS flush_lsn,
       CASE WHEN r THEN greatest(pg_last_wal_receive_lsn(), w.written_lsn) END AS receive_lsn,
       CASE WHEN r THEN pg_last_wal_replay_lsn() END AS replay_lsn,
       CASE WHEN r THEN pg_is_wal_replay_paused() ELSE false END AS replay_paused,
       CASE WHEN r THEN pg_last_xact_replay_timestamp() END AS replayed_at,
       r AND coalesce(w.status = 'streaming', false) AS streaming,
       CASE WHEN r THEN w.latest_end_lsn END AS latest_end_lsn,
       r AND current_setting('restore_command') <> '' AS restores_from_archive,
       CASE WHEN r THEN current_setting('primary_conninfo') END AS conninfo,
       current_setting('synchronous_standby_names') AS sync_names,
       pg_postmaster_start_time() AS started_at,
       current_setting('server_version_num') AS server_version,
       pg_conf_load_time() AS configured_at
  FROM (SELECT pg_is_in_recovery() AS r OFFSET 0) AS x LEFT JOIN pg_stat_wal_receiver AS w ON true;
SELECT slot_name, slot_type, database, plugin, active, catalog_xmin,
       CASE slot_type WHEN 'logical' THEN confirmed_flush_lsn ELSE restart_lsn END AS position,
       coalesce(xmin, catalog_xmin) IS NOT NULL AS holds_xmin, coalesce(wal_status = 'lost', false) AS lost,
       temporary OR coalesce(to_jsonb(s) ->> 'failover' = 'true', false) AS not_ours
  FROM pg_replication_slots AS s ORDER BY 1;
SELECT usename, application_name, host(client_addr) AS client_addr, state, sync_state, sync_priority,
       CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN replay_lsn
            WHEN 'remote_write' THEN write_lsn ELSE flush_lsn END AS position
  FROM pg_stat_replication ORDER BY pid";

/// Settings that a restart could change, asked again only when the configuration was loaded anew.
const RESTART_SETTINGS: &str = "
SELECT name, setting, unit, vartype, current_setting(name) AS shown, pending_restart,
       CASE WHEN pending_restart THEN (SELECT f.setting FROM pg_file_settings AS f
                                        WHERE f.name = s.name ORDER BY f.seqno DESC LIMIT 1) END AS in_file
  FROM pg_settings AS s WHERE context = 'postmaster' OR pending_restart";

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It does not accept connections yet, or no more (SQLSTATE 57P03).
    Rejecting,
    /// It answered with an error.
    Answered(String),
    /// It did not answer at all.
    Silent(String),
}

impl Failure {
    fn of(error: &tokio_postgres::Error) -> Failure {
        match error.as_db_error() {
            Some(db) if *db.code() == SqlState::CANNOT_CONNECT_NOW => Failure::Rejecting,
            Some(db) => Failure::Answered(format!("{} (SQLSTATE {})", db.message(), db.code().code())),
            None => Failure::Silent(chain(error)),
        }
    }

    pub(crate) fn into_error(self, what: &str) -> PgError {
        let cause = match self {
            Failure::Rejecting => "the server does not accept connections yet, or no more".to_owned(),
            Failure::Answered(text) | Failure::Silent(text) => text,
        };
        PgError::Sql { what: what.to_owned(), cause }
    }
}

/// What the driver said, as an error of ours.
pub(crate) fn failed(error: &tokio_postgres::Error, what: &str) -> PgError {
    Failure::of(error).into_error(what)
}

/// The driver's own text is only "db error": the cause says more.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Where the agent itself connects (config.md 2.3, "Local connections").
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Local {
    Socket(PathBuf),
    Tcp(String),
}

impl Local {
    pub(crate) fn of(settings: &Settings) -> Local {
        let tcp = || Local::Tcp(settings.local_host.clone());
        if !settings.use_unix_socket {
            return tcp();
        }
        match settings.parameters.get("unix_socket_directories") {
            Some(list) => {
                let mut directories = list.split(',').map(|dir| dir.trim().trim_matches('"'));
                directories.find(|dir| dir.starts_with('/')).map_or_else(tcp, |dir| Local::Socket(PathBuf::from(dir)))
            }
            None => Local::Socket(default_socket_dir(settings.port)),
        }
    }

    /// For connection strings and passfiles.
    pub(crate) fn address(&self, port: u16) -> Address {
        let host = match self {
            Local::Socket(dir) => dir.display().to_string(),
            Local::Tcp(host) => host.clone(),
        };
        Address { host, port }
    }
}

/// Packages differ in the directory they compiled in; the one with a socket is right.
fn default_socket_dir(port: u16) -> PathBuf {
    let candidates = ["/var/run/postgresql", "/run/postgresql", "/tmp"];
    let has_socket = |dir: &&&str| Path::new(dir).join(format!(".s.PGSQL.{port}")).exists();
    PathBuf::from(candidates.iter().find(has_socket).unwrap_or(&"/tmp"))
}

/// libpq's default role: the name of the system user.
pub(crate) fn user_of(credentials: &Credentials) -> String {
    let system = || nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.name);
    credentials.username.clone().or_else(system).unwrap_or_else(|| "postgres".to_owned())
}

async fn connect(settings: &Settings, database: &str, options: &str) -> Result<Client, Failure> {
    connect_to(&Local::of(settings), settings.port, &settings.superuser, database, options).await
}

async fn connect_to(
    place: &Local,
    port: u16,
    who: &Credentials,
    database: &str,
    options: &str,
) -> Result<Client, Failure> {
    // Certificates are files: read where a hung disk hangs nobody else.
    let credentials = who.clone();
    let connector = tokio::task::spawn_blocking(move || tls::connector(&credentials)).await;
    let connector = connector.unwrap_or_else(|e| Err(e.to_string()));
    let (mode, tls) = connector.map_err(Failure::Answered)?;
    let mut config = Config::new();
    config.user(user_of(who)).dbname(database).options(options).application_name("Regent");
    config.port(port).ssl_mode(mode);
    if let Some(password) = &who.password {
        config.password(password);
    }
    match who.options.get("channel_binding").map(String::as_str) {
        Some("require") => config.channel_binding(ChannelBinding::Require),
        Some("disable") => config.channel_binding(ChannelBinding::Disable),
        Some(_) | None => &mut config,
    };
    if who.options.get("sslnegotiation").is_some_and(|how| how == "direct") {
        config.ssl_negotiation(SslNegotiation::Direct);
    }
    match place {
        // As in libpq, TLS is no matter of sockets.
        Local::Socket(dir) => config.host_path(dir).ssl_mode(SslMode::Disable),
        Local::Tcp(host) => config.host(host),
    };
    let (client, connection) = config.connect(tls).await.map_err(|e| Failure::of(&e))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = chain(&error), "a connection ended");
        }
    });
    Ok(client)
}

/// A fresh connection for a command, to `database`.
pub(crate) async fn command(settings: &Settings, database: &str, what: &str) -> Result<Client, PgError> {
    let fresh = connect(settings, database, COMMAND_OPTIONS);
    match tokio::time::timeout(CONNECT_LIMIT, fresh).await {
        Ok(client) => client.map_err(|failure| failure.into_error(what)),
        Err(_) => Err(PgError::Timeout { what: format!("{what}: connecting"), limit: CONNECT_LIMIT }),
    }
}

/// A connection to another member, as pg_rewind has it: the role may read files of the server, and nothing else.
pub(crate) async fn member(settings: &Settings, address: &Address, what: &str) -> Result<Client, PgError> {
    let who = settings.rewind.as_ref().unwrap_or(&settings.superuser);
    let place = Local::Tcp(address.host.clone());
    let fresh = connect_to(&place, address.port, who, &settings.database, LOOK_OPTIONS);
    match tokio::time::timeout(CONNECT_LIMIT, fresh).await {
        Ok(client) => client.map_err(|failure| failure.into_error(&format!("{what} of {address}"))),
        Err(_) => Err(PgError::Timeout { what: format!("{what}: connecting to {address}"), limit: CONNECT_LIMIT }),
    }
}

/// Runs statements; the rows of the last one.
pub(crate) async fn execute(
    client: &Client,
    sql: &str,
    what: &str,
    limit: Duration,
) -> Result<Vec<SimpleQueryRow>, PgError> {
    match tokio::time::timeout(limit, client.simple_query(sql)).await {
        Ok(Ok(messages)) => Ok(results(messages).pop().unwrap_or_default()),
        Ok(Err(error)) => Err(Failure::of(&error).into_error(what)),
        Err(_) => Err(PgError::Timeout { what: what.to_owned(), limit }),
    }
}

/// One list of rows for each statement.
fn results(messages: Vec<SimpleQueryMessage>) -> Vec<Vec<SimpleQueryRow>> {
    let mut results = Vec::new();
    let mut rows = Vec::new();
    for message in messages {
        if let SimpleQueryMessage::Row(row) = message {
            rows.push(row);
        } else if let SimpleQueryMessage::CommandComplete(_) = message {
            results.push(std::mem::take(&mut rows));
        }
    }
    results
}

/// What a client sends to set a password: never the password itself where a verifier will do, so that it shows in no log
/// and no view (as psql's `\password`).
pub(crate) fn password_clause(user: &str, password: Option<&str>, encryption: &str) -> String {
    let Some(password) = password else { return String::new() };
    let verifier = match encryption {
        "md5" => postgres_protocol::password::md5(password.as_bytes(), user),
        _ => postgres_protocol::password::scram_sha_256(password.as_bytes()),
    };
    format!(" PASSWORD {}", escape_literal(&verifier))
}

/// Creates or alters a role so that it has `attributes` and the password.
pub(crate) async fn ensure_role(client: &Client, who: &Credentials, attributes: &str) -> Result<(), PgError> {
    const LIMIT: Duration = Duration::from_secs(10);
    let user = user_of(who);
    let what = format!("role {user:?}");
    let question = format!(
        "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = {}) AS known, current_setting('password_encryption') AS how",
        escape_literal(&user)
    );
    let rows = execute(client, &question, &what, LIMIT).await?;
    let get = |name: &str| rows.first().and_then(|row| row.get(name)).unwrap_or_default();
    let verb = if get("known") == "t" { "ALTER" } else { "CREATE" };
    let password = password_clause(&user, who.password.as_deref(), get("how"));
    let statement = format!("{verb} ROLE {} WITH {attributes}{password}", escape_identifier(&user));
    execute(client, &statement, &what, LIMIT).await.map(|_| ())
}

/// The functions that pg_rewind calls (config.md 3.5).
pub(crate) async fn grant_rewind(client: &Client, who: &Credentials) -> Result<(), PgError> {
    let user = escape_identifier(&user_of(who));
    let functions = [
        "pg_ls_dir(text, boolean, boolean)",
        "pg_stat_file(text, boolean)",
        "pg_read_binary_file(text)",
        "pg_read_binary_file(text, bigint, bigint, boolean)",
    ];
    let grant = |function: &str| format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {user};");
    let sql: String = functions.into_iter().map(grant).collect();
    execute(client, &sql, "grants for pg_rewind", Duration::from_secs(10)).await.map(|_| ())
}

/// Connects, says nothing, and waits to be hung up on. That takes the postmaster to accept and a new process to answer,
/// and leaves no line in the server's log, unlike any question: it tells a stopped postmaster from a living one while the
/// persistent connection goes on as if nothing had happened.
async fn knock(settings: &Settings) -> std::io::Result<()> {
    match Local::of(settings) {
        Local::Socket(dir) => {
            hang_up(UnixStream::connect(dir.join(format!(".s.PGSQL.{}", settings.port))).await?).await
        }
        Local::Tcp(host) => hang_up(TcpStream::connect((host.as_str(), settings.port)).await?).await,
    }
}

async fn hang_up(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    stream.shutdown().await?;
    while stream.read(&mut [0; 64]).await? > 0 {}
    Ok(())
}

/// Name, running value, wanted value.
type Pending = Vec<(String, String, String)>;

/// The persistent connection and what need not be asked twice.
#[derive(Default)]
pub(crate) struct Session {
    client: Option<Client>,
    /// When the server last loaded its configuration, and the settings that then waited for a restart.
    pending: Option<(String, Pending)>,
    /// The last failure, to log it once.
    complained: Option<Failure>,
}

impl Session {
    /// Forgets the connection: who connects, or where, has changed.
    pub(crate) fn reset(&mut self) {
        self.client = None;
        self.pending = None;
    }

    /// Asks for everything, by `deadline`.
    pub(crate) async fn look(&mut self, settings: &Settings, deadline: Instant) -> (Probe, Option<SqlFacts>) {
        // Taken out, and put back only with a good answer: a look that is dropped half-way leaves no half-read connection.
        if let Some(client) = self.client.take().filter(|client| !client.is_closed()) {
            let question = timeout_at(deadline, self.facts(&client, settings));
            let (knocked, answer) = tokio::join!(timeout_at(deadline, knock(settings)), question);
            let probe = if matches!(knocked, Ok(Ok(()))) { Probe::Accepting } else { Probe::Silent };
            match answer {
                Ok(Ok(facts)) => {
                    self.client = Some(client);
                    self.complained = None;
                    return (probe, Some(facts));
                }
                Ok(Err(Failure::Answered(_))) if !client.is_closed() => {
                    self.client = Some(client);
                    return (probe, None);
                }
                Ok(Err(_)) => {}
                Err(_) => return (Probe::Silent, None),
            }
        }
        let fresh = async {
            let client = connect(settings, &settings.database, LOOK_OPTIONS).await?;
            let facts = self.facts(&client, settings).await;
            Ok((client, facts))
        };
        let failure = match timeout_at(deadline, fresh).await {
            Ok(Ok((client, facts))) => {
                self.client = Some(client);
                match facts {
                    Ok(facts) => {
                        self.complained = None;
                        return (Probe::Accepting, Some(facts));
                    }
                    Err(failure) => failure,
                }
            }
            Ok(Err(failure)) => failure,
            Err(_) => Failure::Silent("no answer in time".to_owned()),
        };
        let probe = match &failure {
            Failure::Rejecting => Probe::Rejecting,
            Failure::Answered(_) => Probe::Accepting,
            Failure::Silent(_) => Probe::Silent,
        };
        self.complain(failure);
        (probe, None)
    }

    fn complain(&mut self, failure: Failure) {
        if self.complained.as_ref() != Some(&failure) {
            if let Failure::Answered(cause) = &failure {
                tracing::warn!(
                    cause,
                    "the local server does not let Regent look; check the superuser's name, password and pg_hba"
                );
            } else {
                tracing::debug!(?failure, "the local server gives no answer");
            }
            self.complained = Some(failure);
        }
    }

    async fn facts(&mut self, client: &Client, settings: &Settings) -> Result<SqlFacts, Failure> {
        let ask = || client.simple_query(FACTS);
        let messages = match ask().await {
            // A promotion ended between two functions of the query, and one of them no longer applies.
            Err(e) if e.code() == Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE) => ask().await,
            other => other,
        };
        let mut results = results(messages.map_err(|e| Failure::of(&e))?).into_iter();
        let one = results.next().unwrap_or_default();
        let row = one.first().ok_or_else(|| Failure::Answered("the query of facts had no row".to_owned()))?;
        let mut facts = facts_of(row).map_err(Failure::Answered)?;
        facts.slots = results
            .next()
            .unwrap_or_default()
            .iter()
            .map(slot_of)
            .collect::<Result<_, _>>()
            .map_err(Failure::Answered)?;
        facts.replication = results.next().unwrap_or_default().iter().map(sender_of).collect();

        let configured_at = text(row, "configured_at");
        if self.pending.as_ref().is_none_or(|(at, _)| *at != configured_at) {
            let messages = client.simple_query(RESTART_SETTINGS).await.map_err(|e| Failure::of(&e))?;
            let rows = results_of_one(messages);
            let pending = rows.iter().filter_map(|row| pending_of(row, settings)).collect();
            self.pending = Some((configured_at, pending));
        }
        facts.pending_restart = self.pending.as_ref().map(|(_, pending)| pending.clone()).unwrap_or_default();
        Ok(facts)
    }
}

fn results_of_one(messages: Vec<SimpleQueryMessage>) -> Vec<SimpleQueryRow> {
    results(messages).pop().unwrap_or_default()
}

fn text(row: &SimpleQueryRow, column: &str) -> String {
    row.get(column).unwrap_or_default().to_owned()
}

fn optional<T: std::str::FromStr>(row: &SimpleQueryRow, column: &str) -> Result<Option<T>, String> {
    let parse = |text: &str| text.parse().map_err(|_| format!("{column} is {text:?}"));
    row.get(column).map(parse).transpose()
}

fn facts_of(row: &SimpleQueryRow) -> Result<SqlFacts, String> {
    let is = |column: &str| row.get(column) == Some("t");
    let conninfo = row.get("conninfo").and_then(Address::of_conninfo);
    Ok(SqlFacts {
        in_recovery: is("in_recovery"),
        timeline: optional(row, "timeline")?.map(regent_core::units::Timeline),
        flush_lsn: optional(row, "flush_lsn")?.unwrap_or_default(),
        receive_lsn: optional(row, "receive_lsn")?,
        replay_lsn: optional(row, "replay_lsn")?,
        replay_paused: is("replay_paused"),
        replayed_at: row.get("replayed_at").map(str::to_owned),
        streaming: is("streaming"),
        latest_end_lsn: optional(row, "latest_end_lsn")?,
        restores_from_archive: is("restores_from_archive"),
        upstream: conninfo.map(|address| address.to_string()),
        started_at: text(row, "started_at"),
        server_version: optional(row, "server_version")?.unwrap_or_default(),
        slots: Vec::new(),
        leader_xmins: BTreeMap::new(),
        log_gone: None,
        sync_names: text(row, "sync_names"),
        replication: Vec::new(),
        pending_restart: Vec::new(),
    })
}

fn slot_of(row: &SimpleQueryRow) -> Result<Slot, String> {
    let is = |column: &str| row.get(column) == Some("t");
    let logical = row.get("slot_type") == Some("logical");
    Ok(Slot {
        name: text(row, "slot_name"),
        logical: logical.then(|| Logical { database: text(row, "database"), plugin: text(row, "plugin") }),
        position: optional(row, "position")?,
        active: is("active"),
        holds_xmin: is("holds_xmin"),
        catalog_xmin: optional(row, "catalog_xmin")?,
        lost: is("lost"),
        foreign: is("not_ours"),
    })
}

fn sender_of(row: &SimpleQueryRow) -> WalSender {
    WalSender {
        usename: text(row, "usename"),
        application_name: text(row, "application_name"),
        client_addr: row.get("client_addr").map(str::to_owned),
        state: text(row, "state"),
        sync_state: text(row, "sync_state"),
        sync_priority: text(row, "sync_priority").parse().unwrap_or_default(),
        position: row.get("position").and_then(|text| text.parse().ok()),
    }
}

/// A setting whose configured value the running server has not (G6): it said so itself, or it was given on the command
/// line, where it cannot say so.
fn pending_of(row: &SimpleQueryRow, settings: &Settings) -> Option<(String, String, String)> {
    let name = text(row, "name");
    let configured = wanted(settings, &name);
    if guc::never_pending(&name) {
        return None;
    }
    let differs = |value: &String| !guc::same(value, &text(row, "setting"), row.get("unit"), &text(row, "vartype"));
    let told = row.get("pending_restart") == Some("t");
    let value = match configured {
        Some(value) if told || differs(&value) => value,
        None if told => text(row, "in_file"),
        Some(_) | None => return None,
    };
    Some((name, text(row, "shown"), value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::tests::settings;

    #[test]
    fn local_connections_go_where_the_contract_says() {
        let mut settings = settings(Path::new("/pg"));
        assert_eq!(Local::of(&settings), Local::Tcp("localhost".to_owned()));
        settings.use_unix_socket = true;
        for (directories, expected) in [
            ("@abstract, /run/pg, /tmp", Local::Socket("/run/pg".into())),
            ("relative", Local::Tcp("localhost".to_owned())),
            ("", Local::Tcp("localhost".to_owned())),
        ] {
            settings.parameters.insert("unix_socket_directories".to_owned(), directories.to_owned());
            assert_eq!(Local::of(&settings), expected);
        }
    }

    #[test]
    fn a_password_is_sent_as_a_verifier() {
        let clause = password_clause("a", Some("12345"), "scram-sha-256");
        assert!(clause.starts_with(" PASSWORD 'SCRAM-SHA-256$4096:") && !clause.contains("12345"), "{clause}");
        assert_eq!(password_clause("a", Some("b"), "md5"), " PASSWORD 'md507159c47ee1b19ae4fb9c40d480856c4'");
        assert_eq!(password_clause("a", None, "md5"), "");
    }

    #[tokio::test]
    async fn a_silent_listener_is_silent_and_a_missing_one_too() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut settings = settings(Path::new("/pg"));
        settings.local_host = "127.0.0.1".to_owned();
        settings.port = listener.local_addr().unwrap().port();
        let soon = || Instant::now() + Duration::from_millis(50);
        assert_eq!(Session::default().look(&settings, soon()).await, (Probe::Silent, None));
        drop(listener);
        assert_eq!(Session::default().look(&settings, soon()).await, (Probe::Silent, None));
    }
}
