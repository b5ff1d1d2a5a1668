//! The contract suite on real PostgreSQL.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, unreachable_pub, reason = "a test")]

mod suite;
mod support;

use support::{Real, run};

macro_rules! on_real_postgresql {
    ($($sequence:ident)*) => {
        $(#[test]
        fn $sequence() {
            run(|| suite::$sequence(Real::new()));
        })*
    };
}

on_real_postgresql! {
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
