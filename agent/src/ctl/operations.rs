//! `operations`: what was asked of the agents, by anybody, and what became of it.

use std::time::Duration;

use http::{Method, StatusCode};
use regent_dcs::Dcs;
use serde_json::Value;

use super::args::{Format, OperationsArgs};
use super::cluster::{ANSWER, Cluster, leader_first};
use super::explain::cell;
use super::output::to_json;
use super::rest::Answer;
use super::table::{Align, draw};
use super::yaml_writer::to_yaml;
use super::{CtlError, fail, interruptible, print, warn};

/// Between two looks at one that runs.
const LOOK: Duration = Duration::from_secs(1);
/// The columns, and the keys of their cells.
const COLUMNS: [(&str, &str); 6] = [
    ("Member", "member"),
    ("Id", "id"),
    ("Operation", "operation"),
    ("Asked", "asked"),
    ("State", "state"),
    ("Result", "result"),
];

impl<D: Dcs> Cluster<D> {
    /// `operations`
    pub(super) async fn operations(&self, asked: &OperationsArgs) -> Result<(), CtlError> {
        let path = asked.id.map_or("/operations".to_owned(), |id| format!("/operations/{id}"));
        loop {
            let (found, lost) = self.asked(&path).await?;
            let Some(id) = asked.id else { return print(&shown(&self.scope, &found, asked.format)) };
            let Some(one) = found.first() else {
                let lost = lost.unwrap_or_else(|| "no member knows it".to_owned());
                return fail(&format!("Operation {id}: {lost}"));
            };
            let state = one["state"].as_str().unwrap_or_default();
            if state == "running" && asked.wait {
                interruptible(tokio::time::sleep(LOOK)).await?;
                continue;
            }
            print(&phases(one, asked.format))?;
            let ended_well = !asked.wait || state == "done";
            return if ended_well { Ok(()) } else { fail(&format!("Operation {id} is {state}")) };
        }
    }

    /// All that the members tell under this path, oldest first, each with its member; and why one knows nothing.
    async fn asked(&self, path: &str) -> Result<(Vec<Value>, Option<String>), CtlError> {
        let (mut found, mut lost) = (Vec::new(), None);
        for (name, url) in leader_first(&self.read().await?) {
            let answer = match interruptible(self.rest.call(Method::GET, &url, path, None, ANSWER)).await? {
                Ok(answer) => answer,
                Err(why) => {
                    warn(&format!("Member {name} is not accessible: {why}"));
                    continue;
                }
            };
            let said = serde_json::from_str::<Value>(&answer.body).unwrap_or_default();
            if said.get("state").is_some_and(|state| state == "lost") {
                lost =
                    Some("lost: no member knows it any more; the agent that was asked has restarted since".to_owned());
            }
            // The peer takes the path for a health check.
            let several = match said {
                Value::Array(several) if answer.status == StatusCode::OK => several,
                Value::Object(_) if answer.status == StatusCode::OK => vec![said],
                Value::Null
                | Value::Bool(_)
                | Value::Number(_)
                | Value::String(_)
                | Value::Array(_)
                | Value::Object(_) => continue,
            };
            found.extend(several.into_iter().filter(|one| one.get("id").is_some()).map(|mut one| {
                one["member"] = name.as_str().into();
                one
            }));
        }
        found.sort_by_key(|one| one["id"].as_u64());
        Ok((found, lost))
    }

    /// Where a person looks on, says where to read more of what did not go well.
    pub(super) fn hint(&self, answer: &Answer) -> Result<(), CtlError> {
        match answer.operation {
            Some(id) if std::io::IsTerminal::is_terminal(&std::io::stdout()) => {
                print(&format!("What happened: regentctl operations {} {id}\n", self.scope))
            }
            Some(_) | None => Ok(()),
        }
    }
}

fn shown(scope: &str, found: &[Value], format: Format) -> String {
    let all = || Value::Array(found.to_vec());
    let row = |one: &Value| COLUMNS.map(|(_, key)| cell(&one[key])).to_vec();
    match format {
        Format::Json => to_json(&all()) + "\n",
        Format::Yaml | Format::Yml => to_yaml(&all()) + "\n",
        Format::Tsv => {
            let head = COLUMNS.map(|(title, _)| title).join("\t");
            found.iter().fold(head + "\n", |text, one| text + &row(one).join("\t") + "\n")
        }
        Format::Pretty => {
            let headings = COLUMNS.map(|(title, _)| (title, Align::Left));
            let rows: Vec<_> = found.iter().map(row).collect();
            draw(&format!(" Operations of cluster {scope} "), &headings, &rows)
        }
    }
}

/// One operation and what happened from its beginning to its end.
fn phases(one: &Value, format: Format) -> String {
    match format {
        Format::Json => return to_json(one) + "\n",
        Format::Yaml | Format::Yml => return to_yaml(one) + "\n",
        Format::Pretty | Format::Tsv => {}
    }
    let text = |key: &str| cell(&one[key]);
    let asker = one["by"].as_str().map(|by| format!(" by {by}")).unwrap_or_default();
    let mut out =
        format!("{} {} {}, asked of {}{asker}", text("asked"), text("operation"), text("request"), text("member"));
    out.push('\n');
    if one["gap"] == true {
        out.push_str("... more than is kept\n");
    }
    for phase in one["phases"].as_array().into_iter().flatten() {
        let of = |key: &str| cell(&phase[key]);
        let line = match phase.get("rule") {
            Some(_) => format!("{}: {}", of("rule"), of("why")),
            None => format!("{}: {} -> {}", of("what"), of("from"), of("to")),
        };
        out.push_str(&format!("{} {line}\n", of("time")));
    }
    let state = text("state");
    match one.get("ended") {
        Some(_) => out.push_str(&format!("{} {state}: {}\n", text("ended"), text("result"))),
        None => out.push_str(&format!("{state}\n")),
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_operation_is_told_from_its_beginning_to_its_end() {
        let mut one = json!({
            "id": 7, "operation": "switchover", "request": {"leader": "n1"}, "by": "10.0.0.9", "asked": "T1",
            "state": "running", "member": "n2", "gap": false,
            "phases": [
                {"number": 8, "time": "T2", "rule": "wait_for_leader", "why": "n1 leads", "plan": {}},
                {"number": 9, "time": "T3", "what": "leader", "from": "n1", "to": null},
            ],
        });
        let told = "T1 switchover {\"leader\":\"n1\"}, asked of n2 by 10.0.0.9\nT2 wait_for_leader: n1 leads\nT3 leader: n1 -> \n";
        assert_eq!(phases(&one, Format::Pretty), format!("{told}running\n"));
        (one["state"], one["ended"], one["result"]) = (json!("done"), json!("T4"), json!("all is well"));
        assert_eq!(phases(&one, Format::Pretty), format!("{told}T4 done: all is well\n"));
        let table = "\
+ Operations of cluster demo --+-------+-------------+
| Member | Id | Operation  | Asked | State | Result      |
+--------+----+------------+-------+-------+-------------+
| n2     | 7  | switchover | T1    | done  | all is well |
+--------+----+------------+-------+-------+-------------+
";
        let drawn = shown("demo", &[one.clone()], Format::Pretty);
        assert_eq!(drawn.lines().skip(1).collect::<Vec<_>>(), table.lines().skip(1).collect::<Vec<_>>());
        let tsv = "Member\tId\tOperation\tAsked\tState\tResult\nn2\t7\tswitchover\tT1\tdone\tall is well\n";
        assert_eq!(shown("demo", &[one], Format::Tsv), tsv);
    }
}
