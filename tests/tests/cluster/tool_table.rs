//! Both control tools on the same cluster: every command, format and refusal says the same and ends alike (cli.md,
//! cli-reference.md). Once on a cluster of Regent, once on one of the peer; there `REGENT_ALL_TOOL_ROWS=1` adds what is read from etcd.

use std::path::{Path, PathBuf};

use regent_tests::rig::process::{clean, output};
use regent_tests::rig::settings::PASSWORD;
use regent_tests::rig::{Node, Rig, Trouble};
use serde_json::Value;

use crate::peer_tool::patronictl;
use crate::rest_conditions::cluster;
use crate::rest_table::Agents;
use crate::support::{PATIENCE, loudly, number, turn};

/// A tool by a name of one length, so that its usage texts are of one shape.
struct Tool {
    name: &'static str,
    program: PathBuf,
}

/// What a line of shell did.
#[derive(PartialEq, Eq)]
struct Said {
    status: Option<i32>,
    out: String,
    err: String,
}

/// Who is who.
struct Cast<'a> {
    rig: &'a Rig,
    names: [String; 3],
}

impl Cast<'_> {
    fn run(&self, tool: &Tool, line: &str) -> Result<Said, Trouble> {
        let [leader, other, third] = &self.names;
        let mut command = clean("bash");
        command.args(["-c", &format!("ctl() {{ \"$PROGRAM\" -c \"$CONFIG\" \"$@\"; }}\n{line}")]);
        command.env("PROGRAM", &tool.program).env("CONFIG", self.rig.nodes()[0].config()).env("dir", self.rig.dir());
        command.env("leader", leader).env("other", other).env("third", third);
        command.env("etcd", self.rig.etcd.ports()[0].to_string()).env("PGPASSWORD", PASSWORD).env("COLUMNS", "200");
        let out = output(&mut command, PATIENCE)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Said { status: out.status.code(), out: text(&out.stdout), err: text(&out.stderr) })
    }

    /// All members stream, and etcd says so; the same one leads.
    fn rest(&self, tool: &Tool) -> Result<(), Trouble> {
        let calm = |m: &Value| m.get("Pending restart").is_none() && m.get("Scheduled restart").is_none();
        self.settle(tool, calm)?;
        assert_eq!(self.rig.leader()?.name(), self.names[0], "another one leads");
        Ok(())
    }

    /// All members stream, and etcd says so.
    fn settle(&self, tool: &Tool, calm: impl Fn(&Value) -> bool) -> Result<(), Trouble> {
        self.rig.wait_whole(PATIENCE)?;
        self.rig.wait(PATIENCE, "the members' keys say so", |_| {
            let said = self.run(tool, "ctl list -f json").map_err(|e| e.to_string())?;
            let list: Value = serde_json::from_str(&said.out).map_err(|e| format!("{e}: {}", said.out))?;
            let members = list.as_array().map_or(&[][..], Vec::as_slice);
            let fine = |m: &Value| m["TL"] == members[0]["TL"] && (m["Role"] == "Leader" || m["State"] == "streaming");
            if members.len() == 3 && members.iter().all(|m| fine(m) && calm(m)) { Ok(()) } else { Err(said.out) }
        })
    }
}

/// Without what no two runs have in common: times, positions, widths of columns that follow from them, and the tables that
/// are printed while members move.
fn masked(line: &str, text: &str) -> String {
    let moves = [
        "switchover --candidate",
        "switchover demo --leader",
        "failover --candidate",
        "switchover demo <<<",
        "cluster",
    ];
    let moving = moves.iter().any(|words| line.contains(words));
    let mut lines = Vec::new();
    for text in text.lines() {
        if moving && (text.starts_with(['+', '|']) || text.contains(" cluster is unlocked: ")) {
            continue;
        }
        // The peer names those one can choose in any order.
        if text.starts_with("Which member do you want to") {
            let mut words: Vec<&str> = text.split([' ', ',', '[', ']']).collect();
            words.sort_unstable();
            lines.push(words.join(" "));
            continue;
        }
        let words = text.replace('\t', " \u{21e5} ");
        let words = words.split_whitespace().map(|word| {
            let digits = |c: char| if c.is_ascii_digit() { '0' } else { c };
            let form: String = word.trim_matches(['"', ',', '\'', ')', '(']).chars().map(digits).collect();
            let lsn = word.split_once('/').is_some_and(|(high, low)| {
                let hex = |part: &str| {
                    !part.is_empty() && part.trim_end_matches(['"', ',', ')']).chars().all(|c| c.is_ascii_hexdigit())
                };
                hex(high.trim_start_matches('"')) && hex(low)
            });
            if lsn {
                "LSN".to_owned()
            } else if form.starts_with("0000-00-00") && !word.starts_with("2040") {
                "DATE".to_owned()
            } else if form.starts_with("00:00:00") {
                "TIME".to_owned()
            } else if word.starts_with(['+', '-']) && word.trim_matches(['+', '-']).is_empty() {
                "---".to_owned()
            } else {
                word.to_owned()
            }
        });
        lines.push(words.collect::<Vec<_>>().join(" "));
    }
    lines.join("\n")
}

/// Whose texts differ on purpose: rows, each with the row of `docs/differences.md`.
fn differences() -> Result<Vec<(String, String)>, Trouble> {
    let split =
        |row: &String| row.split_once(" : ").map(|(name, line)| (name.trim().to_owned(), line.trim().to_owned()));
    Ok(rows("differences")?.iter().filter_map(split).collect())
}

fn different(known: &[(String, String)], line: &str, [ours, theirs]: [&Said; 2]) -> Option<String> {
    let same = |part: fn(&Said) -> &String| masked(line, part(ours)) == masked(line, part(theirs));
    let known = known.iter().any(|(_, row)| row == line);
    if ours.status == theirs.status && (known || (same(|said| &said.out) && same(|said| &said.err))) {
        return None;
    }
    let tell = |who: &str, said: &Said| format!("  {who}: {:?}\n{}--stderr--\n{}", said.status, said.out, said.err);
    Some(format!("$ {line}\n{}{}", tell("regentctl", ours), tell("patronictl", theirs)))
}

/// The lines of a section of the table.
fn rows(section: &str) -> Result<Vec<String>, Trouble> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster/tool_table.txt"))?;
    let part = text.split("\n## ").find_map(|part| part.strip_prefix(&format!("{section}\n")));
    let lines = part.ok_or_else(|| Trouble::new(format!("no section {section}")))?.lines();
    Ok(lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect())
}

/// All rows, on the cluster of these agents.
fn alike(agents: Agents) -> Result<(), Trouble> {
    let test = format!("tools on {agents:?}");
    let _turn = turn();
    let patronictl = match patronictl() {
        Ok(tool) => tool,
        Err(why) => {
            loudly(&format!("SKIPPED {test}: the peer cannot be installed: {why}"));
            return Ok(());
        }
    };
    let Some(rig) = cluster(agents, 3, &test)? else { return Ok(()) };
    let link = rig.dir().join("tool").join("patronictl");
    std::fs::create_dir(rig.dir().join("tool"))?;
    std::os::unix::fs::symlink(&rig.programs().regentctl, &link)?;
    let tools = [Tool { name: "regentctl", program: link }, Tool { name: "patronictl", program: patronictl }];
    editor(&rig.dir().join("editor"))?;
    rig.start_all()?;
    let leader = rig.wait_whole(PATIENCE)?;
    let mut names = vec![leader.name().to_owned()];
    names.extend(rig.others(leader).map(|node| node.name().to_owned()));
    let names = names.try_into().map_err(|_| Trouble::new("three nodes, please"))?;
    let cast = Cast { rig: &rig, names };
    let mut wrong = Vec::new();
    let known = differences()?;
    let mut told = |found: Option<String>| {
        // At once: what comes later may take long, or fail.
        found.iter().for_each(|found| loudly(found));
        wrong.extend(found);
    };
    cast.rest(&tools[0])?;
    // What is read from etcd alone is the same, whoever wrote it there.
    let agents_are_asked = ["version", "reload", "restart", "reinit", "switchover", "failover", "query"];
    let all = agents == Agents::Regent || number("REGENT_ALL_TOOL_ROWS", 0) > 0;
    let counts = |line: &String| all || agents_are_asked.iter().any(|word| line.contains(word));
    for line in rows("reads")?.into_iter().filter(counts) {
        told(different(&known, &line, [&cast.run(&tools[0], &line)?, &cast.run(&tools[1], &line)?]));
    }
    for line in rows("wrong usage")? {
        let (line, word) = line.rsplit_once(' ').map_or((line.as_str(), ""), |(line, word)| (line.trim(), word));
        for tool in &tools {
            let said = cast.run(tool, line)?;
            if said.status != Some(2) || !said.out.is_empty() || !said.err.contains(word) {
                told(Some(format!(
                    "$ {line}\n {}: {:?}, {}--stderr--\n{}",
                    tool.name, said.status, said.out, said.err
                )));
            }
        }
    }
    for line in rows("changes")? {
        let (there, back) =
            line.split_once(" => ").map_or((line.as_str(), ""), |(there, back)| (there.trim(), back.trim()));
        let mut said = Vec::new();
        for tool in &tools {
            cast.rest(tool)?;
            said.push([cast.run(tool, there)?, {
                if ["switchover", "failover", "restart", "reinit"].iter().any(|word| there.contains(word)) {
                    cast.settle(tool, |_| true)?;
                }
                cast.run(tool, back)?
            }]);
        }
        for (i, line) in [there, back].into_iter().enumerate() {
            told(different(&known, line, [&said[0][i], &said[1][i]]));
        }
    }
    // At last, with its agents gone: the tool of the other side forgets the cluster.
    let (tool, line) =
        (&tools[usize::from(agents == Agents::Regent)], "ctl remove demo <<<$'demo\\nYes I am aware\\n'$leader");
    rig.nodes().iter().for_each(Node::kill_agent);
    let said = cast.run(tool, line)?;
    let left = rig.etcd.keys("/service/demo/")?;
    if said.status != Some(0) || !said.err.is_empty() || !left.is_empty() {
        told(Some(format!("$ {line}\n {}: {:?}, {}{}; left: {left:?}", tool.name, said.status, said.out, said.err)));
    }
    if !wrong.is_empty() {
        return Err(Trouble::new(format!("{} rows differ\n{}", wrong.len(), wrong.join("\n"))));
    }
    loudly(&format!("both tools say the same in every row on a cluster of {agents:?}"));
    Ok(())
}

/// An editor that changes one setting there and back.
fn editor(path: &Path) -> Result<(), Trouble> {
    use std::os::unix::fs::PermissionsExt;
    let swap = "sed -i -e 's/^ttl: 20/ttl: 2X/' -e 's/^ttl: 26/ttl: 20/' -e 's/^ttl: 2X/ttl: 26/'";
    std::fs::write(path, format!("#!/bin/sh\n{swap} \"$1\"\n"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

#[test]
fn every_difference_of_the_tools_is_told() -> Result<(), Trouble> {
    let told = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/differences.md"))?;
    for (name, line) in differences()? {
        assert!(told.contains(&format!("\n| {name} |")), "docs/differences.md has no row {name:?}, for {line}");
    }
    Ok(())
}

#[test]
fn both_tools_say_the_same_of_this_cluster() -> Result<(), Trouble> {
    alike(Agents::Regent)
}

#[test]
fn both_tools_say_the_same_of_a_cluster_of_the_peer() -> Result<(), Trouble> {
    alike(Agents::Peer)
}
