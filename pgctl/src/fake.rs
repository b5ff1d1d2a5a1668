//! The twin.
