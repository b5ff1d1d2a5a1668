//! `regent`: the agent beside one PostgreSQL.

use std::process::ExitCode;

use regent::agent::Judge;

fn main() -> ExitCode {
    regent::program::main(Judge::default())
}
