//! What the agents of a world decided, in order: recorded beside the judgement, per thread.

use std::cell::RefCell;

use regent_core::inspector::Objection;
use regent_core::plan::{Decision, Lease, Move, Plan};
use regent_core::rules::{GUARDS, table};
use regent_core::snapshot::Snapshot;

/// One decision that differed from the member's last one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Virtual time since the world began.
    pub at: std::time::Duration,
    /// Who decided.
    pub member: String,
    /// By a rule of which table: its title, or [`GUARDS_TITLE`].
    pub table: &'static str,
    /// By which rule.
    pub rule: &'static str,
    /// The lease half of the plan.
    pub lease: String,
    /// The PostgreSQL half.
    pub postgres: String,
    /// Why, for people.
    pub why: String,
}

/// Stands for the rules that are read before every table.
pub const GUARDS_TITLE: &str = "Before every table, whoever leads";

/// What makes a decision a changed one.
type Key = (&'static str, &'static str, String, String);

#[derive(Default)]
struct Recorder {
    epoch: Option<tokio::time::Instant>,
    lines: Vec<Line>,
    objections: Vec<(std::time::Duration, String)>,
    last: std::collections::BTreeMap<String, Key>,
}

thread_local! {
    static RECORDER: RefCell<Recorder> = RefCell::default();
}

/// Forgets everything; time counts from now.
pub fn begin() {
    RECORDER.with_borrow_mut(|recorder| {
        *recorder = Recorder { epoch: Some(tokio::time::Instant::now()), ..Recorder::default() };
    });
}

/// Forgets the lines, but not what each member decided last; time counts from now.
pub fn begin_again() {
    RECORDER.with_borrow_mut(|recorder| {
        recorder.epoch = Some(tokio::time::Instant::now());
        recorder.lines.clear();
        recorder.objections.clear();
    });
}

/// The inspector's verdict on a plan; an objection is noted.
///
/// # Errors
/// As [`regent_core::inspector::inspect`].
pub fn inspect(seen: &Snapshot, plan: &Plan) -> Result<(), Objection> {
    let verdict = regent_core::inspector::inspect(seen, plan);
    if let Err(objection) = &verdict {
        RECORDER.with_borrow_mut(|recorder| {
            let at = recorder.epoch.map(|epoch| epoch.elapsed()).unwrap_or_default();
            recorder.objections.push((at, format!("the inspector stops {}: {objection}", seen.config.name)));
        });
    }
    verdict
}

/// Objections of the inspector since [`begin`]: when, and what. An honest judge gives it no reason for any.
#[must_use]
pub fn objections() -> Vec<(std::time::Duration, String)> {
    RECORDER.with_borrow(|recorder| recorder.objections.clone())
}

/// What was recorded since [`begin`].
#[must_use]
pub fn lines() -> Vec<Line> {
    RECORDER.with_borrow(|recorder| recorder.lines.clone())
}

/// Records a decision and hands it on.
#[must_use]
pub fn record(seen: &Snapshot, decision: Decision) -> Decision {
    RECORDER.with_borrow_mut(|recorder| {
        let Some(epoch) = recorder.epoch else { return };
        let member = seen.config.name.to_string();
        let (lease, postgres) = (lease(&decision.plan.lease), postgres(&decision.plan.postgres));
        let guard = GUARDS.iter().any(|rule| rule.name == decision.rule);
        let table = if guard { GUARDS_TITLE } else { table(seen).title };
        let key = (table, decision.rule, lease.clone(), postgres.clone());
        if recorder.last.get(&member) == Some(&key) {
            return;
        }
        recorder.last.insert(member.clone(), key);
        let why = decision.why.clone();
        let (at, rule) = (epoch.elapsed(), decision.rule);
        recorder.lines.push(Line { at, member, table, rule, lease, postgres, why });
    });
    decision
}

fn lease(lease: &Lease) -> String {
    match lease {
        Lease::Keep => "keep".into(),
        Lease::LetRun => "let_run".into(),
        Lease::Take { promise, .. } => format!("take(timeline {})", promise.position.timeline),
        Lease::Promise { promise, .. } => format!("promise(timeline {})", promise.position.timeline),
        Lease::Adopt { .. } => "adopt".into(),
        Lease::Release => "release".into(),
        Lease::StartBootstrap => "start_bootstrap".into(),
        Lease::AbandonBootstrap => "abandon_bootstrap".into(),
    }
}

fn postgres(postgres: &Move) -> String {
    use regent_core::postgres::Upstream;
    let of = |upstream: &Upstream| match upstream {
        Upstream::Nobody => "nobody".to_owned(),
        Upstream::Member { name, .. } => name.to_string(),
    };
    match postgres {
        Move::Stay => "stay".into(),
        Move::Cancel => "cancel".into(),
        Move::PrePromote => "pre_promote".into(),
        Move::Restore => "restore".into(),
        Move::Bootstrap => "bootstrap".into(),
        Move::Clone { from, .. } => format!("clone({from})"),
        Move::Rewind { from, .. } => format!("rewind({from})"),
        Move::GiveUpData { .. } => "give_up_data".into(),
        Move::DiscardOldCopy => "discard_old_copy".into(),
        Move::StartPrimary => "start_primary".into(),
        Move::StartStandby(upstream) => format!("start_standby({})", of(upstream)),
        Move::Restart { standby_of: None, .. } => "restart(primary)".into(),
        Move::Restart { standby_of: Some(upstream), .. } => format!("restart({})", of(upstream)),
        Move::Stop(mode) => format!("stop({mode:?})").to_lowercase(),
        Move::Promote(timeline) => format!("promote({timeline})"),
        Move::Follow(upstream) => format!("follow({})", of(upstream)),
        Move::Checkpoint => "checkpoint".into(),
        Move::ChangeSlots(changes) => {
            let each = [
                ("drop", !changes.drop.is_empty()),
                ("create", !changes.create.is_empty() || !changes.create_logical.is_empty()),
                ("advance", !changes.advance.is_empty()),
            ];
            let what: Vec<_> = each.into_iter().filter_map(|(word, some)| some.then_some(word)).collect();
            format!("{}_slots", what.join("_"))
        }
        Move::CopySlots { slots, .. } => {
            format!("copy_slots({})", slots.keys().map(String::as_str).collect::<Vec<_>>().join(", "))
        }
        Move::ResumeReplay => "resume_replay".into(),
        Move::SetSyncNames(None) => "sync_names(user)".into(),
        Move::SetSyncNames(Some(names)) => format!("sync_names({names})"),
        Move::RemoveUnfinished => "remove_unfinished".into(),
        Move::SetAside => "set_aside".into(),
    }
}
