//! A proxy that speaks Toxiproxy's HTTP API.
