//! Which replication slots this node wants (ha-rules section 12). A slot keeps the log for somebody who is away; one that
//! nobody moves on keeps it until the disk is full.

use std::collections::{BTreeMap, BTreeSet};

mod logical;

use crate::cluster::{ConfigKey, Member};
use crate::config::{IgnoreSlot, PermanentSlot, SlotKind};
use crate::postgres::{Slot, SlotChanges, SqlFacts};
use crate::snapshot::{Seat, Snapshot};
use crate::units::{Instant, Lsn, MemberName};
pub(crate) use logical::tries;
pub use logical::{Copy, complaints, not_ready, proven, to_copy, upkeep};

/// WAL is kept and removed in segments of, usually, this size: to move a slot within one changes nothing.
const SEGMENT: u64 = 16 << 20;

/// A physical slot that should be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    /// How far whoever it is for has come, as the cluster knows it.
    at: Option<Lsn>,
    /// Somebody will connect to it here, and move it on.
    used: bool,
}

/// What is to be done: P1 to P7.
#[must_use]
pub fn changes(s: &Snapshot, sql: &SqlFacts) -> SlotChanges {
    let Some(view) = s.view() else { return SlotChanges::default() };
    let wanted = wanted(s, sql);
    let logical = logical::wanted(s, sql, &wanted);
    let there: BTreeMap<&str, &Slot> = sql.slots.iter().map(|slot| (slot.name.as_str(), slot)).collect();
    let mut changes = SlotChanges::default();
    for (name, wanted) in &wanted {
        match there.get(name.as_str()) {
            None => changes.create.push(name.clone()),
            Some(slot) if slot.active || slot.foreign => {}
            Some(slot) if slot.lost || slot.logical.is_some() || slot.position.is_none() => {
                changes.drop.push(name.clone());
                changes.create.push(name.clone());
            }
            Some(slot) if !wanted.used && slot.holds_xmin && view.leader.is_some() => {
                changes.drop.push(name.clone());
                changes.create.push(name.clone());
            }
            Some(slot) => {
                // No further than this server has replayed: PostgreSQL would stop there, and this would be asked for again at once.
                let reachable = wanted.at.map(|at| sql.replay_lsn.map_or(at, |replayed| at.min(replayed)));
                let to =
                    reachable.filter(|to| !wanted.used && slot.position.is_some_and(|at| segment(at) < segment(*to)));
                changes.advance.extend(to.map(|to| (name.clone(), to)));
            }
        }
    }
    logical::change(sql, &logical, &there, &mut changes);
    // Without the cluster's configuration nobody knows which slots the operator wants to keep.
    if matches!(view.config, ConfigKey::Valid(_)) && s.config.use_slots {
        let unwanted = |slot: &&Slot| !wanted.contains_key(&slot.name) && !logical.contains_key(&slot.name);
        let removed = sql.slots.iter().filter(unwanted).filter(|slot| may_go(s, sql, slot));
        changes.drop.extend(removed.map(|slot| slot.name.clone()));
    }
    // In pause none is removed, not even to be made anew (M11).
    if s.config.pause {
        changes.drop.clear();
        changes.create.retain(|name| !there.contains_key(name.as_str()));
        changes.create_logical.retain(|name, _| !there.contains_key(name.as_str()));
    }
    changes
}

fn segment(at: Lsn) -> u64 {
    at.0 / SEGMENT
}

/// P1: neither in use, nor somebody else's; nor, of a primary, what its operator wants to keep.
fn may_go(s: &Snapshot, sql: &SqlFacts, slot: &Slot) -> bool {
    let kept = !sql.in_recovery && s.config.permanent_slots.contains_key(&slot.name);
    let ours = !kept && slot.name != s.config.name.slot_name();
    ours && !slot.active && !slot.foreign && !s.config.ignore_slots.iter().any(|matcher| matches(matcher, slot))
}

fn matches(matcher: &IgnoreSlot, slot: &Slot) -> bool {
    let kind = if slot.logical.is_some() { SlotKind::Logical } else { SlotKind::Physical };
    let is = |wanted: &Option<String>, found: Option<&String>| wanted.as_ref().is_none_or(|text| Some(text) == found);
    is(&matcher.name, Some(&slot.name))
        && matcher.kind.is_none_or(|wanted| wanted == kind)
        && is(&matcher.database, slot.logical.as_ref().map(|logical| &logical.database))
        && is(&matcher.plugin, slot.logical.as_ref().map(|logical| &logical.plugin))
}

/// Members that stream, but me. A key without an address is no member: nobody can stream from there, nor ever asked for a slot.
fn others(s: &Snapshot) -> impl Iterator<Item = (&MemberName, &Member)> {
    let members = s.view().into_iter().flat_map(|view| &view.members);
    members.filter(|(name, member)| **name != s.config.name && member.conn_url.is_some() && !member.tags.nostream)
}

/// "Wanted member slots on node X", and permanent ones.
fn wanted(s: &Snapshot, sql: &SqlFacts) -> BTreeMap<String, Wanted> {
    let (Some(view), true) = (s.view(), s.config.use_slots) else { return BTreeMap::new() };
    let (me, leads) = (&s.config.name, !sql.in_recovery || s.leads_standbys());
    let never_leads = s.config.tags.nofailover;
    let leader = view.leader.as_ref().map(|key| &key.name);
    let mut all = BTreeMap::new();
    if !never_leads {
        let kept = retained(s).into_iter().chain(view.status.retain_slots.iter().cloned());
        let permanent = s.config.permanent_slots.iter().filter(|(_, slot)| **slot == PermanentSlot::Physical);
        let known = |name: String| (view.status.slots.get(&name).copied(), name);
        all.extend(kept.map(known).map(|(at, name)| (name, Wanted { at, used: false })));
        // Who uses it connects to the primary.
        all.extend(permanent.map(|(name, _)| known(name.clone())).map(|(at, name)| (name, Wanted { at, used: leads })));
    }
    for (name, member) in others(s) {
        let tag = member.tags.replicatefrom.as_ref();
        let from = view.cascades_from(name, tag);
        let here = from == Some(me) && Some(name) != leader;
        let used = here || leads && from.is_none();
        let kept = !s.config.member_slots_ttl.is_zero() && !never_leads;
        if kept || used {
            let slot = name.slot_name();
            let status = view.status.slots.get(&slot).copied();
            let at = if tag.is_some() { status.max(member.xlog_location) } else { status };
            all.insert(slot, Wanted { at, used });
        }
    }
    all.remove(&me.slot_name());
    all
}

/// As the leader: when each member's slot was last wanted by a member that is there. Those of a predecessor start anew (P13).
#[must_use]
pub fn wanted_since(before: &BTreeMap<String, Instant>, s: &Snapshot) -> BTreeMap<String, Instant> {
    let Some(view) = s.view() else { return before.clone() };
    if s.seat() != Seat::Mine {
        return BTreeMap::new();
    }
    let mut since = before.clone();
    for name in &view.status.retain_slots {
        since.entry(name.clone()).or_insert(s.now);
    }
    let present: BTreeSet<String> = others(s).map(|(name, _)| name.slot_name()).collect();
    since.extend(present.into_iter().map(|name| (name, s.now)));
    since.insert(s.config.name.slot_name(), s.now);
    since.retain(|name, at| {
        s.now.since(*at) < s.config.member_slots_ttl && !s.config.permanent_slots.contains_key(name)
    });
    since
}

/// Slots of members that are kept, present or not; of a leader.
fn retained(s: &Snapshot) -> BTreeSet<String> {
    wanted_since(&s.memory.slots_wanted, s).into_keys().collect()
}

/// What the leader publishes: how far each slot is, and which are kept (P12, P13).
#[must_use]
pub fn published(s: &Snapshot, sql: &SqlFacts) -> (BTreeMap<String, Lsn>, Vec<String>) {
    let wanted = wanted(s, sql);
    let known = |slot: &&Slot| wanted.contains_key(&slot.name) || s.config.permanent_slots.contains_key(&slot.name);
    let positions = sql.slots.iter().filter(known).filter_map(|slot| Some((slot.name.clone(), slot.position?)));
    let mut slots: BTreeMap<String, Lsn> = positions.collect();
    slots.insert(s.config.name.slot_name(), sql.position());
    (slots, retained(s).into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Status;
    use crate::fixture::{decodes, primary, secs, slot, standby};
    use crate::units::Revision;

    fn of(s: &Snapshot) -> SlotChanges {
        changes(s, s.sql().expect("it answers"))
    }

    /// With this slot besides those of b and c, or in the place of one of them.
    fn with(new: Slot) -> impl Fn(&mut Snapshot) {
        move |s| {
            s.dcs.as_mut().expect("reachable").config = ConfigKey::Valid(Revision(1));
            let slots = &mut s.postgres.sql.as_mut().expect("it answers").slots;
            slots.retain(|slot| slot.name != new.name);
            slots.push(new.clone());
        }
    }

    fn status(slots: &[(&str, u64)], retain: &[&str]) -> impl Fn(&mut Snapshot) {
        let slots = slots.iter().map(|(name, at)| ((*name).to_owned(), Lsn(*at))).collect();
        let status =
            Status { optime: None, slots, retain_slots: retain.iter().map(|name| (*name).to_owned()).collect() };
        move |s| s.dcs.as_mut().expect("reachable").status = status.clone()
    }

    #[test]
    fn a_slot_of_nobody_is_removed_and_what_is_not_ours_stays() {
        assert_eq!(of(&primary().with(with(slot("gone")))).drop, ["gone"]);
        for (what, kept) in [
            ("in use", Slot { active: true, ..slot("x") }),
            ("temporary, or PostgreSQL's own", Slot { foreign: true, ..slot("x") }),
            ("our own name", slot("a")),
        ] {
            assert_eq!(of(&primary().with(with(kept))), SlotChanges::default(), "{what}");
        }
        let logical = Slot { logical: Some(decodes("d", "pgoutput")), ..slot("x") };
        let matcher = |database: &str| IgnoreSlot { database: Some(database.into()), ..IgnoreSlot::default() };
        for (database, drop) in [("d", vec![]), ("e", vec!["x".to_owned()])] {
            let s = primary().but(with(logical.clone())).with(|s| s.config.ignore_slots = vec![matcher(database)]);
            assert_eq!(of(&s).drop, drop, "{database}");
        }
        let permanent = |s: &mut Snapshot| {
            s.config.permanent_slots = [("x".into(), PermanentSlot::Logical(decodes("d", "pgoutput")))].into();
        };
        assert_eq!(of(&primary().but(with(logical)).with(permanent)), SlotChanges::default());
        let unknown = primary().but(with(slot("gone"))).without_config().build();
        assert_eq!(of(&unknown).drop, [""; 0], "nobody knows what the operator wants to keep");
        let off = primary().but(with(slot("gone"))).with(|s| s.config.use_slots = false);
        assert_eq!(of(&off), SlotChanges::default());
    }

    #[test]
    fn a_useless_slot_is_made_anew() {
        for broken in [
            Slot { lost: true, ..slot("b") },
            Slot { position: None, ..slot("b") },
            Slot { logical: Some(decodes("d", "p")), ..slot("b") },
        ] {
            let changes = of(&primary().with(with(broken.clone())));
            assert_eq!((changes.drop, changes.create), (vec!["b".into()], vec!["b".into()]), "{broken:?}");
        }
        let feedback = with(Slot { holds_xmin: true, ..slot("c") });
        assert_eq!(of(&primary().with(&feedback)), SlotChanges::default(), "c will be back (P5)");
        assert_eq!(of(&standby().with(&feedback)).drop, ["c"], "nobody moves it on, and vacuum waits (P5)");
    }

    #[test]
    fn a_standby_moves_its_slots_on_with_the_cluster() {
        let at = |position| with(Slot { position: Some(Lsn(position)), ..slot("c") });
        let standby = || standby().but(|s| s.postgres.sql.as_mut().expect("answers").replay_lsn = Some(Lsn(300 << 20)));
        for (ours, theirs, advance) in [
            (1_000, 100 << 20, vec![("c".to_owned(), Lsn(100 << 20))]),
            (1_000, 15 << 20, vec![]),
            (200 << 20, 100 << 20, vec![]),
        ] {
            let s = standby().but(at(ours)).with(status(&[("c", theirs)], &[]));
            assert_eq!(of(&s).advance, advance, "{ours} {theirs}");
        }
        let behind = standby().but(at(1_000)).but(status(&[("c", 100 << 20)], &[])).with(|s| {
            s.postgres.sql.as_mut().expect("answers").replay_lsn = Some(Lsn(2_000));
        });
        assert_eq!(of(&behind), SlotChanges::default(), "it has not replayed so much, and cannot");
        let led = primary().but(at(1_000)).with(status(&[("c", 100 << 20)], &[]));
        assert_eq!(of(&led), SlotChanges::default(), "c does that itself");
        let cascades = |s: &mut Snapshot| {
            let member = s.dcs.as_mut().expect("reachable").members.get_mut(&"c".into()).expect("there");
            (member.tags.replicatefrom, member.xlog_location) = (Some("b".into()), Some(Lsn(100 << 20)));
        };
        assert_eq!(of(&primary().but(at(1_000)).with(cascades)).advance.len(), 1, "c streams from b");
        let permanent = |s: &mut Snapshot| s.config.permanent_slots = [("p".into(), PermanentSlot::Physical)].into();
        let old = with(slot("p"));
        let s = standby().but(&old).but(permanent).with(status(&[("p", 100 << 20)], &[]));
        assert_eq!(of(&s).advance.len(), 1);
        let s = primary().but(&old).but(permanent).with(status(&[("p", 100 << 20)], &[]));
        assert_eq!(of(&s), SlotChanges::default(), "whoever uses it connects here");
    }

    #[test]
    fn who_never_leads_keeps_slots_for_those_who_stream_from_it_only() {
        let s = standby().nofailover().but(with(slot("c"))).build();
        assert_eq!((of(&s).drop, of(&s).create), (vec!["b".into(), "c".into()], vec![]));
        let s = standby().nofailover().but(with(slot("c"))).with(|s| {
            let member = s.dcs.as_mut().expect("reachable").members.get_mut(&"c".into()).expect("there");
            member.tags.replicatefrom = Some("a".into());
        });
        assert_eq!(of(&s).drop, ["b"]);
    }

    #[test]
    fn the_slot_of_a_member_that_is_gone_is_kept_for_a_while() {
        let gone = || primary().but(with(slot("d"))).but(status(&[], &["d"]));
        assert_eq!(of(&gone().build()), SlotChanges::default(), "its clock starts anew with every leader (P13)");
        let since = |ago| move |s: &mut Snapshot| s.memory.slots_wanted = [("d".into(), s.now.minus(secs(ago)))].into();
        let names = |s: &Snapshot| published(s, s.sql().expect("it answers")).1;
        assert_eq!(names(&gone().with(since(1_799))), ["a", "b", "c", "d"]);
        assert_eq!(names(&gone().with(since(1_800))), ["a", "b", "c"]);
        let off = primary().but(with(slot("d"))).with(|s| s.config.member_slots_ttl = secs(0));
        assert_eq!((of(&off).drop, names(&off)), (vec!["d".into()], vec![]));
        let kept = standby().but(with(slot("d"))).with(status(&[], &["d"]));
        assert_eq!(of(&kept), SlotChanges::default());
    }

    #[test]
    fn the_leader_says_how_far_each_slot_is() {
        let s = primary().but(with(Slot { position: Some(Lsn(7)), ..slot("b") })).build();
        let (slots, _) = published(&s, s.sql().expect("it answers"));
        assert_eq!(slots, [("a".into(), Lsn(1_000)), ("b".into(), Lsn(7)), ("c".into(), Lsn(1_000))].into());
    }
}
