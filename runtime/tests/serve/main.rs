//! The real server as its users and its enemies meet it: a process over loopback.
#![expect(clippy::unwrap_used, reason = "whatever fails here fails the test")]

mod answers;
mod clients;
mod lifecycle;
mod load;
mod refusals;
mod server;
mod starts;
