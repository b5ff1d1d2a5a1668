//! Synchronous replication (ha-rules sections 14 and 15): who may be waited for, and in which order the two records of it
//! change: `sync` in etcd, which says who may be promoted, and `synchronous_standby_names`, which says whom the server waits for.
//!
//! Add to PostgreSQL first and publish last; unpublish first and remove from PostgreSQL last. One step a turn: the next one is
//! taken on what is then seen, so a step that was refused, or lost, ends nothing.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use crate::cluster::SyncState;
use crate::config::SyncMode;
use crate::postgres::{SqlFacts, WalSender};
use crate::quorum::{self, Names, Step};
use crate::snapshot::Snapshot;
use crate::units::{Lsn, MemberName};

/// Stands in `synchronous_standby_names` where strict mode has nobody to wait for: no member may be called so (ha-rules 23).
/// The peer's `*` would let any connection acknowledge.
pub const NOBODY: &str = "__patroni_strict_sync_replica_placeholder__";

/// From the moment that another `synchronous_standby_names` was first seen until every WAL sender goes by it: the signal
/// to reload reaches each of them by itself.
const SETTLES: Duration = Duration::from_secs(1);

/// Does this list have the name? PostgreSQL compares application names without case (dcs.md 3.6).
#[must_use]
pub fn lists<'a>(names: impl IntoIterator<Item = &'a MemberName>, name: &MemberName) -> bool {
    names.into_iter().any(|listed| listed.as_str().eq_ignore_ascii_case(name.as_str()))
}

/// What the server waits for, as `synchronous_standby_names` says it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// How many of them must acknowledge.
    pub numsync: usize,
    /// Whom, in lower case; without [`NOBODY`].
    pub names: Names,
    /// Any of them (`ANY`); otherwise the first ones.
    pub any: bool,
    /// It waits for somebody who cannot come, or is not ours to know (`*`).
    pub blocked: bool,
}

impl Waits {
    /// Reads `synchronous_standby_names`. What cannot be read waits for nobody.
    #[must_use]
    pub fn parse(text: &str) -> Waits {
        let text = text.trim();
        let (head, list) = match text.split_once('(') {
            Some((head, rest)) => (head.trim(), rest.trim_end().trim_end_matches(')')),
            None => ("", text),
        };
        let any = head.to_ascii_lowercase().starts_with("any");
        let all: Names = list.split(',').map(|name| name.trim().trim_matches('"').to_ascii_lowercase()).collect();
        let names: Names =
            all.iter().filter(|name| !name.is_empty() && *name != NOBODY && *name != "*").cloned().collect();
        let number = head.rsplit(char::is_whitespace).next().and_then(|number| number.parse().ok());
        let blocked = all.contains(NOBODY) || all.contains("*");
        let numsync = if names.is_empty() { 0 } else { number.unwrap_or(1) };
        Waits { numsync, names, any, blocked }
    }

    /// `sync_state` of a standby of this name that streams, as long as all that are named do.
    #[must_use]
    pub fn state_of(&self, name: &str) -> &'static str {
        match (self.names.contains(&name.to_ascii_lowercase()), self.any) {
            (false, _) => "async",
            (true, true) => "quorum",
            (true, false) => "sync",
        }
    }

    /// The text for all of these (`on`).
    #[must_use]
    pub fn all_of(names: &Names) -> String {
        match names.len() {
            0 => String::new(),
            1 => list(names),
            several => format!("{several} ({})", list(names)),
        }
    }

    /// The text for any so many of these (`quorum`).
    #[must_use]
    pub fn any_of(numsync: usize, names: &Names) -> String {
        if numsync == 0 || names.is_empty() { String::new() } else { format!("ANY {numsync} ({})", list(names)) }
    }
}

fn list(names: &Names) -> String {
    let mut text = String::new();
    for name in names {
        let mut chars = name.chars();
        let plain = chars.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
            && chars.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '$')
            && !matches!(name.as_str(), "first" | "any");
        let comma = if text.is_empty() { "" } else { "," };
        // Writing to a String does not fail.
        let _ = if plain {
            write!(text, "{comma}{name}")
        } else {
            write!(text, "{comma}\"{}\"", name.replace('"', "\"\""))
        };
    }
    text
}

/// The next step on the way to what is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Todo {
    /// Write `sync`; `None` removes it.
    Publish(Option<SyncState>),
    /// Set `synchronous_standby_names`; `None`: what the user configured.
    WaitFor(Option<String>),
    /// Look again soon: standbys are about to confirm.
    Settle,
}

/// The members that are listed now, if I am the one who lists them.
fn listed(s: &Snapshot) -> Option<&SyncState> {
    s.view()?.sync.as_ref().filter(|sync| sync.leader.as_str().eq_ignore_ascii_case(s.config.name.as_str()))
}

fn publish(s: &Snapshot, names: &Names, quorum: usize) -> Todo {
    let members = s.view().into_iter().flat_map(|view| view.members.keys());
    let sql = s.sql().into_iter().flat_map(|sql| sql.replication.iter()).map(|sender| &sender.application_name);
    let mut known: Vec<String> = members.map(ToString::to_string).chain(sql.cloned()).collect();
    known.sort();
    let spelled = |name: &String| {
        let found = known.iter().find(|known| known.eq_ignore_ascii_case(name));
        MemberName(found.unwrap_or(name).clone())
    };
    let standbys: BTreeSet<MemberName> = names.iter().map(spelled).collect();
    Todo::Publish(Some(SyncState { leader: s.config.name.clone(), standbys, quorum }))
}

fn lower(names: &BTreeSet<MemberName>) -> Names {
    names.iter().map(|name| name.as_str().to_ascii_lowercase()).collect()
}

/// Standbys that may be waited for, the best first (section 14, "Candidates").
fn candidates<'a>(s: &Snapshot, sql: &'a SqlFacts) -> Vec<(&'a WalSender, Lsn)> {
    let view = s.view();
    let mut found: Vec<(i64, u8, Lsn, bool, &WalSender)> = Vec::new();
    for sender in &sql.replication {
        let member = view.and_then(|view| {
            view.members.iter().find(|(name, _)| lists([*name], &MemberName(sender.application_name.clone())))
        });
        let Some((name, member)) = member.filter(|(name, _)| **name != s.config.name) else { continue };
        let Some(lsn) = sender.position.filter(|_| sender.state == "streaming") else { continue };
        if member.state != "running" || member.tags.nosync {
            continue;
        }
        let cascades = member.tags.replicatefrom.as_ref().is_some_and(|from| {
            from != name
                && sql.replication.iter().any(|other| other.application_name.eq_ignore_ascii_case(from.as_str()))
        });
        if cascades {
            continue;
        }
        let state = match sender.sync_state.as_str() {
            "sync" => 3,
            "quorum" => 2,
            "potential" => 1,
            _ => 0,
        };
        found.push((member.tags.sync_priority.unwrap_or(1), state, lsn, !member.tags.nofailover, sender));
    }
    // Stable: PostgreSQL's order decides among equals.
    found.sort_by_key(|(priority, state, lsn, electable, _)| std::cmp::Reverse((*electable, *priority, *state, *lsn)));
    let best = match found.as_slice() {
        [_] => sql.flush_lsn,
        _ => found.iter().map(|(_, _, lsn, _, _)| *lsn).max().unwrap_or_default(),
    };
    let near = |lsn: Lsn| s.config.maximum_lag_on_syncnode.is_none_or(|limit| best.bytes_ahead_of(lsn) <= limit);
    found.into_iter().filter(|(_, _, lsn, _, _)| near(*lsn)).map(|(_, _, lsn, _, sender)| (sender, lsn)).collect()
}

fn name_of(sender: &WalSender) -> String {
    sender.application_name.to_ascii_lowercase()
}

/// Every WAL sender goes by the present names; what is beyond this position was acknowledged by them only.
fn settled(s: &Snapshot, sql: &SqlFacts) -> Option<Lsn> {
    s.memory.sync_names.as_ref().filter(|since| since.names == sql.sync_names)?.mark
}

/// Its acknowledgement has been waited for since a position that it has reached.
fn reached(s: &Snapshot, sql: &SqlFacts, lsn: Lsn) -> bool {
    settled(s, sql).is_some_and(|mark| lsn >= mark)
}

/// What a primary does next for the synchronous mode; `None`: all is as it should be.
#[must_use]
pub fn next(s: &Snapshot) -> Option<Todo> {
    let sql = s.sql().filter(|sql| !sql.in_recovery)?;
    match s.config.synchronous_mode {
        SyncMode::Off => off(s),
        SyncMode::On => on(s, sql),
        SyncMode::Quorum => by_quorum(s, sql),
    }
}

fn off(s: &Snapshot) -> Option<Todo> {
    if s.view()?.sync.is_some() {
        return Some(Todo::Publish(None));
    }
    s.memory.set_sync_names.then_some(Todo::WaitFor(None))
}

fn strict(s: &Snapshot, text: String) -> String {
    if text.is_empty() && s.config.synchronous_mode_strict { NOBODY.to_owned() } else { text }
}

fn on(s: &Snapshot, sql: &SqlFacts) -> Option<Todo> {
    let Some(sync) = listed(s).filter(|sync| sync.quorum == 0) else { return Some(publish(s, &Names::new(), 0)) };
    let listed = lower(&sync.standbys);
    let count = s.config.synchronous_node_count.max(usize::from(s.config.synchronous_mode_strict));
    let picked: Vec<_> = candidates(s, sql).into_iter().take(count).collect();
    let confirms = |(sender, lsn): &&(&WalSender, Lsn)| {
        matches!(sender.sync_state.as_str(), "sync" | "quorum")
            && (listed.contains(&name_of(sender)) || reached(s, sql, *lsn))
    };
    let confirmed: Names = picked.iter().filter(confirms).map(|(sender, _)| name_of(sender)).collect();
    let picked: Names = picked.iter().map(|(sender, _)| name_of(sender)).collect();
    let common: Names = &listed & &confirmed;
    if common != listed {
        return Some(publish(s, &common, 0));
    }
    let wanted = strict(s, Waits::all_of(&picked));
    if Waits::parse(&sql.sync_names) != Waits::parse(&wanted) {
        return Some(Todo::WaitFor(Some(wanted)));
    }
    if confirmed != listed {
        return Some(publish(s, &confirmed, 0));
    }
    (confirmed != picked).then_some(Todo::Settle)
}

fn by_quorum(s: &Snapshot, sql: &SqlFacts) -> Option<Todo> {
    let Some(sync) = s.view()?.sync.as_ref() else { return Some(publish(s, &Names::new(), 0)) };
    let waits = Waits::parse(&sql.sync_names);
    let wanted = s.config.synchronous_node_count.max(1);
    let all = candidates(s, sql);
    let nofailover = |sender: &WalSender| {
        let members = s.view().into_iter().flat_map(|view| view.members.iter());
        members
            .filter(|(_, m)| m.tags.nofailover)
            .any(|(name, _)| name.as_str().eq_ignore_ascii_case(&sender.application_name))
    };
    let (mut active, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|(sender, _)| !nofailover(sender));
    active.extend(rest.into_iter().take(wanted.saturating_sub(active.len())));
    let confirmed = active.iter().filter(|(sender, lsn)| {
        waits.names.contains(&name_of(sender))
            && matches!(sender.sync_state.as_str(), "quorum" | "sync")
            && reached(s, sql, *lsn)
    });
    let me = s.config.name.as_str().to_ascii_lowercase();
    let confirmed = confirmed.count();
    let active: Names = active.iter().map(|(sender, _)| name_of(sender)).collect();
    let leader = sync.leader.as_str().to_ascii_lowercase();
    // Standbys need time to find a new primary before they count as gone (Q3).
    let fresh = s.memory.primary_since.is_none_or(|since| s.now.since(since) < s.config.loop_wait);
    if fresh && me == leader && !waits.names.is_subset(&active) {
        return Some(Todo::Settle);
    }
    // `2 (a,b)` of the mode `on` waits for any two of two.
    let state = quorum::State {
        me,
        leader,
        quorum: sync.quorum,
        voters: lower(&sync.standbys),
        numsync: waits.numsync.min(waits.names.len()),
        sync: waits.names,
        confirmed,
        active,
        wanted,
    };
    match quorum::steps(&state).first()? {
        // Some WAL senders may still acknowledge by the names before these: with them, too, the present records overlap.
        Step::Publish { .. } if settled(s, sql).is_none() => Some(Todo::Settle),
        Step::Publish { quorum, voters } => Some(publish(s, voters, *quorum)),
        Step::WaitFor { numsync, sync } => Some(Todo::WaitFor(Some(strict(s, Waits::any_of(*numsync, sync))))),
        Step::Restart => Some(Todo::Settle),
    }
}

/// What must be done before a standby is promoted (Y8, Q7): a second failover right then must not believe stale names, and a
/// primary must not acknowledge alone what it is to wait for.
#[must_use]
pub fn before_promotion(s: &Snapshot) -> Option<Todo> {
    let standby = s.standby()?;
    let wanted = match s.config.synchronous_mode {
        SyncMode::Off => return None,
        SyncMode::On => {
            if listed(s).is_none_or(|sync| !sync.standbys.is_empty() || sync.quorum != 0) {
                return Some(publish(s, &Names::new(), 0));
            }
            strict(s, String::new())
        }
        SyncMode::Quorum => {
            let me = s.config.name.as_str().to_ascii_lowercase();
            let sync = s.view()?.sync.as_ref().filter(|sync| !sync.standbys.is_empty());
            let text = sync.map(|sync| {
                let mut names = lower(&sync.standbys);
                names.insert(sync.leader.as_str().to_ascii_lowercase());
                let (all, member) = (names.len(), names.remove(&me));
                Waits::any_of((all + usize::from(!member)).saturating_sub(sync.quorum + 1), &names)
            });
            strict(s, text.unwrap_or_default())
        }
    };
    if Waits::parse(&standby.sync_names) != Waits::parse(&wanted) {
        return Some(Todo::WaitFor(Some(wanted)));
    }
    // Others may be promoted on what is published: no commit may be acknowledged by the names before these.
    let since = s.memory.sync_names.as_ref().filter(|since| since.names == standby.sync_names);
    let in_force = since.is_some_and(|since| s.now.since(since.at) >= SETTLES);
    (s.config.synchronous_mode == SyncMode::Quorum && !in_force).then_some(Todo::Settle)
}

/// Since when the server waits for whom it waits for, and where its log was when every WAL sender went by it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Since {
    /// `synchronous_standby_names`
    pub names: String,
    /// When it was first seen.
    pub at: crate::units::Instant,
    /// What is beyond this was acknowledged by those names only.
    pub mark: Option<Lsn>,
}

impl Since {
    /// What is known after another look.
    #[must_use]
    pub fn after(old: Option<Since>, sql: &SqlFacts, now: crate::units::Instant) -> Since {
        match old.filter(|old| old.names == sql.sync_names) {
            None => Since { names: sql.sync_names.clone(), at: now, mark: None },
            // What a standby has was acknowledged by another server's names.
            Some(old) if sql.in_recovery => Since { mark: None, ..old },
            Some(old) if old.mark.is_none() && now.since(old.at) >= SETTLES => {
                Since { mark: Some(sql.flush_lsn), ..old }
            }
            Some(old) => old,
        }
    }
}
