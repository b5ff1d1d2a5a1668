//! The real client against real etcd servers that stop, die, forget tokens, and want certificates.
//!
//! No test relies on how quick a machine is, but for one thing: a call keeps its budget (and a second of grace).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod support;

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use etcd_client::PermissionType;
use nix::sys::signal::Signal;
use regent_core::cluster::Initialize;
use regent_core::units::{LeaseId, MemberName, Revision};
use regent_dcs::etcd::{Credentials, EtcdDcs, EtcdSettings, SettingsError, TlsFiles};
use regent_dcs::{Dcs, DcsError, Write, Written};
use tokio::time::{Instant, timeout};

use support::{LONG, Server, cluster, cluster_with, connected, settings};

const BUDGET: Duration = Duration::from_secs(2);
const GRACE: Duration = Duration::from_secs(1);

fn member(lease: LeaseId) -> Write {
    Write::PutMember { name: MemberName::from("n1"), json: "{}".to_owned(), lease }
}

/// One of each call, with how long it took and how it ended.
async fn every_call(dcs: &EtcdDcs, lease: LeaseId) -> Vec<(&'static str, Duration, Result<(), DcsError>)> {
    let mut calls = Vec::new();
    macro_rules! call {
        ($name:literal, $call:expr) => {{
            let start = Instant::now();
            let result = $call.await.map(drop);
            calls.push(($name, start.elapsed(), result));
        }};
    }
    call!("keep_alive", dcs.keep_alive(lease, BUDGET));
    call!("write", dcs.write(member(lease), BUDGET));
    call!("read", dcs.read(BUDGET));
    call!("grant", dcs.grant(Duration::from_secs(5), BUDGET));
    call!("revoke", dcs.revoke(LeaseId(42), BUDGET));
    for (name, took, result) in &calls {
        assert!(*took < BUDGET + GRACE, "{name} took {took:?}: {result:?}");
    }
    calls
}

/// Calls until all calls are answered, and quickly: nobody is waited for in vain any more.
async fn becomes_quick(dcs: &EtcdDcs, lease: LeaseId) {
    let end = Instant::now() + LONG;
    loop {
        let calls = every_call(dcs, lease).await;
        if calls.iter().all(|(_, took, result)| result.is_ok() && *took < Duration::from_millis(250)) {
            return;
        }
        assert!(Instant::now() < end, "still slow: {calls:?}");
    }
}

async fn all_unreachable(dcs: &EtcdDcs, lease: LeaseId) {
    for (name, _, result) in every_call(dcs, lease).await {
        assert!(matches!(result, Err(DcsError::Unreachable(_))), "{name}: {result:?}");
    }
}

async fn lease(dcs: &EtcdDcs) -> LeaseId {
    dcs.grant(Duration::from_secs(120), LONG).await.unwrap().id
}

#[tokio::test]
async fn a_stopped_member_is_soon_left_alone() {
    let servers = cluster(3);
    let dcs = connected(settings(&servers)).await;
    let lease = lease(&dcs).await;
    for server in &servers {
        server.signal(Signal::SIGSTOP);
        becomes_quick(&dcs, lease).await;
        server.signal(Signal::SIGCONT);
        becomes_quick(&dcs, lease).await;
    }
}

#[tokio::test]
async fn a_killed_member_is_soon_left_alone() {
    let mut servers = cluster(3);
    let dcs = connected(settings(&servers)).await;
    let lease = lease(&dcs).await;
    for server in &mut servers {
        server.kill();
        becomes_quick(&dcs, lease).await;
        server.start_again();
        becomes_quick(&dcs, lease).await;
    }
}

#[tokio::test]
async fn without_a_quorum_nothing_is_answered_and_with_it_everything_is() {
    let mut servers = cluster(3);
    let dcs = connected(settings(&servers)).await;
    let lease = lease(&dcs).await;
    for server in &mut servers[1..] {
        server.kill();
    }
    // The last one answers for up to an election timeout what needs no quorum.
    let end = Instant::now() + LONG;
    while dcs.keep_alive(lease, BUDGET).await.is_ok() {
        assert!(Instant::now() < end, "a member without a quorum still renews");
    }
    all_unreachable(&dcs, lease).await;
    servers[0].kill();
    all_unreachable(&dcs, lease).await;
    for server in &mut servers {
        server.start_again();
    }
    becomes_quick(&dcs, lease).await;
}

#[tokio::test]
async fn a_handle_on_nobody_waits_for_somebody() {
    let mut servers = cluster(1);
    servers[0].kill();
    let dcs = EtcdDcs::connect(settings(&servers)).await.expect("etcd is down, which is no reason to fail");
    all_unreachable(&dcs, LeaseId(1)).await;
    servers[0].start_again();
    let lease = lease(&dcs).await;
    becomes_quick(&dcs, lease).await;
}

/// A listener that never answers: like a stopped process, or a host that hangs after the handshake.
fn mute() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

fn preceded_by(url: String, servers: &[Server]) -> EtcdSettings {
    let settings = settings(servers);
    let endpoints = [vec![url], settings.endpoints].concat();
    EtcdSettings { endpoints, ..settings }
}

#[tokio::test]
async fn a_write_whose_answer_is_missing_goes_nowhere_else() {
    let servers = cluster(1);
    connected(settings(&servers)).await;
    let (_listener, url) = mute();
    let dcs = EtcdDcs::connect(preceded_by(url, &servers)).await.unwrap();
    let write = Write::Identify { id: "7710414511323698082".parse().unwrap(), seen: None };
    let start = Instant::now();
    let answer = dcs.write(write.clone(), BUDGET).await;
    assert!(matches!(answer, Err(DcsError::Unreachable(_))), "{answer:?}");
    assert!(start.elapsed() < BUDGET + GRACE);
    assert_eq!(dcs.read(LONG).await.unwrap().view.initialize, Initialize::Absent);
    assert!(matches!(dcs.write(write, BUDGET).await, Ok(Written::Done(_))), "the next one asks the other endpoint");
}

#[tokio::test]
async fn a_write_that_was_never_sent_goes_elsewhere() {
    let servers = cluster(1);
    connected(settings(&servers)).await;
    let (listener, url) = mute();
    drop(listener);
    let dcs = EtcdDcs::connect(preceded_by(url, &servers)).await.unwrap();
    let write = Write::Identify { id: "7710414511323698082".parse().unwrap(), seen: None };
    assert!(matches!(dcs.write(write, BUDGET).await, Ok(Written::Done(_))));
}

#[tokio::test]
async fn a_mute_endpoint_costs_a_read_no_more_than_a_hedge() {
    let servers = cluster(1);
    connected(settings(&servers)).await;
    let (_listener, url) = mute();
    let dcs = EtcdDcs::connect(preceded_by(url, &servers)).await.unwrap();
    dcs.read(BUDGET).await.unwrap();
    let lease = dcs.grant(Duration::from_secs(30), BUDGET).await.unwrap().id;
    becomes_quick(&dcs, lease).await;
}

#[tokio::test]
async fn a_watch_on_a_stopped_or_dead_etcd_returns_but_not_at_once() {
    let mut servers = cluster(1);
    let dcs = connected(settings(&servers)).await;
    let since = dcs.read(LONG).await.unwrap().view.revision;
    {
        let watch = dcs.changed(since);
        tokio::pin!(watch);
        // Let it open: it hears signs of life for longer than it bears silence.
        timeout(Duration::from_secs(4), &mut watch).await.expect_err("nothing has changed");
        servers[0].signal(Signal::SIGSTOP);
        timeout(LONG, watch).await.expect("a watch that fell silent returns");
    }
    servers[0].kill();
    for _ in 0..3 {
        let start = Instant::now();
        timeout(LONG, dcs.changed(since)).await.expect("a watch that cannot be opened returns");
        assert!(start.elapsed() >= Duration::from_millis(250), "no busy loop");
    }
}

#[tokio::test]
async fn a_watch_from_before_a_compaction_returns_but_not_at_once() {
    let servers = cluster(1);
    let dcs = connected(settings(&servers)).await;
    let mut raw = etcd_client::Client::connect([&servers[0].url], None).await.unwrap();
    let mut last = 0;
    for _ in 0..3 {
        last = raw.put("/elsewhere", "", None).await.unwrap().header().unwrap().revision();
    }
    raw.compact(last, None).await.unwrap();
    let start = Instant::now();
    timeout(LONG, dcs.changed(Revision(1))).await.expect("it cannot know what it missed");
    assert!(start.elapsed() >= Duration::from_millis(250));
    timeout(Duration::from_secs(1), dcs.changed(Revision(last))).await.expect_err("nothing has changed since");
}

// Authentication

const PASSWORD: &str = "right-horse";

fn user(name: &str, password: &str) -> Option<Credentials> {
    Some(Credentials { username: name.to_owned(), password: password.to_owned() })
}

/// Users `root`, `regent` (may do all under `/service/`) and `stranger` (may do nothing).
async fn enable_authentication(server: &Server) {
    let mut raw = etcd_client::Client::connect([&server.url], None).await.unwrap();
    raw.role_add("regent").await.unwrap();
    let permission = etcd_client::Permission::new(PermissionType::Readwrite, "/service/").with_prefix();
    raw.role_grant_permission("regent", permission).await.unwrap();
    for name in ["root", "regent", "stranger"] {
        raw.user_add(name, PASSWORD, None).await.unwrap();
    }
    raw.role_add("root").await.unwrap();
    raw.user_grant_role("root", "root").await.unwrap();
    raw.user_grant_role("regent", "regent").await.unwrap();
    raw.auth_enable().await.unwrap();
}

#[tokio::test]
async fn a_forgotten_token_is_replaced() {
    let mut servers = cluster(1);
    let settings = EtcdSettings { credentials: user("regent", PASSWORD), ..settings(&servers) };
    // Credentials do no harm while nobody asks for them, and help as soon as somebody does.
    let dcs = connected(settings.clone()).await;
    let lease = lease(&dcs).await;
    enable_authentication(&servers[0]).await;
    dcs.write(member(lease), LONG).await.unwrap();
    dcs.keep_alive(lease, LONG).await.unwrap();

    // Simple tokens die with the process.
    servers[0].start_again();
    dcs.read(LONG).await.unwrap();
    dcs.keep_alive(lease, LONG).await.unwrap();
    assert_eq!(dcs.read(LONG).await.unwrap().members.len(), 1);
    servers[0].start_again();
    dcs.keep_alive(lease, LONG).await.unwrap();
    servers[0].start_again();
    // Not applied when the token was refused: a write may go on by itself. While etcd starts it may not answer at all.
    let end = Instant::now() + LONG;
    while let Err(error) = dcs.write(member(lease), BUDGET).await {
        assert!(matches!(error, DcsError::Unreachable(_)), "{error}");
        assert!(Instant::now() < end);
    }
    let since = dcs.read(LONG).await.unwrap().view.revision;
    timeout(Duration::from_secs(3), dcs.changed(since)).await.expect_err("the watch has a token too");
}

#[tokio::test]
async fn who_may_not_is_told_so() {
    let servers = cluster(1);
    connected(settings(&servers)).await;
    enable_authentication(&servers[0]).await;
    let as_user = |credentials| EtcdDcs::connect(EtcdSettings { credentials, ..settings(&servers) });

    let nobody = as_user(None).await.unwrap().read(LONG).await;
    assert!(matches!(&nobody, Err(DcsError::Rejected(text)) if text.contains("user name is empty")), "{nobody:?}");
    let wrong = as_user(user("regent", "wrong-horse")).await.unwrap().read(LONG).await;
    assert!(matches!(wrong, Err(DcsError::Authentication(_))), "{wrong:?}");
    let stranger = as_user(user("stranger", PASSWORD)).await.unwrap();
    let read = stranger.read(LONG).await;
    assert!(matches!(&read, Err(DcsError::Rejected(text)) if text.contains("permission denied")), "{read:?}");
    let lease = stranger.grant(Duration::from_secs(5), LONG).await.unwrap().id;
    let write = stranger.write(member(lease), LONG).await;
    assert!(matches!(&write, Err(DcsError::Rejected(text)) if text.contains("permission denied")), "{write:?}");

    let shown = format!("{:?}", EtcdSettings { credentials: user("regent", PASSWORD), ..settings(&servers) });
    assert!(shown.contains("regent") && !shown.contains(PASSWORD), "{shown}");
}

// TLS

fn openssl(dir: &Path, arguments: &str) {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A CA (`ca.pem`), and a certificate for servers and one for clients (`server.pem`, `client.pem`, keys in `*.key`).
fn certificates(dir: &Path, san: &str) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(dir, &format!("req -x509 {key} -subj /CN=ca -days 2 -keyout ca.key -out ca.pem"));
    std::fs::write(dir.join("ext"), format!("subjectAltName={san}\nbasicConstraints=CA:FALSE\n")).unwrap();
    for name in ["server", "client"] {
        openssl(dir, &format!("req {key} -subj /CN={name} -keyout {name}.key -out {name}.csr"));
        let sign = "-CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext";
        openssl(dir, &format!("x509 -req -in {name}.csr {sign} -out {name}.pem"));
    }
}

/// An etcd that speaks TLS and wants client certificates.
fn tls_server(cert: &str, ca: &str, make: impl Fn(&Path)) -> Vec<Server> {
    cluster_with(1, "https", |dir| {
        make(dir);
        let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        let files = [("--cert-file", format!("{cert}.pem")), ("--key-file", format!("{cert}.key"))];
        let files = files.into_iter().chain([("--trusted-ca-file", ca.to_owned())]);
        let mut arguments: Vec<String> = files.flat_map(|(flag, name)| [flag.to_owned(), path(&name)]).collect();
        arguments.push("--client-cert-auth".to_owned());
        arguments
    })
}

fn tls(server: &[Server], ca: Option<&Path>, cert: Option<&str>) -> EtcdSettings {
    let file = |name: String| server[0].dir().join(name);
    let tls = TlsFiles {
        ca: ca.map(Path::to_owned),
        cert: cert.map(|name| file(format!("{name}.pem"))),
        key: cert.map(|name| file(format!("{name}.key"))),
    };
    EtcdSettings { tls, ..settings(server) }
}

async fn refused_tls(settings: EtcdSettings, why: &str) {
    let answer = EtcdDcs::connect(settings).await.unwrap().read(BUDGET).await;
    assert!(matches!(&answer, Err(DcsError::Unreachable(text)) if text.contains(why)), "{why}: {answer:?}");
}

#[tokio::test]
async fn tls_checks_both_sides() {
    let servers = tls_server("server", "ca.pem", |dir| certificates(dir, "IP:127.0.0.1"));
    let ca = servers[0].dir().join("ca.pem");
    let dcs = connected(tls(&servers, Some(&ca), Some("client"))).await;
    let lease = lease(&dcs).await;
    becomes_quick(&dcs, lease).await;
    // As with the peer, nobody is checked without a CA file.
    connected(tls(&servers, None, Some("client"))).await;

    refused_tls(tls(&servers, Some(&ca), None), "").await;
    let stranger = tempfile::TempDir::new().unwrap();
    certificates(stranger.path(), "IP:127.0.0.1");
    refused_tls(tls(&servers, Some(&stranger.path().join("ca.pem")), Some("client")), "invalid peer certificate").await;
}

#[tokio::test]
async fn tls_checks_the_name() {
    let servers = tls_server("server", "ca.pem", |dir| certificates(dir, "IP:127.0.0.9"));
    let unchecked = connected(tls(&servers, None, Some("client"))).await;
    unchecked.read(BUDGET).await.unwrap();
    let ca = servers[0].dir().join("ca.pem");
    refused_tls(tls(&servers, Some(&ca), Some("client")), "not valid for name").await;
}

/// One self-signed certificate as server, client and CA, as `openssl req -x509` makes it.
fn one_for_all(dir: &Path, san: &str) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    let extensions = format!("-addext subjectAltName={san} -addext basicConstraints=critical,CA:TRUE");
    openssl(dir, &format!("req -x509 {key} -subj /CN=all -days 2 {extensions} -keyout all.key -out all.pem"));
}

#[tokio::test]
async fn one_self_signed_certificate_may_be_all_at_once() {
    let servers = tls_server("all", "all.pem", |dir| one_for_all(dir, "IP:127.0.0.1"));
    let ca = servers[0].dir().join("all.pem");
    let dcs = connected(tls(&servers, Some(&ca), Some("all"))).await;
    dcs.read(BUDGET).await.unwrap();
    // Trusted is this very certificate, not any of its kind.
    let other = tempfile::TempDir::new().unwrap();
    one_for_all(other.path(), "IP:127.0.0.1");
    refused_tls(tls(&servers, Some(&other.path().join("all.pem")), Some("all")), "").await;
}

#[tokio::test]
async fn the_name_counts_even_in_a_certificate_that_is_trusted_itself() {
    let servers = tls_server("all", "all.pem", |dir| one_for_all(dir, "IP:127.0.0.9"));
    connected(tls(&servers, None, Some("all"))).await;
    let ca = servers[0].dir().join("all.pem");
    refused_tls(tls(&servers, Some(&ca), Some("all")), "not valid for name").await;
}

// Settings

#[tokio::test]
async fn settings_that_cannot_work_are_refused_with_a_reason() {
    let with = |endpoints: &[&str], ca: Option<&str>| EtcdSettings {
        endpoints: endpoints.iter().map(|url| (*url).to_owned()).collect(),
        tls: TlsFiles { ca: ca.map(Into::into), ..TlsFiles::default() },
        ..settings(&[])
    };
    let error = async |settings| EtcdDcs::connect(settings).await.map(drop).unwrap_err();
    assert!(matches!(error(with(&[], None)).await, SettingsError::NoEndpoints));
    assert!(matches!(error(with(&["127.0.0.1:2379"], None)).await, SettingsError::Endpoint { .. }));
    assert!(matches!(error(with(&["ftp://h:1"], None)).await, SettingsError::Endpoint { .. }));
    assert!(matches!(error(with(&["https://h:1"], Some("/nowhere"))).await, SettingsError::File { .. }));
    assert!(matches!(error(with(&["https://h:1"], Some("/dev/null"))).await, SettingsError::Certificates { .. }));
}
