//! The real server as its users and its enemies meet it: a process over loopback.
#![expect(clippy::unwrap_used, reason = "whatever fails here fails the test")]

mod admin;
mod admission;
mod answers;
mod beside;
mod candidates;
mod clients;
mod cors;
mod embeddings;
mod guides;
mod holds;
mod hosts;
mod ids;
mod kills;
mod lifecycle;
mod load;
mod local;
mod metrics;
mod models;
mod openapi;
mod page;
mod placement;
mod prefixes;
mod rates;
mod refusals;
mod reloads;
mod responses;
mod scores;
mod secured;
mod server;
mod starts;
mod stats;
mod swaps;
mod tls;
mod tools;
mod traces;
