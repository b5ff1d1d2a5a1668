//! The contract suite on the twin, in virtual time.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, unreachable_pub, reason = "a test")]

mod suite;

use std::cell::Cell;
use std::rc::Rc;

use regent_core::units::MemberName;
use regent_pgctl::fake::{FakeNetwork, FakePostgres};
use suite::{Harness, Node};

macro_rules! on_the_twin {
    ($($sequence:ident)*) => {
        $(#[tokio::test(start_paused = true)]
        async fn $sequence() {
            suite::$sequence(Twins::default()).await;
        })*
    };
}

on_the_twin! {
    bootstrap_makes_a_running_primary
    a_clone_streams_from_its_source
    a_clone_of_a_dead_source_fails_and_leaves_nothing
    a_promotion_begins_the_next_timeline
    slots_of_a_standby_outlive_its_promotion
    a_promised_timeline_may_skip_numbers
    crash_recovery_stays_on_its_timeline
    the_control_data_tells_how_it_was_stopped
    a_standby_of_nobody_waits_and_can_be_promoted
    a_new_controller_adopts_the_running_server
    a_clean_hand_over_ends_where_the_next_timeline_begins
    a_crashed_primary_is_rewound
    a_rewind_without_a_source_changes_nothing
    diverged_data_makes_room_for_a_clone
}

/// Twins on one network.
#[derive(Default)]
struct Twins {
    network: FakeNetwork,
    last_row: Rc<Cell<u64>>,
}

impl Harness for Twins {
    type Node = Twin;

    async fn node(&mut self, name: &str) -> Twin {
        let conn_url = format!("postgres://{name}:5432/postgres");
        let postgres = self.network.add(name, &conn_url);
        Twin { network: self.network.clone(), postgres, name: name.into(), conn_url, last_row: self.last_row.clone() }
    }
}

struct Twin {
    network: FakeNetwork,
    postgres: FakePostgres,
    name: MemberName,
    conn_url: String,
    /// Rows are told apart by number, whoever writes them.
    last_row: Rc<Cell<u64>>,
}

impl Node for Twin {
    type Pg = FakePostgres;

    fn pg(&self) -> &FakePostgres {
        &self.postgres
    }

    fn new_controller(&self) -> FakePostgres {
        self.network.node(self.name.as_str()).unwrap()
    }

    fn name(&self) -> MemberName {
        self.name.clone()
    }

    fn conn_url(&self) -> String {
        self.conn_url.clone()
    }

    async fn insert(&self) -> Result<(), String> {
        let row = self.last_row.get() + 1;
        self.last_row.set(row);
        self.postgres.insert(row).map(|_| ()).map_err(|e| e.to_string())
    }

    async fn rows(&self) -> Result<u64, String> {
        self.postgres.select().map(|rows| rows.len() as u64).map_err(|e| e.to_string())
    }

    async fn crash(&self) {
        self.postgres.kill();
    }
}
