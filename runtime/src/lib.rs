//! The serving runtime of bitnetd: models, the forward pass, shards, and the server around them.
#![deny(unsafe_code)]

pub mod cli;
pub mod config;
pub mod crossval;
pub mod engine;
pub mod executor;
pub mod falls;
pub mod forward;
pub mod futex;
pub mod gpu;
pub mod guide;
pub mod kv;
pub mod listen;
pub mod local;
pub mod log;
pub mod mailbox;
pub mod metrics;
pub mod model;
pub mod otlp;
pub mod probe;
pub mod receipts;
pub mod registry;
pub mod replay;
pub mod sampler;
pub mod schedule;
pub mod selftest;
mod seqlock;
pub mod server;
pub mod shard;
pub mod shared;
pub mod signals;
pub mod speculate;
pub mod team;
pub mod text;
pub mod tuned;
pub mod watch;
pub mod watchdog;
