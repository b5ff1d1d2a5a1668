//! The twin works only when it is looked at. This shows that nobody can tell: the same story told to a world that is
//! looked at every millisecond and to one that is not looked at has the same course and the same end.

use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use proptest::prelude::*;
use regent_core::postgres::{StopMode, Upstream};
use regent_core::units::Timeline;
use tokio::time::sleep;

use super::{FakeNetwork, FakePostgres, Transition, Written};
use crate::Postgres;

const NAMES: [&str; 3] = ["a", "b", "c"];

#[derive(Clone, Copy, Debug)]
enum Act {
    Insert,
    Kill,
    StartPrimary,
    StartStandby { of: usize },
    Follow { upstream: usize },
    Stop(StopMode),
    Promote(u32),
    Clone { from: usize },
    Freeze(bool),
    HangDisk(bool),
    Cut { from: usize, cut: bool },
    Delay(u64),
}

fn act() -> impl Strategy<Value = Act> {
    let node = 0..NAMES.len();
    prop_oneof![
        4 => Just(Act::Insert),
        1 => Just(Act::Kill),
        1 => Just(Act::StartPrimary),
        2 => node.clone().prop_map(|of| Act::StartStandby { of }),
        2 => node.clone().prop_map(|upstream| Act::Follow { upstream }),
        2 => prop_oneof![Just(StopMode::Fast), Just(StopMode::Immediate)].prop_map(Act::Stop),
        1 => (1..6_u32).prop_map(Act::Promote),
        1 => node.clone().prop_map(|from| Act::Clone { from }),
        2 => any::<bool>().prop_map(Act::Freeze),
        1 => any::<bool>().prop_map(Act::HangDisk),
        2 => (node, any::<bool>()).prop_map(|(from, cut)| Act::Cut { from, cut }),
        2 => (0..500_u64).prop_map(Act::Delay),
    ]
}

fn url(index: usize) -> String {
    format!("postgres://{}:5432/postgres", NAMES[index])
}

fn member(index: usize) -> Upstream {
    Upstream::Member { name: NAMES[index].into(), conn_url: url(index) }
}

/// Gives a signal and does not wait for what comes of it.
fn signal(future: impl Future) {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let _ = pin!(future).poll(&mut context).is_ready();
}

fn perform(network: &FakeNetwork, nodes: &[FakePostgres], target: usize, act: Act, id: u64) {
    let node = &nodes[target];
    match act {
        Act::Insert => drop(node.insert(id)),
        Act::Kill => node.kill(),
        Act::StartPrimary => signal(node.start_primary()),
        Act::StartStandby { of } => signal(node.start_standby(&member(of))),
        Act::Follow { upstream } => signal(node.follow(&member(upstream))),
        Act::Stop(mode) => signal(node.stop(mode, Duration::from_secs(1))),
        Act::Promote(timeline) => signal(node.promote(Timeline(timeline), None)),
        Act::Clone { from } => signal(node.clone_from(&NAMES[from].into(), &url(from))),
        Act::Freeze(true) => node.freeze(),
        Act::Freeze(false) => node.thaw(),
        Act::HangDisk(hung) => node.hang_disk(hung),
        Act::Cut { from, cut: true } => network.cut(NAMES[from], NAMES[target]),
        Act::Cut { from, cut: false } => network.heal(NAMES[from], NAMES[target]),
        Act::Delay(millis) => node.tune(|timings| timings.replication_delay = Duration::from_millis(millis)),
    }
}

/// What an observer saw.
#[derive(Debug, PartialEq)]
struct Sight {
    at: Duration,
    node: String,
    transition: Transition,
    writable: Vec<String>,
    records: Vec<Vec<u64>>,
}

#[derive(Debug, PartialEq)]
struct Course {
    transitions: Vec<Sight>,
    records: Vec<Vec<u64>>,
    history: Vec<Written>,
    states: Vec<String>,
}

async fn course(story: &[(u64, usize, Act)], watched: bool) -> Course {
    let network = FakeNetwork::new();
    let nodes: Vec<_> = NAMES.iter().enumerate().map(|(index, name)| network.add(name, &url(index))).collect();
    nodes[0].bootstrap().await.unwrap();
    for upstream in [0, 1] {
        nodes[upstream + 1].clone_from(&NAMES[upstream].into(), &url(upstream)).await.unwrap();
        nodes[upstream + 1].start_standby(&member(upstream)).await.unwrap();
    }
    let transitions = Rc::new(RefCell::new(Vec::new()));
    let (log, world, all) = (transitions.clone(), network.clone(), nodes.clone());
    network.on_transition(Box::new(move |node, transition| {
        let records = all.iter().map(FakePostgres::records).collect();
        let (at, node, writable) = (world.now(), node.to_owned(), world.writable_now());
        log.borrow_mut().push(Sight { at, node, transition, writable, records });
    }));
    for (id, (wait, target, act)) in (0..).zip(story) {
        perform(&network, &nodes, *target, *act, id);
        if watched {
            for _ in 0..*wait {
                sleep(Duration::from_millis(1)).await;
                drop(network.writable_now());
            }
        } else {
            sleep(Duration::from_millis(*wait)).await;
        }
    }
    let mut states = Vec::new();
    for node in &nodes {
        states.push(format!("{:?}", node.observe(Duration::from_secs(1)).await));
    }
    let records = nodes.iter().map(FakePostgres::records).collect();
    Course { transitions: transitions.take(), records, history: network.history(), states }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nobody_can_tell_whether_the_world_was_looked_at(
        story in proptest::collection::vec((0..400_u64, 0..NAMES.len(), act()), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let (watched, unwatched) = runtime.block_on(async { (course(&story, true).await, course(&story, false).await) });
        prop_assert_eq!(watched, unwatched);
    }
}
