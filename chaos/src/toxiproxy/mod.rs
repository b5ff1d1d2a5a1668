//! Links that can be cut, slowed and spoilt, by Toxiproxy's HTTP API (2.4).
//!
//! ```text
//!   client ──► listen │ lane upstream:   toxics … │──► upstream
//!          ◄──        │ lane downstream: toxics … │◄──
//!                        ▲ changed at any time
//!   Toxiproxy (client) ──┴── HTTP: a real server at TOXIPROXY_URL, or the one in here
//! ```
//!
//! [`Toxiproxy`] is the blocking client that the rig uses. [`serve`] is the server, which speaks the calls that Toxiproxy 2.4
//! has, with its answers, so that Toxiproxy's own clients may be used on it as well. Two things differ on purpose: a disabled proxy keeps
//! its port to itself (bound, but not listening), so that it can always be enabled again; and `reset_peer` resets connections
//! that were open before it, too.

mod api;
mod client;
mod lane;
mod proxy;
#[cfg(test)]
mod tests;
mod toxics;

pub use api::serve;
pub use client::Toxiproxy;
pub use toxics::{Stream, Toxic, ToxicKind};
