//! The binary `bitnetd-bench`: one subcommand for each thing that is measured.
#![deny(unsafe_code)]

mod compare;
mod kernels;
mod limits;
mod model;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "bitnetd-bench", version, about = "Measures bitnetd from outside")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The same loads on servers that do their I/O differently
    Backends(serve::backends::Args),
    /// Let clients leave in mid stream: what is still computed for them, and what is kept
    Cancel(serve::cancel::Args),
    /// Our benchmark and a rival's in turn, and their ratios
    Compare(compare::Args),
    /// Let long prompts arrive among running streams: what these feel
    Disturb(serve::disturb::Args),
    /// What requests cost around the model: health, single tokens, streams, and the server's own times
    Http(serve::http_path::Args),
    /// Each kernel beside the machine's limits, its answers checked
    Kernels(kernels::Args),
    /// Prompt and decode speed of a model beside the machine's limits
    Model(model::Args),
    /// Ask for multiples of what a server can do: goodput, refusals, latencies of what it takes
    Overload(serve::overload::Args),
    /// Load a running server: latency percentiles, throughput, goodput
    Serve(serve::Args),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Backends(args) => serve::backends::run(&args),
        Command::Cancel(args) => serve::cancel::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Disturb(args) => serve::disturb::run(&args),
        Command::Http(args) => serve::http_path::run(&args),
        Command::Kernels(args) => kernels::run(&args),
        Command::Model(args) => model::run(&args),
        Command::Overload(args) => serve::overload::run(&args),
        Command::Serve(args) => serve::run(&args),
    }
}
