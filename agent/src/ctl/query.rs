//! `query`: SQL on a member, past its agent (cli.md 4.7).

use std::io::Read as _;
use std::time::Duration;

use regent_core::units::MemberName;
use regent_dcs::{Dcs, Read};
use regent_pgctl::settings::Credentials;
use regent_pgctl::tls::connector;
use serde_json::{Map, Value, json};
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Config, SimpleQueryMessage};

use super::args::{Format, QueryArgs, Role};
use super::ask::ask_secretly;
use super::cluster::{Cluster, stamp, with_role};
use super::members::word;
use super::output::to_json;
use super::table::{Align, draw};
use super::yaml_writer::to_yaml;
use super::{CtlError, fail, interruptible, list, print};

/// A server's time to take a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// What a query gave.
#[derive(Debug, PartialEq)]
enum Outcome {
    Rows {
        names: Vec<String>,
        rows: Vec<Vec<Value>>,
    },
    /// Shown as one row without a heading.
    Failure(String),
}

impl<D: Dcs> Cluster<D> {
    /// `query`
    pub(super) async fn query(&self, asked: &QueryArgs) -> Result<(), CtlError> {
        if asked.role.is_some() && asked.member.is_some() {
            return fail("--role and --member are mutually exclusive options");
        }
        let sql = match (&asked.file, &asked.command) {
            (Some(_), Some(_)) => return fail("--file and --command are mutually exclusive options"),
            (None, None) => return fail("You need to specify either --command or --file"),
            (None, Some(command)) => command.clone(),
            (Some(file), None) => {
                let mut text = String::new();
                let read = if file == "-" {
                    std::io::stdin().read_to_string(&mut text)
                } else {
                    std::fs::File::open(file).and_then(|mut open| open.read_to_string(&mut text))
                };
                read.map_err(|error| CtlError::Usage(format!("cannot read {file}: {error}")))?;
                text
            }
        };
        let password = if asked.password { Some(ask_secretly("Password").await?) } else { None };
        loop {
            let started = tokio::time::Instant::now();
            let read = self.read().await?;
            let outcome = interruptible(ask(&read, asked, password.as_deref(), &sql)).await?;
            print(&show(&outcome, asked.format, &asked.delimiter))?;
            let Some(period) = asked.period() else { return Ok(()) };
            interruptible(tokio::time::sleep_until(started + period)).await?;
        }
    }
}

async fn ask(read: &Read, asked: &QueryArgs, password: Option<&str>, sql: &str) -> Outcome {
    let role = asked.role.unwrap_or(if asked.member.is_some() { Role::Any } else { Role::Leader });
    let meant = |name: &MemberName| asked.member.as_ref().is_none_or(|member| *member == name.0);
    let mut trouble = match (&asked.member, asked.role) {
        (Some(member), _) => format!("No connection to member {member} is available"),
        (None, Some(role)) => format!("No connection to role '{}' is available", word(role)),
        (None, None) => "No connection is available".to_owned(),
    };
    for (_, member) in with_role(read, role).filter(|(name, _)| meant(name)) {
        let (host, port) = list::address(&json!({"conn_url": member.conn_url}));
        if host.is_empty() {
            continue;
        }
        match connect(&host, &port, asked, password).await {
            Ok(client) => {
                if fits(&client, role).await {
                    return run(&client, sql).await;
                }
            }
            Err(why) => trouble = why,
        }
    }
    Outcome::Failure(trouble)
}

async fn connect(host: &str, port: &str, asked: &QueryArgs, password: Option<&str>) -> Result<Client, String> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let me = || nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.name);
    let user = asked.username.clone().or_else(|| variable("PGUSER")).or_else(me).unwrap_or_default();
    let database = asked.dbname.clone().or_else(|| variable("PGDATABASE")).unwrap_or_else(|| user.clone());
    let home = variable("HOME").map(|home| format!("{home}/.pgpass"));
    let stored = variable("PGPASSFILE").or(home).and_then(|file| std::fs::read_to_string(file).ok());
    let stored = || stored.as_deref().and_then(|text| from_passfile(text, [host, port, &database, &user]));
    let password = password.map(str::to_owned).or_else(|| variable("PGPASSWORD")).or_else(stored);
    let mut config = Config::new();
    config.host(host).port(port.parse().map_err(|_| format!("{port} is no port"))?).user(&user).dbname(&database);
    config.connect_timeout(CONNECT);
    config.application_name(variable("PGAPPNAME").unwrap_or_else(|| "Patroni ctl".to_owned()));
    if let Some(password) = password {
        config.password(password);
    }
    let (mode, tls) = connector(&Credentials::default())?;
    config.ssl_mode(mode);
    let connecting = tokio::time::timeout(CONNECT * 2, config.connect(tls)).await;
    let (client, connection) =
        connecting.map_err(|_| format!("{host}:{port} takes no connection"))?.map_err(|error| one_line(&error))?;
    tokio::spawn(connection);
    Ok(client)
}

/// The password of the first line of a passfile that fits: `host:port:database:user:password`, `*` fits all, `\` escapes.
fn from_passfile(text: &str, wanted: [&str; 4]) -> Option<String> {
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let (mut fields, mut escaped) = (vec![String::new()], false);
        for c in line.chars() {
            match c {
                '\\' if !escaped => {
                    escaped = true;
                    continue;
                }
                ':' if !escaped && fields.len() < 5 => fields.push(String::new()),
                c => fields.last_mut()?.push(c),
            }
            escaped = false;
        }
        let password = fields.get(4)?.clone();
        fields.iter().zip(wanted).all(|(field, wanted)| field == "*" || field == wanted).then_some(password)
    })
}

/// The server is what the role says, as it sees itself.
async fn fits(client: &Client, role: Role) -> bool {
    let wanted = match role {
        Role::Leader | Role::Any => return true,
        Role::Primary => "f",
        Role::StandbyLeader | Role::Replica | Role::Standby => "t",
    };
    let answer = client.simple_query("select pg_catalog.pg_is_in_recovery()").await.unwrap_or_default();
    answer.iter().any(|message| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some(wanted)))
}

/// The result of the last statement.
async fn run(client: &Client, sql: &str) -> Outcome {
    // Only a single statement can be described; of several all columns are text.
    let described = client.prepare(sql).await;
    let types: Vec<Type> =
        described.map(|statement| statement.columns().iter().map(|c| c.type_().clone()).collect()).unwrap_or_default();
    let messages = match client.simple_query(sql).await {
        Ok(messages) => messages,
        Err(error) => {
            let state = error.code().map(|code| format!("ERROR, SQLSTATE: {}", code.code()));
            return Outcome::Failure(state.unwrap_or_else(|| one_line(&error)));
        }
    };
    let (mut names, mut rows, mut over) = (None, Vec::new(), false);
    for message in messages {
        if std::mem::take(&mut over) {
            (names, rows) = (None, Vec::new());
        }
        match message {
            SimpleQueryMessage::RowDescription(columns) => {
                names = Some(columns.iter().map(|column| column.name().to_owned()).collect());
            }
            SimpleQueryMessage::Row(row) => {
                rows.push((0..row.len()).map(|i| value(types.get(i), row.get(i))).collect());
            }
            SimpleQueryMessage::CommandComplete(_) => over = true,
            _ => {}
        }
    }
    match names {
        Some(names) => Outcome::Rows { names, rows },
        None => Outcome::Failure("ERROR, SQLSTATE: no results to fetch".to_owned()),
    }
}

/// Booleans and numbers that JSON has; anything else is text.
fn value(kind: Option<&Type>, text: Option<&str>) -> Value {
    let Some(text) = text else { return Value::Null };
    let number = || serde_json::from_str::<Value>(text).ok().filter(Value::is_number);
    match kind {
        Some(&Type::BOOL) => Value::Bool(text == "t"),
        Some(&(Type::INT2 | Type::INT4 | Type::INT8 | Type::OID)) => number().unwrap_or_else(|| text.into()),
        Some(&(Type::FLOAT4 | Type::FLOAT8)) => {
            text.parse().ok().and_then(serde_json::Number::from_f64).map_or_else(|| text.into(), Value::Number)
        }
        Some(_) | None => text.into(),
    }
}

pub(crate) fn one_line(error: &tokio_postgres::Error) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}").replace('\n', " ")
}

fn show(outcome: &Outcome, format: Format, delimiter: &str) -> String {
    let text = |value: &Value| match value {
        Value::Null => "None".to_owned(),
        Value::Bool(on) => if *on { "True" } else { "False" }.to_owned(),
        Value::String(text) => text.clone(),
        number @ Value::Number(_) => to_json(number),
        other @ (Value::Array(_) | Value::Object(_)) => to_json(other),
    };
    let (names, rows) = match outcome {
        Outcome::Rows { names, rows } => (names.clone(), rows.clone()),
        Outcome::Failure(why) => (Vec::new(), vec![vec![stamp().into(), why.as_str().into()]]),
    };
    let objects = || {
        let object =
            |row: &Vec<Value>| -> Map<String, Value> { names.iter().cloned().zip(row.iter().cloned()).collect() };
        Value::Array(rows.iter().map(|row| Value::Object(object(row))).collect())
    };
    match format {
        Format::Tsv => {
            let line = |cells: Vec<String>| cells.join(delimiter) + "\n";
            let heading = if names.is_empty() { String::new() } else { line(names.clone()) };
            heading + &rows.iter().map(|row| line(row.iter().map(text).collect())).collect::<String>()
        }
        Format::Json => to_json(&objects()) + "\n",
        Format::Yaml | Format::Yml => to_yaml(&objects()) + "\n",
        Format::Pretty => {
            let side = |column: usize| {
                let mut cells = rows.iter().filter_map(|row| row.get(column)).filter(|cell| !cell.is_null()).peekable();
                let numbers = cells.peek().is_some() && cells.all(Value::is_number);
                if numbers { Align::Right } else { Align::Left }
            };
            let blank = String::new();
            let columns = rows.iter().map(Vec::len).max().unwrap_or(0).max(names.len());
            let headings: Vec<_> =
                (0..columns).map(|column| (names.get(column).unwrap_or(&blank).as_str(), side(column))).collect();
            draw("", &headings, &rows.iter().map(|row| row.iter().map(text).collect()).collect::<Vec<_>>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_look_like_the_peers() {
        let outcome = Outcome::Rows {
            names: ["a", "b", "c", "d"].map(str::to_owned).to_vec(),
            rows: vec![vec![
                value(Some(&Type::INT4), Some("1")),
                value(Some(&Type::TEXT), Some("x y")),
                value(Some(&Type::TEXT), None),
                value(Some(&Type::BOOL), Some("t")),
            ]],
        };
        assert_eq!(show(&outcome, Format::Tsv, "\t"), "a\tb\tc\td\n1\tx y\tNone\tTrue\n");
        assert_eq!(show(&outcome, Format::Tsv, "|"), "a|b|c|d\n1|x y|None|True\n");
        assert_eq!(show(&outcome, Format::Json, ""), "[{\"a\": 1, \"b\": \"x y\", \"c\": null, \"d\": true}]\n");
        assert_eq!(show(&outcome, Format::Yaml, ""), "- a: 1\n  b: x y\n  c: null\n  d: true\n\n");
        let table = "+---+-----+------+------+\n| a | b   | c    | d    |\n+---+-----+------+------+\n\
                     | 1 | x y | None | True |\n+---+-----+------+------+\n";
        assert_eq!(show(&outcome, Format::Pretty, ""), table);
        let failure = Outcome::Failure("ERROR, SQLSTATE: 42703".to_owned());
        assert!(show(&failure, Format::Tsv, "\t").ends_with("\tERROR, SQLSTATE: 42703\n"));
        assert_eq!(show(&failure, Format::Json, ""), "[{}]\n");
        assert_eq!(value(Some(&Type::NUMERIC), Some("1.50")), "1.50");
    }

    #[test]
    fn passfiles_are_read_as_libpq_does() {
        let file = "# note\nother:*:*:*:no\nh:5432:db:a\\:b:pass\\\\word:x\n*:*:*:*:last\n";
        let of = |user| from_passfile(file, ["h", "5432", "db", user]);
        assert_eq!(of("a:b").as_deref(), Some("pass\\word:x"));
        assert_eq!(of("c").as_deref(), Some("last"));
        assert_eq!(from_passfile("h:1:d\n", ["h", "1", "d", "u"]), None);
    }
}
