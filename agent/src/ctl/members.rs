//! What is asked of chosen members: `reload`, `restart`, `reinit`, `flush` (cli.md 5).

use std::collections::BTreeMap;
use std::time::Duration;

use http::{Method, StatusCode};
use regent_core::cluster::Member;
use regent_core::units::MemberName;
use regent_dcs::{Dcs, Read, Write};
use serde_json::{Map, Value, json};

use super::args::{FlushArgs, MembersArgs, ReinitArgs, ReloadArgs, RestartArgs, Role};
use super::ask::{ask, confirm};
use super::cluster::{ANSWER, Cluster, leader_first, loop_wait, stamp, with_role};
use super::list;
use super::moment::{self, When};
use super::rest::Answer;
use super::{CtlError, READ, fail, interruptible, print, warn};

/// A restart, or the end of a cancelled action, is waited for: a server may have much to recover.
const PATIENT: Duration = Duration::from_secs(3600);
/// Between two looks at a copy that is under way.
const LOOK: Duration = Duration::from_secs(2);

/// Members by name.
type Chosen<'a> = BTreeMap<&'a MemberName, &'a Member>;

impl<D: Dcs> Cluster<D> {
    /// Prints the table and picks members by role and name.
    fn choose<'a>(&self, read: &'a Read, names: &[String], role: Option<Role>) -> Result<Chosen<'a>, CtlError> {
        let fit: Chosen<'_> = with_role(read, role.unwrap_or(Role::Any)).collect();
        if fit.is_empty() && names.is_empty() {
            return fail(&format!("{} cluster doesn't have any members", self.scope));
        }
        print(&self.table(read))?;
        if names.is_empty() {
            return Ok(fit);
        }
        let named: Chosen<'_> = fit.into_iter().filter(|(name, _)| names.contains(&name.0)).collect();
        if named.is_empty() {
            return fail(&format!("No '{}' among provided members", word(role.unwrap_or(Role::Any))));
        }
        Ok(named)
    }

    async fn call(
        &self,
        method: Method,
        name: &MemberName,
        member: &Member,
        path: &str,
        body: Option<&Value>,
        within: Duration,
    ) -> Result<Answer, CtlError> {
        let url = member.api_url.as_deref().ok_or_else(|| CtlError::Failed(format!("{name} has no REST address")))?;
        let answer = interruptible(self.rest.call(method, url, path, body, within)).await?;
        answer.map_err(|why| CtlError::Failed(format!("member {name} cannot be reached at {url}: {why}")))
    }

    /// `reload`
    pub(super) async fn reload(&self, asked: &ReloadArgs) -> Result<(), CtlError> {
        let read = self.read().await?;
        let chosen = self.choose(&read, &asked.members.member_names, asked.role)?;
        agreed("reload", &chosen, asked.members.force).await?;
        let seconds = loop_wait(read.config.as_ref());
        for (name, member) in chosen {
            let answer = self.call(Method::POST, name, member, "/reload", None, ANSWER).await?;
            print(&match answer.status {
                StatusCode::OK => format!("No changes to apply on member {name}\n"),
                StatusCode::ACCEPTED => format!(
                    "Reload request received for member {name} and will be processed within {seconds} seconds\n"
                ),
                _ => format!("Failed: reload for member {name}, {}\n", answer.refusal()),
            })?;
        }
        Ok(())
    }

    /// `restart`
    pub(super) async fn restart(&self, asked: &RestartArgs) -> Result<(), CtlError> {
        let MembersArgs { member_names, force, .. } = &asked.members;
        let read = self.read().await?;
        let mut chosen = self.choose(&read, member_names, asked.role)?;
        let when = moment::asked("restart", asked.scheduled.as_deref(), *force).await?;
        let key = |name: &MemberName, key: &str| read.members.get(name).and_then(|json| json.get(key)).cloned();
        if asked.pending && when == When::Now {
            chosen.retain(|name, _| key(name, "pending_restart").is_some_and(|pending| list::truthy(&pending)));
            if chosen.is_empty() {
                return Ok(());
            }
        }
        if let When::At { shown, .. } = &when {
            if list::paused(read.config.as_ref()) {
                return fail("Can't schedule restart in the paused state");
            }
            let sure = format!(
                "Are you sure you want to schedule restart of members {} at {}?",
                names(&chosen),
                shown.replacen('T', " ", 1)
            );
            let later = "The nodes needing a restart will be identified at the scheduled time, and might be different \
                         from the ones showing pending restart right now. Is this fine?";
            if !force && !confirm(if asked.pending { later } else { &sure }).await? {
                return fail("Aborted scheduled restart");
            }
        } else {
            agreed("restart", &chosen, *force).await?;
        }
        let version = match &asked.pg_version {
            None if *force => String::new(),
            None => ask("Restart if the PostgreSQL version is less than provided (e.g. 9.5.2) ", Some("")).await?,
            Some(version) => version.clone(),
        };
        moment::check_version(&version).map_err(CtlError::Failed)?;
        if asked.any {
            let dice = usize::try_from(jiff::Timestamp::now().subsec_nanosecond().unsigned_abs()).unwrap_or(0);
            let one = chosen.iter().nth(dice % chosen.len().max(1)).map(|(name, member)| (*name, *member));
            chosen = one.into_iter().collect();
        }
        let mut body = Map::new();
        if asked.pending {
            body.insert("restart_pending".to_owned(), Value::Bool(true));
        }
        for (field, value) in
            [("postgres_version", Some(version).filter(|v| !v.is_empty())), ("timeout", asked.timeout.clone())]
        {
            body.extend(value.map(|value| (field.to_owned(), Value::String(value))));
        }
        if let When::At { shown, .. } = &when {
            body.insert("schedule".to_owned(), Value::String(shown.clone()));
        }
        let body = Value::Object(body);
        for (name, member) in chosen {
            if when != When::Now && *force && key(name, "scheduled_restart").is_some() {
                self.flush_restart(name, member).await?;
            }
            let answer = self.call(Method::POST, name, member, "/restart", Some(&body), PATIENT).await?;
            print(&match answer.status {
                StatusCode::OK => format!("Success: restart on member {name}\n"),
                StatusCode::ACCEPTED => format!("Success: restart scheduled on member {name}\n"),
                StatusCode::CONFLICT => format!("Failed: another restart is already scheduled on member {name}\n"),
                _ => format!("Failed: restart for member {name}, {}\n", answer.refusal()),
            })?;
            if !answer.status.is_success() {
                self.hint(&answer)?;
            }
        }
        Ok(())
    }

    /// `reinit`
    pub(super) async fn reinit(&self, asked: &ReinitArgs) -> Result<(), CtlError> {
        let MembersArgs { member_names, force, .. } = &asked.members;
        let no_replica = "No replica among provided members"; // without the quotes that the others have
        let read = self.read().await?;
        let mut chosen = self.choose(&read, member_names, Some(Role::Replica)).map_err(|error| {
            let none = matches!(error, CtlError::Failed(_)) && !member_names.is_empty();
            if none { CtlError::Failed(no_replica.to_owned()) } else { error }
        })?;
        if member_names.is_empty() {
            let question = format!("Which member do you want to reinitialize [{}]?", names(&chosen));
            let answer = ask(&question, Some("")).await?;
            chosen.retain(|name, _| name.0 == answer);
            if chosen.is_empty() {
                return fail(&format!("{answer} is not a member of cluster"));
            }
        }
        agreed("reinitialize", &chosen, *force).await?;
        let mut started = Vec::new();
        for (name, member) in chosen {
            let body = |force: bool| json!({"force": force, "from_leader": asked.from_leader});
            let post = async |force: bool| {
                self.call(Method::POST, name, member, "/reinitialize", Some(&body(force)), PATIENT).await
            };
            let mut answer = post(*force).await?;
            let refused = answer.status != StatusCode::OK;
            if refused && answer.body.ends_with(" already in progress") {
                print(&format!("Failed: reinitialize for member {name}, {}\n", answer.refusal()))?;
                if *force || !confirm("Do you want to cancel it and reinitialize anyway?").await? {
                    continue;
                }
                answer = post(true).await?;
            }
            if answer.status == StatusCode::OK {
                print(&format!("Success: reinitialize for member {name}\n"))?;
                started.push((name, member));
            } else {
                print(&format!("Failed: reinitialize for member {name}, {}\n", answer.refusal()))?;
                self.hint(&answer)?;
            }
        }
        if asked.wait { self.wait_for_copies(started).await } else { Ok(()) }
    }

    /// Until nobody of these creates a replica any more.
    async fn wait_for_copies(&self, mut left: Vec<(&MemberName, &Member)>) -> Result<(), CtlError> {
        while !left.is_empty() {
            let waiting = left.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
            print(&format!("Waiting for reinitialize to complete on: {waiting}\n"))?;
            let before = left.len();
            while left.len() == before {
                interruptible(tokio::time::sleep(LOOK)).await?;
                let mut still = Vec::new();
                for (name, member) in left {
                    let said = self.call(Method::GET, name, member, "/patroni", None, ANSWER).await;
                    let state = said.ok().and_then(|answer| serde_json::from_str::<Value>(&answer.body).ok());
                    let state = state.and_then(|said| said.get("state")?.as_str().map(str::to_owned));
                    // Who does not answer for a moment is asked again.
                    if state.is_some_and(|state| state != "creating replica") {
                        print(&format!("Reinitialize is completed on: {name}\n"))?;
                    } else {
                        still.push((name, member));
                    }
                }
                left = still;
            }
        }
        Ok(())
    }

    /// `flush`
    pub(super) async fn flush(&self, asked: &FlushArgs) -> Result<(), CtlError> {
        let (target, member_names) = asked.words.split_last().map_or(("", &[][..]), |(last, names)| (last, names));
        match target {
            "restart" => {
                let read = self.read().await?;
                let chosen = self.choose(&read, member_names, asked.role)?;
                agreed("flush", &chosen, asked.force).await?;
                for (name, member) in chosen {
                    if read.members.get(name).is_some_and(|json| json.get("scheduled_restart").is_some()) {
                        self.flush_restart(name, member).await?;
                    } else {
                        print(&format!("No scheduled restart for member {name}\n"))?;
                    }
                }
                Ok(())
            }
            "switchover" => self.flush_switchover().await,
            other => Err(CtlError::Usage(format!("{other:?} is not one of 'restart', 'switchover'"))),
        }
    }

    async fn flush_restart(&self, name: &MemberName, member: &Member) -> Result<(), CtlError> {
        let answer = self.call(Method::DELETE, name, member, "/restart", None, ANSWER).await?;
        print(&match answer.status {
            StatusCode::OK => format!("Success: flush scheduled restart for member {name}\n"),
            StatusCode::NOT_FOUND => format!("No scheduled restart for member {name}\n"),
            _ => format!("Failed: flush scheduled restart for member {name}, {}\n", answer.refusal()),
        })
    }

    async fn flush_switchover(&self) -> Result<(), CtlError> {
        let read = self.read().await?;
        let Some(request) = read.view.failover.as_ref().filter(|request| request.schedule.is_some()) else {
            return print("No pending scheduled switchover\n");
        };
        for (name, url) in leader_first(&read) {
            match interruptible(self.rest.call(Method::DELETE, &url, "/switchover", None, ANSWER)).await? {
                Ok(answer) if answer.status == StatusCode::OK => {
                    return print("Success: scheduled switchover deleted\n");
                }
                Ok(answer) if answer.status == StatusCode::NOT_FOUND => {
                    return print(&format!("Failed: {}\n", answer.body));
                }
                Ok(answer) => warn(&format!("Member {name}: {}", answer.refusal())),
                Err(why) => warn(&format!("Member {name} is not accessible: {why}")),
            }
        }
        print(&format!("{} Could not find any accessible member of cluster {}\n", stamp(), self.scope))?;
        interruptible(self.dcs.write(Write::ClearFailover { seen: request.modified }, READ)).await??;
        Ok(())
    }
}

pub(super) fn word(role: Role) -> &'static str {
    match role {
        Role::Leader => "leader",
        Role::Primary => "primary",
        Role::StandbyLeader => "standby-leader",
        Role::Replica => "replica",
        Role::Standby => "standby",
        Role::Any => "any",
    }
}

fn names(chosen: &Chosen<'_>) -> String {
    chosen.keys().map(|name| name.as_str()).collect::<Vec<_>>().join(", ")
}

/// Asks, unless forced; no is an error.
async fn agreed(action: &str, chosen: &Chosen<'_>, force: bool) -> Result<(), CtlError> {
    let question = format!("Are you sure you want to {action} members {}?", names(chosen));
    if force || confirm(&question).await? { Ok(()) } else { fail(&format!("Aborted {action}")) }
}
