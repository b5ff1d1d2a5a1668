//! An agent with a bug, for testing the tests: the agent that ships, around one of the wrong judgements that the simulation must
//! find. Built only with the feature `planted`, and never installed.

use std::process::ExitCode;

use regent::agent::Judge;
use regent_tests::planted::BUGS;

fn main() -> ExitCode {
    let name = std::env::var("REGENT_PLANTED").unwrap_or_default();
    let bug = BUGS.iter().find(|bug| bug.name == name);
    regent::program::main(bug.map_or_else(Judge::default, |bug| (bug.make)().judge))
}
