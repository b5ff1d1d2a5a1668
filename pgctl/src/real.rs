//! The controller of a real server.
