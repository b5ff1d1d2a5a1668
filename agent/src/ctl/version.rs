//! `version`: of this program, and of members by their REST API (cli.md 4.6).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use http::Method;
use regent_core::units::MemberName;
use serde_json::Value;

use super::rest::Rest;
use crate::api::CONTRACT_VERSION;

/// One member's time to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// The line of this program, by the name it was called. By the peer's it tells the level that it speaks, which playbooks read there
/// (cli-reference.md 19).
pub(super) fn own(called: Option<&OsStr>) -> String {
    match called.map(Path::new).and_then(Path::file_name) {
        Some(name) if name == "patronictl" => format!("patronictl version {CONTRACT_VERSION}\n"),
        _ => format!("regentctl version {}\n", env!("CARGO_PKG_VERSION")),
    }
}

/// An empty line, and one for each member that has an address, all asked at the same time.
pub(super) async fn of_members(rest: &Rest, members: &BTreeMap<MemberName, Value>, only: &[String]) -> String {
    let asked = members.iter().filter(|(name, _)| only.is_empty() || only.contains(&name.0));
    let mut answers = tokio::task::JoinSet::new();
    for (name, json) in asked {
        let Some(url) = json.get("api_url").and_then(Value::as_str) else { continue };
        let (rest, name, url) = (rest.clone(), name.0.clone(), url.to_owned());
        answers.spawn(async move {
            let answer = status(&rest, &url).await;
            (name, answer)
        });
    }
    let mut lines = Vec::new();
    while let Some(Ok((name, answer))) = answers.join_next().await {
        let line = match answer {
            Ok(status) => format!("{name}: {}", of_status(&status)),
            Err(why) => format!("{name}: failed to get version: {why}"),
        };
        lines.push((name, line));
    }
    lines.sort();
    lines.into_iter().fold("\n".to_owned(), |text, (_, line)| text + &line + "\n")
}

/// `PRODUCT VERSION PostgreSQL X.Y`, from a status document.
fn of_status(status: &Value) -> String {
    let agent =
        status.get("patroni").and_then(|agent| agent.get("version")).and_then(Value::as_str).unwrap_or("unknown");
    let agent = format!("Patroni {agent}");
    match status.get("server_version").and_then(Value::as_u64) {
        Some(number) => format!("{agent} PostgreSQL {}", server_version(number)),
        None => agent,
    }
}

/// `150020` is 15.20.
fn server_version(number: u64) -> String {
    if number >= 100_000 {
        format!("{}.{}", number / 10_000, number % 10_000)
    } else {
        format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100)
    }
}

/// The status document; 503 has the same one: a replica or a stopped server answers so.
async fn status(rest: &Rest, url: &str) -> Result<Value, String> {
    let answer = rest.call(Method::GET, url, "/patroni", None, ANSWER).await?;
    serde_json::from_str(&answer.body).map_err(|_| "its answer is no JSON".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::config::CtlConfig;

    #[test]
    fn by_the_peers_name_it_tells_the_level_that_it_speaks() {
        for (called, want) in [
            (Some("/usr/bin/patronictl"), "patronictl version 4.1.5\n".to_owned()),
            (Some("regentctl"), format!("regentctl version {}\n", env!("CARGO_PKG_VERSION"))),
            (None, format!("regentctl version {}\n", env!("CARGO_PKG_VERSION"))),
        ] {
            assert_eq!(own(called.map(OsStr::new)), want, "{called:?}");
        }
    }

    #[test]
    fn versions_are_told_from_a_status() {
        let cases = [
            (json!({"server_version": 150_020, "patroni": {"version": "4.1.5"}}), "Patroni 4.1.5 PostgreSQL 15.20"),
            (json!({"server_version": 90_624, "patroni": {"version": "4.1.5"}}), "Patroni 4.1.5 PostgreSQL 9.6.24"),
            (json!({"patroni": {"version": "4.1.5"}}), "Patroni 4.1.5"),
        ];
        for (status, want) in cases {
            assert_eq!(of_status(&status), want);
        }
    }

    #[tokio::test]
    async fn members_are_asked_and_the_deaf_are_named() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let closed = {
            let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            gone.local_addr().unwrap().port()
        };
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1024];
            let read = stream.read(&mut request).await.unwrap();
            let body = r#"{"server_version":150020,"patroni":{"version":"4.1.5"}}"#;
            let answer = format!("HTTP/1.1 503 Service Unavailable\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request[..read]).lines().next().unwrap().to_owned()
        });
        let url = |port: u16| json!({"api_url": format!("http://127.0.0.1:{port}/patroni")});
        let members =
            BTreeMap::from([("pg1".into(), url(port)), ("pg2".into(), url(closed)), ("pg3".into(), json!({}))]);
        let text = of_members(&Rest::new(&CtlConfig::default()), &members, &[]).await;
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[..2], ["", "pg1: Patroni 4.1.5 PostgreSQL 15.20"]);
        assert!(lines[2].starts_with("pg2: failed to get version: "), "{text}");
        assert_eq!(lines.len(), 3);
        assert_eq!(server.await.unwrap(), "GET /patroni HTTP/1.1");
    }
}
