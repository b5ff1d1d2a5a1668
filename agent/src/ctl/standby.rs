//! `demote-cluster` and `promote-cluster` (cli.md 5.10): `standby_cluster` is written into the configuration, and the rest is the
//! agents' business.

use std::time::Duration;

use http::{Method, StatusCode};
use regent_core::units::MemberName;
use regent_dcs::{Dcs, Read};
use serde_json::{Map, Value, json};

use super::args::{DemoteClusterArgs, PromoteClusterArgs};
use super::ask::confirm;
use super::cluster::{ANSWER, Cluster, stamp};
use super::{CtlError, fail, interruptible, list, print};

/// What is wanted of a cluster.
struct Wanted<'a> {
    verb: &'a str,
    noun: &'a str,
    /// The leader's role in the end.
    role: &'a str,
    standby_cluster: Value,
    force: bool,
}

impl<D: Dcs> Cluster<D> {
    /// `demote-cluster`
    pub(super) async fn demote_cluster(&self, asked: &DemoteClusterArgs) -> Result<(), CtlError> {
        let text = |text: &Option<String>| text.as_ref().map(|text| Value::from(text.as_str()));
        let given = [
            ("host", text(&asked.host)),
            ("port", asked.port.map(Value::from)),
            ("restore_command", text(&asked.restore_command)),
        ];
        if given.iter().all(|(_, value)| value.is_none()) {
            return fail("At least --host, --port or --restore-command should be specified");
        }
        let given = given.into_iter().chain([("primary_slot_name", text(&asked.primary_slot_name))]);
        let given: Map<String, Value> = given.filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
        let (verb, noun, role) = ("demote", "demotion", "standby_leader");
        self.become_what(Wanted { verb, noun, role, standby_cluster: Value::Object(given), force: asked.force }).await
    }

    /// `promote-cluster`
    pub(super) async fn promote_cluster(&self, asked: &PromoteClusterArgs) -> Result<(), CtlError> {
        let (verb, noun, role) = ("promote", "promotion", "primary");
        self.become_what(Wanted { verb, noun, role, standby_cluster: Value::Null, force: asked.force }).await
    }

    async fn become_what(&self, wanted: Wanted<'_>) -> Result<(), CtlError> {
        let read = self.read().await?;
        let Wanted { verb, noun, role, .. } = wanted;
        let Some((leader, url)) = read.view.leader_member().and_then(|(n, m)| Some((n, m.api_url.clone()?))) else {
            return fail(&format!("Cluster has no leader, {noun} is not possible"));
        };
        if list::standby_cluster(read.config.as_ref()) == (role == "standby_leader") {
            return fail("Cluster is already in the required state");
        }
        print(&format!("Current cluster topology\n{}", self.table(&read)))?;
        let question = format!("Are you sure you want to {verb} {} cluster?", self.scope);
        if !wanted.force && !confirm(&question).await? {
            return fail(&format!("Aborted cluster {noun}"));
        }
        let body = json!({"standby_cluster": wanted.standby_cluster});
        let called = self.rest.call(Method::PATCH, &url, "/config", Some(&body), ANSWER);
        let why = match interruptible(called).await? {
            Ok(answer) if answer.status == StatusCode::OK => return self.watch(verb, role, leader).await,
            Ok(answer) => format!("/config PATCH {}", answer.refusal()),
            Err(why) => why,
        };
        fail(&format!("Failed to {verb} {} cluster: {why}", self.scope))
    }

    /// One line a second until the lock holder has the role, and runs, and so does whoever led before.
    async fn watch(&self, verb: &str, role: &str, before: &MemberName) -> Result<(), CtlError> {
        loop {
            let read = self.read().await?;
            let leader = read.view.leader_member();
            let shown = |value: Option<&String>| value.map_or_else(|| "None".to_owned(), Clone::clone);
            let (role_now, state) = (leader.map(|(_, m)| &m.role), leader.map(|(_, m)| &m.state));
            let unlocked = if read.view.leader.is_none() { "True" } else { "False" };
            let mut line = format!(
                "{} cluster is unlocked: {unlocked}, leader role: {}, leader state: {}",
                seconds(),
                shown(role_now),
                shown(state)
            );
            let old = state_of(&read, before);
            let runs = |state: Option<&String>| state.is_some_and(|state| state == "running");
            let moved = verb == "demote" && leader.is_some_and(|(name, _)| name != before);
            if moved {
                line.push_str(&format!(", previous leader state: '{}'", shown(old)));
            }
            let done = role_now.is_some_and(|now| now == role) && runs(state) && (!moved || runs(old));
            if done {
                print(&format!("{} cluster is successfully {verb}d\n", seconds()))?;
                return print(&self.table(&read));
            }
            print(&format!("{line}\n"))?;
            interruptible(tokio::time::sleep(Duration::from_secs(1))).await?;
        }
    }
}

fn state_of<'a>(read: &'a Read, name: &MemberName) -> Option<&'a String> {
    read.view.members.get(name).map(|member| &member.state)
}

/// The time of a line, without parts of a second.
fn seconds() -> String {
    stamp().chars().take_while(|c| *c != '.').collect()
}
