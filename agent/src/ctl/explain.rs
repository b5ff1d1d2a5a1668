//! `explain`, `switchover --dry-run` and `watch`: why somebody leads, who would come next, and what happens.
//!
//! An agent is asked, as it knows the configuration in force; where none of Regent's answers, that is said.

use std::path::Path;
use std::time::Duration;

use http::{Method, StatusCode};
use regent_core::rules::decide;
use regent_core::snapshot::Snapshot;
use regent_core::units::MemberName;
use regent_dcs::{Dcs, Read};
use serde_json::Value;

use super::args::{ExplainArgs, Format, WatchArgs};
use super::cluster::{ANSWER, Cluster, leader_first};
use super::output::to_json;
use super::table::{Align, draw};
use super::yaml_writer::to_yaml;
use super::{CtlError, fail, interruptible, print};

/// So many decisions of each member are shown by `watch`.
const DECISIONS: usize = 3;
/// The longest reason in one line.
const WIDTH: usize = 100;

impl<D: Dcs> Cluster<D> {
    /// `explain`
    pub(super) async fn explain(&self, asked: &ExplainArgs) -> Result<(), CtlError> {
        let read = self.read().await?;
        let explained = match &asked.member {
            Some(name) => {
                let of = |(known, _): &(&MemberName, _)| known.as_str() == name;
                let Some((_, member)) = read.view.members.iter().find(of) else {
                    return fail(&format!("{name} is not a member of cluster {}", self.scope));
                };
                let Some(url) = &member.api_url else { return fail(&format!("Member {name} has no REST address")) };
                self.ask(url, "/explain").await.map_err(|why| CtlError::Failed(format!("Member {name}: {why}")))?
            }
            None => self.ask_any(&read, "/explain").await?,
        };
        print(&shown(&explained, asked.member.as_deref(), asked.format))
    }

    /// `switchover --dry-run`
    pub(super) async fn rehearse(&self, read: &Read, candidate: Option<&str>) -> Result<(), CtlError> {
        let path = format!("/explain?candidate={}", encoded(candidate.unwrap_or("*")));
        let explained = self.ask_any(read, &path).await?;
        let leader = explained["leader"].as_str().unwrap_or("nobody");
        let fit: Vec<_> = members(&explained).filter(|member| member["candidate"] == true).collect();
        let names: Vec<_> = fit.iter().filter_map(|member| member["name"].as_str()).collect();
        let verdict = match names.as_slice() {
            [] => format!("Nobody would take over from {leader}: the switchover would be refused."),
            [one] => format!("{one} would take over from {leader}."),
            several => format!("The first of {} to reach etcd would take over from {leader}.", several.join(", ")),
        };
        let behind = fit.iter().filter_map(|member| member["lag"].as_u64()).max().unwrap_or(0);
        let cost = format!(
            "Nothing that was committed would be lost: {leader} stops in good order, and hands over when its last record has\n\
             been received ({behind} bytes are on their way). Clients cannot write from the stop to the promotion."
        );
        let cost = if fit.is_empty() { "Nothing would change.".to_owned() } else { cost };
        print(&format!("{}{verdict}\n{cost}\nNothing was done (--dry-run).\n", table(&explained)))
    }

    /// `watch`: the members, the lease, and the last decisions of each, again and again.
    pub(super) async fn look_on(&self, asked: &WatchArgs) -> Result<(), CtlError> {
        let clear = std::io::IsTerminal::is_terminal(&std::io::stdout());
        let mut rounds = asked.rounds;
        loop {
            let started = tokio::time::Instant::now();
            let read = self.read().await?;
            let mut text = self.table(&read);
            let mut asked_all = tokio::task::JoinSet::new();
            for (name, url) in leader_first(&read) {
                let (rest, name, url) = (self.rest.clone(), name.clone(), url.clone());
                asked_all.spawn(async move {
                    let call = async |path: &str| {
                        let answer = rest.call(Method::GET, &url, path, None, ANSWER).await?;
                        serde_json::from_str::<Value>(&answer.body).map_err(|_| "its answer is no JSON".to_owned())
                    };
                    (name, call("/patroni").await, call(&format!("/decisions?limit={DECISIONS}")).await)
                });
            }
            let mut answers = interruptible(asked_all.join_all()).await?;
            answers.sort_by(|(one, ..), (other, ..)| one.cmp(other));
            for (name, status, decisions) in answers {
                text.push_str(&of_member(name.as_str(), &status, &decisions));
            }
            if clear {
                text.insert_str(0, "\u{1b}[2J\u{1b}[1;1H");
            }
            print(&text)?;
            rounds = rounds.map(|left| left.saturating_sub(1));
            if rounds == Some(0) {
                return Ok(());
            }
            interruptible(tokio::time::sleep_until(started + asked.every.max(Duration::from_millis(100)))).await?;
        }
    }

    /// The first answer, the leader's if it can be had.
    async fn ask_any(&self, read: &Read, path: &str) -> Result<Value, CtlError> {
        let mut problems = Vec::new();
        for (name, url) in leader_first(read) {
            match self.ask(&url, path).await {
                Ok(explained) => return Ok(explained),
                Err(why) => problems.push(format!("{name}: {why}")),
            }
        }
        fail(&format!("No agent of Regent explains cluster {}. {}", self.scope, problems.join("; ")))
    }

    async fn ask(&self, url: &str, path: &str) -> Result<Value, String> {
        let called = interruptible(self.rest.call(Method::GET, url, path, None, ANSWER)).await;
        let answer = called.map_err(|error| error.to_string())??;
        let read =
            serde_json::from_str::<Value>(&answer.body).ok().filter(|value| value.get("without_leader").is_some());
        match read {
            Some(value) if answer.status == StatusCode::OK => Ok(value),
            Some(_) => Err(answer.refusal()),
            // The peer takes the path for a health check.
            None => Err("it is not Regent's, or of an older version".to_owned()),
        }
    }
}

/// `explain --snapshot`: what the rules of this program decide on an observation that `GET /decisions` showed.
pub(super) fn of_snapshot(path: &Path) -> Result<String, CtlError> {
    let named = |why: String| CtlError::Failed(format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| named(error.to_string()))?;
    let value: Value = serde_json::from_str(&text).map_err(|error| named(format!("no JSON: {error}")))?;
    // The whole answer (its latest decision), one decision of it, or the bare observation.
    let one = value.as_array().and_then(|all| all.first()).unwrap_or(&value);
    let seen = one.get("observation").unwrap_or(one).clone();
    let seen: Snapshot = serde_json::from_value(seen)
        .map_err(|error| named(format!("no observation as GET /decisions shows them: {error}")))?;
    let decision = decide(&seen);
    let mut text = format!("{}: {}\n", decision.rule, decision.why);
    if let Some(recorded) = one.get("rule").and_then(Value::as_str).filter(|recorded| *recorded != decision.rule) {
        text.push_str(&format!("(the agent that saw this went by {recorded}: it is of another version)\n"));
    }
    text.push_str(&format!("plan: {}\n", to_json(&serde_json::to_value(&decision.plan).unwrap_or_default())));
    Ok(text)
}

fn members(explained: &Value) -> impl Iterator<Item = &Value> {
    explained["without_leader"].as_array().into_iter().flatten()
}

fn shown(explained: &Value, only: Option<&str>, format: Format) -> String {
    match format {
        Format::Json => return to_json(explained) + "\n",
        Format::Yaml | Format::Yml => return to_yaml(explained) + "\n",
        Format::Tsv => {
            let row = |member: &Value| {
                let text = |key: &str| cell(&member[key]);
                format!("{}\t{}\t{}\t{}\t{}\n", text("name"), text("candidate"), text("lag"), text("rule"), text("why"))
            };
            return members(explained)
                .map(row)
                .fold("Member\tCandidate\tLag\tRule\tWhy\n".to_owned(), |all, row| all + &row);
        }
        Format::Pretty => {}
    }
    let text = |key: &str| explained[key].as_str().unwrap_or_default();
    let name = text("name");
    let mut out = format!("{name} goes by {}: {}\n", text("rule"), text("why"));
    match only {
        // The leader has no row: it is supposed to be gone.
        Some(member) if explained["leader"] == member => {}
        Some(member) => {
            let of = members(explained).find(|row| row["name"] == member);
            if let Some(row) = of {
                let fit = if row["candidate"] == true { "would run for leader" } else { "would not run for leader" };
                out.push_str(&format!(
                    "If the leader died now, {member} {fit} ({}): {}\n",
                    cell(&row["rule"]),
                    cell(&row["why"])
                ));
            }
        }
        None => {
            out.push_str(&format!("If the primary dies now: {}\n", text("contract")));
            out.push_str(&table(explained));
        }
    }
    out
}

/// Who would do what without the leader.
fn table(explained: &Value) -> String {
    let leader = explained["leader"].as_str();
    let title = leader.map_or(" Without a leader ".to_owned(), |leader| format!(" Without {leader} "));
    let headings =
        [("Member", Align::Left), ("Candidate", Align::Left), ("Lag in bytes", Align::Right), ("Why", Align::Left)];
    let row = |member: &Value| {
        let fit = if member["candidate"] == true { "yes" } else { "no" };
        vec![cell(&member["name"]), fit.to_owned(), cell(&member["lag"]), cell(&member["why"])]
    };
    draw(&title, &headings, &members(explained).map(row).collect::<Vec<_>>())
}

pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// One member of `watch`.
fn of_member(name: &str, status: &Result<Value, String>, decisions: &Result<Value, String>) -> String {
    let status = match status {
        Ok(status) => status,
        Err(why) => return format!("{name}: {why}\n"),
    };
    let guardian = &status["regent"]["guardian"];
    let armed =
        guardian["deadline_in"].as_f64().map(|left| format!(", lease for {left:.1} s more")).unwrap_or_default();
    let mut text = format!("{name}: {} {}{armed}\n", cell(&status["role"]), cell(&status["state"]));
    for decision in decisions.iter().filter_map(Value::as_array).flatten() {
        let time = cell(&decision["time"]);
        let why: String = cell(&decision["why"]).chars().take(WIDTH).collect();
        let time = time.get(11..19).unwrap_or_default();
        text.push_str(&format!("    {time} {}: {why}\n", cell(&decision["rule"])));
    }
    text
}

/// A name in a query string.
fn encoded(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~*".contains(&byte);
    name.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use regent_core::fixture::standby;
    use serde_json::json;

    use super::*;

    fn explained() -> Value {
        json!({
            "scope": "demo", "name": "n1", "rule": "lead", "why": "we lead", "leader": "n1", "contract": "much is lost",
            "without_leader": [
                {"name": "n2", "candidate": true, "rule": "run_for_leader", "why": "nobody is ahead", "lag": 0},
                {"name": "n3", "candidate": false, "rule": "wait_nofailover", "why": "tagged nofailover", "lag": null},
            ],
        })
    }

    #[test]
    fn the_table_says_who_would_come_next_and_why_not_the_others() {
        let want = "\
n1 goes by lead: we lead
If the primary dies now: much is lost
+ Without n1 --------+--------------+-------------------+
| Member | Candidate | Lag in bytes | Why               |
+--------+-----------+--------------+-------------------+
| n2     | yes       |            0 | nobody is ahead   |
| n3     | no        |              | tagged nofailover |
+--------+-----------+--------------+-------------------+
";
        assert_eq!(shown(&explained(), None, Format::Pretty), want);
        let of_n3 = "n1 goes by lead: we lead\nIf the leader died now, n3 would not run for leader (wait_nofailover): tagged nofailover\n";
        assert_eq!(shown(&explained(), Some("n3"), Format::Pretty), of_n3);
        let tsv = shown(&explained(), None, Format::Tsv);
        assert_eq!(tsv.lines().nth(1), Some("n2\ttrue\t0\trun_for_leader\tnobody is ahead"));
        assert_eq!(serde_json::from_str::<Value>(&shown(&explained(), None, Format::Json)).unwrap(), explained());
    }

    #[test]
    fn a_saved_observation_is_judged_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seen.json");
        let seen = serde_json::to_value(standby().vacant().alone().build()).unwrap();
        for saved in
            [seen.clone(), json!({"rule": "run_for_leader", "observation": seen}), json!([{"observation": seen}])]
        {
            std::fs::write(&path, saved.to_string()).unwrap();
            let said = of_snapshot(&path).unwrap();
            assert!(said.starts_with("run_for_leader: nobody leads") && !said.contains("another version"), "{said}");
        }
        std::fs::write(&path, json!({"rule": "lead", "observation": seen}).to_string()).unwrap();
        assert!(of_snapshot(&path).unwrap().contains("went by lead"));
        for (text, why) in [("{", "no JSON"), ("{}", "no observation")] {
            std::fs::write(&path, text).unwrap();
            assert!(of_snapshot(&path).unwrap_err().to_string().contains(why));
        }
    }

    #[test]
    fn a_name_fits_into_a_query() {
        assert_eq!(encoded("pg-1 ä&*"), "pg-1%20%C3%A4%26*");
    }
}
