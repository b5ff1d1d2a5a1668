//! What must hold of the code itself (the rules of the house).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use regent_core::rules::{GUARDS, TABLES};
use regent_tests::script::{diff, play, scenarios, split};
use regent_tests::trace::GUARDS_TITLE;

/// Rules that no scenario reaches, each with the reason. Reaching one means taking it off this list.
const UNREACHED: &[(&str, &str)] = &[];

fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("this crate lies in the workspace").to_owned()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A row of a table, as documents and tests see it.
struct Row {
    table: &'static str,
    name: &'static str,
    contract: &'static str,
    prevents: &'static str,
}

/// All rows, in the order in which they are read.
fn rows() -> Vec<Row> {
    let guards = GUARDS.iter().map(|rule| (GUARDS_TITLE, rule));
    let mut rows: Vec<Row> = guards.map(|(table, rule)| row(table, rule)).collect();
    for table in TABLES {
        rows.extend(table.rows.iter().map(|rule| row(table.title, rule)));
        let last = table.otherwise;
        rows.push(Row { table: table.title, name: last.name, contract: last.contract, prevents: last.prevents });
    }
    rows
}

fn row(table: &'static str, rule: &regent_core::rules::Rule) -> Row {
    Row { table, name: rule.name, contract: rule.contract, prevents: rule.prevents }
}

type Reached = BTreeMap<(&'static str, &'static str), BTreeSet<String>>;

/// Which scenarios reach which rule. Played, not read: a story may hide a rule.
fn reached() -> Reached {
    let mut reached = Reached::new();
    for path in scenarios() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let scenario = read(&path);
        let story = play(&name, split(&scenario).0).unwrap_or_else(|error| panic!("{error}"));
        for rule in story.reached {
            reached.entry(rule).or_default().insert(name.trim_end_matches(".txt").to_owned());
        }
    }
    reached
}

#[test]
fn every_rule_is_reached_by_a_scenario() {
    let reached = reached();
    let excused = |name: &str| UNREACHED.iter().any(|(rule, _)| *rule == name);
    let mut problems = Vec::new();
    for Row { table, name, .. } in rows() {
        match (reached.contains_key(&(table, name)), excused(name)) {
            (false, false) => problems.push(format!("{name} ({table}): no scenario reaches it")),
            (true, true) => problems.push(format!("{name}: reached, take it off the list of the unreached")),
            (true, false) | (false, true) => {}
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// `UPDATE=1 cargo test -p regent-tests --test house` writes it.
#[test]
fn the_document_of_the_rules_is_the_tables() {
    let (wanted, path) = (document(&reached()), root().join("docs/rules.md"));
    if std::env::var_os("UPDATE").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &wanted).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "docs/rules.md is not the tables; UPDATE=1 rewrites it:\n{}", diff(&found, &wanted));
}

fn document(reached: &Reached) -> String {
    let mut text = String::from(
        "# The rules\n\n\
         <!-- Written by `UPDATE=1 cargo test -p regent-tests --test house` from `agent/core/src/rules`; not by hand. -->\n\n\
         Order is meaning: the first row that answers, decides; the last row of a table always answers. Every look at the \
         world goes through the guards first, then through the one table that fits. Ids in brackets are those of the \
         contract. Each rule names the scenarios (`tests/scenarios`) that reach it.\n",
    );
    let sources = sources_of_rules();
    let mut table = "";
    for row in rows() {
        if row.table != table {
            table = row.table;
            text.push_str(&format!("\n## {table}\n\n"));
        }
        let Row { name, contract, prevents, .. } = row;
        text.push_str(&format!("- **`{name}`** [{contract}]  \n"));
        if let Some(sentence) = first_sentence(&sources, table, name) {
            text.push_str(&format!("  {sentence}  \n"));
        }
        text.push_str(&format!("  Prevents: {prevents}.  \n"));
        text.push_str(&format!("  Scenarios: {}\n", told_by(reached, table, name)));
    }
    text.push_str(&ids(reached));
    text
}

/// The ids of the contract (ha-rules.md): a prefix and its last number. Z8 is Citus.
const IDS: &[(&str, u32)] = &[
    ("CF", 3),
    ("O", 2),
    ("CY", 3),
    ("B", 15),
    ("R", 23),
    ("L", 13),
    ("W", 7),
    ("C", 12),
    ("A", 4),
    ("F", 10),
    ("D", 9),
    ("S", 17),
    ("P", 14),
    ("M", 13),
    ("Y", 10),
    ("Q", 8),
    ("X", 12),
    ("G", 11),
    ("K", 5),
    ("Z", 7),
    ("T", 5),
    ("V", 7),
];

/// Every id, in the contract's order.
fn contract_ids() -> impl Iterator<Item = String> {
    let numbered = |(prefix, last): &(&'static str, u32)| {
        let (prefix, first) = (*prefix, u32::from(*prefix != "Q"));
        (first..=*last).map(move |number| format!("{prefix}{number}"))
    };
    // Sections 11 has no S8 and S9, section 4 has a B3b.
    let all = IDS.iter().flat_map(numbered).filter(|id| id != "S8" && id != "S9");
    all.flat_map(|id| if id == "B3" { vec![id, "B3b".to_owned()] } else { vec![id] })
}

/// `tests/contract.txt`: the tests of an id that no rule carries, or why there is none.
fn carried_by_tests() -> BTreeMap<String, Vec<String>> {
    let text = read("tests/contract.txt");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let words = lines.map(|line| line.split_whitespace().map(str::to_owned));
    words.filter_map(|mut words| Some((words.next()?, words.collect()))).collect()
}

fn carried_by_rules() -> BTreeMap<String, Vec<Row>> {
    let mut found: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    for row in rows() {
        for id in row.contract.split_whitespace() {
            let Row { table, name, contract, prevents } = row;
            found.entry(id.to_owned()).or_default().push(Row { table, name, contract, prevents });
        }
    }
    found
}

/// A line for each id: its rules, its tests, a scenario.
fn ids(reached: &Reached) -> String {
    let (rules, tests) = (carried_by_rules(), carried_by_tests());
    let mut text = String::from(
        "\n## Ids of the contract\n\nA rule has a unit test of its name beside it. Ids that are no matter of judgement are carried by tests alone.\n\n\
         | id | rules | tests | scenario |\n|---|---|---|---|\n",
    );
    for id in contract_ids() {
        let rows = rules.get(&id).map(Vec::as_slice).unwrap_or_default();
        let names: BTreeSet<&str> = rows.iter().map(|row| row.name).collect();
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        let told =
            rows.iter().find_map(|row| reached.get(&(row.table, row.name))?.first()).cloned().unwrap_or_default();
        let tests = tests.get(&id).map(Vec::as_slice).unwrap_or_default();
        let shown: Vec<&str> = tests.iter().map(|test| test.rsplit("::").next().unwrap_or(test)).collect();
        let shown = match shown.as_slice() {
            ["open", why @ ..] => format!("**open**: {}", why.join(" ")),
            tests => tests.join(", "),
        };
        text.push_str(&format!("| {id} | {} | {shown} | {told} |\n", names.join(", ")));
    }
    text
}

#[test]
fn every_id_of_the_contract_has_a_rule_or_a_test() {
    let (rules, tests) = (carried_by_rules(), carried_by_tests());
    let known: BTreeSet<String> = contract_ids().collect();
    let mut problems = Vec::new();
    for id in &known {
        match (rules.contains_key(id), tests.get(id).map(Vec::as_slice)) {
            (false, None) => problems.push(format!("{id}: no rule and no line in tests/contract.txt")),
            (true, Some([first, ..])) if first == "open" => {
                problems.push(format!("{id}: has a rule, and is no longer open"))
            }
            (_, Some([])) => problems.push(format!("{id}: its line names no test")),
            (_, Some(_)) | (true, None) => {}
        }
    }
    for (id, named) in tests.iter().filter(|(_, named)| named.first().is_none_or(|first| first != "open")) {
        if !known.contains(id) {
            problems.push(format!("{id}: the contract has no such id"));
        }
        for test in named {
            let (file, name) = test.split_once("::").unwrap_or((test, ""));
            let source = read(file);
            // A rule and its test may have one name.
            let tested = source.match_indices(&format!("fn {name}(")).any(|(at, _)| {
                let attributes: Vec<&str> = source[..at].lines().rev().take(3).collect();
                attributes.iter().any(|line| line.contains("test]") || line.contains("test("))
                    || source[..at].contains("proptest!")
            });
            if name.is_empty() || !tested {
                problems.push(format!("{id}: there is no test {test}"));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// A few of the scenarios that reach a rule: those whose stories reach the fewest rules are most about it.
fn told_by(reached: &Reached, table: &'static str, name: &'static str) -> String {
    const FEW: usize = 4;
    let Some(all) = reached.get(&(table, name)) else { return "none".to_owned() };
    let size = |scenario: &String| reached.values().filter(|those| those.contains(scenario)).count();
    let mut sorted: Vec<&String> = all.iter().collect();
    sorted.sort_by_key(|scenario| size(scenario));
    let mut few: Vec<String> = sorted.iter().take(FEW).map(|scenario| format!("`{scenario}`")).collect();
    if let Some(more) = sorted.len().checked_sub(FEW).filter(|more| *more > 0) {
        few.push(format!("and {more} more"));
    }
    few.join(", ")
}

/// The files beside `rules/mod.rs`, by the name of their module.
fn sources_of_rules() -> BTreeMap<String, String> {
    let files = rust_files(&root().join("agent/core/src/rules"));
    let module = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    files.into_iter().map(|path| (module(&path), read(&path))).collect()
}

/// The first sentence of a rule's doc comment. A rule that two tables share has one function, in either's module.
fn first_sentence(sources: &BTreeMap<String, String>, table: &str, name: &str) -> Option<String> {
    let own = match table {
        GUARDS_TITLE => "guard",
        table if table.starts_with("A long action") => "busy",
        table if table.starts_with("The cluster is paused") => "pause",
        table if table.starts_with("I hold") => "leader",
        table if table.starts_with("Another member") => "follower",
        table if table.starts_with("Nobody holds") => "election",
        table if table.starts_with("etcd did not") => "isolated",
        table => panic!("which module is the table {table:?} in?"),
    };
    let signature = format!("pub(super) fn {name}(");
    let before = |source: &String| source.split_once(&signature).map(|(before, _)| before.to_owned());
    let before = sources.get(own).and_then(before).or_else(|| sources.values().find_map(before))?;
    let mut comment: Vec<&str> =
        before.lines().rev().map_while(|line| line.trim().strip_prefix("///")).map(str::trim).collect();
    comment.reverse();
    let paragraph = comment.split(|line| line.is_empty()).next()?.join(" ");
    let end = paragraph.find(". ").map_or(paragraph.len(), |at| at + 1);
    Some(paragraph[..end].to_owned())
}

#[test]
fn every_rule_has_a_test_that_names_it() {
    let sources = sources_of_rules();
    let tests: String =
        sources.values().filter_map(|source| source.split_once("#[cfg(test)]")).map(|(_, t)| t).collect();
    let named = |name: &str| tests.contains(&format!("\"{name}\"")) || tests.contains(&format!("fn {name}"));
    let untested: BTreeSet<_> = rows().into_iter().map(|row| row.name).filter(|name| !named(name)).collect();
    assert!(untested.is_empty(), "no test in agent/core/src/rules names {untested:?}");
}

/// Names of the packages that a manifest depends on: for its own code, or for its tests as well.
fn dependencies(manifest: &str, tests_too: bool) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut counts = false;
    for line in read(manifest).lines().map(str::trim) {
        if let Some(title) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            counts = title.ends_with("dependencies") && (tests_too || !title.ends_with("dev-dependencies"));
        } else if counts && let Some(name) = line.split(['.', '=', ' ']).next().filter(|name| !name.is_empty()) {
            names.insert(name.to_owned());
        }
    }
    names.retain(|name| !name.starts_with('#'));
    names
}

#[test]
fn the_core_depends_on_nothing_but_serde_and_thiserror() {
    let used = dependencies("agent/core/Cargo.toml", false);
    assert_eq!(used, BTreeSet::from(["serde".to_owned(), "thiserror".to_owned()]));
}

#[test]
fn imports_point_one_way() {
    // Each may use those before it in this list, but for the two beside each other.
    let layers: [(&str, &str, &[&str]); 6] = [
        ("agent/core", "regent-core", &[]),
        ("dcs", "regent-dcs", &["regent-core"]),
        ("pgctl", "regent-pgctl", &["regent-core"]),
        ("agent", "regent", &["regent-core", "regent-dcs", "regent-pgctl"]),
        ("tests", "regent-tests", &["regent-core", "regent-dcs", "regent-pgctl", "regent"]),
        ("chaos", "regent-chaos", &["regent-core", "regent-dcs", "regent-pgctl", "regent", "regent-tests"]),
    ];
    let ours: BTreeSet<&str> = layers.iter().map(|(_, package, _)| *package).collect();
    for (directory, package, allowed) in layers {
        if !root().join(directory).exists() {
            continue;
        }
        let manifest = format!("{directory}/Cargo.toml");
        for name in dependencies(&manifest, true) {
            let points_back = ours.contains(name.as_str()) && !allowed.contains(&name.as_str());
            assert!(!points_back, "{package} imports {name}: imports point one way");
        }
    }
}

/// Every `.rs` file below a directory, without what was built.
fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
        let path = entry.expect("a directory that can be listed").path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.is_dir() && !hidden && !path.ends_with("target") {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// A source that knows where it was written works only there.
#[test]
fn no_source_names_the_place_where_it_was_written() {
    let checkout = root();
    let shared = ["/", "/tmp", "/home", "/root", "/usr", "/opt", "/srv", "/var"];
    let above = checkout.parent().filter(|above| !shared.contains(&above.to_string_lossy().as_ref()));
    let places: Vec<String> =
        above.into_iter().chain([checkout.as_path()]).map(|place| format!("{}/", place.display())).collect();
    for path in rust_files(&checkout) {
        let source = read(&path);
        for place in &places {
            assert!(!source.contains(place.as_str()), "{} names {place}", path.display());
        }
    }
}

/// What a library has to say goes to `tracing`, or to its caller.
#[test]
fn libraries_print_nothing() {
    for directory in ["agent/core/src", "agent/src", "dcs/src", "pgctl/src", "tests/src", "chaos/src"] {
        for path in rust_files(&root().join(directory)) {
            let is_program = path.ends_with("main.rs")
                || path.ends_with("program.rs")
                || path.components().any(|part| part.as_os_str() == "bin");
            let source = read(&path);
            let shipped = source.split("#[cfg(test)]").next().unwrap_or_default();
            let prints = ["println!", "print!(", "dbg!("].iter().find(|print| shipped.contains(*print));
            assert!(is_program || prints.is_none(), "{} uses {}", path.display(), prints.unwrap_or(&""));
        }
    }
}
