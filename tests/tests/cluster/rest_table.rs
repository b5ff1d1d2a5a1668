//! What every node answers to GET, HEAD and OPTIONS, by its condition: one table for Regent and for the peer (rest-api.md
//! sections 3 to 10).

use std::io::{self, Write};
use std::time::Duration;

use regent_tests::rig::http::{Answer, raw};
use regent_tests::rig::{Node, Trouble};
use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, Serializer};

/// Conditions, as columns of [`TABLE`].
///
/// ```text
/// U    nothing in the data directory          St   replica, server stopped in pause     SL  leader of a standby cluster
/// L    leader, its primary runs               LSt  leader until its server was stopped  SR  replica in one
/// R    streaming replica                      F    failsafe: leader without etcd
/// N    the same: noloadbalance, nosync        FR   failsafe: replica without etcd
/// Lag  replica, 3 MB behind in replay         O    no etcd: the primary that had to go
/// S    synchronous standby                    OR   no etcd: replica
/// Q    standby of a quorum                    X    no etcd, in pause: leader
///                                             XR   no etcd, in pause: replica
/// ```
const COLUMNS: [&str; 17] =
    ["U", "L", "R", "N", "Lag", "S", "Q", "St", "LSt", "F", "FR", "O", "OR", "X", "XR", "SL", "SR"];

/// `2` is 200, `3` is 503, `5` is 502, `.` is not asked. Two signs: of Regent and of the peer, which differ on purpose, and why is
/// said after the semicolon, in the words of `docs/differences.md`. `-`: the peer does not answer at all.
const TABLE: &str = "
*    / /primary /master /read-write           3  2  3  3  3  3  3  3  3   2  3  3  3  2  3  3  3
*    /primary/ /my-primary-check?lag=0        3  2  3  3  3  3  3  3  3   2  3  3  3  2  3  3  3
*    /leader /leader/x                        3  2  3  3  3  3  3  3  3   2  3  3  3  2  3  2  3
*    /standby-leader /standby_leader          3  3  3  3  3  3  3  3  3   3  3  3  3  3  3  2  3
*    /replica /replica/foo                    3  3  2  3  2  2  2  3  3   3  2  2  2  3  2  3  2
*    /read-only                               3  2  2  3  2  2  2  3  3   2  2  2  2  2  2  2  2
*    /health /haproxy/health                  3  2  2  2  2  2  2  3  3   2  2  2  2  2  2  2  2
*    /sync /synchronous                       3  3  3  3  3  2  3  3  3   3  3  3  3  3  3  3  3
*    /quorum                                  3  3  3  3  3  3  2  3  3   3  3  3  3  3  3  3  3
*    /async /asynchronous                     3  3  2  3  2  3  3  3  3   3  23 23 23 3  23 3  2  ; `/async`, `/read-only-sync`, `/read-only-quorum` without etcd
*    /read-only-sync /read-only-synchronous   3  2  3  3  3  2  3  3  3   23 3  3  3  23 3  2  3  ; `/async`, `/read-only-sync`, `/read-only-quorum` without etcd
*    /read-only-quorum                        3  2  3  3  3  3  2  3  3   23 3  3  3  23 3  2  3  ; `/async`, `/read-only-sync`, `/read-only-quorum` without etcd
*    /sync/ /quorum/ /nosuch /switchover      3  3  3  3  3  3  3  3  3   3  3  3  3  3  3  3  3
GET  /liveness /liveness/x //liveness         2  2  2  2  2  2  2  2  2   2  2  2  2  2  2  2  2
GET  /readiness                               3  2  2  2  3  2  2  3  3   2  2  3  2  2  2  2  2
GET  /patroni /metrics /metrics/ //metrics    2  2  2  2  2  2  2  2  2   2  2  2  2  2  2  2  2
GET  /cluster /history                        2  2  2  2  2  2  2  2  2   2- 2- 2- 2- 2- 2- 2  2  ; `/cluster`, `/history`, `/config` without etcd
GET  /config                                  5  2  2  2  2  2  2  2  2   2- 2- 2- 2- 2- 2- 2  2  ; `/cluster`, `/history`, `/config` without etcd
GET  /failsafe                                5  .  5  5  5  5  5  5  5   2  2  .  .  .  .  5  .
HO   /liveness /patroni /metrics /cluster     23 23 23 23 23 23 23 23 23  23 23 23 23 23 23 23 23 ; HEAD, OPTIONS
HO   /readiness                               3  23 23 23 3  23 23 3  3   23 23 3  23 23 23 23 23 ; HEAD, OPTIONS
*    /replica?lag=1MB /replica?lag=garbage    3  3  2  3  .  2  2  3  3   3  2  2  2  3  2  3  2
*    /replica?lag=0 /replica?lag=-1           .  3  .  3  3  .  .  3  3   3  .  .  .  3  .  3  .
*    /replica?lag=2MB /async?lag=2000kB       .  .  .  .  3  .  .  .  .   .  .  .  .  .  .  .  .
*    /replica?lag=1.5MB /replica?lag=1e6      .  .  .  .  3  .  .  .  .   .  .  .  .  .  .  .  .
*    /read-only?lag=2MB /replica?lag=0&lag=9  .  .  .  .  3  .  .  .  .   .  .  .  .  .  .  .  .
*    /replica?lag=4MB /replica?lag=4000kB     .  .  .  .  2  .  .  .  .   .  .  .  .  .  .  .  .
*    /replica?lag=0x400000 /replica?lag=0.1GB .  .  .  .  2  .  .  .  .   .  .  .  .  .  .  .  .
*    /replica?lag=4%20MB /replica?lag=4e6     .  .  .  .  2  .  .  .  .   .  .  .  .  .  .  .  .
*    /replica?lag=2mb /replica?lag=2M         .  .  .  .  32 .  .  .  .   .  .  .  .  .  .  .  .  ; units of `lag=`
*    /replica?lag=4mb /replica?lag=1PB        .  .  .  .  2  .  .  .  .   .  .  .  .  .  .  .  .
*    /replica?lag= /replica?lag               .  .  .  .  2  .  .  .  .   .  .  .  .  .  .  .  .
*    /health?lag=0 /replica?lag=1TB&other=1   .  .  .  .  2  .  .  .  .   .  .  .  .  .  .  .  .
GET  /readiness?mode=write                    .  2  2  2  2  2  2  3  3   .  .  .  .  .  .  2  2
GET  /readiness?mode=bogus /readiness?lag=x   .  2  2  2  3  2  2  3  3   .  .  .  .  .  .  2  2
GET  /readiness?lag=1GB                       .  2  2  2  2  2  2  3  3   .  .  .  .  .  .  2  2
GET  /readiness?lag=0&mode=write              .  2  .  .  2  .  .  3  3   .  .  .  .  .  .  2  .
*    /read-only?lag=0 /primary?lag=0          .  2  .  3  .  .  .  3  3   2  .  .  .  2  .  .  .
*    /replica?tag_clonefrom=true              .  3  2  3  .  2  2  3  .   .  .  .  .  .  .  .  .
*    /replica?tag_clonefrom=True              .  3  3  3  .  3  3  3  .   .  .  .  .  .  .  .  .
*    /replica?tag_num=5 /async?tag_num=5      .  3  2  3  .  .  .  3  .   .  .  .  .  .  .  .  .
*    /replica?tag_num=5.0 /health?tag_foo=no  .  3  3  3  .  3  3  3  .   .  .  .  .  .  .  .  .
*    /health?tag_foo=bar&tag_Mixed=CaSe       .  3  2  3  .  2  2  3  .   .  .  .  .  .  .  .  .
*    /health?tag_f=1.5&tag_flag=true          .  3  2  3  .  2  2  3  .   .  .  .  .  .  .  .  .
*    /health?tag_foo=bar&tag_mixed=CaSe       .  3  3  3  .  3  3  3  .   .  .  .  .  .  .  .  .
*    /health?tag_off=false /health?tag_foo    .  .  2  .  .  2  2  3  .   .  .  .  .  .  .  .  .
*    /health?tag_noloadbalance=false          .  3  3  3  .  3  3  3  .   .  .  .  .  .  .  .  .
*    /health?tag_noloadbalance=true           .  3  3  2  .  3  3  3  .   .  .  .  .  .  .  .  .
*    /read-only?tag_foo=no                    .  3  3  3  .  3  3  3  .   .  .  .  .  .  .  .  .
*    /primary?tag_foo=no /leader?tag_foo=no   .  2  3  3  .  3  3  3  .   .  .  .  .  .  .  .  .
GET  /liveness?tag_foo=no                     .  2  2  2  .  2  2  2  .   .  .  .  .  .  .  .  .
";

/// Whose agents are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Agents {
    Regent,
    Peer,
}

/// A line of [`TABLE`].
struct Row {
    methods: &'static [&'static str],
    paths: Vec<&'static str>,
    cells: Vec<&'static str>,
    /// The name of the difference, where a cell has two signs.
    difference: Option<&'static str>,
}

fn rows() -> impl Iterator<Item = Row> {
    TABLE.lines().filter(|line| !line.is_empty()).map(|line| {
        let (line, difference) = line.split_once(';').map_or((line, None), |(line, name)| (line, Some(name.trim())));
        let mut words = line.split_whitespace();
        let methods: &[&str] = match words.next() {
            Some("*") => &["GET", "HEAD", "OPTIONS"],
            Some("HO") => &["HEAD", "OPTIONS"],
            Some("GET") => &["GET"],
            other => panic!("{other:?} in {line}"),
        };
        let (paths, cells): (Vec<_>, Vec<_>) = words.partition(|word| word.starts_with('/'));
        assert_eq!(cells.len(), COLUMNS.len(), "{line}");
        Row { methods, paths, cells, difference }
    })
}

/// The code that `agents` are to answer with; none where they are not asked.
fn wanted(cell: &str, agents: Agents) -> Option<u16> {
    let sign = match agents {
        Agents::Regent => cell.chars().next(),
        Agents::Peer => cell.chars().next_back(),
    };
    match sign {
        Some('2') => Some(200),
        Some('3') => Some(503),
        Some('5') => Some(502),
        Some('.' | '-') => None,
        other => panic!("{other:?} is no code"),
    }
}

/// A request as the simplest client sends it: HTTP/1.0 and no headers. The connection is closed after the answer.
pub(crate) fn ask(node: &Node, method: &str, path: &str) -> Result<Answer, Trouble> {
    raw(node.rest(), &format!("{method} {path} HTTP/1.0\r\n\r\n"), Duration::from_secs(15))
}

/// What of this column's answers is not as the table says; nothing, if all is.
pub(crate) fn wrong(agents: Agents, column: &str, node: &Node) -> Result<Vec<String>, Trouble> {
    let place = COLUMNS.iter().position(|name| *name == column).unwrap();
    let mut wrong = Vec::new();
    for row in rows() {
        let Some(wanted) = wanted(row.cells[place], agents) else { continue };
        for (method, path) in row.methods.iter().flat_map(|method| row.paths.iter().map(move |path| (method, path))) {
            let answer = ask(node, method, path)?;
            if answer.status != wanted {
                wrong.push(format!("{method} {path}: {}, not {wanted}", answer.status));
            }
            wrong.extend(shape(method, path, &answer).map(|what| format!("{method} {path}: {what}\n{answer:?}")));
        }
    }
    Ok(wrong)
}

/// What the contract says of every answer of its kind (rest-api.md 2.3).
fn shape(method: &str, path: &str, answer: &Answer) -> Option<&'static str> {
    let segment = path.trim_start_matches('/').split(['/', '?']).next().unwrap_or_default();
    let header = |name: &str| answer.head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let first = answer.head.lines().next().unwrap_or_default();
    let reason = match answer.status {
        200 => "HTTP/1.0 200 OK",
        503 => "HTTP/1.0 503 Service Unavailable",
        _ => first,
    };
    if first != reason {
        return Some("the status line");
    }
    if method != "GET" || ["liveness", "readiness"].contains(&segment) {
        return (!answer.body.is_empty()).then_some("a body");
    }
    let kind = match (segment, answer.status) {
        (_, 502) => return None,
        ("metrics", _) => "text/plain",
        _ => "application/json",
    };
    if header("Server:").or_else(|| header("server:")).is_none()
        || header("Date:").or_else(|| header("date:")).is_none()
    {
        return Some("no Server or no Date");
    }
    let said = header("Content-Type:").or_else(|| header("content-type:")).unwrap_or_default();
    if said.split(';').next() != Some(kind) {
        return Some("the content type");
    }
    (kind == "application/json" && !is_plain(&answer.body)).then_some("not JSON with `, ` and `: ` on one line")
}

/// JSON on one line as clients of the field match it in raw text, with `, ` and `: ` between.
fn is_plain(text: &str) -> bool {
    let mut written = Vec::new();
    let value = serde_json::from_str::<Value>(text);
    let write = |value: Value| value.serialize(&mut Serializer::with_formatter(&mut written, Spaced));
    value.and_then(write).is_ok() && text.is_ascii() && written == text.as_bytes()
}

struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        to.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        to.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        to.write_all(b": ")
    }
}

#[test]
fn every_difference_of_the_table_is_told() {
    let told = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/differences.md")).unwrap();
    for row in rows() {
        let differs = row.cells.iter().any(|cell| cell.len() > 1);
        assert_eq!(differs, row.difference.is_some(), "{:?}", row.paths);
        let named = |name: &str| told.contains(&format!("\n| {name} |"));
        assert!(row.difference.is_none_or(named), "docs/differences.md has no row {:?}", row.difference);
    }
}
