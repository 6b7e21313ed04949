//! `bitnetd-bench compare`: our benchmark and a rival's, run in turn on this machine, and their ratios pair by pair.

mod numbers;
mod report;
mod turn;

use std::process::ExitCode;
use std::time::Duration;

use numbers::{Format, Numbers};
use report::Report;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The rival's benchmark, a shell command
    #[arg(long)]
    rival: String,
    /// Ours, a shell command that prints what `model --json` does [default: model --json of this program]
    #[arg(long)]
    ours: Option<String>,
    /// How the rival prints its numbers: llama-bench (with -o json), bitnetd (as model --json does), or with --number
    #[arg(long, default_value = "llama-bench", conflicts_with = "number")]
    format: String,
    /// A number of the rival by a pattern whose first group is it, as TEST@WORKERS=REGEX, e.g. 'tg128@2=tg128 .* ([0-9.]+)'
    #[arg(long)]
    number: Vec<String>,
    /// How often each side runs
    #[arg(short, long, default_value_t = 5)]
    pairs: usize,
    /// Seconds after which a run is given up
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
}

type Failure = Box<dyn std::error::Error>;

/// What a run gave, or why it gave nothing.
type Run = Result<Numbers, String>;

/// Succeeds where every pair is whole.
pub(crate) fn run(args: &Args) -> ExitCode {
    match compare(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bitnetd-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compare(args: &Args) -> Result<bool, Failure> {
    let rival_format = Format::parse(&args.format, &args.number)?;
    if args.pairs == 0 || args.timeout == 0 {
        return Err("pairs and timeout are at least 1".into());
    }
    let ours = match &args.ours {
        Some(command) => command.clone(),
        None => format!("{} model --json", turn::quoted(&std::env::current_exe()?)?),
    };
    let timeout = Duration::from_secs(args.timeout);
    let mut report = Report::default();
    for pair in 1..=args.pairs {
        let a = turn::run(&ours, timeout).and_then(|output| Format::Bitnetd.read(&output));
        let b = turn::run(&args.rival, timeout).and_then(|output| rival_format.read(&output));
        if !args.json {
            report::print_pair(pair, &a, &b);
        }
        report.push(a, b);
    }
    if args.json {
        println!("{}", report.to_json(&ours, &args.rival));
    } else {
        report.print();
    }
    Ok(report.is_whole())
}
