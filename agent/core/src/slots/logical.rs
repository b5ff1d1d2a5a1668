//! Logical slots (P7 to P11, P14): the primary makes them, standbys keep copies and move them on, so that a consumer goes on
//! where it was after a failover.
//!
//! ```text
//!                made                      copied (one restart)        moved on, the leader asked
//!   primary ─────────► status.slots ─────► standby: unproven ─────────────► proven
//!                                             ▲      │ its log or its catalog rows are gone
//!                                             └──────┘ copied again, after ever longer pauses
//! ```
//!
//! A copy that was just made may point to catalog rows that vacuum removed in between: the leader keeps them for this member
//! only from the moment when it hears, by `hot_standby_feedback`, what the copy needs. It is proven once the leader's slot for
//! this member holds back as much, and no more than the leader's own logical slot did at that time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Wanted;
use crate::config::{Logical, PermanentSlot};
use crate::memory::SlotCopy;
use crate::postgres::{Slot, SlotChanges, SqlFacts, Upkeep};
use crate::snapshot::{Seat, Snapshot};
use crate::units::{Instant, MemberName};

/// The pause after a first copy of a slot before it is copied again; it doubles each time ...
const PAUSE: Duration = Duration::from_secs(10);
/// ... up to this: every copy costs a restart.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// A copy that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// What each slot decodes.
    pub slots: BTreeMap<String, Logical>,
    /// The leader.
    pub from: MemberName,
    /// Its address.
    pub conn_url: String,
}

/// Those that should be here. None in a standby cluster, and none where nobody would hold back vacuum for them.
pub(super) fn wanted(s: &Snapshot, sql: &SqlFacts, physical: &BTreeMap<String, Wanted>) -> BTreeMap<String, Logical> {
    let kept = s.config.use_slots && !s.config.tags.nofailover && s.config.standby_cluster.is_none();
    if !kept || sql.in_recovery && kept_back_by(s).is_none() {
        return BTreeMap::new();
    }
    let members = member_slots(s);
    let free = |name: &String| !members.contains_key(name) && !physical.contains_key(name);
    let logical = s.config.permanent_slots.iter().filter_map(|(name, slot)| match slot {
        PermanentSlot::Logical(what) => Some((name.clone(), what.clone())),
        PermanentSlot::Physical => None,
    });
    logical.filter(|(name, _)| free(name)).collect()
}

/// A primary makes what is missing, and anew what is of no use (P2, P3, P7); a standby makes room for a copy.
pub(super) fn change(
    sql: &SqlFacts,
    wanted: &BTreeMap<String, Logical>,
    there: &BTreeMap<&str, &Slot>,
    changes: &mut SlotChanges,
) {
    for (name, what) in wanted {
        match there.get(name.as_str()) {
            Some(slot) if slot.active || slot.foreign => continue,
            // One that is lost here is replaced by its copy.
            Some(slot) if slot.logical.as_ref() == Some(what) && (sql.in_recovery || !slot.lost) => continue,
            Some(_) => changes.drop.push(name.clone()),
            None => {}
        }
        if !sql.in_recovery {
            changes.create_logical.insert(name.clone(), what.clone());
        }
    }
}

/// The member whose slot on the leader holds back vacuum for this one: itself, or the first of the chain that it cascades from.
/// Nobody when one of them does not stream, or the chain comes back to a name.
fn kept_back_by(s: &Snapshot) -> Option<&MemberName> {
    let view = s.view().filter(|_| !s.config.tags.nostream)?;
    let leader = view.leader.as_ref().map(|key| &key.name);
    let (mut at, mut tag) = (&s.config.name, s.config.tags.replicatefrom.as_ref());
    let mut seen = BTreeSet::from([at]);
    while let Some((name, member)) =
        tag.filter(|tag| Some(*tag) != leader).and_then(|tag| view.members.get_key_value(tag))
    {
        if member.tags.nostream || !seen.insert(name) {
            return None;
        }
        (at, tag) = (name, member.tags.replicatefrom.as_ref());
    }
    Some(at)
}

/// Names of slots that belong to members, this one included, and whose each is.
fn member_slots(s: &Snapshot) -> BTreeMap<String, Vec<&MemberName>> {
    let mut slots: BTreeMap<String, Vec<&MemberName>> = BTreeMap::new();
    let names: BTreeSet<_> =
        s.view().into_iter().flat_map(|view| view.members.keys()).chain([&s.config.name]).collect();
    for name in names {
        slots.entry(name.slot_name()).or_default().push(name);
    }
    slots
}

/// What an operator must put right (P14): two members that share a slot, a logical slot that is called like a member's.
#[must_use]
pub fn complaints(s: &Snapshot) -> Vec<String> {
    if s.view().is_none() || !s.config.use_slots {
        return Vec::new();
    }
    let slots = member_slots(s);
    let shared = slots.iter().filter(|(_, members)| members.len() > 1).map(|(slot, members)| {
        let names: Vec<_> = members.iter().map(|name| name.as_str()).collect();
        format!("members {} share the replication slot {slot:?}; give one of them another name", names.join(" and "))
    });
    let logical = s.config.permanent_slots.iter().filter(|(_, slot)| **slot != PermanentSlot::Physical);
    let taken = logical.filter(|(name, _)| slots.contains_key(*name)).map(|(name, _)| {
        format!(
            "slots.{name} is logical, but is called like the slot of a member: it has no effect, give it another name"
        )
    });
    shared.chain(taken).collect()
}

/// As a standby: the logical slots that should be here, with the leader that has them.
fn kept<'a>(s: &'a Snapshot, sql: &'a SqlFacts) -> Option<(BTreeMap<String, Logical>, &'a MemberName, &'a String)> {
    let (from, leader) = s.view()?.leader_member().filter(|_| s.seat() == Seat::Theirs)?;
    let conn_url = leader.conn_url.as_ref().filter(|_| leader.leads() && leader.state == "running")?;
    let wanted = wanted(s, sql, &super::wanted(s, sql));
    (!wanted.is_empty()).then_some((wanted, from, conn_url))
}

/// The slot of this name, if it is what it should be.
fn here<'a>(sql: &'a SqlFacts, name: &str, what: &Logical) -> Option<&'a Slot> {
    sql.slots.iter().find(|slot| slot.name == *name && slot.logical.as_ref() == Some(what) && !slot.foreign)
}

/// What this standby would copy from the leader now, if nobody waits for its commits: slots that the leader has and this member
/// has not, or not any more (P8, P9). Not while anything else is under way in the cluster for which a standby may be needed.
#[must_use]
pub fn to_copy(s: &Snapshot) -> Option<Copy> {
    let sql = s.standby().filter(|sql| sql.streaming && !s.config.pause)?;
    let (mut slots, from, conn_url) = kept(s, sql)?;
    let view = s.view()?;
    let others = view.members.iter().filter(|(name, _)| **name != s.config.name && *name != from);
    let moves = |state: &str| matches!(state, "starting" | "stopping" | "restarting");
    if view.failover.is_some() || others.into_iter().any(|(_, other)| moves(&other.state)) {
        return None;
    }
    slots.retain(|name, what| {
        let taken = sql.slots.iter().find(|slot| slot.name == *name);
        let usable = taken.is_some_and(|slot| slot.active || !slot.lost || here(sql, name, what).is_none());
        let rests = s.memory.slot_copies.get(name).is_some_and(|copy| copy.from == *from && rests(copy, s.now));
        view.status.slots.contains_key(name) && !usable && !rests
    });
    (!slots.is_empty()).then(|| Copy { slots, from: from.clone(), conn_url: conn_url.clone() })
}

fn rests(copy: &SlotCopy, now: Instant) -> bool {
    let pause = PAUSE.saturating_mul(2_u32.saturating_pow(copy.tries.saturating_sub(1))).min(LONGEST_PAUSE);
    now.since(copy.at) < pause
}

/// How often a slot was copied from this leader of late, this time included.
#[must_use]
pub(crate) fn tries(before: Option<&SlotCopy>, from: &MemberName, now: Instant) -> u32 {
    let before = before.filter(|copy| copy.from == *from && now.since(copy.at) < LONGEST_PAUSE * 2);
    before.map_or(0, |copy| copy.tries).saturating_add(1)
}

/// A standby's copies follow the leader's slots, as far as this server has replayed; the leader is asked while one is not proven.
///
/// A position that the leader before this one published may lie beyond the fork: on the log of who leads now it stands for changes
/// that the consumer never saw, and a copy that was moved there would skip them.
#[must_use]
pub fn upkeep(s: &Snapshot) -> Option<Upkeep> {
    let sql = s.standby().filter(|sql| sql.streaming)?;
    let (slots, _, conn_url) = kept(s, sql)?;
    let known = s.view().filter(|view| view.status_is_the_leaders()).map(|view| &view.status.slots);
    let mut upkeep = Upkeep::default();
    for (name, what) in &slots {
        let Some(slot) = here(sql, name, what).filter(|slot| !slot.lost) else { continue };
        if !s.memory.proven_slots.contains(name) {
            upkeep.ask = Some(conn_url.clone());
        }
        let to = known.and_then(|known| known.get(name)).copied().min(sql.replay_lsn);
        if let Some(to) = to.filter(|to| slot.position.is_some_and(|at| at < *to) && !slot.active) {
            upkeep.advance.insert(name.clone(), (what.database.clone(), to));
        }
    }
    (upkeep != Upkeep::default()).then_some(upkeep)
}

/// As a standby: which copies have all that a consumer needs (P10). Once proven they stay so, while they are there.
#[must_use]
pub fn proven(before: &BTreeSet<String>, s: &Snapshot) -> BTreeSet<String> {
    let Some(sql) = s.sql() else { return before.clone() };
    let Some(mine) = kept_back_by(s).filter(|_| sql.in_recovery) else { return BTreeSet::new() };
    let there = sql.slots.iter().filter(|slot| slot.logical.is_some() && !slot.lost && !slot.foreign);
    let held = sql.leader_xmins.get(&mine.slot_name()).copied();
    let is_proven = |slot: &&Slot| {
        let now = || {
            let (leaders, held) = (sql.leader_xmins.get(&slot.name).copied()?, held?);
            Some(at_most(leaders, held) && at_most(held, slot.catalog_xmin?))
        };
        before.contains(&slot.name) || now() == Some(true)
    };
    there.filter(is_proven).map(|slot| slot.name.clone()).collect()
}

/// Transaction ids go round: one is older than the two thousand million that follow it (PostgreSQL: `TransactionIdPrecedes`).
fn at_most(a: u32, b: u32) -> bool {
    b.wrapping_sub(a) < 1 << 31
}

/// Logical slots that a consumer may not be able to go on with if this member is promoted: not here, or not proven (P10).
#[must_use]
pub fn not_ready(s: &Snapshot) -> Vec<String> {
    let Some((sql, view)) = s.standby().zip(s.view()) else { return Vec::new() };
    let wanted = wanted(s, sql, &super::wanted(s, sql));
    let known = wanted.into_iter().filter(|(name, _)| view.status.slots.contains_key(name));
    let ready = |name: &str, what: &Logical| here(sql, name, what).is_some() && s.memory.proven_slots.contains(name);
    known.filter(|(name, what)| !ready(name, what)).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Builder, decodes, primary, secs, slot, standby};
    use crate::slots::{changes, published};
    use crate::units::Lsn;

    fn permanent(s: &mut Snapshot) {
        s.config.permanent_slots = [("x".into(), PermanentSlot::Logical(decodes("d", "p")))].into();
    }

    fn x() -> Slot {
        Slot { logical: Some(decodes("d", "p")), catalog_xmin: Some(700), ..slot("x") }
    }

    fn with(new: Slot) -> impl Fn(&mut Snapshot) {
        move |s| {
            let slots = &mut s.postgres.sql.as_mut().expect("it answers").slots;
            slots.retain(|slot| slot.name != new.name);
            slots.push(new.clone());
        }
    }

    fn leader_has(at: u64) -> impl Fn(&mut Snapshot) {
        move |s| s.dcs.as_mut().expect("reachable").status.slots.extend([("x".to_owned(), Lsn(at))])
    }

    /// A standby of b, which has the slot.
    fn copier() -> Builder {
        standby().but(permanent).but(leader_has(2_000))
    }

    fn of(s: &Snapshot) -> (Vec<String>, Vec<String>) {
        let changes = changes(s, s.sql().expect("it answers"));
        assert_eq!((changes.create.as_slice(), changes.advance.as_slice()), (&[][..], &[][..]));
        (changes.drop, changes.create_logical.into_keys().collect())
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn copies(s: &Snapshot) -> Vec<String> {
        to_copy(s).map(|copy| copy.slots.into_keys().collect()).unwrap_or_default()
    }

    #[test]
    fn a_primary_makes_a_permanent_logical_slot_and_keeps_it() {
        assert_eq!(of(&primary().with(permanent)), (vec![], names(&["x"])), "P7");
        for (what, here, drop, create) in [
            ("there already", x(), false, false),
            ("of another plugin (P3)", Slot { logical: Some(decodes("d", "q")), ..x() }, true, true),
            ("of another database (P3)", Slot { logical: Some(decodes("e", "p")), ..x() }, true, true),
            ("physical (P3)", Slot { logical: None, ..x() }, true, true),
            ("of no use any more (P2)", Slot { lost: true, ..x() }, true, true),
            ("in use, or still being made", Slot { active: true, position: None, ..x() }, false, false),
            ("a failover slot of PostgreSQL's own", Slot { foreign: true, ..x() }, false, false),
        ] {
            let wanted = |is: bool| if is { names(&["x"]) } else { vec![] };
            assert_eq!(of(&primary().but(permanent).with(with(here))), (wanted(drop), wanted(create)), "{what}");
        }
        let s = primary().but(permanent).with(with(Slot { position: Some(Lsn(7)), ..x() }));
        assert_eq!(published(&s, s.sql().expect("it answers")).0.get("x"), Some(&Lsn(7)), "P12");
        let paused = primary().paused().but(permanent).with(with(Slot { lost: true, ..x() }));
        assert_eq!(of(&paused), (vec![], vec![]), "M11");
    }

    #[test]
    fn a_standby_makes_no_logical_slot_and_drops_what_it_must_not_keep() {
        assert_eq!(of(&copier().build()), (vec![], vec![]));
        assert_eq!(of(&copier().with(with(x()))), (vec![], vec![]));
        let other = Slot { logical: Some(decodes("d", "q")), ..x() };
        assert_eq!(of(&copier().with(with(other))), (names(&["x"]), vec![]), "room for the copy");
        type Change = fn(&mut Snapshot);
        let never: [(&str, Change); 5] = [
            ("nofailover", |s| s.config.tags.nofailover = true),
            ("nostream", |s| s.config.tags.nostream = true),
            ("a standby cluster", |s| s.config.standby_cluster = Some(crate::config::Remote::default())),
            ("a chain that does not stream", |s| {
                s.config.tags.replicatefrom = Some("c".into());
                s.dcs.as_mut().unwrap().members.get_mut(&"c".into()).unwrap().tags.nostream = true;
            }),
            ("a chain that comes back", |s| {
                s.config.tags.replicatefrom = Some("c".into());
                s.dcs.as_mut().unwrap().members.get_mut(&"c".into()).unwrap().tags.replicatefrom = Some("a".into());
            }),
        ];
        for (what, change) in never {
            let s = copier().but(change).but(with(x())).build();
            assert!(changes(&s, s.sql().unwrap()).drop.contains(&"x".to_owned()), "{what}");
            assert_eq!(copies(&copier().with(change)), [""; 0], "{what}");
        }
        let off = copier().but(|s| s.config.use_slots = false);
        assert_eq!((of(&off.clone().with(with(x()))), copies(&off.build())), ((vec![], vec![]), vec![]));
    }

    #[test]
    fn a_standby_copies_what_the_leader_has_while_nobody_needs_it() {
        assert_eq!(copies(&copier().build()), ["x"], "P8");
        assert_eq!(copies(&standby().with(permanent)), [""; 0], "the leader has none yet");
        assert_eq!(copies(&copier().with(with(x()))), [""; 0], "it is there");
        assert_eq!(copies(&copier().with(with(Slot { lost: true, ..x() }))), ["x"], "its log is gone (P9)");
        type Change = fn(&mut Snapshot);
        let not_now: [(&str, Change); 6] = [
            ("it does not stream", |s| s.postgres.sql.as_mut().unwrap().streaming = false),
            ("pause", |s| s.config.pause = true),
            ("nobody leads", |s| s.dcs.as_mut().unwrap().leader = None),
            ("the leader starts", |s| {
                s.dcs.as_mut().unwrap().members.get_mut(&"b".into()).unwrap().state = "starting".into();
            }),
            ("the other standby restarts", |s| {
                s.dcs.as_mut().unwrap().members.get_mut(&"c".into()).unwrap().state = "restarting".into();
            }),
            ("a switchover was asked for", |s| {
                s.dcs.as_mut().unwrap().failover = Some(crate::cluster::Failover {
                    leader: None,
                    candidate: Some("c".into()),
                    schedule: None,
                    modified: crate::units::Revision(1),
                });
            }),
        ];
        for (what, change) in not_now {
            assert_eq!(copies(&copier().with(change)), [""; 0], "{what}");
        }
    }

    #[test]
    fn a_copy_that_is_of_no_use_is_made_again_after_ever_longer_pauses() {
        let after = |tries, ago| {
            copier().but(with(Slot { lost: true, ..x() })).with(|s| {
                let copy = SlotCopy { from: "b".into(), tries, at: s.now.minus(secs(ago)) };
                s.memory.slot_copies.insert("x".into(), copy);
            })
        };
        for (tries, ago, again) in [(1, 9, false), (1, 10, true), (2, 19, false), (2, 20, true), (40, 3_599, false)] {
            assert_eq!(!copies(&after(tries, ago)).is_empty(), again, "{tries} {ago}");
        }
        assert_eq!(copies(&after(40, 3_600)), ["x"]);
        let mut elsewhere = after(9, 0);
        elsewhere.memory.slot_copies.get_mut("x").unwrap().from = "c".into();
        assert_eq!(copies(&elsewhere), ["x"], "another leader");
        let s = after(3, 20);
        assert_eq!(tries(s.memory.slot_copies.get("x"), &"b".into(), s.now), 4);
        assert_eq!(tries(s.memory.slot_copies.get("x"), &"b".into(), s.now + secs(7_200)), 1, "long ago");
    }

    #[test]
    fn copies_follow_the_leaders_slots_and_never_go_beyond_replay() {
        let moved = |status, replayed: u64, here: Slot| {
            let s = copier().but(leader_has(status)).but(with(here)).with(|s| {
                s.postgres.sql.as_mut().unwrap().replay_lsn = Some(Lsn(replayed));
            });
            upkeep(&s).and_then(|upkeep| Some(upkeep.advance.get("x")?.1.0))
        };
        let at = |lsn| Slot { position: Some(Lsn(lsn)), ..x() };
        assert_eq!(moved(2_000, 5_000, at(1_000)), Some(2_000));
        assert_eq!(moved(2_000, 1_500, at(1_000)), Some(1_500), "P8");
        assert_eq!(moved(2_000, 5_000, at(2_000)), None);
        assert_eq!(moved(2_000, 500, at(1_000)), None, "never back");
        assert_eq!(moved(2_000, 5_000, Slot { active: true, ..at(1_000) }), None);
        assert_eq!(moved(2_000, 5_000, Slot { lost: true, ..at(1_000) }), None);
        assert_eq!(upkeep(&primary().but(permanent).with(with(x()))), None, "a consumer moves it there");
        let of_before = copier().but(leader_has(900)).but(with(at(500)));
        assert!(upkeep(&of_before.clone().build()).is_some_and(|upkeep| !upkeep.advance.is_empty()));
        let stale = of_before.with(|s| s.dcs.as_mut().unwrap().status_seen = Some(crate::units::Revision(50)));
        assert!(upkeep(&stale).unwrap().advance.is_empty(), "what an earlier leader said may lie beyond the fork");
        let paused = copier().paused().but(leader_has(900)).with(with(x()));
        assert!(crate::rules::decide(&paused).plan.upkeep.is_some(), "a standby keeps no log for months");
    }

    #[test]
    fn a_copy_is_proven_when_the_leader_has_kept_back_vacuum_for_it() {
        let asked = |slot: u32, mine: u32, here: u32| {
            copier().but(with(Slot { catalog_xmin: Some(here), ..x() })).with(|s| {
                let sql = s.postgres.sql.as_mut().unwrap();
                sql.leader_xmins = [("x".into(), slot), ("a".into(), mine)].into();
            })
        };
        let good = |s: &Snapshot| proven(&s.memory.proven_slots, s).contains("x");
        for (slot, mine, here, is) in [
            (700, 700, 700, true),
            (700, 705, 710, true),
            (701, 700, 710, false),
            (700, 711, 710, false),
            (u32::MAX - 5, 10, 20, true),
            (10, u32::MAX - 5, 20, false),
        ] {
            assert_eq!(good(&asked(slot, mine, here)), is, "{slot} {mine} {here}");
        }
        let mut later = asked(701, 700, 710);
        assert_eq!(not_ready(&later), ["x"]);
        later.memory.proven_slots.insert("x".into());
        assert!(good(&later), "once and for all");
        assert_eq!((not_ready(&later), upkeep(&later)), (vec![], None));
        later.postgres.sql.as_mut().unwrap().slots.retain(|slot| slot.name != "x");
        assert!(!good(&later));
        assert_eq!(not_ready(&later), ["x"], "not here at all");
        let chained = |s: &mut Snapshot| {
            s.config.tags.replicatefrom = Some("c".into());
            let sql = s.postgres.sql.as_mut().unwrap();
            sql.leader_xmins = [("x".into(), 700), ("c".into(), 700)].into();
        };
        assert!(good(&copier().but(with(x())).with(chained)), "the first of the chain speaks for those behind it");
        let ask = upkeep(&asked(701, 700, 710)).unwrap().ask;
        assert_eq!(ask.as_deref(), Some("postgres://b:5432/postgres"));
    }

    #[test]
    fn names_that_collide_are_told() {
        assert_eq!(complaints(&primary().with(permanent)), [""; 0]);
        let twin = primary().with(|s| {
            let members = &mut s.dcs.as_mut().unwrap().members;
            let c = members.get(&"c".into()).unwrap().clone();
            members.insert("C".into(), c);
        });
        assert_eq!(complaints(&twin).len(), 1, "P14");
        let wanted = changes(&twin, twin.sql().unwrap());
        assert_eq!((wanted.create, wanted.drop), (vec![], vec![]), "still one slot");
        let taken = primary().with(|s| {
            s.config.permanent_slots = [("b".into(), PermanentSlot::Logical(decodes("d", "p")))].into();
        });
        assert_eq!((complaints(&taken).len(), of(&taken)), (1, (vec![], vec![])), "the member's slot stays");
        let own = primary().with(|s| {
            s.config.permanent_slots = [("a".into(), PermanentSlot::Logical(decodes("d", "p")))].into();
        });
        assert_eq!(of(&own), (vec![], vec![]));
    }
}
