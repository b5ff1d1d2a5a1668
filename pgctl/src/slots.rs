//! Replication slots: made, removed, moved on; logical ones of the leader copied to a standby (P8).
//!
//! ```text
//!   read the leader's files ──► would the server start, and go on, with them? ──► stop ──► write ──► start
//!                  no: nothing was touched          (NAME.tmp, fsync, rename: PostgreSQL removes what ends in .tmp)
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use postgres_protocol::escape::escape_literal;
use regent_core::config::Logical;
use regent_core::postgres::{SlotChanges, SqlFacts, StopMode, Upkeep, Upstream};
use regent_core::units::Lsn;
use tokio::time::{Instant, timeout};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::conninfo::Address;
use crate::disk::{file_error, file_mode};
use crate::real::{ASK, Server, locked};
use crate::settings::Settings;
use crate::{PgError, Postgres, query};

/// How long one round of moving slots on is waited for. What the server has begun by then goes on.
const UPKEEP: Duration = Duration::from_secs(60);
/// How often a standby that is to reach a position is looked at.
const TICK: Duration = Duration::from_millis(100);

/// What was learnt about logical slots beside all looks.
#[derive(Debug, Default)]
pub(crate) struct Upkept {
    /// A round runs.
    running: bool,
    /// Slots whose log is gone, as the server said when they were to be moved on (P9).
    gone: BTreeSet<String>,
    /// `catalog_xmin` of the leader's slots.
    leader_xmins: BTreeMap<String, u32>,
    /// From this position on the leader has removed its log.
    log_gone: Option<Lsn>,
    /// The last failure, to log it once.
    complained: Option<String>,
}

/// A slot of the leader's.
struct Copy {
    name: String,
    /// Its file.
    state: Vec<u8>,
    /// It decodes from here.
    restart: Lsn,
    /// ... and gives what was committed after this.
    confirmed: Lsn,
}

/// Logical slots that PostgreSQL itself does not look after, with their files.
const FILES: &str = "
SELECT slot_name::text AS name, database::text AS database, plugin::text AS plugin, restart_lsn::text AS restart,
       pg_read_binary_file('pg_replslot/' || slot_name || '/state') AS state
  FROM pg_replication_slots AS s
 WHERE slot_type = 'logical' AND NOT temporary AND confirmed_flush_lsn IS NOT NULL AND slot_name = ANY ($1::text[])
   AND wal_status IS DISTINCT FROM 'lost' AND to_jsonb(s) ->> 'failover' IS DISTINCT FROM 'true'
   AND NOT pg_is_in_recovery()";

impl Server {
    /// Goes on after a failure, so that one slot that cannot be changed costs the others nothing; returns the first one.
    pub(crate) async fn carry_out(&self, changes: &SlotChanges) -> Result<(), PgError> {
        let settings = self.settings();
        let client = query::command(&settings, &settings.database, "replication slots").await?;
        let mut outcome = Ok(());
        let run = async |client: &Client, name: &str, sql: String| {
            query::execute(client, &sql, &format!("replication slot {name}"), ASK).await.map(|_| ())
        };
        for name in &changes.drop {
            let sql = format!(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
                  WHERE slot_name = {} AND NOT active",
                escape_literal(name)
            );
            outcome = outcome.and(run(&client, name, sql).await);
        }
        for name in &changes.create {
            let sql = format!(
                "SELECT pg_create_physical_replication_slot({0}, true)
                  WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = {0})",
                escape_literal(name)
            );
            outcome = outcome.and(run(&client, name, sql).await);
        }
        for (name, to) in &changes.advance {
            let sql = format!(
                "SELECT pg_replication_slot_advance(slot_name, '{to}') FROM pg_replication_slots
                  WHERE slot_name = {} AND NOT active AND restart_lsn < '{to}'",
                escape_literal(name)
            );
            outcome = outcome.and(run(&client, name, sql).await);
        }
        for (name, Logical { database, plugin }) in &changes.create_logical {
            let sql = format!(
                "SELECT pg_create_logical_replication_slot({0}, {1})
                  WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = {0})",
                escape_literal(name),
                escape_literal(plugin)
            );
            // It waits for the transactions that run now, without us if need be.
            let made = match query::command(&settings, database, &format!("replication slot {name}")).await {
                Ok(there) => run(&there, name, sql).await,
                Err(error) => Err(error),
            };
            outcome = outcome.and(made);
        }
        outcome
    }

    // --- moved on

    /// Begins a round, unless one runs.
    pub(crate) fn begin_upkeep(&self, upkeep: &Upkeep) {
        if std::mem::replace(&mut locked(&self.shared.upkept).running, true) {
            return;
        }
        let (server, upkeep) = (self.clone(), upkeep.clone());
        tokio::spawn(async move {
            let outcome = timeout(UPKEEP, server.keep_up(&upkeep)).await;
            let outcome = outcome.unwrap_or_else(|_| {
                Err(PgError::Timeout { what: "moving logical slots on".to_owned(), limit: UPKEEP })
            });
            let mut upkept = locked(&server.shared.upkept);
            upkept.running = false;
            let complaint = outcome.err().map(|error| error.to_string());
            if let Some(complaint) = complaint.as_ref().filter(|new| upkept.complained.as_ref() != Some(new)) {
                tracing::warn!("logical slots: {complaint}");
            }
            upkept.complained = complaint;
        });
    }

    /// Goes on after a failure; returns the first one.
    async fn keep_up(&self, upkeep: &Upkeep) -> Result<(), PgError> {
        let settings = self.settings();
        let mut outcome = Ok(());
        for (name, (database, to)) in &upkeep.advance {
            let moved = self.move_on(&settings, name, database, *to).await;
            outcome = outcome.and(moved);
        }
        if let Some(conn_url) = &upkeep.ask {
            match leader_xmins(&settings, conn_url).await {
                Ok(xmins) => locked(&self.shared.upkept).leader_xmins = xmins,
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        if let Some((conn_url, from)) = &upkeep.needs {
            // A leader that cannot be asked now is asked again: it is no failure.
            if let Ok(has) = has_log(&settings, conn_url, *from).await {
                locked(&self.shared.upkept).log_gone = (!has).then_some(*from);
            }
        }
        outcome
    }

    async fn move_on(&self, settings: &Settings, name: &str, database: &str, to: Lsn) -> Result<(), PgError> {
        let what = format!("moving logical slot {name} on");
        let client = query::command(settings, database, &what).await?;
        let sql = format!(
            "SELECT pg_replication_slot_advance(slot_name, '{to}') FROM pg_replication_slots
              WHERE slot_name = {} AND NOT active AND pg_is_in_recovery() AND confirmed_flush_lsn < '{to}'",
            escape_literal(name)
        );
        // No deadline but that of the round: decoding takes its time.
        let moved = client.simple_query(&sql).await;
        let gone = moved.as_ref().is_err_and(|error| error.code() == Some(&SqlState::UNDEFINED_FILE));
        let mut upkept = locked(&self.shared.upkept);
        if gone {
            upkept.gone.insert(name.to_owned())
        } else {
            upkept.gone.remove(name)
        };
        moved.map(|_| ()).map_err(|error| query::failed(&error, &what))
    }

    /// What was learnt beside the looks.
    pub(crate) fn with_upkept(&self, mut sql: SqlFacts) -> SqlFacts {
        let upkept = locked(&self.shared.upkept);
        sql.slots.iter_mut().for_each(|slot| slot.lost |= upkept.gone.contains(&slot.name));
        if sql.in_recovery {
            sql.leader_xmins.clone_from(&upkept.leader_xmins);
            sql.log_gone = upkept.log_gone;
        }
        sql
    }

    // --- copied

    /// Copies what can be copied.
    pub(crate) async fn copy_from_leader(
        &self,
        slots: &BTreeMap<String, Logical>,
        conn_url: &str,
        upstream: &Upstream,
    ) -> Result<(), PgError> {
        let settings = self.settings();
        let mut copies = read_copies(&settings, conn_url, slots).await?;
        self.fit(&settings, &mut copies).await?;
        let limit = Duration::from_secs(settings.pg_ctl_timeout);
        self.end(StopMode::Fast, limit).await?;
        let lock = self.lock_stopped().await?;
        let written = self.files("writing replication slots", move |settings| {
            copies.iter().try_for_each(|copy| write_slot(&settings.data_dir, &copy.name, &copy.state))
        });
        let written = written.await;
        drop(lock);
        {
            let mut upkept = locked(&self.shared.upkept);
            upkept.gone.clear();
            upkept.leader_xmins.clear(); // It was true of what was here before.
        }
        self.start_standby(upstream).await.and(written)
    }

    /// Takes out those that this server could not go on with. An error: it would not start with them, or none is left.
    async fn fit(&self, settings: &Settings, copies: &mut Vec<Copy>) -> Result<(), PgError> {
        let parameter = |name: &str| settings.parameters.get(name).map(String::as_str).unwrap_or_default();
        let (level, room) = (parameter("wal_level"), parameter("max_replication_slots"));
        if level != "logical" {
            return Err(PgError::Refused(format!(
                "wal_level is {level:?}, and no server starts with a logical slot then; set it to logical"
            )));
        }
        let what = "looking for what logical slots need";
        let client = query::command(settings, &settings.database, what).await?;
        let sql = "SELECT (SELECT min(substr(name, 9)) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$') AS oldest,
                          pg_size_bytes(current_setting('wal_segment_size')) AS size,
                          (SELECT string_agg(slot_name, ',') FROM pg_replication_slots WHERE NOT temporary) AS slots";
        let rows = query::execute(&client, sql, what, ASK).await?;
        let get = |name: &str| rows.first().and_then(|row| row.get(name)).unwrap_or_default();
        let oldest = oldest_log(get("oldest"), get("size"));
        let mut here: BTreeSet<&str> = get("slots").split(',').filter(|name| !name.is_empty()).collect();
        let reached = reached(&client, copies).await?;

        let mut left_out = None;
        copies.retain(|copy| {
            let why = if copy.restart < oldest {
                format!("{} needs log from {}, and this server has it from {oldest} only", copy.name, copy.restart)
            } else if copy.confirmed > reached {
                format!("{} is at {}, and this server has replayed {reached} only", copy.name, copy.confirmed)
            } else {
                return true;
            };
            tracing::warn!(slot = copy.name, "not copied: {why}");
            left_out.get_or_insert(why);
            false
        });
        if copies.is_empty() {
            return Err(PgError::Refused(left_out.unwrap_or_else(|| "the leader has none of them".to_owned())));
        }
        here.extend(copies.iter().map(|copy| copy.name.as_str()));
        if room.parse::<usize>().is_ok_and(|room| here.len() > room) {
            return Err(PgError::Refused(format!(
                "there would be {} replication slots, and the server starts with no more than max_replication_slots, {room}",
                here.len()
            )));
        }
        Ok(())
    }
}

/// The start of the oldest segment that is there, from the last 16 digits of its name.
fn oldest_log(segment: &str, size: &str) -> Lsn {
    let part = |range| segment.get(range).and_then(|digits| u64::from_str_radix(digits, 16).ok());
    let place = part(0..8).zip(part(8..16)).zip(size.parse::<u64>().ok());
    place.map_or(Lsn(u64::MAX), |((high, low), size)| Lsn((high << 32).saturating_add(low.saturating_mul(size))))
}

/// How far the server has replayed, once that is as far as the copies are, or nobody would wait for it any more.
async fn reached(client: &Client, copies: &[Copy]) -> Result<Lsn, PgError> {
    let what = "asking how far the server has replayed";
    let wanted = copies.iter().map(|copy| copy.confirmed).max().unwrap_or_default();
    let deadline = Instant::now() + ASK;
    loop {
        let rows = query::execute(client, "SELECT pg_last_wal_replay_lsn() AS lsn", what, ASK).await?;
        let lsn = rows.first().and_then(|row| row.get("lsn")?.parse().ok()).unwrap_or_default();
        if lsn >= wanted || Instant::now() >= deadline {
            return Ok(lsn);
        }
        tokio::time::sleep(TICK).await;
    }
}

/// The leader's slots that are what is wanted.
async fn read_copies(
    settings: &Settings,
    conn_url: &str,
    wanted: &BTreeMap<String, Logical>,
) -> Result<Vec<Copy>, PgError> {
    let address = Address::of_url(conn_url)?;
    let what = "reading logical slots";
    let client = query::member(settings, &address, what).await?;
    let names: Vec<&str> = wanted.keys().map(String::as_str).collect();
    let read = async {
        let rows = client.query(FILES, &[&names]).await?;
        let mut copies = Vec::new();
        for row in &rows {
            let name: String = row.try_get("name")?;
            let is = Logical { database: row.try_get("database")?, plugin: row.try_get("plugin")? };
            let restart: Option<String> = row.try_get("restart")?;
            let restart = restart.and_then(|text| text.parse().ok()).unwrap_or_default();
            if wanted.get(&name) == Some(&is) {
                copies.push(Copy { name, state: row.try_get("state")?, restart, confirmed: Lsn::default() });
            }
        }
        // Asked after the files were read: none of them says more.
        let confirmed = "SELECT slot_name::text AS name, confirmed_flush_lsn::text AS lsn FROM pg_replication_slots
                          WHERE slot_name = ANY ($1::text[])";
        for row in client.query(confirmed, &[&names]).await? {
            let (name, lsn): (String, Option<String>) = (row.try_get("name")?, row.try_get("lsn")?);
            let lsn = lsn.and_then(|text| text.parse().ok());
            if let Some((copy, lsn)) = copies.iter_mut().find(|copy| copy.name == name).zip(lsn) {
                copy.confirmed = lsn;
            }
        }
        Ok(copies)
    };
    match timeout(ASK, read).await {
        Ok(copies) => copies.map_err(|error| query::failed(&error, &format!("{what} of {address}"))),
        Err(_) => Err(PgError::Timeout { what: format!("{what} of {address}"), limit: ASK }),
    }
}

/// What the leader's slots hold back.
async fn leader_xmins(settings: &Settings, conn_url: &str) -> Result<BTreeMap<String, u32>, PgError> {
    let address = Address::of_url(conn_url)?;
    let what = "asking what slots hold back";
    let client = query::member(settings, &address, what).await?;
    let sql = "SELECT slot_name AS name, catalog_xmin AS xmin FROM pg_replication_slots
                WHERE catalog_xmin IS NOT NULL AND NOT pg_is_in_recovery()";
    let rows = query::execute(&client, sql, &format!("{what} of {address}"), ASK).await?;
    let xmin =
        |row: &tokio_postgres::SimpleQueryRow| Some((row.get("name")?.to_owned(), row.get("xmin")?.parse().ok()?));
    Ok(rows.iter().filter_map(xmin).collect())
}

/// Whether the leader still has its log from a position on. Log is recycled in order, so the segment with that position, on whatever
/// timeline, stands for all of it; what it has not written yet it has not removed.
async fn has_log(settings: &Settings, conn_url: &str, from: Lsn) -> Result<bool, PgError> {
    let address = Address::of_url(conn_url)?;
    let what = "asking for log";
    let client = query::member(settings, &address, what).await?;
    // At the edge of two segments pg_walfile_name names the earlier one; what is needed is the later one.
    let next = Lsn(from.0.saturating_add(1));
    let sql = format!(
        "SELECT '{next}'::pg_lsn > pg_current_wal_lsn() OR EXISTS (SELECT FROM pg_ls_dir('pg_wal', true, false) AS name
                 WHERE substr(name, 9) = substr(pg_walfile_name('{next}'), 9)) AS has"
    );
    let rows = query::execute(&client, &sql, &format!("{what} of {address}"), ASK).await?;
    Ok(rows.first().and_then(|row| row.get("has")) != Some("f"))
}

/// Puts a slot there, whole, or leaves what was there.
fn write_slot(data_dir: &Path, name: &str, state: &[u8]) -> Result<(), PgError> {
    let slots = data_dir.join("pg_replslot");
    let (place, new, old) =
        (slots.join(name), slots.join(format!("{name}.tmp")), slots.join(format!("{name}.old.tmp")));
    let mode = file_mode(data_dir);
    let gone = |dir: &Path| match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    };
    let write = || {
        gone(&new)?;
        gone(&old)?;
        DirBuilder::new().mode(if mode == 0o640 { 0o750 } else { 0o700 }).create(&new)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(new.join("state"))?;
        file.write_all(state)?;
        file.sync_all()?;
        File::open(&new)?.sync_all()?;
        if place.exists() {
            fs::rename(&place, &old)?;
        }
        fs::rename(&new, &place)?;
        File::open(&slots)?.sync_all()?;
        gone(&old)
    };
    write().map_err(|error| file_error(&place, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_log_is_told_by_the_name_of_its_segment() {
        assert_eq!(oldest_log("0000000100000003", "16777216"), Lsn((1 << 32) + (3 << 24)));
        assert_eq!(oldest_log("00000000000000FF", "1048576"), Lsn(0xFF << 20));
        assert_eq!(oldest_log("", "16777216"), Lsn(u64::MAX), "no log, no copy");
    }

    #[test]
    fn a_slot_takes_the_place_of_an_older_one_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let slots = dir.path().join("pg_replslot");
        fs::create_dir(&slots).unwrap();
        fs::create_dir(slots.join("x.tmp")).unwrap();
        for state in [b"one", b"two"] {
            write_slot(dir.path(), "x", state).unwrap();
            assert_eq!(fs::read(slots.join("x/state")).unwrap(), state);
        }
        assert_eq!(crate::disk::entries(&slots).unwrap(), [slots.join("x")], "nothing else stays");
        fs::remove_dir_all(&slots).unwrap();
        assert!(write_slot(dir.path(), "x", b"one").is_err());
    }
}
