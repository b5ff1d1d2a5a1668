//! The agent as a program, around a [`Judge`].

use std::cell::RefCell;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::agent::{Agent, Channels, Command, Judge, Network, Seams};
use crate::api;
use crate::cli::{self, Cli};
use crate::clock::{BootClock, Clock, boot_time};
use crate::config::{self, LocalConfig, Sources};
use crate::ctl::ask_secretly;
use crate::journal::Journal;
use crate::layers::{Effective, Files, Layers};
use crate::logging::Log;
use crate::{generate, guardian, init, lease, peers, report, watchdog};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Parser;
use regent_core::contract::contract;
use regent_core::failsafe::Notice;
use regent_core::fence::Fence;
use regent_core::peers::{PeerReply, Question};
use regent_core::plan::Exit;
use regent_core::snapshot::LeaseView;
use regent_core::units::MemberName;
use regent_dcs::Dcs;
use regent_dcs::etcd::{EtcdDcs, EtcdSettings};
use regent_pgctl::keep_back;
use regent_pgctl::real::Server;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

/// All of the program `regent`: arguments, configuration, threads, and the end of it.
#[must_use]
pub fn main(judge: Judge) -> ExitCode {
    if let Some(status) = guardian::as_guardian() {
        return status;
    }
    let cli = Cli::parse();
    if let Some(status) = init::as_process_one() {
        return status;
    }
    match run(&cli, judge) {
        Ok(status) => status,
        Err(problem) => {
            complain(&problem);
            ExitCode::FAILURE
        }
    }
}

/// DNS that names no member of etcd is asked again after this long (config.md 2.4).
const FIND_AGAIN: Duration = Duration::from_secs(5);
/// How long a write that a client of the REST API waits for may take.
const WRITE_PATIENCE: Duration = Duration::from_secs(5);

/// Errors of the start go to stderr as they are, also when the log goes elsewhere.
#[expect(clippy::print_stderr, reason = "the one place that speaks before, or without, a log")]
fn complain(problem: &str) {
    eprintln!("regent: {problem}");
}

fn run(cli: &Cli, judge: Judge) -> Result<ExitCode, String> {
    if let Some(status) = answer(cli)? {
        return Ok(status);
    }
    keep_memory_private();
    let sources = cli.sources();
    let mut local = LocalConfig::load(&sources).map_err(|error| error.to_string())?;
    if nix::unistd::geteuid().is_root() {
        return Err(
            "PostgreSQL refuses to run as root, and so does Regent: start it as the owner of the data directory \
                    (postgres)"
                .to_owned(),
        );
    }
    keep_back(local.used_environment.iter().cloned());
    let log = Log::start(&local.log).map_err(|error| error.to_string())?;
    if let Err(why) = short_runtime()?.block_on(local.ask_server()) {
        tracing::warn!("{why}");
    }
    let _ = rustls::crypto::ring::default_provider().install_default(); // Only the first of a process counts.
    raise_descriptor_limit();
    let status = serve(sources, local, log.clone(), judge);
    log.flush(Duration::from_secs(1));
    status
}

/// Passwords are in it: no core file of the agent, and no debugger but root's. PostgreSQL's core files stay (the attribute ends
/// with exec; Linux manual, `PR_SET_DUMPABLE`).
fn keep_memory_private() {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    // Not to be had: the agent works all the same.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// What only asks about a configuration, and starts nothing.
fn answer(cli: &Cli) -> Result<Option<ExitCode>, String> {
    let sources = cli.sources();
    let say = |text: &str| {
        let done = std::io::stdout().write_all(text.as_bytes()).and_then(|()| std::io::stdout().flush());
        done.map_err(|error| format!("cannot write the output: {error}"))
    };
    if cli.generate_sample_config {
        let sample = config::sample(&sources);
        match &cli.config {
            Some(path) => write_new(path, &sample)?,
            None => say(&sample)?,
        }
        return Ok(Some(ExitCode::SUCCESS));
    }
    if cli.generate_config {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let ask = async || ask_secretly("Please enter the user password").await.map_err(|error| error.line());
        let made = short_runtime()?.block_on(generate::config(cli.dsn.as_deref(), variable, ask))?;
        match &cli.config {
            Some(path) => write_new(path, &made)?,
            None => say(&made)?,
        }
        return Ok(Some(ExitCode::SUCCESS));
    }
    let mut usable = true;
    if cli.validate_config {
        let found;
        (found, usable) = short_runtime()?.block_on(cli::validate(&sources, !cli.ignore_listen_port));
        // There is nobody left to tell that stderr is closed.
        let _ = std::io::stderr().write_all(found.as_bytes());
    }
    if cli.print_config && usable {
        say(&cli::print(&sources)?)?;
    }
    let asked = cli.validate_config || cli.print_config;
    Ok(asked.then_some(if usable { ExitCode::SUCCESS } else { ExitCode::FAILURE }))
}

/// Writes a file that is not there yet, and the directories above it.
fn write_new(path: &std::path::Path, text: &str) -> Result<(), String> {
    let write = || {
        if let Some(above) = path.parent() {
            std::fs::create_dir_all(above)?;
        }
        // It may hold a password.
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(text.as_bytes())
    };
    write().map_err(|error| format!("cannot write {}: {error}; name a file that does not exist", path.display()))
}

/// For a few questions before the agent runs.
fn short_runtime() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| format!("cannot start: {error}"))
}

/// Waits until DNS names etcd's members, where it is to name them.
async fn find_etcd(local: &mut LocalConfig) {
    while let Err(why) = local.etcd.find().await {
        tracing::error!("waiting on etcd: {why}");
        tokio::time::sleep(FIND_AGAIN).await;
    }
}

/// REST on its own thread, the lease on its own thread, the loop on this one.
fn serve(sources: Sources, mut local: LocalConfig, log: Log, judge: Judge) -> Result<ExitCode, String> {
    short_runtime()?.block_on(find_etcd(&mut local));
    let etcd = local.etcd.settings(&local.store_path);
    peers::introduce(&local.ctl)?;
    let (rest, guarded) = (local.restapi.clone(), local.guardian);
    let settings = api_settings(&local)?;
    let layers = Files::new(sources, local, log);
    let effective = layers.effective(None)?;
    tracing::info!("if the primary dies: {}", contract(&effective.core, None).sentence);
    let clock = BootClock;
    let (status, published) = watch::channel(Arc::new(report::first_status(&effective, clock.now())));
    let (claims, claimed) = watch::channel(None);
    let (lease_sender, lease_view) = watch::channel(LeaseView::default());
    let (commands, inbox) = mpsc::channel(16);
    let (api_commands, mut asked) = mpsc::channel(16);
    let failsafe = crate::failsafe::Door::default();
    let journal = Journal::begun_at(clock.wall());
    let memory = api::Sources { status: published, failsafe: failsafe.clone(), journal: journal.clone() };
    let server = api::spawn(settings, memory, Arc::new(boot_time), api_commands).map_err(|error| error.to_string())?;
    let network = Http { authorization: Rc::new(RefCell::new(authorization(&rest))) };
    let credentials = Rc::clone(&network.authorization);
    let server = Rc::new(server);
    let api = Rc::clone(&server);
    let layers = layers.applied_by(move |newer| {
        api.set_policy(api_settings(newer)?.policy);
        *credentials.borrow_mut() = authorization(&newer.restapi);
        peers::introduce(&newer.ctl)?;
        keep_back(newer.used_environment.iter().cloned());
        if newer.restapi.listen != rest.listen {
            tracing::warn!("restapi.listen changed: without effect until Regent is restarted");
        }
        Ok(())
    });

    let lease_etcd = etcd.clone();
    std::thread::Builder::new()
        .name("lease".to_owned())
        .spawn(move || keep_lease(lease_etcd, claimed, lease_sender))
        .map_err(|error| format!("cannot start the lease thread: {error}"))?;

    let guardian =
        if guarded { Some(guard(&effective.postgres.data_dir, lease_view.clone())?) } else { unguarded(&effective) };
    let watchdog = watch(effective.watchdog.clone(), lease_view.clone())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
    let exit = tokio::task::LocalSet::new().block_on(&runtime, async move {
        let dcs = EtcdDcs::connect(etcd).await.map_err(|error| error.to_string())?;
        let writer = dcs.clone();
        let seams = Seams { dcs, postgres: Server::new(effective.postgres.clone()), clock, network };
        let lease = lease_view;
        let channels = Channels { commands: inbox, claims, lease, guardian, watchdog, failsafe, status, journal };
        let agent = Agent::new(seams, channels, Box::new(layers), judge)?;
        tokio::task::spawn_local(signals(commands.clone())?);
        tokio::task::spawn_local(async move {
            while let Some(command) = asked.recv().await {
                match command {
                    // The loop is gone only when the process ends.
                    api::Command::Loop(command) => drop(commands.send(command).await),
                    // Nobody waits any more when the client has gone.
                    api::Command::Read { reply } => drop(reply.send(writer.read(WRITE_PATIENCE).await)),
                    api::Command::Write { write, reply } => drop(reply.send(writer.write(write, WRITE_PATIENCE).await)),
                }
            }
        });
        notify(sd_notify::NotifyState::Ready);
        Ok::<Exit, String>(agent.run().await)
    })?;
    drop(server); // It answered to the last.
    Ok(match exit {
        Exit::Done => ExitCode::SUCCESS,
        Exit::Failed => ExitCode::FAILURE,
    })
}

/// Feeds the guardian on a thread of its own: nothing that the loop or etcd does holds up a new deadline.
fn guard(data_dir: &std::path::Path, leases: watch::Receiver<LeaseView>) -> Result<guardian::Channels, String> {
    let text = |error: std::io::Error| format!("the guardian cannot be fed: {error}");
    let client = guardian::Client::of(data_dir).map_err(text)?;
    let (fences, orders) = watch::channel(Fence::Keep);
    let (state, view) = watch::channel(guardian::View::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(text)?;
    let feed = move || runtime.block_on(guardian::feed(client, BootClock, orders, leases, state));
    std::thread::Builder::new().name("guardian".to_owned()).spawn(feed).map_err(text)?;
    Ok(guardian::Channels { fences, view })
}

/// On a thread of its own, as a driver may block.
fn watch(settings: watchdog::Settings, leases: watch::Receiver<LeaseView>) -> Result<watchdog::Channels, String> {
    let text = |error: std::io::Error| format!("the watchdog cannot be fed: {error}");
    let (orders, heard) = watch::channel(watchdog::Order { fence: Fence::Keep, settings });
    let (sender, state) = watch::channel(watchdog::State::default());
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(text)?;
    let feed = move || runtime.block_on(watchdog::feed(BootClock, heard, leases, sender));
    std::thread::Builder::new().name("watchdog".to_owned()).spawn(feed).map_err(text)?;
    Ok(watchdog::Channels { orders, state })
}

/// The configuration wants no guardian: none must be left that would kill the server at a deadline that nobody moves.
fn unguarded(effective: &Effective) -> Option<guardian::Channels> {
    tracing::warn!(
        "regent.guardian is off: if this agent is killed or freezes, nobody stops PostgreSQL at the lease's end"
    );
    if let Err(error) = guardian::dismiss(&effective.postgres.data_dir) {
        tracing::error!("the guardian of an earlier start may kill PostgreSQL at the lease's end: {error}");
    }
    None
}

fn api_settings(local: &LocalConfig) -> Result<api::Settings, String> {
    let rest = &local.restapi;
    let host = (!rest.listen.host.is_empty() && rest.listen.host != "*").then(|| rest.listen.host.clone());
    let mut settings = api::Settings::at(api::Listen { host, port: rest.listen.port });
    settings.policy.credentials = rest.authentication.as_ref().map(|basic| api::Credentials {
        username: basic.username.clone(),
        password: basic.password.expose().to_owned(),
    });
    settings.policy.config = Some(Arc::new(local.clone()));
    settings.policy.server_tokens = match rest.server_tokens.as_str() {
        "minimal" => api::ServerTokens::Minimal,
        "productonly" => api::ServerTokens::ProductOnly,
        _ => api::ServerTokens::Original,
    };
    settings.policy.tls = api::Tls::load(rest)?;
    settings.policy.allow =
        api::AllowList { entries: rest.allowlist.clone(), include_members: rest.allowlist_include_members };
    let secure = rest.https_extra_headers.iter().filter(|_| settings.policy.tls.is_some());
    for (name, value) in rest.http_extra_headers.iter().chain(secure) {
        let header = (name.parse(), value.parse());
        let (Ok(name), Ok(value)) = header else {
            return Err(format!("the extra headers of restapi: {name:?} is not a header; remove or correct it"));
        };
        settings.policy.extra_headers.push((name, value));
    }
    Ok(settings)
}

fn keep_lease(etcd: EtcdSettings, claims: watch::Receiver<Option<lease::Claim>>, state: watch::Sender<LeaseView>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let kept = runtime.map_err(|error| error.to_string()).and_then(|runtime| {
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let dcs = EtcdDcs::connect(etcd).await.map_err(|error| error.to_string())?;
            lease::keep(dcs, BootClock, claims, state).await;
            Ok(())
        })
    });
    if let Err(error) = kept {
        tracing::error!("the lease cannot be kept: {error}");
    }
}

/// SIGTERM and SIGINT stop, SIGHUP reloads; nothing else is handled (config.md 11.2).
fn signals(commands: mpsc::Sender<Command>) -> Result<impl Future<Output = ()>, String> {
    let listen = |kind| signal(kind).map_err(|error| format!("cannot handle signals: {error}"));
    let mut term = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut hangup = listen(SignalKind::hangup())?;
    Ok(async move {
        loop {
            let command = tokio::select! {
                _ = term.recv() => Command::Stop,
                _ = interrupt.recv() => Command::Stop,
                _ = hangup.recv() => Command::Reload { reply: None },
            };
            match &command {
                Command::Stop => {
                    tracing::info!("ordered to stop");
                    notify(sd_notify::NotifyState::Stopping);
                }
                Command::Reload { .. } => {
                    let now = boot_time().0.as_micros();
                    let _ = sd_notify::notify(&[
                        sd_notify::NotifyState::Reloading,
                        sd_notify::NotifyState::MonotonicUsec(i128::try_from(now).unwrap_or(0)),
                    ]);
                    notify(sd_notify::NotifyState::Ready);
                }
                Command::Request { .. } | Command::Unschedule { .. } => {}
            }
            if commands.send(command).await.is_err() {
                return;
            }
        }
    })
}

/// Tells systemd, where there is one.
fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!("systemd was not told: {error}");
    }
}

/// Health checks must not run out of descriptors before anything else does.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
    {
        tracing::debug!("the limit of open files stays as it is: {error}");
    }
}

/// How members introduce themselves to each other: one `restapi.authentication` is meant for all of a cluster (rest-api.md 20).
fn authorization(rest: &crate::config::RestConfig) -> Option<http::HeaderValue> {
    let basic = rest.authentication.as_ref()?;
    let text = STANDARD.encode(format!("{}:{}", basic.username, basic.password.expose()));
    let mut value = http::HeaderValue::try_from(format!("Basic {text}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Members ask each other over HTTP.
#[derive(Clone)]
struct Http {
    authorization: Rc<RefCell<Option<http::HeaderValue>>>,
}

impl Network for Http {
    async fn ask(
        &self,
        whom: std::collections::BTreeMap<MemberName, Question>,
    ) -> std::collections::BTreeMap<MemberName, PeerReply> {
        peers::ask(whom).await
    }

    async fn confirm(
        &self,
        whom: std::collections::BTreeMap<MemberName, String>,
        notice: Notice,
        within: Duration,
    ) -> std::collections::BTreeMap<MemberName, bool> {
        let authorization = self.authorization.borrow().clone();
        peers::confirm(whom, &notice, authorization, within).await
    }

    async fn lives(&self, api_url: String, within: Duration) -> bool {
        peers::liveness(&api_url, within).await
    }
}
