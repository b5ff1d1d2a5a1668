//! Failover times of real clusters, and of Patroni's beside them. See [`regent_tests::failover`].

#![expect(clippy::print_stdout, reason = "a program that shows something")]

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::{Parser, ValueEnum};
use regent_tests::failover::faults::Fault;
use regent_tests::failover::measure;
use regent_tests::failover::report::{Run, place, table};
use regent_tests::rig::programs::peer;
use regent_tests::rig::{Rig, Settings, Trouble, net, stray};

/// Measures failovers of real clusters of three nodes, each in a network namespace of its own. Needs root.
#[derive(Parser)]
struct Args {
    /// What happens; all when left out
    #[arg(long, value_delimiter = ',')]
    rows: Vec<Fault>,
    /// Runs of each
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Seconds; loop_wait is 1, retry_timeout 3 or what fits
    #[arg(long, value_delimiter = ',', default_values_t = [20, 5])]
    ttl: Vec<u32>,
    /// Whose agents; Patroni from the program that PEER_PATRONI names, and at ttl 20 only: it takes no less
    #[arg(long, value_delimiter = ',', default_value = "regent")]
    product: Vec<Product>,
    /// Replication
    #[arg(long, default_value = "async")]
    mode: Mode,
    /// Where each run's figures are appended as a line of JSON; a new file in a temporary directory when left out
    #[arg(long)]
    raw: Option<PathBuf>,
    /// Measure nothing: make the table of these files
    #[arg(long, value_delimiter = ',')]
    table: Vec<PathBuf>,
    /// Where the table goes, between its marks if there are such; standard output when left out
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Product {
    Regent,
    Patroni,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Async,
    Sync,
}

fn main() -> ExitCode {
    match bench(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            println!("{trouble}");
            ExitCode::FAILURE
        }
    }
}

fn bench(args: &Args) -> Result<(), Trouble> {
    let files = if args.table.is_empty() { vec![measure_all(args)?] } else { args.table.clone() };
    let mut runs = Vec::new();
    for file in &files {
        let text = fs::read_to_string(file).map_err(|e| Trouble::new(format!("{}: {e}", file.display())))?;
        for line in text.lines() {
            let run = serde_json::from_str(line).map_err(|e| Trouble::new(format!("{}: {e}", file.display())))?;
            runs.push(run);
        }
    }
    let table = table(&runs);
    let Some(out) = &args.out else {
        println!("\n{table}");
        return Ok(());
    };
    let document = fs::read_to_string(out).unwrap_or_default();
    Ok(fs::write(out, place(&document, &table))?)
}

/// Runs everything and returns the file of the figures.
fn measure_all(args: &Args) -> Result<PathBuf, Trouble> {
    let path = match &args.raw {
        Some(path) => path.clone(),
        None => {
            tempfile::Builder::new()
                .prefix("failover-bench-")
                .suffix(".jsonl")
                .tempfile()?
                .keep()
                .map_err(|e| e.error)?
                .1
        }
    };
    let mut raw = OpenOptions::new().create(true).append(true).open(&path)?;
    println!("figures go to {}", path.display());
    net::leave()?;
    let rows: Vec<Fault> = if args.rows.is_empty() { Fault::ALL.to_vec() } else { args.rows.clone() };
    for product in &args.product {
        let name = match product {
            Product::Regent => format!("Regent {}", env!("CARGO_PKG_VERSION")),
            Product::Patroni => match peer() {
                Ok(program) => version(&program)?,
                Err(why) => {
                    println!("Patroni is not run: {why}");
                    continue;
                }
            },
        };
        for ttl in args.ttl.iter().filter(|ttl| *product == Product::Regent || **ttl >= 20) {
            let settings = |fault: &Fault| fault.settings(*ttl, *product == Product::Patroni, args.mode == Mode::Sync);
            let mut rig: Option<(Settings, Rig)> = None;
            for fault in &rows {
                for i in 1..=fault.runs(args.runs) {
                    let what = format!("{name}, ttl {ttl}: {}, run {i}", fault.words());
                    if let Err(trouble) = one(&mut rig, settings(fault), *fault, &name, &mut raw) {
                        println!("{what}: {trouble}");
                        rig = None;
                    }
                }
            }
        }
    }
    Ok(path)
}

fn one(
    kept: &mut Option<(Settings, Rig)>,
    settings: Settings,
    fault: Fault,
    name: &str,
    raw: &mut File,
) -> Result<(), Trouble> {
    if kept.as_ref().is_none_or(|(has, _)| *has != settings) {
        // The old one ends before the new one starts.
        *kept = None;
        let rig = Rig::whole(settings)?;
        stray::end_on_interrupt(rig.dir())?;
        *kept = Some((settings, rig));
    }
    let Some((_, rig)) = kept else { return Ok(()) };
    let done = measure::run(rig, fault, name);
    let run = match &done {
        Ok(run) => run.clone(),
        Err(trouble) => Run::failed(name, fault, &settings, &trouble.to_string()),
    };
    let line = serde_json::to_string(&run).map_err(|e| Trouble::new(e.to_string()))?;
    writeln!(raw, "{line}")?;
    println!("{}", run.brief());
    done.map(|_| ())
}

fn version(program: &Path) -> Result<String, Trouble> {
    let said = Command::new(program).arg("--version").output()?;
    let said = String::from_utf8_lossy(&said.stdout);
    Ok(format!("Patroni {}", said.split_whitespace().last().unwrap_or_default()))
}
