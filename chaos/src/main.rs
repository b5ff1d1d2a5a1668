//! `regent-chaos`: real faults on real processes, from one seed.

#![expect(clippy::print_stdout, reason = "a program that shows something")]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use regent_chaos::cluster::{Mode, Shape};
use regent_chaos::faults::Fault;
use regent_chaos::planted::{PLANTED, hunt};
use regent_chaos::report::{Report, markdown, page, table};
use regent_chaos::run::{Campaign, run};
use regent_chaos::toxiproxy;
use regent_tests::rig::{Settings, Trouble, net};

/// Lets real faults happen to a cluster of real processes under work, and judges what clients saw.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a campaign; exit status 1: something was found that must not be
    Run(Run),
    /// Makes the table of several campaigns' `report.json`
    Table {
        /// Files that campaigns wrote
        reports: Vec<PathBuf>,
        /// The document that it goes into, between its marks; standard output when left out
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Runs campaigns on agents with known bugs; exit status 1: one was not found
    Planted {
        /// The program `regent-planted`
        agent: PathBuf,
        /// Those bugs only whose names have these words
        #[arg(long, default_value = "")]
        bug: String,
        /// All chance comes from it
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Where logs go
        #[arg(long, default_value = "target/chaos/planted")]
        out: PathBuf,
    },
    /// Lists all faults
    Faults,
    /// Serves Toxiproxy's HTTP API
    Proxy {
        /// Where
        #[arg(long, default_value = "127.0.0.1:8474")]
        listen: SocketAddr,
    },
}

#[derive(Args)]
struct Run {
    /// All chance comes from it; drawn from the clock when left out
    #[arg(long)]
    seed: Option<u64>,
    /// Ends when so many faults have happened
    #[arg(long, default_value_t = 60)]
    faults: usize,
    /// Ends after so many minutes at the latest
    #[arg(long, default_value_t = 600)]
    minutes: u64,
    /// Replication
    #[arg(long, default_value = "quorum")]
    mode: Mode,
    /// These faults only
    #[arg(long, value_delimiter = ',')]
    only: Vec<Fault>,
    /// Nodes
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Members of etcd
    #[arg(long, default_value_t = 3)]
    etcd: usize,
    /// Seconds; `loop_wait` 1 and `retry_timeout` 2 or 3 go with it
    #[arg(long, default_value_t = 5)]
    ttl: u32,
    /// Each node in a network namespace of its own instead of behind proxies; needs root
    #[arg(long)]
    namespaces: bool,
    /// Patroni's agents, from the program that PEER_PATRONI names; its ttl is at least 20
    #[arg(long)]
    peer: bool,
    /// Another agent's program, for Regent's
    #[arg(long)]
    agent: Option<PathBuf>,
    /// Ends at the first finding
    #[arg(long)]
    fail_fast: bool,
    /// Where the report goes, and logs if there are findings
    #[arg(long, default_value = "target/chaos")]
    out: PathBuf,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => campaign(&args),
        Command::Table { reports, out } => tables(&reports, out),
        Command::Planted { agent, bug, seed, out } => planted(&agent, &bug, seed, &out),
        Command::Faults => {
            for fault in Fault::all() {
                let name = clap::ValueEnum::to_possible_value(fault).map(|v| v.get_name().to_owned());
                println!("{:30} {}", name.unwrap_or_default(), fault.words());
            }
            Ok(true)
        }
        Command::Proxy { listen } => {
            println!("Toxiproxy's API at http://{listen}");
            toxiproxy::serve(listen).map(|()| true)
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(trouble) => {
            println!("{trouble}");
            ExitCode::from(2)
        }
    }
}

fn campaign(args: &Run) -> Result<bool, Trouble> {
    let ttl = if args.peer { args.ttl.max(20) } else { args.ttl };
    if ttl < 3 {
        return Err(Trouble::new("--ttl must be at least 3"));
    }
    if args.namespaces {
        net::leave()?;
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let settings = Settings {
        nodes: args.nodes,
        etcd: args.etcd,
        ttl,
        loop_wait: 1,
        retry_timeout: if ttl >= 7 { 3 } else { 2.min((ttl - 1) / 2) },
        namespaces: args.namespaces,
        peer: args.peer,
        ..Settings::default()
    };
    let campaign = Campaign {
        shape: Shape { settings, mode: args.mode, agent: args.agent.clone(), planted: None },
        seed: args.seed.unwrap_or(now.as_secs() % 1_000_000),
        only: args.only.clone(),
        faults: args.faults,
        time: Duration::from_secs(60 * args.minutes),
        fail_fast: args.fail_fast,
        out: args.out.clone(),
    };
    println!("seed {}, {:?}, ttl {ttl}", campaign.seed, args.mode);
    let report = run(&campaign, &|text| println!("{text}"))?;
    fs::create_dir_all(&args.out)?;
    let write = |name: &str, text: String| fs::write(args.out.join(name), text);
    write("report.md", markdown(&report))?;
    write("report.html", page(&report))?;
    write("report.json", serde_json::to_string(&report).map_err(|e| Trouble::new(e.to_string()))?)?;
    println!("\n{}", table(std::slice::from_ref(&report)));
    for finding in &report.findings {
        println!("FOUND {finding}");
    }
    println!("report: {}", args.out.join("report.html").display());
    Ok(report.findings.is_empty())
}

fn planted(agent: &Path, words: &str, seed: u64, out: &Path) -> Result<bool, Trouble> {
    let mut table = String::from("| bug | mode | found as | campaigns (allowed) | seconds |\n|---|---|---|---|---|\n");
    let mut all = true;
    for bug in PLANTED.iter().filter(|bug| bug.name.contains(words)) {
        println!("\n*** {}", bug.name);
        let found = hunt(bug, agent, seed, out, &|text| println!("{text}"))?;
        let what = found.finding.as_ref().map_or_else(
            || "**not found**".to_owned(),
            |finding| format!("{:?} ({})", finding.breach, finding.breach.invariant()),
        );
        all &= found.finding.is_some();
        table += &format!(
            "| {} | {:?} | {what} | {} ({}) | {:.0} |\n",
            bug.name,
            bug.mode,
            found.campaigns,
            bug.campaigns,
            found.took.as_secs_f64()
        );
    }
    println!("\n{table}");
    Ok(all)
}

fn tables(files: &[PathBuf], out: Option<PathBuf>) -> Result<bool, Trouble> {
    const MARKS: [&str; 2] = ["<!-- chaos: begin -->\n", "<!-- chaos: end -->"];
    let mut reports: Vec<Report> = Vec::new();
    for file in files {
        let named = |e: &dyn std::fmt::Display| Trouble::new(format!("{}: {e}", file.display()));
        let text = fs::read_to_string(file).map_err(|e| named(&e))?;
        reports.push(serde_json::from_str(&text).map_err(|e| named(&e))?);
    }
    let table = table(&reports);
    let Some(out) = out else {
        println!("{table}");
        return Ok(true);
    };
    let document = fs::read_to_string(&out)?;
    let parts = document.split_once(MARKS[0]).and_then(|(before, rest)| Some((before, rest.split_once(MARKS[1])?.1)));
    let (before, after) = parts.ok_or_else(|| Trouble::new(format!("{} has no marks {MARKS:?}", out.display())))?;
    fs::write(&out, format!("{before}{}{table}{}{after}", MARKS[0], MARKS[1]))?;
    Ok(true)
}
