//! `switchover` and `failover` (cli.md 5.4, 5.5).

use std::time::Duration;

use http::{Method, StatusCode};
use regent_core::cluster::Member;
use regent_core::sync::lists;
use regent_core::units::MemberName;
use regent_dcs::{Dcs, Read, Write};
use serde_json::{Map, Value};

use super::args::{FailoverArgs, SwitchoverArgs};
use super::ask::{ask, confirm};
use super::cluster::{Cluster, loop_wait, stamp};
use super::list;
use super::moment::{self, When};
use super::{CtlError, READ, fail, interruptible, print, warn};

/// What is sent.
struct Request {
    failover: bool,
    leader: Option<MemberName>,
    candidate: Option<MemberName>,
    when: When,
}

impl<D: Dcs> Cluster<D> {
    /// `switchover`
    pub(super) async fn switchover(&self, asked: &SwitchoverArgs) -> Result<(), CtlError> {
        let read = self.begin().await?;
        if asked.dry_run {
            return self.rehearse(&read, asked.candidate.as_deref()).await;
        }
        let Some(current) = read.view.leader.as_ref().map(|key| key.name.clone()) else {
            return fail("This cluster has no leader");
        };
        let title = if list::standby_cluster(read.config.as_ref()) { "Standby Leader" } else { "Primary" };
        let leader = match &asked.leader {
            Some(leader) => leader.clone(),
            None if asked.force => current.0.clone(),
            None => ask(title, Some(current.as_str())).await?,
        };
        if leader != current.0 {
            return fail(&format!("Member {leader} is not the leader of cluster {}", self.scope));
        }
        let fit = candidates(&read, Some(&current));
        if fit.is_empty() {
            return fail("No candidates found to switchover to");
        }
        let candidate = match &asked.candidate {
            None if !asked.force => ask(&format!("Candidate {}", listed(&fit)), Some("")).await?,
            given => given.clone().unwrap_or_default(),
        };
        self.check(&read, &candidate)?;
        let when = moment::asked("switchover", asked.scheduled.as_deref(), asked.force).await?;
        let (question, aborted) = match &when {
            When::Now => (
                format!(
                    "Are you sure you want to switchover cluster {}, demoting current leader {leader}?",
                    self.scope
                ),
                "Aborting switchover",
            ),
            When::At { shown } => {
                if list::paused(read.config.as_ref()) {
                    return fail("Can't schedule switchover in the paused state");
                }
                let scope = &self.scope;
                let text = format!(
                    "Are you sure you want to schedule switchover of cluster {scope} at {shown}, demoting current leader {leader}?"
                );
                (text, "Aborting scheduled switchover")
            }
        };
        if !asked.force && !confirm(&question).await? {
            return fail(aborted);
        }
        let candidate = Some(candidate).filter(|name| !name.is_empty()).map(MemberName);
        self.request(&read, Request { failover: false, leader: Some(current), candidate, when }).await
    }

    /// `failover`
    pub(super) async fn failover(&self, asked: &FailoverArgs) -> Result<(), CtlError> {
        let read = self.begin().await?;
        let current = read.view.leader.as_ref().map(|key| key.name.clone());
        let fit = candidates(&read, current.as_ref());
        if fit.is_empty() {
            return fail("No candidates found to failover to");
        }
        let candidate = match &asked.candidate {
            None if !asked.force => ask(&format!("Candidate {}", listed(&fit)), Some("")).await?,
            given => given.clone().unwrap_or_default(),
        };
        if candidate.is_empty() {
            return fail("Failover could be performed only to a specific candidate");
        }
        self.check(&read, &candidate)?;
        let candidate = MemberName(candidate);
        let synchronous = list::synchronous_mode(read.config.as_ref()) != "off";
        let sync = read.view.sync.as_ref().is_some_and(|sync| lists(&sync.standbys, &candidate));
        let question = format!("Are you sure you want to failover to the asynchronous node {candidate}?");
        if synchronous && !sync && !asked.force && !confirm(&question).await? {
            return fail("Aborting failover");
        }
        let demoting = current.map(|leader| format!(", demoting current leader {leader}")).unwrap_or_default();
        let question = format!("Are you sure you want to failover cluster {}{demoting}?", self.scope);
        if !asked.force && !confirm(&question).await? {
            return fail("Aborting failover");
        }
        self.request(&read, Request { failover: true, leader: None, candidate: Some(candidate), when: When::Now }).await
    }

    async fn begin(&self) -> Result<Read, CtlError> {
        let read = self.read().await?;
        print(&format!("Current cluster topology\n{}", self.table(&read)))?;
        Ok(read)
    }

    fn check(&self, read: &Read, candidate: &str) -> Result<(), CtlError> {
        let scope = &self.scope;
        if read.view.leader.as_ref().is_some_and(|key| key.name.0 == candidate) {
            return fail(&format!("Member {candidate} is already the leader of cluster {scope}"));
        }
        let known = read.view.members.get(&MemberName::from(candidate)).is_some_and(|member| !member.tags.nofailover);
        if candidate.is_empty() || known {
            return Ok(());
        }
        fail(&format!("Member {candidate} does not exist in cluster {scope} or is tagged as nofailover"))
    }

    /// Asks the leader, else the candidate; if nobody can be reached, the request goes into etcd as it is.
    async fn request(&self, read: &Read, request: Request) -> Result<(), CtlError> {
        let target = read.view.leader_member().or_else(|| read.view.members.get_key_value(request.candidate.as_ref()?));
        let at = match &request.when {
            When::Now => None,
            When::At { shown } => Some(shown.clone()),
        };
        let name = |name: &Option<MemberName>| name.as_ref().map(|name| Value::from(name.as_str()));
        let fields = [
            ("candidate", name(&request.candidate)),
            ("leader", name(&request.leader)),
            ("scheduled_at", at.clone().map(Value::from)),
        ];
        let body: Map<String, Value> = fields.into_iter().filter_map(|(key, v)| Some((key.to_owned(), v?))).collect();
        let path = if request.failover { "/failover" } else { "/switchover" };
        let within = Duration::from_secs(loop_wait(read.config.as_ref()).max(10).saturating_mul(2).saturating_add(15));
        let unreachable = match target.and_then(|(name, member)| Some((name, member.api_url.as_deref()?))) {
            Some((name, url)) => {
                let body = Value::Object(body);
                match interruptible(self.rest.call(Method::POST, url, path, Some(&body), within)).await? {
                    Ok(answer) if matches!(answer.status, StatusCode::OK | StatusCode::ACCEPTED) => {
                        print(&format!("{} {}\n", stamp(), answer.body))?;
                        return print(&self.table(&self.read().await?));
                    }
                    Ok(answer) => {
                        let title = if request.failover { "Failover" } else { "Switchover" };
                        let status = answer.status.as_u16();
                        print(&format!("{title} failed, details: {status}, {}\n", answer.body))?;
                        return self.hint(&answer);
                    }
                    Err(why) => format!("member {name} is not accessible: {why}"),
                }
            }
            None => "no member has a REST address".to_owned(),
        };
        warn(&unreachable);
        let verb = if request.failover { "failover" } else { "switchover" };
        print(&format!("{} Could not {verb} using Patroni api, falling back to DCS\n", stamp()))?;
        let Request { leader, candidate, .. } = request;
        let write = Write::RequestFailover { leader, candidate, scheduled_at: at };
        interruptible(self.dcs.write(write, READ)).await??;
        print(&self.table(&self.read().await?))
    }
}

fn candidates<'a>(read: &'a Read, leader: Option<&MemberName>) -> Vec<&'a str> {
    let fit = |(name, member): &(&MemberName, &Member)| Some(*name) != leader && !member.tags.nofailover;
    read.view.members.iter().filter(fit).map(|(name, _)| name.as_str()).collect()
}

/// `['pg2', 'pg3']`
fn listed(names: &[&str]) -> String {
    format!("[{}]", names.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", "))
}
