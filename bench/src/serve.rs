//! `bitnetd-bench serve`: streams requests at a server and reports what its clients feel.
mod client;
mod connection;
mod epoll;
mod http;
mod load;
mod prompt;
mod report;
mod request;
mod schedule;
mod sse;
mod url;

#[cfg(test)]
mod fake_server;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::ArgGroup;

use load::{Arrivals, Load};
use prompt::Prompts;
use report::{Report, Slo};
use request::{Endpoint, RequestTemplate};
use url::Url;

#[derive(clap::Args)]
#[command(group = ArgGroup::new("arrivals").args(["concurrency", "rate"]))]
pub(crate) struct Args {
    /// Server to load; plain http only
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: Url,
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
    #[arg(long, value_enum, default_value_t = Endpoint::Chat)]
    endpoint: Endpoint,
    /// Served name of the model (default: the first that the server lists)
    #[arg(long)]
    model: Option<String>,
    /// Go on to max-tokens whatever the model says (not on endpoint inference)
    #[arg(long)]
    ignore_eos: bool,
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Seeds prompts, arrivals and sampling
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Value of `Authorization: Bearer`
    #[arg(long)]
    api_key: Option<String>,
    /// A request that takes longer has failed
    #[arg(long, default_value_t = 300.0, value_parser = positive)]
    timeout_s: f64,
    /// Goodput counts requests whose first token came within this time
    #[arg(long, value_parser = positive)]
    slo_ttft_ms: Option<f64>,
    /// Goodput counts requests none of whose gaps between tokens was longer
    #[arg(long, value_parser = positive)]
    slo_itl_ms: Option<f64>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Write report.json and one .hgrm file for each latency here
    #[arg(long)]
    out_dir: Option<PathBuf>,
}

/// Runs the load; the exit code is 1 if a request failed for another reason than 429 or 503.
pub(crate) fn run(args: &Args) -> ExitCode {
    match measure(args) {
        Ok(report) if report.has_unexcused_failures() => ExitCode::FAILURE,
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bitnetd-bench serve: {error}");
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
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
}

fn measure(args: &Args) -> Result<Report, Error> {
    if args.ignore_eos && args.endpoint == Endpoint::Inference {
        return Err(Error::IgnoreEosOnInference);
    }
    let address = args.url.resolve()?;
    let api_key = args.api_key.as_deref();
    let model = args.model.clone().or_else(|| client::first_model(&args.url, address, api_key));
    let words_per_token = client::words_per_token(&args.url, address, api_key)?;
    let template = RequestTemplate {
        endpoint: args.endpoint,
        url: args.url.clone(),
        model,
        max_tokens: args.max_tokens,
        temperature: args.temperature,
        ignore_eos: args.ignore_eos,
        api_key: args.api_key.clone(),
        prompts: Prompts::new(args.seed, args.prompt_tokens, words_per_token),
    };
    let arrivals = match args.rate {
        Some(per_second) => Arrivals::Open { per_second },
        None => Arrivals::Closed { streams: args.concurrency.unwrap_or(1) },
    };
    let slo = Slo { ttft_ms: args.slo_ttft_ms, itl_ms: args.slo_itl_ms };
    let load = Load {
        address,
        template: &template,
        arrivals,
        requests: args.requests,
        seed: args.seed,
        timeout: Duration::from_secs_f64(args.timeout_s),
    };
    let mut report = Report::new(slo);
    load.run(&mut report)?;
    let summary = report.to_json(args.endpoint.name(), &args.url.to_string(), arrivals, args.seed);
    if args.json {
        println!("{summary:#}");
    } else {
        print!("{}", report.to_table());
    }
    if let Some(folder) = &args.out_dir {
        fs::create_dir_all(folder).map_err(|source| Error::Write { path: folder.clone(), source })?;
        let path = folder.join("report.json");
        fs::write(&path, format!("{summary:#}\n")).map_err(|source| Error::Write { path, source })?;
        for (name, text) in report.to_hgrm() {
            let path = folder.join(format!("{name}.hgrm"));
            fs::write(&path, text).map_err(|source| Error::Write { path, source })?;
        }
    }
    Ok(report)
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= 1e9 => Ok(number),
        _ => Err("not a positive number".to_owned()),
    }
}
