//! What clients do, one function for each kind of them.

use std::sync::atomic::{AtomicI64, Ordering};

use regent_tests::rng::Rng;

use super::link::{Answer, Link};
use crate::history::{Op, Outcome, Row, Step, Way};

/// How many accounts the bank has.
pub const ACCOUNTS: i64 = 8;
/// How much money is in them together.
pub const MONEY: i64 = 800;

/// The tables that clients work on.
pub const TABLES: &str = "
    create table chaos_rows (id bigint primary key);
    create table chaos_lists (key bigint primary key, list bigint[] not null);
    create table chaos_bank (id bigint primary key, balance bigint not null);
    insert into chaos_bank select id, 100 from generate_series(1, 8) as id;
    create table chaos_counts (key bigint primary key, n bigint not null);
    insert into chaos_counts select key, 0 from generate_series(1, 3) as key";

/// The timeline that the server writes, in SQL.
const TIMELINE: &str = "('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int";

/// Appends to a list before another one takes its place, so that reads stay short.
const LIST: i64 = 40;

/// Numbers of rows and list values: none is ever sent twice.
static NEXT: AtomicI64 = AtomicI64::new(1);

fn next() -> i64 {
    NEXT.fetch_add(1, Ordering::SeqCst)
}

/// One number of an answer.
fn number<T: std::str::FromStr>(answer: &Answer, column: usize) -> Option<T> {
    answer.first()?.get(column)?.parse().ok()
}

/// What `read` makes of an answer. One that cannot be read was given all the same.
fn read<T>(outcome: Outcome<Answer>, read: impl FnOnce(&Answer) -> Option<T>) -> Outcome<T> {
    match outcome {
        Outcome::Done(answer) => read(&answer)
            .map_or_else(|| Outcome::Unknown(format!("an answer of another form: {answer:?}")), Outcome::Done),
        Outcome::Refused(why) => Outcome::Refused(why),
        Outcome::Unknown(why) => Outcome::Unknown(why),
    }
}

pub(super) async fn rows(mut link: Link, way: Way) {
    while link.ready().await {
        let id = next();
        let sent = link.now();
        let outcome = link.ask(&format!("insert into chaos_rows values ({id}) returning {TIMELINE}")).await;
        let outcome = read(outcome, |answer| number(answer, 0));
        let op = Op { sent, ended: link.now(), asked: Row { id, way }, outcome };
        link.shared.history().rows.push(op);
    }
}

pub(super) async fn lists(mut link: Link, mut rng: Rng) {
    while link.ready().await {
        // Lists follow each other: at any time four of them are in use.
        let newest = NEXT.load(Ordering::Relaxed) / LIST;
        let steps: Vec<Step> = (0..=rng.below(3))
            .map(|_| {
                let key = newest + i64::try_from(rng.below(4)).unwrap_or(0);
                if rng.one_in(2) { Step::Read(key) } else { Step::Append(key, next()) }
            })
            .collect();
        let mut sql = vec!["begin isolation level serializable".to_owned()];
        sql.extend(steps.iter().map(|step| match step {
            Step::Read(key) => format!("select array_to_json(list) from chaos_lists where key = {key}"),
            Step::Append(key, value) => format!(
                "insert into chaos_lists values ({key}, array[{value}]) \
                 on conflict (key) do update set list = chaos_lists.list || {value}"
            ),
        }));
        let sent = link.now();
        let outcome = transact(&mut link, &sql).await;
        let saw = |answers: &Vec<Answer>| {
            let reads = steps.iter().zip(answers.iter().skip(1)).filter(|(step, _)| matches!(step, Step::Read(_)));
            reads.map(|(_, answer)| list(answer)).collect::<Option<Vec<_>>>()
        };
        let outcome = match outcome {
            Outcome::Done(answers) => saw(&answers)
                .map_or_else(|| Outcome::Unknown(format!("answers of another form: {answers:?}")), Outcome::Done),
            Outcome::Refused(why) => Outcome::Refused(why),
            Outcome::Unknown(why) => Outcome::Unknown(why),
        };
        let op = Op { sent, ended: link.now(), asked: steps, outcome };
        link.shared.history().lists.push(op);
    }
}

/// A list that was read; a missing one is empty.
fn list(answer: &Answer) -> Option<Vec<i64>> {
    let Some(row) = answer.first() else { return Some(Vec::new()) };
    serde_json::from_str(row.first()?).ok()
}

/// A whole transaction. Until `commit` was sent, it has not happened.
async fn transact(link: &mut Link, sql: &[String]) -> Outcome<Vec<Answer>> {
    let answers = match link.ask_all(sql).await {
        Ok(answers) => answers,
        Err(why) => {
            // Ends it, if the connection is still there.
            let _ = link.ask("rollback").await;
            return Outcome::Refused(format!("before commit: {why:?}"));
        }
    };
    match link.ask("commit").await {
        Outcome::Done(_) => Outcome::Done(answers),
        Outcome::Refused(why) => Outcome::Refused(why),
        Outcome::Unknown(why) => Outcome::Unknown(why),
    }
}

pub(super) async fn transfers(mut link: Link, mut rng: Rng) {
    let mut account = || 1 + i64::try_from(rng.below(ACCOUNTS.unsigned_abs())).unwrap_or(0);
    while link.ready().await {
        let (from, to) = (account(), account());
        let change = |id, by| format!("update chaos_bank set balance = balance + {by} where id = {id}");
        // In the order of the accounts: no deadlock.
        let mut sql = [(from, change(from, -7)), (to, change(to, 7))];
        sql.sort_by_key(|(id, _)| *id);
        let [(_, first), (_, second)] = sql;
        let _ = transact(&mut link, &["begin".to_owned(), first, second]).await;
    }
}

pub(super) async fn looks(mut link: Link) {
    while link.ready().await {
        let sent = link.now();
        let outcome = link.ask("select count(*), sum(balance) from chaos_bank").await;
        let outcome = read(outcome, |answer| Some((number(answer, 0)?, number(answer, 1)?)));
        let op = Op { sent, ended: link.now(), asked: (), outcome };
        link.shared.history().sums.push(op);
    }
}

pub(super) async fn counts(mut link: Link, mut rng: Rng) {
    while link.ready().await {
        let key = 1 + i64::try_from(rng.below(3)).unwrap_or(0);
        let sent = link.now();
        let outcome =
            link.ask(&format!("update chaos_counts set n = n + 1 where key = {key} returning n, {TIMELINE}")).await;
        let outcome = read(outcome, |answer| Some((number(answer, 0)?, number(answer, 1)?)));
        let op = Op { sent, ended: link.now(), asked: key, outcome };
        link.shared.history().counts.push(op);
    }
}
