//! One cluster, and what is done to it or shown of it as a whole: `dsn`, `history`, `pause`, `resume`, `remove`.

use std::time::Duration;

use http::{Method, StatusCode};
use regent_core::cluster::Member;
use regent_core::units::MemberName;
use regent_dcs::{Dcs, Read, Write};
use serde_json::{Value, json};

use super::args::{DsnArgs, Format, Role};
use super::ask::ask;
use super::list::{self, ClusterTable};
use super::output::to_json;
use super::rest::Rest;
use super::table::{Align, draw};
use super::yaml_writer::to_yaml;
use super::{CtlError, READ, fail, interruptible, print, warn};

/// A member's time to answer a call that waits for nothing.
pub(super) const ANSWER: Duration = Duration::from_secs(10);
/// The longest pause between two turns of an agent, where the configuration does not say.
const LOOP_WAIT: u64 = 10;

/// The way to one cluster.
pub(super) struct Cluster<D> {
    pub(super) dcs: D,
    pub(super) scope: String,
    pub(super) rest: Rest,
}

impl<D: Dcs> Cluster<D> {
    /// Everything that stands in etcd.
    pub(super) async fn read(&self) -> Result<Read, CtlError> {
        Ok(interruptible(self.dcs.read(READ)).await??)
    }

    /// The table of `list`.
    pub(super) fn table(&self, read: &Read) -> String {
        ClusterTable::of_read(&self.scope, read).show(Format::Pretty, false)
    }

    /// `dsn`
    pub(super) async fn dsn(&self, asked: &DsnArgs) -> Result<(), CtlError> {
        if asked.role.is_some() && asked.member.is_some() {
            return fail("--role and --member are mutually exclusive options");
        }
        let read = self.read().await?;
        let role = asked.role.unwrap_or(if asked.member.is_some() { Role::Any } else { Role::Leader });
        let wanted = |name: &MemberName| asked.member.as_ref().is_none_or(|member| *member == name.0);
        let found = with_role(&read, role).find(|(name, member)| wanted(name) && member.conn_url.is_some());
        let Some((_, member)) = found else { return fail("Can not find a suitable member") };
        let (host, port) = list::address(&json!({"conn_url": member.conn_url}));
        print(&format!("host={host} port={port}\n"))
    }

    /// `history`
    pub(super) async fn history(&self, format: Format) -> Result<(), CtlError> {
        print(&history(self.read().await?.history.as_ref(), format))
    }

    /// `pause` and `resume`
    pub(super) async fn pause(&self, pause: bool, wait: bool) -> Result<(), CtlError> {
        let read = self.read().await?;
        if list::paused(read.config.as_ref()) == pause {
            return fail(if pause { "Cluster is already paused" } else { "Cluster is not paused" });
        }
        let body = json!({"pause": if pause { Value::Bool(true) } else { Value::Null }});
        for (name, url) in leader_first(&read) {
            let called = self.rest.call(Method::PATCH, &url, "/config", Some(&body), ANSWER);
            let answer = match interruptible(called).await? {
                Ok(answer) => answer,
                Err(why) => {
                    warn(&format!("Member {name} is not accessible: {why}"));
                    continue;
                }
            };
            if answer.status != StatusCode::OK {
                let verb = if pause { "pause" } else { "resume" };
                return print(&format!("Failed: {verb} cluster management {}\n", answer.refusal()));
            }
            if wait {
                self.wait_for_pause(pause, &read).await?;
            }
            return print(&format!("Success: cluster management is {}\n", if pause { "paused" } else { "resumed" }));
        }
        fail("Can not find accessible cluster member")
    }

    /// Until every member that was there says so of itself, or for `loop_wait` and a second.
    async fn wait_for_pause(&self, pause: bool, before: &Read) -> Result<(), CtlError> {
        let verb = if pause { "pause" } else { "resume" };
        print(&format!("'{verb}' request sent, waiting until it is recognized by all nodes\n"))?;
        let seconds = loop_wait(before.config.as_ref()).saturating_add(1);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(seconds);
        loop {
            let read = self.read().await?;
            let says = |name: &MemberName| {
                read.members.get(name).is_none_or(|json| (json.get("pause") == Some(&Value::Bool(true))) == pause)
            };
            let missing: Vec<_> = read.view.members.keys().filter(|name| !says(name)).map(MemberName::as_str).collect();
            if missing.is_empty() {
                return Ok(());
            }
            if tokio::time::Instant::now() >= deadline {
                let missing = missing.join(", ");
                return print(&format!("{missing} members didn't recognized {verb} state after {seconds} seconds\n"));
            }
            interruptible(tokio::time::sleep(Duration::from_millis(500))).await?;
        }
    }

    /// `remove`
    pub(super) async fn remove(&self, format: Format) -> Result<(), CtlError> {
        let read = self.read().await?;
        print(&ClusterTable::of_read(&self.scope, &read).show(format, false))?;
        if ask("Please confirm the cluster name to remove", None).await? != self.scope {
            return fail("Cluster names specified do not match");
        }
        let aware = "Yes I am aware";
        let question =
            format!("You are about to remove all information in DCS for {}, please type: \"{aware}\"", self.scope);
        if ask(&question, None).await? != aware {
            return fail("You did not exactly type \"Yes I am aware\"");
        }
        if let Some(leader) = &read.view.leader {
            let question = "This cluster currently is healthy. Please specify the leader name to continue";
            if ask(question, None).await? != leader.name.0 {
                return fail("You did not specify the current leader of the cluster");
            }
        }
        interruptible(self.dcs.write(Write::RemoveCluster, READ)).await??;
        Ok(())
    }
}

/// Members of a role, by name.
pub(super) fn with_role(read: &Read, role: Role) -> impl Iterator<Item = (&MemberName, &Member)> {
    let standby = list::standby_cluster(read.config.as_ref());
    let leader = read.view.leader.as_ref().map(|leader| &leader.name);
    read.view.members.iter().filter(move |(name, _)| {
        let leads = leader == Some(*name);
        match role {
            Role::Any => true,
            Role::Leader => leads,
            Role::Primary => leads && !standby,
            Role::StandbyLeader => leads && standby,
            Role::Replica | Role::Standby => !leads,
        }
    })
}

/// Who can be called over REST: the leader first, then the others by name.
pub(super) fn leader_first(read: &Read) -> Vec<(MemberName, String)> {
    let all = with_role(read, Role::Leader).chain(with_role(read, Role::Replica));
    all.filter_map(|(name, member)| Some((name.clone(), member.api_url.clone()?))).collect()
}

/// `loop_wait` of a `config` key, seconds.
pub(super) fn loop_wait(config: Option<&Value>) -> u64 {
    config.and_then(|config| config.get("loop_wait")).and_then(Value::as_u64).unwrap_or(LOOP_WAIT)
}

/// The time of a message: local, five digits of a second.
pub(super) fn stamp() -> String {
    jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S%.5f").to_string()
}

/// The answer of `history` (cli.md 4.3).
fn history(key: Option<&Value>, format: Format) -> String {
    let names = ["TL", "LSN", "Reason", "Timestamp", "New Leader"];
    let field = |line: &Value, index: usize| match line.get(index) {
        None | Some(Value::Null) => Value::from(""),
        Some(value @ (Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_))) => {
            value.clone()
        }
    };
    let lines: Vec<Vec<Value>> = key
        .and_then(Value::as_array)
        .map(|lines| lines.iter().map(|line| (0..names.len()).map(|index| field(line, index)).collect()).collect())
        .unwrap_or_default();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let objects = || {
        let object = |line: &Vec<Value>| {
            Value::Object(names.iter().zip(line).map(|(name, value)| ((*name).to_owned(), value.clone())).collect())
        };
        Value::Array(lines.iter().map(object).collect())
    };
    match format {
        Format::Pretty => {
            let aligns = [Align::Right, Align::Right, Align::Left, Align::Left, Align::Left];
            let headings: Vec<_> = names.into_iter().zip(aligns).collect();
            let rows: Vec<Vec<String>> = lines.iter().map(|line| line.iter().map(text).collect()).collect();
            draw("", &headings, &rows)
        }
        Format::Tsv => {
            let rows = lines.iter().map(|line| line.iter().map(text).collect::<Vec<_>>().join("\t"));
            std::iter::once(names.join("\t")).chain(rows).map(|row| row + "\n").collect()
        }
        Format::Json => to_json(&objects()) + "\n",
        Format::Yaml | Format::Yml => to_yaml(&objects()) + "\n",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_looks_like_the_peers() {
        let key = json!([
            [1, 67_500_816, "no recovery target specified", "2026-11-21T00:46:54.789348+00:00", "pg2"],
            [2, 67_501_392, "no recovery target specified", "2026-11-21T00:47:05.585348+00:00", "pg1"]
        ]);
        let pretty = "\
+----+----------+------------------------------+----------------------------------+------------+
| TL |      LSN | Reason                       | Timestamp                        | New Leader |
+----+----------+------------------------------+----------------------------------+------------+
|  1 | 67500816 | no recovery target specified | 2026-11-21T00:46:54.789348+00:00 | pg2        |
|  2 | 67501392 | no recovery target specified | 2026-11-21T00:47:05.585348+00:00 | pg1        |
+----+----------+------------------------------+----------------------------------+------------+
";
        assert_eq!(history(Some(&key), Format::Pretty), pretty);
        let old = json!([[1, 7, "x"]]);
        assert_eq!(history(Some(&old), Format::Tsv), "TL\tLSN\tReason\tTimestamp\tNew Leader\n1\t7\tx\t\t\n");
        let json = r#"[{"TL": 1, "LSN": 7, "Reason": "x", "Timestamp": "", "New Leader": ""}]"#;
        assert_eq!(history(Some(&old), Format::Json), format!("{json}\n"));
        assert_eq!(history(None, Format::Yaml), "[]\n\n");
    }
}
