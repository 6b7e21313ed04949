//! The binary `bitnetd-bench`: one subcommand for each thing that is measured.
#![deny(unsafe_code)]

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
    /// Load a running server: latency percentiles, throughput, goodput
    Serve(serve::Args),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(args) => serve::run(&args),
    }
}
