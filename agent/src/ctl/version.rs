//! `version`: of this program, and of members by their REST API (cli.md 4.6).

use std::collections::BTreeMap;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use regent_core::units::MemberName;
use serde_json::Value;

/// One member's time to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// No status is larger.
const LARGEST: usize = 1024 * 1024;

/// The line of this program.
pub(super) fn own() -> String {
    format!("regentctl version {}\n", env!("CARGO_PKG_VERSION"))
}

/// An empty line, and one for each member that has an address, all asked at the same time.
pub(super) async fn of_members(members: &BTreeMap<MemberName, Value>, only: &[String]) -> String {
    let asked = members.iter().filter(|(name, _)| only.is_empty() || only.contains(&name.0));
    let mut answers = tokio::task::JoinSet::new();
    for (name, json) in asked {
        let Some(url) = json.get("api_url").and_then(Value::as_str) else { continue };
        let (name, url) = (name.0.clone(), url.to_owned());
        answers.spawn(async move {
            let answer = tokio::time::timeout(ANSWER, status(&url)).await;
            (name, answer.unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER.as_secs()))))
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

/// GET of the status document.
async fn status(url: &str) -> Result<Value, String> {
    let uri: http::Uri = url.parse().map_err(|_| "its address is no URL".to_owned())?;
    if uri.scheme_str() != Some("http") {
        return Err("its REST API wants https, which is not supported yet".to_owned());
    }
    let (Some(host), port) = (uri.host(), uri.port_u16().unwrap_or(80)) else {
        return Err("its address has no host".to_owned());
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let stream = tokio::net::TcpStream::connect((bare, port)).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    // Ends with the answer, or with the task that waits for it.
    let mut driver = tokio::task::JoinSet::new();
    driver.spawn(connection);
    let request = http::Request::get("/patroni")
        .header(http::header::HOST, format!("{host}:{port}"))
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    // 503 has the same document: a replica or a stopped server answers so.
    let body = Limited::new(response.into_body(), LARGEST).collect().await.map_err(|error| error.to_string())?;
    serde_json::from_slice(&body.to_bytes()).map_err(|_| "its answer is no JSON".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

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
        let text = of_members(&members, &[]).await;
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[..2], ["", "pg1: Patroni 4.1.5 PostgreSQL 15.20"]);
        assert!(lines[2].starts_with("pg2: failed to get version: "), "{text}");
        assert_eq!(lines.len(), 3);
        assert_eq!(server.await.unwrap(), "GET /patroni HTTP/1.1");
    }
}
