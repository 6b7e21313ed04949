//! `bitnetd-bench serve` and its kin: load a server and report what its clients feel.
pub(crate) mod backends;
pub(crate) mod cancel;
mod client;
mod connection;
pub(crate) mod disturb;
mod epoll;
mod hlog;
mod http;
pub(crate) mod http_path;
mod load;
pub(crate) mod overload;
mod plot;
mod prompt;
mod report;
mod request;
mod schedule;
mod scrape;
mod sse;
mod target;
mod url;
mod verify;
mod wire;

#[cfg(test)]
mod fake_server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use clap::ArgGroup;

use load::Arrivals;
use report::{Report, Slo};
use target::TargetArgs;

#[derive(clap::Args)]
#[command(group = ArgGroup::new("arrivals").args(["concurrency", "rate"]))]
pub(crate) struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// Closed loop: this many streams at a time, each followed by the next (default: 1)
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    concurrency: Option<u32>,
    /// Open loop: Poisson arrivals per second; latency counts from the scheduled arrival
    #[arg(long, value_parser = positive)]
    rate: Option<f64>,
    /// Requests in all
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,
    /// Length of each prompt, about
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    prompt_tokens: u32,
    /// Most tokens of each answer
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Want each answer in one body, not as a stream
    #[arg(long)]
    whole: bool,
    /// Goodput counts requests whose first token came within this time
    #[arg(long, value_parser = positive)]
    slo_ttft_ms: Option<f64>,
    /// Goodput counts requests none of whose gaps between tokens was longer
    #[arg(long, value_parser = positive)]
    slo_itl_ms: Option<f64>,
    /// Ask for every answer again, one at a time, and fail where a text differs from the one under load
    #[arg(long, conflicts_with = "whole")]
    verify: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Write report.json and one .hgrm file for each latency here
    #[arg(long)]
    out_dir: Option<PathBuf>,
    /// Write the latencies here as an HDR histogram log, a tag for each
    #[arg(long)]
    hdr: Option<PathBuf>,
    /// Draw the latencies by percentile here, as SVG
    #[arg(long)]
    plot: Option<PathBuf>,
}

/// Runs the load; the exit code is 1 if a request failed for another reason than 429 or 503.
pub(crate) fn run(args: &Args) -> ExitCode {
    exit("serve", measure(args))
}

/// `Ok(false)` is a measurement that shows something wrong.
fn exit(command: &str, outcome: Result<bool, Error>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bitnetd-bench {command}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Why a run could not be made; a request that fails is a result and no error.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot find {host}: {source}")]
    Resolve { host: String, source: std::io::Error },
    #[error("cannot reach {host}: {source}")]
    Unreachable { host: String, source: std::io::Error },
    #[error("endpoint inference has no ignore_eos")]
    IgnoreEosOnInference,
    #[error("event loop: {0}")]
    EventLoop(#[source] std::io::Error),
    #[error("{0}")]
    Url(String),
    #[error("TLS: {0}")]
    Tls(String),
    #[error("cannot start the server: {0}")]
    Server(#[source] std::io::Error),
    #[error("the server ended: {0}")]
    ServerEnded(String),
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("the server's /metrics has no {0}")]
    NoMetric(String),
    #[error("the server has no receipt of request {0}")]
    NoReceipt(String),
    #[error("{0} of the requests failed where all should end well, first: {1}")]
    Failed(u64, String),
}

fn measure(args: &Args) -> Result<bool, Error> {
    let target = args.target.reach()?;
    let template = target.template(args.prompt_tokens, args.max_tokens, args.whole);
    let arrivals = match args.rate {
        Some(per_second) => Arrivals::Open { per_second },
        None => Arrivals::Closed { streams: args.concurrency.unwrap_or(1) },
    };
    let ask = |index| template.ask(index);
    let (mut report, mut texts) = (Report::new(args.slo()), verify::Texts::default());
    let began = SystemTime::now();
    let elapsed = target.run(arrivals.clone(), args.requests, &ask, &mut |settled| {
        report.add(&settled);
        if args.verify {
            texts.keep(settled);
        }
    })?;
    report.set_elapsed(elapsed);
    let mut summary =
        report.to_json(args.target.endpoint.name(), &args.target.url.to_string(), &arrivals, args.target.seed);
    let differing = if args.verify { Some(texts.compare(&target, &ask)?) } else { None };
    if let Some(differing) = &differing {
        summary["verified"] = serde_json::json!({ "answers": texts.len(), "differing": differing });
    }
    if args.json {
        println!("{summary:#}");
    } else {
        print!("{}", report.to_table());
        if let Some(differing) = &differing {
            println!("{} answers asked for again one at a time, {} differ", texts.len(), differing.len());
        }
    }
    if let Some(folder) = &args.out_dir {
        fs::create_dir_all(folder).map_err(|source| Error::Write { path: folder.clone(), source })?;
        write(&folder.join("report.json"), &format!("{summary:#}\n"))?;
        for (name, text) in report.to_hgrm() {
            write(&folder.join(format!("{name}.hgrm")), &text)?;
        }
    }
    if let Some(path) = &args.hdr {
        write(path, &hlog::text(began, elapsed, report.latencies()))?;
    }
    if let Some(path) = &args.plot {
        write(path, &plot::percentiles(&args.title(&arrivals), report.latencies()))?;
    }
    Ok(!report.has_unexcused_failures() && differing.is_none_or(|differing| differing.is_empty()))
}

impl Args {
    fn slo(&self) -> Slo {
        Slo { ttft_ms: self.slo_ttft_ms, itl_ms: self.slo_itl_ms }
    }

    fn title(&self, arrivals: &Arrivals) -> String {
        let load = match arrivals {
            Arrivals::Open { per_second } => format!("{per_second} requests a second"),
            Arrivals::Closed { streams } => format!("{streams} clients"),
            Arrivals::Listed(times) => format!("{} requests", times.len()),
        };
        format!("{load}, prompts of {} tokens, answers of {}", self.prompt_tokens, self.max_tokens)
    }
}

/// What was there stays where this fails.
fn write(path: &Path, text: &str) -> Result<(), Error> {
    let fail = |source| Error::Write { path: path.to_owned(), source };
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return fs::write(path, text).map_err(fail);
    }
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let written = fs::write(&partial, text).and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&partial);
    }
    written.map_err(fail)
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= 1e9 => Ok(number),
        _ => Err("not a positive number".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_that_can_t_be_written_leaves_the_one_before() {
        let folder = std::env::temp_dir().join(format!("bitnetd-bench-report-{}", std::process::id()));
        fs::create_dir_all(folder.join("report.json.partial")).unwrap();
        let path = folder.join("report.json");
        fs::write(&path, "old").unwrap();
        assert!(matches!(write(&path, "new"), Err(Error::Write { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        fs::remove_dir(folder.join("report.json.partial")).unwrap();
        write(&path, "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert!(write(Path::new("/dev/full"), "new").is_err());
        fs::remove_dir_all(&folder).unwrap();
    }
}
