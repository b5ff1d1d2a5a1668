//! The REST API from outside: raw bytes over TCP, as load balancers, monitoring and other members speak to it.

#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "rest/support.rs"]
mod support;

#[path = "rest/calls.rs"]
mod calls;
#[path = "rest/config.rs"]
mod config;
#[path = "rest/described.rs"]
mod described;
#[path = "rest/documents.rs"]
mod documents;
#[path = "rest/events.rs"]
mod events;
#[path = "rest/health.rs"]
mod health;
#[path = "rest/hostile.rs"]
mod hostile;
#[path = "rest/operate.rs"]
mod operate;
#[path = "rest/operations.rs"]
mod operations;
#[path = "rest/peers.rs"]
mod peers;
#[path = "rest/requests.rs"]
mod requests;
#[path = "rest/secure.rs"]
mod secure;
#[path = "rest/ui.rs"]
mod ui;
#[path = "rest/wire.rs"]
mod wire;
