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
    /// Our benchmark and a rival's in turn, and their ratios
    Compare(compare::Args),
    /// Each kernel beside the machine's limits, its answers checked
    Kernels(kernels::Args),
    /// Prompt and decode speed of a model beside the machine's limits
    Model(model::Args),
    /// Load a running server: latency percentiles, throughput, goodput
    Serve(serve::Args),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Compare(args) => compare::run(&args),
        Command::Kernels(args) => kernels::run(&args),
        Command::Model(args) => model::run(&args),
        Command::Serve(args) => serve::run(&args),
    }
}
