//! A client that writes numbered rows and remembers what it was told.
//!
//! A number is never sent twice, by whichever writer: when an answer does not come, the row may be there or not, and the next
//! row gets the next number. So "acknowledged and missing" is a lost write, and nothing else is.

use std::collections::BTreeSet;
use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::{Client, Config};

use super::sql::{Target, connect, explain, runtime, superuser};
use super::wait::poll;
use super::{Node, Trouble};

const NAME: &str = "rig writer";
/// The pause between two writes, and before a new connection.
const PACE: Duration = Duration::from_millis(20);
/// A client's patience with one answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// What a client of several hosts gives each of them, as libpq's `connect_timeout` does.
const EACH_HOST: Duration = Duration::from_millis(500);
/// The longest that reading all rows back may take.
const READ_BACK: Duration = Duration::from_secs(30);

/// The number of the next row: one for all writers of this process, so that several may write to one cluster.
static NEXT: AtomicI64 = AtomicI64::new(1);

/// One row sent, or one connection that failed before a row could be sent.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The row; `None`: no connection.
    pub row: Option<i64>,
    /// When it was sent.
    pub sent: Instant,
    /// When it was acknowledged, or when and why not.
    pub outcome: Result<Instant, (Instant, String)>,
}

/// Everything a writer did.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    /// In the order of sending.
    pub attempts: Vec<Attempt>,
}

impl Journal {
    /// The acknowledged rows, with the time of the acknowledgement.
    pub fn acknowledged(&self) -> impl Iterator<Item = (i64, Instant)> {
        self.attempts.iter().filter_map(|a| Some((a.row?, *a.outcome.as_ref().ok()?)))
    }

    /// The attempts that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.iter().filter(|a| a.outcome.is_err())
    }

    /// The longest time between two acknowledgements.
    #[must_use]
    pub fn write_gap(&self) -> Duration {
        let times: Vec<Instant> = self.acknowledged().map(|(_, at)| at).collect();
        times.windows(2).filter_map(|pair| Some(*pair.get(1)? - *pair.first()?)).max().unwrap_or_default()
    }

    /// The acknowledged rows that `server` does not have, asked on its primary.
    ///
    /// # Errors
    /// It does not answer.
    pub fn missing_on(&self, server: Target) -> Result<Vec<i64>, Trouble> {
        let there = rows_on(server)?;
        Ok(self.acknowledged().map(|(row, _)| row).filter(|row| !there.contains(row)).collect())
    }
}

impl fmt::Display for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (acknowledged, failed) = (self.acknowledged().count(), self.failures().count());
        write!(f, "{acknowledged} acknowledged, {failed} failed, longest gap {:.2} s", self.write_gap().as_secs_f64())
    }
}

/// Makes the table that writers write to.
///
/// # Errors
/// The server refuses.
pub fn make_table(target: Target) -> Result<(), Trouble> {
    let sql = "create table if not exists rig_rows (id bigint primary key, at timestamptz default now())";
    target.rows(sql, READ_BACK).map(|_| ())
}

/// The rows that a server has.
///
/// # Errors
/// It does not answer.
pub fn rows_on(server: Target) -> Result<BTreeSet<i64>, Trouble> {
    let rows = server.rows("select id from rig_rows", READ_BACK)?;
    rows.iter().flatten().map(|id| id.parse().map_err(|_| Trouble::new(format!("row {id:?} is no number")))).collect()
}

/// How a writer reaches a primary, and how patient it is.
#[derive(Clone, Debug)]
pub struct Way {
    /// Tried in this order, from the first each time.
    hosts: Vec<Config>,
    /// For each of them.
    connect_within: Duration,
    answer_within: Duration,
    /// An error of the server, such as "read-only", does not end the connection.
    stays: bool,
}

impl Way {
    /// To a server, or to what a proxy makes of it.
    #[must_use]
    pub fn to(target: Target) -> Self {
        let hosts = vec![target.config(NAME)];
        Way { hosts, connect_within: PATIENCE, answer_within: PATIENCE, stays: false }
    }

    /// To the first of several servers that takes writes, as libpq does with `target_session_attrs=read-write`.
    #[must_use]
    pub fn to_first_primary(servers: &[Target]) -> Self {
        let read_write = |server: &Target| {
            let mut config = server.config(NAME);
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
            config
        };
        let hosts = servers.iter().map(read_write).collect();
        Way { hosts, connect_within: EACH_HOST, answer_within: PATIENCE, stays: false }
    }

    /// Over the socket of a node, whatever its server is and becomes, and with endless patience: to see when it takes writes.
    #[must_use]
    pub fn at(node: &Node) -> Self {
        let mut config = superuser(NAME);
        config.host_path(node.dir()).port(node.ports().postgres);
        // A standby's refusals would fill its log.
        config.options("-c log_min_messages=fatal");
        Way { hosts: vec![config], connect_within: Duration::MAX, answer_within: Duration::MAX, stays: true }
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    pause: AtomicBool,
    /// Set by the writer when it sees `pause`.
    idle: AtomicBool,
    journal: Mutex<Journal>,
}

impl Shared {
    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A writer at work in its own thread; ends when dropped.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Makes the table through `target` and starts to write to it, reconnecting for ever.
    ///
    /// # Errors
    /// The table cannot be made.
    pub fn start(target: Target) -> Result<Self, Trouble> {
        make_table(target)?;
        Writer::on(Way::to(target))
    }

    /// Starts to write to the table that is there.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn on(way: Way) -> Result<Self, Trouble> {
        let shared = Arc::new(Shared::default());
        let (ours, runtime) = (Arc::clone(&shared), runtime()?);
        let thread = thread::spawn(move || runtime.block_on(write(&ours, &way)));
        Ok(Writer { shared, thread: Some(thread) })
    }

    /// What it did so far.
    pub fn so_far<T>(&self, look: impl FnOnce(&Journal) -> T) -> T {
        look(&self.shared.journal())
    }

    /// How many rows were acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        self.shared.journal().acknowledged().count()
    }

    /// Waits for `count` further acknowledgements.
    ///
    /// # Errors
    /// They do not come `within`; with the last failure.
    pub fn wait_for(&self, count: usize, within: Duration) -> Result<(), Trouble> {
        let before = self.acknowledged();
        let enough = || {
            let now = self.acknowledged() - before;
            if now >= count { Ok(()) } else { Err(now) }
        };
        poll(within, || enough().map_err(|now| now.to_string())).map_err(|now| {
            let last = self.shared.journal().failures().last().map(|a| a.outcome.clone());
            Trouble::new(format!("{now} of {count} writes acknowledged in {within:?}; last failure: {last:?}"))
        })
    }

    /// Stops writing (`true`) or goes on (`false`); returns when no write is under way.
    pub fn pause(&self, pause: bool) {
        self.shared.idle.store(false, Ordering::SeqCst);
        self.shared.pause.store(pause, Ordering::SeqCst);
        if pause {
            let idle = || self.shared.idle.load(Ordering::SeqCst).then_some(()).ok_or_else(String::new);
            // Twice the longest that a write under way can take: one to connect, one to write.
            let _ = poll(PATIENCE * 2, idle);
        }
    }

    /// Ends, and returns what it did.
    #[must_use]
    pub fn finish(mut self) -> Journal {
        self.end();
        std::mem::take(&mut *self.shared.journal())
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.end();
    }
}

async fn write(shared: &Shared, way: &Way) {
    let mut client: Option<Client> = None;
    while !shared.stop.load(Ordering::SeqCst) {
        sleep(PACE).await;
        if shared.pause.load(Ordering::SeqCst) {
            shared.idle.store(true, Ordering::SeqCst);
            continue;
        }
        let sent = Instant::now();
        let (sent_row, outcome) = match client.take() {
            None => match reach(shared, way).await {
                Ok(fresh) => {
                    client = Some(fresh);
                    continue;
                }
                Err(e) => (None, Err(e)),
            },
            Some(open) => {
                let row = NEXT.fetch_add(1, Ordering::SeqCst);
                let outcome = insert(shared, way, &open, row).await;
                // After any error the connection is suspect, as a client's pool would treat it.
                client = (outcome.is_ok() || way.stays && !open.is_closed()).then_some(open);
                (Some(row), outcome)
            }
        };
        let now = Instant::now();
        let outcome = outcome.map(|()| now).map_err(|why| (now, why));
        shared.journal().attempts.push(Attempt { row: sent_row, sent, outcome });
    }
}

async fn reach(shared: &Shared, way: &Way) -> Result<Client, String> {
    let mut whys = String::new();
    for host in &way.hosts {
        match patiently(shared, way.connect_within, connect(host)).await {
            Some(Ok(client)) => return Ok(client),
            Some(Err(e)) => whys += &format!("{e}; "),
            None => whys += "no connection in time; ",
        }
    }
    Err(whys)
}

async fn insert(shared: &Shared, way: &Way, client: &Client, row: i64) -> Result<(), String> {
    let sql = format!("insert into rig_rows (id) values ({row})");
    let done = patiently(shared, way.answer_within, client.simple_query(&sql)).await;
    done.ok_or("no answer in time")?.map(|_| ()).map_err(|e| explain(&e))
}

/// What `work` comes to, unless it takes too long. Endless patience ends with the writer.
async fn patiently<T>(shared: &Shared, within: Duration, work: impl Future<Output = T>) -> Option<T> {
    let began = Instant::now();
    let mut work = pin!(work);
    let ends = || within == Duration::MAX && shared.stop.load(Ordering::SeqCst);
    while began.elapsed() < within && !ends() {
        let step = Duration::from_millis(100).min(within.saturating_sub(began.elapsed()));
        if let Ok(done) = timeout(step, &mut work).await {
            return Some(done);
        }
    }
    None
}
